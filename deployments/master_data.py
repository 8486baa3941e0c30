"""Catalog and contracts over REST: tax codes, meters, plans, customers, subscriptions, budgets, wallets.

Each route turns its form into steps of master data and appends them; the core reads the forms (docs/rules.md) and
names every mistake. Nothing is decided here.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from billing.catalog import Plan
from billing.catalog_forms import parse_plan
from billing.errors import Conflict, FieldError, InvalidInput, NotAllowed
from billing.periods import TimeInvalid, parse_moment
from billing.plan_warnings import plan_warnings
from deployments import examples
from deployments.access import Caller, may
from deployments.bodies import json_form, known_keys
from deployments.manners import (
    Answer,
    PageOf,
    Write,
    described,
    etag,
    json_response,
    page_of,
    paging,
    plain,
    rfc3339,
    tenant_now,
    text_cursor,
)
from deployments.services import Services
from storage.sql import master_records, plan_drafts
from storage.sql import steps as master_steps
from storage.sql.database import Connection

router = APIRouter(prefix="/v1")
CATALOG_STEPS = frozenset({"tax_code", "meter", "publish"})
CONTRACT_STEPS = frozenset(
    {
        *("customer", "subscribe", "change", "quantity", "override", "cancel", "pause", "resume"),
        *("add_on", "remove_add_on", "references", "documents"),
        *("top_up", "budget", "ad_hoc"),
    }
)


# --- how a form becomes a change


def moment_of_change(write: Write, connection: Connection, caller: Caller, at: str | None) -> str:
    """When a change takes effect: now, or a moment in the past that the caller names."""
    now = tenant_now(write.services, connection, caller)
    if at is None:
        return now.isoformat()
    _not_later(at, now, caller, "query:at")
    return at


def _not_later(at: Any, now: datetime, caller: Caller, pointer: str) -> None:
    try:
        moment = parse_moment(at, caller.timezone)
    except TimeInvalid as error:
        raise InvalidInput(f"{pointer}: {error}", errors=[FieldError(pointer, str(error))]) from error
    if moment > now:
        detail = f"{at} is after now ({now.isoformat()}): a change is written when it happens"
        raise InvalidInput(f"{pointer}: {detail}", errors=[FieldError(pointer, detail)])


def append(
    write: Write,
    connection: Connection,
    caller: Caller,
    step: Mapping[str, Any],
    *,
    expected: Mapping[tuple[str, str], int] | None = None,
) -> master_steps.AppendedChange:
    """One step; pointers of mistakes are those of the form that was sent, not of the step around it."""
    kind = next(key for key in step if key != "at")
    prefix = f"/0/{kind}"
    try:
        return master_steps.append_steps(
            connection, caller.tenant_id, [step], caller.actor, now=write.services.clock(), expected=expected
        )
    except InvalidInput as error:
        fields = [FieldError(each.pointer.removeprefix(prefix), each.detail) for each in error.errors]
        raise InvalidInput(error.detail.replace(prefix + "/", "/"), errors=fields) from error


def shown(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as the API shows it: its code and version, then its form as it was sent last."""
    return {
        "code": record["code"],
        "version": record["version"],
        "form": plain(record["form"]),
    }


def _code_of(form: Any) -> str:
    code = form.get("code") if isinstance(form, dict) else None
    return code if isinstance(code, str) else ""


@router.post(
    "/steps",
    tags=["Catalog", "Contracts"],
    summary="Make many changes at once",
    **described(request=examples.STEPS, answer=examples.STEPS_ANSWER, status=201, also=(400, 409, 412, 413, 415, 422)),
)
def post_steps(
    request: Request,
    caller: Caller = Depends(may("catalog:write", "contracts:write")),
    form: Any = Depends(json_form),
) -> Response:
    """Up to 10,000 steps of a scenario (`tax_code`, `meter`, `publish`, `customer`, `subscribe`, `change`, `quantity`,
    `override`, `cancel`, `pause`, `resume`, `add_on`, `remove_add_on`, `references`, `documents`, `top_up`, `budget`,
    `ad_hoc`), as one change: all, or none and every mistake with its place. A step without `at` happens now."""
    write = Write(request)
    steps = _steps_of(form, caller, write.services.limits.steps_max)

    def work(connection: Connection) -> Answer:
        now = tenant_now(write.services, connection, caller)
        for place, step in enumerate(steps):
            if "at" in step:
                _not_later(step["at"], now, caller, f"/{place}/at")
        dated = [{"at": now.isoformat(), **step} for step in steps]
        change = master_steps.append_steps(
            connection, caller.tenant_id, dated, caller.actor, now=write.services.clock()
        )
        body = {
            "steps": len(steps),
            "first_step": change.first_step,
            "last_step": change.last_step,
            "master": change.number,
        }
        return Answer(body, 201, master=change.number)

    return write.run(caller, work)


def _steps_of(form: Any, caller: Caller, steps_max: int) -> list[dict[str, Any]]:
    if not isinstance(form, list) or not 1 <= len(form) <= steps_max:
        detail = f"a JSON array of 1 to {steps_max:,} steps is needed"
        raise InvalidInput(detail, errors=[FieldError("", detail)])
    errors: list[FieldError] = []
    for place, step in enumerate(form):
        kinds = [key for key in step if key != "at"] if isinstance(step, dict) else []
        if len(kinds) != 1 or kinds[0] not in CATALOG_STEPS | CONTRACT_STEPS:
            errors.append(FieldError(f"/{place}", f"a step has `at` and one of {_names()}"))
        elif not isinstance(step[kinds[0]], dict):
            errors.append(FieldError(f"/{place}/{kinds[0]}", "an object is needed"))
        else:
            scope = "catalog:write" if kinds[0] in CATALOG_STEPS else "contracts:write"
            if scope not in caller.scopes:
                raise NotAllowed(f"step {place} ({kinds[0]}) needs the scope {scope}", scope=scope)
    if errors:
        raise InvalidInput(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)
    return form


def _names() -> str:
    return ", ".join(sorted(CATALOG_STEPS | CONTRACT_STEPS))


# --- things with a code that are made and changed whole


def _resource(path: str, kind: str, words: tuple[str, str], area: str, tag: str, example: dict[str, Any]) -> None:
    """Routes of one kind of thing: list, create, read, change, history."""
    one, many = words
    read, change_scope = may(f"{area}:read"), may(f"{area}:write")
    name = path.replace("-", "_")

    def list_them(
        request: Request,
        page: PageOf = Depends(paging),
        search: str | None = Query(None, max_length=200, description="Part of the code or the name."),
        caller: Caller = Depends(read),
    ) -> Response:
        services: Services = request.app.state.services
        with services.database.tenant(caller.tenant_id) as connection:
            rows = master_records.page(connection, kind, after=text_cursor(page), limit=page.limit + 1, search=search)
        return page_of(rows, page, lambda row: row["code"], shown)

    def create_one(
        request: Request,
        caller: Caller = Depends(change_scope),
        form: Any = Depends(json_form),
        at: str | None = Query(None, max_length=40, description="When it takes effect; in the past, default now."),
    ) -> Response:
        write = Write(request)

        def work(connection: Connection) -> Answer:
            if master_records.version(connection, kind, _code_of(form)) is not None:
                raise Conflict(f"there is {one} {_code_of(form)!r} already; change it by PUT")
            return _kept(write, connection, caller, form, at, 201, None)

        return write.run(caller, work)

    def _kept(
        write: Write,
        connection: Connection,
        caller: Caller,
        form: Any,
        at: str | None,
        status: int,
        expected: Mapping[tuple[str, str], int] | None,
    ) -> Answer:
        moment = moment_of_change(write, connection, caller, at)
        change = append(write, connection, caller, {"at": moment, kind: form}, expected=expected)
        record = master_records.get(connection, kind, _code_of(form))
        return Answer(shown(record), status, {"ETag": etag(record["version"])}, change.number)

    def read_one(request: Request, code: str, caller: Caller = Depends(read)) -> Response:
        return read_record(request, caller, kind, code)

    def change_one(
        request: Request,
        code: str,
        caller: Caller = Depends(change_scope),
        form: Any = Depends(json_form),
        at: str | None = Query(None, max_length=40, description="When it takes effect; in the past, default now."),
    ) -> Response:
        write = Write(request)
        if _code_of(form) != code:
            raise InvalidInput(
                "the code cannot change", errors=[FieldError("/code", f"must be {code!r} as in the URL")]
            )

        def work(connection: Connection) -> Answer:
            expected = {(kind, code): write.expected} if write.expected is not None else None
            known = master_records.version(connection, kind, code) is not None
            return _kept(write, connection, caller, form, at, 200 if known else 201, expected)

        return write.run(caller, work)

    def history_of(request: Request, code: str, caller: Caller = Depends(read)) -> Response:
        return read_history(request, caller, kind, code)

    errors = (400, 409, 412, 413, 415, 422)
    add = router.add_api_route
    stored = examples.record(example)
    add(f"/{path}", list_them, methods=["GET"], tags=[tag], summary=f"List {many}", name=f"list_{name}",
        **described(answer=examples.listed(stored), also=(422,)))  # fmt: skip
    add(f"/{path}", create_one, methods=["POST"], tags=[tag], summary=f"Create {one}", name=f"create_{name}",
        **described(request=example, answer=stored, status=201, also=errors))  # fmt: skip
    add(f"/{path}/{{code:path}}/history", history_of, methods=["GET"], tags=[tag], name=f"history_{name}",
        summary=f"Who changed {one}, when, before and after",
        **described(answer=examples.history(kind, example), also=(404,)))  # fmt: skip
    add(f"/{path}/{{code:path}}", read_one, methods=["GET"], tags=[tag], summary=f"Read {one}", name=f"read_{name}",
        **described(answer=stored, also=(404,)))  # fmt: skip
    add(f"/{path}/{{code:path}}", change_one, methods=["PUT"], tags=[tag], name=f"change_{name}",
        summary=f"Create or change {one}",
        **described(request=example, answer=stored, also=errors))  # fmt: skip


def read_record(request: Request, caller: Caller, kind: str, code: str) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        record = master_records.get(connection, kind, code)
    tag = etag(record["version"])
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    return json_response(shown(record), headers={"ETag": tag})


def read_history(request: Request, caller: Caller, kind: str, code: str) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        record = master_records.get(connection, kind, code)
        rows = master_steps.history(connection, kind, code)
    items: list[dict[str, Any]] = []
    after, newer = record["form"], None
    for row in rows:
        if newer is not None and newer["number"] != row["number"]:
            after = newer["before"]  # steps of one change have the same before and after: that of the change
        newer = row
        items.append(
            {
                "step": row["step"],
                "master": row["number"],
                "kind": row["kind"],
                "form": plain(row["form"]),
                "before": plain(row["before"]),
                "after": plain(after),
                "actor": row["actor"],
                "changed_at": rfc3339(row["changed_at"]),
            }
        )
    return json_response({"items": items})


_resource("tax-codes", "tax_code", ("a tax code", "tax codes"), "catalog", "Catalog", examples.TAX_CODE)
_resource("meters", "meter", ("a meter", "meters"), "catalog", "Catalog", examples.METER)
_resource("customers", "customer", ("a customer", "customers"), "contracts", "Contracts", examples.CUSTOMER)
_resource("budgets", "budget", ("a budget", "budgets"), "contracts", "Contracts", examples.BUDGET)


# --- plans: draft, then published versions that never change

_PLAN_ERRORS = (400, 409, 412, 413, 415, 422)
_PUBLISHED = examples.record(examples.PLAN) | {"warnings": []}


@router.get(
    "/plans",
    tags=["Catalog"],
    summary="List published plans",
    **described(answer=examples.listed(examples.record(examples.PLAN)), also=(422,)),
)
def list_plans(
    request: Request,
    page: PageOf = Depends(paging),
    search: str | None = Query(None, max_length=200, description="Part of the code or the name."),
    caller: Caller = Depends(may("catalog:read")),
) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        rows = master_records.page(connection, "plan", after=text_cursor(page), limit=page.limit + 1, search=search)
    return page_of(rows, page, lambda row: row["code"], shown)


@router.post(
    "/plans",
    tags=["Catalog"],
    summary="Publish a plan or a new version of it",
    **described(request=examples.PLAN, answer=_PUBLISHED, status=201, also=_PLAN_ERRORS),
)
def publish_plan(
    request: Request,
    caller: Caller = Depends(may("catalog:write")),
    form: Any = Depends(json_form),
    at: str | None = Query(None, max_length=40, description="When it takes effect; in the past, default now."),
) -> Response:
    """A published version never changes; running subscriptions keep theirs, new ones take the newest. `warnings` name
    price rows and bands that are never used, because one above them takes all of theirs."""
    write = Write(request)

    def work(connection: Connection) -> Answer:
        return _published(write, connection, caller, form, at)

    return write.run(caller, work)


def _published(write: Write, connection: Connection, caller: Caller, form: Any, at: str | None) -> Answer:
    moment = moment_of_change(write, connection, caller, at)
    step = {"at": moment, "publish": {"plan": form}}
    try:
        change = append(write, connection, caller, step)
    except InvalidInput as error:
        fields = [FieldError(each.pointer.removeprefix("/plan"), each.detail) for each in error.errors]
        raise InvalidInput(error.detail, errors=fields) from error
    record = master_records.get(connection, "plan", _code_of(form))
    body = shown(record) | {"warnings": _warnings(change.master.plan(_code_of(form)))}
    return Answer(body, 201, {"ETag": etag(record["version"])}, change.number)


def _warnings(plan: Plan) -> list[dict[str, str]]:
    return [{"pointer": one.pointer, "detail": one.detail} for one in plan_warnings(plan)]


_DRAFT = {
    "code": "basic",
    "version": 1,
    "form": examples.PLAN,
    "updated_at": "2026-01-10T08:00:00Z",
    "warnings": [{"pointer": "/charges/1/prices/4", "detail": "is never used: row 0 above takes all of its usage"}],
}


def _shown_draft(draft: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "code": draft["code"],
        "version": draft["version"],
        "form": plain(draft["form"]),
        "updated_at": rfc3339(draft["updated_at"]),
        "warnings": _warnings_of_draft(draft["form"]),
    }


def _warnings_of_draft(form: Any) -> list[dict[str, str]]:
    """A draft may have been stored under older rules: what is wrong with it by today's is shown as well."""
    try:
        return _warnings(parse_plan(form))
    except InvalidInput as error:
        return [{"pointer": one.pointer, "detail": one.detail} for one in error.errors]


@router.get(
    "/plan-drafts",
    tags=["Catalog"],
    summary="List drafts of plans",
    **described(answer=examples.listed(_DRAFT), also=(422,)),
)
def list_drafts(
    request: Request, page: PageOf = Depends(paging), caller: Caller = Depends(may("catalog:read"))
) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        rows = plan_drafts.page(connection, after=text_cursor(page), limit=page.limit + 1)
    return page_of(rows, page, lambda row: row["code"], _shown_draft)


@router.post(
    "/plan-drafts/{code:path}/publish",
    tags=["Catalog"],
    summary="Publish a draft",
    **described(request={}, answer=_PUBLISHED, status=201, also=(404, *_PLAN_ERRORS)),
)
def publish_draft(
    request: Request,
    code: str,
    caller: Caller = Depends(may("catalog:write")),
    form: Any = Depends(json_form),
    at: str | None = Query(None, max_length=40, description="When it takes effect; in the past, default now."),
) -> Response:
    """The draft becomes the plan's newest version and is gone as a draft. The body is an empty object."""
    known_keys(form, ())
    write = Write(request)

    def work(connection: Connection) -> Answer:
        draft = plan_drafts.get(connection, code)
        if write.expected is not None:
            plan_drafts.put(connection, caller.tenant_id, code, draft["form"], actor=caller.actor,
                            now=write.services.clock(), expected=write.expected)  # fmt: skip
        plan_drafts.remove(connection, code)
        return _published(write, connection, caller, draft["form"], at)

    return write.run(caller, work)


@router.get(
    "/plan-drafts/{code:path}",
    tags=["Catalog"],
    summary="Read a draft",
    **described(answer=_DRAFT, also=(404,)),
)
def read_draft(request: Request, code: str, caller: Caller = Depends(may("catalog:read"))) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        draft = plan_drafts.get(connection, code)
    return json_response(_shown_draft(draft), headers={"ETag": etag(draft["version"])})


@router.put(
    "/plan-drafts/{code:path}",
    tags=["Catalog"],
    summary="Create or change a draft",
    **described(request=examples.PLAN, answer=_DRAFT, also=_PLAN_ERRORS),
)
def put_draft(
    request: Request,
    code: str,
    caller: Caller = Depends(may("catalog:write")),
    form: Any = Depends(json_form),
) -> Response:
    """A draft has the form of a plan and is checked like one; its meters and tax codes may still be missing."""
    write = Write(request)
    plan = parse_plan(form)
    if plan.code != code:
        raise InvalidInput("the code cannot change", errors=[FieldError("/code", f"must be {code!r} as in the URL")])

    def work(connection: Connection) -> Answer:
        now = write.services.clock()
        plan_drafts.put(connection, caller.tenant_id, code, form, actor=caller.actor, now=now, expected=write.expected)
        draft = plan_drafts.get(connection, code)
        return Answer(_shown_draft(draft), 200, {"ETag": etag(draft["version"])})

    return write.run(caller, work)


@router.delete(
    "/plan-drafts/{code:path}",
    tags=["Catalog"],
    summary="Throw a draft away",
    **described(answer={"code": "basic", "removed": True}, also=(404,)),
)
def remove_draft(request: Request, code: str, caller: Caller = Depends(may("catalog:write"))) -> Response:
    write = Write(request)

    def work(connection: Connection) -> Answer:
        plan_drafts.remove(connection, code)
        return Answer({"code": code, "removed": True})

    return write.run(caller, work)


@router.get(
    "/plans/{code:path}/history",
    tags=["Catalog"],
    summary="Who published which version, and when",
    **described(answer=examples.history("publish", {"plan": examples.PLAN}), also=(404,)),
)
def plan_history(request: Request, code: str, caller: Caller = Depends(may("catalog:read"))) -> Response:
    return read_history(request, caller, "plan", code)


@router.get(
    "/plans/{code:path}",
    tags=["Catalog"],
    summary="Read a plan",
    **described(answer=examples.record(examples.PLAN), also=(404,)),
)
def read_plan(request: Request, code: str, caller: Caller = Depends(may("catalog:read"))) -> Response:
    return read_record(request, caller, "plan", code)


# --- subscriptions and what happens to them


@router.get(
    "/subscriptions",
    tags=["Contracts"],
    summary="List subscriptions",
    **described(answer=examples.listed(examples.record(examples.SUBSCRIPTION)), also=(422,)),
)
def list_subscriptions(
    request: Request,
    page: PageOf = Depends(paging),
    customer: str | None = Query(None, max_length=256, description="Only those of this customer."),
    plan: str | None = Query(None, max_length=256, description="Only those on this plan."),
    search: str | None = Query(None, max_length=200, description="Part of the code or the name."),
    caller: Caller = Depends(may("contracts:read")),
) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        rows = master_records.page(
            connection,
            "subscription",
            after=text_cursor(page),
            limit=page.limit + 1,
            search=search,
            parent=customer,
            plan=plan,
        )
    return page_of(rows, page, lambda row: row["code"], shown)


def _event_of_contract(
    path: str, kind: str, summary: str, example: dict[str, Any], about: tuple[str, str], status: int = 200
) -> None:
    """A route whose body is the form of one kind of step; it answers with the record that the step made or changed."""
    record_kind, key = about

    def post(
        request: Request,
        caller: Caller = Depends(may("contracts:write")),
        form: Any = Depends(json_form),
        at: str | None = Query(None, max_length=40, description="When it happens; in the past, default now."),
    ) -> Response:
        write = Write(request)
        code = form.get(key) if isinstance(form, dict) else None
        code = code if isinstance(code, str) else ""

        def work(connection: Connection) -> Answer:
            if kind == "subscribe" and master_records.version(connection, record_kind, code) is not None:
                raise Conflict(f"there is a subscription {code!r} already")
            moment = moment_of_change(write, connection, caller, at)
            expected = {(record_kind, code): write.expected} if write.expected is not None else None
            change = append(write, connection, caller, {"at": moment, kind: form}, expected=expected)
            record = master_records.get(connection, record_kind, code)
            return Answer(shown(record), status, {"ETag": etag(record["version"])}, change.number)

        return write.run(caller, work)

    answer = examples.SUBSCRIPTION if record_kind == "subscription" else examples.CUSTOMER
    router.add_api_route(
        path, post, methods=["POST"], tags=["Contracts"], summary=summary, name=f"post_{kind}",
        **described(request=example, answer=examples.record(answer), status=status,
                    also=(400, 404, 409, 412, 413, 415, 422)),
    )  # fmt: skip


_OF_SUBSCRIPTION = ("subscription", "subscription")
_event_of_contract(
    "/subscriptions", "subscribe", "Subscribe a customer", examples.SUBSCRIPTION, ("subscription", "code"), 201
)
_event_of_contract("/subscriptions/change", "change", "Change the plan", examples.CHANGE, _OF_SUBSCRIPTION)
_event_of_contract("/subscriptions/quantity", "quantity", "Change a quantity", examples.QUANTITY, _OF_SUBSCRIPTION)
_event_of_contract("/subscriptions/override", "override", "Set a price of its own", examples.OVERRIDE, _OF_SUBSCRIPTION)
_event_of_contract("/subscriptions/cancel", "cancel", "Cancel a subscription", examples.CANCEL, _OF_SUBSCRIPTION)
_event_of_contract("/subscriptions/pause", "pause", "Pause a subscription", examples.PAUSE, _OF_SUBSCRIPTION)
_event_of_contract("/subscriptions/resume", "resume", "Let a subscription go on", examples.PAUSE, _OF_SUBSCRIPTION)
_event_of_contract("/subscriptions/add-on", "add_on", "Add a second plan to a subscription", examples.ADD_ON,
                   _OF_SUBSCRIPTION, 201)  # fmt: skip
_event_of_contract("/subscriptions/remove-add-on", "remove_add_on", "Remove an add-on", examples.REMOVE_ADD_ON,
                   _OF_SUBSCRIPTION)  # fmt: skip
_event_of_contract("/subscriptions/references", "references", "Say order, cost centre or buyer reference",
                   examples.REFERENCES, _OF_SUBSCRIPTION)  # fmt: skip
_event_of_contract("/ad-hoc-charges", "ad_hoc", "Charge or credit something on the next document", examples.AD_HOC,
                   ("customer", "customer"), 201)  # fmt: skip
_event_of_contract("/top-ups", "top_up", "Top up a wallet", examples.TOP_UP, ("customer", "customer"), 201)


@router.get(
    "/subscriptions/{code:path}/history",
    tags=["Contracts"],
    summary="Who changed a subscription, when, before and after",
    **described(answer=examples.history("subscribe", examples.SUBSCRIPTION), also=(404,)),
)
def subscription_history(request: Request, code: str, caller: Caller = Depends(may("contracts:read"))) -> Response:
    return read_history(request, caller, "subscription", code)


@router.get(
    "/subscriptions/{code:path}",
    tags=["Contracts"],
    summary="Read a subscription",
    **described(answer=examples.record(examples.SUBSCRIPTION), also=(404,)),
)
def read_subscription(request: Request, code: str, caller: Caller = Depends(may("contracts:read"))) -> Response:
    return read_record(request, caller, "subscription", code)
