"""Rows of the log that budgets are made from, and those that a watch proposes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import polars as pl

from actors.followers import LogMoment, LogRow, Parts, log_rows
from billing.budget_state import ARRIVED, Planned
from billing.live_state import LiveState
from billing.meters import MeterState
from billing.money import decimal_text, shown_quantity
from billing.usage import INSTANT
from storage.usage_log.segment import RowKind, microseconds_of

SOURCE = "cloudbilling:budget"  # of ids; no sender may use it


def by_tenant(rows: pl.DataFrame) -> Iterable[tuple[str, pl.DataFrame]]:
    if rows["tenant"].n_unique() == 1:
        return [(rows["tenant"][0], rows)]
    parts = rows.partition_by("tenant", as_dict=True, maintain_order=True)
    return [(str(tenant_id), part) for (tenant_id,), part in parts.items()]


def of_kind(rows: pl.DataFrame, *kinds: RowKind) -> pl.DataFrame:
    return rows.filter(pl.col("kind").is_in([int(kind) for kind in kinds]))


def placed_rows(rows: pl.DataFrame, number: int, received_us: int) -> pl.DataFrame:
    """Rows of a group with the columns of their position."""
    return rows.with_columns(
        pl.lit(number, pl.Int64).alias("number"),
        pl.int_range(rows.height, dtype=pl.Int64).alias("row"),
        pl.lit(received_us, pl.Int64).cast(INSTANT).alias("received_at"),
    )


def arrived_events(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(counts_late=pl.lit(False)).select(
        pl.col(name).cast(dtype) for name, dtype in ARRIVED.items()
    )


def corrected_events(events: pl.DataFrame) -> pl.DataFrame:
    """Corrected events keep their place among the others; lateness is judged by the correction."""
    places = {"number": "first_number", "row": "first_row"}
    return events.select(pl.col(places.get(name, name)).cast(dtype).alias(name) for name, dtype in ARRIVED.items())


def seen_row(lane: int, number: int, turned: Mapping[str, bool], moment: LogMoment) -> LogRow:
    """A look at these master data, from which on events of backfills that `turned` count (True) or no more."""
    detail = {"master": number} | ({"backfills": dict(turned)} if turned else {})
    return LogRow(RowKind.MASTER_SEEN, SOURCE, f"{lane}/{moment.number}", "", moment.log_time_us, detail, "look")


def proposed_rows(tenant_id: str, seen: LogRow | None, planned: Planned, moment: LogMoment) -> pl.DataFrame:
    master = planned.watch.master
    rows = [] if seen is None else [seen]
    for place, alert in enumerate(planned.alerts):
        budget = master.budgets[alert.budget]
        start = alert.period.start.isoformat()
        detail = {
            "budget": alert.budget,
            "from": start,
            "to": alert.period.end.isoformat(),
            "threshold": alert.threshold.form,
            "at": alert.at.isoformat(),
            "spent": decimal_text(shown_quantity(alert.spent)),
            "amount": decimal_text(budget.amount),
            "currency": master.tenant.currency,
            "master": planned.watch.number,
            "place": place,
        }
        id = f"{alert.budget}/{start}/{alert.threshold.text}"
        at_us = microseconds_of(alert.at)
        rows.append(LogRow(RowKind.THRESHOLD_CROSSED, SOURCE, id, budget.customer, at_us, detail, "threshold"))
    return log_rows(tenant_id, rows)


def moved_in(parts: Parts) -> list[tuple[str, str]]:
    """(detail, customer) of what was written down of customers who came."""
    found: list[tuple[str, str]] = []
    for rows, _ in parts:
        mine = of_kind(rows, RowKind.BUDGETS_MOVED)
        found += zip(mine["detail"], mine["customer"], strict=True)
    return found


def master_in(detail: str) -> int:
    number: int = json.loads(detail)["master"]
    return number


def of_key(live: LiveState, key: str) -> LiveState:
    state, mine = live.state, pl.col("key") == key
    return LiveState(MeterState(state.by, state.small.filter(mine), state.sets.filter(mine), state.runs.filter(mine)))
