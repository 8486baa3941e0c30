"""Who or what used most: one meter's usage of a time by customer, subscription, day or a dimension of its prices.

Owns the question only; it is answered from the folded view (`pipelines/usage_queries.py`), never from events.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

import polars as pl

from billing.errors import FieldError, InvalidInput
from billing.live_state import LiveState
from billing.master import MasterData
from billing.meters import MeterState, finish, property_texts, regroup
from billing.money import shown_quantity
from billing.periods import midnight

GROUPS_MAX = 1_000
DIMENSION = "dimension:"
ADDITIVE = ("sum", "count")  # of these the quantities of groups add up to the whole


@dataclass(frozen=True)
class Question:
    """`by`: customer, subscription, day, or `dimension:` and a property that a price of the meter asks for."""

    meter: str
    by: str
    first: date
    last: date  # included
    limit: int = 10
    lowest: bool = False


@dataclass(frozen=True)
class Ranked:
    group: str  # code, day (2026-01-31) or value; "" where events do not say it
    events: int
    quantity: Decimal


@dataclass(frozen=True)
class Ranking:
    """The groups in order of their quantity, and all of them together (`quantity` None: they do not add up)."""

    items: tuple[Ranked, ...]
    groups: int
    events: int
    quantity: Decimal | None


def ranking(master: MasterData, live: LiveState, asked: Question) -> Ranking:
    """Raises InvalidInput for a meter, a time or a dimension that cannot be asked for."""
    aggregation = _checked(master, asked)
    zone = master.tenant.timezone
    start, end = midnight(asked.first, zone), midnight(asked.last + timedelta(days=1), zone)
    chosen = (pl.col("meter") == asked.meter) & (pl.col("measure") == "")
    chosen &= (pl.col("at") >= start) & (pl.col("at") < end)
    state, column = live.state, _column(asked.by)
    coarse = regroup(
        MeterState(state.by, *(one.filter(chosen) for one in (state.small, state.sets, state.runs))), (column,)
    )
    named = [_grouped(one, column, master, asked) for one in (coarse.small, coarse.sets, coarse.runs)]
    folded = regroup(MeterState((column, "group"), *named), ("group",))
    groups = folded.small.select("group").with_columns(
        aggregation=pl.lit(aggregation),
        start=pl.lit(None, pl.Datetime("us", "UTC")),
        end=pl.lit(None, pl.Datetime("us", "UTC")),
    )
    found, odd = finish(folded, groups, ("group",))
    exact = {str(key[0]): value for key, value in odd.items()}  # beyond the digits of a column: few, if any
    if exact:
        rows = [_ranked(*row, exact) for row in found.select("group", "events", "quantity").iter_rows()]
        rows.sort(key=lambda one: (one.quantity if asked.lowest else -one.quantity, one.group))
        items, whole = rows[: asked.limit], sum((Fraction(one.quantity) for one in rows), Fraction(0))
    else:
        top = found.sort(["quantity", "group"], descending=[not asked.lowest, False]).head(asked.limit)
        items = [Ranked(*row) for row in top.select("group", "events", "quantity").iter_rows()]
        whole = Fraction(found["quantity"].sum() or 0)
    events = int(found["events"].sum())
    total = shown_quantity(whole) if aggregation in ADDITIVE else None
    return Ranking(tuple(items), found.height, events, total)


def _ranked(group: str, events: int, quantity: Decimal | None, exact: dict[str, Fraction]) -> Ranked:
    return Ranked(group, events, shown_quantity(exact[group]) if quantity is None else quantity)


def _checked(master: MasterData, asked: Question) -> str:
    """The meter's aggregation."""
    meter = master.meters.get(asked.meter)
    if meter is None:
        raise _wrong("meter", f"there is no meter {asked.meter!r}")
    if meter.aggregation == "time_weighted_sum":
        raise _wrong("meter", "a level has no quantity of a group: it costs by the time that it is held")
    if asked.by.startswith(DIMENSION):
        known = sorted(_dimensions(master, asked.meter))
        if asked.by.removeprefix(DIMENSION) not in known:
            names = ", ".join(known) or "none"
            raise _wrong("by", f"prices of {asked.meter!r} ask for these dimensions: {names}")
    elif asked.by not in ("customer", "subscription", "day"):
        raise _wrong("by", "customer, subscription, day, or dimension:NAME")
    if not 1 <= asked.limit <= GROUPS_MAX:
        raise _wrong("limit", f"from 1 to {GROUPS_MAX}")
    if asked.last < asked.first:
        raise _wrong("until", "not before the first day")
    return meter.aggregation


def _dimensions(master: MasterData, meter: str) -> set[str]:
    """Those that folded usage is kept by: of the prices of plans that somebody has."""
    charges = master.rating_book().charges.charges
    return {name for charge in charges if charge.meter == meter for name in charge.price_by}


def _column(by: str) -> str:
    return {"customer": "key", "subscription": "subscription", "day": "at"}.get(by, "dimensions")


def _grouped(frame: pl.DataFrame, column: str, master: MasterData, asked: Question) -> pl.DataFrame:
    """The frame with `group`: what folded usage calls it, and what who asks calls it."""
    values = frame[column]
    if asked.by == "customer":
        group = pl.Series([master.key_owners.get(key, key) for key in values], dtype=pl.String)
    elif asked.by == "subscription":
        group = values.fill_null("")
    elif asked.by == "day":
        group = values.dt.convert_time_zone(master.tenant.timezone).dt.date().cast(pl.String)
    else:
        name = asked.by.removeprefix(DIMENSION)
        group = property_texts(values, [name])[name].fill_null("")
    return frame.with_columns(group.alias("group"))


def _wrong(parameter: str, detail: str) -> InvalidInput:
    return InvalidInput(f"{parameter}: {detail}", errors=[FieldError(f"query:{parameter}", detail)])
