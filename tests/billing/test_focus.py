"""Charges as FOCUS 1.2: valid by the specification's rules, and their sum is what a document asks for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from billing.documents import Allowance, Document, Line, TaxTotal
from billing.focus import COLUMNS, Account, Row, csv_line, document_rows, harmless, line_row
from tests.focus_validator import read, violations

START, END = datetime(2026, 4, 30, 22, tzinfo=UTC), datetime(2026, 5, 31, 22, tzinfo=UTC)
ACCOUNT = Account("acme", "ACME GmbH", "Seller AG", "EUR", START, END, "RE-2026-000001")
D = Decimal


def line(**terms: object) -> Line:
    given: dict[str, object] = {
        "subscription": "s1", "charge": "storage", "start": START, "end": END, "quantity": D("12"), "amount": D("1.20"),
        "tax_category": "S", "tax_percent": D("19"), "plan": "basic", "name": "Storage", "unit": "GB",
        "unit_price": D("0.10"),
    }  # fmt: skip
    return Line(**(given | terms))  # type: ignore[arg-type]


LINES = (
    line(),
    line(quantity=D("3.333333333333"), amount=D("1.11"), unit_price=D("0.333333333333")),
    line(quantity=D("1500"), amount=D("9.00"), allowance=D("1.00"), unit_price=None, when={"region": "eu"}),
    line(quantity=D("-2"), amount=D("-0.20"), correction=True),
    line(quantity=D("0"), amount=D("0.00"), unit=""),
    line(charge="base", kind="recurring", quantity=D("1"), amount=D("29.00"), unit_price=D("29.00"), name="Base fee"),
    line(charge="setup", kind="one_off", quantity=D("1"), amount=D("50.00"), unit_price=None, plan="", subscription=""),
    line(charge="min", kind="minimum", quantity=D("1"), amount=D("10.00"), unit_price=None),
    line(amount=D("10.08"), gross=D("12.00"), unit_price=D("1.00")),
)


def document(**terms: object) -> Document:
    net = sum((one.amount for one in LINES), D(0)) - D("5.00")
    tax = D("20.90")
    given: dict[str, object] = {
        "customer": "acme", "type": "invoice", "currency": "EUR", "date": date(2026, 6, 1), "lines": LINES,
        "allowances": (Allowance("promotional", D("5.00"), "S", D("19")),),
        "taxes": (TaxTotal("S", D("19"), net, tax), TaxTotal("E", D("0"), D(0), D(0))),
        "net": net, "tax": tax, "gross": net + tax, "due": net + tax - D("7.00"), "prepaid": D("7.00"),
    }  # fmt: skip
    return Document(**(given | terms))  # type: ignore[arg-type]


def through_csv(rows: list[Row]) -> list[dict[str, str | None]]:
    return read("".join([csv_line(COLUMNS), *(csv_line([row[name] for name in COLUMNS]) for row in rows)]))


@pytest.mark.parametrize("kind", ["invoice", "credit_note"])
def test_a_document_is_valid_focus_and_adds_up_to_what_is_due(kind: str) -> None:
    made = document(type=kind)
    rows = through_csv(list(document_rows(made, ACCOUNT)))
    assert violations(rows) == []
    total = sum(D(row["BilledCost"] or "0") for row in rows)
    assert total == (made.due if kind == "invoice" else -made.due)
    assert {row["InvoiceId"] for row in rows} == {"RE-2026-000001"}
    assert all((row["ChargeClass"] == "Correction") == (kind == "credit_note") for row in rows[:3])
    assert [row["ChargeCategory"] for row in rows[-3:]] == ["Credit", "Tax", "Credit"]


def test_a_unit_price_is_stated_where_it_gives_the_list_cost_to_the_digit() -> None:
    exact, rounded, tiered, *_ = (line_row(one, ACCOUNT) for one in LINES)
    assert (exact["ListUnitPrice"], exact["PricingQuantity"], exact["PricingUnit"]) == ("0.1", "12", "GB")
    assert rounded["ListCost"] == "1.111111111109888888888889"  # what was priced; 1.11 is what is billed
    assert rounded["BilledCost"] == "1.11"
    assert (tiered["PricingQuantity"], tiered["PricingUnit"], tiered["ListUnitPrice"]) == ("1", "Charges", "10")
    assert (tiered["ConsumedQuantity"], tiered["ConsumedUnit"]) == ("1500", "GB")
    assert (tiered["ContractedCost"], tiered["BilledCost"]) == ("9", "9")
    assert tiered["SkuPriceId"] == "basic/1/storage/region=eu"


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("BilledCost", None, "BilledCost: MUST NOT be null"),
        ("ChargeCategory", "Fee", "ChargeCategory: not an allowed value: Fee"),
        ("ListCost", "7", "ListCost: ListUnitPrice x PricingQuantity MUST match it"),
        ("ListUnitPrice", None, "ListUnitPrice: MUST NOT be null for Usage"),
        ("PricingUnit", None, "PricingUnit: null exactly where PricingQuantity is"),
        (
            "ChargePeriodStart",
            "2026-05-01T00:00:00+00:00",
            "ChargePeriodStart: no UTC instant: 2026-05-01T00:00:00+00:00",
        ),
        ("EffectiveCost", "1,20", "EffectiveCost: no number of the numeric format: 1,20"),
        ("ConsumedQuantity", None, "ConsumedQuantity: MUST NOT be null for Usage"),
        ("SubAccountId", "N/A", "SubAccountId: a placeholder stands for null"),
    ],
)
def test_the_validator_finds_what_is_broken(column: str, value: str | None, rule: str) -> None:
    row = line_row(LINES[0], ACCOUNT)
    assert violations(through_csv([row])) == []
    row[column] = value
    assert f"row 0: {rule}" in violations(through_csv([row]))


def test_a_missing_mandatory_column_is_found() -> None:
    (row,) = through_csv([line_row(LINES[0], ACCOUNT)])
    del row["ServiceName"]
    assert "column ServiceName has to be present" in violations([row])


def test_csv_quotes_what_it_must_and_keeps_spreadsheets_from_running_texts() -> None:
    assert csv_line(['a"b', "c,d", "e\r\nf", None, "", "g"]) == '"a""b","c,d","e\r\nf",,"",g\r\n'
    for text in ("=1+1", "+1", "-1", "@sum", "\tx", "\rx"):
        assert harmless(text) == f"'{text}"
    assert harmless("1-1") == "1-1"
    assert harmless(None) is None


def test_a_line_that_is_taken_back_is_the_same_with_its_sign_turned() -> None:
    for one in LINES:
        there, back = line_row(one, ACCOUNT), line_row(one, ACCOUNT, sign=-1, is_correction=True)
        for name in ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost"):
            assert D(there[name] or "0") == -D(back[name] or "0")
        assert there["ListUnitPrice"] == back["ListUnitPrice"]
    assert line_row(replace(LINES[0], name=""), ACCOUNT)["ChargeDescription"] == "storage"
