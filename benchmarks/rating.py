"""Rating single events a second: events as they lie in the log to exact amounts, beside a Python loop and DuckDB.

Every event carries its figures as JSON text; five meters, one tiered charge each, a subscription per customer. All
three ways must give the same exact total. `price_lines_s` is the time to price half a million aggregates alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import duckdb
import numpy as np
import polars as pl

from billing.catalog import Charge, PriceRow
from billing.catalog_forms import parse_charge, parse_meter
from billing.money import NUMBER
from billing.pricing import price_lines
from billing.rating import UsagePiece, rate

SIZES = {"small": (20_000, 500, 20_000), "normal": (1_000_000, 20_000, 500_000), "long": (20_000_000, 100_000, 500_000)}
LOOP_EVENTS = 200_000  # the Python loop rates this many at most; its rate is what is compared
METERS = 5
START, END = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
TIERS = [{"up_to": "1000", "unit": "0.01"}, {"up_to": "10000", "unit": "0.008"}, {"up_to": None, "unit": "0.005"}]


def _events(count: int, customers: int) -> pl.DataFrame:
    random = np.random.default_rng(20261125)
    span = int((END - START).total_seconds()) * 1_000_000
    frame = pl.DataFrame(
        {
            "number": np.arange(count),
            "customer": random.integers(0, customers, count),
            "offset": random.integers(0, span, count),
            "value": random.integers(0, 1_000_000, count),
            "meter": random.integers(0, METERS, count),
        }
    )
    value = pl.concat_str(
        (pl.col("value") // 1000).cast(pl.String), pl.lit("."), (pl.col("value") % 1000).cast(pl.String).str.zfill(3)
    )
    return frame.select(
        pl.lit("gateway-7").alias("source"),
        pl.concat_str(pl.lit("evt-"), pl.col("number").cast(pl.String).str.zfill(20)).alias("id"),
        pl.concat_str(pl.lit("type-"), pl.col("meter").cast(pl.String)).alias("type"),
        pl.concat_str(pl.lit("customer-"), pl.col("customer").cast(pl.String)).alias("customer"),
        pl.lit(None, pl.String).alias("subscription"),
        (pl.lit(START).cast(pl.Datetime("us", "UTC")) + pl.duration(microseconds="offset")).alias("time"),
        pl.concat_str(
            pl.lit('{"value":"'), value, pl.lit('","region":"eu-'), pl.col("meter").cast(pl.String), pl.lit('"}')
        ).alias("data"),
    )


def _charges() -> list[Charge]:
    return [
        parse_charge(
            {"code": f"c{number}", "kind": "usage", "meter": f"m{number}", "tax": "t", "included": "10",
             "price": {"model": "graduated", "tiers": TIERS}}
        )
        for number in range(METERS)
    ]  # fmt: skip


def _by_loop(events: pl.DataFrame) -> Fraction:
    """What one writes first: a loop with exact decimals."""
    sums: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for customer, event_type, data in events.select("customer", "type", "data").iter_rows():
        sums[customer, event_type] += Decimal(json.loads(data)["value"])
    total = Fraction(0)
    for quantity in sums.values():
        left, lower = max(Fraction(quantity) - 10, Fraction(0)), Fraction(0)
        for tier in TIERS:
            upper = left if tier["up_to"] is None else min(left, Fraction(str(tier["up_to"])))
            if upper <= lower:
                break
            total += (upper - lower) * Fraction(str(tier["unit"]))
            lower = upper
    return total


# DuckDB has no product of two decimals beyond 38 digits either; with 3 + 3 places there is room.
_SQL = """
WITH used AS (
  SELECT customer, type, sum(CAST(data ->> '$.value' AS DECIMAL(18, 3))) - 10 AS q FROM events GROUP BY ALL
)
SELECT sum(CAST(greatest(least(q, 1000), 0) AS DECIMAL(18, 3)) * 0.010
         + CAST(greatest(least(q, 10000) - 1000, 0) AS DECIMAL(18, 3)) * 0.008
         + CAST(greatest(q - 10000, 0) AS DECIMAL(18, 3)) * 0.005) FROM used
"""


def _by_duckdb(events: pl.DataFrame) -> Decimal:
    connection = duckdb.connect(config={"threads": pl.thread_pool_size()})
    connection.register("events", events.to_arrow())
    return Decimal(connection.sql(_SQL).fetchall()[0][0])


def _timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def _price_aggregates(lines: int) -> tuple[float, Fraction]:
    random = np.random.default_rng(7)
    frame = pl.DataFrame(
        {
            "line": pl.int_range(lines, dtype=pl.UInt32, eager=True),
            "price": pl.Series(random.integers(0, METERS, lines), dtype=pl.UInt32),
            "quantity": (pl.Series(random.integers(0, 10**7, lines)).cast(NUMBER) / Decimal(1000)).cast(NUMBER),
            "units": pl.Series([Decimal(1)], dtype=NUMBER).new_from_index(0, lines),
        }
    )
    rows: list[PriceRow] = [charge.rows[0] for charge in _charges()]
    best, total = float("inf"), Fraction(0)
    for _ in range(3):
        priced, wall, _ = _timed(lambda: price_lines(frame, rows))
        assert not priced.fractions, "38 digits suffice here"
        best, total = min(best, wall), Fraction(priced.amounts["amount"].sum())
    return best, total


def run(size: str, say: Callable[[str], None]) -> dict[str, Any]:
    count, customers, lines = SIZES[size]
    say(f"{count:,} events of {customers:,} customers")
    events = _events(count, customers)
    meters = [
        parse_meter({"code": f"m{number}", "event_type": f"type-{number}", "aggregation": "sum", "value": "value"})
        for number in range(METERS)
    ]
    charges = _charges()
    pieces = [
        UsagePiece(f"customer-{number}", f"s-{number}", charge, START, END)
        for number in range(customers)
        for charge in charges
    ]
    rated, wall, cpu = _timed(lambda: rate(pieces, events, meters))
    exact = Fraction(rated.frame["amount"].sum()) + sum(rated.amounts.values(), Fraction(0))
    assert int(rated.frame["events"].sum()) == count, "an event got lost"
    say(f"rated in {wall:.2f} s")
    by_duckdb, duckdb_wall, duckdb_cpu = _timed(lambda: _by_duckdb(events))
    assert Fraction(by_duckdb) == exact, (by_duckdb, exact)
    few = events.head(LOOP_EVENTS)
    by_loop, loop_wall, _ = _timed(lambda: _by_loop(few))
    of_few = rate(pieces, few, meters).frame["amount"].sum()
    assert by_loop == Fraction(of_few), (by_loop, of_few)
    price_s, priced_total = _price_aggregates(lines)
    figure = count / cpu
    return {
        "figure": round(figure),
        "unit": "events/s a core",
        "events_s_wall": round(count / wall),
        "loop_events_s": round(few.height / loop_wall),
        "duckdb_events_s_a_core": round(count / duckdb_cpu),
        "duckdb_events_s_wall": round(count / duckdb_wall),
        "ratio_python_loop": round(figure / (few.height / loop_wall), 2),
        "ratio_duckdb": round(figure / (count / duckdb_cpu), 2),
        "price_lines": lines,
        "price_lines_s": round(price_s, 3),
        "checksum": hashlib.sha256(f"{exact} {priced_total}".encode()).hexdigest()[:16],
    }
