"""The events of a storm and what they must come to: event n is the same whoever makes it, so no oracle reads a log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import polars as pl

from billing.usage import EVENT_SCHEMA

CUSTOMERS = 500
SOURCE = "storm"
TYPE = "storage.write"
DUPLICATES = 0.3
Numbers = npt.NDArray[np.int64]


def thousandths(numbers: Numbers) -> Numbers:
    """The quantity of each event in thousandths: spread so that no two customers' sums are alike by their form."""
    return (numbers * 7_919) % 99_991 + 1


def events_of(numbers: Numbers) -> pl.DataFrame:
    """The events with these numbers, in this order; their times are out of order by design."""
    frame = pl.DataFrame({"n": numbers, "q": thousandths(numbers), "m": (numbers * 104_729) % 40_000})
    start = pl.datetime(2026, 1, 1, time_unit="us", time_zone="UTC")
    return frame.select(
        pl.lit(SOURCE).alias("source"),
        pl.format("e{}", "n").alias("id"),
        pl.lit(TYPE).alias("type"),
        pl.format("c{}", pl.col("n") % CUSTOMERS).alias("customer"),
        pl.lit(None, pl.String).alias("subscription"),
        (start + pl.duration(minutes="m")).alias("time"),
        pl.concat_str(
            pl.lit('{"gb":"'),
            pl.col("q") // 1000,
            pl.lit("."),
            (pl.col("q") % 1000).cast(pl.String).str.zfill(3),
            pl.lit('"}'),
        ).alias("data"),
    ).cast(dict(EVENT_SCHEMA))


@dataclass
class Batches:
    """What one sender sends: its share of the numbers in disorder, and among them what it has sent before.

    Deterministic by its seed. `events` counts new ones; of all rows DUPLICATES are repeats.
    """

    seed: int
    sender: int
    senders: int
    events: int
    rows: int

    def __iter__(self) -> Iterator[Numbers]:
        chance = np.random.default_rng([self.seed, self.sender])
        mine = np.arange(self.sender, self.events, self.senders)
        # In disorder within a window: a whole shuffle of ten million would only cost memory.
        for start in range(0, len(mine), 50 * self.rows):
            window = chance.permutation(mine[start : start + 50 * self.rows])
            fresh = max(1, int(self.rows * (1 - DUPLICATES)))
            for first in range(0, len(window), fresh):
                new = window[first : first + fresh]
                seen = mine[: start + first + len(new)] if start else window[: first + len(new)]
                again = chance.choice(seen, self.rows - fresh) if self.rows > fresh else seen[:0]
                yield chance.permutation(np.concatenate([new, again]))


@dataclass(frozen=True)
class Expected:
    """Per customer: events and quantity, by arithmetic over the numbers alone."""

    counts: Numbers
    sums: Numbers  # in thousandths

    @classmethod
    def of(cls, present: Numbers) -> Expected:
        customers = present % CUSTOMERS
        counts = np.bincount(customers, minlength=CUSTOMERS)
        sums = np.zeros(CUSTOMERS, np.int64)
        np.add.at(sums, customers, thousandths(present))
        return cls(counts, sums)

    def quantity(self, customer: int) -> Decimal:
        return Decimal(int(self.sums[customer])) / 1000
