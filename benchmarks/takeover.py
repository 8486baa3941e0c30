"""A shard's process is killed under Ray: seconds until the next acknowledgement, by steps, with a spare and without.

Beside `recovery`, which measures the plain class: here are Ray, the supervisor and a router, as on a platform. Steps:
*noticed* by the supervisor, *served*: the lane is claimed and loaded (of it *recovered*: the shard's own figure), and
the *first* acknowledgement that a client has, who sends the same again and again meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.usage_events import TENANT, make_events

TAIL = {"small": 5_000, "normal": 500_000, "long": 1_000_000}
KILLS = {"small": 2, "normal": 7, "long": 20}
NAMESPACE = "bench-takeover"
BACK_S_MAX = 60.0


def run(size: str, say: Callable[[str], None]) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="cb-bench-") as directory:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("POLARS_MAX_THREADS", "1")
        home, os.environ["HOME"] = os.environ.get("HOME", ""), directory  # Ray writes its token there
        import ray

        try:
            ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
            try:
                with_spare = _kills(Path(directory) / "with", 1, size, say)
                without = _kills(Path(directory) / "without", 0, size, say)
            finally:
                ray.shutdown()
        finally:
            os.environ["HOME"] = home
    first = [one["first"] for one in with_spare]
    return {
        "figure": round(statistics.median(first), 3),
        "unit": f"s from the kill of a shard to the next acknowledgement, a warm spare, {TAIL[size]:,} events of tail",
        "worst_s": round(max(first), 3),
        "steps_s": {name: round(statistics.median(one[name] for one in with_spare), 3) for name in with_spare[0]},
        "without_spare_s": {name: round(statistics.median(one[name] for one in without), 3) for name in without[0]},
        "checksum": TAIL[size] + KILLS[size],
    }


def _kills(folder: Path, spares: int, size: str, say: Callable[[str], None]) -> list[dict[str, float]]:
    import ray

    from actors.rating_shard import ShardSettings
    from actors.shard_processes import find_shard
    from actors.supervisor_actor import RayUsageRouter, UsageLogSettings, start_usage_log, stop_usage_log
    from billing.errors import Unavailable
    from storage.object_store import StoreAddress
    from storage.usage_log.reader import UsageLogReader

    address = StoreAddress(str(folder / "store"))
    shard = ShardSettings(checkpoint_rows=10**9, checkpoint_s=1e9)  # the whole tail is read each time
    supervisor = start_usage_log(
        UsageLogSettings(address, NAMESPACE, str(folder / "cache"), shards=1, spares=spares, shard=shard)
    )

    def asked(method: str) -> Any:
        return ray.get(getattr(find_shard(0, NAMESPACE), method).remote(), timeout=10.0)

    async def first_answer(router: Any, events: pl.DataFrame) -> None:
        began = time.monotonic()
        while time.monotonic() - began < BACK_S_MAX:
            try:
                await router.ingest(TENANT, events)
                return
            except Unavailable:
                continue
        raise AssertionError("no answer")

    async def scene() -> list[dict[str, float]]:
        router = RayUsageRouter(address, NAMESPACE)
        for first in range(0, TAIL[size], 5_000):
            await first_answer(router, make_events(5_000, first))
        found: list[dict[str, float]] = []
        for number in range(KILLS[size]):
            for _ in range(600):
                up = [one for one in ray.get(supervisor.spares.remote(), timeout=10.0) if one[2]]
                if len(up) == spares and ray.get(supervisor.status.remote(), timeout=10.0).healthy:
                    break
                await asyncio.sleep(0.1)
            await asyncio.sleep(1.0)
            pid = asked("process_id")
            killed_s = time.time()
            os.kill(pid, signal.SIGKILL)
            answer = asyncio.ensure_future(first_answer(router, make_events(1, TAIL[size] + number)))
            await answer
            first_s = time.time() - killed_s
            role = await asyncio.to_thread(asked, "role")
            assert asked("process_id") != pid
            seen = ray.get(supervisor.status.remote(), timeout=10.0)
            noticed_s = seen.replacements[-1].at_s - killed_s
            steps = {"noticed": noticed_s, "recovered": role.status.recovered_s, "first": first_s}
            say(f"{spares} spare: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in steps.items()))
            found.append(steps)
        await router.close()
        return found

    try:
        found = asyncio.run(scene())
    finally:
        stop_usage_log(NAMESPACE)
    reader = UsageLogReader(address.open())
    ids = pl.concat([frame.select("id") for frame in reader.scan(TENANT, reader.now())])["id"]
    assert ids.len() == ids.n_unique() == TAIL[size] + KILLS[size], "an event was lost or doubled"
    return found
