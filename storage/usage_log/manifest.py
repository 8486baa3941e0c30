"""The manifest chain: which snapshots, sealed files and id runs exist, and below which floor numbers may be gone.

A chain like a lane: entry n is created only if absent. Each entry is complete, so the newest is all a reader needs;
nothing of the chain is ever deleted, so the newest is simply the last. Two processes may append at once: who loses the
number reads the winner's entry and makes its change again on top of it.

What an entry stops naming, that very entry announces as leaving (storage/usage_log/deleting.py). A process that
slept since it wrote its objects cannot name what is leaving or gone: `append` looks, on top of the entry it builds on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from storage.object_store import ObjectStore, StoreUnavailable
from storage.usage_log import lane as lanes
from storage.usage_log.clock import Clock, SystemClock
from storage.usage_log.formats import check_readable, permitted

# 2: objects that are leaving. Format 1 has none, so nothing is deleted while it is written. 3: how many erasures there
# were
FORMAT = 3
APPENDS_LOST_MAX = 1_000


@dataclass(frozen=True)
class Snapshot:
    """The state of a lane after `number`."""

    key: str
    number: int


@dataclass(frozen=True)
class SealedFile:
    """Rows of all lanes at or below the seal, by tenant, partition, customer key, type and time."""

    key: str
    rows: int
    bytes: int
    first_partition: int
    last_partition: int
    tenants: Mapping[str, int]  # tenant id -> rows
    format: int = 1  # of the file (storage/usage_log/sealed_files.py)
    first_us: int | None = None  # the earliest and latest `time` of its rows; None: an older entry does not say
    last_us: int | None = None


@dataclass(frozen=True)
class IdRun:
    """Sorted ids, and beside them their filter and bucket offsets."""

    key: str
    filter_key: str
    ids: int


@dataclass(frozen=True)
class Leaving:
    """An object that no entry will name again; deleted when every reader of an older entry is through."""

    key: str
    since_us: int


@dataclass(frozen=True)
class Manifest:
    number: int = -1
    floors: Mapping[int, int] = field(default_factory=dict)  # lane -> first number that is surely there; absent = 0
    snapshots: Mapping[int, Snapshot] = field(default_factory=dict)
    sealed: Mapping[int, int] = field(default_factory=dict)  # lane -> last number in sealed files; absent = -1
    ids_to: Mapping[int, int] = field(default_factory=dict)  # lane -> last number whose ids are in the runs
    files: tuple[SealedFile, ...] = ()
    runs: tuple[IdRun, ...] = ()
    leaving: tuple[Leaving, ...] = ()
    erasures: int = 0  # so many times rows were erased: a state that was folded before is not to be kept

    def named(self) -> frozenset[str]:
        """The keys that readers of this entry may open."""
        runs = [key for one in self.runs for key in (one.key, one.filter_key)]
        return frozenset([*runs, *(one.key for one in self.files), *(one.key for one in self.snapshots.values())])

    def floor(self, lane: int) -> int:
        return self.floors.get(lane, 0)

    def sealed_to(self, lane: int) -> int:
        return self.sealed.get(lane, -1)

    def ids_covered(self, lane: int) -> int:
        return self.ids_to.get(lane, -1)

    def to_bytes(self, nonce: str, *, format: int = FORMAT) -> bytes:
        form: dict[str, Any] = {
            "number": self.number,
            "nonce": nonce,  # equal bytes mean equal writer
            "floors": {str(lane): number for lane, number in self.floors.items()},
            "snapshots": {str(lane): {"key": one.key, "number": one.number} for lane, one in self.snapshots.items()},
            "sealed": {str(lane): number for lane, number in self.sealed.items()},
            "ids_to": {str(lane): number for lane, number in self.ids_to.items()},
            "files": [{**vars(one), "tenants": dict(one.tenants)} for one in self.files],
            "runs": [vars(one) for one in self.runs],
        }
        if format > 1:
            form |= {"format": format, "leaving": [[one.key, one.since_us] for one in self.leaving]}
        if format > 2:
            form["erasures"] = self.erasures
        return json.dumps(form, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        form = json.loads(data)
        check_readable("manifest", form.get("format", 1))
        return cls(
            number=form["number"],
            floors={int(lane): number for lane, number in form["floors"].items()},
            snapshots={int(lane): Snapshot(**one) for lane, one in form["snapshots"].items()},
            sealed={int(lane): number for lane, number in form["sealed"].items()},
            ids_to={int(lane): number for lane, number in form["ids_to"].items()},
            files=tuple(SealedFile(**one) for one in form["files"]),
            runs=tuple(IdRun(**one) for one in form["runs"]),
            leaving=tuple(Leaving(*one) for one in form.get("leaving", ())),
            erasures=form.get("erasures", 0),
        )


class ObjectsGone(StoreUnavailable):
    """What a process wrote was swept away before it came to announce it; nothing is lost, it does its work again."""

    code, title = "objects_gone", "The objects of a manifest entry are gone"


def manifest_key(number: int) -> str:
    return f"log/manifest/{number:08}.json"


class ManifestChain:
    """Reads and appends; remembers the newest entry it saw, so that the next look costs one probe."""

    def __init__(self, store: ObjectStore, clock: Clock | None = None) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self._newest = Manifest()
        self._lock = threading.Lock()

    def newest(self) -> Manifest:
        with self._lock:
            known = self._newest.number
            if known < 0:
                known = self._hinted()
            number, step = known, 1
            while self._store.exists(manifest_key(number + step)):
                number, step = number + step, step * 2
            high = number + step
            while high - number > 1:
                middle = (number + high) // 2
                if self._store.exists(manifest_key(middle)):
                    number = middle
                else:
                    high = middle
            if number > self._newest.number:
                data = self._store.get(manifest_key(number))
                if data is None:
                    raise StoreUnavailable(f"Manifest entry {number} was seen and cannot be read.")
                self._newest = Manifest.from_bytes(data)
            return self._newest

    def append(self, change: Callable[[Manifest], Manifest | None]) -> Manifest:
        """Put `change(newest)` as the next entry; when another process takes the number, change its entry instead.

        `change` returns None when there is nothing (left) to do. Returns the entry that holds the change. Raises
        ObjectsGone if it names an object that is leaving or is not there: the objects are to be written again.
        """
        allowed = permitted(self._store).permitted["manifest"]
        for _ in range(APPENDS_LOST_MAX):
            base = self.newest()
            changed = change(base)
            if changed is None:
                return base
            self._refuse_gone(base, changed)
            dropped = sorted(base.named() - changed.named())
            leaving = (*changed.leaving, *(Leaving(key, self._clock.now_us()) for key in dropped))
            entry = replace(changed, number=base.number + 1, leaving=leaving if allowed > 1 else ())
            data = entry.to_bytes(uuid4().hex, format=min(allowed, FORMAT))
            outcome = lanes.put_if_absent(
                self._store,
                manifest_key(entry.number),
                data,
                stopped=threading.Event(),
                on_stall=lambda _: None,
                tries_max=20,
            )
            if outcome is lanes.Put.COMMITTED:
                with self._lock:
                    self._newest = entry
                if entry.number % 16 == 0:
                    self._store.put("log/hints/manifest.json", json.dumps({"number": entry.number}).encode())
                return entry
        raise StoreUnavailable(f"{APPENDS_LOST_MAX} other writers took the next manifest entry before this one.")

    def _refuse_gone(self, base: Manifest, changed: Manifest) -> None:
        # After `base` was read: an object that is there now, and not leaving in `base`, is announced at the earliest by
        # the entry after the one that names it, so by nobody.
        leaving = {one.key for one in base.leaving}
        for key in sorted(changed.named() - base.named()):
            if key in leaving or not self._store.exists(key):
                raise ObjectsGone(f"{key} was deleted before an entry named it: its writer slept. It is written again.")

    def _hinted(self) -> int:
        data = self._store.get("log/hints/manifest.json")
        if data is None:
            return -1
        try:
            number = int(json.loads(data)["number"])
        except (ValueError, KeyError, TypeError):
            return -1  # a hint never decides
        return number if self._store.exists(manifest_key(number)) else -1
