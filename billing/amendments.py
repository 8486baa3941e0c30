"""Amended and voided events: what rows of the log change about events, and which state of an event counts.

Owns the form of such a row's `detail`, the rows that one amendment consists of, and the fold: usage rows and the rows
that change them in, events as they count out. The newest amendment that is complete decides; an event keeps its source
and id for order and display, whatever is changed about it. No I/O; the rules are in docs/usage-log.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from billing.usage import EVENT_SCHEMA, INSTANT

SOURCE = "cloudbilling:amendment"  # of the rows' own ids; no sender may use it
REASON_LENGTH_MAX = 500
ID_REUSED = "id_reused"  # the reason of the pass that finds one id under two customer keys

What = Literal["amend", "void"]
IDENTITY = ("key", "source", "id")  # ids are unique within a customer key


@dataclass(frozen=True)
class EventState:
    """What can be changed about an event."""

    customer: str
    type: str
    subscription: str | None
    time_us: int
    data: str

    def to_form(self) -> dict[str, Any]:
        return {
            "customer": self.customer,
            "type": self.type,
            "subscription": self.subscription,
            "time_us": self.time_us,
            "data": self.data,
        }

    @classmethod
    def from_form(cls, form: Mapping[str, Any]) -> EventState:
        return cls(form["customer"], form["type"], form["subscription"], form["time_us"], form["data"])


@dataclass(frozen=True)
class EventName:
    """The event as it was sent: its names for ever, and where its row lies."""

    key: str
    source: str
    id: str
    lane: int
    number: int
    row: int
    received_us: int
    backfill: str = ""  # that it was sent under; its amendments count while that does

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.key, self.source, self.id

    def to_form(self) -> dict[str, Any]:
        form = {
            "key": self.key,
            "source": self.source,
            "id": self.id,
            "lane": self.lane,
            "number": self.number,
            "row": self.row,
            "received_us": self.received_us,
        }
        return form | ({"backfill": self.backfill} if self.backfill else {})

    @classmethod
    def from_form(cls, form: Mapping[str, Any]) -> EventName:
        names = ("key", "source", "id", "lane", "number", "row", "received_us")
        return cls(*(form[name] for name in names), backfill=form.get("backfill", ""))


@dataclass(frozen=True)
class Amendment:
    """One change of one event: the `nth` of this event, decided in the lane of the key that it was sent with."""

    id: str
    nth: int
    event: EventName
    before: EventState
    after: EventState | None  # None: voided
    why: str
    by: str
    at_us: int
    counts_late: bool  # it counts, even where the tenant rejects late usage
    holder: str = ""  # the key that had the event before; "" while that is the key it was sent with

    @property
    def what(self) -> What:
        return "void" if self.after is None else "amend"

    def to_form(self) -> dict[str, Any]:
        return {
            "amendment": self.id,
            "nth": self.nth,
            "what": self.what,
            "event": self.event.to_form(),
            "before": self.before.to_form(),
            "after": None if self.after is None else self.after.to_form(),
            "why": self.why,
            "by": self.by,
            "at_us": self.at_us,
            "counts_late": self.counts_late,
            "holder": self.holder,
        }

    @classmethod
    def from_form(cls, form: Mapping[str, Any]) -> Amendment:
        after = form["after"]
        return cls(
            id=form["amendment"],
            nth=form["nth"],
            event=EventName.from_form(form["event"]),
            before=EventState.from_form(form["before"]),
            after=None if after is None else EventState.from_form(after),
            why=form["why"],
            by=form["by"],
            at_us=form["at_us"],
            counts_late=form["counts_late"],
            holder=form["holder"],
        )


@dataclass(frozen=True)
class AmendmentRow:
    """One row of an amendment, in the partition of `customer`."""

    is_amended: bool  # AMENDED with the new state; else VOIDED: the event does not count under this key any more
    id: str
    customer: str
    state: EventState
    detail: Mapping[str, Any]


def rows_of(amendment: Amendment) -> list[AmendmentRow]:
    """The rows that an amendment consists of; the first is the decision, the others only follow from it.

    An event that goes to another key is voided where it was and amended where it goes: both count once all are there.
    Senders may name amendments of events of several keys alike, so the ids of what follows name the event's place, too.
    """
    key, after = amendment.event.key, amendment.after
    place = f"{amendment.event.lane}:{amendment.event.number}:{amendment.event.row}"
    here = after is not None and after.customer == key
    elsewhere = [] if here or after is None else [(True, f"{amendment.id}#to:{place}", after.customer)]
    left = amendment.holder
    if left and left != key and (after is None or left != after.customer):
        elsewhere.append((False, f"{amendment.id}#from:{place}", left))
    parts = [(here, amendment.id, key), *elsewhere]
    detail = amendment.to_form() | {"parts": len(parts)}
    return [
        AmendmentRow(amended, id_, customer, after if amended and after is not None else amendment.before, detail)
        for amended, id_, customer in parts
    ]


# -- The fold ----------------------------------------------------------------------------------------------------------

_STATE = pl.Struct({name: pl.String for name in ("customer", "type", "subscription", "data")} | {"time_us": pl.Int64})
_DETAIL = pl.Struct(
    {
        "amendment": pl.String,
        "nth": pl.Int64,
        "parts": pl.Int64,
        "what": pl.String,
        "event": pl.Struct(
            {
                "key": pl.String,
                "source": pl.String,
                "id": pl.String,
                "lane": pl.Int64,
                "number": pl.Int64,
                "row": pl.Int64,
                "received_us": pl.Int64,
            }
        ),
        "before": _STATE,
        "after": _STATE,
        "counts_late": pl.Boolean,
    }
)
# What `Amended.events` has beside the columns of an event and the position of the row that gave it its state.
ORIGIN_SCHEMA = pl.Schema(
    {
        "counts_late": pl.Boolean,
        "first_lane": pl.UInt16,
        "first_number": pl.UInt64,
        "first_row": pl.UInt32,
        "first_received_at": INSTANT,
    }
)


@dataclass(frozen=True)
class Amended:
    """What amendments say at a cut.

    `touched` (key, source, id, voided; customer and time before) are the events whose own rows count no more; `events`
    are those that count in another state, with source and id as they were sent; `times` (key, time) say what an
    amendment moved from or to; `pending` are ids of amendments of which a row is not there yet.
    """

    touched: pl.DataFrame
    events: pl.DataFrame
    times: pl.DataFrame
    pending: tuple[str, ...]

    def without(self, usage: pl.DataFrame) -> pl.DataFrame:
        """Usage rows that count as they were sent."""
        if self.touched.height == 0:
            return usage
        return usage.join(
            self.touched,
            left_on=["customer", "source", "id"],
            right_on=list(IDENTITY),
            how="anti",
            maintain_order="left",
        )


def fold_amendments(rows: pl.DataFrame) -> Amended:
    """The state of amended events from AMENDED and VOIDED rows (columns of an event, position, kind, `detail`).

    Of one event the amendment with the highest `nth` counts whose rows are all there. `kind` is 1 for AMENDED.
    """
    parsed = _parsed(rows)
    of_one = [*IDENTITY, "nth", "amendment"]
    complete = pl.len().over(of_one) == pl.col("parts")
    pending = parsed.filter(~complete)["amendment"].unique().sort().to_list()
    whole = parsed.filter(complete)
    newest = whole.filter(pl.col("nth") == pl.col("nth").max().over(IDENTITY))
    before = pl.col("before").struct
    touched = newest.group_by(IDENTITY).agg(
        voided=(pl.col("what") == "void").first(),
        customer=before.field("customer").first(),
        time=before.field("time_us").first().cast(INSTANT),
    )
    # The row that carries the state: AMENDED of the newest amendment; a voided event has none.
    events = _events(newest.filter((pl.col("kind") == 1) & (pl.col("what") == "amend")))
    moved = [
        whole.select(pl.col(side).struct.field("customer").alias("key"),
                     pl.col(side).struct.field("time_us").cast(INSTANT).alias("time"),
                     *_positions(whole))
        for side in ("before", "after")
    ]  # fmt: skip
    times = pl.concat(moved).filter(pl.col("key").is_not_null())
    return Amended(touched, events, times, tuple(pending))


def fold_amendments_of_lane(rows: pl.DataFrame) -> Amended:
    """The same from the rows of one lane alone: what counts under the keys that are at home there.

    Each key goes by the newest row that it has of an event, so an event on its way to a key of another lane counts
    nowhere or twice until both rows are there: for figures that are shown, not for bills.
    """
    parsed = _parsed(rows)
    newest = parsed.filter(pl.col("nth") == pl.col("nth").max().over("customer", *IDENTITY))
    here = newest.filter(pl.col("customer") == pl.col("key"))
    touched = here.select(*IDENTITY, (pl.col("kind") != 1).alias("voided"), "customer", "time")
    return Amended(touched, _events(newest.filter(pl.col("kind") == 1)), touched.select("key", "time").clear(), ())


def states_before(rows: pl.DataFrame) -> pl.DataFrame:
    """What the events of AMENDED and VOIDED rows were under the same key before, as events."""
    before = pl.col("before").struct
    parsed = _parsed(rows).filter(before.field("customer") == pl.col("customer"))
    return parsed.select(
        "source",
        "id",
        before.field("type"),
        before.field("customer"),
        before.field("subscription"),
        before.field("time_us").cast(INSTANT).alias("time"),
        before.field("data"),
    )


def _parsed(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with the fields of their detail; source and id are the event's."""
    detail = pl.col("detail").str.json_decode(_DETAIL)
    parsed = rows.select(pl.exclude("source", "id", "detail"), detail.struct.unnest())
    return parsed.with_columns(pl.col("event").struct.field("key", "source", "id"))


def _events(amended: pl.DataFrame) -> pl.DataFrame:
    event = pl.col("event").struct
    return amended.select(
        *EVENT_SCHEMA.names(),
        pl.selectors.by_name("kind", "lane", "number", "row", "received_at", require_all=False),
        "counts_late",
        first_lane=event.field("lane").cast(pl.UInt16),
        first_number=event.field("number").cast(pl.UInt64),
        first_row=event.field("row").cast(pl.UInt32),
        first_received_at=event.field("received_us").cast(INSTANT),
    )


def _positions(rows: pl.DataFrame) -> Sequence[str]:
    return [name for name in ("lane", "number") if name in rows.columns]


def amendment_of(detail: str) -> Amendment:
    """The amendment that a row of the log belongs to."""
    return Amendment.from_form(json.loads(detail))
