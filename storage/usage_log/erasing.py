"""Erasing rows from the usage log: lane segments and sealed files are rewritten without what the rows said.

Owns what is left of a row (tenant, partition, position) and the proof in its segment's head: per customer (a keyed
hash), kind, event type and month how many rows there were, the exact sums of what meters read, and the root of a Merkle
tree over the rows as they were. No number is deleted, so no put can fall into a hole, and walkers, cuts and counters
find what they look for. A segment keeps the digest of its first bytes: the chain of a lane stays provable.

What is erased: rows at or below the ids that runs cover, for recovery takes those ids from the runs. Later rows wait
until the lane's next checkpoint. Snapshots hold figures by customer key: they are dropped from the manifest, which
counts the erasures. A lane that was folded before sees that with its next checkpoint: no entry names what it wrote, it
stops and its successor folds from what is left (storage/usage_log/checkpoints.py). So the platform need not be stopped.

Two erasures at once: a segment is replaced only where the bytes lie that were read, so one that slept in between does
not bring back what the other one took.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import uuid4

import polars as pl

from billing.errors import InvalidInput
from billing.typed_columns import NO_READS, Reads, Texts
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.usage_log.clock import Clock, SystemClock
from storage.usage_log.formats import permitted
from storage.usage_log.genesis import open_log
from storage.usage_log.lane import count_lanes, last_number, read_segment, walk
from storage.usage_log.manifest import Manifest, ManifestChain, SealedFile
from storage.usage_log.merging import read_rows
from storage.usage_log.sealed_files import known_reads, write_sealed
from storage.usage_log.segment import (
    ROW_SCHEMA,
    ErasedGroup,
    RowKind,
    StoredSegment,
    encode_erased,
    microseconds_of,
    segment_key,
    with_positions,
)

KEYS_MAX = 1_000  # of one erasure
# Amendments have the time of what they say the event is: of rows that they took usage out of the own group tells.
_COUNTED = frozenset(map(int, (RowKind.USAGE, RowKind.BACKFILLED, RowKind.AMENDED, RowKind.VOIDED)))
_CREDIT = frozenset(
    map(int, (RowKind.WALLET_HELD, RowKind.WALLET_SETTLED, RowKind.WALLET_FREED, RowKind.WALLET_RESTORED))
)
KILLED_US = 86_400_000_000  # a pass that began so long ago does not go on any more: a day


@dataclass(frozen=True)
class Erasure:
    """Rows of a tenant: of these customer keys (None: of all), with `time` before a moment (None: of all times).

    `rule` is kept beside the proof: a short word for the law or the wish, never anything about the person.
    With a moment only usage goes; without one everything that names a key goes, decisions and corrections too.
    """

    tenant_id: str
    rule: str
    keys: tuple[str, ...] | None = None
    before: datetime | None = None
    whole: bool = False  # everything of the tenant

    def __post_init__(self) -> None:
        if self.keys is not None and not 0 < len(self.keys) <= KEYS_MAX:
            raise InvalidInput(f"an erasure names 1 to {KEYS_MAX} customer keys, or none at all")
        if self.keys is None and self.before is None and not self.whole:
            raise InvalidInput("an erasure of all customers has a time before which their usage goes")
        if not self.rule or len(self.rule) > 100:
            raise InvalidInput("an erasure has a rule of 1 to 100 characters")

    def chosen(self) -> pl.Expr:
        """Which rows of the log go."""
        wanted = (pl.col("tenant") == self.tenant_id) & (pl.col("kind") != int(RowKind.ERASED))
        if self.keys is not None:
            named = pl.col("customer").is_in(list(self.keys))
            if self.before is None:  # a row of another key may name this one: an amendment that moved an event
                quoted = [json.dumps(key, ensure_ascii=ascii_)[1:-1] for key in self.keys for ascii_ in (True, False)]
                named |= pl.col("detail").str.contains_any(sorted({f'"{text}"' for text in quoted})).fill_null(False)
            wanted &= named
        if self.before is not None:
            wanted &= pl.col("kind").is_in([int(RowKind.USAGE), int(RowKind.BACKFILLED)])
            wanted &= pl.col("time") < self.before
        return wanted


@dataclass(frozen=True)
class Erased:
    """What one pass did. `waiting` are rows of lanes above their last checkpoint, and `snapshots` those it dropped."""

    rows: int
    segments: int
    files: int
    snapshots: int
    waiting: int


def look(store: ObjectStore, erasure: Erasure) -> int:
    """How many rows of segments an erasure would take now; changes nothing."""
    found = 0
    for lane in range(count_lanes(store)):
        for segment in walk(store, lane, 0):
            if erasure.tenant_id in segment.head.counters:
                found += segment.rows().filter(erasure.chosen()).height
    return found


def note(store: ObjectStore, erasure: Erasure, done: Erased, by: str, clock: Clock | None = None) -> str:
    """Leave a trail of a pass: who, when, under which rule, how many rows. Its key."""
    seed, now_us = open_log(store).seed, (clock or SystemClock()).now_us()
    keys = None if erasure.keys is None else [pseudonym(seed, erasure.tenant_id, key) for key in erasure.keys]
    form = {
        "at_us": now_us,
        "by": by,
        "tenant": erasure.tenant_id,
        "rule": erasure.rule,
        "customers": keys,
        "before": None if erasure.before is None else erasure.before.isoformat(),
        **vars(done),
    }
    key = f"log/erasing/trail/{erasure.tenant_id}/{now_us}-{uuid4().hex}.json"
    store.create(key, json.dumps(form).encode())
    return key


def erase(store: ObjectStore, erasure: Erasure, clock: Clock | None = None) -> Erased:
    """Rewrite every segment and sealed file that has such rows. May be repeated, and killed anywhere.

    Only a pass that finds nothing says that all is gone: a sealer may have read rows just before they went. Raises
    InvalidInput while an older version that cannot read the result still runs.
    """
    time = clock or SystemClock()
    allowed = permitted(store)
    if not (allowed.allows("segment", 2) and allowed.allows("manifest", 3)):
        raise InvalidInput("not every reader knows segments with erased rows yet: see `cloudbilling formats`")
    seed = open_log(store).seed
    chain = ManifestChain(store, time)
    reads = known_reads(MasterChain(store), [erasure.tenant_id]).get(erasure.tenant_id, NO_READS)
    manifest = chain.newest()
    going = _going(erasure.tenant_id)
    began = time.now_us()
    own = f"{going}{began:020}-{uuid4().hex}.json"  # of this pass: others may be under way, or have been killed
    rows = segments = waiting = 0
    for lane in range(count_lanes(store)):
        covered = manifest.ids_covered(lane)
        end = last_number(store, lane, max(covered, manifest.sealed_to(lane), -1))
        for number in range(end + 1):
            segment = read_segment(store, lane, number)
            if segment is None or erasure.tenant_id not in segment.head.counters:
                continue
            gone = segment.rows().filter(erasure.chosen()).height
            if not gone:
                continue
            if number > covered:
                waiting += gone
                continue
            if not rows:
                store.put(own, b"{}")
            data = without(segment, erasure, seed, reads, time.now_us())
            if not store.replace(segment_key(lane, number), segment.data, data):
                waiting += gone  # another erasure was faster: these rows are the next pass's
                continue
            rows, segments = rows + gone, segments + 1
    files = sum(_rewrite_sealed(store, chain, file, erasure) for file in chain.newest().files)
    # Of a pass that was killed the snapshots are still named, whatever this one found.
    marks = list(store.list(going))
    snapshots = drop_snapshots(chain) if rows or files or marks else 0
    for mark in marks:
        if mark == own or int(mark.removeprefix(going)[:20]) < began - KILLED_US:
            store.delete(mark)
    return Erased(rows, segments, files, snapshots, waiting)


@dataclass
class Gone:
    """What was erased of one customer key: months (UTC, `2026-05`) of rows that counted as usage, and records of wallet
    credit; of each the time (microseconds) and the rule of the last erasure."""

    months: dict[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])
    credit: tuple[int, str] | None = None


def ever_erased(store: ObjectStore, tenant_id: str) -> bool:
    """Whether rows of a tenant may have been erased: False says that none were."""
    # A pass that was killed before it counted itself in the manifest left its mark.
    return ManifestChain(store).newest().erasures > 0 or any(store.list(_going(tenant_id)))


def gone_of(store: ObjectStore, tenant_id: str, keys: Iterable[str]) -> dict[str, Gone]:
    """Which of these customer keys have rows that were erased, and of what. Reads every segment."""
    seed = open_log(store).seed
    named = {pseudonym(seed, tenant_id, key): key for key in keys}
    found: dict[str, Gone] = {}
    for lane in range(count_lanes(store)):
        for segment in walk(store, lane, 0):
            for group in segment.head.erased:
                key = named.get(group.customer)
                if key is None or group.tenant != tenant_id:
                    continue
                gone, said = found.setdefault(key, Gone()), (group.erased_us, group.rule)
                if group.kind in _COUNTED:
                    gone.months[group.month] = max(gone.months.get(group.month, said), said)
                elif group.kind in _CREDIT:
                    gone.credit = max(gone.credit or said, said)
    return found


def without(segment: StoredSegment, erasure: Erasure, seed: int, reads: Reads, now_us: int) -> bytes:
    """The bytes of a segment after an erasure."""
    rows = segment.rows()
    placed = with_positions(rows, segment.head).filter(erasure.chosen())
    groups = tuple(_groups(placed, erasure, seed, reads, now_us))
    head = replace(segment.head, erased=(*segment.head.erased, *groups), digest=segment.digest)
    return encode_erased(head, blanked(rows, erasure).select(ROW_SCHEMA.names()))


def blanked(rows: pl.DataFrame, erasure: Erasure) -> pl.DataFrame:
    """Rows of which the chosen ones say nothing any more but where they lie."""
    gone = rows.select(erasure.chosen().alias("gone"))["gone"]
    empty = {
        "kind": pl.lit(int(RowKind.ERASED), pl.UInt8),
        **{name: pl.lit("") for name in ("source", "id", "type", "customer", "data")},
        "subscription": pl.lit(None, pl.String),
        "time": pl.lit(0).cast(ROW_SCHEMA["time"]),
        "detail": pl.lit(None, pl.String),
    }
    return rows.with_columns(
        pl.when(pl.lit(gone)).then(value).otherwise(pl.col(name)).cast(ROW_SCHEMA[name]).alias(name)
        for name, value in empty.items()
    )


def pseudonym(seed: int, tenant_id: str, customer: str) -> str:
    """What stands for a customer key in a proof."""
    return _keyed(seed, json.dumps([tenant_id, customer]).encode())


def merkle_root(leaves: Sequence[str]) -> str:
    """Of leaves in the order of their positions; one that has no partner goes up as it is."""
    level = list(leaves)
    while len(level) > 1:
        pairs = [level[place : place + 2] for place in range(0, len(level), 2)]
        level = [_node(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0]


def leaf(seed: int, row: Mapping[str, object]) -> str:
    """Of one row with its position. Keyed: who guesses what a row said cannot try it here."""
    names = ("lane", "number", "row", "kind", "source", "id", "type", "customer", "subscription", "data", "detail")
    time = row["time"]
    assert isinstance(time, datetime)
    return _keyed(seed, json.dumps([*(row[name] for name in names), microseconds_of(time)]).encode())


def drop_snapshots(chain: ManifestChain) -> int:
    """Take all snapshots out of the manifest: they are announced and go. Lanes then recover from their rows alone, and
    one that holds what it folded before in memory does not keep it. How many there were."""
    dropped = 0

    def change(base: Manifest) -> Manifest:
        nonlocal dropped
        dropped = len(base.snapshots)
        return replace(base, snapshots={}, erasures=base.erasures + 1)

    chain.append(change)
    return dropped


def _groups(placed: pl.DataFrame, erasure: Erasure, seed: int, reads: Reads, now_us: int) -> Iterator[ErasedGroup]:
    month = pl.col("time").dt.strftime("%Y-%m").alias("month")
    by = ("customer", "kind", "type", "month")
    parts = placed.with_columns(month).partition_by(*by, as_dict=True, maintain_order=True)
    for (customer, kind, event_type, of_month), part in parts.items():
        numbers = sorted(reads.numbers.get(str(event_type), frozenset())) if int(kind) == int(RowKind.USAGE) else []
        texts = Texts(part, numbers)
        yield ErasedGroup(
            tenant=erasure.tenant_id,
            customer=pseudonym(seed, erasure.tenant_id, str(customer)),
            kind=int(kind),
            type=_said(seed, erasure.tenant_id, str(event_type), reads),
            month=str(of_month),
            rows=part.height,
            sums={name: str(texts.number(name).sum()) for name in numbers},
            root=merkle_root([leaf(seed, row) for row in part.iter_rows(named=True)]),
            rule=erasure.rule,
            erased_us=now_us,
        )


def _said(seed: int, tenant_id: str, event_type: str, reads: Reads) -> str:
    """A type that a meter reads is the catalog's; any other is whatever the sender wrote, so only its hash stays."""
    known = not event_type or event_type in reads.numbers or event_type in reads.texts
    return event_type if known else pseudonym(seed, tenant_id, event_type)


def _rewrite_sealed(store: ObjectStore, chain: ManifestChain, file: SealedFile, erasure: Erasure) -> bool:
    """Whether a file had such rows; then a new one stands in its place, and it is announced."""
    if erasure.tenant_id not in file.tenants:
        return False
    columns = ["tenant", "kind", "customer", "detail", "time"]
    path = store.local_path(file.key)
    lazy = pl.scan_parquet(path if path is not None else io.BytesIO(store.get(file.key) or b""))
    if not lazy.select(columns).filter(erasure.chosen()).head(1).collect().height:
        return False
    rows = blanked(read_rows(store, file), erasure)
    reads = known_reads(MasterChain(store), list(file.tenants))
    written = list(write_sealed(store, rows, reads))

    def change(base: Manifest) -> Manifest | None:
        if file.key not in {one.key for one in base.files}:
            return None  # merged meanwhile: the next pass finds the rows in the merged file
        return replace(base, files=(*(one for one in base.files if one.key != file.key), *written))

    entry = chain.append(change)
    return all(one.key in entry.named() for one in written)


def _going(tenant_id: str) -> str:
    """Where passes over a tenant's rows leave their marks while they are under way."""
    return f"log/erasing/going/{tenant_id}/"


def _node(left: str, right: str) -> str:
    return hashlib.blake2b(f"{left}{right}".encode(), digest_size=16).hexdigest()


def _keyed(seed: int, data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16, key=seed.to_bytes(8, "little")).hexdigest()
