"""Words as Typst shapes them: glyphs, the moves between them (kerning) and widths. Typst is asked once a word.

A book is one font in one language. Every PDF whose first page begins with the `REPERTOIRE` numbers the glyphs in the
same way, so that words learned from one file may be shown in another. What is not in the repertoire is in no book.
Numbers are put together from their digits, after Typst has shown every pair of them.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import typst

from pipelines.layout_engines import LAYOUTS
from pipelines.pdf_parts import OtherForm, Run, fonts_of, objects_of, pages_of, reference, runs_of, stream_of, widths_of
from pipelines.printable import font_folders

Style = tuple[int, bool]  # weight, and whether figures stand under each other (tabular)
WEIGHTS = (400, 700, 600, 650)  # in the order of the repertoire: the first one is font 0
STYLES: tuple[Style, ...] = (
    (400, False), (400, True), (700, False), (700, True), (600, True), (650, False)
)  # fmt: skip
_log = logging.getLogger(__name__)
_SIGNS = "".join(chr(one) for one in range(33, 127)) + "ÄÖÜäöüßéèêëàâáãåçñíîïóôõøúûýæÉÈÀÇØÅ€§°·–−…„“”’×"
_KNOWN = frozenset(_SIGNS) | {" "}
WORD_MAX = 400  # characters: many times that would need a second line on the words' page
_AROUND = " ".join(f"A{sign}A A{sign}1 1{sign}1 1{sign}A a{sign}a" for sign in "-–+()[]:/@x")  # alternates
_LETTERS = " ".join(_SIGNS) + " " + _AROUND
_DIGITS = " ".join([*"0123456789.,:+-–−%€()/", *(f"1{sign}1" for sign in "-–−+:x/")])
REPERTOIRE = tuple(
    {"weight": weight, "tabular": tabular, "text": _DIGITS if tabular else _LETTERS} for weight, tabular in STYLES
)
FIGURES = "0123456789.,"
_FIGURE = re.compile(rf"[{re.escape(FIGURES)}]+")
_NUMBERED = re.compile(r"(.*[^0-9.,][0-9]{2})([0-9]+)")
_PROOFS = ("1.234.567,89", "48.217,25", "01.10.2026", "0,001", "11.11.1711", "7.777,47", "1,234.50")
_PLAIN = r"[^\W_xX]|[.,%€&]"  # what takes no notice of its neighbour behind a space: x between numbers is drawn as ×
_SPACE = re.compile(rf"(?<={_PLAIN}) (?={_PLAIN})")
TEXTS_MAX = 50_000
NEAR = 0.5  # thousandths of the size


@dataclass(frozen=True, slots=True)
class Shown:
    """A text between the brackets of TJ, and its width in thousandths of the size."""

    glyphs: bytes
    width: float


class WordBook:
    """One font and language. A book is used by one thread."""

    def __init__(self, font: str, lang: str, region: str) -> None:
        self._look = {"font": font, "lang": lang, "region": region, "repertoire": REPERTOIRE}
        self._compiler = typst.Compiler(
            str(LAYOUTS / "words" / "words.typ"), root=str(LAYOUTS / "words"),
            font_paths=font_folders(), ignore_system_fonts=True,
            package_path=str(LAYOUTS / "none"), package_cache_path=str(LAYOUTS / "none"),
        )  # fmt: skip
        self._texts: dict[tuple[Style, str], Shown | None] = {}
        self._spaces: dict[Style, Shown] = {}
        self._starts: dict[Style, dict[str, tuple[bytes, float]]] = {}
        self._steps: dict[Style, dict[str, tuple[bytes, float]]] = {}
        self._widths: dict[int, dict[int, float]] = {}
        self.signs: dict[int, dict[int, str]] = {}  # by weight: which sign a glyph stands for
        self._glyphs_max: dict[int, int] = {}
        self._open()

    def text(self, style: Style, text: str) -> Shown | None:
        """The text as it is shown; None for a sign that is not in the repertoire. `KeyError`: a word is unknown."""
        key = (style, text)
        if key in self._texts:
            return self._texts[key]
        found: Shown | None
        if (found := self._figure(style, text)) is None:
            words = _SPACE.split(text)
            space = self._spaces[style]
            shown = [self._figure(style, word) or self._word(style, word) for word in words]
            known = [one for one in shown if one is not None]
            if len(known) == len(words):
                width = sum(one.width for one in known) + space.width * (len(words) - 1)
                found = Shown(space.glyphs.join([one.glyphs for one in known]), width)
        self._texts[key] = found
        return found

    def learn(self, texts: Iterable[tuple[Style, str]]) -> None:
        """Have Typst shape the words of these texts that are in the book of nobody; one drawing for all of them."""
        if len(self._texts) > TEXTS_MAX:
            self._texts.clear()
        unknown: dict[tuple[Style, str], None] = {}
        for key in texts:
            if key not in self._texts:
                style, text = key
                for word in _SPACE.split(text):
                    if style in self._steps and _FIGURE.fullmatch(word):
                        continue
                    asked_for = self._begun(style, word)[0]
                    if (style, asked_for) not in self._texts:
                        unknown[style, asked_for] = None
        # Texts find their runs by their lines, so none may take two lines, or none: a break in one text and a sign
        # without ink in another would put a third one's letters under a wrong name. They also spoil a whole drawing.
        self._texts |= {key: None for key in unknown if not _takes_a_line(key[1])}
        asked = [key for key in unknown if _takes_a_line(key[1])]
        if not asked:
            return
        try:
            runs = self.shaped(asked)
        except OtherForm as error:  # one word spoils the drawing of all: their documents are Typst's, none is lost
            _log.warning("%d words are drawn by Typst: %s", len(asked), error)
            runs = [None] * len(asked)
        for (style, word), run in zip(asked, runs, strict=True):
            self._texts[style, word] = self._shown(style, run)

    def advance(self, weight: int, glyph: int) -> float:
        """Advance of a glyph in thousandths of the size."""
        return self._widths[weight][glyph]

    def same_glyphs(self, weight: int, widths: Mapping[int, float]) -> bool:
        """Whether a font of another file numbers the glyphs of the repertoire in the same way."""
        own = self._widths[weight]
        return all(widths.get(glyph) == own[glyph] for glyph in range(self._glyphs_max[weight] + 1))

    def width(self, weight: int, run: Run) -> float:
        """Width of a run in thousandths of the size."""
        widths = self._widths[weight]
        return sum(widths[glyph] for glyph in run.glyphs) - run.moved

    def _begun(self, style: Style, word: str) -> tuple[str, str]:
        """A word that ends in a number, as of invoices and customers: up to its second digit, and the digits behind."""
        found = _NUMBERED.fullmatch(word) if style in self._steps else None
        return (word, "") if found is None else (found.group(1), found.group(2))

    def _word(self, style: Style, word: str) -> Shown | None:
        begun, digits = self._begun(style, word)
        known = self._texts[style, begun]
        if known is None or not digits:
            return known
        parts, width, last = [known.glyphs[:-1]], known.width, begun[-1]
        for digit in digits:
            glyphs, step = self._steps[style][last + digit]
            parts.append(glyphs)
            width += step
            last = digit
        return Shown(b"".join(parts) + b">", width)

    def _shown(self, style: Style, run: Run | None) -> Shown | None:
        return None if run is None else Shown(shown_of(run.glyphs, run.adjustments), self.width(style[0], run))

    def _figure(self, style: Style, word: str) -> Shown | None:
        """A number out of its digits."""
        steps = self._steps.get(style)
        if steps is None or not _FIGURE.fullmatch(word):
            return None
        glyphs, width = self._starts[style][word[0]]
        parts = [b"<", glyphs]
        for at in range(len(word) - 1):
            glyphs, step = steps[word[at : at + 2]]
            parts.append(glyphs)
            width += step
        parts.append(b">")
        return Shown(b"".join(parts), width)

    def _open(self) -> None:
        """Signs, pairs of digits and proofs: what the book rests on, drawn in one go."""
        signs = [(style, sign) for style in STYLES for sign in (FIGURES if style[1] else _SIGNS)]
        pairs = [(style, "".join(two)) for style in STYLES for two in product(FIGURES, repeat=2)]
        others = [(style, text) for style in STYLES for text in ("0 0", *_PROOFS)]
        asked = [*signs, *pairs, *others]
        found = dict(zip(asked, self.shaped(asked), strict=True))
        for style in STYLES:
            weight = style[0]
            between = found[style, "0 0"]
            if between is None or len(between.glyphs) != 3 or between.moved > NEAR:
                raise OtherForm("a space is no glyph of its own")
            space = between.glyphs[1]
            self._spaces[style] = Shown(b"<%04X>" % space, self._widths[weight][space])
            letters = self.signs.setdefault(weight, {space: " "})
            for of, sign in signs:
                run = found[of, sign]
                if of == style and run is not None and len(run.glyphs) == 1:
                    letters[run.glyphs[0]] = sign
            self._figures_of(style, found)

    def _figures_of(self, style: Style, found: dict[tuple[Style, str], Run | None]) -> None:
        widths = self._widths[style[0]]
        single = {sign: found[style, sign] for sign in FIGURES}
        starts: dict[str, tuple[bytes, float]] = {}
        for sign, run in single.items():
            if run is None or len(run.glyphs) != 1:
                return
            starts[sign] = (_bare(run.glyphs), widths[run.glyphs[0]])
        steps: dict[str, tuple[bytes, float]] = {}
        for first, second in product(FIGURES, repeat=2):
            pair, one, two = found[style, first + second], single[first], single[second]
            if pair is None or one is None or two is None or pair.glyphs != one.glyphs + two.glyphs:
                return
            glyph, width = starts[second]
            moved = f">{pair.moved:g}<".encode() if pair.moved else b""
            steps[first + second] = (moved + glyph, width - pair.moved)
        self._starts[style], self._steps[style] = starts, steps
        for text in _PROOFS:  # what Typst does with three of them, and not with two, forbids the short way
            proof, made = found[style, text], self._figure(style, text)
            if proof is None or made is None or abs(made.width - self.width(style[0], proof)) > NEAR:
                del self._starts[style], self._steps[style]
                return

    def shaped(self, asked: Sequence[tuple[Style, str]]) -> list[Run | None]:
        """The run of each text, None where it is not one run of glyphs of the repertoire."""
        data = self._look | {"words": asked}
        pdf = self._compiler.compile(format="pdf", sys_inputs={"data": json.dumps(data, ensure_ascii=False)})
        assert isinstance(pdf, bytes), "Typst gave no file of one page"
        objects, trailer = objects_of(pdf)
        (page,) = pages_of(objects, trailer)
        _, content = stream_of(objects[reference(objects[page], "Contents")])
        runs = runs_of(content)
        before = len(REPERTOIRE)
        if len(runs) < before:
            raise OtherForm("the repertoire is not drawn in a run each")
        if not self._widths:
            fonts = fonts_of(objects, page)
            self._widths = {weight: widths_of(objects, fonts[at]) for at, weight in enumerate(WEIGHTS)}
            for run, entry in zip(runs, REPERTOIRE, strict=False):
                weight = entry["weight"]
                self._glyphs_max[weight] = max(self._glyphs_max.get(weight, 0), *run.glyphs)
        return _matched(asked, runs[before:], self._glyphs_max)


def _takes_a_line(word: str) -> bool:
    """Whether it is drawn on a line of its own; all else is Typst's. Signs outside the repertoire are in no book."""
    return 0 < len(word) <= WORD_MAX and not word.isspace() and _KNOWN.issuperset(word)


def _matched(asked: Sequence[tuple[Style, str]], runs: Sequence[Run], known: dict[int, int]) -> list[Run | None]:
    """Each text has a line of its own, from the top down; one of several fonts has several runs in it."""
    by_line: dict[float, list[Run]] = {}
    for run in runs:
        by_line.setdefault(run.y, []).append(run)
    if len(by_line) != len(asked):
        raise OtherForm(f"{len(by_line)} lines for {len(asked)} words")
    found: list[Run | None] = []
    for (weight, _), line in zip((style for style, _ in asked), by_line.values(), strict=True):
        run = line[0]
        plain = len(line) == 1 and WEIGHTS[run.font : run.font + 1] == (weight,)
        found.append(run if plain and min(run.glyphs) > 0 and max(run.glyphs) <= known[weight] else None)
    return found


def _bare(glyphs: Sequence[int]) -> bytes:
    return b"".join(b"%04X" % one for one in glyphs)


def shown_of(glyphs: Sequence[int], adjustments: Sequence[tuple[int, float]]) -> bytes:
    """Glyphs and moves between the brackets of TJ."""
    parts: list[bytes] = []
    at = 0
    for behind, move in adjustments:
        parts.append(b"<%s>%s" % (_bare(glyphs[at:behind]), f"{move:g}".encode()))
        at = behind
    if at < len(glyphs):
        parts.append(b"<%s>" % _bare(glyphs[at:]))
    return b"".join(parts)
