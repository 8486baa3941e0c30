"""Accompanying documents as a customer gets them: words, figures, tags, the CSV inside, hostile texts, many rows."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pypdf
import pytest
from test_documents import verapdf

from billing.accompanying import Accompanying
from billing.errors import InvalidInput
from pipelines.accompanying import formats_of, render_document
from pipelines.accompanying_csv import csv_of
from pipelines.documents import NotIssuable
from pipelines.invoice_view import LAYOUTS
from pipelines.pdf_parts import (
    _glyphs,  # pyright: ignore[reportPrivateUsage] - letters of a text in parts, which `runs_of` refuses
    fonts_of,
    objects_of,
    pages_of,
    reference,
    stream_of,
    widths_of,
)

FOLDER = Path(__file__).parents[2] / "examples" / "documents"
NAMES = ("usage-record", "account-statement", "reminder", "delivery-note", "credit-statement", "credit-account")
GOLDEN_WORDS = {
    ("usage-record", "de"): ["Verbrauchsnachweis VN-2026-0045", "Summe 50.505", "499,535", "gesamter Zeitraum"],
    ("usage-record", "en"): ["Usage record VN-2026-0045", "50,505", "499.535", "whole period"],
    ("account-statement", "de"): ["Anfangssaldo am 01.10.2026 487,27", "−1.487,27", "Endsaldo am 31.10.2026 91,00 EUR"],
    ("account-statement", "en"): ["Opening balance on 1 Oct 2026 487.27", "Closing balance on 31 Oct 2026 91.00 EUR"],
    ("reminder", "de"): ["Mahnung MA-2026-0003", "Zu zahlen bis 16.11.2026 590,43 EUR", "DE02 1203 0000 0000 2020 51"],
    ("reminder", "en"): ["Second reminder MA-2026-0003", "Pay by 16 Nov 2026 590.43 EUR", "11.27 %"],
    ("delivery-note", "de"): ["Lieferschein LS-2026-0012", "48.217", "keine Rechnung"],
    ("delivery-note", "en"): ["Delivery note LS-2026-0012", "48,217", "not an invoice"],
    ("credit-statement", "de"): ["Summe der Gutschriften 14,01 EUR", "weder Rechnung noch Gutschrift"],
    ("credit-statement", "en"): ["Sum of credits 14.01 EUR", "neither an invoice nor a credit note"],
    ("credit-account", "de"): [
        "Guthabenauszug GA-10042-2026-10",
        "Summe der Gutschriften 14,01",
        "Verwendet für Rechnung RE-2026-000038 −312,40 332,60",
        "Zurück aus Rechnungskorrektur GS-2026-000008, zu RE-2026-000035",
        "Verfallen, gewährtes Guthaben −9,60",
        "Guthaben am 31.10.2026 371,00 EUR",
    ],
    ("credit-account", "en"): [
        "Credit statement GA-10042-2026-10",
        "Sum of credits 14.01",
        "Credit note GS-2026-000007, set off on your account",
        "Credit granted 31 Oct 2026 25.00",
        "Opening balance on 1 Oct 2026 120.00",
        "Credit on 31 Oct 2026 371.00 EUR",
    ],
}


def example(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def pdf_of(form: Any, language: str = "de") -> bytes:
    return render_document(Accompanying.from_json(form), ("pdf",), language)[0].data


def words_of(pdf: bytes) -> str:
    return " ".join(" ".join(page.extract_text().split()) for page in pypdf.PdfReader(io.BytesIO(pdf)).pages)


@pytest.mark.parametrize("language", ["de", "en"])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_it_in_its_language_and_the_same_input_has_the_same_bytes(name: str, language: str) -> None:
    pdf = pdf_of(example(name), language)
    assert pdf == pdf_of(example(name), language)
    found = words_of(pdf)
    for words in GOLDEN_WORDS[name, language]:
        assert words in found
    catalog: Any = pypdf.PdfReader(io.BytesIO(pdf)).trailer["/Root"]
    assert catalog["/MarkInfo"]["/Marked"]
    metadata = catalog["/Metadata"].get_data()
    assert b"<pdfaid:part>3</pdfaid:part>" in metadata
    assert b"<pdfaid:conformance>A</pdfaid:conformance>" in metadata
    assert b"<pdfuaid:part>1</pdfuaid:part>" in metadata


def test_both_languages_have_the_same_words() -> None:
    def keys(value: Any) -> Any:
        return {key: keys(inner) for key, inner in value.items()} if isinstance(value, dict) else None

    folder = LAYOUTS / "accompanying" / "texts"
    german, *others = (json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json")))
    assert all(keys(one) == keys(german) for one in others)


def test_the_csv_lies_in_the_pdf_and_adds_up() -> None:
    form = example("usage-record")
    inside = pypdf.PdfReader(io.BytesIO(pdf_of(form))).attachments
    assert list(inside) == ["usage_record.csv"]
    data = inside["usage_record.csv"][0]
    assert data == csv_of(Accompanying.from_json(form))
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    assert len(rows) == len(form["usage"])
    storage = sum(Decimal(one["quantity"]) for one in rows if one["meter"] == "Speicher")
    assert storage == Decimal("499.535")


def test_a_csv_runs_no_formula_and_keeps_its_numbers() -> None:
    form = example("account-statement")
    form["statement"]["entries"][1]["text"] = "=HYPERLINK(1)"
    rows = list(csv.DictReader(io.StringIO(csv_of(Accompanying.from_json(form)).decode())))
    assert rows[2]["text"] == "'=HYPERLINK(1)"
    assert rows[2]["amount"] == "-487.27"  # a number below zero is no formula
    assert rows[-1]["balance"] == "91"


def test_long_and_right_to_left_names_are_printed_whole() -> None:
    form = example("credit-statement")
    name, arabic = "Donaudampfschifffahrtsgesellschaft" * 6, "شركة الاختبار"
    form["buyer"] |= {"name": name}
    form["lines"][0] |= {"name": "W" * 200, "note": arabic, "subscription": "s" * 256}
    found = words_of(pdf_of(form)).replace("\u200b", "").replace(" ", "")
    assert name[:150] in found
    assert "W" * 200 in found
    assert "s" * 256 in found


_LINE = re.compile(rb"q 1 0 0 -1 ([\d.]+) ([\d.]+) cm[^\n]*\nBT(.*?)\nET\nQ", re.DOTALL)
_PART = re.compile(rb"/f(\d+) ([\d.]+) Tf 1 0 0 -1 ([\d.]+) 0 Tm\[?(.*?)(?:\]TJ|Tj)(?=\n|/Span|$| 0 Tr)", re.DOTALL)


def overlapping(pdf: bytes) -> list[tuple[float, float, float]]:
    """Height, begin and end of texts that lie over the next one on their line."""
    objects, trailer = objects_of(pdf)
    found: list[tuple[float, float, float]] = []
    for number in pages_of(objects, trailer):
        fonts, texts = fonts_of(objects, number), list[tuple[float, float, float]]()
        for x, y, parts in _LINE.findall(stream_of(objects[reference(objects[number], "Contents")])[1]):
            font, size, at, shown = _PART.findall(parts)[-1]  # a text with places to break has several parts
            widths = widths_of(objects, fonts[int(font)])
            glyphs, moves = _glyphs(shown)
            width = (sum(widths[one] for one in glyphs) - sum(move for _, move in moves)) * float(size) / 1000
            texts.append((round(float(y), 1), float(x), float(x) + float(at) + width))
        texts.sort()
        assert len(texts) > 20
        found += [one for one, other in pairwise(texts) if one[0] == other[0] and other[1] < one[2] - 0.3]
    return found


@pytest.mark.parametrize("quantity", ["1234567.123456789012", "-98765432109876.123456789012", "29.333333333333", "7"])
def test_figures_of_many_digits_lie_over_no_other_text(quantity: str) -> None:
    """Twelve decimals beside a period of two years: the quantity was printed over the days."""
    form = example("credit-statement")
    form.pop("total", None)
    for line in form["lines"]:
        line |= {"quantity": quantity, "price": "0.333333333333", "unit": "Knotenstd.", "amount": "98765432109876.12"}
        line |= {"period": {"start": "2026-12-15", "end": "2027-01-14"}}
    statement = example("account-statement")
    statement["statement"].pop("closing", None)
    for entry in statement["statement"]["entries"]:
        entry["amount"] = "-98765432109876.12"
    note = example("delivery-note")
    for line in note["lines"]:
        line |= {"quantity": quantity, "period": {"start": "2026-12-15", "end": "2027-01-14"}}
    for one in (form, statement, note):
        for language in ("de", "en"):
            pdf = pdf_of(one, language)
            assert not overlapping(pdf)
    figure = "1.234.567,123456789012" if quantity.startswith("1234567") else ""
    assert figure in words_of(pdf_of(form)).replace("\u200b", "").replace(", ", ",")


def test_a_character_that_no_font_has_is_named_with_its_place() -> None:
    form = example("usage-record")
    form["usage"][3]["meter"] = "ab\U00012000"
    with pytest.raises(NotIssuable) as caught:
        pdf_of(form)
    assert "U+12000" in caught.value.detail
    assert [one.pointer for one in caught.value.errors] == ["/usage/3/meter"]


def test_markup_in_texts_stays_text() -> None:
    form = example("delivery-note")
    form["lines"][0]["name"] = "#panic() *x* $y$ <z>"
    assert "#panic() *x* $y$ <z>" in words_of(pdf_of(form))


@pytest.mark.parametrize("name", ["usage-record", "account-statement"])
def test_a_document_without_rows_says_so(name: str) -> None:
    form = example(name)
    form.pop("usage", None)
    if "statement" in form:
        form["statement"] = {"opening": "-5.00", "entries": []}
    found = words_of(pdf_of(form))
    assert {"usage-record": "kein Verbrauch", "account-statement": "zu Ihren Gunsten"}[name] in found


def test_two_thousand_rows_repeat_their_head_on_every_page() -> None:
    form = example("usage-record")
    day = {"subscription": "s", "meter": "Anfragen", "unit": "Stück", "note": "a", "quantity": "1.5"}
    form["usage"] = [{**day, "day": f"2026-10-{1 + at % 31:02}"} for at in range(2_000)]
    pages = [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(pdf_of(form))).pages]
    assert len(pages) > 30
    assert all("Menge Stück" in page for page in pages if "eu-" in page or "01.10.2026" in page)
    assert "3.000" in pages[-1]


def test_an_unknown_language_or_format_is_refused() -> None:
    with pytest.raises(InvalidInput):
        pdf_of(example("reminder"), "xx")
    with pytest.raises(InvalidInput):
        formats_of("docx")


@pytest.mark.services
@pytest.mark.timeout(300)
def test_the_files_are_pdf_a_3a_and_pdf_ua_1_by_verapdf(tmp_path: Path) -> None:
    files: list[str] = []
    for name in NAMES:
        for language in ("de", "en"):
            path = tmp_path / f"{name}-{language}.pdf"
            path.write_bytes(pdf_of(example(name), language))
            files.append(str(path))
    command = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", "lib/*", "Check.java", *files]
    answer = subprocess.run(command, cwd=verapdf(), check=True, capture_output=True, timeout=240).stdout.decode()
    broken = [one for one in answer.splitlines() if not one.startswith("compliant ")]
    assert not broken, "\n".join(broken)
    assert (answer.count("compliant 3a "), answer.count("compliant ua1 ")) == (len(files), len(files))
