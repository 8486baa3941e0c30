"""Long work that is kept in the object store and nowhere else: planned, driven in chunks, looked at, ended, deleted.

Owns what simulations and previews of bill runs have in common. All of one piece of work lies below
`<root>/<tenant>/<id>/`: its facts (put once, what finds it), its progress (the last note), a wish to cancel, chunks and
a summary (put once: then it is done). What is computed is the business of who keeps it. Two drivers of one do no harm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import uuid_utils

from billing.errors import BillingError, Conflict, NotFound
from storage.object_store import ObjectStore

Clock = Callable[[], datetime]
GOING_ON = ("planned", "running")


def new_id() -> str:
    """Ids are in the order of time, and so are lists of them."""
    return str(UUID(bytes=uuid_utils.uuid7().bytes))


@dataclass(frozen=True)
class KeptWork:
    """The pieces of work of one kind: `name` in words, `root` in the store, at most `kept_max` of a tenant."""

    store: ObjectStore
    clock: Clock
    name: str
    root: str
    kept_max: int

    def folder(self, tenant_id: str, id_: str = "") -> str:
        return f"{self.root}/{tenant_id}/{id_}/" if id_ else f"{self.root}/{tenant_id}/"

    def _named(self, id_: str) -> dict[str, Any]:
        return {self.name: id_}

    # -- Plan ----------------------------------------------------------------------------------------------------------

    def make_room(self, known: Sequence[Mapping[str, Any]]) -> None:
        """Conflict while one of a tenant's pieces (`known` has their states) goes on, or when too many are kept."""
        going = next((one for one in known if one["state"] in GOING_ON), None)
        if going is not None:
            words = f"a {self.name} of this tenant goes on: wait for it or cancel it"
            raise Conflict(words, **self._named(going["id"]))
        if len(known) >= self.kept_max:
            raise Conflict(f"{self.kept_max} {self.name}s are kept: delete one first")

    def plan(self, tenant_id: str, facts: Mapping[str, Any]) -> None:
        """From now on it is found."""
        self.store.create(f"{self.folder(tenant_id, facts['id'])}facts.json", msgspec.json.encode(facts))
        self.note(tenant_id, facts["id"], "planned", 0)

    # -- Drive ---------------------------------------------------------------------------------------------------------

    def guarded(self, tenant_id: str, id_: str, work: Callable[[], str]) -> str:
        """The state that `work` ends in. What does not mend itself is noted at the piece, and raised."""
        try:
            return work()
        except NotFound:
            raise
        except BillingError as error:
            if not error.retryable and not self.was_deleted(tenant_id, id_):
                self.note(tenant_id, id_, "failed", 0, error.detail)
            raise
        except Exception as error:
            # Nobody waits for this call: the piece itself must say it.
            if not self.was_deleted(tenant_id, id_):
                self.note(tenant_id, id_, "failed", 0, f"{type(error).__name__}: {error}")
            raise

    def note(
        self, tenant_id: str, id_: str, state: str, done: int, error: str | None = None, **more: str | None
    ) -> None:
        """How far it is; `done` is in chunks. `more` is what the kind of work says besides."""
        note = {"state": state, "done": done, "error": error, "updated_at": self.clock().isoformat(), **more}
        self.store.put(f"{self.folder(tenant_id, id_)}progress.json", json.dumps(note).encode())

    def has_chunk(self, tenant_id: str, id_: str, chunk: int) -> bool:
        return self.store.exists(chunk_key(self.folder(tenant_id, id_), chunk))

    def is_cancelled(self, tenant_id: str, id_: str) -> bool:
        return self.store.exists(f"{self.folder(tenant_id, id_)}cancel.json")

    def was_deleted(self, tenant_id: str, id_: str) -> bool:
        """Whether it was cancelled and deleted while its last chunk was computed; what that left is taken away."""
        here = self.folder(tenant_id, id_)
        if self.store.exists(f"{here}facts.json"):
            return False
        for key in list(self.store.list(here)):
            self.store.delete(key)
        return True

    def end(self, tenant_id: str, id_: str, summary: Mapping[str, Any], done: int) -> str:
        self.store.create(f"{self.folder(tenant_id, id_)}summary.json", msgspec.json.encode(summary))
        self.note(tenant_id, id_, "done", done)
        return "done"

    # -- Look and steer ------------------------------------------------------------------------------------------------

    def facts(self, tenant_id: str, id_: str) -> dict[str, Any]:
        data = self.store.get(f"{self.folder(tenant_id, id_)}facts.json")
        if data is None:
            raise NotFound(f"there is no {self.name} {id_!r}", **self._named(id_))
        return msgspec.json.decode(data)

    def state(self, tenant_id: str, id_: str) -> dict[str, Any]:
        here = self.folder(tenant_id, id_)
        data = self.store.get(f"{here}progress.json")
        # Killed between the facts and the first note: it was planned and nobody has begun.
        found = {"state": "planned", "done": 0, "error": None, "updated_at": None} | json.loads(data or b"{}")
        if self.store.exists(f"{here}summary.json"):
            return found | {"state": "done"}
        return found | {"state": "cancelled"} if self.is_cancelled(tenant_id, id_) else found

    def view(self, tenant_id: str, id_: str, facts: Mapping[str, Any], hidden: Sequence[str]) -> dict[str, Any]:
        """As people and programs see it: the facts but for `hidden`, state, progress in customers, and the summary."""
        state = self.state(tenant_id, id_)
        sizes: list[int] = facts["chunks"]
        summary = self.store.get(f"{self.folder(tenant_id, id_)}summary.json")
        return {
            **{key: value for key, value in facts.items() if key not in hidden},
            "state": state["state"],
            "error": state["error"],
            "progress": {
                "done": sum(sizes[: state["done"]]),
                "total": sum(sizes),
                "updated_at": state["updated_at"],
            },
            "result": msgspec.json.decode(summary) if summary is not None else None,
        }

    def ids(self, tenant_id: str) -> list[str]:
        """Newest first; at most `kept_max` and those planned at the same moment."""
        keys = [key for key in self.store.list(self.folder(tenant_id)) if key.endswith("/facts.json")]
        return [key.split("/")[-2] for key in sorted(keys, reverse=True)]

    def cancel(self, tenant_id: str, id_: str, state: str) -> None:
        """Stop after the chunk that is computed now. Conflict where it has ended."""
        if state not in GOING_ON:
            raise Conflict(f"the {self.name} is {state}")
        self.store.put(f"{self.folder(tenant_id, id_)}cancel.json", b"{}")

    def delete(self, tenant_id: str, id_: str, state: str) -> None:
        """Remove one that has ended, with all that it computed."""
        if state in GOING_ON:
            raise Conflict(f"the {self.name} goes on: cancel it first")
        keys = list(self.store.list(self.folder(tenant_id, id_)))
        for key in sorted(keys, key=lambda one: one.endswith("facts.json")):  # the facts last: until then it is found
            self.store.delete(key)


def chunk_key(folder: str, chunk: int) -> str:
    return f"{folder}chunk-{chunk:06}.parquet"
