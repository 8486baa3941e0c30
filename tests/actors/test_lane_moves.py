"""Moves of partitions between lanes: nothing lost, nothing double, states go along, whoever dies in between."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from actors.amendment_desk import AmendmentDesk
from actors.backfill_desk import BackfillDesk
from actors.budget_watch import LOOK, READ
from actors.decisions import ANY_PARTITION, decode_decided
from actors.followers import NO_ROWS, Decided, LogMoment
from actors.local_router import LocalUsageRouter
from actors.rating_shard import RatingShard, ShardSettings
from billing.errors import Conflict, Unavailable
from billing.usage import Verdict
from storage.object_store import LocalObjectStore
from storage.usage_log.counting import scan_counting
from storage.usage_log.genesis import IdForm
from storage.usage_log.proving import prove_log
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.sealing import seal
from tests.actors.test_amendments import amendment, look
from tests.actors.test_live_figures import METERS, Chain, amounts, contract, live_amounts, pieces
from tests.usage_log_support import OTHER_TENANT, TENANT, logged_ids, make_events, make_log

CUSTOMERS = [f"customer-{number}" for number in range(50)]


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


def chain() -> Chain:
    return Chain([*METERS, *(step for one in CUSTOMERS for step in contract(one))])


def opened(store: LocalObjectStore, master: Chain | None = None, **settings: Any) -> LocalUsageRouter:
    return LocalUsageRouter.open(store, shards=3, master=master, settings=ShardSettings(**settings), deadline_s=5.0)


def owner_of(router: LocalUsageRouter, partition: int) -> int:
    (lane,) = [lane for lane, shard in router.shards.items() if partition in shard.status().owned]
    return lane


def release(shard: RatingShard, partition: int, to_lane: int) -> dict[str, Any]:
    return body(shard.release(partition, to_lane).result(10))


def acquire(shard: RatingShard, partition: int, from_lane: int) -> dict[str, Any]:
    return body(shard.acquire(partition, from_lane).result(10))


def body(data: bytes) -> dict[str, Any]:
    answer = decode_decided(data)
    if answer.error is not None:
        raise answer.error
    return json.loads(answer.body)


def move(router: LocalUsageRouter, partition: int, to_lane: int) -> float:
    """As a supervisor does it; gives the seconds for which nobody served the partition."""
    source, target = router.shards[owner_of(router, partition)], router.shards[to_lane]
    target.prepare_move(partition, source.lane, source.status().generation_of(partition))
    began = time.monotonic()
    release(source, partition, to_lane)
    acquire(target, partition, source.lane)
    return time.monotonic() - began


def billed(store: LocalObjectStore, source: Chain) -> dict[int, Any]:
    from billing.rating import rate

    reader = UsageLogReader(store)
    frames = list(scan_counting(reader, TENANT, reader.now()))
    events = pl.concat([frame.select(make_events(1).columns) for frame in frames])
    return amounts(rate(pieces(source, CUSTOMERS), events, source.master.rating_book()))


def partitions_with_events(router: LocalUsageRouter, keys: Sequence[str]) -> list[int]:
    from storage.usage_log.partitions import partitions_of

    return np.unique(partitions_of(router._genesis.seed, TENANT, pl.Series(list(keys)))).tolist()


@pytest.mark.parametrize(("seed", "form"), [(1, IdForm.OF_CUSTOMER), (2, IdForm.OF_TENANT)])
def test_partitions_that_wander_among_lanes_keep_every_event_once_and_every_figure(
    store: LocalObjectStore, seed: int, form: IdForm
) -> None:
    """Random moves, also back and to a lane that is new, with repeats, changes, backfills, checkpoints, restarts."""
    make_log(store, form, lanes=3)
    chance, master = random.Random(seed), chain()
    sent = 0

    async def scene(router: LocalUsageRouter, turn: int) -> None:
        nonlocal sent
        desk, backfills = AmendmentDesk(router, UsageLogReader(store)), BackfillDesk(router, store)
        if turn == 1:
            router.add_lane()
        places = partitions_with_events(router, CUSTOMERS)
        await backfills.open(TENANT, f"b{turn}", "somebody")
        for step in range(3):
            partition = chance.choice(places)
            to_lane = chance.choice([lane for lane in router.shards if lane != owner_of(router, partition)])
            ingest = asyncio.create_task(router.ingest(TENANT, make_events(40, sent)))
            await asyncio.to_thread(move, router, partition, to_lane)
            assert (await ingest).verdicts.tolist().count(Verdict.DUPLICATE) == 0
            sent += 40
            again = await router.ingest(TENANT, make_events(sent))
            assert (again.verdicts == Verdict.DUPLICATE).all(), f"seed {seed}, turn {turn}, step {step}"
            await backfills.send(TENANT, f"b{turn}", make_events(10, 100_000 + 1_000 * turn + 10 * step))
            if step != 1:
                id_ = f"event-{chance.randrange(sent)}"
                event = look(desk, id_)
                state = event.state or event.sent
                data = f'{{"gb":"{chance.randrange(100)}"}}'
                after = None if chance.random() < 0.2 else type(state)(**{**vars(state), "data": data})
                (outcome,) = await desk.decide(TENANT, [amendment(event, after)])
                assert outcome.decided is not None, f"seed {seed}: {outcome.detail}"
            if step == 2:
                await backfills.commit(TENANT, f"b{turn}", "somebody")
                break
        assert await live_amounts(router, master, CUSTOMERS) == billed(store, master), f"seed {seed}, turn {turn}"
        whole = await router.usage(TENANT)
        assert whole.live is not None
        if chance.random() < 0.5:
            seal(store, UsageLogReader(store).now())
        await router.close()

    for turn in range(3):
        asyncio.run(scene(opened(store, master, checkpoint_rows=150), turn))
    ids = logged_ids(store)
    events = [one for one in ids if one.startswith("event-")]
    plain = {one for one in events if int(one.removeprefix("event-")) < 100_000}
    assert len(plain) == sent

    async def last() -> None:
        router = opened(store, master)
        assert (await router.ingest(TENANT, make_events(sent))).verdicts.tolist() == [Verdict.DUPLICATE] * sent
        assert await live_amounts(router, master, CUSTOMERS) == billed(store, master)
        owned = [partition for shard in router.shards.values() for partition in shard.status().owned]
        assert sorted(owned) == list(range(256)), "each partition has one owner"
        await router.close()
        assert prove_log(store, TENANT, UsageLogReader(store).now()).found == 0, "and always had"

    asyncio.run(last())


def test_who_dies_between_release_and_acquisition_leaves_a_log_that_says_enough(store: LocalObjectStore) -> None:
    async def scene() -> None:
        router = opened(store, checkpoint_rows=60)
        await router.ingest(TENANT, make_events(200))
        (partition, *_) = partitions_with_events(router, CUSTOMERS)
        source = owner_of(router, partition)
        target = (source + 1) % 3
        with pytest.raises(Unavailable):
            acquire(router.shards[target], partition, source)
        assert release(router.shards[source], partition, target)["generation"] == 1
        assert release(router.shards[source], partition, target)["number"] == -1, "a repeat does nothing"
        with pytest.raises(Conflict):
            release(router.shards[source], partition, 3 - source - target)
        await router.close()  # all die: nobody has it, and only the target may take it

        router = opened(store)
        mine = [one for one in CUSTOMERS if partitions_with_events(router, [one]) == [partition]]
        events = make_events(200).filter(pl.col("customer").is_in(mine))
        with pytest.raises(Unavailable):
            await LocalUsageRouter(router._genesis, list(router.shards.values()), deadline_s=0.4).ingest(TENANT, events)
        status = router.shards[source].status()
        assert partition not in status.owned
        with pytest.raises(Unavailable):
            acquire(router.shards[3 - source - target], partition, source)
        assert acquire(router.shards[target], partition, source)["generation"] == 1
        assert acquire(router.shards[target], partition, source)["number"] == -1, "a repeat does nothing"
        assert ((await router.ingest(TENANT, events)).verdicts == Verdict.DUPLICATE).all()
        await router.close()

        router = opened(store)
        assert owner_of(router, partition) == target
        assert ((await router.ingest(TENANT, make_events(200))).verdicts == Verdict.DUPLICATE).all()
        await router.close()

    asyncio.run(scene())
    ids = logged_ids(store)
    assert len(ids) == len(set(ids)) == 200


def test_a_zombie_of_the_old_owner_loses_and_the_new_one_has_all_that_was_acknowledged(store: LocalObjectStore) -> None:
    async def scene() -> None:
        router = opened(store)
        await router.ingest(TENANT, make_events(200))
        (partition, *_) = partitions_with_events(router, CUSTOMERS)
        zombie = router.shards[owner_of(router, partition)]
        successor = RatingShard(zombie.lane, store)
        successor.start()  # the first does not know yet
        router.shards[zombie.lane] = successor
        move(router, partition, (zombie.lane + 1) % 3)
        answer = decode_decided(zombie.release(partition, (zombie.lane + 2) % 3).result(10))
        assert answer.error is not None, "its record is LOST, whatever it believes"
        assert ((await router.ingest(TENANT, make_events(200))).verdicts == Verdict.DUPLICATE).all()
        await router.close()

    asyncio.run(scene())


def test_a_test_tenants_clock_goes_along_to_a_lane_that_never_heard_of_it(store: LocalObjectStore) -> None:
    async def scene() -> None:
        router = opened(store)
        clock = datetime(2027, 3, 1, tzinfo=UTC)
        await router.advance_clock(OTHER_TENANT, clock)
        lane = router.add_lane().lane
        move(router, 7, lane)
        assert router.shards[lane].state.clocks.times[OTHER_TENANT] == router.shards[0].state.clocks.times[OTHER_TENANT]
        await router.advance_clock(OTHER_TENANT, clock + timedelta(days=1))
        move(router, 7, 0)
        await router.advance_clock(OTHER_TENANT, clock + timedelta(days=2))
        await router.close()
        router = opened(store)
        times = {shard.state.clocks.times[OTHER_TENANT] for shard in router.shards.values() if shard.status().owned}
        assert len(times) == 1
        await router.close()

    asyncio.run(scene())


def test_every_cut_during_moves_is_a_prefix_with_all_that_was_acknowledged(store: LocalObjectStore) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    found: list[tuple[int, Any]] = []
    pauses: list[float] = []

    async def scene() -> None:
        router, reader, done = opened(store, checkpoint_rows=500), UsageLogReader(store), asyncio.Event()
        acknowledged = 0

        async def sending() -> None:
            nonlocal acknowledged
            while not done.is_set():
                await router.ingest(TENANT, make_events(50, acknowledged))
                acknowledged += 50

        async def looking() -> None:
            while not done.is_set():
                before = acknowledged
                found.append((before, await asyncio.to_thread(reader.now)))

        tasks = [asyncio.create_task(sending()), asyncio.create_task(looking())]
        places = partitions_with_events(router, CUSTOMERS)
        for _ in range(25):
            partition = chance.choice(places)
            to_lane = (owner_of(router, partition) + chance.choice((1, 2))) % 3
            pauses.append(await asyncio.to_thread(move, router, partition, to_lane))
        done.set()
        await asyncio.gather(*tasks)
        await router.close()

    asyncio.run(scene())
    reader = UsageLogReader(store)
    for before, cut in found[:: max(1, len(found) // 20)]:
        numbers = [
            int(id_.removeprefix("event-")) for frame in reader.scan(TENANT, cut) for id_ in frame["id"].to_list()
        ]
        assert len(numbers) == len(set(numbers)), f"seed {seed}: something is twice in a cut"
        assert set(range(before)) <= set(numbers), f"seed {seed}: what was acknowledged is missing in a later cut"
    print(f"pauses: median {sorted(pauses)[12] * 1e3:.0f} ms, longest {max(pauses) * 1e3:.0f} ms")


def test_a_later_budget_knows_what_its_key_had_elsewhere(store: LocalObjectStore) -> None:
    async def spent(router: LocalUsageRouter, code: str) -> str:
        await router.decide_everywhere(TENANT, LOOK, b"")
        answers = await router.decide_everywhere(TENANT, READ, b"{}")
        forms = [one for answer in answers for one in json.loads(answer)]
        return next((one["spent"] for one in forms if one["budget"] == code), "")

    async def scene() -> None:
        master = chain()
        router = opened(store, master)
        await router.advance_clock(TENANT, datetime(2026, 5, 20, tzinfo=UTC))
        events = make_events(100).with_columns(time=pl.lit(datetime(2026, 5, 3, tzinfo=UTC)))
        await router.ingest(TENANT, events)
        (going,) = partitions_with_events(router, ["customer-2"])
        form = {"amount": "1000", "period": "month", "thresholds": ["50"]}
        move(router, going, (owner_of(router, going) + 1) % 3)
        master.change([{"at": "2026-01-01", "budget": {"code": "b2", "customer": "customer-2", **form}}])
        wanted = sum(
            Decimal(json.loads(one)["gb"]) for one in events.filter(pl.col("customer") == "customer-2")["data"]
        )
        assert Decimal(await spent(router, "b2")) == (wanted * Decimal("0.123456789")).quantize(Decimal("0.01"))
        assert not any(shard.status().followers_error for shard in router.shards.values())
        await router.close()

    asyncio.run(scene())


def test_figures_that_were_folded_follow_a_partition_at_once_also_when_it_comes_back(store: LocalObjectStore) -> None:
    async def scene() -> None:
        master = chain()
        router = opened(store, master)
        sent = 0
        (partition, *_) = partitions_with_events(router, CUSTOMERS)
        source = owner_of(router, partition)
        for to_lane in ((source + 1) % 3, (source + 2) % 3, source, (source + 1) % 3):
            await router.ingest(TENANT, make_events(100, sent))
            sent += 100
            assert await live_amounts(router, master, CUSTOMERS) == billed(store, master), "folded before the move"
            move(router, partition, to_lane)
            assert await live_amounts(router, master, CUSTOMERS) == billed(store, master), "and after it"
            await router.ingest(TENANT, make_events(100, sent))
            sent += 100
            assert await live_amounts(router, master, CUSTOMERS) == billed(store, master)
        await router.close()

    asyncio.run(scene())


def test_a_partition_that_moves_twice_before_any_checkpoint_still_knows_its_first_lanes_ids(
    store: LocalObjectStore,
) -> None:
    """No run covers them yet, and the lane in between has them in memory only."""

    async def scene() -> None:
        router = opened(store)
        events = make_events(200)
        await router.ingest(TENANT, events)
        partition = partitions_with_events(router, events["customer"].unique().to_list())[0]
        first = owner_of(router, partition)
        move(router, partition, (first + 1) % 3)
        move(router, partition, (first + 2) % 3)
        assert ((await router.ingest(TENANT, events)).verdicts == Verdict.DUPLICATE).all()
        await router.close()
        again = opened(store)  # and after recovery
        assert ((await again.ingest(TENANT, events)).verdicts == Verdict.DUPLICATE).all()
        await again.close()

    asyncio.run(scene())


def test_a_checkpoint_that_is_taken_on_late_keeps_the_newer_id_runs_that_an_arrival_brought(
    store: LocalObjectStore,
) -> None:
    """Its own entry is older: it lacks the run by which the lane that let go had forgotten its ids."""

    def on_the_commit_thread(shard: RatingShard, act: Callable[[], None]) -> None:
        def decider(_: LogMoment) -> Decided:
            act()
            return Decided(NO_ROWS, b"")

        assert decode_decided(shard.decide("", ANY_PARTITION, decider).result(10)).error is None

    def checkpoint(shard: RatingShard) -> None:
        def begin() -> None:
            shard.state.rows_since_checkpoint = 1
            shard.state.checkpoint_if_due(1, 0.0)

        on_the_commit_thread(shard, begin)
        while shard.state.checkpoint_thread is not None:
            time.sleep(0.01)

    async def scene() -> None:
        router = opened(store)
        events = make_events(300)
        await router.ingest(TENANT, events)
        (partition, *_) = partitions_with_events(router, CUSTOMERS)
        source = router.shards[owner_of(router, partition)]
        target = router.shards[(source.lane + 1) % 3]
        taken_on, target.state.follow_checkpoint = target.state.follow_checkpoint, lambda: None  # type: ignore[method-assign]
        checkpoint(target)
        checkpoint(source)
        on_the_commit_thread(source, source.state.follow_checkpoint)
        assert len(source.state.recent) == 0, "its ids are in the run alone"
        move(router, partition, target.lane)
        number = target.state.manifest.number
        on_the_commit_thread(target, taken_on)
        assert target.state.manifest.number == number
        assert ((await router.ingest(TENANT, events)).verdicts == Verdict.DUPLICATE).all()
        await router.close()

    asyncio.run(scene())
