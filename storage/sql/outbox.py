"""The outbox: business events, written in the transaction in which they happen, and told to endpoints afterwards.

Owns who writes a row, when it waits, and its way into the queue of deliveries (`storage/sql/webhooks.py`): in the
order of the outbox, in batches, each once, as a row is marked in the transaction that queues its messages. A row waits
only if an endpoint listens to its type when it is written, so what nobody listens to costs no second write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from billing.events import DOCUMENT_PARKED, RUN_MISSED
from billing.webhooks import event_id, message_body
from storage.sql import webhooks
from storage.sql.database import Connection

# NULL (it waits) if an endpoint of the tenant listens to the type now, else the event's own time.
_TOLD_AT = (
    "CASE WHEN EXISTS (SELECT 1 FROM webhook_endpoints WHERE deleted_at IS NULL AND disabled_at IS NULL"
    " AND %(kind)s = ANY(event_types)) THEN NULL ELSE %(now)s::timestamptz END"
)


# --- writing


def add(
    connection: Connection, tenant_id: str, *, kind: str, subject: str, body: Mapping[str, Any], now: datetime
) -> None:
    """One event of the transaction's tenant. Many at once write `told_at` by `listened`."""
    connection.execute(
        "INSERT INTO outbox (tenant_id, at, kind, subject, body, told_at)"  # noqa: S608 - text of this module
        f" VALUES (%(tenant)s, %(now)s, %(kind)s, %(subject)s, %(body)s, {_TOLD_AT})",
        {"tenant": UUID(tenant_id), "now": now, "kind": kind, "subject": subject, "body": Jsonb(dict(body))},
    )


def listened(connection: Connection) -> list[str]:
    """Types that an endpoint of the tenant listens to now."""
    rows = connection.execute(
        "SELECT DISTINCT unnest(event_types) AS kind FROM webhook_endpoints"
        " WHERE deleted_at IS NULL AND disabled_at IS NULL"
    ).fetchall()
    return sorted(row["kind"] for row in rows)


def run_missed(connection: Connection, tenant_id: str, up_to: datetime, due_at: datetime, now: datetime) -> None:
    """That no bill run happened: once for each end of a period, whoever looks how often."""
    subject = up_to.isoformat()
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"missed runs {tenant_id}",))
    known = connection.execute(
        "SELECT 1 FROM outbox WHERE kind = %s AND subject = %s", (RUN_MISSED, subject)
    ).fetchone()
    if known is None:
        body = {"up_to": subject, "due_at": due_at.isoformat()}
        add(connection, tenant_id, kind=RUN_MISSED, subject=subject, body=body, now=now)


def of_run(connection: Connection, run: Mapping[str, Any], kind: str, now: datetime, **more: Any) -> None:
    """What became of a bill run (a row of `bill_runs`)."""
    body = {"run": str(run["id"]), "number": run["number"], "up_to": run["up_to"].isoformat(), **more}
    add(connection, str(run["tenant_id"]), kind=kind, subject=str(run["number"]), body=body, now=now)


def documents_parked(connection: Connection, parked: Sequence[tuple[str, str]], now: datetime) -> None:
    """Documents (id, reason) that are about to be parked; those that are already, or archived, are told no more."""
    if not parked:
        return
    connection.execute(
        "WITH moved AS (SELECT f.tenant_id, f.invoice_id, p.reason FROM unnest(%(ids)s::uuid[], %(reasons)s::text[])"  # noqa: S608 - text of this module
        "   AS p (id, reason) JOIN document_files f ON f.invoice_id = p.id WHERE f.state = 'wanted' FOR UPDATE OF f)"
        " INSERT INTO outbox (tenant_id, at, kind, subject, body, told_at)"
        " SELECT m.tenant_id, %(now)s, %(kind)s, i.number, jsonb_build_object('number', i.number,"
        f"  'customer', i.customer, 'reason', m.reason), {_TOLD_AT}"
        " FROM moved m JOIN invoices i ON i.tenant_id = m.tenant_id AND i.id = m.invoice_id ORDER BY i.id",
        {
            "ids": [UUID(id) for id, _ in parked],
            "reasons": [reason for _, reason in parked],
            "kind": DOCUMENT_PARKED,
            "now": now,
        },
    )


# --- telling


def tenants_waiting(connection: Connection) -> list[str]:
    """Tenants with events that wait to be told (system role)."""
    rows = connection.execute("SELECT DISTINCT tenant_id FROM outbox WHERE told_at IS NULL").fetchall()
    return [str(row["tenant_id"]) for row in rows]


def tell(connection: Connection, tenant_id: str, now: datetime, limit: int) -> int:
    """Queue the messages of the oldest events that wait, in their order; how many events. 0: none waits, or somebody
    else is at it."""
    row = connection.execute(
        "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0)) AS mine", (f"outbox {tenant_id}",)
    ).fetchone()
    if row is None or not row["mine"]:
        return 0
    rows = connection.execute(
        "SELECT id, at, kind, body FROM outbox WHERE told_at IS NULL ORDER BY id LIMIT %s FOR UPDATE", (limit,)
    ).fetchall()
    if rows:
        messages: list[webhooks.Message] = []
        for row in rows:
            id = event_id(tenant_id, row["id"])
            body = message_body(row["kind"], row["at"], {**row["body"], "id": id, "sequence": row["id"]})
            messages.append(webhooks.Message(id, row["kind"], body, row["at"]))
        webhooks.add_messages(connection, tenant_id, messages, now)
        connection.execute("UPDATE outbox SET told_at = %s WHERE id = ANY(%s)", (now, [row["id"] for row in rows]))
    return len(rows)


def delete_told(connection: Connection, before: datetime, limit: int) -> int:
    """Delete the oldest events that were told before (or that nobody had to be told); at most so many, how many.

    One that says that a run was missed stays: it is what keeps it from being told again. Only the oldest `limit` rows
    are looked at, as ids rise with time: a table of a million young ones is not read.
    """
    result = connection.execute(
        "DELETE FROM outbox o USING (SELECT tenant_id, id FROM outbox WHERE kind <> %s ORDER BY id LIMIT %s) oldest"
        " WHERE o.tenant_id = oldest.tenant_id AND o.id = oldest.id AND o.told_at < %s",
        (RUN_MISSED, limit, before),
    )
    return result.rowcount
