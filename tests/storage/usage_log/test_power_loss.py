"""What a lane has acknowledged is there after any loss of power: kept as bytes, under its name, in folders that are."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage import object_store as object_store_module
from storage.object_store import LocalObjectStore, StoreRefused
from storage.usage_log import lane as lane_module
from storage.usage_log import segment as segment_module
from storage.usage_log.lane import LaneWriter, LogBroken, walk
from storage.usage_log.segment import Counters
from tests.storage.usage_log.forgetful_disk import Death, ForgetfulDisk
from tests.storage.usage_log.test_lane_protocol import WildClock, rows_of
from tests.usage_log_support import TENANT

LIVES = 24  # of processes, one after the other, on one disk
SEEDS = range(6)


@dataclass(frozen=True)
class World:
    power: float = 0.5  # of deaths, those in which the machine loses its power; the others are kills
    errors: float = 0.1  # of fsyncs, those that fail


class Lost(AssertionError):
    """What this is all about; a rule that is broken must end in it, not in some other failure."""


def ids_in(store: LocalObjectStore) -> set[str]:
    return {identity for segment in walk(store, 0, 0) for identity in segment.rows(["id"])["id"]}


def live(
    disk: ForgetfulDisk, chance: random.Random, errors: float, first: int, acknowledged: set[str], refused: set[str]
) -> int:
    """One process on the disk until it dies: it reads on, claims, appends. The first event that nobody has sent."""
    disk.die_after(chance.randrange(20) if chance.random() < 0.2 else 10_000)
    read: set[str] = set()
    try:
        writer = LaneWriter(LocalObjectStore(disk.root), 0, WildClock(first))
        for segment in writer.read_on():
            read.update(segment.rows(["id"])["id"])
        writer.claim(lambda segment: read.update(segment.rows(["id"])["id"]))
        acknowledged |= read  # whoever sends it again hears "duplicate" from now on
        disk.die_after(chance.randrange(5, 40))
        disk.error_chance = errors
        while True:
            rows = rows_of(first)
            first += rows.height
            try:
                writer.append(rows, {TENANT: Counters(stored=rows.height)})
                acknowledged.update(rows["id"])
            except StoreRefused:
                refused.update(rows["id"])
    except Death:
        return first


def storm(folder: Path, seed: int, world: World, monkeypatch: pytest.MonkeyPatch) -> ForgetfulDisk:
    """Lives and deaths by chance; after each nothing acknowledged may be missing, and nothing refused be there."""
    print(f"seed {seed}")
    monkeypatch.setattr(lane_module, "BACKOFF_S_FIRST", 0.0)
    monkeypatch.setattr(lane_module, "BACKOFF_S_MAX", 0.0)
    monkeypatch.setattr(segment_module, "NUMBERS_PER_FOLDER", 2)  # new folders all the time
    chance = random.Random(seed)
    folder.mkdir()
    disk = ForgetfulDisk(folder, chance, monkeypatch)
    acknowledged: set[str] = set()
    refused: set[str] = set()
    first = 0
    for life in range(LIVES):
        first = live(disk, chance, world.errors, first, acknowledged, refused)
        disk.error_chance = 0.0
        if chance.random() < world.power or life == LIVES - 1:
            disk.lose_power()
        else:
            disk.revive()
        stored = ids_in(LocalObjectStore(disk.root))
        if lost := sorted(acknowledged - stored):
            raise Lost(f"life {life}: acknowledged and lost: {lost}")
        assert not refused & stored, f"life {life}: refused and stored: {sorted(refused & stored)}"
    assert len(acknowledged) > 30
    assert disk.losses > 3
    return disk


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_that_was_acknowledged_is_lost_with_the_power(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = storm(tmp_path / "disk", seed, World(), monkeypatch)
    assert disk.errors > 3


def no_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalObjectStore, "settle", lambda *_: None)


def no_fsync_of_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """`_ensure_folder` makes folders and forgets to keep their own names."""

    def made(self: LocalObjectStore, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(LocalObjectStore, "_ensure_folder", made)


def no_fsync_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store_module, "_fsync", lambda _: None)


def no_fsync_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names come to the disk when they like, as `link` alone leaves it; those of folders are kept."""
    real, create = object_store_module._fsync_folder, LocalObjectStore.create

    def created(self: LocalObjectStore, key: str, data: bytes) -> bool:
        folder = self._path(key).parent
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(object_store_module, "_fsync_folder", lambda path: None if path == folder else real(path))
            return create(self, key, data)

    monkeypatch.setattr(LocalObjectStore, "create", created)


@pytest.mark.parametrize(
    ("broken", "world"),
    [
        (no_settle, World(errors=0.0)),  # a predecessor's number that was seen and built on (`read_on`)
        (no_settle, World(power=1.0, errors=0.3)),  # the writer's own, whose fsync failed (`put_if_absent`)
        (no_fsync_of_parents, World(errors=0.0)),
        (no_fsync_of_bytes, World(errors=0.0)),
        (no_fsync_of_names, World(errors=0.0)),
    ],
    ids=["no settle of others'", "no settle of one's own", "no parents", "no bytes", "no names"],
)
def test_each_rule_switched_off_is_caught(
    tmp_path: Path, broken: Callable[[pytest.MonkeyPatch], None], world: World
) -> None:
    for seed in SEEDS:
        with pytest.MonkeyPatch.context() as patch:
            broken(patch)
            try:
                storm(tmp_path / str(seed), seed, world, patch)
            except (Lost, LogBroken):
                return
    pytest.fail("a rule that may be left out without a loss is none, or this test sees nothing")
