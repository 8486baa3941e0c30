"""Followers of a lane: states that are a fold of its committed rows, and the decisions that rest on them. No Ray here.

Owns the seam between the lane's one writer (actors/rating_shard.py) and what decides there: reservations, budgets, test
clocks, corrections. A decision runs on the commit thread, on committed rows and the earlier rows of its group; what it
decides is written as rows, answered after they are COMMITTED, and folded again after a crash. Nothing else is truth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import polars as pl

from billing.errors import Conflict, Unavailable
from billing.live_state import LiveState
from billing.usage import INSTANT
from storage.usage_log.checkpoints import FrozenFollower
from storage.usage_log.partitions import EventIds
from storage.usage_log.segment import ROW_SCHEMA, RowKind

NO_ROWS = pl.DataFrame(schema=ROW_SCHEMA)


def _nobody_asked(_: str, __: Sequence[tuple[str, str, str]]) -> list[bool]:
    raise AssertionError("only a decision may ask which ids are recorded")


def _nobody_sends(_: str, __: pl.DataFrame, ___: str, ____: Sequence[str]) -> JudgedRows:
    raise AssertionError("only a decision takes events of a backfill")


def _no_figures(_: str, __: Sequence[str], ___: int) -> LiveState | None:
    raise AssertionError("only a decision in a shard with master data may ask for usage")


@dataclass(frozen=True)
class JudgedRows:
    """Events of a backfill: which lie in a partition of this lane, which are new, whose id was whose before."""

    is_mine: npt.NDArray[np.bool_]
    is_new: npt.NDArray[np.bool_]
    again: pl.Series  # the reverted backfill that had the id; null: nobody


@dataclass(frozen=True)
class LogMoment:
    """Where a group is about to be put, or was put."""

    lane: int
    number: int
    log_time_us: int
    clocks: Mapping[str, int] = field(default_factory=dict)  # of test tenants: CLOCK_SET before this number
    # (customer, source, id) -> whether the log has it already; the ids of earlier rows of the group included.
    is_recorded: Callable[[str, Sequence[tuple[str, str, str]]], list[bool]] = _nobody_asked
    # (tenant, events, their backfill, the reverted ones that it may take ids over from) -> what is new of them.
    judge_backfilled: Callable[[str, pl.DataFrame, str, Sequence[str]], JudgedRows] = _nobody_sends
    # (tenant, keys, master number) -> committed usage of those of the keys that are at home in this lane.
    usage: Callable[[str, Sequence[str], int], LiveState | None] = _no_figures

    def now_us(self, tenant_id: str) -> int:
        """What "now" is for a tenant: its test clock, else the log's time."""
        return self.clocks.get(tenant_id, self.log_time_us)


@dataclass(frozen=True)
class LogRow:
    """A row that a decision writes; `detail` names the master number it rests on where it rests on master data."""

    kind: RowKind
    source: str
    id: str
    customer: str  # the key whose partition it lies in; "": any partition of the lane
    time_us: int
    detail: Mapping[str, Any] | None = None  # JSON; amounts as strings
    type: str = ""
    subscription: str | None = None
    data: str | None = None


@dataclass(frozen=True)
class Decided:
    """What a decision writes (ROW_SCHEMA; the shard sets `partition`) and what its caller is told."""

    rows: pl.DataFrame
    answer: bytes
    forces_put: bool = False  # no rows, and yet answered after a put: what it read is true now, no zombie said it


Decision = Callable[[str, bytes, LogMoment], Decided]  # (tenant, payload, moment)


class LaneFollower(Protocol):
    """One state. Live and at recovery it sees the same rows; those of one partition in order, partitions in any."""

    name: str
    version: int  # of what `freeze` gives; a snapshot of another version is folded again from the log
    decisions: Mapping[str, Decision]  # must not change the state: `apply` does, before the next decision

    def watches(self, tenant_id: str) -> bool:
        """Whether it wants this tenant's USAGE rows. Rows of all other kinds come in any case."""
        ...

    def propose(self, rows: pl.DataFrame, moment: LogMoment) -> pl.DataFrame:
        """Rows that must stand in the very same segment as these, which are about to be put. Changes nothing."""
        ...

    def apply(self, rows: pl.DataFrame, moment: LogMoment) -> None:
        """Take rows into the state."""
        ...

    def freeze(self) -> Callable[[], bytes]:
        """The state as it is now; the bytes are asked for later, in another thread."""
        ...

    def thaw(self, data: bytes, number: int) -> None: ...

    def clear(self) -> None: ...


@runtime_checkable
class Ticking(Protocol):
    """A follower that wants to decide by itself when time has passed, also in an idle lane."""

    def due(self) -> Sequence[tuple[str, str]]:
        """(tenant, name of a decision of its own) to be asked now; asked often, so it must cost nothing."""
        ...


def log_rows(tenant_id: str, rows: Sequence[LogRow]) -> pl.DataFrame:
    """Rows of one tenant as columns."""
    if not rows:
        return NO_ROWS
    count = len(rows)
    columns: dict[str, list[Any]] = {
        "tenant": [tenant_id] * count,
        "partition": [0] * count,
        "kind": [int(row.kind) for row in rows],
        "source": [row.source for row in rows],
        "id": [row.id for row in rows],
        "type": [row.type for row in rows],
        "customer": [row.customer for row in rows],
        "subscription": [row.subscription for row in rows],
        "data": [row.data for row in rows],
        "detail": [None if row.detail is None else json.dumps(row.detail, separators=(",", ":")) for row in rows],
    }
    times = pl.Series("time", [row.time_us for row in rows], pl.Int64).cast(INSTANT)
    # Column by column: for one row that costs a quarter of what a frame with a schema does.
    return pl.DataFrame(
        [times if name == "time" else pl.Series(name, columns[name], dtype) for name, dtype in ROW_SCHEMA.items()]
    )


class FollowerSet:
    """All followers of a shard. One that raises is put aside with its error, and ingest goes on.

    A follower that is aside, or that saw rows which were then not stored, is stale: the shard folds it again from the
    last snapshot and the log. Until then its decisions answer 503, and snapshots carry its last good state.
    """

    def __init__(self, followers: Sequence[LaneFollower]) -> None:
        self._followers = {follower.name: follower for follower in followers}
        assert len(self._followers) == len(followers), "two followers of one name"
        self._decisions: dict[str, tuple[LaneFollower, Decision]] = {}
        for follower in followers:
            for name, decision in follower.decisions.items():
                assert name not in self._decisions, f"two followers decide {name}"
                self._decisions[name] = follower, decision
        self.clear()

    def clear(self) -> None:
        for follower in self._followers.values():
            follower.clear()
        self._saved: dict[str, FrozenFollower] = {}
        self._errors: dict[str, str] = {}
        self._stale: set[str] = set()

    @property
    def stale(self) -> bool:
        return bool(self._stale)

    def is_stale(self, name: str) -> bool:
        return name in self._stale

    @property
    def last_error(self) -> str:
        return "; ".join(f"{name}: {error}" for name, error in sorted(self._errors.items()))

    def decision(self, name: str) -> Decision:
        """The decision of this name. Raises Unavailable while its follower is stale."""
        follower, decide = self._decisions[name]

        def guarded(tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
            if follower.name in self._stale:
                error = self._errors.get(follower.name, "it is folded again")
                raise Unavailable(f"The state of {follower.name} is not ready ({error}). Send the same again.")
            return decide(tenant_id, payload, moment)

        return guarded

    def knows(self, name: str) -> bool:
        return name in self._decisions

    def watch(self, tenant_ids: Collection[str]) -> bool:
        """Whether anybody wants the USAGE rows of one of these tenants."""
        for follower in self._followers.values():
            if follower.name in self._stale:
                continue
            with self._aside(follower):
                if any(follower.watches(tenant_id) for tenant_id in tenant_ids):
                    return True
        return False

    def due(self) -> list[tuple[str, str]]:
        """What followers want to be asked by the passing of time."""
        found: list[tuple[str, str]] = []
        for name, follower in self._followers.items():
            if isinstance(follower, Ticking) and name not in self._stale:
                found.extend(follower.due())
        return found

    def propose(
        self,
        rows: pl.DataFrame,
        moment: LogMoment,
        place: Callable[[pl.DataFrame], tuple[pl.DataFrame, EventIds]],
    ) -> list[tuple[pl.DataFrame, EventIds]]:
        """What each follower proposes, placed by the shard: where that is not possible, it is the follower's fault."""
        found: list[tuple[pl.DataFrame, EventIds]] = []
        for follower in self._followers.values():
            with self._aside(follower):
                wanted = self._wanted(follower, rows)
                if wanted.height:
                    proposed = follower.propose(wanted, moment)
                    if proposed.height:
                        found.append(place(proposed))
        return found

    def apply(self, rows: pl.DataFrame, moment: LogMoment) -> None:
        for follower in self._followers.values():
            with self._aside(follower):
                wanted = self._wanted(follower, rows)
                if wanted.height:
                    follower.apply(wanted, moment)

    def not_stored(self) -> None:
        """Rows that were applied are not in the log: what was folded counts no more."""
        self._stale.update(self._followers)

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def freeze(self, number: int) -> Callable[[], dict[str, FrozenFollower]]:
        """The states after a number; of a stale one the last that was good."""
        frozen: dict[str, tuple[int, Callable[[], bytes]]] = {}
        kept: dict[str, FrozenFollower] = {}
        for name, follower in self._followers.items():
            with self._aside(follower):
                if name not in self._stale:
                    frozen[name] = follower.version, follower.freeze()
            if name not in frozen and name in self._saved:
                kept[name] = self._saved[name]

        def made() -> dict[str, FrozenFollower]:
            fresh = {name: FrozenFollower(version, number, data()) for name, (version, data) in frozen.items()}
            return {**kept, **fresh}

        return made

    def keep(self, saved: Mapping[str, FrozenFollower]) -> None:
        """Remember what the newest snapshot holds."""
        self._saved = dict(saved)

    def thaw(self, saved: Mapping[str, FrozenFollower]) -> dict[str, int]:
        """Take the states of a snapshot; returns the first number that each follower has not seen."""
        self.clear()
        self._saved = dict(saved)
        firsts: dict[str, int] = {}
        for name, follower in self._followers.items():
            one = saved.get(name)
            firsts[name] = 0
            with self._aside(follower):
                if one is not None and one.version == follower.version:
                    follower.thaw(one.data, one.number)
                    firsts[name] = one.number + 1
        return firsts

    def replay(self, rows: pl.DataFrame, moment: LogMoment, firsts: Mapping[str, int]) -> None:
        """`apply` for those who have not seen this number."""
        for name, follower in self._followers.items():
            if moment.number >= firsts[name]:
                with self._aside(follower):
                    wanted = self._wanted(follower, rows)
                    if wanted.height:
                        follower.apply(wanted, moment)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _wanted(self, follower: LaneFollower, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows a follower sees; the frame itself where it sees all."""
        if follower.name in self._stale:
            return NO_ROWS
        if not (rows["kind"].to_numpy() == int(RowKind.USAGE)).any():
            return rows  # decisions alone, such as a test clock that moves on: no filter for each follower
        tenants = rows["tenant"].unique().to_list()
        watched = [tenant for tenant in tenants if follower.watches(tenant)]
        if len(watched) == len(tenants):
            return rows
        decided = pl.col("kind") != int(RowKind.USAGE)
        return rows.filter(decided | pl.col("tenant").is_in(watched) if watched else decided)

    def _aside(self, follower: LaneFollower) -> _Aside:
        return _Aside(self._stale, self._errors, follower.name)


class _Aside:
    """Puts a follower aside when it raises: a fault of one state must not stop the lane, nor show half a state."""

    def __init__(self, stale: set[str], errors: dict[str, str], name: str) -> None:
        self._stale, self._errors, self._name = stale, errors, name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        # Polars' PanicException is no Exception; what ends the process (KeyboardInterrupt, SystemExit) goes on.
        if isinstance(error, (Exception, pl.exceptions.PanicException)):
            self._stale.add(self._name)
            self._errors[self._name] = f"{type(error).__name__}: {error}"
            return True
        return False


def forgotten(ids: Sequence[str]) -> Conflict:
    """A decision took ids that the log has, though its follower no longer knows the verdict."""
    named = ", ".join(ids[:3])
    return Conflict(f"The id {named} was used before, and its verdict is no longer kept. Use a new id.")
