"""One usage event a request: requests a second as fast as answers come, and the times at a fixed offered rate.

Both are durable before the answer. 32 connections; then 600 requests/s offered on a fixed schedule (a slow answer does
not slow the sender), where a request counts from the moment it was due.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from benchmarks.ingest import NDJSON, bodies, stored_events
from benchmarks.platform import platform
from benchmarks.runner import Say, percentiles

SIZES = {"small": (60, 30, 20), "normal": (12_000, 6_000, 2_000), "long": (120_000, 60_000, 2_000)}
CONNECTIONS, OFFERED = 32, 600


def run(size: str, say: Say) -> dict[str, Any]:
    full, offered, customers = SIZES[size]
    with platform(size, customers) as ours:
        say(f"{ours.kind} at {ours.url} is up")
        asyncio.run(_closed(ours.url, ours.key, bodies(200 if size != "small" else 5, 1, customers, seed=1)))
        warm = 200 if size != "small" else 5
        seconds, times = asyncio.run(_closed(ours.url, ours.key, bodies(full, 1, customers, seed=2)))
        say(f"{full / seconds:,.0f} requests/s over {CONNECTIONS} connections")
        rate = OFFERED if size != "small" else 30
        waits = asyncio.run(_offered(ours.url, ours.key, bodies(offered, 1, customers, seed=3), rate))
        say(f"at {rate}/s offered: {percentiles(waits)}")
        stored = stored_events(ours)
        assert stored == warm + full + offered, f"{stored} stored, {warm + full + offered} acknowledged"
    return {
        "figure": round(full / seconds),
        "unit": "requests/s",
        "connections": CONNECTIONS,
        **percentiles(times),
        "offered": rate,
        **{f"offered_{name}": value for name, value in percentiles(waits).items()},
        "platform": ours.kind,
    }


async def _one(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post("/v1/usage", content=body, headers=NDJSON)
    assert answer.status_code == 200, answer.text[:500]
    assert answer.json()["accepted"] == 1, answer.text[:500]


def _client(url: str, key: str, connections: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=60, limits=limits, trust_env=False)


async def _closed(url: str, key: str, waiting: list[bytes]) -> tuple[float, list[float]]:
    times: list[float] = []
    queue = iter(waiting)

    async def worker(http: httpx.AsyncClient) -> None:
        for body in queue:
            began = time.perf_counter()
            await _one(http, body)
            times.append(time.perf_counter() - began)

    async with _client(url, key, CONNECTIONS) as http:
        began = time.perf_counter()
        await asyncio.gather(*(worker(http) for _ in range(CONNECTIONS)))
        return time.perf_counter() - began, times


async def _offered(url: str, key: str, waiting: list[bytes], rate: int) -> list[float]:
    waits: list[float] = []

    async def at(http: httpx.AsyncClient, due: float, body: bytes) -> None:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await _one(http, body)
        waits.append(time.perf_counter() - due)

    async with _client(url, key, 128) as http:
        began = time.perf_counter() + 0.2
        await asyncio.gather(*(at(http, began + number / rate, body) for number, body in enumerate(waiting)))
    return waits
