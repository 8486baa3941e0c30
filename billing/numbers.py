"""Numbers of documents as text: patterns with year and counter, and which of them could give a number twice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from billing.errors import FieldError, InvalidInput

PATTERNS = {"invoice": "RE-{yyyy}-{n:06}", "credit_note": "RK-{yyyy}-{n:06}"}


@lru_cache(maxsize=256)
def _checked(pattern: str) -> str:
    try:
        one, other = (pattern.format(series="", yyyy=2000, yy=0, n=n) for n in (1, 2))
    except (KeyError, IndexError, ValueError) as error:
        raise InvalidInput(f"number pattern {pattern!r} cannot be read: {error}") from error
    if one == other:
        raise InvalidInput(f"number pattern {pattern!r} gives every document the same number: it needs {{n}}")
    return pattern


def check_patterns(series: Mapping[str, Any]) -> None:
    """Refuse number patterns that would give two documents the same number: across years, types, or counters."""
    patterns = {**PATTERNS, **series}
    unknown = sorted(set(patterns) - set(PATTERNS))
    if unknown or not all(isinstance(text, str) and len(text) <= 64 for text in patterns.values()):
        detail = "invoice and credit_note, each a text of at most 64 characters"
        raise InvalidInput(f"series: {detail}", errors=[FieldError("/series", detail)])
    if any(re.search(r"\{n:[^}]*\d{3}", text) for text in patterns.values()):
        raise InvalidInput("series: a number has at most 99 digits", errors=[FieldError("/series", "is too wide")])
    made = [number_text(text, year, n) for text in patterns.values() for year in (2026, 2027) for n in (1, 2)]
    if len(set(made)) < len(made):
        detail = "numbers would repeat: use {yyyy}, {n} and another text for each type, as in RE-{yyyy}-{n:06}"
        raise InvalidInput(f"series: {detail}", errors=[FieldError("/series", detail)])


def number_text(pattern: str, year: int, n: int) -> str:
    """`RE-{yyyy}-{n:06}` -> `RE-2026-000001`."""
    return _checked(pattern).format(yyyy=f"{year:04}", yy=f"{year % 100:02}", n=n)
