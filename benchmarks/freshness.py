"""How long after its acknowledgement an event is seen in what its customer owes, while others send at a fixed rate.

One event of one customer is sent; once it is acknowledged `GET /v1/usage` is asked again and again until the quantity
has it. An answer that was asked for after the acknowledgement may lack it: that, and the time of the asking, is
measured. The load (requests of 1,000 events of other customers) goes by a schedule, whatever becomes of it. At the end
the quantity must be the sum of all that was sent.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import uuid_utils

from benchmarks.ingest import bodies, stored_events
from benchmarks.platform import Measured, platform
from benchmarks.runner import Say, percentiles
from benchmarks.senders import Answer, Sender, as_scheduled

BATCH = 1_000
SEEN_S_MAX = 30.0  # later than that is a failure
CONNECTIONS = 16


@dataclass(frozen=True)
class Size:
    """Events a second of the others, events that are looked for, seconds between them, customers."""

    rate: int
    probes: int
    pause_s: float
    customers: int


SIZES = {
    "small": Size(2_000, 5, 0.1, 20),
    "normal": Size(50_000, 60, 0.2, 2_000),
    "long": Size(100_000, 300, 0.2, 10_000),
}


def run(size: str, say: Say) -> dict[str, Any]:
    chosen = SIZES[size]
    with platform(size, chosen.customers + 1) as ours:
        say(f"{ours.kind} at {ours.url} is up; {chosen.rate:,} events/s of others")
        sent, seen, asked, others = asyncio.run(_measured(ours, chosen))
        stored = stored_events(ours)
        assert stored == others + chosen.probes, f"{stored} stored, {others + chosen.probes} acknowledged"
    found = percentiles(seen)
    return {
        "figure": found["p99_ms"],
        "unit": "ms from the acknowledgement until it is seen, p99",
        **found,
        **{f"acknowledged_{name}": value for name, value in percentiles(sent).items()},
        "asked_per_event": round(asked / chosen.probes, 1),
        "load": chosen.rate,
        "load_acknowledged": others,
        "platform": ours.kind,
    }


async def _measured(ours: Measured, chosen: Size) -> tuple[list[float], list[float], int, int]:
    """Seconds until acknowledged, seconds from there until seen, questions asked, events of others."""
    others = 0

    def take(_: bytes, answer: Answer, __: float) -> None:
        nonlocal others
        if answer.status == 200:  # a refusal is an overload: the schedule does not wait for it
            others += int(json.loads(answer.body)["accepted"])

    probe = f"c{chosen.customers}"
    sender = Sender(ours.url, ours.key)
    await _sum_of(sender, probe)  # the first question makes the view
    seconds = chosen.probes * (chosen.pause_s + 0.3)
    made = bodies(max(BATCH, int(chosen.rate * seconds) // BATCH * BATCH), BATCH, chosen.customers, seed=5)
    load = asyncio.create_task(as_scheduled(ours.url, ours.key, made, chosen.rate / BATCH, CONNECTIONS, take))
    sent: list[float] = []
    seen: list[float] = []
    asked, total = 0, Decimal(0)
    try:
        for number in range(chosen.probes):
            await asyncio.sleep(chosen.pause_s)
            value = Decimal(number + 1) / 100
            began = time.perf_counter()
            await _acknowledged(sender, probe, value)
            acknowledged = time.perf_counter()
            sent.append(acknowledged - began)
            total += value
            while True:
                asked += 1
                found = await _sum_of(sender, probe)
                assert found <= total, f"{found} is shown, {total} was sent"
                if found == total:
                    break
                assert time.perf_counter() - acknowledged < SEEN_S_MAX, f"{found} is shown after {SEEN_S_MAX} s"
            seen.append(time.perf_counter() - acknowledged)
        await load
        assert await _sum_of(sender, probe) == total
    finally:
        load.cancel()
        await sender.close()
    return sent, seen, asked, others


async def _acknowledged(sender: Sender, customer: str, value: Decimal) -> None:
    event = {
        "source": "probe",
        "id": str(uuid_utils.uuid7()),
        "type": "use.0",
        "customer": customer,
        "time": datetime.now(UTC).isoformat(),
        "data": {"amount": str(value)},
    }
    body = json.dumps(event).encode()
    while True:
        answer = await sender.post("/v1/usage", body)
        if answer.status not in (429, 503):
            break
        await asyncio.sleep(0.05)
    assert answer.status == 200, answer.body[:500]
    assert json.loads(answer.body)["accepted"] == 1, answer.body[:500]


async def _sum_of(sender: Sender, customer: str) -> Decimal:
    answer = await sender.get(f"/v1/usage?customer={customer}&period=running&meter=m0")
    assert answer.status == 200, answer.body[:500]
    return sum((Decimal(one["quantity"]) for one in json.loads(answer.body)["meters"]), Decimal(0))
