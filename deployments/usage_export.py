"""Usage and charges as files: events as Parquet or CSV, what they cost as FOCUS, page by page."""

import base64
import binascii
import gzip as gzip_format
import json
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from billing.errors import FieldError, InvalidInput, NotAllowed
from billing.focus import VERSION
from billing.periods import TimeInvalid, midnight, parse_moment
from deployments.access import Caller, may
from deployments.manners import described
from deployments.services import Services
from deployments.usage_queries import now_and_master, queries_of
from pipelines.usage_export import (
    ROWS_DEFAULT,
    ROWS_MAX,
    ChargePlace,
    Charges,
    Events,
    Place,
    charges_csv,
    charges_page,
    events_csv,
    events_page,
    events_parquet,
)
from storage.usage_log.reader import Cut

router = APIRouter(prefix="/v1", tags=["Usage"])
NEXT_CURSOR = "Next-Cursor"
_MEDIA = {"parquet": "application/vnd.apache.parquet", "csv": "text/csv; charset=utf-8"}


@router.get(
    "/usage/export",
    summary="Events as Parquet or CSV, charges as FOCUS, in files of bounded size",
    **described(answer=None, media="application/octet-stream", also=(404, 422)),
)
def read_export(
    request: Request,
    format: str = Query("parquet", pattern="^(parquet|csv|focus)$", description="`parquet`, `csv` or `focus`."),
    since: str = Query(alias="from", max_length=40, description="From this day or moment on."),
    until: str = Query(alias="to", max_length=40, description="To this day (included) or before this moment."),
    customer: str | None = Query(None, max_length=256, description="A customer's code, or a key that events carry."),
    cursor: str | None = Query(None, max_length=16_000, description="`Next-Cursor` of the file before."),
    limit: int = Query(ROWS_DEFAULT, ge=1, le=ROWS_MAX, description="Events in a file."),
    gzip: bool = Query(default=False, description="CSV packed with gzip."),
    raw: bool = Query(default=False, description="Texts as they are, also those that a spreadsheet would run."),
    caller: Caller = Depends(may("usage:read")),
) -> Response:
    """One answer is one whole file. If there is more, the header `Next-Cursor` says how to get the next one; all files
    of an export are of one state of the log, and one that was lost on the way may be asked for again by the same
    cursor. Events come as they count (amended, without voided ones), in the order of time, source and id.

    `focus` is CSV in FOCUS 1.2: documents issued from `from` to `to`, each whole, and, if `to` reaches today, what open
    periods would bill if they ended now (`InvoiceId` empty). It needs the scope `billing:read` as well.

    In CSV a text that begins with `=`, `+`, `-`, `@`, a tab or a return gets an apostrophe before it, so that no
    spreadsheet runs it as a formula; `raw=true` leaves texts as they are. The header line is in the first file alone.
    """
    if format == "focus":
        if "billing:read" not in caller.scopes:
            raise NotAllowed("charges need the scope billing:read", scope="billing:read")
        return _focus(request, caller, since, until, customer, cursor, gzip=gzip, raw=raw)
    services: Services = request.app.state.services
    keys = None
    if customer is not None:
        master = services.masters.newest(caller.tenant_id)[1]
        keys = list(master.keys_of(customer)) if customer in master.customers else [customer]
    form = _cursor(cursor, "events")
    cut = services.log.now() if form is None else Cut({int(lane): last for lane, last in form["cut"].items()})
    start, end = _span(since, until, caller)
    asked = Events(caller.tenant_id, cut, start, end, keys)
    place = Place() if form is None else Place(tuple(form["after"]), form["window"])
    events, following = events_page(services.log, asked, place, limit)
    body = events_csv(events, header=form is None, raw=raw) if format == "csv" else events_parquet(events)
    more = following and {
        "of": "events",
        "cut": {str(lane): last for lane, last in cut.positions.items()},
        "after": following.after,
        "window": following.window_us,
    }
    return _file(body, format, gzip and format == "csv", more)


def _focus(
    request: Request,
    caller: Caller,
    since: str,
    until: str,
    customer: str | None,
    cursor: str | None,
    *,
    gzip: bool,
    raw: bool,
) -> Response:
    services: Services = request.app.state.services
    now, number, master = now_and_master(services, caller)
    if customer is not None:
        master.customer(customer)
    form = _cursor(cursor, "charges")
    first, last = _day(since, "query:from"), _day(until, "query:to")
    if last < first:
        raise InvalidInput("to: not before from", errors=[FieldError("query:to", "not before from")])
    asked = Charges(caller.tenant_id, number, master, now, first, last, customer)
    place = ChargePlace() if form is None else ChargePlace(form["part"], form["after"])
    page = charges_page(services.database, queries_of(request), asked, place)
    body = b"".join(charges_csv(page.rows, header=form is None, raw=raw))
    following = page.following
    more = following and {"of": "charges", "part": following.part, "after": following.after}
    return _file(body, "csv", gzip, more, {"Focus-Version": VERSION})


def _file(
    body: bytes, format: str, gzip: bool, more: Mapping[str, Any] | None, headers: Mapping[str, str] | None = None
) -> Response:
    media = _MEDIA[format]
    if gzip:
        body, media = gzip_format.compress(body, compresslevel=6, mtime=0), "application/gzip"
    found = dict(headers or {})
    if more:
        found[NEXT_CURSOR] = base64.urlsafe_b64encode(json.dumps(more, separators=(",", ":")).encode()).decode()
    return Response(body, media_type=media, headers=found)


def _cursor(text: str | None, of: str) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        form = json.loads(base64.urlsafe_b64decode(text.encode() + b"=="))
        whole = isinstance(form, dict) and form["of"] == of and (_is_events(form) if of == "events" else _is_part(form))
    except (binascii.Error, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InvalidInput(
            "cursor is not one of this export",
            errors=[FieldError("query:cursor", "take it from the header Next-Cursor")],
        )
    return form


def _is_events(form: dict[str, Any]) -> bool:
    time, *names = form["after"]
    numbers = [time, form["window"], *form["cut"].values(), *map(int, form["cut"])]
    return (
        len(names) == 3
        and all(isinstance(name, str) for name in names)
        and all(isinstance(number, int) and -(2**62) < number < 2**62 for number in numbers)
        and form["window"] > 0
    )


def _is_part(form: dict[str, Any]) -> bool:
    return form["part"] in ("billed", "open") and isinstance(form["after"], str | None)


def _span(since: str, until: str, caller: Caller) -> tuple[datetime, datetime]:
    """A day as the last one is included, a moment is not."""
    start = _moment(since, caller, "query:from")
    try:
        end = midnight(date.fromisoformat(until) + timedelta(days=1), caller.timezone)
    except ValueError:
        end = _moment(until, caller, "query:to")
    if end < start:
        raise InvalidInput("to: not before from", errors=[FieldError("query:to", "not before from")])
    return start, end


def _moment(text: str, caller: Caller, pointer: str) -> datetime:
    try:
        return parse_moment(text, caller.timezone)
    except TimeInvalid as error:
        raise InvalidInput(f"{pointer}: {error}", errors=[FieldError(pointer, str(error))]) from error


def _day(text: str, pointer: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        detail = "charges are of days: 2026-11-01"
        raise InvalidInput(f"{pointer}: {detail}", errors=[FieldError(pointer, detail)]) from error
