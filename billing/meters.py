"""Meters: events become quantities. Reading properties out of `data`, folding, merging and finishing in columns.

`fold` makes a state from events, `merge` makes one of two, `finish` makes quantities. The result depends on the set of
events alone, never on their order or on how they were cut into batches. Which event counts where is
`billing/measured.py` and `billing/rating.py`; what a quantity costs is `billing/pricing/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, cast

import polars as pl

from billing.catalog import AGGREGATIONS
from billing.money import NUMBER, parse_number, whole_up_to
from billing.usage import INSTANT

# Sums of values below this fit 38 digits for 10^8 events; larger ones go to the run and are added up in fractions.
HUGE = Decimal(10) ** 18
HOUR_US = 3_600_000_000
AGGREGATION = pl.Enum(AGGREGATIONS)
EVENT_ORDER = ("time", "id", "source")

# --- properties out of the JSON text ------------------------------------------------------------------------------


def property_texts(data: pl.Series, names: Iterable[str]) -> dict[str, pl.Series]:
    """Each property's value as text, digit for digit as it was sent; null where it is missing or null.

    A value that is a list or an object becomes JSON text (its numbers as texts), true and false become their names. If
    a name occurs twice the first one counts. Ingest lets only JSON objects in; a text that is none has no properties.
    """
    wanted = sorted(set(names))
    if not wanted:
        return {}
    # Flat objects without escapes are nearly all there is: what follows the first mention of a name must be its value.
    # All other rows are read one by one.
    column = pl.col("data")
    frame = data.alias("data").to_frame()
    escaped = column.str.contains("\\", literal=True)
    odd = frame.select(odd=escaped | (column.str.count_matches("{", literal=True) != 1))["odd"].fill_null(False)
    return {name: _property_text(frame, name, odd) for name in wanted}


def property_text(data: pl.Series, name: str) -> pl.Series:
    """One property's texts."""
    return property_texts(data, [name])[name]


def _property_text(frame: pl.DataFrame, name: str, odd: pl.Series) -> pl.Series:
    data, key = frame["data"], f'"{name}"'
    # What is found is a byte position; what is cut out goes by characters: the quick way is for ASCII rows only.
    is_ascii = (data.str.len_bytes() == data.str.len_chars()).fill_null(True)
    all_ascii = bool(is_ascii.all())
    tails = data.str.slice(data.str.find(key, literal=True) + len(key)) if all_ascii else _after(data, key)
    # `"name":"text"`, as nearly all write it, needs no pattern: the value ends at the next quote.
    inner = tails.str.slice(2)
    text = inner.str.head(inner.str.find('"', literal=True)).alias(name)
    is_quick = tails.str.starts_with(':"').fill_null(True)
    is_quick = is_quick if all_ascii else is_quick & is_ascii
    if not is_quick.all():
        text = text.set(~is_quick, None)
    patient = (tails.is_not_null() & text.is_null()).arg_true()
    if patient.len():
        value = r'^[ \t\r\n]*:[ \t\r\n]*("[^"]*"|[^ \t\r\n",{}\[\]]+)'
        given = tails.gather(patient).str.extract(value, 1)
        text = text.scatter(patient, given.str.strip_chars('"').set(given == "null", None))
        # Mentioned but no value follows: it is another property's value, or a list.
        odd = odd.scatter(patient.filter(given.is_null()), True)
    places = odd.arg_true()
    if places.len() == 0:
        return text
    read = pl.Series([properties_of(row)(name) for row in data.gather(places)], dtype=pl.String)
    return text.scatter(places, read).alias(name)


def _after(data: pl.Series, key: str) -> pl.Series:
    """What follows the first mention of a key, null where there is none."""
    return data.str.splitn(key, 2).struct.field("field_1")


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


# Numbers stay the text they are. The reader is made once: making one costs more than reading a row.
_READER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_first_wins)


def properties_of(data: str) -> Callable[[str], str | None]:
    """The texts of one event's properties by name, as `property_texts` gives them for a column."""
    try:
        value = _READER.decode(data)
    except (ValueError, RecursionError):
        value = None  # no JSON, or nested beyond reason: no properties, so the event goes to suspense and is seen
    properties = cast("dict[str, Any]", value) if isinstance(value, dict) else {}

    def text(name: str) -> str | None:
        found = properties.get(name)
        if found is None or isinstance(found, str):
            return found
        if isinstance(found, bool):
            return "true" if found else "false"
        return json.dumps(found, ensure_ascii=False, separators=(",", ":"))

    return text


CAST_BYTES_MAX = 13  # a point and twelve places
_PLAIN_NUMBER = r"^-?[0-9]{1,26}(?:\.[0-9]{1,12})?$"


def numbers(texts: pl.Series) -> pl.Series:
    """Exact numbers; null where the text is none within the limits (NaN, "many", 40 digits, 13 places)."""
    # A cast takes what `parse_number` takes, but cuts a thirteenth place off without a word. So few characters without
    # an exponent have no room for one; others must look like a number of at most twelve places.
    number = texts.cast(NUMBER, strict=False)
    exponent = texts.str.contains("e", literal=True) | texts.str.contains("E", literal=True)
    sure = number.is_not_null() & (texts.str.len_bytes() <= CAST_BYTES_MAX) & ~exponent
    doubtful = (texts.is_not_null() & ~sure.fill_null(False)).arg_true()
    if doubtful.len() == 0:
        return number
    left = texts.gather(doubtful)
    odd = doubtful.filter(~left.str.contains(_PLAIN_NUMBER))
    if odd.len() == 0:
        return number
    parsed = {value: parse_number(value) for value in texts.gather(odd).unique()}
    return number.scatter(odd, pl.Series([parsed[value] for value in texts.gather(odd)], dtype=NUMBER))


# --- fold, merge, finish ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeterState:
    """Folded usage by the columns `by`: small figures, sets of distinct texts, and runs of single events.

    `small` has one row per group: events, first, last, sum, low, high, and the latest event. `sets` has one row per
    group and text, `runs` one per event: only where the meter or the price needs them.
    """

    by: tuple[str, ...]
    small: pl.DataFrame
    sets: pl.DataFrame
    runs: pl.DataFrame


SMALL = pl.Schema(
    {
        "events": pl.Int64,
        "first": INSTANT,
        "last": INSTANT,
        "sum": NUMBER,
        "low": NUMBER,
        "high": NUMBER,
        "latest_time": INSTANT,
        "latest_id": pl.String,
        "latest_source": pl.String,
        "latest": NUMBER,
    }
)
RUN = pl.Schema({"time": INSTANT, "id": pl.String, "source": pl.String, "value": NUMBER})
_LATEST = ("latest_time", "latest_id", "latest_source")
_COMBINED = {
    "events": pl.col("events").sum(),
    "first": pl.col("first").min(),
    "last": pl.col("last").max(),
    "sum": pl.col("sum").sum(),
    "low": pl.col("low").min(),
    "high": pl.col("high").max(),
    **{name: pl.col(name).last() for name in (*_LATEST, "latest")},
}


def fold(usage: pl.DataFrame, by: Sequence[str]) -> MeterState:
    """Fold usage rows.

    Columns: `by`, aggregation (AGGREGATION), keep (the price asks for single events), time, id,
    source, value (number; null for count and unique_count), text (for unique_count).
    """
    small: list[pl.DataFrame] = []
    kinds: list[str] = usage["aggregation"].unique().to_list()
    none = usage.clear()
    counts_texts = "unique_count" in kinds
    texts = usage.filter(pl.col("aggregation") == "unique_count") if counts_texts else none
    sets = texts.select(*by, "text").unique()
    huge = (pl.col("value") >= HUGE) | (pl.col("value") <= -HUGE)
    held = pl.col("keep") | (pl.col("aggregation") == "time_weighted_sum") | (
        (pl.col("aggregation") == "sum") & huge.fill_null(False)
    )  # fmt: skip
    has_huge = "sum" in kinds and bool(usage.select(huge.any()).item())
    has_runs = has_huge or "time_weighted_sum" in kinds or bool(usage["keep"].any())
    runs = (usage.filter(held) if has_runs else none).select(*by, *RUN)
    for aggregation in kinds:
        # Mostly there is but one: nothing is copied then.
        group = usage if len(kinds) == 1 else usage.filter(pl.col("aggregation") == aggregation)
        if has_huge and aggregation == "sum":
            group = group.with_columns(value=pl.when(huge).then(None).otherwise(pl.col("value")))
        elif aggregation == "latest":
            group = group.sort(EVENT_ORDER)
        small.append(_complete(group.group_by(by).agg(*_SPAN, *_FOLDS[aggregation]), by))
    empty = usage.select(by).clear().with_columns(pl.lit(None, dtype).alias(name) for name, dtype in SMALL.items())
    return MeterState(tuple(by), pl.concat(small) if small else empty, sets, runs)


_SPAN = (
    pl.len().cast(pl.Int64).alias("events"),
    pl.col("time").min().alias("first"),
    pl.col("time").max().alias("last"),
)
_FOLDS: Mapping[str, Sequence[pl.Expr]] = {
    "count": (),
    "unique_count": (),
    "time_weighted_sum": (),
    "sum": (pl.col("value").sum().alias("sum"),),
    "max": (pl.col("value").max().alias("high"),),
    "min": (pl.col("value").min().alias("low"),),
    "latest": (
        pl.col("time").last().alias("latest_time"),
        pl.col("id").last().alias("latest_id"),
        pl.col("source").last().alias("latest_source"),
        pl.col("value").last().alias("latest"),
    ),
}


def _complete(frame: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    return frame.select(
        *by,
        *(
            pl.col(name).cast(dtype) if name in frame.columns else pl.lit(None, dtype).alias(name)
            for name, dtype in SMALL.items()
        ),
    )


def merge(left: MeterState, right: MeterState) -> MeterState:
    """One state of two over different events; in whichever order it is called, the result is the same."""
    return merged([left, right])


def merged(states: Sequence[MeterState]) -> MeterState:
    """One state of many over different events; at least one."""
    first = states[0]
    assert all(one.by == first.by for one in states), "states of different groups"
    if len(states) == 1:
        return first
    whole = MeterState(
        first.by,
        pl.concat([one.small for one in states]),
        pl.concat([one.sets for one in states]),
        pl.concat([one.runs for one in states]),
    )
    return regroup(whole, first.by)


def regroup(state: MeterState, by: Sequence[str]) -> MeterState:
    """The same usage in coarser groups."""
    small = state.small
    if small["latest_time"].null_count() < small.height:  # only the latest event asks for an order
        small = small.sort(_LATEST, nulls_last=False)
    # A meter keeps one of these figures or two: columns without any would cost as much as those that have some.
    kept = [name for name in _COMBINED if small[name].null_count() < small.height]
    small = small.select(*by, *kept).group_by(by).agg(*(_COMBINED[name] for name in kept))
    sets = state.sets.select(*by, "text").unique()
    return MeterState(tuple(by), _complete(small, by), sets, state.runs.select(*by, *RUN))


def finish(
    state: MeterState, groups: pl.DataFrame, by: Sequence[str]
) -> tuple[pl.DataFrame, dict[tuple[Any, ...], Fraction]]:
    """Quantities of `groups` (by, aggregation, start, end): the groups with quantity, events, first, last.

    The quantity is null where it is no decimal of 38 digits; the exact fraction is then in the second result, by group.
    Levels of `time_weighted_sum` hold until the next event or `end`; the last event before `start` holds from there.
    """
    zero = pl.lit(Decimal(0), NUMBER)
    frame = groups.join(state.small, on=by, how="left", maintain_order="left")
    sets = state.sets.group_by(by).agg(pl.len().alias("distinct"))
    frame = frame.join(sets, on=by, how="left", maintain_order="left")
    kind = pl.col("aggregation")
    frame = frame.with_columns(
        quantity=pl.when(kind == "sum").then(pl.col("sum"))
        .when(kind == "count").then(pl.col("events").cast(NUMBER))
        .when(kind == "max").then(pl.col("high"))
        .when(kind == "min").then(pl.col("low"))
        .when(kind == "latest").then(pl.col("latest"))
        .when(kind == "unique_count").then(pl.col("distinct").cast(NUMBER))
        .otherwise(None)
        .fill_null(zero)
    )  # fmt: skip
    odd: dict[tuple[Any, ...], Fraction] = {}
    odd |= _huge_sums(frame, state.runs, by)
    levels, odd_levels = _levels(frame, state.runs, by)
    odd |= odd_levels
    if levels.height:
        frame = frame.join(levels, on=by, how="left", maintain_order="left").with_columns(
            quantity=pl.when(kind == "time_weighted_sum")
            .then(pl.col("level_sum").fill_null(zero))
            .otherwise(pl.col("quantity")),
            events=pl.when(kind == "time_weighted_sum").then(pl.col("level_events")).otherwise(pl.col("events")),
        )
    if odd:
        keys = pl.DataFrame(list(odd), schema={name: frame.schema[name] for name in by}, orient="row")
        frame = frame.join(keys.with_columns(odd=pl.lit(True)), on=by, how="left", maintain_order="left").with_columns(
            quantity=pl.when(pl.col("odd").is_null()).then(pl.col("quantity")).otherwise(None)
        )
    return frame.select(*groups.columns, "quantity", pl.col("events").fill_null(0), "first", "last"), odd


def _huge_sums(frame: pl.DataFrame, runs: pl.DataFrame, by: Sequence[str]) -> dict[tuple[Any, ...], Fraction]:
    """Sums with a value too large for the column: added up in fractions, if the whole does not fit a column."""
    huge = runs.filter((pl.col("value") >= HUGE) | (pl.col("value") <= -HUGE))
    if huge.height == 0:
        return {}
    sums = frame.filter(pl.col("aggregation") == "sum").select(*by, "quantity")
    totals: dict[tuple[Any, ...], Fraction] = {}
    for *key, quantity, value in huge.join(sums, on=by, how="inner").select(*by, "quantity", "value").iter_rows():
        group = tuple(key)
        totals[group] = totals.get(group, Fraction(quantity)) + Fraction(value)
    return totals


def _levels(
    frame: pl.DataFrame, runs: pl.DataFrame, by: Sequence[str]
) -> tuple[pl.DataFrame, dict[tuple[Any, ...], Fraction]]:
    groups = frame.filter(pl.col("aggregation") == "time_weighted_sum").select(*by, "start", "end")
    schema = {**{name: frame.schema[name] for name in by}, "level_sum": NUMBER, "level_events": pl.Int64}
    if groups.height == 0:
        return pl.DataFrame(schema=schema), {}
    steps = (
        runs.join(groups, on=by, how="inner")
        .filter(pl.col("time") < pl.col("end"))
        .sort(*by, *EVENT_ORDER)
        .with_columns(until=pl.col("time").shift(-1).over(by).fill_null(pl.col("end")))
        .with_columns(from_=pl.max_horizontal("time", "start"), inside=pl.col("time") >= pl.col("start"))
        .with_columns(held_us=(pl.col("until") - pl.col("from_")).dt.total_microseconds().clip(0, None))
    )
    # level x microseconds has 26 digits before the point; a level that might not fit is integrated in fractions. All is
    # whole and bounded by 128 bits: a level by 10^20, what it may hold by 10^18 (30,000 years), each part by 10^26.
    level = whole_up_to(pl.col("value"), 10**20)
    fits = ((level * pl.col("held_us").cast(pl.Int128)).clip(None, 10**26).sum() < 10**26).over(by)
    steps = steps.with_columns(fits=fits)
    level_us = pl.when("fits").then(pl.col("value")).otherwise(None) * pl.col("held_us").cast(NUMBER)
    sums = (
        steps.with_columns(level_us=level_us)
        .group_by(by)
        .agg(
            pl.col("level_us").sum(),
            pl.col("fits").first(),
            pl.col("inside").sum().cast(pl.Int64).alias("level_events"),
        )
        .with_columns(level_sum=pl.col("level_us") / pl.lit(Decimal(HOUR_US)))
        # A third of an hour has no end as a decimal: what does not multiply back is a fraction.
        .with_columns(exact=pl.col("fits") & (pl.col("level_sum") * pl.lit(Decimal(HOUR_US)) == pl.col("level_us")))
    )
    odd: dict[tuple[Any, ...], Fraction] = {}
    for *key, total, fits_group in sums.filter(~pl.col("exact")).select(*by, "level_us", "fits").iter_rows():
        odd[tuple(key)] = Fraction(total) / HOUR_US if fits_group else Fraction(0)
    for *key, value, held_us in steps.filter(~pl.col("fits")).select(*by, "value", "held_us").iter_rows():
        odd[tuple(key)] += Fraction(value) * held_us / HOUR_US
    return sums.select(pl.col(name).cast(dtype) for name, dtype in schema.items()), odd
