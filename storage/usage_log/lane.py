"""One lane: find its end, read on, claim it, put the next number. The rules are in docs/usage-log.md.

A lane is a chain of numbered objects, each created only if absent; who creates number n has decided n. No clock, lease
or listing takes part. `LaneWriter` is used by one thread.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from uuid import uuid4

import polars as pl

from billing.errors import BillingError
from storage.object_store import ObjectStore, StoreRefused, StoreUnavailable
from storage.usage_log.clock import Clock
from storage.usage_log.genesis import LANES_MAX, read_genesis
from storage.usage_log.segment import (
    Control,
    Counters,
    SegmentHead,
    StoredSegment,
    decode_segment,
    digest_of,
    encode_segment,
    segment_key,
)

BACKOFF_S_FIRST = 0.01
BACKOFF_S_MAX = 1.0
CLAIM_TRIES_MAX = 10_000  # a predecessor under full load wins some numbers; it never wins this many


class Put(Enum):
    COMMITTED = "committed"
    LOST = "lost"


class LaneLost(BillingError):
    """Somebody else writes this lane now. The outcome of what was in flight is for the log to say."""

    code, status, title, retryable = "lane_lost", 503, "Another writer took the lane over", True


class LaneClosed(BillingError):
    """The lane owns nothing any more and may not be claimed."""

    code, status, title = "lane_closed", 409, "The lane is closed"


class LaneStopped(BillingError):
    """This process was told to stop while a put was open: send the same again with the same ids."""

    code, status, title, retryable = "lane_stopped", 503, "The writer is stopping", True


class LogBroken(Exception):
    """The log contradicts itself: a bug or damage. The lane stops rather than guess."""


@dataclass(frozen=True)
class LanePosition:
    """The last number a writer knows of its lane, and what the next one needs of it."""

    number: int = -1
    epoch: int = 0
    log_time_us: int = 0
    digest: str = ""
    closed: bool = False

    def after(self, segment: StoredSegment) -> LanePosition:
        head = segment.head
        if head.number != self.number + 1:
            raise LogBroken(f"lane {head.lane}: expected number {self.number + 1}, found {head.number}")
        if self.number >= 0 and head.previous != self.digest:
            raise LogBroken(f"lane {head.lane}: number {head.number} does not follow the bytes of {self.number}")
        if head.log_time_us < self.log_time_us:
            raise LogBroken(f"lane {head.lane}: log time goes back at number {head.number}")
        expected = self.epoch + 1 if head.is_epoch else self.epoch
        if head.epoch != expected:
            raise LogBroken(f"lane {head.lane}: number {head.number} has epoch {head.epoch}, not {expected}")
        if self.closed:
            raise LogBroken(f"lane {head.lane}: number {head.number} lies behind the record that closes the lane")
        return LanePosition(head.number, head.epoch, head.log_time_us, segment.digest, closes(head))


def closes(head: SegmentHead) -> bool:
    """Whether a lane ends with this number: nothing is ever put behind it."""
    return any(control.what == "lane_closed" for control in head.controls)


def read_segment(store: ObjectStore, lane: int, number: int) -> StoredSegment | None:
    """The object under a number; None if absent just now."""
    data = store.get(segment_key(lane, number))
    if data is None:
        return None
    try:
        segment = decode_segment(data)
    except (pl.exceptions.PolarsError, KeyError, ValueError) as error:
        raise LogBroken(f"the object of lane {lane} number {number} cannot be read: {error}") from error
    if (segment.head.lane, segment.head.number) != (lane, number):
        raise LogBroken(
            f"the object of lane {lane} number {number} says it is {segment.head.lane}:{segment.head.number}"
        )
    return segment


def walk(store: ObjectStore, lane: int, first: int, last: int | None = None) -> Iterator[StoredSegment]:
    """Numbers from `first` until absent (or `last`). The caller applies rule H before it believes what it read."""
    number = first
    while last is None or number <= last:
        segment = read_segment(store, lane, number)
        if segment is None:
            return
        yield segment
        number += 1


def last_number(store: ObjectStore, lane: int, known: int) -> int:
    """The last number of a lane, `known` being one that exists (or -1): try n+1, n+2, n+4 ..., then halve.

    "One put in flight" leaves no gaps above the floor, so a binary search is right.
    """
    low, step = known, 1
    while store.exists(segment_key(lane, low + step)):
        low, step = low + step, step * 2
    high = low + step  # absent
    while high - low > 1:
        middle = (low + high) // 2
        if store.exists(segment_key(lane, middle)):
            low = middle
        else:
            high = middle
    return low


def count_lanes(store: ObjectStore, known: int = 0) -> int:
    """The first lanes of the genesis, begun or not, and those that were added: in order, never reused.

    A lane is there if its number 0 is, always an epoch record, which is never deleted.
    """
    lanes = known
    if lanes == 0:
        genesis = read_genesis(store)
        lanes = 0 if genesis is None else genesis.lanes
    while lanes < LANES_MAX and store.exists(segment_key(lanes, 0)):
        lanes += 1
    return lanes


def is_closed(store: ObjectStore, lane: int) -> bool:
    """Whether a lane has ended, by its own log. Once so, it stays so."""
    last = last_number(store, lane, read_hint(store, lane))
    segment = None if last < 0 else read_segment(store, lane, last)
    return segment is not None and closes(segment.head)


def put_if_absent(
    store: ObjectStore,
    key: str,
    data: bytes,
    *,
    stopped: threading.Event,
    on_stall: Callable[[float], None],
    tries_max: int | None = None,
) -> Put:
    """Repeats the same bytes under the same key until the store says what is true.

    Raises StoreRefused only if no try can have stored anything: then the number is free and the caller may say "not
    stored". After one open outcome a refusal proves nothing about the first try, so the loop goes on. `tries_max` is
    for chains whose writers may give up with the outcome open, because they read the chain before they go on.
    """
    began, wait, is_open, tries = time.monotonic(), BACKOFF_S_FIRST, False, 0
    while True:
        tries += 1
        try:
            if store.create(key, data):
                return Put.COMMITTED
            there = store.get(key)
            if there == data:
                store.settle(key)
                return Put.COMMITTED  # my own first try: stored, unanswered, sent again
            return Put.LOST  # other bytes, or gone: used and deleted
        except StoreRefused:
            if not is_open:
                raise
        except StoreUnavailable:
            is_open = True
            if tries == tries_max:
                raise
        on_stall(time.monotonic() - began)
        if stopped.wait(wait * random.uniform(0.5, 1.0)):  # noqa: S311 - jitter, not a secret
            raise LaneStopped(f"Stopped while {key} was open: what was sent may be stored. Send it again, same ids.")
        wait = min(wait * 2, BACKOFF_S_MAX)


class LaneWriter:
    """The one who may write a lane until somebody else claims it. First `read_on`, then `claim`, then `append`."""

    def __init__(self, store: ObjectStore, lane: int, clock: Clock, *, position: LanePosition | None = None) -> None:
        self.lane = lane
        self.nonce = uuid4().hex
        self.position = position or LanePosition()
        self.stalled_s = 0.0  # how long the put in flight has been open
        self._store = store
        self._clock = clock
        self._stopped = threading.Event()
        self._claimed = False

    def stop(self) -> None:
        """Ends a put loop that waits for its store; the outcome of that put stays for the log to say."""
        self._stopped.set()

    def read_on(self) -> Iterator[StoredSegment]:
        """What others wrote since `position`; each is settled before it is given out."""
        while (segment := read_segment(self._store, self.lane, self.position.number + 1)) is not None:
            self._store.settle(segment_key(self.lane, segment.head.number))
            self.position = self.position.after(segment)
            yield segment

    def claim(self, on_segment: Callable[[StoredSegment], None]) -> None:
        """Write an epoch record at the first free number; what others put meanwhile goes to `on_segment`.

        The caller then compares the newest manifest's floor with the first number it read (rule H).
        """
        for _ in range(CLAIM_TRIES_MAX):
            if self.position.closed:
                raise LaneClosed(f"Lane {self.lane} is closed.", lane=self.lane)
            head = self._next_head(is_epoch=True)
            data = encode_segment(head, None)
            if self._put(head.number, data) is Put.COMMITTED:
                self._advance(head, data)
                self._claimed = True
                return
            before = self.position.number
            for segment in self.read_on():
                on_segment(segment)
            if self.position.number == before:  # used and deleted: a newer manifest knows more
                raise LaneLost(f"Lane {self.lane}: number {head.number} was used and deleted.", lane=self.lane)
        raise LaneLost(f"Lane {self.lane}: {CLAIM_TRIES_MAX} claims lost.", lane=self.lane)

    def next_log_time_us(self) -> int:
        return max(self.position.log_time_us, self._clock.now_us())

    def append(
        self,
        rows: pl.DataFrame | None,
        counters: dict[str, Counters],
        controls: Sequence[Control] = (),
        *,
        log_time_us: int | None = None,
        clocks: Mapping[str, int] | None = None,
    ) -> SegmentHead:
        """Put the next number; returns after it is COMMITTED. Raises LaneLost, LaneStopped, StoreRefused."""
        assert self._claimed, "append before claim"
        assert not self.position.closed, "append behind the end of the lane"
        time_us = self.next_log_time_us() if log_time_us is None else max(log_time_us, self.position.log_time_us)
        head = self._next_head(counters=counters, controls=tuple(controls), log_time_us=time_us, clocks=clocks)
        data = encode_segment(head, rows)
        if self._put(head.number, data) is Put.LOST:
            self._claimed = False  # two losers that claim again take turns for ever: only the supervisor decides
            raise LaneLost(
                f"Lane {self.lane}: another writer put number {head.number}. Send the same again with the same ids.",
                lane=self.lane,
            )
        self._advance(head, data)
        return head

    def _put(self, number: int, data: bytes) -> Put:
        try:
            return put_if_absent(
                self._store, segment_key(self.lane, number), data, stopped=self._stopped, on_stall=self._note_stall
            )
        finally:
            self.stalled_s = 0.0

    def _note_stall(self, seconds: float) -> None:
        self.stalled_s = seconds

    def _advance(self, head: SegmentHead, data: bytes) -> None:
        self.position = LanePosition(head.number, head.epoch, head.log_time_us, digest_of(data), closes(head))

    def _next_head(
        self,
        *,
        is_epoch: bool = False,
        counters: dict[str, Counters] | None = None,
        controls: tuple[Control, ...] = (),
        log_time_us: int | None = None,
        clocks: Mapping[str, int] | None = None,
    ) -> SegmentHead:
        return SegmentHead(
            lane=self.lane,
            number=self.position.number + 1,
            epoch=self.position.epoch + (1 if is_epoch else 0),
            nonce=self.nonce,
            log_time_us=self.next_log_time_us() if log_time_us is None else log_time_us,
            previous=self.position.digest,
            is_epoch=is_epoch,
            counters=counters or {},
            controls=controls,
            clocks=clocks or {},
        )


def write_hint(store: ObjectStore, lane: int, number: int) -> None:
    """A number that exists: saves the next reader some steps. Wrong or missing, it costs time only."""
    store.put(f"log/hints/lane-{lane:04}.json", json.dumps({"number": number}).encode())


def read_hint(store: ObjectStore, lane: int) -> int:
    data = store.get(f"log/hints/lane-{lane:04}.json")
    if data is None:
        return -1
    try:
        number = int(json.loads(data)["number"])
    except (ValueError, KeyError, TypeError):
        return -1  # torn or foreign: a hint never decides
    return number if number >= 0 and store.exists(segment_key(lane, number)) else -1
