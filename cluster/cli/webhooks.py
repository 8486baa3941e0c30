"""Webhooks and alerts on the command line."""

from __future__ import annotations

from typing import Any

from cluster.cli import context

READ, WRITE = ["access:read"], ["access:read", "access:write"]


def show(tenant: str | None, key: str | None, as_json: bool) -> None:
    with context.problems(), context.tenant_client(tenant, key, READ) as client:
        found = list(client.pages("/v1/webhooks"))
    context.show(found, as_json, _print_endpoints)


def types(tenant: str | None, key: str | None, as_json: bool) -> None:
    with context.problems(), context.tenant_client(tenant, key, READ) as client:
        found = client.get("/v1/webhook-event-types")["items"]
    context.show(found, as_json, _print_types)


def create(url: str, description: str, events: list[str], tenant: str | None, key: str | None, as_json: bool) -> None:
    form = {"url": url, "description": description} | ({"event_types": events} if events else {})
    with context.problems(), context.tenant_client(tenant, key, WRITE) as client:
        made = client.post("/v1/webhooks", form)
    context.show(made, as_json, lambda one: print(f"{one['id']}\n{one['secret']}\nthe secret is shown only here"))  # noqa: T201


def test(endpoint: str, tenant: str | None, key: str | None, as_json: bool) -> None:
    with context.problems(), context.tenant_client(tenant, key, WRITE) as client:
        made = client.post(f"/v1/webhooks/{endpoint}/test", {})
    context.show(made, as_json, lambda one: print(f"{one['message_id']} is on its way"))  # noqa: T201


def delete(endpoint: str, tenant: str | None, key: str | None, as_json: bool) -> None:
    with context.problems(), context.tenant_client(tenant, key, WRITE) as client:
        made = client.delete(f"/v1/webhooks/{endpoint}")
    context.show(made, as_json, lambda one: print(f"{one['id']} is told nothing any more"))  # noqa: T201


def deliveries(state: str | None, tenant: str | None, key: str | None, as_json: bool) -> None:
    with context.problems(), context.tenant_client(tenant, key, READ) as client:
        found = client.get("/v1/webhook-deliveries", state=state, limit=100)["items"]
    context.show(found, as_json, _print_deliveries)


def replay(ids: list[int], tenant: str | None, key: str | None, as_json: bool) -> None:
    with context.problems(), context.tenant_client(tenant, key, WRITE) as client:
        made = client.post("/v1/webhook-deliveries/replay", {"ids": ids} if ids else {})
    context.show(made, as_json, lambda one: print(f"{one['replayed']} deliveries are tried again"))  # noqa: T201


def alerts(only_open: bool, tenant: str | None, key: str | None, as_json: bool) -> None:
    with context.problems(), context.tenant_client(tenant, key, ["contracts:read"]) as client:
        found = list(client.pages("/v1/alerts", open="true" if only_open else None))
    context.show(found, as_json, _print_alerts)


def acknowledge(alert: str, note: str, tenant: str | None, key: str | None, as_json: bool) -> None:
    with context.problems(), context.tenant_client(tenant, key, ["contracts:read", "contracts:write"]) as client:
        made = client.post(f"/v1/alerts/{alert}/acknowledge", {"note": note})
    context.show(made, as_json, lambda one: print(f"seen by {one['by']} at {one['at']}"))  # noqa: T201


def _print_types(found: list[dict[str, Any]]) -> None:
    rows = [(one["type"], "yes" if one["by_default"] else "by name", one["says"]) for one in found]
    context.table(["type", "told", "when"], rows)


def _print_endpoints(found: list[dict[str, Any]]) -> None:
    rows = [
        (one["id"], one["url"], one["description"], ", ".join(one["event_types"]), one["disabled_because"] or "on")
        for one in found
    ]
    context.table(["id", "url", "what for", "told of", "state"], rows)


def _print_deliveries(found: list[dict[str, Any]]) -> None:
    rows = [
        (one["id"], one["event_type"], one["url"], one["state"], one["tries"], one["last_error"] or one["last_status"])
        for one in found
    ]
    context.table(["id", "event", "to", "state", "tries", "last answer"], rows, right=["tries"])


def _print_alerts(found: list[dict[str, Any]]) -> None:
    rows = [
        (
            one["id"],
            one["budget"],
            one["customer"],
            _threshold(one),
            f"{one['spent']} {one['currency']}",
            one["at"],
            one["acknowledged"]["by"] if one["acknowledged"] else "open",
        )
        for one in found
    ]
    context.table(["id", "budget", "customer", "threshold", "spent", "at", "seen"], rows, right=["threshold", "spent"])


def _threshold(alert: dict[str, Any]) -> str:
    found = alert["threshold"]
    return f"{found['amount']} {alert['currency']}" if isinstance(found, dict) else f"{found} %"
