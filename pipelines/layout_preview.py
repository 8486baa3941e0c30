"""What a layout makes of a document, drawn and thrown away: sample data, or one of the tenant's own documents.

Nothing is stored and no number is taken; what is drawn is what would be issued, without the XML inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from billing.accompanying import Accompanying
from billing.einvoice.issued import numbered
from billing.einvoice.model import Invoice
from billing.einvoice.parties import Seller, seller_of
from pipelines import accompanying_view
from pipelines.documents import FinalDocument, Issuer, draw, invoice_for
from pipelines.layout_blocks import ISSUED_KINDS, Layout
from pipelines.layout_engines import Output
from pipelines.layout_view import page_of
from storage.sql.tenants import Tenant

LAYOUTS = Path(__file__).parent / "layouts"


@dataclass(frozen=True)
class Issued:
    """An invoice or credit note as `invoices.get` reads it, with the tenant and the legal entity that issued it."""

    row: Mapping[str, Any]
    tenant: Tenant
    entity: Mapping[str, Any]
    form: Mapping[str, Any] | None = None  # what it came as, if it was made elsewhere


@cache
def sample_invoice() -> Invoice:
    """An invented invoice with what makes pages differ: groups, tiers, a discount, two tax rates, a usage record."""
    return Invoice.from_json(json.loads((LAYOUTS / "invoice" / "sample.json").read_text("utf-8")))


@cache
def sample_accompanying(kind: str) -> Accompanying:
    """An invented document of a type that accompanies invoices."""
    return Accompanying.from_json(
        json.loads((LAYOUTS / "accompanying" / "samples" / f"{kind}.json").read_text("utf-8"))
    )


def preview(
    layout: Layout,
    language: str,
    output: Output,
    *,
    owner: str,
    kind: str = "invoice",
    document: Issued | Accompanying | None = None,
) -> list[bytes]:
    """The PDF, or one PNG a page (Typst), or the HTML: of a document, or of the sample of its type.

    Raises `NotIssuable` with the place of a mistake, `InvalidInput` for a language that there is not.
    """
    if kind not in ISSUED_KINDS:
        assert not isinstance(document, Issued), "an invoice is no accompanying document"
        shown = document or sample_accompanying(kind)
        data = accompanying_view.page_of(shown, Seller(shown.seller), layout.blocks, language)
    else:
        assert not isinstance(document, Accompanying), "an accompanying document is no invoice"
        invoice, seller = _issued(owner, document)
        made_here = document is not None and not document.row["outside"]
        data = page_of(invoice, seller, layout.blocks, language, from_credit=made_here)
    return draw(layout, data, output, owner)


def _issued(owner: str, document: Issued | None) -> tuple[Invoice, Seller]:
    if document is None:
        invoice = sample_invoice()
        return invoice, Seller(invoice.seller)
    row, tenant, entity = document.row, document.tenant, document.entity
    country = entity["country"] or tenant.country or ""
    seller = seller_of(entity["form"], country)
    made = None if not document.form else numbered(document.form, row["number"])
    final = FinalDocument(str(row["id"]), row["number"], row["document"], row["buyer"], row["due_on"], issued=made)
    return invoice_for(final, Issuer(owner, tenant.timezone, country, entity["form"]), seller)[0], seller
