"""The platform's API as a Python client: what the command line and the demos speak.

Repeats what may be repeated (429, 502, 503, 504, a lost connection) with the same body and the same
`Idempotency-Key`, until its deadline; every problem+json becomes the error of `billing.errors` that it was.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO
from urllib.parse import quote
from uuid import uuid4

import httpx

from billing.errors import (
    BillingError,
    Conflict,
    FieldError,
    InvalidInput,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    PreconditionFailed,
    TooLarge,
    Unavailable,
)

REPEATABLE = frozenset({429, 502, 503, 504})
DEADLINE_S = 60.0
PROOF_S_MAX = 3600.0
PAGE_SIZE = 200
PAGES_MAX = 10_000
ARROW = "application/vnd.apache.arrow.stream"
_ERRORS: dict[int, type[BillingError]] = {
    400: InvalidInput,
    401: NotAuthenticated,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    412: PreconditionFailed,
    413: TooLarge,
    422: InvalidInput,
}


class Client:
    """One key's view of a running platform. Not shared between threads.

    `http` is a connection of the caller's own (he closes it), for an application in this process. The client remembers
    the newest change of master data that an answer named, and usage is judged by that one or a later one.
    """

    def __init__(self, url: str, key: str, *, deadline_s: float = DEADLINE_S, http: httpx.Client | None = None) -> None:
        self.url = url.rstrip("/")
        self._deadline_s = deadline_s
        self._key = {"Authorization": f"Bearer {key}"} if key else {}
        self._master: int | None = None
        self._own = http is None
        # trust_env off: a proxy setting of the machine must not carry a key away from loopback.
        self._http = http or httpx.Client(base_url=self.url, timeout=httpx.Timeout(120.0, connect=5.0), trust_env=False)

    def close(self) -> None:
        if self._own:
            self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, path: str, **parameters: str | int | None) -> Any:
        """The JSON of a resource."""
        return self._send("GET", path, params=_given(parameters)).json()

    def prove(self, path: str) -> Any:
        """The JSON of a resource that reads a whole log for its answer: it may take an hour, and is asked for once."""
        patience = {"timeout": httpx.Timeout(PROOF_S_MAX, connect=5.0)} if self._own else {}
        return self._send("GET", path, **patience).json()

    def get_bytes(self, path: str) -> bytes:
        """A resource that is no JSON (a PDF, an XML file)."""
        return self._send("GET", path).content

    def save(self, path: str, file: BinaryIO, **parameters: str | int | None) -> None:
        """Write a resource that may be large to a file as it comes; asked for once."""
        try:
            with self._http.stream("GET", path, headers=self._key, params=_given(parameters)) as answer:
                if not answer.is_success:
                    answer.read()
                    raise problem(answer)
                for part in answer.iter_bytes():
                    file.write(part)
        except httpx.TransportError as error:
            raise Unavailable(f"{self.url} does not answer: {error}") from error

    def get_part(self, path: str, **parameters: str | int | None) -> tuple[bytes, str | None]:
        """A file of several, and the cursor of the next one."""
        answer = self._send("GET", path, params=_given(parameters))
        return answer.content, answer.headers.get("Next-Cursor")

    def pages(self, path: str, **parameters: str | int | None) -> Iterator[dict[str, Any]]:
        """Every item of a list, page by page."""
        cursor: str | None = None
        for _ in range(PAGES_MAX):
            page = self.get(path, **{**parameters, "cursor": cursor, "limit": PAGE_SIZE})
            yield from page["items"]
            cursor = page.get("next_cursor")
            if not cursor:
                return

    def post(self, path: str, body: Any, *, idempotency_key: str | None = None, **parameters: str | int | None) -> Any:
        """Create or do something; the same `idempotency_key` never does it twice."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
        answer = self._send("POST", path, json=body, headers=headers, params=_given(parameters))
        return answer.json() if answer.content else None

    def post_bytes(self, path: str, body: bytes, media_type: str, **parameters: str | int | None) -> Any:
        """Send a body that is no JSON: a file, or events under a backfill; its ids keep it from counting twice."""
        headers = {"Content-Type": media_type}
        return self._send("POST", path, content=body, headers=headers, params=_given(parameters)).json()

    def put(self, path: str, body: Any, **parameters: str | int | None) -> Any:
        """Create a thing or change it whole."""
        return self._send("PUT", path, json=body, params=_given(parameters)).json()

    def patch(self, path: str, body: Any) -> Any:
        return self._send("PATCH", path, json=body).json()

    def delete(self, path: str) -> Any:
        """End or remove a thing."""
        return self._send("DELETE", path).json()

    def steps(self, steps: Sequence[Mapping[str, Any]], *, idempotency_key: str | None = None) -> Any:
        """Apply many changes of catalog and contracts at once, all or none."""
        return self.post("/v1/steps", list(steps), idempotency_key=idempotency_key)

    def usage(self, events: Any) -> dict[str, Any]:
        """Send a frame of EVENT_SCHEMA as Arrow IPC; the answer says what became of the events."""
        buffer = io.BytesIO()
        events.write_ipc_stream(buffer, compat_level=_compat())
        return self._usage(content=buffer.getvalue(), headers={"Content-Type": ARROW})

    def events(self, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Send a few events as JSON objects; the answer says what became of each."""
        return self._usage(json=list(events), headers={})

    def _usage(self, *, headers: dict[str, str], **content: Any) -> dict[str, Any]:
        if self._master is not None:
            headers["Master"] = str(self._master)
        answer = self._send("POST", "/v1/usage", headers=headers, answers=(422,), **content)
        body = answer.json()
        if answer.status_code == 422 and "received" not in body:  # with it: every event was rejected, and says why
            raise problem(answer)
        return body

    def _send(self, method: str, path: str, *, answers: Sequence[int] = (), **arguments: Any) -> httpx.Response:
        headers = {**self._key, **arguments.pop("headers", {})}
        began = time.monotonic()
        end = began + self._deadline_s
        pause = 0.1
        while True:
            try:
                answer = self._http.request(method, path, headers=headers, **arguments)
            except httpx.TransportError as error:
                # Nobody listens: a platform that restarts is back sooner, one that is stopped never answers.
                patience = 10.0 if isinstance(error, httpx.ConnectError) else self._deadline_s
                if time.monotonic() > min(end, began + patience):
                    raise Unavailable(f"{self.url} does not answer: {error}") from error
            else:
                if answer.is_success or answer.status_code in answers:
                    number = answer.headers.get("Master", "")
                    if number.isdigit():
                        self._master = max(self._master or 0, int(number))
                    return answer
                if not _is_repeatable(answer) or time.monotonic() > end:
                    raise problem(answer)
                pause = max(pause, float(answer.headers.get("Retry-After") or 0))
            time.sleep(min(pause, 5.0))
            pause = min(pause * 2, 5.0)


def _is_repeatable(answer: httpx.Response) -> bool:
    """Whether the same request may be sent again: told so, or it was not the platform that answered.

    Ray Serve answers for a replica that died with a bare 500, and with a bare 404 while it starts.
    """
    if answer.status_code in REPEATABLE:
        return True
    is_ours = answer.headers.get("Content-Type", "").startswith("application/problem+json")
    return not is_ours and (answer.status_code >= 500 or answer.status_code == 404)


def problem(answer: httpx.Response) -> BillingError:
    """The error that a problem+json answer stands for."""
    try:
        body = answer.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    detail = str(body.get("detail") or body.get("title") or f"HTTP {answer.status_code}")
    errors = [
        FieldError(str(error.get("pointer", "")), str(error.get("detail", "")))
        for error in body.get("errors") or ()
        if isinstance(error, dict)
    ]
    kind = _ERRORS.get(answer.status_code, Unavailable if answer.status_code in REPEATABLE else BillingError)
    return kind(detail, errors=errors, http_status=answer.status_code)


def path_part(code: str) -> str:
    """A code as one part of a path: codes may hold slashes and blanks."""
    return quote(code, safe="")


def _given(parameters: Mapping[str, str | int | None]) -> dict[str, str | int]:
    return {name: value for name, value in parameters.items() if value is not None}


def _compat() -> Any:
    import polars as pl

    return pl.CompatLevel.oldest()  # plain strings: every Arrow reader knows them
