"""Warm spares and who serves a lane, on processes of the test's own: a death before and after each step, two that place
lanes at once, sleepers that wake. Epochs are played by `Lane`: whoever claims last is the only one who may write."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import pytest

from actors.spares import Lost, Role, ShardPlacement, Told
from actors.supervisor import HUNG_S, STARTING_S_MAX, ShardSupervisor
from billing.errors import Conflict, NotFound
from tests.actors.test_supervisor import STATUS


@dataclass
class Process:
    node: str
    lane: int | None = None
    epoch: int = 0
    up_at_s: float = 0.0
    serves_at_s: float = 0.0
    is_frozen: bool = False
    heard: list[int] = field(default_factory=list)  # lanes it was told while it could not hear
    failed: str = ""


class Died(Exception):
    """The supervisor's process ends here."""


@dataclass
class Machine:
    """Processes on nodes, pointers, and what the lanes' logs say: the newest epoch of each."""

    lanes: int = 2
    machines: Sequence[str] = ("one",)
    warm_s: float = 0.1
    cold_s: float = 3.0
    now: float = 0.0
    processes: dict[str, Process] = field(default_factory=dict)
    pointers: dict[int, str] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    left: frozenset[str] = frozenset()
    die_at: int = -1  # the number of the changing call that is the last one of a supervisor's life
    before_call: Callable[[str], None] = lambda _: None
    _names: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def supervisor(self, spares: int = 1) -> tuple[ShardPlacement, ShardSupervisor]:
        placement = ShardPlacement(self, spares, now_s=lambda: self.now, new_name=lambda: f"p{next(self._names)}")
        placement.look(range(self.lanes))
        return placement, ShardSupervisor(placement, self.lanes, now_s=lambda: self.now)

    # -- what a placement calls ---------------------------------------------------------------------------------------

    def names(self) -> Sequence[str]:
        return list(self.processes)

    def ask(self, name: str) -> Role | Lost:
        process = self.processes.get(name)
        if process is None:
            return Lost.GONE
        if process.is_frozen or self.now < process.up_at_s:
            return Lost.SILENT
        if process.lane is None or self.now < process.serves_at_s:
            return Role(process.node, process.lane)
        if process.failed:
            return Role(process.node, process.lane, None, process.failed)
        if process.epoch == 0:  # it claims when it has recovered
            process.epoch = self.epochs[process.lane] = self.epochs.get(process.lane, 0) + 1
        serving = self.epochs[process.lane] == process.epoch
        status = replace(STATUS, lane=process.lane, epoch=process.epoch, serving=serving,
                         stopped_because="" if serving else "lane_lost")  # fmt: skip
        return Role(process.node, process.lane, status)

    def begin(self, name: str, *, lane: int | None = None, node: str | None = None) -> None:
        self._changes(f"begin {name} {lane}")
        where = node if node in self.machines else self.machines[len(self.processes) % len(self.machines)]
        assert where is not None
        process = self.processes[name] = Process(where, up_at_s=self.now + self.cold_s)
        if lane is not None:
            self._hear(process, lane)

    def take(self, name: str, lane: int, *, is_up: bool) -> Told:
        self._changes(f"take {name} {lane}")
        process = self.processes.get(name)
        if process is None:
            return Told.UNKNOWN
        if process.is_frozen:
            process.heard.append(lane)
            return Told.UNKNOWN
        self._hear(process, lane)
        return Told.YES if process.lane == lane else Told.OTHER

    def end(self, name: str) -> None:
        self._changes(f"end {name}")
        self.processes.pop(name, None)

    def name_of(self, lane: int) -> str | None:
        return self.pointers.get(lane)

    def point(self, lane: int, name: str) -> None:
        self._changes(f"point {lane} {name}")
        self.pointers[lane] = name

    def nodes(self) -> Sequence[str]:
        return self.machines

    def leaving(self) -> frozenset[str]:
        return self.left

    def set_leaving(self, nodes: Collection[str]) -> None:
        self.left = frozenset(nodes)

    # -- what happens -------------------------------------------------------------------------------------------------

    def _hear(self, process: Process, lane: int) -> None:
        if process.lane is None:
            process.lane, process.serves_at_s = lane, max(self.now, process.up_at_s) + self.warm_s

    def _changes(self, call: str) -> None:
        if self.die_at == len(self.calls):
            raise Died(call)
        self.before_call(call)
        self.calls.append(call)

    def kill(self, name: str) -> None:
        del self.processes[name]

    def wake(self, name: str) -> None:
        """A sleeper does what it was told meanwhile."""
        process = self.processes[name]
        process.is_frozen = False
        for lane in process.heard:
            self._hear(process, lane)

    def kill_node(self, node: str) -> None:
        self.machines = [one for one in self.machines if one != node]
        for name in [name for name, one in self.processes.items() if one.node == node]:
            self.kill(name)

    def run(self, placement: ShardPlacement, supervisor: ShardSupervisor, seconds: float) -> None:
        """Looks ten times a second, as a bell that rings would have it; spares are seen to once all lanes serve."""
        for _ in range(round(seconds * 10)):
            if supervisor.reconcile().healthy:
                placement.keep(supervisor.open_lanes)
                placement.hand_over(supervisor.open_lanes)
            self.now += 0.1

    def until_served(self, placement: ShardPlacement, supervisor: ShardSupervisor) -> float:
        began = self.now
        while not supervisor.reconcile().healthy:
            self.now += 0.1
            assert self.now - began < STARTING_S_MAX, self.calls[-10:]
        return self.now - began

    def assert_in_order(self, spares: int = 1) -> None:
        """Each lane has one process and no other one believes it has it; every node with shards has its spares."""
        by_lane = {lane: [name for name, one in self.processes.items() if one.lane == lane] for lane in self.pointers}
        assert by_lane == {lane: [self.pointers[lane]] for lane in range(self.lanes)}
        idle = sorted(one.node for one in self.processes.values() if one.lane is None)
        with_shards = {self.processes[name].node for name in self.pointers.values()}
        assert idle == sorted(node for node in with_shards for _ in range(spares))


def settled(machine: Machine, spares: int = 1) -> tuple[ShardPlacement, ShardSupervisor]:
    placement, supervisor = machine.supervisor(spares)
    machine.run(placement, supervisor, 15.0)
    machine.assert_in_order(spares)
    machine.calls.clear()
    return placement, supervisor


@pytest.mark.parametrize("spares", [0, 1, 2])
def test_a_platform_starts_its_lanes_and_then_as_many_spares_as_asked_for(spares: int) -> None:
    machine = Machine(lanes=2)
    placement, supervisor = settled(machine, spares)
    machine.run(placement, supervisor, 30.0)
    assert machine.calls == [], "and then nothing more"
    assert len(placement.spares()) == spares


def test_the_spare_has_the_lane_of_a_killed_shard_in_the_time_that_a_warm_one_takes_and_another_is_begun() -> None:
    machine = Machine()
    placement, supervisor = settled(machine)
    (spare,) = (name for name, _, _ in placement.spares())
    machine.kill(machine.pointers[1])
    assert machine.until_served(placement, supervisor) < 0.4
    assert machine.pointers[1] == spare
    machine.run(placement, supervisor, 10.0)
    machine.assert_in_order()


def test_without_a_spare_a_process_is_begun_for_the_lane() -> None:
    machine = Machine()
    placement, supervisor = settled(machine, spares=0)
    machine.kill(machine.pointers[0])
    assert machine.cold_s < machine.until_served(placement, supervisor) < machine.cold_s + 0.5
    machine.assert_in_order(0)


def test_a_spare_that_is_still_starting_is_given_the_lane_rather_than_one_begun_after_it() -> None:
    machine = Machine()
    placement, supervisor = settled(machine)
    machine.kill(machine.pointers[0])
    machine.run(placement, supervisor, 1.5)  # the next spare is begun by now
    machine.kill(machine.pointers[0])
    assert machine.until_served(placement, supervisor) < machine.cold_s
    machine.run(placement, supervisor, 10.0)
    machine.assert_in_order()


def test_a_dead_spare_is_replaced_and_one_that_died_unseen_costs_a_lane_no_more_than_a_start() -> None:
    machine = Machine()
    placement, supervisor = settled(machine)
    ((spare, _, _),) = placement.spares()
    machine.kill(spare)
    machine.kill(machine.pointers[0])
    assert machine.until_served(placement, supervisor) < machine.cold_s + 0.5
    machine.run(placement, supervisor, 10.0)
    machine.assert_in_order()


def test_a_spare_that_hangs_is_passed_over_and_has_no_lane_when_it_wakes() -> None:
    machine = Machine()
    placement, supervisor = settled(machine)
    ((spare, _, _),) = placement.spares()
    machine.processes[spare].is_frozen = True
    machine.kill(machine.pointers[0])
    machine.until_served(placement, supervisor)
    assert spare not in machine.processes, "what may have heard of a lane is ended before another one is told"
    machine.run(placement, supervisor, 10.0)
    machine.assert_in_order()


def test_a_spare_that_hangs_is_replaced_though_nobody_needs_it() -> None:
    machine = Machine()
    placement, supervisor = settled(machine)
    ((spare, _, _),) = placement.spares()
    machine.processes[spare].is_frozen = True
    machine.run(placement, supervisor, HUNG_S - 1)
    assert spare in machine.processes
    machine.run(placement, supervisor, 12.0)
    assert spare not in machine.processes
    machine.assert_in_order()


def test_a_spare_killed_in_the_middle_of_taking_over_is_followed_by_the_next_process() -> None:
    machine = Machine(warm_s=1.0)
    placement, supervisor = settled(machine, spares=2)
    first, second = (name for name, _, _ in placement.spares())
    machine.kill(machine.pointers[0])
    machine.run(placement, supervisor, 0.5)
    assert machine.pointers[0] == first
    machine.kill(first)
    assert machine.until_served(placement, supervisor) < machine.warm_s + 0.5
    assert machine.pointers[0] == second
    machine.run(placement, supervisor, 15.0)
    machine.assert_in_order(2)


def test_a_hung_shard_is_ended_and_its_lane_given_to_the_spare() -> None:
    machine = Machine()
    placement, supervisor = settled(machine)
    hung = machine.pointers[0]
    machine.processes[hung].is_frozen = True
    machine.run(placement, supervisor, HUNG_S + 2)
    assert machine.pointers[0] != hung
    machine.run(placement, supervisor, 10.0)
    machine.assert_in_order()


def test_a_hung_shard_that_cannot_be_ended_wakes_without_its_lane_and_is_ended_as_left_over() -> None:
    machine = Machine()
    placement, supervisor = settled(machine)
    hung = machine.pointers[0]
    frozen = machine.processes[hung]
    frozen.is_frozen = True
    machine.run(placement, supervisor, HUNG_S + 2)
    machine.processes[hung] = frozen  # the kill has not reached it: its node was away
    machine.wake(hung)
    seen = machine.ask(hung)
    assert isinstance(seen, Role)
    assert seen.status is not None
    assert not seen.status.serving, "fenced by the epoch of the one that took over"
    machine.run(placement, supervisor, 10.0)
    assert hung not in machine.processes
    machine.assert_in_order()


def test_lanes_of_a_lost_node_are_taken_by_the_spares_of_others() -> None:
    machine = Machine(lanes=2, machines=("one", "two"))
    placement, supervisor = settled(machine)
    assert sorted(node for _, node, _ in placement.spares()) == ["one", "two"]
    machine.kill_node("two")
    assert machine.until_served(placement, supervisor) < 1.0
    assert {machine.processes[name].node for name in machine.pointers.values()} == {"one"}
    machine.run(placement, supervisor, 10.0)
    machine.assert_in_order()


def test_a_process_that_was_pointed_to_and_not_told_any_more_is_told_by_the_next_supervisor() -> None:
    """Its spare is not wasted, and nobody waits for a new process."""
    machine = Machine()
    placement, supervisor = settled(machine)
    ((spare, _, _),) = placement.spares()
    machine.kill(machine.pointers[0])
    machine.die_at = 1
    with pytest.raises(Died, match=f"take {spare} 0"):
        machine.until_served(placement, supervisor)
    machine.die_at = -1
    assert machine.until_served(*machine.supervisor()) < 0.4
    assert machine.pointers[0] == spare


def test_two_lanes_whose_pointers_name_one_process_are_told_apart_by_what_that_says() -> None:
    """Two supervisors chose one spare; it took the first lane, and the second one's has died since."""
    machine = Machine()
    placement, supervisor = settled(machine)
    first = machine.pointers[0]
    machine.pointers[1] = first
    machine.until_served(placement, supervisor)
    assert machine.pointers[0] == first
    assert first in machine.processes, "it serves a lane, though not this one"
    machine.run(placement, supervisor, 10.0)
    machine.assert_in_order()


def test_a_lane_goes_to_the_spare_of_its_own_node() -> None:
    machine = Machine(lanes=2, machines=("one", "two"))
    placement, supervisor = settled(machine)
    for lane in (1, 0):
        home = machine.processes[machine.pointers[lane]].node
        machine.kill(machine.pointers[lane])
        machine.until_served(placement, supervisor)
        assert machine.processes[machine.pointers[lane]].node == home
        machine.run(placement, supervisor, 10.0)


def test_a_supervisor_that_starts_finds_lanes_and_spares_and_begins_nothing() -> None:
    machine = Machine()
    settled(machine)
    again = machine.supervisor()
    machine.run(*again, 20.0)
    assert machine.calls == []


def test_fewer_spares_are_asked_for_after_an_update_of_the_settings() -> None:
    machine = Machine()
    settled(machine, spares=3)
    machine.run(*machine.supervisor(1), 5.0)
    machine.assert_in_order(1)


@pytest.mark.parametrize("scene", ["start", "kill", "kill both", "hang", "spare dies"])
def test_a_supervisor_that_dies_at_any_step_leaves_what_the_next_one_puts_in_order(scene: str) -> None:
    """Each changing call in turn is the one that is not made any more."""
    for step in range(100):
        machine = Machine()
        if scene != "start":
            placement, _ = settled(machine)
            if scene == "hang":
                machine.processes[machine.pointers[0]].is_frozen = True
            elif scene == "spare dies":
                machine.kill(placement.spares()[0][0])
            else:
                for lane in (0, 1)[: 2 if scene == "kill both" else 1]:
                    machine.kill(machine.pointers[lane])
        machine.die_at = step
        first = machine.supervisor()
        try:
            machine.run(*first, 25.0)
        except Died:
            machine.die_at = -1
            machine.run(*machine.supervisor(), 40.0)
            machine.assert_in_order()
            continue
        assert step > 0, "nothing was done at all"
        machine.assert_in_order()
        return
    raise AssertionError("a scene has fewer steps")


@pytest.mark.parametrize("seed", range(30))
def test_two_supervisors_at_once_and_kills_hangs_and_sleepers_end_in_order_when_one_is_left(seed: int) -> None:
    """Never do two processes hold one epoch; at the end each lane has one, and nothing is left over."""
    dice = random.Random(seed)
    machine = Machine(lanes=3, machines=("one", "two"))
    one, two = machine.supervisor(), machine.supervisor()
    asleep: list[str] = []
    for _ in range(300):
        placement, supervisor = dice.choice([one, two])
        # The other one may look, and act, between any two calls of this one.
        other = two if placement is one[0] else one

        def between(call: str, other: tuple[ShardPlacement, ShardSupervisor] = other) -> None:
            if dice.random() < 0.1:
                machine.before_call = lambda _: None
                other[1].reconcile()
                machine.before_call = between

        machine.before_call = between
        if supervisor.reconcile().healthy:
            placement.keep(supervisor.open_lanes)
        machine.now += dice.choice([0.1, 0.5, 2.0])
        names = list(machine.processes)
        match dice.randrange(12):
            case 0 if names:
                machine.kill(dice.choice(names))
            case 1 if names:
                name = dice.choice(names)
                machine.processes[name].is_frozen = True
                asleep.append(name)
            case 2 if asleep:
                name = asleep.pop()
                if name in machine.processes:
                    machine.wake(name)
        for name in list(machine.processes):
            machine.ask(name)  # whoever is about to claim its lane does so now
        serving = [
            seen.lane
            for name in list(machine.processes)
            if isinstance(seen := machine.ask(name), Role) and seen.status and seen.status.serving
        ]
        assert len(serving) == len(set(serving))
    machine.before_call = lambda _: None
    machine.run(*dice.choice([one, two]), 120.0)
    machine.assert_in_order()


def test_a_process_that_finds_its_lane_closed_is_ended_and_nothing_is_started_for_it() -> None:
    machine = Machine(lanes=3)
    placement, supervisor = settled(machine)
    closed = machine.pointers[1]
    machine.processes[closed].failed = "lane_closed: Lane 1 is closed."
    machine.run(placement, supervisor, 1.0)
    assert closed not in machine.processes
    assert supervisor.open_lanes == [0, 2]
    machine.calls.clear()
    machine.run(placement, supervisor, 20.0)
    assert machine.calls == []
    # One that another supervisor started for it meanwhile, and which its pointer names.
    machine.processes["late"] = Process("one", lane=1, failed="lane_closed: Lane 1 is closed.")
    machine.pointers[1] = "late"
    for _ in range(10):
        supervisor.reconcile()
        placement.keep(supervisor.open_lanes)
    assert "late" not in machine.processes


@pytest.mark.parametrize("spares", [0, 1])
def test_the_lanes_of_a_node_that_leaves_are_taken_over_elsewhere_one_at_a_time(spares: int) -> None:
    machine = Machine(lanes=3, machines=("one", "two"))
    placement, supervisor = settled(machine, spares)
    on_one = {lane for lane, name in machine.pointers.items() if machine.processes[name].node == "one"}
    assert on_one
    placement.leave("one", leaves=True)
    before = set(machine.processes)
    for _ in range(600):
        machine.run(placement, supervisor, 0.1)
        assert {one.node for name, one in machine.processes.items() if name not in before} <= {"two"}
        assert sum(machine.epochs.values()) <= 3 + len(on_one), "each lane changes hands once"
        serving = [lane for lane in range(3) if machine.processes[machine.pointers[lane]].serves_at_s <= machine.now]
        assert len(serving) >= 2, "one lane at a time waits"
    assert {one.node for one in machine.processes.values()} == {"two"}
    machine.assert_in_order(spares)
    for name in machine.pointers.values():
        machine.kill(name)
    for _ in range(150):
        machine.run(placement, supervisor, 0.1)
        assert {one.node for one in machine.processes.values()} <= {"two"}, "nothing is begun there any more"
    placement.leave("one", leaves=False)
    assert placement.leaving() == frozenset()


def test_a_supervisor_that_comes_after_one_that_died_goes_on_with_the_node_that_leaves() -> None:
    machine = Machine(lanes=2, machines=("one", "two"))
    placement, supervisor = settled(machine)
    placement.leave("two", leaves=True)
    machine.die_at = 1
    with pytest.raises(Died):
        machine.run(placement, supervisor, 15.0)
    machine.die_at = -1
    machine.run(*machine.supervisor(), 30.0)
    assert {one.node for one in machine.processes.values()} == {"one"}
    machine.assert_in_order()


def test_the_last_node_does_not_leave_and_one_that_nobody_knows_is_named() -> None:
    machine = Machine(lanes=1, machines=("one", "two"))
    placement, _ = settled(machine)
    with pytest.raises(NotFound, match="there are: one, two"):
        placement.leave("three", leaves=True)
    placement.leave("one", leaves=True)
    with pytest.raises(Conflict, match="no node would be left"):
        placement.leave("two", leaves=True)
    machine.kill_node("one")
    with pytest.raises(Conflict):
        placement.leave("two", leaves=True)
    assert placement.leaving() == {"one"}
