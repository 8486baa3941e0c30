"""Ray's shell around a rating shard: a detached named actor per lane, bytes in and out.

`RatingShard` holds the logic and does not know Ray. Calls are not retried by Ray: one that a crash cut off may already
have been committed; the router repeats it with the same ids.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import ray

from actors.rating_shard import RatingShard, ShardSettings, ShardStatus
from actors.shard_followers import shard_followers
from storage import telemetry
from storage.master_chain import MasterChain
from storage.object_store import StoreAddress

CALLS_MAX = 16  # threads; a waiting call holds one


def shard_name(lane: int) -> str:
    return f"rating-shard-{lane}"


@ray.remote(
    max_restarts=-1,
    max_task_retries=0,
    num_cpus=0,  # placed by the supervisor, never refused because bill-run tasks hold all cores
    concurrency_groups={"commit": CALLS_MAX, "decide": CALLS_MAX, "query": 4, "health": 1},
)
class RatingShardActor:
    """Recovers and claims its lane before the first call is served."""

    def __init__(self, lane: int, address: StoreAddress, settings: ShardSettings, cache_directory: str) -> None:
        store = address.open()
        master = MasterChain(store)
        self._shard = RatingShard(
            lane,
            store,
            settings=settings,
            master=master,
            followers=shard_followers(lane, master, store),
            cache_directory=Path(cache_directory),
        )
        self._shard.start()
        # Behind the claim: what tells of the shard must not keep the lane waiting.
        threading.Thread(target=telemetry.start, args=(shard_name(lane),), name="telemetry", daemon=True).start()

    @ray.method(concurrency_group="commit")
    def ingest(self, data: bytes) -> bytes:
        return self._shard.ingest(data)

    @ray.method(concurrency_group="decide")
    def decide(self, data: bytes) -> bytes:
        return self._shard.decide_named(data).result()

    @ray.method(concurrency_group="query")
    def usage(
        self, tenant_id: str, keys: list[str] | None, master_number: int
    ) -> tuple[bytes | None, int, int, bytes, tuple[tuple[int, int, int], ...]]:
        """Encoded live state (None: nothing), the lane's number it goes to, the master number, partitions (bits), and
        of those that have moved the generation and the lane."""
        figures = self._shard.usage(tenant_id, keys, master_number)
        live = None if figures.live is None else figures.live.to_bytes()
        return live, figures.number, figures.master_number, figures.owned, figures.moved

    @ray.method(concurrency_group="query")
    def prepare_move(self, partition: int, from_lane: int, generation: int) -> None:
        self._shard.prepare_move(partition, from_lane, generation)

    @ray.method(concurrency_group="decide")
    def release(self, partition: int, to_lane: int) -> bytes:
        return self._shard.release(partition, to_lane).result()

    @ray.method(concurrency_group="decide")
    def acquire(self, partition: int, from_lane: int) -> bytes:
        return self._shard.acquire(partition, from_lane).result()

    @ray.method(concurrency_group="health")
    def status(self) -> ShardStatus:
        return self._shard.status()

    @ray.method(concurrency_group="health")
    def process_id(self) -> int:
        """For the health page, and for tests that kill it."""
        return os.getpid()

    @ray.method(concurrency_group="health")
    def stop(self) -> None:
        """Commit what is queued and serve no more."""
        self._shard.stop()
