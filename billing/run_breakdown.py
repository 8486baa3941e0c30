"""What a run's documents come to by plan, by tax and by country: for the look at them before anybody approves.

Owns the sums of one chunk and their addition; exact, in the currency of each document. Credit notes count negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import polars as pl

from billing.document_columns import AMOUNT, DocumentColumns, has_large
from billing.money import decimal_text, exact_sum

ROWS_MAX = 100  # of each table, those with most money
Rows = list[dict[str, Any]]
Breakdown = Mapping[str, Rows]
_KEYS: Mapping[str, tuple[str, ...]] = {
    "by_plan": ("plan", "currency"),
    "by_tax": ("category", "percent", "currency"),
    "by_country": ("country", "currency"),
}
_SUMS: Mapping[str, tuple[str, ...]] = {
    "by_plan": ("net", "lines", "subscriptions"),
    "by_tax": ("base", "amount", "documents"),
    "by_country": ("net", "tax", "gross", "documents"),
}
_SIGN = pl.when(pl.col("type") == "credit_note").then(-1).otherwise(1).alias("sign")


def by_plan_and_tax(columns: DocumentColumns) -> Breakdown:
    """Two tables of a chunk. Amounts are text."""
    heads = columns.documents.select("document", "currency", _SIGN)
    lines = columns.lines.select("document", "plan", "subscription", net="amount").join(heads, on="document")
    taxes = columns.taxes.select("document", "category", "percent", "base", "amount").join(heads, on="document")
    subscriptions, documents = pl.col("subscription").n_unique(), pl.col("document").n_unique()
    return {
        "by_plan": _table(lines, "by_plan", ("net",), lines=pl.len(), subscriptions=subscriptions),
        "by_tax": _table(taxes, "by_tax", ("base", "amount"), documents=documents),
    }


def by_country(documents: pl.DataFrame, countries: Mapping[str, str]) -> Breakdown:
    """The third table of a chunk, from its documents without their rows; `countries` by the customer's code."""
    country = pl.col("customer").replace_strict(dict(countries), default="", return_dtype=pl.String).alias("country")
    heads = documents.select("currency", _SIGN, country, "net", "tax", "gross")
    return {"by_country": _table(heads, "by_country", ("net", "tax", "gross"), documents=pl.len())}


def _table(rows: pl.DataFrame, name: str, amounts: tuple[str, ...], **counts: pl.Expr) -> Rows:
    grouped = rows.group_by(_KEYS[name], maintain_order=True)
    if not any(has_large(rows[amount]) for amount in amounts):
        sums = [(pl.col(one).str.to_decimal(scale=4).cast(AMOUNT) * pl.col("sign")).sum() for one in amounts]
        return grouped.agg(*(one.cast(pl.String) for one in sums), **counts).to_dicts()
    found = grouped.agg(*amounts, "sign", **counts).to_dicts()
    for row in found:
        signs: list[int] = row.pop("sign")
        for one in amounts:
            signed = (Decimal(text) if sign > 0 else Decimal(text).copy_negate()
                      for text, sign in zip(row[one], signs, strict=True))  # fmt: skip
            row[one] = format(exact_sum(signed), "f")
    return found


def added(parts: Iterable[Breakdown]) -> dict[str, Rows]:
    """The tables of all chunks, the rows with most money first. Each customer is in one chunk, so counts add up."""
    sums: dict[str, dict[tuple[str, ...], dict[str, Any]]] = {name: {} for name in _KEYS}
    for part in parts:
        for name, keys in _KEYS.items():
            for row in part.get(name, ()):
                key = tuple(str(row[one]) for one in keys)
                sum_ = sums[name].setdefault(
                    key, {**dict(zip(keys, key, strict=True)), **dict.fromkeys(_SUMS[name], 0)}
                )
                for one in _SUMS[name]:
                    more = Decimal(row[one]) if isinstance(row[one], str) else row[one]
                    sum_[one] = exact_sum([sum_[one], more]) if isinstance(more, Decimal) else sum_[one] + more
    return {name: [_shown(row) for row in _largest(name, rows.values())] for name, rows in sums.items()}


def _largest(name: str, rows: Iterable[dict[str, Any]]) -> Rows:
    first = _SUMS[name][0]
    return sorted(rows, key=lambda row: (-abs(row[first]), *(row[one] for one in _KEYS[name])))[:ROWS_MAX]


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {name: decimal_text(value) if isinstance(value, Decimal) else value for name, value in row.items()}
