"""Usage as Arrow: which columns are taken, what a body costs before it is unfolded, and how broken bytes are named."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from billing import usage_arrow
from billing.errors import FieldError, InvalidInput, Malformed, TooLarge
from billing.usage import EVENT_SCHEMA, INSTANT
from billing.usage_arrow import read

TEXTS: dict[str, list[Any]] = {
    "source": ["s", "s", "s"],
    "id": ["a", "b", "c"],
    "type": ["t", "t", "t"],
    "customer": ["c", "c", "c"],
    "time": ["2026-01-20T09:00:00Z"] * 3,
    "data": ['{"a": 1}', None, "{}"],
}
ROWS = [
    ("s", one, "t", "c", None, "2026-01-20T09:00:00Z", data) for one, data in zip("abc", TEXTS["data"], strict=True)
]


def body(table: pa.Table, *, file: bool = False, rows: int | None = None, **options: Any) -> bytes:
    sink = io.BytesIO()
    writer = (pa.ipc.new_file if file else pa.ipc.new_stream)(
        sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)
    )
    with writer:
        for batch in table.to_batches(max_chunksize=rows):
            writer.write_batch(batch)
    return sink.getvalue()


def taken(sent: bytes, events_max: int = 100, bytes_max: int = 10_000) -> list[tuple[Any, ...]]:
    table = read(sent, events_max=events_max, bytes_max=bytes_max)
    assert table.columns == list(EVENT_SCHEMA)
    return table.rows()


def folded(*names: str) -> pa.Table:
    return pa.table(
        {key: pa.array(value).dictionary_encode() if key in names else value for key, value in TEXTS.items()}
    )


# -- Columns -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [False, True], ids=["stream", "file"])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.large_string()),
        pa.dictionary(pa.uint32(), pa.string()),
    ],
    ids=str,
)
def test_text_of_every_kind_is_read_as_text(kind: pa.DataType, compression: str | None, file: bool) -> None:
    table = pa.table({key: pa.array(value, type=kind) for key, value in TEXTS.items()})
    assert taken(body(table, file=file, compression=compression)) == ROWS
    assert taken(body(table, file=file, compression=compression, rows=2)) == ROWS


def test_a_column_may_be_left_out_or_empty_where_an_event_may_do_without() -> None:
    table = pa.table({key: value for key, value in TEXTS.items() if key != "data"})
    assert taken(body(table)) == [(*row[:6], None) for row in ROWS]
    nothing = pa.table({**TEXTS, "data": pa.nulls(3), "subscription": pa.nulls(3)})
    assert taken(body(nothing)) == [(*row[:6], None) for row in ROWS]
    with_subscription = pa.table({**TEXTS, "subscription": ["x", None, "z"]})
    assert [row[4] for row in taken(body(with_subscription))] == ["x", None, "z"]
    assert taken(body(pa.table(TEXTS).slice(0, 0))) == []


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_a_timestamp_with_a_zone_is_an_instant(unit: str, zone: str) -> None:
    moment = datetime(2026, 1, 20, 9, tzinfo=UTC)
    times = pa.array([moment] * 3, type=pa.timestamp(unit, zone))
    for column in (times, times.dictionary_encode()):
        table = read(body(pa.table({**TEXTS, "time": column})), events_max=3, bytes_max=10_000)
        assert table.schema["time"] == INSTANT
        assert table["time"].to_list() == [moment] * 3


WRONG: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    *(({name: ...}, [(f"/{name}", "column is missing")]) for name in ("source", "id", "type", "customer", "time")),
    ({"extra": ["x"] * 3}, [("/extra", "unknown column")]),
    ({"extra": [1] * 3}, [("/extra", "unknown column")]),
    ({"id": [1, 2, 3]}, [("/id", "the column must hold text, not int64")]),
    ({"id": pa.array([1, 2, 3]).dictionary_encode()},
     [("/id", "the column must hold text, not dictionary<values=int64, indices=int32, ordered=0>")]),
    ({"data": pa.array([{"a": 1}] * 3)}, [("/data", "the column must hold the JSON text of an object, not"
                                                    " struct<a: int64>")]),
    ({"time": [1, 2, 3]}, [("/time", "the column must hold text or a timestamp with a time zone, not int64")]),
    ({"time": pa.array([datetime(2026, 1, 20)] * 3)}, [("/time", "a timestamp column needs a time zone")]),
    ({"customer": pa.array([datetime(2026, 1, 20, tzinfo=UTC)] * 3)},
     [("/customer", "the column must hold text, not timestamp[us, tz=UTC]")]),
    ({"id": ..., "extra": ["x"] * 3, "type": [1.5] * 3},
     [("/extra", "unknown column"), ("/id", "column is missing"), ("/type", "the column must hold text, not double")]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "errors"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_wrong_columns_are_all_named_with_what_they_must_hold(
    changes: dict[str, Any], errors: list[tuple[str, str]]
) -> None:
    table = pa.table({key: value for key, value in {**TEXTS, **changes}.items() if value is not ...})
    with pytest.raises(InvalidInput) as caught:
        read(body(table), events_max=3, bytes_max=10_000)
    assert caught.value.errors == tuple(FieldError(*one) for one in errors)
    assert caught.value.detail == f"{errors[0][0]}: {errors[0][1]}"


def test_two_columns_of_one_name_are_refused() -> None:
    table = pa.Table.from_arrays([pa.array(["x"])] * 6, names=["source", "id", "type", "customer", "time", "time"])
    with pytest.raises(InvalidInput) as caught:
        read(body(table), events_max=3, bytes_max=10_000)
    assert caught.value.errors == (FieldError("", "two columns have the same name"),)


# -- Cost --------------------------------------------------------------------------------------------------------------

# What the three rows take up. Offsets: 6 columns x 4 numbers x 4 bytes = 96; letters: 4 x 3 + 60 + 10 = 82; which data
# are there: 1 byte. As they are, each of these is filled up to 8 bytes: 96 + (4 x 8 + 64 + 16) + 8.
UNFOLDED, FILLED = 179, 216
# Five dictionaries (offsets + letters: 3 x (8 + 8), 16 + 8, 8 + 24), then 5 x 3 indices of 4 bytes filled up to 16, and
# the data as above (16 + 16 + 8).
FOLDED = 3 * 16 + 24 + 32 + 5 * 16 + 40


@pytest.mark.parametrize("file", [False, True], ids=["stream", "file"])
@pytest.mark.parametrize(
    ("table", "options", "size"),
    [
        (pa.table(TEXTS), {}, FILLED),
        (pa.table(TEXTS), {"compression": "zstd"}, UNFOLDED),
        (pa.table(TEXTS), {"compression": "lz4"}, UNFOLDED),
        (folded("source", "id", "type", "customer", "time"), {}, FOLDED),
    ],
    ids=["plain", "zstd", "lz4", "dictionaries"],
)
def test_a_body_is_weighed_to_the_byte_and_the_row_before_it_is_unfolded(
    table: pa.Table, options: dict[str, Any], size: int, file: bool
) -> None:
    sent = body(table, file=file, **options)
    assert taken(sent, events_max=3, bytes_max=size) == ROWS
    with pytest.raises(TooLarge) as caught:
        taken(sent, events_max=3, bytes_max=size - 1)
    assert caught.value.detail == f"the body unfolds to more than {size - 1} bytes"
    assert caught.value.context == {"limit": size - 1}
    with pytest.raises(TooLarge) as caught:
        taken(sent, events_max=2, bytes_max=size)
    assert caught.value.detail == "more than 2 events in one request; send several"
    assert caught.value.context == {"limit": 2}


@pytest.mark.parametrize("file", [False, True], ids=["stream", "file"])
def test_the_rows_and_bytes_of_all_batches_count_together(file: bool) -> None:
    many = pa.table({key: value * 500 for key, value in TEXTS.items()})
    sent = body(many, file=file, rows=100)
    assert len(taken(sent, events_max=1_500, bytes_max=1_000_000)) == 1_500
    for events_max, bytes_max, words in (
        (1_499, 1_000_000, "more than 1,499 events in one request; send several"),
        (1_500, 60_000, "the body unfolds to more than 60,000 bytes"),
    ):
        with pytest.raises(TooLarge) as caught:
            taken(sent, events_max=events_max, bytes_max=bytes_max)
        assert caught.value.detail == words


@pytest.mark.parametrize("file", [False, True], ids=["stream", "file"])
def test_so_many_batches_are_taken_and_no_more(file: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_arrow, "_MESSAGES_MAX", 1_000)
    table = pa.table({key: value * 340 for key, value in TEXTS.items()})
    messages = 1_000 if file else 999  # a stream begins with a message of its schema
    sent = body(table.slice(0, messages), file=file, rows=1)
    assert len(taken(sent, events_max=2_000, bytes_max=1_000_000)) == messages
    with pytest.raises(TooLarge) as caught:
        taken(body(table.slice(0, messages + 1), file=file, rows=1), events_max=2_000, bytes_max=1_000_000)
    assert caught.value.detail == "more than 1,000 record batches in one request"
    assert caught.value.context == {"limit": 1_000}


def test_a_dictionary_is_weighed_by_what_its_column_unfolds_to() -> None:
    ids = pa.array(["y" * 1_000] * 9 + [None]).dictionary_encode()
    table = pa.table({**{key: [value[0]] * 10 for key, value in TEXTS.items()}, "id": ids})
    sent = body(table)
    assert [row[1] for row in taken(sent, bytes_max=9_000)] == ["y" * 1_000] * 9 + [None]
    with pytest.raises(TooLarge) as caught:
        taken(sent, bytes_max=8_999)
    assert caught.value.detail == "column id unfolds to more than 8,999 bytes"
    assert caught.value.context == {"limit": 8_999}
    empty = pa.table(
        {**TEXTS, "data": pa.DictionaryArray.from_arrays(pa.array([None] * 3, pa.int8()), pa.array([""])[:0])}
    )
    assert taken(body(empty)) == [(*row[:6], None) for row in ROWS]


# -- Broken bytes ------------------------------------------------------------------------------------------------------

FILE, STREAM = body(pa.table(TEXTS), file=True), body(pa.table(TEXTS))
BROKEN = {
    "nothing": (b"", "Tried reading schema message, was null or length 0"),
    "a letter": (b"x", "Corrupted message, only 1 bytes available"),
    "a file's head alone": (b"ARROW1", "the end of the file is missing"),
    "a file without its last byte": (FILE[:-1], "the end of the file is missing"),
    "a footer that is too long": (FILE[:-10] + b"\xff\xff\xff\x7f" + FILE[-6:], "its footer has an impossible length"),
    "a footer of less than nothing": (FILE[:-10] + b"\xf0\xff\xff\xff" + FILE[-6:],
                                      "its footer has an impossible length"),
    "a stream without its batch": (STREAM[:50], "Expected to read 336 metadata bytes, but only read 42"),
    "a stream that is cut off": (STREAM[:-20], "Expected to be able to read 216 bytes for message body, got 204"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_bytes_that_are_no_arrow_are_refused_in_these_words(name: str) -> None:
    sent, words = BROKEN[name]
    with pytest.raises(Malformed) as caught:
        taken(sent)
    assert caught.value.detail == f"the body is no valid Arrow IPC: {words}"


@pytest.mark.parametrize("sent", [FILE, STREAM], ids=["file", "stream"])
def test_no_byte_that_is_turned_brings_anything_but_rows_or_a_refusal(sent: bytes) -> None:
    """Offsets and lengths in the headers are read before Arrow checks them: none may lead astray."""
    refused = 0
    for place in range(0, len(sent), 7):
        for value in (0x00, 0xFF, 0x80):
            turned = sent[:place] + bytes([value]) + sent[place + 1 :]
            try:
                taken(turned)
            except (Malformed, TooLarge, InvalidInput):
                refused += 1
    assert refused > 100


def test_a_block_that_lies_outside_of_the_file_is_refused() -> None:
    at = FILE.rindex((216).to_bytes(8, "little"))  # the footer's length of the batch's body
    for length in (1 << 20, -1):
        sent = FILE[:at] + length.to_bytes(8, "little", signed=True) + FILE[at + 8 :]
        with pytest.raises(Malformed) as caught:
            taken(sent)
        assert caught.value.detail == "the body is no valid Arrow IPC: a block lies outside of the file"


def test_letters_that_are_no_utf8_are_refused() -> None:
    sent = STREAM.replace(b"2026-01-20T09:00:00Z", b"\xff026-01-20T09:00:00Z")
    with pytest.raises(Malformed) as caught:
        taken(sent)
    assert "Invalid UTF8" in caught.value.detail
    assert len(caught.value.detail) <= len("the body is no valid Arrow IPC: ") + 200


def test_what_is_read_goes_through_the_same_door_as_json() -> None:
    from billing.usage_formats import parse

    parsed = parse(body(pa.table({**TEXTS, "id": ["a", "", "c"]})), "application/vnd.apache.arrow.stream")
    assert parsed.rejects.rows() == [(2, "missing", "id is missing", "/id", "")]
    assert parsed.positions.to_list() == [1, 3]
    assert (parsed.total, parsed.events["data"].to_list()) == (3, ['{"a": 1}', "{}"])
    assert parsed.events.schema == EVENT_SCHEMA
    assert parsed.events["time"].dtype == pl.Datetime("us", "UTC")
    late = pa.table({**TEXTS, "time": pa.array([datetime(1899, 1, 1, tzinfo=UTC)] * 3)})
    assert parse(body(late), "application/vnd.apache.arrow.stream").rejects["reason"].unique().to_list() == [
        "invalid_time"
    ]
