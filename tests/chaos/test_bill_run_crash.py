"""A bill run is killed at every step, driven by two at once and left without its database: it ends the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from billing.errors import Unavailable
from pipelines.bill_run import STEPS, BillRunDriver
from storage.sql import finalising, invoices
from storage.sql.database import Database, connect
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from tests.chaos.bill_run_world import CUSTOMERS, MARCH, World

pytestmark = [pytest.mark.chaos, pytest.mark.postgres]
ROOT = Path(__file__).parents[2]
# The second time where a step comes again and again: something is done already, something is left.
SECOND = {"chunk computed", "chunk noted", "chunk finalising", "chunk finalised"}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    # Not below pytest's own folder: another pytest that starts meanwhile closes that to other users, and a server that
    # root starts is another user.
    with TemporaryDirectory(prefix="cb-chaos-") as directory:
        one = EmbeddedPostgres(Path(directory) / "sql")
        try:
            migrate(one.start())
            yield one
        finally:
            one.stop()


@pytest.fixture(scope="module")
def world(server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(server.dsn, tmp_path_factory.mktemp("chaos-store"))


@pytest.fixture(scope="module")
def undisturbed(world: World) -> dict[str, Any]:
    tenant_id = world.make_tenant()
    with Database(world.dsn) as database:
        driver = world.driver(database)
        assert driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "test")["id"])["state"] == "done"
    outcome = world.outcome(tenant_id)
    kinds = [document["type"] for _, document in outcome["documents"]]
    assert kinds.count("credit_note") == 2
    assert kinds.count("invoice") == 2 * CUSTOMERS - 2
    assert any(line["correction"] for _, document in outcome["documents"] for line in document["lines"])
    return outcome


def process(world: World, tenant_id: str, run_id: str = "", step: str = "", count: int = 1) -> subprocess.Popen[str]:
    arguments = [world.dsn, str(world.directory), tenant_id, run_id, step, str(count)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.bill_run_world", *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )


@pytest.mark.parametrize("step", STEPS)
def test_a_bill_run_killed_at_any_step_ends_with_the_same_invoices(
    step: str, world: World, undisturbed: dict[str, Any]
) -> None:
    tenant_id = world.make_tenant()
    killed = process(world, tenant_id, step=step, count=2 if step in SECOND else 1)
    said, _ = killed.communicate(timeout=120)
    assert (killed.returncode, said) == (-signal.SIGKILL, ""), "the run never came to this step"
    with Database(world.dsn) as database:
        driver = world.driver(database)
        left = [run for tenant, run in driver.unfinished() if tenant == tenant_id]
        assert len(left) == (0 if step in STEPS[:2] else 1), "the first two come before there is a run"
        run_id = left[0] if left else driver.plan(tenant_id, MARCH, "test")["id"]
        assert driver.drive(tenant_id, run_id)["state"] == "done"
    assert world.outcome(tenant_id) == undisturbed


def test_a_second_run_up_to_the_same_day_makes_nothing(world: World) -> None:
    tenant_id = world.make_tenant()
    with Database(world.dsn) as database:
        driver = world.driver(database)
        driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "test")["id"])
        before = world.outcome(tenant_id)
        again = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "test")["id"])
    assert (again["state"], again["documents"]["made"]) == ("done", 0)
    after = world.outcome(tenant_id)
    after["told"].remove({"kind": "bill_run.done", "subject": str(again["number"])})  # of this run itself, nothing else
    assert after == before


def test_two_processes_that_drive_one_run_end_with_the_same_invoices(world: World, undisturbed: dict[str, Any]) -> None:
    tenant_id = world.make_tenant()
    with Database(world.dsn) as database:
        run_id = world.driver(database).plan(tenant_id, MARCH, "test")["id"]
    both = [process(world, tenant_id, run_id) for _ in range(2)]
    assert [one.communicate(timeout=120)[0].strip() for one in both] == ["done", "done"]
    assert world.outcome(tenant_id) == undisturbed


def drive_until_done(driver: BillRunDriver, tenant_id: str, run_id: str) -> dict[str, Any]:
    """What the actor does: again while the database is away (the pool needs a moment to notice that it is back)."""
    for _ in range(9):
        try:
            return driver.drive(tenant_id, run_id)
        except Unavailable:
            continue
    return driver.drive(tenant_id, run_id)


@pytest.mark.parametrize("step", ["chunk computed", "chunk finalising", "files made"])
def test_a_database_killed_in_a_run_costs_no_number_and_no_invoice(
    step: str, server: EmbeddedPostgres, world: World, undisturbed: dict[str, Any]
) -> None:
    tenant_id = world.make_tenant()
    kills = {"left": 1}

    def checkpoint(name: str) -> None:
        if name == step and kills["left"]:
            kills["left"] = 0
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)

    with Database(world.dsn, wait_s=2.0) as database:
        driver = world.driver(database, checkpoint=checkpoint)
        run_id = driver.plan(tenant_id, MARCH, "test")["id"]
        with pytest.raises(Unavailable):
            driver.drive(tenant_id, run_id)
        assert server.ensure_running()
        assert drive_until_done(driver, tenant_id, run_id)["state"] == "done"
    assert world.outcome(tenant_id) == undisturbed


def test_a_counter_outside_of_the_transaction_would_leave_a_gap_and_the_check_sees_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_id = world.make_tenant()
    right = finalising.numbers_of

    def wrong(connection: Any, tenant: Any, documents: Any) -> Any:
        with connect(world.dsn) as other, other.transaction():
            return right(other, tenant, documents)

    class Crash(Exception):
        """The process ends here."""

    def checkpoint(name: str) -> None:
        if name == "chunk finalising":
            raise Crash

    with Database(world.dsn) as database:
        driver = world.driver(database, checkpoint=checkpoint)
        run_id = driver.plan(tenant_id, MARCH, "test")["id"]
        with monkeypatch.context() as broken:
            broken.setattr(finalising, "numbers_of", wrong)
            with pytest.raises(Crash):
                driver.drive(tenant_id, run_id)
        with database.tenant(tenant_id) as connection:
            gaps = invoices.number_gaps(connection)
    assert [(gap["series"], gap["last"] - gap["documents"]) for gap in gaps] == [("credit_note", 1), ("invoice", 2)]
