"""Who had which partition when, by the log alone: genesis, then what lanes say that they let go and took.

Owns the fold of these records into tenures (invariant I5: at each point of the log a partition has one owner at most).
A record that the chain of generations does not lead to gives nothing to anybody; it is a finding of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from storage.usage_log.genesis import PARTITIONS, Genesis
from storage.usage_log.segment import Control, SegmentHead


@dataclass(frozen=True)
class Tenure:
    """A partition lies in a lane from a number on, to another one: both take its rows. `to` is None while it stays."""

    partition: int
    lane: int
    first: int
    to: int | None


@dataclass(frozen=True)
class Record:
    lane: int
    number: int
    control: Control

    @property
    def move(self) -> tuple[int, int]:
        """The partition and which of its moves: the release and the acquisition of one have the same."""
        return self.control.partition, self.control.generation


@dataclass
class Moves:
    """All records of moves up to a cut, in any order."""

    genesis: Genesis
    released: dict[tuple[int, int], list[Record]] = field(default_factory=dict[tuple[int, int], list[Record]])
    acquired: dict[tuple[int, int], list[Record]] = field(default_factory=dict[tuple[int, int], list[Record]])

    def add(self, head: SegmentHead) -> None:
        for control in head.controls:
            if control.what in ("released", "acquired"):
                record = Record(head.lane, head.number, control)
                known = self.released if control.what == "released" else self.acquired
                known.setdefault(record.move, []).append(record)

    def tenures(self) -> tuple[list[Tenure], list[Record]]:
        """Who had what, and the records that nothing leads to."""
        found: list[Tenure] = []
        used: set[Record] = set()
        for partition in range(PARTITIONS):
            for tenure, records in self._of(partition):
                found.append(tenure)
                used.update(records)
        every = [one for known in (self.released, self.acquired) for records in known.values() for one in records]
        return found, sorted(set(every) - used, key=lambda one: (one.lane, one.number, one.control.partition))

    def _of(self, partition: int) -> Iterator[tuple[Tenure, list[Record]]]:
        """The tenures of one partition in order, each with the records by which it ends and the next one begins."""
        lane, first, generation = self.genesis.first_lane(partition), 0, 0
        while True:
            move = partition, generation + 1
            gone = [one for one in self.released.get(move, ()) if one.lane == lane and one.number >= first]
            if not gone:
                yield Tenure(partition, lane, first, None), []
                return
            release = min(gone, key=lambda one: one.number)
            taken = [
                one
                for one in self.acquired.get(move, ())
                if (one.control.lane, one.control.number) == (lane, release.number)
            ]
            # Who let it go may take it back only while the one that it was meant for never took it.
            target = [one for one in taken if one.lane == release.control.lane]
            chosen = target or [one for one in taken if one.lane == lane]
            if not chosen:
                yield Tenure(partition, lane, first, release.number), [release]
                return
            acquisition = min(chosen, key=lambda one: one.number)
            yield Tenure(partition, lane, first, release.number), [release, acquisition]
            lane, first, generation = acquisition.lane, acquisition.number, generation + 1


class Owned:
    """Which partitions lay in a lane, number by number; numbers are asked for in order."""

    def __init__(self, tenures: list[Tenure], lane: int) -> None:
        mine = [one for one in tenures if one.lane == lane]
        changes = [(one.first, True, one.partition) for one in mine]
        # A number that lets a partition go has its last rows.
        changes += [(one.to + 1, False, one.partition) for one in mine if one.to is not None]
        self._changes = sorted(changes, key=lambda one: one[0], reverse=True)
        self._owned = np.zeros(PARTITIONS, np.bool_)

    def at(self, number: int) -> npt.NDArray[np.bool_]:
        while self._changes and self._changes[-1][0] <= number:
            _, is_mine, partition = self._changes.pop()
            self._owned[partition] = is_mine
        return self._owned
