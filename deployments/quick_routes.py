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
from starlette.convertors import StringConvertor
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments import problems
from deployments.access import Caller


@dataclass(frozen=True)
class _Route:
    route: APIRoute
    guard: Callable[[Request], Awaitable[Caller]]
    answer: Callable[..., Awaitable[Response]]
    request_name: str
    caller_name: str

    @classmethod
    def of(cls, route: APIRoute) -> "_Route":
        needs = route.dependant
        (found,) = needs.dependencies
        guard, request_name, caller_name = found.call, needs.request_param_name, found.name
        assert guard is not None, f"{route.path} has no guard"
        assert hasattr(guard, "scopes"), f"{route.path} has something else than a guard"
        assert request_name, f"{route.path} does not take its request"
        assert caller_name, f"{route.path} does not take its caller"
        others = [*needs.query_params, *needs.header_params, *needs.cookie_params, *needs.body_params]
        assert not others, f"{route.path} has parameters that nobody would work out"
        texts = all(isinstance(one, StringConvertor) for one in route.param_convertors.values())
        assert texts, f"{route.path} has a parameter that is no text"
        assert all(one.field_info.annotation is str for one in needs.path_params), f"{route.path}: texts only"
        return cls(route, guard, route.endpoint, request_name, caller_name)


class QuickRoutes:
    """ASGI middleware around the application; `routes` take a request, the caller that their guard finds, and texts
    out of the path."""

    def __init__(self, app: ASGIApp, application: FastAPI, routes: tuple[APIRoute, ...]) -> None:
        self._app = app
        self._application = application
        self._routes: dict[tuple[str, str], _Route] = {}  # by method and path
        self._patterns: dict[tuple[str, str], list[_Route]] = {}  # by method and the path before its first parameter
        for route in routes:
            for method in route.methods or ():
                if route.param_convertors:
                    self._patterns.setdefault((method, route.path.partition("{")[0]), []).append(_Route.of(route))
                else:
                    self._routes[method, route.path] = _Route.of(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found, texts = self._find(scope) if scope["type"] == "http" else (None, {})
        if found is None:
            await self._app(scope, receive, send)
            return
        # As the framework would have left them.
        scope["app"], scope["route"], scope["path_params"] = self._application, found.route, texts
        request = Request(scope, receive)
        response = await self._answer(found, request)
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> tuple[_Route | None, dict[str, str]]:
        method, path = scope["method"], scope["path"]
        found = self._routes.get((method, path))
        if found is not None:
            return found, {}
        for (taken, start), routes in self._patterns.items():
            if taken == method and path.startswith(start):
                for one in routes:
                    match = one.route.path_regex.match(path)
                    if match is not None:
                        return one, match.groupdict()
        return None, {}

    async def _answer(self, found: _Route, request: Request) -> Any:
        try:
            caller = await found.guard(request)
            named = {found.request_name: request, found.caller_name: caller}
            return await found.answer(**named, **request.scope["path_params"])
        except Exception as error:  # noqa: BLE001 - as the application answers the same error
            return await problems.of(request, error)
