"""Carries out what the load asks for: a lane more, or one fewer and its end. No Ray in here.

Owns the order only: when is `LoadWatch`'s (actors/lane_scaling.py), how partitions move `SpreadJob`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.lane_scaling import ScalingPlan
from actors.spread_job import Spread
from billing.errors import Conflict
from storage.usage_log.genesis import LANES_MAX

LOG = logging.getLogger("cloudbilling.lanes")


class LaneNumbers(Protocol):
    """Which lanes there are; `ShardSupervisor` (actors/supervisor.py) is one."""

    @property
    def lanes(self) -> int:
        """How many there have ever been: their numbers are not used again."""
        ...

    @property
    def open_lanes(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class LaneScaler:
    """`spread` lets exactly these lanes have partitions, and answers when that is done or takes too long; `close_lane`
    raises Conflict while something may still ask for the lane."""

    numbers: LaneNumbers
    plan: Callable[[], ScalingPlan]
    spread: Callable[[Sequence[int]], Spread]
    close_lane: Callable[[int], None]

    def round(self) -> None:
        """Add or empty a lane if the load asks for it. Raises what kept it from that; the next round tries again."""
        plan = self.plan()
        if plan.do == "stay":
            return
        LOG.warning("lanes are changed to %s: %s", list(plan.lanes), plan.why)
        if self.spread(plan.lanes).done and plan.do == "remove":
            self._close_empty(plan.lanes)

    def _close_empty(self, active: Sequence[int]) -> None:
        """Lanes without partitions end, so their processes go. Once half of all numbers are used they stay instead,
        and are the next to be used."""
        for lane in self.numbers.open_lanes:
            if lane not in active and self.numbers.lanes < LANES_MAX // 2:
                try:
                    self.close_lane(lane)
                except Conflict as error:  # it stays, empty; as it would without closing
                    LOG.warning("lane %d stays open: %s", lane, error.detail)
