"""Drafts of plans: what is being prepared before it is published as a version that never changes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from billing.errors import NotFound, PreconditionFailed
from storage.sql.database import Connection


def put(
    connection: Connection,
    tenant_id: str,
    code: str,
    form: Mapping[str, Any],
    *,
    actor: str,
    now: datetime,
    expected: int | None = None,
) -> int:
    """Keep a draft, new or changed; its version. PreconditionFailed if it is no longer at `expected`."""
    row = connection.execute(
        "INSERT INTO plan_drafts AS d (tenant_id, code, form, actor, updated_at) VALUES (%s, %s, %s, %s, %s)"
        " ON CONFLICT (tenant_id, code) DO UPDATE SET form = excluded.form, actor = excluded.actor,"
        " updated_at = excluded.updated_at, version = d.version + 1"
        " WHERE %s::int IS NULL OR d.version = %s RETURNING version",
        (UUID(tenant_id), code, Jsonb(dict(form)), actor, now, expected, expected),
    ).fetchone()
    if row is None:
        raise PreconditionFailed(f"the draft of plan {code!r} was changed in the meantime: read it again")
    return int(row["version"])


def get(connection: Connection, code: str) -> dict[str, Any]:
    row = connection.execute(
        "SELECT code, form, version, actor, updated_at FROM plan_drafts WHERE code = %s", (code,)
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no draft of plan {code!r}")
    return dict(row)


def page(connection: Connection, *, after: str | None, limit: int) -> list[dict[str, Any]]:
    rows = connection.execute(
        "SELECT code, form, version, actor, updated_at FROM plan_drafts WHERE code > %s ORDER BY code LIMIT %s",
        (after or "", limit),
    ).fetchall()
    return [dict(row) for row in rows]


def remove(connection: Connection, code: str) -> None:
    if connection.execute("DELETE FROM plan_drafts WHERE code = %s", (code,)).rowcount == 0:
        raise NotFound(f"there is no draft of plan {code!r}")
