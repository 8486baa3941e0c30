"""What of an invoice of elsewhere is filled in here, who its seller is, and what tables say of it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing.einvoice.issued import (
    buyer_form,
    customer_of,
    document_of,
    is_party,
    issue_form,
    numbered,
)
from billing.einvoice.model import Address, Delivery, Identifier, Invoice, Party, Payment, Period
from billing.errors import InvalidInput

TODAY = date(2026, 12, 15)
EXAMPLES = Path(__file__).parents[3] / "examples" / "invoices"


def form(name: str = "invoice", **changes: Any) -> dict[str, Any]:
    given = json.loads((EXAMPLES / f"{name}.json").read_text("utf-8"))
    del given["number"]
    return given | changes


def invoice(name: str = "invoice", **changes: Any) -> Invoice:
    return numbered(issue_form(form(name, **changes), TODAY), "RE-1")


def test_what_is_left_out_is_filled_in_and_nothing_else_is_touched() -> None:
    given = form()
    del given["issued_on"]
    given["payment"].pop("reference")
    before = json.dumps(given)
    kept = issue_form(given, TODAY)
    assert json.dumps(given) == before, "what came in is not changed"
    made = numbered(kept, "RE-2026-000007")
    assert (made.number, made.issued_on) == ("RE-2026-000007", TODAY)
    assert made.payment is not None
    assert made.payment.reference == "RE-2026-000007"
    said = numbered(kept | {"payment": {**given["payment"], "reference": "K-4711"}}, "RE-2026-000007")
    assert said.payment == replace(made.payment, reference="K-4711"), "what was said stays"
    whole = Invoice.from_json(kept)
    assert replace(made, number=whole.number, payment=whole.payment) == whole


def test_a_credit_note_pays_nothing_so_it_gets_no_reference() -> None:
    note = invoice("credit-note")
    assert note.payment == Payment(code="97", text="Set off against open invoices")


def test_other_levels_of_factur_x_become_the_standard() -> None:
    made = invoice(profile="urn:cen.eu:en16931:2017#compliant#urn:factur-x.eu:1p0:basic")
    assert made.profile == "urn:cen.eu:en16931:2017"


def test_every_bad_place_is_named_at_once() -> None:
    wrong = form(type_code="381", issued_on="2027-01-01", profile="urn:x", due_on="1899-12-31")
    wrong["totals"] |= {"gross": "-1.00", "rounding": "0.01"}
    with pytest.raises(InvalidInput) as refused:
        issue_form(wrong, TODAY)
    assert [one.pointer for one in refused.value.errors] == [
        "/issued_on", "/profile", "/preceding", "/totals/gross", "/totals/rounding", "/due_on",
    ]  # fmt: skip
    assert "(BT-2)" in refused.value.errors[0].detail
    for number in ("RE-1", "", 7):
        with pytest.raises(InvalidInput) as refused:
            issue_form(form(number=number), TODAY)
        assert [one.pointer for one in refused.value.errors] == ["/number"]
    with pytest.raises(InvalidInput):
        issue_form([], TODAY)


SELLER = Party("Nordwind Cloud GmbH", Address("DE"), vat_id="DE318204776", tax_number="60/118/04776")


@pytest.mark.parametrize(
    ("changes", "is_he"),
    [
        ({}, True),
        ({"vat_id": "de 318 204 776", "name": "Nordwind"}, True),  # whatever he calls himself
        ({"vat_id": "DE1"}, False),
        ({"vat_id": None, "name": "Nordwind"}, True),  # by his tax number
        ({"vat_id": None, "tax_number": "1"}, False),
        ({"vat_id": None, "tax_number": None}, True),
        ({"vat_id": None, "tax_number": None, "name": "NORDWIND  cloud gmbh "}, True),
        ({"vat_id": None, "tax_number": None, "name": "Nordwind"}, False),
    ],
)
def test_a_seller_is_known_by_his_tax_ids_before_his_name(changes: dict[str, Any], is_he: bool) -> None:
    assert is_party(replace(SELLER, **changes), SELLER) is is_he


def test_the_customer_is_the_number_that_the_invoice_says_else_the_name() -> None:
    made = invoice()
    assert customer_of(made) == "Hafenkontor Logistik GmbH"
    assert customer_of(replace(made, buyer=replace(made.buyer, ids=(Identifier(" K-1 "),)))) == "K-1"
    assert len(customer_of(replace(made, buyer=replace(made.buyer, name="x" * 300)))) == 256
    shown = buyer_form(made, "K-1", "en")
    assert (shown["code"], shown["country"], shown["address"]["city"], shown["language"]) == (
        "K-1", "DE", "Hamburg", "en",
    )  # fmt: skip
    assert "vat_id" not in shown


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_tables_add_up_as_the_invoice_does(path: Path) -> None:
    made = invoice(path.stem)
    document = document_of(made, "K-1", "Europe/Berlin", None)
    lines = sum((line.amount for line in document.lines), Decimal(0))
    assert document.net == lines - sum((one.amount for one in document.allowances), Decimal(0))
    assert document.gross == document.net + document.tax
    assert document.due == document.gross - document.prepaid == made.totals.due
    assert document.tax == sum((one.amount for one in document.taxes), Decimal(0))
    assert document.type == ("credit_note" if path.stem == "credit-note" else "invoice")


def test_periods_are_local_days_of_the_line_else_the_invoice_else_the_delivery_else_its_date() -> None:
    made = invoice()
    (line, *_) = made.lines

    def period(**changes: Any) -> tuple[datetime, datetime]:
        own = replace(line, period=changes.pop("own", None))
        one = document_of(replace(made, lines=(own,), **changes), "K-1", "Europe/Berlin", None).lines[0]
        return one.start, one.end

    october = (datetime(2026, 9, 30, 22, tzinfo=UTC), datetime(2026, 10, 31, 23, tzinfo=UTC))  # summer, then winter
    assert period(own=Period(date(2026, 10, 1), date(2026, 10, 31)), period=None) == october
    assert period() == october, "the invoice's"
    assert period(own=Period(None, date(2026, 11, 2))) == (
        datetime(2026, 11, 1, 23, tzinfo=UTC), datetime(2026, 11, 2, 23, tzinfo=UTC),
    )  # fmt: skip
    delivered = Delivery(delivered_on=date(2026, 11, 3))
    assert period(period=None, delivery=delivered)[0] == datetime(2026, 11, 2, 23, tzinfo=UTC)
    assert period(period=None, delivery=None)[0] == datetime(2026, 10, 31, 23, tzinfo=UTC), "of 1 November"
