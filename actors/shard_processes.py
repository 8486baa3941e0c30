"""Ray's side of shards: their processes as named actors, and how a lane's shard is found.

Names of actors cannot change, and a spare has its name before it has a lane. So a lane has a pointer in Ray's own
key-value store, beside the names of actors and as alive as they are. A pointer decides nothing: calls name the lane
that they are for, and the lane's epochs fence whoever lost it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayActorError, RayError, RayTaskError

# Named experimental for years, and what Ray Serve keeps its own state in. The public API has nothing of the kind.
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.rating_shard import ShardSettings
from actors.rating_shard_actor import RatingShardActor
from actors.spares import Lost, Role, Told
from billing.errors import BillingError, Unavailable
from storage.object_store import StoreAddress

BEAT_TIMEOUT_S = 2.0
TAKE_TIMEOUT_S = 2.0  # a warm one answers in milliseconds
MOVE_TIMEOUT_S = 10.0  # of each call; a move takes some milliseconds
PREPARE_TIMEOUT_S = 60.0  # all that was decided in a partition is read, while it is served
PREFIX = "rating-shard-"
_KV_NAMESPACE = b"cloudbilling"


def name_of(lane: int, namespace: str) -> str | None:
    """The name of the process that is to serve a lane."""
    name: bytes | None = _internal_kv_get(_key(lane, namespace), namespace=_KV_NAMESPACE)
    return None if name is None else name.decode()


def find_shard(lane: int, namespace: str) -> Any:
    """A handle of the lane's shard, which may still be recovering. Raises ValueError where there is none."""
    name = name_of(lane, namespace)
    if name is None:
        raise ValueError(f"lane {lane} has no shard")
    return ray.get_actor(name, namespace=namespace)


def _key(lane: int, namespace: str) -> bytes:
    return f"{namespace}/lane/{lane}".encode()


class RayShardProcesses:
    """`actors.spares.ShardProcesses` over Ray. `bell` rings when a process with a lane has died."""

    def __init__(
        self,
        address: StoreAddress,
        settings: ShardSettings,
        cache_directory: str,
        namespace: str,
        bell: threading.Event,
    ) -> None:
        self._arguments = (address, settings, cache_directory)
        self._namespace = namespace
        self._bell = bell
        self._watched: dict[str, Any] = {}
        self._leaving = f"{namespace}/leaving".encode()

    @staticmethod
    def new_name() -> str:
        return f"{PREFIX}{uuid4().hex[:12]}"

    def names(self) -> Sequence[str]:
        found: list[Any] = list_named_actors(all_namespaces=True)
        return [
            one["name"] for one in found if one["namespace"] == self._namespace and str(one["name"]).startswith(PREFIX)
        ]

    def ask(self, name: str) -> Role | Lost:
        try:
            actor = self._actor(name)
            role: Role = ray.get(actor.role.remote(), timeout=BEAT_TIMEOUT_S)
        except (GetTimeoutError, ActorUnavailableError):  # the latter: the way to it is broken, it may live
            return Lost.SILENT
        except (ValueError, ActorDiedError, RayActorError):
            return Lost.GONE
        if role.lane is not None:
            self._watch(name, actor)
        return role

    def begin(self, name: str, *, lane: int | None = None, node: str | None = None) -> None:
        # Without a node: spread, so that a node that goes takes few lanes with it.
        where: Any = "SPREAD" if node is None else NodeAffinitySchedulingStrategy(node, soft=True)
        RatingShardActor.options(  # pyright: ignore[reportAttributeAccessIssue] - added by ray.remote
            name=name, namespace=self._namespace, lifetime="detached", get_if_exists=True, scheduling_strategy=where
        ).remote(*self._arguments, lane)

    def take(self, name: str, lane: int, *, is_up: bool) -> Told:
        try:
            actor = self._actor(name)
            answer = actor.take.remote(lane)
            if is_up and not ray.get(answer, timeout=TAKE_TIMEOUT_S):
                return Told.OTHER
        except (ValueError, RayError):
            return Told.UNKNOWN
        self._watch(name, actor)
        return Told.YES

    def end(self, name: str) -> None:
        with contextlib.suppress(ValueError, RayError):  # it went by itself meanwhile
            ray.kill(self._actor(name), no_restart=True)

    def name_of(self, lane: int) -> str | None:
        return name_of(lane, self._namespace)

    def point(self, lane: int, name: str) -> None:
        _internal_kv_put(_key(lane, self._namespace), name.encode(), namespace=_KV_NAMESPACE)

    def nodes(self) -> Sequence[str]:
        # A head without processors (ray-cluster.yaml) is to have no shard: nobody replaces it when it dies.
        alive: list[Any] = [node for node in ray.nodes() if node["Alive"]]
        return [node["NodeID"] for node in alive if node["Resources"].get("CPU")] or [node["NodeID"] for node in alive]

    def leaving(self) -> frozenset[str]:
        found: bytes | None = _internal_kv_get(self._leaving, namespace=_KV_NAMESPACE)
        return frozenset(found.decode().split()) if found else frozenset()

    def set_leaving(self, nodes: Collection[str]) -> None:
        _internal_kv_put(self._leaving, " ".join(sorted(nodes)).encode(), namespace=_KV_NAMESPACE)

    def _actor(self, name: str) -> Any:
        return ray.get_actor(name, namespace=self._namespace)

    def _watch(self, name: str, actor: Any) -> None:
        """Have one question open that only its death, or a minute, answers: so a death is heard of at once."""
        if name in self._watched:
            return
        future = self._watched[name] = actor.outlive.remote().future()

        def answered(_: Any) -> None:
            self._watched.pop(name, None)
            self._bell.set()

        future.add_done_callback(answered)


class RayLaneCalls:
    """`actors.partition_mover.LaneCalls` over Ray."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    def prepare_move(self, lane: int, partition: int, from_lane: int, generation: int) -> None:
        self._call(lane, "prepare_move", partition, from_lane, generation, timeout_s=PREPARE_TIMEOUT_S)

    def release(self, lane: int, partition: int, to_lane: int) -> bytes:
        return bytes(self._call(lane, "release", partition, to_lane))

    def acquire(self, lane: int, partition: int, from_lane: int) -> bytes:
        return bytes(self._call(lane, "acquire", partition, from_lane))

    def close_lane(self, lane: int, arrived: Mapping[int, int]) -> bytes:
        return bytes(self._call(lane, "close_lane", dict(arrived)))

    def _call(self, lane: int, name: str, *arguments: Any, timeout_s: float = MOVE_TIMEOUT_S) -> Any:
        try:
            actor = find_shard(lane, self._namespace)
            return ray.get(getattr(actor, name).remote(lane, *arguments), timeout=timeout_s)
        except (ValueError, GetTimeoutError, ActorUnavailableError, RayActorError) as error:
            raise Unavailable(f"Lane {lane} does not answer; whether it did {name} is unknown.") from error
        except RayTaskError as error:  # what the shard raised
            cause = error.cause
            raise cause if isinstance(cause, BillingError) else BillingError(f"lane {lane}: {error}") from error
