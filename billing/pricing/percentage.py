"""`percentage`: each event pays a percent of its value and a fixed part, clamped; the first events and value are free.

Events count in the order (time, id, source). Both allowances run on their own: an event that is free by its place
still uses up free value. An event whose whole value lies inside the free value costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import polars as pl

from billing.catalog import Percentage
from billing.money import NUMBER, PRODUCT, parse_number
from billing.pricing.exact import SAFE_MAX, joined, number_column, sum_of_fees, whole


def exactly(price: Percentage, values: Sequence[Fraction]) -> Fraction:
    """`values` are in order."""
    total, left = Fraction(0), Fraction(price.free_value)
    rate, per_event = Fraction(price.percent) / 100, Fraction(price.per_event)
    for place, value in enumerate(values, start=1):
        free = min(left, max(value, Fraction(0)))
        wholly_free = left > 0 and value <= left
        left -= free
        if place <= price.free_events or wholly_free:
            continue
        fee = (value - free) * rate + per_event
        if price.min_per_event is not None:
            fee = max(fee, Fraction(price.min_per_event))
        if price.max_per_event is not None:
            fee = min(fee, Fraction(price.max_per_event))
        total += fee
    return total


def columns(events: pl.DataFrame, prices: Sequence[Percentage]) -> pl.DataFrame:
    """`events` has line, price, value and is in order within each line."""
    rates = [parse_number(str(Decimal(price.percent).scaleb(-2))) for price in prices]
    frame = joined(
        events,
        {
            "rate": number_column("rate", rates),  # null: more than 12 places
            "per_event": number_column("per_event", [price.per_event for price in prices]),
            "least": number_column("least", [price.min_per_event for price in prices]),
            "most": number_column("most", [price.max_per_event for price in prices]),
            "free_events": pl.Series("free_events", [price.free_events for price in prices], dtype=pl.Int64),
            "free_value": number_column("free_value", [price.free_value for price in prices]),
        },
    )
    value, zero = pl.col("value"), pl.lit(Decimal(0), NUMBER)
    if any(price.free_value or price.free_events for price in prices):
        positive = value.clip(zero, None)
        # A line whose values are huge is left to fractions, so the running sum cannot overflow.
        small = (whole(value).sum().over("line") <= SAFE_MAX).alias("small")
        frame = frame.with_columns(small).with_columns(
            place=pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("line"),
            left=pl.when("small")
            .then(pl.col("free_value") - (pl.when("small").then(positive).otherwise(zero)).cum_sum().over("line")
                  + pl.when("small").then(positive).otherwise(zero))
            .otherwise(zero)
            .clip(zero, None),
        ).with_columns(
            is_free=(pl.col("place") <= pl.col("free_events")) | ((pl.col("left") > 0) & (value <= pl.col("left"))),
            paid=value - pl.min_horizontal(pl.col("left"), positive),
        )  # fmt: skip
    else:
        frame = frame.with_columns(small=pl.lit(True), is_free=pl.lit(False), paid=value)
    fee_size = whole(pl.col("paid")) * whole(pl.col("rate")) + whole(pl.col("per_event"))
    fits = (fee_size <= SAFE_MAX) & (whole(pl.col("paid")) <= SAFE_MAX)
    safe = pl.col("small") & pl.col("rate").is_not_null() & fits
    frame = frame.with_columns(safe=safe, fee_size=fee_size + whole(pl.col("least")).fill_null(0))
    fee = pl.when("safe").then(pl.col("paid")).otherwise(None).cast(PRODUCT) * pl.col("rate") + pl.col(
        "per_event"
    ).cast(PRODUCT)
    clamped = pl.min_horizontal(pl.max_horizontal(fee, pl.col("least").cast(PRODUCT)), pl.col("most").cast(PRODUCT))
    frame = frame.with_columns(fee=pl.when("is_free").then(pl.lit(Decimal(0), PRODUCT)).otherwise(clamped))
    return sum_of_fees(frame)
