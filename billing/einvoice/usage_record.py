"""The usage record of an invoice as a CSV file inside it (BG-24): what each line is made of, for a customer's own sums.

One row for each dimension, tier, package or late figure of a line, as the printed record has them, and behind them one
row for the line itself. Figures are plain decimals with a point, dates ISO, both ends of a period inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

from billing.einvoice.model import Attachment, Invoice, InvoiceLine, Period, RecordRow, plain
from billing.einvoice.words import words
from billing.errors import FieldError, InvalidInput
from billing.focus import csv_line, harmless

REF, FILE_NAME, MIME = "usage-record", "usage-record.csv", "text/csv"  # BT-122, BT-125-2, BT-125-1
COLUMNS = (
    *("line", "name", "start", "end", "row", "label", "value", "up_to", "quantity", "unit", "price", "base_quantity"),
    *("amount", "currency"),
)
BYTES_MAX = 5_000_000  # of the file; a page with it holds no more (`ATTACHED_BYTES_MAX`)


def with_usage_record(invoice: Invoice, language: str) -> Invoice:
    """The invoice with the record as its last attachment; `InvalidInput` if there is one of that reference already."""
    for place, one in enumerate(invoice.attachments):
        if REF in (one.ref, one.name) or one.name == FILE_NAME:
            detail = f"there is an attachment {REF} already: leave it out, or do not ask for the record"
            raise InvalidInput(detail, errors=[FieldError(f"/attachments/{place}/ref", detail)])
    data = usage_record_csv(invoice)
    added = Attachment(ref=REF, text=words(language).usage_record, bytes=data, mime=MIME, name=FILE_NAME)
    return replace(invoice, attachments=(*invoice.attachments, added))


def usage_record_csv(invoice: Invoice) -> bytes:
    """RFC 4180 in UTF-8. What a spreadsheet would run as a formula gets an apostrophe before it.

    Raises `InvalidInput` above `BYTES_MAX`: such a record is fetched by `GET /v1/usage/export`, not sent along.
    """
    parts = [csv_line(COLUMNS).encode()]
    size = len(parts[0])
    for line in invoice.lines:
        for values in _rows(invoice, line):
            parts.append(csv_line(values).encode())
            size += len(parts[-1])
            if size > BYTES_MAX:
                detail = f"the usage record has more than {BYTES_MAX:,} bytes: too many to send along"
                raise InvalidInput(detail, errors=[FieldError("/records", detail)])
    return b"".join(parts)


def _rows(invoice: Invoice, line: InvoiceLine) -> Iterator[list[str | None]]:
    period = line.period or Period()
    head = [
        harmless(line.id),
        harmless(line.name),
        period.start.isoformat() if period.start else None,
        period.end.isoformat() if period.end else None,
    ]
    for record in invoice.records:
        if record.line == line.id:
            for row in record.rows:
                yield [*head, *_made_of(row), invoice.currency]
    figures = [_text(line.quantity), harmless(line.unit), _text(line.price), _text(line.base_quantity), _text(line.net)]
    yield [*head, "line", None, None, None, *figures, invoice.currency]


def _made_of(row: RecordRow) -> list[str | None]:
    return [
        row.kind,
        harmless(row.label) or None,
        harmless(row.value) or None,
        *(_text(value) for value in (row.up_to, row.quantity)),
        None,
        *(_text(value) for value in (row.price, None, row.amount)),
    ]


def _text(value: Decimal | None) -> str | None:
    return None if value is None else plain(value)
