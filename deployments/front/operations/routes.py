"""Health of the platform: database, object store, shards and lanes, versions, the way to the Ray dashboard."""

import asyncio
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from billing.errors import BillingError
from deployments.front.page import Front, Visit
from storage.object_store import probe

PACKAGES = ("cloud-billing", "ray", "polars", "pyarrow", "psycopg", "fastapi", "typst")
STATUS_TIMEOUT_S = 2.0
LANE_FACTS = ("number", "rows", "duplicates", "queued_rows", "partitions", "checkpoint")


@dataclass(frozen=True)
class Part:
    key: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Lane:
    name: str
    facts: list[tuple[str, str]]
    ok: bool


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    visitor = Depends(front.signed_in)

    @router.get("/operations")
    async def operations(visit: Annotated[Visit, visitor]) -> Response:
        visit.need("access:read")
        database, store = await asyncio.gather(
            asyncio.to_thread(_database, front, visit), asyncio.to_thread(_store, front, visit)
        )
        router_part, lanes = await _router(front, visit)
        parts = [database, store, router_part]
        about = front.services.about()
        columns = [name for name, _ in lanes[0].facts] if lanes else []
        return await asyncio.to_thread(
            front.page,
            visit,
            "operations/operations.html",
            area="operations",
            healthy=all(part.ok for part in parts),
            parts=parts,
            lanes=lanes,
            lane_columns=columns,
            versions=_versions(),
            dashboard=_local_link(about.get("dashboard")),
        )

    return router


def _database(front: Front, visit: Visit) -> Part:
    begin = time.perf_counter()
    try:
        with front.services.database.tenant(visit.tenant_id) as connection:
            row = connection.execute("SELECT current_setting('server_version') AS version").fetchone()
    except BillingError as error:
        return Part("database", False, error.detail)
    ms = _ms(begin)
    found = str(row["version"]).split()[0] if row else ""
    return Part("database", True, visit.texts("operations.answered", version=found, ms=ms))


def _store(front: Front, visit: Visit) -> Part:
    begin = time.perf_counter()
    try:
        probe(front.services.store)
    except BillingError as error:
        return Part("store", False, error.detail)
    return Part("store", True, visit.texts("operations.store_written", ms=_ms(begin)))


async def _router(front: Front, visit: Visit) -> tuple[Part, list[Lane]]:
    t = visit.texts
    try:
        status = await asyncio.wait_for(front.services.router.status(), STATUS_TIMEOUT_S)
    except (BillingError, TimeoutError) as error:
        return Part("router", False, str(error) or t("operations.no_shard")), []
    lanes = [_lane(one, visit) for one in status.lanes]
    lanes += [Lane(str(lane), [], False) for lane in status.unreachable]
    answering = len(status.lanes)
    text = t("operations.shards_count", n=answering, count=answering)
    return Part("router", answering > 0 and not status.unreachable, text), lanes


def _lane(status: Any, visit: Visit) -> Lane:
    values = [(name, int(getattr(status, name))) for name in LANE_FACTS]
    facts = [(name, visit.formats.number(value if value >= 0 else None)) for name, value in values]
    return Lane(str(status.lane), facts, bool(status.serving))


def _versions() -> list[tuple[str, str]]:
    found = [("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, "–"))
    return found


def _local_link(address: Any) -> str:
    """The dashboard's address if it is one to click."""
    text = str(address or "")
    return text if text.startswith(("http://", "https://")) else ""


def _ms(begin: float) -> str:
    return str(round((time.perf_counter() - begin) * 1000, 1))
