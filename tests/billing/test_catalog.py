"""Catalog forms: what is read comes back, and every mistake is named with its place."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pytest
import yaml

from billing.catalog_forms import (
    check_references,
    parse_charge,
    parse_meter,
    parse_plan,
    parse_price,
    parse_tax_code,
    to_form,
)
from billing.errors import InvalidInput

PLAN: dict[str, Any] = yaml.load(  # as text, like every form
    """
code: basic
name: Basic
description: For a start
currency: EUR
interval: month
minimum: 10.00
charges:
  - code: base
    kind: recurring
    timing: arrears
    proration: second
    tax: standard
    name: Base fee
    unit: month
    price: {model: flat, amount: 31.00}
  - {code: setup, kind: one_off, tax: standard, price: {model: package, size: 2, amount: 5}}
  - code: gb
    kind: usage
    meter: gb
    tax: standard
    included: 5
    maximum: 20
    price: {model: graduated, tiers: [{up_to: 10, unit: 1, flat: 2}, {up_to: OPEN, unit: 0.5}]}
  - code: req
    kind: usage
    meter: gb
    tax: standard
    price_by: [region, class]
    prices:
      - {when: {region: eu}, price: {model: per_unit, unit: 1}, included: 1, minimum: 0, maximum: 3}
      - price:
          model: bands
          bands: [{days: [mon, sun], from: "22:00", to: "06:00", unit: 1}, {unit: 0}]
          otherwise: 2
  - code: pay
    kind: usage
    meter: gb
    tax: standard
    price:
      model: percentage
      percent: 1.4
      per_event: 0.25
      min_per_event: 0.5
      max_per_event: 5
      free_events: 2
      free_value: 9
  - {code: value, kind: usage, meter: gb, tax: standard, price: {model: event_amount, property: eur}}
""",
    yaml.BaseLoader,
)
PLAN["charges"][2]["prorate_usage"] = True
PLAN["charges"][2]["price"]["tiers"][1]["up_to"] = None
METER = {
    "code": "gb",
    "event_type": "disk",
    "aggregation": "sum",
    "value": "gb",
    "filter": {"class": ["ssd", "hdd"]},
    "unit": "GB",
}


def errors_of(parse: Any, form: object, pointer: str = "") -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        parse(form, pointer)
    return {error.pointer: error.detail for error in caught.value.errors}


def test_forms_come_back_equal() -> None:
    plan = parse_plan(PLAN)
    assert parse_plan(to_form(plan)) == plan
    assert to_form(parse_plan(to_form(plan))) == to_form(plan)
    meter = parse_meter(METER)
    assert to_form(meter) == METER
    tax = parse_tax_code(
        {
            "code": "s",
            "name": "VAT",
            "percents": [{"from": "2007-01-01", "percent": "19"}, {"from": "2020-07-01", "percent": "16"}],
        }
    )
    assert parse_tax_code(to_form(tax)) == tax
    assert tax.percent_on(date(2006, 12, 31)) is None
    assert (tax.percent_on(date(2020, 6, 30)), tax.percent_on(date(2020, 7, 1))) == (Decimal(19), Decimal(16))


def test_defaults_are_the_rules_ones() -> None:
    charge = parse_charge({"code": "c", "kind": "usage", "meter": "m", "tax": "t", "price": {"model": "event_amount"}})
    assert (charge.timing, charge.proration, charge.prorate_usage) == ("arrears", "day", False)
    assert to_form(charge.rows[0].price) == {"model": "event_amount", "property": "amount"}
    assert (
        parse_charge({"code": "c", "kind": "recurring", "tax": "t", "price": {"model": "flat", "amount": "1"}}).timing
        == "advance"
    )


def test_all_mistakes_of_a_plan_are_named_at_once() -> None:
    bad = {
        **PLAN,
        "currency": "EUX",
        "interval": "fortnight",
        "minimum": "-1",
        "colour": "red",
        "charges": [
            {**PLAN["charges"][0], "price": {"model": "percentage", "percent": "1"}},
            {**PLAN["charges"][2], "meter": "", "included": 1.5, "price": {"model": "graduated", "tiers": [
                {"up_to": "10"}, {"up_to": "10", "unit": "0.1234567890123"}, {"up_to": None},
                {"up_to": "20", "units": "1"}]}},
            {**PLAN["charges"][2], "price": {"model": "tiered"}, "maximum": "1", "minimum": "2"},
            {"code": "minimum", "kind": "usage", "meter": "m", "tax": "t"},
        ],
    }  # fmt: skip
    assert set(errors_of(parse_plan, bad, "/publish/plan")) == {
        f"/publish/plan/{place}"
        for place in (
            "currency", "interval", "minimum", "colour",
            "charges/0/price/model",
            "charges/1/meter", "charges/1/included",
            "charges/1/price/tiers/1/up_to", "charges/1/price/tiers/1/unit",
            "charges/1/price/tiers/2/up_to", "charges/1/price/tiers/3/up_to", "charges/1/price/tiers/3/units",
            "charges/2/code", "charges/2/price/model", "charges/2/maximum",
            "charges/3/code", "charges/3/price",
        )
    }  # fmt: skip


@pytest.mark.parametrize(
    ("price", "places"),
    [
        ({"model": "graduated", "tiers": []}, {"/tiers"}),
        ({"model": "volume", "tiers": [{"up_to": "5", "unit": "1"}]}, {"/tiers/0/up_to"}),
        ({"model": "volume", "tiers": [{"up_to": "0", "unit": "1"}, {"up_to": None}]}, {"/tiers/0/up_to"}),
        ({"model": "package", "size": "0", "amount": "1"}, {"/size"}),
        ({"model": "per_unit", "unit": 0.1}, {"/unit"}),
        ({"model": "per_unit", "unit": "NaN"}, {"/unit"}),
        ({"model": "per_unit", "unit": "1e99"}, {"/unit"}),
        ({"model": "per_unit"}, {"/unit"}),
        ({"model": "flat", "amount": "1", "unit": "1"}, {"/unit"}),
        ({"model": "percentage", "percent": "1", "min_per_event": "5", "max_per_event": "1"}, {"/max_per_event"}),
        (
            {"model": "percentage", "percent": "1", "free_value": "-1", "free_events": "1.5"},
            {"/free_value", "/free_events"},
        ),
        ({"model": "bands", "bands": [{"days": ["mo"], "from": "25:00", "to": "24:01", "unit": "1"}], "otherwise": "1"},
         {"/bands/0/days/0", "/bands/0/from", "/bands/0/to"}),
        ("flat", {"", "/model"}),
    ],
)  # fmt: skip
def test_a_price_with_a_mistake_is_refused_at_its_place(price: object, places: set[str]) -> None:
    assert set(errors_of(parse_price, price)) == places


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({"included": "1", "price": {"model": "percentage", "percent": "1"}}, {"/included"}),
        ({"price_by": ["region"], "prices": []}, {"/prices", "/price"}),
        (
            {"price_by": ["x"], "price": None,
            "prices": [{"when": {"y": "a"}, "price": {"model": "flat", "amount": "1"}}],},
            {"/prices/0/when"},
        ),
        ({"timing": "advance"}, {"/timing"}),
        ({"kind": "recurring"}, {"/meter"}),
    ],
)  # fmt: skip
def test_a_charge_with_a_mistake_is_refused_at_its_place(changes: dict[str, Any], places: set[str]) -> None:
    form = {
        "code": "c",
        "kind": "usage",
        "meter": "m",
        "tax": "t",
        "price": {"model": "per_unit", "unit": "1"},
        **changes,
    }
    assert set(errors_of(parse_charge, form)) == places


def test_meters_say_what_they_lack() -> None:
    assert set(errors_of(parse_meter, {"code": "m", "event_type": "e", "aggregation": "sum"})) == {"/value"}
    assert set(errors_of(parse_meter, {"code": "m", "event_type": "e", "aggregation": "count", "value": "v"})) == {
        "/value"
    }
    assert set(errors_of(parse_meter, {"code": "m", "event_type": "e", "aggregation": "median", "value": "v"})) == {
        "/aggregation"
    }
    assert set(errors_of(parse_meter, {**METER, "filter": {"class": []}})) == {"/filter"}


def test_what_a_plan_refers_to_must_be_there_and_fit() -> None:
    plan = parse_plan(PLAN)
    meter = parse_meter(METER)
    assert check_references(plan, {"gb": meter}, ["standard"]) == []
    highest = parse_meter({**METER, "aggregation": "max"})
    assert [error.pointer for error in check_references(plan, {"gb": highest}, ["standard"], "/p")] == [
        "/p/charges/3/prices/1/price/model",
        "/p/charges/4/price/model",
    ]
    assert len(check_references(plan, {}, [])) == 6 + 4
