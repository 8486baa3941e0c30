"""Documents that a customer's wallet credit moved with: his own, and those of who pays for him.

Owns these questions; nothing is written here. What of them is his is `billing/credit_history.py`'s.
"""

from __future__ import annotations

from billing.credit_history import CreditDocument
from billing.wallets import mirrors
from storage.sql.database import Connection
from storage.sql.invoices import CONCERNS, stored_document
from storage.sql.issued_invoices import IS_ISSUED

DOCUMENTS_MAX = 20_000  # of one question


def of_customer(connection: Connection, customer: str, currency: str, *, wallet: bool) -> list[CreditDocument]:
    """All of a customer in a currency in the order made; without a `wallet` his credit notes only.

    One more than `DOCUMENTS_MAX` says that there are more. An invoice's credit goes back where its lane was told so,
    and with the mirror that a run makes of an invoice which it makes again.
    """
    rows = connection.execute(
        "SELECT i.number, i.made_at, i.run_id, i.refers_to, i.document, i.packed,"  # noqa: S608 - words of modules
        " EXISTS (SELECT 1 FROM wallet_moves w WHERE w.tenant_id = i.tenant_id AND w.kind = 'restore'"
        "  AND w.subject = i.number AND w.customer = %(customer)s) AS told"
        f" FROM invoices i WHERE {CONCERNS} AND i.currency = %(currency)s AND NOT {IS_ISSUED}"
        " AND (%(wallet)s OR i.type = 'credit_note') ORDER BY i.id LIMIT %(limit)s",
        {"customer": customer, "currency": currency, "wallet": wallet, "limit": DOCUMENTS_MAX + 1},
    ).fetchall()
    found = {row["number"]: stored_document(row) for row in rows}
    made: list[CreditDocument] = []
    for row in rows:
        document, original = found[row["number"]], found.get(row["refers_to"] or "")
        by_run = row["run_id"] is not None and original is not None and mirrors(document, original)
        is_whole = document.type == "credit_note" and (row["told"] or by_run)
        made.append(CreditDocument(row["number"], row["made_at"], document, is_whole))
    return made
