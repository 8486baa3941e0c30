"""Answers of writes, kept under the key that the caller gave them: the same request again gets the same answer.

The row lives in the transaction of the change itself, so it is there if and only if the change is. A second request
with the same key waits for the first one's transaction (its unique index does that), then reads the answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from psycopg.types.json import Jsonb

from billing.errors import Conflict, InvalidInput
from storage.sql.database import Connection

KEPT_FOR = timedelta(days=7)
KEY_LENGTH_MAX = 255


@dataclass(frozen=True)
class StoredAnswer:
    status: int
    body: bytes
    headers: Mapping[str, str]


def request_hash(method: str, path: str, body: bytes) -> bytes:
    """What makes two requests the same: method, path with query, body."""
    return hashlib.sha256(b"\0".join([method.encode(), path.encode(), body])).digest()


def begin(connection: Connection, owner: str, key: str, request: bytes, now: datetime) -> StoredAnswer | None:
    """Take the key, or return the answer that it has. Conflict if it was used for another request."""
    _check(key)
    taken = connection.execute(
        "INSERT INTO idempotency_keys (owner, key, request_hash, created_at) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (owner, key) DO NOTHING RETURNING key",
        (UUID(owner), key, request, now),
    ).fetchone()
    if taken is not None:
        return None
    stored = answered(connection, owner, key, request)
    if stored is None:
        raise Conflict("this Idempotency-Key is just being removed by age; use a new one")
    return stored


def answered(connection: Connection, owner: str, key: str, request: bytes) -> StoredAnswer | None:
    """The answer that the key has, without taking it; None if it is free. Conflict if it was used for another
    request."""
    _check(key)
    row = connection.execute(
        "SELECT request_hash, status, body, headers FROM idempotency_keys WHERE owner = %s AND key = %s",
        (UUID(owner), key),
    ).fetchone()
    if row is None:
        return None
    if bytes(row["request_hash"]) != request:
        raise Conflict("this Idempotency-Key was used for another request; use a new one", key=key)
    assert row["status"] is not None, "a committed key has its answer"
    return StoredAnswer(int(row["status"]), bytes(row["body"]), row["headers"] or {})


def _check(key: str) -> None:
    if not 1 <= len(key) <= KEY_LENGTH_MAX or not key.isprintable():
        raise InvalidInput(f"Idempotency-Key has 1 to {KEY_LENGTH_MAX} printable characters")


def finish(connection: Connection, owner: str, key: str, answer: StoredAnswer) -> None:
    """Keep the answer; in the same transaction as `begin` and the change."""
    connection.execute(
        "UPDATE idempotency_keys SET status = %s, body = %s, headers = %s WHERE owner = %s AND key = %s",
        (answer.status, answer.body, Jsonb(dict(answer.headers)), UUID(owner), key),
    )


def forget_old(connection: Connection, now: datetime, limit: int = 10_000) -> int:
    """Remove keys past their time (system role), a bounded number at a time."""
    return connection.execute(
        "DELETE FROM idempotency_keys WHERE (owner, key) IN"
        " (SELECT owner, key FROM idempotency_keys WHERE created_at < %s ORDER BY created_at LIMIT %s)",
        (now - KEPT_FOR, limit),
    ).rowcount
