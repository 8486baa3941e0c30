"""Every document that the worked examples make goes through checks, official rules and page."""

from __future__ import annotations

from pathlib import Path

import pytest
from invoice_samples import CUSTOMER, ENTITY

from billing.einvoice.checks import check
from billing.einvoice.cii import to_cii
from billing.einvoice.parties import seller_of
from billing.scenario import documents_of
from cluster.scenario_command import load
from pipelines.documents import FinalDocument, Issuer, invoice_for, render_pdf
from pipelines.invoice_rules import ShapeGate
from pipelines.invoice_view import decimals_of

CASES = Path(__file__).parents[1] / "cases"
SCENARIOS = sorted([*(CASES / "scenarios").glob("*.yaml"), *(CASES / "own").glob("*.yaml")])
SELLER = seller_of(ENTITY, "DE")


@pytest.fixture(scope="module")
def gate() -> ShapeGate:
    return ShapeGate()


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_documents_of_a_scenario_can_be_issued(path: Path, gate: ShapeGate) -> None:
    form = load(path.read_text("utf-8"))
    country = form["tenant"].get("country") or "DE"
    issuer = Issuer("", form["tenant"].get("timezone") or "UTC", country, ENTITY)
    customers = {one["code"]: one for one in form.get("customers", [])}
    drawn = False
    for billed in documents_of(form):
        document = billed.document
        customer = {**CUSTOMER, **customers.get(document.customer, {}), "code": document.customer}
        number = f"RE-{billed.number}"
        one = FinalDocument(number, number, document, customer, document.date)
        invoice, e_invoice = invoice_for(one, issuer, SELLER)
        if {tax.category for tax in invoice.taxes} > {"O"}:
            e_invoice = False  # a customer whose treatment changed: EN 16931 cannot say it (BR-O-11)
        digits = decimals_of(document.currency)
        assert check(invoice, e_invoice=e_invoice, minor_digits=digits) == [], number
        xml = None
        if e_invoice:
            xml = to_cii(invoice)
            assert gate.violations(xml, number) == [], number
        if not drawn or invoice.records:
            assert render_pdf(invoice, seller=SELLER, xml=xml).startswith(b"%PDF-1.7")
            drawn = True
