"""What credit notes left of an invoice, and how an amount for the whole document spreads over what is left.

Owns both; which lines a credit note then has is `billing/credit_notes.py`. Amounts are in major currency units. Source:
docs/rules.md, Credit notes by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from billing.assemble import Pool, pool_of, stated_sums
from billing.documents import Document
from billing.errors import Conflict, FieldError, InvalidInput
from billing.money import exact_sums, minor_digits, round_amount, round_half_away
from billing.tax.inclusive import tax_within

ZERO = Decimal(0)


@dataclass(frozen=True)
class PoolRest:
    """What is left of one pool of lines: the lines and allowances in the terms of their prices, and the tax."""

    stated: Decimal
    allowances: Decimal
    tax: Decimal
    inclusive: bool

    @property
    def gross(self) -> Decimal:
        rest = self.stated - self.allowances
        return rest if self.inclusive else rest + self.tax

    @property
    def base(self) -> Decimal:
        return self.gross - self.tax


@dataclass(frozen=True)
class CreditRest:
    """What is left of an invoice: of each line (by number) in the terms of its price, and of each pool."""

    lines: Mapping[int, Decimal]
    pools: Mapping[Pool, PoolRest]

    @property
    def gross(self) -> Decimal:
        """The most that may still be credited, with tax."""
        return sum((one.gross for one in self.pools.values()), ZERO)


@dataclass(frozen=True)
class PoolShare:
    """What an amount takes of a pool beside its lines: document allowances (as stated), and tax."""

    allowances: Decimal
    tax: Decimal


@dataclass(frozen=True)
class Spread:
    """Which lines an amount takes and how much of each, and the shares of the pools that it does not take whole."""

    lines: Mapping[int, Decimal]
    shares: Mapping[Pool, PoolShare]


@exact_sums()
def rest_of(document: Document, notes: Sequence[Document]) -> CreditRest:
    """What the credit notes of an invoice leave of it."""
    lines = {number: line.stated for number, line in enumerate(document.lines, start=1)}
    for note in notes:
        for line in note.lines:
            if line.corrects is not None:
                lines[line.corrects.line] -= line.stated
    stated = dict.fromkeys(stated_sums(document.lines), ZERO)
    for number, line in enumerate(document.lines, start=1):
        stated[pool_of(line)] += lines[number]
    pools = {
        pool: PoolRest(
            sum_,
            _allowed(document, pool) - sum((_allowed(note, pool) for note in notes), ZERO),
            tax_in(document, pool) - sum((tax_in(note, pool) for note in notes), ZERO),
            pool[2],
        )
        for pool, sum_ in stated.items()
    }
    return CreditRest(lines, pools)


def tax_in(document: Document, pool: Pool) -> Decimal:
    """The tax that a document states for a pool of its lines."""
    group, inclusive = pool[:2], pool[2]
    within = ZERO
    for sign, ones in ((1, document.lines), (-1, document.allowances)):
        for one in ones:
            if one.gross is not None and (one.tax_category, one.tax_percent) == group:
                within += sign * (one.gross - one.amount)
    if inclusive:
        return within
    return sum((t.amount for t in document.taxes if (t.category, t.percent) == group), ZERO) - within


def _allowed(document: Document, pool: Pool) -> Decimal:
    return sum((one.stated for one in document.allowances if pool_of(one) == pool), ZERO)


@exact_sums()
def spread(document: Document, rest: CreditRest, amount: Decimal) -> Spread:
    """An amount with tax over what is left, in proportion and exact to the minor unit: first over the pools (tax rates)
    by their gross, then over the lines of each. All that is left takes all lines.

    Raises InvalidInput at `/amount` for more than is left, or for what is no whole minor unit; Conflict if nothing is
    left.
    """
    if rest.gross <= 0:
        raise Conflict("nothing is left of the document to credit")
    currency = document.currency
    if amount == rest.gross:
        return Spread({number: left for number, left in rest.lines.items() if left}, {})
    places = minor_digits(currency)
    unit = Decimal(1).scaleb(-places)
    pools = {pool: one for pool, one in rest.pools.items() if _divides(one, unit)}
    most = min(rest.gross, sum((one.gross for one in pools.values()), ZERO))
    if not 0 < amount <= most or amount != round_amount(amount, currency):
        said = f"{most} or all {rest.gross}" if most != rest.gross else f"{rest.gross}"
        detail = f"must be an amount of at most {said}, what is left of the document with tax"
        raise InvalidInput(f"/amount: {detail}", errors=[FieldError("/amount", detail)])
    parts = _in_proportion(amount, [one.gross for one in pools.values()], places)
    lines: dict[int, Decimal] = {}
    shares: dict[Pool, PoolShare] = {}
    for (pool, one), gross in zip(pools.items(), parts, strict=True):
        own = {
            number: rest.lines[number]
            for number, line in enumerate(document.lines, start=1)
            if pool_of(line) == pool and rest.lines[number]
        }
        if gross == one.gross:
            lines |= own
        elif gross:
            credited, shares[pool] = _share(one, gross, pool[1], currency, unit)
            each = _in_proportion(credited, list(own.values()), places)
            lines |= {number: part for number, part in zip(own, each, strict=True) if part}
    return Spread(dict(sorted(lines.items())), shares)


def _divides(one: PoolRest, unit: Decimal) -> bool:
    """Whether a part of a pool can be taken so that lines, allowances and tax each take their part: not of one unit
    with tax on it, nor where earlier notes left sums of both signs. Such a pool goes only with all that is left."""
    sign = 1 if one.gross > 0 else -1
    base, tax = sign * one.base, sign * one.tax
    rest = sign * (one.stated - one.allowances)
    return base > 0 and rest > 0 and sign * one.stated > 0 and tax >= 0 and (base > unit or not tax)


def _share(one: PoolRest, gross: Decimal, percent: Decimal, currency: str, unit: Decimal) -> tuple[Decimal, PoolShare]:
    """What a part of a pool's gross takes of its lines (as stated), of its allowances, and of its tax.

    The tax is the one within the part, rounded once (so it is the tax on the base wherever a base has that gross); it
    leaves of tax and base neither less than nothing nor the one without the other.
    """
    sign = 1 if gross > 0 else -1
    least = max(ZERO, sign * (gross - one.base) + unit)
    most = min(sign * one.tax, sign * gross - unit)
    tax = sign * min(max(sign * tax_within(gross, percent, currency), least if one.tax else ZERO), most)
    rest = gross if one.inclusive else gross - tax
    part = Fraction(rest) / Fraction(one.stated - one.allowances)
    allowances = round_amount(Fraction(one.allowances) * part, currency)
    return rest + allowances, PoolShare(allowances, tax)


def _in_proportion(amount: Decimal, wholes: Sequence[Decimal], places: int) -> list[Decimal]:
    """An amount over wholes of either sign: exact shares cut down, units to the largest remainders; equal ones: the
    larger whole first, then the earlier. No part is beyond its whole while the amount is not beyond their sum."""
    share = Fraction(amount) * 10**places / sum((Fraction(one) for one in wholes), Fraction(0))
    exact = [Fraction(one) * share for one in wholes]
    units = [part.numerator // part.denominator for part in exact]
    left = int(Fraction(amount) * 10**places) - sum(units)
    first = sorted(range(len(units)), key=lambda place: (units[place] - exact[place], -exact[place], place))
    for place in first[:left]:
        units[place] += 1
    return [round_half_away(Fraction(count, 10**places), places) for count in units]
