"""The end of a tenant over REST: close, erase at a day, take it back, see how it stands. Needs a platform key."""

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from billing.errors import FieldError, InvalidInput
from deployments.access import Caller, Gate, may
from deployments.bodies import json_form, known_keys, text_of
from deployments.manners import Answer, Write, described, json_response, plain
from deployments.services import Services
from pipelines.forgetting import RULE_LENGTH_MAX
from pipelines.tenant_erasing import TenantErasing
from storage.sql import tenant_ends
from storage.sql.database import Connection

router = APIRouter(prefix="/v1", tags=["Administration"])

DAYS_DEFAULT, DAYS_MAX = 30, 3650
_ERRORS = (400, 404, 409, 413, 415, 422)
_STATE: dict[str, Any] = {
    "id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "code": "north-cloud",
    "kind": "live",
    "closed_at": "2026-06-01T08:00:00Z",
    "closed_by": "key cb_Zk3vYq0hG",
    "erase_at": "2026-07-01T08:00:00Z",
    "erase_rule": "contract ended",
    "erasing_since": None,
    "erase_progress": {},
    "erased_at": None,
}
_OPEN = _STATE | {"closed_at": None, "closed_by": None, "erase_at": None, "erase_rule": None}


def tenant_erasing_of(services: Services) -> TenantErasing:
    return TenantErasing(services.database, services.store, services.masters, services.archive, services.clock)


@router.get(
    "/tenants/{code:path}/end", summary="How a tenant stands at its end", **described(answer=_STATE, also=(404,))
)
def read_end(request: Request, code: str, caller: Caller = Depends(may("tenants:read"))) -> Response:
    """`erase_progress` counts what went, store by store; `documents_kept` are files that the law keeps: the erasure
    waits for them. After it the code is free again, and `erased-...` is the code of what is left (an id)."""
    services: Services = request.app.state.services
    with services.database.system() as connection:
        return json_response(plain(tenant_ends.state(connection, code)))


@router.post(
    "/tenants/{code:path}/close",
    summary="Close a tenant: nothing changes in it any more",
    **described(request={}, answer=_STATE | {"erase_at": None, "erase_rule": None}, also=_ERRORS),
)
def close(
    request: Request, code: str, caller: Caller = Depends(may("tenants:create")), form: Any = Depends(json_form)
) -> Response:
    """What is there may be read and exported; usage and every other write is answered with `tenant_closed` (403), five
    seconds later at the latest. No bill run begins by itself. `reopen` takes it back."""
    known_keys(form, ())
    write = Write(request)
    now = write.services.clock()
    gate: Gate = request.app.state.gate

    def work(connection: Connection) -> Answer:
        return Answer(plain(tenant_ends.close(connection, code, caller.actor, now)))

    answer = write.run_as_system(caller, work)
    gate.forget()
    return answer


@router.post(
    "/tenants/{code:path}/reopen",
    summary="Take back a closing, and an erasure that has not begun",
    **described(request={}, answer=_OPEN, also=_ERRORS),
)
def reopen(
    request: Request, code: str, caller: Caller = Depends(may("tenants:create")), form: Any = Depends(json_form)
) -> Response:
    """409 once the erasure has begun."""
    known_keys(form, ())
    write = Write(request)
    gate: Gate = request.app.state.gate

    def work(connection: Connection) -> Answer:
        return Answer(plain(tenant_ends.reopen(connection, code)))

    answer = write.run_as_system(caller, work)
    gate.forget()
    return answer


@router.post(
    "/tenants/{code:path}/erase",
    summary="Erase a closed tenant after some days",
    **described(request={"rule": "contract ended", "after_days": 30}, answer=_STATE, status=202, also=_ERRORS),
)
def erase(
    request: Request, code: str, caller: Caller = Depends(may("tenants:create")), form: Any = Depends(json_form)
) -> Response:
    """Until `erase_at` it can be taken back with `reopen`; then everything of the tenant goes, in every store, and
    nothing brings it back. Documents that the law keeps stay until their time is over (a test tenant's go at once).
    `after_days`: 30 if not said; at least 1 for a live tenant."""
    form = known_keys(form, ("rule", "after_days"), ("rule",))
    rule = text_of(form, "rule", None, RULE_LENGTH_MAX)
    days = form.get("after_days", DAYS_DEFAULT)
    if isinstance(days, bool) or not isinstance(days, int) or not 0 <= days <= DAYS_MAX:
        detail = f"a number of days from 0 to {DAYS_MAX} is needed"
        raise InvalidInput(f"/after_days: {detail}", errors=[FieldError("/after_days", detail)])
    write = Write(request)
    at = write.services.clock() + timedelta(days=days)

    def work(connection: Connection) -> Answer:
        if tenant_ends.state(connection, code)["kind"] == "live" and days < 1:
            detail = "a live tenant is erased after a day at the earliest: somebody may have mistaken it for another"
            raise InvalidInput(f"/after_days: {detail}", errors=[FieldError("/after_days", detail)])
        return Answer(plain(tenant_ends.plan_erasure(connection, code, rule, at)), 202)

    return write.run_as_system(caller, work)
