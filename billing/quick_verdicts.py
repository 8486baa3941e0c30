"""The verdict on the many events in which nothing can be wrong, in one pass: they can be rated now.

Owns what is sufficient, never what is necessary: a known customer, a type whose meters look at plain values alone, a
flat object that holds such values, a time that has come. All others are asked one reason after the other
(`billing/verdicts.py`), which costs ten times as much; a property test holds that nothing is settled here that is in
suspense there.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import reduce

import numpy as np
import numpy.typing as npt
import polars as pl

from billing.catalog import EventAmount
from billing.rating_book import RatingBook
from billing.typed_columns import NUMBER_PREFIX, TEXT_PREFIX, typed_names
from billing.usage import INSTANT

_NUMBER = r"-?[0-9]{1,26}(?:\.[0-9]{1,12})?"
_DATA = pl.col("data")
# One object without objects inside and without escapes: what looks like a member is one.
_FLAT = (_DATA.str.count_matches("{", literal=True) == 1) & ~_DATA.str.contains("\\", literal=True)


class QuickVerdicts:
    """What a rating book settles at once. Made once per book: its expressions, and customers' keys by their hash."""

    def __init__(self, book: RatingBook) -> None:
        self._limit = book.future_limit
        self._easy = _easy_types(book)
        paused = book.pauses["customer"].unique()
        self._pauses_nobody = paused.len() == 0
        keys = book.customers.filter(~pl.col("customer").is_in(paused.implode()))["key"]
        hashes = keys.hash().to_numpy()
        order = np.argsort(hashes)
        self._hashes: npt.NDArray[np.uint64] = hashes[order]
        self._keys = keys[order]

    @property
    def settles_nothing(self) -> bool:
        return not self._easy or not len(self._hashes)

    def unsettled(self, events: pl.DataFrame, now: datetime, *, known: bool = False) -> npt.NDArray[np.int64]:
        """The places of events that must be asked; `known`: all are of customers' keys, as the caller has found."""
        if self.settles_nothing:
            return np.arange(events.height)
        in_time = pl.col("time") <= pl.lit(now + self._limit, INSTANT)
        settled = events.select((self._settled(events) & in_time).fill_null(False).alias("settled"))
        settled = settled.to_series().to_numpy()
        if not known or not self._pauses_nobody:
            settled = settled & self._known(events["customer"])
        return np.flatnonzero(~settled)

    def _settled(self, events: pl.DataFrame) -> pl.Expr:
        """True for events of types that are easy, with all the values that their meters want."""
        typed = set(typed_names(events.columns))
        groups: list[pl.Expr] = []
        for values, types in self._easy.items():
            holds = _is_of(types)
            for name, is_number in sorted(values):
                column = (NUMBER_PREFIX if is_number else TEXT_PREFIX) + name
                # A typed value says what the text says. Where some are missing the text is asked about all.
                if column in typed and not events.select((_is_of(types) & pl.col(column).is_null()).any()).item():
                    holds &= pl.col(column).is_not_null()
                else:
                    holds &= _FLAT & _holds(name, is_number)
            groups.append(holds)
        return pl.col("subscription").is_null() & reduce(lambda one, other: one | other, groups)

    def _known(self, customers: pl.Series) -> npt.NDArray[np.bool_]:
        """Whose key is a customer's. The hash finds the place, the text decides; many are asked about by a hash table
        made for them, which is twice as fast."""
        if len(customers) > len(self._hashes):
            return customers.is_in(self._keys.implode()).to_numpy()
        places = np.searchsorted(self._hashes, customers.hash().to_numpy())
        places[places == len(self._hashes)] = 0
        return (self._keys.gather(places) == customers).to_numpy()


def quick_verdicts_of(book: RatingBook) -> QuickVerdicts:
    """Made once for a book."""
    found = book.__dict__.get("_quick_verdicts")
    if found is None:
        found = QuickVerdicts(book)
        book.__dict__["_quick_verdicts"] = found  # a cache beside the frozen fields, not a change of the value
    return found


def _easy_types(book: RatingBook) -> dict[frozenset[tuple[str, bool]], list[str]]:
    """Event types that are easy, by the values that their meters want (property, whether it must be a number)."""
    if book.rejects_late:
        return {}
    hard = {meter.event_type for meter in book.meters if meter.filter}
    for charge in book.charges.charges:
        if charge.price is None or charge.price_by or any(isinstance(row.price, EventAmount) for row in charge.rows):
            hard.add(book.meters[book.meter_places[charge.meter]].event_type)
    wanted: dict[str, set[tuple[str, bool]]] = {}
    for meter in book.meters:
        if meter.event_type not in hard:
            values = wanted.setdefault(meter.event_type, set())
            if meter.value is not None:
                values.add((meter.value, meter.aggregation != "unique_count"))
    types_of: dict[frozenset[tuple[str, bool]], list[str]] = {}
    for event_type, values in wanted.items():
        types_of.setdefault(frozenset(values), []).append(event_type)
    return types_of


def _is_of(types: list[str]) -> pl.Expr:
    return pl.col("type").is_in(types)


def _holds(name: str, is_number: bool) -> pl.Expr:
    """The object has this property once, with a plain number or, where any text will do, a text."""
    key = f'"{name}"'
    value = rf'(?:"{_NUMBER}"|{_NUMBER})' if is_number else '"[^"]*"'
    member = rf"[{{,]\s*{re.escape(key)}\s*:\s*{value}\s*[,}}]"
    return (_DATA.str.count_matches(key, literal=True) == 1) & _DATA.str.contains(member)
