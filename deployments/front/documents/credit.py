"""The page that credits an invoice: whole, by an amount or by lines; what would be written, then writing it.

Owns the form and its words. What may be credited, and the note itself, are `deployments/credit_notes.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Response

from billing.credit_notes import CreditLine
from billing.documents import Document
from billing.errors import Conflict, FieldError, InvalidInput
from billing.forms import decimal_of
from billing.money import round_amount
from deployments.credit_notes import (
    REASON_LENGTH_MAX,
    Author,
    Creditable,
    Wish,
    creditable,
    finish,
    no_run_goes_on,
    write_note,
)
from deployments.front.page import Front, Visit, path_of
from storage.sql import bill_runs

LINES_SHOWN = 200  # a form has at most a thousand fields; a document of more lines comes in pages of these
AMOUNT_LENGTH_MAX = 60
KINDS = ("whole", "amount", "lines")
NO_AMOUNTS: list[str] = []
NO_LINES: list[int] = []


@dataclass(frozen=True)
class Said:
    """What somebody filled in: shown again whatever comes of it."""

    kind: str
    amount: str = ""
    reason: str = ""
    first: int = 1  # the number of the first line that the form shows
    picked: Sequence[int] = ()
    amounts: Sequence[str] = ()  # of the lines from `first` on


@dataclass(frozen=True)
class LineRow:
    """A line that can be credited, with what was filled in for it."""

    number: int
    name: str
    period: str
    stated: Decimal
    left: Decimal
    with_tax: bool
    picked: bool
    amount: str


@dataclass
class Mistakes:
    """What is wrong, by field of the form; the field of a line is `line-3`, the empty one is the document itself."""

    by_field: dict[str, str] = field(default_factory=dict[str, str])
    status: int = 422

    def add(self, name: str, words: str) -> None:
        self.by_field.setdefault(name, words)


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)

    @router.get("/invoices/{number:path}/credit")
    def form(
        visit: Annotated[Visit, visitor],
        number: str,
        first: Annotated[int, Query(alias="from", ge=1, le=1_000_000)] = 1,
    ) -> Response:
        visit.need("billing:write")
        invoice = _invoice(front, visit, number)
        kind = "whole" if not invoice.notes else "amount" if invoice.rest.gross > 0 else "lines"
        return _page(front, visit, invoice, Said(kind if first == 1 else "lines", first=first), Mistakes())

    @router.post("/invoices/{number:path}/credit")
    def credit(
        visit: Annotated[Visit, visitor],
        number: str,
        kind: Annotated[str, Form(pattern="^(whole|amount|lines)$")],
        step: Annotated[str, Form(pattern="^(preview|write)$")] = "preview",
        amount: Annotated[str, Form(max_length=AMOUNT_LENGTH_MAX)] = "",
        reason: Annotated[str, Form(max_length=REASON_LENGTH_MAX + 1)] = "",
        first: Annotated[int, Form(ge=1, le=1_000_000)] = 1,
        picked: Annotated[list[int], Form()] = NO_LINES,
        amounts: Annotated[list[str], Form()] = NO_AMOUNTS,
        seen: Annotated[int, Form(ge=-1, le=1_000_000)] = -1,
        form_token: Annotated[str, Form(max_length=200)] = "",
    ) -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        said = Said(kind, amount.strip(), reason.strip(), first, tuple(picked), tuple(amounts[:LINES_SHOWN]))
        invoice = _invoice(front, visit, number)
        mistakes = Mistakes()
        wish = _wish(visit, invoice, said, mistakes)
        if mistakes.by_field:
            return _page(front, visit, invoice, said, mistakes)
        author = Author(visit.tenant_id, visit.user.actor, visit.user.timezone, visit.user.test_clock or visit.now)
        try:
            with services.database.tenant(visit.tenant_id) as connection:
                if step == "preview":
                    no_run_goes_on(connection)
                    return _page(front, visit, invoice, said, mistakes, invoice.note(wish, author))
                made = write_note(services, connection, author, number, wish, seen)
        except InvalidInput as error:
            _explain(visit, invoice, wish, error, mistakes)
            return _page(front, visit, _invoice(front, visit, number), said, mistakes)
        except Conflict as error:  # a bill run goes on, or somebody else was faster: what is left now is shown
            mistakes = Mistakes({"": visit.texts("credit.changed") if seen >= 0 else error.detail}, 409)
            with services.database.tenant(visit.tenant_id) as connection:
                if bill_runs.active(connection) is not None:
                    mistakes = Mistakes({"": visit.texts("credit.run_active")}, 409)
            return _page(front, visit, _invoice(front, visit, number), said, mistakes)
        finish(services, visit.tenant_id)
        return front.go(visit, path_of("invoices", number) + f"?credited={path_of(made)[1:]}")

    return router


def _invoice(front: Front, visit: Visit, number: str) -> Creditable:
    with front.services.database.tenant(visit.tenant_id) as connection:
        invoice = creditable(connection, number)
    if invoice.document.type != "invoice":
        detail = visit.texts("credit.only_invoices")
        raise InvalidInput(detail, errors=[FieldError("/document", detail)])
    return invoice


def _wish(visit: Visit, invoice: Creditable, said: Said, mistakes: Mistakes) -> Wish:
    """The wish of a form; what cannot be read goes to `mistakes`."""
    t = visit.texts
    if not said.reason or len(said.reason) > REASON_LENGTH_MAX or not said.reason.isprintable():
        mistakes.add("reason", t("credit.reason_wrong"))
    # Money that somebody typed is never left out without a word, whatever is chosen above it.
    if said.kind != "amount" and said.amount:
        mistakes.add("amount", t("credit.amount_not_chosen"))
    if said.kind != "lines" and (said.picked or any(text.strip() for text in said.amounts)):
        mistakes.add("lines", t("credit.lines_not_chosen"))
    amount = None
    if said.kind == "amount":
        amount = decimal_of(visit.formats.exact(said.amount))
        if amount is None:
            mistakes.add("amount", t("credit.no_number"))
    lines: list[CreditLine] | None = None
    if said.kind == "lines":
        typed = {said.first + place: text.strip() for place, text in enumerate(said.amounts) if text.strip()}
        lines = []
        for number in sorted({*said.picked, *typed}):
            part = decimal_of(visit.formats.exact(typed[number])) if number in typed else None
            if number in typed and part is None:
                mistakes.add(f"line-{number}", t("credit.no_number"))
            lines.append(CreditLine(number, part))
        if not lines:
            mistakes.add("lines", t("credit.no_line"))
    return Wish(lines, amount, said.reason)


def _explain(visit: Visit, invoice: Creditable, wish: Wish, error: InvalidInput, mistakes: Mistakes) -> None:
    """What the core refuses, at its field: in the reader's language where it is a matter of what is left."""
    t, f, currency = visit.texts, visit.formats, invoice.document.currency
    rest = invoice.rest
    for one in error.errors:
        parts = one.pointer.split("/")
        if one.pointer == "/amount" and wish.amount is not None:
            fits = 0 < wish.amount <= rest.gross and wish.amount == round_amount(wish.amount, currency)
            words = one.detail if fits else t("credit.too_much", most=f.money(rest.gross, currency))
            mistakes.add("amount", words)
        elif parts[1] == "lines" and len(parts) > 2 and wish.lines is not None:
            number = wish.lines[int(parts[2])].line
            left = rest.lines.get(number)
            mistakes.add(f"line-{number}", one.detail if left is None else t("credit.too_much_of_line",
                         line=number, most=f.money(left, currency)))  # fmt: skip
        else:
            mistakes.add("", one.detail)


def _page(
    front: Front, visit: Visit, invoice: Creditable, said: Said, mistakes: Mistakes, note: Document | None = None
) -> Response:
    document, rest = invoice.document, invoice.rest
    last = min(said.first + LINES_SHOWN - 1, len(document.lines))
    credit_used = bool(document.prepaid) or any(one.kind == "promotional" for one in document.allowances)
    return front.page(
        visit,
        "documents/credit.html",
        status=mistakes.status if mistakes.by_field else 200,
        area="invoices",
        number=invoice.number,
        document=document,
        customer_name=invoice.row["customer_name"],
        said=said,
        kinds=[kind for kind in KINDS if _offered(kind, invoice)],
        rows=_rows(visit, document, rest.lines, said, last),
        last=last,
        lines_shown=LINES_SHOWN,
        left=rest.gross,
        nothing_left=bool(invoice.notes) and not any(rest.lines.values()),
        notes=len(invoice.notes),
        credit_used=credit_used,
        wrong=mistakes.by_field,
        note=note,
        left_after=None if note is None else rest.gross - note.gross,
        note_lines=[] if note is None else _note_lines(visit, note),
        reason_length_max=REASON_LENGTH_MAX,
    )


def _offered(kind: str, invoice: Creditable) -> bool:
    return kind == "lines" or (not invoice.notes if kind == "whole" else invoice.rest.gross > 0)


def _rows(visit: Visit, document: Document, left: Mapping[int, Decimal], said: Said, last: int) -> list[LineRow]:
    typed = {said.first + place: text for place, text in enumerate(said.amounts)}
    return [
        LineRow(
            number,
            _name(visit, document, number),
            visit.formats.period(document.lines[number - 1].start, document.lines[number - 1].end),
            document.lines[number - 1].stated,
            left[number],
            document.lines[number - 1].gross is not None,
            number in said.picked,
            typed.get(number, ""),
        )
        for number in range(said.first, last + 1)
    ]


def _note_lines(visit: Visit, note: Document) -> list[dict[str, Any]]:
    """The lines of a note as they would be written, with the number that each has on the invoice."""
    return [
        {
            "corrects": line.corrects.line if line.corrects is not None else place,
            "name": _name(visit, note, place),
            "amount": line.amount,
            "percent": line.tax_percent,
        }
        for place, line in enumerate(note.lines[:LINES_SHOWN], start=1)
    ]


def _name(visit: Visit, document: Document, number: int) -> str:
    line = document.lines[number - 1]
    name = visit.texts("invoice.minimum") if line.kind == "minimum" else line.name or line.charge
    return f"{name}, {', '.join(line.when.values())}" if line.when else name
