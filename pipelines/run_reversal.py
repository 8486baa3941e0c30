"""Taking a finalised run back as one act: a document against each of its documents, then it counts as never billed.

Owns the order that makes it safe to be killed: batches of documents, each in a transaction that has the run locked, and
only when nothing is left the step in the master data that takes the run's mark away. Until then no other run begins.
Receivables, ledger, wallets and archive see credit notes like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any
from uuid import UUID

from billing.credit_notes import CreditLine, credit_note, mirror
from billing.documents import Document
from billing.numbers import patterns_of
from billing.periods import local_date
from billing.settle import BilledDocument
from pipelines.run_credit import restoring
from storage.master_chain import MasterChain
from storage.sql import bill_runs, invoices, steps, tenants, wallet_moves
from storage.sql.database import Connection, Database

BATCH = 500


def reverse_documents(
    database: Database,
    chain: MasterChain,
    tenant_id: str,
    run_id: str,
    clock: Callable[[], datetime],
    checkpoint: Callable[[str], None],
    bring_moves: Callable[[str], None],
) -> None:
    """Bring a run that is being reversed to its end; a repeat goes on where another one stopped."""
    after: UUID | None = None  # what is behind it stands as it was; a repeat begins in front and finds it taken back
    while True:
        with database.tenant(tenant_id) as connection:
            run = bill_runs.get(connection, run_id, lock=True)
            if run["state"] != "reversing":
                return
            rows = invoices.to_reverse(connection, run_id, BATCH, after)
            if rows:
                _reverse(connection, tenant_id, run, rows, clock())
                after = rows[-1]["id"]
                checkpoint("reversing")
            else:
                step = {"at": run["made_at"].isoformat(), "bill_run_reversed": {"id": run_id, "mark": run["mark"]}}
                change = steps.append_step(connection, tenant_id, step, run["reversed_by"], now=clock())
                checkpoint("reversal marked")
                bill_runs.move(connection, run_id, expected=("reversing",), state="reversed", now=clock())
        bring_moves(tenant_id)
        if not rows:
            chain.project(database, tenant_id, up_to=change.number)
            checkpoint("reversed")
            return


def _reverse(
    connection: Connection, tenant_id: str, run: Mapping[str, Any], rows: Sequence[dict[str, Any]], now: datetime
) -> None:
    tenant = tenants.by_id(connection, tenant_id)
    day = local_date(tenant.test_clock or now, tenant.timezone)
    entities = {one["code"]: one for one in tenants.legal_entities(connection)}
    finals: list[invoices.Final] = []
    taken_back: list[Mapping[str, Any]] = []
    for row in rows:
        document = against(BilledDocument(row["number"], row["document"]), max(day, row["document"].date), row["notes"])
        if document is None:
            continue
        taken_back.append(row)
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
            )
        )
    for made, row in zip(invoices.finalise(connection, tenant_id, finals, now), taken_back, strict=True):
        if row["document"].type == "invoice" and not row["notes"]:
            moves = restoring(made.number, row["document"], row["number"])
            wallet_moves.add(connection, tenant_id, moves, now)


def against(billed: BilledDocument, day: date, notes: Sequence[Document]) -> Document | None:
    """What takes a document back: its mirror, or what credit notes by hand have left; a credit note by an invoice.

    None where they have left nothing. That is said by the lines: a document over 0.00 can be open, and the sum of the
    notes can be that of the document while a line and its opposite in another tax group are open.
    """
    if billed.document.type == "credit_note":
        return replace(mirror(billed, day), type="invoice")
    if not notes:
        return mirror(billed, day)
    left = {number: line.stated for number, line in enumerate(billed.document.lines, start=1)}
    for note in notes:
        for line in note.lines:
            if line.corrects is not None:
                left[line.corrects.line] -= line.stated
    open_ = [CreditLine(number) for number, rest in left.items() if rest]
    return credit_note(billed, day, notes, open_) if open_ else None
