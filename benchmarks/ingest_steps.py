"""Where the road of usage spends its processor time: microseconds an event of each step, in one process, without HTTP.

The steps are those of a request of 10,000, 1,000 and one event, in their order, each run by itself over prepared input;
then the whole road (body to answer, eight requests at a time, live figures folded) as it runs. Processor time, not wall
time: what other work on the machine does is not in it, save for what it takes from the caches.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import structlog

from actors.batches import NO_REASON, Answer, Block, decode_answer, decode_batch, encode_answer, encode_batch
from actors.local_router import LocalUsageRouter
from benchmarks.ingest import bodies
from benchmarks.platform import STEPS
from benchmarks.runner import Say
from billing.live_state import fold_days
from billing.master import MasterData
from billing.usage_formats import as_lines, parse_together
from billing.verdicts import classify
from deployments.usage_groups import UsageGroups
from deployments.usage_ingest import answer_of
from storage.object_store import LocalObjectStore
from storage.usage_log.partitions import EventIds, event_ids, partitions_of
from storage.usage_log.recent_ids import RecentIds, stamp_of
from storage.usage_log.segment import Counters, SegmentHead, digest_of, encode_segment

TENANT = "0198f0aa-0000-7000-8000-0000000000be"
NDJSON = "application/x-ndjson"
SEED = 7
AT_ONCE = 8


@dataclass(frozen=True)
class Size:
    """Events of the whole road by rows a request, repetitions of a single step by events, customers."""

    events: dict[int, int]
    step_events: int
    customers: int


SIZES = {
    "small": Size({1_000: 3_000, 1: 20}, 1_000, 20),
    "normal": Size({10_000: 600_000, 1_000: 300_000, 1: 4_000}, 200_000, 2_000),
    "long": Size({10_000: 4_000_000, 1_000: 2_000_000, 1: 20_000}, 1_000_000, 10_000),
}


@dataclass(frozen=True)
class FixedMaster:
    """The master data of one tenant that never change."""

    data: MasterData

    def newest(self, tenant_id: str, *, at_least: int = 0) -> tuple[int, MasterData]:
        return 1, self.data

    def cached(self, tenant_id: str, *, at_least: int = 0) -> tuple[int, MasterData]:
        return 1, self.data

    def at(self, tenant_id: str, number: int) -> MasterData:
        return self.data


def master_data(customers: int) -> MasterData:
    """The catalog of the HTTP benchmarks (`benchmarks/platform.py`) and that many subscribed customers."""
    steps: list[dict[str, Any]] = list(STEPS)
    for number in range(customers):
        steps.append({"at": "2026-01-01", "customer": {"code": f"c{number}", "name": f"C {number}", "country": "DE"}})
        subscription = {"code": f"s{number}", "customer": f"c{number}", "plan": "basic", "anchor": "calendar"}
        steps.append({"at": "2026-01-01", "subscribe": subscription})
    return MasterData.start({"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"}).apply_all(steps)


def run(size: str, say: Say) -> dict[str, Any]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    chosen = SIZES[size]
    master = FixedMaster(master_data(chosen.customers))
    steps: dict[str, dict[str, float]] = {}
    whole: dict[str, float] = {}
    for batch, events in chosen.events.items():
        steps[str(batch)] = of_steps(batch, min(chosen.step_events, events), chosen.customers, master.data)
        for name, us in steps[str(batch)].items():
            say(f"{batch:>6} a request: {us:8.2f} us an event: {name}")
        whole[str(batch)] = of_road(batch, events, chosen.customers, master)
        say(f"{batch:>6} a request: {whole[str(batch)]:8.2f} us an event: the whole road, with the folding")
    largest = next(iter(whole))
    return {
        "figure": round(whole[largest], 2),
        "unit": f"us of processor time an event, {largest} a request",
        "whole": {batch: round(us, 2) for batch, us in whole.items()},
        "steps": {batch: {name: round(us, 3) for name, us in each.items()} for batch, each in steps.items()},
    }


def of_steps(batch: int, events: int, customers: int, master: MasterData) -> dict[str, float]:
    """Processor time of each step in microseconds an event."""
    sent = bodies(events, batch, customers, seed=batch)
    book, now = master.rating_book(), datetime.now(UTC)
    found: dict[str, float] = {}

    def measured(name: str, inputs: Sequence[Any], step: Callable[[Any], Any]) -> list[Any]:
        step(inputs[0])  # what is made once per process
        began = time.process_time()
        results = [step(one) for one in inputs]
        found[name] = (time.process_time() - began) * 1e6 / events
        return results

    def taken(body: bytes) -> Any:
        lines = as_lines(body, NDJSON)
        assert lines is not None
        return lines

    lines = measured("lines", sent, taken)
    parsed = [one[0] for one in measured("parse and rules", lines, lambda one: parse_together([one]))]
    frames: list[pl.DataFrame] = [one.events for one in parsed]
    assert sum(frame.height for frame in frames) == events
    partitions = measured("partitions", frames, lambda one: partitions_of(SEED, TENANT, one["customer"]))
    pairs = list(zip(frames, partitions, strict=True))
    ids: list[EventIds] = measured("ids", pairs, lambda one: event_ids(SEED, TENANT, one[0], one[1]))
    triples = list(zip(frames, partitions, ids, strict=True))
    batches = measured("batch, encoded", triples, lambda one: encode_batch([Block(TENANT, one[0].height)], *one))
    measured("batch, decoded", batches, decode_batch)
    recent = RecentIds()
    recent.add(ids[0], stamp_of(0, 1))
    measured("dedup", ids, lambda one: recent.add(one, stamp_of(0, 2)))
    measured("verdicts", frames, lambda one: classify(one, book, now))
    rows = measured("rows by partition", pairs, _rows)
    segments = measured("segment, encoded", rows, lambda one: encode_segment(_head(one.height), one))
    measured("digest", segments, digest_of)
    with tempfile.TemporaryDirectory(prefix="cb-bench-") as folder:
        store = LocalObjectStore(Path(folder))
        numbered = list(enumerate([segments[0], *segments]))
        measured("put with fsync", numbered[1:], lambda one: store.create(f"log/{one[0]}{len(numbered)}", one[1]))
    joined = [pl.concat(frames[first : first + 200]) for first in range(0, len(frames), 200)]
    measured("folding", joined, lambda one: fold_days(one, book))
    none = np.zeros(batch, np.uint8)
    reasons = np.full(batch, NO_REASON, np.uint8)
    answers = measured("answer of the shard", frames, lambda _: encode_answer(Answer(none, reasons, 0, 1, 1, {})))
    measured("answer, decoded", answers, decode_answer)
    return found


def _rows(pair: tuple[pl.DataFrame, Any]) -> pl.DataFrame:
    """As the shard puts rows of one tenant together (actors/rating_shard.py)."""
    events, partitions = pair
    order = np.argsort(partitions, kind="stable")
    count = len(order)
    tenants = pl.Series("tenant", [TENANT], dtype=pl.String).new_from_index(0, count)
    kinds = pl.Series("kind", [0], dtype=pl.UInt8).new_from_index(0, count)
    details = pl.Series("detail", [None], dtype=pl.String).new_from_index(0, count)
    return pl.DataFrame(
        [tenants, pl.Series("partition", partitions[order]), kinds, *events[order].get_columns(), details]
    )


def _head(rows: int) -> SegmentHead:
    return SegmentHead(0, 1, 1, "nonce", 1, "", rows=rows, counters={TENANT: Counters(rows)})


def of_road(batch: int, events: int, customers: int, master: FixedMaster) -> float:
    """Processor time of the whole road in microseconds an event: body in, answer out, figures folded."""
    sent = bodies(events, batch, customers, seed=batch + 1)
    warm = bodies(batch, batch, customers, seed=batch + 2)
    with tempfile.TemporaryDirectory(prefix="cb-bench-") as folder:
        return asyncio.run(_road(Path(folder), sent, warm, events, batch, master))


async def _road(
    folder: Path, sent: Sequence[bytes], warm: Sequence[bytes], events: int, batch: int, master: FixedMaster
) -> float:
    router = LocalUsageRouter.open(LocalObjectStore(folder), master=master)
    groups = UsageGroups(router)
    accepted = 0

    async def one_by_one(waiting: Any) -> None:
        nonlocal accepted
        for body in waiting:
            lines = as_lines(body, NDJSON)
            assert lines is not None
            outcome = await groups.send(TENANT, lines, None, lambda _: None)
            assert outcome.result is not None
            answer_of(outcome, "/v1/usage", 1_000)
            accepted += int((outcome.result.verdicts == 0).sum())

    try:
        await one_by_one(warm)
        began = time.process_time()
        queue = iter(sent)
        await asyncio.gather(*(one_by_one(queue) for _ in range(AT_ONCE)))
        usage = await router.usage(TENANT, ["c0"])  # folds what is not folded yet
        spent = time.process_time() - began
        assert accepted == events + batch, f"{accepted} accepted of {events + batch}"
        assert usage.live is not None
    finally:
        await router.close()
    return spent * 1e6 / events
