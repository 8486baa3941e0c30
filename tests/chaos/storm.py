"""A storm: usage by the million while shards, replicas and a node are killed and one shard hangs; then the count.

`python -m tests.chaos.storm --events 10000000 --kills 20 --http` is what `make chaos` runs; the short form of CI sends
straight to the shards. It prints its seed, figures as JSON, and ends with 1 if an event is lost or there twice, if a
sum differs from the oracle in any digit, if it was not done in its time, or if a kill, a hang, the loss of a node or
moves that it was to bear did not happen while it was sending.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil

from tests.chaos.nodes import REPLICA, Nodes, waited
from tests.chaos.storm_events import CUSTOMERS, DUPLICATES, TYPE, Batches, Expected, Numbers, events_of

TENANT = "0198f0aa-0000-7000-8000-00000000cafe"  # of the form without HTTP, where nobody asks for a tenant
PROBE_TENANT = "0198f0aa-0000-7000-8000-00000000beef"
BACK_S_MAX = 60.0  # waiting for a lane; more is a failure of its own
MOVE_S_MAX = 10.0  # one partition a second is tried; kills interrupt some, but so seldom they may not succeed
ZOMBIE_S = 12.0  # a hung shard is replaced after 5 s without an answer; then it is woken


@dataclass(frozen=True)
class Settings:
    events: int
    rows: int  # of one request
    senders: int
    lanes: int
    nodes: int
    kills: int
    node_kills: int
    hangs: int
    moves: bool
    http: bool
    minutes: float
    seed: int


@dataclass
class Progress:
    """What all threads share; counts only."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    acknowledged: int = 0  # new events
    rows: int = 0
    duplicates: int = 0
    repeated: int = 0  # requests that had to be sent again
    stopped: threading.Event = field(default_factory=threading.Event)
    errors: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


class Storm:
    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.progress = Progress()
        self.backs: list[tuple[str, float]] = []  # what happened, seconds until the lane answered again
        self.plan = _plan(settings)
        self.counts: Counter[str] = Counter()  # what happened
        self.tenant_id, self.key, self.url = TENANT, "", ""
        self._sent: list[Numbers] = []  # acknowledged
        self._sending = True
        self.moves_s: list[float] = []
        self.interrupted: Counter[str] = Counter()
        self._began = time.monotonic()

    # -- The platform ------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        from cluster.ray_head import free_port

        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        with contextlib.ExitStack() as stack:
            dsn = self._database(stack) if self.settings.http else ""
            self.nodes = Nodes(self.folder, http_port=port, more=self.settings.nodes - 1)
            stack.callback(self.nodes.stop)
            self._start_platform(dsn)
            self.say("platform answers")
            self._began_sending = time.monotonic()
            self._storm()
            sent_s = time.monotonic() - self._began_sending
            self.say("all sent; counting")
            result = self._verify()
            return result | self._figures(sent_s)

    def _database(self, stack: contextlib.ExitStack) -> str:
        from storage.sql.embedded import EmbeddedPostgres
        from storage.sql.migrate import migrate

        server = EmbeddedPostgres(self.folder / "sql")
        stack.callback(server.stop)
        dsn = server.start()
        migrate(dsn)
        return dsn

    def _start_platform(self, dsn: str) -> None:
        from actors.supervisor_actor import RayUsageRouter, UsageLogSettings, start_usage_log
        from cluster.ray_head import NAMESPACE
        from storage.object_store import StoreAddress

        self.address = StoreAddress(str(self.folder / "store"))
        settings = UsageLogSettings(self.address, NAMESPACE, str(self.folder / "cache"), shards=self.settings.lanes)
        start_usage_log(settings, timeout_s=120.0)
        self.router = lambda: RayUsageRouter(self.address, NAMESPACE)
        if not self.settings.http:
            return
        from ray import serve

        from deployments.serve_app import APPLICATION, application
        from deployments.wiring import PlatformAddress

        self.nodes.start_serve()
        address = PlatformAddress(dsn, self.address, NAMESPACE, "storm", data_directory=str(self.folder))
        serve.run(application(address, replicas=2), name=APPLICATION, route_prefix="/", blocking=False)
        self._make_tenant(dsn)

    def _make_tenant(self, dsn: str) -> None:
        """A tenant over the API, with a meter, a plan, and every customer subscribed."""
        from cluster.client import Client
        from deployments.access import PLATFORM_SCOPES
        from storage.sql import keys
        from storage.sql.database import Database

        with Database(dsn, size_max=1) as database, database.system() as connection:
            made = keys.create(
                connection, tenant_id=None, name="storm", scopes=sorted(PLATFORM_SCOPES), actor="storm",
                now=datetime.now(UTC),
            )  # fmt: skip
        form = {"code": "storm", "currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"}
        with Client(self.url, made.key) as platform:
            tenant = platform.post("/v1/tenants", form)
        self.tenant_id, self.key = tenant["id"], tenant["key"]
        with Client(self.url, self.key) as client:
            for first in range(0, CUSTOMERS, 100):
                client.steps([*(STEPS if first == 0 else ()), *contracts(range(first, first + 100))])

    # -- Senders -----------------------------------------------------------------------------------------------------

    def _storm(self) -> None:
        threads = [
            threading.Thread(target=self._send, args=(sender,), name=f"sender-{sender}")
            for sender in range(self.settings.senders)
        ]
        chaos = threading.Thread(target=self._make_chaos, name="chaos")
        mover = threading.Thread(target=self._move, name="mover")
        movers = [mover] if self.settings.moves else []
        for thread in (*threads, chaos, *movers):
            thread.start()
        deadline = time.monotonic() + 60 * self.settings.minutes
        said = 0.0
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            if time.monotonic() > deadline:
                self.progress.errors.append(f"not done in {self.settings.minutes} minutes")
                self.progress.stopped.set()
                break
            if time.monotonic() - said > 10:
                said = time.monotonic()
                self.say(f"{self.progress.acknowledged:,} of {self.settings.events:,} events acknowledged")
        self._sending = False
        for thread in (*threads, chaos, *movers):
            thread.join(120)
            if thread.is_alive():
                self.progress.errors.append(f"{thread.name} hangs")

    def _send(self, sender: int) -> None:
        batches = Batches(self.settings.seed, sender, self.settings.senders, self.settings.events, self.settings.rows)
        mine: list[Numbers] = []
        try:
            with self._way() as send:
                for numbers in batches:
                    if self.progress.stopped.is_set():
                        break
                    self._send_until_known(send, numbers)
                    mine.append(numbers)
        except BaseException as error:  # noqa: BLE001 - told at the end; the storm is lost with it
            self.progress.errors.append(f"sender {sender}: {type(error).__name__}: {error}")
            self.progress.stopped.set()
        finally:
            with self.progress.lock:
                self._sent.extend(mine)

    def _send_until_known(self, send: Any, numbers: Numbers) -> None:
        """What a good client does: the very same again until it knows."""
        from billing.errors import Overloaded, Unavailable

        events = events_of(numbers)
        began = time.monotonic()
        while True:
            try:
                new, duplicates = send(events)
                break
            except (Unavailable, Overloaded):
                with self.progress.lock:
                    self.progress.repeated += 1
                if time.monotonic() - began > BACK_S_MAX:
                    raise
                time.sleep(0.2)
        with self.progress.lock:
            self.progress.acknowledged += new
            self.progress.duplicates += duplicates
            self.progress.rows += len(numbers)
            self.progress.slowest_s = max(self.progress.slowest_s, time.monotonic() - began)

    @contextlib.contextmanager
    def _way(self) -> Iterator[Any]:
        """A call that sends events and gives (new, duplicates): over HTTP, or straight to the shards."""
        if self.settings.http:
            from cluster.client import Client

            with Client(self.url, self.key, deadline_s=30.0) as client:

                def over_http(events: pl.DataFrame) -> tuple[int, int]:
                    answer = client.usage(events)
                    assert answer["rejected"] == 0, answer
                    return answer["accepted"] + answer["suspended"], answer["duplicates"]

                yield over_http
            return
        from billing.usage import Verdict

        with asyncio.Runner() as runner:
            router = self.router()

            def straight(events: pl.DataFrame) -> tuple[int, int]:
                verdicts = runner.run(router.ingest(self.tenant_id, events)).verdicts
                duplicates = int((verdicts == Verdict.DUPLICATE).sum())
                return len(verdicts) - duplicates, duplicates

            yield straight
            runner.run(router.close())

    # -- Chaos -------------------------------------------------------------------------------------------------------

    def _make_chaos(self) -> None:
        """Strike after strike while events are sent: one that comes later would try nothing, and is left out."""
        try:
            for share, kind in self.plan:
                while self.progress.rows < share * self.settings.events / (1 - DUPLICATES):
                    if not self._sending or self.progress.stopped.wait(0.05):
                        return
                if not self._sending:
                    return
                self._strike(kind)
        except BaseException as error:  # noqa: BLE001 - a storm without its chaos shows nothing
            self.progress.errors.append(f"chaos: {type(error).__name__}: {error}")
            self.progress.stopped.set()

    def _strike(self, kind: str) -> None:
        if kind == "node":
            victims = self.nodes.kill_one()
            self.say(f"killed a node with {len(victims)} processes")
            self._note("node", max(self._back(lane) for lane in range(self.settings.lanes)))
            return
        if kind == "replica":
            os.kill(random.Random(len(self.backs)).choice(self._replicas()).pid, signal.SIGKILL)
            self.counts["replica"] += 1
            self.say("killed a replica")
            return
        lane = random.Random(f"{self.settings.seed}:{len(self.backs)}").randrange(self.settings.lanes)
        pid = self._pid_of(lane)
        if kind == "shard":
            os.kill(pid, signal.SIGKILL)
            self._note("shard", self._back(lane))
            return
        os.kill(pid, signal.SIGSTOP)
        self._note("hang", self._back(lane))
        threading.Thread(target=self._wake, args=(pid,), name="wake", daemon=True).start()

    def _replicas(self) -> list[psutil.Process]:
        for _ in waited(BACK_S_MAX):
            if found := self.nodes.processes(REPLICA):
                return found
        raise AssertionError("there is no replica to kill")

    def _wake(self, pid: int) -> None:
        """The hung one comes back to life after it was replaced: a zombie that believes it owns its lane."""
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGCONT)
            self.counts["zombies woken"] += 1

    def _move(self) -> None:
        """One partition a second to another lane, by the supervisor; what a kill interrupts is left to it."""
        from actors.supervisor_actor import SUPERVISOR_NAME
        from billing.errors import BillingError
        from cluster.ray_head import NAMESPACE

        chance = random.Random(self.settings.seed)
        while self._sending and not self.progress.stopped.is_set():
            began = time.monotonic()
            partition, lane = chance.randrange(256), chance.randrange(self.settings.lanes)
            try:
                supervisor = self.nodes.ray.get_actor(SUPERVISOR_NAME, namespace=NAMESPACE)
                answer = self.nodes.ray.get(supervisor.move.remote(partition, lane), timeout=30.0)
                if answer.get("moved", True):
                    self.counts["moves"] += 1
                    self.moves_s.append(time.monotonic() - began)
            except (ValueError, BillingError, self.nodes.ray.exceptions.RayError) as error:
                self.counts["moves interrupted"] += 1
                self.interrupted[str(error).strip().splitlines()[-1][-160:]] += 1
            self.progress.stopped.wait(max(0.0, 1.0 - (time.monotonic() - began)))

    def _note(self, what: str, seconds: float) -> None:
        self.counts[what] += 1
        self.backs.append((what, seconds))
        self.say(f"{what}: answers again after {seconds:.1f} s")

    def _pid_of(self, lane: int) -> int:
        from actors.shard_processes import find_shard
        from cluster.ray_head import NAMESPACE

        for _ in waited(BACK_S_MAX):
            try:
                actor = find_shard(lane, NAMESPACE)
                return int(self.nodes.ray.get(actor.process_id.remote(), timeout=2.0))
            except (ValueError, self.nodes.ray.exceptions.RayError):
                continue
        raise AssertionError(f"lane {lane} has no shard")

    def _back(self, lane: int) -> float:
        """Seconds until a lane acknowledges something new."""
        from billing.errors import Unavailable

        began = time.monotonic()

        async def asked() -> None:
            router = self.router()
            try:
                await router.ingest(PROBE_TENANT, self._probe(lane))
            finally:
                await router.close()

        while True:
            try:
                asyncio.run(asked())
                return time.monotonic() - began
            except Unavailable:
                if time.monotonic() - began > BACK_S_MAX:
                    raise

    def _probe(self, lane: int) -> pl.DataFrame:
        """One event of another tenant, under a key that is at home in the lane."""
        from storage.usage_log.genesis import open_log
        from storage.usage_log.partitions import partition_of

        genesis = open_log(self.address.open())
        number = time.monotonic_ns()
        owned = self._owned_by(lane) or {p for p in range(256) if genesis.first_lane(p) == lane}
        while partition_of(genesis.seed, PROBE_TENANT, f"k{number}") not in owned:
            number += 1
        return events_of(np.array([1])).with_columns(customer=pl.lit(f"k{number}"), id=pl.lit(f"probe-{number}"))

    def _owned_by(self, lane: int) -> set[int]:
        """What a lane had when it was looked at last; partitions move meanwhile, so a probe may meet another lane."""
        from actors.supervisor_actor import SUPERVISOR_NAME
        from cluster.ray_head import NAMESPACE

        try:
            supervisor = self.nodes.ray.get_actor(SUPERVISOR_NAME, namespace=NAMESPACE)
            lanes = self.nodes.ray.get(supervisor.status.remote(), timeout=2.0).lanes
        except (ValueError, self.nodes.ray.exceptions.RayError):
            return set()
        return {partition for one, _, status in lanes if one == lane and status for partition in status.owned}

    # -- The count ---------------------------------------------------------------------------------------------------

    def _verify(self) -> dict[str, Any]:
        """Read the log by itself: each acknowledged event once, none twice, sums as the oracle has them."""
        from storage.usage_log.reader import UsageLogReader

        reader = UsageLogReader(self.address.open())
        times = np.zeros(self.settings.events, np.uint8)
        counts, sums = np.zeros(CUSTOMERS, np.int64), np.zeros(CUSTOMERS, np.int64)
        for frame in reader.scan(self.tenant_id, reader.now()):
            read = frame.select(
                number=pl.col("id").str.slice(1).cast(pl.Int64),
                customer=pl.col("customer").str.slice(1).cast(pl.Int64),
                quantity=pl.col("data")
                .str.extract('"gb":"([0-9.]+)"')
                .str.replace(".", "", literal=True)
                .cast(pl.Int64),
            )
            np.add.at(times, read["number"].to_numpy(), 1)
            np.add.at(counts, read["customer"].to_numpy(), 1)
            np.add.at(sums, read["customer"].to_numpy(), read["quantity"].to_numpy())
        sent = np.unique(np.concatenate(self._sent)) if self._sent else np.zeros(0, np.int64)
        lost, doubled = int((times[sent] == 0).sum()), int((times > 1).sum())
        expected = Expected.of(np.flatnonzero(times))
        result: dict[str, Any] = {"stored": int(times.astype(np.int64).sum()), "lost": lost, "doubled": doubled}
        result["ownerless"] = self._ownerless() if self.settings.moves else 0
        result["unsent"] = self.settings.events - len(sent)
        result["sums_equal"] = bool((counts == expected.counts).all() and (sums == expected.sums).all())
        if self.settings.http:
            result |= self._verify_over_http(expected)
        return result

    def _ownerless(self) -> int:
        """Partitions that not exactly one lane has, some seconds after the last move."""
        from actors.supervisor_actor import SUPERVISOR_NAME
        from cluster.ray_head import NAMESPACE

        supervisor = self.nodes.ray.get_actor(SUPERVISOR_NAME, namespace=NAMESPACE)
        owners: Counter[int] = Counter()
        for _ in waited(20.0, step=0.5):
            lanes = self.nodes.ray.get(supervisor.status.remote(), timeout=30.0).lanes
            owners = Counter(partition for _, _, status in lanes if status for partition in status.owned)
            if len(owners) == 256 and set(owners.values()) == {1}:
                return 0
        return 256 - sum(count == 1 for count in owners.values())

    def _verify_over_http(self, expected: Expected) -> dict[str, Any]:
        """The platform's own figures: what is proven complete, usage by day, and what the shards show live."""
        from billing.live_state import rate_live
        from billing.rating import UsagePiece
        from cluster.client import Client
        from storage.master_chain import MasterChain

        chosen = [int(one) for one in np.random.default_rng(self.settings.seed).choice(CUSTOMERS, 20, replace=False)]
        with Client(self.url, self.key, deadline_s=240.0) as client:
            proof = client.get("/v1/usage/completeness", prove="true")["proof"]
            differs = []
            for one in chosen:
                days = client.pages("/v1/usage/days", customer=f"c{one}", since="2026-01-01", until="2026-01-31")
                if sum(Fraction(day["quantity"]) for day in days) != Fraction(expected.quantity(one)):
                    differs.append(one)
        _, master = MasterChain(self.address.open()).newest(self.tenant_id)
        (charge,) = master.plan("basic").charges
        start, end = datetime(2025, 12, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
        keys = [f"c{one}" for one in chosen]

        async def live() -> Any:
            router = self.router()
            try:
                return await router.usage(self.tenant_id, keys)
            finally:
                await router.close()

        usage = asyncio.run(live())
        pieces = [UsagePiece(key, f"s-{key}", charge, start, end) for key in keys]
        rated = {
            row.piece: Fraction(row.quantity) for row in rate_live(pieces, usage.live, master.rating_book()).rows()
        }
        live_differs = [one for place, one in enumerate(chosen) if rated[place] != Fraction(expected.quantity(one))]
        return {"complete": bool(proof["complete"]), "days_differ": differs, "live_differs": live_differs}

    def _figures(self, sent_s: float) -> dict[str, Any]:
        progress = self.progress
        shard = [seconds for what, seconds in self.backs if what == "shard"]
        return {
            "seed": self.settings.seed,
            "events": self.settings.events,
            "rows": progress.rows,
            "duplicates": progress.duplicates,
            "requests_repeated": progress.repeated,
            "seconds": round(sent_s, 1),
            "rows_per_s": round(progress.rows / max(sent_s, 0.001)),
            "slowest_request_s": round(progress.slowest_s, 1),
            "planned": self._planned(sent_s),
            "happened": dict(self.counts),
            "shard_back_s": {"median": _median(shard), "max": round(max(shard, default=0.0), 2)},
            "move_s": {"median": _median(self.moves_s), "max": round(max(self.moves_s, default=0.0), 2)},
            "moves_interrupted_by": dict(self.interrupted.most_common(5)),
            "other_back_s": [[what, round(seconds, 2)] for what, seconds in self.backs if what != "shard"],
            "errors": progress.errors,
        }

    def _planned(self, sent_s: float) -> dict[str, int]:
        """What must have happened, at least."""
        planned = dict(Counter(kind for _, kind in self.plan))
        return planned | ({"moves": max(1, int(sent_s / MOVE_S_MAX))} if self.settings.moves else {})

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)


def _plan(settings: Settings) -> list[tuple[float, str]]:
    """(share of all that is sent at which it happens, what), in order; nothing at the very start and end."""
    chance = random.Random(settings.seed)
    kinds = ["shard"] * settings.kills
    if settings.http:  # of four kills one is a replica's
        kinds = ["replica" if number % 4 == 3 else "shard" for number in range(settings.kills)]
    kinds += ["hang"] * settings.hangs + ["node"] * settings.node_kills
    chance.shuffle(kinds)
    slots = len(kinds)
    return [(0.05 + 0.85 * (place + chance.random() * 0.8) / max(slots, 1), kind) for place, kind in enumerate(kinds)]


def _median(values: Sequence[float]) -> float:
    return round(sorted(values)[len(values) // 2], 2) if values else 0.0


STEPS: list[dict[str, Any]] = [
    {"at": "2025-01-01", "tax_code": {"code": "standard", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
    {"at": "2025-01-01", "meter": {"code": "storage", "event_type": TYPE, "aggregation": "sum", "value": "gb"}},
    {
        "at": "2025-01-01",
        "publish": {
            "plan": {
                "code": "basic",
                "currency": "EUR",
                "interval": "month",
                "charges": [
                    {
                        "code": "storage",
                        "kind": "usage",
                        "meter": "storage",
                        "tax": "standard",
                        "price": {"model": "per_unit", "unit": "0.0123456789"},
                    }
                ],
            }
        },
    },
]


def contracts(numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Customers with a subscription each, since before the first event."""
    steps: list[dict[str, Any]] = []
    for number in numbers:
        code = f"c{number}"
        form = {"code": f"s-{code}", "customer": code, "plan": "basic", "anchor": "calendar"}
        steps.append({"at": "2025-01-01", "customer": {"code": code, "name": code, "country": "DE"}})
        steps.append({"at": "2025-01-01", "subscribe": form})
    return steps


def failed(result: dict[str, Any]) -> list[str]:
    """What is wrong with a storm's result, in words."""
    wrong = list(result["errors"])
    for what, planned in result["planned"].items():
        happened = result["happened"].get(what, 0)
        if happened < planned:
            wrong.append(f"it was no storm: {what} happened {happened} times, not {planned}")
    if result["lost"] or result["doubled"]:
        wrong.append(f"{result['lost']} events lost, {result['doubled']} there twice")
    if result.get("ownerless"):
        wrong.append(f"{result['ownerless']} partitions have not exactly one lane")
    if not result["sums_equal"]:
        wrong.append("a customer's sum differs from the oracle")
    if result["unsent"]:
        wrong.append(f"{result['unsent']} events were never acknowledged")
    if not result.get("complete", True):
        wrong.append("the platform cannot prove that its log is complete")
    for name in ("days_differ", "live_differs"):
        if result.get(name):
            wrong.append(f"{name}: customers {result[name]}")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rows", type=int, default=10_000, help="of one request")
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--lanes", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--node-kills", type=int, default=0)
    parser.add_argument("--hangs", type=int, default=1)
    parser.add_argument("--moves", action="store_true", help="one partition moves each second")
    parser.add_argument("--http", action="store_true", help="over the whole platform, with replicas to kill")
    parser.add_argument("--minutes", type=float, default=15.0, help="then it gives up and says so")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    settings = Settings(**vars(parser.parse_args(arguments)))
    print(f"seed {settings.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="cb-storm-", ignore_cleanup_errors=True) as folder:
        os.environ["HOME"] = folder  # Ray writes its token there
        result = Storm(settings, Path(folder)).run()
    wrong = failed(result)
    for words in wrong:
        print(f"WRONG: {words}")
    print(json.dumps(result))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
