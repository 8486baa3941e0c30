"""What other prices would have earned: past months billed again, month by month, on contracts as they were.

Owns the replay: master data in which a plan has always had other charges, what was known when, and which lines belong
to a month. The lines are made by `billing/bill.py` and nothing else. Revenue is the lines' net amount by the month in
which their service begins; discounts of a whole document, wallets and tax are no part of it.
Source: docs/simulation.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import polars as pl

from billing.bill import BilledDocument, Parked, bill, events_needed_from
from billing.catalog import Plan
from billing.catalog_forms import check_references, parse_plan, to_form
from billing.contracts import Subscription, contracts_of
from billing.documents import Document, Line
from billing.errors import FieldError, InvalidInput, NotFound
from billing.master import MasterData, RunMark
from billing.periods import midnight

INSTANT = timedelta(microseconds=1)
MONTHS_MAX = 36
ZERO = Decimal(0)
PRICE_KEYS = ("price", "prices", "price_by", "included", "minimum", "maximum")


@dataclass(frozen=True)
class MonthLine:
    """The net amount of one charge for one customer and month, in one currency."""

    customer: str
    currency: str
    charge: str
    month: date
    amount: Decimal


# --- what is asked ------------------------------------------------------------------------------------------------


def plan_asked(master: MasterData, form: Mapping[str, Any]) -> Plan:
    """The plan to try: a whole form (`plan`), or the newest version with other prices (`{code, charges: [{code, price,
    included, minimum, maximum}]}` as `prices`). Raises InvalidInput with pointers into that form, NotFound.
    """
    if (form.get("plan") is None) == (form.get("prices") is None):
        raise _wrong("/plan", "either `plan` (a whole plan) or `prices` (other prices of its charges) is needed")
    if form.get("plan") is not None:
        value, pointer, places = form["plan"], "/plan", None
    else:
        value, places = _with_prices(master, form["prices"])
        pointer = "/plan"
    try:
        plan = parse_plan(value, pointer)
        known = master.plans.get(plan.code)
        if known is None:
            raise NotFound(f"there is no plan {plan.code!r}: a simulation changes one that is sold", plan=plan.code)
        errors = check_references(plan, master.meters, master.tax_codes, pointer)
        if plan.currency != known[-1].currency:
            errors.append(FieldError(f"{pointer}/currency", f"must stay {known[-1].currency}"))
        if errors:
            raise InvalidInput(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)
    except InvalidInput as error:
        if places is None:
            raise
        found = [FieldError(_asked_place(one.pointer, places), one.detail) for one in error.errors]
        raise InvalidInput(f"{found[0].pointer}: {found[0].detail}" if found else error.detail, errors=found) from error
    return replace(plan, version=known[-1].version + 1)


def _with_prices(master: MasterData, asked: Any) -> tuple[dict[str, Any], dict[int, int]]:
    """The newest version's form with other prices, and which of its charges is which one of the asked."""
    if not isinstance(asked, Mapping) or set(cast("Mapping[str, Any]", asked)) - {"code", "charges", "minimum"}:
        raise _wrong("/prices", "an object of code, charges and minimum is needed")
    wanted = cast("Mapping[str, Any]", asked)
    code: Any = wanted.get("code")
    charges: Any = wanted.get("charges") or []
    if not isinstance(code, str) or code not in master.plans:
        raise NotFound(f"there is no plan {code!r}", plan=str(code))
    if not isinstance(charges, list):
        raise _wrong("/prices/charges", "a list is needed")
    form = to_form(master.plans[code][-1])
    if "minimum" in wanted:
        form["minimum"] = wanted["minimum"]
    places: dict[int, int] = {}
    errors: list[FieldError] = []
    names = [charge["code"] for charge in form["charges"]]
    for number, given in enumerate(cast("list[Any]", charges)):
        here = f"/prices/charges/{number}"
        entry = cast("Mapping[str, Any]", given if isinstance(given, Mapping) else {"": given})
        if set(entry) - {"code", *PRICE_KEYS}:
            errors.append(FieldError(here, f"an object of code and {', '.join(PRICE_KEYS)} is needed"))
        elif entry.get("code") not in names:
            errors.append(FieldError(f"{here}/code", f"plan {code!r} has no charge {entry.get('code')!r}"))
        else:
            place = names.index(entry["code"])
            kept = {key: value for key, value in form["charges"][place].items() if key not in PRICE_KEYS}
            # What is not said stays, but a new price and old price rows exclude each other.
            own = {key: value for key, value in form["charges"][place].items() if key in PRICE_KEYS}
            if "price" in entry or "prices" in entry:
                own = {key: value for key, value in own.items() if key not in ("price", "prices", "price_by")}
            form["charges"][place] = {**kept, **own, **entry}
            places[place] = number
    if errors:
        raise InvalidInput(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)
    return form, places


def _asked_place(pointer: str, places: Mapping[int, int]) -> str:
    """`/plan/charges/4/price/unit` as a place in what was asked: `/prices/charges/0/price/unit`."""
    parts = pointer.split("/")
    if len(parts) > 3 and parts[2] == "charges" and parts[3].isdigit() and int(parts[3]) in places:
        return "/".join(["", "prices", "charges", str(places[int(parts[3])]), *parts[4:]])
    return "/prices" + pointer.removeprefix("/plan")


def _wrong(pointer: str, detail: str) -> InvalidInput:
    return InvalidInput(f"{pointer}: {detail}", errors=[FieldError(pointer, detail)])


def months_asked(first: object, last: object, today: date) -> list[date]:
    """The first days of the months from `first` to `last` (`2026-01`), both included; only months that are over."""
    errors: list[FieldError] = []
    days: list[date] = []
    for pointer, text in (("/from", first), ("/to", last)):
        try:
            day = date.fromisoformat(f"{text}-01") if isinstance(text, str) and len(text) == 7 else None
        except ValueError:
            day = None
        if day is None or not 1900 <= day.year <= 9000:
            errors.append(FieldError(pointer, "a month like 2026-01 is needed"))
        else:
            days.append(day)
    if not errors and days[1] < days[0]:
        errors.append(FieldError("/to", "must not be before `from`"))
    if not errors and following(days[1]) > today:
        errors.append(FieldError("/to", "that month is not over yet"))
    if not errors and (days[1].year - days[0].year) * 12 + days[1].month - days[0].month >= MONTHS_MAX:
        errors.append(FieldError("/to", f"at most {MONTHS_MAX} months"))
    if errors:
        raise InvalidInput(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)
    months = [days[0]]
    while months[-1] < days[1]:
        months.append(following(months[-1]))
    return months


def following(month: date) -> date:
    """The first day of the next month."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def customers_on(master: MasterData, plan: str) -> list[str]:
    """Customers who have (or had, or will have) the plan in a contract, by code."""
    timezone = master.tenant.timezone
    return sorted(
        {
            subscription.customer
            for subscription in master.subscriptions.values()
            if any(
                segment.plan.code == plan for one in contracts_of(subscription, timezone) for segment in one.segments
            )
        }
    )


# --- other master data --------------------------------------------------------------------------------------------


def with_plan(master: MasterData, plan: Plan) -> MasterData:
    """Master data in which every contract on the plan, of whichever version, has these charges from its start on."""

    def on(old: Plan) -> Plan:
        return plan if old.code == plan.code else old

    subscriptions = {
        code: replace(
            one,
            plan=on(one.plan),
            steps=tuple(step if step.plan is None else replace(step, plan=on(step.plan)) for step in one.steps),
            add_ons=tuple(replace(add_on, plan=on(add_on.plan)) for add_on in one.add_ons),
        )
        for code, one in master.subscriptions.items()
    }
    versions = (*master.plans.get(plan.code, ()), plan)
    return replace(master, subscriptions=subscriptions, plans={**master.plans, plan.code: versions})


def of_customers(master: MasterData, customers: Sequence[str]) -> MasterData:
    """Only these customers, nothing billed, each paying for himself, steps numbered in the order of time.

    Bill runs go by the numbers of steps ("that one had not seen it yet"); here all of them are known, so the number of
    a step becomes its place in time: a step that was entered late counts as known from its own time on.
    """
    wanted = set(customers)
    chosen = {code: one for code, one in master.subscriptions.items() if one.customer in wanted}
    moments: dict[int, datetime] = {}
    for one in chosen.values():
        moments[one.number] = one.start
        moments |= {step.number: step.at for step in one.steps}
        moments |= {add_on.number: add_on.start for add_on in one.add_ons}
    order = sorted((moment, number) for number, moment in moments.items())
    places = {number: place for place, (_, number) in enumerate(order, start=1)}
    subset = replace(master.subset(customers), ad_hoc={}, top_ups=(), budgets={}, runs=(), log=())
    return replace(
        subset,
        customers={code: replace(one, payers=()) for code, one in subset.customers.items() if code in wanted},
        subscriptions={code: _renumbered(one, places) for code, one in chosen.items()},
        subscriptions_of={code: codes for code, codes in subset.subscriptions_of.items() if code in wanted},
        step_count=len(places),
    )


def _renumbered(one: Subscription, places: Mapping[int, int]) -> Subscription:
    return replace(
        one,
        number=places[one.number],
        steps=tuple(replace(step, number=places[step.number]) for step in one.steps),
        add_ons=tuple(replace(add_on, number=places[add_on.number]) for add_on in one.add_ons),
    )


def known_at(master: MasterData, moment: datetime) -> tuple[MasterData, int]:
    """What was known then of `of_customers` master data, and the number of its last step."""
    subscriptions: dict[str, Subscription] = {}
    last = 0
    for code, one in master.subscriptions.items():
        if one.start > moment:
            continue
        kept = replace(
            one,
            steps=tuple(step for step in one.steps if step.at <= moment),
            add_ons=tuple(add_on for add_on in one.add_ons if add_on.start <= moment),
        )
        # Kept as it is where nothing is left out: its contract is computed once for all months.
        same = len(kept.steps) == len(one.steps) and len(kept.add_ons) == len(one.add_ons)
        subscriptions[code] = one if same else kept
        numbers = (*(step.number for step in kept.steps), *(add_on.number for add_on in kept.add_ons))
        last = max(last, one.number, *numbers)
    owned = {
        customer: tuple(code for code in codes if code in subscriptions)
        for customer, codes in master.subscriptions_of.items()
    }
    return replace(master, subscriptions=subscriptions, subscriptions_of=owned), last


# --- the replay ---------------------------------------------------------------------------------------------------


class Replay:
    """Bill runs at the end of each month over some customers, one after the other, each on what the ones before made.

    `master` comes from `of_customers` (and `with_plan`). What begins before the first month counts as billed.
    """

    def __init__(self, master: MasterData, customers: Sequence[str], months: Sequence[date]) -> None:
        timezone = master.tenant.timezone
        self._master = master
        self._customers = list(customers)
        self._bounds = [midnight(day, timezone) for day in (*months, following(months[-1]))]
        self._months = list(months)
        self._closes = master.tenant.late_usage == "reject"
        self._billed: list[BilledDocument] = []
        self._marks: list[RunMark] = []
        self._place = 0
        self.parked: dict[str, Parked] = {}
        start = self._bounds[0]
        # Everything before the first moment of the months: the run at that moment bills what is due in advance then.
        before = start - INSTANT
        self._marks.append(RunMark(0, before, before, known_at(master, before)[1], closes=self._closes))

    @property
    def runs(self) -> int:
        """How many runs there are: one at the beginning (for charges in advance), one at each month's end."""
        return len(self._bounds)

    def needs(self, place: int) -> tuple[datetime | None, datetime]:
        """From when (None: ever) to when run `place` needs events."""
        up_to = self._bounds[place]
        if any(meter.is_carried for meter in self._master.meters.values()):
            return None, up_to
        master, _ = self._known(up_to)
        return events_needed_from(master, self._customers, up_to), up_to

    def _known(self, moment: datetime) -> tuple[MasterData, int]:
        master, last = known_at(self._master, moment)
        return replace(master, runs=tuple(self._marks)), last

    def run(self, place: int, events: pl.DataFrame, events_from: datetime | None) -> None:
        """Bill up to the bound of that place; events are those that `needs` asked for. In order, each once."""
        assert place == self._place, "runs come in order"
        up_to = self._bounds[place]
        master, last = self._known(up_to)
        result = bill(
            master,
            [customer for customer in self._customers if customer not in self.parked],
            up_to=up_to,
            now=up_to,
            billed=self._billed,
            events=events,
            events_from=events_from,
        )
        for one in result.parked:
            self.parked.setdefault(one.customer, one)
        mark = RunMark(place + 1, up_to, up_to, last, closes=self._closes)
        self._marks.append(mark)
        self._billed += [
            BilledDocument(f"{place}-{number}", document, mark.number, up_to)
            for number, document in enumerate(result.documents, start=1)
        ]
        self._place += 1

    def lines(self, plan: str) -> Iterator[MonthLine]:
        """What the plan's lines of the months come to; without customers who were parked."""
        sums: dict[tuple[str, str, str, date], Decimal] = {}
        first, end = self._bounds[0], self._bounds[-1]
        for one in self._billed:
            for line, amount in signed_lines(one.document):
                customer = line.customer or one.document.customer
                if line.plan != plan or customer in self.parked or not first <= line.start < end:
                    continue
                month = self._month(line.start)
                key = (customer, one.document.currency, line.charge, month)
                sums[key] = sums.get(key, ZERO) + amount
        for (customer, currency, charge, month), amount in sums.items():
            yield MonthLine(customer, currency, charge, month, amount)

    def _month(self, moment: datetime) -> date:
        place = sum(1 for bound in self._bounds[1:-1] if bound <= moment)
        return self._months[place]


def signed_lines(document: Document) -> Iterator[tuple[Line, Decimal]]:
    """The lines with their net amounts; those of a credit note count negative."""
    sign = -1 if document.type == "credit_note" else 1
    for line in document.lines:
        yield line, sign * line.amount
