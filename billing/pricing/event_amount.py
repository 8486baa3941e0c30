"""`event_amount`: the sum of the amounts that the events carry; the price was decided by the caller."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import polars as pl

from billing.money import PRODUCT
from billing.pricing.exact import SAFE_MAX, sum_of_fees, whole


def exactly(amounts: Sequence[Fraction]) -> Fraction:
    return sum(amounts, Fraction(0))


def columns(events: pl.DataFrame) -> pl.DataFrame:
    """`events` has line and value (the event's own amount)."""
    size = whole(pl.col("value"))
    safe = size <= SAFE_MAX
    return sum_of_fees(
        events.with_columns(
            safe=safe, fee_size=size, fee=pl.when(safe).then(pl.col("value")).otherwise(None).cast(PRODUCT)
        )
    )
