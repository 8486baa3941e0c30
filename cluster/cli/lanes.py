"""The lanes of the usage log on the command line, for who runs the platform."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from actors.lane_spread import even_moves
from billing.errors import Conflict
from cluster.cli import context
from cluster.client import Client

LEAVE_S_MAX = 600.0  # a lane after the other, seconds each


def show(url: str | None, as_json: bool) -> None:
    with context.problems(), context.platform_client(url) as client:
        found = client.get("/v1/lanes")
    context.show(found, as_json, _print_lanes)


def plan(url: str | None, as_json: bool) -> None:
    with context.problems(), context.platform_client(url) as client:
        found = client.get("/v1/lanes/plan")
    context.show(found, as_json, _print_plan)


def move(partition: int, lane: int, url: str | None, as_json: bool) -> None:
    with context.problems(), context.platform_client(url) as client:
        made = client.post("/v1/lanes/moves", {"partition": partition, "lane": lane})
    words = f"partition {partition} is in lane {lane}" + ("" if made["moved"] else " already")
    context.show(made, as_json, lambda _: print(words))  # noqa: T201


def spread(lanes: Sequence[int], dry_run: bool, url: str | None, as_json: bool) -> None:
    """Let exactly these lanes have partitions."""
    with context.problems(), context.platform_client(url) as client:
        _spread(client, sorted(set(lanes)), dry_run, as_json)


def drain(lane: int, dry_run: bool, url: str | None, as_json: bool) -> None:
    """Empty one lane: the others share what it has."""
    with context.problems(), context.platform_client(url) as client:
        active = _active(client)
        if lane not in active:
            context.show({"lanes": active, "moved": 0}, as_json, lambda _: print(f"lane {lane} is empty already"))  # noqa: T201
            return
        left = [one for one in active if one != lane]
        if not left:
            context.fail("it is the only lane that has partitions", context.NO, "try: cloudbilling lanes add")
        _spread(client, left, dry_run, as_json)


def add(dry_run: bool, url: str | None, as_json: bool) -> None:
    """One lane more: one that was emptied, or the next there is not yet."""
    with context.problems(), context.platform_client(url) as client:
        found = client.get("/v1/lanes")
        known = [one["lane"] for one in found["items"]]
        active = _active(client)
        free = [lane for lane in known if lane not in active]
        _spread(client, sorted([*active, free[0] if free else max([*known, *found["closed"]]) + 1]), dry_run, as_json)


def close(lane: int, url: str | None, as_json: bool) -> None:
    """End an empty lane for good."""
    with context.problems(), context.platform_client(url) as client:
        made = client.post("/v1/lanes/closings", {"lane": lane})
    context.show(made, as_json, lambda _: print(f"lane {lane} is closed"))  # noqa: T201


def leave(node: str, stays: bool, url: str | None, as_json: bool) -> None:
    """Have the lanes of a node taken over elsewhere, and wait until none is left there. `node`: how its id begins."""
    with context.problems(), context.platform_client(url) as client:
        found = client.get("/v1/lanes")
        known = sorted({one["node"] for one in found["items"] if one["node"]} | set(found["leaving"]))
        meant = [one for one in known if one.startswith(node)]
        if len(meant) > 1:
            context.fail(f"{node} is how {len(meant)} nodes begin", context.NO, f"there are {', '.join(known)}")
        made = client.post("/v1/lanes/nodes", {"node": meant[0] if meant else node, "leaves": not stays})
        left = _lanes_on(client, made["node"]) if not stays else []
        deadline = time.monotonic() + LEAVE_S_MAX
        while left and time.monotonic() < deadline:
            if sys.stderr.isatty():
                print(f"\r{len(left)} lanes left  ", end="", file=sys.stderr)  # noqa: T201
            time.sleep(1.0)
            left = _lanes_on(client, made["node"])
    if left:
        context.fail(f"lanes {left} are still there", context.UNREACHABLE, "send the same again, it goes on by itself")
    words = "stays" if stays else "has no lanes any more and may leave"
    context.show(made | {"lanes": left}, as_json, lambda one: print(f"node {one['node'][:12]} {words}"))  # noqa: T201


def _lanes_on(client: Client, node: str) -> list[int]:
    """Lanes of a node, and those of which it is not known where they are just now."""
    found = client.get("/v1/lanes")
    return sorted([one["lane"] for one in found["items"] if one["node"] == node] + found["unreachable"])


def _active(client: Client) -> list[int]:
    return [one["lane"] for one in client.get("/v1/lanes")["items"] if one["partitions"]]


def _spread(client: Client, lanes: list[int], dry_run: bool, as_json: bool) -> None:
    """Partition by partition, with its progress on stderr; what cannot move is told and stays."""
    before = client.get("/v1/lanes")
    if before["unreachable"]:
        context.fail(f"lanes {before['unreachable']} do not answer", context.UNREACHABLE, "try again in some seconds")
    held: dict[int, list[int]] = {one["lane"]: one["owned"] for one in before["items"]}
    moves = even_moves(held, lanes)
    if dry_run:
        form = {"lanes": lanes, "moves": [{"partition": p, "from": a, "to": b} for p, a, b in moves]}
        context.show(form, as_json, lambda _: print(f"{len(moves)} partitions would move; lanes then: {lanes}"))  # noqa: T201
        return
    missing = [lane for lane in lanes if lane not in held]
    if missing:  # lanes are begun by the platform, which then moves by itself
        made = client.post("/v1/lanes/spread", {"lanes": lanes})
        while not made["done"]:
            time.sleep(1.0)
            made = client.get("/v1/lanes")["spread"] or made
            if sys.stderr.isatty():
                print(f"\r{made['left']} partitions left  ", end="", file=sys.stderr)  # noqa: T201
        if made["error"]:
            context.fail(made["error"], context.UNREACHABLE, "send the same again: it moves what is left")
        context.show(made, as_json, lambda one: print(f"{one['moved']} partitions moved; lanes: {lanes}"))  # noqa: T201
        return
    moved, stayed = 0, list[str]()
    for done, (partition, _, to_lane) in enumerate(moves, start=1):
        try:
            client.post("/v1/lanes/moves", {"partition": partition, "lane": to_lane})
            moved += 1
        except Conflict as error:
            stayed.append(error.detail)
        if sys.stderr.isatty() or done == len(moves):
            print(f"\r{done} of {len(moves)} partitions", end="\n" if done == len(moves) else "", file=sys.stderr)  # noqa: T201
    form = {"lanes": lanes, "moved": moved, "stayed": stayed}
    context.show(form, as_json, _print_moved)


def _print_lanes(found: dict[str, Any]) -> None:
    rows = [
        (one["lane"], one["partitions"], "serving" if one["serving"] else "stopped", one["number"], one["queued_rows"],
         _node(one["node"], found["leaving"]))
        for one in found["items"]
    ]  # fmt: skip
    rows += [(lane, None, "does not answer", None, None, None) for lane in found["unreachable"]]
    rows += [(lane, None, "closed", None, None, None) for lane in found["closed"]]
    columns = ["lane", "partitions", "state", "number", "waiting", "node"]
    context.table(columns, rows, right=["lane", "partitions", "number", "waiting"])


def _node(node: str | None, leaving: Sequence[str]) -> str | None:
    return node and f"{node[:12]}{' (leaves)' if node in leaving else ''}"


def _print_plan(found: dict[str, Any]) -> None:
    rows = [(one["lane"], one["partitions"], one["rows_s"], one["wait_s"]) for one in found["loads"]]
    context.table(["lane", "partitions", "rows/s", "wait s"], rows, right=["lane", "partitions", "rows/s", "wait s"])
    act = {"add": "a lane would be added", "remove": "a lane would be emptied", "stay": "nothing would change"}
    print(f"{act[found['do']]}: {found['why']}")  # noqa: T201
    if found["moves"]:
        print(f"{found['moves']} partitions would move; lanes then: {found['lanes']}")  # noqa: T201


def _print_moved(form: dict[str, Any]) -> None:
    print(f"{form['moved']} partitions moved; lanes: {form['lanes']}")  # noqa: T201
    for words in form["stayed"]:
        print(f"stayed: {words}")  # noqa: T201
