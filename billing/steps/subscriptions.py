"""The step that makes a subscription, and the parts of its form that an add-on has too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import cast

from billing.catalog import Plan
from billing.contracts import Discount, Subscription
from billing.forms import Form, Mistakes, escape
from billing.master import START
from billing.periods import Anchor
from billing.phases import TRIAL_ENDS, TrialEnd
from billing.segments import References
from billing.steps.amounts import check_amount
from billing.steps.catalog import version_for
from billing.steps.draft import Draft
from billing.steps.references import KEYS, references_of, stored_references

SUBSCRIPTION_EXTRAS = frozenset({"name", "note", "legal_entity", "tags", *KEYS})


def subscribe(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    code = form.code()
    customer = form.code("customer")
    plan_code = form.code("plan")
    anchor = form.choice("anchor", ("calendar", "anniversary"), "calendar")
    start = form.moment("start", draft.timezone, at)
    quantities = quantities_of(form)
    discounts = tuple(discount_of(entry, pointer, mistakes) for pointer, entry in form.items("discounts"))
    trial_end = form.choice("trial_end", TRIAL_ENDS, "")
    references = references_of(form, start) if draft.fresh else stored_references(form.fields, start)
    form.rest(SUBSCRIPTION_EXTRAS)
    form.done()
    if code in draft.subscriptions:
        form.wrong("code", f"subscription {code!r} exists already")
    if customer and customer not in draft.customers:
        form.wrong("customer", f"there is no customer {customer!r}")
    if plan_code and plan_code not in draft.plans:
        form.wrong("plan", f"there is no plan {plan_code!r}")
    if start == START:
        form.wrong("start", "a subscription needs a start (or the step an `at`)")
    if mistakes.errors:
        return
    plan = version_for(draft, form, plan_code, start)
    if plan is None:
        return
    check_charges(form, plan, quantities, discounts)
    if trial_end and not (plan.phases and plan.phases[0].free):
        form.wrong("trial_end", f"plan {plan_code!r} does not begin with a free phase")
    draft.subscriptions[code] = Subscription(
        code, customer, draft.step_count, start, cast("Anchor", anchor), plan, quantities, discounts,
        trial_end=cast("TrialEnd", trial_end) if trial_end else None,
        references=() if references == References(start) else (references,),
    )  # fmt: skip
    draft.subscriptions_of[customer] = (*draft.subscriptions_of.get(customer, ()), code)


def check_charges(form: Form, plan: Plan, quantities: Mapping[str, Decimal], discounts: Sequence[Discount]) -> None:
    """Quantities and discounts name charges of the plan."""
    if not quantities and not discounts:
        return
    charges = plan.charge_codes
    for charge in quantities:
        if charge not in charges:
            form.mistakes.add(
                f"{form.at('quantities')}/{escape(charge)}", f"plan {plan.code!r} has no charge {charge!r}"
            )
    for place, discount in enumerate(discounts):
        check_amount(
            Form({}, f"{form.at('discounts')}/{place}", form.mistakes), "amount", discount.amount, plan.currency
        )
        for charge in sorted(discount.charges - charges):
            at = f"{form.at('discounts')}/{place}/charges"
            form.mistakes.add(at, f"plan {plan.code!r} has no charge {charge!r}")


def quantities_of(form: Form) -> dict[str, Decimal]:
    inner = Form(form.mapping("quantities"), form.at("quantities"), form.mistakes)
    found: dict[str, Decimal] = {}
    for charge in inner.fields:
        quantity = inner.decimal(charge, least=Decimal(0))
        if quantity is not None:
            found[charge] = quantity
    return found


def discount_of(entry: object, pointer: str, mistakes: Mistakes) -> Discount:
    form = Form(entry, pointer, mistakes)
    percent = form.decimal("percent", required=False, above=Decimal(0))
    amount = form.decimal("amount", required=False, above=Decimal(0))
    charges = frozenset(form.texts("charges"))
    times = form.count("times", 1)
    form.done()
    if (percent is None) == (amount is None):
        mistakes.add(pointer, "a discount has either `percent` or `amount`")
    if percent is not None and percent > 100:
        form.wrong("percent", "must be at most 100")
    if percent is None and charges:
        form.wrong("charges", "only a percent discount names charges")
    if percent is not None and "times" in form.fields:
        form.wrong("times", "only an amount discount has `times`")
    return Discount(percent, amount, charges, times)
