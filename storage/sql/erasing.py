"""Forgetting a customer in PostgreSQL: every row of every table of his tenant that names him is written anew without
him.

Owns which rows are about him and what becomes of their columns; what a form becomes is `billing/erasing.py`. Master
data are folded anew first: if the steps without him do not add up, nothing is changed. Tables are asked of the catalog,
so one of a later version is not missed. What stays in other rows' free space until VACUUM is docs/forgetting.md.

Works in the role of the tables' owner (`Database.owner`), for steps, invoices and the audit trail are append only for
all others. Each statement names the tenant: above an owner who is a superuser stand no policies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from psycopg import sql
from psycopg.types.json import Jsonb

from billing.document_json import document_from, packed, unpacked
from billing.erasing import ERASED, Marks, forgotten_step, marks_of
from billing.errors import Conflict, NotFound, Unavailable
from billing.master import MasterData
from billing.periods import local_date
from storage.sql import bill_runs, master_records, steps
from storage.sql.database import Connection
from storage.sql.traces import quoted

ROWS_MAX = 1_000  # at a time
# Not about customers, or (archive) kept with the documents until their time is over, or written by its own rules here.
_SPARED = frozenset(
    {
        *("tenants", "legal_entities", "api_keys", "users", "memberships", "sessions", "number_series", "erasures"),
        "number_patterns",
        *("plan_drafts", "layouts", "layout_versions", "layout_choices", "document_layouts", "billing_settings"),
        *("masters", "master_changes", "steps", "master_records", "completeness_checks", "object_claims"),
        *("idempotency_keys", "schema_migrations"),
    }
)
_ARCHIVE = "archive_"
_AMOUNTS = ("net", "tax", "gross", "prepaid", "due")


@dataclass(frozen=True)
class Table:
    """A table of tenants. `texts`, `forms`, `lists`, `bytes` are columns by what they hold."""

    name: str
    owner: str  # the column that says whose a row is
    texts: tuple[str, ...]
    forms: tuple[str, ...]
    lists: tuple[str, ...]
    bytes: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.texts, *self.forms, *self.lists, *self.bytes)


def check(connection: Connection, tenant_id: str, customer: str, now: datetime) -> MasterData:
    """The tenant's master data, if the customer can be forgotten now. Conflict with what is in the way.

    No contract may run, no document be on its way: what bills somebody needs to know whom.
    """
    _, master = steps.current(connection, tenant_id)
    known = master.customer(customer)
    if "erased" in known.form:
        raise Conflict(f"{customer!r} is what was left of a customer who was erased")
    way = in_the_way(master, customer, now)
    if way is not None:
        raise way
    row = connection.execute(
        "SELECT 1 FROM bill_runs WHERE state <> ALL(%s) LIMIT 1", (list(bill_runs.ENDED),)
    ).fetchone()
    if row is not None:
        raise Conflict("a bill run is going on: wait for its end, or cancel it")
    waiting = _on_its_way(connection, tenant_id, customer)
    if waiting is not None:
        raise Conflict(f"document {waiting} is not in the archive yet: only there it is kept")
    return master


def in_the_way(master: MasterData, customer: str, now: datetime) -> Conflict | None:
    """What of the contracts still needs to know whom: one that runs, one that is not billed to its end, payees."""
    from billing.contracts import ended_at  # late: it is not small, and other ways of this module do without

    for code in master.subscriptions_of.get(customer, ()):
        end = ended_at(master.subscriptions[code], master.tenant.timezone)
        if end is None or end > now:
            until = "has no end" if end is None else f"ends on {end.date().isoformat()}"
            return Conflict(f"subscription {code!r} {until}: cancel it first", subscription=code)
        if master.runs and end > master.runs[-1].up_to:
            day = local_date(end, master.tenant.timezone).isoformat()
            return Conflict(f"subscription {code!r} is not billed up to its end: run the bills up to {day} first")
    payees = sorted(code for code in master.family(customer) if code != customer and _pays(master, customer, code, now))
    if payees:
        return Conflict(f"{customer!r} pays for {payees[0]!r}: end that first", customer=payees[0])
    return None


def _on_its_way(connection: Connection, tenant_id: str, customer: str) -> str | None:
    """The number of a document of his that is not in the archive yet."""
    waiting = connection.execute(
        "SELECT i.number FROM document_files f JOIN invoices i ON i.tenant_id = f.tenant_id AND i.id = f.invoice_id"
        " WHERE f.tenant_id = %(tenant)s AND f.state <> 'archived' AND (i.customer = %(customer)s OR EXISTS"
        " (SELECT 1 FROM invoice_members m WHERE m.tenant_id = i.tenant_id AND m.invoice_id = i.id"
        "  AND m.customer = %(customer)s)) LIMIT 1",
        {"tenant": UUID(tenant_id), "customer": customer},
    ).fetchone()
    return None if waiting is None else str(waiting["number"])


def _pays(master: MasterData, payer: str, customer: str, now: datetime) -> bool:
    return "erased" not in master.customers[customer].form and master.customers[customer].payer_at(now) == payer


def marks(master: MasterData, customer: str, secret: str) -> Marks:
    """What tells the customer, by all steps of the tenant."""
    if customer not in master.customers:
        raise NotFound(f"there is no customer {customer!r}")
    return marks_of((step for _, step in master.log), customer, secret)


def quiet(
    connection: Connection, tenant_id: str, number: int, master: MasterData, customer: str, now: datetime
) -> bool:
    """False if the master data have gone on from `number`. Until this transaction ends no bill run begins.

    Unavailable while one goes on that rests on what is to be written anew, while a document of his is on its way, or
    while what came since the erasure was asked for is in its way. Before anything is written, in the master chain too.
    """
    row = connection.execute(
        "SELECT number FROM masters WHERE tenant_id = %s FOR UPDATE", (UUID(tenant_id),)
    ).fetchone()
    if row is None or row["number"] != number:
        return False
    way = in_the_way(master, customer, now) if customer in master.customers else None
    if way is not None:
        raise Unavailable(f"the erasure waits: {way.detail}")
    bill_runs.alone(connection, tenant_id)
    going = connection.execute(
        "SELECT 1 FROM bill_runs WHERE tenant_id = %s AND state <> ALL(%s) LIMIT 1",
        (UUID(tenant_id), list(bill_runs.ENDED)),
    ).fetchone()
    if going is not None:
        raise Unavailable("a bill run is going on: the erasure waits for its end")
    waiting = _on_its_way(connection, tenant_id, customer)  # written since the erasure was asked for
    if waiting is not None:
        raise Unavailable(f"document {waiting} is not in the archive yet: the erasure waits for it")
    return True


def rewrite_master(connection: Connection, tenant_id: str, marks: Marks, rule: str, actor: str, now: datetime) -> int:
    """Write steps and records without the customer, and a change that tells everybody to read them again; its number.

    In a transaction that is `quiet`. Done again it changes nothing and gives the newest number. Raises InvalidInput if
    what is left does not add up.
    """
    tenant = UUID(tenant_id)
    counter = connection.execute(
        "SELECT number, steps FROM masters WHERE tenant_id = %s FOR UPDATE", (tenant,)
    ).fetchone()
    form = connection.execute("SELECT form FROM tenants WHERE id = %s", (tenant,)).fetchone()
    if counter is None or form is None:
        raise NotFound("the tenant has no master data")
    rows = connection.execute(
        "SELECT step, kind, subject, form, before FROM steps WHERE tenant_id = %s ORDER BY step", (tenant,)
    ).fetchall()
    after = [forgotten_step(row["form"], marks, rule) for row in rows]
    changed: list[dict[str, Any]] = []
    writes: list[tuple[Any, ...]] = []
    own = _own_steps(rows, after)
    for row, step in zip(rows, after, strict=True):
        subject = master_records.subject_of(step)[1]
        before = row["before"]
        if before is not None and row["step"] in own:
            before = _record_form(before, marks, rule)
        elif before is not None and before.get("payer") == marks.customer:
            before = {**before, "payer": marks.stands_for}
        if step != row["form"] or before != row["before"] or subject != row["subject"]:
            writes.append((Jsonb(step), None if before is None else Jsonb(before), subject, tenant, row["step"]))
            changed.append(step)
    if not writes:
        return int(counter["number"])
    master = MasterData.start(form["form"]).apply_all(after)  # raises if it does not add up: then nothing is changed
    with connection.cursor() as cursor:
        cursor.executemany(
            "UPDATE steps SET form = %s, before = %s, subject = %s WHERE tenant_id = %s AND step = %s", writes
        )
    connection.execute(
        "DELETE FROM master_records WHERE tenant_id = %s AND ((kind = 'customer' AND code = %s)"
        " OR (kind IN ('subscription', 'budget') AND parent = %s))",
        (tenant, marks.customer, marks.customer),
    )
    records = master_records.changed(master, master, changed)
    master_records.store(connection, tenant_id, records, int(counter["steps"]))
    return tell_again(connection, tenant_id, actor, now)


def tell_again(connection: Connection, tenant_id: str, actor: str, now: datetime) -> int:
    """A change without steps: whoever holds older master data reads them again from the chain. Its number."""
    tenant = UUID(tenant_id)
    counter = connection.execute(
        "UPDATE masters SET number = number + 1 WHERE tenant_id = %s RETURNING number, steps", (tenant,)
    ).fetchone()
    assert counter is not None
    connection.execute(
        "INSERT INTO master_changes (tenant_id, number, first_step, last_step, actor, changed_at, erased)"
        " VALUES (%s, %s, %s, %s, %s, %s, true)",
        (tenant, counter["number"], int(counter["steps"]) + 1, int(counter["steps"]), actor, now),
    )
    return int(counter["number"])


def rewrite_tables(connection: Connection, tenant_id: str, marks: Marks) -> dict[str, int]:
    """Write the rows of all other tables without the customer; how many of each. The archive's are left."""
    found: dict[str, int] = {}
    codes = [marks.customer, marks.stands_for]
    invoices = [
        row["id"]
        for row in connection.execute(
            "SELECT id FROM invoices WHERE tenant_id = %(tenant)s AND customer = ANY(%(codes)s) UNION"
            " SELECT invoice_id FROM invoice_members WHERE tenant_id = %(tenant)s AND customer = ANY(%(codes)s)",
            {"tenant": UUID(tenant_id), "codes": codes},
        ).fetchall()
    ]
    for table in tables(connection):
        if table.name in _SPARED or table.name.startswith(_ARCHIVE):
            continue
        count = 0
        for row, own in _rows(connection, table, tenant_id, marks, invoices):
            new = _without(table, row, own, marks)
            if new:
                _update(connection, table, row["place_"], new)
                count += 1
        if count:
            found[table.name] = count
    deleted = 0
    answers = connection.execute(
        "SELECT ctid::text AS place_, body FROM idempotency_keys WHERE owner = %s AND EXISTS"
        " (SELECT FROM unnest(%s::bytea[]) AS word WHERE position(word IN body) > 0) FOR UPDATE",
        (UUID(tenant_id), [form for word in marks.words for form in _in_json(word)]),
    ).fetchall()
    for row in answers:  # only those that name him: a repeat of any other must stay a repeat
        if _names(bytes(row["body"]), marks):
            deleted += connection.execute(
                "DELETE FROM idempotency_keys WHERE ctid = %s::tid", (row["place_"],)
            ).rowcount
    if deleted:
        found["idempotency_keys"] = deleted
    return found


def tables(connection: Connection) -> Iterator[Table]:
    """The tables of tenants that there are, with a policy under which the owner may erase in them."""
    rows = connection.execute(
        "SELECT c.relname AS name, array_agg(a.attname::text || ' ' || t.typname ORDER BY a.attnum) AS columns,"
        " EXISTS (SELECT 1 FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname = 'erasing') AS open"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        " JOIN pg_type t ON t.oid = a.atttypid"
        " WHERE c.relkind IN ('r', 'p') AND n.nspname = current_schema() GROUP BY c.oid, c.relname ORDER BY c.relname"
    ).fetchall()
    for row in rows:
        of: dict[str, str] = dict(one.rsplit(" ", 1) for one in row["columns"])
        if of.get("tenant_id") != "uuid":
            continue
        if not row["open"]:
            connection.execute(
                sql.SQL(
                    "CREATE POLICY erasing ON {} TO CURRENT_USER USING (tenant_id = current_tenant())"
                    " WITH CHECK (tenant_id = current_tenant())"
                ).format(sql.Identifier(row["name"]))
            )
        kinds = {
            kind: tuple(name for name, type_ in of.items() if type_ in types)
            for kind, types in (
                ("texts", ("text", "varchar")), ("forms", ("json", "jsonb")), ("lists", ("_text",)), ("bytes",
                ("bytea",)),
            )
        }  # fmt: skip
        yield Table(row["name"], "tenant_id", **kinds)


def _rows(
    connection: Connection, table: Table, tenant_id: str, marks: Marks, invoices: Sequence[UUID]
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Rows that may say something of the customer, and whether they are about him as a whole."""
    if not table.columns:
        return
    given: dict[str, Any] = {"tenant": UUID(tenant_id), "code": marks.customer, "invoices": list(invoices)}
    names = sql.SQL(", ").join(sql.Identifier(name) for name in table.columns)
    start = sql.SQL("SELECT ctid::text AS place_, {} FROM {} WHERE tenant_id = %(tenant)s AND ").format(
        names, sql.Identifier(table.name)
    )
    id_column = "id" if table.name == "invoices" else "invoice_id"
    if table.name == "invoices" or _has(connection, table.name, "invoice_id"):
        tests, own = [sql.SQL("{} = ANY(%(invoices)s)").format(sql.Identifier(id_column))], True
    elif "customer" in table.texts:
        tests, own = [sql.SQL("customer = %(code)s")], True
    else:
        own = False
        given["pattern"] = "|".join(quoted(word) for word in marks.words)
        given["bytes"] = [form for word in marks.words for form in _in_json(word)]
        tests = [
            sql.SQL("{}::text ~ %(pattern)s").format(sql.Identifier(name))
            for name in (*table.texts, *table.forms, *table.lists)
        ]
        tests += [
            sql.SQL("EXISTS (SELECT FROM unnest(%(bytes)s::bytea[]) AS word WHERE position(word IN {}) > 0)").format(
                sql.Identifier(name)
            )
            for name in table.bytes
        ]
    # Locked, so that nobody changes one between here and its update, which finds it by its place.
    query = start + sql.SQL("({}) FOR UPDATE").format(sql.SQL(" OR ").join(tests))
    for row in connection.execute(query, given).fetchall():
        yield row, own


def _has(connection: Connection, table: str, column: str) -> bool:
    row = connection.execute(
        "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = %s AND NOT attisdropped",
        (f'"{table}"', column),
    ).fetchone()
    return row is not None


def _without(table: Table, row: Mapping[str, Any], own: bool, marks: Marks) -> dict[str, Any]:
    """The columns of a row that change."""
    new: dict[str, Any] = {}
    is_his = row.get("customer") in (marks.customer, marks.stands_for)
    for name in table.texts:
        value = row[name]
        if value is None:
            continue
        if name == "customer_name":
            text = ERASED if is_his else value
        else:
            text = marks.without(value, name, own=own or name in ("note", "last_error", "reason", "error"))
        if text != value:
            new[name] = text
    for name in table.forms:
        value = row[name]
        if value is None:
            continue
        if name == "buyer":  # of somebody else who pays for him it stays
            form = _record_form(value, marks, "") if is_his else value
        elif name == "document" and table.name == "invoices":
            form = _document(value, marks)
        elif table.name == "issued_invoices":  # files in it are his, too; what was made of it is in the archive
            form = {}
        else:
            form = marks.without(value, name, own=own)
        if form != value:
            new[name] = Jsonb(form)
    for name in table.lists:
        if row[name] is not None and (listed := marks.without(row[name], name, own=own)) != row[name]:
            new[name] = listed
    for name in table.bytes:
        if row[name] is not None and (data := _bytes(table.name, name, bytes(row[name]), marks)) is not None:
            new[name] = data
    return new


def _bytes(table: str, column: str, data: bytes, marks: Marks) -> bytes | None:
    """Bytes without him, None if they stay: packed documents, or JSON."""
    if (table, column) == ("invoices", "packed"):
        form = msgspec.json.decode(unpacked(data))
        new = _document(form, marks)
        return None if new == form else packed([msgspec.json.encode(new)])[0]
    try:
        form = json.loads(data)
    except ValueError:
        return None  # `left` finds what it says
    new = marks.without(form, own=False)
    return None if new == form else json.dumps(new, ensure_ascii=False, separators=(",", ":")).encode()


def _names(body: bytes, marks: Marks) -> bool:
    try:
        return marks.names(json.loads(body))
    except ValueError:
        return True


def _document(form: Mapping[str, Any], marks: Marks) -> dict[str, Any]:
    """A document without him: the same amounts, and still one that can be read."""
    new = forgotten_document(form, marks)
    before, after = document_from(msgspec.json.encode(form)), document_from(msgspec.json.encode(new))
    assert all(getattr(before, name) == getattr(after, name) for name in _AMOUNTS)
    assert [line.amount for line in before.lines] == [line.amount for line in after.lines]
    return new


def forgotten_document(form: Mapping[str, Any], marks: Marks) -> dict[str, Any]:
    """The JSON of a document in which he is the customer, or one whose lines another one pays."""
    new: dict[str, Any] = marks.without(form)
    codes = (marks.customer, marks.stands_for)
    for member in new.get("members") or ():
        if member["code"] in codes:
            member["name"] = ERASED
    return new


def _record_form(form: Mapping[str, Any], marks: Marks, rule: str) -> dict[str, Any]:
    """What a record of his own (customer, subscription, budget) or a printed buyer becomes."""
    if "customer" not in form:  # his own form
        known = dict(forgotten_step({"customer": {**form, "code": marks.customer}}, marks, rule)["customer"])
        if not rule:
            known.pop("erased")
        return known
    new: dict[str, Any] = marks.without(form)
    if "steps" in form:
        new["steps"] = [forgotten_step(step, marks, rule) for step in form["steps"]]
    return new


def _own_steps(rows: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> set[int]:
    """Numbers of the steps that are the customer's own: their subjects change."""
    return {
        row["step"]
        for row, step in zip(rows, after, strict=True)
        if step != row["form"] and not _only_names(row["form"], step)
    }


def _only_names(form: Mapping[str, Any], step: Mapping[str, Any]) -> bool:
    """Whether a step of somebody else only named him, as payer or as left out of a run."""
    kind = next(key for key in form if key != "at")
    return kind in ("customer", "bill_run") and form[kind].get("code") == step[kind].get("code")


def _update(connection: Connection, table: Table, place: str, new: Mapping[str, Any]) -> None:
    columns = sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in new)
    connection.execute(
        sql.SQL("UPDATE {} SET {} WHERE ctid = %(place_)s::tid").format(sql.Identifier(table.name), columns),
        {**new, "place_": place},
    )


def _in_json(word: str) -> set[bytes]:
    """A word as bytes of JSON say it, with other signs as they are or escaped."""
    return {json.dumps(word, ensure_ascii=ascii_)[1:-1].encode() for ascii_ in (True, False)}
