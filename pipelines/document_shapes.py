"""What documents share that the rules of e-invoices look at: of each shape one document is checked for all of a run.

Owns the shapes only; the check is `run_issuable.py`. Sums, lines and references have no part in it: the engine makes
them right, and each document is checked in full again when its files are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

import polars as pl

from billing.document_columns import DocumentColumns
from billing.master import Customer, MasterData
from pipelines.printable import unprintable

# Of a customer's form: what his documents say of him.
_PRINTED = frozenset(
    {
        *("vat_id", "legal_id", "tax_number", "address", "contact", "endpoint", "ids", "mandate"),
        *("language", "einvoice", "legal_entity", "buyer_reference", "leitweg_id", "order_reference", "cost_centre"),
    }
)
_TOLD = frozenset({"country", "scheme", "language", "einvoice", "legal_entity"})  # rules ask for what they say
_LISTED_MAX = 3


def shapes_of(columns: DocumentColumns, master: MasterData) -> dict[str, int]:
    """Each shape among the documents, with the place of the first one that has it."""
    if columns.count == 0:
        return {}
    keys = pl.DataFrame({"key": keys_of(columns, master)}).with_row_index("place")
    first = keys.group_by("key", maintain_order=True).agg(pl.col("place").first())
    return dict(first.iter_rows())


def keys_of(columns: DocumentColumns, master: MasterData) -> pl.Series:
    """The shape of each document, in their order: texts that are equal where the shapes are."""
    documents = columns.documents
    customers = documents["customer"].unique(maintain_order=True)
    shapes = pl.DataFrame(
        {"customer": customers, "buyer": [_of_customer(master.customers[code]) for code in customers]},
        schema={"customer": pl.String, "buyer": pl.String},
    )
    taxed = columns.taxes.select("document", pl.concat_str("category", "percent", separator=" ").alias("taxes"))
    taxed = taxed.group_by("document").agg(pl.col("taxes").sort().str.join(","))
    shared = pl.col("document").is_in(columns.members["document"].unique().to_list())
    unseen = pl.concat(_unseen(columns, master)).group_by("document").agg(pl.col("unseen").unique().sort().str.join(""))
    blank = columns.lines.filter(pl.col("name").str.strip_chars() == "")  # BR-25
    unnamed = pl.col("document").is_in(blank["document"].unique().to_list())
    return (
        documents.select("document", "customer", "type", "currency", "prepaid", "due", "refers_to")
        .join(shapes, on="customer", how="left", maintain_order="left")
        .join(taxed, on="document", how="left", maintain_order="left")
        .join(unseen, on="document", how="left", maintain_order="left")
        .select(
            pl.concat_str(
                "type", "currency", _sign("prepaid"), _sign("due"),
                pl.col("refers_to").is_null().cast(pl.String), shared.cast(pl.String), unnamed.cast(pl.String),
                pl.col("taxes").fill_null(""), pl.col("unseen").fill_null(""), "buyer",
                separator="|",
            )
        )
        .to_series()
    )  # fmt: skip


def _unseen(columns: DocumentColumns, master: MasterData) -> Iterator[pl.DataFrame]:
    """Documents with what no font has in the names of their lines, contracts and members."""
    texts = [(columns.lines, name, None) for name in ("name", "subscription")]
    for rows, column, named in (*texts, (columns.members, "customer", master.customers)):
        said = [one for one in rows[column].unique() if one is not None]
        shown = {one: f"{one} {named[one].name}" if named is not None else one for one in said}
        odd = {one: letters for one, text in shown.items() if (letters := unprintable(text))}
        yield rows.filter(pl.col(column).is_in(list(odd))).select(
            "document", pl.col(column).replace_strict(odd, default=None, return_dtype=pl.String).alias("unseen")
        )


def _sign(column: str) -> pl.Expr:
    amount = pl.col(column)
    return pl.when(~amount.str.contains("[1-9]")).then(pl.lit("0")).when(amount.str.starts_with("-")).then(
        pl.lit("-")
    ).otherwise(pl.lit("+"))  # fmt: skip


def _of_customer(customer: Customer) -> str:
    said = _shape({key: value for key, value in customer.form.items() if key in _PRINTED})
    return _named(customer.country, not customer.name.strip(), said, unprintable("".join(_texts(customer))))


def _texts(customer: Customer) -> Iterator[str]:
    yield customer.name
    waiting: list[object] = [value for key, value in customer.form.items() if key in _PRINTED]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            waiting += cast("Mapping[str, object]", one).values()
        elif isinstance(one, list):
            waiting += cast("list[object]", one)


@lru_cache(maxsize=10_000)
def _named(*parts: object) -> str:
    """A name for a shape, the same in every process and short: a run has few, and each customer has one."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()


def _shape(form: Mapping[str, Any]) -> object:
    """What stands in a form, in its order: of a text only that it is there, but for those that rules read."""
    found: list[object] = []
    for key, value in form.items():
        if isinstance(value, str):
            if key in _TOLD:
                found.append((key, value))
            elif key == "vat_id":  # the country that it begins with is one of a list
                found.append((key, value[:2]))
            elif value and not value.isspace():
                found.append(key)
        elif isinstance(value, Mapping):
            found.append((key, _shape(cast("Mapping[str, Any]", value))))
        elif isinstance(value, list):
            some = cast("list[object]", value)[:_LISTED_MAX]
            found.append((key, *[_shape({key: one}) for one in some]))
        else:
            found.append((key, str(value)))
    return tuple(found)
