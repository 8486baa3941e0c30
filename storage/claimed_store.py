"""Create if absent for object stores that have no conditional put: a row of PostgreSQL decides who comes first.

Owns the order of steps; everything but `create` goes to the store as it is. It needs a store that shows at once what
was written (read after write), and PostgreSQL: without SQL nothing can be created, so no usage is taken meanwhile.

1. the bytes lie under a draft key of their own; 2. a row (store, key) -> draft, if there is none: the decision;
3. the draft's bytes go to the key; 4. row and draft go. Who finds a row does 3 and 4 for it, so a creator that dies in
between leaves nothing half done, and whatever put comes late brings the very bytes that were decided. A row may go
because whoever wins one looks afterwards whether the object is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from billing.errors import Unavailable
from storage.object_store import ObjectStore, StoreRefused, StoreUnavailable
from storage.sql.database import Connection, Database

CLAIMS_LOST_MAX = 100  # others that came first and whose objects were gone again when we looked


class ClaimedStore:
    """`store` with a `create` that PostgreSQL decides; `name` tells stores of one database apart."""

    def __init__(self, store: ObjectStore, database: Database, name: str) -> None:
        self.store = store
        self._database = database
        self._name = name

    def create(self, key: str, data: bytes) -> bool:
        if self.store.exists(key):
            return False
        draft = f"claims/{uuid4().hex}"
        try:
            self.store.put(draft, data)
        except StoreUnavailable as error:  # nobody knows the draft, so whatever became of it, nothing was created
            raise StoreRefused(f"Nothing was stored under {key}: {error.detail}") from error
        for _ in range(CLAIMS_LOST_MAX):
            first = self._claimed(key, draft)
            if first == draft:
                # There already: another creator finished, and its row went, before we claimed; or somebody did the rest
                # for us. Bytes tell: those of two writers differ.
                won = not self.store.exists(key) or self.store.get(key) == data
                if won:
                    self.store.put(key, data)
                self._forget(key, draft)
                return won
            if first is not None:
                self._finish(key, first)
            if self.store.exists(key):
                self.store.delete(draft)
                return False
        raise StoreUnavailable(f"{CLAIMS_LOST_MAX} others claimed {key} and left nothing there.")

    def _claimed(self, key: str, draft: str) -> str | None:
        """The draft that is decided for a key: ours, if nobody was first. None: who was first is through already."""
        with self._rows(key) as connection:
            connection.execute(
                "INSERT INTO object_claims (store, key, draft) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (self._name, key, draft),
            )
            row = connection.execute(
                "SELECT draft FROM object_claims WHERE store = %s AND key = %s", (self._name, key)
            ).fetchone()
        return None if row is None else str(row["draft"])

    def _finish(self, key: str, draft: str) -> None:
        """Do for another creator what it had left to do."""
        if not self.store.exists(key):  # if it is, this claim came late and is about to be taken back
            data = self.store.get(draft)
            if data is not None:  # else it, or somebody for it, is through already
                self.store.put(key, data)
        self._forget(key, draft)

    def _forget(self, key: str, draft: str) -> None:
        with self._rows(key) as connection:
            connection.execute(
                "DELETE FROM object_claims WHERE store = %s AND key = %s AND draft = %s", (self._name, key, draft)
            )
        self.store.delete(draft)

    @contextmanager
    def _rows(self, key: str) -> Iterator[Connection]:
        try:
            with self._database.system() as connection:
                yield connection
        except StoreUnavailable:
            raise
        except Unavailable as error:
            raise StoreUnavailable(f"PostgreSQL did not say who creates {key}: {error.detail}") from error

    # -- as the store has it ------------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        return self.store.get(key)

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        return self.store.get_range(key, start, length)

    def put(self, key: str, data: bytes) -> None:
        self.store.put(key, data)

    def replace(self, key: str, old: bytes, data: bytes) -> bool:
        # One at a time by a lock of PostgreSQL: as good as the store's answers are quick, for it knows no condition.
        with self._rows(key) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", (f"{self._name} {key}",))
            there = self.store.get(key)
            if there != old:
                return there == data
            self.store.put(key, data)
            return True

    def delete(self, key: str) -> None:
        # The claim of a creator that died after its put goes first, else the next creator would do its rest again.
        with self._rows(key) as connection:
            row = connection.execute(
                "DELETE FROM object_claims WHERE store = %s AND key = %s RETURNING draft", (self._name, key)
            ).fetchone()
        if row is not None:
            self.store.delete(str(row["draft"]))
        self.store.delete(key)

    def list(self, prefix: str) -> Iterator[str]:
        return (key for key in self.store.list(prefix) if not key.startswith("claims/"))

    def exists(self, key: str) -> bool:
        return self.store.exists(key)

    def settle(self, key: str) -> None:
        self.store.settle(key)

    def local_path(self, key: str) -> Path | None:
        return self.store.local_path(key)

    def modified_us(self, key: str) -> int | None:
        found: Callable[[str], int | None] | None = getattr(self.store, "modified_us", None)
        return None if found is None else found(key)
