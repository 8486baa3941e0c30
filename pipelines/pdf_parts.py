"""A PDF that Typst made, taken apart: its objects, its streams and the runs of text of a page. It changes nothing.

Typst writes classic cross-reference tables, no object streams, and each run of text in one form. What is not in that
form raises `OtherForm`: an upgrade that writes PDFs in another way is noticed, and nothing is guessed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

_TRAILER = re.compile(rb"trailer\s*<<(.*?)>>\s*startxref\s*(\d+)\s*%%EOF\s*$", re.DOTALL)
_TABLE = re.compile(rb"xref\s+0 (\d+)\s+")
_ENTRY_BYTES = 20
_STREAM = re.compile(rb"\s*(<<.*?>>)\s*stream\r?\n", re.DOTALL)
_LENGTH = re.compile(rb"/Length (\d+)")
_RUN = re.compile(
    rb"q 1 0 0 -1 (?P<x>[\d.-]+) (?P<y>[\d.-]+) cm(?P<colour>/c\d+ cs [\d. ]+scn)\n"
    rb"BT 0 Tr/f(?P<font>\d+) (?P<size>[\d.]+) Tf 1 0 0 -1 0 0 Tm(?P<shown>.*?)(?P<array>\]TJ|Tj)\nET\nQ",
    re.DOTALL,
)
_MOVE = re.compile(rb"\s*(-?[\d.]+)\s*")
_ESCAPED = {ord("n"): 10, ord("r"): 13, ord("t"): 9, ord("b"): 8, ord("f"): 12}


class OtherForm(Exception):
    """The PDF is not written as it is expected here."""


@dataclass(frozen=True, slots=True)
class Run:
    """Letters that are shown in one go: place in points from the lower left, font by its number, size in points.

    `shown` is what stands between the brackets of TJ, `glyphs` the same as numbers of glyphs, `moved` the sum of the
    moves between them in thousandths of the size (to the left). `start` and `end` are places in the content.
    """

    start: int
    end: int
    x: float
    y: float
    font: int
    size: float
    shown: bytes
    glyphs: tuple[int, ...]
    moved: float
    head: bytes  # from behind x to before the brackets
    adjustments: tuple[tuple[int, float], ...]  # behind how many glyphs it is moved, and how far


def objects_of(pdf: bytes) -> tuple[dict[int, bytes], bytes]:
    """What stands between `obj` and `endobj` by number, and the trailer's entries."""
    trailer = _TRAILER.search(pdf, max(pdf.rfind(b"trailer"), 0))
    if trailer is None or b"/Prev" in trailer.group(1):
        raise OtherForm("no classic trailer of a file that was written once")
    table = _TABLE.match(pdf, int(trailer.group(2)))
    if table is None:
        raise OtherForm("no classic cross-reference table")
    places: dict[int, int] = {}
    for number in range(1, int(table.group(1))):
        at = table.end() + number * _ENTRY_BYTES
        if pdf[at + 17 : at + 18] == b"n":
            places[number] = int(pdf[at : at + 10])
    ends = {start: end for start, end in _pairs([*sorted(places.values()), int(trailer.group(2))])}
    found: dict[int, bytes] = {}
    for number, start in places.items():
        body = pdf[start : ends[start]].rstrip()
        head = b"%d 0 obj" % number
        if not body.startswith(head) or not body.endswith(b"endobj"):
            raise OtherForm(f"object {number} is not where the table says")
        found[number] = body[len(head) : -len(b"endobj")].strip(b"\r\n ")
    return found, trailer.group(1)


def _pairs(places: list[int]) -> Iterator[tuple[int, int]]:
    return pairwise(places)


def stream_of(body: bytes) -> tuple[bytes, bytes]:
    """Dictionary and content of a stream object, inflated."""
    head = _STREAM.match(body)
    length = _LENGTH.search(head.group(1)) if head else None
    if head is None or length is None:
        raise OtherForm("no stream")
    content = body[head.end() : head.end() + int(length.group(1))]
    return head.group(1), zlib.decompress(content) if b"/FlateDecode" in head.group(1) else content


def reference(dictionary: bytes, key: str) -> int:
    """Number of the object that an entry of a dictionary refers to."""
    found = re.findall(rb"/%s (\d+) 0 R" % key.encode(), dictionary)
    if len(found) != 1:
        raise OtherForm(f"{len(found)} entries /{key}")
    return int(found[0])


def pages_of(objects: dict[int, bytes], trailer: bytes) -> list[int]:
    """Numbers of the pages' objects, in order."""
    tree = objects[reference(objects[reference(trailer, "Root")], "Pages")]
    kids = re.search(rb"/Kids\[([\d R]*)\]", tree)
    if kids is None:
        raise OtherForm("no list of pages")
    pages = [int(one) for one in re.findall(rb"(\d+) 0 R", kids.group(1))]
    if any(b"/Type/Page/" not in objects[one] for one in pages):
        raise OtherForm("a tree of pages in levels")
    return pages


def runs_of(content: bytes) -> list[Run]:
    """All runs of text of a page, in the order of the content."""
    runs: list[Run] = []
    for found in _RUN.finditer(content):
        shown = found["shown"]
        if found["array"] == b"]TJ":
            if not shown.startswith(b"["):
                raise OtherForm("a TJ without its array")
            shown = shown[1:]
        glyphs, adjustments = _glyphs(shown)
        head = content[found.end("x") : found.start("shown")]
        runs.append(
            Run(
                found.start(), found.end(), float(found["x"]), float(found["y"]), int(found["font"]),
                float(found["size"]), shown, glyphs, sum(move for _, move in adjustments), head, adjustments,
            )
        )  # fmt: skip
    if len(runs) != content.count(b"\nET\n"):
        raise OtherForm("text in another form")
    return runs


def _glyphs(shown: bytes) -> tuple[tuple[int, ...], tuple[tuple[int, float], ...]]:
    glyphs: list[int] = []
    adjustments: list[tuple[int, float]] = []
    at = 0
    while at < len(shown):
        if shown[at] == 0x28:
            letters, at = _literal(shown, at + 1)
        elif shown[at] == 0x3C:
            end = shown.index(b">", at)
            letters, at = bytes.fromhex(shown[at + 1 : end].decode()), end + 1
        else:
            found = _MOVE.match(shown, at)
            if found is None:
                raise OtherForm("a TJ of neither strings nor numbers")
            adjustments.append((len(glyphs), float(found.group(1))))
            at = found.end()
            continue
        glyphs += [letters[place] << 8 | letters[place + 1] for place in range(0, len(letters), 2)]
    return tuple(glyphs), tuple(adjustments)


def _literal(shown: bytes, at: int) -> tuple[bytes, int]:
    """The bytes of a literal string that begins behind its parenthesis, and the place behind it."""
    letters = bytearray()
    depth = 0
    while True:
        one = shown[at]
        at += 1
        if one == 0x5C:
            one = shown[at]
            at += 1
            if 0x30 <= one <= 0x37:
                digits = re.match(rb"[0-7]{1,3}", shown[at - 1 : at + 2])
                assert digits is not None
                letters.append(int(digits.group(), 8))
                at += len(digits.group()) - 1
            else:
                letters.append(_ESCAPED.get(one, one))
            continue
        if one == 0x28:
            depth += 1
        elif one == 0x29:
            if depth == 0:
                return bytes(letters), at
            depth -= 1
        letters.append(one)


_W = re.compile(rb"/W\[([\d. \[\]-]*)\]")


def widths_of(objects: dict[int, bytes], font: int) -> dict[int, float]:
    """Advance of each glyph of a font in thousandths of the size. `font` is the number of its Type0 object."""
    below = re.search(rb"/DescendantFonts\[(\d+) 0 R\]", objects[font])
    found = _W.search(objects[int(below.group(1))]) if below else None
    if found is None:
        raise OtherForm("a font without widths")
    widths: dict[int, float] = {}
    tokens = re.findall(rb"\[|\]|-?[\d.]+", found.group(1))
    at = 0
    while at < len(tokens):
        first = int(tokens[at])
        if tokens[at + 1] == b"[":
            end = tokens.index(b"]", at)
            widths |= {first + place: float(one) for place, one in enumerate(tokens[at + 2 : end])}
            at = end + 1
        else:
            widths |= {glyph: float(tokens[at + 2]) for glyph in range(first, int(tokens[at + 1]) + 1)}
            at += 3
    return widths


def fonts_of(objects: dict[int, bytes], page: int) -> dict[int, int]:
    """Objects of a page's fonts by the number in their names: /f0 is 0."""
    resources = re.search(rb"/Resources (\d+) 0 R", objects[page])
    fonts = re.search(rb"/Font<<(.*?)>>", objects[int(resources.group(1))] if resources else objects[page])
    if fonts is None:
        raise OtherForm("a page without fonts")
    return {int(name): int(number) for name, number in re.findall(rb"/f(\d+) (\d+) 0 R", fonts.group(1))}
