"""Files of final documents: whatever is wanted and not archived is made, archived and noted.

A reconciler: it looks for what is missing, makes one batch, and may be cut off or run twice. The files themselves are
`pipelines/documents.py`; that a document exists without files for a while is allowed, the other way round is not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from billing.einvoice.issued import numbered
from billing.errors import BillingError, Conflict
from pipelines.document_faults import Refused, tried
from pipelines.documents import BUILT_IN, FinalDocument, Outcome, issuer_of, render_and_archive
from pipelines.layout_blocks import Layout, layout_of
from pipelines.run_finalising import buyer_of
from storage.archive import Archive
from storage.sql import invoices, issued_invoices, layouts, steps, tenants
from storage.sql.database import Connection, Database

LOG = logging.getLogger("cloudbilling.documents")
BATCH = 100
FORM_BYTES = 16_000_000  # of JSON of documents made elsewhere in a batch: each may hold attachments of some megabytes
WAITED = timedelta(minutes=1)  # before then whoever made the document is about to make its files


def make_files(
    database: Database,
    archive: Archive,
    tenant_id: str,
    clock: Callable[[], datetime],
    *,
    run_id: str | None = None,
    document_id: str | None = None,
) -> int:
    """Make the files of the next documents that lack them; how many were dealt with (0: nothing is left).

    `run_id` and `document_id` choose those of one run, or one document.
    """
    with database.tenant(tenant_id) as connection:
        wanted = _with_forms(connection, invoices.files_wanted(connection, BATCH, run_id, document_id))
        if not wanted:
            return 0
        tenant = tenants.by_id(connection, tenant_id)
        entities = {row["code"]: row for row in tenants.legal_entities(connection)}
        # Before the first page is drawn: after a crash the same documents are drawn with the same versions.
        pinned = layouts.pin(connection, tenant_id, [(str(row["id"]), row["document"].type) for row in wanted])
    drawn: dict[tuple[str | None, int], Layout | Refused] = {}  # both types have the same blocks
    by_entity: dict[str, list[FinalDocument]] = {}
    outcomes: list[Outcome] = []
    for row in wanted:
        used = pinned[str(row["id"])]
        if (used.code, used.version) not in drawn:
            drawn[used.code, used.version] = tried(partial(_layout, used), row["number"])
        layout = drawn[used.code, used.version]
        final = layout if isinstance(layout, Refused) else tried(partial(_final, row, layout), row["number"])
        if isinstance(final, Refused):
            outcomes.append(Outcome(str(row["id"]), row["number"], "parked", reason=final.reason))
        else:
            by_entity.setdefault(row["entity"], []).append(final)
    for code, documents in by_entity.items():
        issuer = issuer_of(tenant_id, tenant.timezone, tenant.country, entities[code])
        outcomes += render_and_archive(documents, issuer, archive)
    with database.tenant(tenant_id) as connection:
        invoices.files_made(connection, [_noted(outcome) for outcome in outcomes], clock())
    return len(outcomes)


def _with_forms(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first of these documents, each with its form as `issued`: as many as FORM_BYTES hold, one at least."""
    found: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        form, form_bytes = issued_invoices.sized_form(connection, row["id"]) if row["outside"] else (None, 0)
        size += form_bytes
        if found and size > FORM_BYTES:
            break
        found.append({**row, "issued": form})
    return found


def _noted(outcome: Outcome) -> dict[str, Any]:
    return {
        "id": outcome.document_id,
        "state": outcome.state,
        "sha256": outcome.sha256,
        "e_invoice": outcome.e_invoice,
        "reason": outcome.reason,
    }


def _layout(used: layouts.Used) -> Layout:
    return BUILT_IN if used.form is None else layout_of(used.form)


def _final(row: Mapping[str, Any], layout: Layout) -> FinalDocument:
    refers = {row["refers_to"]: row["refers_on"]} if row["refers_to"] and row["refers_on"] else {}
    issued = None if row["issued"] is None else numbered(row["issued"], row["number"])
    return FinalDocument(
        str(row["id"]), row["number"], row["document"], row["buyer"], row["due_on"], refers, layout, issued
    )


def want_again(connection: Connection, tenant_id: str, number: str, now: datetime) -> str:
    """Let the files of a document be made that could not be made; its id, for `make_files`.

    What stood in the way is with the layout, the seller's data, the buyer's, or with us: all of them are taken as they
    are now. Amounts, lines and dates are the document's. One that waits already is left as it is. Errors: NotFound,
    Conflict for a document whose files are archived: they never change.
    """
    row = invoices.get(connection, number)
    if row["file_state"] == "archived":
        raise Conflict(f"the files of {number} are archived, and stay as they are", number=number)
    document_id = str(row["id"])
    _, master = steps.current(connection, tenant_id)
    customer = master.customers.get(row["customer"])
    known = customer is not None and "erased" not in customer.form and not row["outside"]
    buyer = buyer_of(customer) if customer is not None and known else None
    if invoices.files_again(connection, document_id, row["customer"], buyer, now):
        layouts.pin_again(connection, tenant_id, document_id, row["type"])
    return document_id


@dataclass(frozen=True)
class LeftFiles:
    """In rounds: files that nobody makes any more, as who was about to was cut off or met a store that was away."""

    database: Database
    archive: Archive
    clock: Callable[[], datetime]

    def round(self) -> int:
        """How many documents were dealt with. A tenant whose store is away does not keep the others waiting."""
        with self.database.system() as connection:
            found = invoices.files_left(connection, self.clock() - WAITED)
        count = 0
        for tenant_id in found:
            try:
                while made := make_files(self.database, self.archive, tenant_id, self.clock):
                    count += made
            except BillingError as error:
                LOG.warning("files of tenant %s wait: %s", tenant_id, error.detail)
        return count
