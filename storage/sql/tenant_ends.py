"""The end of tenants in SQL: closed, to be erased at a time, erased. What is deleted when is
`pipelines/tenant_erasing.py`.

`close`, `reopen`, `plan_erasure`, `standing`, `due`, `begin`, `note` and `remember` take a connection of the system
role; `delete_rows` one of the tables' owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import sql
from psycopg.types.json import Jsonb

from billing.errors import Conflict, NotFound
from storage.sql.database import Connection

HELD_FOR = timedelta(minutes=10)
_SHOWN = "code, kind, closed_at, closed_by, erase_at, erase_rule, erasing_since, erase_progress, erased_at"
# What stays of a tenant: its row without names, and (while the law keeps documents) the archive.
_KEPT = frozenset({"tenants"})
_ARCHIVE = "archive_"
_MASTER = frozenset({"masters", "master_changes"})  # numbers that shards and processes have seen do not come again


def state(connection: Connection, code: str) -> dict[str, Any]:
    """How a tenant stands. NotFound without one of that code."""
    row = connection.execute(f"SELECT id, {_SHOWN} FROM tenants WHERE code = %s", (code,)).fetchone()  # noqa: S608 - ours
    if row is None:
        raise NotFound(f"there is no tenant {code!r}")
    return {**row, "id": str(row["id"])}


def close(connection: Connection, code: str, actor: str, now: datetime) -> dict[str, Any]:
    """Nothing changes in the tenant any more; again is harmless."""
    state(connection, code)
    connection.execute(
        "UPDATE tenants SET closed_at = coalesce(closed_at, %s), closed_by = coalesce(closed_by, %s) WHERE code = %s",
        (now, actor, code),
    )
    return state(connection, code)


def reopen(connection: Connection, code: str) -> dict[str, Any]:
    """Take back a closing, and an erasure that has not begun. Conflict if it has."""
    known = state(connection, code)
    row = connection.execute(
        "UPDATE tenants SET closed_at = NULL, closed_by = NULL, erase_at = NULL, erase_rule = NULL"
        " WHERE code = %s AND erasing_since IS NULL RETURNING id",
        (code,),
    ).fetchone()
    if row is None:
        raise Conflict(f"the tenant is being erased since {known['erasing_since'].isoformat()}: nothing can be undone")
    return state(connection, code)


def plan_erasure(connection: Connection, code: str, rule: str, at: datetime) -> dict[str, Any]:
    """Say when a closed tenant is erased; again before it begins says another time."""
    known = state(connection, code)
    if known["closed_at"] is None:
        raise Conflict("the tenant is not closed: close it first, and export what somebody may still need")
    row = connection.execute(
        "UPDATE tenants SET erase_at = %s, erase_rule = %s, erase_next_at = %s"
        " WHERE code = %s AND erasing_since IS NULL AND closed_at IS NOT NULL RETURNING id",
        (at, rule, at, code),
    ).fetchone()
    if row is None:
        raise Conflict("the tenant is being erased already")
    return state(connection, code)


def standing(connection: Connection) -> list[str]:
    """Tenants whose erasure has not begun."""
    rows = connection.execute("SELECT id FROM tenants WHERE erasing_since IS NULL ORDER BY id").fetchall()
    return [str(row["id"]) for row in rows]


def due(connection: Connection, now: datetime) -> list[str]:
    """Tenants with a step of their erasure to do."""
    rows = connection.execute(
        "SELECT id FROM tenants WHERE erase_at <= %s AND erased_at IS NULL AND erase_next_at <= %s"
        " ORDER BY erase_next_at",
        (now, now),
    ).fetchall()
    return [str(row["id"]) for row in rows]


def begin(connection: Connection, tenant_id: str, now: datetime) -> dict[str, Any] | None:
    """Take a step that is due; from the first one on nothing is taken back. None if somebody else has it."""
    row = connection.execute(
        f"SELECT id, {_SHOWN} FROM tenants WHERE id = %s AND erase_at <= %s AND erased_at IS NULL"  # noqa: S608 - ours
        " AND erase_next_at <= %s FOR UPDATE SKIP LOCKED",
        (UUID(tenant_id), now, now),
    ).fetchone()
    if row is None:
        return None
    connection.execute(
        "UPDATE tenants SET erasing_since = coalesce(erasing_since, %s), erase_next_at = %s WHERE id = %s",
        (now, now + HELD_FOR, UUID(tenant_id)),
    )
    return {**row, "id": str(row["id"])}


def note(
    connection: Connection,
    tenant_id: str,
    *,
    progress: Mapping[str, Any],
    next_at: datetime,
    erased_at: datetime | None = None,
) -> None:
    """What a step did; `progress` is added to what is there, and what it says to be null goes."""
    connection.execute(
        "UPDATE tenants SET erase_progress = jsonb_strip_nulls(erase_progress || %s), erase_next_at = %s,"
        " erased_at = %s WHERE id = %s",
        (Jsonb(dict(progress)), next_at, erased_at, UUID(tenant_id)),
    )


def remember(connection: Connection, tenant_id: str, progress: Mapping[str, Any]) -> None:
    """What a step has to know if it is killed and begun again, before it goes on."""
    connection.execute(
        "UPDATE tenants SET erase_progress = erase_progress || %s WHERE id = %s",
        (Jsonb(dict(progress)), UUID(tenant_id)),
    )


def delete_rows(connection: Connection, tenant_id: str, *, with_archive: bool) -> dict[str, int]:
    """Delete the tenant's rows of every table, those that others refer to last; how many of each.

    The archive's tables stay unless `with_archive`; of master data the numbers of changes stay.
    """
    found: dict[str, int] = {}
    for table, owner in _tables(connection):
        if table in _KEPT or table in _MASTER or (table.startswith(_ARCHIVE) and not with_archive):
            continue
        count = connection.execute(
            sql.SQL("DELETE FROM {} WHERE {} = %s").format(sql.Identifier(table), sql.Identifier(owner)),
            (UUID(tenant_id),),
        ).rowcount
        if count:
            found[table] = count
    connection.execute("UPDATE master_changes SET actor = 'erased' WHERE tenant_id = %s", (UUID(tenant_id),))
    return found


def without_name(connection: Connection, tenant_id: str, form: Mapping[str, Any], code: str) -> None:
    """What is left of the tenant's own row."""
    connection.execute(
        "UPDATE tenants SET code = %s, name = 'erased', form = %s, closed_by = NULL WHERE id = %s",
        (code, Jsonb(dict(form)), UUID(tenant_id)),
    )


def forget_people(connection: Connection, users: list[str]) -> int:
    """Delete those of these users who belong to no tenant any more (system role)."""
    gone = [
        row["id"]
        for row in connection.execute(
            "SELECT id FROM users u WHERE id = ANY(%s::uuid[])"
            " AND NOT EXISTS (SELECT 1 FROM memberships m WHERE m.user_id = u.id)",
            (users,),
        ).fetchall()
    ]
    connection.execute("DELETE FROM sessions WHERE user_id = ANY(%s)", (gone,))
    return connection.execute("DELETE FROM users WHERE id = ANY(%s)", (gone,)).rowcount


def _tables(connection: Connection) -> list[tuple[str, str]]:
    """The tables of tenants in an order in which their rows may be deleted, with the column that says whose."""
    rows = connection.execute(
        "SELECT c.relname AS name, a.attname AS owner, ARRAY(SELECT DISTINCT r.relname::text FROM pg_constraint k"
        " JOIN pg_class r ON r.oid = k.conrelid WHERE k.contype = 'f' AND k.confrelid = c.oid AND r.oid <> c.oid)"
        " AS used_by FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped"
        "  AND (a.attname = 'tenant_id' OR (c.relname = 'idempotency_keys' AND a.attname = 'owner'))"
        " WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace ORDER BY c.relname"
    ).fetchall()
    waiting = {row["name"]: (row["owner"], set(row["used_by"])) for row in rows}
    ordered: list[tuple[str, str]] = []
    while waiting:
        free = [name for name, (_, used_by) in waiting.items() if not used_by & waiting.keys()]
        assert free, "tables refer to each other in a circle"
        ordered += [(name, waiting.pop(name)[0]) for name in free]
    return ordered
