"""A group while it is built: rows that become one segment, and who is told what once it is COMMITTED."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from actors.followers import LogMoment
from actors.shard_queue import DecisionItem, UsageItem
from storage.usage_log.partitions import EventIds
from storage.usage_log.segment import Control, Counters


@dataclass(frozen=True)
class Judged:
    """Consecutive usage items of a group, judged row by row."""

    items: Sequence[UsageItem]
    partitions: npt.NDArray[np.uint8]
    is_mine: npt.NDArray[np.bool_]
    is_new: npt.NDArray[np.bool_]
    reasons: npt.NDArray[np.uint8]


@dataclass
class Group:
    """A group while it is built: what is put, and who is told what once it is COMMITTED."""

    moment: LogMoment
    frames: list[pl.DataFrame] = field(default_factory=list)
    ids: list[EventIds] = field(default_factory=list)  # added to the recent ids; taken back if nothing is stored
    counters: dict[str, Counters] = field(default_factory=dict)
    judged: list[Judged] = field(default_factory=list)
    decided: list[tuple[DecisionItem, bytes]] = field(default_factory=list)
    unapplied: list[pl.DataFrame] = field(default_factory=list)  # for the followers, after the commit
    unseen: set[str] = field(default_factory=set)  # tenants with usage here that no follower wanted
    watched: set[str] = field(default_factory=set)  # tenants with usage here that one did
    forces_put: bool = False  # also without rows
    controls: list[Control] = field(default_factory=list)
    afters: list[Callable[[int], None]] = field(default_factory=list)  # once it is COMMITTED
    log_time_us: int = 0  # not below it
    is_applied: bool = False  # followers saw rows of it before the put

    def count(self, rows: pl.DataFrame) -> None:
        for tenant_id, decided in collections.Counter(rows["tenant"].to_list()).items():
            self.counters[tenant_id] = self.counters.get(tenant_id, Counters()) + Counters(decided=decided)


def count_usage(
    group: Sequence[UsageItem], is_mine: npt.NDArray[np.bool_], is_new: npt.NDArray[np.bool_]
) -> dict[str, Counters]:
    counters: dict[str, Counters] = {}
    first = 0
    for item in group:
        part = slice(first, first + item.rows)
        first += item.rows
        stored = int(is_new[part].sum())
        duplicates = int(is_mine[part].sum()) - stored
        counters[item.tenant_id] = counters.get(item.tenant_id, Counters()) + Counters(stored, duplicates)
    return counters
