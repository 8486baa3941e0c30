"""The record of who did what, beside the steps of the master data: access, bill runs, archive. Append only."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from billing.errors import NotFound
from storage.sql.database import Connection


def record(
    connection: Connection,
    tenant_id: str,
    *,
    at: datetime,
    actor: str,
    action: str,
    subject: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Add an entry in the transaction of the change. Never put secrets into `before` or `after`."""
    connection.execute(
        "INSERT INTO audit_entries (tenant_id, at, actor, action, subject, before, after)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (
            UUID(tenant_id),
            at,
            actor,
            action,
            subject,
            Jsonb(dict(before)) if before is not None else None,
            Jsonb(dict(after)) if after is not None else None,
        ),
    )


def page(connection: Connection, *, after: int | None, limit: int) -> list[dict[str, Any]]:
    """The newest entries first; `after` is the id of the last one seen."""
    rows = connection.execute(
        "SELECT id, at, actor, action, subject, before, after FROM audit_entries"
        " WHERE %s::bigint IS NULL OR id < %s::bigint ORDER BY id DESC LIMIT %s",
        (after, after, limit),
    ).fetchall()
    return [dict(row) for row in rows]


def of_action(connection: Connection, action: str, *, limit: int) -> list[dict[str, Any]]:
    """The newest entries of one action first: what its page shows as a trail."""
    rows = connection.execute(
        "SELECT id, at, actor, action, subject, before, after FROM audit_entries WHERE action = %s"
        " ORDER BY id DESC LIMIT %s",
        (action, limit),
    ).fetchall()
    return [dict(row) for row in rows]


def entry(connection: Connection, id: int, action: str) -> dict[str, Any]:
    """One entry of the transaction's tenant. NotFound if there is none of that action."""
    row = connection.execute(
        "SELECT id, at, actor, action, subject, before, after FROM audit_entries WHERE id = %s AND action = %s",
        (id, action),
    ).fetchone()
    if row is None:
        raise NotFound(f"no record {id} of {action!r}")
    return dict(row)
