"""Bodies of usage: the same events in every format, exact numbers, and bad ones that never cost the good ones."""

import gzip
import io
import json
import sys
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.body_encoding import decompress
from billing.errors import InvalidInput, Malformed, TooLarge, UnsupportedMediaType
from billing.parsed_usage import ParsedUsage
from billing.usage import EVENT_SCHEMA
from billing.usage_formats import SMALL_BYTES, parse

NDJSON = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"


def event(number: int, **changes: Any) -> dict[str, Any]:
    made = {
        "source": "gateway-7",
        "id": f"e{number:06}",
        "type": "storage.write",
        "customer": f"customer-{number % 97}",
        "time": f"2026-01-20T09:{number % 60:02}:00+01:00",
        "data": {"gb": "1.25", "region": "eu"},
    }
    return {key: value for key, value in (made | changes).items() if value is not ...}


def lines(*events: dict[str, Any] | str) -> bytes:
    return "\n".join(each if isinstance(each, str) else json.dumps(each) for each in events).encode()


def many(count: int = 500) -> list[dict[str, Any]]:
    return [event(number) for number in range(count)]


def one(**changes: Any) -> ParsedUsage:
    return parse(lines(event(1, **changes)), NDJSON)


def reason(parsed: ParsedUsage) -> tuple[str, str]:
    assert parsed.events.height == 0
    row = parsed.rejects.row(0, named=True)
    return row["reason"], row["pointer"]


def test_every_format_gives_the_same_events() -> None:
    events = many()
    wanted = parse(lines(*events), NDJSON).events
    assert wanted.height == 500
    assert wanted.schema == EVENT_SCHEMA
    clouds = [
        {"specversion": "1.0", "subject": one["customer"], **{k: v for k, v in one.items() if k != "customer"}}
        for one in events
    ]
    arrow, compressed, feather = io.BytesIO(), io.BytesIO(), io.BytesIO()
    wanted.write_ipc_stream(arrow)
    wanted.write_ipc_stream(compressed, compression="zstd")
    wanted.write_ipc(feather, compression="lz4")
    bodies = [
        (json.dumps(events).encode(), "application/json"),
        (json.dumps(events, separators=(",", ":")).encode(), "application/json; charset=utf-8"),
        (json.dumps(events, indent=2).encode(), "application/json"),
        (lines(*events) + b"\n", "application/x-jsonlines"),
        (json.dumps(clouds).encode(), "application/cloudevents-batch+json"),
        (arrow.getvalue(), ARROW),
        (compressed.getvalue(), ARROW),
        (feather.getvalue(), "application/vnd.apache.arrow.file"),
    ]
    for body, kind in bodies:
        parsed = parse(body, kind)
        assert parsed.rejects.height == 0
        assert parsed.positions.to_list() == list(range(1, 501))
        as_json = parsed.events.with_columns(pl.col("data").str.json_decode(pl.Struct({"gb": pl.String})))
        assert as_json.equals(wanted.with_columns(pl.col("data").str.json_decode(pl.Struct({"gb": pl.String})))), kind


def test_one_event_comes_as_object_structured_cloud_event_or_binary_cloud_event() -> None:
    plain = parse(json.dumps(event(1)).encode(), "application/json").events
    cloud = {"specversion": "1.0", "subject": "customer-1", "extra": 1, **event(1, customer=...)}
    structured = parse(json.dumps(cloud).encode(), "application/cloudevents+json").events
    headers = {f"ce-{key}": str(value) for key, value in cloud.items() if key != "data"}
    headers["ce-subject"] = "customer%2D1"
    binary = parse(b'{"gb": "1.25", "region": "eu"}', "application/json", headers).events
    assert plain.equals(structured)
    assert plain.equals(binary)


def test_a_cloud_event_names_its_customer_by_subject_or_customer_but_not_two() -> None:
    kind = "application/cloudevents+json"
    cloud = {"specversion": "1.0", **event(1, customer="a")}
    assert parse(json.dumps(cloud).encode(), kind).events["customer"].to_list() == ["a"]
    assert parse(json.dumps(cloud | {"subject": "a"}).encode(), kind).rejects.height == 0
    assert reason(parse(json.dumps(cloud | {"subject": "b"}).encode(), kind)) == ("two_customers", "/customer")
    assert reason(parse(json.dumps(cloud | {"specversion": "0.3"}).encode(), kind)) == ("specversion", "/specversion")
    assert reason(parse(json.dumps(cloud | {"data_base64": "eA=="}).encode(), kind))[0] == "data_base64"


@pytest.mark.parametrize("count", [1_000, 20])
def test_broken_json_in_one_line_keeps_the_others_and_names_the_line(count: int) -> None:
    body = [json.dumps(one) for one in many(count)]
    body[count // 2 - 1] = '{"source": "gateway-7", "id": "x", "ti'
    parsed = parse("\n".join(body).encode(), NDJSON)
    assert parsed.total == count
    assert parsed.events.height == count - 1
    assert parsed.rejects.select("position", "reason").rows() == [(count // 2, "broken_json")]
    assert count // 2 not in parsed.positions.to_list()


def test_a_number_keeps_every_digit_as_number_and_as_text() -> None:
    digits = "0.1234567890123456789"
    for count in (1, 300):
        body = "\n".join(json.dumps(event(n)).replace('"1.25"', digits) for n in range(count)).encode()
        assert all(digits in data for data in parse(body, NDJSON).events["data"].to_list())
        assert f'"{digits}"' in one(data={"gb": digits}).events["data"][0]


@pytest.mark.parametrize(
    "text", ["1e400", "1e-400", "12345678901234567890123456789012345678901", "0.1000000000000000001"]
)
def test_numbers_that_no_float_holds_go_through_as_they_are(text: str) -> None:
    body = "\n".join(json.dumps(event(n)).replace('"1.25"', text) for n in range(300)).encode()
    assert len(body) > SMALL_BYTES
    assert f": {text}" in parse(body, NDJSON).events["data"][7]


def test_not_a_number_is_kept_as_text_so_that_it_can_be_corrected() -> None:
    body = json.dumps(event(1)).replace('"1.25"', "NaN").encode()
    assert parse(body, NDJSON).events["data"][0] == '{"gb": "NaN", "region": "eu"}'
    mixed = lines(*many(300), body.decode())
    assert parse(mixed, NDJSON).events.height == 301


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id": ...}, ("missing", "/id")),
        ({"id": ""}, ("missing", "/id")),
        ({"id": None}, ("missing", "/id")),
        ({"customer": ...}, ("missing", "/customer")),
        ({"id": "x" * 257}, ("too_long", "/id")),
        ({"id": 7}, ("not_text", "/id")),
        ({"time": "2026-01-20T09:59:00"}, ("invalid_time", "/time")),
        ({"time": "2026-01-20"}, ("invalid_time", "/time")),
        ({"time": "2026-02-30T00:00:00Z"}, ("invalid_time", "/time")),
        ({"time": "1899-12-31T23:59:59Z"}, ("invalid_time", "/time")),
        ({"time": "2026-01-20T09:59:00Z\n"}, ("invalid_time", "/time")),
        ({"time": "2026-01-20T24:00:00Z"}, ("invalid_time", "/time")),
        ({"time": "2026-01-20T09:59:00+24:00"}, ("invalid_time", "/time")),
        ({"time": "0000-01-01T00:00:00Z"}, ("invalid_time", "/time")),
        ({"time": "9999-12-31T23:59:59-10:00"}, ("invalid_time", "/time")),
        ({"time": "2026-01-20T09:59:0٣Z"}, ("invalid_time", "/time")),
        ({"time": 1_768_900_000}, ("not_text", "/time")),
        ({"data": "x"}, ("not_an_object", "/data")),
        ({"data": [1]}, ("not_an_object", "/data")),
        ({"data": {"a": "x" * 20_000}}, ("too_long", "/data")),
        ({"source": "cloudbilling:amendment"}, ("reserved_source", "/source")),
        ({"costumer": "typo"}, ("unknown_key", "/costumer")),
    ],
)
def test_what_is_refused_at_the_door_is_refused_alike_alone_and_among_many(
    changes: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert reason(one(**changes)) == expected
    among = parse(lines(*many(300), event(300, **changes)), NDJSON)
    assert among.events.height == 300
    assert among.rejects.select("position", "reason", "pointer").rows() == [(301, *expected)]


@pytest.mark.parametrize(
    "time",
    ["1970-01-01T00:00:00Z", "2999-01-01T00:00:00+14:00", "2026-01-20t09:59:00.1234567z", "2016-12-31T23:59:60Z"],
)
def test_times_of_long_ago_and_far_ahead_are_stored(time: str) -> None:
    alone = one(time=time).events
    among = parse(lines(*many(300), event(300, time=time)), NDJSON).events
    assert alone.height == 1
    assert alone["time"][0] == among["time"][300]


def test_negative_quantities_and_words_in_place_of_numbers_are_stored() -> None:
    assert one(data={"gb": "-5"}).events.height == 1
    assert one(data={"gb": "many"}).events.height == 1
    assert one(data=...).events["data"][0] == "{}"


def test_ten_thousand_brackets_are_refused_and_cost_only_their_own_event() -> None:
    deep = json.dumps(event(1)).replace('"1.25"', "[" * 10_000 + "]" * 10_000)
    parsed = parse(lines(*many(50), deep), NDJSON)
    assert parsed.events.height == 50
    assert parsed.rejects["position"].to_list() == [51]
    less = json.dumps(event(1)).replace('"1.25"', "[" * 40 + "]" * 40)
    assert reason(parse(less.encode(), NDJSON)) == ("too_deep", "/data")


def test_blank_lines_are_no_events_but_count_as_lines() -> None:
    for count in (3, 300):
        parsed = parse(b"\n\n" + lines(*many(count)) + b"\n\n", NDJSON)
        assert parsed.total == count
        assert parsed.positions.to_list() == list(range(3, count + 3))


def test_nulls_and_odd_spacing_do_not_change_what_is_read() -> None:
    usual = parse(lines(*many(300)), NDJSON).events
    nulls = parse(lines(*(event(n, subscription=None) for n in range(300))), NDJSON).events
    spaced = parse(lines(*(json.dumps(event(n), separators=(" , ", " : ")) for n in range(300))), NDJSON).events
    assert usual.equals(nulls)
    assert usual.drop("data").equals(spaced.drop("data"))


def test_bodies_that_hold_nothing_readable_are_refused_whole() -> None:
    for body in (b"", b"   ", b"7", b'"x"', b"[1", b"[{]"):
        with pytest.raises(Malformed):
            parse(body, "application/json")
    for kind in ("", "text/plain", "application/xml", "multipart/form-data"):
        with pytest.raises(UnsupportedMediaType):
            parse(lines(event(1)), kind)


def test_more_events_than_allowed_are_refused_whole() -> None:
    for body, kind in [(lines(*many(101)), NDJSON), (json.dumps(many(101)).encode(), "application/json")]:
        with pytest.raises(TooLarge):
            parse(body, kind, events_max=100)


def test_bombs_of_gzip_and_zstd_end_at_the_limit() -> None:
    zeros = bytes(50_000_000)
    for encoding, bomb in [("gzip", gzip.compress(zeros)), ("zstd", zstandard.compress(zeros))]:
        assert len(bomb) < 100_000
        with pytest.raises(TooLarge):
            decompress(bomb, encoding, 1_000_000)
    assert decompress(gzip.compress(b"a") + gzip.compress(b"b"), "gzip", 10) == b"ab"
    for encoding in ("gzip", "zstd"):
        with pytest.raises(Malformed):
            decompress(b"no such thing", encoding)
    with pytest.raises(Malformed):
        decompress(gzip.compress(b"abc")[:-6], "gzip")
    with pytest.raises(UnsupportedMediaType):
        decompress(b"x", "br")


def test_bombs_of_arrow_are_weighed_before_they_unfold() -> None:
    frame = pl.DataFrame({name: ["x" * 1_000] * 1_000 for name in ("source", "id", "type", "customer", "time")})
    body = io.BytesIO()
    frame.write_ipc_stream(body, compression="zstd", compat_level=pl.CompatLevel.oldest())
    assert len(body.getvalue()) < 100_000
    with pytest.raises(TooLarge):
        parse(body.getvalue(), ARROW, bytes_max=1_000_000)
    table = pa.table({name: pa.array(["y" * 10_000] * 1_000).dictionary_encode() for name in frame.columns})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert len(sink.getvalue()) < 100_000
    with pytest.raises(TooLarge):
        parse(sink.getvalue(), ARROW, bytes_max=1_000_000)


def test_arrow_with_wrong_columns_or_broken_bytes_says_so() -> None:
    events = parse(lines(*many(3)), NDJSON).events
    for changed, pointer in [
        (events.drop("id"), "/id"),
        (events.with_columns(extra=1), "/extra"),
        (events.with_columns(id=1), "/id"),
        (events.with_columns(pl.col("time").dt.replace_time_zone(None)), "/time"),
    ]:
        body = io.BytesIO()
        changed.write_ipc_stream(body)
        with pytest.raises(InvalidInput) as caught:
            parse(body.getvalue(), ARROW)
        assert caught.value.errors[0].pointer == pointer
    whole = io.BytesIO()
    events.write_ipc(whole)
    for cut in (0, 3, 20, 200, len(whole.getvalue()) - 5):
        with pytest.raises(Malformed):
            parse(whole.getvalue()[:cut], ARROW)


def test_words_of_all_scripts_come_through_in_all_ways() -> None:
    name = 'عميل 客户 🚀 "quoted" \\ \'); DROP TABLE events;--'
    for count in (1, 300):
        for ascii_only in (True, False):
            body = "\n".join(json.dumps(event(n, customer=name), ensure_ascii=ascii_only) for n in range(count))
            assert parse(body.encode(), NDJSON).events["customer"].unique().to_list() == [name]


def test_the_usual_batch_makes_no_python_object_per_event() -> None:
    """The hot path: counting what the interpreter allocates shows a loop over events at once (10,000 events, each with
    seven fields, would be at least 70,000 blocks)."""
    body = lines(*many(10_000))
    parse(body, NDJSON)
    before = sys.getallocatedblocks()
    kept = parse(body, NDJSON)
    assert sys.getallocatedblocks() - before < 2_000
    assert kept.events.height == 10_000


_VALUES = st.one_of(
    st.text(max_size=20),
    st.integers(),
    st.booleans(),
    st.none(),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(data=st.dictionaries(st.text(max_size=8), _VALUES, max_size=4), customer=st.text(max_size=30))
def test_the_fast_way_and_the_exact_way_read_the_same(data: dict[str, Any], customer: str) -> None:
    """Whatever stands in an event, it is judged and read alike whether it comes alone or among many."""
    strange = event(7, data=data, customer=customer, id="strange")
    alone = parse(lines(strange), NDJSON)
    among = parse(lines(*many(150), strange), NDJSON)
    mine = among.events.filter(pl.col("id") == "strange")
    assert mine.drop("data").equals(alone.events.drop("data"))
    assert among.rejects["reason"].to_list() == alone.rejects["reason"].to_list()
    if alone.events.height:
        assert json.loads(mine["data"][0]) == json.loads(alone.events["data"][0])
