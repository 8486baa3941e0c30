"""Credit notes by hand and by reissue: the mirror of an invoice, parts of its lines, or an amount of the whole.

Owns the credit note; what may still be credited, and how an amount spreads, is `billing/credit_spread.py`. A credit
note never changes what counts as billed. Amounts of lines whose price contains the tax are asked for, and left, with
the tax. Source: docs/rules.md, Credit notes by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from fractions import Fraction

from billing.assemble import Group, Pool, pool_of, stated_sums, tax_of, with_net
from billing.credit_spread import PoolShare, rest_of, spread, tax_in
from billing.documents import Allowance, Corrects, Document, Line, TaxTotal
from billing.errors import Conflict, FieldError, InvalidInput
from billing.money import exact_sums, minor_digits, round_amount, split_by_largest_remainder
from billing.settle import BilledDocument
from billing.tax.inclusive import net_within, spread_net, tax_within

ZERO = Decimal(0)


@dataclass(frozen=True)
class CreditLine:
    """One line to credit: `amount`, in the terms of the line's price (`Line.stated`); None takes all that is left."""

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


@exact_sums()
def credit_note(
    billed: BilledDocument,
    day: date,
    notes: Sequence[Document] = (),
    lines: Sequence[CreditLine] | None = None,
    amount: Decimal | None = None,
) -> Document:
    """A credit note by hand: over lines, of an amount with tax of the whole document, or (neither) whole. `notes` are
    the earlier ones of the same invoice.

    Raises InvalidInput with pointers into `{document, amount, lines: [...]}`, Conflict where nothing is left to credit.
    """
    if billed.document.type != "invoice":
        raise InvalidInput(
            f"document {billed.number} is a credit note: only invoices are credited",
            errors=[FieldError("/document", "must be an invoice")],
        )
    if amount is not None:
        if lines is not None:
            detail = "goes without lines: each of them has an amount of its own"
            raise InvalidInput(f"/amount: {detail}", errors=[FieldError("/amount", detail)])
        found = spread(billed.document, rest_of(billed.document, notes), amount)
        note = _by_lines(billed, day, notes, [CreditLine(*one) for one in found.lines.items()], found.shares)
        assert note.gross == amount, "an amount is spread to the last unit"
        return note
    if lines is None:
        if notes:
            raise Conflict(
                f"document {billed.number} is credited in part already: credit the rest by an amount or by lines",
                document=billed.number,
            )
        return mirror(billed, day)
    return _by_lines(billed, day, notes, lines, {})


def _by_lines(
    billed: BilledDocument,
    day: date,
    notes: Sequence[Document],
    wanted: Sequence[CreditLine],
    shares: Mapping[Pool, PoolShare],
) -> Document:
    """Over lines; `shares` says of pools what they take of allowances and tax, where it does not follow from lines."""
    document = billed.document
    currency = document.currency
    left = dict(rest_of(document, notes).lines)
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
    parts = [
        _Part(document, notes, made, pool, _exhausted(document, pool, left), shares.get(pool))
        for pool in stated_sums(made)
    ]
    for part in parts:
        for place, line in part.lines():
            made[place] = line
    allowances = sorted(
        (one for part in parts for one in part.allowances),
        key=lambda a: (a.kind, a.source, a.tax_category, a.tax_percent),
    )
    taxes: dict[Group, TaxTotal] = {}
    for part in parts:
        group = part.pool[:2]
        known = taxes.get(group, TaxTotal(*group, ZERO, ZERO))
        taxes[group] = replace(known, base=known.base + part.base, amount=known.amount + part.tax)
    zero = round_amount(0, currency)
    net = sum((line.amount for line in made), zero) - sum((a.amount for a in allowances), zero)
    tax = sum((t.amount for t in taxes.values()), zero)
    named = {line.customer for line in made}
    return Document(
        customer=document.customer,
        type="credit_note",
        currency=currency,
        date=day,
        lines=tuple(made),
        allowances=tuple(allowances),
        taxes=tuple(taxes.values()),
        net=net,
        tax=tax,
        gross=net + tax,
        due=net + tax,
        prepaid=zero,
        refers_to=billed.number,
        members=tuple(replace(member, prepaid=ZERO) for member in document.members if member.code in named),
        group=document.group,
    )


def _credited(billed: BilledDocument, one: CreditLine, line: Line, amount: Decimal) -> Line:
    """The credited part: its share of the line's percent discount; the line's quantity unless one is given."""
    allowance = line.stated_allowance
    if amount != line.stated and line.stated:
        part = Fraction(allowance) * Fraction(amount) / Fraction(line.stated)
        allowance = round_amount(part, billed.document.currency)
    return replace(
        line.with_stated(amount, allowance),
        quantity=line.quantity if one.quantity is None else one.quantity,
        unit_price=line.unit_price if amount == line.stated and one.quantity is None else None,
        correction=False,
        corrects=Corrects(billed.number, one.line),
        explanation={"credited": str(amount), "of": str(line.stated), "document": billed.number, "line": one.line},
    )


def _exhausted(document: Document, pool: Pool, left: dict[int, Decimal]) -> bool:
    """Whether nothing is left of any line of the pool."""
    return not any(left[number] for number, line in enumerate(document.lines, start=1) if pool_of(line) == pool)


class _Part:
    """What a credit note by lines takes back of one pool: allowances, tax and base, and the net of its lines.

    A pool's share of the document allowances is rounded, at most what is left of them, all of it with the last line.
    Its tax is rounded, never more than is left of the invoice's, all that is left with the last line.
    """

    def __init__(
        self,
        document: Document,
        notes: Sequence[Document],
        made: Sequence[Line],
        pool: Pool,
        exhausted: bool,
        share: PoolShare | None,
    ) -> None:
        self.document, self.notes, self.pool, self.exhausted = document, notes, pool, exhausted
        self.made = [(place, line) for place, line in enumerate(made) if pool_of(line) == pool]
        self.credited = sum((line.stated for _, line in self.made), ZERO)
        self.allowances = self._allowances(share)
        rest = self.credited - sum((one.stated for one in self.allowances), ZERO)
        self.tax = self._tax(rest) if share is None else share.tax
        self.base = rest - self.tax if pool[2] else rest
        self.net = self.credited
        if pool[2]:
            self.net = self._net_of_lines()
            self.allowances = self._with_nets(self.net - self.base)

    def _allowances(self, part: PoolShare | None) -> list[Allowance]:
        document, pool = self.document, self.pool
        own = [a for a in document.allowances if pool_of(a) == pool]
        if not own:
            return []
        if part is not None:
            return _by_entry(self.notes, own, part.allowances)
        given = sum((a.stated for note in self.notes for a in note.allowances if pool_of(a) == pool), ZERO)
        total = sum((a.stated for a in own), ZERO)
        share = rest = total - given
        if not self.exhausted:
            whole = stated_sums(document.lines)[pool]
            share = min(
                rest, round_amount(Fraction(total) * Fraction(self.credited) / Fraction(whole), document.currency)
            )
        return _by_entry(self.notes, own, share)

    def _tax(self, rest: Decimal) -> Decimal:
        _, percent, inclusive = self.pool
        left = tax_in(self.document, self.pool) - sum((tax_in(note, self.pool) for note in self.notes), ZERO)
        if self.exhausted:
            return left
        currency = self.document.currency
        amount = tax_within(rest, percent, currency) if inclusive else tax_of(rest, percent, currency)
        return min(amount, left) if left >= 0 else max(amount, left)

    def _net_of_lines(self) -> Decimal:
        """Of prices that contain the tax: what the lines' nets sum to, so that they are base plus allowances."""
        if not self.allowances:
            return self.base
        net = net_within(self.credited, self.pool[1], self.document.currency)
        if self.exhausted:
            whole, *given = [
                sum((line.amount for line in one.lines if pool_of(line) == self.pool), ZERO)
                for one in (self.document, *self.notes)
            ]
            net = whole - sum(given, ZERO)
        return max(net, self.base)

    def _with_nets(self, net: Decimal) -> list[Allowance]:
        if not self.allowances:
            return []
        weights = [one.stated for one in self.allowances]
        parts = split_by_largest_remainder(net, weights, minor_digits(self.document.currency))
        return [replace(one, amount=part) for one, part in zip(self.allowances, parts, strict=True)]

    def lines(self) -> list[tuple[int, Line]]:
        """The lines with their places; those whose price contains the tax with their net."""
        if not self.pool[2]:
            return self.made
        currency = self.document.currency
        nets = spread_net(self.net, [line.stated for _, line in self.made], self.pool[1], currency)
        return [(place, with_net(line, net, currency)) for (place, line), net in zip(self.made, nets, strict=True)]


def _by_entry(notes: Sequence[Document], own: Sequence[Allowance], share: Decimal) -> list[Allowance]:
    """Give a pool's share to its allowances in their order, each at most what is left of it."""
    found: list[Allowance] = []
    for entry in own:
        given = sum((a.stated for note in notes for a in note.allowances if _same(a, entry)), ZERO)
        part = min(share, entry.stated - given)
        if part > 0:
            found.append(replace(entry, amount=part, gross=None if entry.gross is None else part))
            share -= part
    return found


def _same(one: Allowance, other: Allowance) -> bool:
    return (one.kind, one.source, pool_of(one)) == (other.kind, other.source, pool_of(other))
