"""The computed result of a bill run's chunk as one Parquet file: documents with their rows for SQL, who was parked.

Owns the form, and reads the one before it (documents as JSON alone), so that a newer version resumes an older run.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import polars as pl

from billing.document_columns import (
    DOCUMENTS_SCHEMA,
    LINES_SCHEMA,
    MEMBERS_SCHEMA,
    TAXES_SCHEMA,
    DocumentColumns,
    columns_of,
)
from billing.document_json import document_from
from billing.run_breakdown import Breakdown, by_plan_and_tax

FORMAT = "2"
_NESTED = {"lines": LINES_SCHEMA, "taxes": TAXES_SCHEMA, "members": MEMBERS_SCHEMA}


@dataclass(frozen=True)
class Result:
    """Documents in the order of their numbers, the customers left out with the reason, and whose credit is held."""

    columns: DocumentColumns
    parked: Sequence[Mapping[str, str]]
    holders: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    shapes: Mapping[str, int] = field(default_factory=dict[str, int])  # `document_shapes.py`, with a document of each


def pack(result: Result) -> bytes:
    frame = result.columns.documents
    for name, schema in _NESTED.items():
        rows: pl.DataFrame = getattr(result.columns, name)
        own = [column for column in schema if column != "document"]
        lists = rows.group_by("document", maintain_order=True).agg(pl.struct(own).alias(name))
        frame = frame.join(lists, on="document", how="left", maintain_order="left")
    metadata = {
        "parked": msgspec.json.encode(list(result.parked)).decode(),
        "holders": msgspec.json.encode({one: list(keys) for one, keys in result.holders.items()}).decode(),
        "shapes": msgspec.json.encode(dict(result.shapes)).decode(),
        "breakdown": msgspec.json.encode(by_plan_and_tax(result.columns)).decode(),
        "format": FORMAT,
    }
    out = io.BytesIO()
    frame.write_parquet(out, compression="zstd", compression_level=1, statistics=False, metadata=metadata)
    return out.getvalue()


def unpack_heads(data: bytes) -> tuple[pl.DataFrame, Breakdown]:
    """For a look at a result: its documents without bodies and rows (DOCUMENTS_SCHEMA but for `body`), and their sums
    by plan and by tax."""
    metadata = pl.read_parquet_metadata(io.BytesIO(data))
    if metadata["format"] != FORMAT or "breakdown" not in metadata:
        columns = unpack(data).columns
        return columns.documents.drop("body"), by_plan_and_tax(columns)
    heads = pl.read_parquet(io.BytesIO(data), columns=[name for name in DOCUMENTS_SCHEMA if name != "body"])
    return heads, msgspec.json.decode(metadata["breakdown"])


def shapes_in(data: bytes) -> dict[str, int]:
    """The shapes of a result's documents; none of one that an older version computed."""
    metadata = pl.read_parquet_metadata(io.BytesIO(data))
    return msgspec.json.decode(metadata["shapes"]) if "shapes" in metadata else {}


def unpack(data: bytes) -> Result:
    metadata: dict[str, Any] = pl.read_parquet_metadata(io.BytesIO(data))
    frame = pl.read_parquet(io.BytesIO(data))
    parked = msgspec.json.decode(metadata["parked"])
    holders = msgspec.json.decode(metadata["holders"]) if "holders" in metadata else {}
    if metadata["format"] == "1":
        keys = frame["key"].to_list() if "key" in frame.columns else []
        return Result(columns_of([document_from(body) for body in frame["document"]], keys), parked, holders)
    assert metadata["format"] == FORMAT, f"a result of format {metadata['format']} is of a newer version"
    parts = [
        frame.select("document", name).drop_nulls(name).explode(name).unnest(name).match_to_schema(schema)
        for name, schema in _NESTED.items()
    ]
    return Result(DocumentColumns(frame.select(DOCUMENTS_SCHEMA.names()), *parts), parked, holders)
