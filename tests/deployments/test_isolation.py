"""One tenant that floods does not starve another, memory stays bounded, and a slow disk makes it slower, not wrong."""

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi.testclient import TestClient

from actors.local_router import LocalUsageRouter
from actors.rating_shard import ShardSettings
from deployments.access import PLATFORM_SCOPES
from deployments.app import build_app
from deployments.services import Limits, Services, utc_now
from storage.archive import Archive
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore
from storage.sql import keys
from storage.sql.database import Database
from storage.usage_log.reader import UsageLogReader
from tests.deployments.conftest import Api, Tenant, bearer
from tests.usage_log_support import Hooked, logged_ids

pytestmark = pytest.mark.postgres
PUT_S = 0.03  # what a put to the slow disk takes
GROUP_ROWS, QUEUE_ROWS = 1_000, 12_000


@dataclass
class SlowDisk:
    """Sleeps before every segment is written; more when it is told to."""

    chance: random.Random
    sleeps_s: float = PUT_S

    def __call__(self, call: str, key: str) -> None:
        if call == "create" and "/lanes/" in key:
            time.sleep(self.sleeps_s * self.chance.uniform(0.5, 1.5))


@dataclass
class World:
    api: Api
    disk: SlowDisk
    store: LocalObjectStore
    router: LocalUsageRouter

    def send(self, tenant: Tenant, name: str, count: int) -> Any:
        lines = "\n".join(
            json.dumps(
                {
                    "source": "t",
                    "id": f"{name}-{number}",
                    "type": "storage.write",
                    "customer": "acme",
                    "time": "2026-11-05T10:00:00Z",
                    "data": {"gb": "1"},
                }
            )
            for number in range(count)
        )
        headers = bearer(tenant.key) | {"Content-Type": "application/x-ndjson"}
        return self.api.http.post("/v1/usage", content=lines, headers=headers)


@pytest.fixture
def world(api_dsn: str, tmp_path: Path) -> Iterator[World]:
    disk = SlowDisk(random.Random(7))
    store = LocalObjectStore(tmp_path / "store")
    slow = Hooked(store, disk)
    masters = MasterChain(store)
    settings = ShardSettings(group_rows_max=GROUP_ROWS, queue_rows_max=3 * QUEUE_ROWS, tenant_queue_rows_max=QUEUE_ROWS)
    router = LocalUsageRouter.open(slow, shards=1, master=masters, settings=settings)
    router.tenant_waiting_rows_max = QUEUE_ROWS
    with Database(api_dsn) as database:
        services = Services(
            database, router, store, UsageLogReader(store), masters, Archive(database, store),
            _nothing, _nothing, _nothing, limits=Limits(bytes_in_flight_max=16 * 1024 * 1024),
        )  # fmt: skip
        with database.system() as connection:
            made = keys.create(connection, tenant_id=None, name="i", scopes=PLATFORM_SCOPES, actor="i", now=utc_now())
        with TestClient(build_app(services, front=False), raise_server_exceptions=True) as http:
            api = Api(http.app, http, services, made.key)  # type: ignore[arg-type]
            yield World(api, disk, store, router)
            assert http.portal is not None
            http.portal.call(router.close)


def _nothing(*_: object) -> None:
    raise AssertionError("nobody bills here")


def test_who_floods_is_told_so_and_another_is_never_refused(world: World) -> None:
    """Sixteen senders of one tenant keep the queues full; one event of another tenant passes them all."""
    flooder, other = world.api.tenant(), world.api.tenant()
    for tenant in (flooder, other):
        tenant.catalog()
    stop = threading.Event()
    waits: list[float] = []
    codes: list[int] = []
    accepted: set[str] = set()

    def flood(sender: int) -> None:
        number = 0
        while not stop.is_set():
            began = time.monotonic()
            answer = world.send(flooder, f"f{sender}-{number}", GROUP_ROWS)
            codes.append(answer.status_code)
            if answer.status_code == 200:
                waits.append(time.monotonic() - began)
                accepted.update(f"f{sender}-{number}-{one}" for one in range(GROUP_ROWS))
                number += 1
            else:
                assert answer.status_code == 429, answer.text
                assert int(answer.headers["retry-after"]) >= 1
                time.sleep(0.02)

    with ThreadPoolExecutor(16) as pool:
        senders = [pool.submit(flood, sender) for sender in range(16)]
        while len(waits) < 8:
            time.sleep(0.05)
        for number in range(12):
            answer = world.send(other, f"o{number}", 1)  # never refused, and never behind all that the other sent
            assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
        stop.set()
        for sender in senders:
            sender.result(60)
    assert 429 in codes  # the queues are bounded: more than they hold is refused, for this tenant alone
    stored = logged_ids(world.store, flooder.id)
    assert len(stored) == len(set(stored))
    assert accepted <= set(stored)


def test_memory_stays_bounded_however_much_is_sent(world: World) -> None:
    """What waits is bounded by queues and bodies: a flood of 60 MB against a disk that stands still adds a part of it.

    The bound: bodies in flight (16 MB here) and 2 x 12,000 rows of a tenant in front of and behind the call (some 0.5
    kB a row), and what allocators keep; 150 MB are far below what a queue without an end would take.
    """
    tenant = world.api.tenant()
    tenant.catalog()
    world.send(tenant, "warm", GROUP_ROWS)
    process = psutil.Process()
    before = process.memory_info().rss
    world.disk.sleeps_s = 0.5
    peak = [before]
    codes: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with ThreadPoolExecutor(24) as pool:
        futures = [pool.submit(world.send, tenant, f"m{number}", 2_000) for number in range(160)]
        time.sleep(3.0)
        world.disk.sleeps_s = 0.0
        codes = [future.result(120).status_code for future in futures]
    stop.set()
    watcher.join()
    assert set(codes) <= {200, 429, 503}
    assert codes.count(200) > 0
    assert len(codes) > codes.count(200)  # more was sent than may wait
    assert (peak[0] - before) / 1e6 < 150, f"{(peak[0] - before) / 1e6:.0f} MB more"
    assert world.router.shards[0].status().queued_rows == 0


def test_a_slow_disk_makes_it_slower_and_not_wrong(world: World) -> None:
    """Puts of half a second: every event is there once, whatever was repeated meanwhile, and verdicts are right."""
    tenant = world.api.tenant()
    tenant.catalog()
    world.disk.sleeps_s = 0.5
    began = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda number: world.send(tenant, f"s{number % 3}", 50), range(6)))
    assert time.monotonic() - began > 0.25
    counts = [answer.json() for answer in answers]
    assert sum(one["accepted"] for one in counts) == 3 * 50
    assert sum(one["duplicates"] for one in counts) == 3 * 50
    assert sorted(logged_ids(world.store, tenant.id)) == sorted(f"s{n}-{m}" for n in range(3) for m in range(50))
    world.disk.sleeps_s = 0.0
    assert world.send(tenant, "s0", 50).json()["duplicates"] == 50
