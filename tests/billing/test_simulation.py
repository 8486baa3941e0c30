"""A simulation bills the past again: under the same plan to the same cent, under another one as if it had been sold."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from lives import METER, NO_TAX, TAX, flat, plan, usage
from test_bill_properties import charges, lives, with_runs

from billing.catalog_forms import parse_plan
from billing.errors import InvalidInput, NotFound
from billing.master import MasterData
from billing.periods import parse_moment
from billing.scenario import documents_of
from billing.simulation import (
    MonthLine,
    Replay,
    customers_on,
    months_asked,
    of_customers,
    plan_asked,
    signed_lines,
    with_plan,
)
from billing.usage import EVENT_SCHEMA
from billing.verdicts import classify

FEW = settings(max_examples=15, deadline=None)
MONTHS = [date(2026, 1, 1), date(2026, 2, 1), date(2026, 3, 1)]
BOUNDS = [0, 31, 59, 90]  # the days after 1 January on which runs come: advance fees first, then each month's end
ZERO = Decimal(0)
BERLIN = ZoneInfo("Europe/Berlin")
Sums = dict[tuple[str, str, date], Decimal]


def start(form: dict[str, Any]) -> tuple[MasterData, pl.DataFrame]:
    """The master data of a life that is over, and its events that can be rated."""
    steps = [{"tax_code": TAX}, {"tax_code": NO_TAX}, {"meter": METER}]
    steps += [{"publish": {"plan": one}} for one in form["plans"]]
    steps += [{"customer": one} for one in form["customers"]]
    steps += [step for step in form["timeline"] if "usage" not in step]
    master = MasterData.start(form["tenant"]).apply_all(steps)
    sent = [
        {
            **{name: event.get(name) for name in EVENT_SCHEMA.names()},
            "time": parse_moment(event["time"], "Europe/Berlin"),
            "data": f'{{"v":"{event["data"]["v"]}"}}',
        }
        for step in form["timeline"]
        for event in step.get("usage", ())
    ]
    events = pl.DataFrame(sent, schema=EVENT_SCHEMA)
    now = parse_moment("2026-06-01", "Europe/Berlin")
    return master, events.filter(classify(events, master.rating_book(), now).is_null())


def replayed(master: MasterData, events: pl.DataFrame, months: list[date] = MONTHS, code: str = "p") -> Sums:
    replay = Replay(master, ["c"], months)
    for place in range(replay.runs):
        begin, end = replay.needs(place)
        within = pl.col("time") < end if begin is None else (pl.col("time") >= begin) & (pl.col("time") < end)
        replay.run(place, events.filter(within) if place else events.clear(), begin)
    assert replay.parked == {}
    return sums(replay.lines(code))


def sums(lines: Any) -> Sums:
    found: Sums = {}
    for line in lines:
        assert isinstance(line, MonthLine)
        found[line.currency, line.charge, line.month] = line.amount
    return {key: amount for key, amount in found.items() if amount}


def billed(form: dict[str, Any], code: str = "p") -> Sums:
    """What bill runs at the end of each month made of the plan's lines, by the month in which they begin."""
    found: Sums = {}
    for one in documents_of(with_runs(form, BOUNDS)):
        for line, amount in signed_lines(one.document):
            day = line.start.astimezone(BERLIN).date().replace(day=1)
            if line.plan == code and day in MONTHS:
                key = (one.document.currency, line.charge, day)
                found[key] = found.get(key, ZERO) + amount
    return {key: amount for key, amount in found.items() if amount}


@FEW
@given(lives())
def test_the_unchanged_plan_earns_what_bill_runs_at_each_month_s_end_billed(made: Any) -> None:
    form, _ = made
    master, events = start(form)
    base = of_customers(master, ["c"])
    assert replayed(base, events) == billed(form)
    same = with_plan(base, master.plans["p"][-1])
    assert replayed(same, events) == replayed(base, events)


@FEW
@given(lives(), charges())
def test_another_plan_earns_what_bill_runs_would_have_billed_had_it_always_been_sold(made: Any, other: Any) -> None:
    form, _ = made
    # A change of quantity names the charge f0; every drawn plan has one.
    tried = plan(*other)
    master, events = start(form)
    simulated = with_plan(of_customers(master, ["c"]), parse_plan(tried, version=2))
    sold = {**form, "plans": [tried, *form["plans"][1:]]}
    assert replayed(simulated, events) == billed(sold)


def test_a_month_in_the_middle_has_its_own_lines_only() -> None:
    """January's usage is billed on 1 February and April's fee on 1 March: neither is February's."""
    form = {
        "tenant": {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"},
        "plans": [plan(flat("10"), usage("2"))],
        "customers": [{"code": "c", "name": "C", "country": "DE"}],
        "timeline": [
            {"at": "2026-01-01", "subscribe": {"code": "s", "customer": "c", "plan": "p", "anchor": "calendar"}},
            {"at": "2026-03-02", "usage": [
                {"source": "t", "id": day, "type": "n", "customer": "c", "time": f"2026-{day}T10:00:00Z",
                 "data": {"v": "3"}} for day in ("01-15", "02-10", "03-01")
            ]},
        ],
    }  # fmt: skip
    master, events = start(form)
    found = replayed(of_customers(master, ["c"]), events, [date(2026, 2, 1)])
    month = date(2026, 2, 1)
    assert found == {("EUR", "base", month): Decimal("10.00"), ("EUR", "n", month): Decimal("6.00")}


def catalog() -> MasterData:
    steps = [{"tax_code": TAX}, {"tax_code": NO_TAX}, {"meter": METER}, {"customer": {"code": "c"}}]
    steps += [{"publish": {"plan": plan(flat("10"), usage("2", included="5"))}}]
    return MasterData.start({"currency": "EUR"}).apply_all(steps)


def test_other_prices_change_the_charges_they_name_and_leave_the_rest() -> None:
    price = {"model": "per_unit", "unit": "3"}
    tried = plan_asked(catalog(), {"prices": {"code": "p", "charges": [{"code": "n", "price": price}]}})
    assert (tried.version, [charge.code for charge in tried.charges]) == (2, ["base", "n"])
    assert tried.charges[1].included == 5
    assert tried.charges[1].price == parse_plan(plan(usage("3"))).charges[0].price
    free = plan_asked(catalog(), {"prices": {"code": "p", "charges": [{"code": "n", "included": None}]}})
    assert free.charges[1].included == 0


@pytest.mark.parametrize(
    ("form", "pointer"),
    [
        ({}, "/plan"),
        ({"plan": plan(flat("1")), "prices": {"code": "p"}}, "/plan"),
        ({"plan": plan(flat("-x"))}, "/plan/charges/0/price/amount"),
        ({"plan": {**plan(flat("1")), "currency": "USD"}}, "/plan/currency"),
        ({"plan": plan(usage(meter="none"))}, "/plan/charges/0/meter"),
        ({"prices": {"code": "p", "charges": [{"code": "x"}]}}, "/prices/charges/0/code"),
        ({"prices": {"code": "p", "charges": [{"code": "n", "tax": "none"}]}}, "/prices/charges/0"),
        (
            {"prices": {"code": "p", "charges": [{"code": "n", "price": {"model": "per_unit", "unit": "1,5"}}]}},
            "/prices/charges/0/price/unit",
        ),
        ({"prices": {"code": "p", "minimum": "-1"}}, "/prices/minimum"),
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_tried_is_refused_with_its_place(form: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        plan_asked(catalog(), form)
    assert refused.value.errors[0].pointer == pointer


def test_a_plan_that_nobody_sells_is_not_found() -> None:
    with pytest.raises(NotFound):
        plan_asked(catalog(), {"plan": plan(flat("1"), code="other")})


@pytest.mark.parametrize(
    ("first", "last", "pointer"),
    [
        ("2026-1", "2026-02", "/from"),
        ("2026-13", "2026-02", "/from"),
        (None, "2026-02", "/from"),
        ("2026-03", "2026-02", "/to"),
        ("2026-01", "2026-11", "/to"),
        ("2020-01", "2026-01", "/to"),
    ],
)
def test_months_that_are_none_or_not_over_are_refused(first: Any, last: Any, pointer: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        months_asked(first, last, date(2026, 11, 25))
    assert refused.value.errors[0].pointer == pointer


def test_months_are_all_from_the_first_to_the_last() -> None:
    assert months_asked("2025-12", "2026-02", date(2026, 3, 1)) == [
        date(2025, 12, 1),
        date(2026, 1, 1),
        date(2026, 2, 1),
    ]


def test_only_customers_with_a_contract_on_the_plan_are_simulated() -> None:
    steps = [{"publish": {"plan": plan(flat("1"), code="q")}}, {"customer": {"code": "d"}}]
    steps += [{"at": "2026-01-01", "subscribe": {"code": "s", "customer": "d", "plan": "q"}}]
    steps += [{"at": "2026-02-01", "change": {"subscription": "s", "plan": "p"}}]
    steps += [{"at": "2026-01-01", "subscribe": {"code": "t", "customer": "c", "plan": "q"}}]
    master = catalog().apply_all(steps)
    assert customers_on(master, "p") == ["d"]
    assert customers_on(master, "q") == ["c", "d"]
