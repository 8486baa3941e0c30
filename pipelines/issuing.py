"""An invoice that was made elsewhere, tried before it gets a number: official rules, sums, and the page itself.

Owns that look. Nothing is stored and no number is used; files are made again, by the same functions, once the invoice
has its number (`document_files.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from billing.documents import Document
from billing.einvoice.issued import WITHOUT_NUMBER, buyer_form, customer_of, document_of, numbered
from pipelines.documents import BUILT_IN, FinalDocument, Issuer, checked_xml, files_of, shared_gate
from pipelines.invoice_rules import ShapeGate
from pipelines.layout_blocks import layout_of
from storage.sql.layouts import Used


def tried_document(
    form: Mapping[str, Any],
    issuer: Issuer,
    layout: Used,
    language: str,
    refers_to: str | None,
    *,
    gate: ShapeGate | None = None,
) -> Document:
    """The document that a kept form (`issue_form`) becomes, its files made once and thrown away.

    `layout` is the one in use. Errors: NotIssuable with every rule that is broken, or what cannot be printed, and with
    the place in the form.
    """
    gate = gate or shared_gate()
    invoice = numbered(form, WITHOUT_NUMBER)
    checked_xml(invoice, gate)
    customer = customer_of(invoice)
    document = document_of(invoice, customer, issuer.timezone, refers_to)
    drawn = BUILT_IN if layout.form is None else layout_of(layout.form)
    buyer = buyer_form(invoice, customer, language)
    final = FinalDocument("", WITHOUT_NUMBER, document, buyer, invoice.due_on, layout=drawn, issued=invoice)
    files_of(final, issuer, gate)
    return document
