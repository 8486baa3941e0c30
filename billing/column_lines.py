"""Usage events as NDJSON by one call of Polars for all lines, and the proof that it lost nothing.

The call drops unknown keys, turns numbers into floats of 17 digits and fails as a whole for one broken line. So columns
and bytes are counted against each other; where they do not agree, the body must be read line by line
(`billing/exact_lines.py`).
"""

from __future__ import annotations

import io
import re

import polars as pl

from billing.parsed_usage import CLOUD_KEYS, NDJSON, TEXTS, too_many

_NUMBER = r"[:\[,] -?[0-9]|\[-?[0-9]"  # a JSON number in the form in which Polars writes `data`
_ESCAPED = re.compile(rb'\\(?:[\\"]|u00(?:5[cC]|22))')  # a backslash or a quotation mark inside of a JSON text


def read(body: bytes, schema: pl.Schema, events_max: int, *, cloud: bool) -> pl.DataFrame | None:
    """One call for all lines, or None where its result could differ from an exact reading by as much as a digit."""
    lines = body.count(b"\n") + (not body.endswith(b"\n"))
    if lines > events_max:
        raise too_many(events_max)
    try:
        table = pl.read_ndjson(io.BytesIO(body), schema=schema)
    except pl.exceptions.PolarsError:
        return None  # one broken line fails the whole body here; the exact way names it
    if table.height != lines:
        return None  # blank lines vanish, positions would shift
    if not cloud and _lengths_agree(table, body):
        return table
    if _has_long_numbers(table["data"], body):
        return None
    if b"\\" in body and (_ESCAPED.search(body) or bool(table["data"].str.contains(r"[\x00-\x1f]").any())):
        return None  # Polars writes such characters unescaped into `data`: another text, or no JSON any more
    agrees = _cloud_agrees(table, body) if cloud else _native_agrees(table, body)
    return table if agrees else None


_LENGTHS = (
    *(pl.col(name).count().alias(name) for name in NDJSON),
    pl.sum_horizontal(pl.col(name).str.len_bytes().sum() for name in NDJSON).alias("bytes"),
    pl.col("data").str.starts_with("{").sum().alias("objects"),
    pl.col("data").str.count_matches('": ', literal=True).sum().alias("keys"),
    pl.col("data").str.count_matches(", ", literal=True).sum().alias("commas"),
    pl.col("data").str.contains(_NUMBER).any().alias("numbers"),
)


def _lengths_agree(table: pl.DataFrame, body: bytes) -> bool:
    """Does the body have the very length that these columns take up in JSON, with or without blanks?

    Holds only where `data` comes back from Polars letter by letter: no escapes, no numbers. Then an unknown key, a
    null, a number in place of a text make another length; it is the quickest proof there is.
    """
    if b"\\" in body:
        return False
    counts = table.select(_LENGTHS).row(0, named=True)
    if counts["numbers"]:
        return False
    rows = table.height
    given = {name: int(counts[name]) for name in table.columns}
    if given["data"] != int(counts["objects"]):
        return False
    fields = sum(given.values())
    punctuation = sum(count * (len(name) + 3) for name, count in given.items()) + (fields - rows) + 2 * rows
    quotes = 2 * (fields - given["data"])
    newlines = rows - (not body.endswith(b"\n"))
    spaced = int(counts["bytes"]) + punctuation + quotes + newlines + fields + (fields - rows)
    compact = spaced - fields - (fields - rows) - int(counts["keys"]) - int(counts["commas"])
    return len(body) in (compact, spaced)


def _native_agrees(table: pl.DataFrame, body: bytes) -> bool:
    """Every key of the body is in the table, and everything but `data` was a JSON string.

    Polars writes `data` as `{"a": "b"}`: keys end with `":`, string values start behind `": `. A difference also comes
    from harmless things (blanks before a colon); then the exact reading decides.
    """
    counts = table.select(
        *(pl.col(name).is_not_null().sum().alias(name) for name in table.columns),
        keys=pl.col("data").str.count_matches('":', literal=True).sum(),
        texts=pl.col("data").str.count_matches('": "', literal=True).sum(),
        objects=pl.col("data").str.starts_with("{").sum(),
    ).row(0, named=True)
    given = sum(int(counts[name]) for name in TEXTS)
    if counts["objects"] != counts["data"]:
        return False
    if body.count(b'":"') + body.count(b'": "') != given + int(counts["texts"]):
        return False
    missing = body.count(b'":') - (given + int(counts["data"]) + int(counts["keys"]))
    if missing == 0:
        return True
    nulls = sum(body.count(f'"{name}":null'.encode()) + body.count(f'"{name}": null'.encode()) for name in NDJSON)
    inside = table.select(pl.sum_horizontal(pl.col("data").str.count_matches(f'"{name}": null', literal=True).sum()
                                            for name in NDJSON)).item()  # fmt: skip
    return missing == nulls - int(inside)  # keys that we know, and nothing in them


def _cloud_agrees(table: pl.DataFrame, body: bytes) -> bool:
    """The attributes that we read were JSON strings; others are extensions, which CloudEvents allows."""
    if table["data_base64"].null_count() != table.height:
        return False
    counts = table.select(
        *(pl.col(name).is_not_null().sum().alias(name) for name in CLOUD_KEYS),
        *(pl.col("data").str.count_matches(f'"{key}": "', literal=True).sum().alias(f"in {key}") for key in CLOUD_KEYS),
        objects=(pl.col("data").str.starts_with("{") | pl.col("data").is_null()).sum(),
    ).row(0, named=True)
    if counts["objects"] != table.height or b'"data":"' in body or b'"data": "' in body:
        return False
    for key in CLOUD_KEYS:
        seen = body.count(f'"{key}":"'.encode()) + body.count(f'"{key}": "'.encode())
        if seen != int(counts[key]) + int(counts[f"in {key}"]):
            return False
    return True


def _has_long_numbers(data: pl.Series, body: bytes) -> bool:
    """Is there a JSON number that a float may not hold exactly: above 15 digits, or a three-digit exponent?"""
    if not bool(data.str.contains(_NUMBER).any()):
        return False  # decimals came as strings, as clients are told to send them
    text = pl.Series([body.decode("utf-8", "replace")])  # Rust's regex: five times as fast as `re` over bytes
    return bool(text.str.contains(r"[:\[,]\s*-?[0-9][0-9.]{15}|[0-9][eE][+-]?[0-9]{3}").item())
