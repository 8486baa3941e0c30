"""The form of sealed files: columns, their order, row groups, and typed columns beside the text of events.

Owns formats 1 (rows alone) and 2 (typed columns, statistics that skip row groups by tenant, customer and time). Both
are plain Parquet, described in docs/usage-files.md; readers ask the file for its columns, so both stay readable.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from uuid import uuid4

import polars as pl
import pyarrow.parquet as pq

from billing.errors import NotFound
from billing.typed_columns import NO_READS, Reads, typed_columns, typed_names
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.usage_log.manifest import SealedFile
from storage.usage_log.row_order import ORDER, in_order
from storage.usage_log.segment import digest_of, microseconds_of

FORMAT = 2
FILE_ROWS = 2_000_000  # about 50 MB
GROUP_ROWS = 131_072
GROUP_ROWS_MIN = 8_192  # a tenant with fewer rows shares a row group with its neighbours
_PLAIN = ("id", "data", "detail")  # few repeat: a dictionary of them would be given up on the way
_CLOSE = ("time", "row")  # near to the value before: differences are small


def write_sealed(store: ObjectStore, rows: pl.DataFrame, reads: Mapping[str, Reads]) -> Iterator[SealedFile]:
    """Put rows of the log (ROW_SCHEMA and their positions) as sealed files of bounded size; `reads` is by tenant."""
    ordered = in_order(rows.drop(typed_names(rows.columns)))
    for start in range(0, ordered.height, FILE_ROWS):
        yield _write(store, ordered.slice(start, FILE_ROWS), reads)


def known_reads(chain: MasterChain, tenants: Iterable[str]) -> dict[str, Reads]:
    """What meters read, by tenant; of a tenant without master data nothing is known, its rows are sealed as text."""
    found: dict[str, Reads] = {}
    for tenant in tenants:
        try:
            found[tenant] = chain.newest(tenant)[1].rating_book().reads
        except NotFound:
            continue
    return found


def _write(store: ObjectStore, rows: pl.DataFrame, reads: Mapping[str, Reads]) -> SealedFile:
    counted = rows.group_by("tenant", maintain_order=True).len()
    tenants = dict(zip(counted["tenant"].to_list(), counted["len"].to_list(), strict=True))
    typed = typed_columns(rows, {tenant: reads.get(tenant, NO_READS) for tenant in tenants})
    data = encode_sealed(rows.with_columns(typed), tenants)
    key = f"log/sealed/{uuid4().hex}-{digest_of(data)}.parquet"
    store.put(key, data)
    partitions, times = rows["partition"], rows["time"]
    return SealedFile(
        key=key,
        rows=rows.height,
        bytes=len(data),
        first_partition=int(partitions.min()),  # type: ignore[arg-type]
        last_partition=int(partitions.max()),  # type: ignore[arg-type]
        tenants=tenants,
        format=FORMAT,
        first_us=microseconds_of(times.min()),  # type: ignore[arg-type]
        last_us=microseconds_of(times.max()),  # type: ignore[arg-type]
    )


def digest_in(key: str) -> str:
    """The digest of a file's bytes, as its name has it; "" of files of versions that did not name it."""
    return key.removesuffix(".parquet").rpartition("/")[2].partition("-")[2]


def encode_sealed(rows: pl.DataFrame, tenants: Mapping[str, int]) -> bytes:
    """Parquet of ordered rows; row groups end where a tenant does, unless it has few rows."""
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    table = table.replace_schema_metadata({"cloudbilling": f'{{"format":{FORMAT}}}'})
    out = io.BytesIO()
    writer = pq.ParquetWriter(
        out,
        table.schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=[name for name in rows.columns if name not in (*_PLAIN, *_CLOSE)],
        column_encoding={name: "DELTA_BINARY_PACKED" for name in _CLOSE},
        write_statistics=True,
        store_decimal_as_integer=True,
        sorting_columns=pq.SortingColumn.from_ordering(table.schema, [(name, "ascending") for name in ORDER]),
    )
    with writer:
        for start, count in row_groups(list(tenants.values())):
            writer.write_table(table.slice(start, count), row_group_size=GROUP_ROWS)
    return out.getvalue()


def row_groups(counts: list[int]) -> Iterator[tuple[int, int]]:
    """First row and rows of each row group, for the rows that tenants have, one after the other."""
    start = size = 0
    for count in counts:
        if size and count >= GROUP_ROWS_MIN:
            yield start, size
            start, size = start + size, 0
        size += count
        while size >= GROUP_ROWS:
            yield start, GROUP_ROWS
            start, size = start + GROUP_ROWS, size - GROUP_ROWS
        if size >= GROUP_ROWS_MIN and count >= GROUP_ROWS_MIN:
            yield start, size
            start, size = start + size, 0
    if size:
        yield start, size
