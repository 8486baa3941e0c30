"""Keeps one live shard per lane: heartbeats, replaces what is dead, hung or lost its lane. No Ray in here.

A reconciler: it takes no input, compares what is with what should be, and may run twice at once: the lanes' epochs, not
this class, make a second shard harmless. Ray restarts crashed actors by itself; it never sees one that hangs.
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

HUNG_S = 4.0  # without an answer although the process is there: a thread of its own answers, in milliseconds
HUNG_S_MAX = 20.0  # of a lane that was replaced for it again and again: a machine that starves is not helped by starts
CALM_S = 60.0  # after which a silence is the first one again
ABSENT_S_MAX = (
    5.0  # after a start: its name is known at once, so one that is gone did not come up (or its name was taken)
)
RESTARTING_S_MAX = 30.0  # what a crashed shard may take to come back by itself
STARTING_S_MAX = 60.0
REPLACEMENTS_KEPT = 100
BEATS_AT_ONCE_MAX = 32


class Health(Enum):
    SERVING = "serving"
    SILENT = "silent"  # there, and does not answer
    RESTARTING = "restarting"  # dead, and being brought back
    STOPPED = "stopped"  # answers, and says that it serves no more
    ABSENT = "absent"


@dataclass(frozen=True)
class Beat:
    health: Health
    status: ShardStatus | None = None


class ShardHost(Protocol):
    """Where shards run. `beat` answers within its own short time limit; lanes are asked at once, in threads."""

    def beat(self, lane: int) -> Beat: ...

    def start(self, lane: int) -> None:
        """Begin to start a shard; need not wait for it."""
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

    @property
    def healthy(self) -> bool:
        return all(health == Health.SERVING.value for _, health, _ in self.lanes)


@dataclass
class _Watch:
    health: Health = Health.ABSENT
    since_s: float = 0.0  # of this health
    started_s: float = float("-inf")
    status: ShardStatus | None = None
    hung_s: float = HUNG_S  # how long a silence may last
    hung_at_s: float = float("-inf")  # when it was replaced for a silence last


@dataclass
class ShardSupervisor:
    host: ShardHost
    lanes: int
    now_s: Callable[[], float] = time.monotonic
    _watches: dict[int, _Watch] = field(default_factory=dict)
    _replacements: list[Replacement] = field(default_factory=list)

    def reconcile(self) -> SupervisorStatus:
        """One look at every lane; acts where a shard is missing or has been unwell for too long."""
        asked_s = self.now_s()
        lanes = range(self.lanes)
        for lane, beat in zip(lanes, self.beats(lanes), strict=True):
            watch = self._watches.setdefault(lane, _Watch(since_s=asked_s))
            now_s = self.now_s()
            if beat.health is Health.SILENT and watch.health is Health.RESTARTING:
                beat = Beat(Health.RESTARTING)  # nobody can answer yet: a second start would only delay the first
            if beat.health is not watch.health:
                # A silence began at the latest when the question was asked that nobody answered.
                watch.health, watch.since_s = beat.health, asked_s if beat.health is Health.SILENT else now_s
            if beat.status is not None:
                watch.status = beat.status
            reason = self._reason_to_act(watch, now_s)
            if reason is None:
                continue
            if beat.health is Health.SILENT:
                again = now_s - watch.hung_at_s < CALM_S
                watch.hung_s = min(2 * watch.hung_s, HUNG_S_MAX) if again else 2 * HUNG_S
                watch.hung_at_s = now_s
            if beat.health is not Health.ABSENT:
                self.host.end(lane)
            self.host.start(lane)
            watch.started_s, watch.since_s = now_s, now_s
            self._replacements = [*self._replacements, Replacement(lane, time.time(), reason)][-REPLACEMENTS_KEPT:]
        return self.status()

    def beats(self, lanes: Sequence[int]) -> list[Beat]:
        """Of all lanes at once: one that hangs must not hide another one that does."""
        if len(lanes) <= 1:
            return [self.host.beat(lane) for lane in lanes]
        with ThreadPoolExecutor(min(len(lanes), BEATS_AT_ONCE_MAX), thread_name_prefix="beat") as pool:
            return list(pool.map(self.host.beat, lanes))

    def status(self) -> SupervisorStatus:
        lanes = tuple((lane, watch.health.value, watch.status) for lane, watch in sorted(self._watches.items()))
        return SupervisorStatus(lanes, tuple(self._replacements))

    def _reason_to_act(self, watch: _Watch, now_s: float) -> str | None:
        lasting_s = now_s - watch.since_s
        starting = now_s - watch.started_s < STARTING_S_MAX
        match watch.health:
            case Health.SERVING:
                watch.started_s = float("-inf")  # it came up: from now on silence means that it hangs
                if now_s - watch.hung_at_s >= CALM_S:
                    watch.hung_s = HUNG_S
                return None
            case Health.ABSENT:
                return None if starting and lasting_s < ABSENT_S_MAX else "there was none"
            case Health.STOPPED:
                why = watch.status.stopped_because if watch.status is not None else "unknown"
                return f"it stopped: {why}"
            case Health.SILENT:
                limit_s = STARTING_S_MAX if starting else watch.hung_s
                return f"no answer for {lasting_s:.1f} s" if lasting_s >= limit_s else None
            case Health.RESTARTING:
                limit_s = STARTING_S_MAX if starting else RESTARTING_S_MAX
                return f"not back after {lasting_s:.1f} s" if lasting_s >= limit_s else None


def shards_default() -> int:
    """Half the cores, at least one: on two cores one shard is fastest, the other core serves HTTP."""
    return max(1, (os.cpu_count() or 2) // 2)
