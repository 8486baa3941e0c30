"""What a partition brings along when it moves to another lane, read from the log alone. No Ray in here.

Owns the reading: the ids that no run covers yet, the rows that decisions rest on, and the record by which the lane that
had it let it go. Nothing is handed over from process to process: who dies in between leaves a log that says enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from actors.followers import LogMoment
from billing.errors import Unavailable
from storage.object_store import ObjectStore
from storage.usage_log.backfills import ids_of_rows
from storage.usage_log.genesis import Genesis
from storage.usage_log.lane import is_closed, walk
from storage.usage_log.manifest import Manifest
from storage.usage_log.partitions import EventIds
from storage.usage_log.reader import NOTHING, Cut, UsageLogReader
from storage.usage_log.segment import ROW_SCHEMA, Control, RowKind, SegmentHead, StoredSegment, microseconds_of

# Rows of a partition that states rest on. Usage is read where it is wanted; what a lane notes of itself (no customer)
# stays with that lane, but for the times of test tenants.
_DECIDED = ~pl.col("kind").is_in([int(RowKind.USAGE), int(RowKind.BACKFILLED)]) & (
    (pl.col("customer") != "") | (pl.col("kind") == int(RowKind.CLOCK_SET))
)


UNKNOWN = -1


@dataclass(frozen=True)
class Luggage:
    """What a partition brings from a lane, as far as it has been read: `number` is the last of that lane.

    `rows` are decided ones that were read with the release, its own among them; `parts` those of all lanes ever.
    """

    partition: int
    lane: int
    first: int  # the first number of that lane that was read
    number: int
    manifest: Manifest  # its runs hold the ids that are not in here
    ids: tuple[EventIds, ...]
    rows: tuple[pl.DataFrame, ...] = ()
    parts: tuple[tuple[pl.DataFrame, LogMoment], ...] = ()  # the same as states take them
    generation: int = UNKNOWN  # of the partition where it was, if all of it up to `number` was read ahead
    release: Control | None = None
    released_us: int = 0  # the log time of the release: the new lane's goes on behind it


def pack(
    store: ObjectStore, genesis: Genesis, manifest: Manifest, partition: int, lane: int, *, up_to: int | None = None
) -> Luggage:
    """Read the ids that a partition would bring along now (or at a number of its lane), while that still serves it."""
    first = manifest.ids_covered(lane) + 1
    last, ids = first - 1, []
    for segment in walk(store, lane, first, up_to):
        last = segment.head.number
        if partition in segment.head.ranges:
            ids.append(_ids(genesis, segment, partition))
    return Luggage(partition, lane, first, last, manifest, tuple(ids))


def prepare(
    store: ObjectStore, genesis: Genesis, manifest: Manifest, partition: int, lane: int, generation: int
) -> Luggage:
    """Read all of it that there is, while its lane still serves it: of every lane that it ever lay in.

    `generation` is the partition's there. So what is left to read once it has been let go is a few numbers.
    """
    packed, reader = pack(store, genesis, manifest, partition, lane), UsageLogReader(store)
    earlier: dict[int, int] = {}
    if generation > 0:
        came = _acquired(reader, partition, lane, packed.number, generation)
        earlier = dict(_tenures(reader, partition, came.lane, came.number, generation).positions)
    cut = {**earlier, lane: packed.number}
    ids = [*packed.ids, *_ids_elsewhere(store, genesis, packed, cut)]
    parts = tuple(in_order(_decided_rows(reader, partition, Cut(cut), NOTHING)))
    return replace(packed, ids=tuple(ids), parts=parts, generation=generation)


def _ids_elsewhere(
    store: ObjectStore, genesis: Genesis, packed: Luggage, lasts: Mapping[int, int]
) -> Iterator[EventIds]:
    """What earlier lanes had and no run covers yet: the last one has it in memory only."""
    for lane, last in lasts.items():
        if lane != packed.lane:
            yield from pack(store, genesis, packed.manifest, packed.partition, lane, up_to=last).ids


def _decided_rows(reader: UsageLogReader, partition: int, cut: Cut, since: Cut) -> tuple[pl.DataFrame, ...]:
    frames = (frame.filter(_DECIDED) for frame in reader.scan_decided(cut, partition, since=since))
    return tuple(frame for frame in frames if frame.height)


def complete(
    store: ObjectStore, genesis: Genesis, packed: Luggage, to_lane: int | None, *, number: int | None = None
) -> Luggage:
    """Read on to the record that lets the partition go to `to_lane` (of that number, where it is known).

    None: to whichever lane; for one that takes back what it had let go to a lane that was closed.

    Raises Unavailable while there is none: its lane has it still.
    """
    reader = UsageLogReader(store)
    ids, found = list(packed.ids), None
    for segment in walk(store, packed.lane, packed.number + 1, number):
        if packed.partition in segment.head.ranges:
            ids.append(_ids(genesis, segment, packed.partition))
        found = _release_in(segment.head, packed.partition, to_lane)
        if found is not None:
            break
    if found is None:
        found = _released_before(reader, packed, to_lane, packed.number if number is None else number)
    if found is None:
        raise Unavailable(f"Lane {packed.lane} has not let partition {packed.partition} go. Send the same again.")
    release, head = found
    if packed.generation + 1 == release.generation and packed.number <= head.number:
        tail, since = Cut({packed.lane: head.number}), Cut({packed.lane: packed.number})
        rows, before = _decided_rows(reader, packed.partition, tail, since), packed.parts
    else:  # nobody prepared it, or it has moved meanwhile
        cut = _tenures(reader, packed.partition, packed.lane, head.number, release.generation)
        ids.extend(_ids_elsewhere(store, genesis, packed, cut.positions))
        rows, before = _decided_rows(reader, packed.partition, cut, NOTHING), ()
    return replace(
        packed,
        number=head.number,
        ids=tuple(ids),
        rows=rows,
        parts=(*before, *in_order(rows)),
        release=release,
        released_us=head.log_time_us,
    )


def _tenures(reader: UsageLogReader, partition: int, lane: int, number: int, generation: int) -> Cut:
    """Up to which number of each lane a partition lay there, until a lane let it go with this generation."""
    lasts = {lane: number}
    while generation > 1:  # with generation 1 it leaves the lane that it began in
        generation -= 1
        came = _acquired(reader, partition, lane, number, generation)
        lane, number = came.lane, came.number
        lasts[lane] = max(lasts.get(lane, -1), number)
    return Cut(lasts)


def _acquired(reader: UsageLogReader, partition: int, lane: int, number: int, generation: int) -> Control:
    for before in range(number, -1, -1):
        for control in reader.head(lane, before).controls:
            if (control.what, control.partition, control.generation) == ("acquired", partition, generation):
                return control
    raise AssertionError(f"lane {lane} let partition {partition} go and never had it")


def _released_before(
    reader: UsageLogReader, packed: Luggage, to_lane: int | None, number: int
) -> tuple[Control, SegmentHead] | None:
    """The newest record at or below a number that says who has the partition, if it lets it go to this lane.

    Somebody died between release and acquisition: rare, so the lane is read backwards.
    """
    for before in range(number, -1, -1):
        head = reader.head(packed.lane, before)
        for control in reversed(head.controls):
            if control.partition == packed.partition and control.what in ("released", "acquired"):
                is_it = control.what == "released" and to_lane in (None, control.lane)
                return (control, head) if is_it else None
    return None


def _release_in(head: SegmentHead, partition: int, to_lane: int | None) -> tuple[Control, SegmentHead] | None:
    for control in head.controls:
        if control.what == "released" and control.partition == partition and to_lane in (None, control.lane):
            return control, head
    return None


def came_to_nothing(store: ObjectStore, release: Control) -> bool:
    """Whether the lane that a release names has ended without acquiring the partition: then nobody ever will there.

    Its log is final, so this cannot change; and only the lane that let the partition go may take it back.
    """
    if not is_closed(store, release.lane):
        return False
    acquired = ("acquired", release.partition, release.generation)
    return not any(
        (control.what, control.partition, control.generation) == acquired
        for segment in walk(store, release.lane, 0)
        for control in segment.head.controls
    )


def _ids(genesis: Genesis, segment: StoredSegment, partition: int) -> EventIds:
    first, count = segment.head.ranges[partition]
    rows = segment.rows().slice(first, count)
    return ids_of_rows(genesis, rows["tenant"], rows, rows["partition"].to_numpy())


def parting_rows(luggage: Luggage) -> list[pl.DataFrame]:
    """The rows beside the release: what the lane that had the partition wrote down of it."""
    is_there = (pl.col("lane") == luggage.lane) & (pl.col("number") == luggage.number)
    return [found for frame in luggage.rows if (found := frame.filter(is_there)).height]


def clocks_in(luggage: Luggage) -> dict[str, int]:
    """The times of test tenants that come along; a lane that never heard of them goes by them from now on."""
    set_ = pl.col("kind") == int(RowKind.CLOCK_SET)
    found: dict[str, int] = {}
    for frame in luggage.rows:
        for tenant_id, time_us in frame.filter(set_).select("tenant", pl.col("time").to_physical()).iter_rows():
            found[tenant_id] = max(found.get(tenant_id, time_us), time_us)
    return found


def in_order(rows: Sequence[pl.DataFrame]) -> list[tuple[pl.DataFrame, LogMoment]]:
    """Rows as states take them: what one segment has of one tenant, with its moment."""
    if not rows:
        return []
    # Log time never goes back along a partition's history, whatever lanes it lay in.
    ordered = pl.concat(rows).sort("received_at", "lane", "number", "row")
    parts = ordered.partition_by("tenant", "lane", "number", as_dict=True, maintain_order=True)
    found: list[tuple[pl.DataFrame, LogMoment]] = []
    for (tenant_id, lane, number), part in parts.items():
        now_us = microseconds_of(part["received_at"][0])
        moment = LogMoment(int(lane), int(number), now_us, {str(tenant_id): now_us})
        found.append((part.select(ROW_SCHEMA.names()), moment))
    return found
