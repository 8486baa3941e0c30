"""`flat`: an amount times the subscription's quantity for the charge; on usage, once as soon as there is any."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import polars as pl

from billing.catalog import Flat
from billing.pricing.exact import joined, number_column, product, product_is_safe


def exactly(price: Flat, quantity: Fraction) -> Fraction:
    return quantity * Fraction(price.amount)


def columns(lines: pl.DataFrame, prices: Sequence[Flat]) -> pl.DataFrame:
    """Here `quantity` is the subscription's (0 where there was no usage)."""
    frame = joined(lines, {"unit": number_column("unit", [price.amount for price in prices])})
    safe = product_is_safe(pl.col("quantity"), pl.col("unit"))
    return frame.select("line", product(pl.col("quantity"), pl.col("unit"), safe).alias("amount"))
