"""POST /v1/usage: from a body to an answer per event. 200 means that what counts as accepted is on durable storage."""

import asyncio
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import polars as pl
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from actors.router import IngestResult
from billing.body_encoding import decompress
from billing.errors import FieldError, InvalidInput
from billing.parsed_usage import ParsedUsage
from billing.usage import Verdict
from billing.usage_formats import CONTENT_TYPES, Lines, as_lines, parse
from deployments import examples
from deployments.access import Caller, Gate, may
from deployments.bodies import Room, read_body
from deployments.manners import described
from deployments.problems import MEDIA_TYPE, problem_body
from deployments.services import Services
from deployments.tracing import TOLD
from deployments.usage_groups import GROUP_BYTES_MAX, INLINE_BYTES_MAX, Outcome, UsageGroups

router = APIRouter(prefix="/v1", tags=["Usage"])
_WORDS = {verdict.value: verdict.name.lower() for verdict in Verdict}


@router.post(
    "/usage",
    summary="Send usage events",
    **described(
        request={kind: None for kind in CONTENT_TYPES} | examples.USAGE_BODIES,
        answer=examples.USAGE_ANSWER,
        also=(400, 413, 415, 422, 429, 503),
    ),
)
async def post_usage(request: Request, caller: Caller = Depends(may("usage:write"))) -> Response:
    """Store usage events: NDJSON, a JSON array or object, CloudEvents 1.0 (structured, batch, binary), Arrow IPC;
    plain, gzip or zstd. One event or 100,000.

    The answer comes after the events are on durable storage and says what became of each: `accepted`, `duplicate` (this
    customer key had the same source and id before), `suspended` (stored, waits for what is missing) or `rejected` (not
    stored, its id stays free). Whoever has just changed catalog or contracts may send the `Master` header of that
    answer, so that the events are judged by it. After 429, 503 or no answer send the same again: nothing is stored
    twice. Send decimals as strings.
    """
    services: Services = request.app.state.services
    room: Room = request.app.state.room
    limits = services.limits
    stated = request.headers.get("content-length", "")
    held = min(int(stated), limits.body_bytes_max) if stated.isdigit() else 1_048_576
    room.take(held)
    try:
        body = await read_body(request, limits.body_bytes_max)
        more = len(body) - held
        if more > 0:
            room.take(more)
            held += more
        gate: Gate = request.app.state.gate
        number = newest_seen(request, caller)
        lines = _lines(request, body, services)
        if lines is not None:
            del body
            groups: UsageGroups = request.app.state.usage_groups
            outcome = await groups.send(
                caller.tenant_id, lines, number, lambda events: gate.count_events(request, caller, events)
            )
            request.scope.setdefault("state", {})[TOLD] = True
            return answer_of(outcome, request.scope["path"], limits.listed_max)
        if len(body) > INLINE_BYTES_MAX or "content-encoding" in request.headers:
            parsed = await asyncio.to_thread(_parse, request, body, services)
        else:
            parsed = _parse(request, body, services)
        del body
        result = None
        if parsed.events.height:
            gate.count_events(request, caller, parsed.events.height)
            result = await services.router.ingest(caller.tenant_id, parsed.events, master_number=number)
        return answer(parsed, result, request.scope["path"], limits.listed_max)
    finally:
        room.give(held)


def newest_seen(request: Request, caller: Caller) -> int | None:
    """The newest change of master data that this process or the sender knows of: shards load it before they judge."""
    number: int | None = request.app.state.numbers.newest(caller.tenant_id)
    header = request.headers.get("master")
    if header is None:
        return number
    if not header.isdigit() or len(header) > 18:
        raise InvalidInput("Master is not a number of ours", errors=[FieldError("header:Master", "send it as given")])
    return max(int(header), number or 0)


def _lines(request: Request, body: bytes, services: Services) -> Lines | None:
    """The body as lines that may be read together with others'; None for one that is read by itself."""
    headers = request.headers
    if len(body) > GROUP_BYTES_MAX or "content-encoding" in headers or any(name.startswith("ce-") for name in headers):
        return None
    return as_lines(body, headers.get("content-type", ""), services.limits.events_max)


def _parse(request: Request, body: bytes, services: Services) -> ParsedUsage:
    limits = services.limits
    plain = decompress(body, request.headers.get("content-encoding"), limits.body_bytes_max)
    return parse(
        plain,
        request.headers.get("content-type", ""),
        request.headers,
        events_max=limits.events_max,
        bytes_max=limits.body_bytes_max,
    )


def answer(parsed: ParsedUsage, result: IngestResult | None, path: str, listed_max: int) -> Response:
    """Counts, then the events one by one: all of a small request, the rejected and suspended ones of a large one."""
    if parsed.total == 0:
        raise InvalidInput("the body holds no event")
    if _are_all_accepted(result, parsed.total) and parsed.total <= listed_max:
        return Response(_all_accepted(parsed.total), media_type="application/json")
    verdicts = result.verdicts if result is not None else np.zeros(0, dtype=np.uint8)
    counts = np.bincount(verdicts, minlength=len(Verdict))
    rejected = parsed.rejects.height + int(counts[Verdict.REJECTED])
    body: dict[str, Any] = {
        "received": parsed.total,
        "accepted": int(counts[Verdict.ACCEPTED]),
        "duplicates": int(counts[Verdict.DUPLICATE]),
        "suspended": int(counts[Verdict.SUSPENDED]),
        "rejected": rejected,
    }
    if result is not None and parsed.total <= listed_max:
        positions = parsed.positions.to_list()
        listed = [
            {"position": position, "verdict": _WORDS[verdict]}
            for position, verdict in zip(positions, verdicts.tolist(), strict=True)
        ]
        if parsed.rejects.height:
            listed += [{"position": each, "verdict": "rejected"} for each in parsed.rejects["position"].to_list()]
            listed.sort(key=lambda each: each["position"])
        body["events"] = listed
    body["errors"], left_out = _errors(parsed, result, listed_max)
    if left_out:
        body["errors_left_out"] = left_out
    if rejected == parsed.total:
        return _nothing_stored(parsed, body, path)
    return Response(msgspec.json.encode(body), media_type="application/json")


def answer_of(outcome: Outcome, path: str, listed_max: int) -> Response:
    """The answer to one request of a group."""
    total = outcome.total
    if _are_all_accepted(outcome.result, total) and total <= listed_max:
        return Response(_all_accepted(total), media_type="application/json")
    return answer(outcome.parsed, outcome.result, path, listed_max)


def _are_all_accepted(result: IngestResult | None, total: int) -> bool:
    assert Verdict.ACCEPTED == 0, "any other verdict is above it"
    return result is not None and len(result.verdicts) == total and not result.verdicts.any()


@lru_cache(maxsize=64)
def _all_accepted(total: int) -> bytes:
    """The answer to so many events in a row that were all accepted: the usual one, and the same each time."""
    events = [{"position": position, "verdict": "accepted"} for position in range(1, total + 1)]
    counts = {"received": total, "accepted": total, "duplicates": 0, "suspended": 0, "rejected": 0}
    return msgspec.json.encode({**counts, "events": events, "errors": []})


def _errors(parsed: ParsedUsage, result: IngestResult | None, listed_max: int) -> tuple[list[dict[str, Any]], int]:
    rows = [{**row, "verdict": "rejected"} for row in parsed.rejects.head(listed_max).to_dicts()]
    total = parsed.rejects.height
    if result is not None:
        wrong = (result.verdicts == Verdict.SUSPENDED) | (result.verdicts == Verdict.REJECTED)
        places = np.flatnonzero(wrong)
        total += len(places)
        places = places[:listed_max]
        if len(places):
            chosen = pl.DataFrame(
                {
                    "position": parsed.positions.gather(places),
                    "id": parsed.events["id"].gather(places),
                    "reason": result.reasons.gather(places),
                    "verdict": [_WORDS[int(each)] for each in result.verdicts[places]],
                }
            )
            rows += chosen.to_dicts()
            rows.sort(key=lambda row: row["position"])
    shown = rows[:listed_max]
    return shown, total - len(shown)


def _nothing_stored(parsed: ParsedUsage, body: dict[str, Any], path: str) -> Response:
    """422: a sender whose every event is refused has a mistake in its program, and must not read a 200."""
    first = body["errors"][0]
    error = InvalidInput(f"no event was stored; event {first['position']}: {first['detail'] or first['reason']}")
    document = problem_body(error, path) | body
    document["errors"] = [
        {"pointer": f"/{row['position'] - 1}{row.get('pointer') or ''}", **row_without_pointer(row)}
        for row in body["errors"]
    ]
    return Response(msgspec.json.encode(document), status_code=422, media_type=MEDIA_TYPE)


def row_without_pointer(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "pointer"}
