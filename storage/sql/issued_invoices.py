"""The JSON of invoices that were made elsewhere and got their number here (rows of `invoices` like all others).

Owns these forms: written in the transaction that gives the number, read to make the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from billing.errors import NotFound
from storage.sql.database import Connection

# Of a row of `invoices` named i: whether it was made elsewhere.
IS_ISSUED = "EXISTS (SELECT 1 FROM issued_invoices x WHERE x.tenant_id = i.tenant_id AND x.invoice_id = i.id)"


def add(connection: Connection, tenant_id: str, forms: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Keep the forms of documents (id, form)."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO issued_invoices (tenant_id, invoice_id, form) VALUES (%s, %s, %s)",
            [(UUID(tenant_id), UUID(document_id), Jsonb(dict(form))) for document_id, form in forms],
        )


def form_of(connection: Connection, document_id: str) -> dict[str, Any] | None:
    """The form of a document; None if the platform made it."""
    row = connection.execute("SELECT form FROM issued_invoices WHERE invoice_id = %s", (UUID(document_id),)).fetchone()
    return None if row is None else row["form"]


def sized_form(connection: Connection, document_id: UUID) -> tuple[dict[str, Any], int]:
    """The form of a document that was made elsewhere, and its length as JSON in bytes. NotFound if its tenant was
    erased meanwhile."""
    row = connection.execute(
        "SELECT form, octet_length(form::text) AS bytes FROM issued_invoices WHERE invoice_id = %s", (document_id,)
    ).fetchone()
    if row is None:
        raise NotFound("there is no such document any more")
    return row["form"], int(row["bytes"])


def known(connection: Connection, numbers: Sequence[str]) -> list[dict[str, Any]]:
    """Those of the numbers that are documents here: number, type, outside, entity, customer, currency, issued_on,
    gross, `credited` (gross of its credit notes) and `replaced` (by which number)."""
    rows = connection.execute(
        f"SELECT i.number, i.type, {IS_ISSUED} AS outside, i.entity, i.customer, i.currency, i.issued_on, i.gross,"  # noqa: S608 - words of this module
        " coalesce((SELECT sum(n.gross) FROM invoices n WHERE n.refers_to = i.number AND n.type = 'credit_note'), 0)"
        "  AS credited,"
        " (SELECT min(n.number) FROM invoices n WHERE n.refers_to = i.number AND n.type = 'invoice') AS replaced"
        " FROM invoices i WHERE i.number = ANY(%s) ORDER BY i.id",
        (list(numbers),),
    ).fetchall()
    return [dict(row) for row in rows]


def left_of(row: Mapping[str, Any]) -> Decimal:
    """What credit notes have left of a row of `known`, with tax."""
    return Decimal(row["gross"]) - Decimal(row["credited"])
