"""Budgets in a lane: alerts in the very segment that crosses, once for ever, and spent as an oracle over the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from actors.amendment_desk import AmendmentDesk
from actors.budget_watch import ALERTS, LOOK, READ, BudgetWatch
from actors.lane_past import LanePast, NotRead
from actors.local_router import LocalUsageRouter
from billing.amendments import Amendment
from billing.errors import BillingError, InvalidInput, NotFound
from billing.master import MasterData
from billing.usage import EVENT_SCHEMA
from storage.object_store import LocalObjectStore, ObjectStore
from storage.usage_log.lane import walk
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.segment import RowKind
from tests.actors.budget_oracle import Expected, expected
from tests.usage_log_support import Hooked, encoded

TENANT = "t1"
AT = "2026-01-01"
BEGUN = "2026-05-01"
PER_UNIT = {"model": "per_unit", "unit": "1"}


class Chain:
    """A master chain in memory that knows every number."""

    def __init__(self, steps: Sequence[Mapping[str, Any]], **tenant: str) -> None:
        form = {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE", **tenant}
        self.states = [MasterData.start(form).apply_all(steps)]

    def change(self, *steps: Mapping[str, Any]) -> int:
        self.states.append(self.states[-1].apply_all(steps))
        return len(self.states) - 1

    def newest(self, tenant_id: str, *, at_least: int = 0) -> tuple[int, MasterData]:
        if tenant_id != TENANT:
            raise NotFound("no such tenant")
        return len(self.states) - 1, self.states[-1]

    def cached(self, tenant_id: str, *, at_least: int = 0) -> tuple[int, MasterData]:
        return self.newest(tenant_id, at_least=at_least)

    def at(self, tenant_id: str, number: int) -> MasterData:
        return self.states[number]


def catalog(price: Mapping[str, Any] = PER_UNIT, aggregation: str = "sum") -> list[dict[str, Any]]:
    charge = {"code": "gb", "kind": "usage", "meter": "gb", "price": price, "tax": "vat"}
    return [
        {"at": AT, "tax_code": {"code": "vat", "percents": [{"from": "2000-01-01", "percent": "19"}]}},
        {"at": AT, "meter": {"code": "gb", "event_type": "traffic", "aggregation": aggregation, "value": "gb"}},
        {"at": AT, "publish": {"plan": {"code": "p", "currency": "EUR", "interval": "month", "charges": [charge]}}},
    ]


def customer(code: str, *keys: str) -> list[dict[str, Any]]:
    form = {"code": code, "name": code, "country": "DE", "tax_treatment": "domestic", "keys": list(keys)}
    return [
        {"at": AT, "customer": form},
        {"at": BEGUN, "subscribe": {"code": f"s-{code}", "customer": code, "plan": "p", "anchor": "calendar"}},
    ]


def budget(code: str, of: str, amount: str, *thresholds: str | dict[str, str], period: str = "month") -> dict[str, Any]:
    form = {"code": code, "customer": of, "amount": amount, "period": period, "thresholds": list(thresholds)}
    return {"at": AT, "budget": form}


def events(*rows: tuple[str, str, str, str]) -> pl.DataFrame:
    """(id, customer, time, value) each."""
    return pl.DataFrame(
        [
            ("t", id, "traffic", key, None, datetime.fromisoformat(time).astimezone(UTC), json.dumps({"gb": value}))
            for id, key, time, value in rows
        ],
        schema=EVENT_SCHEMA,
        orient="row",
    )


async def look(router: LocalUsageRouter) -> None:
    for _ in range(5):
        answers = await router.decide_everywhere(TENANT, LOOK, b"")
        if set(answers) == {b"done"}:
            return
    raise AssertionError("the look did not come through")


async def read(router: LocalUsageRouter, **asked: Any) -> list[dict[str, Any]]:
    answers = await router.decide_everywhere(TENANT, READ, msgspec.json.encode(asked))
    return [form for answer in answers for form in msgspec.json.decode(answer)]


async def alerts(router: LocalUsageRouter) -> list[dict[str, Any]]:
    answers = await router.decide_everywhere(TENANT, ALERTS, msgspec.json.encode({}))
    return sorted((form for answer in answers for form in msgspec.json.decode(answer)), key=lambda one: one["position"])


def crossed(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(one["budget"], one["threshold"]) for one in found]


def test_an_alert_stands_in_the_segment_that_crosses_and_is_raised_once(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path / "store")
    chain = Chain([*catalog(), *customer("acme"), budget("b", "acme", "20", "50", "80", "100")])

    async def scene() -> None:
        router = LocalUsageRouter.open(store, master=chain)
        await router.ingest(TENANT, events(("1", "acme", "2026-05-02T12:00:00+02:00", "9.99")))
        assert await alerts(router) == []
        batch = events(("2", "acme", "2026-05-05T12:00:00+02:00", "11"))
        positions = (await router.ingest(TENANT, batch)).positions
        await router.ingest(TENANT, batch)
        found = await alerts(router)
        assert crossed(found) == [("b", "50"), ("b", "80"), ("b", "100")]
        assert [one["spent"] for one in found] == ["20.99"] * 3
        (segment,) = walk(store, 0, positions[0], positions[0])
        kinds = segment.rows()["kind"].to_list()
        assert kinds.count(int(RowKind.USAGE)) == 1
        assert kinds.count(int(RowKind.THRESHOLD_CROSSED)) == 3
        await router.ingest(TENANT, events(("3", "acme", "2026-06-01T12:00:00+02:00", "10")))
        assert crossed(await alerts(router))[3:] == [("b", "50")]
        await router.close()

    asyncio.run(scene())


# --- random lives against an oracle over the log ------------------------------------------------------------------

PRICES: list[dict[str, Any]] = [
    PER_UNIT,
    {"model": "graduated", "tiers": [{"up_to": "20", "unit": "1"}, {"up_to": None, "unit": "0.3", "flat": "2"}]},
    {"model": "volume", "tiers": [{"up_to": "25", "unit": "1.1"}, {"up_to": None, "unit": "0.7"}]},
    {"model": "package", "size": "7", "amount": "5"},
    {"model": "percentage", "percent": "10", "per_event": "0.2", "free_events": "3", "free_value": "11"},
]
CUSTOMERS = ("acme", "bolt", "core")


def random_catalog(chance: random.Random) -> list[dict[str, Any]]:
    """Two meters on one type of events, one of them perhaps a level."""
    level = chance.random() < 0.5
    charges = [
        {"code": "gb", "kind": "usage", "meter": "gb", "price": chance.choice(PRICES), "tax": "vat"},
        {
            "code": "held",
            "kind": "usage",
            "meter": "held",
            "price": {"model": "per_unit", "unit": "0.01"},
            "tax": "vat",
        },
    ]
    if chance.random() < 0.3:
        charges[0]["minimum"] = "4"
    found = catalog()[:2]
    held = {"code": "held", "event_type": "traffic", "aggregation": "time_weighted_sum" if level else "max"}
    found.append({"at": AT, "meter": {**held, "value": "gb"}})
    plan = {"code": "p", "currency": "EUR", "interval": chance.choice(["month", "week"]), "charges": charges}
    found.append({"at": AT, "publish": {"plan": plan}})
    return found


def random_change(chance: random.Random, clock: datetime, count: int) -> list[dict[str, Any]]:
    """Something that takes budgets, keys, prices or customers further."""
    at = clock.isoformat()
    one = chance.choice(CUSTOMERS[:2])
    match chance.randrange(4):
        case 0:
            period = chance.choice(["day", "week", "month"])
            amount = str(chance.randint(5, 60))
            made = budget(f"b{count}", one, amount, "25", {"amount": str(chance.randint(1, 70))}, "100", period=period)
            return [{**made, "at": at}]
        case 1:
            unit = str(chance.randint(1, 3))
            price = {"model": "per_unit", "unit": unit}
            return [{"at": at, "override": {"subscription": f"s-{one}", "charge": "gb", "price": price}}]
        case 2:
            keys = {"code": "bolt", "keys": ["sim-1"]}
            return [{"at": at, "customer": {"name": "bolt", "country": "DE", "tax_treatment": "domestic", **keys}}]
        case _:
            charge = {"code": "gb", "kind": "usage", "meter": "gb", "price": chance.choice(PRICES), "tax": "vat"}
            plan = {"code": f"p{count}", "currency": "EUR", "interval": "month", "charges": [charge]}
            change = {"subscription": f"s-{one}", "plan": f"p{count}", "when": "now"}
            return [{"at": at, "publish": {"plan": plan}}, {"at": at, "change": change}]


def random_batch(chance: random.Random, clock: datetime, sent: list[tuple[str, str, str, str]]) -> pl.DataFrame:
    """Events of three customers, a key that is nobody's yet and some repeats; a few cannot be read."""
    rows: list[tuple[str, str, str, str]] = []
    for _ in range(chance.randint(1, 12)):
        if sent and chance.random() < 0.25:
            rows.append(chance.choice(sent))
            continue
        time = clock + timedelta(minutes=chance.randint(-30 * 24 * 60, 180))
        value = "many" if chance.random() < 0.05 else str(chance.randint(1, 9))
        key = chance.choice([*CUSTOMERS, "sim-1"])
        rows.append((f"e{len(sent) + len(rows)}", key, time.isoformat(), value))
    sent += rows
    return events(*dict.fromkeys(rows))


def check(watch: BudgetWatch, wanted: Expected) -> None:
    """The state is what the oracle finds in the log, and each alert stands once, in the segment that crossed."""
    state = watch.state(TENANT)
    assert state is not None
    budgets = state.spending.budgets
    spent = {(*key, start): cost for key, starts in budgets.spent.items() for start, cost in starts.items() if cost}
    assert spent == {key: cost for key, cost in wanted.spent.items() if cost}
    levels = {(*key, start): cost for key, starts in budgets.levels.items() for start, cost in starts.items() if cost}
    assert levels == {key: cost for key, cost in wanted.levels.items() if cost}
    assert {number: set(rows) for number, rows in wanted.rows.items() if rows} == {
        number: new for number, new in wanted.new.items() if new
    }
    recorded = [alert for rows in wanted.rows.values() for alert in rows]
    assert len(recorded) == len(set(recorded))
    assert {key for keys in budgets.raised.values() for key in keys} == set(recorded)


@pytest.mark.parametrize("seed", range(2))
def test_spent_and_alerts_are_what_an_oracle_finds_in_the_log(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    store = LocalObjectStore(tmp_path / "store")
    clock = datetime(2026, 5, 20, 10, tzinfo=UTC)
    chain = Chain([*random_catalog(chance), *(step for one in CUSTOMERS for step in customer(one))])
    watches: list[BudgetWatch] = []

    def followers(lane: int, master: Any, there: Any) -> list[BudgetWatch]:
        # With odd seeds a lane is long from its third number on: its past is read by a thread.
        past = LanePast(lane, there, inline_max=2 if seed % 2 else 1_000)
        watches.append(BudgetWatch(lane, master, there, past=past))
        return watches[-1:]

    async def scene() -> None:
        nonlocal clock
        router = LocalUsageRouter.open(store, master=chain, followers=followers)
        await router.advance_clock(TENANT, clock)
        sent: list[tuple[str, str, str, str]] = []
        for step in range(15):
            what = chance.random()
            if what < 0.15 and step != 5:
                clock += timedelta(hours=chance.randint(1, 60))
                await router.advance_clock(TENANT, clock)
            elif what < 0.4 or step == 5:
                change = random_change(chance, clock, step) if step != 5 else [budget("b", "acme", "30", "50", "100")]
                with contextlib.suppress(InvalidInput):  # e.g. two overrides of one moment
                    chain.change(*change)
                if chance.random() < 0.5:
                    await look(router)
            elif what < 0.5 and step > 6:
                await router.close()  # as after a crash: what was folded is gone
                router = LocalUsageRouter.open(store, master=chain, followers=followers)
            else:
                batches = [random_batch(chance, clock, sent) for _ in range(chance.randint(1, 3))]
                await asyncio.gather(*(router.ingest(TENANT, batch) for batch in batches))
        await look(router)
        (status,) = (await router.status()).lanes
        assert status.followers_error == ""
        wanted = expected(store, TENANT, chain)
        check(watches[-1], wanted)
        await router.close()
        again = LocalUsageRouter.open(store, master=chain, followers=followers)
        check(watches[-1], wanted)
        await again.close()

    asyncio.run(scene())


# --- one rule each ------------------------------------------------------------------------------------------------


def spent_of(forms: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {form["budget"]: form["spent"] for form in forms}


def test_a_budget_that_is_defined_later_alerts_at_once_for_what_is_already_spent(tmp_path: Path) -> None:
    chain = Chain([*catalog(), *customer("acme")])

    async def scene() -> None:
        router = LocalUsageRouter.open(LocalObjectStore(tmp_path / "store"), master=chain)
        clock = datetime(2026, 5, 20, tzinfo=UTC)
        await router.advance_clock(TENANT, clock)
        await router.ingest(TENANT, events(("1", "acme", "2026-05-02T12:00:00+02:00", "60")))
        chain.change(budget("b", "acme", "100", "50", "100"))
        await router.advance_clock(TENANT, clock + timedelta(days=3))
        (alert,) = await alerts(router)
        assert (alert["threshold"], alert["at"]) == ("50", "2026-05-20T00:00:00Z"), "under the clock of that time"
        (form,) = await read(router)
        assert (form["spent"], form["left"], form["percent"]) == ("60.00", "40.00", "60")
        assert form["thresholds"][0]["crossed_at"] == "2026-05-20T00:00:00Z"
        assert form["forecast"]["elapsed_percent"] == "71.23"  # 22 days and 2 hours of 31 days
        assert form["forecast"]["amount"] == "84.23"
        await router.close()

    asyncio.run(scene())


def test_what_waits_in_suspense_counts_when_master_data_or_the_clock_let_it(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path / "store")
    chain = Chain([*catalog()[:1], *customer("acme")[:1], budget("b", "acme", "100", "50")])

    async def scene() -> None:
        router = LocalUsageRouter.open(store, master=chain)
        clock = datetime(2026, 5, 20, tzinfo=UTC)
        await router.advance_clock(TENANT, clock)
        await router.ingest(TENANT, events(("no-meter", "acme", "2026-05-02T12:00:00+02:00", "30")))
        assert spent_of(await read(router)) == {"b": "0.00"}
        chain.change(*catalog()[1:], *customer("acme")[1:])
        await look(router)
        assert spent_of(await read(router)) == {"b": "30.00"}
        await router.ingest(TENANT, events(("ahead", "acme", "2026-05-20T12:00:00+02:00", "15")))
        await router.ingest(TENANT, events(("sim", "sim-7", "2026-05-03T12:00:00+02:00", "4")))
        assert spent_of(await read(router)) == {"b": "30.00"}
        await router.advance_clock(TENANT, clock + timedelta(days=1))
        assert spent_of(await read(router)) == {"b": "45.00"}
        chain.change(customer("acme", "sim-7")[0])
        await look(router)
        assert spent_of(await read(router)) == {"b": "49.00"}
        assert await alerts(router) == []
        await router.ingest(TENANT, events(("last", "sim-7", "2026-05-03T12:00:00+02:00", "1")))
        assert crossed(await alerts(router)) == [("b", "50")]
        await router.close()

    asyncio.run(scene())


def test_a_change_of_plan_within_a_day_folds_what_came_before_again(tmp_path: Path) -> None:
    """Events of one day on both sides of a cut lie in one folded cell until the cut is known."""
    price = {"model": "graduated", "tiers": [{"up_to": "10", "unit": "1"}, {"up_to": None, "unit": "5"}]}
    chain = Chain([*catalog(price), *customer("acme"), budget("b", "acme", "1000", "50")])

    async def scene() -> None:
        router = LocalUsageRouter.open(LocalObjectStore(tmp_path / "store"), master=chain)
        await router.advance_clock(TENANT, datetime(2026, 5, 20, 14, tzinfo=UTC))
        first = ("1", "acme", "2026-05-20T08:00:00+02:00", "8")
        await router.ingest(TENANT, events(first, ("2", "acme", "2026-05-20T14:00:00+02:00", "2")))
        override = {"subscription": "s-acme", "charge": "gb", "price": price}
        chain.change({"at": "2026-05-20T12:00:00+02:00", "override": override})
        await look(router)
        # The old piece has 8, the new one 2: so 3 more fit into the first tier of the new one.
        await router.ingest(TENANT, events(("3", "acme", "2026-05-20T15:00:00+02:00", "3")))
        assert spent_of(await read(router)) == {"b": "13.00"}
        await router.close()

    asyncio.run(scene())


def test_corrections_change_what_was_spent_and_raise_no_alert_twice(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path / "store")
    price = {"model": "graduated", "tiers": [{"up_to": "10", "unit": "1"}, {"up_to": None, "unit": "2"}]}
    chain = Chain([*catalog(price), *customer("acme"), budget("b", "acme", "20", "50", "100")])
    watches: list[BudgetWatch] = []

    def followers(lane: int, master: Any, there: Any) -> list[BudgetWatch]:
        watches.append(BudgetWatch(lane, master, there))
        return watches[-1:]

    async def scene() -> None:
        router = LocalUsageRouter.open(store, master=chain, followers=followers)
        desk = AmendmentDesk(router, UsageLogReader(store))
        await router.advance_clock(TENANT, datetime(2026, 5, 20, tzinfo=UTC))
        time = "2026-05-02T12:00:00+02:00"
        await router.ingest(
            TENANT, events(("1", "acme", time, "9"), ("2", "acme", time, "3"), ("3", "acme", time, "x"))
        )
        assert spent_of(await read(router)) == {"b": "14.00"}
        await amend(desk, "3", {"gb": "1"})
        assert spent_of(await read(router)) == {"b": "16.00"}, "what was in suspense counts as corrected"
        await amend(desk, "1", {"gb": "12"})
        assert spent_of(await read(router)) == {"b": "22.00"}
        await amend(desk, "2", None)
        assert spent_of(await read(router)) == {"b": "16.00"}
        await amend(desk, "1", {"gb": "20"})
        assert spent_of(await read(router)) == {"b": "32.00"}
        assert crossed(await alerts(router)) == [("b", "50"), ("b", "100")]
        state = watches[-1].state(TENANT)
        assert state is not None
        before = state.spending.budgets.spent
        await router.close()
        router = LocalUsageRouter.open(store, master=chain, followers=followers)
        again = watches[-1].state(TENANT)
        assert again is not None
        assert again.spending.budgets.spent == before
        await router.close()

    asyncio.run(scene())


async def amend(desk: AmendmentDesk, id_: str, data: dict[str, str] | None) -> None:
    (now,) = desk.look(TENANT, [("t", id_)]).of("t", id_, None)
    assert now.state is not None
    after = None if data is None else replace(now.state, data=json.dumps(data))
    name = f"a{id_}-{now.nth + 1}"
    change = Amendment(name, now.nth + 1, now.event, now.state, after, "test", "tester", 0, counts_late=True)
    (outcome,) = await desk.decide(TENANT, [change])
    assert outcome.decided is not None, outcome.detail


def test_levels_cost_by_the_clock_and_late_ones_change_what_was_looked_at(tmp_path: Path) -> None:
    price = {"model": "per_unit", "unit": "1"}
    chain = Chain([*catalog(price, "time_weighted_sum"), *customer("acme"), budget("b", "acme", "100", "24", "48")])

    async def scene() -> None:
        router = LocalUsageRouter.open(LocalObjectStore(tmp_path / "store"), master=chain)
        clock = datetime(2026, 5, 20, tzinfo=UTC)
        await router.advance_clock(TENANT, clock)
        await router.ingest(TENANT, events(("1", "acme", "2026-05-19T23:00:00+00:00", "2")))
        assert spent_of(await read(router)) == {"b": "2.00"}
        await router.advance_clock(TENANT, clock + timedelta(hours=11))
        assert spent_of(await read(router)) == {"b": "24.00"}
        await router.ingest(TENANT, events(("2", "acme", "2026-05-20T03:00:00+00:00", "3")))
        assert spent_of(await read(router)) == {"b": "32.00"}, "4 hours at 2, 8 at 3"
        await router.advance_clock(TENANT, clock + timedelta(hours=17))
        assert spent_of(await read(router)) == {"b": "50.00"}
        found = await alerts(router)
        assert [(one["threshold"], one["at"]) for one in found] == [
            ("24", "2026-05-20T11:00:00Z"),
            ("48", "2026-05-20T17:00:00Z"),
        ]
        await router.close()

    asyncio.run(scene())


def test_an_idle_tenant_is_looked_at_after_a_minute(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path / "store")
    chain = Chain([*catalog(), *customer("acme"), budget("b", "acme", "100", "50")])
    now_s = 0.0

    def followers(lane: int, master: Any, there: Any) -> list[BudgetWatch]:
        return [BudgetWatch(lane, master, there, now_s=lambda: now_s)]

    async def scene() -> None:
        nonlocal now_s
        router = LocalUsageRouter.open(store, master=chain, followers=followers)
        await router.ingest(TENANT, events(("1", "acme", "2026-05-02T12:00:00+02:00", "60")))
        chain.change(budget("late", "acme", "10", "100"))
        await asyncio.sleep(1.2)  # more than an idle round of the shard
        assert crossed(await alerts(router)) == [("b", "50")]
        now_s = 61.0
        for _ in range(100):
            if len(await alerts(router)) == 2:
                break
            await asyncio.sleep(0.1)
        assert crossed(await alerts(router)) == [("b", "50"), ("late", "100")]
        await router.close()

    asyncio.run(scene())


def test_the_past_of_a_long_lane_is_read_by_a_thread_while_usage_goes_on(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path / "store")
    chain = Chain([*catalog(), *customer("acme")])
    reading, read_on = threading.Event(), threading.Event()
    watches: list[BudgetWatch] = []

    def slow(what: str, key: str) -> None:
        if threading.current_thread().name == "lane-past":
            reading.set()
            assert read_on.wait(20.0)

    def followers(lane: int, master: Any, there: Any) -> list[BudgetWatch]:
        watches.append(BudgetWatch(lane, master, there, past=LanePast(lane, Hooked(there, slow), inline_max=2)))
        return watches[-1:]

    async def scene() -> None:
        router = LocalUsageRouter.open(store, master=chain, followers=followers)
        for day in range(1, 6):
            await router.ingest(TENANT, events((str(day), "acme", f"2026-05-0{day}T12:00:00+02:00", "10")))
        chain.change(budget("b", "acme", "100", "50", "70"))
        await asyncio.sleep(1.1)  # the follower asks for master data once a second
        await router.ingest(TENANT, events(("6", "acme", "2026-05-06T12:00:00+02:00", "10")))
        assert await asyncio.to_thread(reading.wait, 20.0)
        await router.ingest(TENANT, events(("7", "acme", "2026-05-07T12:00:00+02:00", "10")))
        assert watches[-1].state(TENANT) is None, "nothing is taken on before the past is known"
        read_on.set()
        await look(router)
        assert crossed(await alerts(router)) == [("b", "50"), ("b", "70")]
        check(watches[-1], expected(store, TENANT, chain))
        await router.close()

    asyncio.run(scene())


def test_a_lane_that_is_folded_again_does_not_count_what_a_thread_had_read_ahead(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path / "store")
    chain = Chain([*catalog(), *customer("acme")])
    watches: list[BudgetWatch] = []
    past: list[LanePast] = []

    def followers(lane: int, master: Any, there: Any) -> list[BudgetWatch]:
        past.append(LanePast(lane, there, inline_max=3))
        watches.append(BudgetWatch(lane, master, there, past=past[-1]))
        return watches[-1:]

    async def scene() -> None:
        router = LocalUsageRouter.open(store, master=chain, followers=followers)
        await router.advance_clock(TENANT, datetime(2026, 5, 20, tzinfo=UTC))
        await router.ingest(TENANT, events(("1", "acme", "2026-05-01T12:00:00+02:00", "10")))
        chain.change(budget("b", "acme", "100", "50", "70"))
        await look(router)
        for day in range(2, 6):
            await router.ingest(TENANT, events((str(day), "acme", f"2026-05-0{day}T12:00:00+02:00", "10")))
        chain.change(budget("c", "acme", "10", "100", period="day"), *customer("bolt"), budget("d", "bolt", "10"))
        with contextlib.suppress(NotRead):  # as a look that must read the past of a lane that is long
            past[-1].rows(TENANT, ["acme", "bolt"], None, wait=False)
        past[-1]._threads[TENANT].join(20.0)
        first = past[-1].rows(TENANT, ["acme"], 3, wait=True)
        assert [frame["id"].to_list() for frame in first] == [["1"]], "the past of a number is what came before it"
        shard = router.shards[0]
        shard.state.followers.not_stored()  # as after a group that the store refused
        shard._refold_at_s = 0.0
        assert spent_of(await read(router))["b"] == "50.00"
        await look(router)
        check(watches[-1], expected(store, TENANT, chain))
        await router.close()

    asyncio.run(scene())


@pytest.mark.parametrize("first", ["look", "clock"])
def test_usage_in_front_of_the_first_look_counts_though_nobody_watched_when_it_came(tmp_path: Path, first: str) -> None:
    """All wait while a put is held: without a look between them they would make one group."""
    store = LocalObjectStore(tmp_path / "store")
    chain = Chain([*catalog(), *customer("acme")])
    watches: list[BudgetWatch] = []
    holds, held, release = False, threading.Event(), threading.Event()

    def before(call: str, key: str) -> None:
        if holds and call == "create" and "/lanes/" in key:
            held.set()
            assert release.wait(20.0)

    def followers(lane: int, master: Any, there: Any) -> list[BudgetWatch]:
        watches.append(BudgetWatch(lane, master, there, now_s=lambda: 0.0))  # what is known grows no older
        return watches[-1:]

    async def scene() -> None:
        nonlocal holds
        router = LocalUsageRouter.open(Hooked(store, before), master=chain, followers=followers)

        def send(day: int) -> asyncio.Task[Any]:
            batch = events((str(day), "acme", f"2026-05-0{day}T12:00:00+02:00", "10"))
            return asyncio.create_task(router.ingest(TENANT, batch))

        async def wait_for(rows: int) -> None:
            for _ in range(2_000):
                if router.shards[0].status().queued_rows >= rows:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError("nothing waits")

        clock = datetime(2026, 5, 20, tzinfo=UTC)
        await router.advance_clock(TENANT, clock)
        await send(1)
        holds = True
        asked = [send(2)]
        assert await asyncio.to_thread(held.wait, 20.0)
        chain.change(budget("b", "acme", "100", "30", "40"))
        asked.append(send(3))
        await wait_for(1)
        looks = look(router) if first == "look" else router.advance_clock(TENANT, clock + timedelta(days=1))
        looking = asyncio.create_task(looks)
        await wait_for(2)
        asked.append(send(4))
        await wait_for(3)
        release.set()
        await asyncio.gather(looking, *asked)
        assert spent_of(await read(router)) == {"b": "40.00"}
        assert crossed(await alerts(router)) == [("b", "30"), ("b", "40")]
        wanted = expected(store, TENANT, chain)
        check(watches[-1], wanted)
        await router.close()
        again = LocalUsageRouter.open(store, master=chain, followers=followers)
        check(watches[-1], wanted)
        await again.close()

    asyncio.run(scene())


def test_usage_around_a_decision_counts_live_as_it_does_in_a_replay(tmp_path: Path) -> None:
    """Two keys in two partitions, two days, a tier between them: who comes first decides which day pays more."""
    price = {"model": "graduated", "tiers": [{"up_to": "10", "unit": "1"}, {"up_to": None, "unit": "5"}]}
    keys = [f"sim-{number}" for number in range(6)]
    chain = Chain([*catalog(price), *customer("acme", *keys), budget("b", "acme", "1000", "50", period="day")])
    store = LocalObjectStore(tmp_path / "store")
    gate = threading.Event()
    gate.set()

    def before(call: str, key: str) -> None:
        if call == "create" and "/lanes/" in key:
            assert gate.wait(20)

    watches: list[BudgetWatch] = []

    def followers(lane: int, master: Any, there: Any) -> list[BudgetWatch]:
        watches.append(BudgetWatch(lane, master, there))
        return watches[-1:]

    def spent() -> dict[datetime, Any]:
        state = watches[-1].state(TENANT)
        assert state is not None
        return dict(state.spending.budgets.spent["acme", "day"])

    async def scene() -> None:
        router = LocalUsageRouter.open(Hooked(store, before), master=chain, followers=followers)
        await look(router)
        shard = router.shards[0]
        assert shard.genesis is not None

        def sent(id: str, key: str, day: int) -> Any:
            batch = events((id, key, f"2026-05-{day:02}T12:00:00+02:00", "6"))
            return shard.submit(encoded(shard.genesis.seed, batch, TENANT))  # type: ignore[union-attr]

        gate.clear()
        waiting: list[Any] = [sent("w", "acme", 1)]
        await asyncio.sleep(0.1)  # its put is under way: the others come together into the next group
        for number, key in enumerate(keys):
            waiting.append(sent(f"e{number}", key, 10 + number))
            waiting.append(asyncio.ensure_future(read(router)))
            await asyncio.sleep(0.02)
        gate.set()
        await asyncio.gather(*(asyncio.wrap_future(one) if isinstance(one, Future) else one for one in waiting))
        await read(router)  # what came before it was applied
        live = spent()
        await router.close()
        await LocalUsageRouter.open(store, master=chain, followers=followers).close()
        assert spent() == live

    asyncio.run(scene())


def test_a_tenant_without_budgets_is_not_watched(tmp_path: Path) -> None:
    chain = Chain([*catalog(), *customer("acme")])
    store = LocalObjectStore(tmp_path / "store")
    watches: list[BudgetWatch] = []

    def followers(lane: int, master: Any, there: Any) -> list[BudgetWatch]:
        watches.append(BudgetWatch(lane, master, there))
        return watches[-1:]

    async def scene() -> None:
        router = LocalUsageRouter.open(store, master=chain, followers=followers)
        await router.ingest(TENANT, events(("1", "acme", "2026-05-02T12:00:00+02:00", "60")))
        await look(router)
        assert not watches[0].watches(TENANT)
        assert watches[0].state(TENANT) is None
        assert {segment.head.rows for segment in walk(store, 0, 0)} == {0, 1}
        await router.close()

    asyncio.run(scene())


def test_a_snapshot_gives_the_same_state_back(tmp_path: Path) -> None:
    chain = Chain([*catalog(), *customer("acme"), budget("b", "acme", "20", "50", "100")])
    store = LocalObjectStore(tmp_path / "store")
    watches: list[BudgetWatch] = []

    def followers(lane: int, master: Any, there: Any) -> list[BudgetWatch]:
        watches.append(BudgetWatch(lane, master, there))
        return watches[-1:]

    async def scene() -> None:
        router = LocalUsageRouter.open(store, master=chain, followers=followers)
        time = "2026-05-02T12:00:00+02:00"
        await router.ingest(TENANT, events(("1", "acme", time, "12"), ("2", "acme", time, "x")))
        found = await alerts(router)
        packed = watches[0].freeze()()
        other = BudgetWatch(0, chain, store)
        other.thaw(packed, 99)
        state, copy = watches[0].state(TENANT), other.state(TENANT)
        assert state is not None
        assert copy is not None
        assert copy.spending.budgets == state.spending.budgets
        assert copy.waiting.equals(state.waiting)
        assert copy.watch.number == state.watch.number
        assert other.freeze()() == packed
        assert crossed(found) == [("b", "50")]
        await router.close()

    asyncio.run(scene())


# --- crashes ------------------------------------------------------------------------------------------------------


class Killed(BillingError):
    """The process ends here."""


class Mortal(Hooked):
    """A store whose process dies at its n-th write to a lane: before it, or after it without an answer."""

    def __init__(self, store: ObjectStore, dies_at: int, after: bool) -> None:
        super().__init__(store, lambda _what, _key: None)
        self.writes, self.dies_at, self.after = 0, dies_at, after

    def create(self, key: str, data: bytes) -> bool:
        if not key.startswith("log/lanes/"):
            return self.store.create(key, data)
        self.writes += 1
        if self.writes < self.dies_at:
            return self.store.create(key, data)
        if self.writes == self.dies_at and self.after:
            self.store.create(key, data)
        raise Killed("killed")


LIFE: list[list[tuple[str, str, str, str]]] = [
    [("1", "acme", "2026-05-02T12:00:00+02:00", "9")],
    [("2", "acme", "2026-05-03T12:00:00+02:00", "2"), ("3", "bolt", "2026-05-03T12:00:00+02:00", "11")],
    [("4", "acme", "2026-05-04T12:00:00+02:00", "5"), ("2", "acme", "2026-05-03T12:00:00+02:00", "2")],
    [("5", "acme", "2026-05-05T12:00:00+02:00", "30"), ("6", "acme", "2026-06-01T12:00:00+02:00", "10")],
]


async def send_until_dead(router: LocalUsageRouter, batch: Sequence[tuple[str, str, str, str]]) -> None:
    for _ in range(100):
        try:
            await router.ingest(TENANT, events(*batch))
            return
        except BillingError:
            if not router.shards[0].serving:
                raise
    raise AssertionError("the shard serves and answers nothing")


@pytest.mark.parametrize(("dies_at", "after"), [(2, False), (2, True), (3, True), (4, False), (5, True)])
def test_each_alert_is_raised_once_whenever_the_shard_dies_and_batches_come_again(
    tmp_path: Path, dies_at: int, after: bool
) -> None:
    store = LocalObjectStore(tmp_path / "store")
    steps = [*catalog(), *customer("acme"), *customer("bolt")]
    chain = Chain([*steps, budget("b", "acme", "20", "50", "100"), budget("c", "bolt", "10", "100", period="week")])
    watches: list[BudgetWatch] = []

    def followers(lane: int, master: Any, there: Any) -> list[BudgetWatch]:
        watches.append(BudgetWatch(lane, master, there))
        return watches[-1:]

    async def scene() -> None:
        mortal = Mortal(store, dies_at, after)
        try:
            router = LocalUsageRouter.open(mortal, master=chain, followers=followers, deadline_s=0.2)
            for batch in LIFE:
                await send_until_dead(router, batch)
            await router.close()
        except BillingError:  # its sender does not know what became of the batch
            pass
        assert mortal.writes >= dies_at, "it was to die on the way"
        router = LocalUsageRouter.open(store, master=chain, followers=followers)
        for batch in [*LIFE, *LIFE]:
            await router.ingest(TENANT, events(*batch))
        assert sorted(crossed(await alerts(router))) == [("b", "100"), ("b", "50"), ("b", "50"), ("c", "100")]
        check(watches[-1], expected(store, TENANT, chain))
        assert spent_of(await read(router, customer="acme")) == {"b": "0.00"}  # of this month
        await router.close()

    asyncio.run(scene())
