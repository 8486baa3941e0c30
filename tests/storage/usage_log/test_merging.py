"""Merges change files, never rows; what is announced goes an hour later; who sleeps, dies or races does no harm."""

from __future__ import annotations

import json
import os
from pathlib import Path

import polars as pl
import pytest
from housekeeping_world import HOUR_US, SWEPT, World

from storage.object_store import LocalObjectStore, ObjectStore
from storage.usage_log.deleting import announce_orphans, delete_announced
from storage.usage_log.housekeeping import Housekeeping, merge_due
from storage.usage_log.manifest import ManifestChain, ObjectsGone, SealedFile
from storage.usage_log.merging import by_month, merge_sealed, read_rows, to_merge
from tests.s3_server import S3Server, running
from tests.usage_log_support import make_events

SEED = int(os.environ.get("CLOUDBILLING_SEED", "11"))


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> object:
    yield from running(tmp_path_factory.mktemp("s3"))


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.services)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return LocalObjectStore(tmp_path / "objects")
    server: S3Server = request.getfixturevalue("s3_server")
    return server.store(f"log-{tmp_path.name}")


def sealed_world(store: ObjectStore, seals: int, cache: Path) -> World:
    world = World(store, SEED, cache)
    for _ in range(seals):
        world.fill()
        world.seal()
    return world


def test_eight_small_files_become_one_and_every_reading_gives_the_same_rows(store: ObjectStore, tmp_path: Path) -> None:
    world = sealed_world(store, 8, tmp_path / "cache")
    before = world.newest()
    assert len(before.files) == 8
    assert merge_due(world.store)
    entry = merge_sealed(world.store)
    assert entry is not None
    assert len(entry.files) == 1
    assert entry.sealed == before.sealed
    assert entry.files[0].rows == sum(file.rows for file in before.files)
    assert {one.key for one in entry.leaving} >= {file.key for file in before.files}
    world.check()
    world.old = [before]
    world.check()
    assert merge_sealed(world.store) is None
    rows = read_rows(store, entry.files[0])
    assert rows.equals(rows.sort("tenant", "partition", "customer", "type", "time", "source", "id"))


def test_files_of_a_size_are_merged_and_full_ones_stay() -> None:
    def files(*rows: int) -> list[SealedFile]:
        return [SealedFile(f"log/sealed/{place}", count, 1, 0, 255, {}) for place, count in enumerate(rows)]

    assert to_merge(files(*[10] * 7)) == []
    assert len(to_merge(files(*[10] * 8))) == 8
    assert len(to_merge(files(1_000_000, *[10] * 7, *[100_000] * 8))) == 8
    assert to_merge(files(*[1_500_000] * 20)) == []
    large = to_merge(files(*[900_000] * 3))
    assert [file.rows for file in large] == [900_000] * 2, (
        "two that fill a file, and no more rows than a merge may hold"
    )


def test_a_month_with_many_rows_gets_files_of_its_own() -> None:
    rows = make_events(300)
    later = make_events(40, 300).with_columns(pl.col("time").dt.offset_by("1mo"))
    parts = list(by_month(pl.concat([rows, later]), month_rows_min=100))
    assert [part.height for part in parts] == [300, 40]
    assert [part.height for part in by_month(pl.concat([rows, later]), month_rows_min=1_000)] == [340]


def test_what_an_entry_no_longer_names_goes_an_hour_later_and_not_before(store: ObjectStore, tmp_path: Path) -> None:
    world = sealed_world(store, 2, tmp_path / "cache")
    old = [file.key for file in world.newest().files]
    world.merge()
    announced_us = min(one.since_us for one in world.newest().leaving)
    world.time.us = announced_us + HOUR_US - 1
    assert delete_announced(world.store, world.time) == 0
    assert all(store.exists(key) for key in old)
    world.time.us = announced_us + 2 * HOUR_US
    assert delete_announced(world.store, world.time) >= 2
    assert not any(store.exists(key) for key in old)
    assert world.newest().leaving == ()
    assert delete_announced(world.store, world.time) == 0
    world.check()


def test_a_reader_that_holds_an_older_entry_begins_again_when_its_files_are_gone(
    store: ObjectStore, tmp_path: Path
) -> None:
    world = sealed_world(store, 2, tmp_path / "cache")
    world.old = [world.newest()]
    world.merge()
    world.time.us = max(one.since_us for one in world.newest().leaving) + 2 * HOUR_US
    world.delete()
    world.check()
    assert world.restarts == 1


def test_orphans_are_announced_after_a_week_and_runs_of_other_chains_stay(store: ObjectStore, tmp_path: Path) -> None:
    world = sealed_world(store, 1, tmp_path / "cache")
    world.store.put("log/sealed/orphan.parquet", b"left behind")
    world.store.put("log/ids/pass.run", b"named by a pass over reused ids")
    world.store.put("log/ids/pass.bloom", b"named by a pass over reused ids")
    run = {"key": "log/ids/pass.run", "filter_key": "log/ids/pass.bloom", "ids": 1}
    passed = json.dumps({"cut": {"name": "", "positions": {}}, "runs": [run]})
    world.store.put("log/reused/t/00000000.json", passed.encode())
    world.time.us += 6 * 24 * HOUR_US
    assert announce_orphans(world.store, world.time) == 0
    world.time.us += 2 * 24 * HOUR_US
    assert announce_orphans(world.store, world.time) == 1
    assert announce_orphans(world.store, world.time) == 0
    assert store.exists("log/sealed/orphan.parquet")
    world.time.us += 2 * HOUR_US
    assert delete_announced(world.store, world.time) == 1
    assert not store.exists("log/sealed/orphan.parquet")
    assert store.exists("log/ids/pass.run")
    world.check()


def test_a_job_that_slept_for_weeks_at_any_step_names_nothing_that_is_gone(store: ObjectStore, tmp_path: Path) -> None:
    world = sealed_world(store, 2, tmp_path / "cache")
    step = told = 0
    while True:
        step += 1
        left = step

        def sleep(_what: str, _key: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:  # meanwhile others go on for weeks
                world.store.at = lambda _what, _key: None
                world.settle_all()

        world.store.at = sleep
        try:
            world.merge()
        except ObjectsGone:
            told += 1
        finally:
            world.store.at = lambda _what, _key: None
        world.check()
        if left > 0:
            break
        for _ in range(2):
            world.fill()
            world.seal()
    assert told >= 1, "no sleeper was told"
    assert step > 3


def test_two_mergers_at_once_leave_every_row_once(store: ObjectStore, tmp_path: Path) -> None:
    world = sealed_world(store, 2, tmp_path / "cache")

    def race(what: str, key: str) -> None:
        if what == "before create" and key.startswith("log/manifest/"):
            world.store.at = lambda _what, _key: None
            world.merge()

    world.store.at = race
    world.merge()
    world.check()
    assert len(world.newest().files) == 1
    assert world.settle_all() == []


def test_whatever_crashes_at_whatever_step_readers_at_every_step_have_all_rows(
    store: ObjectStore, tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    world = World(store, SEED, tmp_path / "cache")
    local = isinstance(store, LocalObjectStore)
    world.fill()
    crashes = 0
    for _ in range(60 if local else 20):
        world.act()
        crashes += world.act_and_crash(world.random.randint(1, 5))
        world.check()
    for _ in range(2):  # every step of a quiet round has a reader beside it
        world.fill()
        world.seal()
        world.store.at = lambda _what, _key: world.check()
        for act in (world.merge, world.delete, world.sweep):
            act()
        world.store.at = lambda _what, _key: None
        world.pass_time()
    assert world.settle_all() == []
    world.check()
    print(f"{crashes} crashes, {world.looks} readings, {world.restarts} began with files that were gone")
    assert crashes >= 3
    assert world.restarts >= 1


def test_a_round_of_housekeeping_merges_deletes_and_sweeps_once_a_day(store: ObjectStore, tmp_path: Path) -> None:
    world = sealed_world(store, 8, tmp_path / "cache")
    world.store.put("log/sealed/orphan.parquet", b"left behind")
    world.store.put("log/reused-runs/t/replaced.run", b"merged away by a pass")
    now_s = 0.0
    keeping = Housekeeping(world.store, clock=world.time, now_s=lambda: now_s)
    keeping.round()
    assert len(world.newest().files) == 1
    world.time.us = max(one.since_us for one in world.newest().leaving) + 8 * 24 * HOUR_US
    keeping.round()
    assert world.newest().leaving == ()
    assert store.exists("log/sealed/orphan.parquet"), "the sweep is not due yet"
    assert store.exists("log/reused-runs/t/replaced.run")
    now_s = 90_000.0
    keeping.round()
    assert not store.exists("log/reused-runs/t/replaced.run")
    world.time.us += 2 * HOUR_US
    keeping.round()
    left = [key for prefix in SWEPT for key in store.list(prefix)]
    assert set(left) == set(ManifestChain(store).newest().named())
