"""The first object of a usage log: format, number of partitions, secret seed of the hashes, number of first lanes.

Created once if absent, never changed: every hash of the log rests on it.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass

from storage.object_store import ObjectStore, StoreUnfit, probe
from storage.usage_log.formats import declare_reader, permit_all

FORMAT = 1
PARTITIONS = 256
LANES_MAX = 256
GENESIS_KEY = "log/genesis.json"
HASH = "xxh3-128"


@dataclass(frozen=True)
class Genesis:
    seed: int  # secret: who knows it could make ids collide on purpose
    lanes: int  # partition p starts in lane p mod lanes; later moves are records in the lanes

    def first_lane(self, partition: int) -> int:
        return partition % self.lanes


def new_seed() -> int:
    """What keys and ids are hashed with: secret, so that nobody can make them meet on purpose."""
    return secrets.randbits(63)


def open_log(store: ObjectStore, *, lanes: int = 1) -> Genesis:
    """The log's genesis, created with `lanes` lanes if there is none. Probes the store first, every time."""
    assert 1 <= lanes <= LANES_MAX, lanes
    probe(store)
    genesis = read_genesis(store)
    if genesis is None:
        form = {
            "format": FORMAT,
            "partitions": PARTITIONS,
            "hash": HASH,
            "seed": new_seed(),
            "lanes": lanes,
        }
        permit_all(store)  # before the log is there: whoever opens it later declares what it reads
        store.create(GENESIS_KEY, json.dumps(form).encode())  # a lost race is fine: the winner's counts
        genesis = read_genesis(store)
        assert genesis is not None, "the genesis vanished right after it was created"
    store.settle(GENESIS_KEY)
    declare_reader(store)
    return genesis


def read_genesis(store: ObjectStore) -> Genesis | None:
    """The log's genesis; None where there is no log yet."""
    data = store.get(GENESIS_KEY)
    if data is None:
        return None
    form = json.loads(data)
    if form["format"] != FORMAT or form["partitions"] != PARTITIONS or form["hash"] != HASH:
        raise StoreUnfit(f"This usage log has format {form['format']}; this version reads format {FORMAT}.")
    return Genesis(seed=form["seed"], lanes=form["lanes"])
