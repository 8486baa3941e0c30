"""Rating: which events count for which charge of which subscription, and what their usage costs.

Owns the join of events to pieces of contracts (by customer key, meter, subscription, time and price row), the verdict
on an event (`classify`), and the live state that shards keep (`fold_days`). Quantities are made by `billing/meters.py`,
amounts by `billing/pricing/`: billed and live figures come out of the same functions. No Python object per event.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import Any

import polars as pl

from billing import few_events
from billing.catalog import Charge, EventAmount, Meter, PriceRow
from billing.meters import AGGREGATION, EVENT_ORDER, MeterState, finish, fold, merge, numbers, property_texts, regroup
from billing.money import NUMBER
from billing.pricing import TierPart, price_lines
from billing.usage import EVENT_SCHEMA, INSTANT, Reason

BATCH_ROWS = 2_000_000  # events folded at a time: bounds the memory of joins
ONE = Fraction(1)
REASON = pl.Enum([reason.value for reason in Reason])
KEYS_SCHEMA = pl.Schema({"key": pl.String, "customer": pl.String})
CONTRACTS_SCHEMA = pl.Schema(
    {"customer": pl.String, "subscription": pl.String, "start": INSTANT, "end": INSTANT, "plan": pl.UInt32}
)
BILLED_SCHEMA = pl.Schema({"subscription": pl.String, "until": INSTANT})
CUTS_SCHEMA = pl.Schema({"customer": pl.String, "at": INSTANT})
PAUSES_SCHEMA = pl.Schema(
    {"customer": pl.String, "subscription": pl.String, "meter": pl.UInt32, "start": INSTANT, "end": INSTANT}
)
_NO_KEYS: Mapping[str, Any] = {}


@dataclass(frozen=True)
class RatingBook:
    """What classifying and folding need of a tenant, in columns.

    `customers` resolves the key that an event carries. `contracts` says which plan (a place in `plans`) a subscription
    runs from when to when; `end` null means still running. `billed` has, for tenants that reject late usage, up to when
    each subscription's usage was billed.
    """

    meters: tuple[Meter, ...]
    customers: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=KEYS_SCHEMA))
    contracts: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CONTRACTS_SCHEMA))
    plans: tuple[tuple[Charge, ...], ...] = ()  # the usage charges of each plan, with a subscription's own prices
    timezone: str = "UTC"
    future_limit: timedelta = timedelta(hours=1)
    rejects_late: bool = False
    billed: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=BILLED_SCHEMA))
    cuts: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CUTS_SCHEMA))
    pauses: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=PAUSES_SCHEMA))  # `meter` by its place

    @cached_property
    def meter_places(self) -> dict[str, int]:
        return {meter.code: place for place, meter in enumerate(self.meters)}

    @cached_property
    def meter_tables(self) -> dict[str, _TypeMeters]:
        return _meter_tables(enumerate(self.meters))

    @cached_property
    def few_events(self) -> few_events.FewEvents:
        return few_events.FewEvents(self)

    @cached_property
    def properties(self) -> dict[str, set[str]]:
        return self.charges.properties(self.meters)

    @cached_property
    def live_meters(self) -> list[tuple[_LiveMeter, pl.Series]]:
        """What live state keeps, and the meters of which it keeps that."""
        return _live_meters(self)

    @cached_property
    def charges(self) -> _Charges:
        """All usage charges of all plans, and which plan has which."""
        charges: list[Charge] = []
        plan_column: list[int] = []
        for number, plan in enumerate(self.plans):
            usage = [charge for charge in plan if charge.kind == "usage"]
            charges += usage
            plan_column += [number] * len(usage)
        return _Charges(charges, self.meter_places, plan_column)


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


@dataclass(frozen=True)
class LiveState:
    """What a shard keeps: usage by customer key, named subscription, meter, dimensions and local day (or cut of it).

    `measure` is empty for the meter's own value, else the property of an `event_amount` price. `dimensions` is the JSON
    object of the values that price rows of the meter ask for. `at` is the start of the day or piece of day.
    """

    state: MeterState

    def to_bytes(self) -> bytes:
        """For a shard's snapshot."""
        out = io.BytesIO()
        for frame in (self.state.small, self.state.sets, self.state.runs):
            part = io.BytesIO()
            frame.write_ipc(part, compression="zstd")
            out.write(part.tell().to_bytes(8, "little"))
            out.write(part.getvalue())
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> LiveState:
        frames: list[pl.DataFrame] = []
        offset = 0
        for _ in range(3):
            length = int.from_bytes(data[offset : offset + 8], "little")
            frames.append(pl.read_ipc(io.BytesIO(data[offset + 8 : offset + 8 + length])))
            offset += 8 + length
        return cls(MeterState(LIVE_BY, *frames))


LIVE_BY = ("key", "subscription", "meter", "measure", "dimensions", "at")


# --- the verdict on an event --------------------------------------------------------------------------------------


def classify(events: pl.DataFrame, book: RatingBook, now: datetime, *, new: pl.Series | None = None) -> pl.Series:
    """The first reason that keeps each event in suspense, null where it can be rated.

    `new` marks rows that arrived just now: only they can be late (what was billed in time stays in time).
    """
    if events.height <= few_events.EVENTS_MAX:
        return pl.Series("reason", book.few_events.reasons(events, now, new), dtype=REASON)
    return classify_columns(events, book, now, new=new)


def classify_columns(
    events: pl.DataFrame, book: RatingBook, now: datetime, *, new: pl.Series | None = None
) -> pl.Series:
    """`classify` for many events."""
    frame = events.select(EVENT_SCHEMA.names()).with_row_index("row")
    owners = book.customers.select("key", pl.col("customer").alias("owner"))
    frame = frame.join(owners, left_on="customer", right_on="key", how="left", maintain_order="left")
    known = book.contracts.select("customer", "subscription").unique().with_columns(known=pl.lit(True))
    frame = frame.join(
        known,
        left_on=["owner", "subscription"],
        right_on=["customer", "subscription"],
        how="left",
        maintain_order="left",
    )
    frame = frame.with_columns(new=pl.lit(True) if new is None else new)
    count = frame.height
    missing, invalid = _flags(count), _flags(count)
    late, no_price, paused = _flags(count), _flags(count), _flags(count)
    ask = _ContractQuestions(book, frame)
    for usage in _measured(frame, book.meter_tables, ask.properties):
        missing |= _marked(usage.pairs.filter("missing"), count)
        invalid |= _marked(usage.pairs.filter("invalid"), count)
        answers = ask.about(usage)
        missing, invalid = missing | answers[0], invalid | answers[1]
        late, no_price = late | answers[2], no_price | answers[3]
        paused |= ask.paused(usage)
    types = pl.Series([meter.event_type for meter in book.meters], dtype=pl.String).unique()
    reasons = (
        (Reason.UNKNOWN_CUSTOMER, pl.col("owner").is_null()),
        (Reason.UNKNOWN_SUBSCRIPTION, pl.col("subscription").is_not_null() & pl.col("known").is_null()),
        (Reason.UNKNOWN_TYPE, ~pl.col("type").is_in(types.implode())),
        (Reason.MISSING_PROPERTY, pl.lit(missing)),
        (Reason.INVALID_VALUE, pl.lit(invalid)),
        (Reason.FUTURE, pl.col("time") > pl.lit(now + book.future_limit, INSTANT)),
        (Reason.LATE, pl.lit(late) & pl.col("new")),
        (Reason.NO_PRICE, pl.lit(no_price)),
        (Reason.PAUSED, pl.lit(paused)),
    )
    verdict = pl.lit(None, pl.String)
    for reason, holds in reversed(reasons):
        verdict = pl.when(holds).then(pl.lit(reason.value)).otherwise(verdict)
    return frame.select(verdict.cast(REASON).alias("reason"))["reason"]


class _ContractQuestions:
    """What only the contracts of an event's customer can answer: late, no price, no amount of its own."""

    def __init__(self, book: RatingBook, frame: pl.DataFrame) -> None:
        self._book = book
        self._count = frame.height
        charges = book.charges
        asked = charges.frame
        if not book.rejects_late:
            asked = asked.filter(pl.col("rowed") | pl.col("by_value"))
        owners = frame.select(pl.col("owner").alias("customer")).unique()
        contracts = book.contracts.join(owners, on="customer", how="semi")
        pieces = contracts.join(asked, on="plan", how="inner") if asked.height else contracts.clear()
        self._pieces = pieces.with_row_index("piece") if pieces.height else None
        self.properties = book.properties if self._pieces is not None else {}

    def about(self, usage: _Usage) -> tuple[pl.Series, pl.Series, pl.Series, pl.Series]:
        none = _flags(self._count)
        if self._pieces is None:
            return none, none, none, none
        pieces = self._pieces.select(
            "piece", pl.col("customer").alias("owner"), "charge", "meter", "start", "end",
            pl.col("subscription").alias("of_subscription"),
        )  # fmt: skip
        met = (
            usage.with_events(usage.pairs, ("owner", "subscription", "time"))
            .join(pieces, on=["owner", "meter"], how="inner")
            .filter(
                _counts_for()
                & (pl.col("time") >= pl.col("start"))
                & (pl.col("end").is_null() | (pl.col("time") < pl.col("end")))
            )
        )
        late = none
        if self._book.rejects_late and self._book.billed.height:
            billed = met.join(self._book.billed, left_on="of_subscription", right_on="subscription", how="inner")
            late = _marked(billed.filter(pl.col("time") < pl.col("until")), self._count)
        rowed = _with_rows(met, usage, self._book.charges)
        no_price = _marked(rowed.filter(pl.col("price_row").is_null()), self._count)
        missing = invalid = none
        by_value = rowed.join(self._book.charges.amounts, on=["charge", "price_row"], how="inner")
        for (name,), group in by_value.group_by("property"):
            texts = usage.texts[str(name)].gather(group["place"])
            lacking = texts.is_null()
            missing = missing | _marked(group.filter(lacking), self._count)
            invalid = invalid | _marked(group.filter(~lacking & numbers(texts).is_null()), self._count)
        return missing, invalid, late, no_price

    def paused(self, usage: _Usage) -> pl.Series:
        """Events of a time in which a subscription that they would count for is paused."""
        if self._book.pauses.height == 0:
            return _flags(self._count)
        pauses = self._book.pauses.rename({"customer": "owner", "subscription": "of_subscription"})
        met = usage.with_events(usage.pairs, ("owner", "subscription", "time")).join(
            pauses, on=["owner", "meter"], how="inner"
        )
        inside = (pl.col("time") >= pl.col("start")) & (pl.col("time") < pl.col("end"))
        return _marked(met.filter(_counts_for() & inside), self._count)


def _flags(count: int) -> pl.Series:
    return pl.repeat(False, count, dtype=pl.Boolean, eager=True)


def _marked(rows: pl.DataFrame, count: int) -> pl.Series:
    """True at the events that these rows came from."""
    return _flags(count) if rows.height == 0 else _flags(count).scatter(rows["row"].unique(), True)


def _counts_for() -> pl.Expr:
    return pl.col("subscription").is_null() | (pl.col("subscription") == pl.col("of_subscription"))


# --- what events measure ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Usage:
    """The events of one type: `pairs` of event and meter, and the texts of properties, by place among these events."""

    events: pl.DataFrame  # of the type, with `row`
    texts: Mapping[str, pl.Series]
    pairs: pl.DataFrame  # row, place, meter, aggregation, value, text, missing, invalid

    def with_events(self, pairs: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
        """The pairs with columns of their events."""
        if pairs.height == self.events.height and (pairs["place"] == _count_up(pairs.height)).all():
            return pairs.with_columns(self.events.select(columns))  # one pair an event, in order: nothing to gather
        return pairs.with_columns(self.events.select(columns)[pairs["place"]])


def _count_up(count: int) -> pl.Series:
    return pl.int_range(count, dtype=pl.UInt32, eager=True)


class _TypeMeters:
    """The meters of one event type as tables: filters by the properties that they look at, values by property."""

    def __init__(self, meters: Sequence[tuple[int, Meter]]) -> None:
        self.names = {name for _, meter in meters for name, _ in meter.filter}
        self.names |= {meter.value for _, meter in meters if meter.value}
        self.unfiltered = [number for number, meter in meters if not meter.filter]
        by_filter: dict[tuple[str, ...], list[tuple[int, Meter]]] = {}
        kinds: dict[tuple[str | None, str], list[int]] = {}
        for number, meter in meters:
            kinds.setdefault((meter.value, meter.aggregation), []).append(number)
            if meter.filter:
                by_filter.setdefault(tuple(name for name, _ in meter.filter), []).append((number, meter))
        self.filters = {names: _filter_table(names, alike) for names, alike in by_filter.items()}
        self.kinds = [(key, pl.Series(numbers_of, dtype=pl.UInt32)) for key, numbers_of in kinds.items()]


def _filter_table(names: Sequence[str], meters: Sequence[tuple[int, Meter]]) -> pl.DataFrame:
    """One row per meter and combination of values that its filter lets pass."""
    table = pl.DataFrame(
        [(number, *(list(values) for _, values in meter.filter)) for number, meter in meters],
        schema={"meter": pl.UInt32, **{name: pl.List(pl.String) for name in map(_dim, names)}},
        orient="row",
    )
    for name in names:
        table = table.explode(_dim(name))
    return table


def _meter_tables(meters: Iterable[tuple[int, Meter]]) -> dict[str, _TypeMeters]:
    """Tables by event type; the numbers are what the meters are called in the result."""
    by_type: dict[str, list[tuple[int, Meter]]] = {}
    for number, meter in meters:
        by_type.setdefault(meter.event_type, []).append((number, meter))
    return {event_type: _TypeMeters(of_type) for event_type, of_type in by_type.items()}


def _measured(
    events: pl.DataFrame, tables: Mapping[str, _TypeMeters], properties: Mapping[str, Iterable[str]] = _NO_KEYS
) -> Iterator[_Usage]:
    """Each event type with a meter: which meters take which events, and the values they measure."""
    present: list[str] = events["type"].unique().to_list()
    for event_type in present:
        meters = tables.get(event_type)
        if meters is None:
            continue
        chosen = events if len(present) == 1 else events.filter(pl.col("type") == event_type)
        texts = property_texts(chosen["data"], meters.names | set(properties.get(event_type, ())))
        yield _Usage(chosen, texts, _with_values(_filtered(chosen, texts, meters), texts, meters))


def _filtered(events: pl.DataFrame, texts: Mapping[str, pl.Series], meters: _TypeMeters) -> pl.DataFrame:
    """Event and meter, where the meter's filter lets the event pass. One join for all meters that filter alike."""
    places = events.select("row").with_row_index("place")
    found = [places.with_columns(meter=pl.lit(number, pl.UInt32)) for number in meters.unfiltered]
    for names, table in meters.filters.items():
        columns = places.with_columns(texts[name].alias(_dim(name)) for name in names)
        found.append(columns.join(table, on=list(map(_dim, names)), how="inner").select("place", "row", "meter"))
    return pl.concat(found)


def _with_values(pairs: pl.DataFrame, texts: Mapping[str, pl.Series], meters: _TypeMeters) -> pl.DataFrame:
    parsed: dict[str, pl.Series] = {}
    found: list[pl.DataFrame] = []
    for (name, aggregation), numbers_of in meters.kinds:
        group = pairs if len(meters.kinds) == 1 else pairs.filter(pl.col("meter").is_in(numbers_of.implode()))
        if group.height == 0:
            continue
        value: pl.Series | pl.Expr = pl.lit(None, NUMBER)
        text: pl.Series | pl.Expr = pl.lit(None, pl.String)
        missing: pl.Series | pl.Expr = pl.lit(False)
        invalid: pl.Series | pl.Expr = pl.lit(False)
        if name is not None:
            given = texts[name].gather(group["place"])
            missing = given.is_null()
            if aggregation == "unique_count":
                text = given
            else:
                if name not in parsed:
                    parsed[name] = numbers(texts[name])
                value = parsed[name].gather(group["place"])
                invalid = value.is_null() & ~missing
        aggregation_column = pl.lit(aggregation, AGGREGATION)
        found.append(
            group.with_columns(aggregation=aggregation_column, value=value, text=text, missing=missing, invalid=invalid)
        )
    return pl.concat(found) if found else pl.DataFrame(schema={**pairs.schema, **_VALUES_SCHEMA})


_VALUES_SCHEMA = {
    "aggregation": AGGREGATION, "value": NUMBER, "text": pl.String, "missing": pl.Boolean, "invalid": pl.Boolean,
}  # fmt: skip


# --- charges and their price rows ---------------------------------------------------------------------------------


class _Charges:
    """Usage charges as tables: `frame` has one row each, `rows_by_dimensions` the price rows."""

    def __init__(
        self, charges: Sequence[Charge], meters: Mapping[str, int], plans: Sequence[int] | None = None
    ) -> None:
        self.charges = tuple(charges)
        self.frame = pl.DataFrame(
            {
                "charge": pl.Series(range(len(charges)), dtype=pl.UInt32),
                "plan": pl.Series(plans if plans is not None else [0] * len(charges), dtype=pl.UInt32),
                "meter": pl.Series([meters[charge.meter] for charge in charges], dtype=pl.UInt32),
                "rowed": pl.Series([charge.price is None for charge in charges], dtype=pl.Boolean),
                "by_value": pl.Series(
                    [any(isinstance(row.price, EventAmount) for row in charge.rows) for charge in charges],
                    dtype=pl.Boolean,
                ),
            }
        )

    def properties(self, meters: Sequence[Meter]) -> dict[str, set[str]]:
        """The properties that price rows look at, by event type."""
        by_code = {meter.code: meter for meter in meters}
        names: dict[str, set[str]] = {}
        for charge in self.charges:
            wanted = names.setdefault(by_code[charge.meter].event_type, set())
            wanted.update(charge.price_by)
            wanted.update(row.price.property for row in charge.rows if isinstance(row.price, EventAmount))
        return names

    @cached_property
    def amounts(self) -> pl.DataFrame:
        """Rows that are priced by a property of the event."""
        found = [
            (number, place, row.price.property)
            for number, charge in enumerate(self.charges)
            for place, row in enumerate(charge.rows)
            if isinstance(row.price, EventAmount)
        ]
        return pl.DataFrame(
            found, schema={"charge": pl.UInt32, "price_row": pl.UInt32, "property": pl.String}, orient="row"
        )

    @cached_property
    def rows_by_dimensions(self) -> dict[tuple[str, ...], pl.DataFrame]:
        """Price rows by the set of dimensions that their `when` names: one hash join each, for any number of rows."""
        found: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        for number, charge in enumerate(self.charges):
            for place, row in enumerate(charge.rows):
                names = tuple(name for name, _ in row.when)
                found.setdefault(names, []).append((number, place, *(value for _, value in row.when)))
        return {
            names: pl.DataFrame(
                rows,
                schema={"charge": pl.UInt32, "price_row": pl.UInt32, **{name: pl.String for name in map(_dim, names)}},
                orient="row",
            )
            for names, rows in found.items()
        }


def _dim(name: str) -> str:
    return f"dimension:{name}"


def _with_rows(met: pl.DataFrame, usage: _Usage, charges: _Charges) -> pl.DataFrame:
    """Each row with `price_row`: the first of its charge's rows that matches, null if none does."""
    names = {name for names in charges.rows_by_dimensions for name in names} & usage.texts.keys()
    return _matched(met, {name: usage.texts[name].gather(met["place"]) for name in names}, charges)


def _matched(met: pl.DataFrame, texts: Mapping[str, pl.Series], charges: _Charges) -> pl.DataFrame:
    if set(charges.rows_by_dimensions) <= {()}:
        return met.with_columns(price_row=pl.lit(0, pl.UInt32))
    met = met.with_row_index("match")
    found = [pl.DataFrame(schema={"match": pl.UInt32, "price_row": pl.UInt32})]
    for names, table in charges.rows_by_dimensions.items():
        if not set(names) <= texts.keys():
            continue  # rows of charges on another type of events
        columns = met.select("match", "charge").with_columns(texts[name].alias(_dim(name)) for name in names)
        hits = columns.join(table, on=["charge", *map(_dim, names)], how="inner")
        found.append(hits.select("match", "price_row"))
    first = pl.concat(found).group_by("match").agg(pl.col("price_row").min())
    return met.join(first, on="match", how="left", maintain_order="left").drop("match")


# --- rating pieces ------------------------------------------------------------------------------------------------


def rate(
    pieces: Sequence[UsagePiece],
    events: pl.DataFrame | Iterable[pl.DataFrame],
    meters: RatingBook | Mapping[str, Meter] | Sequence[Meter],
    timezone: str = "UTC",
) -> RatedPieces:
    """Rate the pieces with all events that count for them; other events may be among them and are ignored.

    Events may be older than a piece: the last one before it gives the level of a `time_weighted_sum`. Events whose
    values a meter cannot read count nothing: they are in suspense (`classify`). Several frames of events are folded one
    after the other, so that memory is bounded.
    """
    table = _Pieces(pieces, meters, timezone)
    batches: Iterable[pl.DataFrame] = [events] if isinstance(events, pl.DataFrame) else events
    state: MeterState | None = None
    singles: list[pl.DataFrame] = []
    for batch in batches:
        for offset in range(0, max(batch.height, 1), table.batch_rows):
            folded, single = _fold_batch(batch.slice(offset, table.batch_rows), table)
            state = folded if state is None else merge(state, folded)
            singles.append(single)
    if state is None:
        state, single = _fold_batch(pl.DataFrame(schema=EVENT_SCHEMA), table)
        singles.append(single)
    return _price(table, state, pl.concat(singles))


def events_counted(
    piece: UsagePiece, row: int, events: pl.DataFrame, meters: Mapping[str, Meter] | Sequence[Meter], timezone: str
) -> pl.DataFrame:
    """The rows of `events` that count for one price row of a piece, in order (time, id, source), with what the meter
    read of each: `value` (a number, null for texts) and `text` (of `unique_count`).

    For levels the events before the piece are among them: the last one gives the level at its start. The same join
    that rates decides, so these are the events behind a line and no others.
    """
    table = _Pieces([piece], meters, timezone)
    own = events.join(table.keys.select(pl.col("key").alias("customer")), on="customer", how="semi")
    found = [
        rowed.filter(pl.col("price_row") == row).select("row", "value", "text") for _, rowed in _counted(own, table)
    ]
    if not found:
        return own.clear().with_columns(value=pl.lit(None, NUMBER), text=pl.lit(None, pl.String))
    hits = pl.concat(found)
    return own[hits["row"]].with_columns(hits.select("value", "text")).sort(EVENT_ORDER)


class _Pieces:
    """Pieces as a table: piece, customer keys, subscription, charge, meter, start, end."""

    def __init__(
        self,
        pieces: Sequence[UsagePiece],
        meters: RatingBook | Mapping[str, Meter] | Sequence[Meter],
        timezone: str,
    ) -> None:
        if isinstance(meters, RatingBook):
            self.meters, self.timezone = meters.meters, meters.timezone
        else:
            self.meters = tuple(meters.values()) if isinstance(meters, Mapping) else tuple(meters)
            self.timezone = timezone
        places = {meter.code: place for place, meter in enumerate(self.meters)}
        # Pieces share few charges; a charge is told by its identity, since hashing 3,000 tiers per piece is not free.
        numbers_of: dict[int, int] = {}
        charges: list[Charge] = []
        column: list[int] = []
        for piece in pieces:
            number = numbers_of.setdefault(id(piece.charge), len(charges))
            if number == len(charges):
                charges.append(piece.charge)
            column.append(number)
        self.pieces = pieces
        self.charges = _Charges(charges, places)
        levels = [self.meters[places[charge.meter]].aggregation == "time_weighted_sum" for charge in charges]
        charge_frame = self.charges.frame.select("charge", "meter").with_columns(
            is_level=pl.Series(levels, dtype=pl.Boolean)
        )
        count = len(pieces)
        self.frame = pl.DataFrame(
            {
                "piece": pl.int_range(count, dtype=pl.UInt32, eager=True),
                "of_subscription": pl.Series([piece.subscription for piece in pieces], dtype=pl.String),
                "charge": pl.Series(column, dtype=pl.UInt32),
                "start": _shared([piece.start for piece in pieces], INSTANT),
                "end": _shared([piece.end for piece in pieces], INSTANT),
                "units": _shared([piece.quantity for piece in pieces], NUMBER),
            }
        ).join(charge_frame, on="charge", how="left", maintain_order="left")
        # Customers get small numbers: joining millions of events on one whole number is much cheaper than on texts.
        owners: dict[str, int] = {}
        owner_of = [owners.setdefault(piece.customer, len(owners)) for piece in pieces]
        self.frame = self.frame.with_columns(owner=pl.Series(owner_of, dtype=pl.UInt32))
        several = {piece.customer: piece.keys for piece in pieces if piece.keys}
        keys = [(key, number) for name, number in owners.items() for key in several.get(name, (name,))]
        self.keys = pl.DataFrame(keys, schema={"key": pl.String, "owner": pl.UInt32}, orient="row")
        # An event meets every piece of its customer and meter before times are compared: twelve unbilled months make
        # twelve rows of one event, so batches get smaller.
        fan_out = self.frame.group_by(_owner_and_meter()).len()["len"].max() if pieces else 1
        assert isinstance(fan_out, int)
        self.batch_rows = max(BATCH_ROWS // fan_out, 50_000)
        used: list[int] = self.frame["meter"].unique().to_list()
        self.meter_tables = _meter_tables((place, self.meters[place]) for place in used)
        self.properties = self.charges.properties(self.meters)
        kinds = {self.meters[place].aggregation for place in used}
        # `latest` and levels go by (time, id, source), and so do prices that look at single events. Sums do too where a
        # value is too large for the column, which only the events can tell: `fold` keeps such events one by one, and
        # their order does not matter there.
        self.is_ordered = bool(kinds & {"latest", "time_weighted_sum"}) or _row_kinds(self.charges).height > 0
        self.folds_first = not self.is_ordered and set(self.charges.rows_by_dimensions) <= {()}

    @cached_property
    def lone_pieces(self) -> pl.DataFrame:
        """Pieces that are the only one of their customer and meter: owner_and_meter, slot, start, end."""
        frame = self.frame.with_columns(_owner_and_meter())
        lone = frame.filter(pl.len().over("owner_and_meter") == 1)
        lone = lone.with_columns(price_row=pl.lit(0, pl.UInt32))
        return lone.select("owner_and_meter", _slot(), "start", "end")


def _shared(values: Sequence[Any], dtype: Any) -> pl.Series:
    """A column of Python values of which few differ: each is converted once."""
    places: dict[Any, int] = {}
    column = [places.setdefault(value, len(places)) for value in values]
    return pl.Series(list(places), dtype=dtype).gather(pl.Series(column, dtype=pl.UInt32))


SLOT_ROWS = 1 << 17  # above PRICE_ROWS_MAX: a slot is piece x SLOT_ROWS + price row, one key instead of two
_BY_SLOT = ("slot",)


def _slot() -> pl.Expr:
    return (pl.col("piece").cast(pl.UInt64) * SLOT_ROWS + pl.col("price_row").cast(pl.UInt64)).alias("slot")


def _fold_batch(events: pl.DataFrame, table: _Pieces) -> tuple[MeterState, pl.DataFrame]:
    """The state by piece and price row, and the single events of rows whose price asks for them."""
    kinds = _row_kinds(table.charges)
    states: list[MeterState] = []
    singles: list[pl.DataFrame] = []
    for usage, counted in _usage_of_owners(events, table):
        if table.folds_first:
            whole, counted = _fold_before_join(counted, table)
            states.append(whole)
        rowed = _joined(usage, counted, table)
        states.append(fold(rowed.select("slot", *_FOLD_COLUMNS), _BY_SLOT))
        if kinds.height:
            singles += _single_events(rowed, usage, kinds)
    if not states:
        states = [fold(pl.DataFrame(schema=_FOLDED), _BY_SLOT)]
    # A charge has one meter and a meter one type of events, so no two types share a slot: nothing to merge.
    state = MeterState(
        _BY_SLOT,
        pl.concat([one.small for one in states]),
        pl.concat([one.sets for one in states]),
        pl.concat([one.runs for one in states]),
    )
    return state, pl.concat(singles) if singles else pl.DataFrame(schema=_SINGLES)


def _fold_before_join(counted: pl.DataFrame, table: _Pieces) -> tuple[MeterState, pl.DataFrame]:
    """Fold by customer and meter where one piece takes all of it: a join of groups, not of events.

    The second result are the events that must be joined one by one: their group reaches beyond its piece, several
    pieces share it, or an event names a subscription.
    """
    group = ("owner_and_meter",)
    named = counted.filter(pl.col("subscription").is_not_null()).select(group)
    one_by_one = counted.join(named, on=group, how="semi") if named.height else counted.clear()
    counted = counted.join(named, on=group, how="anti") if named.height else counted
    folded = fold(counted.select(*group, *_FOLD_COLUMNS), group)
    placed = folded.small.select(*group, "first", "last").join(table.lone_pieces, on=group, how="left")
    inside = (pl.col("first") >= pl.col("start")) & (pl.col("last") < pl.col("end"))
    placed = placed.with_columns(inside=inside.fill_null(False))
    slots = placed.filter("inside").select(*group, "slot")
    whole = MeterState(
        _BY_SLOT,
        folded.small.join(slots, on=group, how="inner").select("slot", pl.exclude("slot", *group)),
        folded.sets.join(slots, on=group, how="inner").select("slot", "text"),
        folded.runs.join(slots, on=group, how="inner").select("slot", pl.exclude("slot", *group)),
    )
    if slots.height < placed.height:
        beyond = counted.join(placed.filter(~pl.col("inside")), on=group, how="semi")
        one_by_one = pl.concat([one_by_one, beyond])
    return whole, one_by_one


def _counted(events: pl.DataFrame, table: _Pieces) -> Iterator[tuple[_Usage, pl.DataFrame]]:
    """By event type, each event with the piece and price row (`slot`) that it counts for."""
    for usage, counted in _usage_of_owners(events, table):
        yield usage, _joined(usage, counted, table)


def _usage_of_owners(events: pl.DataFrame, table: _Pieces) -> Iterator[tuple[_Usage, pl.DataFrame]]:
    """By event type, what the events of the pieces' customers measure, with the key of customer and meter."""
    owners = events.select("customer").join(
        table.keys, left_on="customer", right_on="key", how="left", maintain_order="left"
    )["owner"]
    # Ids and sources are texts that only ordered meters and prices look at: others do not carry them along.
    order = EVENT_ORDER if table.is_ordered else ("time",)
    frame = events.select("type", "subscription", "data", *order).with_columns(owners)
    frame = (frame.filter(owners.is_not_null()) if owners.null_count() else frame).with_row_index("row")
    for usage in _measured(frame, table.meter_tables, table.properties):
        unread = usage.pairs["missing"].any() or usage.pairs["invalid"].any()
        pairs = usage.pairs.filter(~pl.col("missing") & ~pl.col("invalid")) if unread else usage.pairs
        counted = usage.with_events(pairs, ("owner", "subscription", *order)).with_columns(_owner_and_meter())
        if not table.is_ordered:
            counted = counted.with_columns(id=pl.lit("", pl.String), source=pl.lit("", pl.String))
        yield usage, counted


def _joined(usage: _Usage, counted: pl.DataFrame, table: _Pieces) -> pl.DataFrame:
    pieces = table.frame.select(_owner_and_meter(), "piece", "of_subscription", "charge", "start", "end", "is_level")
    met = counted.join(pieces, on="owner_and_meter", how="inner").filter(
        _counts_for() & (pl.col("time") < pl.col("end")) & ((pl.col("time") >= pl.col("start")) | pl.col("is_level"))
    )
    return _with_rows(met, usage, table.charges).filter(pl.col("price_row").is_not_null()).with_columns(_slot())


_FOLD_COLUMNS = ("aggregation", pl.lit(False).alias("keep"), *EVENT_ORDER, "value", "text")
_FOLDED = pl.Schema({
    "slot": pl.UInt64, "aggregation": AGGREGATION, "keep": pl.Boolean, "time": INSTANT,
    "id": pl.String, "source": pl.String, "value": NUMBER, "text": pl.String,
})  # fmt: skip


def _owner_and_meter() -> pl.Expr:
    return (pl.col("owner").cast(pl.UInt64) * (1 << 32) + pl.col("meter").cast(pl.UInt64)).alias("owner_and_meter")


_SINGLES = pl.Schema({"slot": pl.UInt64, "time": INSTANT, "id": pl.String, "source": pl.String, "value": NUMBER})


def _row_kinds(charges: _Charges) -> pl.DataFrame:
    """The price rows that price events one by one, with the property that holds the event's own amount, if any."""
    rows = [
        (number, place, row.price.property if isinstance(row.price, EventAmount) else None)
        for number, charge in enumerate(charges.charges)
        for place, row in enumerate(charge.rows)
        if row.price.model in ("percentage", "event_amount", "bands")
    ]
    return pl.DataFrame(rows, schema={"charge": pl.UInt32, "price_row": pl.UInt32, "property": pl.String}, orient="row")


def _single_events(rowed: pl.DataFrame, usage: _Usage, kinds: pl.DataFrame) -> list[pl.DataFrame]:
    priced = rowed.join(kinds, on=["charge", "price_row"], how="inner")
    found: list[pl.DataFrame] = []
    for (name,), group in priced.group_by("property"):
        if name is None:
            value = (
                pl.when(pl.col("aggregation") == "count").then(pl.lit(Decimal(1), NUMBER)).otherwise(pl.col("value"))
            )
            group = group.with_columns(value=value)
        elif str(name) in usage.texts:
            own = numbers(usage.texts[str(name)].gather(group["place"]))
            group = group.with_columns(value=own).filter(pl.col("value").is_not_null())
        found.append(group.select(_SINGLES.names()))
    return found


def _price(table: _Pieces, state: MeterState, singles: pl.DataFrame) -> RatedPieces:
    minimum_charges = [
        number
        for number, charge in enumerate(table.charges.charges)
        if charge.price is not None and charge.minimum is not None and charge.minimum > 0
    ]
    idle = (
        table.frame.filter(pl.col("charge").is_in(pl.Series(minimum_charges, dtype=pl.UInt32).implode()))
        .select("piece", pl.lit(0, pl.UInt32).alias("price_row"))
        .select(_slot())
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
    rated, odd = finish(state, groups, _BY_SLOT)
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


def _rows_in_use(rated: pl.DataFrame, table: _Pieces) -> tuple[list[PriceRow], pl.DataFrame]:
    """The price rows that any line uses, and where they stand in that list."""
    used = rated.select("charge", "price_row").unique().sort("charge", "price_row").with_row_index("price")
    rows = [
        table.charges.charges[int(charge)].rows[int(row)]
        for charge, row in used.select("charge", "price_row").iter_rows()
    ]
    return rows, used


def _odd_shares(rated: pl.DataFrame, table: _Pieces) -> dict[int, Fraction]:
    prorates = [charge.prorate_usage for charge in table.charges.charges]
    if not any(prorates):
        return {}
    prorated = pl.Series(
        [
            number
            for number, (piece, charge) in enumerate(zip(table.pieces, table.frame["charge"], strict=True))
            if prorates[charge] and piece.share != ONE
        ],
        dtype=pl.UInt32,
    )
    if prorated.len() == 0:
        return {}
    found = rated.filter(pl.col("piece").is_in(prorated.implode())).select("line", "piece")
    return {line: table.pieces[int(piece)].share for line, piece in found.iter_rows()}


# --- live figures -------------------------------------------------------------------------------------------------


def fold_days(events: pl.DataFrame, book: RatingBook) -> LiveState:
    """Fold events that can be rated, whatever contracts and prices come later.

    Prices, overrides and plans may change without folding again. A new dimension, a new `event_amount` property, a
    first price per event on a meter, or a cut of time inside a day (`book.cuts`) needs the affected keys folded again.
    """
    frame = events.select(EVENT_SCHEMA.names()).with_row_index("row")
    codes = pl.Series([meter.code for meter in book.meters], dtype=pl.String)
    found: list[pl.DataFrame] = []
    for usage in _measured(frame, book.meter_tables, book.properties):
        pairs = usage.pairs.filter(~pl.col("missing") & ~pl.col("invalid"))
        met = usage.with_events(pairs, ("customer", "subscription", *EVENT_ORDER))
        for live, meters in book.live_meters:
            group = met.filter(pl.col("meter").is_in(meters.implode())) if len(book.live_meters) > 1 else met
            if group.height == 0:
                continue
            texts = {name: usage.texts[name].gather(group["place"]).alias(name) for name in live.dimensions}
            group = group.with_columns(
                key=pl.col("customer"),
                meter=codes.gather(group["meter"]),
                measure=pl.lit(""),
                dimensions=_json_objects(texts, group.height),
                keep=pl.lit(live.keep),
            )
            found.append(group.select(_LIVE_ROW.names()))
            for name in live.amounts:
                own = numbers(usage.texts[name].gather(group["place"])).alias("value")
                priced = group.with_columns(
                    own,
                    measure=pl.lit(name),
                    aggregation=pl.lit("sum", AGGREGATION),
                    keep=pl.lit(False),
                    text=pl.lit(None, pl.String),
                )
                found.append(priced.filter(pl.col("value").is_not_null()).select(_LIVE_ROW.names()))
    rows = pl.concat(found) if found else pl.DataFrame(schema=_LIVE_ROW)
    return LiveState(fold(_with_cells(rows, book), LIVE_BY))


def merge_live(left: LiveState, right: LiveState) -> LiveState:
    """One live state of two over different events."""
    return LiveState(merge(left.state, right.state))


def rate_live(pieces: Sequence[UsagePiece], live: LiveState, book: RatingBook) -> RatedPieces:
    """What `rate` gives for the same pieces over the events that were folded."""
    table = _Pieces(pieces, book, book.timezone)
    codes = pl.DataFrame(
        {"meter": pl.Series(range(len(book.meters)), dtype=pl.UInt32), "code": [m.code for m in book.meters]}
    )
    small = live.state.small.with_row_index("cell")
    cells = small.join(codes, left_on="meter", right_on="code", how="inner").with_columns(meter=pl.col("meter_right"))
    of_pieces = table.frame.join(table.keys, on="owner", how="inner").select(
        "piece", "key", "of_subscription", "charge", "meter", "start", "end", "is_level"
    )
    met = cells.join(of_pieces, on=["key", "meter"], how="inner").filter(
        _counts_for() & (pl.col("first") < pl.col("end")) & ((pl.col("last") >= pl.col("start")) | pl.col("is_level"))
    )
    across = (pl.col("last") >= pl.col("end")) | ((pl.col("first") < pl.col("start")) & ~pl.col("is_level"))
    assert met.filter(across).height == 0, "a piece begins or ends inside a folded cell: it has to be in book.cuts"
    names = {name for names in table.charges.rows_by_dimensions for name in names}
    texts = property_texts(met["dimensions"], names)
    met = _matched(met, texts, table.charges).filter(pl.col("price_row").is_not_null())
    met = met.with_columns(_slot())
    own = met.filter(pl.col("measure") == "")
    to_lines = own.select("slot", "cell")
    numbered = small.select("cell", *LIVE_BY)
    sets = live.state.sets.join(numbered, on=LIVE_BY, how="inner", nulls_equal=True)
    runs = live.state.runs.join(numbered, on=LIVE_BY, how="inner", nulls_equal=True)
    state = regroup(
        MeterState(
            _BY_SLOT,
            own,
            sets.join(to_lines, on="cell", how="inner"),
            runs.join(to_lines, on="cell", how="inner"),
        ),
        _BY_SLOT,
    )
    return _price(table, state, _live_singles(table, met, runs))


def _live_singles(table: _Pieces, met: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """The events that prices of single events look at; for `event_amount` their sums do as well."""
    kinds = _row_kinds(table.charges)
    if kinds.height == 0:
        return pl.DataFrame(schema=_SINGLES)
    counts = pl.Series([meter.aggregation == "count" for meter in table.meters], dtype=pl.Boolean)
    priced = met.join(kinds, on=["charge", "price_row"], how="inner")
    each = priced.filter(pl.col("property").is_null() & (pl.col("measure") == ""))
    each = each.with_columns(counts=counts.gather(each["meter"])).select("slot", "cell", "counts")
    single = runs.join(each, on="cell", how="inner").with_columns(
        value=pl.when("counts").then(pl.lit(Decimal(1), NUMBER)).otherwise(pl.col("value"))
    )
    by_value = priced.filter(pl.col("property") == pl.col("measure"))
    sums = by_value.select(
        "slot", pl.col("first").alias("time"), pl.lit("").alias("id"), pl.lit("").alias("source"),
        pl.col("sum").alias("value"),
    )  # fmt: skip
    huge = runs.join(by_value.select("slot", "cell"), on="cell", how="inner")
    return pl.concat([single.select(_SINGLES.names()), sums, huge.select(_SINGLES.names())])


@dataclass(frozen=True)
class _LiveMeter:
    """What the live state keeps of a meter: dimensions and amounts that prices look at, and whether single events."""

    event_type: str
    dimensions: tuple[str, ...]
    amounts: tuple[str, ...]
    keep: bool


def _live_meters(book: RatingBook) -> list[tuple[_LiveMeter, pl.Series]]:
    by_meter: dict[str, list[Charge]] = {}
    for charge in book.charges.charges:
        by_meter.setdefault(charge.meter, []).append(charge)
    found: dict[_LiveMeter, list[int]] = {}
    for number, meter in enumerate(book.meters):
        charges = by_meter.get(meter.code, [])
        prices = [row.price for charge in charges for row in charge.rows]
        kept = _LiveMeter(
            meter.event_type,
            tuple(sorted({name for charge in charges for name in charge.price_by})),
            tuple(sorted({price.property for price in prices if isinstance(price, EventAmount)})),
            any(price.model in ("percentage", "bands") for price in prices),
        )
        found.setdefault(kept, []).append(number)
    return [(kept, pl.Series(numbers_of, dtype=pl.UInt32)) for kept, numbers_of in found.items()]


_LIVE_ROW = pl.Schema({
    "key": pl.String, "subscription": pl.String, "meter": pl.String, "measure": pl.String, "dimensions": pl.String,
    "aggregation": AGGREGATION, "keep": pl.Boolean, "time": INSTANT, "id": pl.String, "source": pl.String,
    "value": NUMBER, "text": pl.String,
})  # fmt: skip


def _json_objects(texts: Mapping[str, pl.Series], height: int) -> pl.Series:
    if not texts:
        return pl.repeat("{}", height, dtype=pl.String, eager=True)
    return pl.DataFrame(list(texts.values())).to_struct("dimensions").struct.json_encode()


def _with_cells(rows: pl.DataFrame, book: RatingBook) -> pl.DataFrame:
    """Rows with `at`: the start of their local day, or the last cut before them on that day."""
    local = pl.col("time").dt.convert_time_zone(book.timezone).dt.replace_time_zone(None).dt.truncate("1d")
    # A midnight that does not exist is the first moment after the gap; one that exists twice is the first.
    day = pl.coalesce(
        local.dt.replace_time_zone(book.timezone, ambiguous="earliest", non_existent="null"),
        (local + pl.duration(hours=1)).dt.replace_time_zone(book.timezone, ambiguous="earliest", non_existent="null"),
    ).dt.convert_time_zone("UTC")
    rows = rows.with_columns(at=day.cast(INSTANT))
    if book.cuts.height == 0:
        return rows
    owners = book.customers.select("key", pl.col("customer").alias("owner"))
    cuts = book.cuts.select(pl.col("customer").alias("owner"), pl.col("at").alias("cut")).sort("cut")
    return (
        rows.join(owners, on="key", how="left")
        .sort("time")
        .join_asof(cuts, left_on="time", right_on="cut", by="owner", strategy="backward", check_sortedness=False)
        .with_columns(at=pl.max_horizontal("at", "cut"))
        .drop("owner", "cut")
    )
