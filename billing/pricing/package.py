"""`package`: every package that was begun costs its amount; ceil(quantity / size)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import polars as pl

from billing.catalog import Package
from billing.money import NUMBER
from billing.pricing.exact import SAFE_MAX, WHOLE_MAX, joined, number_column, product, product_is_safe, whole


def exactly(price: Package, quantity: Fraction) -> Fraction:
    return math.ceil(quantity / Fraction(price.size)) * Fraction(price.amount)


def columns(lines: pl.DataFrame, prices: Sequence[Package]) -> pl.DataFrame:
    frame = joined(
        lines,
        {
            "size": number_column("size", [price.size for price in prices]),
            "unit": number_column("unit", [price.amount for price in prices]),
            "per_one": pl.Series(
                "per_one", [min(math.ceil(1 / Fraction(price.size)), WHOLE_MAX) for price in prices], dtype=pl.Int128
            ),
        },
    )
    quantity, size = pl.col("quantity"), pl.col("size")
    few = whole(quantity) * pl.col("per_one") <= SAFE_MAX
    frame = frame.with_columns(quantity=pl.when(few & product_is_safe(quantity, size)).then(quantity).otherwise(None))
    # The nearest whole number is the package or the one before; comparing products, which are exact, tells which.
    frame = frame.with_columns(count=(quantity / size).round(0))
    one_more = (pl.col("count") * size < quantity).cast(pl.Int32).cast(NUMBER)
    frame = frame.with_columns(count=pl.col("count") + one_more)
    safe = product_is_safe(pl.col("count"), pl.col("unit"))
    return frame.select("line", product(pl.col("count"), pl.col("unit"), safe).alias("amount"))
