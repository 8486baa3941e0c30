"""The worked examples of prices, to the last digit: in columns, in fractions, and by the oracle."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from billing.catalog import PriceRow
from billing.catalog_forms import parse_price
from billing.money import NUMBER, minor_digits, round_amount
from billing.pricing import LineEvents, price_lines, price_parts, row_exactly
from billing.usage import INSTANT
from tests.oracle import pricing as oracle

FILES = sorted((Path(__file__).parent.parent / "cases" / "prices").glob("*.yaml"))


def _read(value: Any) -> Any:
    """Everything but null is read as text."""
    if isinstance(value, dict):
        return {key: _read(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_read(entry) for entry in value]
    return None if value == "null" else value


CASES = [case for path in FILES for case in _read(yaml.load(path.read_text(), yaml.BaseLoader))]


def _events(case: dict[str, Any]) -> list[tuple[datetime, str, Fraction]]:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        (
            datetime.fromisoformat(event["time"]).astimezone(UTC)
            if "time" in event
            else start + timedelta(seconds=place),
            event.get("id", str(place)),
            Fraction(event["value"]),
        )
        for place, event in enumerate(case.get("events", ()))
    ]


def _limit(case: dict[str, Any], key: str) -> Decimal | None:
    return Decimal(case[key]) if key in case else None


def _row(case: dict[str, Any]) -> PriceRow:
    return PriceRow(
        parse_price(case["price"]),
        (),
        _limit(case, "included") or Decimal(0),
        _limit(case, "minimum"),
        _limit(case, "maximum"),
    )


def _metered(case: dict[str, Any]) -> Fraction:
    if "quantity" in case or "events" not in case:
        return Fraction(case.get("quantity", "1"))
    return sum((value for _, _, value in _events(case)), Fraction(0))


def test_there_are_all_the_worked_examples() -> None:
    assert len(FILES) == 8
    assert len(CASES) == len({case["case"] for case in CASES}) > 150


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_a_worked_example_comes_out_in_fractions(case: dict[str, Any]) -> None:
    ordered = sorted(_events(case), key=lambda event: event[:2])
    events = LineEvents([time for time, _, _ in ordered], [value for _, _, value in ordered])
    metered = _metered(case)
    exact, parts = row_exactly(
        _row(case), metered, units=metered, events=events, timezone=case.get("timezone", "Europe/Berlin")
    )
    currency = case.get("currency", "EUR")
    assert str(round_amount(exact, currency)) == case["amount"]
    if "tiers" in case:
        stated = [(Fraction(tier["quantity"]), Fraction(tier["amount"])) for tier in case["tiers"]]
        assert [(part.quantity, part.amount) for part in parts] == stated
    by_oracle = oracle.amount(
        case["price"],
        metered,
        _events(case),
        included=Fraction(case.get("included", "0")),
        minimum=Fraction(case["minimum"]) if "minimum" in case else None,
        maximum=Fraction(case["maximum"]) if "maximum" in case else None,
        units=metered,
        timezone=case.get("timezone", "Europe/Berlin"),
    )
    assert exact == by_oracle
    assert oracle.rounded(by_oracle, minor_digits(currency)) == Fraction(case["amount"])


@pytest.mark.parametrize("timezone", sorted({case.get("timezone", "Europe/Berlin") for case in CASES}))
def test_all_worked_examples_come_out_in_columns_at_once(timezone: str) -> None:
    cases = [case for case in CASES if case.get("timezone", "Europe/Berlin") == timezone]
    lines = pl.DataFrame(
        {
            "line": pl.Series(range(len(cases)), dtype=pl.UInt32),
            "price": pl.Series(range(len(cases)), dtype=pl.UInt32),
            "quantity": pl.Series([_decimal(_metered(case)) for case in cases], dtype=NUMBER),
            "units": pl.Series([_decimal(_metered(case)) for case in cases], dtype=NUMBER),
        }
    )
    rows = [
        (line, time, key, "", _decimal(value)) for line, case in enumerate(cases) for time, key, value in _events(case)
    ]
    schema = {"line": pl.UInt32, "time": INSTANT, "id": pl.String, "source": pl.String, "value": NUMBER}
    events = pl.DataFrame(rows[::-1], schema=schema, orient="row")
    priced = price_lines(lines, [_row(case) for case in cases], events=events, timezone=timezone)
    for line, amount in priced.amounts.select("line", "amount").iter_rows():
        case = cases[line]
        exact = priced.fractions[line] if amount is None else amount
        assert str(round_amount(exact, case.get("currency", "EUR"))) == case["amount"], case["case"]
        if "tiers" in case and amount is not None:
            parts = priced.tiers.filter(pl.col("line") == line)
            stated = [(Decimal(tier["quantity"]), Decimal(tier["amount"])) for tier in case["tiers"]]
            assert list(zip(parts["quantity"], parts["amount"], strict=True)) == stated, case["case"]
            assert sum(
                (Fraction(part.amount) for part in price_parts(rows_price(case), _charged(case))), Fraction(0)
            ) == sum((amount for _, amount in stated), Decimal(0))
    huge = {cases[line]["case"] for line in priced.fractions}
    assert all("huge" in name for name in huge), f"only huge figures are left to fractions, not {huge}"


def rows_price(case: dict[str, Any]) -> Any:
    return parse_price(case["price"])


def _charged(case: dict[str, Any]) -> Fraction:
    return max(_metered(case) - Fraction(case.get("included", "0")), Fraction(0))


def _decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)
