"""The JSON form of an invoice as a JSON schema, with the number of each business term of EN 16931.

The schema is made from the dataclasses of `model.py`, so it cannot differ from what is read; the table below owns the
numbers. What has none is for people (headings, usage records, amounts with tax) and stands in no XML.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from datetime import date
from decimal import Decimal
from functools import cache
from typing import Any, Literal, Union, cast, get_args, get_origin

from billing.einvoice.model import ITEMS_MAX, Invoice, fields_of

SCHEMA_ID = "urn:cloudbilling:invoice:1"
ISSUE_SCHEMA_ID = "urn:cloudbilling:invoice-to-issue:1"
_ADDRESS = "street line_two city post_code subdivision country line_three"
_ALLOWANCE = "amount base percent tax_category tax_percent reason reason_code"
# Names in the order of their numbers, from the first number on.
_RUNS: tuple[tuple[str, int, str], ...] = (
    ("", 1, "number issued_on type_code"),
    ("", 5, "currency tax_currency tax_point_on tax_point_code due_on buyer_reference project contract order"),
    ("", 14, "sales_order receiving_advice despatch_advice tender invoiced_object buyer_accounting_reference"),
    ("", 20, "payment_terms notes.code notes.text process profile preceding.number preceding.issued_on"),
    ("seller.", 27, "name trading_name ids legal_id vat_id tax_number legal_info endpoint"),
    ("seller.address.", 35, _ADDRESS.removesuffix(" line_three")),
    ("seller.contact.", 41, "name phone email"),
    ("buyer.", 44, "name trading_name ids legal_id vat_id endpoint"),
    ("buyer.address.", 50, _ADDRESS.removesuffix(" line_three")),
    ("buyer.contact.", 56, "name phone email"),
    ("payee.", 59, "name id legal_id"),
    ("tax_representative.", 62, "name vat_id"),
    ("tax_representative.address.", 64, _ADDRESS.removesuffix(" line_three")),
    ("delivery.", 70, "name location delivered_on"),
    ("period.", 73, "start end"),
    ("delivery.address.", 75, _ADDRESS.removesuffix(" line_three")),
    ("payment.", 81, "code text reference transfer.iban transfer.name transfer.bic card.pan_last card.holder"),
    ("payment.debit.", 89, "mandate creditor_id iban"),
    ("allowances.", 92, _ALLOWANCE),
    ("charges.", 99, _ALLOWANCE),
    ("totals.", 106, "lines allowances charges net tax tax_in_tax_currency gross prepaid rounding due"),
    ("taxes.", 116, "base amount category percent reason reason_code"),
    ("attachments.", 122, "ref text uri bytes"),
    ("lines.", 126, "id note object quantity unit net order_line accounting_reference period.start period.end"),
    ("lines.allowances.", 136, "amount base percent reason reason_code"),
    ("lines.charges.", 141, "amount base percent reason reason_code"),
    ("lines.", 146, "price discount gross_price base_quantity - tax.category tax.percent name description"),
    ("lines.", 155, "seller_sku buyer_sku gtin classes origin attributes.name attributes.value"),
    ("seller.address.", 162, "line_three"),
    ("buyer.address.", 163, "line_three"),
    ("tax_representative.address.", 164, "line_three"),
    ("delivery.address.", 165, "line_three"),
)
TERMS: dict[str, str] = {
    prefix + name: f"BT-{first + place}"
    for prefix, first, names in _RUNS
    for place, name in enumerate(names.split())
    if name != "-"  # BT-150: the unit of the line, always
} | {"attachments.mime": "BT-125-1", "attachments.name": "BT-125-2"}
GROUPS: dict[str, str] = {
    "notes": "BG-1", "preceding": "BG-3", "seller": "BG-4", "seller.address": "BG-5", "seller.contact": "BG-6",
    "buyer": "BG-7", "buyer.address": "BG-8", "buyer.contact": "BG-9", "payee": "BG-10", "tax_representative": "BG-11",
    "tax_representative.address": "BG-12", "delivery": "BG-13", "period": "BG-14", "delivery.address": "BG-15",
    "payment": "BG-16", "payment.transfer": "BG-17", "payment.card": "BG-18", "payment.debit": "BG-19",
    "allowances": "BG-20", "charges": "BG-21", "totals": "BG-22", "taxes": "BG-23", "attachments": "BG-24",
    "lines": "BG-25", "lines.period": "BG-26", "lines.allowances": "BG-27", "lines.charges": "BG-28",
    "lines.tax": "BG-30", "lines.attributes": "BG-32",
}  # fmt: skip
PLACES_MAX = 20  # of one unprintable character


def term_of(pointer: str) -> str:
    """The business term or group at a JSON pointer: `/lines/3/net` is BT-131; "" where there is none."""
    path = ".".join(part for part in pointer.split("/") if part and not part.isdigit())
    return TERMS.get(path) or GROUPS.get(path, "")


def with_term(detail: str, pointer: str) -> str:
    """The words of an error with the number of the term that it is about, unless they name one."""
    term = term_of(pointer)
    return detail if not term or re.search(r"\bB[TG]-\d", detail) else f"{detail} ({term})"


def places_of(invoice: Invoice, characters: str) -> list[str]:
    """Pointers to the texts that have one of the characters, at most `PLACES_MAX`."""
    return places_in(invoice.to_json(), characters)


def places_in(form: object, characters: str) -> list[str]:
    """The same of any JSON form."""
    found: list[str] = []

    def walk(form: object, pointer: str) -> None:
        if isinstance(form, str):
            if len(found) < PLACES_MAX and any(one in form for one in characters):
                found.append(pointer)
        elif isinstance(form, dict):
            for key, value in cast(dict[str, object], form).items():
                walk(value, f"{pointer}/{key}")
        elif isinstance(form, list):
            for place, value in enumerate(cast(list[object], form)):
                walk(value, f"{pointer}/{place}")

    walk(form, "")
    return found


_NUMBER = {"type": ["string", "integer"], "pattern": r"^-?[0-9]+(\.[0-9]+)?$"}


@cache
def _schema() -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "An invoice, credit note or corrected invoice in the terms of EN 16931",
        **_of(Invoice, "", TERMS),
    }


def schema_of(kind: type, said: Mapping[str, str]) -> dict[str, Any]:
    """The schema of another dataclass that `model.read` takes; `said` describes members by their path (`lines.net`)."""
    return _object(kind, "", said)


def invoice_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of the form that `Invoice.from_json` reads; each member names its term."""
    return _schema()


def issue_schema() -> dict[str, Any]:
    """The same of the form of an invoice that gets its number here: without number, and with or without a date."""
    whole = _schema()
    left = {name: member for name, member in whole["properties"].items() if name != "number"}
    needed = [name for name in whole["required"] if name not in ("number", "issued_on")]
    return {**whole, "$id": ISSUE_SCHEMA_ID, "required": needed, "properties": left}


def _of(annotation: object, path: str, said: Mapping[str, str]) -> dict[str, Any]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        inner = [choice for choice in get_args(annotation) if choice is not type(None)]
        return _of(inner[0], path, said)
    if origin is tuple:
        return {"type": "array", "maxItems": ITEMS_MAX, "items": _of(get_args(annotation)[0], path, said)}
    if origin is Literal:
        return {"enum": list(get_args(annotation))}
    if isinstance(annotation, type) and is_dataclass(annotation):
        return _object(annotation, path, said)
    if annotation is Decimal:
        return {**_NUMBER, "description": "exact decimal, as text"}
    if annotation is date:
        return {"type": "string", "format": "date"}
    if annotation is bytes:
        return {"type": "string", "contentEncoding": "base64"}
    return {"type": "integer"} if annotation is int else {"type": "string", "minLength": 1}


def _object(kind: type, path: str, said: Mapping[str, str]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    needed: list[str] = []
    for name, annotation, required in fields_of(kind):
        inner = f"{path}.{name}" if path else name
        member = _of(annotation, inner, said)
        if inner in said:
            member = {**member, "description": said[inner]}
        members[name] = member
        if required:
            needed.append(name)
    return {"type": "object", "additionalProperties": False, "required": needed, "properties": members}
