"""What events measure: which meters take an event, the values they read of it, and the price row that is for it.

Owns meters and usage charges as tables: events of one type meet them in a few joins. No Python object per event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from billing.catalog import Charge, EventAmount, Meter
from billing.meters import AGGREGATION
from billing.money import NUMBER
from billing.typed_columns import Texts

_NO_KEYS: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Usage:
    """The events of one type: `pairs` of event and meter, and the texts of properties, by place among these events.

    Where rows carry typed columns (`billing/typed_columns.py`) the texts come from there.
    """

    events: pl.DataFrame  # of the type, with `row`
    texts: Texts
    pairs: pl.DataFrame  # row, place, meter, aggregation, value, text, missing, invalid

    def with_events(self, pairs: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
        """The pairs with columns of their events."""
        if pairs.height == self.events.height and (pairs["place"] == _count_up(pairs.height)).all():
            return pairs.with_columns(self.events.select(columns))  # one pair an event, in order: nothing to gather
        return pairs.with_columns(self.events.select(columns)[pairs["place"]])


def _count_up(count: int) -> pl.Series:
    return pl.int_range(count, dtype=pl.UInt32, eager=True)


class TypeMeters:
    """The meters of one event type as tables: filters by the properties that they look at, values by property."""

    def __init__(self, meters: Sequence[tuple[int, Meter]]) -> None:
        self.names = {name for _, meter in meters for name, _ in meter.filter}
        self.names |= {meter.value for _, meter in meters if meter.value}
        self.unfiltered = [number for number, meter in meters if not meter.filter]
        by_filter: dict[tuple[str, ...], list[tuple[int, Meter]]] = {}
        kinds: dict[tuple[str | None, str], list[int]] = {}
        for number, meter in meters:
            kinds.setdefault((meter.value, meter.aggregation), []).append(number)
            if meter.filter:
                by_filter.setdefault(tuple(name for name, _ in meter.filter), []).append((number, meter))
        self.filters = {names: _filter_table(names, alike) for names, alike in by_filter.items()}
        self.kinds = [(key, pl.Series(numbers_of, dtype=pl.UInt32)) for key, numbers_of in kinds.items()]


def _filter_table(names: Sequence[str], meters: Sequence[tuple[int, Meter]]) -> pl.DataFrame:
    """One row per meter and combination of values that its filter lets pass."""
    table = pl.DataFrame(
        [(number, *(list(values) for _, values in meter.filter)) for number, meter in meters],
        schema={"meter": pl.UInt32, **{name: pl.List(pl.String) for name in map(_dim, names)}},
        orient="row",
    )
    for name in names:
        table = table.explode(_dim(name))
    return table


def meter_tables(meters: Iterable[tuple[int, Meter]]) -> dict[str, TypeMeters]:
    """Tables by event type; the numbers are what the meters are called in the result."""
    by_type: dict[str, list[tuple[int, Meter]]] = {}
    for number, meter in meters:
        by_type.setdefault(meter.event_type, []).append((number, meter))
    return {event_type: TypeMeters(of_type) for event_type, of_type in by_type.items()}


def measured(
    events: pl.DataFrame, tables: Mapping[str, TypeMeters], properties: Mapping[str, Iterable[str]] = _NO_KEYS
) -> Iterator[Usage]:
    """Each event type with a meter: which meters take which events, and the values they measure."""
    present: list[str] = events["type"].unique().to_list()
    for event_type in present:
        meters = tables.get(event_type)
        if meters is None:
            continue
        chosen = events if len(present) == 1 else events.filter(pl.col("type") == event_type)
        texts = Texts(chosen, meters.names | set(properties.get(event_type, ())))
        yield Usage(chosen, texts, _with_values(_filtered(chosen, texts, meters), texts, meters))


def _filtered(events: pl.DataFrame, texts: Mapping[str, pl.Series], meters: TypeMeters) -> pl.DataFrame:
    """Event and meter, where the meter's filter lets the event pass. One join for all meters that filter alike."""
    places = events.select("row").with_row_index("place")
    found = [places.with_columns(meter=pl.lit(number, pl.UInt32)) for number in meters.unfiltered]
    for names, table in meters.filters.items():
        columns = places.with_columns(texts[name].alias(_dim(name)) for name in names)
        found.append(columns.join(table, on=list(map(_dim, names)), how="inner").select("place", "row", "meter"))
    return pl.concat(found)


def _with_values(pairs: pl.DataFrame, texts: Texts, meters: TypeMeters) -> pl.DataFrame:
    found: list[pl.DataFrame] = []
    for (name, aggregation), numbers_of in meters.kinds:
        group = pairs if len(meters.kinds) == 1 else pairs.filter(pl.col("meter").is_in(numbers_of.implode()))
        if group.height == 0:
            continue
        value: pl.Series | pl.Expr = pl.lit(None, NUMBER)
        text: pl.Series | pl.Expr = pl.lit(None, pl.String)
        missing: pl.Series | pl.Expr = pl.lit(False)
        invalid: pl.Series | pl.Expr = pl.lit(False)
        if name is not None:
            if aggregation == "unique_count":
                text = texts[name].gather(group["place"])
                missing = text.is_null()
            else:
                value = texts.number(name).gather(group["place"])
                missing = texts.lacks(name).gather(group["place"])
                invalid = value.is_null() & ~missing
        aggregation_column = pl.lit(aggregation, AGGREGATION)
        found.append(
            group.with_columns(aggregation=aggregation_column, value=value, text=text, missing=missing, invalid=invalid)
        )
    return pl.concat(found) if found else pl.DataFrame(schema={**pairs.schema, **_VALUES_SCHEMA})


_VALUES_SCHEMA = {
    "aggregation": AGGREGATION, "value": NUMBER, "text": pl.String, "missing": pl.Boolean, "invalid": pl.Boolean,
}  # fmt: skip


class Charges:
    """Usage charges as tables: `frame` has one row each, `rows_by_dimensions` the price rows."""

    def __init__(
        self, charges: Sequence[Charge], meters: Mapping[str, int], plans: Sequence[int] | None = None
    ) -> None:
        self.charges = tuple(charges)
        self.frame = pl.DataFrame(
            {
                "charge": pl.Series(range(len(charges)), dtype=pl.UInt32),
                "plan": pl.Series(plans if plans is not None else [0] * len(charges), dtype=pl.UInt32),
                "meter": pl.Series([meters[charge.meter] for charge in charges], dtype=pl.UInt32),
                "rowed": pl.Series([charge.price is None for charge in charges], dtype=pl.Boolean),
                "by_value": pl.Series(
                    [any(isinstance(row.price, EventAmount) for row in charge.rows) for charge in charges],
                    dtype=pl.Boolean,
                ),
            }
        )

    def properties(self, meters: Sequence[Meter]) -> dict[str, set[str]]:
        """The properties that price rows look at, by event type."""
        by_code = {meter.code: meter for meter in meters}
        names: dict[str, set[str]] = {}
        for charge in self.charges:
            wanted = names.setdefault(by_code[charge.meter].event_type, set())
            wanted.update(charge.price_by)
            wanted.update(row.price.property for row in charge.rows if isinstance(row.price, EventAmount))
        return names

    @cached_property
    def amounts(self) -> pl.DataFrame:
        """Rows that are priced by a property of the event."""
        found = [
            (number, place, row.price.property)
            for number, charge in enumerate(self.charges)
            for place, row in enumerate(charge.rows)
            if isinstance(row.price, EventAmount)
        ]
        return pl.DataFrame(
            found, schema={"charge": pl.UInt32, "price_row": pl.UInt32, "property": pl.String}, orient="row"
        )

    @cached_property
    def rows_by_dimensions(self) -> dict[tuple[str, ...], pl.DataFrame]:
        """Price rows by the set of dimensions that their `when` names: one hash join each, for any number of rows."""
        found: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        for number, charge in enumerate(self.charges):
            for place, row in enumerate(charge.rows):
                names = tuple(name for name, _ in row.when)
                found.setdefault(names, []).append((number, place, *(value for _, value in row.when)))
        return {
            names: pl.DataFrame(
                rows,
                schema={"charge": pl.UInt32, "price_row": pl.UInt32, **{name: pl.String for name in map(_dim, names)}},
                orient="row",
            )
            for names, rows in found.items()
        }


def _dim(name: str) -> str:
    return f"dimension:{name}"


def with_rows(met: pl.DataFrame, usage: Usage, charges: Charges) -> pl.DataFrame:
    """Each row with `price_row`: the first of its charge's rows that matches, null if none does."""
    names = {name for names in charges.rows_by_dimensions for name in names} & usage.texts.keys()
    return matched(met, {name: usage.texts[name].gather(met["place"]) for name in names}, charges)


def matched(met: pl.DataFrame, texts: Mapping[str, pl.Series], charges: Charges) -> pl.DataFrame:
    if set(charges.rows_by_dimensions) <= {()}:
        return met.with_columns(price_row=pl.lit(0, pl.UInt32))
    met = met.with_row_index("match")
    found = [pl.DataFrame(schema={"match": pl.UInt32, "price_row": pl.UInt32})]
    for names, table in charges.rows_by_dimensions.items():
        if not set(names) <= texts.keys():
            continue  # rows of charges on another type of events
        columns = met.select("match", "charge").with_columns(texts[name].alias(_dim(name)) for name in names)
        hits = columns.join(table, on=["charge", *map(_dim, names)], how="inner")
        found.append(hits.select("match", "price_row"))
    first = pl.concat(found).group_by("match").agg(pl.col("price_row").min())
    return met.join(first, on="match", how="left", maintain_order="left").drop("match")


def counts_for() -> pl.Expr:
    return pl.col("subscription").is_null() | (pl.col("subscription") == pl.col("of_subscription"))
