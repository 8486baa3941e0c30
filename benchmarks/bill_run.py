"""Bill runs: customers with five tiered meters from events in the log to numbered invoices, final in PostgreSQL.

Measured is plan to finalised (no files), in one process; `verify_invoices_s` is `verify_run` over the same run. The
peer is the one SQL statement that a good team would write over the same events in a table of the same server:
aggregate, tiers, rounding, VAT, numbers, invoices and lines; it keeps no cut, no record of a run and no explanation,
and starts from the beginning when it is killed. Both must bill the same sum.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from actors.local_router import LocalUsageRouter
from billing.usage import EVENT_SCHEMA, INSTANT
from pipelines.bill_run import BillRunDriver
from pipelines.verify_invoices import verify_run
from storage.archive import Archive
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore
from storage.sql import invoices, steps, tenants
from storage.sql.database import Connection, Database, connect
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.sealing import seal

Say = Callable[[str], None]
SIZES = {"small": (200, 4_000), "normal": (10_000, 1_000_000), "long": (100_000, 20_000_000)}
METERS = 5
BATCH = 50_000
START, NOW = datetime(2026, 2, 28, 23, tzinfo=UTC), datetime(2026, 4, 2, tzinfo=UTC)  # March in Berlin
TIERS: list[dict[str, str | None]] = [
    {"up_to": "10000", "unit": "0.01"},
    {"up_to": "30000", "unit": "0.008"},
    {"up_to": None, "unit": "0.005"},
]


class _Final(Exception):
    """All invoices are final: the measured part ends here, before files."""


def run(size: str, say: Say) -> dict[str, Any]:
    customers, count = SIZES[size]
    with TemporaryDirectory(prefix="cb-bench-", ignore_cleanup_errors=True) as directory:
        server = EmbeddedPostgres(Path(directory) / "sql")
        try:
            migrate(server.start())
            with Database(server.dsn) as database:
                return _measure(database, Path(directory) / "store", customers, count, say)
        finally:
            server.stop()


def _measure(database: Database, directory: Path, customers: int, count: int, say: Say) -> dict[str, Any]:
    store = LocalObjectStore(directory)
    chain = MasterChain(store)
    tenant_id = _tenant(database, chain, customers)
    say(f"{customers} customers, {count} events into log and table")
    _fill(database, store, tenant_id, customers, count)
    marks: dict[str, float] = {}

    def checkpoint(step: str) -> None:
        marks[step] = time.monotonic()
        if step == "finalised":
            raise _Final

    driver = BillRunDriver(database, store, chain, Archive(database, store), lambda: NOW, checkpoint=checkpoint)
    say("bill run")
    began = time.monotonic()
    run_id = driver.plan(tenant_id, date(2026, 4, 1), "benchmark")["id"]
    try:
        driver.drive(tenant_id, run_id)
    except _Final:
        ours = time.monotonic() - began
    else:
        raise AssertionError("the run never came to its final invoices")
    with database.tenant(tenant_id) as connection:
        assert invoices.number_gaps(connection) == []
        (total,) = invoices.totals(connection, run_id)
        lines = connection.execute("SELECT count(*) AS n FROM invoice_lines").fetchone()
    say("every invoice again from the log, compared")
    began = time.monotonic()
    proof = verify_run(database, store, chain, tenant_id, run_id)
    verified = time.monotonic() - began
    assert proof.proven, proof
    assert proof.documents == total["documents"]
    say("the same in one SQL statement")
    with connect(database.dsn) as connection:
        began = time.monotonic()
        peer = _one_statement(connection)
        connection.commit()
        theirs = time.monotonic() - began
    assert lines is not None
    assert (total["documents"], total["net"], total["tax"], lines["n"]) == peer, "the two ways bill different sums"
    return {
        "figure": round(customers / ours, 1),
        "unit": "invoices/s",
        "ratio_sql": round(theirs / ours, 2),
        "sql_invoices_s": round(customers / theirs, 1),
        "verify_invoices_s": round(customers / verified, 1),
        "ratio_verify": round(ours / verified, 2),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "compute_s": round(marks["computed"] - marks["planned"], 2),
        "finalise_s": round(marks["finalised"] - marks["approved"], 2),
        "customers": customers,
        "events": count,
        "lines": lines["n"],
        "checksum": format(total["gross"], "f"),
    }


def _tenant(database: Database, chain: MasterChain, customers: int) -> str:
    form = {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE", "kind": "test", "code": "bench"}
    price = {"model": "graduated", "tiers": TIERS}
    charges = [
        {"code": f"charge-{n}", "kind": "usage", "meter": f"meter-{n}", "tax": "standard", "price": price}
        for n in range(METERS)
    ]
    changes: list[dict[str, Any]] = [
        {"tax_code": {"code": "standard", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
        *(
            {"meter": {"code": f"meter-{n}", "event_type": f"type-{n}", "aggregation": "sum", "value": "value"}}
            for n in range(METERS)
        ),
        {"publish": {"plan": {"code": "metered", "currency": "EUR", "interval": "month", "charges": charges}}},
    ]
    for n in range(customers):
        changes.append({"customer": {"code": _code(n), "name": f"Customer {n}", "country": "DE"}})
        changes.append({"subscribe": {"code": f"s-{n}", "customer": _code(n), "plan": "metered"}})
    with database.system() as connection:
        made = tenants.create(
            connection, code="bench", name="Bench", kind="test", form=form, generated=True, now=NOW, test_clock=NOW
        )
        tenants.enter(connection, made.id)
        tenants.put_legal_entity(
            connection, made.id, tenants.DEFAULT_ENTITY, {"name": "Bench GmbH"}, country="DE", now=NOW, is_default=True
        )
        steps.start_master(connection, made.id, form, "benchmark", NOW)
    for first in range(0, len(changes), steps.STEPS_MAX):
        part = [{"at": "2026-03-01", **change} for change in changes[first : first + steps.STEPS_MAX]]
        with database.tenant(made.id) as connection:
            steps.append_steps(connection, made.id, part, "benchmark", now=NOW)
    chain.project(database, made.id)
    return made.id


def _code(number: int) -> str:
    return f"customer-{number:07}"


def _fill(database: Database, store: LocalObjectStore, tenant_id: str, customers: int, count: int) -> None:
    """The same events into the log, sealed, and typed into a table for the SQL statement, analysed."""
    random = np.random.default_rng(20261125)

    async def send() -> None:
        router = LocalUsageRouter.open(store, shards=1)
        try:
            for first in range(0, count, BATCH):
                numbers = _numbers(random, first, min(BATCH, count - first), customers)
                result = await router.ingest(tenant_id, _events(numbers))
                assert not result.verdicts.any(), "an event of the benchmark was not accepted"
                _copy(connection, numbers)
        finally:
            await router.close()
        # As the platform keeps its log: all but the last minutes is sealed, long before anybody is billed.
        seal(store, UsageLogReader(store).now())

    with connect(database.dsn) as connection:
        connection.execute("CREATE TABLE peer_usage (customer text, meter smallint, at timestamptz, value numeric)")
        asyncio.run(send())
        connection.commit()
        connection.execute("ANALYZE peer_usage")


def _numbers(random: np.random.Generator, first: int, rows: int, customers: int) -> pl.DataFrame:
    index = np.arange(first, first + rows)
    return pl.DataFrame(
        {
            "number": index,
            # The first events reach every customer once, so that each gets an invoice.
            "customer": np.where(index < customers, index % customers, random.integers(0, customers, rows)),
            "meter": random.integers(0, METERS, rows),
            "time": random.integers(0, 30 * 86_400_000_000, rows),
            "value": random.integers(1, 1_000_000, rows),
        }
    ).select(
        "number",
        pl.format("customer-{}", pl.col("customer").cast(pl.String).str.zfill(7)).alias("customer"),
        "meter",
        (pl.lit(START).cast(INSTANT) + pl.duration(microseconds="time")).alias("time"),
        pl.format("{}.{}", pl.col("value") // 1000, (pl.col("value") % 1000).cast(pl.String).str.zfill(3)).alias(
            "value"
        ),
    )


def _events(numbers: pl.DataFrame) -> pl.DataFrame:
    return numbers.select(
        pl.lit("bench").alias("source"),
        pl.format("event-{}", "number").alias("id"),
        pl.format("type-{}", "meter").alias("type"),
        "customer",
        pl.lit(None, pl.String).alias("subscription"),
        "time",
        pl.concat_str(pl.lit('{"value":"'), "value", pl.lit('"}')).alias("data"),
    ).match_to_schema(EVENT_SCHEMA)


def _copy(connection: Connection, numbers: pl.DataFrame) -> None:
    text = numbers.select("customer", "meter", pl.col("time").dt.to_string("iso:strict"), "value").write_csv(
        include_header=False
    )
    with connection.cursor() as cursor, cursor.copy("COPY peer_usage FROM STDIN (FORMAT csv)") as copy:
        copy.write(text)


def _one_statement(connection: Connection) -> tuple[int, Decimal, Decimal, int]:
    connection.execute("CREATE TABLE peer_tiers (lower numeric, upper numeric, unit numeric)")
    lower = "0"
    for tier in TIERS:
        connection.execute("INSERT INTO peer_tiers VALUES (%s, %s, %s)", (lower, tier["up_to"], tier["unit"]))
        lower = tier["up_to"] or ""
    connection.execute(
        "CREATE TABLE peer_invoices (n bigint PRIMARY KEY, number text UNIQUE, customer text, net numeric, tax numeric,"
        " gross numeric)"
    )
    connection.execute(
        "CREATE TABLE peer_lines (n bigint, line int, meter smallint, quantity numeric, amount numeric,"
        " PRIMARY KEY (n, line))"
    )
    connection.execute(
        "WITH used AS (SELECT customer, meter, sum(value) AS quantity FROM peer_usage"
        "  WHERE at >= '2026-03-01 00:00 Europe/Berlin' AND at < '2026-04-01 00:00 Europe/Berlin' GROUP BY 1, 2),"
        " priced AS (SELECT customer, meter, quantity,"
        "  round(sum((least(quantity, upper) - lower) * unit) FILTER (WHERE quantity > lower), 2) AS amount"
        "  FROM used CROSS JOIN peer_tiers GROUP BY 1, 2, 3),"
        " billed AS (SELECT customer, sum(amount) AS net, round(sum(amount) * 0.19, 2) AS tax,"
        "  row_number() OVER (ORDER BY customer) AS n FROM priced GROUP BY 1),"
        " made AS (INSERT INTO peer_invoices SELECT n, 'RE-2026-' || lpad(n::text, 6, '0'), customer, net, tax,"
        "  net + tax FROM billed RETURNING n, customer)"
        " INSERT INTO peer_lines SELECT n, row_number() OVER (PARTITION BY n ORDER BY meter), meter, quantity, amount"
        "  FROM made JOIN priced USING (customer)"
    )
    row = connection.execute(
        "SELECT count(*) AS documents, sum(net) AS net, sum(tax) AS tax,"
        " (SELECT count(*) FROM peer_lines) AS lines FROM peer_invoices"
    ).fetchone()
    assert row is not None
    return row["documents"], row["net"], row["tax"], row["lines"]
