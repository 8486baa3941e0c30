"""When a lane is added or emptied: by load that stays over a bound, or far below it, for a while. No Ray in here.

Owns the judgement only, on what shards say of themselves and a clock of the caller's. Between the bounds lies room, so
that a change never asks for its opposite; after one it waits. Who acts is `LaneScaler` (actors/lane_scaler.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.partition_mover import spreading
from actors.rating_shard import ShardStatus

SAMPLE_S = 1.0  # rates are of at least so long
SMOOTH_S = 5.0  # and a step of the load is seen by two thirds after this


@dataclass(frozen=True)
class ScalingBounds:
    """Rows are what lanes stored: usage and decisions."""

    lanes_min: int = 1
    lanes_max: int = 0  # with partitions; 0: nobody adds or empties lanes by itself
    rows_s_high: float = 60_000.0  # of a lane, in the mean: about half of what one stores on one core
    rows_s_low: float = 20_000.0  # of a lane if there were one fewer
    wait_s_high: float = 1.0  # how long what waits in front of a lane takes at its present rate
    hold_s: float = 120.0  # so long it must last
    calm_s: float = 600.0  # between two changes


@dataclass(frozen=True)
class LaneLoad:
    lane: int
    partitions: int
    rows_s: float
    wait_s: float


@dataclass(frozen=True)
class ScalingPlan:
    """What would be done now: `add`, `remove` (empty) or `stay`; `lanes` are those that have partitions after it."""

    do: str
    lanes: tuple[int, ...]
    moves: int
    why: str
    loads: tuple[LaneLoad, ...]

    def to_form(self) -> dict[str, Any]:
        loads = [
            {
                "lane": one.lane,
                "partitions": one.partitions,
                "rows_s": round(one.rows_s),
                "wait_s": round(one.wait_s, 2),
            }
            for one in self.loads
        ]
        return {"do": self.do, "lanes": list(self.lanes), "moves": self.moves, "why": self.why, "loads": loads}


@dataclass
class LoadWatch:
    """`observe` often, all lanes at once; `plan` says what follows."""

    bounds: ScalingBounds
    _seen: dict[int, tuple[float, int]] = field(default_factory=dict[int, tuple[float, int]])  # lane: when, rows
    _rates: dict[int, float] = field(default_factory=dict[int, float])
    _statuses: Sequence[ShardStatus] = ()
    _high_since_s: float | None = None
    _low_since_s: float | None = None
    _changed_s: float = float("-inf")
    _lanes: int = 0

    def observe(self, now_s: float, statuses: Sequence[ShardStatus], *, lanes: int = 0) -> None:
        """What shards say now; all of them, or none is judged. `lanes` there are, if some are closed: they say nothing,
        and their numbers are not used again."""
        self._statuses, self._lanes = statuses, lanes
        for one in statuses:
            then_s, rows = self._seen.get(one.lane, (now_s, one.rows))
            if one.lane in self._seen and now_s - then_s < SAMPLE_S:
                continue
            # A shard that was replaced counts from nothing again.
            stored = one.rows - rows if one.rows >= rows else one.rows
            if now_s > then_s:
                rate, share = stored / (now_s - then_s), 1.0 - math.exp(-(now_s - then_s) / SMOOTH_S)
                before = self._rates.get(one.lane, rate)
                self._rates[one.lane] = before + share * (rate - before)
            self._seen[one.lane] = now_s, one.rows
        loads = self._loads()
        self._high_since_s = self._since(self._high_since_s, now_s, bool(self._why_high(loads)))
        self._low_since_s = self._since(self._low_since_s, now_s, self._is_low(loads))

    def plan(self, now_s: float) -> ScalingPlan:
        loads, bounds = self._loads(), self.bounds
        active = tuple(one.lane for one in loads)
        if not active:
            return ScalingPlan("stay", active, 0, "no lane has said what it does", loads)
        if not bounds.lanes_max:
            return self._stay(loads, "no scaling is asked for (lanes_max is 0)")
        if len(active) < bounds.lanes_min:
            return self._with(loads, self._grown(active), f"fewer than {bounds.lanes_min} lanes")
        high_s = 0.0 if self._high_since_s is None else now_s - self._high_since_s
        low_s = 0.0 if self._low_since_s is None else now_s - self._low_since_s
        waits_s = self._changed_s + bounds.calm_s - now_s
        if self._high_since_s is not None and len(active) >= bounds.lanes_max:
            return self._stay(loads, f"{self._why_high(loads)}, but {bounds.lanes_max} lanes are the most")
        if self._high_since_s is not None and high_s < bounds.hold_s:
            return self._stay(loads, f"{self._why_high(loads)}, for {high_s:.0f} of {bounds.hold_s:.0f} s")
        if self._low_since_s is not None and low_s < bounds.hold_s:
            return self._stay(loads, f"one lane fewer would do, for {low_s:.0f} of {bounds.hold_s:.0f} s")
        if (self._high_since_s is not None or self._low_since_s is not None) and waits_s > 0:
            return self._stay(loads, f"lanes have just changed: in {waits_s:.0f} s")
        if self._high_since_s is not None:
            return self._with(loads, self._grown(active), self._why_high(loads))
        if self._low_since_s is not None:
            return self._with(loads, active[:-1], "one lane fewer does")
        return self._stay(loads, "the load is between the bounds")

    def changed(self, now_s: float) -> None:
        """Lanes were added or emptied, by whomever: what was seen before says nothing now."""
        self._changed_s, self._high_since_s, self._low_since_s = now_s, None, None

    def _loads(self) -> tuple[LaneLoad, ...]:
        """Of the lanes that have partitions."""
        found: list[LaneLoad] = []
        for one in sorted(self._statuses, key=lambda status: status.lane):
            if one.partitions:
                rate = self._rates.get(one.lane, 0.0)
                wait_s = one.queued_rows / max(rate, 1.0) if one.queued_rows else 0.0
                found.append(LaneLoad(one.lane, one.partitions, rate, wait_s))
        return tuple(found)

    def _why_high(self, loads: Sequence[LaneLoad]) -> str:
        if not loads:
            return ""
        mean = sum(one.rows_s for one in loads) / len(loads)
        if mean > self.bounds.rows_s_high:
            return f"{mean:.0f} rows a second and lane are above {self.bounds.rows_s_high:.0f}"
        mean_wait_s = sum(one.wait_s for one in loads) / len(loads)
        if mean_wait_s > self.bounds.wait_s_high:
            return f"rows wait {mean_wait_s:.1f} s, longer than {self.bounds.wait_s_high:.1f}"
        return ""

    def _is_low(self, loads: Sequence[LaneLoad]) -> bool:
        if len(loads) <= max(self.bounds.lanes_min, 1) or self._why_high(loads):
            return False
        return sum(one.rows_s for one in loads) / (len(loads) - 1) < self.bounds.rows_s_low

    def _grown(self, active: Sequence[int]) -> tuple[int, ...]:
        """With one lane more: one that was emptied before, or the next there is not yet."""
        known = [one.lane for one in self._statuses]
        free = [lane for lane in known if lane not in active]
        return tuple(sorted([*active, min(free) if free else max([*known, self._lanes - 1]) + 1]))

    def _with(self, loads: tuple[LaneLoad, ...], lanes: tuple[int, ...], why: str) -> ScalingPlan:
        moves = len(spreading(list(self._statuses), lanes))
        return ScalingPlan("add" if len(lanes) > len(loads) else "remove", lanes, moves, why, loads)

    def _stay(self, loads: tuple[LaneLoad, ...], why: str) -> ScalingPlan:
        return ScalingPlan("stay", tuple(one.lane for one in loads), 0, why, loads)

    @staticmethod
    def _since(since_s: float | None, now_s: float, is_so: bool) -> float | None:
        return (now_s if since_s is None else since_s) if is_so else None
