"""What a bill run would come to: its plan, and a preview of the whole of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from cluster.cli import context

SCOPES = ["billing:read", "billing:write"]
WAIT_S = 6 * 3600.0
FORMATS = {".csv": "csv", ".parquet": "parquet"}
SHOWN = 20  # customers parked, held back or far off


@dataclass(frozen=True)
class Access:
    tenant: str | None
    key: str | None
    url: str | None
    as_json: bool


def plan(up_to: str, tenant: str | None, key: str | None, url: str | None, as_json: bool) -> None:
    with context.problems(), context.tenant_client(tenant, key, ["billing:read"], url) as client:
        found = client.post("/v1/bill-runs/plan", {"up_to": up_to})
    context.show(found, as_json, _print_plan)
    if not found["estimate"]["customers_due"]:
        raise typer.Exit(context.NO)


def _print_plan(found: Mapping[str, Any]) -> None:
    expected = found["estimate"]
    about = "" if expected["exact"] else "about "
    print(f"up to {found['up_to']}, documents of {found['document_date']}")  # noqa: T201
    print(f"  {about}{expected['customers_due']:,} of {expected['customers']:,} customers are due")  # noqa: T201
    if not expected["customers_due"]:
        when = f": the next is due at {found['next_due_at']}" if found["next_due_at"] else ""
        print(f"  nothing is due that is not billed yet{when}")  # noqa: T201
    elif expected["documents"] is None:
        print("  no run has made documents yet: what they come to says a preview")  # noqa: T201
    else:
        runs = ", ".join(str(number) for number in expected["runs"])
        print(f"  about {expected['documents']:,} documents, by the last runs ({runs})")  # noqa: T201
        _print_totals("about ", expected["totals"])
        if expected["seconds"] is not None:
            print(f"  about {expected['seconds']:,} s")  # noqa: T201
    if found["preview"] is not None:
        one = found["preview"]
        print(f"  previewed at {one['created_at']}: {one['documents']:,} documents")  # noqa: T201
        _print_totals("", one["totals"])
    if found["usage_may_come_until"]:
        print(f"  usage may come until {found['usage_may_come_until']}: a run waits for it, or begins --early")  # noqa: T201
    if found["going_on"]:
        print(f"  run {found['going_on']} goes on: it must end before")  # noqa: T201


def _print_totals(about: str, totals: Mapping[str, Mapping[str, str]]) -> None:
    for currency, sums in totals.items():
        print(f"  {about}{currency}: net {sums['net']}, gross {sums['gross']}")  # noqa: T201


def preview(wanted: Mapping[str, str | None], out: Path | None, access: Access) -> None:
    """Begin one, or look at the one whose `id` is wanted. Exit 0 if all would be billed."""
    from cluster.client import path_part

    form = "csv" if out is None else FORMATS.get(out.suffix.lower(), "")
    if not form:
        context.fail(f"--out {out}: a name that ends with {' or '.join(FORMATS)} is needed", context.WRONG_CALL)
    known = wanted["id"]
    body = {name: value for name, value in wanted.items() if value and name != "id"}
    with context.problems(), context.tenant_client(access.tenant, access.key, SCOPES, access.url) as client:
        path = "/v1/bill-run-previews"
        found = _follow(client, client.get(f"{path}/{path_part(known)}") if known else client.post(path, body))
        if out is not None:
            try:
                with out.open("wb") as file:
                    client.save(f"{path}/{found['id']}/lines", file, format=form)
            except OSError as error:
                context.fail(f"{out}: {error}", context.NO)
    context.show(found, access.as_json, _print_preview)
    if found["result"]["parked_count"] or found["result"]["held_back_count"]:
        raise typer.Exit(context.NO)


def _follow(client: Any, preview: dict[str, Any]) -> dict[str, Any]:
    """Show progress until it is done. Ctrl-C leaves it running on the platform."""
    say = context.progress_printer(reckons=False)
    end = time.monotonic() + WAIT_S
    path = f"/v1/bill-run-previews/{preview['id']}"
    again = f"look again: cloudbilling bill-run preview --id {preview['id']}"
    try:
        while time.monotonic() < end:
            progress = preview["progress"]
            stage = progress.get("stage") or preview["state"]
            say(stage, int(progress["done"]), int(progress["total"]), progress.get("seconds_left"))
            if preview["state"] == "done":
                return preview
            if preview["state"] in ("failed", "cancelled"):
                words = preview["error"] or "the preview was cancelled"
                context.fail(words, context.NO, "cloudbilling bill-run preview")
            time.sleep(0.3)
            preview = client.get(path)
    except KeyboardInterrupt:
        context.fail("it goes on without you", context.NO, again)
    context.fail(f"still {preview['state']}", context.UNREACHABLE, again)
    return preview


def _print_preview(found: Mapping[str, Any]) -> None:
    result = found["result"]
    print(f"\npreview {found['id']} up to {found['up_to']}: nothing is changed")  # noqa: T201
    print(f"  {result['documents']:,} documents, {result['lines']:,} lines")  # noqa: T201
    for currency, sums in result["totals"].items():
        print(f"  {currency}: net {sums['net']}, tax {sums['tax']}, gross {sums['gross']}")  # noqa: T201
    if not result["documents"]:
        print("  nothing is due that is not billed yet")  # noqa: T201
    checks = result["checks"]
    for currency, one in checks["difference"].items():
        if one["change_percent"] is not None:
            print(f"  {currency}: {one['change_percent']} % against the last run ({one['last_net']})")  # noqa: T201
    for text in checks["stops"]:
        print(f"  the run would wait: {text}")  # noqa: T201
    for kind, word in (("held_back", "would be held back"), ("parked", "would be parked")):
        for one in result[kind][:SHOWN]:
            print(f"  {word}: {one['customer']}: {one['reason']}")  # noqa: T201
        more = result[f"{kind}_count"] - len(result[kind][:SHOWN])
        if more:
            print(f"  {word}: {more:,} more")  # noqa: T201
    for one in result["findings"]:
        print(f"  found: {one.get('detail') or one['code']}")  # noqa: T201
