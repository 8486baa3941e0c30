"""Long work that is kept in the object store and nowhere else: planned, driven in chunks, looked at, ended, deleted.

Owns what simulations and previews of bill runs have in common. All of one piece of work lies below
`<root>/<tenant>/<id>/`: its facts (put once, what finds it), its progress (the last note), a wish to cancel, chunks and
a summary (put once: then it is done). What is computed is the business of who keeps it. Two drivers of one do no harm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import uuid_utils

from billing.errors import BillingError, Conflict, NotFound
from storage.object_store import ObjectStore

Clock = Callable[[], datetime]
GOING_ON = ("planned", "running")
PLANNED_WITHIN = timedelta(hours=1)  # from its id to its facts; a folder without them is then one of a deleted piece


def new_id() -> str:
    """Ids are in the order of time, and so are lists of them."""
    return str(UUID(bytes=uuid_utils.uuid7().bytes))


@dataclass(frozen=True)
class Head:
    """What tells a piece of work from others, without its facts and its result."""

    id: str
    state: str
    updated_at: str | None  # of one that goes on; None: nobody has begun

    @property
    def goes_on(self) -> bool:
        return self.state in GOING_ON

    @property
    def mark(self) -> str:
        """Other, whenever the piece has come on."""
        return f"{self.state} {self.updated_at}"


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

    def make_room(self, known: Sequence[Head]) -> None:
        """Conflict while one of a tenant's pieces goes on, or when too many are kept."""
        going = next((one for one in known if one.goes_on), None)
        if going is not None:
            words = f"a {self.name} of this tenant goes on: wait for it or cancel it"
            raise Conflict(words, **self._named(going.id))
        if len(known) >= self.kept_max:
            raise Conflict(f"{self.kept_max} {self.name}s are kept: delete one first")

    def plan(self, tenant_id: str, facts: Mapping[str, Any]) -> None:
        """From now on it is found."""
        self.store.create(f"{self.folder(tenant_id, facts['id'])}facts.json", msgspec.json.encode(facts))
        self.note(tenant_id, facts["id"], "planned", 0)

    # -- Drive ---------------------------------------------------------------------------------------------------------

    def guarded(self, tenant_id: str, id_: str, work: Callable[[], str]) -> str:
        """The state that `work` ends in. What does not mend itself is noted at the piece, and raised.

        Of one that was deleted meanwhile nothing stays, also what was put since the driver looked the last time.
        """
        try:
            state = work()
            return "cancelled" if self.was_deleted(tenant_id, id_) else state
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

    def sweep(self, tenant_id: str) -> int:
        """Delete what lies without facts: put after its piece was deleted, by a driver that died then. How many pieces.

        A piece that is being planned may have no facts yet; ids say when they were made.
        """
        until = self.clock() - PLANNED_WITHIN
        return sum(
            self.was_deleted(tenant_id, id_)
            for id_, names in self._names(tenant_id).items()
            if "facts.json" not in names and _made_before(id_, until)
        )

    # -- Look and steer ------------------------------------------------------------------------------------------------

    def heads(self, tenant_id: str) -> list[Head]:
        """All pieces of a tenant, newest first: one list, and a request for each that may go on."""
        return [
            self._head(tenant_id, id_, names)
            for id_, names in sorted(self._names(tenant_id).items(), reverse=True)
            if "facts.json" in names
        ]

    def _head(self, tenant_id: str, id_: str, names: Collection[str]) -> Head:
        for name, state in (("summary.json", "done"), ("cancel.json", "cancelled")):
            if name in names:
                return Head(id_, state, None)
        note = self._noted(self.folder(tenant_id, id_))
        return Head(id_, note["state"], note["updated_at"])

    def _names(self, tenant_id: str) -> dict[str, set[str]]:
        """The objects that lie in each folder, by the folder's id."""
        root = self.folder(tenant_id)
        found: dict[str, set[str]] = {}
        for key in self.store.list(root):
            id_, _, name = key.removeprefix(root).partition("/")
            found.setdefault(id_, set()).add(name)
        return found

    def facts(self, tenant_id: str, id_: str) -> dict[str, Any]:
        data = self.store.get(f"{self.folder(tenant_id, id_)}facts.json")
        if data is None:
            raise NotFound(f"there is no {self.name} {id_!r}", **self._named(id_))
        return msgspec.json.decode(data)

    def state(self, tenant_id: str, id_: str) -> dict[str, Any]:
        here = self.folder(tenant_id, id_)
        found = self._noted(here)
        if self.store.exists(f"{here}summary.json"):
            return found | {"state": "done"}
        return found | {"state": "cancelled"} if self.is_cancelled(tenant_id, id_) else found

    def _noted(self, here: str) -> dict[str, Any]:
        data = self.store.get(f"{here}progress.json")
        # Killed between the facts and the first note: it was planned and nobody has begun.
        return {"state": "planned", "done": 0, "error": None, "updated_at": None} | json.loads(data or b"{}")

    def view(
        self, tenant_id: str, id_: str, facts: Mapping[str, Any], state: Mapping[str, Any], hidden: Sequence[str]
    ) -> dict[str, Any]:
        """As people and programs see it: the facts but for `hidden`, state, progress in customers, and the summary."""
        sizes: list[int] = facts["chunks"]
        is_done = state["state"] == "done"
        summary = self.store.get(f"{self.folder(tenant_id, id_)}summary.json") if is_done else None
        return {
            **{key: value for key, value in facts.items() if key not in hidden},
            "state": state["state"],
            "error": state["error"],
            "progress": {
                # A second driver that is late may have noted less after the end.
                "done": sum(sizes) if is_done else sum(sizes[: state["done"]]),
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


def _made_before(id_: str, moment: datetime) -> bool:
    """By the time in an id of `new_id`; of what has another name nothing is known, and it stays."""
    try:
        named = UUID(id_)
    except ValueError:
        return False
    return named.version == 7 and datetime.fromtimestamp((named.int >> 80) / 1_000, UTC) < moment


def chunk_key(folder: str, chunk: int) -> str:
    return f"{folder}chunk-{chunk:06}.parquet"
