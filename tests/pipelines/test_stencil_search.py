"""A seeded search for pages out of a stencil that Typst draws in another way: odd texts in every field, all proved."""

from __future__ import annotations

import copy
import io
import random
from typing import Any

import pypdf
from invoice_samples import PDF_ONLY, SAMPLES, final, line
from invoice_samples import document as document_of
from test_stencils import drawn, packet_of, page

from pipelines.column_widths import MM, widths_of_lines, widths_of_taxes
from pipelines.invoice_view import _is_tall, breakable  # pyright: ignore[reportPrivateUsage] - as the page decides it
from pipelines.pdf_parts import OtherForm
from pipelines.stencil_fields import Field, fields_of
from pipelines.stencils import Stencils
from pipelines.word_book import WORD_MAX

SEED, DOCUMENTS = 15, 60
ODD = (
    "office ffi fi fl tt", "Größe ÄÖÜ", "e\u0301", "a\u00adb", "1\u00a0000", "שלום", "مرحبا", "北京", "😀", "\ue000",
    "#let x", "$x^2$", "*fett*", "_kursiv_", "@ref", "`raw`", "\\", "[x] {y}", "<a>", "// x", "/* k */", "~", "-- ---",
    "... …", "\"q\" 'q' „q“", "1 x 2", "2x3", "12 x", "= H", "+ a", "- b", "1. a", "Qa", "QaQb", "QQTITLEQQ",
    "QQALTQQ", "0,0,1", "((", "(1)", ")", "]TJ ET Q", "AV To V. W, Ty", "A-1", "1-A", "–1", "−5", "50 %", "1/2", "a  b",
    " a", "a ", "", "\t", "\n", "Kai 4\nHof", "\u2060", "\u2028", "\u202e", "\u200d", "a\u2011b", "Inc.", "a:", "§ 3",
    "10 x 10", "http://a.b/c-d?e=f", "11111111", "00000000", "77,77", "12345678", "K-17", "RE-2026-000001", "A)", "x1",
)  # fmt: skip
AMOUNTS = ("0,00", "−1,00", "−12.345.678,90", "12.345.678,90", "1", "11.111.111,11", "0,5", "1.234,500", "−0,01")
PLAIN_WORDS = ("Hafenkontor", "Logistik", "GmbH", "& Co. KG", "Rechenzeit", "Speicher", "ß", "A-7")
LETTERS = "abcxXAVTWyfilj0123456789.,-–/:()&%€@'ßäÖ#*=+[]{}<>~_^|\"\\`$!?;§°×"


class Search:
    """Documents out of one seed."""

    def __init__(self, seed: int) -> None:
        self._rest = random.Random(seed)
        made = [make() for make in SAMPLES.values()] + [PDF_ONLY["without-address"]()]
        for count in (26, 27, 28, 29, 41):  # totals stay on the page, or do not
            lines = [line(f"{place}.10", name=f"Dienst {place}", unit="h", quantity="2") for place in range(count)]
            made.append(final(document_of(lines), f"RE-{count}"))
        pages = [page(one) for one in made]
        self._kinds = [one for one in pages if fields_of(one) is not None]

    def document(self) -> tuple[dict[str, Any], Any]:
        rest = self._rest
        data = copy.deepcopy(rest.choice(self._kinds))
        fields = fields_of(data)
        assert fields is not None
        changed: list[str] = []
        for one in rest.sample(list(fields), min(len(fields), rest.choice((1, 1, 2, 3, 6)))):
            text = breakable(self._text(one, data))
            if text or one.key != "note":
                one.holder[one.key] = text
                changed.append(f"{one.key}: {text!r}")
        data["widths"] = widths_of_lines(data["columns"], data["groups"])
        data["taxes"]["widths"] = widths_of_taxes(data["taxes"]["head"], data["taxes"]["rows"])
        data["tall"] = _is_tall(data["window"], data["information"])
        return data, changed

    def _text(self, one: Field, data: dict[str, Any]) -> str:
        rest = self._rest
        if one.weight == 600 or (one.tabular and one.right):
            return rest.choice(AMOUNTS) + (" EUR" if one.holder is data["due"] else "")
        words = [self._word() for _ in range(rest.randrange(1, 4))]
        if rest.random() < 0.35:  # about as long as its line
            letters = int(one.room / MM / 1.7 * rest.uniform(0.7, 1.25))
            while len(" ".join(words)) < letters:
                words.append(rest.choice(PLAIN_WORDS))
        found = " ".join(words)[:WORD_MAX]
        return f"Rechnung {found}" if one.key == "title" else found

    def _word(self) -> str:
        rest = self._rest
        if rest.random() < 0.15:
            return rest.choice(ODD)
        if rest.random() < 0.3:
            return "".join(rest.choices(LETTERS, k=rest.randrange(1, 9)))
        return rest.choice(PLAIN_WORDS)


def test_no_odd_text_in_any_field_is_shown_in_another_way_than_typst_does() -> None:
    print("seed", SEED)
    search, stencils = Search(SEED), Stencils(drawn)
    prove, filled = stencils.prove, 0
    stencils.prove = lambda pdf, data: None  # each one is proved below
    wrong: list[str] = []
    for number in range(DOCUMENTS):
        data, changed = search.document()
        pdf = stencils.drawn(data, fields_of(data))
        if pdf is None:
            continue
        filled += 1
        try:
            prove(pdf, data)
        except OtherForm as error:
            wrong.append(f"{number}: {error}: {changed}")
        reader = pypdf.PdfReader(io.BytesIO(pdf), strict=True)
        assert (reader.metadata or {})["/Title"] == data["title"]
        assert data["title"].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in packet_of(reader)
        assert reader.attachments == ({data["xml_name"]: [data["xml"].encode()]} if "xml" in data else {})
    assert not wrong, wrong
    assert filled * 3 > DOCUMENTS, filled
