"""Proving the log: every number of every lane and every sealed file of a tenant read again, and what differs named.

Owns what is compared. Of lanes: each number's bytes with the digest that the next number has of them, the order of
epochs and log times, one writer between two epochs, rows with the counters of their head, and that each row lies in
the lane that had its partition then, by the records of all moves. Of sealed files: the bytes
with the digest in the file's name, rows by lane and number with those of the segments, which are the truth. Nothing is
taken from memory, nothing is changed. The very last number of a lane has nobody who names its digest yet: of it the
rows are counted.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import polars as pl

from storage.object_store import ObjectStore, StoreUnavailable
from storage.usage_log.formats import check_readable
from storage.usage_log.genesis import PARTITIONS, Genesis, read_genesis
from storage.usage_log.lane import LogBroken, count_lanes, last_number, read_hint, read_segment
from storage.usage_log.manifest import Manifest, ManifestChain, SealedFile
from storage.usage_log.partitions import partitions_of
from storage.usage_log.reader import READINGS_MAX, Cut
from storage.usage_log.sealed_files import digest_in
from storage.usage_log.segment import ROW_SCHEMA, RowKind, StoredSegment, digest_of, segment_key, with_positions
from storage.usage_log.tenures import Moves, Owned

FOUND_MAX = 100  # that are named; one is enough for an alarm
LISTED_MAX = 8  # partitions of one finding
# What reading damaged Parquet raises. Polars panics where its checks of a file end; that is no Exception.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
_PLACED = (*ROW_SCHEMA.names(), "lane", "number", "row")
_PRINTS = pl.Schema({"lane": pl.Int64, "number": pl.Int64, "rows": pl.Int64, "print": pl.UInt64})


@dataclass(frozen=True)
class Difference:
    """Where the log is not what was written. `day` is that of reception (UTC); None of what has none."""

    day: date | None
    lane: int | None
    number: int | None
    key: str  # of the object
    detail: str


@dataclass(frozen=True)
class LogProof:
    """What the segments of a tenant hold: events that were read, and as their writers counted them less those that were
    erased since. `differences` are the first FOUND_MAX of `found`."""

    events: int
    counted: int
    erased: int
    differences: tuple[Difference, ...]
    found: int


def ends_of_lanes(store: ObjectStore) -> Cut:
    """The last number of each lane as it is, closed over nothing: for a log of which segments cannot be read."""
    return Cut({lane: last_number(store, lane, read_hint(store, lane)) for lane in range(count_lanes(store))})


def prove_log(store: ObjectStore, tenant_id: str, cut: Cut) -> LogProof:
    """Read all that a tenant has at or below a cut. Raises StoreUnavailable where the store does not answer."""
    genesis = read_genesis(store)
    if genesis is None:
        raise StoreUnavailable("The usage log has no genesis: nothing can be said of it.")
    for _ in range(READINGS_MAX):
        manifest = ManifestChain(store).newest()
        look = _Look(store, tenant_id, cut, manifest, genesis)
        for lane, last in sorted(cut.positions.items()):
            look.at_lane(lane, last)
        look.owners()
        gone = [file.key for file in manifest.files if tenant_id in file.tenants and not look.at_file(file)]
        if gone and ManifestChain(store).newest().number != manifest.number:
            continue  # merged meanwhile
        for key in gone:
            look.note(None, None, None, key, "is named by the manifest and not there")
        look.compare()
        return LogProof(look.events, look.counted, look.erased, tuple(look.differences), look.found)
    raise StoreUnavailable(f"The manifest changed during each of {READINGS_MAX} readings.")


@dataclass
class _Look:
    """One reading, from one manifest entry."""

    store: ObjectStore
    tenant_id: str
    cut: Cut
    manifest: Manifest
    genesis: Genesis
    events: int = 0
    counted: int = 0
    erased: int = 0
    differences: list[Difference] = field(default_factory=list[Difference])
    found: int = 0
    days: dict[tuple[int, int], date] = field(default_factory=dict[tuple[int, int], date])
    uncompared: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])  # sealed rows with nothing beside
    in_segments: list[pl.DataFrame] = field(default_factory=list[pl.DataFrame])
    in_files: list[pl.DataFrame] = field(default_factory=list[pl.DataFrame])
    all_files_read: bool = True
    moves: Moves = field(init=False)
    lying: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict[int, list[tuple[int, bytes]]])
    all_numbers_read: bool = True

    def __post_init__(self) -> None:
        self.moves = Moves(self.genesis)

    def note(self, day: date | None, lane: int | None, number: int | None, key: str, detail: str) -> None:
        self.found += 1
        if len(self.differences) < FOUND_MAX:
            self.differences.append(Difference(day, lane, number, key, detail))

    # -- lanes --------------------------------------------------------------------------------------------------------

    def at_lane(self, lane: int, last: int) -> None:
        before: StoredSegment | None = None
        for number in range(last + 2):  # one behind the cut, if it is there: it names the bytes of the last
            key = segment_key(lane, number)
            try:
                segment = read_segment(self.store, lane, number)
            except LogBroken as error:
                segment = None
                if number <= last:
                    self.note(None, lane, number, key, str(error))
            else:
                if segment is None and number <= last:
                    self.note(None, lane, number, key, "is not there")
            if segment is None:
                self.uncompared.add((lane, number))
                self.all_numbers_read = self.all_numbers_read and number > last
                before = None
                continue
            if number <= last:
                self.moves.add(segment.head)
            for detail, of in _breaks(before, segment):
                if of.head.number <= last and self._concerns(of):
                    at = of.head
                    self.note(at.log_time.date(), lane, at.number, segment_key(lane, at.number), detail)
            if number <= last and self.tenant_id in segment.head.counters:
                self._rows(segment, key)
            before = segment
        if before is not None and before.head.number == last and self._is_uncounted(before):
            # Nobody names its digest yet, and who believes this head does not look for these rows.
            day = before.head.log_time.date()
            self.note(day, lane, last, segment_key(lane, last), "its head does not count the rows that it has")

    def _concerns(self, segment: StoredSegment) -> bool:
        """Other tenants' events are their own finding; what is nobody's concerns everybody. A damaged head may be wrong
        about whose they are."""
        counters = segment.head.counters
        return not counters or self.tenant_id in counters or self._is_uncounted(segment)

    def _is_uncounted(self, segment: StoredSegment) -> bool:
        """Whether a segment has rows of the tenant, or cannot say, of which its head says nothing."""
        if self.tenant_id in segment.head.counters:
            return False
        try:
            return self.tenant_id in segment.rows(["tenant"])["tenant"]
        except UNREADABLE:
            return True

    def _rows(self, segment: StoredSegment, key: str) -> None:
        head, place = segment.head, (segment.head.lane, segment.head.number)
        day = self.days[place] = head.log_time.date()
        stored = head.counters[self.tenant_id].stored
        groups = [group for group in head.erased if group.tenant == self.tenant_id]
        erased = sum(group.rows for group in groups if group.kind == int(RowKind.USAGE))
        self.counted += stored - erased
        self.erased += erased
        if groups:
            self.uncompared.add(place)  # an erasure takes rows out of segments and sealed files one after the other
        try:
            rows = segment.rows()
            mine = with_positions(rows, head).filter(pl.col("tenant") == self.tenant_id)
            events = mine.filter(pl.col("kind") == int(RowKind.USAGE)).height
            prints = _prints(mine)
        except UNREADABLE as error:
            self.note(day, *place, key, f"its rows cannot be read: {error}")
            self.uncompared.add(place)
            return
        self.events += events
        self._places(mine, day, place, key)
        if rows.height != head.rows:
            self.note(day, *place, key, f"it holds {rows.height} rows where {head.rows} were written")
        if events + erased != stored:
            self.note(day, *place, key, f"{events} events were read where {stored - erased} were counted")
        if head.number <= self.manifest.sealed_to(head.lane):
            self.in_segments.append(prints)

    def _places(self, mine: pl.DataFrame, day: date, place: tuple[int, int], key: str) -> None:
        """Remember the partitions of a segment's rows: by their customer keys, whatever stands beside them."""
        written = mine["partition"].to_numpy()
        # Of an erased row the key is gone; what a lane notes of itself is nobody's, and lies anywhere.
        is_of_key = ((mine["kind"] != int(RowKind.ERASED)) & (mine["customer"] != "")).to_numpy()
        keys = mine["customer"].filter(pl.Series(is_of_key))
        hashed = partitions_of(self.genesis.seed, self.tenant_id, keys)
        wrong = int((hashed != written[is_of_key]).sum())
        if wrong:
            self.note(day, *place, key, f"{wrong} rows stand under another partition than their customer's key has")
        there = np.zeros(PARTITIONS, np.bool_)
        there[written[~is_of_key]] = True
        there[hashed] = True
        self.lying.setdefault(place[0], []).append((place[1], np.packbits(there).tobytes()))

    def owners(self) -> None:
        """Each segment with rows of a partition that its lane did not have then, and moves that nothing leads to."""
        if not self.all_numbers_read:
            return  # what was let go or taken in the others is not known, and that they are damaged is said already
        tenures, stray = self.moves.tenures()
        for record in stray:
            taken = record.control.what == "acquired"
            what = "takes" if taken else "lets go"
            why = "was not let go to it" if taken else "it did not have"
            detail = f"it {what} partition {record.control.partition}, which {why}"
            self.note(None, record.lane, record.number, segment_key(record.lane, record.number), detail)
        for lane, segments in sorted(self.lying.items()):
            owned = Owned(tenures, lane)
            for number, bits in segments:
                there = np.unpackbits(np.frombuffer(bits, np.uint8)).astype(np.bool_)
                foreign = np.flatnonzero(there & ~owned.at(number)).tolist()
                if foreign:
                    detail = f"it has rows of {_named(foreign)} that lane {lane} did not have then"
                    self.note(self.days.get((lane, number)), lane, number, segment_key(lane, number), detail)

    # -- sealed files -------------------------------------------------------------------------------------------------

    def at_file(self, file: SealedFile) -> bool:
        """False if it is not there."""
        check_readable("sealed", file.format, key=file.key)
        data = self.store.get(file.key)
        if data is None:
            self.all_files_read = False
            return False
        digest = digest_in(file.key)
        if digest and digest != digest_of(data):
            self.note(None, None, None, file.key, "its bytes are not those that were sealed")
            self.all_files_read = False
            return True
        try:
            rows = pl.read_parquet(io.BytesIO(data), columns=[*_PLACED])
            mine = rows.filter(pl.col("tenant") == self.tenant_id)
            prints = _prints(mine).with_columns(key=pl.lit(file.key))
        except UNREADABLE as error:
            self.note(None, None, None, file.key, f"it cannot be read: {error}")
            self.all_files_read = False
            return True
        if mine.height != file.tenants[self.tenant_id]:
            detail = f"it holds {mine.height} rows where {file.tenants[self.tenant_id]} were sealed"
            self.note(None, None, None, file.key, detail)
        erased = mine.filter(pl.col("kind") == int(RowKind.ERASED)).select("lane", "number").unique()
        self.uncompared.update((int(lane), int(number)) for lane, number in erased.iter_rows())
        self.in_files.append(prints)
        return True

    def compare(self) -> None:
        """Sealed rows with those of the segments, number by number."""
        if not self.all_files_read:
            return  # what was in the others is missing everywhere, and said already
        written = pl.concat([pl.DataFrame(schema=_PRINTS), *self.in_segments])
        sealed = pl.concat([pl.DataFrame(schema={**_PRINTS, "key": pl.String}), *self.in_files])
        of_one = sealed.group_by("lane", "number").agg(
            pl.col("rows").sum(), pl.col("print").bitwise_xor(), pl.col("key").unique().sort()
        )
        both = written.join(of_one, on=["lane", "number"], how="full", coalesce=True, suffix="_sealed")
        differ = pl.any_horizontal(
            pl.col("rows").ne_missing(pl.col("rows_sealed")), pl.col("print").ne_missing(pl.col("print_sealed"))
        )
        for row in both.filter(differ).sort("lane", "number").iter_rows(named=True):
            place = (row["lane"], row["number"])
            if place in self.uncompared or row["number"] > self.cut.last(row["lane"]):
                continue
            keys = ", ".join(row["key"] or ()) or segment_key(*place)
            has = f"{row['rows_sealed'] or 0} sealed rows beside {row['rows'] or 0} of the segment"
            self.note(self.days.get(place), *place, keys, f"sealed rows are not those of the segment: {has}")


def _named(partitions: list[int]) -> str:
    if len(partitions) == 1:
        return f"partition {partitions[0]}"
    more = " ..." if len(partitions) > LISTED_MAX else ""
    return f"{len(partitions)} partitions ({', '.join(map(str, partitions[:LISTED_MAX]))}{more})"


def _breaks(before: StoredSegment | None, segment: StoredSegment) -> Iterator[tuple[str, StoredSegment]]:
    """Where a number does not follow the one before it, and which of the two is at fault."""
    if before is None:
        return
    was, head = before.head, segment.head
    if head.previous != before.digest:
        yield f"its bytes are not those that number {head.number} follows", before
    if head.log_time_us < was.log_time_us:
        yield "log time goes back", segment
    if head.epoch != (was.epoch + 1 if head.is_epoch else was.epoch):
        yield f"it has epoch {head.epoch} behind {was.epoch}", segment
    elif not head.is_epoch and head.nonce != was.nonce:
        yield "another writer than the one of its epoch wrote it", segment


def _prints(rows: pl.DataFrame) -> pl.DataFrame:
    """How many rows lie under each number, and what they say, whatever their order."""
    plain = rows.select(
        *(pl.col(name).cast(kind) for name, kind in ROW_SCHEMA.items()),
        pl.col("lane").cast(pl.Int64),
        pl.col("number").cast(pl.Int64),
        pl.col("row").cast(pl.Int64),
    )
    hashed = plain.select("lane", "number").with_columns(plain.hash_rows(seed=0).alias("print"))
    grouped = hashed.group_by("lane", "number").agg(
        pl.len().cast(pl.Int64).alias("rows"), pl.col("print").bitwise_xor()
    )
    return grouped.select(_PRINTS.names())
