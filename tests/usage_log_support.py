"""What the tests of the usage log share: made-up events, batches as bytes, stores that misbehave on purpose."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from actors.batches import Answer, Block, decode_answer, encode_batch
from actors.rating_shard import RatingShard
from billing.usage import EVENT_SCHEMA
from storage.object_store import ObjectStore, StoreUnavailable
from storage.usage_log.formats import permit_all
from storage.usage_log.genesis import GENESIS_KEY, HASH, NEWEST_IDS, PARTITIONS, Genesis, IdForm, new_seed, open_log
from storage.usage_log.lane import count_lanes, walk
from storage.usage_log.partitions import event_ids, partition_of, partitions_of

TENANT = "0198f0aa-0000-7000-8000-000000000001"
OTHER_TENANT = "0198f0aa-0000-7000-8000-000000000002"


def make_events(rows: int, first: int = 0, *, customers: int = 50, source: str = "gateway") -> pl.DataFrame:
    """Events numbered from `first`: the same number is the same event, whenever it is made."""
    numbers = range(first, first + rows)
    return pl.DataFrame(
        {
            "source": [source] * rows,
            "id": [f"event-{number}" for number in numbers],
            "type": ["storage"] * rows,
            "customer": [f"customer-{number % customers}" for number in numbers],
            "subscription": [None] * rows,
            "time": [datetime(2026, 5, 1 + number % 28, 12, tzinfo=UTC) for number in numbers],
            "data": [f'{{"gb":"{number % 97}.5","region":"eu-{number % 3}"}}' for number in numbers],
        },
        schema=EVENT_SCHEMA,
    )


def make_log(store: ObjectStore, ids: IdForm, *, lanes: int = 1) -> Genesis:
    """A new log whose ids have that form: an old one is as an earlier version of the platform made it."""
    permit_all(store)
    form = {"format": int(ids), "partitions": PARTITIONS, "hash": HASH, "seed": new_seed(), "lanes": lanes}
    assert store.create(GENESIS_KEY, json.dumps(form).encode())
    return open_log(store)


def keys_of_one_partition(seed: int, count: int, tenant_id: str = TENANT) -> list[str]:
    """Customer keys that share a partition, so that one lane sees the events of all of them."""
    found: dict[int, list[str]] = {}
    for number in range(PARTITIONS * count):
        keys = found.setdefault(partition_of(seed, tenant_id, f"key-{number}"), [])
        keys.append(f"key-{number}")
        if len(keys) == count:
            return keys
    raise AssertionError("so many keys do not fit without it")


def encoded(seed: int, events: pl.DataFrame, tenant_id: str = TENANT, ids_of: IdForm = NEWEST_IDS) -> bytes:
    partitions = partitions_of(seed, tenant_id, events["customer"])
    ids = event_ids(seed, tenant_id, events, partitions, ids_of)
    return encode_batch([Block(tenant_id, events.height)], events, partitions, ids)


def send(shard: RatingShard, events: pl.DataFrame, tenant_id: str = TENANT, timeout_s: float = 30.0) -> Answer:
    assert shard.genesis is not None
    data = encoded(shard.genesis.seed, events, tenant_id, shard.genesis.ids)
    return decode_answer(shard.submit(data).result(timeout_s))


def logged_ids(store: ObjectStore, tenant_id: str = TENANT) -> list[str]:
    """The ids of all rows of all lanes, read from the segments one by one: repeats would show."""
    ids: list[str] = []
    for lane in range(count_lanes(store)):
        for segment in walk(store, lane, 0):
            rows = segment.rows(["tenant", "id"])
            ids.extend(rows.filter(pl.col("tenant") == tenant_id)["id"])
    return ids


class Hooked:
    """An object store with a hook before each call; everything else is the real store."""

    def __init__(self, store: ObjectStore, before: Callable[[str, str], None]) -> None:
        self.store = store
        self.before = before

    def create(self, key: str, data: bytes) -> bool:
        self.before("create", key)
        return self.store.create(key, data)

    def get(self, key: str) -> bytes | None:
        self.before("get", key)
        return self.store.get(key)

    def put(self, key: str, data: bytes) -> None:
        self.before("put", key)
        self.store.put(key, data)

    def delete(self, key: str) -> None:
        self.store.delete(key)

    def list(self, prefix: str) -> Iterator[str]:
        return self.store.list(prefix)

    def exists(self, key: str) -> bool:
        self.before("exists", key)
        return self.store.exists(key)

    def settle(self, key: str) -> None:
        self.store.settle(key)

    def local_path(self, key: str) -> Path | None:
        return self.store.local_path(key)


class Network(Hooked):
    """A store behind a bad network, deterministic by its seed: answers get lost, puts get lost, come late or twice."""

    def __init__(self, store: ObjectStore, seed: int, trouble: float = 0.3) -> None:
        super().__init__(store, lambda _what, _key: None)
        self._random = random.Random(seed)
        self._late: list[tuple[str, bytes]] = []
        self.trouble = trouble
        self.troubles = 0

    def create(self, key: str, data: bytes) -> bool:
        self._deliver_some()
        if self._random.random() >= self.trouble:
            return self.store.create(key, data)
        self.troubles += 1
        match self._random.randrange(4):
            case 0:  # stored, the answer is lost
                self.store.create(key, data)
            case 1:  # never arrives
                pass
            case 2:  # arrives later, when nobody waits for it any more
                self._late.append((key, data))
            case _:  # stored, repeated by the client behind our back: 412 for one's own write
                self.store.create(key, data)
                return self.store.create(key, data)
        raise StoreUnavailable(f"no answer about {key}")

    def get(self, key: str) -> bytes | None:
        if self._random.random() < self.trouble / 4:
            raise StoreUnavailable(f"no answer about {key}")
        return self.store.get(key)

    def deliver_all(self) -> None:
        while self._late:
            self.store.create(*self._late.pop(0))

    def _deliver_some(self) -> None:
        while self._late and self._random.random() < 0.3:
            self.store.create(*self._late.pop(self._random.randrange(len(self._late))))
