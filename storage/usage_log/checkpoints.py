"""Checkpoints of a lane: its state after a number, and the ids up to it as a run, announced in one manifest entry.

Owns the bytes of a snapshot and the order: run, snapshot, then the entry that names both. A crash in between leaves
objects that nobody names. Recovery takes snapshot and runs from one entry, so an id is in the runs or in the tail.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from uuid import uuid4

from billing.errors import BillingError
from storage.object_store import ObjectStore, StoreUnavailable
from storage.usage_log.formats import check_readable
from storage.usage_log.id_runs import merge_runs, sort_ids, to_merge, write_run
from storage.usage_log.lane import LanePosition
from storage.usage_log.manifest import Manifest, ManifestChain, Snapshot
from storage.usage_log.partitions import EventIds
from storage.usage_log.run_cache import RunCache

FORMAT = 2


class RowsErased(BillingError):
    """Rows were erased since this state was folded: it is not kept, and its lane folds again from what is left."""

    code, status, title, retryable = "rows_erased", 503, "Rows were erased; the lane folds again", True


@dataclass(frozen=True)
class FrozenFollower:
    """A follower's state after a number; the log does not look inside."""

    version: int
    number: int
    data: bytes


@dataclass(frozen=True)
class LaneSnapshot:
    lane: int
    position: LanePosition
    lane_of: Sequence[int]  # partition -> the lane this lane believes to own it
    generation: Sequence[int]
    figures: bytes  # of the shard's live figures; the log does not look inside
    followers: Mapping[str, FrozenFollower] = field(default_factory=dict)  # by name

    def to_bytes(self) -> bytes:
        head = json.dumps(
            {
                "format": FORMAT,
                "lane": self.lane,
                "position": asdict(self.position),
                "lane_of": list(self.lane_of),
                "generation": list(self.generation),
                "followers": [[name, one.version, one.number, len(one.data)] for name, one in self.followers.items()],
            }
        ).encode()
        states = [one.data for one in self.followers.values()]
        return b"".join([len(head).to_bytes(4, "little"), head, *states, self.figures])

    @classmethod
    def from_bytes(cls, data: bytes) -> LaneSnapshot:
        end = 4 + int.from_bytes(data[:4], "little")
        head = json.loads(data[4:end])
        check_readable("snapshot", head["format"])
        position = LanePosition(**head["position"])
        followers: dict[str, FrozenFollower] = {}
        for name, version, number, length in head.get("followers", ()):  # format 1 had none
            followers[name] = FrozenFollower(version, number, data[end : end + length])
            end += length
        return cls(head["lane"], position, head["lane_of"], head["generation"], data[end:], followers)


def read_snapshot(store: ObjectStore, key: str) -> LaneSnapshot:
    data = store.get(key)
    if data is None:
        raise StoreUnavailable(f"{key} is named by the manifest and not there: a newer entry may know more.")
    return LaneSnapshot.from_bytes(data)


def announce(
    store: ObjectStore, chain: ManifestChain, snapshot: LaneSnapshot, ids: EventIds, erasures: int = 0
) -> Manifest:
    """Store a snapshot and the ids it no longer needs, then the manifest entry that names both.

    `erasures` is what the entry said from which the state was begun. RowsErased if there were more since: what was
    erased may be in the state, so no entry names it, and it is deleted here.
    """
    lane, number = snapshot.lane, snapshot.position.number
    runs = (write_run(store, sort_ids(ids)),) if len(ids) else ()
    key = f"log/snapshots/{lane:04}/{number:012}-{uuid4().hex}.snapshot"
    store.put(key, snapshot.to_bytes())

    def change(base: Manifest) -> Manifest:
        if base.erasures != erasures:
            raise RowsErased(f"lane {lane} was folded before rows were erased")
        known = base.snapshots.get(lane)
        newer = known is not None and known.number >= number  # a successor's: keep it, our ids do no harm
        return replace(
            base,
            snapshots=base.snapshots if newer else {**base.snapshots, lane: Snapshot(key, number)},
            ids_to={**base.ids_to, lane: max(base.ids_covered(lane), number)},
            runs=(*base.runs, *runs),
        )

    try:
        return chain.append(change)
    except RowsErased:
        store.delete(key)
        raise


def merge_id_runs(store: ObjectStore, chain: ManifestChain, cache: RunCache) -> Manifest | None:
    """Replace four runs of a size by one. The old files go an hour later: a shard that has them open reads on."""
    group = to_merge(chain.newest().runs)
    if not group:
        return None
    merged = merge_runs(store, group, cache)

    def change(base: Manifest) -> Manifest | None:
        if not set(group) <= set(base.runs):
            return None  # another process merged them first; ours is an orphan
        return replace(base, runs=(*(run for run in base.runs if run not in group), merged))

    return chain.append(change)
