"""How budgets and their alerts are shown, and which of them a question asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec

from billing.budget_state import TenantBudgets
from billing.budgets import Alert, Forecast
from billing.master import Budget
from billing.money import decimal_text, round_amount
from billing.thresholds import Threshold
from billing.webhooks import alert_id

ALERTS_MAX = 1_000  # of one answer


@dataclass(frozen=True)
class RecordedAlert:
    """An alert with its place in the order of the log: it stays what it is when the alert moves."""

    alert: Alert
    log_time_us: int
    lane: int
    number: int
    place: int

    @property
    def position(self) -> tuple[int, int, int, int]:
        return self.log_time_us, self.lane, self.number, self.place


class WhichBudgets(msgspec.Struct):
    customer: str | None = None
    budget: str | None = None
    after: tuple[int, int, int, int] | None = None
    limit: int = ALERTS_MAX
    alerts: frozenset[str] = frozenset()  # only these, by their ids
    near: bool = False  # of budgets only those that have reached their first threshold (100 % without any)

    def fits(self, budget: Budget) -> bool:
        return self.customer in (None, budget.customer) and self.budget in (None, budget.code)


def chosen_budgets(state: TenantBudgets, asked: WhichBudgets) -> list[Budget]:
    customers = state.watch.budgets if asked.customer is None else {asked.customer}
    return [budget for budget in state.watch.in_order(set(customers)) if asked.fits(budget)]


def is_near(budget: Budget, state: TenantBudgets, now: datetime) -> bool:
    budgets = state.spending.budgets
    spent = budgets.spent_in(budget, budgets.period(budget.period, now).start)
    first = next(iter(budget.thresholds), Threshold(Decimal(100)))
    return spent >= first.limit(budget.amount)


def budget_form(
    budget: Budget, state: TenantBudgets, now: datetime, recorded: Sequence[RecordedAlert]
) -> dict[str, Any]:
    """A budget as it stands in the running period. Thresholds compare exact cost; what is shown is rounded."""
    budgets, currency = state.spending.budgets, state.watch.master.tenant.currency
    period = budgets.period(budget.period, now)
    spent = budgets.spent_in(budget, period.start)
    crossed = {
        one.alert.threshold: one.alert.at
        for one in recorded
        if one.alert.budget == budget.code and one.alert.period.start == period.start
    }
    forecast = Forecast.linear(spent, period, now)
    return {
        "budget": budget.code,
        "customer": budget.customer,
        "action": budget.action,
        "period": budget.period,
        "from": period.start,
        "to": period.end,
        "as_of": now,
        "currency": currency,
        "amount": str(round_amount(budget.amount, currency)),
        "spent": str(round_amount(spent, currency)),
        "left": str(round_amount(Fraction(budget.amount) - spent, currency)),
        "percent": percent_text(spent, budget.amount),
        "thresholds": [
            {
                "threshold": threshold.form,
                "amount": str(round_amount(threshold.limit(budget.amount), currency)),
                "crossed_at": crossed.get(threshold),
            }
            for threshold in budget.thresholds
        ],
        "forecast": None
        if forecast is None
        else {
            "amount": str(round_amount(forecast.amount, currency)),
            "percent": percent_text(forecast.amount, budget.amount),
            "basis": "linear",
            "elapsed_percent": percent_text(forecast.elapsed, Decimal(1)),
        },
    }


def percent_text(part: Fraction, whole: Decimal) -> str:
    """Percent with two places, rounded down: 100 is shown when it is reached."""
    return decimal_text(Decimal(part * 10_000 / Fraction(whole) // 1).scaleb(-2))


def alert_form(tenant_id: str, alert: Alert, budget: Budget, currency: str) -> dict[str, Any]:
    return {
        "id": alert_id(tenant_id, alert.budget, alert.period.start, alert.threshold.text),
        "budget": alert.budget,
        "customer": budget.customer,
        "action": budget.action,
        "threshold": alert.threshold.form,
        "at": alert.at,
        "from": alert.period.start,
        "to": alert.period.end,
        "spent": str(round_amount(alert.spent, currency)),
        "currency": currency,
    }
