"""What checks of completeness found: one row a check, never changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from storage.sql.database import Connection


def record(
    connection: Connection,
    tenant_id: str,
    *,
    at: datetime,
    stored: int,
    rated: int | None,
    suspended: int | None,
    voided: int | None,
    counted: int,
    complete: bool,
    found: int,
    differences: Sequence[Mapping[str, Any]],
) -> None:
    """Add a check; two of one moment are one."""
    connection.execute(
        "INSERT INTO completeness_checks"
        " (tenant_id, at, stored, rated, suspended, voided, counted, complete, found, differences)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (
            UUID(tenant_id),
            at,
            stored,
            rated,
            suspended,
            voided,
            counted,
            complete,
            found,
            Jsonb(list(differences)),
        ),
    )


def newest(connection: Connection) -> dict[str, Any] | None:
    """The last check of the transaction's tenant."""
    row = connection.execute(
        "SELECT at, stored, rated, suspended, voided, counted, complete, found, differences"
        " FROM completeness_checks ORDER BY at DESC LIMIT 1"
    ).fetchone()
    return None if row is None else dict(row)


def tenants_to_check(connection: Connection, before: datetime, limit: int) -> list[str]:
    """Tenants that were not checked since, the longest ago first (system role)."""
    rows = connection.execute(
        "SELECT t.id, max(c.at) AS last FROM tenants t LEFT JOIN completeness_checks c ON c.tenant_id = t.id"
        " WHERE t.erasing_since IS NULL"
        " GROUP BY t.id HAVING max(c.at) IS NULL OR max(c.at) < %s ORDER BY last NULLS FIRST, t.id LIMIT %s",
        (before, limit),
    ).fetchall()
    return [str(row["id"]) for row in rows]
