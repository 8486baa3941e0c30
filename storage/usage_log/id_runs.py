"""Ids of sealed rows on disk: sorted runs, each with a filter and bucket offsets, mapped, never loaded as a whole.

A run is 12 bytes an id (all `high`, then all `low`, sorted by `high`). Its filter is 2 bytes an id: one 64-bit word per
id with 5 bits in it, so a lookup touches one cache line. What the filter lets through is searched in the run itself,
inside one bucket (about one page). A false positive costs a page, never an event: the run decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from storage.object_store import ObjectStore, StoreUnavailable
from storage.usage_log.formats import check_readable
from storage.usage_log.manifest import IdRun
from storage.usage_log.partitions import EventIds
from storage.usage_log.run_cache import Lease, RunCache

Mask = npt.NDArray[np.bool_]
_BUCKET_IDS = 256
_IDS_PER_WORD = 4
_BITS_PER_ID = 5
_HEADER = 64
_MAGIC = b"CBIDS"  # and the format in three digits
_FORMAT = 1
MERGE_COUNT = 4  # four runs of a size become one
MERGED_IDS_MAX = 1 << 26  # 0.8 GB; bounds the memory of a merge


def sort_ids(ids: EventIds) -> EventIds:
    """By `high`; rows that share it stand together in any order, and a lookup compares them all."""
    return ids.take(np.argsort(ids.high))


def write_run(store: ObjectStore, ids: EventIds, *, folder: str = "log/ids") -> IdRun:
    """Store sorted ids and their filter under new keys. Nobody knows them before a manifest entry names them."""
    assert len(ids) > 0
    assert np.all(ids.high[:-1] <= ids.high[1:]), "a run must be sorted"
    nonce = uuid4().hex
    run = IdRun(key=f"{folder}/{nonce}.run", filter_key=f"{folder}/{nonce}.bloom", ids=len(ids))
    store.put(run.key, b"".join([_header(len(ids), 0, 0), ids.high.tobytes(), ids.low.tobytes()]))
    bits = _bucket_bits(len(ids))
    bounds = (np.arange((1 << bits) + 1, dtype=np.float64) * 2.0 ** (64 - bits))[1:-1].astype(np.uint64)
    buckets = np.empty((1 << bits) + 1, np.uint64)
    buckets[0], buckets[-1] = 0, len(ids)
    buckets[1:-1] = np.searchsorted(ids.high, bounds)
    words = np.zeros(max(1, len(ids) // _IDS_PER_WORD), np.uint64)
    for start in range(0, len(ids), 1 << 20):  # bounds the temporaries
        part = ids.take(np.arange(start, min(start + (1 << 20), len(ids))))
        np.bitwise_or.at(words, _word(part, len(words)), _bits(part))
    store.put(run.filter_key, b"".join([_header(len(ids), bits, len(words)), buckets.tobytes(), words.tobytes()]))
    return run


def merge_runs(store: ObjectStore, runs: Sequence[IdRun], cache: RunCache, *, folder: str = "log/ids") -> IdRun:
    """One run with the ids of all."""
    opened = [open_run(store, run, cache) for run in runs]
    high = np.concatenate([run.high for run in opened])
    low = np.concatenate([run.low for run in opened])
    return write_run(store, sort_ids(EventIds(high, low)), folder=folder)


def to_merge(runs: Sequence[IdRun]) -> tuple[IdRun, ...]:
    """Four runs of about one size, the smallest first; () if there are none."""
    by_size: dict[int, list[IdRun]] = {}
    for run in runs:
        by_size.setdefault(run.ids.bit_length() // 2, []).append(run)
    for size in sorted(by_size):
        group = by_size[size][:MERGE_COUNT]
        if len(group) == MERGE_COUNT and sum(run.ids for run in group) <= MERGED_IDS_MAX:
            return tuple(group)
    return ()


@dataclass(frozen=True)
class OpenRun:
    run: IdRun
    high: npt.NDArray[np.uint64]  # mapped
    low: npt.NDArray[np.uint32]  # mapped
    buckets: npt.NDArray[np.uint64]
    words: npt.NDArray[np.uint64]
    bucket_shift: int
    leases: tuple[Lease, ...] = ()  # of files that a cache must keep while they are mapped

    def maybe(self, ids: EventIds, bits: npt.NDArray[np.uint64]) -> Mask:
        """What the filter lets through: all that are there, and about one in 300 of the others."""
        return (self.words[_word(ids, len(self.words))] & bits) == bits

    def contains(self, ids: EventIds) -> Mask:
        """Exact: a binary search in columns inside each id's bucket, then the ids that share `high` one by one."""
        if self.bucket_shift < 64:
            bucket = (ids.high >> np.uint64(self.bucket_shift)).astype(np.int64)
        else:
            bucket = np.zeros(len(ids), np.int64)
        low = self.buckets[bucket].astype(np.int64)
        end = self.buckets[bucket + 1].astype(np.int64)
        high = end.copy()
        while np.any(low < high):
            middle = (low + high) // 2
            open_ = low < high
            below = np.zeros(len(ids), np.bool_)
            below[open_] = self.high[middle[open_]] < ids.high[open_]
            low = np.where(open_ & below, middle + 1, low)
            high = np.where(open_ & ~below, middle, high)
        found = np.zeros(len(ids), np.bool_)
        active = np.flatnonzero(low < end)
        while len(active):
            at = low[active]
            same_high = self.high[at] == ids.high[active]
            found[active[same_high & (self.low[at] == ids.low[active])]] = True
            active = active[same_high & ~found[active] & (at + 1 < end[active])]
            low[active] += 1
        return found


class IdRuns:
    """The runs of one manifest entry, open for lookups. A new entry makes a new object that keeps the open ones."""

    def __init__(self, runs: Iterable[OpenRun] = ()) -> None:
        self._runs = {run.run.key: run for run in runs}

    def __len__(self) -> int:
        return sum(run.run.ids for run in self._runs.values())

    @property
    def count(self) -> int:
        return len(self._runs)

    def with_runs(self, store: ObjectStore, runs: Iterable[IdRun], cache: RunCache) -> IdRuns:
        return IdRuns(self._runs.get(run.key) or open_run(store, run, cache) for run in runs)

    def contains(self, ids: EventIds) -> Mask:
        found = np.zeros(len(ids), np.bool_)
        if not self._runs or not len(ids):
            return found
        bits = _bits(ids)
        for run in self._runs.values():
            candidates = np.flatnonzero(run.maybe(ids, bits) & ~found)
            if len(candidates):
                found[candidates[run.contains(ids.take(candidates))]] = True
        return found


def open_run(store: ObjectStore, run: IdRun, cache: RunCache) -> OpenRun:
    """Map a run's files; where the store has none on this machine they are fetched into the cache."""
    ids_path, ids_lease = _local(store, run.key, cache)
    filter_path, filter_lease = _local(store, run.filter_key, cache)
    leases = tuple(lease for lease in (ids_lease, filter_lease) if lease is not None)
    count, _, _ = _read_header(ids_path)
    assert count == run.ids, f"{run.key} holds {count} ids, its manifest entry says {run.ids}"
    high = np.memmap(ids_path, np.uint64, "r", _HEADER, (count,))
    low = np.memmap(ids_path, np.uint32, "r", _HEADER + 8 * count, (count,))
    _, bits, words = _read_header(filter_path)
    buckets = np.memmap(filter_path, np.uint64, "r", _HEADER, ((1 << bits) + 1,))
    filter_words = np.memmap(filter_path, np.uint64, "r", _HEADER + 8 * ((1 << bits) + 1), (words,))
    return OpenRun(run, high, low, buckets, filter_words, 64 - bits, leases)


def _local(store: ObjectStore, key: str, cache: RunCache) -> tuple[Path, Lease | None]:
    """A file with the object's bytes, and what keeps it there if it is a cache's."""
    path = store.local_path(key)
    if path is not None:
        if not path.exists():
            raise _gone(key)
        return path, None

    def fetch() -> bytes:
        data = store.get(key)
        if data is None:
            raise _gone(key)
        return data

    lease = cache.open(key, fetch)
    return lease.path, lease


def _gone(key: str) -> StoreUnavailable:
    return StoreUnavailable(f"{key} is named by the manifest and not there: a newer entry may know more.")


def _bucket_bits(ids: int) -> int:
    return max(0, (ids // _BUCKET_IDS).bit_length() - 1)


def _word(ids: EventIds, words: int) -> npt.NDArray[np.int64]:
    return (((ids.high & np.uint64(0xFFFFFFFF)) * np.uint64(words)) >> np.uint64(32)).astype(np.int64)


def _bits(ids: EventIds) -> npt.NDArray[np.uint64]:
    low = ids.low.astype(np.uint64)
    bits = np.zeros(len(ids), np.uint64)
    for number in range(_BITS_PER_ID):
        bits |= np.uint64(1) << ((low >> np.uint64(6 * number)) & np.uint64(63))
    return bits


def _header(ids: int, bucket_bits: int, words: int) -> bytes:
    return (_MAGIC + b"%03d" % _FORMAT + np.array([ids, bucket_bits, words], np.uint64).tobytes()).ljust(_HEADER, b"\0")


def _read_header(path: Path) -> tuple[int, int, int]:
    with path.open("rb") as file:
        data = file.read(_HEADER)
    if data[:5] != _MAGIC or not data[5:8].isdigit():
        raise StoreUnavailable(f"{path.name} is no id run: the file is damaged. Nothing was changed.")
    check_readable("run", int(data[5:8]), key=path.name)
    ids, bits, words = np.frombuffer(data[8:32], np.uint64)
    return int(ids), int(bits), int(words)
