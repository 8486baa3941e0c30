"""From the bytes of a request to usage events as columns: NDJSON, JSON, CloudEvents 1.0, Arrow IPC.

Owns what makes an event acceptable at the door (docs/usage-log.md): an event that is refused here is not stored and its
id stays free; everything else is stored, typed by a meter only when rating. A bad event never costs the good ones.

Lines that are written alike are read as such (`billing/like_lines.py`). Other bodies are parsed by one Polars call,
which cannot be trusted with everything (it drops unknown keys, turns numbers into floats of 17 digits, fails as a whole
for one broken line): so columns and bytes are counted against each other afterwards, and where they do not agree, the
body is read again line by line, exactly.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import msgspec
import numpy as np
import polars as pl
import zstandard

from billing import like_lines, usage_arrow
from billing.errors import FieldError, InvalidInput, Malformed, TooLarge, UnsupportedMediaType
from billing.usage import DATA_BYTES_MAX, EVENT_SCHEMA, INSTANT, RESERVED_SOURCE, TEXT_LENGTH_MAX

BODY_BYTES_MAX = 64 * 1024 * 1024  # after decompression
EVENTS_MAX = 100_000
DEPTH_MAX = 32  # of `data`
SMALL_BYTES = 16_384  # below, setting up a columnar parse costs more than reading line by line
FEW = 64  # up to so many events of the exact way the rules run in plain Python

NDJSON_TYPES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})
JSON_TYPE = "application/json"
CLOUD_EVENT_TYPE = "application/cloudevents+json"
CLOUD_BATCH_TYPE = "application/cloudevents-batch+json"
ARROW_TYPES = frozenset({"application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"})
CONTENT_TYPES = (*sorted(NDJSON_TYPES), JSON_TYPE, CLOUD_EVENT_TYPE, CLOUD_BATCH_TYPE, *sorted(ARROW_TYPES))

REJECT_SCHEMA = pl.Schema(
    {"position": pl.UInt32, "reason": pl.String, "detail": pl.String, "pointer": pl.String, "id": pl.String}
)
_NUMBER = r"[:\[,] -?[0-9]|\[-?[0-9]"  # a JSON number in the form in which Polars writes `data`
_TEXTS = ("source", "id", "type", "customer", "subscription", "time")
_TEXT_SCHEMA = pl.Schema(dict.fromkeys(EVENT_SCHEMA, pl.String))
_NDJSON = pl.Schema(dict.fromkeys((*_TEXTS, "data"), pl.String))
_ESCAPED = re.compile(rb'\\(?:[\\"]|u00(?:5[cC]|22))')  # a backslash or a quotation mark inside of a JSON text
_CLOUD_KEYS = ("specversion", "source", "id", "type", "subject", "customer", "subscription", "time")
_CLOUD = pl.Schema(dict.fromkeys((*_CLOUD_KEYS, "data", "data_base64"), pl.String))


@dataclass(frozen=True)
class ParsedUsage:
    """`events` (EVENT_SCHEMA) and `positions` (1-based places in the request) go to the log; `rejects` do not."""

    events: pl.DataFrame
    positions: pl.Series
    rejects: pl.DataFrame
    total: int


def decompress(body: bytes, encoding: str | None, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """Undo `Content-Encoding` (gzip, zstd, identity), never making more than `bytes_max` bytes of it."""
    name = (encoding or "identity").strip().lower()
    if name in ("", "identity"):
        return body
    try:
        if name in ("gzip", "x-gzip"):
            return _gunzip(body, bytes_max)
        if name == "zstd":
            return _unzstd(body, bytes_max)
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        raise Malformed(f"the body is not valid {name}: {error}") from error
    raise UnsupportedMediaType(f"Content-Encoding {name!r} is not taken; use gzip, zstd or none")


def parse(
    body: bytes,
    content_type: str,
    headers: Mapping[str, str] | None = None,
    *,
    events_max: int = EVENTS_MAX,
    bytes_max: int = BODY_BYTES_MAX,
) -> ParsedUsage:
    """Read a request body (already decompressed) into events and rejects.

    `headers` (lower-case names) matter for CloudEvents in binary mode only. Raises UnsupportedMediaType, Malformed
    (nothing in the body can be read) or TooLarge; an event that is wrong by itself is a row of `rejects`.
    """
    kind = content_type.partition(";")[0].strip().lower()
    binary = {name[3:]: value for name, value in (headers or {}).items() if name.startswith("ce-")}
    if binary:
        return _finish(_binary(body, kind, binary), cloud=True)
    if kind in ARROW_TYPES:
        table = usage_arrow.read(body, events_max=events_max, bytes_max=bytes_max)
        return _finish(_Raw(table, pl.int_range(1, table.height + 1, dtype=pl.UInt32, eager=True), [], table.height))
    if kind in NDJSON_TYPES:
        raw = _lines(body, body, events_max, cloud=False)
    elif kind == JSON_TYPE:
        raw = _array_or_object(body, events_max, cloud=False)
    elif kind == CLOUD_EVENT_TYPE:
        raw = _array_or_object(body, 1, cloud=True, what="object")
    elif kind == CLOUD_BATCH_TYPE:
        raw = _array_or_object(body, events_max, cloud=True, what="array")
    else:
        raise UnsupportedMediaType(
            f"Content-Type {kind or '(none)'!r} is not taken here; use one of {', '.join(CONTENT_TYPES)}"
        )
    return _finish(raw, cloud=kind in (CLOUD_EVENT_TYPE, CLOUD_BATCH_TYPE))


_Reject = tuple[int, str, str, str, str | None]  # REJECT_SCHEMA
_Row = tuple[str | None, ...]  # _NDJSON or _CLOUD


@dataclass
class _Raw:
    """Events as text columns, before any rule; `rejects` are those that could not even be read."""

    table: pl.DataFrame
    positions: pl.Series
    rejects: list[_Reject]
    total: int
    is_plain: bool = False  # no rule can be broken


@dataclass
class _Few:
    """The same for a handful of events, as rows."""

    rows: list[_Row]
    positions: list[int]
    rejects: list[_Reject]
    total: int


# --- JSON: the columnar way, and the proof that it lost nothing


def _lines(body: bytes, original: bytes, events_max: int, *, cloud: bool) -> _Raw | _Few:
    """`body` as NDJSON (perhaps made from the JSON array `original`)."""
    if len(body) >= SMALL_BYTES:
        like = None if cloud or body.count(b"\n") > events_max else like_lines.read(body)
        if like is not None and like.events.height <= events_max:
            positions = pl.int_range(1, like.events.height + 1, dtype=pl.UInt32, eager=True)
            return _Raw(like.events, positions, [], like.events.height, like.is_plain)
        table = _columnar(body, _CLOUD if cloud else _NDJSON, events_max, cloud=cloud)
        if table is not None:
            positions = pl.int_range(1, table.height + 1, dtype=pl.UInt32, eager=True)
            return _Raw(table, positions, [], table.height)
    if original is not body:
        return _exact_array(original, events_max, cloud=cloud)
    return _exact_lines(body, events_max, cloud=cloud)


def _columnar(body: bytes, schema: pl.Schema, events_max: int, *, cloud: bool) -> pl.DataFrame | None:
    """One call for all lines, or None where its result could differ from an exact reading by as much as a digit."""
    lines = body.count(b"\n") + (not body.endswith(b"\n"))
    if lines > events_max:
        raise _too_many(events_max)
    try:
        table = pl.read_ndjson(io.BytesIO(body), schema=schema)
    except pl.exceptions.PolarsError:
        return None  # one broken line fails the whole body here; the exact way names it
    if table.height != lines:
        return None  # blank lines vanish, positions would shift
    if not cloud and _lengths_agree(table, body):
        return table
    if _has_long_numbers(table["data"], body):
        return None
    if b"\\" in body and (_ESCAPED.search(body) or bool(table["data"].str.contains(r"[\x00-\x1f]").any())):
        return None  # Polars writes such characters unescaped into `data`: another text, or no JSON any more
    agrees = _cloud_agrees(table, body) if cloud else _native_agrees(table, body)
    return table if agrees else None


_LENGTHS = (
    *(pl.col(name).count().alias(name) for name in _NDJSON),
    pl.sum_horizontal(pl.col(name).str.len_bytes().sum() for name in _NDJSON).alias("bytes"),
    pl.col("data").str.starts_with("{").sum().alias("objects"),
    pl.col("data").str.count_matches('": ', literal=True).sum().alias("keys"),
    pl.col("data").str.count_matches(", ", literal=True).sum().alias("commas"),
    pl.col("data").str.contains(_NUMBER).any().alias("numbers"),
)


def _lengths_agree(table: pl.DataFrame, body: bytes) -> bool:
    """Does the body have the very length that these columns take up in JSON, with or without blanks?

    Holds only where `data` comes back from Polars letter by letter: no escapes, no numbers. Then an unknown key, a
    null, a number in place of a text make another length; it is the quickest proof there is.
    """
    if b"\\" in body:
        return False
    counts = table.select(_LENGTHS).row(0, named=True)
    if counts["numbers"]:
        return False
    rows = table.height
    given = {name: int(counts[name]) for name in table.columns}
    if given["data"] != int(counts["objects"]):
        return False
    fields = sum(given.values())
    punctuation = sum(count * (len(name) + 3) for name, count in given.items()) + (fields - rows) + 2 * rows
    quotes = 2 * (fields - given["data"])
    newlines = rows - (not body.endswith(b"\n"))
    spaced = int(counts["bytes"]) + punctuation + quotes + newlines + fields + (fields - rows)
    compact = spaced - fields - (fields - rows) - int(counts["keys"]) - int(counts["commas"])
    return len(body) in (compact, spaced)


def _native_agrees(table: pl.DataFrame, body: bytes) -> bool:
    """Every key of the body is in the table, and everything but `data` was a JSON string.

    Polars writes `data` as `{"a": "b"}`: keys end with `":`, string values start behind `": `. A difference also comes
    from harmless things (blanks before a colon); then the exact reading decides.
    """
    counts = table.select(
        *(pl.col(name).is_not_null().sum().alias(name) for name in table.columns),
        keys=pl.col("data").str.count_matches('":', literal=True).sum(),
        texts=pl.col("data").str.count_matches('": "', literal=True).sum(),
        objects=pl.col("data").str.starts_with("{").sum(),
    ).row(0, named=True)
    given = sum(int(counts[name]) for name in _TEXTS)
    if counts["objects"] != counts["data"]:
        return False
    if body.count(b'":"') + body.count(b'": "') != given + int(counts["texts"]):
        return False
    missing = body.count(b'":') - (given + int(counts["data"]) + int(counts["keys"]))
    if missing == 0:
        return True
    nulls = sum(body.count(f'"{name}":null'.encode()) + body.count(f'"{name}": null'.encode()) for name in _NDJSON)
    inside = table.select(pl.sum_horizontal(pl.col("data").str.count_matches(f'"{name}": null', literal=True).sum()
                                            for name in _NDJSON)).item()  # fmt: skip
    return missing == nulls - int(inside)  # keys that we know, and nothing in them


def _cloud_agrees(table: pl.DataFrame, body: bytes) -> bool:
    """The attributes that we read were JSON strings; others are extensions, which CloudEvents allows."""
    if table["data_base64"].null_count() != table.height:
        return False
    counts = table.select(
        *(pl.col(name).is_not_null().sum().alias(name) for name in _CLOUD_KEYS),
        *(
            pl.col("data").str.count_matches(f'"{key}": "', literal=True).sum().alias(f"in {key}")
            for key in _CLOUD_KEYS
        ),
        objects=(pl.col("data").str.starts_with("{") | pl.col("data").is_null()).sum(),
    ).row(0, named=True)
    if counts["objects"] != table.height or b'"data":"' in body or b'"data": "' in body:
        return False
    for key in _CLOUD_KEYS:
        seen = body.count(f'"{key}":"'.encode()) + body.count(f'"{key}": "'.encode())
        if seen != int(counts[key]) + int(counts[f"in {key}"]):
            return False
    return True


def _has_long_numbers(data: pl.Series, body: bytes) -> bool:
    """Is there a JSON number that a float may not hold exactly: above 15 digits, or a three-digit exponent?"""
    if not bool(data.str.contains(_NUMBER).any()):
        return False  # decimals came as strings, as clients are told to send them
    text = pl.Series([body.decode("utf-8", "replace")])  # Rust's regex: five times as fast as `re` over bytes
    return bool(text.str.contains(r"[:\[,]\s*-?[0-9][0-9.]{15}|[0-9][eE][+-]?[0-9]{3}").item())


def _array_or_object(body: bytes, events_max: int, *, cloud: bool, what: str = "either") -> _Raw | _Few:
    text = body.strip()
    if not text:
        raise Malformed("the body is empty; at least one event is needed")
    if text[:1] == b"{" and what != "array":
        return _exact([text], events_max, cloud=cloud)
    if text[:1] == b"[" and what != "object":
        if len(text) < SMALL_BYTES or text[-1:] != b"]":
            return _exact_array(text, events_max, cloud=cloud)
        # Cut between objects. Where this cuts inside of a value, a line is no JSON and the exact way takes over.
        cut = text[1:-1].replace(b"\n", b" ").replace(b'},{"', b'}\n{"').replace(b'}, {"', b'}\n{"').strip()
        return _lines(cut, text, events_max, cloud=cloud)
    raise Malformed(f"the body is no JSON {'array or object' if what == 'either' else what} of usage events")


# --- JSON: the exact way


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


def _exact_lines(body: bytes, events_max: int, *, cloud: bool) -> _Raw | _Few:
    if body.count(b"\n") > events_max * 2:
        raise _too_many(events_max)
    return _exact(body.split(b"\n"), events_max, cloud=cloud)


def _exact_array(body: bytes, events_max: int, *, cloud: bool) -> _Raw | _Few:
    try:
        items = _decode_items(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as first:
        try:
            items = _decode_items(_quote_constants(body))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise Malformed(
                f"the body is no valid JSON array: {_words(first)}", errors=[FieldError("", _words(first))]
            ) from first
    return _exact([bytes(item) for item in items], events_max, cloud=cloud)


def _exact(parts: Sequence[bytes], events_max: int, *, cloud: bool) -> _Raw | _Few:
    """Each part by itself. Blank parts (empty lines) count as a place, not as an event."""
    schema = _CLOUD if cloud else _NDJSON
    decode = _DECODE[cloud]
    rows: list[_Row] = []
    positions: list[int] = []
    rejects: list[_Reject] = []
    total = 0
    for position, part in enumerate(parts, start=1):
        text = part.strip()
        if not text:
            continue
        total += 1
        if total > events_max:
            raise _too_many(events_max)
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
        return _Few(rows, positions, rejects, total)
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return _Raw(table, pl.Series(positions, dtype=pl.UInt32), rejects, total)


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


def _binary(body: bytes, kind: str, attributes: Mapping[str, str]) -> _Few:
    """CloudEvents in binary mode: the attributes are headers, the body is `data`."""
    if kind != JSON_TYPE and body.strip():
        raise UnsupportedMediaType("a usage event in CloudEvents binary mode carries application/json")
    row = {key: unquote(attributes[key]) if key in attributes else None for key in _CLOUD_KEYS}
    text = body.strip()
    if text:
        try:
            msgspec.json.decode(_quote_constants(text), type=msgspec.Raw)
            row["data"] = _quote_constants(text).decode() if b"NaN" in text or b"Infinity" in text else text.decode()
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise Malformed(f"the body is no valid JSON: {_words(error)}") from error
    return _Few([tuple(row.get(key) for key in _CLOUD)], [1], [], 1)


# --- the rules of the door, in columns

_FIELD_RULES = ("source", "id", "type", "customer", "time")
_TIME = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
_TIME_PATTERN = re.compile(_TIME[:-1] + r"\Z")  # `$` alone would let a line end pass here, unlike in Polars
_TIME_DETAIL = "time must be like 2026-01-31T12:00:00+01:00, with an offset, from 1900 to 9999"
_BOUNDED = ("source", "id", "type", "customer", "subscription")
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_NO_REJECTS = pl.DataFrame(schema=REJECT_SCHEMA)
_FIRST, _LAST = datetime(1900, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
_FIRST_US, _LAST_US = (_FIRST - _EPOCH) // _MICROSECOND, (_LAST - _EPOCH) // _MICROSECOND


def _finish(raw: _Raw | _Few, *, cloud: bool = False) -> ParsedUsage:
    """Apply the rules to all rows at once; the first rule that a row breaks is its reason."""
    if isinstance(raw, _Few):
        return _finish_few(raw, cloud)
    if raw.is_plain:
        return ParsedUsage(raw.table, raw.positions, _NO_REJECTS, raw.total)
    if not cloud and (quick := _finish_flawless(raw)) is not None:
        return quick
    table = raw.table
    rules: list[tuple[pl.Expr, str, str, str]] = []
    if cloud:
        rules += [
            (pl.col("specversion").fill_null("") != "1.0", "specversion", "specversion must be 1.0", "/specversion"),
            (pl.col("data_base64").is_not_null(), "data_base64", "data must be JSON, not base64", "/data_base64"),
            (
                pl.col("subject").is_not_null()
                & pl.col("customer").is_not_null()
                & (pl.col("subject") != pl.col("customer")),
                "two_customers",
                "subject and customer name two customers",
                "/customer",
            ),
        ]
        named = pl.coalesce("customer", "subject")
    else:
        named = pl.col("customer")
    table = table.with_columns(customer=named, place=raw.positions)
    if table.schema["time"] == pl.String:
        table = table.with_columns(_instants(table["time"]).alias("at"))
    else:
        table = table.with_columns(at=pl.col("time"))
    for name in _FIELD_RULES[:4]:
        text = pl.col(name)
        rules.append((text.is_null() | (text == ""), "missing", f"{name} is missing", f"/{name}"))
    rules.append((pl.col("time").is_null(), "missing", "time is missing", "/time"))
    for name in _BOUNDED:
        rules.append(
            (
                pl.col(name).str.len_chars() > TEXT_LENGTH_MAX,
                "too_long",
                f"{name} is longer than {TEXT_LENGTH_MAX} characters",
                f"/{name}",
            )
        )
    reserved = pl.col("source").str.starts_with(RESERVED_SOURCE)
    rules.append((reserved, "reserved_source", f"sources that begin with {RESERVED_SOURCE} are ours", "/source"))
    bad_time = pl.col("at").is_null() | ~pl.col("at").is_between(_FIRST, _LAST, closed="left")
    rules.append((bad_time, "invalid_time", _TIME_DETAIL, "/time"))
    data = pl.col("data")
    rules.append((data.str.len_bytes() > DATA_BYTES_MAX, "too_long", f"data is over {DATA_BYTES_MAX} bytes", "/data"))
    rules.append((~data.str.starts_with("{"), "not_an_object", "data must be a JSON object", "/data"))
    rules.append((data.is_in(_too_deep(table["data"])), "too_deep", f"data is nested over {DEPTH_MAX} deep", "/data"))

    rule = pl.lit(None, dtype=pl.Int32)
    for number in range(len(rules) - 1, -1, -1):
        rule = pl.when(rules[number][0].fill_null(False)).then(pl.lit(number, dtype=pl.Int32)).otherwise(rule)
    table = table.with_columns(rule=rule)
    if table["rule"].null_count() == table.height:
        good, bad = table, table.clear()
    else:
        good, bad = table.filter(pl.col("rule").is_null()), table.filter(pl.col("rule").is_not_null())
    events = good.select(
        "source", "id", "type", "customer",
        pl.when(pl.col("subscription") == "").then(None).otherwise(pl.col("subscription")).alias("subscription"),
        pl.col("at").alias("time"),
        pl.col("data").fill_null("{}"),
    ).cast(EVENT_SCHEMA)  # fmt: skip
    rejects = bad.select(
        pl.col("place").alias("position"),
        *(
            pl.col("rule").replace_strict(
                {number: one[part] for number, one in enumerate(rules)}, return_dtype=pl.String
            ).alias(column)
            for part, column in ((1, "reason"), (2, "detail"), (3, "pointer"))
        ),
        pl.col("id").str.slice(0, TEXT_LENGTH_MAX),
    ).cast(REJECT_SCHEMA)  # fmt: skip
    if raw.rejects:
        unread = pl.DataFrame(raw.rejects, schema=REJECT_SCHEMA, orient="row")
        rejects = pl.concat([rejects, unread]).sort("position")
    return ParsedUsage(events, good["place"], rejects, raw.total)


# What might be wrong with any row, as one truth each: the usual request, in which nothing is, is done with by these.
# The expressions are made once: making them costs more than running them over a thousand rows.
_SUSPICIONS: tuple[pl.Expr, ...] = (
    *((pl.col(name).is_null() | (pl.col(name) == "")).any().alias(f"no {name}") for name in _FIELD_RULES[:4]),
    pl.col("time").is_null().any().alias("no time"),
    *((pl.col(name).str.len_bytes() > TEXT_LENGTH_MAX).any().alias(f"long {name}") for name in _BOUNDED),
    (pl.col("subscription") == "").any().alias("empty subscription"),
    pl.col("source").str.starts_with(RESERVED_SOURCE).any().alias("reserved"),
    (pl.col("data").str.len_bytes() > DATA_BYTES_MAX).any().alias("long data"),
    (~pl.col("data").str.starts_with("{")).any().alias("no object"),
    (
        pl.col("data").str.count_matches("{", literal=True) + pl.col("data").str.count_matches("[", literal=True)
        > DEPTH_MAX
    )
    .any()
    .alias("deep"),
)
_EVENTS = (
    *(pl.col(name) for name in ("source", "id", "type", "customer", "subscription")),
    pl.col("at").alias("time"),
    pl.col("data").fill_null("{}"),
)
_BAD_INSTANTS = (pl.col("at").is_null() | ~pl.col("at").is_between(_FIRST, _LAST, closed="left")).any()


def _finish_flawless(raw: _Raw) -> ParsedUsage | None:
    """The events of a request in which no row breaks a rule; None where the rules must be asked row by row."""
    table = raw.table
    if raw.rejects or not table.height or True in table.select(_SUSPICIONS).row(0):
        return None
    at = _instants(table["time"]) if table.schema["time"] == pl.String else table["time"]
    table = table.with_columns(at.alias("at"))
    if table.select(_BAD_INSTANTS).item():
        return None
    events = table.select(_EVENTS)
    if events.schema != EVENT_SCHEMA:
        events = events.cast(EVENT_SCHEMA)
    return ParsedUsage(events, raw.positions, _NO_REJECTS, raw.total)


def _finish_few(few: _Few, cloud: bool) -> ParsedUsage:
    """The same rules in plain Python: for a handful of events a hundred times as fast as starting up columns.

    A property test holds both against each other.
    """
    columns: tuple[list[str | None], ...] = ([], [], [], [], [], [])
    moments: list[int] = []
    positions: list[int] = []
    rejects = list(few.rejects)
    names = _CLOUD.names() if cloud else _NDJSON.names()
    for position, row in zip(few.positions, few.rows, strict=True):
        event = dict(zip(names, row, strict=True))
        wrong = _cloud_mistake(event) if cloud else None
        if cloud and event["customer"] is None:
            event["customer"] = event["subject"]
        moment = _moment(event["time"]) if event["time"] else None
        wrong = wrong or _mistake(event, moment)
        if wrong is not None or moment is None:
            assert wrong is not None, "an event without a time has a mistake"
            identity = event["id"]
            rejects.append((position, *wrong, identity[:TEXT_LENGTH_MAX] if identity is not None else None))
            continue
        for column, name in zip(columns, ("source", "id", "type", "customer"), strict=False):
            column.append(event[name])
        columns[4].append(event["subscription"] or None)
        columns[5].append("{}" if event["data"] is None else event["data"])
        moments.append(moment)
        positions.append(position)
    times = pl.Series("time", moments, dtype=pl.Int64).cast(INSTANT)
    texts = [
        pl.Series(name, column, dtype=pl.String)
        for name, column in zip(("source", "id", "type", "customer", "subscription", "data"), columns, strict=True)
    ]
    rejects.sort(key=lambda reject: reject[0])
    return ParsedUsage(
        pl.DataFrame([*texts[:5], times, texts[5]]),
        pl.Series("place", positions, dtype=pl.UInt32),
        pl.DataFrame(rejects, schema=REJECT_SCHEMA, orient="row") if rejects else _NO_REJECTS,
        few.total,
    )


def _cloud_mistake(event: Mapping[str, str | None]) -> tuple[str, str, str] | None:
    if event["specversion"] != "1.0":
        return "specversion", "specversion must be 1.0", "/specversion"
    if event["data_base64"] is not None:
        return "data_base64", "data must be JSON, not base64", "/data_base64"
    subject, customer = event["subject"], event["customer"]
    if subject is not None and customer is not None and subject != customer:
        return "two_customers", "subject and customer name two customers", "/customer"
    return None


def _mistake(event: Mapping[str, str | None], moment: int | None) -> tuple[str, str, str] | None:
    """The first rule that an event breaks; in the order of the columnar rules."""
    for name in _FIELD_RULES[:4]:
        if not event[name]:
            return "missing", f"{name} is missing", f"/{name}"
    if event["time"] is None:
        return "missing", "time is missing", "/time"
    for name in _BOUNDED:
        if len(event[name] or "") > TEXT_LENGTH_MAX:
            return "too_long", f"{name} is longer than {TEXT_LENGTH_MAX} characters", f"/{name}"
    if (event["source"] or "").startswith(RESERVED_SOURCE):
        return "reserved_source", f"sources that begin with {RESERVED_SOURCE} are ours", "/source"
    if moment is None or not _FIRST_US <= moment < _LAST_US:
        return "invalid_time", _TIME_DETAIL, "/time"
    data = event["data"]
    if data is None:
        return None
    if len(data.encode()) > DATA_BYTES_MAX:
        return "too_long", f"data is over {DATA_BYTES_MAX} bytes", "/data"
    if not data.startswith("{"):
        return "not_an_object", "data must be a JSON object", "/data"
    if data.count("{") + data.count("[") > DEPTH_MAX and _depth(data.encode()) > DEPTH_MAX:
        return "too_deep", f"data is nested over {DEPTH_MAX} deep", "/data"
    return None


def _moment(text: str) -> int | None:
    """An RFC 3339 text in microseconds since 1970, None where it is none."""
    if _TIME_PATTERN.search(text) is None:
        return None
    try:
        return (datetime.fromisoformat(text.upper()) - _EPOCH) // _MICROSECOND
    except ValueError:  # a leap second, 30 February, the year 0: as the columns judge it
        moment = _instants(pl.Series("time", [text])).dt.epoch("us").item()
        return int(moment) if moment is not None else None


_TEXT = pl.col("time")
_TAIL = _TEXT.str.slice(19)
_GOOD = _TEXT.str.contains(_TIME).alias("good")
_LOCAL = _TEXT.str.slice(0, 19).str.to_datetime("%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False, cache=False)
_SPELLED = (
    pl.concat_str(_TEXT.str.slice(0, 10), pl.lit("T"), _TEXT.str.slice(11, 8))
    .str.to_datetime("%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False, cache=False)
    .alias("local")
)
_HOURS, _MINUTES = (_TAIL.str.slice(place, 2).cast(pl.Int64, strict=False) for place in (-5, -2))
_SECONDS = _HOURS * 3600 + _MINUTES * 60
_OFFSET = (
    pl.when(_TAIL.str.ends_with("Z") | _TAIL.str.ends_with("z"))
    .then(0)
    .when(_TAIL.str.slice(-6, 1) == "-")
    .then(-_SECONDS)
    .otherwise(_SECONDS)
)
_FRACTION = _TAIL.str.extract(r"^\.([0-9]{1,6})").str.pad_end(6, "0").cast(pl.Int64, strict=False)


def _made(offset: bool, fraction: bool) -> pl.Expr:
    instant = pl.col("local").cast(pl.Int64)
    if offset:
        instant = instant - _OFFSET * 1_000_000
    if fraction:
        instant = instant + _FRACTION.fill_null(0)
    return pl.when(pl.col("good")).then(instant.cast(pl.Datetime("us", "UTC"))).alias("time")


_MADE = {(offset, fraction): _made(offset, fraction) for offset in (False, True) for fraction in (False, True)}
_FORMS = (
    (pl.col("local").is_null() & pl.col("good")).any().alias("spelled"),
    (~(_TEXT.str.ends_with("Z") | _TEXT.str.ends_with("+00:00"))).any().alias("offset"),
    _TAIL.str.starts_with(".").any().alias("fraction"),
)


def _instants(times: pl.Series) -> pl.Series:
    """RFC 3339 texts as instants, null where one is none; digits beyond the microsecond are cut off.

    Polars has a quick way for `%Y-%m-%dT%H:%M:%S` alone (six times as fast as the same with fraction and offset), so
    these two are taken by their places at the end of the text.
    """
    table = pl.DataFrame({"time": times}).with_columns(_GOOD, _LOCAL.alias("local"))
    spelled, offset, fraction = table.select(_FORMS).row(0)
    if spelled:  # `t` or a blank, or 30 February
        table = table.with_columns(_SPELLED)
    return table.select(_MADE[bool(offset), bool(fraction)]).to_series()


def _too_deep(data: pl.Series) -> list[str]:
    """The texts nested deeper than allowed. Only what has that many brackets is looked at one by one."""
    many = data.filter((data.str.count_matches(r"[\[{]") > DEPTH_MAX).fill_null(False))
    return [text for text in many.to_list() if len(text) <= DATA_BYTES_MAX and _depth(text.encode()) > DEPTH_MAX]


_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        sign = match[0]
        if sign in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif sign in (b"]", b"}"):
            depth -= 1
    return deepest


def _gunzip(body: bytes, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    rest = body
    while rest:  # a gzip file may have several members
        member = zlib.decompressobj(wbits=31)
        part = member.decompress(rest, bytes_max - size + 1)
        size += len(part)
        if size > bytes_max:
            raise _too_large(bytes_max)
        if not member.eof:
            raise Malformed("the body is not valid gzip: it ends in the middle")
        parts.append(part)
        rest = member.unused_data
        if not part and rest and len(parts) > 1000:
            raise Malformed("the body has too many empty gzip members")
    return b"".join(parts)


# A frame behind the body: only where the body's own last frame is whole does its text come out at the end. The reader
# itself says nothing of a frame that is cut off. Its checksum keeps the text from being the last bytes of the frame.
_END = b"cloudbilling: the end of the body"
_END_FRAME = zstandard.ZstdCompressor(write_checksum=True).compress(_END)


def _unzstd(body: bytes, bytes_max: int) -> bytes:
    with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
        body + _END_FRAME, read_across_frames=True
    ) as reader:
        plain = reader.read(bytes_max + len(_END) + 1)
    if len(plain) > bytes_max + len(_END):
        raise _too_large(bytes_max)
    if not plain.endswith(_END):
        raise Malformed("the body is not valid zstd: it ends in the middle")
    return plain[: -len(_END)]


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the body is larger than {bytes_max:,} bytes; send several requests", limit=bytes_max)


def _too_many(events_max: int) -> InvalidInput | TooLarge:
    return TooLarge(f"more than {events_max:,} events in one request; send several", limit=events_max)


# --- several requests read as one


@dataclass(frozen=True)
class Lines:
    """Bodies that can be read as one: NDJSON, or one JSON object without line ends."""

    body: bytes
    count: int  # of lines


def as_lines(body: bytes, content_type: str, events_max: int = EVENTS_MAX) -> Lines | None:
    """A body as lines to be read together with others'; None for one that must be read by itself."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in NDJSON_TYPES:
        text = body.rstrip(b"\n")
    elif kind == JSON_TYPE:
        text = body.strip()
        if text[:1] != b"{" or b"\n" in text:
            return None
    else:
        return None
    count = text.count(b"\n") + 1
    return Lines(text, count) if text and count <= events_max else None


def parse_together(parts: Sequence[Lines]) -> list[ParsedUsage]:
    """What `parse` makes of each, by one reading of all."""
    together = read_together(parts)
    return [together.part(place) for place in range(len(parts))]


class Together:
    """Several requests that were read as one; what is whose is cut out only where somebody asks for it."""

    def __init__(self, whole: ParsedUsage, lines: Sequence[int]) -> None:
        self.whole = whole
        self._firsts = [0, *np.cumsum(lines).tolist()]  # lines before each part
        ends = self._firsts[1:]
        self._events = _ends(whole.positions, ends)
        self._rejects = _ends(whole.rejects["position"], ends) if whole.rejects.height else [0] * (len(ends) + 1)

    def __len__(self) -> int:
        return len(self._firsts) - 1

    def events_of(self, place: int) -> slice:
        """Which rows of the whole's events are a part's."""
        return slice(self._events[place], self._events[place + 1])

    def total_of(self, place: int) -> int:
        """Events and rejects of a part."""
        events, rejects = self._events, self._rejects
        return events[place + 1] - events[place] + rejects[place + 1] - rejects[place]

    def part(self, place: int) -> ParsedUsage:
        """What a part would have been if it had come alone."""
        if len(self) == 1:
            return self.whole
        rows, first, whole = self.events_of(place), self._firsts[place], self.whole
        start, end = self._rejects[place], self._rejects[place + 1]
        rejects = _NO_REJECTS
        if start < end:
            rejects = whole.rejects.slice(start, end - start).with_columns(pl.col("position") - first)
        positions = whole.positions.slice(rows.start, rows.stop - rows.start) - first
        events = whole.events.slice(rows.start, rows.stop - rows.start)
        return ParsedUsage(events, positions, rejects, events.height + rejects.height)


def read_together(parts: Sequence[Lines]) -> Together:
    """Read all as one: starting columns up costs as much as a thousand rows of them.

    A line is an event, a reject or blank, whatever stands around it; so each part gets what its own lines became.
    """
    joined = parts[0].body if len(parts) == 1 else b"\n".join([part.body for part in parts])
    lines = [part.count for part in parts]
    return Together(_finish(_lines(joined, joined, sum(lines), cloud=False)), lines)


def _ends(positions: pl.Series, ends: Sequence[int]) -> list[int]:
    """How many of the positions (in order) lie at or below each end; before them a 0."""
    return [0, *np.searchsorted(positions.to_numpy(), ends, side="right").tolist()]
