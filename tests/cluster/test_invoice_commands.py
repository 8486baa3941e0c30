"""`cloudbilling invoice render` and `invoice read` as people call them: no platform, files in, files out."""

from __future__ import annotations

import json
from pathlib import Path

from test_command_line import ROOT, call

EXAMPLE = ROOT / "examples" / "invoices" / "invoice.json"


def test_an_invoice_is_rendered_to_files_and_read_again(tmp_path: Path) -> None:
    done = call(
        "invoice", "render", str(EXAMPLE), "--out", str(tmp_path), "--format", "zugferd,xrechnung,ubl,html", "--json"
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)["written"]
    assert [Path(one["file"]).name for one in written] == [
        "invoice.zugferd.pdf", "invoice.xrechnung.xml", "invoice.ubl.xml", "invoice.html",
    ]  # fmt: skip
    assert all(Path(one["file"]).stat().st_size == one["bytes"] for one in written)
    for name in ("invoice.zugferd.pdf", "invoice.xrechnung.xml", "invoice.ubl.xml"):
        found = call("invoice", "read", str(tmp_path / name), "--json")
        assert found.returncode == 0, found.stderr
        form = json.loads(found.stdout)
        assert (form["number"], form["totals"]["due"]) == ("RE-2026-0042", "487.27")
        again = tmp_path / f"{name}.json"
        again.write_text(found.stdout, "utf-8")
        assert (
            call("invoice", "render", str(again), "--out", str(tmp_path / "again"), "--format", "cii").returncode == 0
        )


def test_for_people_it_says_what_it_is(tmp_path: Path) -> None:
    assert call("invoice", "render", str(EXAMPLE), "--out", str(tmp_path), "--format", "cii").returncode == 0
    shown = call("invoice", "read", str(tmp_path / "invoice.cii.xml")).stdout
    assert "RE-2026-0042" in shown
    assert "from Nordwind Cloud GmbH to Hafenkontor Logistik GmbH" in shown
    assert "487.27 EUR" in shown


def test_what_cannot_be_issued_writes_nothing_and_names_the_rule(tmp_path: Path) -> None:
    form = json.loads(EXAMPLE.read_text("utf-8"))
    form["totals"]["due"] = "1.00"
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(form), "utf-8")
    done = call("invoice", "render", str(wrong), "--out", str(tmp_path / "out"), "--format", "zugferd,cii")
    assert done.returncode not in (0, 2)
    assert "BR-CO-16" in done.stderr
    assert "487.27" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_wrong_call_says_what_is_wrong(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{", "utf-8")
    missing = call("invoice", "render", str(tmp_path / "none.json"), "--out", str(tmp_path))
    assert missing.returncode == 2
    assert "none.json" in missing.stderr
    assert call("invoice", "render", str(broken), "--out", str(tmp_path)).returncode == 2
    unknown = call("invoice", "render", str(EXAMPLE), "--out", str(tmp_path), "--format", "docx")
    assert unknown.returncode != 0
    assert "zugferd" in unknown.stderr
    assert call("invoice", "read", str(broken)).returncode != 0


def test_the_usage_record_is_put_inside_if_asked_for(tmp_path: Path) -> None:
    record = EXAMPLE.with_name("usage-record.json")
    done = call(
        "invoice", "render", str(record), "--out", str(tmp_path), "--format", "zugferd", "--usage-record", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(call("invoice", "read", str(tmp_path / "usage-record.zugferd.pdf"), "--json").stdout)
    assert [one["name"] for one in found["attachments"]] == ["usage-record.csv"]
