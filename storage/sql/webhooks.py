"""Webhooks in SQL: endpoints, messages and their deliveries, and who has acknowledged which alert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from billing.errors import Conflict, NotFound
from storage.sql.database import Connection
from storage.sql.tenants import new_id

ENDPOINTS_MAX = 20  # of a tenant
CLOCKS_DIFFER = timedelta(seconds=5)
_SHOWN = "id, url, description, event_types, created_at, created_by, disabled_at, disabled_because, old_secret_until"


@dataclass(frozen=True)
class Due:
    """A delivery that somebody has claimed, with all that it needs."""

    id: int
    message_id: str
    endpoint_id: str
    url: str
    secrets: tuple[str, ...]
    body: bytes
    tries: int  # before this one
    since: datetime  # when it was due; who does not come to try it gives it back


@dataclass(frozen=True)
class Message:
    """What is told, under an id that follows from what it tells."""

    id: str
    event_type: str
    body: bytes
    happened_at: datetime


# --- endpoints


def add_endpoint(
    connection: Connection,
    tenant_id: str,
    *,
    url: str,
    description: str,
    event_types: Sequence[str],
    secret: str,
    actor: str,
    now: datetime,
) -> dict[str, Any]:
    row = connection.execute("SELECT count(*) AS count FROM webhook_endpoints WHERE deleted_at IS NULL").fetchone()
    assert row is not None
    if row["count"] >= ENDPOINTS_MAX:
        raise Conflict(f"a tenant has at most {ENDPOINTS_MAX} webhook endpoints")
    id = new_id()
    connection.execute(
        "INSERT INTO webhook_endpoints (tenant_id, id, url, description, event_types, secret, created_at, created_by)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        (UUID(tenant_id), UUID(id), url, description, list(event_types), secret, now, actor),
    )
    return endpoint(connection, id)


def endpoint(connection: Connection, id: str) -> dict[str, Any]:
    """Without its secrets. NotFound if the tenant has none of that id."""
    row = connection.execute(
        f"SELECT {_SHOWN} FROM webhook_endpoints WHERE id = %s AND deleted_at IS NULL",  # noqa: S608 - our own columns
        (UUID(id),),
    ).fetchone()
    if row is None:
        raise NotFound("there is no such webhook endpoint")
    return dict(row)


def endpoints(connection: Connection) -> list[dict[str, Any]]:
    rows = connection.execute(
        f"SELECT {_SHOWN} FROM webhook_endpoints WHERE deleted_at IS NULL ORDER BY id"  # noqa: S608 - our own columns
    ).fetchall()
    return [dict(row) for row in rows]


def change_endpoint(connection: Connection, id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """`url`, `description`, `event_types`, `disabled_at`, `disabled_because`, `deleted_at`."""
    endpoint(connection, id)
    for column, value in changes.items():
        assert column in ("url", "description", "event_types", "disabled_at", "disabled_because", "deleted_at"), column
        connection.execute(
            f"UPDATE webhook_endpoints SET {column} = %s WHERE id = %s",  # noqa: S608 - checked against the list above
            (value, UUID(id)),
        )
    if changes.get("deleted_at") is not None:
        connection.execute(
            "UPDATE webhook_deliveries SET state = 'dead', done_at = %s, last_error = 'the endpoint was deleted'"
            " WHERE endpoint_id = %s AND state = 'waiting'",
            (changes["deleted_at"], UUID(id)),
        )
        return {}
    return endpoint(connection, id)


def replace_secret(connection: Connection, id: str, secret: str, old_until: datetime) -> dict[str, Any]:
    """A new secret; what is sent until then is signed with the old one, too."""
    endpoint(connection, id)
    connection.execute(
        "UPDATE webhook_endpoints SET old_secret = secret, old_secret_until = %s, secret = %s WHERE id = %s",
        (old_until, secret, UUID(id)),
    )
    return endpoint(connection, id)


def tenants_with_endpoints(connection: Connection) -> list[str]:
    """System role."""
    rows = connection.execute(
        "SELECT DISTINCT tenant_id FROM webhook_endpoints WHERE deleted_at IS NULL AND disabled_at IS NULL"
    ).fetchall()
    return [str(row["tenant_id"]) for row in rows]


def tenants_due(connection: Connection, now: datetime) -> list[str]:
    """Tenants with deliveries that are due (system role)."""
    rows = connection.execute(
        "SELECT DISTINCT tenant_id FROM webhook_deliveries WHERE state = 'waiting' AND next_at <= %s", (now,)
    ).fetchall()
    return [str(row["tenant_id"]) for row in rows]


# --- messages


def known_messages(connection: Connection, ids: Sequence[str]) -> set[str]:
    rows = connection.execute("SELECT id FROM webhook_messages WHERE id = ANY(%s)", (list(ids),)).fetchall()
    return {row["id"] for row in rows}


def add_message(
    connection: Connection,
    tenant_id: str,
    *,
    id: str,
    event_type: str,
    body: bytes,
    happened_at: datetime,
    now: datetime,
    endpoint_id: str | None = None,
) -> int:
    """A message and a delivery to each endpoint that wants it (or to one that is named). Again: nothing; how many.

    Endpoints hear of what happened after they were made; clocks of machines may differ by `CLOCKS_DIFFER`.
    """
    made = connection.execute(
        "INSERT INTO webhook_messages (tenant_id, id, event_type, made_at, body) VALUES (%s, %s, %s, %s, %s)"
        " ON CONFLICT DO NOTHING RETURNING id",
        (UUID(tenant_id), id, event_type, now, body),
    ).fetchone()
    if made is None:
        return 0
    result = connection.execute(
        "INSERT INTO webhook_deliveries (tenant_id, message_id, endpoint_id, state, next_at)"
        " SELECT tenant_id, %s, id, 'waiting', %s FROM webhook_endpoints"
        " WHERE deleted_at IS NULL AND disabled_at IS NULL AND created_at <= %s"
        " AND (id = %s OR (%s::uuid IS NULL AND %s = ANY(event_types)))",
        (id, now, happened_at + CLOCKS_DIFFER, endpoint_id, endpoint_id, event_type),
    )
    return result.rowcount


def add_messages(connection: Connection, tenant_id: str, messages: Sequence[Message], now: datetime) -> int:
    """Many messages and their deliveries at once, in this order, to the endpoints that want them; how many deliveries.

    A message that no endpoint wants is not kept, one that is there already stays as it is.
    """
    listening = (
        " e.deleted_at IS NULL AND e.disabled_at IS NULL AND e.created_at <= m.happened_at + %(differ)s"
        " AND m.event_type = ANY(e.event_types)"
    )
    given = {
        "tenant": UUID(tenant_id),
        "ids": [message.id for message in messages],
        "types": [message.event_type for message in messages],
        "times": [message.happened_at for message in messages],
        "bodies": [message.body for message in messages],
        "differ": CLOCKS_DIFFER,
        "now": now,
    }
    made = connection.execute(
        "INSERT INTO webhook_messages (tenant_id, id, event_type, made_at, body)"  # noqa: S608 - our own text
        " SELECT %(tenant)s, m.id, m.event_type, %(now)s, m.body"
        " FROM unnest(%(ids)s::text[], %(types)s::text[], %(times)s::timestamptz[], %(bodies)s::bytea[])"
        "   AS m (id, event_type, happened_at, body)"
        f" WHERE EXISTS (SELECT 1 FROM webhook_endpoints e WHERE {listening})"
        " ON CONFLICT DO NOTHING RETURNING id",
        given,
    ).fetchall()
    result = connection.execute(
        "INSERT INTO webhook_deliveries (tenant_id, message_id, endpoint_id, state, next_at)"  # noqa: S608 - our own text
        " SELECT %(tenant)s, m.id, e.id, 'waiting', %(now)s"
        " FROM unnest(%(ids)s::text[], %(types)s::text[], %(times)s::timestamptz[])"
        "   WITH ORDINALITY AS m (id, event_type, happened_at, place)"
        f" JOIN webhook_endpoints e ON {listening}"
        " WHERE m.id = ANY(%(made)s::text[]) ORDER BY m.place, e.id",
        {**given, "made": [row["id"] for row in made]},
    )
    return result.rowcount


# --- deliveries


def claim(
    connection: Connection, now: datetime, held_for: timedelta, each: int, resting: Sequence[str] = ()
) -> list[Due]:
    """Take due deliveries in the order in which they are, at most `each` of every endpoint but the `resting` ones;
    nobody else gets them until `held_for` is over. What waits for one endpoint is never in the way of another's."""
    rows = connection.execute(
        "WITH due AS (SELECT d.* FROM webhook_endpoints e CROSS JOIN LATERAL"
        "   (SELECT tenant_id, id, next_at FROM webhook_deliveries w WHERE w.tenant_id = e.tenant_id"
        "     AND w.endpoint_id = e.id AND w.state = 'waiting' AND w.next_at <= %(now)s"
        "     ORDER BY w.next_at, w.id LIMIT %(each)s FOR UPDATE SKIP LOCKED) d"
        "   WHERE e.deleted_at IS NULL AND NOT e.id = ANY(%(resting)s::uuid[]))"
        " UPDATE webhook_deliveries w SET next_at = %(until)s FROM due t, webhook_messages m, webhook_endpoints e"
        " WHERE w.tenant_id = t.tenant_id AND w.id = t.id AND m.tenant_id = w.tenant_id AND m.id = w.message_id"
        "   AND e.tenant_id = w.tenant_id AND e.id = w.endpoint_id"
        " RETURNING w.id, w.message_id, w.endpoint_id, w.tries, m.body, e.url, e.secret, t.next_at AS since,"
        "   CASE WHEN e.old_secret_until > %(now)s THEN e.old_secret END AS old_secret",
        {"now": now, "until": now + held_for, "each": each, "resting": [UUID(one) for one in resting]},
    ).fetchall()
    due = [
        Due(
            row["id"],
            row["message_id"],
            str(row["endpoint_id"]),
            row["url"],
            tuple(one for one in (row["secret"], row["old_secret"]) if one is not None),
            bytes(row["body"]),
            row["tries"],
            row["since"],
        )
        for row in rows
    ]
    return sorted(due, key=lambda one: (one.since, one.id))


def give_back(connection: Connection, due: Sequence[Due]) -> None:
    """Claimed deliveries that nobody has tried are due again, in their old place."""
    connection.execute(
        "UPDATE webhook_deliveries w SET next_at = t.since FROM unnest(%s::bigint[], %s::timestamptz[])"
        " AS t (id, since) WHERE w.id = t.id AND w.state = 'waiting'",
        ([one.id for one in due], [one.since for one in due]),
    )


def delivered(connection: Connection, id: int, status: int, now: datetime) -> None:
    connection.execute(
        "UPDATE webhook_deliveries SET state = 'delivered', tries = tries + 1, last_at = %s, last_status = %s,"
        " last_error = NULL, done_at = %s WHERE id = %s AND state = 'waiting'",
        (now, status, now, id),
    )


def failed(
    connection: Connection, id: int, status: int | None, error: str, now: datetime, next_at: datetime | None
) -> None:
    """A try that failed; without `next_at` it was the last one, and the delivery is dead."""
    connection.execute(
        "UPDATE webhook_deliveries SET state = CASE WHEN %s::timestamptz IS NULL THEN 'dead' ELSE 'waiting' END,"
        " tries = tries + 1, last_at = %s, last_status = %s, last_error = %s, next_at = coalesce(%s, next_at),"
        " done_at = CASE WHEN %s::timestamptz IS NULL THEN %s::timestamptz END WHERE id = %s AND state = 'waiting'",
        (next_at, now, status, error, next_at, next_at, now, id),
    )


def give_up(connection: Connection, endpoint_ids: Sequence[str], before: datetime, now: datetime, limit: int) -> int:
    """Deliveries to these endpoints that wait since before and never had a try are dead; at most so many, how many."""
    result = connection.execute(
        "UPDATE webhook_deliveries SET state = 'dead', done_at = %(now)s,"
        " last_error = 'the endpoint could not be reached in all this time' WHERE id IN"
        " (SELECT id FROM webhook_deliveries WHERE endpoint_id = ANY(%(endpoints)s::uuid[]) AND state = 'waiting'"
        "  AND last_at IS NULL AND next_at < %(before)s ORDER BY next_at, id LIMIT %(limit)s)",
        {"endpoints": [UUID(one) for one in endpoint_ids], "before": before, "now": now, "limit": limit},
    )
    return result.rowcount


def replay(connection: Connection, ids: Sequence[int] | None, now: datetime, limit: int) -> int:
    """Dead deliveries (of these ids, or all) wait again, from their first try on; how many. Delivered ones stay."""
    result = connection.execute(
        "UPDATE webhook_deliveries SET state = 'waiting', tries = 0, next_at = %(now)s, done_at = NULL"
        " WHERE id IN (SELECT d.id FROM webhook_deliveries d JOIN webhook_endpoints e"
        "   ON e.tenant_id = d.tenant_id AND e.id = d.endpoint_id AND e.deleted_at IS NULL AND e.disabled_at IS NULL"
        "   WHERE d.state = 'dead' AND (%(ids)s::bigint[] IS NULL OR d.id = ANY(%(ids)s))"
        "   ORDER BY d.id LIMIT %(limit)s)",
        {"now": now, "ids": None if ids is None else list(ids), "limit": limit},
    )
    return result.rowcount


def page(
    connection: Connection, *, state: str | None, endpoint_id: str | None, after: int | None, limit: int
) -> list[dict[str, Any]]:
    """Deliveries, newest first; `after` is the id of the last one seen."""
    rows = connection.execute(
        "SELECT d.id, d.message_id, m.event_type, d.endpoint_id, e.url, d.state, d.tries, m.made_at, d.last_at,"
        " d.last_status, d.last_error, CASE WHEN d.state = 'waiting' THEN d.next_at END AS next_at"
        " FROM webhook_deliveries d JOIN webhook_messages m ON m.tenant_id = d.tenant_id AND m.id = d.message_id"
        " JOIN webhook_endpoints e ON e.tenant_id = d.tenant_id AND e.id = d.endpoint_id"
        " WHERE (%(state)s::text IS NULL OR d.state = %(state)s)"
        " AND (%(endpoint)s::uuid IS NULL OR d.endpoint_id = %(endpoint)s)"
        " AND (%(after)s::bigint IS NULL OR d.id < %(after)s) ORDER BY d.id DESC LIMIT %(limit)s",
        {"state": state, "endpoint": endpoint_id, "after": after, "limit": limit},
    ).fetchall()
    return [dict(row) for row in rows]


def counts(connection: Connection) -> dict[str, int]:
    """How many deliveries wait, are dead, were delivered."""
    rows = connection.execute("SELECT state, count(*) AS count FROM webhook_deliveries GROUP BY state").fetchall()
    return {"waiting": 0, "dead": 0, "delivered": 0, **{row["state"]: row["count"] for row in rows}}


# --- acknowledgements


def acknowledge(
    connection: Connection, tenant_id: str, alert_id: str, *, actor: str, note: str, now: datetime
) -> dict[str, Any]:
    """Somebody has seen an alert: the first one counts, again answers what was recorded."""
    connection.execute(
        "INSERT INTO alert_acknowledgements (tenant_id, alert_id, at, by, note) VALUES (%s, %s, %s, %s, %s)"
        " ON CONFLICT DO NOTHING",
        (UUID(tenant_id), alert_id, now, actor, note),
    )
    return acknowledged(connection, [alert_id])[alert_id]


def acknowledged(connection: Connection, alert_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By alert: who, when, and what they wrote."""
    rows = connection.execute(
        "SELECT alert_id, at, by, note FROM alert_acknowledgements WHERE alert_id = ANY(%s)", (list(alert_ids),)
    ).fetchall()
    return {row["alert_id"]: {"at": row["at"], "by": row["by"], "note": row["note"]} for row in rows}
