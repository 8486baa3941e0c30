"""Invoices that were made elsewhere and are issued here: which of them may be, and what tables and archive say of them.

Owns what the caller leaves to the platform (number, date, reference of the payment) and the summary as a `Document`:
the invoice itself stays what came in. Whether it may be issued at all is `checks.py` and the official rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

from billing.documents import Allowance, Document, DocumentType, Line, TaxTotal
from billing.einvoice.model import EN_16931, AllowanceCharge, Invoice, InvoiceLine, Party, Period
from billing.einvoice.profiles import PROFILES
from billing.einvoice.terms import with_term
from billing.errors import FieldError, InvalidInput
from billing.periods import YEAR_MAX, YEAR_MIN, midnight

# BT-3 and the series that gives the number. Self-billed invoices (389) have their numbers from the buyer's books.
TYPES: Mapping[str, DocumentType] = {
    "380": "invoice",
    "326": "invoice",  # partial
    "386": "invoice",  # prepayment
    "384": "invoice",  # corrected: in the place of another one
    "381": "credit_note",
}
REFERRING = frozenset({"381", "384"})
CUSTOMER_LENGTH_MAX = 256
WITHOUT_NUMBER = "1"  # what stands in the number's place until there is one; no rule looks at which it is
_LEVELS = ("factur-x", "zugferd")  # of the same standard: written as what they then are, the terms of EN 16931
_ZERO = Decimal(0)


def issue_form(form: object, today: date) -> dict[str, Any]:
    """The form as it is kept: with a date, and something in the place of its number.

    `today` is the local day of the tenant. Errors: InvalidInput with every bad place.
    """
    if not isinstance(form, dict):
        raise InvalidInput("a JSON object is needed", errors=[FieldError("", "an object is needed")])
    given = cast("dict[str, Any]", form)
    if given.get("number") is not None:
        detail = "is given here, the next one of its series: leave it out"
        raise InvalidInput(f"/number: {detail}", errors=[FieldError("/number", with_term(detail, "/number"))])
    dated = given if given.get("issued_on") is not None else {**given, "issued_on": today.isoformat()}
    kept = {**dated, "number": WITHOUT_NUMBER}
    errors = list(_errors(Invoice.from_json(kept), today))
    if errors:
        told = [FieldError(one.pointer, with_term(one.detail, one.pointer)) for one in errors]
        raise InvalidInput(f"{told[0].pointer}: {told[0].detail}", errors=told)
    return kept


def numbered(form: object, number: str) -> Invoice:
    """The invoice of a kept form under its number. Where nothing is said of the payment's reference (BT-83), it is the
    number: the caller could not know it."""
    invoice = Invoice.from_json(form)
    payment = invoice.payment
    if payment is not None and payment.reference is None and TYPES[invoice.type_code] == "invoice":
        payment = replace(payment, reference=number)
    profile = EN_16931 if _is_level(invoice.profile) else invoice.profile
    return replace(invoice, number=number, payment=payment, profile=profile)


def _is_level(profile: str) -> bool:
    return any(name in profile for name in _LEVELS)


def _errors(invoice: Invoice, today: date) -> Iterator[FieldError]:
    if invoice.type_code not in TYPES:
        yield FieldError("/type_code", f"{invoice.type_code!r} is not issued here; there are {', '.join(TYPES)}")
    if invoice.issued_on > today:
        yield FieldError("/issued_on", f"{invoice.issued_on} is still to come: today is {today}")
    if invoice.profile not in PROFILES.values() and not _is_level(invoice.profile):
        yield FieldError("/profile", f"is not issued here; there are {', '.join(PROFILES.values())}")
    if invoice.type_code in REFERRING and not invoice.preceding:
        yield FieldError("/preceding", f"type {invoice.type_code} names the invoice that it refers to")
    if TYPES.get(invoice.type_code) == "credit_note" and invoice.totals.gross < 0:
        yield FieldError("/totals/gross", "a credit note has the sign of what it credits: its amounts are above zero")
    if TYPES.get(invoice.type_code) == "invoice" and invoice.totals.gross < 0:
        # Neither a credit note nor a corrected invoice could ever refer to it: nothing of it is left to credit.
        detail = "an invoice does not pay out: send a credit note (381) with amounts above zero instead"
        yield FieldError("/totals/gross", detail)
    if invoice.totals.rounding:
        yield FieldError("/totals/rounding", "rounding of what is due has no account here: leave it out")
    if len(customer_of(invoice)) > CUSTOMER_LENGTH_MAX or not customer_of(invoice).isprintable():
        yield FieldError("/buyer/ids/0/id", f"at most {CUSTOMER_LENGTH_MAX} printable characters")
    for pointer, day in _days(invoice):
        if not YEAR_MIN <= day.year <= YEAR_MAX:
            yield FieldError(pointer, f"the year must be between {YEAR_MIN} and {YEAR_MAX}")


def _days(invoice: Invoice) -> Iterator[tuple[str, date]]:
    periods = [("/period", invoice.period), *((f"/lines/{at}/period", line.period) for at, line in _placed(invoice))]
    found = [("/issued_on", invoice.issued_on), ("/due_on", invoice.due_on)]
    found += [(f"{at}/{name}", getattr(period, name, None)) for at, period in periods for name in ("start", "end")]
    found += [("/delivery/delivered_on", invoice.delivery.delivered_on if invoice.delivery else None)]
    yield from ((pointer, day) for pointer, day in found if day is not None)


def _placed(invoice: Invoice) -> Iterable[tuple[int, InvoiceLine]]:
    return enumerate(invoice.lines)


def customer_of(invoice: Invoice) -> str:
    """Under which code documents of the buyer are found: the customer number that the invoice says (BT-46), else his
    name."""
    buyer = invoice.buyer
    return buyer.ids[0].id.strip() if buyer.ids else " ".join(buyer.name.split())[:CUSTOMER_LENGTH_MAX]


def is_party(said: Party, entity: Party) -> bool:
    """Whether a seller as an invoice says him is a legal entity: by VAT id or tax number if both have one, else by
    name."""
    for one, other in ((said.vat_id, entity.vat_id), (said.tax_number, entity.tax_number)):
        if one and other:
            return _compact(one) == _compact(other)
    return is_named(said, entity)


def is_named(said: Party, entity: Party) -> bool:
    return " ".join(said.name.casefold().split()) == " ".join(entity.name.casefold().split())


def _compact(text: str) -> str:
    return "".join(text.upper().split())


def buyer_form(invoice: Invoice, customer: str, language: str) -> dict[str, Any]:
    """The buyer as documents of customers have him (`parties.buyer_of` reads it)."""
    buyer = invoice.buyer
    address = {name: text for name, text in vars(buyer.address).items() if text}
    contact = {name: text for name, text in vars(buyer.contact).items() if text} if buyer.contact else None
    form: dict[str, Any] = {
        "code": customer,
        "name": buyer.name,
        "country": buyer.address.country,
        "address": address,
        "contact": contact,
        "vat_id": buyer.vat_id,
        "legal_id": buyer.legal_id.id if buyer.legal_id else None,
        "language": language,
    }
    return {name: value for name, value in form.items() if value}


def document_of(invoice: Invoice, customer: str, timezone: str, refers_to: str | None) -> Document:
    """Sums, lines and taxes of an invoice that has passed `checks.py`, as tables and ledger have those of all others.

    `prepaid` is what was paid before (BT-113): not owed any more, whoever took it. A charge on the whole document is a
    line of its own behind the invoice's. Periods are local days of `timezone`.
    """
    totals = invoice.totals
    return Document(
        customer=customer,
        type=TYPES[invoice.type_code],
        currency=invoice.currency,
        date=invoice.issued_on,
        lines=(
            *(_line(line, invoice, timezone) for line in invoice.lines),
            *(_charge(one, invoice, timezone) for one in invoice.charges),
        ),
        allowances=tuple(_allowance(one) for one in invoice.allowances),
        taxes=tuple(TaxTotal(one.category, one.percent or _ZERO, one.base, one.amount) for one in invoice.taxes),
        net=totals.net,
        tax=totals.tax or _ZERO,
        gross=totals.gross,
        due=totals.due,
        prepaid=totals.prepaid or _ZERO,
        refers_to=refers_to,
    )


def _line(line: InvoiceLine, invoice: Invoice, timezone: str) -> Line:
    start, end = _period(line.period, invoice, timezone)
    off = sum((one.amount for one in line.allowances), _ZERO) - sum((one.amount for one in line.charges), _ZERO)
    return Line(
        subscription="",
        charge="",
        start=start,
        end=end,
        quantity=line.quantity,
        amount=line.net,
        tax_category=line.tax.category,
        tax_percent=line.tax.percent or _ZERO,
        kind="one_off",
        allowance=off,
        name=line.name,
        unit=line.unit,
        unit_price=line.price if line.base_quantity in (None, 1) else None,
        cost_centre=line.accounting_reference or "",
    )


def _charge(one: AllowanceCharge, invoice: Invoice, timezone: str) -> Line:
    assert one.tax_category is not None, "checked before (BR-32)"
    start, end = _period(None, invoice, timezone)
    return Line(
        subscription="",
        charge="",
        start=start,
        end=end,
        quantity=Decimal(1),
        amount=one.amount,
        tax_category=one.tax_category,
        tax_percent=one.tax_percent or _ZERO,
        kind="one_off",
        name=one.reason or one.reason_code or "",
        unit="C62",
        unit_price=one.amount,
    )


def _allowance(one: AllowanceCharge) -> Allowance:
    assert one.tax_category is not None, "checked before (BR-32)"
    return Allowance("discount", one.amount, one.tax_category, one.tax_percent or _ZERO, gross=one.gross)


def _period(period: Period | None, invoice: Invoice, timezone: str) -> tuple[datetime, datetime]:
    """Half-open, in UTC: of the line, else of the invoice, else the day of delivery, else that of the invoice."""
    delivered = invoice.delivery.delivered_on if invoice.delivery else None
    said = period or invoice.period or Period(delivered or invoice.issued_on, None)
    first = said.start or said.end
    last = said.end or said.start
    assert first is not None, "checked before (BR-CO-19, BR-CO-20)"
    assert last is not None, "the same"
    return midnight(first, timezone), midnight(last + timedelta(days=1), timezone)
