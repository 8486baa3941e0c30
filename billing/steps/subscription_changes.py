"""Steps that change a running subscription. They come in order of time, and never after its end."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Literal, cast

from billing.catalog import Price
from billing.catalog_forms import parse_price, price_misfit
from billing.contracts import ContractStep, contract, ended_at
from billing.errors import InvalidInput
from billing.forms import Form, Mistakes
from billing.steps.catalog import version_for
from billing.steps.draft import Draft
from billing.steps.running import add_change, changeable_charge, running_subscription


def change_plan(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    subscription = running_subscription(draft, form, at)
    plan_code = form.code("plan")
    when = form.choice("when", ("now", "period_end"), "now")
    form.done()
    if plan_code and plan_code not in draft.plans:
        form.wrong("plan", f"there is no plan {plan_code!r}")
    if mistakes.errors or subscription is None:
        return
    plan = version_for(draft, form, plan_code, at)
    if plan is None:
        return
    if plan.currency != subscription.plan.currency:
        return form.wrong("plan", "is in another currency: that needs a new subscription")
    step = ContractStep(draft.step_count, at, "change", cast("Literal['now', 'period_end']", when), plan)
    add_change(draft, subscription, step)


def cancel(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    subscription = running_subscription(draft, form, at)
    when = form.choice("when", ("now", "period_end"), "now")
    refund = form.truth("refund_unused", True)
    form.done()
    if mistakes.errors or subscription is None:
        return
    when_ = cast("Literal['now', 'period_end']", when)
    before = ended_at(subscription, draft.timezone)
    step = ContractStep(draft.step_count, at, "cancel", when_, refund_unused=refund)
    after = replace(subscription, steps=(*subscription.steps, step))
    if before is not None and when == "period_end" and before == ended_at(after, draft.timezone):
        return form.wrong("subscription", f"{subscription.code!r} is cancelled already, to {before:%Y-%m-%d}")
    draft.subscriptions[subscription.code] = after


def pause(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    subscription = running_subscription(draft, form, at)
    form.done()
    if subscription is not None and contract(subscription, draft.timezone).paused:
        form.wrong("subscription", f"{subscription.code!r} is paused already")
    if not mistakes.errors and subscription is not None:
        add_change(draft, subscription, ContractStep(draft.step_count, at, "pause"))


def resume(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    subscription = running_subscription(draft, form, at)
    form.done()
    if subscription is not None and not contract(subscription, draft.timezone).paused:
        form.wrong("subscription", f"{subscription.code!r} is not paused")
    if not mistakes.errors and subscription is not None:
        add_change(draft, subscription, ContractStep(draft.step_count, at, "resume"))


def set_quantity(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    subscription = running_subscription(draft, form, at)
    charge, add_on = form.code("charge"), form.code("add_on", "")
    quantity = form.decimal("quantity", least=Decimal(0))
    form.done()
    if mistakes.errors or subscription is None or not changeable_charge(draft, form, subscription, add_on, charge, at):
        return
    step = ContractStep(draft.step_count, at, "quantity", charge=charge, quantity=quantity, add_on=add_on)
    add_change(draft, subscription, step)


def override_price(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    subscription = running_subscription(draft, form, at)
    charge_code, add_on = form.code("charge"), form.code("add_on", "")
    value = form.raw("price")
    form.done()
    price: Price | None = None
    try:
        price = parse_price(value, form.at("price"))
    except InvalidInput as error:
        mistakes.take(error)
    if mistakes.errors or subscription is None or price is None:
        return
    charge = changeable_charge(draft, form, subscription, add_on, charge_code, at)
    if charge is None:
        return
    if charge.included and price.model in ("percentage", "event_amount"):
        return form.wrong("price", f"{price.model} does not go with the charge's `included`")
    if contract(subscription, draft.timezone).paused:
        return form.wrong("subscription", f"{subscription.code!r} is paused: resume it first")
    misfit = price_misfit(price, draft.meters[charge.meter]) if charge.kind == "usage" else None
    if misfit is not None:
        return form.wrong("price", misfit)
    if charge.kind != "usage" and price.model not in ("flat", "per_unit", "graduated", "volume", "package"):
        return form.wrong("price", f"a {charge.kind} charge cannot have the price model {price.model}")
    same = (add_on, charge_code, at)
    changes = [place for place, s in enumerate(subscription.steps, start=1) if s.kind == "change" and not add_on]
    since = subscription.steps[max(changes, default=0) :]  # an override ends with its plan
    if any(s.kind == "override" and (s.add_on, s.charge, s.at) == same for s in since):
        return form.wrong("charge", f"{charge_code!r} has an override of the same moment already")
    step = ContractStep(draft.step_count, at, "override", charge=charge_code, price=price, add_on=add_on)
    add_change(draft, subscription, step)
