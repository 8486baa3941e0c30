"""Credit notes by hand and by reissue: the mirror of an invoice, or parts of its lines.

Owns what may still be credited. A credit note never changes what counts as billed. Source: docs/rules.md, Credit notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from fractions import Fraction

from billing.assemble import Group, group_nets, tax_of
from billing.documents import Allowance, Corrects, Document, Line, TaxTotal
from billing.errors import Conflict, FieldError, InvalidInput
from billing.money import round_amount
from billing.settle import BilledDocument

ZERO = Decimal(0)


@dataclass(frozen=True)
class CreditLine:
    """One line to credit: `amount` None takes all that is left of it."""

    line: int
    amount: Decimal | None = None
    quantity: Decimal | None = None


def mirror(billed: BilledDocument, day: date) -> Document:
    """The whole credit note: the same lines, allowances, taxes and sums, referring to the invoice."""
    lines = tuple(
        replace(line, corrects=Corrects(billed.number, number))
        for number, line in enumerate(billed.document.lines, start=1)
    )
    return replace(billed.document, type="credit_note", date=day, lines=lines, refers_to=billed.number)


def credit_note(
    billed: BilledDocument, day: date, notes: Sequence[Document] = (), lines: Sequence[CreditLine] | None = None
) -> Document:
    """A credit note by hand, whole (`lines` None) or over lines. `notes` are the earlier ones of the same invoice.

    Raises InvalidInput with pointers into `{document, lines: [...]}`, Conflict where nothing is left to credit.
    """
    if billed.document.type != "invoice":
        raise InvalidInput(
            f"document {billed.number} is a credit note: only invoices are credited",
            errors=[FieldError("/document", "must be an invoice")],
        )
    if lines is None:
        if notes:
            raise Conflict(
                f"document {billed.number} is credited in part already: credit the rest by lines",
                document=billed.number,
            )
        return mirror(billed, day)
    return _by_lines(billed, day, notes, lines)


def _by_lines(billed: BilledDocument, day: date, notes: Sequence[Document], wanted: Sequence[CreditLine]) -> Document:
    document = billed.document
    currency = document.currency
    left = _left(billed, notes)
    errors: list[FieldError] = []
    made: list[Line] = []
    for place, one in enumerate(wanted):
        here = f"/lines/{place}"
        if not 1 <= one.line <= len(document.lines):
            errors.append(FieldError(f"{here}/line", f"document {billed.number} has no line {one.line}"))
            continue
        line, rest = document.lines[one.line - 1], left[one.line]
        amount = rest if one.amount is None else one.amount
        outside = amount > rest if rest > 0 else amount < rest
        if not amount or outside or (amount > 0) != (rest > 0) or amount != round_amount(amount, currency):
            errors.append(
                FieldError(f"{here}/amount", f"must be an amount of at most {rest}, what is left of the line")
            )
            continue
        left[one.line] = rest - amount
        made.append(_credited(billed, one, line, amount))
    if not wanted:
        errors.append(FieldError("/lines", "names no line"))
    if errors:
        raise InvalidInput(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)
    allowances = _allowances(document, notes, made, left)
    taxes = _taxes(document, notes, made, allowances, left)
    zero = round_amount(0, currency)
    net = sum((line.amount for line in made), zero) - sum((a.amount for a in allowances), zero)
    tax = sum((t.amount for t in taxes), zero)
    return Document(
        customer=document.customer,
        type="credit_note",
        currency=currency,
        date=day,
        lines=tuple(made),
        allowances=tuple(allowances),
        taxes=tuple(taxes),
        net=net,
        tax=tax,
        gross=net + tax,
        due=net + tax,
        prepaid=zero,
        refers_to=billed.number,
    )


def _left(billed: BilledDocument, notes: Sequence[Document]) -> dict[int, Decimal]:
    """What is left of each line's net amount."""
    left = {number: line.amount for number, line in enumerate(billed.document.lines, start=1)}
    for note in notes:
        for line in note.lines:
            if line.corrects is not None:
                left[line.corrects.line] -= line.amount
    return left


def _credited(billed: BilledDocument, one: CreditLine, line: Line, amount: Decimal) -> Line:
    """The credited part: its share of the line's percent discount; the line's quantity unless one is given."""
    allowance = line.allowance
    if amount != line.amount and line.amount:
        part = Fraction(line.allowance) * Fraction(amount) / Fraction(line.amount)
        allowance = round_amount(part, billed.document.currency)
    return replace(
        line,
        amount=amount,
        allowance=allowance,
        quantity=line.quantity if one.quantity is None else one.quantity,
        unit_price=line.unit_price if amount == line.amount and one.quantity is None else None,
        correction=False,
        corrects=Corrects(billed.number, one.line),
        explanation={"credited": str(amount), "of": str(line.amount), "document": billed.number, "line": one.line},
    )


def _exhausted(document: Document, group: Group, left: dict[int, Decimal]) -> bool:
    """Whether nothing is left of any line of the group."""
    return not any(
        left[number]
        for number, line in enumerate(document.lines, start=1)
        if (line.tax_category, line.tax_percent) == group
    )


def _allowances(
    document: Document, notes: Sequence[Document], made: Sequence[Line], left: dict[int, Decimal]
) -> list[Allowance]:
    """Each group's share of the document allowances: rounded, at most what is left, all of it with the last line."""
    whole = group_nets(document.lines)
    found: list[Allowance] = []
    for group, credited in group_nets(made).items():
        own = [a for a in document.allowances if (a.tax_category, a.tax_percent) == group]
        if not own:
            continue
        given = sum(
            (a.amount for note in notes for a in note.allowances if (a.tax_category, a.tax_percent) == group), ZERO
        )
        total = sum((a.amount for a in own), ZERO)
        rest = total - given
        share = rest
        if not _exhausted(document, group, left):
            share = min(
                rest, round_amount(Fraction(total) * Fraction(credited) / Fraction(whole[group]), document.currency)
            )
        found.extend(_by_entry(document, notes, own, share))
    found.sort(key=lambda a: (a.kind, a.source, a.tax_category, a.tax_percent))
    return found


def _by_entry(
    document: Document, notes: Sequence[Document], own: Sequence[Allowance], share: Decimal
) -> list[Allowance]:
    """Give a group's share to its allowances in their order, each at most what is left of it."""
    found: list[Allowance] = []
    for entry in own:
        given = sum(
            (a.amount for note in notes for a in note.allowances if replace(a, amount=entry.amount) == entry), ZERO
        )
        part = min(share, entry.amount - given)
        if part > 0:
            found.append(replace(entry, amount=part))
            share -= part
    return found


def _taxes(
    document: Document,
    notes: Sequence[Document],
    made: Sequence[Line],
    allowances: Sequence[Allowance],
    left: dict[int, Decimal],
) -> list[TaxTotal]:
    """Tax of each group: rounded, never more than is left of the invoice's, all that is left with the last line."""
    found: list[TaxTotal] = []
    for group, credited in group_nets(made).items():
        base = credited - sum((a.amount for a in allowances if (a.tax_category, a.tax_percent) == group), ZERO)
        invoiced = sum((t.amount for t in document.taxes if (t.category, t.percent) == group), ZERO)
        given = sum((t.amount for note in notes for t in note.taxes if (t.category, t.percent) == group), ZERO)
        rest = invoiced - given
        amount = rest
        if not _exhausted(document, group, left):
            amount = tax_of(base, group[1], document.currency)
            amount = min(amount, rest) if rest >= 0 else max(amount, rest)
        found.append(TaxTotal(group[0], group[1], base, amount))
    return found
