"""Bytes an event on disk: in lane segments of 10,000 and 1,000 rows, in sealed files, and its id in the runs.

The same events with ids as senders make them: UUIDv7, UUIDv4, and numbers one after the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import numpy as np
import polars as pl

from benchmarks.usage_events import TENANT, make_events
from billing.typed_columns import Reads
from storage.object_store import LocalObjectStore
from storage.usage_log.genesis import open_log
from storage.usage_log.id_runs import sort_ids, write_run
from storage.usage_log.partitions import event_ids, partitions_of
from storage.usage_log.sealed_files import write_sealed
from storage.usage_log.segment import ROW_SCHEMA, Counters, SegmentHead, encode_segment, with_positions

EVENTS = {"small": 20_000, "normal": 1_000_000, "long": 2_000_000}
BATCH = 10_000


def run(size: str, say: Callable[[str], None]) -> dict[str, object]:
    found: dict[str, dict[str, float]] = {}
    for kind in ("uuid7", "uuid4", "numbers"):
        found[kind] = _measured(EVENTS[size], kind)
        say(f"{kind}: {found[kind]}")
    best = found["uuid7"]
    return {
        "figure": round(best["segment_10k"] + best["id_runs"], 1),
        "unit": "bytes an event in segments of 10,000 rows, its id in the runs included, UUIDv7 ids",
        "bytes": found,
        "checksum": EVENTS[size],
    }


def _measured(events: int, kind: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="cb-bench-") as name:
        store = LocalObjectStore(Path(name))
        seed = open_log(store).seed
        segments = {10_000: 0, 1_000: 0}
        kept: list[pl.DataFrame] = []
        sealed = 0
        for first in range(0, events, BATCH):
            batch = _with_ids(make_events(BATCH, first), kind, first)
            partitions = partitions_of(seed, TENANT, batch["customer"])
            rows = batch.with_columns(
                pl.lit(TENANT).alias("tenant"),
                pl.Series("partition", partitions),
                pl.lit(0, pl.UInt8).alias("kind"),
                pl.lit(None, pl.String).alias("detail"),
            ).select(ROW_SCHEMA.names())
            for size in segments:
                for start in range(0, BATCH, size):
                    part = rows.slice(start, size).sort("partition")
                    head = SegmentHead(0, first + start, 1, "n" * 32, 1, "d" * 32, counters={TENANT: Counters(size)})
                    segments[size] += len(encode_segment(head, part))
                    if size == BATCH:
                        kept.append(with_positions(part, head))
        whole = pl.concat(kept)
        names = whole.select("type", pl.col("data").str.extract(r'"(\w+)":"[0-9.]+"').alias("name")).unique()
        reads = Reads({kind: frozenset({name}) for kind, name in names.iter_rows()}, {})
        for file in write_sealed(store, whole, {TENANT: reads}):
            sealed += file.bytes
        ids = event_ids(seed, TENANT, whole, whole["partition"].to_numpy())
        written = write_run(store, sort_ids(ids))
        runs = sum((store.root / key).stat().st_size for key in (written.key, written.filter_key))
        return {
            "segment_10k": round(segments[10_000] / events, 1),
            "segment_1k": round(segments[1_000] / events, 1),
            "sealed": round(sealed / events, 1),
            "id_runs": round(runs / events, 1),
        }


def _with_ids(events: pl.DataFrame, kind: str, first: int) -> pl.DataFrame:
    if kind == "uuid7":
        return events
    if kind == "numbers":
        return events.with_columns(pl.Series("id", [f"event-{first + number}" for number in range(events.height)]))
    data = np.random.default_rng([17, first]).bytes(16 * events.height)
    ids = [str(UUID(bytes=data[at : at + 16], version=4)) for at in range(0, len(data), 16)]
    return events.with_columns(pl.Series("id", ids))
