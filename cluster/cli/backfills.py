"""`cloudbilling usage backfill` and `backfills`: send, look, commit, revert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from cluster.cli import context

SCOPES = ["usage:write", "usage:read", "billing:write"]


def send(
    file: Path,
    mapping: Path | None,
    name: str | None,
    note: str,
    commit: bool,
    tenant: str | None,
    key: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    from cluster.backfill_command import forget, send_file
    from cluster.client import path_part

    with context.problems(), context.tenant_client(tenant, key, SCOPES, url) as client:
        result = send_file(client, file, mapping, name=name, note=note, progress=context.progress_printer())
        if commit:
            done = client.post(f"/v1/usage/backfills/{path_part(result['backfill'])}/commit", {})
            result |= {"state": done["state"], "events": done["events"]}
            forget(file)
        else:
            result["state"] = "open"
    context.show(result, as_json, _print_sent)
    if result["rejected"]:
        raise typer.Exit(context.NO)


def backfills(
    name: str | None,
    commit: bool,
    revert: bool,
    reason: str | None,
    tenant: str | None,
    key: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    from cluster.client import path_part

    if (commit or revert) and not name:
        context.fail("which backfill?", context.WRONG_CALL, "give its name: cloudbilling usage backfills NAME --commit")
    if commit and revert:
        context.fail("--commit and --revert are two things", context.WRONG_CALL)
    if revert and not reason:
        context.fail("--revert needs --reason", context.WRONG_CALL, "it stays readable with the backfill")
    with context.problems(), context.tenant_client(tenant, key, SCOPES, url) as client:
        path = f"/v1/usage/backfills/{path_part(name or '')}"
        if not name:
            found = list(client.pages("/v1/usage/backfills"))
            context.show(found, as_json, _print_list)
            return
        if commit:
            found = client.post(f"{path}/commit", {})
        elif revert:
            found = client.post(f"{path}/revert", {"reason": reason})
        else:
            found = client.get(path)
            if found["state"] in ("open", "closing"):
                found["estimate"] = client.get(f"{path}/estimate")
    context.show(found, as_json, _print_one)


def _print_sent(result: dict[str, Any]) -> None:
    names = ("received", "accepted", "duplicates", "rejected")
    print("  ".join(f"{name} {result[name]:,}" for name in names))  # noqa: T201
    for error in result["errors"][:20]:
        print(f"  event {error['position']}: {error.get('detail') or error.get('reason')}")  # noqa: T201
    if result["skipped"]:
        print(f"  {result['skipped']:,} of them were sent before this call")  # noqa: T201
    if result["state"] == "committed":
        print(f"committed: {result['events']:,} events of {result['backfill']} count now")  # noqa: T201
        return
    _print_estimate(result["estimate"])
    name = result["backfill"]
    print(f"nothing of it counts yet; to let it: cloudbilling usage backfills {name} --commit")  # noqa: T201


def _print_estimate(estimate: dict[str, Any]) -> None:
    if not estimate["events"]:
        print("it holds no events")  # noqa: T201
        return
    span = f"{estimate['first']} to {estimate['last']}"
    print(f"{estimate['events']:,} events of {estimate['customers']:,} customer keys, {span}")  # noqa: T201
    if estimate["late"]:
        print(f"  {estimate['late']:,} in billed time: the next bill run settles them")  # noqa: T201
    for reason, events in estimate["suspended"].items():
        print(f"  {events:,} would be in suspense: {reason}")  # noqa: T201


def _print_list(found: list[dict[str, Any]]) -> None:
    rows = [
        (one["backfill"], one["state"], one["events"], one["opened_at"], one["committed_at"], one["note"])
        for one in found
    ]
    context.table(("backfill", "state", "events", "opened", "committed", "note"), rows, right=("events",))


def _print_one(found: dict[str, Any]) -> None:
    _print_list([found])
    if found["reason"]:
        print(f"reverted by {found['reverted_by']}: {found['reason']}")  # noqa: T201
    if "estimate" in found:
        _print_estimate(found["estimate"])
