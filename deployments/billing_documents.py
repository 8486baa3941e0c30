"""Bill runs over REST, and reading invoices and credit notes. The work is done by pipelines/ and storage/.

Credit notes by hand are written by `deployments/credit_notes.py`.
"""

import logging
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, cast
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from billing.documents import Document, Line
from billing.errors import BillingError, FieldError, InvalidInput, NotFound
from billing.periods import TimeInvalid, parse_moment, zone
from deployments.access import Caller, may
from deployments.archive import reader as archive_reader
from deployments.bodies import json_form, known_keys
from deployments.manners import (
    Answer,
    PageOf,
    Write,
    described,
    json_response,
    number_cursor,
    page_of,
    paging,
    plain,
    uuid_cursor,
)
from deployments.services import Services
from pipelines.bill_run import BillRunDriver
from pipelines.bill_run_chunk import CUSTOMERS
from pipelines.document_files import make_files, want_again
from pipelines.run_view import run_view
from pipelines.verify_invoices import verify_run
from storage.sql import audit, bill_runs, invoices
from storage.sql.database import Connection

router = APIRouter(prefix="/v1", tags=["Billing"])
WRITE_ERRORS = (400, 404, 409, 413, 415, 422)
LOG = logging.getLogger("cloudbilling.billing")

# --- bill runs

_RUN = {
    "id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "number": 3,
    "state": "finalised",
    "up_to": "2026-01-31T23:00:00Z",
    "document_date": "2026-02-01",
    "progress": {"stage": "making documents", "done": 30, "total": 40, "seconds": 2.1, "seconds_left": 0.4},
    "totals": {"EUR": {"net": "1234.50", "gross": "1469.06"}},
    "documents": {"made": 40, "archived": 30, "parked": 0, "wanted": 10},
    "without_files": [],
    "parked": [],
    "held_back": [],
    "checks": {
        "last_run": 2,
        "difference": {"EUR": {"net": "1234.50", "last_net": "1200.00", "change_percent": "2.9"}},
        "outliers": [],
        "stops": [],
        "by_plan": [{"plan": "compute", "currency": "EUR", "net": "1234.5", "lines": 80, "subscriptions": 40}],
        "by_tax": [
            {"category": "S", "percent": "19", "currency": "EUR", "base": "1234.5", "amount": "234.56", "documents": 40}
        ],
        "by_country": [
            {"country": "DE", "currency": "EUR", "net": "1234.5", "tax": "234.56", "gross": "1469.06", "documents": 40}
        ],
    },
    "findings": [],
    "error": None,
    "waiting_reason": None,
    "estimate": {
        "customers": 42,
        "customers_due": 40,
        "exact": True,
        "documents": 39,
        "totals": {"EUR": {"net": "1200.00", "gross": "1428.00"}},
        "seconds": 2.4,
        "runs": [2, 1],
    },
}
RUN_EXAMPLE = _RUN
# What a run keeps for itself: positions in the log are of no use to a caller.
_INNER = frozenset({"tenant_id", "cut", "previous_cut", "request_key", "held", "patterns", "stage_since", "stage_from",
                    "stage_seconds"})  # fmt: skip


def driver(services: Services) -> BillRunDriver:
    """A driver that plans and steers; the runs themselves are driven by `Services.start_bill_run`."""
    return BillRunDriver(
        services.database,
        services.store,
        services.masters,
        services.archive,
        services.clock,
        desk=services.desk,
    )


def shown_run(run: Mapping[str, Any]) -> dict[str, Any]:
    return cast("dict[str, Any]", plain({key: value for key, value in run.items() if key not in _INNER}))


@router.post(
    "/bill-runs",
    summary="Start a bill run",
    **described(request={"up_to": "2026-02-01"}, answer=_RUN, status=202, also=WRITE_ERRORS),
)
def start_bill_run(
    request: Request, caller: Caller = Depends(may("billing:write")), form: Any = Depends(json_form)
) -> Response:
    """Bills everything due at or before `up_to` that is not billed yet; again makes nothing new. It goes on in the
    background: ask GET /v1/bill-runs/{id} for its progress; `done` means that its documents are archived. `progress`
    has `seconds_left` of the present stage once its speed is known. `waiting_reason` says that a database or store is
    away: the run goes on by itself when it is back. `error` is what somebody must mend before the run is resumed.

    `approve: false` stops when the amounts are computed, for a look at them (POST .../approve goes on); so does a
    finding of the tenant's guard rails (`held_back`, `checks`), or a tenant that wants four eyes. `estimate` is what
    the plan expected it to come to (POST /v1/bill-runs/plan says so before there is a run). `early: true` does
    not wait for its collection window. With an Idempotency-Key a repeat gets the same run, whatever came between. A
    `document_date` of its own, and `wait: true` (the answer comes when the run has ended, if it is of at most 2,000
    customers), are for test tenants.
    """
    write = Write(request)
    form = known_keys(form, ("up_to", "document_date", "approve", "early", "wait"), ("up_to",))
    early = _truth(form, "early", False)
    approve, wait = _truth(form, "approve", True), _truth(form, "wait", False)
    if wait and caller.tenant_kind != "test":
        detail = "only a test tenant waits for its runs: ask for the progress"
        raise InvalidInput(f"/wait: {detail}", errors=[FieldError("/wait", detail)])
    up_to = day_or_moment(form["up_to"], caller, "/up_to")
    day = form.get("document_date")
    document_date = day_of(day, "/document_date") if day is not None else None
    services = write.services

    def work(connection: Connection) -> Answer:
        # A retry after a crash between the plan and its answer finds the run by the key, and gets it.
        request_key = f"{caller.owner}:{write.key}" if write.key is not None else None
        run = driver(services).plan(
            caller.tenant_id, up_to, caller.actor,
            document_date=document_date, approve=approve, request_key=request_key, early=early,
        )  # fmt: skip
        audit.record(
            connection,
            caller.tenant_id,
            at=services.clock(),
            actor=caller.actor,
            action="bill run started",
            subject=str(run["id"]),
            after={"up_to": form["up_to"], "approve": approve},
        )
        return Answer(shown_run(run), 202, {"Location": f"/v1/bill-runs/{run['id']}"})

    answer = write.run(caller, work)
    if answer.status_code == 202:
        # Also for a repeated answer: the first one may have died before it started the run, and starting twice is
        # harmless.
        run = msgspec.json.decode(answer.body)
        if wait and run["customers"] <= CUSTOMERS:
            ended = driver(services).drive(caller.tenant_id, str(run["id"]))
            return json_response(shown_run(ended), 202, {"Location": answer.headers["Location"]})
        services.start_bill_run(caller.tenant_id, str(run["id"]), None)
    return answer


def _truth(form: Mapping[str, Any], key: str, default: bool) -> bool:
    value = form.get(key, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"/{key}: true or false", errors=[FieldError(f"/{key}", "true or false is needed")])
    return value


def day_or_moment(value: Any, caller: Caller, pointer: str) -> date | datetime:
    if isinstance(value, str) and len(value) == 10:
        return day_of(value, pointer)
    try:
        return parse_moment(value, caller.timezone)
    except TimeInvalid as error:
        raise InvalidInput(f"{pointer}: {error}", errors=[FieldError(pointer, str(error))]) from error


def day_of(value: Any, pointer: str) -> date:
    try:
        day = date.fromisoformat(value)
        if not 1900 <= day.year <= 9998 or len(value) != 10:
            raise ValueError(value)
    except (ValueError, TypeError) as error:
        detail = "a date like 2026-01-31 is needed"
        raise InvalidInput(f"{pointer}: {detail}", errors=[FieldError(pointer, detail)]) from error
    return day


@router.get(
    "/bill-runs",
    summary="List bill runs, newest first",
    **described(answer={"items": [_RUN], "next_cursor": None}, also=(422,)),
)
def list_bill_runs(
    request: Request, page: PageOf = Depends(paging), caller: Caller = Depends(may("billing:read"))
) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        rows = bill_runs.page(connection, after=number_cursor(page), limit=page.limit + 1)
        now = services.clock()
        views = [run_view(connection, str(row["id"]), now) for row in rows[: page.limit]]
    more = rows[page.limit :]
    return page_of([*views, *more], page, lambda row: row["number"], shown_run)


@router.get("/bill-runs/{run_id}", summary="Read a bill run", **described(answer=_RUN, also=(404, 422)))
def read_bill_run(request: Request, run_id: UUID, caller: Caller = Depends(may("billing:read"))) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        run = run_view(connection, str(run_id), services.clock())
    return json_response(shown_run(run))


@router.get(
    "/bill-runs/{run_id}/verify",
    summary="Derive a bill run's documents again and compare them",
    **described(
        answer={"proven": True, "documents": 40, "findings": [], "erased": [], "erased_count": 0, "gaps": []},
        also=(404, 422),
    ),
)
def verify_bill_run(request: Request, run_id: UUID, caller: Caller = Depends(may("billing:read"))) -> Response:
    """From the log and the master data of the run, to the cent; and looks for gaps in the series of numbers. `erased`
    are documents that cannot be derived any more, as what they rest on was erased, with the rule: neither proven nor
    wrong. Of these, and of findings, the first thousand are named."""
    services: Services = request.app.state.services
    proof = verify_run(
        services.database, services.store, services.masters, caller.tenant_id, str(run_id), services.desk
    )
    return json_response(
        {
            "proven": proof.proven,
            "documents": proof.documents,
            "findings": [plain(vars(each)) for each in proof.findings],
            "erased": [plain(vars(each)) for each in proof.erased],
            "erased_count": proof.erased_count,
            "gaps": plain(proof.gaps),
        }
    )


def _steered(path: str, word: str, summary: str) -> None:
    """A route that approves, pauses, resumes or cancels a run. The body is an empty object."""

    def post(
        request: Request,
        run_id: UUID,
        caller: Caller = Depends(may("billing:write")),
        form: Any = Depends(json_form),
    ) -> Response:
        known_keys(form, ())
        write = Write(request)
        services = write.services
        name = str(run_id)

        def work(connection: Connection) -> Answer:
            steer = driver(services)
            steer.get(caller.tenant_id, name)
            if word == "approve":
                steer.approve(caller.tenant_id, name, caller.actor)
            else:
                getattr(steer, word)(caller.tenant_id, name)
            audit.record(connection, caller.tenant_id, at=services.clock(), actor=caller.actor,
                         action=f"bill run: {word}", subject=name)  # fmt: skip
            return Answer(shown_run(steer.get(caller.tenant_id, name)), 202)

        answer = write.run(caller, work)
        if word in ("approve", "resume"):
            services.start_bill_run(caller.tenant_id, name, None)
        return answer

    router.add_api_route(
        path, post, methods=["POST"], summary=summary, name=f"bill_run_{word}",
        **described(request={}, answer=_RUN, status=202, also=WRITE_ERRORS),
    )  # fmt: skip


_steered("/bill-runs/{run_id}/approve", "approve", "Approve what a bill run has computed")
_steered("/bill-runs/{run_id}/pause", "pause", "Pause a bill run")
_steered("/bill-runs/{run_id}/resume", "resume", "Let a paused or interrupted bill run go on")
_steered("/bill-runs/{run_id}/cancel", "cancel", "Give up a bill run that is not approved")


# --- invoices and credit notes, as they are read

_ROW = {
    "id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "number": "RE-2026-000001",
    "type": "invoice",
    "customer": "acme",
    "customer_name": "ACME GmbH",
    "currency": "EUR",
    "date": "2026-02-01",
    "due_on": "2026-02-15",
    "net": "68.00",
    "tax": "12.92",
    "gross": "80.92",
    "prepaid": "0.00",
    "due": "80.92",
    "refers_to": None,
    "bill_run": None,
    "file": "archived",
    "file_reason": None,
    "origin": "platform",
}
INVOICE_EXAMPLE = _ROW | {
    "lines": [
        {
            "line": 1,
            "subscription": "s1",
            "charge": "storage",
            "from": "2026-01-10",
            "to": "2026-02-01",
            "quantity": "150",
            "amount": "15.00",
            "allowance": "0",
            "gross": None,
            "customer": None,
            "cost_centre": None,
            "tax": {"category": "S", "percent": "19"},
            "correction": False,
            "corrects": None,
            "explanation": {"exact": "15", "events": 1},
        }
    ],
    "allowances": [],
    "members": [],
    "group": None,
    "taxes": [{"category": "S", "percent": "19", "base": "68.00", "amount": "12.92"}],
    "referred_by": [],
    "rests_on": {
        "master": 812,
        "data_versions": {
            "product": "0.1.0",
            "time_zones": "2025b of the system",
            "currencies": "ISO 4217, list one of 2026-01-01",
            "tax_codes": "none (step 2), standard (step 1)",
        },
    },
}


def shown_row(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = {
        key: row[key]
        for key in ("id", "number", "type", "customer", "customer_name", "currency", "due_on", "net", "tax", "gross")
    }
    fields |= {key: row[key] for key in ("prepaid", "due", "refers_to", "reason", "sha256", "e_invoice")}
    fields |= {"date": row["issued_on"], "bill_run": row["run_id"], "file": row["file_state"]}
    fields["file_reason"] = row["file_reason"]
    fields["origin"] = "outside" if row["outside"] else "platform"  # outside: issued here, made elsewhere
    return cast("dict[str, Any]", plain(fields))


def shown_document(document: Document, timezone: str) -> dict[str, Any]:
    return {
        "lines": [_shown_line(number, line, timezone) for number, line in enumerate(document.lines, start=1)],
        "allowances": [
            {
                "kind": each.kind,
                "source": each.source,
                "amount": plain(each.amount),
                "gross": plain(each.gross),
                "tax": {"category": each.tax_category, "percent": plain(each.tax_percent)},
            }
            for each in document.allowances
        ],
        # Whose lines these are beside the customer's own (who pays for them), and what their own credit paid.
        "members": [
            {"customer": each.code, "name": each.name, "prepaid": plain(each.prepaid)} for each in document.members
        ],
        # Which of his lines these are, where the customer gets several documents, and what the head says of them.
        "group": shown_group(document),
        "taxes": [
            {
                "category": each.category,
                "percent": plain(each.percent),
                "base": plain(each.base),
                "amount": plain(each.amount),
            }
            for each in document.taxes
        ],
    }


def shown_group(document: Document) -> dict[str, str | None] | None:
    """`code` is the subscription, order or cost centre, empty for lines that name none."""
    group = document.group
    if group is None:
        return None
    names = ("order_reference", "buyer_reference", "cost_centre")
    return {"per": group.per, "code": group.code, **{name: getattr(group, name) or None for name in names}}


def _shown_line(number: int, line: Line, timezone: str) -> dict[str, Any]:
    return {
        "line": number,
        "subscription": line.subscription,
        "charge": line.charge,
        "kind": line.kind,
        "name": line.name,
        "plan": line.plan,
        "plan_version": line.plan_version,
        "when": dict(line.when) if line.when is not None else None,
        "from": local_moment(line.start, timezone),
        "to": local_moment(line.end, timezone),
        "quantity": plain(line.quantity),
        "unit": line.unit,
        "unit_price": plain(line.unit_price),
        "amount": plain(line.amount),
        "allowance": plain(line.allowance),
        "gross": plain(line.gross),
        "gross_allowance": plain(line.gross_allowance),
        "customer": line.customer or None,
        "add_on": line.add_on or None,
        "cost_centre": line.cost_centre or None,
        "tax": {"category": line.tax_category, "percent": plain(line.tax_percent), "code": line.tax_code},
        "correction": line.correction,
        "corrects": {"document": line.corrects.document, "line": line.corrects.line} if line.corrects else None,
        "explanation": plain(line.explanation),
    }


def local_moment(moment: datetime, timezone: str) -> str:
    """A local midnight as its date, any other moment as a time with offset."""
    local = moment.astimezone(zone(timezone))
    if (local.hour, local.minute, local.second, local.microsecond) == (0, 0, 0, 0):
        return local.date().isoformat()
    return local.isoformat()


@router.get(
    "/invoices",
    summary="List invoices and credit notes",
    **described(answer={"items": [_ROW], "next_cursor": None}, also=(422,)),
)
def list_invoices(
    request: Request,
    page: PageOf = Depends(paging),
    customer: str | None = Query(None, max_length=256, description="Only those of this customer."),
    type: str | None = Query(None, pattern="^(invoice|credit_note)$", description="`invoice` or `credit_note`."),
    bill_run: UUID | None = Query(None, description="Only those of this bill run."),
    since: date | None = Query(None, description="Dated on or after."),
    until: date | None = Query(None, description="Dated on or before."),
    search: str | None = Query(None, max_length=200, description="Part of number, customer code or name."),
    file: str | None = Query(
        None, pattern="^(wanted|archived|parked)$", description="Only those whose files are `wanted` and the like."
    ),
    order: str = Query("newest", pattern="^(newest|oldest)$", description="`newest` first, or `oldest`: as made."),
    origin: str | None = Query(
        None, pattern="^(platform|outside)$", description="Only those that were made by the `platform`, or `outside`."
    ),
    caller: Caller = Depends(may("billing:read")),
) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        rows = invoices.page(
            connection,
            after=uuid_cursor(page),
            limit=page.limit + 1,
            descending=order == "newest",
            customer=customer,
            type=type,
            run_id=str(bill_run) if bill_run else None,
            since=since,
            until=until,
            search=search,
            file_state=file,
            outside=None if origin is None else origin == "outside",
        )
    return page_of(rows, page, lambda row: str(row["id"]), shown_row)


def _file(request: Request, caller: Caller, number: str, kind: str, media: str) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        row = invoices.get(connection, number)
    if row["file_state"] != "archived":
        reason = f": {row['file_reason']}" if row["file_reason"] else ""
        raise NotFound(f"the files of {number} are not made yet ({row['file_state'] or 'wanted'}{reason})")
    _, data = services.archive.read(caller.tenant_id, archive_reader(services, caller), str(row["id"]), kind)
    name = "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in number)
    headers = {
        "Content-Disposition": f'inline; filename="{name}.{kind}"',
        "Cache-Control": "private, max-age=86400, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(data, media_type=media, headers=headers)


@router.get(
    "/invoices/{number:path}/pdf",
    summary="The PDF/A-3 of a document, from the archive",
    **described(answer=None, media="application/pdf", also=(404,)),
)
def invoice_pdf(request: Request, number: str, caller: Caller = Depends(may("billing:read"))) -> Response:
    return _file(request, caller, number, "pdf", "application/pdf")


@router.get(
    "/invoices/{number:path}/xml",
    summary="The EN 16931 XML of a document, from the archive",
    **described(answer=None, media="application/xml", also=(404,)),
)
def invoice_xml(request: Request, number: str, caller: Caller = Depends(may("billing:read"))) -> Response:
    return _file(request, caller, number, "xml", "application/xml")


@router.post(
    "/invoices/{number:path}/files",
    summary="Make the files of a document that could not be made",
    **described(request={}, answer=_ROW | {"file": "wanted"}, status=202, also=WRITE_ERRORS),
)
def post_files(
    request: Request, number: str, caller: Caller = Depends(may("billing:write")), form: Any = Depends(json_form)
) -> Response:
    """Of one whose `file` is `parked`, once what `file_reason` says is mended: with the layout in use, the customer's
    and the legal entity's data as they are now. Amounts, lines and dates stay. They are made before the answer comes
    if nothing is away: read the document to see `archived`, or the next reason. A document that is archived is a
    conflict (409)."""
    known_keys(form, ())
    write = Write(request)

    def work(connection: Connection) -> Answer:
        now = write.services.clock()
        want_again(connection, caller.tenant_id, number, now)
        audit.record(connection, caller.tenant_id, at=now, actor=caller.actor, action="files made again",
                     subject=number)  # fmt: skip
        return Answer(shown_row(invoices.get(connection, number)), 202)

    answer = write.run(caller, work)
    make_wanted_files(write.services, caller.tenant_id, msgspec.json.decode(answer.body)["id"])
    return answer


def make_wanted_files(services: Services, tenant_id: str, document_id: str) -> None:
    """At once, for whoever waits to see them; where something is away, upkeep makes them later."""
    try:
        make_files(services.database, services.archive, tenant_id, services.clock, document_id=document_id)
    except BillingError as error:
        LOG.warning("the files of a document wait: %s", error.detail)


@router.get(
    "/invoices/{number:path}",
    summary="Read an invoice or credit note with its lines",
    **described(answer=INVOICE_EXAMPLE, also=(404,)),
)
def read_invoice(request: Request, number: str, caller: Caller = Depends(may("billing:read"))) -> Response:
    """Each line explains its amount: events, tiers, proration, rounding. `rests_on` names the versions of master data,
    time zones, currencies and tax codes of its bill run (null for a credit note by hand). Of `origin` `outside` are
    invoices that were made elsewhere and issued here: their lines explain nothing, and no bill run knows of them."""
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        row = invoices.get(connection, number)
        run = bill_runs.get(connection, str(row["run_id"])) if row["run_id"] is not None else None
    body = shown_row(row) | shown_document(row["document"], caller.timezone)
    body |= {"buyer": plain(row["buyer"]), "referred_by": plain(row["referred_by"])}
    rests_on = {"master": run["master_number"], "data_versions": run["data_versions"]} if run is not None else None
    return json_response(body | {"rests_on": rests_on})
