"""Proves a bill run: derives its documents again from the log and the master data, and compares them to the cent.

Owns the comparison; the documents come from the very functions of the run, out of the facts that its plan fixed (cut,
master number, clock), not from its stored results. What a person changed in the tables shows, and so does a number
that is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from pipelines.bill_run_chunk import ChunkTask, compute_documents
from pipelines.run_credit import WalletDesk
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql import bill_runs, invoices
from storage.sql.database import Database

FINDINGS_MAX = 1_000


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be; `number` is "" for a document that is missing."""

    number: str
    customer: str
    detail: str


@dataclass(frozen=True)
class Verification:
    """What was looked at and what was found; `proven` if nothing was."""

    documents: int
    findings: tuple[Finding, ...]
    gaps: tuple[dict[str, Any], ...]

    @property
    def proven(self) -> bool:
        return not self.findings and not self.gaps


def verify_run(
    database: Database,
    store: ObjectStore,
    chain: MasterChain,
    tenant_id: str,
    run_id: str,
    desk: WalletDesk | None = None,
) -> Verification:
    """Compare every document of a finalised run with what the log gives today; at most FINDINGS_MAX findings.

    With a `desk` the wallet credit that documents used is what the lanes have recorded for the run.
    """
    with database.tenant(tenant_id) as connection:
        run = bill_runs.get(connection, run_id)
        chunks = bill_runs.chunks(connection, run_id)
        gaps = tuple(invoices.number_gaps(connection))
    parked = {one["customer"] for one in run["parked"]}
    count, findings = 0, list[Finding]()
    first = 0
    for chunk in chunks:
        task = ChunkTask(
            tenant_id,
            run_id,
            chunk["chunk"],
            first,
            chunk["customers"],
            run["master_number"],
            run["up_to"],
            run["made_at"],
            run["document_date"],
            json.dumps(run["cut"]),
            json.dumps(run["previous_cut"]) if run["previous_cut"] else None,
        )
        first += chunk["customers"]
        customers, documents, _ = compute_documents(task, store, database, chain, before=run_id, desk=desk)
        expected: dict[str, list[dict[str, Any]]] = {customer: [] for customer in customers}
        for document in documents:
            if document.customer in parked:
                continue  # also for a reason that is gone since: the run made nothing for him
            expected[document.customer].append(msgspec.json.decode(invoices.document_json(document)))
        stored: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        with database.tenant(tenant_id) as connection:
            for row in invoices.of_run(connection, run_id, customers):
                stored.setdefault(row["customer"], []).append((row["number"], row))
        for customer, forms in expected.items():
            count += len(stored.get(customer, ()))
            findings.extend(_differences(customer, forms, stored.get(customer, [])))
        if len(findings) > FINDINGS_MAX:
            break
    return Verification(count, tuple(findings[:FINDINGS_MAX]), gaps)


def _differences(
    customer: str, expected: list[dict[str, Any]], stored: list[tuple[str, dict[str, Any]]]
) -> Iterator[Finding]:
    for place, form in enumerate(expected):
        if place >= len(stored):
            yield Finding("", customer, f"a document of {form['gross']} {form['currency']} is missing")
            continue
        number, row = stored[place]
        # Read and written again: a document of an older version lacks what later versions know, it is no difference.
        known = msgspec.json.decode(invoices.document_json(invoices.document_from(row["document"])))
        if form != known:
            names = sorted(name for name in form if form[name] != known.get(name))
            yield Finding(number, customer, f"differs from what the log gives in: {', '.join(names)}")
        wrong = [name for name in ("net", "tax", "gross", "prepaid", "due") if row[name] != Decimal(form[name])]
        if wrong:
            yield Finding(number, customer, f"the columns {', '.join(wrong)} differ from what the log gives")
        if row["lines_amount"] != sum((Decimal(line["amount"]) for line in form["lines"]), Decimal(0)):
            yield Finding(number, customer, "the amounts of its rows in invoice_lines differ from what the log gives")
    for number, _ in stored[len(expected) :]:
        yield Finding(number, customer, "the log gives no such document")
