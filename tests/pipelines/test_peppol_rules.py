"""Peppol's own schematron over what we write as Peppol: the rules come by package name, out of a jar of Maven.

No Python package has them, so before an invoice is issued `billing/einvoice/profiles.py` checks by the same ids.
"""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from invoice_samples import PEPPOL_CUSTOMER, PEPPOL_ISSUER, SAMPLES
from lxml import etree
from saxonche import PySaxonProcessor

from billing.einvoice.model import Invoice
from billing.einvoice.parties import seller_of
from pipelines.document_faults import Refused
from pipelines.documents import made_together
from pipelines.invoice_files import render_files
from pipelines.invoice_rules import ShapeGate

RULES = "external/schematron/openpeppol/2026.5/xslt/PEPPOL-EN16931-UBL.xslt"
JAR = ("com.helger.phive.rules", "phive-rules-peppol", "4.3.7")
EXAMPLES: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((Path(__file__).parents[2] / "examples" / "invoices").glob("*.json"))
}
SVRL = "{http://purl.oclc.org/dsdl/svrl}"
# 386 (prepayment) is none of the codes that Germany recommends; a warning in Peppol and in XRechnung (BR-DE-17).
WARNINGS = {"prepayment-invoice": {"DE-R-017"}}


@pytest.fixture(scope="module")
def rules() -> Any:
    cache = Path(os.environ.get("CLOUDBILLING_TEST_CACHE", Path.home() / ".cache" / "cloudbilling-tests"))
    folder = cache / f"peppol-{JAR[2]}"
    path = folder / Path(RULES).name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={':'.join(JAR)}", f"-DoutputDirectory={folder}"]
        subprocess.run(command, cwd=folder, check=True, timeout=280)
        with zipfile.ZipFile(folder / f"{JAR[1]}-{JAR[2]}.jar") as jar:
            draft = path.with_suffix(".draft")
            draft.write_bytes(jar.read(RULES))
            draft.rename(path)
    processor = PySaxonProcessor(license=False)
    return processor, processor.new_xslt30_processor().compile_stylesheet(stylesheet_file=str(path))


def broken(rules: Any, xml: bytes) -> dict[str, str]:
    """Ids of the rules that an invoice breaks, and how grave each is."""
    processor, compiled = rules
    report = compiled.transform_to_string(xdm_node=processor.parse_xml(xml_text=xml.decode()))
    found = etree.fromstring(report.encode()).iter(f"{SVRL}failed-assert")
    return {one.get("id", ""): one.get("flag", "") for one in found}


@pytest.mark.services
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_passes_the_rules_of_peppol(name: str, rules: Any) -> None:
    (file,) = render_files(Invoice.from_json(EXAMPLES[name]), ["peppol"], usage_record=True)
    found = broken(rules, file.data)
    assert {rule for rule, flag in found.items() if flag == "fatal"} == set()
    assert set(found) == WARNINGS.get(name, set())


@pytest.mark.services
@pytest.mark.parametrize("sample", ["invoice", "credit-note"])
def test_documents_of_a_bill_run_pass_the_rules_of_peppol(sample: str, rules: Any) -> None:
    final = replace(SAMPLES[sample](), customer=PEPPOL_CUSTOMER)
    seller = seller_of(PEPPOL_ISSUER.entity, "DE")
    ((_, files),) = made_together([final], PEPPOL_ISSUER, seller, ShapeGate())
    assert not isinstance(files, Refused), files
    (xml,) = (one.data for one in files if one.kind == "xml")
    assert broken(rules, xml) == {}


@pytest.mark.services
def test_the_rules_do_find_what_is_wrong(rules: Any) -> None:
    (file,) = render_files(Invoice.from_json(EXAMPLES["invoice"]), ["peppol"])
    xml = file.data.replace(b"<cbc:BuyerReference>04011000-12345-03</cbc:BuyerReference>", b"")
    assert broken(rules, xml).get("DE-R-015") == "fatal"
