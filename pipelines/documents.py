"""From a finalised document to its archived files: PDF/A-3a (UA-1) with the EN 16931 XML inside, checked before.

Owns the order: exact checks, XML, official rules, page, metadata, archive. What the page says is `invoice_view.py`;
what a violation is, `billing/einvoice/checks.py` and `invoice_rules.py`. A document that fails is parked with its
reason, the others go on; what is archived is skipped, so the work may be cut off anywhere and started again.
"""

from __future__ import annotations

import importlib.util
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Literal

import typst

from billing.documents import Document
from billing.einvoice.checks import Violation, check
from billing.einvoice.cii import to_cii
from billing.einvoice.from_document import Issue, invoice_of
from billing.einvoice.model import Invoice
from billing.einvoice.parties import Seller, buyer_of, seller_of, wants_e_invoice
from billing.errors import BillingError, FieldError, InvalidInput
from pipelines.factur_x import hybrid_of, with_factur_x_metadata
from pipelines.invoice_rules import ShapeGate
from pipelines.invoice_view import LAYOUTS, decimals_of, view
from storage.archive import Archive, Entry

PDF, XML = "pdf", "xml"
_MISSING = re.compile(r'the text `?"(.+?)"`? could not be displayed')
STANDARDS = ["a-3a", "ua-1"]
FONT_PACKAGES = ("fontpkg_inter", "manimgx_fonts", "cvttf_NotoSansCJK_Regular")


class NotIssuable(BillingError):
    """The document breaks a rule of e-invoices or cannot be printed; it is parked until its data are corrected."""

    code, status, title = "not_issuable", 422, "The document cannot be issued"

    def __init__(self, detail: str, violations: Sequence[Violation] = ()) -> None:
        super().__init__(detail, errors=[FieldError(one.pointer, f"{one.rule}: {one.detail}") for one in violations])
        self.violations = tuple(violations)


@cache
def _font_folders() -> list[str]:
    """Folders of the font wheels: the same fonts on every machine, whatever the system has."""
    folders: list[str] = []
    for name in FONT_PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None, f"the font package {name} is not installed"
        folders += [str(Path(one)) for one in spec.submodule_search_locations or ()]
    return folders


class _Layouts(threading.local):
    """One compiler per layout and thread: making one reads all fonts (80 ms), using it again costs nothing."""

    def __init__(self) -> None:
        self.compilers: dict[str, typst.Compiler] = {}

    def compiler(self, layout: str) -> typst.Compiler:
        found = self.compilers.get(layout)
        if found is None:
            path = LAYOUTS / layout / f"{layout}.typ"
            if not re.fullmatch(r"[a-z][a-z0-9-]*", layout) or not path.is_file():
                raise InvalidInput(f"there is no layout {layout!r}", errors=[FieldError("/layout", "is unknown")])
            found = typst.Compiler(
                str(path), root=str(path.parent), font_paths=_font_folders(), ignore_system_fonts=True
            )
            self.compilers[layout] = found
        return found


_layouts = _Layouts()


def render_pdf(
    invoice: Invoice,
    layout: str = "invoice",
    language: str = "de",
    *,
    seller: Seller | None = None,
    xml: bytes | None = None,
) -> bytes:
    """The invoice as PDF/A-3a and PDF/UA-1, with the XML inside where there is one. Same input, same bytes.

    `seller` is the letterhead (logo, directors, bank); without it only the party is shown. Raises `NotIssuable` for a
    character that no font can print, naming it, and for a logo that is no drawing.
    """
    data = view(invoice, seller or Seller(invoice.seller), layout, language)
    if xml is not None:
        data |= {"xml": xml.decode(), "xml_name": hybrid_of(invoice.profile)[0]}
    pdf = _compile(data, layout)
    return with_factur_x_metadata(pdf, invoice.profile) if xml is not None else pdf


def _compile(data: dict[str, Any], layout: str) -> bytes:
    compiler = _layouts.compiler(layout)
    try:
        return compiler.compile(
            format="pdf", pdf_standards=STANDARDS, sys_inputs={"data": json.dumps(data, ensure_ascii=False)}
        )
    except typst.TypstError as error:
        message = str(error)
        if (missing := _MISSING.search(message)) is not None:
            names = ", ".join(f"{one} (U+{ord(one):04X})" for one in dict.fromkeys(missing.group(1)))
            raise NotIssuable(f"no font has the character {names}: change the text or add a font") from error
        raise NotIssuable(f"the page cannot be drawn: {message}") from error  # a broken logo, a fault in the layout


def checked_xml(invoice: Invoice, gate: ShapeGate) -> bytes:
    """The XML of an invoice that may be issued; raises `NotIssuable` with every violation."""
    _refuse(check(invoice, minor_digits=decimals_of(invoice.currency)))
    xml = to_cii(invoice)
    _refuse(gate.violations(xml, invoice.number))
    return xml


def _refuse(violations: Sequence[Violation]) -> None:
    if violations:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        raise NotIssuable(f"{first.rule}: {first.detail}{more}", violations)


# -- A chunk of finalised documents ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Issuer:
    """What is the same for all documents of a chunk: the tenant as it signs. `entity` is its `legal_entity` form."""

    tenant_id: str
    timezone: str
    country: str
    entity: Mapping[str, Any]
    layout: str = "invoice"


@dataclass(frozen=True)
class FinalDocument:
    """A finalised document with its number, and the customer's form as it is printed."""

    document_id: str
    number: str
    document: Document
    customer: Mapping[str, Any]
    due_on: date | None = None
    issued_on_of: Mapping[str, date] = field(default_factory=dict[str, date])  # of the invoices that it refers to


@dataclass(frozen=True)
class Outcome:
    """What became of one document: archived (with the hash of its PDF), or parked with the reason in words."""

    document_id: str
    number: str
    state: Literal["archived", "parked"]
    sha256: str = ""
    reason: str = ""
    e_invoice: bool = False


def render_and_archive(
    documents: Sequence[FinalDocument], issuer: Issuer, archive: Archive, *, gate: ShapeGate | None = None
) -> list[Outcome]:
    """Make and archive the files of a chunk, in its order; the same again does nothing new.

    A document that breaks a rule or cannot be printed is parked, the others go on. `Unavailable` (store or database
    away) ends the chunk: nothing is lost, the caller sends it again.
    """
    gate = gate or shared_gate()
    found = archive.entries(issuer.tenant_id, [one.document_id for one in documents])
    done = {one.document_id: one for one in found if one.kind == PDF}
    electronic = {one.document_id for one in found if one.kind == XML}
    seller = seller_of(issuer.entity, issuer.country)
    outcomes: dict[str, Outcome] = {}
    entries: list[Entry] = []
    for one in documents:
        if one.document_id in done:
            sha256 = done[one.document_id].sha256
            outcomes[one.document_id] = Outcome(
                one.document_id, one.number, "archived", sha256, e_invoice=one.document_id in electronic
            )
            continue
        try:
            files = _files(one, issuer, seller, gate)
        except (NotIssuable, InvalidInput) as error:
            outcomes[one.document_id] = Outcome(one.document_id, one.number, "parked", reason=error.detail)
            continue
        entries += files
    for archived in archive.put_many(issuer.tenant_id, entries) if entries else []:
        if archived.kind == PDF:  # the last of a document's files
            has_xml = any(entry.document_id == archived.document_id and entry.kind == XML for entry in entries)
            outcomes[archived.document_id] = Outcome(
                archived.document_id, archived.number, "archived", archived.sha256, e_invoice=has_xml
            )
    return [outcomes[one.document_id] for one in documents]


def invoice_for(one: FinalDocument, issuer: Issuer, seller: Seller) -> tuple[Invoice, bool]:
    """The invoice of a finalised document and whether it is an e-invoice."""
    buyer = buyer_of(one.customer, issuer.country)
    invoice = invoice_of(
        one.document,
        Issue(
            number=one.number,
            seller=seller.party,
            buyer=buyer,
            timezone=issuer.timezone,
            language=_language(one.customer),
            due_on=one.due_on,
            accounts=seller.accounts,
            order=_text(one.customer, "order_reference"),
            buyer_reference=_text(one.customer, "buyer_reference"),
            issued_on_of=one.issued_on_of,
        ),
    )
    return invoice, wants_e_invoice(one.customer, seller.party, buyer, decimals_of(one.document.currency))


def _text(form: Mapping[str, Any], key: str) -> str | None:
    found = form.get(key)
    return str(found).strip() or None if found is not None else None


def _language(customer: Mapping[str, Any]) -> str:
    return _text(customer, "language") or "de"


def _files(one: FinalDocument, issuer: Issuer, seller: Seller, gate: ShapeGate) -> list[Entry]:
    """The files of one document, the PDF last: where it is archived, all are."""
    invoice, e_invoice = invoice_for(one, issuer, seller)
    xml = None
    if e_invoice:
        xml = checked_xml(invoice, gate)
    else:
        _refuse(check(invoice, e_invoice=False, minor_digits=decimals_of(invoice.currency)))
    pdf = render_pdf(invoice, issuer.layout, _language(one.customer), seller=seller, xml=xml)
    words = _words(invoice)
    files = [] if xml is None else [_entry(one, XML, xml, "text/xml", words)]
    return [*files, _entry(one, PDF, pdf, "application/pdf", words)]


def _words(invoice: Invoice) -> str:
    """What the archive finds the document by: who, and what for."""
    said = [invoice.buyer.name, invoice.buyer.address.city or "", invoice.order or "", invoice.buyer_reference or ""]
    for line in invoice.lines:
        said += [line.name, line.note or ""]
    return " ".join(dict.fromkeys(one for one in said if one))


def _entry(one: FinalDocument, kind: str, data: bytes, mime: str, text: str) -> Entry:
    document = one.document
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", one.number).strip("-.") or "document"
    return Entry(
        document_id=one.document_id,
        kind=kind,
        number=one.number,
        document_type=document.type,
        customer=document.customer,
        document_date=document.date,
        amount=document.gross,
        currency=document.currency,
        data=data,
        mime=mime,
        file_name=f"{safe}.{kind}",
        text=text,
    )


@cache
def shared_gate() -> ShapeGate:
    """The process's own: rules that one chunk compiled and shapes that it found valid serve the next one."""
    return ShapeGate()
