"""Which cells folded usage has, and whether it still fits the master data that asks for it.

Owns the comparison only: prices, plans and contracts may change without folding again, but a new dimension, a first
price per event on a meter, or a new cut of time inside a day asks for other cells (`billing/live_state.py`).
"""

from __future__ import annotations

import hashlib

import polars as pl

from billing.catalog import EventAmount
from billing.live_state import LiveState
from billing.rating_book import RatingBook


def cells_asked_for(book: RatingBook) -> str:
    """What of the master data decides the cells, but for cuts, as a text to compare."""
    asked: set[tuple[str, str, str]] = set()
    for charge in (charge for plan in book.plans for charge in plan):
        asked.update((charge.meter, "dimension", name) for name in charge.price_by)
        for row in charge.rows:
            if isinstance(row.price, EventAmount):
                asked.add((charge.meter, "amount", row.price.property))
            elif row.price.model in ("percentage", "bands"):
                asked.add((charge.meter, "single events", ""))
    return hashlib.sha256(repr((book.meters, sorted(asked), book.timezone)).encode()).hexdigest()


def spans_a_cut(live: LiveState, book: RatingBook) -> bool:
    """Whether usage on both sides of a cut was folded into one cell, because the cut came later."""
    if book.cuts.height == 0:
        return False
    cuts = book.cuts.join(book.customers, on="customer", how="inner").select("key", pl.col("at").alias("cut"))
    met = live.state.small.select("key", "first", "last").join(cuts, on="key", how="inner")
    return met.filter((pl.col("first") < pl.col("cut")) & (pl.col("last") >= pl.col("cut"))).height > 0
