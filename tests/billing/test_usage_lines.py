"""Several requests read as one give each what it would have got alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.parsed_usage import ParsedUsage
from billing.usage_formats import SMALL_BYTES, as_lines, parse, parse_together

NDJSON = "application/x-ndjson"
GOOD = '{"source":"s","id":"%d","type":"t","customer":"c","time":"2026-01-02T03:04:05.6Z","data":{"v":"%d"}}'
LINES = st.one_of(
    st.integers(0, 9).map(lambda n: GOOD % (n, n)),
    st.sampled_from(
        [
            "",
            "  ",
            "no json",
            "[]",
            '{"source":"s"}',
            '{"source":"s","id":"1","type":"t","customer":"c","time":"never"}',
            '{"source":"s","id":"1","type":"t","customer":"c","time":"2026-01-02T03:04:05+02:00","data":{"v":0.1}}',
            '{"source":"s","id":"1","type":"t","customer":"c","time":"2026-01-02T03:04:05Z","unknown":1}',
            '{"source":"s","id":"\\u00e4\\"x","type":"t","customer":"c","time":"2026-01-02T03:04:05Z","data":{"v":"\\\\"}}',
        ]
    ),
)


def same(one: ParsedUsage, other: ParsedUsage) -> None:
    assert one.total == other.total
    # Blanks in `data` go by the way of reading; its values do not.
    assert one.events.drop("data").equals(other.events.drop("data"))
    values = [[json.loads(text, parse_float=str) for text in each.events["data"]] for each in (one, other)]
    assert values[0] == values[1]
    assert one.positions.to_list() == other.positions.to_list()
    assert one.rejects.equals(other.rejects)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(LINES, min_size=1, max_size=6), min_size=1, max_size=5), st.booleans())
def test_each_request_gets_what_it_would_have_got_alone(bodies: list[list[str]], is_large: bool) -> None:
    padding = [GOOD % (n, n) for n in range(SMALL_BYTES // len(GOOD) + 1)] if is_large else []
    requests = ["\n".join([*padding, *lines]).encode() for lines in bodies]
    parts = [as_lines(body, NDJSON) for body in requests]
    kept = [(part, body) for part, body in zip(parts, requests, strict=True) if part is not None]
    if not kept:
        return
    for found, (_, body) in zip(parse_together([part for part, _ in kept]), kept, strict=True):
        same(found, parse(body, NDJSON))


def test_one_json_object_is_a_line_too() -> None:
    body = (GOOD % (1, 1)).encode()
    part, other = as_lines(body + b"\n", "application/json; charset=utf-8"), as_lines(body, NDJSON)
    assert part is not None
    assert other is not None
    first, second = parse_together([part, other])
    same(first, parse(body, "application/json"))
    same(second, parse(body, NDJSON))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"[]", "application/json"),
        (b'{"a":\n1}', "application/json"),
        (b"", NDJSON),
        (b"\n\n", NDJSON),
        (b"x\n" * 11, NDJSON),
        (b"x", "text/plain"),
        (b"x", "application/cloudevents+json"),
    ],
)
def test_what_is_no_plain_line_is_read_by_itself(body: bytes, kind: str) -> None:
    assert as_lines(body, kind, events_max=10) is None


def test_a_mistake_of_one_request_is_not_another_s() -> None:
    """Also at the bounds of a part: the last line of one, the first of the next."""
    bodies = [b"bad\n" + (GOOD % (1, 1)).encode(), (GOOD % (2, 2)).encode() + b"\nbad", (GOOD % (3, 3)).encode()]
    found = parse_together([part for part in (as_lines(body, NDJSON) for body in bodies) if part is not None])
    assert [one.rejects["position"].to_list() for one in found] == [[1], [2], []]
    assert [one.positions.to_list() for one in found] == [[2], [1], [1]]
    assert [one.events["id"].to_list() for one in found] == [["1"], ["2"], ["3"]]
