"""Documents that accompany invoices: usage record, account statement, reminder, delivery note, credit statement.

Owns what each of them says and the check that its sums are right. None of them is an invoice or has an effect on tax:
nothing here books, numbers or owes anything. Amounts are `Decimal` in major currency units with at most the currency's
minor digits, quantities have at most 12 decimals, both ends of a period are inside. How they look is
`pipelines/accompanying_view.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache
from typing import Any, Literal, get_args

from billing.einvoice.model import Party, Payment, Period, Preceding, read, write
from billing.einvoice.terms import schema_of
from billing.errors import FieldError, InvalidInput
from billing.money import MINOR_DIGITS, decimal_text, exact_sum, parse_number, round_half_away

Kind = Literal["usage_record", "account_statement", "reminder", "delivery_note", "credit_statement"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Of credit: what was paid in or granted, credit notes and that they are set off against what is owed, what whole credit
# notes gave back, what invoices used, what expired.
CreditMove = Literal["purchased", "promotional", "credit_note", "set_off", "returned", "invoice", "expired", "other"]
_GROWS, _SHRINKS = ("purchased", "promotional", "credit_note", "returned"), ("set_off", "invoice")
ROWS_MAX = 20_000  # of one document: what a printer, a reader and a compiler still bear
TEXT_MAX = 2_000  # characters of one text
ERRORS_MAX = 100
SCHEMA_ID = "urn:cloudbilling:accompanying-document:1"
ZERO = Decimal(0)


@dataclass(frozen=True)
class UsageRow:
    """A quantity of one meter on one day, or in the whole period where no day is named."""

    meter: str
    quantity: Decimal
    unit: str | None = None
    day: date | None = None
    subscription: str | None = None
    note: str | None = None
    billed_with: str | None = None


@dataclass(frozen=True)
class StatementEntry:
    """What an account was debited (above zero) or credited (below) on a day."""

    booked_on: date
    kind: Literal["invoice", "credit_note", "payment", "other"]
    amount: Decimal
    number: str | None = None
    text: str | None = None
    due_on: date | None = None


@dataclass(frozen=True)
class Statement:
    """An account over a period: opening + entries = closing. Above zero is owed by the customer."""

    opening: Decimal
    entries: tuple[StatementEntry, ...]
    closing: Decimal | None = None


@dataclass(frozen=True)
class CreditEntry:
    """What a customer's credit grew by (above zero) or shrank by on a day. `text` of expired credit is its kind."""

    booked_on: date
    kind: CreditMove
    amount: Decimal
    number: str | None = None
    text: str | None = None
    expires_on: date | None = None


@dataclass(frozen=True)
class CreditAccount:
    """The credit that a customer holds, over a period: opening + entries = closing."""

    opening: Decimal
    entries: tuple[CreditEntry, ...]
    closing: Decimal | None = None


@dataclass(frozen=True)
class OverdueItem:
    """A receivable that is open after its due date; `open` is what is left of `amount`."""

    number: str
    issued_on: date
    due_on: date
    amount: Decimal
    open: Decimal


@dataclass(frozen=True)
class ReminderCharge:
    """A fee or interest as the sender states it. Nothing here computes interest; the rate is shown as said."""

    kind: Literal["fee", "interest"]
    amount: Decimal
    text: str | None = None
    percent: Decimal | None = None
    period: Period | None = None


@dataclass(frozen=True)
class Reminder:
    """Level 1 asks, level 2 reminds again, level 3 is the last one. total = open items + charges."""

    level: Literal[1, 2, 3]
    due_on: date
    items: tuple[OverdueItem, ...]
    charges: tuple[ReminderCharge, ...] = ()
    previous_on: date | None = None
    total: Decimal | None = None


@dataclass(frozen=True)
class DeliveryLine:
    """What was delivered; in a credit statement with the amount that is credited for it."""

    name: str
    quantity: Decimal | None = None
    unit: str | None = None
    note: str | None = None
    subscription: str | None = None
    period: Period | None = None
    price: Decimal | None = None
    amount: Decimal | None = None


@dataclass(frozen=True)
class Accompanying:
    """One document. Which of `usage`, `statement`, `reminder`, `lines` and `credit` it has is said by its type."""

    type: Kind
    number: str
    issued_on: date
    seller: Party
    buyer: Party
    currency: str | None = None
    period: Period | None = None
    timezone: str | None = None
    refers_to: tuple[Preceding, ...] = ()
    notes: tuple[str, ...] = ()
    usage: tuple[UsageRow, ...] = ()
    statement: Statement | None = None
    reminder: Reminder | None = None
    lines: tuple[DeliveryLine, ...] = ()
    total: Decimal | None = None
    credit: CreditAccount | None = None
    payment: Payment | None = None

    @staticmethod
    def from_json(form: object) -> Accompanying:
        """Read and check the JSON form; `InvalidInput` names every bad field by its pointer."""
        try:
            document = read(Accompanying, form)
        except InvalidInput as error:
            raise _refused(error.errors) from error
        document.check()
        return document

    def to_json(self) -> dict[str, Any]:
        """The JSON form: decimals and dates as text, nothing that is empty."""
        return write(self)

    def check(self) -> None:
        """Raise `InvalidInput` with everything that is wrong: parts of another type, sizes, sums, days."""
        errors: list[FieldError] = []
        for one in _wrong(self):
            errors.append(one)
            if len(errors) == ERRORS_MAX:
                break
        if errors:
            raise _refused(errors)

    @property
    def amount(self) -> Decimal:
        """What it is about, in its currency: closing balance, what is demanded, credit held or given; or zero."""
        if self.statement is not None:
            return closing_of(self.statement)
        if self.reminder is not None:
            return demanded_by(self.reminder)
        if self.credit is not None:
            return closing_of(self.credit)
        return credited_by(self.lines)


def closing_of(statement: Statement | CreditAccount) -> Decimal:
    """Opening and all entries, exactly."""
    return exact_sum([statement.opening, *(one.amount for one in statement.entries)])


def demanded_by(reminder: Reminder) -> Decimal:
    """What is open and what is charged for it, exactly."""
    return exact_sum([*(one.open for one in reminder.items), *(one.amount for one in reminder.charges)])


def credited_by(lines: Sequence[DeliveryLine]) -> Decimal:
    """The amounts of a credit statement; zero of a delivery note, which has none."""
    return exact_sum([one.amount for one in lines if one.amount is not None])


def usage_sums(rows: Sequence[UsageRow]) -> dict[tuple[str, str], Decimal]:
    """Exact sums by meter and unit, in the order in which they come first."""
    parts: dict[tuple[str, str], list[Decimal]] = {}
    for row in rows:
        parts.setdefault((row.meter, row.unit or ""), []).append(row.quantity)
    return {key: exact_sum(quantities) for key, quantities in parts.items()}


@cache
def accompanying_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of the form that `Accompanying.from_json` reads."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "A document that accompanies invoices",
        **schema_of(Accompanying, _SAID),
    }


_SAID: Mapping[str, str] = {
    "type": "what it is; it decides which of usage, statement, reminder, lines it has",
    "period": "first and last day, both inside; a usage record and an account statement need it",
    "currency": "ISO 4217; needed wherever there are amounts",
    "timezone": "in which days are meant",
    "refers_to": "the invoices that it accompanies",
    "usage": "of a usage_record: quantities by meter, day and subscription",
    "usage.day": "left out: the whole period",
    "usage.billed_with": "number and line of the invoice, such as RE-2026-000001 / 3",
    "statement": "of an account_statement: opening + entries = closing",
    "statement.entries.amount": "above zero is owed by the customer, below zero is in his favour",
    "statement.closing": "checked where it is given",
    "reminder": "of a reminder",
    "reminder.charges": "fees and interest as the sender states them",
    "reminder.total": "open items + charges; checked where it is given",
    "lines": "of a delivery_note (no amounts) or credit_statement (an amount each)",
    "total": "of a credit_statement: the sum of its lines; checked where it is given",
    "credit": "of a credit_statement: what credit is held, opening + entries = closing; it needs a period",
    "credit.entries.amount": "above zero the credit grew, below zero it shrank",
    "credit.closing": "checked where it is given",
    "payment": "of a reminder: where to pay to",
}


def _refused(errors: Sequence[FieldError]) -> InvalidInput:
    first = errors[0]
    return InvalidInput(f"The document is not valid: {first.pointer or '/'}: {first.detail}", errors=errors)


# -- What is wrong -----------------------------------------------------------------------------------------------------

_PARTS: Mapping[Kind, str] = {
    "usage_record": "usage",
    "account_statement": "statement",
    "reminder": "reminder",
    "delivery_note": "lines",
    "credit_statement": "lines",
}


def _wrong(document: Accompanying) -> Iterator[FieldError]:
    own = _PARTS[document.type]
    for part in dict.fromkeys(_PARTS.values()):
        if part != own and getattr(document, part):
            yield FieldError(f"/{part}", f"a document of type {document.type} has none")
    if getattr(document, own) is None:
        yield FieldError(f"/{own}", f"a document of type {document.type} needs it")
    if document.payment is not None and document.type != "reminder":
        yield FieldError("/payment", "only a reminder asks for a payment")
    if document.total is not None and document.type != "credit_statement":
        yield FieldError("/total", "only a credit statement has it")
    if document.credit is not None and document.type != "credit_statement":
        yield FieldError("/credit", "only a credit statement has it")
    digits = MINOR_DIGITS.get(document.currency or "")
    if digits is None and (document.currency is not None or document.type not in ("usage_record", "delivery_note")):
        yield FieldError("/currency", "a currency of ISO 4217, such as EUR, is needed")
    if document.period is None and (document.type in ("usage_record", "account_statement") or document.credit):
        yield FieldError("/period", f"a document of type {document.type} needs it")
    for place, one in enumerate(document.refers_to):
        # Its time of keeping counts from its own day: earlier than the invoice's it would end before that one's.
        if one.issued_on is not None and one.issued_on > document.issued_on:
            yield FieldError(f"/refers_to/{place}/issued_on", "is after the day of this document")
    yield from _texts(document)
    yield from _period(document.period, "/period")
    digits = 2 if digits is None else digits
    yield from _usage(document)
    if document.statement is not None:
        yield from _statement(document.statement, document.period, digits)
    if document.reminder is not None:
        yield from _reminder(document.reminder, document.issued_on, digits)
    if document.credit is not None:
        yield from _credit(document.credit, document.period, digits)
    yield from _lines(document, digits)


def _texts(document: Accompanying) -> Iterator[FieldError]:
    def walk(value: object, pointer: str) -> Iterator[FieldError]:
        if isinstance(value, str) and len(value) > TEXT_MAX:
            yield FieldError(pointer, f"has more than {TEXT_MAX:,} characters")
        elif isinstance(value, dict):
            for key, inner in value.items():  # pyright: ignore[reportUnknownVariableType] - JSON
                yield from walk(inner, f"{pointer}/{key}")  # pyright: ignore[reportUnknownArgumentType] - JSON
        elif isinstance(value, list):
            for place, inner in enumerate(value):  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
                yield from walk(inner, f"{pointer}/{place}")  # pyright: ignore[reportUnknownArgumentType] - JSON

    for part in ("usage", "lines"):
        if len(getattr(document, part)) > ROWS_MAX:
            yield FieldError(f"/{part}", f"has more than {ROWS_MAX:,} rows: make several documents")
            return
    for part in ("statement", "credit"):
        if (account := getattr(document, part)) is not None and len(account.entries) > ROWS_MAX:
            yield FieldError(f"/{part}/entries", f"has more than {ROWS_MAX:,} entries: make several documents")
            return
    # Numbers first: one of a million digits would be a text of a million digits.
    numbers = list(_numbers(document))
    yield from numbers
    if not numbers:
        yield from walk(document.to_json(), "")


def _numbers(document: Accompanying) -> Iterator[FieldError]:
    """Numbers that no column holds: more than 26 digits before the point or 12 behind it."""
    named: list[tuple[str, Decimal | None]] = [("/total", document.total)]
    for place, row in enumerate(document.usage):
        named.append((f"/usage/{place}/quantity", row.quantity))
    for place, line in enumerate(document.lines):
        named += [(f"/lines/{place}/{name}", getattr(line, name)) for name in ("quantity", "price", "amount")]
    accounts: dict[str, Statement | CreditAccount | None] = {"statement": document.statement, "credit": document.credit}
    for part, account in accounts.items():
        if account is not None:
            named += [(f"/{part}/opening", account.opening), (f"/{part}/closing", account.closing)]
            named += [(f"/{part}/entries/{place}/amount", one.amount) for place, one in enumerate(account.entries)]
    if document.reminder is not None:
        named.append(("/reminder/total", document.reminder.total))
        for place, item in enumerate(document.reminder.items):
            named += [(f"/reminder/items/{place}/{name}", getattr(item, name)) for name in ("amount", "open")]
        for place, one in enumerate(document.reminder.charges):
            named += [(f"/reminder/charges/{place}/{name}", getattr(one, name)) for name in ("amount", "percent")]
    for pointer, value in named:
        if value is not None and parse_number(value) is None:
            yield FieldError(pointer, "has at most 26 digits before the point and 12 behind it")


def _amount(value: Decimal, digits: int, pointer: str) -> Iterator[FieldError]:
    if round_half_away(value, digits) != value:
        yield FieldError(pointer, f"an amount in this currency has at most {digits} digits behind the point")


def _period(period: Period | None, pointer: str) -> Iterator[FieldError]:
    if period is not None and period.start and period.end and period.end < period.start:
        yield FieldError(f"{pointer}/end", "is before the start")


def _usage(document: Accompanying) -> Iterator[FieldError]:
    period = document.period or Period()
    for place, row in enumerate(document.usage):
        if row.day is not None and not (period.start or row.day) <= row.day <= (period.end or row.day):
            yield FieldError(f"/usage/{place}/day", "is outside the period of the record")


def _statement(statement: Statement, period: Period | None, digits: int) -> Iterator[FieldError]:
    for place, entry in enumerate(statement.entries):
        if entry.kind == "credit_note" and entry.amount > 0:
            pointer = f"/statement/entries/{place}/amount"
            yield FieldError(pointer, "a credit note takes off: its amount is not above zero")
    yield from _account("/statement", statement, period, digits)


def _credit(credit: CreditAccount, period: Period | None, digits: int) -> Iterator[FieldError]:
    for place, entry in enumerate(credit.entries):
        if (entry.kind in _GROWS and entry.amount < 0) or (entry.kind in _SHRINKS and entry.amount > 0):
            side = "not below zero" if entry.kind in _GROWS else "not above zero"
            yield FieldError(f"/credit/entries/{place}/amount", f"of {entry.kind} it is {side}")
    yield from _account("/credit", credit, period, digits)


def _account(
    pointer: str, account: Statement | CreditAccount, period: Period | None, digits: int
) -> Iterator[FieldError]:
    """Days within the period, amounts of the currency, and the sum."""
    if any(_numbers_of(account)):
        return
    yield from _amount(account.opening, digits, f"{pointer}/opening")
    within = period or Period()
    for place, entry in enumerate(account.entries):
        yield from _amount(entry.amount, digits, f"{pointer}/entries/{place}/amount")
        if not (within.start or entry.booked_on) <= entry.booked_on <= (within.end or entry.booked_on):
            yield FieldError(f"{pointer}/entries/{place}/booked_on", "is outside the period of the statement")
    if account.closing is not None and account.closing != (closing := closing_of(account)):
        detail = f"opening and entries give {decimal_text(closing)}, not {decimal_text(account.closing)}"
        yield FieldError(f"{pointer}/closing", detail)


def _numbers_of(account: Statement | CreditAccount) -> Iterator[bool]:
    for value in (account.opening, account.closing, *(one.amount for one in account.entries)):
        if value is not None and parse_number(value) is None:
            yield True


def _reminder(reminder: Reminder, issued_on: date, digits: int) -> Iterator[FieldError]:
    values = [*(one.open for one in reminder.items), *(one.amount for one in reminder.items)]
    values += [one.amount for one in reminder.charges]
    if any(parse_number(one) is None for one in values):
        return  # said already
    if not reminder.items:
        yield FieldError("/reminder/items", "at least one overdue item is needed")
    if reminder.due_on < issued_on:
        yield FieldError("/reminder/due_on", "the new due date is before the day of the reminder")
    for place, item in enumerate(reminder.items):
        pointer = f"/reminder/items/{place}"
        yield from _amount(item.amount, digits, f"{pointer}/amount")
        yield from _amount(item.open, digits, f"{pointer}/open")
        if not 0 < item.open <= item.amount:
            yield FieldError(f"{pointer}/open", "what is open is above zero and at most the amount")
        if not item.due_on < issued_on:
            yield FieldError(f"{pointer}/due_on", "is not before the day of the reminder: it is not overdue")
    for place, one in enumerate(reminder.charges):
        pointer = f"/reminder/charges/{place}"
        yield from _amount(one.amount, digits, f"{pointer}/amount")
        if one.amount < 0:
            yield FieldError(f"{pointer}/amount", "is below zero")
        yield from _period(one.period, f"{pointer}/period")
    if reminder.total is not None and reminder.total != (total := demanded_by(reminder)):
        detail = f"open items and charges give {decimal_text(total)}, not {decimal_text(reminder.total)}"
        yield FieldError("/reminder/total", detail)


def _lines(document: Accompanying, digits: int) -> Iterator[FieldError]:
    credited = document.type == "credit_statement"
    if any(line.amount is not None and parse_number(line.amount) is None for line in document.lines):
        return  # said already
    for place, line in enumerate(document.lines):
        pointer = f"/lines/{place}"
        yield from _period(line.period, f"{pointer}/period")
        if credited and line.amount is None:
            yield FieldError(f"{pointer}/amount", "a credit statement says what is credited")
        elif not credited and (line.amount is not None or line.price is not None):
            yield FieldError(pointer, "a delivery note has neither prices nor amounts")
        elif line.amount is not None:
            yield from _amount(line.amount, digits, f"{pointer}/amount")
    if credited and document.total is not None and document.total != (total := credited_by(document.lines)):
        yield FieldError("/total", f"the lines give {decimal_text(total)}, not {decimal_text(document.total)}")
