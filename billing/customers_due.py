"""How many customers have something due that is not billed: by their contracts alone, before any usage is read.

Owns the count for an estimate; what is due is `billing/due.py`, and contracts alike are looked at once
(`billing/bill_columns.py`). Late usage is not counted: nobody knows of it before it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from billing.bill_columns import plain
from billing.due import due
from billing.master import MasterData

# Customers, some 10 microseconds each, as a page waits for it; of more, every so many-th is looked at.
LOOKED_AT_MAX = 20_000


@dataclass(frozen=True)
class CustomersDue:
    """`count` of the customers asked for; `exact` unless it is reckoned from a part of them."""

    count: int
    exact: bool


def customers_due(
    master: MasterData, customers: Sequence[str], up_to: datetime, most: int = LOOKED_AT_MAX
) -> CustomersDue:
    """How many of the customers owe something at or before `up_to` by contract, usage charges without events too."""
    every = max(1, -(-len(customers) // most))
    looked_at = customers[::every]
    chosen = plain(master, looked_at, up_to)
    owing = [place for place, kind in enumerate(chosen.kinds) if kind.fees or kind.uses]
    of_kinds = chosen.contracts.filter(pl.col("kind").is_in(pl.Series(owing, dtype=pl.UInt32).implode()))
    count = of_kinds["owner"].n_unique() + sum(_owes(master, customer, up_to) for customer in chosen.rest)
    if every == 1:
        return CustomersDue(count, exact=True)
    return CustomersDue((2 * count * len(customers) + len(looked_at)) // (2 * len(looked_at)), exact=False)


def _owes(master: MasterData, customer: str, up_to: datetime) -> bool:
    found = due(master, customer, up_to, up_to)
    return bool(
        found.fees
        or found.ad_hoc
        or found.uses  # of those that are billed none begins after `up_to`
        or any(part.billed is None for part in found.parts)
    )
