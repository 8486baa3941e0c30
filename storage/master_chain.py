"""The master chain: how master data reaches shards, tasks and bill runs without SQL.

Each committed change n of a tenant is an object `master/<tenant>/<n>` in the object store, created if absent; who
creates it has decided nothing, since SQL gave the number and the content: two projectors write the same bytes. Every
so often a complete entry stands beside it, so that a reader starts near the end. Readers need the object store alone.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from threading import Lock
from typing import Any, Protocol

import zstandard

from billing.errors import NotFound, Unavailable
from billing.master import MasterData
from storage.object_store import ObjectStore

BATCH = 100  # changes a round trip
COMPLETE_EVERY = 32  # changes between complete entries
CACHED = 256  # tenants of which a process keeps the newest master data
CACHED_PAST = 4  # older states that a process keeps: a bill run asks for its own number once a chunk
DECOMPRESSED_MAX = 1 << 30


class TenantRows(Protocol):
    """What a projection needs of storage/sql/database.py."""

    def tenant(self, tenant_id: str) -> AbstractContextManager[Any]: ...


class MasterChain:
    """Reads and projects the master chains of all tenants; safe for threads. Values it hands out never change."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = Lock()
        self._newest: OrderedDict[str, tuple[int, MasterData]] = OrderedDict()
        self._past: OrderedDict[tuple[str, int], MasterData] = OrderedDict()

    def newest(self, tenant_id: str, *, at_least: int = 0) -> tuple[int, MasterData]:
        """The newest number in the chain and its master data, looked up now.

        Errors: NotFound without a chain; Unavailable if the chain has not reached `at_least` yet.
        """
        number, master = self._start(tenant_id)
        honoured = -1
        while (change := self._change(tenant_id, number + 1)) is not None:
            if change.get("erased") and number + 1 > honoured:
                honoured = number + 1
                number, master = self._anew(tenant_id, honoured)
                continue
            number, master = number + 1, master.apply_all(change["steps"])
        self._remember(tenant_id, number, master)
        if number < at_least:
            raise Unavailable(f"master data {at_least} is not in the chain yet, it stands at {number}; try again")
        return number, master

    def cached(self, tenant_id: str, *, at_least: int = 0) -> tuple[int, MasterData]:
        """What this process knows, without asking the store if that is new enough."""
        with self._lock:
            known = self._newest.get(tenant_id)
        return known if known and known[0] >= at_least else self.newest(tenant_id, at_least=at_least)

    def at(self, tenant_id: str, number: int) -> MasterData:
        """Master data as of a number: what a bill run rests on, today and in a year."""
        with self._lock:
            known = self._newest.get(tenant_id)
            if known and known[0] == number:
                return known[1]
            if (past := self._past.get((tenant_id, number))) is not None:
                self._past.move_to_end((tenant_id, number))
                return past
            earlier = [(n, master) for (of, n), master in self._past.items() if of == tenant_id and n < number]
        # Forward from what is known, if that is nearer than a complete entry.
        if known and known[0] < number:
            earlier.append(known)
        nearest = max(earlier, key=lambda one: one[0], default=None)
        if nearest is not None and number - number % COMPLETE_EVERY <= nearest[0]:
            start, master = nearest
        else:
            start, master = self._complete_at_or_before(tenant_id, number)
        honoured, wanted = -1, start + 1
        while wanted <= number:
            change = self._change(tenant_id, wanted)
            if change is None:
                raise NotFound(f"change {number} is not in the tenant's master chain")
            if change.get("erased") and wanted > honoured:
                honoured = wanted
                start, master = self._anew(tenant_id, wanted)
                wanted = start + 1
                continue
            wanted, master = wanted + 1, master.apply_all(change["steps"])
        self.keep(tenant_id, number, master)
        return master

    def keep(self, tenant_id: str, number: int, master: MasterData) -> None:
        """Have master data of a committed number at hand that the caller got elsewhere: `at` goes on from there."""
        with self._lock:
            self._past[(tenant_id, number)] = master
            while len(self._past) > CACHED_PAST:
                self._past.popitem(last=False)

    def project(self, database: TenantRows, tenant_id: str, *, up_to: int | None = None) -> int:
        """Write committed changes that the chain lacks, in order; the newest number then in it.

        With `up_to`, returns as soon as that number is there. May run twice, in any number of processes.
        """
        from storage.sql import steps as sql_steps  # here: a shard that comes back must not wait for SQL's driver

        with database.tenant(tenant_id) as connection:
            form = connection.execute("SELECT form FROM tenants WHERE id = %s", (tenant_id,)).fetchone()
        if form is None:
            raise NotFound("there is no such tenant")
        tenant_form = form["form"]
        number = self._end(tenant_id)
        while up_to is None or number < up_to:
            with database.tenant(tenant_id) as connection:
                changes = sql_steps.changes_after(connection, tenant_id, number, BATCH)
            if not changes:
                return number
            for change in changes:
                assert change["number"] == number + 1, "the numbers of a tenant's changes have a gap"
                number += 1
                self._write(tenant_id, tenant_form, number, change)
        return number

    def _write(self, tenant_id: str, tenant_form: Mapping[str, Any], number: int, change: Mapping[str, Any]) -> None:
        entry = {
            "number": number,
            "tenant": tenant_form if number == 0 else None,
            "steps": change["forms"],
            "actor": change["actor"],
            "changed_at": change["changed_at"].isoformat(),
            **({"erased": True} if change.get("erased") else {}),
        }
        data = pack_change(entry)
        key = change_key(tenant_id, number)
        if not self._store.create(key, data):
            known = self._store.get(key)
            if known != data and not _same_change(known, entry):
                raise AssertionError(f"{key} holds another change: two databases write one object store")
        if number and number % COMPLETE_EVERY == 0:
            self._store.create(complete_key(tenant_id, number), self.at(tenant_id, number).to_bytes())

    def _start(self, tenant_id: str) -> tuple[int, MasterData]:
        with self._lock:
            known = self._newest.get(tenant_id)
        if known:
            return known
        end = self._end(tenant_id)
        if end < 0:
            raise NotFound("the tenant has no master chain")
        return self._complete_at_or_before(tenant_id, end)

    def forget(self, tenant_id: str) -> None:
        """Believe nothing any more that this process has put together of a tenant's master data."""
        with self._lock:
            self._newest.pop(tenant_id, None)
            for key in [key for key in self._past if key[0] == tenant_id]:
                del self._past[key]

    def _anew(self, tenant_id: str, number: int) -> tuple[int, MasterData]:
        """Where to begin when change `number` says that what is before it was written anew (an erasure)."""
        self.forget(tenant_id)
        return self._complete_at_or_before(tenant_id, number)

    def _complete_at_or_before(self, tenant_id: str, number: int) -> tuple[int, MasterData]:
        wanted = number - number % COMPLETE_EVERY
        while wanted > 0:
            data = self._store.get(complete_key(tenant_id, wanted))
            if data is not None:
                return wanted, MasterData.from_bytes(data)
            wanted -= COMPLETE_EVERY
        first = self._change(tenant_id, 0)
        if first is None:
            raise NotFound("the tenant has no master chain")
        return 0, MasterData.start(first["tenant"]).apply_all(first["steps"])

    def _end(self, tenant_id: str) -> int:
        """The last number of the chain, -1 without one: double the step until absent, then halve it."""
        with self._lock:
            known = self._newest.get(tenant_id)
        low = known[0] if known else -1
        stride = 1
        while self._store.exists(change_key(tenant_id, low + stride)):
            low, stride = low + stride, stride * 2
        high = low + stride  # absent
        while high - low > 1:
            middle = (low + high) // 2
            if self._store.exists(change_key(tenant_id, middle)):
                low = middle
            else:
                high = middle
        return low

    def _change(self, tenant_id: str, number: int) -> dict[str, Any] | None:
        data = self._store.get(change_key(tenant_id, number))
        return None if data is None else unpack_change(data)

    def _remember(self, tenant_id: str, number: int, master: MasterData) -> None:
        with self._lock:
            known = self._newest.get(tenant_id)
            if known is None or known[0] <= number:
                self._newest[tenant_id] = (number, master)
                self._newest.move_to_end(tenant_id)
            while len(self._newest) > CACHED:
                self._newest.popitem(last=False)


def _same_change(known: bytes | None, entry: Mapping[str, Any]) -> bool:
    """Whether an erasure wrote it anew since SQL was read: the same change, of the same moment."""
    if known is None:
        return False
    there = unpack_change(known)
    return all(there[name] == entry[name] for name in ("number", "changed_at"))


def change_key(tenant_id: str, number: int) -> str:
    return f"master/{tenant_id}/{number:012}"


def complete_key(tenant_id: str, number: int) -> str:
    return f"master/{tenant_id}/complete/{number:012}"


def pack_change(entry: Mapping[str, Any]) -> bytes:
    # Sorted and without blanks: the same change is the same bytes, whoever projects it.
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return zstandard.ZstdCompressor(level=3).compress(text.encode())


def unpack_change(data: bytes) -> dict[str, Any]:
    return json.loads(zstandard.ZstdDecompressor().decompress(data, max_output_size=DECOMPRESSED_MAX))
