"""Pages out of a stencil are those that Typst draws: every glyph, place, tag and object, or Typst draws them itself."""

from __future__ import annotations

import io
import random
import re
from dataclasses import replace
from decimal import Decimal
from functools import cache
from typing import Any

import pypdf
import pytest
import segno
from invoice_samples import ENTITY, ISSUER, PDF_ONLY, SAMPLES

from benchmarks import documents
from billing.einvoice.cii import to_cii
from billing.einvoice.parties import seller_of
from pipelines.documents import BUILT_IN, FinalDocument, invoice_for, render_pdf
from pipelines.factur_x import hybrid_of
from pipelines.layout_blocks import Blocks
from pipelines.layout_engines import TypstEngine
from pipelines.layout_view import page_of
from pipelines.pdf_parts import OtherForm, objects_of, pages_of, reference, runs_of, stream_of
from pipelines.qr_code import BYTES_MAX, rows_of
from pipelines.stencil_fields import fields_of
from pipelines.stencil_maker import without_repertoire
from pipelines.stencils import Stencils
from pipelines.word_book import STYLES, WordBook

SELLER = seller_of(ENTITY, "DE")
ALL = {**SAMPLES, **PDF_ONLY}


@cache
def typst() -> TypstEngine:
    return TypstEngine()


def drawn(data: Any) -> bytes:
    return typst().draw(None, data, "pdf")[0]


def packet_of(reader: pypdf.PdfReader) -> str:
    root: Any = reader.trailer["/Root"]
    return root["/Metadata"].get_data().decode()


@cache
def book() -> WordBook:
    return WordBook("Inter", "de", "DE")


@pytest.fixture(scope="module")
def stencils() -> Stencils:
    return Stencils(drawn)


def page(one: FinalDocument) -> dict[str, Any]:
    invoice, e_invoice = invoice_for(one, ISSUER, SELLER)
    data = page_of(invoice, SELLER, Blocks(), one.customer.get("language", "de"))
    if e_invoice:
        data |= {"xml": to_cii(invoice).decode(), "xml_name": hybrid_of(invoice.profile)[0]}
        data |= {"xml_profile": invoice.profile}
    return data


def other(one: FinalDocument, number: int) -> FinalDocument:
    """Another document of the same kind: other number, names and amounts."""
    rest = random.Random(number)
    lines = tuple(
        replace(line, name=rest.choice(("Objektspeicher", "Backup A-1", "VM (groß) & Co.", line.name)))
        for line in one.document.lines
    )
    customer = {**one.customer, "name": f"Kunde {rest.randrange(10**6)} Größe & Söhne"}
    return replace(
        one,
        number=f"RE-{number}/{rest.randrange(10**6)}",
        customer=customer,
        document=replace(one.document, lines=lines),
    )


def test_at_least_half_of_the_samples_are_filled_in(stencils: Stencils) -> None:
    found = {name: fields_of(page(make())) is not None for name, make in ALL.items()}
    print(found)
    assert sum(found.values()) * 2 >= len(found), found


@pytest.mark.parametrize("name", ALL)
def test_what_is_filled_in_is_what_typst_draws(name: str, stencils: Stencils) -> None:
    """The first document makes the stencil, the others fill it in; each is compared with Typst's own drawing."""
    for number in range(3):
        data = page(other(ALL[name](), number))
        before = repr(data)
        fields = fields_of(data)
        pdf = stencils.drawn(data, fields)
        assert repr(data) == before, "the page's data were left changed"
        if fields is None:
            assert pdf is None
            return
        if name == "names-of-the-world" and "🚀" in repr(data):  # letters that are in no book
            assert pdf is None
            continue
        assert pdf is not None, "a page with fields was not filled in"
        stencils.prove(pdf, data)
        assert pdf == stencils.drawn(data, fields_of(data)), "the same page gave other bytes"
        reader = pypdf.PdfReader(io.BytesIO(pdf), strict=True)
        assert (reader.metadata or {})["/Title"] == data["title"]
        assert data["title"].replace("&", "&amp;") in packet_of(reader)
        if "xml" in data:
            assert reader.attachments[data["xml_name"]] == [data["xml"].encode()]


def test_figures_of_different_lengths_keep_point_under_point(stencils: Stencils) -> None:
    """2; 2,25; 2,5: digits that a figure lacks are hidden behind it, and move it to the left."""
    seller = seller_of(documents.ENTITY, "DE")
    for number in (1, 2, 3):
        invoice, _ = invoice_for(documents.made(number), documents.ISSUER, seller)
        data = page_of(invoice, seller, Blocks(), "de")
        fields = fields_of(data)
        assert fields is not None
        assert len({one.pad[1] for one in fields if one.pad is not None}) > 2
        pdf = stencils.drawn(data, fields)
        assert pdf is not None
        stencils.prove(pdf, data)


def test_the_proof_sees_a_wrong_letter_a_wrong_place_and_a_wrong_object(stencils: Stencils) -> None:
    data = page(ALL["zero"]())
    pdf = stencils.drawn(data, fields_of(data))
    assert pdf is not None
    stencils.prove(pdf, data)
    for key in ("title", "window"):
        wrong = page(ALL["zero"]())
        wrong[key] = data[key] + "1" if key == "title" else [*data[key][:-1], data[key][-1] + "x"]
        with pytest.raises(OtherForm):
            stencils.prove(pdf, wrong)
    wrong = page(ALL["zero"]())
    wrong["widths"] = [*wrong["widths"][:-1], wrong["widths"][-1] + 0.1]  # 0.1 mm
    with pytest.raises(OtherForm):
        stencils.prove(pdf, wrong)


def test_a_text_that_needs_more_than_its_line_is_left_to_typst(stencils: Stencils) -> None:
    one = ALL["zero"]()
    line = replace(one.document.lines[0], name="Rechenzeit mit sehr vielen Worten, die in keine Zeile passen, " * 3)
    data = page(replace(one, document=replace(one.document, lines=(line, *one.document.lines[1:]))))
    assert stencils.drawn(data, fields_of(data)) is None
    invoice, _ = invoice_for(one, ISSUER, SELLER)
    assert render_pdf(invoice, BUILT_IN, seller=SELLER).startswith(b"%PDF")


def test_a_sentence_has_its_room_from_its_first_word_on(stencils: Stencils) -> None:
    """The words before an amount count: a sentence that was too long for its line ran over the page's edge."""
    for length in range(20, 60):
        data = page(ALL["allowances-and-prepaid"]())
        part = next(part for part in data["payment"]["sentence"] if part[1])
        part[0] = "9" * length
        pdf = stencils.drawn(data, fields_of(data))
        if pdf is None:
            assert length > 22
            return
        stencils.prove(pdf, data)
    raise AssertionError("no sentence was too long")


def test_a_sentence_with_one_emphasised_part_is_filled_in(stencils: Stencils) -> None:
    """Without a due date only the amount is emphasised: the words behind it move with it."""
    for amount in ("1.00", "4321.00", "87654321.00"):
        one = ALL["allowances-and-prepaid"]()
        changed = replace(one.document, due=Decimal(amount))
        data = page(replace(one, due_on=None, document=changed))
        assert sum(bold for _, bold in data["payment"]["sentence"]) == 1
        pdf = stencils.drawn(data, fields_of(data))
        assert pdf is not None
        stencils.prove(pdf, data)


@pytest.mark.parametrize("end", [*".,:;-–…)!%'", "Inc.", "A-"])
def test_a_sum_named_with_a_sign_at_its_end_stands_where_typst_puts_it(end: str, stencils: Stencils) -> None:
    """Points and dashes stand out at a right margin: a subtotal of "Cloud Inc." stood 0.6 mm beside its place."""
    data = page(ALL["hundred-lines"]())
    data["records"] = None
    for name in ("Summe Cloud", f"Summe Cloud {end}"):
        data["groups"][0]["sums"][0][0] = name
        pdf = stencils.drawn(data, fields_of(data))
        if pdf is not None:
            stencils.prove(pdf, data)
        assert (pdf is None) == name.endswith((".", ",", ":", ";", "-", "–"))


@pytest.mark.parametrize("number", ["RE(1)", "RE)1(", "RE((1)", "R\\(E)", "()()", "(Ö)"])
def test_brackets_in_a_number_are_written_as_typst_does(number: str, stencils: Stencils) -> None:
    """Title, outline, alternative text: a bracket in one number had all pages of its kind drawn by Typst."""
    data = page(replace(ALL["zero"](), number=number))
    pdf = stencils.drawn(data, fields_of(data))
    assert pdf is not None
    stencils.prove(pdf, data)
    assert (pypdf.PdfReader(io.BytesIO(pdf)).metadata or {})["/Title"] == data["title"]


@pytest.mark.parametrize("name", ["北京云", "Łódź", "שלום", "a\u200bb", "😀"])
def test_letters_that_are_not_in_the_book_are_left_to_typst(name: str, stencils: Stencils) -> None:
    one = ALL["zero"]()
    data = page(replace(one, customer={**one.customer, "name": name}))
    assert stencils.drawn(data, fields_of(data)) is None


def test_a_pdf_in_another_form_is_left_to_typst() -> None:
    """An upgrade of Typst that writes PDFs in another way costs time, and nothing else."""
    data = page(ALL["zero"]())
    for change in (
        lambda pdf: pdf.replace(b"/FlateDecode", b"/OtherDecode"),
        lambda pdf: pdf.replace(b"trailer", b"tralier"),
        lambda pdf: pdf.replace(b"/Title(QQ", b"/Title(XX"),
    ):
        stencils = Stencils(lambda page, change=change: change(drawn(page)))
        assert stencils.drawn(data, fields_of(data)) is None


# -- Words -------------------------------------------------------------------------------------------------------------


def test_texts_put_together_are_as_typst_shapes_them_whole() -> None:
    """Words with spaces between, numbers out of digits: the same glyphs, the same width to half a thousandth."""
    rest = random.Random(7)
    words = [
        "K-17",
        "RE-2026-0001",
        "Müller",
        "A.",
        "B,",
        "50 %",
        "€",
        "&",
        "Tor",
        "AV",
        "x",
        "V",
        "'Wort'",
        "(a)",
        "-",
    ]
    words += [
        f"{start}{rest.randrange(10**5):05}" for start in ("K-", "RE-2026-", "A", "x", "(", "Nr.-", "1-", "é")
    ] * 3
    words += [f"{rest.randrange(10**9) / 10 ** rest.randrange(7)}" for _ in range(40)]
    words += [f"{rest.randrange(10**8):,}".replace(",", ".") + f",{rest.randrange(100):02}" for _ in range(40)]
    asked = [(style, " ".join(rest.choices(words, k=rest.randrange(1, 4)))) for style in STYLES for _ in range(60)]
    asked = [(style, text) for style, text in asked if style[0] != 600 or re.fullmatch("[0-9.,]+", text)]  # sums only
    assert len({style for style, _ in asked}) == len(STYLES)
    book().learn(asked)
    for (style, text), run in zip(asked, book().shaped(asked), strict=True):
        found = book().text(style, text)
        if found is None or run is None:  # a form of a letter that is not in the repertoire
            assert found is run, text
            continue
        assert "".join(re.findall("<(.*?)>", found.glyphs.decode())) == "".join(f"{one:04X}" for one in run.glyphs), (
            text
        )
        assert found.width == pytest.approx(book().width(style[0], run), abs=0.5), text


@pytest.mark.parametrize("name", ["<script>\u200balert(1)\u200b</script>\u200b", ">\u200bb", "a-\u200bb"])
def test_one_word_that_is_drawn_in_parts_leaves_the_others_of_the_same_drawing_alone(name: str) -> None:
    """A customer's name in which a line may break inside a word stopped the bill run: no document was made any more."""
    fresh = WordBook("Inter", "de", "DE")
    fresh.learn([(STYLES[0], name), (STYLES[0], "Nordwind")])
    assert fresh.text(STYLES[0], name) is None
    assert fresh.text(STYLES[0], "Nordwind") is not None


@pytest.mark.parametrize(
    "odd", ["", "\u2060", "\t", "Kai 4\nHinterhaus", "a\u2028b", "a\u00adb", "e\u0301", "שלום", "W" * 5000]
)
def test_a_word_of_no_line_or_two_gives_no_other_word_its_letters(odd: str) -> None:
    """An address with a break, a customer's name and an invisible sign: the name was printed as the address."""
    style = STYLES[0]
    fresh = WordBook("Inter", "de", "DE")
    fresh.learn([(style, "Nordwind")])
    wanted = fresh.text(style, "Nordwind")
    for texts in (["Kai 4\nHinterhaus", "Nordwind", odd], [odd, "Nordwind", "\u2060"]):
        learned = WordBook("Inter", "de", "DE")
        learned.learn([(style, text) for text in texts])
        assert learned.text(style, "Nordwind") == wanted is not None
        assert learned.text(style, odd) is None


def test_words_in_a_form_that_nobody_expects_are_left_to_typst(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = WordBook("Inter", "de", "DE")

    def other_form(asked: object) -> None:
        raise OtherForm("as nobody expects")

    monkeypatch.setattr(fresh, "shaped", other_form)
    fresh.learn([(STYLES[0], "Nordwind")])
    assert fresh.text(STYLES[0], "Nordwind") is None


def test_random_letters_are_as_typst_shapes_them() -> None:
    """What a letter looks like may depend on its neighbours: signs between capitals and digits, x between numbers."""
    rest = random.Random(23)
    letters = "abcxXAVTWy0123456789 .,-–/:()&%€+@'ßäÖ#*="
    asked = [
        (style, text)
        for style in STYLES
        for text in ("".join(rest.choices(letters, k=rest.randrange(1, 14))) for _ in range(80))
        if style[0] != 600 and text == " ".join(text.split()) and text
    ]
    assert len(asked) > 200
    book().learn(asked)
    for (style, text), run in zip(asked, book().shaped(asked), strict=True):
        found = book().text(style, text)
        shown = None if found is None else "".join(re.findall("<(.*?)>", found.glyphs.decode()))
        assert shown == (None if run is None else "".join(f"{one:04X}" for one in run.glyphs)), text


def test_a_page_without_its_repertoire_has_no_text_in_the_background() -> None:
    data = page(ALL["zero"]())
    objects, trailer = objects_of(drawn(data))
    first = pages_of(objects, trailer)[0]
    _, content = stream_of(objects[reference(objects[first], "Contents")])
    with pytest.raises(OtherForm):
        without_repertoire(content)
    assert len(runs_of(content)) > 20


# -- QR codes ----------------------------------------------------------------------------------------------------------


def test_codes_are_those_of_segno() -> None:
    rest = random.Random(11)
    for length in range(1, BYTES_MAX + 1, 7):
        content = bytes(rest.randrange(256) for _ in range(length))
        known = segno.make_qr(content, error="m", mask=4, boost_error=False, mode="byte")
        assert rows_of(content, 4) == ["".join("1" if dark else "0" for dark in row) for row in known.matrix], length
    for version_length in (14, 26, 42, 62, 84, 106, 122, 152, 180, 213, 251, 287, 331):  # what just fits
        content = b"x" * version_length
        known = segno.make_qr(content, error="m", mask=4, boost_error=False, mode="byte")
        assert rows_of(content, 4) == ["".join("1" if dark else "0" for dark in row) for row in known.matrix]
    with pytest.raises(ValueError, match="331 bytes"):
        rows_of(b"x" * (BYTES_MAX + 1), 4)


def test_the_first_of_each_kind_and_a_sample_of_all_are_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stencil that draws something else than Typst is found by the sample, and its kind is Typst's from then on."""
    monkeypatch.setattr("pipelines.stencils.PROVED_EVERY", 4)
    counted = Stencils(drawn)
    proved: list[int] = []
    prove = counted.prove

    asked: list[int] = []

    def noted(pdf: bytes, data: Any) -> None:
        proved.append(len(asked) - 1)
        prove(pdf, data)

    monkeypatch.setattr(counted, "prove", noted)
    data = page(next(one() for one in ALL.values() if fields_of(page(one())) is not None))
    for number in range(9):
        asked.append(number)
        assert counted.drawn(data, fields_of(data)) is not None
    assert proved == [0, 3, 7]

    def differs(*_: Any) -> None:
        raise OtherForm("not what Typst draws")

    monkeypatch.setattr(counted, "prove", differs)
    answers = [counted.drawn(data, fields_of(data)) for _ in range(9)]
    assert [answer is None for answer in answers] == [False, False, *[True] * 7]
