"""Files of final documents: whatever is wanted and not archived is made, archived and noted.

A reconciler: it looks for what is missing, makes one batch, and may be cut off or run twice. The files themselves are
`pipelines/documents.py`; that a document exists without files for a while is allowed, the other way round is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pipelines.documents import BUILT_IN, FinalDocument, Issuer, render_and_archive
from pipelines.layout_blocks import Layout, layout_of
from storage.archive import Archive
from storage.sql import invoices, layouts, tenants
from storage.sql.database import Database

BATCH = 100


def make_files(
    database: Database, archive: Archive, tenant_id: str, clock: Callable[[], datetime], *, run_id: str | None = None
) -> int:
    """Make the files of the next documents that lack them; how many were dealt with (0: nothing is left)."""
    with database.tenant(tenant_id) as connection:
        wanted = invoices.files_wanted(connection, BATCH, run_id)
        if not wanted:
            return 0
        tenant = tenants.by_id(connection, tenant_id)
        entities = {row["code"]: row for row in tenants.legal_entities(connection)}
        # Before the first page is drawn: after a crash the same documents are drawn with the same versions.
        pinned = layouts.pin(connection, tenant_id, [(str(row["id"]), row["document"].type) for row in wanted])
    drawn = {(one.code, one.version): _layout(one) for one in pinned.values()}  # both types have the same blocks
    by_entity: dict[str, list[dict[str, Any]]] = {}
    for row in wanted:
        by_entity.setdefault(row["entity"], []).append(row)
    outcomes: list[dict[str, Any]] = []
    for code, rows in by_entity.items():
        entity = entities[code]
        issuer = Issuer(tenant_id, tenant.timezone, entity["country"] or tenant.country or "", entity["form"])
        for outcome in render_and_archive(
            [_final(row, drawn[(used := pinned[str(row["id"])]).code, used.version]) for row in rows], issuer, archive
        ):
            outcomes.append(
                {
                    "id": outcome.document_id,
                    "state": outcome.state,
                    "sha256": outcome.sha256,
                    "e_invoice": outcome.e_invoice,
                    "reason": outcome.reason,
                }
            )
    with database.tenant(tenant_id) as connection:
        invoices.files_made(connection, outcomes, clock())
    return len(outcomes)


def _layout(used: layouts.Used) -> Layout:
    return BUILT_IN if used.form is None else layout_of(used.form)


def _final(row: Mapping[str, Any], layout: Layout) -> FinalDocument:
    refers = {row["refers_to"]: row["refers_on"]} if row["refers_to"] and row["refers_on"] else {}
    return FinalDocument(str(row["id"]), row["number"], row["document"], row["buyer"], row["due_on"], refers, layout)
