"""Usage under keys that other lanes keep: budgets and reservations of the customer's home lane see it, once."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from actors.accounts_desk import AccountsDesk
from actors.budget_watch import BudgetWatch
from actors.foreign_carrier import ForeignCarrier
from actors.foreign_usage import FOREIGN
from actors.local_router import LocalUsageRouter
from actors.shard_followers import shard_followers
from billing.due import Use
from billing.live_state import rate_live
from billing.rate_uses import rate_uses, usage_piece
from billing.running import running_uses
from storage.object_store import LocalObjectStore
from storage.usage_log.lane import walk
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
)

LANES = 3
SIMS = [f"sim-{number}" for number in range(8)]
MAY, JUNE = datetime(2026, 5, 1, 12, tzinfo=UTC), datetime(2026, 6, 1, 12, tzinfo=UTC)


class World:
    """Lanes in this process that can be killed, their budget watches, and who carries usage between them."""

    def __init__(self, folder: Path, chain: Chain) -> None:
        self.store = LocalObjectStore(folder / "store")
        self.chain = chain
        self.watches: dict[int, BudgetWatch] = {}
        self.open()

    def open(self) -> None:
        def followers(lane: int, master: Any, store: Any) -> Sequence[Any]:
            made = shard_followers(lane, master, store)
            watch = made[0]
            assert isinstance(watch, BudgetWatch)
            self.watches[lane] = watch
            return made

        self.router = LocalUsageRouter.open(self.store, shards=LANES, master=self.chain, followers=followers)
        self.carrier = ForeignCarrier(self.router, self.chain, lambda: [TENANT])

    def home(self, code: str) -> BudgetWatch:
        return self.watches[self.router.lanes_of(TENANT, [code])[0]]

    def spent(self, code: str) -> dict[datetime, Fraction]:
        state = self.home(code).state(TENANT)
        assert state is not None
        return {start: cost for start, cost in state.spending.budgets.spent[code, "month"].items() if cost}

    def told(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for lane in range(LANES):
            for segment in walk(self.store, lane, 0):
                for row in segment.rows().iter_rows(named=True):
                    if row["kind"] == RowKind.FOREIGN_STATE:
                        found.append({**json.loads(row["detail"]), "at": segment.head.log_time_us, "lane": lane})
        return found

    def is_spread(self) -> bool:
        return len(set(self.router.lanes_of(TENANT, ["acme", *SIMS]))) > 1

    async def settle(self) -> None:
        """Carry until nothing is new: a key is told once a second at most."""
        for _ in range(40):
            if await self.carrier.round() == 0 and not await self._waits():
                return
            await asyncio.sleep(0.1)
        raise AssertionError("usage is told again and again")

    async def _waits(self) -> bool:
        probe = ForeignCarrier(self.router, self.chain, lambda: [TENANT])
        before = len(self.told())
        await probe.round()
        known = probe._known.get(TENANT)
        if known is None or not known.owner:
            return len(self.told()) != before
        # What was told a moment ago is told later.
        return len(self.told()) != before or set(known.sent) != set(known.owner)


def test_usage_of_other_lanes_crosses_a_threshold_once_and_survives_a_kill(tmp_path: Path) -> None:
    chain = Chain([*catalog(), *customer("acme", *SIMS), budget("b", "acme", "20", "50", "100")])

    async def scene() -> None:
        world = World(tmp_path, chain)
        assert world.is_spread()
        rows = [(f"e{n}", sim, "2026-05-02T12:00:00+02:00", "1.5") for n, sim in enumerate(SIMS)]
        await world.router.ingest(TENANT, events(*rows))
        await world.settle()
        await look(world.router)
        assert (sum(world.spent("acme").values()), crossed(await alerts(world.router))) == (12, [("b", "50")])
        rows_before = len(world.told())
        assert rows_before == sum(
            lane != world.router.lanes_of(TENANT, ["acme"])[0] for lane in world.router.lanes_of(TENANT, SIMS)
        )
        await world.carrier.round()
        await ForeignCarrier(world.router, chain, lambda: [TENANT]).round()  # another process that knows nothing
        assert len(world.told()) == rows_before
        await world.router.ingest(TENANT, events(*[(f"f{n}", sim, *rest) for n, (_, sim, *rest) in enumerate(rows)]))  # type: ignore[misc]
        await world.settle()
        assert crossed(await alerts(world.router)) == [("b", "50"), ("b", "100")]
        spent = world.spent("acme")
        assert sum(spent.values()) == 24
        await world.router.close()
        world.open()
        assert world.spent("acme") == spent
        assert crossed(await alerts(world.router)) == [("b", "50"), ("b", "100")]
        await world.router.close()

    asyncio.run(scene())


def test_old_news_and_news_too_soon_are_not_written(tmp_path: Path) -> None:
    chain = Chain([*catalog(), *customer("acme", *SIMS), budget("b", "acme", "20", "50")])

    async def scene() -> None:
        world = World(tmp_path, chain)
        sim = next(
            one for one in SIMS if world.router.lanes_of(TENANT, [one]) != world.router.lanes_of(TENANT, ["acme"])
        )
        sent: list[bytes] = []
        decide = world.router.decide

        async def spied(tenant_id: str, key: str, name: str, payload: bytes) -> bytes:
            if name == FOREIGN:
                sent.append(payload)
            return await decide(tenant_id, key, name, payload)

        world.router.decide = spied  # type: ignore[method-assign]
        await world.router.ingest(TENANT, events(("1", sim, "2026-05-02T12:00:00+02:00", "1")))
        await world.carrier.round()
        await world.router.ingest(TENANT, events(("2", sim, "2026-05-02T12:00:00+02:00", "2")))
        assert await world.carrier.round() == 0  # within a second of the first
        assert len(world.told()) == 1
        await asyncio.sleep(1.05)
        assert await world.carrier.round() == 1
        first, second = world.told()
        assert second["at"] - first["at"] >= 1_000_000
        assert second["number"] > first["number"]
        await decide(TENANT, "acme", FOREIGN, sent[0])  # late: it was on its way
        assert len(world.told()) == 2
        await look(world.router)
        assert sum(world.spent("acme").values()) == 3
        await world.router.close()

    asyncio.run(scene())


def test_use_is_reserved_by_what_it_costs_among_usage_of_all_lanes(tmp_path: Path) -> None:
    price = {"model": "graduated", "tiers": [{"up_to": "10", "unit": "0.10"}, {"up_to": None, "unit": "0.01"}]}
    credit = {"at": "2026-01-01", "top_up": {"customer": "acme", "amount": "50.00", "kind": "promotional"}}
    chain = Chain([*catalog(price), *customer("acme", *SIMS), credit])
    now = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)

    async def scene() -> None:
        world = World(tmp_path, chain)
        home = world.router.lanes_of(TENANT, ["acme"])[0]
        away = [sim for sim, lane in zip(SIMS, world.router.lanes_of(TENANT, SIMS), strict=True) if lane != home]
        desk = AccountsDesk(world.router)
        asked = {"customer": "acme", "usage": {"meter": "gb", "quantity": "10"}}
        [before] = await desk.reserve(TENANT, [{**asked, "id": "r1"}])
        assert isinstance(before, dict)
        assert before["granted"] == "1.00"
        await world.router.ingest(TENANT, events(("1", away[0], now.isoformat(), "100")))
        await world.settle()
        [after] = await desk.reserve(TENANT, [{**asked, "id": "r2"}])
        assert isinstance(after, dict)
        assert after["granted"] == "0.10"  # the ten that are cheap came from another lane
        await world.router.close()

    asyncio.run(scene())


def test_usage_that_a_cut_divides_later_is_told_again_and_counted_once(tmp_path: Path) -> None:
    """Until it is told in the new cells, what it has cost stays; then the difference is booked, and no more."""
    price = {"model": "graduated", "tiers": [{"up_to": "10", "unit": "1"}, {"up_to": None, "unit": "5"}]}
    chain = Chain([*catalog(price), *customer("acme", *SIMS), budget("b", "acme", "1000", "50")])

    async def scene() -> None:
        world = World(tmp_path, chain)
        home = world.router.lanes_of(TENANT, ["acme"])[0]
        away = [sim for sim, lane in zip(SIMS, world.router.lanes_of(TENANT, SIMS), strict=True) if lane != home]
        first = ("1", away[0], "2026-05-20T08:00:00+02:00", "8")
        await world.router.ingest(TENANT, events(first, ("2", away[0], "2026-05-20T14:00:00+02:00", "4")))
        await world.settle()
        await look(world.router)
        assert sum(world.spent("acme").values()) == 10 + 2 * 5
        override = {"subscription": "s-acme", "charge": "gb", "price": price}
        chain.change({"at": "2026-05-20T12:00:00+02:00", "override": override})
        await look(world.router)
        await world.router.ingest(TENANT, events(("3", "acme", "2026-05-20T15:00:00+02:00", "3")))
        assert sum(world.spent("acme").values()) >= 20
        await asyncio.sleep(1.05)
        await world.settle()
        # The old piece has 8, the new one 4 + 3: all of them fit into the first tier.
        assert sum(world.spent("acme").values()) == 15
        await world.router.close()
        world.open()
        assert sum(world.spent("acme").values()) == 15
        await world.router.close()

    asyncio.run(scene())


@pytest.mark.parametrize("seed", range(3))
def test_live_spent_and_billed_are_one_number_over_several_lanes(tmp_path: Path, seed: int) -> None:
    """Whatever order usage comes and is carried in: to the last digit."""
    chance = random.Random(seed)
    price = PRICES[seed % len(PRICES)]
    chain = Chain(
        [*catalog(price), *customer("acme", *SIMS), *customer("bolt"), budget("b", "acme", "30", "50", "100")]
    )
    sent: list[tuple[str, str, str, str]] = []

    async def scene() -> None:
        world = World(tmp_path, chain)
        for step in range(12):
            what = chance.random()
            if what < 0.2:
                await world.carrier.round()
            elif what < 0.3:
                await world.router.close()
                world.open()
            elif what < 0.4:
                chain.change(budget(f"b{step}", chance.choice(["acme", "bolt"]), "5", "100"))
                await look(world.router)
            else:
                rows = [
                    (
                        f"e{step}-{n}",
                        chance.choice(["acme", "bolt", *SIMS]),
                        (chance.choice([MAY, JUNE]) + timedelta(minutes=chance.randrange(25 * 24 * 60))).isoformat(),
                        str(chance.randint(1, 9)),
                    )
                    for n in range(chance.randint(1, 20))
                ]
                sent.extend(rows)
                await world.router.ingest(TENANT, events(*rows))
        await world.settle()
        await look(world.router)
        await _compare(world, events(*sent))
        await world.router.close()
        world.open()
        await _compare(world, events(*sent))
        await world.router.close()

    asyncio.run(scene())


async def _compare(world: World, came: pl.DataFrame) -> None:
    master = world.chain.states[-1]
    book = master.rating_book()
    usage = await world.router.usage(TENANT)
    assert usage.live is not None
    budgeted = {one.customer for one in master.budgets.values()}
    for code in sorted(budgeted):
        uses: list[tuple[datetime, Use]] = []
        for month in (MAY, JUNE):
            uses += [(month, use) for use in running_uses(master, code, month)]
        billed: dict[int, Fraction] = {}
        for place, rows in rate_uses(master, [use for _, use in uses], came).items():
            month = uses[place][0].month
            billed[month] = billed.get(month, Fraction(0)) + sum((Fraction(row.amount) for row in rows), Fraction(0))
        live: dict[int, Fraction] = {}
        rated = rate_live([usage_piece(master, use) for _, use in uses], usage.live, book)
        for row in rated.rows():
            month = uses[row.piece][0].month
            live[month] = live.get(month, Fraction(0)) + Fraction(row.amount)
        spent = {(start + timedelta(days=5)).month: cost for start, cost in world.spent(code).items()}
        whole = {month: cost for month, cost in billed.items() if cost}
        assert {month: cost for month, cost in live.items() if cost} == whole
        assert spent == whole
