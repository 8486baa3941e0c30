"""A warm spare as a Ray actor: a shard killed with SIGKILL, and the spare's own process answers for its lane. And a
lane that is drained and closed while a supervisor watches."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.spares import Role
from billing.errors import Conflict, Unavailable
from billing.usage import Verdict
from storage.object_store import LocalObjectStore, StoreAddress
from tests.usage_log_support import TENANT, logged_ids, make_events

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
NAMESPACE = "spares-test"


class Here:
    """A usage log under Ray, and what a test asks of its processes."""

    def __init__(self, ray: Any, folder: Path, *, shards: int = 1) -> None:
        from actors.supervisor_actor import RayUsageRouter, UsageLogSettings, start_usage_log

        self.ray, self.folder = ray, folder
        self.address = StoreAddress(str(folder / "store"))
        settings = UsageLogSettings(self.address, NAMESPACE, str(folder / "cache"), shards=shards)
        self.supervisor = start_usage_log(settings)
        self.router = lambda: RayUsageRouter(self.address, NAMESPACE)
        self.sent = 0

    def pid_of_lane(self) -> int:
        from actors.shard_processes import find_shard

        return int(self.ray.get(find_shard(0, NAMESPACE).process_id.remote(), timeout=10))

    def pid_of(self, name: str) -> int:
        actor = self.ray.get_actor(name, namespace=NAMESPACE)
        return int(self.ray.get(actor.process_id.remote(), timeout=10))

    def role(self) -> Role:
        from actors.shard_processes import find_shard

        role: Role = self.ray.get(find_shard(0, NAMESPACE).role.remote(), timeout=10)
        return role

    def spare(self) -> str:
        """The name of the spare, once it is up."""
        for _ in range(300):
            up = [name for name, _, is_up in self.ray.get(self.supervisor.spares.remote(), timeout=10) if is_up]
            if up:
                return str(up[0])
            time.sleep(0.1)
        raise AssertionError("no spare came up")

    async def ingest(self, router: Any, rows: int = 10) -> float:
        """The same until it is known, as a client does; how long that took."""
        began, events = time.monotonic(), make_events(rows, self.sent)
        self.sent += rows
        for _ in range(10):
            with contextlib.suppress(Unavailable):
                await router.ingest(TENANT, events)
                return time.monotonic() - began
        raise AssertionError("no answer after ten tries")


@pytest.fixture
def here(request: pytest.FixtureRequest, ray_here: Any, tmp_path: Path) -> Iterator[Here]:
    """Of one lane, or as many as the test says."""
    from actors.supervisor_actor import stop_usage_log

    try:
        yield Here(ray_here, tmp_path, shards=getattr(request, "param", 1))
    finally:
        stop_usage_log(NAMESPACE)
        left = [one for one in ray_here.util.list_named_actors(all_namespaces=True) if one["namespace"] == NAMESPACE]
        assert left == [], "spares end with the platform"


def test_the_process_of_the_spare_answers_for_the_lane_of_a_shard_that_was_killed(here: Here) -> None:
    async def scene() -> None:
        router = here.router()
        await here.ingest(router, 1_000)
        for _ in range(2):
            spare = here.pid_of(here.spare())
            os.kill(here.pid_of_lane(), signal.SIGKILL)
            print(f"next answer {await here.ingest(router):.2f} s after the kill")
            assert here.pid_of_lane() == spare
        status = here.role().status
        assert status is not None
        assert status.serving
        assert status.epoch == 3, "each successor claimed the lane once, and nobody beside it"
        await router.close()

    asyncio.run(scene())
    ids = logged_ids(LocalObjectStore(here.folder / "store"))
    assert len(ids) == len(set(ids)) == here.sent


def test_a_spare_killed_while_it_takes_over_and_a_supervisor_killed_meanwhile_leave_the_lane_to_the_next(
    here: Here,
) -> None:
    async def scene() -> None:
        router = here.router()
        await here.ingest(router, 100)
        spare = here.pid_of(here.spare())
        os.kill(here.pid_of_lane(), signal.SIGKILL)
        os.kill(spare, signal.SIGKILL)
        await here.ingest(router)
        spare = here.pid_of(here.spare())
        supervisor = next(one for one in psutil.Process().children(recursive=True)
                          if one.cmdline()[:1] and one.cmdline()[0].startswith("ray::SupervisorActor"))  # fmt: skip
        supervisor.kill()
        os.kill(here.pid_of_lane(), signal.SIGKILL)
        await here.ingest(router)
        assert here.pid_of_lane() == spare, "the supervisor that came after it found the spare"
        await router.close()

    asyncio.run(scene())
    ids = logged_ids(LocalObjectStore(here.folder / "store"))
    assert len(ids) == len(set(ids)) == here.sent


def test_a_shard_that_hangs_wakes_without_its_lane_after_the_spare_has_taken_it(here: Here) -> None:
    async def scene() -> None:
        router = here.router()
        await here.ingest(router, 100)
        spare, hung = here.pid_of(here.spare()), here.pid_of_lane()
        os.kill(hung, signal.SIGSTOP)
        await here.ingest(router)
        assert here.pid_of_lane() == spare
        with contextlib.suppress(ProcessLookupError):
            os.kill(hung, signal.SIGCONT)
        await here.ingest(router)
        assert here.pid_of_lane() == spare
        role = here.role()
        assert role.status is not None
        assert (role.status.serving, role.status.epoch) == (True, 2)
        await router.close()

    asyncio.run(scene())
    ids = logged_ids(LocalObjectStore(here.folder / "store"))
    assert len(ids) == len(set(ids)) == here.sent


@pytest.mark.parametrize("here", [2], indirect=True)
def test_a_lane_is_drained_in_the_background_and_closed_and_nobody_serves_it_again(here: Here) -> None:
    async def scene() -> None:
        router = here.router()
        await here.ingest(router, 300)
        spread = await router.spread([0])
        for _ in range(600):
            if spread.done:
                break
            await asyncio.sleep(0.2)
            spread = (await router.status()).spread or spread
        assert (spread.done, spread.moved, spread.left, spread.error) == (True, 128, 0, "")
        await router.close_lane(1)
        with pytest.raises(Conflict, match="closed"):
            await router.spread([0, 1])
        status = await router.status()
        assert ([one.lane for one in status.lanes], status.closed, status.unreachable) == ([0], (1,), ())
        here.ray.kill(here.supervisor, no_restart=False)
        fresh = here.router()  # by the genesis half of all partitions are in the closed lane
        assert ((await fresh.ingest(TENANT, make_events(300))).verdicts == Verdict.DUPLICATE).all()
        for _ in range(100):
            with contextlib.suppress(Unavailable):
                seen = await fresh.supervisor_status()
                if seen.lanes and seen.healthy:  # it has looked by now
                    break
            await asyncio.sleep(0.2)
        seen = await fresh.supervisor_status()
        assert ([lane for lane, _, _ in seen.lanes], seen.closed) == ([0], (1,)), (
            "by the log: nothing is started for it"
        )
        await router.close()
        await fresh.close()

    asyncio.run(scene())
