"""Versions of what lies in the usage log: what this version reads, what may be written, and who reads.

Owns three things. A reader refuses what is newer than itself, with words, and never guesses. Who opens the log declares
once what it reads (`log/readers/`), by machine and version. New forms are written only after a number of the chain
`log/formats/` permits them, and that is put only when every declared reader reads them. A new log permits all at once.
What a version's number means is the business of the module that writes it.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from billing.errors import BillingError, NotFound
from storage.object_store import ObjectStore, StoreUnavailable

NEWEST: Mapping[str, int] = {"segment": 2, "sealed": 2, "run": 1, "snapshot": 2, "manifest": 3}
OLDEST: Mapping[str, int] = {"segment": 1, "sealed": 2, "run": 1, "snapshot": 2, "manifest": 1}  # where nothing permits
RAISES_MAX = 10_000
READERS_MAX = 10_000
_READERS = "log/readers/"


class FormatTooNew(BillingError):
    """An object was written by a newer version of the platform. Nothing was changed; the newer version reads it."""

    code, status, title = "format_too_new", 503, "The usage log was written by a newer version"


@dataclass(frozen=True)
class Formats:
    """What may be written. `waiting_for` are declared readers that do not read the newest forms."""

    permitted: Mapping[str, int]
    waiting_for: tuple[str, ...] = ()

    def allows(self, kind: str, version: int) -> bool:
        return self.permitted.get(kind, 1) >= version


def check_readable(kind: str, found: int, *, key: str = "") -> None:
    """Raise FormatTooNew where `found` is above what this version reads."""
    if found > NEWEST[kind]:
        what = f" ({key})" if key else ""
        raise FormatTooNew(
            f"A {kind} of the usage log{what} has format {found}; this version reads up to {NEWEST[kind]}. "
            "Nothing was changed. Run the newer version that wrote it, on every machine."
        )


def permitted(store: ObjectStore) -> Formats:
    """What may be written now, by the last number of the chain."""
    number = _last(store)
    if number < 0:
        return Formats(OLDEST)
    data = store.get(_key(number))
    if data is None:
        raise StoreUnavailable(f"{_key(number)} was seen and cannot be read.")
    return Formats(json.loads(data)["permitted"])


def permit_all(store: ObjectStore) -> None:
    """For a log that is being made: nobody reads it yet."""
    _put(store, 0, NEWEST)


def declare_reader(store: ObjectStore, reads: Mapping[str, int] = NEWEST, *, machine: str | None = None) -> str:
    """Note that a process on this machine reads these forms; its name. Once per machine and version, for ever."""
    forms = "-".join(f"{kind}{version}" for kind, version in sorted(reads.items()))
    name = f"{re.sub(r'[^A-Za-z0-9.-]', '_', machine or socket.gethostname())}/{forms}"
    if not store.exists(_readers_key(name)):
        store.create(_readers_key(name), json.dumps({"reads": dict(reads)}).encode())
    return name


def raise_formats(store: ObjectStore) -> Formats:
    """Permit the newest forms if every declared reader reads them; what is permitted then, and who stands in the way.

    Two at once do no harm: who loses the number finds the same there. Never lowers what is permitted.
    """
    waiting = tuple(name for name, reads in _readers(store).items() if _reads_less(reads))
    for _ in range(RAISES_MAX):
        now = permitted(store)
        if waiting or not any(now.permitted.get(kind, 1) < version for kind, version in NEWEST.items()):
            return Formats(now.permitted, waiting)
        # A reader that declares itself between our look and our put reads its own newest forms or is an older version
        # that was started during an upgrade; then it refuses what it cannot read.
        higher = {kind: max(version, now.permitted.get(kind, 1)) for kind, version in NEWEST.items()}
        _put(store, _last(store) + 1, {**now.permitted, **higher})
    raise StoreUnavailable(f"{RAISES_MAX} others took the next number of the formats before this one.")


def retire_reader(store: ObjectStore, name: str) -> None:
    """Say that a version runs on that machine no more. If it does, it refuses what it cannot read."""
    if name not in _readers(store):
        raise NotFound(f"no reader {name!r} was declared; `cloudbilling formats` lists those that stand in the way")
    store.delete(_readers_key(name))


def _readers(store: ObjectStore) -> dict[str, Mapping[str, int]]:
    found: dict[str, Mapping[str, int]] = {}
    for key in store.list(_READERS):
        data = store.get(key)
        if data is not None:
            found[key.removeprefix(_READERS).removesuffix(".json")] = json.loads(data)["reads"]
        if len(found) == READERS_MAX:
            break
    return found


def _reads_less(reads: Mapping[str, int]) -> bool:
    return any(reads.get(kind, 0) < version for kind, version in NEWEST.items())


def _last(store: ObjectStore) -> int:
    number = -1  # few numbers, one a version: looked at one by one
    while number < RAISES_MAX and store.exists(_key(number + 1)):
        number += 1
    return number


def _put(store: ObjectStore, number: int, versions: Mapping[str, int]) -> None:
    store.create(_key(number), json.dumps({"permitted": dict(versions)}).encode())


def _key(number: int) -> str:
    return f"log/formats/{number:08}.json"


def _readers_key(name: str) -> str:
    return f"{_READERS}{name}.json"
