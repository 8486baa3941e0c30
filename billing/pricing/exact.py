"""What the price models share: exact columns, when 38 digits suffice, and the parts that explain an amount.

A model in columns takes lines (`line`, `price`, `quantity`) and gives `line`, `amount`; an amount is null where 38
digits do not surely suffice. Those lines are priced by the model's scalar form, in fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import polars as pl

from billing.money import NUMBER, PRODUCT, whole_up_to

# A product of two numbers with 12 places has 24, so 14 digits are left before the point.
SAFE_MAX = 99_999_999_999_999
WHOLE_MAX = 10**15  # above what is safe, and small enough: two of them times each other, 10^8 times, fit 128 bits
TIERS_SCHEMA = pl.Schema(
    {
        "line": pl.UInt32,
        "tier": pl.UInt32,
        "up_to": NUMBER,
        "unit": NUMBER,
        "flat": NUMBER,
        "quantity": NUMBER,
        "amount": PRODUCT,
    }
)
PRICED_SCHEMA = pl.Schema({"line": pl.UInt32, "amount": PRODUCT})


@dataclass(frozen=True)
class TierPart:
    """The part of a quantity that one tier priced; sums of parts are the amount before minimum and maximum."""

    quantity: Decimal | Fraction
    amount: Decimal | Fraction
    up_to: Decimal | Fraction | None
    unit: Decimal | Fraction
    flat: Decimal | Fraction


def number_column(name: str, values: Sequence[Decimal | None]) -> pl.Series:
    return pl.Series(name, values, dtype=NUMBER)


def whole(number: pl.Expr) -> pl.Expr:
    """The size rounded up to a whole number, at most WHOLE_MAX: a product of bounds is a bound of the product."""
    return whole_up_to(number, WHOLE_MAX)


def product_is_safe(quantity: pl.Expr, bound: pl.Expr) -> pl.Expr:
    """Whether quantity x price, and the quantity alone, surely fit 14 digits before the point."""
    return (whole(quantity) * whole(bound) <= SAFE_MAX) & (whole(quantity) <= SAFE_MAX)


def product(left: pl.Expr, right: pl.Expr, safe: pl.Expr) -> pl.Expr:
    """left x right, exact; null where it is not surely safe."""
    # The unsafe rows are blanked before the product is taken: both branches of when/then are computed.
    return pl.when(safe).then(left).otherwise(None).cast(PRODUCT) * right.cast(NUMBER)


def joined(lines: pl.DataFrame, table: dict[str, pl.Series]) -> pl.DataFrame:
    """Lines with the columns of their price; `table` has one entry per price, in order."""
    prices = pl.DataFrame(table).with_row_index("price")
    return lines.join(prices, on="price", how="left", maintain_order="left")


def sum_of_fees(events: pl.DataFrame) -> pl.DataFrame:
    """Sum `fee` by line; null for a line with an event that is not `safe`, or whose `fee_size`s might not fit.

    `fee_size` is a whole number that the fee does not exceed.
    """
    fits = (pl.col("safe").all() & (pl.col("fee_size").sum() <= SAFE_MAX)).over("line")
    return (
        events.with_columns(fits=fits)
        .group_by("line", maintain_order=True)
        .agg(pl.when("fits").then(pl.col("fee")).otherwise(None).sum().alias("amount"), pl.col("fits").first())
        .select("line", pl.when("fits").then(pl.col("amount")).otherwise(None).alias("amount"))
    )
