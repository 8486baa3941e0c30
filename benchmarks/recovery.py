"""A shard is gone: how long until the next acknowledgement, with a full tail to read (snapshot + 1 million events).

Measured on the plain class: the successor's start (recover, claim) and its first commit. Under Ray comes the start of
an actor's process on top, 1.5 to 2.5 s here.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from actors.batches import Block, decode_answer, encode_batch
from actors.rating_shard import RatingShard, ShardSettings
from benchmarks.usage_events import TENANT, make_events
from storage.object_store import LocalObjectStore
from storage.usage_log.partitions import event_ids, partitions_of

TAIL = {"small": 30_000, "normal": 1_000_000, "long": 1_000_000}
ROUNDS = {"small": 3, "normal": 5, "long": 20}


def run(size: str, say: Callable[[str], None]) -> dict[str, object]:
    settings = ShardSettings(checkpoint_rows=10**9, checkpoint_s=1e9)  # the whole tail is read each time
    with tempfile.TemporaryDirectory(prefix="cb-bench-") as directory:
        store = LocalObjectStore(Path(directory))
        shard = RatingShard(0, store, settings=settings)
        shard.start()
        for first in range(0, TAIL[size], 10_000):
            assert _send(shard, first, 10_000) == 10_000
        times: list[float] = []
        for number in range(ROUNDS[size]):
            # The predecessor is left as it is: to the lane a hung writer and a dead one are the same.
            predecessor = shard
            began = time.perf_counter()
            shard = RatingShard(0, store, settings=settings)
            shard.start()
            assert _send(shard, TAIL[size] + number * 10, 10) == 10
            times.append(time.perf_counter() - began)
            assert _send(shard, TAIL[size] - 10_000, 10_000) == 0, "an id was forgotten"
            predecessor.stop()
        shard.stop()
    say(f"{TAIL[size]:,} events of tail: {np.median(times):.2f} s")
    return {
        "figure": round(float(np.median(times)), 3),
        "unit": f"s from the successor's start to its first acknowledgement, {TAIL[size]:,} events of tail",
        "p50_ms": round(float(np.percentile(times, 50)) * 1000),
        "p95_ms": round(float(np.percentile(times, 95)) * 1000),
        "p99_ms": round(float(np.percentile(times, 99)) * 1000),
        "events_s": round(TAIL[size] / float(np.median(times))),
        "checksum": TAIL[size],
    }


def _send(shard: RatingShard, first: int, rows: int) -> int:
    assert shard.genesis is not None
    events = make_events(rows, first)
    partitions = partitions_of(shard.genesis.seed, TENANT, events["customer"])
    ids = event_ids(shard.genesis.seed, TENANT, events, partitions)
    answer = decode_answer(shard.submit(encode_batch([Block(TENANT, rows)], events, partitions, ids)).result(60))
    assert answer.failed is None, answer.detail
    return int((answer.verdicts == 0).sum())
