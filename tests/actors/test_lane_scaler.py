"""What the load asks for is carried out: a lane is added, and the one that is not needed is emptied and ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from actors.lane_scaler import LaneScaler
from actors.lane_scaling import LoadWatch, ScalingBounds, ScalingPlan
from actors.lane_spread import even_moves
from actors.spread_job import Spread
from billing.errors import Conflict, Unavailable
from storage.usage_log.genesis import LANES_MAX, PARTITIONS
from tests.actors.test_supervisor import STATUS

BOUNDS = ScalingBounds(
    lanes_min=1, lanes_max=3, rows_s_high=100.0, rows_s_low=30.0, wait_s_high=2.0, hold_s=10.0, calm_s=60.0
)


@dataclass
class World:
    """Lanes with a load of the test's; partitions move and lanes end at once, if the test lets them."""

    watch: LoadWatch = field(default_factory=lambda: LoadWatch(BOUNDS))
    lanes: int = 1
    closed: set[int] = field(default_factory=set[int])
    held: dict[int, list[int]] = field(default_factory=lambda: {0: list(range(PARTITIONS))})
    now_s: float = 1_000.0
    rows: float = 0.0
    moved: int = 0
    fails: Exception | None = None  # spreading
    lasts: bool = False  # spreading, longer than anybody waits
    refuses: Exception | None = None  # closing

    def __post_init__(self) -> None:
        self.scaler = LaneScaler(self, self.plan, self.spread, self.close_lane)

    @property
    def open_lanes(self) -> list[int]:
        return [lane for lane in range(self.lanes) if lane not in self.closed]

    @property
    def shares(self) -> dict[int, int]:
        return {lane: len(self.held.get(lane, ())) for lane in self.open_lanes}

    def plan(self) -> ScalingPlan:
        return self.watch.plan(self.now_s)

    def spread(self, lanes: Sequence[int]) -> Spread:
        assert not self.closed.intersection(lanes), "a number is used again"
        if self.fails is not None:
            raise self.fails
        self.lanes = max(self.lanes, max(lanes) + 1)
        moves = even_moves(self.held, lanes)
        for partition, from_lane, to_lane in moves[: len(moves) // 2] if self.lasts else moves:
            self.held[from_lane].remove(partition)
            self.held.setdefault(to_lane, []).append(partition)
            self.moved += 1
        if not self.lasts:
            self.watch.changed(self.now_s)
        return Spread(tuple(lanes), done=not self.lasts)

    def close_lane(self, lane: int) -> None:
        assert not self.held.get(lane), "a lane with partitions was ended"
        if self.refuses is not None:
            raise self.refuses
        self.closed.add(lane)

    def run(self, seconds: int, rows_s: float) -> None:
        """So long such a load over all lanes; a round each second."""
        for _ in range(seconds):
            self.now_s += 1.0
            self.rows += rows_s / sum(1 for count in self.shares.values() if count)
            statuses = [
                replace(STATUS, lane=lane, rows=int(self.rows) if count else 0, partitions=count,
                        owned=tuple(self.held.get(lane, ())))
                for lane, count in self.shares.items()
            ]  # fmt: skip
            self.watch.observe(self.now_s, statuses, lanes=self.lanes)
            self.scaler.round()


def test_lanes_are_added_by_load_and_share_all_partitions() -> None:
    world = World()
    world.run(200, 1_000.0)
    assert world.shares == {0: 86, 1: 85, 2: 85}
    assert world.moved == 128 + 85, "no partition moved that need not"


def test_a_lane_that_is_not_needed_is_emptied_and_ended_and_its_number_is_gone() -> None:
    world = World()
    world.run(30, 150.0)
    assert world.shares == {0: 128, 1: 128}
    world.run(200, 5.0)
    assert (world.shares, world.closed) == ({0: 256}, {1})
    world.run(200, 110.0)
    assert (world.shares, world.closed) == ({0: 128, 2: 128}, {1})


def test_a_lane_that_something_may_still_ask_for_stays_empty_and_is_used_again() -> None:
    world = World(refuses=Conflict("a backfill has events in it"))
    world.run(30, 150.0)
    world.run(200, 5.0)
    assert (world.shares, world.closed) == ({0: 256, 1: 0}, set())
    world.run(200, 110.0)
    assert (world.shares, world.lanes) == ({0: 128, 1: 128}, 2)


def test_a_lane_is_ended_only_when_all_its_partitions_have_gone() -> None:
    world = World()
    world.run(30, 150.0)
    world.lasts = True
    world.run(90, 5.0)
    assert 0 < world.shares[1] < 128
    world.lasts = False
    world.run(2, 5.0)
    assert (world.shares, world.closed) == ({0: 256}, {1})


def test_what_kept_it_from_scaling_is_told_and_the_next_round_tries_again() -> None:
    world = World(fails=Unavailable("a lane does not answer"))
    with pytest.raises(Unavailable):
        world.run(30, 150.0)
    world.fails = None
    world.run(1, 150.0)
    assert world.shares == {0: 128, 1: 128}


def test_numbers_of_lanes_are_kept_when_half_of_them_are_used() -> None:
    last = LANES_MAX // 2 - 1
    world = World(lanes=LANES_MAX // 2, closed=set(range(1, last)))
    world.held = {0: list(range(128)), last: list(range(128, 256))}
    world.run(200, 5.0)
    assert world.shares == {0: 256, last: 0}
