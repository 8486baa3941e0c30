"""What the tests of accounts share: master data without SQL, shards in this process that can be killed, a desk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actors.accounts_desk import AccountsDesk
from actors.local_router import LocalUsageRouter
from billing.errors import NotFound, Unavailable
from billing.master import MasterData
from storage.object_store import LocalObjectStore, ObjectStore
from tests.usage_log_support import TENANT

START = datetime(2026, 5, 10, 12, tzinfo=UTC)
CATALOG: list[dict[str, Any]] = [
    {"tax_code": {"code": "standard", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
    {"meter": {"code": "gb", "event_type": "storage", "aggregation": "sum", "value": "gb"}},
    {"publish": {"plan": {"code": "basic", "currency": "EUR", "interval": "month", "charges": [
        {"code": "gb", "kind": "usage", "meter": "gb", "tax": "standard", "price": {"model": "graduated", "tiers": [
            {"up_to": "100", "unit": "0.10"}, {"up_to": None, "unit": "0.08"}]}}]}}},
]  # fmt: skip


@dataclass
class Masters:
    """Master data of tenants in memory: what a shard reads of the chain, with its numbers."""

    tenants: dict[str, tuple[int, MasterData]] = field(default_factory=dict)

    def start(self, tenant_id: str = TENANT, **form: Any) -> None:
        whole = {"currency": "EUR", "timezone": "UTC", "country": "DE", **form}
        self.tenants[tenant_id] = (0, MasterData.start(whole))
        self.apply(*CATALOG, tenant_id=tenant_id)

    def apply(self, *steps: Mapping[str, Any], tenant_id: str = TENANT, at: str = "2026-01-01") -> int:
        number, master = self.tenants[tenant_id]
        self.tenants[tenant_id] = (number + 1, master.apply_all([{"at": at, **step} for step in steps]))
        return number + 1

    def newest(self, tenant_id: str, *, at_least: int = 0) -> tuple[int, MasterData]:
        if tenant_id not in self.tenants:
            raise NotFound("the tenant has no master chain")
        if self.tenants[tenant_id][0] < at_least:
            raise Unavailable("not there yet")
        return self.tenants[tenant_id]

    def cached(self, tenant_id: str, *, at_least: int = 0) -> tuple[int, MasterData]:
        return self.newest(tenant_id, at_least=at_least)


@dataclass
class StandingClock:
    """A clock that a test moves."""

    now: datetime = START

    def now_us(self) -> int:
        return int(self.now.timestamp() * 1_000_000)


@dataclass
class Place:
    """A log with shards over it, which can be killed and opened again."""

    store: ObjectStore
    masters: Masters
    clock: StandingClock
    lanes: int = 2
    router: LocalUsageRouter | None = None

    def open(self) -> AccountsDesk:
        self.router = LocalUsageRouter.open(
            self.store, shards=self.lanes, master=self.masters, clock=self.clock, deadline_s=5.0
        )
        return AccountsDesk(self.router)

    def kill(self) -> None:
        """The shards are gone without a word; whoever opens the lanes next overtakes them."""
        self.router = None

    def close(self) -> None:
        if self.router is not None:
            self.router.stop()


def place(folder: Path, *, lanes: int = 2) -> Place:
    masters = Masters()
    masters.start()
    return Place(LocalObjectStore(folder / "store"), masters, StandingClock(), lanes)


def customer(code: str, **form: Any) -> dict[str, Any]:
    return {"customer": {"code": code, "name": code, "country": "DE", **form}}


def top_up(code: str, amount: str, **form: Any) -> dict[str, Any]:
    return {"top_up": {"customer": code, "amount": amount, "kind": "purchased", **form}}
