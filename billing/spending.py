"""Spending: what usage of watched customers has cost, followed event by event with a running state.

Owns what an event adds: the exact cost of the pieces that it counts for, after it less before it, under its own time,
in the order in which events come. State is folded usage per customer (`live_state.py`), so one more event is not
one more rating of all events. Levels cost by holding: `level_costs` looks at them whenever the clock has moved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from fractions import Fraction

import polars as pl

from billing.budgets import Budgets, calendar
from billing.contracts import Contract, Piece, Span, spans_of
from billing.due import Use
from billing.live_cells import cells_asked_for, spans_a_cut
from billing.live_state import LiveState, fold_days, merge_live, rate_live
from billing.master import MasterData
from billing.meters import MeterState, regroup
from billing.periods import Grid, Period, local_date, midnight
from billing.rate_uses import rate_uses, usage_piece
from billing.rating import UsagePiece
from billing.rating_book import RatingBook
from billing.running import until
from billing.usage import EVENT_SCHEMA

LEVEL = "time_weighted_sum"
LEVEL_PERIODS_MAX = 10_000  # budget periods of one charge that are looked at
RUNS_AT_ONCE = 128
BEFORE = -1  # the run before all
LABEL = "\x1f"  # between a key and the run up to which its usage is meant
ZERO = Fraction(0)

# All events that counted before, of some customers: asked for where running state is missing or no longer fits.
Earlier = Callable[[Sequence[str]], pl.DataFrame]
PieceKey = tuple[tuple[str, str], int, int, datetime, datetime]  # contract, step, place of the charge, start, end


@dataclass
class Followed:
    """One customer: his usage so far, for which cells it was folded, and what his newest pieces cost."""

    usage: LiveState
    asked: str
    keys: tuple[str, ...]
    master: MasterData | None  # that usage and costs were last compared with
    costs: dict[PieceKey, Fraction] = field(default_factory=dict[PieceKey, Fraction])
    foreign: LiveState | None = None  # usage under keys that other lanes keep, as they told it last
    booked: dict[date, Fraction] = field(default_factory=dict[date, Fraction])  # what that has cost, by local day
    owed: dict[date, Fraction] = field(default_factory=dict[date, Fraction])  # booked for usage that is not here now

    @property
    def whole(self) -> LiveState:
        """All usage that prices rest on."""
        return self.usage if self.foreign is None else merge_live(self.usage, self.foreign)


@dataclass
class Spending:
    """Follows customers; what they spent goes to `budgets`."""

    budgets: Budgets
    followed: dict[str, Followed] = field(default_factory=dict[str, Followed])

    def book(self, master: MasterData, watched: Collection[str], events: pl.DataFrame, earlier: Earlier) -> None:
        """Add events (EVENT_SCHEMA) that count from now on, in the order given, to what watched customers spent.

        Events of one customer that follow each other and lie in one local day are priced together: whatever the budget,
        their cost belongs to one period, and what they add together is what they add one by one.
        """
        frame = _of_watched(master, watched, events)
        if frame.height == 0:
            return
        view = _view(master)
        self._fit(master, view, frame["owner"].unique(maintain_order=True).to_list(), earlier)
        last = frame["run"].max()
        assert isinstance(last, int)
        if last == 0:  # nearly always: what a sender brings at once is of one day
            more = _by_owner(fold_days(frame, view.book), master)
            usage = {customer: merge_live(self.followed[customer].usage, live) for customer, live in more.items()}
            return self._price_run(master, view, frame, usage)
        for first in range(0, last + 1, RUNS_AT_ONCE):
            self._book_runs(master, view, frame.filter(pl.col("run").is_between(first, first + RUNS_AT_ONCE - 1)))

    def part(self, customers: Iterable[str]) -> Spending:
        """The state of these customers, to go on with apart: nothing here changes until `take`."""
        wanted = list(customers)
        followed = {
            one: replace(known, booked=dict(known.booked), owed=dict(known.owed))
            for one in wanted
            if (known := self.followed.get(one)) is not None
        }
        return Spending(self.budgets.part(wanted), followed)

    def take(self, part: Spending) -> None:
        """What a part has become counts."""
        self.followed.update(part.followed)
        self.budgets.take(part.budgets)

    def hand_over(self, master: MasterData, customer: str, keys: Collection[str]) -> LiveState | None:
        """From now on others tell of usage under these keys: what it has cost stays, and is booked as theirs.

        Gives the usage that was here, None where there is none. What each day of it has cost is its part among all
        usage of the customer, as `set_foreign` books it; the sum over the days is exact.
        """
        one, view = self.followed.get(customer), _view(master)
        if one is None:
            return None
        assert self._fits(master, view, customer), f"usage of {customer} was folded for other master data"
        theirs = _only(one.usage, pl.col("key").is_in(list(keys)))
        if theirs.state.small.height == 0:
            return None
        one = replace(one, usage=_only(one.usage, ~pl.col("key").is_in(list(keys))), costs={}, booked=dict(one.booked))
        now = one.foreign or _only(theirs, pl.lit(False))
        for day, cost, then in self._by_day(master, view, customer, one.usage, now, merge_live(now, theirs)):
            one.booked[day] = one.booked.get(day, ZERO) + cost
            now = then
        one.foreign = now
        self.followed[customer] = one
        return theirs

    def forget(self, customer: str) -> None:
        """Fold the customer's usage again before the next event: what counted before has changed."""
        self.followed.pop(customer, None)

    def let_go(self, customer: str, codes: Collection[str]) -> None:
        """Drop all of a customer, with his budgets of these codes: he is looked after elsewhere."""
        self.followed.pop(customer, None)
        self.budgets.forget(customer, codes)

    def _fit(self, master: MasterData, view: _View, customers: Sequence[str], earlier: Earlier) -> None:
        """Fold usage (again) where it is missing, or where other cells are asked for than it was folded for."""
        stale = [customer for customer in customers if not self._fits(master, view, customer)]
        if not stale:
            return
        before = _of_watched(master, stale, earlier(stale)).partition_by("owner", as_dict=True)
        nothing = pl.DataFrame(schema=EVENT_SCHEMA)
        for customer in stale:
            usage = fold_days(before.get((customer,), nothing), view.book)
            known = self.followed.get(customer)
            self.followed[customer] = fresh = Followed(usage, view.asked, master.keys_of(customer), master)
            if known is not None and known.foreign is not None:
                fresh.booked, fresh.owed, fresh.foreign = known.booked, known.owed, known.foreign
                if known.asked != view.asked or spans_a_cut(known.foreign, view.book):
                    _without_foreign(fresh)  # other cells are asked for: until the other lane has told it again

    def unbook(self, master: MasterData, watched: Collection[str], events: pl.DataFrame, earlier: Earlier) -> None:
        """Take events that counted out again: what they cost among all others, under their own times.

        `earlier` gives the others, without these events.
        """
        frame = _of_watched(master, watched, events)
        if frame.height == 0:
            return
        view = _view(master)
        customers = frame["owner"].unique(maintain_order=True).to_list()
        others = _of_watched(master, customers, earlier(customers)).select(*EVENT_SCHEMA, "owner")
        rest = frame.select(*EVENT_SCHEMA, "owner", "run")
        columns = [*EVENT_SCHEMA, "owner"]
        self._fit(master, view, customers, lambda _: pl.concat([others, rest.select(columns)]).drop("owner"))
        for (run,), part in sorted(frame.partition_by("run", as_dict=True).items()):
            rest = rest.filter(pl.col("run") > run)
            left = pl.concat([others, rest.select(columns)]).partition_by("owner", as_dict=True)
            nothing = others.clear()
            usage = {
                customer: fold_days(left.get((customer,), nothing), view.book) for customer in part["owner"].unique()
            }
            self._price_run(master, view, part, usage)

    def set_foreign(self, master: MasterData, customer: str, live: LiveState, earlier: Earlier) -> None:
        """Take what other lanes tell of usage under a customer's keys in place of what they told before.

        It is absolute, so telling it again changes nothing. What changed is priced day by day, in order, among all
        other usage of the customer: so a day's part goes to that day's period, and all parts together are what it
        costs. `live` must be folded for the cells of this master data (`cells_fit`).
        """
        view = _view(master)
        self._fit(master, view, [customer], earlier)
        one = self.followed[customer]
        codes = [meter.code for meter in view.book.meters]
        new = _only(live, pl.col("meter").is_in(codes))
        now = one.foreign or _only(new, pl.lit(False))
        for day, cost, then in self._by_day(master, view, customer, one.usage, now, new):
            now = then
            self.budgets.add(customer, midnight(day, master.tenant.timezone), cost - one.owed.pop(day, ZERO))
            one.booked[day] = one.booked.get(day, ZERO) + cost
        for day, owed in one.owed.items():
            self.budgets.add(customer, midnight(day, master.tenant.timezone), -owed)
        one.owed = {}
        one.foreign, one.costs = now, {}

    def _by_day(
        self, master: MasterData, view: _View, customer: str, usage: LiveState, now: LiveState, new: LiveState
    ) -> Iterator[tuple[date, Fraction, LiveState]]:
        """From what was told to what is told now, one local day after the other: what each changes, and it so far."""
        days = _local_day(master.tenant.timezone)
        for day, first, last, meters in _changed(now, new, days):
            types = {meter.event_type for meter in view.book.meters if meter.code in meters}
            pieces = [usage_piece(master, use) for use in _uses_with(master, customer, _moments(first, last), types)]
            before = sum(_amounts(pieces, merge_live(usage, now), view), ZERO)
            now = _joined(_only(now, days != day), _only(new, days == day))
            yield day, sum(_amounts(pieces, merge_live(usage, now), view), ZERO) - before, now

    def _fits(self, master: MasterData, view: _View, customer: str) -> bool:
        known = self.followed.get(customer)
        if known is None or known.master is master:
            return known is not None
        same = known.asked == view.asked and known.keys == master.keys_of(customer)
        cut = _contracts_changed(known.master, master, customer) and spans_a_cut(known.usage, view.book)
        if not same or cut:
            return False
        if known.foreign is not None and spans_a_cut(known.foreign, view.book):
            _without_foreign(known)
        known.master, known.costs = master, {}
        return True

    def fit(self, master: MasterData, earlier: Earlier) -> None:
        """Compare all customers with newer master data, and fold again who does not fit any more."""
        self._fit(master, _view(master), list(self.followed), earlier)

    def _book_runs(self, master: MasterData, view: _View, events: pl.DataFrame) -> None:
        """Add several runs: each piece is priced as it is after every run that it has a part in, all at once."""
        of_run = events.group_by("owner", "run").agg(
            pl.col("day").first(), pl.col("time").unique().sort(), pl.col("type").unique()
        )
        known = {customer: self.followed[customer] for customer in events["owner"].unique(maintain_order=True)}
        steps: list[tuple[date, Use, int]] = []
        asked: dict[tuple[PieceKey, int], Use] = {}
        for customer, run, day, times, types in of_run.sort("owner", "run").iter_rows():
            for use in _uses_with(master, customer, times, types):
                steps.append((day, use, run))
                asked[_key(use), run] = use
                if _key(use) not in known[customer].costs:
                    asked.setdefault((_key(use), BEFORE), use)
        usage, more = _after_runs(events, {customer: one.whole for customer, one in known.items()}, view, asked)
        costs = _costs_after(master, view, usage, asked)
        newest = {key: cost for one in known.values() for key, cost in one.costs.items()}
        newest |= {key: cost for (key, run), cost in costs.items() if run == BEFORE}
        for one in known.values():
            one.costs = {}  # of older pieces the cost is asked again when an event comes for them
        for day, use, run in steps:
            customer, key = use.contract.subscription.customer, _key(use)
            cost = costs[key, run]
            self.budgets.add(customer, midnight(day, master.tenant.timezone), cost - newest[key])
            newest[key] = known[customer].costs[key] = cost
        for customer, live in _by_owner(more, master).items():
            known[customer].usage = merge_live(known[customer].usage, live)

    def _price_run(self, master: MasterData, view: _View, events: pl.DataFrame, usage: Mapping[str, LiveState]) -> None:
        """Events of one local day a customer come or go: afterwards `usage` is what there is of those in it."""
        days: dict[str, date] = dict(events.select("owner", "day").iter_rows())
        uses: list[Use] = []
        for (customer,), part in events.partition_by("owner", as_dict=True, maintain_order=True).items():
            times = part["time"].unique().sort().to_list()
            uses += _uses_with(master, str(customer), times, set(part["type"].unique()))
        known = {customer: self.followed[customer] for customer in days}
        missing = [use for use in uses if _key(use) not in known[use.contract.subscription.customer].costs]
        before = {_key(use): cost for use, cost in _costs(master, view, known, missing)}
        for customer, one in known.items():
            one.usage = usage.get(customer, one.usage)
            before.update(one.costs)
            one.costs = {}  # of older pieces the cost is asked again when an event comes for them
        added: dict[str, Fraction] = {}
        for use, cost in _costs(master, view, known, uses):
            customer = use.contract.subscription.customer
            added[customer] = added.get(customer, ZERO) + cost - before[_key(use)]
            known[customer].costs[_key(use)] = cost
        for customer, cost in added.items():
            self.budgets.add(customer, midnight(days[customer], master.tenant.timezone), cost)


def cells_fit(live: LiveState, folded_by: MasterData, master: MasterData) -> bool:
    """Whether usage that was folded by one state of master data has the cells that another asks for."""
    same = folded_by is master or _cells_asked(folded_by) == _cells_asked(master)
    return same and not spans_a_cut(live, master.rating_book())


def _cells_asked(master: MasterData) -> str:
    found: str | None = master.__dict__.get("_cells_asked")
    if found is None:
        found = master.__dict__["_cells_asked"] = cells_asked_for(master.rating_book())
    return found


def _without_foreign(one: Followed) -> None:
    """Price without what other lanes told, which does not fit any more; what it has cost stays booked, and is owed."""
    for day, cost in one.booked.items():
        one.owed[day] = one.owed.get(day, ZERO) + cost
    one.foreign, one.booked, one.costs = None, {}, {}


def _local_day(timezone: str) -> pl.Expr:
    return pl.col("at").dt.convert_time_zone(timezone).dt.date()


def _only(live: LiveState, keep: pl.Expr) -> LiveState:
    state = live.state
    return LiveState(MeterState(state.by, state.small.filter(keep), state.sets.filter(keep), state.runs.filter(keep)))


def _joined(left: LiveState, right: LiveState) -> LiveState:
    """Usage of different days: nothing to merge."""
    old, new = left.state, right.state
    return LiveState(
        MeterState(
            old.by,
            pl.concat([old.small, new.small]),
            pl.concat([old.sets, new.sets]),
            pl.concat([old.runs, new.runs]),
        )
    )


def _changed(old: LiveState, new: LiveState, day: pl.Expr) -> list[tuple[date, datetime, datetime, set[str]]]:
    """Local days whose cells differ, in order: day, first and last moment of its events, its meters."""
    found: list[tuple[date, datetime, datetime, set[str]]] = []
    cells = (
        pl.concat([old.state.small, new.state.small])
        .group_by(day.alias("day"))
        .agg(pl.col("first").min(), pl.col("last").max(), pl.col("meter").unique())
    )
    for one, first, last, meters in cells.sort("day").select("day", "first", "last", "meter").iter_rows():
        if not _same(_only(old, day == one), _only(new, day == one)):
            found.append((one, first, last, set(meters)))
    return found


def _same(left: LiveState, right: LiveState) -> bool:
    """Whether two states have the same cells; their order says nothing."""
    pairs = zip(
        (left.state.small, left.state.sets, left.state.runs),
        (right.state.small, right.state.sets, right.state.runs),
        strict=True,
    )
    return all(old.height == new.height and _sorted(old).equals(_sorted(new)) for old, new in pairs)


def _sorted(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort(frame.columns, nulls_last=True)


def _moments(first: datetime, last: datetime) -> list[datetime]:
    return [first] if first == last else [first, last]


def _contracts_changed(old: MasterData | None, new: MasterData, customer: str) -> bool:
    """False only if surely not: what no step has touched is the same value in the next state of master data."""
    codes = new.subscriptions_of.get(customer, ())
    if old is None or old.subscriptions_of.get(customer, ()) != codes:
        return True
    return any(old.subscriptions[code] is not new.subscriptions[code] for code in codes)


def _after_runs(
    events: pl.DataFrame, before: Mapping[str, LiveState], view: _View, asked: Mapping[tuple[PieceKey, int], Use]
) -> tuple[LiveState, LiveState]:
    """Usage as it is after each run that is asked for, under keys that name the run; and all that the events add."""
    labels = events.select("customer", "owner", "run").unique()
    labels = labels.with_columns(label=_label(pl.col("customer"), pl.col("run")))
    book = view.book
    if book.cuts.height:  # cells are cut by customer: the new keys are his, too
        more = labels.select(pl.col("label").alias("key"), pl.col("owner").alias("customer"))
        book = replace(book, customers=pl.concat([book.customers, more]))
        kept = ("meter_places", "meter_tables", "properties", "live_meters", "charges")
        book.__dict__.update({name: view.book.__dict__[name] for name in kept if name in view.book.__dict__})
    added = fold_days(events.with_columns(customer=_label(pl.col("customer"), pl.col("run"))), book).state
    # Of which customer and up to which run: his keys with their labels.
    wanted = {(use.contract.subscription.customer, run) for (_, run), use in asked.items()}
    owners = pl.DataFrame(sorted(wanted), schema={"owner": pl.String, "target": labels.schema["run"]}, orient="row")
    keys = [(key, customer) for customer, live in before.items() for key in live.state.small["key"].unique()]
    known = pl.DataFrame(keys, schema={"key": pl.String, "owner": pl.String}, orient="row").join(owners, on="owner")
    came = labels.rename({"label": "key", "customer": "of"}).join(owners, on="owner")
    came = came.filter(pl.col("run") <= pl.col("target"))
    base = _together(list(before.values())).state

    def upto(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
        columns = old.columns
        there = old.join(known, on="key").with_columns(key=_label(pl.col("key"), pl.col("target")))
        come = new.join(came, on="key").with_columns(key=_label(pl.col("of"), pl.col("target")))
        return pl.concat([there.select(columns), come.select(columns)])

    whole = MeterState(base.by, upto(base.small, added.small), upto(base.sets, added.sets), upto(base.runs, added.runs))
    plain = labels.select(pl.col("label").alias("key"), pl.col("customer").alias("plain"))

    def relabelled(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.join(plain, on="key").with_columns(key=pl.col("plain")).select(frame.columns)

    sums = MeterState(base.by, relabelled(added.small), relabelled(added.sets), relabelled(added.runs))
    return LiveState(regroup(whole, base.by)), LiveState(regroup(sums, base.by))


def _label(key: pl.Expr, run: pl.Expr) -> pl.Expr:
    return key + pl.lit(LABEL) + run.cast(pl.String)


def _costs_after(
    master: MasterData, view: _View, usage: LiveState, asked: Mapping[tuple[PieceKey, int], Use]
) -> dict[tuple[PieceKey, int], Fraction]:
    pieces: list[UsagePiece] = []
    for (_, run), use in asked.items():
        piece = usage_piece(master, use)
        label = f"{LABEL}{run}"
        pieces.append(replace(piece, customer=piece.customer + label, keys=tuple(key + label for key in piece.keys)))
    return dict(zip(asked, _amounts(pieces, usage, view), strict=True))


def _amounts(pieces: Sequence[UsagePiece], usage: LiveState, view: _View) -> list[Fraction]:
    """The exact cost of each piece."""
    costs = [ZERO] * len(pieces)
    if pieces:
        rated = rate_live(pieces, usage, view.book)
        for line, piece, amount in rated.frame.select("line", "piece", "amount").iter_rows():
            costs[piece] += rated.amounts[line] if amount is None else Fraction(amount)
    return costs


def _of_watched(master: MasterData, watched: Collection[str], events: pl.DataFrame) -> pl.DataFrame:
    """The events of these customers with `owner`, local `day` and `run`: it grows with each change of day."""
    keys = events["customer"].unique()
    owners = [master.key_owners.get(key) for key in keys]
    table = pl.DataFrame({"customer": keys, "owner": pl.Series(owners, dtype=pl.String)})
    table = table.filter(pl.col("owner").is_in(list(watched)))
    day = pl.col("time").dt.convert_time_zone(master.tenant.timezone).dt.date()
    frame = events.join(table, on="customer", how="inner", maintain_order="left").with_columns(day=day)
    changed = (pl.col("day") != pl.col("day").shift(1).over("owner")).fill_null(False)
    return frame.with_columns(changed=changed).with_columns(
        run=pl.col("changed").cum_sum().over("owner").cast(pl.Int64)
    )


def _uses_with(master: MasterData, customer: str, times: Sequence[datetime], types: Collection[str]) -> list[Use]:
    """The pieces of usage charges in the tenant's currency that contain one of the times; those on levels are apart."""
    found: list[Use] = []
    for code in master.subscriptions_of.get(customer, ()):
        for one, span in spans_of(master.subscriptions[code], master.tenant.timezone):
            if span.charge.kind != "usage" or span.segment.plan.currency != master.tenant.currency:
                continue
            meter = master.meters[span.charge.meter]
            if meter.aggregation == LEVEL or meter.event_type not in types:
                continue
            end = span.start
            for moment in times:
                if end <= moment < span.end and moment >= span.start:
                    piece = _piece_with(span, moment, master.tenant.timezone)
                    found.append(Use(one, piece, None))
                    end = piece.end
    return found


def _piece_with(span: Span, moment: datetime, timezone: str) -> Piece:
    """As `piece_at`; periods are asked for by days: a grid remembers what it was asked, and events are many."""
    period = _period_with(span.segment.grid, moment, timezone)
    start, end = max(span.start, period.start), min(span.end, period.end)
    return Piece(span, start, end, period, end, span.step)


def _period_with(grid: Grid, moment: datetime, timezone: str) -> Period:
    period = grid.at(midnight(local_date(moment, timezone), timezone))
    return period if moment < period.end else grid.following(period)


def _key(use: Use) -> PieceKey:
    span = use.piece.span
    return (use.contract.key, span.step, span.place, use.piece.start, use.piece.end)


def _costs(
    master: MasterData, view: _View, known: Mapping[str, Followed], uses: Sequence[Use]
) -> Iterable[tuple[Use, Fraction]]:
    """The exact cost of each piece with all usage of its customer so far."""
    if not uses:
        return ()
    customers = dict.fromkeys(use.contract.subscription.customer for use in uses)
    live = _together([known[customer].whole for customer in customers])
    return zip(uses, _amounts([usage_piece(master, use) for use in uses], live, view), strict=True)


def _together(parts: Sequence[LiveState]) -> LiveState:
    """Usage of different customers: nothing to merge."""
    if len(parts) == 1:
        return parts[0]
    states = [part.state for part in parts]
    return LiveState(
        MeterState(
            states[0].by,
            pl.concat([state.small for state in states]),
            pl.concat([state.sets for state in states]),
            pl.concat([state.runs for state in states]),
        )
    )


def _by_owner(live: LiveState, master: MasterData) -> dict[str, LiveState]:
    """Usage by customer."""
    state = live.state
    keys = state.small["key"].unique()
    keys_of: dict[str, list[str]] = {}
    for key in keys:
        keys_of.setdefault(master.key_owners[key], []).append(key)
    if len(keys_of) == 1:
        return dict.fromkeys(keys_of, live)
    found: dict[str, LiveState] = {}
    for customer, of_customer in keys_of.items():
        mine = pl.col("key").is_in(of_customer)
        found[customer] = LiveState(
            MeterState(state.by, state.small.filter(mine), state.sets.filter(mine), state.runs.filter(mine))
        )
    return found


@dataclass(frozen=True)
class _View:
    """The rating book without levels: they are not folded here."""

    book: RatingBook
    asked: str


def _view(master: MasterData) -> _View:
    """Computed once for each value of the master data."""
    found = master.__dict__.get("_spending_view")
    if found is None:
        whole = master.rating_book()
        meters = tuple(meter for meter in whole.meters if meter.aggregation != LEVEL)
        codes = {meter.code for meter in meters}
        plans = tuple(tuple(charge for charge in plan if charge.meter in codes) for plan in whole.plans)
        book = replace(whole, meters=meters, plans=plans, pauses=whole.pauses.clear())
        found = _View(book, cells_asked_for(book))
        master.__dict__["_spending_view"] = found  # a cache beside the frozen fields
    return found


# --- levels -------------------------------------------------------------------------------------------------------


def level_costs(
    master: MasterData, customer: str, kind: str, now: datetime, events: pl.DataFrame, since: datetime | None = None
) -> dict[datetime, Fraction]:
    """What levels of a customer have cost up to the clock, by the start of the calendar period of that kind.

    With `since` only of the period that contains it and of later ones: what was looked at before stands.
    """
    periods = calendar(kind, master.tenant.timezone)
    uses: list[Use] = []
    signs: list[tuple[datetime, int]] = []
    for code in master.subscriptions_of.get(customer, ()):
        if master.subscriptions[code].plan.currency != master.tenant.currency:
            continue
        for one, span in spans_of(master.subscriptions[code], master.tenant.timezone):
            level = span.charge.kind == "usage" and master.meters[span.charge.meter].aggregation == LEVEL
            if not level or span.start >= min(span.end, now):
                continue
            for use, period in _level_parts(one, span, periods, since, now):
                uses.append(use)
                signs.append((period.start, 1))
                if use.piece.start < period.start:
                    uses.append(Use(one, until(use.piece, period.start), None))
                    signs.append((period.start, -1))
    spent: dict[datetime, Fraction] = dict.fromkeys((start for start, _ in signs), ZERO)
    # All parts at once: a budget by the day has hundreds of them.
    for place, rows in rate_uses(master, uses, events).items():
        start, sign = signs[place]
        spent[start] += sign * sum((Fraction(row.amount) for row in rows), ZERO)
    return spent


def _level_parts(
    one: Contract, span: Span, periods: Grid, since: datetime | None, now: datetime
) -> list[tuple[Use, Period]]:
    """For each budget period up to the clock: the piece from its own start to that period's end (or the clock)."""
    found: list[tuple[Use, Period]] = []
    moment = span.start
    if since is not None:
        moment = max(moment, _period_with(periods, since, periods.timezone).start)
    end = min(span.end, now)
    for _ in range(LEVEL_PERIODS_MAX):
        if moment >= end:
            break
        piece = _piece_with(span, moment, periods.timezone)
        period = _period_with(periods, moment, periods.timezone)
        stop = min(piece.end, period.end, end)
        found.append((Use(one, until(piece, stop), None), period))
        moment = stop
    return found
