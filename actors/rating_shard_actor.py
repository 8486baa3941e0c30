"""Ray's shell around a rating shard: a detached process that serves one lane, at once or when it is told to.

`RatingShard` holds the logic and does not know Ray. Calls are not retried by Ray: one that a crash cut off may already
have been committed; the router repeats it with the same ids. Nor does Ray restart the process: the supervisor hears of
its end at once and has a warm one take the lane (actors/spares.py), which a restart would only claim back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import ray

from actors.batches import encode_answer, failed_answer
from actors.decisions import encode_failure
from actors.rating_shard import RatingShard, ShardSettings
from actors.rehearsal import rehearse
from actors.shard_followers import shard_followers
from actors.spares import Role
from billing.errors import BillingError, Unavailable
from storage import telemetry
from storage.master_chain import MasterChain
from storage.object_store import StoreAddress
from storage.usage_log.manifest import ManifestChain

LOG = logging.getLogger("cloudbilling.lanes")
CALLS_MAX = 16  # threads; a waiting call holds one
WAIT_S = 4.0  # for a lane that is being recovered: its caller then asks again (actors/router.py)
OUTLIVE_S = 60.0


def shard_name(lane: int) -> str:
    """What a lane's shard is called where people watch it."""
    return f"rating-shard-{lane}"


class NotHere(Unavailable):
    """This process does not serve the lane that it was asked for: look up again who does."""


@ray.remote(
    max_restarts=0,
    max_task_retries=0,
    num_cpus=0,  # placed by the supervisor, never refused because bill-run tasks hold all cores
    concurrency_groups={"commit": CALLS_MAX, "decide": CALLS_MAX, "query": 4, "health": 1, "outlive": 1},
)
class RatingShardActor:
    """Has at most one lane in its life. Calls that come while it recovers wait for a while."""

    def __init__(
        self, address: StoreAddress, settings: ShardSettings, cache_directory: str, lane: int | None = None
    ) -> None:
        self._address, self._settings, self._cache = address, settings, Path(cache_directory)
        self._node = ray.get_runtime_context().get_node_id()
        self._lane: int | None = None
        self._shard: RatingShard | None = None
        self._failed = ""
        self._taking = threading.Lock()
        self._known = threading.Event()  # the lane is served, or could not be had
        if lane is None:
            _warm_up(address)
        else:
            self.take(lane)

    @ray.method(concurrency_group="health")
    def take(self, lane: int) -> bool:
        """Begin to serve a lane; whether it is this process's. Telling it again does nothing."""
        with self._taking:
            if self._lane is None:
                self._lane = lane
                threading.Thread(target=self._recover, args=(lane,), name=f"recover-{lane}", daemon=True).start()
            return self._lane == lane

    def _recover(self, lane: int) -> None:
        try:
            store = self._address.open()
            master = MasterChain(store)
            shard = RatingShard(
                lane,
                store,
                settings=self._settings,
                master=master,
                followers=shard_followers(lane, master, store),
                cache_directory=self._cache,
            )
            shard.start()
            self._shard = shard
        except BillingError as error:
            self._failed = f"{error.code}: {error.detail}"
        except BaseException as error:
            self._failed = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._known.set()
        # Behind the claim: what tells of the shard must not keep the lane waiting.
        telemetry.start(shard_name(lane))

    def _serving(self, lane: int) -> RatingShard:
        if self._lane not in (None, lane):
            raise NotHere(f"Lane {lane} is not served here.")
        if not self._known.wait(WAIT_S):
            raise Unavailable(f"Lane {lane} is being recovered.")
        if self._lane != lane or self._shard is None:
            raise NotHere(f"Lane {lane} is not served here.")
        return self._shard

    @ray.method(concurrency_group="commit")
    def ingest(self, lane: int, data: bytes) -> bytes:
        try:
            return self._serving(lane).ingest(data)
        except NotHere:
            raise
        except Unavailable as error:
            return encode_answer(failed_answer(lane, "unavailable", error.detail))

    @ray.method(concurrency_group="decide")
    def decide(self, lane: int, data: bytes) -> bytes:
        try:
            return self._serving(lane).decide_named(data).result()
        except NotHere:
            raise
        except Unavailable as error:
            return encode_failure(error)

    @ray.method(concurrency_group="query")
    def usage(
        self, lane: int, tenant_id: str, keys: list[str] | None, master_number: int
    ) -> tuple[bytes | None, int, int, bytes, tuple[tuple[int, int, int], ...]]:
        """Encoded live state (None: nothing), the lane's number it goes to, the master number, partitions (bits), and
        of those that have moved the generation and the lane."""
        figures = self._serving(lane).usage(tenant_id, keys, master_number)
        live = None if figures.live is None else figures.live.to_bytes()
        return live, figures.number, figures.master_number, figures.owned, figures.moved

    @ray.method(concurrency_group="query")
    def prepare_move(self, lane: int, partition: int, from_lane: int, generation: int) -> None:
        self._serving(lane).prepare_move(partition, from_lane, generation)

    @ray.method(concurrency_group="decide")
    def release(self, lane: int, partition: int, to_lane: int) -> bytes:
        return self._serving(lane).release(partition, to_lane).result()

    @ray.method(concurrency_group="decide")
    def acquire(self, lane: int, partition: int, from_lane: int) -> bytes:
        return self._serving(lane).acquire(partition, from_lane).result()

    @ray.method(concurrency_group="decide")
    def close_lane(self, lane: int, arrived: Mapping[int, int]) -> bytes:
        return self._serving(lane).close_lane(arrived).result()

    @ray.method(concurrency_group="health")
    def role(self) -> Role:
        """At once, whatever else it does."""
        shard = self._shard
        return Role(self._node, self._lane, None if shard is None else shard.status(), self._failed)

    @ray.method(concurrency_group="health")
    def process_id(self) -> int:
        """For the health page, and for tests that kill it."""
        return os.getpid()

    @ray.method(concurrency_group="outlive")
    def outlive(self) -> None:
        """Does nothing for a while: whoever waits for the answer hears at once that the process has died."""
        threading.Event().wait(OUTLIVE_S)

    @ray.method(concurrency_group="health")
    def stop(self) -> None:
        """Commit what is queued and serve no more."""
        if self._shard is not None:
            self._shard.stop()


def _warm_up(address: StoreAddress) -> None:
    """Do once what a lane's first seconds need. A spare is of use without it, so nothing here may keep one away."""
    try:
        rehearse()
    except Exception:
        LOG.exception("the rehearsal of a spare failed: its first seconds with a lane will be slower")
    telemetry.load()
    with contextlib.suppress(BillingError, OSError):
        ManifestChain(address.open()).newest()  # the store's client, and the driver of SQL where that decides
