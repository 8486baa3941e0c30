"""The actor of simulations and previews on a real Ray: chunks as tasks, the same as in one process, and it resumes."""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from billing.simulation import plan_asked
from pipelines import run_preview, simulation
from pipelines.run_preview import RunPreviews
from pipelines.simulation import Simulations
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore, StoreAddress
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from tests.chaos.bill_run_world import MARCH, NOW, World

pytestmark = [pytest.mark.ray, pytest.mark.postgres]

MONTHS = [date(2026, 1, 1), date(2026, 2, 1)]


def test_a_simulation_on_ray_gives_what_one_process_gives_and_an_unfinished_one_is_resumed(
    ray_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.simulation_actor import start_preview, start_simulation
    from deployments.upkeep_actor import is_alive, unfinished_previews, unfinished_simulations
    from deployments.wiring import PlatformAddress

    monkeypatch.setattr(simulation, "CHUNK_MIN", 3)
    monkeypatch.setattr(run_preview, "CUSTOMERS", 3)
    with TemporaryDirectory(prefix="cb-ray-") as directory:
        server = EmbeddedPostgres(Path(directory) / "sql")
        try:
            migrate(server.start())
            tenant_id = World(server.dsn, tmp_path).make_tenant()
            store = LocalObjectStore(tmp_path)
            namespace = ray_here.get_runtime_context().namespace
            address = PlatformAddress(server.dsn, StoreAddress(str(tmp_path)), namespace, "test")
            with Database(server.dsn) as database:
                chain = MasterChain(store)
                known = Simulations(database, store, chain, lambda: NOW)
                number, master = chain.newest(tenant_id)
                tried = plan_asked(
                    master,
                    {
                        "prices": {
                            "code": "basic",
                            "charges": [{"code": "base", "price": {"model": "flat", "amount": "12.00"}}],
                        }
                    },
                )

                def planned() -> str:
                    made = known.plan(tenant_id, number, tried, MONTHS, name="t", actor="test", now=NOW)
                    return str(made["id"])

                def ended(name: str) -> dict[str, Any]:
                    deadline = time.monotonic() + 120
                    while (found := known.get(tenant_id, name))["state"] in ("planned", "running"):
                        assert time.monotonic() < deadline, found
                        time.sleep(0.1)
                    return found

                here = planned()
                assert known.drive(tenant_id, here) == "done"
                on_ray = planned()
                start_simulation(address, tenant_id, on_ray)
                found = ended(on_ray)
                assert found["progress"]["total"] == 7
                assert found["result"] == known.get(tenant_id, here)["result"]
                assert found["result"]["currencies"][0]["pay_more"] == 7
                left = planned()
                assert list(unfinished_simulations(address.open(connections_max=1))) == [(tenant_id, left)]
                assert is_alive(f"simulation-{tenant_id}", namespace)
                start_simulation(address, tenant_id, left)
                assert ended(left)["result"] == found["result"]
                previews = RunPreviews(database, store, chain, lambda: NOW)
                in_process = previews.plan(tenant_id, MARCH, "test")["id"]
                assert previews.drive(tenant_id, in_process) == "done"
                spread = previews.plan(tenant_id, MARCH, "test")["id"]
                assert list(unfinished_previews(address.open(connections_max=1))) == [(tenant_id, spread)]
                start_preview(address, tenant_id, spread)
                deadline = time.monotonic() + 120
                while (seen := previews.get(tenant_id, spread))["state"] in ("planned", "running"):
                    assert time.monotonic() < deadline, seen
                    time.sleep(0.1)
                assert seen["state"] == "done", seen
                assert seen["result"] == previews.get(tenant_id, in_process)["result"]
                assert seen["result"]["documents"] > 0
                ray_here.kill(ray_here.get_actor(f"simulation-{tenant_id}", namespace=namespace))
        finally:
            server.stop()
