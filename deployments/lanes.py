"""The lanes of the usage log for who runs the platform: which partitions each has, moving one, spreading them all."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from actors.spread_job import Spread
from billing.errors import InvalidInput
from billing.forms import Form, Mistakes
from deployments.access import Caller, may
from deployments.bodies import json_form, known_keys
from deployments.manners import described, json_response
from deployments.services import Services
from storage.usage_log.genesis import PARTITIONS

router = APIRouter(prefix="/v1/lanes", tags=["Administration"])
LANES_MAX = 1_000

_LANES = {
    "items": [
        {
            "lane": 0,
            "partitions": 128,
            "serving": True,
            "number": 4711,
            "queued_rows": 0,
            "clock_error": "",
            "owned": [0],
            "node": "4f1c0e…",
        }
    ],
    "unreachable": [],
    "closed": [3],
    "spread": {"lanes": [0, 1, 2], "moved": 40, "stayed": 0, "left": 45, "done": False, "error": ""},
    "leaving": ["9ab3…"],
    "next_cursor": None,
}


@router.get("", summary="The lanes of the usage log", **described(answer=_LANES))
async def list_lanes(request: Request, caller: Caller = Depends(may("tenants:read"))) -> Response:
    """Each with the partitions that it has (`owned`), the last number of its log, and what waits in front of it.
    `node`: where its shard runs, on a cluster; `leaving`: nodes whose lanes are taken over elsewhere.
    `closed`: lanes that have ended. `spread`: how far spreading is that is under way, or how the last one ended."""
    services: Services = request.app.state.services
    status = await services.router.status()
    items = [
        {
            "lane": one.lane,
            "partitions": one.partitions,
            "serving": one.serving,
            "number": one.number,
            "queued_rows": one.queued_rows,
            "clock_error": one.clock_error,
            "owned": list(one.owned),
            "node": status.nodes.get(one.lane),
        }
        for one in status.lanes
    ]
    spread = None if status.spread is None else _spread_form(status.spread)
    return json_response(
        {
            "items": items,
            "unreachable": list(status.unreachable),
            "closed": list(status.closed),
            "spread": spread,
            "leaving": sorted(status.leaving),
            "next_cursor": None,
        }
    )


def _spread_form(spread: Spread) -> dict[str, Any]:
    return asdict(spread) | {"lanes": list(spread.lanes)}


_PLAN = {
    "do": "add",
    "lanes": [0, 1, 2],
    "moves": 85,
    "why": "71500 rows a second and lane are above 60000",
    "loads": [{"lane": 0, "partitions": 128, "rows_s": 72000, "wait_s": 0.1}],
}


@router.get("/plan", summary="What scaling by load would do now", **described(answer=_PLAN))
async def read_lanes_plan(request: Request, caller: Caller = Depends(may("tenants:read"))) -> Response:
    """Nothing is done. `do` is `add`, `remove` (a lane is emptied) or `stay`; `lanes` have partitions after it. Lanes
    change by themselves only where the settings name a `lanes_max`."""
    services: Services = request.app.state.services
    return json_response(await services.router.plan())


@router.post(
    "/moves",
    summary="Move a partition to another lane",
    **described(
        request={"partition": 17, "lane": 1},
        answer={"partition": 17, "lane": 1, "moved": True, "generation": 1},
        also=(400, 409, 415, 422),
    ),
)
async def move_partition(
    request: Request, caller: Caller = Depends(may("tenants:create")), form: Any = Depends(json_form)
) -> Response:
    """It pauses for some milliseconds: what is sent meanwhile waits. Repeating does nothing (`moved: false`). 409 while
    the partition has levels or usage too large to move; 503: unknown, send again."""
    mistakes = Mistakes()
    top = Form(known_keys(form, ("partition", "lane"), ("partition", "lane")), "", mistakes)
    partition, lane = top.count("partition", 0, 0, PARTITIONS - 1), top.count("lane", 0, 0, LANES_MAX)
    top.done()
    mistakes.check()
    services: Services = request.app.state.services
    done = await services.router.move(partition, lane)
    moved = done.get("moved", True)
    return json_response({"partition": partition, "lane": lane, "moved": moved, "generation": done.get("generation")})


@router.post(
    "/spread",
    summary="Let exactly these lanes have partitions, evenly",
    **described(
        request={"lanes": [0, 1, 2]},
        answer={"lanes": [0, 1, 2], "moved": 85, "stayed": 0, "left": 0, "done": True, "error": ""},
        also=(400, 409, 415, 422),
    ),
)
async def spread(
    request: Request, caller: Caller = Depends(may("tenants:create")), form: Any = Depends(json_form)
) -> Response:
    """Begins lanes that there are not yet (a shard each) and drains those that are not named.
    Moves one partition after the other, and answers after some seconds at the latest: with `done: false` it goes on by
    itself, `left` are to come, and the same again, or `spread` of the list, says how far it is. After 503 send the same
    again. What cannot move stays (`stayed`). 409 while partitions are spread over other lanes."""
    lanes = known_keys(form, ("lanes",), ("lanes",))["lanes"]
    if (
        not isinstance(lanes, list)
        or not lanes
        or not all(isinstance(one, int) and 0 <= one <= LANES_MAX for one in lanes)
    ):
        raise InvalidInput(f"/lanes: a list of numbers from 0 to {LANES_MAX} is needed")
    services: Services = request.app.state.services
    return json_response(_spread_form(await services.router.spread(sorted(set(lanes)))))


@router.post(
    "/closings",
    summary="Close a lane that has no partitions",
    **described(request={"lane": 2}, answer={"lane": 2, "closed": True}, also=(400, 409, 415, 422)),
)
async def close_lane(
    request: Request, caller: Caller = Depends(may("tenants:create")), form: Any = Depends(json_form)
) -> Response:
    """For good: its shard ends, what it holds stays readable, its number is not used again. Repeating does nothing.
    409 while it has partitions, one of them is on its way, or a backfill in it is not decided."""
    mistakes = Mistakes()
    top = Form(known_keys(form, ("lane",), ("lane",)), "", mistakes)
    lane = top.count("lane", 0, 0, LANES_MAX)
    top.done()
    mistakes.check()
    services: Services = request.app.state.services
    await services.router.close_lane(lane)
    return json_response({"lane": lane, "closed": True})


@router.post(
    "/nodes",
    summary="Have a node's lanes taken over before it leaves",
    **described(
        request={"node": "4f1c0e…", "leaves": True},
        answer={"node": "4f1c0e…", "leaves": True},
        also=(400, 404, 409, 415, 422),
    ),
)
async def leave_node(
    request: Request, caller: Caller = Depends(may("tenants:create")), form: Any = Depends(json_form)
) -> Response:
    """A warm process on another node takes one lane after the other; each is away for a few seconds. The node is free
    when no lane names it any more (GET /v1/lanes). Nothing is begun there until it has gone or `leaves: false` says
    that it stays. 404 for a node that has no shards to come, 409 if it is the last one."""
    mistakes = Mistakes()
    top = Form(known_keys(form, ("node", "leaves"), ("node",)), "", mistakes)
    node, leaves = top.text("node"), top.fields.get("leaves", True)
    top.raw("leaves")
    top.done()
    if not isinstance(leaves, bool):
        top.wrong("leaves", "true or false is needed")
    mistakes.check()
    services: Services = request.app.state.services
    await services.router.leave(node, leaves=leaves)
    return json_response({"node": node, "leaves": leaves})
