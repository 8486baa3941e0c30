"""Taking a finalised run back as one act: a document against each of its documents, then it counts as never billed.

Owns the order that makes it safe to be killed: batches of documents, each in a transaction that has the run locked, and
only when nothing is left the step in the master data that takes the run's mark away. Until then no other run begins.
Receivables, ledger, wallets and archive see credit notes and invoices like any other.

Invoices that the run had cancelled, to make them again, are issued once more and count as billed in the place of the
first ones. They come last: by then the credit is free again that their successors used, and they take what they had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any
from uuid import UUID

from billing.bill import BillResult, Credit, discounts_again
from billing.documents import Document
from billing.errors import Unavailable
from billing.numbers import patterns_of
from billing.periods import local_date
from billing.settle import BilledDocument
from billing.taking_back import against, credit_used, issued_again, taken_again, with_credit
from pipelines.run_credit import Facts, WalletDesk, bill_with_credit, restoring, settling
from storage.master_chain import MasterChain
from storage.sql import bill_runs, invoices, steps, tenants, wallet_moves
from storage.sql.database import Connection, Database

BATCH = 500

# Places where a crash test kills the driver; a reversal that issues invoices again passes each at least once.
STEPS = ("reversing", "batch reversed", "issuing again", "reversal marked", "reversed")


@dataclass(frozen=True)
class Reversal:
    """Brings runs that are being reversed to their end; what the driver of the run decides or does is handed in."""

    _database: Database
    _chain: MasterChain
    _desk: WalletDesk | None
    _clock: Callable[[], datetime]
    _checkpoint: Callable[[str], None]
    _bring_moves: Callable[[str], None]

    def take_back(self, tenant_id: str, run_id: str) -> None:
        """Take back what is left of a run; a repeat goes on where another one stopped, two at once do no harm."""
        for cancelling in (False, True):
            after: UUID | None = None  # what is behind it stands as it was; a repeat begins in front
            while True:
                with self._database.tenant(tenant_id) as connection:
                    run = bill_runs.get(connection, run_id, lock=True)
                    if run["state"] != "reversing":
                        return
                    rows = invoices.to_reverse(connection, run_id, BATCH, after, cancelling=cancelling)
                    if rows:
                        self._batch(connection, tenant_id, run, rows)
                        self._checkpoint("issuing again" if cancelling else "reversing")
                self._bring_moves(tenant_id)
                if not rows:
                    break
                after = rows[-1]["id"]
                self._checkpoint("batch reversed")

    def mark(self, tenant_id: str, run_id: str) -> None:
        """Say that what the run billed is not billed any more, when all of it is taken back: the next run may begin."""
        with self._database.tenant(tenant_id) as connection:
            run = bill_runs.get(connection, run_id, lock=True)
            if run["state"] != "reversing":
                return
            step = {"at": run["made_at"].isoformat(), "bill_run_reversed": {"id": run_id, "mark": run["mark"]}}
            change = steps.append_step(connection, tenant_id, step, run["reversed_by"], now=self._clock())
            self._checkpoint("reversal marked")
            bill_runs.move(connection, run_id, expected=("reversing",), state="reversed", now=self._clock())
        self._chain.project(self._database, tenant_id, up_to=change.number)
        self._checkpoint("reversed")

    def _batch(
        self, connection: Connection, tenant_id: str, run: Mapping[str, Any], rows: Sequence[dict[str, Any]]
    ) -> None:
        now = self._clock()
        tenant = tenants.by_id(connection, tenant_id)
        day = local_date(tenant.test_clock or now, tenant.timezone)
        entities = {one["code"]: one for one in tenants.legal_entities(connection)}
        notes = {row["number"]: row["refers_to"] for row in rows if row["document"].takes_back}
        cancelled = invoices.cancelled(connection, list(notes.values()))
        finals: list[invoices.Final] = []
        made_of: list[tuple[Mapping[str, Any], _Again | None]] = []
        for row in rows:
            on = max(day, row["document"].date)
            again = None
            if row["number"] in notes:
                again = self._again(tenant_id, run, cancelled[notes[row["number"]]], row["number"], on)
            document = again.document if again else _against(row, on)
            if document is None:
                continue
            made_of.append((row, again))
            entity = entities[row["entity"]]
            series = patterns_of(entity["code"], entity["form"], is_default=entity["is_default"])
            finals.append(
                invoices.Final(
                    document=document,
                    entity=row["entity"],
                    pattern=series[document.type],
                    buyer=row["buyer"],
                    made_at=tenant.test_clock or now,
                    reason=f"bill run {run['number']} was reversed",
                    reverses_run=str(run["id"]),
                    stands_for=again.first if again else None,
                )
            )
        for made, (row, again) in zip(invoices.finalise(connection, tenant_id, finals, now), made_of, strict=True):
            if again is not None:
                moves = settling(again.claim, again.holders, {again.claim: made.number}, ())
            elif row["document"].type == "invoice" and not row["notes"]:
                moves = restoring(made.number, row["document"], row["number"])
            else:
                continue
            wallet_moves.add(connection, tenant_id, moves, now)

    def _again(
        self, tenant_id: str, run: Mapping[str, Any], cancelled: Mapping[str, Any], note: str, day: date
    ) -> _Again:
        """The invoice that a credit note of the run had cancelled, with the wallet credit that it used, if there is any
        left: it was free since, and a reservation may have spent it."""
        document = issued_again(cancelled["document"], note, day)
        claim = f"{run['id']}/{note}"  # the lanes answer it the same for ever, so a repeat makes the same document
        first = str(cancelled["place"])
        master = self._chain.at(tenant_id, run["master_number"])
        owners = sorted({owner for owner, _ in credit_used(document)} & master.wallet_customers)
        if self._desk is None or not owners:
            return _Again(document, first, claim)
        # As of when it was made first: what has expired since had not then, and what came later it did not use.
        facts = Facts(tenant_id, claim, cancelled["made_at"], run["master_number"], master)

        def make(_: Sequence[str], credit: Credit) -> BillResult:
            used = taken_again(document, credit, claim)
            return BillResult((with_credit(document, used, discounts_again(master, document)),), (claim,), ())

        billed = bill_with_credit(self._desk, facts, [document.customer], owners, make)
        if billed.result.parked:
            raise Unavailable(f"a wallet changes faster than {note} can be taken back: drive the run again")
        return _Again(billed.result.documents[0], first, claim, billed.holders)


@dataclass(frozen=True)
class _Again:
    """An invoice that is issued again: in whose place, and whose credit is held for it under which claim."""

    document: Document
    first: str
    claim: str
    holders: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def _against(row: Mapping[str, Any], day: date) -> Document | None:
    return against(BilledDocument(row["number"], row["document"]), day, row["notes"])
