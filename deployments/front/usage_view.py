"""Usage as pages show it: what a customer owes so far, line by line, and quantities by meter and day.

Owns the look of it. Figures come from `pipelines/usage_queries.py`.
"""

from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from billing.master import MasterData
from deployments.front import charts
from deployments.front.documents.explanation import explain as explain_line
from deployments.front.documents.routes import LineView, line_view, unit_of_line
from deployments.front.page import Front, Visit
from pipelines.usage_queries import MeterDay

METERS_SHOWN_MAX = 12  # charts of one page; the rest is in the export
ZERO = Decimal(0)


@dataclass(frozen=True)
class UsageLine:
    """A line of usage so far: the invoice line's look, its subscription and its meter's colour."""

    line: LineView
    subscription: str
    key: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.line, name)


@dataclass(frozen=True)
class UsageTotal:
    currency: str
    amount: Decimal


@dataclass(frozen=True)
class UsageNow:
    lines: list[UsageLine]
    totals: list[UsageTotal]
    currency: str
    as_of: datetime
    parked: str


@dataclass(frozen=True)
class MeterChart:
    code: str
    name: str
    unit: str
    key: str
    total: str
    chart: charts.Bars
    table: list[tuple[str, str]]


@dataclass(frozen=True)
class UsageDays:
    period: str
    meters: list[MeterChart]


def meter_styles(master: MasterData) -> dict[str, str]:
    return {code: charts.style_of(place) for place, code in enumerate(master.meters)}


def so_far(
    front: Front, visit: Visit, master: MasterData, customer: str, *, subscription: str = "", explain: int | None = None
) -> UsageNow:
    """What the open periods would bill now, of a customer or of one of the subscriptions."""
    found = front.usage.so_far(visit.tenant_id, master.step_count, master, customer, visit.user.test_clock or visit.now)
    chosen = [
        (line, currency)
        for line, currency in zip(found.lines, found.currencies, strict=True)
        if not subscription or line.subscription == subscription
    ]
    f = visit.formats
    quantity_places = min(f.places(line.quantity for line, _ in chosen), 6)
    price_places = min(f.places((line.unit_price for line, _ in chosen if line.unit_price is not None), 2), 8)
    styles = meter_styles(master)
    sums: dict[str, Decimal] = {}
    lines: list[UsageLine] = []
    for number, (bare, currency) in enumerate(chosen, start=1):
        line = replace(bare, unit=unit_of_line(bare, master))
        sums[currency] = sums.get(currency, ZERO) + line.amount
        why = explain_line(number, line, currency, visit.texts, f) if number == explain else None
        view = line_view(number, line, line.unit, currency, quantity_places, price_places, why, visit.texts, f)
        versions = master.plans.get(line.plan, ())
        plan = next((one for one in versions if one.version == line.plan_version), None)
        charge = plan.charge(line.charge) if plan else None
        lines.append(UsageLine(view, line.subscription, styles.get(charge.meter, "") if charge else ""))
    totals = [UsageTotal(currency, amount) for currency, amount in sorted(sums.items())]
    return UsageNow(lines, totals, totals[0].currency if len(totals) == 1 else "", found.as_of, found.parked)


def days(
    front: Front,
    visit: Visit,
    master: MasterData,
    first: date,
    last: date,
    *,
    customer: str | None = None,
    meter: str = "",
) -> UsageDays:
    """One chart a meter, a bar a day."""
    keys = list(master.keys_of(customer)) if customer is not None else None
    now = visit.user.test_clock or visit.now
    found = [
        one
        for one in front.usage.by_day(visit.tenant_id, master, first, last, now, keys=keys)
        if not meter or one.meter == meter
    ]
    return UsageDays(
        visit.formats.days(first, last), meter_charts(visit, master, found, first, last)[:METERS_SHOWN_MAX]
    )


def meter_charts(visit: Visit, master: MasterData, found: list[MeterDay], first: date, last: date) -> list[MeterChart]:
    f = visit.formats
    by_meter: dict[str, dict[date, MeterDay]] = {}
    for one in found:
        by_meter.setdefault(one.meter, {})[one.day] = one
    styles = meter_styles(master)
    charts_of: list[MeterChart] = []
    for code in (code for code in master.meters if code in by_meter):
        meter, values = master.meters[code], by_meter[code]
        adds_up = meter.aggregation in ("sum", "count", "time_weighted_sum")
        quantities = [one.quantity or ZERO for one in values.values()]
        places = min(f.places(quantities), 6)
        whole = sum(quantities, ZERO) if adds_up else max(quantities, default=ZERO)
        style = styles[code]
        columns = day_columns(
            visit, first, last, lambda day, v=values, s=style: [(f"f{s}", _quantity(v.get(day)))], places
        )
        table = [(f.day(day), f.number(one.quantity, 0, 6)) for day, one in sorted(values.items())]
        charts_of.append(
            MeterChart(
                code, meter.name or code, meter.unit, style, f.number(whole, 0, 6),
                charts.stacked(columns, height=170), table,
            )
        )  # fmt: skip
    return charts_of


def _quantity(one: MeterDay | None) -> Decimal:
    return (one.quantity or ZERO) if one else ZERO


def day_columns(visit: Visit, first: date, last: date, parts: Any, places: int = 0) -> list[charts.Column]:
    """A column for each day, a tick for each week (or for the first of each month over a longer time)."""
    f = visit.formats
    length = (last - first).days + 1
    columns: list[charts.Column] = []
    for number in range(length):
        day = first + timedelta(days=number)
        values = parts(day)
        total = sum((value for _, value in values), ZERO)
        title = f"{f.day_short(day)}: {f.number(total, 0, 6)}"
        same_month = (first.year, first.month) == (last.year, last.month)
        label = str(day.day) if same_month else f.day_short(day)
        tick = label if number % 7 == 0 and length - number > 2 else ""
        columns.append(charts.Column(title, values, tick))
    return columns
