"""From a finalised document to its archived files: PDF/A-3a (UA-1) with the EN 16931 XML inside, checked before.

Owns the order: exact checks, XML, official rules, page, metadata, archive. What the page says is `invoice_view.py`;
what a violation is, `billing/einvoice/checks.py` and `invoice_rules.py`. A document that fails is parked with its
reason, the others go on; what is archived is skipped, so the work may be cut off anywhere and started again.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache, partial
from typing import Any, Literal

import pypdf

from billing.documents import Document
from billing.einvoice.checks import Violation, check
from billing.einvoice.cii import to_cii
from billing.einvoice.debits import debit_of
from billing.einvoice.from_document import Issue, invoice_of
from billing.einvoice.model import Invoice, Payment
from billing.einvoice.parties import Seller, buyer_of, profile_of, seller_of
from billing.einvoice.profiles import PEPPOL, in_profile, profile_violations
from billing.einvoice.terms import places_of, with_term
from billing.einvoice.ubl import to_ubl
from billing.einvoice.usage_record import with_usage_record
from billing.errors import BillingError, FieldError
from pipelines.document_faults import Refused, tried
from pipelines.factur_x import hybrid_of, with_factur_x_metadata
from pipelines.invoice_rules import ShapeGate
from pipelines.invoice_view import decimals_of
from pipelines.layout_blocks import Layout
from pipelines.layout_engines import CannotDraw, LayoutEngine, Output, TypstEngine
from pipelines.layout_sandbox import LayoutSandbox
from pipelines.layout_view import page_of
from pipelines.stencil_fields import Field, fields_of
from pipelines.stencils import Stencils
from storage.archive import Archive, Entry

PDF, XML = "pdf", "xml"
BUILT_IN = Layout()
NO_INSTRUMENT = "1"  # UNTDID 4461: a credit note is set off or paid back, which is not known here
TOGETHER = 100  # documents that are prepared before the first of them is drawn


class NotIssuable(BillingError):
    """The document breaks a rule of e-invoices or cannot be printed; it is parked until its data are corrected."""

    code, status, title = "not_issuable", 422, "The document cannot be issued"

    def __init__(
        self,
        detail: str,
        violations: Sequence[Violation] = (),
        *,
        errors: Sequence[FieldError] = (),
        unprintable: str = "",
    ) -> None:
        told = [FieldError(one.pointer, with_term(f"{one.rule}: {one.detail}", one.pointer)) for one in violations]
        super().__init__(detail, errors=[*told, *errors])
        self.violations = tuple(violations)
        self.unprintable = unprintable  # characters that no font has


class _Engines(threading.local):
    """One Typst a thread: making one reads all fonts (80 ms), using it again costs nothing."""

    def __init__(self) -> None:
        self.typst: LayoutEngine = TypstEngine()
        self.stencils = Stencils(lambda data: self.typst.draw(None, data, "pdf")[0])


_engines = _Engines()


@cache
def sandbox() -> LayoutSandbox:
    """The process's own: a child per source that a tenant wrote."""
    return LayoutSandbox()


def render_pdf(
    invoice: Invoice,
    layout: Layout = BUILT_IN,
    language: str = "de",
    *,
    seller: Seller | None = None,
    xml: bytes | None = None,
    owner: str = "",
) -> bytes:
    """The invoice as PDF/A-3a (Typst: PDF/UA-1, too), with the XML inside where there is one. Same input, same bytes.

    `seller` is the letterhead (logo, directors, bank); without it only the party is shown. `owner` is the tenant whose
    layout it is. Raises `NotIssuable` for a character that no font can print, naming it, for a logo that is no drawing,
    and for a layout that cannot be drawn, with the place in its source.
    """
    data = _page(invoice, layout, language, seller, xml, from_credit=False)
    return _drawn(invoice, layout, data, owner, fields_of(data) if _is_built_in(layout) else None)


def _page(
    invoice: Invoice, layout: Layout, language: str, seller: Seller | None, xml: bytes | None, *, from_credit: bool
) -> dict[str, Any]:
    data = page_of(invoice, seller or Seller(invoice.seller), layout.blocks, language, from_credit=from_credit)
    if xml is not None:
        data |= {"xml": xml.decode(), "xml_name": hybrid_of(invoice.profile)[0], "xml_profile": invoice.profile}
    return data


def _is_built_in(layout: Layout) -> bool:
    return layout.source is None and layout.engine == "typst"


def _drawn(invoice: Invoice, layout: Layout, data: dict[str, Any], owner: str, fields: Sequence[Field] | None) -> bytes:
    """The page out of a stencil, where its texts may be filled into one; else drawn by its engine."""
    if fields is not None:
        with _in_words(layout):
            pdf = _engines.stencils.drawn(data, fields)
        if pdf is not None:
            return pdf

    def named(letters: str, detail: str) -> list[FieldError]:
        return [FieldError(one, with_term(detail, one)) for one in places_of(invoice, letters)]

    pdf = draw_file(layout, data, owner, named)
    if "xml" in data and layout.engine == "typst":
        return with_factur_x_metadata(pdf, invoice.profile)
    return pdf


def draw_file(layout: Layout, data: dict[str, Any], owner: str, named: Callable[[str, str], list[FieldError]]) -> bytes:
    """The PDF of a document with the document's files inside, whatever source draws it.

    `named` gives the places of characters that no font has, for the error that names them (`NotIssuable`).
    """
    try:
        pdf = draw(layout, data, "pdf", owner)[0]
    except NotIssuable as error:
        if not error.unprintable:
            raise
        places = named(error.unprintable, error.detail)
        at = f" (in {', '.join(one.pointer for one in places)})" if places else ""
        raise NotIssuable(error.detail + at, errors=places, unprintable=error.unprintable) from error
    if layout.source is not None:
        _check_files(pdf, data)
    return pdf


def draw(layout: Layout, data: dict[str, Any], output: Output, owner: str) -> list[bytes]:
    """The page by its engine: in this process if it is Typst and built in, else in a child, with fonts of its own."""
    with _in_words(layout):
        if _is_built_in(layout):
            return _engines.typst.draw(None, data, output)
        return sandbox().draw(owner, layout, data, output)


@contextmanager
def _in_words(layout: Layout) -> Iterator[None]:
    """What an engine cannot draw, as the reason why the document cannot be issued."""
    try:
        yield
    except CannotDraw as error:
        if error.missing:
            letters = "".join(chr(int(code, 16)) for code in re.findall(r"U\+([0-9A-F]{4,6})", error.missing))
            raise NotIssuable(error.detail, unprintable=letters) from error
        place = f"line {error.line}, column {max(error.column, 1)}: " if error.line else ""
        wrong = FieldError("/source" if layout.source else "", f"{place}{error.detail}")
        raise NotIssuable(f"the page cannot be drawn: {place}{error.detail}", errors=[wrong]) from error


def _check_files(pdf: bytes, data: Mapping[str, Any]) -> None:
    """A source may draw what it wants, but it adds and changes no file inside the document."""
    wanted = {one["name"]: one["content"] for one in data["attachments"]}
    wanted |= {data["xml_name"]: data["xml"]} if "xml" in data else {}
    reader = pypdf.PdfReader(io.BytesIO(pdf))
    found = {name: contents for name, contents in reader.attachments.items()}
    if set(found) != set(wanted) or any(len(one) != 1 for one in found.values()):
        raise NotIssuable(f"the layout attaches other files than the document's: {', '.join(sorted(found)) or 'none'}")
    for name, content in wanted.items():
        if found[name][0] != (content.encode() if isinstance(content, str) else bytes(content)):
            raise NotIssuable(f"the layout changes the file {name} inside the document")


def checked_xml(invoice: Invoice, gate: ShapeGate) -> bytes:
    """The XML of an invoice that may be issued, in the syntax of its profile; `NotIssuable` with every violation."""
    _refuse([*check(invoice, minor_digits=decimals_of(invoice.currency)), *profile_violations(invoice)])
    xml = to_ubl(invoice) if invoice.profile == PEPPOL else to_cii(invoice)
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


def issuer_of(tenant_id: str, timezone: str, country: str | None, entity: Mapping[str, Any]) -> Issuer:
    """A tenant as one of its legal entities (a row of them) signs; `country` is the tenant's."""
    return Issuer(tenant_id, timezone, entity["country"] or country or "", entity["form"])


@dataclass(frozen=True)
class FinalDocument:
    """A finalised document with its number, and the customer's form as it is printed."""

    document_id: str
    number: str
    document: Document
    customer: Mapping[str, Any]
    due_on: date | None = None
    issued_on_of: Mapping[str, date] = field(default_factory=dict[str, date])  # of the invoices that it refers to
    layout: Layout = BUILT_IN
    issued: Invoice | None = None  # made elsewhere: it is written as it is, and `document` only sums it up


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

    A document that breaks a rule, cannot be printed or meets a fault of ours is parked, the others go on. `Unavailable`
    (store or database away) ends the chunk: nothing is lost, the caller sends it again.
    """
    gate = gate or shared_gate()
    found = archive.entries(issuer.tenant_id, [one.document_id for one in documents])
    done = {one.document_id: one for one in found if one.kind == PDF}
    electronic = {one.document_id for one in found if one.kind == XML}
    seller = seller_of(issuer.entity, issuer.country)
    outcomes: dict[str, Outcome] = {}
    complete: list[tuple[FinalDocument, list[Entry]]] = []
    missing: list[FinalDocument] = []
    for one in documents:
        if one.document_id in done:
            sha256 = done[one.document_id].sha256
            outcomes[one.document_id] = Outcome(
                one.document_id, one.number, "archived", sha256, e_invoice=one.document_id in electronic
            )
        else:
            missing.append(one)
    for start in range(0, len(missing), TOGETHER):
        for one, files in made_together(missing[start : start + TOGETHER], issuer, seller, gate):
            if isinstance(files, Refused):
                outcomes[one.document_id] = _parked(one, files)
            else:
                complete.append((one, files))
    outcomes |= {outcome.document_id: outcome for outcome in _archived(complete, issuer.tenant_id, archive)}
    return [outcomes[one.document_id] for one in documents]


def _archived(made: Sequence[tuple[FinalDocument, list[Entry]]], tenant_id: str, archive: Archive) -> Iterator[Outcome]:
    """Archive the files of all at once; if one of them cannot be archived, of each alone."""
    if not made:
        return
    entries = [entry for _, files in made for entry in files]
    archived = tried(lambda: archive.put_many(tenant_id, entries), *(one.number for one, _ in made))
    if not isinstance(archived, Refused):
        hashes = {entry.document_id: entry.sha256 for entry in archived if entry.kind == PDF}
        for one, files in made:
            has_xml = any(entry.kind == XML for entry in files)
            yield Outcome(one.document_id, one.number, "archived", hashes[one.document_id], e_invoice=has_xml)
    elif len(made) == 1:
        yield _parked(made[0][0], archived)
    else:
        for each in made:
            yield from _archived([each], tenant_id, archive)


def _parked(one: FinalDocument, refused: Refused) -> Outcome:
    return Outcome(one.document_id, one.number, "parked", reason=refused.reason)


def invoice_for(one: FinalDocument, issuer: Issuer, seller: Seller) -> tuple[Invoice, bool]:
    """The invoice of a finalised document, in its customer's profile, and whether it is an e-invoice."""
    if one.issued is not None:
        return one.issued, True
    buyer = buyer_of(one.customer, issuer.country)
    group = one.document.group
    per_subscription = group is not None and group.per == "subscription"
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
            debit=debit_of(
                one.customer, seller.creditor_id, one.document.currency, one.document.due, one.document.date
            ),
            order=(group and group.order_reference) or _text(one.customer, "order_reference"),
            contract=(group and group.code) or None if per_subscription else None,
            buyer_reference=(group and group.buyer_reference)
            or _text(one.customer, "leitweg_id")
            or _text(one.customer, "buyer_reference"),
            cost_centre=(group and group.cost_centre) or _text(one.customer, "cost_centre"),
            issued_on_of=one.issued_on_of,
        ),
    )
    if invoice.records and _text(one.customer, "usage_record") == "csv":  # for this customer's own sums
        invoice = with_usage_record(invoice, _language(one.customer))
    profile = profile_of(one.customer, seller.party, buyer, decimals_of(one.document.currency))
    if (
        profile is None or not one.document.lines
    ):  # a cancelled invoice that is made again of nothing: BR-16 wants a line
        return invoice, False
    if profile != "en16931" and one.document.type == "credit_note":  # how to pay is asked for there, too (BR-DE-1)
        invoice = replace(invoice, payment=Payment(code=NO_INSTRUMENT))
    return in_profile(invoice, profile), True


def _text(form: Mapping[str, Any], key: str) -> str | None:
    found = form.get(key)
    return str(found).strip() or None if found is not None else None


def _language(customer: Mapping[str, Any]) -> str:
    return _text(customer, "language") or "de"


@dataclass(frozen=True)
class _Prepared:
    """A document that may be issued, before it is drawn."""

    invoice: Invoice
    data: dict[str, Any]
    xml: bytes | None
    fields: Sequence[Field] | None  # what a stencil fills in


def made_together(
    documents: Sequence[FinalDocument], issuer: Issuer, seller: Seller, gate: ShapeGate
) -> list[tuple[FinalDocument, list[Entry] | Refused]]:
    """The files of some documents, or why one has none. Together, since words of all pages are shaped at once."""
    prepared = [(one, tried(partial(_prepared, one, issuer, seller, gate), one.number)) for one in documents]
    made: list[tuple[FinalDocument, list[Entry] | Refused]] = []
    for one, it in _learned(prepared):
        made.append((one, it if isinstance(it, Refused) else tried(partial(_files, one, it, issuer), one.number)))
    return made


def _learned(
    prepared: list[tuple[FinalDocument, _Prepared | Refused]],
) -> list[tuple[FinalDocument, _Prepared | Refused]]:
    """The same once the words of all pages are known; if those of one cannot be shaped, it alone is refused."""

    def learn(*some: _Prepared) -> None:
        _engines.stencils.learn([(it.data, it.fields) for it in some])

    good = [(one, it) for one, it in prepared if isinstance(it, _Prepared)]
    together = tried(partial(learn, *(it for _, it in good)), *(one.number for one, _ in good))
    if not isinstance(together, Refused):
        return prepared
    alone = {one.document_id: tried(partial(learn, it), one.number) or it for one, it in good}
    return [(one, alone.get(one.document_id, it)) for one, it in prepared]


def issuable(one: FinalDocument, issuer: Issuer, seller: Seller, gate: ShapeGate) -> tuple[Invoice, bytes | None]:
    """The invoice, and its XML if it is an e-invoice; raises `NotIssuable` or `InvalidInput` if a rule forbids it."""
    invoice, e_invoice = invoice_for(one, issuer, seller)
    if e_invoice:
        return invoice, checked_xml(invoice, gate)
    _refuse(check(invoice, e_invoice=False, minor_digits=decimals_of(invoice.currency)))
    return invoice, None


def files_of(one: FinalDocument, issuer: Issuer, gate: ShapeGate) -> list[Entry]:
    """The files of one document, the PDF last; raises what stands in the way of them."""
    seller = seller_of(issuer.entity, issuer.country)
    return _files(one, _prepared(one, issuer, seller, gate), issuer)


def _prepared(one: FinalDocument, issuer: Issuer, seller: Seller, gate: ShapeGate) -> _Prepared:
    invoice, xml = issuable(one, issuer, seller, gate)
    inside = None if invoice.profile == PEPPOL else xml  # UBL goes its own way: a hybrid PDF has CII inside
    made_here = one.issued is None
    data = _page(invoice, one.layout, _language(one.customer), seller, inside, from_credit=made_here)
    return _Prepared(invoice, data, xml, fields_of(data) if _is_built_in(one.layout) else None)


def _files(one: FinalDocument, prepared: _Prepared, issuer: Issuer) -> list[Entry]:
    """The files of one document, the PDF last: where it is archived, all are."""
    invoice, xml = prepared.invoice, prepared.xml
    pdf = _drawn(invoice, one.layout, prepared.data, issuer.tenant_id, prepared.fields)
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
