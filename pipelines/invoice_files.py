"""An invoice as files of the formats that are asked for, each checked by its own rules; nothing is stored.

Owns the names of formats and what each of them is: a syntax (CII, UBL), a profile (EN 16931, XRechnung, Peppol) and
whether it lies inside a PDF. The exact checks come first, then the official schema and rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from billing.einvoice.checks import Violation, check
from billing.einvoice.cii import to_cii
from billing.einvoice.model import EN_16931, Invoice, Party
from billing.einvoice.profiles import XRECHNUNG, Profile, in_profile, profile_violations, slack_of
from billing.einvoice.ubl import to_ubl
from billing.einvoice.usage_record import with_usage_record
from billing.errors import FieldError, InvalidInput
from pipelines.documents import NotIssuable, render_pdf, shared_gate
from pipelines.invoice_html import render_html
from pipelines.invoice_rules import ShapeGate
from pipelines.invoice_view import decimals_of

Format = Literal["zugferd", "zugferd-xrechnung", "xrechnung", "xrechnung-ubl", "cii", "ubl", "peppol", "pdf", "html"]
FORMATS: tuple[Format, ...] = get_args(Format)
DEFAULT: tuple[Format, ...] = ("zugferd", "cii")
_OTHER_LEVELS = ("factur-x", "zugferd")  # read, but written as what it then is: the terms of EN 16931
_SAME = {"factur-x": "zugferd", "xrechnung-cii": "xrechnung", "facturx": "zugferd"}  # other names of the same


@dataclass(frozen=True)
class _Made:
    ending: str
    mime: str
    syntax: Literal["cii", "ubl"] | None = None
    profile: Profile | None = None  # None: the one that the invoice names


_MADE: dict[Format, _Made] = {
    "zugferd": _Made("pdf", "application/pdf", "cii"),
    "zugferd-xrechnung": _Made("pdf", "application/pdf", "cii", "xrechnung"),
    "xrechnung": _Made("xml", "application/xml", "cii", "xrechnung"),
    "xrechnung-ubl": _Made("xml", "application/xml", "ubl", "xrechnung"),
    "cii": _Made("xml", "application/xml", "cii"),
    "ubl": _Made("xml", "application/xml", "ubl"),
    "peppol": _Made("xml", "application/xml", "ubl", "peppol"),
    "pdf": _Made("pdf", "application/pdf"),
    "html": _Made("html", "text/html"),
}


@dataclass(frozen=True)
class RenderedFile:
    """One file; `name` is what it is called behind a stem: `zugferd.pdf`.

    `warnings` is what our own checks find and the official rules let pass.
    """

    format: Format
    name: str
    mime: str
    data: bytes
    warnings: tuple[Violation, ...] = ()


def formats_of(text: str) -> tuple[Format, ...]:
    """Formats by name, with commas between them; `InvalidInput` names those that there are."""
    names = [_SAME.get(one.strip().lower(), one.strip().lower()) for one in text.split(",") if one.strip()]
    unknown = [one for one in names if one not in FORMATS]
    if unknown or not names:
        detail = f"{', '.join(unknown) or 'nothing'} is no format; there are {', '.join(FORMATS)}"
        raise InvalidInput(detail, errors=[FieldError("query:format", detail)])
    return cast(tuple[Format, ...], tuple(dict.fromkeys(names)))


def render_files(
    invoice: Invoice,
    formats: Sequence[Format],
    language: str = "de",
    *,
    strict: bool = False,
    usage_record: bool = False,
    gate: ShapeGate | None = None,
) -> list[RenderedFile]:
    """The files in the order asked for. Raises `NotIssuable` with every violation of the first format that has one;
    `strict` makes violations of the warnings, `usage_record` puts the record of the lines inside as CSV."""
    if usage_record:
        invoice = with_usage_record(invoice, language)
    return [_render(invoice, one, language, strict, gate or shared_gate()) for one in formats]


def _render(invoice: Invoice, form: Format, language: str, strict: bool, gate: ShapeGate) -> RenderedFile:
    made = _MADE[form]
    xml = None
    if made.syntax is not None:
        invoice = _under_profile(invoice, form)
    violations, warnings = _found(invoice, made.syntax is not None)
    if made.syntax == "ubl" and len(invoice.buyer.ids) > 1:
        warnings += _left_out(invoice.buyer)
        invoice = replace(invoice, buyer=replace(invoice.buyer, ids=invoice.buyer.ids[:1]))
    paper = made.ending != "xml"
    # A page finds its lines by their ids: with two of one id it would show less than the XML has.
    _refuse(form, [*violations, *(one for one in warnings if strict or (paper and one.rule == "CB-02"))])
    if made.syntax is not None:
        _refuse(form, profile_violations(invoice))
        xml = to_ubl(invoice) if made.syntax == "ubl" else to_cii(invoice)
        _refuse(form, gate.violations(xml, invoice.number))
    if made.ending == "pdf":
        data = render_pdf(invoice, language=language, xml=xml)
    elif made.ending == "html":
        data = render_html(invoice, language=language)
    else:
        assert xml is not None
        data = xml
    name = made.ending if form == "pdf" or form == "html" else f"{form}.{made.ending}"
    return RenderedFile(form, name, made.mime, data, tuple(warnings))


def _found(invoice: Invoice, e_invoice: bool) -> tuple[list[Violation], list[Violation]]:
    """What nobody may issue, and what we would not: the official rules let the second pass."""
    digits = decimals_of(invoice.currency)
    violations = check(invoice, e_invoice=e_invoice, minor_digits=digits, slack=slack_of(invoice))
    exact = check(invoice, e_invoice=e_invoice, minor_digits=digits)
    return violations, [one for one in exact if one not in violations]


def _left_out(buyer: Party) -> list[Violation]:
    """BT-46 is one id; CII alone has room for several, as Factur-X EXTENDED uses it."""
    return [
        Violation("UBL-SR-16", f"UBL takes one id of the buyer (BT-46): {one.id} is left out", f"/buyer/ids/{place}")
        for place, one in enumerate(buyer.ids)
        if place > 0
    ]


def _under_profile(invoice: Invoice, form: Format) -> Invoice:
    profile = _MADE[form].profile
    if profile is not None:
        return in_profile(invoice, profile)
    if any(name in invoice.profile for name in _OTHER_LEVELS):
        return replace(invoice, profile=EN_16931)
    if form == "zugferd" and invoice.profile not in (EN_16931, XRECHNUNG):  # the two that Factur-X has a level for
        return replace(invoice, profile=EN_16931)
    return invoice


def _refuse(what: str, violations: Sequence[Violation]) -> None:
    if violations:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        raise NotIssuable(f"{what}: {first.rule}: {first.detail}{more}", violations)
