"""Elements of an invoice's XML as text, alike in both syntaxes: what is missing leaves nothing, never an empty one."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from billing.einvoice.model import NOT_IN_XML, plain
from billing.errors import FieldError, InvalidInput

CENT = Decimal("0.01")


@dataclass(frozen=True)
class Elements:
    """Writes elements under the prefixes of a syntax: one for those with text, one for those around others."""

    leaves: str
    nodes: str

    def leaf(self, element: str, text: str | None, /, **attributes: str | None) -> str:
        """One element with text, or nothing at all where there is no text."""
        if text is None or text == "":
            return ""
        marks = ""
        if attributes:
            marks = "".join([f' {key}="{quote(value)}"' for key, value in attributes.items() if value])
        return f"<{self.leaves}:{element}{marks}>{escape(text)}</{self.leaves}:{element}>"

    def node(self, element: str, /, *children: str) -> str:
        """One element around its children, or nothing at all where all of them are missing."""
        inside = "".join(children)
        return f"<{self.nodes}:{element}>{inside}</{self.nodes}:{element}>" if inside else ""

    def number(self, element: str, value: Decimal | None, /, **attributes: str | None) -> str:
        return "" if value is None else self.leaf(element, plain(value), **attributes)

    def amount(self, element: str, value: Decimal | None, /, **attributes: str | None) -> str:
        """An amount with its two decimals; raises InvalidInput where it has more."""
        return "" if value is None else self.leaf(element, _cents(element, value), **attributes)


def _cents(element: str, value: Decimal) -> str:
    cents = value.quantize(CENT)
    if cents != value:
        detail = f"{element} {value} has more than two decimals, which EN 16931 cannot express (BR-DEC)"
        raise InvalidInput(detail, errors=[FieldError("", detail)])
    return format(abs(cents) if cents == 0 else cents, "f")  # no minus before a zero


@lru_cache(maxsize=10_000)
def escape(text: str) -> str:
    """The text as it stands in XML; raises InvalidInput for a control character that no XML can carry."""
    if NOT_IN_XML.search(text):
        detail = f"{text!r} has a control character that no XML can carry"
        raise InvalidInput(detail, errors=[FieldError("", detail)])
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def quote(text: str) -> str:
    return escape(text).replace('"', "&quot;")
