"""Credit notes by hand: what one would be, and writing it, for REST and for the page of an invoice.

Owns that two notes never credit the same amount, and what is done behind a note: credit given back, files. What a note
says is `billing/credit_notes.py`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from billing.credit_notes import CreditLine, credit_note
from billing.credit_spread import CreditRest, rest_of
from billing.documents import Document
from billing.errors import BillingError, Conflict, FieldError, InvalidInput
from billing.forms import decimal_of
from billing.numbers import patterns_of
from billing.periods import zone
from billing.settle import BilledDocument
from deployments.access import Caller, may
from deployments.billing_documents import INVOICE_EXAMPLE, WRITE_ERRORS, shown_document, shown_row
from deployments.bodies import json_form, known_keys, text_of
from deployments.manners import Answer, Write, described, json_response, plain, tenant_now
from deployments.services import Services
from pipelines.document_files import make_files
from pipelines.run_credit import bring_moves, restoring
from storage.sql import audit, bill_runs, invoices, tenants, wallet_moves
from storage.sql.database import Connection

router = APIRouter(prefix="/v1", tags=["Billing"])
CREDIT_LINES_MAX = 10_000
REASON_LENGTH_MAX = 1_000
LOG = logging.getLogger("cloudbilling.billing")


@dataclass(frozen=True)
class Wish:
    """What somebody wants to credit: lines, an amount with tax of the whole document, or (neither) all of it."""

    lines: list[CreditLine] | None = None
    amount: Decimal | None = None
    reason: str | None = None

    @property
    def whole(self) -> bool:
        return self.lines is None and self.amount is None


@dataclass(frozen=True)
class Author:
    """Who writes a note, for which tenant, and when: `now` is the tenant's, by its test clock if it has one."""

    tenant_id: str
    actor: str
    timezone: str
    now: datetime

    @property
    def day(self) -> date:
        return self.now.astimezone(zone(self.timezone)).date()


@dataclass(frozen=True)
class Creditable:
    """An invoice with the credit notes that it has by now, and what they leave."""

    number: str
    row: Mapping[str, Any]
    notes: tuple[Document, ...]

    @property
    def document(self) -> Document:
        return self.row["document"]

    @property
    def rest(self) -> CreditRest:
        return rest_of(self.document, self.notes)

    def note(self, wish: Wish, author: "Author") -> Document:
        """The credit note that a wish makes. Raises InvalidInput, Conflict as `credit_note` does."""
        billed = BilledDocument(self.number, self.document)
        return credit_note(billed, author.day, self.notes, wish.lines, wish.amount)


def creditable(connection: Connection, number: str) -> Creditable:
    """Raises NotFound, and InvalidInput for an invoice that another one has replaced, or that was made elsewhere."""
    row = invoices.get(connection, number)
    if row["outside"]:  # its lines are as somebody else computed them: whoever did knows what is taken back
        detail = f"document {number} was made elsewhere: credit it by POST /v1/invoices (type 381)"
        raise InvalidInput(f"/document: {detail}", errors=[FieldError("/document", detail)])
    if any(each["type"] == "invoice" for each in row["referred_by"]):
        detail = f"document {number} was replaced by a new invoice"
        raise InvalidInput(f"/document: {detail}", errors=[FieldError("/document", detail)])
    earlier = [each["number"] for each in row["referred_by"] if each["type"] == "credit_note"]
    return Creditable(number, row, tuple(invoices.get(connection, each)["document"] for each in earlier))


def no_run_goes_on(connection: Connection) -> None:
    """Raises Conflict: a run that is reversed, or of a tenant that reissues, may be about to credit an invoice."""
    if bill_runs.active(connection) is not None:
        raise Conflict("a bill run is going on: credit this when it has ended")


def write_note(
    services: Services, connection: Connection, author: Author, number: str, wish: Wish, seen: int | None = None
) -> str:
    """Write a credit note in this transaction; its number. `finish` is called behind it.

    `seen` is how many notes the invoice had when somebody was shown what this one would be: Conflict, if there are
    others now.
    """
    tenant_id, now = author.tenant_id, services.clock()
    # Two notes on one invoice at once could credit more than there is.
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"{tenant_id} {number}",))
    bill_runs.keep_out(connection, tenant_id)
    no_run_goes_on(connection)
    invoice = creditable(connection, number)
    if seen is not None and seen != len(invoice.notes):
        raise Conflict(f"document {number} was credited in the meantime: look at what is left")
    document = invoice.note(wish, author)
    entity = tenants.legal_entity(connection, invoice.row["entity"])
    patterns = patterns_of(entity["code"], entity["form"], is_default=entity["is_default"])
    final = invoices.Final(
        document=document,
        entity=invoice.row["entity"],
        pattern=patterns["credit_note"],
        buyer=invoice.row["buyer"],
        made_at=author.now,
        reason=wish.reason,
    )
    (made,) = invoices.finalise(connection, tenant_id, [final], now)
    if wish.whole:
        moves = restoring(made.number, invoice.document, number)
        wallet_moves.add(connection, tenant_id, moves, now)
    audit.record(connection, tenant_id, at=now, actor=author.actor,
                 action="credit note written", subject=made.number, after={"document": number})  # fmt: skip
    return made.number


def finish(services: Services, tenant_id: str) -> None:
    """Give back the credit and make the files of notes that are written."""
    try:
        bring_moves(services.database, services.desk, services.masters, tenant_id, services.clock)
        make_files(services.database, services.archive, tenant_id, services.clock)
    except BillingError as error:
        # The note is final; upkeep does the rest (`LeftFiles`, wallet moves). The caller must not try again.
        LOG.warning("the files or the credit of a credit note wait: %s", error.detail)


_REQUEST = {"document": "RE-2026-000001", "lines": [{"line": 1, "amount": "5.00"}], "reason": "Outage on 3 March"}
_PREVIEW = {
    "refers_to": "RE-2026-000001",
    "date": "2026-02-03",
    "currency": "EUR",
    "net": "5.00",
    "tax": "0.95",
    "gross": "5.95",
    "prepaid": "0.00",
    "due": "5.95",
    "left": "80.92",
    "left_after": "74.97",
    **{key: INVOICE_EXAMPLE[key] for key in ("lines", "allowances", "members", "group", "taxes")},
}


@router.post(
    "/credit-notes",
    summary="Credit an invoice, whole, by lines or by an amount",
    **described(
        request=_REQUEST,
        answer=INVOICE_EXAMPLE | {"number": "GS-2026-000001", "type": "credit_note", "refers_to": "RE-2026-000001"},
        status=201,
        also=WRITE_ERRORS,
    ),
)
def post_credit_note(
    request: Request, caller: Caller = Depends(may("billing:write")), form: Any = Depends(json_form)
) -> Response:
    """Without `lines` and `amount` the whole invoice is credited. A line without `amount` is credited with all that is
    left of it; of a line whose price contains the tax (it has a `gross`) the amount is with the tax. An `amount` of its
    own is with tax, of the whole document, at most what is left of it: it is spread over tax rates and lines in
    proportion, exact to the cent (docs/rules.md). What was billed stays billed: later corrections of usage compare with
    the invoice's lines."""
    write = Write(request)
    services = write.services
    number, wish = _wish_of(form)

    def work(connection: Connection) -> Answer:
        made = write_note(services, connection, _author(services, connection, caller), number, wish)
        stored = invoices.get(connection, made)
        return Answer(shown_row(stored) | shown_document(stored["document"], caller.timezone), 201)

    answer = write.run(caller, work)
    finish(services, caller.tenant_id)
    return answer


@router.post(
    "/credit-notes/preview",
    summary="What a credit note would be",
    **described(request=_REQUEST, answer=_PREVIEW, also=WRITE_ERRORS),
)
def preview_credit_note(
    request: Request, caller: Caller = Depends(may("billing:read")), form: Any = Depends(json_form)
) -> Response:
    """The same request, the credit note without its number; nothing is stored. `left` is the most (with tax) that may
    be credited of the invoice, `left_after` what this note would leave of it."""
    services: Services = request.app.state.services
    number, wish = _wish_of(form)
    with services.database.tenant(caller.tenant_id) as connection:
        invoice = creditable(connection, number)
        author = _author(services, connection, caller)
    note = invoice.note(wish, author)
    left = invoice.rest.gross
    sums = {
        key: getattr(note, key) for key in ("refers_to", "date", "currency", "net", "tax", "gross", "prepaid", "due")
    }
    sums |= {"left": left, "left_after": left - note.gross}
    return json_response(plain(sums) | shown_document(note, caller.timezone))


def _author(services: Services, connection: Connection, caller: Caller) -> Author:
    return Author(caller.tenant_id, caller.actor, caller.timezone, tenant_now(services, connection, caller))


def _wish_of(form: Any) -> tuple[str, Wish]:
    form = known_keys(form, ("document", "lines", "amount", "reason"), ("document",))
    reason = text_of(form, "reason", length_max=REASON_LENGTH_MAX) if form.get("reason") is not None else None
    amount = None
    if form.get("amount") is not None:
        amount = decimal_of(form["amount"])
        if amount is None:
            detail = "a decimal number as text is needed"
            raise InvalidInput(f"/amount: {detail}", errors=[FieldError("/amount", detail)])
    return text_of(form, "document"), Wish(_credit_lines(form.get("lines")), amount, reason)


def _credit_lines(value: Any) -> list[CreditLine] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= CREDIT_LINES_MAX:
        detail = f"a list of 1 to {CREDIT_LINES_MAX:,} lines is needed"
        raise InvalidInput(f"/lines: {detail}", errors=[FieldError("/lines", detail)])
    errors: list[FieldError] = []
    found: list[CreditLine] = []
    for place, entry in enumerate(value):
        pointer = f"/lines/{place}"
        if not isinstance(entry, dict) or set(entry) - {"line", "amount", "quantity"}:
            errors.append(FieldError(pointer, "an object of line, amount, quantity is needed"))
            continue
        line = decimal_of(entry.get("line"))
        numbers: dict[str, Decimal | None] = {}
        for key in ("amount", "quantity"):
            numbers[key] = decimal_of(entry[key]) if entry.get(key) is not None else None
            if entry.get(key) is not None and numbers[key] is None:
                errors.append(FieldError(f"{pointer}/{key}", "a decimal number as text is needed"))
        if line is None or line != line.to_integral_value() or not 1 <= line <= 1_000_000:
            errors.append(FieldError(f"{pointer}/line", "the number of a line is needed, from 1"))
            continue
        found.append(CreditLine(int(line), numbers["amount"], numbers["quantity"]))
    if errors:
        raise InvalidInput(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)
    return found
