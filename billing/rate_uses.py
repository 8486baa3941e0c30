"""The bridge from contracts to rating: pieces of usage charges in, priced rows out.

Owns how a piece of a contract becomes a `UsagePiece`, and which pieces need no rating at all: a customer without an
event on a charge's meter owes nothing for it unless the charge has a minimum. Prices are `billing/rating.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from fractions import Fraction
from typing import Any

import polars as pl

from billing.catalog import Charge
from billing.due import Use
from billing.master import MasterData
from billing.money import decimal_text
from billing.periods import share
from billing.rating import UsagePiece, classify, rate
from billing.rating import RatedRow as Rated
from billing.settle import RatedRow


def rate_uses(master: MasterData, uses: Sequence[Use], events: pl.DataFrame) -> dict[int, list[RatedRow]]:
    """Priced rows by the place of the use in the list; a use without events and without a minimum has none."""
    wanted = _worth_rating(master, uses, events)
    pieces = [_piece(master, uses[place]) for place in wanted]
    found: dict[int, list[RatedRow]] = {}
    if not pieces:
        return found
    rated = rate(pieces, events, master.meters, master.tenant.timezone)
    for row in rated.rows():
        charge = pieces[row.piece].charge
        explanation = _explanation(row, charge, pieces[row.piece].share)
        found.setdefault(wanted[row.piece], []).append(RatedRow(row.row, row.quantity, row.amount, explanation))
    return found


def suspense_reasons(
    events: pl.DataFrame, master: MasterData, now: datetime, new: Sequence[bool] | None = None
) -> list[str | None]:
    """Why each event cannot be rated now, None where it can. Only `new` ones (all, if not said) can be late."""
    fresh = None if new is None else pl.Series(new, dtype=pl.Boolean)
    return classify(events, master.rating_book(), now, new=fresh).to_list()


def _explanation(row: Rated, charge: Charge, portion: Fraction) -> dict[str, Any]:
    """What the line says about itself: events, tiers filled, what was included, limits (decimals as text)."""
    price_row = charge.rows[row.row]
    found: dict[str, Any] = {"model": price_row.price.model, "events": row.events}
    if row.first is not None and row.last is not None:
        found["first"], found["last"] = row.first.isoformat(), row.last.isoformat()
    limits = {"included": price_row.included, "minimum": price_row.minimum, "maximum": price_row.maximum}
    for key, value in limits.items():
        if value:
            found[key] = decimal_text(value if portion == 1 else Fraction(value) * portion)
    if price_row.included:
        found["metered"] = decimal_text(row.quantity)
    if row.tiers:
        found["tiers"] = [
            {
                "up_to": None if tier.up_to is None else decimal_text(tier.up_to),
                "quantity": decimal_text(tier.quantity),
                "unit": decimal_text(tier.unit),
                "flat": decimal_text(tier.flat),
                "amount": decimal_text(tier.amount),
            }
            for tier in row.tiers
        ]
    price = price_row.price
    if price.model == "package":
        found["package"] = {"size": decimal_text(price.size), "amount": decimal_text(price.amount)}
    elif price.model == "percentage":
        found["percent"] = decimal_text(price.percent)
    return found


def _piece(master: MasterData, use: Use) -> UsagePiece:
    piece, charge = use.piece, use.piece.span.charge
    subscription = use.contract.subscription
    portion = Fraction(1)
    if charge.prorate_usage:
        portion = share(charge.proration, piece.start, piece.end, piece.period, master.tenant.timezone)
    return UsagePiece(
        customer=subscription.customer,
        keys=master.keys_of(subscription.customer),
        subscription=subscription.code,
        charge=charge,
        start=piece.start,
        end=piece.end,
        share=portion,
        quantity=piece.span.quantity,
    )


def _worth_rating(master: MasterData, uses: Sequence[Use], events: pl.DataFrame) -> list[int]:
    """Places of the uses whose meter may have an event of the customer, or that owe a minimum anyway."""
    if not uses:
        return []
    seen = events.select("customer", "type").unique()
    types_of: dict[str, set[str]] = {}
    for key, event_type in zip(seen["customer"].to_list(), seen["type"].to_list(), strict=True):
        owner = master.key_owners.get(key)
        if owner is not None:
            types_of.setdefault(owner, set()).add(event_type)
    none: set[str] = set()
    wanted: list[int] = []
    for place, use in enumerate(uses):
        charge = use.piece.span.charge
        meter = master.meters[charge.meter]
        if meter.event_type in types_of.get(use.contract.subscription.customer, none) or _has_minimum(charge):
            wanted.append(place)
    return wanted


def _has_minimum(charge: Charge) -> bool:
    return charge.minimum is not None and charge.minimum > 0
