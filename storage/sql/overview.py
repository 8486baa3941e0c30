# ruff: noqa: S608 - queries are put together from constants; every value is a parameter
"""What the pages show of invoices and bill runs: lists with filter, order and cursor, sums by currency, what is open.

Only reads. Each function takes a connection of one tenant (row-level security does the rest). Sums are made per
currency and never across. What an invoice is, is written by `storage/sql/invoices.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg

from billing.errors import InvalidInput
from storage.sql.bill_runs import held_back
from storage.sql.database import Connection, containing
from storage.sql.invoices import CONCERNS, stored_form
from storage.sql.issued_invoices import IS_ISSUED

ZERO = Decimal(0)
LIMIT_MAX = 200_000
INVOICE_SORTS = {
    "number": "i.number",
    "customer": "i.customer_name",
    "issued": "i.issued_on",
    "due": "coalesce(i.due_on, '9999-12-31'::date)",  # credit notes last; 'infinity' is no date of Python
    "gross": "i.gross",
}
_CASTS = {"number": "text", "customer": "text", "issued": "date", "due": "date", "gross": "numeric"}


@dataclass(frozen=True)
class InvoiceRow:
    """One document as a row of a list."""

    id: str
    number: str
    type: str
    customer: str
    customer_name: str
    country: str
    currency: str
    issued_on: date
    due_on: date | None
    net: Decimal
    tax: Decimal
    gross: Decimal
    prepaid: Decimal
    due: Decimal
    refers_to: str | None
    run: str | None
    credited: Decimal
    files: str | None

    @property
    def state(self) -> str:
        """The document's word: credited wholly or in part, or issued."""
        if self.type == "invoice" and self.credited:
            return "credited" if self.credited >= self.gross else "partly_credited"
        return "issued"


@dataclass(frozen=True)
class Total:
    """Sums within one currency; credit notes count negative."""

    currency: str
    documents: int = 0
    credit_notes: int = 0
    net: Decimal = ZERO
    tax: Decimal = ZERO
    gross: Decimal = ZERO
    due: Decimal = ZERO


@dataclass(frozen=True)
class InvoiceFilter:
    search: str = ""
    kind: str = ""
    month: str = ""  # 2026-11
    currency: str = ""
    run: str = ""
    customer: str = ""
    files: str = ""  # wanted, parked, archived

    @property
    def active(self) -> bool:
        return bool(self.search or self.month or self.currency or self.run or self.customer or self.files)


@dataclass(frozen=True)
class InvoicePage:
    items: Sequence[InvoiceRow]
    more: bool
    last: tuple[str, str] | None = None  # sort value and number of the last row, for the cursor
    prepaid: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])
    total: int = 0


_SIGN = "CASE WHEN i.type = 'credit_note' THEN -1 ELSE 1 END"
_ROW = f"""
    SELECT i.id, i.number, i.type, i.customer, i.customer_name, coalesce(i.buyer ->> 'country', '') AS country,
           i.currency, i.issued_on, i.due_on, {_SIGN} * i.net AS net, {_SIGN} * i.tax AS tax,
           {_SIGN} * i.gross AS gross, i.prepaid, {_SIGN} * i.due AS due, i.refers_to, i.run_id AS run,
           coalesce((SELECT sum(c.gross) FROM invoices c WHERE c.refers_to = i.number AND c.type = 'credit_note'), 0)
               AS credited,
           (SELECT d.state FROM document_files d WHERE d.invoice_id = i.id) AS files
    FROM invoices i
"""


def _invoice(row: Mapping[str, Any]) -> InvoiceRow:
    return InvoiceRow(**{**row, "id": str(row["id"]), "run": str(row["run"]) if row["run"] else None})


def _where(chosen: InvoiceFilter, *, kind: bool = True) -> tuple[str, dict[str, Any]]:
    conditions, given = ["true"], dict[str, Any]()
    if chosen.search:
        given["search"] = containing(chosen.search.strip())
        conditions.append(
            "(i.number ILIKE %(search)s OR i.customer_name ILIKE %(search)s OR i.customer ILIKE %(search)s)"
        )
    if kind and chosen.kind:
        given["kind"] = chosen.kind
        conditions.append("i.type = %(kind)s")
    if chosen.month:
        given["month"] = f"{chosen.month}-01"
        conditions.append("i.issued_on >= %(month)s::date AND i.issued_on < %(month)s::date + interval '1 month'")
    for name, condition in (("currency", "i.currency = %(currency)s"), ("customer", CONCERNS)):
        if getattr(chosen, name):
            given[name] = getattr(chosen, name)
            conditions.append(condition)
    if chosen.run:
        given["run"] = chosen.run
        conditions.append("i.run_id = %(run)s::uuid")
    if chosen.files:
        given["files"] = chosen.files
        conditions.append("EXISTS (SELECT FROM document_files d WHERE d.invoice_id = i.id AND d.state = %(files)s)")
    return " AND ".join(conditions), given


def invoices(
    connection: Connection,
    chosen: InvoiceFilter,
    *,
    sort: str = "issued",
    descending: bool = True,
    after: tuple[str, str] | None = None,
    limit: int = 25,
) -> InvoicePage:
    """One page of documents; `after` is the sort value and the number of the last row before it."""
    assert 0 < limit <= LIMIT_MAX
    where, given = _where(chosen)
    column, way = INVOICE_SORTS[sort], "DESC" if descending else "ASC"
    behind = ""
    if after is not None:
        given["value"], given["number"] = after
        behind = f" AND ({column}, i.number) {'<' if descending else '>'} (%(value)s::{_CASTS[sort]}, %(number)s)"
    query = (
        f"SELECT r.*, r.value::text AS value_text FROM (SELECT x.*, s.value FROM ({_ROW} WHERE {where}{behind}"
        f" ORDER BY {column} {way}, i.number {way} LIMIT %(limit)s) x"
        f" JOIN LATERAL (SELECT {column} AS value FROM invoices i WHERE i.id = x.id) s ON true) r"
        f" ORDER BY r.value {way}, r.number {way}"
    )
    try:
        rows = connection.execute(query, {**given, "limit": limit + 1}).fetchall()
    except psycopg.DataError as error:
        raise InvalidInput("the cursor or the filter has a value that does not fit its column") from error
    shown = rows[:limit]
    last = (str(shown[-1]["value_text"]), str(shown[-1]["number"])) if shown else None
    drop = ("value", "value_text")
    items = [_invoice({key: value for key, value in row.items() if key not in drop}) for row in shown]
    return InvoicePage(items, len(rows) > limit, last)


def invoice_totals(connection: Connection, chosen: InvoiceFilter) -> list[Total]:
    """Sums of all documents that fit, by currency."""
    where, given = _where(chosen)
    rows = connection.execute(
        f"SELECT i.currency, count(*) AS documents, count(*) FILTER (WHERE i.type = 'credit_note') AS credit_notes,"
        f" sum({_SIGN} * i.net) AS net, sum({_SIGN} * i.tax) AS tax, sum({_SIGN} * i.gross) AS gross,"
        f" sum({_SIGN} * i.due) AS due FROM invoices i WHERE {where} GROUP BY i.currency ORDER BY i.currency",
        given,
    ).fetchall()
    return [Total(**row) for row in rows]


def invoice_kinds(connection: Connection, chosen: InvoiceFilter) -> dict[str, int]:
    """How many documents of each kind fit the rest of the filter."""
    where, given = _where(chosen, kind=False)
    rows = connection.execute(f"SELECT i.type, count(*) AS n FROM invoices i WHERE {where} GROUP BY i.type", given)
    return {str(row["type"]): int(row["n"]) for row in rows}


def invoice_months(connection: Connection) -> list[date]:
    """The months that have documents, newest first."""
    rows = connection.execute(
        "SELECT DISTINCT date_trunc('month', issued_on)::date AS month FROM invoices ORDER BY month DESC LIMIT 120"
    ).fetchall()
    return [row["month"] for row in rows]


def currencies(connection: Connection) -> list[str]:
    return [row["currency"] for row in connection.execute("SELECT DISTINCT currency FROM invoices ORDER BY currency")]


def invoice_count(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) AS n FROM invoices").fetchone()
    return int(row["n"]) if row else 0


def invoice(connection: Connection, number: str) -> dict[str, Any] | None:
    """One document with all of its stored fields (`document`, `buyer` as JSON) and its row's state."""
    row = connection.execute(f"{_ROW} WHERE i.number = %s", (number,)).fetchone()
    if row is None:
        return None
    more = connection.execute(
        "SELECT i.document, i.packed, coalesce(d.buyer, i.buyer) AS buyer, i.made_at, i.reason, r.number AS run_number,"
        f" d.state AS files, d.reason AS parked, {IS_ISSUED} AS outside"
        " FROM invoices i LEFT JOIN bill_runs r ON r.id = i.run_id LEFT JOIN document_files d ON d.invoice_id = i.id"
        " WHERE i.number = %s",
        (number,),
    ).fetchone()
    assert more is not None, "it was there a moment ago, and invoices are never deleted"
    return {"row": _invoice(row), **more, "document": stored_form(more)}


def credit_notes_of(connection: Connection, number: str) -> list[InvoiceRow]:
    """The documents that correct this one."""
    rows = connection.execute(f"{_ROW} WHERE i.refers_to = %s ORDER BY i.issued_on, i.number LIMIT 100", (number,))
    return [_invoice(row) for row in rows]


def documents_of(connection: Connection, customer: str, *, limit: int) -> InvoicePage:
    """The newest documents of a customer, how many there are, and what they took from prepaid value."""
    page = invoices(connection, InvoiceFilter(customer=customer), limit=limit)
    given = {"customer": customer}
    count = connection.execute(f"SELECT count(*) AS n FROM invoices i WHERE {CONCERNS}", given).fetchone()
    prepaid = connection.execute(  # from his own wallet: a payer's document uses that of his children, too
        f"SELECT u.currency, sum(u.used) AS used FROM ("
        f" SELECT i.currency, {_SIGN} * i.prepaid AS used FROM invoices i WHERE i.customer = %(customer)s"
        f" AND NOT {IS_ISSUED} UNION ALL"
        f" SELECT i.currency, -{_SIGN} * m.prepaid FROM invoices i JOIN invoice_members m ON m.invoice_id = i.id"
        f" WHERE i.customer = %(customer)s UNION ALL"
        f" SELECT i.currency, {_SIGN} * m.prepaid FROM invoices i JOIN invoice_members m ON m.invoice_id = i.id"
        f" WHERE m.customer = %(customer)s) u GROUP BY u.currency",
        given,
    ).fetchall()
    return InvoicePage(
        page.items,
        page.more,
        page.last,
        {row["currency"]: row["used"] for row in prepaid},
        int(count["n"]) if count else 0,
    )


def billed_since(connection: Connection, customer: str, since: date) -> list[Total]:
    """Net sums of a customer's documents from a day on."""
    rows = connection.execute(
        f"SELECT i.currency, count(*) AS documents, sum({_SIGN} * i.net) AS net FROM invoices i"
        " WHERE i.customer = %s AND i.issued_on >= %s GROUP BY i.currency ORDER BY i.currency",
        (customer, since),
    ).fetchall()
    return [Total(row["currency"], row["documents"], net=row["net"]) for row in rows]


# -- revenue ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MonthTotal:
    month: date
    documents: int
    net: Decimal


def billed_by_month(connection: Connection, currency: str, first: date, last: date) -> list[MonthTotal]:
    """What was billed by month of the document's date; months without documents are there with zero."""
    rows = connection.execute(
        f"SELECT m.month::date AS month, count(i.id) AS documents, coalesce(sum({_SIGN} * i.net), 0) AS net"
        " FROM generate_series(%(first)s::date, %(last)s::date, interval '1 month') AS m(month)"
        " LEFT JOIN invoices i ON i.currency = %(currency)s AND i.issued_on >= m.month"
        " AND i.issued_on < m.month + interval '1 month' GROUP BY m.month ORDER BY m.month",
        {"first": first, "last": last, "currency": currency},
    ).fetchall()
    return [MonthTotal(**row) for row in rows]


@dataclass(frozen=True)
class PlanTotal:
    plan: str
    currency: str
    subscriptions: int
    lines: int
    net: Decimal


def billed_by_plan(connection: Connection, *, month: date | None = None, run: str | None = None) -> list[PlanTotal]:
    """Net of the lines by plan and currency, of a month's or a run's documents; most money first. Lines that were made
    elsewhere are of no plan."""
    rows = connection.execute(
        f"SELECT l.plan, i.currency, count(DISTINCT l.subscription) AS subscriptions, count(*) AS lines,"
        f" sum({_SIGN} * l.amount) AS net FROM invoices i JOIN invoice_lines l ON l.invoice_id = i.id"
        " WHERE (%(month)s::date IS NULL OR (i.issued_on >= %(month)s::date"
        " AND i.issued_on < %(month)s::date + interval '1 month'))"
        f" AND (%(run)s::uuid IS NULL OR i.run_id = %(run)s::uuid) AND NOT {IS_ISSUED}"
        " GROUP BY l.plan, i.currency ORDER BY net DESC, l.plan LIMIT 100",
        {"month": month, "run": run},
    ).fetchall()
    return [PlanTotal(**row) for row in rows]


@dataclass(frozen=True)
class TaxRow:
    category: str
    percent: Decimal
    currency: str
    documents: int
    base: Decimal
    amount: Decimal


def billed_by_tax(connection: Connection, run: str) -> list[TaxRow]:
    """The tax table of a run: base and tax by category, percent and currency."""
    rows = connection.execute(
        f"SELECT t.category, t.percent, i.currency, count(*) AS documents, sum({_SIGN} * t.base) AS base,"
        f" sum({_SIGN} * t.amount) AS amount FROM invoices i JOIN invoice_taxes t ON t.invoice_id = i.id"
        " WHERE i.run_id = %s::uuid GROUP BY t.category, t.percent, i.currency ORDER BY base DESC LIMIT 100",
        (run,),
    ).fetchall()
    return [TaxRow(**row) for row in rows]


# -- bill runs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunTotal:
    currency: str
    documents: int
    net: Decimal
    tax: Decimal
    gross: Decimal
    first: str | None = None  # lowest and highest number of invoices
    last: str | None = None
    before: Decimal | None = None  # net of the run before, in the same currency


@dataclass(frozen=True)
class RunRow:
    id: str
    number: int
    up_to: datetime
    document_date: date
    state: str
    paused: bool
    customers: int
    chunks: int
    chunks_computed: int
    computed_documents: int
    finalised: int
    archived: int
    files_parked: int
    parked: Sequence[Mapping[str, Any]]
    error: str | None
    waiting_reason: str | None
    created_by: str
    started_at: datetime
    ended_at: datetime | None
    master_number: int
    computed: Mapping[str, Mapping[str, Any]]  # sums of the chunks by currency, before anything is final
    checks: Mapping[str, Any]  # what the look at the computed run found
    held: Sequence[Mapping[str, str]]  # whom a guard rail keeps back, and nobody has let through
    approved_by: str | None
    reversed_by: str | None
    taken_back: int  # documents that were reversed
    totals: Sequence[RunTotal] = ()

    @property
    def running(self) -> bool:
        """Whether something still happens by itself."""
        return self.state in ("planned", "approved", "finalised", "reversing") and not self.paused


_RUN = """
    SELECT r.id, r.number, r.up_to, r.document_date, r.state, r.paused, r.customers, r.chunks, r.error,
           r.waiting_reason, r.created_by, r.started_at, r.ended_at, r.master_number, r.parked AS run_parked,
           r.checks, r.held, r.released, r.approved_by, r.reversed_by,
           (SELECT count(*) FROM invoices i WHERE i.reverses_run = r.id) AS taken_back,
           (SELECT count(*) FROM bill_run_chunks c WHERE c.run_id = r.id AND c.state <> 'planned') AS chunks_computed,
           (SELECT coalesce(sum(c.documents), 0) FROM bill_run_chunks c WHERE c.run_id = r.id) AS computed_documents,
           (SELECT coalesce(jsonb_agg(c.totals), '[]') FROM bill_run_chunks c
             WHERE c.run_id = r.id AND c.totals IS NOT NULL) AS chunk_totals,
           (SELECT coalesce(jsonb_agg(p), '[]') FROM bill_run_chunks c, jsonb_array_elements(c.parked) p
             WHERE c.run_id = r.id) AS chunk_parked,
           (SELECT count(*) FROM invoices i WHERE i.run_id = r.id) AS finalised,
           (SELECT count(*) FROM invoices i JOIN document_files d ON d.invoice_id = i.id
             WHERE i.run_id = r.id AND d.state = 'archived') AS archived,
           (SELECT count(*) FROM invoices i JOIN document_files d ON d.invoice_id = i.id
             WHERE i.run_id = r.id AND d.state = 'parked') AS files_parked
    FROM bill_runs r
"""


def runs(connection: Connection, *, after: int | None = None, limit: int = 25) -> tuple[list[RunRow], bool]:
    """The newest bill runs first; `after` is the number of the last one seen."""
    rows = connection.execute(
        f"{_RUN} WHERE %(after)s::int IS NULL OR r.number < %(after)s::int ORDER BY r.number DESC LIMIT %(limit)s",
        {"after": after, "limit": limit + 1},
    ).fetchall()
    made = [_run(row) for row in rows[:limit]]
    totals = _run_totals(connection, [run.id for run in made])
    return [_with_totals(run, totals.get(run.id)) for run in made], len(rows) > limit


def run_count(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) AS n FROM bill_runs").fetchone()
    return int(row["n"]) if row else 0


def run(connection: Connection, run_id: str) -> RunRow | None:
    """One bill run with its sums, compared with the finished run before it."""
    try:
        wanted = UUID(run_id)
    except ValueError:
        return None
    row = connection.execute(f"{_RUN} WHERE r.id = %s", (wanted,)).fetchone()
    if row is None:
        return None
    found = _run(row)
    before = connection.execute(
        "SELECT id FROM bill_runs WHERE number < %s AND state IN ('finalised', 'done') ORDER BY number DESC LIMIT 1",
        (found.number,),
    ).fetchone()
    earlier = str(before["id"]) if before else None
    totals = _run_totals(connection, [found.id, *([earlier] if earlier else [])])
    net_before = {total.currency: total.net for total in totals.get(earlier or "", ())}
    shown = _with_totals(found, totals.get(found.id))
    with_before = tuple(
        RunTotal(
            total.currency, total.documents, total.net, total.tax, total.gross, total.first, total.last,
            net_before.get(total.currency),
        )
        for total in shown.totals
    )  # fmt: skip
    return RunRow(**{**vars(shown), "totals": with_before})


def _run(row: Mapping[str, Any]) -> RunRow:
    sums: dict[str, dict[str, Any]] = {}
    for chunk in row["chunk_totals"]:
        for currency, total in chunk.items():
            kept = sums.setdefault(currency, {"documents": 0, "net": ZERO, "tax": ZERO, "gross": ZERO})
            kept["documents"] += int(total["documents"])
            for name in ("net", "tax", "gross"):
                kept[name] += Decimal(str(total[name]))
    return RunRow(
        id=str(row["id"]), number=row["number"], up_to=row["up_to"], document_date=row["document_date"],
        state=row["state"], paused=row["paused"], customers=row["customers"], chunks=row["chunks"],
        chunks_computed=row["chunks_computed"], computed_documents=int(row["computed_documents"]),
        finalised=row["finalised"], archived=row["archived"], files_parked=row["files_parked"],
        parked=_parked([*row["run_parked"], *row["chunk_parked"]]), error=row["error"],
        waiting_reason=row["waiting_reason"], created_by=row["created_by"],
        started_at=row["started_at"], ended_at=row["ended_at"], master_number=row["master_number"], computed=sums,
        checks=row["checks"] or {}, held=held_back(row) if row["state"] == "computed" else (),
        approved_by=row["approved_by"], reversed_by=row["reversed_by"], taken_back=row["taken_back"],
    )  # fmt: skip


def _parked(entries: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Each parked customer once."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        one: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {"customer": str(entry)}
        found[str(one.get("customer", ""))] = one
    return list(found.values())


def _with_totals(one: RunRow, totals: Sequence[RunTotal] | None) -> RunRow:
    """Sums of what is final, or of what was computed as long as nothing is."""
    if totals and one.finalised >= one.computed_documents:
        return RunRow(**{**vars(one), "totals": tuple(totals)})
    computed = tuple(
        RunTotal(currency, total["documents"], total["net"], total["tax"], total["gross"])
        for currency, total in sorted(one.computed.items())
    )
    return RunRow(**{**vars(one), "totals": computed})


def _run_totals(connection: Connection, ids: Sequence[str]) -> dict[str, list[RunTotal]]:
    rows = connection.execute(
        f"SELECT i.run_id, i.currency, count(*) AS documents, sum({_SIGN} * i.net) AS net, sum({_SIGN} * i.tax) AS tax,"
        f" sum({_SIGN} * i.gross) AS gross, min(i.number) FILTER (WHERE i.type = 'invoice') AS first,"
        " max(i.number) FILTER (WHERE i.type = 'invoice') AS last FROM invoices i WHERE i.run_id = ANY(%s::uuid[])"
        " GROUP BY i.run_id, i.currency ORDER BY i.currency",
        (list(ids),),
    ).fetchall()
    found: dict[str, list[RunTotal]] = {}
    for row in rows:
        found.setdefault(str(row["run_id"]), []).append(
            RunTotal(**{key: value for key, value in row.items() if key != "run_id"})
        )
    return found


# -- what wants a look ------------------------------------------------------------------------------------------------


def files_open(connection: Connection) -> dict[str, int]:
    """Documents whose files are not archived yet: wanted, parked."""
    rows = connection.execute(
        "SELECT state, count(*) AS n FROM document_files WHERE state <> 'archived' GROUP BY state"
    ).fetchall()
    return {str(row["state"]): int(row["n"]) for row in rows}


def key_count(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) AS n FROM api_keys WHERE revoked_at IS NULL").fetchone()
    return int(row["n"]) if row else 0


def archive_count(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) AS n FROM archive_entries").fetchone()
    return int(row["n"]) if row else 0


def schema_versions(connection: Connection) -> Iterator[Mapping[str, Any]]:
    """PostgreSQL's version, for the health page."""
    yield from connection.execute("SELECT current_setting('server_version') AS version")
