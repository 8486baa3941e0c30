"""Numbers of documents as text: patterns with year and counter, and which of them could give a number twice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter
from types import MappingProxyType
from typing import Any

from billing.errors import FieldError, InvalidInput

PATTERNS = {"invoice": "RE-{yyyy}-{n:06}", "credit_note": "RK-{yyyy}-{n:06}"}
SERIES = {"invoice": "RE", "credit_note": "RK"}
OTHER_ENTITIES = "{series}-{entity}-{yyyy}-{n:06}"  # of legal entities beside the first one
_YEARS = {"yyyy": 4, "yy": 2}  # digits
_WIDTH = re.compile(r"(0[1-9]\d?)?d?")  # zeros in front, 99 digits at most
_DIGITS = frozenset("0123456789")


def patterns_of(entity: str, form: Mapping[str, Any], *, is_default: bool) -> dict[str, str]:
    """The patterns of a legal entity by type of document; `{series}` (RE, RK) and `{entity}` (its code) are filled in.

    Entities beside the first one have their code in their numbers unless they say otherwise: a number is one in a
    tenant.
    """
    given: Mapping[str, Any] = form.get("series") or {}
    standard = PATTERNS if is_default else dict.fromkeys(PATTERNS, OTHER_ENTITIES)
    return {
        type_: str(given.get(type_) or standard[type_])
        .replace("{series}", SERIES[type_])
        .replace("{entity}", entity.replace("{", "").replace("}", ""))
        for type_ in PATTERNS
    }


def check_patterns(
    series: Mapping[str, Any],
    entity: str = "",
    *,
    is_default: bool = True,
    others: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    given: Iterable[tuple[str, str, str]] = (),
) -> None:
    """Refuse number patterns that could ever give two documents the same number: across years, types, or counters.

    `others` are the patterns of the tenant's other legal entities, by their codes; `given` are those (entity, type,
    pattern) by which numbers were given before, or are by a run that goes on.
    """
    unknown = sorted(set(series) - set(PATTERNS))
    if unknown or not all(isinstance(text, str) and len(text) <= 64 for text in series.values()):
        detail = "invoice and credit_note, each a text of at most 64 characters"
        raise InvalidInput(f"series: {detail}", errors=[FieldError("/series", detail)])
    patterns = patterns_of(entity, {"series": series}, is_default=is_default)
    for pattern in patterns.values():
        if (wrong := _wrong_with(pattern)) is not None:
            raise InvalidInput(f"series: {wrong}", errors=[FieldError("/series", wrong)])
    if can_meet(*patterns.values()):
        detail = "numbers would repeat: use another text for each type, as in {series}-{yyyy}-{n:06}"
        raise InvalidInput(f"series: {detail}", errors=[FieldError("/series", detail)])
    for code, known in others.items():
        if any(can_meet(mine, theirs) for mine in patterns.values() for theirs in known.values()):
            detail = f"numbers would be those of legal entity {code!r}: use {{entity}}, or another text"
            raise InvalidInput(f"series: {detail}", errors=[FieldError("/series", detail)])
    for code, type_, earlier in given:
        for mine, pattern in patterns.items():
            if (code, type_) == (entity, mine) and _goes_on(earlier, pattern):
                continue
            if can_meet(earlier, pattern):
                detail = f"numbers would be those that {earlier} has given to documents before: use another text"
                raise InvalidInput(f"series: {detail}", errors=[FieldError("/series", detail)])


@dataclass(frozen=True)
class _Field:
    """A place that is filled in: `yyyy`, `yy`, or `n` with at least `width` digits."""

    name: str
    width: int


@lru_cache(maxsize=256)
def _parts(pattern: str) -> tuple[str | _Field, ...] | None:
    """Texts and fields of a pattern; None if it has anything but plain text, {yyyy}, {yy}, {n} and {n:06}."""
    found: list[str | _Field] = []
    try:
        for text, name, spec, conversion in Formatter().parse(pattern):
            found += [text] if text else []
            if name is None:
                continue
            if conversion or not (_WIDTH.fullmatch(spec or "") if name == "n" else name in _YEARS and not spec):
                return None
            found.append(_Field(name, int(spec.rstrip("d") or 1) if name == "n" and spec else _YEARS.get(name, 1)))
    except ValueError:
        return None
    return tuple(found)


def _wrong_with(pattern: str) -> str | None:
    """Why a series cannot have this pattern. With one year and one {n} in it, no number comes twice: the year has a
    fixed length, so that the text says where the counter begins and ends."""
    parts = _parts(pattern)
    if parts is None:
        return f"{pattern!r} cannot be read: beside text it has {{yyyy}} or {{yy}}, and {{n}} or {{n:06}} (at most 99)"
    names = [part.name for part in parts if isinstance(part, _Field)]
    if names.count("n") != 1 or len(names) != 2:
        return f"{pattern!r}: numbers would repeat, or be hard to read: use {{yyyy}} (or {{yy}}) and {{n}}, each once"
    return None


def _goes_on(earlier: str, pattern: str) -> bool:
    """Whether two patterns of one series differ at most in the width of the counter, which goes on: then the same text
    means the same year and counter."""

    def shape(text: str) -> Sequence[object] | None:
        parts = _parts(text)
        return None if parts is None else [part.name if isinstance(part, _Field) else (part,) for part in parts]

    return earlier == pattern or (shape(earlier) is not None and shape(earlier) == shape(pattern))


@dataclass(frozen=True)
class _Place:
    """One character of a number, out of these (None: any); `many`: none or any number of them."""

    of: frozenset[str] | None
    many: bool = False


def can_meet(one: str, other: str) -> bool:
    """Whether two patterns can give the same text, whatever years and counters: their languages have a word in common.

    Said of unbounded counters and of years 0000 to 9999. Of a pattern that cannot be read only the text in front of its
    first field is known.
    """
    return any(_have_common(a, b) for a in _forms(one) for b in _forms(other))


@lru_cache(maxsize=256)
def _forms(pattern: str) -> tuple[tuple[_Place, ...], ...]:
    """What a pattern gives, as sequences of characters: with the counter's zeros in front, or longer than its width."""
    parts = _parts(pattern)
    if parts is None:
        return ((*_text(pattern.partition("{")[0]), _Place(None, many=True)),)
    forms: list[tuple[_Place, ...]] = [()]
    for part in parts:
        ways: list[tuple[_Place, ...]]
        if isinstance(part, str):
            ways = [_text(part)]
        elif part.name == "n":
            ways = [(_Place(_DIGITS - {"0"}), *[_Place(_DIGITS)] * (part.width - 1), _Place(_DIGITS, many=True))]
            if part.width > 1:  # all zeros is no counter; that it counts here refuses no pattern that anybody writes
                ways.append((_Place(_DIGITS),) * part.width)
        else:
            ways = [(_Place(_DIGITS),) * part.width]
        forms = [(*form, *way) for form in forms for way in ways]
    return tuple(forms)


def _text(text: str) -> tuple[_Place, ...]:
    return tuple(_Place(frozenset(letter)) for letter in text)


def _have_common(one: Sequence[_Place], other: Sequence[_Place]) -> bool:
    """Whether some text fits both: all pairs of places that can be reached together are walked, each once."""
    waiting, seen = [(0, 0)], {(0, 0)}
    while waiting:
        i, j = waiting.pop()
        if i == len(one) and j == len(other):
            return True
        mine = one[i] if i < len(one) else None
        theirs = other[j] if j < len(other) else None
        reached: list[tuple[int, int]] = []
        if mine is not None and mine.many:
            reached.append((i + 1, j))
        if theirs is not None and theirs.many:
            reached.append((i, j + 1))
        if mine is not None and theirs is not None and (mine.of is None or theirs.of is None or mine.of & theirs.of):
            reached.append((i if mine.many else i + 1, j if theirs.many else j + 1))
        waiting += [pair for pair in reached if pair not in seen]
        seen.update(reached)
    return False


def number_text(pattern: str, year: int, n: int) -> str:
    """`RE-{yyyy}-{n:06}` -> `RE-2026-000001`. InvalidInput for a pattern that is none."""
    try:
        return pattern.format(yyyy=f"{year:04}", yy=f"{year % 100:02}", n=n)
    except (KeyError, IndexError, ValueError) as error:
        raise InvalidInput(f"number pattern {pattern!r} cannot be read: {error}") from error
