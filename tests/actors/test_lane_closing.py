"""The end of a lane: only where nothing can ask for it any more, for good; and no partition is lost, whoever races."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from actors.backfill_desk import BackfillDesk
from actors.local_router import LocalUsageRouter
from actors.partition_mover import close_lane, finish, half_moved, move_partition
from actors.rating_shard import RatingShard
from actors.tenant_clocks import SET_CLOCK
from billing.errors import Conflict, Unavailable
from billing.usage import Verdict
from storage.object_store import LocalObjectStore
from storage.usage_log.clock import SystemClock
from storage.usage_log.lane import LaneClosed, LaneWriter, LogBroken, is_closed, read_segment
from storage.usage_log.proving import prove_log
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.segment import SegmentHead, encode_segment, microseconds_of, segment_key
from tests.actors.test_lane_moves import chain
from tests.actors.test_partition_mover import Local, statuses
from tests.usage_log_support import OTHER_TENANT, TENANT, logged_ids, make_events


class Closing(Local):
    def close_lane(self, lane: int, arrived: Mapping[int, int]) -> bytes:
        self._step()
        return self.router.shards[lane].close_lane(arrived).result(10)


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


async def drained(store: LocalObjectStore, lanes: int = 2) -> LocalUsageRouter:
    """The last lane has no partitions any more; 300 events were stored before."""
    router = LocalUsageRouter.open(store, shards=lanes, master=chain(), deadline_s=5.0)
    await router.ingest(TENANT, make_events(300))
    spread = await router.spread(range(lanes - 1))
    assert (spread.moved, spread.left, spread.done) == (256 // lanes, 0, True)
    return router


def test_a_lane_that_was_drained_is_closed_and_nobody_can_claim_it_again(store: LocalObjectStore) -> None:
    async def scene() -> None:
        router = await drained(store)
        shard = router.shards[1]
        await router.close_lane(1)
        assert not shard.serving
        assert shard.status().stopped_because.startswith("lane_closed")
        assert is_closed(store, 1)
        assert not is_closed(store, 0)
        await router.close_lane(1)
        end = UsageLogReader(store).now().positions[1]
        for _ in range(2):
            with pytest.raises(LaneClosed):
                RatingShard(1, store).start()
        assert UsageLogReader(store).now().positions[1] == end, "who claims reads it and writes nothing"
        assert ((await router.ingest(TENANT, make_events(600))).verdicts == Verdict.DUPLICATE).sum() == 300
        await router.close()

    asyncio.run(scene())
    assert len(logged_ids(store)) == len(set(logged_ids(store))) == 600


def test_a_lane_with_partitions_stays_open(store: LocalObjectStore) -> None:
    async def scene() -> None:
        router = LocalUsageRouter.open(store, shards=2)
        with pytest.raises(Conflict, match="128 partitions"):
            await router.close_lane(1)
        with pytest.raises(Conflict, match="no lane 7"):
            await router.close_lane(7)
        assert router.shards[1].serving
        await router.close()

    asyncio.run(scene())


def test_routers_that_begin_later_find_what_the_closed_lane_had_and_ask_it_no_more(store: LocalObjectStore) -> None:
    """By the genesis their partitions are in the closed lane, and it cannot say itself where they went."""

    async def scene() -> None:
        before = await drained(store, 3)
        await before.close_lane(2)
        await before.close()
        router = LocalUsageRouter.open(store, master=chain(), deadline_s=5.0)
        assert sorted(router.shards) == [0, 1]
        assert (await router.status()).closed == (2,)
        assert ((await router.ingest(TENANT, make_events(300))).verdicts == Verdict.DUPLICATE).all()
        assert set((await router.ingest(TENANT, make_events(300, 300))).positions) == {0, 1}
        await router.advance_clock(OTHER_TENANT, datetime(2027, 1, 1, tzinfo=UTC))
        later = str(microseconds_of(datetime(2027, 1, 2, tzinfo=UTC))).encode()
        assert len(await router.decide_everywhere(OTHER_TENANT, SET_CLOCK, later)) == 2
        with pytest.raises(Conflict, match="closed"):
            await router.spread([0, 1, 2])
        assert (await router.spread([0, 1, 3])).moved > 0, "the next lane has the next number"
        assert sorted(router.shards) == [0, 1, 3]
        assert ((await router.ingest(TENANT, make_events(600))).verdicts == Verdict.DUPLICATE).all()
        await router.close()

    asyncio.run(scene())


def test_usage_is_asked_of_the_lanes_that_are_left(store: LocalObjectStore) -> None:
    async def scene() -> None:
        before = LocalUsageRouter.open(store, shards=3, master=chain())
        await before.ingest(TENANT, make_events(300))
        await before.spread([0, 1])
        await before.close_lane(2)
        await before.close()
        router = LocalUsageRouter.open(store, master=chain())
        seen = await router.usage(TENANT)
        assert sorted(seen.positions) == [0, 1]
        assert seen.live is not None
        await router.close()

    asyncio.run(scene())


def test_what_is_released_to_a_lane_that_is_being_closed_goes_back_and_stays(store: LocalObjectStore) -> None:
    """Two movers that know nothing of each other: one releases to the lane, the other one ends it."""

    async def scene() -> None:
        router = await drained(store)
        calls, ended = Closing(router), router.shards[1]
        (first, *_) = router.shards[0].status().owned
        calls.prepare_move(1, first, 0, 0)
        calls.release(0, first, 1)
        with pytest.raises(Unavailable):
            _raised(router.shards[0].acquire(first, 0).result(10))  # it may acquire it yet
        await router.close_lane(1)
        assert half_moved(statuses(router)) == [(first, 0, 1)]
        assert finish(calls, statuses(router), {1}) == []
        assert half_moved(statuses(router)) == []
        assert first in router.shards[0].status().owned
        assert ended.acquire(first, 0).result(10), "answered, with a refusal"
        assert ((await router.ingest(TENANT, make_events(300))).verdicts == Verdict.DUPLICATE).all()
        await router.ingest(TENANT, make_events(300, 300))
        router.stop()
        again = LocalUsageRouter.open(store, master=chain())
        assert len(again.shards[0].status().owned) == 256, "the log says the same"
        assert ((await again.ingest(TENANT, make_events(600))).verdicts == Verdict.DUPLICATE).all()
        assert prove_log(store, TENANT, UsageLogReader(store).now()).found == 0, "taken back is no theft"
        await again.spread([0, 2])
        assert ((await again.ingest(TENANT, make_events(600))).verdicts == Verdict.DUPLICATE).all()
        await again.close()
        await router.close()

    asyncio.run(scene())
    assert len(logged_ids(store)) == len(set(logged_ids(store))) == 600


def _raised(answer: bytes) -> None:
    from actors.decisions import decode_decided

    error = decode_decided(answer).error
    if error is not None:
        raise error


def test_a_lane_that_let_something_go_is_closed_once_that_has_arrived(store: LocalObjectStore) -> None:
    async def scene() -> None:
        router = LocalUsageRouter.open(store, shards=2)
        calls = Closing(router)
        owned = router.shards[1].status().owned
        for partition in owned[:-1]:
            move_partition(calls, partition, 1, 0, 0)
        calls.prepare_move(0, owned[-1], 1, 0)
        calls.release(1, owned[-1], 0)
        with pytest.raises(Conflict, match="on its way"):
            close_lane(calls, statuses(router), 1)
        assert finish(calls, statuses(router)) == []
        close_lane(calls, statuses(router), 1)
        assert is_closed(store, 1)
        await router.close()

    asyncio.run(scene())


def test_a_predecessor_that_wakes_writes_nothing_behind_the_end(store: LocalObjectStore) -> None:
    async def scene() -> None:
        router = await drained(store)
        zombie = router.shards[1]
        successor = RatingShard(1, store)
        successor.start()
        router.shards[1] = successor
        await router.close_lane(1)
        end = UsageLogReader(store).now().positions[1]
        with pytest.raises(Unavailable):
            _raised(zombie.acquire(0, 0).result(10))
        zombie.stop()
        assert UsageLogReader(store).now().positions[1] == end
        await router.close()

    asyncio.run(scene())


def test_something_behind_the_end_of_a_lane_stops_whoever_reads_it(store: LocalObjectStore) -> None:
    async def scene() -> None:
        router = await drained(store)
        await router.close_lane(1)
        await router.close()

    asyncio.run(scene())
    last = UsageLogReader(store).now().positions[1]
    segment = read_segment(store, 1, last)
    assert segment is not None
    head = SegmentHead(1, last + 1, segment.head.epoch, "x", segment.head.log_time_us, segment.digest)
    store.create(segment_key(1, last + 1), encode_segment(head, None))
    with pytest.raises(LogBroken, match="behind the record that closes the lane"):
        list(LaneWriter(store, 1, SystemClock()).read_on())


def test_a_lane_with_events_of_a_backfill_that_is_not_decided_stays_open(store: LocalObjectStore) -> None:
    """Its commit asks every lane what it has of it."""

    async def scene() -> None:
        router = LocalUsageRouter.open(store, shards=2, master=chain())
        desk = BackfillDesk(router, store)
        await desk.open(TENANT, "old", "by a test")
        await desk.send(TENANT, "old", make_events(200))
        await router.spread([0])
        with pytest.raises(Conflict, match="backfills keep it"):
            await router.close_lane(1)
        await router.spread([0, 1])
        await desk.commit(TENANT, "old", "by a test")
        await router.spread([0])
        await router.close_lane(1)
        assert is_closed(store, 1)
        assert [one.state for one in await desk.list(TENANT)] == ["committed"]
        await router.close()

    asyncio.run(scene())


def test_a_router_that_heard_of_the_release_to_a_closed_lane_learns_that_it_went_back(store: LocalObjectStore) -> None:
    """Both say the same generation; only a lane that has ended makes room for the other word."""
    router = LocalUsageRouter.open(store, shards=2)
    for closed, expected in ((False, 1), (True, 0)):
        router._learn_owners({5: (3, 1)})
        if closed:
            router._closed.add(1)
        router._learn_owners({5: (3, 0)})
        assert router._route[5] == expected
    router.stop()
