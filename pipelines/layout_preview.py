"""What a layout makes of a document, drawn and thrown away: sample data, or one of the tenant's own documents.

Nothing is stored and no number is taken; what is drawn is what would be issued, without the XML inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from billing.einvoice.model import Invoice
from billing.einvoice.parties import Seller, seller_of
from pipelines.documents import FinalDocument, Issuer, draw, invoice_for
from pipelines.layout_blocks import Layout
from pipelines.layout_engines import Output
from pipelines.layout_view import page_of
from storage.sql.tenants import Tenant

SAMPLE = Path(__file__).parent / "layouts" / "invoice" / "sample.json"


@cache
def sample_invoice() -> Invoice:
    """An invented invoice with what makes pages differ: groups, tiers, a discount, two tax rates, a usage record."""
    return Invoice.from_json(json.loads(SAMPLE.read_text("utf-8")))


def preview(
    layout: Layout,
    language: str,
    output: Output,
    *,
    owner: str,
    row: Mapping[str, Any] | None = None,
    tenant: Tenant | None = None,
    entity: Mapping[str, Any] | None = None,
) -> list[bytes]:
    """The PDF, or one PNG a page (Typst), or the HTML. `row` is a document as `invoices.get` reads it, with the tenant
    and the legal entity that issued it. Raises `NotIssuable` with the place of a mistake, `InvalidInput` for a language
    that there is not."""
    if row is None:
        invoice = sample_invoice()
        seller = Seller(invoice.seller)
    else:
        assert tenant is not None, "a document has a tenant"
        assert entity is not None, "a document has a legal entity that issued it"
        country = entity["country"] or tenant.country or ""
        issuer = Issuer(owner, tenant.timezone, country, entity["form"])
        seller = seller_of(entity["form"], country)
        final = FinalDocument(str(row["id"]), row["number"], row["document"], row["buyer"], row["due_on"])
        invoice, _ = invoice_for(final, issuer, seller)
    return draw(layout, page_of(invoice, seller, layout.blocks, language), output, owner)
