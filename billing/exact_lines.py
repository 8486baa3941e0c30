"""Usage events out of JSON exactly: each line, item or object by itself, digit for digit; what is broken is named.

Every other way of reading must come to the same (`billing/like_lines.py`, `billing/column_lines.py`): this one decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import unquote

import msgspec
import polars as pl

from billing.errors import FieldError, Malformed, UnsupportedMediaType
from billing.parsed_usage import CLOUD, CLOUD_KEYS, NDJSON, Few, Raw, Reject, Row, too_many

FEW = 64  # up to so many events the rules run in plain Python (`billing/door_rules.py`)


class _Event(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    source: str | None = None
    id: str | None = None
    type: str | None = None
    customer: str | None = None
    subscription: str | None = None
    time: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")


class _CloudEvent(msgspec.Struct, gc=False):
    specversion: str | None = None
    source: str | None = None
    id: str | None = None
    type: str | None = None
    subject: str | None = None
    customer: str | None = None
    subscription: str | None = None
    time: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    data_base64: msgspec.Raw = msgspec.Raw(b"null")


_DECODE: dict[bool, Callable[[bytes], _Event | _CloudEvent]] = {
    False: msgspec.json.Decoder(_Event).decode,
    True: msgspec.json.Decoder(_CloudEvent).decode,
}
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_PATH = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`")
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?Infinity|NaN', re.DOTALL)


def read_lines(body: bytes, events_max: int, *, cloud: bool) -> Raw | Few:
    if body.count(b"\n") > events_max * 2:
        raise too_many(events_max)
    return read_parts(body.split(b"\n"), events_max, cloud=cloud)


def read_array(body: bytes, events_max: int, *, cloud: bool) -> Raw | Few:
    try:
        items = _decode_items(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as first:
        try:
            items = _decode_items(_quote_constants(body))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise Malformed(
                f"the body is no valid JSON array: {_words(first)}", errors=[FieldError("", _words(first))]
            ) from first
    return read_parts([bytes(item) for item in items], events_max, cloud=cloud)


def read_parts(parts: Sequence[bytes], events_max: int, *, cloud: bool) -> Raw | Few:
    """Each part by itself. Blank parts (empty lines) count as a place, not as an event."""
    schema = CLOUD if cloud else NDJSON
    decode = _DECODE[cloud]
    rows: list[Row] = []
    positions: list[int] = []
    rejects: list[Reject] = []
    total = 0
    for position, part in enumerate(parts, start=1):
        text = part.strip()
        if not text:
            continue
        total += 1
        if total > events_max:
            raise too_many(events_max)
        try:
            event = decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as first:
            try:
                event = decode(_quote_constants(text))
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                rejects.append((position, *_cause(first, text), None))
                continue
        rows.append(tuple(_plain(getattr(event, name)) for name in schema))
        positions.append(position)
    if len(rows) <= FEW:
        return Few(rows, positions, rejects, total)
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return Raw(table, pl.Series(positions, dtype=pl.UInt32), rejects, total)


def _plain(value: str | msgspec.Raw | None) -> str | None:
    if isinstance(value, msgspec.Raw):
        raw = bytes(value)
        return None if raw == b"null" else raw.decode()
    return value


def _quote_constants(text: bytes) -> bytes:
    """NaN and Infinity as text: no JSON, but many write them; the event is kept and its value is not taken."""
    return _TOKENS.sub(lambda match: match[0] if match[0][:1] == b'"' else b'"' + match[0] + b'"', text)


def _words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is no UTF-8"
    return _PATH.sub("", str(error))[:300]


def _cause(error: Exception, part: bytes) -> tuple[str, str, str]:
    """(reason, detail, pointer) of what the decoder complains about."""
    text = str(error)
    if isinstance(error, msgspec.ValidationError):
        try:
            msgspec.json.decode(_quote_constants(part))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as broken:
            return "broken_json", _words(broken), ""
        unknown = _UNKNOWN.match(text)
        if unknown:
            return "unknown_key", f"unknown key {unknown['key'][:100]!r}", "/" + _escape(unknown["key"][:100])
        path = _PATH.search(text)
        pointer = path["path"].replace(".", "/") if path else ""
        if not pointer:
            return "not_an_object", "an event is a JSON object", ""
        return "not_text", _words(error).replace("`str | null`", "text").replace("`", ""), pointer
    if isinstance(error, RecursionError):
        return "too_deep", _words(error), ""
    return "broken_json", _words(error), ""


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def read_binary(body: bytes, kind: str, attributes: Mapping[str, str]) -> Few:
    """CloudEvents in binary mode: the attributes are headers, the body is `data`."""
    if kind != "application/json" and body.strip():
        raise UnsupportedMediaType("a usage event in CloudEvents binary mode carries application/json")
    row = {key: unquote(attributes[key]) if key in attributes else None for key in CLOUD_KEYS}
    text = body.strip()
    if text:
        try:
            msgspec.json.decode(_quote_constants(text), type=msgspec.Raw)
            row["data"] = _quote_constants(text).decode() if b"NaN" in text or b"Infinity" in text else text.decode()
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise Malformed(f"the body is no valid JSON: {_words(error)}") from error
    return Few([tuple(row.get(key) for key in CLOUD)], [1], [], 1)
