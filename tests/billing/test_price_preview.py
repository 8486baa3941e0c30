"""One price asked without a contract: what it costs, and every mistake in the question by its place."""

from __future__ import annotations

from typing import Any

import pytest

from billing.errors import InvalidInput
from billing.forms import Form, Mistakes
from billing.price_preview import PricePreview, parse_price_asked, preview_price

TIERS = [{"up_to": "100", "unit": "0.10"}, {"up_to": None, "unit": "0.08"}]
GRADUATED = {"model": "graduated", "tiers": TIERS}


def preview(**asked: Any) -> PricePreview:
    mistakes = Mistakes()
    form = Form(asked, "", mistakes)
    price = parse_price_asked(form)
    form.done()
    mistakes.check()
    return preview_price(price)


def mistakes_of(**asked: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as caught:
        preview(**asked)
    return [(error.pointer, error.detail) for error in caught.value.errors]


def test_a_quantity_in_tiers_shows_each_part() -> None:
    found = preview(price=GRADUATED, quantity="150.5")
    assert found == PricePreview(
        "14.04", "14.04", "150.5", "EUR",
        ({"quantity": "100", "amount": "10"}, {"quantity": "50.5", "amount": "4.04"}),
    )  # fmt: skip


def test_the_amount_is_rounded_once_to_the_currency() -> None:
    price = {"model": "per_unit", "unit": "0.0055"}
    assert (preview(price=price).amount, preview(price=price).exact) == ("0.01", "0.0055")  # quantity 1
    assert preview(price=price, quantity="100", currency="JPY").amount == "1"
    assert preview(price=price, quantity="1000", currency="KWD").amount == "5.500"


def test_quantity_zero_costs_nothing_as_text_and_as_number() -> None:
    assert preview(price={"model": "flat", "amount": "5"}, quantity="0").amount == "0.00"
    assert preview(price={"model": "flat", "amount": "5"}, quantity=0).amount == "0.00"


def test_included_minimum_and_maximum_hold() -> None:
    price = {"model": "per_unit", "unit": "1"}
    assert preview(price=price, quantity="15", included="10").amount == "5.00"
    assert preview(price=price, quantity="2", minimum="5").amount == "5.00"
    assert preview(price=price, quantity="20", maximum="7").amount == "7.00"


def test_events_are_priced_one_by_one_in_their_order() -> None:
    price = {"model": "percentage", "percent": "1", "free_events": "1"}
    first = [{"value": "100"}, {"value": "200"}]
    assert preview(price=price, events=first).amount == "2.00"
    timed = [{"value": "100", "time": "2026-01-02"}, {"value": "200", "time": "2026-01-01"}]
    assert preview(price=price, events=timed).amount == "1.00"
    named = [{"value": "100", "id": "b"}, {"value": "200", "id": "a"}]
    assert preview(price=price, events=named).amount == "1.00"
    own = preview(price={"model": "event_amount", "property": "cost"}, events=[{"value": "1.5"}, {"value": "2"}])
    assert (own.amount, own.quantity) == ("3.50", "3.5")


def test_bands_go_by_the_timezone() -> None:
    bands = [{"from": "00:00", "to": "06:00", "unit": "1"}]
    price = {"model": "bands", "bands": bands, "otherwise": "2"}
    events = [{"value": "10", "time": "2026-01-01T05:30:00Z"}]
    assert preview(price=price, events=events, timezone="UTC").amount == "10.00"
    assert preview(price=price, events=events).amount == "20.00"  # 06:30 in Berlin


def test_every_mistake_is_named_by_its_place() -> None:
    assert mistakes_of(price=GRADUATED, currency="EUX", timezone="Mars/North", quantity="many", colour="red") == [
        ("/currency", "'EUX' is no current currency of ISO 4217"),
        ("/timezone", "'Mars/North' is no IANA time zone"),
        ("/quantity", "a decimal number is needed, as text"),
        ("/colour", "unknown key 'colour'"),
    ]
    assert mistakes_of(price=GRADUATED, quantity="1", events=[]) == [("/quantity", "either `quantity` or `events`")]
    assert mistakes_of(price=GRADUATED, events=[{"value": "x"}, {"time": "2026-01-01"}]) == [
        ("/events/0/value", "a decimal number is needed, as text"),
        ("/events/1/value", "is missing"),
    ]
    assert [pointer for pointer, _ in mistakes_of(quantity="1")] == ["/price"]
