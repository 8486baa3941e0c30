"""Usage of a customer that other lanes keep: what his home lane has been told of it, key by key.

Owns the rows (FOREIGN_STATE: absolute, with the position they are of; the newest wins) and what is known by them. Who
carries it here is `actors/foreign_carrier.py`; what it costs is `billing/spending.py`, what it leaves to reserve
`actors/accounts.py`. A lane's verdicts rest on its own rows alone, so they are the same in every replay.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import polars as pl

from actors.followers import LogMoment, LogRow
from billing.live_state import LiveState, merge_live
from billing.master import MasterData
from storage.usage_log.segment import RowKind

SOURCE = "cloudbilling:foreign-usage"  # of ids; no sender may use it
FOREIGN = "budgets.foreign"  # the decision
EVERY_US = 1_000_000  # at most one row a key and second
STATE_BYTES_MAX = 512 * 1024  # of one key; more is not told (docs/usage-log.md, Budgets)
KIND = int(RowKind.FOREIGN_STATE)


class Told(msgspec.Struct, frozen=True):
    """Usage under one key as its lane had it at a position; `master` are the master data that it was folded by."""

    key: str
    generation: int  # of the partition's owner: after a move a higher one, whatever the numbers
    number: int
    master: int
    state: bytes

    @property
    def position(self) -> tuple[int, int, int]:
        """What is newer; the same rows folded by newer master data may have other cells."""
        return self.generation, self.number, self.master

    @property
    def is_nothing(self) -> bool:
        """Whether there is no usage under the key: it never came, or counts no more."""
        return LiveState.from_bytes(self.state).state.small.height == 0


class ToldCustomer(msgspec.Struct, frozen=True):
    """What is carried to a customer's home lane in one call."""

    customer: str
    keys: list[Told]


@dataclass
class _Known:
    told: Told
    at_us: int
    live: LiveState


@dataclass
class ForeignUsage:
    """By tenant, customer and key; changed by `take` only."""

    _known: dict[str, dict[str, dict[str, _Known]]] = field(default_factory=dict)

    def new_rows(self, tenant_id: str, payload: bytes, moment: LogMoment) -> tuple[list[LogRow], list[str]]:
        """Rows for what is newer than what is known, and not too soon after it; and which keys are settled by that."""
        asked = msgspec.msgpack.decode(payload, type=ToldCustomer)
        known = self._known.get(tenant_id, {}).get(asked.customer, {})
        rows: list[LogRow] = []
        settled: list[str] = []
        for told in asked.keys:
            before = known.get(told.key)
            if before is not None:
                if told.position <= before.told.position or told.state == before.told.state:
                    settled.append(told.key)
                    continue
                if moment.log_time_us - before.at_us < EVERY_US:
                    continue  # it is told again
            elif told.is_nothing:
                settled.append(told.key)
                continue
            settled.append(told.key)
            if len(told.state) > STATE_BYTES_MAX:
                continue
            rows.append(told_row(asked.customer, told, moment.now_us(tenant_id)))
        return rows, settled

    def take(self, tenant_id: str, rows: pl.DataFrame, moment: LogMoment) -> set[str]:
        """Take the FOREIGN_STATE rows among these; the customers that they are of."""
        found: set[str] = set()
        for customer, told in _told_in(rows):
            of_customer = self._known.setdefault(tenant_id, {}).setdefault(customer, {})
            before = of_customer.get(told.key)
            if before is None or told.position > before.told.position:
                of_customer[told.key] = _Known(told, moment.log_time_us, LiveState.from_bytes(told.state))
            found.add(customer)
        return found

    def forget(self, tenant_id: str, customers: Collection[str]) -> None:
        """What was told of customers who are at home in another lane now."""
        of_tenant = self._known.get(tenant_id, {})
        for customer in customers:
            of_tenant.pop(customer, None)

    def tenants(self) -> list[str]:
        return list(self._known)

    def customers(self, tenant_id: str) -> Collection[str]:
        return self._known.get(tenant_id, {}).keys()

    def usage(
        self, tenant_id: str, customer: str, keys: Collection[str], more: pl.DataFrame | None = None
    ) -> list[tuple[int, LiveState]]:
        """(master number, usage) of each of a customer's keys that is known, with rows that are about to be put."""
        known = {key: (one.told, one.live) for key, one in self._known.get(tenant_id, {}).get(customer, {}).items()}
        for owner, told in () if more is None else _told_in(more):
            if owner == customer and (told.key not in known or told.position > known[told.key][0].position):
                known[told.key] = told, LiveState.from_bytes(told.state)
        return [(told.master, live) for key, (told, live) in sorted(known.items()) if key in keys]

    def freeze(self) -> list[tuple[str, str, int, Told]]:
        return [
            (tenant_id, customer, one.at_us, one.told)
            for tenant_id, customers in self._known.items()
            for customer, keys in customers.items()
            for one in keys.values()
        ]

    def thaw(self, rows: Sequence[tuple[str, str, int, Told]]) -> None:
        self._known = {}
        for tenant_id, customer, at_us, told in rows:
            of_customer = self._known.setdefault(tenant_id, {}).setdefault(customer, {})
            of_customer[told.key] = _Known(told, at_us, LiveState.from_bytes(told.state))

    def clear(self) -> None:
        self._known = {}


def told_row(customer: str, told: Told, at_us: int) -> LogRow:
    detail: dict[str, Any] = {
        "key": told.key,
        "generation": told.generation,
        "number": told.number,
        "master": told.master,
        "state": base64.b64encode(told.state).decode(),
    }
    id = "/".join(map(str, (told.key, *told.position)))
    return LogRow(RowKind.FOREIGN_STATE, SOURCE, id, customer, at_us, detail, "foreign_state")


def _told_in(rows: pl.DataFrame) -> list[tuple[str, Told]]:
    kinds = rows["kind"].to_list()
    if KIND not in kinds:
        return []
    mine = rows.filter(pl.col("kind") == KIND)
    found: list[tuple[str, Told]] = []
    for customer, detail in zip(mine["customer"], mine["detail"], strict=True):
        form = msgspec.json.decode(detail)
        state = base64.b64decode(form["state"])
        found.append((customer, Told(form["key"], form["generation"], form["number"], form["master"], state)))
    return found


def together(parts: Sequence[LiveState]) -> LiveState | None:
    """Usage under different keys as one; None if there is none."""
    whole: LiveState | None = None
    for part in parts:
        whole = part if whole is None else merge_live(whole, part)
    return whole


def foreign_keys(master: MasterData, owners: Mapping[str, tuple[int, int]]) -> dict[str, list[str]]:
    """Of customers with a budget or credit: the keys of which their home lane must be told.

    `owners` are (lane, generation) by key. Those that have not lain in one lane with the customer's code from the
    beginning: what comes there by itself counts by itself (`BudgetWatch`).
    """
    customers = {budget.customer for budget in master.budgets.values()} | set(master.wallet_customers)
    found: dict[str, list[str]] = {}
    for customer in sorted(customers):
        home = owners.get(customer)
        keys = [
            key
            for key in master.keys_of(customer)
            if key != customer and home is not None and key in owners and (owners[key] != home or home[1] > 0)
        ]
        if keys:
            found[customer] = keys
    return found
