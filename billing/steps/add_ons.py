"""Steps that add an add-on to a subscription and take it away."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Literal, cast

from billing.contracts import FOREVER, AddOn, ContractStep, ended_at
from billing.forms import Form, Mistakes
from billing.steps.catalog import version_for
from billing.steps.draft import Draft
from billing.steps.running import add_change, add_on_end, running_subscription
from billing.steps.subscriptions import check_charges, discount_of, quantities_of

ADD_ON_EXTRAS = frozenset({"name", "note"})
ADD_ONS_MAX = 1_000  # of one subscription


def add_add_on(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    subscription = running_subscription(draft, form, at)
    code, plan_code = form.code(), form.code("plan")
    start = form.moment("start", draft.timezone, at)
    end = form.moment("end", draft.timezone) if form.fields.get("end") is not None else FOREVER
    form.raw("end")
    quantities = quantities_of(form)
    discounts = tuple(discount_of(entry, pointer, mistakes) for pointer, entry in form.items("discounts"))
    form.rest(ADD_ON_EXTRAS)
    form.done()
    if plan_code and plan_code not in draft.plans:
        form.wrong("plan", f"there is no plan {plan_code!r}")
    if end <= start:
        form.wrong("end", "must be after the start")
    if mistakes.errors or subscription is None:
        return
    plan = version_for(draft, form, plan_code, start)
    if plan is None:
        return
    if plan.currency != subscription.plan.currency:
        form.wrong("plan", "is in another currency: that needs a subscription of its own")
    if any(one.code == code for one in subscription.add_ons):
        form.wrong("code", f"{subscription.code!r} has an add-on {code!r} already; a code is used once")
    if len(subscription.add_ons) >= ADD_ONS_MAX:
        form.wrong("code", f"{subscription.code!r} has {ADD_ONS_MAX} add-ons; that is the limit")
    check_charges(form, plan, quantities, discounts)
    if start < subscription.start:
        form.wrong("start", f"{subscription.code!r} starts only later: an add-on cannot come before it")
    ends = ended_at(subscription, draft.timezone)
    if ends is not None and start >= ends:
        form.wrong("start", f"{subscription.code!r} ends before that")
    if mistakes.errors:
        return
    made = AddOn(code, draft.step_count, plan, start, end, quantities, discounts)
    draft.subscriptions[subscription.code] = replace(subscription, add_ons=(*subscription.add_ons, made))


def remove_add_on(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    subscription = running_subscription(draft, form, at)
    code = form.code()
    when = form.choice("when", ("now", "period_end"), "now")
    refund = form.truth("refund_unused", True)
    form.done()
    if mistakes.errors or subscription is None:
        return
    add_on = next((one for one in subscription.add_ons if one.code == code), None)
    if add_on is None:
        return form.wrong("code", f"{subscription.code!r} has no add-on {code!r}")
    if at < add_on.start:
        return form.wrong("code", f"{code!r} starts only later: it cannot be removed before its start")
    if add_on_end(draft, subscription, code) <= at:
        return form.wrong("code", f"{code!r} has ended already")
    when_ = cast("Literal['now', 'period_end']", when)
    step = ContractStep(draft.step_count, at, "remove_add_on", when_, refund_unused=refund, add_on=code)
    add_change(draft, subscription, step)
