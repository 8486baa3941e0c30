"""Pages of one kind drawn once: Typst draws a page with marks for its texts, each document then fills in its own.

A stencil is a PDF of Typst taken apart: objects that stay, and streams whose texts, code, title and XML are filled in.
Geometry, tags, fonts and metadata are Typst's; only the letters between the brackets and the place of texts that end at
a margin change. The first document of a stencil is drawn by Typst, too, and must be the same in every glyph, place and
object (`prove`); what differs, or is not in the form expected, is drawn by Typst for good.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from pipelines.factur_x import in_typst_packet
from pipelines.pdf_parts import (
    OtherForm,
    Run,
    fonts_of,
    objects_of,
    pages_of,
    reference,
    runs_of,
    stream_of,
    widths_of,
)
from pipelines.stencil_fields import Field, blank_qr, qr_of
from pipelines.word_book import REPERTOIRE, WEIGHTS, WordBook

STENCILS_MAX = 256  # about 60 kB each
PROVED_ALWAYS, PROVED_EVERY = 20, 10  # the first stencils of a process are all compared with Typst, then every tenth
COMPRESSION = 3  # 6 takes 0.7 ms a document longer and saves 1.2 kB
NEAR = 0.02  # points
TITLE, ALT = "QQTITLEQQ", "QQALTQQ"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TOKENS = [f"{a}{b}" for a, b in product("QXZJYVK", _LETTERS)] + [
    f"{a}{b}{c}" for a, b, c in product("QXZJYVK", _LETTERS, _LETTERS)
]
_BACK = re.compile(r"v1\.01h-\d+z")  # the way back of a module's outline (`epc_code.py`)
_XML = "-" * 500  # long enough that Typst compresses it
_FILE = b"/Type/EmbeddedFile/"
_BOX = re.compile(rb"/BBox\[[\d. ]+\]")
_RECTANGLE = re.compile(rb"(\d+) (\d+) (\d+) 1\.01 re(\n(?=\d))?")
_log = logging.getLogger(__name__)

Draw = Callable[[Mapping[str, Any]], bytes]


@dataclass(frozen=True, slots=True)
class _Slot:
    """A run of text that a document fills in or that moves with the text before it. Places in points."""

    field: int  # which field, -1: constant letters that follow one
    x: float
    width: float  # of the mark, or of the constant letters
    size: float
    head: bytes
    tail: bytes  # constant letters with their brackets, or what follows the text on its run
    follows: bool


@dataclass
class _Page:
    """A page's content: constant bytes, with a slot between each two of them. `code` is the constant with the code."""

    number: int  # of the stream's object
    parts: list[bytes] = field(default_factory=list[bytes])
    slots: list[_Slot] = field(default_factory=list[_Slot])


@dataclass
class Stencil:
    """What is the same for all documents of a kind, and where they differ."""

    pages: list[_Page]
    code: tuple[bytes, int] | None  # the mark of the code in a content, and its modules on a side
    fixed: bytes  # the file up to the last object that stays
    entries: list[bytes]  # cross-reference table, those of other objects are filled in
    named: dict[int, bytes]  # objects with marks for title, alternative text
    packet: tuple[int, bytes, bytes]  # metadata: number, dictionary, content with marks
    attached: tuple[int, bytes] | None
    trailer: bytes
    ids: tuple[bytes, bytes]


class Stencils:
    """All stencils of a thread. `draw` gives the PDF that Typst makes of a page's data, without Factur-X metadata."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._books: dict[tuple[str, str, str], WordBook | None] = {}
        self._known: OrderedDict[str, Stencil | None] = OrderedDict()
        self._made = 0

    def learn(self, pages: Sequence[tuple[Mapping[str, Any], Sequence[Field] | None]]) -> None:
        """Words of many pages at once: Typst is asked once for all of them, instead of once a page."""
        wanted: dict[tuple[str, str, str], list[tuple[tuple[int, bool], str]]] = {}
        for data, fields in pages:
            if fields is not None:
                wanted.setdefault(_look(data), []).extend(_texts(fields))
        for look, texts in wanted.items():
            if (book := self._book(look)) is not None:
                book.learn(texts)

    def drawn(self, data: dict[str, Any], fields: Sequence[Field] | None) -> bytes | None:
        """The document's PDF with its metadata, or None if only Typst can draw it. `data` is the same afterwards.

        `fields` are those of `fields_of`; words that `learn` was not told of are learned now.
        """
        if fields is None or (book := self._book(_look(data))) is None:
            return None
        key, pads = _marked(data, fields)
        if key in self._known:
            self._known.move_to_end(key)
            stencil = self._known[key]
            return None if stencil is None else _filled(stencil, book, data, fields, pads)
        try:
            stencil = self._stencil(key, fields, book)
            pdf = None if stencil is None else _filled(stencil, book, data, fields, pads)
            if pdf is not None and (self._made <= PROVED_ALWAYS or self._made % PROVED_EVERY == 0):
                self.prove(pdf, data)
        except OtherForm as error:
            _log.warning("a page is drawn by Typst in full: %s", error)
            stencil, pdf = None, None
        self._known[key] = stencil
        if len(self._known) > STENCILS_MAX:
            self._known.popitem(last=False)
        return pdf

    def _book(self, look: tuple[str, str, str]) -> WordBook | None:
        if look not in self._books:
            try:
                self._books[look] = WordBook(*look)
            except OtherForm as error:
                _log.warning("pages are drawn by Typst in full: %s", error)
                self._books[look] = None
        return self._books[look]

    def _stencil(self, key: str, fields: Sequence[Field], book: WordBook) -> Stencil:
        self._made += 1
        data = json.loads(key)
        profile = data.get("xml_profile", "")
        objects, trailer = objects_of(self._draw({**data, "repertoire": REPERTOIRE}))
        maker = _Maker(objects, fields, book, data)
        numbers = pages_of(objects, trailer)
        pages = [maker.page(number, first=at == 0) for at, number in enumerate(numbers)]
        maker.complete()
        return _assembled(objects, trailer, pages, maker.code, profile)

    def prove(self, pdf: bytes, data: Mapping[str, Any]) -> None:
        """Raise OtherForm unless Typst draws the same document, glyph by glyph and object by object."""
        theirs, their_trailer = objects_of(self._draw({**data, "repertoire": REPERTOIRE}))
        ours, our_trailer = objects_of(pdf)
        pages = pages_of(theirs, their_trailer)
        if ours.keys() != theirs.keys() or pages != pages_of(ours, our_trailer):
            raise OtherForm("other objects than those of Typst")
        contents = {reference(theirs[number], "Contents"): number for number in pages}
        packet = reference(theirs[reference(their_trailer, "Root")], "Metadata")
        for number, body in theirs.items():
            if number in contents:
                first = contents[number] == pages[0]
                _prove_content(stream_of(ours[number])[1], stream_of(body)[1], first=first)
            elif number == packet:
                continue  # has the Factur-X schema, and ids of its own
            elif _FILE in body[:200]:
                if stream_of(ours[number])[1] != stream_of(body)[1]:
                    raise OtherForm("another file inside")
            elif _without_ink(ours[number]) != _without_ink(body):
                raise OtherForm(f"object {number} differs from that of Typst")


def _look(data: Mapping[str, Any]) -> tuple[str, str, str]:
    return data["look"]["font"], data["lang"], data["region"]


def _texts(fields: Sequence[Field]) -> list[tuple[tuple[int, bool], str]]:
    found = [((one.weight, one.tabular), one.text) for one in fields]
    return found + [((one.weight, one.tabular), one.pad[1]) for one in fields if one.pad is not None and one.pad[1]]


def _marked(data: dict[str, Any], fields: Sequence[Field]) -> tuple[str, list[str]]:
    """The page with a mark in place of each text, as JSON: what pages of one stencil share. And the hidden digits."""
    texts = [one.text for one in fields]
    pads = [one.pad[1] if one.pad is not None else "" for one in fields]
    payment = data["payment"]
    kept = {name: data[name] for name in ("title", "xml") if name in data}
    code = {} if payment["qr"] is None else {name: payment[name] for name in ("qr", "qr_alt")}
    try:
        for one, mark in zip(fields, _TOKENS, strict=False):
            one.holder[one.key] = mark
            if one.pad is not None:
                one.pad[1] = ""
        data["title"] = TITLE
        if "xml" in data:
            data["xml"] = _XML
        if code:
            payment["qr"], payment["qr_alt"] = blank_qr(qr_of(code["qr"])[0]), ALT
        return json.dumps(data, ensure_ascii=False), pads
    finally:
        for one, text, pad in zip(fields, texts, pads, strict=True):
            one.holder[one.key] = text
            if one.pad is not None:
                one.pad[1] = pad
        data |= kept
        payment |= code


# -- Making one --------------------------------------------------------------------------------------------------------


class _Maker:
    """Finds the marks of a drawn page."""

    def __init__(self, objects: dict[int, bytes], fields: Sequence[Field], book: WordBook, data: Mapping[str, Any]):
        self._objects, self._fields, self._book = objects, fields, book
        self._by_mark: dict[str, int] = {}
        for at, (one, mark) in enumerate(zip(fields, _TOKENS, strict=False)):
            self._by_mark[TITLE if one.key == "title" and one.weight == 650 else mark] = at
        self._seen: dict[int, int] = {}
        self._weights: dict[int, int] = {}  # by the number of a font's object: pages name fonts as they come
        self._fonts: dict[int, int] = {}  # of the page at hand
        self._sentence = "".join(part for part, _ in data["payment"]["sentence"])
        self._sentence_at = {at for at, one in enumerate(fields) if one.holder in data["payment"]["sentence"]}
        qr = data["payment"]["qr"]
        size = 0 if qr is None else qr_of_blank(qr)
        self._code = f"0 0 m {size} 0 l {size} {size} l 0 {size} l\nh".encode() if size else b""
        self._codes = 0
        self.code = (self._code, size) if size else None

    def page(self, number: int, *, first: bool) -> _Page:
        content = reference(self._objects[number], "Contents")
        _, stream = stream_of(self._objects[content])
        fonts = fonts_of(self._objects, number)
        if first:
            self._weights = {fonts[at]: weight for at, weight in enumerate(WEIGHTS) if at in fonts}
            self._prove_glyphs()
            stream = without_repertoire(stream)
        self._fonts = {at: self._weights[font] for at, font in fonts.items() if font in self._weights}
        runs = runs_of(stream)
        page = _Page(content)
        at = 0
        follows = self._followers(runs)
        for place, run in enumerate(runs):
            index = self._field_of(run)
            if index is None and place not in follows:
                continue
            start = stream.index(b"-1 ", run.start) + 3
            page.parts.append(stream[at:start])
            page.slots.append(self._slot(run, index, place in follows))
            at = run.end
        page.parts.append(stream[at:])
        if self._code:
            self._codes += stream.count(self._code)
        return page

    def complete(self) -> None:
        """Every mark was found as often as it must be."""
        for at, one in enumerate(self._fields):
            seen = self._seen.get(at, 0)
            if seen < one.runs_min or (one.runs_min and seen != 1):
                raise OtherForm(f"the mark of text {at} was drawn {seen} times")
        if self._code and self._codes != 1:
            raise OtherForm(f"the code was drawn {self._codes} times")

    def _prove_glyphs(self) -> None:
        """The glyphs of the repertoire are numbered as in the book."""
        if len(self._weights) != len(WEIGHTS):
            raise OtherForm("not all weights are on the page")
        for font, weight in self._weights.items():
            if not self._book.same_glyphs(weight, widths_of(self._objects, font)):
                raise OtherForm(f"the glyphs of weight {weight} have other numbers than in the book")

    def _field_of(self, run: Run) -> int | None:
        return self._by_mark.get(self._letters(run).rstrip(" "))

    def _letters(self, run: Run) -> str:
        if run.font not in self._fonts:
            return "\ufffd"
        signs = self._book.signs[self._fonts[run.font]]
        return "".join(signs.get(glyph, "\ufffd") for glyph in run.glyphs)

    def _end(self, run: Run) -> float:
        weight = self._fonts[run.font]
        return run.x + self._book.width(weight, run) * run.size / 1000

    def _followers(self, runs: Sequence[Run]) -> set[int]:
        """Runs that move with a text before them: behind a field on the same line, up to the next gap."""
        found: set[int] = set()
        chained = {at for at, one in enumerate(self._fields) if one.behind}
        heads = {at - 1 for at in chained} | {at for at in self._sentence_at}
        for place, run in enumerate(runs):
            index = self._field_of(run)
            if index is None or index not in heads or place in found:
                continue
            behind = place + 1
            while behind < len(runs) and runs[behind].y == run.y and runs[behind].font in self._fonts:
                gap = runs[behind].x - self._end(runs[behind - 1])
                following = self._field_of(runs[behind])
                if (following is None and abs(gap) > 0.5) or (following is not None and following not in chained):
                    break
                found.add(behind)
                behind += 1
            if index in self._sentence_at:
                self._prove_sentence(runs, place, behind)
        return found

    def _prove_sentence(self, runs: Sequence[Run], place: int, end: int) -> None:
        """The whole sentence stands on the line of its first emphasised word: else it may break elsewhere."""
        first = place
        while first and runs[first - 1].y == runs[place].y and runs[first - 1].font in self._fonts:
            if abs(runs[first].x - self._end(runs[first - 1])) > 0.5:
                break
            first -= 1
        if "".join(map(self._letters, runs[first:end])).rstrip() != self._sentence.rstrip():
            raise OtherForm("the payment's sentence takes more than a line")

    def _slot(self, run: Run, index: int | None, follows: bool) -> _Slot:
        weight = self._fonts[run.font]
        width = self._book.width(weight, run)
        if index is None:
            return _Slot(-1, run.x, width, run.size, run.head, _array(run), True)
        one = self._fields[index]
        if one.weight != weight:
            raise OtherForm(f"text {index} is set in weight {weight}, not in {one.weight}")
        if follows != one.behind:
            raise OtherForm(f"text {index} follows another one, or does not")
        self._seen[index] = self._seen.get(index, 0) + 1
        tail = b""
        if self._letters(run).endswith(" "):
            if one.right:
                raise OtherForm(f"text {index} ends at a margin with a space behind it")
            tail = b"<%04X>" % run.glyphs[-1]
            width -= self._book.advance(weight, run.glyphs[-1])
        return _Slot(index, run.x, width, run.size, run.head, tail, follows)


def qr_of_blank(svg: str) -> int:
    found = re.search(r'viewBox="0 0 (\d+) ', svg)
    assert found is not None
    return int(found.group(1))


def without_repertoire(stream: bytes) -> bytes:
    """A first page's content without the runs of text in its background."""
    if not stream.startswith(b"/Artifact<<"):
        raise OtherForm("the page does not begin with its background")
    end = stream.index(b"EMC")
    runs = [run for run in runs_of(stream[:end]) if run.end <= end]
    if len(runs) < len(REPERTOIRE):
        raise OtherForm("the repertoire is not in the background")
    return stream[: runs[0].start] + stream[runs[-1].end + 1 :]


def _array(run: Run) -> bytes:
    from pipelines.word_book import shown_of

    return b"[" + shown_of(run.glyphs, run.adjustments) + b"]TJ\nET\nQ"


def _assembled(
    objects: dict[int, bytes],
    trailer: bytes,
    pages: list[_Page],
    code: tuple[bytes, int] | None,
    profile: str,
) -> Stencil:
    root = reference(trailer, "Root")
    packet_number = reference(objects[root], "Metadata")
    dictionary, packet = stream_of(objects[packet_number])
    ids = re.search(rb"/ID\[\(([^()\\]+)\)\(([^()\\]+)\)\]", trailer)
    if ids is None or b"/Filter" in dictionary:
        raise OtherForm("no two ids in the trailer, or compressed metadata")
    if profile:
        packet = in_typst_packet(packet, profile)
    attached: tuple[int, bytes] | None = None
    named: dict[int, bytes] = {}
    changed = {packet_number, *(page.number for page in pages)}
    for number, body in objects.items():
        if _FILE in body[:200]:
            if attached is not None:
                raise OtherForm("more than one file inside")
            attached = (number, stream_of(body)[0])
        elif b"stream" not in body and (TITLE.encode() in body or ALT.encode() in body):
            named[number] = body
            if len(re.findall(rb"\((?:%s|%s)\)" % (TITLE.encode(), ALT.encode()), body)) != body.count(b"QQ") / 2:
                raise OtherForm("a mark inside another text")
    changed |= set(named) | ({attached[0]} if attached else set())
    head = b"%PDF-1.7\n%\x80\x80\x80\x80\n\n"
    parts, at = [head], len(head)
    entries = [b"0000000000 65535 f\r\n"] + [b""] * max(objects)
    for number, body in objects.items():
        if number in changed:
            continue
        text = b"%d 0 obj\n%s\nendobj\n" % (number, body)
        entries[number] = b"%010d 00000 n\r\n" % at
        parts.append(text)
        at += len(text)
    if sorted(objects) != list(range(1, len(objects) + 1)):
        raise OtherForm("numbers of objects with gaps")
    return Stencil(
        pages, code, b"".join(parts), entries, named, (packet_number, dictionary, packet), attached, trailer,
        (ids.group(1), ids.group(2)),
    )  # fmt: skip


# -- Filling it in -----------------------------------------------------------------------------------------------------


def _filled(
    stencil: Stencil, book: WordBook, data: Mapping[str, Any], fields: Sequence[Field], pads: Sequence[str]
) -> bytes | None:
    """The document; None if a text has a letter that the book does not know, or needs more room than a line."""
    try:
        shown = _letters(book, fields, pads)
    except KeyError:
        book.learn(_texts(fields))
        shown = _letters(book, fields, pads)
    if shown is None:
        return None
    new: dict[int, bytes] = {}
    for page in stencil.pages:
        content = _content(page, shown, fields)
        if content is None:
            return None
        if stencil.code is not None:
            content = content.replace(stencil.code[0], _code(data["payment"]["qr"]), 1)
            content = content.replace(b"(" + ALT.encode() + b")", _string(data["payment"]["qr_alt"]), 1)
        new[page.number] = _packed(zlib.compress(content, COMPRESSION))
    title = _string(data["title"])
    for number, body in stencil.named.items():
        body = body.replace(b"(" + TITLE.encode() + b")", title)
        if stencil.code is not None:
            body = body.replace(b"(" + ALT.encode() + b")", _string(data["payment"]["qr_alt"]))
        new[number] = body
    if stencil.attached is not None:
        number, dictionary = stencil.attached
        xml = data["xml"].encode()
        packed = zlib.compress(xml, COMPRESSION)
        dictionary = re.sub(rb"/Length \d+", b"/Length %d" % len(packed), dictionary)
        new[number] = _stream(re.sub(rb"/Size \d+", b"/Size %d" % len(xml), dictionary), packed)
    new_ids = _ids(data, new)
    number, dictionary, packet = stencil.packet
    packet = packet.replace(f">{TITLE}<".encode(), f">{_escaped(data['title'])}<".encode())
    trailer = stencil.trailer
    for old, one in zip(stencil.ids, new_ids, strict=True):
        packet, trailer = packet.replace(old, one), trailer.replace(old, one)
    new[number] = _stream(re.sub(rb"/Length \d+", b"/Length %d" % len(packet), dictionary), packet)
    return _file(stencil, new, trailer)


def _letters(book: WordBook, fields: Sequence[Field], pads: Sequence[str]) -> list[tuple[bytes, float, float]] | None:
    """Letters of each text, their width, and the width of what is hidden behind them."""
    shown: list[tuple[bytes, float, float]] = []
    for one, pad in zip(fields, pads, strict=True):
        style = (one.weight, one.tabular)
        found = book.text(style, one.text)
        hidden = book.text(style, pad) if pad else None
        if found is None or (pad and hidden is None):
            return None
        shown.append((found.glyphs, found.width, hidden.width if hidden is not None else 0.0))
    return shown


def _content(page: _Page, shown: Sequence[tuple[bytes, float, float]], fields: Sequence[Field]) -> bytes | None:
    parts: list[bytes] = []
    moved = begins = 0.0
    room = 0.0
    for constant, slot in zip(page.parts, page.slots, strict=False):
        parts.append(constant)
        if slot.field < 0:
            x, end = slot.x + moved, slot.x + moved + slot.width * slot.size / 1000
            parts += [b"%.3f" % x, slot.head, slot.tail]
        else:
            one = fields[slot.field]
            glyphs, width, hidden = shown[slot.field]
            if not slot.follows:
                moved, begins, room = 0.0, slot.x, one.room
            x = slot.x + moved
            grown = (width - slot.width) * slot.size / 1000
            if one.right:
                x -= grown + hidden * slot.size / 1000
                begins = x
            else:
                moved += grown
            end = x + (width + hidden) * slot.size / 1000
            parts += [b"%.3f" % x, slot.head, b"[", glyphs, slot.tail, b"]TJ\nET\nQ"]
        if end - begins > room + NEAR:
            return None
    parts.append(page.parts[-1])
    return b"".join(parts)


def _code(svg: str) -> bytes:
    """The runs of a code's modules as rectangles: a quarter of what Typst writes for them as paths."""
    runs = " 1.01 re\n".join(_BACK.split(qr_of(svg)[1]))
    return runs.replace("M", "").replace("h", " ").rstrip().encode()


def _as_paths(content: bytes) -> bytes:
    """The rectangles of a code as Typst writes them."""

    def path(found: re.Match[bytes]) -> bytes:
        x, y, width = (int(one) for one in found.groups()[:3])
        drawn = b"%d %d m %d %d l %d %d.01 l %d %d.01 l\nh" % (x, y, x + width, y, x + width, y + 1, x, y + 1)
        return drawn + (b" " if found[4] else b"")

    return _RECTANGLE.sub(path, content)


def _packed(content: bytes) -> bytes:
    return _stream(b"<</Length %d/Filter/FlateDecode>>" % len(content), content)


def _stream(dictionary: bytes, content: bytes) -> bytes:
    return dictionary + b"\nstream\n" + content + b"\nendstream"


def _string(text: str) -> bytes:
    """A text string: in ASCII as it is, else in UTF-16."""
    if text.isascii():
        return b"(" + re.sub(rb"([\\()])", rb"\\\1", text.encode()) + b")"
    return b"<FEFF" + text.encode("utf-16-be").hex().upper().encode() + b">"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _ids(data: Mapping[str, Any], new: Mapping[int, bytes]) -> tuple[bytes, bytes]:
    """Of the document, and of this file: the same input has the same ones."""
    document = hashlib.sha256(f"{data['author']}\0{data['title']}".encode()).digest()
    file = hashlib.sha256(document + b"".join(new.values())).digest()
    return base64.b64encode(document[:16]), base64.b64encode(file[:16])


def _file(stencil: Stencil, new: Mapping[int, bytes], trailer: bytes) -> bytes:
    entries = list(stencil.entries)
    parts, at = [stencil.fixed], len(stencil.fixed)
    for number, body in new.items():
        text = b"%d 0 obj\n%s\nendobj\n" % (number, body)
        entries[number] = b"%010d 00000 n\r\n" % at
        parts.append(text)
        at += len(text)
    parts += [
        b"xref\n0 %d\n" % len(entries), *entries,
        b"trailer\n<<%s>>\nstartxref\n%d\n%%%%EOF\n" % (trailer.strip(), at),
    ]  # fmt: skip
    return b"".join(parts)


# -- Proving it --------------------------------------------------------------------------------------------------------


def _prove_content(ours: bytes, theirs: bytes, *, first: bool) -> None:
    if first:
        theirs = without_repertoire(theirs)
    our_runs, their_runs = runs_of(ours), runs_of(theirs)
    if len(our_runs) != len(their_runs):
        raise OtherForm(f"{len(our_runs)} runs of text, Typst has {len(their_runs)}")
    for one, other in zip(our_runs, their_runs, strict=True):
        same = (one.font, one.size, one.glyphs) == (other.font, other.size, other.glyphs) and one.head == other.head
        near = abs(one.x - other.x) <= NEAR and abs(one.y - other.y) <= NEAR and abs(one.moved - other.moved) <= 1
        if not (same and near):
            raise OtherForm(f"text at {one.x:g}, {one.y:g} differs from Typst's at {other.x:g}, {other.y:g}")
    if _as_paths(_between(ours, our_runs)) != _between(theirs, their_runs):
        raise OtherForm("lines, tags or the code differ from those of Typst")


def _without_ink(body: bytes) -> bytes:
    """An object without the box around what is printed of a table, which ends at the lowest letter of its last line."""
    return _BOX.sub(b"", body)


def _between(content: bytes, runs: Sequence[Run]) -> bytes:
    ends = [0, *(run.end for run in runs)]
    starts = [*(run.start for run in runs), len(content)]
    return b"\0".join(content[end:start] for end, start in zip(ends, starts, strict=True))
