"""How long a customer waits while his partition moves to another lane, with usage coming in beside it.

A platform with two lanes takes a steady load. Some customers each send one event after the other; every partition is
moved to the other lane and back, one at a time. A customer's partition moves once a pass, so the worst answer that he
got in a pass is what its move cost him, beside his ordinary answer. What is lost or doubled shows at the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.ingest import bodies, stored_events
from benchmarks.platform import Measured, platform
from benchmarks.runner import Say
from benchmarks.senders import Answer, Sender
from cluster.client import Client

# size -> customers watched, events/s beside them, partitions moved (of 256), passes
SIZES = {"small": (2, 200, 8, 2), "normal": (16, 5_000, 256, 1), "long": (16, 10_000, 256, 4)}
ROWS = 500  # of a request of the load beside
GAP_S = 0.1  # between two events of a watched customer: often enough to meet a pause, too seldom to be the load
TOLD_EVERY = 32  # moves
TARGET_MS = 300


def run(size: str, say: Say) -> dict[str, Any]:
    watched, rate, partitions, passes = SIZES[size]
    with _two_lanes(), platform(size, 200) as ours:
        say(f"{ours.kind} at {ours.url} is up with two lanes")
        found = asyncio.run(_measure(ours, watched, rate, partitions, passes, say))
        stored = stored_events(ours)
        assert stored == found["sent"], f"{stored} events are in the log, {found['sent']} were acknowledged as new"
    worst = found["worst_ms"]
    return {
        "figure": round(max(worst) - found["ordinary_ms"], 1),
        "unit": "ms that a move cost a customer at most",
        "median": round(statistics.median(worst) - found["ordinary_ms"], 1),
        "target_ms": TARGET_MS,
        **{name: found[name] for name in ("ordinary_ms", "moves", "move_p50_ms", "move_max_ms", "sent")},
        "worst_ms": worst,
        "platform": ours.kind,
    }


@contextmanager
def _two_lanes() -> Iterator[None]:
    before = os.environ.get("CLOUDBILLING_SHARDS")
    os.environ["CLOUDBILLING_SHARDS"] = "2"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CLOUDBILLING_SHARDS"]
        else:
            os.environ["CLOUDBILLING_SHARDS"] = before


async def _measure(ours: Measured, watched: int, rate: int, partitions: int, passes: int, say: Say) -> dict[str, Any]:
    stop = asyncio.Event()
    counted = Counted()
    senders = [asyncio.create_task(_customer(ours, f"c{number}", stop, counted)) for number in range(watched)]
    senders.append(asyncio.create_task(_load(ours, rate, stop, counted)))
    await asyncio.sleep(5 if rate > 1_000 else 1)
    ordinary = statistics.median(seconds for _, _, seconds in counted.answers)
    counted.answers.clear()
    worst: list[float] = []
    moves: list[float] = []
    with Client(ours.url, ours.platform_key) as platform_client:
        for number in range(passes):
            lane_of = await asyncio.to_thread(_lanes_of, platform_client)
            for partition in range(partitions):
                began = time.perf_counter()
                form = {"partition": partition, "lane": 1 - lane_of[partition]}
                moved = await asyncio.to_thread(platform_client.post, "/v1/lanes/moves", form)
                assert moved["moved"], moved
                moves.append(time.perf_counter() - began)
                if partition % TOLD_EVERY == TOLD_EVERY - 1:
                    say(f"{len(moves)} moves, the last {TOLD_EVERY} in {sum(moves[-TOLD_EVERY:]):.1f} s")
                assert not any(one.done() for one in senders), [one.exception() for one in senders if one.done()]
            await asyncio.sleep(1.0)
            for customer in range(watched):
                own = [seconds for code, _, seconds in counted.answers if code == f"c{customer}"]
                worst.append(round(max(own) * 1e3, 1))
            counted.answers.clear()
            say(f"pass {number + 1}: {len(moves)} moves, worst answers {sorted(worst[-watched:])} ms")
    stop.set()
    await asyncio.gather(*senders)
    return {
        "worst_ms": worst,
        "ordinary_ms": round(ordinary * 1e3, 1),
        "moves": len(moves),
        "move_p50_ms": round(statistics.median(moves) * 1e3, 1),
        "move_max_ms": round(max(moves) * 1e3, 1),
        "sent": counted.new,
    }


class Counted:
    def __init__(self) -> None:
        self.new = 0
        self.answers: list[tuple[str, float, float]] = []  # customer, when, seconds

    def take(self, answer: Answer) -> None:
        assert answer.status == 200, answer.body[:300]
        self.new += int(json.loads(answer.body)["accepted"])


async def _customer(ours: Measured, code: str, stop: asyncio.Event, counted: Counted) -> None:
    sender = Sender(ours.quick, ours.key)
    waiting: list[bytes] = []
    while not stop.is_set():
        if not waiting:
            waiting = [
                body.replace(b'"customer":"c0"', b'"customer":"%s"' % code.encode()) for body in bodies(200, 1, 1, 0)
            ]
        began = time.perf_counter()
        counted.take(await sender.post("/v1/usage", waiting.pop()))
        counted.answers.append((code, began, time.perf_counter() - began))
        await asyncio.sleep(GAP_S)
    await sender.close()


async def _load(ours: Measured, rate: int, stop: asyncio.Event, counted: Counted) -> None:
    sender = Sender(ours.url, ours.key)
    due, seed = time.perf_counter(), 1
    while not stop.is_set():
        (body,) = bodies(min(ROWS, rate), ROWS, 200, seed)
        seed += 1
        due += min(ROWS, rate) / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        counted.take(await sender.post("/v1/usage", body))
    await sender.close()


def _lanes_of(client: Client) -> dict[int, int]:
    """The lane of each partition."""
    return {partition: int(lane["lane"]) for lane in client.get("/v1/lanes")["items"] for partition in lane["owned"]}
