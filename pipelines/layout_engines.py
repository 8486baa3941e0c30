"""Two engines behind one interface: Typst, and Jinja2 with WeasyPrint. Data and a source in, a PDF/A-3 or pictures out.

Owns drawing and the translation of an engine's errors into a place in the source. Runs in the platform's own processes
for built-in pages and inside `layout_child.py`, under limits, for sources that a tenant wrote. It reads no invoice, no
clock, no database. Both make PDF/A-3a with the XML attached; the Factur-X metadata is `factur_x.py`'s.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import typst

from pipelines.factur_x import in_packet
from pipelines.printable import font_folders, unprintable

Output = Literal["pdf", "png", "html"]
LAYOUTS = Path(__file__).parent / "layouts"
STANDARDS = ["a-3a", "ua-1"]
PAGES_MAX = 2_000  # of a preview or a document drawn by a tenant's own source
PREVIEW_PAGES = 4
PREVIEW_PPI = 110
_MISSING = re.compile(r'the text `?"(.+?)"`? could not be displayed')
_FOLDER = re.compile(r"/\S*/layout-[a-z0-9_]+")
_PLACE = re.compile(r"([\w.-]+)\.typ:(\d+):(\d+)")


class CannotDraw(Exception):
    """The source or the data of a page cannot be drawn. `line` and `column` count from 1; 0: not known."""

    def __init__(self, detail: str, line: int = 0, column: int = 0, *, missing: str = "") -> None:
        super().__init__(detail)
        self.detail, self.line, self.column, self.missing = detail, line, column, missing


class LayoutEngine(Protocol):
    """Draws a page. `source` None: the built-in page of the engine. The same input gives the same bytes."""

    def draw(self, source: str | None, data: Mapping[str, Any], output: Output) -> list[bytes]:
        """The PDF (or the HTML) as the only element, or one PNG a page. Raises `CannotDraw`."""
        ...


def missing_glyphs(text: str) -> str:
    """What to say of characters that no font has; empty if there are none."""
    return ", ".join(f"{one} (U+{ord(one):04X})" for one in dict.fromkeys(text))


class TypstEngine:
    """Typst. One engine per thread: a compiler is not shared. `root` is the only folder that a source may read."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root
        self._compilers: dict[str, typst.Compiler] = {}

    def draw(self, source: str | None, data: Mapping[str, Any], output: Output) -> list[bytes]:
        compiler = self._compiler(source is not None, str(data.get("page_kind", "invoice")))
        inputs = {"data": json.dumps(data, ensure_ascii=False)}
        try:
            if output == "png":
                found = compiler.compile(format="png", ppi=PREVIEW_PPI, sys_inputs=inputs)
            else:
                found = compiler.compile(format="pdf", pdf_standards=STANDARDS, sys_inputs=inputs)
        except typst.TypstError as error:
            raise _of_typst(error) from error
        assert found is not None, "Typst gave no file"
        return found[:PREVIEW_PAGES] if isinstance(found, list) else [found]

    def _compiler(self, own: bool, kind: str) -> typst.Compiler:
        key = "own" if own else kind
        found = self._compilers.get(key)
        if found is None:
            if own:
                assert self._root is not None, "a source of a tenant is drawn in a folder of its own"
                main, root, packages = self._root / "main.typ", self._root, str(self._root / "none")
            else:
                main, packages = LAYOUTS / kind / f"{kind}.typ", str(LAYOUTS / "none")
                root = LAYOUTS  # a page imports what all share (paper/)
            found = typst.Compiler(
                str(main), root=str(root), font_paths=font_folders(), ignore_system_fonts=True,
                package_path=packages, package_cache_path=packages,
            )  # fmt: skip
            self._compilers[key] = found
        return found


TYPST_HEAD = "#let d = json(bytes(sys.inputs.data)); "  # before the first line of a source: `d` is the page
# What is before a tenant's source: the document's own data and files, which a source cannot change or leave out.
TYPST_MAIN = """#let d = json(bytes(sys.inputs.data))
#set document(title: d.title, author: d.author, date: datetime(year: d.date.at(0), month: d.date.at(1), day: d.date.at(2), hour: 0, minute: 0, second: 0))
#set text(font: (d.look.font, "Noto Sans", "Noto Sans CJK TC", "Noto Emoji"), size: int(d.look.size) * 1pt, lang: d.lang, region: d.region)
#if "xml" in d { pdf.attach(d.xml_name, bytes(d.xml), relationship: "alternative", mime-type: "text/xml", description: d.title) }
#for one in d.at("attachments", default: ()) { pdf.attach(one.name, bytes(one.content), relationship: "supplement", mime-type: one.mime, description: one.text) }
#include "layout.typ"
"""  # noqa: E501 - Typst, line by line


def _of_typst(error: typst.TypstError) -> CannotDraw:
    message = str(error.message)
    if (missing := _MISSING.search(message)) is not None:
        names = missing_glyphs(missing.group(1))
        return CannotDraw(f"no font has the character {names}: change the text or add a font", missing=names)
    if "packages.typst.org" in message or ("package" in message and "download" in message):
        message = "packages are not loaded: a layout holds all that it uses"
    message = _FOLDER.sub("", message)
    places = [one for one in _PLACE.finditer(error.diagnostic) if one.group(1) != "main"]
    hint = f" ({'; '.join(error.hints[:2])})" if error.hints else ""
    if places:
        line, column = int(places[0].group(2)), int(places[0].group(3)) + 1  # Typst counts columns from 0
        return CannotDraw(f"{message}{hint}", line, column - len(TYPST_HEAD) if line == 1 else column)
    return CannotDraw(f"{message}{hint}")


# -- HTML --------------------------------------------------------------------------------------------------------------

RANGE_MAX = 10_000
OUTPUT_CHARACTERS_MAX = 20_000_000


class HtmlEngine:
    """Jinja2 in its sandbox, then WeasyPrint. Nothing is loaded but `data:` addresses that the page itself holds."""

    def draw(self, source: str | None, data: Mapping[str, Any], output: Output) -> list[bytes]:
        page = self.page(source, data)
        if output == "html":
            return [page.encode()]
        pdf = self.pdf(page, data)
        return pictures(pdf) if output == "png" else [pdf]

    def page(self, source: str | None, data: Mapping[str, Any]) -> str:
        """The page as HTML; everything from the data is escaped."""
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            template = _environment().from_string(source if source is not None else _built_in(data))
            parts: list[str] = []
            size = 0
            for part in template.generate(d=data):
                size += len(part)
                if size > OUTPUT_CHARACTERS_MAX:
                    raise CannotDraw(f"the page has more than {OUTPUT_CHARACTERS_MAX:,} characters")
                parts.append(part)
        except TemplateSyntaxError as error:
            raise CannotDraw(error.message or "is no template", error.lineno, 1) from error
        except (TemplateError, TypeError, ValueError, KeyError, ArithmeticError, AttributeError) as error:
            raise CannotDraw(f"{type(error).__name__}: {error}", _line_of(error), 1) from error
        except RecursionError as error:
            raise CannotDraw("the template calls itself without an end", _line_of(error), 1) from error
        return "".join(parts)

    def pdf(self, page: str, data: Mapping[str, Any]) -> bytes:
        from weasyprint import HTML, Attachment
        from weasyprint.urls import URLFetcher, URLFetchingError

        refused: list[str] = []

        class OnlyData(URLFetcher):
            """Addresses of other kinds are refused by name: a missing picture is no surprise on paper."""

            def fetch(self, url: str, headers: Any = None) -> Any:
                if not url.lower().startswith("data:"):
                    refused.append(url[:100])
                    raise URLFetchingError(f"{url[:100]!r} is not loaded: only data: addresses are")
                return super().fetch(url, headers)

        attached = _attachments(data, Attachment)
        for name in ("weasyprint", "fontTools"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        unseen = unprintable_on(page)
        if unseen:
            names = missing_glyphs(unseen)
            raise CannotDraw(f"no font has the character {names}: change the text or add a font", missing=names)
        document = HTML(string=page, url_fetcher=OnlyData(allowed_protocols=("data",))).render(
            pdf_variant="pdf/a-3a", pdf_tags=True
        )
        if len(document.pages) > PAGES_MAX:
            raise CannotDraw(f"the document has {len(document.pages)} pages; at most {PAGES_MAX} are allowed")
        data_date = data["date"]
        document.metadata.title, document.metadata.authors = data["title"], [data["author"]]
        day = f"{data_date[0]:04}-{data_date[1]:02}-{data_date[2]:02}"
        document.metadata.created = document.metadata.modified = f"{day}T00:00:00Z"
        made = document.write_pdf(
            pdf_variant="pdf/a-3a", pdf_tags=True, pdf_identifier=data["title"].encode()[:32].ljust(16, b"-"),
            custom_metadata=False, attachments=attached, finisher=_finisher(data),
        )  # fmt: skip
        if refused:
            raise CannotDraw(f"the page loads {refused[0]!r}; a layout loads nothing but data: addresses")
        assert made is not None
        return made


_PICTURES = b"""#let pdf = bytes(json(bytes(sys.inputs.pdf)))
#set page(paper: "a4", margin: 0mm)
#for at in range(1, int(sys.inputs.pages) + 1) { image(pdf, format: "pdf", page: at, width: 100%, height: 100%) }
"""


def pictures(pdf: bytes) -> list[bytes]:
    """The first pages of a PDF as PNG, drawn by Typst: no other renderer is needed."""
    import pypdf

    pages = min(len(pypdf.PdfReader(io.BytesIO(pdf)).pages), PREVIEW_PAGES)
    inputs = {"pdf": json.dumps(list(pdf)), "pages": str(pages)}
    try:
        found = typst.Compiler(_PICTURES, font_paths=[], ignore_system_fonts=True, sys_inputs=inputs).compile(
            format="png", ppi=PREVIEW_PPI
        )
    except typst.TypstError as error:
        raise _of_typst(error) from error
    assert found is not None, "Typst gave no picture"
    return found if isinstance(found, list) else [found]


def _finisher(data: Mapping[str, Any]) -> Any:
    """Last changes before the file is written: no picture is smoothed (PDF/A 6.2.8), and the metadata say that the XML
    inside is an invoice."""

    def finish(_document: Any, pdf: Any) -> None:
        for one in pdf.objects:
            if "Interpolate" in (getattr(one, "extra", None) or ()):
                one.extra["Interpolate"] = "false"
        if "xml" not in data:
            return
        packets = [one for one in pdf.objects if getattr(one, "extra", None) and one.extra.get("Type") == "/Metadata"]
        assert len(packets) == 1, f"{len(packets)} metadata packets in the PDF, expected one"
        packets[0].stream = [in_packet(b"".join(packets[0].stream), data["xml_profile"])]

    return finish


def _attachments(data: Mapping[str, Any], make: Any) -> list[Any]:
    found: list[Any] = []
    day = datetime(*data["date"], tzinfo=UTC)  # never the clock's: the same document has the same bytes
    dates = {"created": day, "modified": day}
    if "xml" in data:
        title, xml = data["title"], data["xml"].encode()
        found.append(make(string=xml, name=data["xml_name"], description=title, relationship="Alternative", **dates))
    for one in data.get("attachments", ()):
        content = one["content"]
        raw = content.encode() if isinstance(content, str) else bytes(content)
        found.append(make(string=raw, name=one["name"], description=one["text"], relationship="Supplement", **dates))
    return found


def _built_in(data: Mapping[str, Any]) -> str:
    """The sheet that all share and what is on it: one text, since a template includes nothing."""
    kind = str(data.get("page_kind", "invoice"))
    return "".join((LAYOUTS / path).read_text("utf-8") for path in ("paper/paper.print.j2", f"{kind}/{kind}.print.j2"))


def _line_of(error: BaseException) -> int:
    """The line of the template in which it happened: the innermost frame of the template itself."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


@cache
def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "%"})  # what makes a huge text or number of a short source

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if not all(isinstance(one, int | float) and abs(one) < 10**9 for one in (left, right)):
                raise ValueError(f"{operator} takes numbers below 1,000,000,000 only")
            if operator == "**" and abs(right) > 8:
                raise ValueError("** takes exponents up to 8 only")
            return super().call_binop(context, operator, left, right)

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, cache_size=8
    )
    environment.filters["picture"] = _picture
    environment.globals.pop("lipsum", None)
    return environment


def _picture(svg: str) -> str:
    """An SVG inside an address: as a picture it runs no script and loads nothing."""
    import base64

    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


_TAGS = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)


def unprintable_on(page: str) -> str:
    """Characters of a page in HTML that no font has: WeasyPrint would draw a box for each."""
    import html

    return unprintable(html.unescape(_TAGS.sub(" ", page)))
