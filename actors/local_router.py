"""The router over shards in this process, one thread each: for tests, and for tools that run without Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.followers import LaneFollower
from actors.lane_scaling import LoadWatch, ScalingBounds
from actors.live_figures import Figures, MasterSource
from actors.partition_mover import close_lane, move_partition, spreading
from actors.rating_shard import RatingShard, ShardSettings
from actors.router import AGAIN, CALL_TIMEOUT_S, DEADLINE_S, GroupingRouter, LaneEnded, RouterStatus
from actors.shard_followers import shard_followers
from actors.spread_job import Spread, SpreadJob, Tell
from billing.errors import Conflict, NotFound, Unavailable
from storage.object_store import ObjectStore
from storage.usage_log.clock import Clock
from storage.usage_log.genesis import Genesis, open_log
from storage.usage_log.lane import count_lanes, is_closed


class LocalUsageRouter(GroupingRouter):
    """Shards in this process, one thread each. For tests and tools that run without Ray."""

    spread_answer_s = 60.0  # here who asks waits for all of it

    def __init__(self, genesis: Genesis, shards: Sequence[RatingShard], *, deadline_s: float = DEADLINE_S) -> None:
        super().__init__(genesis, deadline_s=deadline_s)
        self.shards = {shard.lane: shard for shard in shards}
        self._made: Callable[[int], RatingShard] | None = None
        self._load = LoadWatch(ScalingBounds())  # here nobody scales: it only says what lanes do
        self._spread = SpreadJob(self._make_spread)

    @classmethod
    def open(
        cls,
        store: ObjectStore,
        *,
        shards: int = 1,
        master: MasterSource | None = None,
        clock: Clock | None = None,
        settings: ShardSettings | None = None,
        followers: Callable[[int, MasterSource | None, ObjectStore], Sequence[LaneFollower]] = shard_followers,
        cache_directory: Path | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> LocalUsageRouter:
        """Start one shard per lane: as many lanes as the log has, `shards` if it is new."""
        genesis = open_log(store, lanes=shards)
        lanes = [lane for lane in range(max(genesis.lanes, count_lanes(store))) if not is_closed(store, lane)]

        def made(lane: int) -> RatingShard:
            followed = followers(lane, master, store)
            shard = RatingShard(
                lane, store, clock, settings, master=master, followers=followed, cache_directory=cache_directory
            )
            shard.start()
            return shard

        router = cls(genesis, [made(lane) for lane in lanes], deadline_s=deadline_s)
        router._closed = set(range(max(genesis.lanes, count_lanes(store)))) - set(lanes)
        router._made = made
        return router

    def add_lane(self) -> RatingShard:
        """Begin the next lane. It has no partitions until some move to it."""
        assert self._made is not None, "only a router that opened its shards can start another"
        shard = self._made(max([*self.shards, *self._closed]) + 1)
        self.shards[shard.lane] = shard
        return shard

    def _shard(self, lane: int) -> RatingShard:
        shard = self.shards.get(lane)
        if shard is None and lane in self._closed:
            raise LaneEnded(f"Lane {lane} is closed.")
        if shard is None:
            raise Unavailable(f"Nobody serves lane {lane} at the moment. {AGAIN}")
        return shard

    async def _call(self, lane: int, data: bytes) -> bytes:
        return await asyncio.wrap_future(self._shard(lane).submit(data))

    async def _decide(self, lane: int, data: bytes) -> bytes:
        return await asyncio.wrap_future(self._shard(lane).decide_named(data))

    def _lanes(self) -> Sequence[int]:
        return sorted(self.shards)

    async def _usage(self, lane: int, tenant_id: str, keys: list[str] | None, master_number: int) -> Figures:
        return await asyncio.to_thread(self._shard(lane).usage, tenant_id, keys, master_number)

    async def status(self) -> RouterStatus:
        statuses = tuple(shard.status() for shard in self.shards.values())
        return RouterStatus(statuses, closed=tuple(sorted(self._closed)), spread=self._spread.now())

    async def move(self, partition: int, lane: int) -> dict[str, Any]:
        if lane not in self.shards:
            raise Conflict(f"lane {lane} is closed" if lane in self._closed else f"there is no lane {lane}")
        (owner,) = [one for one in map(RatingShard.status, self.shards.values()) if partition in one.owned]
        if owner.lane == lane:
            return {"partition": partition, "moved": False}
        calls, generation = LocalLaneCalls(self.shards), owner.generation_of(partition)
        return dict(await asyncio.to_thread(move_partition, calls, partition, owner.lane, lane, generation))

    async def plan(self) -> dict[str, Any]:
        lanes = max([*self.shards, *self._closed]) + 1
        self._load.observe(time.monotonic(), [one.status() for one in self.shards.values()], lanes=lanes)
        return self._load.plan(time.monotonic()).to_form()

    async def spread(self, lanes: Sequence[int]) -> Spread:
        if gone := sorted(self._closed.intersection(lanes)):
            raise Conflict(f"lanes {', '.join(map(str, gone))} are closed; their numbers are not used again")
        return await asyncio.to_thread(self._spread.ask, lanes, self.spread_answer_s)

    def _make_spread(self, spread: Spread, tell: Tell) -> None:
        while max(self.shards) < max(spread.lanes):
            self.add_lane()
        statuses = {one.lane: one.status() for one in self.shards.values()}
        moves = spreading(list(statuses.values()), spread.lanes)
        for done, (partition, owner, lane) in enumerate(moves):
            tell(replace(spread, left=len(moves) - done))
            try:
                move_partition(
                    LocalLaneCalls(self.shards), partition, owner, lane, statuses[owner].generation_of(partition)
                )
                spread = replace(spread, moved=spread.moved + 1)
            except Conflict:  # one that must stay, stays
                spread = replace(spread, stayed=spread.stayed + 1)
        tell(spread)

    async def leave(self, node: str, *, leaves: bool) -> None:
        raise NotFound(f"there is no node {node!r}: all lanes are served in this process")

    async def close_lane(self, lane: int) -> None:
        if lane in self._closed:
            return
        if lane not in self.shards:
            raise Conflict(f"there is no lane {lane}")
        statuses = [one.status() for one in self.shards.values()]
        await asyncio.to_thread(close_lane, LocalLaneCalls(self.shards), statuses, lane)
        self._closed.add(lane)
        await asyncio.to_thread(self.shards.pop(lane).stop)

    async def close(self) -> None:
        await super().close()
        self.stop()

    def stop(self) -> None:
        """End the shards; for callers without an event loop."""
        for shard in self.shards.values():
            shard.stop()


@dataclass(frozen=True)
class LocalLaneCalls:
    """The shards of this process, as a mover calls them."""

    shards: Mapping[int, RatingShard]

    def prepare_move(self, lane: int, partition: int, from_lane: int, generation: int) -> None:
        self.shards[lane].prepare_move(partition, from_lane, generation)

    def release(self, lane: int, partition: int, to_lane: int) -> bytes:
        return self.shards[lane].release(partition, to_lane).result(CALL_TIMEOUT_S)

    def acquire(self, lane: int, partition: int, from_lane: int) -> bytes:
        return self.shards[lane].acquire(partition, from_lane).result(CALL_TIMEOUT_S)

    def close_lane(self, lane: int, arrived: Mapping[int, int]) -> bytes:
        return self.shards[lane].close_lane(arrived).result(CALL_TIMEOUT_S)
