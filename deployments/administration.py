"""Tenants, keys, users, legal entities, test clock and the record of what people did."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from billing.einvoice.addresses import check_seller
from billing.errors import FieldError, InvalidInput, NotFound, PreconditionFailed
from billing.forms import Form, Mistakes
from billing.master import MasterData
from billing.numbers import check_patterns, patterns_of
from billing.periods import TimeInvalid, parse_moment
from billing.steps.tenant import read_sources
from deployments.access import (
    PLATFORM_SCOPE_TEXTS,
    PLATFORM_SCOPES,
    ROLES,
    SCOPES,
    TENANT_SCOPES,
    Caller,
    Gate,
    may,
)
from deployments.bodies import json_form, known_keys, text_of
from deployments.key_limits import parse_limits
from deployments.manners import (
    Answer,
    PageOf,
    Write,
    described,
    etag,
    json_response,
    number_cursor,
    page_of,
    paging,
    plain,
    rfc3339,
    tenant_now,
    text_cursor,
    uuid_cursor,
)
from deployments.services import Services
from storage.sql import audit, bill_runs, keys, tenants, users
from storage.sql import steps as master_steps
from storage.sql.database import Connection

router = APIRouter(prefix="/v1", tags=["Administration"])
_ERRORS = (400, 409, 413, 415, 422)

_TENANT_FORM = {
    "code": "north-cloud",
    "name": "North Cloud GmbH",
    "kind": "live",
    "currency": "EUR",
    "timezone": "Europe/Berlin",
    "country": "DE",
    "late_usage": "delta",
    "legal_entity": {
        "name": "North Cloud GmbH",
        "vat_id": "DE123456789",
        "address": {"street": "Hafenstraße 7", "post_code": "20457", "city": "Hamburg"},
    },
}
_TENANT = {
    "id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "code": "north-cloud",
    "name": "North Cloud GmbH",
    "kind": "live",
    "currency": "EUR",
    "timezone": "Europe/Berlin",
    "country": "DE",
    "generated": False,
    "test_clock": None,
    "created_at": "2026-01-10T08:00:00Z",
}
_KEY_TEXT = "cb_Zk3vYq0hGxu7o1mW2sT9aQeRfLp4JdNcXyBiVwKtHzU"
_NEW_TENANT = _TENANT | {
    "tenant": "north-cloud",
    "key": _KEY_TEXT,
    "key_id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e12",
}


def _shown(tenant: tenants.Tenant) -> dict[str, Any]:
    return {
        "id": tenant.id,
        "code": tenant.code,
        "name": tenant.name,
        "kind": tenant.kind,
        "currency": tenant.currency,
        "timezone": tenant.timezone,
        "country": tenant.country,
        "generated": tenant.generated,
        "test_clock": rfc3339(tenant.test_clock),
        "created_at": rfc3339(tenant.created_at),
    }


@router.post(
    "/tenants",
    summary="Make a tenant",
    **described(request=_TENANT_FORM, answer=_NEW_TENANT, status=201, also=_ERRORS),
)
async def post_tenant(
    request: Request, caller: Caller = Depends(may("tenants:create")), form: Any = Depends(json_form)
) -> Response:
    """Needs a platform key. The answer holds the new tenant's first API key, with all scopes: it is shown only here.

    `kind: test` makes a tenant with a clock of its own (`test_clock` sets it, else it is now); `generated: true` marks
    its data as made up.
    """
    write = Write(request)
    services = write.services
    now = services.clock()
    form = dict(known_keys(form, (*_TENANT_KEYS,), ("code",)))
    generated = form.pop("generated", False)
    clock = form.pop("test_clock", None)
    code = text_of(form, "code")
    form["name"] = text_of(form, "name", code, 500)
    form["kind"] = form.get("kind", "live")
    if form["kind"] not in ("live", "test") or not isinstance(generated, bool):
        raise InvalidInput("kind is live or test", errors=[FieldError("/kind", "must be live or test")])
    master = MasterData.start(form)
    form["currency"], form["timezone"] = master.tenant.currency, master.tenant.timezone
    form["country"] = master.tenant.country
    _check_settings(form.get("settings"))
    entity = form.get("legal_entity") or {}
    if not isinstance(entity, dict):
        raise InvalidInput("an object is needed", errors=[FieldError("/legal_entity", "an object is needed")])
    _check_series(entity)
    check_seller(entity, "/legal_entity")
    moved = _moment(clock, master.tenant.timezone, "/test_clock") if clock is not None else None
    if moved is not None and form["kind"] != "test":
        raise InvalidInput("only a test tenant has a clock", errors=[FieldError("/test_clock", "kind is not test")])
    text = write.new_secret(request, f"tenant {code}")

    def work(connection: Connection) -> Answer:
        made = tenants.create(
            connection,
            code=code,
            name=form["name"],
            kind=form["kind"],
            form=form,
            generated=generated,
            now=now,
            test_clock=moved,
        )
        first = keys.create(
            connection, tenant_id=made.id, name="first key", scopes=TENANT_SCOPES, actor=caller.actor, now=now, key=text
        )
        tenants.enter(connection, made.id)
        tenants.put_legal_entity(
            connection,
            made.id,
            tenants.DEFAULT_ENTITY,
            {"name": form["name"], **entity},
            country=made.country,
            now=now,
            is_default=True,
        )
        number = master_steps.start_master(connection, made.id, form, caller.actor, now)
        audit.record(
            connection, made.id, at=now, actor=caller.actor, action="tenant made", subject=code, after=_shown(made)
        )
        body = _shown(made) | {"tenant": code, "key_id": first.id}
        return Answer(body, 201, {"Tenant": made.id}, number)

    answer = await asyncio.to_thread(write.run_as_system, caller, work, {"key": text})
    if moved is not None:
        await services.router.advance_clock(answer.headers["Tenant"], moved)
    return answer


_TENANT_KEYS = (
    "code",
    "name",
    "kind",
    "currency",
    "timezone",
    "country",
    "late_usage",
    "document_per",
    "future_limit",
    "language",
    "legal_entity",
    "parking",
    "settings",
    "generated",
    "test_clock",
)


def _check_settings(settings: Any) -> None:
    if isinstance(settings, dict) and "unique_within_customer" in settings:
        mistakes = Mistakes()
        read_sources(Form(settings, "/settings", mistakes))
        mistakes.check()


def _moment(value: Any, timezone: str, pointer: str) -> datetime:
    try:
        return parse_moment(value, timezone)
    except TimeInvalid as error:
        raise InvalidInput(f"{pointer}: {error}", errors=[FieldError(pointer, str(error))]) from error


@router.get(
    "/tenants",
    summary="List all tenants (platform key)",
    **described(answer={"items": [_TENANT], "next_cursor": None}, also=(422,)),
)
def list_tenants(
    request: Request, page: PageOf = Depends(paging), caller: Caller = Depends(may("tenants:read"))
) -> Response:
    services: Services = request.app.state.services
    with services.database.system() as connection:
        rows = tenants.page(connection, after=text_cursor(page), limit=page.limit + 1)
    return page_of(rows, page, lambda row: row.code, _shown)


@router.get("/tenant", summary="Read one's own tenant", **described(answer=_TENANT | {"scopes": ["usage:read"]}))
def read_tenant(request: Request, caller: Caller = Depends(may("access:read"))) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        tenant = tenants.by_id(connection, caller.tenant_id)
    return json_response(_shown(tenant) | {"form": plain(tenant.form), "scopes": sorted(caller.scopes)})


@router.post(
    "/test-clock/advance",
    summary="Move the clock of a test tenant forward",
    **described(request={"to": "2026-02-01"}, answer={"now": "2026-01-31T23:00:00Z"}, also=_ERRORS),
)
async def advance_test_clock(
    request: Request, caller: Caller = Depends(may("access:write")), form: Any = Depends(json_form)
) -> Response:
    """It stands for `now` and for the time of arrival everywhere in the tenant: usage ahead of time, expiry, budgets,
    document dates. The answer comes when all shards have the new time. Never possible in a live tenant (409), and
    never back. The header `Master` names the newest change of master data."""
    write = Write(request)
    form = known_keys(form, ("to",), ("to",))
    to = _moment(form["to"], caller.timezone, "/to")

    def work(connection: Connection) -> Answer:
        before = tenant_now(write.services, connection, caller)
        moved = tenants.advance_test_clock(connection, caller.tenant_id, to)
        audit.record(
            connection,
            caller.tenant_id,
            at=write.services.clock(),
            actor=caller.actor,
            action="test clock moved",
            subject=caller.tenant_code,
            before={"now": rfc3339(before)},
            after={"now": rfc3339(moved)},
        )
        number, _ = master_steps.current(connection, caller.tenant_id)
        return Answer({"now": rfc3339(moved)}, master=number)

    answer = await asyncio.to_thread(write.run, caller, work)
    # The database decided that the clock may move. Repeating costs nothing: a call that was cut off is sent again.
    await write.services.router.advance_clock(caller.tenant_id, to)
    return answer


# --- keys

_KEY = {
    "id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "name": "metering gateway",
    "start": "cb_Zk3vYq0hG",
    "scopes": ["usage:write"],
    "created_at": "2026-01-10T08:00:00Z",
    "created_by": "user ann@example.org",
    "expires_at": None,
    "revoked_at": None,
    "limits": {"requests_per_s": 50, "events_per_s": 20_000, "events_burst": 100_000},
}


@router.get("/keys", summary="List API keys", **described(answer={"items": [_KEY], "next_cursor": None}, also=(422,)))
def list_keys(
    request: Request, page: PageOf = Depends(paging), caller: Caller = Depends(may("access:read"))
) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        rows = keys.page(connection, after=uuid_cursor(page), limit=page.limit + 1)
    return page_of(rows, page, lambda row: str(row["id"]), plain)


@router.post(
    "/keys",
    summary="Make an API key",
    **described(
        request={"name": "metering gateway", "scopes": ["usage:write"], "limits": {"events_per_s": 20_000}},
        answer=_KEY | {"key": _KEY_TEXT},
        status=201,
        also=(*_ERRORS, 404),
    ),
)
def post_key(
    request: Request,
    caller: Caller = Depends(may("access:write", "tenants:create")),
    form: Any = Depends(json_form),
) -> Response:
    """The key is in this answer and nowhere else; it is stored as a hash. Nobody gives away a scope that they do not
    have. A platform key names the tenant (`tenant: CODE`), or makes another platform key without it. `limits`: how
    many requests and events a second the key may send, and at once (`..._burst`, twice the rate if not said); beyond it
    429 with `Retry-After`, and each answer says what is left (`RateLimit`)."""
    write = Write(request)
    form = known_keys(form, ("tenant", "name", "scopes", "expires_at", "limits"), ("name", "scopes"))
    limits = parse_limits(form.get("limits"))
    name = text_of(form, "name")
    expires = form.get("expires_at")
    expires_at = _moment(expires, caller.timezone, "/expires_at") if expires is not None else None
    text = write.new_secret(request, f"key {name}")
    now = write.services.clock()

    def work(connection: Connection) -> Answer:
        tenant_id = _named_tenant(connection, caller, form)
        allowed = caller.scopes if not caller.platform else (TENANT_SCOPES if tenant_id else PLATFORM_SCOPES)
        scopes = _scopes(form["scopes"], allowed)
        made = keys.create(
            connection,
            tenant_id=tenant_id,
            name=name,
            scopes=scopes,
            actor=caller.actor,
            now=now,
            expires_at=expires_at,
            key=text,
            limits=limits,
        )
        body = {
            "id": made.id,
            "name": name,
            "start": made.start,
            "scopes": sorted(scopes),
            "created_at": rfc3339(now),
            "created_by": caller.actor,
            "expires_at": rfc3339(expires_at),
            "revoked_at": None,
            "limits": limits,
        }
        if tenant_id:
            tenants.enter(connection, tenant_id)
            audit.record(connection, tenant_id, at=now, actor=caller.actor, action="key made", subject=made.id,
                         after=body)  # fmt: skip
        return Answer(body, 201)

    return write.run_as_system(caller, work, secret={"key": text})


def _named_tenant(connection: Connection, caller: Caller, form: Mapping[str, Any]) -> str | None:
    """The tenant that a platform key names; a tenant's own key or session never names another."""
    if not caller.platform:
        if form.get("tenant") not in (None, caller.tenant_code):
            raise NotFound(f"there is no tenant {form['tenant']!r}")
        return caller.tenant_id
    if form.get("tenant") is None:
        return None
    return tenants.by_code(connection, text_of(form, "tenant")).id


def _scopes(value: Any, allowed: frozenset[str]) -> list[str]:
    if not isinstance(value, list) or not value:
        raise InvalidInput("scopes is a list", errors=[FieldError("/scopes", "a list of scopes is needed")])
    errors: list[FieldError] = []
    for place, scope in enumerate(value[:100]):
        if not isinstance(scope, str) or scope not in SCOPES | PLATFORM_SCOPE_TEXTS:
            errors.append(FieldError(f"/scopes/{place}", f"is none of {', '.join(sorted(SCOPES))}"))
        elif scope not in allowed:
            errors.append(FieldError(f"/scopes/{place}", f"you cannot give {scope}: you do not have it"))
    if errors:
        raise InvalidInput(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)
    return sorted(set(value))


@router.patch(
    "/keys/{key_id}",
    summary="Change how much an API key may ask",
    **described(request={"limits": {"requests_per_s": 50, "events_per_s": 20_000}}, answer=_KEY, also=(*_ERRORS, 404)),
)
def patch_key(
    request: Request,
    key_id: UUID,
    caller: Caller = Depends(may("access:write")),
    form: Any = Depends(json_form),
) -> Response:
    """The limits as a whole: what is not named is what the platform allows every key. They hold within five seconds
    everywhere."""
    write = Write(request)
    limits = parse_limits(known_keys(form, ("limits",), ("limits",))["limits"])
    gate: Gate = request.app.state.gate

    def work(connection: Connection) -> Answer:
        now = write.services.clock()
        made = keys.set_limits(connection, str(key_id), limits)
        audit.record(connection, caller.tenant_id, at=now, actor=caller.actor, action="key limited",
                     subject=str(key_id), after={"limits": limits})  # fmt: skip
        return Answer(plain(made))

    answer = write.run(caller, work)
    gate.forget()
    return answer


@router.delete(
    "/keys/{key_id}",
    summary="End an API key",
    **described(answer={"id": _KEY["id"], "ended": True}, also=(404, 422)),
)
def delete_key(request: Request, key_id: UUID, caller: Caller = Depends(may("access:write"))) -> Response:
    """It stops working within five seconds everywhere."""
    write = Write(request)
    gate: Gate = request.app.state.gate

    def work(connection: Connection) -> Answer:
        now = write.services.clock()
        keys.revoke(connection, str(key_id), now)
        audit.record(connection, caller.tenant_id, at=now, actor=caller.actor, action="key ended", subject=str(key_id))
        return Answer({"id": str(key_id), "ended": True})

    answer = write.run(caller, work)
    gate.forget()
    return answer


# --- users

_USER = {
    "id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "email": "ann@example.org",
    "name": "Ann Example",
    "role": "billing",
    "created_at": "2026-01-10T08:00:00Z",
}


@router.get("/users", summary="List users", **described(answer={"items": [_USER], "next_cursor": None}, also=(422,)))
def list_users(
    request: Request, page: PageOf = Depends(paging), caller: Caller = Depends(may("access:read"))
) -> Response:
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        rows = users.page(connection, after=uuid_cursor(page), limit=page.limit + 1)
    return page_of(rows, page, lambda row: str(row["id"]), plain)


@router.post(
    "/users",
    summary="Make a user",
    **described(
        request={"email": "ann@example.org", "name": "Ann Example", "password": "a long sentence", "role": "billing"},
        answer=_USER,
        status=201,
        also=(*_ERRORS, 404),
    ),
)
def post_user(
    request: Request,
    caller: Caller = Depends(may("access:write", "tenants:create")),
    form: Any = Depends(json_form),
) -> Response:
    """Roles: `admin`, `billing`, `catalog`, `viewer`. A platform key names the tenant and may let a user whom it knows
    join another one (the password stays)."""
    write = Write(request)
    form = known_keys(form, ("tenant", "email", "name", "password", "role"), ("email", "password", "role"))
    email, role = text_of(form, "email", length_max=320), text_of(form, "role")
    name = text_of(form, "name", email, 500)
    password = form["password"]
    if role not in ROLES or not isinstance(password, str):
        raise InvalidInput("role is not known", errors=[FieldError("/role", f"must be one of {', '.join(ROLES)}")])
    if not caller.platform and not ROLES[role] <= caller.scopes:
        raise InvalidInput("you cannot give a role that may do more than you", errors=[FieldError("/role", "too much")])

    def work(connection: Connection) -> Answer:
        tenant_id = _named_tenant(connection, caller, form)
        if tenant_id is None:
            raise InvalidInput("tenant is missing", errors=[FieldError("/tenant", "is missing")])
        now = write.services.clock()
        user_id = users.create(
            connection,
            tenant_id=tenant_id,
            email=email,
            name=name,
            password=password,
            role=role,
            now=now,
            may_join=caller.platform,
        )
        body = {"id": user_id, "email": email.strip().lower(), "name": name, "role": role, "created_at": rfc3339(now)}
        tenants.enter(connection, tenant_id)
        audit.record(connection, tenant_id, at=now, actor=caller.actor, action="user made", subject=user_id, after=body)
        return Answer(body, 201)

    return write.run_as_system(caller, work)


@router.delete(
    "/users/{user_id}",
    summary="Take a user out of the tenant",
    **described(answer={"id": _USER["id"], "removed": True}, also=(404, 422)),
)
def delete_user(request: Request, user_id: UUID, caller: Caller = Depends(may("access:write"))) -> Response:
    write = Write(request)

    def work(connection: Connection) -> Answer:
        users.remove(connection, str(user_id))
        audit.record(connection, caller.tenant_id, at=write.services.clock(), actor=caller.actor,
                     action="user removed", subject=str(user_id))  # fmt: skip
        return Answer({"id": str(user_id), "removed": True})

    return write.run(caller, work)


# --- legal entities

_ENTITY_FORM = {
    "name": "North Cloud GmbH",
    "vat_id": "DE123456789",
    "address": {"street": "Hafenstraße 7", "post_code": "20457", "city": "Hamburg"},
    "bank": {"name": "Hafenbank", "iban": "DE02120300000000202051", "bic": "BYLADEM1001"},
    "series": {"invoice": "RE-{yyyy}-{n:06}", "credit_note": "GS-{yyyy}-{n:06}"},
}
_ENTITY = {"code": "main", "country": "DE", "version": 1, "is_default": True, "form": _ENTITY_FORM}
_ENTITY_KEYS = [
    "name",
    "legal_form",
    "vat_id",
    "tax_number",
    "legal_id",
    "court",
    "directors",
    "address",
    "contact",
    "bank",
    "series",
    "logo",
    "country",
    "language",
    "endpoint",
    "creditor_id",
]


def _check_series(
    entity: Mapping[str, Any],
    code: str = "",
    is_default: bool = True,
    others: Sequence[Mapping[str, Any]] = (),
    given: Sequence[tuple[str, str, str]] = (),
) -> None:
    series = entity.get("series") or {}
    if not isinstance(series, dict):
        raise InvalidInput("series: an object is needed", errors=[FieldError("/series", "an object is needed")])
    patterns = {row["code"]: patterns_of(row["code"], row["form"], is_default=row["is_default"]) for row in others}
    check_patterns(series, code, is_default=is_default, others=patterns, given=given)


def _shown_entity(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: plain(row[key]) for key in ("code", "country", "version", "is_default", "form")}


@router.get(
    "/legal-entities", summary="List legal entities", **described(answer={"items": [_ENTITY], "next_cursor": None})
)
def list_legal_entities(request: Request, caller: Caller = Depends(may("contracts:read"))) -> Response:
    """Who sells: name, address, tax numbers, bank, series of numbers. New documents take the newest."""
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        rows = tenants.legal_entities(connection)
    return json_response({"items": [_shown_entity(row) for row in rows], "next_cursor": None})


@router.put(
    "/legal-entities/{code:path}",
    summary="Create or change a legal entity",
    **described(request=_ENTITY_FORM, answer=_ENTITY, also=(412, *_ERRORS)),
)
def put_legal_entity(
    request: Request, code: str, caller: Caller = Depends(may("access:write")), form: Any = Depends(json_form)
) -> Response:
    write = Write(request)
    form = known_keys(form, _ENTITY_KEYS, ("name",))
    text_of(form, "name", length_max=500)
    text_of({"code": code}, "code")
    check_seller(form)

    def work(connection: Connection) -> Answer:
        now = write.services.clock()
        known = tenants.legal_entities(connection)
        before = next((row for row in known if row["code"] == code), None)
        is_default = before["is_default"] if before else False
        given = bill_runs.patterns_given(connection, caller.tenant_id)
        _check_series(form, code, is_default, [row for row in known if row["code"] != code], given)
        if write.expected is not None and (before is None or before["version"] != write.expected):
            raise PreconditionFailed(f"legal entity {code!r} is not at version {write.expected}: read it again")
        country = form.get("country") or (before or {}).get("country")
        country = country or tenants.by_id(connection, caller.tenant_id).country
        tenants.put_legal_entity(
            connection,
            caller.tenant_id,
            code,
            form,
            country=country,
            now=now,
            is_default=is_default,
        )
        after = tenants.legal_entity(connection, code)
        audit.record(
            connection,
            caller.tenant_id,
            at=now,
            actor=caller.actor,
            action="legal entity changed",
            subject=code,
            before=plain(before["form"]) if before else None,
            after=form,
        )
        return Answer(_shown_entity(after), 200, {"ETag": etag(after["version"])})

    return write.run(caller, work)


# --- the record

_AUDIT = {
    "id": 17,
    "at": "2026-01-10T08:00:00Z",
    "actor": "user ann@example.org",
    "action": "key made",
    "subject": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "before": None,
    "after": _KEY,
}


@router.get(
    "/audit",
    summary="Who did what, newest first",
    **described(answer={"items": [_AUDIT], "next_cursor": None}, also=(422,)),
)
def list_audit(
    request: Request, page: PageOf = Depends(paging), caller: Caller = Depends(may("access:read"))
) -> Response:
    """Keys, users, settings, bill runs. Changes of catalog and contracts are in the history of each thing."""
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        rows = audit.page(connection, after=number_cursor(page), limit=page.limit + 1)
    return page_of(rows, page, lambda row: row["id"], plain)


def scopes_in_words() -> dict[str, str]:
    """Every scope with what it allows (docs and the page that makes keys)."""
    return SCOPES | PLATFORM_SCOPE_TEXTS


__all__ = ["router", "scopes_in_words"]
