"""A segment is one Parquet file, whoever writes it: the few rows of a lone request, and the many of a full group."""

import io
from datetime import UTC, datetime

import polars as pl
import pyarrow.parquet as pq
import pytest

from storage.usage_log import segment
from storage.usage_log.segment import FEW_ROWS, ROW_SCHEMA, Counters, SegmentHead, decode_segment, encode_segment


def head(rows: int) -> SegmentHead:
    return SegmentHead(3, 7, 2, "nonce", 1_700_000_000_000_000, "before", counters={"t": Counters(rows, 1)})


def rows_of(count: int) -> pl.DataFrame:
    """Rows with what is odd in a column: nulls, no text at all, another alphabet, long ones, times before 1970."""
    numbers = range(count)
    return pl.DataFrame(
        {
            "tenant": ["t" if number % 3 else "another" for number in numbers],
            "partition": [number * 255 // max(1, count - 1) for number in numbers],
            "kind": [0 if number % 5 else 1 for number in numbers],
            "source": ["s" if number % 7 else "" for number in numbers],
            "id": [f"é{number}" if number % 2 else f"{number:040}" for number in numbers],
            "type": ["use"] * count,
            "customer": [f"c{number % 11}" for number in numbers],
            "subscription": [None if number % 4 else "sub" for number in numbers],
            "time": [datetime(1969 + number % 90, 1, 1, 0, 0, 1, number, tzinfo=UTC) for number in numbers],
            "data": ['{"amount":"1.25"}' if number % 2 else '{"text":"' + "x" * 300 + '"}' for number in numbers],
            "detail": [None if number % 5 else '{"by":"x"}' for number in numbers],
        },
        schema=ROW_SCHEMA,
    )


@pytest.mark.parametrize("count", [1, 2, 40, 1_000])
def test_both_writers_write_the_same_rows_and_the_same_head(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(count)
    assert count <= FEW_ROWS
    few = decode_segment(encode_segment(head(count), rows))
    monkeypatch.setattr(segment, "FEW_ROWS", 0)
    many = decode_segment(encode_segment(head(count), rows))
    assert few.head == many.head
    assert few.head.rows == count
    for one in (few, many):
        assert one.rows().schema == ROW_SCHEMA
        assert one.rows().equals(rows)
        assert one.rows(["id", "partition"]).equals(rows.select("id", "partition"))
        file = pq.ParquetFile(io.BytesIO(one.data))
        assert file.metadata.num_row_groups == 1


@pytest.mark.parametrize("count", [1, 2, 24])
def test_the_head_says_of_few_rows_what_it_says_of_many(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which tenants have rows that change how events count: looked at one by one, or by columns."""
    rows = rows_of(count).with_columns(kind=pl.Series([1 if n % 6 == 0 else 5 for n in range(count)], dtype=pl.UInt8))
    asked = SegmentHead(3, 7, 2, "nonce", 1_700_000_000_000_000, "before", counters={"t": Counters(0, 0, count)})
    few = decode_segment(encode_segment(asked, rows)).head
    monkeypatch.setattr(segment, "FEW", 0)
    assert few == decode_segment(encode_segment(asked, rows)).head
    assert few.changed == {"another"}
    assert sum(length for _, length in few.ranges.values()) == count
    assert few.ranges[0] == (0, 1)


def test_an_epoch_record_has_a_head_and_no_rows() -> None:
    found = decode_segment(encode_segment(SegmentHead(0, 0, 1, "n", 5, "", is_epoch=True), None))
    assert found.head.is_epoch
    assert found.rows().schema == ROW_SCHEMA
    assert found.rows().height == 0


def test_few_rows_take_few_bytes() -> None:
    """A lone event is one file of its own until it is sealed."""
    assert len(encode_segment(head(1), rows_of(1))) < 2_200
