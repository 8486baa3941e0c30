"""Who or what used most of a meter."""

from datetime import date

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from billing.money import decimal_text
from deployments.access import Caller, may
from deployments.manners import described, json_response
from deployments.services import Services
from deployments.usage_queries import check_days, now_and_master, queries_of
from pipelines.usage_ranking import GROUPS_MAX, Question

router = APIRouter(prefix="/v1", tags=["Usage"])

_TOP = {
    "meter": "storage",
    "by": "customer",
    "items": [{"group": "acme", "events": 1200, "quantity": "150.5"}],
    "groups": 812,
    "events": 88214,
    "quantity": "9120.25",
}


@router.get(
    "/usage/top",
    summary="Who or what used most of a meter",
    **described(answer=_TOP, also=(422,)),
)
def read_usage_top(
    request: Request,
    meter: str = Query(max_length=256, description="The meter's code."),
    since: date = Query(description="The first local day."),
    until: date = Query(description="The last local day, included."),
    by: str = Query(
        "customer",
        max_length=256,
        description="`customer`, `subscription` (as events name it), `day`, or `dimension:NAME` of the meter's prices.",
    ),
    limit: int = Query(10, ge=1, le=GROUPS_MAX, description="So many groups."),
    order: str = Query("highest", pattern="^(highest|lowest)$", description="Which quantities come first."),
    caller: Caller = Depends(may("usage:read")),
) -> Response:
    """`groups`, `events` and `quantity` are of all groups, those left out included; `quantity` is null where quantities
    do not add up (a highest value, distinct values). Levels cannot be asked for."""
    services: Services = request.app.state.services
    check_days(since, until)
    now, _, master = now_and_master(services, caller)
    asked = Question(meter, by, since, until, limit, lowest=order == "lowest")
    found = queries_of(request).ranking(caller.tenant_id, master, asked, now)
    return json_response(
        {
            "meter": meter,
            "by": by,
            "items": [
                {"group": one.group, "events": one.events, "quantity": decimal_text(one.quantity)}
                for one in found.items
            ],
            "groups": found.groups,
            "events": found.events,
            "quantity": None if found.quantity is None else decimal_text(found.quantity),
        }
    )
