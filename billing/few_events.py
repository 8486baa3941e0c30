"""The verdict on few events, one by one: what `verdicts.classify` says in columns, without a dozen small frames.

A frame costs a tenth of a millisecond whatever it holds, so a lone event would pay for all of them. Owns the tables by
customer that such an answer needs; they are made once per book. A property test holds both ways together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import polars as pl

from billing.catalog import Charge, EventAmount, Meter
from billing.meters import properties_of
from billing.money import parse_number
from billing.rating_book import RatingBook
from billing.usage import Reason

EVENTS_MAX = 128  # beyond it columns are cheaper


@dataclass(frozen=True)
class _Contract:
    subscription: str
    start: datetime
    end: datetime | None
    plan: int

    def holds(self, time: datetime) -> bool:
        return self.start <= time and (self.end is None or time < self.end)


@dataclass(frozen=True)
class FewEvents:
    """A rating book as dictionaries, by the customer who is asked about."""

    book: RatingBook

    def reasons(self, events: pl.DataFrame, now: datetime, new: pl.Series | None) -> list[str | None]:
        """The first reason that keeps each event in suspense, None where it can be rated."""
        columns = ("customer", "subscription", "type", "time", "data")
        fresh = [True] * events.height if new is None else new.to_list()
        latest = now + self.book.future_limit
        return [
            self._reason(_Event(*row), latest, is_new)
            # Column by column: a `select` is a query, for which Polars goes to another thread and back.
            for *row, is_new in zip(*(events.get_column(name) for name in columns), fresh, strict=True)
        ]

    @cached_property
    def _owners(self) -> dict[str, str]:
        return dict(self.book.customers.select("key", "customer").iter_rows())

    @cached_property
    def _contracts(self) -> dict[str, list[_Contract]]:
        found: dict[str, list[_Contract]] = {}
        for customer, *contract in self.book.contracts.select(
            "customer", "subscription", "start", "end", "plan"
        ).iter_rows():
            found.setdefault(customer, []).append(_Contract(*contract))
        return found

    @cached_property
    def _meters(self) -> dict[str, list[tuple[int, Meter]]]:
        found: dict[str, list[tuple[int, Meter]]] = {}
        for place, meter in enumerate(self.book.meters):
            found.setdefault(meter.event_type, []).append((place, meter))
        return found

    @cached_property
    def _pauses(self) -> dict[tuple[str, int], list[tuple[str, datetime, datetime]]]:
        found: dict[tuple[str, int], list[tuple[str, datetime, datetime]]] = {}
        for customer, meter, *pause in self.book.pauses.select(
            "customer", "meter", "subscription", "start", "end"
        ).iter_rows():
            found.setdefault((customer, meter), []).append((pause[0], pause[1], pause[2]))
        return found

    @cached_property
    def _billed(self) -> Mapping[str, datetime]:
        return dict(self.book.billed.select("subscription", "until").iter_rows()) if self.book.rejects_late else {}

    def _reason(self, event: _Event, latest: datetime, is_new: bool) -> str | None:
        owner = self._owners.get(event.customer)
        if owner is None:
            return Reason.UNKNOWN_CUSTOMER.value
        contracts = self._contracts.get(owner, ())
        if event.subscription is not None and all(one.subscription != event.subscription for one in contracts):
            return Reason.UNKNOWN_SUBSCRIPTION.value
        meters = self._meters.get(event.type)
        if meters is None:
            return Reason.UNKNOWN_TYPE.value
        found: set[Reason] = set()
        for place, meter in meters:
            if any(event.text(name) not in values for name, values in meter.filter):
                continue
            if meter.value is not None:
                found |= _readable(event.text(meter.value), is_number=meter.aggregation != "unique_count")
            for contract in contracts:
                if contract.holds(event.time) and event.counts_for(contract.subscription):
                    found |= self._of_contract(event, contract, meter.code)
            for subscription, start, end in self._pauses.get((owner, place), ()):
                if start <= event.time < end and event.counts_for(subscription):
                    found.add(Reason.PAUSED)
        if event.time > latest:
            found.add(Reason.FUTURE)
        if not is_new:
            found.discard(Reason.LATE)
        return next((reason.value for reason in _IN_ORDER if reason in found), None)

    def _of_contract(self, event: _Event, contract: _Contract, meter: str) -> set[Reason]:
        found: set[Reason] = set()
        for charge in self.book.plans[contract.plan]:
            if charge.kind != "usage" or charge.meter != meter:
                continue
            until = self._billed.get(contract.subscription)
            if until is not None and event.time < until:
                found.add(Reason.LATE)
            found |= _price_of(charge, event.text)
        return found


def few_events_of(book: RatingBook) -> FewEvents:
    """The tables of a book, made once for it."""
    found = book.__dict__.get("_few_events")
    if found is None:
        found = FewEvents(book)
        book.__dict__["_few_events"] = found  # a cache beside the frozen fields, not a change of the value
    return found


_IN_ORDER = (Reason.MISSING_PROPERTY, Reason.INVALID_VALUE, Reason.FUTURE, Reason.LATE, Reason.NO_PRICE, Reason.PAUSED)


@dataclass(frozen=True)
class _Event:
    customer: str
    subscription: str | None
    type: str
    time: datetime
    data: str

    @cached_property
    def text(self) -> Callable[[str], str | None]:
        return properties_of(self.data)

    def counts_for(self, subscription: str) -> bool:
        return self.subscription is None or self.subscription == subscription


def _readable(text: str | None, *, is_number: bool = True) -> set[Reason]:
    if text is None:
        return {Reason.MISSING_PROPERTY}
    return {Reason.INVALID_VALUE} if is_number and parse_number(text) is None else set()


def _price_of(charge: Charge, text: Callable[[str], str | None]) -> set[Reason]:
    """What keeps the first price row that fits from pricing; no row may fit."""
    for row in charge.rows:
        if all(text(name) == value for name, value in row.when):
            return _readable(text(row.price.property)) if isinstance(row.price, EventAmount) else set()
    return {Reason.NO_PRICE}
