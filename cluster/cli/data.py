"""Usage and records in and out: import, usage, export, demos."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import typer

from cluster.cli import context

EXPORTS = {
    "invoices": "/v1/invoices",
    "customers": "/v1/customers",
    "subscriptions": "/v1/subscriptions",
    "plans": "/v1/plans",
    "meters": "/v1/meters",
}


def import_(
    file: Path,
    mapping: Path,
    business: Path | None,
    derive: Path | None,
    tenant: str | None,
    key: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    from cluster.import_command import derive as derive_files
    from cluster.import_command import import_file

    with context.problems():
        if derive is not None:
            if business is None:
                context.fail("--derive needs --business", context.WRONG_CALL, "see docs/importing.md")
                return
            written = [str(path) for path in derive_files(file, mapping, business, derive)]
            context.show({"written": written}, as_json, lambda _: print("\n".join(written)))  # noqa: T201
            return
        with context.tenant_client(tenant, key, ["usage:write"], url) as client:
            result = import_file(client, file, mapping, progress=context.progress_printer())
    context.show(result, as_json, _print_import)
    if result["rejected"]:
        raise typer.Exit(context.NO)


def _print_import(result: dict[str, Any]) -> None:
    names = ("rows", "accepted", "duplicates", "suspended", "rejected")
    print("  ".join(f"{name} {result[name]:,}" for name in names))  # noqa: T201
    for error in result["errors"][:20]:
        print(f"  row {error['position']}: {error.get('detail') or error.get('reason')}")  # noqa: T201
    if len(result["errors"]) > 20:
        print(f"  and {len(result['errors']) - 20} more: --json shows them")  # noqa: T201


def usage(
    customer: str,
    start: str | None,
    end: str | None,
    tenant: str | None,
    key: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    with context.problems(), context.tenant_client(tenant, key, ["usage:read"], url) as client:
        if start or end:
            parameters = {"customer": customer, "since": start or end, "until": end or start}
            result = {"customer": customer, "days": list(client.pages("/v1/usage/days", **parameters))}
        else:
            result = client.get("/v1/usage", customer=customer)
    context.show(result, as_json, _print_usage)


def _print_usage(result: dict[str, Any]) -> None:
    if "days" in result:
        rows = [(one["day"], one["meter"], one["events"], one["quantity"]) for one in result["days"]]
        context.table(["day", "meter", "events", "quantity"], rows, right=["events", "quantity"])
        return
    lines = [
        (one["meter"], one["subscription"], one["from"], one["to"], one["quantity"], one["cost"], one["currency"])
        for one in result["lines"]
    ]
    columns = ["meter", "subscription", "from", "to", "quantity", "cost", ""]
    context.table(columns, lines, right=["quantity", "cost"])
    print(f"as of {result['as_of']}")  # noqa: T201


def top(
    asked: dict[str, str],
    since: str | None,
    until: str | None,
    tenant: str | None,
    key: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    last = context.day(until, "--to") or datetime.now().astimezone().date()
    first = context.day(since, "--from") or last - timedelta(days=29)
    with context.problems(), context.tenant_client(tenant, key, ["usage:read"], url) as client:
        result = client.get("/v1/usage/top", **asked, since=first.isoformat(), until=last.isoformat())
    context.show(result, as_json, _print_top)


def _print_top(result: dict[str, Any]) -> None:
    if not result["items"]:
        print(f"nothing of {result['meter']} was used in this time")  # noqa: T201
        return
    rows = [(one["group"] or "-", one["events"], one["quantity"]) for one in result["items"]]
    context.table([result["by"], "events", "quantity"], rows, right=["events", "quantity"])
    whole = "" if result["quantity"] is None else f", {result['quantity']} in all"
    print(f"{len(rows)} of {result['groups']:,} with {result['events']:,} events{whole}")  # noqa: T201


def export(what: str, out: Path | None, tenant: str | None, key: str | None, url: str | None, as_json: bool) -> None:
    path = EXPORTS.get(what)
    if path is None:
        context.fail(f"{what!r} cannot be exported", context.WRONG_CALL, f"one of: {', '.join(EXPORTS)}")
        return
    scopes = ["catalog:read", "contracts:read", "billing:read"]
    with context.problems(), context.tenant_client(tenant, key, scopes, url) as client:
        target = out.open("w", encoding="utf-8") if out else sys.stdout
        count = 0
        try:
            start, between, end = ("[", ",\n", "]\n") if as_json else ("", "\n", "\n")
            target.write(start)
            for item in client.pages(path):
                target.write((between if count else "") + json.dumps(item, ensure_ascii=False))
                count += 1
            target.write(end if count or as_json else "")
        finally:
            if out:
                target.close()
    if out:
        print(f"{count} {what} written to {out}", file=sys.stderr)  # noqa: T201


def demo_focus(file: Path | None, by: str, as_json: bool) -> None:
    from cluster.demo import EXAMPLE, load_focus

    if by not in ("consumption", "value"):
        context.fail("--by is consumption or value", context.WRONG_CALL)
    with context.problems():
        report = load_focus(
            _platform(), file or EXAMPLE / "focus_usage.csv", by=by, progress=context.progress_printer()
        )
    context.show(report, as_json, _print_report)


def _print_report(report: dict[str, Any]) -> None:
    names = ("rows", "accepted", "suspended", "duplicates", "rejected", "customers")
    print("  ".join(f"{name} {report[name]:,}" for name in names))  # noqa: T201
    print(f"invoices {len(report['invoices'])} in tenant {report['tenant']}")  # noqa: T201
    for name in ("exact_total", "list_cost_total", "difference_total", "invoiced_net", "rounding"):
        print(f"  {name:18} {report[name]}")  # noqa: T201
    for what, holds in report["checks"].items():
        print(f"  {'holds' if holds else 'FAILS'}: {what}")  # noqa: T201
    if report["differences"]:
        rows = [(one["id"], one["ours"], one["list_cost"], one["reason"]) for one in report["differences"][:10]]
        context.table(["row", "ours", "list cost", "reason"], rows, right=["ours", "list cost"])
        print(f"{len(report['differences'])} differences in all: --json shows each")  # noqa: T201


def demo_generated(as_json: bool) -> None:
    from datetime import UTC, datetime

    from cluster.demo import load_generated

    with context.problems():
        result = load_generated(_platform(), now=datetime.now(UTC), progress=context.progress_printer())
    context.show(
        result,
        as_json,
        lambda one: print(f"tenant {one['tenant']}: {one['events']:,} events, {one['bill_runs']} bill runs"),  # noqa: T201
    )


def _platform() -> Any:
    from cluster.demo import Platform

    settings = context.settings()
    with context.platform_client() as client:
        client.get("/v1/tenants")  # says in words what is wrong, before anything is done
    return Platform(settings.url, settings.admin_key_file.read_text().strip())
