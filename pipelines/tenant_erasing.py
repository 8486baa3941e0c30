"""Erasing a tenant that was closed: a reconciler that takes everything of it away, store after store, once its time has
come.

Owns the order. Master data first (who reads them again finds a tenant without customers, and its numbers go on), then
the usage log, what else lies in the object store, the rows of PostgreSQL. Documents that the law keeps stay, with the
archive's register, until their time is over; a test tenant's are no vouchers and go at once. What is left at the end is
an id.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from billing.errors import BillingError, NotFound, Unavailable
from billing.master import MasterData
from pipelines import simulation
from pipelines.bill_run_chunk import preview_folder
from storage.archive import Archive, deletion
from storage.master_chain import COMPLETE_EVERY, MasterChain, change_key, complete_key, pack_change, unpack_change
from storage.object_store import ObjectStore
from storage.sql import erasing, steps, tenant_ends
from storage.sql.database import Database
from storage.usage_log.erasing import Erasure, erase, note
from storage.usage_log.manifest import ManifestChain

LOG = logging.getLogger("cloudbilling.erasures")
AGAIN = timedelta(seconds=30)
DAILY = timedelta(days=1)
FAULT = timedelta(minutes=1)
_FORM = ("currency", "timezone", "country", "kind")


@dataclass(frozen=True)
class TenantErasing:
    """What erases tenants whose time has come. `clock` is the platform's."""

    database: Database
    store: ObjectStore
    chain: MasterChain
    archive: Archive
    clock: Callable[[], datetime]

    def round(self) -> int:
        """One step of every erasure that is due; how many."""
        with self.database.system() as connection:
            found = tenant_ends.due(connection, self.clock())
        return sum(self.step(tenant_id) for tenant_id in found)

    def step(self, tenant_id: str) -> bool:
        """The next step of one; False if somebody else has it. What goes wrong for a while is tried again."""
        with self.database.system() as connection:
            tenant = tenant_ends.begin(connection, tenant_id, self.clock())
        if tenant is None:
            return False
        done: Mapping[str, Any] = tenant["erase_progress"]
        noted: dict[str, Any] = {"next_at": self.clock(), "erased_at": None}
        try:
            if "master_objects" not in done:
                noted["progress"] = {"master_objects": self._empty_master(tenant_id, tenant["code"])}
            elif not done.get("usage", {}).get("gone"):
                noted["progress"] = {"usage": self._usage(tenant_id, str(tenant["erase_rule"]), done.get("usage", {}))}
                noted["next_at"] += AGAIN
            elif "objects" not in done:
                noted["progress"] = {"objects": self._objects(tenant_id)}
            else:
                documents = self._documents(tenant_id, tenant["kind"])
                members = self._members(tenant_id, done.get("members") or ())
                rows, people = self._rows(tenant_id, members, with_archive=not documents)
                before = done.get("rows", {})
                rows = {name: before.get(name, 0) + rows.get(name, 0) for name in {*before, *rows}}
                people += done.get("people", 0)
                noted["progress"] = {"rows": rows, "people": people, "documents_kept": documents}
                noted["progress"]["members"] = None  # the ids of people who are forgotten are nobody's, too
                noted["next_at"] += DAILY
                noted["erased_at"] = None if documents else self.clock()
        except BillingError as error:
            LOG.warning("erasing tenant %s: %s", tenant_id, error.code)
            noted |= {"progress": {"error": error.code}, "next_at": self.clock() + FAULT}
        with self.database.system() as connection:
            tenant_ends.note(connection, tenant_id, **noted)
        return True

    def _empty_master(self, tenant_id: str, code: str) -> int:
        """Changes without steps, of a tenant without a name; a last change tells everybody to read them again."""
        with self.database.tenant(tenant_id) as connection:
            row = connection.execute("SELECT form FROM tenants WHERE id = %s", (tenant_id,)).fetchone()
            number = steps.current_number(connection, tenant_id)
        if row is None:
            raise NotFound("there is no such tenant")
        self.chain.forget(tenant_id)
        self.chain.project(self.database, tenant_id, up_to=number)
        form = {name: row["form"][name] for name in _FORM if row["form"].get(name) is not None}
        code = code if code.startswith("erased-") else f"erased-{tenant_id[-12:]}"
        with self.database.owner(tenant_id) as connection:
            connection.execute("DELETE FROM steps WHERE tenant_id = %s", (tenant_id,))
            connection.execute("DELETE FROM master_records WHERE tenant_id = %s", (tenant_id,))
            connection.execute("UPDATE masters SET steps = 0 WHERE tenant_id = %s", (tenant_id,))
            connection.execute(
                "UPDATE master_changes SET first_step = 1, last_step = 0, actor = 'erased' WHERE tenant_id = %s",
                (tenant_id,),
            )
            tenant_ends.without_name(connection, tenant_id, form, code)
        changed = 0
        for place in range(number + 1):
            key = change_key(tenant_id, place)
            data = self.store.get(key)
            if data is None:
                raise Unavailable(f"change {place} is not in the master chain yet; try again")
            entry = unpack_change(data)
            new = {**entry, "steps": [], "actor": "erased", "tenant": None if entry["tenant"] is None else form}
            if new != entry:
                changed += self._replace(key, data, pack_change(new))
            if place and place % COMPLETE_EVERY == 0:
                empty = MasterData.start(form).to_bytes()
                known = self.store.get(complete_key(tenant_id, place))
                if known is None:
                    self.store.create(complete_key(tenant_id, place), empty)
                elif known != empty:
                    changed += self._replace(complete_key(tenant_id, place), known, empty)
        with self.database.owner(tenant_id) as connection:
            last = erasing.tell_again(connection, tenant_id, "erased", self.clock())
        self.chain.project(self.database, tenant_id, up_to=last)
        self.chain.forget(tenant_id)
        return changed

    def _replace(self, key: str, old: bytes, data: bytes) -> bool:
        if not self.store.replace(key, old, data):
            raise Unavailable(f"{key} was changed meanwhile")
        return True

    def _usage(self, tenant_id: str, rule: str, before: Mapping[str, Any]) -> dict[str, Any]:
        """A pass over the log; `gone` when one finds nothing and what was replaced is gone."""
        erasure = Erasure(tenant_id, rule, whole=True)
        done = erase(self.store, erasure)
        usage: dict[str, Any] = {
            name: before.get(name, 0) + getattr(done, name) for name in ("rows", "segments", "files")
        }
        usage |= {"waiting": done.waiting, "passes": before.get("passes", 0) + 1}
        if done.rows or done.files or done.waiting:
            note(self.store, erasure, done, "erasure of the tenant")
            return usage
        leaving = [one.since_us for one in ManifestChain(self.store).newest().leaving]
        usage["replaced_until_us"] = before.get("replaced_until_us") or max(leaving, default=0)
        usage["gone"] = not any(since_us <= usage["replaced_until_us"] for since_us in leaving)
        return usage

    def _objects(self, tenant_id: str) -> int:
        """What else lies in the object store: results and previews of bill runs, simulations, passes of the log."""
        count = 0
        passes = (f"log/reused/{tenant_id}/", f"log/reused-runs/{tenant_id}/")
        for prefix in (f"runs/{tenant_id}/", preview_folder(tenant_id), simulation.folder(tenant_id), *passes):
            for key in list(self.store.list(prefix)):
                self.store.delete(key)
                count += 1
        return count

    def _documents(self, tenant_id: str, kind: str) -> int:
        """Delete documents whose time is over; how many files must stay. All of a test tenant's go."""
        if kind == "test":
            for prefix in (f"archive/{tenant_id}/", f"archive-roots/{tenant_id}/"):
                for key in list(self.archive.store.list(prefix)):
                    self.archive.store.delete(key)
            return 0
        today = self.clock().date()
        while True:
            with self.database.tenant(tenant_id) as connection:
                over = deletion.expired(connection, tenant_id, today, limit=deletion.DOCUMENTS_MAX)
            ids = sorted({one.document_id for one in over})
            if not ids:
                break
            deletion.delete(self.archive, tenant_id, ids, actor="erasure of the tenant", reason="tenant erased")
        with self.database.tenant(tenant_id) as connection:
            row = connection.execute(
                "SELECT count(*) AS files FROM archive_entries WHERE deleted_by IS NULL AND kind <> 'deletion'"
            ).fetchone()
        assert row is not None
        return int(row["files"])

    def _members(self, tenant_id: str, before: Sequence[str]) -> list[str]:
        """Ids of the tenant's people, noted before their memberships go: nothing else tells who they were."""
        with self.database.owner(tenant_id) as connection:
            found = connection.execute("SELECT user_id FROM memberships WHERE tenant_id = %s", (tenant_id,)).fetchall()
        members = sorted({*before, *(str(row["user_id"]) for row in found)})
        if members:
            with self.database.system() as connection:
                tenant_ends.remember(connection, tenant_id, {"members": members})
        return members

    def _rows(self, tenant_id: str, members: list[str], *, with_archive: bool) -> tuple[dict[str, int], int]:
        """The rows of PostgreSQL, and the people who belong to no other tenant."""
        with self.database.owner(tenant_id) as connection:
            rows = tenant_ends.delete_rows(connection, tenant_id, with_archive=with_archive)
        with self.database.system() as connection:
            return rows, tenant_ends.forget_people(connection, members)
