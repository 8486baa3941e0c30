"""Exact numbers of money and quantity: reading, rounding, splitting, and the minor units of ISO 4217.

A `Decimal` product rounds to 28 digits in Python's default context, so exact arithmetic on single values is done in
`Fraction`; columns use Polars decimals with 38 digits. Where rounding happens at all is said in docs/rules.md.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact, localcontext
from fractions import Fraction

import polars as pl

from billing.errors import FieldError, InvalidInput

PLACES_MAX = 12
INTEGER_DIGITS_MAX = 26  # 26 + 12 = 38, what a decimal column and SQL's numeric(38, 12) hold
TEXT_LENGTH_MAX = 100  # zeros at either end are harmless, a megabyte of them is not
NUMBER = pl.Decimal(38, PLACES_MAX)  # a quantity, a price
PRODUCT = pl.Decimal(38, 2 * PLACES_MAX)  # quantity x price, exact: 14 digits are left before the point

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?", re.ASCII)
_EXACT = Context(prec=200, traps=[Inexact])
_ROUNDING = Context(prec=200)
_ZERO = Decimal(0)
_UNITS = tuple(Decimal(1).scaleb(-places) for places in range(PLACES_MAX + 1))

ISO_4217 = "list one of 2026-01-01"  # which the lists below follow
# Digits after the point (ISO 4217, list one, current currencies; funds and precious metals have none and are left out).
_NO_MINOR_UNIT = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_THREE_DIGITS = "BHD IQD JOD KWD LYD OMR TND"
_FOUR_DIGITS = "CLF UYW"
_TWO_DIGITS = (
    "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW CNY "
    "COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS "
    "INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR "
    "MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP "
    "STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG"
)
MINOR_DIGITS: dict[str, int] = {
    code: digits
    for digits, codes in ((0, _NO_MINOR_UNIT), (2, _TWO_DIGITS), (3, _THREE_DIGITS), (4, _FOUR_DIGITS))
    for code in codes.split()
}


@contextmanager
def exact_sums() -> Generator[None, None, None]:
    """Python adds in 28 digits unless told otherwise: a sum beyond 10^26 would lose its cents, and say nothing."""
    with localcontext(_ROUNDING):
        yield


@exact_sums()
def exact_sum(numbers: Iterable[Decimal]) -> Decimal:
    return sum(numbers, _ZERO)


def whole_up_to(number: pl.Expr, most: int) -> pl.Expr:
    """The size of NUMBERs rounded up to a whole number, at most `most`, in 128 bits: exact bounds without a float."""
    # Cut off first: the largest NUMBERs, rounded up, would need a 39th digit.
    return number.abs().clip(None, pl.lit(Decimal(most), NUMBER)).ceil().cast(pl.Int128)


def parse_number(
    value: object, *, integer_digits: int = INTEGER_DIGITS_MAX, places: int = PLACES_MAX
) -> Decimal | None:
    """The exact number that a text, whole JSON number or Decimal gives; None for anything else or beyond the limits.

    Floats are refused: what they were before they became floats is unknown. Zeros at the end do not count as places.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        return None
    if isinstance(value, int) and abs(value) >= 10**integer_digits:
        return None  # before it becomes text: Python refuses to print integers above 4,300 digits
    text = str(value)
    if len(text) > TEXT_LENGTH_MAX or not _NUMBER.fullmatch(text):
        return None
    number = Decimal(text)  # the constructor is exact, whatever the context
    if not number:
        return Decimal(0)
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int), "the pattern lets neither NaN nor infinity through"
    while exponent < 0 and digits[-1] == 0:
        digits, exponent = digits[:-1], exponent + 1
    if -exponent > places or len(digits) + exponent > integer_digits:
        return None
    return Decimal((sign, digits, 0)).scaleb(exponent, _EXACT) if exponent <= 0 else Decimal(int(number))


def minor_digits(currency: str) -> int:
    """Digits after the point of an amount in this currency."""
    digits = MINOR_DIGITS.get(currency)
    if digits is None:
        raise InvalidInput(
            f"{currency[:20]!r} is no current currency of ISO 4217",
            errors=[FieldError("/currency", "a currency of ISO 4217 is needed, such as EUR")],
        )
    return digits


def round_half_away(exact: Decimal | Fraction | int, places: int) -> Decimal:
    """Round once, half away from zero: 0.005 becomes 0.01, -0.005 becomes -0.01. The result has exactly `places`."""
    if isinstance(exact, Decimal):  # decimal's ROUND_HALF_UP is half away from zero; several times faster
        rounded_ = exact.quantize(_UNITS[places], ROUND_HALF_UP, _ROUNDING)
        return rounded_ if rounded_ else abs(rounded_)  # never minus zero
    fraction = exact if isinstance(exact, Fraction) else Fraction(exact)
    numerator, denominator = abs(fraction.numerator) * 10**places, fraction.denominator
    units = (2 * numerator + denominator) // (2 * denominator)
    return Decimal((1 if fraction < 0 and units else 0, tuple(map(int, str(units))), -places))


def round_amount(exact: Decimal | Fraction | int, currency: str) -> Decimal:
    """An exact amount in the currency's minor unit."""
    return round_half_away(exact, minor_digits(currency))


def rounded(exact: pl.Expr, places: int) -> pl.Expr:
    """The same for a decimal column; Polars itself rounds half to even unless told otherwise."""
    return exact.round(places, mode="half_away_from_zero")


def shown_quantity(exact: Decimal | Fraction) -> Decimal:
    """The quantity as a line shows it: at most 12 decimals, without zeros at the end."""
    return plain(exact if isinstance(exact, Decimal) else round_half_away(exact, PLACES_MAX))


def plain(number: Decimal) -> Decimal:
    """The same number without zeros at the end and without an exponent."""
    stripped = number.normalize(_EXACT)
    if not stripped:
        return _ZERO
    return stripped.quantize(_UNITS[0], None, _EXACT) if "E+" in str(stripped) else stripped


def decimal_text(number: Decimal | Fraction) -> str:
    """A number as text, never with an exponent; a fraction without end as `numerator/denominator`."""
    if isinstance(number, Fraction):
        exact = as_decimal(number)
        if exact is None:
            return f"{number.numerator}/{number.denominator}"
        number = exact
    return format(number.normalize(_EXACT), "f") if number else "0"


def as_decimal(number: Fraction) -> Decimal | None:
    """The decimal that equals a fraction; None where its digits have no end (or more than 200 of them)."""
    denominator, twos, fives = number.denominator, 0, 0
    while denominator % 2 == 0:
        denominator, twos = denominator // 2, twos + 1
    while denominator % 5 == 0:
        denominator, fives = denominator // 5, fives + 1
    places = max(twos, fives)
    if denominator != 1 or places > 150:
        return None
    units = number.numerator * 10**places // number.denominator
    return Decimal((1 if units < 0 else 0, tuple(map(int, str(abs(units)))), -places))


def split_by_largest_remainder(
    total: Decimal, weights: Sequence[Decimal | Fraction], places: int, order: Sequence[int] | None = None
) -> list[Decimal]:
    """Split an amount in proportion to weights so that the parts sum to it exactly.

    Each part is first cut to `places` towards zero; the units that are left go to the largest remainders. `order`
    ranks equal remainders (smaller first); without it the larger weight, then the earlier place wins.
    """
    assert weights, "there is nothing to split over"
    assert all(weight >= 0 for weight in weights), "weights are not negative"
    whole = sum((Fraction(weight) for weight in weights), Fraction(0))
    assert whole > 0, "one weight has to be positive"
    units_total = Fraction(total) * 10**places
    assert units_total.denominator == 1, "the total has more places than its parts may have"
    sign = -1 if units_total < 0 else 1
    exact = [abs(units_total) * Fraction(weight) / whole for weight in weights]
    units = [int(part) for part in exact]
    left = int(abs(units_total)) - sum(units)
    remainder_first = sorted(
        range(len(weights)),
        key=lambda place: (units[place] - exact[place], order[place] if order else -weights[place], place),
    )
    for place in remainder_first[:left]:
        units[place] += 1
    return [round_half_away(Fraction(sign * count, 10**places), places) for count in units]
