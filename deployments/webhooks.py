"""Webhooks over REST: who is told of which events, what became of each message, and dead ones sent again.

A thin shell: messages are made and delivered by `actors/webhook_reconciler.py`. Also the acknowledgement of alerts.
"""

import asyncio
import base64
import hashlib
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from actors.budget_desk import BudgetDesk
from billing.errors import FieldError, InvalidInput, NotFound
from billing.events import CATALOG, DEFAULT_TYPES, EVENT_TYPES, TEST, THRESHOLD_CROSSED
from billing.webhooks import message_body, new_secret
from deployments.access import Caller, may
from deployments.bodies import json_form, known_keys, text_of
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
)
from deployments.services import Services
from storage.gateways.webhook_http import checked_url
from storage.sql import audit, webhooks
from storage.sql.database import Connection

router = APIRouter(prefix="/v1", tags=["Webhooks"])
OLD_SECRET_FOR = timedelta(hours=24)
REPLAYED_MAX = 10_000
STATES = ("waiting", "delivered", "dead")
_ERRORS = (400, 409, 413, 415, 422)

_ENDPOINT = {
    "id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "url": "https://hooks.example.com/billing",
    "description": "on-call",
    "event_types": [THRESHOLD_CROSSED],
    "created_at": "2026-01-10T08:00:00Z",
    "created_by": "user ann@example.org",
    "disabled_at": None,
    "disabled_because": None,
    "old_secret_until": None,
}
_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwTzS2nHhWqkI="  # noqa: S105 - an example
_DELIVERY = {
    "id": 4711,
    "message_id": "alert_5f3a9c0b8e7d6c5b4a39281706f5e4d3",
    "event_type": THRESHOLD_CROSSED,
    "endpoint_id": _ENDPOINT["id"],
    "url": _ENDPOINT["url"],
    "state": "dead",
    "tries": 10,
    "made_at": "2026-05-09T08:30:01Z",
    "last_at": "2026-05-12T18:11:00Z",
    "last_status": 500,
    "last_error": "the endpoint answered 500",
    "next_at": None,
}
_ACKNOWLEDGED = {"alert": _DELIVERY["message_id"], "at": "2026-05-09T09:02:00Z", "by": "user ann@example.org",
                 "note": "talked to the customer"}  # fmt: skip


_TYPES = [
    {"type": one.name, "says": one.says, "by_default": one.name in DEFAULT_TYPES, "example": dict(one.example)}
    for one in CATALOG
]


@router.get(
    "/webhook-event-types",
    summary="Types of events that an endpoint may be told of",
    **described(answer={"items": _TYPES, "next_cursor": None}),
)
def list_event_types(caller: Caller = Depends(may("access:read"))) -> Response:
    """What each says, an example of its `data`, and whether an endpoint that names no types gets it."""
    return json_response({"items": _TYPES, "next_cursor": None})


@router.get(
    "/webhooks",
    summary="Endpoints that are told of events",
    **described(answer={"items": [_ENDPOINT], "next_cursor": None}),
)
def list_webhooks(request: Request, caller: Caller = Depends(may("access:read"))) -> Response:
    """At most 20 a tenant, in the order made."""
    with _services(request).database.tenant(caller.tenant_id) as connection:
        rows = webhooks.endpoints(connection)
    return json_response({"items": [plain(row) for row in rows], "next_cursor": None})


@router.post(
    "/webhooks",
    summary="Let an endpoint be told of events",
    **described(
        request={"url": _ENDPOINT["url"], "description": "on-call", "event_types": [THRESHOLD_CROSSED]},
        answer=_ENDPOINT | {"secret": _SECRET},
        status=201,
        also=_ERRORS,
    ),
)
def post_webhook(
    request: Request, caller: Caller = Depends(may("access:write")), form: Any = Depends(json_form)
) -> Response:
    """Each message is a POST of JSON (`type`, `timestamp`, `data`), signed as Standard Webhooks 1.0 says: headers
    `webhook-id`, `webhook-timestamp`, `webhook-signature` (HMAC-SHA256 with the `secret` of this answer, which is shown
    nowhere else). Answer 2xx within 15 seconds. Everything else is tried again, ten times in about two days, then the
    delivery is dead until it is replayed. The same `webhook-id` may come more than once: it is the same message. `410`
    ends the endpoint. The url is https and leads to a public address. `event_types` are those of
    `GET /v1/webhook-event-types`; left out: all but those that come for each document of a bill run."""
    write = Write(request)
    form = known_keys(form, ("url", "description", "event_types"), ("url",))
    url, description, event_types = _url(request, form), _description(form), _event_types(form)
    secret = _secret(write.new_secret(request, f"webhook {url}"))

    def work(connection: Connection) -> Answer:
        now = write.services.clock()
        made = webhooks.add_endpoint(
            connection,
            caller.tenant_id,
            url=url,
            description=description,
            event_types=event_types,
            secret=secret,
            actor=caller.actor,
            now=now,
        )
        _record(connection, caller, write, "webhook made", made["id"], {"url": url, "event_types": event_types})
        return Answer(plain(made), 201)

    return write.run(caller, work, secret={"secret": secret})


@router.patch(
    "/webhooks/{endpoint_id}",
    summary="Change an endpoint, switch it off or on",
    **described(request={"enabled": False}, answer=_ENDPOINT, also=(*_ERRORS, 404)),
)
def patch_webhook(
    request: Request,
    endpoint_id: UUID,
    caller: Caller = Depends(may("access:write")),
    form: Any = Depends(json_form),
) -> Response:
    """`url`, `description`, `event_types`, `enabled`: what is left out stays. What waits for an endpoint that is
    switched off goes on being tried; new events do not reach it."""
    write = Write(request)
    form = known_keys(form, ("url", "description", "event_types", "enabled"))
    changes: dict[str, Any] = {}
    if "url" in form:
        changes["url"] = _url(request, form)
    if "description" in form:
        changes["description"] = _description(form)
    if "event_types" in form:
        changes["event_types"] = _event_types(form)
    if "enabled" in form:
        if not isinstance(form["enabled"], bool):
            raise InvalidInput("enabled is true or false", errors=[FieldError("/enabled", "true or false is needed")])
        changes["disabled_at"] = None if form["enabled"] else write.services.clock()
        changes["disabled_because"] = None if form["enabled"] else f"switched off by {caller.actor}"

    def work(connection: Connection) -> Answer:
        made = webhooks.change_endpoint(connection, str(endpoint_id), changes)
        _record(connection, caller, write, "webhook changed", endpoint_id, plain(dict(form)))
        return Answer(plain(made))

    return write.run(caller, work)


@router.delete(
    "/webhooks/{endpoint_id}",
    summary="Tell an endpoint nothing any more",
    **described(answer={"id": _ENDPOINT["id"], "deleted": True}, also=(404, 422)),
)
def delete_webhook(request: Request, endpoint_id: UUID, caller: Caller = Depends(may("access:write"))) -> Response:
    """What waits for it is dead; the record of what was delivered stays."""
    write = Write(request)

    def work(connection: Connection) -> Answer:
        webhooks.change_endpoint(connection, str(endpoint_id), {"deleted_at": write.services.clock()})
        _record(connection, caller, write, "webhook deleted", endpoint_id)
        return Answer({"id": str(endpoint_id), "deleted": True})

    return write.run(caller, work)


@router.post(
    "/webhooks/{endpoint_id}/secret",
    summary="Replace an endpoint's secret",
    **described(request={}, answer=_ENDPOINT | {"secret": _SECRET}, also=(*_ERRORS, 404)),
)
def post_webhook_secret(
    request: Request, endpoint_id: UUID, caller: Caller = Depends(may("access:write")), form: Any = Depends(json_form)
) -> Response:
    """For 24 hours messages carry a signature of each, the new one first."""
    write = Write(request)
    known_keys(form, ())
    secret = _secret(write.new_secret(request, f"webhook {endpoint_id}"))

    def work(connection: Connection) -> Answer:
        until = write.services.clock() + OLD_SECRET_FOR
        made = webhooks.replace_secret(connection, str(endpoint_id), secret, until)
        _record(connection, caller, write, "webhook secret replaced", endpoint_id)
        return Answer(plain(made))

    return write.run(caller, work, secret={"secret": secret})


@router.post(
    "/webhooks/{endpoint_id}/test",
    summary="Send an endpoint a message that means nothing",
    **described(request={}, answer={"message_id": "test_3f6f0d3c2b1a49588776655443322110"}, status=202,
                also=(*_ERRORS, 404)),
)  # fmt: skip
def post_webhook_test(
    request: Request, endpoint_id: UUID, caller: Caller = Depends(may("access:write")), form: Any = Depends(json_form)
) -> Response:
    """It is delivered like any other (`type: webhook.test`); see `GET /v1/webhook-deliveries`."""
    write = Write(request)
    known_keys(form, ())
    message_id = f"test_{uuid4().hex}"

    def work(connection: Connection) -> Answer:
        now = write.services.clock()
        one = webhooks.endpoint(connection, str(endpoint_id))
        if one["disabled_at"] is not None:
            raise InvalidInput("this endpoint is switched off")
        webhooks.add_message(
            connection,
            caller.tenant_id,
            id=message_id,
            event_type=TEST,
            body=message_body(TEST, now, {"endpoint": str(endpoint_id)}),
            happened_at=now,
            now=now,
            endpoint_id=str(endpoint_id),
        )
        return Answer({"message_id": message_id}, 202)

    return write.run(caller, work)


@router.get(
    "/webhook-deliveries",
    summary="What became of messages, newest first",
    **described(answer={"items": [_DELIVERY], "next_cursor": None}, also=(422,)),
)
def list_webhook_deliveries(
    request: Request,
    page: PageOf = Depends(paging),
    state: str | None = Query(None, description="Only those: waiting, delivered, dead."),
    endpoint: UUID | None = Query(None, description="Only to this endpoint."),
    caller: Caller = Depends(may("access:read")),
) -> Response:
    """`state=dead` is the dead-letter list: ten tries failed, and nothing more happens until they are replayed."""
    if state is not None and state not in STATES:
        detail = f"one of {', '.join(STATES)} is needed"
        raise InvalidInput(f"state: {detail}", errors=[FieldError("query:state", detail)])
    with _services(request).database.tenant(caller.tenant_id) as connection:
        rows = webhooks.page(
            connection,
            state=state,
            endpoint_id=str(endpoint) if endpoint else None,
            after=number_cursor(page),
            limit=page.limit + 1,
        )
    return page_of(rows, page, lambda row: row["id"], plain)


@router.post(
    "/webhook-deliveries/replay",
    summary="Send dead messages again",
    **described(request={"ids": [4711]}, answer={"replayed": 1}, also=_ERRORS),
)
def post_webhook_replay(
    request: Request, caller: Caller = Depends(may("access:write")), form: Any = Depends(json_form)
) -> Response:
    """Those of `ids`, or all (`{}`, 10,000 at once). The same message with the same `webhook-id`, from its first try
    on; what was delivered is not sent again, nor what is of an endpoint that is switched off or gone."""
    write = Write(request)
    ids = known_keys(form, ("ids",)).get("ids")
    is_list = isinstance(ids, list) and all(isinstance(one, int) and 0 < one < 2**63 for one in ids)
    if ids is not None and not (is_list and len(ids) <= REPLAYED_MAX):
        raise InvalidInput("ids is a list of ids", errors=[FieldError("/ids", "a list of whole numbers is needed")])

    def work(connection: Connection) -> Answer:
        count = webhooks.replay(connection, ids, write.services.clock(), REPLAYED_MAX)
        _record(connection, caller, write, "webhook deliveries replayed", "", {"count": count})
        return Answer({"replayed": count})

    return write.run(caller, work)


@router.post(
    "/alerts/{alert_id}/acknowledge",
    summary="Say that somebody has seen an alert",
    **described(request={"note": "talked to the customer"}, answer=_ACKNOWLEDGED, also=(*_ERRORS, 404)),
)
async def post_acknowledgement(
    request: Request,
    alert_id: str,
    caller: Caller = Depends(may("contracts:write")),
    form: Any = Depends(json_form),
) -> Response:
    """Who, when, and a note of up to 1,000 characters. The first one counts; again answers what was recorded."""
    write = Write(request)
    form = known_keys(form, ("note",))
    note = text_of(form, "note", length_max=1_000) if form.get("note") not in (None, "") else ""
    desk: BudgetDesk = request.app.state.budgets
    if not await desk.alerts(caller.tenant_id, ids=[alert_id], limit=1, look=False):
        raise NotFound(f"there is no alert {alert_id!r}", alert=alert_id)

    def work(connection: Connection) -> Answer:
        now = write.services.clock()
        known = webhooks.acknowledged(connection, [alert_id])
        one = webhooks.acknowledge(connection, caller.tenant_id, alert_id, actor=caller.actor, note=note, now=now)
        if not known:
            _record(connection, caller, write, "alert acknowledged", alert_id, {"note": note})
        return Answer(plain({"alert": alert_id, **one}))

    return await asyncio.to_thread(write.run, caller, work)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _record(
    connection: Connection,
    caller: Caller,
    write: Write,
    action: str,
    subject: object,
    after: Mapping[str, Any] | None = None,
) -> None:
    at = write.services.clock()
    audit.record(
        connection, caller.tenant_id, at=at, actor=caller.actor, action=action, subject=str(subject), after=after
    )


def _secret(text: str) -> str:
    """A signing secret out of 256 random bits (or the same ones, for a request that is repeated)."""
    digest = hashlib.sha256(b"webhook secret\0" + text.encode()).digest()
    assert len(base64.b64encode(digest)) == 44
    return new_secret(digest)


def _url(request: Request, form: Mapping[str, Any]) -> str:
    url = form["url"]
    if not isinstance(url, str):
        raise InvalidInput("url is a text", errors=[FieldError("/url", "a text is needed")])
    try:
        checked_url(url, _services(request).outbound)
    except InvalidInput as error:
        raise InvalidInput(f"url: {error.detail}", errors=[FieldError("/url", error.detail)]) from error
    return url


def _description(form: Mapping[str, Any]) -> str:
    return text_of(form, "description") if form.get("description") not in (None, "") else ""


def _event_types(form: Mapping[str, Any]) -> list[str]:
    value = form.get("event_types", list(DEFAULT_TYPES))
    if not isinstance(value, list) or not value or any(one not in EVENT_TYPES for one in value):
        detail = f"a list of some of {', '.join(EVENT_TYPES)} is needed"
        raise InvalidInput(f"event_types: {detail}", errors=[FieldError("/event_types", detail)])
    return sorted(set(value))
