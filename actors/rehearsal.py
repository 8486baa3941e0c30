"""The short life of a shard in a folder of its own, so that the process has done all of it once before it counts.

What a new process is slow at is whatever it does for the first time: modules that load when they are wanted, threads
and code paths of Polars and Arrow. Nothing of a rehearsal leaves its folder.
"""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from actors.batches import Block, encode_batch
from actors.rating_shard import RatingShard, ShardSettings
from actors.shard_followers import shard_followers
from billing.usage import EVENT_SCHEMA
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore
from storage.usage_log.partitions import event_ids, partitions_of

ROWS = 1_000
KEEPING_S_MAX = 5.0
_TENANT = "rehearsal"


def rehearse() -> None:
    """Recover, claim, store usage, keep a snapshot; then the same as a successor, which has something to read."""
    # A snapshot may still be on its way to the folder when that goes.
    with tempfile.TemporaryDirectory(prefix="cb-rehearsal-", ignore_cleanup_errors=True) as folder:
        store = LocalObjectStore(Path(folder) / "store")
        for life in range(2):
            master = MasterChain(store)
            shard = RatingShard(
                0,
                store,
                settings=ShardSettings(checkpoint_rows=1),
                master=master,
                followers=shard_followers(0, master, store),
                cache_directory=Path(folder) / "cache",
            )
            shard.start()
            try:
                assert shard.genesis is not None
                log, events = shard.genesis, _events(life)
                partitions = partitions_of(log.seed, _TENANT, events["customer"])
                ids = event_ids(log.seed, _TENANT, events, partitions, log.ids)
                shard.ingest(encode_batch([Block(_TENANT, events.height)], events, partitions, ids))
                # Not joined: it is noted before it is started, and forgets itself when it is through.
                deadline = time.monotonic() + KEEPING_S_MAX
                while shard.state.checkpoint_thread is not None and time.monotonic() < deadline:
                    time.sleep(0.01)
            finally:
                shard.stop()


def _events(life: int) -> pl.DataFrame:
    numbers = [str(life * ROWS + number) for number in range(ROWS)]
    columns = {
        "source": ["rehearsal"] * ROWS,
        "id": numbers,
        "type": ["rehearsal"] * ROWS,
        "customer": numbers,
        "subscription": [None] * ROWS,
        "time": [datetime(2026, 1, 1, tzinfo=UTC)] * ROWS,
        "data": ['{"quantity":"1.5"}'] * ROWS,
    }
    return pl.DataFrame(columns, schema=EVENT_SCHEMA)
