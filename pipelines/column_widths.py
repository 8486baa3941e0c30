"""Fixed widths of the columns that hold figures, from the texts in them: pages of one kind share their geometry.

A width is a number of half millimetres. It comes from the widest text by the advances of the font without kerning: a
little wide, never too narrow. None where a column would leave too little for the words: then the layout measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from math import ceil
from pathlib import Path
from typing import Any

FONT = "Inter"
MM = 72 / 25.4  # points
INSET, GUTTER = 1.6, 0.6  # millimetres: left and right of a cell, and between two columns
SLACK = 1.01  # what kerning and the digits of equal width may add
TABLE, WORDS_MIN = 165.0, 52.0
TAXES, TAX_WORDS_MIN, TAX_GUTTER = 72.0, 22.0, 3.0
SIZE, HEAD_SIZE, HEAD_BOLD = 8.5, 7.5, 1.035


@cache
def _advances() -> tuple[dict[str, float], float]:
    """Advances by letter in parts of the size, and that of what is no Latin letter. Digits count as the widest one."""
    import fontpkg_inter
    from fontTools.ttLib import TTFont

    (folder,) = fontpkg_inter.__path__
    font = TTFont(Path(folder) / "files" / "Inter[opsz,wght].ttf", lazy=True)
    names: dict[int, str] = font.getBestCmap() or {}
    metrics: Any = font["hmtx"]
    head: Any = font["head"]
    units = head.unitsPerEm
    found = {chr(code): metrics[names[code]][0] / units for code in range(32, 0x2100) if code in names}
    digit = max(found[one] for one in "0123456789")
    found |= dict.fromkeys("0123456789", digit) | dict.fromkeys(".,", max(found["."], found[","]))
    return found, 1.2


_ONE_DIGIT = str.maketrans("123456789", "0" * 9)


def width_of(text: str) -> float:
    """Width of a text in regular letters, in parts of the size."""
    return _width_of(text.translate(_ONE_DIGIT))  # digits are of one width, so that most amounts are known


@lru_cache(maxsize=20_000)
def _width_of(text: str) -> float:
    advances, other = _advances()
    return sum(advances.get(one, other) for one in text)


def _millimetres(texts: Iterable[str], head: str) -> float:
    widest = max((width_of(text) for text in texts), default=0.0) * SIZE
    return ceil(2 * (max(widest * SLACK, width_of(head) * HEAD_SIZE * HEAD_BOLD) / MM + INSET)) / 2


def widths_of_lines(columns: Sequence[str], groups: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Widths in millimetres of all columns but the description (its place holds 0)."""
    lines = [line for group in groups for line in group["lines"]]
    below = [row for line in lines for row in line["below"]] + [row for group in groups for row in group["sums"]]
    amounts = [[line["amount"] for line in lines] + [row[1] for row in below]]
    if len(columns) > 7:
        amounts.append([line["gross"] for line in lines] + [row[2] for row in below])
    texts: list[list[str]] = [
        [line["position"] for line in lines],
        [],
        [line["period"] for line in lines],
        ["".join(line["quantity"]) for line in lines],
        [line["unit"] for line in lines],
        ["".join(line["price"]) for line in lines],
        *amounts,
    ]
    widths = [0 if at == 1 else _millimetres(texts[at], columns[at]) for at in range(len(columns))]
    left = TABLE - sum(widths) - GUTTER * (len(columns) - 1)
    return widths if left >= WORDS_MIN else None


def widths_of_taxes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[float] | None:
    widths = [_millimetres((row[at] for row in rows), head[at]) for at in (1, 2)]
    return widths if TAXES - sum(widths) - 2 * TAX_GUTTER >= TAX_WORDS_MIN else None
