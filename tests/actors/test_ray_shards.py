"""Rating shards as Ray actors: three lanes, one killed, one that hangs. The only Ray test of the usage log."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from billing.errors import Unavailable
from billing.usage import Verdict
from storage.object_store import LocalObjectStore, StoreAddress
from storage.usage_log.manifest import ManifestChain
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.segment import RowKind
from tests.usage_log_support import OTHER_TENANT, TENANT, logged_ids, make_events

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
NAMESPACE = "usage-log-test"


def test_three_lanes_outlive_a_kill_and_a_hang_with_every_event_stored_once(ray_here: Any, tmp_path: Path) -> None:
    from actors.shard_processes import find_shard
    from actors.supervisor_actor import (
        SUPERVISOR_NAME,
        RayUsageRouter,
        UsageLogSettings,
        start_usage_log,
        stop_usage_log,
    )

    address = StoreAddress(str(tmp_path / "store"))
    settings = UsageLogSettings(address, NAMESPACE, str(tmp_path / "cache"), shards=3, seal_every_s=0.5, tail_numbers=3)
    start_usage_log(settings)

    def pid_of(lane: int) -> int:
        return int(ray_here.get(find_shard(lane, NAMESPACE).process_id.remote(), timeout=10))

    def supervisor_error() -> str:
        return ray_here.get(ray_here.get_actor(SUPERVISOR_NAME, namespace=NAMESPACE).last_error.remote(), timeout=10)

    async def ingest_until_known(router: RayUsageRouter, first: int, rows: int) -> float:
        """What a client does: the same ids again until it has an answer. Returns how long that took."""
        began = time.monotonic()
        for _ in range(10):
            try:
                result = await router.ingest(TENANT, make_events(rows, first))
            except Unavailable:
                continue
            assert set(result.verdicts.tolist()) <= {Verdict.SUSPENDED, Verdict.DUPLICATE}
            return time.monotonic() - began
        raise AssertionError("no answer after ten tries")

    async def scene() -> None:
        router = RayUsageRouter(address, NAMESPACE)
        result = await router.ingest(TENANT, make_events(3_000))
        assert (result.verdicts == Verdict.SUSPENDED).all(), "the tenant has no master data yet"
        assert set(result.positions) == {0, 1, 2}
        again = await router.ingest(TENANT, make_events(3_000))
        assert (again.verdicts == Verdict.DUPLICATE).all()
        manifest = ManifestChain(address.open())
        for _ in range(150):  # sealing runs in a process of its own, which has to start
            if all(manifest.newest().sealed_to(lane) >= result.positions[lane] for lane in range(3)):
                break
            await asyncio.sleep(0.2)
        assert sum(file.rows for file in manifest.newest().files) >= 3_000, supervisor_error()

        clock = datetime(2027, 1, 1, tzinfo=UTC)
        await router.advance_clock(OTHER_TENANT, clock)
        os.kill(pid_of(0), signal.SIGKILL)
        await router.advance_clock(OTHER_TENANT, clock + timedelta(days=1))  # repeated until a successor has decided
        after_kill_s = await ingest_until_known(router, 3_000, 300)

        frozen = pid_of(1)
        os.kill(frozen, signal.SIGSTOP)
        after_hang_s = await ingest_until_known(router, 6_000, 300)
        print(f"next answer {after_kill_s:.1f} s after the kill, {after_hang_s:.1f} s after the hang")
        status = await router.supervisor_status()
        assert any(one.lane == 1 and "no answer" in one.reason for one in status.replacements), status.replacements
        if psutil.pid_exists(frozen):
            os.kill(frozen, signal.SIGKILL)
        for _ in range(100):
            if (await router.supervisor_status()).healthy:
                break
            await asyncio.sleep(0.2)
        status = await router.status()
        assert [lane.lane for lane in status.lanes] == [0, 1, 2]
        assert status.unreachable == ()
        assert status.lanes[0].epoch >= 2
        assert status.lanes[1].epoch >= 2
        with pytest.raises(Unavailable):
            await RayUsageRouter(address, "nobody-here", deadline_s=0.3).ingest(TENANT, make_events(1))
        await router.close()

    try:
        asyncio.run(scene())
    finally:
        stop_usage_log(NAMESPACE)
    ids = logged_ids(LocalObjectStore(tmp_path / "store"))
    assert len(ids) == len(set(ids)) == 3_600
    reader = UsageLogReader(LocalObjectStore(tmp_path / "store"))
    clocks = pl.concat(reader.scan(OTHER_TENANT, reader.now(), kinds=(RowKind.CLOCK_SET,)))
    assert sorted(clocks.select("lane", pl.col("time").dt.year()).rows()) == [
        (lane, 2027) for lane in (0, 1, 2) for _ in range(2)
    ], "each lane has each time once, whoever served it"
