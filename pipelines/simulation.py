"""Simulations: what other prices would have earned, over a tenant's past months of real usage.

Owns what a simulation rests on, its chunks of customers and its summary. How it is kept, found again, cancelled and
deleted is `kept_work.py`; the replay of the months is `billing/simulation.py`, events are those that a bill run reads.
All of one lies below `simulations/<tenant>/<id>/` in the object store: its facts, its progress, one Parquet file a
chunk, its summary. Nothing that is billed is read for writing, or touched. Driving one again resumes it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Protocol

import msgspec
import polars as pl

from billing.catalog import EventAmount, Plan
from billing.catalog_forms import parse_plan, to_form
from billing.errors import Conflict
from billing.master import MasterData
from billing.money import round_amount
from billing.simulation import Replay, customers_on, of_customers, with_plan
from pipelines.bill_run_chunk import rateable
from pipelines.data_versions import data_versions
from pipelines.kept_work import Clock, KeptWork, chunk_key, new_id
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql import bill_runs
from storage.sql.database import Database
from storage.usage_log.reader import SCAN_SCHEMA, Cut, UsageLogReader

CHUNK_MAX, CHUNK_MIN, CHUNKS_WANTED = 1_000, 25, 8  # customers of a chunk: as many as show progress, no more
KEPT_MAX = 100  # simulations of one tenant
ROOT = "simulations"
RANKED = 50  # customers that pay most less and most more, in the summary
PARKED_MAX = 1_000
ZERO = Decimal(0)
AMOUNT = pl.Decimal(38, 4)  # no currency has more than four decimals
ROWS = pl.Schema(
    {
        "customer": pl.String,
        "currency": pl.String,
        "charge": pl.String,
        "month": pl.Date,
        "before": AMOUNT,
        "after": AMOUNT,
    }
)
_INNER = ("chunks", "cut", "previous_cut", "now")


@dataclass(frozen=True)
class SimulationTask:
    """Everything that a chunk of a simulation rests on."""

    tenant_id: str
    simulation_id: str
    chunk: int
    customers: tuple[str, ...]
    plan: Mapping[str, Any]  # form
    version: int
    months: tuple[date, ...]
    master_number: int
    cut: str
    previous_cut: str | None
    now: datetime

    @property
    def key(self) -> str:
        return chunk_key(folder(self.tenant_id, self.simulation_id), self.chunk)

    @property
    def title(self) -> str:
        return f"simulation {self.simulation_id[-12:]}, chunk {self.chunk + 1}"


class Executor(Protocol):
    """Computes chunks and gives their numbers as they are done, in any order."""

    def compute(self, tasks: Iterable[SimulationTask]) -> Iterator[int]: ...


@dataclass(frozen=True)
class InProcess:
    """Chunks one after the other in the driver's own process."""

    store: ObjectStore
    database: Database
    chain: MasterChain

    def compute(self, tasks: Iterable[SimulationTask]) -> Iterator[int]:
        for task in tasks:
            yield compute_simulation_chunk(task, self.store, self.database, self.chain)


def folder(tenant_id: str, simulation_id: str = "") -> str:
    return f"{ROOT}/{tenant_id}/{simulation_id}/" if simulation_id else f"{ROOT}/{tenant_id}/"


# -- a chunk -----------------------------------------------------------------------------------------------------------


def compute_simulation_chunk(task: SimulationTask, store: ObjectStore, database: Database, chain: MasterChain) -> int:
    """Bill the months of some customers under both plans and put the result once; its number."""
    if not store.exists(task.key):
        rows, parked = simulate(task, UsageLogReader(store), chain.at(task.tenant_id, task.master_number))
        out = io.BytesIO()
        rows.write_parquet(out, compression="zstd", metadata={"parked": json.dumps(parked), "format": "1"})
        store.create(task.key, out.getvalue())  # False: another driver was faster, with the same rows
    return task.chunk


def simulate(
    task: SimulationTask, reader: UsageLogReader, master: MasterData
) -> tuple[pl.DataFrame, list[dict[str, str]]]:
    """Amounts before and after by customer, currency, charge and month (ROWS), and who cannot be billed."""
    plan = parse_plan(task.plan, version=task.version)
    base = of_customers(master, task.customers)
    replays = (
        Replay(base, task.customers, task.months),
        Replay(with_plan(base, plan), task.customers, task.months),
    )
    # Which events can be rated is asked with the real runs and steps, and with the new price rows where they matter.
    real = master.subset(task.customers)
    asked = [real, with_plan(real, plan)] if _rows_matter(master, plan) else [real]
    events = _Events(task, reader, asked, base)
    for place in range(replays[0].runs):
        needed = [replay.needs(place) for replay in replays]
        starts = [start for start, _ in needed if start is not None]
        start = min(starts) if len(starts) == len(needed) else None
        # The first run is for what is due in advance at the beginning; usage before it is not simulated.
        frames = events.of(start, needed[0][1]) if place else [pl.DataFrame(schema=SCAN_SCHEMA)]
        for replay, frame in zip(replays, (frames[0], frames[-1]), strict=True):
            replay.run(place, frame, start)
    parked = {**replays[0].parked, **replays[1].parked}
    frames = [
        pl.DataFrame(
            [
                (line.customer, line.currency, line.charge, line.month, line.amount)
                for line in replay.lines(plan.code)
                if line.customer not in parked
            ],
            schema={**{name: ROWS[name] for name in ("customer", "currency", "charge", "month")}, side: AMOUNT},
            orient="row",
        )
        for replay, side in zip(replays, ("before", "after"), strict=True)
    ]
    keys = ["customer", "currency", "charge", "month"]
    rows = frames[0].join(frames[1], on=keys, how="full", coalesce=True)
    zero = pl.lit(ZERO, AMOUNT)
    rows = rows.with_columns(pl.col("before").fill_null(zero), pl.col("after").fill_null(zero)).sort(keys)
    reasons = [{"customer": one.customer, "code": one.code, "reason": one.reason} for _, one in sorted(parked.items())]
    return rows.select(ROWS.names()), reasons


def _rows_matter(master: MasterData, plan: Plan) -> bool:
    """Whether the plan's prices decide which events can be rated: price rows, or amounts that events bring."""
    charges = [charge for one in (plan, *master.plans.get(plan.code, ())) for charge in one.charges]
    return any(
        charge.price_by or any(isinstance(row.price, EventAmount) for row in charge.rows)
        for charge in charges
        if charge.kind == "usage"
    )


class _Events:
    """The rateable events of a chunk by time; what levels need (all from the beginning) is read once."""

    def __init__(
        self, task: SimulationTask, reader: UsageLogReader, masters: Sequence[MasterData], base: MasterData
    ) -> None:
        self._task = task
        self._reader = reader
        self._masters = masters
        self._keys = [
            key for customer in task.customers if customer in base.customers for key in base.keys_of(customer)
        ]
        self._cut = Cut.from_json(task.cut)
        self._previous = Cut.from_json(task.previous_cut) if task.previous_cut else None
        self._all: list[pl.DataFrame] | None = None

    def of(self, start: datetime | None, end: datetime) -> list[pl.DataFrame]:
        """The events in `[start, end)` for each of the master data."""
        if start is not None:
            return [self._read(master, start, end) for master in self._masters]
        if self._all is None:
            self._all = [self._read(master, None, None) for master in self._masters]
        return [frame.filter(pl.col("time") < end) for frame in self._all]

    def _read(self, master: MasterData, start: datetime | None, end: datetime | None) -> pl.DataFrame:
        task = self._task
        return rateable(
            self._reader,
            task.tenant_id,
            master,
            self._cut,
            self._previous,
            task.now,
            keys=self._keys,
            start=start,
            end=end,
        )


# -- the whole ---------------------------------------------------------------------------------------------------------


class Simulations:
    """Plans, drives, lists and deletes the simulations of any tenant. A plain class; the Ray shell calls it."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        chain: MasterChain,
        clock: Clock,
        *,
        executor: Executor | None = None,
    ) -> None:
        self._database = database
        self._store = store
        self._chain = chain
        self._clock = clock
        self._executor = executor or InProcess(store, database, chain)
        self._kept = KeptWork(store, clock, "simulation", ROOT, KEPT_MAX)

    def plan(
        self,
        tenant_id: str,
        master_number: int,
        plan: Plan,
        months: Sequence[date],
        *,
        name: str,
        actor: str,
        now: datetime,
        customers: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Fix what a simulation rests on. `now` is the tenant's clock. Errors: Conflict while one goes on or when too
        many are kept, NotFound for a customer who is not there.
        """
        self._kept.make_room(self._kept.heads(tenant_id))
        master = self._chain.at(tenant_id, master_number)
        for code in customers or ():
            master.customer(code)
        on_it = customers_on(master, plan.code)
        chosen = [code for code in on_it if customers is None or code in set(customers)]
        size = min(CHUNK_MAX, max(CHUNK_MIN, -(-len(chosen) // CHUNKS_WANTED)))
        with self._database.tenant(tenant_id) as connection:
            last = bill_runs.last_finalised(connection)
        simulation_id = new_id()
        chunks = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        facts = {
            "id": simulation_id,
            "name": name,
            "plan": {"code": plan.code, "currency": plan.currency, "version": plan.version, "form": to_form(plan)},
            "instead_of": to_form(master.plans[plan.code][-1]),
            "months": [month.isoformat() for month in months],
            "asked_customers": None if customers is None else sorted(set(customers)),
            "chunks": [len(chunk) for chunk in chunks],
            "master_number": master_number,
            "cut": json.loads(UsageLogReader(self._store).now("simulation").to_json()),
            "previous_cut": last["cut"] if last else None,
            "data_versions": data_versions(master),
            "now": now.isoformat(),
            "created_at": self._clock().isoformat(),
            "created_by": actor,
        }
        # Who is in which chunk apart, and first: lists read the facts of all simulations, and find by them.
        self._store.create(f"{folder(tenant_id, simulation_id)}customers.json", msgspec.json.encode(chunks))
        self._kept.plan(tenant_id, facts)
        return self.get(tenant_id, simulation_id)

    def drive(self, tenant_id: str, simulation_id: str) -> str:
        """Bring a simulation to its end; the state it ended in. A bug is noted at it and raised."""
        return self._kept.guarded(tenant_id, simulation_id, lambda: self._drive(tenant_id, simulation_id))

    def _drive(self, tenant_id: str, simulation_id: str) -> str:
        kept = self._kept
        facts = kept.facts(tenant_id, simulation_id)
        data = self._store.get(f"{folder(tenant_id, simulation_id)}customers.json")
        chunks: list[list[str]] = msgspec.json.decode(data or b"[]")
        assert [len(chunk) for chunk in chunks] == facts["chunks"], "the customers of a simulation are put before it"
        done = {chunk for chunk in range(len(chunks)) if kept.has_chunk(tenant_id, simulation_id, chunk)}
        if (state := kept.state(tenant_id, simulation_id)["state"]) in ("cancelled", "done"):
            return state
        kept.note(tenant_id, simulation_id, "running", len(done))
        tasks = (
            self._task(tenant_id, facts, chunk, chunks[chunk])
            for chunk in range(len(chunks))
            if chunk not in done and not kept.is_cancelled(tenant_id, simulation_id)
        )
        for chunk in self._executor.compute(tasks):
            done.add(chunk)
            if not kept.is_cancelled(tenant_id, simulation_id):
                kept.note(tenant_id, simulation_id, "running", len(done))
        if kept.is_cancelled(tenant_id, simulation_id) or kept.was_deleted(tenant_id, simulation_id):
            return "cancelled"
        summary = summarise(self._frames(folder(tenant_id, simulation_id), len(chunks)))
        return kept.end(tenant_id, simulation_id, summary, len(done))

    def _task(self, tenant_id: str, facts: Mapping[str, Any], chunk: int, customers: Sequence[str]) -> SimulationTask:
        previous = facts["previous_cut"]
        return SimulationTask(
            tenant_id,
            facts["id"],
            chunk,
            tuple(customers),
            facts["plan"]["form"],
            facts["plan"]["version"],
            tuple(date.fromisoformat(month) for month in facts["months"]),
            facts["master_number"],
            json.dumps(facts["cut"]),
            json.dumps(previous) if previous else None,
            datetime.fromisoformat(facts["now"]),
        )

    # -- look and steer ------------------------------------------------------------------------------------------------

    def get(self, tenant_id: str, simulation_id: str) -> dict[str, Any]:
        """A simulation with its progress, and its summary once it is done."""
        facts, state = self._kept.facts(tenant_id, simulation_id), self._kept.state(tenant_id, simulation_id)
        return self._kept.view(tenant_id, simulation_id, facts, state, _INNER)

    def list(self, tenant_id: str) -> list[dict[str, Any]]:
        """All simulations of a tenant, newest first; at most KEPT_MAX and those planned at the same moment."""
        return [self.get(tenant_id, id_) for id_ in self._kept.ids(tenant_id)]

    def cancel(self, tenant_id: str, simulation_id: str) -> dict[str, Any]:
        """Stop after the chunk that is computed now. Conflict where it has ended."""
        self._kept.cancel(tenant_id, simulation_id, self.get(tenant_id, simulation_id)["state"])
        return self.get(tenant_id, simulation_id)

    def delete(self, tenant_id: str, simulation_id: str) -> None:
        """Remove a simulation that has ended, with all that it computed."""
        self._kept.delete(tenant_id, simulation_id, self.get(tenant_id, simulation_id)["state"])

    def unfinished(self, tenant_id: str) -> dict[str, str]:
        """Those that have not ended, each with a mark that is another one whenever it has come on."""
        return {one.id: one.mark for one in self._kept.heads(tenant_id) if one.goes_on}

    def sweep(self, tenant_id: str) -> int:
        """Delete what was put after its simulation was deleted; of how many."""
        return self._kept.sweep(tenant_id)

    def customers(self, tenant_id: str, simulation_id: str) -> pl.DataFrame:
        """What each customer paid and would have paid: customer, currency, before, after, difference."""
        self._done(tenant_id, simulation_id)
        return pl.concat([per_customer(rows) for rows, _ in self._all_frames(tenant_id, simulation_id)] or [_NOBODY])

    def rows(self, tenant_id: str, simulation_id: str) -> Iterator[pl.DataFrame]:
        """All results by customer, charge and month (ROWS), a chunk at a time."""
        self._done(tenant_id, simulation_id)
        return (rows for rows, _ in self._all_frames(tenant_id, simulation_id))

    def _done(self, tenant_id: str, simulation_id: str) -> None:
        known = self.get(tenant_id, simulation_id)
        if known["state"] != "done":
            raise Conflict(f"the simulation is {known['state']}: there is no result")

    def _all_frames(self, tenant_id: str, simulation_id: str) -> Iterator[tuple[pl.DataFrame, list[dict[str, str]]]]:
        chunks = len(self._kept.facts(tenant_id, simulation_id)["chunks"])
        return self._frames(folder(tenant_id, simulation_id), chunks)

    def _frames(self, here: str, chunks: int) -> Iterator[tuple[pl.DataFrame, list[dict[str, str]]]]:
        for chunk in range(chunks):
            data = self._store.get(chunk_key(here, chunk))
            assert data is not None, "the chunks of a simulation that was computed are there"
            parked = json.loads(pl.read_parquet_metadata(io.BytesIO(data))["parked"])
            yield pl.read_parquet(io.BytesIO(data)), parked


# -- the summary -------------------------------------------------------------------------------------------------------

_NOBODY = pl.DataFrame(
    schema={"customer": pl.String, "currency": pl.String, "before": AMOUNT, "after": AMOUNT, "difference": AMOUNT}
)


def per_customer(rows: pl.DataFrame) -> pl.DataFrame:
    sums = rows.group_by("customer", "currency", maintain_order=True).agg(pl.col("before").sum(), pl.col("after").sum())
    return (
        sums.with_columns(difference=(pl.col("after") - pl.col("before")).cast(AMOUNT))
        .select(_NOBODY.columns)
        .cast(dict(_NOBODY.schema))
    )


def summarise(chunks: Iterable[tuple[pl.DataFrame, list[dict[str, str]]]]) -> dict[str, Any]:
    """Sums by currency, month and charge, and the customers with the greatest differences; one chunk in memory."""
    totals: dict[str, _Total] = {}
    parked: list[dict[str, str]] = []
    parked_count = 0
    for rows, reasons in chunks:
        parked_count += len(reasons)
        parked += reasons[: max(PARKED_MAX - len(parked), 0)]
        for currency, month, charge, before, after in (
            rows.group_by("currency", "month", "charge")
            .agg(pl.col("before").sum(), pl.col("after").sum())
            .sort("currency", "month", "charge")
            .iter_rows()
        ):
            total = totals.setdefault(currency, _Total())
            for name, key in (("months", month.isoformat()[:7]), ("charges", charge), ("cells", (month, charge))):
                sums = getattr(total, name).setdefault(key, [ZERO, ZERO])
                sums[0] += before
                sums[1] += after
        for (currency,), customers in per_customer(rows).group_by("currency"):
            totals.setdefault(str(currency), _Total()).count(customers)
    return {
        "currencies": [totals[currency].shown(currency) for currency in sorted(totals)],
        "parked": parked,
        "parked_count": parked_count,
    }


class _Total:
    """The sums of one currency."""

    def __init__(self) -> None:
        self.months: dict[str, list[Decimal]] = {}
        self.charges: dict[str, list[Decimal]] = {}
        self.cells: dict[tuple[date, str], list[Decimal]] = {}
        self.customers = self.less = self.more = 0
        self.most_more = self.most_less = _NOBODY

    def count(self, customers: pl.DataFrame) -> None:
        less = customers.filter(pl.col("difference") < 0)
        more = customers.filter(pl.col("difference") > 0)
        self.customers += customers.height
        self.less += less.height
        self.more += more.height
        order = ["difference", "customer"]
        self.most_less = pl.concat([self.most_less, less]).sort(order).head(RANKED)
        self.most_more = pl.concat([self.most_more, more]).sort(order, descending=[True, False]).head(RANKED)

    def shown(self, currency: str) -> dict[str, Any]:
        before = sum((one[0] for one in self.months.values()), ZERO)
        after = sum((one[1] for one in self.months.values()), ZERO)
        return {
            "currency": currency,
            **_amounts(before, after, currency),
            "customers": self.customers,
            "pay_less": self.less,
            "pay_more": self.more,
            "pay_the_same": self.customers - self.less - self.more,
            "months": [{"month": key, **_amounts(*sums, currency)} for key, sums in sorted(self.months.items())],
            "charges": [{"charge": key, **_amounts(*sums, currency)} for key, sums in self.charges.items()],
            "cells": [
                {"month": month.isoformat()[:7], "charge": charge, **_amounts(*sums, currency)}
                for (month, charge), sums in sorted(self.cells.items())
            ],
            "most_more": _ranked(self.most_more, currency),
            "most_less": _ranked(self.most_less, currency),
        }


def _ranked(customers: pl.DataFrame, currency: str) -> list[dict[str, Any]]:
    rows = customers.select("customer", "before", "after").iter_rows()
    return [{"customer": customer, **_amounts(before, after, currency)} for customer, before, after in rows]


def _amounts(before: Decimal, after: Decimal, currency: str) -> dict[str, str]:
    return {
        "before": amount_text(before, currency),
        "after": amount_text(after, currency),
        "difference": amount_text(after - before, currency),
    }


def amount_text(amount: Decimal, currency: str) -> str:
    """An amount with the decimals of its currency; nothing is rounded, there are no more."""
    shown = round_amount(amount, currency)
    assert shown == amount, "sums of rounded amounts have no more decimals than their currency"
    return format(shown, "f")
