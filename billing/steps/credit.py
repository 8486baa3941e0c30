"""Steps about amounts and limits: top-ups, single charges and goodwill, budgets."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, cast

from billing.catalog import TAX_BEHAVIORS
from billing.contracts import plan_at
from billing.forms import Form, Mistakes, decimal_of
from billing.master import START, AdHoc, Budget, TopUp
from billing.periods import MONTHS
from billing.steps.amounts import check_amount
from billing.steps.draft import Draft
from billing.thresholds import Threshold


def add_top_up(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    customer = form.code("customer")
    amount = form.decimal("amount", above=Decimal(0))
    kind = form.choice("kind", ("promotional", "purchased"))
    expires = form.moment("expires", draft.timezone, required=False) if form.fields.get("expires") else None
    form.raw("expires")
    currency = form.text("currency", draft.tenant.currency)
    form.done()
    if customer and customer not in draft.customers:
        form.wrong("customer", f"there is no customer {customer!r}")
    check_amount(form, "amount", amount, currency)
    if expires is not None and expires <= at:
        form.wrong("expires", "must be after the top-up: this credit could never be used")
    if mistakes.errors or amount is None:
        return
    kind_ = cast("Literal['promotional', 'purchased']", kind)
    draft.top_ups.append(TopUp(draft.step_count, at, customer, currency, kind_, amount, expires))


def add_ad_hoc(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    customer, code = form.code("customer"), form.code()
    subscription = form.code("subscription", "")
    name = form.text("name", code or "ad hoc", 256)
    amount = form.decimal("amount")
    tax = form.code("tax")
    known = draft.subscriptions.get(subscription)
    currency = form.text("currency", known.plan.currency if known else draft.tenant.currency)
    # An amount for a subscription is in the terms of its plan, unless it says otherwise.
    plan = plan_at(known, draft.timezone, at) if known and at >= known.start else known.plan if known else None
    behavior = form.choice("tax_behavior", TAX_BEHAVIORS, plan.tax_behavior if plan else "exclusive")
    form.done()
    if customer and customer not in draft.customers:
        form.wrong("customer", f"there is no customer {customer!r}")
    if subscription and (known is None or known.customer != customer):
        form.wrong("subscription", f"customer {customer!r} has no subscription {subscription!r}")
    if tax and tax not in draft.tax_codes:
        form.wrong("tax", f"there is no tax code {tax!r}")
    if code == "minimum":
        form.wrong("code", "'minimum' is the name of a plan's own minimum")
    check_amount(form, "amount", amount, currency)
    if at == START:
        mistakes.add(form.pointer, "the step needs an `at`: the day of the charge")
    if mistakes.errors or amount is None:
        return
    inclusive = behavior == "inclusive"
    entry = AdHoc(draft.step_count, at, customer, subscription, code, name, amount, tax, currency, inclusive)
    draft.ad_hoc[customer] = (*draft.ad_hoc.get(customer, ()), entry)


def set_budget(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    code = form.code()
    customer = form.code("customer")
    amount = form.decimal("amount", above=Decimal(0))
    period = form.choice("period", ("day", "week", *MONTHS), "month")
    thresholds: set[Threshold] = set()
    for pointer, entry in form.items("thresholds", most=100):
        found = _threshold(pointer, entry, draft.tenant.currency, mistakes)
        if found is not None:
            thresholds.add(found)
    action = form.choice("action", ("notify", "webhook", "block"), "notify")
    form.done()
    if customer and customer not in draft.customers:
        form.wrong("customer", f"there is no customer {customer!r}")
    if code in draft.budgets and draft.budgets[code].customer != customer:
        form.wrong("code", f"budget {code!r} belongs to another customer")
    if mistakes.errors or amount is None:
        return
    draft.budgets[code] = Budget(
        code,
        draft.step_count,
        at,
        customer,
        amount,
        period,
        tuple(sorted(thresholds, key=lambda one: (one.limit(amount), one.text))),
        cast("Literal['notify', 'webhook', 'block']", action),
    )


def _threshold(pointer: str, entry: object, currency: str, mistakes: Mistakes) -> Threshold | None:
    """A percent as text, or `{"amount": "40.00"}` in the tenant's currency."""
    if not isinstance(entry, dict):
        percent = decimal_of(entry)
        if percent is None or percent <= 0:
            mistakes.add(pointer, 'a percent above 0 is needed, as text, or {"amount": "40.00"}')
            return None
        return Threshold(percent)
    before = len(mistakes.errors)
    form = Form(cast("dict[str, Any]", entry), pointer, mistakes)
    amount = form.decimal("amount", above=Decimal(0))
    form.done()
    check_amount(form, "amount", amount, currency)
    return None if amount is None or len(mistakes.errors) > before else Threshold(amount, "amount")
