"""Usage as it counts: the events of a cut, backfills among them, with their amendments in it, voided ones left out.

Owns how amendments are read beside usage, and the mark that says whether a tenant has any at all: who has none pays
one look into the store. What amendments mean is `billing/amendments.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import polars as pl

from billing.amendments import ORIGIN_SCHEMA, Amended, fold_amendments
from billing.typed_columns import Reads
from storage.object_store import ObjectStore
from storage.usage_log.backfills import backfills_at, scan_sent
from storage.usage_log.reader import DECIDED_SCHEMA, SCAN_SCHEMA, Cut, UsageLogReader


def mark_amended(store: ObjectStore, tenant_id: str) -> None:
    """Note that a tenant has amendments, before the first is put: readers look for it."""
    store.create(_mark(tenant_id), b"{}")


def amendments_at(
    reader: UsageLogReader, tenant_id: str, cut: Cut, *, since: Cut | None = None
) -> tuple[Amended, pl.DataFrame]:
    """What amendments say at a cut, and their rows (DECIDED_SCHEMA); with `since` those that came after it alone."""
    frames: list[pl.DataFrame] = []
    if reader.store.exists(_mark(tenant_id)):
        frames = list(reader.scan_changes(tenant_id, cut, since=since))
    rows = pl.concat(frames) if frames else pl.DataFrame(schema=DECIDED_SCHEMA)
    of_backfill = pl.col("detail").str.json_path_match("$.event.backfill")
    if rows.height and rows.select(of_backfill.is_not_null().any()).item():
        # What was amended of a backfill counts no more once that is reverted.
        counting = backfills_at(reader, tenant_id, cut).counting
        rows = rows.filter(of_backfill.is_null() | of_backfill.is_in(list(counting)))
    return fold_amendments(rows), rows


def scan_counting(
    reader: UsageLogReader,
    tenant_id: str,
    cut: Cut,
    *,
    amended: Amended | None = None,
    customers: Sequence[str] | None = None,
    partitions: Sequence[int] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    typed: bool = False,
    narrow: Reads | None = None,
) -> Iterator[pl.DataFrame]:
    """Events of a cut as they count, each once: frames of SCAN_SCHEMA, then of SCAN_SCHEMA and ORIGIN_SCHEMA.

    `partitions` (of the keys that rows lie under) prune what is read: an amended event may be of another one's key.
    With `narrow` frames may have fewer columns (`UsageLogReader.scan`).
    With `typed` those that were sealed have typed columns besides; they say what the text says, but sooner.
    An amended event has the position of the row that gave it its state, and source and id as it was sent; one of a
    backfill (its frames have the column `backfill`) that of the record that committed it.
    """
    known = amendments_at(reader, tenant_id, cut)[0] if amended is None else amended
    if known.touched.height:
        narrow = None  # who is amended is told by source and id
    for frame in scan_sent(
        reader,
        tenant_id,
        cut,
        customers=customers,
        partitions=partitions,
        start=start,
        end=end,
        typed=typed,
        narrow=narrow,
    ):
        counting = known.without(frame)
        if counting.height:
            yield counting
    events = known.events
    if customers is not None:
        events = events.filter(pl.col("customer").is_in(list(customers)))
    if start is not None:
        events = events.filter(pl.col("time") >= start)
    if end is not None:
        events = events.filter(pl.col("time") < end)
    if events.height:
        yield events.select(*SCAN_SCHEMA.names(), *ORIGIN_SCHEMA.names())


def _mark(tenant_id: str) -> str:
    return f"log/amended/{tenant_id}.json"
