"""The verdict on an event: what keeps it in suspense, or that it can be rated now.

Owns the order of reasons and the columnar way. Few events are judged one by one in `billing/few_events.py`; the many in
which nothing can be wrong are settled first, in `billing/quick_verdicts.py`.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from billing.few_events import EVENTS_MAX, few_events_of
from billing.measured import Usage, counts_for, measured, with_rows
from billing.quick_verdicts import quick_verdicts_of
from billing.rating_book import RatingBook
from billing.typed_columns import event_columns
from billing.usage import INSTANT, Reason

REASON = pl.Enum([reason.value for reason in Reason])


def classify(
    events: pl.DataFrame, book: RatingBook, now: datetime, *, new: pl.Series | None = None, known: bool = False
) -> pl.Series:
    """The first reason that keeps each event in suspense, null where it can be rated.

    `new` marks rows that arrived just now: only they can be late (what was billed in time stays in time). `known` says
    that all events are of customers in the book: who has joined them with it need not have each looked up again.
    """
    # Where typed columns say it all the texts are not there (`UsageLogReader.scan`, narrow): one by one looks at these.
    has_texts = not events["data"].null_count()
    if events.height <= EVENTS_MAX and has_texts:
        return pl.Series("reason", few_events_of(book).reasons(events, now, new), dtype=REASON)
    quick = quick_verdicts_of(book)
    if quick.settles_nothing:
        return classify_columns(events, book, now, new=new)
    places = quick.unsettled(events, now, known=known)
    settled = pl.repeat(None, events.height, dtype=REASON, eager=True).alias("reason")
    if not len(places):
        return settled
    if len(places) <= EVENTS_MAX and has_texts:
        rest = few_events_of(book).reasons(events[places], now, None if new is None else new.gather(places))
        return settled.scatter(places, pl.Series("reason", rest, dtype=REASON))
    rest = classify_columns(events[places], book, now, new=None if new is None else new.gather(places))
    return settled.scatter(places, rest)


def classify_columns(
    events: pl.DataFrame, book: RatingBook, now: datetime, *, new: pl.Series | None = None
) -> pl.Series:
    """`classify` for many events."""
    frame = events.select(event_columns(events)).with_row_index("row")
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
    for usage in measured(frame, book.meter_tables, ask.properties):
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

    def about(self, usage: Usage) -> tuple[pl.Series, pl.Series, pl.Series, pl.Series]:
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
                counts_for()
                & (pl.col("time") >= pl.col("start"))
                & (pl.col("end").is_null() | (pl.col("time") < pl.col("end")))
            )
        )
        late = none
        if self._book.rejects_late and self._book.billed.height:
            billed = met.join(self._book.billed, left_on="of_subscription", right_on="subscription", how="inner")
            late = _marked(billed.filter(pl.col("time") < pl.col("until")), self._count)
        rowed = with_rows(met, usage, self._book.charges)
        no_price = _marked(rowed.filter(pl.col("price_row").is_null()), self._count)
        missing = invalid = none
        by_value = rowed.join(self._book.charges.amounts, on=["charge", "price_row"], how="inner")
        for (name,), group in by_value.group_by("property"):
            lacking = usage.texts.lacks(str(name)).gather(group["place"])
            values = usage.texts.number(str(name)).gather(group["place"])
            missing = missing | _marked(group.filter(lacking), self._count)
            invalid = invalid | _marked(group.filter(~lacking & values.is_null()), self._count)
        return missing, invalid, late, no_price

    def paused(self, usage: Usage) -> pl.Series:
        """Events of a time in which a subscription that they would count for is paused."""
        if self._book.pauses.height == 0:
            return _flags(self._count)
        pauses = self._book.pauses.rename({"customer": "owner", "subscription": "of_subscription"})
        met = usage.with_events(usage.pairs, ("owner", "subscription", "time")).join(
            pauses, on=["owner", "meter"], how="inner"
        )
        inside = (pl.col("time") >= pl.col("start")) & (pl.col("time") < pl.col("end"))
        return _marked(met.filter(counts_for() & inside), self._count)


def _flags(count: int) -> pl.Series:
    return pl.repeat(False, count, dtype=pl.Boolean, eager=True)


def _marked(rows: pl.DataFrame, count: int) -> pl.Series:
    """True at the events that these rows came from."""
    return _flags(count) if rows.height == 0 else _flags(count).scatter(rows["row"].unique(), True)
