"""The page of a document under a layout's blocks: what is shown, in which order, with which words. No drawing.

Owns what grouping, columns, texts, cover letter and appendix do to the data of `invoice_view.py`. Both engines and the
layouts that tenants write get the same data; `docs/layouts.md` lists it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from billing.einvoice.model import Invoice, InvoiceLine, LineGroup
from billing.einvoice.parties import Seller
from pipelines.column_widths import FONT
from pipelines.invoice_view import breakable, view
from pipelines.layout_blocks import COLUMNS, Blocks, Logo


def page_of(
    invoice: Invoice, seller: Seller, blocks: Blocks, language: str, *, from_credit: bool = False
) -> dict[str, Any]:
    """The data that an engine draws (`from_credit` as in `view`). Same input, same data."""
    if not blocks.is_plain:
        invoice = regrouped(invoice if blocks.appendix else replace(invoice, records=()), blocks.grouping)
    data = dressed(view(invoice, seller, "invoice", language, from_credit=from_credit), blocks, language)
    wanted = COLUMNS if blocks.columns is None else blocks.columns
    shown = [at for at, name in enumerate(COLUMNS) if name in wanted and (name != "gross" or data.get("with_gross"))]
    data["look"]["shown"] = shown
    if blocks.font != FONT:  # measured for the usual font only
        data |= {"widths": None, "taxes": {**data["taxes"], "widths": None}}
    return data


def dressed(data: dict[str, Any], blocks: Blocks, language: str) -> dict[str, Any]:
    """Looks and words of the blocks over the data of a page; the data may be of any kind of document."""
    words: Mapping[str, str] = blocks.texts.get(language, {})
    data["look"] = {
        "accent": blocks.accent,
        "faint": blocks.faint,
        "font": blocks.font,
        "size": blocks.size,
        "cover": [breakable(part) for part in blocks.cover.get(language, "").split("\n\n") if part.strip()],
    }
    greeting, *intro = data["intro"]
    data["intro"] = [words.get("greeting") or greeting, *([words["intro"]] if words.get("intro") else intro)]
    if closing := words.get("closing"):
        data["notes"] = [*data["notes"], breakable(closing)]
        data["long"] = data["long"] or len(closing) > 1_000
    if foot := words.get("footer"):
        data["letterhead"] = {**data["letterhead"], "foot": breakable(foot)}
    if blocks.logo is not None:
        data["letterhead"] = {**data["letterhead"], "logo": _drawn(blocks.logo)}
    return data


def _drawn(logo: Logo) -> str:
    """The logo as SVG text, which is what both engines take; a PNG lies inside one."""
    if logo.mime == "image/svg+xml":
        return logo.data.decode("utf-8", "replace").lstrip("\ufeff")
    width, height = f"{logo.width:g}", f"{logo.height:g}"
    address = f"data:image/png;base64,{base64.b64encode(logo.data).decode()}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<image width="{width}" height="{height}" href="{address}"/>'
        "</svg>"
    )


def regrouped(invoice: Invoice, grouping: str) -> Invoice:
    """The same lines under other headings; the order of lines inside a group stays, sums are those of its lines.

    `product` is the plan that a line comes from, `cost_centre` the buyer's accounting reference (BT-133).
    """
    if grouping == "subscription":
        return invoice
    if grouping == "none":
        return replace(invoice, groups=())
    before = {line: group for group in invoice.groups for line in group.lines}
    heads: dict[str, list[InvoiceLine]] = {}
    for line in invoice.lines:
        group = before.get(line.id)
        product = (group.plan or group.name) if group else ""
        heads.setdefault(product if grouping == "product" else line.accounting_reference or "", []).append(line)
    groups = [_group(name, lines) for name, lines in heads.items()]
    return replace(invoice, groups=tuple(groups))


def _group(name: str, lines: list[InvoiceLine]) -> LineGroup:
    net = sum((line.net for line in lines), Decimal(0))
    gross = [line.gross for line in lines if line.gross is not None]
    whole = sum(gross, Decimal(0)) if len(gross) == len(lines) else None
    return LineGroup(tuple(line.id for line in lines), name=name, net=net, gross=whole)
