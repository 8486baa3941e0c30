"""The live figures of one lane: usage folded by day and key, and the verdict on rows that arrive. No Ray in here.

A cache over the log: each tenant's state says up to which number of the lane it is folded. Committed rows wait in
memory and are folded in batches, by a thread of their own or by the query that wants them; what does not fit in memory
is read from the log again. So folding never holds up a commit, and a query is as new as the number it names.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from actors.batches import NO_REASON, REASONS, UNJUDGED
from billing.amendments import Amended, fold_amendments_of_lane, states_before
from billing.backfills import HIDDEN, SHOWN
from billing.errors import NotFound, Unavailable
from billing.live_cells import cells_asked_for, spans_a_cut
from billing.live_state import LiveState, fold_days, merge_live
from billing.master import MasterData
from billing.rating_book import RatingBook
from billing.usage import EVENT_SCHEMA, Reason
from billing.verdicts import REASON, classify
from storage.object_store import ObjectStore
from storage.usage_log.backfills import backfills_at, is_of
from storage.usage_log.genesis import PARTITIONS
from storage.usage_log.lane import walk
from storage.usage_log.partitions import partitions_of
from storage.usage_log.reader import Cut, UsageLogReader
from storage.usage_log.segment import RowKind, instant_of

PENDING_ROWS_MAX = 500_000  # a tenant's; beyond it rows are read from the log again
FOLD_ROWS = 200_000  # at once
FOLD_EVERY_S = 1.0  # or when there are as many rows as are folded at once; a query folds what it wants itself
MASTER_AGE_S_MAX = 1.0
UNKNOWN_CUSTOMER = REASONS.index(Reason.UNKNOWN_CUSTOMER)
assert REASON.categories.to_list() == [reason.value for reason in REASONS], "a verdict's place is its reason's code"


class MasterSource(Protocol):
    """Master data away from SQL (storage/master_chain.py)."""

    def newest(self, tenant_id: str, *, at_least: int = 0) -> tuple[int, MasterData]: ...

    def cached(self, tenant_id: str, *, at_least: int = 0) -> tuple[int, MasterData]: ...

    def at(self, tenant_id: str, number: int) -> MasterData: ...


@dataclass
class _Book:
    number: int
    book: RatingBook
    seen_s: float


@dataclass
class _Tenant:
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while folding
    parts: list[LiveState] = field(default_factory=list)  # of about halving sizes
    signature: str = ""  # of the cells that were asked for when it was folded
    master_number: int = -1  # the signature and the cuts were compared with
    folded_to: int = -1
    pending: list[tuple[int, pl.DataFrame]] = field(default_factory=list)
    pending_rows: int = 0
    pending_from: int = -1  # all rows after this number are in `pending`
    folding: list[tuple[int, pl.DataFrame]] = field(default_factory=list)  # taken out of `pending`, not yet in `parts`
    folding_span: tuple[int, int] | None = None  # their numbers: after the first, to the second
    missing: set[int] = field(default_factory=set)  # partitions that came, and are to be folded whole


@dataclass(frozen=True)
class Figures:
    live: LiveState | None  # None: nothing at all
    number: int
    master_number: int
    owned: bytes = b""  # bits of the partitions whose keys these figures are of; b"": all that were asked for
    moved: tuple[tuple[int, int, int], ...] = ()  # as the lane knows of moves: partition, generation, lane that has it


class LiveFigures:
    def __init__(self, lane: int, store: ObjectStore, master: MasterSource) -> None:
        self._lane = lane
        self._store = store
        self._master = master
        self._lock = threading.Lock()  # of the dictionaries and the pending lists; never held while folding
        self._tenants: dict[str, _Tenant] = {}
        self._books: dict[str, _Book] = {}
        self._number = -1
        self._base = -1  # number of the snapshot that was taken: tenants first seen later have nothing before it
        self._stopped = False
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self.last_error = ""
        self._reader = UsageLogReader(store)
        self._owned: npt.NDArray[np.bool_] = np.ones(PARTITIONS, np.bool_)
        self._moved: npt.NDArray[np.bool_] = np.zeros(PARTITIONS, np.bool_)
        self._seed = 0
        self._owners: tuple[tuple[int, int, int], ...] = ()

    # -- the commit thread's side --------------------------------------------------------------------------------------

    def classify(
        self, tenant_id: str, events: pl.DataFrame, now_us: int, master_number: int | None
    ) -> npt.NDArray[np.uint8]:
        """One reason code a row, NO_REASON where it can be rated now."""
        try:
            book = self._book(tenant_id, master_number or 0)
            if book is None:
                return np.full(events.height, UNKNOWN_CUSTOMER, np.uint8)
            found = classify(events, book.book, instant_of(now_us))
            if found.null_count() == events.height:  # most often; each step below is a query for Polars
                return np.full(events.height, NO_REASON, np.uint8)
            reasons = found.to_physical()
        except (Exception, pl.exceptions.PanicException) as error:  # noqa: BLE001 - a fault must not stop ingest
            self.last_error = f"{type(error).__name__}: {error}"
            return np.full(events.height, UNJUDGED, np.uint8)
        return reasons.cast(pl.UInt8).fill_null(NO_REASON).to_numpy()

    def take(self, rows: pl.DataFrame, number: int) -> None:
        """Rows that were committed under a number; numbers come in order."""
        with self._lock:
            for tenant_id, part in _by_tenant(rows):
                tenant = self._tenants.get(str(tenant_id))
                if tenant is None:
                    tenant = self._tenants[str(tenant_id)] = self._new_tenant()
                if tenant.pending_rows + part.height > PENDING_ROWS_MAX:
                    tenant.pending, tenant.pending_rows, tenant.pending_from = [], 0, number
                    continue
                tenant.pending.append((number, part))
                tenant.pending_rows += part.height
                if tenant.pending_rows >= FOLD_ROWS:
                    self._woken.set()
            self._number = number

    def places(
        self,
        owned: npt.NDArray[np.bool_],
        moved: npt.NDArray[np.bool_],
        seed: int,
        owners: tuple[tuple[int, int, int], ...] = (),
    ) -> None:
        """Which partitions are at home here, which of all have moved ever, and where to. They are not changed later."""
        self._owned, self._moved, self._seed, self._owners = owned, moved.copy(), seed, owners

    def arrive(self, partition: int) -> None:
        """A partition came: what it had before lies in other lanes and is folded by whoever asks first."""
        with self._lock:
            for tenant in self._tenants.values():
                tenant.missing.add(partition)

    def leave(self, partition: int) -> None:
        """A partition went: its figures are left out from now on, and dropped when it comes again."""
        with self._lock:
            for tenant in self._tenants.values():
                tenant.missing.discard(partition)

    def _new_tenant(self) -> _Tenant:
        moved = np.flatnonzero(self._owned & self._moved)
        return _Tenant(folded_to=self._base, pending_from=self._base, missing=set(moved.tolist()))

    # -- queries -------------------------------------------------------------------------------------------------------

    def usage(self, tenant_id: str, keys: Sequence[str] | None, master_number: int = 0) -> Figures:
        """The state of these customer keys (None: all), with all that was committed before the call.

        Asked for no tenant it says who has which partition.
        """
        if not tenant_id:
            return Figures(None, self._number, -1, np.packbits(self._owned).tobytes(), self._owners)
        book = self._book(tenant_id, master_number)
        with self._lock:
            owned, has_moved, owners = self._owned, bool(self._moved.any()), self._owners
            tenant, number = self._tenants.get(tenant_id), self._number
            if tenant is None and has_moved and book is not None:
                tenant = self._tenants[tenant_id] = self._new_tenant()  # it may lie in what came from other lanes
        bits = np.packbits(owned).tobytes()
        if tenant is None or book is None:
            return Figures(None, number, book.number if book else -1, bits, owners)
        quick = None if keys is None else self._folded_for(tenant, book, keys)
        if quick is not None:
            wanted, number = quick
        else:
            number = self._fold(tenant_id, tenant, book)
            with tenant.lock:
                parts = list(tenant.parts)
            wanted = [_of_keys(part, keys) for part in parts]
        if has_moved:
            wanted = [self._of_partitions(tenant_id, part, owned) for part in wanted]
        live = wanted[0] if wanted else None
        for part in wanted[1:]:
            assert live is not None
            live = merge_live(live, part)
        return Figures(live, number, book.number, bits, owners)

    def _folded_for(self, tenant: _Tenant, book: _Book, keys: Sequence[str]) -> tuple[list[LiveState], int] | None:
        """What is folded of these keys and what still waits of them, without folding for all others first.

        None where more than adding is to be done: other cells are wanted, rows were left to the log, or events of these
        keys were changed.
        """
        with self._lock:
            fits = tenant.master_number == book.number and not tenant.missing
            since, to = tenant.folding_span or (tenant.pending_from, tenant.pending_from)
            if not fits or tenant.folded_to < since or tenant.pending_from != to:
                return None
            parts, folded_to, number = tenant.parts, tenant.folded_to, self._number
            waiting = [frame for at, frame in (*tenant.folding, *tenant.pending) if at > folded_to]
        mine: list[pl.DataFrame] = []
        for frame in waiting:
            if _turns_of_backfills(frame).height:
                return None
            mine.append(frame.filter(pl.col("customer").is_in(list(keys))))
        rows = pl.concat(mine) if mine else None
        if rows is not None and _changes_in(rows).height:
            return None
        wanted = [_of_keys(part, keys) for part in parts]
        if rows is not None and rows.height:
            wanted.append(fold_days(rows.filter(_IS_USAGE).select(EVENT_SCHEMA.names()), book.book))
        return wanted, number

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread = threading.Thread(target=self._keep_folding, name=f"figures-{self._lane}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._woken.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def clear(self) -> None:
        with self._lock:
            self._tenants.clear()
            self._number = self._base = -1

    def freeze(self) -> Callable[[], bytes]:
        """The folded states as they are; each says how far it goes, so it need not be the number of the snapshot."""
        with self._lock:
            tenants = list(self._tenants.items())
        frozen: list[tuple[str, int, str, tuple[LiveState, ...]]] = []
        for tenant_id, tenant in tenants:
            # A tenant that is being folded right now is left out: recovery folds it from the log.
            if not tenant.missing and tenant.lock.acquire(blocking=False):
                try:
                    frozen.append((tenant_id, tenant.folded_to, tenant.signature, tuple(tenant.parts)))
                finally:
                    tenant.lock.release()
            else:
                frozen.append((tenant_id, -1, "", ()))
        return lambda: _to_bytes(frozen)

    def thaw(self, data: bytes, number: int) -> None:
        """Take the states of a snapshot of this number."""
        with self._lock:
            self._number = self._base = number
            for tenant_id, folded_to, signature, parts in _from_bytes(data):
                self._tenants[tenant_id] = _Tenant(
                    parts=parts, signature=signature, folded_to=folded_to, pending_from=number
                )

    # -- folding -------------------------------------------------------------------------------------------------------

    def _keep_folding(self) -> None:
        while not self._stopped:
            self._woken.wait(FOLD_EVERY_S)
            self._woken.clear()
            with self._lock:
                waiting = [(one, tenant) for one, tenant in self._tenants.items() if tenant.pending]
            for tenant_id, tenant in waiting:
                try:
                    book = self._book(tenant_id, 0)
                    if book is not None:
                        self._fold(tenant_id, tenant, book)
                    self.last_error = ""
                except (Exception, pl.exceptions.PanicException) as error:  # noqa: BLE001 - the next round tries again
                    self.last_error = f"{type(error).__name__}: {error}"

    def _fold(self, tenant_id: str, tenant: _Tenant, book: _Book) -> int:
        """Bring a tenant's state up to what was committed before; returns the number it then has."""
        with tenant.lock:
            if tenant.master_number != book.number:
                signature = cells_asked_for(book.book)
                again = tenant.signature != signature or any(spans_a_cut(part, book.book) for part in tenant.parts)
                with self._lock:
                    if again:
                        tenant.parts, tenant.folded_to = [], -1  # other cells are wanted now: all again, from the log
                    tenant.signature, tenant.master_number = signature, book.number
            with self._lock:
                pending, pending_from, number = tenant.pending, tenant.pending_from, self._number
                tenant.folding, tenant.folding_span = pending, (pending_from, number)
                tenant.pending, tenant.pending_rows, tenant.pending_from = [], 0, number
            try:
                return self._fold_pending(tenant_id, tenant, book, pending, pending_from, number)
            finally:  # what failed is read from the log by the next: `folded_to` lies before `pending_from`
                with self._lock:
                    tenant.folding, tenant.folding_span = [], None

    def _fold_pending(
        self,
        tenant_id: str,
        tenant: _Tenant,
        book: _Book,
        pending: Sequence[tuple[int, pl.DataFrame]],
        pending_from: int,
        number: int,
    ) -> int:
        # On a copy: a fold that fails in the middle leaves the state as it was, and the next reads the log.
        parts, folded_to = list(tenant.parts), tenant.folded_to
        from_log = folded_to < pending_from
        if from_log:
            self._fold_from_log(tenant_id, parts, book, folded_to + 1, pending_from)
            folded_to = pending_from
        frames = [frame for at, frame in pending if at > folded_to]
        rows = pl.concat(frames) if frames else None
        if rows is not None and (_turns_of_backfills(rows).height or not _fits(rows, book)):
            parts, from_log = [], True  # something that was folded counts otherwise now: all again, from the log
            self._fold_from_log(tenant_id, parts, book, 0, number)
        elif rows is not None:
            _add(parts, _counting(rows, _changes_in(rows)), book)
        with self._lock:
            missing = set(tenant.missing)
            if from_log:  # the lane alone does not have what lay in others
                missing |= set(np.flatnonzero(self._owned & self._moved).tolist())
        if missing:
            self._fold_partitions(tenant_id, parts, book, missing, number)
        with self._lock:  # together: who asks meanwhile must not see the one without the other
            tenant.missing -= missing
            tenant.parts, tenant.folded_to = parts, number
        return number

    def _fold_partitions(
        self, tenant_id: str, parts: list[LiveState], book: _Book, partitions: set[int], number: int
    ) -> None:
        """Fold partitions that have moved whole: from every lane that they lay in, up to a number of this one."""
        staying = np.ones(PARTITIONS, np.bool_)
        staying[sorted(partitions)] = False
        parts[:] = [self._of_partitions(tenant_id, part, staying) for part in parts]
        now = self._reader.now()
        cut = Cut({**now.positions, self._lane: number})
        shown = list(backfills_at(self._reader, tenant_id, now).counting)
        counts = pl.col("kind").is_in([int(kind) for kind in (RowKind.USAGE, RowKind.AMENDED, RowKind.VOIDED)])
        counts = pl.col("partition").is_in(sorted(partitions)) & (counts | is_of(shown) if shown else counts)
        frames = list(self._reader.scan_rows(tenant_id, cut, counts, partitions=sorted(partitions)))
        if not frames:
            return
        rows = pl.concat(frames).sort("received_at", "lane", "number", "row")
        changes = _changes_in(rows, shown)
        usage = rows.filter(_IS_USAGE | is_of(shown) if shown else _IS_USAGE).select(EVENT_SCHEMA.names())
        if changes.height:
            known = fold_amendments_of_lane(changes)
            usage = pl.concat([_without(usage, known), known.events.select(EVENT_SCHEMA.names())])
        _add(parts, usage, book)

    def _of_partitions(self, tenant_id: str, live: LiveState, chosen: npt.NDArray[np.bool_]) -> LiveState:
        """The figures of keys in some partitions."""
        state = live.state
        keys = pl.concat([frame["key"].unique() for frame in (state.small, state.sets, state.runs)]).unique()
        if not len(keys):
            return live
        return _of_keys(live, keys.filter(pl.Series(chosen[partitions_of(self._seed, tenant_id, keys)])).to_list())

    def _fold_from_log(self, tenant_id: str, parts: list[LiveState], book: _Book, first: int, last: int) -> None:
        """Add what lies in these numbers; if something there changes events, all of the lane up to `last` again."""
        changes = self._fold_walking(tenant_id, parts, book, first, last, None)
        if changes is not None:
            parts.clear()
            if first > 0:
                found = self._fold_walking(tenant_id, [], book, 0, first - 1, None)
                changes = changes if found is None else pl.concat([found, changes])
            self._fold_walking(tenant_id, parts, book, 0, last, changes)

    def _fold_walking(
        self, tenant_id: str, parts: list[LiveState], book: _Book, first: int, last: int, changes: pl.DataFrame | None
    ) -> pl.DataFrame | None:
        """Fold usage with the changes that are known, and these themselves; returns the changes met on the way."""
        waiting: list[pl.DataFrame] = []
        met: list[pl.DataFrame] = []
        shown = () if changes is None else _shown(changes)
        known = None if changes is None else fold_amendments_of_lane(_changes_in(changes, shown))
        counts = _IS_USAGE | is_of(shown) if shown else _IS_USAGE
        rows = 0
        # What has moved is folded whole, from all lanes; what a lane notes of itself may lie anywhere.
        moved = np.flatnonzero(self._moved).tolist()
        own = ~pl.col("partition").is_in(moved) | (pl.col("customer") == "") if moved else pl.lit(True)
        for segment in walk(self._store, self._lane, first, last):
            if tenant_id in segment.head.counters:
                part = segment.rows().filter((pl.col("tenant") == tenant_id) & own)
                if tenant_id in segment.head.changed:
                    met += [_changes_in(part), _turns_of_backfills(part)]
                waiting.append(part.filter(counts).select(EVENT_SCHEMA.names()))
                rows += part.height
            if rows >= FOLD_ROWS:
                _add(parts, _without(pl.concat(waiting), known), book)
                waiting, rows = [], 0
        if waiting:
            _add(parts, _without(pl.concat(waiting), known), book)
        if known is not None:
            _add(parts, known.events.select(EVENT_SCHEMA.names()), book)
        found = pl.concat(met) if met else None
        return found if found is not None and found.height else None

    def _book(self, tenant_id: str, at_least: int) -> _Book | None:
        """The newest book this process knows, looked up again after a second or when a newer number is named."""
        known = self._books.get(tenant_id)
        now_s = time.monotonic()
        if known is not None and known.number >= at_least and now_s - known.seen_s < MASTER_AGE_S_MAX:
            return known
        try:
            number, master = self._master.newest(tenant_id, at_least=at_least)
        except NotFound:
            return None
        except Unavailable:
            return known  # the store is away, or the number not there yet: go on with what is known
        if known is not None and known.number == number:
            known.seen_s = now_s
            return known
        fresh = _Book(number, master.rating_book(), now_s)
        self._books[tenant_id] = fresh
        return fresh


def _by_tenant(rows: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    tenants = rows["tenant"]
    if rows.height and tenants.n_unique() == 1:  # without a copy
        return [(str(tenants[0]), rows)]
    return [(str(one), part) for (one,), part in rows.partition_by("tenant", as_dict=True).items()]


_IS_USAGE = pl.col("kind") == int(RowKind.USAGE)
_STEP = pl.col("detail").str.json_path_match("$.step")


def _changes_in(rows: pl.DataFrame, shown: Sequence[str] | None = None) -> pl.DataFrame:
    """The rows that change events; with `shown` those of backfills left out that count no more."""
    changes = rows.filter(pl.col("kind").is_in([int(RowKind.AMENDED), int(RowKind.VOIDED)]))
    if shown is None or changes.height == 0:
        return changes
    backfill = pl.col("detail").str.json_path_match("$.event.backfill")
    return changes.filter(backfill.is_null() | backfill.is_in(list(shown)))


def _turns_of_backfills(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows by which events of a backfill begin or cease to count in this lane."""
    noted = rows.filter(pl.col("kind") == int(RowKind.BACKFILL_NOTED))
    return noted.filter(_STEP.is_in([SHOWN, HIDDEN])) if noted.height else noted


def _shown(changes: pl.DataFrame) -> list[str]:
    """The backfills that count after these rows; they are in the order of the lane."""
    turns = _turns_of_backfills(changes).select(pl.col("detail").str.json_path_match("$.backfill"), step=_STEP)
    last = dict(turns.iter_rows())
    return [name for name, step in last.items() if step == SHOWN]


def _fits(rows: pl.DataFrame, book: _Book) -> bool:
    """Whether changes among rows only add to what is folded: what they change added nothing (it was in suspense)."""
    changes = _changes_in(rows)
    if changes.height == 0:
        return True
    return _size(fold_days(states_before(changes), book.book)) == 0


def _counting(rows: pl.DataFrame, changes: pl.DataFrame) -> pl.DataFrame:
    """The events that rows add."""
    usage = rows.filter(_IS_USAGE).select(EVENT_SCHEMA.names())
    if changes.height == 0:
        return usage
    known = fold_amendments_of_lane(changes)
    return pl.concat([_without(usage, known), known.events.select(EVENT_SCHEMA.names())])


def _without(usage: pl.DataFrame, known: Amended | None) -> pl.DataFrame:
    return usage if known is None else known.without(usage)


def _add(parts: list[LiveState], usage: pl.DataFrame, book: _Book) -> None:
    """Fold events and merge what has about the same size, so that a row is merged few times."""
    for start in range(0, usage.height, FOLD_ROWS):
        parts.append(fold_days(usage.slice(start, FOLD_ROWS), book.book))
        while len(parts) > 1 and 2 * _size(parts[-1]) >= _size(parts[-2]):
            newer, older = parts.pop(), parts.pop()
            parts.append(merge_live(older, newer))


def _size(live: LiveState) -> int:
    return live.state.small.height + live.state.sets.height + live.state.runs.height


def _of_keys(live: LiveState, keys: Sequence[str] | None) -> LiveState:
    if keys is None:
        return live
    wanted = pl.col("key").is_in(list(keys))
    state = live.state
    return LiveState(
        type(state)(state.by, state.small.filter(wanted), state.sets.filter(wanted), state.runs.filter(wanted))
    )


def _to_bytes(frozen: Sequence[tuple[str, int, str, Sequence[LiveState]]]) -> bytes:
    blobs: list[bytes] = []
    head: list[tuple[str, int, str, list[int]]] = []
    for tenant_id, folded_to, signature, parts in frozen:
        mine = [part.to_bytes() for part in parts]
        blobs.extend(mine)
        head.append((tenant_id, folded_to, signature, [len(blob) for blob in mine]))
    text = json.dumps(head).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *blobs])


def _from_bytes(data: bytes) -> list[tuple[str, int, str, list[LiveState]]]:
    if not data:
        return []
    stream = io.BytesIO(data)
    head = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return [
        (tenant_id, folded_to, signature, [LiveState.from_bytes(stream.read(length)) for length in lengths])
        for tenant_id, folded_to, signature, lengths in head
    ]
