"""The usage of a bill run: read once from the log, folded by contract on the way, put into the object store by chunk.

Owns which rows a chunk is given and what is known of late ones; what is made of them is `bill_run_chunk.py`. Of
customers who are billed in columns nothing but folded usage is kept; the rows of all others are cut into slices. All
customers need the rows of the time that is due; few need older ones (usage that came late, contracts with long
periods), and few need their rows, by contract or as it turns out: those are read for them alone. So the log is read
four times at most, whatever the number of chunks.

Two readings of one cut give the same rows, but not in the same order (what was sealed meanwhile lies elsewhere): slices
of two attempts must never be mixed. Each attempt puts its slices under names of its own, and the index that names them
is put once.
"""

from __future__ import annotations

import io
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import uuid4

import msgspec
import polars as pl

from billing import lateness
from billing.bill import events_needed_from
from billing.bill_columns import TEXT_DIGITS, late_owners, plain, usage_pieces
from billing.folded_usage import FOLDED_FORM, FoldedUsage, Folding, beyond_columns
from billing.lateness import reasons_of
from billing.master import MasterData
from billing.typed_columns import Reads, event_columns, with_typed
from billing.usage import EVENT_SCHEMA, INSTANT
from storage.object_store import ObjectStore
from storage.usage_log.backfills import earliest_backfilled, scan_sent
from storage.usage_log.counting import amendments_at, scan_counting
from storage.usage_log.reader import Cut, UsageLogReader

SLICE_ROWS = 2_000_000  # rows that are gathered before they are cut into slices: bounds the memory of a gathering
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
    """A chunk's usage that can be rated; `fresh` (FRESH_SCHEMA) are events of its keys that no run has seen.

    `folded` is that of customers whose usage folds (`Plain.folding`), `events` that of the others and of those in
    `rest`. Complete from `needed_from` on for the customers in `rest` (who are billed one by one; None: from the
    beginning), and for the others in all that is due and not billed, which is from `due_from` on.
    """

    events: pl.DataFrame
    folded: FoldedUsage
    fresh: pl.DataFrame
    rest: tuple[str, ...]
    needed_from: datetime | None
    due_from: datetime | None


def read_usage(reader: UsageLogReader, facts: Facts, customers: Sequence[str]) -> ChunkUsage:
    """The usage of a single chunk, straight from the log."""
    collected = _Collecting(reader, facts, [customers])
    events = _together([frame.drop("chunk") for frame in collected.frames()])
    (rest,), (needed,), (folded,) = collected.rest, collected.needed, collected.folded
    return ChunkUsage(events, folded, collected.fresh_of(0), rest, needed, collected.due_from)


def read_events(reader: UsageLogReader, facts: Facts, customers: Sequence[str], start: datetime | None) -> pl.DataFrame:
    """The events of some customers from a time on that can be rated, out of the log."""
    master = with_cut_of_last_run(facts.master, facts.previous)
    keys = [key for customer in customers for key in master.keys_of(customer)]
    found: list[pl.DataFrame] = []
    for frame in scan_counting(reader, facts.tenant_id, facts.cut, customers=keys, start=start, typed=True):
        found.append(frame.filter(reasons_of(frame, master, facts.now).is_null()).select(event_columns(frame)))
    return _together(found)


# -- Slices ------------------------------------------------------------------------------------------------------------


class _Index(msgspec.Struct, frozen=True):
    """Which objects hold the slices of each chunk, and what was found of its customers."""

    slices: list[list[str]]
    folded: list[dict[str, str]]
    fresh: list[str]
    rest: list[list[str]]
    needed: list[datetime | None]
    due_from: datetime | None


# What another version folded is not read: it is gathered again.
_INDEX = f"index-{FOLDED_FORM}.json"


def gather(store: ObjectStore, facts: Facts, chunks: Sequence[Sequence[str]], prefix: str) -> None:
    """Put the slices of all chunks below `prefix`; harmless when they are there, or when another process does it."""
    index = f"{prefix}{_INDEX}"
    if store.exists(index):
        return
    attempt = f"{prefix}{uuid4().hex}/"
    collected = _Collecting(UsageLogReader(store), facts, chunks)
    slices: list[list[str]] = [[] for _ in chunks]
    waiting: list[pl.DataFrame] = []
    rows = 0
    count = itertools.count()

    def put() -> None:
        frame = pl.concat(waiting, how="diagonal_relaxed")
        waiting.clear()
        number = next(count)
        for (chunk,), part in frame.partition_by("chunk", as_dict=True, maintain_order=True).items():
            key = f"{attempt}{number:05}-{int(chunk):06}.parquet"
            store.create(key, _parquet(part.drop("chunk")))
            slices[int(chunk)].append(key)

    for frame in collected.frames():
        if not frame.height:
            continue
        waiting.append(frame)
        rows += frame.height
        if rows >= SLICE_ROWS:
            put()
            rows = 0
    if waiting:
        put()
    fresh: list[str] = []
    folded: list[dict[str, str]] = []
    for chunk, usage in enumerate(collected.folded):
        kept = {name: frame for name, frame in usage.frames().items() if frame.height}
        folded.append({name: f"{attempt}{name}-{chunk:06}.parquet" for name in kept})
        for name, key in folded[-1].items():
            store.create(key, _parquet(kept[name]))
    for chunk in range(len(chunks)):
        fresh.append(f"{attempt}fresh-{chunk:06}.parquet")
        store.create(fresh[-1], _parquet(collected.fresh_of(chunk)))
    rest = [list(customers) for customers in collected.rest]
    found = _Index(slices, folded, fresh, rest, collected.needed, collected.due_from)
    if not store.create(index, msgspec.json.encode(found)):
        for key in store.list(attempt):  # another attempt was first: its slices count, ours go
            store.delete(key)


def sliced(store: ObjectStore, prefix: str, chunk: int) -> ChunkUsage:
    """A chunk's usage out of what was gathered."""
    data = store.get(f"{prefix}{_INDEX}")
    assert data is not None, "usage is gathered before chunks are computed"
    index = msgspec.json.decode(data, type=_Index)
    events = _together([_frame(store, key) for key in index.slices[chunk]])
    folded = FoldedUsage.of_frames({name: _frame(store, key) for name, key in index.folded[chunk].items()})
    fresh = _frame(store, index.fresh[chunk])
    return ChunkUsage(events, folded, fresh, tuple(index.rest[chunk]), index.needed[chunk], index.due_from)


def forget(store: ObjectStore, prefix: str) -> None:
    """Delete what was gathered, the indexes first: nobody finds half of it."""
    keys = list(store.list(prefix))
    for key in sorted(keys, key=lambda key: not key.startswith(f"{prefix}index")):
        store.delete(key)


def _together(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Events of several frames, which need not have the same typed columns."""
    return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame(schema=EVENT_SCHEMA)


def _parquet(frame: pl.DataFrame) -> bytes:
    out = io.BytesIO()
    frame.write_parquet(out, compression="lz4", statistics=False)
    return out.getvalue()


def _frame(store: ObjectStore, key: str) -> pl.DataFrame:
    data = store.get(key)
    assert data is not None, f"{key} is named by an index and not there"
    return pl.read_parquet(io.BytesIO(data))


# -- Reading the log ---------------------------------------------------------------------------------------------------


_NO_ROWS = pl.DataFrame(schema={"chunk": pl.UInt32, **EVENT_SCHEMA})


@dataclass(frozen=True)
class _Taken:
    """What a frame of the log came to: rows that are kept as they are, with their chunk, the rest folded."""

    kept: pl.DataFrame
    folded: FoldedUsage | None
    fresh: pl.DataFrame | None


class _Collecting:
    """One reading for all chunks: `frames` gives rows that are kept, with the chunk; the rest is known afterwards."""

    def __init__(self, reader: UsageLogReader, facts: Facts, chunks: Sequence[Sequence[str]]) -> None:
        self._reader, self._facts, self._chunks = reader, facts, chunks
        master = self._master = with_cut_of_last_run(facts.master, facts.previous)
        self._levels = any(meter.aggregation == "time_weighted_sum" for meter in master.meters.values())
        self._plain = [plain(master, customers, facts.up_to) for customers in chunks]
        self._pieces = [usage_pieces(master, one) for one in self._plain]
        self._folding = Folding(master, [pieces for pieces, _ in self._pieces])
        self.folded: list[FoldedUsage] = []
        self.rest: list[tuple[str, ...]] = [one.rest for one in self._plain]
        self.needed: list[datetime | None] = [None] * len(chunks)
        starts = [one.events_from for one in self._plain if one.events_from is not None]
        self.due_from = None if self._levels else min(starts, default=facts.up_to)
        rows = [(key, chunk) for chunk, codes in enumerate(chunks) for code in codes for key in master.keys_of(code)]
        keys = pl.DataFrame(rows, schema={"key": pl.String, "chunk": pl.UInt32}, orient="row")
        self._keys = keys.join(self._folding.keys, on="key", how="left", maintain_order="left")  # owner: usage folds
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

            for frame in self._scanned(main, None, None, narrow):
                waiting.append(pool.submit(self._take, frame, released, keeps=narrow is None))
                if len(waiting) > AT_ONCE:
                    yield done()
            while waiting:
                yield done()
        if narrow is not None and (kept := self._keys.filter(pl.col("owner").is_null())["key"].to_list()):
            yield from self._kept(main, None, kept)
        if facts.previous is not None:
            found += self._fresh_before(facts.previous, main, released)
        self._fresh = (
            _earliest(pl.concat([frame.rename({"key": "customer"}) for frame in found])) if found else self._fresh
        )
        self.folded = self._folding.parts()
        before = [set(rest) for rest in self.rest]
        self._choose()
        if main is not None:
            yield from self._older(main)
        yield from self._unfolded(main, before)

    def _narrow(self) -> Reads | None:
        """What must be read of events, if few are kept as they are (these are read apart) and nobody asks for order."""
        book = self._master.rating_book()
        many_kept = self._keys["owner"].null_count() * APART > self._keys.height
        if many_kept or self._folding.reads_order or book.rejects_late:
            return None
        return book.reads_all

    def _take(self, frame: pl.DataFrame, released: Sequence[str], *, keeps: bool) -> _Taken:
        rated = self._judged(frame)
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

    def fresh_of(self, chunk: int) -> pl.DataFrame:
        return self._fresh.join(self._keys.filter(pl.col("chunk") == chunk), on="key", how="semi")

    def _beyond(self, chunk: int) -> set[str]:
        """Customers of whose usage is seen before it is priced that columns will not do."""
        one, (_, of_piece) = self._plain[chunk], self._pieces[chunk]
        pieces = beyond_columns(self.folded[chunk], TEXT_DIGITS)
        contracts = of_piece["contract"].gather(pieces).unique()
        return set(one.contracts["customer"].gather(contracts))

    def _scanned(
        self, start: datetime | None, end: datetime | None, keys: list[str] | None, narrow: Reads | None = None
    ) -> Iterator[pl.DataFrame]:
        facts = self._facts
        if keys is None and len(self._chunks) == 1:
            keys = self._keys["key"].to_list()
        yield from scan_counting(
            self._reader, facts.tenant_id, facts.cut, customers=keys, start=start, end=end, typed=True, narrow=narrow
        )

    def _judged(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows of these customers that can be rated, with chunk and owner, and typed: they are read again."""
        found = frame.select("customer").join(
            self._keys, left_on="customer", right_on="key", how="left", maintain_order="left"
        )
        owned = frame.with_columns(found["chunk"], found["owner"])  # joined as a whole it would be copied
        if found["chunk"].null_count():
            owned = owned.filter(found["chunk"].is_not_null())
        owned = with_typed(owned, self._master.rating_book().reads_all)
        reasons = reasons_of(owned, self._master, self._facts.now, known=True)
        return owned.filter(reasons.is_null()) if reasons.null_count() < reasons.len() else owned

    def _kept(self, start: datetime | None, end: datetime | None, keys: list[str]) -> Iterator[pl.DataFrame]:
        for frame in self._scanned(start, end, keys):
            rated = self._judged(frame)
            yield rated.select("chunk", *event_columns(rated))

    def _fresh_before(self, previous: Cut, main: datetime | None, released: Sequence[str]) -> Iterator[pl.DataFrame]:
        """What came since the last run with a time before the time that is read for all, whether it counts or not."""
        facts, keys = self._facts, self._keys["key"]
        if main is not None:
            for frame in scan_sent(self._reader, facts.tenant_id, facts.cut, since=previous, end=main):
                yield _earliest(frame)
            if released:
                older = scan_counting(self._reader, facts.tenant_id, facts.cut, customers=released, end=main)
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
        codes = released(master, [code for codes in self._chunks for code in codes])
        return [key for code in codes for key in master.keys_of(code)]

    def _choose(self) -> None:
        """Who has late usage is billed one by one, and of those the time from which on their events are needed."""
        for chunk, one in enumerate(self._plain):
            fresh = self.fresh_of(chunk)
            rest = self.rest[chunk] = tuple(sorted({*one.rest, *late_owners(one, fresh), *self._beyond(chunk)}))
            if self._levels or not rest:
                continue
            keys = [key for customer in rest for key in self._master.keys_of(customer)]
            late_since = fresh.filter(pl.col("key").is_in(keys))["time"].min()
            assert late_since is None or isinstance(late_since, datetime)
            self.needed[chunk] = events_needed_from(self._master, rest, self._facts.up_to, late_since)

    def _older(self, main: datetime) -> Iterator[pl.DataFrame]:
        """What the customers who are billed one by one need of the time before."""
        wanted = {
            chunk: needed
            for chunk, needed in enumerate(self.needed)
            if needed is not None and self.rest[chunk] and needed < main
        }
        if not wanted:
            return
        keys = [key for chunk in wanted for code in self.rest[chunk] for key in self._master.keys_of(code)]
        yield from self._kept(min(wanted.values()), main, keys)

    def _unfolded(self, main: datetime | None, before: Sequence[set[str]]) -> Iterator[pl.DataFrame]:
        """The rows of those who turned out to be billed one by one when their usage was folded already."""
        turned = pl.DataFrame(
            [
                (key,)
                for rest, known in zip(self.rest, before, strict=True)
                for code in rest
                if code not in known
                for key in self._master.keys_of(code)
            ],
            schema={"key": pl.String},
            orient="row",
        )
        keys = self._keys.filter(pl.col("owner").is_not_null()).join(turned, on="key", how="semi")["key"].to_list()
        if keys:
            yield from self._kept(main, None, keys)


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
