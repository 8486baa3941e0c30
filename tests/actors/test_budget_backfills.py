"""Backfills in budgets: they count from their commit to their revert, to the last digit; alerts are raised once."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from actors.amendment_desk import AmendmentDesk
from actors.backfill_desk import BackfillDesk
from actors.budget_watch import BudgetWatch
from actors.foreign_carrier import ForeignCarrier
from actors.lane_past import LanePast
from actors.local_router import LocalLaneCalls, LocalUsageRouter
from actors.partition_mover import move_partition
from actors.rating_shard import ShardSettings
from actors.shard_followers import shard_followers
from billing.amendments import Amendment
from billing.live_state import rate_live
from billing.rate_uses import rate_uses, usage_piece
from billing.running import running_uses
from billing.usage import EVENT_SCHEMA
from storage.object_store import LocalObjectStore
from storage.usage_log.counting import scan_counting
from storage.usage_log.lane import count_lanes, walk
from storage.usage_log.partitions import partition_of
from storage.usage_log.proving import prove_log
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.segment import RowKind
from tests.actors.test_budget_watch import (
    PRICES,
    TENANT,
    Chain,
    alerts,
    budget,
    catalog,
    crossed,
    customer,
    events,
    look,
    read,
)

SIMS = [f"sim-{number}" for number in range(6)]
MAY, JUNE = datetime(2026, 5, 1, 12, tzinfo=UTC), datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = "2026-06-02T12:00:00+02:00"


class World:
    """Lanes in this process that can be killed and let partitions go, and who carries usage between them."""

    def __init__(self, folder: Path, chain: Chain, *, lanes: int = 1, inline_max: int = 1_000) -> None:
        self.store = LocalObjectStore(folder / "store")
        self.chain, self.lanes, self.inline_max = chain, lanes, inline_max
        self.open()

    def open(self) -> None:
        self.watches: dict[int, BudgetWatch] = {}

        def followers(lane: int, master: Any, store: Any) -> Sequence[Any]:
            made = shard_followers(lane, master, store)
            watch = made[0]
            assert isinstance(watch, BudgetWatch)
            watch._past = LanePast(lane, store, inline_max=self.inline_max)
            self.watches[lane] = watch
            return made

        self.router = LocalUsageRouter.open(
            self.store,
            shards=self.lanes,
            master=self.chain,
            followers=followers,
            settings=ShardSettings(checkpoint_rows=60),
        )
        self.desk = BackfillDesk(self.router, self.store)
        self.carrier = ForeignCarrier(self.router, self.chain, lambda: [TENANT])

    async def again(self) -> None:
        await self.router.close()
        self.open()

    async def send(self, name: str, *rows: tuple[str, str, str, str]) -> None:
        await self.desk.open(TENANT, name, "somebody")
        await self.desk.send(TENANT, name, events(*rows))

    async def commit(self, name: str) -> None:
        await self.desk.commit(TENANT, name, "somebody")

    async def revert(self, name: str) -> None:
        await self.desk.revert(TENANT, name, "somebody", "wrong unit")

    async def amend(self, id_: str, key: str, data: dict[str, str] | None, to_key: str = "") -> None:
        desk = AmendmentDesk(self.router, UsageLogReader(self.store))
        (now,) = desk.look(TENANT, [("t", id_)]).of("t", id_, key)
        assert now.state is not None
        after = None
        if data is not None:
            form = {**vars(now.state), "data": json.dumps(data), "customer": to_key or now.state.customer}
            after = type(now.state)(**form)
        name = f"{id_}-{now.nth + 1}"
        change = Amendment(name, now.nth + 1, now.event, now.state, after, "test", "tester", 0, counts_late=True)
        (outcome,) = await desk.decide(TENANT, [change])
        assert outcome.decided is not None, outcome.detail

    def move(self, key: str, to_lane: int) -> None:
        partition = partition_of(self.router._genesis.seed, TENANT, key)
        (lane,) = [one.lane for one in self.router.shards.values() if partition in one.status().owned]
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
                if known is None or set(known.sent) == set(known.owner):
                    return
            await asyncio.sleep(0.1)
        raise AssertionError("usage is told again and again")

    async def spent(self) -> str:
        [form] = await read(self.router)
        return form["spent"]

    def spent_by_month(self) -> dict[tuple[str, int], Fraction]:
        found: dict[tuple[str, int], Fraction] = {}
        for watch in self.watches.values():
            state = watch.state(TENANT)
            if state is None:
                continue
            for code in state.watch.budgets:
                for start, cost in state.spending.budgets.spent.get((code, "month"), {}).items():
                    if cost:
                        found[code, (start + timedelta(days=5)).month] = cost
        return found

    async def compare(self) -> None:
        """What budgets have spent, what live figures cost and what a bill run rates are one number."""
        await self.settle()
        await look(self.router)
        for status in (await self.router.status()).lanes:
            assert (status.followers_error, status.figures_error) == ("", "")
        master = self.chain.states[-1]
        reader = UsageLogReader(self.store)
        frames = [frame.select(EVENT_SCHEMA.names()) for frame in scan_counting(reader, TENANT, reader.now())]
        came = pl.concat([pl.DataFrame(schema=EVENT_SCHEMA), *frames])
        usage = (await self.router.usage(TENANT)).live
        billed: dict[tuple[str, int], Fraction] = {}
        live: dict[tuple[str, int], Fraction] = {}
        for code in sorted({one.customer for one in master.budgets.values()}):
            for month in (MAY, JUNE):
                uses = running_uses(master, code, month)
                rows = [row for part in rate_uses(master, uses, came).values() for row in part]
                billed[code, month.month] = sum((Fraction(row.amount) for row in rows), Fraction(0))
                if usage is not None:
                    rated = rate_live([usage_piece(master, use) for use in uses], usage, master.rating_book())
                    live[code, month.month] = sum((Fraction(row.amount) for row in rated.rows()), Fraction(0))
        whole = {key: cost for key, cost in billed.items() if cost}
        assert {key: cost for key, cost in live.items() if cost} == whole
        assert self.spent_by_month() == whole

    def recorded(self) -> Counter[str]:
        return Counter(
            row["id"]
            for lane in range(count_lanes(self.store))
            for segment in walk(self.store, lane, 0)
            for row in segment.rows().iter_rows(named=True)
            if row["kind"] == RowKind.THRESHOLD_CROSSED
        )


def scene_of(world: World, scene: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        try:
            await world.router.advance_clock(TENANT, MAY + timedelta(days=50))
            await scene()
        finally:
            await world.router.close()

    asyncio.run(whole())


def test_a_backfill_counts_from_its_commit_to_its_revert_and_raises_each_alert_once(tmp_path: Path) -> None:
    chain = Chain([*catalog(), *customer("acme"), budget("b", "acme", "20", "50", "100")])
    world = World(tmp_path, chain)

    async def scene() -> None:
        await world.router.ingest(TENANT, events(("1", "acme", DAY, "4")))
        await world.send("b1", ("2", "acme", DAY, "7"))
        await look(world.router)
        assert (await world.spent(), await alerts(world.router)) == ("4.00", []), "sent, and nothing counts"
        await world.commit("b1")
        assert await world.spent() == "11.00"
        found = await alerts(world.router)
        assert crossed(found) == [("b", "50")]
        # In the very segment in which the lane shows it.
        (segment,) = walk(world.store, 0, found[0]["position"][2], found[0]["position"][2])
        assert int(RowKind.BACKFILL_NOTED) in segment.rows()["kind"].to_list()
        await world.commit("b1")
        await world.again()
        assert (await world.spent(), crossed(await alerts(world.router))) == ("11.00", [("b", "50")])
        await world.revert("b1")
        assert (await world.spent(), crossed(await alerts(world.router))) == ("4.00", [("b", "50")])
        await world.send("b2", ("2", "acme", DAY, "17"))
        await world.commit("b2")
        assert (await world.spent(), crossed(await alerts(world.router))) == ("21.00", [("b", "50"), ("b", "100")])
        await world.again()
        assert await world.spent() == "21.00"
        await world.compare()

    scene_of(world, scene)
    assert world.recorded() == {"b/2026-05-31T22:00:00+00:00/50": 1, "b/2026-05-31T22:00:00+00:00/100": 1}


def test_a_budget_that_is_defined_after_the_commit_counts_the_backfill(tmp_path: Path) -> None:
    chain = Chain([*catalog(), *customer("acme")])
    world = World(tmp_path, chain)

    async def scene() -> None:
        await world.send("gone", ("1", "acme", DAY, "100"))
        await world.commit("gone")
        await world.revert("gone")
        await world.send("b1", ("2", "acme", DAY, "7"), ("4", "acme", DAY, "1"))
        await world.commit("b1")
        await world.send("open", ("3", "acme", DAY, "50"))
        await world.amend("2", "acme", {"gb": "8"})
        chain.change(budget("b", "acme", "20", "40"))
        await world.compare()
        assert (await world.spent(), crossed(await alerts(world.router))) == ("9.00", [("b", "40")])
        await world.again()
        await world.revert("b1")
        assert await world.spent() == "0.00"
        await world.compare()

    scene_of(world, scene)


def test_a_long_lane_is_read_by_a_thread_and_the_backfill_counts_by_the_next_look(tmp_path: Path) -> None:
    chain = Chain([*catalog(), *customer("acme"), *customer("bolt"), budget("b", "acme", "20", "50")])
    world = World(tmp_path, chain, inline_max=2)

    async def scene() -> None:
        for number in range(6):
            await world.router.ingest(TENANT, events((f"e{number}", "acme", DAY, "1")))
            await asyncio.sleep(0.05)
        for _ in range(100):
            if await _spent_now(world) == "6.00":
                break
            await asyncio.sleep(0.05)
        await world.send("b1", ("x", "acme", DAY, "7"), ("y", "bolt", DAY, "900"))
        await world.commit("b1")
        for _ in range(100):
            if await _spent_now(world) == "13.00":
                break
            await asyncio.sleep(0.05)
        assert (await world.spent(), crossed(await alerts(world.router))) == ("13.00", [("b", "50")])
        await world.revert("b1")
        for _ in range(100):
            if await _spent_now(world) == "6.00":
                break
            await asyncio.sleep(0.05)
        assert (await world.spent(), crossed(await alerts(world.router))) == ("6.00", [("b", "50")])

    scene_of(world, scene)
    assert sum(world.recorded().values()) == 1


async def _spent_now(world: World) -> str:
    forms = await read(world.router)
    return forms[0]["spent"] if forms else ""


def test_a_key_of_another_lane_that_had_nothing_but_a_reverted_backfill_costs_nothing_again(tmp_path: Path) -> None:
    chain = Chain([*catalog(), *customer("acme", *SIMS), budget("b", "acme", "20", "50")])
    world = World(tmp_path, chain, lanes=3)

    async def scene() -> None:
        assert len(set(world.router.lanes_of(TENANT, ["acme", *SIMS]))) > 1
        await world.send("b1", *((f"e{n}", sim, DAY, "2") for n, sim in enumerate(SIMS)))
        await world.commit("b1")
        await world.compare()
        assert await world.spent() == "12.00"
        await world.revert("b1")
        await world.compare()
        assert (await world.spent(), crossed(await alerts(world.router))) == ("0.00", [("b", "50")])

    scene_of(world, scene)


def test_a_backfill_that_was_committed_before_its_partition_came_to_a_younger_lane_is_reverted_there(
    tmp_path: Path,
) -> None:
    chain = Chain([*catalog(), *customer("acme"), budget("b", "acme", "20", "50")])
    world = World(tmp_path, chain, lanes=2)

    async def scene() -> None:
        await world.router.ingest(TENANT, events(("1", "acme", DAY, "4")))
        await world.send("b1", ("2", "acme", DAY, "7"))
        await world.commit("b1")
        world.router.add_lane()
        world.lanes = 3
        world.move("acme", 2)
        await world.compare()
        assert await world.spent() == "11.00"
        await world.revert("b1")
        await world.compare()
        assert (await world.spent(), crossed(await alerts(world.router))) == ("4.00", [("b", "50")])
        world.move("acme", 0)
        await world.again()
        await world.compare()
        assert (await world.spent(), crossed(await alerts(world.router))) == ("4.00", [("b", "50")])

    scene_of(world, scene)


def test_a_customer_who_goes_before_his_lane_took_a_backfill_on_has_it_where_he_comes(tmp_path: Path) -> None:
    """The lane that he comes to is younger than the commit: it has no note of it."""
    chain = Chain([*catalog(), *customer("acme"), *customer("bolt"), budget("b", "acme", "20", "50")])
    world = World(tmp_path, chain)

    async def scene() -> None:
        await world.router.ingest(TENANT, events(("1", "acme", DAY, "4"), ("2", "bolt", DAY, "1")))
        await look(world.router)
        await world.send("b1", ("3", "acme", DAY, "7"))
        world.watches[0]._past.inline_max = 0  # its past is read by a thread, which never comes to it
        world.watches[0]._past._start_reading = lambda *_: None  # type: ignore[method-assign]
        await world.commit("b1")
        assert await world.spent() == "4.00"
        world.router.add_lane()
        world.lanes = 2
        world.move("acme", 1)
        await look(world.router)  # as its own ticking asks for within a second
        assert (await world.spent(), crossed(await alerts(world.router))) == ("11.00", [("b", "50")])
        await world.again()
        await world.compare()
        await world.revert("b1")
        await world.compare()
        assert (await world.spent(), crossed(await alerts(world.router))) == ("4.00", [("b", "50")])

    scene_of(world, scene)
    assert set(world.recorded().values()) == {1}


@pytest.mark.parametrize("seed", range(4))
def test_spent_live_and_billed_are_one_number_while_backfills_come_and_go(tmp_path: Path, seed: int) -> None:
    """Random lives: live events, backfills, amendments, new budgets, restarts, with odd seeds moves of partitions."""
    chance = random.Random(seed)
    price = PRICES[seed % len(PRICES)]
    steps = [*catalog(price), *customer("acme", *SIMS[: 0 if seed % 2 else 6]), *customer("bolt")]
    world = World(tmp_path, Chain([*steps, budget("b", "acme", "30", "50", "100")]), lanes=3)
    keys = ["acme", "bolt", *([] if seed % 2 else SIMS)]
    sent = 0
    open_: list[str] = []
    committed: list[str] = []
    ids: dict[str, list[tuple[str, str]]] = {"": []}  # by backfill, "": sent live; (id, key)

    def rows(of: str) -> list[tuple[str, str, str, str]]:
        nonlocal sent
        found: list[tuple[str, str, str, str]] = []
        for _ in range(chance.randint(1, 12)):
            moment = chance.choice([MAY, JUNE]) + timedelta(minutes=chance.randrange(25 * 24 * 60))
            value = "many" if chance.random() < 0.05 else str(chance.randint(1, 9))
            found.append((f"e{sent}", chance.choice(keys), moment.isoformat(), value))
            ids.setdefault(of, []).append(found[-1][:2])
            sent += 1
        return found

    async def scene() -> None:
        await world.router.advance_clock(TENANT, JUNE + timedelta(days=40))  # nothing lies ahead
        for step in range(30):
            what = chance.random()
            counting = [one for name in ("", *committed) for one in ids[name]]
            if what < 0.2:
                await world.router.ingest(TENANT, events(*rows("")))
            elif what < 0.4 or not (open_ or committed):
                name = f"b{step}"
                await world.send(name, *rows(name))
                open_.append(name)
            elif what < 0.55 and open_:
                committed.append(open_.pop(chance.randrange(len(open_))))
                await world.commit(committed[-1])
            elif what < 0.65 and committed:
                name = committed.pop(chance.randrange(len(committed)))
                await world.revert(name)
            elif what < 0.75 and counting:
                id_, key = chance.choice(counting)
                for name in ids:  # changed once each: a voided one is nobody's any more
                    ids[name] = [one for one in ids[name] if one[0] != id_]
                data = None if chance.random() < 0.3 else {"gb": str(chance.randint(1, 9))}
                await world.amend(id_, key, data, chance.choice(["", *keys]))
            elif what < 0.82:
                world.chain.change(budget(f"x{step}", chance.choice(["acme", "bolt"]), "5", "100"))
                await look(world.router)
            elif what < 0.9:
                await world.again()
            elif seed % 2:
                world.move(chance.choice(keys), chance.randrange(3))
            else:
                await world.carrier.round()
            if step % 10 == 9:
                await world.compare()
        await world.compare()
        before = world.spent_by_month(), [one["id"] for one in await alerts(world.router)]
        await world.again()
        await world.compare()
        assert (world.spent_by_month(), [one["id"] for one in await alerts(world.router)]) == before

    scene_of(world, scene)
    assert prove_log(world.store, TENANT, UsageLogReader(world.store).now()).found == 0
    recorded = world.recorded()
    assert set(recorded.values()) <= {1}
