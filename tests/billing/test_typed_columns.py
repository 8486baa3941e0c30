"""Typed columns say what the text says: every figure is the same with them, without them, and with some of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from billing.catalog import Meter
from billing.measured import measured
from billing.rating_book import RatingBook
from billing.typed_columns import NO_READS, Reads, Texts, typed_columns
from billing.usage import EVENT_SCHEMA
from billing.verdicts import classify_columns

NOW = datetime(2026, 6, 1, tzinfo=UTC)
METERS = (
    Meter("sum", "t", "sum", value="n", filter=(("region", ("eu", "us")),)),
    Meter("max", "t", "max", value="m"),
    Meter("latest", "u", "latest", value="n"),
    Meter("who", "u", "unique_count", value="region"),
    Meter("count", "u", "count", filter=(("region", ("eu", "1.0")),)),
)
BOOK = RatingBook(METERS)

_NUMBERS = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-1000, max_value=1000).map(str),
    st.integers(-(10**27), 10**27).map(str),
    st.sampled_from(["0", "-0.0", "1e3", "1E-12", "0.1234567890123", "12345678901234567.89", "many", "NaN", "", " 1"]),
    st.sampled_from(["0.123456789012", "999999.999999999999", "1000000", "99999999999999999999999999", ".5", "+7"]),
)
_VALUES = st.one_of(
    _NUMBERS.map(json.dumps),  # as text
    st.integers(-(10**20), 10**20).map(str),  # as number
    st.sampled_from(["1.50", "null", "true", '{"a":1.0}', "[1.0]", '"eu"', '"us"', '"\\u0065u"', '"ü"', "1.0"]),
)


@st.composite
def _data(draw: st.DrawFn) -> str:
    pairs = draw(st.lists(st.tuples(st.sampled_from(["n", "m", "region", "other"]), _VALUES), max_size=4))
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in pairs) + "}"


def events_of(rows: list[tuple[str, str]]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "source": ["s"] * len(rows),
            "id": [str(place) for place in range(len(rows))],
            "type": [kind for kind, _ in rows],
            "customer": ["c"] * len(rows),
            "subscription": [None] * len(rows),
            "time": [NOW - timedelta(hours=place) for place in range(len(rows))],
            "data": [data for _, data in rows],
        },
        schema=EVENT_SCHEMA,
    )


def with_typed(events: pl.DataFrame, reads: Reads = BOOK.reads) -> pl.DataFrame:
    return events.with_columns(typed_columns(events.with_columns(tenant=pl.lit("x")), {"x": reads}))


def pairs_of(events: pl.DataFrame) -> pl.DataFrame:
    frames = [
        usage.pairs.with_columns(type=pl.lit(usage.events["type"][0]))
        for usage in measured(events.with_row_index("row"), BOOK.meter_tables)
        if usage.pairs.height
    ]
    return pl.concat(frames).sort("row", "meter").drop("place") if frames else pl.DataFrame()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["t", "u", "v"]), _data()), min_size=1, max_size=30), st.data())
def test_what_is_measured_of_typed_columns_is_what_the_text_gives(
    rows: list[tuple[str, str]], data: st.DataObject
) -> None:
    events = events_of(rows)
    typed = with_typed(events)
    assert_frame_equal(pairs_of(typed), pairs_of(events))
    assert classify_columns(typed, BOOK, NOW).equals(classify_columns(events, BOOK, NOW))
    # Some values or columns may be lacking anywhere: nothing changes.
    names = [name for name in typed.columns if ":" in name]
    left = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    some = typed.drop(left).with_columns(
        pl.when(pl.col("id").cast(pl.Int64) % 2 == 0).then(pl.col(name)) for name in names if name not in left
    )
    assert_frame_equal(pairs_of(some), pairs_of(events))
    mixed = pl.concat([typed.head(3), events.slice(3)], how="diagonal_relaxed")
    assert_frame_equal(pairs_of(mixed), pairs_of(events))


def test_numbers_are_taken_with_the_scale_that_holds_them_and_the_text_alone_holds_the_rest() -> None:
    events = events_of([("t", '{"n":"1.25"}')] * 200 + [("t", '{"n":"0.123456789012"}'), ("t", '{"n":"many"}')])
    column = with_typed(events)["number:n"]
    assert column.dtype == pl.Decimal(18, 2)
    assert column.null_count() == 2
    assert column[0] == Decimal("1.25")
    texts = Texts(with_typed(events), ["n"])
    assert texts.number("n")[200] == Decimal("0.123456789012")
    assert texts.number("n")[201] is None
    assert not texts.lacks("n").any()


def test_a_tenant_whose_meters_read_nothing_gets_no_columns() -> None:
    assert with_typed(events_of([("t", '{"n":"1.25"}')]), NO_READS).columns == EVENT_SCHEMA.names()


def test_a_typed_column_is_what_is_read() -> None:
    """A wrong value would be billed: so it is not the text that the figures come from."""
    events = with_typed(events_of([("t", '{"n":"1.25","region":"eu"}')]))
    wrong = events.with_columns(pl.lit(Decimal("9.99")).cast(pl.Decimal(18, 2)).alias("number:n"))
    assert pairs_of(wrong).filter(pl.col("meter") == 0)["value"].to_list() == [Decimal("9.99")]
