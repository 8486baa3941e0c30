"""A writer's clock against the store's: told from two seconds on, not served beyond thirty."""

from __future__ import annotations

from pathlib import Path

import pytest

import actors.rating_shard as rating_shard
from actors.rating_shard import RatingShard
from billing.errors import Unavailable
from storage.object_store import LocalObjectStore
from storage.usage_log.clock import SystemClock, skew_us
from tests.usage_log_support import Hooked, make_events, send

SECOND = 1_000_000


class Off(SystemClock):
    def __init__(self, by_us: int) -> None:
        self.by_us = by_us

    def now_us(self) -> int:
        return super().now_us() + self.by_us


@pytest.mark.parametrize("by", [-3_600, -10, -4, 0, 4, 10, 3_600])
def test_how_far_a_clock_is_off_is_told_to_the_second(tmp_path: Path, by: int) -> None:
    skew = skew_us(LocalObjectStore(tmp_path), Off(by * SECOND), "0")
    assert skew is not None
    assert abs(skew - by * SECOND) < 2 * SECOND
    assert (skew == 0) == (by == 0), "a clock that is right is not blamed for the grain of the store's"


def test_a_store_that_dates_nothing_says_nothing(tmp_path: Path) -> None:
    assert skew_us(Hooked(LocalObjectStore(tmp_path), lambda _what, _key: None), Off(SECOND * 99), "0") is None


def test_a_clock_that_is_far_off_does_not_serve_and_a_little_off_is_an_alarm(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    for by in (60, -60):
        with pytest.raises(Unavailable, match=r"the clock is (58|59|60|61) s (ahead of|behind) the store's"):
            RatingShard(0, store, Off(by * SECOND)).start()
    assert not list(store.list("log/lanes/")), "nothing of it got into the log"
    shard = RatingShard(0, store, Off(5 * SECOND))
    shard.start()
    assert "ahead of the store's" in shard.status().clock_error
    shard.stop()
    shard = RatingShard(0, store, Off(0))
    shard.start()
    assert shard.status().clock_error == ""
    shard.stop()


def test_a_clock_that_goes_wrong_later_ends_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rating_shard, "CLOCK_EVERY_S", 0.05)
    clock = Off(0)
    shard = RatingShard(0, LocalObjectStore(tmp_path), clock)
    shard.start()
    assert send(shard, make_events(5)).failed is None
    clock.by_us = 3_600 * SECOND
    assert shard._thread is not None
    shard._thread.join(10.0)
    assert not shard.status().serving
    assert "ahead of the store's" in shard.status().clock_error
    assert send(shard, make_events(5, 5)).failed == "unavailable"
