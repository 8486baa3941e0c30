"""What goes on one document of a tenant's customers, over REST: by customer, subscription, order or cost centre."""

from typing import Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from deployments.access import Caller, may
from deployments.bodies import json_form
from deployments.manners import Answer, Write, described, json_response
from deployments.master_data import append, moment_of_change
from deployments.services import Services
from storage.sql import steps as master_steps
from storage.sql.database import Connection

router = APIRouter(prefix="/v1", tags=["Contracts"])
_SETTING = {"per": "order"}


@router.get("/document-setting", summary="Read what goes on one document", **described(answer=_SETTING))
def read_document_setting(request: Request, caller: Caller = Depends(may("contracts:read"))) -> Response:
    """Of customers who say nothing else themselves (`document_per` of a customer)."""
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        _, master = master_steps.current(connection, caller.tenant_id)
    return json_response({"per": master.tenant.document_per})


@router.post(
    "/document-setting",
    summary="Set what goes on one document",
    **described(request=_SETTING, answer=_SETTING, also=(400, 409, 413, 415, 422)),
)
def post_document_setting(
    request: Request,
    caller: Caller = Depends(may("contracts:write")),
    form: Any = Depends(json_form),
    at: str | None = Query(None, max_length=40, description="When it happens; in the past, default now."),
) -> Response:
    """`customer` (one document a run and currency), `subscription`, `order` or `cost_centre`: documents that are made
    from now on. What a document says of order and references is what its contracts say (`references`)."""
    write = Write(request)

    def work(connection: Connection) -> Answer:
        moment = moment_of_change(write, connection, caller, at)
        change = append(write, connection, caller, {"at": moment, "documents": form})
        return Answer({"per": change.master.tenant.document_per}, 200, master=change.number)

    return write.run(caller, work)
