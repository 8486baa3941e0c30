"""What a customer owes by the ledger: postings to and from receivables, document by document.

Owns these questions; nothing is written here. Payments from outside are not booked by the platform yet, so what is
open here is open by its documents: invoices, credit notes and what prepaid credit has paid of them.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

from storage.sql.database import Connection

DOCUMENTS_MAX = 20_000  # of one question


def currencies(connection: Connection, customer: str) -> list[str]:
    """The currencies of a customer's documents."""
    rows = connection.execute(
        "SELECT DISTINCT currency FROM invoices WHERE customer = %s ORDER BY currency", (customer,)
    ).fetchall()
    return [row["currency"] for row in rows]


def owed_before(connection: Connection, customer: str, currency: str, day: date) -> Decimal:
    """The balance at the start of a day: above zero is owed by the customer."""
    row = connection.execute(
        "SELECT coalesce(sum(owed), 0) AS owed FROM receivable_documents"
        " WHERE customer = %s AND currency = %s AND issued_on < %s",
        (customer, currency, day),
    ).fetchone()
    assert row is not None, "an aggregate has a row"
    return Decimal(row["owed"])


def moved(connection: Connection, customer: str, currency: str, first: date, last: date) -> list[dict[str, Any]]:
    """Documents of the days first to last: number, type, issued_on, due_on, refers_to, owed (added to the balance).

    One more than `DOCUMENTS_MAX` says that there are more.
    """
    rows = connection.execute(
        "SELECT number, type, issued_on, due_on, refers_to, owed FROM receivable_documents"
        " WHERE customer = %s AND currency = %s AND issued_on BETWEEN %s AND %s ORDER BY issued_on, id LIMIT %s",
        (customer, currency, first, last, DOCUMENTS_MAX + 1),
    ).fetchall()
    return [dict(row) for row in rows]


def overdue(connection: Connection, customer: str, currency: str, day: date) -> list[dict[str, Any]]:
    """Invoices due before a day of which credit notes left something: number, issued_on, due_on, owed, open."""
    rows = connection.execute(
        "SELECT * FROM (SELECT d.id, d.number, d.issued_on, d.due_on, d.owed, d.owed + coalesce((SELECT sum(n.owed)"
        "  FROM receivable_documents n WHERE n.tenant_id = d.tenant_id AND n.refers_to = d.number"
        "  AND n.type = 'credit_note'), 0) AS open"
        " FROM receivable_documents d WHERE d.customer = %s AND d.currency = %s AND d.type = 'invoice'"
        " AND d.due_on < %s) found WHERE open > 0 ORDER BY due_on, id LIMIT %s",
        (customer, currency, day, DOCUMENTS_MAX + 1),
    ).fetchall()
    return [dict(row) for row in rows]


def billed_between(connection: Connection, customer: str, first: date, last: date) -> list[str]:
    """Numbers of a customer's invoices of bill runs that may have lines of these local days, oldest first.

    What a run billed and took back again counts as never billed; what it had cancelled, as it was issued again.
    """
    rows = connection.execute(
        "SELECT number FROM standing_documents d WHERE customer = %s AND type = 'invoice' AND run_id IS NOT NULL"
        # A day more on each side: local days begin up to 14 hours beside those of UTC.
        " AND period_end > %s::date - 1 AND period_start < %s::date + 2"
        " AND NOT EXISTS (SELECT 1 FROM invoices s WHERE s.tenant_id = d.tenant_id AND s.stands_for = d.place"
        "  AND s.id > d.id) ORDER BY place LIMIT %s",
        (customer, first, last, DOCUMENTS_MAX + 1),
    ).fetchall()
    return [row["number"] for row in rows]
