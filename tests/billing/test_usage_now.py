"""Usage at a moment: what the running periods have used and cost so far, by meter and line."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from lives import METER, NO_TAX, flat, plan, usage

from billing.live_state import fold_days, nothing_used
from billing.master import MasterData
from billing.periods import parse_moment
from billing.usage import EVENT_SCHEMA
from billing.usage_now import MeterUsage, needed_from, usage_now, usage_now_live
from billing.verdicts import classify

LEVEL = {"code": "level", "event_type": "l", "aggregation": "time_weighted_sum", "value": "v"}


def at(text: str) -> Any:
    return parse_moment(text, "Europe/Berlin")


def master(
    *plans: dict[str, Any],
    then: tuple[dict[str, Any], ...] = (),
    meters: tuple[dict[str, Any], ...] = (METER, LEVEL),
    **tenant: str,
) -> MasterData:
    steps: list[dict[str, Any]] = [{"tax_code": NO_TAX}, *({"meter": one} for one in meters)]
    steps += [{"publish": {"plan": one}} for one in plans]
    steps += [{"customer": {"code": "c"}}]
    for number, one in enumerate(plans):
        form = {"code": f"s{number}", "customer": "c", "plan": one["code"], "anchor": "calendar"}
        steps.append({"at": "2026-01-01", "subscribe": form})
    start = MasterData.start({"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE", **tenant})
    return start.apply_all([*steps, *then])


def events(*values: tuple[str, str], type: str = "n") -> pl.DataFrame:
    rows = [
        {
            "source": "t",
            "id": f"{number}",
            "type": type,
            "customer": "c",
            "subscription": None,
            "time": at(time),
            "data": f'{{"v":"{value}"}}',
        }
        for number, (time, value) in enumerate(values)
    ]
    return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")


def test_only_the_running_period_counts_those_ahead_of_the_clock_included() -> None:
    used = events(("2026-01-31", "1"), ("2026-02-01", "2"), ("2026-02-11", "4"), ("2026-03-01", "8"))
    found = usage_now(master(plan(usage("0.005"))), "c", at("2026-02-10"), used)
    assert found.meters == (MeterUsage("n", "EUR", Decimal(6), Decimal("0.03")),)
    (line,) = found.lines
    assert (line.subscription, line.charge, line.when, line.quantity, line.cost) == (
        "s0",
        "n",
        None,
        6,
        Decimal("0.03"),
    )
    assert (line.start, line.end) == (at("2026-02-01"), at("2026-03-01"))


def test_a_meter_of_two_subscriptions_has_its_quantity_once_and_both_costs() -> None:
    found = usage_now(
        master(plan(usage()), plan(usage("2"), code="q")), "c", at("2026-02-10"), events(("2026-02-01", "3"))
    )
    assert found.meters == (MeterUsage("n", "EUR", Decimal(3), Decimal("9.00")),)
    assert [line.cost for line in found.lines] == [Decimal("3.00"), Decimal("6.00")]


def test_each_currency_stands_by_itself_and_the_tenants_is_preferred() -> None:
    dollars = {**plan(usage("2"), code="q"), "currency": "USD"}
    found = usage_now(master(dollars, plan(usage())), "c", at("2026-02-10"), events(("2026-02-01", "3")))
    assert [(one.currency, one.cost) for one in found.meters] == [("EUR", Decimal("3.00")), ("USD", Decimal("6.00"))]
    assert found.of("n", "USD").cost == Decimal("6.00")
    assert found.of("n", "CHF").currency == "EUR"


def test_a_level_counts_up_to_the_moment() -> None:
    level = {"code": "l", "kind": "usage", "meter": "level", "tax": "none", "price": {"model": "per_unit", "unit": "1"}}
    held = events(("2026-02-01", "2"), type="l")
    whole = master(plan(level))
    assert usage_now(whole, "c", at("2026-02-01T12:00:00+01:00"), held).of("level", "EUR").quantity == 24
    assert usage_now(whole, "c", at("2026-02-02"), held).of("level", "EUR").quantity == 48
    line = usage_now(whole, "c", at("2026-02-02"), held).lines[0]
    assert (line.start, line.end) == (at("2026-02-01"), at("2026-03-01"))  # the period, not what has passed of it


def test_rows_of_a_price_are_lines_of_their_own() -> None:
    rows = [
        {"when": {"v": "1"}, "price": {"model": "per_unit", "unit": "1"}},
        {"price": {"model": "per_unit", "unit": "2"}},
    ]
    charge = usage(price_by=["v"], prices=rows)
    found = usage_now(master(plan(charge)), "c", at("2026-02-10"), events(("2026-02-01", "1"), ("2026-02-02", "5")))
    assert [(line.when, line.cost) for line in found.lines] == [({"v": "1"}, Decimal(1)), (None, Decimal(10))]
    assert found.meters == (MeterUsage("n", "EUR", Decimal(6), Decimal("11.00")),)


def test_nothing_used_or_nothing_running_is_zero() -> None:
    whole = master(plan(flat("1"), usage()))
    nothing = pl.DataFrame(schema=EVENT_SCHEMA)
    assert usage_now(whole, "c", at("2026-02-10"), nothing).of("n", "EUR") == MeterUsage(
        "n", "EUR", Decimal(0), Decimal("0.00")
    )
    assert usage_now(whole, None, at("2026-02-10"), nothing).meters == ()
    assert usage_now(whole, "c", at("2025-12-31"), nothing).of("n", "EUR").cost == 0
    assert usage_now(whole, "c", at("2026-02-10"), nothing, "level").meters == ()


def test_events_are_needed_from_the_start_of_the_running_period_or_all_for_a_level() -> None:
    whole = master(plan(usage()))
    assert needed_from(whole, "c", at("2026-02-10")) == at("2026-02-01")
    assert needed_from(whole, "c", at("2025-12-01")) == at("2025-12-01")
    level = {"code": "l", "kind": "usage", "meter": "level", "tax": "none", "price": {"model": "per_unit", "unit": "1"}}
    assert needed_from(master(plan(usage(), level)), "c", at("2026-02-10")) is None


@pytest.mark.parametrize("now", ["2026-02-10", "2026-02-28T23:59:59+01:00"])
def test_what_shards_have_folded_says_the_same(now: str) -> None:
    rows = [
        {"when": {"v": "1"}, "price": {"model": "per_unit", "unit": "0.333"}},
        {"price": {"model": "graduated", "tiers": [{"up_to": "3", "unit": "2"}, {"unit": "0.7"}]}},
    ]
    whole = master(plan(usage(price_by=["v"], prices=rows)), plan(usage("0.005", minimum="20"), code="q"))
    times = ("2026-01-31T23:59:59.999999+01:00", "2026-02-01", "2026-02-01T12:00:00+01:00", "2026-02-09")
    used = events(*((time, value) for time in times for value in ("1", "2.5", "5")))
    book = whole.rating_book()
    found = usage_now(whole, "c", at(now), used)
    assert usage_now_live(whole, "c", at(now), fold_days(used, book)) == found
    assert found.of("n", "EUR").quantity == Decimal("25.5")
    assert usage_now_live(whole, "c", at(now), nothing_used(book)) == usage_now(whole, "c", at(now), used.clear())


def test_levels_events_ahead_of_the_clock_and_late_ones_are_for_the_log_to_say() -> None:
    level = {"code": "l", "kind": "usage", "meter": "level", "tax": "none", "price": {"model": "per_unit", "unit": "1"}}
    now = at("2026-02-10")
    whole, held = master(plan(usage())), master(plan(level))
    ahead = fold_days(events(("2026-02-11", "4")), whole.rating_book())
    assert usage_now_live(whole, "c", now, ahead) is None
    assert usage_now_live(held, "c", now, nothing_used(held.rating_book())) is None
    run = {"at": "2026-02-06", "bill_run": {"up_to": "2026-02-05", "cut": {"0": 3}}}
    late = master(plan(usage()), then=(run,), late_usage="reject")
    assert late.rating_book().rejects_late
    assert usage_now_live(late, "c", now, nothing_used(late.rating_book())) is None
    assert usage_now_live(late, "c", at("2026-03-10"), nothing_used(late.rating_book())) is not None


MORE = {"code": "m", "event_type": "n", "aggregation": "sum", "value": "w"}
COUNTED = {"code": "k", "event_type": "n", "aggregation": "count"}
RED = {"price_by": ["colour"], "prices": [{"when": {"colour": "red"}, "price": {"model": "per_unit", "unit": "3"}}]}
OWN_AMOUNT = {"price": {"model": "event_amount", "property": "w"}}
PAUSED = {"at": "2026-02-05", "pause": {"subscription": "s0"}}
IN_SUSPENSE: dict[str, tuple[MasterData, str]] = {
    "missing_property": (master(plan(usage(), usage(code="m", meter="m")), meters=(METER, MORE)), '{"v":"2"}'),
    "invalid_value": (master(plan(usage(), usage(code="k", meter="k")), meters=(METER, COUNTED)), '{"v":"x"}'),
    "no_price": (master(plan(usage()), plan(usage(**RED), code="q")), '{"v":"2","colour":"blue"}'),
    "amount missing": (master(plan(usage(**OWN_AMOUNT))), '{"v":"2"}'),
    "paused": (master(plan(usage()), plan(usage(), code="q"), then=(PAUSED,)), '{"v":"2"}'),
}


@pytest.mark.parametrize("reason", IN_SUSPENSE)
def test_what_is_in_suspense_is_counted_by_no_meter_of_the_shards_either(reason: str) -> None:
    whole, data = IN_SUSPENSE[reason]
    now, book = at("2026-02-10"), whole.rating_book()
    given = events(("2026-02-02", "1"), ("2026-02-06", "2")).with_columns(
        data=pl.Series(['{"v":"1","w":"1","colour":"red"}', data])
    )
    verdicts = classify(given, book, now)
    assert [one is None for one in verdicts] == [True, False]
    assert verdicts[1] in (reason, "missing_property")
    counted = usage_now(whole, "c", now, given.filter(verdicts.is_null()))
    assert usage_now_live(whole, "c", now, fold_days(given, book)) in (None, counted)


def test_what_cannot_be_in_suspense_for_one_alone_is_said_by_the_shards() -> None:
    """Another customer's pause, or a price of a plan that he has not, sends nobody to the log."""
    then = (
        {"customer": {"code": "d"}},
        {"at": "2026-01-01", "subscribe": {"code": "of-d", "customer": "d", "plan": "q", "anchor": "calendar"}},
        {"at": "2026-02-05", "pause": {"subscription": "of-d"}},
    )
    whole = master(plan(usage(**RED)), then=({"publish": {"plan": plan(usage(**OWN_AMOUNT), code="q")}}, *then))
    used = events(("2026-02-02", "1"), ("2026-02-06", "2")).with_columns(
        data=pl.Series(['{"v":"1","colour":"red"}', '{"v":"2","colour":"blue"}'])
    )
    book, now = whole.rating_book(), at("2026-02-10")
    assert classify(used, book, now).to_list() == [None, "no_price"]
    counted = usage_now(whole, "c", now, used[:1])
    assert usage_now_live(whole, "c", now, fold_days(used, book)) == counted
