"""Does taking usage in get slower with what is there? Fresh, with 10 million events in, `--long` with 100 million.

At each level the platform takes the same number of new events as fast as it can (requests of 10,000, then of 1,000),
then 150,000 events/s on a fixed schedule, where a request counts from the moment it was due. The plain service on
PostgreSQL is measured fresh and with 10 million rows in; it is not filled further, which takes it hours.
"""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psutil

from benchmarks.ingest import CONNECTIONS, plain_service, send, stored_events
from benchmarks.platform import Measured, platform
from benchmarks.runner import Say, percentiles
from benchmarks.senders import Answer, as_fast_as_answered, as_scheduled

# size -> levels in events, measured events a level, customers
SIZES = {
    "small": ((4_000,), 4_000, 20),
    "normal": ((10_000_000,), 2_000_000, 10_000),
    "long": ((10_000_000, 50_000_000, 100_000_000), 2_000_000, 10_000),
}
OFFERED, OFFERED_S, ROWS = 150_000, 20, 10_000
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
ID_AT = slice(24, 60)


class Lines:
    """NDJSON of fixed width whose ids are new in each body: costs less to make than to send."""

    def __init__(self, customers: int, rows: int, seed: int) -> None:
        chosen = np.random.default_rng(seed)
        self._random, self.rows = chosen, rows
        start = datetime.now(UTC) - timedelta(days=2)
        low = customers // 10 if customers >= 100 else 0  # codes of one width
        high = customers if customers >= 100 else 10
        lines = [
            b'{"source":"bench","id":"%s","type":"use.%d","customer":"c%d","time":"%s","data":{"amount":"%d.%02d",'
            b'"region":"eu-%d"}}\n'
            % (
                b"0" * 36,
                chosen.integers(5),
                chosen.integers(low, high),
                (start + timedelta(milliseconds=int(chosen.integers(86_400_000))))
                .isoformat(timespec="milliseconds")
                .encode(),
                chosen.integers(10, 100),
                chosen.integers(100),
                chosen.integers(4),
            )
            for _ in range(rows)
        ]
        self._table = np.frombuffer(b"".join(lines), np.uint8).reshape(rows, -1).copy()

    def body(self, at: int) -> bytes:
        """A body at a millisecond: ids are UUIDv7 in form, random in their last 74 bits."""
        digits = HEX[self._random.integers(0, 16, (self.rows, 32), np.uint8)]
        digits[:, :12] = np.frombuffer(f"{at:012x}".encode(), np.uint8)
        digits[:, 12], digits[:, 16] = ord("7"), ord("8")
        ids = np.full((self.rows, 36), ord("-"), np.uint8)
        for target, source in (((0, 8), (0, 8)), ((9, 13), (8, 12)), ((14, 18), (12, 16)), ((19, 23), (16, 20))):
            ids[:, target[0] : target[1]] = digits[:, source[0] : source[1]]
        ids[:, 24:] = digits[:, 20:]
        self._table[:, ID_AT] = ids
        return self._table.tobytes()


def run(size: str, say: Say) -> dict[str, Any]:
    levels, count, customers = SIZES[size]
    result: dict[str, Any] = {"unit": "events/s", "connections": CONNECTIONS}
    with platform(size, customers) as ours, plain_service() as peer:
        say(f"{ours.kind} and the plain service are up")
        large, small = Lines(customers, min(ROWS, count), 1), Lines(customers, min(1_000, count), 2)
        sent = _fill(ours.url, ours.key, large, min(ROWS, count), say)
        sent += _measured(ours, large, small, count, size, "fresh", result, say)
        in_peer = _peer(peer, large, count, "fresh", result, say)
        for level in levels:
            name = f"{level // 1_000_000}m" if level >= 1_000_000 else str(level)
            sent += _fill(ours.url, ours.key, large, level - sent, say)
            sent += _measured(ours, large, small, count, size, name, result, say)
            if level == levels[0]:
                in_peer += _fill(peer, "", large, level - in_peer, say)
                _peer(peer, large, count, name, result, say)
                result[f"ratio_plain_http_{name}"] = round(result[f"figure_{name}"] / result[f"plain_http_{name}"], 2)
        last = f"{levels[-1] // 1_000_000}m" if levels[-1] >= 1_000_000 else str(levels[-1])
        stored = stored_events(ours)
        assert stored == sent, f"{stored} events are in the log, {sent} were acknowledged"
        result["rss_mb"] = _memory(ours)
    result["ratio_plain_http"] = round(result["figure_fresh"] / result["plain_http_fresh"], 2)
    return {
        "figure": result[f"figure_{last}"],
        "ratio_fresh": round(result[f"figure_{last}"] / result["figure_fresh"], 2),
        **result,
    }


def _measured(
    ours: Measured, large: Lines, small: Lines, count: int, size: str, name: str, result: dict[str, Any], say: Say
) -> int:
    """Take the figures of one level; the events that were sent for them."""
    sent = 0
    for lines, suffix, events in ((large, "", count), (small, "_1000", count // 4)):
        made = [lines.body(_now()) for _ in range(events // lines.rows)]
        load = asyncio.run(send(ours.url, ours.key, made))
        sent += load.events
        result[f"figure{suffix}_{name}"] = round(load.rate)
        result[f"p99_ms{suffix}_{name}"] = percentiles(load.times)["p99_ms"]
    offered = OFFERED if size != "small" else 2_000
    seconds = OFFERED_S if size != "small" else 1
    made = [large.body(_now()) for _ in range(max(1, offered * seconds // large.rows))]
    waits: list[float] = []

    def take(_: bytes, answer: Answer, waited: float) -> None:
        assert answer.status == 200, answer.body[:300]
        waits.append(waited)

    asyncio.run(as_scheduled(ours.url, ours.key, made, offered / large.rows, 32, take))
    sent += len(made) * large.rows
    for key, value in percentiles(waits).items():
        result[f"offered_{key}_{name}"] = value
    say(
        f"{name}: { ({key: value for key, value in result.items() if key.endswith('_' + name)}) }, {_memory(ours):,} MB"
    )
    return sent


def _peer(url: str, lines: Lines, count: int, name: str, result: dict[str, Any], say: Say) -> int:
    made = [lines.body(_now()) for _ in range(max(1, count // 4 // lines.rows))]
    load = asyncio.run(send(url, "", made))
    result[f"plain_http_{name}"] = round(load.rate)
    say(f"plain service, {name}: {load.rate:,.0f} events/s")
    return load.events


def _fill(url: str, key: str, lines: Lines, count: int, say: Say) -> int:
    """Send so many events in parts, telling the rate of each."""
    taken = 0
    accepted: list[int] = []

    def take(_: bytes, answer: Answer, __: float) -> None:
        assert answer.status == 200, answer.body[:300]
        accepted.append(int(json.loads(answer.body)["accepted"]))

    while taken < count:
        part = min(2_000_000, count - taken)
        made = [lines.body(_now()) for _ in range(max(1, part // lines.rows))]
        began = time.perf_counter()
        asyncio.run(as_fast_as_answered(url, key, made, CONNECTIONS, take))
        events = len(made) * lines.rows
        taken += events
        if events > 500_000:
            say(f"filling: {taken:,} of {count:,}, {events / (time.perf_counter() - began):,.0f} events/s")
    assert sum(accepted) == taken, f"{taken} were sent, {sum(accepted)} accepted"
    return taken


def _now() -> int:
    return time.time_ns() // 1_000_000


def _memory(ours: Measured) -> int:
    if ours.pid is None:
        return 0
    root = psutil.Process(ours.pid)
    return round(sum(process.memory_info().rss for process in [root, *root.children(recursive=True)]) / 2**20)
