"""Merging: small sealed files become few, in which a tenant's rows of a month lie together.

Owns which files are merged and how their rows are laid out. A merge changes files, never the numbers that are sealed,
so a reader of either entry gets the same rows. Two mergers at once do no harm: who comes second finds its files gone
from the entry and leaves its own as orphans (storage/usage_log/deleting.py sweeps them).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

import polars as pl

from storage.master_chain import MasterChain
from storage.object_store import ObjectStore, StoreUnavailable
from storage.usage_log.formats import check_readable
from storage.usage_log.manifest import Manifest, ManifestChain, SealedFile
from storage.usage_log.sealed_files import FILE_ROWS, known_reads, write_sealed
from storage.usage_log.segment import ROW_SCHEMA

MERGE_COUNT = 8  # files of a size become one: each row is written again about once per factor of eight
MONTH_ROWS_MIN = 250_000  # a month with fewer rows shares a file with its neighbours
ROWS_MAX = FILE_ROWS  # of one merge: bounds its memory at about 0.6 GB
FILES_MAX = 64  # opened by one merge


def to_merge(files: Sequence[SealedFile], *, count: int = MERGE_COUNT, rows_max: int = ROWS_MAX) -> list[SealedFile]:
    """Files of about one size (a factor of eight), the smallest first, that fit one merge; [] if there are none.

    A file that fills half a merge is full: it stays as it is.
    """
    by_size: dict[int, list[SealedFile]] = {}
    for file in files:
        if file.rows * 2 <= rows_max:
            by_size.setdefault((file.rows.bit_length() + 2) // 3, []).append(file)
    for size in sorted(by_size):
        chosen: list[SealedFile] = []
        rows = 0
        for file in sorted(by_size[size], key=lambda one: (one.first_us or 0, one.key))[:FILES_MAX]:
            if rows + file.rows > rows_max:
                break
            chosen.append(file)
            rows += file.rows
        full = rows * 2 > rows_max and len(chosen) > 1
        if len(chosen) >= count or full:
            return chosen
    return []


def merge_sealed(store: ObjectStore, *, count: int = MERGE_COUNT, rows_max: int = ROWS_MAX) -> Manifest | None:
    """One merge, if one is due: the entry that names the merged files, or None if there was nothing to do."""
    chain = ManifestChain(store)
    group = to_merge(chain.newest().files, count=count, rows_max=rows_max)
    if not group:
        return None
    rows = pl.concat([read_rows(store, file) for file in group], how="vertical")
    if rows.height != sum(file.rows for file in group):
        raise StoreUnavailable(f"Sealed files hold {rows.height} rows, their entry says otherwise. Nothing was merged.")
    reads = known_reads(MasterChain(store), rows["tenant"].unique().to_list())
    written = [file for part in by_month(rows) for file in write_sealed(store, part, reads)]
    done = False

    def change(base: Manifest) -> Manifest | None:
        nonlocal done
        if not {file.key for file in group} <= {file.key for file in base.files}:
            return None  # another merger was faster: ours are orphans
        done = True
        gone = {file.key for file in group}
        return replace(base, files=(*(file for file in base.files if file.key not in gone), *written))

    entry = chain.append(change)
    return entry if done else None


def merge_some(store: ObjectStore, *, merges_max: int = 4) -> int:
    """At most so many merges, one after the other: what a round of maintenance may take."""
    for merged in range(merges_max):
        if merge_sealed(store) is None:
            return merged
    return merges_max


def by_month(rows: pl.DataFrame, *, month_rows_min: int = MONTH_ROWS_MIN) -> Iterator[pl.DataFrame]:
    """Months (of `time`, UTC) that have enough rows each, and what is left together."""
    months = rows["time"].dt.truncate("1mo").alias("month")
    counts = months.value_counts().sort("month")
    large = counts.filter(pl.col("count") >= month_rows_min)["month"]
    for month in large:
        yield rows.filter(months == month)
    rest = rows.filter(~months.is_in(large.to_list())) if len(large) else rows
    if rest.height:
        yield rest


def read_rows(store: ObjectStore, file: SealedFile) -> pl.DataFrame:
    """All rows of a sealed file with their positions, without the typed columns: those are made anew."""
    check_readable("sealed", file.format, key=file.key)
    data = store.get(file.key)
    if data is None:
        raise StoreUnavailable(f"{file.key} is named by the manifest and not there: a newer entry knows more.")
    rows = pl.read_parquet(io.BytesIO(data))
    return rows.select(*ROW_SCHEMA.names(), "lane", "number", "row", "received_at")
