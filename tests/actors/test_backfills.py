"""Backfills: at once or not at all, in every cut; twice at once, killed between steps, sent again after a revert."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from actors import backfill_desk, backfills
from actors.backfill_desk import BackfillDesk
from actors.local_router import LocalUsageRouter
from actors.rating_shard import ShardSettings
from billing.errors import Conflict, NotFound, Unavailable
from billing.usage import EVENT_SCHEMA, Verdict
from storage.object_store import LocalObjectStore
from storage.usage_log.backfills import backfills_at, changed_backfills, scan_backfilled
from storage.usage_log.counting import scan_counting
from storage.usage_log.genesis import IdForm
from storage.usage_log.partitions import partition_of
from storage.usage_log.reader import Cut, UsageLogReader
from storage.usage_log.sealing import seal
from tests.usage_log_support import OTHER_TENANT, TENANT, Hooked, logged_ids, make_events, make_log


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


def opened(store: LocalObjectStore, **settings: Any) -> tuple[LocalUsageRouter, BackfillDesk]:
    router = LocalUsageRouter.open(store, shards=3, settings=ShardSettings(**settings), deadline_s=1.0)
    return router, BackfillDesk(router, store)


def counting(store: LocalObjectStore, cut: Cut | None = None) -> list[str]:
    reader = UsageLogReader(store)
    frames = list(scan_counting(reader, TENANT, cut or reader.now()))
    return sorted(pl.concat([frame.select("id") for frame in frames])["id"]) if frames else []


def ids(rows: int, first: int = 0) -> list[str]:
    return sorted(make_events(rows, first)["id"])


def test_events_count_at_once_when_committed_and_no_more_when_reverted(store: LocalObjectStore) -> None:
    async def scene() -> None:
        router, desk = opened(store)
        reader = UsageLogReader(store)
        await router.ingest(TENANT, make_events(50))
        one = await desk.open(TENANT, "b1", "somebody", "the gateway was away")
        assert one.state == "open"
        verdicts = await desk.send(TENANT, "b1", make_events(200, 20))
        assert (verdicts[:30] == Verdict.DUPLICATE).all(), "what was sent live is there already"
        assert (verdicts[30:] == Verdict.ACCEPTED).all()
        assert (await desk.send(TENANT, "b1", make_events(200, 20)) == Verdict.DUPLICATE).all()
        again = await router.ingest(TENANT, make_events(10, 100))
        assert (again.verdicts == Verdict.DUPLICATE).all(), "dedup counts backfilled ids as seen"
        before = reader.now()
        assert counting(store) == ids(50)

        done = await desk.commit(TENANT, "b1", "somebody")
        assert done.state == "committed"
        assert done.events == 170
        assert counting(store) == ids(220)
        assert counting(store, before) == ids(50), "a cut from before does not have the record"
        after = reader.now()
        assert changed_backfills(reader, TENANT, before, after) == {"b1"}
        fresh = pl.concat(scan_backfilled(reader, TENANT, after, since=before))
        assert fresh.height == 170
        assert fresh["number"].unique().to_list() == [done.number], "new by the record, wherever the rows lie"
        with pytest.raises(Conflict):
            await desk.send(TENANT, "b1", make_events(5, 900))

        gone = await desk.revert(TENANT, "b1", "somebody", "wrong unit")
        assert gone.state == "reverted"
        assert counting(store) == ids(50)
        assert counting(store, after) == ids(220), "what was billed by that cut stays provable"
        assert changed_backfills(reader, TENANT, after, reader.now()) == {"b1"}
        assert changed_backfills(reader, TENANT, before, reader.now()) == frozenset()
        with pytest.raises(Conflict):
            await desk.commit(TENANT, "b1", "somebody")
        with pytest.raises(NotFound):
            await desk.commit(TENANT, "b9", "somebody")
        await router.close()

    asyncio.run(scene())


def test_large_events_are_sent_in_calls_of_bounded_size(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill_desk, "DECISION_BYTES_MAX", 100_000)
    sizes: list[int] = []

    async def scene() -> None:
        router, desk = opened(store)
        decide = router.decide

        async def watched(tenant_id: str, key: str, name: str, payload: bytes) -> bytes:
            sizes.append(len(payload))
            return await decide(tenant_id, key, name, payload)

        monkeypatch.setattr(router, "decide", watched)
        await desk.open(TENANT, "b1", "somebody")
        large = make_events(200).with_columns(data=pl.Series([f'{{"gb":"1{"0" * 4_000}{n}"}}' for n in range(200)]))
        assert (await desk.send(TENANT, "b1", large) == Verdict.ACCEPTED).all()
        await desk.commit(TENANT, "b1", "somebody")
        assert counting(store) == ids(200)
        await router.close()

    asyncio.run(scene())
    assert max(sizes) < 120_000


@pytest.mark.parametrize("form", IdForm)
def test_ids_of_a_reverted_backfill_can_be_sent_again_under_another_one_and_only_once(
    store: LocalObjectStore, form: IdForm
) -> None:
    make_log(store, form, lanes=3)

    async def scene() -> None:
        for turn, name in enumerate(("b1", "b2", "b3")):
            # A small table and a restart each time: the ids come from runs, snapshots and the tail.
            router, desk = opened(store, checkpoint_rows=40)
            await desk.open(TENANT, name, "somebody")
            if turn == 0:
                await router.ingest(TENANT, make_events(20))
            verdicts = await desk.send(TENANT, name, make_events(100))
            assert (verdicts[:20] == Verdict.DUPLICATE).all()
            assert (verdicts[20:] == Verdict.ACCEPTED).all(), f"{name}: its ids were free"
            assert (await desk.send(TENANT, name, make_events(100)) == Verdict.DUPLICATE).all()
            await router.close()
            router, desk = opened(store, checkpoint_rows=40)
            assert (await desk.send(TENANT, name, make_events(100)) == Verdict.DUPLICATE).all(), "after a restart, too"
            rival = f"{name}-rival"
            await desk.open(TENANT, rival, "somebody")
            assert (await desk.send(TENANT, rival, make_events(100)) == Verdict.DUPLICATE).all(), "one has them"
            await desk.revert(TENANT, rival, "somebody", "not needed")
            await desk.commit(TENANT, name, "somebody")
            assert counting(store) == ids(100)
            if turn < 2:
                await desk.revert(TENANT, name, "somebody", "again")
                assert counting(store) == ids(20)
            live = await router.ingest(TENANT, make_events(100))
            assert (live.verdicts == Verdict.DUPLICATE).all(), "sent live they stay duplicates"
            await router.close()

    asyncio.run(scene())
    assert counting(store) == ids(100)


def test_two_who_commit_and_one_who_reverts_at_once_agree_on_one_outcome(store: LocalObjectStore) -> None:
    async def scene() -> None:
        router, desk = opened(store)
        for turn in range(10):
            name = f"b{turn}"
            await desk.open(TENANT, name, "somebody")
            await desk.send(TENANT, name, make_events(30, 30 * turn))
            outcomes = await asyncio.gather(
                BackfillDesk(router, store).commit(TENANT, name, "ann"),
                BackfillDesk(router, store).commit(TENANT, name, "bob"),
                *([BackfillDesk(router, store).revert(TENANT, name, "eve", "")] if turn % 2 else []),
                return_exceptions=True,
            )
            now = await desk.get(TENANT, name)
            if turn % 2 == 0:
                assert outcomes[0] == outcomes[1] == now, "one record, whoever wrote it"
            else:
                assert now.state == "reverted"
                assert all(isinstance(one, Conflict) or one.was_committed for one in outcomes[:2])
        await router.close()

    asyncio.run(scene())
    assert counting(store) == sorted(id_ for turn in range(0, 10, 2) for id_ in ids(30, 30 * turn))
    reader = UsageLogReader(store)
    assert set(backfills_at(reader, TENANT, reader.now()).counting) == {"b0", "b2", "b4", "b6", "b8"}


class Killed(Exception):
    pass


def dying_at(call: int) -> Callable[[LocalUsageRouter, int, bytes], Awaitable[bytes]]:
    """The router's way to a shard, until a call: that one and all after it never leave."""
    decide, left = LocalUsageRouter._decide, iter(range(1, call))

    async def dying(self: LocalUsageRouter, lane: int, data: bytes) -> bytes:
        if next(left, None) is None:
            raise Killed
        return await decide(self, lane, data)

    return dying


@pytest.mark.parametrize("what", ["commit", "revert"])
def test_killed_at_each_step_it_counts_whole_or_not_at_all_and_the_same_call_completes_it(
    store: LocalObjectStore, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller dies before each of its calls to a lane; the shards end with it, and come back from the log."""

    call = BackfillDesk.commit if what == "commit" else lambda *args: BackfillDesk.revert(*args, "")
    wanted = "committed" if what == "commit" else "reverted"

    async def scene() -> None:
        router, desk = opened(store)
        for die_at in range(1, 30):
            name, first, finished = f"b{die_at}", 100 * die_at, True
            await desk.open(TENANT, name, "somebody")
            await desk.send(TENANT, name, make_events(40, first))
            if what == "revert":
                await desk.commit(TENANT, name, "somebody")
            with monkeypatch.context() as patch:
                patch.setattr(LocalUsageRouter, "_decide", dying_at(die_at))
                try:
                    await call(desk, TENANT, name, "somebody")
                except Killed:
                    finished = False
            await router.close()
            counted = set(counting(store)) & set(ids(40, first))
            assert len(counted) in (0, 40), f"{what}: half of it counts, killed at call {die_at}"
            router, desk = opened(store)
            assert (await call(desk, TENANT, name, "somebody")).state == wanted
            assert len(set(counting(store)) & set(ids(40, first))) == (40 if what == "commit" else 0)
            if finished:
                assert die_at > 4, "it was hardly ever killed"
                break
        else:
            raise AssertionError("it makes more calls than were tried")
        await router.close()

    asyncio.run(scene())


def test_every_cut_taken_while_backfills_come_and_go_has_each_whole_or_not_at_all(store: LocalObjectStore) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    cuts: list[Cut] = []

    async def scene() -> None:
        router, desk = opened(store, checkpoint_rows=200)
        reader = UsageLogReader(store)
        done = asyncio.Event()

        async def looking() -> None:
            while not done.is_set():
                cuts.append(await asyncio.to_thread(reader.now))
                if chance.random() < 0.1:
                    await asyncio.to_thread(seal, store, cuts[-1])

        async def working(place: int) -> None:
            for turn in range(6):
                name, first = f"b{place}-{turn}", 10_000 * place + 100 * turn
                await desk.open(TENANT, name, "somebody")
                await desk.send(TENANT, name, make_events(100, first))
                if chance.random() < 0.8:
                    await desk.commit(TENANT, name, "somebody")
                if chance.random() < 0.4:
                    await desk.revert(TENANT, name, "somebody", "")

        eye = asyncio.create_task(looking())
        await asyncio.gather(*(working(place) for place in range(3)))
        done.set()
        await eye
        await router.close()

    asyncio.run(scene())
    assert len(cuts) > 5, f"seed {seed}"
    reader = UsageLogReader(store)
    for cut in cuts[:: max(1, len(cuts) // 25)]:
        counts: dict[int, int] = {}
        for id_ in counting(store, cut):
            number = int(id_.removeprefix("event-")) // 100
            counts[number] = counts.get(number, 0) + 1
        assert set(counts.values()) <= {100}, f"seed {seed}: a cut has a part of a backfill"
        events = sum(counts.values())
        assert backfills_at(reader, TENANT, cut).events == events, f"seed {seed}: the record counts what is there"


def test_a_lane_takes_nothing_of_a_backfill_that_it_does_not_know(store: LocalObjectStore) -> None:
    async def scene() -> None:
        router, desk = opened(store)
        with pytest.raises(NotFound):
            await desk.send(TENANT, "never-opened", make_events(5))
        payload = backfills.encode_rows("never-opened", make_events(1))
        assert await router.decide(TENANT, "customer-0", backfills.ROWS, payload) == backfills.MISSING
        # Opened at home alone, as if its opener had died: whoever sends lets the lanes know.
        form = b'{"backfill": "b1", "by": "somebody", "note": ""}'
        await router.decide(TENANT, "cloudbilling:backfills", backfills.OPEN, form)
        assert (await desk.send(TENANT, "b1", make_events(5)) == Verdict.ACCEPTED).all()
        with pytest.raises(Unavailable):
            await router.decide(TENANT, "cloudbilling:backfills", backfills.COMMIT, b'{"backfill": "b1", "shares": {}}')
        await router.close()

    asyncio.run(scene())
    assert len(logged_ids(store)) > 5
    assert counting(store) == []
    assert EVENT_SCHEMA.names() == make_events(1).columns


def test_a_cut_that_sees_the_record_alone_goes_back_for_the_rows_it_rests_on(store: LocalObjectStore) -> None:
    """The commit happens between the reader's look at the first lane and its look at the home lane."""

    async def scene() -> None:
        router, desk = opened(store)
        seed = router.shards[0].genesis.seed if router.shards[0].genesis is not None else 0
        homes = {tenant: partition_of(seed, tenant, "cloudbilling:backfills") % 3 for tenant in (TENANT, OTHER_TENANT)}
        tenant, home = next((tenant, lane) for tenant, lane in homes.items() if lane > 0)
        await desk.open(tenant, "b1", "somebody")
        await desk.send(tenant, "b1", make_events(90))
        fired = threading.Event()

        def before(what: str, key: str) -> None:
            if key.startswith(f"log/lanes/{home:04}/") and not fired.is_set():
                fired.set()
                asyncio.run(BackfillDesk(router, store).commit(tenant, "b1", "somebody"))

        cut = await asyncio.to_thread(lambda: UsageLogReader(Hooked(store, before)).now())
        assert fired.is_set()
        reader = UsageLogReader(store)
        assert backfills_at(reader, tenant, cut).counting["b1"].events == 90
        assert sum(frame.height for frame in scan_counting(reader, tenant, cut)) == 90
        await router.close()

    asyncio.run(scene())
