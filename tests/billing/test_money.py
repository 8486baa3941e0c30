"""Exact numbers: what is read, how it is rounded, and that splits lose nothing."""

from __future__ import annotations

import ast
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.errors import InvalidInput
from billing.money import (
    MINOR_DIGITS,
    NUMBER,
    as_decimal,
    decimal_text,
    minor_digits,
    parse_number,
    plain,
    round_amount,
    round_half_away,
    rounded,
    shown_quantity,
    split_by_largest_remainder,
    whole_up_to,
)
from tests.oracle import pricing as oracle


@pytest.mark.parametrize(
    ("given_value", "number"),
    [
        ("1.5", "1.5"),
        ("1.50000000000000000000", "1.5"),
        ("-0.0", "0"),
        ("1e3", "1000"),
        ("1E-12", "0.000000000001"),
        (".5", "0.5"),
        ("+7", "7"),
        (12, "12"),
        (Decimal("0.10"), "0.1"),
        ("12345678901234567890123456.123456789012", "12345678901234567890123456.123456789012"),
    ],
)
def test_a_number_is_read_digit_for_digit(given_value: object, number: str) -> None:
    read = parse_number(given_value)
    assert read is not None
    assert format(read, "f") == number


@pytest.mark.parametrize(
    "given_value",
    ["", " 5", "5 ", "many", "NaN", "Infinity", "-inf", "1,5", "0x10", "1_000", "５", "0.1234567890123", "1e-13",
     "1.0000000000000000000000000000001", "1" * 27, "1" * 40, "1e26", "1e9999", "1e999999999", "0" * 101,
     10**5000, 1.5, True, None, [], {}],
    ids=lambda value: ascii(value)[:20].replace("\\", "") if not isinstance(value, int) or value < 10**20 else "huge",
)  # fmt: skip
def test_what_is_no_exact_number_within_the_limits_is_refused(given_value: object) -> None:
    assert parse_number(given_value) is None


numbers = st.decimals(min_value=-(10**12), max_value=10**12, places=12)


@settings(deadline=None)
@given(numbers, st.integers(0, 4))
def test_rounding_is_half_away_from_zero_in_every_form(number: Decimal, places: int) -> None:
    wanted = oracle.rounded(Fraction(number), places)
    assert Fraction(round_half_away(number, places)) == wanted
    assert round_half_away(number, places).as_tuple().exponent == -places
    column = pl.DataFrame({"n": [number]}, schema={"n": NUMBER}).select(rounded(pl.col("n"), places)).item()
    assert Fraction(column) == wanted


def test_amounts_have_the_minor_unit_of_their_currency() -> None:
    assert str(round_amount(Decimal("-0.005"), "EUR")) == "-0.01"
    assert str(round_amount(Fraction(-1, 1000), "EUR")) == "0.00"
    assert str(round_amount(Decimal("499.5"), "JPY")) == "500"
    assert str(round_amount(Decimal("0.0945"), "BHD")) == "0.095"
    assert (minor_digits("KRW"), minor_digits("CHF"), minor_digits("KWD"), minor_digits("CLF")) == (0, 2, 3, 4)
    assert len(MINOR_DIGITS) > 150
    for unknown in ("EUX", "eur", "", "DEM", "XXX"):
        with pytest.raises(InvalidInput):
            minor_digits(unknown)


def test_numbers_are_shown_without_exponents_and_spare_zeros() -> None:
    assert str(plain(Decimal("1E+3"))) == "1000"
    assert str(plain(Decimal("100.000"))) == "100"
    assert str(shown_quantity(Fraction(22, 3))) == "7.333333333333"
    assert decimal_text(Fraction(1, 8)) == "0.125"
    assert decimal_text(Fraction(22, 3)) == "22/3"
    assert decimal_text(Decimal("1E-12")) == "0.000000000001"
    assert as_decimal(Fraction(-7, 40)) == Decimal("-0.175")
    assert as_decimal(Fraction(1, 3)) is None


def test_the_worked_splits_come_out() -> None:
    tens = [Decimal(10), Decimal(10)]
    assert split_by_largest_remainder(Decimal("3.33"), tens, 2) == [Decimal("1.67"), Decimal("1.66")]
    assert split_by_largest_remainder(Decimal("3.33"), tens, 2, order=[1, 0]) == [Decimal("1.66"), Decimal("1.67")]
    assert split_by_largest_remainder(Decimal("-1"), [Decimal(1)] * 3, 2) == [
        Decimal("-0.34"), Decimal("-0.33"), Decimal("-0.33"),
    ]  # fmt: skip


@settings(deadline=None)
@given(
    st.integers(-(10**9), 10**9),
    st.lists(st.decimals(min_value=0, max_value=10**6, places=3), min_size=1, max_size=8).filter(any),
)
def test_the_parts_of_a_split_add_up_and_are_off_by_less_than_a_unit(cents: int, weights: list[Decimal]) -> None:
    total = Decimal(cents).scaleb(-2)
    parts = split_by_largest_remainder(total, weights, 2)
    assert sum(parts) == total
    whole = sum(map(Fraction, weights))
    for part, weight in zip(parts, weights, strict=True):
        assert abs(Fraction(part) - Fraction(total) * Fraction(weight) / whole) < Fraction(1, 100)


CORE = Path(__file__).parents[2] / "billing"


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_no_float_is_in_the_core(path: Path) -> None:
    """Neither as a number nor as a type, also where it would only choose a path: bounds are whole numbers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        is_number = isinstance(node, ast.Constant) and isinstance(node.value, float)
        named = getattr(node, "id", None) or getattr(node, "attr", None)
        assert not is_number, f"line {node.lineno}"
        assert named not in ("float", "Float32", "Float64"), f"line {node.lineno}"


@pytest.mark.parametrize(
    ("number", "bound"),
    [("0", 0), ("-0.000000000001", 1), ("7", 7), ("-7.5", 8), ("99.5", 100), ("100.1", 100), ("-1e25", 100)],
)
def test_a_whole_bound_is_never_below_the_number_unless_it_is_the_limit(number: str, bound: int) -> None:
    column = pl.DataFrame({"number": pl.Series([Decimal(number), None], dtype=NUMBER)})
    assert column.select(whole_up_to(pl.col("number"), 100)).to_series().to_list() == [bound, None]


def test_the_largest_number_has_a_bound_as_well() -> None:
    column = pl.DataFrame({"number": pl.Series([Decimal("99999999999999999999999999.999999999999")], dtype=NUMBER)})
    assert column.select(whole_up_to(pl.col("number"), 10**20)).item() == 10**20
