"""Request bodies: read with a limit on the way in, JSON without floats and without surprises."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request

from billing.body_encoding import decompress
from billing.errors import FieldError, InvalidInput, Malformed, Overloaded, TooLarge, UnsupportedMediaType
from deployments.services import Services

DEPTH_MAX = 64
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


class Room:
    """How many bytes of bodies this process holds at once: above its limit callers are told to come back."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held = 0

    def take(self, size: int) -> None:
        if self._held + size > self._bytes_max:
            raise Overloaded("too many large requests at once; send this one again", retry_after=1)
        self._held += size

    def give(self, size: int) -> None:
        self._held -= size


async def read_body(request: Request, bytes_max: int) -> bytes:
    """The body as sent. TooLarge as soon as that is known: by its stated length, before any of it is read."""
    stated = request.headers.get("content-length")
    if stated is not None and stated.isdigit() and int(stated) > bytes_max:
        raise too_large(bytes_max)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > bytes_max:
            raise too_large(bytes_max)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the body is larger than {bytes_max:,} bytes; send several requests", limit=bytes_max)


async def json_form(request: Request) -> Any:
    """A dependency: the JSON of a write. Numbers become exact text, never floats; a key twice is an error."""
    return parse_json(await json_body(request))


async def json_body(request: Request) -> bytes:
    """The bytes of a JSON body, decompressed."""
    services: Services = request.app.state.services
    bytes_max = services.limits.form_bytes_max
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await read_body(request, bytes_max)
    if kind != "application/json" and not (kind == "" and not body):
        raise UnsupportedMediaType(f"Content-Type {kind or '(none)'!r} is not taken here; send application/json")
    request.state.body = body  # for Idempotency-Key: the same request has the same bytes
    return decompress(body, request.headers.get("content-encoding"), bytes_max)


def parse_json(body: bytes) -> Any:
    """JSON with numbers as text. Malformed says where it breaks."""
    if not body.strip():
        raise Malformed("the body is empty; JSON is needed")
    if body.count(b"[") + body.count(b"{") > DEPTH_MAX and _depth(body) > DEPTH_MAX:
        raise Malformed(f"the JSON is nested more than {DEPTH_MAX} deep")
    try:
        return json.loads(body, parse_float=str, parse_int=_whole, parse_constant=_constant, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise Malformed("the body is no UTF-8") from error
    except json.JSONDecodeError as error:
        raise Malformed(
            f"the body is no valid JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from error


def _whole(text: str) -> int | str:
    return int(text) if len(text) <= 18 else text


def _constant(name: str) -> Any:
    raise Malformed(f"the body is no valid JSON: {name} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Malformed(f"the key {key[:100]!r} is there twice")
            seen.add(key)
    _no_nul(found)
    return found


def _no_nul(found: Mapping[str, Any]) -> None:
    """PostgreSQL holds every text but one with U+0000; lone surrogates are no text at all."""
    for key, value in found.items():
        for text in (key, value) if isinstance(value, str) else (key, *_texts(value)):
            if "\x00" in text or not _encodable(text):
                raise InvalidInput("a text holds a character that is none", errors=[FieldError("", repr(text[:50]))])


def _texts(value: Any) -> Sequence[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else ()


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _depth(body: bytes) -> int:
    depth = deepest = 0
    for match in _BRACKETS.finditer(body):
        sign = match[0]
        if sign in (b"[", b"{"):
            depth += 1
            if depth > DEPTH_MAX:
                return depth
            deepest = max(deepest, depth)
        elif sign in (b"]", b"}"):
            depth -= 1
    return deepest


def known_keys(form: Any, keys: Sequence[str], needed: Sequence[str] = ()) -> dict[str, Any]:
    """The form, if it is an object with these keys only and with all that are needed; else every mistake at once."""
    if not isinstance(form, dict):
        raise InvalidInput("a JSON object is needed", errors=[FieldError("", "an object is needed")])
    errors = [FieldError(_pointer(key), f"unknown key {key!r}") for key in form if key not in keys]
    errors += [FieldError(_pointer(key), "is missing") for key in needed if form.get(key) in (None, "")]
    if errors:
        raise InvalidInput(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)
    return form


def text_of(form: Mapping[str, Any], key: str, default: str | None = None, length_max: int = 256) -> str:
    """A short printable text of the form."""
    value = form.get(key, default)
    if not isinstance(value, str) or not value or len(value) > length_max or not value.isprintable():
        detail = f"a text of 1 to {length_max} printable characters is needed"
        raise InvalidInput(f"/{key}: {detail}", errors=[FieldError(_pointer(key), detail)])
    return value


def _pointer(key: str) -> str:
    return "/" + key.replace("~", "~0").replace("/", "~1")
