"""Budgets: what usage has cost in a calendar period, the alerts that this raises, and what a block leaves to reserve.

Owns when an alert is raised. A budget watches what events add to the exact cost of usage charges in the tenant's
currency, without fees, discounts, plan minimum and tax, in the period of the event's own time; levels add what they
have cost up to the clock. What that is, is followed by `billing/spending.py`. Source: docs/rules.md, Budgets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from typing import cast

from billing.master import Budget, MasterData
from billing.periods import Grid, Interval, Period, grid, local_date, midnight
from billing.thresholds import Threshold

KINDS = ("day", "week", "month", "quarter", "year")
Starts = dict[datetime, Fraction]  # by the start of the period
Key = tuple[str, datetime, Threshold]  # of an alert: budget, start of the period, threshold
ZERO = Fraction(0)


@dataclass(frozen=True)
class Alert:
    budget: str
    threshold: Threshold
    at: datetime
    period: Period
    spent: Fraction = ZERO

    @property
    def key(self) -> Key:
        return (self.budget, self.period.start, self.threshold)


@dataclass
class Budgets:
    """What was spent per customer and period, and which alerts were raised."""

    timezone: str
    spent: dict[tuple[str, str], Starts] = field(default_factory=dict[tuple[str, str], Starts])  # customer, kind
    levels: dict[tuple[str, str], Starts] = field(default_factory=dict[tuple[str, str], Starts])
    raised: dict[str, set[Key]] = field(default_factory=dict[str, set[Key]])  # by budget
    alerts: list[Alert] = field(default_factory=list[Alert])

    def period(self, kind: str, moment: datetime) -> Period:
        """The calendar period of that kind that contains the moment."""
        # Asked by days: a grid remembers what it was asked, and moments are many.
        return calendar(kind, self.timezone).at(midnight(local_date(moment, self.timezone), self.timezone))

    def add(self, customer: str, moment: datetime, cost: Fraction) -> None:
        """What an event of that time added, in every kind of period of its own time."""
        if cost:
            for kind in KINDS:
                starts = self.spent.setdefault((customer, kind), {})
                start = self.period(kind, moment).start
                starts[start] = starts.get(start, ZERO) + cost

    def set_level(self, customer: str, kind: str, start: datetime, cost: Fraction) -> None:
        """What levels have cost so far in one period: replaces what was known."""
        self.levels.setdefault((customer, kind), {})[start] = cost

    def spent_in(self, budget: Budget, start: datetime) -> Fraction:
        key = (budget.customer, budget.period)
        return self.spent.get(key, {}).get(start, ZERO) + self.levels.get(key, {}).get(start, ZERO)

    def left(self, budget: Budget, now: datetime) -> Fraction:
        """What a blocking budget leaves in the running period, before reservations."""
        return Fraction(budget.amount) - self.spent_in(budget, self.period(budget.period, now).start)

    def reached(self, budgets: Iterable[Budget], now: datetime) -> list[Alert]:
        """What is reached and was not raised yet: by budget and period, lower thresholds first."""
        found: list[Alert] = []
        for budget in budgets:
            key = (budget.customer, budget.period)
            for start in sorted({*self.spent.get(key, {}), *self.levels.get(key, {})}):
                spent = self.spent_in(budget, start)
                for threshold in budget.thresholds:
                    if spent < threshold.limit(budget.amount):
                        break
                    if (budget.code, start, threshold) not in self.raised.get(budget.code, ()):
                        found.append(Alert(budget.code, threshold, now, self.period(budget.period, start), spent))
        return found

    def record(self, alert: Alert) -> bool:
        """The alert is raised: once per budget, period and threshold, for ever. False if it was before."""
        raised = self.raised.setdefault(alert.budget, set())
        if alert.key in raised:
            return False
        raised.add(alert.key)
        self.alerts.append(alert)
        return True

    def part(self, customers: Iterable[str]) -> Budgets:
        """What these customers spent, to go on with apart; what was raised is looked up here and not changed."""
        keys = [(customer, kind) for customer in customers for kind in KINDS]
        return Budgets(
            self.timezone,
            {key: dict(self.spent[key]) for key in keys if key in self.spent},
            {key: dict(self.levels[key]) for key in keys if key in self.levels},
            self.raised,
        )

    def take(self, part: Budgets) -> None:
        """What a part has become counts."""
        self.spent.update(part.spent)
        self.levels.update(part.levels)

    def forget(self, customer: str, codes: Collection[str]) -> None:
        """Drop a customer's, with what his budgets raised: he is looked after elsewhere."""
        for kind in KINDS:
            self.spent.pop((customer, kind), None)
            self.levels.pop((customer, kind), None)
        for code in codes:
            self.raised.pop(code, None)
        self.alerts = [one for one in self.alerts if one.budget not in codes]

    def check(self, budgets: Iterable[Budget], now: datetime) -> list[Alert]:
        """Raise what is reached and was not raised yet."""
        new = self.reached(budgets, now)
        for alert in new:
            self.record(alert)
        return new


@dataclass(frozen=True)
class Forecast:
    """What the period will have cost at its end if it goes on as it did so far: spent x whole / elapsed."""

    amount: Fraction
    elapsed: Fraction  # the share of the period that is over

    @classmethod
    def linear(cls, spent: Fraction, period: Period, now: datetime) -> Forecast | None:
        """None before the period has begun: there is nothing to go by."""
        elapsed = Fraction(_microseconds(now - period.start), _microseconds(period.end - period.start))
        if elapsed <= 0:
            return None
        elapsed = min(elapsed, Fraction(1))
        return cls(spent / elapsed, elapsed)


def _microseconds(length: timedelta) -> int:
    return (length.days * 86_400 + length.seconds) * 1_000_000 + length.microseconds


def calendar(kind: str, timezone: str) -> Grid:
    """The calendar periods of one kind: one grid for all, which remembers its periods."""
    return grid(cast("Interval", kind), "calendar", timezone, datetime.min)


def budgets_of(master: MasterData, customer: str) -> Sequence[Budget]:
    return [budget for budget in master.budgets.values() if budget.customer == customer]
