"""`volume`: the tier that contains the quantity prices all of it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import polars as pl

from billing.catalog import Volume
from billing.money import NUMBER, PRODUCT
from billing.pricing.exact import SAFE_MAX, TierPart, product_is_safe, whole
from billing.pricing.tiers import tier_table


def exactly(price: Volume, quantity: Fraction, share: Fraction = Fraction(1)) -> list[TierPart]:
    """`share` is the prorated part of a period: it scales the bounds and flats, never the unit."""
    if quantity == 0:
        return []
    for tier in price.tiers:
        upper = None if tier.up_to is None else Fraction(tier.up_to) * share
        if upper is None or quantity <= upper:
            unit = Fraction(tier.unit)
            flat = Fraction(tier.flat) * share if quantity > 0 else Fraction(0)
            return [TierPart(quantity, quantity * unit + flat, upper, unit, flat)]
    raise AssertionError("the last tier is open")


def columns(lines: pl.DataFrame, prices: Sequence[Volume]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Amounts, and the tier that made each."""
    table = tier_table([price.tiers for price in prices])
    quantity = pl.col("quantity")
    fits = (quantity <= pl.col("up_to")) | pl.col("up_to").is_null()
    above = (quantity > pl.col("lower")) | (pl.col("tier") == 0)
    held = (
        lines.join(table, on="price", how="inner")
        .filter(fits & above)
        .with_columns(flat=pl.when(quantity > 0).then(pl.col("flat")).otherwise(pl.lit(Decimal(0), NUMBER)))
        .with_columns(
            safe=product_is_safe(quantity, pl.col("unit"))
            & (whole(quantity) * whole(pl.col("unit")) + whole(pl.col("flat")) <= SAFE_MAX)
        )
        .with_columns(
            amount=pl.when("safe").then(quantity).otherwise(None).cast(PRODUCT) * pl.col("unit")
            + pl.when("safe").then(pl.col("flat")).otherwise(None).cast(PRODUCT)
        )
    )
    parts = held.filter(pl.col("safe") & (quantity != 0)).select(
        "line", "tier", "up_to", "unit", "flat", "quantity", "amount"
    )
    return held.select("line", "amount"), parts
