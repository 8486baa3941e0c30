"""The one writer of a lane: takes batches and decisions, drops repeats, commits groups, answers, folds. No Ray in here.

Owns the order of things: 1 dedup and decide, 2 put, 3 answer, 4 fold. Nothing is shown or answered before its number
is COMMITTED. What the lane says is `LaneState` (actors/lane_state.py). The rules: docs/usage-log.md.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

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
from actors.commit_group import Group, Judged, count_usage
from actors.decisions import (
    ANY_PARTITION,
    DecisionRequest,
    decode_request,
    encode_decided,
    encode_failure,
    encode_moved,
    encode_request,
)
from actors.fair_turns import Held
from actors.followers import (
    NO_ROWS,
    Decided,
    LaneFollower,
    LogMoment,
    forgotten,
)
from actors.lane_state import LaneState
from actors.lane_traces import committed
from actors.live_figures import Figures, MasterSource
from actors.shard_queue import Call, DecisionItem, FairQueue, Item, UsageItem, items_of
from actors.tenant_clocks import SET_CLOCK
from billing.errors import BillingError, NotFound, Overloaded, Unavailable
from billing.usage import Verdict
from storage.object_store import ObjectStore, StoreRefused, StoreUnavailable
from storage.usage_log.checkpoints import RowsErased
from storage.usage_log.clock import SKEW_ALARM_US, SKEW_MAX_US, Clock, SystemClock, skew_us
from storage.usage_log.genesis import Genesis
from storage.usage_log.lane import LaneClosed, write_hint
from storage.usage_log.partitions import EventIds
from storage.usage_log.run_cache import BYTES_MAX, RunCache
from storage.usage_log.segment import Control, Counters, RowKind, SegmentHead
from storage.usage_log.sizes import SEGMENT_BYTES_MAX

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
    group_bytes_max: int = SEGMENT_BYTES_MAX
    window_s: float = 0.0  # waiting for more rows when idle; 0 locally, 0.02-0.1 on S3
    queue_rows_max: int = 400_000
    queue_bytes_max: int = 192 * 1024 * 1024
    tenant_queue_rows_max: int = 200_000
    tenant_queue_bytes_max: int = 96 * 1024 * 1024  # more than the largest request, which goes if nothing waits
    checkpoint_rows: int = 500_000  # bounds the tail that a recovery reads, and the ids in memory
    checkpoint_s: float = 300.0
    recent_ids_max: int = 8_000_000  # beyond it the shard refuses: ids leave memory only by a checkpoint
    hint_every: int = 64  # numbers
    id_cache_bytes_max: int = BYTES_MAX  # of id runs on this machine that no process has open, with a remote store


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
    came: tuple[tuple[int, int], ...] = ()  # of the owned those that have moved ever: partition, generation

    def generation_of(self, partition: int) -> int:
        """How often a partition that is at home here has moved."""
        return dict(self.came).get(partition, 0)


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
        directory = cache_directory or Path("/tmp/cloudbilling-id-runs")  # noqa: S108 - only used with remote stores
        cache = RunCache(directory, self.settings.id_cache_bytes_max)
        self.state = LaneState(lane, store, self._clock, master=master, followers=followers, cache=cache)
        self._refold_at_s = 0.0
        self._condition = threading.Condition()
        self._queue = FairQueue()
        self._stopping = False
        self._clock_watch = threading.Event()  # set: nobody watches the clock any more
        self._serving = False
        self._stopped_because = "not started"
        self._thread: threading.Thread | None = None
        self._groups = self._rows = self._duplicates = 0
        self._recovered_s = 0.0
        self._clock_error = ""

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recover, claim the lane, serve. Returns when calls can be served; raises when the lane cannot be had."""
        began = time.monotonic()
        self.state.open()
        self._check_clock()
        self.state.recover_and_claim()
        self._recovered_s = time.monotonic() - began
        self._serving, self._stopped_because = True, ""
        self._thread = threading.Thread(target=self._serve, name=f"rating-shard-{self.lane}", daemon=True)
        self._thread.start()
        self._clock_watch.clear()
        threading.Thread(target=self._watch_clock, name=f"clock-{self.lane}", daemon=True).start()
        if self.state.figures is not None:
            self.state.figures.start()

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
                self.state.writer.stop()
                self._thread.join(timeout_s)
        if self.state.figures is not None:
            self.state.figures.stop()

    @property
    def genesis(self) -> Genesis | None:
        """The log's genesis; None before `start`."""
        return self.state.genesis

    @property
    def serving(self) -> bool:
        return self._serving

    def status(self) -> ShardStatus:
        position = self.state.writer.position
        return ShardStatus(
            lane=self.lane,
            number=position.number,
            epoch=position.epoch,
            log_time_us=position.log_time_us,
            serving=self._serving,
            stopped_because=self._stopped_because,
            stalled_s=self.state.writer.stalled_s,
            queued_rows=self._queue.held.rows,
            recent_ids=len(self.state.recent),
            run_ids=len(self.state.runs),
            runs=self.state.runs.count,
            groups=self._groups,
            rows=self._rows,
            duplicates=self._duplicates,
            recovered_s=self._recovered_s,
            partitions=int(self.state.owned.sum()),
            checkpoint=self.state.checkpoint_number,
            checkpoint_error=self.state.checkpoint_error,
            figures_error="" if self.state.figures is None else self.state.figures.last_error,
            followers_error=self.state.followers.last_error,
            clock_error=self._clock_error,
            owned=tuple(np.flatnonzero(self.state.owned).tolist()),
            released=tuple(
                (int(partition), *self.state.owner(int(partition)))
                for partition in np.flatnonzero(~self.state.owned & (self.state.generation > 0))
            ),
            came=tuple(
                (int(partition), int(self.state.generation[partition]))
                for partition in np.flatnonzero(self.state.owned & (self.state.generation > 0))
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
        items = items_of(batch, call, self.lane, self.settings.group_rows_max, self.settings.group_bytes_max)
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
        alone: bool = False,
    ) -> Future[bytes]:
        """Decide on the commit thread, in the order of arrival with usage; answered after COMMITTED.

        The future gives an encoded answer (actors/decisions.py), also for errors.
        """
        rows = max(1, size // DECIDED_ROW_BYTES) if size > DECISION_BYTES else 1
        item = DecisionItem(Future(), tenant_id, partition, decider, max(size, DECISION_BYTES), ends_group, rows, alone)
        with self._condition:
            if not self._serving or self._stopping:
                item.fail(Unavailable(f"Lane {self.lane} is not served here."))
            elif len(self.state.recent) > self.settings.recent_ids_max:
                item.fail(Unavailable(f"Lane {self.lane} holds too many ids in memory; its checkpoint is behind."))
            elif self._is_full(Held.of(item)):
                item.fail(Unavailable(f"The queue of lane {self.lane} is full."))
            elif self._is_full_for(tenant_id, Held.of(item)):
                item.fail(Overloaded("Too much of this tenant is waiting. Send the same again with the same ids."))
            else:
                self._queue.put(item)
                self._condition.notify()
        return item.future

    def decide_named(self, data: bytes) -> Future[bytes]:
        """A decision that a follower has by name, as a router sends it."""
        request = decode_request(data)
        if not self.state.followers.knows(request.name):
            future: Future[bytes] = Future()
            future.set_result(encode_failure(NotFound(f"This shard decides no {request.name}.")))
            return future
        decision = self.state.followers.decision(request.name)

        def decider(moment: LogMoment) -> Decided:
            return decision(request.tenant_id, request.payload, moment)

        ends_group, size = request.name == SET_CLOCK, len(request.payload)
        return self.decide(request.tenant_id, request.partition, decider, ends_group=ends_group, size=size)

    def prepare_move(self, partition: int, from_lane: int, generation: int) -> None:
        """Read what a partition will bring along while its lane still serves it. Nothing of it is durable."""
        self.state.prepare_move(partition, from_lane, generation)

    def release(self, partition: int, to_lane: int) -> Future[bytes]:
        """Let a partition go to another lane: it takes no more rows here from the record's number on."""
        return self.decide(
            "", ANY_PARTITION, lambda at: self.state.release(partition, to_lane, at), ends_group=True, alone=True
        )

    def acquire(self, partition: int, from_lane: int) -> Future[bytes]:
        """Take a partition that another lane has let go to this one. Unavailable while that has not happened."""
        return self.decide(
            "", ANY_PARTITION, lambda at: self.state.acquire(partition, from_lane, at), ends_group=True, alone=True
        )

    def close_lane(self, arrived: Mapping[int, int]) -> Future[bytes]:
        """End the lane for good, if nothing can ask for it any more; then this shard stops. As `LaneState.close`."""
        return self.decide("", ANY_PARTITION, lambda _: self.state.close(arrived), ends_group=True, alone=True)

    def usage(self, tenant_id: str, keys: Sequence[str] | None, master_number: int = 0) -> Figures:
        """The live figures of customer keys (None: all of the tenant in this lane)."""
        if self.state.figures is None:
            raise Unavailable("This shard has no master data, so it keeps no figures.")
        return self.state.figures.usage(tenant_id, keys, master_number)

    def _enqueue(self, call: Call, items: Sequence[UsageItem]) -> Answer | None:
        """Take the items, or refuse the batch as a whole; a tenant whose own queue is full is refused alone."""
        comes: dict[str, Held] = {}
        whole = Held()
        for item in items:
            comes.setdefault(item.tenant_id, Held()).add(item)
            whole.add(item)
        with self._condition:
            if not self._serving or self._stopping:
                return failed_answer(self.lane, "unavailable", f"Lane {self.lane} is not served here.")
            if len(self.state.recent) > self.settings.recent_ids_max:
                detail = f"Lane {self.lane} holds {len(self.state.recent)} ids in memory; its checkpoint is behind."
                return failed_answer(self.lane, "unavailable", detail)
            if self._is_full(whole):
                return failed_answer(self.lane, "unavailable", f"The queue of lane {self.lane} is full.")
            full = {tenant_id for tenant_id, held in comes.items() if self._is_full_for(tenant_id, held)}
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

    def _is_full(self, comes: Held) -> bool:
        most = self.settings
        return self._queue.held.is_beyond(most.queue_rows_max, most.queue_bytes_max, comes)

    def _is_full_for(self, tenant_id: str, comes: Held) -> bool:
        most, held = self.settings, self._queue.held_of(tenant_id)
        return held.is_beyond(most.tenant_queue_rows_max, most.tenant_queue_bytes_max, comes)

    # -- the commit thread --------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        reason = "stopped"
        try:
            while (group := self._next_group()) is not None:
                while group:
                    if self.state.followers.stale and time.monotonic() >= self._refold_at_s:
                        self._refold_at_s = time.monotonic() + REFOLD_EVERY_S
                        self.state.refold()
                    group = self._commit(group)
                    if self.state.writer.position.closed:
                        for item in group:
                            item.fail(Unavailable(f"Lane {self.lane} is closed. Send the same again, same ids."))
                        raise LaneClosed(f"Lane {self.lane} is closed.", lane=self.lane)
                if self.state.outdated:  # its successor folds what is left, and keeps that
                    raise RowsErased(self.state.outdated)
                self.state.follow_checkpoint()
                self.state.checkpoint_if_due(self.settings.checkpoint_rows, self.settings.checkpoint_s)
                for tenant_id, name in self.state.followers.due():
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
            if self.settings.window_s and self._queue.held.rows < self.settings.group_rows_max:
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
        moment = self.state.moment()
        group = Group(moment)
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
        if rows is not None and head is not None and self.state.figures is not None:
            # Before the answer: who reads after it sees what was acknowledged.
            self.state.figures.take(rows, head.number)
        if head is not None:
            for after in group.afters:
                after(head.number)
        self._answer(group)
        if rows is not None and head is not None:
            for frame in group.unapplied:
                self.state.followers.apply(frame, group.moment)
            if head.number % self.settings.hint_every == 0:
                write_hint(self._store, self.lane, head.number)
        return items[taken:]

    def _take_run(self, group: Group, run: Sequence[Item], has_decisions: bool) -> int:
        """Take usage or decisions; how many of them, for the first that must not be in this group ends it."""
        usage = [item for item in run if isinstance(item, UsageItem)]
        if usage:
            again = group.unseen.intersection(item.tenant_id for item in usage)
            if again and self.state.followers.watch(again):
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

    def _put(self, group: Group) -> tuple[pl.DataFrame, SegmentHead] | tuple[None, None]:
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
            head = self.state.writer.append(
                rows,
                group.counters,
                group.controls or (() if group.frames else (Control("tick"),)),
                log_time_us=max(group.moment.log_time_us, group.log_time_us),
                clocks=clocks,
            )
        except StoreRefused:
            for ids in group.ids:
                self.state.recent.take_back(ids)
            if group.is_applied:
                self.state.followers.not_stored()
                self._refold_at_s = 0.0
            raise
        assert head.number == group.moment.number, f"lane {self.lane}: {head.number} was put for {group.moment.number}"
        self._groups += 1
        self._rows += rows.height
        self.state.rows_since_checkpoint += rows.height
        return rows, head

    def _take_usage(self, group: Group, items: Sequence[UsageItem], has_decisions: bool) -> None:
        """Drop repeats, judge what is new, and let followers add what must stand in the same segment."""
        events = pl.concat([item.events for item in items]) if len(items) > 1 else items[0].events
        partitions = np.concatenate([item.partitions for item in items])
        ids = EventIds(
            np.concatenate([item.ids.high for item in items]), np.concatenate([item.ids.low for item in items])
        )
        is_mine = self.state.owned[partitions]
        mine = np.flatnonzero(is_mine)
        new = mine[self._add_ids(group, ids.take(mine))]
        is_new = np.zeros(len(partitions), np.bool_)
        is_new[new] = True
        reasons = self._reasons(items, is_new, group.moment)  # before the put: the answer goes out once it is committed
        group.judged.append(Judged(items, partitions, is_mine, is_new, reasons))
        if not len(new):
            return
        order = new[np.argsort(partitions[new], kind="stable")]
        tenant_numbers = np.repeat(np.arange(len(items)), [item.rows for item in items])[order]
        tenants = pl.Series("tenant", [item.tenant_id for item in items], dtype=pl.String)[tenant_numbers]
        # Put side by side, in the order of ROW_SCHEMA: a query would cost a small group more than its segment.
        count = len(order)
        kinds, details = _USAGE_KIND.new_from_index(0, count), _NO_DETAIL.new_from_index(0, count)
        columns = (events if _is_in_order(order, events.height) else events[order]).get_columns()
        rows = pl.DataFrame([tenants, pl.Series("partition", partitions[order]), kinds, *columns, details])
        group.frames.append(rows)
        for tenant_id, count in count_usage(items, is_mine, is_new).items():
            group.counters[tenant_id] = group.counters.get(tenant_id, Counters()) + count
        tenant_ids = {item.tenant_id for item in items}
        if has_decisions:
            group.unseen |= {tenant_id for tenant_id in tenant_ids if not self.state.followers.watch([tenant_id])}
            group.watched |= tenant_ids - group.unseen
        if self.state.followers.watch(tenant_ids):
            self._follow(group, rows, at_once=has_decisions)

    def _take_decision(self, group: Group, item: DecisionItem) -> bool:
        """Whether it was taken; if not, nothing has happened, and it is decided anew in the next group."""
        if item.partition != ANY_PARTITION and not self.state.owned[item.partition]:
            item.future.set_result(encode_moved(self.lane, *self.state.owner(item.partition)))
            return True
        placed: tuple[pl.DataFrame, EventIds] | None = None
        try:
            decided = item.decide(group.moment)
            if decided.partition >= 0:
                placed = self.state.placed_in(decided.rows, decided.partition)
            elif decided.rows.height and not self.state.owned.any() and not (decided.rows["customer"] != "").any():
                pass  # of a lane without partitions there is nothing to note: what comes brings its own
            elif decided.rows.height:
                tenants = set(decided.rows["tenant"].to_list())
                assert tenants == {item.tenant_id}, f"a decision of {item.tenant_id} wrote for another tenant"
                placed = self.state.placed(decided.rows, item.tenant_id)
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
            log_time_us = max(group.moment.log_time_us, decided.log_time_us)
            clocks = {**group.moment.clocks, **decided.clocks}
            group.moment = replace(group.moment, log_time_us=log_time_us, clocks=clocks)
            # As a replay does it: the rows, then the partition leaves; the partition arrives, then the rows.
            if any(control.what == "released" for control in decided.controls):
                group.is_applied = True
                self.state.followers.apply(rows, group.moment)
            else:
                group.unapplied.append(rows)
        elif placed is not None:
            rows, ids = placed
            if item.tenant_id in group.unseen and self._is_first_look(rows, item.tenant_id):
                return False
            is_new = self._add_ids(group, ids)
            if not is_new.all():
                self.state.recent.take_back(group.ids.pop())
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
        return not _LOOKS.isdisjoint(rows["kind"].to_list()) or self.state.followers.watch([tenant_id])

    def _follow(self, group: Group, rows: pl.DataFrame, *, at_once: bool) -> None:
        """Show rows to the followers, and what they propose for the same segment; what is in the log already is not."""
        for placed, ids in self.state.followers.propose(rows, group.moment, self.state.placed):
            new = placed.filter(pl.Series(self._add_ids(group, ids)))
            if new.height:
                group.frames.append(new)
                group.count(new)
                rows = pl.concat([rows, new])
        if at_once:
            group.is_applied = True
            self.state.followers.apply(rows, group.moment)
        else:
            group.unapplied.append(rows)

    def _add_ids(self, group: Group, ids: EventIds) -> npt.NDArray[np.bool_]:
        """Which ids are new to the log; they are known from now on, unless the group is not stored."""
        is_new = self.state.add_ids(ids, group.moment.number)
        group.ids.append(ids.take(is_new))
        return is_new

    def _answer(self, group: Group) -> None:
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
                    item.call.owners[int(partition)] = self.state.owner(int(partition))
                first += item.rows
                item.call.open_items -= 1
                if item.call.open_items == 0:
                    self._finish(item.call)
        for item, answer in group.decided:
            if not item.future.done():
                item.future.set_result(encode_decided(self.lane, self.state.writer.position.number, answer))

    def _reasons(
        self, items: Sequence[UsageItem], is_new: npt.NDArray[np.bool_], moment: LogMoment
    ) -> npt.NDArray[np.uint8]:
        """Why rows that are stored cannot be rated now; one question per tenant of the group."""
        reasons = np.full(len(is_new), NO_REASON, np.uint8)
        if self.state.figures is None:
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
            codes = self.state.figures.classify(tenant_id, fresh, now_us, named)
            reasons[places[wanted]] = codes
        return reasons

    def _finish(self, call: Call) -> None:
        if call.future.done():
            return
        position = self.state.writer.position
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


def _is_in_order(order: npt.NDArray[np.int64], rows: int) -> bool:
    """Whether an order takes all rows as they are: a lone event's always does."""
    return len(order) == rows and bool((order == np.arange(rows)).all())
