"""Phases of a plan and add-ons of a subscription in plain words, for the pages of contracts and plans.

Owns no rule: when phases begin is `billing/phases.py`, when add-ons run is `billing/contracts.py`.
"""

from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest

from billing.catalog import Plan
from billing.contracts import FOREVER, Contract, Subscription, contracts_of
from billing.master import MasterData
from billing.phases import Phase, phase_times
from deployments.front.contracts.view import segment_label, state_of
from deployments.front.formats import Formats
from deployments.front.texts import Texts


@dataclass(frozen=True)
class Terms:
    """One phase or add-on: its name, when it is in force, what is other in it."""

    name: str
    when: str
    words: str
    state: str = ""  # active, future or ended, where it is of a contract


def phases_of_plan(plan: Plan, t: Texts, f: Formats) -> list[Terms]:
    """The phases of a plan with their lengths."""
    whole = plan.whole
    ends = whole.trial_end == "cancel"
    return [Terms(_name(one, t), _length(one, t, f), _words(whole, one, ends, t, f)) for one in whole.phases]


def phases_of_contract(contract: Contract, now: datetime, t: Texts, f: Formats) -> list[Terms]:
    """The phases of the plan in force with their days; equal neighbours are one, and none begins after the end."""
    start = contract.subscription.start
    whole = contract.segment_at(max(now, start)).plan.whole
    ends = (contract.subscription.trial_end or whole.trial_end) == "cancel"
    times = [one for one in phase_times(whole, start, contract.timezone) if one.start < contract.end]
    found: list[Terms] = []
    for one, following in zip_longest(times, times[1:]):
        end = contract.end if following is None else following.start
        state = "future" if one.start > now else "ended" if end <= now else "active"
        phase = whole.phases[one.index]
        found.append(Terms(_name(phase, t), _when(one.start, end, t, f), _words(whole, phase, ends, t, f), state))
    return found if whole.phases else []


def add_ons_of(master: MasterData, subscription: Subscription, now: datetime, t: Texts, f: Formats) -> list[Terms]:
    """The add-ons of a subscription: plan and version, when, and the quantities agreed."""
    found: list[Terms] = []
    for one in contracts_of(subscription, master.tenant.timezone)[1:]:
        agreed = [f"{charge}: {f.number(quantity)}" for charge, quantity in one.subscription.quantities.items()]
        words = ", ".join([segment_label(one.segments[-1]), *agreed])
        start = one.subscription.start
        found.append(Terms(one.subscription.add_on, _when(start, one.end, t, f), words, state_of(one, now)))
    return found


def _name(phase: Phase, t: Texts) -> str:
    return phase.name or (t("phase.number", number=phase.code) if phase.code.isdecimal() else phase.code)


def _length(phase: Phase, t: Texts, f: Formats) -> str:
    if phase.open:
        return t("phase.open")
    key, number = ("phase.days", phase.days) if phase.days else ("phase.months", phase.months)
    return t(key, n=number, count=f.number(number))


def _when(start: datetime, end: datetime, t: Texts, f: Formats) -> str:
    if end >= FOREVER:
        return t("phase.from", day=f.day(f.local(start).date()))
    return f.period(start, end)


def _words(plan: Plan, phase: Phase, ends: bool, t: Texts, f: Formats) -> str:
    """What is other in a phase, as a sentence without its full stop; `ends`: the contract ends with its trial."""
    said: list[str] = []
    if phase.free:
        said.append(t("phase.free"))
        if ends and phase is plan.phases[0]:
            said.append(t("phase.ends"))
    if phase.discount:
        what = ", ".join(sorted(phase.discounted)) or t("subscription.all_charges")
        said.append(t("subscription.discount_percent", percent=f.number(phase.discount), charges=what))
    if phase.prices:
        said.append(t("phase.prices", charges=", ".join(code for code, _ in phase.prices)))
    if phase.charges is not None:
        said.append(t("phase.charges", charges=", ".join(charge.name or charge.code for charge in phase.charges)))
    if phase.minimum is not None:
        said.append(t("phase.minimum", amount=f.money(phase.minimum, plan.currency)))
    return "; ".join(said) or t("phase.plain")
