"""The world of tests/chaos/test_bill_run_crash.py: a tenant with usage, and the process that is killed in it.

Run as a program it drives one bill run and sends itself SIGKILL, the real one, at a named step; nothing runs after it.
Every tenant made here has the same customers and the same events, so their bill runs must end alike.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl

import pipelines.bill_run as bill_run
import pipelines.run_reversal as run_reversal
from actors.local_router import LocalUsageRouter
from billing.usage import EVENT_SCHEMA
from pipelines.bill_run import BillRunDriver
from storage.archive import Archive
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore
from storage.sql import invoices, steps, tenants
from storage.sql.database import Database

CUSTOMERS = 7
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FEBRUARY, MARCH = date(2026, 2, 1), date(2026, 3, 1)

# Chunks of three customers: a run of seven has several, with little work.
bill_run.CUSTOMERS = 3  # type: ignore[misc]
run_reversal.BATCH = 3  # type: ignore[misc] - and a reversal several batches

_TIERS = [{"up_to": "100", "unit": "0.123"}, {"up_to": None, "unit": "0.07", "flat": "1"}]
_PLAN = {
    "code": "basic",
    "currency": "EUR",
    "interval": "month",
    "charges": [
        {
            "code": "base",
            "kind": "recurring",
            "timing": "arrears",
            "price": {"model": "flat", "amount": "9.90"},
            "tax": "standard",
        },
        {
            "code": "storage",
            "kind": "usage",
            "meter": "storage",
            "price": {"model": "graduated", "tiers": _TIERS},
            "tax": "standard",
        },
        {"code": "passed-on", "kind": "usage", "meter": "value", "price": {"model": "event_amount"}, "tax": "reduced"},
    ],
}


@dataclass(frozen=True)
class World:
    """One database, one object store, any number of tenants in them."""

    dsn: str
    directory: Path

    def driver(self, database: Database, **options: Any) -> BillRunDriver:
        store = LocalObjectStore(self.directory)
        clock = lambda: NOW  # noqa: E731 - the clock of these tests stands still
        return BillRunDriver(database, store, MasterChain(store), Archive(database, store), clock, **options)

    def make_tenant(self, **form: Any) -> str:
        """A tenant whose January is billed and whose February, with late usage for January, waits to be."""
        with Database(self.dsn) as database:
            tenant_id = _tenant(database, **form)
            self._send(tenant_id, _events("2026-01", 1))
            driver = self.driver(database)
            run = driver.plan(tenant_id, FEBRUARY, "test")
            assert driver.drive(tenant_id, run["id"])["state"] == "done"
            self._send(tenant_id, pl.concat([_events("2026-02", 1_000), _events("2026-01", 2_000).head(9)]))
        return tenant_id

    def _send(self, tenant_id: str, events: pl.DataFrame) -> None:
        async def send() -> None:
            router = LocalUsageRouter.open(LocalObjectStore(self.directory), shards=2)
            try:
                result = await router.ingest(tenant_id, events)
                assert set(result.verdicts.tolist()) == {0}
            finally:
                await router.close()

        asyncio.run(send())

    def outcome(self, tenant_id: str) -> dict[str, Any]:
        """Everything that a tenant's customers and auditors see, without ids and times of making."""
        with Database(self.dsn) as database:
            archive = Archive(database, LocalObjectStore(self.directory))
            with database.tenant(tenant_id) as connection:
                assert invoices.number_gaps(connection) == []
                rows = connection.execute(
                    "SELECT number, document, packed FROM invoices ORDER BY series, year, n"
                ).fetchall()
                sums = connection.execute(
                    "SELECT debit, credit, count(*) AS rows, sum(amount)::text AS amount FROM postings"
                    " GROUP BY debit, credit ORDER BY debit, credit"
                ).fetchall()
                told = connection.execute("SELECT kind, subject FROM outbox ORDER BY kind, subject").fetchall()
                files = connection.execute("SELECT state, count(*) AS n FROM document_files GROUP BY state").fetchall()
                counts = connection.execute(
                    "SELECT (SELECT count(*) FROM invoice_lines) AS lines,"
                    " (SELECT count(*) FROM invoice_taxes) AS taxes"
                ).fetchone()
            proof = archive.verify(tenant_id)
            assert proof.intact, proof.findings
        return {
            "documents": [(row["number"], invoices.stored_form(row)) for row in rows],
            "postings": sums,
            "told": told,
            "files": files,
            "counts": counts,
            "archived": proof.entries,
        }


def _tenant(database: Database, **more: Any) -> str:
    form = {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE", "kind": "test", "code": f"t{uuid4().hex}"}
    form |= more
    seller = {
        "name": "Chaos Cloud GmbH",
        "vat_id": "DE123456789",
        "address": {"line1": "Hafen 1", "postcode": "20457", "city": "Hamburg"},
    }
    changes: list[dict[str, Any]] = [
        {"tax_code": {"code": "standard", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
        {"tax_code": {"code": "reduced", "percents": [{"from": "2021-01-01", "percent": "7"}]}},
        {"meter": {"code": "storage", "event_type": "disk", "aggregation": "sum", "value": "gb"}},
        {"meter": {"code": "value", "event_type": "value", "aggregation": "sum", "value": "amount"}},
        {"publish": {"plan": _PLAN}},
    ]
    for number in range(CUSTOMERS):
        code = f"c{number}"
        changes.append({"customer": {"code": code, "name": f"Customer {number}", "country": "DE", "einvoice": "none"}})
        changes.append({"subscribe": {"code": f"s{number}", "customer": code, "plan": "basic", "anchor": "calendar"}})
    with database.system() as connection:
        made = tenants.create(
            connection,
            code=form["code"],
            name="Chaos",
            kind="test",
            form=form,
            generated=False,
            now=NOW,
            test_clock=NOW,
        )
        tenants.enter(connection, made.id)
        tenants.put_legal_entity(
            connection, made.id, tenants.DEFAULT_ENTITY, seller, country="DE", now=NOW, is_default=True
        )
        steps.start_master(connection, made.id, form, "test", NOW)
    with database.tenant(made.id) as connection:
        steps.append_steps(connection, made.id, [{"at": "2026-01-01", **change} for change in changes], "test", now=NOW)
    return made.id


def _events(month: str, first: int) -> pl.DataFrame:
    """Storage for every customer, and a credit passed on to c2 that turns its invoice into a credit note."""
    year, number = (int(part) for part in month.split("-"))
    rows = [
        ("meter", f"{first + place}", "disk", f"c{place % CUSTOMERS}", None,
         datetime(year, number, 1 + place % 27, 9, 30, tzinfo=UTC), json.dumps({"gb": f"{place * 7 % 83}.25"}))
        for place in range(60)
    ]  # fmt: skip
    when = datetime(year, number, 15, tzinfo=UTC)
    rows.append(("meter", f"{first}-credit", "value", "c2", None, when, json.dumps({"amount": "-500.00"})))
    return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")


def main(arguments: list[str]) -> None:
    dsn, directory, tenant_id, run_id, step, count = arguments
    left = {"count": int(count)}

    def checkpoint(name: str) -> None:
        if name == step:
            left["count"] -= 1
            if left["count"] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    with Database(dsn) as database:
        driver = World(dsn, Path(directory)).driver(database, checkpoint=checkpoint)
        run = run_id or driver.plan(tenant_id, MARCH, "test")["id"]
        print(driver.drive(tenant_id, run)["state"], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
