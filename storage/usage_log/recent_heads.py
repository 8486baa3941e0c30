"""Heads of segments that this process has read: many small segments of many tenants are looked at again and again.

Owns a bounded memory beside each store. What lies under a number never changes, so a remembered head is never wrong;
whoever verifies the log reads the objects themselves.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from weakref import WeakKeyDictionary

from storage.object_store import ObjectStore
from storage.usage_log.segment import SegmentHead

HEADS_MAX = 20_000  # some 20 MB; a tail is sealed long before it has so many numbers


class RecentHeads:
    """Safe for threads."""

    def __init__(self, heads_max: int = HEADS_MAX) -> None:
        self._heads_max = heads_max
        self._lock = Lock()
        self._heads: OrderedDict[tuple[int, int], SegmentHead] = OrderedDict()

    def get(self, lane: int, number: int) -> SegmentHead | None:
        with self._lock:
            return self._heads.get((lane, number))

    def put(self, head: SegmentHead) -> None:
        with self._lock:
            self._heads[head.lane, head.number] = head
            while len(self._heads) > self._heads_max:
                self._heads.popitem(last=False)


_OF_STORES: WeakKeyDictionary[ObjectStore, RecentHeads] = WeakKeyDictionary()
_LOCK = Lock()


def recent_heads(store: ObjectStore) -> RecentHeads:
    """The one memory of a store in this process, however many readers it has."""
    with _LOCK:
        return _OF_STORES.setdefault(store, RecentHeads())
