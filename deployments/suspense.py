"""Events in suspense corrected all at once: those that a filter finds, changed in the same way."""

import asyncio
from typing import Any

import polars as pl
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from billing.errors import FieldError, InvalidInput, NotFound
from deployments.access import Caller, may
from deployments.amendments import ITEMS_MAX, change_events
from deployments.bodies import json_form, known_keys
from deployments.manners import described, json_response
from deployments.services import Services
from deployments.suspense_filter import SuspenseFilter
from deployments.usage_queries import now_and_master, with_reasons

router = APIRouter(prefix="/v1", tags=["Usage"])
_CHANGES = ("customer", "type", "subscription", "time", "data")


@router.post(
    "/usage/suspense/replay",
    summary="Correct all events in suspense that a filter finds",
    **described(
        request={
            "filter": {"reason": "unknown_customer", "customer": "acme-old"},
            "changes": {"customer": "acme"},
            "reason": "renamed at the sender",
        },
        answer={
            "corrected": 1,
            "unchanged": 0,
            "refused": 0,
            "dry_run": False,
            "items": [{"source": "gateway-7", "id": "e1", "verdict": "corrected", "before": "unknown_customer",
                       "after": None, "amendment": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11"}],
            "more": False,
        },
        also=(400, 404, 409, 413, 415, 422),
    ),
)  # fmt: skip
async def post_suspense_replay(
    request: Request,
    dry_run: bool = Query(default=False, description="Only say what would become of each event."),
    caller: Caller = Depends(may("usage:write")),
    form: Any = Depends(json_form),
) -> Response:
    """`filter` as in `GET /v1/usage/suspense` (at least one of reason, customer, source, type, q, since, until);
    `changes` as in a correction, the same for all. At most 10,000 at once, the first that came first; `more` says that
    others are left: send the same again. What was corrected is found no more, so repeating does no harm. Nothing to
    change is needed where only master data were missing: such events rate by themselves."""
    services: Services = request.app.state.services
    whole = known_keys(form, ("filter", "changes", "reason"), ("filter", "changes"))
    wanted = SuspenseFilter.of(whole["filter"])
    changes = known_keys(whole["changes"], _CHANGES)
    if not changes:
        raise InvalidInput("changes is empty", errors=[FieldError("/changes", f"some of {', '.join(_CHANGES)}")])
    found = await asyncio.to_thread(_find, services, caller, wanted)
    if found.height == 0:
        return json_response(
            {"corrected": 0, "unchanged": 0, "refused": 0, "dry_run": dry_run, "items": [], "more": False}
        )
    corrections = [
        {"source": source, "id": id, **({} if amended else {"key": key}), **changes}
        for source, id, key, amended in found.head(ITEMS_MAX).select("source", "id", "customer", "amended").iter_rows()
    ]
    body = {"corrections": corrections, **({"reason": whole["reason"]} if "reason" in whole else {})}
    more = {"more": found.height > ITEMS_MAX}
    return await change_events(request, caller, body, dry_run, is_correction=True, more=more)


def _find(services: Services, caller: Caller, wanted: SuspenseFilter) -> pl.DataFrame:
    """The first that came first, one more than are taken at once."""
    now, _, master = now_and_master(services, caller)
    keeps = wanted.keeps(master.tenant.timezone)
    kept: pl.DataFrame | None = None
    for frame in with_reasons(services, caller, master, now):
        both = frame.filter(keeps) if kept is None else pl.concat([kept, frame.filter(keeps)])
        kept = both.sort("received_at", "lane", "number", "row").head(ITEMS_MAX + 1)
    if kept is None:
        raise NotFound("this tenant has no events")
    return kept
