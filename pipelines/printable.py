"""Which characters the fonts of documents have: the same on every machine, for the fonts come in wheels.

Owns that question only; what lacks a character is not drawn (`layout_engines.py`) and gets no number
(`run_issuable.py`).
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

FONT_PACKAGES = ("fontpkg_inter", "manimgx_fonts", "cvttf_NotoSansCJK_Regular")
_USUAL = frozenset({*range(0x7F), *range(0xA0, 0x180)})  # Latin letters, which the fonts have; a test looks
_SILENT = frozenset(map(ord, "\t\n\r\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad\ufe0e\ufe0f"))


@cache
def font_folders() -> list[str]:
    """Folders of the font wheels: the same fonts on every machine, whatever the system has."""
    folders: list[str] = []
    for name in FONT_PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None, f"the font package {name} is not installed"
        folders += [str(Path(one)) for one in spec.submodule_search_locations or ()]
    return folders


def unprintable(text: str) -> str:
    """The characters of a text that no font has, each once, in order; empty if all can be printed."""
    if text.isascii():
        return ""
    odd = {one for one in set(text) if ord(one) not in _USUAL and ord(one) not in _SILENT}
    return "".join(sorted(one for one in odd if ord(one) not in characters())) if odd else ""


@cache
def characters() -> frozenset[int]:
    """All characters that the fonts have; reading their tables takes a second, once a process."""
    from fontTools.ttLib import TTCollection, TTFont

    found: set[int] = set()
    for folder in font_folders():
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix.lower() not in (".ttf", ".otf", ".ttc"):
                continue
            fonts = (
                TTCollection(path, lazy=True).fonts[:1] if path.suffix.lower() == ".ttc" else [TTFont(path, lazy=True)]
            )
            for font in fonts:
                found.update(font.getBestCmap() or ())
    return frozenset(found)
