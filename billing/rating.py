"""Rating: which events count for which charge of which subscription, and what their usage costs.

Owns the join of events to pieces of contracts (by customer key, meter, subscription, time and price row). What events
measure is `billing/measured.py`, quantities are made by `billing/meters.py`, amounts by `billing/pricing/`. No Python
object per event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import Any

import polars as pl

from billing.catalog import Charge, EventAmount, Meter, PriceRow
from billing.measured import Charges, Usage, counts_for, measured, meter_tables, with_rows
from billing.meters import AGGREGATION, EVENT_ORDER, MeterState, finish, fold, merge
from billing.money import NUMBER
from billing.pricing import TierPart, price_lines
from billing.rating_book import RatingBook
from billing.typed_columns import typed_names
from billing.usage import EVENT_SCHEMA, INSTANT

BATCH_ROWS = 2_000_000  # events folded at a time: bounds the memory of joins
ONE = Fraction(1)


@dataclass(frozen=True)
class UsagePiece:
    """A usage charge of one subscription over `[start, end)`.

    `share` is the part of the full period, for charges that prorate their tiers; `quantity` the subscription's own, for
    `flat`. `keys` are the event keys of the customer; none means his code alone.
    """

    customer: str
    subscription: str
    charge: Charge
    start: datetime
    end: datetime
    share: Fraction = ONE
    quantity: Decimal = Decimal(1)
    keys: tuple[str, ...] = ()


PIECES_SCHEMA = pl.Schema({
    "of_subscription": pl.String, "charge": pl.UInt32, "start": INSTANT, "end": INSTANT, "units": NUMBER,
    "owner": pl.UInt32,
})  # fmt: skip
KEYS_SCHEMA = pl.Schema({"key": pl.String, "owner": pl.UInt32})


@dataclass(frozen=True)
class PieceColumns:
    """Pieces in columns (PIECES_SCHEMA), a piece by its place: for callers that have many alike.

    `charge` is a place in `charges`, `owner` a number for the customer, `keys` (KEYS_SCHEMA) the event keys of each.
    `shares` has the pieces, by place, that are not the whole of their period.
    """

    charges: Sequence[Charge]
    frame: pl.DataFrame
    keys: pl.DataFrame
    shares: Mapping[int, Fraction] = field(default_factory=dict[int, Fraction])


@dataclass(frozen=True)
class RatedRow:
    """One line to be: a price row of a piece that has usage, or a minimum without any."""

    piece: int
    row: int
    quantity: Decimal | Fraction  # exact, before `included`
    amount: Decimal | Fraction  # exact, not rounded
    events: int
    first: datetime | None
    last: datetime | None
    tiers: Sequence[TierPart]


@dataclass(frozen=True)
class RatedPieces:
    """Rated usage in columns: line, piece, row, quantity, events, first, last, amount; in order of piece and row.

    A null quantity or amount is no decimal of 38 digits: the exact fraction is in `quantities` or `amounts`, by line.
    """

    frame: pl.DataFrame
    quantities: Mapping[int, Fraction]
    amounts: Mapping[int, Fraction]
    tiers: pl.DataFrame
    tier_parts: Mapping[int, Sequence[TierPart]]

    def rows(self) -> Iterator[RatedRow]:
        parts = self._parts()
        columns = ("line", "piece", "row", "quantity", "amount", "events", "first", "last")
        for line, piece, row, quantity, amount, events, first, last in self.frame.select(columns).iter_rows():
            yield RatedRow(
                piece,
                row,
                self.quantities[line] if quantity is None else quantity,
                self.amounts[line] if amount is None else amount,
                events,
                first,
                last,
                parts.get(line, ()),
            )

    def _parts(self) -> dict[int, Sequence[TierPart]]:
        found: dict[int, list[TierPart]] = {}
        for line, _, up_to, unit, flat, quantity, amount in self.tiers.iter_rows():
            found.setdefault(line, []).append(TierPart(quantity, amount, up_to, unit, flat))
        return {**found, **self.tier_parts}


def rate(
    pieces: Sequence[UsagePiece] | PieceColumns,
    events: pl.DataFrame | Iterable[pl.DataFrame],
    meters: RatingBook | Mapping[str, Meter] | Sequence[Meter],
    timezone: str = "UTC",
) -> RatedPieces:
    """Rate the pieces with all events that count for them; other events may be among them and are ignored.

    Events may be older than a piece: the last one before it gives the level of a `time_weighted_sum`. Events whose
    values a meter cannot read count nothing: they are in suspense (`classify`). Several frames of events are folded one
    after the other, so that memory is bounded.
    """
    table = Pieces(pieces, meters, timezone)
    batches: Iterable[pl.DataFrame] = [events] if isinstance(events, pl.DataFrame) else events
    state: MeterState | None = None
    singles: list[pl.DataFrame] = []
    for batch in batches:
        for offset in range(0, max(batch.height, 1), table.batch_rows):
            folded, single = fold_batch(batch.slice(offset, table.batch_rows), table)
            state = folded if state is None else merge(state, folded)
            singles.append(single)
    if state is None:
        state, single = fold_batch(pl.DataFrame(schema=EVENT_SCHEMA), table)
        singles.append(single)
    return price_of(table, state, pl.concat(singles))


def events_counted(
    piece: UsagePiece, row: int, events: pl.DataFrame, meters: Mapping[str, Meter] | Sequence[Meter], timezone: str
) -> pl.DataFrame:
    """The rows of `events` that count for one price row of a piece, in order (time, id, source), with what the meter
    read of each: `value` (a number, null for texts) and `text` (of `unique_count`).

    For levels the events before the piece are among them: the last one gives the level at its start. The same join
    that rates decides, so these are the events behind a line and no others.
    """
    table = Pieces([piece], meters, timezone)
    own = events.join(table.keys.select(pl.col("key").alias("customer")), on="customer", how="semi")
    found = [
        rowed.filter(pl.col("price_row") == row).select("row", "value", "text") for _, rowed in _counted(own, table)
    ]
    if not found:
        return own.clear().with_columns(value=pl.lit(None, NUMBER), text=pl.lit(None, pl.String))
    hits = pl.concat(found)
    return own[hits["row"]].with_columns(hits.select("value", "text")).sort(EVENT_ORDER)


class Pieces:
    """Pieces as a table: piece, customer keys, subscription, charge, meter, start, end."""

    def __init__(
        self,
        pieces: Sequence[UsagePiece] | PieceColumns,
        meters: RatingBook | Mapping[str, Meter] | Sequence[Meter],
        timezone: str,
    ) -> None:
        if isinstance(meters, RatingBook):
            self.meters, self.timezone = meters.meters, meters.timezone
        else:
            self.meters = tuple(meters.values()) if isinstance(meters, Mapping) else tuple(meters)
            self.timezone = timezone
        places = {meter.code: place for place, meter in enumerate(self.meters)}
        columns = pieces if isinstance(pieces, PieceColumns) else columns_of(pieces)
        charges = columns.charges
        self.charges = Charges(charges, places)
        levels = [self.meters[places[charge.meter]].aggregation == "time_weighted_sum" for charge in charges]
        charge_frame = self.charges.frame.select("charge", "meter").with_columns(
            is_level=pl.Series(levels, dtype=pl.Boolean)
        )
        self.shares, self.keys = columns.shares, columns.keys
        self.frame = columns.frame.with_row_index("piece").join(
            charge_frame, on="charge", how="left", maintain_order="left"
        )
        # An event meets every piece of its customer and meter before times are compared: twelve unbilled months make
        # twelve rows of one event, so batches get smaller.
        fan_out = self.frame.group_by(_owner_and_meter()).len()["len"].max() if columns.frame.height else 1
        assert isinstance(fan_out, int)
        self.batch_rows = max(BATCH_ROWS // fan_out, 50_000)
        used: list[int] = self.frame["meter"].unique().to_list()
        self.meter_tables = meter_tables((place, self.meters[place]) for place in used)
        self.properties = self.charges.properties(self.meters)
        kinds = {self.meters[place].aggregation for place in used}
        # `latest` and levels go by (time, id, source), and so do prices that look at single events. Sums do too where a
        # value is too large for the column, which only the events can tell: `fold` keeps such events one by one, and
        # their order does not matter there.
        self.is_ordered = bool(kinds & {"latest", "time_weighted_sum"}) or row_kinds(self.charges).height > 0
        self.folds_first = not self.is_ordered and set(self.charges.rows_by_dimensions) <= {()}

    @cached_property
    def lone_pieces(self) -> Mapping[int, pl.DataFrame]:
        """Pieces that are the only one of their customer and meter, by meter: owner_and_meter, slot, start, end."""
        frame = self.frame.with_columns(_owner_and_meter())
        lone = frame.filter(pl.col("owner_and_meter").is_unique())
        lone = lone.with_columns(price_row=pl.lit(0, pl.UInt32))
        parts = lone.select("meter", "owner_and_meter", slot_column(), "start", "end").partition_by(
            "meter", as_dict=True, include_key=False
        )
        return {int(str(meter)): part for (meter,), part in parts.items()}

    def lone_pieces_of(self, meters: Iterable[int]) -> pl.DataFrame:
        """Those of some meters: events of one type meet few of them, and a join with all costs more than the rest."""
        found = [self.lone_pieces[meter] for meter in meters if meter in self.lone_pieces]
        return found[0] if len(found) == 1 else pl.concat([_NO_LONE, *found])


def columns_of(pieces: Sequence[UsagePiece]) -> PieceColumns:
    """The same pieces in columns."""
    # Pieces share few charges; a charge is told by its identity, since hashing 3,000 tiers per piece is not free.
    numbers_of: dict[int, int] = {}
    charges: list[Charge] = []
    column: list[int] = []
    for piece in pieces:
        number = numbers_of.setdefault(id(piece.charge), len(charges))
        if number == len(charges):
            charges.append(piece.charge)
        column.append(number)
    # Customers get small numbers: joining millions of events on one whole number is much cheaper than on texts.
    owners: dict[str, int] = {}
    owner_of = [owners.setdefault(piece.customer, len(owners)) for piece in pieces]
    frame = pl.DataFrame(
        {
            "of_subscription": pl.Series([piece.subscription for piece in pieces], dtype=pl.String),
            "charge": pl.Series(column, dtype=pl.UInt32),
            "start": _shared([piece.start for piece in pieces], INSTANT),
            "end": _shared([piece.end for piece in pieces], INSTANT),
            "units": _shared([piece.quantity for piece in pieces], NUMBER),
            "owner": pl.Series(owner_of, dtype=pl.UInt32),
        }
    )
    several = {piece.customer: piece.keys for piece in pieces if piece.keys}
    keys = [(key, number) for name, number in owners.items() for key in several.get(name, (name,))]
    shares = {number: piece.share for number, piece in enumerate(pieces) if piece.share != ONE}
    return PieceColumns(charges, frame, pl.DataFrame(keys, schema=KEYS_SCHEMA, orient="row"), shares)


def _shared(values: Sequence[Any], dtype: Any) -> pl.Series:
    """A column of Python values of which few differ: each is converted once."""
    places: dict[Any, int] = {}
    column = [places.setdefault(value, len(places)) for value in values]
    return pl.Series(list(places), dtype=dtype).gather(pl.Series(column, dtype=pl.UInt32))


_NO_LONE = pl.DataFrame(schema={"owner_and_meter": pl.UInt64, "slot": pl.UInt64, "start": INSTANT, "end": INSTANT})
SLOT_ROWS = 1 << 17  # above PRICE_ROWS_MAX: a slot is piece x SLOT_ROWS + price row, one key instead of two
BY_SLOT = ("slot",)


def slot_column() -> pl.Expr:
    return (pl.col("piece").cast(pl.UInt64) * SLOT_ROWS + pl.col("price_row").cast(pl.UInt64)).alias("slot")


def fold_batch(events: pl.DataFrame, table: Pieces) -> tuple[MeterState, pl.DataFrame]:
    """The state by piece and price row, and the single events (SINGLES) of rows whose price asks for them.

    Where `events` have a column `owner` it says whose they are; else their keys do.
    """
    kinds = row_kinds(table.charges)
    states: list[MeterState] = []
    singles: list[pl.DataFrame] = []
    for usage, counted in _usage_of_owners(events, table):
        if table.folds_first:
            whole, counted = _fold_before_join(counted, table)
            states.append(whole)
        rowed = _joined(usage, counted, table)
        states.append(fold(rowed.select("slot", *_FOLD_COLUMNS), BY_SLOT))
        if kinds.height:
            singles += _single_events(rowed, usage, kinds)
    if not states:
        states = [fold(pl.DataFrame(schema=_FOLDED), BY_SLOT)]
    # A charge has one meter and a meter one type of events, so no two types share a slot: nothing to merge.
    state = MeterState(
        BY_SLOT,
        pl.concat([one.small for one in states]),
        pl.concat([one.sets for one in states]),
        pl.concat([one.runs for one in states]),
    )
    return state, pl.concat(singles) if singles else pl.DataFrame(schema=SINGLES)


def _fold_before_join(counted: pl.DataFrame, table: Pieces) -> tuple[MeterState, pl.DataFrame]:
    """Fold by customer and meter where one piece takes all of it: a join of groups, not of events.

    The second result are the events that must be joined one by one: their group reaches beyond its piece, several
    pieces share it, or an event names a subscription.
    """
    group = ("owner_and_meter",)
    named = counted.filter(pl.col("subscription").is_not_null()).select(group)
    one_by_one = counted.join(named, on=group, how="semi") if named.height else counted.clear()
    counted = counted.join(named, on=group, how="anti") if named.height else counted
    folded = fold(counted.select(*group, *_FOLD_COLUMNS), group)
    meters: list[int] = counted["meter"].unique().to_list()
    placed = folded.small.join(table.lone_pieces_of(meters), on=group, how="left")
    inside = (pl.col("first") >= pl.col("start")) & (pl.col("last") < pl.col("end"))
    inside = placed.select(inside.fill_null(False).alias("inside"))["inside"]
    within = placed if inside.all() else placed.filter(inside)
    whole = MeterState(
        BY_SLOT,
        within.select("slot", pl.exclude("slot", "start", "end", *group)),
        _in_slots(folded.sets, within, group).select("slot", "text"),
        _in_slots(folded.runs, within, group).select("slot", pl.exclude("slot", *group)),
    )
    if within.height < placed.height:
        beyond = counted.join(placed.filter(~inside), on=group, how="semi")
        one_by_one = pl.concat([one_by_one, beyond])
    return whole, one_by_one


def _in_slots(rows: pl.DataFrame, within: pl.DataFrame, group: Sequence[str]) -> pl.DataFrame:
    if not rows.height:
        return rows.with_columns(pl.lit(None, pl.UInt64).alias("slot"))
    return rows.join(within.select(*group, "slot"), on=group, how="inner")


def _counted(events: pl.DataFrame, table: Pieces) -> Iterator[tuple[Usage, pl.DataFrame]]:
    """By event type, each event with the piece and price row (`slot`) that it counts for."""
    for usage, counted in _usage_of_owners(events, table):
        yield usage, _joined(usage, counted, table)


def _usage_of_owners(events: pl.DataFrame, table: Pieces) -> Iterator[tuple[Usage, pl.DataFrame]]:
    """By event type, what the events of the pieces' customers measure, with the key of customer and meter."""
    if "owner" in events.columns:
        owners = events["owner"]
    else:
        owners = events.select("customer").join(
            table.keys, left_on="customer", right_on="key", how="left", maintain_order="left"
        )["owner"]
    # Ids and sources are texts that only ordered meters and prices look at: others do not carry them along.
    order = EVENT_ORDER if table.is_ordered else ("time",)
    frame = events.select("type", "subscription", "data", *typed_names(events.columns), *order).with_columns(owners)
    frame = (frame.filter(owners.is_not_null()) if owners.null_count() else frame).with_row_index("row")
    for usage in measured(frame, table.meter_tables, table.properties):
        unread = usage.pairs["missing"].any() or usage.pairs["invalid"].any()
        pairs = usage.pairs.filter(~pl.col("missing") & ~pl.col("invalid")) if unread else usage.pairs
        counted = usage.with_events(pairs, ("owner", "subscription", *order)).with_columns(_owner_and_meter())
        if not table.is_ordered:
            counted = counted.with_columns(id=pl.lit("", pl.String), source=pl.lit("", pl.String))
        yield usage, counted


def _joined(usage: Usage, counted: pl.DataFrame, table: Pieces) -> pl.DataFrame:
    pieces = table.frame.select(_owner_and_meter(), "piece", "of_subscription", "charge", "start", "end", "is_level")
    met = counted.join(pieces, on="owner_and_meter", how="inner").filter(
        counts_for() & (pl.col("time") < pl.col("end")) & ((pl.col("time") >= pl.col("start")) | pl.col("is_level"))
    )
    return with_rows(met, usage, table.charges).filter(pl.col("price_row").is_not_null()).with_columns(slot_column())


_FOLD_COLUMNS = ("aggregation", pl.lit(False).alias("keep"), *EVENT_ORDER, "value", "text")
_FOLDED = pl.Schema({
    "slot": pl.UInt64, "aggregation": AGGREGATION, "keep": pl.Boolean, "time": INSTANT,
    "id": pl.String, "source": pl.String, "value": NUMBER, "text": pl.String,
})  # fmt: skip


def _owner_and_meter() -> pl.Expr:
    return (pl.col("owner").cast(pl.UInt64) * (1 << 32) + pl.col("meter").cast(pl.UInt64)).alias("owner_and_meter")


SINGLES = pl.Schema({"slot": pl.UInt64, "time": INSTANT, "id": pl.String, "source": pl.String, "value": NUMBER})


def row_kinds(charges: Charges) -> pl.DataFrame:
    """The price rows that price events one by one, with the property that holds the event's own amount, if any."""
    rows = [
        (number, place, row.price.property if isinstance(row.price, EventAmount) else None)
        for number, charge in enumerate(charges.charges)
        for place, row in enumerate(charge.rows)
        if row.price.model in ("percentage", "event_amount", "bands")
    ]
    return pl.DataFrame(rows, schema={"charge": pl.UInt32, "price_row": pl.UInt32, "property": pl.String}, orient="row")


def _single_events(rowed: pl.DataFrame, usage: Usage, kinds: pl.DataFrame) -> list[pl.DataFrame]:
    priced = rowed.join(kinds, on=["charge", "price_row"], how="inner")
    found: list[pl.DataFrame] = []
    for (name,), group in priced.group_by("property"):
        if name is None:
            value = (
                pl.when(pl.col("aggregation") == "count").then(pl.lit(Decimal(1), NUMBER)).otherwise(pl.col("value"))
            )
            group = group.with_columns(value=value)
        elif str(name) in usage.texts:
            own = usage.texts.number(str(name)).gather(group["place"])
            group = group.with_columns(value=own).filter(pl.col("value").is_not_null())
        found.append(group.select(SINGLES.names()))
    return found


def price_of(table: Pieces, state: MeterState, singles: pl.DataFrame) -> RatedPieces:
    minimum_charges = [
        number
        for number, charge in enumerate(table.charges.charges)
        if charge.price is not None and charge.minimum is not None and charge.minimum > 0
    ]
    idle = (
        table.frame.filter(pl.col("charge").is_in(pl.Series(minimum_charges, dtype=pl.UInt32).implode()))
        .select("piece", pl.lit(0, pl.UInt32).alias("price_row"))
        .select(slot_column())
    )
    lines = pl.concat([state.small.select("slot"), idle]).unique().sort("slot")
    lines = lines.with_columns(
        piece=(pl.col("slot") // SLOT_ROWS).cast(pl.UInt32), price_row=(pl.col("slot") % SLOT_ROWS).cast(pl.UInt32)
    )
    aggregations = pl.DataFrame(
        {
            "meter": pl.Series(range(len(table.meters)), dtype=pl.UInt32),
            "aggregation": pl.Series([meter.aggregation for meter in table.meters], dtype=AGGREGATION),
        }
    )
    groups = lines.join(table.frame, on="piece", how="left", maintain_order="left").join(
        aggregations, on="meter", how="left", maintain_order="left"
    )
    rated, odd = finish(state, groups, BY_SLOT)
    # A level of 0 that nothing happened to is no usage: its price row has no line, and owes no minimum for ever after.
    rowed = pl.Series([n for n, charge in enumerate(table.charges.charges) if charge.price is None], dtype=pl.UInt32)
    idle_row = pl.col("charge").is_in(rowed.implode()) & (pl.col("events") == 0) & (pl.col("quantity") == 0)
    rated = rated.filter(~idle_row.fill_null(False)).with_row_index("line")
    rows, prices = _rows_in_use(rated, table)
    rated = rated.join(prices, on=["charge", "price_row"], how="left", maintain_order="left")
    odd_quantities: dict[int, Fraction] = {}
    if odd:
        for line, slot in rated.filter(pl.col("quantity").is_null()).select("line", "slot").iter_rows():
            odd_quantities[line] = odd[(slot,)]
    odd_shares = _odd_shares(rated, table)
    events = singles.join(rated.select("line", "slot"), on="slot", how="inner").select("line", *EVENT_ORDER, "value")
    priced = price_lines(
        rated.select("line", "price", "quantity", "units"),
        rows,
        events=events,
        timezone=table.timezone,
        odd_quantities=odd_quantities,
        odd_shares=odd_shares,
    )
    frame = rated.join(priced.amounts, on="line", how="left", maintain_order="left").select(
        "line", "piece", pl.col("price_row").alias("row"), "quantity", "events", "first", "last", "amount"
    )
    return RatedPieces(frame, odd_quantities, priced.fractions, priced.tiers, priced.tier_parts)


def _rows_in_use(rated: pl.DataFrame, table: Pieces) -> tuple[list[PriceRow], pl.DataFrame]:
    """The price rows that any line uses, and where they stand in that list."""
    used = rated.select("charge", "price_row").unique().sort("charge", "price_row").with_row_index("price")
    rows = [
        table.charges.charges[int(charge)].rows[int(row)]
        for charge, row in used.select("charge", "price_row").iter_rows()
    ]
    return rows, used


def _odd_shares(rated: pl.DataFrame, table: Pieces) -> dict[int, Fraction]:
    prorates = [charge.prorate_usage for charge in table.charges.charges]
    if not any(prorates):
        return {}
    prorated = pl.Series(
        [piece for piece in table.shares if prorates[int(table.frame["charge"][piece])]],
        dtype=pl.UInt32,
    )
    if prorated.len() == 0:
        return {}
    found = rated.filter(pl.col("piece").is_in(prorated.implode())).select("line", "piece")
    return {line: table.shares[int(piece)] for line, piece in found.iter_rows()}
