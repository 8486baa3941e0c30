"""Chunks of a bill run as Ray tasks end with the documents of a run in one process, also when a worker is killed."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest

from storage.object_store import StoreAddress
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from tests.chaos.bill_run_world import MARCH, World

pytestmark = [pytest.mark.ray, pytest.mark.postgres]


def test_a_run_on_ray_makes_the_same_documents_although_a_worker_is_killed(ray_here: Any, tmp_path: Path) -> None:
    from pipelines.ray_tasks import RayExecutor

    @ray_here.remote
    def whoami() -> int:
        return os.getpid()

    with TemporaryDirectory(prefix="cb-ray-") as directory:
        server = EmbeddedPostgres(Path(directory) / "sql")
        try:
            migrate(server.start())
            world = World(server.dsn, tmp_path)
            outcomes: list[dict[str, Any]] = []
            killed: list[int] = []

            def checkpoint(step: str) -> None:
                if step == "chunk computed" and not killed:
                    killed.append(ray_here.get(whoami.remote()))
                    psutil.Process(killed[0]).send_signal(signal.SIGKILL)

            with Database(server.dsn) as database:
                on_ray = {"executor": RayExecutor(StoreAddress(str(tmp_path)), server.dsn), "checkpoint": checkpoint}
                for options in ({}, on_ray):
                    tenant_id = world.make_tenant()
                    driver = world.driver(database, **options)
                    assert driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "test")["id"])["state"] == "done"
                    outcomes.append(world.outcome(tenant_id))
            assert killed
            assert outcomes[0] == outcomes[1]
        finally:
            server.stop()


def test_what_a_chunk_raises_comes_after_the_results_of_the_others(ray_here: Any, tmp_path: Path) -> None:
    from pipelines.ray_tasks import RayExecutor

    @dataclass(frozen=True)  # in here, so that it travels by value: workers do not know this module
    class Part:
        number: int
        title: str = "a part"

    def odd(part: Part, *stores: Any) -> int:
        if part.number == 1:
            raise RuntimeError("this part breaks")
        return part.number

    executor = RayExecutor(StoreAddress(str(tmp_path)), "host=/nowhere dbname=none", work=odd)
    found: list[int] = []

    def collect() -> None:
        for number in executor.compute(Part(number) for number in range(6)):
            found.append(number)

    with pytest.raises(RuntimeError, match="this part breaks"):
        collect()
    assert sorted(found) == [0, 2, 3, 4, 5]
