"""Ray's shell around the supervisor, and the router that finds shards by name.

Start everything with `start_usage_log`; it may be called again at any time and by several drivers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from actors.lane_scaler import LaneScaler
from actors.lane_scaling import LoadWatch, ScalingBounds, ScalingPlan
from actors.live_figures import Figures
from actors.loops import keep_going
from actors.partition_mover import close_lane, finish, half_moved, move_partition, owner_among, spreading
from actors.rating_shard import ShardSettings, ShardStatus
from actors.router import DEADLINE_S, GroupingRouter, LaneEnded, RouterStatus
from actors.shard_processes import (
    BEAT_TIMEOUT_S,
    MOVE_TIMEOUT_S,
    PREPARE_TIMEOUT_S,
    RayLaneCalls,
    RayShardProcesses,
    find_shard,
)
from actors.silence import EVERY_S as WATCH_EVERY_S
from actors.silence import SUPERVISOR_NAME, UPKEEP_NAME, watch
from actors.spares import ShardPlacement
from actors.spread_job import Spread, SpreadJob, Tell
from actors.supervisor import Health, ShardSupervisor, SupervisorStatus, shards_default
from billing.errors import BillingError, Conflict, InvalidInput, Unavailable
from billing.live_state import LiveState
from storage.object_store import LocalObjectStore, StoreAddress
from storage.usage_log.genesis import LANES_MAX, open_log
from storage.usage_log.housekeeping import MERGES_MAX, Housekeeping
from storage.usage_log.lane import count_lanes, is_closed
from storage.usage_log.merging import merge_some
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.sealing import TAIL_NUMBERS_MAX, TailState, seal, state_of_tail

BEAT_S = 0.5  # between two looks; one that dies is heard of at once
SPARES_EVERY_S = 1.0
SPARES_AFTER_S = 2.0  # of all lanes serving: starting a process takes what a lane that comes back needs
MOVES_EVERY_S = 0.5
STATUS_TIMEOUT_S = 2.0  # of the supervisor's own answer
SEAL_S_MAX = 600.0
SPREAD_ANSWER_S = 5.0  # then whoever asked hears how far it is
SPREAD_S_MAX = 600.0  # of one that the load asks for; it goes on, and the next look joins it
LANES_ADDED_MAX = 64  # at once
LANES_START_S_MAX = 60.0
SCALE_EVERY_S = 5.0
MISSING_S = 1.0
LOG = logging.getLogger("cloudbilling.lanes")


@dataclass(frozen=True)
class UsageLogSettings:
    """What the supervisor and every shard need to know; travels as a value."""

    address: StoreAddress
    namespace: str
    cache_directory: str  # for files that are mapped, where the store is remote
    shards: int = 0  # 0: half the cores; counts only for a log that is new
    spares: int = 1  # processes that wait for a lane, on each node with shards
    shard: ShardSettings = ShardSettings()  # noqa: RUF009 - frozen
    seal_every_s: float = 60.0
    tail_numbers: int = TAIL_NUMBERS_MAX  # that readers may have to open before the tail is sealed
    scaling: ScalingBounds = ScalingBounds()  # noqa: RUF009 - frozen


@ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0, max_concurrency=8, concurrency_groups={"watched": 1})
class SupervisorActor:
    """One loop in a thread; the calls only read what it saw last."""

    def __init__(self, settings: UsageLogSettings) -> None:
        store = settings.address.open()
        genesis = open_log(store, lanes=settings.shards or shards_default())
        lanes = max(genesis.lanes, count_lanes(store))
        self._stopping, self._bell = threading.Event(), threading.Event()
        processes = RayShardProcesses(
            settings.address, settings.shard, settings.cache_directory, settings.namespace, self._bell
        )
        self._placement = ShardPlacement(processes, settings.spares, new_name=processes.new_name)
        closed = {lane for lane in range(lanes) if is_closed(store, lane)}
        self._supervisor = ShardSupervisor(self._placement, lanes, closed=closed)
        self._placement.look(self._supervisor.open_lanes)  # spares of a supervisor before this one
        self._calls = RayLaneCalls(settings.namespace)
        self._load, self._load_lock = LoadWatch(settings.scaling), threading.Lock()
        self._moving = threading.Lock()  # one move at a time: each pauses its partition, and two would share the shards
        self._spread = SpreadJob(self._make_spread)
        scaler = LaneScaler(self._supervisor, self._scaling_plan, self._spread_for_load, self.close_lane)
        self._all_serve_since_s = float("inf")
        self._errors: dict[str, str] = {}  # by loop: of its last round
        self._bell.set()  # the first look is now
        self._loops = [
            self._keep("usage-supervisor", self._watch, BEAT_S, bell=self._bell),
            # Beside the watch, which must not wait for a move or for a spare that hangs.
            self._keep("usage-moves", self._finish_moves, MOVES_EVERY_S),
            self._keep("usage-spares", self._keep_spares, SPARES_EVERY_S),
            self._keep("usage-scaling", scaler.round, SCALE_EVERY_S),
            self._keep("usage-maintenance", self._maintenance(settings), settings.seal_every_s),
            self._keep("upkeep-watch", watch(UPKEEP_NAME, settings.namespace).round, WATCH_EVERY_S),
        ]
        if isinstance(store, LocalObjectStore):  # drafts that crashes left behind; a walk, so beside the loop
            sweep = threading.Thread(target=store.sweep_drafts, args=(time.time(),), name="sweep-drafts", daemon=True)
            sweep.start()

    @ray.method(concurrency_group="watched")
    def is_there(self) -> bool:
        """Whether this process answers, for who watches it (actors/silence.py); not behind moves that take long."""
        return True

    def status(self) -> SupervisorStatus:
        lanes = self._supervisor.open_lanes
        nodes = tuple((lane, node) for lane in lanes if (node := self._placement.node_of(lane)) is not None)
        return replace(
            self._supervisor.status(), spread=self._spread.now(), nodes=nodes, leaving=self._placement.leaving()
        )

    def leave(self, node: str, leaves: bool) -> None:
        """A node is about to leave, or stays after all: its lanes are taken over elsewhere, one after the other."""
        self._placement.leave(node, leaves=leaves)

    def last_error(self) -> str:
        """Of the first of the loops whose last round failed; "" if none did."""
        return next((error for error in list(self._errors.values()) if error), "")

    def spares(self) -> tuple[tuple[str, str, bool], ...]:
        """Processes that wait for a lane: name, node, whether they are up."""
        return self._placement.spares()

    def _keep(
        self, name: str, work: Callable[[], object], every_s: float, *, bell: threading.Event | None = None
    ) -> threading.Thread:
        """Begin a loop of its own; what its last round ran into is told by `last_error`."""

        def said(error: str) -> None:
            self._errors[name] = error and f"{name}: {error}"

        def run() -> None:
            keep_going(name, work, every_s, self._stopping, said=said, bell=bell)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def move(self, partition: int, to_lane: int) -> dict[str, Any]:
        """Move one partition; answers its generation. As `partition_mover.move_partition`."""
        with self._moving:
            if to_lane not in self._supervisor.open_lanes:
                is_closed_one = to_lane in self._supervisor.closed
                raise Conflict(f"lane {to_lane} is closed" if is_closed_one else f"there is no lane {to_lane}")
            owner = owner_among(self._answering(), partition, to_lane)
            if owner.lane == to_lane:
                return {"partition": partition, "moved": False}
            generation = owner.generation_of(partition)
            return dict(move_partition(self._calls, partition, owner.lane, to_lane, generation))

    def spread(self, lanes: Sequence[int]) -> Spread:
        """Let exactly these lanes have partitions, evenly; begins lanes that there are not yet.

        A lane that is not among them is drained: it stays, without partitions. Answers after some seconds how far it
        is, and goes on by itself; asking for the same again joins it, or does what a failure left.
        """
        self._check_lanes(lanes)
        return self._spread.ask(lanes, SPREAD_ANSWER_S)

    def _check_lanes(self, lanes: Sequence[int]) -> None:
        most = min(self._supervisor.lanes + LANES_ADDED_MAX, LANES_MAX - 1)
        if not lanes or min(lanes) < 0 or max(lanes) > most:
            raise InvalidInput(f"lanes are numbers from 0 to {most}")
        if gone := sorted(self._supervisor.closed.intersection(lanes)):
            raise Conflict(f"lanes {', '.join(map(str, gone))} are closed; their numbers are not used again")

    def _make_spread(self, spread: Spread, tell: Tell) -> None:
        self._supervisor.lanes = max(self._supervisor.lanes, max(spread.lanes) + 1)
        deadline = time.monotonic() + LANES_START_S_MAX
        while not self._all_serve():
            if time.monotonic() > deadline:
                raise Unavailable(f"Not all of {self._supervisor.lanes} lanes are served. Send the same again.")
            time.sleep(0.2)
        statuses = {status.lane: status for status in self._statuses()}
        moves = spreading(list(statuses.values()), spread.lanes)
        for done, (partition, from_lane, to_lane) in enumerate(moves):
            tell(replace(spread, left=len(moves) - done))
            generation = statuses[from_lane].generation_of(partition)
            try:
                with self._moving:
                    move_partition(self._calls, partition, from_lane, to_lane, generation)
                spread = replace(spread, moved=spread.moved + 1)
            except Conflict:  # one that must stay, stays
                spread = replace(spread, stayed=spread.stayed + 1)
        tell(spread)
        with self._load_lock:
            self._load.changed(time.monotonic())

    def close_lane(self, lane: int) -> None:
        """End a lane that has no partitions, for good. Conflict while something may still ask for it."""
        if lane in self._supervisor.closed:
            return
        with self._moving:
            if lane not in self._supervisor.open_lanes:
                raise Conflict(f"there is no lane {lane}")
            close_lane(self._calls, self._statuses(), lane)
        self._supervisor.close(lane)

    def plan(self) -> dict[str, Any]:
        """What scaling by load would do now, and why. Nothing is done."""
        return self._scaling_plan().to_form()

    def _scaling_plan(self) -> ScalingPlan:
        with self._load_lock:
            return self._load.plan(time.monotonic())

    def _all_serve(self) -> bool:
        status = self._supervisor.status()
        return len(status.lanes) == len(self._supervisor.open_lanes) and status.healthy

    def _statuses(self) -> list[ShardStatus]:
        """Of all lanes, as they are now. Raises Unavailable where one does not answer."""
        answering = self._answering()
        if len(answering) < len(self._supervisor.open_lanes):
            raise Unavailable("A lane does not answer. Send the same again.")
        return answering

    def _answering(self) -> list[ShardStatus]:
        """Of the lanes that serve, as they are now; asked at once, or each that hangs would cost its time limit."""
        beats = self._supervisor.beats(self._supervisor.open_lanes)
        return [beat.status for beat in beats if beat.health is Health.SERVING and beat.status is not None]

    def stop(self) -> None:
        """Stop watching and end the shards and spares."""
        self._stopping.set()
        self._bell.set()
        for loop in self._loops[:3]:  # those that start processes
            loop.join(BEAT_TIMEOUT_S * 2)
        self._placement.end_all()

    def _watch(self) -> None:
        self._supervisor.reconcile()
        if not self._all_serve():
            self._all_serve_since_s = float("inf")
            return
        self._all_serve_since_s = min(self._all_serve_since_s, time.monotonic())
        seen = [status for _, _, status in self._supervisor.status().lanes if status is not None]
        with self._load_lock:
            self._load.observe(time.monotonic(), seen, lanes=self._supervisor.lanes)

    def _keep_spares(self) -> None:
        if time.monotonic() - self._all_serve_since_s < SPARES_AFTER_S:
            return
        self._placement.keep(self._supervisor.open_lanes)
        if not self._moving.acquire(blocking=False):  # a partition is on its way between two lanes
            return
        try:
            lane = self._placement.hand_over(self._supervisor.open_lanes)
        finally:
            self._moving.release()
        if lane is not None:
            LOG.warning("lane %d is taken over elsewhere, as its node leaves", lane)
            self._all_serve_since_s = float("inf")  # until a look has seen it serve
            self._bell.set()

    def _spread_for_load(self, lanes: Sequence[int]) -> Spread:
        self._check_lanes(lanes)
        return self._spread.ask(lanes, SPREAD_S_MAX)

    def _finish_moves(self) -> None:
        """What somebody left half moved: seen only while nobody moves and every lane says what it has."""
        if not self._all_serve() or not self._moving.acquire(blocking=False):
            return
        wrong: list[str] = []
        try:
            seen = [status for _, _, status in self._supervisor.status().lanes if status is not None]
            if half_moved(seen):
                wrong = finish(self._calls, self._statuses(), self._supervisor.closed)
        except Unavailable as error:  # a lane is being replaced: the next round looks again
            wrong = [error.detail]
        finally:
            self._moving.release()
        self._errors["half moved"] = "; ".join(wrong)

    def _maintenance(self, settings: UsageLogSettings) -> Callable[[], None]:
        """A round that seals the tail of the log when it is long, merges and deletes. Work with rows goes into
        processes of its own; while it fails, readers open more objects."""
        store = settings.address.open()
        keeping = Housekeeping(store, lambda: ray.get(_merge.remote(settings.address), timeout=SEAL_S_MAX))

        def round() -> None:
            tail = state_of_tail(store, numbers=settings.tail_numbers)
            if tail is not TailState.SHORT:
                sealing = _seal if tail is TailState.LONG else _seal_in_a_hurry
                ray.get(sealing.remote(settings.address), timeout=SEAL_S_MAX)
            keeping.round()

        return round


# Processes that no other work gets, for what steps back for good: an ordinary process may not raise its priority again.
_STEPS_BACK = {"env_vars": {"CLOUDBILLING_PROCESS": "maintenance"}}


def _step_back() -> None:
    """Below shards and replicas: usage that comes in goes first, and at once; files can wait.

    By niceness it would still have a third of a core that others want, and they would wait for its turn to end.
    """
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:  # not on Linux
        os.nice(19)


@ray.remote(num_cpus=0, max_retries=0, runtime_env=_STEPS_BACK)
def _seal(address: StoreAddress) -> None:
    _step_back()
    _seal_all(address)


@ray.remote(num_cpus=0, max_retries=0)
def _seal_in_a_hurry(address: StoreAddress) -> None:
    _seal_all(address)


def _seal_all(address: StoreAddress) -> None:
    store = address.open()
    seal(store, UsageLogReader(store).now())


@ray.remote(num_cpus=0, max_retries=0, runtime_env=_STEPS_BACK)
def _merge(address: StoreAddress) -> None:
    _step_back()
    merge_some(address.open(), merges_max=MERGES_MAX)


def start_usage_log(settings: UsageLogSettings, *, timeout_s: float = 60.0) -> Any:
    """Start (or find) the supervisor and its shards; returns its handle when every lane is served."""
    supervisor = SupervisorActor.options(  # pyright: ignore[reportAttributeAccessIssue] - added by ray.remote
        name=SUPERVISOR_NAME, namespace=settings.namespace, lifetime="detached", get_if_exists=True
    ).remote(settings)
    deadline = time.monotonic() + timeout_s
    status = None
    while time.monotonic() < deadline:
        status = ray.get(supervisor.status.remote(), timeout=timeout_s)
        if status.lanes and status.healthy:
            return supervisor
        time.sleep(0.2)
    raise Unavailable(f"The rating shards are not up after {timeout_s} s: {status}")


def stop_usage_log(namespace: str) -> None:
    """End the supervisor and all shards of a namespace; the log stays as it is."""
    try:
        supervisor = ray.get_actor(SUPERVISOR_NAME, namespace=namespace)
    except ValueError:
        return
    with contextlib.suppress(RayError):
        ray.get(supervisor.stop.remote(), timeout=10.0)
    ray.kill(supervisor, no_restart=True)


class RayUsageRouter(GroupingRouter):
    """Calls the shards where their lanes' pointers say; a handle is looked up again after its actor lost the lane."""

    def __init__(self, address: StoreAddress, namespace: str, *, deadline_s: float = DEADLINE_S) -> None:
        self._store = address.open()
        super().__init__(open_log(self._store), deadline_s=deadline_s)
        self._namespace = namespace
        self._handles: dict[int, Any] = {}
        self._missing_since_s: dict[int, float] = {}  # lanes that had no shard when they were looked up last

    async def _call(self, lane: int, data: bytes) -> bytes:
        handle = await self._handle(lane)
        with self._reaching(lane):
            return await handle.ingest.remote(lane, data)

    async def _decide(self, lane: int, data: bytes) -> bytes:
        handle = await self._handle(lane)
        with self._reaching(lane):
            return await handle.decide.remote(lane, data)

    @contextlib.contextmanager
    def _reaching(self, lane: int) -> Iterator[None]:
        """What was sent may have been committed before the actor went: unknown, until the same ids are sent again."""
        try:
            yield
        except (RayActorError, ActorUnavailableError) as error:
            self._handles.pop(lane, None)
            raise Unavailable(f"Shard {lane} is being replaced.") from error
        except RayTaskError as error:  # what the shard raised; one that has lost its lane among them
            if not isinstance(error.cause, Unavailable):
                raise
            self._handles.pop(lane, None)
            raise error.cause from error

    def _lanes(self) -> Sequence[int]:
        return range(max(self._genesis.lanes, count_lanes(self._store)))

    async def _usage(self, lane: int, tenant_id: str, keys: list[str] | None, master_number: int) -> Figures:
        handle = await self._handle(lane)
        with self._reaching(lane):
            data, number, used, owned, moved = await handle.usage.remote(lane, tenant_id, keys, master_number)
        return Figures(None if data is None else LiveState.from_bytes(data), number, used, owned, moved)

    async def _handle(self, lane: int) -> Any:
        handle = self._handles.get(lane)
        if handle is None:
            try:
                handle = await asyncio.to_thread(find_shard, lane, self._namespace)
            except ValueError as error:
                if await asyncio.to_thread(self._has_ended, lane):
                    raise LaneEnded(f"Lane {lane} is closed.") from error
                raise Unavailable(f"Nobody serves lane {lane} at the moment.") from error
            self._missing_since_s.pop(lane, None)
            self._handles[lane] = handle
        return handle

    def _has_ended(self, lane: int) -> bool:
        """By the lane's log. It is read once nobody has served the lane for longer than a replacement takes."""
        now_s = time.monotonic()
        if now_s - self._missing_since_s.setdefault(lane, now_s) < MISSING_S:
            return False
        self._missing_since_s[lane] = now_s
        if is_closed(self._store, lane):
            self._closed.add(lane)
        return lane in self._closed

    async def move(self, partition: int, lane: int) -> dict[str, Any]:
        return await self._ask_supervisor("move", partition, lane, timeout_s=PREPARE_TIMEOUT_S + 2 * MOVE_TIMEOUT_S)

    async def spread(self, lanes: Sequence[int]) -> Spread:
        return await self._ask_supervisor("spread", list(lanes), timeout_s=SPREAD_ANSWER_S + STATUS_TIMEOUT_S)

    async def close_lane(self, lane: int) -> None:
        await self._ask_supervisor("close_lane", lane, timeout_s=2 * MOVE_TIMEOUT_S)

    async def leave(self, node: str, *, leaves: bool) -> None:
        await self._ask_supervisor("leave", node, leaves, timeout_s=STATUS_TIMEOUT_S)

    async def plan(self) -> dict[str, Any]:
        return await self._ask_supervisor("plan", timeout_s=STATUS_TIMEOUT_S)

    async def _ask_supervisor(self, name: str, *arguments: Any, timeout_s: float) -> Any:
        try:
            supervisor = await asyncio.to_thread(ray.get_actor, SUPERVISOR_NAME, self._namespace)
            return await asyncio.wait_for(getattr(supervisor, name).remote(*arguments), timeout_s)
        except RayTaskError as error:
            if isinstance(error.cause, BillingError):
                raise error.cause from error
            raise
        except (ValueError, RayError, asyncio.TimeoutError) as error:  # noqa: UP041
            raise Unavailable("The supervisor of the rating shards does not answer. Send the same again.") from error

    async def supervisor_status(self) -> SupervisorStatus:
        """For the health page."""
        try:
            supervisor = await asyncio.to_thread(ray.get_actor, SUPERVISOR_NAME, self._namespace)
            return await asyncio.wait_for(supervisor.status.remote(), STATUS_TIMEOUT_S)
        except (ValueError, RayError, asyncio.TimeoutError) as error:  # noqa: UP041
            raise Unavailable("The supervisor of the rating shards does not answer.") from error

    async def status(self) -> RouterStatus:
        seen = await self.supervisor_status()
        lanes = tuple(status for _, health, status in seen.lanes if health == Health.SERVING.value and status)
        silent = tuple(lane for lane, health, _ in seen.lanes if health != Health.SERVING.value)
        return RouterStatus(lanes, silent, seen.closed, seen.spread, dict(seen.nodes), seen.leaving)
