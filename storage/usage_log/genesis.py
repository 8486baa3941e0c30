"""The first object of a usage log: format, number of partitions, secret seed of the hashes, what an id is made of.

Created once if absent, never changed: every hash of the log rests on it.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from enum import IntEnum

from storage.object_store import ObjectStore, StoreUnfit, probe
from storage.usage_log.formats import declare_reader, permit_all

PARTITIONS = 256
LANES_MAX = 256
GENESIS_KEY = "log/genesis.json"
HASH = "xxh3-128"


class IdForm(IntEnum):
    """Which parts the id of an event is hashed over: the format of the log. A log keeps its form for ever, for an event
    that is sent again must hash like its first try, years later too."""

    OF_TENANT = 1  # tenant, source, id: two customer keys of one partition cannot both have an id
    OF_CUSTOMER = 2  # tenant, customer key, source, id


NEWEST_IDS = IdForm.OF_CUSTOMER  # of a log that is made now


@dataclass(frozen=True)
class Genesis:
    seed: int  # secret: who knows it could make ids collide on purpose
    lanes: int  # partition p starts in lane p mod lanes; later moves are records in the lanes
    ids: IdForm = NEWEST_IDS

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
            "format": int(NEWEST_IDS),  # a version that hashes otherwise refuses the log
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
    known = [int(one) for one in IdForm]
    if form["format"] not in known or form["partitions"] != PARTITIONS or form["hash"] != HASH:
        raise StoreUnfit(f"This usage log has format {form['format']}; this version reads up to format {known[-1]}.")
    return Genesis(seed=form["seed"], lanes=form["lanes"], ids=IdForm(form["format"]))
