"""Late by position, against every finalised run: for good, and never what was billed in time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import polars as pl

from billing.lateness import behind, reasons_of, runs_before
from billing.master import MasterData
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
