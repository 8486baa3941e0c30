"""What became of usage: quantities and cost now, single events, suspense, completeness."""

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import polars as pl
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from billing.errors import FieldError, InvalidInput
from billing.lateness import reasons_of
from billing.master import MasterData
from billing.money import decimal_text
from billing.periods import TimeInvalid, parse_moment
from billing.usage_now import MeterUsage, UsageLine
from deployments.access import Caller, may
from deployments.billing_documents import local_moment
from deployments.manners import PageOf, described, json_response, page_of, paging, plain, rfc3339
from deployments.services import Services
from deployments.suspense_filter import SuspenseFilter, suspense_filter
from pipelines.usage_proof import Proof
from pipelines.usage_queries import DayCount, SoFar, UsageQueries, local_today
from storage.sql import completeness, tenants
from storage.usage_log.counting import scan_counting
from storage.usage_log.reader import SCAN_SCHEMA

router = APIRouter(prefix="/v1", tags=["Usage"])
DAYS_MAX = 366

_USAGE = {
    "customer": "acme",
    "as_of": "2026-01-20T10:00:00Z",
    "meters": [{"meter": "storage", "quantity": "150", "cost": "15.00", "currency": "EUR"}],
    "lines": [
        {
            "subscription": "s1",
            "charge": "storage",
            "meter": "storage",
            "from": "2026-01-10",
            "to": "2026-02-01",
            "quantity": "150",
            "cost": "15.00",
            "currency": "EUR",
        }
    ],
}
_DAYS = {
    "items": [{"meter": "storage", "day": "2026-01-20", "events": 12, "quantity": "150"}],
    "next_cursor": None,
}
_EVENT = {
    "source": "gateway-7",
    "id": "e1",
    "type": "storage.write",
    "customer": "acme",
    "subscription": None,
    "time": "2026-01-20T08:59:00Z",
    "data": {"gb": "1.25"},
    "received_at": "2026-01-20T08:59:01Z",
    "reason": None,
    "amended": False,
}


def queries_of(request: Request) -> UsageQueries:
    queries: UsageQueries = request.app.state.queries
    return queries


def now_and_master(services: Services, caller: Caller) -> tuple[datetime, int, MasterData]:
    number, master = services.masters.newest(caller.tenant_id)
    now = services.clock()
    if caller.tenant_kind == "test":
        with services.database.tenant(caller.tenant_id) as connection:
            now = tenants.by_id(connection, caller.tenant_id).test_clock or now
    return now, number, master


@router.get(
    "/usage",
    summary="Usage of a customer and what it costs so far",
    **described(answer=_USAGE, also=(404, 422)),
)
def read_usage(
    request: Request,
    customer: str = Query(max_length=256, description="The customer's code."),
    meter: str | None = Query(None, max_length=256, description="Only this meter."),
    period: str = Query(
        "unbilled",
        pattern="^(unbilled|running)$",
        description="`unbilled`: all that the next bill would show of usage; `running`: the periods that run now.",
    ),
    caller: Caller = Depends(may("usage:read")),
) -> Response:
    """Computed by the engine that bills. `unbilled` is what would be billed if the open periods ended now, discounts
    taken off. `running` counts all events of the periods that run now, levels up to now, without discounts; a meter
    that several subscriptions bill has its quantity once and the cost of all."""
    services: Services = request.app.state.services
    now, number, master = now_and_master(services, caller)
    master.customer(customer)
    if period == "running":
        exact = caller.tenant_kind == "test"
        found = queries_of(request).running(caller.tenant_id, number, master, customer, now, exact=exact)
        meters = [one for one in found.meters if meter in (None, one.meter)]
        lines = [one for one in found.lines if meter in (None, one.meter)]
    else:
        meters, lines = _unbilled(queries_of(request).so_far(caller.tenant_id, number, master, customer, now), master)
        meters = [one for one in meters if meter in (None, one.meter)]
        lines = [one for one in lines if meter in (None, one.meter)]
    body = {
        "customer": customer,
        "as_of": rfc3339(now),
        "meters": [
            {
                "meter": one.meter,
                "quantity": decimal_text(one.quantity),
                "cost": plain(one.cost),
                "currency": one.currency,
            }
            for one in meters
        ],
        "lines": [
            {
                "subscription": line.subscription,
                "charge": line.charge,
                "meter": line.meter,
                "when": dict(line.when) if line.when is not None else None,
                "from": local_moment(line.start, caller.timezone),
                "to": local_moment(line.end, caller.timezone),
                "quantity": decimal_text(line.quantity),
                "cost": plain(line.cost),
                "currency": line.currency,
            }
            for line in lines
        ],
    }
    return json_response(body)


def _unbilled(answer: SoFar, master: MasterData) -> tuple[list[MeterUsage], list[UsageLine]]:
    """The usage lines of the next bill, and their sums by meter and currency."""
    charges = {
        (plan.code, plan.version, charge.code): charge.meter
        for versions in master.plans.values()
        for plan in versions
        for charge in plan.charges
    }
    lines: list[UsageLine] = []
    sums: dict[tuple[str, str], tuple[Decimal, Decimal]] = {}
    for line, currency in zip(answer.lines, answer.currencies, strict=True):
        measured = charges.get((line.plan, line.plan_version, line.charge))
        if line.kind != "usage" or measured is None:
            continue
        quantity, cost = sums.get((measured, currency), (Decimal(0), Decimal(0)))
        sums[measured, currency] = (quantity + line.quantity, cost + line.amount)
        names = (line.subscription, line.charge, measured, line.when, line.start, line.end)
        lines.append(UsageLine(*names, line.quantity, line.amount, currency))
    return [MeterUsage(name, currency, *total) for (name, currency), total in sorted(sums.items())], lines


@router.get(
    "/usage/days",
    summary="Events and quantities by meter and local day",
    **described(answer=_DAYS, also=(404, 422)),
)
def read_usage_days(
    request: Request,
    since: date = Query(description="The first local day."),
    until: date = Query(description="The last local day."),
    customer: str | None = Query(None, max_length=256, description="Only this customer, with all its keys."),
    caller: Caller = Depends(may("usage:read")),
) -> Response:
    services: Services = request.app.state.services
    check_days(since, until)
    now, _, master = now_and_master(services, caller)
    keys = None
    if customer is not None:
        master.customer(customer)
        keys = master.keys_of(customer)
    days = queries_of(request).by_day(caller.tenant_id, master, since, until, now, keys=keys)
    items = [
        {"meter": day.meter, "day": day.day.isoformat(), "events": day.events, "quantity": plain(day.quantity)}
        for day in days
    ]
    return json_response({"items": items, "next_cursor": None})


def check_days(since: date, until: date) -> None:
    if not timedelta(0) <= until - since < timedelta(days=DAYS_MAX):
        detail = f"from 1 to {DAYS_MAX} days, the last not before the first"
        raise InvalidInput(f"until: {detail}", errors=[FieldError("query:until", detail)])


@router.get(
    "/usage/completeness",
    summary="Stored = rated + suspended + voided, in sum and by day",
    **described(
        answer={
            "totals": {"stored": 3, "rated": 2, "suspended": 1, "voided": 0},
            "days": [{"day": "2026-01-20", "stored": 3, "rated": 2, "suspended": 1, "voided": 0}],
            "proof": {
                "stored": 3,
                "counted": 3,
                "rated": 2,
                "suspended": 1,
                "voided": 0,
                "complete": True,
                "found": 0,
                "differences": [],
            },
            "checked": {
                "at": "2026-01-21T00:00:00Z",
                "stored": 3,
                "rated": 2,
                "suspended": 1,
                "voided": 0,
                "counted": 3,
                "complete": False,
                "found": 1,
                "differences": [
                    {
                        "day": "2026-01-20",
                        "lane": 1,
                        "number": 27,
                        "object": "log/lanes/0001/000000/000000000027.parquet",
                        "detail": "its bytes are not those that number 28 follows",
                    }
                ],
            },
        },
        also=(422,),
    ),
)
def read_completeness(
    request: Request,
    since: date | None = Query(None, description="The first local day; default 30 days ago."),
    until: date | None = Query(None, description="The last local day; default today."),
    prove: bool = Query(default=False, description="Also compare with what was counted when it was stored."),
    caller: Caller = Depends(may("usage:read")),
) -> Response:
    """`totals` are over everything ever stored, `days` over the days that were asked for. An amended event counts
    once, as it is now; a voided one stays stored and is rated no more. `proof` (with `prove=true`, else null) reads
    every segment and sealed file of the tenant again: the events that are there against those that the writers of the
    log counted, all bytes against their digests. `differences` name the day of reception, lane, number and object where
    something is not as it was written, at most 100 of `found`; `rated`, `suspended` and `voided` are null where the log
    cannot be read through. The platform does so by itself once a day: `checked` is the last time, null before the
    first. A difference is an alarm (webhook `usage.completeness_broken`)."""
    services: Services = request.app.state.services
    now, _, master = now_and_master(services, caller)
    last = until or local_today(master, now)
    first = since or last - timedelta(days=30)
    check_days(first, last)
    queries = queries_of(request)
    proof = queries.prove(caller.tenant_id, master, now) if prove else None
    if proof is not None and proof.rated is None:  # nobody can read it through: the proof says where it is broken
        totals: dict[str, int | None] = {"stored": proof.stored, "rated": None, "suspended": None, "voided": None}
        days: list[DayCount] = []
    else:
        stored = queries.stored(caller.tenant_id, master, now)
        suspended = sum(each.events for each in queries.suspense(caller.tenant_id, master, now))
        voided = queries.voided(caller.tenant_id, master, now)
        rated = stored - suspended - voided
        totals = {"stored": stored, "rated": rated, "suspended": suspended, "voided": voided}
        days = queries.completeness(caller.tenant_id, master, first, last, now)
    with services.database.tenant(caller.tenant_id) as connection:
        checked = completeness.newest(connection)
    return json_response(
        {
            "checked": checked and plain(checked),
            "proof": proof and _shown_proof(proof),
            "totals": totals,
            "days": [
                {
                    "day": each.day.isoformat(),
                    "stored": each.stored,
                    "rated": each.rated,
                    "suspended": each.suspended,
                    "voided": each.voided,
                }
                for each in days
            ],
        }
    )


def _shown_proof(proof: Proof) -> dict[str, Any]:
    counts = {name: getattr(proof, name) for name in ("stored", "counted", "rated", "suspended", "voided")}
    return counts | {"complete": proof.complete, "found": proof.found, "differences": proof.shown_differences()}


@router.get(
    "/usage/suspense",
    summary="Events that cannot be rated now, with the reason",
    **described(
        answer={"items": [_EVENT | {"reason": "unknown_customer"}], "next_cursor": None, "reasons": {}}, also=(422,)
    ),
)
def read_suspense(
    request: Request,
    page: PageOf = Depends(paging),
    wanted: SuspenseFilter = Depends(suspense_filter),
    caller: Caller = Depends(may("usage:read")),
) -> Response:
    """In the order of arrival. They rate by themselves as soon as what is missing is there. `reasons` counts all. Many
    that need the same change are corrected with `POST /v1/usage/suspense/replay`, by the same filter."""
    services: Services = request.app.state.services
    now, _, master = now_and_master(services, caller)
    after = _position(page)
    counts = {each.reason: each.events for each in queries_of(request).suspense(caller.tenant_id, master, now)}
    frames = (
        frame.filter(wanted.keeps(master.tenant.timezone)) for frame in with_reasons(services, caller, master, now)
    )
    return _events_page(frames, page, after, {"reasons": counts})


@router.get(
    "/events",
    summary="The stored events of a customer",
    **described(answer={"items": [_EVENT], "next_cursor": None}, also=(404, 422)),
)
def read_events(
    request: Request,
    page: PageOf = Depends(paging),
    customer: str = Query(max_length=256, description="The customer's code, or a key that events carry."),
    since: str | None = Query(None, max_length=40, description="Events at or after this time."),
    until: str | None = Query(None, max_length=40, description="Events before this time."),
    caller: Caller = Depends(may("usage:read")),
) -> Response:
    """In the order of arrival, each with the reason if it is in suspense."""
    services: Services = request.app.state.services
    now, _, master = now_and_master(services, caller)
    keys = list(master.keys_of(customer)) if customer in master.customers else [customer]
    start = _moment(since, caller, "query:since")
    end = _moment(until, caller, "query:until")
    frames = with_reasons(services, caller, master, now, keys=keys, start=start, end=end)
    return _events_page(frames, page, _position(page), {})


def _moment(text: str | None, caller: Caller, pointer: str) -> datetime | None:
    if text is None:
        return None
    try:
        return parse_moment(text, caller.timezone)
    except TimeInvalid as error:
        raise InvalidInput(f"{pointer}: {error}", errors=[FieldError(pointer, str(error))]) from error


def with_reasons(
    services: Services,
    caller: Caller,
    master: MasterData,
    now: datetime,
    *,
    keys: list[str] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
) -> Iterator[pl.DataFrame]:
    cut = services.log.now()
    for frame in scan_counting(services.log, caller.tenant_id, cut, customers=keys, start=start, end=end):
        reasons = reasons_of(frame, master, now).cast(pl.String).alias("reason")
        amended = "first_lane" in frame.columns and "backfill" not in frame.columns
        yield in_place(frame.with_columns(reasons, amended=pl.lit(amended)))


def in_place(frame: pl.DataFrame) -> pl.DataFrame:
    """The same with the position at which each event came: an amended one stays in its place."""
    columns = [*SCAN_SCHEMA.names(), "reason", "amended"]
    if "first_lane" not in frame.columns:
        return frame.select(columns)
    places = ("lane", "number", "row", "received_at")
    return frame.with_columns(pl.col(f"first_{name}").alias(name) for name in places).select(columns)


def _position(page: PageOf) -> tuple[int, int, int, int] | None:
    """Where the page before ended: time of arrival in microseconds, lane, number, row."""
    if page.after is None:
        return None
    if isinstance(page.after, list) and len(page.after) == 4 and all(isinstance(each, int) for each in page.after):
        return tuple(page.after)  # type: ignore[return-value]
    raise InvalidInput("cursor belongs to another list", errors=[FieldError("query:cursor", "of another list")])


def _events_page(
    frames: Iterator[pl.DataFrame], page: PageOf, after: tuple[int, int, int, int] | None, more: dict[str, Any]
) -> Response:
    """The next rows in the order of arrival. Holds one page and one frame at a time, however long the log is."""
    kept: pl.DataFrame | None = None
    for frame in frames:
        frame = frame.with_columns(arrived=pl.col("received_at").dt.epoch("us"))
        if after is not None:
            frame = frame.filter(_behind(after))
        both = frame if kept is None else pl.concat([kept, frame])
        kept = both.sort("arrived", "lane", "number", "row").head(page.limit + 1)
    rows = kept.to_dicts() if kept is not None else []
    return page_of(rows, page, lambda row: [row["arrived"], row["lane"], row["number"], row["row"]], shown_event, more)


def _behind(after: tuple[int, int, int, int]) -> pl.Expr:
    names = ("arrived", "lane", "number", "row")
    behind = pl.lit(False)
    equal = pl.lit(True)
    for name, value in zip(names, after, strict=True):
        behind = behind | (equal & (pl.col(name) > value))
        equal = equal & (pl.col(name) == value)
    return behind


def shown_event(row: dict[str, Any]) -> dict[str, Any]:
    """`data` as it was sent: the text of a JSON object, digit by digit, goes into the answer as JSON."""
    return {
        "source": row["source"],
        "id": row["id"],
        "type": row["type"],
        "customer": row["customer"],
        "subscription": row["subscription"],
        "time": rfc3339(row["time"]),
        "data": msgspec.Raw(row["data"].encode()),
        "received_at": rfc3339(row["received_at"]),
        "reason": row["reason"],
        "amended": row["amended"],
    }
