"""What would be billed: the next invoice of a customer, and what a change would make of it.

Owns up to when a preview looks and how two sets of documents are compared. The documents are made by the bill run's own
function on the same facts (`bill_run_chunk.compute_documents`); nothing is stored, no number and no credit is taken.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from billing.contracts import FOREVER, contract
from billing.documents import Document, Line
from billing.master import MasterData
from billing.periods import local_date
from pipelines.bill_run_chunk import ChunkTask, compute_documents
from pipelines.run_credit import WalletDesk
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql import bill_runs
from storage.sql.database import Database
from storage.usage_log.reader import UsageLogReader

AHEAD_MAX = timedelta(days=800)  # a preview looks at most so far beyond now
CUSTOMERS_MAX = 100  # of one preview of a change
ZERO = Decimal(0)


@dataclass(frozen=True)
class Preview:
    """The documents that a bill run up to `up_to` would make, on what is known at `as_of`; `parked` says why none."""

    customer: str
    up_to: datetime
    as_of: datetime
    documents: tuple[Document, ...]
    parked: str = ""


@dataclass(frozen=True)
class LineChange:
    """One line before and after a change; signed as in the customer's eyes (a credit note counts negative)."""

    line: Line  # the newer one, where it is in both
    currency: str
    before: Decimal
    after: Decimal

    @property
    def difference(self) -> Decimal:
        return self.after - self.before


@dataclass(frozen=True)
class ChangePreview:
    """What a change makes of a customer's next documents, and what of it is due at the moment of the change."""

    before: Preview
    after: Preview
    now_before: Preview
    now_after: Preview
    lines: tuple[LineChange, ...]


class Previews:
    """Previews for one platform; keeps nothing between calls."""

    def __init__(
        self, database: Database, store: ObjectStore, chain: MasterChain, desk: WalletDesk | None = None
    ) -> None:
        self._desk = desk  # tells which wallet credit is free now; without it that is replayed from the documents
        self._database = database
        self._store = store
        self._chain = chain
        self._reader = UsageLogReader(store)

    def invoice(
        self,
        tenant_id: str,
        master_number: int,
        master: MasterData,
        customer: str,
        now: datetime,
        up_to: datetime | None = None,
    ) -> Preview:
        """The customer's next documents; `up_to` default: when the next of his periods ends or begins."""
        facts = self._facts(tenant_id, master_number, now)
        return self._preview(facts, master, customer, up_to or next_due(master, customer, now))

    def change(
        self,
        tenant_id: str,
        master_number: int,
        master: MasterData,
        changed: MasterData,
        customers: Sequence[str],
        now: datetime,
        moment: datetime,
        up_to: datetime | None = None,
    ) -> list[ChangePreview]:
        """Each customer's documents under both master data. `moment` is that of the change."""
        assert len(customers) <= CUSTOMERS_MAX
        facts = self._facts(tenant_id, master_number, now)
        found: list[ChangePreview] = []
        for customer in customers:
            end = up_to or next_due(changed, customer, moment)
            # A customer who is new with the change has nothing before it.
            old = master if customer in master.customers else None
            before = self._preview(facts, old, customer, end)
            after = self._preview(facts, changed, customer, end)
            now_before = before if end == moment else self._preview(facts, old, customer, moment)
            now_after = after if end == moment else self._preview(facts, changed, customer, moment)
            lines = difference_by_line(before.documents, after.documents)
            found.append(ChangePreview(before, after, now_before, now_after, lines))
        return found

    def _facts(self, tenant_id: str, master_number: int, now: datetime) -> _Facts:
        with self._database.tenant(tenant_id) as connection:
            previous = bill_runs.last_finalised(connection)
        before = json.dumps(previous["cut"]) if previous else None
        return _Facts(tenant_id, master_number, now, self._reader.now("preview").to_json(), before)

    def _preview(self, facts: _Facts, master: MasterData | None, customer: str, up_to: datetime) -> Preview:
        if master is None:
            return Preview(customer, up_to, facts.now, ())
        # The run that will bill this comes then at the earliest: credit that ends before is not used.
        made_at = max(facts.now, up_to)
        task = ChunkTask(
            facts.tenant_id,
            "preview",
            0,
            0,
            1,
            facts.master_number,
            up_to,
            made_at,
            local_date(made_at, master.tenant.timezone),
            facts.cut,
            facts.previous_cut,
        )
        _, documents, parked = compute_documents(
            task, self._store, self._database, self._chain, only=[customer], master=master, desk=self._desk
        )
        reason = next((one["reason"] for one in parked), "")
        return Preview(customer, up_to, facts.now, tuple(documents), reason)


@dataclass(frozen=True)
class _Facts:
    tenant_id: str
    master_number: int
    now: datetime
    cut: str
    previous_cut: str | None


def next_due(master: MasterData, customer: str, now: datetime) -> datetime:
    """When something of the customer is due next: the first end of an open period, or start of a contract, after now.

    `now` where nothing more is to come; what is due already is due then, too.
    """
    found: list[datetime] = []
    for code in master.subscriptions_of.get(customer, ()):
        for segment in contract(master.subscriptions[code], master.tenant.timezone).segments:
            if segment.end <= now:
                continue
            if segment.start > now:
                found.append(segment.start)
                continue
            found.append(segment.grid.at(now).end)
            if segment.end != FOREVER:
                found.append(segment.end)
    return min(found, default=now)


def difference_by_line(before: Sequence[Document], after: Sequence[Document]) -> tuple[LineChange, ...]:
    """The lines of both sets of documents, each once, with its amount in either; in the order of the documents."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for place, documents in enumerate((before, after)):
        for document in documents:
            sign = -1 if document.type == "credit_note" else 1
            for line in document.lines:
                when = tuple(sorted(line.when.items())) if line.when else ()
                credit = sign * line.quantity < 0
                # Not the end: a piece that a change cuts short is the same line with another amount.
                key = (document.currency, line.subscription, line.plan, line.charge, line.start, when, credit)
                entry = found.setdefault(key, [line, document.currency, ZERO, ZERO])
                entry[0] = line
                entry[2 + place] += sign * line.amount
    return tuple(LineChange(*entry) for entry in found.values())


def totals_of(documents: Sequence[Document]) -> dict[str, dict[str, Decimal]]:
    """Net, tax, gross and due by currency; a credit note counts negative."""
    sums: dict[str, dict[str, Decimal]] = {}
    for document in documents:
        sign = -1 if document.type == "credit_note" else 1
        one = sums.setdefault(document.currency, dict.fromkeys(("net", "tax", "gross", "due"), ZERO))
        for name in one:
            one[name] += sign * getattr(document, name)
    return dict(sorted(sums.items()))
