"""The history of a customer's credit from the platform's own figures: top-ups, documents, and what expired.

Owns where they are read. Uses and what was given back are those of the documents, as the ledger has them; when credit
expired what was left of it is said by the rows of the customer's home lane, which are read only if some has.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import polars as pl

from billing.accompanying import CreditEntry
from billing.accounts import Entry
from billing.credit_history import expired_of, history
from billing.master import MasterData
from storage.sql import credit_documents
from storage.sql.database import Database
from storage.usage_log.account_entries import KINDS, entry_of
from storage.usage_log.reader import UsageLogReader


def currencies_of(master: MasterData, customer: str) -> set[str]:
    """The currencies in which a customer has a wallet."""
    return {one.currency for one in master.top_ups if one.customer == customer}


def credit_of(
    database: Database,
    log: UsageLogReader,
    master: MasterData,
    tenant_id: str,
    customer: str,
    currency: str,
    timezone: str,
    now: datetime,
) -> list[CreditEntry] | None:
    """Everything that moved the credit up to now, in order; None: it has more documents than one question may read."""
    top_ups = [one for one in master.top_ups if one.customer == customer and one.currency == currency]
    with database.tenant(tenant_id) as connection:
        documents = credit_documents.of_customer(connection, customer, currency, wallet=bool(top_ups))
    if len(documents) > credit_documents.DOCUMENTS_MAX:
        return None
    ending = [one for one in top_ups if one.expires is not None and one.expires <= now]
    expired = expired_of(ending, _rows(log, tenant_id, customer), now) if ending else []
    return history(customer, currency, top_ups, documents, expired, timezone, now)


def _rows(log: UsageLogReader, tenant_id: str, customer: str) -> Iterator[tuple[datetime, str, Entry]]:
    """What the lanes decided about him, in its order: where his partition lay before, and where it lies now."""
    condition = pl.col("kind").is_in(sorted(KINDS)) & (pl.col("customer") == customer)
    frames = list(log.scan_rows(tenant_id, log.now(), condition))
    if not frames:
        return
    rows = pl.concat(frames).sort("received_at", "lane", "number", "row")
    for at, id, kind, detail in rows.select("time", "id", "kind", "detail").iter_rows():
        yield at, id, entry_of(kind, detail)
