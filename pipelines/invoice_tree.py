"""What reading e-invoices of both syntaxes shares: elements by path, and forms that hold only what is there."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from billing.errors import FieldError, InvalidInput
from billing.forms import decimal_of

Form = dict[str, Any]


def unreadable(detail: str) -> InvalidInput:
    return InvalidInput(detail, errors=[FieldError("", detail)])


class InvoiceTree:
    """Reading by path with one prefix per kind of element; a missing element is None."""

    def __init__(self, root: Any) -> None:
        self.root = root

    def all(self, element: Any, path: str) -> list[Any]:
        return [] if element is None else element.findall(self.path(path), self.spaces)

    def one(self, element: Any, path: str) -> Any:
        return None if element is None else element.find(self.path(path), self.spaces)

    def text(self, element: Any, path: str) -> str | None:
        found = self.one(element, path)
        return None if found is None or found.text is None else found.text.strip() or None

    def terms(self, element: Any, path: str) -> str | None:
        """BT-20 by lines: a discount for early payment is a line that begins with # and must end (BR-DE-18)."""
        text = self.text(element, path)
        if text is None:
            return None
        lines = [line.strip() for line in text.splitlines()]
        return "\n".join(lines) + ("\n" if lines[-1].startswith("#") else "")

    spaces: Mapping[str, str] = MappingProxyType({})

    def path(self, path: str) -> str:
        return path


def put_down(form: Form, **values: Any) -> Form:
    """Put down what is there; nothing that is empty."""
    form.update({key: value for key, value in values.items() if value not in (None, "", [], {})})
    return form


def without_tax_number(buyer: Form | None) -> Form | None:
    """EN 16931 knows a tax number (BT-32) of sellers only."""
    return None if buyer is None else {key: value for key, value in buyer.items() if key != "tax_number"}


def identifier(element: Any) -> Form | None:
    if element is None or element.text is None or not element.text.strip():
        return None
    return put_down({"id": element.text.strip()}, scheme=element.get("schemeID"))


def item_class(element: Any) -> Form:
    return put_down(
        {"code": (element.text or "").strip()}, list=element.get("listID"), version=element.get("listVersionID")
    )


def binary(content: Any) -> Form:
    if content is None:
        return {}
    try:
        data = base64.b64decode("".join((content.text or "").split()), validate=True)
    except binascii.Error as error:
        raise unreadable("an attachment is not base64") from error
    return {
        "bytes": base64.b64encode(data).decode(), "mime": content.get("mimeCode"), "name": content.get("filename")
    }  # fmt: skip


def gross_price(price: str | None, discount: str | None) -> str | None:
    """BT-148 where a discount stands alone: the price is what is left of it (BT-146 = BT-148 - BT-147)."""
    one, other = decimal_of(price), decimal_of(discount)
    return None if one is None or other is None else format(one + other, "f")
