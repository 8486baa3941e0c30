"""Keeps one live shard per lane: heartbeats, replaces what is dead, hung or lost its lane. No Ray in here.

A reconciler: it takes no input, compares what is with what should be, and may run twice at once: the lanes' epochs, not
this class, make a second shard harmless. Which process becomes a lane's shard is its host's (actors/spares.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from actors.rating_shard import ShardStatus
from actors.spread_job import Spread

HUNG_S = 4.0  # without an answer although the process is there: a thread of its own answers, in milliseconds
HUNG_S_MAX = 20.0  # of a lane that was replaced for it again and again: a machine that starves is not helped by starts
CALM_S = 60.0  # after which a silence, or a death, is the first one again
AGAIN_S_MAX = 5.0  # between two starts of a lane whose shards do not come up: the store may be away
STARTING_S_MAX = 60.0  # until a new process answers at all
RECOVERING_S_MAX = 300.0  # of one that answers and reads its lane: a second start would only begin anew
REPLACEMENTS_KEPT = 100
BEATS_AT_ONCE_MAX = 32


class Health(Enum):
    SERVING = "serving"
    SILENT = "silent"  # there, and does not answer
    STARTING = "starting"  # answers, and recovers its lane
    STOPPED = "stopped"  # answers, and says that it serves no more
    ABSENT = "absent"
    CLOSED = "closed"  # its lane has ended for good: nobody will serve it again


@dataclass(frozen=True)
class Beat:
    health: Health
    status: ShardStatus | None = None
    detail: str = ""  # of one that stopped: why


class ShardHost(Protocol):
    """Where shards run. `beat` answers within its own short time limit; lanes are asked at once, in threads."""

    def beat(self, lane: int) -> Beat: ...

    def start(self, lane: int) -> None:
        """Let a process begin to serve the lane, one that is warm if there is one; need not wait for it."""
        ...

    def end(self, lane: int) -> None:
        """End the shard for good, however it resists."""
        ...


@dataclass(frozen=True)
class Replacement:
    lane: int
    at_s: float
    reason: str


@dataclass(frozen=True)
class SupervisorStatus:
    lanes: tuple[tuple[int, str, ShardStatus | None], ...]  # lane, health, status
    replacements: tuple[Replacement, ...]
    closed: tuple[int, ...] = ()  # lanes that have ended; they are not among `lanes`
    spread: Spread | None = None  # a spreading of partitions that is under way, or the last one
    nodes: tuple[tuple[int, str], ...] = ()  # lane, and the node of its shard
    leaving: frozenset[str] = frozenset()  # nodes that are about to leave

    @property
    def healthy(self) -> bool:
        return all(health == Health.SERVING.value for _, health, _ in self.lanes)


@dataclass
class _Watch:
    health: Health = Health.ABSENT
    since_s: float = 0.0  # of this health
    started_s: float = float("-inf")  # until its process has answered
    acted_s: float = float("-inf")  # when it was started last
    again_s: float = 0.0  # how long after that at least before it is started again
    status: ShardStatus | None = None
    hung_s: float = HUNG_S  # how long a silence may last
    hung_at_s: float = float("-inf")  # when it was replaced for a silence last


@dataclass
class ShardSupervisor:
    host: ShardHost
    lanes: int  # there are, closed ones among them
    now_s: Callable[[], float] = time.monotonic
    closed: set[int] = field(default_factory=set[int])
    _watches: dict[int, _Watch] = field(default_factory=dict)
    _replacements: list[Replacement] = field(default_factory=list)

    def reconcile(self) -> SupervisorStatus:
        """One look at every lane; acts where a shard is missing or has been unwell for too long."""
        asked_s = self.now_s()
        lanes = self.open_lanes
        for lane, beat in zip(lanes, self.beats(lanes), strict=True):
            if lane in self.closed:  # it was closed while it was asked
                continue
            if beat.health is Health.CLOSED:
                self.close(lane)
                continue
            watch = self._watches.setdefault(lane, _Watch(since_s=asked_s))
            now_s = self.now_s()
            if beat.health is not watch.health:
                # A silence began at the latest when the question was asked that nobody answered.
                watch.health, watch.since_s = beat.health, asked_s if beat.health is Health.SILENT else now_s
            if beat.status is not None:
                watch.status = beat.status
            reason = self._reason_to_act(watch, beat, now_s)
            if reason is None:
                continue
            if beat.health is Health.SILENT:
                again = now_s - watch.hung_at_s < CALM_S
                watch.hung_s = min(2 * watch.hung_s, HUNG_S_MAX) if again else 2 * HUNG_S
                watch.hung_at_s = now_s
            if beat.health is not Health.ABSENT:
                self.host.end(lane)
            self.host.start(lane)
            soon = now_s - watch.acted_s < CALM_S
            watch.again_s = min(max(1.0, 2 * watch.again_s), AGAIN_S_MAX) if soon else 0.0
            watch.started_s = watch.acted_s = watch.since_s = now_s
            self._replacements = [*self._replacements, Replacement(lane, time.time(), reason)][-REPLACEMENTS_KEPT:]
        return self.status()

    @property
    def open_lanes(self) -> list[int]:
        """Those that are to be served."""
        return [lane for lane in range(self.lanes) if lane not in self.closed]

    def close(self, lane: int) -> None:
        """A lane has ended, by its log: its shard goes, and no other one comes."""
        self.closed.add(lane)
        self._watches.pop(lane, None)
        self.host.end(lane)

    def beats(self, lanes: Sequence[int]) -> list[Beat]:
        """Of all lanes at once: one that hangs must not hide another one that does."""
        if len(lanes) <= 1:
            return [self.host.beat(lane) for lane in lanes]
        with ThreadPoolExecutor(min(len(lanes), BEATS_AT_ONCE_MAX), thread_name_prefix="beat") as pool:
            return list(pool.map(self.host.beat, lanes))

    def status(self) -> SupervisorStatus:
        watches = [one for one in sorted(self._watches.items()) if one[0] not in self.closed]
        lanes = tuple((lane, watch.health.value, watch.status) for lane, watch in watches)
        return SupervisorStatus(lanes, tuple(self._replacements), tuple(sorted(self.closed)))

    def _reason_to_act(self, watch: _Watch, beat: Beat, now_s: float) -> str | None:
        lasting_s = now_s - watch.since_s
        starting = now_s - watch.started_s < STARTING_S_MAX
        comes_too_soon = now_s - watch.acted_s < watch.again_s
        match watch.health:
            case Health.SERVING:
                watch.started_s = float("-inf")  # it came up: from now on silence means that it hangs
                if now_s - watch.hung_at_s >= CALM_S:
                    watch.hung_s = HUNG_S
                if lasting_s >= AGAIN_S_MAX:  # it came up indeed: its death is the first one again
                    watch.acted_s, watch.again_s = float("-inf"), 0.0
                return None
            case Health.ABSENT:  # a process is known by its name before it is up: one that is gone has died
                return None if comes_too_soon else "there was none"
            case Health.STOPPED:
                why = beat.detail or (watch.status.stopped_because if watch.status is not None else "unknown")
                return None if comes_too_soon else f"it stopped: {why}"
            case Health.SILENT:
                limit_s = STARTING_S_MAX if starting else watch.hung_s
                return f"no answer for {lasting_s:.1f} s" if lasting_s >= limit_s else None
            case Health.STARTING:
                watch.started_s = float("-inf")  # its process is up: a silence from now on is one
                return f"not recovered after {lasting_s:.1f} s" if lasting_s >= RECOVERING_S_MAX else None
            case Health.CLOSED:
                return None


def shards_default() -> int:
    """Half the cores, at least one: on two cores one shard is fastest, the other core serves HTTP."""
    return max(1, (os.cpu_count() or 2) // 2)
