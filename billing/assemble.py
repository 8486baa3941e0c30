"""From lines to a document: allowances, tax per group, prepaid credit, totals, and the sign of it all.

Owns totals. Tax is computed per (category, percent) on the sum of the line net amounts less document allowances, and
rounded once (EN 16931 BR-CO-17, BG-23); lines are rounded already. Lines whose price contains the tax are a pool of
their own: the tax is taken out of their gross (`billing/tax/inclusive.py`), and both pools of a group share one row of
the tax table (BR-S-08 wants one). Source: docs/rules.md, Bill run and documents; Prices that contain the tax.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, Protocol

from billing.documents import Allowance, Document, Line, Member, TaxCategory, TaxTotal
from billing.money import minor_digits, round_amount, split_by_largest_remainder
from billing.tax.inclusive import net_within, spread_net

ZERO = Decimal(0)
Group = tuple[TaxCategory, Decimal]
Pool = tuple[TaxCategory, Decimal, bool]  # a group's lines whose prices do not (False) or do (True) contain the tax
CreditKind = Literal["promotional", "purchased"]


class Credit(Protocol):
    """Where a document's wallet credit comes from; `document` tells the documents of one run apart.

    The document of a payer asks for credit of several customers: first of those whose lines it has, then of his own.
    """

    def take(self, customer: str, currency: str, kind: CreditKind, asked: Decimal, document: str) -> Decimal:
        """Take at most what is asked and give what was taken. The same document asks again for the same answer."""
        ...

    def give_back(self, number: str) -> None:
        """Everything that the document of that number used goes back to where it came from."""
        ...


class NoCredit:
    """For customers without a wallet."""

    def take(self, customer: str, currency: str, kind: CreditKind, asked: Decimal, document: str) -> Decimal:
        return ZERO

    def give_back(self, number: str) -> None:
        return None


@dataclass(frozen=True)
class AmountDiscount:
    """An amount off the document; `source` names the discount (`subscription/1`)."""

    source: str
    amount: Decimal


def assemble(
    customer: str,
    currency: str,
    day: date,
    lines: Sequence[Line],
    discounts: Sequence[AmountDiscount] = (),
    credit: Credit | None = None,
    key: str = "",
    refers_to: str | None = None,
) -> Document:
    """One document of these lines. A negative sum becomes a credit note, signs turned; 0 is an invoice."""
    zero = round_amount(0, currency)
    lines = with_nets(lines, currency)
    total = sum((line.amount for line in lines), zero)
    if total < 0:
        turned = with_nets([turn(line) for line in lines], currency)
        return totals(customer, "credit_note", currency, day, turned, (), zero, refers_to)
    allowances: list[Allowance] = []
    if not discounts and credit is None:
        return totals(customer, "invoice", currency, day, lines, (), zero, refers_to)
    stated = stated_sums(lines)
    for discount in discounts:
        allowances.extend(_allow("discount", discount.source, discount.amount, stated, currency))
    if credit is None:
        return totals(customer, "invoice", currency, day, lines, tuple(allowances), zero, refers_to)
    owed = _owed(lines, allowances)
    for owner in _own_credit_last(owed):
        left = sum(stated.values(), ZERO)
        asked = min(left, owed[owner]) if owner else left
        if asked > 0:
            granted = credit.take(owner or customer, currency, "promotional", asked, key)
            allowances.extend(_allow("promotional", owner, granted, stated, currency))
            owed[owner] -= granted
    document = totals(customer, "invoice", currency, day, lines, tuple(allowances), zero, refers_to)
    return _prepaid(document, owed, credit, key) if document.gross > 0 else document


def _owed(lines: Iterable[Line], allowances: Iterable[Allowance]) -> dict[str, Decimal]:
    """What the lines of each customer (empty: the document's own) state, less the discounts of his subscriptions."""
    owed: dict[str, Decimal] = {"": ZERO}
    owner_of: dict[str, str] = {}
    for line in lines:
        owed[line.customer] = owed.get(line.customer, ZERO) + line.stated
        owner_of[line.subscription] = line.customer
    for one in allowances:
        owed[owner_of.get(one.source.rpartition("/")[0], "")] -= one.stated
    return owed


def _own_credit_last(owed: Mapping[str, Decimal]) -> list[str]:
    """The customers whose credit a document asks for: those whose lines it has, then its own, which pays for all."""
    return [*sorted(owner for owner in owed if owner), ""]


def _prepaid(document: Document, owed: Mapping[str, Decimal], credit: Credit, key: str) -> Document:
    """Purchased credit: of each customer at most his share of the gross, of the document's own as much as is left."""
    currency, zero = document.currency, round_amount(0, document.currency)
    owners = [owner for owner in _own_credit_last(owed) if owed[owner] > 0]
    shares = dict[str, Decimal]()
    if len(owed) > 1 and owners:
        weights = [owed[owner] for owner in owners]
        parts = split_by_largest_remainder(document.gross, weights, minor_digits(currency))
        shares = dict(zip(owners, parts, strict=True))
    members: list[Member] = []
    prepaid = zero
    for owner in _own_credit_last(owed):
        asked = shares.get(owner, ZERO) if owner else document.gross - prepaid
        taken = credit.take(owner or document.customer, currency, "purchased", asked, key) if asked > 0 else ZERO
        prepaid += taken
        if owner:
            members.append(Member(owner, owner, taken + zero))
    return replace(document, prepaid=prepaid, due=document.gross - prepaid, members=tuple(members))


def with_nets(lines: Sequence[Line], currency: str) -> tuple[Line, ...]:
    """The lines with their net amounts: those whose price contains the tax get their share of their group's net."""
    pools: dict[Pool, list[int]] = {}
    for place, line in enumerate(lines):
        if line.gross is not None:
            pools.setdefault(pool_of(line), []).append(place)
    if not pools:
        return tuple(lines)
    found = list(lines)
    for (_, percent, _), places in pools.items():
        grosses = [lines[place].stated for place in places]
        net = net_within(sum(grosses, ZERO), percent, currency)
        for place, amount in zip(places, spread_net(net, grosses, percent, currency), strict=True):
            found[place] = with_net(lines[place], amount, currency)
    return tuple(found)


def with_net(line: Line, amount: Decimal, currency: str) -> Line:
    """A line whose price contains the tax, with its net amount (BT-131) and the net of its discount (BT-136)."""
    allowance = net_within(line.stated_allowance, line.tax_percent, currency)
    return replace(line, amount=amount, allowance=allowance)


def turn(line: Line) -> Line:
    """The same line with turned signs, its explanation included."""
    return replace(
        line,
        quantity=-line.quantity,
        amount=-line.amount,
        allowance=-line.allowance,
        gross=None if line.gross is None else -line.gross,
        gross_allowance=None if line.gross_allowance is None else -line.gross_allowance,
        explanation=_turned(line.explanation),
    )


def _turned(explanation: Mapping[str, Any]) -> dict[str, Any]:
    """Exact amount, metered quantity and the parts of the tiers with turned signs; prices and counts stay."""
    found = dict(explanation)
    for key in ("exact", "metered"):
        if key in found:
            found[key] = _negated(found[key])
    if "tiers" in found:
        found["tiers"] = [
            {key: _negated(value) if key in ("quantity", "amount") else value for key, value in tier.items()}
            for tier in found["tiers"]
        ]
    return found


def _negated(number: str) -> str:
    """A number in text (a decimal or a fraction `1/3`) with its sign turned."""
    if number.startswith("-"):
        return number[1:]
    return number if Fraction(number) == 0 else f"-{number}"


def group_nets(lines: Iterable[Line]) -> dict[Group, Decimal]:
    """Net of the lines per tax group, in the order of the tax table."""
    nets: dict[Group, Decimal] = {}
    for line in lines:
        group = (line.tax_category, line.tax_percent)
        nets[group] = nets.get(group, ZERO) + line.amount
    return dict(sorted(nets.items()))


def pool_of(one: Line | Allowance) -> Pool:
    """The tax group, and whether the price contains the tax."""
    return one.tax_category, one.tax_percent, one.gross is not None


def stated_sums(lines: Iterable[Line]) -> dict[Pool, Decimal]:
    """What prices state, per pool in the order of the tax table: net sums, gross where prices contain the tax."""
    sums: dict[Pool, Decimal] = {}
    for line in lines:
        pool = pool_of(line)
        sums[pool] = sums.get(pool, ZERO) + line.stated
    return dict(sorted(sums.items()))


def _allow(
    kind: Literal["discount", "promotional"], source: str, amount: Decimal, stated: dict[Pool, Decimal], currency: str
) -> list[Allowance]:
    """Split an allowance over the pools with a positive sum, by largest remainder; lowers `stated`."""
    amount = min(amount, sum(stated.values(), ZERO))
    if amount <= 0:
        return []
    pools = [pool for pool, sum_ in stated.items() if sum_ > 0]
    parts = split_by_largest_remainder(amount, [stated[pool] for pool in pools], minor_digits(currency))
    made: list[Allowance] = []
    for pool, part in zip(pools, parts, strict=True):
        if not part:
            continue
        category, percent, inclusive = pool
        net = part
        if inclusive:
            net = net_within(stated[pool], percent, currency) - net_within(stated[pool] - part, percent, currency)
        stated[pool] -= part
        made.append(Allowance(kind, net, category, percent, source, part if inclusive else None))
    return made


def totals(
    customer: str,
    type: Literal["invoice", "credit_note"],
    currency: str,
    day: date,
    lines: tuple[Line, ...],
    allowances: tuple[Allowance, ...],
    prepaid: Decimal,
    refers_to: str | None,
) -> Document:
    """The document with its tax table and sums (BT-106 ... BT-115)."""
    bases = group_nets(lines)
    for allowance in allowances:
        bases[allowance.tax_category, allowance.tax_percent] -= allowance.amount
    taxes = _taxes(lines, allowances, bases, currency)
    zero = round_amount(0, currency)
    net = sum(bases.values(), zero)
    tax = sum((one.amount for one in taxes), zero)
    return Document(
        customer=customer,
        type=type,
        currency=currency,
        date=day,
        lines=lines,
        allowances=allowances,
        taxes=taxes,
        net=net,
        tax=tax,
        gross=net + tax,
        due=net + tax - prepaid,
        prepaid=prepaid,
        refers_to=refers_to,
    )


def _taxes(
    lines: Sequence[Line], allowances: Sequence[Allowance], bases: Mapping[Group, Decimal], currency: str
) -> tuple[TaxTotal, ...]:
    """The tax table. Of each group: tax on what is stated without it, and the tax within what is stated with it."""
    within: dict[Group, tuple[Decimal, Decimal]] = {}  # gross and net of the pool whose prices contain the tax
    for sign, ones in ((1, lines), (-1, allowances)):
        for one in ones:
            if one.gross is not None:
                group = (one.tax_category, one.tax_percent)
                gross, net = within.get(group, (ZERO, ZERO))
                within[group] = (gross + sign * one.gross, net + sign * one.amount)
    found: list[TaxTotal] = []
    for (category, percent), base in bases.items():
        if (category, percent) not in within:
            found.append(TaxTotal(category, percent, base, tax_of(base, percent, currency)))
            continue
        gross, net = within[category, percent]
        tax = tax_of(base - net, percent, currency) + (gross - net)
        found.append(TaxTotal(category, percent, base, tax))
    return tuple(found)


def tax_of(base: Decimal, percent: Decimal, currency: str) -> Decimal:
    """Tax of a group's base, rounded once."""
    if not percent:
        return round_amount(0, currency)
    return round_amount(Fraction(base) * Fraction(percent) / 100, currency)
