"""`cloudbilling tenants close | reopen | erase | end | export`: the end of a tenant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.cli import context


def close(code: str, as_json: bool) -> None:
    _post(code, "close", {}, as_json)


def reopen(code: str, as_json: bool) -> None:
    _post(code, "reopen", {}, as_json)


def erase(code: str, rule: str, after_days: int, as_json: bool) -> None:
    _post(code, "erase", {"rule": rule, "after_days": after_days}, as_json)


def end(code: str, as_json: bool) -> None:
    from cluster.client import path_part

    with context.problems(), context.platform_client() as client:
        found = client.get(f"/v1/tenants/{path_part(code)}/end")
    context.show(found, as_json, _print_end)


def export(code: str, out: str, as_json: bool) -> None:
    """Reads the stores of the settings, with the platform running or not (its PostgreSQL has to run)."""
    from pipelines.tenant_export import export_tenant
    from storage.sql import tenants
    from storage.sql.database import Database

    with context.problems():
        settings = context.settings()
        store, archive = settings.store_address().open(), settings.archive_address().address.open()
        with Database(context.database_url(settings), size_max=2) as database:
            with database.system() as connection:
                tenant = tenants.by_code(connection, code)
            made = export_tenant(database, store, archive, tenant.id, Path(out))
    context.show(made, as_json, _print_counts)


def _post(code: str, word: str, body: dict[str, Any], as_json: bool) -> None:
    from cluster.client import path_part

    with context.problems(), context.platform_client() as client:
        found = client.post(f"/v1/tenants/{path_part(code)}/{word}", body)
    context.show(found, as_json, _print_end)


def _print_counts(one: dict[str, int]) -> None:
    for name, count in one.items():
        print(f"{name:30} {count}")  # noqa: T201


def _print_end(one: dict[str, Any]) -> None:
    code = one["code"]
    if one["erased_at"]:
        print(f"{code}: erased at {one['erased_at']}")  # noqa: T201
    elif one["erasing_since"]:
        print(f"{code}: being erased since {one['erasing_since']}")  # noqa: T201
    elif one["erase_at"]:
        print(f"{code}: closed, will be erased at {one['erase_at']} ({one['erase_rule']})")  # noqa: T201
        print(f"To take it back: cloudbilling tenants reopen {code}")  # noqa: T201
    elif one["closed_at"]:
        print(f"{code}: closed since {one['closed_at']} by {one['closed_by']}; it may be read and exported")  # noqa: T201
        print(f"To take it back: cloudbilling tenants reopen {code}")  # noqa: T201
    else:
        print(f"{code}: open")  # noqa: T201
    for name, value in one["erase_progress"].items():
        print(f"  {name}: {value}")  # noqa: T201
