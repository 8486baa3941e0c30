"""Tenants and keys."""

from __future__ import annotations

from typing import Any

from cluster.cli import context


def create_key(tenant: str, name: str, scopes: str, limits: dict[str, int], as_json: bool) -> None:
    chosen = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    if chosen == ["all"]:
        from deployments.access import TENANT_SCOPES

        chosen = sorted(TENANT_SCOPES)
    with context.problems(), context.platform_client() as client:
        made = client.post("/v1/keys", {"tenant": tenant, "name": name, "scopes": chosen, "limits": limits})
    context.show(made, as_json, lambda one: print(f"{one['key']}\nshown only here; it may: {', '.join(chosen)}"))  # noqa: T201


def limit_key(id: str, limits: dict[str, int], tenant: str | None, key: str | None, as_json: bool) -> None:
    with context.problems(), context.tenant_client(tenant, key, ["access:read", "access:write"]) as client:
        made = client.patch(f"/v1/keys/{id}", {"limits": limits})
    context.show(made, as_json, lambda one: print(f"{one['name']}: {_limits(one)}"))  # noqa: T201


def _limits(key: dict[str, Any]) -> str:
    said = [f"{count:,} {name.removesuffix('_per_s')}/s" for name, count in key["limits"].items() if "per_s" in name]
    return ", ".join(said) or "as the platform allows"


def list_keys(tenant: str | None, key: str | None, as_json: bool) -> None:
    with context.problems(), context.tenant_client(tenant, key, ["access:read"]) as client:
        found = list(client.pages("/v1/keys"))
    context.show(found, as_json, _print_keys)


def _print_keys(found: list[dict[str, Any]]) -> None:
    rows = [
        (one["id"], one["name"], one.get("start"), ", ".join(one["scopes"]), _limits(one), one.get("expires_at"))
        for one in found
    ]
    context.table(["id", "name", "starts", "scopes", "limits", "expires"], rows)


def create_tenant(form: dict[str, Any], as_json: bool) -> None:
    with context.problems(), context.platform_client() as client:
        made = client.post("/v1/tenants", form)
    context.show(made, as_json, lambda one: print(f"tenant {one['code']}\nkey {one['key']} (shown only here)"))  # noqa: T201


def list_tenants(as_json: bool) -> None:
    with context.problems(), context.platform_client() as client:
        found = list(client.pages("/v1/tenants"))
    context.show(found, as_json, _print_tenants)


def _print_tenants(found: list[dict[str, Any]]) -> None:
    rows = [(one["code"], one["name"], one["kind"], one["currency"], one["timezone"]) for one in found]
    context.table(["code", "name", "kind", "currency", "time zone"], rows)


def tenant_settings(change: dict[str, object], tenant: str | None, key: str | None, as_json: bool) -> None:
    """Read them, or change what is named; what is not named stays."""
    scopes = ["access:read", *(["access:write"] if change else [])]
    with context.problems(), context.tenant_client(tenant, key, scopes) as client:
        found = client.post("/v1/tenant-settings", change) if change else client.get("/v1/tenant-settings")
    context.show(found, as_json, _print_settings)


def _print_settings(found: dict[str, Any]) -> None:
    sources = ", ".join(found["unique_within_customer"]) or "none"
    rows = [
        ("usage for billed periods", found["late_usage"]),
        ("events may be ahead by", found["future_limit"]),
        ("sources with ids of each customer", sources),
    ]
    context.table(["setting", "now"], rows)
