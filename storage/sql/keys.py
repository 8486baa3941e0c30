"""API keys: made once, shown once, stored as a hash, bound to a tenant and to scopes.

A key is 256 random bits. One round of SHA-256 is right for it: slow hashes protect what people choose and others can
guess; nobody can try 2^256 values, and a fast hash lets each request be checked. What a scope allows is
`deployments/access.py`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from billing.errors import NotFound
from storage.sql.database import Connection
from storage.sql.tenants import new_id

START_LENGTH = 12


@dataclass(frozen=True)
class NewKey:
    """A key at the only moment at which its text is known."""

    id: str
    key: str
    start: str


@dataclass(frozen=True)
class Key:
    """A key that was found and is valid now, with what its tenant's requests need to know."""

    id: str
    start: str
    tenant_id: str | None  # None: a platform key
    tenant_code: str | None
    tenant_name: str | None
    tenant_kind: str | None
    timezone: str
    currency: str | None
    scopes: frozenset[str]
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    closed: bool = False  # its tenant: what is there may be read


def hash_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def create(
    connection: Connection,
    *,
    tenant_id: str | None,
    name: str,
    scopes: Iterable[str],
    actor: str,
    now: datetime,
    expires_at: datetime | None = None,
    key: str | None = None,
    limits: Mapping[str, int] | None = None,
) -> NewKey:
    """Store a new key. `key` is given only by the installer, who has already written it to a file."""
    text = key or f"cb_{secrets.token_urlsafe(32)}"
    assert len(text) >= 43, "a key has 256 random bits"
    made = NewKey(new_id(), text, text[:START_LENGTH])
    connection.execute(
        "INSERT INTO api_keys (id, tenant_id, name, start, hash, scopes, created_at, created_by, expires_at, limits)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            UUID(made.id),
            UUID(tenant_id) if tenant_id else None,
            name,
            made.start,
            hash_of(text),
            sorted(set(scopes)),
            now,
            actor,
            expires_at,
            Jsonb(dict(limits or {})),
        ),
    )
    return made


def find(connection: Connection, key: str, now: datetime) -> Key | None:
    """The valid key of that text (system role), or None."""
    row = connection.execute(
        "SELECT k.id, k.start, k.tenant_id, k.scopes, k.limits, t.code, t.name, t.kind, t.timezone, t.currency,"
        " t.closed_at IS NOT NULL AS closed"
        " FROM api_keys k LEFT JOIN tenants t ON t.id = k.tenant_id"
        " WHERE k.hash = %s AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > %s)",
        (hash_of(key), now),
    ).fetchone()
    if row is None:
        return None
    return Key(
        id=str(row["id"]),
        start=row["start"],
        tenant_id=str(row["tenant_id"]) if row["tenant_id"] else None,
        tenant_code=row["code"],
        tenant_name=row["name"],
        tenant_kind=row["kind"],
        timezone=row["timezone"] or "UTC",
        currency=row["currency"],
        scopes=frozenset(row["scopes"]),
        limits=row["limits"],
        closed=row["closed"],
    )


def page(connection: Connection, *, after: str | None, limit: int) -> list[dict[str, Any]]:
    """Keys of the transaction's tenant in the order made; never their text or hash."""
    rows = connection.execute(
        "SELECT id, name, start, scopes, created_at, created_by, expires_at, revoked_at, limits FROM api_keys"
        " WHERE %s::uuid IS NULL OR id > %s::uuid ORDER BY id LIMIT %s",
        (after, after, limit),
    ).fetchall()
    return [dict(row) for row in rows]


def set_limits(connection: Connection, key_id: str, limits: Mapping[str, int]) -> dict[str, Any]:
    """New limits of a key; the key as `page` shows it. NotFound if the tenant has none of that id."""
    row = connection.execute(
        "UPDATE api_keys SET limits = %s WHERE id = %s RETURNING id, name, start, scopes, created_at, created_by,"
        " expires_at, revoked_at, limits",
        (Jsonb(dict(limits)), UUID(key_id)),
    ).fetchone()
    if row is None:
        raise NotFound("there is no such key")
    return dict(row)


def revoke(connection: Connection, key_id: str, now: datetime) -> None:
    """End a key; again is harmless. NotFound if the tenant has none of that id."""
    row = connection.execute(
        "UPDATE api_keys SET revoked_at = coalesce(revoked_at, %s) WHERE id = %s RETURNING id", (now, UUID(key_id))
    ).fetchone()
    if row is None:
        raise NotFound("there is no such key")


def end_platform_keys(connection: Connection, name: str, now: datetime) -> int:
    """End all platform keys of a name (system role); how many were valid until now."""
    result = connection.execute(
        "UPDATE api_keys SET revoked_at = %s WHERE tenant_id IS NULL AND name = %s AND revoked_at IS NULL", (now, name)
    )
    return result.rowcount
