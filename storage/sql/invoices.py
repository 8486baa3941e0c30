"""Invoices and credit notes in SQL: made final with gapless numbers, read by everybody, changed by nobody.

Owns the finalising transaction's writes: rows go by COPY into temporary tables first (a table under row-level security
takes no COPY), then the series' counters are locked, numbers given, and everything inserted so that the policy checks
each row. A number exists exactly if its invoice does, because both are one transaction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

import msgspec
import uuid_utils
from psycopg.types.json import Jsonb

from billing.documents import Document
from billing.errors import FieldError, InvalidInput, NotFound
from billing.settle import BilledDocument
from storage.sql.database import Connection

PATTERNS = {"invoice": "RE-{yyyy}-{n:06}", "credit_note": "RK-{yyyy}-{n:06}"}
PAYMENT_DAYS = 14
LIMIT_MAX = 1_000


@dataclass(frozen=True)
class Final:
    """A document on its way to a number. `entity` and `series` choose the counter, `pattern` how the number reads."""

    document: Document
    entity: str
    pattern: str
    buyer: Mapping[str, Any]
    made_at: datetime
    run_id: str | None = None
    run_mark: int = 0
    reason: str | None = None

    @property
    def due_on(self) -> date | None:
        if self.document.type == "credit_note":
            return None
        return self.document.date + timedelta(days=int(self.buyer.get("payment_days") or PAYMENT_DAYS))


@dataclass(frozen=True)
class Numbered:
    """A final document: its id and its number."""

    id: str
    number: str
    document: Document


def finalise(connection: Connection, tenant_id: str, finals: Sequence[Final], now: datetime) -> list[Numbered]:
    """Give numbers to documents in this order and store them with lines, taxes, postings and outbox entries.

    One transaction with whatever else the caller does in it. Errors: InvalidInput for a pattern without {n}.
    """
    if not finals:
        return []
    tenant = UUID(tenant_id)
    ids = [UUID(bytes=uuid_utils.uuid7().bytes) for _ in finals]
    _stage(connection, tenant, ids, finals, now)
    numbers = _numbers(connection, tenant, finals)
    connection.execute(
        "INSERT INTO invoices (tenant_id, id, number, entity, series, year, n, type, customer, customer_name, currency,"
        " issued_on, due_on, period_start, period_end, net, tax, gross, prepaid, due, run_id, run_mark, made_at,"
        " refers_to, reason, document, buyer)"
        " SELECT %s, d.id, w.number, d.entity, d.series, d.year, w.n, d.type, d.customer, d.customer_name, d.currency,"
        " d.issued_on, d.due_on, d.period_start, d.period_end, d.net, d.tax, d.gross, d.prepaid, d.due, d.run_id,"
        " d.run_mark, d.made_at, d.refers_to, d.reason, d.document, d.buyer"
        " FROM draft_invoices d JOIN unnest(%s::uuid[], %s::bigint[], %s::text[]) AS w (id, n, number) ON w.id = d.id",
        (tenant, ids, [n for n, _ in numbers], [number for _, number in numbers]),
    )
    for table in ("invoice_lines", "invoice_taxes", "postings", "document_files"):
        columns = ", ".join(_COLUMNS[table])
        connection.execute(
            f"INSERT INTO {table} (tenant_id, {columns})"  # noqa: S608 - names of this module
            f" SELECT %s, {columns} FROM draft_{table}",
            (tenant,),
        )
    _insert_members(connection, tenant, ids, finals)
    connection.execute(
        "INSERT INTO outbox (tenant_id, at, kind, subject, body)"
        " SELECT %s, %s, i.type || '.finalised', i.number, jsonb_build_object('number', i.number, 'customer',"
        " i.customer, 'currency', i.currency, 'net', i.net::text, 'gross', i.gross::text, 'due', i.due::text)"
        " FROM draft_invoices d JOIN invoices i ON i.tenant_id = %s AND i.id = d.id ORDER BY i.n",
        (tenant, now, tenant),
    )
    for table in _COLUMNS:
        connection.execute(f"DROP TABLE draft_{table}")
    return [
        Numbered(str(id_), number, final.document) for id_, (_, number), final in zip(ids, numbers, finals, strict=True)
    ]


def _insert_members(connection: Connection, tenant: UUID, ids: Sequence[UUID], finals: Sequence[Final]) -> None:
    """Whose lines are on the documents of who pays for them."""
    rows = [
        (tenant, id_, member.code, member.prepaid)
        for id_, final in zip(ids, finals, strict=True)
        for member in final.document.members
    ]
    if rows:
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO invoice_members (tenant_id, invoice_id, customer, prepaid) VALUES (%s, %s, %s, %s)", rows
            )


def _numbers(connection: Connection, tenant: UUID, finals: Sequence[Final]) -> list[tuple[int, str]]:
    """The next numbers of each series, under its lock until this transaction ends."""
    wanted: dict[tuple[str, str, int], int] = {}
    for final in finals:
        key = (final.entity, final.document.type, final.document.date.year)
        wanted[key] = wanted.get(key, 0) + 1
    last: dict[tuple[str, str, int], int] = {}
    for key in sorted(wanted):  # always in this order: two transactions cannot wait for each other
        row = connection.execute(
            "INSERT INTO number_series (tenant_id, entity, series, year, last) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (tenant_id, entity, series, year) DO UPDATE SET last = number_series.last + excluded.last"
            " RETURNING last",
            (tenant, *key, wanted[key]),
        ).fetchone()
        assert row is not None
        last[key] = row["last"] - wanted[key]
    numbers: list[tuple[int, str]] = []
    for final in finals:
        key = (final.entity, final.document.type, final.document.date.year)
        last[key] += 1
        numbers.append((last[key], number_text(final.pattern, final.document.date.year, last[key])))
    return numbers


@lru_cache(maxsize=256)
def _checked(pattern: str) -> str:
    try:
        one, other = (pattern.format(series="", yyyy=2000, yy=0, n=n) for n in (1, 2))
    except (KeyError, IndexError, ValueError) as error:
        raise InvalidInput(f"number pattern {pattern!r} cannot be read: {error}") from error
    if one == other:
        raise InvalidInput(f"number pattern {pattern!r} gives every document the same number: it needs {{n}}")
    return pattern


def check_patterns(series: Mapping[str, Any]) -> None:
    """Refuse number patterns that would give two documents the same number: across years, types, or counters."""
    patterns = {**PATTERNS, **series}
    unknown = sorted(set(patterns) - set(PATTERNS))
    if unknown or not all(isinstance(text, str) and len(text) <= 64 for text in patterns.values()):
        detail = "invoice and credit_note, each a text of at most 64 characters"
        raise InvalidInput(f"series: {detail}", errors=[FieldError("/series", detail)])
    if any(re.search(r"\{n:[^}]*\d{3}", text) for text in patterns.values()):
        raise InvalidInput("series: a number has at most 99 digits", errors=[FieldError("/series", "is too wide")])
    made = [number_text(text, year, n) for text in patterns.values() for year in (2026, 2027) for n in (1, 2)]
    if len(set(made)) < len(made):
        detail = "numbers would repeat: use {yyyy}, {n} and another text for each type, as in RE-{yyyy}-{n:06}"
        raise InvalidInput(f"series: {detail}", errors=[FieldError("/series", detail)])


def number_text(pattern: str, year: int, n: int) -> str:
    """`RE-{yyyy}-{n:06}` -> `RE-2026-000001`."""
    return _checked(pattern).format(yyyy=f"{year:04}", yy=f"{year % 100:02}", n=n)


# -- Staging -----------------------------------------------------------------------------------------------------------

_COLUMNS: dict[str, tuple[str, ...]] = {
    "invoices": (
        "id", "entity", "series", "year", "type", "customer", "customer_name", "currency", "issued_on", "due_on",
        "period_start", "period_end", "net", "tax", "gross", "prepaid", "due", "run_id", "run_mark", "made_at",
        "refers_to", "reason", "document", "buyer",
    ),
    "invoice_lines": (
        "invoice_id", "line", "subscription", "charge", "kind", "name", "period_start", "period_end", "quantity",
        "unit", "allowance", "amount", "tax_category", "tax_percent", "plan", "plan_version", "correction",
    ),
    "invoice_taxes": ("invoice_id", "category", "percent", "base", "amount"),
    "postings": ("invoice_id", "posting", "booked_on", "debit", "credit", "amount", "currency"),
    "document_files": ("invoice_id", "state", "changed_at"),
}  # fmt: skip


def _stage(connection: Connection, tenant: UUID, ids: Sequence[UUID], finals: Sequence[Final], now: datetime) -> None:
    rows: dict[str, Iterable[tuple[Any, ...]]] = {
        "invoices": (_invoice_row(id_, final) for id_, final in zip(ids, finals, strict=True)),
        "invoice_lines": (
            row for id_, final in zip(ids, finals, strict=True) for row in _line_rows(id_, final.document)
        ),
        "invoice_taxes": (
            (id_, tax.category, tax.percent, tax.base, tax.amount)
            for id_, final in zip(ids, finals, strict=True)
            for tax in final.document.taxes
        ),
        "postings": (
            (id_, place, final.document.date, debit, credit, amount, final.document.currency)
            for id_, final in zip(ids, finals, strict=True)
            for place, (debit, credit, amount) in enumerate(postings_of(final.document), start=1)
        ),
        "document_files": ((id_, "wanted", now) for id_ in ids),
    }
    with connection.cursor() as cursor:
        for table, columns in _COLUMNS.items():
            names = ", ".join(columns)
            cursor.execute(
                f"CREATE TEMPORARY TABLE draft_{table} ON COMMIT DROP AS"  # noqa: S608 - names of this module
                f" SELECT {names} FROM {table} WITH NO DATA"
            )
            with cursor.copy(f"COPY draft_{table} ({names}) FROM STDIN") as copy:
                for row in rows[table]:
                    copy.write_row(row)


def _invoice_row(id_: UUID, final: Final) -> tuple[Any, ...]:
    document = final.document
    starts = [line.start for line in document.lines]
    ends = [line.end for line in document.lines]
    return (
        id_, final.entity, document.type, document.date.year, document.type, document.customer,
        str(final.buyer.get("name") or document.customer), document.currency, document.date, final.due_on,
        min(starts, default=None), max(ends, default=None), document.net, document.tax, document.gross,
        document.prepaid, document.due, final.run_id, final.run_mark, final.made_at, document.refers_to, final.reason,
        document_json(document).decode(), Jsonb(dict(final.buyer)),
    )  # fmt: skip


def _line_rows(id_: UUID, document: Document) -> Iterable[tuple[Any, ...]]:
    for place, line in enumerate(document.lines, start=1):
        yield (
            id_, place, line.subscription, line.charge, line.kind, line.name or line.charge, line.start, line.end,
            line.quantity, line.unit, line.allowance, line.amount, line.tax_category, line.tax_percent, line.plan,
            line.plan_version, line.correction,
        )  # fmt: skip


def postings_of(document: Document) -> list[tuple[str, str, Decimal]]:
    """(debit, credit, amount): an invoice owes net and tax, prepaid credit settles its part; a credit note reversed."""
    moves = [
        ("receivables", "revenue", document.net),
        ("receivables", "tax", document.tax),
        ("prepaid", "receivables", document.prepaid),
    ]
    if document.type == "credit_note":
        moves = [(credit, debit, amount) for debit, credit, amount in moves]
    return [
        (debit, credit, amount) if amount > 0 else (credit, debit, -amount) for debit, credit, amount in moves if amount
    ]


# -- Documents as JSON -------------------------------------------------------------------------------------------------

_ENCODER = msgspec.json.Encoder(decimal_format="string")
_DECODER = msgspec.json.Decoder(Document)


def document_json(document: Document) -> bytes:
    """A document whole, exact: decimals as strings, instants with offset. `document_from` gives the same value."""
    return _ENCODER.encode(document)


def document_from(form: Mapping[str, Any] | bytes) -> Document:
    if isinstance(form, bytes):
        return _DECODER.decode(form)
    return msgspec.convert(form, Document)


# -- Reading -----------------------------------------------------------------------------------------------------------

_LIST = (
    "i.id, i.number, i.type, i.customer, i.customer_name, i.currency, i.issued_on, i.due_on, i.period_start,"
    " i.period_end, i.net, i.tax, i.gross, i.prepaid, i.due, i.run_id, i.refers_to, i.reason, i.entity,"
    " f.state AS file_state, f.reason AS file_reason, f.e_invoice, f.sha256"
)
# Documents that a customer got, or that have lines of his: both by their index, whatever else is asked.
CONCERNS = (
    "i.id = ANY(ARRAY(SELECT o.id FROM invoices o WHERE o.customer = %(customer)s"
    " UNION ALL SELECT m.invoice_id FROM invoice_members m WHERE m.customer = %(customer)s))"
)
_FROM = " FROM invoices i LEFT JOIN document_files f ON f.tenant_id = i.tenant_id AND f.invoice_id = i.id"


def page(
    connection: Connection,
    *,
    after: str | None = None,
    limit: int = 100,
    descending: bool = True,
    customer: str | None = None,
    type: str | None = None,
    run_id: str | None = None,
    since: date | None = None,
    until: date | None = None,
    search: str | None = None,
    file_state: str | None = None,
) -> list[dict[str, Any]]:
    """Invoices and credit notes in the order made (newest first), behind the id `after`. `until` is inclusive.

    Of a customer: those that he got, and those of his payer with lines of his.
    """
    assert 0 < limit <= LIMIT_MAX
    order, compare = ("DESC", "<") if descending else ("ASC", ">")
    pattern = None if not search else "%" + search.lower().replace("\\", "\\\\").replace("%", "\\%") + "%"
    rows = connection.execute(
        f"SELECT {_LIST}{_FROM}"
        f" WHERE (%(after)s::uuid IS NULL OR i.id {compare} %(after)s)"
        f"{f' AND {CONCERNS}' if customer is not None else ''}"
        " AND (%(type)s::text IS NULL OR i.type = %(type)s)"
        " AND (%(run)s::uuid IS NULL OR i.run_id = %(run)s)"
        " AND (%(since)s::date IS NULL OR i.issued_on >= %(since)s)"
        " AND (%(until)s::date IS NULL OR i.issued_on <= %(until)s)"
        " AND (%(state)s::text IS NULL OR f.state = %(state)s)"
        " AND (%(search)s::text IS NULL OR lower(i.number || ' ' || i.customer || ' ' || i.customer_name)"
        "      LIKE %(search)s)"
        f" ORDER BY i.id {order} LIMIT %(limit)s",
        {
            "after": after,
            "customer": customer,
            "type": type,
            "run": run_id,
            "since": since,
            "until": until,
            "state": file_state,
            "search": pattern,
            "limit": limit,
        },
    ).fetchall()
    return [dict(row) for row in rows]


def get(connection: Connection, number: str) -> dict[str, Any]:
    """One document by its number: the list's columns, `document` (a Document), `buyer`, and who refers to it."""
    row = connection.execute(
        f"SELECT {_LIST}, i.document, i.buyer, i.made_at{_FROM} WHERE i.number = %s",
        (number,),
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no document {number!r}", number=number)
    later = connection.execute(
        "SELECT number, type, issued_on FROM invoices WHERE refers_to = %s ORDER BY id", (number,)
    ).fetchall()
    return {**row, "document": document_from(row["document"]), "referred_by": [dict(each) for each in later]}


def billed(
    connection: Connection,
    customers: Sequence[str],
    ends_after: datetime | None,
    whole: Sequence[str] = (),
    *,
    before: str | None = None,
) -> list[BilledDocument]:
    """Earlier documents of customers in the order made: those with a line that ends after `ends_after` (all if None),
    and all of the customers in `whole`. `before` is the id of a bill run: only what was made before it was planned."""
    rows = connection.execute(
        "SELECT number, document, run_mark, made_at FROM invoices"
        " WHERE customer = ANY(%s) AND (%s::timestamptz IS NULL OR period_end > %s OR customer = ANY(%s))"
        " AND (%s::uuid IS NULL OR id < %s) ORDER BY id",  # ids of runs and documents are UUIDv7: in the order of time
        (list(customers), ends_after, ends_after, list(whole), before, before),
    ).fetchall()
    return [
        BilledDocument(row["number"], document_from(row["document"]), row["run_mark"], row["made_at"]) for row in rows
    ]


def of_run(connection: Connection, run_id: str, customers: Sequence[str]) -> list[dict[str, Any]]:
    """A run's documents of some customers in the order made, as stored: `document` is the JSON form."""
    rows = connection.execute(
        "SELECT i.number, i.customer, i.net, i.tax, i.gross, i.prepaid, i.due, i.document,"
        " (SELECT coalesce(sum(l.amount), 0) FROM invoice_lines l WHERE l.tenant_id = i.tenant_id"
        "  AND l.invoice_id = i.id) AS lines_amount"
        " FROM invoices i WHERE i.run_id = %s AND i.customer = ANY(%s) ORDER BY i.id",
        (run_id, list(customers)),
    ).fetchall()
    return [dict(row) for row in rows]


def totals(connection: Connection, run_id: str | None = None) -> list[dict[str, Any]]:
    """Sums per currency and type, of a run or of everything."""
    rows = connection.execute(
        "SELECT currency, type, count(*) AS documents, sum(net) AS net, sum(tax) AS tax, sum(gross) AS gross,"
        " sum(due) AS due FROM invoices WHERE (%s::uuid IS NULL OR run_id = %s) GROUP BY currency, type"
        " ORDER BY currency, type",
        (run_id, run_id),
    ).fetchall()
    return [dict(row) for row in rows]


def number_gaps(connection: Connection) -> list[dict[str, Any]]:
    """Series whose numbers are not 1, 2, 3 ... up to their counter: always empty, or somebody changed the tables."""
    rows = connection.execute(
        "SELECT s.entity, s.series, s.year, s.last, count(i.n) AS documents, coalesce(max(i.n), 0) AS highest"
        " FROM number_series s LEFT JOIN invoices i ON i.tenant_id = s.tenant_id AND i.entity = s.entity"
        " AND i.series = s.series AND i.year = s.year GROUP BY s.entity, s.series, s.year, s.last"
        " HAVING count(i.n) <> s.last OR coalesce(max(i.n), 0) <> s.last"
    ).fetchall()
    return [dict(row) for row in rows]


# -- Files -------------------------------------------------------------------------------------------------------------


def files_wanted(connection: Connection, limit: int, run_id: str | None = None) -> list[dict[str, Any]]:
    """Final documents whose files are not archived yet, oldest first, with all that is needed to make them."""
    rows = connection.execute(
        "SELECT i.id, i.number, i.document, i.buyer, i.due_on, i.entity, i.refers_to,"
        " (SELECT r.issued_on FROM invoices r WHERE r.tenant_id = i.tenant_id AND r.number = i.refers_to) AS refers_on"
        " FROM document_files f JOIN invoices i ON i.tenant_id = f.tenant_id AND i.id = f.invoice_id"
        " WHERE f.state = 'wanted' AND (%s::uuid IS NULL OR i.run_id = %s) ORDER BY i.id LIMIT %s",
        (run_id, run_id, limit),
    ).fetchall()
    return [{**row, "document": document_from(row["document"])} for row in rows]


def files_made(connection: Connection, outcomes: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """Note what became of documents' files: {id, state, sha256, e_invoice, reason}; an archived one stays archived."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "UPDATE document_files SET state = %s, sha256 = %s, e_invoice = %s, reason = %s, changed_at = %s"
            " WHERE invoice_id = %s AND state <> 'archived'",
            [
                (one["state"], one["sha256"] or None, one["e_invoice"], one["reason"] or None, now, UUID(one["id"]))
                for one in outcomes
            ],
        )


def file_counts(connection: Connection, run_id: str | None = None) -> dict[str, int]:
    """How many documents of a run (or of all) are wanted, archived, parked."""
    rows = connection.execute(
        "SELECT f.state, count(*) AS n FROM document_files f JOIN invoices i ON i.tenant_id = f.tenant_id"
        " AND i.id = f.invoice_id WHERE (%s::uuid IS NULL OR i.run_id = %s) GROUP BY f.state",
        (run_id, run_id),
    ).fetchall()
    return {"wanted": 0, "archived": 0, "parked": 0} | {row["state"]: int(row["n"]) for row in rows}
