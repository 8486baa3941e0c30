"""Usage events a second over HTTP, acknowledged after fsync and deduplication, beside a plain service on PostgreSQL.

Eight connections send NDJSON requests of 10,000 events, then of 1,000, as fast as the answers come. The peer is what
one would write in an afternoon: parse, `INSERT ... ON CONFLICT DO NOTHING` into a table with a unique key, commit,
answer. Both are measured in turns in the same run. An event has about 171 bytes, 2 properties and a UUIDv7 id.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import uuid_utils

from benchmarks.platform import ROOT, Measured, free_port, platform, wait_until_ready
from benchmarks.runner import Say, percentiles, tree_cost
from benchmarks.senders import Answer, as_fast_as_answered

CONNECTIONS = 8
NDJSON = {"Content-Type": "application/x-ndjson"}


@dataclass(frozen=True)
class Size:
    """How much is sent: events per turn and request size, turns, customers."""

    events: int
    turns: int
    customers: int
    batches: tuple[int, ...] = (10_000, 1_000)


SIZES = {
    "small": Size(events=4_000, turns=1, customers=20, batches=(1_000,)),
    "normal": Size(events=1_000_000, turns=2, customers=2_000),
    "long": Size(events=10_000_000, turns=3, customers=10_000),
}


@dataclass
class Load:
    """What came back of one turn."""

    events: int = 0
    seconds: float = 0.0
    times: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.events / self.seconds if self.seconds else 0.0


def bodies(count: int, batch: int, customers: int, seed: int) -> list[bytes]:
    """Request bodies with fresh ids; made before the clock runs."""
    chosen = random.Random(seed)
    start = datetime.now(UTC) - timedelta(days=2)
    made: list[bytes] = []
    for first in range(0, count, batch):
        lines = [
            b'{"source":"bench","id":"%s","type":"use.%d","customer":"c%d","time":"%s","data":{"amount":"%d.%02d",'
            b'"region":"eu-%d"}}'
            % (
                str(uuid_utils.uuid7()).encode(),
                chosen.randrange(5),
                chosen.randrange(customers),
                (start + timedelta(milliseconds=chosen.randrange(86_400_000))).isoformat().encode(),
                chosen.randrange(100),
                chosen.randrange(100),
                chosen.randrange(4),
            )
            for _ in range(first, min(count, first + batch))
        ]
        made.append(b"\n".join(lines))
    return made


async def send(url: str, key: str, waiting: list[bytes]) -> Load:
    """Send every body over eight connections; count what was acknowledged."""
    load = Load()

    def take(_: bytes, answer: Answer, seconds: float) -> None:
        assert answer.status == 200, answer.body[:500]
        load.times.append(seconds)
        load.events += int(json.loads(answer.body)["accepted"])

    load.seconds = await as_fast_as_answered(url, key, waiting, CONNECTIONS, take)
    return load


@contextmanager
def plain_service() -> Iterator[str]:
    """The peer in a process of its own, over a PostgreSQL of its own."""
    with tempfile.TemporaryDirectory(prefix="cb-peer-", ignore_cleanup_errors=True) as folder:
        port, log = free_port(), Path(folder) / "peer.log"
        with log.open("wb") as out:
            command = [sys.executable, "-m", "benchmarks.plain_http", str(port), f"{folder}/sql"]
            process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def run(size: str, say: Say) -> dict[str, Any]:
    chosen = SIZES[size]
    with platform(size, chosen.customers) as ours, plain_service() as peer:
        say(f"{ours.kind} at {ours.url} and the plain service are up")
        warm = bodies(2_000, 1_000, chosen.customers, seed=99)
        asyncio.run(send(ours.url, ours.key, warm))
        asyncio.run(send(peer, "", warm))
        sent = len(warm) * 1_000
        rates: dict[tuple[str, int], list[Load]] = {}
        cpu_before = _cost(ours)
        for turn in range(chosen.turns):
            for batch in chosen.batches:
                for name, url, key in (("ours", ours.url, ours.key), ("peer", peer, "")):
                    # The peer gets a fifth: it is slower, and its figure does not need more.
                    count = chosen.events if name == "ours" else max(batch, chosen.events // 5)
                    made = bodies(count, batch, chosen.customers, seed=turn * 100 + batch)
                    load = asyncio.run(send(url, key, made))
                    assert load.events == count, f"{name}: {load.events} of {count} acknowledged as accepted"
                    sent += count if name == "ours" else 0
                    rates.setdefault((name, batch), []).append(load)
                    say(f"{name}, {batch} a request: {load.rate:,.0f} events/s")
        cpu_after, rss = _cost(ours)[0], _cost(ours)[1]
        stored = stored_events(ours)
        assert stored == sent, f"{stored} events are in the log, {sent} were acknowledged"
    best = {key: max(loads, key=lambda load: load.rate) for key, loads in rates.items()}
    largest = chosen.batches[0]
    result: dict[str, Any] = {
        "figure": round(best["ours", largest].rate),
        "unit": "events/s",
        "batch": largest,
        "connections": CONNECTIONS,
        **percentiles(best["ours", largest].times),
        "ratio_plain_http": round(best["ours", largest].rate / best["peer", largest].rate, 2),
        "plain_http": round(best["peer", largest].rate),
        "platform": ours.kind,
        "events": sent,
        "cpu_s": round(cpu_after - cpu_before[0], 1),
        "rss_mb": rss,
    }
    for batch in chosen.batches[1:]:
        result[f"figure_{batch}"] = round(best["ours", batch].rate)
        result[f"p99_ms_{batch}"] = percentiles(best["ours", batch].times)["p99_ms"]
        result[f"plain_http_{batch}"] = round(best["peer", batch].rate)
    return result


def stored_events(ours: Measured) -> int:
    """What the platform itself counts as stored, from the log."""
    answer = httpx.get(
        f"{ours.url}/v1/usage/completeness",
        headers={"Authorization": f"Bearer {ours.key}"},
        timeout=300,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text[:500]
    return int(answer.json()["totals"]["stored"])


def _cost(ours: Measured) -> tuple[float, int]:
    return tree_cost(ours.pid) if ours.pid else (0.0, 0)
