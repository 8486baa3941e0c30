"""Accompanying documents as CSV files, for a reader's own sums."""

from __future__ import annotations

from collections.abc import Iterator

from billing.accompanying import Accompanying, CreditAccount
from billing.einvoice.model import Period, plain
from billing.focus import csv_line, harmless
from billing.money import exact_sum

_CSV: dict[str, tuple[str, ...]] = {
    "usage_record": ("subscription", "meter", "day", "note", "billed_with", "quantity", "unit"),
    "account_statement": ("booked_on", "kind", "number", "text", "due_on", "amount", "balance", "currency"),
    "reminder": ("kind", "number", "issued_on", "due_on", "amount", "open", "currency"),
    "delivery_note": ("subscription", "name", "note", "start", "end", "quantity", "unit"),
    "credit_statement": (
        "subscription", "name", "note", "start", "end", "quantity", "unit", "price", "amount", "currency",
    ),
}  # fmt: skip


# Of credit that is held; what was credited by lines stands in its rows with the amount alone, and moves no balance.
_CREDIT = ("booked_on", "kind", "number", "text", "expires_on", "amount", "balance", "currency")


def csv_of(document: Accompanying) -> bytes:
    """RFC 4180 in UTF-8: plain decimals with a point, ISO dates, both ends of a period inside; no row of sums.

    What a spreadsheet would run as a formula gets an apostrophe before it.
    """
    return "".join(
        [csv_line(_CREDIT if document.credit else _CSV[document.type]), *map(csv_line, _csv_rows(document))]
    ).encode()


def _csv_rows(document: Accompanying) -> Iterator[list[str | None]]:
    currency = document.currency
    if document.credit is not None:
        yield from _credit_rows(document, document.credit)
        return
    for row in document.usage:
        day = row.day.isoformat() if row.day else None
        said = [harmless(one) for one in (row.note, row.billed_with)]
        yield [harmless(row.subscription), harmless(row.meter), day, *said, plain(row.quantity), harmless(row.unit)]
    if document.statement is not None:
        balance = document.statement.opening
        start = document.period.start.isoformat() if document.period and document.period.start else None
        yield [start, "opening", None, None, None, None, plain(balance), currency]
        for entry in document.statement.entries:
            balance = exact_sum([balance, entry.amount])
            due = entry.due_on.isoformat() if entry.due_on else None
            yield [
                entry.booked_on.isoformat(), entry.kind, harmless(entry.number), harmless(entry.text), due,
                plain(entry.amount), plain(balance), currency,
            ]  # fmt: skip
    if document.reminder is not None:
        for item in document.reminder.items:
            days = [item.issued_on.isoformat(), item.due_on.isoformat()]
            yield ["item", harmless(item.number), *days, plain(item.amount), plain(item.open), currency]
        for one in document.reminder.charges:
            yield [one.kind, harmless(one.text), None, None, plain(one.amount), plain(one.amount), currency]
    for line in document.lines:
        period = line.period or Period()
        head = [harmless(one) for one in (line.subscription, line.name, line.note)]
        head += [one.isoformat() if one else None for one in (period.start, period.end)]
        figures = [None if line.quantity is None else plain(line.quantity), harmless(line.unit)]
        if document.type == "credit_statement":
            prices = [None if one is None else plain(one) for one in (line.price, line.amount)]
            yield [*head, *figures, *prices, currency]
        else:
            yield [*head, *figures]


def _credit_rows(document: Accompanying, credit: CreditAccount) -> Iterator[list[str | None]]:
    currency, balance = document.currency, credit.opening
    for line in document.lines:
        said = [harmless(line.name), None, None if line.amount is None else plain(line.amount), None, currency]
        yield [None, "line", None, *said]
    start = document.period.start.isoformat() if document.period and document.period.start else None
    yield [start, "opening", None, None, None, None, plain(balance), currency]
    for entry in credit.entries:
        balance = exact_sum([balance, entry.amount])
        ends = entry.expires_on.isoformat() if entry.expires_on else None
        yield [
            entry.booked_on.isoformat(), entry.kind, harmless(entry.number), harmless(entry.text), ends,
            plain(entry.amount), plain(balance), currency,
        ]  # fmt: skip
