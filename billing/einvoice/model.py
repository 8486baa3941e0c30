"""The invoice as EN 16931 sees it: business terms as a value, and its JSON form.

Owns the names of the terms and reading them with a JSON pointer for every bad field. What a term must contain is
`billing/einvoice/checks.py`; how it is written is a format's module (`cii.py`). Amounts are `Decimal` in major
currency units; dates are inclusive, as the standard wants them; quantities carry the sign, prices never do.
"""

from __future__ import annotations

import base64
import binascii
import re
import sys
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from billing.documents import TaxCategory
from billing.errors import FieldError, InvalidInput

EN_16931 = "urn:cen.eu:en16931:2017"  # BT-24 of the core and of Factur-X's profile EN 16931
ERRORS_MAX = 100  # of one reading; a file that is wholly wrong needs no longer list
ITEMS_MAX = 100_000  # of one list: lines, attributes
DIGITS_MAX, DECIMALS_MAX = 18, 30  # before and behind the point of one number: 1E+999 could not be computed with
NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # XML 1.0, production 2


@dataclass(frozen=True)
class Identifier:
    """An id with the scheme that gives it meaning (ISO 6523 or EAS code), where there is one."""

    id: str
    scheme: str | None = None


@dataclass(frozen=True)
class Address:
    """BG-5, BG-8, BG-12, BG-15. Only the country is needed by the standard (BR-09, BR-11): an e-invoice without it is
    refused, but Factur-X MINIMUM has no address of the buyer, and must be readable."""

    country: str | None = None
    street: str | None = None
    line_two: str | None = None
    line_three: str | None = None
    city: str | None = None
    post_code: str | None = None
    subdivision: str | None = None


@dataclass(frozen=True)
class Contact:
    """BG-6, BG-9."""

    name: str | None = None
    phone: str | None = None
    email: str | None = None


@dataclass(frozen=True)
class Party:
    """Seller (BG-4) or buyer (BG-7); `ids[0]` of a buyer is its customer number (BT-46)."""

    name: str
    address: Address
    trading_name: str | None = None
    ids: tuple[Identifier, ...] = ()
    legal_id: Identifier | None = None
    legal_info: str | None = None
    vat_id: str | None = None
    tax_number: str | None = None
    endpoint: Identifier | None = None
    contact: Contact | None = None


@dataclass(frozen=True)
class Payee:
    """BG-10: who is paid, if not the seller."""

    name: str
    id: Identifier | None = None
    legal_id: Identifier | None = None


@dataclass(frozen=True)
class TaxRepresentative:
    """BG-11."""

    name: str
    vat_id: str
    address: Address


@dataclass(frozen=True)
class Delivery:
    """BG-13, BG-15: where to and when the supply was completed (BT-72)."""

    name: str | None = None
    location: Identifier | None = None
    delivered_on: date | None = None
    address: Address | None = None


@dataclass(frozen=True)
class Period:
    """BG-14, BG-26: first and last day, both inside; one of them may be left out."""

    start: date | None = None
    end: date | None = None


@dataclass(frozen=True)
class Note:
    """BG-1."""

    text: str
    code: str | None = None


@dataclass(frozen=True)
class Preceding:
    """BG-3: an invoice that this document corrects or credits."""

    number: str
    issued_on: date | None = None


@dataclass(frozen=True)
class Transfer:
    """BG-17."""

    iban: str
    name: str | None = None
    bic: str | None = None


@dataclass(frozen=True)
class Card:
    """BG-18."""

    pan_last: str
    holder: str | None = None


@dataclass(frozen=True)
class Debit:
    """BG-19. The standard asks for none of the parts; XRechnung does for the last two."""

    mandate: str | None = None
    creditor_id: str | None = None
    iban: str | None = None


@dataclass(frozen=True)
class Payment:
    """BG-16."""

    code: str
    text: str | None = None
    reference: str | None = None
    transfer: tuple[Transfer, ...] = ()
    card: Card | None = None
    debit: Debit | None = None


@dataclass(frozen=True)
class AllowanceCharge:
    """BG-20, BG-21 (with category and percent of tax) and BG-27, BG-28 (without). The amount is never negative."""

    amount: Decimal
    reason: str | None = None
    reason_code: str | None = None
    base: Decimal | None = None
    percent: Decimal | None = None
    tax_category: TaxCategory | None = None
    tax_percent: Decimal | None = None
    gross: Decimal | None = None  # with tax, where it is taken off prices that contain it; for people


@dataclass(frozen=True)
class Totals:
    """BG-22."""

    lines: Decimal
    net: Decimal
    gross: Decimal
    due: Decimal
    tax: Decimal | None = None
    allowances: Decimal | None = None
    charges: Decimal | None = None
    tax_in_tax_currency: Decimal | None = None
    prepaid: Decimal | None = None
    rounding: Decimal | None = None


@dataclass(frozen=True)
class Tax:
    """BG-23: one row of the tax table."""

    base: Decimal
    amount: Decimal
    category: TaxCategory
    percent: Decimal | None = None
    reason: str | None = None
    reason_code: str | None = None


@dataclass(frozen=True)
class Attachment:
    """BG-24."""

    ref: str
    text: str | None = None
    uri: str | None = None
    bytes: bytes | None = None
    mime: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class LineTax:
    """BG-30."""

    category: TaxCategory
    percent: Decimal | None = None


@dataclass(frozen=True)
class Classification:
    """BT-158 with its list."""

    code: str
    list: str
    version: str | None = None


@dataclass(frozen=True)
class Attribute:
    """BG-32."""

    name: str
    value: str


@dataclass(frozen=True)
class InvoiceLine:
    """BG-25. `net` = `quantity` x `price` / `base_quantity` - allowances + charges, exactly, to the cent.

    The last fields are for people: amount and unit price with tax, where the price contains it.
    """

    id: str
    quantity: Decimal
    unit: str
    net: Decimal
    price: Decimal
    tax: LineTax
    name: str
    note: str | None = None
    object: Identifier | None = None
    order_line: str | None = None
    accounting_reference: str | None = None
    period: Period | None = None
    allowances: tuple[AllowanceCharge, ...] = ()
    charges: tuple[AllowanceCharge, ...] = ()
    gross_price: Decimal | None = None
    discount: Decimal | None = None
    base_quantity: Decimal | None = None
    description: str | None = None
    seller_sku: str | None = None
    buyer_sku: str | None = None
    gtin: Identifier | None = None
    classes: tuple[Classification, ...] = ()
    origin: str | None = None
    attributes: tuple[Attribute, ...] = ()
    gross: Decimal | None = None
    price_with_tax: Decimal | None = None


RowKind = Literal["dimension", "tier", "included", "beyond", "package", "rated", "billed"]


@dataclass(frozen=True)
class RecordRow:
    """One row of a usage record: what a quantity or an amount is made of. Words are the layout's."""

    kind: RowKind
    label: str = ""  # names of the dimensions, number of the tier, number of the document
    value: str = ""  # values of the dimensions
    up_to: Decimal | None = None
    quantity: Decimal | None = None
    price: Decimal | None = None
    amount: Decimal | None = None


@dataclass(frozen=True)
class UsageRecord:
    """How one line came about; printed behind the invoice, not part of EN 16931."""

    line: str  # BT-126
    rows: tuple[RecordRow, ...] = ()
    exact: Decimal | None = None  # amount before it was rounded


@dataclass(frozen=True)
class LineGroup:
    """A heading over lines that belong together (a subscription); not part of EN 16931."""

    lines: tuple[str, ...]  # BT-126 in the order of the document
    subscription: str = ""
    plan: str = ""
    plan_version: int | None = None
    name: str = ""
    net: Decimal | None = None
    gross: Decimal | None = None  # where the price of each of its lines contains the tax
    customer: str = ""  # name of whose lines they are, where the invoice has those of several customers


@dataclass(frozen=True)
class Invoice:
    """An invoice, credit note or corrected invoice in the terms of EN 16931; the last fields are for people."""

    number: str
    issued_on: date
    type_code: str
    currency: str
    seller: Party
    buyer: Party
    totals: Totals
    taxes: tuple[Tax, ...]
    lines: tuple[InvoiceLine, ...]
    profile: str = EN_16931
    process: str | None = None
    tax_currency: str | None = None
    tax_point_on: date | None = None
    tax_point_code: str | None = None
    due_on: date | None = None
    buyer_reference: str | None = None
    project: str | None = None
    contract: str | None = None
    order: str | None = None
    sales_order: str | None = None
    receiving_advice: str | None = None
    despatch_advice: str | None = None
    tender: str | None = None
    invoiced_object: Identifier | None = None
    buyer_accounting_reference: str | None = None
    payment_terms: str | None = None
    notes: tuple[Note, ...] = ()
    preceding: tuple[Preceding, ...] = ()
    payee: Payee | None = None
    tax_representative: TaxRepresentative | None = None
    delivery: Delivery | None = None
    period: Period | None = None
    payment: Payment | None = None
    allowances: tuple[AllowanceCharge, ...] = ()
    charges: tuple[AllowanceCharge, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    groups: tuple[LineGroup, ...] = ()
    records: tuple[UsageRecord, ...] = ()
    timezone: str | None = None  # in which the periods are meant

    @staticmethod
    def from_json(form: object) -> Invoice:
        """Read the JSON form; raise `InvalidInput` with a pointer for every bad field."""
        from billing.einvoice.terms import with_term  # it reads the classes here, so not before they are there

        try:
            invoice = read(Invoice, form)
        except InvalidInput as error:
            told = [FieldError(one.pointer, with_term(one.detail, one.pointer)) for one in error.errors]
            raise InvalidInput("The invoice data are not valid: " + _first(told), errors=told) from error
        errors = list(_strangers(invoice))
        if errors:
            raise InvalidInput("The invoice data are not valid: " + _first(errors), errors=errors[:ERRORS_MAX])
        return invoice

    def to_json(self) -> dict[str, Any]:
        """The JSON form: decimals and dates as text, nothing that is empty."""
        return write(self)


def _strangers(invoice: Invoice) -> Iterator[FieldError]:
    """What is for people names the lines that there are: a page must never show fewer than the XML has."""
    lines = Counter(line.id for line in invoice.lines)
    for place, record in enumerate(invoice.records):
        if record.line not in lines:
            yield FieldError(f"/records/{place}/line", f"there is no line {record.line}")
    if invoice.groups and Counter(line for group in invoice.groups for line in group.lines) != lines:
        yield FieldError("/groups", "each line stands in one group, and nothing else does")


_Value = TypeVar("_Value")


def read(kind: type[_Value], form: object, pointer: str = "") -> _Value:
    """Read one dataclass of terms like those here from its JSON form; raise `InvalidInput` with every bad field."""
    errors: list[FieldError] = []
    value = _read(kind, form, pointer, errors)
    if errors:
        raise InvalidInput("The invoice data are not valid: " + _first(errors), errors=errors[:ERRORS_MAX])
    return cast(_Value, value)


def write(value: object) -> dict[str, Any]:
    """The JSON form of one such dataclass."""
    return cast(dict[str, Any], _write(value))


def _first(errors: list[FieldError]) -> str:
    return f"{errors[0].pointer or '/'}: {errors[0].detail}"


_FIELDS: dict[type, tuple[tuple[str, object, bool], ...]] = {}


def fields_of(kind: type) -> tuple[tuple[str, object, bool], ...]:
    """Name, annotation and whether it must be there, of each field; asked once per class."""
    found = _FIELDS.get(kind)
    if found is None:
        # {}: a field named `bytes` would hide the type
        hints = get_type_hints(kind, vars(sys.modules[kind.__module__]), {})
        members: tuple[Field[Any], ...] = fields(kind)
        found = tuple((member.name, cast(object, hints[member.name]), member.default is MISSING) for member in members)
        _FIELDS[kind] = found
    return found


def _read(annotation: object, value: object, pointer: str, errors: list[FieldError]) -> object:
    """A value of the annotated type, or None with an error noted; stops noting at the limit."""
    if len(errors) >= ERRORS_MAX:
        return None
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        inner = [choice for choice in get_args(annotation) if choice is not type(None)]
        return None if value is None else _read(inner[0], value, pointer, errors)
    if origin is tuple:
        return _read_list(get_args(annotation)[0], value, pointer, errors)
    if origin is Literal:
        if any(value == one and type(value) is type(one) for one in get_args(annotation)):  # true is not 1
            return value
        errors.append(FieldError(pointer, "must be one of " + ", ".join(str(one) for one in get_args(annotation))))
        return None
    if isinstance(annotation, type) and is_dataclass(annotation):
        return _read_object(annotation, value, pointer, errors)
    return _read_leaf(cast(object, annotation), value, pointer, errors)


def _read_list(item: object, value: object, pointer: str, errors: list[FieldError]) -> object:
    if not isinstance(value, list):
        errors.append(FieldError(pointer, "must be a list"))
        return ()
    items = cast(list[object], value)
    if len(items) > ITEMS_MAX:
        errors.append(FieldError(pointer, f"has more than {ITEMS_MAX} entries"))
        return ()
    return tuple(_read(item, one, f"{pointer}/{index}", errors) for index, one in enumerate(items))


def _read_object(kind: type, value: object, pointer: str, errors: list[FieldError]) -> object:
    if not isinstance(value, dict):
        errors.append(FieldError(pointer, "must be an object"))
        return None
    form = cast(Mapping[object, object], value)
    known = fields_of(kind)
    before = len(errors)
    for key in form.keys() - {name for name, _, _ in known}:
        escaped = str(key).replace("~", "~0").replace("/", "~1")
        errors.append(FieldError(f"{pointer}/{escaped}", "is not a known key"))
    values: dict[str, object] = {}
    for name, annotation, required in known:
        if name in form:
            values[name] = _read(annotation, form[name], f"{pointer}/{name}", errors)
            if required and form[name] is None:
                errors.append(FieldError(f"{pointer}/{name}", "is needed"))
        elif required:
            errors.append(FieldError(f"{pointer}/{name}", "is needed"))
    return kind(**values) if len(errors) == before else None


def _read_leaf(annotation: object, value: object, pointer: str, errors: list[FieldError]) -> object:
    try:
        if annotation is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if annotation is Decimal and isinstance(value, int) and not isinstance(value, bool):
            return Decimal(value)
        if not isinstance(value, str):
            errors.append(FieldError(pointer, "must be text" + (" (a decimal)" if annotation is Decimal else "")))
            return None
        if annotation is str:
            return _read_text(value, pointer, errors)
        if annotation is Decimal:
            number = Decimal(value)
            if not number.is_finite():
                raise InvalidOperation
            if number.adjusted() > DIGITS_MAX or cast(int, number.as_tuple().exponent) < -DECIMALS_MAX:
                errors.append(FieldError(pointer, "has too many digits"))
                return None
            return number
        if annotation is date:
            return date.fromisoformat(value)
        if annotation is bytes:
            return base64.b64decode(value, validate=True)
    except InvalidOperation:
        errors.append(FieldError(pointer, f"{value!r} is not a decimal number"))
    except binascii.Error:
        errors.append(FieldError(pointer, "is not base64"))
    except ValueError:
        errors.append(FieldError(pointer, f"{value!r} is not a date (YYYY-MM-DD)"))
    else:
        errors.append(FieldError(pointer, "has the wrong type"))
    return None


def _read_text(value: str, pointer: str, errors: list[FieldError]) -> str | None:
    if not value.strip():
        errors.append(FieldError(pointer, "is empty; leave it out instead"))  # BR-DE R008: an empty element is fatal
        return None
    if NOT_IN_XML.search(value):
        errors.append(FieldError(pointer, "has a control character that no XML can carry"))
        return None
    return value


def _write(value: object) -> object:
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple):
        return [_write(one) for one in cast(tuple[object, ...], value)]
    if is_dataclass(value):
        known = fields_of(type(value))
        members = ((name, cast(object, getattr(value, name)), needed) for name, _, needed in known)
        return {name: _write(member) for name, member, needed in members if needed or member not in (None, (), "")}
    return value


def plain(value: Decimal) -> str:
    """A decimal as text without exponent and without trailing zeros after the point; never "-0"."""
    text = format(value, "f")  # not normalize(): that rounds to the context's 28 digits
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
