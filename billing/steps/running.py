"""The running subscription that a step names, and what of it can still be changed."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from billing.catalog import Charge
from billing.contracts import ContractStep, Subscription, contracts_of, ended_at, plan_at
from billing.forms import Form
from billing.steps.draft import Draft

SUBSCRIPTION_STEPS_MAX = 10_000  # of one subscription


def running_subscription(draft: Draft, form: Form, at: datetime) -> Subscription | None:
    """The subscription that a step names, if a step at that time is possible."""
    code = form.code("subscription")
    subscription = draft.subscriptions.get(code)
    if subscription is None:
        if code:
            form.wrong("subscription", f"there is no subscription {code!r}")
        return None
    if at < subscription.start:
        form.wrong("subscription", f"{code!r} starts only later: a change cannot come before the start")
        return None
    if subscription.steps and at < subscription.steps[-1].at:
        form.wrong("subscription", f"{code!r} has a later change already; changes come in order of time")
        return None
    if len(subscription.steps) >= SUBSCRIPTION_STEPS_MAX:
        form.wrong("subscription", f"{code!r} has {SUBSCRIPTION_STEPS_MAX} changes; that is the limit")
        return None
    end = ended_at(subscription, draft.timezone)
    if end is not None and end <= at:
        form.wrong("subscription", f"{code!r} has ended: nothing can be changed after the end")
        return None
    return subscription


def add_change(draft: Draft, subscription: Subscription, step: ContractStep) -> None:
    draft.subscriptions[subscription.code] = replace(subscription, steps=(*subscription.steps, step))


def changeable_charge(
    draft: Draft, form: Form, subscription: Subscription, add_on: str, code: str, at: datetime
) -> Charge | None:
    """The charge of the subscription's plan at that time, or of the add-on's, in this phase or another one."""
    if add_on:
        running = next((one for one in subscription.add_ons if one.code == add_on), None)
        if running is None:
            form.wrong("add_on", f"{subscription.code!r} has no add-on {add_on!r}")
            return None
        if add_on_end(draft, subscription, add_on) <= at:
            form.wrong("add_on", f"{add_on!r} has ended: nothing can be changed after the end")
            return None
        if at < running.start:
            form.wrong("add_on", f"{add_on!r} starts only later: a change cannot come before the start")
            return None
        plan = running.plan
    else:
        plan = plan_at(subscription, draft.timezone, at).whole
    found = plan.charge(code) or next((one for _, one in plan.versions_of_charges if one.code == code), None)
    if found is None:
        form.wrong("charge", f"plan {plan.code!r} has no charge {code!r}")
    elif found.kind == "one_off":
        form.wrong("charge", f"{code!r} is due once, with the terms of the start: nothing of it can be changed")
        return None
    return found


def add_on_end(draft: Draft, subscription: Subscription, code: str) -> datetime:
    return next(one.end for one in contracts_of(subscription, draft.timezone) if one.subscription.add_on == code)
