"""Which process serves a lane, and processes that wait without one: warm spares. No Ray in here.

A process is begun without a lane (a spare) or with one, and has at most one lane in its life, so its name never comes
to mean another lane. **A lane's pointer names its process; it is written before that is told**: whoever dies in between
leaves a pointer to a process that is gone or idle, and the next look starts the lane again. A process that has a lane
whose pointer names another one is left over and is ended. Two that do this at once do no harm: the epochs decide.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol
from uuid import uuid4

from actors.rating_shard import ShardStatus
from actors.supervisor import HUNG_S, STARTING_S_MAX, Beat, Health
from billing.errors import Conflict, NotFound
from storage.usage_log.lane import LaneClosed


@dataclass(frozen=True)
class Role:
    """What a process says of itself."""

    node: str
    lane: int | None = None  # None: it waits for one
    status: ShardStatus | None = None  # None: it is still recovering its lane
    failed: str = ""  # why the lane could not be had


def has_ended(role: Role) -> bool:
    """Whether a process found that its lane is closed, or closed it."""
    why = role.failed or (role.status.stopped_because if role.status is not None else "")
    return why.startswith(LaneClosed.code)


class Lost(Enum):
    GONE = "gone"  # there is no such process any more
    SILENT = "silent"  # it does not answer, or is still starting


class Told(Enum):
    YES = "yes"
    OTHER = "other"  # it has another lane
    UNKNOWN = "unknown"  # no answer; it may have heard it all the same


class ShardProcesses(Protocol):
    """The processes by name, and the lanes' pointers. Each call answers within its own short time limit."""

    def names(self) -> Sequence[str]:
        """Of all that live, starting ones among them."""
        ...

    def ask(self, name: str) -> Role | Lost: ...

    def begin(self, name: str, *, lane: int | None = None, node: str | None = None) -> None:
        """Begin to start one, on a node if that is there; need not wait for it."""
        ...

    def take(self, name: str, lane: int, *, is_up: bool) -> Told:
        """Let it serve a lane: it claims, recovers and serves. One that is not up is told once it is."""
        ...

    def end(self, name: str) -> None:
        """End it for good, however it resists."""
        ...

    def name_of(self, lane: int) -> str | None: ...

    def point(self, lane: int, name: str) -> None: ...

    def nodes(self) -> Sequence[str]:
        """Those where shards may be, by id."""
        ...

    def leaving(self) -> frozenset[str]:
        """Nodes that are about to leave, as `set_leaving` said last: of this supervisor or of one before it."""
        ...

    def set_leaving(self, nodes: Collection[str]) -> None: ...


@dataclass(frozen=True)
class _Spare:
    node: str  # "": not known yet
    since_s: float  # when it was begun or answered last
    is_up: bool = False


@dataclass
class ShardPlacement:
    """The host of a supervisor's shards (`actors.supervisor.ShardHost`). Its calls may come from several threads."""

    processes: ShardProcesses
    spares_per_node: int = 1
    now_s: Callable[[], float] = time.monotonic
    new_name: Callable[[], str] = lambda: uuid4().hex
    _spares: dict[str, _Spare] = field(default_factory=dict[str, _Spare])
    _nodes: dict[int, str] = field(default_factory=dict[int, str])  # where a lane's shard is, or was last
    _untold: dict[int, str] = field(default_factory=dict[int, str])  # pointed to, up, and without a lane
    _lock: threading.Lock = field(default_factory=threading.Lock)

    # -- lanes --------------------------------------------------------------------------------------------------------

    def beat(self, lane: int) -> Beat:
        """What the process says that the lane's pointer names."""
        name = self.processes.name_of(lane)
        seen = Lost.GONE if name is None else self.processes.ask(name)
        self._untold.pop(lane, None)
        if isinstance(seen, Lost):
            return Beat(Health.SILENT if seen is Lost.SILENT else Health.ABSENT)
        if seen.lane != lane:
            if seen.lane is None and name is not None:  # who pointed to it died before telling it
                self._untold[lane] = name
            return Beat(Health.ABSENT)
        self._nodes[lane] = seen.node
        if has_ended(seen):
            return Beat(Health.CLOSED)
        if seen.failed:
            return Beat(Health.STOPPED, None, seen.failed)
        if seen.status is None:
            return Beat(Health.STARTING)
        return Beat(Health.SERVING if seen.status.serving else Health.STOPPED, seen.status, seen.status.stopped_because)

    def start(self, lane: int) -> None:
        """Let a spare take the lane, the one that is soonest ready; where there is none, begin a process for it."""
        leaving = self.processes.leaving()
        while (name := self._next_spare(lane, leaving)) is not None:
            self.processes.point(lane, name[0])
            match self.processes.take(name[0], lane, is_up=name[1]):
                case Told.YES:
                    return
                case Told.OTHER:  # somebody else gave it a lane meanwhile
                    continue
                case Told.UNKNOWN:  # it may have heard: two would take turns
                    self.processes.end(name[0])
        begun = self.new_name()
        self.processes.point(lane, begun)
        self.processes.begin(begun, lane=lane, node=self._staying(leaving))

    def end(self, lane: int) -> None:
        """End the lane's process."""
        name = self.processes.name_of(lane)
        if name is not None:
            self.processes.end(name)

    # -- nodes that leave ---------------------------------------------------------------------------------------------

    def node_of(self, lane: int) -> str | None:
        """Where the lane's shard is, or was last."""
        return self._nodes.get(lane)

    def leaving(self) -> frozenset[str]:
        return self.processes.leaving()

    def leave(self, node: str, *, leaves: bool) -> None:
        """Note that a node is about to leave, or that it stays after all. Conflict where no other one would be left."""
        known = set(self.processes.nodes())
        if node not in known:
            raise NotFound(f"there is no node {node!r} for shards; there are: {', '.join(sorted(known))}")
        now = self.processes.leaving() & known  # who has gone is forgotten
        after = now | {node} if leaves else now - {node}
        if not known - after:
            raise Conflict("no node would be left for the lanes")
        self.processes.set_leaving(after)

    def hand_over(self, lanes: Collection[int]) -> int | None:
        """Let a spare elsewhere take one lane of a node that leaves; which one (None: there is none, or no spare yet).

        The process before it loses the lane to the other one's epoch, and is ended when it is found left over. Call it
        while all lanes serve, and again when they do: so one lane at a time waits.
        """
        leaving = self.processes.leaving()
        for lane in sorted(lanes) if leaving else ():
            if self._nodes.get(lane) in leaving:
                with self._lock:
                    is_ready = any(one.is_up and one.node not in leaving for one in self._spares.values())
                if not is_ready:
                    return None
                self.start(lane)
                return lane
        return None

    def _staying(self, leaving: frozenset[str]) -> str | None:
        """A node that stays; None while none leaves: then shards are spread over all."""
        return min(set(self.processes.nodes()) - leaving, default=None) if leaving else None

    def _next_spare(self, lane: int, leaving: frozenset[str]) -> tuple[str, bool] | None:
        """A spare's name and whether it is up; it is a spare no more."""
        with self._lock:
            untold = self._untold.pop(lane, None)
            if untold is not None:
                self._spares.pop(untold, None)
                return untold, True
            spares = {name: one for name, one in self._spares.items() if one.node not in leaving}
            if not spares:
                return None
            home = self._nodes.get(lane)
            # One that is still starting is sooner there than one that is begun now.
            name = min(spares, key=lambda one: (not spares[one].is_up, spares[one].node != home, one))
            return name, self._spares.pop(name).is_up

    # -- spares -------------------------------------------------------------------------------------------------------

    def look(self, lanes: Collection[int]) -> None:
        """Find the spares there are, and end what is left over: for whoever starts as well as from time to time.

        `lanes` are those that are to be served.
        """
        names = list(self.processes.names())
        pointed = self._pointed(lanes)
        for name in names:
            if name not in pointed:
                self._look_at(name, lanes)
        with self._lock:
            for taken in pointed.intersection(self._spares):  # by another supervisor
                del self._spares[taken]
            for gone in set(self._spares) - set(names):
                # One that was begun after the names were read is not among them yet.
                if self._spares[gone].is_up or self.now_s() - self._spares[gone].since_s > HUNG_S:
                    del self._spares[gone]

    def keep(self, lanes: Collection[int]) -> None:
        """As many spares as asked for on each node that has shards, none elsewhere. Call it while all lanes serve:
        starting a process costs what a lane that recovers needs. While a node leaves there is one elsewhere, too."""
        self.look(lanes)
        leaving = self.processes.leaving()
        used = {self._nodes[lane] for lane in lanes if lane in self._nodes}
        nodes, most = used - leaving, self.spares_per_node
        if used & leaving:
            most = max(1, most)
            nodes = nodes or {node for node in (self._staying(leaving),) if node is not None}
        begin: list[tuple[str, str]] = []
        end: list[str] = []
        with self._lock:
            found: Counter[str] = Counter()
            for name, spare in sorted(self._spares.items()):  # sorted: two that do this end the same ones
                found[spare.node] += 1
                if spare.node and (found[spare.node] > most or spare.node not in nodes):
                    end.append(name)
            for name in end:
                del self._spares[name]
            unknown = found[""]  # still starting, begun by a supervisor before this one: wherever they are
            for node in sorted(nodes):
                missing = max(0, most - found[node])
                unknown, missing = max(0, unknown - missing), max(0, missing - unknown)
                for _ in range(missing):
                    begin.append((self.new_name(), node))
                    self._spares[begin[-1][0]] = _Spare(node, self.now_s())
        for name in end:
            self.processes.end(name)
        for name, node in begin:
            self.processes.begin(name, node=node)

    def end_all(self) -> None:
        """End all processes, those with lanes and the spares."""
        with self._lock:
            self._spares.clear()
        for name in self.processes.names():
            self.processes.end(name)

    def spares(self) -> tuple[tuple[str, str, bool], ...]:
        """Name, node and whether it is up, of each."""
        with self._lock:
            return tuple((name, one.node, one.is_up) for name, one in sorted(self._spares.items()))

    def _pointed(self, lanes: Collection[int]) -> set[str]:
        return {name for lane in lanes if (name := self.processes.name_of(lane)) is not None}

    def _look_at(self, name: str, lanes: Collection[int]) -> None:
        """A process that no pointer named a moment ago."""
        seen, now_s = self.processes.ask(name), self.now_s()
        is_left_over = False
        with self._lock:
            known = self._spares.get(name)
            match seen:
                case Lost.GONE:
                    self._spares.pop(name, None)
                case Lost.SILENT:
                    known = known or _Spare("", now_s)
                    self._spares[name] = known
                    is_left_over = now_s - known.since_s > (HUNG_S if known.is_up else STARTING_S_MAX)
                case Role(lane=None):
                    self._spares[name] = replace(known or _Spare("", now_s), node=seen.node, since_s=now_s, is_up=True)
                case Role():  # it was given a lane before the look, or it has been superseded
                    self._spares.pop(name, None)
                    is_left_over = True
            serves = isinstance(seen, Role) and seen.lane is not None and not has_ended(seen)
            if name in self._pointed(lanes) or (serves and self.processes.name_of(seen.lane) == name):
                self._spares.pop(name, None)  # given a lane while it was looked at, or one that we do not know of
                return
            if is_left_over:
                self._spares.pop(name, None)
        if is_left_over:
            self.processes.end(name)
