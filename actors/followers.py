"""Followers of a lane: states that are a fold of its committed rows, and the decisions that rest on them. No Ray here.

Owns the seam between the lane's one writer (actors/rating_shard.py) and what decides there: reservations, budgets, test
clocks, corrections. A decision runs on the commit thread, on committed rows and the earlier rows of its group; what it
decides is written as rows, answered after they are COMMITTED, and folded again after a crash. Nothing else is truth.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from storage.usage_log.segment import ROW_SCHEMA, Control, RowKind

NO_ROWS = pl.DataFrame(schema=ROW_SCHEMA)
TENANT_AGAIN_S_FIRST, TENANT_AGAIN_S_MAX = 10.0, 640.0


def _nobody_asked(_: str, __: Sequence[tuple[str, str, str]]) -> list[bool]:
    raise AssertionError("only a decision may ask which ids are recorded")


def _nobody_sends(_: str, __: pl.DataFrame, ___: str, ____: Sequence[str]) -> JudgedRows:
    raise AssertionError("only a decision takes events of a backfill")


def _no_figures(_: str, __: Sequence[str], ___: int) -> LiveState | None:
    raise AssertionError("only a decision in a shard with master data may ask for usage")


def _all_here(_: str, __: Sequence[str]) -> Mapping[int, tuple[int, int]]:
    return {}


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
    # (tenant, keys) -> of their partitions those that are in other lanes: generation and lane.
    elsewhere: Callable[[str, Sequence[str]], Mapping[int, tuple[int, int]]] = _all_here

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
    controls: Sequence[Control] = ()  # records of the lane itself, in the same segment
    partition: int = -1  # where the rows lie, if that does not follow from their customers
    log_time_us: int = 0  # the segment's is not below it
    clocks: Mapping[str, int] = field(default_factory=dict)  # of test tenants, as they come with a partition
    after: Callable[[int], None] | None = None  # once it is COMMITTED under this number, before anybody is answered


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


LiesIn = Callable[[str, Sequence[str]], npt.NDArray[np.bool_]]


@runtime_checkable
class Moving(Protocol):
    """A follower that keeps state by customer key, which goes where the key's partition goes."""

    def leave(self, lies_in: LiesIn) -> None:
        """Forget what belongs to keys of a partition: `lies_in(tenant, keys)` says which. It may come again."""
        ...


Parts = Sequence[tuple[pl.DataFrame, LogMoment]]  # rows of one tenant in the order of the log, segment by segment


@runtime_checkable
class Carrying(Protocol):
    """A follower whose state is too dear to fold again where a partition comes: whoever lets it go writes it down."""

    def parting(self, lies_in: LiesIn, moment: LogMoment) -> Sequence[pl.DataFrame]:
        """Rows that say what leaves; they stand in the segment of the release, and are applied before `leave`."""
        ...

    def coming(self, tenant_id: str, parting: Parts, moment: LogMoment) -> pl.DataFrame:
        """Rows to stand beside the acquisition, applied after `arrive`; by those of the release alone."""
        ...

    def arrive(self, tenant_id: str, parts: Parts, parting: Parts, moment: LogMoment) -> None:
        """Instead of `apply`: what was decided in the partition before, and of that the rows of the release."""
        ...


@runtime_checkable
class Staying(Protocol):
    """A follower whose state cannot move yet: while it holds any of a partition, that stays in its lane."""

    def holds(self, lies_in: LiesIn) -> bool: ...


@runtime_checkable
class KeepingLane(Protocol):
    """A follower that may be asked for something of this lane itself, whoever has the partitions."""

    def keeps_lane(self) -> bool: ...


@runtime_checkable
class Homed(Protocol):
    """A follower that must know which partitions are at home in its lane."""

    def places(self, owned: npt.NDArray[np.bool_], moved: npt.NDArray[np.bool_]) -> None:
        """Told at each change, live and at recovery, between the rows before and after it; `moved`: ever, of all."""
        ...


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

    They see rows tenant by tenant: who raises for one is put aside for that tenant alone. What is aside, or saw rows
    which were then not stored, is stale: the shard folds it again from the last snapshot and the log. Until then its
    decisions answer 503, and snapshots carry its last good state.
    """

    def __init__(self, followers: Sequence[LaneFollower], now_s: Callable[[], float] = time.monotonic) -> None:
        self._followers = {follower.name: follower for follower in followers}
        assert len(self._followers) == len(followers), "two followers of one name"
        self._decisions: dict[str, tuple[LaneFollower, Decision]] = {}
        for follower in followers:
            for name, decision in follower.decisions.items():
                assert name not in self._decisions, f"two followers decide {name}"
                self._decisions[name] = follower, decision
        self._now_s = now_s
        self._again_s = TENANT_AGAIN_S_FIRST  # until a tenant's fault is tried again: longer each time it lasts
        self._again_at_s = 0.0
        self.clear()

    def clear(self) -> None:
        for follower in self._followers.values():
            follower.clear()
        self._saved: dict[str, FrozenFollower] = {}
        self._errors: dict[str, str] = {}
        self._stale: set[str] = set()
        self._aside: dict[tuple[str, str], str] = {}  # (follower, tenant): what went wrong

    @property
    def stale(self) -> bool:
        """Whether something should be folded again now. A tenant's fault is tried more and more seldom."""
        return bool(self._stale) or (bool(self._aside) and self._now_s() >= self._again_at_s)

    def is_stale(self, name: str) -> bool:
        return name in self._stale

    @property
    def last_error(self) -> str:
        of_tenants = {f"{name} of tenant {tenant}": error for (name, tenant), error in self._aside.items()}
        return "; ".join(f"{name}: {error}" for name, error in sorted({**self._errors, **of_tenants}.items()))

    def decision(self, name: str) -> Decision:
        """The decision of this name. Raises Unavailable while its follower is stale."""
        follower, decide = self._decisions[name]

        def guarded(tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
            error = self._aside.get((follower.name, tenant_id))
            if follower.name in self._stale:
                error = self._errors.get(follower.name, "it is folded again")
            if error is not None:
                raise Unavailable(f"The state of {follower.name} is not ready ({error}). Send the same again.")
            return decide(tenant_id, payload, moment)

        return guarded

    def knows(self, name: str) -> bool:
        return name in self._decisions

    def watch(self, tenant_ids: Collection[str]) -> bool:
        """Whether anybody wants the USAGE rows of one of these tenants."""
        for follower in self._followers.values():
            for tenant_id in tenant_ids:
                if self._is_well(follower, tenant_id):
                    with self._guard(follower, tenant_id):
                        if follower.watches(tenant_id):
                            return True
        return False

    def due(self) -> list[tuple[str, str]]:
        """What followers want to be asked by the passing of time."""
        found: list[tuple[str, str]] = []
        for name, follower in self._followers.items():
            if isinstance(follower, Ticking) and name not in self._stale:
                found.extend(one for one in follower.due() if (name, one[0]) not in self._aside)
        return found

    def propose(
        self,
        rows: pl.DataFrame,
        moment: LogMoment,
        place: Callable[[pl.DataFrame], tuple[pl.DataFrame, EventIds]],
    ) -> list[tuple[pl.DataFrame, EventIds]]:
        """What each follower proposes, placed by the shard: where that is not possible, it is the follower's fault."""
        found: list[tuple[pl.DataFrame, EventIds]] = []
        parts = _by_tenant(rows)
        for follower in self._followers.values():
            for tenant_id, has_usage, part in parts:
                if self._is_well(follower, tenant_id):
                    with self._guard(follower, tenant_id):
                        wanted = _wanted(follower, tenant_id, has_usage, part)
                        if wanted.height:
                            proposed = follower.propose(wanted, moment)
                            if proposed.height:
                                found.append(place(proposed))
        return found

    def apply(self, rows: pl.DataFrame, moment: LogMoment) -> None:
        self._show(self._followers.values(), rows, moment)

    def not_stored(self) -> None:
        """Rows that were applied are not in the log: what was folded counts no more."""
        self._stale.update(self._followers)

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def freeze(self, number: int) -> Callable[[], dict[str, FrozenFollower]]:
        """The states after a number; of a stale one, or where a tenant is aside, the last that was good."""
        frozen: dict[str, tuple[int, Callable[[], bytes]]] = {}
        kept: dict[str, FrozenFollower] = {}
        half = {name for name, _ in self._aside}
        for name, follower in self._followers.items():
            with self._guard(follower):
                if name not in self._stale and name not in half:
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
            with self._guard(follower):
                if one is not None and one.version == follower.version:
                    follower.thaw(one.data, one.number)
                    firsts[name] = one.number + 1
        return firsts

    def replay(self, rows: pl.DataFrame, moment: LogMoment, firsts: Mapping[str, int]) -> None:
        """`apply` for those who have not seen this number."""
        behind = [follower for name, follower in self._followers.items() if moment.number >= firsts[name]]
        self._show(behind, rows, moment)

    # -- moves --------------------------------------------------------------------------------------------------------

    def places(self, owned: npt.NDArray[np.bool_], moved: npt.NDArray[np.bool_]) -> None:
        """Which partitions are at home in the lane from here on."""
        for follower in self._followers.values():
            if isinstance(follower, Homed):
                with self._guard(follower):
                    follower.places(owned, moved)

    def staying(self, lies_in: LiesIn) -> list[str]:
        """The followers that cannot let a partition go now."""
        found = []
        for name, follower in self._followers.items():
            is_unwell = name in self._stale or any(one == name for one, _ in self._aside)
            if is_unwell or (isinstance(follower, Staying) and follower.holds(lies_in)):
                found.append(name)
        return found

    def keeping_lane(self) -> list[str]:
        """The followers for which this lane may still be asked although it has no partitions."""
        found = []
        for name, follower in self._followers.items():
            is_unwell = name in self._stale or any(one == name for one, _ in self._aside)
            if is_unwell or (isinstance(follower, KeepingLane) and follower.keeps_lane()):
                found.append(name)
        return found

    def leave(self, lies_in: LiesIn, number: int, firsts: Mapping[str, int] | None = None) -> None:
        """A partition goes with this number; `firsts` as for `replay`."""
        for name, follower in self._followers.items():
            if isinstance(follower, Moving) and (firsts is None or number >= firsts[name]):
                with self._guard(follower):
                    follower.leave(lies_in)

    def parting(self, lies_in: LiesIn, moment: LogMoment) -> list[pl.DataFrame]:
        """What followers write down of a partition that goes."""
        return [
            frame
            for follower in self._followers.values()
            if isinstance(follower, Carrying)
            for frame in follower.parting(lies_in, moment)
        ]

    def coming(self, parting: Parts, moment: LogMoment) -> list[pl.DataFrame]:
        """What followers write beside the acquisition of a partition, by the rows of its release."""
        return [
            rows
            for follower in self._followers.values()
            if isinstance(follower, Carrying)
            for tenant_id, parts in _parts_by_tenant(parting).items()
            if (rows := follower.coming(tenant_id, parts, moment)).height
        ]

    def arrive(
        self, luggage: Parts, parting: Parts, moment: LogMoment, firsts: Mapping[str, int] | None = None
    ) -> None:
        """A partition comes with this number: what was decided in it before, in order, and beside its release."""
        behind = [one for name, one in self._followers.items() if firsts is None or moment.number >= firsts[name]]
        released = _parts_by_tenant(parting)
        for tenant_id, parts in _parts_by_tenant(luggage).items():
            for follower in behind:
                if isinstance(follower, Carrying) and self._is_well(follower, tenant_id):
                    with self._guard(follower, tenant_id):
                        follower.arrive(tenant_id, parts, released.get(tenant_id, ()), moment)
        plain = [one for one in behind if not isinstance(one, Carrying)]
        for rows, at in luggage:
            self._show(plain, rows, at)

    def folded_again(self) -> None:
        """All that the log has was replayed: what is aside now is so by the log itself, and is tried later."""
        if self._aside:
            self._again_at_s = self._now_s() + self._again_s
            self._again_s = min(2 * self._again_s, TENANT_AGAIN_S_MAX)
        else:
            self._again_s = TENANT_AGAIN_S_FIRST

    # -- inside -------------------------------------------------------------------------------------------------------

    def _show(self, followers: Iterable[LaneFollower], rows: pl.DataFrame, moment: LogMoment) -> None:
        parts = _by_tenant(rows)
        for follower in followers:
            for tenant_id, has_usage, part in parts:
                if self._is_well(follower, tenant_id):
                    with self._guard(follower, tenant_id):
                        wanted = _wanted(follower, tenant_id, has_usage, part)
                        if wanted.height:
                            follower.apply(wanted, moment)

    def _is_well(self, follower: LaneFollower, tenant_id: str) -> bool:
        return follower.name not in self._stale and (follower.name, tenant_id) not in self._aside

    def _guard(self, follower: LaneFollower, tenant_id: str | None = None) -> _Guard:
        return _Guard(self, follower.name, tenant_id)

    def put_aside(self, name: str, tenant_id: str | None, error: str) -> None:
        """A follower for a tenant, or (None) for all."""
        if tenant_id is None:
            self._stale.add(name)
            self._errors[name] = error
        else:
            self._aside[name, tenant_id] = error


def _by_tenant(rows: pl.DataFrame) -> list[tuple[str, bool, pl.DataFrame]]:
    """Tenant, whether there is usage among its rows, its rows in order."""
    is_usage = rows["kind"].to_numpy() == int(RowKind.USAGE)
    tenants = rows["tenant"]
    if rows.height == 1 or tenants.n_unique() == 1:
        return [(tenants[0], bool(is_usage.any()), rows)]
    parts = rows.partition_by("tenant", as_dict=True, maintain_order=True)
    return [
        (str(tenant_id), bool((part["kind"].to_numpy() == int(RowKind.USAGE)).any()), part)
        for (tenant_id,), part in parts.items()
    ]


def _parts_by_tenant(parts: Parts) -> dict[str, list[tuple[pl.DataFrame, LogMoment]]]:
    found: dict[str, list[tuple[pl.DataFrame, LogMoment]]] = {}
    for rows, moment in parts:
        found.setdefault(str(rows["tenant"][0]), []).append((rows, moment))
    return found


def _wanted(follower: LaneFollower, tenant_id: str, has_usage: bool, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows a follower sees; the frame itself where it sees all."""
    if not has_usage or follower.watches(tenant_id):
        return rows
    return rows.filter(pl.col("kind") != int(RowKind.USAGE))


class _Guard:
    """Puts a follower aside when it raises: a fault of one state must not stop the lane, nor show half a state."""

    def __init__(self, owner: FollowerSet, name: str, tenant_id: str | None) -> None:
        self._owner, self._name, self._tenant_id = owner, name, tenant_id

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        # Polars' PanicException is no Exception; what ends the process (KeyboardInterrupt, SystemExit) goes on.
        if isinstance(error, (Exception, pl.exceptions.PanicException)):
            self._owner.put_aside(self._name, self._tenant_id, f"{type(error).__name__}: {error}")
            return True
        return False


def forgotten(ids: Sequence[str]) -> Conflict:
    """A decision took ids that the log has, though its follower no longer knows the verdict."""
    named = ", ".join(ids[:3])
    return Conflict(f"The id {named} was used before, and its verdict is no longer kept. Use a new id.")
