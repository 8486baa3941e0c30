"""What one rating shard takes, without HTTP and Ray: durable, deduplicated events a second, in batches of 10k and 1k.

Peer in the same run: a bare `polars.read_ndjson` of the same events, which stores and checks nothing.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import polars as pl

from actors.batches import Block, decode_answer, encode_batch
from actors.rating_shard import RatingShard
from benchmarks.usage_events import TENANT, make_events
from storage.object_store import LocalObjectStore
from storage.usage_log.partitions import event_ids, partitions_of
from storage.usage_log.reader import UsageLogReader

BATCHES = {"small": (3, 10), "normal": (100, 400), "long": (1_000, 2_000)}  # of 10,000 and of 1,000 events
IN_FLIGHT = 8
REPEATS = 0.1  # of the batches of 10,000 come twice


def run(size: str, say: Callable[[str], None]) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="cb-bench-") as directory:
        store = LocalObjectStore(Path(directory))
        shard = RatingShard(0, store)
        shard.start()
        large, small = BATCHES[size]
        fast, latencies, stored = _feed(shard, 10_000, large, 0)
        say(f"batches of 10,000: {fast:,.0f} events/s")
        slower, _, stored_small = _feed(shard, 1_000, small, large * 10_000)
        say(f"batches of 1,000: {slower:,.0f} events/s")
        shard.stop()
        reader = UsageLogReader(store)
        ids = sum(frame.height for frame in reader.scan(TENANT, reader.now()))
        assert ids == stored + stored_small, f"{stored + stored_small} acknowledged, {ids} in the log"
        on_disk = sum(path.stat().st_size for path in Path(directory).rglob("*.parquet"))
        bare, event_bytes = _bare(10 if size == "small" else 50)
    return {
        "figure": round(fast),
        "unit": "events/s, one shard, batches of 10,000, 10 % repeats",
        "batches_of_1000": round(slower),
        "p50_ms": round(float(np.percentile(latencies, 50)), 1),
        "p95_ms": round(float(np.percentile(latencies, 95)), 1),
        "p99_ms": round(float(np.percentile(latencies, 99)), 1),
        "ratio_read_ndjson": round(fast / bare, 2),
        "event_bytes_sent": round(event_bytes, 1),
        "bytes_an_event": round(on_disk / ids, 1),
        "ids": "UUIDv7",
        "checksum": ids,
    }


def _feed(shard: RatingShard, rows: int, batches: int, first: int) -> tuple[float, list[float], int]:
    assert shard.genesis is not None
    seed = shard.genesis.seed
    prepared = [make_events(rows, first + number * rows) for number in range(batches)]
    order = [
        frame for number, frame in enumerate(prepared) for _ in range(2 if number % round(1 / REPEATS) == 1 else 1)
    ]
    waiting: deque[tuple[float, Future[bytes]]] = deque()
    latencies: list[float] = []
    stored = repeated = 0

    def collect() -> None:
        nonlocal stored, repeated
        sent, future = waiting.popleft()
        answer = decode_answer(future.result(60))
        assert answer.failed is None, answer.detail
        stored += int((answer.verdicts == 0).sum())
        repeated += int((answer.verdicts == 1).sum())
        latencies.append((time.perf_counter() - sent) * 1000)

    began = time.perf_counter()
    for events in order:
        sent = time.perf_counter()
        partitions = partitions_of(seed, TENANT, events["customer"])
        data = encode_batch(
            [Block(TENANT, events.height)], events, partitions, event_ids(seed, TENANT, events, partitions)
        )
        waiting.append((sent, shard.submit(data)))
        if len(waiting) >= IN_FLIGHT:
            collect()
    while waiting:
        collect()
    elapsed = time.perf_counter() - began
    assert stored == rows * batches, f"{rows * batches} distinct events sent, {stored} stored"
    assert repeated == rows * (len(order) - batches)
    return rows * len(order) / elapsed, latencies, stored


def _bare(batches: int) -> tuple[float, float]:
    events = make_events(10_000, 0)
    body = io.BytesIO()
    events.with_columns(pl.col("time").dt.strftime("%Y-%m-%dT%H:%M:%SZ")).drop("subscription").write_ndjson(body)
    data = body.getvalue()
    began = time.perf_counter()
    for _ in range(batches):
        assert pl.read_ndjson(data).height == 10_000
    return 10_000 * batches / (time.perf_counter() - began), len(data) / 10_000
