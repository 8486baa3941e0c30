"""The settings of a tenant's bill runs in SQL. What they mean is `billing/run_settings.py`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from billing.errors import PreconditionFailed
from billing.run_settings import RunSettings, settings_of
from storage.sql.database import Connection


def get(connection: Connection) -> dict[str, Any]:
    """form and version of the transaction's tenant; an empty form of version 0 where nothing was ever set."""
    row = connection.execute("SELECT form, version FROM billing_settings").fetchone()
    return {"form": {}, "version": 0} if row is None else dict(row)


def of(connection: Connection, kind: str) -> RunSettings:
    """The same, read."""
    return settings_of(get(connection)["form"], kind)


def put(
    connection: Connection,
    tenant_id: str,
    form: Mapping[str, Any],
    actor: str,
    now: datetime,
    expected: int | None = None,
) -> int:
    """Replace them; the new version. PreconditionFailed if they are not at the expected one any more."""
    row = connection.execute(
        "INSERT INTO billing_settings (tenant_id, form, changed_by, changed_at) SELECT %(tenant)s, %(form)s, %(by)s,"
        " %(at)s WHERE %(expected)s::int IS NULL OR %(expected)s = 0 OR EXISTS (SELECT 1 FROM billing_settings)"
        " ON CONFLICT (tenant_id) DO UPDATE SET form = excluded.form, version = billing_settings.version + 1,"
        " changed_by = excluded.changed_by, changed_at = excluded.changed_at"
        " WHERE %(expected)s::int IS NULL OR billing_settings.version = %(expected)s RETURNING version",
        {"tenant": UUID(tenant_id), "form": Jsonb(dict(form)), "by": actor, "at": now, "expected": expected},
    ).fetchone()
    if row is None:
        raise PreconditionFailed("the settings of bill runs were changed in the meantime: read them again")
    return int(row["version"])


def with_schedule(connection: Connection) -> list[str]:
    """Tenants whose runs begin by themselves (system role)."""
    rows = connection.execute(
        "SELECT tenant_id FROM billing_settings JOIN tenants t ON t.id = tenant_id AND t.closed_at IS NULL"
        " WHERE billing_settings.form->'schedule' IS NOT NULL AND billing_settings.form->>'schedule' IS NOT NULL"
        " ORDER BY tenant_id"
    ).fetchall()
    return [str(row["tenant_id"]) for row in rows]
