"""Factur-X metadata in a PDF/A-3 that Typst made, by an incremental update: the file stays 3a and UA-1.

Typst attaches the XML and writes the rest of the metadata, but knows no Factur-X schema. Its packet is uncompressed and
its cross-reference table a classic one, so a copy of the packet with two insertions is appended (0.7 ms; rewriting the
file with a library takes ten times that). Each assumption about Typst's output is asserted: an upgrade fails loudly.
"""

from __future__ import annotations

import re

from billing.einvoice.model import EN_16931
from billing.einvoice.profiles import XRECHNUNG

FILE_NAME, XRECHNUNG_FILE_NAME = "factur-x.xml", "xrechnung.xml"
CONFORMANCE_LEVEL, XRECHNUNG_LEVEL = "EN 16931", "XRECHNUNG"  # the first one with the blank
_NAMESPACE = "urn:factur-x:pdfa:CrossIndustryDocument:invoice:1p0#"
_PACKET = re.compile(rb"<<\s*/Length (\d+)((?:(?!>>).)*?/Type\s*/Metadata(?:(?!>>).)*)>>\s*stream\r?\n", re.DOTALL)
_END = re.compile(rb"trailer\s*<<(.*?)>>\s*startxref\s*(\d+)\s*%%EOF\s*$", re.DOTALL)
_TABLE = re.compile(rb"xref\s+0 (\d+)\s+")
_ENTRY_BYTES = 20  # of a cross-reference table: "0000000015 00000 n" and the end of the line
_SCHEMAS_END = b"</rdf:Bag></pdfaExtension:schemas>"
_PROPERTIES = (
    ("DocumentFileName", "The name of the embedded XML document"),
    ("DocumentType", "The type of the hybrid document in capital letters"),
    ("Version", "The actual version of the standard applying to the embedded XML document"),
    ("ConformanceLevel", "The conformance level of the embedded XML document"),
)


def _schema() -> bytes:
    properties = "".join(
        f'<rdf:li rdf:parseType="Resource"><pdfaProperty:name>{name}</pdfaProperty:name>'
        "<pdfaProperty:valueType>Text</pdfaProperty:valueType><pdfaProperty:category>external</pdfaProperty:category>"
        f"<pdfaProperty:description>{description}</pdfaProperty:description></rdf:li>"
        for name, description in _PROPERTIES
    )
    return (
        '<rdf:li rdf:parseType="Resource" xmlns:pdfaSchema="http://www.aiim.org/pdfa/ns/schema#"'
        ' xmlns:pdfaProperty="http://www.aiim.org/pdfa/ns/property#">'
        "<pdfaSchema:schema>Factur-X PDFA Extension Schema</pdfaSchema:schema>"
        f"<pdfaSchema:namespaceURI>{_NAMESPACE}</pdfaSchema:namespaceURI><pdfaSchema:prefix>fx</pdfaSchema:prefix>"
        f"<pdfaSchema:property><rdf:Seq>{properties}</rdf:Seq></pdfaSchema:property></rdf:li>"
    ).encode()


_SCHEMA = _schema()


def hybrid_of(profile: str) -> tuple[str, str]:
    """Name of the XML inside the PDF and conformance level, both from BT-24: no validator compares them."""
    return (XRECHNUNG_FILE_NAME, XRECHNUNG_LEVEL) if profile == XRECHNUNG else (FILE_NAME, CONFORMANCE_LEVEL)


def _description(profile: str) -> bytes:
    name, level = hybrid_of(profile)
    return (
        f'<rdf:Description rdf:about="" xmlns:fx="{_NAMESPACE}"><fx:DocumentType>INVOICE</fx:DocumentType>'
        f"<fx:DocumentFileName>{name}</fx:DocumentFileName><fx:Version>1.0</fx:Version>"
        f"<fx:ConformanceLevel>{level}</fx:ConformanceLevel></rdf:Description>"
    ).encode()


def in_packet(content: bytes, profile: str) -> bytes:
    """A metadata packet that declares no extension schemas (WeasyPrint's), with the Factur-X schema and description."""
    assert content.count(b"</rdf:RDF>") == 1, "the metadata packet has another form than expected"
    assert b"pdfaExtension:schemas" not in content, "the metadata packet declares schemas already"
    schemas = (
        b'<rdf:Description rdf:about="" xmlns:pdfaExtension="http://www.aiim.org/pdfa/ns/extension/">'
        b"<pdfaExtension:schemas><rdf:Bag>" + _SCHEMA + b"</rdf:Bag></pdfaExtension:schemas></rdf:Description>"
    )
    return content.replace(b"</rdf:RDF>", schemas + _description(profile) + b"</rdf:RDF>")


def in_typst_packet(content: bytes, profile: str) -> bytes:
    """A metadata packet of Typst, which declares schemas of its own, with the Factur-X schema and description."""
    schemas = content.count(_SCHEMAS_END)
    assert schemas == 1, f"{schemas} lists of extension schemas in the metadata, expected one"
    assert _NAMESPACE.encode() not in content, "the metadata packet has the Factur-X schema already"
    assert content.count(b"</rdf:RDF>") == 1, "the metadata packet has another form than expected"
    content = content.replace(_SCHEMAS_END, _SCHEMA + _SCHEMAS_END)
    return content.replace(b"</rdf:RDF>", _description(profile) + b"</rdf:RDF>")


def with_factur_x_metadata(pdf: bytes, profile: str = EN_16931) -> bytes:
    """The same file with the Factur-X schema and description in its metadata; `profile` is BT-24 of the XML inside."""
    trailer = _END.search(pdf, max(pdf.rfind(b"trailer"), 0))
    assert trailer is not None, "the PDF has no classic trailer at its end"
    assert b"/Prev" not in trailer.group(1), "the PDF was updated before"
    root = _object(pdf, trailer, _reference(trailer.group(1), b"Root"))
    number = _reference(pdf[root : pdf.index(b"endobj", root)], b"Metadata")
    packet = _PACKET.match(pdf, _object(pdf, trailer, number))
    assert packet is not None, "the metadata packet of the PDF has another form than expected"
    length = int(packet.group(1))
    content = pdf[packet.end() : packet.end() + length]
    content = in_typst_packet(content, profile)
    if not pdf.endswith(b"\n"):
        pdf += b"\n"  # an object begins on a line of its own (veraPDF 6.1.9-1)
    start = len(pdf)
    object_ = b"%d 0 obj\n<<\n/Length %d%s>>\nstream\n%s\nendstream\nendobj\n" % (
        number,
        len(content),
        packet.group(2),
        content,
    )
    table = b"xref\n0 1\n0000000000 65535 f \n%d 1\n%010d 00000 n \n" % (number, start)
    end = b"trailer\n<<%s\n/Prev %s\n>>\nstartxref\n%d\n%%%%EOF\n" % (
        trailer.group(1).rstrip(),
        trailer.group(2),
        start + len(object_),
    )
    return pdf + object_ + table + end


def _reference(dictionary: bytes, key: bytes) -> int:
    """Number of the object that an entry of a dictionary refers to."""
    found = re.findall(rb"/%s (\d+) 0 R" % key, dictionary)
    assert len(found) == 1, f"{len(found)} entries /{key.decode()} in the PDF, expected one"
    return int(found[0])


def _object(pdf: bytes, trailer: re.Match[bytes], number: int) -> int:
    """Where the content of an object begins, by the table: a file inside the PDF may look like a part of it."""
    table = _TABLE.match(pdf, int(trailer.group(2)))
    assert table is not None, "the PDF has no classic cross-reference table"
    assert number < int(table.group(1)), f"the PDF has no object {number}"
    start = table.end() + number * _ENTRY_BYTES
    at = int(pdf[start : start + 10])
    head = b"%d 0 obj" % number
    assert pdf.startswith(head, at), f"object {number} is not where the table says"
    at += len(head)
    while pdf[at : at + 1].isspace():
        at += 1
    return at
