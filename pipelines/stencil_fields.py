"""Which texts of an invoice page may change while everything else stays where it is, and how each of them is set.

It mirrors `layouts/invoice/invoice.typ`: weight, figures, side and room of every text. A page with something that moves
others (texts of several lines, usage records, cover letters, attachments) has no fields: Typst draws it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.column_widths import GUTTER, MM, TABLE, width_of

_QR_SIZE = re.compile(
    r'<svg xmlns="http://www\.w3\.org/2000/svg" viewBox="0 0 (\d+) \1"><path d="([MhvzZ\d. -]+)"/></svg>'
)
CELL = 1.6  # millimetres left and right of a cell's text
TOTALS, BOLD = 84.0, 1.1  # millimetres; how much wider bold letters are at most
NOTE_MAX = 90  # characters: what is longer may take two lines


@dataclass(frozen=True, slots=True)
class Field:
    """A text at `holder[key]`. `room` is in points; `behind` says that it follows the field before it on its line."""

    holder: Any
    key: Any
    weight: int
    tabular: bool
    room: float
    right: bool = False
    behind: bool = False
    pad: Any = None  # list whose second text is hidden behind this one
    runs_min: int = 1

    @property
    def text(self) -> str:
        return self.holder[self.key]


def fields_of(d: dict[str, Any]) -> list[Field] | None:
    """The fields in a fixed order; None for a page that only Typst may draw."""
    if (
        d.get("page_kind", "invoice") != "invoice"
        or d.get("widths") is None
        or d["taxes"].get("widths") is None
        or d["tall"]
        or d["long"]
        or d["records"] is not None
        or d["attachments"]
        or d["look"]["cover"]
        or any(group["long"] or any(line["long"] for line in group["lines"]) for group in d["groups"])
    ):
        return None
    if d["payment"]["qr"] is not None and _QR_SIZE.fullmatch(d["payment"]["qr"]) is None:
        return None
    return [*_head(d), *_lines(d), *_taxes(d), *_payment(d)]


def _head(d: dict[str, Any]) -> Iterator[Field]:
    for at in range(len(d["window"])):
        yield Field(d["window"], at, 400, False, 80 * MM)
    for row in d["information"]:
        yield Field(row, 1, 700 if row[2] else 400, False, 36 * MM)
    yield Field(d, "title", 650, False, 165 * MM)
    yield Field(d, "running", 400, False, 80 * MM, right=True, runs_min=0)


def _lines(d: dict[str, Any]) -> Iterator[Field]:
    shown, widths = d["look"]["shown"], d["widths"]
    room = {at: (widths[at] - CELL) * MM for at in shown}
    room[1] = (TABLE - sum(widths[at] for at in shown) - GUTTER * (len(shown) - 1) - CELL) * MM
    wide = room.get(0, 0.0) + sum(room[at] for at in shown if at not in (0, 6, 7))
    for group in d["groups"]:
        if group["name"]:
            yield Field(group, "name", 700, False, (TABLE - CELL) * MM)
            if group["note"]:
                yield Field(group, "note", 400, False, (TABLE - CELL) * MM, behind=True)
        for line in group["lines"]:
            yield from _line(line, shown, room)
            for row in line["below"]:
                yield Field(row, 0, 400, False, wide)
                yield from _amounts(row, 400, shown, room)
        for row in group["sums"]:
            yield Field(row, 0, 400, False, wide, right=True)
            yield from _amounts(row, 600, shown, room)


def _line(line: dict[str, Any], shown: list[int], room: dict[int, float]) -> Iterator[Field]:
    yield Field(line, "position", 400, False, room[0])
    yield Field(line, "name", 400, False, room[1])
    if line["note"]:
        yield Field(line, "note", 400, False, room[1], behind=True)
    if 2 in shown and line["period"]:
        yield Field(line, "period", 400, True, room[2])
    for at, name in ((3, "quantity"), (5, "price")):
        if at in shown and line[name][0]:
            yield Field(line[name], 0, 400, True, room[at], right=True, pad=line[name])
    if 4 in shown and line["unit"]:
        yield Field(line, "unit", 400, False, room[4])
    yield Field(line, "amount", 400, True, room[6], right=True)
    if 7 in shown and line["gross"]:
        yield Field(line, "gross", 400, True, room[7], right=True)


def _amounts(row: list[Any], weight: int, shown: list[int], room: dict[int, float]) -> Iterator[Field]:
    for place, at in ((1, 6), (2, 7)):
        if at in shown and row[place]:
            yield Field(row, place, weight, True, room[at], right=True)


def _taxes(d: dict[str, Any]) -> Iterator[Field]:
    first, second = d["taxes"]["widths"]
    for row in d["taxes"]["rows"]:  # their names are few, and may take two lines: they are the stencil's
        yield Field(row, 1, 400, True, (first - CELL) * MM, right=True)
        yield Field(row, 2, 400, True, (second - CELL) * MM, right=True)
    rows = [*((row, 400, 9) for row in d["totals"]), (d["due"], 700, 11)]
    amounts = max(width_of(row[1]) * size for row, _, size in rows) * BOLD
    for row, weight, _ in rows:
        yield Field(row, 0, weight, True, (TOTALS - 2 * CELL) * MM - amounts)
        yield Field(row, 1, weight, True, amounts, right=True)


def _payment(d: dict[str, Any]) -> Iterator[Field]:
    payment = d["payment"]
    room = (165 - (32 if payment["qr"] is not None else 0)) * MM
    behind = False
    for part in payment["sentence"]:
        if part[1]:  # what is emphasised differs, the words between are the language's
            yield Field(part, 0, 700, False, room, behind=behind)
            behind = True
    for row in payment["rows"]:
        yield Field(row, 1, 400, False, room - 32 * MM)
    if all(len(note) <= NOTE_MAX for note in d["notes"]):
        for at in range(len(d["notes"])):
            yield Field(d["notes"], at, 400, False, 165 * MM)


def qr_of(svg: str) -> tuple[int, str]:
    """Modules on a side and the path of a code that `epc_code.py` drew."""
    found = _QR_SIZE.fullmatch(svg)
    assert found is not None, "the code is not drawn as it is expected here"
    return int(found.group(1)), found.group(2)


def blank_qr(size: int) -> str:
    """A code of the same size with one square that fills it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}">'
        f'<path d="M0 0h{size}v{size}h-{size}z"/></svg>'
    )
