"""What lies under one number of a lane: an epoch record or a segment, as Parquet with its head in the file's metadata.

Owns the names of the columns and of the head, and the keys of the objects. Any Parquet reader can open a segment; the
head (`cloudbilling` in the key-value metadata) is JSON. An epoch record is a segment without rows.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import IntEnum, unique
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from billing.backfills import positions_in
from billing.usage import EVENT_SCHEMA, INSTANT
from storage.usage_log.formats import check_readable
from storage.usage_log.partitions import FEW

HEAD_KEY = "cloudbilling"
FORMAT = 1
ERASED_FORMAT = 2  # of one that rows were erased from (storage/usage_log/erasing.py)
NUMBERS_PER_FOLDER = 10_000
COMPRESSION_LEVEL = 1
BARE_ROWS_MAX = 2  # up to so many are not compressed: 0.1 ms for bytes that are hardly fewer
FEW_ROWS = 4_096  # up to so many are written by Arrow, more by Polars, whose files are read faster


@unique
class RowKind(IntEnum):
    """What a row of the log says. Senders give USAGE; the rest the lane's writer decides (actors/followers.py)."""

    USAGE = 0
    AMENDED = 1
    VOIDED = 2
    # 3 is free: top-ups reach a lane by the master chain, a row for them would be a second truth.
    THRESHOLD_CROSSED = 4
    RESERVED = 5
    COMMITTED = 6
    RELEASED = 7
    BACKFILL_COMMITTED = 8
    BACKFILL_REVERTED = 9
    CLOCK_SET = 10  # the time of a test tenant, in every lane
    WALLET_HELD = 11
    WALLET_SETTLED = 12
    WALLET_FREED = 13
    WALLET_RESTORED = 14
    MASTER_SEEN = 15  # budgets rest on this master number from the segment on
    BACKFILLED = 16  # an event sent under a backfill: counts once that is committed (storage/usage_log/backfills.py)
    FOREIGN_STATE = 18  # usage of a customer that another lane keeps, as his home lane was told of it
    BUDGETS_MOVED = 19  # what is followed of a customer's budgets, by the lane that lets his partition go
    BACKFILL_NOTED = 17  # a step of a backfill; 8 and 9 are those that decide
    ERASED = 24  # was a row: only its tenant, partition and position are left; the head proves what it was


CHANGES = (
    RowKind.AMENDED,
    RowKind.VOIDED,
    RowKind.BACKFILL_COMMITTED,
    RowKind.BACKFILL_REVERTED,
    RowKind.BACKFILL_NOTED,
)
_CHANGES = [int(kind) for kind in CHANGES]

# A row as it is stored. Its position (lane, number, row) is given by where it lies, `received_at` by the head.
ROW_SCHEMA = pl.Schema(
    {
        "tenant": pl.String,
        "partition": pl.UInt8,
        "kind": pl.UInt8,
        **EVENT_SCHEMA,
        "detail": pl.String,  # JSON; only rows that are no usage carry one
    }
)


@dataclass(frozen=True)
class Control:
    """A record about the lane itself: who owns a partition from this number on, or that the lane is closed."""

    what: Literal["released", "acquired", "tick", "lane_closed"]
    partition: int = -1
    generation: int = 0
    lane: int = -1  # released: to this lane; acquired: from this lane
    number: int = -1  # acquired: the number of the release in that lane

    def to_form(self) -> dict[str, Any]:
        if self.what in ("released", "acquired"):
            form = {"what": self.what, "partition": self.partition, "generation": self.generation, "lane": self.lane}
            return form | ({"number": self.number} if self.what == "acquired" else {})
        return {"what": self.what}


@dataclass(frozen=True)
class Counters:
    """What one tenant has in one segment: events stored, repeats that were not stored again, rows of other kinds."""

    stored: int = 0
    duplicates: int = 0
    decided: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(self.stored + other.stored, self.duplicates + other.duplicates, self.decided + other.decided)

    def to_form(self) -> list[int]:
        return [self.stored, self.duplicates, *([self.decided] if self.decided else [])]


@dataclass(frozen=True)
class ErasedGroup:
    """Rows that were erased from one segment: how many, their sums, and the root of a Merkle tree over them.

    `customer` is a keyed hash of the customer key; who knows the key can find its groups, nobody can read it here.
    """

    tenant: str
    customer: str
    kind: int
    type: str
    month: str  # of `time`, UTC: 2026-05
    rows: int
    sums: Mapping[str, str]  # property that a meter reads -> exact sum
    root: str
    rule: str  # under which it was erased
    erased_us: int


@dataclass(frozen=True)
class SegmentHead:
    lane: int
    number: int
    epoch: int
    nonce: str  # of the writer: equal bytes mean equal writer
    log_time_us: int  # received_at of all rows; never goes back along a lane
    previous: str  # digest of number - 1, "" for number 0
    is_epoch: bool = False
    rows: int = 0
    ranges: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # partition -> (first row, rows)
    counters: Mapping[str, Counters] = field(default_factory=dict)  # by tenant id
    controls: Sequence[Control] = ()
    clocks: Mapping[str, int] = field(default_factory=dict)  # tenants with a time of their own -> their received_at
    changed: frozenset[str] = frozenset()  # tenants with rows that say how events count (CHANGES)
    rests_on: Mapping[int, int] = field(default_factory=dict)  # other lanes' numbers: a cut with this one has them, too
    erased: tuple[ErasedGroup, ...] = ()
    digest: str = ""  # of the bytes as they were written, where rows were erased from them later

    @property
    def log_time(self) -> datetime:
        return instant_of(self.log_time_us)

    def to_text(self) -> str:
        form = {
            "format": ERASED_FORMAT if self.erased else FORMAT,
            "lane": self.lane,
            "number": self.number,
            "kind": "epoch" if self.is_epoch else "segment",
            "epoch": self.epoch,
            "nonce": self.nonce,
            "log_time_us": self.log_time_us,
            "previous": self.previous,
            "rows": self.rows,
            "ranges": [[partition, first, rows] for partition, (first, rows) in self.ranges.items()],
            "counters": {tenant: count.to_form() for tenant, count in self.counters.items()},
            "controls": [control.to_form() for control in self.controls],
        }
        if self.clocks:
            form["clocks"] = dict(self.clocks)
        if self.changed:
            form["changed"] = sorted(self.changed)
        if self.rests_on:
            form["rests_on"] = {str(lane): number for lane, number in self.rests_on.items()}
        if self.erased:
            form |= {"digest": self.digest, "erased": [{**vars(one), "sums": dict(one.sums)} for one in self.erased]}
        return json.dumps(form, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> SegmentHead:
        form = json.loads(text)
        check_readable("segment", form["format"], key=f"lane {form['lane']} number {form['number']}")
        return cls(
            lane=form["lane"],
            number=form["number"],
            epoch=form["epoch"],
            nonce=form["nonce"],
            log_time_us=form["log_time_us"],
            previous=form["previous"],
            is_epoch=form["kind"] == "epoch",
            rows=form["rows"],
            ranges={partition: (first, rows) for partition, first, rows in form["ranges"]},
            counters={tenant: Counters(*counts) for tenant, counts in form["counters"].items()},
            controls=tuple(Control(**control) for control in form["controls"]),
            clocks=form.get("clocks", {}),
            changed=frozenset(form.get("changed", ())),
            rests_on={int(lane): number for lane, number in form.get("rests_on", {}).items()},
            erased=tuple(ErasedGroup(**one) for one in form.get("erased", ())),
            digest=form.get("digest", ""),
        )


@dataclass(frozen=True)
class StoredSegment:
    """An object read back from a lane."""

    head: SegmentHead
    data: bytes

    @property
    def digest(self) -> str:
        """Of the bytes as they were written: the next number names it."""
        return self.head.digest or digest_of(self.data)

    def rows(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The rows in the order of their positions."""
        if self.head.rows == 0:
            frame = pl.DataFrame(schema=ROW_SCHEMA)
            return frame if columns is None else frame.select(columns)
        return pl.read_parquet(io.BytesIO(self.data), columns=None if columns is None else list(columns))


def segment_key(lane: int, number: int) -> str:
    return f"log/lanes/{lane:04}/{number // NUMBERS_PER_FOLDER:06}/{number:012}.parquet"


def digest_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def instant_of(log_time_us: int) -> datetime:
    seconds, microseconds = divmod(log_time_us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)


def microseconds_of(instant: datetime) -> int:
    """The inverse of `instant_of`, without floats."""
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def encode_segment(head: SegmentHead, rows: pl.DataFrame | None) -> bytes:
    """The bytes of an epoch record (rows None) or of a segment; the rows are sorted by partition already."""
    if rows is None or rows.height == 0:
        frame, head = pl.DataFrame(schema=ROW_SCHEMA), replace(head, rows=0, ranges={})
    else:
        ranges = _ranges(rows["partition"].to_numpy())
        changed = _changed(head, rows)
        rests_on = _rests_on(rows) if changed else {}
        frame, head = rows, replace(head, rows=rows.height, ranges=ranges, changed=changed, rests_on=rests_on)
    return _encoded(head, frame)


def encode_erased(head: SegmentHead, rows: pl.DataFrame) -> bytes:
    """The bytes of a segment whose rows lie where they lay and say less; `head` says what it said, and what went."""
    assert head.erased, f"lane {head.lane} number {head.number}: nothing was erased"
    assert rows.height == head.rows, f"lane {head.lane} number {head.number}: rows keep their positions"
    return _encoded(head, rows)


def _encoded(head: SegmentHead, frame: pl.DataFrame) -> bytes:
    return _few_as_parquet(frame, head.to_text()) if frame.height <= FEW_ROWS else _as_parquet(frame, head.to_text())


def _as_parquet(frame: pl.DataFrame, head: str) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(
        buffer,
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        statistics=False,
        row_group_size=frame.height,
        metadata={HEAD_KEY: head},
    )
    return buffer.getvalue()


def _few_as_parquet(frame: pl.DataFrame, head: str) -> bytes:
    """The same rows by Arrow's writer, without dictionaries: half the time and two thirds of the bytes where rows are
    few, for Polars starts its engine up for each file.

    Column by column: what Polars does to a whole frame it does in another thread, and where cores are busy the way
    there and back has cost milliseconds.
    """
    level = pl.CompatLevel.oldest()
    arrays = [column.to_arrow(compat_level=level) for column in frame.get_columns()]
    table = pa.Table.from_arrays(arrays, names=frame.columns)
    is_bare = frame.height <= BARE_ROWS_MAX
    out = pa.BufferOutputStream()
    with pq.ParquetWriter(
        out,
        table.schema,
        compression="none" if is_bare else "zstd",
        compression_level=None if is_bare else COMPRESSION_LEVEL,
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
    ) as writer:
        if frame.height:
            writer.write_table(table, row_group_size=frame.height)
        writer.add_key_value_metadata({HEAD_KEY: head})
    data: bytes = out.getvalue().to_pybytes()
    return data


def _changed(head: SegmentHead, rows: pl.DataFrame) -> frozenset[str]:
    if not any(count.decided for count in head.counters.values()):
        return frozenset()
    if rows.height <= FEW:  # a lone decision's: numpy's functions cost ten times the rest
        return frozenset(tenant for tenant, kind in zip(rows["tenant"], rows["kind"], strict=True) if kind in CHANGES)
    kinds = rows["kind"].to_numpy()
    changes = np.flatnonzero(np.isin(kinds, _CHANGES))
    return frozenset(rows["tenant"].gather(changes)) if len(changes) else frozenset()


def _rests_on(rows: pl.DataFrame) -> dict[int, int]:
    committed = rows.filter(pl.col("kind") == int(RowKind.BACKFILL_COMMITTED))
    return positions_in(committed["detail"]) if committed.height else {}


def decode_segment(data: bytes) -> StoredSegment:
    metadata = pl.read_parquet_metadata(io.BytesIO(data))
    return StoredSegment(SegmentHead.from_text(metadata[HEAD_KEY]), data)


def with_positions(rows: pl.DataFrame, head: SegmentHead) -> pl.DataFrame:
    """The rows with lane, number, row and received_at beside them."""
    received = pl.lit(head.log_time_us, pl.Int64)
    if head.clocks:
        received = pl.col("tenant").replace_strict(dict(head.clocks), default=received, return_dtype=pl.Int64)
    return rows.with_row_index("row").with_columns(
        pl.lit(head.lane, pl.UInt16).alias("lane"),
        pl.lit(head.number, pl.UInt64).alias("number"),
        received.cast(INSTANT).alias("received_at"),
    )


def _ranges(partitions: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[int, tuple[int, int]]:
    if len(partitions) == 1:
        return {int(partitions[0]): (0, 1)}
    starts = np.flatnonzero(np.diff(partitions.astype(np.int16), prepend=-1))
    assert np.all(np.diff(partitions.astype(np.int16)) >= 0), "rows of a segment must be sorted by partition"
    ends = np.append(starts[1:], len(partitions))
    return {
        int(partition): (int(start), int(end - start))
        for partition, start, end in zip(partitions[starts], starts, ends, strict=True)
    }
