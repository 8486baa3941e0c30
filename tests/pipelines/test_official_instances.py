"""The comparison that is made with official collections of e-invoices, with what this repository has."""

import json
import os
import sys
from pathlib import Path

import pytest

from billing.einvoice.model import Invoice
from pipelines.invoice_files import render_files
from tests.pipelines.official_instances import instance, instances

sys.path.append(str(Path(__file__).parents[1] / "billing" / "einvoice"))
from maximal import EVERYTHING

EXAMPLES = Path(__file__).parents[2] / "examples" / "invoices"
FOLDER = os.environ.get("CLOUDBILLING_INSTANCES", "")


def test_all_examples_of_the_repository_come_back_whole_from_each_format(tmp_path: Path) -> None:
    forms = {one.stem: json.loads(one.read_text(encoding="utf-8")) for one in sorted(EXAMPLES.glob("*.json"))}
    forms = {name: form for name, form in forms.items() if "seller" in form}
    assert forms
    for name, form in {**forms, "everything": EVERYTHING}.items():
        for file in render_files(Invoice.from_json(form), ("zugferd", "xrechnung", "ubl")):
            (tmp_path / f"{name}.{file.name}").write_bytes(file.data)
    found = list(instances(tmp_path))
    assert len(found) == 3 * (len(forms) + 1)
    assert [one for one in found if not one.good or one.before] == []


def test_what_we_do_not_read_and_what_is_no_invoice_is_told(tmp_path: Path) -> None:
    form = json.loads((EXAMPLES / "invoice.json").read_text(encoding="utf-8"))
    [file] = render_files(Invoice.from_json(form), ("xrechnung",))
    lossy = tmp_path / "lossy.xml"
    type_code = b"<ram:TypeCode>VAT</ram:TypeCode>"
    lossy.write_bytes(file.data.replace(type_code, type_code + b"<ram:ExemptionReason>x</ram:ExemptionReason>", 1))
    found = instance(lossy, "lossy.xml")
    assert not found.good
    assert {text for _, text in found.lost} == {"x"}
    (tmp_path / "none.xml").write_text("<none/>")
    assert "no CII or UBL invoice" in instance(tmp_path / "none.xml", "none.xml").unread


@pytest.mark.skipif(not FOLDER, reason="CLOUDBILLING_INSTANCES names no folder with e-invoices of others")
def test_no_valid_instance_of_others_becomes_invalid() -> None:
    found = list(instances(Path(FOLDER)))
    assert found
    assert [one for one in found if not one.unread and not one.before and one.after] == []
