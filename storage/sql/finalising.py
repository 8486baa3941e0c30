"""The writes of a finalising transaction: documents in columns become invoices with numbers, lines, postings.

Owns the order that makes numbers gapless: rows go by COPY into temporary tables first (a table under row-level security
takes no COPY), what needs no number is inserted from there (the policy checks each row), then the series' counters are
locked, numbers given and the invoices inserted. A number exists exactly if its invoice does: both are one transaction.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import polars as pl
import uuid_utils

from billing.document_columns import AMOUNT, DocumentColumns
from billing.numbers import number_text
from billing.usage import INSTANT
from storage.sql.database import Connection

HEADS_SCHEMA = pl.Schema({
    "entity": pl.String, "pattern": pl.String, "buyer": pl.String, "customer_name": pl.String, "due_on": pl.Date,
    "made_at": INSTANT, "run_id": pl.String, "run_mark": pl.Int64, "reason": pl.String,
    "reverses_run": pl.String,
})  # fmt: skip


@dataclass(frozen=True)
class Staged:
    """Documents whose rows are in temporary tables of this transaction, waiting for their numbers."""

    tenant: UUID
    ids: Sequence[UUID]
    documents: pl.DataFrame  # type, entity, pattern, year: what chooses counter and form of the number
    members: pl.DataFrame
    now: datetime


_COLUMNS: dict[str, tuple[str, ...]] = {
    "invoices": (
        "id", "entity", "series", "year", "type", "customer", "customer_name", "currency", "issued_on", "due_on",
        "period_start", "period_end", "net", "tax", "gross", "prepaid", "due", "run_id", "run_mark", "made_at",
        "refers_to", "reason", "packed", "buyer", "reverses_run",
    ),
    "invoice_lines": (
        "invoice_id", "line", "subscription", "charge", "kind", "name", "period_start", "period_end", "quantity",
        "unit", "allowance", "amount", "tax_category", "tax_percent", "plan", "plan_version", "correction",
    ),
    "invoice_taxes": ("invoice_id", "category", "percent", "base", "amount"),
    "postings": ("invoice_id", "posting", "booked_on", "debit", "credit", "amount", "currency"),
}  # fmt: skip


_IDS = threading.Lock()
_last_id = UUID(int=0)


def new_ids(count: int) -> list[UUID]:
    """Ids for documents in their order, and after all that this process gave: who reads by id reads in the order made.

    Of two threads in the same millisecond the generator alone promises nothing.
    """
    global _last_id
    found: list[UUID] = []
    with _IDS:
        while len(found) < count:
            one = UUID(bytes=uuid_utils.uuid7().bytes)
            if one > _last_id:
                found.append(one)
                _last_id = one
    return found


def stage(
    connection: Connection,
    tenant_id: str,
    ids: Sequence[UUID],
    columns: DocumentColumns,
    heads: pl.DataFrame,
    now: datetime,
) -> Staged:
    """Bring documents into the transaction with all that needs no number; `heads` (HEADS_SCHEMA) has a row for each."""
    tenant = UUID(tenant_id)
    documents = columns.documents.with_columns(
        [*heads.get_columns(), pl.Series("id", [str(one) for one in ids], dtype=pl.String)]
    ).with_columns(year=pl.col("issued_on").dt.year().cast(pl.Int32), series="type")
    frames = {
        "invoices": documents.with_columns(packed=pl.concat_str(pl.lit("\\x"), pl.col("body").bin.encode("hex"))),
        "invoice_lines": _with_id(columns.lines, documents),
        "invoice_taxes": _with_id(columns.taxes, documents),
        "postings": _with_id(postings_of(columns.documents), documents),
    }
    with connection.cursor() as cursor:
        for table, names in _COLUMNS.items():
            listed = ", ".join(names)
            cursor.execute(
                f"CREATE TEMPORARY TABLE draft_{table} ON COMMIT DROP AS"  # noqa: S608 - names of this module
                f" SELECT {listed} FROM {table} WITH NO DATA"
            )
            with cursor.copy(f"COPY draft_{table} ({listed}) FROM STDIN (FORMAT csv, NULL '\\N')") as copy:
                copy.write(_csv(frames[table].select(names)))
    for table in ("invoice_lines", "invoice_taxes", "postings"):
        listed = ", ".join(_COLUMNS[table])
        connection.execute(
            f"INSERT INTO {table} (tenant_id, {listed})"  # noqa: S608 - names of this module
            f" SELECT %s, {listed} FROM draft_{table}",
            (tenant,),
        )
    members = columns.members.join(documents.select("document", "id"), on="document", how="left")
    return Staged(tenant, ids, documents.select("type", "entity", "pattern", "year"), members, now)


def number(connection: Connection, staged: Staged) -> list[str]:
    """Give the staged documents their numbers, in their order, and make them invoices. The numbers."""
    if not staged.ids:
        return []
    tenant = staged.tenant
    numbers = numbers_of(connection, tenant, staged.documents)
    connection.execute(
        "INSERT INTO invoices (tenant_id, id, number, entity, series, year, n, type, customer, customer_name, currency,"
        " issued_on, due_on, period_start, period_end, net, tax, gross, prepaid, due, run_id, run_mark, made_at,"
        " refers_to, reason, packed, buyer, reverses_run)"
        " SELECT %s, d.id, w.number, d.entity, d.series, d.year, w.n, d.type, d.customer, d.customer_name, d.currency,"
        " d.issued_on, d.due_on, d.period_start, d.period_end, d.net, d.tax, d.gross, d.prepaid, d.due, d.run_id,"
        " d.run_mark, d.made_at, d.refers_to, d.reason, d.packed, d.buyer, d.reverses_run"
        " FROM draft_invoices d JOIN unnest(%s::uuid[], %s::bigint[], %s::text[]) AS w (id, n, number) ON w.id = d.id",
        (tenant, list(staged.ids), [n for n, _ in numbers], [number for _, number in numbers]),
    )
    connection.execute(
        "INSERT INTO document_files (tenant_id, invoice_id, state, changed_at)"
        " SELECT %s, id, 'wanted', %s FROM draft_invoices",
        (tenant, staged.now),
    )
    _insert_members(connection, staged)
    connection.execute(
        "INSERT INTO outbox (tenant_id, at, kind, subject, body)"
        " SELECT %s, %s, d.type || '.finalised', w.number, jsonb_build_object('number', w.number, 'customer',"
        " d.customer, 'currency', d.currency, 'net', d.net::text, 'gross', d.gross::text, 'due', d.due::text)"
        " FROM draft_invoices d JOIN unnest(%s::uuid[], %s::bigint[], %s::text[]) AS w (id, n, number) ON w.id = d.id"
        " ORDER BY w.n",
        (tenant, staged.now, list(staged.ids), [n for n, _ in numbers], [number for _, number in numbers]),
    )
    for table in _COLUMNS:
        connection.execute(f"DROP TABLE draft_{table}")
    return [number for _, number in numbers]


def numbers_of(connection: Connection, tenant: UUID, documents: pl.DataFrame) -> list[tuple[int, str]]:
    """The next numbers of each series, under its lock until this transaction ends."""
    wanted = documents.group_by("entity", "type", "year").len().sort("entity", "type", "year")
    last: dict[tuple[str, str, int], int] = {}
    for entity, series, year, count in wanted.iter_rows():  # in this order: two transactions cannot wait for each other
        row = connection.execute(
            "INSERT INTO number_series (tenant_id, entity, series, year, last) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (tenant_id, entity, series, year) DO UPDATE SET last = number_series.last + excluded.last"
            " RETURNING last",
            (tenant, entity, series, year, count),
        ).fetchone()
        assert row is not None
        last[entity, series, year] = row["last"] - count
    found: list[tuple[int, str]] = []
    for series, entity, pattern, year in documents.select("type", "entity", "pattern", "year").iter_rows():
        key = (entity, series, year)
        last[key] += 1
        found.append((last[key], number_text(pattern, year, last[key])))
    return found


def _insert_members(connection: Connection, staged: Staged) -> None:
    """Whose lines are on the documents of who pays for them."""
    rows = [
        (staged.tenant, id_, code, prepaid)
        for id_, code, prepaid in staged.members.select("id", "customer", "prepaid").iter_rows()
    ]
    if rows:
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO invoice_members (tenant_id, invoice_id, customer, prepaid)"
                " VALUES (%s, %s, %s, %s::numeric)",
                rows,
            )


def postings_of(documents: pl.DataFrame) -> pl.DataFrame:
    """document, posting, booked_on, debit, credit, amount, currency: an invoice owes net and tax, prepaid credit
    settles its part; a credit note reversed. Amounts are positive, none is 0."""
    moves = (("receivables", "revenue", "net"), ("receivables", "tax", "tax"), ("prepaid", "receivables", "prepaid"))
    parts = [
        documents.select(
            "document",
            "currency",
            pl.col("issued_on").alias("booked_on"),
            pl.lit(debit).alias("debit"),
            pl.lit(credit).alias("credit"),
            pl.col(name).alias("text"),
            turned=(pl.col("type") == "credit_note") ^ pl.col(name).str.starts_with("-"),
            order=pl.lit(place),
        )
        for place, (debit, credit, name) in enumerate(moves)
    ]
    rows = pl.concat(parts).filter(pl.col("text").str.to_decimal(scale=4).cast(AMOUNT) != 0)
    rows = rows.sort("document", "order", maintain_order=True)
    return rows.select(
        "document",
        pl.int_range(1, pl.len() + 1).over("document").alias("posting"),
        "booked_on",
        pl.when("turned").then("credit").otherwise("debit").alias("debit"),
        pl.when("turned").then("debit").otherwise("credit").alias("credit"),
        pl.col("text").str.strip_prefix("-").alias("amount"),
        "currency",
    )


def _with_id(frame: pl.DataFrame, documents: pl.DataFrame) -> pl.DataFrame:
    ids = documents.select("document", pl.col("id").alias("invoice_id"))
    return frame.join(ids, on="document", how="left", maintain_order="left")


def _csv(frame: pl.DataFrame) -> bytes:
    instants = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.Datetime)]
    frame = frame.with_columns(pl.col(name).dt.to_string("iso:strict") for name in instants)
    out = io.BytesIO()
    # Texts in quotes all of them: one that reads \N would be NULL without.
    frame.write_csv(out, include_header=False, null_value="\\N", quote_style="non_numeric")
    return out.getvalue()


def heads_of(rows: Sequence[tuple[Any, ...]]) -> pl.DataFrame:
    """A frame of HEADS_SCHEMA."""
    return pl.DataFrame(rows, schema=HEADS_SCHEMA, orient="row")
