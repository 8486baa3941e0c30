"""Wallet credit of a bill run whose chunks are Ray tasks: they find the shards by name and hold what they use there."""

import asyncio
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pipelines import bill_run
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore, StoreAddress
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from tests.pipelines.test_run_credit import World, top_up

pytestmark = [pytest.mark.ray, pytest.mark.postgres]
NAMESPACE = "run-credit-test"


def test_chunks_on_ray_hold_credit_in_the_lanes_and_the_driver_settles_it(
    ray_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actors.ray_desk import RayDeskAddress
    from actors.supervisor_actor import RayUsageRouter, UsageLogSettings, start_usage_log, stop_usage_log
    from pipelines.ray_tasks import RayExecutor

    monkeypatch.setattr(bill_run, "CUSTOMERS", 2)
    with tempfile.TemporaryDirectory(prefix="cb-credit-") as folder:
        postgres = EmbeddedPostgres(Path(folder) / "sql")
        address = StoreAddress(str(Path(folder) / "objects"))
        try:
            dsn = postgres.start()
            migrate(dsn)
            start_usage_log(UsageLogSettings(address, NAMESPACE, str(Path(folder) / "cache"), shards=2))
            store = LocalObjectStore(Path(folder) / "objects")
            router = RayUsageRouter(address, NAMESPACE)
            with Database(dsn) as database:
                world = World(database, store, MasterChain(store), router)  # type: ignore[arg-type]
                customers = ("a", "b", "c", "d")
                tenant = world.tenant(*customers, top_ups=[top_up(code, "20.00") for code in customers])
                world.desk("reserve", tenant, {"customer": "b", "id": "1", "amount": "15.00"})
                desk = RayDeskAddress(address, NAMESPACE)
                run = world.bill(
                    tenant, date(2026, 9, 1), desk=desk.open(), executor=RayExecutor(address, dsn, desk=desk)
                )
                assert (run["state"], run["chunks"]) == ("done", 2)
                assert world.prepaid(tenant) == [("a", "12.00"), ("b", "5.00"), ("c", "12.00"), ("d", "12.00")]
                assert world.wallet(tenant, "b") == ("15.00", "15.00", "0.00")
                world.assert_consistent(tenant)
            asyncio.run(router.close())
        finally:
            stop_usage_log(NAMESPACE)
            postgres.stop()
