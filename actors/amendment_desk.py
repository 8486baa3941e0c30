"""Amending events over any router: look an event up with its trail, decide, and write what follows elsewhere.

Owns the order: the mark that the tenant has amendments, the decision in the home lane of the key that the event was
sent with, then the rows in other partitions. Whoever crashes in between leaves an amendment that is pending and does
not count; `finish` completes it, and so does the next call.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from actors.amendments import AMEND, AMEND_PARTS, ITEMS_MAX, as_list, part_to_form
from actors.router import UsageRouter
from billing.amendments import ID_REUSED, Amendment, EventName, EventState, amendment_of, rows_of
from billing.errors import BillingError
from storage.usage_log.backfills import scan_sent
from storage.usage_log.counting import amendments_at, mark_amended
from storage.usage_log.reader import SCAN_SCHEMA, UsageLogReader
from storage.usage_log.segment import RowKind, instant_of, microseconds_of
from storage.usage_log.sizes import DECISION_BYTES_MAX

LOG = logging.getLogger("cloudbilling.amendments")
_BEHIND_ALL = (1 << 62) - 1  # a number behind every cut: how an amendment that is not written yet is judged


@dataclass(frozen=True)
class EventNow:
    """An event as it counts, and how it came to that."""

    event: EventName
    sent: EventState
    state: EventState | None  # None: voided
    trail: tuple[Amendment, ...] = ()  # in their order, pending ones included
    pending: frozenset[str] = frozenset()  # ids of amendments of which a row is missing
    lane: int = 0  # of the row that gave it its state
    number: int = 0
    counts_late: bool = False

    @property
    def nth(self) -> int:
        return self.trail[-1].nth if self.trail else 0


@dataclass(frozen=True)
class Outcome:
    """What became of one amendment: `decided` is None where it was refused, `detail` says why."""

    asked: Amendment
    decided: Amendment | None
    detail: str = ""


@dataclass(frozen=True)
class Lookup:
    """Events by (source, id); one id under several customer keys gives several."""

    events: Mapping[tuple[str, str], tuple[EventNow, ...]] = field(default_factory=dict)

    def of(self, source: str, id_: str, key: str | None) -> list[EventNow]:
        found = self.events.get((source, id_), ())
        return [one for one in found if key is None or one.event.key == key]


class AmendmentDesk:
    """For routes and for the pass before a bill run is approved."""

    def __init__(self, router: UsageRouter, reader: UsageLogReader) -> None:
        self._router = router
        self._reader = reader

    def look(self, tenant_id: str, wanted: Iterable[tuple[str, str]]) -> Lookup:
        """Events as they were sent and as they count now. Reads the tenant's log."""
        names = pl.DataFrame(list(dict.fromkeys(wanted)), schema={"source": pl.String, "id": pl.String}, orient="row")
        ids = names["id"].to_list()
        cut = self._reader.now()
        frames = [
            _in_own_place(frame.join(names, on=["source", "id"], how="semi"))
            for frame in scan_sent(self._reader, tenant_id, cut, ids=ids)
        ]
        sent = pl.concat(frames) if frames else pl.DataFrame(schema=_SENT_SCHEMA)
        amended, rows = amendments_at(self._reader, tenant_id, cut)
        of_these = rows.filter(pl.col("detail").str.json_path_match("$.event.id").is_in(ids))
        trails: dict[tuple[str, str, str], list[Amendment]] = {}
        for id_, detail in of_these.select("id", "detail").iter_rows():
            amendment = amendment_of(detail)
            if amendment.id == id_:  # the decision; what follows from it says the same
                trails.setdefault(amendment.event.identity, []).append(amendment)
        voided = set(amended.touched.filter("voided").select("key", "source", "id").iter_rows())
        first = ["first_lane", "first_number", "first_row"]
        states = {
            (row["first_lane"], row["first_number"], row["first_row"]): row
            for row in amended.events.join(
                sent.select("lane", "number", "row"), left_on=first, right_on=["lane", "number", "row"], how="semi"
            ).iter_rows(named=True)
        }
        pending = frozenset(amended.pending)
        found: dict[tuple[str, str], list[EventNow]] = {}
        for row in sent.sort("received_at", "lane", "number", "row").iter_rows(named=True):
            event = EventName(
                row["customer"], row["source"], row["id"], row["lane"], row["number"], row["row"],
                microseconds_of(row["received_at"]), row["backfill"],
            )  # fmt: skip
            trail = tuple(sorted(trails.get(event.identity, ()), key=lambda one: one.nth))
            begins = {"lane": row["at_lane"], "number": row["at_number"], "counts_late": row["counts_late"]}
            counted = states.get((row["lane"], row["number"], row["row"]), row | begins)
            found.setdefault((row["source"], row["id"]), []).append(
                EventNow(
                    event=event,
                    sent=_state_of(row),
                    state=None if event.identity in voided else _state_of(counted),
                    trail=trail,
                    pending=frozenset(one.id for one in trail) & pending,
                    lane=counted["lane"],
                    number=counted["number"],
                    counts_late=counted.get("counts_late", False),
                )
            )
        return Lookup({name: tuple(events) for name, events in found.items()})

    async def decide(self, tenant_id: str, amendments: Sequence[Amendment]) -> list[Outcome]:
        """Decide amendments and write all their rows; returns when all are durable, in the order given."""
        if not amendments:
            return []
        await asyncio.to_thread(mark_amended, self._reader.store, tenant_id)
        lanes = self._router.lanes_of(tenant_id, [one.event.key for one in amendments])
        texts = [json.dumps(one.to_form()) for one in amendments]
        outcomes: dict[int, Outcome] = {}
        for places in _batches(lanes, texts):
            asked = [amendments[place] for place in places]
            payload = as_list([texts[place] for place in places])
            data = await self._router.decide(tenant_id, asked[0].event.key, AMEND, payload)
            for place, one, answer in zip(places, asked, json.loads(data), strict=True):
                if "decided" in answer:
                    outcomes[place] = Outcome(one, Amendment.from_form(answer["decided"]))
                elif "repeated" in answer:
                    outcomes[place] = Outcome(one, one, "repeated")
                else:
                    outcomes[place] = Outcome(one, None, answer["refused"])
        repeated = any(outcome.detail == "repeated" for outcome in outcomes.values())
        decided = [outcome.decided for outcome in outcomes.values() if outcome.decided and not outcome.detail]
        await self._follow(tenant_id, decided)
        if repeated:
            await self.finish(tenant_id)
        return [outcomes[place] for place in range(len(amendments))]

    async def finish(self, tenant_id: str) -> list[Amendment]:
        """Complete amendments of which a row is missing; those that cannot be completed, which stay pending.

        They stop no others and no caller. A lane that is away does: that passes.
        """
        pending = await asyncio.to_thread(self._pending, tenant_id)
        if not pending:
            return []
        if not await self._can_follow(tenant_id, pending):
            for one in pending:
                await self._can_follow(tenant_id, [one])
        still = set(await asyncio.to_thread(self._pending, tenant_id))
        return [one for one in pending if one in still]

    async def void_reused(self, tenant_id: str, names: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        """Of events that came under several customer keys let the first that is not voided count; void the others.

        An event that somebody changed since is left as it is. Names all that were voided for this, now or before.
        """
        found = await asyncio.to_thread(self.look, tenant_id, names)
        wanted: list[Amendment] = []
        done: list[EventNow] = []
        for source, id_ in names:
            events = found.of(source, id_, None)
            done += [one for one in events if one.state is None and one.trail[-1].why == ID_REUSED]
            alive = [one for one in events if one.state is not None]
            wanted += [_reused(one) for one in alive[1:] if not one.trail]
        outcomes = await self.decide(tenant_id, wanted)
        voided = [one.event for one in done] + [one.asked.event for one in outcomes if one.decided is not None]
        return [{"source": one.source, "id": one.id, "customer": one.key} for one in voided]

    def _pending(self, tenant_id: str) -> list[Amendment]:
        amended, rows = amendments_at(self._reader, tenant_id, self._reader.now())
        named = pl.col("detail").str.json_path_match("$.amendment").is_in(list(amended.pending))
        found = [(id_, amendment_of(detail)) for id_, detail in rows.filter(named).select("id", "detail").iter_rows()]
        there = Counter(one for _, one in found)  # an id may name amendments of events of several keys
        return [one for id_, one in found if id_ == one.id and there[one] < len(rows_of(one))]

    async def _can_follow(self, tenant_id: str, decided: Sequence[Amendment]) -> bool:
        try:
            await self._follow(tenant_id, decided)
        except BillingError as error:
            if error.retryable:
                raise
            LOG.warning("amendments %s stay pending: %s", ", ".join(one.id for one in decided[:10]), error.detail)
            return False
        return True

    async def _follow(self, tenant_id: str, decided: Sequence[Amendment]) -> None:
        parts = [row for one in decided for row in rows_of(one)[1:]]
        lanes = self._router.lanes_of(tenant_id, [row.customer for row in parts])
        texts = [json.dumps(part_to_form(row)) for row in parts]
        for places in _batches(lanes, texts):
            payload = as_list([texts[place] for place in places])
            await self._router.decide(tenant_id, parts[places[0]].customer, AMEND_PARTS, payload)


def _reused(one: EventNow) -> Amendment:
    """The same id each time, so that a pass that begins again voids nothing twice."""
    return Amendment(
        id=f"{ID_REUSED}:{one.event.lane}:{one.event.number}:{one.event.row}",
        nth=1,
        event=one.event,
        before=one.sent,
        after=None,
        why=ID_REUSED,
        by="cloudbilling",
        at_us=0,
        counts_late=False,
    )


def as_frame(events: Sequence[EventNow], states: Sequence[EventState] | None = None) -> pl.DataFrame:
    """Events as `billing.lateness.reasons_of` judges them: as they count now, or (`states`) once they are changed."""
    chosen = [one.state or one.sent for one in events] if states is None else states
    return pl.DataFrame(
        {
            "source": [one.event.source for one in events],
            "id": [one.event.id for one in events],
            "type": [state.type for state in chosen],
            "customer": [state.customer for state in chosen],
            "subscription": [state.subscription for state in chosen],
            "time": [instant_of(state.time_us) for state in chosen],
            "data": [state.data for state in chosen],
            "kind": [int(RowKind.USAGE)] * len(events),
            "lane": [one.lane for one in events],
            "number": [one.number if states is None else _BEHIND_ALL for one in events],
            "row": [one.event.row for one in events],
            "received_at": [instant_of(one.event.received_us) for one in events],
        },
        schema=SCAN_SCHEMA,
    ).with_columns(counts_late=pl.Series([one.counts_late for one in events], dtype=pl.Boolean))


_SENT_SCHEMA = pl.Schema(
    {
        **SCAN_SCHEMA,
        "at_lane": pl.UInt16,  # from where on it counts: of a backfill's events the record that committed it
        "at_number": pl.UInt64,
        "counts_late": pl.Boolean,
        "backfill": pl.String,
    }
)


def _in_own_place(sent: pl.DataFrame) -> pl.DataFrame:
    begins = sent.with_columns(at_lane="lane", at_number="number")
    if "backfill" in sent.columns:
        own = [pl.col(f"first_{name}").alias(name) for name in ("lane", "number", "row", "received_at")]
        return begins.with_columns(*own).select(_SENT_SCHEMA.names())
    plain = begins.with_columns(pl.lit(False).alias("counts_late"), pl.lit("").alias("backfill"))
    return plain.select(_SENT_SCHEMA.names())


def _state_of(row: Mapping[str, Any]) -> EventState:
    return EventState(row["customer"], row["type"], row["subscription"], microseconds_of(row["time"]), row["data"])


def _batches(lanes: Sequence[int], texts: Sequence[str]) -> list[list[int]]:
    """Places by their lane, in batches of what one decision takes."""
    batches: list[list[int]] = []
    filling: dict[int, tuple[list[int], int]] = {}  # lane -> its last batch, bytes of that
    for place, (lane, text) in enumerate(zip(lanes, texts, strict=True)):
        batch, size = filling.get(lane, ([], 0))
        if not batch or len(batch) == ITEMS_MAX or size + len(text) > DECISION_BYTES_MAX:
            batch, size = [], 0
            batches.append(batch)
        batch.append(place)
        filling[lane] = batch, size + len(text)
    return batches
