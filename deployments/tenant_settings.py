"""What a tenant that lives may change of itself, over REST: late usage, the limit for the future, sources."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from billing.errors import Conflict
from billing.steps.tenant import settings_form
from deployments.access import Caller, may
from deployments.bodies import json_form
from deployments.manners import Answer, Write, described, json_response
from deployments.master_data import append, moment_of_change
from deployments.services import Services
from storage.sql import audit, retention_rules
from storage.sql import steps as master_steps
from storage.sql.database import Connection

router = APIRouter(prefix="/v1", tags=["Administration"])
_SETTINGS = {"late_usage": "reject", "future_limit": "1h", "unique_within_customer": ["gateway-eu"]}


@router.get("/tenant-settings", summary="Read what of a tenant may change", **described(answer=_SETTINGS))
def read_tenant_settings(request: Request, caller: Caller = Depends(may("access:read"))) -> Response:
    """As they hold now. `GET /v1/tenant` shows the form that the tenant was made with."""
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        _, master = master_steps.current(connection, caller.tenant_id)
    return json_response(settings_form(master.tenant))


@router.post(
    "/tenant-settings",
    summary="Change what of a tenant may change",
    **described(request={"unique_within_customer": ["gateway-eu"]}, answer=_SETTINGS, also=(400, 409, 413, 415, 422)),
)
def post_tenant_settings(
    request: Request, caller: Caller = Depends(may("access:write")), form: Any = Depends(json_form)
) -> Response:
    """From now on; what is not named stays.

    - `late_usage`: what becomes of usage for a period that is billed. `delta`: the next run bills the difference;
      `reissue`: it makes the invoice again; `reject`: such usage stays in suspense. Bill runs that are made while it
      says `reject` close all that is billed by then for good; what earlier runs billed stays open until the next one.
    - `future_limit`: how far ahead of its arrival the time of an event may be (`30m`, `1h`, `1d`, at most 366 days).
    - `unique_within_customer`: sources that number their events for each customer anew; the list as a whole.

    Currency, time zone and country never change. 409 while a rule of retention needs `reject`.
    """
    write = Write(request)

    def work(connection: Connection) -> Answer:
        now = write.services.clock()
        _, before = master_steps.current(connection, caller.tenant_id)
        moment = moment_of_change(write, connection, caller, None)
        change = append(write, connection, caller, {"at": moment, "settings": form})
        after = change.master.tenant
        kept = {rule["class"] for rule in retention_rules.rules(connection)}
        if "usage" in kept and after.late_usage != "reject":
            raise Conflict(
                "usage goes by its age (/v1/retention), and that needs late_usage: reject. End that rule first"
            )
        audit.record(connection, caller.tenant_id, at=now, actor=caller.actor, action="tenant settings changed",
                     subject=caller.tenant_code, before=settings_form(before.tenant),
                     after=settings_form(after))  # fmt: skip
        return Answer(settings_form(after), 200, master=change.number)

    return write.run(caller, work)
