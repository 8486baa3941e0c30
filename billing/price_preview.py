"""One price without a contract: what a quantity, or a list of events, would cost under it.

Owns the form `{price, included, minimum, maximum, quantity | events, currency, timezone}`, as price files and
`POST /v1/prices/preview` use it; the amount is that of the engine (`billing/rating.py`), rounded once at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import polars as pl

from billing.catalog import Charge, EventAmount, Meter
from billing.catalog_forms import parse_charge
from billing.errors import InvalidInput
from billing.forms import Form
from billing.money import decimal_text, minor_digits, parse_number, round_amount, shown_quantity
from billing.periods import TimeInvalid, parse_moment, zone
from billing.rating import UsagePiece, rate
from billing.usage import EVENT_SCHEMA

EVENTS_MAX = 100_000
TIERS_MAX_SHOWN = 10_000
BEGINNING = parse_moment("1900-01-01", "UTC")
END = parse_moment("9998-01-01", "UTC")
METER = Meter("price", "price", "sum", "value")
ZERO = Decimal(0)


@dataclass(frozen=True)
class PriceAsked:
    """A price and what it is asked about."""

    charge: Charge
    events: pl.DataFrame
    currency: str
    timezone: str
    quantity: Decimal


@dataclass(frozen=True)
class PricePreview:
    """Amounts as text: `amount` rounded to the currency, `exact` before; `tiers` are the parts that are not empty."""

    amount: str
    exact: str
    quantity: str
    currency: str
    tiers: tuple[Mapping[str, str], ...]


def parse_price_asked(form: Form) -> PriceAsked:
    """Read the keys of the form that concern the price; mistakes go to its list, `done()` is the caller's.

    `quantity` default 1, `currency` default EUR, `timezone` default Europe/Berlin; events without `id` and `time` are
    in the order listed.
    """
    currency = form.text("currency", "EUR")
    timezone = form.text("timezone", "Europe/Berlin")
    charge_form: dict[str, Any] = {"code": METER.code, "kind": "usage", "meter": METER.code, "tax": "none"}
    for key in ("price", "included", "minimum", "maximum"):
        value = form.raw(key)
        if value is not None or key == "price":
            charge_form[key] = value
    charge = Charge(METER.code, "usage", "none")
    try:
        charge = parse_charge(charge_form, form.pointer)
    except InvalidInput as error:
        form.mistakes.take(error)
    try:
        minor_digits(currency)
    except InvalidInput as error:
        form.wrong("currency", error.detail)
    try:
        zone(timezone)
    except TimeInvalid as error:
        form.wrong("timezone", str(error))
        timezone = "UTC"
    given = form.raw("quantity")
    quantity = parse_number("1" if given is None else given)
    if quantity is None:
        form.wrong("quantity", "a decimal number is needed, as text")
    if form.fields.get("events") is not None and given is not None:
        form.wrong("quantity", "either `quantity` or `events`")
    properties = (
        {row.price.property for row in charge.rows if isinstance(row.price, EventAmount)}
        if charge.price
        else set[str]()
    )
    rows: list[dict[str, Any]] = []
    if form.fields.get("events") is None:
        if quantity:
            rows.append(_event(decimal_text(quantity), "0", BEGINNING, properties))
    else:
        for place, (pointer, entry) in enumerate(form.items("events", EVENTS_MAX)):
            one = Form(entry, pointer, form.mistakes)
            value = one.text("value")
            if value and parse_number(value) is None:
                one.wrong("value", "a decimal number is needed, as text")
            time = one.moment("time", timezone, BEGINNING)
            rows.append(_event(value, one.text("id", f"{place:09}"), time, properties))
            one.done()
    form.raw("events")
    events = pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")
    return PriceAsked(charge, events, currency, timezone, quantity or ZERO)


def _event(value: str, id: str, time: datetime, properties: set[str]) -> dict[str, Any]:
    data = {"value": value, **dict.fromkeys(properties, value)}
    fields = {"source": METER.code, "id": id, "type": METER.event_type, "customer": METER.code, "subscription": None}
    return {**fields, "time": time, "data": msgspec.json.encode(data).decode()}


def preview_price(asked: PriceAsked) -> PricePreview:
    """The amount, computed exactly and rounded once, half away from zero; tiers are exact."""
    piece = UsagePiece(METER.code, METER.code, asked.charge, BEGINNING, END, quantity=asked.quantity)
    rows = list(rate([piece], asked.events, [METER], asked.timezone).rows())
    amount = sum((Fraction(row.amount) for row in rows), Fraction(0))
    quantity = sum((Fraction(row.quantity) for row in rows), Fraction(0))
    filled = [tier for row in rows for tier in row.tiers if tier.quantity][:TIERS_MAX_SHOWN]
    return PricePreview(
        str(round_amount(amount, asked.currency)),
        decimal_text(amount),
        decimal_text(shown_quantity(quantity)),
        asked.currency,
        tuple({"quantity": decimal_text(t.quantity), "amount": decimal_text(t.amount)} for t in filled),
    )
