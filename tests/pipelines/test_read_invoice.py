"""An invoice that is written in either syntax and read again is the same invoice; what strangers send costs no more."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from billing.einvoice.cii import to_cii
from billing.einvoice.model import Debit, Invoice, Period, Transfer
from billing.einvoice.ubl import to_ubl
from billing.errors import InvalidInput
from pipelines.documents import render_pdf
from pipelines.invoice_rules import rule_violations, schema_violations, syntax_of
from pipelines.read_invoice import read_invoice

sys.path.append(str(Path(__file__).parents[1] / "billing" / "einvoice"))
from maximal import EVERYTHING, OUTSIDE

WRITERS = {"cii": to_cii, "ubl": to_ubl}


def for_xml(invoice: Invoice) -> Invoice:
    """Without what is for people and stands in no XML."""
    lines = tuple(replace(line, gross=None, price_with_tax=None) for line in invoice.lines)
    allowances = tuple(replace(one, gross=None) for one in invoice.allowances)
    return replace(invoice, lines=lines, allowances=allowances, groups=(), records=(), timezone=None)


def sample(name: str) -> Invoice:
    """Every term; the same as a credit note; one outside of the scope of VAT; one paid by direct debit."""
    form: dict[str, Any] = {"everything": EVERYTHING, "outside": OUTSIDE}.get(name, EVERYTHING)
    invoice = for_xml(Invoice.from_json(form))
    if name == "credit note":
        return replace(invoice, type_code="381")
    if name == "tax point by code":
        return replace(invoice, tax_point_on=None, tax_point_code="432")
    if name == "order of the seller only":
        return replace(invoice, order=None)
    if name == "discount for early payment":
        return replace(invoice, payment_terms="Zahlbar bis 1.12.\n#SKONTO#TAGE=14#PROZENT=2.00#\n")
    if name == "account that is no IBAN":
        assert invoice.payment is not None
        return replace(invoice, payment=replace(invoice.payment, transfer=(Transfer("0532013000", name="Nordwind"),)))
    if name == "periods with one end":
        line = replace(invoice.lines[0], period=Period(end=date(2026, 10, 31)))
        return replace(invoice, period=Period(start=date(2026, 10, 1)), lines=(line, *invoice.lines[1:]))
    if name == "a mandate alone":
        assert invoice.payment is not None
        return replace(invoice, payment=replace(invoice.payment, debit=Debit(mandate="M-1")))
    return invoice


def as_read(invoice: Invoice, syntax: str) -> dict[str, Any]:
    """What the writers add, since the syntaxes want it: a scheme of article numbers, the name of an attached file, the
    percent of a tax group outside of VAT (and none at its allowances); CII has ids without a scheme first."""
    form = invoice.to_json()
    for line in form["lines"]:
        if "gtin" in line:
            line["gtin"].setdefault("scheme", "0160")
    for one in form.get("attachments", ()):
        if "bytes" in one:
            one.setdefault("name", one["ref"])
    for tax in form["taxes"]:
        tax.setdefault("percent", "0")
    for one in form.get("allowances", ()):
        if one["tax_category"] == "O":
            one.pop("tax_percent", None)
    if syntax == "cii":
        for party in ("seller", "buyer"):
            form[party].get("ids", []).sort(key=lambda one: "scheme" in one)
    return form


NAMES = [
    *("everything", "outside", "credit note", "tax point by code", "order of the seller only"),
    *("discount for early payment", "account that is no IBAN", "periods with one end", "a mandate alone"),
]


@pytest.mark.parametrize("syntax", WRITERS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_and_read_again_is_the_same_invoice(name: str, syntax: str) -> None:
    invoice = sample(name)
    found = read_invoice(WRITERS[syntax](invoice))
    assert found.to_json() == as_read(invoice, syntax)
    assert read_invoice(WRITERS[syntax](found)) == found


@pytest.mark.parametrize("name", NAMES)
def test_cii_passes_the_official_schema_and_rules(name: str) -> None:
    xml = to_cii(sample(name))
    assert schema_violations(xml) == []
    assert rule_violations(xml) == []


@pytest.mark.parametrize("name", NAMES)
def test_ubl_passes_the_official_schema_and_rules(name: str) -> None:
    xml = to_ubl(sample(name))
    assert syntax_of(xml) == ("ubl-credit-note" if name == "credit note" else "ubl-invoice")
    assert schema_violations(xml) == []
    assert rule_violations(xml) == []


def test_a_right_element_in_the_wrong_place_and_a_wrong_sum_are_found_in_ubl() -> None:
    xml = to_ubl(sample("everything"))
    swapped = xml.replace(b"<cbc:ProfileID>", b"<cbc:UUID>x</cbc:UUID><cbc:ProfileID>", 1)
    assert schema_violations(swapped)
    due = f'<cbc:PayableAmount currencyID="EUR">{sample("everything").totals.due}'.encode()
    assert due in xml
    wrong = xml.replace(due, b'<cbc:PayableAmount currencyID="EUR">1.00')
    assert "BR-CO-16" in {one.rule for one in rule_violations(wrong)}


def test_the_invoice_inside_of_a_pdf_is_read() -> None:
    invoice = sample("outside")
    assert read_invoice(render_pdf(invoice, xml=to_cii(invoice))).to_json() == as_read(invoice, "cii")


def test_a_discount_without_the_price_before_it_gives_that_price() -> None:
    xml = to_ubl(sample("everything"))
    start, end = (
        xml.index(b"<cbc:BaseAmount", xml.index(b"<cac:Price>")),
        xml.index(b"</cac:AllowanceCharge></cac:Price>"),
    )
    line = next(one for one in read_invoice(xml[:start] + xml[end:]).lines if one.discount is not None)
    assert line.discount is not None
    assert line.gross_price == line.price + line.discount


def pdf_without_xml() -> bytes:
    from pypdf import PdfWriter

    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    target = io.BytesIO()
    writer.write(target)
    return target.getvalue()


BOMB = b'<!DOCTYPE a [<!ENTITY a "x"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no XML"),
        (b"no xml", "no XML"),
        (b"<a/>", "no CII or UBL invoice: its root is a"),
        (b"%PDF-1.7 broken", "cannot be read"),
        (pdf_without_xml(), "carries no e-invoice"),
        (BOMB + b"<a>&b;</a>", "document type"),
        (to_ubl(sample("outside")).replace(b"?>\n", b"?>\n" + BOMB, 1), "document type"),
        (b"<a>" * 100_000, "no XML"),
        (to_cii(sample("outside")).replace(b"20261101", b"tomorrow"), "is not a date"),
        (to_ubl(sample("outside")).replace(b'currencyID="EUR">', b'currencyID="EUR">x'), "is not a decimal"),
    ],
)
def test_what_is_no_invoice_is_refused_in_words(data: bytes, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_invoice(data)
    assert words in str(caught.value.detail) + str([one.detail for one in caught.value.errors])


def test_a_file_of_this_machine_is_never_read() -> None:
    """Neither by an entity nor by an address in a schema hint."""
    evil = b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    xml = to_ubl(sample("outside")).replace(b"?>\n", b"?>\n" + evil, 1).replace(b"<cbc:Name>", b"<cbc:Name>&e;", 1)
    with pytest.raises(InvalidInput):
        read_invoice(xml)
