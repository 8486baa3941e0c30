"""How long a tenant keeps what no law makes it keep: rules by class, and what their last look found.

Classes: `usage` (rows of the log that were billed), `notifications` (webhook messages with their deliveries), `record`
(of what people did). Documents are the archive's (`storage/archive/retention.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from storage.sql.database import Connection

CLASSES = ("usage", "notifications", "record")
MONTHS_MAX = 1_200
HELD_FOR = timedelta(minutes=30)
_SHOWN = "class, months, changed_at, changed_by, next_at, last_at, last_result, failing_since, error"


def rules(connection: Connection) -> list[dict[str, Any]]:
    """Of the transaction's tenant."""
    rows = connection.execute(f"SELECT {_SHOWN} FROM retention_rules ORDER BY class").fetchall()  # noqa: S608 - ours
    return [dict(row) for row in rows]


def put(
    connection: Connection, tenant_id: str, wanted: Mapping[str, int | None], *, actor: str, now: datetime
) -> list[dict[str, Any]]:
    """Set rules (None: keep for ever); classes that are not named stay as they are."""
    for name, months in wanted.items():
        assert name in CLASSES, name
        if months is None:
            connection.execute("DELETE FROM retention_rules WHERE class = %s", (name,))
            continue
        connection.execute(
            "INSERT INTO retention_rules (tenant_id, class, months, changed_at, changed_by, next_at)"
            " VALUES (%(tenant)s, %(class)s, %(months)s, %(now)s, %(by)s, %(now)s)"
            " ON CONFLICT (tenant_id, class)"
            " DO UPDATE SET months = excluded.months,"
            " changed_at = excluded.changed_at, changed_by = excluded.changed_by,"
            " next_at = excluded.next_at",
            {"tenant": UUID(tenant_id), "class": name, "months": months, "now": now, "by": actor},
        )
    return rules(connection)


def due(connection: Connection, now: datetime) -> list[tuple[str, str]]:
    """(tenant, class) of rules that are to be looked at (system role)."""
    rows = connection.execute(
        "SELECT tenant_id, class FROM retention_rules WHERE next_at <= %s ORDER BY next_at", (now,)
    ).fetchall()
    return [(str(row["tenant_id"]), str(row["class"])) for row in rows]


def claim(connection: Connection, name: str, now: datetime) -> dict[str, Any] | None:
    """Take a rule that is due: nobody else does until `HELD_FOR` is over."""
    row = connection.execute(
        f"SELECT {_SHOWN} FROM retention_rules WHERE class = %s AND next_at <= %s FOR UPDATE SKIP LOCKED",  # noqa: S608
        (name, now),
    ).fetchone()
    if row is None:
        return None
    connection.execute("UPDATE retention_rules SET next_at = %s WHERE class = %s", (now + HELD_FOR, name))
    return dict(row)


def note(
    connection: Connection, name: str, *, now: datetime, next_at: datetime, result: Mapping[str, Any] | None, error: str
) -> None:
    """What a look did (`result`), or why it failed."""
    connection.execute(
        "UPDATE retention_rules SET next_at = %(next)s,"
        " last_at = CASE WHEN %(error)s = '' THEN %(now)s ELSE last_at END,"
        " last_result = coalesce(%(result)s, last_result), error = nullif(%(error)s, ''),"
        " failing_since = CASE WHEN %(error)s = '' THEN NULL ELSE coalesce(failing_since, %(now)s) END"
        " WHERE class = %(class)s",
        {
            "class": name,
            "now": now,
            "next": next_at,
            "result": None if result is None else Jsonb(dict(result)),
            "error": error,
        },
    )


def billed_before(connection: Connection, issued_until: datetime) -> datetime | None:
    """Up to when everybody's usage was billed by documents of at least that age: the end of the last such run that left
    nobody out (whoever an earlier one left out, it billed)."""
    row = connection.execute(
        "SELECT max(up_to) AS up_to FROM bill_runs WHERE state IN ('finalised', 'done') AND parked = '[]'"
        " AND document_date <= %s::date",
        (issued_until,),
    ).fetchone()
    return None if row is None else row["up_to"]


def delete_notifications(connection: Connection, tenant_id: str, before: datetime, limit: int) -> int:
    """Messages made before, with their deliveries, unless one still waits (the tables' owner); at most so many."""
    rows = connection.execute(
        "SELECT id FROM webhook_messages m WHERE tenant_id = %(tenant)s AND made_at < %(before)s AND NOT EXISTS"
        " (SELECT 1 FROM webhook_deliveries d WHERE d.tenant_id = m.tenant_id AND d.message_id = m.id"
        "  AND d.state = 'waiting') ORDER BY made_at LIMIT %(limit)s",
        {"tenant": UUID(tenant_id), "before": before, "limit": limit},
    ).fetchall()
    ids = [row["id"] for row in rows]
    given = (UUID(tenant_id), ids)
    connection.execute("DELETE FROM webhook_deliveries WHERE tenant_id = %s AND message_id = ANY(%s)", given)
    return connection.execute("DELETE FROM webhook_messages WHERE tenant_id = %s AND id = ANY(%s)", given).rowcount


def delete_record(connection: Connection, tenant_id: str, before: datetime, limit: int) -> int:
    """Entries of the record of what people did, the oldest first (the tables' owner); at most so many."""
    return connection.execute(
        "DELETE FROM audit_entries WHERE tenant_id = %(tenant)s AND id IN (SELECT id FROM audit_entries"
        " WHERE tenant_id = %(tenant)s AND at < %(before)s ORDER BY id LIMIT %(limit)s)",
        {"tenant": UUID(tenant_id), "before": before, "limit": limit},
    ).rowcount
