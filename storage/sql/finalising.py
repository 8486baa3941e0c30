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
import psycopg
import uuid_utils

from billing.document_columns import DocumentColumns
from billing.json_columns import in_quotes, quoted
from billing.numbers import number_text
from billing.usage import INSTANT
from storage.sql import outbox
from storage.sql.database import Connection

HEADS_SCHEMA = pl.Schema({
    "entity": pl.String, "pattern": pl.String, "buyer": pl.String, "customer_name": pl.String, "due_on": pl.Date,
    "made_at": INSTANT, "run_id": pl.String, "run_mark": pl.Int64, "reason": pl.String,
    "reverses_run": pl.String, "stands_for": pl.String,
})  # fmt: skip


@dataclass(frozen=True)
class Staged:
    """Documents whose rows are in temporary tables of this transaction, waiting for their numbers."""

    tenant: UUID
    ids: Sequence[UUID]
    documents: pl.DataFrame  # id, type, entity, pattern, year (what chooses counter and form of the number), amounts
    members: pl.DataFrame
    now: datetime


_COLUMNS: dict[str, tuple[str, ...]] = {
    "invoices": (
        "id", "entity", "series", "year", "type", "customer", "customer_name", "currency", "issued_on", "due_on",
        "period_start", "period_end", "net", "tax", "gross", "prepaid", "due", "run_id", "run_mark", "made_at",
        "refers_to", "reason", "packed", "buyer", "reverses_run", "stands_for",
    ),
    "invoice_lines": ("invoice_id", "line", "subscription", "quantity", "allowance", "amount"),
    "invoice_taxes": ("invoice_id", "category", "percent", "base", "amount"),
    "postings": ("invoice_id", "posting", "booked_on", "debit", "credit", "amount", "currency"),
}  # fmt: skip
# What a line shares with many others: a chunk has some dozens of kinds of lines and tens of thousands of lines. Sent
# once for each kind, a line's text is a fourth as long, and what costs most to parse (instants) is gone from it.
_OF_KIND = (
    "charge", "kind", "name", "period_start", "period_end", "unit", "tax_category", "tax_percent", "plan",
    "plan_version", "correction",
)  # fmt: skip


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
    kinds = columns.lines.select(_OF_KIND).unique(maintain_order=True).with_row_index("of_kind")
    lines = columns.lines.join(kinds, on=_OF_KIND, how="left", nulls_equal=True, maintain_order="left")
    frames = {
        "invoices": documents.with_columns(packed=pl.concat_str(pl.lit("\\x"), pl.col("body").bin.encode("hex"))),
        "invoice_lines": _with_id(lines, documents),
        "invoice_taxes": _with_id(columns.taxes, documents),
        "postings": _with_id(postings_of(columns.documents), documents),
    }
    with connection.cursor() as cursor:
        for table, names in _COLUMNS.items():
            of_kind = ", 0 AS of_kind" if table == "invoice_lines" else ""
            listed = ", ".join(names)
            cursor.execute(
                f"CREATE TEMPORARY TABLE draft_{table} ON COMMIT DROP AS"  # noqa: S608 - names of this module
                f" SELECT {listed}{of_kind} FROM {table} WITH NO DATA"
            )
            _copy(cursor, f"draft_{table}", frames[table].select(*names, *(["of_kind"] if of_kind else [])))
        of_kind = ", ".join(_OF_KIND)
        cursor.execute(
            "CREATE TEMPORARY TABLE draft_kinds ON COMMIT DROP AS"  # noqa: S608 - names of this module
            f" SELECT 0 AS of_kind, {of_kind} FROM invoice_lines WITH NO DATA"
        )
        _copy(cursor, "draft_kinds", kinds)
    for table in ("invoice_lines", "invoice_taxes", "postings"):
        listed, source = ", ".join(_COLUMNS[table]), f"draft_{table}"
        if table == "invoice_lines":
            listed, source = f"{listed}, {of_kind}", f"{source} JOIN draft_kinds USING (of_kind)"
        connection.execute(
            f"INSERT INTO {table} (tenant_id, {listed})"  # noqa: S608 - names of this module
            f" SELECT %s, {listed} FROM {source}",
            (tenant,),
        )
    members = columns.members.join(documents.select("document", "id"), on="document", how="left")
    names = ("id", "type", "entity", "pattern", "year", "customer", "currency", "net", "gross", "due")
    return Staged(tenant, ids, documents.select(names), members, now)


def number(connection: Connection, staged: Staged) -> list[str]:
    """Give the staged documents their numbers, in their order, and make them invoices. The numbers."""
    if not staged.ids:
        return []
    tenant = staged.tenant
    numbers = numbers_of(connection, tenant, staged.documents)
    given = staged.documents.with_columns(
        n=pl.Series([n for n, _ in numbers], dtype=pl.Int64),
        number=pl.Series([number for _, number in numbers], dtype=pl.String),
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMPORARY TABLE draft_numbers (id uuid, n bigint, number text, told jsonb) ON COMMIT DROP"
        )
        _copy(cursor, "draft_numbers", given.select("id", "n", "number", _told(given).alias("told")))
    connection.execute(
        "INSERT INTO invoices (tenant_id, id, number, entity, series, year, n, type, customer, customer_name, currency,"
        " issued_on, due_on, period_start, period_end, net, tax, gross, prepaid, due, run_id, run_mark, made_at,"
        " refers_to, reason, packed, buyer, reverses_run, stands_for)"
        " SELECT %s, d.id, w.number, d.entity, d.series, d.year, w.n, d.type, d.customer, d.customer_name, d.currency,"
        " d.issued_on, d.due_on, d.period_start, d.period_end, d.net, d.tax, d.gross, d.prepaid, d.due, d.run_id,"
        " d.run_mark, d.made_at, d.refers_to, d.reason, d.packed, d.buyer, d.reverses_run, d.stands_for"
        " FROM draft_invoices d JOIN draft_numbers w USING (id)",
        (tenant,),
    )
    connection.execute(
        "INSERT INTO document_files (tenant_id, invoice_id, state, changed_at)"
        " SELECT %s, id, 'wanted', %s FROM draft_invoices",
        (tenant, staged.now),
    )
    _insert_members(connection, staged)
    connection.execute(
        "INSERT INTO outbox (tenant_id, at, kind, subject, body, told_at)"
        " SELECT %(tenant)s, %(now)s, d.type || '.finalised', w.number, w.told,"
        " CASE WHEN d.type || '.finalised' = ANY(%(listened)s::text[]) THEN NULL ELSE %(now)s::timestamptz END"
        " FROM draft_invoices d JOIN draft_numbers w USING (id) ORDER BY w.n",
        {"tenant": tenant, "now": staged.now, "listened": outbox.listened(connection)},
    )
    drafts = ", ".join(f"draft_{name}" for name in (*_COLUMNS, "kinds", "numbers"))
    connection.execute(f"DROP TABLE {drafts}")
    return [number for _, number in numbers]


def _told(given: pl.DataFrame) -> pl.Expr:
    """What the outbox says of each document, as JSON."""
    amounts = (pl.concat_str(pl.lit(f',"{name}":'), in_quotes(name)) for name in ("net", "gross", "due"))
    return pl.concat_str(
        pl.lit('{"number":'), quoted(given, "number"), pl.lit(',"customer":'), quoted(given, "customer"),
        pl.lit(',"currency":'), quoted(given, "currency"), *amounts, pl.lit("}"),
    )  # fmt: skip


def _copy(cursor: psycopg.Cursor[Any], table: str, frame: pl.DataFrame) -> None:
    """Rows into a draft; its columns have the frame's names."""
    listed = ", ".join(frame.columns)
    with cursor.copy(f"COPY {table} ({listed}) FROM STDIN (FORMAT csv, NULL '\\N')") as copy:  # names of this module
        copy.write(_csv(frame))


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
    # After the counters: who takes a number of the same series waits there, and not here.
    used = documents.select("entity", "type", "pattern").unique().sort("entity", "type", "pattern")
    connection.execute(
        "INSERT INTO number_patterns (tenant_id, entity, series, pattern)"
        " SELECT * FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[]) ON CONFLICT DO NOTHING",
        ([tenant] * used.height, *(used[name].to_list() for name in used.columns)),
    )
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
    rows = pl.concat(parts).filter(pl.col("text").str.contains("[1-9]"))  # by its digits: a number may be of any size
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
