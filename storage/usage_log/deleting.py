"""Deleting: announce, then delete. What no manifest entry names any more goes an hour after an entry said so.

Owns the two times and the sweep of orphans: objects that a crash left behind before an entry named them. They are
announced by key after a week, so whoever slept that long sees it when it appends (storage/usage_log/manifest.py).
Runs of the passes over reused ids are named by their passes alone: they go when those have merged them away.
Nothing here touches lanes, the manifest or cuts. Two processes at once do no harm: keys are never used again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace

from storage.object_store import ObjectStore
from storage.usage_log.clock import Clock, Dated, SystemClock
from storage.usage_log.manifest import Leaving, Manifest, ManifestChain

GRACE_US = 3_600_000_000  # a reader may hold an entry for so long
ORPHAN_AGE_US = 7 * 86_400_000_000
DELETED_MAX = 1_000  # a round
ORPHANS_MAX = 1_000  # a round
_SWEPT = ("log/sealed/", "log/ids/", "log/snapshots/")
_PASSES, _RUNS_OF_PASSES = "log/reused/", "log/reused-runs/"


def delete_announced(store: ObjectStore, clock: Clock | None = None, *, grace_us: int = GRACE_US) -> int:
    """Delete what has been leaving for an hour; how many objects. Killed anywhere, the next round does the rest."""
    time = clock or SystemClock()
    chain = ManifestChain(store, time)
    due = [one for one in chain.newest().leaving if one.since_us + grace_us <= time.now_us()][:DELETED_MAX]
    if not due:
        return 0
    for one in due:
        store.delete(one.key)
    gone = set(due)

    def change(base: Manifest) -> Manifest | None:
        if gone.isdisjoint(base.leaving):
            return None  # another process did the same
        return replace(base, leaving=tuple(one for one in base.leaving if one not in gone))

    chain.append(change)
    return len(due)


def announce_orphans(store: ObjectStore, clock: Clock | None = None, *, age_us: int = ORPHAN_AGE_US) -> int:
    """Announce objects that no entry names and that are a week old; how many. Lists the store: once a day is enough."""
    time = clock or SystemClock()
    if not isinstance(store, Dated):
        return 0  # without a date by the store's clock an orphan cannot be told from work under way
    chain = ManifestChain(store, time)
    known = chain.newest()
    spared = known.named() | {one.key for one in known.leaving} | set(_named_by_passes(store))
    found: list[str] = []
    for prefix in _SWEPT:
        for key in store.list(prefix):
            if key in spared:
                continue
            written = store.modified_us(key)
            if written is not None and written + age_us <= time.now_us():
                found.append(key)
            if len(found) == ORPHANS_MAX:
                break
    if not found:
        return 0
    announced: list[str] = []

    def change(base: Manifest) -> Manifest | None:
        nonlocal announced
        named = base.named() | {one.key for one in base.leaving}
        announced = [key for key in found if key not in named]  # somebody may have named one meanwhile
        if not announced:
            return None
        now_us = time.now_us()
        return replace(base, leaving=(*base.leaving, *(Leaving(key, now_us) for key in announced)))

    chain.append(change)
    return len(announced)


def sweep_replaced_runs(store: ObjectStore, clock: Clock | None = None, *, age_us: int = ORPHAN_AGE_US) -> int:
    """Delete runs of passes over reused ids that none of a tenant's newest two passes names; how many objects.

    Two, for who looked at the one before may still read. The age spares a run whose pass is not noted yet.
    """
    time = clock or SystemClock()
    if not isinstance(store, Dated):
        return 0
    newest: dict[str, list[str]] = {}
    for key in sorted(store.list(_PASSES)):
        newest.setdefault(key.removeprefix(_PASSES).partition("/")[0], []).append(key)
    named = {key for passes in newest.values() for key in _runs_of(store, passes[-2:])}
    deleted = 0
    for key in list(store.list(_RUNS_OF_PASSES)):
        written = None if key in named else store.modified_us(key)
        if written is not None and written + age_us <= time.now_us():
            store.delete(key)
            deleted += 1
        if deleted == ORPHANS_MAX:
            break
    return deleted


def _named_by_passes(store: ObjectStore) -> Iterator[str]:
    """Runs of the passes over reused ids (storage/usage_log/reused_ids.py), which no manifest entry names."""
    yield from _runs_of(store, store.list(_PASSES))


def _runs_of(store: ObjectStore, passes: Iterable[str]) -> Iterator[str]:
    for key in passes:
        data = store.get(key) if key.endswith(".json") else None
        if data is None:
            continue
        for run in json.loads(data)["runs"]:
            yield run["key"]
            yield run["filter_key"]
