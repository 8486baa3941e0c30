"""What classifying, rating and folding need of a tenant, in columns: keys, contracts, plans, meters, cuts and pauses.

Owns the tables and what is derived from them once. They are filled from master data by `billing/book.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

import polars as pl

from billing.catalog import Charge, EventAmount, Meter
from billing.measured import Charges, TypeMeters, meter_tables
from billing.typed_columns import Reads
from billing.usage import INSTANT

KEYS_SCHEMA = pl.Schema({"key": pl.String, "customer": pl.String})
CONTRACTS_SCHEMA = pl.Schema(
    {"customer": pl.String, "subscription": pl.String, "start": INSTANT, "end": INSTANT, "plan": pl.UInt32}
)
BILLED_SCHEMA = pl.Schema({"subscription": pl.String, "until": INSTANT})
CUTS_SCHEMA = pl.Schema({"customer": pl.String, "at": INSTANT})
PAUSES_SCHEMA = pl.Schema(
    {"customer": pl.String, "subscription": pl.String, "meter": pl.UInt32, "start": INSTANT, "end": INSTANT}
)


@dataclass(frozen=True)
class RatingBook:
    """What classifying and folding need of a tenant, in columns.

    `customers` resolves the key that an event carries. `contracts` says which plan (a place in `plans`) a subscription
    runs from when to when; `end` null means still running. `billed` has, for tenants that reject late usage, up to when
    each subscription's usage was billed.
    """

    meters: tuple[Meter, ...]
    customers: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=KEYS_SCHEMA))
    contracts: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CONTRACTS_SCHEMA))
    plans: tuple[tuple[Charge, ...], ...] = ()  # the usage charges of each plan, with a subscription's own prices
    timezone: str = "UTC"
    future_limit: timedelta = timedelta(hours=1)
    rejects_late: bool = False  # whether a run has closed what it billed
    billed: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=BILLED_SCHEMA))
    cuts: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CUTS_SCHEMA))
    pauses: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=PAUSES_SCHEMA))  # `meter` by its place

    @cached_property
    def meter_places(self) -> dict[str, int]:
        return {meter.code: place for place, meter in enumerate(self.meters)}

    @cached_property
    def meter_tables(self) -> dict[str, TypeMeters]:
        return meter_tables(enumerate(self.meters))

    @cached_property
    def properties(self) -> dict[str, set[str]]:
        return self.charges.properties(self.meters)

    @cached_property
    def live_meters(self) -> list[tuple[LiveMeter, pl.Series]]:
        """What live state keeps, and the meters of which it keeps that."""
        return _live_meters(self)

    @cached_property
    def reads(self) -> Reads:
        """What meters and prices look at. Distinct texts that are counted are left out: as many as there are events."""
        as_numbers: dict[str, set[str]] = {}
        as_texts: dict[str, set[str]] = {}
        for meter in self.meters:
            as_texts.setdefault(meter.event_type, set()).update(name for name, _ in meter.filter)
            if meter.value and meter.aggregation != "unique_count":
                as_numbers.setdefault(meter.event_type, set()).add(meter.value)
        for charge in self.charges.charges:
            event_type = self.meters[self.meter_places[charge.meter]].event_type
            as_texts.setdefault(event_type, set()).update(charge.price_by)
            amounts = (row.price.property for row in charge.rows if isinstance(row.price, EventAmount))
            as_numbers.setdefault(event_type, set()).update(amounts)
        return Reads(
            {kind: frozenset(names) for kind, names in as_numbers.items() if names},
            {kind: frozenset(names) for kind, names in as_texts.items() if names},
        )

    @cached_property
    def reads_all(self) -> Reads:
        """What meters and prices look at, distinct texts that are counted among it."""
        texts = {kind: set(names) for kind, names in self.reads.texts.items()}
        for meter in self.meters:
            if meter.value and meter.aggregation == "unique_count":
                texts.setdefault(meter.event_type, set()).add(meter.value)
        return Reads(self.reads.numbers, {kind: frozenset(names) for kind, names in texts.items()})

    @cached_property
    def charges(self) -> Charges:
        """All usage charges of all plans, and which plan has which."""
        charges: list[Charge] = []
        plan_column: list[int] = []
        for number, plan in enumerate(self.plans):
            usage = [charge for charge in plan if charge.kind == "usage"]
            charges += usage
            plan_column += [number] * len(usage)
        return Charges(charges, self.meter_places, plan_column)


@dataclass(frozen=True)
class LiveMeter:
    """What the live state keeps of a meter: dimensions and amounts that prices look at, and whether single events."""

    event_type: str
    dimensions: tuple[str, ...]
    amounts: tuple[str, ...]
    keep: bool


def _live_meters(book: RatingBook) -> list[tuple[LiveMeter, pl.Series]]:
    by_meter: dict[str, list[Charge]] = {}
    for charge in book.charges.charges:
        by_meter.setdefault(charge.meter, []).append(charge)
    found: dict[LiveMeter, list[int]] = {}
    for number, meter in enumerate(book.meters):
        charges = by_meter.get(meter.code, [])
        prices = [row.price for charge in charges for row in charge.rows]
        kept = LiveMeter(
            meter.event_type,
            tuple(sorted({name for charge in charges for name in charge.price_by})),
            tuple(sorted({price.property for price in prices if isinstance(price, EventAmount)})),
            any(price.model in ("percentage", "bands") for price in prices),
        )
        found.setdefault(kept, []).append(number)
    return [(kept, pl.Series(numbers_of, dtype=pl.UInt32)) for kept, numbers_of in found.items()]
