"""Cuts and scans: what was acknowledged before a cut is in it, and every row comes exactly once."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from actors.rating_shard import RatingShard
from billing.usage import EVENT_SCHEMA
from storage.object_store import LocalObjectStore
from storage.usage_log.genesis import open_log
from storage.usage_log.lane import write_hint
from storage.usage_log.partitions import partitions_of
from storage.usage_log.reader import SCAN_SCHEMA, Cut, UsageLogReader
from tests.usage_log_support import OTHER_TENANT, TENANT, make_events, send


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path)


def shards(store: LocalObjectStore, lanes: int) -> list[RatingShard]:
    open_log(store, lanes=lanes)
    opened = [RatingShard(lane, store) for lane in range(lanes)]
    for shard in opened:
        shard.start()
    return opened


def scan(store: LocalObjectStore, cut: Cut, tenant: str = TENANT, **options: object) -> pl.DataFrame:
    frames = list(UsageLogReader(store).scan(tenant, cut, **options))  # type: ignore[arg-type]
    return pl.concat([pl.DataFrame(schema=SCAN_SCHEMA), *frames])


def test_rows_come_back_as_they_were_sent_with_a_position_of_their_own(store: LocalObjectStore) -> None:
    opened = shards(store, 2)
    events = make_events(300)
    for shard in opened:
        send(shard, events)
    rows = scan(store, UsageLogReader(store).now())
    assert rows.schema == SCAN_SCHEMA
    order = ["source", "id"]
    assert rows.select(EVENT_SCHEMA.names()).sort(order).equals(events.sort(order))
    assert rows.select("lane", "number", "row").n_unique() == 300
    for shard in opened:
        shard.stop()


def test_a_named_cut_is_made_once_and_stays_what_it_was(store: LocalObjectStore) -> None:
    (shard,) = shards(store, 1)
    send(shard, make_events(10))
    first = UsageLogReader(store).cut("run-1")
    send(shard, make_events(10, 10))
    assert UsageLogReader(store).cut("run-1") == first
    assert UsageLogReader(store).load_cut("run-2") is None
    assert scan(store, first).height == 10
    later = UsageLogReader(store).now()
    assert set(scan(store, later, since=first)["id"]) == {f"event-{n}" for n in range(10, 20)}
    assert later.covers(first.positions)
    assert not first.covers(later.positions)
    assert Cut.from_json(first.to_json()) == first
    shard.stop()


def test_a_cut_has_everything_that_was_acknowledged_before_it_began(store: LocalObjectStore) -> None:
    """I10, against a writer that never pauses."""
    (shard,) = shards(store, 1)
    acknowledged, stopped = [0], threading.Event()

    def write() -> None:
        while not stopped.is_set():
            assert send(shard, make_events(20, acknowledged[0])).failed is None
            acknowledged[0] += 20

    writer = threading.Thread(target=write)
    writer.start()
    reader, last = UsageLogReader(store), Cut({})
    for _ in range(15):
        before = acknowledged[0]
        cut = reader.now()
        ids = {identity for frame in reader.scan(TENANT, cut) for identity in frame["id"]}
        assert {f"event-{number}" for number in range(before)} <= ids
        assert len(ids) % 20 == 0, "half a request of one lane"
        assert cut.covers(last.positions)
        last = cut
    stopped.set()
    writer.join()
    shard.stop()


def test_a_scan_filters_by_key_partition_and_time_and_never_by_another_tenant(store: LocalObjectStore) -> None:
    (shard,) = shards(store, 1)
    events = make_events(280)
    send(shard, events)
    send(shard, make_events(50), OTHER_TENANT)
    cut = UsageLogReader(store).now()
    assert set(scan(store, cut, customers=["customer-3", "nobody"])["customer"]) == {"customer-3"}
    start, end = datetime(2026, 5, 3, 12, tzinfo=UTC), datetime(2026, 5, 5, 12, tzinfo=UTC)
    assert set(scan(store, cut, start=start, end=end)["time"].dt.day()) == {3, 4}
    assert shard.genesis is not None
    partitions = partitions_of(shard.genesis.seed, TENANT, events["customer"])
    wanted = sorted(set(partitions.tolist()))[:7]
    mine = events.filter(pl.Series(partitions).is_in(wanted))
    assert sorted(scan(store, cut, partitions=wanted)["id"]) == sorted(mine["id"])
    assert scan(store, cut, OTHER_TENANT).height == 50
    assert scan(store, cut, "nobody").height == 0
    shard.stop()


def test_counters_by_tenant_and_day_equal_a_count_of_the_rows(store: LocalObjectStore) -> None:
    (shard,) = shards(store, 1)
    send(shard, make_events(30))
    send(shard, make_events(40))
    reader = UsageLogReader(store)
    cut = reader.now()
    counted = reader.counters(cut)
    assert counted["stored"].sum() == scan(store, cut).height == 40
    assert counted["duplicates"].sum() == 30
    assert reader.counters(cut, OTHER_TENANT).height == 0
    shard.stop()


@pytest.mark.parametrize("hint", [b"", b"{", b'{"number": 99999}', b'{"number": -4}', b'{"number": 1}'])
def test_a_wrong_hint_costs_time_only(store: LocalObjectStore, hint: bytes) -> None:
    (shard,) = shards(store, 1)
    for first in range(0, 60, 10):
        send(shard, make_events(10, first))
    write_hint(store, 0, 3)
    store.put("log/hints/lane-0000.json", hint)
    assert UsageLogReader(store).now().positions == {0: 6}
    shard.stop()


def test_an_empty_log_has_an_empty_cut(store: LocalObjectStore) -> None:
    assert UsageLogReader(store).now().positions == {}
    open_log(store, lanes=2)
    cut = UsageLogReader(store).now()
    assert cut.positions == {0: -1, 1: -1}
    assert scan(store, cut).height == 0
