"""Finds one (source, id) under two customer keys: only ids since the last pass are looked up, against all before.

A sender's mistake, not a retry: the two rows have two ids of the log, and mostly lie in two partitions. Owns the passes
of a tenant (a chain: each names the cut it goes to, and its runs) and their runs. These hold a *print* of each event,
its (source, id) first and its key last, in 12 bytes: 64 bits and 32. In logs whose ids do not know the key
(`IdForm.OF_TENANT`) a partition has an id only once, so there its 8 bits stand for the key, behind 88 bits of the id.
Whoever loses a pass's number has done the same work for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from storage.object_store import ObjectStore, StoreUnavailable
from storage.usage_log.backfills import scan_sent
from storage.usage_log.counting import amendments_at
from storage.usage_log.genesis import IdForm, open_log
from storage.usage_log.id_runs import merge_runs, open_run, sort_ids, write_run
from storage.usage_log.manifest import IdRun
from storage.usage_log.partitions import NO_IDS, EventIds, event_ids, key_hashes
from storage.usage_log.reader import NOTHING, Cut, UsageLogReader
from storage.usage_log.run_cache import RunCache

RUNS_MAX = 8  # of a tenant; then they are merged
SUSPECTS_MAX = 10_000  # of one pass; more is no slip but a sender that numbers per customer: that is told, not voided

_PARTITION_BITS = 8
_Mask = npt.NDArray[np.bool_]
_Low = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Pass:
    """How far a tenant's ids have been compared, and the runs that hold them."""

    number: int = -1
    cut: Cut = NOTHING
    runs: tuple[IdRun, ...] = ()


@dataclass(frozen=True)
class Reused:
    """What a pass found: (source, id) that came under several keys, and the ids to note once that is dealt with.

    If there are more than SUSPECTS_MAX, `names` is empty and `too_many` says how many of which source.
    """

    before: Pass
    cut: Cut
    names: tuple[tuple[str, str], ...]
    ids: EventIds
    too_many: tuple[tuple[str, int], ...] = ()

    @property
    def nothing_new(self) -> bool:
        return len(self.ids) == 0


class ReusedIds:
    def __init__(self, store: ObjectStore, reader: UsageLogReader, cache: RunCache) -> None:
        self._store = store
        self._reader = reader
        self._cache = cache
        self._log = open_log(store)
        self._has_keys = self._log.ids is IdForm.OF_CUSTOMER
        self._key_bits = np.uint64(0 if self._has_keys else _PARTITION_BITS)  # of `high`

    def look(self, tenant_id: str, cut: Cut, *, but_sources: Collection[str] = ()) -> Reused:
        """Compare what came since the last pass; `but_sources` number their events per customer."""
        before = self._newest(tenant_id)
        parts = [ids for _, ids in self._new(tenant_id, before.cut, cut, but_sources)]
        if not parts:
            return Reused(before, cut, (), NO_IDS)
        ids = EventIds(np.concatenate([one.high for one in parts]), np.concatenate([one.low for one in parts]))
        old = self._in_runs(ids, before.runs)
        suspects = np.union1d(self._twice(ids), old)
        if not len(suspects):
            return Reused(before, cut, (), ids)
        met: list[pl.DataFrame] = []
        for frame, of_frame in self._new(tenant_id, before.cut, cut, but_sources):
            hashes = of_frame.high >> self._key_bits
            rows = frame.select("customer", "source", "id").with_columns(is_old=pl.Series(np.isin(hashes, old)))
            met.append(rows.filter(pl.Series(np.isin(hashes, suspects))))
        found = pl.concat(met)
        waiting = self._waiting(tenant_id, cut, found)
        if waiting.height > SUSPECTS_MAX:
            counts = waiting.group_by("source").len().sort(["len", "source"], descending=[True, False])
            return Reused(before, cut, (), ids, tuple(counts.iter_rows()))
        # A pass that begins again tells what it voided before, too.
        settled = found.select("source", "id").unique(maintain_order=True).join(
            waiting, on=["source", "id"], how="anti", maintain_order="left"
        )  # fmt: skip
        return Reused(before, cut, (*waiting.iter_rows(), *settled.head(SUSPECTS_MAX).iter_rows()), ids)

    def _waiting(self, tenant_id: str, cut: Cut, found: pl.DataFrame) -> pl.DataFrame:
        """(source, id) of which several events still count: what was voided already is left out."""
        touched = amendments_at(self._reader, tenant_id, cut)[0].touched
        counting = found.join(
            touched.filter("voided"), left_on=["customer", "source", "id"], right_on=["key", "source", "id"], how="anti"
        )
        keys = counting.group_by("source", "id", maintain_order=True).agg(
            keys=pl.col("customer").n_unique() + pl.col("is_old").any().cast(pl.UInt32)
        )
        return keys.filter(pl.col("keys") > 1).select("source", "id")

    def note(self, tenant_id: str, found: Reused) -> None:
        """What was found is dealt with: the next pass begins behind this one."""
        if found.nothing_new:
            return
        runs = (*found.before.runs, write_run(self._store, sort_ids(found.ids), folder=_folder(tenant_id)))
        if len(runs) > RUNS_MAX:
            runs = (merge_runs(self._store, runs, self._cache, folder=_folder(tenant_id)),)
        gone = [run.key for run in runs if not self._store.exists(run.key)]
        if gone:  # swept while this process slept for days (storage/usage_log/deleting.py): a pass never names it
            raise StoreUnavailable(f"{gone[0]} was swept before its pass was noted; the pass begins again.")
        form = {"cut": json.loads(found.cut.to_json()), "runs": [vars(run) for run in runs]}
        self._store.create(_key(tenant_id, found.before.number + 1), json.dumps(form).encode())

    def _new(
        self, tenant_id: str, since: Cut, cut: Cut, but_sources: Collection[str]
    ) -> Iterator[tuple[pl.DataFrame, EventIds]]:
        for frame in scan_sent(self._reader, tenant_id, cut, since=since):
            chosen = frame.filter(~pl.col("source").is_in(list(but_sources))) if but_sources else frame
            if chosen.height:
                yield chosen, self._prints(tenant_id, chosen)

    def _prints(self, tenant_id: str, events: pl.DataFrame) -> EventIds:
        keys = key_hashes(self._log.seed, tenant_id, events["customer"])
        nowhere = np.zeros(events.height, np.uint8)
        ids = event_ids(self._log.seed, tenant_id, events, nowhere, IdForm.OF_TENANT)
        if self._has_keys:
            upper = (ids.high << np.uint64(8)) | (ids.low >> np.uint32(24)).astype(np.uint64)
            return EventIds(upper, (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        return EventIds((ids.high << self._key_bits) | (keys >> np.uint64(56)), ids.low)

    def _meet(self, low: _Low, other: _Low) -> _Mask:
        """Of prints with one hash: which are one id under two keys, as far as `low` can say."""
        return low != other if self._has_keys else low == other

    def _twice(self, ids: EventIds) -> npt.NDArray[np.uint64]:
        """The hashes that are there under two keys."""
        order = np.lexsort((ids.low, ids.high >> self._key_bits))
        hashes, low = (ids.high >> self._key_bits)[order], ids.low[order]
        return hashes[1:][(hashes[1:] == hashes[:-1]) & self._meet(low[1:], low[:-1])]

    def _in_runs(self, ids: EventIds, runs: tuple[IdRun, ...]) -> npt.NDArray[np.uint64]:
        """The hashes that a run holds under another key."""
        order = np.argsort(ids.high)
        high, low = ids.high[order], ids.low[order]
        found: list[npt.NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        first = (high >> self._key_bits) << self._key_bits
        last = first | ((np.uint64(1) << self._key_bits) - np.uint64(1))
        for run in runs:
            opened = open_run(self._store, run, self._cache)
            at = np.searchsorted(opened.high, first)
            end = np.searchsorted(opened.high, last, side="right")
            active = np.flatnonzero(at < end)
            while len(active):
                met = self._meet(opened.low[at[active]], low[active])
                if not self._has_keys:
                    # The very same print is an event that was sent again after its backfill was reverted.
                    met &= opened.high[at[active]] != high[active]
                found.append(high[active[met]] >> self._key_bits)
                active = active[~met]
                at[active] += 1
                active = active[at[active] < end[active]]
        return np.concatenate(found)

    def _newest(self, tenant_id: str) -> Pass:
        number = -1
        step = 1
        while self._store.exists(_key(tenant_id, number + step)):
            number, step = number + step, 2 * step
        high = number + step  # absent; passes have no gaps
        while high - number > 1:
            middle = (number + high) // 2
            number, high = (middle, high) if self._store.exists(_key(tenant_id, middle)) else (number, middle)
        if number < 0:
            return Pass()
        data = self._store.get(_key(tenant_id, number))
        assert data is not None, "passes are never deleted"
        form = json.loads(data)
        return Pass(number, Cut.from_json(json.dumps(form["cut"])), tuple(IdRun(**run) for run in form["runs"]))


def _folder(tenant_id: str) -> str:
    """Of the runs: no manifest entry names them, so they lie where orphans are not swept."""
    return f"log/reused-runs/{tenant_id}"


def _key(tenant_id: str, number: int) -> str:
    return f"log/reused/{tenant_id}/{number:08}.json"
