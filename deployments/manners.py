"""What all routes share: documentation of bodies and problems, pages of lists, versions, idempotent writes."""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from fastapi import Query, Request
from starlette.responses import Response

from billing.errors import FieldError, InvalidInput, Unavailable
from deployments.access import Caller
from deployments.services import Services
from storage.sql import idempotency, tenants
from storage.sql.database import SYSTEM_ROLE, Connection

PROBLEM_REF = {"$ref": "#/components/schemas/Problem"}
_MEANINGS = {
    400: "The body cannot be read.",
    401: "No key, or one that is not known.",
    403: "The key's scopes do not allow this.",
    404: "There is no such thing in this tenant.",
    409: "It exists already, or its state does not allow this.",
    412: "If-Match names another version: somebody changed it in the meantime.",
    413: "More than the limit.",
    415: "This content type is not taken here.",
    422: "The input is not valid; `errors` names every bad place.",
    429: "Too many requests at once; Retry-After says when to send it again.",
    503: "Not available at the moment; send the same again.",
}


def described(
    *,
    answer: Any,
    request: Mapping[str, Any] | Any = None,
    status: int = 200,
    also: Sequence[int] = (),
    schema: Mapping[str, Any] | None = None,
    media: str = "application/json",
    open_route: bool = False,
) -> dict[str, Any]:
    """OpenAPI of a route whose body is a form: examples of what goes in and comes out, and its problems.

    The forms are documented by example and by docs/; their schema is an open object because the core reads them and
    names every bad field by its pointer, which a generated schema could only repeat.
    """
    content = {media: {"example": answer, "schema": dict(schema or shape(answer))}}
    if media != "application/json":
        content = {media: {"schema": {"type": "string", "format": "binary"}}}
    codes = sorted({*also, *(() if open_route else (401, 403, 429, 503))})
    responses: dict[int | str, dict[str, Any]] = {
        code: {"description": _MEANINGS[code], "content": {"application/problem+json": {"schema": PROBLEM_REF}}}
        for code in codes
    }
    responses[status] = {"description": "Done." if request is not None else "What was asked for.", "content": content}
    extra: dict[str, Any] = {}
    if request is not None:
        bodies = request if _by_media(request) else {"application/json": request}
        extra["requestBody"] = {
            "required": True,
            "content": {
                kind: {"schema": shape(example)} | ({} if example is None else {"example": example})
                for kind, example in bodies.items()
            },
        }
    return {"responses": responses, "openapi_extra": extra, "status_code": status, "response_class": Response}


def shape(example: Any) -> dict[str, Any]:
    """A JSON schema of what an example shows: types by name, nothing required, more allowed."""
    if isinstance(example, Mapping):
        return {"type": "object", "properties": {key: shape(value) for key, value in example.items()}}
    if isinstance(example, list):
        return {"type": "array", "items": shape(example[0]) if example else {}}
    if isinstance(example, bool):
        return {"type": "boolean"}
    if isinstance(example, int):
        return {"type": "integer"}
    return {"type": "string"} if isinstance(example, str) else {}


def _by_media(request: Any) -> bool:
    return isinstance(request, Mapping) and bool(request) and all("/" in key for key in request)


# --- lists


@dataclass(frozen=True)
class PageOf:
    """Which page: behind a cursor, at most `limit` items."""

    after: Any
    limit: int


def paging(
    request: Request,
    cursor: str | None = Query(None, max_length=1_000, description="`next_cursor` of the page before."),
    limit: int = Query(100, ge=1, le=500, description="Items on a page."),
) -> PageOf:
    """A dependency: the page that was asked for."""
    if cursor is None:
        return PageOf(None, limit)
    try:
        after = json.loads(base64.urlsafe_b64decode(cursor.encode() + b"=="))
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(
            "cursor is not one of ours", errors=[FieldError("query:cursor", "take it from next_cursor")]
        ) from error
    return PageOf(after, limit)


def text_cursor(page: PageOf) -> str | None:
    if page.after is None or isinstance(page.after, str):
        return page.after
    raise InvalidInput("cursor belongs to another list", errors=[FieldError("query:cursor", "of another list")])


def uuid_cursor(page: PageOf) -> str | None:
    text = text_cursor(page)
    if text is None:
        return None
    try:
        return str(UUID(text))
    except ValueError as error:
        raise InvalidInput("cursor belongs to another list") from error


def number_cursor(page: PageOf) -> int | None:
    if page.after is None or (isinstance(page.after, int) and 0 <= page.after < 2**63):
        return page.after
    raise InvalidInput("cursor belongs to another list", errors=[FieldError("query:cursor", "of another list")])


def cursor_of(position: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).rstrip(b"=").decode()


def page_of(
    rows: Sequence[Any],
    page: PageOf,
    position: Callable[[Any], Any],
    item: Callable[[Any], Any],
    more_keys: Mapping[str, Any] | None = None,
) -> Response:
    """Answer with `limit` items out of `limit + 1` rows that were asked for; one more means there is a next page."""
    shown = rows[: page.limit]
    more = len(rows) > page.limit
    body = {"items": [item(row) for row in shown], "next_cursor": cursor_of(position(shown[-1])) if more else None}
    return json_response(body | dict(more_keys or {}))


# --- answers


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(body), status_code=status, headers=dict(headers or {}), media_type="application/json")


def encode(body: Any) -> bytes:
    return msgspec.json.encode(body, enc_hook=_plain)


def _plain(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} has no JSON form")


def rfc3339(moment: datetime | None) -> str | None:
    return moment.isoformat().replace("+00:00", "Z") if moment is not None else None


def plain(value: Any) -> Any:
    """Values of SQL as JSON has them here: amounts as text without an exponent, times with an offset."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def etag(version: int) -> str:
    return f'"{version}"'


def if_match(request: Request) -> int | None:
    """The version that the caller has seen, from If-Match; None if none was sent or any will do."""
    header = request.headers.get("if-match")
    if header is None or header.strip() == "*":
        return None
    text = header.strip().removeprefix("W/").strip('"')
    if not text.isdigit() or len(text) > 9:
        raise InvalidInput("If-Match is not an ETag of ours", errors=[FieldError("header:If-Match", "send the ETag")])
    return int(text)


def not_modified(request: Request, version: int) -> bool:
    return request.headers.get("if-none-match", "").removeprefix("W/") == etag(version)


# --- writes


@dataclass(frozen=True)
class Answer:
    """What a write answers; `master` is the number of the master data change that it made."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    master: int | None = None


class MasterNumbers:
    """The newest change of each tenant that this process saw reach the chain: usage is routed with it, so that a shard
    that is behind loads first. Bounded; a tenant that fell out only loses the hint."""

    def __init__(self, size_max: int = 10_000) -> None:
        self._numbers: dict[str, int] = {}
        self._size_max = size_max

    def note(self, tenant_id: str, number: int) -> None:
        if tenant_id not in self._numbers and len(self._numbers) >= self._size_max:
            self._numbers.pop(next(iter(self._numbers)))
        self._numbers[tenant_id] = max(number, self._numbers.get(tenant_id, 0))

    def newest(self, tenant_id: str) -> int | None:
        return self._numbers.get(tenant_id)


class Write:
    """One write of a tenant: its transaction, its Idempotency-Key, its change in the master chain."""

    def __init__(self, request: Request) -> None:
        self.services: Services = request.app.state.services
        self.key = request.headers.get("idempotency-key")
        self.numbers: MasterNumbers = request.app.state.numbers
        self.expected = if_match(request)
        query = f"?{request.url.query}" if request.url.query else ""
        body: bytes = getattr(request.state, "body", b"")
        self._request = idempotency.request_hash(request.method, request.url.path + query, body)

    def mark(self, caller: Caller) -> str | None:
        """The same for repeats of this request, also where a crash left no answer of it; None without a key."""
        if self.key is None:
            return None
        return hashlib.sha256(b"\0".join([caller.owner.encode(), self.key.encode(), self._request])).hexdigest()

    def run(
        self, caller: Caller, work: Callable[[Connection], Answer], secret: Mapping[str, str] | None = None
    ) -> Response:
        """Do `work` in one transaction of the caller's tenant; the same key again gets the stored answer.

        `secret` is added to the answer and never stored.
        """
        now = self.services.clock()
        with self.services.database.tenant(caller.tenant_id) as connection:
            stored = self._begin(connection, caller, now)
            if stored is None:
                answer = work(connection)
                stored = self._finish(connection, caller, answer)
                replayed = False
            else:
                replayed = True
        return self._answer(caller.tenant_id, stored, replayed, secret)

    def answered(self, caller: Caller) -> Response | None:
        """The stored answer of the same key; None if there is none yet. For work that is long before its transaction:
        `run` still decides, for one that goes on at the same time."""
        if self.key is None:
            return None
        with self.services.database.tenant(caller.tenant_id) as connection:
            stored = idempotency.answered(connection, caller.owner, self.key, self._request)
        return None if stored is None else self._answer(caller.tenant_id, stored, True, None)

    def run_as_system(
        self, caller: Caller, work: Callable[[Connection], Answer], secret: Mapping[str, str] | None = None
    ) -> Response:
        """The same in a transaction of the system role: users and platform keys are nobody's rows.

        `work` may end in a tenant's role (tenants.enter); the key then is finished in the system role again.
        """
        now = self.services.clock()
        with self.services.database.system() as connection:
            stored = self._begin(connection, caller, now)
            replayed = stored is not None
            if stored is None:
                answer = work(connection)
                connection.execute("SELECT set_config('role', %s, true)", (SYSTEM_ROLE,))
                stored = self._finish(connection, caller, answer)
        return self._answer(stored.headers.get("Tenant", ""), stored, replayed, secret)

    def new_secret(self, request: Request, purpose: str) -> str:
        """256 bits for a new API key: random, or with an Idempotency-Key derived from it and the caller's own key.

        So a repeated request gets the same new key without it being stored anywhere, and nobody else can compute it.
        """
        held = request.headers.get("authorization", "")
        if self.key is None or not held:
            return f"cb_{secrets.token_urlsafe(32)}"
        message = b"\0".join([purpose.encode(), self.key.encode(), self._request])
        digest = hmac.new(held.encode(), message, hashlib.sha256).digest()
        return "cb_" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def _begin(self, connection: Connection, caller: Caller, now: datetime) -> idempotency.StoredAnswer | None:
        if self.key is None:
            return None
        return idempotency.begin(connection, caller.owner, self.key, self._request, now)

    def _finish(self, connection: Connection, caller: Caller, answer: Answer) -> idempotency.StoredAnswer:
        headers = dict(answer.headers)
        if answer.master is not None:
            headers["Master"] = str(answer.master)
        stored = idempotency.StoredAnswer(answer.status, encode(answer.body), headers)
        if self.key is not None:
            idempotency.finish(connection, caller.owner, self.key, stored)
        return stored

    def _answer(
        self, tenant_id: str, stored: idempotency.StoredAnswer, replayed: bool, secret: Mapping[str, str] | None
    ) -> Response:
        status = stored.status
        headers = dict(stored.headers)
        if "Master" in headers and tenant_id:
            # Usage that is sent after this answer must find the change: it is in the chain before we answer.
            number = int(headers["Master"])
            try:
                self.services.masters.project(self.services.database, tenant_id, up_to=number)
                self.numbers.note(tenant_id, number)
            except Unavailable:
                status = 202  # committed; it reaches the shards when the object store is back
        if replayed:
            headers["Idempotent-Replay"] = "true"
        body = stored.body
        if secret:
            body = encode(msgspec.json.decode(body) | dict(secret))
            headers["Cache-Control"] = "no-store"
        return Response(body, status_code=status, headers=headers, media_type="application/json")


def tenant_now(services: Services, connection: Connection, caller: Caller) -> datetime:
    """Now for this tenant: the clock, or the test clock that only its API moves."""
    if caller.tenant_kind == "test":
        moved = tenants.by_id(connection, caller.tenant_id).test_clock
        if moved is not None:
            return moved
    return services.clock()
