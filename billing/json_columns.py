"""Columns of texts as JSON: what an encoder writes for each text, without a Python object for it."""

from __future__ import annotations

import msgspec
import polars as pl


def in_quotes(name: str) -> pl.Expr:
    """A column of texts in which nothing needs an escape."""
    return pl.concat_str(pl.lit('"'), name, pl.lit('"'))


def quoted(frame: pl.DataFrame, name: str) -> pl.Expr:
    """A column of texts as JSON strings; only what needs it is escaped one by one."""
    odd = frame.filter(pl.col(name).str.contains(r'["\\\x00-\x1f\x7f]'))[name].unique().to_list()
    if not odd:
        return in_quotes(name)
    escaped = {text: msgspec.json.encode(text).decode() for text in odd}
    return (
        pl.when(pl.col(name).is_in(odd))
        .then(pl.col(name).replace_strict(escaped, default=None))
        .otherwise(in_quotes(name))
    )
