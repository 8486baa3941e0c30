"""Settings of bill runs: what they say, what rails find, when runs begin by themselves."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from billing.document_columns import DOCUMENTS_SCHEMA
from billing.errors import InvalidInput
from billing.guard_rails import LAST_SCHEMA, difference, held_by, outliers, stops
from billing.run_schedule import due_runs, next_run
from billing.run_settings import GuardRails, settings_of

BERLIN = "Europe/Berlin"


def test_rails_are_on_in_live_tenants_and_off_in_test_tenants_unless_said_otherwise() -> None:
    assert settings_of({}, "live").guard_rails == GuardRails(on=True)
    assert not settings_of({}, "test").guard_rails.on
    assert settings_of({"guard_rails": {"on": True}}, "test").guard_rails.on
    off = settings_of({"guard_rails": {"times_last": None, "change_percent": None}}, "live").guard_rails
    assert (off.on, off.times_last, off.change_percent) == (True, None, None)


@pytest.mark.parametrize(
    ("text", "window"), [("PT72H", timedelta(hours=72)), ("P3DT30M", timedelta(days=3, minutes=30))]
)
def test_a_collection_window_is_a_duration(text: str, window: timedelta) -> None:
    assert settings_of({"collection_window": text}, "live").collection_window == window


@pytest.mark.parametrize("text", ["72h", "P", "PT", "P90D", "PT-1H", ""])
def test_a_wrong_window_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        settings_of({"collection_window": text}, "live")
    assert [error.pointer for error in caught.value.errors] == ["/collection_window"]


def documents(*rows: tuple[str, str, str, str]) -> pl.DataFrame:
    columns = {"customer": 0, "type": 1, "currency": 2, "gross": 3}
    frame = pl.DataFrame({name: [row[place] for row in rows] for name, place in columns.items()})
    return frame.match_to_schema(DOCUMENTS_SCHEMA, missing_columns="insert").select(DOCUMENTS_SCHEMA.names())


def last(*rows: tuple[str, ...]) -> pl.DataFrame:
    """(customer, currency, highest invoice, highest sum of a run); without a sum it is the invoice's."""
    found = [(row[0], row[1], Decimal(row[2]), Decimal(row[-1])) for row in rows]
    return pl.DataFrame(found, schema=LAST_SCHEMA, orient="row")


HERE = {"a": "DE", "b": "DE", "c": "FR"}


def held(rails: GuardRails, made: pl.DataFrame, before: pl.DataFrame, **more: Any) -> dict[str, str]:
    given = {"countries": HERE, "known_countries": {"DE", "FR"}, "voided": set[str](), **more}
    return {one.customer: one.code for one in held_by(rails, made, before, **given)}


def test_an_invoice_over_three_times_the_highest_of_the_last_is_held_and_three_times_it_is_not() -> None:
    made = documents(("a", "invoice", "EUR", "300.00"), ("b", "invoice", "EUR", "300.01"), ("c", "invoice", "EUR", "9"))
    before = last(("a", "EUR", "100"), ("b", "EUR", "100"), ("b", "USD", "1"))
    assert held(GuardRails(), made, before) == {"b": "over_last_invoices"}
    assert held(GuardRails(times_last=None), made, before) == {}
    assert held(GuardRails(on=False), made, before) == {}
    note = documents(("b", "credit_note", "EUR", "300.01"))
    assert held(GuardRails(), note, before) == {}


def test_the_sum_of_a_customers_documents_is_compared_where_each_of_them_is_in_bounds() -> None:
    """Ten invoices of last month's size, by order, are ten times as much."""
    made = documents(
        *[("a", "invoice", "EUR", "100.00")] * 3,
        *[("b", "invoice", "EUR", "100.00")] * 3,
        ("b", "invoice", "EUR", "0.01"),
        *[("c", "invoice", "EUR", "150.00")] * 3,
        ("c", "credit_note", "EUR", "149.99"),  # 300.01 altogether
        ("d", "invoice", "EUR", "200.00"),
        ("d", "invoice", "USD", "200.00"),  # another currency is another matter
        *[("e", "invoice", "EUR", "99.00")] * 9,  # as always
        *[("f", "invoice", "EUR", "100.00")] * 9,  # his first run
        *[("g", "invoice", "EUR", "200.00")] * 2,
        ("g", "credit_note", "EUR", "150.00"),  # taken off
    )
    alone = [(customer, "EUR", "100") for customer in "abcd"]
    before = last(*alone, ("d", "USD", "100"), ("e", "EUR", "99", "891"), ("g", "EUR", "100"))
    found = held_by(GuardRails(), made, before, {}, (), ())
    assert [(one.customer, one.code) for one in found] == [("b", "over_last_runs"), ("c", "over_last_runs")]
    assert found[0].reason == "300.01 EUR on 4 documents is over 3 times the highest sum of the last runs (100.00)"
    anywhere = GuardRails(times_last=None, new_country=False)
    assert held(anywhere, made, before) == {}
    limits = replace(anywhere, limits={"EUR": Decimal(300)})
    assert held(limits, made, before) == dict.fromkeys("bcef", "over_limit")
    assert held(replace(limits, on=False), made, before) == {}


def test_limits_new_countries_and_voided_ids_hold_back() -> None:
    made = documents(("a", "invoice", "EUR", "10.01"), ("b", "invoice", "USD", "10.01"), ("c", "invoice", "EUR", "10"))
    rails = GuardRails(limits={"EUR": Decimal(10)})
    assert held(rails, made, last()) == {"a": "over_limit"}
    assert held(rails, made, last(), known_countries={"DE"}) == {"a": "over_limit", "c": "new_country"}
    assert held(rails, made, last(), known_countries=set()) == {"a": "over_limit"}  # the first run of all
    assert held(rails, made, last(), voided={"b"}) == {"a": "over_limit", "b": "id_voided"}


def test_a_run_waits_where_its_sum_is_far_from_the_last_ones() -> None:
    before = {"EUR": {"net": "100.00"}, "USD": {"net": "5.00"}}
    found = difference({"EUR": {"net": "150.00"}, "CHF": {"net": "1.00"}}, before)
    assert [(one, found[one]["change_percent"]) for one in found] == [("CHF", None), ("EUR", "50.0"), ("USD", "-100.0")]
    assert stops(GuardRails(change_percent=Decimal(50)), found, {"EUR", "CHF"}) == []
    (words,) = stops(GuardRails(change_percent=Decimal("49.9")), found, {"EUR", "CHF"})
    assert words == "the net in EUR is 150.00, in the last run it was 100.00: 50.0 %"


def test_outliers_come_with_the_largest_difference_first() -> None:
    made = documents(("a", "invoice", "EUR", "11"), ("b", "invoice", "EUR", "50"), ("c", "invoice", "EUR", "7"))
    found = outliers(made, last(("a", "EUR", "10"), ("b", "EUR", "100"), ("c", "EUR", "7")))
    assert [(one["customer"], one["gross"], one["highest_of_last"]) for one in found] == [
        ("b", "50.00", "100.00"),
        ("a", "11.00", "10.00"),
    ]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def test_a_run_is_due_at_the_local_end_of_its_period_and_window_also_over_a_clock_change() -> None:
    monthly = settings_of({"schedule": {"interval": "month"}, "collection_window": "PT72H"}, "live")
    march, april = at("2026-03-01T00:00+01:00"), at("2026-04-01T00:00+02:00")
    assert due_runs(monthly, BERLIN, march, april + timedelta(hours=72, seconds=-1)) == []
    (due,) = due_runs(monthly, BERLIN, march, april + timedelta(hours=72))
    assert (due.up_to, due.due_at) == (april, april + timedelta(hours=72))
    assert next_run(monthly, BERLIN, april) == due
    assert not due.is_missed(due.due_at + timedelta(hours=6))
    assert due.is_missed(due.due_at + timedelta(hours=6, seconds=1))


def test_after_a_downtime_all_that_were_missed_are_due_oldest_first_and_never_without_end() -> None:
    monthly = settings_of({"schedule": {"interval": "month"}}, "live")
    due = due_runs(monthly, BERLIN, at("2026-01-01T00:00+01:00"), at("2026-04-15T12:00+02:00"))
    assert [one.up_to for one in due] == [
        at("2026-02-01T00:00+01:00"), at("2026-03-01T00:00+01:00"), at("2026-04-01T00:00+02:00"),
    ]  # fmt: skip
    daily = settings_of({"schedule": {"interval": "day"}}, "live")
    assert len(due_runs(daily, BERLIN, at("1990-01-01T00:00+01:00"), at("2026-01-01T00:00+01:00"))) == 400
    assert due_runs(settings_of({}, "live"), BERLIN, at("1990-01-01T00:00+01:00"), at("2026-01-01T00:00+01:00")) == []
