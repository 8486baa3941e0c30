"""Backfills in the log: which of them count at a cut, their events, and the ids that their rows take.

An event of a backfill is a row of its own kind; it counts where the record that commits the backfill is in the cut and
none that reverts it. For all that goes by position (what is new to a bill run, what is late) its position is that
record's: it came when it began to count. Who has no backfills pays one look into the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt
import polars as pl

from billing.amendments import ORIGIN_SCHEMA, fold_amendments
from billing.backfills import HOME_KEY, SOURCE, Backfill, after_step
from billing.typed_columns import Reads
from storage.object_store import ObjectStore
from storage.usage_log.genesis import Genesis, open_log
from storage.usage_log.partitions import EventIds, event_ids, partition_of
from storage.usage_log.reader import SCAN_SCHEMA, Cut, UsageLogReader
from storage.usage_log.segment import RowKind, microseconds_of

_NAME, _AGAIN = (pl.col("detail").str.json_path_match(f"$.{name}") for name in ("backfill", "again"))
_STEPS = [int(kind) for kind in (RowKind.BACKFILL_COMMITTED, RowKind.BACKFILL_REVERTED)]
BACKFILLED_SCHEMA = pl.Schema({**SCAN_SCHEMA, **ORIGIN_SCHEMA, "backfill": pl.String})


def mark_backfilled(store: ObjectStore, tenant_id: str) -> None:
    """Note that a tenant has backfills, before the first is put: readers look for it."""
    store.create(_mark(tenant_id), b"{}")


@dataclass(frozen=True)
class BackfillsAt:
    """The backfills that count at a cut, by name, and those that did until they were reverted."""

    counting: dict[str, Backfill] = field(default_factory=dict)
    reverted: dict[str, Backfill] = field(default_factory=dict)

    @property
    def events(self) -> int:
        """How many events count by them, as their lanes' writers counted."""
        return sum(one.events for one in self.counting.values())


NO_BACKFILLS = BackfillsAt()


def backfills_at(reader: UsageLogReader, tenant_id: str, cut: Cut) -> BackfillsAt:
    """What the records say that are in a cut."""
    if not reader.store.exists(_mark(tenant_id)):
        return NO_BACKFILLS
    home = partition_of(open_log(reader.store).seed, tenant_id, HOME_KEY)
    condition = pl.col("kind").is_in(_STEPS) & (pl.col("customer") == HOME_KEY)
    frames = list(reader.scan_rows(tenant_id, cut, condition, partitions=[home], changes_only=True))
    if not frames:
        return NO_BACKFILLS
    # A partition's rows in the order of its history: a move never takes it to a lane whose log time is behind.
    rows = pl.concat(frames).sort("received_at", "lane", "number", "row")
    counting: dict[str, Backfill] = {}
    reverted: dict[str, Backfill] = {}
    for received, lane, number, detail in rows.select("received_at", "lane", "number", "detail").iter_rows():
        form = json.loads(detail)
        name = form["backfill"]
        known = counting.get(name) or Backfill(name, "closing", 0, "")
        now = after_step(known, name, form, microseconds_of(received), lane, number)
        if now.state == "committed":
            counting[name] = now
        elif name in counting:
            del counting[name]
            reverted[name] = now
    return BackfillsAt(counting, reverted)


def changed_backfills(reader: UsageLogReader, tenant_id: str, since: Cut, cut: Cut) -> frozenset[str]:
    """The backfills whose events count at one of two cuts and not at the other."""
    now = backfills_at(reader, tenant_id, cut)
    if not now.counting and not now.reverted:
        return frozenset()
    before = backfills_at(reader, tenant_id, since)
    return frozenset(now.counting.keys() ^ before.counting.keys())


def scan_backfilled(
    reader: UsageLogReader,
    tenant_id: str,
    cut: Cut,
    *,
    since: Cut | None = None,
    known: BackfillsAt | None = None,
    customers: Sequence[str] | None = None,
    partitions: Sequence[int] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    ids: Sequence[str] | None = None,
) -> Iterator[pl.DataFrame]:
    """Events of backfills that count at a cut (with `since`: and did not at that one): frames of BACKFILLED_SCHEMA.

    lane and number are those of the record that made them count, `first_*` say where they lie.
    """
    at = backfills_at(reader, tenant_id, cut) if known is None else known
    chosen = at.counting
    if since is not None and chosen:
        before = backfills_at(reader, tenant_id, since).counting
        chosen = {name: one for name, one in chosen.items() if name not in before}
    if not chosen:
        return
    condition = is_of(chosen)
    if customers is not None:
        condition &= pl.col("customer").is_in(list(customers))
    if start is not None:
        condition &= pl.col("time") >= start
    if end is not None:
        condition &= pl.col("time") < end
    if ids is not None:
        condition &= pl.col("id").is_in(list(ids))
    places = pl.DataFrame(
        {
            "backfill": list(chosen),
            "at_lane": [one.lane for one in chosen.values()],
            "at_number": [one.number for one in chosen.values()],
        },
        schema={"backfill": pl.String, "at_lane": pl.UInt16, "at_number": pl.UInt64},
    )
    # What came after a lane's share (only a fault could write it) does not count.
    last = pl.DataFrame(
        [(name, lane, share.number) for name, one in chosen.items() for lane, share in one.shares.items()],
        schema={"backfill": pl.String, "lane": pl.UInt16, "last": pl.UInt64},
        orient="row",
    )
    for frame in reader.scan_rows(tenant_id, cut, condition, partitions=partitions):
        named = frame.with_columns(backfill=_NAME)
        placed = named.join(places, on="backfill", maintain_order="left")
        placed = placed.join(last, on=["backfill", "lane"], maintain_order="left")
        yield (
            placed.filter(pl.col("number") <= pl.col("last"))
            .select(
                pl.exclude("kind", "lane", "number", "detail", "at_lane", "at_number", "last"),
                pl.lit(int(RowKind.USAGE), pl.UInt8).alias("kind"),
                pl.col("at_lane").alias("lane"),
                pl.col("at_number").alias("number"),
                pl.lit(True).alias("counts_late"),  # somebody decided that it counts
                first_lane="lane",
                first_number="number",
                first_row="row",
                first_received_at="received_at",
            )
            .select(BACKFILLED_SCHEMA.names())
        )


def scan_sent(
    reader: UsageLogReader,
    tenant_id: str,
    cut: Cut,
    *,
    since: Cut | None = None,
    customers: Sequence[str] | None = None,
    partitions: Sequence[int] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    ids: Sequence[str] | None = None,
    typed: bool = False,
    narrow: Reads | None = None,
) -> Iterator[pl.DataFrame]:
    """All events that count at a cut but for amendments, as they were sent: SCAN_SCHEMA, or BACKFILLED_SCHEMA."""
    yield from reader.scan(
        tenant_id,
        cut,
        since=since,
        customers=customers,
        partitions=partitions,
        start=start,
        end=end,
        ids=ids,
        typed=typed,
        narrow=narrow,
    )
    yield from scan_backfilled(
        reader, tenant_id, cut, since=since, customers=customers, partitions=partitions, start=start, end=end, ids=ids
    )


def earliest_backfilled(
    reader: UsageLogReader, tenant_id: str, since: Cut, cut: Cut, keys: Sequence[str]
) -> datetime | None:
    """The earliest time from which on backfills that came or went between two cuts change what counts of these keys."""
    changed = changed_backfills(reader, tenant_id, since, cut)
    if not changed:
        return None
    times: list[datetime] = []
    condition = is_of(sorted(changed)) & pl.col("customer").is_in(list(keys))
    for frame in reader.scan_rows(tenant_id, cut, condition):
        earliest = frame["time"].min()
        assert isinstance(earliest, datetime)
        times.append(earliest)
    # An event may have been amended to another key or time, which the reverting takes back as well.
    of_these = pl.col("detail").str.json_path_match("$.event.backfill").is_in(sorted(changed))
    for frame in reader.scan_changes(tenant_id, cut):
        moved = fold_amendments(frame.filter(of_these)).times.filter(pl.col("key").is_in(list(keys)))
        earliest = moved["time"].min()
        if isinstance(earliest, datetime):
            times.append(earliest)
    return min(times, default=None)


def scan_waiting(reader: UsageLogReader, tenant_id: str, cut: Cut, name: str) -> Iterator[pl.DataFrame]:
    """The events of one backfill whether they count or not, in their own places: frames of SCAN_SCHEMA."""
    for frame in reader.scan_rows(tenant_id, cut, is_of([name])):
        yield frame.select(SCAN_SCHEMA.names())


def is_of(names: Sequence[str] | dict[str, Backfill]) -> pl.Expr:
    """Which rows are events of these backfills."""
    return (pl.col("kind") == int(RowKind.BACKFILLED)) & _NAME.is_in(list(names))


# -- Ids ---------------------------------------------------------------------------------------------------------------


def ids_of_rows(
    genesis: Genesis, tenants: str | pl.Series, rows: pl.DataFrame, partitions: npt.NDArray[np.uint8]
) -> EventIds:
    """The ids that rows of the log take: one each; an event of a backfill takes more than its own.

    A second one says that this backfill has it. One that was sent again, after another backfill that had it was
    reverted, takes no new id of its own, but one that says that it was taken over from there.
    """
    kinds = rows["kind"].to_numpy()
    is_backfilled = kinds == int(RowKind.BACKFILLED)
    if not is_backfilled.any():
        return event_ids(genesis.seed, tenants, rows, partitions, genesis.ids)
    names = rows.select(_NAME.alias("backfill"), _AGAIN.alias("again"))
    is_again = names["again"].is_not_null().to_numpy() & is_backfilled

    def some(chosen: npt.NDArray[np.bool_]) -> tuple[str | pl.Series, pl.DataFrame, npt.NDArray[np.uint8]]:
        mask = pl.Series(chosen)
        return tenants if isinstance(tenants, str) else tenants.filter(mask), rows.filter(mask), partitions[chosen]

    found: list[EventIds] = []
    if not is_again.all():
        found.append(event_ids(genesis.seed, *some(~is_again), genesis.ids))
    for chosen, column, what in ((is_backfilled, "backfill", "of"), (is_again, "again", "again")):
        if chosen.any():
            tenant, part, lying = some(chosen)
            marked = _marked(part, names[column].filter(pl.Series(chosen)), what)
            found.append(event_ids(genesis.seed, tenant, marked, lying, genesis.ids))
    return EventIds(np.concatenate([one.high for one in found]), np.concatenate([one.low for one in found]))


def marker_ids(
    genesis: Genesis, tenant_id: str, events: pl.DataFrame, partitions: npt.NDArray[np.uint8], name: str, *, again: bool
) -> EventIds:
    """The ids that say that a backfill has these events, or (`again`) that they were taken over from it."""
    marked = _marked(events, pl.repeat(name, events.height, dtype=pl.String, eager=True), "again" if again else "of")
    return event_ids(genesis.seed, tenant_id, marked, partitions, genesis.ids)


def _marked(events: pl.DataFrame, names: pl.Series, what: str) -> pl.DataFrame:
    # No sender may use the source, and a name holds no colon: these ids meet no other.
    source = pl.concat_str([pl.lit(f"{SOURCE}:{what}:"), names, pl.lit(":"), pl.col("source")]).alias("source")
    return events.select("customer", source, "id")


def _mark(tenant_id: str) -> str:
    return f"log/backfills/{tenant_id}.json"
