"""Id runs of an object store on a machine: a bound in bytes, the least recently used first, never one that is open."""

from __future__ import annotations

import fcntl
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from actors.rating_shard import RatingShard, ShardSettings
from billing.usage import Verdict
from storage.object_store import LocalObjectStore
from storage.usage_log.id_runs import IdRuns, sort_ids, write_run
from storage.usage_log.partitions import EventIds
from storage.usage_log.run_cache import RunCache
from tests.usage_log_support import logged_ids, make_events, send


class Remote(LocalObjectStore):
    """A store whose objects are no files of this machine; counts what is fetched of id runs."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.fetched: Counter[str] = Counter()

    def get(self, key: str) -> bytes | None:
        if key.startswith("log/ids/"):
            self.fetched[key] += 1
        return super().get(key)

    def local_path(self, key: str) -> Path | None:
        return None


def some_ids(first: int, count: int) -> EventIds:
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return EventIds(numbers * np.uint64(0x9E3779B97F4A7C15), numbers.astype(np.uint32))


def files(cache: RunCache) -> set[str]:
    return {path.name for path in cache.directory.iterdir() if path.suffix != ".lock"}


def size(cache: RunCache) -> int:
    return sum((cache.directory / name).stat().st_size for name in files(cache))


def test_beyond_the_bound_the_least_recently_used_goes(tmp_path: Path) -> None:
    cache = RunCache(tmp_path, 350)
    for name in ("a", "b", "c"):
        cache.open(f"{name}.run", lambda: bytes(100)).close()
    cache.open("a.run", _not_fetched).close()  # used again: b is older now
    lease = cache.open("d.run", lambda: bytes(100))
    assert files(cache) == {"a.run", "c.run", "d.run"}
    assert size(cache) <= 350
    lease.close()
    cache.open("c.run", _not_fetched).close()
    cache.open("e.run", lambda: bytes(200)).close()
    assert files(cache) == {"c.run", "e.run"}


def _not_fetched() -> bytes:
    raise AssertionError("it is there")


def test_what_is_open_stays_beyond_the_bound_also_if_another_process_has_it(tmp_path: Path) -> None:
    cache = RunCache(tmp_path, 100)
    mine = cache.open("mine.run", lambda: bytes(100))
    cache.open("theirs.run", lambda: bytes(100)).close()
    code = f"""
import sys
from pathlib import Path
from storage.usage_log.run_cache import RunCache
lease = RunCache(Path({str(tmp_path)!r}), 100).open("theirs.run", lambda: bytes(100))
print("open", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        cache.trim()
        cache.open("third.run", lambda: bytes(100)).close()
        assert {"mine.run", "theirs.run"} <= files(cache)
        other.send_signal(signal.SIGKILL)  # its lock goes with it
        other.wait()
    cache.trim()
    assert files(cache) == {"mine.run"}
    mine.close()
    cache.trim(room=1)
    assert files(cache) == set()


def test_a_fetch_that_died_leaves_nothing_for_good_and_no_half_file_under_the_name(tmp_path: Path) -> None:
    cache = RunCache(tmp_path, 1_000)
    code = f"""
import os, signal
from pathlib import Path
from storage.usage_log import run_cache
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
run_cache.RunCache(Path({str(tmp_path)!r}), 1_000).open("a.run", lambda: bytes(100))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    (left,) = files(cache)
    assert left.endswith(".draft")
    assert cache.open("a.run", lambda: b"x" * 100).path.read_bytes() == b"x" * 100
    assert files(cache) == {"a.run"}


def test_a_file_that_is_removed_between_its_opening_and_its_lock_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = RunCache(tmp_path, 1_000)
    cache.open("a.run", lambda: b"old").close()
    flock, calls = fcntl.flock, 0

    def late(descriptor: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / "a.run").unlink()  # a trim of another process
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    lease = cache.open("a.run", lambda: b"new")
    assert lease.path.read_bytes() == b"new"
    assert os.fstat(os.open(lease.path, os.O_RDONLY)).st_nlink == 1


def test_many_at_once_find_every_id_with_a_bound_that_holds_next_to_nothing(tmp_path: Path) -> None:
    store = Remote(tmp_path / "store")
    cache = RunCache(tmp_path / "cache", 20_000)  # a run and a half, of eight
    runs = [write_run(store, sort_ids(some_ids(1_000 * number, 1_000))) for number in range(8)]
    faults: list[str] = []

    def looking(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            number = chance.randrange(8)
            opened = IdRuns().with_runs(store, [runs[number]], RunCache(cache.directory, cache.bytes_max))
            if not opened.contains(some_ids(1_000 * number, 1_000)).all():
                faults.append(f"an id of run {number} is not known")
            if opened.contains(some_ids(1_000 * ((number + 1) % 8), 1_000)).any():
                faults.append("an id is known that was never there")

    threads = [threading.Thread(target=looking, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert max(store.fetched.values()) > 1, "nothing was ever removed"
    cache.trim()
    assert size(cache) <= 20_000


def test_repeats_are_found_while_runs_are_removed_and_fetched_again(tmp_path: Path) -> None:
    """Two shards of a node with a bound below their runs, restarted again and again: every event is stored once."""
    store = Remote(tmp_path / "store")
    settings = ShardSettings(checkpoint_rows=50, id_cache_bytes_max=1)
    directory = tmp_path / "cache"
    accepted = 0
    for turn in range(8):
        # One after the other: what one has let go of, the other's fetches remove.
        for lane in (0, 1):
            shard = RatingShard(lane, store, settings=settings, cache_directory=directory)
            shard.start()
            try:
                for first in range(0, 60 * (turn + 1), 60):
                    answer = send(shard, make_events(60, first))
                    accepted += int((answer.verdicts == Verdict.ACCEPTED).sum())
            finally:
                shard.stop()
            thread = shard.state.checkpoint_thread
            if thread is not None and thread.ident is not None:
                thread.join()
            del shard, thread
            deadline = time.monotonic() + 30
            while True:  # as the end of its process would: what it had open is let go, by its last thread, too
                gc.collect()
                RunCache(directory, 1).trim()
                if not list(directory.glob("*.run")):
                    break
                assert time.monotonic() < deadline, "what nobody has open stays"
                time.sleep(0.05)
    events = [one for one in logged_ids(store) if one.startswith("event-")]
    assert len(events) == len(set(events)) == accepted
    assert max(store.fetched.values()) > 1, "no run was fetched again"
