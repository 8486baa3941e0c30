"""The proof that a tenant's usage is whole: its log read again from the first number on, counted in two ways.

Owns what has to agree. Bytes, digests, rows and counters of segments and sealed files are the business of
`storage/usage_log/proving.py`; here the events that readers get are counted as they were sent, and once more as they
count: rated, in suspense, voided. Nothing that was folded before is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from billing.amendments import IDENTITY
from billing.lateness import reasons_of
from billing.master import MasterData
from storage.object_store import StoreUnavailable
from storage.usage_log.backfills import backfills_at, scan_sent
from storage.usage_log.counting import amendments_at, scan_counting
from storage.usage_log.lane import LogBroken
from storage.usage_log.proving import UNREADABLE, Difference, ends_of_lanes, prove_log
from storage.usage_log.reader import Cut, UsageLogReader


@dataclass(frozen=True)
class Proof:
    """All events of a tenant at one cut, and how many its lanes' writers counted when they stored them.

    `rated`, `suspended` and `voided` are None where the log cannot be read through: `differences` say what is broken,
    the first of `found`. `of_erased` are amended events whose own row was erased since: they are counted, not stored.
    """

    stored: int
    counted: int
    rated: int | None = 0
    suspended: int | None = 0
    voided: int | None = 0
    of_erased: int = 0
    differences: tuple[Difference, ...] = ()
    found: int = 0

    def shown_differences(self) -> list[dict[str, Any]]:
        """As JSON has them."""
        return [
            {
                "day": None if one.day is None else one.day.isoformat(),
                "lane": one.lane,
                "number": one.number,
                "object": one.key,
                "detail": one.detail,
            }
            for one in self.differences
        ]

    @property
    def complete(self) -> bool:
        if self.found or self.rated is None or self.suspended is None or self.voided is None:
            return False
        counts = self.rated + self.suspended + self.voided - self.of_erased
        return self.stored == self.counted == counts


def prove_usage(reader: UsageLogReader, tenant_id: str, master: MasterData, now: datetime) -> Proof:
    """Read all of it. Raises StoreUnavailable where the store does not answer, and for a fault that names nothing."""
    try:
        cut = reader.now()
    except LogBroken:  # what follows names where
        cut = ends_of_lanes(reader.store)
    log = prove_log(reader.store, tenant_id, cut)
    try:
        counted = log.counted + backfills_at(reader, tenant_id, cut).events
        stored, rated, suspended, voided, orphans = _counts(reader, tenant_id, master, cut, now)
    except (LogBroken, StoreUnavailable, *UNREADABLE):
        if not log.found:
            raise
        return Proof(log.events, log.counted, None, None, None, 0, log.differences, log.found)
    # More of them than were erased means that rows are gone without a proof: then they excuse nothing.
    of_erased = orphans if orphans <= log.erased else 0
    return Proof(stored, counted, rated, suspended, voided, of_erased, log.differences, log.found)


def _counts(
    reader: UsageLogReader, tenant_id: str, master: MasterData, cut: Cut, now: datetime
) -> tuple[int, int, int, int, int]:
    """Events as sent; rated, in suspense and voided ones; amended ones of which nothing was sent."""
    amended, _ = amendments_at(reader, tenant_id, cut)
    stored = 0
    there: list[pl.DataFrame] = [amended.touched.select(IDENTITY).clear()]
    for frame in scan_sent(reader, tenant_id, cut):
        stored += frame.height
        if amended.touched.height:
            named = frame.select(pl.col("customer").alias("key"), "source", "id")
            there.append(named.join(amended.touched, on=list(IDENTITY), how="semi"))
    orphans = amended.touched.join(pl.concat(there), on=list(IDENTITY), how="anti").height
    rated = suspended = 0
    for frame in scan_counting(reader, tenant_id, cut, amended=amended):
        is_rated = reasons_of(frame, master, now).is_null()
        rated += int(is_rated.sum())
        suspended += int((~is_rated).sum())
    return stored, rated, suspended, amended.touched.filter("voided").height, orphans
