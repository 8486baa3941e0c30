"""What a look at a computed run finds: the difference to the run before, outliers, and documents to keep back.

Owns the judgement; what is compared is handed in as columns. A rail never changes an amount: it keeps a customer's
documents back until somebody lets them through, or the next run tries again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal

import polars as pl

from billing.document_columns import AMOUNT, AMOUNT_TEXT_MAX
from billing.money import decimal_text, exact_sum
from billing.run_settings import GuardRails

OUTLIERS = 20
HIGHEST = Decimal(10) ** 28  # of the last invoices; beyond it they are all alike here
# Of a customer's last runs: the highest of his invoices, and the highest of what he got in one of them altogether.
LAST_SCHEMA = pl.Schema({"customer": pl.String, "currency": pl.String, "highest": AMOUNT, "highest_sum": AMOUNT})


@dataclass(frozen=True)
class Held:
    """A customer whom a rail keeps back."""

    customer: str
    code: str
    reason: str


def held_by(
    rails: GuardRails,
    documents: pl.DataFrame,
    last: pl.DataFrame,
    countries: Mapping[str, str],
    known_countries: Collection[str],
    voided: Collection[str],
) -> list[Held]:
    """The customers to keep back, each with the first rail that says so, in order of their codes.

    `documents` are a run's in columns; `last` (LAST_SCHEMA) the highest of each customer's last runs by currency;
    `countries` where the customers are, `known_countries` where invoices went before (none: nothing is new yet);
    `voided` are customers with an event whose id was voided.
    """
    if not rails.on:
        return []
    found: dict[str, Held] = {}
    columns = documents.select("customer", "currency", "type", "gross")
    joined = columns.join(last, on=["customer", "currency"], how="left", maintain_order="left")
    gross = joined.filter(pl.col("type") == "invoice").select("customer", "currency", "gross", "highest")
    for customer, currency, text, highest in gross.iter_rows():
        amount = Decimal(text)  # of any size: what a column does not hold is what a rail is for
        held = _over_last(rails, customer, currency, amount, highest) or _over_limit(rails, customer, currency, amount)
        if held is not None:
            found.setdefault(customer, held)
    several = joined.filter(pl.len().over("customer", "currency") > 1).group_by(
        "customer", "currency", maintain_order=True
    )
    for customer, currency, types, texts, highest in several.agg(
        "type", "gross", pl.col("highest_sum").first()
    ).iter_rows():
        amounts = [
            Decimal(text) if type_ == "invoice" else -Decimal(text) for type_, text in zip(types, texts, strict=True)
        ]
        held = _over_altogether(rails, customer, currency, amounts, highest)
        if held is not None:
            found.setdefault(customer, held)
    for customer in documents["customer"].unique().sort():
        country = countries.get(customer, "")
        if rails.new_country and known_countries and country not in known_countries:
            found.setdefault(customer, Held(customer, "new_country", f"the first invoice to {country}"))
        if rails.voided_ids and customer in voided:
            words = "an event of his has an id that another customer's event had first: it was voided"
            found.setdefault(customer, Held(customer, "id_voided", words))
    return [found[customer] for customer in sorted(found)]


def _over_last(
    rails: GuardRails, customer: str, currency: str, amount: Decimal, highest: Decimal | None
) -> Held | None:
    if rails.times_last is None or highest is None or highest <= 0 or amount <= rails.times_last * highest:
        return None
    words = f"{_money(amount)} {currency} is over {decimal_text(rails.times_last)} times the highest of the last"
    return Held(customer, "over_last_invoices", f"{words} invoices ({_money(highest)})")


def _over_altogether(
    rails: GuardRails, customer: str, currency: str, amounts: Collection[Decimal], highest: Decimal | None
) -> Held | None:
    """Of several documents each may be in bounds while their sum is not: ten times as many of the same size."""
    total = exact_sum(amounts)
    words = f"{_money(total)} {currency} on {len(amounts)} documents is over"
    if rails.times_last is not None and highest is not None and 0 < rails.times_last * highest < total:
        times = f"{decimal_text(rails.times_last)} times the highest sum of the last runs ({_money(highest)})"
        return Held(customer, "over_last_runs", f"{words} {times}")
    limit = rails.limits.get(currency)
    if limit is not None and total > limit:
        return Held(customer, "over_limit", f"{words} the limit of {_money(limit)}")
    return None


def _over_limit(rails: GuardRails, customer: str, currency: str, amount: Decimal) -> Held | None:
    limit = rails.limits.get(currency)
    if limit is None or amount <= limit:
        return None
    return Held(customer, "over_limit", f"{_money(amount)} {currency} is over the limit of {_money(limit)}")


def _money(amount: Decimal) -> str:
    text = decimal_text(amount)
    whole, _, places = text.partition(".")
    return f"{whole}.{places.ljust(2, '0')}"


def difference(
    totals: Mapping[str, Mapping[str, str]], before: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str | None]]:
    """Each currency's net of a run beside that of the run before; the change in percent where there was any."""
    found: dict[str, dict[str, str | None]] = {}
    for currency in sorted({*totals, *before}):
        now = Decimal(totals.get(currency, {}).get("net", "0"))
        then = Decimal(before.get(currency, {}).get("net", "0"))
        change = None if not then else format((now - then) * 100 / abs(then), ".1f")
        found[currency] = {"net": format(now, "f"), "last_net": format(then, "f"), "change_percent": change}
    return found


def stops(rails: GuardRails, differences: Mapping[str, Mapping[str, str | None]], billed: Collection[str]) -> list[str]:
    """Why a run waits for somebody, in words; none where it may go on by itself, or bills nothing in a currency."""
    if not rails.on or rails.change_percent is None:
        return []
    return [
        f"the net in {currency} is {one['net']}, in the last run it was {one['last_net']}: {one['change_percent']} %"
        for currency, one in differences.items()
        if currency in billed
        and one["change_percent"] is not None
        and abs(Decimal(one["change_percent"] or 0)) > rails.change_percent
    ]


def outliers(documents: pl.DataFrame, last: pl.DataFrame) -> list[dict[str, str]]:
    """The documents that differ most from the highest of their customer's last invoices, largest first."""
    is_large = pl.col("gross").str.len_chars() > AMOUNT_TEXT_MAX
    number = pl.when(is_large).then(HIGHEST).otherwise(pl.col("gross").str.to_decimal(scale=4).cast(AMOUNT))
    gross = documents.filter(pl.col("type") == "invoice").select("customer", "currency", "gross", number=number)
    joined = gross.join(last, on=["customer", "currency"], how="inner").filter(pl.col("number") != pl.col("highest"))
    top = joined.sort((pl.col("number") - pl.col("highest")).abs(), descending=True).head(OUTLIERS)
    return [
        {
            "customer": customer,
            "currency": currency,
            "gross": _money(Decimal(gross)),
            "highest_of_last": _money(highest),
        }
        for customer, currency, gross, highest in top.select("customer", "currency", "gross", "highest").iter_rows()
    ]
