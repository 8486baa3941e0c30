"""Prices: how a quantity (or single events) becomes an exact amount. One module per model, one entry for all.

In columns where 38 digits suffice, in fractions where they do not: `price_lines` mixes the two and never gives a
wrong digit. Nothing here rounds; the invoice line does, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import polars as pl

from billing.catalog import (
    EVENT_MODELS,
    Bands,
    EventAmount,
    Flat,
    Graduated,
    Package,
    Percentage,
    PerUnit,
    Price,
    PriceRow,
    Volume,
)
from billing.money import NUMBER, PRODUCT
from billing.pricing import bands, event_amount, flat, graduated, package, per_unit, percentage, volume
from billing.pricing.exact import TIERS_SCHEMA, TierPart

__all__ = ["LineEvents", "Priced", "TierPart", "price_exactly", "price_lines", "price_parts", "row_exactly"]

ONE = Fraction(1)


@dataclass(frozen=True)
class LineEvents:
    """The single events of one line in order (time, id, source); `values` are amounts for `event_amount`."""

    times: Sequence[datetime]
    values: Sequence[Fraction]


NO_EVENTS = LineEvents((), ())


@dataclass(frozen=True)
class Priced:
    """Amounts of many lines. `amounts` is null where only a fraction is exact: that one is in `fractions`."""

    amounts: pl.DataFrame  # line, amount
    fractions: Mapping[int, Fraction]
    tiers: pl.DataFrame  # TIERS_SCHEMA, of the lines in columns
    tier_parts: Mapping[int, Sequence[TierPart]]  # of the lines in fractions


def price_parts(price: Price, quantity: Decimal | Fraction, share: Fraction = ONE) -> list[TierPart]:
    """The parts by tier of `graduated` and `volume`; none for the other models."""
    if isinstance(price, Graduated):
        return graduated.exactly(price, Fraction(quantity), share)
    if isinstance(price, Volume):
        return volume.exactly(price, Fraction(quantity), share)
    return []


def price_exactly(
    price: Price,
    quantity: Decimal | Fraction,
    *,
    share: Fraction = ONE,
    events: LineEvents = NO_EVENTS,
    timezone: str = "UTC",
    included: Fraction = Fraction(0),
) -> Fraction:
    """The exact amount of one quantity; for a model that prices events, of the events.

    `share` scales bounds and flats of tiers. `included` is for `bands` alone: elsewhere it is off the quantity already.
    """
    exact = Fraction(quantity)
    match price:
        case Flat():
            return flat.exactly(price, exact)
        case PerUnit():
            return per_unit.exactly(price, exact)
        case Graduated() | Volume():
            return sum((Fraction(part.amount) for part in price_parts(price, exact, share)), Fraction(0))
        case Package():
            return package.exactly(price, exact)
        case Percentage():
            return percentage.exactly(price, events.values)
        case EventAmount():
            return event_amount.exactly(events.values)
        case Bands():
            return bands.exactly(price, list(zip(events.times, events.values, strict=True)), timezone, included)


def row_exactly(
    row: PriceRow,
    metered: Decimal | Fraction,
    *,
    units: Decimal | Fraction = Decimal(1),
    share: Fraction = ONE,
    events: LineEvents = NO_EVENTS,
    timezone: str = "UTC",
) -> tuple[Fraction, list[TierPart]]:
    """The exact amount of a usage row: `included` off, the model, then minimum and maximum. `units` is for `flat`."""
    quantity = Fraction(metered)
    included = Fraction(row.included) * share
    charged = max(quantity - included, Fraction(0)) if quantity > 0 else quantity
    if isinstance(row.price, Flat):
        charged = Fraction(units) if charged else Fraction(0)
    parts = price_parts(row.price, charged, share)
    amount = price_exactly(row.price, charged, share=share, events=events, timezone=timezone, included=included)
    if row.minimum is not None:
        amount = max(amount, Fraction(row.minimum) * share)
    if row.maximum is not None:
        amount = min(amount, Fraction(row.maximum) * share)
    return amount, parts


def price_lines(
    lines: pl.DataFrame,
    rows: Sequence[PriceRow],
    *,
    events: pl.DataFrame | None = None,
    timezone: str = "UTC",
    odd_quantities: Mapping[int, Fraction] | None = None,
    odd_shares: Mapping[int, Fraction] | None = None,
) -> Priced:
    """Price many lines at once.

    `lines` has line (UInt32, unique), price (UInt32, place in `rows`), quantity (as metered; null: in
    `odd_quantities`), units (the subscription's quantity, for `flat`). `events` has line, time, id, source, value: the
    single events of lines whose model prices events. `odd_shares` are the lines whose share of the period is not 1.
    """
    odd_quantities, odd_shares = odd_quantities or {}, odd_shares or {}
    lines = lines.select(pl.col("line", "price").cast(pl.UInt32), pl.col("quantity", "units").cast(NUMBER))
    table = pl.DataFrame(
        {
            "price": pl.Series(range(len(rows)), dtype=pl.UInt32),
            "model": pl.Series([row.price.model for row in rows], dtype=pl.String),
            "included": pl.Series([row.included for row in rows], dtype=NUMBER),
            "minimum": pl.Series([row.minimum for row in rows], dtype=NUMBER),
            "maximum": pl.Series([row.maximum for row in rows], dtype=NUMBER),
        }
    )
    frame = lines.join(table, on="price", how="left", maintain_order="left")
    odd = pl.Series(sorted(odd_quantities.keys() | odd_shares.keys()), dtype=pl.UInt32)
    plain = frame.filter(pl.col("quantity").is_not_null() & ~pl.col("line").is_in(odd.implode()))
    quantity = pl.col("quantity")
    zero = pl.lit(Decimal(0), NUMBER)
    plain = plain.with_columns(
        quantity=pl.when((quantity > 0) & (pl.col("included") > 0))
        .then((quantity - pl.col("included")).clip(zero, None))
        .otherwise(quantity)
    )
    amounts: list[pl.DataFrame] = []
    tiers: list[pl.DataFrame] = []
    for (model,), group in plain.group_by("model"):
        used = group["price"].unique().sort()
        local = {int(price): place for place, price in enumerate(used)}
        group = group.with_columns(price=pl.col("price").replace_strict(local, return_dtype=pl.UInt32))
        prices = [rows[int(price)].price for price in used]
        if model in EVENT_MODELS:
            assert events is not None, "prices of single events need the events"
            amounts.append(_by_event(str(model), group, prices, events, timezone))
            continue
        if model == "flat":
            group = group.with_columns(quantity=pl.when(quantity == 0).then(zero).otherwise(pl.col("units")))
        if model in ("graduated", "volume"):
            priced, parts = _TIERED[str(model)](group.select("line", "price", "quantity"), prices)
            tiers.append(parts.select(pl.col(name).cast(dtype) for name, dtype in TIERS_SCHEMA.items()))
        else:
            priced = _PLAIN[str(model)](group.select("line", "price", "quantity"), prices)
        amounts.append(priced)
    exact = pl.concat(amounts) if amounts else pl.DataFrame(schema={"line": pl.UInt32, "amount": PRODUCT})
    clamped = frame.join(exact, on="line", how="left", maintain_order="left").with_columns(
        amount=pl.min_horizontal(
            pl.when(pl.col("amount").is_not_null() & pl.col("minimum").is_not_null())
            .then(pl.max_horizontal("amount", pl.col("minimum").cast(PRODUCT)))
            .otherwise(pl.col("amount")),
            pl.when(pl.col("amount").is_not_null()).then(pl.col("maximum").cast(PRODUCT)).otherwise(None),
        )
    )
    fractions, parts_by_line = _in_fractions(
        clamped.filter(pl.col("amount").is_null()), rows, events, timezone, odd_quantities, odd_shares
    )
    all_tiers = pl.concat(tiers).sort("line", "tier") if tiers else pl.DataFrame(schema=TIERS_SCHEMA)
    return Priced(clamped.select("line", "amount"), fractions, all_tiers, parts_by_line)


_PLAIN: dict[str, Callable[[pl.DataFrame, Sequence[Any]], pl.DataFrame]] = {
    "flat": flat.columns,
    "per_unit": per_unit.columns,
    "package": package.columns,
}
_TIERED: dict[str, Callable[[pl.DataFrame, Sequence[Any]], tuple[pl.DataFrame, pl.DataFrame]]] = {
    "graduated": graduated.columns,
    "volume": volume.columns,
}
ORDER = ("line", "time", "id", "source")


def _by_event(
    model: str, lines: pl.DataFrame, prices: Sequence[Any], events: pl.DataFrame, timezone: str
) -> pl.DataFrame:
    """Price the events of lines of one model; a line without events costs 0."""
    of_lines = events.join(lines.select("line", "price", "included"), on="line", how="inner")
    if model == "event_amount":
        priced = event_amount.columns(of_lines)
    else:
        in_order = any(price.free_events or price.free_value for price in prices) if model == "percentage" else (
            bool(lines.select((pl.col("included") > 0).any()).item())
        )  # fmt: skip
        if in_order:
            of_lines = of_lines.sort(ORDER)
        priced = (
            percentage.columns(of_lines, prices)
            if model == "percentage"
            else bands.columns(of_lines, [(price, timezone) for price in prices])
        )
    without = lines.join(priced, on="line", how="anti").select("line", pl.lit(Decimal(0)).cast(PRODUCT).alias("amount"))
    return pl.concat([priced, without])


def _in_fractions(
    lines: pl.DataFrame,
    rows: Sequence[PriceRow],
    events: pl.DataFrame | None,
    timezone: str,
    odd_quantities: Mapping[int, Fraction],
    odd_shares: Mapping[int, Fraction],
) -> tuple[dict[int, Fraction], dict[int, Sequence[TierPart]]]:
    by_line: dict[int, LineEvents] = {}
    if events is not None and lines.height:
        chosen = events.join(lines.select("line"), on="line", how="semi").sort(ORDER)
        for (line,), group in chosen.group_by("line", maintain_order=True):
            values = [Fraction(value) for value in group["value"].to_list()]
            by_line[int(line)] = LineEvents(group["time"].to_list(), values)  # type: ignore[call-overload]
    fractions: dict[int, Fraction] = {}
    parts: dict[int, Sequence[TierPart]] = {}
    for line, price, quantity, units in lines.select("line", "price", "quantity", "units").iter_rows():
        metered = odd_quantities[line] if quantity is None else quantity
        fractions[line], parts[line] = row_exactly(
            rows[int(price)],
            metered,
            units=units,
            share=odd_shares.get(line, ONE),
            events=by_line.get(line, NO_EVENTS),
            timezone=timezone,
        )
    return fractions, parts
