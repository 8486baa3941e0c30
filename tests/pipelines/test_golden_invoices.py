"""The golden XML of every business term (`tests/billing/einvoice`) is what the official schema and rules allow."""

from pathlib import Path

import pytest

from pipelines.invoice_rules import rule_violations, schema_violations

GOLDEN = Path(__file__).parents[1] / "golden" / "einvoice"


@pytest.mark.parametrize("name", ["everything", "outside"])
def test_an_invoice_with_every_term_passes_the_official_schema_and_rules(name: str) -> None:
    xml = (GOLDEN / f"{name}.xml").read_bytes()
    assert schema_violations(xml) == []
    assert rule_violations(xml) == []
