"""Lines in a usage record: split into local days only where the days give the line's quantity to the last digit."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal

import polars as pl

from billing.documents import Line
from billing.money import NUMBER
from pipelines.customer_documents import number_of, usage_rows
from pipelines.explain import EventsOfLine

LINE = Line(
    subscription="s1",
    charge="storage",
    start=datetime(2025, 12, 31, 23, tzinfo=UTC),
    end=datetime(2026, 1, 31, 23, tzinfo=UTC),
    quantity=Decimal("3.000000000001"),
    amount=Decimal("0.30"),
    tax_category="S",
    tax_percent=Decimal(19),
    name="Storage",
)


def events(*values: str, carried: bool = False) -> EventsOfLine:
    """Events at 23:30 UTC of consecutive days, which is the day after in Berlin."""
    times = [datetime(2026, 1, 9 + at, 23, 30, tzinfo=UTC) for at in range(len(values))]
    columns = {"time": times, "carried": [carried] * len(values)}
    frame = pl.DataFrame(columns, schema_overrides={"time": pl.Datetime("us", "UTC")})
    return EventsOfLine(frame.with_columns(value=pl.Series([Decimal(one) for one in values], dtype=NUMBER)))


def days_of(line: Line, kind: str, found: EventsOfLine | None) -> list[tuple[date | None, Decimal]]:
    rows = usage_rows(line, "RE-1 / 1", kind, found, "Europe/Berlin")
    assert sum((row.quantity for row in rows), Decimal(0)) == line.quantity
    return [(row.day, row.quantity) for row in rows]


def test_days_that_add_up_are_shown_by_local_day() -> None:
    assert days_of(LINE, "sum", events("1", "2.000000000001")) == [
        (date(2026, 1, 10), Decimal(1)), (date(2026, 1, 11), Decimal("2.000000000001")),
    ]  # fmt: skip
    counted = replace(LINE, quantity=Decimal(2))
    assert days_of(counted, "count", events("7", "7")) == [(date(2026, 1, 10), 1), (date(2026, 1, 11), 1)]


def test_what_does_not_add_up_or_is_no_sum_is_one_row() -> None:
    whole = [(None, LINE.quantity)]
    assert days_of(LINE, "sum", events("1", "2")) == whole  # a trillionth is missing
    assert days_of(LINE, "max", events("1", "2.000000000001")) == whole
    assert days_of(replace(LINE, correction=True), "sum", events("1", "2.000000000001")) == whole
    assert days_of(LINE, "sum", None) == whole
    assert days_of(LINE, "sum", events("3.000000000001", carried=True)) == whole


def test_numbers_of_different_customers_and_days_differ() -> None:
    first, last = date(2026, 1, 1), date(2026, 1, 31)
    assert number_of("usage_record", "acme", first, last) == "VN-acme-2026-01"
    assert number_of("usage_record", "acme", first, date(2026, 1, 30)) == "VN-acme-20260101-20260130"
    assert number_of("reminder", "acme", last, last) == "MA-acme-20260131"
    codes = ["a/b", "a-b", "a b", "a" * 40, "a" * 41, "a" * 42]
    assert len({number_of("usage_record", code, first, last) for code in codes}) == len(codes)
    days = number_of("reminder", "acme", date(2026, 1, 5), date(2026, 2, 6))
    assert number_of("reminder", "acme-20260105", date(2026, 2, 6), date(2026, 2, 6)) != days
