"""What a run is expected to come to, from the last runs: documents, sums, and each stage at its speed then."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipelines.bill_run import BillRunDriver
from pipelines.run_estimate import _documents, _seconds, _totals, estimate
from storage.archive import Archive
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore
from storage.sql import bill_runs
from storage.sql.database import Database
from tests.chaos.bill_run_world import FEBRUARY, MARCH, NOW, World, _tenant

pytestmark = pytest.mark.postgres


def ended(documents: int, customers: int = 10, due: int | None = None, **more: Any) -> dict[str, Any]:
    return {
        "documents": documents,
        "customers": customers,
        "estimate": None if due is None else {"customers_due": due},
        "sums": {"EUR": {"net": "100.00", "gross": "119.00"}},
        "stage_seconds": {},
    } | more


def test_documents_are_those_of_the_last_runs_for_a_customer_due() -> None:
    assert _documents(0, []) == 0
    assert _documents(7, []) is None
    assert _documents(20, [ended(9, due=10)]) == 18
    assert _documents(20, [ended(9, due=10), ended(3, due=6)]) == 15
    assert _documents(20, [ended(5, customers=50)]) == 2, "of a run without an estimate all customers are taken"
    assert _documents(1, [ended(1, due=0)]) is None


def test_sums_are_the_mean_of_a_document_by_currency_in_its_minor_unit() -> None:
    assert _totals(None, []) is None
    assert _totals(0, []) == {}
    yen = ended(1, sums={"JPY": {"net": "-100", "gross": "-110"}})
    found = _totals(2, [ended(2), yen])
    assert found == {"EUR": {"net": "66.67", "gross": "79.33"}, "JPY": {"net": "-67", "gross": "-73"}}


def test_each_stage_takes_its_own_time_and_a_stage_that_is_not_timed_makes_no_estimate() -> None:
    stages = {
        "reading": {"seconds": 2.0, "from": 0},
        "planned": {"seconds": 5, "from": 0},
        "approved": {"seconds": 1, "from": 5},  # a driver died: of 10 customers it has only these 5 timed
        "finalised": {"seconds": 8, "from": 0},
    }
    timed = ended(4, stage_seconds=stages)
    assert _seconds(20, 8, [timed]) == 2 * 2 + 2 * 5 + 4 * 1 + 2 * 8
    assert _seconds(20, None, [timed]) is None
    assert _seconds(20, 8, [ended(4), timed]) == 34.0
    assert _seconds(20, 8, [ended(4, stage_seconds={name: stages[name] for name in ("planned", "approved")})]) is None


class Clock:
    """Goes on by a second each time that somebody looks."""

    def __init__(self) -> None:
        self.now: datetime = NOW

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def test_a_run_notes_how_long_its_stages_took_but_not_what_it_waited_for_its_approval(
    world: World, database: Database
) -> None:
    tenant_id = _tenant(database)
    store, clock = LocalObjectStore(world.directory), Clock()
    driver = BillRunDriver(database, store, MasterChain(store), Archive(database, store), clock)
    run = driver.plan(tenant_id, FEBRUARY, "ann")
    assert run["estimate"] == {
        "customers": 7, "customers_due": 7, "exact": True,
        "documents": None, "totals": None, "seconds": None, "runs": [],
    }  # fmt: skip
    driver.drive(tenant_id, run["id"], approve=False)
    clock.now += timedelta(days=3)
    assert driver.drive(tenant_id, run["id"], approve=True)["state"] == "done"
    with database.tenant(tenant_id) as connection:
        (last,) = bill_runs.last_with_sums(connection, 3)
    assert set(last["stage_seconds"]) == {"reading", "planned", "approved", "finalised"}
    assert all(0 < Decimal(str(one["seconds"])) < 1_000 for one in last["stage_seconds"].values())
    assert (last["documents"], last["sums"]) == (7, {"EUR": {"net": "69.30", "gross": "82.46"}})
    second = driver.plan(tenant_id, MARCH, "ann")["estimate"]
    assert (second["customers_due"], second["documents"], second["runs"]) == (7, 7, [1])
    assert second["totals"] == {"EUR": {"net": "69.30", "gross": "82.46"}}
    assert 0 < second["seconds"] < 1_000
    master = MasterChain(store).newest(tenant_id)[1]
    with database.tenant(tenant_id) as connection:
        nothing = estimate(connection, master, datetime.fromisoformat("2026-01-31T23:00Z"))
    assert (nothing["customers_due"], nothing["documents"], nothing["totals"]) == (0, 0, {})
    assert nothing["seconds"] is not None, "to look at all customers takes its time, too"


def test_runs_that_were_reversed_or_made_nothing_are_not_reckoned_from(world: World, database: Database) -> None:
    tenant_id = _tenant(database)
    driver = world.driver(database)
    first = driver.drive(tenant_id, driver.plan(tenant_id, FEBRUARY, "ann")["id"])
    driver.drive(tenant_id, driver.plan(tenant_id, date(2026, 2, 2), "ann")["id"])
    with database.tenant(tenant_id) as connection:
        assert [run["number"] for run in bill_runs.last_with_sums(connection, 3)] == [1]
    again = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"])
    driver.reverse(tenant_id, again["id"], "bob")
    assert driver.drive(tenant_id, again["id"])["state"] == "reversed"
    with database.tenant(tenant_id) as connection:
        assert [str(run["id"]) for run in bill_runs.last_with_sums(connection, 3)] == [first["id"]]
