"""The phases of a plan: a trial, an introductory price, a ramp - parts of a contract's life with terms of their own.

Owns their form, how long they last and which one is in force when. What a phase bills is a plan again
(`Plan.in_phase`), so that periods, prices and tax know nothing of phases. Source: docs/rules.md, Phases and trials.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from billing.forms import Form, Mistakes
from billing.periods import TimeInvalid, add_months, instant, zone

if TYPE_CHECKING:
    from billing.catalog import Charge, Plan, Price

TrialEnd = Literal["continue", "cancel"]
TRIAL_ENDS = ("continue", "cancel")
PHASES_MAX = 100
LENGTH = re.compile(r"([1-9][0-9]{0,3}) (day|week|month|quarter|year)s?")
MONTHS = {"month": 1, "quarter": 3, "year": 12}
DAYS = {"day": 1, "week": 7}


@dataclass(frozen=True)
class Phase:
    """One phase: how long it lasts (`months` or `days`; neither: open), and what is other in it than in the plan."""

    code: str
    months: int = 0
    days: int = 0
    free: bool = False  # nothing is charged; usage is rated at 0
    discount: Decimal = Decimal(0)  # percent
    discounted: frozenset[str] = frozenset()  # the charges that the discount is for; none means all
    charges: tuple[Charge, ...] | None = None  # in place of the plan's
    prices: tuple[tuple[str, Price], ...] = ()  # of some of the plan's charges, by code
    minimum: Decimal | None = None  # in place of the plan's
    name: str = ""

    @property
    def open(self) -> bool:
        return not self.months and not self.days

    @property
    def length(self) -> str:
        """As the form says it."""
        number, unit = (self.days, "day") if self.days else (self.months, "month")
        return f"{number} {unit}{'' if number == 1 else 's'}"

    @property
    def terms(self) -> tuple[object, ...]:
        """What the phase changes. Neighbours with equal terms are one phase: no period is cut between them."""
        return (self.free, self.discount, self.discounted, self.charges, self.prices, self.minimum)


@dataclass(frozen=True)
class PhaseTime:
    """When a phase begins for one contract, counted from the contract's start."""

    index: int
    start: datetime


def phase_times(plan: Plan, start: datetime, timezone: str) -> tuple[PhaseTime, ...]:
    """The phases of a plan for a contract with that start, in order; equal neighbours are one.

    Lengths are added to the start, in local time: months one after the other are added together, never to the phase
    before (31 January, 28 February, 31 March), days after months to the day that those give. A phase that begins
    beyond the years of `periods` never begins.
    """
    found: list[PhaseTime] = []
    local, months, moment = start.astimezone(zone(timezone)).replace(tzinfo=None, fold=0), 0, start
    for index, phase in enumerate(plan.phases):
        if not found or plan.phases[found[-1].index].terms != phase.terms:
            found.append(PhaseTime(index, moment))
        if phase.open:
            break
        try:
            if phase.days:
                local, months = add_months(local, months) + timedelta(days=phase.days), 0
            else:
                months += phase.months
            moment = instant(add_months(local, months), timezone)
        except (TimeInvalid, OverflowError):
            break
    return tuple(found)


def trial_end_of(plan: Plan, start: datetime, timezone: str) -> datetime | None:
    """When the free phase ends with which a plan begins; None where it begins with none, or it never ends."""
    times = phase_times(plan, start, timezone)
    if len(times) < 2 or not plan.phases[times[0].index].free:
        return None
    return times[1].start


def parse_phases(
    fields: Form,
    codes: Sequence[str],
    parse_charges: Callable[[Form], tuple[Charge, ...]],
    parse_price: Callable[[object, str, Mistakes], Price | None],
) -> tuple[tuple[Phase, ...], TrialEnd]:
    """`phases` and `trial_end` of a plan's form. `codes` are the plan's own charges."""
    phases: list[Phase] = []
    entries = list(fields.items("phases", most=PHASES_MAX))
    if fields.fields.get("phases") is not None and not entries:
        fields.wrong("phases", "needs at least one phase")
    for number, (place, entry) in enumerate(entries, start=1):
        form = Form(entry, place, fields.mistakes)
        phase = _phase(form, number, codes, parse_charges, parse_price)
        if number < len(entries) and form.fields.get("for") is None:
            form.wrong("for", "is missing: only the last phase is open")
        if number == len(entries) and form.fields.get("for") is not None:
            form.wrong("for", "the last phase is open: it has no length")
        if any(phase.code == known.code for known in phases):
            form.wrong("code", f"{phase.code!r} is there twice")
        phases.append(phase)
    said = fields.choice("trial_end", TRIAL_ENDS, "continue")
    if fields.fields.get("trial_end") is not None and not (len(phases) > 1 and phases[0].free):
        fields.wrong("trial_end", "is for plans that begin with a free phase")
    if phases and phases[-1].free:
        fields.mistakes.add(
            f"{fields.at('phases')}/{len(phases) - 1}/free", "the last phase cannot be free: a trial ends"
        )
    return tuple(phases), "cancel" if said == "cancel" else "continue"


def _phase(
    form: Form,
    number: int,
    codes: Sequence[str],
    parse_charges: Callable[[Form], tuple[Charge, ...]],
    parse_price: Callable[[object, str, Mistakes], Price | None],
) -> Phase:
    code, name = form.code("code", str(number)) or str(number), form.text("name", "")
    months, days = _length(form)
    free = form.truth("free", False)
    charges = None
    if form.fields.get("charges") is not None:
        charges = parse_charges(form)
        if not charges:
            form.wrong("charges", "needs at least one charge")
    known = codes if charges is None else [charge.code for charge in charges]
    discount, discounted = _discount(form, known)
    prices: list[tuple[str, Price]] = []
    inner = Form(form.mapping("prices"), form.at("prices"), form.mistakes)
    for charge in sorted(inner.fields):
        price = parse_price(inner.fields[charge], inner.at(charge), form.mistakes)
        if charge not in codes:
            inner.wrong(charge, f"the plan has no charge {charge!r}")
        if price is not None:
            prices.append((charge, price))
    if prices and charges is not None:
        form.wrong("prices", "has `charges` of its own: their prices are there")
    minimum = form.decimal("minimum", required=False, least=Decimal(0))
    if free:
        for key in ("charges", "discount", "prices", "minimum"):
            if form.fields.get(key) is not None:
                form.wrong(key, "a free phase has no terms of its own")
    form.done()
    return Phase(code, months, days, free, discount, discounted, charges, tuple(prices), minimum, name)


def _length(form: Form) -> tuple[int, int]:
    """`for: 14 days` as (months, days)."""
    text = form.text("for", "", 40)
    if not text:
        return 0, 0
    found = LENGTH.fullmatch(text)
    if found is None:
        form.wrong("for", f"{text!r} is no length such as 14 days, 1 month or 2 years")
        return 0, 0
    number, unit = int(found[1]), found[2]
    return number * MONTHS.get(unit, 0), number * DAYS.get(unit, 0)


def _discount(form: Form, codes: Sequence[str]) -> tuple[Decimal, frozenset[str]]:
    """`discount: "50"`, or `{percent, charges}` where it is for some charges only."""
    value = form.fields.get("discount")
    if value is None:
        form.raw("discount")
        return Decimal(0), frozenset()
    if isinstance(value, dict):
        inner = Form(form.raw("discount"), form.at("discount"), form.mistakes)
        percent, charges = inner.decimal("percent", above=Decimal(0)), inner.texts("charges")
        for place, charge in enumerate(charges):
            if charge not in codes:
                inner.mistakes.add(f"{inner.at('charges')}/{place}", f"there is no charge {charge!r}")
        inner.done()
        key, holder = "percent", inner
    else:
        percent, charges = form.decimal("discount", above=Decimal(0)), ()
        key, holder = "discount", form
    if percent is not None and percent > 100:
        holder.wrong(key, "must be at most 100")
    return percent or Decimal(0), frozenset(charges)
