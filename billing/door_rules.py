"""The rules of the door: which rows of texts are usage events, and why another one is refused.

An event that is refused here is not stored and its id stays free; everything else is stored, and typed by a meter only
when rating (docs/usage-log.md). The same rules twice: in columns, and in plain Python for a handful of rows, where
starting columns up would cost a hundred times as much; a property test holds both against each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import polars as pl

from billing.parsed_usage import CLOUD, NDJSON, NO_REJECTS, REJECT_SCHEMA, Few, ParsedUsage, Raw
from billing.usage import DATA_BYTES_MAX, EVENT_SCHEMA, INSTANT, RESERVED_SOURCE, TEXT_LENGTH_MAX

DEPTH_MAX = 32  # of `data`
_FIELD_RULES = ("source", "id", "type", "customer", "time")
_TIME = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
_TIME_PATTERN = re.compile(_TIME[:-1] + r"\Z")  # `$` alone would let a line end pass here, unlike in Polars
_TIME_DETAIL = "time must be like 2026-01-31T12:00:00+01:00, with an offset, from 1900 to 9999"
_BOUNDED = ("source", "id", "type", "customer", "subscription")
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_FIRST, _LAST = datetime(1900, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
_FIRST_US, _LAST_US = (_FIRST - _EPOCH) // _MICROSECOND, (_LAST - _EPOCH) // _MICROSECOND


def finish(raw: Raw | Few, *, cloud: bool = False) -> ParsedUsage:
    """Apply the rules to all rows at once; the first rule that a row breaks is its reason."""
    if isinstance(raw, Few):
        return _finish_few(raw, cloud)
    if raw.is_plain:
        return ParsedUsage(raw.table, raw.positions, NO_REJECTS, raw.total)
    if not cloud and (quick := _finish_flawless(raw)) is not None:
        return quick
    table = raw.table
    rules: list[tuple[pl.Expr, str, str, str]] = []
    if cloud:
        rules += [
            (pl.col("specversion").fill_null("") != "1.0", "specversion", "specversion must be 1.0", "/specversion"),
            (pl.col("data_base64").is_not_null(), "data_base64", "data must be JSON, not base64", "/data_base64"),
            (
                pl.col("subject").is_not_null()
                & pl.col("customer").is_not_null()
                & (pl.col("subject") != pl.col("customer")),
                "two_customers",
                "subject and customer name two customers",
                "/customer",
            ),
        ]
        named = pl.coalesce("customer", "subject")
    else:
        named = pl.col("customer")
    table = table.with_columns(customer=named, place=raw.positions)
    if table.schema["time"] == pl.String:
        table = table.with_columns(_instants(table["time"]).alias("at"))
    else:
        table = table.with_columns(at=pl.col("time"))
    for name in _FIELD_RULES[:4]:
        text = pl.col(name)
        rules.append((text.is_null() | (text == ""), "missing", f"{name} is missing", f"/{name}"))
    rules.append((pl.col("time").is_null(), "missing", "time is missing", "/time"))
    for name in _BOUNDED:
        rules.append(
            (
                pl.col(name).str.len_chars() > TEXT_LENGTH_MAX,
                "too_long",
                f"{name} is longer than {TEXT_LENGTH_MAX} characters",
                f"/{name}",
            )
        )
    reserved = pl.col("source").str.starts_with(RESERVED_SOURCE)
    rules.append((reserved, "reserved_source", f"sources that begin with {RESERVED_SOURCE} are ours", "/source"))
    bad_time = pl.col("at").is_null() | ~pl.col("at").is_between(_FIRST, _LAST, closed="left")
    rules.append((bad_time, "invalid_time", _TIME_DETAIL, "/time"))
    data = pl.col("data")
    rules.append((data.str.len_bytes() > DATA_BYTES_MAX, "too_long", f"data is over {DATA_BYTES_MAX} bytes", "/data"))
    rules.append((~data.str.starts_with("{"), "not_an_object", "data must be a JSON object", "/data"))
    rules.append((data.is_in(_too_deep(table["data"])), "too_deep", f"data is nested over {DEPTH_MAX} deep", "/data"))

    rule = pl.lit(None, dtype=pl.Int32)
    for number in range(len(rules) - 1, -1, -1):
        rule = pl.when(rules[number][0].fill_null(False)).then(pl.lit(number, dtype=pl.Int32)).otherwise(rule)
    table = table.with_columns(rule=rule)
    if table["rule"].null_count() == table.height:
        good, bad = table, table.clear()
    else:
        good, bad = table.filter(pl.col("rule").is_null()), table.filter(pl.col("rule").is_not_null())
    events = good.select(
        "source", "id", "type", "customer",
        pl.when(pl.col("subscription") == "").then(None).otherwise(pl.col("subscription")).alias("subscription"),
        pl.col("at").alias("time"),
        pl.col("data").fill_null("{}"),
    ).cast(EVENT_SCHEMA)  # fmt: skip
    rejects = bad.select(
        pl.col("place").alias("position"),
        *(
            pl.col("rule").replace_strict(
                {number: one[part] for number, one in enumerate(rules)}, return_dtype=pl.String
            ).alias(column)
            for part, column in ((1, "reason"), (2, "detail"), (3, "pointer"))
        ),
        pl.col("id").str.slice(0, TEXT_LENGTH_MAX),
    ).cast(REJECT_SCHEMA)  # fmt: skip
    if raw.rejects:
        unread = pl.DataFrame(raw.rejects, schema=REJECT_SCHEMA, orient="row")
        rejects = pl.concat([rejects, unread]).sort("position")
    return ParsedUsage(events, good["place"], rejects, raw.total)


# What might be wrong with any row, as one truth each: the usual request, in which nothing is, is done with by these.
# The expressions are made once: making them costs more than running them over a thousand rows.
_SUSPICIONS: tuple[pl.Expr, ...] = (
    *((pl.col(name).is_null() | (pl.col(name) == "")).any().alias(f"no {name}") for name in _FIELD_RULES[:4]),
    pl.col("time").is_null().any().alias("no time"),
    *((pl.col(name).str.len_bytes() > TEXT_LENGTH_MAX).any().alias(f"long {name}") for name in _BOUNDED),
    (pl.col("subscription") == "").any().alias("empty subscription"),
    pl.col("source").str.starts_with(RESERVED_SOURCE).any().alias("reserved"),
    (pl.col("data").str.len_bytes() > DATA_BYTES_MAX).any().alias("long data"),
    (~pl.col("data").str.starts_with("{")).any().alias("no object"),
    (
        pl.col("data").str.count_matches("{", literal=True) + pl.col("data").str.count_matches("[", literal=True)
        > DEPTH_MAX
    )
    .any()
    .alias("deep"),
)
_EVENTS = (
    *(pl.col(name) for name in ("source", "id", "type", "customer", "subscription")),
    pl.col("at").alias("time"),
    pl.col("data").fill_null("{}"),
)
_BAD_INSTANTS = (pl.col("at").is_null() | ~pl.col("at").is_between(_FIRST, _LAST, closed="left")).any()


def _finish_flawless(raw: Raw) -> ParsedUsage | None:
    """The events of a request in which no row breaks a rule; None where the rules must be asked row by row."""
    table = raw.table
    if raw.rejects or not table.height or True in table.select(_SUSPICIONS).row(0):
        return None
    at = _instants(table["time"]) if table.schema["time"] == pl.String else table["time"]
    table = table.with_columns(at.alias("at"))
    if table.select(_BAD_INSTANTS).item():
        return None
    events = table.select(_EVENTS)
    if events.schema != EVENT_SCHEMA:
        events = events.cast(EVENT_SCHEMA)
    return ParsedUsage(events, raw.positions, NO_REJECTS, raw.total)


def _finish_few(few: Few, cloud: bool) -> ParsedUsage:
    """The same rules in plain Python: for a handful of events a hundred times as fast as starting up columns.

    A property test holds both against each other.
    """
    columns: tuple[list[str | None], ...] = ([], [], [], [], [], [])
    moments: list[int] = []
    positions: list[int] = []
    rejects = list(few.rejects)
    names = CLOUD.names() if cloud else NDJSON.names()
    for position, row in zip(few.positions, few.rows, strict=True):
        event = dict(zip(names, row, strict=True))
        wrong = _cloud_mistake(event) if cloud else None
        if cloud and event["customer"] is None:
            event["customer"] = event["subject"]
        moment = _moment(event["time"]) if event["time"] else None
        wrong = wrong or _mistake(event, moment)
        if wrong is not None or moment is None:
            assert wrong is not None, "an event without a time has a mistake"
            identity = event["id"]
            rejects.append((position, *wrong, identity[:TEXT_LENGTH_MAX] if identity is not None else None))
            continue
        for column, name in zip(columns, ("source", "id", "type", "customer"), strict=False):
            column.append(event[name])
        columns[4].append(event["subscription"] or None)
        columns[5].append("{}" if event["data"] is None else event["data"])
        moments.append(moment)
        positions.append(position)
    times = pl.Series("time", moments, dtype=pl.Int64).cast(INSTANT)
    texts = [
        pl.Series(name, column, dtype=pl.String)
        for name, column in zip(("source", "id", "type", "customer", "subscription", "data"), columns, strict=True)
    ]
    rejects.sort(key=lambda reject: reject[0])
    return ParsedUsage(
        pl.DataFrame([*texts[:5], times, texts[5]]),
        pl.Series("place", positions, dtype=pl.UInt32),
        pl.DataFrame(rejects, schema=REJECT_SCHEMA, orient="row") if rejects else NO_REJECTS,
        few.total,
    )


def _cloud_mistake(event: Mapping[str, str | None]) -> tuple[str, str, str] | None:
    if event["specversion"] != "1.0":
        return "specversion", "specversion must be 1.0", "/specversion"
    if event["data_base64"] is not None:
        return "data_base64", "data must be JSON, not base64", "/data_base64"
    subject, customer = event["subject"], event["customer"]
    if subject is not None and customer is not None and subject != customer:
        return "two_customers", "subject and customer name two customers", "/customer"
    return None


def _mistake(event: Mapping[str, str | None], moment: int | None) -> tuple[str, str, str] | None:
    """The first rule that an event breaks; in the order of the columnar rules."""
    for name in _FIELD_RULES[:4]:
        if not event[name]:
            return "missing", f"{name} is missing", f"/{name}"
    if event["time"] is None:
        return "missing", "time is missing", "/time"
    for name in _BOUNDED:
        if len(event[name] or "") > TEXT_LENGTH_MAX:
            return "too_long", f"{name} is longer than {TEXT_LENGTH_MAX} characters", f"/{name}"
    if (event["source"] or "").startswith(RESERVED_SOURCE):
        return "reserved_source", f"sources that begin with {RESERVED_SOURCE} are ours", "/source"
    if moment is None or not _FIRST_US <= moment < _LAST_US:
        return "invalid_time", _TIME_DETAIL, "/time"
    data = event["data"]
    if data is None:
        return None
    if len(data.encode()) > DATA_BYTES_MAX:
        return "too_long", f"data is over {DATA_BYTES_MAX} bytes", "/data"
    if not data.startswith("{"):
        return "not_an_object", "data must be a JSON object", "/data"
    if data.count("{") + data.count("[") > DEPTH_MAX and _depth(data.encode()) > DEPTH_MAX:
        return "too_deep", f"data is nested over {DEPTH_MAX} deep", "/data"
    return None


def _moment(text: str) -> int | None:
    """An RFC 3339 text in microseconds since 1970, None where it is none."""
    if _TIME_PATTERN.search(text) is None:
        return None
    try:
        return (datetime.fromisoformat(text.upper()) - _EPOCH) // _MICROSECOND
    except ValueError:  # a leap second, 30 February, the year 0: as the columns judge it
        moment = _instants(pl.Series("time", [text])).dt.epoch("us").item()
        return int(moment) if moment is not None else None


_TEXT = pl.col("time")
_TAIL = _TEXT.str.slice(19)
_GOOD = _TEXT.str.contains(_TIME).alias("good")
_LOCAL = _TEXT.str.slice(0, 19).str.to_datetime("%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False, cache=False)
_SPELLED = (
    pl.concat_str(_TEXT.str.slice(0, 10), pl.lit("T"), _TEXT.str.slice(11, 8))
    .str.to_datetime("%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False, cache=False)
    .alias("local")
)
_HOURS, _MINUTES = (_TAIL.str.slice(place, 2).cast(pl.Int64, strict=False) for place in (-5, -2))
_SECONDS = _HOURS * 3600 + _MINUTES * 60
_OFFSET = (
    pl.when(_TAIL.str.ends_with("Z") | _TAIL.str.ends_with("z"))
    .then(0)
    .when(_TAIL.str.slice(-6, 1) == "-")
    .then(-_SECONDS)
    .otherwise(_SECONDS)
)
_FRACTION = _TAIL.str.extract(r"^\.([0-9]{1,6})").str.pad_end(6, "0").cast(pl.Int64, strict=False)


def _made(offset: bool, fraction: bool) -> pl.Expr:
    instant = pl.col("local").cast(pl.Int64)
    if offset:
        instant = instant - _OFFSET * 1_000_000
    if fraction:
        instant = instant + _FRACTION.fill_null(0)
    return pl.when(pl.col("good")).then(instant.cast(pl.Datetime("us", "UTC"))).alias("time")


_MADE = {(offset, fraction): _made(offset, fraction) for offset in (False, True) for fraction in (False, True)}
_FORMS = (
    (pl.col("local").is_null() & pl.col("good")).any().alias("spelled"),
    (~(_TEXT.str.ends_with("Z") | _TEXT.str.ends_with("+00:00"))).any().alias("offset"),
    _TAIL.str.starts_with(".").any().alias("fraction"),
)


def _instants(times: pl.Series) -> pl.Series:
    """RFC 3339 texts as instants, null where one is none; digits beyond the microsecond are cut off.

    Polars has a quick way for `%Y-%m-%dT%H:%M:%S` alone (six times as fast as the same with fraction and offset), so
    these two are taken by their places at the end of the text.
    """
    table = pl.DataFrame({"time": times}).with_columns(_GOOD, _LOCAL.alias("local"))
    spelled, offset, fraction = table.select(_FORMS).row(0)
    if spelled:  # `t` or a blank, or 30 February
        table = table.with_columns(_SPELLED)
    return table.select(_MADE[bool(offset), bool(fraction)]).to_series()


def _too_deep(data: pl.Series) -> list[str]:
    """The texts nested deeper than allowed. Only what has that many brackets is looked at one by one."""
    many = data.filter((data.str.count_matches(r"[\[{]") > DEPTH_MAX).fill_null(False))
    return [text for text in many.to_list() if len(text) <= DATA_BYTES_MAX and _depth(text.encode()) > DEPTH_MAX]


_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        sign = match[0]
        if sign in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif sign in (b"]", b"}"):
            depth -= 1
    return deepest
