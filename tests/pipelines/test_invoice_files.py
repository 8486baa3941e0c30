"""An invoice as files of every format: each passes its own official rules; what cannot be issued is said in words."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pypdf
import pytest

from billing.einvoice.model import EN_16931, Invoice
from billing.einvoice.profiles import PEPPOL, XRECHNUNG
from billing.einvoice.usage_record import usage_record_csv
from billing.errors import InvalidInput
from pipelines.documents import NotIssuable
from pipelines.invoice_files import FORMATS, Format, formats_of, render_files
from pipelines.invoice_rules import rule_violations, schema_violations, syntax_of
from pipelines.read_invoice import read_invoice, xml_of_pdf

sys.path.append(str(Path(__file__).parents[1] / "billing" / "einvoice"))
from maximal import changed

FOLDER = Path(__file__).parents[2] / "examples" / "invoices"
EXAMPLES: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))
}
EXAMPLE = EXAMPLES["invoice"]
PROFILE_OF = {"zugferd": EN_16931, "zugferd-xrechnung": XRECHNUNG, "xrechnung": XRECHNUNG, "xrechnung-ubl": XRECHNUNG,
              "cii": EN_16931, "ubl": EN_16931, "peppol": PEPPOL}  # fmt: skip
TYPES = {
    "invoice": {},
    "credit note": {"/type_code": "381", "/preceding": [{"number": "RE-2026-0041", "issued_on": "2026-10-01"}]},
    "corrected invoice": {"/type_code": "384", "/preceding": [{"number": "RE-2026-0041", "issued_on": "2026-10-01"}]},
    "final invoice": {"/totals/prepaid": "200.00", "/totals/due": "287.27",
                      "/preceding": [{"number": "AR-2026-0007", "issued_on": "2026-09-01"}]},
    "paid by debit": {"/payment": {"code": "59", "debit": {"mandate": "M-7", "creditor_id": "DE98ZZZ09999999999",
                                                          "iban": "DE02120300000000202051"}}},
    "usage record inside": {"/attachments": [{"ref": "usage", "name": "usage.csv", "mime": "text/csv",
                                              "bytes": "aWQ7cXVhbnRpdHkK"}]},
    "right to left and long": {"/buyer/name": "שלום " * 40, "/lines/0/name": "خدمة التخزين", "/lines/0/note": "日本"},
}  # fmt: skip


def made(form: Format, changes: dict[str, Any], language: str = "de") -> bytes:
    (file,) = render_files(Invoice.from_json(changed(EXAMPLE, changes)), [form], language)
    return file.data


def page_text(pdf: bytes) -> str:
    return "\n".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(pdf)).pages)


def xml_in(data: bytes) -> bytes:
    return xml_of_pdf(data) if data.startswith(b"%PDF") else data


@pytest.mark.parametrize("form", PROFILE_OF)
@pytest.mark.parametrize("kind", TYPES)
def test_every_kind_of_invoice_passes_the_rules_of_every_format(form: Format, kind: str) -> None:
    xml = xml_in(made(form, TYPES[kind]))
    assert schema_violations(xml) == []
    assert rule_violations(xml) == []
    found = read_invoice(xml)
    assert found.profile == PROFILE_OF[form]
    assert syntax_of(xml).startswith("cii" if form in ("zugferd", "zugferd-xrechnung", "xrechnung", "cii") else "ubl")
    # Whatever the format, it is the same invoice: amounts, parties, terms.
    given = Invoice.from_json(changed(EXAMPLE, TYPES[kind]))
    for name in ("number", "type_code", "seller", "payment", "totals", "payment_terms", "buyer_reference", "period"):
        assert getattr(found, name) == getattr(given, name), name
    assert [(line.name, line.quantity, line.price, line.base_quantity or 1, line.net) for line in found.lines] == [
        (line.name, line.quantity, line.price, line.base_quantity or 1, line.net) for line in given.lines
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_passes_the_rules_of_every_format_without_a_warning_of_ours(name: str) -> None:
    """Partial, prepayment and final invoice, credit note, correction, reverse charge, debit, usage record."""
    invoice = Invoice.from_json(EXAMPLES[name])
    for file in render_files(invoice, FORMATS, strict=True, usage_record=True):
        if PROFILE_OF.get(file.format):
            xml = xml_in(file.data)
            assert schema_violations(xml) == []
            assert rule_violations(xml) == []
            found = read_invoice(xml)
            assert (found.number, found.type_code, found.totals) == (
                invoice.number, invoice.type_code, invoice.totals,
            )  # fmt: skip
            assert [one.name for one in found.attachments] == ["usage-record.csv"]


def test_a_final_invoice_takes_off_what_was_billed_before_with_its_tax() -> None:
    """§ 14 (5) UStG: a negative line for each invoice before, so that the tax adds up in the XML, too."""
    final, partial, prepaid = (
        Invoice.from_json(EXAMPLES[name]) for name in ("final-invoice", "partial-invoice", "prepayment-invoice")
    )
    before = {one.number: one.totals for one in (partial, prepaid)}
    assert {one.number for one in final.preceding} == set(before)
    taken = sum(line.net for line in final.lines if line.quantity < 0)
    assert -taken == sum(one.net for one in before.values())
    whole = sum(line.net for line in final.lines if line.quantity > 0)
    assert final.totals.tax is not None
    assert final.totals.tax + sum((one.tax or 0) for one in before.values()) == whole * 19 / 100
    text = page_text(render_files(final, ["zugferd"])[0].data)
    assert all(number in text for number in before)
    assert "Abschlagsrechnung" in page_text(render_files(partial, ["zugferd"])[0].data)


def test_what_was_paid_before_is_said_so_and_not_as_credit() -> None:
    text = page_text(made("zugferd", TYPES["final invoice"]))
    assert "Bereits gezahlt" in text
    assert "Guthaben" not in text


def test_the_usage_record_lies_in_the_pdf_and_in_the_xml_inside() -> None:
    invoice = Invoice.from_json(EXAMPLES["usage-record"])
    (file,) = render_files(invoice, ["zugferd"], "en", usage_record=True)
    reader = pypdf.PdfReader(io.BytesIO(file.data))
    data = reader.attachments["usage-record.csv"][0]
    assert data == usage_record_csv(invoice)
    (added,) = read_invoice(file.data).attachments
    assert (added.bytes, added.mime, added.text) == (data, "text/csv", "Usage record")


def test_two_lines_of_one_id_are_a_warning_in_xml_and_refused_on_paper() -> None:
    """A page finds lines by their ids: it showed the last of them twice."""
    invoice = Invoice.from_json(changed(EXAMPLE, {"/lines/1/id": "1"}))
    (file,) = render_files(invoice, ["cii"])
    assert [one.rule for one in file.warnings] == ["CB-02"]
    for form in ("zugferd", "pdf", "html"):
        with pytest.raises(NotIssuable, match="CB-02"):
            render_files(invoice, [form])


def test_the_rules_of_xrechnung_are_run_and_not_those_of_the_standard_alone() -> None:
    """Beside our own checks: a document that passes them by mistake is still stopped by the official rules."""
    xml = made("xrechnung", {}).replace(b"<ram:BuyerReference>04011000-12345-03</ram:BuyerReference>", b"")
    assert "BR-DE-15" in {one.rule for one in rule_violations(xml)}
    xml = made("xrechnung-ubl", {}).replace(b"<cbc:Telephone>+49 421 5550 142</cbc:Telephone>", b"")
    assert "BR-DE-6" in {one.rule for one in rule_violations(xml)}


@pytest.mark.parametrize(
    ("form", "changes", "rule", "pointer"),
    [
        ("cii", {"/buyer/address": {"country": "D"}}, "BR-11", "/buyer/address/country"),
        ("peppol", {"/lines/0/net": "400.03"}, "PEPPOL-EN16931-R120", "/lines/0/net"),
        ("cii", {"/totals/lines": "409.46"}, "BR-CO-10", "/totals/lines"),
        ("cii", {"/taxes/0/amount": "78.80"}, "BR-CO-17", "/taxes/0/amount"),
        ("cii", {"/period": {}}, "BR-CO-19", "/period"),
        ("xrechnung", {"/seller/contact": ...}, "BR-DE-2", "/seller/contact"),
        ("peppol", {"/buyer/endpoint/scheme": "EM"}, "PEPPOL-EN16931-CL008", "/buyer/endpoint/scheme"),
        ("pdf", {"/totals/due": "1"}, "BR-CO-16", "/totals/due"),
        ("html", {"/lines/0/price": "-1"}, "BR-27", "/lines/0/price"),
    ],
)
def test_what_is_wrong_is_refused_with_rule_words_and_place(
    form: Format, changes: dict[str, Any], rule: str, pointer: str
) -> None:
    with pytest.raises(NotIssuable) as caught:
        made(form, changes)
    assert (rule, pointer) in [(one.rule, one.pointer) for one in caught.value.violations]
    assert str(caught.value).startswith(f"{form}: ")


@pytest.mark.parametrize("form", ["zugferd", "pdf"])
def test_a_character_that_no_font_has_is_named_with_the_terms_that_have_it(form: Format) -> None:
    """A box on paper is a defect; the others go on."""
    with pytest.raises(NotIssuable) as caught:
        made(form, {"/lines/0/name": "Clay 𒀀", "/buyer/name": "𒀀 GmbH"})
    assert "U+12000" in caught.value.detail
    assert {(one.pointer, one.detail[-7:]) for one in caught.value.errors} == {
        ("/buyer/name", "(BT-44)"), ("/lines/0/name", "BT-153)"),
    }  # fmt: skip
    assert made(form, {}).startswith(b"%PDF")


def test_a_violation_names_the_business_term() -> None:
    with pytest.raises(NotIssuable) as caught:
        made("cii", {"/totals/lines": "409.46", "/totals/net": "409.46"})
    assert ("/totals/lines", "BT-106") in [(one.pointer, one.detail[-7:-1]) for one in caught.value.errors]


def test_a_unit_that_is_none_is_found_by_the_official_rules() -> None:
    with pytest.raises(NotIssuable) as caught:
        made("ubl", {"/lines/0/unit": "pieces"})
    assert "BR-CL-23" in [one.rule for one in caught.value.violations]


def test_what_others_rounded_otherwise_is_let_pass_as_far_as_the_official_rules_do() -> None:
    """Two cents at a line (R120); what we bill ourselves is exact, see test_documents."""
    off = {"/lines/0/net": "400.02", "/totals/lines": "409.49", "/totals/net": "409.49", "/taxes/0/base": "409.49",
           "/totals/gross": "487.29", "/totals/due": "487.29"}  # fmt: skip
    assert rule_violations(made("peppol", off)) == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"/lines/0/price": "399.97"}, "PEPPOL-EN16931-R120"),
        ({"/payment/transfer/0/iban": "DE03120300000000202051"}, "CB-04"),
        ({"/due_on": "2026-10-01"}, "CB-01"),
    ],
)
def test_what_the_official_rules_let_pass_is_a_warning_and_refused_only_if_asked(
    changes: dict[str, Any], rule: str
) -> None:
    invoice = Invoice.from_json(changed(EXAMPLE, changes))
    (file,) = render_files(invoice, ["cii"])
    assert [one.rule for one in file.warnings] == [rule]
    assert rule_violations(file.data) == []
    with pytest.raises(NotIssuable, match=rule):
        render_files(invoice, ["cii"], strict=True)


def test_pages_have_the_words_of_their_language_and_every_letter() -> None:
    html = made("html", TYPES["right to left and long"], "en").decode()
    assert "Invoice" in html
    assert "خدمة التخزين" in html
    assert "Rechnung" in made("html", {}).decode()


def test_ten_thousand_lines_are_written_drawn_and_read() -> None:
    line = EXAMPLE["lines"][2]
    lines = [{**line, "id": str(number), "quantity": "10", "net": "5.00"} for number in range(10_000)]
    sums = {"/lines": lines, "/totals/lines": "50000.00", "/totals/net": "50000.00", "/taxes/0/base": "50000.00",
            "/taxes/0/amount": "9500.00", "/totals/tax": "9500.00", "/totals/gross": "59500.00",
            "/totals/due": "59500.00"}  # fmt: skip
    pdf = made("zugferd", sums)
    assert len(read_invoice(pdf).lines) == 10_000
    pages = pypdf.PdfReader(io.BytesIO(pdf)).pages
    assert len(pages) > 100
    assert f"{len(pages)} von {len(pages)}" in pages[-1].extract_text()
    assert "59.500,00" in pages[-1].extract_text()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("zugferd", ("zugferd",)),
        ("Factur-X, ubl,ubl", ("zugferd", "ubl")),
        (" xrechnung-cii ,pdf", ("xrechnung", "pdf")),
    ],
)
def test_formats_have_their_usual_names(text: str, found: tuple[str, ...]) -> None:
    assert formats_of(text) == found


@pytest.mark.parametrize("text", ["", ",", "docx", "pdf,docx"])
def test_an_unknown_format_is_refused_with_those_that_there_are(text: str) -> None:
    refuse: Callable[[str], object] = formats_of
    with pytest.raises(InvalidInput) as caught:
        refuse(text)
    assert all(name in caught.value.detail for name in FORMATS)
