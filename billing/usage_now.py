"""Usage at a moment: what the running periods of a customer have used and cost so far.

Owns what that means: all events of the running period that count, those ahead of the clock included; levels up to the
moment; cost is each line's rounded amount without discounts. Scenario files, the API and pages ask here.
Source: docs/rules.md, Usage at a moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

import polars as pl

from billing.catalog import Charge, EventAmount
from billing.due import Use
from billing.live_state import LiveState
from billing.master import MasterData
from billing.money import round_amount, shown_quantity
from billing.rate_uses import rate_uses, rate_uses_live
from billing.rating_book import RatingBook
from billing.running import is_level, running_uses, until
from billing.settle import RatedRow


@dataclass(frozen=True)
class UsageLine:
    """One charge and price row of a subscription in its running period `[start, end)`."""

    subscription: str
    charge: str
    meter: str
    when: Mapping[str, str] | None
    start: datetime
    end: datetime
    quantity: Decimal
    cost: Decimal
    currency: str


@dataclass(frozen=True)
class MeterUsage:
    """One meter in one currency: its quantity (once, however many subscriptions bill it), and what all of them cost."""

    meter: str
    currency: str
    quantity: Decimal
    cost: Decimal


@dataclass(frozen=True)
class UsageNow:
    meters: tuple[MeterUsage, ...]
    lines: tuple[UsageLine, ...]

    def of(self, meter: str, currency: str) -> MeterUsage:
        """A meter's usage, in that currency if there is any; nothing used is 0."""
        found = [one for one in self.meters if one.meter == meter]
        found.sort(key=lambda one: one.currency != currency)
        return found[0] if found else MeterUsage(meter, currency, Decimal(0), round_amount(0, currency))


def usage_now(
    master: MasterData, customer: str | None, now: datetime, events: pl.DataFrame, meter: str = ""
) -> UsageNow:
    """`events` (EVENT_SCHEMA): those of the customer that can be rated, whole for the running periods (for levels also
    the last one before); more do no harm. `meter` asks for one only."""
    uses = [
        Use(use.contract, until(use.piece, max(now, use.piece.start)), None) if is_level(master, use) else use
        for use in running_uses(master, customer, now, meter=meter)
    ]
    return _summed(uses, rate_uses(master, uses, events))


def usage_now_live(master: MasterData, customer: str, now: datetime, live: LiveState) -> UsageNow | None:
    """The same of what shards have folded of the customer's keys.

    None where only the events can say: levels (they cost until this moment), events ahead of the clock (some are in
    suspense until their time) and those that a run before may have made late.
    """
    uses = running_uses(master, customer, now)
    if any(is_level(master, use) for use in uses):
        return None
    earliest = min((use.piece.start for use in uses), default=now)
    return _summed(uses, rate_uses_live(master, uses, live)) if says_all(master, live, now, earliest) else None


def says_all(master: MasterData, live: LiveState, now: datetime, since: datetime | None) -> bool:
    """Whether what shards have folded counts as the events do from a time on (None: all).

    It does not with events ahead of the clock, of which some are in suspense until their time, not where a run may have
    made some late, and not where an event that is in suspense for one meter, price or pause is folded for another.
    """
    if not _counts_whole(master.rating_book(), live):
        return False
    if live.state.small.filter(pl.col("last") > now).height:
        return False
    late = any(since is None or run.up_to > since for run in master.closing_runs)
    return not late


def _counts_whole(book: RatingBook, live: LiveState) -> bool:
    """Whether each event counts for all that fold it or for none: what keeps it in suspense does so for all of them."""
    keys, codes = (live.state.small[name].unique() for name in ("key", "meter"))
    owners = book.customers.filter(pl.col("key").is_in(keys.implode()))["customer"].unique()
    if book.pauses.filter(pl.col("customer").is_in(owners.implode())).height:
        return False
    plans = book.contracts.filter(pl.col("customer").is_in(owners.implode()))["plan"].unique()
    places: list[int] = plans.to_list()
    charges: list[Charge] = [charge for place in places for charge in book.plans[place]]
    used = set(codes)
    for event_type in {meter.event_type for meter in book.meters if meter.code in used}:
        meters = {meter.code: meter for meter in book.meters if meter.event_type == event_type}
        if len(meters) > 1 and any(meter.value for meter in meters.values()):
            return False  # without the value of one of them it counts for none
        own = [charge for charge in charges if charge.meter in meters]
        if any(isinstance(row.price, EventAmount) for charge in own for row in charge.rows):
            return False
        if len(own) > 1 and any(all(row.when for row in charge.rows) for charge in own):
            return False  # what has no price in one of them counts for none
    return True


def _summed(uses: Sequence[Use], rated: Mapping[int, Sequence[RatedRow]]) -> UsageNow:
    lines: list[UsageLine] = []
    quantities: dict[tuple[str, str], Decimal] = {}
    costs: dict[tuple[str, str], Decimal] = {}
    for number, use in enumerate(uses):
        charge, currency = use.piece.span.charge, use.piece.span.segment.plan.currency
        rows = rated.get(number, ())
        key = (charge.meter, currency)
        if key not in quantities:
            quantities[key] = shown_quantity(sum((Fraction(row.quantity) for row in rows), Fraction(0)))
            costs[key] = round_amount(0, currency)
        for row in rows:
            cost = round_amount(row.amount, currency)
            costs[key] += cost
            when = dict(charge.rows[row.row].when) if charge.rows[row.row].when else None
            period = use.piece.span.segment.grid.at(use.piece.start)
            end = min(use.piece.span.end, period.end)
            lines.append(
                UsageLine(
                    use.contract.subscription.code,
                    charge.code,
                    charge.meter,
                    when,
                    use.piece.start,
                    end,
                    row.shown,
                    cost,
                    currency,
                )
            )
    meters = [MeterUsage(name, currency, quantities[name, currency], costs[name, currency]) for name, currency in costs]
    return UsageNow(tuple(sorted(meters, key=lambda one: (one.meter, one.currency))), tuple(lines))


def needed_from(master: MasterData, customer: str, now: datetime) -> datetime | None:
    """From which time on `usage_now` needs events; None (all) where a level may carry over from long ago."""
    uses: Sequence[Use] = running_uses(master, customer, now)
    if any(is_level(master, use) for use in uses):
        return None
    return min((use.piece.start for use in uses), default=now)
