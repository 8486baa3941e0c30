"""The one writer of a lane: takes batches, drops repeats, commits groups, answers, keeps live figures. No Ray in here.

Owns the order of things: 1 dedup, 2 put, 3 answer, 4 fold. Nothing is shown or answered before its number is
COMMITTED. All state is a cache: the newest snapshot and the lane's tail rebuild it. The rules: docs/usage-log.md.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
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
    Batch,
    decode_batch,
    encode_answer,
    failed_answer,
)
from actors.live_figures import Figures, LiveFigures, MasterSource
from billing.errors import BillingError, Unavailable
from billing.usage import EVENT_SCHEMA, Verdict
from storage.object_store import ObjectStore, StoreRefused
from storage.usage_log.checkpoints import LaneSnapshot, announce, merge_id_runs, read_snapshot
from storage.usage_log.clock import Clock, SystemClock
from storage.usage_log.genesis import PARTITIONS, Genesis, open_log
from storage.usage_log.id_runs import IdRuns
from storage.usage_log.lane import LaneWriter, write_hint
from storage.usage_log.manifest import Manifest, ManifestChain
from storage.usage_log.partitions import EventIds, event_ids
from storage.usage_log.recent_ids import RecentIds, lane_and_number, stamp_of
from storage.usage_log.segment import ROW_SCHEMA, Counters, RowKind, StoredSegment

RECOVERIES_MAX = 100  # a newer manifest each time; more says that something deletes faster than it is read
IDLE_S = 0.5
FLOOD_QUANTUM_BYTES = 262_144  # what each tenant may take of a group in one turn


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


@dataclass
class _Call:
    """A batch on its way; done when the last of its items is."""

    future: Future[bytes]
    verdicts: npt.NDArray[np.uint8]
    reasons: npt.NDArray[np.uint8]
    open_items: int
    owners: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Item:
    call: _Call
    offset: int  # of its first row in the call
    tenant_id: str
    master_number: int | None
    events: pl.DataFrame
    partitions: npt.NDArray[np.uint8]
    ids: EventIds
    bytes: int

    @property
    def rows(self) -> int:
        return len(self.partitions)


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
        cache_directory: Path | None = None,
    ) -> None:
        self.lane = lane
        self.settings = settings or ShardSettings()
        self._store = store
        self._clock = clock or SystemClock()
        # Without master data there is nothing to rate by: all that is stored counts as accepted.
        self._figures = None if master is None else LiveFigures(lane, store, master)
        self._cache = cache_directory or Path("/tmp/cloudbilling-id-runs")  # noqa: S108 - only used with remote stores
        self._chain = ManifestChain(store)
        self._condition = threading.Condition()
        self._queues: dict[str, collections.deque[_Item]] = {}
        self._turns: collections.deque[str] = collections.deque()
        self._deficits: dict[str, int] = {}
        self._queued_rows = 0
        self._stopping = False
        self._serving = False
        self._stopped_because = "not started"
        self._thread: threading.Thread | None = None
        self._groups = self._rows = self._duplicates = 0
        self._checkpoint_thread: threading.Thread | None = None
        self._checkpoint_entry: Manifest | None = None  # written by that thread, taken by the commit thread
        self._checkpoint_error = ""
        self._recovered_s = 0.0
        self._genesis: Genesis | None = None
        self._reset()

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recover, claim the lane, serve. Returns when calls can be served; raises when the lane cannot be had."""
        began = time.monotonic()
        self._genesis = open_log(self._store)
        self._recover_and_claim()
        self._recovered_s = time.monotonic() - began
        self._serving, self._stopped_because = True, ""
        self._thread = threading.Thread(target=self._serve, name=f"rating-shard-{self.lane}", daemon=True)
        self._thread.start()
        if self._figures is not None:
            self._figures.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Commit what is queued, then end. A store that does not answer leaves the outcome open."""
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
            queued_rows=self._queued_rows,
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
        )

    # -- calls --------------------------------------------------------------------------------------------------------

    def submit(self, data: bytes) -> Future[bytes]:
        """Queue a batch; the future gives the encoded answer, also for errors that concern the whole batch."""
        future: Future[bytes] = Future()
        batch = decode_batch(data)
        call = _Call(
            future=future,
            verdicts=np.full(len(batch.partitions), NOT_OWNED, np.uint8),
            reasons=np.full(len(batch.partitions), NO_REASON, np.uint8),
            open_items=0,
        )
        items = _items(batch, call, self.settings.group_rows_max)
        refusal = self._enqueue(call, items)
        if refusal is not None:
            future.set_result(encode_answer(refusal))
        return future

    def ingest(self, data: bytes) -> bytes:
        """`submit` and wait."""
        return self.submit(data).result()

    def usage(self, tenant_id: str, keys: Sequence[str] | None, master_number: int = 0) -> Figures:
        """The live figures of customer keys (None: all of the tenant in this lane)."""
        if self._figures is None:
            raise Unavailable("This shard has no master data, so it keeps no figures.")
        return self._figures.usage(tenant_id, keys, master_number)

    def _enqueue(self, call: _Call, items: Sequence[_Item]) -> Answer | None:
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
            if self._queued_rows + sum(rows.values()) > self.settings.queue_rows_max and self._queued_rows:
                return failed_answer(self.lane, "unavailable", f"The queue of lane {self.lane} is full.")
            full = {tenant for tenant, count in rows.items() if self._is_full(tenant, count)}
            for item in items:
                if item.tenant_id in full:
                    call.verdicts[item.offset : item.offset + item.rows] = OVERLOADED
                    continue
                if item.tenant_id not in self._queues:
                    self._queues[item.tenant_id] = collections.deque()
                    self._turns.append(item.tenant_id)
                    self._deficits[item.tenant_id] = 0
                self._queues[item.tenant_id].append(item)
                self._queued_rows += item.rows
                call.open_items += 1
            if call.open_items == 0:
                self._finish(call)
            self._condition.notify()
        return None

    def _is_full(self, tenant_id: str, rows: int) -> bool:
        held = sum(item.rows for item in self._queues.get(tenant_id, ()))
        return held > 0 and held + rows > self.settings.tenant_queue_rows_max

    # -- the commit thread --------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        reason = "stopped"
        try:
            while (group := self._next_group()) is not None:
                if group:
                    self._commit(group)
                self._follow_checkpoint()
                self._checkpoint_if_due()
        except BillingError as error:  # lost, stopped, store gone: what was in flight is answered as unknown
            reason = f"{error.code}: {error.detail}"
        except BaseException as error:
            reason = f"bug: {type(error).__name__}: {error}"
            raise
        finally:
            self._end(reason)

    def _next_group(self) -> list[_Item] | None:
        """Up to a group's rows, round robin by tenant with a deficit in bytes; [] when idle, None at the end."""
        with self._condition:
            while not self._turns:
                if self._stopping:
                    return None
                if not self._condition.wait(IDLE_S):
                    return []
            if self.settings.window_s and self._queued_rows < self.settings.group_rows_max:
                self._condition.wait(self.settings.window_s)
            group: list[_Item] = []
            rows = size = 0
            while self._turns:
                tenant_id = self._turns[0]
                queue = self._queues[tenant_id]
                self._deficits[tenant_id] += FLOOD_QUANTUM_BYTES
                while queue and (queue[0].bytes <= self._deficits[tenant_id] or len(self._turns) == 1):
                    item = queue[0]
                    if group and (
                        rows + item.rows > self.settings.group_rows_max
                        or size + item.bytes > self.settings.group_bytes_max
                    ):
                        return group
                    queue.popleft()
                    self._deficits[tenant_id] -= item.bytes
                    group.append(item)
                    rows, size = rows + item.rows, size + item.bytes
                    self._queued_rows -= item.rows
                if queue:
                    self._turns.rotate(-1)
                else:
                    self._turns.popleft()
                    del self._queues[tenant_id], self._deficits[tenant_id]
            return group

    def _commit(self, group: list[_Item]) -> None:
        try:
            self._commit_or_raise(group)
        except StoreRefused as error:
            for item in group:
                self._fail(item.call, "refused", error.detail)
        except BillingError as error:
            for item in group:
                self._fail(item.call, "unavailable", error.detail)
            raise
        except BaseException as error:
            for item in group:
                self._fail(item.call, "unavailable", f"Lane {self.lane} stopped: {type(error).__name__}")
            raise

    def _commit_or_raise(self, group: list[_Item]) -> None:
        events = pl.concat([item.events for item in group]) if len(group) > 1 else group[0].events
        partitions = np.concatenate([item.partitions for item in group])
        ids = EventIds(
            np.concatenate([item.ids.high for item in group]), np.concatenate([item.ids.low for item in group])
        )
        is_mine = self._owned[partitions]
        mine = np.flatnonzero(is_mine)
        candidates = mine[~self._runs.contains(ids.take(mine))]
        added, slots = self._recent.add(ids.take(candidates), stamp_of(self.lane, self._writer.position.number + 1))
        new = candidates[added]
        is_new = np.zeros(len(partitions), np.bool_)
        is_new[new] = True

        reasons = self._reasons(group, is_new)  # before the put: the answer goes out as soon as it is committed
        if len(new):
            order = new[np.argsort(partitions[new], kind="stable")]
            tenant_ids = np.repeat(np.arange(len(group)), [item.rows for item in group])[order]
            tenants = pl.Series("tenant", [item.tenant_id for item in group], dtype=pl.String).gather(tenant_ids)
            rows = events[order].select(
                tenants,
                pl.Series("partition", partitions[order]),
                pl.lit(int(RowKind.USAGE), pl.UInt8).alias("kind"),
                *EVENT_SCHEMA.names(),
                pl.lit(None, pl.String).alias("detail"),
            )
            try:
                head = self._writer.append(rows, _counters(group, is_mine, is_new))
            except StoreRefused:
                self._recent.take_back(slots[added])
                raise
            self._groups += 1
            self._rows += rows.height
            self._rows_since_checkpoint += rows.height
        else:
            rows, head = None, None
        self._duplicates += int(is_mine.sum()) - len(new)

        verdicts = np.where(is_mine, np.where(is_new, Verdict.ACCEPTED, Verdict.DUPLICATE), NOT_OWNED).astype(np.uint8)
        verdicts[is_new & (reasons != NO_REASON)] = Verdict.SUSPENDED
        reasons[reasons == UNJUDGED] = NO_REASON
        first = 0
        for item in group:
            part = slice(first, first + item.rows)
            item.call.verdicts[item.offset : item.offset + item.rows] = verdicts[part]
            item.call.reasons[item.offset : item.offset + item.rows] = reasons[part]
            for partition in np.unique(partitions[part][~is_mine[part]]):
                item.call.owners[int(partition)] = (int(self._generation[partition]), int(self._lane_of[partition]))
            first += item.rows
            item.call.open_items -= 1
            if item.call.open_items == 0:
                self._finish(item.call)
        if rows is not None and head is not None:
            if self._figures is not None:
                self._figures.take(rows, head.number)
            if head.number % self.settings.hint_every == 0:
                write_hint(self._store, self.lane, head.number)

    def _reasons(self, group: list[_Item], is_new: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        """Why rows that are stored cannot be rated now; one question per tenant of the group."""
        reasons = np.full(len(is_new), NO_REASON, np.uint8)
        if self._figures is None:
            return reasons
        firsts = np.cumsum([0, *(item.rows for item in group)])
        by_tenant: dict[str, list[int]] = {}
        for number, item in enumerate(group):
            by_tenant.setdefault(item.tenant_id, []).append(number)
        now_us = self._writer.next_log_time_us()
        for tenant_id, numbers in by_tenant.items():
            places = np.concatenate([np.arange(firsts[number], firsts[number + 1]) for number in numbers])
            wanted = is_new[places]
            if not wanted.any():
                continue
            events = pl.concat([group[number].events for number in numbers])
            named = max((group[number].master_number or 0 for number in numbers), default=0)
            codes = self._figures.classify(tenant_id, events.filter(pl.Series(wanted)), now_us, named)
            reasons[places[wanted]] = codes
        return reasons

    def _finish(self, call: _Call) -> None:
        if call.future.done():
            return
        position = self._writer.position
        answer = Answer(
            call.verdicts, call.reasons, self.lane, position.number, position.log_time_us, dict(call.owners)
        )
        call.future.set_result(encode_answer(answer))

    def _fail(self, call: _Call, code: str, detail: str) -> None:
        if not call.future.done():
            call.future.set_result(encode_answer(failed_answer(self.lane, code, detail)))

    def _end(self, reason: str) -> None:
        with self._condition:
            self._serving = False
            self._stopped_because = reason
            waiting = [item for queue in self._queues.values() for item in queue]
            self._queues.clear()
            self._turns.clear()
            self._deficits.clear()
            self._queued_rows = 0
        for item in waiting:
            self._fail(item.call, "unavailable", f"Lane {self.lane} stopped ({reason}). Send the same again, same ids.")

    # -- recovery -----------------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._writer = LaneWriter(self._store, self.lane, self._clock)
        self._manifest = Manifest()
        self._recent = RecentIds()
        self._runs = IdRuns()
        self._owned: npt.NDArray[np.bool_] = np.zeros(PARTITIONS, np.bool_)
        self._generation: npt.NDArray[np.int64] = np.zeros(PARTITIONS, np.int64)
        self._lane_of: npt.NDArray[np.int64] = np.zeros(PARTITIONS, np.int64)
        self._rows_since_checkpoint = 0
        self._checkpoint_number = -1
        self._checkpoint_at_s = time.monotonic()
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
        assert self._genesis is not None
        if head.rows == 0:
            return
        rows = segment.rows()
        assert rows.schema == ROW_SCHEMA, f"lane {self.lane} number {head.number}: unexpected columns"
        partitions = rows["partition"].to_numpy()
        assert self._owned[partitions].all(), f"lane {self.lane} number {head.number} has rows it does not own"
        self._rows_since_checkpoint += head.rows
        if head.number > self._manifest.ids_covered(self.lane):
            ids = event_ids(self._genesis.seed, rows["tenant"], rows, partitions)
            is_new, _ = self._recent.add(ids, stamp_of(self.lane, head.number))
            assert is_new.all(), f"lane {self.lane} number {head.number} repeats an id"
        if self._figures is not None:
            self._figures.take(rows, head.number)

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
        self._checkpoint_number = named.number
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
        position, lane_of, generation = self._writer.position, self._lane_of.tolist(), self._generation.tolist()

        def write() -> None:
            try:
                snapshot = LaneSnapshot(self.lane, position, lane_of, generation, figures())
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
        self._runs = self._runs.with_runs(self._store, entry.runs, self._cache)
        self._manifest = entry
        self._checkpoint_number = entry.snapshots[self.lane].number
        covered = entry.ids_covered(self.lane)

        def kept(_: EventIds, stamps: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
            lanes, numbers = lane_and_number(stamps)
            return ~((lanes == np.uint64(self.lane)) & (numbers <= np.uint64(max(covered, 0))))

        self._recent.keep(kept)
        self._checkpoint_entry = None


def _items(batch: Batch, call: _Call, rows_max: int) -> list[_Item]:
    items: list[_Item] = []
    first = 0
    for block in batch.blocks:
        for start in range(first, first + block.rows, rows_max):
            rows = min(rows_max, first + block.rows - start)
            events = batch.events.slice(start, rows)
            part = slice(start, start + rows)
            items.append(
                _Item(
                    call=call,
                    offset=start,
                    tenant_id=block.tenant_id,
                    master_number=block.master_number,
                    events=events,
                    partitions=batch.partitions[part],
                    ids=EventIds(batch.ids.high[part], batch.ids.low[part]),
                    bytes=int(events.estimated_size()),
                )
            )
        first += block.rows
    assert first == batch.events.height, "blocks and rows of a batch differ"
    return items


def _counters(group: list[_Item], is_mine: npt.NDArray[np.bool_], is_new: npt.NDArray[np.bool_]) -> dict[str, Counters]:
    counters: dict[str, Counters] = {}
    first = 0
    for item in group:
        part = slice(first, first + item.rows)
        first += item.rows
        before = counters.get(item.tenant_id, Counters())
        stored = int(is_new[part].sum())
        duplicates = int(is_mine[part].sum()) - stored
        counters[item.tenant_id] = Counters(before.stored + stored, before.duplicates + duplicates)
    return counters
