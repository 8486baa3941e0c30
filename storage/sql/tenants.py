"""Tenants and their legal entities: who runs the billing. What a tenant's settings mean is `billing/master.py`.

Functions take a connection: `system` where a tenant is made or looked up, `tenant` for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
import uuid_utils
from psycopg.types.json import Jsonb

from billing.errors import Conflict, NotFound
from storage.sql.database import APP_ROLE, Connection

DEFAULT_ENTITY = "main"


@dataclass(frozen=True)
class Tenant:
    """One tenant as it is stored; `form` is the master data's tenant form."""

    id: str
    code: str
    name: str
    kind: str
    currency: str
    timezone: str
    country: str | None
    generated: bool
    form: Mapping[str, Any]
    test_clock: datetime | None
    created_at: datetime


_COLUMNS = "id, code, name, kind, currency, timezone, country, generated, form, test_clock, created_at"


def new_id() -> str:
    """A UUIDv7: in the order of time, so that indexes grow at their end."""
    return str(uuid_utils.uuid7())


def create(
    connection: Connection,
    *,
    code: str,
    name: str,
    kind: str,
    form: Mapping[str, Any],
    generated: bool,
    now: datetime,
    test_clock: datetime | None = None,
) -> Tenant:
    """Make a tenant (system role). Conflict if the code is taken."""
    try:
        row = connection.execute(
            "INSERT INTO tenants (id, code, name, kind, currency, timezone, country, generated, form, test_clock,"
            " created_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING id, code, name, kind,"
            " currency, timezone, country, generated, form, test_clock, created_at",
            (
                new_id(),
                code,
                name,
                kind,
                form["currency"],
                form["timezone"],
                form.get("country"),
                generated,
                Jsonb(dict(form)),
                test_clock,
                now,
            ),
        ).fetchone()
    except psycopg.errors.UniqueViolation as error:
        raise Conflict(f"there is a tenant {code!r} already", code=code) from error
    assert row is not None
    return _tenant(row)


def by_id(connection: Connection, tenant_id: str) -> Tenant:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM tenants WHERE id = %s",  # noqa: S608 - a constant
        (UUID(tenant_id),),
    ).fetchone()
    if row is None:
        raise NotFound("there is no such tenant")
    return _tenant(row)


def by_code(connection: Connection, code: str) -> Tenant:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM tenants WHERE code = %s",  # noqa: S608 - a constant
        (code,),
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no tenant {code!r}")
    return _tenant(row)


def page(connection: Connection, *, after: str | None, limit: int) -> list[Tenant]:
    """Tenants by code, behind `after`."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM tenants WHERE code > %s ORDER BY code LIMIT %s",  # noqa: S608 - a constant
        (after or "", limit),
    ).fetchall()
    return [_tenant(row) for row in rows]


def advance_test_clock(connection: Connection, tenant_id: str, to: datetime) -> datetime:
    """Move a test tenant's clock forward (tenant role). Conflict for a live tenant or a step back."""
    row = connection.execute(
        "SELECT kind, test_clock FROM tenants WHERE id = %s FOR UPDATE", (UUID(tenant_id),)
    ).fetchone()
    if row is None:
        raise NotFound("there is no such tenant")
    if row["kind"] != "test":
        raise Conflict("only a test tenant has a clock that can be moved")
    if row["test_clock"] is not None and to < row["test_clock"]:
        raise Conflict(f"the clock stands at {row['test_clock'].isoformat()} and moves forward only")
    connection.execute("UPDATE tenants SET test_clock = %s WHERE id = %s", (to, UUID(tenant_id)))
    return to


def put_legal_entity(
    connection: Connection,
    tenant_id: str,
    code: str,
    form: Mapping[str, Any],
    *,
    country: str | None,
    now: datetime,
    expected_version: int | None = None,
    is_default: bool = False,
) -> int:
    """Create or change a legal entity (seller data, series, bank); the new version. PreconditionFailed is the caller's
    to raise: None comes back as Conflict when `expected_version` does not fit."""
    row = connection.execute(
        "INSERT INTO legal_entities (tenant_id, code, name, country, form, is_default, updated_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (tenant_id, code) DO UPDATE SET name = excluded.name, country = excluded.country,"
        " form = excluded.form, version = legal_entities.version + 1, updated_at = excluded.updated_at"
        " WHERE %s::int IS NULL OR legal_entities.version = %s RETURNING version",
        (
            UUID(tenant_id),
            code,
            str(form.get("name") or code),
            country,
            Jsonb(dict(form)),
            is_default,
            now,
            expected_version,
            expected_version,
        ),
    ).fetchone()
    if row is None:
        raise Conflict(f"legal entity {code!r} was changed in the meantime")
    return int(row["version"])


def legal_entity(connection: Connection, code: str | None = None) -> dict[str, Any]:
    """One legal entity of the transaction's tenant: by code, or the default one."""
    row = connection.execute(
        "SELECT code, name, country, form, version, is_default, updated_at FROM legal_entities"
        " WHERE (%s::text IS NULL AND is_default) OR code = %s",
        (code, code),
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no legal entity {code!r}" if code else "the tenant has no legal entity")
    return dict(row)


def legal_entities(connection: Connection) -> list[dict[str, Any]]:
    rows = connection.execute(
        "SELECT code, name, country, form, version, is_default, updated_at FROM legal_entities ORDER BY code LIMIT 1000"
    ).fetchall()
    return [dict(row) for row in rows]


def legal_entity_codes(connection: Connection) -> set[str]:
    """Their codes, and the empty one if there is an entity for customers who name none."""
    rows = connection.execute("SELECT code, is_default FROM legal_entities").fetchall()
    return {row["code"] for row in rows} | {"" for row in rows if row["is_default"]}


def _tenant(row: Mapping[str, Any]) -> Tenant:
    return Tenant(**{**row, "id": str(row["id"])})


def enter(connection: Connection, tenant_id: str) -> None:
    """Go on in the tenant's own role in the same transaction: a new tenant is made whole or not at all."""
    connection.execute(
        "SELECT set_config('role', %s, true), set_config('app.tenant_id', %s, true)",
        (APP_ROLE, str(UUID(tenant_id))),
    )


def all_ids(connection: Connection) -> list[str]:
    """The tenants that there are (system role)."""
    return [str(row["id"]) for row in connection.execute("SELECT id FROM tenants ORDER BY id").fetchall()]
