"""Before a bill run fixes its cut: one event id under two customer keys is found, and the later event voided.

Owns the order: look, void (durable), note the pass. A crash in between finds the same again, and voiding again does no
harm. What comes between the pass and the run's cut is found by the next pass. What was voided is told by the log, not
by the pass: a pass may be noted and its run never come to be, or be cancelled, and then the next run has to say it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from billing.amendments import ID_REUSED
from billing.master import MasterData
from storage.object_store import ObjectStore
from storage.usage_log.counting import amendments_at
from storage.usage_log.reader import Cut, UsageLogReader
from storage.usage_log.reused_ids import ReusedIds
from storage.usage_log.run_cache import RunCache

LISTED_MAX = 100  # events that a run's finding names


class Voider(Protocol):
    """The way to the lanes that decide (actors/accounts_desk.py, RunDesk)."""

    def finish_amendments(self, tenant_id: str, reader: UsageLogReader) -> list[dict[str, str]]:
        """Complete amendments that a crash left half written; the events of those that cannot be completed."""
        ...

    def void_reused(
        self, tenant_id: str, reader: UsageLogReader, names: Sequence[tuple[str, str]]
    ) -> list[dict[str, str]]:
        """Void all but the first event of each (source, id); those voided by this call or an earlier one."""
        ...


def void_reused_ids(store: ObjectStore, voider: Voider, tenant_id: str, master: MasterData) -> list[dict[str, Any]]:
    """One pass over what came since the last one; findings for the run's record of what it could not put right."""
    reader = UsageLogReader(store)
    findings: list[dict[str, Any]] = []
    if stuck := voider.finish_amendments(tenant_id, reader):
        findings.append({"code": "amendments_pending", "events": len(stuck), "listed": stuck[:LISTED_MAX]})
    passes = passes_over(store, reader)
    found = passes.look(tenant_id, reader.now(), but_sources=master.tenant.unique_within_customer)
    if found.too_many:  # not noted: each run says so again until the source is named in the settings
        return [*findings, reused_often(found.too_many)]
    if found.names:
        voider.void_reused(tenant_id, reader, found.names)
    passes.note(tenant_id, found)
    return findings


def passes_over(store: ObjectStore, reader: UsageLogReader) -> ReusedIds:
    """Looks for ids that came twice; what it fetches of an object store is kept in one folder of this machine."""
    return ReusedIds(store, reader, RunCache(Path(tempfile.gettempdir()) / "cloudbilling-id-runs"))


def voided_since(reader: UsageLogReader, tenant_id: str, since: Cut | None, cut: Cut) -> list[dict[str, Any]]:
    """The finding about events that passes voided behind `since` (None: ever) and that are voided still at `cut`.

    `since` is the cut of the last run that is final: whatever ended between that one and this run, nothing is left out.
    """
    amended, rows = amendments_at(reader, tenant_id, cut, since=since)
    event = [pl.col("detail").str.json_path_match(f"$.event.{name}").alias(name) for name in ("source", "id", "key")]
    is_reused = pl.col("detail").str.json_path_match("$.why") == ID_REUSED
    voided = (
        rows.filter(is_reused)
        .sort("received_at", "lane", "number", "row")
        .select(event)
        .unique(maintain_order=True)
        .join(amended.touched.filter("voided"), on=["key", "source", "id"], how="semi", maintain_order="left")
    )
    if not voided.height:
        return []
    listed = voided.head(LISTED_MAX).rename({"key": "customer"}).to_dicts()
    return [{"code": "id_reused", "events": voided.height, "listed": listed}]


def reused_often(counts: Sequence[tuple[str, int]]) -> dict[str, Any]:
    return {
        "code": "id_reused_often",
        "ids": sum(count for _, count in counts),
        "sources": [{"source": source, "ids": count} for source, count in counts[:LISTED_MAX]],
        "detail": "so many ids came under several customers that nothing was voided: all these events count. If a "
        "source numbers its events per customer, name it in the tenant's settings as unique_within_customer "
        "(POST /v1/tenant-settings)",
    }
