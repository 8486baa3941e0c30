"""The usage record inside an invoice: every line with what it is made of, safe in a spreadsheet, bounded."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing.einvoice import usage_record
from billing.einvoice.model import Invoice
from billing.einvoice.usage_record import usage_record_csv, with_usage_record
from billing.errors import InvalidInput

EXAMPLES = Path(__file__).parents[3] / "examples" / "invoices"
EXAMPLE: dict[str, Any] = json.loads((EXAMPLES / "usage-record.json").read_text(encoding="utf-8"))


def rows(invoice: Invoice) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(usage_record_csv(invoice).decode(), newline="")))


def test_each_line_has_its_rows_and_then_itself() -> None:
    found = rows(Invoice.from_json(EXAMPLE))
    assert [(one["line"], one["row"], one["label"], one["quantity"], one["amount"]) for one in found] == [
        ("1", "dimension", "region", "800000", ""),
        ("1", "dimension", "region", "248217", ""),
        ("1", "tier", "1", "1000000", "400"),
        ("1", "tier", "2", "48217", "14.4651"),
        ("1", "line", "", "1048217", "414.47"),
        ("2", "line", "", "-10", "-5"),
        ("3", "line", "", "2", "69.8"),
    ]
    assert {one["start"] for one in found if one["line"] == "1"} == {"2026-10-01"}
    assert {one["currency"] for one in found} == {"EUR"}
    assert [one["up_to"] for one in found if one["row"] == "tier"] == ["1000000", ""]
    whole = Invoice.from_json(EXAMPLE)
    assert sum(Decimal(one["amount"]) for one in found if one["row"] == "line") == whole.totals.lines


def test_it_is_an_attachment_in_the_words_of_the_language() -> None:
    added = with_usage_record(Invoice.from_json(EXAMPLE), "de").attachments[-1]
    assert (added.ref, added.text, added.mime, added.name) == (
        "usage-record", "Verbrauchsnachweis", "text/csv", "usage-record.csv",
    )  # fmt: skip
    assert with_usage_record(Invoice.from_json(EXAMPLE), "en").attachments[-1].text == "Usage record"


@pytest.mark.parametrize("name", ["=1+1", "+49", "-x", "@sum", "\ttab"])
def test_no_spreadsheet_runs_a_name_as_a_formula(name: str) -> None:
    invoice = Invoice.from_json(EXAMPLE)
    invoice = replace(invoice, lines=(replace(invoice.lines[0], name=name), *invoice.lines[1:]))
    assert rows(invoice)[0]["name"] == f"'{name}"


def test_names_with_commas_quotes_and_lines_come_back_whole() -> None:
    invoice = Invoice.from_json(EXAMPLE)
    invoice = replace(invoice, lines=(replace(invoice.lines[0], name='a "b", c\nd; שלום'), *invoice.lines[1:]))
    assert rows(invoice)[0]["name"] == 'a "b", c\nd; שלום'


def test_a_second_record_is_refused_and_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        with_usage_record(with_usage_record(Invoice.from_json(EXAMPLE), "de"), "de")
    assert [one.pointer for one in caught.value.errors] == ["/attachments/0/ref"]


def test_a_record_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_record, "BYTES_MAX", 300)
    with pytest.raises(InvalidInput) as caught:
        usage_record_csv(Invoice.from_json(EXAMPLE))
    assert [one.pointer for one in caught.value.errors] == ["/records"]


@pytest.mark.parametrize(
    ("key", "value", "pointer"),
    [
        ("records", [{"line": "9"}], "/records/0/line"),
        ("groups", [{"lines": ["1", "2"]}], "/groups"),
        ("groups", [{"lines": ["1", "2", "3"]}, {"lines": ["3"]}], "/groups"),
        ("groups", [{"lines": ["1", "2", "3", "4"]}], "/groups"),
    ],
)
def test_what_is_for_people_names_the_lines_that_there_are(key: str, value: object, pointer: str) -> None:
    """Before, an unknown line was a fault inside, and a line without a group was missing on the page."""
    with pytest.raises(InvalidInput) as caught:
        Invoice.from_json({**EXAMPLE, key: value})
    assert [one.pointer for one in caught.value.errors] == [pointer]
