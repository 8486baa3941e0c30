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

from billing.document_columns import sums_of_lines
from billing.document_json import document_json, unpacked
from billing.master import MasterData
from pipelines.bill_run_chunk import (
    CUSTOMERS,
    ChunkColumns,
    ChunkTask,
    GatherTask,
    chunk_sizes,
    compute_columns,
    gather_usage,
)
from pipelines.chunk_executor import COMPUTING
from pipelines.run_credit import WalletDesk
from pipelines.run_view import tasks_of, usage_prefix
from pipelines.usage_slices import forget
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql import bill_runs, invoices
from storage.sql.database import Database
from storage.usage_log.erasing import rules_of

AMOUNTS = ("net", "tax", "gross", "prepaid", "due")
FINDINGS_MAX = 1_000


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
    """What was looked at and what was found; `proven` if nothing was. `erased` is neither proven nor wrong."""

    documents: int
    findings: tuple[Finding, ...]
    gaps: tuple[dict[str, Any], ...]
    erased: tuple[Erased, ...] = ()

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
    master = chain.at(tenant_id, run["master_number"])
    forgotten = {code: str(one.form["erased"]) for code, one in master.customers.items() if "erased" in one.form}
    if forgotten:  # they stand elsewhere in the order of codes, or nowhere: no family may be cut in two
        chunks = [{"chunk": place, "customers": size} for place, size in enumerate(chunk_sizes(master, CUSTOMERS))]
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
    erased = _forgotten(database, run_id, tenant_id, forgotten)
    findings, without_usage = _explained(store, tenant_id, master, findings, forgotten, {one.number for one in erased})
    count += sum(one.customer in forgotten and not master.families.get(one.customer) for one in erased)
    return Verification(count, tuple(findings[:FINDINGS_MAX]), gaps, (*erased, *without_usage))


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


def _explained(
    store: ObjectStore,
    tenant_id: str,
    master: MasterData,
    findings: list[Finding],
    forgotten: Mapping[str, str],
    numbers: set[str],
) -> tuple[list[Finding], list[Erased]]:
    """Findings that stay, and those of customers whose usage was erased, with the rule."""
    open_ = [
        one
        for one in findings
        if one.number not in numbers and forgotten.keys().isdisjoint((one.customer, *master.family(one.customer)))
    ]
    keys = {
        key: one.customer
        for one in open_
        for member in master.family(one.customer)
        if member in master.customers
        for key in master.keys_of(member)
    }
    rules = rules_of(store, tenant_id, list(keys)) if keys else {}
    by_customer: dict[str, str] = {}
    for key, rule in rules.items():
        by_customer[keys[key]] = rule
    erased = {
        (one.number, one.customer): Erased(one.number, one.customer, by_customer[one.customer])
        for one in open_
        if one.customer in by_customer
    }
    return [one for one in open_ if one.customer not in by_customer], list(erased.values())


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
