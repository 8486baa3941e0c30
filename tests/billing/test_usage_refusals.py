"""Every refusal at the door of usage: reason, words, pointer, place and id; and the proof behind the fast way."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
import zstandard

from billing import column_lines, exact_lines, parsed_usage
from billing.body_encoding import decompress
from billing.errors import BillingError, FieldError, Malformed, TooLarge, UnsupportedMediaType
from billing.exact_lines import FEW
from billing.parsed_usage import ParsedUsage
from billing.usage_formats import CONTENT_TYPES, SMALL_BYTES, parse

NDJSON, JSON = "application/x-ndjson", "application/json"
CLOUD, CLOUDS = "application/cloudevents+json", "application/cloudevents-batch+json"
GOOD: dict[str, Any] = {"source": "s", "id": "i", "type": "t", "customer": "c", "time": "2026-01-20T09:00:00Z"}
CLOUD_GOOD = {"specversion": "1.0", **GOOD}


def changed(form: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**form, **changes}.items() if value is not ...}


def ndjson(*events: object) -> bytes:
    return "\n".join(one if isinstance(one, str) else json.dumps(one) for one in events).encode()


def rejects(parsed: ParsedUsage) -> list[tuple[Any, ...]]:
    return parsed.rejects.rows()


def refused(do: Callable[[], object]) -> tuple[type[BillingError], str]:
    with pytest.raises(BillingError) as caught:
        do()
    return type(caught.value), caught.value.detail


# -- Rules of one event ------------------------------------------------------------------------------------------------

LONG = "x" * 257
DEEP = json.loads("[" * 32 + "]" * 32)
TIME = "time must be like 2026-01-31T12:00:00+01:00, with an offset, from 1900 to 9999"
RULES: list[tuple[dict[str, Any], tuple[str, str, str]]] = [
    *(({name: nothing}, ("missing", f"{name} is missing", f"/{name}"))
      for name in ("source", "id", "type", "customer") for nothing in (..., None, "")),
    ({"time": ...}, ("missing", "time is missing", "/time")),
    ({"time": None}, ("missing", "time is missing", "/time")),
    *(({name: LONG}, ("too_long", f"{name} is longer than 256 characters", f"/{name}"))
      for name in ("source", "id", "type", "customer", "subscription")),
    ({"source": "cloudbilling:"}, ("reserved_source", "sources that begin with cloudbilling: are ours", "/source")),
    ({"time": ""}, ("invalid_time", TIME, "/time")),
    ({"time": "yesterday"}, ("invalid_time", TIME, "/time")),
    ({"time": "1899-12-31T23:59:59.999999Z"}, ("invalid_time", TIME, "/time")),
    ({"time": "9999-12-31T00:00:00Z"}, ("invalid_time", TIME, "/time")),
    ({"data": "text"}, ("not_an_object", "data must be a JSON object", "/data")),
    ({"data": 5}, ("not_an_object", "data must be a JSON object", "/data")),
    ({"data": {"a": DEEP}}, ("too_deep", "data is nested over 32 deep", "/data")),
    ({"data": {"a": "x" * 16_384}}, ("too_long", "data is over 16384 bytes", "/data")),
    # the first rule that is broken is the reason
    ({"source": "", "id": ""}, ("missing", "source is missing", "/source")),
    ({"id": "", "type": LONG}, ("missing", "id is missing", "/id")),
    ({"type": LONG, "time": None}, ("missing", "time is missing", "/time")),
    ({"id": LONG, "customer": LONG}, ("too_long", "id is longer than 256 characters", "/id")),
    ({"subscription": LONG, "source": "cloudbilling:x"},
     ("too_long", "subscription is longer than 256 characters", "/subscription")),
    ({"source": "cloudbilling:x", "time": "x"},
     ("reserved_source", "sources that begin with cloudbilling: are ours", "/source")),
    ({"time": "x", "data": "x"}, ("invalid_time", TIME, "/time")),
    ({"data": "x" * 20_000}, ("too_long", "data is over 16384 bytes", "/data")),
]  # fmt: skip
CLOUD_RULES: list[tuple[dict[str, Any], tuple[str, str, str]]] = [
    ({"specversion": "0.3"}, ("specversion", "specversion must be 1.0", "/specversion")),
    ({"specversion": ...}, ("specversion", "specversion must be 1.0", "/specversion")),
    ({"data_base64": "eA=="}, ("data_base64", "data must be JSON, not base64", "/data_base64")),
    ({"subject": "d"}, ("two_customers", "subject and customer name two customers", "/customer")),
    ({"specversion": "2", "data_base64": "eA=="}, ("specversion", "specversion must be 1.0", "/specversion")),
    ({"data_base64": "eA==", "subject": "d"}, ("data_base64", "data must be JSON, not base64", "/data_base64")),
    ({"subject": "d", "id": ""}, ("two_customers", "subject and customer name two customers", "/customer")),
]
ALLOWED: list[dict[str, Any]] = [
    *({name: "ü" * 256} for name in ("source", "id", "type", "customer", "subscription")),
    {"subscription": ""}, {"subscription": None}, {"source": "cloudbilling"}, {"source": "x cloudbilling:"},
    {"time": "1900-01-01T00:00:00Z"}, {"time": "9999-12-30T23:59:59.999999Z"}, {"data": None}, {"data": {}},
    {"data": {"a": DEEP[0]}}, {"data": {"a": "[" * 50 + '\\"{'}}, {"data": {"a": "x" * (16_384 - len('{"a": ""}'))}},
]  # fmt: skip


def ways(form: dict[str, Any], *, cloud: bool) -> list[tuple[str, int, bytes, str]]:
    """The event alone, as one of many that are read line by line, and as one of many that are read as columns."""
    good = CLOUD_GOOD if cloud else GOOD
    others = [{**good, "id": f"o{number}", "data": {"pad": "p" * 100}} for number in range(120)]
    many = json.dumps([*others, form]).encode() if cloud else ndjson(*others, form)
    lines = json.dumps([*others[: FEW + 1], form]).encode() if cloud else ndjson(*others[: FEW + 1], form)
    short = lines.replace(b"p" * 100, b"")
    assert len(many) > SMALL_BYTES
    return [
        ("alone", 1, json.dumps(form).encode() if cloud else ndjson(form), CLOUD if cloud else NDJSON),
        ("line by line", FEW + 2, short, CLOUDS if cloud else NDJSON),
        ("columns", 121, many, CLOUDS if cloud else NDJSON),
    ]


@pytest.mark.parametrize(("changes", "expected"), RULES, ids=[f"{case[1][0]} {case[1][2]}" for case in RULES])
@pytest.mark.parametrize("cloud", [False, True], ids=["plain", "cloud"])
def test_an_event_is_refused_with_reason_words_pointer_place_and_id(
    changes: dict[str, Any], expected: tuple[str, str, str], cloud: bool
) -> None:
    form = changed(CLOUD_GOOD if cloud else GOOD, changes)
    identity = form.get("id")
    for way, place, body, kind in ways(form, cloud=cloud):
        parsed = parse(body, kind)
        assert rejects(parsed) == [(place, *expected, None if identity is None else identity[:256])], way
        assert parsed.total == place
        assert parsed.positions.to_list() == list(range(1, place)), way


@pytest.mark.parametrize(("changes", "expected"), CLOUD_RULES, ids=[case[1][0] for case in CLOUD_RULES])
def test_a_cloud_event_is_refused_for_what_only_it_can_break(
    changes: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    form = changed(CLOUD_GOOD, changes)
    for way, place, body, kind in ways(form, cloud=True):
        assert rejects(parse(body, kind)) == [(place, *expected, form["id"])], way


@pytest.mark.parametrize("changes", ALLOWED, ids=[f"{number} {next(iter(one))}" for number, one in enumerate(ALLOWED)])
@pytest.mark.parametrize("cloud", [False, True], ids=["plain", "cloud"])
def test_what_just_keeps_the_rules_is_taken_as_it_is(changes: dict[str, Any], cloud: bool) -> None:
    form = changed(CLOUD_GOOD if cloud else GOOD, changes)
    data = json.dumps(form.get("data") or {})
    wanted = (form["source"], form["id"], form["type"], form["customer"], form.get("subscription") or None)
    for way, place, body, kind in ways(form, cloud=cloud):
        parsed = parse(body, kind)
        assert parsed.rejects.height == 0, way
        last = parsed.events.row(place - 1)
        assert last[:5] == wanted, way
        assert last[5] == datetime.fromisoformat(form["time"]), way
        assert json.loads(last[6]) == json.loads(data), way


def test_a_subject_is_the_customer_where_none_is_named() -> None:
    form = changed(CLOUD_GOOD, {"customer": ..., "subject": "by subject", "extension": {"deep": [1]}})
    for way, place, body, kind in ways(form, cloud=True):
        assert parse(body, kind).events["customer"][place - 1] == "by subject", way


# -- What cannot be read -----------------------------------------------------------------------------------------------

TEXT = json.dumps(GOOD)
UNREADABLE: list[tuple[str | bytes, tuple[str, str, str]]] = [
    ('{"source": "s", "ty', ("broken_json", "Input data was truncated", "")),
    ('{"source": "s" "id": 1}', ("broken_json", "JSON is malformed: expected ',' or '}' (byte 15)", "")),
    ('{"id": 7, "ty', ("broken_json", "Input data was truncated", "")),  # broken behind the first mistake
    (TEXT + " x", ("broken_json", f"JSON is malformed: trailing characters (byte {len(TEXT) + 2})", "")),
    (b'{"source": "\xff"}', ("broken_json", "it is no UTF-8", "")),
    ('{"data": ' + "[" * 5_000, ("too_deep", "it is nested too deeply", "")),
    ("[1]", ("not_an_object", "an event is a JSON object", "")),
    ("null", ("not_an_object", "an event is a JSON object", "")),
    ('"text"', ("not_an_object", "an event is a JSON object", "")),
    ('{"id": 7}', ("not_text", "Expected text, got int", "/id")),
    ('{"time": true}', ("not_text", "Expected text, got bool", "/time")),
    ('{"source": ["a"]}', ("not_text", "Expected text, got array", "/source")),
    ('{"customer": {}}', ("not_text", "Expected text, got object", "/customer")),
    ('{"subscription": 1.5}', ("not_text", "Expected text, got float", "/subscription")),
    ('{"id": 7, "data": NaN}', ("not_text", "Expected text, got int", "/id")),
    ('{"costumer": "c"}', ("unknown_key", "unknown key 'costumer'", "/costumer")),
    ('{"a/b~c": 1}', ("unknown_key", "unknown key 'a/b~c'", "/a~1b~0c")),
    ('{"' + "k" * 101 + '": 1}', ("unknown_key", f"unknown key '{'k' * 100}'", "/" + "k" * 100)),
]


@pytest.mark.parametrize(("text", "expected"), UNREADABLE, ids=[f"{one[1][0]} {one[1][1][:30]}" for one in UNREADABLE])
def test_a_line_that_cannot_be_read_is_named_and_costs_no_other(
    text: str | bytes, expected: tuple[str, str, str]
) -> None:
    line = text if isinstance(text, bytes) else text.encode()
    first, last = json.dumps({**GOOD, "id": ""}).encode(), json.dumps({**GOOD, "type": None}).encode()
    for before in (0, 200):  # alone, and among so many that columns are tried first
        body = b"\n".join([first, *[json.dumps({**GOOD, "data": {"n": "1"}}).encode()] * before, line, last])
        parsed = parse(body, NDJSON)
        assert rejects(parsed) == [
            (1, "missing", "id is missing", "/id", ""),
            (before + 2, *expected, None),
            (before + 3, "missing", "type is missing", "/type", "i"),
        ]
        assert parsed.events.height == before
        assert parsed.total == before + 3


def test_not_a_number_and_infinity_become_text_but_not_inside_of_text() -> None:
    body = (
        b'{"source": "NaN", "id": NaN, "type": "\\"-Infinity", "customer": -Infinity, "time": "2026-01-20T09:00:00Z", '
    )
    body += b'"data": {"a": Infinity, "b": "NaN Infinity", "c": [NaN, -Infinity]}}'
    row = parse(body, NDJSON).events.row(0)
    assert row[:4] == ("NaN", "NaN", '"-Infinity', "-Infinity")
    assert row[6] == '{"a": "Infinity", "b": "NaN Infinity", "c": ["NaN", "-Infinity"]}'
    assert parse(b"[" + body + b"]", JSON).events.rows() == [row]
    headers = {f"ce-{key}": str(value) for key, value in CLOUD_GOOD.items()}
    for data, wanted in ((b'{"a": NaN}', '{"a": "NaN"}'), (b'{"a": -Infinity}', '{"a": "-Infinity"}')):
        assert parse(data, JSON, headers).events["data"].to_list() == [wanted]


# -- Whole bodies ------------------------------------------------------------------------------------------------------

EVENT = ndjson(GOOD)
BODIES: list[tuple[bytes, str, type[BillingError], str]] = [
    (b"", JSON, Malformed, "the body is empty; at least one event is needed"),
    (b" \n", CLOUD, Malformed, "the body is empty; at least one event is needed"),
    (b"7", JSON, Malformed, "the body is no JSON array or object of usage events"),
    (b"[]", CLOUD, Malformed, "the body is no JSON object of usage events"),
    (b"{}", CLOUDS, Malformed, "the body is no JSON array of usage events"),
    (b"[1", JSON, Malformed, "the body is no valid JSON array: Input data was truncated"),
    (b"[NaN, 1", JSON, Malformed, "the body is no valid JSON array: JSON is malformed: invalid character (byte 1)"),
    (b"[" * 5_000, JSON, Malformed, "the body is no valid JSON array: it is nested too deeply"),
    (EVENT, "", UnsupportedMediaType,
     "Content-Type '(none)' is not taken here; use one of " + ", ".join(CONTENT_TYPES)),
    (EVENT, "Text/Plain; charset=utf-8", UnsupportedMediaType,
     "Content-Type 'text/plain' is not taken here; use one of " + ", ".join(CONTENT_TYPES)),
]  # fmt: skip


@pytest.mark.parametrize(("body", "kind", "error", "words"), BODIES, ids=[case[3][:60] for case in BODIES])
def test_a_body_that_holds_no_events_is_refused_in_these_words(
    body: bytes, kind: str, error: type[BillingError], words: str
) -> None:
    assert refused(lambda: parse(body, kind)) == (error, words)


def test_a_broken_array_is_named_as_the_whole_body() -> None:
    with pytest.raises(Malformed) as caught:
        parse(b"[1", JSON)
    assert caught.value.errors == (FieldError("", "Input data was truncated"),)


def test_the_content_types_that_are_taken() -> None:
    assert CONTENT_TYPES == (
        "application/jsonl", "application/ndjson", "application/x-jsonlines", "application/x-ndjson",
        "application/json", "application/cloudevents+json", "application/cloudevents-batch+json",
        "application/vnd.apache.arrow.file", "application/vnd.apache.arrow.stream",
    )  # fmt: skip
    for kind in CONTENT_TYPES[:5]:
        assert parse(EVENT, f" {kind.upper()} ; charset=utf-8").events.height == 1
    assert parse(b"[]", JSON).total == 0
    assert parse(json.dumps(CLOUD_GOOD).encode(), CLOUD).events.height == 1
    assert parse(json.dumps([CLOUD_GOOD]).encode(), CLOUDS).events.height == 1


def test_a_binary_cloud_event_carries_json_or_nothing() -> None:
    headers = {f"ce-{key}": str(value) for key, value in CLOUD_GOOD.items()} | {"x-other": "1", "ce-extension": "2"}
    parsed = parse(b' {"a": "\xc3\xbc"} ', "Application/JSON", headers)
    assert parsed.events.rows() == [("s", "i", "t", "c", None, datetime(2026, 1, 20, 9, tzinfo=UTC), '{"a": "ü"}')]
    assert (parsed.total, parsed.positions.to_list()) == (1, [1])
    assert parse(b" ", "text/plain", headers).events["data"].to_list() == ["{}"]
    encoded = {**headers, "ce-subject": "M%C3%BCller", "ce-customer": "M%C3%BCller"}
    assert parse(b"", "", encoded).events["customer"].to_list() == ["Müller"]
    words = "a usage event in CloudEvents binary mode carries application/json"
    assert refused(lambda: parse(b"x", "text/plain", headers)) == (UnsupportedMediaType, words)
    words = "the body is no valid JSON: Input data was truncated"
    assert refused(lambda: parse(b'{"a"', JSON, headers)) == (Malformed, words)
    assert rejects(parse(b"[1]", JSON, headers)) == [(1, "not_an_object", "data must be a JSON object", "/data", "i")]
    assert rejects(parse(b"", "", {"ce-id": "1"})) == [
        (1, "specversion", "specversion must be 1.0", "/specversion", "1")
    ]


@pytest.mark.parametrize("count", [3, 300])
def test_as_many_events_as_allowed_are_taken_and_one_more_is_too_many(count: int) -> None:
    events = [{**GOOD, "data": {"n": "1"}}] * count
    clouds = [CLOUD_GOOD] * count
    for body, kind in [
        (ndjson(*events), NDJSON),
        (ndjson(*events) + b"\n", NDJSON),
        (json.dumps(events).encode(), JSON),
        (json.dumps(clouds).encode(), CLOUDS),
    ]:
        assert parse(body, kind, events_max=count).total == count
        words = f"more than {count - 1} events in one request; send several"
        with pytest.raises(TooLarge) as caught:
            parse(body, kind, events_max=count - 1)
        assert (caught.value.detail, caught.value.context) == (words, {"limit": count - 1})


def test_a_body_of_hardly_anything_but_line_ends_is_too_large() -> None:
    """Blank lines are no events, but each costs time: twice as many as events are allowed, and no more."""
    assert parse(EVENT + b"\n" * 20, NDJSON, events_max=10).total == 1
    with pytest.raises(TooLarge):
        parse(EVENT + b"\n" * 21, NDJSON, events_max=10)


# -- Compression -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [None, "", "identity", " Identity ", "gzip", "X-GZIP", " gzip", "zstd", "ZSTD "])
def test_a_body_comes_out_of_its_encoding_up_to_the_very_limit(encoding: str | None) -> None:
    plain = b"0123456789"
    packed = plain
    if "gzip" in (encoding or "").lower():
        packed = gzip.compress(plain[:4]) + gzip.compress(b"") + gzip.compress(plain[4:])
    elif "zstd" in (encoding or "").lower():
        packed = zstandard.compress(plain[:4]) + zstandard.compress(plain[4:])
    assert decompress(packed, encoding, 10) == plain
    if packed is not plain:
        words = "the body is larger than 9 bytes; send several requests"
        assert refused(lambda: decompress(packed, encoding, 9)) == (TooLarge, words)
        assert decompress(b"" if "gzip" in (encoding or "").lower() else zstandard.compress(b""), encoding) == b""


def test_a_limit_is_told_in_digits_that_can_be_read() -> None:
    bomb = gzip.compress(bytes(3_000_000))
    with pytest.raises(TooLarge) as caught:
        decompress(bomb, "gzip", 2_000_000)
    assert caught.value.detail == "the body is larger than 2,000,000 bytes; send several requests"
    assert caught.value.context == {"limit": 2_000_000}


@pytest.mark.parametrize("length", [10, 200_000])
@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_body_that_is_cut_off_is_refused_whole_and_never_read_in_part(encoding: str, length: int) -> None:
    plain = bytes(number * number % 251 for number in range(length))
    packed = gzip.compress(plain) if encoding == "gzip" else zstandard.compress(plain)
    for cut in {1, 2, 3, 5, 8, len(packed) // 2}:
        with pytest.raises(Malformed) as caught:
            decompress(packed[:-cut], encoding)
        assert caught.value.detail.startswith(f"the body is not valid {encoding}: ")
        with pytest.raises(Malformed):
            decompress(packed + packed[:-cut], encoding)


def test_what_is_no_gzip_or_zstd_is_said_in_these_words() -> None:
    gz, zs = "the body is not valid gzip: ", "the body is not valid zstd: "
    assert refused(lambda: decompress(b"abc", "gzip")) == (
        Malformed, gz + "Error -3 while decompressing data: incorrect header check")  # fmt: skip
    assert refused(lambda: decompress(gzip.compress(b"abc")[:-6], "gzip")) == (Malformed, gz + "it ends in the middle")
    assert refused(lambda: decompress(b"abc", "zstd")) == (
        Malformed, zs + "zstd decompress error: Unknown frame descriptor")  # fmt: skip
    assert refused(lambda: decompress(zstandard.compress(bytes(range(256)))[:-99], "zstd")) == (
        Malformed, zs + "it ends in the middle")  # fmt: skip
    assert refused(lambda: decompress(b"", " BR")) == (
        UnsupportedMediaType, "Content-Encoding 'br' is not taken; use gzip, zstd or none")  # fmt: skip
    assert refused(lambda: decompress(gzip.compress(b"") * 1_100, "gzip")) == (
        Malformed, "the body has too many empty gzip members")  # fmt: skip
    assert decompress(gzip.compress(b"") * 900 + gzip.compress(b"a") * 300, "gzip") == b"a" * 300


# -- Times -------------------------------------------------------------------------------------------------------------

TIMES: list[tuple[str, str | None]] = [
    ("2026-01-20T09:00:00Z", "2026-01-20 09:00:00"),
    ("2026-01-20t09:00:00z", "2026-01-20 09:00:00"),
    ("2026-01-20 09:00:00Z", "2026-01-20 09:00:00"),
    ("2026-01-20T09:00:00+01:30", "2026-01-20 07:30:00"),
    ("2026-01-20T09:00:00-01:30", "2026-01-20 10:30:00"),
    ("2026-01-20T09:00:00-00:00", "2026-01-20 09:00:00"),
    ("2026-01-20T09:00:00+23:59", "2026-01-19 09:01:00"),
    ("2026-01-20T09:00:00.5Z", "2026-01-20 09:00:00.500000"),
    ("2026-01-20T09:00:00.000001+01:00", "2026-01-20 08:00:00.000001"),
    ("2026-01-20T09:00:00.123456789-02:00", "2026-01-20 11:00:00.123456"),  # digits beyond the microsecond are cut off
    ("2026-01-20T09:00:00.9999999Z", "2026-01-20 09:00:00.999999"),
    ("2024-02-29T00:00:00Z", "2024-02-29 00:00:00"),
    ("2016-12-31T23:59:60Z", "2017-01-01 00:00:00"),  # a leap second is the first of the next minute
    ("2026-02-29T00:00:00Z", None),
    ("2026-01-20T24:00:00Z", None),
    ("2026-01-20T09:60:00Z", None),
    ("2026-01-20T09:00:61Z", None),
    ("2026-01-20T09:00:00+24:00", None),
    ("2026-01-20T09:00:00+01:60", None),
    ("2026-01-20T09:00:00+0100", None),
    ("2026-01-20T09:00:00+1:00", None),
    ("2026-01-20T09:00:00.Z", None),
    ("2026-01-20T09:00:00.1234567890Z", None),
    ("2026-01-20T09:00:00", None),
    ("2026-01-20T09:00Z", None),
    ("26-01-20T09:00:00Z", None),
    ("2026-1-20T09:00:00Z", None),
    ("2026-01-20X09:00:00Z", None),
    ("2026-01-20T09:00:00Z ", None),
    (" 2026-01-20T09:00:00Z", None),
    ("2026-01-20T09:00:00Z\n", None),
    ("2026-W04-2T09:00:00Z", None),
]


@pytest.mark.parametrize(("text", "expected"), TIMES, ids=range(len(TIMES)))
def test_a_time_means_the_same_instant_alone_and_among_many(text: str, expected: str | None) -> None:
    wanted = None if expected is None else datetime.fromisoformat(expected).replace(tzinfo=UTC)
    for way, place, body, kind in ways({**GOOD, "time": text}, cloud=False):
        times = parse(body, kind).events["time"].to_list()
        assert (times[place - 1 :] or [None]) == [wanted], way


# -- The fast way and its proof ----------------------------------------------------------------------------------------

NAMES = ("source", "id", "type", "customer", "subscription", "time")
ONE = {**GOOD, "data": {"a": "x", "b": "y"}}
COMPACT = json.dumps(ONE, separators=(",", ":"))
# text of one line, whether its length alone proves that columns hold all of it, whether the counts of its marks do
LINES: list[tuple[str, bool, bool]] = [
    (json.dumps(ONE), True, True),
    (COMPACT, True, True),
    (json.dumps({**ONE, "subscription": "s1"}), True, True),
    (json.dumps(GOOD), True, True),
    (json.dumps({**GOOD, "data": {}}), True, True),
    (json.dumps({**ONE, "subscription": None}), False, True),  # a null is nothing
    (json.dumps({**ONE, "data": {"a": 1}}), False, True),  # a number may come back written in another way
    (json.dumps({**ONE, "data": {"a": None}}), True, True),
    (json.dumps({**ONE, "id": "é"}), False, True),  # \\u00e9: two bytes in a column, six in the body
    (json.dumps({**ONE, "data": None}), False, True),
    (COMPACT.replace(":", " : "), False, False),  # harmless, but neither way can tell
    (json.dumps({**ONE, "extra": "x"}), False, False),
    (json.dumps({**ONE, "extra": None}), False, False),  # unknown, even if nothing is in it
    (json.dumps({**ONE, "data": {"id": None}, "id": None}), False, True),
    (json.dumps({**ONE, "extra": 1}), False, False),
    (json.dumps({**ONE, "id": 7}), False, False),
    (json.dumps({**ONE, "id": True}), False, False),
    (json.dumps({**ONE, "data": "x"}), False, False),
    (json.dumps({**ONE, "data": [1]}), False, False),
]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("end", ["", "\n"], ids=["open end", "line end"])
@pytest.mark.parametrize(("line", "by_length", "by_marks"), LINES, ids=range(len(LINES)))
def test_columns_are_trusted_only_where_they_provably_hold_the_whole_body(
    line: str, by_length: bool, by_marks: bool, end: str, rows: int
) -> None:
    body = ("\n".join([COMPACT] * (rows - 1) + [line]) + end).encode()
    table = pl.read_ndjson(body, schema=parsed_usage.NDJSON)
    mixed = rows > 1 and "," + " " in line  # one line compact, another spaced: of no one length
    assert column_lines._lengths_agree(table, body) is (by_length and not mixed)
    assert column_lines._native_agrees(table, body) is by_marks
    columns = column_lines.read(body, parsed_usage.NDJSON, rows, cloud=False)
    assert (columns is not None) is by_marks


CLOUD_LINES: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"subject": "c", "customer": ...}, True),
    ({"data": {"id": "x", "customer": "y"}}, True),  # such keys inside of data are counted apart
    ({"data": None}, True),
    ({"data": ...}, True),
    ({"extension": "x"}, True),
    ({"extension": {"a": "b"}}, True),
    ({"data_base64": "eA=="}, False),
    ({"data": "text"}, False),
    ({"data": [1]}, False),
    ({"id": 7}, False),
    ({"subject": True}, False),
    ({"extension": {"id": "x"}}, False),  # could be the id of the event, for all that counting tells
]


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["compact", "spaced"])
@pytest.mark.parametrize(("changes", "agrees"), CLOUD_LINES, ids=[str(case[0]) for case in CLOUD_LINES])
def test_columns_of_cloud_events_are_trusted_only_where_their_attributes_are_text(
    changes: dict[str, Any], agrees: bool, separators: tuple[str, str]
) -> None:
    form = changed({**CLOUD_GOOD, "data": {"a": "b"}}, changes)
    body = "\n".join(json.dumps(one, separators=separators) for one in (CLOUD_GOOD, form)).encode()
    columns = column_lines.read(body, parsed_usage.CLOUD, 10, cloud=True)
    assert (columns is not None) is agrees


@pytest.mark.parametrize(
    ("number", "long"),
    [("1.5", False), ("123456789012345", False), ("1234567890123456", True), ("0.1234567890123", False),
     ("0.12345678901234", True), ("-0.1234567890123456", True), ("1e99", False), ("1e100", True), ("1E-300", True),
     ("1.5e+400", True)],
)  # fmt: skip
def test_a_number_that_a_float_may_not_hold_is_read_exactly(number: str, long: bool) -> None:
    for text in (f'{{"a": {number}}}', f'{{"a":{number}}}', f'{{"a": [1, {number}]}}', f'{{"a": [{number}]}}'):
        line = json.dumps(GOOD)[:-1] + f', "data": {text}}}'
        assert (column_lines.read(line.encode(), parsed_usage.NDJSON, 1, cloud=False) is None) is long
    as_text = json.dumps({**GOOD, "data": {"a": number}})
    assert column_lines.read(as_text.encode(), parsed_usage.NDJSON, 1, cloud=False) is not None


def test_columns_are_not_trusted_with_broken_lines_or_blank_lines() -> None:
    def read(*lines: str) -> bool:
        body = "\n".join(lines).encode()
        return column_lines.read(body, parsed_usage.NDJSON, 10, cloud=False) is not None

    assert read(COMPACT, COMPACT)
    assert not read(COMPACT, '{"source": ')
    assert not read(COMPACT, "", COMPACT)


TRICKY = [
    "C:\\new",
    'a "quoted" word',
    "\\",
    '"',
    "\\u0041",
    "\n",
    "\x01",
    "\x7f",
    "\u2028é",
    "a/b",
    "🚀",
    '{"a": "b"}',
]


@pytest.mark.parametrize("text", TRICKY, ids=range(len(TRICKY)))
@pytest.mark.parametrize("ascii_only", [True, False], ids=["escaped", "as it is"])
@pytest.mark.parametrize("cloud", [False, True], ids=["plain", "cloud"])
def test_no_character_of_a_property_changes_on_the_way(text: str, ascii_only: bool, cloud: bool) -> None:
    """Whether it is read as columns or exactly: a path must not lose its backslash because it came among many."""
    form = {**(CLOUD_GOOD if cloud else GOOD), "customer": text, "data": {"value": text, text: "key"}}
    for way, place, body, kind in ways(form, cloud=cloud):
        sent = body
        if not ascii_only:
            sent = body.replace(json.dumps(form).encode(), json.dumps(form, ensure_ascii=False).encode())
        row = parse(sent, kind).events.row(place - 1)
        assert row[3] == text, way
        assert json.loads(row[6]) == {"value": text, text: "key"}, way


def test_an_array_of_many_is_read_as_columns_and_gives_what_lines_give(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [{**ONE, "id": f"e{number}"} for number in range(200)]
    wanted = parse(ndjson(*events), NDJSON).events

    def never(*_: object, **__: object) -> object:
        raise AssertionError("the usual body is read as columns")

    exactly = exact_lines.read_parts
    monkeypatch.setattr(exact_lines, "read_parts", never)
    for separators in ((",", ":"), (", ", ": ")):
        spaced = parse(json.dumps(events, separators=separators).encode(), JSON).events
        assert spaced.drop("data").equals(wanted.drop("data"))
        assert spaced["data"].to_list() == [json.dumps(ONE["data"], separators=separators)] * 200  # as it was sent
    assert parse(b" \n" + json.dumps(events).encode() + b"\n", JSON).events.equals(wanted)
    assert parse(ndjson(*events), NDJSON).events.equals(wanted)
    monkeypatch.setattr(exact_lines, "read_parts", exactly)
    indented = parse(json.dumps(events, indent=2).encode(), JSON).events  # a line is no event here: read exactly
    assert indented.drop("data").equals(wanted.drop("data"))
    assert [json.loads(data) for data in indented["data"]] == [ONE["data"]] * 200
    # text inside of a value that looks like the seam of two events
    seam = [*events, {**ONE, "id": "seam", "data": {"a": 'x},{"y'}}]
    assert parse(json.dumps(seam, separators=(",", ":")).encode(), JSON).events["id"].to_list()[-1] == "seam"
    broken = json.dumps(events).encode()[:-1] + b", {]"
    assert refused(lambda: parse(broken, JSON))[0] is Malformed
