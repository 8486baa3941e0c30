"""The supervisor's decisions on a clock and a host of the test's own: when it acts, and when it must not."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from actors.rating_shard import ShardStatus
from actors.supervisor import (
    AGAIN_S_MAX,
    CALM_S,
    HUNG_S,
    RECOVERING_S_MAX,
    STARTING_S_MAX,
    Beat,
    Health,
    ShardSupervisor,
    shards_default,
)

STATUS = ShardStatus(
    lane=0, number=1, epoch=1, log_time_us=1, serving=True, stopped_because="", stalled_s=0.0, queued_rows=0,
    recent_ids=0, run_ids=0, runs=0, groups=0, rows=0, duplicates=0, recovered_s=0.1, partitions=256, checkpoint=-1,
    checkpoint_error="", figures_error="",
)  # fmt: skip


@dataclass
class World:
    """A host whose shards do what the test says; `start` makes a shard that serves at once."""

    lanes: int = 1
    now: float = 100.0
    beats: dict[int, Beat] = field(default_factory=dict)
    done: list[tuple[str, int]] = field(default_factory=list)
    comes_up: bool = True
    answers_after_s: float = 0.0

    def __post_init__(self) -> None:
        self.supervisor = ShardSupervisor(self, self.lanes, now_s=lambda: self.now)

    def beat(self, lane: int) -> Beat:
        self.now += self.answers_after_s
        return self.beats.get(lane, Beat(Health.ABSENT))

    def start(self, lane: int) -> None:
        self.done.append(("start", lane))
        self.beats[lane] = Beat(Health.SERVING, STATUS) if self.comes_up else Beat(Health.SILENT)

    def end(self, lane: int) -> None:
        self.done.append(("end", lane))
        self.beats[lane] = Beat(Health.ABSENT)

    def look(self, seconds: float) -> list[tuple[str, int]]:
        """One look a second; what was done in that time."""
        self.done.clear()
        for _ in range(int(seconds)):
            self.supervisor.reconcile()
            self.now += 1.0
        return list(self.done)


def test_a_missing_shard_of_each_lane_is_started_once() -> None:
    world = World(lanes=3)
    assert world.look(1) == [("start", 0), ("start", 1), ("start", 2)]
    assert world.look(100) == []
    assert world.supervisor.status().healthy


def test_a_hung_shard_is_replaced_after_seconds_and_not_before() -> None:
    world = World()
    world.look(5)
    world.beats[0] = Beat(Health.SILENT)
    assert world.look(HUNG_S) == []
    assert world.look(2) == [("end", 0), ("start", 0)]
    assert "no answer" in world.supervisor.status().replacements[-1].reason


def test_a_lane_that_falls_silent_again_and_again_is_given_more_time_each_time_and_less_when_it_is_calm() -> None:
    """A machine that starves is not helped by new processes."""
    world = World()
    world.look(5)
    waited: list[int] = []
    for _ in range(5):
        world.beats[0] = Beat(Health.SILENT)
        seconds = 0
        while not world.look(1):
            seconds += 1
        waited.append(seconds)
        world.look(2)
    assert waited == [4, 8, 16, 20, 20]
    world.look(CALM_S + 1)
    world.beats[0] = Beat(Health.SILENT)
    assert world.look(HUNG_S) == []
    assert world.look(1) == [("end", 0), ("start", 0)]


def test_a_lane_whose_new_process_dies_is_started_again_at_once_and_then_more_and_more_seldom() -> None:
    """The first death may be any; those that follow say that something keeps it from coming up."""
    world = World()
    world.look(5)
    starts: list[int] = []
    for second in range(30):
        world.beats[0] = Beat(Health.ABSENT)
        starts += [second] * len(world.look(1))
    assert starts[:3] == [0, 1, 3], "one second after the first, then two"
    assert {later - earlier for earlier, later in pairwise(starts[3:])} == {AGAIN_S_MAX}
    world.beats[0] = Beat(Health.SERVING, STATUS)
    world.look(AGAIN_S_MAX + 2)
    for _ in range(2):
        world.beats[0] = Beat(Health.ABSENT)
        assert world.look(1) == [("start", 0)], "one that served for a while had come up"
        world.look(AGAIN_S_MAX + 2)


def test_a_shard_that_cannot_have_its_lane_is_replaced_with_the_reason_it_gives_and_not_every_look() -> None:
    world = World()
    world.look(5)
    done: list[tuple[str, int]] = []
    for _ in range(20):
        world.beats[0] = Beat(Health.STOPPED, None, "store_unavailable: the store is away")
        done += world.look(1)
    assert "the store is away" in world.supervisor.status().replacements[-1].reason
    assert 4 <= done.count(("start", 0)) <= 8
    assert done.count(("end", 0)) == done.count(("start", 0))


def test_a_process_that_says_that_it_recovers_is_given_time_and_one_that_falls_silent_then_is_not() -> None:
    world = World()
    world.look(5)
    world.beats[0] = Beat(Health.STARTING)
    assert world.look(RECOVERING_S_MAX) == []
    world.beats[0] = Beat(Health.SILENT)
    assert world.look(HUNG_S) == []
    assert world.look(1) == [("end", 0), ("start", 0)]
    world.beats[0] = Beat(Health.STARTING)
    assert world.look(RECOVERING_S_MAX + 2) == [("end", 0), ("start", 0)], "for ever it is not waited for either"


def test_a_silence_counts_from_the_question_that_nobody_answered() -> None:
    world = World()
    world.look(5)
    world.beats[0] = Beat(Health.SILENT)
    world.answers_after_s = 2.0
    world.supervisor.reconcile()
    world.now += 0.5
    assert world.look(1) == [("end", 0), ("start", 0)], "asked at 0, again at 2.5, no answer until 4.5"


def test_lanes_that_hang_together_are_found_together() -> None:
    """Each is asked in a thread of its own: else every one that hangs would delay the look at the next."""
    world = World(lanes=4)
    world.look(5)
    all_asked = threading.Barrier(4, timeout=5.0)
    plain = world.beat

    def beat(lane: int) -> Beat:
        all_asked.wait()
        return plain(lane)

    world.beat = beat  # type: ignore[method-assign]
    assert world.supervisor.reconcile().healthy


def test_a_short_silence_is_forgiven() -> None:
    world = World()
    world.look(5)
    for _ in range(5):
        world.beats[0] = Beat(Health.SILENT)
        assert world.look(int(HUNG_S)) == []
        world.beats[0] = Beat(Health.SERVING, STATUS)
        assert world.look(1) == []


def test_a_dead_shard_is_replaced_at_the_next_look() -> None:
    world = World()
    world.look(5)
    world.beats[0] = Beat(Health.ABSENT)
    assert world.look(1) == [("start", 0)]


def test_a_shard_that_lost_its_lane_is_replaced_and_the_reason_kept() -> None:
    world = World()
    world.look(5)
    world.beats[0] = Beat(Health.STOPPED, replace(STATUS, serving=False, stopped_because="lane_lost"))
    assert world.look(1) == [("end", 0), ("start", 0)]
    assert "lane_lost" in world.supervisor.status().replacements[-1].reason


def test_a_shard_that_recovers_for_long_is_not_killed_again_and_again() -> None:
    world = World(comes_up=False)
    assert world.look(1) == [("start", 0)]
    assert world.look(STARTING_S_MAX - 2) == []
    world.beats[0] = Beat(Health.SERVING, STATUS)
    assert world.look(3) == []


def test_one_sick_lane_does_not_touch_the_others() -> None:
    world = World(lanes=3)
    world.look(5)
    world.beats[1] = Beat(Health.SILENT)
    assert world.look(HUNG_S + 2) == [("end", 1), ("start", 1)]


def test_a_closed_lane_is_served_no_more_and_the_platform_is_whole_without_it() -> None:
    world = World(lanes=3)
    world.look(5)
    world.beats[1] = Beat(Health.CLOSED)
    assert world.look(1) == [("end", 1)]
    assert world.look(100) == []
    status = world.supervisor.status()
    assert status.healthy
    assert ([lane for lane, _, _ in status.lanes], status.closed) == ([0, 2], (1,))
    known = ShardSupervisor(world, 3, closed={1}, now_s=lambda: world.now)
    world.done.clear()
    known.reconcile()
    assert world.done == [], "whoever reads the log at its start starts nothing for it"


@pytest.mark.parametrize(("cores", "shards"), [(1, 1), (2, 1), (3, 1), (4, 2), (16, 8), (None, 1)])
def test_half_the_cores_serve_lanes_and_at_least_one(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, shards: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert shards_default() == shards
