"""What is running at a moment: the pieces of a customer's usage charges that contain it.

Owns the choice of pieces only, for whoever looks at a period before it ends: reservations, budgets, live usage.
What the pieces cost is `billing/rating.py`.
"""

from __future__ import annotations

from datetime import datetime

from billing.contracts import Piece, Span, spans_of
from billing.due import Use
from billing.master import MasterData


def running_uses(
    master: MasterData,
    customer: str | None,
    moment: datetime,
    *,
    meter: str = "",
    event_type: str = "",
    subscription: str | None = None,
) -> list[Use]:
    """The pieces of usage charges that contain a moment; only of a meter, an event type, a subscription if named."""
    found: list[Use] = []
    for code in master.subscriptions_of.get(customer or "", ()):
        if subscription not in (None, code):
            continue
        for one, span in spans_of(master.subscriptions[code], master.tenant.timezone):
            if span.charge.kind != "usage" or not span.start <= moment < span.end:
                continue
            definition = master.meters[span.charge.meter]
            if (meter and definition.code != meter) or (event_type and definition.event_type != event_type):
                continue
            found.append(Use(one, piece_at(span, moment), None))
    return found


def piece_at(span: Span, moment: datetime) -> Piece:
    """The piece of a span that contains a moment."""
    period = span.segment.grid.at(moment)
    start, end = max(span.start, period.start), min(span.end, period.end)
    return Piece(span, start, end, period, end, span.step)


def until(piece: Piece, end: datetime) -> Piece:
    """The same piece, as if it ended then."""
    return Piece(piece.span, piece.start, end, piece.period, end, piece.known)


def is_level(master: MasterData, use: Use) -> bool:
    """Whether the charge is on a level, which costs by holding and not by events alone."""
    return master.meters[use.piece.span.charge.meter].aggregation == "time_weighted_sum"
