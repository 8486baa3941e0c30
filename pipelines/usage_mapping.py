"""Mappings: how the columns of a file become usage events. Data (YAML), applied to whole columns at a time.

A mapping names for each field of an event where its value comes from (docs/importing.md):

    {column: A} or {column: [A, B]}       the first of the columns that has a value
    {text: "focus"}                       always this text
    {join: [..., ...], with: " "}         the parts in a row; no value if a part has none
    {present: [A, B], then: ..., else: ...}   one or the other, by whether the columns have a value
"""

from __future__ import annotations

from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from billing.errors import FieldError, InvalidInput
from billing.usage import EVENT_SCHEMA, INSTANT

_KEYS = {"mapping", "about", "missing", "zone", "columns", "event"}
_EVENT_KEYS = {"source", "id", "type", "customer", "subscription", "time", "data"}
_DEPTH_MAX = 8


@dataclass(frozen=True)
class UsageMapping:
    """A parsed mapping: expressions over the columns of a table whose cells are all text."""

    name: str
    missing: tuple[str, ...]
    columns: tuple[pl.Expr, ...]  # derived columns, usable below and by price lists
    fields: tuple[pl.Expr, ...]  # EVENT_SCHEMA in its order
    needs: frozenset[str]  # columns of the file that must be there

    @classmethod
    def parse(cls, form: MappingOf[str, Any]) -> UsageMapping:
        """Read the YAML/JSON form. InvalidInput names every bad place by its JSON pointer."""
        return _Parser().mapping(form)

    def with_derived(self, table: pl.DataFrame) -> pl.DataFrame:
        """The table with the mapping's derived columns added. InvalidInput when the file lacks a column."""
        lacking = sorted(self.needs - set(table.columns))
        if lacking:
            raise InvalidInput(
                f"the file lacks columns that mapping {self.name} reads: {', '.join(lacking)}",
                errors=[FieldError(f"/{name}", "column is missing") for name in lacking],
            )
        return table.with_columns(*self.columns)

    def events(self, table: pl.DataFrame) -> pl.DataFrame:
        """One row of EVENT_SCHEMA per row of the table, in order; what has no value is null (ingest says so)."""
        return self.with_derived(table).select(*self.fields)


class _Parser:
    def __init__(self) -> None:
        self.errors: list[FieldError] = []
        self.derived: set[str] = set()
        self.needs: set[str] = set()

    def mapping(self, form: MappingOf[str, Any]) -> UsageMapping:
        self._known(form, _KEYS, "")
        event = form.get("event")
        if not isinstance(event, dict):
            raise InvalidInput("a mapping has an `event`", errors=[FieldError("/event", "is missing")])
        self._known(event, _EVENT_KEYS, "/event")
        columns: list[pl.Expr] = []
        for name, value in (form.get("columns") or {}).items():
            columns.append(self._value(value, f"/columns/{name}").alias(name))
            self.derived.add(name)
        fields = [self._field(name, event, str(form.get("zone", "UTC"))) for name in EVENT_SCHEMA]
        if self.errors:
            raise InvalidInput("the mapping is not valid", errors=self.errors)
        return UsageMapping(
            name=str(form.get("mapping", "")),
            missing=tuple(str(text) for text in form.get("missing") or ()),
            columns=tuple(columns),
            fields=tuple(fields),
            needs=frozenset(self.needs),
        )

    def _field(self, name: str, event: MappingOf[str, Any], zone: str) -> pl.Expr:
        pointer = f"/event/{name}"
        if name == "data":
            return self._data(event.get("data") or {}, pointer).alias("data")
        if name not in event:
            if name != "subscription":
                self.errors.append(FieldError(pointer, "is missing"))
            return pl.lit(None, pl.String).alias(name)
        text = self._value(event[name], pointer)
        if name == "time":
            # A time without an offset is the zone's local time; one with an offset says it itself.
            with_offset = text.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
            local = text.str.replace(" ", "T").str.to_datetime(time_unit="us", strict=False)
            zoned = local.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
            return pl.coalesce(zoned.dt.convert_time_zone("UTC"), with_offset).cast(INSTANT).alias(name)
        return text.alias(name)

    def _data(self, form: MappingOf[str, Any], pointer: str) -> pl.Expr:
        # Each property as {"name":"value"} by the JSON encoder (it knows the escapes), then joined without braces;
        # a property without a value is left out.
        parts: list[pl.Expr] = []
        for name, value in form.items():
            text = self._value(value, f"{pointer}/{name}")
            encoded = pl.struct(text.alias(name)).struct.json_encode().str.slice(1)
            parts.append(pl.when(text.is_not_null()).then(encoded.str.head(-1)))
        if not parts:
            return pl.lit("{}")
        inside = pl.concat_str(parts, separator=",", ignore_nulls=True)
        return pl.concat_str(pl.lit("{"), inside, pl.lit("}"))

    def _value(self, form: Any, pointer: str, depth: int = 0) -> pl.Expr:
        if depth > _DEPTH_MAX:
            self.errors.append(FieldError(pointer, f"is nested more than {_DEPTH_MAX} deep"))
            return pl.lit(None, pl.String)
        if isinstance(form, dict):
            if set(form) == {"text"}:
                return pl.lit(str(form["text"]))
            if set(form) == {"column"}:
                return self._columns(form["column"])
            if set(form) <= {"join", "with"} and isinstance(form.get("join"), list):
                parts = [self._value(part, f"{pointer}/join/{n}", depth + 1) for n, part in enumerate(form["join"])]
                return pl.concat_str(parts, separator=str(form.get("with", "")))
            if {"present", "then"} <= set(form) <= {"present", "then", "else"}:
                there = pl.all_horizontal(*(self._columns(name).is_not_null() for name in form["present"]))
                then = self._value(form["then"], f"{pointer}/then", depth + 1)
                other = self._value(form["else"], f"{pointer}/else", depth + 1) if "else" in form else None
                return pl.when(there).then(then).otherwise(other)
        self.errors.append(FieldError(pointer, "is none of {column}, {text}, {join, with}, {present, then, else}"))
        return pl.lit(None, pl.String)

    def _columns(self, names: str | Sequence[str]) -> pl.Expr:
        names = [names] if isinstance(names, str) else list(names)
        self.needs.update(set(names) - self.derived)
        return pl.coalesce(*(pl.col(name) for name in names))

    def _known(self, form: MappingOf[str, Any], keys: set[str], pointer: str) -> None:
        self.errors.extend(FieldError(f"{pointer}/{key}", "is not known here") for key in form if key not in keys)
