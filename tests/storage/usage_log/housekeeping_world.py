"""A log whose sealing, merging and deleting crash, sleep and meet each other; a reader looks at every step.

Time is made up: objects are dated by it, so hours and weeks pass at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from actors.rating_shard import RatingShard, ShardSettings
from storage.object_store import ObjectStore
from storage.usage_log.deleting import announce_orphans, delete_announced
from storage.usage_log.genesis import open_log
from storage.usage_log.manifest import Manifest, ManifestChain
from storage.usage_log.merging import merge_sealed
from storage.usage_log.reader import SCAN_SCHEMA, Cut, UsageLogReader
from storage.usage_log.sealing import seal
from tests.usage_log_support import OTHER_TENANT, TENANT, make_events, send

HOUR_US = 3_600_000_000
SWEPT = ("log/sealed/", "log/ids/", "log/snapshots/")

EAGER = ShardSettings(checkpoint_rows=30)  # id runs and snapshots come and go, too


class Crash(Exception):
    """The process died here."""


class MadeUpTime:
    def __init__(self) -> None:
        self.us = time.time_ns() // 1_000  # shards have the real clock

    def now_us(self) -> int:
        return self.us


class SteppedStore:
    """The real store; `at` is called before and after each step that changes something, and may raise Crash."""

    def __init__(self, store: ObjectStore, time: MadeUpTime) -> None:
        self.store, self.time = store, time
        self.written: dict[str, int] = {}
        self.at: Callable[[str, str], None] = lambda _what, _key: None
        self.steps = 0

    def _step(self, what: str, key: str) -> None:
        self.steps += 1
        self.at(what, key)

    def create(self, key: str, data: bytes) -> bool:
        self._step("before create", key)
        created = self.store.create(key, data)
        if created:
            self.written[key] = self.time.us
        self._step("after create", key)
        return created

    def put(self, key: str, data: bytes) -> None:
        self._step("before put", key)
        self.store.put(key, data)
        self.written[key] = self.time.us
        self._step("after put", key)

    def delete(self, key: str) -> None:
        self._step("before delete", key)
        self.store.delete(key)
        self._step("after delete", key)

    def modified_us(self, key: str) -> int | None:
        return self.written.get(key) if self.store.exists(key) else None

    def get(self, key: str) -> bytes | None:
        return self.store.get(key)

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        return self.store.get_range(key, start, length)

    def list(self, prefix: str) -> Iterator[str]:
        return self.store.list(prefix)

    def exists(self, key: str) -> bool:
        return self.store.exists(key)

    def settle(self, key: str) -> None:
        self.store.settle(key)

    def local_path(self, key: str) -> Path | None:
        return self.store.local_path(key)


class World:
    def __init__(self, store: ObjectStore, seed: int, cache: Path) -> None:
        self.cache = cache
        self.random = random.Random(seed)
        self.time = MadeUpTime()
        self.real = store
        self.store = SteppedStore(store, self.time)
        open_log(self.store, lanes=2)
        self.events = 0
        self.old: list[Manifest] = []  # entries that readers still hold
        self.looks = self.restarts = 0

    # -- what happens -------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        for lane in range(2):
            shard = RatingShard(lane, self.real, settings=EAGER, cache_directory=self.cache)
            shard.start()
            send(shard, make_events(30, self.events))
            send(shard, make_events(10, self.events), OTHER_TENANT)
            shard.stop()
        self.events += 30

    def seal(self) -> None:
        seal(self.store, UsageLogReader(self.store).now())

    def merge(self) -> None:
        merge_sealed(self.store, count=2)

    def delete(self) -> None:
        delete_announced(self.store, self.time)

    def sweep(self) -> None:
        announce_orphans(self.store, self.time)

    def pass_time(self) -> None:
        self.time.us += self.random.choice([1, 30, 200]) * HOUR_US

    def act(self) -> None:
        act = self.random.choice(
            [self.fill, self.seal, self.merge, self.merge, self.delete, self.sweep, self.pass_time]
        )
        self.old = [*self.old, self.newest()][-4:]
        act()

    def act_and_crash(self, step: int) -> bool:
        """One act that dies at its n-th step; whether it got that far. Recovery is whoever comes next."""
        left = step

        def die(_what: str, _key: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Crash

        self.store.at = die
        try:
            self.random.choice([self.seal, self.merge, self.merge, self.delete, self.sweep])()
        except Crash:
            return True
        finally:
            self.store.at = lambda _what, _key: None
        return False

    # -- what must hold -----------------------------------------------------------------------------------------------

    def newest(self) -> Manifest:
        return ManifestChain(self.real).newest()

    def check(self) -> None:
        """Every object that is named is there; a new reader and those that hold older entries read all rows, once."""
        manifest = self.newest()
        missing = [key for key in manifest.named() if not self.real.exists(key)]
        assert not missing, f"entry {manifest.number} names what is gone: {missing}"
        self.look(None)
        for entry in self.old:
            self.look(entry)

    def look(self, entry: Manifest | None) -> None:
        reader = UsageLogReader(self.real)
        cut = reader.now()
        if entry is not None:
            newest, held = reader._chain.newest, [entry]  # what a reader that began long ago holds
            reader._chain.newest = lambda: held.pop() if held else newest()  # type: ignore[method-assign]
            if any(not self.real.exists(file.key) for file in entry.files):
                self.restarts += 1
        frames = list(reader.scan(TENANT, Cut(cut.positions)))
        found = pl.concat([pl.DataFrame(schema=SCAN_SCHEMA), *frames])
        self.looks += 1
        assert found.height == found.select("lane", "number", "row").unique().height, "a row came twice"
        wanted = sorted(f"event-{number}" for number in range(self.events))
        assert sorted(found["id"].unique()) == wanted, "rows are missing, or too many"

    def settle_all(self) -> list[str]:
        """Weeks later: what nobody names and is still there."""
        for _ in range(3):
            self.time.us += 8 * 24 * HOUR_US
            announce_orphans(self.store, self.time)
            self.time.us += 2 * HOUR_US
            delete_announced(self.store, self.time)
        named = self.newest().named()
        return [key for prefix in SWEPT for key in self.real.list(prefix) if key not in named]
