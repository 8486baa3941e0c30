"""When which plan version and phase is in force: a subscription's steps, and the segments of time that they make.

Owns the values of a subscription and how changes, phases, pauses and ends follow one another. What is charged within a
segment is `billing/contracts.py`. All is computed from the steps alone, so it can be asked again for any earlier state.
Source: docs/rules.md, Pieces and changes, Phases and trials, Add-ons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal

from billing.catalog import Plan, Price
from billing.periods import Anchor, Grid, grid
from billing.phases import PhaseTime, TrialEnd, phase_times, trial_end_of

FOREVER = datetime(9999, 1, 1, tzinfo=UTC)
StepKind = Literal["change", "quantity", "override", "cancel", "pause", "resume", "remove_add_on"]


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
    kind: StepKind
    when: Literal["now", "period_end"] = "now"
    plan: Plan | None = None
    charge: str = ""
    quantity: Decimal | None = None
    price: Price | None = None
    refund_unused: bool = True
    add_on: str = ""  # that a quantity, override or removal is about; empty: the subscription itself


@dataclass(frozen=True)
class AddOn:
    """A second plan on a subscription, from `start` up to `end` (FOREVER: as long as the subscription runs)."""

    code: str
    number: int  # of the step that made it
    plan: Plan
    start: datetime
    end: datetime
    quantities: Mapping[str, Decimal]
    discounts: tuple[Discount, ...] = ()


@dataclass(frozen=True)
class References:
    """What the buyer wants to read of a contract on his documents, from a moment on; empty: what his own form says."""

    since: datetime
    order_reference: str = ""  # purchase order, BT-13
    cost_centre: str = ""  # BT-19
    buyer_reference: str = ""  # BT-10
    leitweg_id: str = ""  # BT-10 of an authority, before `buyer_reference`

    @property
    def reference(self) -> str:
        """BT-10: there is one place for both."""
        return self.leitweg_id or self.buyer_reference


@dataclass(frozen=True)
class Subscription:
    """What was agreed. An add-on's contract is one, too: with the code of its subscription and `add_on`."""

    code: str
    customer: str
    number: int  # of the step that made it
    start: datetime
    anchor: Anchor
    plan: Plan  # the version pinned at the start
    quantities: Mapping[str, Decimal]
    discounts: tuple[Discount, ...]
    steps: tuple[ContractStep, ...] = ()
    trial_end: TrialEnd | None = None  # None: as the plan says
    add_ons: tuple[AddOn, ...] = ()
    add_on: str = ""
    references: tuple[References, ...] = ()  # in order; the first one also counts before its own time

    def references_at(self, moment: datetime) -> References:
        found = self.references[0] if self.references else References(moment)
        for one in self.references[1:]:
            if one.since > moment:
                break
            found = one
        return found

    @property
    def key(self) -> tuple[str, str]:
        """What tells contracts apart: the subscription's code and the add-on's, empty for the subscription itself."""
        return self.code, self.add_on


@dataclass(frozen=True)
class Segment:
    """A time in which one plan version (in one phase) is in force. `end_step` ended it (0: nothing has)."""

    index: int
    plan: Plan
    grid: Grid
    start: datetime
    end: datetime
    step: int
    end_step: int
    refund_unused: bool = True  # of the cancellation that ended it
    cancelled_now: bool = False  # ended by a cancellation that did not wait, or by a pause
    root: int = 0  # the segment in which its plan began: after a pause or phase it goes on with what was agreed there
    planned_end: datetime = FOREVER  # known before it began: the end of its phase, or of an add-on


@dataclass(frozen=True)
class Course:
    """The segments of a contract in order, its end (FOREVER: none), and the step that ended it (0: none)."""

    segments: tuple[Segment, ...]
    end: datetime
    end_step: int


@dataclass(frozen=True)
class Until:
    """An end that needs no cancellation of the contract itself: an agreed one, or that of its subscription."""

    moment: datetime = FOREVER
    step: int = 0
    cancelled: bool = False  # by a cancellation that waited for the end of a period of the subscription
    refund_unused: bool = True
    agreed: datetime = FOREVER  # of an add-on, where its subscription is cancelled before


def course(subscription: Subscription, timezone: str, first_grid: Grid | None, until: Until) -> Course:
    """How a contract runs.

    A waiting change is replaced by any later change or by a cancellation; a waiting cancellation only by a later change
    that waits for the end of the period, too (one that takes effect now leaves the agreed end as it is). A pause ends a
    segment like a cancellation with refund; the next one goes on in the same grid and plan. Phases count from the start
    of the contract, whatever happens in them.
    """
    stay = _chosen_in_trial(subscription, timezone)
    trial_end = _cancelling_trial_end(subscription, timezone)
    if trial_end is not None and stay is None and trial_end < until.moment:
        until = Until(trial_end)
    run = _Course(subscription, timezone, first_grid, trial_end, 0 if stay is None else stay.number)
    run.agreed_end = until.agreed if until.cancelled else until.moment
    waiting: tuple[datetime, ContractStep] | None = None
    for step in (*(one for one in subscription.steps if one.add_on == subscription.add_on), None):
        if waiting is not None and (step is None or waiting[0] <= step.at) and waiting[0] <= until.moment:
            moment, waited = waiting
            waiting = None
            run.to(moment, ends=True)
            if waited.kind == "cancel":
                return run.end(moment, waited)
            run.change(moment, waited)
        if step is None or (until.moment <= step.at and not (until.moment == step.at and step.kind == "cancel")):
            break
        if step.kind in ("quantity", "override"):
            continue
        run.to(step.at, ends=step.kind != "resume" and step.when == "now")
        if step.kind == "pause":
            run.pause(step)
        elif step.kind == "resume":
            run.resume(step)
        elif step.when == "period_end":
            waiting = (run.period_end(step), step)
        elif step.kind == "cancel":
            return run.end(step.at, step)
        else:
            if waiting is not None and waiting[1].kind == "change":
                waiting = None
            run.change(step.at, step)
    run.to(until.moment, ends=True)
    return run.end_at(until)


def _cancelling_trial_end(subscription: Subscription, timezone: str) -> datetime | None:
    """When the contract ends with its free phase, unless a plan is chosen before."""
    if (subscription.trial_end or subscription.plan.trial_end) != "cancel":
        return None
    return trial_end_of(subscription.plan, subscription.start, timezone)


def _chosen_in_trial(subscription: Subscription, timezone: str) -> ContractStep | None:
    """The first change of plan before the free phase ends: who chooses a plan has decided to stay."""
    end = _cancelling_trial_end(subscription, timezone)
    if end is None:
        return None
    return next((step for step in subscription.steps if step.kind == "change" and step.at < end), None)


class _Course:
    """The segment that runs while steps are applied, and those that have ended."""

    def __init__(
        self, subscription: Subscription, timezone: str, first_grid: Grid | None, trial_end: datetime | None, stay: int
    ) -> None:
        self.subscription = subscription
        self.timezone = timezone
        self.trial_end = trial_end
        self.stay = stay  # the step without which the contract would have ended with its free phase
        self.segments: list[Segment] = []
        self.plan = subscription.plan
        self.grid = first_grid or grid(self.plan.interval, subscription.anchor, timezone, subscription.start)
        self.start = subscription.start
        self.step = subscription.number
        self.root = 0
        self.paused = False
        self.agreed_end = FOREVER
        self.phases: tuple[PhaseTime, ...] = ()
        self.place = 0  # in `phases`
        self._enter(self.plan, self.start)

    def _enter(self, plan: Plan, moment: datetime) -> None:
        self.plan = plan
        self.phases = phase_times(plan, self.subscription.start, self.timezone) if plan.phases else ()
        self.place = max((place for place, one in enumerate(self.phases) if one.start <= moment), default=0)

    @property
    def running(self) -> Plan:
        """The plan in its present phase."""
        return self.plan.in_phase(self.phases[self.place].index) if self.phases else self.plan

    def to(self, moment: datetime, *, ends: bool) -> None:
        """Let the phases pass that end before the moment (or at it, unless the plan ends or changes there anyway)."""
        while self.place + 1 < len(self.phases):
            boundary = self.phases[self.place + 1].start
            if boundary > moment or (ends and boundary == moment):
                return
            self._close(boundary, None)
            self.place += 1
            if not self.paused:
                self.start = boundary
            if self.trial_end is not None and boundary >= self.trial_end:
                self.step = max(self.step, self.stay)  # nobody could know of this phase before

    def _close(self, moment: datetime, ending: ContractStep | None, until: Until | None = None) -> None:
        if self.paused:
            return
        number, refund, now = 0, True, False
        if ending is not None:
            number, refund = max(ending.number, self.subscription.number), ending.refund_unused
            now = ending.kind == "pause" or (ending.kind == "cancel" and ending.when == "now")
        elif until is not None:
            number, refund = until.step, until.refund_unused
            now = until.cancelled and self.grid.at(moment).start != moment  # not at the end of a period of its own
        place, plan = len(self.segments), self.running
        following = self.phases[self.place + 1].start if self.place + 1 < len(self.phases) else FOREVER
        planned = min(following, self.agreed_end)
        self.segments.append(
            Segment(place, plan, self.grid, self.start, moment, self.step, number, refund, now, self.root, planned)
        )

    def pause(self, step: ContractStep) -> None:
        self._close(step.at, step)
        self.paused = True

    def resume(self, step: ContractStep) -> None:
        self.paused, self.start, self.step = False, step.at, max(step.number, self.step)

    def change(self, moment: datetime, step: ContractStep) -> None:
        assert step.plan is not None
        self._close(moment, step)
        if step.plan.interval != self.plan.interval:
            self.grid = grid(step.plan.interval, self.subscription.anchor, self.timezone, moment)
        self.start, self.step, self.root = moment, step.number, len(self.segments)
        self._enter(step.plan, moment)

    def period_end(self, step: ContractStep) -> datetime:
        """When a step takes effect that waits: nobody pays for what he cancelled in a free phase before it."""
        end = self.grid.at(step.at).end
        if step.kind == "cancel" and self.running.free and self.place + 1 < len(self.phases):
            return min(end, self.phases[self.place + 1].start)
        return end

    def end(self, moment: datetime, step: ContractStep) -> Course:
        self._close(moment, step)
        return Course(tuple(self.segments), moment, step.number)

    def end_at(self, until: Until) -> Course:
        self._close(until.moment, None, until)
        return Course(tuple(self.segments), until.moment, until.step)


def add_on_terms(
    subscription: Subscription, add_on: AddOn, run: Course, timezone: str
) -> tuple[Subscription, str, Grid, Until]:
    """An add-on as a contract of its own, with the grid and the end that its subscription gives it.

    Pauses and the end of the subscription are its own; its removal is its cancellation.
    """
    own: list[ContractStep] = []
    paused: ContractStep | None = None  # when the add-on begins
    end = Until(add_on.end)
    for step in subscription.steps:
        if step.add_on == add_on.code:
            own.append(replace(step, kind="cancel") if step.kind == "remove_add_on" else step)
        elif step.add_on or not (step.kind in ("pause", "resume") or _ends(step, run)):
            continue
        elif step.at >= add_on.start:
            own.append(replace(step, add_on=add_on.code))
        else:
            paused = step if step.kind == "pause" else None
    if paused is not None:
        own.insert(0, replace(paused, at=add_on.start, add_on=add_on.code))
    if run.end < end.moment:
        last = next((one for one in subscription.steps if one.number == run.end_step), None)
        end = Until(run.end, run.end_step, last is not None, last is None or last.refund_unused, add_on.end)
    base = [one for one in run.segments if one.start <= add_on.start] or list(run.segments[:1])
    origin = base[-1].grid
    same_grid = origin if origin.interval == add_on.plan.interval else _with_interval(origin, add_on.plan)
    made = Subscription(
        subscription.code,
        subscription.customer,
        add_on.number,
        add_on.start,
        subscription.anchor,
        add_on.plan,
        add_on.quantities,
        add_on.discounts,
        tuple(own),
        add_on=add_on.code,
    )
    return made, timezone, same_grid, end


def _ends(step: ContractStep, run: Course) -> bool:
    """Whether a step is the cancellation that ended a contract there and then."""
    return step.kind == "cancel" and step.when == "now" and step.number == run.end_step


def _with_interval(origin: Grid, plan: Plan) -> Grid:
    """The grid of the same anchor for a plan with another interval."""
    return Grid(plan.interval, origin.anchor, origin.timezone, origin.origin)
