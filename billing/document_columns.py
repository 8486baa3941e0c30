"""Documents in columns: what a bill run stores of each and writes to SQL, made of document values or without them.

Owns the frames and their agreement with `billing/documents.py`: of the same documents `columns_of` gives the very rows
that `billing/bill_columns.py` computes. `body` is the whole document, packed. Amounts are texts, digit for digit as in
the document: a column of decimals has one scale, and currencies differ.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import polars as pl

from billing.document_json import document_json, packed
from billing.documents import Document
from billing.money import exact_sum
from billing.usage import INSTANT

AMOUNT = pl.Decimal(38, 4)  # of any currency: none has more places
AMOUNT_TEXT_MAX = 28  # signs of an amount that sums in columns hold, a billion of them; above Python adds

LINES_SCHEMA = pl.Schema({
    "document": pl.UInt32, "line": pl.UInt32, "subscription": pl.String, "charge": pl.String, "kind": pl.String,
    "name": pl.String, "period_start": INSTANT, "period_end": INSTANT, "quantity": pl.String, "unit": pl.String,
    "allowance": pl.String, "amount": pl.String, "tax_category": pl.String, "tax_percent": pl.String,
    "plan": pl.String, "plan_version": pl.Int32, "correction": pl.Boolean,
})  # fmt: skip
TAXES_SCHEMA = pl.Schema({
    "document": pl.UInt32, "category": pl.String, "percent": pl.String, "base": pl.String, "amount": pl.String,
})  # fmt: skip
MEMBERS_SCHEMA = pl.Schema({"document": pl.UInt32, "customer": pl.String, "prepaid": pl.String})
DOCUMENTS_SCHEMA = pl.Schema({
    "document": pl.UInt32, "key": pl.String, "customer": pl.String, "type": pl.String, "currency": pl.String,
    "issued_on": pl.Date, "period_start": INSTANT, "period_end": INSTANT, "net": pl.String, "tax": pl.String,
    "gross": pl.String, "prepaid": pl.String, "due": pl.String, "refers_to": pl.String, "line_count": pl.UInt32,
    "body": pl.Binary,
})  # fmt: skip


@dataclass(frozen=True)
class DocumentColumns:
    """Documents in their order, with their lines, tax table and members; `document` is the place of a document."""

    documents: pl.DataFrame
    lines: pl.DataFrame
    taxes: pl.DataFrame
    members: pl.DataFrame

    @property
    def count(self) -> int:
        return self.documents.height

    def without(self, customers: Collection[str]) -> DocumentColumns:
        """The documents of all other customers."""
        kept = self.documents.filter(~pl.col("customer").is_in(list(customers)))
        if kept.height == self.count:
            return self
        places = kept.select("document").with_row_index("place")
        frames = (kept, *(frame.join(places, on="document", how="semi") for frame in (self.lines, self.taxes)))
        members = self.members.join(places, on="document", how="semi")
        return DocumentColumns(*(_placed(frame, places) for frame in (*frames, members)))


def no_documents() -> DocumentColumns:
    return DocumentColumns(*(pl.DataFrame(schema=schema) for schema in _SCHEMAS))


_SCHEMAS = (DOCUMENTS_SCHEMA, LINES_SCHEMA, TAXES_SCHEMA, MEMBERS_SCHEMA)


def columns_of(documents: Sequence[Document], keys: Sequence[str] = ()) -> DocumentColumns:
    """Documents as values in columns; `keys` name them to the credit used (none where no run made them)."""
    if not documents:
        return no_documents()
    rows = (
        [_row(place, one, keys[place] if keys else "") for place, one in enumerate(documents)],
        [row for place, one in enumerate(documents) for row in _line_rows(place, one)],
        [
            (place, tax.category, _text(tax.percent), _text(tax.base), _text(tax.amount))
            for place, one in enumerate(documents)
            for tax in one.taxes
        ],
        [(place, member.code, _text(member.prepaid)) for place, one in enumerate(documents) for member in one.members],
    )
    return DocumentColumns(
        *(pl.DataFrame(part, schema=schema, orient="row") for part, schema in zip(rows, _SCHEMAS, strict=True))
    )


def _row(place: int, one: Document, key: str) -> tuple[object, ...]:
    return (
        place, key, one.customer, one.type, one.currency, one.date,
        min((line.start for line in one.lines), default=None), max((line.end for line in one.lines), default=None),
        _text(one.net), _text(one.tax), _text(one.gross), _text(one.prepaid), _text(one.due), one.refers_to,
        len(one.lines), packed([document_json(one)])[0],
    )  # fmt: skip


def _line_rows(place: int, one: Document) -> Iterable[tuple[object, ...]]:
    for number, line in enumerate(one.lines, start=1):
        yield (
            place, number, line.subscription, line.charge, line.kind, line.name or line.charge, line.start, line.end,
            _text(line.quantity), line.unit, _text(line.allowance), _text(line.amount), line.tax_category,
            _text(line.tax_percent), line.plan, line.plan_version, line.correction,
        )  # fmt: skip


def _text(number: Decimal) -> str:
    return format(number, "f")


def together(parts: Sequence[DocumentColumns]) -> DocumentColumns:
    """Documents of several parts, by customer; those of one customer are all in one part and stay in its order."""
    parts = [part for part in parts if part.count]
    if not parts:
        return no_documents()
    if len(parts) == 1:
        return parts[0]
    first = 0
    shifted: list[list[pl.DataFrame]] = []
    for part in parts:
        frames = (part.documents, part.lines, part.taxes, part.members)
        shifted.append([frame.with_columns(pl.col("document") + pl.lit(first, pl.UInt32)) for frame in frames])
        first += part.count
    documents, *others = (pl.concat(frames) for frames in zip(*shifted, strict=True))
    documents = documents.sort("customer", maintain_order=True)
    places = documents.select("document").with_row_index("place")
    placed = [_placed(frame, places) for frame in (documents, *others)]
    return DocumentColumns(*placed)


def _placed(frame: pl.DataFrame, places: pl.DataFrame) -> pl.DataFrame:
    """The frame with the new places of its documents, in their order."""
    found = frame.join(places, on="document", how="left", maintain_order="left")
    return found.with_columns(document="place").drop("place").sort("document", maintain_order=True)


def totals_of(columns: DocumentColumns) -> dict[str, dict[str, str]]:
    """Per currency: documents, credit notes, and signed sums (a credit note counts negative)."""
    names = ("net", "tax", "gross")
    if any(has_large(columns.documents[name]) for name in names):
        return _large_totals(columns.documents.select("currency", "type", *names))
    is_note = pl.col("type") == "credit_note"
    amounts = [pl.col(name).str.to_decimal(scale=4).cast(AMOUNT) for name in names]
    signed = [
        pl.when(is_note).then(-amount).otherwise(amount).sum().alias(amount.meta.output_name()) for amount in amounts
    ]
    sums = columns.documents.group_by("currency").agg(
        pl.len().alias("documents"),
        is_note.sum().alias("credit_notes"),
        *signed,
        places=_places(pl.col("gross")).max(),
    )
    return {
        str(row["currency"]): {
            "documents": str(row["documents"]),
            "credit_notes": str(row["credit_notes"]),
            **{name: _with_places(row[name], int(row["places"])) for name in names},
        }
        for row in sums.sort("currency").iter_rows(named=True)
    }


def has_large(amounts: pl.Series) -> bool:
    """Whether columns may not hold the sum of these texts; a column of numbers would say null of such a one."""
    longest: Any = amounts.str.len_chars().max()
    return longest is not None and int(longest) > AMOUNT_TEXT_MAX


def _large_totals(documents: pl.DataFrame) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for currency in documents["currency"].unique().sort():
        own = documents.filter(pl.col("currency") == currency)
        is_note = (own["type"] == "credit_note").to_list()
        found[currency] = {"documents": str(own.height), "credit_notes": str(sum(is_note))}
        for name in ("net", "tax", "gross"):
            signed = (
                Decimal(text).copy_negate() if note else Decimal(text)
                for text, note in zip(own[name], is_note, strict=True)
            )
            found[currency][name] = format(exact_sum(signed), "f")
    return found


def sums_of_lines(lines: pl.DataFrame) -> dict[int, Decimal]:
    """The sum of each document's lines (LINES_SCHEMA), by the document's place."""
    if not has_large(lines["amount"]):
        sums = lines.group_by("document").agg(pl.col("amount").str.to_decimal(scale=4).cast(AMOUNT).sum())
        return dict(sums.iter_rows())
    texts = lines.group_by("document").agg("amount")
    return {document: exact_sum(map(Decimal, amounts)) for document, amounts in texts.iter_rows()}


def _places(text: pl.Expr) -> pl.Expr:
    """How many digits follow the point of an amount."""
    after = text.str.split_exact(".", 1).struct.field("field_1")
    return after.str.len_chars().fill_null(0)


def _with_places(amount: Decimal, places: int) -> str:
    return format(amount.quantize(Decimal(1).scaleb(-places)), "f")
