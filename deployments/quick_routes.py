"""Routes that are called thousands of times a second, answered in front of the framework's routing.

Owns the short way only: the route, its guard and its function are those of the application (OpenAPI, tests of access
and the function's own tests see no other), but nobody compares two hundred paths and works out parameters that it does
not have, which costs several times what storing an event does.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments import problems
from deployments.access import Caller


@dataclass(frozen=True)
class _Route:
    route: APIRoute
    guard: Callable[[Request], Awaitable[Caller]]
    answer: Callable[[Request, Caller], Awaitable[Response]]


class QuickRoutes:
    """ASGI middleware around the application; `routes` take a request and the caller that their guard finds."""

    def __init__(self, app: ASGIApp, application: FastAPI, routes: tuple[APIRoute, ...]) -> None:
        self._app = app
        self._application = application
        self._routes: dict[tuple[str, str], _Route] = {}
        for route in routes:
            (guard,) = (each.call for each in route.dependant.dependencies)
            assert guard is not None, f"{route.path} has no guard"
            assert not route.param_convertors, f"{route.path} has parameters"
            for method in route.methods:
                self._routes[method, route.path] = _Route(route, guard, route.endpoint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["app"], scope["route"] = self._application, found.route  # as the framework would have left them
        request = Request(scope, receive)
        response = await self._answer(found, request)
        await response(scope, receive, send)

    async def _answer(self, found: _Route, request: Request) -> Any:
        try:
            return await found.answer(request, await found.guard(request))
        except Exception as error:  # noqa: BLE001 - as the application answers the same error
            return await problems.of(request, error)
