"""Forgetting a customer over REST: ask, look first, see how far it is. A thin shell over `pipelines/forgetting.py`."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from billing.errors import FieldError, InvalidInput
from deployments.access import Caller, may
from deployments.bodies import json_form, known_keys, text_of
from deployments.manners import (
    Answer,
    PageOf,
    Write,
    described,
    json_response,
    page_of,
    paging,
    plain,
    uuid_cursor,
)
from deployments.services import Services
from pipelines.forgetting import RULE_LENGTH_MAX, Erasures
from storage.sql import erasures
from storage.sql.database import Connection

router = APIRouter(prefix="/v1", tags=["Contracts"])

_DOCUMENT = {
    "document_id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e44",
    "number": "2026-0017",
    "kept_until": "2034-12-31",
    "shared": False,
}
_ERASURE: dict[str, Any] = {
    "id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "rule": "GDPR 17",
    "state": "usage",
    "stands_for": "erased-5e0c1f4a9d3b27c86e10",
    "asked_at": "2026-05-04T09:00:00Z",
    "asked_by": "user ann@example.org",
    "next_at": "2026-05-04T09:01:00Z",
    "progress": {
        "tables": {"invoices": 4, "outbox": 4},
        "master_objects": 6,
        "run_results": 4,
        "simulation_objects": 0,
        "preview_objects": 0,
        "usage": {"rows": 1240, "segments": 31, "files": 2, "waiting": 3, "passes": 1},
    },
    "documents": [],
    "error": None,
    "done_at": None,
}
_PLAN: dict[str, Any] = {
    "customer": "acme",
    "keys": ["acme", "sim-1"],
    "rule": "GDPR 17",
    "usage_rows": 1240,
    "tables": {"invoices": 4, "steps": 3},
    "documents": [_DOCUMENT],
    "changed": False,
}


def erasures_of(services: Services) -> Erasures:
    return Erasures(services.database, services.store, services.masters, services.archive, services.clock)


@router.post(
    "/customers/{code:path}/erasure",
    summary="Forget a customer",
    **described(request={"rule": "GDPR 17"}, answer=_ERASURE, status=202, also=(400, 404, 409, 413, 415, 422)),
)
def post_erasure(
    request: Request, code: str, caller: Caller = Depends(may("access:write")), form: Any = Depends(json_form)
) -> Response:
    """Everything that names him goes, in every store: master data and their history, invoices and what was told of
    them, results of bill runs, usage. Amounts, dates and numbers stay, under a code that says nothing. Documents in the
    archive stay until the law lets them go: the erasure names them, and then deletes them. It goes on in the
    background; read how far it is under `/v1/erasures/{id}`. It cannot be undone.

    `dry_run: true` answers 200 with what would go and what would stay, and changes nothing. 409 names what is in the
    way: a contract that runs, a bill run that goes on, a document that is not in the archive yet.
    """
    form = known_keys(form, ("rule", "dry_run"), ("rule",))
    rule = text_of(form, "rule", None, RULE_LENGTH_MAX)
    dry_run = form.get("dry_run", False)
    if not isinstance(dry_run, bool):
        raise InvalidInput("dry_run is true or false", errors=[FieldError("/dry_run", "must be true or false")])
    write = Write(request)
    work = erasures_of(write.services)
    if dry_run:
        return json_response(work.plan(caller.tenant_id, code, rule) | {"changed": False})

    def ask(connection: Connection) -> Answer:
        return Answer(plain(work.ask(caller.tenant_id, code, rule, caller.actor, connection)), 202)

    return write.run(caller, ask)


@router.get(
    "/erasures",
    summary="List erasures of customers",
    **described(answer={"items": [_ERASURE], "next_cursor": None}, also=(422,)),
)
def list_erasures(
    request: Request, page: PageOf = Depends(paging), caller: Caller = Depends(may("access:read"))
) -> Response:
    """The newest first. None says who was erased: `stands_for` is the code under which amounts go on."""
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        rows = erasures.page(connection, after=uuid_cursor(page), limit=page.limit + 1)
    return page_of(rows, page, lambda row: str(row["id"]), plain)


@router.get(
    "/erasures/{id}",
    summary="How far an erasure is, and what proves it",
    **described(answer=_ERASURE | {"documents": [_DOCUMENT]}, also=(404, 422)),
)
def read_erasure(request: Request, id: UUID, caller: Caller = Depends(may("access:read"))) -> Response:
    """`state`: asked, tables, objects, usage (also: what was replaced is on its way out, an hour), documents (they wait
    for the end of their time), done. `progress` counts what went, store by store; `left` are tables that still say one
    of his words, with the number of rows: the archive's, as long as it keeps documents. `documents` are those that stay
    (`shared`: of who pays for him; they go when that one's do)."""
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        return json_response(plain(erasures.get(connection, str(id))))
