"""What takes the documents of a reversed bill run back, and what then stands in the place of an invoice it cancelled.

Owns those documents as values. Which documents are meant, their numbers and the order in which they are made final are
`pipelines/run_reversal.py`. Source: docs/rules.md, A run taken back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal

from billing.assemble import AmountDiscount, Credit, CreditKind, assemble
from billing.credit_notes import CreditLine, credit_note, mirror
from billing.documents import Document
from billing.settle import BilledDocument

ZERO = Decimal(0)
Used = Mapping[tuple[str, CreditKind], Decimal]  # by whose wallet it is and the kind of credit


def against(billed: BilledDocument, day: date, notes: Sequence[Document]) -> Document | None:
    """What takes a document back: its mirror, or what credit notes by hand have left; a credit note by an invoice.

    None where they have left nothing. That is said by the lines: a document over 0.00 can be open, and the sum of the
    notes can be that of the document while a line and its opposite in another tax group are open.
    """
    if billed.document.type == "credit_note":
        return replace(mirror(billed, day), type="invoice")
    notes = [note for note in notes if note.takes_back]  # one of a new sum below 0 refers to the invoice, no more
    if not notes:
        return mirror(billed, day)
    left = {number: line.stated for number, line in enumerate(billed.document.lines, start=1)}
    for note in notes:
        for line in note.lines:
            if line.corrects is not None:
                left[line.corrects.line] -= line.stated
    open_ = [CreditLine(number) for number, rest in left.items() if rest]
    return credit_note(billed, day, notes, open_) if open_ else None


def issued_again(cancelled: Document, note: str, day: date) -> Document:
    """The invoice that a credit note `note` of a run had cancelled, once more: to the cent as it was, lines and all.

    Its lines correct what those of the first one corrected, so that it counts as billed in that one's place.
    """
    return replace(cancelled, date=day, refers_to=note)


def credit_used(document: Document) -> dict[tuple[str, CreditKind], Decimal]:
    """What a document used of wallets, as prices state it: by owner and kind, in the order in which it asks."""
    promotional: dict[tuple[str, CreditKind], Decimal] = {}
    purchased: dict[tuple[str, CreditKind], Decimal] = {}
    own = document.prepaid - sum((member.prepaid for member in document.members), ZERO)
    for source, prepaid in (*((member.code, member.prepaid) for member in document.members), ("", own)):
        owner = source or document.customer
        used = (one.stated for one in document.allowances if one.kind == "promotional" and one.source == source)
        promotional[owner, "promotional"] = sum(used, ZERO)
        purchased[owner, "purchased"] = prepaid
    return {key: amount for key, amount in (promotional | purchased).items() if amount > 0}


def taken_again(document: Document, credit: Credit, key: str) -> dict[tuple[str, CreditKind], Decimal]:
    """The same credit once more, as far as it is there: what was given back may have been used for something else."""
    return {
        (owner, kind): credit.take(owner, document.currency, kind, amount, key)
        for (owner, kind), amount in credit_used(document).items()
    }


def with_credit(document: Document, used: Used, discounts: Sequence[AmountDiscount]) -> Document:
    """An invoice with this credit in place of what it used: the same lines and discounts, the rest is to be paid."""
    if used == credit_used(document):
        return document  # to the cent as it was, also where an older version made it
    made = assemble(
        document.customer,
        document.currency,
        document.date,
        document.lines,
        discounts,
        _Given(used),
        refers_to=document.refers_to,
    )
    prepaid = {member.code: member.prepaid for member in made.members}
    members = tuple(replace(one, prepaid=prepaid.get(one.code, ZERO)) for one in document.members)
    return replace(made, members=members, group=document.group)


class _Given:
    """Credit that was taken before: each part is given once."""

    def __init__(self, used: Used) -> None:
        self._left = dict(used)

    def take(self, customer: str, currency: str, kind: CreditKind, asked: Decimal, document: str) -> Decimal:
        return min(asked, self._left.pop((customer, kind), ZERO))

    def give_back(self, number: str) -> None:
        raise AssertionError("an invoice that is issued again takes none back")
