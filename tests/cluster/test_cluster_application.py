"""What `serve deploy` brings up beside HTTP, on a real Ray: schema, shards, upkeep; and these two watch each other."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest

from billing.simulation import plan_asked
from pipelines.bill_run import BillRunDriver
from pipelines.simulation import Simulations
from storage.archive import Archive
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from tests.chaos.bill_run_world import NOW, World

pytestmark = [
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.chaos,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def dsn() -> Iterator[str]:
    with TemporaryDirectory(prefix="cb-sql-") as directory:
        server = EmbeddedPostgres(Path(directory) / "sql")
        try:
            yield server.start()
        finally:
            server.stop()


def test_a_cluster_has_all_that_a_machine_has_and_who_hangs_is_replaced(
    ray_here: Any, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actors.silence import SUPERVISOR_NAME, UPKEEP_NAME
    from actors.supervisor_actor import stop_usage_log
    from cluster.ray_head import NAMESPACE
    from cluster.serve_application import build

    store = tmp_path / "objects"
    migrate(dsn)
    tenant_id = World(dsn, store).make_tenant()
    run_id, simulation_id = _left_behind(dsn, store, tenant_id)
    for name, value in {
        "DATABASE_URL": dsn,
        "OBJECT_STORE": str(store),
        "DATA_DIR": str(tmp_path),
        "SHARDS": "1",
    }.items():
        monkeypatch.setenv(f"CLOUDBILLING_{name}", value)
    try:
        assert build({}) is not None
        build({})  # a second deployment finds what is there
        with Database(dsn, size_max=2) as database:
            objects = LocalObjectStore(store)
            simulations = Simulations(database, objects, MasterChain(objects), lambda: NOW)
            until(lambda: _state_of_run(database, tenant_id, run_id) == "done")
            until(lambda: simulations.get(tenant_id, simulation_id)["state"] == "done")
        for hangs in (SUPERVISOR_NAME, UPKEEP_NAME):
            process = _process_of({SUPERVISOR_NAME: "SupervisorActor", UPKEEP_NAME: "UpkeepActor"}[hangs])
            began = time.monotonic()
            os.kill(process.pid, signal.SIGSTOP)
            until(lambda gone=process: not gone.is_running() or gone.status() == psutil.STATUS_ZOMBIE)
            actor = ray_here.get_actor(hangs, namespace=NAMESPACE)
            assert ray_here.get(actor.is_there.remote(), timeout=60)
            print(f"{hangs} answers again after {time.monotonic() - began:.1f} s")
    finally:
        for name in (UPKEEP_NAME, f"bill-run-{tenant_id}", f"simulation-{tenant_id}"):
            ray_here.kill(ray_here.get_actor(name, namespace=NAMESPACE))
        stop_usage_log(NAMESPACE)


def _left_behind(dsn: str, store: Path, tenant_id: str) -> tuple[str, str]:
    """A bill run and a simulation that somebody planned and nobody drives."""
    objects = LocalObjectStore(store)
    with Database(dsn, size_max=2) as database:
        chain = MasterChain(objects)
        driver = BillRunDriver(database, objects, chain, Archive(database, objects), lambda: NOW)
        run = driver.plan(tenant_id, date(2026, 3, 1), "test")
        number, master = chain.newest(tenant_id)
        charges = [{"code": "base", "price": {"model": "flat", "amount": "12.00"}}]
        tried = plan_asked(master, {"prices": {"code": "basic", "charges": charges}})
        months = [date(2026, 1, 1), date(2026, 2, 1)]
        made = Simulations(database, objects, chain, lambda: NOW).plan(
            tenant_id, number, tried, months, name="t", actor="test", now=NOW
        )
    return str(run["id"]), str(made["id"])


def _state_of_run(database: Database, tenant_id: str, run_id: str) -> str:
    with database.tenant(tenant_id) as connection:
        row = connection.execute("SELECT state FROM bill_runs WHERE id = %s", (run_id,)).fetchone()
    assert row is not None
    return str(row["state"])


def _process_of(actor: str) -> psutil.Process:
    (found,) = (
        one for one in psutil.Process().children(recursive=True)
        if one.cmdline()[:1] and one.cmdline()[0].startswith(f"ray::{actor}")
    )  # fmt: skip
    return found


def until(holds: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.2)
