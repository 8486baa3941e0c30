"""Documents as a customer gets them: official rules, page, embedded XML, archive; each kind through all of it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import pypdf
import pytest
from invoice_samples import ENTITY, ISSUER, PDF_ONLY, SAMPLES, document, final, line, mock_up

from billing.einvoice.cii import to_cii
from billing.einvoice.model import EN_16931, Invoice
from billing.einvoice.parties import seller_of
from billing.errors import InvalidInput
from pipelines.documents import (
    BUILT_IN,
    FinalDocument,
    NotIssuable,
    checked_xml,
    files_of,
    invoice_for,
    render_pdf,
    shared_gate,
)
from pipelines.factur_x import CONFORMANCE_LEVEL, FILE_NAME, with_factur_x_metadata
from pipelines.invoice_rules import ShapeGate, rule_violations, schema_violations, shape
from pipelines.invoice_view import texts_of

GOLDEN = Path(__file__).parents[1] / "golden" / "documents"
SELLER = seller_of(ENTITY, "DE")
ALL = {**SAMPLES, **PDF_ONLY}


@pytest.fixture(scope="module")
def gate() -> ShapeGate:
    return ShapeGate()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every sample as a file, made once for the tests that read it."""
    folder = tmp_path_factory.mktemp("documents")
    files: dict[str, Path] = {}
    for name in ALL:
        pdf, _ = produced(ALL[name]())
        files[name] = folder / f"{name}.pdf"
        files[name].write_bytes(pdf)
    return files


def produced(one: FinalDocument) -> tuple[bytes, bytes | None]:
    invoice, e_invoice = invoice_for(one, ISSUER, SELLER)
    xml = to_cii(invoice) if e_invoice else None
    language = one.customer.get("language", "de")
    return render_pdf(invoice, BUILT_IN, language, seller=SELLER, xml=xml), xml


def invoice_named(name: str) -> Invoice:
    return invoice_for(ALL[name](), ISSUER, SELLER)[0]


def page_text(path: Path) -> str:
    """The words of all pages in the order of the file, as a screen reader gets them."""
    pages = [page.extract_text().replace("\u200b", "") for page in pypdf.PdfReader(path).pages]
    return "\n".join(each.rstrip() for page in pages for each in page.splitlines()) + "\n"


@pytest.mark.parametrize(("made_here", "words"), [(True, "Aus Guthaben bezahlt"), (False, "Bereits gezahlt")])
def test_what_is_prepaid_is_a_customers_credit_only_where_the_platform_made_the_document(
    made_here: bool, words: str
) -> None:
    one = SAMPLES["allowances-and-prepaid"]()
    if not made_here:
        one = replace(one, issued=invoice_for(one, ISSUER, seller_of(ENTITY, "DE"))[0])
    pdf = files_of(one, ISSUER, shared_gate())[-1].data
    text = "".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(pdf)).pages).replace("\u200b", "")
    assert [each in text for each in (words, "Aus Guthaben bezahlt")] == [True, made_here]


# -- Official rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_every_kind_of_document_passes_the_official_schema_and_rules_without_a_warning(name: str) -> None:
    xml = to_cii(invoice_named(name))
    assert schema_violations(xml) == []
    assert rule_violations(xml, warnings=True) == []


def test_the_rules_really_run_and_find_a_sum_that_is_off_by_a_cent() -> None:
    invoice = invoice_named("invoice")
    wrong = replace(invoice, totals=replace(invoice.totals, due=invoice.totals.due + Decimal("0.01")))
    assert "BR-CO-16" in {one.rule for one in rule_violations(to_cii(wrong))}


def test_the_schema_really_runs_and_finds_an_element_in_the_wrong_place() -> None:
    xml = to_cii(invoice_named("invoice"))
    start, end = xml.index(b"<ram:InvoiceCurrencyCode>"), xml.index(b"</ram:InvoiceCurrencyCode>") + 26
    moved = xml[:start] + xml[end:].replace(
        b"</ram:ApplicableHeaderTradeSettlement>", xml[start:end] + b"</ram:ApplicableHeaderTradeSettlement>"
    )
    assert [one.rule for one in schema_violations(moved)][:1] == ["XSD"]


def test_a_document_type_definition_in_a_file_reads_nothing() -> None:
    bomb = b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'
    assert not any("root:" in one.detail for one in schema_violations(bomb))


def test_a_violation_names_its_rule_and_parks_the_document(gate: ShapeGate) -> None:
    invoice = invoice_named("reverse-charge")
    without_id = replace(invoice, buyer=replace(invoice.buyer, vat_id=None))
    with pytest.raises(NotIssuable) as refused:
        checked_xml(without_id, gate)
    assert refused.value.detail.startswith("BR-AE-02: ")
    assert refused.value.errors[0].pointer == "/buyer/vat_id"


def test_dinars_with_three_decimals_are_no_e_invoice_and_are_refused_when_one_is_demanded(gate: ShapeGate) -> None:
    invoice, e_invoice = invoice_for(PDF_ONLY["dinar"](), ISSUER, SELLER)
    assert not e_invoice
    with pytest.raises(NotIssuable, match="two decimals"):
        checked_xml(invoice, gate)


def test_a_shape_is_checked_in_full_once_and_again_as_a_sample() -> None:
    gate = ShapeGate(sample_every=1_000_000)
    base = invoice_named("invoice")
    for place in range(5):
        assert checked_xml(replace(base, number=f"RE-{place}"), gate)
    assert gate.checked == 1
    checked_xml(invoice_named("credit-note"), gate)
    assert gate.checked == 2
    every = ShapeGate(sample_every=1)
    for place in range(3):
        checked_xml(replace(base, number=f"RE-{place}"), every)
    assert every.checked == 3


def test_a_shape_forgets_figures_and_names_but_not_signs_codes_and_missing_parts() -> None:
    base = invoice_named("invoice")
    same = replace(base, number="RE-1", buyer=replace(base.buyer, name="Somebody Else"))
    assert shape(to_cii(same)) == shape(to_cii(base))
    others = [
        replace(base, due_on=None),
        replace(base, type_code="384"),
        replace(base, currency="CHF"),
        replace(base, lines=(replace(base.lines[0], quantity=-base.lines[0].quantity), *base.lines[1:])),
    ]
    shapes = {shape(to_cii(one)) for one in (base, *others)}
    assert len(shapes) == 5


# -- The page ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["invoice", "invoice-en", "credit-note", "reverse-charge", "hundred-lines"])
def test_the_page_says_what_the_golden_text_says(name: str, made: dict[str, Path]) -> None:
    text, path = page_text(made[name]), GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8"), f"GOLDEN=write rewrites {path}"


@pytest.mark.parametrize(
    "name", ["invoice", "credit-note", "outside-scope", "negative-lines", "price-of-twelve-decimals"]
)
def test_the_xml_is_the_golden_xml(name: str) -> None:
    from lxml import etree

    text = etree.tostring(etree.fromstring(to_cii(invoice_named(name))), pretty_print=True, encoding="unicode")
    path = GOLDEN / f"{name}.xml"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8"), f"GOLDEN=write rewrites {path}"


def test_the_mock_up_comes_out_to_the_cent(made: dict[str, Path]) -> None:
    text = page_text(made["invoice"])
    for expected in (
        "Zu zahlen bis 01.12.2026",
        "3.930,27 EUR",
        "3.067,81",
        "01.–31.10.2026",
        "12.–31.10.2026",
        "Seite 1 von 2",
    ):
        assert expected in text, expected


def test_names_in_arabic_and_chinese_and_an_emoji_reach_the_page(made: dict[str, Path]) -> None:
    text = page_text(made["names-of-the-world"])
    for expected in ("上海科技有限公司", "東京", "🚀"):
        assert expected in text
    arabic = {each for each in text if "\u0600" <= each <= "\u06ff" or "\ufb50" <= each <= "\ufeff"}
    assert len(arabic) > 5


def test_a_character_that_no_font_has_is_named_and_parks_the_document() -> None:
    one = final(document([line("1.00")]), "RE-1", {"name": "Linear B \U00010000 Ltd"})
    with pytest.raises(NotIssuable, match=r"U\+10000"):
        produced(one)


@pytest.mark.parametrize(
    ("logo", "reason"),
    [
        ("<svg", "cannot be drawn"),
        ("GIF89a", "SVG text"),
        ("<svg>" + " " * 200_000 + "</svg>", "SVG text"),
        (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><image href="file:///etc/passwd" width="5"'
            ' height="5"/></svg>',
            "cannot be drawn",
        ),
        (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><image href="invoice.typ" width="5"'
            ' height="5"/></svg>',
            "cannot be drawn",
        ),
    ],
)
def test_a_broken_or_curious_logo_parks_the_document_in_words(logo: str, reason: str) -> None:
    invoice = invoice_named("zero")
    with pytest.raises((NotIssuable, InvalidInput), match=reason):
        render_pdf(invoice, seller=replace(SELLER, logo=logo))


@pytest.mark.parametrize("count", [1, 40])
def test_lines_fill_pages_with_a_head_on_each_and_the_number_of_pages(count: int, tmp_path: Path) -> None:
    lines = [line("10.00", name=f"Dienst {place}") for place in range(count)]
    path = tmp_path / "lines.pdf"
    path.write_bytes(produced(final(document(lines), "RE-1"))[0])
    pages = [page.extract_text() for page in pypdf.PdfReader(path).pages]
    assert len(pages) == (1 if count == 1 else 2)
    for number, text in enumerate(pages, start=1):
        assert f"Seite {number} von {len(pages)}" in text
    assert sum("Leistung" in text for text in pages) == len(pages) or count == 1


def test_a_name_of_200_characters_stays_in_the_window_and_on_the_page(made: dict[str, Path]) -> None:
    name = SAMPLES["name-of-200-characters"]().customer["name"]
    assert len(name) >= 198
    text = page_text(made["name-of-200-characters"])
    assert name.replace(" ", "") in "".join(text.split())


@pytest.mark.services
@pytest.mark.parametrize("name", ALL)
def test_no_word_runs_out_of_the_text_area(name: str, made: dict[str, Path]) -> None:
    if shutil.which("pdftotext") is None:  # tells where each word ends; a package of every Debian
        subprocess.run(["apt-get", "install", "-y", "-qq", "poppler-utils"], check=True, timeout=280)
    answer = subprocess.run(
        ["pdftotext", "-bbox", str(made[name]), "-"], check=True, capture_output=True, timeout=60
    ).stdout.decode()
    words = [each for each in answer.splitlines() if "<word" in each]
    edges = [
        (float(one.split('xMin="')[1].split('"')[0]), float(one.split('xMax="')[1].split('"')[0])) for one in words
    ]
    assert len(edges) > 50
    assert min(left for left, _ in edges) >= 24.9 / 25.4 * 72
    assert max(right for _, right in edges) <= (210 - 19.9) / 25.4 * 72


def test_the_same_invoice_gives_the_same_bytes_and_another_date_gives_others() -> None:
    first, _ = produced(SAMPLES["invoice"]())
    assert produced(SAMPLES["invoice"]())[0] == first
    other = SAMPLES["invoice"]()
    assert produced(replace(other, document=replace(other.document, date=date(2026, 11, 2))))[0] != first


def test_the_languages_have_the_same_words_in_the_same_places() -> None:
    def places(form: object, path: str = "") -> set[str]:
        if isinstance(form, dict):
            return set().union(*(places(value, f"{path}/{key}") for key, value in form.items()))
        return {path}

    assert places(texts_of("invoice", "de")) == places(texts_of("invoice", "en"))
    with pytest.raises(InvalidInput, match="de, en"):
        texts_of("invoice", "xx")
    with pytest.raises(InvalidInput):
        texts_of("invoice", "../../etc")


# -- The file ----------------------------------------------------------------------------------------------------------


def test_the_pdf_carries_the_very_xml_once_and_says_so_in_its_metadata(made: dict[str, Path]) -> None:
    _, xml = produced(SAMPLES["invoice"]())
    reader = pypdf.PdfReader(made["invoice"])
    assert {name: contents for name, contents in reader.attachments.items()} == {FILE_NAME: [xml]}
    metadata = reader.trailer["/Root"]["/Metadata"].get_data().decode()
    assert f"<fx:ConformanceLevel>{CONFORMANCE_LEVEL}</fx:ConformanceLevel>" in metadata
    assert CONFORMANCE_LEVEL == "EN 16931"
    assert f"<ram:ID>{EN_16931}</ram:ID>".encode() in (xml or b"")
    assert reader.trailer["/Root"]["/Lang"] == "de-DE"
    assert reader.metadata is not None
    assert reader.metadata.title == "Rechnung RE-2026-402817"


def test_metadata_in_another_form_than_typst_writes_fails_loudly() -> None:
    pdf, _ = produced(SAMPLES["zero"]())
    with pytest.raises(AssertionError):
        with_factur_x_metadata(pdf)  # a second time: it has two packets by now
    with pytest.raises(AssertionError):
        with_factur_x_metadata(b"%PDF-1.7\n%%EOF\n")


@pytest.mark.services
def test_the_files_are_pdf_a_3a_and_pdf_ua_1_by_verapdf(made: dict[str, Path]) -> None:
    """The reference validator, installed by package name into a cache folder outside of the checkout."""
    folder = verapdf()
    command = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", "lib/*", "Check.java"]
    files = [str(path) for path in made.values()]
    answer = subprocess.run(
        [*command, *files], cwd=folder, check=True, capture_output=True, timeout=240
    ).stdout.decode()
    broken = [each for each in answer.splitlines() if not each.startswith("compliant ")]
    assert not broken, "\n".join(broken)
    assert answer.count("compliant 3a ") == len(files)
    assert answer.count("compliant ua1 ") == len(files)


def verapdf() -> Path:
    folder = (
        Path(os.environ.get("CLOUDBILLING_TEST_CACHE", Path.home() / ".cache" / "cloudbilling-tests"))
        / "verapdf-1.30.2"
    )
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent / "verapdf"
    shutil.copy(here / "Check.java", folder)
    if not list(folder.glob("lib/validation-model-*.jar")):
        shutil.copy(here / "pom.xml", folder)
        maven = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib", "-DincludeScope=runtime"]
        subprocess.run(maven, cwd=folder, check=True, timeout=280)
    return folder


def test_a_customer_who_wants_it_gets_its_usage_record_as_a_file(gate: ShapeGate) -> None:
    one = SAMPLES["invoice"]()
    plain, _ = invoice_for(one, ISSUER, SELLER)
    assert plain.attachments == ()
    wanted, _ = invoice_for(replace(one, customer={**one.customer, "usage_record": "csv"}), ISSUER, SELLER)
    (added,) = wanted.attachments
    assert (added.name, added.mime, added.text) == ("usage-record.csv", "text/csv", "Verbrauchsnachweis")
    assert added.bytes is not None
    assert added.bytes.count(b",tier,") == 3
    xml = checked_xml(wanted, gate)
    reader = pypdf.PdfReader(io.BytesIO(render_pdf(wanted, seller=SELLER, xml=xml)))
    assert reader.attachments["usage-record.csv"][0] == added.bytes


# -- From a document to an invoice -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_json_form_keeps_every_term(name: str) -> None:
    invoice = invoice_named(name)
    assert Invoice.from_json(json.loads(json.dumps(invoice.to_json()))) == invoice


def test_lines_outside_the_scope_beside_taxed_ones_are_refused_as_an_e_invoice_with_a_proposal(gate: ShapeGate) -> None:
    mixed = document([line("1.00"), line("2.00", tax_category="O", percent="0")])
    invoice, _ = invoice_for(final(mixed, "RE-1"), ISSUER, SELLER)
    with pytest.raises(NotIssuable) as refused:
        checked_xml(invoice, gate)
    assert ("BR-O-11", "lines outside the scope of VAT stand alone: split the invoice") in {
        (one.rule, one.detail) for one in refused.value.violations
    }
    assert render_pdf(invoice, seller=SELLER).startswith(b"%PDF-1.7")  # on paper it may be said


def test_the_mock_up_s_sums_are_the_mock_up_s() -> None:
    assert (mock_up().net, mock_up().tax, mock_up().gross) == (
        Decimal("3316.83"),
        Decimal("613.44"),
        Decimal("3930.27"),
    )
