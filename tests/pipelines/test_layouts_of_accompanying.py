"""Layouts of tenants for what accompanies invoices: blocks, columns, words in both engines, sources of their own."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pypdf
import pytest
from test_accompanying_pages import example, overlapping, words_of
from test_documents import verapdf
from test_layouts import png

from billing.accompanying import KINDS, Accompanying
from billing.errors import InvalidInput
from pipelines.accompanying import render_document
from pipelines.accompanying_csv import csv_of
from pipelines.documents import NotIssuable
from pipelines.layout_blocks import COLUMNS, DOCUMENT_KINDS, FONTS, Layout, columns_of, layout_of, needed_of
from pipelines.layout_preview import preview, sample_accompanying

BLOCKS = {
    "logo": base64.b64encode(png()).decode(),
    "accent": "#a01040",
    "texts": {
        "de": {
            "greeting": "Moin,",
            "intro": "hier ist es.",
            "closing": "Danke und bis bald.",
            "footer": "Wir sind klein.",
        }
    },
    "cover": {"de": "Ein Brief davor."},
}
OPTIONAL = {  # a column that may be left out, as its head says it, and a figure below it
    "usage_record": ("billed_with", "Rechnung / Position", "RE-2026-0045 / 1"),
    "account_statement": ("balance", "Saldo EUR", "1.091,00"),
    "reminder": ("invoiced", "Rechnungsbetrag", ""),
    "delivery_note": ("unit", "Einheit", ""),
    "credit_statement": ("balance", "Saldo EUR", "332,60"),
}
OWN = {
    "typst": "= #d.title\n#for one in d.tables { for row in one.rows { [#row.at(0)] } }",
    "html": '<html lang="de"><title>{{ d.title }}</title><h1>{{ d.title }}</h1>'
    "{% for one in d.tables %}{% for row in one.rows %}<p>{{ row[0] }}</p>{% endfor %}{% endfor %}</html>",
}


def drawn(kind: str, form: dict[str, Any], document: Accompanying | None = None) -> bytes:
    shown = document or sample_accompanying(kind)
    return render_document(shown, ("pdf",), "de", layout=layout_of(form, kind), owner="tenant")[0].data


def files_in(pdf: bytes) -> dict[str, bytes]:
    return {name: found[0] for name, found in pypdf.PdfReader(io.BytesIO(pdf)).attachments.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_sample_of_a_layout_is_the_example_of_the_manual(kind: str) -> None:
    name = "credit-account" if kind == "credit_statement" else kind.replace("_", "-")
    assert sample_accompanying(kind) == Accompanying.from_json(example(name))
    assert set(OPTIONAL) == set(KINDS)


@pytest.mark.parametrize("engine", ["typst", "html"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_decide_what_is_on_the_page_in_both_engines(kind: str, engine: str) -> None:
    column, head, figure = OPTIONAL[kind]
    usual = words_of(drawn(kind, {"engine": engine}))
    assert head in usual
    assert figure in usual
    columns = [one for one in columns_of(kind) if one != column]
    pdf = drawn(kind, {"engine": engine, "blocks": {**BLOCKS, "columns": columns}})
    found = words_of(pdf)
    for words in (
        "Moin,",
        "hier ist es.",
        "Danke und bis bald.",
        "Ein Brief davor.",
        "Wir sind klein.",
        sample_accompanying(kind).number,
    ):
        assert words in found
    assert head not in found
    assert not figure or found.count(figure) < usual.count(figure)
    assert pdf == drawn(kind, {"engine": engine, "blocks": {**BLOCKS, "columns": columns}})
    assert files_in(pdf) == files_in(drawn(kind, {"engine": engine}))


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_to_be_there_is_still_whole_when_all_else_is_hidden(kind: str) -> None:
    for engine in ("typst", "html"):
        found = words_of(drawn(kind, {"engine": engine, "blocks": {"columns": list(needed_of(kind))}}))
        assert {
            "usage_record": "Summe 50.505",
            "account_statement": "−1.487,27",
            "reminder": "Zu zahlen bis 16.11.2026 590,43 EUR",
            "delivery_note": "48.217",
            "credit_statement": "Guthaben am 31.10.2026 371,00 EUR",
        }[kind] in found


@pytest.mark.parametrize("font", FONTS)
def test_figures_lie_over_no_other_text_in_any_font(font: str) -> None:
    """Widths are measured for the widest of the fonts."""
    form = example("account-statement")
    form["statement"].pop("closing", None)
    for entry in form["statement"]["entries"]:
        entry["amount"] = "-98765432109876.12"
    assert not overlapping(drawn("account_statement", {"blocks": {"font": font}}, Accompanying.from_json(form)))


def test_mistakes_are_named_and_what_only_invoices_have_is_refused() -> None:
    form = {"blocks": {"grouping": "product", "appendix": True, "columns": ["position", "quantity"]}}
    with pytest.raises(InvalidInput) as refused:
        layout_of(form, "delivery_note")
    assert {one.pointer for one in refused.value.errors} == {
        "/blocks/grouping", "/blocks/appendix", "/blocks/columns/0", "/blocks/columns",
    }  # fmt: skip
    for kind in DOCUMENT_KINDS:
        assert layout_of({"blocks": {"columns": list(columns_of(kind))}}, kind).blocks.is_plain
        assert set(needed_of(kind)) <= set(columns_of(kind))
    assert columns_of("credit_note") == COLUMNS


@pytest.mark.parametrize("engine", ["typst", "html"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_source_of_a_tenant_draws_it_with_our_files_inside(kind: str, engine: str) -> None:
    document = sample_accompanying(kind)
    pdf = drawn(kind, {"engine": engine, "source": OWN[engine]})
    assert document.number in words_of(pdf)
    has_csv = kind in ("usage_record", "account_statement", "credit_statement")
    assert files_in(pdf) == ({f"{kind}.csv": csv_of(document)} if has_csv else {})


HOSTILE = {
    "loop": ("typst", "#for i in range(100000000) { [x] }", "seconds|memory"),
    "file": ("typst", '#read("/etc/passwd")', "not found"),
    "address": ("html", '<img src="file:///etc/passwd">', "loads 'file:///etc/passwd'"),
    "class": ("html", "{{ d.__class__.__mro__ }}", "unsafe"),
    "more files": (
        "typst",
        '#pdf.attach("more.csv", bytes("a"), relationship: "data", mime-type: "text/csv", description: "x")\nhi',
        "other files",
    ),
    "invoice's data": ("html", "{{ d.groups[0].lines }}", "UndefinedError"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_source_that_means_no_good_parks_its_document_and_the_next_one_is_drawn(name: str) -> None:
    engine, source, why = HOSTILE[name]
    with pytest.raises(NotIssuable, match=why):
        drawn("account_statement", {"engine": engine, "source": source})
    assert "Kontoauszug" in words_of(drawn("account_statement", {}))


def test_a_preview_is_of_its_own_type_and_in_pictures() -> None:
    for kind in DOCUMENT_KINDS:
        (first, *_) = preview(Layout(), "en", "png", owner="tenant", kind=kind)
        assert first.startswith(b"\x89PNG")
    text = words_of(preview(Layout(), "en", "pdf", owner="tenant", kind="reminder")[0])
    assert "Second reminder" in text


@pytest.mark.services
@pytest.mark.timeout(400)
def test_all_of_them_are_pdf_a_3a_by_verapdf(tmp_path: Path) -> None:
    files: list[str] = []
    for kind in KINDS:
        for engine in ("typst", "html"):
            for name, form in {"plain": {}, "blocks": {"blocks": BLOCKS}, "own": {"source": OWN[engine]}}.items():
                path = tmp_path / f"{kind}-{engine}-{name}.pdf"
                path.write_bytes(drawn(kind, {"engine": engine} | form))
                files.append(str(path))
    command = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", "lib/*", "Check.java", *files]
    answer = subprocess.run(command, cwd=verapdf(), check=True, capture_output=True, timeout=360).stdout.decode()
    broken = [one for one in answer.splitlines() if not one.startswith("compliant ") and " ua1 " not in one]
    assert answer.count("compliant 3a ") == len(files), "\n".join(broken)
    assert answer.count("compliant ua1 ") == len(files) // 2, json.dumps(broken)  # Typst's
