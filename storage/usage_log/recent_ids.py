"""Ids of the newest rows in memory: open addressing over numpy columns, in batches, no Python object per id.

Each id carries the stamp of the number it lies in. An id leaves memory by that position, after the id runs that cover
it are loaded, never by age. 20 bytes a slot, at most half of the slots used. One thread writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.usage_log.partitions import EventIds

Slots = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Stamps = npt.NDArray[np.uint64]

_FREE = np.uint64(0)
_GONE = np.uint64(2**64 - 1)  # taken back: neither free nor equal to any id, until the next rebuild
_MARK = np.uint64(1 << 63)
_NUMBER_BITS = 48
_BATCH = 1 << 16


def stamp_of(lane: int, number: int) -> int:
    """Lane and number as one value above 0."""
    assert number < 1 << _NUMBER_BITS
    return (lane + 1) << _NUMBER_BITS | number


def lane_and_number(stamps: Stamps) -> tuple[Stamps, Stamps]:
    return (stamps >> np.uint64(_NUMBER_BITS)) - np.uint64(1), stamps & np.uint64((1 << _NUMBER_BITS) - 1)


class RecentIds:
    def __init__(self, slots: int = 1 << 16) -> None:
        assert slots & (slots - 1) == 0, "slots must be a power of two"
        self._allocate(slots)

    def __len__(self) -> int:
        return self._used

    @property
    def bytes(self) -> int:
        return self._high.nbytes + self._low.nbytes + self._stamp.nbytes

    def add(self, ids: EventIds, stamp: int) -> Mask:
        """Which rows are new. Of equal ids in one batch the first row is the new one."""
        self._reserve(len(ids))
        return self._insert(ids.high, ids.low, np.full(len(ids), stamp, np.uint64))

    def contains(self, ids: EventIds) -> Mask:
        return self._find(ids) >= 0

    def take_back(self, ids: EventIds) -> None:
        """Forget ids just added, of rows that surely never entered the log."""
        slots = self._find(ids)
        assert (slots >= 0).all(), "an id is taken back that was not added"
        self._stamp[slots] = _GONE
        self._gone += len(slots)
        self._used -= len(slots)

    def _find(self, ids: EventIds) -> Slots:
        """The slot of each id, -1 where it is not held."""
        found = np.full(len(ids), -1, np.int64)
        active = np.arange(len(ids))
        slot = (ids.high & self._slot_mask).astype(np.int64)
        while len(active):
            at = slot[active]
            stamps = self._stamp[at]
            same = (stamps != _GONE) & (self._high[at] == ids.high[active]) & (self._low[at] == ids.low[active])
            same &= stamps != _FREE
            found[active[same]] = at[same]
            active = active[(stamps != _FREE) & ~same]
            slot[active] = (slot[active] + 1) & int(self._slot_mask)
        return found

    def export(self) -> tuple[EventIds, Stamps]:
        """All ids with their stamps, in no order."""
        held = np.flatnonzero((self._stamp != _FREE) & (self._stamp != _GONE))
        return EventIds(self._high[held], self._low[held]), self._stamp[held]

    def load(self, ids: EventIds, stamps: Stamps) -> None:
        """Add what another table exported."""
        self._reserve(len(ids))
        for start in range(0, len(ids), _BATCH):
            part = slice(start, start + _BATCH)
            self._insert(ids.high[part], ids.low[part], stamps[part])

    def keep(self, kept: Callable[[EventIds, Stamps], Mask]) -> int:
        """Drop all ids that `kept` says False of; returns how many went. The table shrinks to what is left."""
        ids, stamps = self.export()
        mask = kept(ids, stamps)
        rest, rest_stamps = ids.take(mask), stamps[mask]
        slots = 1 << 16
        while slots < 4 * len(rest):
            slots *= 2
        self._allocate(slots)
        self.load(rest, rest_stamps)
        return len(ids) - len(rest)

    def _allocate(self, slots: int) -> None:
        self._high: npt.NDArray[np.uint64] = np.zeros(slots, np.uint64)
        self._low: npt.NDArray[np.uint32] = np.zeros(slots, np.uint32)
        self._stamp: Stamps = np.zeros(slots, np.uint64)
        self._slot_mask = np.uint64(slots - 1)
        self._used = 0
        self._gone = 0

    def _reserve(self, more: int) -> None:
        slots = len(self._stamp)
        if 2 * (self._used + self._gone + more) <= slots:
            return
        ids, stamps = self.export()
        while 2 * (len(ids) + more) > slots:
            slots *= 2
        self._allocate(slots)
        for start in range(0, len(ids), _BATCH):
            part = slice(start, start + _BATCH)
            self._insert(ids.high[part], ids.low[part], stamps[part])

    def _insert(self, high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint32], stamps: Stamps) -> Mask:
        rows = len(high)
        is_new = np.zeros(rows, np.bool_)
        where: Slots = (high & self._slot_mask).astype(np.int64)
        active: npt.NDArray[Any] = np.arange(rows)
        while len(active):
            at = where[active]
            there = self._stamp[at]
            free = there == _FREE
            same = ~free & (there != _GONE) & (self._high[at] == high[active]) & (self._low[at] == low[active])
            contenders, slots = active[free], at[free]
            # Several rows may want one free slot. Write the row numbers backwards, so the first row's stays; who reads
            # its own number back has won. The others look at the same slot again: it may now hold their own id.
            self._stamp[slots[::-1]] = contenders[::-1].astype(np.uint64) | _MARK
            won = self._stamp[slots] == (contenders.astype(np.uint64) | _MARK)
            winners, taken = contenders[won], slots[won]
            self._high[taken] = high[winners]
            self._low[taken] = low[winners]
            self._stamp[taken] = stamps[winners]
            is_new[winners] = True
            further = active[~free & ~same]
            where[further] = (where[further] + 1) & int(self._slot_mask)
            active = np.concatenate([contenders[~won], further])
        self._used += int(is_new.sum())
        return is_new
