"""The page of one line: how its amount came about, the events behind it, what it rests on, and the proof."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from billing.documents import Line
from billing.explain import row_of_line, span_of_line
from deployments.front.documents.explanation import explain
from deployments.front.documents.routes import unit_of_line
from deployments.front.formats import Formats
from deployments.front.lists import LIMIT, Rows, cursor, cursor_number, export
from deployments.front.page import Front, Visit, path_of
from deployments.front.prices.view import limit_words, price_words
from deployments.front.texts import Texts
from pipelines.explain import SAMPLE, EventsOfLine, ExplainedLine, LineExplainer

EVENT_COLUMNS = (
    "source",
    "id",
    "type",
    "customer",
    "time",
    "value",
    "received_at",
    "late",
    "carried",
    "amended",
    "data",
)
DATA_SHOWN = 200  # characters of an event's data


@dataclass(frozen=True)
class EventRow:
    source: str
    id: str
    time: Any
    value: str
    received_at: Any
    late: bool
    carried: bool
    amended: bool
    data: str


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    visitor = Depends(front.signed_in)

    @router.get("/invoices/{number:path}/lines/{line}")
    def line_page(visit: Annotated[Visit, visitor], number: str, line: int) -> Response:
        visit.need("billing:read")
        known = explainer(front)
        explained = known.explain(visit.tenant_id, number, line)
        events = known.events(visit.tenant_id, explained)
        t, f = visit.texts, visit.formats
        shown = replace(explained.line, unit=unit_of_line(explained.line, explained.master))
        return front.page(
            visit,
            "documents/line.html",
            area="invoices",
            explained=explained,
            line=shown,
            why=explain(line, shown, explained.currency, t, f),
            price=_price(explained, shown, t, f),
            facts=_facts(explained, t, f),
            events=events,
            late=int(events.rows["late"].sum()) if events is not None else 0,
            sample=[] if events is None else _event_rows(events, 0, SAMPLE, f),
            first=None if events is None else events.rows["time"].min(),
            last=None if events is None else events.rows["time"].max(),
        )

    @router.get("/invoices/{number:path}/lines/{line}/events")
    def event_page(
        visit: Annotated[Visit, visitor], number: str, line: int, after: str | None = None, format: str = ""
    ) -> Response:
        visit.need("usage:read")
        known = explainer(front)
        explained = known.explain(visit.tenant_id, number, line)
        events = known.events(visit.tenant_id, explained)
        total = 0 if events is None else events.rows.height
        if format:
            rows = [] if events is None else events.rows.iter_rows(named=True)
            return export(format, f"events-{line}", EVENT_COLUMNS, (_exported(row) for row in rows))
        place = cursor_number(after) if after else 0
        items = [] if events is None else _event_rows(events, place, LIMIT, visit.formats)
        following = cursor(place + LIMIT) if place + LIMIT < total else None
        return front.page(
            visit,
            "documents/line_events.html",
            area="invoices",
            explained=explained,
            line=explained.line,
            rows=Rows(items, total, total, following, place == 0),
        )

    return router


def explainer(front: Front) -> LineExplainer:
    services = front.services
    return LineExplainer(services.database, services.store, services.masters, services.desk)


def _event_rows(events: EventsOfLine, start: int, count: int, f: Formats) -> list[EventRow]:
    return [
        EventRow(
            row["source"],
            row["id"],
            row["time"],
            _value(row, f),
            row["received_at"],
            row["late"],
            row["carried"],
            row["amended"],
            row["data"] if len(row["data"]) <= DATA_SHOWN else row["data"][:DATA_SHOWN] + "…",
        )
        for row in events.rows.slice(start, count).iter_rows(named=True)
    ]


def _value(row: Mapping[str, Any], f: Formats) -> str:
    """What the meter read; a count reads nothing of an event."""
    if row["text"] is not None:
        return str(row["text"])
    value: Decimal | None = row["value"]
    return f.number(value)


def _exported(row: Mapping[str, Any]) -> dict[str, Any]:
    value = row["text"] if row["value"] is None else row["value"]
    return {**{name: row[name] for name in EVENT_COLUMNS if name != "value"}, "value": value}


def _price(explained: ExplainedLine, line: Line, t: Texts, f: Formats) -> str:
    """The price in words, with its limits; empty for amounts without a price."""
    span = span_of_line(explained.master, explained.derivation.derived or line)
    if span is None:
        return ""
    row = span.charge.rows[row_of_line(span.charge, line)]
    words = [f"{t.word('model', row.price.model)}: {price_words(row.price, t, f)}"]
    if row.included:
        words.append(t("line.included", quantity=f"{f.number(row.included)} {line.unit}".strip()))
    if limits := limit_words(row, t, f):
        words.append(limits)
    return ", ".join(words)


def _facts(explained: ExplainedLine, t: Texts, f: Formats) -> list[tuple[str, str, str]]:
    """What the line rests on: words, value, and where it leads."""
    line, run = explained.line, explained.run
    facts = [
        (t("invoice.bill_run"), f"{run['number']}", path_of("bill-runs", run["id"])),
        (t("line.clock"), f.moment_text(run["made_at"]), ""),
        (t("bill_run.fact_master"), t("bill_run.fact_master_value", number=f.number(run["master_number"])), ""),
    ]
    if line.plan:
        version = t("contracts.plan_version", plan=line.plan, version=line.plan_version)
        facts.append((t("subscriptions.plan"), version, f"{path_of('plans', line.plan)}?version={line.plan_version}"))
    if line.subscription:
        facts.append((t("usage_now.subscription"), line.subscription, path_of("subscriptions", line.subscription)))
    if line.step:
        facts.append((t("line.step"), f.number(line.step), ""))
    cut = sorted(run["cut"]["positions"].items())
    positions = ", ".join(t("line.position", lane=lane, number=f.number(int(number))) for lane, number in cut)
    facts.append((t("line.cut"), positions, ""))
    facts += [(t.word("data", name), value, "") for name, value in sorted(run["data_versions"].items())]
    return facts
