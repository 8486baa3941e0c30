"""Sealed + tail = log (I11): every reading gives the same rows before, between and after seals."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from actors.rating_shard import RatingShard
from storage.object_store import LocalObjectStore
from storage.usage_log.genesis import open_log
from storage.usage_log.manifest import Manifest, ManifestChain
from storage.usage_log.reader import NOTHING, SCAN_SCHEMA, Cut, UsageLogReader
from storage.usage_log.sealing import seal, tail_is_long, tail_rows
from tests.usage_log_support import OTHER_TENANT, TENANT, make_events, send


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path)


def fill(store: LocalObjectStore, first: int, rows: int) -> Cut:
    open_log(store, lanes=2)
    for lane in range(2):
        shard = RatingShard(lane, store)
        shard.start()
        for start in range(first, first + rows, 50):
            send(shard, make_events(50, start))
            send(shard, make_events(20, start), OTHER_TENANT)
        shard.stop()
    return UsageLogReader(store).now()


def rows(store: LocalObjectStore, cut: Cut, since: Cut = NOTHING, **options: object) -> pl.DataFrame:
    frames = UsageLogReader(store).scan(TENANT, cut, since=since, **options)  # type: ignore[arg-type]
    return pl.concat([pl.DataFrame(schema=SCAN_SCHEMA), *frames]).sort("lane", "number", "row")


def test_what_is_sealed_and_what_is_not_together_are_the_log(store: LocalObjectStore) -> None:
    first = fill(store, 0, 300)
    second = fill(store, 300, 300)
    before = {"first": rows(store, first), "second": rows(store, second), "between": rows(store, second, first)}
    assert before["second"].height == 600
    assert before["between"].height == 300
    assert tail_rows(store, second) > 600

    def check(manifest: Manifest) -> None:
        assert rows(store, first).equals(before["first"])
        assert rows(store, second).equals(before["second"])
        assert rows(store, second, first).equals(before["between"])
        assert sum(file.rows for file in manifest.files) > 0

    half = Cut({lane: number // 2 for lane, number in first.positions.items()})
    check(seal(store, half))
    check(seal(store, first, rows_max=100))
    check(seal(store, second))
    assert tail_rows(store, second) == 0
    files = ManifestChain(store).newest().files
    assert len(files) > 3
    assert sum(file.tenants.get(TENANT, 0) for file in files) == 600
    some = sorted(set(rows(store, second)["customer"]))[:3]
    assert rows(store, second, customers=some).equals(before["second"].filter(pl.col("customer").is_in(some)))


def test_sealing_again_or_below_what_is_sealed_changes_nothing(store: LocalObjectStore) -> None:
    first = fill(store, 0, 100)
    second = fill(store, 100, 100)
    done = seal(store, second)
    assert seal(store, second).number == done.number
    assert seal(store, first).number == done.number


def test_two_sealers_at_once_seal_every_row_once(store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one seals while the first is about to announce: the first drops its files."""
    import storage.usage_log.sealing as module

    cut = fill(store, 0, 200)
    before = rows(store, cut)
    original, raced = module._write, {"done": False}

    def write_and_be_overtaken(there: LocalObjectStore, frame: pl.DataFrame) -> object:
        file = original(there, frame)
        if not raced["done"]:
            raced["done"] = True
            seal(store, cut)
        return file

    monkeypatch.setattr(module, "_write", write_and_be_overtaken)
    seal(store, cut)
    manifest = ManifestChain(store).newest()
    assert sum(file.tenants.get(TENANT, 0) for file in manifest.files) == 200
    assert rows(store, cut).equals(before)


def test_a_shard_recovers_from_a_log_that_is_sealed(store: LocalObjectStore) -> None:
    cut = fill(store, 0, 100)
    seal(store, cut)
    shard = RatingShard(0, store)
    shard.start()
    answer = send(shard, make_events(100))
    assert set(answer.verdicts.tolist()) == {1, 254}
    shard.stop()


def test_a_tail_is_long_by_its_numbers_and_short_once_it_is_sealed(store: LocalObjectStore) -> None:
    end = fill(store, 0, 300)
    numbers = sum(end.positions.values()) + len(end.positions)  # each lane begins with number 0
    assert not tail_is_long(store, numbers=numbers + 1)
    assert tail_is_long(store, numbers=numbers)
    seal(store, end)
    assert not tail_is_long(store, numbers=1)
