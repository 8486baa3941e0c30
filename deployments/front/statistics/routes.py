"""The first page, usage and completeness of the tenant, and search over everything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from billing.master import MasterData
from deployments.front import charts, usage_view
from deployments.front.contracts import budgets
from deployments.front.contracts.view import contract_of, state_of
from deployments.front.lists import export
from deployments.front.page import Front, Visit, path_of
from pipelines.usage_queries import DayCount
from storage.sql import completeness as checks
from storage.sql import overview
from storage.sql.overview import InvoiceFilter, MonthTotal, Total

MONTHS_SHOWN = 12
FOUND_MAX = 10
BUDGETS_MAX = 5  # near their limit that the first page names
MONTH = "^([0-9]{4}-(0[1-9]|1[0-2]))?$"
ZERO = Decimal(0)
HUNDRED = Decimal(100)


@dataclass(frozen=True)
class Events:
    """Stored events of a time, and what became of them."""

    stored: int
    suspended: int
    voided: int = 0

    @property
    def rated(self) -> int:
        return self.stored - self.suspended - self.voided

    @property
    def balanced(self) -> bool:
        return not self.suspended


@dataclass(frozen=True)
class Attention:
    path: str
    title: str
    state: str
    text: str


@dataclass(frozen=True)
class Step:
    key: str
    done: bool
    current: bool
    path: str


@dataclass(frozen=True)
class MeterTotal:
    code: str
    name: str
    key: str
    quantity: str
    unit: str
    events: int


@dataclass(frozen=True)
class PlanShare:
    plan: str
    name: str
    subscriptions: int
    net: Decimal
    width: Decimal


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)

    @router.get("/")
    def home(
        visit: Annotated[Visit, visitor],
        month: Annotated[str, Query(pattern=MONTH)] = "",
        currency: Annotated[str, Query(max_length=3)] = "",
        format: str = "",
    ) -> Response:
        master = front.master(visit)
        now = visit.user.test_clock or visit.now
        today = visit.formats.local(now).date()
        with services.database.tenant(visit.tenant_id) as connection:
            count = overview.invoice_count(connection)
            keys = overview.key_count(connection)
            invoice_months = overview.invoice_months(connection)
        if count == 0:
            return _first_steps(front, visit, master, keys, today)
        chosen = _month(month, today)
        before = _add(chosen, -1)
        first_billed = invoice_months[-1]
        with services.database.tenant(visit.tenant_id) as connection:
            currencies = overview.currencies(connection)
            if currency not in currencies:
                main = visit.user.currency
                currency = main if main in currencies else currencies[0]
            billed = _total(overview.invoice_totals(connection, _filter(chosen, currency)), currency)
            earlier = _total(overview.invoice_totals(connection, _filter(before, currency)), currency)
            months = overview.billed_by_month(connection, currency, _add(chosen, 1 - MONTHS_SHOWN), chosen)
            months = [one for one in months if one.month >= first_billed] or months[-1:]
            plans = [one for one in overview.billed_by_plan(connection, month=chosen) if one.currency == currency]
            runs, _ = overview.runs(connection, limit=5)
            files = overview.files_open(connection)
        if format:
            rows = [{"month": f"{one.month:%Y-%m}", "currency": currency, **_month_row(one)} for one in months]
            return export(format, "revenue", ("month", "currency", "documents", "net"), rows)
        last = min(today, _add(chosen, 1) - timedelta(days=1)) if chosen <= today else chosen
        by_day = front.usage.by_day(visit.tenant_id, master, chosen, _add(chosen, 1) - timedelta(days=1), now)
        counts = front.usage.completeness(visit.tenant_id, master, chosen, _add(chosen, 1) - timedelta(days=1), now)
        events = _events(counts)
        meters = _meter_totals(visit, master, by_day)
        running = sum(1 for one in master.subscriptions.values() if state_of(contract_of(master, one), now) == "active")
        f = visit.formats
        shares = _shares(plans, master)
        return front.page(
            visit,
            "statistics/home.html",
            area="revenue",
            steps=None,
            month=chosen,
            month_before=before,
            month_value=f"{chosen:%Y-%m}",
            months=_month_options(visit, {*invoice_months, today.replace(day=1), *_usage_months(front, visit, master)}),
            period=f.days(chosen, last),
            currency=currency,
            currencies=currencies,
            billed=billed,
            before=earlier,
            customers=len(master.customers),
            running=running,
            events=events,
            revenue=charts.stacked(_revenue_columns(visit, months, currency), height=300),
            revenue_table=months,
            attention=_attention(visit, front, master, runs, files),
            usage=_events_chart(visit, master, by_day, chosen) if by_day else None,
            usage_table=_usage_table(visit, by_day, meters),
            meters=meters,
            by_plan=shares,
            by_plan_sum=sum((one.net for one in plans), ZERO),
            accepted=_accepted_chart(visit, counts, chosen) if counts else None,
        )

    @router.get("/statistics/usage")
    def usage(
        visit: Annotated[Visit, visitor],
        month: Annotated[str, Query(pattern=MONTH)] = "",
        meter: Annotated[str, Query(max_length=256)] = "",
        format: str = "",
    ) -> Response:
        visit.need("usage:read")
        master = front.master(visit)
        now = visit.user.test_clock or visit.now
        today = visit.formats.local(now).date()
        chosen = _month(month, today)
        last = _add(chosen, 1) - timedelta(days=1)
        if format:
            found = front.usage.by_day(visit.tenant_id, master, chosen, last, now)
            rows = [vars(one) for one in found if not meter or one.meter == meter]
            return export(format, "usage", ("day", "meter", "events", "quantity"), rows)
        months = {today.replace(day=1), chosen, *_usage_months(front, visit, master)}
        return front.page(
            visit,
            "statistics/usage.html",
            area="usage",
            days=usage_view.days(front, visit, master, chosen, last, meter=meter),
            months=_month_options(visit, months),
            month_value=f"{chosen:%Y-%m}",
            meter=meter,
            meter_options=[(one.code, one.name or one.code) for one in master.meters.values()],
        )

    @router.get("/statistics/completeness")
    def completeness(
        visit: Annotated[Visit, visitor],
        month: Annotated[str, Query(pattern=MONTH)] = "",
        format: str = "",
    ) -> Response:
        visit.need("usage:read")
        master = front.master(visit)
        now = visit.user.test_clock or visit.now
        today = visit.formats.local(now).date()
        chosen = _month(month, today)
        last = _add(chosen, 1) - timedelta(days=1)
        counts = front.usage.completeness(visit.tenant_id, master, chosen, last, now)
        if format:
            rows = [{**vars(one), "rated": one.rated} for one in counts]
            return export(format, "completeness", ("day", "stored", "rated", "suspended"), rows)
        suspense = front.usage.suspense(visit.tenant_id, master, now)
        return front.page(
            visit,
            "statistics/completeness.html",
            area="completeness",
            events=_events(counts),
            rows=counts,
            chart=_accepted_chart(visit, counts, chosen),
            period=visit.formats.month(chosen),
            months=_month_options(visit, {today.replace(day=1), chosen, *_usage_months(front, visit, master)}),
            month_value=f"{chosen:%Y-%m}",
            suspense=suspense,
        )

    @router.get("/search")
    def search(visit: Annotated[Visit, visitor], q: Annotated[str, Query(max_length=200)] = "") -> Response:
        needle = q.strip().casefold()
        view: dict[str, list[tuple[str, str]]] = {"customers": [], "invoices": [], "subscriptions": [], "plans": []}
        if needle:
            master = front.master(visit)
            if visit.may("contracts:read"):
                names = {code: one.name for code, one in master.customers.items()}
                view["customers"] = _found(needle, names)
                view["subscriptions"] = _found(needle, {code: code for code in master.subscriptions})
            if visit.may("catalog:read"):
                view["plans"] = _found(
                    needle, {code: versions[-1].name or code for code, versions in master.plans.items()}
                )
            if visit.may("billing:read"):
                with services.database.tenant(visit.tenant_id) as connection:
                    page = overview.invoices(connection, InvoiceFilter(search=q), limit=FOUND_MAX)
                view["invoices"] = [(row.number, f"{row.number} · {row.customer_name}") for row in page.items]
            only = [(kind, entry) for kind, entries in view.items() for entry in entries]
            exact = [(kind, entry[0]) for kind, entry in only if entry[0].casefold() == needle]
            if len(exact) == 1:
                return front.go(visit, path_of(exact[0][0], exact[0][1]))
        return front.page(visit, "statistics/search.html", query=q, **view)

    return router


def _found(needle: str, names: Mapping[str, str]) -> list[tuple[str, str]]:
    hits = [(code, name) for code, name in names.items() if needle in name.casefold() or needle in code.casefold()]
    hits.sort(key=lambda one: (not one[1].casefold().startswith(needle), one[1].casefold(), one[0]))
    return hits[:FOUND_MAX]


def _month(text: str, today: date) -> date:
    return date.fromisoformat(f"{text}-01") if text else today.replace(day=1)


def _add(month: date, months: int) -> date:
    years, rest = divmod(month.month - 1 + months, 12)
    return date(month.year + years, rest + 1, 1)


def _filter(month: date, currency: str) -> InvoiceFilter:
    return InvoiceFilter(month=f"{month:%Y-%m}", currency=currency)


def _total(totals: list[Total], currency: str) -> Total:
    return next((one for one in totals if one.currency == currency), Total(currency))


def _month_row(one: MonthTotal) -> dict[str, Any]:
    return {"documents": one.documents, "net": one.net}


def _usage_months(front: Front, visit: Visit, master: MasterData) -> list[date]:
    return front.usage.months(visit.tenant_id, master, visit.user.test_clock or visit.now)[: MONTHS_SHOWN * 3]


def _month_options(visit: Visit, months: set[date]) -> list[tuple[str, str]]:
    return [(f"{one:%Y-%m}", visit.formats.month(one)) for one in sorted(months, reverse=True)]


def _revenue_columns(visit: Visit, months: list[MonthTotal], currency: str) -> list[charts.Column]:
    f = visit.formats
    return [
        charts.Column(
            f"{f.month(one.month)}: {f.money(one.net, currency)}", [("fp", one.net)], f.month_short(one.month)
        )
        for one in months
    ]


def _meter_totals(visit: Visit, master: MasterData, by_day: list[Any]) -> list[MeterTotal]:
    f = visit.formats
    styles = usage_view.meter_styles(master)
    found: list[MeterTotal] = []
    for code, meter in master.meters.items():
        mine = [one for one in by_day if one.meter == code]
        if not mine:
            continue
        quantities = [one.quantity or ZERO for one in mine]
        adds_up = meter.aggregation in ("sum", "count", "time_weighted_sum")
        whole = sum(quantities, ZERO) if adds_up else max(quantities)
        events = sum(one.events for one in mine)
        found.append(MeterTotal(code, meter.name or code, styles[code], f.number(whole, 0, 2), meter.unit, events))
    return found


def _events_chart(visit: Visit, master: MasterData, by_day: list[Any], month: date) -> charts.Bars:
    styles = usage_view.meter_styles(master)
    last = _add(month, 1) - timedelta(days=1)
    values: dict[date, dict[str, Decimal]] = {}
    for one in by_day:
        day = values.setdefault(one.day, {})
        day[styles[one.meter]] = day.get(styles[one.meter], ZERO) + one.events
    columns = usage_view.day_columns(
        visit, month, last, lambda day: [(f"f{style}", count) for style, count in sorted(values.get(day, {}).items())]
    )
    return charts.stacked(columns, height=280)


def _usage_table(visit: Visit, by_day: list[Any], meters: list[MeterTotal]) -> list[tuple[str, list[int]]]:
    counts: dict[date, dict[str, int]] = {}
    for one in by_day:
        counts.setdefault(one.day, {})[one.meter] = one.events
    return [
        (visit.formats.day(day), [row.get(meter.code, 0) for meter in meters]) for day, row in sorted(counts.items())
    ]


def _accepted_chart(visit: Visit, counts: list[Any], month: date) -> charts.Bars:
    by_day = {one.day: one for one in counts}
    last = _add(month, 1) - timedelta(days=1)
    columns = usage_view.day_columns(
        visit, month, last, lambda day: [("fp", Decimal(by_day[day].stored if day in by_day else 0))]
    )
    marked = [
        replace(column, marked=(day := month + timedelta(days=place)) in by_day and by_day[day].suspended > 0)
        for place, column in enumerate(columns)
    ]
    return charts.stacked(marked, height=120, labels=False)


def _shares(plans: list[overview.PlanTotal], master: MasterData) -> list[PlanShare]:
    most = max((one.net for one in plans), default=ZERO)
    shares: list[PlanShare] = []
    for one in plans[:8]:
        versions = master.plans.get(one.plan)
        name = (versions[-1].name if versions else "") or one.plan
        width = max(one.net, ZERO) * HUNDRED / most if most > 0 else ZERO
        shares.append(PlanShare(one.plan, name, one.subscriptions, one.net, width.quantize(Decimal("0.1"))))
    return shares


def _attention(
    visit: Visit, front: Front, master: MasterData, runs: list[overview.RunRow], files: Mapping[str, int]
) -> list[Attention]:
    """What somebody should look at, the most urgent first."""
    t, f = visit.texts, visit.formats
    found: list[Attention] = []
    for run in runs:
        path = path_of("bill-runs", run.id)
        if run.state in ("planned", "computed", "approved"):
            net = ", ".join(f.money(total.net, total.currency) for total in run.totals) or f.number(None)
            text = t("home.run_open_text", documents=f.number(run.computed_documents), net=net)
            found.append(Attention(path, t("home.run_open", run=run.number), run.state, text))
    finished = next((run for run in runs if run.state in ("finalised", "done")), None)
    if finished is not None and finished.parked:
        reasons = ", ".join(dict.fromkeys(str(one.get("reason", "")) for one in finished.parked))[:200]
        title = t("home.parked", n=len(finished.parked), count=f.number(len(finished.parked)))
        text = t("home.parked_text", run=finished.number, reasons=reasons)
        found.append(Attention(path_of("bill-runs", finished.id), title, "parked", text))
    with front.services.database.tenant(visit.tenant_id) as connection:
        checked = checks.newest(connection)
    if checked is not None and not checked["complete"]:
        said = {name: f.number(checked[name]) for name in ("stored", "counted", "found")}
        text = t("home.incomplete_text", **said)
        found.insert(0, Attention("/statistics/completeness", t("home.incomplete"), "failed", text))
    now = visit.user.test_clock or visit.now
    suspense = front.usage.suspense(visit.tenant_id, master, now)
    if suspense:
        count = sum(one.events for one in suspense)
        text = ", ".join(f"{t.word('reason', one.reason)} ({f.number(one.events)})" for one in suspense)
        title = t("home.suspense_title", n=count, count=f.number(count))
        found.append(Attention("/statistics/completeness", title, "suspended", text))
    found += _budgets(visit, front, master)
    not_made = files.get("parked", 0)
    if not_made:
        title = t("home.documents_not_made", n=not_made, count=f.number(not_made))
        found.append(Attention("/invoices?files=parked", title, "failed", t("home.documents_not_made_text")))
    waiting = files.get("wanted", 0)
    if waiting:
        title = t("home.documents_missing", n=waiting, count=f.number(waiting))
        found.append(Attention("/invoices?files=wanted", title, "pending", t("home.documents_missing_text")))
    return found


def _budgets(visit: Visit, front: Front, master: MasterData) -> list[Attention]:
    """Budgets that have reached their first threshold in the running period."""
    t, f = visit.texts, visit.formats
    found: list[Attention] = []
    for one in budgets.near(front, visit, master, BUDGETS_MAX):
        if one.live is None:
            continue
        text = t(
            "home.budget_text",
            spent=f.money(one.live.spent, one.currency),
            limit=f.money(one.limit, one.currency),
            percent=f.number(one.live.percent),
        )
        name = master.customers[one.customer].name
        link = path_of("customers", one.customer)
        found.append(Attention(link, t("home.budget", customer=name), one.live.state, text))
    return found


def _events(counts: Sequence[DayCount]) -> Events:
    return Events(
        sum(one.stored for one in counts), sum(one.suspended for one in counts), sum(one.voided for one in counts)
    )


def _first_steps(front: Front, visit: Visit, master: MasterData, keys: int, today: date) -> Response:
    now = visit.user.test_clock or visit.now
    stored = front.usage.stored(visit.tenant_id, master, now)
    done = {
        "company": True,
        "key": keys > 0,
        "meters": bool(master.meters),
        "plans": bool(master.plans),
        "customers": bool(master.subscriptions),
        "usage": stored > 0,
        "bill_run": False,
    }
    paths = {
        "key": "/settings/keys/new" if visit.may("access:write") else "",
        "meters": "/meters",
        "plans": "/plans",
        "customers": "/customers",
        "bill_run": "/bill-runs/new" if visit.may("billing:write") else "",
    }
    current = next(key for key, is_done in done.items() if not is_done)
    steps = [Step(key, is_done, key == current, "" if is_done else paths.get(key, "")) for key, is_done in done.items()]
    return front.page(
        visit,
        "statistics/home.html",
        area="revenue",
        month=today.replace(day=1),
        steps=steps,
        steps_done=sum(done.values()),
        stored=stored,
        base_url=str(visit.request.base_url).rstrip("/"),
        example_time=visit.formats.local(visit.now).replace(microsecond=0).isoformat(),
    )
