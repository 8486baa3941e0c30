"""The catalog's values: tax codes, meters, price models, charges and plans.

Their JSON forms are `billing/catalog_forms.py`; how prices are computed is `billing/pricing/`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Literal, get_args

from billing.forms import escape
from billing.phases import Phase, TrialEnd

Aggregation = Literal["count", "sum", "max", "min", "latest", "unique_count", "time_weighted_sum"]
ChargeKind = Literal["one_off", "recurring", "usage"]
Timing = Literal["advance", "arrears"]
Proration = Literal["none", "day", "second"]
Interval = Literal["day", "week", "month", "quarter", "year"]
TaxBehavior = Literal["exclusive", "inclusive"]

AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)
CHARGE_KINDS: tuple[str, ...] = get_args(ChargeKind)
INTERVALS: tuple[str, ...] = get_args(Interval)
TAX_BEHAVIORS: tuple[str, ...] = get_args(TaxBehavior)
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MODELS = ("flat", "per_unit", "graduated", "volume", "package", "percentage", "event_amount", "bands")
EVENT_MODELS = ("percentage", "event_amount", "bands")  # they price each event, not the quantity

TIERS_MAX = 100
BANDS_MAX = 200
PRICE_ROWS_MAX = 100_000
CHARGES_MAX = 10_000
DIMENSIONS_MAX = 10
FREE_EVENTS_MAX = 1_000_000_000
MINUTES_OF_DAY = 24 * 60


@dataclass(frozen=True)
class TaxPercent:
    start: date
    percent: Decimal


@dataclass(frozen=True)
class TaxCode:
    code: str
    percents: tuple[TaxPercent, ...]  # in order of their start
    name: str = ""
    description: str = ""
    step: int = 0  # of master data, that gave it these percents

    def entry_on(self, day: date) -> TaxPercent | None:
        """The percent in force on a day, with its start; None before the first one."""
        found = None
        for percent in self.percents:
            if percent.start > day:
                break
            found = percent
        return found

    def percent_on(self, day: date) -> Decimal | None:
        """The percent in force on a day; None before the first one."""
        found = self.entry_on(day)
        return None if found is None else found.percent


@dataclass(frozen=True)
class Meter:
    """How events of one type become a quantity."""

    code: str
    event_type: str
    aggregation: Aggregation
    value: str | None = None  # the property that is measured; `count` needs none
    filter: tuple[tuple[str, tuple[str, ...]], ...] = ()  # property and the texts that pass, by property
    name: str = ""
    description: str = ""
    unit: str = ""

    @property
    def is_carried(self) -> bool:
        """Whether the last event before a period counts in it."""
        return self.aggregation in ("time_weighted_sum", "latest")


@dataclass(frozen=True)
class Tier:
    up_to: Decimal | None  # inclusive; None has no end
    unit: Decimal = Decimal(0)
    flat: Decimal = Decimal(0)


@dataclass(frozen=True)
class Band:
    """Local hours of some weekdays: `[start, end)` in minutes; an end at or before the start is on the next day."""

    unit: Decimal
    days: tuple[int, ...] = ()  # 0 is Monday; none means every day
    start: int = 0
    end: int = MINUTES_OF_DAY


@dataclass(frozen=True)
class Flat:
    amount: Decimal
    model: Literal["flat"] = "flat"


@dataclass(frozen=True)
class PerUnit:
    unit: Decimal
    model: Literal["per_unit"] = "per_unit"


@dataclass(frozen=True)
class Graduated:
    tiers: tuple[Tier, ...]
    model: Literal["graduated"] = "graduated"


@dataclass(frozen=True)
class Volume:
    tiers: tuple[Tier, ...]
    model: Literal["volume"] = "volume"


@dataclass(frozen=True)
class Package:
    size: Decimal
    amount: Decimal
    model: Literal["package"] = "package"


@dataclass(frozen=True)
class Percentage:
    percent: Decimal
    per_event: Decimal = Decimal(0)
    min_per_event: Decimal | None = None
    max_per_event: Decimal | None = None
    free_events: int = 0
    free_value: Decimal = Decimal(0)
    model: Literal["percentage"] = "percentage"


@dataclass(frozen=True)
class EventAmount:
    property: str = "amount"
    model: Literal["event_amount"] = "event_amount"


@dataclass(frozen=True)
class Bands:
    bands: tuple[Band, ...]
    otherwise: Decimal
    model: Literal["bands"] = "bands"


Price = Flat | PerUnit | Graduated | Volume | Package | Percentage | EventAmount | Bands


@dataclass(frozen=True)
class PriceRow:
    """One priced row of a usage charge: `when` names the values of dimensions that it is for; none means all."""

    price: Price
    when: tuple[tuple[str, str], ...] = ()
    included: Decimal = Decimal(0)
    minimum: Decimal | None = None
    maximum: Decimal | None = None


@dataclass(frozen=True)
class Charge:
    """One thing that a plan bills."""

    code: str
    kind: ChargeKind
    tax: str
    price: Price | None = None  # None: `prices` has the rows
    timing: Timing = "advance"
    proration: Proration = "day"
    meter: str = ""
    included: Decimal = Decimal(0)
    minimum: Decimal | None = None
    maximum: Decimal | None = None
    prorate_usage: bool = False
    price_by: tuple[str, ...] = ()
    prices: tuple[PriceRow, ...] = ()
    name: str = ""
    description: str = ""
    unit: str = ""

    @property
    def rows(self) -> tuple[PriceRow, ...]:
        """The priced rows, first match wins; a charge with a single price has one that takes everything."""
        if self.price is None:
            return self.prices
        return (PriceRow(self.price, (), self.included, self.minimum, self.maximum),)

    def with_price(self, price: Price) -> Charge:
        """The same charge with a price of a subscription's own."""
        return replace(self, price=price, price_by=(), prices=())

    def for_nothing(self) -> Charge:
        """The same charge in a free phase: the same rows, each at 0."""
        nothing = PerUnit(Decimal(0))
        rows = tuple(PriceRow(nothing, row.when) for row in self.prices)
        price = None if self.price is None else nothing
        return replace(self, price=price, prices=rows, included=Decimal(0), minimum=None, maximum=None)


@dataclass(frozen=True)
class Plan:
    code: str
    currency: str
    interval: Interval
    charges: tuple[Charge, ...]
    minimum: Decimal | None = None
    version: int = 1
    name: str = ""
    description: str = ""
    minimum_tax: str = ""  # tax code of the minimum; empty: the first charge's
    phases: tuple[Phase, ...] = ()
    trial_end: TrialEnd = "continue"  # what happens when the free phase ends with which the plan begins
    phase: str = ""  # of a plan `in_phase`: the phase's code, what it gives off, and whether it charges nothing
    discount: Decimal = Decimal(0)
    discounted: frozenset[str] = frozenset()
    free: bool = False
    tax_behavior: TaxBehavior = "exclusive"  # whether its prices (and its minimum) contain the tax
    effective_from: date | None = None  # contracts that begin on this local day or later may take it; None: any

    @property
    def inclusive(self) -> bool:
        """Whether its prices contain the tax."""
        return self.tax_behavior == "inclusive"

    def charge(self, code: str) -> Charge | None:
        return next((charge for charge in self.charges if charge.code == code), None)

    def in_phase(self, index: int) -> Plan:
        """What the plan bills in one of its phases, as a plan without phases; computed once for each."""
        known: dict[int, Plan] = self.__dict__.setdefault("_in_phase", {})  # a cache beside the frozen fields
        if index not in known:
            made = known[index] = _in_phase(self, self.phases[index])
            made.__dict__["_whole"] = self
        return known[index]

    @property
    def whole(self) -> Plan:
        """The plan with all its phases, of a plan in one of them."""
        return self.__dict__.get("_whole", self)

    @property
    def versions_of_charges(self) -> Iterable[tuple[str, Charge]]:
        """Every charge that the plan ever bills, with its place in the form: the plan's own, then those of phases."""
        for place, charge in enumerate(self.charges):
            yield f"charges/{place}", charge
        for index, phase in enumerate(self.phases):
            for place, charge in enumerate(phase.charges or ()):
                yield f"phases/{index}/charges/{place}", charge
            for code, price in phase.prices:
                charge = self.charge(code)
                assert charge is not None, "a phase has prices of the plan's charges only"
                yield f"phases/{index}/prices/{escape(code)}", charge.with_price(price)

    @property
    def charge_codes(self) -> frozenset[str]:
        """The codes of all charges of all phases."""
        return frozenset(charge.code for _, charge in self.versions_of_charges)


def _in_phase(plan: Plan, phase: Phase) -> Plan:
    """Charges are new values, also where they are equal: lines are explained by the phase's plan."""
    own = dict(phase.prices)
    charges = plan.charges if phase.charges is None else phase.charges
    made = tuple(charge.with_price(own[charge.code]) if charge.code in own else replace(charge) for charge in charges)
    if phase.free:
        made = tuple(charge.for_nothing() if charge.kind == "usage" else charge for charge in made)
    minimum = plan.minimum if phase.minimum is None else phase.minimum
    return replace(
        plan,
        charges=made,
        minimum=None if phase.free else minimum,
        phases=(),
        phase=phase.code,
        discount=phase.discount,
        discounted=phase.discounted,
        free=phase.free,
    )
