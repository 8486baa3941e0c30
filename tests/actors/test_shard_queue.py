"""Who waits in front of a lane: groups are shared by bytes, whoever came first and whatever he has had before."""

from __future__ import annotations

from concurrent.futures import Future

from actors.followers import Decided, LogMoment
from actors.shard_queue import DecisionItem, FairQueue

KB = 1_024


def item(tenant_id: str, size: int = 64 * KB, *, ends_group: bool = False, alone: bool = False) -> DecisionItem:
    return DecisionItem(Future(), tenant_id, -1, _nothing, size, ends_group, rows=10, alone=alone)


def _nothing(_: LogMoment) -> Decided:
    raise AssertionError("nobody decides here")


def taken(queue: FairQueue, groups: int, keep: dict[str, int]) -> dict[str, int]:
    """Bytes of each tenant in so many groups, while each has as much waiting again after each group."""
    had = dict.fromkeys(keep, 0)
    for _ in range(groups):
        for one in queue.take(1_000, 1_024 * KB):
            had[one.tenant_id] += one.bytes
            queue.put(item(one.tenant_id, keep[one.tenant_id]))
    return had


def test_who_flooded_alone_before_shares_with_who_comes_later() -> None:
    """What a lone tenant takes is taken from nobody: he owes nothing for it."""
    queue = FairQueue()
    for _ in range(100):
        queue.put(item("first"))
    taken(queue, 500, {"first": 64 * KB})
    for _ in range(100):
        queue.put(item("second"))
    had = taken(queue, 40, {"first": 64 * KB, "second": 64 * KB})
    assert abs(had["first"] - had["second"]) <= 1_024 * KB, had


def test_who_ended_groups_alone_before_has_saved_nothing_up() -> None:
    """Groups that hold one small decision each give their tenant no claim to all of the later ones."""
    queue = FairQueue()
    for _ in range(500):
        queue.put(item("first", KB, ends_group=True))
    for _ in range(100):
        queue.put(item("first"))
    for _ in range(500):
        assert len(queue.take(1_000, 1_024 * KB)) == 1
    for _ in range(100):
        queue.put(item("second"))
    had = taken(queue, 40, {"first": 64 * KB, "second": 64 * KB})
    assert abs(had["first"] - had["second"]) <= 1_024 * KB, had


def test_who_ends_groups_does_not_keep_the_turn() -> None:
    queue = FairQueue()
    for _ in range(10):
        queue.put(item("clocks", KB, ends_group=True))
        queue.put(item("other", KB))
    groups = [[one.tenant_id for one in queue.take(1_000, 1_024 * KB)] for _ in range(2)]
    assert groups[0] == ["clocks"]
    assert groups[1][:10] == ["other"] * 10


def test_what_goes_alone_waits_for_the_next_group_and_for_no_longer() -> None:
    queue = FairQueue()
    queue.put(item("a"))
    queue.put(item("", KB, alone=True, ends_group=True))
    for _ in range(20):
        queue.put(item("a"))
    sizes = [[one.tenant_id for one in queue.take(1_000, 1_024 * KB)] for _ in range(3)]
    assert "" not in sizes[0]
    assert sizes[1] == [""]


def test_a_group_keeps_to_its_bytes_and_one_that_is_larger_goes_by_itself() -> None:
    queue = FairQueue()
    for size in (700 * KB, 700 * KB, 3_000 * KB, 300 * KB):
        queue.put(item("a", size))
    groups = [[one.bytes // KB for one in queue.take(1_000, 1_024 * KB)] for _ in range(4)]
    assert groups == [[700], [700], [3_000], [300]]
    assert not queue
