"""What customer keys sent before, read from the lane: at once where that is short, else by a thread of its own.

Owns the reading and what it has found until it is used. Rows that a thread has read are rows of the log: it does not
matter who reads them, only up to which number. No Ray in here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import polars as pl

from actors.budget_backfills import is_of
from storage.object_store import ObjectStore, StoreUnavailable
from storage.usage_log.lane import walk
from storage.usage_log.reader import Cut, UsageLogReader
from storage.usage_log.segment import RowKind, with_positions

INLINE_MAX = 1_000  # numbers of a lane that the caller waits for: about a second
log = logging.getLogger("cloudbilling.budgets")
_KINDS = [int(kind) for kind in (RowKind.USAGE, RowKind.AMENDED, RowKind.VOIDED, RowKind.BACKFILLED)]


class NotRead(Exception):
    """The past of some keys is being read; ask again."""


@dataclass(frozen=True)
class _OfBackfills:
    """Rows of these backfills under these keys, read up to a number."""

    names: frozenset[str]
    keys: frozenset[str]
    upto: int = -1
    frames: tuple[pl.DataFrame, ...] = ()


class LanePast:
    """Used by the thread that commits; at most one reading a tenant at a time."""

    def __init__(self, lane: int, store: ObjectStore, inline_max: int = INLINE_MAX) -> None:
        self.inline_max = inline_max
        self._lane = lane
        self._store = store
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[int, list[pl.DataFrame]]] = {}  # (tenant, key): read up to a number
        self._backfills: dict[str, _OfBackfills] = {}  # by tenant: what was asked for last
        self._threads: dict[str, threading.Thread] = {}

    def rows(self, tenant_id: str, keys: Sequence[str], before: int | None, *, wait: bool) -> list[pl.DataFrame]:
        """Usage of keys, sent live or backfilled, and its changes below a number (None: all there is), with positions,
        in order.

        Raises NotRead if that is long and the caller does not `wait`.
        """
        with self._lock:
            known = {key: self._known.get((tenant_id, key), (-1, [])) for key in keys}
        first = min((number for number, _ in known.values()), default=-1) + 1
        missing = None if before is None else before - first
        if not wait and (missing is None or missing > self.inline_max) and not self._is_short(first):
            self._start(tenant_id, keys)
            raise NotRead
        parts = [(number, frame) for number, frames in known.values() for frame in frames]
        fresh = self._walk(tenant_id, keys, first, None if before is None else before - 1)
        # Of keys that were read further than others, what they have already counts once.
        ahead = {key: number for key, (number, _) in known.items() if number >= first}
        for number, frame in fresh:
            late = frame
            for key, upto in ahead.items():
                if number <= upto:
                    late = late.filter(pl.col("customer") != key)
            if late.height:
                parts.append((number, late))
        found = [frame for _, frame in parts if frame.height]
        if before is not None:  # a replay asks for less than a thread has read
            found = [frame for frame in found if frame["number"][0] < before]
        if not found:
            return []
        return [pl.concat(found, how="diagonal_relaxed").sort("number", "row")]

    def of_backfills(
        self,
        tenant_id: str,
        names: Collection[str],
        keys: Sequence[str],
        before: int | None,
        wandered: Sequence[str],
        *,
        wait: bool,
    ) -> list[pl.DataFrame]:
        """Events of backfills under these keys, and what changes them, as `rows`: nothing else of the keys is kept.

        Of keys that `wandered` there may be some in other lanes.
        """
        asked = _OfBackfills(frozenset(names), frozenset(keys))
        with self._lock:
            known = self._backfills.get(tenant_id)
        if known is None or not (asked.names <= known.names and asked.keys <= known.keys):
            known = asked
        missing = None if before is None else before - known.upto - 1
        if not wait and (missing is None or missing > self.inline_max) and not self._is_short(known.upto + 1):
            self._start_reading(tenant_id, lambda: self._read_backfills(tenant_id, known))
            raise NotRead
        found = [*known.frames, *self._walk_backfills(tenant_id, known, None if before is None else before - 1)[1]]
        if wandered:
            found = [*self.elsewhere(tenant_id, wandered, is_of(names)), *found]
        mine = is_of(names) & pl.col("customer").is_in(list(keys))
        here = [
            frame.filter(mine) for frame in found if before is None or (frame.height and frame["number"][0] < before)
        ]
        return [frame for frame in here if frame.height]

    def _walk_backfills(
        self, tenant_id: str, asked: _OfBackfills, last: int | None = None
    ) -> tuple[int, list[pl.DataFrame]]:
        condition = (pl.col("tenant") == tenant_id) & is_of(asked.names) & pl.col("customer").is_in(list(asked.keys))
        upto, found = asked.upto, list[pl.DataFrame]()
        for segment in walk(self._store, self._lane, asked.upto + 1, last):
            upto, counters = segment.head.number, segment.head.counters.get(tenant_id)
            if counters is not None and counters.stored + counters.decided:
                rows = with_positions(segment.rows(), segment.head).filter(condition)
                if rows.height:
                    found.append(rows)
        return upto, found

    def _read_backfills(self, tenant_id: str, asked: _OfBackfills) -> None:
        upto, found = self._walk_backfills(tenant_id, asked)
        with self._lock:
            self._backfills[tenant_id] = replace(asked, upto=upto, frames=(*asked.frames, *found))

    def elsewhere(self, tenant_id: str, keys: Sequence[str], only: pl.Expr | None = None) -> list[pl.DataFrame]:
        """Usage and its changes that keys have in other lanes, where their partitions lay before, in order."""
        reader = UsageLogReader(self._store)
        others = {lane: last for lane, last in reader.now().positions.items() if lane != self._lane}
        condition = pl.col("kind").is_in(_KINDS) & pl.col("customer").is_in(list(keys))
        if only is not None:
            condition &= only
        frames = list(reader.scan_rows(tenant_id, Cut(others), condition))
        if not frames:
            return []
        rows = pl.concat(frames).sort("received_at", "lane", "number", "row").with_row_index("place")
        return [
            rows.with_columns(pl.lit(0, pl.UInt64).alias("number"), row=pl.col("place").cast(pl.UInt32)).drop("place")
        ]

    def drop(self, tenant_id: str) -> None:
        """Forget what was read: it has been used, and newer rows follow it."""
        if not self._known and not self._backfills:
            return
        with self._lock:
            self._backfills.pop(tenant_id, None)
            for known in [one for one in self._known if one[0] == tenant_id]:
                del self._known[known]

    def clear(self) -> None:
        """Forget what was read of all tenants."""
        with self._lock:
            self._known.clear()
            self._backfills.clear()

    def _is_short(self, first: int) -> bool:
        return not any(True for _ in walk(self._store, self._lane, first + self.inline_max, first + self.inline_max))

    def _start(self, tenant_id: str, keys: Sequence[str]) -> None:
        self._start_reading(tenant_id, lambda: self._read_on(tenant_id, list(keys)))

    def _start_reading(self, tenant_id: str, what: Callable[[], None]) -> None:
        thread = self._threads.get(tenant_id)
        if thread is not None and thread.is_alive():
            return
        thread = threading.Thread(target=self._read, args=(what,), name="lane-past", daemon=True)
        self._threads[tenant_id] = thread
        thread.start()

    def _read(self, what: Callable[[], None]) -> None:
        try:
            what()
        except StoreUnavailable as error:  # whoever asks again starts again
            log.warning("the past of lane %s cannot be read: %s", self._lane, error.detail)

    def _read_on(self, tenant_id: str, keys: Sequence[str]) -> None:
        with self._lock:
            known = {key: self._known.get((tenant_id, key), (-1, [])) for key in keys}
        first = min(number for number, _ in known.values()) + 1
        frames: dict[str, list[pl.DataFrame]] = {key: list(known[key][1]) for key in keys}
        last = first - 1
        for segment in walk(self._store, self._lane, first):
            last = segment.head.number
            if segment.head.rows and tenant_id in segment.head.counters:
                rows = with_positions(segment.rows(), segment.head).filter(_wanted(tenant_id, keys))
                for (key,), part in rows.partition_by("customer", as_dict=True).items():
                    if last > known[str(key)][0]:
                        frames[str(key)].append(part)
        with self._lock:
            for key in keys:
                self._known[tenant_id, key] = max(last, known[key][0]), frames[key]

    def _walk(
        self, tenant_id: str, keys: Sequence[str], first: int, last: int | None
    ) -> list[tuple[int, pl.DataFrame]]:
        found: list[tuple[int, pl.DataFrame]] = []
        for segment in walk(self._store, self._lane, first, last):
            if segment.head.rows and tenant_id in segment.head.counters:
                rows = with_positions(segment.rows(), segment.head).filter(_wanted(tenant_id, keys))
                if rows.height:
                    found.append((segment.head.number, rows))
        return found


def _wanted(tenant_id: str, keys: Sequence[str]) -> pl.Expr:
    is_one = pl.col("kind").is_in(_KINDS) & pl.col("customer").is_in(list(keys))
    return (pl.col("tenant") == tenant_id) & is_one
