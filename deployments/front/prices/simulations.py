"""Pages of simulations: try other prices of a plan over past months, and see what they would have earned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request, Response

from billing.catalog import Plan
from billing.catalog_forms import parse_plan
from billing.errors import Conflict, InvalidInput
from billing.master import MasterData
from billing.simulation import MONTHS_MAX
from deployments.front import charts
from deployments.front.formats import Formats
from deployments.front.lists import EXPORT_ROWS_MAX, LIMIT, Rows, Sort, cursor, cursor_number, export
from deployments.front.page import Front, Visit, path_of
from deployments.front.prices import price_form, view
from deployments.front.texts import Texts
from deployments.simulations import csv_answer, ranked, shown_customer, simulations, start
from storage.sql import audit

CUSTOMER_COLUMNS = ("customer", "name", "currency", "before", "after", "difference")
RANKED_SHOWN = 10
FIELDS_MAX = 5_000


@dataclass(frozen=True)
class SimulationRow:
    id: str
    name: str
    plan: str
    months: str
    state: str
    result: str
    created_at: datetime
    actor: str


@dataclass(frozen=True)
class PriceChange:
    charge: str
    before: str
    after: str


@dataclass(frozen=True)
class AmountRow:
    """A month, a charge or a customer with its amounts; `bar` is the difference in percent of the greatest one."""

    label: str
    path: str
    before: Decimal
    after: Decimal
    difference: Decimal
    bar: Decimal = Decimal(0)


@dataclass(frozen=True)
class CurrencyView:
    currency: str
    before: Decimal
    after: Decimal
    difference: Decimal
    customers: int
    pay_more: int
    pay_less: int
    pay_the_same: int
    chart: charts.Bars
    months: list[AmountRow]
    charges: list[AmountRow]
    most_more: list[AmountRow]
    most_less: list[AmountRow]


async def posted(request: Request) -> dict[str, str]:
    """The fields of the form, texts only."""
    form = await request.form(max_fields=FIELDS_MAX)
    return {name: value for name, value in form.items() if isinstance(value, str)}


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)

    @router.get("/simulations")
    def listed(visit: Annotated[Visit, visitor]) -> Response:
        visit.need("billing:read")
        found = simulations(services).list(visit.tenant_id)
        master = front.master(visit)
        rows = [_row(one, master, visit) for one in found]
        sellable = bool(master.subscriptions)
        return front.page(
            visit, "prices/simulations.html", area="simulations", rows=rows, can=visit.may("catalog:write") and sellable
        )

    @router.get("/simulations/new")
    def new(visit: Annotated[Visit, visitor], plan: Annotated[str, Query(max_length=256)] = "") -> Response:
        visit.need("catalog:write")
        return _form(front, visit, plan, {}, {})

    @router.post("/simulations")
    def create(visit: Annotated[Visit, visitor], form: Annotated[dict[str, str], Depends(posted)]) -> Response:
        visit.need("catalog:write")
        front.check_form(visit, form.get("form_token", ""))
        master = front.master(visit)
        code = form.get("plan", "")
        plan = master.plan(code)
        typed = {name: value for name, value in form.items() if name.startswith("charges.")}
        asked = {
            "plan": price_form.plan_form(plan, typed, visit.formats),
            "name": form.get("name", "").strip() or visit.texts("simulation.unnamed", plan=plan.name or plan.code),
            "from": form.get("from"),
            "to": form.get("to"),
        }
        now = visit.user.test_clock or visit.now
        try:
            made = start(services, visit.tenant_id, visit.user.timezone, asked, actor=visit.user.actor, now=now)
        except InvalidInput as error:
            wrong = {price_form.field_of(one.pointer): one.detail for one in error.errors}
            return _form(front, visit, code, form, wrong)
        except Conflict as error:
            return _form(front, visit, code, form, {"name": error.detail})
        with services.database.tenant(visit.tenant_id) as connection:
            audit.record(connection, visit.tenant_id, at=services.clock(), actor=visit.user.actor,
                         action="simulation started", subject=made["id"], after={"name": made["name"]})  # fmt: skip
        services.start_simulation(visit.tenant_id, made["id"])
        return front.go(visit, path_of("simulations", made["id"]))

    @router.get("/simulations/{simulation_id}")
    def result(visit: Annotated[Visit, visitor], simulation_id: str) -> Response:
        visit.need("billing:read")
        found = simulations(services).get(visit.tenant_id, simulation_id)
        master = front.master(visit)
        t, f = visit.texts, visit.formats
        outcome = found["result"]
        return front.page(
            visit,
            "prices/simulation.html",
            area="simulations",
            row=_row(found, master, visit),
            running=found["state"] in ("planned", "running"),
            progress=found["progress"],
            error=found["error"],
            changes=_changes(found, t, f),
            currencies=[_currency(one, found, master, visit) for one in outcome["currencies"]] if outcome else [],
            parked=[(one["customer"], _name(master, one["customer"]), one["reason"]) for one in outcome["parked"]]
            if outcome
            else [],
        )

    @router.get("/simulations/{simulation_id}/customers")
    def customers(
        visit: Annotated[Visit, visitor],
        simulation_id: str,
        sort: str = "-difference",
        after: str | None = None,
        format: str = "",
    ) -> Response:
        visit.need("billing:read")
        known = simulations(services)
        found = known.get(visit.tenant_id, simulation_id)
        order = Sort.of(sort, ("difference", "customer"), "-difference")
        text = ("-" if order.descending and order.key == "difference" else "") + order.key
        frame = ranked(known.customers(visit.tenant_id, simulation_id), text)
        master = front.master(visit)
        place = cursor_number(after) if after and not format else 0
        rows = [
            {**shown_customer(one), "name": _name(master, one["customer"])}
            for one in frame.slice(place, EXPORT_ROWS_MAX if format else LIMIT).iter_rows(named=True)
        ]
        if format:
            return export(format, f"simulation-{simulation_id}", CUSTOMER_COLUMNS, rows)
        following_page = cursor(place + LIMIT) if place + LIMIT < frame.height else None
        return front.page(
            visit,
            "prices/simulation_customers.html",
            area="simulations",
            row=_row(found, master, visit),
            rows=Rows(rows, frame.height, frame.height, following_page, place == 0),
            sort=order,
            amount=Decimal,
        )

    @router.get("/simulations/{simulation_id}/csv")
    def all_rows(visit: Annotated[Visit, visitor], simulation_id: str) -> Response:
        visit.need("billing:read")
        return csv_answer(simulations(services).rows(visit.tenant_id, simulation_id), simulation_id)

    @router.post("/simulations/{simulation_id}/cancel")
    def cancel(
        visit: Annotated[Visit, visitor], simulation_id: str, form_token: Annotated[str, Form()] = ""
    ) -> Response:
        visit.need("catalog:write")
        front.check_form(visit, form_token)
        simulations(services).cancel(visit.tenant_id, simulation_id)
        return front.go(visit, path_of("simulations", simulation_id))

    @router.post("/simulations/{simulation_id}/delete")
    def delete(
        visit: Annotated[Visit, visitor], simulation_id: str, form_token: Annotated[str, Form()] = ""
    ) -> Response:
        visit.need("catalog:write")
        front.check_form(visit, form_token)
        simulations(services).delete(visit.tenant_id, simulation_id)
        with services.database.tenant(visit.tenant_id) as connection:
            audit.record(connection, visit.tenant_id, at=services.clock(), actor=visit.user.actor,
                         action="simulation deleted", subject=simulation_id)  # fmt: skip
        return front.go(visit, "/simulations")

    return router


def _form(front: Front, visit: Visit, code: str, typed: Mapping[str, str], wrong: Mapping[str, str]) -> Response:
    """The form, with what was typed; without a plan only the choice of one."""
    master = front.master(visit)
    t, f = visit.texts, visit.formats
    plan: Plan | None = master.plan(code) if code else None
    months = _months(visit)
    blocks = [] if plan is None else price_form.fields_of(plan, master.meters, typed, wrong, t, f)
    shown = {one.name for block in blocks for one in _fields(block)}
    elsewhere = [(name, text) for name, text in wrong.items() if name not in shown | {"from", "to", "name"}]
    plans = sorted(
        ((one.code, one.name or one.code) for one in (versions[-1] for versions in master.plans.values())),
        key=lambda one: one[1].casefold(),
    )
    return front.page(
        visit,
        "prices/simulation_new.html",
        status=422 if wrong else 200,
        area="simulations",
        plans=plans,
        plan=plan,
        blocks=blocks,
        skipped=0 if plan is None else sum(1 for charge in plan.charges if len(charge.rows) > price_form.ROWS_MAX),
        months=[(f"{month:%Y-%m}", f.month(month)) for month in months],
        first=typed.get("from", f"{months[min(2, len(months) - 1)]:%Y-%m}"),
        last=typed.get("to", f"{months[0]:%Y-%m}"),
        name=typed.get("name", ""),
        wrong=wrong,
        elsewhere=elsewhere,
    )


def _fields(block: price_form.PriceFields) -> list[price_form.Field]:
    found = list(block.fields)
    for tier in block.tiers:
        found += [one for one in (tier.up_to, tier.unit, tier.flat) if one is not None]
    return found


def _months(visit: Visit) -> list[date]:
    """Months that are over, newest first."""
    month = visit.formats.local(visit.user.test_clock or visit.now).date().replace(day=1)
    months: list[date] = []
    for _ in range(MONTHS_MAX):
        month = date(month.year - (month.month == 1), (month.month - 2) % 12 + 1, 1)
        months.append(month)
    return months


def _row(found: Mapping[str, Any], master: MasterData, visit: Visit) -> SimulationRow:
    f = visit.formats
    months = [date.fromisoformat(month) for month in found["months"]]
    first, last = f.month(months[0]), f.month(months[-1])
    code = found["plan"]["code"]
    versions = master.plans.get(code)
    result = found["result"]
    words = (
        ", ".join(f"{f.signed(Decimal(one['difference']), 2)}\u00a0{one['currency']}" for one in result["currencies"])
        if result
        else ""
    )
    return SimulationRow(
        found["id"],
        found["name"],
        (versions[-1].name if versions else "") or code,
        first if first == last else f"{first} – {last}",
        found["state"],
        words,
        datetime.fromisoformat(found["created_at"]),
        str(found["created_by"]).removeprefix("user "),
    )


def _changes(found: Mapping[str, Any], t: Texts, f: Formats) -> list[PriceChange]:
    """What differs between the plan as it is sold and the one that was tried, charge by charge."""
    old, new = (parse_plan(form) for form in (found["instead_of"], found["plan"]["form"]))
    rows = [
        {(charge.code, row.when): (charge, row) for charge in plan.charges for row in charge.rows}
        for plan in (old, new)
    ]
    changes: list[PriceChange] = []
    for key in dict.fromkeys([*rows[0], *rows[1]]):
        before, after = (side.get(key) for side in rows)
        if before is not None and after is not None and before[1] == after[1]:
            continue
        charge = (after or before)[0]  # type: ignore[index]  # one of them is there
        when = ", ".join(value for _, value in key[1])
        name = charge.name or charge.code
        words = [
            "–"
            if side is None
            else ", ".join(part for part in (_price(side[1].price, t, f), _limits(side[1], t, f)) if part)
            for side in (before, after)
        ]
        changes.append(PriceChange(f"{name} ({when})" if when else name, words[0], words[1]))
    if old.minimum != new.minimum:
        changes.append(PriceChange(t("invoice.minimum"), f.number(old.minimum, 2), f.number(new.minimum, 2)))
    return changes


def _price(price: Any, t: Texts, f: Formats) -> str:
    """The price with all its numbers."""
    if price.model in ("graduated", "volume"):
        places = f.places((tier.unit for tier in price.tiers), 2)
        parts = [
            f"{t('tier.up_to', bound=f.number(tier.up_to)) if tier.up_to is not None else t('tier.above')}: "
            f"{f.number(tier.unit, places)}" + (f" + {f.number(tier.flat, 2)}" if tier.flat else "")
            for tier in price.tiers
        ]
        return "; ".join(parts)
    return view.price_words(price, t, f)


def _limits(row: Any, t: Texts, f: Formats) -> str:
    words = [t("line.included", quantity=f.number(row.included))] if row.included else []
    return ", ".join([*words, *([limits] if (limits := view.limit_words(row, t, f)) else [])])


def _name(master: MasterData, code: str) -> str:
    customer = master.customers.get(code)
    return customer.name if customer else code


def _currency(
    found: Mapping[str, Any], simulation: Mapping[str, Any], master: MasterData, visit: Visit
) -> CurrencyView:
    f = visit.formats
    charges = (*simulation["instead_of"]["charges"], *simulation["plan"]["form"]["charges"])
    names = {charge["code"]: charge.get("name") or charge["code"] for charge in charges}
    months = [_amounts(one, f.month(date.fromisoformat(f"{one['month']}-01")), "") for one in found["months"]]
    return CurrencyView(
        found["currency"],
        Decimal(found["before"]),
        Decimal(found["after"]),
        Decimal(found["difference"]),
        found["customers"],
        found["pay_more"],
        found["pay_less"],
        found["pay_the_same"],
        _chart(found["months"], visit),
        months,
        [_amounts(one, names.get(one["charge"], one["charge"]), "") for one in found["charges"]],
        _people(found["most_more"], master),
        _people(found["most_less"], master),
    )


def _amounts(found: Mapping[str, str], label: str, path: str, most: Decimal = Decimal(0)) -> AmountRow:
    difference = Decimal(found["difference"])
    bar = (abs(difference) * 100 / most).quantize(charts.TENTH) if most else Decimal(0)
    return AmountRow(label, path, Decimal(found["before"]), Decimal(found["after"]), difference, bar)


def _people(found: Sequence[Mapping[str, str]], master: MasterData) -> list[AmountRow]:
    most = max((abs(Decimal(one["difference"])) for one in found), default=Decimal(0))
    return [
        _amounts(one, _name(master, one["customer"]), path_of("customers", one["customer"]), most)
        for one in found[:RANKED_SHOWN]
    ]


def _chart(months: Sequence[Mapping[str, str]], visit: Visit) -> charts.Bars:
    """Two bars a month, before and after."""
    f, t = visit.formats, visit.texts
    groups: list[list[charts.Column]] = []
    step = max(1, -(-len(months) // 12))
    for place, one in enumerate(months):
        month = date.fromisoformat(f"{one['month']}-01")
        tick = f.month_short(month) if place % step == 0 else ""
        group: list[charts.Column] = []
        for side, style in (("before", "f0"), ("after", "fp")):
            value = Decimal(one[side])
            title = f"{f.month(month)}, {t(f'simulation.{side}')}: {f.number(value, 2)}"
            group.append(charts.Column(title, [(style, value)], "" if group else tick))
        groups.append(group)
    return charts.side_by_side(groups, height=260)
