"""`cloudbilling customer access-report`: what is kept about a customer, store by store."""

from __future__ import annotations

from typing import Any

from cluster.cli import context


def access_report(code: str, tenant: str | None, key: str | None, url: str | None, as_json: bool) -> None:
    from cluster.client import path_part

    with context.problems(), context.tenant_client(tenant, key, ["access:read"], url) as client:
        found = client.get(f"/v1/customers/{path_part(code)}/access-report")
    context.show(found, as_json, _print)


def _print(found: dict[str, Any]) -> None:
    print(f"{found['customer']}, keys: {', '.join(found['keys'])}")  # noqa: T201
    usage = found["usage"]
    rows = [(f"log: {one['kind']} {one['type']} of {one['key']}", one["rows"], one["on_erasure"]) for one in usage]
    rows += [(f"table: {one['table']}", one["rows"], one["on_erasure"]) for one in found["tables"]]
    context.table(["where", "rows", "on erasure"], rows, right=["rows"])
    for name in (*found["tables_not_searched"], *found["not_searched"]):
        print(f"not searched: {name}")  # noqa: T201
