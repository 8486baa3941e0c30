"""Lines that are written alike are read without a parser, and what is read is what the exact way reads."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing import like_lines
from billing.usage import DATA_BYTES_MAX, EVENT_SCHEMA, TEXT_LENGTH_MAX
from billing.usage_formats import parse

NDJSON = "application/x-ndjson"
LINE = '{"source":"%s","id":"%s","type":"%s","customer":"%s","time":"%s","data":%s}'
TIME = "2026-01-02T03:04:05Z"


def line(source: str = "s", id: str = "1", type: str = "t", customer: str = "c", time: str = TIME,
         data: str = '{"value":"1.50","region":"eu"}') -> str:  # fmt: skip
    return LINE % (source, id, type, customer, time, data)


def body(*lines: str) -> bytes:
    return "\n".join(lines).encode()


def exactly(text: bytes) -> tuple[pl.DataFrame, list[str]]:
    """The events and reasons of a body line by line, each line a request of its own."""
    parsed = [parse(one, NDJSON) for one in text.split(b"\n")]
    reasons = [reason for one in parsed for reason in one.rejects["reason"].to_list()]
    return pl.concat([one.events for one in parsed]), reasons


def holds(text: bytes) -> bool:
    """If it is read as lines that are alike, then as the exact way reads it; whether it is."""
    found = like_lines.read(text)
    if found is None:
        return False
    events, reasons = exactly(text)
    if found.is_plain:
        assert not reasons
        assert found.events.schema == EVENT_SCHEMA
        assert found.events.equals(events), found.events.to_dicts()
    assert found.events.height == text.count(b"\n") + 1
    if not reasons:
        # `time` may have been left as it is: then the rules read it.
        assert (
            found.events.drop("time").with_columns(pl.col("subscription").replace("", None)).equals(events.drop("time"))
        )
    return True


def test_lines_of_one_program_are_read_letter_by_letter() -> None:
    rows = [
        line(id=f"e{n:05}", customer=f"c{n % 7 * 13 ** (n % 6)}", data=f'{{"value":{n}.50,"x":"é{n}"}}')
        for n in range(200)
    ]
    text = body(*rows)
    assert holds(text)
    assert holds(text.replace(b'":"', b'": "').replace(b'","', b'", "').replace(b'"data":', b'"data": '))
    found = like_lines.read(text + b"\n")
    assert found is not None
    assert found.is_plain
    assert found.events["data"][199] == '{"value":199.50,"x":"é199"}'


def test_kinds_of_lines_may_be_mixed() -> None:
    """Some name a subscription, some write their names in another order; the data of each may be its own."""
    other = '{"id":"o%d","source":"s","customer":"c","subscription":"sub-%d","type":"t","time":"%s","data":{}}'
    rows = [line(id=f"e{n}") if n % 3 else other % (n, n, TIME) for n in range(100)]
    assert holds(body(*rows, line(id="last", data='{"deep":{"a":[1,{"b":2}]},"more":"' + "x" * 60 + '"}')))


def test_too_many_kinds_of_lines_are_for_the_parser() -> None:
    names = ["source", "id", "type", "customer", "time"]
    values = {"source": "s", "id": "%d", "type": "t", "customer": "c", "time": TIME}
    rows = []
    for n in range(24):
        mixed = random.Random(n).sample(names, 5)
        members = ",".join(f'"{name}":"{values[name]}"' for name in mixed)
        rows.append("{" + members % n + ',"data":{"text":"a longer one, for the last line"}}')
    assert like_lines.read(body(*rows)) is None
    assert parse(body(*rows * 20), NDJSON).total == 480


@pytest.mark.parametrize(
    "odd",
    [
        line(data='{"a":"\\u00e4"}'),  # an escape
        line(data='{"a":1,}'),
        line(data='{"a":NaN}'),
        line(data='{"a":01}'),
        line(data="{}{}"),
        line(data='{"a":1} , "b": {}'),
        line(data="[]"),
        line(data="null"),
        line(data='{"a":{"b":}}'),
        line().replace('"source"', '"sauce"'),
        line().replace('"customer":"c"', '"customer":null'),
        line().replace('"customer":"c"', '"customer":7'),
        line().replace('"customer"', '"source"'),
        line().replace('"s"', '"s",'),
        line().replace('}}', '}'),
        line() + "}",
        line().replace('"time"', "time"),
        line(customer="a\x01b"),
        "",
        " ",
        line() + "\r",
    ],
)  # fmt: skip
def test_what_is_written_otherwise_is_left_to_the_parser(odd: str) -> None:
    usual = [line(id=f"e{n}") for n in range(20)]
    assert holds(body(*usual))
    for place in (0, 7, 20) if odd else (0, 7):  # an empty line at the end is the end of the body
        assert not holds(body(*usual[:place], odd, *usual[place:]))


def test_bytes_that_are_no_text_are_left_to_the_parser() -> None:
    text = body(*(line(id=f"e{n}") for n in range(20)))
    assert like_lines.read(text.replace(b"e7", b"\xff7")) is None


@pytest.mark.parametrize(
    ("time", "read"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2024-02-29T23:59:59+05:30", datetime(2024, 2, 29, 18, 29, 59, tzinfo=UTC)),
        ("1969-12-31T23:00:00.5-02:00", datetime(1970, 1, 1, 1, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-01-02T03:04:05.123456+00:00", datetime(2026, 1, 2, 3, 4, 5, 123_456, tzinfo=UTC)),
        ("2026-01-02T03:04:05.12345678Z", datetime(2026, 1, 2, 3, 4, 5, 123_456, tzinfo=UTC)),
        ("1900-01-01T00:00:00Z", datetime(1900, 1, 1, tzinfo=UTC)),
        ("2026-02-29T00:00:00Z", None),
        ("2026-13-01T00:00:00Z", None),
        ("2026-01-32T00:00:00Z", None),
        ("2026-00-01T00:00:00Z", None),
        ("2026-01-00T00:00:00Z", None),
        ("2026-01-01T24:00:00Z", None),
        ("2026-01-01T00:60:00Z", None),
        ("2026-01-01T00:00:60Z", None),
        ("2026-01-01t00:00:00Z", None),
        ("1899-12-31T23:59:59Z", None),
        ("2026-01-01T00:00:00+24:00", None),
        ("2026-01-01T0:000:00Z", None),
        ("2026-01-01T00:00:00", None),
        ("", None),
    ],
)
def test_times_are_instants_or_left_as_they_are(time: str, read: datetime | None) -> None:
    for place in (0, 5):
        rows = [
            line(id=f"e{n}", time=time if n == place or read else "2026-01-02T03:04:05.1Z"[: len(time)])
            for n in range(9)
        ]
        found = like_lines.read(body(*rows))
        assert found is not None
        if read is None:
            assert found.events["time"][place] == time
            assert not found.is_plain
        else:
            assert found.events["time"][place] == read


@pytest.mark.parametrize(
    "odd",
    [
        line(customer=""), line(source="cloudbilling:amendment"), line(id="x" * (TEXT_LENGTH_MAX + 1)),
        line(data='{"a":"' + "x" * DATA_BYTES_MAX + '"}'), line(data='{"a":[]}'), line(time="2026-01-02 03:04:05Z"),
        line().replace('"time"', '"subscription":"","time"'),
    ],
)  # fmt: skip
def test_what_a_rule_must_look_at_is_not_plain(odd: str) -> None:
    for place in (0, 3, 9):
        rows = [line(id=f"e{n}") for n in range(9)]
        found = like_lines.read(body(*rows[:place], odd, *rows[place:]))
        assert found is None or not found.is_plain
        assert parse(body(*rows[:place], odd, *rows[place:]), NDJSON).events.equals(
            exactly(body(*rows[:place], odd, *rows[place:]))[0]
        )


_VALUE = st.text(st.characters(codec="utf-8", exclude_characters='"\\', min_codepoint=32), max_size=40)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(_VALUE, _VALUE, _VALUE, _VALUE), min_size=2, max_size=12), st.booleans())
def test_any_values_come_out_as_the_exact_way_reads_them(rows: list[tuple[str, str, str, str]], has_data: bool) -> None:
    made = [line(source, id, type, customer, data=f'{{"p":"{customer}"}}' if has_data else "{}")
            for source, id, type, customer in rows]  # fmt: skip
    holds(body(*made))


@settings(max_examples=150, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.integers(1, 3),
    st.sampled_from([b'"', b"{", b"}", b",", b":", b" ", b"0", b"\n", b"x", b"\\"]),
)
def test_a_byte_out_of_place_is_never_read_as_something_else(dice: random.Random, count: int, sign: bytes) -> None:
    """Bodies with a few bytes changed, dropped or added: either left to the parser, or read as it reads them."""
    text = body(
        *(line(id=f"e{n}", customer="c" * (1 + n % 11), data=f'{{"value":"{n}.5","n":{n}}}') for n in range(12))
    )
    for _ in range(count):
        place = dice.randrange(len(text))
        text = text[:place] + dice.choice([sign, b""]) + text[place + dice.randrange(2) :]
    if not text.startswith(b"\n") and not text.endswith(b"\n") and b"\n\n" not in text:
        holds(text)
