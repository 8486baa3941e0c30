"""The written form of everything in the catalog: read and written again it is the same, without defaults."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from billing.catalog import (
    Band,
    Bands,
    Charge,
    EventAmount,
    Flat,
    Graduated,
    Package,
    Percentage,
    PerUnit,
    Price,
    PriceRow,
    Tier,
    Volume,
)
from billing.catalog_forms import (
    check_references,
    parse_charge,
    parse_meter,
    parse_plan,
    parse_price,
    parse_tax_code,
    price_misfit,
    to_form,
)

ONE, HALF = Decimal(1), Decimal("0.5")
PRICES: list[tuple[dict[str, Any], Price]] = [
    ({"model": "flat", "amount": "31"}, Flat(Decimal(31))),
    ({"model": "per_unit", "unit": "-0.000000000001"}, PerUnit(Decimal("-1e-12"))),
    ({"model": "graduated", "tiers": [{"up_to": "10", "unit": "1", "flat": "2"}, {"up_to": None}]},
     Graduated((Tier(Decimal(10), ONE, Decimal(2)), Tier(None)))),
    ({"model": "volume", "tiers": [{"up_to": None, "unit": "0.5"}]}, Volume((Tier(None, HALF),))),
    ({"model": "package", "size": "2", "amount": "5"}, Package(Decimal(2), Decimal(5))),
    ({"model": "percentage", "percent": "1.4"}, Percentage(Decimal("1.4"))),
    ({"model": "percentage", "percent": "100", "per_event": "0.25", "min_per_event": "0", "max_per_event": "0",
      "free_value": "9", "free_events": "2"},
     Percentage(Decimal(100), Decimal("0.25"), Decimal(0), Decimal(0), 2, Decimal(9))),
    ({"model": "event_amount", "property": "eur"}, EventAmount("eur")),
    ({"model": "bands", "bands": [{"days": ["mon", "sun"], "from": "22:05", "to": "06:00", "unit": "1"},
                                  {"from": "00:00", "to": "00:30", "unit": "0"}, {"unit": "3"}], "otherwise": "2"},
     Bands((Band(ONE, (0, 6), 1325, 360), Band(Decimal(0), (), 0, 30), Band(Decimal(3))), Decimal(2))),
]  # fmt: skip


@pytest.mark.parametrize(("form", "price"), PRICES, ids=[str(case[0]["model"]) for case in PRICES])
def test_a_price_is_read_and_written_field_by_field(form: dict[str, Any], price: Price) -> None:
    assert parse_price(form) == price
    assert to_form(price) == form


FLAT, UNIT = PRICES[0][0], {"model": "per_unit", "unit": "1"}
USAGE = {"code": "c", "kind": "usage", "meter": "m", "tax": "t", "price": UNIT}
ROWED = {"code": "r", "kind": "usage", "meter": "m", "tax": "t", "price_by": ["region", "class"], "prices": [
    {"when": {"class": "x", "region": "eu"}, "price": FLAT, "included": "1", "minimum": "0", "maximum": "3"},
    {"price": UNIT}]}  # fmt: skip
CHARGES: list[tuple[dict[str, Any], Charge]] = [
    (USAGE, Charge("c", "usage", "t", PerUnit(ONE), "arrears", meter="m")),
    ({**USAGE, "proration": "none", "included": "5", "minimum": "0", "maximum": "20", "name": "Gigabytes",
      "description": "by the hour", "unit": "GB"},
     Charge("c", "usage", "t", PerUnit(ONE), "arrears", "none", "m", Decimal(5), Decimal(0), Decimal(20), False, (), (),
            "Gigabytes", "by the hour", "GB")),
    ({**USAGE, "proration": "second", "prorate_usage": True},
     Charge("c", "usage", "t", PerUnit(ONE), "arrears", "second", "m", prorate_usage=True)),
    (ROWED, Charge("r", "usage", "t", None, "arrears", "day", "m", price_by=("region", "class"), prices=(
        PriceRow(Flat(Decimal(31)), (("class", "x"), ("region", "eu")), ONE, Decimal(0), Decimal(3)),
        PriceRow(PerUnit(ONE))))),
    ({"code": "b", "kind": "recurring", "timing": "advance", "tax": "t", "price": FLAT},
     Charge("b", "recurring", "t", Flat(Decimal(31)))),
    ({"code": "b", "kind": "recurring", "timing": "arrears", "tax": "t", "price": FLAT},
     Charge("b", "recurring", "t", Flat(Decimal(31)), "arrears")),
    ({"code": "s", "kind": "one_off", "tax": "t", "price": FLAT}, Charge("s", "one_off", "t", Flat(Decimal(31)))),
]  # fmt: skip


@pytest.mark.parametrize(("form", "charge"), CHARGES, ids=[" ".join(case[0]) for case in CHARGES])
def test_a_charge_is_read_and_written_field_by_field(form: dict[str, Any], charge: Charge) -> None:
    assert parse_charge(form) == charge
    assert to_form(charge) == form


def test_what_is_usual_need_not_be_said() -> None:
    assert parse_charge({**USAGE, "timing": "arrears", "proration": "day", "prorate_usage": False}) == CHARGES[0][1]
    assert parse_charge({"code": "b", "kind": "recurring", "tax": "t", "price": FLAT}) == CHARGES[4][1]
    assert parse_price({"model": "event_amount"}) == EventAmount("amount")
    assert parse_price({"model": "graduated", "tiers": [{}]}) == Graduated((Tier(None, Decimal(0), Decimal(0)),))


def test_a_charge_of_a_free_phase_keeps_its_rows_and_costs_nothing() -> None:
    nothing = PerUnit(Decimal(0))
    assert CHARGES[1][1].for_nothing().rows == (PriceRow(nothing),)
    assert [row.when for row in CHARGES[3][1].for_nothing().rows] == [row.when for row in CHARGES[3][1].rows]
    assert all(row == PriceRow(nothing, row.when) for row in CHARGES[3][1].for_nothing().rows)
    own = CHARGES[3][1].with_price(Flat(ONE))
    assert (own.rows, own.price_by) == ((PriceRow(Flat(ONE)),), ())


PLAN: dict[str, Any] = {
    "code": "p", "currency": "EUR", "interval": "quarter", "tax_behavior": "inclusive", "effective_from": "2026-07-01",
    "minimum": {"amount": "10", "tax": "t"}, "charges": [case[0] for case in CHARGES[1:2] + CHARGES[3:5]],
    "name": "Plan", "description": "All of it", "phases": [
        {"code": "trial", "name": "Try it", "for": "14 days", "free": True},
        {"code": "intro", "for": "3 months", "discount": {"percent": "50", "charges": ["b", "c"]}, "minimum": "0"},
        {"code": "ramp", "for": "1 month", "discount": "10", "prices": {"b": {"model": "flat", "amount": "1"}}},
        {"code": "other", "for": "1 day", "charges": [USAGE]},
        {"code": "regular"},
    ],
    "trial_end": "cancel",
}  # fmt: skip
FORMS: list[tuple[Callable[[object], Any], dict[str, Any]]] = [
    (parse_plan, PLAN),
    (parse_plan, {"code": "p", "currency": "JPY", "interval": "week", "charges": [USAGE]}),
    (parse_plan, {"code": "p", "currency": "EUR", "interval": "month", "minimum": "0", "charges": [USAGE]}),
    (parse_meter, {"code": "m", "event_type": "e", "aggregation": "count"}),
    (parse_meter, {"code": "m", "event_type": "e", "aggregation": "sum", "value": "v", "unit": "GB", "name": "M",
                   "filter": {"a": ["x", "y"], "b": ["z"]}, "description": "D"}),
    (parse_tax_code, {"code": "t", "percents": [{"from": "2007-01-01", "percent": "19"},
                                                {"from": "2020-07-01", "percent": "0"}],
                      "name": "VAT", "description": "usual"}),
]  # fmt: skip


@pytest.mark.parametrize(("parse", "form"), FORMS, ids=[case[0].__name__ for case in FORMS])
def test_a_form_is_written_as_it_was_read(parse: Callable[[object], Any], form: dict[str, Any]) -> None:
    value = parse(form)
    assert to_form(value) == form
    assert parse(to_form(value)) == value


def test_a_plan_finds_its_charges_by_code() -> None:
    plan = parse_plan(PLAN)
    assert plan.charge("r") == CHARGES[3][1]
    assert plan.charge("nothing") is None
    assert plan.charge_codes == {"b", "c", "r"}


def test_references_that_lead_nowhere_are_named_with_their_place() -> None:
    meters = {"m": parse_meter({"code": "m", "event_type": "e", "aggregation": "max", "value": "v"})}
    plan = parse_plan({**PLAN, "phases": [], "trial_end": "continue"} | {"phases": None, "trial_end": None})
    assert check_references(plan, meters, ["t"], "/plan") == []
    errors = {one.pointer: one.detail for one in check_references(plan, {}, [], "/plan")}
    assert errors == {
        "/plan/minimum/tax": "there is no tax code 't'",
        "/plan/charges/0/tax": "there is no tax code 't'",
        "/plan/charges/0/meter": "there is no meter 'm'",
        "/plan/charges/1/tax": "there is no tax code 't'",
        "/plan/charges/1/meter": "there is no meter 'm'",
        "/plan/charges/2/tax": "there is no tax code 't'",
    }


@pytest.mark.parametrize("aggregation", ["count", "sum", "max", "min", "latest", "unique_count", "time_weighted_sum"])
def test_a_price_of_single_events_needs_a_meter_that_adds_them_up(aggregation: str) -> None:
    value = {} if aggregation == "count" else {"value": "v"}
    meter = parse_meter({"code": "m", "event_type": "e", "aggregation": aggregation, **value})
    words = {
        "percentage": None if aggregation == "sum" else
        f"percentage prices each event's value: its meter must be a sum, not {aggregation}",
        "bands": None if aggregation in ("sum", "count") else
        f"bands price each event's quantity: their meter must be a sum or a count, not {aggregation}",
    }  # fmt: skip
    for form, price in PRICES:
        assert price_misfit(price, meter) == words.get(form["model"])
