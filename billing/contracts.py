"""What a subscription is at any time: its plan segments, the spans of its charges, and the pieces that fall due.

Owns how changes, quantities, overrides and cancellations cut time. Amounts are `billing/settle.py`. All is computed
from the subscription's steps alone, so it can be asked again for any earlier state. Source: docs/rules.md, Pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import Literal

from billing.catalog import Charge, Plan, Price
from billing.periods import Anchor, Grid, Period, grid

FOREVER = datetime(9999, 1, 1, tzinfo=UTC)
PIECES_MAX = 100_000  # of one charge in one run: a daily plan for 270 years


@dataclass(frozen=True)
class Discount:
    """`percent` of the charges named (all without names), or an `amount` off `times` documents."""

    percent: Decimal | None
    amount: Decimal | None
    charges: frozenset[str] = frozenset()
    times: int = 1


@dataclass(frozen=True)
class ContractStep:
    """One change of a subscription, as it was asked for; `number` is the master step's."""

    number: int
    at: datetime
    kind: Literal["change", "quantity", "override", "cancel", "pause", "resume"]
    when: Literal["now", "period_end"] = "now"
    plan: Plan | None = None
    charge: str = ""
    quantity: Decimal | None = None
    price: Price | None = None
    refund_unused: bool = True


@dataclass(frozen=True)
class Subscription:
    code: str
    customer: str
    number: int  # of the step that made it
    start: datetime
    anchor: Anchor
    plan: Plan  # the version pinned at the start
    quantities: Mapping[str, Decimal]
    discounts: tuple[Discount, ...]
    steps: tuple[ContractStep, ...] = ()


@dataclass(frozen=True)
class Segment:
    """A time in which one plan version is in force. `end_step` ended it (0: nothing has)."""

    index: int
    plan: Plan
    grid: Grid
    start: datetime
    end: datetime
    step: int
    end_step: int
    refund_unused: bool = True  # of the cancellation that ended it
    cancelled_now: bool = False  # ended by a cancellation that did not wait, or by a pause
    root: int = 0  # the segment in which its plan began: after a pause it goes on with what was agreed there


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


class Contract:
    """A subscription with all its steps applied."""

    def __init__(self, subscription: Subscription, timezone: str) -> None:
        self.subscription = subscription
        self.timezone = timezone
        self.segments, self.end, self.end_step = _segments(subscription, timezone)

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
        return bool(self.subscription.steps)

    @cached_property
    def segment_of(self) -> Mapping[tuple[str, int], Segment]:
        """The segment of a billed line, by its charge and step."""
        found = {(span.charge.code, span.step): span.segment for span in self.spans}
        for segment in self.segments:
            found["minimum", segment.step] = segment
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


def ended_at(subscription: Subscription, timezone: str) -> datetime | None:
    end = contract(subscription, timezone).end
    return None if end == FOREVER else end


def plan_at(subscription: Subscription, timezone: str, moment: datetime) -> Plan:
    return contract(subscription, timezone).segment_at(moment).plan


@dataclass
class _Open:
    """The segment that runs while steps are applied."""

    plan: Plan
    grid: Grid
    start: datetime
    step: int
    root: int
    paused: bool = False


def _segments(subscription: Subscription, timezone: str) -> tuple[tuple[Segment, ...], datetime, int]:
    """Plan segments in order, the end of the contract (FOREVER) and the step that ended it.

    A waiting change is replaced by any later change or by a cancellation; a waiting cancellation only by a later change
    that waits for the end of the period, too (one that takes effect now leaves the agreed end as it is). A pause ends a
    segment like a cancellation with refund; the next one goes on in the same grid and plan.
    """
    first = subscription.plan
    first_grid = grid(first.interval, subscription.anchor, timezone, subscription.start)
    running = _Open(first, first_grid, subscription.start, subscription.number, 0)
    segments: list[Segment] = []
    waiting: tuple[datetime, ContractStep] | None = None

    def close(moment: datetime, ending: ContractStep | None) -> None:
        if running.paused:
            return
        number, refund, now = 0, True, False
        if ending is not None:
            number, refund = ending.number, ending.refund_unused
            now = ending.kind == "pause" or (ending.kind == "cancel" and ending.when == "now")
        plan, start, step = running.plan, running.start, running.step
        place = len(segments)
        segments.append(Segment(place, plan, running.grid, start, moment, step, number, refund, now, running.root))

    def begin(moment: datetime, step: ContractStep) -> _Open:
        assert step.plan is not None
        same = step.plan.interval == running.plan.interval
        new_grid = running.grid if same else grid(step.plan.interval, subscription.anchor, timezone, moment)
        return _Open(step.plan, new_grid, moment, step.number, len(segments), running.paused)

    for step in (*subscription.steps, None):
        if waiting is not None and (step is None or waiting[0] <= step.at):
            moment, waited = waiting
            waiting = None
            close(moment, waited)
            if waited.kind == "cancel":
                return tuple(segments), moment, waited.number
            running = begin(moment, waited)
        if step is None or step.kind in ("quantity", "override"):
            continue
        if step.kind == "pause":
            close(step.at, step)
            running.paused = True
        elif step.kind == "resume":
            running.paused, running.start, running.step = False, step.at, step.number
        elif step.when == "period_end":
            waiting = (running.grid.at(step.at).end, step)
        elif step.kind == "cancel":
            close(step.at, step)
            return tuple(segments), step.at, step.number
        else:
            if waiting is not None and waiting[1].kind == "change":
                waiting = None
            close(step.at, step)
            running = begin(step.at, step)
    close(FOREVER, None)
    return tuple(segments), FOREVER, 0


def _spans(contract: Contract, segment: Segment, place: int, charge: Charge) -> Iterator[Span]:
    """The spans of one charge within one segment, cut by its quantities and overrides.

    Spans without length stay: a line that was billed for one of them is still found, to be taken back.
    """
    start, end, end_step = _bounds(contract, segment, charge)
    if start > end or (charge.kind == "one_off" and segment.index):
        return
    quantity, price, cuts = _cuts(contract, segment, charge, start, end)
    current = charge if price is None else charge.with_price(price)
    begin, step = start, segment.step
    for moment, cut in (*cuts, (end, None)):
        paid_to = _paid_to(segment, current, moment, cut)
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


def _waits(charge: Charge) -> bool:
    """Charges without proration: a started period is due in full, every change waits for the next one."""
    return charge.kind == "recurring" and charge.proration == "none"


def _boundary(grid: Grid, moment: datetime, begun: datetime) -> datetime:
    """When a change takes effect that waits for the next period: at once where the period or the contract begins."""
    period = grid.at(moment)
    return moment if moment in (period.start, begun) else period.end


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
        elif _waits(charge) and any(_waits(old) and old.code == charge.code for old in before.plan.charges):
            start = _boundary(before.grid, start, before.start)
    return start, end, end_step


def _cuts(
    contract: Contract, segment: Segment, charge: Charge, start: datetime, end: datetime
) -> tuple[Decimal, Price | None, list[tuple[datetime, ContractStep]]]:
    """Quantity and own price at the span's start, and what changes later.

    A quantity stays with the charge's code for ever, an override as long as the plan (pauses do not end it).
    """
    subscription = contract.subscription
    quantity = subscription.quantities.get(charge.code, Decimal(1))
    if not subscription.steps or charge.kind == "one_off":
        return quantity, None, []
    price: Price | None = None
    cuts: list[tuple[datetime, ContractStep]] = []
    for step in subscription.steps:
        if step.charge != charge.code or step.kind not in ("quantity", "override"):
            continue
        owner = contract.owner(step)
        moment = _boundary(owner.grid, step.at, owner.start) if _waits(charge) else step.at
        if owner.index > segment.index or (step.kind == "override" and owner.root != segment.root):
            continue
        if owner.index < segment.index and moment <= start:
            quantity = step.quantity if step.quantity is not None else quantity
            price = step.price if step.price is not None else price
        elif start <= moment < end or (owner is segment and moment == end == step.at):
            cuts.append((moment, step))
    cuts.sort(key=lambda cut: (cut[0], cut[1].number))
    return quantity, price, cuts


def _paid_to(segment: Segment, charge: Charge, end: datetime, cut: ContractStep | None) -> datetime:
    """A cancellation that gives nothing back owes the whole started period of a charge in advance."""
    owes = segment.cancelled_now and (not segment.refund_unused or _waits(charge))
    if cut is None and owes and charge.kind == "recurring" and charge.timing == "advance" and end == segment.end:
        return segment.grid.at(end).end
    return end


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
