"""The router on three lanes in one process: grouping, retries with the same ids, deadlines, clients that go away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from actors import router as router_module
from actors.local_router import LocalUsageRouter
from actors.rating_shard import RatingShard
from billing.errors import Overloaded, Unavailable
from billing.usage import EVENT_SCHEMA, Verdict
from storage.object_store import LocalObjectStore, StoreRefused
from storage.usage_log.reader import UsageLogReader
from tests.usage_log_support import OTHER_TENANT, TENANT, Hooked, logged_ids, make_events

Scene = Callable[[LocalUsageRouter], Coroutine[Any, Any, None]]


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


def play(router: LocalUsageRouter, scene: Scene) -> None:
    async def all_of_it() -> None:
        try:
            await scene(router)
        finally:
            await router.close()

    asyncio.run(all_of_it())


def test_verdicts_come_in_the_order_of_the_rows_whatever_their_lanes(store: LocalObjectStore) -> None:
    async def scene(router: LocalUsageRouter) -> None:
        first = await router.ingest(TENANT, make_events(500)[::2])
        assert set(first.positions) == {0, 1, 2}
        second = await router.ingest(TENANT, make_events(500))
        assert second.verdicts.tolist() == [1, 0] * 250
        assert second.reasons.null_count() == 500
        empty = await router.ingest(TENANT, pl.DataFrame(schema=EVENT_SCHEMA))
        assert len(empty.verdicts) == 0

    play(LocalUsageRouter.open(store, shards=3), scene)
    reader = UsageLogReader(store)
    cut = reader.now()
    assert set(cut.positions) == {0, 1, 2}
    assert sum(frame.height for frame in reader.scan(TENANT, cut)) == 500


def test_requests_at_once_travel_in_groups_and_each_gets_its_own_answer(store: LocalObjectStore) -> None:
    async def scene(router: LocalUsageRouter) -> None:
        requests = [(TENANT if n % 2 else OTHER_TENANT, make_events(3, n * 3)) for n in range(200)]
        results = await asyncio.gather(*(router.ingest(tenant, events) for tenant, events in requests))
        assert all((result.verdicts == Verdict.ACCEPTED).all() for result in results)
        (lane,) = (await router.status()).lanes
        assert lane.rows == 600
        assert lane.groups < 100, "every request made a segment of its own"

    play(LocalUsageRouter.open(store), scene)
    assert len(logged_ids(store)) == 300


def test_a_shard_that_is_replaced_in_between_gets_the_same_ids_again(store: LocalObjectStore) -> None:
    """The first shard commits and dies before it answers; the second one says duplicate; nothing is there twice."""
    router = LocalUsageRouter.open(store)
    shard = router.shards[0]

    async def scene(router: LocalUsageRouter) -> None:
        silent = asyncio.Event()
        original = router._call

        async def cut_off(lane: int, data: bytes) -> bytes:
            if not silent.is_set():
                silent.set()
                await original(lane, data)  # committed
                router.shards.pop(lane).stop()
                raise Unavailable("the connection broke")
            return await original(lane, data)

        router._call = cut_off  # type: ignore[method-assign]

        async def replace() -> None:
            await silent.wait()
            await asyncio.sleep(0.3)
            successor = RatingShard(0, store)
            await asyncio.to_thread(successor.start)
            router.shards[0] = successor

        replacing = asyncio.create_task(replace())
        result = await router.ingest(TENANT, make_events(20))
        await replacing
        assert (result.verdicts == Verdict.DUPLICATE).all()

    play(router, scene)
    assert not shard.serving
    assert len(logged_ids(store)) == 20


def test_without_any_shard_the_outcome_is_unknown_after_the_deadline(store: LocalObjectStore) -> None:
    async def scene(router: LocalUsageRouter) -> None:
        router.shards.pop(1).stop()
        with pytest.raises(Unavailable, match="same ids"):
            await router.ingest(TENANT, make_events(300))

    play(LocalUsageRouter.open(store, shards=3, deadline_s=0.5), scene)
    assert 0 < len(logged_ids(store)) < 300, "what other lanes stored stays: repeating is free of harm"


def test_a_stale_route_is_corrected_by_the_shard_that_was_asked(store: LocalObjectStore) -> None:
    async def scene(router: LocalUsageRouter) -> None:
        router._route[:] = 2
        router._generation[:] = -1
        result = await router.ingest(TENANT, make_events(100))
        assert (result.verdicts == Verdict.ACCEPTED).all()
        assert np.unique(router._route).tolist() == [0, 1, 2]

    play(LocalUsageRouter.open(store, shards=3), scene)
    assert len(logged_ids(store)) == 100


def test_a_client_that_goes_away_takes_nobody_elses_rows_with_it(store: LocalObjectStore) -> None:
    held = threading.Event()

    def before(what: str, key: str) -> None:
        if what == "create" and "lanes" in key and not key.endswith("000000000000.parquet"):
            held.wait(5)

    async def scene(router: LocalUsageRouter) -> None:
        tasks = [asyncio.create_task(router.ingest(TENANT, make_events(5, n * 5))) for n in range(10)]
        await asyncio.sleep(0.1)
        for task in tasks[::2]:
            task.cancel()
        held.set()
        for task in tasks[1::2]:
            assert ((await task).verdicts == Verdict.ACCEPTED).all()
        assert (await router.ingest(TENANT, make_events(5, 1_000))).verdicts.tolist() == [0] * 5

    play(LocalUsageRouter.open(Hooked(store, before)), scene)
    assert len(logged_ids(store)) == len(set(logged_ids(store)))


def test_a_full_disk_is_said_at_once_and_not_after_the_deadline(store: LocalObjectStore) -> None:
    full = threading.Event()

    def before(what: str, key: str) -> None:
        if full.is_set() and what == "create":
            raise StoreRefused("Nothing was stored: the disk is full.")

    async def scene(router: LocalUsageRouter) -> None:
        full.set()
        async with asyncio.timeout(2):
            with pytest.raises(StoreRefused, match="disk is full"):
                await router.ingest(TENANT, make_events(5))

    play(LocalUsageRouter.open(Hooked(store, before)), scene)


def test_a_tenant_that_floods_is_told_so(store: LocalObjectStore) -> None:
    held = threading.Event()

    def before(what: str, key: str) -> None:
        if what == "create" and "lanes" in key and not key.endswith("000000000000.parquet"):
            held.wait(5)

    async def scene(router: LocalUsageRouter) -> None:
        tasks = []
        for n in range(4):  # one in flight, one in the shard, one in the router, and one too many
            tasks.append(asyncio.create_task(router.ingest(TENANT, make_events(60, n * 60))))
            await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(0.3, held.set)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(result, Overloaded) for result in results)
        assert not isinstance(results[0], BaseException)

    router = LocalUsageRouter.open(Hooked(store, before))
    router.tenant_waiting_rows_max = 100
    play(router, scene)


def test_a_call_stays_below_its_size_however_large_the_events_are(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over two lanes, so that the rows of a call are chosen; what comes back lies where its event lay."""
    monkeypatch.setattr(router_module, "CALL_BYTES_MAX", 200_000)
    sizes: list[int] = []
    events = make_events(3_000).with_columns(data=pl.Series([f'{{"gb":"{"1" * (n % 900)}"}}' for n in range(3_000)]))

    async def scene(router: LocalUsageRouter) -> None:
        call = router._call

        async def watched(lane: int, data: bytes) -> bytes:
            sizes.append(len(data))
            return await call(lane, data)

        monkeypatch.setattr(router, "_call", watched)
        await router.ingest(TENANT, events[::2])
        result = await router.ingest(TENANT, events)
        assert result.verdicts.tolist() == [Verdict.DUPLICATE, Verdict.ACCEPTED] * 1_500

    play(LocalUsageRouter.open(store, shards=2), scene)
    assert len(sizes) > 10
    assert max(sizes) < 2 * 200_000, "the frame of Arrow around the texts takes less than they do"
    assert sorted(logged_ids(store)) == sorted(events["id"])


@pytest.mark.parametrize(
    ("limit", "error"), [("TENANT_WAITING_BYTES_MAX", Overloaded), ("WAITING_BYTES_MAX", Unavailable)]
)
def test_what_waits_in_a_router_is_bounded_by_bytes_too(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch, limit: str, error: type[Exception]
) -> None:
    held = threading.Event()

    def before(what: str, key: str) -> None:
        if what == "create" and "lanes" in key and not key.endswith("000000000000.parquet"):
            held.wait(5)

    async def scene(router: LocalUsageRouter) -> None:
        monkeypatch.setattr(router_module, limit, 15_000)
        tasks = []
        for n in range(3):  # two are under way, and a hundred events wait: some 14 kB
            tasks.append(asyncio.create_task(router.ingest(TENANT, make_events(100, n * 100))))
            await asyncio.sleep(0.05)
        router._deadline_s = 0.1
        with pytest.raises(error, match="waiting"):
            await router.ingest(TENANT, make_events(100, 300))
        router._deadline_s = 5.0
        held.set()
        await asyncio.gather(*tasks)
        assert (await router.ingest(TENANT, make_events(400))).verdicts.tolist() == [1] * 300 + [0] * 100

    play(LocalUsageRouter.open(Hooked(store, before)), scene)
