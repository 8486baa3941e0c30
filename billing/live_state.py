"""What shards keep of usage: folded by key, meter, dimensions and local day, and priced like the events themselves.

Owns the cells: prices, plans and contracts may change without folding again. Billed and live figures come out of the
same functions (`billing/meters.py`, `billing/rating.py`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import polars as pl

from billing.measured import counts_for, matched, measured
from billing.meters import AGGREGATION, EVENT_ORDER, MeterState, fold, merge, property_texts, regroup
from billing.money import NUMBER
from billing.rating import BY_SLOT, SINGLES, Pieces, RatedPieces, UsagePiece, price_of, row_kinds, slot_column
from billing.rating_book import RatingBook
from billing.typed_columns import event_columns
from billing.usage import EVENT_SCHEMA, INSTANT


@dataclass(frozen=True)
class LiveState:
    """What a shard keeps: usage by customer key, named subscription, meter, dimensions and local day (or cut of it).

    `measure` is empty for the meter's own value, else the property of an `event_amount` price. `dimensions` is the JSON
    object of the values that price rows of the meter ask for. `at` is the start of the day or piece of day.
    """

    state: MeterState

    def to_bytes(self) -> bytes:
        """For a shard's snapshot."""
        out = io.BytesIO()
        for frame in (self.state.small, self.state.sets, self.state.runs):
            part = io.BytesIO()
            frame.write_ipc(part, compression="zstd")
            out.write(part.tell().to_bytes(8, "little"))
            out.write(part.getvalue())
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> LiveState:
        frames: list[pl.DataFrame] = []
        offset = 0
        for _ in range(3):
            length = int.from_bytes(data[offset : offset + 8], "little")
            frames.append(pl.read_ipc(io.BytesIO(data[offset + 8 : offset + 8 + length])))
            offset += 8 + length
        return cls(MeterState(LIVE_BY, *frames))


LIVE_BY = ("key", "subscription", "meter", "measure", "dimensions", "at")


def fold_days(events: pl.DataFrame, book: RatingBook) -> LiveState:
    """Fold events that can be rated, whatever contracts and prices come later.

    Prices, overrides and plans may change without folding again. A new dimension, a new `event_amount` property, a
    first price per event on a meter, or a cut of time inside a day (`book.cuts`) needs the affected keys folded again.
    """
    frame = events.select(event_columns(events)).with_row_index("row")
    codes = pl.Series([meter.code for meter in book.meters], dtype=pl.String)
    found: list[pl.DataFrame] = []
    for usage in measured(frame, book.meter_tables, book.properties):
        pairs = usage.pairs.filter(~pl.col("missing") & ~pl.col("invalid"))
        met = usage.with_events(pairs, ("customer", "subscription", *EVENT_ORDER))
        for live, meters in book.live_meters:
            group = met.filter(pl.col("meter").is_in(meters.implode())) if len(book.live_meters) > 1 else met
            if group.height == 0:
                continue
            texts = {name: usage.texts[name].gather(group["place"]).alias(name) for name in live.dimensions}
            group = group.with_columns(
                key=pl.col("customer"),
                meter=codes.gather(group["meter"]),
                measure=pl.lit(""),
                dimensions=_json_objects(texts, group.height),
                keep=pl.lit(live.keep),
            )
            found.append(group.select(_LIVE_ROW.names()))
            for name in live.amounts:
                own = usage.texts.number(name).gather(group["place"]).alias("value")
                priced = group.with_columns(
                    own,
                    measure=pl.lit(name),
                    aggregation=pl.lit("sum", AGGREGATION),
                    keep=pl.lit(False),
                    text=pl.lit(None, pl.String),
                )
                found.append(priced.filter(pl.col("value").is_not_null()).select(_LIVE_ROW.names()))
    rows = pl.concat(found) if found else pl.DataFrame(schema=_LIVE_ROW)
    return LiveState(fold(_with_cells(rows, book), LIVE_BY))


def nothing_used(book: RatingBook) -> LiveState:
    return fold_days(pl.DataFrame(schema=EVENT_SCHEMA), book)


def merge_live(left: LiveState, right: LiveState) -> LiveState:
    """One live state of two over different events."""
    return LiveState(merge(left.state, right.state))


def rate_live(pieces: Sequence[UsagePiece], live: LiveState, book: RatingBook) -> RatedPieces:
    """What `rate` gives for the same pieces over the events that were folded."""
    table = Pieces(pieces, book, book.timezone)
    codes = pl.DataFrame(
        {"meter": pl.Series(range(len(book.meters)), dtype=pl.UInt32), "code": [m.code for m in book.meters]}
    )
    small = live.state.small.with_row_index("cell")
    cells = small.join(codes, left_on="meter", right_on="code", how="inner").with_columns(meter=pl.col("meter_right"))
    of_pieces = table.frame.join(table.keys, on="owner", how="inner").select(
        "piece", "key", "of_subscription", "charge", "meter", "start", "end", "is_level"
    )
    met = cells.join(of_pieces, on=["key", "meter"], how="inner").filter(
        counts_for() & (pl.col("first") < pl.col("end")) & ((pl.col("last") >= pl.col("start")) | pl.col("is_level"))
    )
    across = (pl.col("last") >= pl.col("end")) | ((pl.col("first") < pl.col("start")) & ~pl.col("is_level"))
    assert met.filter(across).height == 0, "a piece begins or ends inside a folded cell: it has to be in book.cuts"
    names = {name for names in table.charges.rows_by_dimensions for name in names}
    texts = property_texts(met["dimensions"], names)
    met = matched(met, texts, table.charges).filter(pl.col("price_row").is_not_null())
    met = met.with_columns(slot_column())
    own = met.filter(pl.col("measure") == "")
    to_lines = own.select("slot", "cell")
    numbered = small.select("cell", *LIVE_BY)
    sets = live.state.sets.join(numbered, on=LIVE_BY, how="inner", nulls_equal=True)
    runs = live.state.runs.join(numbered, on=LIVE_BY, how="inner", nulls_equal=True)
    state = regroup(
        MeterState(
            BY_SLOT,
            own,
            sets.join(to_lines, on="cell", how="inner"),
            runs.join(to_lines, on="cell", how="inner"),
        ),
        BY_SLOT,
    )
    return price_of(table, state, _live_singles(table, met, runs))


def _live_singles(table: Pieces, met: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """The events that prices of single events look at; for `event_amount` their sums do as well."""
    kinds = row_kinds(table.charges)
    if kinds.height == 0:
        return pl.DataFrame(schema=SINGLES)
    counts = pl.Series([meter.aggregation == "count" for meter in table.meters], dtype=pl.Boolean)
    priced = met.join(kinds, on=["charge", "price_row"], how="inner")
    each = priced.filter(pl.col("property").is_null() & (pl.col("measure") == ""))
    each = each.with_columns(counts=counts.gather(each["meter"])).select("slot", "cell", "counts")
    single = runs.join(each, on="cell", how="inner").with_columns(
        value=pl.when("counts").then(pl.lit(Decimal(1), NUMBER)).otherwise(pl.col("value"))
    )
    by_value = priced.filter(pl.col("property") == pl.col("measure"))
    sums = by_value.select(
        "slot", pl.col("first").alias("time"), pl.lit("").alias("id"), pl.lit("").alias("source"),
        pl.col("sum").alias("value"),
    )  # fmt: skip
    huge = runs.join(by_value.select("slot", "cell"), on="cell", how="inner")
    return pl.concat([single.select(SINGLES.names()), sums, huge.select(SINGLES.names())])


_LIVE_ROW = pl.Schema({
    "key": pl.String, "subscription": pl.String, "meter": pl.String, "measure": pl.String, "dimensions": pl.String,
    "aggregation": AGGREGATION, "keep": pl.Boolean, "time": INSTANT, "id": pl.String, "source": pl.String,
    "value": NUMBER, "text": pl.String,
})  # fmt: skip


def _json_objects(texts: Mapping[str, pl.Series], height: int) -> pl.Series:
    if not texts:
        return pl.repeat("{}", height, dtype=pl.String, eager=True)
    return pl.DataFrame(list(texts.values())).to_struct("dimensions").struct.json_encode()


def _with_cells(rows: pl.DataFrame, book: RatingBook) -> pl.DataFrame:
    """Rows with `at`: the start of their local day, or the last cut before them on that day."""
    rows = rows.with_columns(_days(rows["time"], book.timezone))
    if book.cuts.height == 0:
        return rows
    owners = book.customers.select("key", pl.col("customer").alias("owner"))
    cuts = book.cuts.select(pl.col("customer").alias("owner"), pl.col("at").alias("cut")).sort("cut")
    return (
        rows.join(owners, on="key", how="left")
        .sort("time")
        .join_asof(cuts, left_on="time", right_on="cut", by="owner", strategy="backward", check_sortedness=False)
        .with_columns(at=pl.max_horizontal("at", "cut"))
        .drop("owner", "cut")
    )


MINUTE_US = 60_000_000
ROWS_A_MINUTE = 4  # below, asking for each minute once saves nothing


def _days(times: pl.Series, timezone: str) -> pl.Series:
    """`at`: the start of each time's local day.

    A time zone's rules cost more than all the rest of folding, so they are asked for the ends of each minute: where
    both lie in one day, all between them does. (A clock that goes back over midnight does so on a whole minute.)
    """
    minutes = (times.dt.epoch("us") // MINUTE_US).alias("minute")
    asked = minutes.unique()
    if len(asked) * ROWS_A_MINUTE > len(times):
        return _day_starts(times, timezone).alias("at")
    first = _day_starts((asked * MINUTE_US).cast(INSTANT), timezone)
    last = _day_starts((asked * MINUTE_US + (MINUTE_US - 1)).cast(INSTANT), timezone)
    table = pl.DataFrame([asked, first.set(first != last, None).alias("at")])
    found = minutes.to_frame().join(table, on="minute", how="left", maintain_order="left")["at"]
    places = found.is_null().arg_true()
    return found if not len(places) else found.scatter(places, _day_starts(times.gather(places), timezone))


def _day_starts(times: pl.Series, timezone: str) -> pl.Series:
    local = pl.col("time").dt.convert_time_zone(timezone).dt.replace_time_zone(None).dt.truncate("1d")
    # A midnight that does not exist is the first moment after the gap; one that exists twice is the first.
    day = pl.coalesce(
        local.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null"),
        (local + pl.duration(hours=1)).dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null"),
    ).dt.convert_time_zone("UTC")
    return times.alias("time").to_frame().select(day.cast(INSTANT)).to_series()
