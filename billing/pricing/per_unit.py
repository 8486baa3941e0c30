"""`per_unit`: quantity times unit price."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import polars as pl

from billing.catalog import PerUnit
from billing.pricing.exact import joined, number_column, product, product_is_safe


def exactly(price: PerUnit, quantity: Fraction) -> Fraction:
    return quantity * Fraction(price.unit)


def columns(lines: pl.DataFrame, prices: Sequence[PerUnit]) -> pl.DataFrame:
    frame = joined(lines, {"unit": number_column("unit", [price.unit for price in prices])})
    safe = product_is_safe(pl.col("quantity"), pl.col("unit"))
    return frame.select("line", product(pl.col("quantity"), pl.col("unit"), safe).alias("amount"))
