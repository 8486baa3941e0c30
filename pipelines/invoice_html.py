"""The invoice as one HTML page: the same data as the printed page, in one file that loads nothing.

Everything that comes from an invoice is escaped; pictures are data of the page itself.
"""

from __future__ import annotations

import base64
from functools import cache

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from billing.einvoice.model import Invoice
from billing.einvoice.parties import Seller
from pipelines.invoice_view import LAYOUTS, view


@cache
def _template(layout: str) -> Template:
    loader = FileSystemLoader(LAYOUTS / layout)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["picture"] = _picture
    return environment.get_template(f"{layout}.html.j2")


def _picture(svg: str) -> str:
    """An SVG inside an address: as a picture it runs no script and loads nothing."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def render_html(
    invoice: Invoice, layout: str = "invoice", language: str = "de", *, seller: Seller | None = None
) -> bytes:
    """The page in UTF-8. Same input, same bytes."""
    data = view(invoice, seller or Seller(invoice.seller), layout, language)
    return _template(layout).render(d=data).encode()
