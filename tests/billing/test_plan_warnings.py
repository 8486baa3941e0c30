"""Prices that are never used: named with their place, never refused."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import flat, plan, usage

from billing.catalog import Band, Flat, PriceRow
from billing.catalog_forms import parse_plan
from billing.plan_warnings import hidden_bands, hidden_rows, plan_warnings

PRICE = {"model": "per_unit", "unit": "1"}


def band(unit: str = "1", **more: Any) -> dict[str, Any]:
    return {"unit": unit, **more}


def rows(*whens: dict[str, str]) -> dict[str, Any]:
    names = sorted({name for when in whens for name in when}) or ["r"]
    return usage(price_by=names, prices=[{"when": when, "price": PRICE} for when in whens])


@pytest.mark.parametrize(
    ("charge", "places"),
    [
        (rows({"r": "a"}, {"r": "b"}, {}), []),
        (rows({"r": "a"}, {}, {"r": "b"}), ["/prices/2"]),
        (rows({"r": "a"}, {"r": "a"}), ["/prices/1"]),
        (rows({"r": "a", "s": "x"}, {"r": "a"}, {"s": "x"}, {"r": "a", "s": "y"}), ["/prices/3"]),
        (rows({}, {}), ["/prices/1"]),
        (usage(price={"model": "bands", "bands": [band(), band(days=["mon"])], "otherwise": "1"}), ["/price/bands/1"]),
        (usage(price={"model": "bands", "bands": [band(days=["mon"]), band()], "otherwise": "1"}), []),
        (
            usage(
                price={
                    "model": "bands",
                    "bands": [
                        band(days=["sun"], **{"from": "22:00", "to": "06:00"}),
                        band(days=["mon"], to="06:00"),
                        band(days=["mon"], to="06:01"),
                    ],
                    "otherwise": "1",
                }
            ),
            ["/price/bands/1"],  # Sunday night runs into Monday
        ),
    ],
)
def test_what_is_never_used_is_named(charge: dict[str, Any], places: list[str]) -> None:
    found = plan_warnings(parse_plan(plan(flat("1"), charge)), "/plan")
    assert [one.pointer for one in found] == [f"/plan/charges/1{place}" for place in places]
    assert all(one.detail.startswith("is never used: ") for one in found)


@pytest.mark.parametrize(("percent", "warned"), [("100", []), ("108", ["/charges/1/price/percent"])])
def test_a_share_above_the_whole_is_named(percent: str, warned: list[str]) -> None:
    charge = usage(price={"model": "percentage", "percent": percent})
    assert [one.pointer for one in plan_warnings(parse_plan(plan(flat("1"), charge)))] == warned


def test_charges_of_phases_are_looked_at_too() -> None:
    form = plan(flat("1"), phases=[{"for": "1 month", "charges": [rows({}, {"r": "a"})]}, {}])
    (found,) = plan_warnings(parse_plan(form))
    assert found.pointer == "/phases/0/charges/0/prices/1"
    assert found.detail == "is never used: row 0 above takes all of its usage"


whens = st.dictionaries(st.sampled_from("rst"), st.sampled_from("ab"), max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(whens, max_size=8))
def test_a_hidden_row_is_one_that_no_event_reaches(made: list[dict[str, str]]) -> None:
    table = [PriceRow(Flat(Decimal(1)), tuple(sorted(when.items()))) for when in made]
    events = [{"r": r, "s": s, "t": t} for r in "abc" for s in "abc" for t in "abc"]

    def first(event: dict[str, str]) -> int | None:
        fits = (place for place, when in enumerate(made) if all(event[name] == value for name, value in when.items()))
        return next(fits, None)

    reached = {first(event) for event in events}
    hidden = {place for place, _ in hidden_rows(table)}
    # A row may also be out of reach by several others together; what is named is out of reach for certain.
    assert hidden.isdisjoint(reached)
    alone = {j for j in range(len(made)) for i in range(j) if made[i].items() <= made[j].items()}
    assert hidden == alone


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 6), max_size=3), st.integers(0, 23), st.integers(0, 24)), max_size=6))
def test_a_hidden_band_is_one_that_no_minute_reaches(made: list[tuple[set[int], int, int]]) -> None:
    bands = [Band(Decimal(1), tuple(sorted(days)), start * 60, end * 60) for days, start, end in made]

    def fits(one: Band, day: int, hour: int) -> bool:
        days = one.days or tuple(range(7))
        start, end = one.start // 60, one.end // 60
        if end > start:
            return day in days and start <= hour < end
        return (day in days and hour >= start) or ((day - 1) % 7 in days and hour < end)

    reached = {
        next((place for place, one in enumerate(bands) if fits(one, day, hour)), None)
        for day in range(7)
        for hour in range(24)
    }
    assert set(hidden_bands(bands)) == set(range(len(bands))) - reached
