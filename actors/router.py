"""From a request to the lanes and back: one call per lane and flush, the same ids again until a deadline.

Owns grouping in front of the shards (requests that wait while a call is under way travel together), routes, retries.
`LocalUsageRouter` (actors/local_router.py) holds its shards in this process, `RayUsageRouter`
(actors/supervisor_actor.py) calls actors; only the transport differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from actors.batches import (
    NO_REASON,
    NOT_OWNED,
    OVERLOADED,
    REASONS,
    Answer,
    Block,
    decode_answer,
    encode_batch,
)
from actors.decisions import ANY_PARTITION, DecisionRequest, Elsewhere, decode_decided, encode_request
from actors.fair_turns import FairTurns, Held
from actors.lane_traces import TRACES_MAX
from actors.live_figures import Figures
from actors.rating_shard import ShardStatus
from actors.spread_job import Spread
from actors.tenant_clocks import SET_CLOCK
from billing.errors import BillingError, Overloaded, Unavailable
from billing.live_state import LiveState, merge_live
from billing.usage import EVENT_SCHEMA
from storage.object_store import StoreRefused
from storage.telemetry import traceparent
from storage.usage_log.genesis import PARTITIONS, Genesis
from storage.usage_log.partitions import FEW, EventIds, event_ids, partition_of, partitions_of
from storage.usage_log.segment import microseconds_of
from storage.usage_log.sizes import SEGMENT_BYTES_MAX, pieces

DEADLINE_S = 10.0
RETRY_WAIT_S_FIRST = 0.05
RETRY_WAIT_S_MAX = 0.5
CALL_TIMEOUT_S = 4.0  # shorter than the deadline, so that a shard that hangs and is replaced gets a second call
CALLS_PER_LANE_MAX = 2  # one is committed while the next is decoded; more only moves the queue
CALL_ROWS_MAX = 20_000
CALL_BYTES_MAX = SEGMENT_BYTES_MAX  # a shard would only cut it again
WAITING_ROWS_MAX = 400_000  # per lane and process, not yet sent
WAITING_BYTES_MAX = 192 * 1024 * 1024
TENANT_WAITING_ROWS_MAX = 200_000
TENANT_WAITING_BYTES_MAX = 96 * 1024 * 1024  # more than the largest request, which goes if nothing waits
INLINE_ROWS_MAX = 2_000  # below it hashing costs less than a hop to another thread
_REASON_NAMES = pl.Series("reason", [*(reason.value for reason in REASONS)], dtype=pl.String)
_NO_REASON_NAME = pl.Series("reason", [None], dtype=pl.String)


@dataclass(frozen=True)
class IngestResult:
    """One verdict (billing.usage.Verdict) and one reason (null: none) per row, in the order of the rows."""

    verdicts: npt.NDArray[np.uint8]
    reasons: pl.Series
    positions: dict[int, int]  # lane -> a number that holds all of this request's rows at or below it


@dataclass(frozen=True)
class RouterStatus:
    lanes: tuple[ShardStatus, ...]
    unreachable: tuple[int, ...] = ()
    closed: tuple[int, ...] = ()  # lanes that have ended
    spread: Spread | None = None  # a spreading of partitions that is under way, or the last one
    nodes: Mapping[int, str] = field(default_factory=dict[int, str])  # lane -> the node of its shard, on a cluster
    leaving: frozenset[str] = frozenset()  # nodes that are about to leave


class LaneEnded(Unavailable):
    """The lane is closed: it has no partitions, and nobody serves it."""


@dataclass(frozen=True)
class LiveUsage:
    """What billing.live_state.rate_live prices; `live` is None where there is no usage at all."""

    live: LiveState | None
    positions: dict[int, int]  # as of: lane -> number
    master_number: int  # the oldest that a shard used


class UsageRouter(Protocol):
    tenant_waiting_rows_max: int  # of a tenant; beyond them callers are told to come back

    async def ingest(self, tenant_id: str, events: pl.DataFrame, *, master_number: int | None = None) -> IngestResult:
        """Store events (EVENT_SCHEMA); returns after they are durable.

        Raises Overloaded (this tenant's queue is full) or Unavailable (outcome unknown); then send the same again with
        the same ids: what is stored already comes back as a duplicate, nothing is stored twice.
        """
        ...

    async def usage(self, tenant_id: str, keys: Sequence[str] | None = None, *, master_number: int = 0) -> LiveUsage:
        """The live figures of customer keys (None: all): everything that was acknowledged before the call."""
        ...

    async def decide(self, tenant_id: str, customer_key: str, name: str, payload: bytes) -> bytes:
        """Let the lane that owns a key's partition decide (a follower's decision of this name); its answer.

        Returns after what was decided is durable. Raises what the decision raised; Unavailable (outcome unknown): send
        the same again with the same ids, and the recorded verdict comes back.
        """
        ...

    async def decide_everywhere(self, tenant_id: str, name: str, payload: bytes) -> list[bytes]:
        """Let every lane decide (for reads of what may lie in any); the answers in the order of lanes."""
        ...

    def lanes_of(self, tenant_id: str, keys: Sequence[str]) -> list[int]:
        """The lane of each key as far as this router knows: for payloads that hold several keys of one lane."""
        ...

    @property
    def deadline_s(self) -> float:
        """How long a call is repeated before it is unknown what became of it."""
        ...

    async def advance_clock(self, tenant_id: str, to: datetime) -> None:
        """Set a test tenant's time in every lane; returns when all have it. It never goes back; repeating is free."""
        ...

    async def status(self) -> RouterStatus: ...

    async def move(self, partition: int, lane: int) -> dict[str, Any]:
        """Move a partition to a lane; whether it moved. Conflict: it cannot move now, or there is no such lane."""
        ...

    async def plan(self) -> dict[str, Any]:
        """What scaling by load would do now (`actors/lane_scaling.py`). Nothing is done."""
        ...

    async def spread(self, lanes: Sequence[int]) -> Spread:
        """Let exactly these lanes have partitions, evenly. Begins lanes and drains others.

        Answers after some seconds how far it is; then it goes on by itself, and asking again joins it.
        """
        ...

    async def close_lane(self, lane: int) -> None:
        """End a lane without partitions for good. Conflict where something may still ask for it."""
        ...

    async def leave(self, node: str, *, leaves: bool) -> None:
        """Have the lanes of a node taken over elsewhere before it leaves; or let it stay after all.

        Raises NotFound for one that has no shards to come, Conflict where no other one would be left.
        """
        ...

    async def close(self) -> None: ...


@dataclass
class _Part:
    """Rows of one request for one lane."""

    tenant_id: str
    master_number: int | None
    events: pl.DataFrame
    partitions: npt.NDArray[np.uint8]
    ids: EventIds
    bytes: int
    future: asyncio.Future[_PartAnswer]
    trace: str | None  # W3C `traceparent` of the request

    @property
    def rows(self) -> int:
        return len(self.partitions)


@dataclass(frozen=True)
class _PartAnswer:
    verdicts: npt.NDArray[np.uint8]
    reasons: npt.NDArray[np.uint8]
    answer: Answer


@dataclass
class _LaneQueue:
    parts: FairTurns[_Part] = field(default_factory=FairTurns)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CALLS_PER_LANE_MAX))
    task: asyncio.Task[None] | None = None
    calls: set[asyncio.Task[None]] = field(default_factory=set)


class GroupingRouter(ABC):
    """All of a router but the transport."""

    tenant_waiting_rows_max = TENANT_WAITING_ROWS_MAX

    def __init__(self, genesis: Genesis, *, deadline_s: float = DEADLINE_S) -> None:
        self._genesis = genesis
        self._deadline_s = deadline_s
        self._route = np.array([genesis.first_lane(partition) for partition in range(PARTITIONS)], np.int64)
        self._generation = np.zeros(PARTITIONS, np.int64)
        self._closed: set[int] = set()  # lanes that have ended, as far as was learned; it stays so
        # A queue belongs to the event loop whose requests it holds: a server has one loop, tests have many.
        self._queues: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, _LaneQueue]] = (
            weakref.WeakKeyDictionary()
        )

    @abstractmethod
    async def _call(self, lane: int, data: bytes) -> bytes:
        """One batch to one shard. Raises Unavailable when there is no answer: the outcome is open.

        This and the next two raise LaneEnded where the lane is closed, and note it in `_closed`.
        """

    @abstractmethod
    async def _usage(self, lane: int, tenant_id: str, keys: list[str] | None, master_number: int) -> Figures:
        """The figures of one shard."""

    @abstractmethod
    async def _decide(self, lane: int, data: bytes) -> bytes:
        """One decision to one shard. Raises Unavailable when there is no answer: the outcome is open."""

    @abstractmethod
    def _lanes(self) -> Sequence[int]:
        """All lanes there are; read from the store, so it may block."""

    async def decide(self, tenant_id: str, customer_key: str, name: str, payload: bytes) -> bytes:
        partition = partition_of(self._genesis.seed, tenant_id, customer_key)
        return await self._decide_until(DecisionRequest(tenant_id, partition, name, payload))

    def lanes_of(self, tenant_id: str, keys: Sequence[str]) -> list[int]:
        if len(keys) <= FEW:
            seed = self._genesis.seed
            return [int(self._route[partition_of(seed, tenant_id, key)]) for key in keys]
        partitions = partitions_of(self._genesis.seed, tenant_id, pl.Series(keys, dtype=pl.String))
        lanes: list[int] = self._route[partitions].tolist()
        return lanes

    async def advance_clock(self, tenant_id: str, to: datetime) -> None:
        payload = str(microseconds_of(to)).encode()
        request = DecisionRequest(tenant_id, ANY_PARTITION, SET_CLOCK, payload)
        await self._decide_in_all(request)

    async def decide_everywhere(self, tenant_id: str, name: str, payload: bytes) -> list[bytes]:
        request = DecisionRequest(tenant_id, ANY_PARTITION, name, payload)
        return await self._decide_in_all(request)

    async def _decide_in_all(self, request: DecisionRequest) -> list[bytes]:
        async def decided(lane: int) -> bytes | None:
            try:
                return await self._decide_until(request, lane)
            except LaneEnded:  # it has nothing, and nothing comes to it any more
                return None

        answers = await asyncio.gather(*(decided(lane) for lane in await self._open_lanes()))
        return [answer for answer in answers if answer is not None]

    async def _open_lanes(self) -> list[int]:
        return [lane for lane in await asyncio.to_thread(self._lanes) if lane not in self._closed]

    async def _find_owners(self) -> None:
        """Of partitions whose lane has ended: it cannot say itself where they went."""
        if not self._closed.isdisjoint(self._route.tolist()):
            with contextlib.suppress(Unavailable, TimeoutError):  # whoever asked for it asks again
                await self.look_around()

    async def _decide_until(self, request: DecisionRequest, lane: int | None = None) -> bytes:
        """The same request until there is an answer, or the deadline: unknown. A lane, or the partition's owner."""
        loop = asyncio.get_running_loop()
        deadline, wait = loop.time() + self._deadline_s, RETRY_WAIT_S_FIRST
        data, detail = encode_request(request), "no shard answered"
        while True:
            asked = int(self._route[request.partition]) if lane is None else lane
            try:
                answer = decode_decided(await asyncio.wait_for(self._decide(asked, data), CALL_TIMEOUT_S))
                if isinstance(answer.error, Elsewhere):  # who put the keys together takes them apart
                    self._learn_owners(answer.error.owners)
                    raise answer.error
                if answer.owner is None and not isinstance(answer.error, Unavailable):
                    if answer.error is not None:
                        raise answer.error
                    return answer.body
                if isinstance(answer.error, StoreRefused):
                    raise answer.error
                if answer.owner is not None:
                    detail = "a partition is being moved"
                    self._learn_owners({request.partition: answer.owner})
                elif answer.error is not None:
                    detail = answer.error.detail
            except (StoreRefused, Elsewhere):
                raise
            except LaneEnded as error:
                if lane is not None:
                    raise
                detail = error.detail
                await self._find_owners()
            except Unavailable as error:
                detail = error.detail
            except asyncio.TimeoutError:  # noqa: UP041 - the builtin name hides that wait_for raised it
                detail = f"lane {asked} did not answer in {CALL_TIMEOUT_S} s"
            if loop.time() + wait > deadline:
                raise Unavailable(f"It is unknown whether this was decided ({detail}). {AGAIN}")
            await asyncio.sleep(wait)
            wait = min(2 * wait, RETRY_WAIT_S_MAX)

    @property
    def deadline_s(self) -> float:
        """How long a call is repeated before it is unknown what became of it."""
        return self._deadline_s

    async def usage(self, tenant_id: str, keys: Sequence[str] | None = None, *, master_number: int = 0) -> LiveUsage:
        wanted = None if keys is None else list(dict.fromkeys(keys))
        needed: npt.NDArray[np.int64] = np.arange(PARTITIONS)
        if wanted:
            partitions = partitions_of(self._genesis.seed, tenant_id, pl.Series(wanted, dtype=pl.String))
            needed = np.unique(partitions).astype(np.int64)
        loop = asyncio.get_running_loop()
        deadline, wait = loop.time() + self._deadline_s, RETRY_WAIT_S_FIRST
        asked = sorted(set(self._route[needed].tolist()))
        while True:
            found = await asyncio.gather(
                *(
                    asyncio.wait_for(self._usage_of(one, tenant_id, wanted, master_number), self._deadline_s)
                    for one in asked
                )
            )
            asked = [one for one, figures in zip(asked, found, strict=True) if figures is not None]
            answers = [figures for figures in found if figures is not None]
            if self._is_whole(needed, asked, answers):
                break
            if loop.time() + wait > deadline:
                raise Unavailable(f"Partitions are being moved. {AGAIN}")
            await asyncio.sleep(wait)
            wait = min(2 * wait, RETRY_WAIT_S_MAX)
            asked = sorted({*self._route[needed].tolist(), *await asyncio.to_thread(self._lanes)} - self._closed)
        live: LiveState | None = None
        for answer in answers:
            if answer.live is not None:
                live = answer.live if live is None else merge_live(live, answer.live)
        positions = {lane: answer.number for lane, answer in zip(asked, answers, strict=True)}
        return LiveUsage(live, positions, min((answer.master_number for answer in answers), default=-1))

    async def _usage_of(self, lane: int, tenant_id: str, keys: list[str] | None, master_number: int) -> Figures | None:
        """None of a lane that has ended."""
        try:
            return await self._usage(lane, tenant_id, keys, master_number)
        except LaneEnded:
            return None

    def _is_whole(self, needed: npt.NDArray[np.int64], asked: Sequence[int], answers: Sequence[Figures]) -> bool:
        """Whether each partition that was asked for is in exactly one of the answers; learns who has which."""
        owners = np.zeros(PARTITIONS, np.int64)
        for lane, answer in zip(asked, answers, strict=True):
            if not answer.owned:
                return True  # figures of one process that says nothing of partitions
            self._learn_moves(answer)
            owned = np.unpackbits(np.frombuffer(answer.owned, np.uint8)).astype(np.bool_)
            owners += owned
            self._route[owned & (owners == 1)] = lane
        return bool((owners[needed] == 1).all())

    def owners_of(self, tenant_id: str, keys: Sequence[str]) -> list[tuple[int, int]]:
        """(lane, generation) of each key's partition, as far as this router knows."""
        partitions = partitions_of(self._genesis.seed, tenant_id, pl.Series(keys, dtype=pl.String))
        return list(zip(self._route[partitions].tolist(), self._generation[partitions].tolist(), strict=True))

    async def figures_of(self, lane: int, tenant_id: str, keys: Sequence[str], master_number: int = 0) -> Figures:
        """What one lane has folded of keys, and up to which of its numbers."""
        figures = await asyncio.wait_for(self._usage(lane, tenant_id, list(keys), master_number), self._deadline_s)
        self._learn_moves(figures)
        return figures

    def those_in(self, figures: Figures, tenant_id: str, keys: Sequence[str]) -> list[str]:
        """Of these keys those whose partitions the figures are of: what such figures lack, there is not."""
        if not keys or not figures.owned:
            return list(keys)
        owned = np.unpackbits(np.frombuffer(figures.owned, np.uint8)).astype(np.bool_)
        partitions = partitions_of(self._genesis.seed, tenant_id, pl.Series(keys, dtype=pl.String))
        return [key for key, at in zip(keys, partitions.tolist(), strict=True) if owned[at]]

    async def look_around(self) -> None:
        """Ask all lanes who has which partition: for whoever must know of moves that no call of his has met."""
        lanes = await self._open_lanes()
        seen = await asyncio.gather(*(self.figures_of(lane, "", []) for lane in lanes), return_exceptions=True)
        for error in seen:  # after all were heard: one that is being replaced hides nothing of the others
            if isinstance(error, BaseException) and not isinstance(error, LaneEnded):
                raise error

    def _learn_moves(self, figures: Figures) -> None:
        self._learn_owners({partition: (generation, lane) for partition, generation, lane in figures.moved})

    async def ingest(self, tenant_id: str, events: pl.DataFrame, *, master_number: int | None = None) -> IngestResult:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._deadline_s
        if events.columns != EVENT_SCHEMA.names():
            events = events.select(EVENT_SCHEMA.names())
        if events.height <= INLINE_ROWS_MAX:
            partitions, ids = self._hash(tenant_id, events)
        else:
            partitions, ids = await asyncio.to_thread(self._hash, tenant_id, events)
        trace = traceparent()
        verdicts = np.full(events.height, NOT_OWNED, np.uint8)
        reasons = np.full(events.height, NO_REASON, np.uint8)
        positions: dict[int, int] = {}
        rows: npt.NDArray[np.int64] = np.arange(events.height)
        wait, detail = RETRY_WAIT_S_FIRST, "no shard answered"
        while len(rows):
            lanes = self._route[partitions[rows]]
            parts: list[tuple[npt.NDArray[np.int64], asyncio.Future[_PartAnswer]]] = []
            for lane in lanes[:1] if lanes[0] == lanes[-1] and (lanes == lanes[0]).all() else np.unique(lanes):
                mine = rows[lanes == lane]
                chosen = events if len(mine) == events.height else events[mine]
                for start, count, size in pieces(chosen, CALL_ROWS_MAX, CALL_BYTES_MAX):
                    chunk = mine[start : start + count]
                    whole = count == events.height
                    part = _Part(
                        tenant_id,
                        master_number,
                        chosen.slice(start, count),
                        partitions if whole else partitions[chunk],
                        ids if whole else ids.take(chunk),
                        size,
                        loop.create_future(),
                        trace,
                    )
                    self._enqueue(int(lane), part)
                    parts.append((chunk, part.future))
            # All parts end before anything is raised: a half-answered request leaves no call behind unseen.
            outcomes = await asyncio.gather(*(future for _, future in parts), return_exceptions=True)
            retry: list[npt.NDArray[np.int64]] = []
            for (chunk, _), outcome in zip(parts, outcomes, strict=True):
                if isinstance(outcome, _PartAnswer):
                    verdicts[chunk], reasons[chunk] = outcome.verdicts, outcome.reasons
                    if outcome.answer.number >= 0:
                        positions[outcome.answer.lane] = max(
                            positions.get(outcome.answer.lane, -1), outcome.answer.number
                        )
                    self._learn_owners(outcome.answer.owners)
                    not_owned = chunk[outcome.verdicts == NOT_OWNED]
                    if len(not_owned):
                        retry.append(not_owned)
                        detail = "a partition is being moved"
                elif isinstance(outcome, StoreRefused):
                    raise outcome
                elif isinstance(outcome, Unavailable):
                    retry.append(chunk)
                    detail = outcome.detail
                    if isinstance(outcome, LaneEnded):
                        await self._find_owners()
                else:
                    raise outcome
            if np.any(verdicts == OVERLOADED):
                raise Overloaded("Too much of this tenant's usage is waiting. Send the same again with the same ids.")
            rows = np.concatenate(retry) if retry else rows[:0]
            if len(rows):
                if loop.time() + wait > deadline:
                    raise Unavailable(f"It is unknown what became of {len(rows)} events ({detail}). {AGAIN}")
                await asyncio.sleep(wait)
                wait = min(2 * wait, RETRY_WAIT_S_MAX)
        return IngestResult(verdicts, _reason_names(reasons), positions)

    async def close(self) -> None:
        queues = self._queues.pop(asyncio.get_running_loop(), {})
        for queue in queues.values():
            if queue.task is not None:
                queue.task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await queue.task

    def _hash(self, tenant_id: str, events: pl.DataFrame) -> tuple[npt.NDArray[np.uint8], EventIds]:
        partitions = partitions_of(self._genesis.seed, tenant_id, events["customer"])
        return partitions, event_ids(self._genesis.seed, tenant_id, events, partitions, self._genesis.ids)

    def _learn_owners(self, owners: Mapping[int, tuple[int, int]]) -> None:
        for partition, (generation, lane) in owners.items():
            # With the same generation: one whose target was closed goes back to the lane that had let it go.
            is_back = generation == self._generation[partition] and int(self._route[partition]) in self._closed
            if generation > self._generation[partition] or is_back:
                self._generation[partition], self._route[partition] = generation, lane

    def _enqueue(self, lane: int, part: _Part) -> None:
        loop = asyncio.get_running_loop()
        queues = self._queues.get(loop)
        if queues is None:
            queues = self._queues[loop] = {}
        queue = queues.get(lane)
        if queue is None:
            queue = queues[lane] = _LaneQueue()
            # A task of its own: a client that goes away cancels its handler, and must not take others' rows with it.
            queue.task = loop.create_task(self._flush(lane, queue), name=f"usage-lane-{lane}")
        comes, waits = Held.of(part), queue.parts.held_of(part.tenant_id)
        if waits.is_beyond(self.tenant_waiting_rows_max, TENANT_WAITING_BYTES_MAX, comes):
            part.future.set_exception(Overloaded(f"Too much of this tenant's usage is waiting. {AGAIN}"))
            return
        if queue.parts.held.is_beyond(WAITING_ROWS_MAX, WAITING_BYTES_MAX, comes):
            part.future.set_exception(Unavailable(f"Too much usage is waiting for lane {lane}. {AGAIN}"))
            return
        queue.parts.append(part)
        queue.woken.set()

    async def _flush(self, lane: int, queue: _LaneQueue) -> None:
        while True:
            await queue.woken.wait()
            await queue.slots.acquire()
            group: list[_Part] = []
            taken = Held()
            while queue.parts and not taken.is_beyond(CALL_ROWS_MAX, CALL_BYTES_MAX, Held.of(queue.parts.first())):
                part = queue.parts.popleft()
                group.append(part)
                taken.add(part)
            if not queue.parts:
                queue.woken.clear()
            if not group:
                queue.slots.release()
                continue
            call = asyncio.get_running_loop().create_task(self._send(lane, queue, group))
            queue.calls.add(call)
            call.add_done_callback(queue.calls.discard)

    async def _send(self, lane: int, queue: _LaneQueue, group: list[_Part]) -> None:
        try:
            rows = sum(part.rows for part in group)
            if rows <= INLINE_ROWS_MAX:
                data = _encode(group)
            else:
                data = await asyncio.to_thread(_encode, group)
            try:
                timeout_s = min(CALL_TIMEOUT_S, self._deadline_s)
                answer = decode_answer(await asyncio.wait_for(self._call(lane, data), timeout_s))
            except asyncio.TimeoutError as error:  # noqa: UP041 - the builtin name hides that wait_for raised it
                raise Unavailable(f"Lane {lane} did not answer in {timeout_s} s. {AGAIN}") from error
            failure = _failure(answer)
            if failure is not None:
                raise failure
            first = 0
            for part in group:
                last = first + part.rows
                if not part.future.done():
                    part.future.set_result(_PartAnswer(answer.verdicts[first:last], answer.reasons[first:last], answer))
                first = last
        except Exception as error:  # noqa: BLE001 - goes to every waiting request, none may wait for ever
            for part in group:
                if not part.future.done():
                    part.future.set_exception(error)
        finally:
            queue.slots.release()


AGAIN = "Send the same again with the same ids: nothing is stored twice."


def _encode(group: Sequence[_Part]) -> bytes:
    blocks = [Block(part.tenant_id, part.rows, part.master_number) for part in group]
    traces = list(dict.fromkeys(part.trace for part in group if part.trace))[:TRACES_MAX]
    if len(group) == 1:
        return encode_batch(blocks, group[0].events, group[0].partitions, group[0].ids, traces)
    ids = EventIds(np.concatenate([part.ids.high for part in group]), np.concatenate([part.ids.low for part in group]))
    events = pl.concat([part.events for part in group])
    return encode_batch(blocks, events, np.concatenate([part.partitions for part in group]), ids, traces)


def _failure(answer: Answer) -> BillingError | None:
    match answer.failed:
        case None:
            return None
        case "refused":
            return StoreRefused(answer.detail)
        case _:
            return Unavailable(answer.detail or f"Lane {answer.lane} is not available. {AGAIN}")


def _reason_names(codes: npt.NDArray[np.uint8]) -> pl.Series:
    if (codes == NO_REASON).all():  # the usual answer; a query would cost more than the rest of it
        return _NO_REASON_NAME.new_from_index(0, len(codes))
    wanted = pl.Series("code", codes, dtype=pl.UInt8).cast(pl.UInt32)
    known = wanted.to_frame().select(pl.when(pl.col("code") < len(REASONS)).then(pl.col("code"))).to_series()
    return _REASON_NAMES.gather(known).alias("reason")
