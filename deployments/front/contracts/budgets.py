"""Budgets as pages show them: spent of the limit, thresholds, where the period will end, and the alerts so far.

Owns the look. What was spent and crossed is the lanes' (`actors/budget_desk.py`); a page that cannot reach them says so
and shows what was agreed.
"""

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_DOWN, Decimal
from functools import partial
from typing import Annotated, Any, TypeVar

from anyio import from_thread
from fastapi import APIRouter, Depends, Form, Response

from actors.budget_desk import BudgetDesk
from billing.errors import NotFound, Unavailable
from billing.master import Budget, MasterData
from billing.thresholds import Threshold
from deployments.front.page import Front, Visit, path_of
from storage.sql import audit, webhooks

ALERTS_SHOWN = 6
ALERTS_READ = 1_000
HUNDRED = Decimal(100)
log = logging.getLogger("cloudbilling.http")
T = TypeVar("T")


@dataclass(frozen=True)
class ThresholdView:
    threshold: Threshold
    amount: Decimal
    crossed_at: datetime | None
    x: str  # in percent of the bar's width


@dataclass(frozen=True)
class LiveView:
    """The running period."""

    spent: Decimal
    left: Decimal
    percent: Decimal
    state: str  # ok, warned, exceeded
    fill: str
    start: datetime
    end: datetime
    as_of: datetime
    forecast: Decimal | None
    forecast_percent: Decimal
    forecast_x: str | None
    elapsed_percent: Decimal
    thresholds: list[ThresholdView]


@dataclass(frozen=True)
class BudgetView:
    code: str
    customer: str
    period: str
    action: str
    currency: str
    limit: Decimal
    thresholds: list[Threshold]
    live: LiveView | None  # None: the lanes do not answer just now


@dataclass(frozen=True)
class AlertView:
    id: str
    budget: str
    threshold: Threshold
    spent: Decimal
    currency: str
    at: datetime
    start: datetime
    customer: str
    seen_by: str = ""  # who has acknowledged it
    seen_at: datetime | None = None
    note: str = ""


@dataclass(frozen=True)
class BudgetsView:
    budgets: list[BudgetView]
    alerts: list[AlertView]  # newest first
    alerts_total: int
    away: bool


def routes(front: Front) -> APIRouter:
    """Saying that an alert was seen."""
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)

    @router.post("/alerts/{alert_id}/acknowledge")
    def acknowledge(
        visit: Annotated[Visit, visitor],
        alert_id: str,
        form_token: Annotated[str, Form(max_length=200)] = "",
    ) -> Response:
        visit.need("contracts:write")
        front.check_form(visit, form_token)
        desk = BudgetDesk(services.router)
        found = _wait(partial(desk.alerts, visit.tenant_id, ids=[alert_id], limit=1, look=False))
        if not found:
            raise NotFound(f"there is no alert {alert_id!r}")
        now, actor = services.clock(), visit.user.actor
        with services.database.tenant(visit.tenant_id) as connection:
            if not webhooks.acknowledged(connection, [alert_id]):
                webhooks.acknowledge(connection, visit.tenant_id, alert_id, actor=actor, note="", now=now)
                audit.record(
                    connection, visit.tenant_id, at=now, actor=actor, action="alert acknowledged", subject=alert_id
                )
        return front.go(visit, path_of("customers", found[0]["customer"]) + "#alerts")

    return router


def near(front: Front, visit: Visit, master: MasterData, most: int) -> list[BudgetView]:
    """Budgets that have reached their first threshold; none while the lanes do not answer."""
    if not master.budgets:
        return []
    desk = BudgetDesk(front.services.router)
    try:
        found = _wait(partial(desk.states, visit.tenant_id, near=True, limit=most))
    except Unavailable as error:
        log.warning("budgets cannot be read: %s", error.detail)
        return []
    return [_budget(master, master.budgets[one["budget"]], one) for one in found[:most]]


def of_customer(front: Front, visit: Visit, master: MasterData, customer: str) -> BudgetsView:
    budgets = [one for one in master.budgets.values() if one.customer == customer]
    if not budgets:
        return BudgetsView([], [], 0, False)
    desk = BudgetDesk(front.services.router)
    away = False
    states: dict[str, dict[str, Any]] = {}
    raised: list[dict[str, Any]] = []
    try:
        states = {one["budget"]: one for one in _wait(partial(desk.states, visit.tenant_id, customer=customer))}
        raised = _wait(partial(desk.alerts, visit.tenant_id, customer=customer, limit=ALERTS_READ))
    except Unavailable as error:
        log.warning("budgets cannot be read: %s", error.detail)
        away = True
    views = [_budget(master, one, states.get(one.code)) for one in budgets]
    newest = raised[-ALERTS_SHOWN:]
    with front.services.database.tenant(visit.tenant_id) as connection:
        seen = webhooks.acknowledged(connection, [one["id"] for one in newest])
    alerts = [_alert(one, seen.get(one["id"])) for one in reversed(newest)]
    return BudgetsView(views, alerts, len(raised), away)


def _budget(master: MasterData, one: Budget, state: dict[str, Any] | None) -> BudgetView:
    live = None if state is None else _live(state)
    currency = master.tenant.currency
    return BudgetView(one.code, one.customer, one.period, one.action, currency, one.amount, list(one.thresholds), live)


def _wait(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Pages are made in threads; the lanes are asked in the server's own event loop."""
    return from_thread.run(call)


def _live(form: dict[str, Any]) -> LiveView:
    percent = Decimal(form["percent"])
    forecast = form["forecast"]
    whole = max(HUNDRED, percent)
    crossed = [one for one in form["thresholds"] if one["crossed_at"] is not None]
    state = "exceeded" if percent >= HUNDRED else "warned" if crossed else "ok"
    ahead = None if forecast is None else Decimal(forecast["percent"])
    return LiveView(
        spent=Decimal(form["spent"]),
        left=Decimal(form["left"]),
        percent=_tenth(percent),
        state=state,
        fill=_share(max(percent, Decimal(0)), whole),
        start=_moment(form["from"]),
        end=_moment(form["to"]),
        as_of=_moment(form["as_of"]),
        forecast=None if forecast is None else Decimal(forecast["amount"]),
        forecast_percent=_tenth(ahead or Decimal(0)),
        forecast_x=None if ahead is None or ahead < percent else _share(min(ahead, whole), whole),
        elapsed_percent=Decimal(0) if forecast is None else _tenth(Decimal(forecast["elapsed_percent"])),
        thresholds=[
            ThresholdView(
                Threshold.of_form(one["threshold"]), Decimal(one["amount"]),
                None if one["crossed_at"] is None else _moment(one["crossed_at"]),
                _share(min(Decimal(one["amount"]) * HUNDRED / Decimal(form["amount"]), whole), whole),
            )
            for one in form["thresholds"]
        ],
    )  # fmt: skip


def _tenth(percent: Decimal) -> Decimal:
    return percent.quantize(Decimal("0.1"), ROUND_DOWN)


def _share(part: Decimal, whole: Decimal) -> str:
    return f"{part * HUNDRED / whole:.2f}"


def _alert(form: dict[str, Any], seen: dict[str, Any] | None) -> AlertView:
    known = {} if seen is None else {"seen_by": seen["by"], "seen_at": seen["at"], "note": seen["note"]}
    return AlertView(
        form["id"], form["budget"], Threshold.of_form(form["threshold"]), Decimal(form["spent"]), form["currency"],
        _moment(form["at"]), _moment(form["from"]), form["customer"], **known,
    )  # fmt: skip


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
