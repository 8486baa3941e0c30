"""Exact deduplication with bounded memory: how fast, and how much memory, with many ids already seen.

Ids go through what a shard uses: a table of recent ids, checkpoints into sorted runs with filters, merges. The memory
that counts is the process's own (anonymous); runs and filters are mapped and belong to the page cache. The curve says
what a look costs at 1, 10 and 100 million ids of the same run: by processor time, so a busy machine bends it less.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from storage.object_store import LocalObjectStore
from storage.usage_log.id_runs import IdRuns, merge_runs, sort_ids, to_merge, write_run
from storage.usage_log.manifest import IdRun
from storage.usage_log.partitions import EventIds
from storage.usage_log.recent_ids import RecentIds, stamp_of
from storage.usage_log.run_cache import RunCache

IDS = {"small": 400_000, "normal": 20_000_000, "long": 100_000_000}
BATCH = 10_000
MARKS = (100_000, 400_000, 1_000_000, 10_000_000, 20_000_000, 100_000_000)  # where the curve is measured
LOOKS = 60  # batches of each mark
OWN_MB_MAX = {"small": 200, "normal": 400, "long": 1_900}  # a merge of 64 million ids is the peak of the long one


def run(size: str, say: Callable[[str], None]) -> dict[str, object]:
    ids, checkpoint = IDS[size], 100_000 if size == "small" else 1_000_000
    process = psutil.Process()
    with tempfile.TemporaryDirectory(prefix="cb-bench-") as name:
        directory = Path(name)
        store = LocalObjectStore(directory)
        recent, opened, runs = RecentIds(), IdRuns(), list[IdRun]()
        base_mb = _own_mb(process)
        peak_mb, waits_first, waits_last, checkpoints_s = 0.0, list[float](), list[float](), 0.0
        curve: list[dict[str, object]] = []
        for number in range(ids // BATCH):
            batch = _ids(number)
            began = time.perf_counter()
            assert not opened.contains(batch).any()
            new = recent.add(batch, stamp_of(0, number))
            waits = (time.perf_counter() - began) * 1000
            assert new.all()
            (waits_first if number < ids // BATCH // 4 else waits_last).append(waits)
            if len(recent) >= checkpoint:
                began = time.perf_counter()
                held, _ = recent.export()
                runs.append(write_run(store, sort_ids(held)))
                while group := to_merge(runs):
                    runs = [run for run in runs if run not in group] + [merge_runs(store, group, RunCache(directory))]
                opened = opened.with_runs(store, runs, RunCache(directory))
                recent = RecentIds()
                checkpoints_s += time.perf_counter() - began
                peak_mb = max(peak_mb, _own_mb(process) - base_mb)
            seen = (number + 1) * BATCH
            if seen in MARKS:
                curve.append({"ids": seen, **_mark(store, opened, recent, runs, number)})
                say(f"{curve[-1]}, own memory at most {peak_mb:.0f} MB")
        say(f"{ids:,} ids in {len(runs)} runs, own memory at most {peak_mb:.0f} MB")
        repeats = list[float]()
        for number in np.random.default_rng(5).integers(0, ids // BATCH, 30):
            batch = _ids(int(number))
            began = time.perf_counter()
            found = opened.contains(batch) | recent.contains(batch)
            repeats.append((time.perf_counter() - began) * 1000)
            assert found.all(), "an id that was seen is not known any more"
        on_disk = sum(path.stat().st_size for run in runs for path in (directory / run.key, directory / run.filter_key))
        assert peak_mb < OWN_MB_MAX[size], f"{peak_mb:.0f} MB of memory for {ids:,} ids"
        late = float(np.percentile(waits_last[-500:], 50))
        return {
            "figure": round(peak_mb),
            "unit": f"MB of own memory at most, {ids:,} ids seen",
            "runs": len(runs),
            "lookup_new_ms": round(late, 2),
            "lookup_new_first_ms": round(float(np.percentile(waits_first[:50], 50)), 2),
            "lookup_repeats_ms": round(float(np.percentile(repeats, 50)), 2),
            "ids_s": round(BATCH / late * 1000),
            "checkpoint_us_an_id": round(checkpoints_s / ids * 1e6, 3),
            "bytes_an_id": round(on_disk / ids, 1),
            "curve": curve,
            "checksum": ids,
        }


def _mark(
    store: LocalObjectStore, opened: IdRuns, recent: RecentIds, runs: list[IdRun], last: int
) -> dict[str, object]:
    """What looking up 10,000 ids costs now: all new, and all seen before; milliseconds of processor time."""
    dice = np.random.default_rng(7)
    new, old = list[float](), list[float]()
    for look in range(LOOKS):
        for waits, number in ((new, 1 << 40 | look), (old, int(dice.integers(0, last + 1)))):
            batch = _ids(number)
            began = time.process_time()
            found = opened.contains(batch) | recent.contains(batch)
            waits.append((time.process_time() - began) * 1000)
            assert found.all() == (waits is old)
    keys = [key for run in runs for key in (run.key, run.filter_key)]
    held = sum((store.root / key).stat().st_size for key in keys)
    mapped = sum((store.root / run.filter_key).stat().st_size for run in runs)
    return {
        "runs": len(runs),
        "new_ms": round(float(np.median(new)), 2),
        "seen_ms": round(float(np.median(old)), 2),
        "disk_mb": round(held / 1e6),
        "filters_mb": round(mapped / 1e6),
    }


def _ids(number: int) -> EventIds:
    dice = np.random.default_rng([11, number])
    return EventIds(
        dice.integers(0, 1 << 64, BATCH, dtype=np.uint64), dice.integers(0, 1 << 32, BATCH, dtype=np.uint32)
    )


def _own_mb(process: psutil.Process) -> float:
    memory = process.memory_info()
    return (memory.rss - getattr(memory, "shared", 0)) / 1e6
