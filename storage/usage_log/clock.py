"""The clock of a writer, handed in so that tests can move it, and how far it is from the store's own.

Log time is written once and never goes back: a writer whose clock is far ahead would give all later rows its future.
"""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

from storage.object_store import ObjectStore

SKEW_ALARM_US = 2_000_000
SKEW_MAX_US = 30_000_000
_GRAIN_US = 1_000_000  # stores date their objects by the second


class Clock(Protocol):
    def now_us(self) -> int:
        """Microseconds since 1970 UTC; may jump, also backwards."""
        ...


class SystemClock:
    def now_us(self) -> int:
        return time.time_ns() // 1000


@runtime_checkable
class Dated(Protocol):
    """A store that says when an object was written, by its own clock."""

    def modified_us(self, key: str) -> int | None: ...


def skew_us(store: ObjectStore, clock: Clock, name: str) -> int | None:
    """How far a clock is ahead of the store's (behind: negative); 0 within what can be told, None where it cannot.

    Writes a small object and looks when the store says that was.
    """
    if not isinstance(store, Dated):
        return None
    key = f"log/hints/clock-{name}.json"
    before = clock.now_us()
    store.put(key, b"{}")
    after = clock.now_us()
    written = store.modified_us(key)
    if written is None:
        return None
    if before > written + _GRAIN_US:
        return before - written
    return min(0, after - written + _GRAIN_US)
