"""What a buyer needs on a document of a bill run, to the XML that official rules check: networks, orders, debits."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pypdf
import pytest
from invoice_samples import CUSTOMER, ENTITY, ISSUER, PEPPOL_CUSTOMER, PEPPOL_ISSUER, document, line
from lxml import etree

from billing.documents import DocumentGroup
from billing.einvoice.cii import to_cii
from billing.einvoice.model import EN_16931, Debit, Identifier, Invoice
from billing.einvoice.parties import seller_of
from billing.einvoice.profiles import PEPPOL, XRECHNUNG, in_profile, profile_violations
from billing.einvoice.ubl import to_ubl
from billing.errors import InvalidInput
from pipelines.document_faults import Refused
from pipelines.documents import (
    BUILT_IN,
    FinalDocument,
    NotIssuable,
    checked_xml,
    invoice_for,
    made_together,
    render_pdf,
)
from pipelines.invoice_rules import ShapeGate, rule_violations, schema_violations, syntax_of
from pipelines.layout_blocks import layout_of
from pipelines.layout_view import page_of
from pipelines.read_invoice import read_invoice

LEITWEG = "04011000-1234512345-06"
SELLER = seller_of({**ENTITY, "creditor_id": "DE98ZZZ09999999999",
                    "endpoint": {"id": "rechnung@nordwind.example", "scheme": "EM"}}, "DE")  # fmt: skip
PEPPOL_SELLER = seller_of(PEPPOL_ISSUER.entity, "DE")
BUYER: dict[str, Any] = {**CUSTOMER, "endpoint": {"id": LEITWEG, "scheme": "0204"}, "leitweg_id": LEITWEG,
                         "buyer_reference": "never both", "cost_centre": "K-7",
                         "ids": [{"id": "4000001000005", "scheme": "0088"}]}  # fmt: skip
MANDATE = {"reference": "M-2026-7", "iban": "DE02 1203 0000 0000 2020 51", "signed_on": "2026-01-31"}


def made(customer: dict[str, Any], group: DocumentGroup | None = None) -> Invoice:
    one = FinalDocument("1", "RE-1", replace(document([line("10.00")]), group=group), customer)
    invoice, e_invoice = invoice_for(one, ISSUER, SELLER)
    assert e_invoice
    return invoice


def test_an_xrechnung_of_a_bill_run_has_all_that_its_profile_demands() -> None:
    invoice = made({**BUYER, "einvoice": "xrechnung"})
    assert invoice.profile == XRECHNUNG
    assert rule_violations(checked_xml(invoice, ShapeGate())) == []
    assert (invoice.buyer_reference, invoice.buyer_accounting_reference) == (LEITWEG, "K-7")
    assert invoice.buyer.ids == (Identifier("4000001000005", "0088"),)
    with pytest.raises(NotIssuable) as refused:
        checked_xml(made({**CUSTOMER, "buyer_reference": "x", "einvoice": "xrechnung"}), ShapeGate())
    assert [one.rule for one in refused.value.violations] == ["PEPPOL-EN16931-R010"]


@pytest.mark.parametrize("credit", [False, True], ids=["invoice", "credit note"])
@pytest.mark.parametrize("asked", ["factur-x", "xrechnung", "peppol", "none"])
def test_each_customer_gets_the_e_invoice_that_he_asked_for(asked: str, credit: bool) -> None:
    said = document([line("10.00")], **({"type": "credit_note", "refers_to": "RE-0"} if credit else {}))
    customer = {**PEPPOL_CUSTOMER, "einvoice": asked}
    final = FinalDocument("1", "RE-1", said, customer, issued_on_of={"RE-0": said.date} if credit else {})
    ((_, files),) = made_together([final], PEPPOL_ISSUER, PEPPOL_SELLER, ShapeGate())
    assert not isinstance(files, Refused), files
    found = {one.kind: one.data for one in files}
    inside = pypdf.PdfReader(io.BytesIO(found["pdf"])).attachments
    if asked == "none":
        assert set(found) == {"pdf"}
        assert inside == {}
        return
    assert schema_violations(found["xml"]) == rule_violations(found["xml"]) == []
    wanted = {"factur-x": ("cii", EN_16931), "xrechnung": ("cii", XRECHNUNG),
              "peppol": ("ubl-credit-note" if credit else "ubl-invoice", PEPPOL)}[asked]  # fmt: skip
    assert (syntax_of(found["xml"]), read_invoice(found["xml"]).profile) == wanted
    named = {"factur-x": "factur-x.xml", "xrechnung": "xrechnung.xml"}.get(asked)
    assert inside == ({named: [found["xml"]]} if named else {})


@pytest.mark.parametrize("asked", ["factur-x", "xrechnung", "peppol"])
def test_a_document_without_lines_is_a_pdf_whatever_was_asked_for(asked: str) -> None:
    final = FinalDocument("1", "RE-1", document([]), {**PEPPOL_CUSTOMER, "einvoice": asked})
    ((_, files),) = made_together([final], PEPPOL_ISSUER, PEPPOL_SELLER, ShapeGate())
    assert not isinstance(files, Refused), files
    assert [one.kind for one in files] == ["pdf"]


def test_an_e_invoice_that_nobody_knows_is_named() -> None:
    with pytest.raises(InvalidInput, match="'xrechnug' is no e-invoice; there are none, factur-x, xrechnung, peppol"):
        made({**BUYER, "einvoice": "xrechnug"})


def test_a_group_says_its_own_references_and_the_customers_where_it_has_none() -> None:
    own = made(BUYER, DocumentGroup("order", "4711", "4711", "x", "K-8"))
    assert (own.order, own.buyer_reference, own.buyer_accounting_reference, own.contract) == ("4711", "x", "K-8", None)
    rest = made(BUYER, DocumentGroup("subscription", ""))
    assert (rest.order, rest.buyer_reference, rest.buyer_accounting_reference) == ("4500118273", LEITWEG, "K-7")
    assert made(BUYER, DocumentGroup("subscription", "S-20418")).contract == "S-20418"


def booked() -> Invoice:
    """Lines of two cost centres, and one of none; the document as a whole has the customer's own (BT-19)."""
    lines = [line("10.00", cost_centre=centre) for centre in ("K-1", "4930 & 17", "", "K-1")]
    one = FinalDocument("1", "RE-1", document(lines), BUYER)
    return invoice_for(one, ISSUER, SELLER)[0]


@pytest.mark.parametrize("syntax", ["cii", "ubl"])
def test_each_line_says_where_the_buyer_books_it_and_is_read_again(syntax: str) -> None:
    invoice = in_profile(booked(), "xrechnung")
    assert profile_violations(invoice) == []
    xml = to_cii(invoice) if syntax == "cii" else to_ubl(invoice)
    assert ShapeGate().violations(xml, "RE-1") == []
    assert rule_violations(xml) == []
    paths = {"cii": ".//{*}SpecifiedLineTradeSettlement/{*}ReceivableSpecifiedTradeAccountingAccount/{*}ID",
             "ubl": ".//{*}InvoiceLine/{*}AccountingCost"}  # fmt: skip
    said = [one.text for one in etree.fromstring(xml).findall(paths[syntax])]
    assert said == ["K-1", "4930 & 17", "K-1"]
    read = read_invoice(xml)
    assert [one.accounting_reference for one in read.lines] == ["K-1", "4930 & 17", None, "K-1"]
    assert read.buyer_accounting_reference == "K-7"


def test_a_layout_by_cost_centre_has_a_heading_and_a_sum_for_each_of_them() -> None:
    layout = layout_of({"blocks": {"grouping": "cost_centre"}})
    pdf = render_pdf(booked(), layout, "de", seller=SELLER)
    text = "\n".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(pdf)).pages)
    data = page_of(booked(), SELLER, layout.blocks, "de")
    assert [len(group["lines"]) for group in data["groups"]] == [2, 1, 1]
    for centre in ("K-1", "4930 & 17"):
        assert centre in text
    assert "20,00" in text


def test_an_invoice_under_a_mandate_is_collected_and_names_no_account_to_pay_to() -> None:
    invoice = made({**BUYER, "mandate": MANDATE})
    assert invoice.payment is not None
    assert (invoice.payment.code, invoice.payment.transfer) == ("59", ())
    assert invoice.payment.debit == Debit("M-2026-7", "DE98ZZZ09999999999", "DE02120300000000202051")
    assert invoice.payment_terms == "Wird am 01.11.2026 per SEPA-Lastschrift eingezogen."
    wanted = in_profile(invoice, "xrechnung")
    assert profile_violations(wanted) == []
    assert rule_violations(checked_xml(wanted, ShapeGate())) == []
    assert render_pdf(invoice, BUILT_IN, "de", seller=SELLER).startswith(b"%PDF")


def test_without_mandate_or_creditor_an_invoice_asks_for_a_transfer() -> None:
    for customer, entity in ((BUYER, SELLER), ({**BUYER, "mandate": MANDATE}, replace(SELLER, creditor_id=None))):
        invoice, _ = invoice_for(FinalDocument("1", "RE-1", document([line("10.00")]), customer), ISSUER, entity)
        assert invoice.payment is not None
        assert (invoice.payment.code, invoice.payment.debit) == ("58", None)
        assert invoice.payment.transfer
