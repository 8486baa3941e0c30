"""Reads e-invoices that others wrote, writes them again, and says what was lost.

`python -m tests.pipelines.official_instances FOLDER` takes every XML and PDF below the folder. Made for the official
collections (KoSIT's XRechnung test suite, CEN's EN 16931 examples, the ZUGFeRD corpus), which are not a part of this
project: get one and name its folder. What is lost is found without our reader: each text and attribute of the file that
came is looked for at the same path of the one that was written.
"""

from __future__ import annotations

import argparse
import json
import sys
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path

from lxml import etree

from billing.einvoice.cii import to_cii
from billing.einvoice.ubl import to_ubl
from billing.errors import BillingError
from pipelines.invoice_rules import rule_violations, schema_violations, syntax_of
from pipelines.read_invoice import read_invoice, xml_of_pdf

Leaf = tuple[str, str]


@dataclass
class Instance:
    """What became of one file. `unread`: why it cannot be read; `before`, `after`: ids of the rules that are broken."""

    file: str
    unread: str = ""
    before: list[str] = field(default_factory=list[str])
    after: list[str] = field(default_factory=list[str])
    lost: list[Leaf] = field(default_factory=list[Leaf])
    changed: bool = False

    @property
    def good(self) -> bool:
        """Nothing is lost, and what was valid still is."""
        return not self.unread and not self.changed and not self.lost and (bool(self.before) or not self.after)


def instance(path: Path, name: str) -> Instance:
    """Read, written in the same syntax, read again."""
    made = Instance(name)
    data = path.read_bytes()
    try:
        invoice = read_invoice(data)
    except BillingError as error:
        made.unread = error.detail
        return made
    xml = xml_of_pdf(data) if data[:1024].lstrip().startswith(b"%PDF-") else data
    again = to_cii(invoice) if syntax_of(xml) == "cii" else to_ubl(invoice)
    made.before, made.after = _broken(xml), _broken(again)
    made.lost = sorted((leaves(xml) - leaves(again)).elements())
    made.changed = read_invoice(again).to_json() != invoice.to_json()
    return made


def _broken(xml: bytes) -> list[str]:
    xml = xml.removeprefix(BOM_UTF8)
    return sorted({one.rule for one in [*schema_violations(xml), *rule_violations(xml)]})


def leaves(xml: bytes) -> Counter[Leaf]:
    """Texts and attributes by path; numbers without trailing zeros."""
    found: Counter[Leaf] = Counter()
    for element in etree.fromstring(xml, etree.XMLParser(resolve_entities=False, no_network=True)).iter(etree.Element):
        path = _path(element)
        text = " ".join((element.text or "").split())
        if text and not len(element):
            found[path, _plain(text)] += 1
        for attribute, value in element.attrib.items():
            if "XMLSchema-instance" not in attribute:
                found[f"{path}/@{attribute}", _plain(" ".join(value.split()))] += 1
    return found


def _path(element: etree._Element) -> str:
    names = [etree.QName(one).localname for one in (element, *element.iterancestors())]
    return "/".join(reversed(names[:-1]))


def _plain(text: str) -> str:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    return format(number.normalize(), "f") if number.is_finite() else text


def instances(folder: Path) -> Iterator[Instance]:
    files = sorted(one for one in folder.rglob("*") if one.suffix.lower() in (".xml", ".pdf"))
    for file in files:
        yield instance(file, str(file.relative_to(folder)))


def _print(found: Iterable[Instance]) -> bool:
    total: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for one in found:
        kind = "not read" if one.unread else "good" if one.good else "not good"
        total[kind] += 1
        if one.unread:
            print(f"  not read  {one.file}: {one.unread[:120]}")
        elif not one.good:
            new = sorted(set(one.after) - set(one.before))
            print(f"  NOT GOOD  {one.file}: {'read again it differs; ' if one.changed else ''}rules {new}, lost:")
            for path, text in one.lost[:12]:
                print(f"              {path} = {text[:60]!r}")
            lost.update({path for path, _ in one.lost})
    for path, files in lost.most_common(40):
        print(f"  lost in {files:3} files: {path}")
    print(json.dumps(total))
    return total["not good"] == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    sys.exit(not _print(instances(parser.parse_args().folder)))
