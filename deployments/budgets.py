"""Budgets as they stand and the alerts that they raised. A thin shell: the lanes follow them (actors/budget_watch.py).

Budgets are made and changed with the contracts (`POST /v1/budgets`).
"""

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from actors.budget_desk import BudgetDesk, Position
from billing.errors import FieldError, InvalidInput, NotFound
from deployments.access import Caller, may
from deployments.manners import PageOf, described, json_response, page_of, paging, plain
from deployments.services import Services
from storage.sql import webhooks

router = APIRouter(prefix="/v1", tags=["Contracts"])

_STATE = {
    "budget": "b1",
    "customer": "acme",
    "action": "notify",
    "period": "month",
    "from": "2026-05-01T00:00:00+02:00",
    "to": "2026-06-01T00:00:00+02:00",
    "as_of": "2026-05-11T10:00:00Z",
    "currency": "EUR",
    "amount": "20.00",
    "spent": "12.40",
    "left": "7.60",
    "percent": "62",
    "thresholds": [
        {"threshold": "50", "amount": "10.00", "crossed_at": "2026-05-09T08:30:00Z"},
        {"threshold": "100", "amount": "20.00", "crossed_at": None},
    ],
    "forecast": {"amount": "36.90", "percent": "184.5", "basis": "linear", "elapsed_percent": "33.6"},
    "lane": 0,
    "number": 4711,
    "master": 12,
}
_ALERT = {
    "id": "alert_5f3a9c0b8e7d6c5b4a39281706f5e4d3",
    "budget": "b1",
    "customer": "acme",
    "action": "notify",
    "threshold": "50",
    "at": "2026-05-09T08:30:00Z",
    "from": "2026-05-01T00:00:00+02:00",
    "to": "2026-06-01T00:00:00+02:00",
    "spent": "10.20",
    "currency": "EUR",
    "acknowledged": {"at": "2026-05-09T09:02:00Z", "by": "user ann@example.org", "note": "talked to the customer"},
}
PAGES_MAX = 50  # of alerts that are looked through for open ones


def desk_of(request: Request) -> BudgetDesk:
    desk: BudgetDesk = request.app.state.budgets
    return desk


@router.get(
    "/budgets/{code:path}/state",
    summary="What a budget's period has cost so far, what is left, and where it will end",
    **described(answer=_STATE, also=(404,)),
)
async def read_budget_state(request: Request, code: str, caller: Caller = Depends(may("contracts:read"))) -> Response:
    """`spent` is the exact cost of usage so far, rounded for show; `percent` is rounded down, so 100 means reached.
    `forecast` goes on as the period went so far (`basis: linear`, spent by the share that has elapsed). True as of the
    lane's `number`: all usage that was acknowledged before this request, of customer keys at home in that lane."""
    states = await desk_of(request).states(caller.tenant_id, budget=code)
    if not states:
        raise NotFound(f"there is no budget {code!r}", budget=code)
    return json_response(states[0])


@router.get(
    "/budget-states",
    summary="How all budgets stand, or those of a customer",
    **described(answer={"items": [_STATE], "next_cursor": None}, also=(404, 422)),
)
async def list_budget_states(
    request: Request,
    customer: str | None = Query(None, max_length=256, description="Only of this customer."),
    caller: Caller = Depends(may("contracts:read")),
) -> Response:
    """By the budget's code, each as `GET /v1/budgets/{code}/state` shows it."""
    await _check_customer(request, caller, customer)
    states = await desk_of(request).states(caller.tenant_id, customer=customer)
    return json_response({"items": states, "next_cursor": None})


@router.get(
    "/alerts",
    summary="Thresholds that budgets crossed, in the order of the log",
    **described(answer={"items": [_ALERT], "next_cursor": None}, also=(404, 422)),
)
async def list_alerts(
    request: Request,
    page: PageOf = Depends(paging),
    customer: str | None = Query(None, max_length=256, description="Only of this customer's budgets."),
    budget: str | None = Query(None, max_length=256, description="Only of this budget."),
    open: bool = Query(
        False, description="Only alerts that nobody has acknowledged, of budgets that tell people (not `webhook`)."
    ),
    caller: Caller = Depends(may("contracts:read")),
) -> Response:
    """Each threshold once per budget and period, for ever: an alert stands in the log beside the usage that crossed it.
    `at` is the tenant's time (of a test tenant its clock), `spent` what had been spent then. New ones come at the end:
    keep the last cursor and ask again. `acknowledged` is null until somebody has seen it
    (`POST /v1/alerts/{id}/acknowledge`)."""
    await _check_customer(request, caller, customer)
    services: Services = request.app.state.services
    after, found = _position(page), list[dict[str, Any]]()
    for _ in range(PAGES_MAX):
        part = await desk_of(request).alerts(
            caller.tenant_id, customer=customer, budget=budget, after=after, limit=page.limit + 1, look=not found
        )
        seen = await asyncio.to_thread(_acknowledged, services, caller.tenant_id, [form["id"] for form in part])
        found += [form | {"acknowledged": seen.get(form["id"])} for form in part if not (open and form["id"] in seen)]
        if len(found) > page.limit or len(part) <= page.limit:
            break
        after = part[-1]["position"]
    return page_of(found, page, lambda form: form["position"], _shown)


def _acknowledged(services: Services, tenant_id: str, ids: list[str]) -> dict[str, Any]:
    if not ids:
        return {}
    with services.database.tenant(tenant_id) as connection:
        return {id: plain(one) for id, one in webhooks.acknowledged(connection, ids).items()}


def _shown(form: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in form.items() if key != "position"}


def _position(page: PageOf) -> Position | None:
    after = page.after
    if after is None:
        return None
    if isinstance(after, list) and len(after) == 4 and all(isinstance(each, int) for each in after):
        return (after[0], after[1], after[2], after[3])
    raise InvalidInput("cursor belongs to another list", errors=[FieldError("query:cursor", "of another list")])


async def _check_customer(request: Request, caller: Caller, customer: str | None) -> None:
    if customer is not None:
        services: Services = request.app.state.services
        _, master = await asyncio.to_thread(services.masters.newest, caller.tenant_id)
        master.customer(customer)
