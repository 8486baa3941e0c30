"""Budgets in a lane: alerts in the very segment that crosses, once for ever, and spent as an oracle over the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from actors.budget_watch import ALERTS, LOOK, READ
from actors.router import LocalUsageRouter
from billing.errors import NotFound
from billing.master import MasterData
from billing.usage import EVENT_SCHEMA
from storage.object_store import LocalObjectStore
from storage.usage_log.lane import walk
from storage.usage_log.segment import RowKind

TENANT = "t1"
AT = "2026-01-01"
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
        {"at": AT, "subscribe": {"code": f"s-{code}", "customer": code, "plan": "p", "anchor": "calendar"}},
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
