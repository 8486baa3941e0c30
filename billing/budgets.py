"""Budgets: what usage has cost in a calendar period, the alerts that this raises, and what a block leaves to reserve.

Owns when an alert is raised. A budget watches what events add to the exact cost of usage charges in the tenant's
currency, without fees, discounts, plan minimum and tax, in the period of the event's own time; levels add what they
have cost up to the clock. Source: docs/rules.md, Budgets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, cast

from billing.master import Budget, MasterData
from billing.periods import Grid, Interval, Period

BudgetPeriod = tuple[str, datetime]  # customer and start, under the budget's period kind
ZERO = Fraction(0)


@dataclass(frozen=True)
class Alert:
    budget: str
    threshold: Decimal
    at: datetime
    period: Period


@dataclass
class Budgets:
    """What was spent per customer and period, and which alerts were raised."""

    timezone: str
    spent: dict[tuple[str, str, datetime], Fraction] = field(default_factory=dict[tuple[str, str, datetime], Fraction])
    levels: dict[tuple[str, str, datetime], Fraction] = field(default_factory=dict[tuple[str, str, datetime], Fraction])
    raised: set[tuple[str, datetime, Decimal]] = field(default_factory=set[tuple[str, datetime, Decimal]])
    alerts: list[Alert] = field(default_factory=list[Alert])

    def period(self, kind: str, moment: datetime) -> Period:
        return Grid(cast("Interval", kind), "calendar", self.timezone).at(moment)

    def add(self, customer: str, moment: datetime, cost: Fraction) -> None:
        """What one event added, in every kind of period of its own time."""
        if cost:
            for kind in ("day", "week", "month", "quarter", "year"):
                key = (customer, kind, self.period(kind, moment).start)
                self.spent[key] = self.spent.get(key, ZERO) + cost

    def set_level(self, customer: str, kind: str, start: datetime, cost: Fraction) -> None:
        """What levels have cost so far in one period: replaces what was known."""
        self.levels[customer, kind, start] = cost

    def spent_in(self, budget: Budget, start: datetime) -> Fraction:
        key = (budget.customer, budget.period, start)
        return self.spent.get(key, ZERO) + self.levels.get(key, ZERO)

    def left(self, budget: Budget, now: datetime) -> Fraction:
        """What a blocking budget leaves in the running period, before reservations."""
        return Fraction(budget.amount) - self.spent_in(budget, self.period(budget.period, now).start)

    def check(self, budgets: Iterable[Budget], now: datetime) -> list[Alert]:
        """Raise what is reached and was not raised yet: once per budget, period and threshold, lower ones first."""
        new: list[Alert] = []
        for budget in budgets:
            starts = {
                start
                for customer, kind, start in (*self.spent, *self.levels)
                if customer == budget.customer and kind == budget.period
            }
            for start in sorted(starts):
                spent = self.spent_in(budget, start)
                for threshold in budget.thresholds:
                    key = (budget.code, start, threshold)
                    if key not in self.raised and spent >= Fraction(budget.amount) * Fraction(threshold) / 100:
                        self.raised.add(key)
                        new.append(Alert(budget.code, threshold, now, self.period(budget.period, start)))
        self.alerts.extend(new)
        return new


def budgets_of(master: MasterData, customer: str) -> Sequence[Budget]:
    return [budget for budget in master.budgets.values() if budget.customer == customer]


def alert_form(alert: Alert) -> dict[str, Any]:
    return {"budget": alert.budget, "threshold": alert.threshold, "at": alert.at}
