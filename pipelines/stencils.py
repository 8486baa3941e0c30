"""Pages of one kind drawn once: Typst draws a page with marks for its texts, each document then fills in its own.

A stencil is a PDF of Typst taken apart: objects that stay, and streams whose texts, code, title and XML are filled in.
Geometry, tags, fonts and metadata are Typst's; only the letters between the brackets and the place of texts that end at
a margin change. The first document of a stencil, and every 250th of all, is drawn by Typst, too, and must be the same
in every glyph, place and object (`prove`); what differs, or is not in the form expected, is drawn by Typst for good.
"""

from __future__ import annotations

import json
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.pdf_parts import OtherForm, Run, objects_of, pages_of, reference, runs_of, stream_of
from pipelines.stencil_fields import Field, blank_qr, qr_of
from pipelines.stencil_filling import NEAR, filled, texts_of
from pipelines.stencil_maker import (
    ALT,
    FIELDS_MAX,
    FILE,
    TITLE,
    XML,
    Maker,
    Stencil,
    assembled,
    mark_of,
    without_repertoire,
)
from pipelines.word_book import REPERTOIRE, Style, WordBook

STENCILS_MAX = 256  # about 60 kB each
PROVED_EVERY = 250  # documents of a process: beside the first of each stencil, so many are compared with Typst
_BOX = re.compile(rb"/BBox\[[\d. ]+\]")
_RECTANGLE = re.compile(rb"(\d+) (\d+) (\d+) 1\.01 re(\n(?=\d))?")
_log = logging.getLogger(__name__)

Draw = Callable[[Mapping[str, Any]], bytes]


class Stencils:
    """All stencils of a thread. `draw` gives the PDF that Typst makes of a page's data, without Factur-X metadata."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._books: dict[tuple[str, str, str], WordBook | None] = {}
        self._known: OrderedDict[str, Stencil | None] = OrderedDict()
        self._drawn = 0

    def learn(self, pages: Sequence[tuple[Mapping[str, Any], Sequence[Field] | None]]) -> None:
        """Words of many pages at once: Typst is asked once for all of them, instead of once a page."""
        wanted: dict[tuple[str, str, str], list[tuple[Style, str]]] = {}
        for data, fields in pages:
            if fields is not None:
                wanted.setdefault(_look(data), []).extend(texts_of(fields))
        for look, texts in wanted.items():
            if (book := self._book(look)) is not None:
                book.learn(texts)

    def drawn(self, data: dict[str, Any], fields: Sequence[Field] | None) -> bytes | None:
        """The document's PDF with its metadata, or None if only Typst can draw it. `data` is the same afterwards.

        `fields` are those of `fields_of`; words that `learn` was not told of are learned now.
        """
        if fields is None or len(fields) > FIELDS_MAX or (book := self._book(_look(data))) is None:
            return None
        key, pads = _marked(data, fields)
        if key not in self._known:
            self._known[key] = self._stencil(key, fields, book)
            if len(self._known) > STENCILS_MAX:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        stencil = self._known[key]
        pdf = None if stencil is None else filled(stencil, book, data, fields, pads)
        if pdf is None or stencil is None:
            return pdf
        self._drawn += 1
        if not stencil.unproved and self._drawn % PROVED_EVERY:
            return pdf
        try:
            self.prove(pdf, data)
        except OtherForm as error:
            _log.warning("a page is drawn by Typst in full: %s", error)
            self._known[key] = None
            return None
        stencil.unproved = False
        return pdf

    def _book(self, look: tuple[str, str, str]) -> WordBook | None:
        if look not in self._books:
            try:
                self._books[look] = WordBook(*look)
            except OtherForm as error:
                _log.warning("pages are drawn by Typst in full: %s", error)
                self._books[look] = None
        return self._books[look]

    def _stencil(self, key: str, fields: Sequence[Field], book: WordBook) -> Stencil | None:
        data = json.loads(key)
        try:
            objects, trailer = objects_of(self._draw({**data, "repertoire": REPERTOIRE}))
            maker = Maker(objects, fields, book, data)
            numbers = pages_of(objects, trailer)
            pages = [maker.page(number, first=at == 0) for at, number in enumerate(numbers)]
            maker.complete()
            found = assembled(objects, trailer, pages, maker.code, data.get("xml_profile", ""))
        except OtherForm as error:
            _log.warning("a page is drawn by Typst in full: %s", error)
            return None
        return found

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
            elif FILE in body[:200]:
                if stream_of(ours[number])[1] != stream_of(body)[1]:
                    raise OtherForm("another file inside")
            elif _without_ink(ours[number]) != _without_ink(body):
                raise OtherForm(f"object {number} differs from that of Typst")


def _look(data: Mapping[str, Any]) -> tuple[str, str, str]:
    return data["look"]["font"], data["lang"], data["region"]


def _marked(data: dict[str, Any], fields: Sequence[Field]) -> tuple[str, list[str]]:
    """The page with a mark in place of each text, as JSON: what pages of one stencil share. And the hidden digits."""
    texts = [one.text for one in fields]
    pads = [one.pad[1] if one.pad is not None else "" for one in fields]
    payment = data["payment"]
    kept = {name: data[name] for name in ("title", "xml") if name in data}
    code = {} if payment["qr"] is None else {name: payment[name] for name in ("qr", "qr_alt")}
    try:
        for at, one in enumerate(fields):
            one.holder[one.key] = mark_of(at, one)
            if one.pad is not None:
                one.pad[1] = ""
        data["title"] = TITLE
        if "xml" in data:
            data["xml"] = XML
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


def _as_paths(content: bytes) -> bytes:
    """The rectangles of a code as Typst writes them."""

    def path(found: re.Match[bytes]) -> bytes:
        x, y, width = (int(one) for one in found.groups()[:3])
        drawn = b"%d %d m %d %d l %d %d.01 l %d %d.01 l\nh" % (x, y, x + width, y, x + width, y + 1, x, y + 1)
        return drawn + (b" " if found[4] else b"")

    return _RECTANGLE.sub(path, content)
