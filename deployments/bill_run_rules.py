"""What bill runs rest on beside contracts, over REST: settings and schedule of a tenant, guard rails, reversal."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from billing.errors import FieldError, InvalidInput
from billing.run_settings import settings_of
from deployments.access import Caller, may
from deployments.billing_documents import RUN_EXAMPLE, driver, shown_run
from deployments.bodies import json_form, known_keys
from deployments.manners import Answer, Write, described, etag, json_response
from deployments.services import Services
from pipelines import run_schedule
from storage.sql import audit, billing_settings
from storage.sql.database import Connection

router = APIRouter(prefix="/v1", tags=["Billing"])
RELEASED_MAX = 10_000
_WRITE_ERRORS = (400, 404, 409, 413, 415, 422)

_SETTINGS = {
    "guard_rails": {
        "on": True,
        "times_last": "3",
        "limits": {"EUR": "10000.00"},
        "new_country": True,
        "voided_ids": True,
        "change_percent": "50",
    },
    "four_eyes": True,
    "collection_window": "PT72H",
    "schedule": {"interval": "month", "approve": False},
}
_SCHEDULE = {
    "scheduled": True,
    "next": {"up_to": "2026-02-28T23:00:00+00:00", "last_day": "2026-02-28", "due_at": "2026-03-03T23:00:00+00:00"},
    "due": [],
    "missed": [],
    "alarm": None,
    "waiting_for": None,
}


@router.get("/billing-settings", summary="Read how bill runs are made", **described(answer=_SETTINGS))
def read_settings(request: Request, caller: Caller = Depends(may("billing:read"))) -> Response:
    """As they were set; what is left out has its default. The ETag is for a change that must not overwrite another."""
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        found = billing_settings.get(connection)
    return json_response(found["form"], headers={"ETag": etag(found["version"])})


@router.put(
    "/billing-settings",
    summary="Set how bill runs are made",
    **described(request=_SETTINGS, answer=_SETTINGS, also=(412, *_WRITE_ERRORS)),
)
def put_settings(
    request: Request, caller: Caller = Depends(may("access:write")), form: Any = Depends(json_form)
) -> Response:
    """`guard_rails` keep a customer's documents back in a computed run until somebody lets them through: an invoice
    over `times_last` times the highest of his last three, over a limit, to a country without an invoice yet, or after
    an id of his was voided; a net that differs by more than `change_percent` from the last run's lets the whole run
    wait. They are on by default for live tenants; null switches one off.

    `four_eyes`: who starts a run does not approve it. `collection_window`: so long after the end of a period its usage
    may come, runs begin after it. `schedule`: runs begin by themselves at the end of each `interval` (and window),
    after a downtime all that were missed, oldest first; with `approve` they go on where nothing was found.
    """
    write = Write(request)
    if not isinstance(form, Mapping):
        raise InvalidInput("an object is needed", errors=[FieldError("", "an object is needed")])
    settings_of(form, caller.tenant_kind)

    def work(connection: Connection) -> Answer:
        now = write.services.clock()
        before = billing_settings.get(connection)["form"]
        version = billing_settings.put(connection, caller.tenant_id, form, caller.actor, now, write.expected)
        audit.record(connection, caller.tenant_id, at=now, actor=caller.actor, action="billing settings changed",
                     subject="billing", before=before, after=dict(form))  # fmt: skip
        return Answer(dict(form), 200, {"ETag": etag(version)})

    return write.run(caller, work)


@router.get("/billing-schedule", summary="When bill runs begin, and which were missed", **described(answer=_SCHEDULE))
def read_schedule(request: Request, caller: Caller = Depends(may("billing:read"))) -> Response:
    """`due` has begun or begins within a minute, unless a run that goes on (or waits) stands before it (`waiting_for`).
    `alarm` says that no bill run happened six hours after one was due."""
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        seen = run_schedule.outlook(connection, caller.tenant_id, services.clock)
    return json_response(run_schedule.shown(seen, caller.timezone))


@router.post(
    "/bill-runs/{run_id}/release",
    summary="Let customers through whom a guard rail holds back",
    **described(request={"customers": ["acme"]}, answer=RUN_EXAMPLE, also=_WRITE_ERRORS),
)
def release(
    request: Request,
    run_id: UUID,
    caller: Caller = Depends(may("billing:write")),
    form: Any = Depends(json_form),
) -> Response:
    """Only in a run that waits for approval; who is not let through is parked, and billed by the next run."""
    write = Write(request)
    form = known_keys(form, ("customers",), ("customers",))
    customers = form["customers"]
    wrong = not isinstance(customers, list) or not customers or len(customers) > RELEASED_MAX
    if wrong or not all(isinstance(one, str) for one in customers):
        detail = f"a list of 1 to {RELEASED_MAX} customer codes is needed"
        raise InvalidInput(f"/customers: {detail}", errors=[FieldError("/customers", detail)])
    name = str(run_id)

    def work(connection: Connection) -> Answer:
        steer = driver(write.services)
        steer.release(caller.tenant_id, name, customers, caller.actor)
        audit.record(connection, caller.tenant_id, at=write.services.clock(), actor=caller.actor,
                     action="bill run: release", subject=name, after={"customers": customers[:100]})  # fmt: skip
        return Answer(shown_run(steer.get(caller.tenant_id, name)))

    return write.run(caller, work)


@router.post(
    "/bill-runs/{run_id}/reverse",
    summary="Take a finalised bill run back as a whole",
    **described(request={}, answer=RUN_EXAMPLE, status=202, also=_WRITE_ERRORS),
)
def reverse(
    request: Request,
    run_id: UUID,
    caller: Caller = Depends(may("billing:write")),
    form: Any = Depends(json_form),
) -> Response:
    """Writes a credit note against each of its documents (an invoice against a credit note), gives wallet credit back,
    and lets the next run bill the same periods again. An invoice that the run had cancelled for late usage is issued
    again and is what is billed. Only the last run; it goes on in the background to `reversed`."""
    known_keys(form, ())
    write = Write(request)
    name = str(run_id)

    def work(connection: Connection) -> Answer:
        steer = driver(write.services)
        steer.reverse(caller.tenant_id, name, caller.actor)
        audit.record(connection, caller.tenant_id, at=write.services.clock(), actor=caller.actor,
                     action="bill run: reverse", subject=name)  # fmt: skip
        return Answer(shown_run(steer.get(caller.tenant_id, name)), 202)

    answer = write.run(caller, work)
    write.services.start_bill_run(caller.tenant_id, name, None)
    return answer
