"""`cloudbilling customer ...`: what is kept about a customer, store by store, and how he is forgotten."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

from cluster.cli import context


@dataclass(frozen=True)
class Access:
    tenant: str | None
    key: str | None
    url: str | None
    as_json: bool


def access_report(code: str, tenant: str | None, key: str | None, url: str | None, as_json: bool) -> None:
    from cluster.client import path_part

    with context.problems(), context.tenant_client(tenant, key, ["access:read"], url) as client:
        found = client.get(f"/v1/customers/{path_part(code)}/access-report")
    context.show(found, as_json, _print)


def erase(code: str, rule: str, dry_run: bool, yes: bool, access: Access) -> None:
    """Say first what goes; then ask, unless told not to."""
    from cluster.client import path_part

    scopes = ["access:read", "access:write"]
    with context.problems(), context.tenant_client(access.tenant, access.key, scopes, access.url) as client:
        path = f"/v1/customers/{path_part(code)}/erasure"
        plan = client.post(path, {"rule": rule, "dry_run": True})
        if dry_run:
            context.show(plan, access.as_json, _print_plan)
            return
        if not yes:
            if access.as_json or not sys.stdin.isatty():
                context.fail("an erasure cannot be undone", context.WRONG_CALL, "look with --dry-run, then give --yes")
            _print_plan(plan)
            if input(f"Forget {code}? It cannot be undone. Type the code: ") != code:
                context.fail("nothing was changed", context.NO)
        made = client.post(path, {"rule": rule})
    context.show(made, access.as_json, _print_erasure)


def erasures(erasure: str | None, access: Access) -> None:
    with context.problems(), context.tenant_client(access.tenant, access.key, ["access:read"], access.url) as client:
        if erasure is not None:
            context.show(client.get(f"/v1/erasures/{erasure}"), access.as_json, _print_erasure)
            return
        found = list(client.pages("/v1/erasures"))
    context.show(found, access.as_json, _print_erasures)


def retention(given: dict[str, str | None], access: Access) -> None:
    """Show the rules, after setting those that are given."""
    form: dict[str, int | None] = {}
    for name, text in given.items():
        if text is None:
            continue
        if text != "never" and not text.isdigit():
            context.fail(f"--{name}-months: {text!r} is no number of months, nor `never`", context.WRONG_CALL)
        form[name] = None if text == "never" else int(text)
    scopes = ["access:read", "access:write"] if form else ["access:read"]
    with context.problems(), context.tenant_client(access.tenant, access.key, scopes, access.url) as client:
        found = client.put("/v1/retention", form) if form else client.get("/v1/retention")
    context.show(found, access.as_json, _print_rules)


def compact(as_json: bool) -> None:
    from storage.sql.compacting import compact as write_anew

    with context.problems():
        dsn, started = context.database_url(context.settings()), time.monotonic()
        tables = write_anew(dsn)
    said = {"tables": tables, "seconds": round(time.monotonic() - started, 1)}
    context.show(said, as_json, lambda one: print(f"{one['tables']} tables written anew in {one['seconds']} s"))  # noqa: T201


def _print_rules(found: dict[str, Any]) -> None:
    rows = [
        (one["class"], one["months"], one["last_at"] or "", one["error"] or "", one["next_at"])
        for one in found["rules"]
    ]
    context.table(["kept", "months", "last look", "error", "next look"], rows, right=["months"])
    if found["alarm"]:
        print(found["alarm"])  # noqa: T201


def _print_plan(plan: dict[str, Any]) -> None:
    rows = [("usage log", plan["usage_rows"], "goes")]
    rows += [(f"table {name}", count, "goes") for name, count in plan["tables"].items()]
    rows += [(f"document {one['number']}", 1, f"stays until {one['kept_until']}") for one in plan["documents"]]
    context.table(["where", "rows", "what becomes of it"], rows, right=["rows"])


def _print_erasure(one: dict[str, Any]) -> None:
    print(f"{one['id']}  {one['state']}  {one['rule']}  what is left goes on as {one['stands_for']}")  # noqa: T201
    for name, value in one["progress"].items():
        print(f"  {name}: {value}")  # noqa: T201
    for document in one["documents"]:
        print(f"  document {document['number']} stays until {document['kept_until']}")  # noqa: T201
    if one["error"]:
        print(f"  {one['error']}")  # noqa: T201
    if one["state"] != "done":
        print(f"See how far it is: cloudbilling customer erasures {one['id']}")  # noqa: T201


def _print_erasures(found: list[dict[str, Any]]) -> None:
    rows = [(one["id"], one["state"], one["rule"], one["asked_at"], len(one["documents"])) for one in found]
    context.table(["erasure", "state", "rule", "asked", "documents kept"], rows, right=["documents kept"])


def _print(found: dict[str, Any]) -> None:
    print(f"{found['customer']}, keys: {', '.join(found['keys'])}")  # noqa: T201
    usage = found["usage"]
    rows = [(f"log: {one['kind']} {one['type']} of {one['key']}", one["rows"], one["on_erasure"]) for one in usage]
    rows += [(f"table: {one['table']}", one["rows"], one["on_erasure"]) for one in found["tables"]]
    context.table(["where", "rows", "on erasure"], rows, right=["rows"])
    for name in (*found["tables_not_searched"], *found["not_searched"]):
        print(f"not searched: {name}")  # noqa: T201
