"""Typed columns beside the text of events: what meters read of `data`, taken out once when rows are sealed.

Owns their names and their rule: the text stays the truth. A typed value is there only where it equals, to the digit,
what the text gives; a null says nothing and sends the reader to the text. So columns may be added, left out and mixed
with rows that have none, and no figure changes. `billing/measured.py` alone reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

import polars as pl

from billing.meters import numbers, property_texts
from billing.money import NUMBER, PLACES_MAX
from billing.usage import EVENT_SCHEMA

NUMBER_PREFIX, TEXT_PREFIX = "number:", "text:"
DIGITS = 18  # of a typed number: a whole number of 64 bits with a scale
PROPERTIES_MAX = 64  # of one file; what is beyond stays in the text
_COMPARED_MAX = 8  # tenants: so few are found quicker by comparing than by a join
_COMMON = 100  # a scale may leave one of so many values to the text: one long outlier must not push out large values


@dataclass(frozen=True)
class Reads:
    """The properties that a tenant's meters and prices read, by event type: as numbers, and as texts."""

    numbers: Mapping[str, frozenset[str]]
    texts: Mapping[str, frozenset[str]]


NO_READS = Reads({}, {})


def typed_columns(rows: pl.DataFrame, reads: Mapping[str, Reads]) -> list[pl.Series]:
    """The typed columns of rows with `tenant`, `type` and `data`, for what each tenant reads; names in order."""
    found: list[pl.Series] = []
    for prefix, wanted in ((NUMBER_PREFIX, _wanted(reads, "numbers")), (TEXT_PREFIX, _wanted(reads, "texts"))):
        for name in sorted(wanted)[:PROPERTIES_MAX]:
            places = _places(rows, wanted[name])
            if places.len() == 0:
                continue
            texts = property_texts(rows["data"].gather(places), [name])[name]
            values = _scaled(numbers(texts)) if prefix == NUMBER_PREFIX else texts
            empty = pl.repeat(None, rows.height, dtype=values.dtype, eager=True)
            found.append(empty.scatter(places, values).alias(prefix + name))
    return found


def are_typed(events: pl.DataFrame, reads: Reads) -> bool:
    """Whether typed columns hold all that is read of these events, so that nobody need look at their text."""
    return not events.height or not events.select(any_lacking(reads, events.columns)).item()


def any_lacking(reads: Reads, columns: Iterable[str]) -> pl.Expr:
    known, lacking = set(columns), pl.lit(False)
    for prefix, by_type in ((NUMBER_PREFIX, reads.numbers), (TEXT_PREFIX, reads.texts)):
        for name, types in _types_of(by_type).items():
            of_type = pl.col("type").is_in(types)
            column = prefix + name
            lacking |= (of_type & pl.col(column).is_null()).any() if column in known else of_type.any()
    return lacking


def _types_of(by_type: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    """By property, in order: the event types of which it is read."""
    found: dict[str, list[str]] = {}
    for event_type, names in by_type.items():
        for name in names:
            found.setdefault(name, []).append(event_type)
    return dict(sorted(found.items()))


def with_typed(events: pl.DataFrame, reads: Reads) -> pl.DataFrame:
    """Events of one tenant with typed columns for all that is read of them: what is null then, the text does not have.

    For who looks at the same properties more than once: reading one out of the text costs as much as all the rest.
    """
    found: list[pl.Series] = []
    for prefix, by_type in ((NUMBER_PREFIX, reads.numbers), (TEXT_PREFIX, reads.texts)):
        for name, types in list(_types_of(by_type).items())[:PROPERTIES_MAX]:
            column, dtype = prefix + name, NUMBER if prefix == NUMBER_PREFIX else pl.String()
            if column in events.columns:
                known = events[column].cast(dtype)
            else:
                known = pl.repeat(None, events.height, dtype=dtype, eager=True).alias(column)
            places = pl.Series(dtype=pl.UInt32)
            if known.null_count():
                places = (events["type"].is_in(types) & known.is_null()).arg_true()
            if places.len() == 0:
                found.append(known)
                continue
            whole = places.len() == events.height
            texts = property_texts(events["data"] if whole else events["data"].gather(places), [name])[name]
            values = numbers(texts) if prefix == NUMBER_PREFIX else texts
            found.append((values if whole else known.scatter(places, values)).alias(column))
    return events.with_columns(found)


def typed_names(columns: Iterable[str]) -> list[str]:
    """The typed ones of some columns."""
    return [name for name in columns if name.startswith((NUMBER_PREFIX, TEXT_PREFIX))]


def event_columns(frame: pl.DataFrame) -> list[str]:
    """The columns of events, typed ones included."""
    return [*EVENT_SCHEMA.names(), *typed_names(frame.columns)]


class Texts(Mapping[str, pl.Series]):
    """The texts of properties, and the numbers in them, of some events: out of typed columns where these have them."""

    def __init__(self, events: pl.DataFrame, names: Iterable[str]) -> None:
        self._events = events
        self._names = frozenset(names)
        self._texts: dict[str, pl.Series] = {}
        self._numbers: dict[str, pl.Series] = {}

    def __getitem__(self, name: str) -> pl.Series:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._texts:
            self._texts[name] = self._filled(TEXT_PREFIX + name, name, lambda texts: texts, pl.String())
        return self._texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def number(self, name: str) -> pl.Series:
        """Exact numbers, null where the text is none (or there is no text)."""
        if name not in self._numbers:
            if name in self._texts or NUMBER_PREFIX + name not in self._events.columns:
                self._numbers[name] = numbers(self[name])
            else:
                self._numbers[name] = self._filled(NUMBER_PREFIX + name, name, numbers, NUMBER)
        return self._numbers[name]

    def lacks(self, name: str) -> pl.Series:
        """Where an event has no such property. A number that is there has a text."""
        if name in self._texts or NUMBER_PREFIX + name not in self._events.columns:
            return self[name].is_null()
        lacking = self._events[NUMBER_PREFIX + name].is_null()
        places = lacking.arg_true()
        if places.len() == 0:
            return lacking
        return lacking.scatter(places, self._read(name, places).is_null())

    def _read(self, name: str, places: pl.Series) -> pl.Series:
        data = self._events["data"].gather(places)
        assert data.null_count() == 0, f"{name} is neither typed nor is there a text to read it from"
        return property_texts(data, [name])[name]

    def _filled(self, column: str, name: str, make: Callable[[pl.Series], pl.Series], dtype: pl.DataType) -> pl.Series:
        if column not in self._events.columns:
            return make(self._read(name, pl.int_range(self._events.height, dtype=pl.UInt32, eager=True)))
        typed = self._events[column].cast(dtype)
        places = typed.is_null().arg_true()
        if places.len() == 0:
            return typed
        return typed.scatter(places, make(self._read(name, places)))


def _places(rows: pl.DataFrame, wanted: list[tuple[str, str]]) -> pl.Series:
    """Where the rows of these tenants and event types are, in order."""
    types: dict[str, list[str]] = {}
    for tenant, event_type in wanted:
        types.setdefault(tenant, []).append(event_type)
    if len(types) <= _COMPARED_MAX:
        either = [(pl.col("tenant") == tenant) & pl.col("type").is_in(these) for tenant, these in types.items()]
        return rows.select(pl.any_horizontal(either).fill_null(False).arg_true().alias("place"))["place"]
    asked = pl.DataFrame(wanted, schema={"tenant": pl.String, "type": pl.String}, orient="row")
    found = rows.select("tenant", "type").with_row_index("place").join(asked, on=["tenant", "type"])
    return found["place"].sort()


def _wanted(reads: Mapping[str, Reads], what: str) -> dict[str, list[tuple[str, str]]]:
    """By property: the tenants and event types that read it."""
    found: dict[str, list[tuple[str, str]]] = {}
    for tenant, one in reads.items():
        by_type: Mapping[str, frozenset[str]] = getattr(one, what)
        for event_type, names in by_type.items():
            for name in names:
                found.setdefault(name, []).append((tenant, event_type))
    return found


def _scaled(values: pl.Series) -> pl.Series:
    """Numbers as 18 digits with the smallest scale that holds nearly all of them; the others are null."""
    count = values.len() - values.null_count()
    best = pl.repeat(None, values.len(), dtype=pl.Decimal(DIGITS, 0), eager=True)
    held = 0
    for places in range(PLACES_MAX + 1):
        limit = Decimal(10) ** (DIGITS - places)
        fits = (values < limit) & (values > -limit)
        # A cast to fewer places rounds: what does not come back is not held.
        tried = values.set(~fits.fill_null(False), None).cast(pl.Decimal(DIGITS, places))
        tried = tried.set((tried.cast(NUMBER) != values).fill_null(False), None)
        now = values.len() - tried.null_count()
        if now > held:
            best, held = tried, now
        if held * _COMMON >= count * (_COMMON - 1):
            break
    return best
