"""The JSON schema of an invoice takes what the reader takes, and each member names its business term."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from maximal import EVERYTHING, OUTSIDE, changed

from billing.einvoice.model import Invoice
from billing.einvoice.terms import TERMS, invoice_schema
from billing.errors import InvalidInput


def members(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, member in schema.get("properties", {}).items():
        inner = f"{path}.{name}" if path else name
        yield inner, member
        yield from members(member.get("items", member), inner)


def test_the_schema_is_one_and_takes_every_term() -> None:
    schema = invoice_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for form in (EVERYTHING, OUTSIDE):
        jsonschema.validate(form, schema)


@pytest.mark.parametrize(
    ("pointer", "value"),
    [("/number", ...), ("/lines/0/quantity", "1,5"), ("/lines/0/quantity", 1.5), ("/taxes/0/category", "X"),
     ("/seller/nane", "x"), ("/lines", {}), ("/buyer/address", ...), ("/payment/code", "")],
)  # fmt: skip
def test_what_the_schema_refuses_the_reader_refuses_too(pointer: str, value: object) -> None:
    form = changed(EVERYTHING, {pointer: value})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(form, invoice_schema())
    with pytest.raises(InvalidInput):
        Invoice.from_json(form)


def test_every_term_of_the_table_stands_at_a_member_and_no_number_twice() -> None:
    found = dict(members(invoice_schema()))
    assert set(TERMS) <= set(found)
    for path, term in TERMS.items():
        assert found[path]["description"] == term, path
        assert re.fullmatch(r"BT-\d{1,3}(-[12])?", term)
    assert len(set(TERMS.values())) == len(TERMS)


@pytest.mark.parametrize(
    ("path", "term"),
    [("number", "BT-1"), ("due_on", "BT-9"), ("seller.vat_id", "BT-31"), ("buyer.address.country", "BT-55"),
     ("payment.transfer.iban", "BT-84"), ("totals.due", "BT-115"), ("taxes.base", "BT-116"), ("lines.net", "BT-131"),
     ("lines.price", "BT-146"), ("lines.base_quantity", "BT-149"), ("lines.tax.category", "BT-151"),
     ("lines.attributes.value", "BT-161"), ("delivery.address.line_three", "BT-165")],
)  # fmt: skip
def test_the_numbers_are_those_of_the_standard(path: str, term: str) -> None:
    assert TERMS[path] == term


@pytest.mark.parametrize(
    ("changes", "pointer", "detail"),
    [
        ({"/buyer/address": ...}, "/buyer/address", "is needed (BG-8)"),
        ({"/lines/0/quantity": "1,5"}, "/lines/0/quantity", "'1,5' is not a decimal number (BT-129)"),
        ({"/taxes/0/category": "X"}, "/taxes/0/category", "must be one of S, Z, E, AE, K, G, O, L, M, B (BT-118)"),
        ({"/buyer/name": " "}, "/buyer/name", "is empty; leave it out instead (BT-44)"),
        ({"/groups": "x"}, "/groups", "must be a list"),
    ],
)
def test_an_error_names_the_business_term_at_its_place(changes: dict[str, object], pointer: str, detail: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Invoice.from_json(changed(EVERYTHING, changes))
    assert [(one.pointer, one.detail) for one in caught.value.errors] == [(pointer, detail)]
    assert f"{pointer}: {detail}" in caught.value.detail
