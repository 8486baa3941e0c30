"""The rating book: master data as the columns that classifying and folding events need.

Owns the translation only: which customer a key belongs to, which usage charges are in force when, where time is cut
other than at local midnights, and up to when usage is billed (for tenants that reject late usage).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from itertools import pairwise

import polars as pl

from billing.catalog import Charge, Plan
from billing.contracts import FOREVER, Contract, Subscription, contracts_of, pieces_of_span
from billing.due import BEGINNING
from billing.master import MasterData
from billing.periods import local_date, midnight
from billing.rating_book import BILLED_SCHEMA, CONTRACTS_SCHEMA, CUTS_SCHEMA, KEYS_SCHEMA, PAUSES_SCHEMA, RatingBook


def rating_book(master: MasterData) -> RatingBook:
    """All of a tenant's customers and contracts in columns."""
    timezone = master.tenant.timezone
    contracts: list[tuple[str, str, datetime, datetime | None, int]] = []
    plans: list[tuple[Charge, ...]] = []
    places: dict[tuple[int, ...], int] = {}
    cuts: list[tuple[str, datetime]] = []
    for subscription, one in _contracts(master):
        changed = one is not None and one.changed
        for start, end, charges in _plans_in_time(subscription, one):
            key = (id(charges),) if not changed else tuple(id(charge) for charge in charges)
            place = places.setdefault(key, len(plans))
            if place == len(plans):
                plans.append(charges)
            contracts.append((subscription.customer, subscription.code, start, None if end == FOREVER else end, place))
            for moment in (start, end):
                if moment != FOREVER and midnight(local_date(moment, timezone), timezone) != moment:
                    cuts.append((subscription.customer, moment))
    closing = master.closing_runs
    keys = list(master.key_owners.items())
    return RatingBook(
        meters=tuple(master.meters.values()),
        customers=pl.DataFrame(keys, schema=KEYS_SCHEMA, orient="row"),
        contracts=pl.DataFrame(contracts, schema=CONTRACTS_SCHEMA, orient="row"),
        plans=tuple(plans),
        timezone=timezone,
        future_limit=master.tenant.future_limit,
        rejects_late=bool(closing),
        pauses=pl.DataFrame(_pauses(master), schema=PAUSES_SCHEMA, orient="row"),
        billed=pl.DataFrame(
            _billed_until(replace(master, runs=closing)) if closing else [], schema=BILLED_SCHEMA, orient="row"
        ),
        cuts=pl.DataFrame(sorted(set(cuts)), schema=CUTS_SCHEMA, orient="row"),
    )


def _contracts(master: MasterData) -> Iterator[tuple[Subscription, Contract | None]]:
    """Every subscription with its own contract, then with those of its add-ons.

    None where nothing can cut the contract: most are like that, and working out the course of each takes longer than
    all the rest of the book.
    """
    for subscription in master.subscriptions.values():
        if not (subscription.steps or subscription.add_ons or subscription.plan.phases):
            yield subscription, None
            continue
        for one in contracts_of(subscription, master.tenant.timezone):
            yield subscription, one


def _plans_in_time(
    subscription: Subscription, one: Contract | None
) -> list[tuple[datetime, datetime, tuple[Charge, ...]]]:
    """Which usage charges, with a subscription's own prices, are in force from when to when."""
    if one is None:
        return [(subscription.start, FOREVER, usage_charges(subscription.plan))]
    if not one.changed:
        return [(one.subscription.start, one.end, usage_charges(one.subscription.plan))]
    spans = [span for span in one.spans if span.charge.kind == "usage" and span.start < span.end]
    cuts = sorted({moment for span in spans for moment in (span.start, span.end)})
    if not cuts:
        return [(one.subscription.start, one.end, ())]  # known all the same: an event may name it
    return [
        (start, end, tuple(span.charge for span in spans if span.start <= start < span.end))
        for start, end in pairwise(cuts)
    ]


def _pauses(master: MasterData) -> list[tuple[str, str, int, datetime, datetime]]:
    """Subscription, meter and time of every pause."""
    places = {code: place for place, code in enumerate(master.meters)}
    found: list[tuple[str, str, int, datetime, datetime]] = []
    for subscription, one in _contracts(master):
        if one is None or not any(step.kind == "pause" for step in one.subscription.steps):
            continue
        for start, end, plan in one.pauses:
            for meter in sorted({charge.meter for charge in usage_charges(plan)}):
                found.append((subscription.customer, subscription.code, places[meter], start, end))
    return found


def usage_charges(plan: Plan) -> tuple[Charge, ...]:
    """The usage charges of a plan; computed once for it."""
    found = plan.__dict__.get("_usage_charges")
    if found is None:
        found = tuple(charge for charge in plan.charges if charge.kind == "usage")
        plan.__dict__["_usage_charges"] = found  # a cache beside the frozen fields
    return found


def book_after(master: MasterData, runs: int) -> RatingBook:
    """The book of a tenant as if only the first `runs` of those that let no usage come late had been."""
    books: dict[int, RatingBook] = master.__dict__.setdefault("_books_after", {})  # a cache beside the frozen fields
    if runs not in books:
        known = replace(master, runs=master.closing_runs[:runs])
        billed = pl.DataFrame(_billed_until(known), schema=BILLED_SCHEMA, orient="row")
        books[runs] = replace(master.rating_book(), billed=billed)
    return books[runs]


def _billed_until(master: MasterData) -> list[tuple[str, datetime]]:
    """Up to when the usage of each subscription is billed."""
    found: list[tuple[str, datetime]] = []
    newest = max((mark.up_to for mark in master.runs), default=None)
    if newest is None:
        return found
    for subscription in master.subscriptions.values():
        ends = [
            piece.end
            for one in contracts_of(subscription, master.tenant.timezone)
            for span in one.spans
            if span.charge.kind == "usage"
            for piece in pieces_of_span(span, BEGINNING, newest)
            if master.covered(subscription.customer, piece.due, piece.known) is not None
        ]
        if ends:
            found.append((subscription.code, max(ends)))
    return found
