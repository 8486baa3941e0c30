"""The one writer of a lane: takes batches and decisions, drops repeats, commits groups, answers, folds. No Ray in here.

Owns the order of things: 1 dedup and decide, 2 put, 3 answer, 4 fold. Nothing is shown or answered before its number
is COMMITTED. All state is a cache: the newest snapshot and the lane's tail rebuild it. The rules: docs/usage-log.md.
"""

from __future__ import annotations

import collections
import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from actors.amendments import Amendments
from actors.backfills import Backfills
from actors.batches import (
    NO_REASON,
    NOT_OWNED,
    OVERLOADED,
    UNJUDGED,
    Answer,
    decode_batch,
    encode_answer,
    failed_answer,
)
from actors.decisions import (
    ANY_PARTITION,
    DecisionRequest,
    decode_request,
    encode_decided,
    encode_failure,
    encode_moved,
    encode_request,
)
from actors.followers import (
    NO_ROWS,
    Decided,
    FollowerSet,
    FrozenFollower,
    JudgedRows,
    LaneFollower,
    LiesIn,
    LogMoment,
    forgotten,
)
from actors.lane_moves import Luggage, complete, in_order, pack
from actors.lane_traces import committed
from actors.live_figures import Figures, LiveFigures, MasterSource
from actors.shard_queue import Call, DecisionItem, FairQueue, Item, UsageItem, items_of
from actors.tenant_clocks import SET_CLOCK, TenantClocks, clock_rows
from billing.errors import BillingError, Conflict, NotFound, Overloaded, Unavailable
from billing.live_state import LiveState
from billing.usage import Verdict
from storage.object_store import ObjectStore, StoreRefused, StoreUnavailable
from storage.usage_log.backfills import ids_of_rows, marker_ids
from storage.usage_log.checkpoints import LaneSnapshot, announce, merge_id_runs, read_snapshot
from storage.usage_log.clock import SKEW_ALARM_US, SKEW_MAX_US, Clock, SystemClock, skew_us
from storage.usage_log.genesis import PARTITIONS, Genesis, open_log
from storage.usage_log.id_runs import IdRuns
from storage.usage_log.lane import LaneWriter, walk, write_hint
from storage.usage_log.manifest import Manifest, ManifestChain
from storage.usage_log.partitions import EventIds, event_ids, partitions_of
from storage.usage_log.recent_ids import RecentIds, lane_and_number, stamp_of
from storage.usage_log.segment import ROW_SCHEMA, Control, Counters, RowKind, SegmentHead, StoredSegment

RECOVERIES_MAX = 100  # a newer manifest each time; more says that something deletes faster than it is read
IDLE_S = 0.5
DECISION_BYTES = 1_024  # what a decision counts for in fairness and in a group
DECIDED_ROW_BYTES = 128  # of the payload of a bulky one: it counts for as many rows
CLOCK_EVERY_S = 60.0
REFOLD_EVERY_S = 10.0  # tries to fold a follower again that raised

_USAGE_KIND = pl.Series("kind", [int(RowKind.USAGE)], dtype=pl.UInt8)
_NO_DETAIL = pl.Series("detail", [None], dtype=pl.String)
_LOOKS = frozenset({int(RowKind.MASTER_SEEN), int(RowKind.CLOCK_SET)})  # with them followers ask for master data anew


@dataclass(frozen=True)
class ShardSettings:
    group_rows_max: int = 50_000
    group_bytes_max: int = 16 * 1024 * 1024  # in memory; a segment is about a fifth of it
    window_s: float = 0.0  # waiting for more rows when idle; 0 locally, 0.02-0.1 on S3
    queue_rows_max: int = 400_000
    tenant_queue_rows_max: int = 200_000
    checkpoint_rows: int = 500_000  # bounds the tail that a recovery reads, and the ids in memory
    checkpoint_s: float = 300.0
    recent_ids_max: int = 8_000_000  # beyond it the shard refuses: ids leave memory only by a checkpoint
    hint_every: int = 64  # numbers


@dataclass(frozen=True)
class ShardStatus:
    lane: int
    number: int
    epoch: int
    log_time_us: int
    serving: bool
    stopped_because: str
    stalled_s: float
    queued_rows: int
    recent_ids: int
    run_ids: int
    runs: int
    groups: int
    rows: int
    duplicates: int
    recovered_s: float
    partitions: int
    checkpoint: int  # number of the newest snapshot
    checkpoint_error: str
    figures_error: str  # why events cannot be judged or folded at the moment; they are stored all the same
    followers_error: str = ""  # why decisions of a follower are refused at the moment
    clock_error: str = ""  # the writer's clock differs from the store's
    owned: tuple[int, ...] = ()  # the partitions that are at home here
    released: tuple[tuple[int, int, int], ...] = ()  # let go, by this lane's log: partition, generation, to this lane


@dataclass(frozen=True)
class _Judged:
    """Consecutive usage items of a group, judged row by row."""

    items: Sequence[UsageItem]
    partitions: npt.NDArray[np.uint8]
    is_mine: npt.NDArray[np.bool_]
    is_new: npt.NDArray[np.bool_]
    reasons: npt.NDArray[np.uint8]


@dataclass
class _Group:
    """A group while it is built: what is put, and who is told what once it is COMMITTED."""

    moment: LogMoment
    frames: list[pl.DataFrame] = field(default_factory=list)
    ids: list[EventIds] = field(default_factory=list)  # added to the recent ids; taken back if nothing is stored
    counters: dict[str, Counters] = field(default_factory=dict)
    judged: list[_Judged] = field(default_factory=list)
    decided: list[tuple[DecisionItem, bytes]] = field(default_factory=list)
    unapplied: list[pl.DataFrame] = field(default_factory=list)  # for the followers, after the commit
    unseen: set[str] = field(default_factory=set)  # tenants with usage here that no follower wanted
    watched: set[str] = field(default_factory=set)  # tenants with usage here that one did
    forces_put: bool = False  # also without rows
    controls: list[Control] = field(default_factory=list)
    afters: list[Callable[[int], None]] = field(default_factory=list)  # once it is COMMITTED
    log_time_us: int = 0  # not below it
    is_applied: bool = False  # followers saw rows of it before the put

    def count(self, rows: pl.DataFrame) -> None:
        for tenant_id, decided in collections.Counter(rows["tenant"].to_list()).items():
            self.counters[tenant_id] = self.counters.get(tenant_id, Counters()) + Counters(decided=decided)


class RatingShard:
    """`start` recovers and claims; `submit` may be called from any thread; `stop` answers what is in flight."""

    def __init__(
        self,
        lane: int,
        store: ObjectStore,
        clock: Clock | None = None,
        settings: ShardSettings | None = None,
        *,
        master: MasterSource | None = None,
        followers: Sequence[LaneFollower] = (),
        cache_directory: Path | None = None,
    ) -> None:
        self.lane = lane
        self.settings = settings or ShardSettings()
        self._store = store
        self._clock = clock or SystemClock()
        # Without master data there is nothing to rate by: all that is stored counts as accepted.
        self._figures = None if master is None else LiveFigures(lane, store, master)
        self._clocks = TenantClocks()
        self._followers = FollowerSet([self._clocks, Amendments(), Backfills(), *followers])
        self._refold_at_s = 0.0
        self._cache = cache_directory or Path("/tmp/cloudbilling-id-runs")  # noqa: S108 - only used with remote stores
        self._chain = ManifestChain(store)
        self._condition = threading.Condition()
        self._queue = FairQueue()
        self._stopping = False
        self._clock_watch = threading.Event()  # set: nobody watches the clock any more
        self._serving = False
        self._stopped_because = "not started"
        self._thread: threading.Thread | None = None
        self._groups = self._rows = self._duplicates = 0
        self._checkpoint_thread: threading.Thread | None = None
        self._checkpoint_entry: Manifest | None = None  # written by that thread, taken by the commit thread
        self._checkpoint_error = ""
        self._recovered_s = 0.0
        self._clock_error = ""
        self._genesis: Genesis | None = None
        self._reset()

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recover, claim the lane, serve. Returns when calls can be served; raises when the lane cannot be had."""
        began = time.monotonic()
        self._genesis = open_log(self._store)
        self._check_clock()
        self._recover_and_claim()
        self._recovered_s = time.monotonic() - began
        self._serving, self._stopped_because = True, ""
        self._thread = threading.Thread(target=self._serve, name=f"rating-shard-{self.lane}", daemon=True)
        self._thread.start()
        self._clock_watch.clear()
        threading.Thread(target=self._watch_clock, name=f"clock-{self.lane}", daemon=True).start()
        if self._figures is not None:
            self._figures.start()

    def _check_clock(self) -> None:
        """Compare the clock with the store's. Raises Unavailable if log time would leap; a test's clock is its own."""
        skew = skew_us(self._store, self._clock, str(self.lane)) if isinstance(self._clock, SystemClock) else None
        if skew is None:
            return
        words = f"the clock is {abs(skew) // 1_000_000} s {'ahead of' if skew > 0 else 'behind'} the store's"
        self._clock_error = words if abs(skew) > SKEW_ALARM_US else ""
        if abs(skew) > SKEW_MAX_US:
            raise Unavailable(f"Lane {self.lane} is not served here: {words}. Set the clock of this machine.")

    def _watch_clock(self) -> None:
        """Looks again from time to time; a clock that went wrong ends the shard before its time gets into the log."""
        while not self._clock_watch.wait(CLOCK_EVERY_S):
            try:
                self._check_clock()
            except StoreUnavailable:
                continue  # the store's own answers tell that it is away
            except Unavailable as error:
                with self._condition:
                    self._stopped_because = error.detail
                self.stop()
                return

    def stop(self, timeout_s: float = 10.0) -> None:
        """Commit what is queued, then end. A store that does not answer leaves the outcome open."""
        self._clock_watch.set()
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                self._writer.stop()
                self._thread.join(timeout_s)
        if self._figures is not None:
            self._figures.stop()

    @property
    def genesis(self) -> Genesis | None:
        """The log's genesis; None before `start`."""
        return self._genesis

    @property
    def serving(self) -> bool:
        return self._serving

    def status(self) -> ShardStatus:
        position = self._writer.position
        return ShardStatus(
            lane=self.lane,
            number=position.number,
            epoch=position.epoch,
            log_time_us=position.log_time_us,
            serving=self._serving,
            stopped_because=self._stopped_because,
            stalled_s=self._writer.stalled_s,
            queued_rows=self._queue.rows,
            recent_ids=len(self._recent),
            run_ids=len(self._runs),
            runs=self._runs.count,
            groups=self._groups,
            rows=self._rows,
            duplicates=self._duplicates,
            recovered_s=self._recovered_s,
            partitions=int(self._owned.sum()),
            checkpoint=self._checkpoint_number,
            checkpoint_error=self._checkpoint_error,
            figures_error="" if self._figures is None else self._figures.last_error,
            followers_error=self._followers.last_error,
            clock_error=self._clock_error,
            owned=tuple(np.flatnonzero(self._owned).tolist()),
            released=tuple(
                (int(partition), int(self._generation[partition]), int(self._lane_of[partition]))
                for partition in np.flatnonzero(~self._owned & (self._generation > 0))
            ),
        )

    # -- calls --------------------------------------------------------------------------------------------------------

    def submit(self, data: bytes) -> Future[bytes]:
        """Queue a batch; the future gives the encoded answer, also for errors that concern the whole batch."""
        future: Future[bytes] = Future()
        batch = decode_batch(data)
        call = Call(
            future=future,
            verdicts=np.full(len(batch.partitions), NOT_OWNED, np.uint8),
            reasons=np.full(len(batch.partitions), NO_REASON, np.uint8),
            open_items=0,
            traces=batch.traces,
            began_ns=time.time_ns() if batch.traces else 0,
        )
        items = items_of(batch, call, self.lane, self.settings.group_rows_max)
        refusal = self._enqueue(call, items)
        if refusal is not None:
            future.set_result(encode_answer(refusal))
        return future

    def ingest(self, data: bytes) -> bytes:
        """`submit` and wait."""
        return self.submit(data).result()

    def decide(
        self,
        tenant_id: str,
        partition: int,
        decider: Callable[[LogMoment], Decided],
        *,
        ends_group: bool = False,
        size: int = DECISION_BYTES,
    ) -> Future[bytes]:
        """Decide on the commit thread, in the order of arrival with usage; answered after COMMITTED.

        The future gives an encoded answer (actors/decisions.py), also for errors.
        """
        rows = max(1, size // DECIDED_ROW_BYTES) if size > DECISION_BYTES else 1
        item = DecisionItem(Future(), tenant_id, partition, decider, max(size, DECISION_BYTES), ends_group, rows)
        with self._condition:
            if not self._serving or self._stopping:
                item.fail(Unavailable(f"Lane {self.lane} is not served here."))
            elif len(self._recent) > self.settings.recent_ids_max:
                item.fail(Unavailable(f"Lane {self.lane} holds too many ids in memory; its checkpoint is behind."))
            elif self._queue.rows >= self.settings.queue_rows_max:
                item.fail(Unavailable(f"The queue of lane {self.lane} is full."))
            elif self._is_full(tenant_id, item.rows):
                item.fail(Overloaded("Too much of this tenant is waiting. Send the same again with the same ids."))
            else:
                self._queue.put(item)
                self._condition.notify()
        return item.future

    def decide_named(self, data: bytes) -> Future[bytes]:
        """A decision that a follower has by name, as a router sends it."""
        request = decode_request(data)
        if not self._followers.knows(request.name):
            future: Future[bytes] = Future()
            future.set_result(encode_failure(NotFound(f"This shard decides no {request.name}.")))
            return future
        decision = self._followers.decision(request.name)

        def decider(moment: LogMoment) -> Decided:
            return decision(request.tenant_id, request.payload, moment)

        ends_group, size = request.name == SET_CLOCK, len(request.payload)
        return self.decide(request.tenant_id, request.partition, decider, ends_group=ends_group, size=size)

    def usage(self, tenant_id: str, keys: Sequence[str] | None, master_number: int = 0) -> Figures:
        """The live figures of customer keys (None: all of the tenant in this lane)."""
        if self._figures is None:
            raise Unavailable("This shard has no master data, so it keeps no figures.")
        return self._figures.usage(tenant_id, keys, master_number)

    def _enqueue(self, call: Call, items: Sequence[UsageItem]) -> Answer | None:
        """Take the items, or refuse the batch as a whole; a tenant whose own queue is full is refused alone."""
        rows: collections.Counter[str] = collections.Counter()
        for item in items:
            rows[item.tenant_id] += item.rows
        with self._condition:
            if not self._serving or self._stopping:
                return failed_answer(self.lane, "unavailable", f"Lane {self.lane} is not served here.")
            if len(self._recent) > self.settings.recent_ids_max:
                detail = f"Lane {self.lane} holds {len(self._recent)} ids in memory; its checkpoint is behind."
                return failed_answer(self.lane, "unavailable", detail)
            if self._queue.rows + sum(rows.values()) > self.settings.queue_rows_max and self._queue.rows:
                return failed_answer(self.lane, "unavailable", f"The queue of lane {self.lane} is full.")
            full = {tenant for tenant, count in rows.items() if self._is_full(tenant, count)}
            for item in items:
                if item.tenant_id in full:
                    call.verdicts[item.offset : item.offset + item.rows] = OVERLOADED
                    continue
                self._queue.put(item)
                call.open_items += 1
            if call.open_items == 0:
                self._finish(call)
            self._condition.notify()
        return None

    def _is_full(self, tenant_id: str, rows: int) -> bool:
        held = self._queue.held(tenant_id)
        return held > 0 and held + rows > self.settings.tenant_queue_rows_max

    # -- the commit thread --------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        reason = "stopped"
        try:
            while (group := self._next_group()) is not None:
                while group:
                    if self._followers.stale and time.monotonic() >= self._refold_at_s:
                        self._refold()
                    group = self._commit(group)
                self._follow_checkpoint()
                self._checkpoint_if_due()
                for tenant_id, name in self._followers.due():
                    self.decide_named(encode_request(DecisionRequest(tenant_id, ANY_PARTITION, name, b"")))
        except BillingError as error:  # lost, stopped, store gone: what was in flight is answered as unknown
            reason = f"{error.code}: {error.detail}"
        except BaseException as error:
            reason = f"bug: {type(error).__name__}: {error}"
            raise
        finally:
            self._end(reason)

    def _next_group(self) -> list[Item] | None:
        """Up to a group's rows; [] when idle, None at the end."""
        with self._condition:
            while not self._queue:
                if self._stopping:
                    return None
                if not self._condition.wait(IDLE_S):
                    return []
            if self.settings.window_s and self._queue.rows < self.settings.group_rows_max:
                self._condition.wait(self.settings.window_s)
            return self._queue.take(self.settings.group_rows_max, self.settings.group_bytes_max)

    def _commit(self, items: list[Item]) -> list[Item]:
        """Commit a group of the first items; returns those that must be another one."""
        try:
            return self._commit_or_raise(items)
        except StoreRefused as error:
            for item in items:
                item.fail(error, refused=True)
            return []
        except BillingError as error:
            for item in items:
                item.fail(error)
            raise
        except BaseException as error:
            for item in items:
                item.fail(Unavailable(f"Lane {self.lane} stopped: {type(error).__name__}"))
            raise

    def _commit_or_raise(self, items: list[Item]) -> list[Item]:
        if not self._followers.is_stale(self._clocks.name):
            self._times = self._clocks.times  # else those from before: a clock that is folded again moves nowhere
        moment = LogMoment(
            self.lane,
            self._writer.position.number + 1,
            self._writer.next_log_time_us(),
            self._times,
            self._is_recorded,
            self._judge_backfilled,
            self._usage_of,
        )
        group = _Group(moment)
        has_decisions = any(isinstance(item, DecisionItem) for item in items)
        # Decisions and usage in their order. Followers see rows before the put only where a decision may rest on them.
        taken = 0
        for _, run in itertools.groupby(items, lambda item: isinstance(item, UsageItem)):
            part = list(run)
            count = self._take_run(group, part, has_decisions)
            taken += count
            if count < len(part):
                break
        rows, head = self._put(group)
        if rows is not None and head is not None and self._figures is not None:
            self._figures.take(rows, head.number)  # before the answer: who reads after it sees what was acknowledged
        if head is not None:
            for after in group.afters:
                after(head.number)
        self._answer(group)
        if rows is not None and head is not None:
            for frame in group.unapplied:
                self._followers.apply(frame, moment)
            if head.number % self.settings.hint_every == 0:
                write_hint(self._store, self.lane, head.number)
        return items[taken:]

    def _take_run(self, group: _Group, run: Sequence[Item], has_decisions: bool) -> int:
        """Take usage or decisions; how many of them, for the first that must not be in this group ends it."""
        usage = [item for item in run if isinstance(item, UsageItem)]
        if usage:
            again = group.unseen.intersection(item.tenant_id for item in usage)
            if again and self._followers.watch(again):
                return 0
            # A replay shows all usage of a segment at once, by partition: so it is shown at once here, too.
            if not group.watched.isdisjoint(item.tenant_id for item in usage):
                return 0
            self._take_usage(group, usage, has_decisions)
            return len(usage)
        for count, item in enumerate(run):
            assert isinstance(item, DecisionItem)
            if not self._take_decision(group, item):
                return count
        return len(run)

    def _put(self, group: _Group) -> tuple[pl.DataFrame, SegmentHead] | tuple[None, None]:
        """Put what a group has, in the order of partitions; nothing if it has no rows."""
        if not group.frames and not group.forces_put and not group.controls:
            return None, None
        rows = group.frames[0] if group.frames else NO_ROWS
        if len(group.frames) > 1:
            rows = pl.concat(group.frames)
            rows = rows[np.argsort(rows["partition"].to_numpy(), kind="stable")]
        times = group.moment.clocks
        clocks = {tenant_id: times[tenant_id] for tenant_id in group.counters if tenant_id in times}
        try:
            head = self._writer.append(
                rows,
                group.counters,
                group.controls or (() if group.frames else (Control("tick"),)),
                log_time_us=max(group.moment.log_time_us, group.log_time_us),
                clocks=clocks,
            )
        except StoreRefused:
            for ids in group.ids:
                self._recent.take_back(ids)
            if group.is_applied:
                self._followers.not_stored()
                self._refold_at_s = 0.0
            raise
        assert head.number == group.moment.number, f"lane {self.lane}: {head.number} was put for {group.moment.number}"
        self._groups += 1
        self._rows += rows.height
        self._rows_since_checkpoint += rows.height
        return rows, head

    def _take_usage(self, group: _Group, items: Sequence[UsageItem], has_decisions: bool) -> None:
        """Drop repeats, judge what is new, and let followers add what must stand in the same segment."""
        events = pl.concat([item.events for item in items]) if len(items) > 1 else items[0].events
        partitions = np.concatenate([item.partitions for item in items])
        ids = EventIds(
            np.concatenate([item.ids.high for item in items]), np.concatenate([item.ids.low for item in items])
        )
        is_mine = self._owned[partitions]
        mine = np.flatnonzero(is_mine)
        new = mine[self._add_ids(group, ids.take(mine))]
        is_new = np.zeros(len(partitions), np.bool_)
        is_new[new] = True
        reasons = self._reasons(items, is_new, group.moment)  # before the put: the answer goes out once it is committed
        group.judged.append(_Judged(items, partitions, is_mine, is_new, reasons))
        if not len(new):
            return
        order = new[np.argsort(partitions[new], kind="stable")]
        tenant_numbers = np.repeat(np.arange(len(items)), [item.rows for item in items])[order]
        tenants = pl.Series("tenant", [item.tenant_id for item in items], dtype=pl.String).gather(tenant_numbers)
        # Put side by side, in the order of ROW_SCHEMA: a query would cost a small group more than its segment.
        count = len(order)
        kinds, details = _USAGE_KIND.new_from_index(0, count), _NO_DETAIL.new_from_index(0, count)
        columns = events[order].get_columns()
        rows = pl.DataFrame([tenants, pl.Series("partition", partitions[order]), kinds, *columns, details])
        group.frames.append(rows)
        for tenant_id, count in _counters(items, is_mine, is_new).items():
            group.counters[tenant_id] = group.counters.get(tenant_id, Counters()) + count
        tenant_ids = {item.tenant_id for item in items}
        if has_decisions:
            group.unseen |= {tenant_id for tenant_id in tenant_ids if not self._followers.watch([tenant_id])}
            group.watched |= tenant_ids - group.unseen
        if self._followers.watch(tenant_ids):
            self._follow(group, rows, at_once=has_decisions)

    def _take_decision(self, group: _Group, item: DecisionItem) -> bool:
        """Whether it was taken; if not, nothing has happened, and it is decided anew in the next group."""
        if item.partition != ANY_PARTITION and not self._owned[item.partition]:
            owner = int(self._lane_of[item.partition])
            item.future.set_result(encode_moved(self.lane, int(self._generation[item.partition]), owner))
            return True
        placed: tuple[pl.DataFrame, EventIds] | None = None
        try:
            decided = item.decide(group.moment)
            if decided.partition >= 0:
                placed = self._placed_in(decided.rows, decided.partition)
            elif decided.rows.height and not self._owned.any() and not (decided.rows["customer"] != "").any():
                pass  # of a lane without partitions there is nothing to note: what comes brings its own
            elif decided.rows.height:
                tenants = set(decided.rows["tenant"].to_list())
                assert tenants == {item.tenant_id}, f"a decision of {item.tenant_id} wrote for another tenant"
                placed = self._placed(decided.rows, item.tenant_id)
        except BillingError as error:
            item.fail(error)
            return True
        except (Exception, pl.exceptions.PanicException) as error:  # noqa: BLE001 - a fault must not stop the lane
            item.fail(BillingError(f"The decision failed: {type(error).__name__}: {error}. Nothing was written."))
            return True
        if placed is not None and decided.partition >= 0:
            rows, ids = placed
            self._add_ids(group, ids)
            group.frames.append(rows)
            group.count(rows)
            group.unapplied.append(rows)
        elif placed is not None:
            rows, ids = placed
            if item.tenant_id in group.unseen and self._is_first_look(rows, item.tenant_id):
                return False
            is_new = self._add_ids(group, ids)
            if not is_new.all():
                self._recent.take_back(group.ids.pop())
                known = rows if len(ids) != rows.height else rows.filter(pl.Series(~is_new))
                item.fail(forgotten(known["id"].to_list()))
                return True
            group.frames.append(rows)
            group.count(rows)
            self._follow(group, rows, at_once=True)
        group.forces_put = group.forces_put or decided.forces_put
        group.controls.extend(decided.controls)
        group.log_time_us = max(group.log_time_us, decided.log_time_us)
        if decided.after is not None:
            group.afters.append(decided.after)
        group.decided.append((item, decided.answer))
        return True

    def _is_first_look(self, rows: pl.DataFrame, tenant_id: str) -> bool:
        """Whether with these rows a follower may begin with a tenant whose usage in the same group it did not see.

        It would lack that usage: it is not in the log yet, and a replay of the segment counts it.
        """
        return not _LOOKS.isdisjoint(rows["kind"].to_list()) or self._followers.watch([tenant_id])

    def _follow(self, group: _Group, rows: pl.DataFrame, *, at_once: bool) -> None:
        """Show rows to the followers, and what they propose for the same segment; what is in the log already is not."""
        for placed, ids in self._followers.propose(rows, group.moment, self._placed):
            new = placed.filter(pl.Series(self._add_ids(group, ids)))
            if new.height:
                group.frames.append(new)
                group.count(new)
                rows = pl.concat([rows, new])
        if at_once:
            group.is_applied = True
            self._followers.apply(rows, group.moment)
        else:
            group.unapplied.append(rows)

    def _placed(self, rows: pl.DataFrame, tenant_id: str | None = None) -> tuple[pl.DataFrame, EventIds]:
        """Rows with the partition of their customer key, and their ids; `tenant_id` if all are of one tenant.

        Most decisions write one row, so Polars is asked for as little as possible: a query costs it 0.1 ms at least.
        """
        assert self._genesis is not None
        if rows.columns != ROW_SCHEMA.names():
            rows = rows.select(ROW_SCHEMA.names())
        tenants = tenant_id or rows["tenant"]
        partitions = partitions_of(self._genesis.seed, tenants, rows["customer"])
        anywhere = np.flatnonzero((rows["customer"] == "").to_numpy())
        partitions[anywhere] = np.flatnonzero(self._owned)[0]
        assert self._owned[partitions].all(), "a decision wrote into a partition of another lane"
        if rows.height > 1:  # as a segment has them; of one partition in the order decided
            order = np.argsort(partitions, kind="stable")
            rows, partitions = rows[order], partitions[order]
            tenants = tenant_id or rows["tenant"]
        placed = rows.clone().replace_column(ROW_SCHEMA.names().index("partition"), pl.Series("partition", partitions))
        return placed, ids_of_rows(self._genesis.seed, tenants, placed, partitions)

    def _placed_in(self, rows: pl.DataFrame, partition: int) -> tuple[pl.DataFrame, EventIds] | None:
        """Rows of several tenants that a lane writes into a partition itself."""
        assert self._genesis is not None
        if rows.height == 0:
            return None
        placed = rows.select(ROW_SCHEMA.names()).with_columns(pl.lit(partition, pl.UInt8).alias("partition"))
        partitions = np.full(rows.height, partition, np.uint8)
        return placed, event_ids(self._genesis.seed, placed["tenant"], placed, partitions)

    def _add_ids(self, group: _Group, ids: EventIds) -> npt.NDArray[np.bool_]:
        """Which ids are new to the log; they are known from now on."""
        is_new = np.zeros(len(ids), np.bool_)
        candidates = np.flatnonzero(~self._runs.contains(ids))
        is_new[candidates] = self._recent.add(ids.take(candidates), stamp_of(self.lane, group.moment.number))
        group.ids.append(ids.take(is_new))
        return is_new

    def _usage_of(self, tenant_id: str, keys: Sequence[str], master_number: int) -> LiveState | None:
        return self.usage(tenant_id, keys, master_number).live

    def _is_recorded(self, tenant_id: str, wanted: Sequence[tuple[str, str, str]]) -> list[bool]:
        """For decisions: whether (customer key, source, id) is in the log or in this group."""
        assert self._genesis is not None
        named = pl.DataFrame(wanted, schema={"customer": pl.String, "source": pl.String, "id": pl.String}, orient="row")
        partitions = partitions_of(self._genesis.seed, tenant_id, named["customer"])
        ids = event_ids(self._genesis.seed, tenant_id, named, partitions)
        known: list[bool] = self._contains(ids).tolist()
        return known

    def _judge_backfilled(self, tenant_id: str, events: pl.DataFrame, name: str, reverted: Sequence[str]) -> JudgedRows:
        """For decisions: which events of a backfill are new to the log, or were those of a reverted one."""
        assert self._genesis is not None
        seed = self._genesis.seed
        partitions = partitions_of(seed, tenant_id, events["customer"])
        ids = event_ids(seed, tenant_id, events, partitions)
        is_mine = self._owned[partitions]
        firsts = pl.DataFrame({"high": ids.high, "low": ids.low}).select(pl.struct("high", "low").is_first_distinct())
        candidates = is_mine & firsts.to_series().to_numpy()
        is_known = self._contains(ids)
        is_new = candidates & ~is_known
        before = np.full(events.height, -1, np.int64)  # whose the id was, by place in `reverted`
        open_ = np.flatnonzero(candidates & is_known)

        def marked(one: str, *, again: bool) -> npt.NDArray[np.bool_]:
            return self._contains(marker_ids(seed, tenant_id, events[open_], partitions[open_], one, again=again))

        if reverted and len(open_):
            open_ = open_[~marked(name, again=False)]
        for place, one in enumerate(reverted):
            if not len(open_):
                break
            free = marked(one, again=False) & ~marked(one, again=True)
            is_new[open_[free]], before[open_[free]] = True, place
            open_ = open_[~free]
        places = pl.DataFrame({"place": before}).select(pl.when(pl.col("place") >= 0).then("place")).to_series()
        again = pl.Series("again", [*reverted], dtype=pl.String)
        return JudgedRows(
            is_mine,
            is_new,
            again.gather(places) if reverted else pl.repeat(None, events.height, dtype=pl.String, eager=True),
        )

    def _contains(self, ids: EventIds) -> npt.NDArray[np.bool_]:
        return self._runs.contains(ids) | self._recent.contains(ids)

    def _answer(self, group: _Group) -> None:
        for judged in group.judged:
            is_mine, is_new, reasons = judged.is_mine, judged.is_new, judged.reasons
            self._duplicates += int(is_mine.sum()) - int(is_new.sum())
            verdicts = np.where(is_mine, np.where(is_new, Verdict.ACCEPTED, Verdict.DUPLICATE), NOT_OWNED)
            verdicts = verdicts.astype(np.uint8)
            verdicts[is_new & (reasons != NO_REASON)] = Verdict.SUSPENDED
            reasons[reasons == UNJUDGED] = NO_REASON
            first = 0
            for item in judged.items:
                part = slice(first, first + item.rows)
                item.call.verdicts[item.offset : item.offset + item.rows] = verdicts[part]
                item.call.reasons[item.offset : item.offset + item.rows] = reasons[part]
                for partition in np.unique(judged.partitions[part][~is_mine[part]]):
                    item.call.owners[int(partition)] = (int(self._generation[partition]), int(self._lane_of[partition]))
                first += item.rows
                item.call.open_items -= 1
                if item.call.open_items == 0:
                    self._finish(item.call)
        for item, answer in group.decided:
            if not item.future.done():
                item.future.set_result(encode_decided(self.lane, self._writer.position.number, answer))

    def _reasons(
        self, items: Sequence[UsageItem], is_new: npt.NDArray[np.bool_], moment: LogMoment
    ) -> npt.NDArray[np.uint8]:
        """Why rows that are stored cannot be rated now; one question per tenant of the group."""
        reasons = np.full(len(is_new), NO_REASON, np.uint8)
        if self._figures is None:
            return reasons
        firsts = np.cumsum([0, *(item.rows for item in items)])
        by_tenant: dict[str, list[int]] = {}
        for number, item in enumerate(items):
            by_tenant.setdefault(item.tenant_id, []).append(number)
        for tenant_id, numbers in by_tenant.items():
            places = np.concatenate([np.arange(firsts[number], firsts[number + 1]) for number in numbers])
            wanted = is_new[places]
            if not wanted.any():
                continue
            frames = [items[number].events for number in numbers]
            events = frames[0] if len(frames) == 1 else pl.concat(frames)
            named = max((items[number].master_number or 0 for number in numbers), default=0)
            now_us = moment.now_us(tenant_id)
            fresh = events if wanted.all() else events.filter(pl.Series(wanted))
            codes = self._figures.classify(tenant_id, fresh, now_us, named)
            reasons[places[wanted]] = codes
        return reasons

    def _finish(self, call: Call) -> None:
        if call.future.done():
            return
        position = self._writer.position
        if call.traces:
            committed(call.traces, call.began_ns, self.lane, position.number, len(call.verdicts))
        answer = Answer(
            call.verdicts, call.reasons, self.lane, position.number, position.log_time_us, dict(call.owners)
        )
        call.future.set_result(encode_answer(answer))

    def _end(self, reason: str) -> None:
        with self._condition:
            self._serving = False
            self._stopped_because = reason
            waiting = self._queue.drain()
        for item in waiting:
            item.fail(Unavailable(f"Lane {self.lane} stopped ({reason}). Send the same again, same ids."))

    # -- recovery -----------------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._writer = LaneWriter(self._store, self.lane, self._clock)
        self._manifest = Manifest()
        self._recent = RecentIds()
        self._runs = IdRuns()
        self._owned: npt.NDArray[np.bool_] = np.zeros(PARTITIONS, np.bool_)
        self._generation: npt.NDArray[np.int64] = np.zeros(PARTITIONS, np.int64)
        self._lane_of: npt.NDArray[np.int64] = np.zeros(PARTITIONS, np.int64)
        self._packed: dict[int, Luggage] = {}  # read ahead for partitions that are about to come
        self._rows_since_checkpoint = 0
        self._checkpoint_number = -1
        self._checkpoint_at_s = time.monotonic()
        self._followers.clear()
        self._times: Mapping[str, int] = {}  # of test tenants, by committed rows; also while their follower is stale
        if self._figures is not None:
            self._figures.clear()

    def _recover_and_claim(self) -> None:
        assert self._genesis is not None
        for _ in range(RECOVERIES_MAX):
            self._reset()
            self._manifest = self._chain.newest()
            self._runs = self._runs.with_runs(self._store, self._manifest.runs, self._cache)
            for partition in range(PARTITIONS):
                self._lane_of[partition] = self._genesis.first_lane(partition)
            self._owned = self._lane_of == self.lane
            self._place()
            self._load_snapshot()
            first = self._writer.position.number + 1
            for segment in self._writer.read_on():
                self._apply(segment)
            self._writer.claim(self._apply)
            if self._chain.newest().floor(self.lane) <= first:  # rule H: what was read counts
                return
        raise BillingError(f"Lane {self.lane} could not be recovered in {RECOVERIES_MAX} tries.", lane=self.lane)

    def _apply(self, segment: StoredSegment) -> None:
        """Take a committed segment into the state, exactly as serving it would have done."""
        head = segment.head
        for control in head.controls:
            if control.what == "acquired":
                self._arrived(self._luggage(control), control.generation, head.number)
        if head.rows:
            self._apply_rows(segment)
        for control in head.controls:
            if control.what == "released":
                self._left(control.partition, control.generation, control.lane, head.number)

    def _apply_rows(self, segment: StoredSegment) -> None:
        head = segment.head
        assert self._genesis is not None
        rows = segment.rows()
        assert rows.schema == ROW_SCHEMA, f"lane {self.lane} number {head.number}: unexpected columns"
        partitions = rows["partition"].to_numpy()
        assert self._owned[partitions].all(), f"lane {self.lane} number {head.number} has rows it does not own"
        self._rows_since_checkpoint += head.rows
        if head.number > self._manifest.ids_covered(self.lane):
            ids = ids_of_rows(self._genesis.seed, rows["tenant"], rows, partitions)
            is_new = self._recent.add(ids, stamp_of(self.lane, head.number))
            assert is_new.all(), f"lane {self.lane} number {head.number} repeats an id"
        self._followers.apply(rows, _moment_of(head))
        if self._figures is not None:
            self._figures.take(rows, head.number)

    def _fold_followers(self, saved: Mapping[str, FrozenFollower], last: int) -> None:
        """The followers' states after a number: from a snapshot, and from the log what it does not have of them."""
        firsts = self._followers.thaw(saved)
        for segment in walk(self._store, self.lane, min(firsts.values()), last):
            head = segment.head
            for control in head.controls:
                if control.what == "acquired":
                    self._followers.arrive(in_order(self._luggage(control).rows), head.number, firsts)
            if self._followers.watch(head.counters) or any(count.decided for count in head.counters.values()):
                self._followers.replay(segment.rows(), _moment_of(head), firsts)
            for control in head.controls:
                if control.what == "released":
                    self._followers.leave(self._lies_in(control.partition), head.number, firsts)

    def _refold(self) -> None:
        """After a group that was not stored, or a fault: the followers are what the log says, or stay aside."""
        self._refold_at_s = time.monotonic() + REFOLD_EVERY_S
        try:
            named = self._manifest.snapshots.get(self.lane)
            saved = {} if named is None else read_snapshot(self._store, named.key).followers
            self._fold_followers(saved, self._writer.position.number)
            self._followers.folded_again()
        except BillingError:  # the store is away; their decisions say so until the next try
            self._followers.not_stored()

    # -- moves --------------------------------------------------------------------------------------------------------

    def prepare_move(self, partition: int, from_lane: int) -> None:
        """Read what a partition will bring along while its lane still serves it. Nothing of it is durable."""
        assert self._genesis is not None
        self._packed[partition] = pack(self._store, self._genesis.seed, self._chain.newest(), partition, from_lane)

    def release(self, partition: int, to_lane: int) -> Future[bytes]:
        """Let a partition go to another lane: it takes no more rows here from the record's number on."""

        def decider(moment: LogMoment) -> Decided:
            generation = int(self._generation[partition])
            if not self._owned[partition]:
                if int(self._lane_of[partition]) == to_lane:
                    return Decided(NO_ROWS, _move_form(partition, generation, -1))
                raise Conflict(f"partition {partition} is not in lane {self.lane} but in {self._lane_of[partition]}")
            if to_lane == self.lane:
                raise Conflict(f"partition {partition} is in lane {self.lane} already")
            if staying := self._followers.staying(self._lies_in(partition)):
                raise Conflict(f"partition {partition} cannot move now: {', '.join(staying)} keep it")
            return Decided(
                clock_rows(moment.clocks, f"{partition}:{generation + 1}"),
                _move_form(partition, generation + 1, moment.number),
                controls=(Control("released", partition, generation + 1, to_lane),),
                partition=partition,
                after=lambda number: self._left(partition, generation + 1, to_lane, number),
            )

        return self.decide("", ANY_PARTITION, decider, ends_group=True)

    def acquire(self, partition: int, from_lane: int) -> Future[bytes]:
        """Take a partition that another lane has let go to this one. Unavailable while that has not happened."""

        def decider(moment: LogMoment) -> Decided:
            assert self._genesis is not None
            if self._owned[partition]:
                return Decided(NO_ROWS, _move_form(partition, int(self._generation[partition]), -1))
            seed, packed = self._genesis.seed, self._packed.get(partition)
            if packed is None or packed.lane != from_lane:
                packed = pack(self._store, seed, self._chain.newest(), partition, from_lane)
            luggage = complete(self._store, seed, packed, self.lane)
            release = luggage.release
            assert release is not None
            if release.generation <= int(self._generation[partition]):
                raise Unavailable(f"Lane {from_lane} let partition {partition} go before it was here last.")
            if self._chain.newest().floor(from_lane) > luggage.first:  # rule H: what was read counts
                self._packed.pop(partition, None)
                raise Unavailable(f"Lane {from_lane} was cleared while it was read. Send the same again.")
            return Decided(
                NO_ROWS,
                _move_form(partition, release.generation, moment.number),
                controls=(Control("acquired", partition, release.generation, from_lane, luggage.number),),
                log_time_us=luggage.released_us + 1,  # so that a partition's history can be told apart by time
                after=lambda number: self._arrived(luggage, release.generation, number),
            )

        return self.decide("", ANY_PARTITION, decider, ends_group=True)

    def _luggage(self, control: Control) -> Luggage:
        """What a partition brought with a record of this lane, read again."""
        assert self._genesis is not None
        seed, partition = self._genesis.seed, control.partition
        packed = pack(self._store, seed, self._manifest, partition, control.lane, up_to=control.number - 1)
        return complete(self._store, seed, packed, self.lane, number=control.number)

    def _arrived(self, luggage: Luggage, generation: int, number: int) -> None:
        partition = luggage.partition
        if luggage.manifest.number > self._manifest.number:  # its runs hold the ids that it did not bring
            self._runs = self._runs.with_runs(self._store, luggage.manifest.runs, self._cache)
            self._manifest = luggage.manifest
        for ids in luggage.ids:
            self._recent.add(ids, stamp_of(self.lane, number))
        self._rows_since_checkpoint += sum(len(ids) for ids in luggage.ids)
        self._packed.pop(partition, None)
        self._owned[partition], self._lane_of[partition], self._generation[partition] = True, self.lane, generation
        self._place()
        self._followers.arrive(in_order(luggage.rows), number)
        if self._figures is not None:
            self._figures.arrive(partition)

    def _left(self, partition: int, generation: int, to_lane: int, number: int) -> None:
        self._owned[partition], self._lane_of[partition], self._generation[partition] = False, to_lane, generation
        self._place()
        self._followers.leave(self._lies_in(partition), number)
        if self._figures is not None:
            self._figures.leave(partition)

    def _place(self) -> None:
        owned, moved = self._owned.copy(), self._generation > 0
        self._followers.places(owned, moved)
        if self._figures is not None:
            assert self._genesis is not None
            self._figures.places(owned, moved, self._genesis.seed)

    def _lies_in(self, partition: int) -> LiesIn:
        assert self._genesis is not None
        seed = self._genesis.seed

        def lies_in(tenant_id: str, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
            return partitions_of(seed, tenant_id, pl.Series(keys, dtype=pl.String)) == partition

        return lies_in

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _load_snapshot(self) -> None:
        """The state after the snapshot's number, from the same manifest entry as the id runs."""
        named = self._manifest.snapshots.get(self.lane)
        if named is None:
            return
        snapshot = read_snapshot(self._store, named.key)
        assert snapshot.lane == self.lane, f"{named.key} is of lane {snapshot.lane}"
        assert snapshot.position.number == named.number, f"{named.key} is of number {snapshot.position.number}"
        self._writer = LaneWriter(self._store, self.lane, self._clock, position=snapshot.position)
        self._lane_of = np.array(snapshot.lane_of, np.int64)
        self._generation = np.array(snapshot.generation, np.int64)
        self._owned = self._lane_of == self.lane
        self._place()
        self._checkpoint_number = named.number
        self._fold_followers(snapshot.followers, named.number)
        if self._figures is not None:
            self._figures.thaw(snapshot.figures, named.number)

    def _checkpoint_if_due(self) -> None:
        """Freeze the state here; sort, write and announce it in another thread, while groups go on."""
        if self._checkpoint_thread is not None or self._checkpoint_entry is not None:
            return
        elapsed_s = time.monotonic() - self._checkpoint_at_s
        enough = self.settings.checkpoint_rows if elapsed_s < self.settings.checkpoint_s else 1
        if self._rows_since_checkpoint < enough:
            return
        self._rows_since_checkpoint, self._checkpoint_at_s = 0, time.monotonic()
        ids, _ = self._recent.export()
        figures: Callable[[], bytes] = bytes
        if self._figures is not None:
            figures = self._figures.freeze()
        followers = self._followers.freeze(self._writer.position.number)
        position, lane_of, generation = self._writer.position, self._lane_of.tolist(), self._generation.tolist()

        def write() -> None:
            try:
                snapshot = LaneSnapshot(self.lane, position, lane_of, generation, figures(), followers())
                self._checkpoint_entry = announce(self._store, self._chain, snapshot, ids)
                self._checkpoint_error = ""
                merge_id_runs(self._store, self._chain, self._cache)
            except BillingError as error:  # the next one covers more; recovery takes longer until then
                self._checkpoint_error = f"{error.code}: {error.detail}"
            finally:
                self._checkpoint_thread = None

        thread = threading.Thread(target=write, name=f"checkpoint-{self.lane}", daemon=True)
        self._checkpoint_thread = thread
        thread.start()

    def _follow_checkpoint(self) -> None:
        """Load the id runs that cover a checkpoint, then drop the ids they hold. In this order."""
        entry = self._checkpoint_entry
        if entry is None:
            return
        # A partition that just arrived may have brought a newer entry: its runs hold ids that this one's do not.
        newest = max(entry, self._manifest, key=lambda one: one.number)
        self._runs = self._runs.with_runs(self._store, newest.runs, self._cache)
        self._manifest = newest
        self._checkpoint_number = entry.snapshots[self.lane].number
        covered = entry.ids_covered(self.lane)

        def kept(_: EventIds, stamps: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
            lanes, numbers = lane_and_number(stamps)
            return ~((lanes == np.uint64(self.lane)) & (numbers <= np.uint64(max(covered, 0))))

        self._recent.keep(kept)
        self._checkpoint_entry = None


def _move_form(partition: int, generation: int, number: int) -> bytes:
    return json.dumps({"partition": partition, "generation": generation, "number": number}).encode()


def _moment_of(head: SegmentHead) -> LogMoment:
    return LogMoment(head.lane, head.number, head.log_time_us, head.clocks)


def _counters(
    group: Sequence[UsageItem], is_mine: npt.NDArray[np.bool_], is_new: npt.NDArray[np.bool_]
) -> dict[str, Counters]:
    counters: dict[str, Counters] = {}
    first = 0
    for item in group:
        part = slice(first, first + item.rows)
        first += item.rows
        stored = int(is_new[part].sum())
        duplicates = int(is_mine[part].sum()) - stored
        counters[item.tenant_id] = counters.get(item.tenant_id, Counters()) + Counters(stored, duplicates)
    return counters
