"""Is the process there (live), can it do its work (ready), and what is the state of its parts (status)?"""

import asyncio
import time
from typing import Any

import psycopg
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from billing.errors import BillingError
from billing.events import RUN_MISSED
from deployments.access import Caller, may
from deployments.manners import described, json_response, plain
from deployments.services import Services
from pipelines import run_schedule

router = APIRouter(prefix="/v1", tags=["Health"])
CHECK_S_MAX = 5.0
_READY = {"ready": True, "checks": {"database": "ok", "object_store": "ok", "usage_log": "ok"}}


@router.get("/health/live", summary="The process answers", **described(answer={"live": True}, open_route=True))
async def live() -> Response:
    return json_response({"live": True})


@router.get(
    "/health/ready",
    summary="All that it needs answers, too",
    **described(answer=_READY, also=(503,), open_route=True),
)
async def ready(request: Request) -> Response:
    """503 until database, object store and usage log answer. Says which does not, and nothing else of the inside."""
    services: Services = request.app.state.services
    checks = await check(services)
    good = all(state == "ok" for state in checks.values())
    return json_response({"ready": good, "checks": checks}, 200 if good else 503)


@router.get(
    "/status",
    summary="The state of the platform's parts",
    **described(
        answer=_READY
        | {
            "version": "0.1.0",
            "now": "2026-01-10T08:00:00Z",
            "lanes": [{"lane": 0, "state": "serving"}],
            "unreachable_lanes": [],
            "about": {"demo": "done"},
            "alarms": [
                {"type": RUN_MISSED, "up_to": "2026-03-31T22:00:00Z", "due_at": "2026-03-31T22:00:00Z"},
            ],
        }
    ),
)
async def status(request: Request, caller: Caller = Depends(may("access:read", "tenants:read"))) -> Response:
    """`alarms`: what somebody of the key's tenant must see to now; scheduled bill runs that did not happen."""
    services: Services = request.app.state.services
    checks = await check(services)
    body: dict[str, Any] = {
        "ready": all(state == "ok" for state in checks.values()),
        "checks": checks,
        "version": request.app.version,
        "now": plain(services.clock()),
        "lanes": [],
        "unreachable_lanes": [],
        "about": plain(await asyncio.to_thread(services.about)),
        "alarms": [],
    }
    if caller.tenant_id and checks["database"] == "ok":
        body["alarms"] = await asyncio.to_thread(_alarms, services, caller.tenant_id)
    if checks["usage_log"] == "ok":
        lanes = await services.router.status()
        body["lanes"] = [_lane(lane) for lane in lanes.lanes]
        body["unreachable_lanes"] = list(lanes.unreachable)
    return json_response(body)


def _alarms(services: Services, tenant_id: str) -> list[dict[str, Any]]:
    with services.database.tenant(tenant_id) as connection:
        seen = run_schedule.outlook(connection, tenant_id, services.clock)
    return [{"type": RUN_MISSED, "up_to": plain(one.up_to), "due_at": plain(one.due_at)} for one in seen.missed]


def _lane(lane: Any) -> dict[str, Any]:
    fields = {name: getattr(lane, name) for name in getattr(lane, "__dataclass_fields__", {})}
    return {name: plain(value) if _simple(value) else str(value) for name, value in fields.items()}


def _simple(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | str) or hasattr(value, "isoformat")


async def check(services: Services) -> dict[str, str]:
    """Ask each part, all at the same time and not for long: "ok", or "away"."""
    names = ("database", "object_store", "usage_log")
    asked = (
        asyncio.to_thread(_database, services),
        asyncio.to_thread(_object_store, services),
        _usage_log(services),
    )
    started = time.monotonic()
    answers = await asyncio.gather(*(asyncio.wait_for(each, CHECK_S_MAX) for each in asked), return_exceptions=True)
    assert time.monotonic() - started < 10 * CHECK_S_MAX
    states: dict[str, str] = {}
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, BillingError | TimeoutError | psycopg.Error | OSError):
            states[name] = "away"
        elif isinstance(answer, BaseException):
            raise answer
        else:
            states[name] = "ok" if answer else "away"
    return states


def _database(services: Services) -> bool:
    with services.database.system() as connection:
        return connection.execute("SELECT 1 AS one").fetchone() is not None


def _object_store(services: Services) -> bool:
    services.store.exists("log/genesis.json")  # the answer does not matter, only that there is one
    return True


async def _usage_log(services: Services) -> bool:
    lanes = await services.router.status()
    return bool(lanes.lanes) and not lanes.unreachable
