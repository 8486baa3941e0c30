"""Why a line of a document is what it is, over REST: its arithmetic, its events, and the proof against the log.

Before `deployments/billing_documents.py` in the application: that one's `/invoices/{number}` takes every longer path.
"""

from typing import Any

import polars as pl
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from billing.documents import Line
from billing.explain import arithmetic
from billing.money import decimal_text
from deployments import examples
from deployments.access import Caller, may
from deployments.billing_documents import local_moment
from deployments.manners import PageOf, described, json_response, number_cursor, page_of, paging, plain, rfc3339
from deployments.services import Services
from deployments.usage_queries import shown_event
from pipelines.explain import SAMPLE, EventsOfLine, ExplainedLine, LineExplainer

router = APIRouter(prefix="/v1", tags=["Billing"])

_EVENT = {
    **{key: examples.EVENT[key] for key in ("source", "id", "type", "customer")},
    "subscription": None,
    "time": "2026-01-20T08:59:00Z",
    "data": {"gb": "1.25", "region": "eu-central"},
    "received_at": "2026-01-20T08:59:01Z",
    "reason": None,
    "amended": False,
    "value": "1.25",
    "late": False,
    "carried": False,
}
_EXPLANATION = {
    "document": "RE-2026-000001",
    "line": 3,
    "customer": "acme",
    "subscription": "s1",
    "charge": "storage",
    "kind": "usage",
    "name": "Storage",
    "from": "2026-01-10",
    "to": "2026-02-01",
    "when": None,
    "correction": False,
    "quantity": {
        "value": "150",
        "exact": "150",
        "unit": "GB",
        "meter": {"code": "storage", "aggregation": "sum"},
        "included": None,
    },
    "events": {
        "count": 12,
        "late": 0,
        "first": "2026-01-10T09:00:00Z",
        "last": "2026-01-31T22:10:00Z",
        "sample": [_EVENT],
        "all": "/v1/invoices/RE-2026-000001/lines/3/events",
    },
    "price": {
        "model": "graduated",
        "words": "each part in its own tier: 0.1 EUR per GB up to 100, 0.08 EUR per GB above",
        "unit_price": None,
        "tiers": [
            {
                "from": "0",
                "up_to": "100",
                "quantity": "100",
                "unit": "0.1",
                "flat": "0",
                "amount": "10",
                "share": "0.6666",
            }
        ],
        "package": None,
        "percent": None,
        "minimum": None,
        "maximum": None,
    },
    "proration": None,
    "difference": None,
    "amount": {
        "currency": "EUR",
        "exact": "14",
        "rounded": "14.00",
        "rounding": "0",
        "rule": "once a line, half away from zero",
        "discount": "0.00",
        "with_tax": None,
        "net": "14.00",
    },
    "tax": {
        "code": "standard",
        "category": "S",
        "percent": "19",
        "treatment": "domestic",
        "point": "2026-01-31T22:59:59.999999+00:00",
        "rate": {"percent": "19", "since": "2021-01-01", "step": 1},
    },
    "corrects": None,
    "catalog": {"plan": "basic", "version": 1, "charge": "storage", "step": 5, "own_price": False},
    "rests_on": {
        "bill_run": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
        "bill_run_number": 3,
        "up_to": "2026-01-31T23:00:00Z",
        "clock": "2026-02-01T02:00:00Z",
        "master": 812,
        "master_step": 9041,
        "cut": {"0": 1204},
        "data_versions": {
            "product": "0.1.0",
            "time_zones": "2025b of the system",
            "currencies": "ISO 4217, list one of 2026-01-01",
            "tax_codes": "none (step 2), standard (step 1)",
        },
    },
    "derived": {"agrees": True, "from": "bill_run", "document": "RE-2026-000001", "line": 3, "differences": []},
}


def explainer(services: Services) -> LineExplainer:
    return LineExplainer(services.database, services.store, services.masters, services.desk)


@router.get(
    "/invoices/{number:path}/lines/{line}/explanation",
    summary="Explain a line: events, price, proration, rounding, tax, and the proof",
    **described(answer=_EXPLANATION, also=(404, 422)),
)
def read_explanation(
    request: Request, number: str, line: int, caller: Caller = Depends(may("billing:read"))
) -> Response:
    """The line is derived again from the usage log by the engine that billed it: `derived.agrees` says whether it is
    equal to what is stored, `derived.differences` in which fields it is not. Amounts before rounding are exact: a
    decimal, or a fraction like `1/3`. `rests_on` names all data behind it."""
    services: Services = request.app.state.services
    known = explainer(services)
    explained = known.explain(caller.tenant_id, number, line)
    events = known.events(caller.tenant_id, explained)
    return json_response(shown_explanation(explained, events, caller.timezone))


@router.get(
    "/invoices/{number:path}/lines/{line}/events",
    summary="All events behind a line",
    **described(answer={"items": [_EVENT], "next_cursor": None}, also=(404, 422)),
)
def read_line_events(
    request: Request,
    number: str,
    line: int,
    page: PageOf = Depends(paging),
    caller: Caller = Depends(may("usage:read")),
) -> Response:
    """Exactly the events that the line's quantity was made of, in order of (time, id, source). `value` is what the
    meter read of each; `late` says that it came after the period was billed before, `carried` that it lies before the
    period and gives the level at its start. Lines without events have none."""
    services: Services = request.app.state.services
    known = explainer(services)
    events = known.events(caller.tenant_id, known.explain(caller.tenant_id, number, line))
    after = number_cursor(page) or 0
    rows = [] if events is None else events.rows.slice(after, page.limit + 1).with_row_index("at", after + 1).to_dicts()
    return page_of(rows, page, lambda row: row["at"], _shown_event)


def shown_explanation(explained: ExplainedLine, events: EventsOfLine | None, timezone: str) -> dict[str, Any]:
    line: Line = explained.line
    run, derivation = explained.run, explained.derivation
    return {
        "document": explained.number,
        "line": explained.place,
        "customer": explained.customer,
        "subscription": line.subscription,
        "charge": line.charge,
        "kind": line.kind,
        "name": line.name,
        "from": local_moment(line.start, timezone),
        "to": local_moment(line.end, timezone),
        "when": dict(line.when) if line.when is not None else None,
        "correction": line.correction,
        **arithmetic(explained.master, line, explained.currency, explained.customer),
        "reason": explained.reason,
        "events": None if events is None else _shown_events(explained, events),
        "rests_on": {
            "bill_run": str(run["id"]),
            "bill_run_number": run["number"],
            "up_to": rfc3339(run["up_to"]),
            "clock": rfc3339(run["made_at"]),
            "master": run["master_number"],
            "master_step": run["master_steps"],
            "cut": run["cut"]["positions"],
            "data_versions": run["data_versions"],
        },
        "derived": {
            "agrees": derivation.agrees,
            "from": derivation.way,
            "document": derivation.document,
            "line": derivation.line,
            "differences": list(derivation.differences),
        },
    }


def _shown_events(explained: ExplainedLine, events: EventsOfLine) -> dict[str, Any]:
    inside = events.rows.filter(~pl.col("carried"))
    return {
        "count": events.count,
        "late": int(inside["late"].sum()),
        "first": plain(inside["time"].min()),
        "last": plain(inside["time"].max()),
        "sample": [_shown_event(row) for row in events.rows.head(SAMPLE).to_dicts()],
        "all": f"/v1/invoices/{explained.number}/lines/{explained.place}/events",
    }


def _shown_event(row: dict[str, Any]) -> dict[str, Any]:
    value = row["text"] if row["value"] is None else decimal_text(row["value"])
    return {**shown_event({**row, "reason": None}), "value": value, "late": row["late"], "carried": row["carried"]}
