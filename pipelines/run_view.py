"""A bill run as people and programs see it: stage, progress, sums; and its chunks as tasks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from billing.money import exact_sum
from pipelines.bill_run_chunk import ChunkTask
from storage.sql import bill_runs, billing_settings, invoices, tenants
from storage.sql.database import Connection

WORKED_ON = ("planned", "approved", "finalised", "reversing")  # states in which a driver works on a run


def usage_prefix(tenant_id: str, run_id: str) -> str:
    """Where the usage of a run lies in slices by chunk, until it is done."""
    return f"runs/{tenant_id}/{run_id}/usage/"


def tasks_of(tenant_id: str, run: Mapping[str, Any], chunks: Sequence[Mapping[str, Any]]) -> list[ChunkTask]:
    """The tasks of all chunks of a run, in their order: each begins where the one before ends."""
    first = itertools.accumulate((each["customers"] for each in chunks), initial=0)
    return [
        ChunkTask(
            tenant_id,
            str(run["id"]),
            chunk["chunk"],
            place,
            chunk["customers"],
            run["master_number"],
            run["up_to"],
            run["made_at"],
            run["document_date"],
            json.dumps(run["cut"]),
            json.dumps(run["previous_cut"]) if run["previous_cut"] else None,
            run["data_versions"].get("time_zones"),
        )
        for place, chunk in zip(first, chunks, strict=False)
    ]


def waits_for_somebody(
    connection: Connection, tenant_id: str, run: Mapping[str, Any], approve: bool | None = None
) -> bool:
    """Whether a computed run needs somebody to approve it: as planned (or as told), for what was found, or always."""
    if not (run["auto_approve"] if approve is None else approve):
        return True
    if approve is None and (run["checks"] or {}).get("stops"):
        return True
    tenant = tenants.by_id(connection, tenant_id)
    return billing_settings.of(connection, tenant.kind).four_eyes


def end_of(connection: Connection, run: Mapping[str, Any]) -> dict[str, int]:
    """What is told of a run that is over: how many documents, customers parked, documents without files."""
    files = invoices.file_counts(connection, str(run["id"]))
    return {"documents": sum(files.values()), "parked": len(run["parked"]), "documents_parked": files["parked"]}


def run_view(connection: Connection, run_id: str, now: datetime) -> dict[str, Any]:
    """A run as people and programs see it."""
    run = bill_runs.get(connection, run_id)
    chunks = bill_runs.chunks(connection, run_id)
    files = invoices.file_counts(connection, run_id)
    return {
        **run,
        "id": str(run["id"]),
        "held_back": bill_runs.held_back(run),
        "progress": _progress(connection, run, chunks, files, now),
        "totals": sum_of_totals([chunk["totals"] for chunk in chunks if chunk["totals"]]),
        "documents": {"made": sum(chunk["documents"] or 0 for chunk in chunks), **files},
        "without_files": invoices.files_parked(connection, run_id, NAMED_MAX) if files["parked"] else [],
        "lines": sum(chunk["lines"] or 0 for chunk in chunks),
    }


def _progress(
    connection: Connection,
    run: Mapping[str, Any],
    chunks: Sequence[Mapping[str, Any]],
    files: Mapping[str, int],
    now: datetime,
) -> dict[str, Any]:
    """The stage, how much of it is done (customers, then documents), seconds since the plan, and seconds left."""
    done = {state: sum(c["customers"] for c in chunks if c["state"] in rest) for state, rest in _REACHED.items()}
    stage, count, total = "done", run["customers"], run["customers"]
    if run["state"] == "planned":
        stage, count = "computing", done["computed"]
    elif run["state"] == "computed":
        waits = waits_for_somebody(connection, str(run["tenant_id"]), run)
        stage = "waiting for approval" if waits else "approving"
    elif run["state"] == "approved":
        stage, count = "finalising", done["finalised"]
    elif run["state"] in ("reversing", "reversed"):
        stage, count = run["state"], invoices.reversed_count(connection, str(run["id"]))
        total = sum(files.values())
    elif run["state"] == "finalised":
        total = sum(files.values())
        stage, count = "making documents", total - files["wanted"]
    elif run["state"] == "cancelled":
        stage = "cancelled"
    seconds = max(((run["ended_at"] or now) - run["started_at"]).total_seconds(), 0)
    progress: dict[str, Any] = {"stage": stage, "done": count, "total": total, "seconds": round(seconds, 1)}
    if run["paused"] and run["state"] not in bill_runs.ENDED:
        progress["stage"] = "paused"
    left = seconds_left(run, count, total, now)
    if left is not None:
        progress["seconds_left"] = round(left, 1)
    return progress


def seconds_left(run: Mapping[str, Any], done: int, total: int, now: datetime) -> float | None:
    """How long the present stage takes from now, at the speed since a driver took it up; None if that says nothing.

    Not since the plan: a night in which the run waited for its approval would count as work.
    """
    if run["state"] not in WORKED_ON or run["paused"] or run["error"] or run["waiting_reason"]:
        return None
    made = done - run["stage_from"]
    if run["stage_since"] is None or made <= 0 or done >= total:
        return None
    return max((now - run["stage_since"]).total_seconds(), 0.0) / made * (total - done)


NAMED_MAX = 100  # documents without files; all are counted
_REACHED = {"computed": ("computed", "finalised", "documented"), "finalised": ("finalised", "documented")}


def sum_of_totals(parts: Sequence[Mapping[str, Mapping[str, str]]]) -> dict[str, dict[str, str]]:
    """Totals of chunks added up, by currency and name of the amount."""
    sums: dict[str, dict[str, Decimal]] = {}
    for part in parts:
        for currency, amounts in part.items():
            one = sums.setdefault(currency, {})
            for name, amount in amounts.items():
                one[name] = exact_sum((one.get(name, Decimal(0)), Decimal(amount)))
    return {
        currency: {name: format(amount, "f") for name, amount in amounts.items()}
        for currency, amounts in sorted(sums.items())
    }
