"""Pages of meters and plans."""

from collections import Counter
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from billing.catalog import Plan
from billing.errors import NotFound
from billing.master import MasterData
from billing.money import parse_number
from deployments.front import charts
from deployments.front.contracts.terms import phases_of_plan
from deployments.front.contracts.view import contract_of, state_of
from deployments.front.lists import EXPORT_ROWS_MAX, Rows, Sort, export, window
from deployments.front.page import Front, Visit
from deployments.front.prices import view

ROWS_FIRST = 100  # price rows on a plan's page before "show more"
METER_COLUMNS = ("code", "name", "event_type", "aggregation", "value", "unit")
PLAN_COLUMNS = ("code", "name", "version", "interval", "currency", "charges", "subscriptions")


@dataclass(frozen=True)
class SearchFilter:
    search: str


@dataclass(frozen=True)
class MeterRow:
    code: str
    name: str
    key: str
    event_type: str
    words: str
    unit: str
    filter: str
    plans: list[tuple[str, str]]


@dataclass(frozen=True)
class PlanRow:
    code: str
    name: str
    version: int
    interval: str
    currency: str
    charges: int
    subscriptions: int


@dataclass(frozen=True)
class VersionRow:
    version: int
    published: str
    charges: int
    subscriptions: int
    newest: bool


def running(master: MasterData, visit: Visit) -> Counter[tuple[str, int]]:
    """Running subscriptions by plan and version."""
    counts: Counter[tuple[str, int]] = Counter()
    for subscription in master.subscriptions.values():
        contract = contract_of(master, subscription)
        if state_of(contract, visit.now) == "active":
            plan = contract.segment_at(visit.now).plan
            counts[plan.code, plan.version] += 1
    return counts


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    visitor = Depends(front.signed_in)

    @router.get("/meters")
    def meters(
        visit: Annotated[Visit, visitor],
        q: Annotated[str, Query(max_length=200)] = "",
        sort: str = "code",
        after: str | None = None,
        format: str = "",
    ) -> Response:
        visit.need("catalog:read")
        master = front.master(visit)
        needle = q.strip().casefold()
        found = [
            meter
            for meter in master.meters.values()
            if not needle or any(needle in text.casefold() for text in (meter.code, meter.name, meter.event_type))
        ]
        order = Sort.of(sort, ("code", "event_type"), "code")
        page = window(
            found,
            sort=order,
            key=lambda meter: getattr(meter, order.key).casefold(),
            code=lambda meter: meter.code,
            after=None if format else after,
            total_all=len(master.meters),
            limit=EXPORT_ROWS_MAX if format else 25,
        )
        if format:
            columns = METER_COLUMNS
            return export(
                format, "meters", columns, ({name: getattr(one, name) for name in columns} for one in page.items)
            )
        places = {code: place for place, code in enumerate(master.meters)}
        newest = [versions[-1] for versions in master.plans.values()]
        rows = [
            MeterRow(
                meter.code,
                meter.name or meter.code,
                charts.style_of(places[meter.code]),
                meter.event_type,
                view.meter_words(meter, visit.texts),
                meter.unit,
                view.filter_words(meter),
                [(plan.code, plan.name or plan.code) for plan in view.plans_with(meter.code, newest)],
            )
            for meter in page.items
        ]
        return front.page(
            visit,
            "prices/meters.html",
            area="meters",
            rows=replace(page, items=rows),
            sort=order,
            filter=SearchFilter(q),
        )

    @router.get("/plans")
    def plans(
        visit: Annotated[Visit, visitor],
        sort: str = "name",
        after: str | None = None,
        format: str = "",
    ) -> Response:
        visit.need("catalog:read")
        master = front.master(visit)
        counts = running(master, visit)
        rows = [_plan_row(versions[-1], versions, counts) for versions in master.plans.values()]
        order = Sort.of(sort, ("name", "code"), "name")
        page: Rows[PlanRow] = window(
            rows,
            sort=order,
            key=lambda row: getattr(row, order.key).casefold(),
            code=lambda row: row.code,
            after=None if format else after,
            total_all=len(rows),
            limit=EXPORT_ROWS_MAX if format else 25,
        )
        if format:
            return export(format, "plans", PLAN_COLUMNS, (vars(row) for row in page.items))
        return front.page(visit, "prices/plans.html", area="plans", rows=page, sort=order)

    @router.get("/plans/{code:path}")
    def plan(
        visit: Annotated[Visit, visitor],
        code: str,
        version: int | None = None,
        quantity: Annotated[str, Query(max_length=40)] = "",
        all: int = 0,
    ) -> Response:
        visit.need("catalog:read")
        master = front.master(visit)
        versions = master.plans.get(code, ())
        chosen = next((one for one in versions if one.version == version), None) if version else master.plan(code)
        if chosen is None:
            raise NotFound(f"{code}, {version}")
        t, f = visit.texts, visit.formats
        tried, wrong = _quantity(quantity, visit)
        counts = running(master, visit)
        lines = view.charge_lines(chosen, dict(master.meters), t, f)
        return front.page(
            visit,
            "prices/plan.html",
            area="plans",
            plan=chosen,
            newest=chosen.version == versions[-1].version,
            subscriptions=sum(counts[code, one.version] for one in versions),
            tiers=view.tier_tables(chosen, dict(master.meters), tried, t, f)[:12],
            quantity_text=quantity,
            quantity_shown=f.number(tried) if tried is not None else "",
            try_wrong=wrong,
            charges=lines if all else lines[:ROWS_FIRST],
            more=0 if all else max(0, len(lines) - ROWS_FIRST),
            phases=phases_of_plan(chosen, t, f),
            versions=[
                VersionRow(
                    one.version, _published(master, one, visit), len(one.charges), counts[code, one.version],
                    one.version == versions[-1].version,
                )
                for one in reversed(versions)
            ],
        )  # fmt: skip

    return router


def _plan_row(plan: Plan, versions: tuple[Plan, ...], counts: Counter[tuple[str, int]]) -> PlanRow:
    subscriptions = sum(counts[plan.code, one.version] for one in versions)
    return PlanRow(
        plan.code, plan.name or plan.code, plan.version, plan.interval, plan.currency, len(plan.charges), subscriptions
    )


def _quantity(text: str, visit: Visit) -> tuple[Decimal | None, bool]:
    """What somebody typed, in the reader's way of writing numbers; (None, True) if it is no number."""
    if not text.strip():
        return None, False
    plain = text.strip().replace(" ", "").replace("\u00a0", "").replace("'", "")
    if visit.texts.language == "de" and "," in plain:
        plain = plain.replace(".", "").replace(",", ".")
    elif visit.texts.language != "de":
        plain = plain.replace(",", "")
    number = parse_number(plain, integer_digits=14)
    return (None, True) if number is None or number < 0 else (number, False)


def _published(master: MasterData, plan: Plan, visit: Visit) -> str:
    seen = 0
    for _, step in master.log:
        if step.get("publish", {}).get("plan", {}).get("code") == plan.code:
            seen += 1
            if seen == plan.version:
                return str(step.get("at") or visit.texts("plan.as_of_start"))[:10]
    return visit.texts("plan.as_of_start")
