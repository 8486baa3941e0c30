"""Live figures: what a shard folds is what the log says, whatever the batches, restarts and changes of master data."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from actors import live_figures
from actors.local_router import LocalUsageRouter
from actors.rating_shard import ShardSettings
from billing.errors import NotFound, Unavailable
from billing.live_state import rate_live
from billing.master import MasterData
from billing.rating import UsagePiece, rate
from billing.usage import Verdict
from storage.object_store import LocalObjectStore
from storage.usage_log.reader import UsageLogReader
from tests.usage_log_support import TENANT, make_events

START = datetime(2026, 5, 1, tzinfo=UTC)
END = datetime(2026, 6, 1, tzinfo=UTC)
METERS: list[dict[str, Any]] = [
    {"at": "2026-01-01", "tax_code": {"code": "standard", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
    {
        "at": "2026-01-01",
        "meter": {"code": "storage", "event_type": "storage", "aggregation": "sum", "value": "gb"},
    },
    {
        "at": "2026-01-01",
        "publish": {
            "plan": {
                "code": "plan",
                "currency": "EUR",
                "interval": "month",
                "charges": [
                    {
                        "code": "storage",
                        "kind": "usage",
                        "meter": "storage",
                        "price": {"model": "per_unit", "unit": "0.123456789"},
                        "tax": "standard",
                    }
                ],
            }
        },
    },
]


def contract(customer: str, at: str = "2026-01-01") -> list[dict[str, Any]]:
    return [
        {
            "at": at,
            "customer": {"code": customer, "name": customer, "country": "DE", "tax_treatment": "domestic"},
        },
        {
            "at": at,
            "subscribe": {"code": f"s-{customer}", "customer": customer, "plan": "plan", "anchor": "calendar"},
        },
    ]


class Chain:
    """A master chain in memory with the interface of storage/master_chain.py: there is no SQL anywhere in this file."""

    def __init__(self, steps: Sequence[dict[str, Any]]) -> None:
        start = MasterData.start({"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"})
        self.master = start.apply_all(steps)
        self.number = 1
        self.away = False

    def change(self, steps: Sequence[dict[str, Any]]) -> int:
        self.master = self.master.apply_all(steps)
        self.number += 1
        return self.number

    def newest(self, tenant_id: str, *, at_least: int = 0) -> tuple[int, MasterData]:
        if self.away:
            raise Unavailable("the store is away")
        if tenant_id != TENANT:
            raise NotFound("no such tenant")
        assert self.number >= at_least
        return self.number, self.master

    def cached(self, tenant_id: str, *, at_least: int = 0) -> tuple[int, MasterData]:
        return self.newest(tenant_id, at_least=at_least)

    def at(self, tenant_id: str, number: int) -> MasterData:
        assert number == self.number, "nobody asks for older states here"
        return self.master


def pieces(chain: Chain, customers: Sequence[str]) -> list[UsagePiece]:
    (charge,) = chain.master.plan("plan").charges
    return [UsagePiece(one, f"s-{one}", charge, START, END) for one in customers]


def amounts(rated: Any) -> dict[int, tuple[Fraction, Fraction, int]]:
    return {row.piece: (Fraction(row.quantity), Fraction(row.amount), row.events) for row in rated.rows()}


async def live_amounts(router: LocalUsageRouter, chain: Chain, customers: Sequence[str]) -> dict[int, Any]:
    usage = await router.usage(TENANT, customers)
    assert usage.live is not None
    return amounts(rate_live(pieces(chain, customers), usage.live, chain.master.rating_book()))


def logged_amounts(store: LocalObjectStore, chain: Chain, customers: Sequence[str]) -> dict[int, Any]:
    reader = UsageLogReader(store)
    events = pl.concat(list(reader.scan(TENANT, reader.now())))
    return amounts(rate(pieces(chain, customers), events, chain.master.rating_book()))


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


CUSTOMERS = [f"customer-{number}" for number in range(12)]


@pytest.mark.parametrize("batch", [37, 400])
def test_live_equals_billed_to_the_last_digit_on_three_lanes(store: LocalObjectStore, batch: int) -> None:
    chain = Chain([*METERS, *(step for one in CUSTOMERS for step in contract(one))])

    async def scene() -> None:
        router = LocalUsageRouter.open(store, shards=3, master=chain)
        for first in range(0, 800, batch):
            result = await router.ingest(TENANT, make_events(batch, first, customers=12))
            assert (result.verdicts == Verdict.ACCEPTED).all()
            await router.ingest(TENANT, make_events(batch, first, customers=12))  # all of it once more
        live = await live_amounts(router, chain, CUSTOMERS)
        assert live == logged_amounts(store, chain, CUSTOMERS)
        assert len(live) == 12
        await router.close()

    asyncio.run(scene())


def test_a_restart_from_a_snapshot_gives_the_same_figures_as_a_fresh_fold(store: LocalObjectStore) -> None:
    chain = Chain([*METERS, *(step for one in CUSTOMERS for step in contract(one))])
    settings = ShardSettings(checkpoint_rows=500)

    async def scene() -> None:
        router = LocalUsageRouter.open(store, master=chain, settings=settings)
        for first in range(0, 3000, 300):
            await router.ingest(TENANT, make_events(300, first, customers=12))
        before = await live_amounts(router, chain, CUSTOMERS)
        await asyncio.sleep(1.0)
        (status,) = (await router.status()).lanes
        assert status.checkpoint > 0, "no snapshot was made, so this test would test nothing"
        await router.close()
        router = LocalUsageRouter.open(store, master=chain, settings=settings)
        assert await live_amounts(router, chain, CUSTOMERS) == before == logged_amounts(store, chain, CUSTOMERS)
        await router.close()

    asyncio.run(scene())


def test_usage_of_an_unknown_key_is_kept_and_rates_by_itself_once_its_customer_comes(store: LocalObjectStore) -> None:
    chain = Chain(METERS)

    async def scene() -> None:
        router = LocalUsageRouter.open(store, shards=3, master=chain)
        result = await router.ingest(TENANT, make_events(48, customers=12))
        assert (result.verdicts == Verdict.SUSPENDED).all()
        assert set(result.reasons) == {"unknown_customer"}
        number = chain.change([step for one in CUSTOMERS for step in contract(one, at="2026-04-01")])
        result = await router.ingest(TENANT, make_events(48, first=48, customers=12), master_number=number)
        assert (result.verdicts == Verdict.ACCEPTED).all(), "the shard did not load the number it was told"
        repeat = await router.ingest(TENANT, make_events(48, customers=12))
        assert (repeat.verdicts == Verdict.DUPLICATE).all()
        live = await live_amounts(router, chain, CUSTOMERS)
        assert live == logged_amounts(store, chain, CUSTOMERS)
        assert sum(events for _, _, events in live.values()) == 96
        await router.close()

    asyncio.run(scene())


def test_a_cut_that_comes_after_the_usage_folds_again(store: LocalObjectStore) -> None:
    """A contract that begins in the middle of a day with usage on both sides of its beginning."""
    chain = Chain(METERS)

    async def scene() -> None:
        router = LocalUsageRouter.open(store, master=chain)
        day = make_events(40, customers=1).with_columns(
            time=pl.lit(START) + pl.int_range(40) * timedelta(minutes=30)  # 1 May 02:00 to 21:30 in Berlin
        )
        await router.ingest(TENANT, day.with_columns(pl.col("time").cast(pl.Datetime("us", "UTC"))))
        await router.usage(TENANT, ["customer-0"])  # folded by whole days
        chain.change(contract("customer-0", at="2026-05-01T12:00:00+02:00"))
        await asyncio.sleep(1.1)  # what a shard knows of master data is a second old at most
        usage = await router.usage(TENANT, ["customer-0"])
        assert usage.live is not None
        noon = datetime(2026, 5, 1, 10, tzinfo=UTC)
        (charge,) = chain.master.plan("plan").charges
        piece = UsagePiece("customer-0", "s-customer-0", charge, noon, END)
        book = chain.master.rating_book()
        live = amounts(rate_live([piece], usage.live, book))
        reader = UsageLogReader(store)
        billed = amounts(rate([piece], pl.concat(list(reader.scan(TENANT, reader.now()))), book))
        assert live == billed
        assert live[0][2] == 20
        await router.close()

    asyncio.run(scene())


def test_ingest_goes_on_with_the_master_data_it_knows_when_their_store_is_away(store: LocalObjectStore) -> None:
    chain = Chain([*METERS, *contract("customer-0")])

    async def scene() -> None:
        router = LocalUsageRouter.open(store, master=chain)
        await router.ingest(TENANT, make_events(1, customers=1))
        chain.away = True
        await asyncio.sleep(1.1)
        result = await router.ingest(TENANT, make_events(5, first=1, customers=1), master_number=7)
        assert (result.verdicts == Verdict.ACCEPTED).all()
        await router.close()

    asyncio.run(scene())


def test_a_fault_in_rating_stops_neither_ingest_nor_later_figures(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folding breaks in the middle, twice; afterwards every event is counted once, from the log."""
    import actors.live_figures as module

    chain = Chain([*METERS, *(step for one in CUSTOMERS for step in contract(one))])
    monkeypatch.setattr(module, "FOLD_ROWS", 50)
    fold, classify = module.fold_days, module.classify
    faults = {"left": 0}

    def breaks(events: pl.DataFrame, book: Any) -> Any:
        faults["left"] -= 1
        if faults["left"] == 1:
            raise ZeroDivisionError("a fault in folding")
        return fold(events, book)

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a fault in rating")

    async def scene() -> None:
        router = LocalUsageRouter.open(store, master=chain)
        monkeypatch.setattr(module, "classify", broken)
        result = await router.ingest(TENANT, make_events(200, customers=12))
        assert (result.verdicts == Verdict.SUSPENDED).all(), "nobody could judge them, so they are not 'accepted'"
        assert result.reasons.null_count() == 200
        assert "a fault in rating" in (await router.status()).lanes[0].figures_error
        monkeypatch.setattr(module, "classify", classify)
        monkeypatch.setattr(module, "fold_days", breaks)
        for first in (200, 400):
            faults["left"] = 4  # the third of four folds breaks
            await router.ingest(TENANT, make_events(200, first, customers=12))
            with contextlib.suppress(ZeroDivisionError):
                await router.usage(TENANT, CUSTOMERS)
        faults["left"] = 0
        live = await live_amounts(router, chain, CUSTOMERS)
        assert live == logged_amounts(store, chain, CUSTOMERS)
        assert sum(events for _, _, events in live.values()) == 600
        await router.close()

    asyncio.run(scene())


class Fold:
    """Folding that can be held up: `begun` is set when it starts, it goes on with `go_on`."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self._add = live_figures._add

    def __call__(self, *arguments: Any) -> None:
        self.begun.set()
        assert self.go_on.wait(60.0)
        self._add(*arguments)


@pytest.fixture
def fold() -> Iterator[Fold]:
    held = Fold()
    yield held
    held.go_on.set()


async def folded_world(store: LocalObjectStore, chain: Chain, monkeypatch: pytest.MonkeyPatch, fold: Fold) -> Any:
    """A router with 100 events folded and 200 whose folding has begun and does not end."""
    router = LocalUsageRouter.open(store, master=chain)
    await router.ingest(TENANT, make_events(100, customers=12))
    await live_amounts(router, chain, CUSTOMERS)
    monkeypatch.setattr(live_figures, "_add", fold)
    await router.ingest(TENANT, make_events(200, 100, customers=12))
    assert await asyncio.to_thread(fold.begun.wait, 30.0)
    return router


def test_a_question_does_not_wait_until_all_others_are_folded_and_misses_nothing(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch, fold: Fold
) -> None:
    chain = Chain([*METERS, *(step for one in CUSTOMERS for step in contract(one))])

    async def scene() -> None:
        router = await folded_world(store, chain, monkeypatch, fold)
        await router.ingest(TENANT, make_events(50, 300, customers=12))  # waits behind what is being folded
        for asked in (CUSTOMERS[:3], CUSTOMERS):
            live = await asyncio.wait_for(live_amounts(router, chain, asked), 20.0)
            assert live == logged_amounts(store, chain, asked)
        fold.go_on.set()
        whole = await router.usage(TENANT)  # all keys: folded by now
        assert whole.live is not None
        assert await live_amounts(router, chain, CUSTOMERS) == logged_amounts(store, chain, CUSTOMERS)
        await router.close()

    asyncio.run(scene())


def test_rows_left_to_the_log_while_others_are_folded_are_not_lost(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch, fold: Fold
) -> None:
    """More waits than is kept in memory, and that during a fold: what is asked then is read from the log."""
    chain = Chain([*METERS, *(step for one in CUSTOMERS for step in contract(one))])

    async def scene() -> None:
        router = await folded_world(store, chain, monkeypatch, fold)
        monkeypatch.setattr(live_figures, "PENDING_ROWS_MAX", 250)
        for first in (300, 500):
            await router.ingest(TENANT, make_events(200, first, customers=12))
        asked = asyncio.create_task(live_amounts(router, chain, CUSTOMERS))
        await asyncio.sleep(0.2)
        fold.go_on.set()
        assert await asked == logged_amounts(store, chain, CUSTOMERS)
        await router.close()

    asyncio.run(scene())
