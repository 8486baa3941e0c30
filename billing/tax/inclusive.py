"""Prices that contain the tax (`tax_behavior: inclusive`): the tax within a gross, and the net of each line.

The gross is what was agreed, so it is what adds up: 3 x 9.99 are 29.97, whatever the tax. The tax of a group is taken
out of the group's gross and rounded once; net = gross - tax is given to the lines by largest remainder. So every sum
of EN 16931 holds (BR-CO-10 ... BR-CO-15), and tax (BT-117) differs from base (BT-116) x percent by a cent at most.
Source: docs/rules.md, Prices that contain the tax.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from billing.money import minor_digits, round_amount


def tax_within(gross: Decimal, percent: Decimal, currency: str) -> Decimal:
    """The tax that a gross amount contains: gross x percent / (100 + percent), rounded once, half away from zero.

    In the currency's minor unit. A customer who is charged no tax has percent 0: then the price as agreed is the net.
    """
    if not percent:
        return round_amount(0, currency)
    return round_amount(Fraction(gross) * Fraction(percent) / (100 + Fraction(percent)), currency)


def net_within(gross: Decimal, percent: Decimal, currency: str) -> Decimal:
    """What is left of a gross amount without the tax that it contains."""
    return gross - tax_within(gross, percent, currency)


def spread_net(net: Decimal, grosses: Sequence[Decimal], percent: Decimal, currency: str) -> list[Decimal]:
    """The net of each line so that they sum to `net`: exact shares cut down, units to the largest remainders.

    Lines may have either sign (a credit beside its new line): shares are cut towards minus infinity, so that no line
    is a whole unit off. Equal remainders: the larger line first, then the earlier one.
    """
    units_of = 10 ** minor_digits(currency)
    exact = [Fraction(gross) * 100 * units_of / (100 + Fraction(percent)) for gross in grosses]
    units = [part.numerator // part.denominator for part in exact]
    # `every` is 0 where the net is the rounded sum of the exact nets; the rest of a credited invoice may lie beside it.
    every, left = divmod(int(Fraction(net) * units_of) - sum(units), len(units))
    first = sorted(range(len(units)), key=lambda place: (units[place] - exact[place], -exact[place], place))
    for place in first[:left]:
        units[place] += 1
    return [round_amount(Fraction(count + every, units_of), currency) for count in units]
