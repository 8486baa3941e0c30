"""Which events in suspense are meant: the same filter for looking at them and for correcting all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl
from fastapi import Query

from billing.errors import FieldError, InvalidInput
from billing.periods import TimeInvalid, parse_moment
from deployments.bodies import known_keys, text_of

TEXTS = ("reason", "customer", "source", "type", "q")
TIMES = ("since", "until")


@dataclass(frozen=True)
class SuspenseFilter:
    """What is None does not matter. Times are of the events, half-open, as sent."""

    reason: str | None = None
    customer: str | None = None
    source: str | None = None
    type: str | None = None
    q: str | None = None
    since: str | None = None
    until: str | None = None

    @classmethod
    def of(cls, form: Any) -> "SuspenseFilter":
        """From a body. An empty one is refused: nobody means everything by saying nothing."""
        known: Mapping[str, Any] = known_keys(form, (*TEXTS, *TIMES))
        if not known:
            raise InvalidInput("the filter is empty", errors=[FieldError("/filter", "say which events are meant")])
        return cls(**{name: text_of(known, name) for name in known})

    def keeps(self, timezone: str) -> pl.Expr:
        """Over events with their `reason`."""
        kept = pl.col("reason").is_not_null()
        for name in ("reason", "customer", "source", "type"):
            value = getattr(self, name)
            if value is not None:
                kept &= pl.col(name) == value
        if self.q is not None:
            places = [pl.col(name).str.contains(self.q, literal=True) for name in ("id", "customer", "source", "data")]
            kept &= pl.any_horizontal(place.fill_null(value=False) for place in places)
        if self.since is not None:
            kept &= pl.col("time") >= self._moment("since", self.since, timezone)
        if self.until is not None:
            kept &= pl.col("time") < self._moment("until", self.until, timezone)
        return kept

    def _moment(self, name: str, text: str, timezone: str) -> datetime:
        try:
            return parse_moment(text, timezone)
        except TimeInvalid as error:
            raise InvalidInput(f"{name}: {error}", errors=[FieldError(f"query:{name}", str(error))]) from error


def suspense_filter(
    reason: str | None = Query(None, max_length=50, description="Only this reason."),
    customer: str | None = Query(None, max_length=256, description="Only under this customer key."),
    source: str | None = Query(None, max_length=256, description="Only of this source."),
    type: str | None = Query(None, max_length=256, description="Only of this type."),
    q: str | None = Query(None, max_length=256, description="Only with this text in id, customer, source or data."),
    since: str | None = Query(None, max_length=40, description="Only events of this day or time, or later."),
    until: str | None = Query(None, max_length=40, description="Only events before this day or time."),
) -> SuspenseFilter:
    """A dependency: the filter that a request asks for."""
    return SuspenseFilter(reason, customer, source, type, q, since, until)
