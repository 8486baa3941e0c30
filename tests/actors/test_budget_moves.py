"""Budgets go where their customers' partitions go: spent to the last digit as if nothing moved, alerts once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.budget_desk import BudgetDesk
from actors.budget_watch import ALERTS, LOOK, BudgetWatch
from actors.foreign_carrier import ForeignCarrier
from actors.local_router import LocalLaneCalls, LocalUsageRouter
from actors.partition_mover import finish, move_partition
from actors.rating_shard import ShardSettings
from actors.shard_followers import shard_followers
from billing.errors import Conflict, InvalidInput
from storage.object_store import LocalObjectStore
from storage.usage_log.genesis import open_log
from storage.usage_log.lane import count_lanes, walk
from storage.usage_log.partitions import partition_of
from storage.usage_log.segment import RowKind
from tests.actors.test_budget_watch import (
    CUSTOMERS,
    TENANT,
    Chain,
    alerts,
    budget,
    catalog,
    customer,
    events,
    look,
    random_batch,
    random_catalog,
    random_change,
    read,
)

LANES = 3
START = datetime(2026, 5, 20, 10, tzinfo=UTC)
SIMS = [f"sim-{number}" for number in range(6)]


class World:
    """Lanes in this process over a folder, that move partitions and can be killed."""

    def __init__(self, folder: Path, chain: Chain) -> None:
        self.store = LocalObjectStore(folder)
        self.chain = chain
        self.open()

    def open(self) -> None:
        self.watches: dict[int, BudgetWatch] = {}

        def followers(lane: int, master: Any, store: Any) -> Sequence[Any]:
            made = shard_followers(lane, master, store)
            assert isinstance(made[0], BudgetWatch)
            self.watches[lane] = made[0]
            return made

        settings = ShardSettings(checkpoint_rows=40)
        self.router = LocalUsageRouter.open(
            self.store, shards=LANES, master=self.chain, followers=followers, settings=settings
        )
        # In another process: it hears of moves by itself.
        other = LocalUsageRouter(self.router._genesis, list(self.router.shards.values()))
        self.carrier = ForeignCarrier(other, self.chain, lambda: [TENANT])

    def home(self, code: str) -> tuple[int, int]:
        partition = partition_of(self.router._genesis.seed, TENANT, code)
        (lane,) = [one.lane for one in self.router.shards.values() if partition in one.status().owned]
        return partition, lane

    def move(self, key: str, to_lane: int) -> None:
        partition, lane = self.home(key)
        if lane != to_lane:
            generation = self.router.shards[lane].status().generation_of(partition)
            move_partition(LocalLaneCalls(self.router.shards), partition, lane, to_lane, generation)

    async def settle(self) -> None:
        """Until every key is told: once a second at most."""
        for _ in range(60):
            if await self.carrier.round() == 0:
                probe = ForeignCarrier(self.router, self.chain, lambda: [TENANT])
                await probe.round()
                known = probe._known.get(TENANT)
                if known is None or not known.owner:
                    return
                if set(known.sent) == set(known.owner):
                    return
            await asyncio.sleep(0.1)
        raise AssertionError("usage is told again and again")

    def spent(self) -> dict[str, dict[Any, Any]]:
        """By customer, exact: what was spent in each period of each kind, what levels have cost, what was raised."""
        found: dict[str, dict[Any, Any]] = {}
        for lane, watch in self.watches.items():
            state = watch.state(TENANT)
            for code in () if state is None else state.watch.budgets:
                assert code not in found, f"{code} is followed in two lanes"
                assert self.home(code)[1] == lane
                budgets = state.spending.budgets
                found[code] = {
                    (what, kind, start): cost
                    for what, costs in (("spent", budgets.spent), ("level", budgets.levels))
                    for (customer, kind), starts in costs.items()
                    for start, cost in starts.items()
                    if customer == code and cost
                }
                codes = [one.code for one in state.watch.budgets[code]]
                found[code]["raised", "", ""] = {one for each in codes for one in budgets.raised.get(each, ())}
        return found

    async def check_well(self) -> None:
        for status in (await self.router.status()).lanes:
            assert (status.followers_error, status.stopped_because) == ("", "")


def key_of(alert: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return alert["budget"], alert["from"], str(alert["threshold"]), alert["spent"]


def recorded(store: LocalObjectStore) -> Counter[str]:
    return Counter(
        row["id"]
        for lane in range(count_lanes(store))
        for segment in walk(store, lane, 0)
        for row in segment.rows().iter_rows(named=True)
        if row["kind"] == RowKind.THRESHOLD_CROSSED
    )


@pytest.mark.parametrize("seed", range(4))
def test_budgets_that_wander_are_what_they_are_where_nothing_moves(tmp_path: Path, seed: int) -> None:
    """Random lives, twice from the same log: prices, levels, clocks, master data, restarts; one with moves."""
    chance = random.Random(seed)
    chain = Chain([*random_catalog(chance), *(step for one in CUSTOMERS for step in customer(one))])
    open_log(LocalObjectStore(tmp_path / "still"), lanes=LANES)
    shutil.copytree(tmp_path / "still", tmp_path / "moving")

    async def scene() -> None:
        clock, moved = START, 0
        still, moving = World(tmp_path / "still", chain), World(tmp_path / "moving", chain)
        for world in (still, moving):
            await world.router.advance_clock(TENANT, clock)
        sent: list[tuple[str, str, str, str]] = []
        chain.change(budget("b", "acme", "30", "50", "100"))
        for step in range(24):
            what = chance.random()
            if what < 0.1:
                clock += timedelta(hours=chance.randint(1, 60))
                for world in (still, moving):
                    await world.router.advance_clock(TENANT, clock)
            elif what < 0.25:
                change = random_change(chance, clock, step)
                with contextlib.suppress(InvalidInput):  # e.g. two overrides of one moment
                    chain.change(*change)
                for world in (still, moving):
                    await look(world.router)
            elif what < 0.3:
                await moving.router.close()
                moving.open()
            elif what < 0.6:
                moving.move(chance.choice(CUSTOMERS), chance.randrange(LANES))
                moved += 1
            else:
                batch = random_batch(chance, clock, sent)
                batch = batch.filter(batch["customer"].is_in(CUSTOMERS))
                for world in (still, moving):
                    await world.router.ingest(TENANT, batch)
            for world in (still, moving):
                await look(world.router)
            assert moving.spent() == still.spent(), f"seed {seed}, step {step}"
            assert {key_of(one) for one in await alerts(moving.router)} == {
                key_of(one) for one in await alerts(still.router)
            }, f"seed {seed}, step {step}"
            await moving.check_well()
        assert moved > 3
        assert sorted(one["id"] for one in await alerts(moving.router)) == sorted(
            one["id"] for one in await alerts(still.router)
        )
        await moving.router.close()
        moving.open()
        assert moving.spent() == still.spent()
        for world in (still, moving):
            await world.router.close()

    asyncio.run(scene())
    assert recorded(LocalObjectStore(tmp_path / "moving")) == recorded(LocalObjectStore(tmp_path / "still"))


@pytest.mark.parametrize("seed", range(3))
def test_usage_under_other_keys_counts_once_wherever_they_and_their_customer_go(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    chain = Chain([*catalog(), *customer("acme", *SIMS), *customer("bolt"), budget("b", "acme", "60", "50", "100")])
    open_log(LocalObjectStore(tmp_path / "still"), lanes=LANES)
    shutil.copytree(tmp_path / "still", tmp_path / "moving")

    async def scene() -> None:
        still, moving = World(tmp_path / "still", chain), World(tmp_path / "moving", chain)
        for world in (still, moving):
            await world.router.advance_clock(TENANT, START)
            await look(world.router)
        sent = 0
        for step in range(10):
            rows = [
                (
                    f"e{sent + n}",
                    chance.choice(["acme", *SIMS]),
                    (START - timedelta(minutes=chance.randrange(15 * 24 * 60))).isoformat(),
                    str(chance.randint(1, 4)),
                )
                for n in range(chance.randint(1, 6))
            ]
            sent += len(rows)
            for world in (still, moving):
                await world.router.ingest(TENANT, events(*rows))
            moving.move(chance.choice(["acme", *SIMS]), chance.randrange(LANES))
            if step == 5:
                await moving.router.close()
                moving.open()
            if step % 3 == 2:
                for world in (still, moving):
                    await world.settle()
                    await look(world.router)
                assert moving.spent() == still.spent(), f"seed {seed}, step {step}"
        await moving.check_well()
        for world in (still, moving):
            found = await alerts(world.router)
            assert [(one["budget"], one["threshold"]) for one in found] == [("b", "50"), ("b", "100")][: len(found)]
            assert len(found) == sum(recorded(world.store).values())
            await world.router.close()

    asyncio.run(scene())


def test_what_has_been_counted_stays_counted_before_anybody_tells_it_again(tmp_path: Path) -> None:
    """The customer goes, then a key: at no moment does the budget show less."""
    chain = Chain([*catalog(), *customer("acme", *SIMS), budget("b", "acme", "1000", "1")])

    async def scene() -> None:
        world = World(tmp_path, chain)
        await world.router.advance_clock(TENANT, START)
        keys = ["acme", *SIMS]
        await world.router.ingest(
            TENANT, events(*((f"e{n}", key, START.isoformat(), "3") for n, key in enumerate(keys)))
        )
        await look(world.router)
        await world.settle()
        await look(world.router)

        async def spent() -> str:
            [form] = await read(world.router)
            return form["spent"]

        assert await spent() == "21.00"
        for key in ["acme", *SIMS[:3], "acme"]:
            world.move(key, (world.home(key)[1] + 1) % LANES)
            await look(world.router)
            assert await spent() == "21.00", key
        await world.settle()
        await look(world.router)
        assert await spent() == "21.00"
        assert len(await alerts(world.router)) == 1
        await world.router.close()

    asyncio.run(scene())


@pytest.mark.parametrize("step", ["before", "prepared", "released", "acquired"])
def test_who_dies_at_any_step_of_a_move_leaves_budgets_that_alert_once(tmp_path: Path, step: str) -> None:
    chain = Chain([*catalog(), *customer("acme"), budget("b", "acme", "20", "50", "80", "100")])

    async def scene() -> None:
        world = World(tmp_path, chain)
        await world.router.advance_clock(TENANT, START)
        await world.router.ingest(TENANT, events(("1", "acme", "2026-05-02T12:00:00+02:00", "11")))
        await look(world.router)
        before = world.spent()
        (first,) = await alerts(world.router)
        partition, lane = world.home("acme")
        target = (lane + 1) % LANES
        calls = LocalLaneCalls(world.router.shards)
        if step != "before":
            calls.prepare_move(target, partition, lane, 0)
        if step in ("released", "acquired"):
            calls.release(lane, partition, target)
        if step == "acquired":
            calls.acquire(target, partition, lane)
        world.open()  # the old shards are overtaken without a word
        shards = world.router.shards
        assert finish(LocalLaneCalls(shards), [shard.status() for shard in shards.values()]) == []
        assert world.home("acme")[1] == (target if step in ("released", "acquired") else lane)
        await look(world.router)
        assert world.spent() == before
        assert await alerts(world.router) == [first], "with its id and its place"
        await world.router.ingest(TENANT, events(("1", "acme", "2026-05-02T12:00:00+02:00", "11")))
        await world.router.ingest(TENANT, events(("2", "acme", "2026-05-03T12:00:00+02:00", "6")))
        found = await alerts(world.router)
        assert [one["threshold"] for one in found] == ["50", "80"]
        (second,) = await BudgetDesk(world.router).alerts(TENANT, after=tuple(found[0]["position"]))
        assert second["threshold"] == "80"
        await world.router.close()

    asyncio.run(scene())
    assert set(recorded(LocalObjectStore(tmp_path)).values()) == {1}


def test_a_key_that_leaves_the_lane_of_its_customer_is_told_of_by_whoever_never_heard_of_the_move(
    tmp_path: Path,
) -> None:
    codes = [f"c{number}" for number in range(30)]
    chain = Chain([*catalog(), *(step for code in codes for step in customer(code, f"{code}-sim"))])

    async def scene() -> None:
        world = World(tmp_path, chain)
        await world.router.advance_clock(TENANT, START)
        (code, *_) = [one for one in codes if world.home(one)[1] == world.home(f"{one}-sim")[1]]
        key = f"{code}-sim"
        chain.change(budget("b", code, "100", "50"))
        await look(world.router)
        for what, to_lane in ((key, 1), (key, 2), (code, 2), (key, 0), (code, 0)):
            world.move(what, (world.home(code)[1] + to_lane) % LANES)
            before = sum(cost for (_, kind, _), cost in world.spent()[code].items() if kind == "month")
            id_ = f"{what}-{to_lane}-{before}"
            await world.router.ingest(TENANT, events((id_, key, START.isoformat(), "7")))
            await world.settle()
            await look(world.router)
            after = sum(cost for (_, kind, _), cost in world.spent()[code].items() if kind == "month")
            assert after - before == 7, (what, to_lane)
        await world.router.close()

    asyncio.run(scene())


def test_a_lane_that_knew_older_master_data_and_no_clock_shows_who_came_at_once(tmp_path: Path) -> None:
    """Without a look of its own, and at the tenant's time."""
    codes = [f"c{number}" for number in range(8)]
    chain = Chain([*catalog(), *(step for code in codes for step in customer(code))])

    async def scene() -> None:
        world = World(tmp_path, chain)
        await world.router.advance_clock(TENANT, START)
        going = codes[0]
        (staying, *_) = [code for code in codes if world.home(code)[1] != world.home(going)[1]]
        target = world.home(staying)[1]
        chain.change(budget("b-staying", staying, "100", "50"))
        await look(world.router)
        chain.change(budget("b-going", going, "10", "50"))
        await world.router.ingest(TENANT, events(("1", going, START.isoformat(), "7")))
        await world.router.decide(TENANT, going, LOOK, b"")  # only its lane looks
        before = (await read(world.router), await alerts(world.router))
        assert [one["budget"] for one in before[1]] == ["b-going"]
        world.move(going, target)
        forms = {one["budget"]: one["spent"] for one in await read(world.router)}
        assert forms == {"b-staying": "0.00", "b-going": "7.00"}
        assert await alerts(world.router) == before[1]
        lane = world.router.add_lane().lane
        world.move(going, lane)
        await read(world.router)  # behind all that the move brought
        state = world.watches[lane].state(TENANT)
        assert state is not None
        assert state.looked_at == START
        await world.router.ingest(TENANT, events(("2", going, START.isoformat(), "1")))
        forms = {one["budget"]: one["spent"] for one in await read(world.router)}
        assert forms == {"b-staying": "0.00", "b-going": "8.00"}
        await world.check_well()
        await world.router.close()
        world.open()
        forms = {one["budget"]: one["spent"] for one in await read(world.router)}
        assert forms == {"b-staying": "0.00", "b-going": "8.00"}
        await world.router.close()

    asyncio.run(scene())


def test_a_partition_whose_levels_rest_on_other_keys_stays(tmp_path: Path) -> None:
    chain = Chain(
        [*catalog(aggregation="time_weighted_sum"), *customer("acme", *SIMS), budget("b", "acme", "1000", "50")]
    )

    async def scene() -> None:
        world = World(tmp_path, chain)
        await world.router.advance_clock(TENANT, START)
        lane = world.home("acme")[1]
        mine = [sim for sim in SIMS if world.home(sim)[1] == lane]
        await world.router.ingest(
            TENANT, events(*((f"e{n}", sim, START.isoformat(), "3") for n, sim in enumerate(mine)))
        )
        await look(world.router)
        if mine:
            with pytest.raises(Conflict, match="budgets"):
                world.move("acme", (lane + 1) % LANES)
        await world.router.close()

    asyncio.run(scene())


def test_reading_alerts_does_not_need_a_lane_to_remember_where_they_were(tmp_path: Path) -> None:
    """The alerts of a lane come in the order of the log, those that came from elsewhere among its own."""
    codes = [f"c{number}" for number in range(8)]
    steps = [step for code in codes for step in (*customer(code), budget(f"b-{code}", code, "10", "50"))]
    chain = Chain([*catalog(), *steps])

    async def scene() -> None:
        world = World(tmp_path, chain)
        await world.router.advance_clock(TENANT, START)
        for number, code in enumerate(codes):
            await world.router.ingest(TENANT, events((f"e{number}", code, START.isoformat(), "7")))
        before = await alerts(world.router)
        assert len(before) == len(codes)
        for code in codes:
            world.move(code, 0)
        assert await alerts(world.router) == before
        answer = await world.router.decide_everywhere(TENANT, ALERTS, msgspec.json.encode({"limit": 3}))
        assert [one["position"] for one in msgspec.json.decode(answer[0])] == [one["position"] for one in before[:3]]
        await world.router.close()
        world.open()
        assert await alerts(world.router) == before
        await world.router.close()

    asyncio.run(scene())


@pytest.mark.parametrize("away", [(1,), (1, 2), (1, 0), (1, 2, 0), (1, 0, 1)])
@pytest.mark.parametrize("others", [(), ("acme-sim",)])
@pytest.mark.parametrize("watched", [False, True])
def test_a_budget_that_comes_after_moves_counts_all_that_was_sent_before(
    tmp_path: Path, away: Sequence[int], others: Sequence[str], watched: bool
) -> None:
    """There and back, too: nobody watched the customer while his partition moved."""
    chain = Chain([*catalog(), *customer("acme", *others), *customer("other")])

    async def scene() -> None:
        world = World(tmp_path, chain)
        await world.router.advance_clock(TENANT, START)
        if watched:
            chain.change(budget("o", "other", "1000", "1"))
            await look(world.router)
        first = world.home("acme")[1]
        sent = 0
        for step in (None, *away):
            if step is not None:
                for key in ("acme", "other", *others):
                    world.move(key, (first + step) % LANES)
            for key in ("acme", *others):
                sent += 3
                await world.router.ingest(TENANT, events((f"{key}-{sent}", key, START.isoformat(), "3")))
            await world.router.ingest(TENANT, events((f"other-{sent}", "other", START.isoformat(), "1")))
            await look(world.router)
        chain.change(budget("b", "acme", "1000", "1", period="year"))
        await look(world.router)
        await world.settle()
        await look(world.router)
        spent = {form["budget"]: form["spent"] for form in await read(world.router)}
        assert spent["b"] == f"{sent}.00"
        await world.check_well()
        await world.router.close()

    asyncio.run(scene())
