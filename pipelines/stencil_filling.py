"""A document out of a stencil: its letters, title, alternative text, code and XML, then the file around them.

Nothing of it asks Typst. None where a text needs more room than its line has, or a letter that the book does not know.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.stencil_fields import Field, qr_of
from pipelines.stencil_maker import ALT, TITLE, Page, Stencil
from pipelines.word_book import Style, WordBook

COMPRESSION = 3  # 6 takes 0.7 ms a document longer and saves 1.2 kB
NEAR = 0.02  # points
_HANGING = tuple(".,:;-–—")  # Typst lets them stand out a little at the end of a line: at a right margin they move it
_BACK = re.compile(r"v1\.01h-\d+z")  # the way back of a module's outline (`epc_code.py`)


def texts_of(fields: Sequence[Field]) -> list[tuple[Style, str]]:
    """All texts that are shown or hidden, each with its style."""
    found = [((one.weight, one.tabular), one.text) for one in fields]
    return found + [((one.weight, one.tabular), one.pad[1]) for one in fields if one.pad is not None and one.pad[1]]


def filled(
    stencil: Stencil, book: WordBook, data: Mapping[str, Any], fields: Sequence[Field], pads: Sequence[str]
) -> bytes | None:
    """The document; None if a text has a letter that the book does not know, or needs more room than a line."""
    try:
        shown = _letters(book, fields, pads)
    except KeyError:
        book.learn(texts_of(fields))
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
        if found is None or (pad and hidden is None) or (one.right and one.text.endswith(_HANGING)):
            return None
        shown.append((found.glyphs, found.width, hidden.width if hidden is not None else 0.0))
    return shown


def _content(page: Page, shown: Sequence[tuple[bytes, float, float]], fields: Sequence[Field]) -> bytes | None:
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
                moved, begins, room = 0.0, slot.begins, one.room
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


def _packed(content: bytes) -> bytes:
    return _stream(b"<</Length %d/Filter/FlateDecode>>" % len(content), content)


def _stream(dictionary: bytes, content: bytes) -> bytes:
    return dictionary + b"\nstream\n" + content + b"\nendstream"


def _string(text: str) -> bytes:
    """A text string as Typst writes it: in ASCII as it is, brackets escaped where not all are in pairs, or UTF-16."""
    if text.isascii():
        escaped = r"\\" if _in_pairs(text) else r"[\\()]"
        return b"(" + re.sub(rf"({escaped})", r"\\\1", text).encode() + b")"
    return b"<FEFF" + text.encode("utf-16-be").hex().upper().encode() + b">"


def _in_pairs(text: str) -> bool:
    depth = 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            return False
    return depth == 0


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
