"""Lanes by load: added when it stays high, emptied when one fewer does, never to and fro."""

from __future__ import annotations

from dataclasses import replace

from actors.lane_scaling import LoadWatch, ScalingBounds, ScalingPlan
from storage.usage_log.genesis import PARTITIONS
from tests.actors.test_supervisor import STATUS

BOUNDS = ScalingBounds(
    lanes_min=1, lanes_max=3, rows_s_high=100.0, rows_s_low=30.0, wait_s_high=2.0, hold_s=10.0, calm_s=60.0
)


class World:
    """Lanes with a load of the test's; a plan is carried out at once."""

    def __init__(self, bounds: ScalingBounds = BOUNDS, lanes: int = 1) -> None:
        self.watch = LoadWatch(bounds)
        self.now_s = 1_000.0
        self.lanes: list[int] = list(range(lanes))
        self.known = lanes
        self.rows = 0.0
        self.queued = 0
        self.done: list[tuple[str, int]] = []  # what, lanes after it

    def tick(self, rows_s: float, *, act: bool = True) -> ScalingPlan:
        """A second with so many rows over all lanes."""
        self.now_s += 1.0
        self.rows += rows_s / max(len(self.lanes), 1)
        share = PARTITIONS // len(self.lanes)
        statuses = []
        for lane in range(self.known):
            owned = tuple(range(lane * share, (lane + 1) * share)) if lane in self.lanes else ()
            rows = int(self.rows) if lane in self.lanes else 0
            statuses.append(
                replace(STATUS, lane=lane, rows=rows, queued_rows=self.queued, partitions=len(owned), owned=owned)
            )
        self.watch.observe(self.now_s, statuses)
        plan = self.watch.plan(self.now_s)
        if act and plan.do != "stay":
            self.lanes = list(plan.lanes)
            self.known = max(self.known, max(self.lanes) + 1)
            self.done.append((plan.do, len(self.lanes)))
            self.watch.changed(self.now_s)
        return plan

    def run(self, seconds: int, rows_s: float) -> list[tuple[str, int]]:
        self.done.clear()
        for _ in range(seconds):
            self.tick(rows_s)
        return list(self.done)


def test_a_lane_is_added_when_the_load_stays_high_and_not_by_a_peak() -> None:
    world = World()
    world.run(5, 10.0)
    assert world.run(10, 150.0) == []
    assert world.run(20, 10.0) == [], "the peak is over"
    assert world.run(12, 150.0) == []
    assert world.run(10, 150.0) == [("add", 2)]


def test_load_that_one_lane_fewer_would_not_bear_is_left_where_it_is() -> None:
    """Added at 101, two lanes have 51 each: one lane of 101 is far above the low bound, so it stays for ever."""
    world = World()
    world.run(30, 102.0)
    assert world.lanes == [0, 1]
    assert world.run(1_000, 102.0) == []
    assert world.run(1_000, 32.0) == []
    assert world.run(200, 28.0) == [("remove", 1)]


def test_between_two_changes_lies_some_time_and_limits_are_kept() -> None:
    world = World()
    assert world.run(30, 1_000.0) == [("add", 2)]
    assert world.run(60, 1_000.0) == [("add", 3)]
    assert world.run(1_000, 1_000.0) == []
    assert "most" in world.tick(1_000.0).why
    assert world.run(1_000, 0.0) == [("remove", 2), ("remove", 1)]
    assert world.run(1_000, 0.0) == []


def test_what_waits_too_long_asks_for_a_lane_too() -> None:
    world = World()
    world.queued = 500
    assert world.run(12, 90.0) == [("add", 2)]


def test_a_lane_that_was_emptied_is_used_again_before_a_new_one() -> None:
    world = World(lanes=2)
    assert world.run(100, 0.0) == [("remove", 1)]
    assert world.run(200, 150.0) == [("add", 2)]
    assert world.known == 2


def test_nothing_is_done_where_nobody_asked_for_it_and_a_shard_that_begins_anew_is_no_load() -> None:
    world = World(replace(BOUNDS, lanes_max=0))
    assert world.run(100, 1_000.0) == []
    world = World()
    world.run(5, 10.0)
    world.rows = 0.0  # it was replaced
    assert world.tick(10.0).loads[0].rows_s <= 10.0


def test_a_plan_says_what_it_would_move_and_why() -> None:
    world = World()
    for _ in range(13):
        plan = world.tick(150.0, act=False)
    assert (plan.do, plan.lanes, plan.moves) == ("add", (0, 1), 128)
    form = plan.to_form()
    assert form["why"] == "150 rows a second and lane are above 100"
    assert form["loads"] == [{"lane": 0, "partitions": 256, "rows_s": 150, "wait_s": 0.0}]


def test_fewer_lanes_than_the_least_are_made_more_at_once() -> None:
    world = World(replace(BOUNDS, lanes_min=2))
    assert world.run(3, 0.0) == [("add", 2)]
    assert world.run(300, 0.0) == []


def test_a_lane_that_is_added_has_a_number_that_no_closed_lane_had() -> None:
    watch = LoadWatch(replace(BOUNDS, lanes_min=2, lanes_max=3))
    status = replace(STATUS, lane=0, owned=tuple(range(256)))
    watch.observe(1.0, [status], lanes=3)  # 1 and 2 are closed: they say nothing
    assert watch.plan(2.0).lanes == (0, 3)
    watch.observe(2.0, [status, replace(STATUS, lane=2, partitions=0)], lanes=3)
    assert watch.plan(3.0).lanes == (0, 2), "one that is open and empty comes first"
