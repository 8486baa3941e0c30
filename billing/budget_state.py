"""The budgets of one tenant as a log tells them: a state that usage, corrections and looks are added to in order.

Owns which events count for watched customers and when: at once, after what kept them in suspense is gone, or as they
were corrected. Master data is taken on by looks only, so the same log and looks give the same state. What events cost
is `billing/spending.py`, when an alert is raised `billing/budgets.py`. A step is planned first and taken afterwards.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from fractions import Fraction
from itertools import pairwise

import msgspec
import polars as pl

from billing.budgets import Alert, Budgets
from billing.live_state import LiveState
from billing.master import Budget, MasterData
from billing.periods import Period
from billing.spending import LEVEL, Followed, Spending, level_costs
from billing.thresholds import Threshold
from billing.usage import EVENT_SCHEMA, INSTANT, Reason
from billing.verdicts import classify

# An event and where it lies in the log: events that count at last do so in the order in which they came.
ARRIVED = pl.Schema(
    {
        **EVENT_SCHEMA,
        "number": pl.Int64,
        "row": pl.Int64,
        "received_at": INSTANT,
        "counts_late": pl.Boolean,  # a correction lets it count where the tenant rejects late usage
    }
)
NO_EVENTS = pl.DataFrame(schema=ARRIVED)
_ID = ("customer", "source", "id")  # ids are unique within a customer key

# All events of customer keys that came before the step, corrected as far as they were, with those of the backfills
# that are named (ARRIVED, in order).
History = Callable[[Sequence[str], frozenset[str]], pl.DataFrame]


def _anything(_: str, __: str) -> bool:
    return True


@dataclass(frozen=True)
class Watch:
    """What one state of master data asks to be watched, of the customers whose home is here."""

    number: int
    master: MasterData
    budgets: Mapping[str, tuple[Budget, ...]]  # by customer, in the order in which they were defined
    keys: Mapping[str, tuple[str, ...]]  # whose events come by themselves; of his other keys others tell
    owners: Mapping[str, str]  # customer by key
    level_types: frozenset[str]  # types of events that a level is made of

    @classmethod
    def of(
        cls, number: int, master: MasterData, homes: Collection[str], is_local: Callable[[str, str], bool] = _anything
    ) -> Watch:
        """`homes` are the customers whose budgets are looked after here; `is_local` (customer, key): events come."""
        budgets: dict[str, tuple[Budget, ...]] = {}
        for budget in master.budgets.values():
            if budget.customer in homes:
                budgets[budget.customer] = (*budgets.get(budget.customer, ()), budget)
        keys = {one: tuple(key for key in master.keys_of(one) if is_local(one, key)) for one in budgets}
        owners = {key: customer for customer, of_customer in keys.items() for key in of_customer}
        types = frozenset(meter.event_type for meter in master.meters.values() if meter.aggregation == LEVEL)
        return cls(number, master, budgets, keys, owners, types)

    def without(self, customers: Collection[str], keys: Collection[str]) -> Watch:
        """Without these customers, and without these keys of others."""
        return replace(
            self,
            budgets={one: budgets for one, budgets in self.budgets.items() if one not in customers},
            keys={
                one: tuple(key for key in mine if key not in keys)
                for one, mine in self.keys.items()
                if one not in customers
            },
            owners={key: one for key, one in self.owners.items() if one not in customers and key not in keys},
        )

    def joined(self, other: Watch) -> Watch:
        """With the customers of another; each as his own master data say."""
        return replace(
            self,
            budgets={**self.budgets, **other.budgets},
            keys={**self.keys, **other.keys},
            owners={**self.owners, **other.owners},
        )

    def in_order(self, customers: Collection[str]) -> list[Budget]:
        """Their budgets, in the order in which the tenant defined them."""
        if len(customers) == 1:
            return list(self.budgets.get(next(iter(customers)), ()))
        return [budget for budget in self.master.budgets.values() if budget.customer in customers]


@dataclass
class TenantBudgets:
    """The state. `waiting` are events in suspense, `levels` those that count and belong to a level."""

    watch: Watch
    spending: Spending
    waiting: pl.DataFrame = field(default_factory=NO_EVENTS.clone)
    levels: dict[str, pl.DataFrame] = field(default_factory=dict[str, pl.DataFrame])
    looked_at: datetime | None = None  # the tenant's time of the newest look
    levels_from: datetime | None = None  # a level event of that time came after the newest look
    shown: frozenset[str] = frozenset()  # the backfills whose events count, as the newest look took them on
    # Of customers who came from another lane since then: the backfills that had counted for them there.
    shown_to: dict[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])

    @classmethod
    def empty(cls, watch: Watch) -> TenantBudgets:
        """Before the first look: nothing is watched yet."""
        nobody = replace(watch, number=-1, budgets={}, keys={}, owners={})
        return cls(nobody, Spending(Budgets(watch.master.tenant.timezone)))

    def to_bytes(self) -> bytes:
        """For a snapshot; `from_bytes` gives the same state back, with the master data that it names."""
        return _packed(self)

    @classmethod
    def from_bytes(cls, data: bytes, watch_at: Callable[[int], Watch]) -> TenantBudgets:
        return _unpacked(data, watch_at)

    def hand_over(self, customer: str, keys: Collection[str]) -> LiveState | None:
        """Others tell of these keys of a customer from now on; gives the usage under them that was followed here."""
        self.watch = self.watch.without((), keys)
        self.waiting = self.waiting.filter(~pl.col("customer").is_in(list(keys)))
        return self.spending.hand_over(self.watch.master, customer, keys)

    def copy_of(self, customer: str) -> TenantBudgets:
        """All that is followed of one customer, apart: what becomes of it does not show here."""
        watch = self.watch
        others = [one for one in watch.budgets if one != customer]
        spending = self.spending.part([customer])
        codes = {budget.code for budget in watch.budgets.get(customer, ())}
        budgets = replace(
            spending.budgets,
            raised={code: set(keys) for code, keys in spending.budgets.raised.items() if code in codes},
            alerts=[one for one in self.spending.budgets.alerts if one.budget in codes],
        )
        return TenantBudgets(
            watch.without(others, ()),
            replace(spending, budgets=budgets),
            self.waiting.filter(pl.col("customer").is_in(list(watch.keys.get(customer, ())))),
            {customer: self.levels[customer]} if customer in self.levels else {},
            self.looked_at,
            self.levels_from,
            self.backfills_of(customer),
        )

    def backfills_of(self, customer: str) -> frozenset[str]:
        """The backfills whose events are in what this customer spent."""
        return self.shown_to.get(customer, self.shown)

    def leave(self, customer: str) -> None:
        """A customer is looked after elsewhere from now on."""
        codes = {budget.code for budget in self.watch.budgets.get(customer, ())}
        self.waiting = self.waiting.filter(~pl.col("customer").is_in(list(self.watch.keys.get(customer, ()))))
        self.watch = self.watch.without((customer,), ())
        self.spending.let_go(customer, codes)
        self.levels.pop(customer, None)
        self.shown_to.pop(customer, None)

    def join(self, other: TenantBudgets) -> None:
        """Take on what another place followed of its customers; a look at master data not older than both follows."""
        self.watch = self.watch.joined(other.watch)
        self.spending.followed.update(other.spending.followed)
        self.spending.budgets.take(other.spending.budgets)
        self.spending.budgets.raised.update(other.spending.budgets.raised)
        self.spending.budgets.alerts += other.spending.budgets.alerts
        # What waited there came before all that comes here.
        came = other.waiting.with_columns(number=pl.lit(0, pl.Int64), row=pl.int_range(other.waiting.height))
        self.waiting = pl.concat([self.waiting, came.cast(ARRIVED)])
        self.levels.update(other.levels)
        self.shown_to.update((one, other.shown) for one in other.watch.budgets if other.shown != self.shown)
        since = [one for one in (self.levels_from, other.levels_from, other.looked_at) if one is not None]
        self.looked_at, self.levels_from = self.looked_at or other.looked_at, min(since, default=None)

    def plan(self, step: Step, history: History) -> Planned:
        """What a step adds, without changing anything here."""
        return _plan(self, step, history)

    def take(self, planned: Planned) -> None:
        """What was planned is so."""
        self.watch = planned.watch
        self.spending.take(planned.spending)
        self.waiting = planned.waiting
        self.levels = {**self.levels, **planned.levels}
        self.looked_at, self.levels_from = planned.looked_at, planned.levels_from
        if planned.shown is not None:
            self.shown, self.shown_to = planned.shown, {}


@dataclass(frozen=True)
class Step:
    """New events and corrections, and a look if `watch` is given: at newer master data, levels and suspense."""

    now: datetime
    events: pl.DataFrame = field(default_factory=NO_EVENTS.clone)  # of any customers
    watch: Watch | None = None
    then: datetime | None = None  # the clock moves to this time after the step, and is looked at again
    removed: pl.DataFrame = field(default_factory=NO_EVENTS.clone)  # by corrections: the events as they were
    corrected: pl.DataFrame = field(default_factory=NO_EVENTS.clone)  # and as they are now
    # The backfills that count from this look on (None: as before), and their events under keys that were watched
    # before: those that begin to count; those that cease to are among `removed`.
    shown: frozenset[str] | None = None
    begun: pl.DataFrame = field(default_factory=NO_EVENTS.clone)
    # By customer: all usage under his keys that other lanes have told of, in the cells of the master data in force.
    foreign: Mapping[str, LiveState] = field(default_factory=dict[str, LiveState])


@dataclass(frozen=True)
class Planned:
    watch: Watch
    spending: Spending  # of the customers that the step touches
    waiting: pl.DataFrame
    levels: Mapping[str, pl.DataFrame]
    looked_at: datetime | None
    levels_from: datetime | None
    alerts: tuple[Alert, ...]
    shown: frozenset[str] | None = None


def _plan(state: TenantBudgets, step: Step, history: History) -> Planned:
    """Taking on master data and backfills comes first, then corrections, what waited, the new events, levels; alerts
    at the end."""
    watch = step.watch or state.watch
    is_look = step.watch is not None
    before_waiting = state.waiting
    fresh: list[pl.DataFrame] = []  # events that count from now on
    removed = step.removed.filter(pl.col("customer").is_in(list(state.watch.owners)))
    waiting = before_waiting.join(removed, on=_ID, how="anti", maintain_order="left")
    new_keys = [key for key, owner in watch.owners.items() if state.watch.owners.get(key) != owner] if is_look else []
    if new_keys:
        old = history(new_keys, state.shown if step.shown is None else step.shown)
        reasons = _reasons_of_past(old, watch.master, step.now)
        fresh.append(old.filter(reasons.is_null()))
        waiting = pl.concat([waiting, old.filter(_waits(reasons))])
    if is_look and waiting.height:
        reasons = classify(waiting, watch.master.rating_book(), step.now, new=_none_new(waiting))
        fresh.append(waiting.filter(reasons.is_null()))
        waiting = waiting.filter(~reasons.is_null())
    # Of a key that is watched from now on all is old, whatever began to count just now.
    begun = step.begun.filter(~pl.col("customer").is_in(new_keys))
    corrected = pl.concat([begun, step.corrected]).filter(pl.col("customer").is_in(list(watch.owners)))
    if corrected.height:
        reasons = classify(corrected, watch.master.rating_book(), step.now, new=~corrected["counts_late"])
        fresh.append(corrected.filter(reasons.is_null()))
        waiting = pl.concat([waiting, corrected.filter(_waits(reasons))])
    released = pl.concat(fresh).sort("number", "row", maintain_order=True) if fresh else NO_EVENTS
    events = step.events.filter(pl.col("customer").is_in(list(watch.owners))) if step.events.height else NO_EVENTS
    if events.height:
        reasons = classify(events, watch.master.rating_book(), step.now)
        released = pl.concat([released, events.filter(reasons.is_null())])
        waiting = pl.concat([waiting, events.filter(_waits(reasons))])
    touched = _owners(watch, released)

    def counted(customers: Sequence[str]) -> pl.DataFrame:
        """What counted before: all that came, less what waited and what came too late."""
        by_backfills: dict[frozenset[str], list[str]] = {}  # a single one, but for who came from another lane
        for one in customers:
            known = [key for key in watch.keys[one] if key in state.watch.owners]
            if known:
                by_backfills.setdefault(state.backfills_of(one), []).extend(known)
        came = pl.concat([NO_EVENTS, *(history(keys, shown) for shown, keys in by_backfills.items())])
        came = came.join(before_waiting, on=_ID, how="anti", maintain_order="left")
        if came.height and watch.master.closing_runs:
            reasons = _reasons_of_past(came, watch.master, step.now).cast(pl.String)
            came = came.filter(~(reasons == Reason.LATE.value).fill_null(False))
        return came.select(EVENT_SCHEMA.names())

    def earlier(customers: Sequence[str]) -> pl.DataFrame:
        return counted(customers).join(removed, on=_ID, how="anti", maintain_order="left")

    if removed.height:
        owners = sorted({state.watch.owners[key] for key in removed["customer"].unique()} & watch.keys.keys())
        removed = counted(owners).join(removed, on=_ID, how="semi", maintain_order="left")
        touched |= _owners(watch, removed)

    levels_from = state.levels_from
    levels: dict[str, pl.DataFrame] = {}
    rebuilt = is_look and watch.level_types != state.watch.level_types and bool(state.watch.owners)
    if rebuilt:
        known = [customer for customer in watch.keys if customer in state.watch.keys]
        levels, levels_from = _by_customer(watch, earlier(known)), None
    for customer, part in _by_customer(watch, removed.select(EVENT_SCHEMA.names())).items():
        before = levels.get(customer, state.levels.get(customer))
        if before is not None:
            levels[customer] = before.join(part, on=_ID, how="anti", maintain_order="left")
            first = part["time"].min()
            assert isinstance(first, datetime)
            levels_from = first if levels_from is None else min(levels_from, first)
    for customer, part in _by_customer(watch, released.select(EVENT_SCHEMA.names())).items():
        before = levels.get(customer, state.levels.get(customer))
        levels[customer] = part if before is None else pl.concat([before, part])
        first = part["time"].min()
        assert isinstance(first, datetime)
        levels_from = first if levels_from is None else min(levels_from, first)
    foreign = {customer: live for customer, live in step.foreign.items() if customer in watch.budgets}
    touched |= foreign.keys()
    asked = set(watch.budgets) if is_look else touched
    part = state.spending.part(asked)
    if is_look and watch.number != state.watch.number:
        part.fit(watch.master, earlier)  # whatever has to be read from the log again is read by looks
    part.unbook(watch.master, touched, removed.select(EVENT_SCHEMA.names()), earlier)
    part.book(watch.master, touched, released.select(EVENT_SCHEMA.names()), earlier)
    for customer, live in foreign.items():
        part.set_foreign(watch.master, customer, live, earlier)
    looked_at = state.looked_at
    alerts: list[Alert] = []
    for now in [step.now, *([step.then] if step.then is not None else [])] if is_look else []:
        same = watch.number == state.watch.number and not rebuilt
        since = None if looked_at is None or not same else min(looked_at, levels_from or looked_at)
        if watch.level_types:
            _look_at_levels(watch, watch.budgets, part.budgets, now, {**state.levels, **levels}, since)
        looked_at, levels_from = now, None
        if now is not step.now and waiting.height:  # what lay ahead may have come
            reasons = classify(waiting, watch.master.rating_book(), now, new=_none_new(waiting))
            come, waiting = waiting.filter(reasons.is_null()), waiting.filter(~reasons.is_null())
            part.book(watch.master, set(watch.budgets), come.select(EVENT_SCHEMA.names()), earlier)
            for customer, more in _by_customer(watch, come.select(EVENT_SCHEMA.names())).items():
                before = levels.get(customer, state.levels.get(customer))
                levels[customer] = more if before is None else pl.concat([before, more])
        found = part.budgets.reached(watch.in_order(asked), now)
        alerts += [alert for alert in found if alert.key not in {one.key for one in alerts}]
    if not is_look:
        # Who has a new level is looked at by himself: what it has cost so far counts at once.
        since = None if state.looked_at is None else min(state.looked_at, levels_from or state.looked_at)
        _look_at_levels(watch, levels, part.budgets, step.now, levels, since)
        alerts = part.budgets.reached(watch.in_order(touched), step.now)
    return Planned(watch, part, waiting, levels, looked_at, levels_from, tuple(alerts), step.shown)


def _owners(watch: Watch, events: pl.DataFrame) -> set[str]:
    return {watch.owners[key] for key in events["customer"].unique()}


def _by_customer(watch: Watch, events: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Events that levels are made of, by customer."""
    if not watch.level_types or events.height == 0:
        return {}
    found: dict[str, pl.DataFrame] = {}
    of_levels = events.filter(pl.col("type").is_in(list(watch.level_types)))
    for (key,), part in of_levels.partition_by("customer", as_dict=True, maintain_order=True).items():
        customer = watch.owners[str(key)]
        found[customer] = pl.concat([found[customer], part]) if customer in found else part
    return found


def _look_at_levels(
    watch: Watch,
    customers: Iterable[str],
    budgets: Budgets,
    now: datetime,
    levels: Mapping[str, pl.DataFrame],
    since: datetime | None,
) -> None:
    nothing = pl.DataFrame(schema=EVENT_SCHEMA)
    for customer in customers:
        for kind in dict.fromkeys(budget.period for budget in watch.budgets[customer]):
            events = levels.get(customer, nothing)
            for start, cost in level_costs(watch.master, customer, kind, now, events, since).items():
                budgets.set_level(customer, kind, start, cost)


def _waits(reasons: pl.Series) -> pl.Series:
    """What is in suspense and may leave it by itself; what came too late leaves it by a correction only."""
    return reasons.is_not_null() & (reasons.cast(pl.String) != Reason.LATE.value)


def _none_new(events: pl.DataFrame) -> pl.Series:
    return pl.repeat(False, events.height, dtype=pl.Boolean, eager=True)


def _reasons_of_past(events: pl.DataFrame, master: MasterData, now: datetime) -> pl.Series:
    """Why earlier events are in suspense now; late is what came after its time was billed, by the runs of that day."""
    book = master.rating_book()
    if not master.closing_runs or events.height == 0:
        return classify(events, book, now, new=_none_new(events))
    runs = sorted(master.closing_runs, key=lambda mark: mark.at)
    reasons = classify(events, book, now, new=_none_new(events)).cast(pl.String).to_frame("reason")
    reasons = reasons.with_columns(events["received_at"], events["counts_late"]).with_row_index("place")
    bounds: Iterable[tuple[datetime, datetime | None]] = [*pairwise(mark.at for mark in runs), (runs[-1].at, None)]
    for count, (first, last) in enumerate(bounds, start=1):
        came = (pl.col("received_at") >= first) & ~pl.col("counts_late")
        places = reasons.filter(came if last is None else came & (pl.col("received_at") < last))["place"]
        if places.len() == 0:
            continue
        known = replace(master, runs=tuple(runs[:count])).rating_book()
        judged = classify(events[places], known, now).cast(pl.String)
        late = judged == Reason.LATE.value
        reasons = reasons.with_columns(reasons["reason"].scatter(places.filter(late), Reason.LATE.value))
    return reasons["reason"]


# --- snapshots ----------------------------------------------------------------------------------------------------


def _packed(state: TenantBudgets) -> bytes:
    spending, budgets = state.spending, state.spending.budgets
    head = {
        "master": state.watch.number,
        "looked_at": state.looked_at,
        "levels_from": state.levels_from,
        "timezone": budgets.timezone,
        "followed": [[customer, one.asked, one.keys] for customer, one in spending.followed.items()],
        "spent": _starts(budgets.spent),
        "level_costs": _starts(budgets.levels),
        "raised": [
            [code, start, threshold.text] for keys in budgets.raised.values() for code, start, threshold in keys
        ],
        "alerts": [
            [one.budget, one.threshold.text, one.at, one.period.start, one.period.end, str(one.spent)]
            for one in budgets.alerts
        ],
        "level_customers": list(state.levels),
        "shown": sorted(state.shown),
        "shown_to": {customer: sorted(names) for customer, names in state.shown_to.items()},
        "foreign": [customer for customer, one in spending.followed.items() if one.foreign is not None],
        "booked": [[customer, _days(one.booked), _days(one.owed)] for customer, one in spending.followed.items()],
    }
    usage = [one.usage.to_bytes() for one in spending.followed.values()]
    frames = [_ipc(state.waiting), *(_ipc(frame) for frame in state.levels.values())]
    foreign = [one.foreign.to_bytes() for one in spending.followed.values() if one.foreign is not None]
    parts = [msgspec.msgpack.encode(part) for part in (head, usage, frames, foreign)]
    return msgspec.msgpack.encode(parts)


def _unpacked(data: bytes, watch_at: Callable[[int], Watch]) -> TenantBudgets:
    packed, packed_usage, packed_frames, packed_foreign = msgspec.msgpack.decode(data, type=list[bytes])
    head = msgspec.msgpack.decode(packed, type=_Head)
    usage = msgspec.msgpack.decode(packed_usage, type=list[bytes])
    frames = [pl.read_ipc(io.BytesIO(one)) for one in msgspec.msgpack.decode(packed_frames, type=list[bytes])]
    budgets = Budgets(head.timezone, _read_starts(head.spent), _read_starts(head.level_costs))
    for code, start, threshold in head.raised:
        budgets.raised.setdefault(code, set()).add((code, start, Threshold.of_text(threshold)))
    for code, threshold, at, start, end, spent in head.alerts:
        budgets.alerts.append(Alert(code, Threshold.of_text(threshold), at, Period(start, end), Fraction(spent)))
    # Without master data a followed customer is compared with it anew at his next event.
    followed = {
        customer: Followed(LiveState.from_bytes(of_customer), asked, tuple(keys), None)
        for (customer, asked, keys), of_customer in zip(head.followed, usage, strict=True)
    }
    for customer, of_customer in zip(
        head.foreign, msgspec.msgpack.decode(packed_foreign, type=list[bytes]), strict=True
    ):
        followed[customer].foreign = LiveState.from_bytes(of_customer)
    for customer, booked, owed in head.booked:
        followed[customer].booked, followed[customer].owed = _read_days(booked), _read_days(owed)
    levels = dict(zip(head.level_customers, frames[1:], strict=True))
    watch = watch_at(head.master)
    shown_to = {customer: frozenset(names) for customer, names in head.shown_to.items()}
    return TenantBudgets(
        watch,
        Spending(budgets, followed),
        frames[0],
        levels,
        head.looked_at,
        head.levels_from,
        frozenset(head.shown),
        shown_to,
    )


class _Head(msgspec.Struct):
    master: int
    looked_at: datetime | None
    levels_from: datetime | None
    timezone: str
    followed: list[tuple[str, str, list[str]]]
    spent: list[tuple[str, str, datetime, str]]
    level_costs: list[tuple[str, str, datetime, str]]
    raised: list[tuple[str, datetime, str]]
    alerts: list[tuple[str, str, datetime, datetime, datetime, str]]
    level_customers: list[str]
    foreign: list[str]
    booked: list[tuple[str, list[tuple[str, str]], list[tuple[str, str]]]]
    shown: list[str] = []
    shown_to: dict[str, list[str]] = {}


def _days(costs: Mapping[date, Fraction]) -> list[tuple[str, str]]:
    return [(day.isoformat(), str(cost)) for day, cost in costs.items()]


def _read_days(rows: Sequence[tuple[str, str]]) -> dict[date, Fraction]:
    return {date.fromisoformat(day): Fraction(cost) for day, cost in rows}


def _starts(costs: Mapping[tuple[str, str], Mapping[datetime, Fraction]]) -> list[tuple[str, str, datetime, str]]:
    return [
        (customer, kind, start, str(cost))
        for (customer, kind), starts in costs.items()
        for start, cost in starts.items()
    ]


def _read_starts(rows: Sequence[tuple[str, str, datetime, str]]) -> dict[tuple[str, str], dict[datetime, Fraction]]:
    found: dict[tuple[str, str], dict[datetime, Fraction]] = {}
    for customer, kind, start, cost in rows:
        found.setdefault((customer, kind), {})[start] = Fraction(cost)
    return found


def _ipc(frame: pl.DataFrame) -> bytes:
    out = io.BytesIO()
    frame.write_ipc(out, compression="zstd")
    return out.getvalue()
