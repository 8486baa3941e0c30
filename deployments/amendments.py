"""Correcting events in suspense, amending and voiding events that count, and the trail of an event.

A thin shell: decided in the lanes (actors/amendments.py), kept in the log with who, when and why. Nothing is deleted:
the event as it was sent stays readable for ever.
"""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import polars as pl
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from actors.amendment_desk import AmendmentDesk, EventNow, as_frame
from billing.amendments import REASON_LENGTH_MAX, Amendment, EventState
from billing.errors import Conflict, FieldError, InvalidInput, NotFound
from billing.forms import Form, Mistakes
from billing.lateness import reasons_of
from billing.master import MasterData
from billing.usage import DATA_BYTES_MAX
from deployments.access import Caller, may
from deployments.bodies import json_form, known_keys
from deployments.manners import described, json_response, rfc3339
from deployments.services import Services
from deployments.usage_queries import now_and_master
from storage.usage_log.segment import instant_of, microseconds_of

router = APIRouter(prefix="/v1", tags=["Usage"])
ITEMS_MAX = 10_000
CHANGES = ("customer", "subscription", "type", "time", "data")

_CORRECTION = {"source": "gateway-7", "id": "e2", "type": "storage.write", "data": {"gb": "1.25"}}
_CORRECTED = {
    "source": "gateway-7",
    "id": "e2",
    "verdict": "corrected",
    "amendment": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "before": "unknown_type",
    "after": None,
}
_ANSWER = {"corrected": 1, "unchanged": 0, "refused": 0, "dry_run": False, "items": [_CORRECTED]}
_AMENDMENT = {"source": "gateway-7", "id": "e1", "data": {"gb": "2.50"}, "reason": "meter read twice"}
_STATE = {
    "customer": "acme",
    "type": "storage.write",
    "subscription": None,
    "time": "2026-01-20T08:59:00Z",
    "data": {"gb": "1.25"},
}
_TRAIL = {
    "items": [
        {
            "source": "gateway-7",
            "id": "e1",
            "received_at": "2026-01-20T08:59:01Z",
            "sent": _STATE,
            "counts_as": _STATE | {"data": {"gb": "2.50"}},
            "suspense": None,
            "voided": False,
            "amendments": [
                {
                    "amendment": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
                    "nth": 1,
                    "what": "amend",
                    "before": _STATE,
                    "after": _STATE | {"data": {"gb": "2.50"}},
                    "reason": "meter read twice",
                    "by": "key 0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
                    "at": "2026-01-21T10:00:00Z",
                    "pending": False,
                }
            ],
        }
    ],
    "next_cursor": None,
}
_DRY_RUN = Query(default=False, description="Only say what would become of each event; nothing is written.")


def desk_of(request: Request) -> AmendmentDesk:
    services: Services = request.app.state.services
    return AmendmentDesk(services.router, services.log)


@router.post(
    "/usage/suspense/corrections",
    summary="Correct events that are in suspense, one or many at once",
    **described(
        request={"corrections": [_CORRECTION], "reason": "sender's typing mistake"},
        answer=_ANSWER,
        also=(400, 404, 409, 413, 415, 422),
    ),
)
async def post_corrections(
    request: Request,
    dry_run: bool = _DRY_RUN,
    caller: Caller = Depends(may("usage:write")),
    form: Any = Depends(json_form),
) -> Response:
    """What is given (`customer`, `subscription`, `type`, `time`, `data`) replaces what the event said; `subscription:
    null` takes the name out. The event keeps its source and id, and counts as if it came now: a correction into a
    period that is billed is late usage. `after` is the reason why it is still in suspense, null if it counts now.

    Each event has its own verdict: `corrected`, `unchanged` (it is so already: repeating a request does no harm) or
    `refused` with the detail. If nothing at all could be done, the answer is an error. `key` names the customer key
    that the event was sent with, where one id came under two.
    """
    return await change_events(request, caller, form, dry_run, is_correction=True)


@router.post(
    "/usage/amendments",
    summary="Change or void events that count already, with a reason",
    **described(
        request={"amendments": [_AMENDMENT, {"source": "gateway-7", "id": "e3", "void": True, "reason": "test"}]},
        answer=_ANSWER,
        also=(400, 404, 409, 413, 415, 422),
    ),
)
async def post_amendments(
    request: Request,
    dry_run: bool = _DRY_RUN,
    caller: Caller = Depends(may("billing:write")),
    form: Any = Depends(json_form),
) -> Response:
    """As for corrections, for any event, or `void: true` to let it count no more. A `reason` is needed, one for all or
    one each. Where the event's period is billed already, the next bill run has the difference as late usage has it,
    also in a tenant that rejects late usage: somebody decided this. Who, when and why stay readable with the event. A
    key that only sends usage may not do this.
    """
    return await change_events(request, caller, form, dry_run, is_correction=False)


@router.get(
    "/usage/trail",
    summary="An event as it was sent, as it counts, and everything between",
    **described(answer=_TRAIL, also=(404, 422)),
)
async def read_trail(
    request: Request,
    source: str = Query(max_length=256, description="The event's source."),
    id: str = Query(max_length=256, description="The event's id."),
    caller: Caller = Depends(may("usage:read")),
) -> Response:
    """One item; several where one id came under several customer keys."""
    services: Services = request.app.state.services
    now, _, master = await asyncio.to_thread(now_and_master, services, caller)
    found = await asyncio.to_thread(desk_of(request).look, caller.tenant_id, [(source, id)])
    events = found.of(source, id, None)
    if not events:
        raise NotFound(f"there is no event {id!r} of source {source!r}")
    reasons = reasons_of(as_frame(events), master, now).to_list()
    items = [_trail(one, reason) for one, reason in zip(events, reasons, strict=True)]
    return json_response({"items": items, "next_cursor": None})


@dataclass(frozen=True)
class _Asked:
    """One entry of a request."""

    place: int
    source: str
    id: str
    key: str | None
    amendment: str
    changes: Mapping[str, Any]
    is_void: bool
    why: str


async def change_events(
    request: Request,
    caller: Caller,
    form: Any,
    dry_run: bool,
    *,
    is_correction: bool,
    more: Mapping[str, Any] | None = None,
) -> Response:
    """Each event that is named, with its own verdict; `more` goes into the answer."""
    services: Services = request.app.state.services
    desk = desk_of(request)
    asked = _parse(form, caller.timezone, is_correction=is_correction)
    if not dry_run:
        await desk.finish(caller.tenant_id)  # what a crash left half done decides which state an event has
    now, _, master = await asyncio.to_thread(now_and_master, services, caller)
    found = await asyncio.to_thread(desk.look, caller.tenant_id, [(one.source, one.id) for one in asked])
    items: list[dict[str, Any]] = [{"source": one.source, "id": one.id} for one in asked]
    ready: list[tuple[_Asked, EventNow]] = []
    for one in asked:
        events = found.of(one.source, one.id, one.key)
        if len(events) == 1:
            ready.append((one, events[0]))
        elif not events:
            items[one.place] |= {"verdict": "refused", "code": "not_found", "detail": "there is no such event"}
        else:
            detail = f"this id came under {len(events)} customer keys: name one as key"
            items[one.place] |= {"verdict": "refused", "code": "conflict", "detail": detail}
    amendments = _amendments(ready, items, master, now, caller, is_correction=is_correction)
    if not dry_run:
        outcomes = await desk.decide(caller.tenant_id, [amendment for _, amendment in amendments])
        for (place, _), outcome in zip(amendments, outcomes, strict=True):
            if outcome.decided is None:
                items[place] |= {"verdict": "refused", "code": "conflict", "detail": outcome.detail}
    counts = {verdict: sum(item["verdict"] == verdict for item in items) for verdict in _VERDICTS}
    if counts["refused"] == len(items):
        raise _all_refused(items, "corrections" if is_correction else "amendments")
    return json_response({**counts, "dry_run": dry_run, "items": items, **(more or {})})


_VERDICTS = ("corrected", "unchanged", "refused")


def _amendments(
    ready: Sequence[tuple[_Asked, EventNow]],
    items: list[dict[str, Any]],
    master: MasterData,
    now: datetime,
    caller: Caller,
    *,
    is_correction: bool,
) -> list[tuple[int, Amendment]]:
    """What is to be decided, by its place; the other items get their verdict here."""
    if not ready:
        return []
    events = [event for _, event in ready]
    befores = reasons_of(as_frame(events), master, now).to_list()
    wanted = [_changed(event.state or event.sent, one.changes) for one, event in ready]
    late_counts = [not is_correction and before is None for before in befores]
    judged = as_frame(events, wanted).with_columns(counts_late=pl.Series(late_counts, dtype=pl.Boolean))
    afters = reasons_of(judged, master, now).to_list()
    found: list[tuple[int, Amendment]] = []
    seen: set[tuple[str, str, str]] = set()
    for (one, event), before, after, state, late in zip(ready, befores, afters, wanted, late_counts, strict=True):
        item = items[one.place]
        result = None if one.is_void else state
        if event.event.identity in seen:
            item |= {"verdict": "refused", "code": "conflict", "detail": "the event is named twice"}
        elif result == event.state:
            item |= {"verdict": "unchanged", "before": before, "after": before}
        elif event.state is None and is_correction:
            item |= {"verdict": "refused", "code": "conflict", "detail": "the event was voided"}
        elif is_correction and before is None:
            item |= {"verdict": "refused", "code": "conflict", "detail": "the event is not in suspense; amend it"}
        else:
            seen.add(event.event.identity)
            item |= {"verdict": "corrected", "amendment": one.amendment, "before": before}
            item["after"] = None if one.is_void else after
            found.append(
                (
                    one.place,
                    Amendment(
                        id=one.amendment,
                        nth=event.nth + 1,
                        event=event.event,
                        before=event.state or event.sent,
                        after=result,
                        why=one.why,
                        by=caller.actor,
                        at_us=0,  # the lane's own time, when it decides
                        counts_late=late or (event.counts_late and not is_correction),
                    ),
                )
            )
    return found


def _changed(state: EventState, changes: Mapping[str, Any]) -> EventState:
    return EventState(**({"customer": state.customer, "type": state.type, "subscription": state.subscription,
                          "time_us": state.time_us, "data": state.data} | changes))  # fmt: skip


def _parse(form: Any, timezone: str, *, is_correction: bool) -> list[_Asked]:
    name = "corrections" if is_correction else "amendments"
    whole = known_keys(form, (name, "reason"), (name,))
    mistakes = Mistakes()
    top = Form(whole, "", mistakes)
    reason = top.text("reason", "", REASON_LENGTH_MAX)
    found: list[_Asked] = []
    ids: set[str] = set()
    for place, (pointer, entry) in enumerate(top.items(name, most=ITEMS_MAX)):
        one = Form(entry, pointer, mistakes)
        changes: dict[str, Any] = {}
        for key in ("customer", "type"):
            if key in one.fields:
                changes[key] = one.code(key)
        if "subscription" in one.fields:
            changes["subscription"] = None if one.raw("subscription") is None else one.code("subscription")
        if "time" in one.fields:
            changes["time_us"] = microseconds_of(one.moment("time", timezone))
        if "data" in one.fields:
            data = msgspec.json.encode(one.mapping("data")).decode()
            if len(data.encode()) > DATA_BYTES_MAX:
                one.wrong("data", f"is longer than {DATA_BYTES_MAX} bytes")
            changes["data"] = data
        is_void = not is_correction and one.truth("void", default=False)
        why = one.text("reason", reason, REASON_LENGTH_MAX)
        if not is_correction and not why:
            one.wrong("reason", "is missing")
        if is_void and changes:
            one.wrong("void", "an event is voided or changed, not both")
        if not is_void and not changes:
            mistakes.add(pointer, f"says nothing to change: {', '.join(CHANGES)}")
        amendment = one.code("amendment") if "amendment" in one.fields else str(uuid.uuid4())
        if amendment in ids:
            one.wrong("amendment", "is the id of another amendment in this request")
        ids.add(amendment)
        found.append(
            _Asked(
                place,
                one.code("source"),
                one.code("id"),
                one.code("key") if "key" in one.fields else None,
                amendment,
                changes,
                is_void,
                why,
            )
        )
        one.done()
    if not found and not mistakes.errors:
        mistakes.add(f"/{name}", "is empty")
    mistakes.check()
    return found


def _all_refused(items: Sequence[Mapping[str, Any]], name: str) -> Conflict | NotFound | InvalidInput:
    errors = [FieldError(f"/{name}/{place}", item["detail"]) for place, item in enumerate(items)]
    detail = f"nothing was changed: {items[0]['detail']}"
    if all(item["code"] == "not_found" for item in items):
        return NotFound(detail, errors=errors)
    return Conflict(detail, errors=errors)


def _shown_state(state: EventState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        "customer": state.customer,
        "type": state.type,
        "subscription": state.subscription,
        "time": rfc3339(instant_of(state.time_us)),
        "data": msgspec.Raw(state.data.encode()),
    }


def _trail(one: EventNow, reason: str | None) -> dict[str, Any]:
    return {
        "source": one.event.source,
        "id": one.event.id,
        "received_at": rfc3339(instant_of(one.event.received_us)),
        "sent": _shown_state(one.sent),
        "counts_as": _shown_state(one.state),
        "suspense": None if one.state is None else reason,
        "voided": one.state is None,
        "amendments": [
            {
                "amendment": each.id,
                "nth": each.nth,
                "what": each.what,
                "before": _shown_state(each.before),
                "after": _shown_state(each.after),
                "reason": each.why,
                "by": each.by,
                "at": rfc3339(instant_of(each.at_us)),
                "pending": each.id in one.pending,
            }
            for each in one.trail
        ],
    }
