"""Heads that a process remembers: bounded, one memory for all readers of a store, and never another store's."""

from pathlib import Path

from actors.rating_shard import RatingShard
from storage.object_store import LocalObjectStore
from storage.usage_log.genesis import open_log
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.recent_heads import RecentHeads, recent_heads
from storage.usage_log.segment import SegmentHead
from tests.usage_log_support import OTHER_TENANT, TENANT, Hooked, make_events, send


def head(number: int) -> SegmentHead:
    return SegmentHead(lane=0, number=number, epoch=1, nonce="n", log_time_us=1, previous="")


def test_the_oldest_heads_are_forgotten_first() -> None:
    memory = RecentHeads(2)
    for number in range(3):
        memory.put(head(number))
    assert memory.get(0, 0) is None
    assert [found.number for number in (1, 2) if (found := memory.get(0, number))] == [1, 2]


def test_readers_of_one_store_share_a_memory_and_those_of_another_do_not(tmp_path: Path) -> None:
    one, other = LocalObjectStore(tmp_path / "one"), LocalObjectStore(tmp_path / "other")
    recent_heads(one).put(head(7))
    assert recent_heads(one).get(0, 7) is not None
    assert recent_heads(other).get(0, 7) is None


def test_segments_of_another_tenant_are_fetched_once_however_often_the_log_is_scanned(tmp_path: Path) -> None:
    fetched: list[str] = []
    store = Hooked(LocalObjectStore(tmp_path), lambda what, key: fetched.append(key) if what == "get" else None)
    open_log(store, lanes=1)
    shard = RatingShard(0, store)
    shard.start()
    for number in range(5):
        send(shard, make_events(2, 2 * number), OTHER_TENANT)
    send(shard, make_events(3, 100))
    shard.stop()
    cut = UsageLogReader(store).now()
    for _ in range(3):
        fetched.clear()
        (frame,) = UsageLogReader(store).scan(TENANT, cut)
        assert sorted(frame["id"]) == ["event-100", "event-101", "event-102"]
        assert len([key for key in fetched if key.startswith("log/lanes/")]) == 1  # the one with rows of this tenant
