"""Signing in and out, and moving to another tenant of the same person."""

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from billing.errors import NotAuthenticated, Overloaded
from deployments.access import SESSION_COOKIE
from deployments.front.page import SECURITY_HEADERS, Front, Visit, own_path
from storage.sql import users


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)

    def form(visit: Visit, target: str, *, email: str = "", wrong: str = "", status: int = 200) -> Response:
        return front.page(visit, "access/sign_in.html", status=status, next=target, email=email, wrong=wrong)

    @router.get("/sign-in")
    def sign_in_page(request: Request, next: Annotated[str, Query(max_length=2_000)] = "/") -> Response:
        visit = front.anyone(request)
        if visit.signed_in is not None:
            return front.go(visit, own_path(next))
        return form(visit, own_path(next))

    @router.post("/sign-in")
    def sign_in(
        request: Request,
        email: Annotated[str, Form(max_length=320)] = "",
        password: Annotated[str, Form(max_length=1_000)] = "",
        next: Annotated[str, Form(max_length=2_000)] = "/",
        form_token: Annotated[str, Form(max_length=200)] = "",
    ) -> Response:
        visit = front.visit(request)
        front.check_form(visit, form_token)
        t = visit.texts
        try:
            token, _ = users.sign_in(services.database, email, password, services.clock())
        except NotAuthenticated:
            return form(visit, own_path(next), email=email, wrong=t("sign_in.wrong"), status=401)
        except Overloaded as error:
            wrong = t("sign_in.paused", seconds=error.context.get("retry_after") or 1)
            return form(visit, own_path(next), email=email, wrong=wrong, status=429)
        response = RedirectResponse(own_path(next), status_code=303, headers=SECURITY_HEADERS)
        age_s = int(users.SESSION_LASTS.total_seconds())
        front.set_cookie(request, response, SESSION_COOKIE, token, age_s)
        return response

    @router.post("/sign-out")
    def sign_out(
        request: Request, visit: Annotated[Visit, visitor], form_token: Annotated[str, Form(max_length=200)] = ""
    ) -> Response:
        front.check_form(visit, form_token)
        with services.database.system() as connection:
            users.sign_out(connection, request.cookies[SESSION_COOKIE])
        response = RedirectResponse("/sign-in", status_code=303, headers=SECURITY_HEADERS)
        response.delete_cookie(SESSION_COOKIE)
        return response

    @router.post("/tenant")
    def change_tenant(
        request: Request,
        visit: Annotated[Visit, visitor],
        code: Annotated[str, Form(max_length=256)],
        form_token: Annotated[str, Form(max_length=200)] = "",
    ) -> Response:
        front.check_form(visit, form_token)
        with services.database.system() as connection:
            users.enter_tenant(connection, request.cookies[SESSION_COOKIE], code, services.clock())
        return front.go(visit, "/")

    return router
