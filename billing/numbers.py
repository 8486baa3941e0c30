"""Numbers of documents as text: patterns with year and counter, and which of them could give a number twice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from billing.errors import FieldError, InvalidInput

PATTERNS = {"invoice": "RE-{yyyy}-{n:06}", "credit_note": "RK-{yyyy}-{n:06}"}
SERIES = {"invoice": "RE", "credit_note": "RK"}
OTHER_ENTITIES = "{series}-{entity}-{yyyy}-{n:06}"  # of legal entities beside the first one


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


@lru_cache(maxsize=256)
def _checked(pattern: str) -> str:
    try:
        one, other = (pattern.format(series="", yyyy=2000, yy=0, n=n) for n in (1, 2))
    except (KeyError, IndexError, ValueError) as error:
        raise InvalidInput(f"number pattern {pattern!r} cannot be read: {error}") from error
    if one == other:
        raise InvalidInput(f"number pattern {pattern!r} gives every document the same number: it needs {{n}}")
    return pattern


def check_patterns(
    series: Mapping[str, Any],
    entity: str = "",
    *,
    is_default: bool = True,
    others: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> None:
    """Refuse number patterns that would give two documents the same number: across years, types, or counters.

    `others` are the patterns of the tenant's other legal entities, by their codes.
    """
    unknown = sorted(set(series) - set(PATTERNS))
    if unknown or not all(isinstance(text, str) and len(text) <= 64 for text in series.values()):
        detail = "invoice and credit_note, each a text of at most 64 characters"
        raise InvalidInput(f"series: {detail}", errors=[FieldError("/series", detail)])
    patterns = patterns_of(entity, {"series": series}, is_default=is_default)
    if any(re.search(r"\{n:[^}]*\d{3}", text) for text in patterns.values()):
        raise InvalidInput("series: a number has at most 99 digits", errors=[FieldError("/series", "is too wide")])
    made = _examples(patterns)
    if len(set(made)) < len(made):
        detail = "numbers would repeat: use {yyyy}, {n} and another text for each type, as in {series}-{yyyy}-{n:06}"
        raise InvalidInput(f"series: {detail}", errors=[FieldError("/series", detail)])
    for code, known in others.items():
        if set(made) & set(_examples(known)):
            detail = f"numbers would be those of legal entity {code!r}: use {{entity}}, or another text"
            raise InvalidInput(f"series: {detail}", errors=[FieldError("/series", detail)])


def _examples(patterns: Mapping[str, str]) -> list[str]:
    return [number_text(text, year, n) for text in patterns.values() for year in (2026, 2027) for n in (1, 2)]


def number_text(pattern: str, year: int, n: int) -> str:
    """`RE-{yyyy}-{n:06}` -> `RE-2026-000001`."""
    return _checked(pattern).format(yyyy=f"{year:04}", yy=f"{year % 100:02}", n=n)
