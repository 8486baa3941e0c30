"""Bulk backfill: usage that is sent for long and counts at once or not at all. A thin shell: decided in the lanes.

A backfill is opened, filled, looked at, committed; and can be reverted. Its name is its idempotency: whoever sends the
same again, at any step, gets what there is.
"""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from actors.backfill_desk import BackfillDesk
from billing.backfills import NOTE_LENGTH_MAX, Backfill, is_name
from billing.body_encoding import decompress
from billing.errors import FieldError, InvalidInput, NotFound
from billing.forms import Form, Mistakes
from billing.lateness import reasons_of
from billing.parsed_usage import ParsedUsage
from billing.usage import Verdict
from billing.usage_formats import CONTENT_TYPES, parse
from deployments import examples
from deployments.access import Caller, may
from deployments.bodies import Room, json_form, known_keys, read_body
from deployments.manners import described, json_response, rfc3339
from deployments.services import Services
from deployments.usage_queries import now_and_master
from storage.usage_log.backfills import scan_waiting
from storage.usage_log.segment import instant_of

router = APIRouter(prefix="/v1/usage/backfills", tags=["Usage"])

_OPEN = {
    "backfill": "gateway-7-may",
    "state": "open",
    "note": "gateway 7 was away in May",
    "events": None,
    "opened_at": "2026-06-02T08:00:00Z",
    "opened_by": "key 0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "committed_at": None,
    "committed_by": None,
    "reverted_at": None,
    "reverted_by": None,
    "reason": None,
}
_COMMITTED = _OPEN | {
    "state": "committed",
    "events": 120000,
    "committed_at": "2026-06-02T09:10:00Z",
    "committed_by": "user ann@example.org",
}
_REVERTED = _COMMITTED | {
    "state": "reverted",
    "reverted_at": "2026-06-03T07:00:00Z",
    "reverted_by": "user ann@example.org",
    "reason": "wrong unit",
}
_SENT = {"received": 20000, "accepted": 19990, "duplicates": 8, "rejected": 2, "errors": [], "errors_left_out": 0}
_ESTIMATE = {
    "backfill": "gateway-7-may",
    "state": "open",
    "events": 120000,
    "customers": 312,
    "first": "2026-05-03T00:00:04Z",
    "last": "2026-05-31T21:59:58Z",
    "late": 0,
    "suspended": {"unknown_customer": 12},
    "types": [{"type": "storage.write", "events": 120000}],
}


def desk_of(request: Request) -> BackfillDesk:
    desk: BackfillDesk = request.app.state.backfills
    return desk


@router.post("", summary="Open a backfill", **described(
    request={"backfill": "gateway-7-may", "note": "gateway 7 was away in May"},
    answer=_OPEN, status=201, also=(400, 409, 415, 422),
))  # fmt: skip
async def open_backfill(
    request: Request, caller: Caller = Depends(may("usage:write")), form: Any = Depends(json_form)
) -> Response:
    """Events that are sent under it are stored, and count nowhere until it is committed: then all of them at once.
    Without a name it gets one. Opening it again changes nothing and answers it as it is. 100 may be open at once."""
    mistakes = Mistakes()
    top = Form(known_keys(form, ("backfill", "note")), "", mistakes)
    name = top.text("backfill", str(uuid.uuid4()), 64)
    if not is_name(name):
        top.wrong("backfill", "is no name: 1 to 64 letters, digits, dots, lines and underscores")
    note = top.text("note", "", NOTE_LENGTH_MAX)
    top.done()
    mistakes.check()
    return json_response(shown(await desk_of(request).open(caller.tenant_id, name, caller.actor, note)), 201)


@router.get("", summary="All backfills", **described(answer={"items": [_COMMITTED], "next_cursor": None}))
async def list_backfills(request: Request, caller: Caller = Depends(may("usage:read"))) -> Response:
    """In the order in which they were opened. `events` is known once a backfill is committed."""
    desk = desk_of(request)
    found = await desk.list(caller.tenant_id)
    await desk.finish(caller.tenant_id, found)
    return json_response({"items": [shown(one) for one in found], "next_cursor": None})


@router.get("/{name}", summary="One backfill", **described(answer=_COMMITTED, also=(404,)))
async def read_backfill(request: Request, name: str, caller: Caller = Depends(may("usage:read"))) -> Response:
    """Its state: `open`, `closing` (being committed or reverted: the same call again completes it), `committed` or
    `reverted`."""
    return json_response(shown(await desk_of(request).get(caller.tenant_id, named(name))))


@router.get(
    "/{name}/estimate",
    summary="What a backfill would change if it were committed now",
    **described(answer=_ESTIMATE, also=(404,)),
)
async def estimate_backfill(request: Request, name: str, caller: Caller = Depends(may("usage:read"))) -> Response:
    """Reads what has been sent: how many events of which type, customer keys and times; how many of them would be in
    suspense by today's contracts, and why; `late` lie in time that a bill run has billed: the next run settles them.
    """
    services: Services = request.app.state.services
    one = await desk_of(request).get(caller.tenant_id, named(name))
    return json_response(await asyncio.to_thread(_estimate, services, caller, one))


@router.post(
    "/{name}/events",
    summary="Send events under a backfill",
    **described(
        request={kind: None for kind in CONTENT_TYPES} | examples.USAGE_BODIES,
        answer=_SENT,
        also=(400, 404, 409, 413, 415, 422),
    ),
)
async def send_backfill(request: Request, name: str, caller: Caller = Depends(may("usage:write"))) -> Response:
    """As `POST /v1/usage`, in the same formats and with the same promise: what is `accepted` is on durable storage, and
    whoever repeats a request stores nothing twice. An id that was sent live before, or under another backfill, is a
    duplicate; that of a reverted backfill is free for the backfills that are opened after it. 409 once it is committed
    or reverted."""
    services: Services = request.app.state.services
    room: Room = request.app.state.room
    limits = services.limits
    stated = request.headers.get("content-length", "")
    held = min(int(stated), limits.body_bytes_max) if stated.isdigit() else limits.body_bytes_max
    room.take(held)
    try:
        body = await read_body(request, limits.body_bytes_max)
        parsed = await asyncio.to_thread(_parsed, request, body, services)
        del body
        if parsed.total == 0:
            raise InvalidInput("the body holds no event")
        verdicts = np.zeros(0, np.uint8)
        if parsed.events.height:
            verdicts = await desk_of(request).send(caller.tenant_id, named(name), parsed.events)
        return json_response(_sent(parsed, verdicts, limits.listed_max))
    finally:
        room.give(held)


@router.post(
    "/{name}/commit",
    summary="Let all events of a backfill count, at once",
    **described(request={}, answer=_COMMITTED, also=(404, 409)),
)
async def commit_backfill(request: Request, name: str, caller: Caller = Depends(may("billing:write"))) -> Response:
    """From this moment on all of them count, in every figure, budget and bill; before it none. Two who commit at once
    get the same answer. What lies in billed time is settled by the next bill run like late usage, also in a tenant that
    rejects late usage: somebody decided this. No more events can be sent under it."""
    return json_response(shown(await desk_of(request).commit(caller.tenant_id, named(name), caller.actor)))


@router.post(
    "/{name}/revert",
    summary="Let no event of a backfill count any more",
    **described(request={"reason": "wrong unit"}, answer=_REVERTED, also=(400, 404, 409, 415, 422)),
)
async def revert_backfill(
    request: Request, name: str, caller: Caller = Depends(may("billing:write")), form: Any = Depends(json_form)
) -> Response:
    """At once, whether it was committed or is still open; for good. What was billed of it the next bill run takes back.
    The events stay readable in the log, and their ids can be sent again under a backfill that is opened after this."""
    mistakes = Mistakes()
    top = Form(known_keys(form, ("reason",), ("reason",)), "", mistakes)
    reason = top.text("reason", "", NOTE_LENGTH_MAX)
    top.done()
    mistakes.check()
    return json_response(shown(await desk_of(request).revert(caller.tenant_id, named(name), caller.actor, reason)))


def named(name: str) -> str:
    """A backfill's name out of a path."""
    if not is_name(name):
        raise NotFound(f"there is no backfill {name[:80]!r}")
    return name


def shown(one: Backfill) -> dict[str, Any]:
    """A backfill as answers have it."""

    def at(time_us: int) -> str | None:
        return rfc3339(instant_of(time_us)) if time_us else None

    return {
        "backfill": one.name,
        "state": one.state,
        "note": one.note,
        "events": one.events if one.was_committed else None,
        "opened_at": at(one.opened_us),
        "opened_by": one.opened_by,
        "committed_at": at(one.committed_us),
        "committed_by": one.committed_by or None,
        "reverted_at": at(one.reverted_us),
        "reverted_by": one.reverted_by or None,
        "reason": one.reason or None,
    }


def _parsed(request: Request, body: bytes, services: Services) -> ParsedUsage:
    limits = services.limits
    plain = decompress(body, request.headers.get("content-encoding"), limits.body_bytes_max)
    return parse(
        plain,
        request.headers.get("content-type", ""),
        request.headers,
        events_max=limits.events_max,
        bytes_max=limits.body_bytes_max,
    )


def _sent(parsed: ParsedUsage, verdicts: Sequence[int] | Any, listed_max: int) -> dict[str, Any]:
    rejected = parsed.rejects.height
    if rejected == parsed.total:
        first = parsed.rejects.row(0, named=True)
        errors = [
            FieldError(f"/{row['position'] - 1}{row.get('pointer') or ''}", str(row.get("detail") or row["reason"]))
            for row in parsed.rejects.head(listed_max).iter_rows(named=True)
        ]
        raise InvalidInput(f"no event was stored; event {first['position']}: {errors[0].detail}", errors=errors)
    return {
        "received": parsed.total,
        "accepted": int(np.count_nonzero(verdicts == Verdict.ACCEPTED)),
        "duplicates": int(np.count_nonzero(verdicts == Verdict.DUPLICATE)),
        "rejected": rejected,
        "errors": [{**row, "verdict": "rejected"} for row in parsed.rejects.head(listed_max).to_dicts()],
        "errors_left_out": max(0, rejected - listed_max),
    }


def _estimate(services: Services, caller: Caller, one: Backfill) -> dict[str, Any]:
    now, _, master = now_and_master(services, caller)
    billed = max((mark.up_to for mark in master.runs), default=None)
    parts: list[pl.DataFrame] = []
    keys: list[pl.Series] = []
    late = 0
    for frame in scan_waiting(services.log, caller.tenant_id, services.log.now(), one.name):
        judged = frame.with_columns(counts_late=pl.lit(True))
        reasons = reasons_of(judged, master, now).cast(pl.String).alias("reason")
        parts.append(
            judged.with_columns(reasons)
            .group_by("type", "reason")
            .agg(pl.len().alias("events"), pl.col("time").min().alias("first"), pl.col("time").max().alias("last"))
        )
        keys.append(frame["customer"].unique())
        late += 0 if billed is None else int((frame["time"] < billed).sum())
    answer: dict[str, Any] = {"backfill": one.name, "state": one.state, "events": 0, "customers": 0}
    if not parts:
        return answer | {"first": None, "last": None, "late": 0, "suspended": {}, "types": []}
    found = pl.concat(parts)
    waiting = found.filter(pl.col("reason").is_not_null()).group_by("reason").agg(pl.col("events").sum())
    types = found.group_by("type").agg(pl.col("events").sum()).sort("events", "type", descending=[True, False])
    return answer | {
        "events": int(found["events"].sum()),
        "customers": pl.concat(keys).n_unique(),
        "first": rfc3339(found.select(pl.col("first").min()).item()),
        "last": rfc3339(found.select(pl.col("last").max()).item()),
        "late": late,
        "suspended": dict(waiting.sort("events", "reason", descending=[True, False]).iter_rows()),
        "types": [{"type": kind, "events": events} for kind, events in types.head(100).iter_rows()],
    }
