"""The bridge from contracts to rating: pieces of usage charges in, priced rows out.

Owns how a piece of a contract becomes a `UsagePiece`, and which pieces need no rating at all: a customer without an
event on a charge's meter owes nothing for it unless the charge has a minimum. Prices are `billing/rating.py`.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import polars as pl

from billing.catalog import Charge, Package, Percentage
from billing.due import Use
from billing.live_state import LiveState, rate_live
from billing.master import MasterData
from billing.meters import property_text
from billing.money import decimal_text, shown_quantity
from billing.periods import share
from billing.rating import RatedPieces, UsagePiece, rate
from billing.settle import RatedRow
from billing.verdicts import classify


def rate_uses(
    master: MasterData, uses: Sequence[Use], events: pl.DataFrame, known: Container[tuple[str, str]] | None = None
) -> dict[int, list[RatedRow]]:
    """Priced rows by the place of the use in the list; a use without events and without a minimum has none.

    `known` are the customers' meters that have events at all (`metered`): others are not rated.
    """
    wanted = _worth_rating(master, uses, known)
    pieces = [usage_piece(master, uses[place]) for place in wanted]
    if not pieces:
        return {}
    return _rows(rate(pieces, events, master.meters, master.tenant.timezone), pieces, wanted)


def rate_uses_live(
    master: MasterData, uses: Sequence[Use], live: LiveState, known: Container[tuple[str, str]] | None = None
) -> dict[int, list[RatedRow]]:
    """What `rate_uses` gives, of what shards have folded; a piece must not begin or end inside a cell (`book.cuts`)."""
    wanted = _worth_rating(master, uses, known)
    pieces = [usage_piece(master, uses[place]) for place in wanted]
    return _rows(rate_live(pieces, live, master.rating_book()), pieces, wanted) if pieces else {}


def _rows(rated: RatedPieces, pieces: Sequence[UsagePiece], wanted: Sequence[int]) -> dict[int, list[RatedRow]]:
    found: dict[int, list[RatedRow]] = {}
    tiers = _tier_texts(rated)
    prices: dict[tuple[int, int, Fraction], dict[str, Any]] = {}  # what lines of one price have in common
    frame = rated.frame.select(
        "line", "piece", "row", "quantity", "amount", "events",
        plain_text("quantity").alias("metered"), plain_text("amount").alias("exact"),
        instant_text("first"), instant_text("last"),
    )  # fmt: skip
    for line, piece, row, quantity, amount, count, metered, exact, first, last in frame.iter_rows():
        if quantity is None:
            quantity = rated.quantities[line]
            metered = decimal_text(quantity)
        if amount is None:
            amount = rated.amounts[line]
            exact = decimal_text(amount)
        usage = pieces[int(piece)]
        explanation: dict[str, Any] = {"exact": exact, "metered": metered, "events": count}
        if first is not None:
            explanation["first"], explanation["last"] = first, last
        if line in tiers:
            explanation["tiers"] = tiers[line]
        about = (id(usage.charge), int(row), usage.share)
        if about not in prices:
            prices[about] = explain_price(usage.charge, int(row), usage.share)
        explanation.update(prices[about])
        shown = shown_quantity(quantity) if isinstance(quantity, Fraction) else Decimal(str(metered))
        found.setdefault(wanted[int(piece)], []).append(RatedRow(int(row), shown, quantity, amount, explanation))
    return found


def plain_text(column: str) -> pl.Expr:
    """A decimal as text without zeros at the end."""
    return pl.col(column).cast(pl.String).str.strip_chars_end("0").str.strip_chars_end(".").replace("-0", "0")


def instant_text(column: str) -> pl.Expr:
    return pl.col(column).dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")


def _tier_texts(rated: RatedPieces) -> dict[int, list[dict[str, Any]]]:
    """The tiers that each line filled, as text, by line."""
    found: dict[int, list[dict[str, Any]]] = {}
    names = ("up_to", "quantity", "unit", "flat", "amount")
    for line, *values in rated.tiers.select("line", *(plain_text(name) for name in names)).iter_rows():
        found.setdefault(line, []).append(dict(zip(names, values, strict=True)))
    for line, parts in rated.tier_parts.items():
        found[line] = [
            {
                "up_to": None if part.up_to is None else decimal_text(part.up_to),
                "quantity": decimal_text(part.quantity),
                "unit": decimal_text(part.unit),
                "flat": decimal_text(part.flat),
                "amount": decimal_text(part.amount),
            }
            for part in parts
        ]
    return found


def suspense_reasons(
    events: pl.DataFrame, master: MasterData, now: datetime, new: Sequence[bool] | None = None
) -> list[str | None]:
    """Why each event cannot be rated now, None where it can. Only `new` ones (all, if not said) can be late."""
    fresh = None if new is None else pl.Series(new, dtype=pl.Boolean)
    return classify(events, master.rating_book(), now, new=fresh).to_list()


def explain_price(charge: Charge, row: int, portion: Fraction) -> dict[str, Any]:
    """The price row's model and limits (decimals as text); limits of a part of a period are prorated."""
    price_row = charge.rows[row]
    price = price_row.price
    found: dict[str, Any] = {"model": price.model}
    if price_row.included or price_row.minimum is not None or price_row.maximum is not None:
        limits = {"included": price_row.included, "minimum": price_row.minimum, "maximum": price_row.maximum}
        for key, value in limits.items():
            if value:
                found[key] = decimal_text(value if portion == 1 else Fraction(value) * portion)
    if isinstance(price, Package):
        found["package"] = {"size": decimal_text(price.size), "amount": decimal_text(price.amount)}
    elif isinstance(price, Percentage):
        found["percent"] = decimal_text(price.percent)
    return found


def usage_piece(master: MasterData, use: Use) -> UsagePiece:
    """A piece of a contract as rating sees it."""
    piece, charge = use.piece, use.piece.span.charge
    subscription = use.contract.subscription
    portion = Fraction(1)
    if charge.prorate_usage:
        portion = share(charge.proration, piece.start, piece.end, piece.period, master.tenant.timezone)
    return UsagePiece(
        customer=subscription.customer,
        keys=master.keys_of(subscription.customer),
        subscription=subscription.code,
        charge=charge,
        start=piece.start,
        end=piece.end,
        share=portion,
        quantity=piece.span.quantity,
    )


def metered(master: MasterData, events: pl.DataFrame) -> set[tuple[str, str]]:
    """(customer, meter) wherever an event of the customer may count for the meter: by type and first filter."""
    by_type: dict[str, list[str]] = {}
    by_value: dict[tuple[str, str], dict[str, list[str]]] = {}
    for meter in master.meters.values():
        if not meter.filter:
            by_type.setdefault(meter.event_type, []).append(meter.code)
            continue
        name, values = meter.filter[0]
        texts = by_value.setdefault((meter.event_type, name), {})
        for value in values:
            texts.setdefault(value, []).append(meter.code)
    found: set[tuple[str, str]] = set()
    seen = events.select("customer", "type").unique()
    for key, event_type in seen.iter_rows():
        owner = master.key_owners.get(key)
        if owner is not None:
            found.update((owner, code) for code in by_type.get(event_type, ()))
    for (event_type, name), texts in by_value.items():
        chosen = events.filter(pl.col("type") == event_type)
        values = chosen.select("customer", property_text(chosen["data"], name).alias("value")).unique()
        for key, value in values.iter_rows():
            owner = master.key_owners.get(key)
            if owner is not None and value in texts:
                found.update((owner, code) for code in texts[value])
    return found


def metered_live(master: MasterData, live: LiveState) -> set[tuple[str, str]]:
    """The same of what shards have folded."""
    seen = live.state.small.select("key", "meter").unique()
    return {(owner, meter) for key, meter in seen.iter_rows() if (owner := master.key_owners.get(key)) is not None}


def _worth_rating(master: MasterData, uses: Sequence[Use], known: Container[tuple[str, str]] | None) -> list[int]:
    """Places of the uses whose meter may have an event of the customer, or that owe a minimum anyway."""
    if known is None:
        return list(range(len(uses)))
    return [
        place
        for place, use in enumerate(uses)
        if (use.contract.subscription.customer, use.piece.span.charge.meter) in known
        or (use.piece.span.charge.minimum or 0) > 0
    ]
