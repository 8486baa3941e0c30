"""Whole documents in the order made, page by page: for exports of what the platform billed.

Invoices that were made elsewhere are not among them: nobody here knows what was charged by them, nor how.
"""

from __future__ import annotations

from datetime import date
from typing import Any

from storage.sql.database import Connection
from storage.sql.invoices import stored_document
from storage.sql.issued_invoices import IS_ISSUED

LIMIT_MAX = 1_000


def page(
    connection: Connection,
    *,
    after: str | None,
    limit: int,
    since: date | None,
    until: date | None,
    customer: str | None,
) -> list[dict[str, Any]]:
    """Documents issued from `since` to `until` (inclusive), behind the id `after`: with `document` as a value."""
    assert 0 < limit <= LIMIT_MAX
    rows = connection.execute(
        "SELECT id, number, customer, customer_name, currency, issued_on, period_start, period_end, document, packed"  # noqa: S608 - words of modules
        " FROM invoices i WHERE (%(after)s::uuid IS NULL OR id > %(after)s)"
        " AND (%(since)s::date IS NULL OR issued_on >= %(since)s)"
        " AND (%(until)s::date IS NULL OR issued_on <= %(until)s)"
        " AND (%(customer)s::text IS NULL OR customer = %(customer)s)"
        f" AND NOT {IS_ISSUED} ORDER BY id LIMIT %(limit)s",
        {"after": after, "since": since, "until": until, "customer": customer, "limit": limit},
    ).fetchall()
    return [{**row, "document": stored_document(row)} for row in rows]
