"""Webhooks as a page: who is told of which events, what did not get through, and sending it again."""

import secrets
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Form, Response

from billing.errors import BillingError, InvalidInput
from billing.events import CATALOG, DEFAULT_TYPES, EVENT_TYPES, TEST
from billing.webhooks import SECRET_BYTES, message_body, new_secret
from deployments.front.page import Front, Visit
from storage.gateways.webhook_http import checked_url
from storage.sql import audit, webhooks
from storage.sql.database import Connection

DELIVERIES_SHOWN = 50
REPLAYED_MAX = 10_000
Token = Annotated[str, Form(max_length=200)]


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)

    def page(visit: Visit, *, status: int = 200, made: dict[str, str] | None = None, **more: Any) -> Response:
        with services.database.tenant(visit.tenant_id) as connection:
            endpoints = webhooks.endpoints(connection)
            shown = webhooks.page(connection, state=None, endpoint_id=None, after=None, limit=DELIVERIES_SHOWN)
            counts = webhooks.counts(connection)
        return front.page(
            visit, "settings/webhooks.html", status=status, area="settings", endpoints=endpoints, deliveries=shown,
            counts=counts, made=made, types=CATALOG,
            **{"wrong": "", "url": "", "description": "", "chosen": DEFAULT_TYPES, "no_type": False, **more},
        )  # fmt: skip

    def change(visit: Visit, token: str, action: str, subject: str, work: Any) -> Response:
        visit.need("access:write")
        front.check_form(visit, token)
        now = services.clock()
        with services.database.tenant(visit.tenant_id) as connection:
            work(connection, now)
            audit.record(connection, visit.tenant_id, at=now, actor=visit.user.actor, action=action, subject=subject)
        return front.go(visit, "/settings/webhooks")

    @router.get("/settings/webhooks")
    def show(visit: Annotated[Visit, visitor]) -> Response:
        visit.need("access:read")
        return page(visit)

    @router.post("/settings/webhooks")
    def make(
        visit: Annotated[Visit, visitor],
        url: Annotated[str, Form(max_length=3_000)] = "",
        description: Annotated[str, Form(max_length=1_000)] = "",
        event_types: Annotated[list[str] | None, Form(max_length=100)] = None,
        form_token: Token = "",
    ) -> Response:
        visit.need("access:write")
        front.check_form(visit, form_token)
        url, description = url.strip(), description.strip()[:256]
        chosen = sorted(set(event_types or ()) & set(EVENT_TYPES))
        secret = new_secret(secrets.token_bytes(SECRET_BYTES))
        now = services.clock()
        try:
            checked_url(url, services.outbound)
            if not chosen:
                return page(visit, status=422, no_type=True, url=url, description=description, chosen=chosen)
            with services.database.tenant(visit.tenant_id) as connection:
                one = webhooks.add_endpoint(
                    connection, visit.tenant_id, url=url, description=description, event_types=chosen,
                    secret=secret, actor=visit.user.actor, now=now,
                )  # fmt: skip
                audit.record(
                    connection, visit.tenant_id, at=now, actor=visit.user.actor, action="webhook made",
                    subject=str(one["id"]), after={"url": url, "event_types": chosen},
                )  # fmt: skip
        except BillingError as error:
            return page(visit, status=422, wrong=error.detail, url=url, description=description, chosen=chosen)
        return page(visit, made={"url": url, "secret": secret})

    @router.post("/settings/webhooks/{endpoint_id}/test")
    def test(visit: Annotated[Visit, visitor], endpoint_id: UUID, form_token: Token = "") -> Response:
        def work(connection: Connection, now: Any) -> None:
            if webhooks.endpoint(connection, str(endpoint_id))["disabled_at"] is not None:
                raise InvalidInput(visit.texts("webhooks.is_off"))
            webhooks.add_message(
                connection, visit.tenant_id, id=f"test_{uuid4().hex}", event_type=TEST,
                body=message_body(TEST, now, {"endpoint": str(endpoint_id)}), happened_at=now + timedelta(seconds=1),
                now=now, endpoint_id=str(endpoint_id),
            )  # fmt: skip

        return change(visit, form_token, "webhook tested", str(endpoint_id), work)

    @router.post("/settings/webhooks/{endpoint_id}/switch")
    def switch(visit: Annotated[Visit, visitor], endpoint_id: UUID, form_token: Token = "") -> Response:
        def work(connection: Connection, now: Any) -> None:
            on = webhooks.endpoint(connection, str(endpoint_id))["disabled_at"] is None
            changes = {"disabled_at": now if on else None, "disabled_because": visit.user.actor if on else None}
            webhooks.change_endpoint(connection, str(endpoint_id), changes)

        return change(visit, form_token, "webhook changed", str(endpoint_id), work)

    @router.post("/settings/webhooks/{endpoint_id}/delete")
    def delete(visit: Annotated[Visit, visitor], endpoint_id: UUID, form_token: Token = "") -> Response:
        def work(connection: Connection, now: Any) -> None:
            webhooks.change_endpoint(connection, str(endpoint_id), {"deleted_at": now})

        return change(visit, form_token, "webhook deleted", str(endpoint_id), work)

    @router.post("/settings/webhooks/replay")
    def replay(visit: Annotated[Visit, visitor], form_token: Token = "") -> Response:
        def work(connection: Connection, now: Any) -> None:
            webhooks.replay(connection, None, now, REPLAYED_MAX)

        return change(visit, form_token, "webhook deliveries replayed", "", work)

    return router
