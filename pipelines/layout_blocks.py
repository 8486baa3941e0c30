"""The blocks of a layout: logo, colours, font, columns, grouping, texts, cover letter, usage appendix. No drawing.

Owns what a block may be and every message about one that is not; how it is drawn is the engines' (`layout_engines.py`).
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from lxml import etree
from PIL import Image, UnidentifiedImageError

from billing.accompanying import KINDS
from billing.forms import Form, Mistakes

Engine = Literal["typst", "html"]
ISSUED_KINDS = ("invoice", "credit_note")  # what books; what accompanies them is `billing/accompanying.py`'s KINDS
DOCUMENT_KINDS = (*ISSUED_KINDS, *KINDS)  # each has its own choice of a layout
FONTS = ("Inter", "Noto Sans", "Libertinus Serif")
COLUMNS = ("position", "description", "period", "quantity", "unit", "price", "amount", "gross")  # of what books
NEEDED = ("position", "description", "amount")  # keep a line together, say what it is and what it costs
_OF_ACCOMPANYING: Mapping[str, tuple[str, ...]] = {
    "usage_record": ("day", "note", "billed_with", "quantity"),
    "account_statement": ("booked_on", "document", "due_on", "amount", "balance"),
    "reminder": ("number", "issued_on", "due_on", "invoiced", "open"),
    "delivery_note": ("description", "period", "quantity", "unit"),
    "credit_statement": (
        "description", "period", "quantity", "unit", "price", "amount", "booked_on", "document", "expires_on",
        "balance",
    ),
}  # fmt: skip
_MAY_LACK: Mapping[str, tuple[str, ...]] = {
    "usage_record": ("note", "billed_with"),
    "account_statement": ("due_on", "balance"),
    "reminder": ("issued_on", "invoiced"),
    "delivery_note": ("period", "unit"),
    "credit_statement": ("period", "quantity", "unit", "price", "expires_on", "balance"),
}
GROUPINGS = ("subscription", "product", "cost_centre", "none")
LOGO_BYTES_MAX = 300_000
LOGO_SIDE_MIN, LOGO_SIDE_MAX = 8, 4_000  # pixels; a picture is unpacked in memory, 4 bytes each
SOURCE_CHARACTERS_MAX = 200_000
TEXT_MAX, COVER_MAX = 2_000, 20_000
FOOTER_MAX = 250  # characters: two lines are left below the footer's columns
LANGUAGES_MAX = 20
TEXTS = ("greeting", "intro", "closing", "footer")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_LANGUAGE = re.compile(r"[a-z]{2}")
_ACTIVE = frozenset({"script", "foreignObject", "iframe", "animate", "set", "handler"})
_ELSEWHERE = re.compile(r"@import|url\(\s*['\"]?(?!#|data:)", re.IGNORECASE)


@dataclass(frozen=True)
class Logo:
    """A checked picture: an SVG as text or a PNG as bytes; sizes in its own units."""

    mime: Literal["image/svg+xml", "image/png"]
    data: bytes
    width: float
    height: float

    @property
    def address(self) -> str:
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Blocks:
    """What a layout says about looks and words; everything has the value of the built-in layout if it is left out."""

    logo: Logo | None = None
    accent: str = "#000000"
    faint: str = "#55585f"
    font: str = "Inter"
    size: str = "9"  # points
    columns: tuple[str, ...] | None = None  # None: all that the type of document has
    grouping: str = "subscription"
    texts: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])  # by language
    cover: Mapping[str, str] = field(default_factory=dict[str, str])  # by language
    appendix: bool = True

    @property
    def is_plain(self) -> bool:
        return self == Blocks()


@dataclass(frozen=True)
class Layout:
    """One version of a layout. Without a source of its own the built-in page of its engine draws the blocks."""

    engine: Engine = "typst"
    source: str | None = None
    blocks: Blocks = field(default_factory=Blocks)


def columns_of(kind: str) -> tuple[str, ...]:
    """The columns that documents of a type may show, in their order on the page."""
    return _OF_ACCOMPANYING.get(kind, COLUMNS)


def needed_of(kind: str) -> tuple[str, ...]:
    """Columns that no layout of the type can do without."""
    if kind in ISSUED_KINDS:
        return NEEDED
    return tuple(name for name in columns_of(kind) if name not in _MAY_LACK.get(kind, ()))


def layout_of(form: object, kind: str = "invoice") -> Layout:
    """A layout for a type of document from its JSON form; `InvalidInput` names every bad place, not only the first."""
    mistakes = Mistakes()
    top = Form(form, "", mistakes)
    engine = cast(Engine, top.choice("engine", ("typst", "html"), "typst"))
    source = top.text("source", "", SOURCE_CHARACTERS_MAX)
    blocks = _blocks(Form(top.mapping("blocks"), "/blocks", mistakes), kind)
    top.done()
    mistakes.check()
    return Layout(engine, source or None, blocks)


def _blocks(form: Form, kind: str) -> Blocks:
    usual = Blocks()
    if kind not in ISSUED_KINDS:
        for name in ("grouping", "appendix"):
            if name in form.fields:
                form.wrong(name, f"only invoices and credit notes have it, a {kind} has not")
    logo = _logo(form)
    colours = {
        name: _colour(form, name, usual_one) for name, usual_one in (("accent", usual.accent), ("faint", usual.faint))
    }
    font = form.choice("font", FONTS, usual.font)
    size = form.count("size", 9, 7, 14)
    columns = _columns(form, kind)
    grouping = form.choice("grouping", GROUPINGS, usual.grouping)
    texts: dict[str, dict[str, str]] = {}
    for language, said in _languages(form, "texts"):
        one = Form(said, f"{form.at('texts')}/{language}", form.mistakes)
        texts[language] = {
            name: one.text(name, "", FOOTER_MAX if name == "footer" else TEXT_MAX)
            for name in TEXTS
            if name in one.fields
        }
        one.done()
    cover: dict[str, str] = {}
    for language, said in _languages(form, "cover"):
        if isinstance(said, str) and len(said) <= COVER_MAX:
            cover[language] = said
        else:
            form.mistakes.add(f"{form.at('cover')}/{language}", f"a text of at most {COVER_MAX} characters is needed")
    appendix = form.truth("appendix", default=True)
    form.done()
    return Blocks(
        logo, colours["accent"], colours["faint"], font, str(size), columns, grouping, texts,
        {language: text for language, text in cover.items() if text.strip()}, appendix,
    )  # fmt: skip


def _colour(form: Form, name: str, usual: str) -> str:
    value = form.text(name, usual)
    if not _COLOUR.fullmatch(value):
        form.wrong(name, f"a colour is # and six hex digits, as {usual}; this is {value[:20]!r}")
        return usual
    if name == "accent" or name == "faint":
        contrast = contrast_on_white(value)
        if contrast < 3:
            form.wrong(name, f"has a contrast of {contrast:.1f} on white; at least 3 is needed to be read on paper")
    return value.lower()


def contrast_on_white(colour: str) -> float:
    """WCAG 2 contrast of a colour on white; 1 is white itself."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)


def _columns(form: Form, kind: str) -> tuple[str, ...] | None:
    if "columns" not in form.fields:
        return None
    there, named = columns_of(kind), form.texts("columns")
    for place, name in enumerate(named):
        if name not in there:
            form.mistakes.add(f"{form.at('columns')}/{place}", f"{name[:40]!r} is none of {', '.join(there)}")
    lacking = [name for name in needed_of(kind) if name not in named]
    if lacking:
        form.wrong("columns", f"a line cannot do without {', '.join(lacking)}")
    shown = tuple(name for name in there if name in named)
    return None if shown == there else shown


def _languages(form: Form, key: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for language, said in form.mapping(key).items():
        if not _LANGUAGE.fullmatch(str(language)):
            form.wrong(key, f"{str(language)[:20]!r} is no language; two letters as de or en are needed")
        elif len(found) == LANGUAGES_MAX:
            form.wrong(key, f"has more than {LANGUAGES_MAX} languages")
        else:
            found.append((language, said))
    return found


# -- Logo --------------------------------------------------------------------------------------------------------------


def _logo(form: Form) -> Logo | None:
    """The logo from `data` in base64; whether it is what it says is seen in its bytes, not in a name."""
    text = form.text("logo", "", LOGO_BYTES_MAX * 2)
    if not text:
        return None
    text = text.partition("base64,")[2] if text.startswith("data:") else text
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        form.wrong("logo", "is no base64")
        return None
    made, why = checked_logo(data)
    if made is None:
        form.wrong("logo", why)
    return made


def checked_logo(data: bytes) -> tuple[Logo | None, str]:
    """The picture, or why it is none that can be printed."""
    if not data:
        return None, "the file is empty"
    if len(data) > LOGO_BYTES_MAX:
        return None, f"has {len(data):,} bytes; at most {LOGO_BYTES_MAX:,} are allowed"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:5] in (b"<?xml", b"<svg ", b"<svg>", b"<!--s") or b"<svg" in data[:1_000]:
        return _svg(data)
    return None, "is neither a PNG nor an SVG"


def _png(data: bytes) -> tuple[Logo | None, str]:
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not all(LOGO_SIDE_MIN <= side <= LOGO_SIDE_MAX for side in (width, height)):
        return None, f"is {width} x {height} pixels; from {LOGO_SIDE_MIN} to {LOGO_SIDE_MAX} are allowed on each side"
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            warnings.simplefilter("error")
            picture.load()
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Warning) as error:
        return None, f"is a broken PNG: {error}"
    return Logo("image/png", data, width, height), ""


def _svg(data: bytes) -> tuple[Logo | None, str]:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False, remove_comments=True)
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        return None, f"is a broken SVG, line {error.lineno}, column {error.offset}: {error.msg}"
    if root.getroottree().docinfo.doctype:
        return None, "has a document type definition; an SVG needs none"
    for one in root.iter():
        if not isinstance(one.tag, str):
            continue
        name = etree.QName(one).localname
        if name in _ACTIVE:
            return None, f"has an element {name}; a logo only draws"
        for key, value in one.attrib.items():
            local = etree.QName(key).localname
            if local.startswith("on"):
                return None, f"has an attribute {local}; a logo only draws"
            if (local == "href" and not value.strip().startswith(("#", "data:image/"))) or _ELSEWHERE.search(value):
                return None, f"loads {value.strip()[:60]!r}; a logo holds all that it shows"
        if name == "style" and _ELSEWHERE.search(one.text or ""):
            return None, "loads something in its style; a logo holds all that it shows"
    width, height = _svg_size(root)
    if not (0 < width <= 100_000 and 0 < height <= 100_000):
        return None, 'has no size: give it a viewBox, as viewBox="0 0 90 30"'
    return Logo("image/svg+xml", data, width, height), ""


def _svg_size(root: Any) -> tuple[float, float]:
    box = re.split(r"[\s,]+", (root.get("viewBox") or "").strip())
    numbers = box[2:4] if len(box) == 4 else [root.get("width") or "", root.get("height") or ""]
    found = [re.match(r"[0-9]+(\.[0-9]+)?", one) for one in numbers]
    sizes = [float(one.group()) if one else 0.0 for one in found]
    return sizes[0], sizes[1]
