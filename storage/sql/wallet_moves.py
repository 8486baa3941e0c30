"""Moves of wallet credit on their way to the lanes: written with the documents that cause them, done when told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from storage.sql.database import Connection


@dataclass(frozen=True)
class WalletMove:
    """`kind`: settle, free (of one customer), free_run (of all that the run has), restore. `id` is 0 until stored."""

    kind: str
    customer: str
    subject: str
    body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    id: int = 0


def add(connection: Connection, tenant_id: str, moves: Sequence[WalletMove], now: datetime) -> None:
    """In the transaction of what causes them."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO wallet_moves (tenant_id, made_at, kind, customer, subject, body)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            [(UUID(tenant_id), now, move.kind, move.customer, move.subject, Jsonb(dict(move.body))) for move in moves],
        )


def waiting(connection: Connection, limit: int) -> list[WalletMove]:
    """Moves that were not brought to the lanes yet, in order."""
    rows = connection.execute(
        "SELECT id, kind, customer, subject, body FROM wallet_moves WHERE done_at IS NULL ORDER BY id LIMIT %s",
        (limit,),
    ).fetchall()
    return [WalletMove(row["kind"], row["customer"], row["subject"], row["body"], row["id"]) for row in rows]


def done(connection: Connection, ids: Sequence[int], now: datetime) -> None:
    connection.execute("UPDATE wallet_moves SET done_at = %s WHERE id = ANY(%s) AND done_at IS NULL", (now, list(ids)))


def refuse(connection: Connection, id: int, why: str, now: datetime) -> None:
    """A lane would not make it: what it said."""
    connection.execute("UPDATE wallet_moves SET refused = %s, refused_at = %s WHERE id = %s", (why, now, id))


def page(connection: Connection, *, after: int | None, limit: int) -> list[dict[str, Any]]:
    """Moves that wait, in order, with what a lane said to them."""
    rows = connection.execute(
        "SELECT id, made_at, kind, customer, subject, refused, refused_at FROM wallet_moves"
        " WHERE done_at IS NULL AND (%s::bigint IS NULL OR id > %s::bigint) ORDER BY id LIMIT %s",
        (after, after, limit),
    ).fetchall()
    return [dict(row) for row in rows]


def tenants_waiting(connection: Connection) -> list[str]:
    """Tenants with moves that wait (system role)."""
    rows = connection.execute("SELECT DISTINCT tenant_id FROM wallet_moves WHERE done_at IS NULL").fetchall()
    return [str(row["tenant_id"]) for row in rows]
