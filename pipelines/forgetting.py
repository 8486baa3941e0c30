"""Forgetting a customer everywhere: a reconciler that brings an erasure from asked to done, store after store.

Owns the order and what each step looks at again before it goes on. Every step may run twice, in two processes, and be
killed anywhere. The order: tables and master chain (what tells the customer is then gone from everything that a new
process reads), results of bill runs and simulations, the usage log, at last the archive's documents, which stay until
the law lets them go. Only a look that finds nothing more ends a step.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import msgspec

from billing.document_columns import columns_of
from billing.document_json import document_from, unpacked
from billing.erasing import Marks
from billing.errors import BillingError, Conflict, InvalidInput, Unavailable
from pipelines import simulation
from pipelines.bill_run_chunk import preview_folder
from pipelines.chunk_results import Result, pack, unpack
from storage.archive import Archive, deletion, retention
from storage.archive.entries import Archived, archived
from storage.master_chain import MasterChain
from storage.master_erasing import rewrite_chain
from storage.object_store import ObjectStore
from storage.sql import audit, erasing, erasures, steps, traces
from storage.sql.database import Connection, Database
from storage.usage_log.erasing import KEYS_MAX, Erasure, erase, look, note
from storage.usage_log.manifest import ManifestChain

LOG = logging.getLogger("cloudbilling.erasures")
ROUNDS_MAX = 10  # of the master chain in one step: each more only because somebody changed something meanwhile
AGAIN = timedelta(seconds=30)  # between two passes over the usage log
FAULT = timedelta(minutes=1)
RULE_LENGTH_MAX = 100
REASON = "retention over after erasure"


@dataclass(frozen=True)
class Erasures:
    """What forgets customers. `clock` is the platform's."""

    database: Database
    store: ObjectStore
    chain: MasterChain
    archive: Archive
    clock: Callable[[], datetime]

    # -- asking --------------------------------------------------------------------------------------------------------

    def plan(self, tenant_id: str, customer: str, rule: str) -> dict[str, Any]:
        """What an erasure would take and what would stay; changes nothing. Errors as `ask`."""
        with self.database.tenant(tenant_id) as connection:
            marks = self._marks(connection, tenant_id, customer, rule)
            found, _ = traces.find(connection, list(marks.words)[: traces.WORDS_MAX])
            documents = _documents(connection, tenant_id, marks)
        return {
            "customer": customer,
            "keys": list(marks.keys),
            "rule": rule,
            "usage_rows": sum(look(self.store, one) for one in _of_log(tenant_id, marks, rule)),
            "tables": {one.table: one.count for one in found if not one.table.startswith("archive_")},
            "documents": documents,
        }

    def ask(self, tenant_id: str, customer: str, rule: str, actor: str, connection: Connection) -> dict[str, Any]:
        """Put down that a customer is to be forgotten; `round` does it. Asked again while it goes on: the same one.
        One that failed is taken up under its own id and rule, for half of what tells the customer may say it already.

        Errors: NotFound, Conflict with what is in the way (a contract that runs, a document on its way, a bill run).
        """
        known = erasures.under_way(connection, customer)
        if known is not None:
            return known
        if erasures.has_failed(connection, customer):
            _, master = steps.current(connection, tenant_id)
            if customer in master.customers:  # else he is gone from there, and nothing can be in the way
                self._marks(connection, tenant_id, customer, rule)
            taken = erasures.take_up(connection, customer, self.clock())
            assert taken is not None
            audit.record(connection, tenant_id, at=self.clock(), actor=actor, action="erasure asked again",
                         subject=str(taken["stands_for"]), after={"erasure": str(taken["id"])})  # fmt: skip
            return taken
        marks = self._marks(connection, tenant_id, customer, rule)
        made = erasures.ask(connection, tenant_id, marks, rule, actor=actor, now=self.clock())
        audit.record(connection, tenant_id, at=self.clock(), actor=actor, action="erasure asked",
                     subject=marks.stands_for, after={"rule": rule, "erasure": str(made["id"])})  # fmt: skip
        return made

    def _marks(self, connection: Connection, tenant_id: str, customer: str, rule: str) -> Marks:
        if not rule.strip() or len(rule) > RULE_LENGTH_MAX:
            raise InvalidInput(f"an erasure has a rule of 1 to {RULE_LENGTH_MAX} characters, such as `GDPR 17`")
        master = erasing.check(connection, tenant_id, customer, self._now(connection, tenant_id))
        return erasing.marks(master, customer, secrets.token_hex(32))

    def _now(self, connection: Connection, tenant_id: str) -> datetime:
        """A test tenant's own time, else the platform's."""
        row = connection.execute("SELECT test_clock FROM tenants WHERE id = %s", (tenant_id,)).fetchone()
        return row["test_clock"] if row is not None and row["test_clock"] is not None else self.clock()

    # -- doing ---------------------------------------------------------------------------------------------------------

    def round(self) -> int:
        """One step of every erasure that is due; how many. What goes wrong for a while is tried again in a minute."""
        with self.database.system() as connection:
            found = erasures.due(connection, self.clock())
        return sum(self.step(tenant_id, id) for tenant_id, id in found)

    def take_over(self) -> int:
        """Begin again now what a process before this one had in hand; how many. Else it would be held for ten minutes,
        and one that was killed between chain and tables leaves them apart so long."""
        with self.database.system() as connection:
            found = erasures.held(connection, self.clock())
        for tenant_id, id in found:
            with self.database.tenant(tenant_id) as connection:
                erasures.release(connection, id, self.clock())
        return len(found)

    def step(self, tenant_id: str, id: str) -> bool:
        """The next step of one erasure; False if somebody else has it, or there is none."""
        with self.database.tenant(tenant_id) as connection:
            claimed = erasures.claim(connection, id, self.clock())
        if claimed is None:
            return False
        row, marks = claimed
        work = {
            "asked": self._rewrite_sql,
            "tables": self._rewrite_sql,
            "objects": self._rewrite_objects,
            "usage": self._erase_usage,
            "documents": self._delete_documents,
        }[row["state"]]
        try:
            noted = work(tenant_id, row, marks)
        except BillingError as error:
            retryable = error.retryable or isinstance(error, Conflict)
            LOG.warning("erasure %s of tenant %s: %s", id, tenant_id, error.code)
            noted = {
                "state": row["state"] if retryable else "failed",
                "next_at": self.clock() + FAULT,
                "progress": {},
                "error": f"{error.code}: {error.detail}" if retryable else f"{error.code}",
            }
        with self.database.tenant(tenant_id) as connection:
            erasures.note(connection, id, **noted)
        return True

    def _rewrite_sql(self, tenant_id: str, row: Mapping[str, Any], marks: Marks | None) -> dict[str, Any]:
        """Tables and master chain. SQL is written first and stays open, for what does not add up fails there; then the
        chain, the commit of SQL, and what came to the chain meanwhile."""
        assert marks is not None
        rule, actor = str(row["rule"]), f"erasure {row['id']}"
        objects, rows = 0, dict[str, int]()
        for _ in range(ROUNDS_MAX):
            self.chain.forget(tenant_id)
            with self.database.tenant(tenant_id) as connection:
                number, master = steps.current(connection, tenant_id)
                now = self._now(connection, tenant_id)
                if marks.customer in master.customers:  # what was said of him since he was asked to be forgotten
                    marks = marks.with_more(erasing.marks(master, marks.customer, marks.secret))
                    erasures.widen(connection, str(row["id"]), marks)
            self.chain.project(self.database, tenant_id, up_to=number)
            with self.database.owner(tenant_id) as connection:
                if not erasing.quiet(connection, tenant_id, number, master, marks.customer, now):
                    continue
                changed = erasing.rewrite_master(connection, tenant_id, marks, rule, actor, self.clock())
                for table, count in erasing.rewrite_tables(connection, tenant_id, marks).items():
                    rows[table] = rows.get(table, 0) + count
                objects += rewrite_chain(self.store, tenant_id, marks, rule, number)
            self.chain.project(self.database, tenant_id, up_to=changed)
            late = rewrite_chain(self.store, tenant_id, marks, rule, changed)
            objects += late
            if changed == number and not late:
                self.chain.forget(tenant_id)
                found: dict[str, Any] = {"tables": rows, "master_objects": objects}
                return {"state": "objects", "next_at": self.clock(), "progress": found}
            if late:  # somebody may have read the old ones with the change that says: read again
                with self.database.owner(tenant_id) as connection:
                    erasing.tell_again(connection, tenant_id, actor, self.clock())
        raise Unavailable("the master data change faster than they are written anew; the erasure goes on later")

    def _rewrite_objects(self, tenant_id: str, row: Mapping[str, Any], marks: Marks | None) -> dict[str, Any]:
        """Results of bill runs without him; simulations and previews of runs, which rest on his usage, go."""
        assert marks is not None
        results = 0
        for key in list(self.store.list(f"runs/{tenant_id}/")):
            data = self.store.get(key)
            if data is None:
                continue
            if "/chunk-" not in key:
                self.store.delete(key)  # usage that was gathered for a run which ended without taking it away
                results += 1
                continue
            new = forgotten_result(data, marks)
            if new is not None:
                if not self.store.replace(key, data, new):
                    raise Unavailable(f"{key} was changed meanwhile")
                results += 1
        found = {"run_results": results}
        looks = (("simulation_objects", simulation.folder), ("preview_objects", preview_folder))
        for name, folder in looks:
            keys = list(self.store.list(folder(tenant_id)))
            for key in keys:
                self.store.delete(key)
            found[name] = len(keys)
        return {"state": "usage", "next_at": self.clock(), "progress": found}

    def _erase_usage(self, tenant_id: str, row: Mapping[str, Any], marks: Marks | None) -> dict[str, Any]:
        """A pass over the log. Rows above a lane's last checkpoint wait; what was replaced goes an hour later."""
        assert marks is not None
        parts = [(one, erase(self.store, one)) for one in _of_log(tenant_id, marks, str(row["rule"]))]
        before = dict(row["progress"].get("usage") or {})
        counted = ("rows", "segments", "files")
        so_far = {name: before.get(name, 0) + sum(getattr(done, name) for _, done in parts) for name in counted}
        waiting = sum(done.waiting for _, done in parts)
        usage: dict[str, Any] = {**so_far, "waiting": waiting, "passes": before.get("passes", 0) + 1}
        now = self.clock()
        took = [(one, done) for one, done in parts if done.rows or done.files or done.waiting]
        for one, done in took:
            note(self.store, one, done, f"erasure {row['id']}")
        if took:
            return {"state": "usage", "next_at": now + AGAIN, "progress": {"usage": usage}}
        # Since this moment nothing names what was replaced; the objects that left before it are awaited.
        leaving = [one.since_us for one in ManifestChain(self.store).newest().leaving]
        gone_at_us = before.get("replaced_until_us") or max(leaving, default=0)
        usage["replaced_until_us"] = gone_at_us
        usage["leaving"] = sum(since_us <= gone_at_us for since_us in leaving)
        if usage["leaving"]:
            return {"state": "usage", "next_at": now + AGAIN, "progress": {"usage": usage}}
        with self.database.tenant(tenant_id) as connection:
            documents = _documents(connection, tenant_id, marks)
            words = [*marks.keys, *(one for one in marks.words if one in marks.texts)]
            found, closed = traces.find(connection, words[: traces.WORDS_MAX])
        left = {one.table: one.count for one in found if one.table != "erasures"}
        return {
            "state": "documents",
            "next_at": now,
            "progress": {"usage": usage, "left": left, "not_searched": closed},
            "documents": documents,
            "forget_marks": True,
        }

    def _delete_documents(self, tenant_id: str, row: Mapping[str, Any], marks: Marks | None) -> dict[str, Any]:
        """Documents go when their time is over and nobody holds them; until then the erasure waits for them."""
        now = self.clock()
        shared = [one for one in row["documents"] if one["shared"]]  # another customer's: they go when his do
        ids = [str(one["document_id"]) for one in row["documents"] if not one["shared"]]
        kept = self.archive.entries(tenant_id, ids) if ids else []
        kept = [one for one in kept if one.deleted_by is None]
        with self.database.tenant(tenant_id) as connection:
            stay = {one.document_id for one in deletion.kept_of(connection, tenant_id, kept, now.date())}
            years = retention.years_of(connection, tenant_id)
        due = sorted({one.document_id for one in kept if one.document_id not in stay})[: deletion.DOCUMENTS_MAX]
        deleted = int(row["progress"].get("documents_deleted", 0))
        if due:
            deletion.delete(self.archive, tenant_id, due, actor=f"erasure {row['id']}", reason=REASON)
            deleted += len(due)
        left = [one for one in kept if one.document_id not in due]
        noted: dict[str, Any] = {
            "progress": {"documents_deleted": deleted},
            "documents": [*_shown(left, years), *shared],
        }
        if left:
            first = min(retention.kept_until(one, years) for one in left)
            day = max(first + timedelta(days=1), now.date() + timedelta(days=1))  # a hold may be released any day
            return {"state": "documents", "next_at": datetime.combine(day, time(), UTC), **noted}
        with self.database.tenant(tenant_id) as connection:
            audit.record(connection, tenant_id, at=now, actor=f"erasure {row['id']}", action="erasure done",
                         subject=str(row["stands_for"]), after={"rule": row["rule"]})  # fmt: skip
        return {"state": "done", "next_at": now, "done_at": now, **noted}


def forgotten_result(data: bytes, marks: Marks) -> bytes | None:
    """A chunk's result without the customer; None if it says nothing of him."""
    result = unpack(data)
    codes = (marks.customer, marks.stands_for)
    documents: list[bytes] = []
    keys: list[str] = []
    changed = False
    frame = result.columns.documents
    for key, customer, body in frame.select("key", "customer", "body").iter_rows():
        text = unpacked(body)
        form = msgspec.json.decode(text)
        members = {one["code"] for one in form.get("members") or ()}
        if customer in codes or members & set(codes):
            form = erasing.forgotten_document(form, marks)
            text, key = msgspec.json.encode(form), marks.within(key)
            changed = changed or text != unpacked(body)
        documents.append(text)
        keys.append(key)
    parked = marks.without([dict(one) for one in result.parked], own=False)
    holders = {marks.exactly(one): list(result.holders[one]) for one in result.holders}
    holders = {one: [marks.within(key) for key in keys_] for one, keys_ in holders.items()}
    if not changed and parked == [dict(one) for one in result.parked] and holders.keys() == result.holders.keys():
        return None
    return pack(Result(columns_of([document_from(one) for one in documents], keys), parked, holders))


def _of_log(tenant_id: str, marks: Marks, rule: str) -> list[Erasure]:
    """All his keys, as many at a time as one pass takes."""
    parts = (marks.keys[first : first + KEYS_MAX] for first in range(0, len(marks.keys), KEYS_MAX))
    return [Erasure(tenant_id, rule, part) for part in parts]


def _documents(connection: Connection, tenant_id: str, marks: Marks) -> list[dict[str, Any]]:
    """Documents of the archive that are his, and those of who pays for him (`shared`)."""
    rows = connection.execute(
        "SELECT * FROM archive_entries WHERE tenant_id = %(tenant)s AND deleted_by IS NULL AND (customer = %(customer)s"
        " OR document_id IN (SELECT invoice_id::text FROM invoice_members WHERE customer = ANY(%(codes)s)))"
        " ORDER BY position",
        {"tenant": tenant_id, "customer": marks.customer, "codes": [marks.customer, marks.stands_for]},
    ).fetchall()
    return _shown([archived(row) for row in rows], retention.years_of(connection, tenant_id), marks.customer)


def _shown(found: list[Archived], years: Mapping[str, int], customer: str | None = None) -> list[dict[str, Any]]:
    """Documents with the last day on which each must be kept; all are his if no customer is given."""
    until: dict[str, date] = {}
    for one in found:
        day = retention.kept_until(one, years)
        until[one.document_id] = max(day, until.get(one.document_id, day))
    known = {one.document_id: one for one in found}
    return [
        {
            "document_id": id,
            "number": known[id].number,
            "kept_until": day.isoformat(),
            "shared": customer is not None and known[id].customer != customer,
        }
        for id, day in until.items()
    ]
