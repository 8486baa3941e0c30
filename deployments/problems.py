"""Errors as problem+json (RFC 9457): one form for everything that goes wrong, with a pointer to every bad place."""

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from billing.errors import BillingError, FieldError

MEDIA_TYPE = "application/problem+json"
ERRORS_SHOWN_MAX = 100
_log = logging.getLogger("cloudbilling.http")
_TITLES = {404: "There is no such thing", 405: "This method is not taken here"}
_CODES = {404: "not_found", 405: "method_not_allowed"}


def problem_body(error: BillingError, instance: str) -> dict[str, Any]:
    """The problem document of an error of the family."""
    body: dict[str, Any] = {
        "type": f"urn:cloudbilling:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
        "code": error.code,
        "retryable": error.retryable,
    }
    if error.errors:
        shown = error.errors[:ERRORS_SHOWN_MAX]
        body["errors"] = [{"pointer": each.pointer, "detail": each.detail} for each in shown]
        if len(error.errors) > len(shown):
            body["errors_left_out"] = len(error.errors) - len(shown)
    return body


def problem_response(error: BillingError, instance: str) -> Response:
    headers: dict[str, str] = {}
    if error.retryable:
        headers["Retry-After"] = str(error.context.get("retry_after") or 1)
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="cloudbilling"'
    return _response(problem_body(error, instance), error.status, headers)


def install(app: FastAPI) -> None:
    """Answer every error of every route with a problem document."""
    app.add_exception_handler(BillingError, _family)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def of(request: Request, error: Exception) -> Response:
    """The answer to an error that a route has raised, for who stands before the framework."""
    return await (_family(request, error) if isinstance(error, BillingError) else _unexpected(request, error))


async def _family(request: Request, error: Exception) -> Response:
    assert isinstance(error, BillingError)
    if error.status >= 500:
        _log.warning("request failed", extra={"path": request.url.path, "code": error.code, "detail": error.detail})
    return problem_response(error, request.url.path)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fields = [FieldError(_pointer(each["loc"]), str(each["msg"])) for each in error.errors()]
    words = "; ".join(f"{each.pointer or 'body'}: {each.detail}" for each in fields[:3])
    body = problem_body(_Invalid(words, errors=fields), request.url.path)
    return _response(body, 422, {})


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    body = {
        "type": f"urn:cloudbilling:problem:{_CODES.get(status, 'http')}",
        "title": _TITLES.get(status, "The request was refused"),
        "status": status,
        "detail": f"{request.method} {request.url.path}: {error.detail}",
        "instance": request.url.path,
        "code": _CODES.get(status, "http"),
        "retryable": False,
    }
    return _response(body, status, dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    """A bug. The caller learns that it is ours and nothing of our inside; the log has the rest."""
    _log.error("unexpected error", exc_info=error, extra={"path": request.url.path, "method": request.method})
    body = problem_body(BillingError("this is a mistake of ours; it has been logged"), request.url.path)
    return _response(body, 500, {})


class _Invalid(BillingError):
    code, status, title = "invalid_input", 422, "The input is not valid"


def _pointer(location: Sequence[int | str]) -> str:
    """`("query", "limit")` -> `limit` as a parameter name, `("body", 3, "code")` -> `/3/code`."""
    kind, *rest = location
    if kind == "body":
        return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in rest)
    return f"{kind}:{'.'.join(str(part) for part in rest)}"


def _response(body: dict[str, Any], status: int, headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(body), status_code=status, headers=headers, media_type=MEDIA_TYPE)
