"""What rows take is known before they are written, whatever is in them; what is too much for one segment is cut."""

from __future__ import annotations

import random
import string

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.usage_log.segment import ROW_SCHEMA, Counters, SegmentHead, encode_segment
from storage.usage_log.sizes import ROW_BYTES, bytes_of, pieces
from tests.usage_log_support import TENANT, make_events

SIGNS = string.ascii_letters + string.digits + "-_"


def noise(rows: int, length: int) -> pl.Series:
    """Texts that hardly compress."""
    chance = random.Random(rows * length)
    return pl.Series(["".join(chance.choices(SIGNS, k=length)) for _ in range(rows)], dtype=pl.String)


@pytest.mark.parametrize(("rows", "length"), [(1, 20), (2, 5_000), (300, 40), (4_500, 0), (4_500, 64), (300, 8_000)])
def test_a_segment_is_not_larger_than_was_said_before_it_was_written(rows: int, length: int) -> None:
    events = make_events(rows).with_columns(id=noise(rows, 40), customer=noise(rows, 30), data=noise(rows, length))
    frame = events.select(
        pl.lit(TENANT).alias("tenant"),
        pl.lit(0, pl.UInt8).alias("partition"),
        pl.lit(0, pl.UInt8).alias("kind"),
        *events.columns,
        pl.lit(None, pl.String).alias("detail"),
    ).cast(ROW_SCHEMA)
    empty = SegmentHead(0, 7, 1, "n" * 32, 1, "d" * 32, counters={TENANT: Counters(rows)})
    framing = len(encode_segment(empty, None)) + 1_024  # of each column, whatever is in it
    assert len(encode_segment(empty, frame)) <= bytes_of(events) + framing


def test_what_rows_take_is_theirs_alone_also_where_they_are_cut_out_of_many() -> None:
    events = make_events(1_000)
    alone = make_events(10, 500)
    assert bytes_of(events.slice(500, 10)) == bytes_of(events[list(range(500, 510))]) == bytes_of(alone)
    texts = sum(len(value) for row in alone.rows() for value in row if isinstance(value, str))
    assert bytes_of(alone) == texts + 10 * (8 + ROW_BYTES)


@given(
    lengths=st.lists(st.integers(0, 3_000), max_size=60), rows_max=st.integers(1, 20), bytes_max=st.integers(200, 5_000)
)
def test_pieces_are_all_rows_in_order_and_none_is_too_large(lengths: list[int], rows_max: int, bytes_max: int) -> None:
    events = make_events(len(lengths)).with_columns(
        data=pl.Series(["x" * length for length in lengths], dtype=pl.String)
    )
    end = 0
    for start, count, size in pieces(events, rows_max, bytes_max):
        assert start == end
        assert 1 <= count <= rows_max
        assert size == bytes_of(events.slice(start, count))
        assert size <= bytes_max or count == 1
        end = start + count
    assert end == len(lengths)
