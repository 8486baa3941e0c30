"""An incoming e-invoice back into the invoice of `billing/einvoice/model.py`: CII and UBL, and what lies in a PDF.

XML of strangers is read without entities and network, with bounds on size and depth; `read_cii.py` and `read_ubl.py`
know where each business term stands. What a syntax carries beyond EN 16931 (extensions, sub lines) is not read, but
where sums rest on it; what a profile below it lacks (MINIMUM, BASIC WL: no lines) is missing in the invoice, too.
"""

from __future__ import annotations

import io
from typing import Any

from lxml import etree

from billing.einvoice.model import Invoice
from pipelines.invoice_tree import unreadable
from pipelines.read_cii import CII, CiiInvoice
from pipelines.read_ubl import UBL, UblInvoice

BYTES_MAX = 100 * 1024 * 1024
ATTACHMENTS_MAX = 100
_NAMES = ("factur-x.xml", "zugferd-invoice.xml", "xrechnung.xml", "ZUGFeRD-invoice.xml")


def read_invoice(data: bytes) -> Invoice:
    """The invoice in a file: PDF with an XML inside, CII or UBL. Raises InvalidInput, naming what is wrong."""
    if len(data) > BYTES_MAX:
        raise unreadable(f"the file has {len(data):,} bytes, {BYTES_MAX:,} are the limit")
    xml = xml_of_pdf(data) if data[:1024].lstrip().startswith(b"%PDF-") else data
    root = _parsed(xml)
    space, name = etree.QName(root).namespace, etree.QName(root).localname
    if space == CII:
        form = CiiInvoice(root).invoice()
    elif space in (UBL.format("Invoice"), UBL.format("CreditNote")):
        form = UblInvoice(root).invoice()
    else:
        raise unreadable(f"this is no CII or UBL invoice: its root is {name} of {space or 'no namespace'}")
    return Invoice.from_json(form)


def xml_of_pdf(data: bytes) -> bytes:
    """The e-invoice that is attached to a PDF: by its usual name, or the only XML there is."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(io.BytesIO(data))
        names = [name for name in reader.attachments if name.lower().endswith(".xml")][:ATTACHMENTS_MAX]
        usual = [name for name in names if name.lower() in {one.lower() for one in _NAMES}]
        chosen = usual[:1] or (names if len(names) == 1 else [])
        if chosen:
            return bytes(reader.attachments[chosen[0]][0])
    except (PyPdfError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise unreadable(f"the PDF cannot be read: {error}") from error
    raise unreadable("the PDF carries no e-invoice" if not names else f"the PDF carries several XML files: {names[:5]}")


def _parsed(xml: bytes) -> Any:
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(xml, parser)
    except etree.XMLSyntaxError as error:
        raise unreadable(f"this is no XML: {error}") from error
    if root.getroottree().docinfo.doctype:
        raise unreadable("an e-invoice has no document type declaration")
    return root
