"""What a contract charges at any time: the spans of its charges, and the pieces of them that fall due.

Owns how quantities, overrides, changes and ends cut the time of a charge. A subscription is one contract, and each of
its add-ons another. When which plan is in force is `billing/segments.py`, amounts are `billing/settle.py`.
Source: docs/rules.md, Pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import cached_property

from billing.catalog import Charge, Plan, Price
from billing.periods import Grid, Period
from billing.segments import (
    FOREVER,
    AddOn,
    ContractStep,
    Discount,
    Segment,
    Subscription,
    Until,
    add_on_terms,
    course,
)

__all__ = [
    "FOREVER",
    "AddOn",
    "Contract",
    "ContractStep",
    "Discount",
    "Piece",
    "Segment",
    "Span",
    "Subscription",
    "contract",
    "contracts_of",
    "current_end",
    "ended_at",
    "pieces_of_span",
    "plan_at",
    "segment_pieces",
    "spans_of",
]

PIECES_MAX = 100_000  # of one charge in one run: a daily plan for 270 years
PLACES = 2_000_000  # of a plan's lines in a document: its charges, then its minimum; each add-on has as many


@dataclass(frozen=True)
class Span:
    """A time in which one charge keeps plan, price and quantity.

    `end` is where its use ends, `paid_to` where a charge in advance ends (later, if a cancellation gives nothing back).
    """

    segment: Segment
    charge: Charge
    place: int  # of the charge in its plan
    quantity: Decimal
    start: datetime
    end: datetime
    paid_to: datetime
    step: int
    end_step: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of one period that a span covers: what becomes one line (or one per price row)."""

    span: Span
    start: datetime
    end: datetime
    period: Period
    due: datetime
    known: int  # the newest step that it rests on: a run that saw fewer steps cannot have billed it


NO_END = Until()


class Contract:
    """A subscription, or one of its add-ons, with all its steps applied."""

    def __init__(
        self,
        subscription: Subscription,
        timezone: str,
        first_grid: Grid | None = None,
        until: Until = NO_END,
        order: int = 0,
    ) -> None:
        self.subscription = subscription
        self.timezone = timezone
        self.course = course(subscription, timezone, first_grid, until)
        self._first_grid, self._until = first_grid, until
        self.first_place = order * PLACES  # of its lines among those of the subscription

    @property
    def key(self) -> tuple[str, str]:
        return self.subscription.key

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.course.segments

    @property
    def end(self) -> datetime:
        return self.course.end

    @property
    def end_step(self) -> int:
        return self.course.end_step

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """All spans, by segment, then place of the charge, then time."""
        found: list[Span] = []
        for segment in self.segments:
            for place, charge in enumerate(segment.plan.charges):
                found.extend(_spans(self, segment, place, charge))
        return tuple(found)

    def spans_of(self, charges: Iterable[tuple[int, Charge]]) -> Iterator[Span]:
        """The spans of some charges of an unchanged contract, by their place: a plan may have thousands of them."""
        assert not self.changed, "a changed contract is looked at whole"
        for place, charge in charges:
            yield from _spans(self, self.segments[0], place, charge)

    def usage_span(self) -> Iterator[Span]:
        """Of an unchanged contract the span of its first usage charge: all others have the same times."""
        for place, charge in enumerate(self.subscription.plan.charges):
            if charge.kind == "usage":
                return self.spans_of([(place, charge)])
        return iter(())

    @cached_property
    def changed(self) -> bool:
        """Whether anything cuts the contract: then it is looked at whole."""
        return bool(self.subscription.steps or self.subscription.plan.phases or self.end_step)

    def segment_for(self, charge: str, step: int, start: datetime) -> Segment | None:
        """The segment of a billed line, by its charge, step and start."""
        if charge == "minimum":
            found = [segment for segment in self.segments if segment.step == step]
            return ([one for one in found if one.start <= start] or found or [None])[-1]
        span = _last_begun(self._spans_by_step.get((charge, step), ()), start)
        return None if span is None else span.segment

    def span_for(self, charge: str, step: int, start: datetime) -> Span | None:
        """The span of a billed line; also one of a phase that a change written later has cut off."""
        found = _last_begun(self._spans_by_step.get((charge, step), ()), start)
        if found is None or start < found.paid_to or not self.subscription.plan.phases or not found.end_step:
            return found
        earlier = tuple(one for one in self.subscription.steps if one.number < found.end_step)
        if len(earlier) == len(self.subscription.steps):
            return found
        before = Contract(replace(self.subscription, steps=earlier), self.timezone, self._first_grid, self._until)
        return before.span_for(charge, step, start) or found

    @cached_property
    def _spans_by_step(self) -> Mapping[tuple[str, int], Sequence[Span]]:
        found: dict[tuple[str, int], list[Span]] = {}
        for span in self.spans:
            found.setdefault((span.charge.code, span.step), []).append(span)
        return found

    def segment_at(self, moment: datetime) -> Segment:
        """The segment in force at that time; of several that begin then the last one."""
        return [segment for segment in self.segments if segment.start <= moment or not segment.index][-1]

    @cached_property
    def pauses(self) -> tuple[tuple[datetime, datetime, Plan], ...]:
        """When nothing runs between start and end, and the plan that would."""
        found: list[tuple[datetime, datetime, Plan]] = []
        for segment in self.segments:
            last = segment.index + 1 == len(self.segments)
            following = self.end if last else self.segments[segment.index + 1].start
            if segment.end < following:
                found.append((segment.end, following, segment.plan))
        return tuple(found)

    @cached_property
    def paused(self) -> bool:
        """Whether the last step that says so is a pause."""
        said = [step.kind for step in self.subscription.steps if step.kind in ("pause", "resume")]
        return bool(said) and said[-1] == "pause"

    def owner(self, step: ContractStep) -> Segment:
        """The segment in which a step was asked for: of several that begin at one moment, its number decides."""
        found = self.segments[0]
        for segment in self.segments[1:]:
            if segment.start <= step.at and segment.step < step.number:
                found = segment
        return found


def contract(subscription: Subscription, timezone: str) -> Contract:
    """The contract of a subscription, computed once for each value of it."""
    key = f"_contract_{timezone}"
    found = subscription.__dict__.get(key)
    if found is None:
        found = Contract(subscription, timezone)
        subscription.__dict__[key] = found  # a cache beside the frozen fields, not a change of the value
    return found


def contracts_of(subscription: Subscription, timezone: str) -> tuple[Contract, ...]:
    """The contract of a subscription and those of its add-ons, in the order in which they were added."""
    if not subscription.add_ons:
        return (contract(subscription, timezone),)
    key = f"_contracts_{timezone}"
    found = subscription.__dict__.get(key)
    if found is None:
        base = contract(subscription, timezone)
        made = (add_on_terms(subscription, add_on, base.course, timezone) for add_on in subscription.add_ons)
        add_ons = (Contract(*one, order=order) for order, one in enumerate(made, start=1))
        found = (base, *add_ons)
        subscription.__dict__[key] = found  # a cache like that of `contract`
    return found


def spans_of(subscription: Subscription, timezone: str) -> Iterator[tuple[Contract, Span]]:
    """All spans of a subscription and of its add-ons, each with its contract."""
    for one in contracts_of(subscription, timezone):
        for span in one.spans:
            yield one, span


def _last_begun(spans: Sequence[Span], moment: datetime) -> Span | None:
    """The last span that has begun at that time, else the first one."""
    begun = [span for span in spans if span.start <= moment]
    return begun[-1] if begun else (spans[0] if spans else None)


def ended_at(subscription: Subscription, timezone: str) -> datetime | None:
    end = contract(subscription, timezone).end
    return None if end == FOREVER else end


def plan_at(subscription: Subscription, timezone: str, moment: datetime) -> Plan:
    return contract(subscription, timezone).segment_at(moment).plan


def _spans(contract: Contract, segment: Segment, place: int, charge: Charge) -> Iterator[Span]:
    """The spans of one charge within one segment, cut by its quantities and overrides.

    Spans without length stay: a line that was billed for one of them is still found, to be taken back.
    """
    if segment.plan.free and charge.kind != "usage":
        return
    if charge.kind == "one_off" and not _begins_with(contract, segment, charge.code):
        return
    start, end, end_step = _bounds(contract, segment, charge)
    if start > end:
        return
    quantity, price, cuts = _cuts(contract, segment, charge, start, end)
    current = charge if price is None else charge.with_price(price)
    begin, step = start, segment.step
    for moment, cut in (*cuts, (end, None)):
        paid_to = _paid_to(contract, segment, current, moment, cut)
        number = end_step if cut is None else cut.number
        yield Span(segment, current, place, quantity, begin, moment, paid_to, step, number)
        if cut is None:
            return
        begin, step = moment, cut.number
        if cut.kind == "quantity":
            assert cut.quantity is not None
            quantity = cut.quantity
        else:
            assert cut.price is not None
            current = charge.with_price(cut.price)


def _begins_with(contract: Contract, segment: Segment, code: str) -> bool:
    """Whether a one-off charge is due with this segment: the first of the contract's first plan that bills it."""
    earlier = contract.segments[: segment.index]
    return not segment.root and not any(one.plan.charge(code) is not None and not one.plan.free for one in earlier)


def _waits(charge: Charge) -> bool:
    """Charges without proration: a started period is due in full, every change waits for the next one."""
    return charge.kind == "recurring" and charge.proration == "none"


def _boundary(grid: Grid, moment: datetime, begun: datetime) -> datetime:
    """When a change takes effect that waits for the next period: at once where the period or the contract begins."""
    period = grid.at(moment)
    return moment if moment in (period.start, begun) else period.end


def _waits_in(plan: Plan, code: str) -> bool:
    """Whether a plan bills a charge of that code that waits for the end of its period."""
    return not plan.free and any(_waits(charge) and charge.code == code for charge in plan.charges)


def _bounds(contract: Contract, segment: Segment, charge: Charge) -> tuple[datetime, datetime, int]:
    """Where a charge of the segment begins and ends: with it, but for charges that wait for their next period."""
    start, end, end_step = segment.start, segment.end, segment.end_step
    following = contract.segments[segment.index + 1] if segment.index + 1 < len(contract.segments) else None
    if _waits(charge) and following is not None and not segment.cancelled_now:
        end = min(_boundary(segment.grid, end, segment.start), contract.end)
    if segment.index:
        before = contract.segments[segment.index - 1]
        if before.cancelled_now:
            if _waits(charge):  # the period in which the pause began is owed in full: go on after it
                start = max(start, before.grid.at(before.end).end)
        elif _waits(charge) and _waits_in(before.plan, charge.code):
            start = _boundary(before.grid, start, before.start)
    return start, end, end_step


def _cuts(
    contract: Contract, segment: Segment, charge: Charge, start: datetime, end: datetime
) -> tuple[Decimal, Price | None, list[tuple[datetime, ContractStep]]]:
    """Quantity and own price at the span's start, and what changes later.

    A quantity stays with the charge's code for ever, an override as long as the plan (neither pauses nor phases end
    it).
    """
    subscription = contract.subscription
    quantity = subscription.quantities.get(charge.code, Decimal(1))
    if not subscription.steps or charge.kind == "one_off":
        return quantity, None, []
    price: Price | None = None
    cuts: list[tuple[datetime, ContractStep]] = []
    kinds = ("quantity",) if segment.plan.free else ("quantity", "override")  # a free phase stays free
    for step in subscription.steps:
        if step.charge != charge.code or step.kind not in kinds or step.add_on != subscription.add_on:
            continue
        owner = contract.owner(step)
        waits = _waits(charge) and _waits_in(owner.plan, charge.code)  # what is not billed yet waits for nothing
        moment = _boundary(owner.grid, step.at, owner.start) if waits else step.at
        if owner.index > segment.index or (step.kind == "override" and owner.root != segment.root):
            continue
        if owner.index < segment.index and moment <= start:
            quantity = step.quantity if step.quantity is not None else quantity
            price = step.price if step.price is not None else price
        elif start <= moment < end or (owner is segment and moment == end == step.at):
            cuts.append((moment, step))
    cuts.sort(key=lambda cut: (cut[0], cut[1].number))
    return quantity, price, cuts


def _paid_to(contract: Contract, segment: Segment, charge: Charge, end: datetime, cut: ContractStep | None) -> datetime:
    """Up to when a charge in advance is owed: a cancellation may give nothing back of the started period.

    With `refund_unused: false` that is what was to come of it anyway: up to the end of its phase, or of the add-on.
    """
    if cut is not None or charge.kind != "recurring" or charge.timing != "advance":
        return end
    if _waits(charge) and end == contract.end and contract.segments[-1].cancelled_now and not segment.cancelled_now:
        # It waits for the end of the period, over a change and over the cancellation that came before that end.
        return max(end, _boundary(segment.grid, segment.end, segment.start))
    if not segment.cancelled_now or end != segment.end:
        return end
    if _waits(charge):
        return segment.grid.at(end).end
    return end if segment.refund_unused else min(segment.grid.at(end).end, max(end, segment.planned_end))


def pieces_of_span(span: Span, after: datetime, up_to: datetime) -> Iterator[Piece]:
    """The pieces of a recurring or usage span that are due in `(after, up_to]`, in order of time."""
    advance = span.charge.kind == "recurring" and span.charge.timing == "advance"
    end = span.paid_to if advance else span.end
    # The first piece that may be due after `after` is the one that contains it (one that ends there is due there).
    begin = max(span.start, after if after < span.end else span.start)
    period = span.segment.grid.at(begin)
    for _ in range(PIECES_MAX):
        piece_start = max(span.start, period.start)
        piece_end = min(end, period.end)
        if piece_start >= piece_end or piece_start > up_to:
            return
        due = piece_start if advance else piece_end
        if due > up_to:
            return
        if due > after:
            known = span.step if advance or piece_end < span.end or span.end == FOREVER else _known(span, piece_end)
            yield Piece(span, piece_start, piece_end, period, due, known)
        period = span.segment.grid.following(period)
    raise AssertionError(f"more than {PIECES_MAX} pieces of {span.charge.code}")


def _known(span: Span, end: datetime) -> int:
    """A piece that a step cut short is known only from that step on; one that a boundary ends needs no step for it."""
    on_boundary = span.segment.grid.at(end).start == end
    return span.step if on_boundary else max(span.step, span.end_step)


def segment_pieces(
    segment: Segment, after: datetime, up_to: datetime
) -> Iterator[tuple[datetime, datetime, Period, int]]:
    """The parts of periods that a plan segment covers and that end in `(after, up_to]`: (start, end, period, known)."""
    if segment.start >= segment.end:
        return
    begin = max(segment.start, after if after < segment.end else segment.start)
    period = segment.grid.at(begin)
    for _ in range(PIECES_MAX):
        start, end = max(segment.start, period.start), min(segment.end, period.end)
        if start >= end or end > up_to:
            return
        if end > after:
            on_boundary = end == period.end
            yield start, end, period, segment.step if on_boundary else max(segment.step, segment.end_step)
        period = segment.grid.following(period)
    raise AssertionError(f"more than {PIECES_MAX} parts of a plan")


def current_end(contract: Contract, spans: Sequence[Span], charge: str, step: int, start: datetime) -> datetime:
    """Where the piece of a charge in advance that began there ends now; its start, if it is gone altogether."""
    for span in spans:
        if span.charge.code == charge and span.step == step and span.start <= start < span.paid_to:
            period = span.segment.grid.at(start)
            return min(span.paid_to, period.end)
    return start
