"""Proves a bill run: derives its documents again from the log and the master data, and compares them to the cent.

Owns the comparison; the documents come from the very functions of the run, out of the facts that its plan fixed (cut,
master number, clock), not from its stored results. What a person changed in the tables shows, and so does a number
that is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from uuid import uuid4

import msgspec

from billing.document_columns import sums_of_lines
from billing.document_json import document_json, unpacked
from pipelines.bill_run import COMPUTING, tasks_of, usage_prefix
from pipelines.bill_run_chunk import ChunkColumns, ChunkTask, GatherTask, compute_columns, gather_usage
from pipelines.run_credit import WalletDesk
from pipelines.usage_slices import forget
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql import bill_runs, invoices
from storage.sql.database import Database

AMOUNTS = ("net", "tax", "gross", "prepaid", "due")
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
    tasks = tasks_of(tenant_id, run, chunks)
    prefix = f"{usage_prefix(tenant_id, run_id)}verify-{uuid4().hex}/"
    gathered = prefix if len(tasks) > 1 else None
    try:
        if gathered is not None:
            gather_usage(GatherTask(tuple(tasks), gathered), store, database, chain)

        def checked(task: ChunkTask) -> tuple[int, list[Finding]]:
            found = compute_columns(
                replace(task, gathered=gathered, time_zones=None), store, database, chain, before=run_id, desk=desk
            )
            return _compared(database, tenant_id, run_id, found, parked)

        at_once = COMPUTING if desk is None else 1
        with ThreadPoolExecutor(at_once, "verify") as pool:
            for first in range(0, len(tasks), at_once):  # no more are begun when enough is found
                for documents, wrong in pool.map(checked, tasks[first : first + at_once]):
                    count += documents
                    findings.extend(wrong)
                if len(findings) > FINDINGS_MAX:
                    break
    finally:
        if gathered is not None:
            forget(store, gathered)
    return Verification(count, tuple(findings[:FINDINGS_MAX]), gaps)


def _compared(
    database: Database, tenant_id: str, run_id: str, found: ChunkColumns, parked: set[str]
) -> tuple[int, list[Finding]]:
    """How many documents of a chunk there are, and where they are not what the log gives."""
    expected: dict[str, list[dict[str, Any]]] = {customer: [] for customer in found.customers}
    sums = sums_of_lines(found.columns.lines)
    columns = ("document", "customer", "type", *AMOUNTS, "body")
    for row in found.columns.documents.select(columns).iter_rows(named=True):
        row["lines_amount"] = sums.get(row["document"], 0)
        if row["customer"] not in parked:  # also for a reason that is gone since: the run made nothing for him
            expected[row["customer"]].append(row)
    stored: dict[str, list[dict[str, Any]]] = {}
    with database.tenant(tenant_id) as connection:
        for row in invoices.of_run(connection, run_id, found.customers):
            stored.setdefault(row["customer"], []).append(row)
    findings: list[Finding] = []
    for customer, rows in expected.items():
        findings.extend(_differences(customer, rows, stored.get(customer, [])))
    return sum(len(rows) for rows in stored.values()), findings


def _differences(customer: str, expected: list[dict[str, Any]], stored: list[dict[str, Any]]) -> Iterator[Finding]:
    for place, should in enumerate(expected):
        if place >= len(stored):
            currency = _form(should["body"])["currency"]
            yield Finding("", customer, f"a document of {should['gross']} {currency} is missing")
            continue
        row = stored[place]
        number = row["number"]
        if row["packed"] is None or bytes(row["packed"]) != should["body"]:
            form = _form(should["body"])
            # Read and written again: one of an older version lacks what later versions know, it is no difference.
            known = msgspec.json.decode(document_json(invoices.stored_document(row)))
            if form != known:
                names = sorted(name for name in form if form[name] != known.get(name))
                yield Finding(number, customer, f"differs from what the log gives in: {', '.join(names)}")
        wrong = [name for name in AMOUNTS if row[name] != Decimal(should[name])]
        if wrong:
            yield Finding(number, customer, f"the columns {', '.join(wrong)} differ from what the log gives")
        if row["lines_amount"] != should["lines_amount"]:
            yield Finding(number, customer, "the amounts of its rows in invoice_lines differ from what the log gives")
        if row["taxes_amount"] != Decimal(should["tax"]):
            yield Finding(number, customer, "the amounts of its rows in invoice_taxes differ from what the log gives")
        if row["receivable"] != Decimal(should["due"]) * (-1 if should["type"] == "credit_note" else 1):
            yield Finding(number, customer, "its postings differ from what the log gives")
    for row in stored[len(expected) :]:
        yield Finding(row["number"], customer, "the log gives no such document")


def _form(body: bytes) -> dict[str, Any]:
    return msgspec.json.decode(unpacked(body))
