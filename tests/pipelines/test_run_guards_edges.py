"""Bill runs and their reversal at the edges: two at once, odd data, failures in the middle, credit notes by hand."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from test_run_guards import documents, plain_world

from billing.errors import Conflict
from storage.sql import bill_runs, steps
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from tests.chaos.bill_run_world import CUSTOMERS, NOW, World

pytestmark = pytest.mark.postgres
JANUARY_ENDS = datetime(2026, 1, 31, 23, tzinfo=UTC)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with TemporaryDirectory(prefix="cb-sql-") as directory:
        server = EmbeddedPostgres(Path(directory) / "sql")
        try:
            migrate(server.start())
            yield World(server.dsn, tmp_path_factory.mktemp("store"))
        finally:
            server.stop()


@pytest.fixture
def database(world: World) -> Iterator[Database]:
    with Database(world.dsn) as one:
        yield one


def test_a_plan_on_master_data_that_know_a_reversed_run_as_final_is_refused(world: World, database: Database) -> None:
    tenant_id, run_id, driver = plain_world(world, database)
    driver.reverse(tenant_id, run_id, "ann")
    late = world.driver(database)

    def clock() -> datetime:
        # It has read the master data, with the run's mark in them; now the reversal comes to its end.
        late._clock = lambda: NOW
        assert driver.drive(tenant_id, run_id)["state"] == "reversed"
        return NOW

    late._clock = clock
    with pytest.raises(Conflict, match="reversed meanwhile"):
        late.plan(tenant_id, JANUARY_ENDS, "bob")
    with database.tenant(tenant_id) as connection:
        assert bill_runs.active(connection) is None
        assert steps.current(connection, tenant_id)[1].runs == ()
    run = driver.drive(tenant_id, driver.plan(tenant_id, JANUARY_ENDS, "bob")["id"])
    assert len(documents(database, tenant_id, run["id"])) == CUSTOMERS
