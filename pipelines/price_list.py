"""A business out of usage rows that carry their own price list: catalog, customers and subscriptions as steps.

For imports of another provider's rated usage (a cloud bill, a carrier's call records): each distinct price becomes
a meter and a charge, each account a customer with a subscription. What is where in the rows is said by `PriceList`,
which a file holds beside the mapping (examples/focus/business.yaml). Two plans come out: by consumption (quantity x
list price, a row without a price by the amount that it carries) and by value (a percentage on what the provider
billed).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

import polars as pl
import xxhash

from billing.errors import FieldError, InvalidInput
from billing.money import parse_number

_KEYS = {"price", "unit_price", "unit", "name", "currency", "customer", "customer_name", "time", "priced_type",
         "unpriced_type", "quantity", "list_amount", "billed_amount", "margin_percent", "tenant", "tax"}  # fmt: skip


@dataclass(frozen=True)
class PriceList:
    """Which columns (or properties of the events) carry the price list, and how the two plans are cut."""

    form: Mapping[str, Any]

    @classmethod
    def parse(cls, form: Mapping[str, Any]) -> PriceList:
        wrong = [FieldError(f"/{key}", "is not known here") for key in form if key not in _KEYS]
        wrong += [FieldError(f"/{key}", "is missing") for key in sorted(_KEYS - set(form))]
        if wrong:
            raise InvalidInput("the price list description is not valid", errors=wrong)
        return cls(dict(form))

    def __getitem__(self, key: str) -> Any:
        return self.form[key]


def business_steps(rows: pl.DataFrame, prices: PriceList, *, by: str) -> list[dict[str, Any]]:
    """Steps (forms of the API) that set a tenant up for `rows`: catalog, customers, one subscription per currency.

    `rows` has the file's columns and the mapping's derived ones, all text. `by` is "consumption" or "value".
    Everything starts on the first of the month of the earliest row.
    """
    at = _first_of_month(rows, prices)
    steps: list[dict[str, Any]] = [{"at": at, "tax_code": dict(prices["tax"])}]
    tax = prices["tax"]["code"]
    for currency in sorted(rows[prices["currency"]].drop_nulls().unique()):
        here = rows.filter(pl.col(prices["currency"]) == currency)
        meters, charges = (_by_consumption if by == "consumption" else _by_value)(here, prices, currency, tax)
        steps += [{"at": at, "meter": meter} for meter in meters]
        plan = {"code": f"{by}-{currency.lower()}", "name": f"Billed by {by}, {currency}", "currency": currency,
                "interval": "month", "charges": charges}  # fmt: skip
        steps.append({"at": at, "publish": {"plan": plan}})
    known: set[str] = set()
    pairs = rows.select(
        pl.col(prices["customer"]).alias("customer"),
        pl.col(prices["customer_name"]).alias("name"),
        pl.col(prices["currency"]).alias("currency"),
    ).drop_nulls(["customer", "currency"])
    pairs = pairs.unique(["customer", "currency"], keep="first", maintain_order=True).sort("customer", "currency")
    for customer, name, currency in pairs.iter_rows():
        if customer not in known:
            known.add(customer)
            form = {"code": customer, "name": name or customer, "country": prices["tenant"]["country"],
                    "tax_treatment": "outside_scope"}  # fmt: skip
            steps.append({"at": at, "customer": form})
        code = f"{customer} {currency}"
        subscribe = {"code": code, "customer": customer, "plan": f"{by}-{currency.lower()}", "anchor": "calendar"}
        steps.append({"at": at, "subscribe": subscribe})
    return steps


def price_rows(rows: pl.DataFrame, prices: PriceList) -> pl.DataFrame:
    """The distinct prices in the rows: price, code, unit_price, unit, name; sorted by price.

    A unit price that no catalog can hold (more than 12 decimals, or no number) is left out: its rows are kept and
    cost nothing, and the reconciliation says so.
    """
    listed = rows.filter(pl.col(prices["price"]).is_not_null() & pl.col(prices["quantity"]).is_not_null())
    columns = {"price": "price", "unit_price": "unit_price", "unit": "unit", "name": "name"}
    table = listed.select(pl.col(prices[key]).alias(name) for key, name in columns.items())
    table = table.unique("price", keep="first", maintain_order=True).sort("price")
    table = table.filter(pl.Series([chargeable(text) for text in table["unit_price"]], dtype=pl.Boolean))
    return table.with_columns(code=pl.Series([charge_code(price) for price in table["price"]], dtype=pl.String))


def charge_code(price: str) -> str:
    """A readable code that stays the same for the same price key: its start, and a hash of the whole."""
    start = re.sub(r"[^a-z0-9]+", "-", price.lower()).strip("-")[:40].strip("-")
    return f"{start}-{xxhash.xxh3_64_hexdigest(price.encode())[:8]}"


def _by_consumption(
    rows: pl.DataFrame, prices: PriceList, currency: str, tax: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    meters: list[dict[str, Any]] = []
    charges: list[dict[str, Any]] = []
    for price, unit_price, unit, name, code in price_rows(rows, prices).iter_rows():
        meters.append({"code": code, "name": name or price, "unit": unit or "", "event_type": prices["priced_type"],
                       "aggregation": "sum", "value": "quantity", "filter": {"price": [price]}})  # fmt: skip
        charges.append({"code": code, "name": name or price, "kind": "usage", "meter": code, "tax": tax,
                        "price": {"model": "per_unit", "unit": plain(unit_price)}})  # fmt: skip
    code = f"provider-credits-{currency.lower()}"
    meters.append(_value_meter(code, "Rows without a list price", prices["unpriced_type"], "list_cost", currency))
    charges.append({"code": code, "name": "Provider credits", "kind": "usage", "meter": code, "tax": tax,
                    "price": {"model": "event_amount", "property": "list_cost"}})  # fmt: skip
    return meters, charges


def _by_value(
    rows: pl.DataFrame, prices: PriceList, currency: str, tax: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    resale, credits_ = f"resale-{currency.lower()}", f"provider-credits-{currency.lower()}"
    percent = str(prices["margin_percent"])
    meters = [
        _value_meter(resale, "Provider's cost", prices["priced_type"], "billed_cost", currency),
        _value_meter(credits_, "Provider's credits", prices["unpriced_type"], "billed_cost", currency),
    ]
    charges = [
        {"code": resale, "name": f"Cloud usage, provider's cost at {percent} %", "kind": "usage", "meter": resale,
         "tax": tax, "price": {"model": "percentage", "percent": percent}},
        {"code": credits_, "name": "Provider credits, passed on", "kind": "usage", "meter": credits_, "tax": tax,
         "price": {"model": "event_amount", "property": "billed_cost"}},
    ]  # fmt: skip
    return meters, charges


def _value_meter(code: str, name: str, event_type: str, value: str, currency: str) -> dict[str, Any]:
    return {"code": code, "name": name, "unit": currency, "event_type": event_type, "aggregation": "sum",
            "value": value, "filter": {"currency": [currency]}}  # fmt: skip


def chargeable(unit_price: str | None) -> bool:
    """Whether a catalog can hold this unit price."""
    try:
        return unit_price is not None and parse_number(plain(unit_price), integer_digits=14) is not None
    except InvalidOperation:
        return False


def plain(number: str) -> str:
    """A decimal as the shortest text without an exponent: "0.008000" -> "0.008". The digits stay exact."""
    if "e" in number.lower():
        number = format(Decimal(number), "f")
    if "." not in number:
        return number
    return number.rstrip("0").rstrip(".") or "0"


def _first_of_month(rows: pl.DataFrame, prices: PriceList) -> str:
    return min(days(rows, prices)).replace(day=1).isoformat()


def days(rows: pl.DataFrame, prices: PriceList) -> list[date]:
    """The days of the rows' times; what is no time is left out (ingest rejects that row). InvalidInput without one."""
    found = rows[prices["time"]].str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False).drop_nulls().unique().to_list()
    if not found:
        raise InvalidInput(f"no row has a time in {prices['time']}: there is nothing to bill")
    return found
