"""From a finalised document to its archived files: PDF/A-3a (UA-1) with the EN 16931 XML inside, checked before.

Owns the order: exact checks, XML, official rules, page, metadata, archive. What the page says is `invoice_view.py`;
what a violation is, `billing/einvoice/checks.py` and `invoice_rules.py`. A document that fails is parked with its
reason, the others go on; what is archived is skipped, so the work may be cut off anywhere and started again.
"""

from __future__ import annotations

import importlib.util
import json
import re
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import typst

from billing.einvoice.checks import Violation, check
from billing.einvoice.cii import to_cii
from billing.einvoice.model import Invoice
from billing.einvoice.parties import Seller
from billing.errors import BillingError, FieldError, InvalidInput
from pipelines.factur_x import with_factur_x_metadata
from pipelines.invoice_rules import ShapeGate
from pipelines.invoice_view import LAYOUTS, view

STANDARDS = ["a-3a", "ua-1"]
FONT_PACKAGES = ("fontpkg_inter", "manimgx_fonts", "cvttf_NotoSansCJK_Regular")
_MISSING = re.compile(r"the text (.+?) could not be displayed|text (.+?) could not be displayed")


class NotIssuable(BillingError):
    """The document breaks a rule of e-invoices or cannot be printed; it is parked until its data are corrected."""

    code, status, title = "not_issuable", 422, "The document cannot be issued"

    def __init__(self, detail: str, violations: Sequence[Violation] = ()) -> None:
        super().__init__(detail, errors=[FieldError(one.pointer, f"{one.rule}: {one.detail}") for one in violations])
        self.violations = tuple(violations)


@cache
def _font_folders() -> list[str]:
    """Folders of the font wheels: the same fonts on every machine, whatever the system has."""
    folders: list[str] = []
    for name in FONT_PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None, f"the font package {name} is not installed"
        folders += [str(Path(one)) for one in spec.submodule_search_locations or ()]
    return folders


class _Layouts(threading.local):
    """One compiler per layout and thread: making one reads all fonts (80 ms), using it again costs nothing."""

    def __init__(self) -> None:
        self.compilers: dict[str, typst.Compiler] = {}

    def compiler(self, layout: str) -> typst.Compiler:
        found = self.compilers.get(layout)
        if found is None:
            path = LAYOUTS / layout / f"{layout}.typ"
            if not re.fullmatch(r"[a-z][a-z0-9-]*", layout) or not path.is_file():
                raise InvalidInput(f"there is no layout {layout!r}", errors=[FieldError("/layout", "is unknown")])
            found = typst.Compiler(
                str(path), root=str(path.parent), font_paths=_font_folders(), ignore_system_fonts=True
            )
            self.compilers[layout] = found
        return found


_layouts = _Layouts()


def render_pdf(
    invoice: Invoice,
    layout: str = "invoice",
    language: str = "de",
    *,
    seller: Seller | None = None,
    xml: bytes | None = None,
) -> bytes:
    """The invoice as PDF/A-3a and PDF/UA-1, with the XML inside where there is one. Same input, same bytes.

    `seller` is the letterhead (logo, directors, bank); without it only the party is shown. Raises `NotIssuable` for a
    character that no font can print, naming it.
    """
    data = view(invoice, seller or Seller(invoice.seller), layout, language)
    if xml is not None:
        data["xml"] = xml.decode()
    pdf = _compile(data, layout)
    return with_factur_x_metadata(pdf) if xml is not None else pdf


def _compile(data: dict[str, Any], layout: str) -> bytes:
    compiler = _layouts.compiler(layout)
    try:
        return compiler.compile(
            format="pdf", pdf_standards=STANDARDS, sys_inputs={"data": json.dumps(data, ensure_ascii=False)}
        )
    except typst.TypstError as error:
        message = str(error)
        if "could not be displayed" in message:
            raise NotIssuable(f"no font has a character of the document: {message}") from error
        raise


def checked_xml(invoice: Invoice, gate: ShapeGate) -> bytes:
    """The XML of an invoice that may be issued; raises `NotIssuable` with every violation."""
    violations = check(invoice)
    if not violations:
        xml = to_cii(invoice)
        violations = gate.violations(xml, invoice.number)
        if not violations:
            return xml
    first = violations[0]
    raise NotIssuable(f"{first.rule}: {first.detail}", violations)
