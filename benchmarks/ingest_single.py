"""One usage event a request: requests a second as fast as answers come, and the times at a fixed offered rate.

Both are durable before the answer. 32 connections; then 600 requests/s offered on a fixed schedule (a slow answer does
not slow the sender), where a request counts from the moment it was due.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from benchmarks.ingest import bodies, stored_events
from benchmarks.platform import platform
from benchmarks.runner import Say, percentiles
from benchmarks.senders import Answer, as_fast_as_answered, as_scheduled

SIZES = {"small": (60, 30, 20), "normal": (12_000, 6_000, 2_000), "long": (120_000, 60_000, 2_000)}
CONNECTIONS, OFFERED, OFFERED_CONNECTIONS = 32, 600, 128


def run(size: str, say: Say) -> dict[str, Any]:
    full, offered, customers = SIZES[size]
    with platform(size, customers) as ours:
        say(f"{ours.kind} at {ours.url} is up")
        asyncio.run(_closed(ours.quick, ours.key, bodies(200 if size != "small" else 5, 1, customers, seed=1)))
        warm = 200 if size != "small" else 5
        seconds, times = asyncio.run(_closed(ours.quick, ours.key, bodies(full, 1, customers, seed=2)))
        say(f"{full / seconds:,.0f} requests/s over {CONNECTIONS} connections")
        proxied = full // 4
        proxy_s, _ = asyncio.run(_closed(ours.url, ours.key, bodies(proxied, 1, customers, seed=4)))
        say(f"{proxied / proxy_s:,.0f} requests/s through the proxy")
        rate = OFFERED if size != "small" else 30
        waits = asyncio.run(_offered(ours.quick, ours.key, bodies(offered, 1, customers, seed=3), rate))
        say(f"at {rate}/s offered: {percentiles(waits)}")
        stored = stored_events(ours)
        assert stored == warm + full + offered + proxied, f"{stored} stored of {warm + full + offered + proxied}"
    return {
        "figure": round(full / seconds),
        "unit": "requests/s",
        "through_the_proxy": round(proxied / proxy_s),
        "connections": CONNECTIONS,
        **percentiles(times),
        "offered": rate,
        **{f"offered_{name}": value for name, value in percentiles(waits).items()},
        "platform": ours.kind,
    }


async def _closed(url: str, key: str, waiting: list[bytes]) -> tuple[float, list[float]]:
    times: list[float] = []
    return await as_fast_as_answered(url, key, waiting, CONNECTIONS, _noted(times)), times


async def _offered(url: str, key: str, waiting: list[bytes], rate: int) -> list[float]:
    waits: list[float] = []
    await as_scheduled(url, key, waiting, rate, OFFERED_CONNECTIONS, _noted(waits))
    return waits


def _noted(times: list[float]) -> Callable[[bytes, Answer, float], None]:
    def take(_: bytes, answer: Answer, seconds: float) -> None:
        assert answer.status == 200, answer.body[:500]
        assert json.loads(answer.body)["accepted"] == 1, answer.body[:500]
        times.append(seconds)

    return take
