"""Prices in columns against the same prices in fractions: to the last digit, and which of them columns cannot hold."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import polars as pl
import pytest

from billing.catalog import PriceRow
from billing.catalog_forms import parse_price
from billing.money import NUMBER
from billing.pricing import LineEvents, Priced, price_lines, price_parts, row_exactly
from billing.usage import INSTANT

START = datetime(2026, 1, 1, tzinfo=UTC)
EVENTS = {"line": pl.UInt32, "time": INSTANT, "id": pl.String, "source": pl.String, "value": NUMBER}
Lines = list[tuple[int, str | None, str]]  # price, quantity, units
TIERS = [{"up_to": "10", "unit": "1.000000000001", "flat": "3"}, {"up_to": "20.5", "unit": "0.5"},
         {"up_to": None, "unit": "0.25", "flat": "0.000000000001"}]  # fmt: skip


def row(price: dict[str, Any], **limits: str) -> PriceRow:
    made = {key: Decimal(value) for key, value in limits.items()}
    return replace(PriceRow(parse_price(price)), **made)


def priced(rows: list[PriceRow], lines: Lines, events: pl.DataFrame | None = None, **odd: Any) -> Priced:
    frame = pl.DataFrame(
        {
            "line": pl.Series(range(len(lines)), dtype=pl.UInt32),
            "price": [price for price, _, _ in lines],
            "quantity": pl.Series([quantity and Decimal(quantity) for _, quantity, _ in lines], dtype=NUMBER),
            "units": pl.Series([Decimal(units) for _, _, units in lines], dtype=NUMBER),
        }
    )
    return price_lines(frame, rows, events=events, timezone="Europe/Berlin", **odd)


def amounts(made: Priced) -> dict[int, Decimal | Fraction]:
    return {
        line: made.fractions[line] if amount is None else amount
        for line, amount in made.amounts.select("line", "amount").iter_rows()
    }


FLAT = {"model": "flat", "amount": "7.000000000001"}
UNIT = {"model": "per_unit", "unit": "0.000000000003"}
PACKAGE = {"model": "package", "size": "0.3", "amount": "2.5"}
GRADUATED, VOLUME = {"model": "graduated", "tiers": TIERS}, {"model": "volume", "tiers": TIERS}
ROWS = [
    row(UNIT), row(FLAT), row(PACKAGE), row(GRADUATED), row(VOLUME),
    row(UNIT, included="2.5", minimum="0.000000000004"), row(UNIT, maximum="0.00000000002"),
    row(FLAT, included="10"), row(PACKAGE, included="1", minimum="1", maximum="60"),
    row(GRADUATED, included="10", maximum="12"), row(VOLUME, included="0.5", minimum="11"),
    row({"model": "per_unit", "unit": "-1.5"}, minimum="2"), row({"model": "volume", "tiers": [{"up_to": None}]}),
]  # fmt: skip
QUANTITIES = ["0", "0.000000000001", "0.3", "0.299999999999", "0.300000000001", "0.9", "1", "2.5", "9.999999999999",
              "10", "10.000000000001", "11", "20", "20.5", "20.500000000001", "31", "1000", "-1", "-0.3",
              "-15"]  # fmt: skip


def test_columns_give_the_amount_and_the_parts_that_fractions_give_to_the_last_digit() -> None:
    """All prices in one call, the lines of a price scattered among the others."""
    lines: Lines = [(price, quantity, units) for units, quantities in (("1", QUANTITIES), ("3", QUANTITIES[::3]))
                    for quantity in quantities for price in range(len(ROWS))]  # fmt: skip
    made = priced(ROWS, lines)
    assert made.fractions == {}
    assert made.amounts["line"].to_list() == list(range(len(lines)))
    tiers = {
        line: [tuple(part[2:]) for part in group.sort("tier").iter_rows()]
        for (line,), group in made.tiers.group_by("line", maintain_order=True)
    }
    for (line, amount), (price, quantity, units) in zip(amounts(made).items(), lines, strict=True):
        exact, parts = row_exactly(ROWS[price], Decimal(quantity), units=Decimal(units))
        assert Fraction(amount) == exact, (price, quantity, units)
        stated = [(part.up_to, part.unit, part.flat, part.quantity, part.amount) for part in parts]
        assert tiers.get(line, []) == stated, (price, quantity)
    assert made.tiers.equals(made.tiers.sort("line", "tier"))


@pytest.mark.parametrize(
    ("price", "quantity", "units", "amount"),
    [
        (0, "2", "9", "0.000000000006"),
        (1, "0.1", "3", "21.000000000003"),  # of usage once, times what was subscribed; what was used does not matter
        (1, "0", "3", "0"),
        (2, "0.9", "9", "7.5"),
        (2, "0.900000000001", "9", "10"),
        (3, "10", "9", "13.00000000001"),
        (3, "20.5", "9", "18.25000000001"),  # 10 x 1.000000000001 + 3, and 10.5 x 0.5
        (3, "21", "9", "18.375000000011"),  # and 0.5 x 0.25 + 0.000000000001
        (3, "-2", "9", "-2.000000000002"),  # what is given back pays the first unit, no flat
        (4, "10", "9", "13.00000000001"),
        (4, "10.000000000001", "9", "5.0000000000005"),
        (4, "-2", "9", "-2.000000000002"),
        (5, "2.5", "9", "0.000000000004"),  # all included, but a minimum is agreed
        (5, "-1", "9", "0.000000000004"),
        (6, "1000", "9", "0.00000000002"),
        (7, "10", "3", "0"),  # all of it included: nothing is begun
        (7, "10.1", "3", "21.000000000003"),
        (9, "15", "9", "8.000000000005"),  # 5 beyond what is included
        (9, "-5", "9", "-5.000000000005"),  # included is for what is used, not for what is given back
        (11, "4", "9", "2"),
    ],
)
def test_an_amount_that_a_clerk_can_check(price: int, quantity: str, units: str, amount: str) -> None:
    made = priced(ROWS, [(price, quantity, units)])
    assert amounts(made) == {0: Decimal(amount)}


# -- Prices of single events -------------------------------------------------------------------------------------------

PERCENT = {"model": "percentage", "percent": "2.9", "per_event": "0.3"}
BANDS = {"model": "bands", "otherwise": "1", "bands": [
    {"unit": "3", "days": ["fri"], "from": "22:00", "to": "02:00"}, {"unit": "2", "from": "08:00", "to": "18:00"},
    {"unit": "5", "days": ["sat", "sun"]}]}  # fmt: skip
EVENT_ROWS = [
    row(PERCENT), row({**PERCENT, "min_per_event": "0.5", "max_per_event": "2"}),
    row({**PERCENT, "free_events": 2}), row({**PERCENT, "free_value": "25"}),
    row({**PERCENT, "free_events": 1, "free_value": "12"}, minimum="1", maximum="3"),
    row({"model": "event_amount", "property": "v"}), row({"model": "event_amount", "property": "v"}, maximum="5"),
    row(BANDS), row(BANDS, included="11"), row(BANDS, included="1", minimum="4"),
    row({"model": "percentage", "percent": "0.0000000001"}), row({"model": "percentage", "percent": "100"}),
]  # fmt: skip
VALUES = ["10", "0", "-4", "2.5", "100", "12.000000000001", "0.000000000001"]
TIMES = ["2026-01-02T20:59:59Z", "2026-01-02T21:00:00Z", "2026-01-03T00:59:59Z", "2026-01-03T01:00:00Z",
         "2026-01-03T07:00:00Z", "2026-01-03T17:00:00Z", "2026-01-05T06:59:59Z"]  # Friday night to Monday  # fmt: skip


def events_of(lines: int, order: int) -> tuple[pl.DataFrame, dict[int, LineEvents]]:
    rows: list[tuple[Any, ...]] = []
    by_line: dict[int, LineEvents] = {}
    for line in range(lines):
        values = VALUES[line % 3 :] + VALUES[: line % 3]
        for place, (time, value) in enumerate(zip(TIMES, values, strict=True)):
            rows.append((line, datetime.fromisoformat(time), f"{place:02}", "s", Decimal(value)))
        by_line[line] = LineEvents([one[1] for one in rows[-len(TIMES) :]], [Fraction(value) for value in values])
    return pl.DataFrame(rows[::order], schema=EVENTS, orient="row"), by_line


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "backwards"])
def test_prices_of_single_events_give_what_fractions_give_in_whatever_order_they_come(order: int) -> None:
    lines: Lines = [(price, "1", "1") for _ in range(3) for price in range(len(EVENT_ROWS))]
    events, by_line = events_of(len(lines), order)
    made = priced(EVENT_ROWS, lines, events)
    assert made.fractions == {}
    assert made.amounts["line"].to_list() == list(range(len(lines)))
    for (line, amount), (price, _, _) in zip(amounts(made).items(), lines, strict=True):
        exact, parts = row_exactly(EVENT_ROWS[price], Decimal(1), events=by_line[line], timezone="Europe/Berlin")
        assert (Fraction(amount), parts) == (exact, []), price


def test_a_line_without_events_costs_nothing_but_its_minimum() -> None:
    made = priced(EVENT_ROWS, [(price, "0", "1") for price in range(len(EVENT_ROWS))], pl.DataFrame(schema=EVENTS))
    wanted = [Decimal(0)] * len(EVENT_ROWS)
    wanted[4], wanted[9] = Decimal(1), Decimal(4)
    assert list(amounts(made).values()) == wanted
    assert made.tiers.height == 0


@pytest.mark.parametrize(
    ("price", "amount"),
    [
        (0, "4.0625"),  # 120.5 x 2.9 % + 7 x 0.3, less the free digits: see below
        (5, "120.500000000002"),
    ],
)
def test_events_of_a_line_add_up(price: int, amount: str) -> None:
    events, _ = events_of(1, 1)
    made = amounts(priced([EVENT_ROWS[price]], [(0, "1", "1")], events))
    total = sum(map(Decimal, VALUES))
    wanted = total * Decimal("0.029") + Decimal("2.1") if price == 0 else Decimal(amount)
    assert made == {0: wanted}


# -- Where 38 digits do not suffice ------------------------------------------------------------------------------------

BIG = "99999999999999"  # 10^14 less one: the largest that columns hold
OVER = "100000000000000"
LIMITS: list[tuple[PriceRow, str, bool]] = [
    (row({"model": "per_unit", "unit": "1"}), BIG, True),
    (row({"model": "per_unit", "unit": "1"}), OVER, False),
    (row({"model": "per_unit", "unit": "-1"}), "-" + BIG, True),
    (row({"model": "per_unit", "unit": "0.001"}), OVER, False),  # the quantity alone must fit, too
    (row({"model": "per_unit", "unit": "10"}), "9999999999998.1", True),
    (row({"model": "per_unit", "unit": "10"}), "9999999999999.1", False),
    (row({"model": "package", "size": "1", "amount": "1"}), BIG, True),
    (row({"model": "package", "size": "1", "amount": "1"}), OVER, False),
    (row({"model": "package", "size": "0.000000000001", "amount": "1"}), "99", True),
    (row({"model": "package", "size": "0.000000000001", "amount": "1"}), "99.1", False),
    (row({"model": "package", "size": "1", "amount": "100"}), "1000000000000", False),
    (row({"model": "graduated", "tiers": [{"up_to": None, "unit": "1"}]}), BIG, True),
    (row({"model": "graduated", "tiers": [{"up_to": None, "unit": "1"}]}), OVER, False),
    (row({"model": "graduated", "tiers": [{"up_to": "5", "unit": "100"}, {"up_to": None, "unit": "0"}]}),
     "1000000000000", False),  # as if the dearest tier priced all of it
    (row({"model": "graduated", "tiers": [{"up_to": None, "unit": "1", "flat": "50000000000000"}]}),
     "49999999999999", True),
    (row({"model": "graduated", "tiers": [{"up_to": None, "unit": "1", "flat": "50000000000000"}]}),
     "50000000000000", False),
    (row({"model": "volume", "tiers": [{"up_to": None, "unit": "1"}]}), BIG, True),
    (row({"model": "volume", "tiers": [{"up_to": None, "unit": "1"}]}), OVER, False),
    (row({"model": "volume", "tiers": [{"up_to": "5", "unit": "100"}, {"up_to": None, "unit": "1"}]}),
     "900000000000", True),  # only the tier that holds it counts
    (row({"model": "volume", "tiers": [{"up_to": None, "unit": "1", "flat": "50000000000000"}]}),
     "49999999999999", True),
    (row({"model": "volume", "tiers": [{"up_to": None, "unit": "1", "flat": "50000000000000"}]}),
     "50000000000000", False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("price", "quantity", "held"), LIMITS, ids=[f"{case[0].price.model} {case[1]}" for case in LIMITS]
)
def test_columns_are_used_below_ten_to_the_fourteen_and_fractions_from_there(
    price: PriceRow, quantity: str, held: bool
) -> None:
    made = priced([price], [(0, quantity, "1")])
    exact, parts = row_exactly(price, Decimal(quantity))
    assert (made.fractions == {}) is held
    assert Fraction(amounts(made)[0]) == exact
    if not held:
        assert made.fractions == {0: exact}
        assert list(made.tier_parts[0]) == parts
        assert made.tiers.height == 0


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_the_largest_quantity_that_a_column_holds_is_priced_in_fractions(number: int) -> None:
    largest = "99999999999999999999999999.999999999999"
    for quantity in (largest, "-" + largest):
        exact, _ = row_exactly(ROWS[number], Decimal(quantity), units=Decimal(1))
        assert Fraction(amounts(priced([ROWS[number]], [(0, quantity, "1")]))[0]) == exact


def test_units_beyond_what_columns_hold_go_to_fractions() -> None:
    made = priced([row(FLAT)], [(0, "1", BIG), (0, "1", "1")])
    assert made.fractions == {0: Fraction(Decimal(BIG)) * Fraction("7.000000000001")}
    assert made.amounts["amount"].to_list() == [None, Decimal("7.000000000001")]


@pytest.mark.parametrize("number", range(len(EVENT_ROWS)))
def test_events_that_are_too_large_take_their_own_line_to_fractions_and_no_other(number: int) -> None:
    huge = [Decimal(value) for value in (OVER, BIG, BIG, "1")]
    rows = [(0, START + timedelta(seconds=n), f"{n}", "s", value) for n, value in enumerate(huge)]
    rows.append((1, START, "x", "s", Decimal("10")))
    events = pl.DataFrame(rows, schema=EVENTS, orient="row")
    price = EVENT_ROWS[number]
    made = priced([price], [(0, "1", "1"), (0, "1", "1")], events)
    assert set(made.fractions) == {0}
    for line, own in ((0, rows[:4]), (1, rows[4:])):
        of_line = LineEvents([one[1] for one in own], [Fraction(one[4]) for one in own])
        exact, _ = row_exactly(price, Decimal(1), events=of_line, timezone="Europe/Berlin")
        assert Fraction(amounts(made)[line]) == exact


# -- Shares of a period and quantities that no decimal holds -----------------------------------------------------------


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_an_odd_share_or_quantity_is_priced_in_fractions_and_the_others_beside_it_are_not(number: int) -> None:
    price, share, third, two = ROWS[number], Fraction(10, 31), Fraction(100, 3), Decimal(2)
    made = priced(
        [price], [(0, "15", "2"), (0, None, "2"), (0, "15", "2")], odd_shares={0: share}, odd_quantities={1: third}
    )
    wanted = {0: row_exactly(price, Decimal(15), units=two, share=share), 1: row_exactly(price, third, units=two)}
    assert made.fractions == {line: exact for line, (exact, _) in wanted.items()}
    assert made.tier_parts == {line: parts for line, (_, parts) in wanted.items()}
    assert Fraction(amounts(made)[2]) == row_exactly(price, Decimal(15), units=two)[0]


def test_a_share_scales_bounds_flats_included_and_limits_but_never_a_unit_price() -> None:
    half = Fraction(1, 2)
    exact, parts = row_exactly(row(GRADUATED, included="2", maximum="100"), Decimal(11), share=half)
    first, second = parts
    assert (first.quantity, first.up_to, first.flat) == (5, 5, Fraction(3, 2))  # half of 10, half of 3
    assert first.amount == 5 * Fraction("1.000000000001") + Fraction(3, 2)
    assert (second.quantity, second.up_to, second.unit, second.amount) == (5, Fraction("10.25"), half, Fraction(5, 2))
    assert exact == first.amount + second.amount
    assert row_exactly(row(UNIT, minimum="8"), Decimal(1), share=half)[0] == 4
    assert row_exactly(row({"model": "per_unit", "unit": "9"}, maximum="8"), Decimal(1), share=half)[0] == 4
    (only,) = price_parts(parse_price(VOLUME), Decimal(5), half)
    assert (only.quantity, only.up_to, only.flat) == (5, 5, Fraction(3, 2))
    (only,) = price_parts(parse_price(VOLUME), Decimal("5.1"), half)
    assert (only.up_to, only.unit, only.amount) == (Fraction("10.25"), half, Fraction("2.55"))
    assert price_parts(parse_price(UNIT), Decimal(5)) == []
    assert price_parts(parse_price(VOLUME), Decimal(0)) == []


def test_nothing_to_price_gives_empty_columns_of_the_same_kind() -> None:
    made = priced([row(UNIT)], [])
    full = priced([row(GRADUATED)], [(0, "1", "1")])
    assert made.amounts.schema == full.amounts.schema
    assert made.tiers.schema == full.tiers.schema
    assert (made.amounts.height, made.tiers.height, made.fractions, made.tier_parts) == (0, 0, {}, {})
