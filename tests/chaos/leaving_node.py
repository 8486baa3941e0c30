"""The program of tests/chaos/test_leaving_node.py: usage goes on while a node's lanes are taken over on another one.

Prints what it saw as JSON: which lanes were on the node before and after, and whether an event was lost or doubled.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from billing.errors import Conflict, Unavailable
from storage.object_store import LocalObjectStore, StoreAddress
from tests.chaos.nodes import Nodes
from tests.usage_log_support import TENANT, logged_ids, make_events

LANES = 2
ROWS = 50
LEAVES_S_MAX = 120.0


def main(folder: Path) -> dict[str, Any]:
    nodes = Nodes(folder / "ray", http_port=0, more=1)
    try:
        return asyncio.run(_scene(folder))
    finally:
        nodes.stop()


async def _scene(folder: Path) -> dict[str, Any]:
    from actors.supervisor_actor import RayUsageRouter, UsageLogSettings, start_usage_log
    from cluster.ray_head import NAMESPACE

    address = StoreAddress(str(folder / "store"))
    start_usage_log(UsageLogSettings(address, NAMESPACE, str(folder / "cache"), shards=LANES), timeout_s=120.0)
    router = RayUsageRouter(address, NAMESPACE)
    sent, slowest_s = 0, 0.0

    async def send() -> None:
        nonlocal sent, slowest_s
        began, events = time.monotonic(), make_events(ROWS, sent)
        for _ in range(10):  # the same until it is known, as a client does
            with contextlib.suppress(Unavailable):
                await router.ingest(TENANT, events)
                break
        else:
            raise AssertionError("no answer after ten tries")
        sent, slowest_s = sent + ROWS, max(slowest_s, time.monotonic() - began)

    async def lanes_by_node() -> dict[str, list[int]]:
        status = await router.status()
        found: dict[str, list[int]] = {}
        for lane in status.lanes:
            found.setdefault(status.nodes[lane.lane], []).append(lane.lane)
        return found

    await send()
    before = await lanes_by_node()
    leaves = max(before, key=lambda node: len(before[node]))
    await router.leave(leaves, leaves=True)
    began = time.monotonic()
    while True:
        await send()
        with contextlib.suppress(Unavailable):
            now = await lanes_by_node()
            if sum(len(lanes) for lanes in now.values()) == LANES and leaves not in now:
                break
        assert time.monotonic() - began < LEAVES_S_MAX, now
        await asyncio.sleep(0.1)
    took_s = time.monotonic() - began
    (stays,) = now
    refused = False
    try:
        await router.leave(stays, leaves=True)
    except Conflict:
        refused = True
    told = (await router.status()).leaving
    await router.close()
    ids = logged_ids(LocalObjectStore(folder / "store"))
    return {
        "on_it_before": before[leaves],
        "told": list(told) == [leaves],
        "last_is_refused": refused,
        "took_s": round(took_s, 1),
        "slowest_s": round(slowest_s, 2),
        "sent": sent,
        "logged": len(ids),
        "distinct": len(set(ids)),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))), flush=True)
