"""What a run comes to by plan and tax: exact in columns and, beyond what they hold, in Python."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from billing.document_columns import columns_of
from billing.documents import Document, Line, TaxTotal
from billing.run_breakdown import added, by_country, by_plan_and_tax

START, END = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)


def document(customer: str, amount: str, plan: str, kind: str = "invoice") -> Document:
    net = Decimal(amount)
    line = Line("S-1", "use", START, END, Decimal(1), net, "S", Decimal(19), plan=plan)
    tax = TaxTotal("S", Decimal(19), net, Decimal("1.00"))
    return Document(customer, kind, "EUR", date(2026, 11, 1), (line,), (), (tax,), net, Decimal("1.00"), net, net)  # type: ignore[arg-type]


@pytest.mark.parametrize("huge", ["7.01", "123456789012345678901234567890.01"])
def test_sums_are_exact_however_large_and_credit_notes_count_negative(huge: str) -> None:
    chunks = [
        [
            document("a", huge, "one"),
            document("b", "0.02", "one"),
            document("b", "0.05", "two"),
            document("b", "0.01", "one", "credit_note"),
        ],  # beside the huge one: both ways must turn its sign
        [document("c", "3.00", "two")],
    ]
    countries = {"a": "DE", "b": "FR", "c": "FR"}
    parts = [by_plan_and_tax(columns_of(each)) for each in chunks]
    parts += [by_country(columns_of(each).documents, countries) for each in chunks]
    found = added(parts)
    one, two = (next(row for row in found["by_plan"] if row["plan"] == name) for name in ("one", "two"))
    exact = {"7.01": "7.02", "123456789012345678901234567890.01": "123456789012345678901234567890.02"}[huge]
    assert (one["net"], one["lines"], two["net"], two["lines"]) == (exact, 3, "3.05", 2)
    assert found["by_plan"][0]["plan"] == "one"  # most money first
    [tax] = found["by_tax"]
    assert (tax["amount"], tax["documents"]) == ("3", 5)  # four times 1.00, one taken back
    assert {row["country"]: row["net"] for row in found["by_country"]} == {"DE": huge, "FR": "3.06"}
