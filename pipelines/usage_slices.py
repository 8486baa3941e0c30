"""The gathered usage of a bill run in the object store: folded by groups of partitions, given out by chunk.

Owns the groups, the names of what is put and how parts become the usage of a chunk; what is read is `run_usage.py`.
A customer key lies in one partition, so groups are read by tasks of their own that know nothing of each other, and hold
no more than the customers of one group. Whose keys lie in several groups is folded in each, and put together exactly.

Two readings of one cut give the same rows, but not in the same order (what was sealed meanwhile lies elsewhere): slices
of two attempts must never be mixed. Each attempt puts its slices under names of its own, and the index that names them
is put once: one for each group, then one for the run.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import uuid4

import msgspec
import polars as pl

from billing.bill_columns import plain, usage_pieces
from billing.folded_usage import FOLDED_FORM, FoldedUsage, together
from billing.rating import SLOT_ROWS
from pipelines.run_usage import (
    FRESH_SCHEMA,
    ChunkUsage,
    Collecting,
    Completing,
    Facts,
    Found,
    events_together,
    is_inside,
    keys_of,
    pieces_beyond,
    with_cut_of_last_run,
)
from storage.object_store import ObjectStore
from storage.usage_log.partitions import PARTITIONS
from storage.usage_log.reader import UsageLogReader

SLICE_ROWS = 2_000_000  # rows that are gathered before they are cut into slices: bounds the memory of a gathering
GROUP_CUSTOMERS = 50_000  # at most so many in one group, on average: their folded usage is in memory at one time
GROUPS_MAX = 64
SHARED_BYTES = 16 * 2**20  # of an object that chunks share, and the state of one chunk more


class _Place(msgspec.Struct, frozen=True):
    """Bytes in an object."""

    key: str
    start: int
    length: int


class _OfChunk(msgspec.Struct, frozen=True):
    """A chunk's usage in one group: its objects, the small state in one that chunks share (theirs would be tiny)."""

    slices: list[str]
    folded: dict[str, str]
    small: _Place | None
    pieces: int


class _Part(msgspec.Struct, frozen=True):
    """What a group of partitions came to: `Found`, and what is of each chunk."""

    chunks: list[_OfChunk]
    rest: tuple[str, ...]
    turned: tuple[str, ...]
    folds: tuple[str, ...]
    fresh: str | None
    due_from: datetime | None


class _Whole(msgspec.Struct, frozen=True):
    """A chunk's usage in all groups (first, last and what there is), and what was read when they were known."""

    parts: list[tuple[int, int, _OfChunk]]
    slices: list[str]
    rest: list[str]
    needed: datetime | None
    due_from: datetime | None


class _Index(msgspec.Struct, frozen=True):
    """Where the `_Whole` of each chunk is."""

    chunks: list[str]


def _index(prefix: str) -> str:
    # What another version folded is not read: it is gathered again.
    return f"{prefix}index-{FOLDED_FORM}.json"


def _part_index(prefix: str, group: range) -> str:
    return f"{prefix}index-{FOLDED_FORM}-{group.start:03}-{group.stop - 1:03}.json"


def groups_of(customers: int, at_least: int = 1) -> list[range]:
    """The groups of partitions for so many customers, nearly alike in size: `at_least` so many, if that can be."""
    count = max(1, min(GROUPS_MAX, max(at_least, -(-customers // GROUP_CUSTOMERS))))
    ends = [PARTITIONS * place // count for place in range(count + 1)]
    return [range(start, end) for start, end in itertools.pairwise(ends)]


def is_gathered(store: ObjectStore, prefix: str) -> bool:
    return store.exists(_index(prefix))


# -- A group -----------------------------------------------------------------------------------------------------------


def fold_group(store: ObjectStore, facts: Facts, chunks: Sequence[Sequence[str]], prefix: str, group: range) -> None:
    """Put what is of a group of partitions below `prefix`; harmless when it is there, or when another process does it.

    In memory at one time: the folded usage of the group's customers (and as much again while it is merged), three
    frames of the log (500,000 rows each at most), and SLICE_ROWS of those that are kept as they are.
    """
    index = _part_index(prefix, group)
    if store.exists(index):
        return
    attempt = f"{prefix}{uuid4().hex}/"
    master = with_cut_of_last_run(facts.master, facts.previous)
    all_keys = keys_of(master, {code: chunk for chunk, codes in enumerate(chunks) for code in codes})
    inside = set(all_keys.filter(is_inside(store, facts.tenant_id, all_keys["key"], group))["key"])
    chunk_of = {
        code: chunk
        for chunk, codes in enumerate(chunks)
        for code in codes
        if not inside.isdisjoint(master.keys_of(code))
    }
    collected = Collecting(UsageLogReader(store), facts, chunk_of, group)
    slices = _put_slices(store, attempt, len(chunks), collected.frames())
    found = collected.found()
    fresh = None
    if found.fresh.height:
        fresh = f"{attempt}fresh.parquet"
        store.create(fresh, _parquet(found.fresh))
    of_chunks = _put_folded(store, attempt, collected, chunk_of, slices)
    part = _Part(of_chunks, found.rest, found.turned, found.folds, fresh, found.due_from)
    _put_index(store, index, attempt, msgspec.json.encode(part))


def _put_slices(store: ObjectStore, attempt: str, chunks: int, frames: Iterable[pl.DataFrame]) -> list[list[str]]:
    """Put rows that are kept as they are, by chunk."""
    slices: list[list[str]] = [[] for _ in range(chunks)]
    waiting: list[pl.DataFrame] = []
    count = itertools.count()

    def put() -> None:
        frame = pl.concat(waiting, how="diagonal_relaxed")
        waiting.clear()
        number = next(count)
        for (chunk,), part in frame.partition_by("chunk", as_dict=True, maintain_order=True).items():
            key = f"{attempt}{number:05}-{int(chunk):06}.parquet"
            store.create(key, _parquet(part.drop("chunk")))
            slices[int(chunk)].append(key)

    rows = 0
    for frame in frames:
        if frame.height:
            waiting.append(frame)
            rows += frame.height
        if rows >= SLICE_ROWS:
            put()
            rows = 0
    if waiting:
        put()
    return slices


def _put_folded(
    store: ObjectStore, attempt: str, collected: Collecting, chunk_of: dict[str, int], slices: list[list[str]]
) -> list[_OfChunk]:
    """Put folded usage by chunk: pieces are counted anew in each, in their order."""
    chunks = len(slices)
    owners = collected.plain.contracts["customer"].gather(collected.of_piece["contract"])
    of_piece = pl.DataFrame({"chunk": [chunk_of[owner] for owner in owners]}, schema={"chunk": pl.UInt32})
    of_piece = of_piece.with_columns(place=pl.int_range(pl.len(), dtype=pl.UInt64).over("chunk"))
    counts: dict[int, int] = dict(of_piece.group_by("chunk").len().iter_rows())
    names: list[dict[str, str]] = [{} for _ in range(chunks)]
    places: list[_Place | None] = [None] * chunks
    shared, waiting = itertools.count(), list[tuple[int, bytes]]()

    def put() -> None:
        key, start = f"{attempt}small-{next(shared):05}.bin", 0
        store.create(key, b"".join(data for _, data in waiting))
        for chunk, data in waiting:
            places[chunk] = _Place(key, start, len(data))
            start += len(data)
        waiting.clear()

    for name, frame in collected.folded.frames().items():
        if not frame.height:
            continue
        piece = frame["slot"] // SLOT_ROWS
        slot = of_piece["place"].gather(piece) * SLOT_ROWS + frame["slot"] % SLOT_ROWS
        by_chunk = frame.with_columns(slot.alias("slot"), of_piece["chunk"].gather(piece).alias("chunk"))
        for (number,), rows in by_chunk.partition_by("chunk", as_dict=True).items():
            chunk, data = int(str(number)), _parquet(rows.drop("chunk"))
            if name == "small":
                waiting.append((chunk, data))
                if sum(len(one) for _, one in waiting) >= SHARED_BYTES:
                    put()
                continue
            names[chunk][name] = f"{attempt}{name}-{chunk:06}.parquet"
            store.create(names[chunk][name], data)
    if waiting:
        put()
    return [_OfChunk(slices[chunk], names[chunk], places[chunk], counts.get(chunk, 0)) for chunk in range(chunks)]


# -- All groups --------------------------------------------------------------------------------------------------------


def complete(
    store: ObjectStore, facts: Facts, chunks: Sequence[Sequence[str]], prefix: str, groups: Sequence[range]
) -> None:
    """Put together what is of all groups, with what those need who are billed one by one; harmless when it is there."""
    index = _index(prefix)
    if store.exists(index):
        return
    attempt = f"{prefix}{uuid4().hex}/"
    chunk_of = {code: chunk for chunk, codes in enumerate(chunks) for code in codes}
    parts = [(group, _read(store, _part_index(prefix, group), _Part)) for group in groups]
    found = [
        Found(
            group,
            part.rest,
            part.turned,
            part.folds,
            pl.DataFrame(schema=FRESH_SCHEMA) if part.fresh is None else _frame(store, part.fresh),
            part.due_from,
        )
        for group, part in parts
    ]
    of_chunks = [[(group.start, group.stop - 1, part.chunks[n]) for group, part in parts] for n in range(len(chunks))]
    found += _found_of_several(store, facts, chunks, groups, of_chunks, found)
    rest = Completing(UsageLogReader(store), facts, chunk_of, found)
    slices = _put_slices(store, attempt, len(chunks), rest.frames())
    keys: list[str] = []
    for chunk in range(len(chunks)):
        these, needed = (rest.rest[chunk], rest.needed[chunk]) if chunk < len(rest.rest) else ([], None)
        whole = _Whole(of_chunks[chunk], slices[chunk], these, needed, rest.due_from)
        keys.append(f"{attempt}chunk-{chunk:06}.json")
        store.create(keys[-1], msgspec.json.encode(whole))
    _put_index(store, index, attempt, msgspec.json.encode(_Index(keys)))


def _found_of_several(
    store: ObjectStore,
    facts: Facts,
    chunks: Sequence[Sequence[str]],
    groups: Sequence[range],
    of_chunks: Sequence[list[tuple[int, int, _OfChunk]]],
    found: Sequence[Found],
) -> list[Found]:
    """Who turns out to be beyond columns when the usage of all his keys is together: no group sees it alone."""
    if len(groups) == 1:
        return []
    master = facts.master
    turned: list[str] = []
    for chunk, codes in enumerate(chunks):
        several = [code for code in codes if len(master.keys_of(code)) > 1]
        if not several:
            continue
        owners, folded = _folded(store, facts, codes, of_chunks[chunk])
        beyond = set(owners.gather(pieces_beyond(folded)))
        turned += [code for code in several if code in beyond]
    if not turned:
        return []
    dues = [one.due_from for one in found]
    earliest = None if None in dues else min(due for due in dues if due is not None)
    # No group's rows: what these need is read whole.
    return [Found(range(0), (), tuple(turned), tuple(turned), pl.DataFrame(schema=FRESH_SCHEMA), earliest)]


def sliced(store: ObjectStore, facts: Facts, customers: Sequence[str], prefix: str, chunk: int) -> ChunkUsage:
    """A chunk's usage out of what was gathered; `customers` are those of the chunk."""
    index = _read(store, _index(prefix), _Index)
    whole = _read(store, index.chunks[chunk], _Whole)
    keys = [key for _, _, part in whole.parts for key in part.slices] + whole.slices
    _, folded = _folded(store, facts, customers, whole.parts)
    return ChunkUsage(
        events_together([_frame(store, key) for key in keys]), folded, tuple(whole.rest), whole.needed, whole.due_from
    )


def _folded(
    store: ObjectStore, facts: Facts, customers: Sequence[str], parts: Sequence[tuple[int, int, _OfChunk]]
) -> tuple[pl.Series, FoldedUsage]:
    """The customer of each piece of a chunk, and the folded usage of all groups."""
    master = with_cut_of_last_run(facts.master, facts.previous)
    chosen = plain(master, customers, facts.up_to)
    _, of_piece = usage_pieces(master, chosen)
    owners = chosen.contracts["customer"].gather(of_piece["contract"])
    found: list[FoldedUsage] = []
    for first, last, part in parts:
        if not part.pieces:
            continue
        inside = chosen.keys.filter(is_inside(store, facts.tenant_id, chosen.keys["key"], range(first, last + 1)))
        # Pieces follow from master data and customers: of fewer customers they are the same ones, with gaps.
        places = chosen.contracts["owner"].gather(of_piece["contract"]).is_in(inside["owner"].implode()).arg_true()
        assert places.len() == part.pieces, "a group and its chunk see different pieces"
        frames = {name: _frame(store, key) for name, key in part.folded.items()}
        if part.small is not None:
            data = store.get_range(part.small.key, part.small.start, part.small.length)
            assert data is not None, f"{part.small.key} is named by an index and not there"
            frames["small"] = pl.read_parquet(io.BytesIO(data))
        for name, frame in frames.items():
            slot = places.gather(frame["slot"] // SLOT_ROWS).cast(pl.UInt64) * SLOT_ROWS + frame["slot"] % SLOT_ROWS
            frames[name] = frame.with_columns(slot.alias("slot"))
        found.append(FoldedUsage.of_frames(frames))
    return owners, together(found)


# -- Objects -----------------------------------------------------------------------------------------------------------


def forget(store: ObjectStore, prefix: str) -> None:
    """Delete what was gathered, the indexes first, the run's before the groups': nobody finds half of it."""
    keys = list(store.list(prefix))
    for key in sorted(keys, key=lambda key: (key != _index(prefix), not key.startswith(f"{prefix}index"))):
        store.delete(key)


def _put_index(store: ObjectStore, index: str, attempt: str, data: bytes) -> None:
    if not store.create(index, data):
        for key in store.list(attempt):  # another attempt was first: its slices count, ours go
            store.delete(key)


_S = TypeVar("_S", bound=msgspec.Struct)


def _read(store: ObjectStore, key: str, form: type[_S]) -> _S:
    data = store.get(key)
    assert data is not None, "usage is gathered before chunks are computed"
    return msgspec.json.decode(data, type=form)


def _parquet(frame: pl.DataFrame) -> bytes:
    out = io.BytesIO()
    frame.write_parquet(out, compression="lz4", statistics=False)
    return out.getvalue()


def _frame(store: ObjectStore, key: str) -> pl.DataFrame:
    data = store.get(key)
    assert data is not None, f"{key} is named by an index and not there"
    return pl.read_parquet(io.BytesIO(data))
