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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)

from actors.lane_scaling import LoadWatch, ScalingBounds
from actors.live_figures import Figures
from actors.loops import keep_going
from actors.partition_mover import finish, half_moved, move_partition, owner_among, spreading
from actors.rating_shard import ShardSettings, ShardStatus
from actors.rating_shard_actor import RatingShardActor, shard_name
from actors.router import DEADLINE_S, GroupingRouter, RouterStatus
from actors.supervisor import Beat, Health, ShardSupervisor, SupervisorStatus, shards_default
from billing.errors import BillingError, Conflict, InvalidInput, Unavailable
from billing.live_state import LiveState
from storage.object_store import LocalObjectStore, StoreAddress
from storage.usage_log.genesis import open_log
from storage.usage_log.housekeeping import MERGES_MAX, Housekeeping
from storage.usage_log.lane import count_lanes
from storage.usage_log.merging import merge_some
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.sealing import TAIL_NUMBERS_MAX, seal, tail_is_long

SUPERVISOR_NAME = "usage-supervisor"
BEAT_S = 0.5  # between two looks
BEAT_TIMEOUT_S = 2.0  # of a shard that restarts Ray says so after a second at the earliest
STATUS_TIMEOUT_S = 2.0  # of the supervisor's own answer
SEAL_S_MAX = 600.0
HURRY = 16  # times the length at which a tail is sealed: then sealing no longer stands back
MOVE_TIMEOUT_S = 10.0  # of each call; a move takes some milliseconds
PREPARE_TIMEOUT_S = 60.0  # all that was decided in a partition is read, while it is served
SPREAD_S_MAX = 110.0  # below the time that a request may take
LANES_ADDED_MAX = 64  # at once
LANES_START_S_MAX = 60.0
SCALE_EVERY_S = 5.0
LOG = logging.getLogger("cloudbilling.lanes")


@dataclass(frozen=True)
class UsageLogSettings:
    """What the supervisor and every shard need to know; travels as a value."""

    address: StoreAddress
    namespace: str
    cache_directory: str  # for files that are mapped, where the store is remote
    shards: int = 0  # 0: half the cores; counts only for a log that is new
    shard: ShardSettings = ShardSettings()  # noqa: RUF009 - frozen
    seal_every_s: float = 60.0
    tail_numbers: int = TAIL_NUMBERS_MAX  # that readers may have to open before the tail is sealed
    scaling: ScalingBounds = ScalingBounds()  # noqa: RUF009 - frozen


class RayShardHost:
    def __init__(self, settings: UsageLogSettings) -> None:
        self._settings = settings

    def beat(self, lane: int) -> Beat:
        try:
            actor = ray.get_actor(shard_name(lane), namespace=self._settings.namespace)
        except ValueError:
            return Beat(Health.ABSENT)
        try:
            status = ray.get(actor.status.remote(), timeout=BEAT_TIMEOUT_S)
        except GetTimeoutError:
            return Beat(Health.SILENT)
        except ActorUnavailableError:
            return Beat(Health.RESTARTING)
        except (ActorDiedError, RayActorError):
            return Beat(Health.ABSENT)
        return Beat(Health.SERVING if status.serving else Health.STOPPED, status)

    def start(self, lane: int) -> None:
        RatingShardActor.options(  # pyright: ignore[reportAttributeAccessIssue] - added by ray.remote
            name=shard_name(lane),
            namespace=self._settings.namespace,
            lifetime="detached",
            get_if_exists=True,
            scheduling_strategy="SPREAD",  # a node that goes takes few lanes with it
        ).remote(lane, self._settings.address, self._settings.shard, self._settings.cache_directory)

    def prepare_move(self, lane: int, partition: int, from_lane: int, generation: int) -> None:
        self._call(lane, "prepare_move", partition, from_lane, generation, timeout_s=PREPARE_TIMEOUT_S)

    def release(self, lane: int, partition: int, to_lane: int) -> bytes:
        return bytes(self._call(lane, "release", partition, to_lane))

    def acquire(self, lane: int, partition: int, from_lane: int) -> bytes:
        return bytes(self._call(lane, "acquire", partition, from_lane))

    def _call(self, lane: int, name: str, *arguments: int, timeout_s: float = MOVE_TIMEOUT_S) -> Any:
        try:
            actor = ray.get_actor(shard_name(lane), namespace=self._settings.namespace)
            return ray.get(getattr(actor, name).remote(*arguments), timeout=timeout_s)
        except (ValueError, GetTimeoutError, ActorUnavailableError, RayActorError) as error:
            raise Unavailable(f"Lane {lane} does not answer; whether it did {name} is unknown.") from error
        except RayTaskError as error:  # what the shard raised
            cause = error.cause
            raise cause if isinstance(cause, BillingError) else BillingError(f"lane {lane}: {error}") from error

    def end(self, lane: int) -> None:
        with contextlib.suppress(ValueError, RayError):  # it went by itself meanwhile
            ray.kill(ray.get_actor(shard_name(lane), namespace=self._settings.namespace), no_restart=True)


@ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0, max_concurrency=8)
class SupervisorActor:
    """One loop in a thread; the calls only read what it saw last."""

    def __init__(self, settings: UsageLogSettings) -> None:
        store = settings.address.open()
        genesis = open_log(store, lanes=settings.shards or shards_default())
        lanes = max(genesis.lanes, count_lanes(store))
        self._host = RayShardHost(settings)
        self._supervisor = ShardSupervisor(self._host, lanes)
        self._stopping = threading.Event()
        self._load, self._load_lock = LoadWatch(settings.scaling), threading.Lock()
        self._moving = threading.Lock()  # one move at a time: each pauses its partition, and two would share the shards
        self._last_error = self._maintenance_error = self._move_error = self._scaling_error = ""
        self._thread = threading.Thread(target=self._loop, name="usage-supervisor", daemon=True)
        self._thread.start()
        self._maintenance = threading.Thread(
            target=self._maintain, args=(settings,), name="usage-maintenance", daemon=True
        )
        self._maintenance.start()
        self._scaling = threading.Thread(target=self._scale, name="usage-scaling", daemon=True)
        self._scaling.start()
        if isinstance(store, LocalObjectStore):  # drafts that crashes left behind; a walk, so beside the loop
            sweep = threading.Thread(target=store.sweep_drafts, args=(time.time(),), name="sweep-drafts", daemon=True)
            sweep.start()

    def status(self) -> SupervisorStatus:
        return self._supervisor.status()

    def last_error(self) -> str:
        return self._last_error or self._maintenance_error or self._move_error or self._scaling_error

    def move(self, partition: int, to_lane: int) -> dict[str, Any]:
        """Move one partition; answers its generation. As `partition_mover.move_partition`."""
        with self._moving:
            if not 0 <= to_lane < self._supervisor.lanes:
                raise Conflict(f"there is no lane {to_lane}")
            owner = owner_among(self._answering(), partition, to_lane)
            if owner.lane == to_lane:
                return {"partition": partition, "moved": False}
            generation = owner.generation_of(partition)
            return dict(move_partition(self._host, partition, owner.lane, to_lane, generation))

    def spread(self, lanes: Sequence[int]) -> int:
        """Let exactly these lanes have partitions, evenly; begins lanes that there are not yet. How many it moved.

        A lane that is not among them is drained: it stays, without partitions. May be called again after any failure.
        """
        if not lanes or min(lanes) < 0 or max(lanes) > self._supervisor.lanes + LANES_ADDED_MAX:
            raise InvalidInput(f"lanes are numbers from 0 to {self._supervisor.lanes + LANES_ADDED_MAX}")
        self._supervisor.lanes = max(self._supervisor.lanes, max(lanes) + 1)
        deadline = time.monotonic() + LANES_START_S_MAX
        while not self._all_serve():
            if time.monotonic() > deadline:
                raise Unavailable(f"Not all of {self._supervisor.lanes} lanes are served. Send the same again.")
            time.sleep(0.2)
        moved = 0
        statuses = {status.lane: status for status in self._statuses()}
        for partition, from_lane, to_lane in spreading(list(statuses.values()), sorted(set(lanes))):
            generation = statuses[from_lane].generation_of(partition)
            with self._moving, contextlib.suppress(Conflict):  # one that must stay, stays
                move_partition(self._host, partition, from_lane, to_lane, generation)
                moved += 1
        with self._load_lock:
            self._load.changed(time.monotonic())
        return moved

    def plan(self) -> dict[str, Any]:
        """What scaling by load would do now, and why. Nothing is done."""
        with self._load_lock:
            return self._load.plan(time.monotonic()).to_form()

    def _all_serve(self) -> bool:
        status = self._supervisor.status()
        return len(status.lanes) == self._supervisor.lanes and status.healthy

    def _statuses(self) -> list[ShardStatus]:
        """Of all lanes, as they are now. Raises Unavailable where one does not answer."""
        answering = self._answering()
        if len(answering) < self._supervisor.lanes:
            raise Unavailable("A lane does not answer. Send the same again.")
        return answering

    def _answering(self) -> list[ShardStatus]:
        """Of the lanes that serve, as they are now; asked at once, or each that hangs would cost its time limit."""
        beats = self._supervisor.beats(range(self._supervisor.lanes))
        return [beat.status for beat in beats if beat.health is Health.SERVING and beat.status is not None]

    def stop(self) -> None:
        """Stop watching and end the shards; what they have queued is committed first."""
        self._stopping.set()
        self._thread.join(BEAT_TIMEOUT_S * 2)
        host = self._supervisor.host
        for lane in range(self._supervisor.lanes):
            host.end(lane)

    def _loop(self) -> None:
        def said(error: str) -> None:
            self._last_error = error

        keep_going("usage-supervisor", self._watch, BEAT_S, self._stopping, said=said)

    def _watch(self) -> None:
        self._supervisor.reconcile()
        self._finish_moves()
        self._observe()

    def _observe(self) -> None:
        if self._all_serve():
            seen = [status for _, _, status in self._supervisor.status().lanes if status is not None]
            with self._load_lock:
                self._load.observe(time.monotonic(), seen)

    def _scale(self) -> None:
        """Adds and empties lanes by load, where the settings ask for it; beside the loop, for it takes many moves."""

        def said(error: str) -> None:
            self._scaling_error = error and f"scaling: {error}"

        keep_going("usage-scaling", self._scale_once, SCALE_EVERY_S, self._stopping, said=said)

    def _scale_once(self) -> None:
        with self._load_lock:
            plan = self._load.plan(time.monotonic())
        if plan.do != "stay":
            LOG.warning("lanes are changed to %s: %s", list(plan.lanes), plan.why)
            self.spread(plan.lanes)  # while a lane is being replaced it cannot: the next look tries again

    def _finish_moves(self) -> None:
        """What somebody left half moved: seen only while nobody moves and every lane says what it has."""
        if not self._all_serve() or not self._moving.acquire(blocking=False):
            return
        try:
            seen = [status for _, _, status in self._supervisor.status().lanes if status is not None]
            if half_moved(seen):
                self._move_error = "; ".join(finish(self._host, self._statuses()))
        except Unavailable as error:  # a lane is being replaced: the next round looks again
            self._move_error = error.detail
        finally:
            self._moving.release()

    def _maintain(self, settings: UsageLogSettings) -> None:
        """Seals the tail of the log when it is long, merges and deletes: work with rows in processes of their own."""
        store = settings.address.open()
        keeping = Housekeeping(store, lambda: ray.get(_merge.remote(settings.address), timeout=SEAL_S_MAX))

        def round() -> None:
            if tail_is_long(store, numbers=settings.tail_numbers * HURRY):
                ray.get(_seal_in_a_hurry.remote(settings.address), timeout=SEAL_S_MAX)
            elif tail_is_long(store, numbers=settings.tail_numbers):
                ray.get(_seal.remote(settings.address), timeout=SEAL_S_MAX)
            keeping.round()

        def said(error: str) -> None:  # readers open more objects until a round works
            self._maintenance_error = error and f"maintenance: {error}"

        keep_going("usage-maintenance", round, settings.seal_every_s, self._stopping, said=said)


# Processes that no other work gets, for what steps back for good: an ordinary process may not raise its priority again.
_STEPS_BACK = {"env_vars": {"CLOUDBILLING_PROCESS": "maintenance"}}


def _step_back() -> None:
    """Below shards and replicas: usage that comes in goes first, and at once; files can wait.

    By niceness it would still have a third of a core that others want, and they would wait for its turn to end.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


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
    """Calls the shards by their names; a handle is looked up again after its actor died."""

    def __init__(self, address: StoreAddress, namespace: str, *, deadline_s: float = DEADLINE_S) -> None:
        self._store = address.open()
        super().__init__(open_log(self._store), deadline_s=deadline_s)
        self._namespace = namespace
        self._handles: dict[int, Any] = {}

    async def _call(self, lane: int, data: bytes) -> bytes:
        handle = await self._handle(lane)
        try:
            return await handle.ingest.remote(data)
        except (RayActorError, ActorUnavailableError) as error:
            # It may have been committed before the actor went: unknown, until the same ids are sent again.
            self._handles.pop(lane, None)
            raise Unavailable(f"Shard {lane} is being replaced.") from error

    async def _decide(self, lane: int, data: bytes) -> bytes:
        handle = await self._handle(lane)
        try:
            return await handle.decide.remote(data)
        except (RayActorError, ActorUnavailableError) as error:
            self._handles.pop(lane, None)
            raise Unavailable(f"Shard {lane} is being replaced.") from error

    def _lanes(self) -> Sequence[int]:
        return range(max(self._genesis.lanes, count_lanes(self._store)))

    async def _usage(self, lane: int, tenant_id: str, keys: list[str] | None, master_number: int) -> Figures:
        handle = await self._handle(lane)
        try:
            data, number, used, owned, moved = await handle.usage.remote(tenant_id, keys, master_number)
        except (RayActorError, ActorUnavailableError) as error:
            self._handles.pop(lane, None)
            raise Unavailable(f"Shard {lane} is being replaced.") from error
        return Figures(None if data is None else LiveState.from_bytes(data), number, used, owned, moved)

    async def _handle(self, lane: int) -> Any:
        handle = self._handles.get(lane)
        if handle is None:
            try:
                handle = await asyncio.to_thread(ray.get_actor, shard_name(lane), self._namespace)
            except ValueError as error:
                raise Unavailable(f"Nobody serves lane {lane} at the moment.") from error
            self._handles[lane] = handle
        return handle

    async def move(self, partition: int, lane: int) -> dict[str, Any]:
        return await self._ask_supervisor("move", partition, lane, timeout_s=PREPARE_TIMEOUT_S + 2 * MOVE_TIMEOUT_S)

    async def spread(self, lanes: Sequence[int]) -> int:
        return await self._ask_supervisor("spread", list(lanes), timeout_s=SPREAD_S_MAX)

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
        return RouterStatus(lanes, tuple(lane for lane, health, _ in seen.lanes if health != Health.SERVING.value))
