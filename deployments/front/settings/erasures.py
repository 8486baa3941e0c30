"""Forgetting a customer as a page: look first, then ask, and see how far it is and which documents stay."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Response

from billing.errors import BillingError
from deployments.erasures import erasures_of
from deployments.front.page import Front, Visit
from storage.sql import erasures

SHOWN = 100
Token = Annotated[str, Form(max_length=200)]
Text = Annotated[str, Form(max_length=1_000)]


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)

    def page(visit: Visit, *, status: int = 200, **more: Any) -> Response:
        with services.database.tenant(visit.tenant_id) as connection:
            found = erasures.page(connection, after=None, limit=SHOWN)
        return front.page(
            visit, "settings/erasures.html", status=status, area="settings", erasures=found,
            **{"wrong": "", "customer": "", "rule": "", "plan": None, **more},
        )  # fmt: skip

    @router.get("/settings/erasures")
    def show(visit: Annotated[Visit, visitor]) -> Response:
        visit.need("access:read")
        return page(visit)

    @router.post("/settings/erasures/look")
    def look(
        visit: Annotated[Visit, visitor], customer: Text = "", rule: Text = "", form_token: Token = ""
    ) -> Response:
        visit.need("access:write")
        front.check_form(visit, form_token)
        given = {"customer": customer.strip(), "rule": rule.strip()}
        try:
            plan = erasures_of(services).plan(visit.tenant_id, given["customer"], given["rule"])
        except BillingError as error:
            return page(visit, status=error.status, wrong=error.detail, **given)
        return page(visit, plan=plan, rows=sum(plan["tables"].values()), **given)

    @router.post("/settings/erasures")
    def ask(visit: Annotated[Visit, visitor], customer: Text = "", rule: Text = "", form_token: Token = "") -> Response:
        visit.need("access:write")
        front.check_form(visit, form_token)
        try:
            with services.database.tenant(visit.tenant_id) as connection:
                erasures_of(services).ask(visit.tenant_id, customer, rule, visit.user.actor, connection)
        except BillingError as error:
            return page(visit, status=error.status, wrong=error.detail, customer=customer, rule=rule)
        return front.go(visit, "/settings/erasures")

    return router
