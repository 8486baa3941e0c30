"""SEPA direct debit: what a mandate and a creditor identifier look like, and when an invoice is collected by them."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from billing.einvoice.addresses import check_seller
from billing.einvoice.debits import debit_of, valid_creditor_id
from billing.einvoice.model import Debit
from billing.errors import InvalidInput
from billing.master import MasterData

CREDITOR = "DE98ZZZ09999999999"
MANDATE = {"reference": "M-2026-7", "iban": "DE02 1203 0000 0000 2020 51", "signed_on": "2026-01-31"}
DAY = date(2026, 1, 31)


def mistakes_of(mandate: Any) -> list[str]:
    try:
        MasterData.start({}).apply({"customer": {"code": "c", "mandate": mandate}})
    except InvalidInput as error:
        return [one.pointer for one in error.errors]
    return []


def test_the_check_digits_of_a_creditor_identifier_leave_out_its_business_code() -> None:
    assert [valid_creditor_id(text) for text in (CREDITOR, "DE98A0109999999999", "AT61ZZZ01234567890")] == [True] * 3
    wrong = ("DE97ZZZ09999999999", "DE98ZZZ09999999998", "DE98ZZZ", "de98zzz09999999999", "")
    assert [valid_creditor_id(text) for text in wrong] == [False] * 5
    check_seller({"creditor_id": "DE98 ZZZ0 9999 9999 99"})
    with pytest.raises(InvalidInput) as found:
        check_seller({"creditor_id": "DE97ZZZ09999999999"})
    assert [one.pointer for one in found.value.errors] == ["/creditor_id"]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"reference": None}, "reference"),
        ({"reference": "x" * 36}, "reference"),
        ({"reference": "Ärger"}, "reference"),
        ({"iban": "DE03 1203 0000 0000 2020 51"}, "iban"),
        ({"signed_on": "31.1.2026"}, "signed_on"),
        ({"signed_on": "2026-02-30"}, "signed_on"),
        ({"holder": "x"}, "holder"),
    ],
)
def test_a_mandate_no_bank_would_take_is_refused_by_its_place(change: dict[str, Any], place: str) -> None:
    assert mistakes_of(MANDATE) == []
    assert mistakes_of({**MANDATE, **change}) == [f"/customer/mandate/{place}"]


def test_a_mandate_is_taken_away_by_null() -> None:
    master = MasterData.start({}).apply({"customer": {"code": "c", "mandate": MANDATE}})
    assert master.customers["c"].form["mandate"] == MANDATE
    assert master.apply({"customer": {"code": "c", "mandate": None}}).customers["c"].form["mandate"] is None


def test_an_invoice_is_collected_where_all_that_a_debit_needs_is_there() -> None:
    form, due = {"mandate": MANDATE}, Decimal("5.00")
    assert debit_of(form, CREDITOR, "EUR", due, DAY) == Debit("M-2026-7", CREDITOR, "DE02120300000000202051")
    assert debit_of(form, None, "EUR", due, DAY) is None
    assert debit_of(form, CREDITOR, "CHF", due, DAY) is None
    assert debit_of(form, CREDITOR, "EUR", Decimal("0.00"), DAY) is None
    assert debit_of(form, CREDITOR, "EUR", due, date(2026, 1, 30)) is None  # not signed yet
    assert debit_of({"mandate": None}, CREDITOR, "EUR", due, DAY) is None
