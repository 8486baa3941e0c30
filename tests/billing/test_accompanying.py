"""What an accompanying document may say: parts by type, exact sums, days, sizes; every mistake by its place."""

from __future__ import annotations

import copy
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from billing.accompanying import Accompanying, Statement, StatementEntry, closing_of, usage_sums
from billing.errors import InvalidInput

FOLDER = Path(__file__).parents[2] / "examples" / "documents"


def form_of(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def pointers(form: Any) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        Accompanying.from_json(form)
    return [one.pointer for one in caught.value.errors]


def changed(name: str, **changes: Any) -> dict[str, Any]:
    """The example with values at paths (`reminder__items__0__open`) set; None takes a key away."""
    form: Any = copy.deepcopy(form_of(name))
    for path, value in changes.items():
        place: Any = form
        *steps, last = path.split("__")
        for step in steps:
            place = place[int(step)] if isinstance(place, list) else place[step]
        if value is None:
            del place[last]
        else:
            place[int(last) if isinstance(place, list) else last] = value
    return form


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda one: one.stem)
def test_an_example_is_read_and_written_as_it_is(path: Path) -> None:
    form = json.loads(path.read_text("utf-8"))
    document = Accompanying.from_json(form)
    assert Accompanying.from_json(document.to_json()) == document


@pytest.mark.parametrize(
    ("form", "pointer"),
    [
        (changed("account-statement", statement__closing="91.01"), "/statement/closing"),
        (changed("account-statement", statement__opening="487.275"), "/statement/opening"),
        (changed("account-statement", statement__entries__2__amount="119.00"), "/statement/entries/2/amount"),
        (changed("account-statement", statement__entries__0__booked_on="2026-09-30"), "/statement/entries/0/booked_on"),
        (changed("account-statement", period=None), "/period"),
        (changed("account-statement", currency="EURO"), "/currency"),
        (changed("account-statement", statement=None), "/statement"),
        (changed("account-statement", statement__opening="1E+999999"), "/statement/opening"),
        (changed("account-statement", statement__opening="NaN"), "/statement/opening"),
        (changed("reminder", reminder__total="590.44"), "/reminder/total"),
        (changed("reminder", reminder__level=4), "/reminder/level"),
        (changed("reminder", reminder__level=True), "/reminder/level"),
        (changed("reminder", reminder__items__1__open="1210.01"), "/reminder/items/1/open"),
        (changed("reminder", reminder__items__1__open="0"), "/reminder/items/1/open"),
        (changed("reminder", reminder__items__1__due_on="2026-11-02"), "/reminder/items/1/due_on"),
        (changed("reminder", reminder__due_on="2026-11-01"), "/reminder/due_on"),
        (changed("reminder", reminder__charges__0__amount="-5.00"), "/reminder/charges/0/amount"),
        (changed("reminder", reminder__items=[], reminder__total="12.16"), "/reminder/items"),
        (changed("credit-statement", total="14.02"), "/total"),
        (changed("credit-statement", lines__0__amount=None), "/lines/0/amount"),
        (changed("delivery-note", lines__0__price="1.00"), "/lines/0"),
        (changed("delivery-note", payment={"code": "58"}), "/payment"),
        (changed("usage-record", usage__0__day="2026-11-01"), "/usage/0/day"),
        (changed("usage-record", usage__0__quantity="0.0000000000001"), "/usage/0/quantity"),
        (changed("usage-record", usage__0__quantity=1.5), "/usage/0/quantity"),
        (changed("usage-record", usage__0__meter="x" * 2_001), "/usage/0/meter"),
        (changed("usage-record", refers_to__0__issued_on="2026-11-03"), "/refers_to/0/issued_on"),
        (changed("usage-record", lines=[{"name": "x"}]), "/lines"),
        (changed("usage-record", usage=[{"meter": "x", "quantity": "1"}] * 20_001), "/usage"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(form: Any, pointer: str) -> None:
    assert pointers(form)[0] == pointer  # a sum that it changes is named behind it


def test_several_mistakes_are_told_at_once() -> None:
    form = changed("reminder", reminder__total="1.00", reminder__items__0__open="0", currency="XXX")
    assert set(pointers(form)) == {"/currency", "/reminder/items/0/open", "/reminder/total"}


cents = st.integers(-(10**28) + 1, 10**28 - 1)  # 26 digits before the point: a sum needs more than the usual 28


@given(opening=cents, moved=st.lists(cents, max_size=20))
@example(opening=10**28 - 1, moved=[10**28 - 1] * 11)
def test_opening_and_entries_are_the_closing_to_the_last_digit(opening: int, moved: list[int]) -> None:
    def amount(value: int) -> Decimal:
        return Decimal(f"{value}e-2")  # the constructor is exact, arithmetic is not

    entries = tuple(StatementEntry(date(2026, 10, 1), "other", amount(one)) for one in moved)
    assert closing_of(Statement(amount(opening), entries)) == amount(opening + sum(moved))


def test_sums_of_usage_are_by_meter_and_unit() -> None:
    record = Accompanying.from_json(form_of("usage-record"))
    assert usage_sums(record.usage) == {
        ("API-Anfragen", "Anfragen"): Decimal(50505),
        ("Speicher", "GB"): Decimal("499.535"),
        ("Aktive Nutzer", "Personen"): Decimal(37),
    }


@pytest.mark.parametrize(
    ("form", "pointer"),
    [
        (changed("credit-account", credit__closing="371.01"), "/credit/closing"),
        (changed("credit-account", credit__opening="120.005"), "/credit/opening"),
        (changed("credit-account", credit__entries__2__amount="312.40"), "/credit/entries/2/amount"),
        (changed("credit-account", credit__entries__0__amount="-25.00"), "/credit/entries/0/amount"),
        (changed("credit-account", credit__entries__0__booked_on="2026-11-01"), "/credit/entries/0/booked_on"),
        (changed("credit-account", period=None), "/period"),
        (changed("credit-account", type="delivery_note"), "/credit"),
    ],
)
def test_what_is_wrong_with_credit_is_named_by_its_place(form: Any, pointer: str) -> None:
    assert pointer in pointers(form)


def test_a_statement_of_credit_is_about_what_is_held() -> None:
    assert Accompanying.from_json(form_of("credit-account")).amount == Decimal("371.00")
    assert Accompanying.from_json(form_of("credit-statement")).amount == Decimal("14.01")
