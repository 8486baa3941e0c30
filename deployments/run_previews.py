"""Before a bill run, over REST: what it is expected to come to, and a preview of the whole of it.

The plan reads no usage; the preview computes everything as a run does and changes nothing (`pipelines/run_preview.py`).
"""

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response, StreamingResponse

from deployments.access import Caller, may
from deployments.billing_documents import RUN_EXAMPLE, day_of, day_or_moment
from deployments.bodies import json_form, known_keys
from deployments.manners import Answer, PageOf, Write, described, json_response, page_of, paging, plain, text_cursor
from deployments.services import Services
from pipelines.run_plan import plan_of_run
from pipelines.run_preview import RunPreviews, lines_csv
from storage.sql import audit
from storage.sql.database import Connection

router = APIRouter(prefix="/v1", tags=["Billing"])
MEDIA = {"parquet": "application/vnd.apache.parquet", "csv": "text/csv; charset=utf-8"}
READ_BYTES = 1 << 20
_ERRORS = (400, 404, 409, 413, 415, 422)
_TIMES = ("up_to", "made_at", "usage_may_come_until", "created_at", "expires_at")

_SUMS = {"EUR": {"net": "1234.50", "gross": "1469.06"}}
_PLAN = {
    "up_to": "2026-01-31T23:00:00Z",
    "document_date": "2026-02-01",
    "usage_may_come_until": None,
    "going_on": None,
    "next_due_at": None,
    "estimate": {
        "customers": 42,
        "customers_due": 40,
        "exact": True,
        "documents": 39,
        "totals": _SUMS,
        "seconds": 2.4,
        "runs": [2, 1],
    },
    "preview": {
        "id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
        "created_at": "2026-02-01T07:00:00Z",
        "documents": 40,
        "totals": _SUMS,
    },
}
_PREVIEW = {
    "id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "state": "done",
    "up_to": "2026-01-31T23:00:00Z",
    "document_date": "2026-02-01",
    "made_at": "2026-02-01T07:00:00Z",
    "usage_may_come_until": None,
    "customers": 42,
    "master_number": 812,
    "data_versions": {"product": "0.1.0", "time_zones": "tzdata 2025.2"},
    "created_at": "2026-02-01T07:00:00Z",
    "created_by": "key cb_k3vYq0hGx",
    "expires_at": "2026-03-03T07:00:00Z",
    "error": None,
    "progress": {"done": 42, "total": 42, "updated_at": "2026-02-01T07:00:02Z"},
    "result": {
        "totals": _SUMS,
        "documents": 40,
        "lines": 160,
        "checks": RUN_EXAMPLE["checks"],
        "parked": [],
        "parked_count": 0,
        "held_back": [],
        "held_back_count": 0,
        "findings": [],
    },
}
_BEGUN = _PREVIEW | {"state": "planned", "result": None}
_LISTED = {key: value for key, value in _PREVIEW.items() if key != "result"} | {
    "result": {"totals": _SUMS, "documents": 40, "lines": 160, "parked_count": 0, "held_back_count": 0}
}


def run_previews(services: Services) -> RunPreviews:
    """What plans and shows; driving is `Services.start_preview`."""
    return RunPreviews(services.database, services.store, services.masters, services.clock, desk=services.desk)


def plan_ahead(services: Services, tenant_id: str, up_to: Any, document_date: date | None = None) -> dict[str, Any]:
    """For the API and the page."""
    known = run_previews(services)
    return plan_of_run(
        services.database, services.masters, known, services.clock, tenant_id, up_to, document_date=document_date
    )


@router.post(
    "/bill-runs/plan",
    summary="What a bill run would come to, estimated",
    **described(request={"up_to": "2026-02-01"}, answer=_PLAN, also=(400, 413, 415, 422)),
)
def post_plan(
    request: Request, caller: Caller = Depends(may("billing:read")), form: Any = Depends(json_form)
) -> Response:
    """Begins nothing and reads no usage. `customers_due` have something due by contract that is not billed (`exact`:
    all were looked at, which is so up to 20,000); late usage comes on top. `documents`, `totals` and `seconds` are
    reckoned from the last `runs` that made documents, null while there is none. `next_due_at` is told where nothing is
    due. `preview` is the newest preview up to the same time, if no run ended since: not reckoned but computed.
    `usage_may_come_until` and `going_on` are what a run would have to wait for."""
    services: Services = request.app.state.services
    up_to, document_date = _asked(known_keys(form, ("up_to", "document_date"), ("up_to",)), caller)
    return json_response(plain(plan_ahead(services, caller.tenant_id, up_to, document_date)))


def _asked(form: Mapping[str, Any], caller: Caller) -> tuple[Any, date | None]:
    day = form.get("document_date")
    return day_or_moment(form["up_to"], caller, "/up_to"), None if day is None else day_of(day, "/document_date")


@router.post(
    "/bill-run-previews",
    summary="Preview a whole bill run",
    **described(request={"up_to": "2026-02-01"}, answer=_BEGUN, status=202, also=_ERRORS),
)
def post_preview(
    request: Request, caller: Caller = Depends(may("billing:write")), form: Any = Depends(json_form)
) -> Response:
    """Everything due at or before `up_to` is computed and checked exactly as a bill run does it, and nothing is
    changed: no number, no run, no credit held, no step of the master data. `up_to` may lie ahead, and the collection
    window need not be over. It goes on in the background: ask GET /v1/bill-run-previews/{id}. One of a tenant at a
    time, beside its runs; one that becomes final meanwhile makes the preview fail. `document_date` is for test tenants.
    It is kept for 30 days, of a tenant at most 50."""
    write = Write(request)
    services = write.services
    up_to, document_date = _asked(known_keys(form, ("up_to", "document_date"), ("up_to",)), caller)

    def work(connection: Connection) -> Answer:
        made = run_previews(services).plan(
            caller.tenant_id, up_to, caller.actor, document_date=document_date, request=write.mark(caller)
        )
        begun(services, connection, caller.tenant_id, caller.actor, made)
        return Answer(shown_preview(made), 202, {"Location": f"/v1/bill-run-previews/{made['id']}"})

    answer = write.run(caller, work)
    if answer.status_code == 202:
        services.start_preview(caller.tenant_id, str(msgspec.json.decode(answer.body)["id"]))
    return answer


def begun(services: Services, connection: Connection, tenant_id: str, actor: str, made: Mapping[str, Any]) -> None:
    """Say in the audit who asked for it, whose load it is; all else of it lies with its result."""
    audit.record(connection, tenant_id, at=services.clock(), actor=actor, action="preview of a bill run started",
                 subject=made["id"], after={"up_to": made["up_to"]})  # fmt: skip


def shown_preview(one: Mapping[str, Any]) -> dict[str, Any]:
    """As others see it: times with a Z, as everywhere."""
    times = {name: one[name].replace("+00:00", "Z") for name in _TIMES if one[name] is not None}
    return {**one, **times}


def _listed(one: Mapping[str, Any]) -> dict[str, Any]:
    names = ("totals", "documents", "lines", "parked_count", "held_back_count")
    result = one["result"]
    return shown_preview(one) | {"result": None if result is None else {name: result[name] for name in names}}


@router.get(
    "/bill-run-previews",
    summary="List previews of bill runs, newest first",
    **described(answer={"items": [_LISTED], "next_cursor": None}, also=(422,)),
)
def list_previews(
    request: Request, page: PageOf = Depends(paging), caller: Caller = Depends(may("billing:read"))
) -> Response:
    after = text_cursor(page)
    known = run_previews(request.app.state.services)
    found = known.newest(caller.tenant_id, page.limit + 1, before=after)
    return page_of(found, page, lambda one: one["id"], _listed)


@router.get(
    "/bill-run-previews/{preview_id}",
    summary="Read a preview of a bill run: progress, then totals and checks",
    **described(answer=_PREVIEW, also=(404, 422)),
)
def read_preview(request: Request, preview_id: UUID, caller: Caller = Depends(may("billing:read"))) -> Response:
    """While it goes on `progress` has the `stage`, and `seconds_left` once the speed is known. `checks`, `held_back`,
    `parked` and `findings` are those of a run that is computed; of customers the first thousand are named. A finding
    `id_reused_ahead` names ids that the run will void and the preview counts."""
    found = run_previews(request.app.state.services).get(caller.tenant_id, str(preview_id))
    return json_response(shown_preview(found))


@router.get(
    "/bill-run-previews/{preview_id}/lines",
    summary="All lines of a preview as CSV or Parquet",
    **described(answer=None, media="application/octet-stream", also=(404, 409, 422)),
)
def read_lines(
    request: Request,
    preview_id: UUID,
    format: str = Query("csv", pattern="^(csv|parquet)$", description="`csv` or `parquet`."),
    caller: Caller = Depends(may("billing:read")),
) -> Response:
    """One file. Amounts and quantities are texts, digit for digit; those of a credit note are positive, as on it.
    `document` counts through the preview, it is no number. `outcome` is `billed`, `parked` or `held_back`. In CSV a
    text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return lines_answer(request.app.state.services, caller.tenant_id, str(preview_id), format)


def lines_answer(services: Services, tenant_id: str, preview_id: str, format: str) -> Response:
    known = run_previews(services)
    lines = known.lines(tenant_id, preview_id)  # before the answer begins: it says what is wrong
    parts = lines_csv(lines) if format == "csv" else _parquet(known, tenant_id, preview_id)
    headers = {"Content-Disposition": f'attachment; filename="bill-run-preview-{preview_id}.{format}"'}
    return StreamingResponse(parts, media_type=MEDIA[format], headers=headers)


def _parquet(known: RunPreviews, tenant_id: str, preview_id: str) -> Iterator[bytes]:
    with known.lines_parquet(tenant_id, preview_id) as file:
        while part := file.read(READ_BYTES):
            yield part


@router.post(
    "/bill-run-previews/{preview_id}/cancel",
    summary="Cancel a preview that goes on",
    **described(request={}, answer=_PREVIEW | {"state": "cancelled", "result": None}, also=_ERRORS),
)
def cancel_preview(
    request: Request, preview_id: UUID, caller: Caller = Depends(may("billing:write")), form: Any = Depends(json_form)
) -> Response:
    known_keys(form, ())
    write = Write(request)

    def work(connection: Connection) -> Answer:
        return Answer(shown_preview(run_previews(write.services).cancel(caller.tenant_id, str(preview_id))), 200)

    return write.run(caller, work)


@router.delete(
    "/bill-run-previews/{preview_id}",
    summary="Delete a preview of a bill run and its result",
    **described(answer={"id": _PREVIEW["id"], "deleted": True}, also=(404, 409, 422)),
)
def delete_preview(request: Request, preview_id: UUID, caller: Caller = Depends(may("billing:write"))) -> Response:
    """One that goes on is cancelled first."""
    services: Services = request.app.state.services
    name = str(preview_id)
    run_previews(services).delete(caller.tenant_id, name)
    with services.database.tenant(caller.tenant_id) as connection:
        audit.record(connection, caller.tenant_id, at=services.clock(), actor=caller.actor,
                     action="preview of a bill run deleted", subject=name)  # fmt: skip
    return json_response({"id": name, "deleted": True})
