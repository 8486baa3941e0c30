"""`graduated`: each part of a quantity in its own tier, plus the flat of every tier that was entered.

Negative quantities pay the first tier's unit without its flat; a quantity of 0 costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import polars as pl

from billing.catalog import Graduated
from billing.money import NUMBER, PRODUCT
from billing.pricing.exact import SAFE_MAX, TierPart, product_is_safe, whole
from billing.pricing.tiers import tier_table


def exactly(price: Graduated, quantity: Fraction, share: Fraction = Fraction(1)) -> list[TierPart]:
    """`share` is the prorated part of a period: it scales the bounds and flats, never the unit."""
    parts: list[TierPart] = []
    lower = Fraction(0)
    for number, tier in enumerate(price.tiers):
        upper = None if tier.up_to is None else Fraction(tier.up_to) * share
        top = quantity if upper is None else min(quantity, upper)
        part = top - lower
        unit, flat = Fraction(tier.unit), Fraction(tier.flat) * share
        if part > 0:
            parts.append(TierPart(part, part * unit + flat, upper, unit, flat))
        elif number == 0 and quantity < 0:
            parts.append(TierPart(quantity, quantity * unit, upper, unit, Fraction(0)))
        if upper is None or quantity <= upper:
            break
        lower = upper
    return parts


def columns(lines: pl.DataFrame, prices: Sequence[Graduated]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Amounts, and the parts of them by tier."""
    table = tier_table([price.tiers for price in prices])
    bounds = table.group_by("price").agg(
        pl.col("unit").abs().max().alias("unit_max"), whole(pl.col("flat")).sum().alias("flats")
    )
    guarded = lines.join(bounds, on="price", how="left", maintain_order="left").with_columns(
        safe=product_is_safe(pl.col("quantity"), pl.col("unit_max"))
        & (whole(pl.col("quantity")) * whole(pl.col("unit_max")) + pl.col("flats") <= SAFE_MAX)
    )
    quantity, lower, upper = pl.col("quantity"), pl.col("lower"), pl.col("up_to")
    entered = (quantity > lower) | ((pl.col("tier") == 0) & (quantity < 0))
    parts = (
        guarded.filter("safe")
        .select("line", "price", "quantity")
        .join(table, on="price", how="inner")
        .filter(entered)
        .with_columns(
            flat=pl.when(quantity > lower).then(pl.col("flat")).otherwise(pl.lit(Decimal(0), NUMBER)),
            quantity=pl.min_horizontal(quantity, pl.coalesce(upper, quantity)) - lower,
        )
        .with_columns(amount=pl.col("quantity").cast(PRODUCT) * pl.col("unit") + pl.col("flat").cast(PRODUCT))
        .select("line", "tier", "up_to", "unit", "flat", "quantity", "amount")
    )
    sums = parts.group_by("line").agg(pl.col("amount").sum())
    amounts = guarded.join(sums, on="line", how="left", maintain_order="left").select(
        "line",
        pl.when("safe").then(pl.col("amount").fill_null(pl.lit(Decimal(0), PRODUCT))).otherwise(None).alias("amount"),
    )
    return amounts, parts
