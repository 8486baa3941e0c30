"""Bill runs, invoices and proofs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from cluster.cli import context

SCOPES = ["billing:read", "billing:write"]
WAIT_S = 6 * 3600.0
STANDING = ("finalised", "done")  # bill runs whose documents stand


def bill_run(
    wanted: dict[str, str | None],
    body: dict[str, Any],
    customers: list[str],
    tenant: str | None,
    key: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """One of: a new run, or a word to one that is there; then its progress until it ends or waits for somebody."""
    chosen = [(word, value) for word, value in wanted.items() if value]
    if len(chosen) != 1:
        names = ", ".join(f"--{word.replace('_', '-')}" for word in wanted)
        context.fail(f"give one of {names}", context.WRONG_CALL)
    ((word, value),) = chosen
    if bool(customers) != (word == "release"):
        context.fail("--release and --customer go together", context.WRONG_CALL)
    with context.problems(), context.tenant_client(tenant, key, SCOPES, url) as client:
        if word == "up_to":
            run = _follow(client, client.post("/v1/bill-runs", {"up_to": value, **body}))
        elif word == "release":
            run = client.post(f"/v1/bill-runs/{value}/release", {"customers": customers})
        else:
            run = client.post(f"/v1/bill-runs/{value}/{word}", {})
            if word in ("resume", "approve", "reverse"):
                run = _follow(client, run)
    context.show(run, as_json, _print_run)
    if run["parked"] or run["held_back"] or run["documents"]["parked"]:
        raise typer.Exit(context.NO)


def settings(file: Path | None, tenant: str | None, key: str | None, url: str | None, as_json: bool) -> None:
    with context.problems(), context.tenant_client(tenant, key, ["billing:read", "access:write"], url) as client:
        if file is not None:
            try:
                form = json.loads(file.read_text())
            except (OSError, ValueError) as error:
                context.fail(f"{file}: {error}", context.WRONG_CALL)
                return
            client.put("/v1/billing-settings", form)
        found = {"settings": client.get("/v1/billing-settings"), "schedule": client.get("/v1/billing-schedule")}
    context.show(found, as_json, _print_settings)


def _print_settings(found: dict[str, Any]) -> None:
    print(json.dumps(found["settings"], indent=2))  # noqa: T201
    schedule = found["schedule"]
    if schedule["next"]:
        print(f"next run: up to {schedule['next']['last_day']}, due {schedule['next']['due_at']}")  # noqa: T201
    for one in schedule["missed"]:
        print(f"{schedule['alarm']}: up to {one['last_day']}, due since {one['due_at']}")  # noqa: T201


def _follow(client: Any, run: dict[str, Any]) -> dict[str, Any]:
    """Show progress until the run ends, waits for somebody, or fails. Ctrl-C leaves it running on the platform."""
    say = context.progress_printer(reckons=False)
    end = time.monotonic() + WAIT_S
    try:
        while time.monotonic() < end:
            progress = run["progress"]
            waits = f", waits: {run['waiting_reason']}" if run.get("waiting_reason") else ""
            done, total = int(progress["done"]), int(progress["total"])
            say(f"{progress['stage']}{waits}", done, total, progress.get("seconds_left"))
            if run["state"] in ("done", "cancelled", "reversed") or _waits(run) or progress["stage"] == "paused":
                return run
            if run.get("error"):
                context.fail(run["error"], context.NO, f"resume it with: cloudbilling bill-run --resume {run['id']}")
            time.sleep(0.3)
            run = client.get(f"/v1/bill-runs/{run['id']}")
    except KeyboardInterrupt:
        context.fail("it goes on without you", context.NO, f"look again: cloudbilling bill-run --resume {run['id']}")
    context.fail(f"still {run['state']}", context.UNREACHABLE, f"cloudbilling bill-run --resume {run['id']}")
    return run


def _waits(run: dict[str, Any]) -> bool:
    """For somebody who approves it."""
    return run["state"] == "computed" and run["progress"]["stage"] == "waiting for approval"


def _print_run(run: dict[str, Any]) -> None:
    print(f"\nbill run {run['number']} ({run['id']}): {run['state']}")  # noqa: T201
    documents = run["documents"]
    print(f"  {documents['made']:,} documents, {documents['archived']:,} archived, {run['lines']:,} lines")  # noqa: T201
    for currency, sums in run["totals"].items():
        print(f"  {currency}: net {sums['net']}, tax {sums['tax']}, gross {sums['gross']}")  # noqa: T201
    if not documents["made"] and run["state"] == "done":
        print("  nothing is due that is not billed yet")  # noqa: T201
    checks = run.get("checks") or {}
    for currency, one in checks.get("difference", {}).items():
        if one["change_percent"] is not None:
            print(f"  {currency}: {one['change_percent']} % against the last run ({one['last_net']})")  # noqa: T201
    for text in checks.get("stops", ()):
        print(f"  waits: {text}")  # noqa: T201
    for one in run["held_back"][:20]:
        print(f"  held back: {one['customer']}: {one['reason']}")  # noqa: T201
    if run["state"] == "computed":
        print(f"  approve it with: cloudbilling bill-run --approve {run['id']}")  # noqa: T201
    for one in run["parked"][:20]:
        print(f"  parked: {one['customer']}: {one['reason']}")  # noqa: T201
    if documents["parked"]:
        print(f"  {documents['parked']:,} documents could not be made")  # noqa: T201
    for one in run["without_files"][:20]:
        print(f"  not made: {one['number']} ({one['customer']}): {one['reason']}")  # noqa: T201
    if run["without_files"]:
        print(f"  mended? make it with: cloudbilling invoices files {run['without_files'][0]['number']}")  # noqa: T201


def list_invoices(customer: str | None, tenant: str | None, key: str | None, url: str | None, as_json: bool) -> None:
    with context.problems(), context.tenant_client(tenant, key, ["billing:read"], url) as client:
        found = list(client.pages("/v1/invoices", customer=customer))
    context.show(found, as_json, _print_invoices)


def _print_invoices(found: list[dict[str, Any]]) -> None:
    rows = [
        (one["number"], one["date"], one["customer"], one["type"], one["currency"], one["net"], one["gross"])
        for one in found
    ]
    context.table(["number", "date", "customer", "type", "", "net", "gross"], rows, right=["net", "gross"])


def show_invoice(
    number: str, pdf: Path | None, xml: Path | None, tenant: str | None, key: str | None, url: str | None, as_json: bool
) -> None:
    from cluster.client import path_part

    with context.problems(), context.tenant_client(tenant, key, ["billing:read"], url) as client:
        invoice = client.get(f"/v1/invoices/{path_part(number)}")
        for path, kind in ((pdf, "pdf"), (xml, "xml")):
            if path is not None:
                path.write_bytes(client.get_bytes(f"/v1/invoices/{path_part(number)}/{kind}"))
    context.show(invoice, as_json, _print_invoice)


def make_files(number: str, tenant: str | None, key: str | None, url: str | None, as_json: bool) -> None:
    """Exit 0 if the files of the document are archived now."""
    from cluster.client import path_part

    with context.problems(), context.tenant_client(tenant, key, SCOPES, url) as client:
        client.post(f"/v1/invoices/{path_part(number)}/files", {})
        invoice = client.get(f"/v1/invoices/{path_part(number)}")
    context.show(invoice, as_json, _print_files)
    if invoice["file"] != "archived":
        raise typer.Exit(context.NO)


def _print_files(invoice: dict[str, Any]) -> None:
    reason = f": {invoice['file_reason']}" if invoice["file_reason"] else ""
    print(f"{invoice['number']}: {invoice['file']}{reason}")  # noqa: T201


def _print_invoice(invoice: dict[str, Any]) -> None:
    print(f"{invoice['number']}  {invoice['type']}  {invoice['customer']}  {invoice['date']}")  # noqa: T201
    rows = [
        (line["line"], line["charge"], line["from"], line["to"], line["quantity"], line["amount"])
        for line in invoice["lines"]
    ]
    context.table(["line", "charge", "from", "to", "quantity", "amount"], rows, right=["quantity", "amount"])
    for name in ("net", "tax", "gross", "due"):
        print(f"  {name:6} {invoice[name]:>14} {invoice['currency']}")  # noqa: T201


def verify(
    what: str, tenant: str | None, key: str | None, url: str | None, as_json: bool, run: str | None = None
) -> None:
    """Exit 0 if the proof holds, 1 if something was found."""
    with context.problems(), context.tenant_client(tenant, key, ["billing:read", "usage:read"], url) as client:
        if what == "archive":
            result = client.get("/v1/archive/verify")
            good = bool(result["intact"])
        elif what == "usage":
            answer = client.get("/v1/usage/completeness?prove=true")
            totals, proof = answer["totals"], answer["proof"]
            good = proof["complete"]
            result = {"complete": good, **totals, "counted when stored": proof["counted"], "found": proof["found"]}
            result["differences"] = [_place_of(one) for one in proof["differences"]]
        else:
            result = _verify_invoices(client, run)
            good = not result["findings"]
    context.show(result, as_json, _print_proof)
    if not good:
        raise typer.Exit(context.NO)


def _place_of(one: Mapping[str, Any]) -> str:
    """A difference of the usage log in one line."""
    place = "" if one["number"] is None else f"lane {one['lane']} number {one['number']}, "
    return f"{one['day'] or 'day unknown'}, {place}{one['object']}: {one['detail']}"


def _verify_invoices(client: Any, run: str | None) -> dict[str, Any]:
    """Documents of bill runs (of one, or of all that stand) against the log, and the numbers of all series. Without
    `run` the documents that no run made, too: those issued from outside against what they came as, of others the
    sums."""
    from cluster.client import path_part

    findings: list[str] = []
    erased, erased_count = list[str](), 0
    runs = [client.get(f"/v1/bill-runs/{path_part(run)}")] if run else list(client.pages("/v1/bill-runs"))
    standing = sorted((one for one in runs if one["state"] in STANDING), key=lambda one: one["number"])
    if run and not standing:
        findings.append(f"run {runs[0]['number']} is {runs[0]['state']}: its documents do not stand")
    say, derived, gaps = context.progress_printer(), 0, set[str]()
    for place, one in enumerate(standing):
        say("bill runs derived again", place, len(standing))
        proof = client.prove(f"/v1/bill-runs/{one['id']}/verify")
        derived += proof["documents"]
        for found in proof["findings"]:
            named = found["number"] or f"a document of {found['customer']}"
            findings.append(f"run {one['number']}, {named}: {found['detail']}")
        erased += [f"run {one['number']}, {gone['number']}: {gone['rule']}" for gone in proof["erased"]]
        erased_count += proof["erased_count"]
        gaps |= _gaps(proof)
    if standing:
        say("bill runs derived again", len(standing), len(standing))
    outside = 0
    if not run:
        proof = client.prove("/v1/number-series/verify")
        outside, gaps = proof["outside"], gaps | _gaps(proof)
        findings += [f"{found['number']}, issued from outside: {found['detail']}" for found in proof["findings"]]
    summed, wrong = (0, []) if run else _own_sums(client, {one["id"] for one in standing})
    return {
        "runs": len(standing),
        "derived": derived - erased_count,
        "summed": summed,
        "issued from outside": outside,
        "numbers": "looked at" if standing or not run else "not looked at: the bill run does not stand",
        "erased": erased,
        **({"erased, not named": erased_count - len(erased)} if erased_count > len(erased) else {}),
        "findings": [*findings, *wrong, *sorted(gaps)],
    }


def _gaps(proof: Mapping[str, Any]) -> set[str]:
    return {f"series {gap['series']} of {gap['year']}: the numbers have a gap" for gap in proof["gaps"]}


def _own_sums(client: Any, proven: set[str]) -> tuple[int, list[str]]:
    """How many documents of the platform are of no proven run, and which of them do not add up."""
    from decimal import Decimal

    from cluster.client import path_part

    count, findings = 0, list[str]()
    for item in client.pages("/v1/invoices"):
        if item.get("bill_run") in proven or item["origin"] == "outside":
            continue
        count += 1
        whole = client.get(f"/v1/invoices/{path_part(item['number'])}")
        lines = sum((Decimal(line["amount"]) for line in whole["lines"]), Decimal(0))
        allowances = sum((Decimal(one["amount"]) for one in whole["allowances"]), Decimal(0))
        taxes = sum((Decimal(one["amount"]) for one in whole["taxes"]), Decimal(0))
        if lines - allowances != Decimal(whole["net"]) or Decimal(whole["net"]) + taxes != Decimal(whole["gross"]):
            findings.append(f"{item['number']}: the sums do not add up")
    return count, findings


def _print_proof(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if isinstance(value, list):
            print(f"  {name}: {len(value) or 'none'}")  # noqa: T201
            for one in value:
                print(f"    {one}")  # noqa: T201
        else:
            print(f"  {name}: {value}")  # noqa: T201
