"""Invoices and credit notes in SQL: made final once, read by everybody, changed by nobody.

Owns what is read of them, and the way of single documents to their numbers; the writes of a finalising transaction are
`storage/sql/finalising.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, LiteralString
from uuid import UUID

import msgspec

from billing.document_columns import columns_of
from billing.document_json import document_from, document_json, unpacked
from billing.documents import Document
from billing.errors import NotFound
from billing.money import parse_number
from billing.numbers import PATTERNS, check_patterns, number_text
from billing.settle import BilledDocument
from storage.sql import finalising, issued_invoices, outbox
from storage.sql.database import Connection, containing
from storage.sql.issued_invoices import IS_ISSUED

__all__ = ["PATTERNS", "check_patterns", "document_from", "document_json", "number_text"]

PAYMENT_DAYS = 14
LIMIT_MAX = 1_000


@dataclass(frozen=True)
class Issued:
    """What a document that was made elsewhere has beside its sums: the JSON that it came as, without its number."""

    form: Mapping[str, Any]
    due_on: date | None


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
    reverses_run: str | None = None
    stands_for: str | None = None  # id of the invoice in whose place this one counts as billed
    issued: Issued | None = None  # None: the platform made the document

    @property
    def due_on(self) -> date | None:
        if self.issued is not None:
            return self.issued.due_on
        return due_on(self.document.date, self.document.type, self.buyer)


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
    heads = finalising.heads_of(
        [
            (
                final.entity, final.pattern, buyer_json(final.buyer),
                str(final.buyer.get("name") or final.document.customer), final.due_on, final.made_at, final.run_id,
                final.run_mark, final.reason, final.reverses_run, final.stands_for,
            )
            for final in finals
        ]
    )  # fmt: skip
    columns = columns_of([final.document for final in finals])
    staged = finalising.stage(connection, tenant_id, finalising.new_ids(columns.count), columns, heads, now)
    numbers = finalising.number(connection, staged)
    forms = [(str(id_), final.issued.form) for id_, final in zip(staged.ids, finals, strict=True) if final.issued]
    if forms:
        issued_invoices.add(connection, tenant_id, forms)
    return [
        Numbered(str(id_), number, final.document)
        for id_, number, final in zip(staged.ids, numbers, finals, strict=True)
    ]


def due_on(day: date, type: str, buyer: Mapping[str, Any]) -> date | None:
    """When a document of that day is to be paid; a credit note is not."""
    if type == "credit_note":
        return None
    return day + timedelta(days=min(_payment_days(buyer.get("payment_days")), (date.max - day).days))


def _payment_days(said: Any) -> int:
    """A customer's form says what it likes: up to 0 is at once, what is no whole number counts as not said."""
    days = parse_number(str(said) if isinstance(said, float) else said)
    return PAYMENT_DAYS if days is None or days != int(days) else max(int(days), 0)


def buyer_json(buyer: Mapping[str, Any]) -> str:
    """The customer's form as it is printed, as JSON."""
    return msgspec.json.encode(dict(buyer)).decode()


def stored_document(row: Mapping[str, Any]) -> Document:
    """The document of a row of invoices: packed, or as JSON where it was made by an older version."""
    packed = row["packed"]
    return document_from(row["document"] if packed is None else unpacked(bytes(packed)))


def stored_form(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same as the plain values of its JSON."""
    packed = row["packed"]
    return row["document"] if packed is None else msgspec.json.decode(unpacked(bytes(packed)))


def _read(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in row.items() if name != "packed"}, "document": stored_document(row)}


# -- Reading -----------------------------------------------------------------------------------------------------------

_LIST = (
    "i.id, i.number, i.type, i.customer, i.customer_name, i.currency, i.issued_on, i.due_on, i.period_start,"
    " i.period_end, i.net, i.tax, i.gross, i.prepaid, i.due, i.run_id, i.refers_to, i.reason, i.entity,"
    " f.state AS file_state, f.reason AS file_reason, f.e_invoice, f.sha256,"
    f" {IS_ISSUED} AS outside"
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
    outside: bool | None = None,
) -> list[dict[str, Any]]:
    """Invoices and credit notes in the order made (newest first), behind the id `after`. `until` is inclusive.

    Of a customer: those that he got, and those of his payer with lines of his. `outside`: only those that were made
    elsewhere, or only the others.
    """
    assert 0 < limit <= LIMIT_MAX
    order, compare = ("DESC", "<") if descending else ("ASC", ">")
    pattern = None if not search else containing(search.lower())
    rows = connection.execute(
        f"SELECT {_LIST}{_FROM}"
        f" WHERE (%(after)s::uuid IS NULL OR i.id {compare} %(after)s)"
        f"{f' AND {CONCERNS}' if customer is not None else ''}"
        " AND (%(type)s::text IS NULL OR i.type = %(type)s)"
        " AND (%(run)s::uuid IS NULL OR i.run_id = %(run)s)"
        " AND (%(since)s::date IS NULL OR i.issued_on >= %(since)s)"
        " AND (%(until)s::date IS NULL OR i.issued_on <= %(until)s)"
        " AND (%(state)s::text IS NULL OR f.state = %(state)s)"
        f" AND (%(outside)s::boolean IS NULL OR {IS_ISSUED} = %(outside)s)"
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
            "outside": outside,
            "search": pattern,
            "limit": limit,
        },
    ).fetchall()
    return [dict(row) for row in rows]


def get(connection: Connection, number: str) -> dict[str, Any]:
    """One document by its number: the list's columns, `document` (a Document), `buyer`, and who refers to it."""
    row = connection.execute(
        f"SELECT {_LIST}, i.document, i.packed, coalesce(f.buyer, i.buyer) AS buyer, i.made_at{_FROM}"
        " WHERE i.number = %s",
        (number,),
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no document {number!r}", number=number)
    later = connection.execute(
        "SELECT number, type, issued_on FROM invoices WHERE refers_to = %s ORDER BY id", (number,)
    ).fetchall()
    return {**_read(row), "referred_by": [dict(each) for each in later]}


def billed(
    connection: Connection,
    customers: Sequence[str],
    ends_after: datetime | None,
    whole: Sequence[str] = (),
    *,
    before: str | None = None,
) -> list[BilledDocument]:
    """Earlier documents of customers in the order made: those with a line that ends after `ends_after` (all if None),
    and all of the customers in `whole`. `before` is the id of a bill run: only what was made before it was planned.

    Of a run that was reversed nothing counts: neither its documents nor those that took them back. An invoice that such
    a run had cancelled counts in the form in which the reversal issued it again: in its place, as of its run.
    """
    rows = connection.execute(
        "SELECT number, document, packed, stands_for, refers_to, run_mark, made_at FROM standing_documents d"
        " WHERE customer = ANY(%(some)s)"
        " AND (%(after)s::timestamptz IS NULL OR period_end > %(after)s OR customer = ANY(%(whole)s))"
        " AND NOT EXISTS (SELECT 1 FROM invoices s WHERE s.tenant_id = d.tenant_id AND s.stands_for = d.place"
        "  AND s.id > d.id AND (%(before)s::uuid IS NULL OR s.id < %(before)s))"
        # Ids of runs and documents are UUIDv7: in the order of time.
        " AND (%(before)s::uuid IS NULL OR id < %(before)s) ORDER BY place",
        {"some": list(customers), "after": ends_after, "whole": list(whole), "before": before},
    ).fetchall()
    return [BilledDocument(row["number"], _as_billed(row), row["run_mark"], row["made_at"]) for row in rows]


def _as_billed(row: Mapping[str, Any]) -> Document:
    """The document; one that stands for another refers to what that one referred to, not to what cancelled it."""
    document = stored_document(row)
    return document if row["stands_for"] is None else replace(document, refers_to=row["refers_to"])


def highest_of_last(
    connection: Connection, customers: Sequence[str], count: int = 3
) -> list[tuple[str, str, Decimal, Decimal]]:
    """(customer, currency, invoice, sum) of each customer's last runs that made him an invoice, reversed ones left out:
    the gross of his highest invoice, and the highest sum of all his documents of a run.

    Runs are counted, not invoices: who gets ten a run, by order or cost centre, is still compared with three runs.
    """
    rows = connection.execute(
        "SELECT c.code, w.currency, max(w.highest) AS highest, max(w.total) AS total"  # noqa: S608 - words of modules
        " FROM unnest(%s::text[]) AS c (code) CROSS JOIN LATERAL (SELECT i.currency,"
        "  max(i.gross) FILTER (WHERE i.type = 'invoice') AS highest,"
        "  sum(CASE WHEN i.type = 'invoice' THEN i.gross ELSE -i.gross END) AS total,"
        "  row_number() OVER (PARTITION BY i.currency ORDER BY coalesce(i.run_id, i.id) DESC) AS place"
        "  FROM invoices i WHERE i.customer = c.code AND i.reverses_run IS NULL"
        "  AND (i.type = 'invoice' OR i.run_id IS NOT NULL)"  # what somebody credits by hand is no run's
        f"  AND NOT {IS_ISSUED}"
        "  AND NOT EXISTS (SELECT 1 FROM bill_runs r WHERE r.id = i.run_id AND r.state IN ('reversing', 'reversed'))"
        "  GROUP BY i.currency, coalesce(i.run_id, i.id) HAVING bool_or(i.type = 'invoice')) w"
        " WHERE w.place <= %s GROUP BY c.code, w.currency",
        (list(customers), count),
    ).fetchall()
    return [(row["code"], row["currency"], row["highest"], row["total"]) for row in rows]


def countries(connection: Connection) -> set[str]:
    """Where invoices of the platform went so far."""
    rows = connection.execute(
        f"SELECT DISTINCT i.buyer->>'country' AS country FROM invoices i WHERE NOT {IS_ISSUED}"  # noqa: S608 - ours
    ).fetchall()
    return {row["country"] for row in rows if row["country"]}


def to_reverse(
    connection: Connection, run_id: str, limit: int, after: UUID | None = None, *, cancelling: bool
) -> list[dict[str, Any]]:
    """Documents of a run that no reversal takes back yet, by id and behind `after`, with the credit notes that refer to
    them in `notes`. Those that such notes took back as a whole are among them: whether anything is left say the lines.

    `cancelling` chooses the credit notes that refer to an invoice, else all others. What stands for a document of the
    run by now, since a later run that had cancelled it was reversed, is one of them.
    """
    rows = connection.execute(
        "SELECT i.id, i.number, i.type, i.customer, i.entity, i.document, i.packed,"
        " coalesce(f.buyer, i.buyer) AS buyer, i.refers_to FROM"
        " ((SELECT id FROM invoices c WHERE run_id = %(run)s AND (%(after)s::uuid IS NULL OR id > %(after)s)"
        "   AND (type = 'credit_note' AND refers_to IS NOT NULL) = %(cancelling)s"
        "   AND NOT EXISTS (SELECT 1 FROM invoices t WHERE t.reverses_run = %(run)s AND t.refers_to = c.number)"
        "   ORDER BY id LIMIT %(limit)s)"
        "  UNION ALL (SELECT s.id FROM invoices s JOIN invoices o ON o.tenant_id = s.tenant_id AND o.id = s.stands_for"
        "   WHERE o.run_id = %(run)s AND (%(after)s::uuid IS NULL OR s.id > %(after)s) AND NOT %(cancelling)s"
        "   AND NOT EXISTS (SELECT 1 FROM invoices t WHERE t.reverses_run = %(run)s AND t.refers_to = s.number)"
        "   ORDER BY s.id LIMIT %(limit)s)) found"
        " JOIN invoices i USING (id)"
        " LEFT JOIN document_files f ON f.tenant_id = i.tenant_id AND f.invoice_id = i.id"
        " ORDER BY i.id LIMIT %(limit)s",
        {"run": UUID(run_id), "limit": limit, "after": after, "cancelling": cancelling},
    ).fetchall()
    found = [_read(row) for row in rows]
    noted: dict[str, list[Document]] = {}
    for row in connection.execute(
        "SELECT refers_to, document, packed FROM invoices"
        " WHERE refers_to = ANY(%s) AND type = 'credit_note' ORDER BY id",
        ([row["number"] for row in found],),
    ).fetchall():
        noted.setdefault(row["refers_to"], []).append(stored_document(row))
    return [{**row, "notes": noted.get(row["number"], [])} for row in found]


def cancelled(connection: Connection, numbers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Invoices by number, to be issued again: `document`, `place` (the id of the one that they stand for, or their own)
    and `made_at` of that one."""
    rows = connection.execute(
        "SELECT i.number, i.document, i.packed, coalesce(o.id, i.id) AS place,"
        " coalesce(o.made_at, i.made_at) AS made_at FROM invoices i"
        " LEFT JOIN invoices o ON o.tenant_id = i.tenant_id AND o.id = i.stands_for WHERE i.number = ANY(%s)",
        (list(numbers),),
    ).fetchall()
    return {row["number"]: _read(row) for row in rows}


def is_document(connection: Connection, document_id: str) -> bool:
    """Whether this is the id of an invoice or credit note, as the archive has it."""
    try:
        known = UUID(document_id)
    except ValueError:
        return False
    return connection.execute("SELECT 1 FROM invoices WHERE id = %s", (known,)).fetchone() is not None


def reversed_count(connection: Connection, run_id: str) -> int:
    """How many documents of a run are taken back."""
    row = connection.execute("SELECT count(*) AS n FROM invoices WHERE reverses_run = %s", (UUID(run_id),)).fetchone()
    return 0 if row is None else int(row["n"])


def of_run(connection: Connection, run_id: str, customers: Sequence[str]) -> list[dict[str, Any]]:
    """A run's documents of some customers in the order made, as stored, with the sums of their rows elsewhere."""
    chosen = "SELECT id FROM invoices WHERE run_id = %(run)s AND customer = ANY(%(some)s)"
    return _as_stored(connection, chosen, {"run": run_id, "some": list(customers)})


def issued(connection: Connection, after: UUID | None, limit: int) -> list[dict[str, Any]]:
    """The same of documents that were made elsewhere, by id and behind `after`; without their forms, which may be
    large."""
    chosen = (
        "SELECT invoice_id AS id FROM issued_invoices WHERE %(after)s::uuid IS NULL OR invoice_id > %(after)s"
        " ORDER BY invoice_id LIMIT %(limit)s"
    )
    return _as_stored(connection, chosen, {"after": after, "limit": limit})


def _as_stored(connection: Connection, chosen: LiteralString, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Documents that a query of this module chooses by id."""
    rows = connection.execute(
        f"WITH chosen AS MATERIALIZED ({chosen}),"  # noqa: S608 - text of this module
        " lines AS (SELECT invoice_id, sum(amount) AS amount FROM invoice_lines"
        "  WHERE invoice_id = ANY(ARRAY(SELECT id FROM chosen)) GROUP BY invoice_id),"
        " taxes AS (SELECT invoice_id, sum(amount) AS amount FROM invoice_taxes"
        "  WHERE invoice_id = ANY(ARRAY(SELECT id FROM chosen)) GROUP BY invoice_id),"
        " booked AS (SELECT invoice_id, sum(CASE WHEN debit = 'receivables' THEN amount WHEN credit = 'receivables'"
        "  THEN -amount ELSE 0 END) AS amount FROM postings"
        "  WHERE invoice_id = ANY(ARRAY(SELECT id FROM chosen)) GROUP BY invoice_id)"
        " SELECT i.id, i.number, i.customer, i.net, i.tax, i.gross, i.prepaid, i.due, i.document, i.packed,"
        " coalesce(lines.amount, 0) AS lines_amount, coalesce(taxes.amount, 0) AS taxes_amount,"
        " coalesce(booked.amount, 0) AS receivable"
        " FROM invoices i LEFT JOIN lines ON lines.invoice_id = i.id LEFT JOIN taxes ON taxes.invoice_id = i.id"
        " LEFT JOIN booked ON booked.invoice_id = i.id"
        " WHERE i.id = ANY(ARRAY(SELECT id FROM chosen)) ORDER BY i.id",
        given,
    ).fetchall()
    return [dict(row) for row in rows]


def naming(
    connection: Connection, run_id: str, customers: Sequence[str], after: UUID | None, limit: int
) -> list[dict[str, Any]]:
    """A run's documents that go to some customers or have lines of theirs: `id`, `number`, `document`, by id and behind
    `after`."""
    rows = connection.execute(
        "SELECT i.id, i.number, i.document, i.packed FROM invoices i"
        " WHERE i.run_id = %(run)s AND (%(after)s::uuid IS NULL OR i.id > %(after)s)"
        " AND (i.customer = ANY(%(some)s) OR EXISTS (SELECT 1 FROM invoice_members m"
        "  WHERE m.tenant_id = i.tenant_id AND m.invoice_id = i.id AND m.customer = ANY(%(some)s)))"
        " ORDER BY i.id LIMIT %(limit)s",
        {"run": UUID(run_id), "some": list(customers), "after": after, "limit": limit},
    ).fetchall()
    return [{"id": row["id"], "number": row["number"], "document": stored_document(row)} for row in rows]


def totals(connection: Connection, run_id: str | None = None) -> list[dict[str, Any]]:
    """Sums per currency and type, of a run or of everything."""
    rows = connection.execute(
        "SELECT currency, type, count(*) AS documents, sum(net) AS net, sum(tax) AS tax, sum(gross) AS gross,"
        " sum(due) AS due FROM invoices WHERE (%s::uuid IS NULL OR run_id = %s) GROUP BY currency, type"
        " ORDER BY currency, type",
        (run_id, run_id),
    ).fetchall()
    return [dict(row) for row in rows]


def number_series(connection: Connection) -> list[dict[str, Any]]:
    """Every series: entity, series, year, its last number, its documents, and how many of them were made elsewhere."""
    rows = connection.execute(
        "SELECT s.entity, s.series, s.year, s.last, count(i.n) AS documents, count(x.invoice_id) AS outside"
        " FROM number_series s LEFT JOIN invoices i ON i.tenant_id = s.tenant_id AND i.entity = s.entity"
        " AND i.series = s.series AND i.year = s.year"
        " LEFT JOIN issued_invoices x ON x.tenant_id = i.tenant_id AND x.invoice_id = i.id"
        " GROUP BY s.entity, s.series, s.year, s.last ORDER BY s.year, s.entity, s.series"
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


def files_wanted(
    connection: Connection, limit: int, run_id: str | None = None, document_id: str | None = None
) -> list[dict[str, Any]]:
    """Final documents whose files are not archived yet, oldest first, with what is needed to make them; the forms of
    those that are `outside` are read one by one, for they may be large (`issued_invoices.sized_form`)."""
    rows = connection.execute(
        "SELECT i.id, i.number, i.document, i.packed, coalesce(f.buyer, i.buyer) AS buyer, i.due_on, i.entity,"
        " i.refers_to,"
        " (SELECT r.issued_on FROM invoices r WHERE r.tenant_id = i.tenant_id AND r.number = i.refers_to) AS refers_on,"
        " x.invoice_id IS NOT NULL AS outside"
        " FROM document_files f JOIN invoices i ON i.tenant_id = f.tenant_id AND i.id = f.invoice_id"
        " LEFT JOIN issued_invoices x ON x.tenant_id = i.tenant_id AND x.invoice_id = i.id"
        " WHERE f.state = 'wanted' AND (%(run)s::uuid IS NULL OR i.run_id = %(run)s)"
        " AND (%(document)s::uuid IS NULL OR i.id = %(document)s) ORDER BY i.id LIMIT %(limit)s",
        {"run": run_id, "document": document_id, "limit": limit},
    ).fetchall()
    return [_read(row) for row in rows]


def files_again(
    connection: Connection, document_id: str, customer: str, buyer: Mapping[str, Any] | None, now: datetime
) -> bool:
    """Let the files of a parked document be made again, with these data of its customer (None: with what it has);
    whether it was parked."""
    form = None if buyer is None else buyer_json(buyer)
    result = connection.execute(
        "UPDATE document_files SET state = 'wanted', reason = NULL, changed_at = %(now)s,"
        " customer = CASE WHEN %(buyer)s::jsonb IS NULL THEN customer ELSE %(customer)s END,"
        " buyer = coalesce(%(buyer)s::jsonb, buyer) WHERE invoice_id = %(id)s AND state = 'parked'",
        {"now": now, "buyer": form, "customer": customer, "id": UUID(document_id)},
    )
    return result.rowcount == 1


def files_parked(connection: Connection, run_id: str, limit: int) -> list[dict[str, Any]]:
    """The first documents of a run whose files could not be made: {number, customer, reason}."""
    rows = connection.execute(
        "SELECT i.number, i.customer, f.reason FROM document_files f JOIN invoices i ON i.tenant_id = f.tenant_id"
        " AND i.id = f.invoice_id WHERE f.state = 'parked' AND i.run_id = %s ORDER BY i.id LIMIT %s",
        (run_id, limit),
    ).fetchall()
    return [dict(row) for row in rows]


def files_left(connection: Connection, before: datetime) -> list[str]:
    """Tenants with documents that have waited for their files since `before` (system role), but for those with a bill
    run that makes documents: its driver makes what is left."""
    rows = connection.execute(
        # LATERAL with its limit: one look into the index of states for each tenant, however many documents there are.
        "SELECT t.id FROM tenants t CROSS JOIN LATERAL (SELECT 1 FROM document_files f WHERE f.tenant_id = t.id"
        "  AND f.state = 'wanted' AND f.changed_at < %s LIMIT 1) waiting"
        " WHERE NOT EXISTS (SELECT 1 FROM bill_runs r WHERE r.tenant_id = t.id"
        "  AND r.state IN ('approved', 'finalised', 'reversing')) ORDER BY t.id",
        (before,),
    ).fetchall()
    return [str(row["id"]) for row in rows]


def files_made(connection: Connection, outcomes: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """Note what became of documents' files: {id, state, sha256, e_invoice, reason}; an archived one stays archived."""
    outbox.documents_parked(
        connection, [(one["id"], one["reason"]) for one in outcomes if one["state"] == "parked"], now
    )
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
