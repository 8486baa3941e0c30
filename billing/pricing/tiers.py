"""Tiers of many prices as one table, for the models that have tiers."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import polars as pl

from billing.catalog import Tier
from billing.money import NUMBER

TIER_TABLE_SCHEMA = pl.Schema(
    {"price": pl.UInt32, "tier": pl.UInt32, "lower": NUMBER, "up_to": NUMBER, "unit": NUMBER, "flat": NUMBER}
)


def tier_table(tiers: Sequence[Sequence[Tier]]) -> pl.DataFrame:
    """One row per tier of each price; a tier holds what is above `lower` and at most `up_to`."""
    rows: list[tuple[int, int, Decimal, Decimal | None, Decimal, Decimal]] = []
    for price, tiers_of_price in enumerate(tiers):
        lower = Decimal(0)
        for number, tier in enumerate(tiers_of_price):
            rows.append((price, number, lower, tier.up_to, tier.unit, tier.flat))
            lower = tier.up_to if tier.up_to is not None else lower
    return pl.DataFrame(rows, schema=TIER_TABLE_SCHEMA, orient="row")
