"""The reversal of a run that made invoices again is killed at every step and driven by two at once."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pipelines.run_reversal import STEPS as OWN_STEPS
from pipelines.verify_invoices import verify_run
from storage.object_store import LocalObjectStore
from storage.sql import bill_runs, invoices
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from tests.chaos.bill_run_world import CUSTOMERS, MARCH, World

pytestmark = [pytest.mark.chaos, pytest.mark.postgres]
ROOT = Path(__file__).parents[2]
REISSUED = CUSTOMERS - 1  # January of c2 is a credit note: its late usage is a correction on the next document
STEPS = (*OWN_STEPS[:3], "files made", *OWN_STEPS[3:])
# The second time where a step comes again and again: something is done already, something is left.
SECOND = {"reversing", "batch reversed", "issuing again"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with TemporaryDirectory(prefix="cb-reversal-") as directory:
        server = EmbeddedPostgres(Path(directory) / "sql")
        try:
            migrate(server.start())
            yield World(server.dsn, tmp_path_factory.mktemp("reversal-store"))
        finally:
            server.stop()


def being_reversed(world: World) -> tuple[str, str]:
    """A tenant whose last run made January's invoices again, and is to be taken back."""
    tenant_id = world.make_tenant(late_usage="reissue")
    with Database(world.dsn) as database:
        driver = world.driver(database)
        run = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"])
        assert run["state"] == "done"
        driver.reverse(tenant_id, run["id"], "bob")
    return tenant_id, run["id"]


def billed_again(world: World, tenant_id: str) -> dict[str, Any]:
    """What everybody sees after the same run once more; every run that stands is proven."""
    with Database(world.dsn) as database:
        driver = world.driver(database)
        again = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"])
        assert again["state"] == "done"
        with database.tenant(tenant_id) as connection:
            runs = [str(row["id"]) for row in bill_runs.page(connection) if row["state"] == "done"]
        for run_id in runs:
            proof = verify_run(database, LocalObjectStore(world.directory), driver._chain, tenant_id, run_id)
            assert proof.proven, proof
    return world.outcome(tenant_id)


@pytest.fixture(scope="module")
def undisturbed(world: World) -> dict[str, Any]:
    tenant_id, run_id = being_reversed(world)
    with Database(world.dsn) as database:
        assert world.driver(database).drive(tenant_id, run_id)["state"] == "reversed"
        with database.tenant(tenant_id) as connection:
            rows = connection.execute(
                "SELECT stands_for IS NOT NULL AS again, count(*) AS n, count(DISTINCT refers_to) AS of FROM invoices"
                " WHERE reverses_run = %s GROUP BY 1 ORDER BY 1",
                (run_id,),
            ).fetchall()
            assert invoices.number_gaps(connection) == []
    assert [(row["again"], row["n"], row["of"]) for row in rows] == [
        (False, REISSUED + CUSTOMERS, REISSUED + CUSTOMERS),
        (True, REISSUED, REISSUED),
    ]
    return billed_again(world, tenant_id)


def process(world: World, tenant_id: str, run_id: str, step: str = "", count: int = 1) -> subprocess.Popen[str]:
    arguments = [world.dsn, str(world.directory), tenant_id, run_id, step, str(count)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.bill_run_world", *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )


@pytest.mark.parametrize("step", STEPS)
def test_a_reversal_killed_at_any_step_ends_with_the_same_documents(
    step: str, world: World, undisturbed: dict[str, Any]
) -> None:
    tenant_id, run_id = being_reversed(world)
    killed = process(world, tenant_id, run_id, step, 2 if step in SECOND else 1)
    said, _ = killed.communicate(timeout=120)
    assert (killed.returncode, said) == (-signal.SIGKILL, ""), "the reversal never came to this step"
    with Database(world.dsn) as database:
        driver = world.driver(database)
        if step != "reversed":  # killed before it was over, so whoever starts finds it
            assert (tenant_id, run_id) in driver.unfinished()
        assert driver.drive(tenant_id, run_id)["state"] == "reversed"
    assert billed_again(world, tenant_id) == undisturbed


def test_two_processes_that_take_one_run_back_end_with_the_same_documents(
    world: World, undisturbed: dict[str, Any]
) -> None:
    tenant_id, run_id = being_reversed(world)
    both = [process(world, tenant_id, run_id) for _ in range(2)]
    assert [one.communicate(timeout=120)[0].strip() for one in both] == ["reversed"] * 2
    assert billed_again(world, tenant_id) == undisturbed
