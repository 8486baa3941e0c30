"""What a run's documents come to by plan, by tax and by country: for the look at them before anybody approves.

Owns the sums of one chunk and their addition; exact, in the currency of each document. Credit notes count negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import polars as pl

from billing.document_columns import AMOUNT, DocumentColumns
from billing.money import decimal_text

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
    lines = columns.lines.select("document", "plan", "subscription", "amount").join(heads, on="document")
    taxes = columns.taxes.select("document", "category", "percent", "base", "amount").join(heads, on="document")
    subscriptions, documents = pl.col("subscription").n_unique(), pl.col("document").n_unique()
    return {
        "by_plan": _table(lines, "by_plan", net=_signed("amount"), lines=pl.len(), subscriptions=subscriptions),
        "by_tax": _table(taxes, "by_tax", base=_signed("base"), amount=_signed("amount"), documents=documents),
    }


def by_country(documents: pl.DataFrame, countries: Mapping[str, str]) -> Breakdown:
    """The third table of a chunk, from its documents without their rows; `countries` by the customer's code."""
    country = pl.col("customer").replace_strict(dict(countries), default="", return_dtype=pl.String).alias("country")
    heads = documents.select("currency", _SIGN, country, "net", "tax", "gross")
    sums = {name: _signed(name) for name in ("net", "tax", "gross")}
    return {"by_country": _table(heads, "by_country", **sums, documents=pl.len())}


def _signed(column: str) -> pl.Expr:
    return (pl.col(column).str.to_decimal(scale=4).cast(AMOUNT) * pl.col("sign")).sum().cast(pl.String)


def _table(rows: pl.DataFrame, name: str, **sums: pl.Expr) -> Rows:
    return rows.group_by(_KEYS[name], maintain_order=True).agg(**sums).to_dicts()


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
                    sum_[one] += Decimal(row[one]) if isinstance(row[one], str) else row[one]
    return {name: [_shown(row) for row in _largest(name, rows.values())] for name, rows in sums.items()}


def _largest(name: str, rows: Iterable[dict[str, Any]]) -> Rows:
    first = _SUMS[name][0]
    return sorted(rows, key=lambda row: (-abs(row[first]), *(row[one] for one in _KEYS[name])))[:ROWS_MAX]


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {name: decimal_text(value) if isinstance(value, Decimal) else value for name, value in row.items()}
