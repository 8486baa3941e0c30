"""Events and sums per customer key and event type, straight out of sealed files: no text is read where a number stands.

Owns the quick way only. A sealed file lies in the order of (tenant, partition, customer key, type), so the rows of one
customer and type are a run: its ends come out of the dictionaries' whole numbers, its sum out of one addition along a
column. What a typed column does not hold is read from the text of its row group, by the readers that bill; what does
not fit 64 bits is added up as a decimal. So every sum is exact.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from billing.money import NUMBER
from billing.typed_columns import NUMBER_PREFIX, Texts
from storage.object_store import ObjectStore, StoreUnavailable
from storage.usage_log.formats import check_readable
from storage.usage_log.manifest import SealedFile
from storage.usage_log.segment import RowKind

TOTALS_SCHEMA = pl.Schema({"customer": pl.String, "type": pl.String, "events": pl.Int64, "sum": NUMBER})
_SAFE = 1 << 62


@dataclass(frozen=True)
class Wanted:
    """Whose events, which property of each type is added up (None: they are counted), and of which half-open time."""

    tenant_id: str
    properties: Mapping[str, str | None]
    start: datetime | None = None
    end: datetime | None = None
    customers: Sequence[str] | None = None


def sealed_totals(
    store: ObjectStore, files: Sequence[SealedFile], wanted: Wanted, *, threads: int = 1
) -> Iterator[pl.DataFrame]:
    """Frames of TOTALS_SCHEMA, one a file; a customer and type may be in them again. Only rows of the kind USAGE.

    An event whose property is no number is in suspense: it counts neither as an event nor in the sum.
    """
    chosen = [file for file in files if wanted.tenant_id in file.tenants]
    if threads <= 1:
        yield from (_of_file(store, file, wanted) for file in chosen)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="sealed-totals") as pool:
        yield from pool.map(lambda file: _of_file(store, file, wanted), chosen)


def added_up(frames: Iterator[pl.DataFrame]) -> pl.DataFrame:
    """One row per customer and type."""
    both = pl.concat([pl.DataFrame(schema=TOTALS_SCHEMA), *frames])
    return both.group_by("customer", "type").agg(pl.col("events").sum(), pl.col("sum").sum())


def _of_file(store: ObjectStore, file: SealedFile, wanted: Wanted) -> pl.DataFrame:
    check_readable("sealed", file.format, key=file.key)
    path = store.local_path(file.key)
    source: Any = path
    if path is None or not path.exists():
        data = store.get(file.key)
        if data is None:
            raise StoreUnavailable(f"{file.key} is named by the manifest and not there.")
        source = io.BytesIO(data)
    read = pq.ParquetFile(source, read_dictionary=["customer", "type", "tenant"], memory_map=path is not None)
    groups = [_of_group(read, number, wanted) for number in range(read.num_row_groups)]
    frames = [frame for frame in groups if frame is not None]
    if not frames:
        return pl.DataFrame(schema=TOTALS_SCHEMA)
    return pl.concat(frames)


def _of_group(read: pq.ParquetFile, number: int, wanted: Wanted) -> pl.DataFrame | None:
    names: list[str] = read.schema_arrow.names
    group = read.metadata.row_group(number)
    ends = {name: _ends(group, names.index(name)) for name in ("tenant", "customer", "kind", "time")}
    if _apart(ends["tenant"], wanted.tenant_id, wanted.tenant_id) or _apart(ends["kind"], 0, 0):
        return None
    if wanted.customers is not None and _apart(ends["customer"], min(wanted.customers), max(wanted.customers)):
        return None
    if ends["time"] is not None:
        first, last = ends["time"]
        if (wanted.start is not None and last < wanted.start) or (wanted.end is not None and first >= wanted.end):
            return None
    numbers = {name: NUMBER_PREFIX + name for name in wanted.properties.values() if name is not None}
    typed = [column for column in numbers.values() if column in names]
    needed = _conditions(ends, wanted)
    table = read.read_row_group(number, columns=["customer", "type", *sorted(needed), *typed], use_threads=False)
    kept = _mask(table, needed, wanted)
    if kept is not None and not kept.any():
        return None

    def texts() -> pl.DataFrame:
        frame = pl.from_arrow(read.read_row_group(number, columns=["data", *typed], use_threads=False))
        assert isinstance(frame, pl.DataFrame)
        return frame

    return _runs(table, kept, wanted, numbers, texts)


def _ends(group: Any, place: int) -> tuple[Any, Any] | None:
    """The lowest and highest value of a column in a row group, as its statistics have them."""
    statistics = group.column(place).statistics
    if statistics is None or not statistics.has_min_max or statistics.null_count:
        return None
    return statistics.min, statistics.max


def _apart(ends: tuple[Any, Any] | None, low: Any, high: Any) -> bool:
    return ends is not None and (ends[1] < low or ends[0] > high)


def _conditions(ends: Mapping[str, tuple[Any, Any] | None], wanted: Wanted) -> set[str]:
    """The columns that have to be looked at because statistics do not settle them."""
    needed: set[str] = set()
    if ends["tenant"] != (wanted.tenant_id, wanted.tenant_id):
        needed.add("tenant")
    if ends["kind"] != (int(RowKind.USAGE), int(RowKind.USAGE)):
        needed.add("kind")
    if wanted.start is not None or wanted.end is not None:
        inside = ends["time"] is not None and (
            (wanted.start is None or ends["time"][0] >= wanted.start)
            and (wanted.end is None or ends["time"][1] < wanted.end)
        )
        if not inside:
            needed.add("time")
    return needed


def _mask(table: pa.Table, needed: set[str], wanted: Wanted) -> npt.NDArray[np.bool_] | None:
    conditions: list[pl.Expr] = []
    columns = sorted(needed)
    if "tenant" in needed:
        conditions.append(pl.col("tenant").cast(pl.String) == wanted.tenant_id)
    if "kind" in needed:
        conditions.append(pl.col("kind") == int(RowKind.USAGE))
    if "time" in needed:
        if wanted.start is not None:
            conditions.append(pl.col("time") >= wanted.start)
        if wanted.end is not None:
            conditions.append(pl.col("time") < wanted.end)
    if wanted.customers is not None:
        columns.append("customer")
        conditions.append(pl.col("customer").cast(pl.String).is_in(list(wanted.customers)))
    if not conditions:
        return None
    frame = pl.from_arrow(table.select(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame.select(kept=pl.all_horizontal(conditions).fill_null(False))["kept"].to_numpy()


def _runs(
    table: pa.Table,
    kept: npt.NDArray[np.bool_] | None,
    wanted: Wanted,
    numbers: Mapping[str, str],
    texts: Any,
) -> pl.DataFrame:
    customer, type_ = (_codes(table, name) for name in ("customer", "type"))
    places = None if kept is None else np.flatnonzero(kept)
    if places is not None:
        customer, type_ = (customer[0][places], customer[1]), (type_[0][places], type_[1])
    changes = np.empty(len(customer[0]), dtype=np.bool_)
    changes[0] = True
    changes[1:] = (customer[0][1:] != customer[0][:-1]) | (type_[0][1:] != type_[0][:-1])
    starts = np.flatnonzero(changes)
    events = np.diff(starts, append=len(changes))
    types = type_[0][starts]
    numbered = events
    parts: list[tuple[npt.NDArray[np.bool_], pl.Series]] = []
    read: pl.DataFrame | None = None
    for name, column in numbers.items():
        of_types = [code for code, kind in enumerate(type_[1]) if wanted.properties.get(kind) == name]
        mine = np.isin(types, of_types)
        if not mine.any():
            continue
        sums = None
        if column in table.column_names:
            sums = _whole_sums(table.column(column), places, starts, events, mine)
        if sums is None:
            read = texts() if read is None else read
            sums, counted = _patient_sums(read, name, places, starts, events, mine)
            numbered = np.where(mine, counted, numbered)
        parts.append((mine, sums))
    # Only what is asked for; an expression a row group would cost as much as reading it.
    named = [code for code, kind in enumerate(type_[1]) if kind in wanted.properties]
    chosen = np.flatnonzero(np.isin(types, named) & (numbered > 0))
    return pl.DataFrame(
        {
            "customer": pl.Series(customer[1], dtype=pl.String)[customer[0][starts[chosen]]],
            "type": pl.Series(type_[1], dtype=pl.String)[types[chosen]],
            "events": pl.Series(numbered[chosen], dtype=pl.Int64),
            "sum": _one_column(parts, len(starts))[chosen],
        }
    )


def _one_column(parts: Sequence[tuple[npt.NDArray[np.bool_], pl.Series]], rows: int) -> pl.Series:
    """The sums of each run out of those by property; null where events are only counted."""
    if len(parts) == 1 and parts[0][0].all():
        return parts[0][1]
    found: pl.Series = pl.repeat(None, rows, dtype=NUMBER, eager=True)
    for mine, sums in parts:
        found = sums.zip_with(pl.Series(mine), found)
    return found


def _codes(table: pa.Table, name: str) -> tuple[npt.NDArray[np.int32], list[str]]:
    """A column of texts as whole numbers and the texts that they stand for."""
    column = table.column(name).combine_chunks()
    chunk = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return chunk.indices.to_numpy(zero_copy_only=False), chunk.dictionary.to_pylist()


def _whole_sums(
    column: pa.ChunkedArray,
    places: npt.NDArray[np.int64] | None,
    starts: npt.NDArray[np.int64],
    events: npt.NDArray[np.int64],
    mine: npt.NDArray[np.bool_],
) -> pl.Series | None:
    """Sums of runs as 64 bit numbers of the column's scale; None where a value is missing or a sum might not fit."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    # A decimal of 18 digits lies in the lower half of its 128 bits.
    values = np.frombuffer(array.buffers()[1], dtype=np.int64)[2 * array.offset :: 2][: len(array)]
    if places is not None:
        values = values[places]
    if array.null_count:
        nulls = array.is_null().to_numpy(zero_copy_only=False)
        nulls = nulls if places is None else nulls[places]
        if (np.add.reduceat(nulls.astype(np.int64), starts)[mine] > 0).any():
            return None
        values = np.where(nulls, 0, values)
    largest = max(abs(int(values.max())), abs(int(values.min())))
    if largest * int(events.max()) >= _SAFE:
        return None
    return _decimals(np.add.reduceat(values, starts), array.type.scale)


def _decimals(whole: npt.NDArray[np.int64], scale: int) -> pl.Series:
    """Whole numbers with their point moved, bit by bit: nothing is divided."""
    words = np.empty((len(whole), 2), dtype=np.int64)
    words[:, 0], words[:, 1] = whole, whole >> 63
    array = pa.Array.from_buffers(pa.decimal128(38, scale), len(whole), [None, pa.py_buffer(words)])
    found = pl.from_arrow(array)
    assert isinstance(found, pl.Series)
    return found.cast(NUMBER)


def _patient_sums(
    rows: pl.DataFrame,
    name: str,
    places: npt.NDArray[np.int64] | None,
    starts: npt.NDArray[np.int64],
    events: npt.NDArray[np.int64],
    mine: npt.NDArray[np.bool_],
) -> tuple[pl.Series, npt.NDArray[np.int64]]:
    """The same with every value as it is read for bills: sums of runs, and how many events have a number at all."""
    chosen = rows if places is None else rows[places]
    asked = pl.Series(np.repeat(mine, events))
    runs = pl.Series("run", np.repeat(np.arange(len(starts)), events)).filter(asked)
    values = Texts(chosen.filter(asked), [name]).number(name).alias("value")
    value = pl.col("value")
    sums = pl.DataFrame([runs, values]).group_by("run").agg(value.sum(), value.count().cast(pl.Int64).alias("count"))
    whole = pl.DataFrame({"run": np.arange(len(starts))}).join(sums, on="run", how="left", maintain_order="left")
    return whole["value"], whole["count"].fill_null(0).to_numpy()
