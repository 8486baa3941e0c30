"""From lines to a document: allowances, tax per group, prepaid credit, totals, and the sign of it all.

Owns totals. Tax is computed per (category, percent) on the sum of the line net amounts less document allowances, and
rounded once (EN 16931 BR-CO-17, BG-23); lines are rounded already. Source: docs/rules.md, Documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, Protocol

from billing.documents import Allowance, Document, Line, TaxCategory, TaxTotal
from billing.money import minor_digits, round_amount, split_by_largest_remainder

ZERO = Decimal(0)
Group = tuple[TaxCategory, Decimal]
CreditKind = Literal["promotional", "purchased"]


class Credit(Protocol):
    """Where a document's wallet credit comes from; `document` tells the documents of one run apart."""

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
    total = sum((line.amount for line in lines), zero)
    if total < 0:
        turned = tuple(turn(line) for line in lines)
        return totals(customer, "credit_note", currency, day, turned, (), zero, refers_to)
    nets = group_nets(lines)
    allowances: list[Allowance] = []
    for discount in discounts:
        allowances.extend(_allow("discount", discount.source, discount.amount, nets, currency))
    left = sum(nets.values(), ZERO)
    if credit is not None and left > 0:
        granted = credit.take(customer, currency, "promotional", left, key)
        allowances.extend(_allow("promotional", "", granted, nets, currency))
    document = totals(customer, "invoice", currency, day, tuple(lines), tuple(allowances), zero, refers_to)
    if credit is None or document.gross <= 0:
        return document
    prepaid = credit.take(customer, currency, "purchased", document.gross, key)
    return replace(document, prepaid=prepaid + zero, due=document.gross - prepaid)


def turn(line: Line) -> Line:
    """The same line with turned signs, its explanation included."""
    return replace(
        line,
        quantity=-line.quantity,
        amount=-line.amount,
        allowance=-line.allowance,
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


def _allow(
    kind: Literal["discount", "promotional"], source: str, amount: Decimal, nets: dict[Group, Decimal], currency: str
) -> list[Allowance]:
    """Split an allowance over the groups with a positive net, by largest remainder; lowers `nets`."""
    amount = min(amount, sum(nets.values(), ZERO))
    if amount <= 0:
        return []
    groups = [group for group, net in nets.items() if net > 0]
    parts = split_by_largest_remainder(amount, [nets[group] for group in groups], minor_digits(currency))
    made: list[Allowance] = []
    for group, part in zip(groups, parts, strict=True):
        if part:
            nets[group] -= part
            made.append(Allowance(kind, part, group[0], group[1], source))
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
    taxes = tuple(
        TaxTotal(category, percent, base, tax_of(base, percent, currency))
        for (category, percent), base in bases.items()
    )
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


def tax_of(base: Decimal, percent: Decimal, currency: str) -> Decimal:
    """Tax of a group's base, rounded once."""
    if not percent:
        return round_amount(0, currency)
    return round_amount(Fraction(base) * Fraction(percent) / 100, currency)
