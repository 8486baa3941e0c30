"""Budgets in a lane: alerts in the very segment that crosses, once for ever, and spent as an oracle over the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from actors.budget_watch import ALERTS, LOOK, READ, BudgetWatch
from actors.router import LocalUsageRouter
from billing.errors import InvalidInput, NotFound
from billing.master import MasterData
from billing.usage import EVENT_SCHEMA
from storage.object_store import LocalObjectStore
from storage.usage_log.lane import walk
from storage.usage_log.segment import RowKind
from tests.actors.budget_oracle import Expected, expected

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


def budget(code: str, of: str, amount: str, *thresholds: str, period: str = "month") -> dict[str, Any]:
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
            made = budget(f"b{count}", one, amount, "25", "50", "100", period=period)
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


@pytest.mark.parametrize("seed", range(3))
def test_spent_and_alerts_are_what_an_oracle_finds_in_the_log(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    store = LocalObjectStore(tmp_path / "store")
    clock = datetime(2026, 5, 20, 10, tzinfo=UTC)
    chain = Chain([*random_catalog(chance), *(step for one in CUSTOMERS for step in customer(one))])
    watches: list[BudgetWatch] = []

    def followers(lane: int, master: Any, there: Any) -> list[BudgetWatch]:
        watches.append(BudgetWatch(lane, master, there))
        return watches[-1:]

    async def scene() -> None:
        nonlocal clock
        router = LocalUsageRouter.open(store, master=chain, followers=followers)
        await router.advance_clock(TENANT, clock)
        sent: list[tuple[str, str, str, str]] = []
        for step in range(18):
            what = chance.random()
            if what < 0.15:
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
