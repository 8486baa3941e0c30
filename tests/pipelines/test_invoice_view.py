"""The page of documents with prices that contain the tax, and of a payer with lines of several customers."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from invoice_samples import CUSTOMER, ENTITY

from billing.einvoice.checks import check
from billing.einvoice.cii import to_cii
from billing.einvoice.model import Invoice
from billing.einvoice.parties import seller_of
from billing.scenario import documents_of
from pipelines.documents import BUILT_IN, FinalDocument, Issuer, invoice_for, render_pdf
from pipelines.invoice_rules import ShapeGate
from pipelines.invoice_view import view

SELLER = seller_of(ENTITY, "DE")
ISSUER = Issuer("", "Europe/Berlin", "DE", ENTITY)


def plan(code: str, price: dict[str, Any], **more: Any) -> dict[str, Any]:
    charge = {"code": "seat", "name": "Seat", "kind": "recurring", "price": price, "tax": "standard"}
    return {"code": code, "currency": "EUR", "interval": "month", "charges": [charge], **more}


def invoice_of_a_family() -> Invoice:
    """ACME pays for itself (3 seats at 9.99 with tax less 10 %, 12.00 without) and for Kid (2 seats)."""

    def begin(code: str, customer: str, plan: str, seats: str, **more: Any) -> dict[str, Any]:
        form = {"code": code, "customer": customer, "plan": plan, "quantities": {"seat": seats}, **more}
        return {"at": "2026-01-01", "subscribe": form}

    form = {
        "tenant": {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"},
        "tax_codes": [{"code": "standard", "percents": [{"from": "2021-01-01", "percent": "19"}]}],
        "plans": [
            plan("inside", {"model": "per_unit", "unit": "9.99"}, tax_behavior="inclusive"),
            plan("beside", {"model": "flat", "amount": "12.00"}),
        ],
        "customers": [{"code": "acme", "name": "ACME AG"}, {"code": "kid", "name": "Kid GmbH", "payer": "acme"}],
        "timeline": [
            begin("s1", "acme", "inside", "3", discounts=[{"percent": "10"}]),
            begin("s2", "acme", "beside", "1"),
            begin("s3", "kid", "inside", "2"),
            {"at": "2026-01-01", "bill_run": {"up_to": "2026-01-01"}},
        ],
    }
    (billed,) = documents_of(form)
    customer = {**CUSTOMER, "code": "acme", "name": "ACME AG", "language": "en"}
    final = FinalDocument("1", "RE-1", billed.document, customer, billed.document.date)
    return invoice_for(final, ISSUER, SELLER)[0]


@pytest.fixture(scope="module")
def invoice() -> Invoice:
    return invoice_of_a_family()


def test_the_page_shows_what_was_agreed_beside_the_net(invoice: Invoice) -> None:
    """Gross 26.97 (29.97 less 3.00) and 19.98: tax 7.50 (7.4962), net 39.45; of it 22.66 and 16.79."""
    page = view(invoice, SELLER, "invoice", "en")
    assert page["with_gross"] is True
    assert page["columns"][-3:] == ["Price EUR", "Net EUR", "Gross EUR"]
    first, second = page["groups"][0]["lines"][0], page["groups"][1]["lines"][0]
    assert (first["quantity"][0], first["price"][0], first["amount"], first["gross"]) == ("3", "9.99", "25.18", "29.97")
    assert first["below"] == [["Discount", "−2.52", "−3.00"]]
    assert first["note"] == "price includes VAT"
    assert (second["price"][0], second["amount"], second["gross"], second["note"]) == ("12.00", "12.00", "", "")
    assert page["taxes"]["rows"] == [["19 %", "51.45", "9.78"]]


def test_the_page_groups_by_customer_with_a_sum_each(invoice: Invoice) -> None:
    groups = view(invoice, SELLER, "invoice", "de")["groups"]
    assert [group["name"] for group in groups] == ["ACME AG: inside", "ACME AG: beside", "Kid GmbH: inside"]
    assert [group["sums"] for group in groups] == [
        [["Summe inside", "22,66", "26,97"]],
        [["Summe beside", "12,00", ""], ["Summe ACME AG", "34,66", ""]],  # one of its lines was agreed without tax
        [["Summe Kid GmbH", "16,79", "19,98"]],
    ]


def test_the_e_invoice_says_the_same_in_net_and_passes_the_official_rules(invoice: Invoice) -> None:
    assert check(invoice) == []
    xml = to_cii(invoice)
    assert ShapeGate().violations(xml, "RE-1") == []
    text = xml.decode()
    for amount in ("22.66", "12.00", "16.79", "51.45", "9.78", "61.23"):
        assert f">{amount}<" in text
    assert text.count(">Kid GmbH<") == 1  # the attribute of his line
    assert render_pdf(invoice, BUILT_IN, "en", seller=SELLER, xml=xml).startswith(b"%PDF-1.7")


def test_a_tax_that_is_not_the_one_within_the_gross_is_a_violation(invoice: Invoice) -> None:
    cent = Decimal("0.01")
    (tax,) = invoice.taxes
    totals = replace(invoice.totals, tax=invoice.totals.tax + cent, gross=invoice.totals.gross + cent)
    wrong = replace(
        invoice, taxes=(replace(tax, amount=tax.amount + cent),), totals=replace(totals, due=totals.due + cent)
    )
    assert [one.rule for one in check(wrong)] == ["BR-CO-17"]
