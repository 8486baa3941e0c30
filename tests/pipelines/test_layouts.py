"""Layouts of tenants: blocks as data, two engines behind one interface, and sources that mean no good."""

from __future__ import annotations

import base64
import io
import os
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pypdf
import pytest
from invoice_samples import ENTITY, ISSUER, SAMPLES
from PIL import Image
from test_documents import verapdf

from billing.einvoice.cii import to_cii
from billing.einvoice.model import Invoice
from billing.einvoice.parties import seller_of
from billing.errors import InvalidInput
from pipelines.documents import NotIssuable, draw, invoice_for, render_pdf
from pipelines.layout_blocks import Blocks, Layout, checked_logo, layout_of
from pipelines.layout_engines import CannotDraw
from pipelines.layout_sandbox import LayoutSandbox
from pipelines.layout_view import page_of

SELLER = seller_of(ENTITY, "DE")


def sample(name: str = "invoice") -> Invoice:
    return invoice_for(SAMPLES[name](), ISSUER, SELLER)[0]


def page() -> dict[str, Any]:
    return page_of(sample(), SELLER, Blocks(), "de")


def png(width: int = 300, height: int = 100) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (width, height), (200, 30, 60, 255)).save(file, "PNG")
    return file.getvalue()


def text_of(pdf: bytes) -> str:
    return "\n".join(one.extract_text().replace("\u200b", "") for one in pypdf.PdfReader(io.BytesIO(pdf)).pages)


BLOCKS = {
    "logo": base64.b64encode(png()).decode(),
    "accent": "#a01040",
    "columns": ["position", "description", "quantity", "amount"],
    "grouping": "product",
    "texts": {"de": {"greeting": "Moin,", "closing": "Danke und bis bald."}},
    "cover": {"de": "Moin,\n\nanbei die Rechnung für Oktober."},
    "appendix": False,
}


@pytest.mark.parametrize("engine", ["typst", "html"])
def test_blocks_decide_what_is_on_the_page_in_both_engines(engine: str) -> None:
    xml = to_cii(sample())
    pdf = render_pdf(sample(), layout_of({"engine": engine, "blocks": BLOCKS}), "de", seller=SELLER, xml=xml)
    text = text_of(pdf)
    assert "Moin," in text
    assert "Danke und bis bald." in text
    assert "anbei die Rechnung" in text
    assert "Einzelpreis" not in text
    assert "Nutzungsnachweis" not in text
    assert sample().number in text
    assert "Menge" in text
    files = pypdf.PdfReader(io.BytesIO(pdf)).attachments
    assert {name: list(found) for name, found in files.items()} == {"factur-x.xml": [xml]}


@pytest.mark.parametrize("engine", ["typst", "html"])
def test_the_same_page_of_an_engine_has_the_same_bytes(engine: str) -> None:
    layout, xml = layout_of({"engine": engine}), to_cii(sample())
    first = render_pdf(sample(), layout, seller=SELLER, xml=xml)
    time.sleep(1.1)  # what has a second in it differs now
    is_same = render_pdf(sample(), layout, seller=SELLER, xml=xml) == first
    assert is_same  # two files side by side would take minutes to print


def test_every_mistake_in_a_layout_is_named_by_its_place() -> None:
    form = {
        "engine": "word",
        "blocks": {"logo": "aGVsbG8=", "accent": "#ffffff", "columns": ["position", "x"], "cover": {"deu": "y"}},
        "more": 1,
    }
    with pytest.raises(InvalidInput) as refused:
        layout_of(form)
    assert {one.pointer for one in refused.value.errors} == {
        "/engine", "/blocks/logo", "/blocks/accent", "/blocks/columns/1", "/blocks/columns", "/blocks/cover", "/more",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"GIF89a", "neither"),
        (png()[:200], "broken PNG"),
        (png(5_000, 10), "5000 x 10 pixels"),
        (b"<svg", "broken SVG, line 1"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no size"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><script>1</script></svg>', "script"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9" onload="x()"/>', "onload"),
        (
            b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><image href="file:///etc/passwd"/></svg>',
            "loads",
        ),
        (
            b'<!DOCTYPE svg [<!ENTITY a "b">]><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"/>',
            "document type",
        ),
    ],
)
def test_a_broken_logo_says_what_is_wrong_with_it(data: bytes, why: str) -> None:
    made, told = checked_logo(data)
    assert made is None
    assert why in told


def test_lines_are_grouped_by_product_or_not_at_all_and_sums_stay() -> None:
    for grouping in ("product", "cost_centre", "none"):
        data = page_of(sample(), SELLER, Blocks(grouping=grouping), "de")
        assert sum(len(group["lines"]) for group in data["groups"]) == len(sample().lines)
        assert data["totals"] == page()["totals"]


@pytest.mark.services
def test_what_both_engines_draw_is_pdf_a_3a_by_verapdf(tmp_path: Path) -> None:
    xml = to_cii(sample())
    own = {"typst": "= #d.title", "html": '<html lang="de"><title>{{ d.title }}</title><h1>{{ d.title }}</h1></html>'}
    files: list[str] = []
    for engine, source in own.items():
        for name, form in {"plain": {}, "blocks": {"blocks": BLOCKS}, "own": {"source": source}}.items():
            path = tmp_path / f"{engine}-{name}.pdf"
            path.write_bytes(
                render_pdf(sample(), layout_of({"engine": engine} | form), seller=SELLER, xml=xml, owner="x")
            )
            files.append(str(path))
    command = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", "lib/*", "Check.java", *files]
    answer = subprocess.run(command, cwd=verapdf(), check=True, capture_output=True, timeout=240).stdout.decode()
    assert answer.count("compliant 3a ") == len(files), answer
    assert answer.count("compliant ua1 ") == 3  # Typst's; WeasyPrint writes no PDF/UA beside PDF/A-3a


# -- Sources of tenants ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox() -> Iterator[LayoutSandbox]:
    made = LayoutSandbox(page_s=5)
    yield made
    made.close()


def drawn(sandbox: LayoutSandbox, engine: Any, source: str, output: Any = "pdf") -> list[bytes]:
    return sandbox.draw("tenant", Layout(engine, source), page(), output)


@pytest.mark.parametrize(
    ("engine", "source"), [("typst", "= #d.title\n#d.due.at(1)"), ("html", "<h1>{{ d.title }}</h1>{{ d.due[1] }}")]
)
def test_a_source_of_a_tenant_is_drawn_with_the_xml_attached_by_us(engine: Any, source: str) -> None:
    xml = to_cii(sample())
    pdf = render_pdf(sample(), Layout(engine, source), seller=SELLER, xml=xml, owner="tenant")
    assert sample().number in text_of(pdf)
    assert list(pypdf.PdfReader(io.BytesIO(pdf)).attachments["factur-x.xml"]) == [xml]


HOSTILE = {
    "typst loop": ("typst", "#for i in range(100000000) { [x] }", "seconds|memory"),
    "typst memory": ("typst", '#let a = "x" * 1000000000\n#a', "seconds|memory"),
    "typst recursion": ("typst", "#let f(x) = f(x + 1)\n#f(1)", "depth exceeded"),
    "typst file": ("typst", '#read("/etc/passwd")', "not found"),
    "typst folder above": ("typst", '#include "../layout.typ"', "escape"),
    "typst package": ("typst", '#import "@preview/cetz:0.3.0"', "packages are not loaded"),
    "html loop": ("html", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "seconds"),
    "html memory": ("html", '{{ "a"|center(2000000000) }}', "memory"),
    "html power": ("html", "{{ 9 ** 99 }}", "exponents"),
    "html text": ("html", '{{ "a" * 1000000000 }}', "below"),
    "html recursion": ("html", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without an end"),
    "html file": ("html", '<img src="file:///etc/passwd">', "loads 'file:///etc/passwd'"),
    "html attachment": ("html", '<link rel="attachment" href="file:///etc/passwd">', "loads 'file:///etc/passwd'"),
    "html style": ("html", "<style>@import url(file:///etc/passwd);</style>x", "loads"),
    "html include": ("html", '{% include "../invoice.print.j2" %}', "no loader"),
    "html class": ("html", "{{ d.__class__.__mro__ }}", "unsafe"),
    "html huge": (
        "html",
        "{% for i in range(9999) %}{% for j in range(99) %}<p>{{ d.title }}</p>{% endfor %}{% endfor %}",
        "characters|seconds|memory",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_source_that_means_no_good_ends_with_a_clear_error_and_the_next_one_is_drawn(
    name: str, sandbox: LayoutSandbox
) -> None:
    engine, source, why = HOSTILE[name]
    begin = time.monotonic()
    with pytest.raises(CannotDraw, match=why):
        drawn(sandbox, engine, source)
    assert time.monotonic() - begin < 90
    assert drawn(sandbox, "typst", "= #d.title")[0].startswith(b"%PDF")


def test_no_source_reaches_a_server_on_this_very_machine(sandbox: LayoutSandbox) -> None:
    came: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)

        def listen() -> None:
            try:
                came.append(server.accept())
            except OSError:
                return

        waiting = threading.Thread(target=listen, daemon=True)
        waiting.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        for source in (f'<img src="{address}">', f'<style>@import url("{address}");</style>x'):
            with pytest.raises(CannotDraw, match="loads"):
                drawn(sandbox, "html", source)
    assert not came


@pytest.mark.parametrize(
    ("engine", "source", "place"),
    [
        ("typst", "= A\n\n#let a = (\n", (3, 10)),
        ("typst", "#nobody", (1, 2)),
        ("html", "<p>\n\n{% if %}", (3, 1)),
        ("html", "<p>\n{{ d.nobody }}", (2, 1)),
    ],
)
def test_a_mistake_in_a_source_has_its_line_and_column(
    engine: Any, source: str, place: tuple[int, int], sandbox: LayoutSandbox
) -> None:
    with pytest.raises(CannotDraw) as refused:
        drawn(sandbox, engine, source)
    assert (refused.value.line, refused.value.column) == place


def test_a_source_that_attaches_a_file_of_its_own_parks_the_document() -> None:
    source = '#pdf.attach("more.xml", bytes("<x/>"), relationship: "data", mime-type: "text/xml", description: "x")\nhi'
    with pytest.raises(NotIssuable, match="other files"):
        render_pdf(sample(), Layout("typst", source), seller=SELLER, xml=to_cii(sample()), owner="tenant")


def test_a_character_without_a_font_is_named_by_the_html_engine_too() -> None:
    with pytest.raises(NotIssuable, match=r"U\+E123"):
        draw(Layout("html", "\ue123"), page(), "pdf", "tenant")


def test_a_process_with_many_open_files_draws_all_the_same(sandbox: LayoutSandbox) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8_192)), hard))
        while not opened or opened[-1] < 1_100:
            opened.append(os.open("/dev/null", os.O_RDONLY))
        (file,) = drawn(sandbox, "typst", "= many open files")
        assert file.startswith(b"%PDF-")
    finally:
        for one in opened:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_children_end_with_the_sandbox_and_leave_no_folder(tmp_path: Path) -> None:
    sandbox = LayoutSandbox(children_max=1)
    drawn(sandbox, "typst", "= one")
    child = next(iter(sandbox._children.values()))
    folder, process = child._folder, child._process
    drawn(sandbox, "typst", "= two")
    assert process.poll() is not None
    assert not folder.exists()
    sandbox.close()
