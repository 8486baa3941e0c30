"""Words of the pages: data files beside their templates, English and German in one entry.

Owns looking a text up; the words themselves are in `<module>/texts.yaml`. A text that is missing is an error, never an
empty place: a test reads every template and every data file.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

LANGUAGES = ("en", "de")
DEFAULT_LANGUAGE = "en"
FOLDER = Path(__file__).parent
ACCEPTED_LANGUAGES_MAX = 20  # entries of one Accept-Language header that are looked at


@lru_cache(maxsize=1)
def catalog() -> Mapping[str, Mapping[str, Any]]:
    """All texts by key: `{key: {language: text}}`, or `{language: {one: text, other: text}}` where it counts."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(FOLDER.glob("*/texts.yaml")):
        for key, texts in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            assert key not in found, f"text {key} is there twice ({path})"
            found[key] = texts
    return found


class Texts:
    """The texts in one language."""

    def __init__(self, language: str) -> None:
        self.language = language if language in LANGUAGES else DEFAULT_LANGUAGE
        self._texts = catalog()

    def __call__(self, key: str, **values: object) -> str:
        """The text of `key` with its places filled; `n` chooses between one and many."""
        text = self._texts[key][self.language]
        if isinstance(text, Mapping):
            text = text["one" if values.get("n") in (1, "1") else "other"]
        return text.format(**values) if values else str(text)

    def word(self, group: str, value: str) -> str:
        """The word for a value that the API also names ("state.finalised"); an unknown one is shown as it is."""
        entry = self._texts.get(f"{group}.{value}")
        return str(entry[self.language]) if entry else value.replace("_", " ")


def accepted_language(header: str) -> str:
    """The language of ours that the browser likes best (RFC 9110, 12.5.4)."""
    best, weight_best = DEFAULT_LANGUAGE, -1
    for entry in header.split(",")[:ACCEPTED_LANGUAGES_MAX]:
        name, _, quality = entry.partition(";")
        language = name.strip().lower()[:2]
        digits = quality.replace(" ", "").removeprefix("q=").replace(".", "").ljust(4, "0")[:4]
        weight = (int(digits) if digits.isdigit() else 0) if quality else 1000
        if language in LANGUAGES and weight > max(weight_best, 0):
            best, weight_best = language, weight
    return best
