"""A stencil out of a page that Typst drew with marks in place of its texts: what stays, and where each text goes.

Owns the marks and their finding. A mark that is drawn another number of times than it must be, a sentence of two lines,
or letters with other numbers than in the book raise `OtherForm`: such pages are Typst's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from pipelines.factur_x import in_typst_packet
from pipelines.pdf_parts import OtherForm, Run, fonts_of, reference, runs_of, stream_of, widths_of
from pipelines.stencil_fields import Field
from pipelines.word_book import REPERTOIRE, WEIGHTS, WordBook, shown_of

TITLE, ALT = "QQTITLEQQ", "QQALTQQ"
XML = "-" * 500  # long enough that Typst compresses it
FILE = b"/Type/EmbeddedFile/"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MARKS = ["".join(one) for one in product("QXZJYVK", _LETTERS)]
_MARKS += ["".join(one) for one in product("QXZJYVK", _LETTERS, _LETTERS)]
FIELDS_MAX = len(_MARKS)


@dataclass(frozen=True, slots=True)
class Slot:
    """A run of text that a document fills in or that moves with the text before it. Places in points."""

    field: int  # which field, -1: constant letters that follow one
    x: float
    width: float  # of the mark, or of the constant letters
    size: float
    head: bytes
    tail: bytes  # constant letters with their brackets, or what follows the text on its run
    follows: bool
    begins: float  # where its room begins: of a sentence, with the constant words before it


@dataclass
class Page:
    """A page's content: constant bytes, with a slot between each two of them. `code` is the constant with the code."""

    number: int  # of the stream's object
    parts: list[bytes] = field(default_factory=list[bytes])
    slots: list[Slot] = field(default_factory=list[Slot])


@dataclass
class Stencil:
    """What is the same for all documents of a kind, and where they differ."""

    pages: list[Page]
    code: tuple[bytes, int] | None  # the mark of the code in a content, and its modules on a side
    fixed: bytes  # the file up to the last object that stays
    entries: list[bytes]  # cross-reference table, those of other objects are filled in
    named: dict[int, bytes]  # objects with marks for title, alternative text
    packet: tuple[int, bytes, bytes]  # metadata: number, dictionary, content with marks
    attached: tuple[int, bytes] | None
    trailer: bytes
    ids: tuple[bytes, bytes]
    unproved: bool = True  # the next document filled in is compared with Typst's own drawing


class Maker:
    """Finds the marks of a drawn page."""

    def __init__(self, objects: dict[int, bytes], fields: Sequence[Field], book: WordBook, data: Mapping[str, Any]):
        self._objects, self._fields, self._book = objects, fields, book
        self._by_mark: dict[str, int] = {}
        for at, one in enumerate(fields):
            self._by_mark[TITLE if one.key == "title" and one.weight == 650 else mark_of(at, one)] = at
        self._seen: dict[int, int] = {}
        self._weights: dict[int, int] = {}  # by the number of a font's object: pages name fonts as they come
        self._fonts: dict[int, int] = {}  # of the page at hand
        self._sentence = "".join(part for part, _ in data["payment"]["sentence"])
        emphasised = {part for part, bold in data["payment"]["sentence"] if bold}  # marks: the fields hold texts again
        self._sentence_at = {at for at, one in enumerate(fields) if mark_of(at, one) in emphasised}
        qr = data["payment"]["qr"]
        size = 0 if qr is None else qr_of_blank(qr)
        self._code = f"0 0 m {size} 0 l {size} {size} l 0 {size} l\nh".encode() if size else b""
        self._codes = 0
        self._begins: dict[int, float] = {}  # of the page at hand: by the place of a sentence's first emphasised run
        self.code = (self._code, size) if size else None

    def page(self, number: int, *, first: bool) -> Page:
        content = reference(self._objects[number], "Contents")
        _, stream = stream_of(self._objects[content])
        fonts = fonts_of(self._objects, number)
        if first:
            self._weights = {fonts[at]: weight for at, weight in enumerate(WEIGHTS) if at in fonts}
            self._prove_glyphs()
            stream = without_repertoire(stream)
        self._fonts = {at: self._weights[font] for at, font in fonts.items() if font in self._weights}
        runs = runs_of(stream)
        page = Page(content)
        at = 0
        self._begins = {}
        follows = self._followers(runs)
        for place, run in enumerate(runs):
            index = self._field_of(run)
            if index is None and place not in follows:
                continue
            start = stream.index(b"-1 ", run.start) + 3
            page.parts.append(stream[at:start])
            page.slots.append(self._slot(run, index, place in follows, self._begins.get(place, run.x)))
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
        self._begins[place] = runs[first].x

    def _slot(self, run: Run, index: int | None, follows: bool, begins: float) -> Slot:
        weight = self._fonts[run.font]
        width = self._book.width(weight, run)
        if index is None:
            return Slot(-1, run.x, width, run.size, run.head, _array(run), True, begins)
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
        return Slot(index, run.x, width, run.size, run.head, tail, follows, begins)


def mark_of(at: int, one: Field) -> str:
    """A short text that stands nowhere else; in digits where the weight has no letters in the repertoire."""
    return f"0,0,{at}" if one.weight == 600 else _MARKS[at]


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
    return b"[" + shown_of(run.glyphs, run.adjustments) + b"]TJ\nET\nQ"


def assembled(
    objects: dict[int, bytes],
    trailer: bytes,
    pages: list[Page],
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
        if FILE in body[:200]:
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
