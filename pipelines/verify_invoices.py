"""Proves a bill run: derives its documents again from the log and the master data, and compares them to the cent.

Owns the comparison; the documents come from the very functions of the run, out of the facts that its plan fixed (cut,
master number, clock), not from its stored results. What a person changed in the tables shows, and so does a number
that is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from uuid import uuid4

import msgspec
import zstandard

from billing.document_columns import sums_of_lines
from billing.document_json import document_from, document_json, unpacked
from billing.documents import Document
from pipelines.bill_run_chunk import (
    CUSTOMERS,
    ChunkColumns,
    ChunkTask,
    GatherTask,
    billable,
    chunk_sizes,
    compute_columns,
    gather_usage,
)
from pipelines.chunk_executor import COMPUTING
from pipelines.erased_usage import AMOUNTS, ErasedUsage, faults_of, forgotten_in
from pipelines.run_credit import WalletDesk
from pipelines.run_view import tasks_of, usage_prefix
from pipelines.usage_slices import forget
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql import bill_runs, invoices
from storage.sql.database import Database

FINDINGS_MAX = 1_000
ERASED_MAX = 1_000  # documents that are named; all are counted
UNREADABLE = "the stored document cannot be read"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be; `number` is "" for a document that is missing."""

    number: str
    customer: str
    detail: str


@dataclass(frozen=True)
class Erased:
    """A document that cannot be derived any more: what it rests on was erased under a rule. Its own sums were looked
    at."""

    number: str
    customer: str
    rule: str


@dataclass(frozen=True)
class Verification:
    """What was looked at and what was found; `proven` if nothing was. `erased` is neither proven nor wrong; the first
    of `erased_count` in the order of their numbers."""

    documents: int
    findings: tuple[Finding, ...]
    gaps: tuple[dict[str, Any], ...]
    erased: tuple[Erased, ...] = ()
    erased_count: int = 0

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
    count, findings, without_usage = 0, list[Finding](), list[Erased]()
    master = chain.at(tenant_id, run["master_number"])
    forgotten = forgotten_in(master)
    if forgotten:  # they stand elsewhere in the order of codes, or nowhere: no family may be cut in two
        chunks = [{"chunk": place, "customers": size} for place, size in enumerate(chunk_sizes(master, CUSTOMERS))]
    usage = ErasedUsage(store, tenant_id, master, forgotten)
    tasks = tasks_of(tenant_id, run, chunks)
    prefix = f"{usage_prefix(tenant_id, run_id)}verify-{uuid4().hex}/"
    gathered = prefix if len(tasks) > 1 else None
    try:
        if gathered is not None:
            gather_usage(GatherTask(tuple(tasks), gathered), store, database, chain)

        def checked(task: ChunkTask) -> tuple[int, list[Finding], list[Erased]]:
            found = compute_columns(
                replace(task, gathered=gathered, time_zones=None), store, database, chain, before=run_id, desk=desk
            )
            return _compared(database, tenant_id, run_id, found, parked, usage)

        at_once = COMPUTING if desk is None else 1
        with ThreadPoolExecutor(at_once, "verify") as pool:
            for first in range(0, len(tasks), at_once):  # no more are begun when enough is found
                for documents, wrong, gone in pool.map(checked, tasks[first : first + at_once]):
                    count += documents
                    findings.extend(wrong)
                    without_usage.extend(gone)
                if len(findings) > FINDINGS_MAX:
                    break
    finally:
        if gathered is not None:
            forget(store, gathered)
    derived = set(billable(master))
    erased = _forgotten(database, run_id, tenant_id, forgotten)
    of_nobody = sorted({one.customer for one in erased if one.customer not in derived})
    with database.tenant(tenant_id) as connection:
        rows = invoices.of_run(connection, run_id, of_nobody) if of_nobody else []
    count += len(rows)
    findings.extend(finding for row in rows for finding in own_faults(row))
    wrong = {one.number for one in findings}
    known = {one.number: one for one in (*without_usage, *erased) if one.number not in wrong}
    named = sorted(known.values(), key=lambda one: one.number)[:ERASED_MAX]
    return Verification(count, tuple(findings[:FINDINGS_MAX]), gaps, tuple(named), len(known))


def _forgotten(database: Database, run_id: str, tenant_id: str, forgotten: Mapping[str, str]) -> list[Erased]:
    """Documents of a run that go to a customer who was erased, or have lines of one."""
    if not forgotten:
        return []
    with database.tenant(tenant_id) as connection:
        rows = connection.execute(
            "SELECT i.number, i.customer, coalesce(m.customer, i.customer) AS whose FROM invoices i"
            " LEFT JOIN invoice_members m ON m.tenant_id = i.tenant_id AND m.invoice_id = i.id"
            "  AND m.customer = ANY(%(codes)s)"
            " WHERE i.run_id = %(run)s AND (i.customer = ANY(%(codes)s) OR m.customer IS NOT NULL) ORDER BY i.id",
            {"run": run_id, "codes": list(forgotten)},
        ).fetchall()
    found = {
        row["number"]: Erased(row["number"], row["customer"], forgotten.get(row["whose"]) or forgotten[row["customer"]])
        for row in rows
    }
    return list(found.values())


def _compared(
    database: Database, tenant_id: str, run_id: str, found: ChunkColumns, parked: set[str], usage: ErasedUsage
) -> tuple[int, list[Finding], list[Erased]]:
    """How many documents of a chunk there are, where they are not what the log gives, and where it cannot give it."""
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
    erased: list[Erased] = []
    for customer, rows in expected.items():
        there = stored.get(customer, [])
        differences = list(_differences(customer, rows, there))
        rule = _explained(usage, rows, there) if differences else None
        if rule is None:
            findings.extend(differences)
            continue
        numbers = {one.number for one in differences}
        for row in there:
            findings.extend(own_faults(row))
        erased.extend(Erased(number, customer, rule) for number in sorted(numbers))
    return sum(len(rows) for rows in stored.values()), findings, erased


def _explained(usage: ErasedUsage, expected: list[dict[str, Any]], stored: list[dict[str, Any]]) -> str | None:
    """The rule of an erasure that is the reason for the differences of a customer's documents."""
    documents = [document for document in map(readable, stored) if document is not None]
    if len(documents) < len(stored):
        return None
    return usage.explains([document_from(unpacked(row["body"])) for row in expected], documents)


def own_faults(row: Mapping[str, Any]) -> list[Finding]:
    """Where a stored document (a row of `invoices.of_run`) does not agree with itself."""
    document = readable(row)
    faults = [UNREADABLE] if document is None else faults_of(row, document)
    return [Finding(row["number"], row["customer"], fault) for fault in faults]


def readable(row: Mapping[str, Any]) -> Document | None:
    """The stored document; None for bytes that no version wrote, which must not end the search for others."""
    try:
        return invoices.stored_document(row)
    except (msgspec.MsgspecError, zstandard.ZstdError):
        return None


def _differences(customer: str, expected: list[dict[str, Any]], stored: list[dict[str, Any]]) -> Iterator[Finding]:
    for place, should in enumerate(expected):
        if place >= len(stored):
            currency = _form(should["body"])["currency"]
            yield Finding("", customer, f"a document of {should['gross']} {currency} is missing")
            continue
        row = stored[place]
        number = row["number"]
        if row["packed"] is None or bytes(row["packed"]) != should["body"]:
            document = readable(row)
            if document is None:
                yield Finding(number, customer, UNREADABLE)
                continue
            form = _form(should["body"])
            # Read and written again: one of an older version lacks what later versions know, it is no difference.
            known = msgspec.json.decode(document_json(document))
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
