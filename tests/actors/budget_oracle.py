"""What budgets must have spent and alerted, worked out from the log's rows alone: every event rated with all others.

Slow and simple on purpose: no running state, no folds, no grouping. Each event that counts is rated with all that
counted before it, and without it; the difference is what it adds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import polars as pl

from billing.due import Use
from billing.master import MasterData
from billing.periods import Grid
from billing.rate_uses import rate_uses, suspense_reasons
from billing.running import is_level, running_uses, until
from billing.thresholds import Threshold
from billing.usage import EVENT_SCHEMA
from storage.object_store import ObjectStore
from storage.usage_log.lane import walk
from storage.usage_log.segment import RowKind, instant_of

KINDS = ("day", "week", "month", "quarter", "year")
ZERO = Fraction(0)


@dataclass
class Expected:
    spent: dict[tuple[str, str, datetime], Fraction] = field(default_factory=dict)
    levels: dict[tuple[str, str, datetime], Fraction] = field(default_factory=dict)
    raised: set[tuple[str, datetime, Threshold]] = field(default_factory=set)
    new: dict[int, set[tuple[str, datetime, Threshold]]] = field(default_factory=dict)  # by number: crossed in it
    rows: dict[int, list[tuple[str, datetime, Decimal]]] = field(default_factory=dict)  # by number: recorded in it


def expected(store: ObjectStore, tenant_id: str, chain: Any, lane: int = 0) -> Expected:
    """Replay the lane, rating everything again for each event."""
    found = Expected()
    came: list[dict[str, Any]] = []  # all events in order
    counted: list[dict[str, Any]] = []
    master: MasterData | None = None
    for segment in walk(store, lane, 0):
        if segment.head.rows == 0:
            continue
        rows = segment.rows().filter(pl.col("tenant") == tenant_id)
        now = instant_of(segment.head.clocks.get(tenant_id, segment.head.log_time_us))
        details = [json.loads(one) for one in _of(rows, RowKind.MASTER_SEEN)["detail"]]
        moved = _of(rows, RowKind.CLOCK_SET)["time"].max()
        if details:
            master = chain.at(tenant_id, max(one["master"] for one in details))
        new = [dict(zip(EVENT_SCHEMA, row, strict=True)) for row in _of(rows, RowKind.USAGE)[list(EVENT_SCHEMA)].rows()]
        if master is None:
            came += new
            continue
        touched: set[str] = set()
        moments = [now, moved] if details and isinstance(moved, datetime) and moved > now else [now]
        crossed: set[tuple[str, datetime, Threshold]] = set()
        for place, moment in enumerate(moments):
            if details:
                touched |= _count(found, master, [e for e in came if e not in counted], counted, moment)
            if place == 0:
                came += new
                touched |= _count(found, master, new, counted, moment)
            _levels(found, master, counted, moment, None if details else touched)
            crossed |= _reached(found, master, None if details else touched)
        found.new[segment.head.number] = crossed
        found.raised |= crossed
        recorded = [json.loads(one) for one in _of(rows, RowKind.THRESHOLD_CROSSED)["detail"]]
        found.rows[segment.head.number] = [
            (one["budget"], datetime.fromisoformat(one["from"]), Threshold.of_form(one["threshold"]))
            for one in recorded
        ]
    return found


def _of(rows: pl.DataFrame, kind: RowKind) -> pl.DataFrame:
    return rows.filter(pl.col("kind") == int(kind))


def _watched(master: MasterData) -> set[str]:
    return {budget.customer for budget in master.budgets.values()}


def _count(
    found: Expected, master: MasterData, events: list[dict[str, Any]], counted: list[dict[str, Any]], now: datetime
) -> set[str]:
    mine = [event for event in events if master.key_owners.get(event["customer"]) in _watched(master)]
    if not mine:
        return set()
    reasons = suspense_reasons(_table(mine), master, now, [False] * len(mine))
    touched: set[str] = set()
    for event, reason in zip(mine, reasons, strict=True):
        if reason is not None:
            continue
        customer = master.key_owners[event["customer"]]
        touched.add(customer)
        before = [one for one in counted if master.key_owners.get(one["customer"]) == customer]
        counted.append(event)
        uses = running_uses(
            master, customer, event["time"], event_type=event["type"], subscription=event["subscription"]
        )
        uses = [use for use in uses if not is_level(master, use)]
        uses = [use for use in uses if use.piece.span.segment.plan.currency == master.tenant.currency]
        added = _cost(master, uses, [*before, event]) - _cost(master, uses, before)
        if added:
            for kind in KINDS:
                start = Grid(kind, "calendar", master.tenant.timezone).at(event["time"]).start
                key = (customer, kind, start)
                found.spent[key] = found.spent.get(key, ZERO) + added
    return touched


def _levels(
    found: Expected,
    master: MasterData,
    counted: list[dict[str, Any]],
    now: datetime,
    customers: set[str] | None,
) -> None:
    """Levels of every budget (of some customers) from the beginning, one part after the other."""
    for budget in master.budgets.values():
        if customers is not None and budget.customer not in customers:
            continue
        grid = Grid(budget.period, "calendar", master.tenant.timezone)  # type: ignore[arg-type]
        moment = min(master.subscriptions[one].start for one in master.subscriptions_of.get(budget.customer, ()))
        whole: list[tuple[Use, datetime, int]] = []
        while moment < now:
            period = grid.at(moment)
            uses = [use for use in running_uses(master, budget.customer, moment) if is_level(master, use)]
            end = min([period.end, now, *(use.piece.end for use in uses)])
            for use in uses:
                whole.append((Use(use.contract, until(use.piece, end), None), period.start, 1))
                if use.piece.start < period.start:
                    whole.append((Use(use.contract, until(use.piece, period.start), None), period.start, -1))
            moment = end
        rated = rate_uses(master, [use for use, _, _ in whole], _table(counted))
        costs = {start: ZERO for _, start, _ in whole}
        for place, rows in rated.items():
            _, start, sign = whole[place]
            costs[start] += sign * sum((Fraction(row.amount) for row in rows), ZERO)
        for start, cost in costs.items():
            found.levels[budget.customer, budget.period, start] = cost


def _reached(found: Expected, master: MasterData, customers: set[str] | None) -> set[tuple[str, datetime, Threshold]]:
    crossed: set[tuple[str, datetime, Threshold]] = set()
    for budget in master.budgets.values():
        if customers is not None and budget.customer not in customers:
            continue
        keys = {key for key in (*found.spent, *found.levels) if key[:2] == (budget.customer, budget.period)}
        for key in keys:
            spent = found.spent.get(key, ZERO) + found.levels.get(key, ZERO)
            for threshold in budget.thresholds:
                share = Fraction(threshold.value)
                if spent >= (share if threshold.kind == "amount" else Fraction(budget.amount) * share / 100):
                    crossed.add((budget.code, key[2], threshold))
    return crossed - found.raised


def _cost(master: MasterData, uses: list[Use], events: list[dict[str, Any]]) -> Fraction:
    rated = rate_uses(master, uses, _table(events))
    return sum((Fraction(row.amount) for rows in rated.values() for row in rows), ZERO)


def _table(events: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(events, schema=EVENT_SCHEMA, orient="row")
