"""The usage of a bill run as it is read from the log: folded by contract on the way where that can be, else as events.

Owns what is read, what is kept of it and what is known of late ones; where it is put is `usage_slices.py`, what is made
of it `bill_run_chunk.py`. Of customers who are billed in columns nothing but folded usage is kept. All customers need
the rows of the time that is due; few need older ones (usage that came late, contracts with long periods), and few need
their rows, by contract or as it turns out: those are read for them alone. So the log is read four times at most,
whatever the number of chunks. A first reading may be that of a group of partitions: what it finds (`Found`) holds for
all keys that lie there, and several of them together are what one reading of all would have found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime

import polars as pl

from billing import lateness
from billing.bill import events_needed_from
from billing.bill_columns import TEXT_DIGITS, late_owners, plain, usage_pieces
from billing.folded_usage import NO_USAGE, FoldedUsage, Folding, beyond_columns
from billing.lateness import reasons_of
from billing.master import MasterData
from billing.typed_columns import Reads, event_columns, with_typed
from billing.usage import EVENT_SCHEMA, INSTANT
from storage.object_store import ObjectStore
from storage.usage_log.backfills import earliest_backfilled, scan_sent
from storage.usage_log.counting import amendments_at, scan_counting
from storage.usage_log.genesis import open_log
from storage.usage_log.partitions import partitions_of
from storage.usage_log.reader import Cut, UsageLogReader

APART = 4  # who is billed one by one is read apart where he is at most one of so many: the others are read narrow
AT_ONCE = 2  # frames of the log that are judged and folded at the same time
FRESH_SCHEMA = pl.Schema({"key": pl.String, "time": INSTANT})  # per key the earliest event that no run has seen


@dataclass(frozen=True)
class Facts:
    """What a run's usage rests on."""

    tenant_id: str
    master: MasterData
    up_to: datetime
    now: datetime
    cut: Cut
    previous: Cut | None


@dataclass(frozen=True)
class ChunkUsage:
    """A chunk's usage that can be rated.

    `folded` is that of customers whose usage folds (`Plain.folding`), `events` that of the others and of those in
    `rest`. Complete from `needed_from` on for the customers in `rest` (who are billed one by one; None: from the
    beginning), and for the others in all that is due and not billed, which is from `due_from` on.
    """

    events: pl.DataFrame
    folded: FoldedUsage
    rest: tuple[str, ...]
    needed_from: datetime | None
    due_from: datetime | None


def read_usage(reader: UsageLogReader, facts: Facts, customers: Sequence[str]) -> ChunkUsage:
    """The usage of a single chunk, straight from the log."""
    chunk_of = dict.fromkeys(customers, 0)
    first = Collecting(reader, facts, chunk_of)
    frames = [frame.drop("chunk") for frame in first.frames()]
    rest = Completing(reader, facts, chunk_of, [first.found()])
    frames += [frame.drop("chunk") for frame in rest.frames()]
    (these,), (needed,) = rest.rest or [[]], rest.needed or [None]
    return ChunkUsage(events_together(frames), first.folded, tuple(these), needed, rest.due_from)


def read_events(reader: UsageLogReader, facts: Facts, customers: Sequence[str], start: datetime | None) -> pl.DataFrame:
    """The events of some customers from a time on that can be rated, out of the log."""
    master = with_cut_of_last_run(facts.master, facts.previous)
    keys = [key for customer in customers for key in master.keys_of(customer)]
    found: list[pl.DataFrame] = []
    for frame in scan_counting(reader, facts.tenant_id, facts.cut, customers=keys, start=start, typed=True):
        found.append(frame.filter(reasons_of(frame, master, facts.now).is_null()).select(event_columns(frame)))
    return events_together(found)


def events_together(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Events of several frames, which need not have the same typed columns."""
    return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame(schema=EVENT_SCHEMA)


# -- Reading the log ---------------------------------------------------------------------------------------------------


_NO_ROWS = pl.DataFrame(schema={"chunk": pl.UInt32, **EVENT_SCHEMA})
_KEYS_SCHEMA = pl.Schema({"key": pl.String, "chunk": pl.UInt32})


@dataclass(frozen=True)
class _Taken:
    """What a frame of the log came to: rows that are kept as they are, with their chunk, the rest folded."""

    kept: pl.DataFrame
    folded: FoldedUsage | None
    fresh: pl.DataFrame | None


@dataclass(frozen=True)
class Found:
    """What a first reading found, beside the rows it kept and the usage it folded.

    `rest` are billed one by one by contract, `turned` as it turned out (late usage, numbers beyond columns); of those
    in `folds` no row was kept. The rows that were kept are complete from `due_from` on, of keys in `group` (None: of
    all).
    """

    group: range | None
    rest: tuple[str, ...]
    turned: tuple[str, ...]
    folds: tuple[str, ...]
    fresh: pl.DataFrame
    due_from: datetime | None


class Collecting:
    """A first reading for customers and their chunks, of all their keys or of those in a group of partitions.

    `frames` gives the rows that are kept, with the chunk; when it is through the rest is known.
    """

    def __init__(
        self, reader: UsageLogReader, facts: Facts, chunk_of: Mapping[str, int], group: range | None = None
    ) -> None:
        self._reader, self._facts, self._group = reader, facts, group
        master = self._master = with_cut_of_last_run(facts.master, facts.previous)
        self._codes = list(chunk_of)
        self.plain = plain(master, self._codes, facts.up_to)
        pieces, self.of_piece = usage_pieces(master, self.plain)
        self._folding = Folding(master, [pieces])
        self.folded = NO_USAGE
        starts = self.plain.events_from
        self.due_from = None if _has_levels(master) else (facts.up_to if starts is None else starts)
        keys = keys_of(master, chunk_of)
        spanning = keys.clear()
        if group is not None:
            inside = is_inside(reader.store, facts.tenant_id, keys["key"], group)
            keys, spanning = keys.filter(inside), keys.filter(~inside)
        owners = self._folding.keys.select("key", "owner")
        # Whose other keys lie elsewhere: what was folded of him here is not all.
        self._spanning = set(spanning.join(self.plain.keys, on="key")["owner"].to_list())
        self._keys = keys.join(owners, on="key", how="left", maintain_order="left")  # owner: usage folds
        self._fresh = pl.DataFrame(schema=FRESH_SCHEMA)

    def frames(self) -> Iterator[pl.DataFrame]:
        """Rows of EVENT_SCHEMA and their chunk."""
        facts, main, narrow = self._facts, self.due_from, self._narrow()
        released = self._released()
        found: list[pl.DataFrame] = []
        # Two at a time: while one waits for a step that runs on one core the other goes on.
        with ThreadPoolExecutor(AT_ONCE, "usage") as pool:
            waiting: deque[Future[_Taken]] = deque()

            def done() -> pl.DataFrame:
                taken = waiting.popleft().result()
                if taken.folded is not None:
                    self._folding.add(taken.folded)
                if taken.fresh is not None:
                    found.append(taken.fresh)
                return taken.kept

            for frame in self._scanned(main, None, narrow):
                waiting.append(pool.submit(self._take, frame, released, keeps=narrow is None))
                if len(waiting) > AT_ONCE:
                    yield done()
            while waiting:
                yield done()
        if narrow is not None and (kept := self._keys.filter(pl.col("owner").is_null())["key"].to_list()):
            yield from kept_rows(self._reader, facts, self._keys, main, None, kept)
        if facts.previous is not None:
            found += self._fresh_before(facts.previous, main, released)
        if found:
            earliest = _earliest(pl.concat([frame.rename({"key": "customer"}) for frame in found]))
            self._fresh = earliest.join(self._keys, on="key", how="semi")
        (self.folded,) = self._folding.parts()

    def found(self) -> Found:
        """What was found when all frames are through."""
        one = self.plain
        turned = sorted(late_owners(one, self._fresh) | self._beyond())
        folding = dict(zip(one.customers, one.folding, strict=True))
        folds = tuple(code for code in turned if folding[code])
        return Found(self._group, one.rest, tuple(turned), folds, self._fresh, self.due_from)

    def _narrow(self) -> Reads | None:
        """What must be read of events, if few are kept as they are (these are read apart) and nobody asks for order."""
        book = self._master.rating_book()
        many_kept = self._keys["owner"].null_count() * APART > self._keys.height
        if many_kept or self._folding.reads_order or book.rejects_late:
            return None
        return book.reads_all

    def _take(self, frame: pl.DataFrame, released: Sequence[str], *, keeps: bool) -> _Taken:
        rated = judged(frame, self._keys, self._master, self._facts.now)
        fresh = None
        if self._facts.previous is not None:
            new = behind(rated, self._facts.previous)
            if released:
                new |= rated["customer"].is_in(released)
            fresh = _earliest(rated.filter(new))
        folds = rated["owner"].is_not_null()
        if folds.all():
            return _Taken(_NO_ROWS, self._folding.fold(rated), fresh)
        if not keeps:
            return _Taken(_NO_ROWS, self._folding.fold(rated.filter(folds)), fresh)
        columns = ["chunk", *event_columns(rated)]
        if not folds.any():
            return _Taken(rated.select(columns), None, fresh)
        return _Taken(rated.filter(~folds).select(columns), self._folding.fold(rated.filter(folds)), fresh)

    def _beyond(self) -> set[str]:
        """Customers of whose usage is seen before it is priced that columns will not do; not who has keys elsewhere."""
        owners = self.plain.contracts["owner"].gather(self.of_piece["contract"].gather(pieces_beyond(self.folded)))
        return {self.plain.customers[owner] for owner in set(owners) - self._spanning}

    def _scanned(self, start: datetime | None, end: datetime | None, narrow: Reads | None) -> Iterator[pl.DataFrame]:
        keys = self._keys["key"].to_list() if self._group is None else None
        facts = self._facts
        yield from scan_counting(
            self._reader, facts.tenant_id, facts.cut,
            customers=keys, partitions=self._group, start=start, end=end, typed=True, narrow=narrow,
        )  # fmt: skip

    def _fresh_before(self, previous: Cut, main: datetime | None, released: Sequence[str]) -> Iterator[pl.DataFrame]:
        """What came since the last run with a time before the time that is read for all, whether it counts or not."""
        facts, keys, group = self._facts, self._keys["key"], self._group
        if main is not None:
            for frame in scan_sent(
                self._reader, facts.tenant_id, facts.cut, since=previous, partitions=group, end=main
            ):
                yield _earliest(frame)
            if released:
                older = scan_counting(
                    self._reader, facts.tenant_id, facts.cut, customers=released, partitions=group, end=main
                )
                for frame in older:
                    yield _earliest(frame)
        amended = amendments_at(self._reader, facts.tenant_id, facts.cut)[0].times
        if amended.height:
            yield _earliest(amended.filter(behind(amended, previous)).rename({"key": "customer"}))
        earliest = earliest_backfilled(self._reader, facts.tenant_id, previous, facts.cut, keys.to_list())
        if earliest is not None:  # rare: of whom it is matters less than that nobody is left out
            yield self._keys.select("key", pl.lit(earliest, INSTANT).alias("time")).match_to_schema(FRESH_SCHEMA)

    def _released(self) -> list[str]:
        if self._facts.previous is None:
            return []
        master = self._master
        return [key for code in released(master, self._codes) for key in master.keys_of(code)]


def keys_of(master: MasterData, chunk_of: Mapping[str, int]) -> pl.DataFrame:
    """The keys of customers, and the chunk of each."""
    rows = [(key, chunk) for code, chunk in chunk_of.items() for key in master.keys_of(code)]
    return pl.DataFrame(rows, schema=_KEYS_SCHEMA, orient="row")


def is_inside(store: ObjectStore, tenant_id: str, keys: pl.Series, group: range) -> pl.Series:
    """Which customer keys have their partition in a group."""
    partitions = pl.Series(partitions_of(open_log(store).seed, tenant_id, keys), dtype=pl.UInt16)
    return (partitions >= group.start) & (partitions < group.stop)


def pieces_beyond(folded: FoldedUsage) -> pl.Series:
    """Pieces, by place, of which is known before they are priced that columns will not do."""
    return beyond_columns(folded, TEXT_DIGITS)


def judged(frame: pl.DataFrame, keys: pl.DataFrame, master: MasterData, now: datetime) -> pl.DataFrame:
    """The rows of these keys that can be rated, with chunk and owner, and typed: they are read again."""
    found = frame.select("customer").join(keys, left_on="customer", right_on="key", how="left", maintain_order="left")
    owned = frame.with_columns(found["chunk"], found["owner"])  # joined as a whole it would be copied
    if found["chunk"].null_count():
        owned = owned.filter(found["chunk"].is_not_null())
    owned = with_typed(owned, master.rating_book().reads_all)
    reasons = reasons_of(owned, master, now, known=True)
    return owned.filter(reasons.is_null()) if reasons.null_count() < reasons.len() else owned


def kept_rows(
    reader: UsageLogReader,
    facts: Facts,
    keys: pl.DataFrame,
    start: datetime | None,
    end: datetime | None,
    chosen: Sequence[str],
) -> Iterator[pl.DataFrame]:
    """Rows of EVENT_SCHEMA and their chunk of some of the keys (key, chunk, owner), as they are."""
    master = with_cut_of_last_run(facts.master, facts.previous)
    for frame in scan_counting(reader, facts.tenant_id, facts.cut, customers=chosen, start=start, end=end, typed=True):
        rated = judged(frame, keys, master, facts.now)
        yield rated.select("chunk", *event_columns(rated))


class Completing:
    """Puts together what first readings found: who is billed one by one, since when his events are needed, and these.

    What was kept by the first readings is not read again.
    """

    def __init__(
        self, reader: UsageLogReader, facts: Facts, chunk_of: Mapping[str, int], found: Sequence[Found]
    ) -> None:
        self._reader, self._facts, self._found = reader, facts, found
        master = self._master = with_cut_of_last_run(facts.master, facts.previous)
        codes = {code for one in found for code in (*one.rest, *one.turned)}
        self.rest: list[list[str]] = [[] for _ in range(max(chunk_of.values(), default=-1) + 1)]
        for code in sorted(codes):
            self.rest[chunk_of[code]].append(code)
        self._keys = keys_of(master, {code: chunk_of[code] for code in codes}).with_columns(
            owner=pl.lit(None, pl.UInt32)
        )
        self._again = [key for code in {code for one in found for code in one.folds} for key in master.keys_of(code)]
        dues = [one.due_from for one in found]
        self.due_from = None if None in dues else min((due for due in dues if due is not None), default=None)
        self.needed = self._needed(pl.concat([one.fresh for one in found])) if found else [None] * len(self.rest)

    def _needed(self, fresh: pl.DataFrame) -> list[datetime | None]:
        """By chunk, from when on the events of those who are billed one by one are needed."""
        if _has_levels(self._master):
            return [None] * len(self.rest)
        late = fresh.join(self._keys, on="key").group_by("chunk").agg(pl.col("time").min())
        since: dict[int, datetime] = dict(late.iter_rows())
        return [
            events_needed_from(self._master, rest, self._facts.up_to, since.get(chunk)) if rest else None
            for chunk, rest in enumerate(self.rest)
        ]

    def frames(self) -> Iterator[pl.DataFrame]:
        """Rows that no first reading kept: of time before what is due, and of those who turned out, all they need."""
        facts = self._facts
        older = self._keys.filter(~pl.col("key").is_in(self._again))
        for one in self._found:
            due = one.due_from
            wanted = {chunk: needed for chunk, needed in enumerate(self.needed) if needed and due and needed < due}
            keys = older.filter(pl.col("chunk").is_in(list(wanted)))["key"]
            if one.group is not None:
                keys = keys.filter(is_inside(self._reader.store, facts.tenant_id, keys, one.group))
            if keys.len():
                yield from kept_rows(self._reader, facts, self._keys, min(wanted.values()), due, keys.to_list())
        if self._again:
            starts = [one.due_from for one in self._found]
            starts += [needed for needed in self.needed if needed is not None]
            start = None if None in starts else min(moment for moment in starts if moment is not None)
            yield from kept_rows(self._reader, facts, self._keys, start, None, sorted(self._again))


def _has_levels(master: MasterData) -> bool:
    """Whether a level may carry over from long ago, so that all events are needed."""
    return any(meter.aggregation == "time_weighted_sum" for meter in master.meters.values())


def _earliest(frame: pl.DataFrame) -> pl.DataFrame:
    """Of FRESH_SCHEMA: the earliest time of each customer key."""
    return frame.group_by(pl.col("customer").alias("key")).agg(pl.col("time").min()).match_to_schema(FRESH_SCHEMA)


def with_cut_of_last_run(master: MasterData, previous: Cut | None) -> MasterData:
    """What is late says each finalised run's own cut; `previous` is that of a last run that did not note its own."""
    if previous is None or not master.runs or master.runs[-1].cut is not None:
        return master
    last = replace(master.runs[-1], cut=previous.positions)
    return replace(master, runs=(*master.runs[:-1], last))


def behind(frame: pl.DataFrame, previous: Cut) -> pl.Series:
    """Which rows lie behind a cut: positions decide what is new, never times."""
    return lateness.behind(frame, previous.positions)


def released(master: MasterData, customers: Sequence[str]) -> Sequence[str]:
    """Customers whose old events may have left suspense since the last run: master data that they lacked has come.

    Such an event lies before the last cut, so its position does not tell that it is new to billing.
    """
    seen = master.runs[-1].steps if master.runs else 0
    # Whoever the last run parked is looked at whole: what came for him before its cut is not billed either.
    found: set[str] = set(master.runs[-1].parked) if master.runs else set()
    for number, step in master.log:
        if number <= seen:
            continue
        if "meter" in step or "publish" in step:
            return customers
        for kind in ("customer", "subscribe", "change", "resume"):
            if kind in step:
                form = step[kind]
                subscription = master.subscriptions.get(str(form.get("subscription")))
                owner = form.get("customer") if kind == "subscribe" else form.get("code")
                found.add(str(subscription.customer if subscription else owner))
    return [customer for customer in customers if customer in found]
