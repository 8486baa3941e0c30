"""Claiming and writing a lane: who may, who learns that he may not, and what is said about an open outcome."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import polars as pl
import pytest

from storage.object_store import LocalObjectStore, ObjectStore, StoreRefused, StoreUnavailable
from storage.usage_log import lane as lane_module
from storage.usage_log.lane import LaneLost, LaneStopped, LaneWriter, LogBroken, last_number, walk
from storage.usage_log.segment import ROW_SCHEMA, Counters, segment_key
from tests.usage_log_support import TENANT, Hooked, Network, make_events


class WildClock:
    """Jumps both ways: what the log makes of it may only go forward."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def now_us(self) -> int:
        return 1_790_000_000_000_000 + self._random.randrange(-3_600_000_000, 3_600_000_000)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "BACKOFF_S_FIRST", 0.0)
    monkeypatch.setattr(lane_module, "BACKOFF_S_MAX", 0.0)


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


def rows_of(first: int, count: int = 3) -> pl.DataFrame:
    events = make_events(count, first)
    return events.select(
        pl.lit(TENANT).alias("tenant"),
        pl.lit(0, pl.UInt8).alias("partition"),
        pl.lit(0, pl.UInt8).alias("kind"),
        *events.columns,
        pl.lit(None, pl.String).alias("detail"),
    ).cast(ROW_SCHEMA)


def new_writer(store: ObjectStore, seed: int = 1) -> LaneWriter:
    writer = LaneWriter(store, 0, WildClock(seed))
    for _ in writer.read_on():
        pass
    writer.claim(lambda _: None)
    return writer


def append(writer: LaneWriter, first: int) -> None:
    writer.append(rows_of(first), {TENANT: Counters(stored=3)})


def ids_in(store: ObjectStore) -> list[str]:
    return [identity for segment in walk(store, 0, 0) for identity in segment.rows()["id"]]


def test_a_segment_comes_back_as_it_was_written(store: LocalObjectStore) -> None:
    writer = new_writer(store)
    append(writer, 0)
    epoch, segment = walk(store, 0, 0)
    assert epoch.head.is_epoch
    assert epoch.head.epoch == 1
    assert segment.rows().equals(rows_of(0))
    assert segment.head.previous == epoch.digest
    assert segment.head.ranges == {0: (0, 3)}
    assert segment.head.counters == {TENANT: Counters(stored=3)}


def test_a_stale_writer_loses_its_next_put_and_may_not_write_again(store: LocalObjectStore) -> None:
    first = new_writer(store)
    append(first, 0)
    second = new_writer(store)
    with pytest.raises(LaneLost):
        append(first, 10)
    with pytest.raises(AssertionError, match="append before claim"):
        append(first, 10)
    append(second, 20)
    assert ids_in(store) == [f"event-{n}" for n in (0, 1, 2, 20, 21, 22)]
    assert second.position.epoch == 2


def test_a_writer_that_was_overtaken_while_claiming_reads_the_others_numbers_first(store: LocalObjectStore) -> None:
    slow = LaneWriter(store, 0, WildClock(1))  # read an empty lane, then was stopped for a while
    other = new_writer(store)
    append(other, 0)
    seen: list[int] = []
    slow.claim(lambda segment: seen.append(segment.head.number))
    assert seen == [0, 1]
    assert slow.position.epoch == 2
    with pytest.raises(LaneLost):
        append(other, 10)


def test_ones_own_write_without_an_answer_counts_as_committed(store: LocalObjectStore) -> None:
    """The answer is lost after storing; the repeat gets "exists" for the writer's own bytes."""
    lost = {"answers": 0}

    class LosesAnswers(Hooked):
        def create(self, key: str, data: bytes) -> bool:
            created = self.store.create(key, data)
            if created and "lanes" in key:
                lost["answers"] += 1
                raise StoreUnavailable("no answer")
            return created

    writer = new_writer(LosesAnswers(store, lambda *_: None))
    append(writer, 0)
    assert lost["answers"] == 2  # the claim's and the segment's
    assert ids_in(store) == ["event-0", "event-1", "event-2"]


def test_a_refusal_frees_the_number_and_the_next_append_takes_it(store: LocalObjectStore) -> None:
    full = {"is": False}

    def before(what: str, _key: str) -> None:
        if full["is"] and what == "create":
            raise StoreRefused("the disk is full")

    writer = new_writer(Hooked(store, before))
    full["is"] = True
    with pytest.raises(StoreRefused):
        append(writer, 0)
    full["is"] = False
    append(writer, 10)
    assert ids_in(store) == ["event-10", "event-11", "event-12"]
    assert writer.position.number == 1


def test_a_refusal_after_an_open_outcome_says_nothing_about_the_first_try(store: LocalObjectStore) -> None:
    """First try: stored, answer lost. Second: disk full. "Not stored" would be a lie that ends in a double bill."""
    tries: list[str] = []

    class Unlucky(Hooked):
        def create(self, key: str, data: bytes) -> bool:
            if "lanes/0000/000000/000000000001" not in key:
                return self.store.create(key, data)
            tries.append(key)
            if len(tries) == 1:
                self.store.create(key, data)
                raise StoreUnavailable("no answer")
            if len(tries) < 4:
                raise StoreRefused("the disk is full")
            return self.store.create(key, data)

    append(new_writer(Unlucky(store, lambda *_: None)), 0)
    assert len(tries) == 4
    assert ids_in(store) == ["event-0", "event-1", "event-2"]


def test_a_store_that_is_away_leaves_the_outcome_open_when_the_writer_stops(store: LocalObjectStore) -> None:
    away = threading.Event()

    def before(what: str, _key: str) -> None:
        if away.is_set() and what == "create":
            writer.stop()
            raise StoreUnavailable("no answer")

    writer = new_writer(Hooked(store, before))
    away.set()
    with pytest.raises(LaneStopped, match="may be stored"):
        append(writer, 0)


def test_the_end_of_a_lane_is_found_from_any_hint(store: LocalObjectStore) -> None:
    writer = new_writer(store)
    for number in range(37):
        append(writer, 10 * number)
    assert [last_number(store, 0, known) for known in (-1, 0, 5, 36, 37)] == [37] * 5
    assert last_number(store, 1, -1) == -1


@pytest.mark.parametrize("damage", ["other bytes", "other number"])
def test_a_lane_that_contradicts_itself_is_not_read_on(store: LocalObjectStore, damage: str) -> None:
    writer = new_writer(store)
    append(writer, 0)
    append(writer, 10)
    path = store.root / segment_key(0, 1)
    path.unlink()
    if damage == "other bytes":
        path.write_bytes(b"PAR1 torn")
    else:
        path.write_bytes((store.root / segment_key(0, 2)).read_bytes())
    reader = LaneWriter(store, 0, WildClock(2))
    with pytest.raises(LogBroken):
        list(reader.read_on())


def check_invariants(store: ObjectStore, acknowledged: list[int], refused: list[int]) -> None:
    """I1 acknowledged once, I3 one writer an epoch, I4 no gaps, I7 refused never there, I13 log time, I5 epochs."""
    writer_of: dict[int, str] = {}
    ids: list[str] = []
    time_us, digest, number = 0, "", -1
    for segment in walk(store, 0, 0):
        head = segment.head
        number += 1
        assert head.number == number
        assert head.previous == digest
        assert head.log_time_us >= time_us
        assert writer_of.setdefault(head.epoch, head.nonce) == head.nonce, "two writers in one epoch"
        assert head.is_epoch == (head.epoch not in list(writer_of)[:-1] and head.rows == 0)
        time_us, digest = head.log_time_us, segment.digest
        ids.extend(segment.rows()["id"])
    assert len(set(writer_of.values())) == len(writer_of), "a writer came back in another epoch"
    assert last_number(store, 0, -1) == number, "a gap"
    assert len(ids) == len(set(ids)), "stored twice"
    stored = set(ids)
    for first in acknowledged:
        assert {f"event-{first + step}" for step in range(3)} <= stored, f"{first} was acknowledged and is lost"
    for first in refused:
        assert f"event-{first}" not in stored, f"{first} was refused and is stored"


@pytest.mark.parametrize("seed", range(12))
def test_two_writers_behind_a_bad_network_keep_the_invariants(store: LocalObjectStore, seed: int) -> None:
    """Deterministic simulation: which writer acts, who crashes, and every answer of the store come from the seed."""
    print(f"seed {seed}")
    dice = random.Random(seed)
    network = Network(store, seed)
    writers: list[LaneWriter | None] = [None, None]
    acknowledged: list[int] = []
    for step in range(60):
        index = dice.randrange(2)
        writer = writers[index]
        if writer is None or dice.random() < 0.1:  # a crash, and its successor; the other may still be writing
            fresh = LaneWriter(network, 0, WildClock(dice.randrange(1000)))
            try:
                for _ in fresh.read_on():
                    pass
                fresh.claim(lambda _: None)
            except StoreUnavailable:
                continue  # crashed while starting
            writers[index] = fresh
            continue
        try:
            append(writer, 10 * step)
            acknowledged.append(10 * step)
        except LaneLost:
            writers[index] = None
        if dice.random() < 0.2:
            network.deliver_all()
    network.deliver_all()
    assert network.troubles > 5
    assert len(acknowledged) > 5
    check_invariants(store, acknowledged, refused=[])


def test_the_check_of_the_simulation_sees_a_writer_that_believes_every_412(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same simulation with the comparison of bytes left out must fail, else it proves nothing."""

    def credulous(there: ObjectStore, key: str, data: bytes, **_: object) -> lane_module.Put:
        there.create(key, data)
        return lane_module.Put.COMMITTED

    first = new_writer(store)
    append(first, 0)
    second = new_writer(store)
    append(second, 10)
    monkeypatch.setattr(lane_module, "put_if_absent", credulous)
    append(first, 20)  # believes it stored number 2, which is the second writer's epoch record
    with pytest.raises(AssertionError, match="acknowledged and is lost"):
        check_invariants(store, [0, 10, 20], refused=[])
