"""When reservations end: a heap by time, so that hundreds of thousands wait at the cost of a few comparisons each.

Owns the order only. What has been committed or released meanwhile stays in the heap until its time has come, or until
most of the heap is such; the caller says what still counts (`is_open`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from heapq import heapify, heappop, heappush

Ending = tuple[datetime, str]  # when, which reservation
SWEPT_FROM = 1_000  # a smaller heap is not worth a sweep


@dataclass(slots=True)
class Expiries:
    """The endings of one account's reservations. A scratch looks into those of its account and adds its own."""

    heap: list[Ending] = field(default_factory=list[Ending])
    below: Expiries | None = None  # of the account that a scratch is of: looked at, never changed
    seen: datetime | None = None  # up to here a scratch has closed what is below

    @classmethod
    def of(cls, endings: Iterable[Ending]) -> Expiries:
        made = cls(list(endings))
        heapify(made.heap)
        return made

    def __bool__(self) -> bool:
        return bool(self.heap) or self.below is not None

    def scratch(self) -> Expiries:
        return Expiries(below=self)

    def add(self, ends: datetime, id: str) -> None:
        heappush(self.heap, (ends, id))

    def due(self, now: datetime) -> Iterator[Ending]:
        """What has ended by now, in no order. Changes nothing; costs what it finds, not what waits."""
        yield from _first(self.heap, now)
        if self.below is not None and not (self.seen is not None and now <= self.seen):
            yield from self.below.due(now)

    def take_due(self, now: datetime) -> list[Ending]:
        """What has ended by now, in the order of time; it is not told again."""
        found: list[Ending] = []
        while self.heap and self.heap[0][0] <= now:
            found.append(heappop(self.heap))
        if self.below is not None and not (self.seen is not None and now <= self.seen):
            found += self.below.due(now)
            found.sort()
            self.seen = now
        return found

    def sweep(self, is_open: Callable[[str], bool], open_count: int) -> None:
        """Drop what does not count any more, if that is most of it."""
        if len(self.heap) > max(SWEPT_FROM, 2 * open_count):
            self.heap = [ending for ending in self.heap if is_open(ending[1])]
            heapify(self.heap)

    def waiting(self, is_open: Callable[[str], bool]) -> list[Ending]:
        """What still counts, in the order of time."""
        return sorted(ending for ending in self.heap if is_open(ending[1]))


def _first(heap: list[Ending], now: datetime) -> Iterator[Ending]:
    """The entries of a heap up to a time: below one that is later all are later."""
    places = [0]
    while places:
        place = places.pop()
        if place < len(heap) and heap[place][0] <= now:
            yield heap[place]
            places += (2 * place + 1, 2 * place + 2)
