"""Erasures of customers in SQL: the wish, how far it is, what is left to be kept, and the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from billing.erasing import Marks
from billing.errors import Conflict, NotFound
from storage.sql.database import Connection
from storage.sql.tenants import new_id

ENDED = ("done", "failed")
_WORKING = ("asked", "tables", "objects", "usage")  # `documents` waits for days
HELD_FOR = timedelta(minutes=10)  # a step that nobody has finished by then is begun again by the next
_SHOWN = "id, rule, state, stands_for, asked_at, asked_by, next_at, progress, documents, error, done_at"


def ask(
    connection: Connection, tenant_id: str, marks: Marks, rule: str, *, actor: str, now: datetime
) -> dict[str, Any]:
    id = new_id()
    try:
        connection.execute(
            "INSERT INTO erasures (tenant_id, id, rule, state, stands_for, marks, asked_at, asked_by, next_at)"
            " VALUES (%s, %s, %s, 'asked', %s, %s, %s, %s, %s)",
            (UUID(tenant_id), UUID(id), rule, marks.stands_for, Jsonb(marks.to_form()), now, actor, now),
        )
    except psycopg.errors.UniqueViolation as error:
        raise Conflict("this erasure is under way already") from error
    return get(connection, id)


def under_way(connection: Connection, customer: str) -> dict[str, Any] | None:
    """The erasure of a customer that has not ended yet."""
    row = connection.execute(
        f"SELECT {_SHOWN} FROM erasures WHERE marks->>'customer' = %s AND state <> ALL(%s)",  # noqa: S608 - ours
        (customer, list(ENDED)),
    ).fetchone()
    return None if row is None else dict(row)


def take_up(connection: Connection, customer: str, now: datetime) -> dict[str, Any] | None:
    """Begin a failed erasure of a customer again, with the same marks: what it wrote has their pseudonyms. None without
    one."""
    row = connection.execute(
        "UPDATE erasures SET state = 'asked', next_at = %s, error = NULL"  # noqa: S608 - ours
        f" WHERE marks->>'customer' = %s AND state = 'failed' RETURNING {_SHOWN}",
        (now, customer),
    ).fetchone()
    return None if row is None else dict(row)


def has_failed(connection: Connection, customer: str) -> bool:
    row = connection.execute(
        "SELECT 1 FROM erasures WHERE marks->>'customer' = %s AND state = 'failed'", (customer,)
    ).fetchone()
    return row is not None


def held(connection: Connection, now: datetime) -> list[tuple[str, str]]:
    """(tenant, erasure) of those whose step somebody took, or that wait for a while (system role)."""
    rows = connection.execute(
        "SELECT tenant_id, id FROM erasures WHERE state = ANY(%s) AND next_at > %s", (list(_WORKING), now)
    ).fetchall()
    return [(str(row["tenant_id"]), str(row["id"])) for row in rows]


def release(connection: Connection, id: str, now: datetime) -> None:
    """Let the step that somebody took be begun again now."""
    connection.execute(
        "UPDATE erasures SET next_at = %s WHERE id = %s AND state = ANY(%s)", (now, UUID(id), list(_WORKING))
    )


def get(connection: Connection, id: str) -> dict[str, Any]:
    """Without its marks. NotFound if the tenant has none of that id."""
    row = connection.execute(f"SELECT {_SHOWN} FROM erasures WHERE id = %s", (UUID(id),)).fetchone()  # noqa: S608 - ours
    if row is None:
        raise NotFound("there is no such erasure")
    return dict(row)


def page(connection: Connection, *, after: str | None, limit: int) -> list[dict[str, Any]]:
    """The newest first; `after` is the id of the last one seen."""
    rows = connection.execute(
        f"SELECT {_SHOWN} FROM erasures WHERE %(after)s::uuid IS NULL OR id < %(after)s"  # noqa: S608 - ours
        " ORDER BY id DESC LIMIT %(limit)s",
        {"after": after and UUID(after), "limit": limit},
    ).fetchall()
    return [dict(row) for row in rows]


def due(connection: Connection, now: datetime) -> list[tuple[str, str]]:
    """(tenant, erasure) of those with a step to do (system role)."""
    rows = connection.execute(
        "SELECT tenant_id, id FROM erasures WHERE state NOT IN ('done', 'failed') AND next_at <= %s ORDER BY next_at",
        (now,),
    ).fetchall()
    return [(str(row["tenant_id"]), str(row["id"])) for row in rows]


def claim(connection: Connection, id: str, now: datetime) -> tuple[dict[str, Any], Marks | None] | None:
    """Take a step that is due: nobody else does until `HELD_FOR` is over. None if somebody has it, or it has ended."""
    row = connection.execute(
        "SELECT * FROM erasures WHERE id = %s AND state <> ALL(%s) AND next_at <= %s FOR UPDATE SKIP LOCKED",
        (UUID(id), list(ENDED), now),
    ).fetchone()
    if row is None:
        return None
    connection.execute("UPDATE erasures SET next_at = %s WHERE id = %s", (now + HELD_FOR, UUID(id)))
    return dict(row), None if row["marks"] is None else Marks.of_form(row["marks"])


def widen(connection: Connection, id: str, marks: Marks) -> None:
    """Look for more from now on."""
    connection.execute("UPDATE erasures SET marks = %s WHERE id = %s", (Jsonb(marks.to_form()), UUID(id)))


def note(
    connection: Connection,
    id: str,
    *,
    state: str,
    next_at: datetime,
    progress: Mapping[str, Any],
    documents: Sequence[Mapping[str, Any]] | None = None,
    error: str | None = None,
    forget_marks: bool = False,
    done_at: datetime | None = None,
) -> None:
    """What a step did. `progress` is added to what is there."""
    connection.execute(
        "UPDATE erasures SET state = %(state)s, next_at = %(next_at)s, progress = progress || %(progress)s,"
        " documents = coalesce(%(documents)s, documents), error = %(error)s, done_at = %(done_at)s,"
        " marks = CASE WHEN %(forget)s THEN NULL ELSE marks END WHERE id = %(id)s",
        {
            "id": UUID(id),
            "state": state,
            "next_at": next_at,
            "progress": Jsonb(dict(progress)),
            "documents": None if documents is None else Jsonb([dict(one) for one in documents]),
            "error": error,
            "forget": forget_marks,
            "done_at": done_at,
        },
    )
