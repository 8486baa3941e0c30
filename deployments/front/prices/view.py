"""What the pages of meters and plans show: prices in words, tiers as a table, their curve.

Owns no price: the curve is computed by `billing/pricing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from billing.catalog import Charge, Graduated, Meter, Plan, Price, PriceRow, Volume
from billing.pricing import price_exactly
from deployments.front import charts
from deployments.front.formats import Formats
from deployments.front.texts import Texts

ROWS_SHOWN_MAX = 200  # price rows of one charge on its page; the API has all of them


@dataclass(frozen=True)
class PriceLine:
    """One priced row of a charge as a row of the table."""

    charge: str
    name: str
    first: bool
    kind: str
    model: str
    when: str
    meter: str
    price: str
    included: str
    limits: str
    tax: str


@dataclass(frozen=True)
class TierLine:
    label: str
    unit: str
    flat: str


@dataclass(frozen=True)
class TierTable:
    """The tiers of one charge with the curve of what a period costs."""

    charge: str
    name: str
    unit: str
    model: str
    lines: tuple[TierLine, ...]
    flats: bool
    curve: charts.Curve
    key: str
    last: str
    label: str
    table: tuple[tuple[str, str], ...]
    tried: str | None


def unit_of(charge: Charge, meters: dict[str, Meter] | None) -> str:
    meter = (meters or {}).get(charge.meter)
    return charge.unit or (meter.unit if meter else "")


def charge_lines(plan: Plan, meters: dict[str, Meter], t: Texts, f: Formats) -> list[PriceLine]:
    lines: list[PriceLine] = []
    for charge in plan.charges:
        unit = unit_of(charge, meters)
        for place, row in enumerate(charge.rows[:ROWS_SHOWN_MAX]):
            kind = t(f"charge.{charge.kind}") if charge.kind != "recurring" else t(f"charge.{charge.timing}")
            lines.append(
                PriceLine(
                    charge.code,
                    charge.name or charge.code,
                    place == 0,
                    kind,
                    t.word("model", row.price.model),
                    ", ".join(f"{name} = {value}" for name, value in row.when) or (t("charge.other") if place else ""),
                    charge.meter,
                    price_words(row.price, t, f),
                    f"{f.number(row.included)} {unit}".strip() if row.included else "–",
                    limit_words(row, t, f),
                    charge.tax,
                )
            )
    return lines


def price_words(price: Price, t: Texts, f: Formats) -> str:
    """The price in one cell, without its currency."""
    match price.model:
        case "flat":
            return f.number(price.amount, 2)
        case "per_unit":
            return f.number(price.unit, 2)
        case "graduated" | "volume":
            units = [tier.unit for tier in price.tiers]
            places = f.places(units, 2)
            first, last = f.number(units[0], places), f.number(units[-1], places)
            return first if first == last else t("charge.from_to", first=first, last=last)
        case "package":
            return t("charge.package", amount=f.number(price.amount, 2), size=f.number(price.size))
        case "percentage":
            fee = f" + {f.number(price.per_event, 2)}" if price.per_event else ""
            return f"{f.number(price.percent)} %{fee}"
        case "event_amount":
            return t("charge.event_amount", property=price.property)
        case "bands":
            return t(
                "charge.bands", n=len(price.bands), count=f.number(len(price.bands)), other=f.number(price.otherwise, 2)
            )


def limit_words(row: PriceRow, t: Texts, f: Formats) -> str:
    words: list[str] = []
    if row.minimum is not None:
        words.append(t("charge.minimum", amount=f.number(row.minimum, 2)))
    if row.maximum is not None:
        words.append(t("charge.maximum", amount=f.number(row.maximum, 2)))
    return ", ".join(words)


def tier_tables(
    plan: Plan, meters: dict[str, Meter], quantity: Decimal | None, t: Texts, f: Formats
) -> list[TierTable]:
    tables: list[TierTable] = []
    places = {code: place for place, code in enumerate(meters)}
    for charge in plan.charges:
        for row in charge.rows[:3]:
            if isinstance(row.price, Graduated | Volume):
                key = charts.style_of(places.get(charge.meter, 4))
                tables.append(_tier_table(plan, charge, row, unit_of(charge, meters), key, quantity, t, f))
    return tables


def _tier_table(
    plan: Plan, charge: Charge, row: PriceRow, unit: str, key: str, quantity: Decimal | None, t: Texts, f: Formats
) -> TierTable:
    price = row.price
    assert isinstance(price, Graduated | Volume)
    units = [tier.unit for tier in price.tiers]
    price_places = f.places(units, 2)
    lines = tuple(
        TierLine(
            t("tier.up_to", bound=f.number(tier.up_to)) if tier.up_to is not None else t("tier.above"),
            f.number(tier.unit, price_places),
            f.number(tier.flat, 2),
        )
        for tier in price.tiers
    )
    points = curve_points(price)
    bounds = [(tier.up_to, f.number(tier.up_to)) for tier in price.tiers if tier.up_to is not None]
    last_quantity, last_amount = points[-1]
    name = charge.name or charge.code
    when = ", ".join(value for _, value in row.when)
    tried = f.amount(rounded(price_exactly(price, quantity), 2), plan.currency) if quantity is not None else None
    return TierTable(
        charge.code,
        f"{name} ({when})" if when else name,
        unit,
        t.word("model", price.model),
        lines,
        any(tier.flat for tier in price.tiers),
        charts.curve(points, bounds, f.number(last_quantity)),
        key,
        f"{f.number(rounded(Fraction(last_amount), 2), 2)} {plan.currency}",
        t("tier.curve_label", charge=name, quantity=f.number(last_quantity), unit=unit,
          amount=f.money(rounded(Fraction(last_amount), 2), plan.currency)),
        tuple((f.number(x), f.number(rounded(Fraction(y), 2), 2)) for x, y in points),
        tried,
    )  # fmt: skip


def curve_points(price: Graduated | Volume) -> list[tuple[Decimal, Decimal]]:
    """Where the curve bends (and, with volume prices, jumps), up to a bit beyond the last bound."""
    bounds = [tier.up_to for tier in price.tiers if tier.up_to is not None]
    last = bounds[-1] * Decimal("1.5") if bounds else Decimal(100)
    step = last / 1000
    quantities: list[Decimal] = [Decimal(0)]
    for bound in bounds:
        quantities += [bound, bound + step]
    quantities.append(last)
    return [(quantity, rounded(price_exactly(price, quantity), 6)) for quantity in quantities]


def rounded(exact: Fraction, places: int) -> Decimal:
    """For a picture or a try, never for a bill: the engine rounds by the currency."""
    scaled = exact * 10**places
    whole = (abs(scaled.numerator) * 2 + scaled.denominator) // (2 * scaled.denominator)
    return Decimal(whole if scaled >= 0 else -whole).scaleb(-places)


def meter_words(meter: Meter, t: Texts) -> str:
    what = t.word("aggregation", meter.aggregation)
    return t("meter.words", what=what, property=meter.value) if meter.value else what


def filter_words(meter: Meter) -> str:
    return "; ".join(f"{name}: {', '.join(values)}" for name, values in meter.filter)


def plans_with(meter: str, plans: Sequence[Plan]) -> list[Plan]:
    return [plan for plan in plans if any(charge.meter == meter for charge in plan.charges)]
