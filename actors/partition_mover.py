"""Moves partitions between lanes, finishes moves that somebody left half done, and spreads partitions. No Ray in here.

Owns the order of the calls only: what is true the logs say, so two movers at once do no harm. A move that died between
its two records is finished by whoever looks next: nobody has the partition, and the old lane's record names the new.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from actors.decisions import decode_decided
from actors.lane_spread import even_moves
from actors.rating_shard import ShardStatus
from billing.errors import BillingError, Conflict, Unavailable


class LaneCalls(Protocol):
    """The shards by their lanes. Each call answers within its own time limit, or raises Unavailable."""

    def prepare_move(self, lane: int, partition: int, from_lane: int, generation: int) -> None: ...

    def release(self, lane: int, partition: int, to_lane: int) -> bytes: ...

    def acquire(self, lane: int, partition: int, from_lane: int) -> bytes: ...

    def close_lane(self, lane: int, arrived: Mapping[int, int]) -> bytes: ...


def move_partition(
    calls: LaneCalls, partition: int, from_lane: int, to_lane: int, generation: int
) -> Mapping[str, Any]:
    """Move a partition; answers its generation. Raises Conflict where it cannot go, Unavailable where it is unknown.

    `generation` is how often it has moved before, as its lane says: by a wrong one the pause is longer, nothing else.
    It may be called again at any time: each of its steps does nothing where that has been done.
    """
    calls.prepare_move(to_lane, partition, from_lane, generation)
    _body(calls.release(from_lane, partition, to_lane))
    return _body(calls.acquire(to_lane, partition, from_lane))


def owner_among(statuses: Iterable[ShardStatus], partition: int, to_lane: int) -> ShardStatus:
    """Who has a partition that is to go to a lane, as far as lanes answer: others are not asked for.

    A lane that is being replaced holds up its own partitions, not those of all others. Whoever says here that it has a
    partition and lost it meanwhile cannot release it: its next number is taken. Raises Unavailable where the owner or
    the target is not among those that answer; a partition released to a lane that is not there would be nobody's.
    """
    known = list(statuses)
    owners = [status for status in known if partition in status.owned]
    if not owners:
        raise Unavailable(f"Nobody who answers has partition {partition} at the moment. Send the same again.")
    if not any(status.lane == to_lane for status in known):
        raise Unavailable(f"Lane {to_lane} does not answer. Send the same again.")
    return max(owners, key=lambda status: status.generation_of(partition))


def half_moved(statuses: Iterable[ShardStatus]) -> list[tuple[int, int, int]]:
    """(partition, from lane, to lane) of moves that are released and not acquired. All lanes must be among them."""
    known = list(statuses)
    owned = {partition for status in known for partition in status.owned}
    newest: dict[int, tuple[int, int, int]] = {}  # partition -> generation, from lane, to lane
    for status in known:
        for partition, generation, to_lane in status.released:
            if partition not in owned and generation > newest.get(partition, (-1, 0, 0))[0]:
                newest[partition] = generation, status.lane, to_lane
    return [(partition, from_lane, to_lane) for partition, (_, from_lane, to_lane) in sorted(newest.items())]


def finish(calls: LaneCalls, statuses: Iterable[ShardStatus], closed: Collection[int] = ()) -> list[str]:
    """Finish what is half moved; what went wrong, in words. Where the target was closed meanwhile, it goes back."""
    wrong: list[str] = []
    for partition, from_lane, to_lane in half_moved(statuses):
        try:
            _body(calls.acquire(from_lane if to_lane in closed else to_lane, partition, from_lane))
        except BillingError as error:  # the next look tries again
            wrong.append(f"partition {partition}: {error.detail}")
    return wrong


def arrived(statuses: Iterable[ShardStatus]) -> dict[int, int]:
    """With which generation partitions have been acquired somewhere, at least: facts of the lanes' logs, for ever."""
    found: dict[int, int] = {}
    for status in statuses:
        for partition, generation in status.came:
            found[partition] = max(found.get(partition, 0), generation)
        for partition, generation, _ in status.released:  # who lets go had acquired before
            found[partition] = max(found.get(partition, 0), generation - 1)
    return found


def close_lane(calls: LaneCalls, statuses: Sequence[ShardStatus], lane: int) -> None:
    """End a lane that has no partitions, for good. Raises Conflict where something may still ask for it.

    It may be called again at any time. What others release to it meanwhile, they take back (`finish`).
    """
    _body(calls.close_lane(lane, arrived(status for status in statuses if status.lane != lane)))


def spreading(statuses: Sequence[ShardStatus], lanes: Sequence[int]) -> list[tuple[int, int, int]]:
    """(partition, from lane, to lane): the fewest moves after which exactly these lanes share all partitions."""
    return even_moves({status.lane: status.owned for status in statuses}, lanes)


def _body(answer: bytes) -> Mapping[str, Any]:
    decided = decode_decided(answer)
    if decided.error is not None:
        raise decided.error
    if decided.owner is not None:
        raise Conflict(f"the partition is in lane {decided.owner[1]}")
    body: Mapping[str, Any] = json.loads(decided.body)
    return body
