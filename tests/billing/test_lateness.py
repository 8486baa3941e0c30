"""Late by position, against every finalised run: for good, and never what was billed in time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from billing.errors import InvalidInput
from billing.lateness import behind, reasons_of, runs_before
from billing.master import MasterData
from billing.steps.tenant import settings_form
from billing.usage import EVENT_SCHEMA

STEPS: list[dict[str, Any]] = [
    {"at": "2026-01-01", "tax_code": {"code": "standard", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
    {"at": "2026-01-01", "meter": {"code": "calls", "event_type": "call", "aggregation": "count"}},
    {"at": "2026-01-01", "publish": {"plan": {
        "code": "payg", "currency": "EUR", "interval": "month",
        "charges": [{"code": "calls", "kind": "usage", "meter": "calls", "tax": "standard",
                     "price": {"model": "per_unit", "unit": "1"}}],
    }}},
    {"at": "2026-01-01", "customer": {"code": "acme", "name": "ACME", "country": "DE"}},
    {"at": "2026-01-01", "subscribe": {"code": "s1", "customer": "acme", "plan": "payg", "anchor": "calendar"}},
]  # fmt: skip
RUNS: list[dict[str, Any]] = [
    {"at": "2026-02-01", "bill_run": {"id": "r1", "up_to": "2026-02-01", "cut": {"0": 10, "1": 4}}},
    {"at": "2026-03-01", "bill_run": {"id": "r2", "up_to": "2026-03-01", "cut": {"0": 20, "1": 9}}},
]
NOW = datetime(2026, 4, 10, tzinfo=UTC)


def tenant(late_usage: str = "reject") -> MasterData:
    start = MasterData.start({"currency": "EUR", "timezone": "UTC", "country": "DE", "late_usage": late_usage})
    return start.apply_all([*STEPS, *RUNS])


def at(*events: tuple[int, int, int]) -> pl.DataFrame:
    """Events of (lane, number, month of 2026)."""
    rows = [("a", f"e{n}", "call", "acme", None, datetime(2026, month, 15, tzinfo=UTC), "{}", lane, number)
            for n, (lane, number, month) in enumerate(events)]  # fmt: skip
    schema = pl.Schema({**EVENT_SCHEMA, "lane": pl.UInt16, "number": pl.UInt64})
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_an_event_is_late_if_a_run_with_its_cut_before_it_billed_its_period() -> None:
    events = at(
        (0, 10, 1), (0, 11, 1), (1, 5, 1), (0, 20, 2), (0, 21, 2), (0, 21, 1), (0, 15, 2), (0, 30, 3), (2, 0, 1)
    )
    assert runs_before(events, tenant()).to_list() == [0, 1, 1, 1, 2, 2, 1, 2, 2]
    assert reasons_of(events, tenant(), NOW).to_list() == [
        None, "late", "late", None, "late", "late", None, None, "late"
    ]  # fmt: skip


def test_only_tenants_that_reject_late_usage_have_any() -> None:
    assert reasons_of(at((0, 21, 1)), tenant("delta"), NOW).to_list() == [None]


def test_what_a_run_closed_stays_closed_and_what_was_open_is_not_closed_by_a_change_of_the_setting() -> None:
    """So no event that counted is late afterwards, and none that was late counts: bills that were made stay right."""
    start = MasterData.start({"currency": "EUR", "timezone": "UTC", "country": "DE"})
    rejects = {"at": "2026-02-10", "settings": {"late_usage": "reject"}}
    after_run = (0, 11, 1), (0, 21, 1), (0, 21, 2), (0, 31, 3)
    opened = start.apply_all([*STEPS, RUNS[0], rejects])
    assert reasons_of(at(*after_run), opened, NOW).to_list() == [None] * 4, "the run before let late usage in"
    closed = opened.apply(RUNS[1])
    assert [mark.closes for mark in closed.runs] == [False, True]
    assert reasons_of(at(*after_run), closed, NOW).to_list() == [None, "late", "late", None]
    third = {"at": "2026-04-01", "bill_run": {"id": "r3", "up_to": "2026-04-01", "cut": {"0": 30, "1": 19}}}
    again = closed.apply_all([{"at": "2026-03-10", "settings": {"late_usage": "reissue"}}, third])
    assert reasons_of(at(*after_run), again, NOW).to_list() == [None, "late", "late", None]
    assert MasterData.from_bytes(again.to_bytes()) == again
    assert MasterData.from_bytes(again.subset(["acme"]).to_bytes()).closing_runs == closed.closing_runs


def test_settings_change_what_they_name_and_every_mistake_has_its_place() -> None:
    start = MasterData.start({"currency": "EUR", "timezone": "UTC", "country": "DE",
                              "settings": {"unique_within_customer": ["old", 7]}})  # fmt: skip
    assert settings_form(start.tenant) == {
        "late_usage": "delta", "future_limit": "1h", "unique_within_customer": ["old"]
    }  # fmt: skip
    one = start.apply({"at": NOW.isoformat(), "settings": {"future_limit": "90m"}})
    two = one.apply({"at": NOW.isoformat(), "settings": {"unique_within_customer": ["a", "b", "a"]}})
    assert settings_form(two.tenant) == {
        "late_usage": "delta", "future_limit": "90m", "unique_within_customer": ["a", "b"]
    }  # fmt: skip
    assert two.rating_book().future_limit == timedelta(minutes=90)
    with pytest.raises(InvalidInput) as wrong:
        two.apply({"at": NOW.isoformat(), "settings": {
            "late_usage": "never", "future_limit": "400d", "unique_within_customer": ["x", ""], "currency": "USD",
        }})  # fmt: skip
    assert [error.pointer for error in wrong.value.errors] == [
        "/settings/late_usage", "/settings/future_limit", "/settings/unique_within_customer/1", "/settings/currency"
    ]  # fmt: skip
    for form in ({}, {"unique_within_customer": "gateway"}, {"future_limit": "soon"}, []):
        with pytest.raises(InvalidInput):
            two.apply({"at": NOW.isoformat(), "settings": form})


def test_who_has_made_invoices_again_is_given_all_documents_for_ever() -> None:
    master = tenant("reissue")
    assert master.needs_all_documents("acme")
    delta = master.apply({"at": NOW.isoformat(), "settings": {"late_usage": "delta"}})
    assert delta.needs_all_documents("acme"), "what was cancelled and made again lies among the older ones"
    assert not tenant("delta").needs_all_documents("acme")


def test_what_somebody_decided_counts_although_it_is_late() -> None:
    events = at((0, 21, 1), (0, 21, 1)).with_columns(counts_late=pl.Series([True, False]))
    assert reasons_of(events, tenant(), NOW).to_list() == [None, "late"]


def test_other_reasons_come_first_and_a_run_without_a_cut_makes_nothing_late() -> None:
    unknown = at((0, 21, 1)).with_columns(customer=pl.lit("nobody"))
    assert reasons_of(unknown, tenant(), NOW).to_list() == ["unknown_customer"]
    old = {"at": "2026-03-01", "bill_run": {"up_to": "2026-03-01"}}
    start = MasterData.start({"currency": "EUR", "timezone": "UTC", "country": "DE", "late_usage": "reject"})
    assert reasons_of(at((0, 99, 1)), start.apply_all([*STEPS, old]), NOW).to_list() == [None]


def test_behind_a_cut_is_what_lies_after_its_number_or_in_a_lane_that_it_did_not_know() -> None:
    assert behind(at((0, 3, 1), (0, 4, 1), (7, 0, 1)), {0: 3}).to_list() == [False, True, True]
