"""The mover over shards in this process: it finishes what others left, spreads over new lanes and empties old ones."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors.local_router import LocalUsageRouter
from actors.partition_mover import finish, half_moved, move_partition, owner_among, spreading
from actors.rating_shard import ShardStatus
from billing.errors import Unavailable
from billing.usage import Verdict
from storage.object_store import LocalObjectStore
from tests.usage_log_support import TENANT, make_events


@dataclass
class Local:
    """The calls to shards of this process; may die before a call."""

    router: LocalUsageRouter
    die_at: int = 1_000_000

    def _step(self) -> None:
        self.die_at -= 1
        if self.die_at < 0:
            raise Unavailable("the mover died")

    def prepare_move(self, lane: int, partition: int, from_lane: int, generation: int) -> None:
        self._step()
        self.router.shards[lane].prepare_move(partition, from_lane, generation)

    def release(self, lane: int, partition: int, to_lane: int) -> bytes:
        self._step()
        return self.router.shards[lane].release(partition, to_lane).result(10)

    def acquire(self, lane: int, partition: int, from_lane: int) -> bytes:
        self._step()
        return self.router.shards[lane].acquire(partition, from_lane).result(10)


def statuses(router: LocalUsageRouter) -> list[ShardStatus]:
    return [shard.status() for shard in router.shards.values()]


@pytest.mark.parametrize("die_at", [0, 1, 2, 3])
def test_a_move_that_died_at_any_call_is_finished_by_the_next_look(tmp_path: Path, die_at: int) -> None:
    async def scene() -> None:
        router = LocalUsageRouter.open(LocalObjectStore(tmp_path), shards=2)
        await router.ingest(TENANT, make_events(100))
        (first, *_) = router.shards[0].status().owned
        if die_at < 3:
            with pytest.raises(Unavailable):
                move_partition(Local(router, die_at), first, 0, 1, 0)
        else:
            assert move_partition(Local(router, die_at), first, 0, 1, 0)["generation"] == 1
        assert half_moved(statuses(router)) == ([(first, 0, 1)] if die_at == 2 else [])
        assert finish(Local(router), statuses(router)) == []
        owners = [status.lane for status in statuses(router) if first in status.owned]
        assert owners == ([1] if die_at >= 2 else [0])
        assert ((await router.ingest(TENANT, make_events(100))).verdicts == Verdict.DUPLICATE).all()
        await router.close()

    asyncio.run(scene())


def test_partitions_spread_to_a_new_lane_and_leave_one_that_is_drained(tmp_path: Path) -> None:
    async def scene() -> None:
        router = LocalUsageRouter.open(LocalObjectStore(tmp_path), shards=2)
        await router.ingest(TENANT, make_events(300))
        router.add_lane()
        for lanes in ([0, 1, 2], [1, 2], [0, 1, 2]):
            plan = spreading(statuses(router), lanes)
            chance = random.Random(1)
            some = plan if len(plan) < 20 else chance.sample(plan, 20)
            for partition, from_lane, to_lane in some:
                generation = router.shards[from_lane].status().generation_of(partition)
                move_partition(Local(router), partition, from_lane, to_lane, generation)
            sizes = {status.lane: len(status.owned) for status in statuses(router)}
            assert sum(sizes.values()) == 256
            left = spreading(statuses(router), lanes)
            assert len(left) == len(plan) - len(some), "each move brings it nearer"
        assert ((await router.ingest(TENANT, make_events(300))).verdicts == Verdict.DUPLICATE).all()
        await router.close()

    asyncio.run(scene())


def test_a_plan_moves_as_little_as_possible_and_ends_even() -> None:
    def status(lane: int, owned: range) -> ShardStatus:
        fields = {name: 0 for name in ShardStatus.__dataclass_fields__}
        return ShardStatus(**{**fields, "lane": lane, "owned": tuple(owned), "released": ()})  # type: ignore[arg-type]

    even = [status(0, range(128)), status(1, range(128, 256))]
    assert spreading(even, [0, 1]) == []
    assert len(spreading(even, [0, 1, 2])) == 85
    drained = spreading(even, [1])
    assert sorted(partition for partition, _, _ in drained) == list(range(128))
    assert {(from_lane, to_lane) for _, from_lane, to_lane in drained} == {(0, 1)}


def test_a_lane_that_does_not_answer_holds_up_no_move_between_others(tmp_path: Path) -> None:
    async def scene() -> None:
        router = LocalUsageRouter.open(LocalObjectStore(tmp_path), shards=3)
        await router.ingest(TENANT, make_events(100))
        zero, one, two = statuses(router)
        first = zero.owned[0]
        assert owner_among([zero, one], first, 1).lane == 0  # lane 2 is away, and has nothing to do with it
        with pytest.raises(Unavailable, match="Nobody who answers"):
            owner_among([one, two], first, 1)
        with pytest.raises(Unavailable, match="Lane 1 does not answer"):
            owner_among([zero, two], first, 1)
        move_partition(Local(router), first, 0, 1, 0)
        # What lane 0 said before it released is old: the newer generation counts.
        assert owner_among([zero, *statuses(router)], first, 2).lane == 1

    asyncio.run(scene())
