"""What is due up to a time: pieces of charges and parts of plans of the customers asked for, and which are billed.

Owns the choice, not the amounts (`billing/settle.py`). "Billed" is decided by the marks of finalised runs in the
master data, never by looking at amounts: a second run with nothing new finds nothing. Source: docs/rules.md, Bill run.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from billing.catalog import Plan
from billing.contracts import Contract, Piece, Segment, Span, contracts_of, pieces_of_span, segment_pieces
from billing.master import AdHoc, MasterData, RunMark
from billing.periods import Period

BEGINNING = datetime(1, 1, 2, tzinfo=UTC)


@dataclass(frozen=True)
class Part:
    """The part of a period that a plan segment covers: what a plan's minimum is owed for."""

    contract: Contract
    segment: Segment
    start: datetime
    end: datetime
    period: Period
    billed: RunMark | None


@dataclass(frozen=True, slots=True)
class Use:
    """A piece of a usage charge that is due; `billed` is the run that billed it, None if none has."""

    contract: Contract
    piece: Piece
    billed: RunMark | None


@dataclass(slots=True)
class Due:
    """All that is due for one customer."""

    customer: str
    contracts: list[Contract] = field(default_factory=list[Contract])
    fees: list[tuple[Contract, Piece]] = field(default_factory=list[tuple[Contract, Piece]])  # not billed yet
    uses: list[Use] = field(default_factory=list[Use])
    parts: list[Part] = field(default_factory=list[Part])
    ad_hoc: list[AdHoc] = field(default_factory=list[AdHoc])


def merged(dues: Sequence[Due]) -> Due:
    """What is due for several customers who are billed together, as one; each contract knows its own customer."""
    if len(dues) == 1:
        return dues[0]
    whole = Due(dues[0].customer)
    for one in dues:
        whole.contracts += one.contracts
        whole.fees += one.fees
        whole.uses += one.uses
        whole.parts += one.parts
        whole.ad_hoc += one.ad_hoc
    return whole


def due(
    master: MasterData,
    customer: str,
    up_to: datetime,
    events_from: datetime | None,
    metered: Container[tuple[str, str]] | None = None,
) -> Due:
    """What is due at or before `up_to`; of usage that is billed only what begins at or after `events_from`.

    `metered` (None: all) are the meters and charges, as (customer, meter) and (subscription, charge), that have events
    or lines: other usage charges owe nothing unless they have a minimum, and are not even looked at.
    """
    timezone = master.tenant.timezone
    found = Due(customer)
    for entry in master.ad_hoc.get(customer, ()):
        if entry.at <= up_to and master.covered(customer, entry.at, entry.number) is None:
            found.ad_hoc.append(entry)
    for code in sorted(master.subscriptions_of.get(customer, ())):
        subscription = master.subscriptions[code]
        if subscription.start > up_to:
            continue
        for one in contracts_of(subscription, timezone):
            if one.subscription.start <= up_to:
                _contract(master, found, one, metered, up_to, events_from)
    return found


def due_of(master: MasterData, one: Contract, up_to: datetime) -> Due:
    """What is due for one contract and not billed, of usage charges with events or without."""
    found = Due(one.subscription.customer)
    _contract(master, found, one, None, up_to, up_to)
    return found


def _contract(
    master: MasterData,
    found: Due,
    one: Contract,
    metered: Container[tuple[str, str]] | None,
    up_to: datetime,
    events_from: datetime | None,
) -> None:
    customer = found.customer
    found.contracts.append(one)
    settled = settled_to(master, customer, one)
    for span in _spans(one, customer, metered):
        _span(master, found, one, span, settled, up_to, events_from)
    for segment in one.segments:
        if segment.plan.minimum is not None:
            after = BEGINNING if events_from is None or one.changed else min(settled, events_from)
            for start, end, period, known in segment_pieces(segment, after, up_to):
                found.parts.append(Part(one, segment, start, end, period, master.covered(customer, end, known)))


def _spans(one: Contract, customer: str, metered: Container[tuple[str, str]] | None) -> Iterable[Span]:
    if metered is None or one.changed:
        return one.spans
    code = one.subscription.code
    charges = one.subscription.plan.charges
    fees, meters = _fees_and_meters(one.subscription.plan)
    wanted = list(fees)
    for meter, places in meters.items():
        if (customer, meter) in metered:
            wanted.extend(places)
        else:
            wanted.extend(place for place in places if (code, charges[place].code) in metered)
    return one.spans_of((place, charges[place]) for place in sorted(wanted))


def _fees_and_meters(plan: Plan) -> tuple[list[int], dict[str, list[int]]]:
    """Places of the charges that are due without any event, and of the others by meter; computed once for a plan."""
    found = plan.__dict__.get("_fees_and_meters")
    if found is None:
        fees: list[int] = []
        meters: dict[str, list[int]] = {}
        for place, charge in enumerate(plan.charges):
            if charge.kind != "usage" or (charge.minimum is not None and charge.minimum > 0):
                fees.append(place)
            else:
                meters.setdefault(charge.meter, []).append(place)
        found = plan.__dict__["_fees_and_meters"] = (fees, meters)  # a cache beside the frozen fields
    return found


def settled_to(master: MasterData, customer: str, one: Contract) -> datetime:
    """Everything of an unchanged contract that is due then or earlier is billed (a changed one is looked at whole)."""
    if one.changed:
        return BEGINNING
    marks = [m.up_to for m in master.runs if m.covers(customer, m.up_to, one.subscription.number)]
    return max(marks, default=BEGINNING)


def _span(
    master: MasterData,
    found: Due,
    one: Contract,
    span: Span,
    settled: datetime,
    up_to: datetime,
    events_from: datetime | None,
) -> None:
    kind = span.charge.kind
    if kind == "one_off":
        start = span.start
        if settled < start <= up_to and master.covered(found.customer, start, span.step) is None:
            period = span.segment.grid.at(start)
            found.fees.append((one, Piece(span, start, start, period, start, span.step)))
    elif kind == "recurring":
        for piece in pieces_of_span(span, settled, up_to):
            if not one.changed or master.covered(found.customer, piece.due, piece.known) is None:
                found.fees.append((one, piece))
    else:
        after = settled if events_from is None else min(settled, events_from)
        for piece in pieces_of_span(span, BEGINNING if events_from is None else after, up_to):
            mark = master.covered(found.customer, piece.due, piece.known)
            if mark is None or events_from is None or piece.start >= events_from:
                found.uses.append(Use(one, piece, mark))


def first_unbilled_use(master: MasterData, one: Contract, up_to: datetime) -> list[datetime]:
    """When the first usage period of an unchanged contract begins that is due and not billed; of others `due` knows."""
    if one.changed:
        return []
    settled = settled_to(master, one.subscription.customer, one)
    for span in one.usage_span():
        for piece in pieces_of_span(span, settled, up_to):
            return [piece.start]
    return []
