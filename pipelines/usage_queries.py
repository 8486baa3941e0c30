"""Questions about usage: quantities by meter and day, what is in suspense and why, what a customer owes so far.

Owns the reading side of one process: per tenant a folded view of the log that is carried on from cut to cut, so a
question reads only what came since the last one. Folding, rating and pricing are `billing/`; a figure here is made by
the functions that bill it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from threading import Lock
from zoneinfo import ZoneInfo

import polars as pl

from billing.amendments import Amended
from billing.bill import bill, events_needed_from
from billing.contracts import spans_of
from billing.documents import Line
from billing.lateness import reasons_of
from billing.live_state import LiveState, fold_days, merge_live, nothing_used
from billing.master import MasterData
from billing.meters import MeterState, finish, regroup
from billing.periods import midnight
from billing.usage_now import UsageNow, needed_from, says_all, usage_now, usage_now_live
from pipelines.bill_run_chunk import rateable
from pipelines.usage_proof import Proof, prove_usage
from pipelines.usage_ranking import Question, Ranking, ranking
from storage.sql import invoices
from storage.sql.database import Database
from storage.usage_log.backfills import changed_backfills
from storage.usage_log.counting import amendments_at, scan_counting
from storage.usage_log.reader import Cut, UsageLogReader

TENANTS_MAX = 32  # whose views a process keeps
ANSWERS_MAX = 256  # "so far" of customers that are kept until the log or the master data moves
EXAMPLES_MAX = 3  # of events in suspense by reason
FUTURE_FRESH = timedelta(minutes=1)  # a view with events ahead of time is made again after this
DAYS_MAX = 400  # of one question
ZERO = Decimal(0)


@dataclass(frozen=True)
class MeterDay:
    """One meter on one local day. `quantity` is None where it is no decimal number of 38 digits."""

    meter: str
    day: date
    events: int
    quantity: Decimal | None


@dataclass(frozen=True)
class DayCount:
    """Events by their local day: stored = rated + suspended + voided; an amended one counts once, as it is now."""

    day: date
    stored: int
    suspended: int
    voided: int = 0

    @property
    def rated(self) -> int:
        return self.stored - self.suspended - self.voided


@dataclass(frozen=True)
class Suspense:
    """How many events wait for the same reason, with a few of them as `source id (customer, type)`."""

    reason: str
    events: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class SoFar:
    """Lines as the engine would bill them if the open periods ended now; `parked` says why it could not."""

    lines: tuple[Line, ...]
    currencies: tuple[str, ...]
    as_of: datetime
    parked: str = ""


@dataclass
class _View:
    """The folded log of one tenant up to a cut."""

    cut: Cut
    master_number: int
    made_at: datetime
    live: LiveState
    counts: pl.DataFrame  # key, day, stored, suspended, voided
    suspense: pl.DataFrame  # reason, events, examples
    future: bool = False
    lock: Lock = field(default_factory=Lock)


# What the shards have folded of a tenant's customer keys, by master data (the number of it is named) that is as new or
# newer; None if they cannot say.
AskShards = Callable[[str, Sequence[str], int, MasterData], LiveState | None]


class UsageQueries:
    """One per process; safe for threads. With `ask_shards` what runs now is asked of them where they can say it."""

    def __init__(self, reader: UsageLogReader, database: Database, ask_shards: AskShards | None = None) -> None:
        self._reader = reader
        self._database = database
        self._ask_shards = ask_shards
        self._views: OrderedDict[str, _View] = OrderedDict()
        self._answers: OrderedDict[tuple[str, str], tuple[tuple[object, ...], SoFar]] = OrderedDict()
        self._running: OrderedDict[tuple[str, str], tuple[tuple[object, ...], UsageNow]] = OrderedDict()
        self._locks: dict[str, Lock] = {}
        self._lock = Lock()

    # -- questions -----------------------------------------------------------------------------------------------------

    def by_day(
        self,
        tenant_id: str,
        master: MasterData,
        first: date,
        last: date,
        now: datetime,
        *,
        keys: Sequence[str] | None = None,
    ) -> list[MeterDay]:
        """Events and quantity of each meter on each local day from first to last, of some customer keys or of all."""
        assert (last - first).days < DAYS_MAX, "a question is about a bounded time"
        view = self._view(tenant_id, master, now)
        timezone = master.tenant.timezone
        start, end = midnight(first, timezone), midnight(last + timedelta(days=1), timezone)
        chosen = pl.col("measure") == ""
        if keys is not None:
            chosen &= pl.col("key").is_in(list(keys))
        state = MeterState(*(view.live.state.by,), *(
            frame.filter(chosen) for frame in (view.live.state.small, view.live.state.sets, view.live.state.runs)
        ))  # fmt: skip
        aggregation = {meter.code: meter.aggregation for meter in master.meters.values()}
        levels = [code for code, kind in aggregation.items() if kind == "time_weighted_sum"]
        within = (pl.col("at") >= start) & (pl.col("at") < end)
        plain = _filtered(state, within & ~pl.col("meter").is_in(levels))
        found = _quantities(_with_days(plain, timezone), aggregation)
        if levels:
            found += _levels(_filtered(state, pl.col("meter").is_in(levels)), first, last, timezone, now)
        return sorted(found, key=lambda one: (one.meter, one.day))

    def ranking(self, tenant_id: str, master: MasterData, asked: Question, now: datetime) -> Ranking:
        """Who or what used most of a meter (`pipelines/usage_ranking.py`)."""
        return ranking(master, self._view(tenant_id, master, now).live, asked)

    def completeness(
        self, tenant_id: str, master: MasterData, first: date, last: date, now: datetime
    ) -> list[DayCount]:
        """Stored and suspended events on each local day from first to last; days without events are left out."""
        view = self._view(tenant_id, master, now)
        rows = (
            view.counts.filter(pl.col("day").is_between(first, last))
            .group_by("day")
            .agg(pl.col("stored").sum(), pl.col("suspended").sum(), pl.col("voided").sum())
            .sort("day")
        )
        return [DayCount(**row) for row in rows.iter_rows(named=True)]

    def suspense(self, tenant_id: str, master: MasterData, now: datetime) -> list[Suspense]:
        """What cannot be rated now, by reason, most first."""
        view = self._view(tenant_id, master, now)
        rows = view.suspense.sort("events", descending=True)
        return [
            Suspense(row["reason"], row["events"], tuple(row["examples"][:EXAMPLES_MAX]))
            for row in rows.iter_rows(named=True)
        ]

    def stored(self, tenant_id: str, master: MasterData, now: datetime) -> int:
        """How many events are stored in all."""
        return int(self._view(tenant_id, master, now).counts["stored"].sum())

    def voided(self, tenant_id: str, master: MasterData, now: datetime) -> int:
        """How many of them were voided."""
        return int(self._view(tenant_id, master, now).counts["voided"].sum())

    def prove(self, tenant_id: str, master: MasterData, now: datetime) -> Proof:
        """Read the tenant's whole log again, whatever was folded of it before (`pipelines/usage_proof.py`)."""
        return prove_usage(self._reader, tenant_id, master, now)

    def months(self, tenant_id: str, master: MasterData, now: datetime) -> list[date]:
        """The first days of the months that have events, newest first."""
        days = self._view(tenant_id, master, now).counts["day"]
        return sorted({day.replace(day=1) for day in days}, reverse=True)

    def so_far(self, tenant_id: str, master_number: int, master: MasterData, customer: str, now: datetime) -> SoFar:
        """What the customer's open periods would bill if they ended now, line by line, by the engine itself."""
        if not master.subscriptions_of.get(customer):
            return SoFar((), (), now)
        live = self._folded(tenant_id, master_number, master, customer, now)
        if live is not None:
            return self._so_far(tenant_id, master, customer, now, live)
        cut = self._reader.now()
        state = (tuple(sorted(cut.positions.items())), master_number, now.replace(second=0, microsecond=0))
        with self._lock:
            known = self._answers.get((tenant_id, customer))
        if known is not None and known[0] == state:
            return known[1]
        answer = self._so_far(tenant_id, master, customer, now, cut)
        with self._lock:
            self._answers[tenant_id, customer] = (state, answer)
            self._answers.move_to_end((tenant_id, customer))
            while len(self._answers) > ANSWERS_MAX:
                self._answers.popitem(last=False)
        return answer

    def running(
        self, tenant_id: str, master_number: int, master: MasterData, customer: str, now: datetime, *, exact: bool
    ) -> UsageNow:
        """Usage and cost of a customer's running periods, by the shards if they can say.

        Answers from the log are kept until log, master data or minute move; with `exact` (a test clock moves by any
        step) until the clock does.
        """
        if self._ask_shards is not None:
            live = self._ask_shards(tenant_id, list(master.keys_of(customer)), master_number, master)
            found = None if live is None else usage_now_live(master, customer, now, live)
            if found is not None:
                return found
        cut = self._reader.now()
        minute = now if exact else now.replace(second=0, microsecond=0)
        state = (tuple(sorted(cut.positions.items())), master_number, minute)
        with self._lock:
            known = self._running.get((tenant_id, customer))
        if known is not None and known[0] == state:
            return known[1]
        start = needed_from(master, customer, now)
        keys = list(master.keys_of(customer))
        events = rateable(self._reader, tenant_id, master, cut, None, now, keys=keys, start=start)
        answer = usage_now(master, customer, now, events)
        with self._lock:
            self._running[tenant_id, customer] = (state, answer)
            self._running.move_to_end((tenant_id, customer))
            while len(self._running) > ANSWERS_MAX:
                self._running.popitem(last=False)
        return answer

    def _folded(
        self, tenant_id: str, master_number: int, master: MasterData, customer: str, now: datetime
    ) -> LiveState | None:
        """What the shards have folded of a customer, if that counts in bills as the events do."""
        if self._ask_shards is None or any(one.aggregation == "time_weighted_sum" for one in master.meters.values()):
            return None
        live = self._ask_shards(tenant_id, list(master.keys_of(customer)), master_number, master)
        return live if live is not None and says_all(master, live, now, None) else None

    def _so_far(
        self, tenant_id: str, master: MasterData, customer: str, now: datetime, usage: Cut | LiveState
    ) -> SoFar:
        """`usage`: up to where the log counts, or what the shards have folded."""
        up_to = _open_until(master, customer, now)
        events_from: datetime | None = None
        if not any(meter.is_carried for meter in master.meters.values()):
            events_from = events_needed_from(master, [customer], up_to)
        events: pl.DataFrame | LiveState
        if isinstance(usage, LiveState):
            events = usage
        else:
            keys = list(master.keys_of(customer))
            events = rateable(self._reader, tenant_id, master, usage, None, now, keys=keys, start=events_from, end=now)
        with self._database.tenant(tenant_id) as connection:
            family = master.family(customer)  # his lines are on the documents of who pays, or paid, for him
            whole = family if master.needs_all_documents(customer) else ()
            billed = invoices.billed(connection, family, events_from, whole)
        result = bill(master, [customer], up_to=up_to, now=now, billed=billed, events=events, events_from=events_from)
        lines: list[Line] = []
        currencies: list[str] = []
        for document in result.documents:
            sign = -1 if document.type == "credit_note" else 1
            assert sign == 1 or document.type == "credit_note"
            for line in document.lines:
                if line.start < now:
                    lines.append(line)
                    currencies.append(document.currency)
        return SoFar(tuple(lines), tuple(currencies), now, result.parked[0].reason if result.parked else "")

    # -- the view ------------------------------------------------------------------------------------------------------

    def _view(self, tenant_id: str, master: MasterData, now: datetime) -> _View:
        with self._lock:
            lock = self._locks.setdefault(tenant_id, Lock())
        with lock:
            known = self._views.get(tenant_id)
            cut = self._reader.now()
            stale = known is None or known.master_number != master.step_count
            if known is not None and known.future and now - known.made_at > FUTURE_FRESH:
                stale = True  # what was ahead of time may be rateable by now
            if known is None or stale or self._amended_since(tenant_id, cut, known.cut):
                view = self._carry_on(_empty(master, now), tenant_id, master, cut, now)
            elif known.cut.positions == cut.positions:
                return known
            else:
                view = self._carry_on(known, tenant_id, master, cut, now)
            with self._lock:
                self._views[tenant_id] = view
                self._views.move_to_end(tenant_id)
                while len(self._views) > TENANTS_MAX:
                    self._views.popitem(last=False)
            return view

    def _amended_since(self, tenant_id: str, cut: Cut, since: Cut) -> bool:
        """Whether events before a cut were changed after it: then what was folded counts no more."""
        if since.positions == cut.positions:
            return False
        if changed_backfills(self._reader, tenant_id, since, cut):
            return True
        return amendments_at(self._reader, tenant_id, cut, since=since)[1].height > 0

    def _frames(self, tenant_id: str, cut: Cut, since: Cut) -> Iterator[pl.DataFrame]:
        """Events as they count; all, or those that came after a cut. Amendments never lie before their events."""
        if since.positions:
            yield from (frame for frame in self._reader.scan(tenant_id, cut, since=since) if frame.height)
        else:
            yield from scan_counting(self._reader, tenant_id, cut)

    def _carry_on(self, view: _View, tenant_id: str, master: MasterData, cut: Cut, now: datetime) -> _View:
        book = master.rating_book()
        live, counts, suspense, future = view.live, [view.counts], [view.suspense], view.future
        zone = master.tenant.timezone
        if not view.cut.positions:
            counts.append(_voided(amendments_at(self._reader, tenant_id, cut)[0], zone))
        for frame in self._frames(tenant_id, cut, view.cut):
            reasons = reasons_of(frame, master, now).cast(pl.String).alias("reason")
            frame = frame.with_columns(reasons, day=pl.col("time").dt.convert_time_zone(zone).dt.date())
            live = merge_live(live, fold_days(frame.filter(pl.col("reason").is_null()), book))
            counts.append(
                frame.group_by(pl.col("customer").alias("key"), "day").agg(
                    pl.len().cast(pl.Int64).alias("stored"),
                    pl.col("reason").is_not_null().sum().cast(pl.Int64).alias("suspended"),
                    pl.lit(0, pl.Int64).alias("voided"),
                )
            )
            waiting = frame.filter(pl.col("reason").is_not_null())
            future = future or bool((waiting["reason"] == "future").any())
            suspense.append(
                waiting.group_by("reason").agg(
                    pl.len().cast(pl.Int64).alias("events"),
                    pl.format("{} {} ({}, {})", "source", "id", "customer", "type")
                    .head(EXAMPLES_MAX)
                    .alias("examples"),
                )
            )
        return _View(
            cut,
            master.step_count,
            view.made_at,
            live,
            pl.concat(counts)
            .group_by("key", "day")
            .agg(pl.col("stored").sum(), pl.col("suspended").sum(), pl.col("voided").sum()),
            pl.concat(suspense)
            .group_by("reason")
            .agg(pl.col("events").sum(), pl.col("examples").list.explode(keep_nulls=False, empty_as_null=False)),
            future,
        )


_COUNTS = pl.Schema({"key": pl.String, "day": pl.Date, "stored": pl.Int64, "suspended": pl.Int64, "voided": pl.Int64})
_SUSPENSE = pl.Schema({"reason": pl.String, "events": pl.Int64, "examples": pl.List(pl.String)})


def _voided(amended: Amended, zone: str) -> pl.DataFrame:
    """Voided events under the key and on the day that they had last."""
    day = pl.col("time").dt.convert_time_zone(zone).dt.date()
    voided = amended.touched.filter("voided").group_by(pl.col("customer").alias("key"), day.alias("day")).len()
    count = pl.col("len").cast(pl.Int64)
    return voided.select(
        "key", "day", count.alias("stored"), pl.lit(0, pl.Int64).alias("suspended"), count.alias("voided")
    )


def _empty(master: MasterData, now: datetime) -> _View:
    live = nothing_used(master.rating_book())
    return _View(Cut({}), master.step_count, now, live, pl.DataFrame(schema=_COUNTS), pl.DataFrame(schema=_SUSPENSE))


def _open_until(master: MasterData, customer: str, now: datetime) -> datetime:
    """Until when the periods go that are open now: what has begun is due at the end of them at the latest."""
    until = now
    for code in master.subscriptions_of.get(customer, ()):
        for _, span in spans_of(master.subscriptions[code], master.tenant.timezone):
            if span.start <= now < span.end:
                until = max(until, min(span.segment.grid.at(now).end, span.end))
    return until


def _filtered(state: MeterState, chosen: pl.Expr) -> MeterState:
    return MeterState(state.by, state.small.filter(chosen), state.sets.filter(chosen), state.runs.filter(chosen))


def _with_days(state: MeterState, timezone: str) -> MeterState:
    """The same with `at` at the start of its local day: cuts of time inside a day are joined again."""
    local = pl.col("at").dt.convert_time_zone(timezone).dt.date().alias("day")
    parts = (frame.with_columns(local) for frame in (state.small, state.sets, state.runs))
    return MeterState((*state.by, "day"), *parts)


def _quantities(state: MeterState, aggregation: Mapping[str, str]) -> list[MeterDay]:
    """Quantities by meter and day over all keys: counts and sums add up; a highest value is the highest of all."""
    folded = regroup(state, ("meter", "day"))
    groups = folded.small.select("meter", "day").with_columns(
        aggregation=pl.col("meter").replace_strict(dict(aggregation), default=None, return_dtype=pl.String),
        start=pl.lit(None, pl.Datetime("us", "UTC")),
        end=pl.lit(None, pl.Datetime("us", "UTC")),
    )
    frame, odd = finish(folded, groups.filter(pl.col("aggregation").is_not_null()), ("meter", "day"))
    return [
        MeterDay(
            row["meter"], row["day"], row["events"] or 0, None if (row["meter"], row["day"]) in odd else row["quantity"]
        )
        for row in frame.iter_rows(named=True)
    ]


def _levels(state: MeterState, first: date, last: date, timezone: str, now: datetime) -> list[MeterDay]:
    """Level times hours by day: a level carries over from the day before, and ends now."""
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    cells = pl.DataFrame(
        {
            "day": days,
            "start": [midnight(day, timezone) for day in days],
            "end": [
                min(midnight(day + timedelta(days=1), timezone), max(now, midnight(day, timezone))) for day in days
            ],
        },
        schema={"day": pl.Date, "start": pl.Datetime("us", "UTC"), "end": pl.Datetime("us", "UTC")},
    )
    owner = ("key", "subscription", "meter", "dimensions")
    runs = state.runs.with_columns(pl.col("subscription").fill_null("")).sort("time", "id", "source")
    if runs.height == 0:
        return []
    grid = runs.select(owner).unique().join(cells, how="cross").sort("start")
    inside = runs.with_columns(day=pl.col("time").dt.convert_time_zone(timezone).dt.date())
    inside = inside.filter(pl.col("day").is_between(first, last))
    carried = grid.join_asof(
        runs,
        left_on="start",
        right_on="time",
        by=list(owner),
        strategy="backward",
        allow_exact_matches=False,
        coalesce=False,
    ).filter(pl.col("value").is_not_null())
    columns = [*owner, "day", "time", "id", "source", "value"]
    by = (*owner, "day")
    moved = pl.concat([inside.select(columns), carried.select(columns)])
    empty = regroup(MeterState(state.by, state.small.clear(), state.sets.clear(), state.runs.clear()), owner)
    folded = MeterState(
        by,
        empty.small.with_columns(day=pl.lit(None, pl.Date)).select(*by, pl.exclude(by)),
        empty.sets.with_columns(day=pl.lit(None, pl.Date)),
        moved,
    )
    frame, _ = finish(folded, grid.with_columns(aggregation=pl.lit("time_weighted_sum")), by)
    counted = inside.group_by("meter", "day").agg(pl.len().alias("own"))
    sums = frame.group_by("meter", "day").agg(pl.col("quantity").sum())
    rows = sums.join(counted, on=["meter", "day"], how="left").filter(pl.col("quantity") != 0)
    return [MeterDay(row["meter"], row["day"], row["own"] or 0, row["quantity"]) for row in rows.iter_rows(named=True)]


def total(days: Iterable[MeterDay]) -> dict[str, tuple[int, Decimal]]:
    """Events and quantity of each meter over some days; for highest and latest values a sum says nothing, so days with
    such meters are to be shown one by one."""
    found: dict[str, tuple[int, Decimal]] = {}
    for one in days:
        events, quantity = found.get(one.meter, (0, ZERO))
        found[one.meter] = (events + one.events, quantity + (one.quantity or ZERO))
    return found


def local_today(master: MasterData, now: datetime) -> date:
    return now.astimezone(ZoneInfo(master.tenant.timezone)).date()
