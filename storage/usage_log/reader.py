"""Reading the usage log: a consistent cut, and the rows at or below it, in frames of bounded size.

Owns the reader's rules: one manifest entry per reading, rule H for what was walked, closure of a cut over moves.
What the rows mean is the caller's business.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

import polars as pl

from billing.typed_columns import Reads, are_typed, typed_names
from billing.usage import EVENT_SCHEMA, INSTANT
from storage.object_store import ObjectStore, StoreUnavailable
from storage.usage_log.formats import check_readable
from storage.usage_log.lane import count_lanes, last_number, read_hint, read_segment
from storage.usage_log.manifest import Manifest, ManifestChain, SealedFile
from storage.usage_log.recent_heads import recent_heads
from storage.usage_log.segment import (
    ROW_SCHEMA,
    ErasedGroup,
    RowKind,
    SegmentHead,
    StoredSegment,
    microseconds_of,
    with_positions,
)

CHUNK_ROWS = 500_000
READINGS_MAX = 50  # each begins again on a newer manifest

POSITION_SCHEMA = pl.Schema(
    {"kind": pl.UInt8, "lane": pl.UInt16, "number": pl.UInt64, "row": pl.UInt32, "received_at": INSTANT}
)
SCAN_SCHEMA = pl.Schema({**EVENT_SCHEMA, **POSITION_SCHEMA})
NARROW = ("type", "customer", "subscription", "time", "data", "lane", "number")  # what judging and adding up look at
_OF_SEGMENT = ("tenant", "partition", "kind", "type", "customer", "subscription", "time", "data", "id")
_TYPED = "*typed"  # stands for the typed columns that a file has
_Times = tuple[datetime | None, datetime | None]  # half-open
_ALWAYS: _Times = (None, None)
DECIDED_SCHEMA = pl.Schema({**SCAN_SCHEMA, "detail": pl.String})


@dataclass(frozen=True)
class Cut:
    """The last number of each lane that belongs to it. All that was acknowledged before it was made is in it."""

    positions: Mapping[int, int]  # lane -> number
    name: str = ""

    def to_json(self) -> str:
        return json.dumps({"name": self.name, "positions": {str(lane): n for lane, n in self.positions.items()}})

    @classmethod
    def from_json(cls, text: str | bytes) -> Cut:
        form = json.loads(text)
        return cls({int(lane): number for lane, number in form["positions"].items()}, form["name"])

    def last(self, lane: int) -> int:
        return self.positions.get(lane, -1)

    def covers(self, positions: Mapping[int, int]) -> bool:
        return all(self.last(lane) >= number for lane, number in positions.items())


NOTHING = Cut({})


class UsageLogReader:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._chain = ManifestChain(store)
        self._known: dict[int, int] = {}  # lane -> a number seen; saves probes, decides nothing
        self._recent = recent_heads(store)

    @property
    def store(self) -> ObjectStore:
        return self._store

    # -- cuts ---------------------------------------------------------------------------------------------------------

    def now(self, name: str = "") -> Cut:
        """A cut at the present end of all lanes, closed over moves; it is not stored."""
        for _ in range(READINGS_MAX):
            manifest = self._chain.newest()
            positions: dict[int, int] = {}
            for lane in range(count_lanes(self._store, len(self._known))):
                known = max(self._known.get(lane, -1), manifest.sealed_to(lane), manifest.floor(lane) - 1)
                if lane not in self._known:
                    known = max(known, read_hint(self._store, lane))
                positions[lane] = self._known[lane] = last_number(self._store, lane, known)
            positions = self._closed(positions, manifest)
            if self._still_holds(manifest):
                return Cut(positions, name)
        raise StoreUnavailable(f"The manifest changed during each of {READINGS_MAX} readings.")

    def cut(self, name: str) -> Cut:
        """The cut of this name, made now if there is none: two callers, one cut."""
        assert name, "a cut that is stored has a name"
        stored = self.load_cut(name)
        if stored is not None:
            return stored
        mine = self.now(name)
        if self._store.create(cut_key(name), mine.to_json().encode()):
            return mine
        stored = self.load_cut(name)
        assert stored is not None, f"cut {name} exists and cannot be read"
        return stored

    def load_cut(self, name: str) -> Cut | None:
        data = self._store.get(cut_key(name))
        if data is None:
            return None
        self._store.settle(cut_key(name))
        return Cut.from_json(data)

    def _closed(self, positions: dict[int, int], manifest: Manifest) -> dict[int, int]:
        """Raise each lane to the releases that acquired partitions of other lanes rest on."""
        closed, looked_at = dict(positions), {lane: manifest.sealed_to(lane) for lane in positions}
        changed = True
        while changed:
            changed = False
            for lane in list(closed):
                for number in range(looked_at[lane] + 1, closed[lane] + 1):
                    head = self._head(lane, number)
                    needed = [(one.lane, one.number) for one in head.controls if one.what == "acquired"]
                    for other, last in (*needed, *head.rests_on.items()):
                        if closed.get(other, -1) < last:
                            closed[other] = last
                            looked_at.setdefault(other, -1)
                            changed = True
                looked_at[lane] = max(looked_at[lane], closed[lane])
        return closed

    def _heads(self, lane: int, first: int, last: int) -> Iterator[SegmentHead]:
        for number in range(first, last + 1):
            yield self._segment(lane, number).head

    # -- rows ---------------------------------------------------------------------------------------------------------

    def scan(
        self,
        tenant_id: str,
        cut: Cut,
        *,
        customers: Sequence[str] | None = None,
        since: Cut | None = None,
        partitions: Sequence[int] | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        ids: Sequence[str] | None = None,
        kinds: Sequence[RowKind] = (RowKind.USAGE,),
        typed: bool = False,
        narrow: Reads | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Rows of a tenant at or below `cut` (and after `since`), each exactly once: frames of SCAN_SCHEMA.

        `customers` are customer keys as the events carry them; `start`/`end` are half-open and compare `time`.
        `typed`: frames have typed columns besides (`billing/typed_columns.py`), not all of them the same ones.
        `narrow`: of the columns only NARROW and typed ones; `data` is null where typed columns hold all these reads.
        Usage as it was sent; as it counts, amendments in it, it is in storage/usage_log/counting.py.
        """
        conditions = [pl.col("tenant") == tenant_id, pl.col("kind").is_in([int(kind) for kind in kinds])]
        if customers is not None:
            conditions.append(pl.col("customer").is_in(list(customers)))
            if customers:  # what statistics of row groups answer
                conditions.append(pl.col("customer").is_between(pl.lit(min(customers)), pl.lit(max(customers))))
        if partitions is not None:
            conditions.append(pl.col("partition").is_in(list(partitions)))
            if partitions:  # what statistics of row groups answer
                conditions.append(pl.col("partition").is_between(min(partitions), max(partitions)))
        if start is not None:
            conditions.append(pl.col("time") >= start)
        if end is not None:
            conditions.append(pl.col("time") < end)
        if ids is not None:
            conditions.append(pl.col("id").is_in(list(ids)))
        wanted = set(range(256)) if partitions is None else set(partitions)
        names = [*SCAN_SCHEMA.names(), *([_TYPED] if typed else [])]
        if narrow is not None:
            names = [*NARROW, _TYPED]
        yield from self._scan(
            tenant_id,
            cut,
            since or NOTHING,
            wanted,
            pl.all_horizontal(conditions),
            names,
            times=(start, end),
            narrow=narrow,
        )

    def scan_changes(self, tenant_id: str, cut: Cut, *, since: Cut | None = None) -> Iterator[pl.DataFrame]:
        """AMENDED and VOIDED rows with their `detail`: frames of DECIDED_SCHEMA. Few among many; heads name them."""
        kinds = [int(RowKind.AMENDED), int(RowKind.VOIDED)]
        condition = (pl.col("tenant") == tenant_id) & pl.col("kind").is_in(kinds)
        columns = DECIDED_SCHEMA.names()
        yield from self._scan(tenant_id, cut, since or NOTHING, set(range(256)), condition, columns, changes_only=True)

    def scan_rows(
        self,
        tenant_id: str,
        cut: Cut,
        condition: pl.Expr,
        *,
        since: Cut | None = None,
        partitions: Sequence[int] | None = None,
        changes_only: bool = False,
    ) -> Iterator[pl.DataFrame]:
        """Rows of a tenant, of whatever kind a condition takes, with their `detail`: frames of DECIDED_SCHEMA.

        `changes_only`: the condition takes only kinds of segment.CHANGES; few numbers have any, and their heads say so.
        """
        wanted = set(range(256)) if partitions is None else set(partitions)
        of_tenant = (pl.col("tenant") == tenant_id) & condition
        columns = DECIDED_SCHEMA.names()
        yield from self._scan(tenant_id, cut, since or NOTHING, wanted, of_tenant, columns, changes_only=changes_only)

    def scan_decided(self, cut: Cut, partition: int, *, since: Cut | None = None) -> Iterator[pl.DataFrame]:
        """Rows of all tenants in a partition, but those of segments with nothing but usage: as `scan_all` has them."""
        columns = [*ROW_SCHEMA.names(), "lane", "number", "row", "received_at"]
        condition = (pl.col("partition") == partition) & (pl.col("kind") != int(RowKind.USAGE))
        yield from self._scan(None, cut, since or NOTHING, {partition}, condition, columns, decided_only=True)

    def head(self, lane: int, number: int) -> SegmentHead:
        """What lies under a number, without its rows; read once in this process."""
        return self._head(lane, number)

    def scan_all(self, cut: Cut, *, since: Cut | None = None) -> Iterator[pl.DataFrame]:
        """Rows of all tenants, with tenant and partition: for sealing and verification."""
        columns = [*ROW_SCHEMA.names(), "lane", "number", "row", "received_at"]
        yield from self._scan(None, cut, since or NOTHING, set(range(256)), pl.lit(True), columns)

    def row_counts(self, cut: Cut, *, since: Cut | None = None) -> Iterator[tuple[int, int, int]]:
        """(lane, number, rows) of the numbers in (since, cut], lane by lane."""
        before = since or NOTHING
        for lane, last in sorted(cut.positions.items()):
            for head in self._heads(lane, before.last(lane) + 1, last):
                yield lane, head.number, head.rows

    def _scan(
        self,
        tenant_id: str | None,
        cut: Cut,
        since: Cut,
        partitions: set[int],
        condition: pl.Expr,
        columns: list[str],
        *,
        changes_only: bool = False,
        decided_only: bool = False,
        times: _Times = _ALWAYS,
        narrow: Reads | None = None,
    ) -> Iterator[pl.DataFrame]:
        done: set[str] = set()
        for _ in range(READINGS_MAX):
            manifest = self._chain.newest()
            try:
                yield from self._scan_once(
                    manifest,
                    tenant_id,
                    cut,
                    since,
                    partitions,
                    condition,
                    columns,
                    done,
                    changes_only=changes_only,
                    decided_only=decided_only,
                    times=times,
                    narrow=narrow,
                )
                return
            except StoreUnavailable:
                # An object that the entry named is gone: a newer entry knows more, else the store is really away.
                if self._chain.newest().number == manifest.number or done:
                    raise
        raise StoreUnavailable(f"The manifest changed during each of {READINGS_MAX} readings.")

    def _scan_once(
        self,
        manifest: Manifest,
        tenant_id: str | None,
        cut: Cut,
        since: Cut,
        partitions: set[int],
        condition: pl.Expr,
        columns: list[str],
        done: set[str],
        *,
        changes_only: bool,
        decided_only: bool,
        times: _Times,
        narrow: Reads | None,
    ) -> Iterator[pl.DataFrame]:
        pending: list[pl.DataFrame] = []
        rows = 0
        is_typed = columns[-1] == _TYPED
        plain = columns[:-1] if is_typed else columns

        def flushed() -> pl.DataFrame:
            frame = pl.concat(pending, how="diagonal_relaxed" if is_typed else "vertical")
            pending.clear()
            return frame

        for frame in self._sealed(manifest, tenant_id, cut, since, partitions, condition, columns, times, narrow):
            pending.append(frame)
            rows += frame.height
            if rows >= CHUNK_ROWS:
                done.add("some")
                yield flushed()
                rows = 0
        for lane, last in sorted(cut.positions.items()):
            first = max(since.last(lane), manifest.sealed_to(lane)) + 1
            for number in range(first, last + 1):
                known = self._recent.get(lane, number)
                segment = self._segment(lane, number) if known is None else None
                head = segment.head if segment is not None else known
                if head.rows == 0 or partitions.isdisjoint(head.ranges):
                    continue
                if tenant_id is not None and tenant_id not in head.counters:
                    continue
                if changes_only and tenant_id not in head.changed:
                    continue
                if decided_only and not any(count.decided for count in head.counters.values()):
                    continue
                segment = segment or self._segment(lane, number)
                stored = segment.rows(None if narrow is None else _OF_SEGMENT)
                frame = with_positions(stored, segment.head).filter(condition).select(plain)
                if frame.height:
                    pending.append(frame)
                    rows += frame.height
                if rows >= CHUNK_ROWS:
                    done.add("some")
                    yield flushed()
                    rows = 0
        if pending:
            done.add("some")
            yield flushed()

    def _sealed(
        self,
        manifest: Manifest,
        tenant_id: str | None,
        cut: Cut,
        since: Cut,
        partitions: set[int],
        condition: pl.Expr,
        columns: list[str],
        times: _Times,
        narrow: Reads | None,
    ) -> Iterator[pl.DataFrame]:
        if all(since.last(lane) >= number for lane, number in manifest.sealed.items()):
            return  # all that is sealed lies before: a live reader's usual case
        within = _within(manifest.sealed, cut, since)
        for file in manifest.files:
            if tenant_id is not None and tenant_id not in file.tenants:
                continue
            if not any(file.first_partition <= partition <= file.last_partition for partition in partitions):
                continue
            if _lies_outside(file, times):
                continue
            frame = self._read_sealed(file, condition if within is None else condition & within, columns, narrow)
            if frame.height:
                yield frame

    def _read_sealed(
        self, file: SealedFile, condition: pl.Expr, columns: list[str], narrow: Reads | None
    ) -> pl.DataFrame:
        check_readable("sealed", file.format, key=file.key)
        path = self._store.local_path(file.key)
        if path is not None:
            try:
                return _sealed_rows(pl.scan_parquet(path), condition, columns, narrow)
            except FileNotFoundError as error:  # also where it goes between the two
                raise StoreUnavailable(f"{file.key} is named by the manifest and not there.") from error
        data = self._store.get(file.key)
        if data is None:
            raise StoreUnavailable(f"{file.key} is named by the manifest and not there.")
        return _sealed_rows(pl.scan_parquet(io.BytesIO(data)), condition, columns, narrow)

    def _segment(self, lane: int, number: int) -> StoredSegment:
        segment = read_segment(self._store, lane, number)
        if segment is None:
            raise StoreUnavailable(f"Lane {lane} number {number} is not there: a newer manifest entry may know more.")
        self._recent.put(segment.head)
        return segment

    def _head(self, lane: int, number: int) -> SegmentHead:
        """The head of a number, read once in this process."""
        return self._recent.get(lane, number) or self._segment(lane, number).head

    def _still_holds(self, manifest: Manifest) -> bool:
        """Rule H for a cut: no floor has risen meanwhile."""
        newest = self._chain.newest()
        return newest.floors == manifest.floors

    # -- counters -----------------------------------------------------------------------------------------------------

    def counters(self, cut: Cut, tenant_id: str | None = None) -> pl.DataFrame:
        """What the writers counted: stored events and repeats by tenant and day of reception (UTC).

        Reads every head up to the cut: lane numbers are never deleted, and keep their heads when rows are erased.
        """
        totals: dict[tuple[str, date], list[int]] = {}
        for lane, last in cut.positions.items():
            for head in self._heads(lane, 0, last):
                for tenant, count in head.counters.items():
                    if tenant_id is None or tenant == tenant_id:
                        total = totals.setdefault((tenant, head.log_time.date()), [0, 0])
                        total[0] += count.stored
                        total[1] += count.duplicates
        keys = sorted(totals)
        return pl.DataFrame(
            {
                "tenant": [tenant for tenant, _ in keys],
                "day": [day for _, day in keys],
                "stored": [totals[key][0] for key in keys],
                "duplicates": [totals[key][1] for key in keys],
            },
            schema={"tenant": pl.String, "day": pl.Date, "stored": pl.Int64, "duplicates": pl.Int64},
        )

    def erased(self, cut: Cut, tenant_id: str) -> Iterator[ErasedGroup]:
        """What was erased of a tenant, segment by segment: reads every head up to the cut."""
        for lane, last in cut.positions.items():
            for head in self._heads(lane, 0, last):
                yield from (group for group in head.erased if group.tenant == tenant_id)


def cut_key(name: str) -> str:
    return f"log/cuts/{name}.json"


def _sealed_rows(lazy: pl.LazyFrame, condition: pl.Expr, columns: list[str], narrow: Reads | None) -> pl.DataFrame:
    lazy, names = lazy.filter(condition), _present(columns, lazy)
    if narrow is not None:
        # The text is most of a file's bytes, and says nothing that the typed columns do not say.
        frame = lazy.select(name for name in names if name != "data").collect()
        if are_typed(frame, narrow):
            return frame.with_columns(pl.lit(None, pl.String).alias("data")).select(names)
    return lazy.select(names).collect()


def _present(columns: list[str], lazy: pl.LazyFrame) -> list[str]:
    """The columns, and for the last of them, if it stands for typed ones, those that a file has."""
    if columns[-1] != _TYPED:
        return columns
    return [*columns[:-1], *typed_names(lazy.collect_schema().names())]


def _lies_outside(file: SealedFile, times: _Times) -> bool:
    """Whether no row of a file is of a half-open time."""
    start, end = times
    if file.first_us is None or file.last_us is None:
        return False
    return (start is not None and file.last_us < microseconds_of(start)) or (
        end is not None and file.first_us >= microseconds_of(end)
    )


def _within(sealed: Mapping[int, int], cut: Cut, since: Cut) -> pl.Expr | None:
    """The condition that cuts sealed rows to (since, cut]; None when all that is sealed lies within."""
    conditions: list[pl.Expr] = []
    for lane, number in sealed.items():
        this = pl.col("lane") == lane
        if cut.last(lane) < number:
            conditions.append(~this | (pl.col("number").cast(pl.Int64) <= cut.last(lane)))
        if since.last(lane) >= 0:
            conditions.append(~this | (pl.col("number").cast(pl.Int64) > since.last(lane)))
    return pl.all_horizontal(conditions) if conditions else None
