"""From what should be billed to lines: amounts, credits for what a change took back, corrections for late usage.

Owns the amounts of lines, in the terms of their prices: with the tax where a plan's prices contain it (what is net of
them is set by their document). What is due comes from `billing/due.py`, usage quantities and amounts from
`billing/rating.py`; documents are made by `billing/assemble.py`. Each line is computed exactly and rounded once, half
away from zero; nothing else is rounded here. Source: docs/rules.md, Rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import Any

from billing.catalog import Charge, Plan
from billing.contracts import PLACES, Contract, Piece, Segment, Span, current_end
from billing.documents import Corrects, Document, Line, TaxCategory
from billing.due import Due, Part, Use
from billing.master import AdHoc, MasterData, RunMark
from billing.money import decimal_text, round_amount
from billing.periods import Period, proration_parts, share
from billing.pricing import price_exactly
from billing.tax.treatment import tax_group, tax_point

ZERO = Decimal(0)
MINIMUM = "minimum"
MINIMUM_PLACE = PLACES // 2  # after all charges of a plan
AD_HOC_PLACE = 10**15  # after everything that plans bill

ContractKey = tuple[str, str]  # subscription and add-on, empty for the subscription itself
PieceKey = tuple[ContractKey, str, datetime, int]  # contract, charge, start, step
LineKey = tuple[ContractKey, str, datetime, int, tuple[tuple[str, str], ...]]  # contract, charge, start, step, row
SortKey = tuple[str, int, datetime, int, int, int]  # subscription, place, start, plan, credit before new, row


@dataclass(frozen=True)
class BilledDocument:
    """A document that was made before, with the number it got. `run` is the run's mark (0 where none is known)."""

    number: str
    document: Document
    run: int = 0
    made_at: datetime | None = None


@dataclass(slots=True)
class RatedRow:
    """One price row of a usage piece: exact quantity and amount, and what explains them."""

    row: int
    shown: Decimal  # the quantity as the line shows it
    quantity: Decimal | Fraction
    amount: Decimal | Fraction
    explanation: Mapping[str, Any]


@dataclass(slots=True)
class Draft:
    """A line with its place in the document."""

    key: SortKey
    line: Line


@dataclass(slots=True)
class Reissue:
    """A document that is taken back whole and made again with these lines."""

    billed: BilledDocument
    lines: list[Draft]


@dataclass(slots=True)
class Settled:
    """The lines by the customer who gets the document and currency, and the documents that are made again."""

    lines: dict[tuple[str, str], list[Draft]] = field(default_factory=dict[tuple[str, str], list[Draft]])
    reissues: list[Reissue] = field(default_factory=list[Reissue])


@dataclass(slots=True)
class _Billed:
    """What was billed so far under one key as stated in the price, corrections included, and the first line of it."""

    quantity: Decimal
    amount: Decimal
    allowance: Decimal
    line: Line
    at: Corrects
    document: BilledDocument


class Ledger:
    """The lines that count as billed for one customer: documents of runs, less those that a new invoice replaced.

    Credit notes by hand do not change what counts as billed. Credit notes of a run carry turned signs.
    """

    def __init__(self, billed: Sequence[BilledDocument]) -> None:
        taking_back = {b.number for b in billed if b.document.takes_back}
        self.made = [b for b in billed if b.number not in taking_back]
        replaced = {b.document.refers_to: b for b in self.made if b.document.refers_to}
        by_hand = {b.document.refers_to for b in billed if b.number in taking_back}
        self.credited_by_hand = by_hand - replaced.keys()
        self.replaced_by = replaced
        self.documents = [b for b in self.made if b.number not in replaced]
        self.by_key: dict[LineKey, _Billed] = {}
        self.by_piece: dict[PieceKey, list[LineKey]] = {}
        # With number of the line and sign:
        self.lines_of: dict[ContractKey, list[tuple[BilledDocument, int, Line, int]]] = {}
        for one in self.documents:
            sign = -1 if one.document.type == "credit_note" else 1
            for number, line in enumerate(one.document.lines, start=1):
                self.lines_of.setdefault(line.contract, []).append((one, number, line, sign))
                self._add(one, number, line, sign)

    def _add(self, document: BilledDocument, number: int, line: Line, sign: int) -> None:
        if line.kind not in ("usage", "minimum"):
            return
        key = line_key(line)
        known = self.by_key.get(key)
        if known is None:
            quantity, amount, allowance = sign * line.quantity, sign * line.stated, sign * line.stated_allowance
            at = Corrects(document.number, number)
            self.by_key[key] = _Billed(quantity, amount, allowance, line, at, document)
            self.by_piece.setdefault(key[:4], []).append(key)
        else:
            known.quantity += sign * line.quantity
            known.amount += sign * line.stated
            known.allowance += sign * line.stated_allowance

    def made_by(self, run: int, customer: str, currency: str, subscription: str) -> BilledDocument | None:
        """The last document that a run made for a customer in a currency, or what stands for it by now.

        Of several by contract, order or cost centre only one that has lines of the subscription.
        """
        for one in reversed(self.made):
            if one.run == run and one.document.customer == customer and one.document.currency == currency:
                if one.document.group and all(line.subscription != subscription for line in one.document.lines):
                    continue
                while one.number in self.replaced_by:
                    one = self.replaced_by[one.number]
                return one
        return None

    def of_piece(self, piece: PieceKey) -> dict[LineKey, _Billed]:
        """What was billed for one piece of a usage charge, by price row."""
        return {key: self.by_key[key] for key in self.by_piece.get(piece, ())}


def line_key(line: Line) -> LineKey:
    row = tuple(sorted(line.when.items())) if line.when else ()
    return line.contract, line.charge, line.start, line.step, row


def settle(
    shared: Shared,
    due: Due,
    rated: Mapping[int, Sequence[RatedRow]],
    first: int,
    billed: Sequence[BilledDocument],
    payers: Mapping[str, str] | None = None,
) -> Settled:
    """All lines of one customer. `rated` holds the priced rows of `due.uses`; the first of them has place `first`.

    Of a family (`MasterData.family`) `due` is what is due for all of them, and `payers` says who gets the documents
    of whom; a line that corrects another one goes to whoever got that one.
    """
    return _Settlement(shared, due, rated, first, billed, payers or {}).run()


class Shared:
    """What the customers of one call share: tax groups and fees that many of them owe alike.

    Keys hold ids of catalog values: those live as long as the master data, which outlives the call.
    """

    def __init__(self, master: MasterData) -> None:
        self.master = master
        self.taxes: dict[tuple[str, str, datetime, datetime], tuple[TaxCategory, Decimal]] = {}
        self.fees: dict[tuple[int, Decimal, datetime, datetime, datetime], _Fee | None] = {}
        self.unit_prices: dict[int, Decimal | None] = {}
        self.catalog: dict[int, dict[str, Any]] = {}


@dataclass(slots=True)
class _Fee:
    """A recurring or one-off amount before discounts."""

    exact: Fraction
    gross: Decimal
    explanation: dict[str, Any]


class _Settlement:
    def __init__(
        self,
        shared: Shared,
        due: Due,
        rated: Mapping[int, Sequence[RatedRow]],
        first: int,
        billed: Sequence[BilledDocument],
        payers: Mapping[str, str],
    ) -> None:
        self.shared = shared
        self.master = shared.master
        self.timezone = shared.master.tenant.timezone
        self.payers = payers
        self.one_treatment: dict[str, str | None] = {}  # by customer; None where it has changed in time
        self.due = due
        self.rated = rated
        self.first = first
        self.billed = billed
        self.found = Settled()
        self._ledger: Ledger | None = None
        # As stated, of new lines by subscription, plan, period:
        self.touched: dict[tuple[ContractKey, int, datetime], Decimal] = {}

    @cached_property
    def contracts(self) -> Mapping[ContractKey, Contract]:
        return {one.key: one for one in self.due.contracts}

    @property
    def ledger(self) -> Ledger:
        if self._ledger is None:
            self._ledger = Ledger(self.billed)
        return self._ledger

    def run(self) -> Settled:
        for one, piece in self.due.fees:
            self._fee(one, piece)
        for entry in self.due.ad_hoc:
            self._ad_hoc(entry)
        for one in self.due.contracts:
            if one.changed:
                self._credits(one)
        late: list[tuple[Use, Sequence[RatedRow]]] = []
        for place, use in enumerate(self.due.uses, start=self.first):
            rows = self.rated.get(place, ())
            if use.billed is None:
                for row in rows:
                    self._usage(use, row)
            elif rows or self.billed:
                late.append((use, rows))
        if late:
            self._late(late)
        for part in self.due.parts:
            self._minimum(part)
        for (customer, _), drafts in self.found.lines.items():
            sort_drafts(drafts, customer)
        return self.found

    def _payer(self, contract: Contract) -> str:
        """Who gets the document with new lines of a contract."""
        customer = contract.subscription.customer
        return self.payers.get(customer, customer) if self.payers else customer

    def _add(self, contract: Contract, segment: Segment, draft: Draft, payer: str | None = None) -> None:
        self._put(contract.subscription.customer, payer or self._payer(contract), segment.plan.currency, draft)
        self._touch(contract, segment, draft.line.start, draft.line.stated)

    def _put(self, customer: str, payer: str, currency: str, draft: Draft) -> None:
        if self.payers:
            draft = _on_document(draft, customer, payer)
        self.found.lines.setdefault((payer, currency), []).append(draft)

    def _touch(self, contract: Contract, segment: Segment, start: datetime, amount: Decimal) -> None:
        if segment.plan.minimum is not None:
            key = (contract.key, segment.index, segment.grid.at(start).start)
            self.touched[key] = self.touched.get(key, ZERO) + amount

    # Recurring and one-off charges

    def _fee(self, contract: Contract, piece: Piece) -> None:
        span = piece.span
        fee = self._fee_of(span, piece.start, piece.end, piece.period)
        if fee is None:
            return  # no day of it counts
        allowance = self._discount(contract, span, fee.exact, fee.gross)
        amount = fee.gross - allowance
        group = self._tax(span.charge.tax, piece.start, piece.end, self._payer(contract))
        line = self._line(
            contract, span, piece.start, piece.end, span.quantity, amount, allowance, group, None, fee.explanation
        )
        key = (line.subscription, contract.first_place + span.place, piece.start, span.segment.index, 1, 0)
        self._add(contract, span.segment, Draft(key, line))

    def _fee_of(self, span: Span, start: datetime, end: datetime, period: Period) -> _Fee | None:
        """The amount of a charge for `[start, end)` of a period; None where no day of it counts."""
        key = (id(span.charge), span.quantity, start, end, period.start)
        if key not in self.shared.fees:
            self.shared.fees[key] = self._compute_fee(span, start, end, period)
        return self.shared.fees[key]

    def _compute_fee(self, span: Span, start: datetime, end: datetime, period: Period) -> _Fee | None:
        charge, plan = span.charge, span.segment.plan
        assert charge.price is not None, "only usage charges have price rows"
        portion = Fraction(1)
        explanation: dict[str, Any] = {"model": charge.price.model, "quantity": decimal_text(span.quantity)}
        if charge.kind != "one_off":
            portion = share(charge.proration, start, end, period, self.timezone)
            if portion == 0:
                return None
            if portion != 1:
                active, full = proration_parts(charge.proration, start, end, period, self.timezone)
                explanation["proration"] = {"active": active, "full": full, "by": charge.proration}
        exact = price_exactly(charge.price, span.quantity) * portion
        explanation["exact"] = decimal_text(exact)
        explanation["catalog"] = self._catalog(span)
        return _Fee(exact, round_amount(exact, plan.currency), explanation)

    def _catalog(self, span: Span) -> dict[str, Any]:
        found = self.shared.catalog.get(id(span.charge))
        if found is None:
            plan = span.segment.plan
            found = {"plan": plan.code, "version": plan.version, "charge": span.charge.code}
            if plan.phase:
                found["phase"] = plan.phase
            if plan.free:
                found["free"] = True
            self.shared.catalog[id(span.charge)] = found
        return found

    def _discount(self, contract: Contract, span: Span, exact: Decimal | Fraction, gross: Decimal) -> Decimal:
        plan = span.segment.plan
        if not contract.subscription.discounts and not plan.discount:
            return ZERO
        return percent_discount(contract, plan, span.charge.code, Fraction(exact), gross)

    def _line(
        self,
        contract: Contract,
        span: Span,
        start: datetime,
        end: datetime,
        quantity: Decimal,
        amount: Decimal,
        allowance: Decimal,
        group: tuple[TaxCategory, Decimal],
        when: Mapping[str, str] | None,
        explanation: Mapping[str, Any],
        corrects: Corrects | None = None,
    ) -> Line:
        charge, plan = span.charge, span.segment.plan
        prices = self.shared.unit_prices
        if id(charge) not in prices:
            prices[id(charge)] = unit_price(charge)
        return Line(
            contract.subscription.code,
            charge.code,
            start,
            end,
            quantity,
            amount,
            group[0],
            group[1],
            charge.kind,
            allowance,
            when,
            plan.code,
            plan.version,
            charge.tax,
            charge.name or charge.code,
            charge.unit or (self.master.meters[charge.meter].unit if charge.meter else ""),
            prices[id(charge)],
            False,
            corrects,
            explanation,
            span.step,
            amount if plan.inclusive else None,
            allowance if plan.inclusive else None,
            add_on=contract.subscription.add_on,
        )

    def _tax(self, code: str, start: datetime, end: datetime, payer: str) -> tuple[TaxCategory, Decimal]:
        """The tax group of a line: the treatment is that of who gets the document."""
        if payer not in self.one_treatment:
            treatments = self.master.customers[payer].treatments
            self.one_treatment[payer] = treatments[0][1] if len(treatments) == 1 else None
        treatment = self.one_treatment[payer]
        if treatment is None:
            treatment = self.master.customers[payer].treatment_at(tax_point(start, end))
        key = (code, treatment, start, end)
        found = self.shared.taxes.get(key)
        if found is None:
            found = tax_group(self.master.tax_codes[code], treatment, tax_point(start, end), self.timezone)
            self.shared.taxes[key] = found
        return found

    def _ad_hoc(self, entry: AdHoc) -> None:
        """An amount of its own: no proration, no discount, no part of a plan's minimum."""
        payer = self.payers.get(entry.customer, entry.customer)
        category, percent = self._tax(entry.tax, entry.at, entry.at, payer)
        line = Line(
            subscription=entry.subscription,
            charge=entry.code,
            start=entry.at,
            end=entry.at,
            quantity=Decimal(1),
            amount=round_amount(entry.amount, entry.currency),
            tax_category=category,
            tax_percent=percent,
            kind="one_off",
            tax_code=entry.tax,
            name=entry.name,
            unit_price=entry.amount,
            explanation={"exact": decimal_text(entry.amount), "model": "ad_hoc"},
            step=entry.number,
            gross=round_amount(entry.amount, entry.currency) if entry.inclusive else None,
        )
        key = (entry.subscription, AD_HOC_PLACE, entry.at, 0, 1, entry.number)
        self._put(entry.customer, payer, entry.currency, Draft(key, line))

    # What a change takes back

    def _credits(self, contract: Contract) -> None:
        """Charges in advance that were billed further than they now go: the unused part with a minus."""
        spans = contract.spans
        taken: dict[tuple[str, int, datetime], datetime] = {}
        originals: list[tuple[BilledDocument, int, Line]] = []
        for document, number, line, sign in self.ledger.lines_of.get(contract.key, ()):
            if line.kind != "recurring" or line.correction:
                continue
            if line.corrects is not None or sign * line.quantity < 0:
                key = (line.charge, line.step, line.end)
                taken[key] = min(taken.get(key, line.start), line.start)
            else:
                originals.append((document, number, line))
        for document, number, line in originals:
            covered = line.end
            while (line.charge, line.step, covered) in taken and taken[line.charge, line.step, covered] < covered:
                covered = taken[line.charge, line.step, covered]
            span = contract.span_for(line.charge, line.step, line.start)
            if span is None or span.charge.timing != "advance":
                continue
            end = current_end(contract, spans, line.charge, line.step, line.start)
            if end < covered:
                self._credit(contract, span, document, number, end, covered)

    def _credit(
        self, contract: Contract, span: Span, document: BilledDocument, number: int, start: datetime, end: datetime
    ) -> None:
        """Take back the part from `start` on of a document's line. It goes to whoever got that document."""
        billed, at = document.document.lines[number - 1], Corrects(document.number, number)
        fee = self._fee_of(span, start, end, span.segment.grid.at(billed.start))
        if fee is None:
            return
        allowance = self._discount(contract, span, fee.exact, fee.gross)
        explanation = {
            **fee.explanation,
            "exact": decimal_text(-fee.exact),
            "billed": {"document": at.document, "line": at.line},
        }
        group = (billed.tax_category, billed.tax_percent)
        amount = allowance - fee.gross
        line = self._line(contract, span, start, end, -span.quantity, amount, -allowance, group, None, explanation, at)
        key = (line.subscription, contract.first_place + span.place, start, span.segment.index, 0, 0)
        self._add(contract, span.segment, Draft(key, line), document.document.customer)

    # Usage

    def _usage(self, use: Use, row: RatedRow) -> None:
        draft = self._usage_draft(use, row, self._payer(use.contract))
        if draft is not None:
            self._add(use.contract, use.piece.span.segment, draft)

    def _usage_draft(self, use: Use, row: RatedRow, payer: str) -> Draft | None:
        """The line of a row on a document of `payer`, or None where there is neither quantity nor amount."""
        piece, span = use.piece, use.piece.span
        currency = span.segment.plan.currency
        gross = round_amount(row.amount, currency)
        quantity = row.shown
        if not gross and not quantity:
            return None
        allowance = self._discount(use.contract, span, row.amount, gross)
        group = self._tax(span.charge.tax, piece.start, piece.end, payer)
        explanation = {**row.explanation, "catalog": self._catalog(span)}
        rows = span.charge.prices
        when = dict(rows[row.row].when) if rows and rows[row.row].when else None
        line = self._line(
            use.contract, span, piece.start, piece.end, quantity, gross - allowance, allowance, group, when, explanation
        )
        place = use.contract.first_place + span.place
        return Draft((line.subscription, place, piece.start, span.segment.index, 1, row.row), line)

    def _late(self, late: Sequence[tuple[Use, Sequence[RatedRow]]]) -> None:
        """Usage of periods that are billed: compare, and correct or make the invoice again where it differs."""
        reissue = self.master.tenant.late_usage == "reissue"
        again: dict[str, BilledDocument] = {}
        differing: list[tuple[Use, list[Draft], Mapping[LineKey, RatedRow]]] = []
        drafts_of: list[tuple[Use, list[Draft]]] = []
        for use, rows in late:
            document = self._document_of(use) if reissue else None
            payer = document.document.customer if document else self._payer(use.contract)
            drafts = [draft for row in rows if (draft := self._usage_draft(use, row, payer)) is not None]
            drafts_of.append((use, drafts))
            if not self._differs(use, drafts):
                continue
            if document is None:
                differing.append((use, drafts, {}))
            else:
                again[document.number] = document
        for use, drafts, _ in differing:
            self._corrections(use, drafts)
        for document in self.ledger.documents:
            if document.number in again:
                self._reissue(document, drafts_of)

    def _keys_of_piece(self, use: Use) -> PieceKey:
        piece = use.piece
        return use.contract.key, piece.span.charge.code, piece.start, piece.span.step

    def _differs(self, use: Use, drafts: Sequence[Draft]) -> bool:
        now = {line_key(draft.line): draft.line for draft in drafts}
        before = self.ledger.of_piece(self._keys_of_piece(use))
        for key in now.keys() | before.keys():
            line, known = now.get(key), before.get(key)
            quantity = line.quantity if line else ZERO
            amount = line.stated if line else ZERO
            if quantity != (known.quantity if known else ZERO) or amount != (known.amount if known else ZERO):
                return True
        return False

    def _corrections(self, use: Use, drafts: Sequence[Draft]) -> None:
        """One line per row: rated now less billed so far."""
        now = {line_key(draft.line): draft for draft in drafts}
        span = use.piece.span
        before = self.ledger.of_piece(self._keys_of_piece(use))
        for key in now.keys() | before.keys():
            draft, known = now.get(key), before.get(key)
            if known is None:
                assert draft is not None
                rated = {"quantity": decimal_text(draft.line.quantity), "amount": str(draft.line.stated)}
                explanation = {**draft.line.explanation, "late": True, "rated": rated}
                line = replace(draft.line, correction=True, explanation=explanation)
            else:
                line = self._difference(known, draft.line if draft else None)
                if not line.quantity and not line.amount:
                    continue
            row = draft.key[5] if draft else _row_of(span.charge, known.line if known else None)
            place = use.contract.first_place + span.place
            key_ = (line.subscription, place, use.piece.start, span.segment.index, 1, row)
            payer = known.document.document.customer if known else None
            self._add(use.contract, span.segment, Draft(key_, line), payer)

    def _difference(self, known: _Billed, now: Line | None) -> Line:
        quantity = now.quantity if now else ZERO
        amount, allowance = (now.stated, now.stated_allowance) if now else (ZERO, ZERO)
        explanation: dict[str, Any] = {
            "late": True,
            "billed": {
                "document": known.at.document,
                "quantity": decimal_text(known.quantity),
                "amount": str(known.amount),
            },
            "rated": {"quantity": decimal_text(quantity), "amount": str(amount)},
        }
        if now is not None:
            explanation = {**now.explanation, **explanation}
        return replace(
            known.line.with_stated(amount - known.amount, allowance - known.allowance),
            quantity=quantity - known.quantity,
            correction=True,
            corrects=known.at,
            explanation=explanation,
        )

    # Invoices made again

    def _document_of(self, use: Use) -> BilledDocument | None:
        """The invoice to make again for late usage of a piece; None where a correction on the next one has to do."""
        known = self.ledger.by_piece.get(self._keys_of_piece(use))
        document = self.ledger.by_key[known[0]].document if known else None
        if document is None and use.billed is not None:
            document = self._made_by(use.billed, use.contract, use.piece.span.segment.plan.currency)
        if document is None or document.document.type == "credit_note":
            return None
        return None if document.number in self.ledger.credited_by_hand else document

    def _made_by(self, run: RunMark, contract: Contract, currency: str) -> BilledDocument | None:
        """The document that a run made with the lines of a contract's customer in a currency, made again or not."""
        payer = self._payer_in(run, contract)
        return self.ledger.made_by(run.number, payer, currency, contract.subscription.code)

    def _payer_in(self, run: RunMark, contract: Contract) -> str:
        """Who got the document of a run with the lines of a contract."""
        customer = contract.subscription.customer
        return self.master.payer_at(customer, run.at) if self.payers else customer

    def _reissue(self, document: BilledDocument, drafts_of: Sequence[tuple[Use, list[Draft]]]) -> None:
        """The same document with usage and minimum rated again; all other lines are repeated as they were."""
        fresh: list[Draft] = []
        rated_again: set[PieceKey] = set()
        for use, drafts in drafts_of:
            if self._document_of(use) is document:
                rated_again.add(self._keys_of_piece(use))
                customer = use.contract.subscription.customer
                fresh.extend(_on_document(draft, customer, document.document.customer) for draft in drafts)
                for draft in drafts:
                    self._touch(use.contract, use.piece.span.segment, draft.line.start, draft.line.stated)
        for number, line in enumerate(document.document.lines):
            if line.kind == "usage" and not line.correction and line_key(line)[:4] in rated_again:
                self._touch_line(line, -line.stated)
                continue
            if line.kind == MINIMUM and not line.correction:
                self._touch_line(line, ZERO)  # decided again when all usage is known
                continue
            fresh.append(Draft(self._place(line, number), line))
        self.found.reissues.append(Reissue(document, fresh))

    def _touch_line(self, line: Line, amount: Decimal) -> None:
        found = self._contract_of(line)
        if found is not None:
            self._touch(found[0], found[1], line.start, amount)

    def _contract_of(self, line: Line) -> tuple[Contract, Segment] | None:
        one = self.contracts.get(line.contract)
        segment = one.segment_for(line.charge, line.step, line.start) if one is not None else None
        return None if one is None or segment is None else (one, segment)

    def _place(self, line: Line, number: int) -> SortKey:
        found = self._contract_of(line)
        if found is None:
            return line.subscription, AD_HOC_PLACE, line.start, 0, 1, number
        places = [p for p, charge in enumerate(found[1].plan.charges) if charge.code == line.charge]
        place = places[0] if places else MINIMUM_PLACE
        row = _row_of(found[1].plan.charges[place], line) if places else 0
        first = found[0].first_place
        return line.subscription, first + place, line.start, found[1].index, 0 if line.quantity < 0 else 1, row

    # Minimum of a plan

    def _minimum(self, part: Part) -> None:
        """The plan's minimum for a part of a period, less all lines of the subscription for it, if positive.

        Minimum and lines are compared as the plan states them: with the tax where its prices contain it.
        """
        segment, code = part.segment, part.contract.subscription.code
        key = (part.contract.key, segment.index, part.period.start)
        if part.billed is not None and key not in self.touched:
            return
        assert segment.plan.minimum is not None
        currency = segment.plan.currency
        portion = share("day", part.start, part.end, part.period, self.timezone)
        net = self._net_billed(part) + self.touched.get(key, ZERO)
        exact = Fraction(segment.plan.minimum) * portion - Fraction(net)
        owed = round_amount(exact, currency) if exact > 0 else ZERO
        known, target = None, None
        if part.billed is not None:
            known = self.ledger.by_key.get((part.contract.key, MINIMUM, part.start, segment.step, ()))
            target = self._reissue_of_minimum(part, part.billed, known)
        billed = target.billed if target else known.document if known else None
        payer = billed.document.customer if billed else self._payer(part.contract)
        line = self._minimum_line(part, payer, owed, portion, net, exact)
        place = (code, part.contract.first_place + MINIMUM_PLACE, part.start, segment.index, 1, 0)
        if part.billed is None:
            if owed:
                self._add(part.contract, segment, Draft(place, line))
            return
        if target is not None:
            if owed:
                target.lines.append(_on_document(Draft(place, line), part.contract.subscription.customer, payer))
            return
        difference = owed - (known.amount if known else ZERO)
        if difference:
            quantity = Decimal(1 if difference > 0 else -1)
            line = replace(line.with_stated(difference, ZERO), quantity=quantity, correction=True)
            if known is not None:
                group = (known.line.tax_category, known.line.tax_percent)
                line = replace(line, tax_category=group[0], tax_percent=group[1], corrects=known.at)
            self._add(part.contract, segment, Draft(place, line), payer)

    def _reissue_of_minimum(self, part: Part, run: RunMark, known: _Billed | None) -> Reissue | None:
        """The document made again that a minimum belongs on: where it was billed, or where the run put the rest."""
        billed = known.document if known else self._made_by(run, part.contract, part.segment.plan.currency)
        return next((one for one in self.found.reissues if one.billed is billed), None)

    def _net_billed(self, part: Part) -> Decimal:
        """Sum of the billed lines of this plan and period in the terms of its prices, minimum left out."""
        if not self.billed:
            return ZERO
        net = ZERO
        segment, inside = part.segment, part.period
        for _, _, line, sign in self.ledger.lines_of.get(part.contract.key, ()):
            if line.kind == MINIMUM or not inside.start <= line.start < inside.end:
                continue
            if part.contract.segment_for(line.charge, line.step, line.start) is segment:
                net += sign * line.stated
        return net

    def _minimum_line(
        self, part: Part, payer: str, owed: Decimal, portion: Fraction, net: Decimal, exact: Fraction
    ) -> Line:
        plan = part.segment.plan
        tax = plan.minimum_tax or plan.charges[0].tax
        category, percent = self._tax(tax, part.start, part.end, payer)
        explanation: dict[str, Any] = {
            "exact": decimal_text(exact),
            "minimum": decimal_text(plan.minimum or ZERO),
            "net_of_lines": str(net),
            "catalog": {"plan": plan.code, "version": plan.version, **({"phase": plan.phase} if plan.phase else {})},
        }
        if portion != 1:
            active, full = proration_parts("day", part.start, part.end, part.period, self.timezone)
            explanation["proration"] = {"active": active, "full": full, "by": "day"}
        return Line(
            subscription=part.contract.subscription.code,
            charge=MINIMUM,
            start=part.start,
            end=part.end,
            quantity=Decimal(1),
            amount=owed,
            tax_category=category,
            tax_percent=percent,
            kind=MINIMUM,
            plan=plan.code,
            plan_version=plan.version,
            tax_code=tax,
            name=MINIMUM,
            explanation=explanation,
            step=part.segment.step,
            gross=owed if plan.inclusive else None,
            add_on=part.contract.subscription.add_on,
        )


def _on_document(draft: Draft, customer: str, payer: str) -> Draft:
    """The draft as a line of `payer`'s document: it names the customer where that is somebody else."""
    shown = "" if customer == payer else customer
    return draft if draft.line.customer == shown else Draft(draft.key, replace(draft.line, customer=shown))


def sort_drafts(drafts: list[Draft], payer: str) -> None:
    """The order of a document's lines: by customer, where it has several, then by their keys."""
    drafts.sort(key=_sort_key)
    if any(draft.line.customer for draft in drafts):
        drafts.sort(key=lambda draft: draft.line.customer or payer)


def _sort_key(draft: Draft) -> SortKey:
    return draft.key


def percent_discount(contract: Contract, plan: Plan, charge: str, exact: Fraction, gross: Decimal) -> Decimal:
    """The percent discounts of a charge: each of the full exact amount and rounded, together at most the line.

    They are those of the subscription (or add-on), and that of the phase that the plan is in.
    """
    total = ZERO
    percents = [(one.percent, one.charges) for one in contract.subscription.discounts if one.percent is not None]
    if plan.discount:
        percents.append((plan.discount, plan.discounted))
    for percent, charges in percents:
        if not charges or charge in charges:
            total += round_amount(exact * Fraction(percent) / 100, plan.currency)
    if not total:
        return ZERO
    return min(total, gross) if gross >= 0 else max(total, gross)


def unit_price(charge: Charge) -> Decimal | None:
    """Where the amount is quantity times one price, that price."""
    price = charge.price
    if price is None or charge.included or charge.minimum is not None or charge.maximum is not None:
        return None
    if price.model == "per_unit":
        return price.unit
    return price.amount if price.model == "flat" and charge.kind != "usage" else None


def _row_of(charge: Charge, line: Line | None) -> int:
    if line is None or not charge.prices:
        return 0
    for place, row in enumerate(charge.prices):
        if dict(row.when) == dict(line.when or {}):
            return place
    return len(charge.prices)
