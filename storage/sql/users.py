"""People who sign in: argon2id passwords, sessions, and in which tenants they have which role.

A wrong password is counted; from the fifth on the account pauses, longer each time, so that guessing takes years.
Sessions are random tokens stored as hashes. What a role may do is `deployments/access.py`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from billing.errors import Conflict, FieldError, InvalidInput, NotAuthenticated, NotFound, Overloaded
from storage.sql.database import Connection, Database
from storage.sql.keys import hash_of
from storage.sql.tenants import new_id

PASSWORD_LENGTH_MIN, PASSWORD_LENGTH_MAX = 10, 1_000
SESSION_LASTS = timedelta(hours=12)
FAILURES_FREE = 5
PAUSE_MAX_S = 900
_WRONG = "email or password is not right"

# OWASP's first choice for argon2id: 19 MiB, two passes. About 30 ms here.
_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
# Compared against when there is no such user, so that the answer takes as long and tells nothing.
_NOBODY = _hasher.hash(secrets.token_urlsafe(32))


@dataclass(frozen=True)
class SignedIn:
    """A person in a tenant."""

    user_id: str
    email: str
    name: str
    role: str
    tenant_id: str
    tenant_code: str
    tenant_name: str
    tenant_kind: str
    timezone: str
    currency: str
    generated: bool
    closed: bool = False  # the tenant: what is there may be read


def create(
    connection: Connection,
    *,
    tenant_id: str,
    email: str,
    name: str,
    password: str,
    role: str,
    now: datetime,
    may_join: bool = False,
) -> str:
    """Make a user in a tenant (system role); the user's id.

    An email that is known already joins the tenant only if `may_join` (the platform's operator says so) and the
    password is the user's: otherwise whoever made the user in another tenant, with a password of their own choice,
    could sign in to this one.
    """
    address = email.strip().lower()
    _check(address, password)
    row = connection.execute("SELECT id, password_hash FROM users WHERE email = %s", (address,)).fetchone()
    if row is None:
        user_id = UUID(new_id())
        connection.execute(
            "INSERT INTO users (id, email, name, password_hash, created_at) VALUES (%s, %s, %s, %s, %s)",
            (user_id, address, name, _hasher.hash(password), now),
        )
    elif may_join:
        if not _right(row["password_hash"], password):
            raise Conflict("there is a user of this email with another password: send theirs to let them join")
        user_id = row["id"]
    else:
        raise Conflict("this email cannot be added here; ask the operator of the platform")
    connection.execute(
        "INSERT INTO memberships (tenant_id, user_id, role, created_at) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (tenant_id, user_id) DO NOTHING",
        (UUID(tenant_id), user_id, role, now),
    )
    return str(user_id)


def sign_in(
    database: Database, email: str, password: str, now: datetime, *, tenant_code: str | None = None
) -> tuple[str, SignedIn]:
    """Check the password and open a session: (token, who).

    Takes the database, not a connection: a failure must be counted, and an exception would roll its count back.
    NotAuthenticated if email or password is wrong, Overloaded with `retry_after` while the account pauses.
    """
    address = email.strip().lower()[:320]
    with database.system() as connection:
        # The row is locked: guesses in parallel are counted one by one.
        row = connection.execute(
            "SELECT id, password_hash, failures, paused_until, disabled_at FROM users WHERE email = %s FOR UPDATE",
            (address,),
        ).fetchone()
        if row is not None and row["paused_until"] is not None and row["paused_until"] > now:
            wait = int((row["paused_until"] - now).total_seconds()) + 1
            raise Overloaded("too many wrong passwords for this account; wait a little", retry_after=wait)
        right = _right(row["password_hash"] if row else _NOBODY, password) and row is not None
        right = right and row is not None and row["disabled_at"] is None
        if row is not None and not right:
            failures = int(row["failures"]) + 1
            pause = min(2 ** (failures - FAILURES_FREE), PAUSE_MAX_S) if failures >= FAILURES_FREE else 0
            connection.execute(
                "UPDATE users SET failures = %s, paused_until = %s WHERE id = %s",
                (failures, now + timedelta(seconds=pause) if pause else None, row["id"]),
            )
    if not right or row is None:
        raise NotAuthenticated(_WRONG)
    with database.system() as connection:
        if int(row["failures"]):
            connection.execute("UPDATE users SET failures = 0, paused_until = NULL WHERE id = %s", (row["id"],))
        if _hasher.check_needs_rehash(row["password_hash"]):
            connection.execute("UPDATE users SET password_hash = %s WHERE id = %s", (_hasher.hash(password), row["id"]))
        home = connection.execute(
            "SELECT m.tenant_id FROM memberships m JOIN tenants t ON t.id = m.tenant_id"
            " WHERE m.user_id = %s AND (%s::text IS NULL OR t.code = %s) ORDER BY m.created_at, t.code LIMIT 1",
            (row["id"], tenant_code, tenant_code),
        ).fetchone()
        if home is None:
            raise NotAuthenticated(_WRONG)
        token = secrets.token_urlsafe(32)
        connection.execute("DELETE FROM sessions WHERE user_id = %s AND expires_at <= %s", (row["id"], now))
        connection.execute(
            "INSERT INTO sessions (token_hash, user_id, tenant_id, created_at, expires_at) VALUES (%s, %s, %s, %s, %s)",
            (hash_of(token), row["id"], home["tenant_id"], now, now + SESSION_LASTS),
        )
        who = session(connection, token, now)
    assert who is not None
    return token, who


def session(connection: Connection, token: str, now: datetime) -> SignedIn | None:
    """Who holds this token now (system role), or None."""
    row = connection.execute(
        "SELECT u.id AS user_id, u.email, u.name, m.role, t.id AS tenant_id, t.code AS tenant_code,"
        " t.name AS tenant_name, t.kind AS tenant_kind, t.timezone, t.currency, t.generated,"
        " t.closed_at IS NOT NULL AS closed"
        " FROM sessions s JOIN users u ON u.id = s.user_id JOIN tenants t ON t.id = s.tenant_id"
        " JOIN memberships m ON m.user_id = s.user_id AND m.tenant_id = s.tenant_id"
        " WHERE s.token_hash = %s AND s.expires_at > %s AND u.disabled_at IS NULL",
        (hash_of(token), now),
    ).fetchone()
    if row is None:
        return None
    return SignedIn(**{**row, "user_id": str(row["user_id"]), "tenant_id": str(row["tenant_id"])})


def sign_out(connection: Connection, token: str) -> None:
    connection.execute("DELETE FROM sessions WHERE token_hash = %s", (hash_of(token),))


def tenants_of(connection: Connection, user_id: str) -> list[dict[str, Any]]:
    """The tenants that a user may enter: code, name, kind, generated, role (system role)."""
    rows = connection.execute(
        "SELECT t.code, t.name, t.kind, t.generated, m.role FROM memberships m JOIN tenants t ON t.id = m.tenant_id"
        " WHERE m.user_id = %s ORDER BY t.name, t.code LIMIT 1000",
        (UUID(user_id),),
    ).fetchall()
    return [dict(row) for row in rows]


def enter_tenant(connection: Connection, token: str, tenant_code: str, now: datetime) -> SignedIn:
    """Move a session to another tenant of the same user (system role). NotFound if the user is not in it."""
    row = connection.execute(
        "UPDATE sessions s SET tenant_id = t.id FROM tenants t JOIN memberships m ON m.tenant_id = t.id"
        " WHERE s.token_hash = %s AND s.expires_at > %s AND t.code = %s AND m.user_id = s.user_id RETURNING t.id",
        (hash_of(token), now, tenant_code),
    ).fetchone()
    who = session(connection, token, now) if row else None
    if who is None:
        raise NotFound(f"you have no tenant {tenant_code!r}")
    return who


def page(connection: Connection, *, after: str | None, limit: int) -> list[dict[str, Any]]:
    """Users of the transaction's tenant in the order made."""
    rows = connection.execute(
        "SELECT u.id, u.email, u.name, m.role, u.created_at FROM users u JOIN memberships m ON m.user_id = u.id"
        " WHERE %s::uuid IS NULL OR u.id > %s::uuid ORDER BY u.id LIMIT %s",
        (after, after, limit),
    ).fetchall()
    return [dict(row) for row in rows]


def remove(connection: Connection, user_id: str) -> None:
    """Take a user out of the transaction's tenant, with the sessions there."""
    connection.execute("DELETE FROM sessions WHERE user_id = %s", (UUID(user_id),))
    row = connection.execute("DELETE FROM memberships WHERE user_id = %s RETURNING role", (UUID(user_id),)).fetchone()
    if row is None:
        raise NotFound("there is no such user")


def _right(stored: str, password: str) -> bool:
    if len(password) > PASSWORD_LENGTH_MAX:
        return False
    try:
        return _hasher.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False


def _check(address: str, password: str) -> None:
    errors: list[FieldError] = []
    if not 3 <= len(address) <= 320 or "@" not in address[1:-1] or not address.isprintable() or " " in address:
        errors.append(FieldError("/email", "is no email address"))
    if not PASSWORD_LENGTH_MIN <= len(password) <= PASSWORD_LENGTH_MAX:
        errors.append(FieldError("/password", f"needs {PASSWORD_LENGTH_MIN} to {PASSWORD_LENGTH_MAX} characters"))
    if errors:
        raise InvalidInput("; ".join(f"{error.pointer} {error.detail}" for error in errors), errors=errors)
