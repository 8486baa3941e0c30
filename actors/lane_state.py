"""What the log of a lane says: its end, its ids, the partitions that lie in it, and what followers made of it.

All of it is a cache: the newest snapshot and the lane's tail rebuild it, and committed segments are taken in exactly as
serving took them. Owned by one thread, the one that commits (actors/rating_shard.py). The rules: docs/usage-log.md.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl

from actors.amendments import Amendments
from actors.backfills import Backfills
from actors.followers import NO_ROWS, Decided, FollowerSet, FrozenFollower, JudgedRows, LaneFollower, LiesIn, LogMoment
from actors.lane_moves import Luggage, came_to_nothing, clocks_in, complete, in_order, pack, parting_rows, prepare
from actors.live_figures import LiveFigures, MasterSource
from actors.tenant_clocks import TenantClocks, clock_rows
from billing.errors import BillingError, Conflict, Unavailable
from billing.live_state import LiveState
from storage.object_store import ObjectStore, StoreUnavailable
from storage.usage_log.backfills import ids_of_rows, marker_ids
from storage.usage_log.checkpoints import LaneSnapshot, RowsErased, announce, merge_id_runs, read_snapshot
from storage.usage_log.clock import Clock
from storage.usage_log.genesis import PARTITIONS, Genesis, open_log
from storage.usage_log.id_runs import IdRuns
from storage.usage_log.lane import LaneWriter, walk
from storage.usage_log.manifest import Manifest, ManifestChain
from storage.usage_log.partitions import FEW, EventIds, event_ids, partition_of, partitions_of
from storage.usage_log.recent_ids import RecentIds, lane_and_number, stamp_of
from storage.usage_log.run_cache import RunCache
from storage.usage_log.segment import ROW_SCHEMA, Control, SegmentHead, StoredSegment

RECOVERIES_MAX = 100  # a newer manifest each time; more says that something deletes faster than it is read


class LaneState:
    """`recover_and_claim` makes it; the shard adds ids and rows to it; a checkpoint bounds its tail and memory."""

    def __init__(
        self,
        lane: int,
        store: ObjectStore,
        clock: Clock,
        *,
        master: MasterSource | None,
        followers: Sequence[LaneFollower],
        cache: RunCache,
    ) -> None:
        self.lane = lane
        self._store = store
        self._clock = clock
        self._cache = cache
        self._chain = ManifestChain(store)
        self.genesis: Genesis | None = None
        # Without master data there is nothing to rate by: all that is stored counts as accepted.
        self.figures = None if master is None else LiveFigures(lane, store, master)
        self.clocks = TenantClocks()
        self.followers = FollowerSet([self.clocks, Amendments(), Backfills(), *followers])
        self.checkpoint_thread: threading.Thread | None = None
        self._checkpoint_entry: Manifest | None = None  # written by that thread, taken by the commit thread
        self.checkpoint_error = ""
        self._reset()

    def open(self) -> None:
        """Read the log's genesis, or write it."""
        self.genesis = open_log(self._store)

    @property
    def log(self) -> Genesis:
        """By which keys are spread over partitions and ids are hashed."""
        assert self.genesis is not None, "the log was not opened"
        return self.genesis

    @property
    def seed(self) -> int:
        """The log's."""
        return self.log.seed

    def owner(self, partition: int) -> tuple[int, int]:
        """As this lane knows it: the generation of a partition's last move, and the lane that has it since."""
        return int(self.generation[partition]), int(self.lane_of[partition])

    def moment(self) -> LogMoment:
        """The place of the next number, with what decisions may ask about the log."""
        if not self.followers.is_stale(self.clocks.name):
            self._times = self.clocks.times  # else those from before: a clock that is folded again moves nowhere
        return LogMoment(
            self.lane,
            self.writer.position.number + 1,
            self.writer.next_log_time_us(),
            self._times,
            self._is_recorded,
            self._judge_backfilled,
            self._usage_of,
            self._elsewhere,
        )

    def _usage_of(self, tenant_id: str, keys: Sequence[str], master_number: int) -> LiveState | None:
        if self.figures is None:
            raise Unavailable("This shard has no master data, so it keeps no figures.")
        return self.figures.usage(tenant_id, keys, master_number).live

    def _elsewhere(self, tenant_id: str, keys: Sequence[str]) -> Mapping[int, tuple[int, int]]:
        distinct = list(dict.fromkeys(key for key in keys if key))
        if len(distinct) <= FEW:
            partitions = {partition_of(self.seed, tenant_id, key) for key in distinct}
        else:
            partitions = set(partitions_of(self.seed, tenant_id, pl.Series(distinct, dtype=pl.String)).tolist())
        return {one: self.owner(one) for one in partitions if not self.owned[one]}

    # -- recovery -----------------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self.writer = LaneWriter(self._store, self.lane, self._clock)
        self.manifest = Manifest()
        self._erasures = 0  # that there were when this state was begun
        self.outdated = ""  # why it must be folded again: rows were erased since
        self.recent = RecentIds()
        self.runs = IdRuns()
        self.owned: npt.NDArray[np.bool_] = np.zeros(PARTITIONS, np.bool_)
        self.generation: npt.NDArray[np.int64] = np.zeros(PARTITIONS, np.int64)
        self.lane_of: npt.NDArray[np.int64] = np.zeros(PARTITIONS, np.int64)
        self._packed: dict[int, Luggage] = {}  # read ahead for partitions that are about to come
        self.rows_since_checkpoint = 0
        self.checkpoint_number = -1
        self._checkpoint_at_s = time.monotonic()
        self.followers.clear()
        self._times: Mapping[str, int] = {}  # of test tenants, by committed rows; also while their follower is stale
        if self.figures is not None:
            self.figures.clear()

    def recover_and_claim(self) -> None:
        """Read the lane to its end and claim it. Raises Unavailable or BillingError when it cannot be had."""
        assert self.genesis is not None, "the log was not opened"
        for _ in range(RECOVERIES_MAX):
            self._reset()
            self.manifest = self._chain.newest()
            self._erasures, self.outdated = self.manifest.erasures, ""
            self.runs = self.runs.with_runs(self._store, self.manifest.runs, self._cache)
            for partition in range(PARTITIONS):
                self.lane_of[partition] = self.genesis.first_lane(partition)
            self.owned = self.lane_of == self.lane
            self._place()
            self._load_snapshot()
            first = self.writer.position.number + 1
            for segment in self.writer.read_on():
                self._apply(segment)
            self.writer.claim(self._apply)
            if self._chain.newest().floor(self.lane) <= first:  # rule H: what was read counts
                return
        raise BillingError(f"Lane {self.lane} could not be recovered in {RECOVERIES_MAX} tries.", lane=self.lane)

    def _apply(self, segment: StoredSegment) -> None:
        """Take a committed segment into the state, exactly as serving it would have done."""
        head = segment.head
        for control in head.controls:
            if control.what == "acquired":
                self._arrived(self._luggage(control), control.generation, _moment_of(head))
        if head.rows:
            self._apply_rows(segment)
        for control in head.controls:
            if control.what == "released":
                self._left(control.partition, control.generation, control.lane, head.number)

    def _apply_rows(self, segment: StoredSegment) -> None:
        head = segment.head
        rows = segment.rows()
        assert rows.schema == ROW_SCHEMA, f"lane {self.lane} number {head.number}: unexpected columns"
        partitions = rows["partition"].to_numpy()
        assert self.owned[partitions].all(), f"lane {self.lane} number {head.number} has rows it does not own"
        self.rows_since_checkpoint += head.rows
        if head.number > self.manifest.ids_covered(self.lane):
            ids = ids_of_rows(self.log, rows["tenant"], rows, partitions)
            is_new = self.recent.add(ids, stamp_of(self.lane, head.number))
            assert is_new.all(), f"lane {self.lane} number {head.number} repeats an id"
        self.followers.apply(rows, _moment_of(head))
        if self.figures is not None:
            self.figures.take(rows, head.number)

    def _fold_followers(self, saved: Mapping[str, FrozenFollower], last: int) -> None:
        """The followers' states after a number: from a snapshot, and from the log what it does not have of them."""
        firsts = self.followers.thaw(saved)
        for segment in walk(self._store, self.lane, min(firsts.values()), last):
            head = segment.head
            for control in head.controls:
                if control.what == "acquired":
                    luggage = self._luggage(control)
                    moment = _moment_of(head)
                    self.followers.arrive(luggage.parts, in_order(parting_rows(luggage)), moment, firsts)
            if self.followers.watch(head.counters) or any(count.decided for count in head.counters.values()):
                self.followers.replay(segment.rows(), _moment_of(head), firsts)
            for control in head.controls:
                if control.what == "released":
                    self.followers.leave(self._lies_in(control.partition), head.number, firsts)

    def refold(self) -> None:
        """After a group that was not stored, or a fault: the followers are what the log says, or stay aside."""
        try:
            named = self.manifest.snapshots.get(self.lane)
            saved = {} if named is None else read_snapshot(self._store, named.key).followers
            self._fold_followers(saved, self.writer.position.number)
            self.followers.folded_again()
        except BillingError:  # the store is away; their decisions say so until the next try
            self.followers.not_stored()

    # -- rows and their ids -------------------------------------------------------------------------------------------

    def placed(self, rows: pl.DataFrame, tenant_id: str | None = None) -> tuple[pl.DataFrame, EventIds]:
        """Rows with the partition of their customer key, and their ids; `tenant_id` if all are of one tenant.

        Most decisions write one row, so Polars is asked for as little as possible: a query costs it 0.1 ms at least.
        """
        if rows.columns != ROW_SCHEMA.names():
            rows = rows.select(ROW_SCHEMA.names())
        tenants = tenant_id or rows["tenant"]
        partitions = partitions_of(self.seed, tenants, rows["customer"])
        anywhere = np.flatnonzero((rows["customer"] == "").to_numpy())
        partitions[anywhere] = np.flatnonzero(self.owned)[0]
        assert self.owned[partitions].all(), "a decision wrote into a partition of another lane"
        if rows.height > 1:  # as a segment has them; of one partition in the order decided
            order = np.argsort(partitions, kind="stable")
            rows, partitions = rows[order], partitions[order]
            tenants = tenant_id or rows["tenant"]
        placed = rows.clone().replace_column(ROW_SCHEMA.names().index("partition"), pl.Series("partition", partitions))
        return placed, ids_of_rows(self.log, tenants, placed, partitions)

    def placed_in(self, rows: pl.DataFrame, partition: int) -> tuple[pl.DataFrame, EventIds] | None:
        """Rows of several tenants that a lane writes itself: those of nobody into a partition that moves."""
        if rows.height == 0:
            return None
        rows = rows.select(ROW_SCHEMA.names())
        partitions = partitions_of(self.seed, rows["tenant"], rows["customer"])
        partitions[(rows["customer"] == "").to_numpy()] = partition
        order = np.argsort(partitions, kind="stable")
        partitions = partitions[order]
        placed = rows[order].with_columns(pl.Series("partition", partitions))
        return placed, event_ids(self.seed, placed["tenant"], placed, partitions, self.log.ids)

    def add_ids(self, ids: EventIds, number: int) -> npt.NDArray[np.bool_]:
        """Which ids are new to the log; those are known from now on, as ids of the number."""
        is_new = np.zeros(len(ids), np.bool_)
        candidates = np.flatnonzero(~self.runs.contains(ids))
        is_new[candidates] = self.recent.add(ids.take(candidates), stamp_of(self.lane, number))
        return is_new

    def _contains(self, ids: EventIds) -> npt.NDArray[np.bool_]:
        return self.runs.contains(ids) | self.recent.contains(ids)

    def _is_recorded(self, tenant_id: str, wanted: Sequence[tuple[str, str, str]]) -> list[bool]:
        """For decisions: whether (customer key, source, id) is in the log or in this group."""
        named = pl.DataFrame(wanted, schema={"customer": pl.String, "source": pl.String, "id": pl.String}, orient="row")
        partitions = partitions_of(self.seed, tenant_id, named["customer"])
        ids = event_ids(self.seed, tenant_id, named, partitions, self.log.ids)
        known: list[bool] = self._contains(ids).tolist()
        return known

    def _judge_backfilled(self, tenant_id: str, events: pl.DataFrame, name: str, reverted: Sequence[str]) -> JudgedRows:
        """For decisions: which events of a backfill are new to the log, or were those of a reverted one."""
        log = self.log
        partitions = partitions_of(log.seed, tenant_id, events["customer"])
        ids = event_ids(log.seed, tenant_id, events, partitions, log.ids)
        is_mine = self.owned[partitions]
        firsts = pl.DataFrame({"high": ids.high, "low": ids.low}).select(pl.struct("high", "low").is_first_distinct())
        candidates = is_mine & firsts.to_series().to_numpy()
        is_known = self._contains(ids)
        is_new = candidates & ~is_known
        before = np.full(events.height, -1, np.int64)  # whose the id was, by place in `reverted`
        open_ = np.flatnonzero(candidates & is_known)

        def marked(one: str, *, again: bool) -> npt.NDArray[np.bool_]:
            return self._contains(marker_ids(log, tenant_id, events[open_], partitions[open_], one, again=again))

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

    # -- moves --------------------------------------------------------------------------------------------------------

    def prepare_move(self, partition: int, from_lane: int, generation: int) -> None:
        """Read what a partition will bring along while its lane still serves it. Nothing of it is durable."""
        manifest = self._chain.newest()
        self._packed[partition] = prepare(self._store, self.log, manifest, partition, from_lane, generation)

    def release(self, partition: int, to_lane: int, moment: LogMoment) -> Decided:
        """The decision that lets a partition go. Raises Conflict where it is not, or while a follower keeps it here."""
        generation = int(self.generation[partition])
        if not self.owned[partition]:
            if int(self.lane_of[partition]) == to_lane:
                return Decided(NO_ROWS, _move_form(partition, generation, -1))
            raise Conflict(f"partition {partition} is not in lane {self.lane} but in {self.lane_of[partition]}")
        if to_lane == self.lane:
            raise Conflict(f"partition {partition} is in lane {self.lane} already")
        if staying := self.followers.staying(self._lies_in(partition)):
            raise Conflict(f"partition {partition} cannot move now: {', '.join(staying)} keep it")
        rows = [clock_rows(moment.clocks, f"{partition}:{generation + 1}")]
        rows += self.followers.parting(self._lies_in(partition), moment)
        return Decided(
            pl.concat(rows),
            _move_form(partition, generation + 1, moment.number),
            controls=(Control("released", partition, generation + 1, to_lane),),
            partition=partition,
            after=lambda number: self._left(partition, generation + 1, to_lane, number),
        )

    def acquire(self, partition: int, from_lane: int, moment: LogMoment) -> Decided:
        """The decision that takes a partition that was let go to this lane. Raises Unavailable until it was.

        From this lane itself: it takes back what it had let go to a lane that was closed before it could acquire it.
        """
        if self.owned[partition]:
            return Decided(NO_ROWS, _move_form(partition, int(self.generation[partition]), -1))
        takes_back, let_go = from_lane == self.lane, int(self.generation[partition])
        if takes_back:
            release = Control("released", partition, let_go, int(self.lane_of[partition]))
            if not let_go or not came_to_nothing(self._store, release):
                raise Unavailable(f"Lane {release.lane} may have partition {partition}, or take it yet.")
        log, packed = self.log, self._packed.get(partition)
        if packed is None or packed.lane != from_lane:
            packed = pack(self._store, log, self._chain.newest(), partition, from_lane)
        luggage = complete(self._store, log, packed, None if takes_back else self.lane)
        release = luggage.release
        assert release is not None
        if release.generation <= let_go and not takes_back:
            raise Unavailable(f"Lane {from_lane} let partition {partition} go before it was here last.")
        if self._chain.newest().floor(from_lane) > luggage.first:  # rule H: what was read counts
            self._packed.pop(partition, None)
            raise Unavailable(f"Lane {from_lane} was cleared while it was read. Send the same again.")
        parting = in_order(parting_rows(luggage))
        clocks = clocks_in(luggage)
        log_time_us = luggage.released_us + 1  # so that a partition's history can be told apart by time
        at = replace(
            moment, clocks={**moment.clocks, **clocks}, log_time_us=max(moment.log_time_us, luggage.released_us + 1)
        )
        return Decided(
            pl.concat([NO_ROWS, *self.followers.coming(parting, at)]),
            _move_form(partition, release.generation, moment.number),
            controls=(Control("acquired", partition, release.generation, from_lane, luggage.number),),
            partition=partition,
            clocks=clocks,
            log_time_us=log_time_us,
            after=lambda number: self._arrived(luggage, release.generation, replace(at, number=number)),
        )

    def close(self, arrived: Mapping[int, int]) -> Decided:
        """The decision that ends the lane for good: nobody may claim it again, and nothing is put behind it.

        `arrived`: with which generation partitions are known to have been acquired by other lanes. Raises Conflict
        while anything may still ask for this lane: what it owns, what it has let go and nobody has acquired yet (it
        alone may take that back), what a follower must still be asked for.
        """
        if self.owned.any():
            raise Conflict(f"lane {self.lane} has {int(self.owned.sum())} partitions")
        for partition in np.flatnonzero(self.generation > 0).tolist():
            if arrived.get(partition, 0) < int(self.generation[partition]):
                raise Conflict(f"partition {partition} is on its way from lane {self.lane} to another one")
        if keeping := self.followers.keeping_lane():
            raise Conflict(f"lane {self.lane} cannot be closed now: {', '.join(keeping)} keep it")
        return Decided(NO_ROWS, json.dumps({"lane": self.lane}).encode(), controls=(Control("lane_closed"),))

    def _luggage(self, control: Control) -> Luggage:
        """What a partition brought with a record of this lane, read again."""
        log, partition = self.log, control.partition
        packed = pack(self._store, log, self.manifest, partition, control.lane, up_to=control.number - 1)
        to_lane = None if control.lane == self.lane else self.lane
        return complete(self._store, log, packed, to_lane, number=control.number)

    def _arrived(self, luggage: Luggage, generation: int, moment: LogMoment) -> None:
        partition, number = luggage.partition, moment.number
        if luggage.manifest.number > self.manifest.number:  # its runs hold the ids that it did not bring
            self.runs = self.runs.with_runs(self._store, luggage.manifest.runs, self._cache)
            self.manifest = luggage.manifest
        for ids in luggage.ids:
            self.recent.add(ids, stamp_of(self.lane, number))
        self.rows_since_checkpoint += sum(len(ids) for ids in luggage.ids)
        self._packed.pop(partition, None)
        self.owned[partition], self.lane_of[partition], self.generation[partition] = True, self.lane, generation
        if self.figures is not None:  # before anybody is told that it is here: who asks meanwhile folds it first
            self.figures.arrive(partition)
        self._place()
        self.followers.arrive(luggage.parts, in_order(parting_rows(luggage)), moment)
        if self.figures is not None:
            self.figures.arrive(partition)

    def _left(self, partition: int, generation: int, to_lane: int, number: int) -> None:
        self.owned[partition], self.lane_of[partition], self.generation[partition] = False, to_lane, generation
        self._place()
        self.followers.leave(self._lies_in(partition), number)
        if self.figures is not None:
            self.figures.leave(partition)

    def _place(self) -> None:
        owned, moved = self.owned.copy(), self.generation > 0
        self.followers.places(owned, moved)
        if self.figures is not None:
            owners = tuple((int(one), *self.owner(int(one))) for one in np.flatnonzero(moved))
            self.figures.places(owned, moved, self.seed, owners)

    def _lies_in(self, partition: int) -> LiesIn:
        seed = self.seed

        def lies_in(tenant_id: str, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
            return partitions_of(seed, tenant_id, pl.Series(keys, dtype=pl.String)) == partition

        return lies_in

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _load_snapshot(self) -> None:
        """The state after the snapshot's number, from the same manifest entry as the id runs."""
        named = self.manifest.snapshots.get(self.lane)
        if named is None:
            return
        snapshot = read_snapshot(self._store, named.key)
        assert snapshot.lane == self.lane, f"{named.key} is of lane {snapshot.lane}"
        assert snapshot.position.number == named.number, f"{named.key} is of number {snapshot.position.number}"
        self.writer = LaneWriter(self._store, self.lane, self._clock, position=snapshot.position)
        self.lane_of = np.array(snapshot.lane_of, np.int64)
        self.generation = np.array(snapshot.generation, np.int64)
        self.owned = self.lane_of == self.lane
        self._place()
        self.checkpoint_number = named.number
        self._fold_followers(snapshot.followers, named.number)
        if self.figures is not None:
            self.figures.thaw(snapshot.figures, named.number)

    def checkpoint_if_due(self, rows: int, seconds: float) -> None:
        """Freeze the state here; sort, write and announce it in another thread, while groups go on."""
        if self.checkpoint_thread is not None or self._checkpoint_entry is not None:
            return
        elapsed_s = time.monotonic() - self._checkpoint_at_s
        enough = rows if elapsed_s < seconds else 1
        if self.rows_since_checkpoint < enough:
            if elapsed_s >= seconds:  # an idle lane has nothing to keep, but what it holds may have to go
                self._checkpoint_at_s = time.monotonic()
                self._look_for_erasures()
            return
        self.rows_since_checkpoint, self._checkpoint_at_s = 0, time.monotonic()
        ids, _ = self.recent.export()
        figures: Callable[[], bytes] = bytes
        if self.figures is not None:
            figures = self.figures.freeze()
        followers = self.followers.freeze(self.writer.position.number)
        position, lane_of, generation = self.writer.position, self.lane_of.tolist(), self.generation.tolist()

        def write() -> None:
            try:
                snapshot = LaneSnapshot(self.lane, position, lane_of, generation, figures(), followers())
                self._checkpoint_entry = announce(self._store, self._chain, snapshot, ids, self._erasures)
                self.checkpoint_error = ""
                merge_id_runs(self._store, self._chain, self._cache)
            except RowsErased as error:
                self.outdated = error.detail
            except BillingError as error:  # the next one covers more; recovery takes longer until then
                self.checkpoint_error = f"{error.code}: {error.detail}"
            finally:
                self.checkpoint_thread = None

        thread = threading.Thread(target=write, name=f"checkpoint-{self.lane}", daemon=True)
        self.checkpoint_thread = thread
        thread.start()

    def _look_for_erasures(self) -> None:
        """In another thread: the store may be slow."""

        def look() -> None:
            try:
                if self._chain.newest().erasures != self._erasures:
                    self.outdated = f"lane {self.lane} was folded before rows were erased"
            except BillingError as error:  # the store is away: the next look comes
                self.checkpoint_error = f"{error.code}: {error.detail}"
            finally:
                self.checkpoint_thread = None

        thread = threading.Thread(target=look, name=f"erasures-{self.lane}", daemon=True)
        self.checkpoint_thread = thread
        thread.start()

    def follow_checkpoint(self) -> None:
        """Load the id runs that cover a checkpoint, then drop the ids they hold. In this order."""
        entry = self._checkpoint_entry
        if entry is None:
            return
        # A partition that just arrived may have brought a newer entry: its runs hold ids that this one's do not.
        newest = max(entry, self.manifest, key=lambda one: one.number)
        try:
            self.runs = self.runs.with_runs(self._store, newest.runs, self._cache)
        except StoreUnavailable:  # this process slept longer than merged runs are kept: the newest entry has them all
            newest = self._chain.newest()
            self.runs = self.runs.with_runs(self._store, newest.runs, self._cache)
        self.manifest = newest
        self.checkpoint_number = entry.snapshots[self.lane].number
        covered = entry.ids_covered(self.lane)

        def kept(_: EventIds, stamps: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
            lanes, numbers = lane_and_number(stamps)
            return ~((lanes == np.uint64(self.lane)) & (numbers <= np.uint64(max(covered, 0))))

        self.recent.keep(kept)
        self._checkpoint_entry = None


def _move_form(partition: int, generation: int, number: int) -> bytes:
    return json.dumps({"partition": partition, "generation": generation, "number": number}).encode()


def _moment_of(head: SegmentHead) -> LogMoment:
    return LogMoment(head.lane, head.number, head.log_time_us, head.clocks)
