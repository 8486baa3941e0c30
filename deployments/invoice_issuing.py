"""Issuing an invoice that was made elsewhere: checked first, then numbered, then archived with its files.

Owns the order, and what such a document may refer to. Its page is tried between two transactions: a tenant's own layout
may draw for a minute, and nobody else must wait for that. What is kept of the invoice is
`billing/einvoice/issued.py`, the look before a number is used `pipelines/issuing.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from billing.documents import Document
from billing.einvoice.issued import REFERRING, TYPES, buyer_form, customer_of, is_named, is_party, issue_form, numbered
from billing.einvoice.model import Invoice, Party
from billing.einvoice.parties import seller_of
from billing.errors import Conflict, FieldError, InvalidInput, Unavailable
from billing.numbers import patterns_of
from billing.periods import local_date
from deployments.access import Caller, may
from deployments.billing_documents import INVOICE_EXAMPLE, WRITE_ERRORS, make_wanted_files, shown_document, shown_row
from deployments.bodies import json_form
from deployments.invoice_factory import INVOICE
from deployments.manners import Answer, Write, described, json_response, plain, tenant_now
from deployments.services import Services
from pipelines.documents import issuer_of
from pipelines.issuing import tried_document
from pipelines.verify_issued import verify_numbers
from storage.sql import audit, bill_runs, invoices, issued_invoices, layouts, tenants
from storage.sql.database import Connection

router = APIRouter(prefix="/v1", tags=["Invoice Factory"])


@dataclass(frozen=True)
class Sender:
    """Who sends an invoice to be issued, for which tenant, and when: `now` is the tenant's, by its test clock."""

    tenant_id: str
    actor: str
    timezone: str
    now: datetime


@router.post(
    "/invoices",
    summary="Issue an invoice that was made elsewhere",
    **described(
        request={key: value for key, value in INVOICE.items() if key != "number"},
        answer=INVOICE_EXAMPLE | {"customer": "Hafenkontor GmbH", "file": "wanted", "origin": "outside"},
        status=201,
        also=WRITE_ERRORS,
    ),
)
def post_invoice(
    request: Request,
    language: str = Query("de", pattern="^(de|en)$", description="Of the page: de or en."),
    caller: Caller = Depends(may("billing:write")),
    form: Any = Depends(json_form),
) -> Response:
    """The JSON that `POST /v1/invoices/render` takes, without `number`; without `issued_on` it is of today.

    It is checked first: every sum to the cent, the official schema and rules, and whether the page can be drawn. What
    is wrong is a 422 with rule, text and place, and no number is used. Then it gets the next number of its seller's
    series (that of bill runs, too), and its PDF/A-3 and XML go into the archive. The seller is one of the tenant's
    legal entities. Types: 380, 326, 386, 384, and 381, which like 384 names one invoice in `preceding`: an invoice that
    was issued here is credited at most as a whole, and replaced (384) once that is done. Send an `Idempotency-Key`.
    """
    write = Write(request)
    services = write.services

    answer = write.answered(caller)
    if answer is None:
        with services.database.tenant(caller.tenant_id) as connection:
            now = tenant_now(services, connection, caller)
        sender = Sender(caller.tenant_id, caller.actor, caller.timezone, now)
        tried = try_out(services, sender, form, language)

        def work(connection: Connection) -> Answer:
            stored = invoices.get(connection, issue(services, connection, sender, tried))
            return Answer(shown_row(stored) | shown_document(stored["document"], caller.timezone), 201)

        answer = write.run(caller, work)
    make_wanted_files(services, caller.tenant_id, msgspec.json.decode(answer.body)["id"])
    return answer


@router.get(
    "/number-series/verify",
    summary="Prove the numbers, and what was issued from outside",
    **described(
        answer={
            "proven": True,
            "series": [
                {"entity": "default", "series": "invoice", "year": 2026, "last": 42, "documents": 42, "outside": 3}
            ],
            "gaps": [],
            "outside": 3,
            "erased": 0,
            "findings": [],
        },
    ),
)
def verify_number_series(request: Request, caller: Caller = Depends(may("billing:read"))) -> Response:
    """Each series has as many documents as its last number says, and no gap. Documents that were issued from outside
    (`outside` of them) have a number of the series like all others; they are compared with the JSON that they came as,
    for no usage gives them again. Of `erased` it is gone, with a customer who was forgotten."""
    services: Services = request.app.state.services
    proof = verify_numbers(services.database, caller.tenant_id)
    return json_response(
        {
            "proven": proof.proven,
            "series": plain(proof.series),
            "gaps": plain(proof.gaps),
            "outside": proof.outside,
            "erased": proof.erased,
            "findings": [plain(vars(each)) for each in proof.findings],
        }
    )


@dataclass(frozen=True)
class Basis:
    """What page and number of an invoice rest on beside itself: its legal entity, and the layout in use."""

    country: str | None  # of the tenant
    entity: Mapping[str, Any]
    layout: layouts.Used


@dataclass(frozen=True)
class Tried:
    """An invoice that may be issued as it is, on this basis."""

    kept: Mapping[str, Any]
    invoice: Invoice
    document: Document
    basis: Basis
    language: str


def try_out(services: Services, sender: Sender, form: Any, language: str) -> Tried:
    """Check an invoice and draw its page; nothing is stored, and no connection is held while it draws.

    Errors: InvalidInput, NotIssuable with every place; Conflict where what it refers to does not allow it.
    """
    kept = issue_form(form, local_date(sender.now, sender.timezone))
    invoice = numbered(kept, "")
    with services.database.tenant(sender.tenant_id) as connection:
        basis = _basis(connection, sender.tenant_id, invoice)
        refers_to = _referred(connection, invoice, basis.entity["code"])
    issuer = issuer_of(sender.tenant_id, sender.timezone, basis.country, basis.entity)
    document = tried_document(kept, issuer, basis.layout, language, refers_to)
    return Tried(kept, invoice, document, basis, language)


def issue(services: Services, connection: Connection, sender: Sender, tried: Tried) -> str:
    """Number an invoice in this transaction; its number. Its files are made behind it.

    Errors: InvalidInput, Conflict where what it refers to does not allow it; Unavailable if what it was tried on has
    changed since.
    """
    now, invoice = services.clock(), tried.invoice
    kind = TYPES[invoice.type_code]
    _alone_with(connection, sender.tenant_id, invoice)
    if _basis(connection, sender.tenant_id, invoice) != tried.basis:
        raise Unavailable(
            "the seller's legal entity or the layout was changed while the page was tried: nothing is stored, and no"
            " number is used; send the same again"
        )
    entity = tried.basis.entity
    # Read again, now that nobody credits or replaces it beside: the look before the page was without locks.
    document = replace(tried.document, refers_to=_referred(connection, invoice, entity["code"]))
    final = invoices.Final(
        document=document,
        entity=entity["code"],
        pattern=patterns_of(entity["code"], entity["form"], is_default=entity["is_default"])[kind],
        buyer=buyer_form(invoice, customer_of(invoice), tried.language),
        made_at=sender.now,
        issued=invoices.Issued(tried.kept, invoice.due_on),
    )
    (made,) = invoices.finalise(connection, sender.tenant_id, [final], now)
    after = {"type_code": invoice.type_code, "customer": document.customer}
    audit.record(connection, sender.tenant_id, at=now, actor=sender.actor, action="invoice issued",
                 subject=made.number, after=after)  # fmt: skip
    return made.number


def _basis(connection: Connection, tenant_id: str, invoice: Invoice) -> Basis:
    country = tenants.by_id(connection, tenant_id).country
    entity = _entity_of(tenants.legal_entities(connection), invoice.seller, country)
    return Basis(country, entity, layouts.in_use(connection, TYPES[invoice.type_code]))


def _alone_with(connection: Connection, tenant_id: str, invoice: Invoice) -> None:
    """Until this transaction ends nobody else refers to what the invoice refers to, and nobody is forgotten."""
    numbers = {one.number for one in invoice.preceding} if invoice.type_code in REFERRING else set[str]()
    for number in sorted(numbers):  # as for credit notes by hand: two at once could credit more than there is
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"{tenant_id} {number}",))
    # Behind the numbers, as credit notes by hand have it. An erasure waits for this one, and then finds the document.
    bill_runs.keep_out(connection, tenant_id)


def _entity_of(entities: Sequence[Mapping[str, Any]], seller: Party, country: str | None) -> Mapping[str, Any]:
    """The legal entity that the seller is: of several with one VAT id the one of his name, else the tenant's first."""
    parties = [(row, seller_of(row["form"], row["country"] or country or "").party) for row in entities]
    found = [(row, party) for row, party in parties if is_party(seller, party)]
    if not found:
        names = ", ".join(party.name for _, party in parties) or "none"
        detail = f"{seller.name} is no legal entity of the tenant, by VAT id, tax number or name; there are: {names}"
        raise InvalidInput(f"/seller: {detail}", errors=[FieldError("/seller", detail)])
    return max(found, key=lambda one: (is_named(seller, one[1]), one[0]["is_default"]))[0]


def _referred(connection: Connection, invoice: Invoice, entity: str) -> str | None:
    """The document here that a credit note or corrected invoice refers to; None if it has none, or one of elsewhere."""
    if invoice.type_code not in REFERRING:
        return None
    numbers = sorted({one.number for one in invoice.preceding})
    known = issued_invoices.known(connection, numbers)
    if not known:
        return None
    place = next(at for at, one in enumerate(invoice.preceding) if one.number == known[0]["number"])
    pointer = f"/preceding/{place}/number"
    wrong = _not_referable(known[0], invoice, entity) if len(numbers) == 1 else (
        "stands alone where it is an invoice that was issued here: send a document for each"
    )  # fmt: skip
    if wrong is not None:
        raise InvalidInput(f"{pointer}: {known[0]['number']} {wrong}", errors=[FieldError(pointer, wrong)])
    _room(known[0], invoice)
    return str(known[0]["number"])


def _not_referable(row: Mapping[str, Any], invoice: Invoice, entity: str) -> str | None:
    """Why a document of ours cannot be what an invoice refers to."""
    if not row["outside"]:
        return "was billed by the platform: it is credited by POST /v1/credit-notes, and billed again by a bill run"
    if row["type"] != "invoice":
        return "is a credit note"
    same = {"legal entity": (row["entity"], entity), "currency": (row["currency"], invoice.currency),
            "buyer": (row["customer"], customer_of(invoice))}  # fmt: skip
    for name, (has, said) in same.items():
        if has != said:
            return f"has another {name}: {has}"
    said_on = {one.issued_on for one in invoice.preceding} - {None, row["issued_on"]}
    if said_on:
        return f"was issued on {row['issued_on']}"
    return None


def _room(row: Mapping[str, Any], invoice: Invoice) -> None:
    """Raises Conflict: an invoice is credited at most as a whole, and replaced once, when nothing is left of it."""
    number, left = row["number"], issued_invoices.left_of(row)
    if row["replaced"] is not None:
        raise Conflict(f"document {number} was replaced by {row['replaced']}: refer to that", number=number)
    if invoice.type_code == "381" and invoice.totals.gross > left:
        raise Conflict(
            f"of document {number} {left} {row['currency']} are left to credit, not {invoice.totals.gross}",
            number=number,
        )
    if invoice.type_code == "384" and left != 0:
        raise Conflict(
            f"document {number} is owed beside the one that corrects it: credit what is left of it first (381, {left}"
            f" {row['currency']})",
            number=number,
        )
