"""Steps that change the catalog: tax codes, meters, published plans."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from billing.catalog import Plan
from billing.catalog_forms import check_references, parse_meter, parse_plan, parse_tax_code
from billing.errors import InvalidInput
from billing.forms import Form, Mistakes
from billing.master import START
from billing.periods import local_date
from billing.steps.draft import Draft


def set_tax_code(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    try:
        code = parse_tax_code(form.fields, form.pointer)
    except InvalidInput as error:
        return mistakes.take(error)
    # A new percent from a date is a new form of the same code.
    draft.tax_codes[code.code] = replace(code, step=draft.step_count)


def set_meter(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    try:
        meter = parse_meter(form.fields, form.pointer)
    except InvalidInput as error:
        return mistakes.take(error)
    if meter.code in draft.meters and draft.meters[meter.code] != meter:
        return form.wrong("code", f"meter {meter.code!r} exists with another definition; meters never change")
    draft.meters[meter.code] = meter


def publish_plan(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    value = form.raw("plan")
    form.done()
    if value is None:
        return form.wrong("plan", "is missing")
    try:
        plan = parse_plan(value, form.at("plan"))
    except InvalidInput as error:
        return mistakes.take(error)
    for error in check_references(plan, draft.meters, draft.tax_codes, form.at("plan")):
        mistakes.add(error.pointer, error.detail)
    versions = draft.plans.get(plan.code, ())
    since = draft.published.get(plan.code, START)
    if versions and at < since:
        place = f"{form.pointer.rpartition('/')[0]}/at"
        return mistakes.add(place, f"lies before version {len(versions)} of plan {plan.code!r} ({since:%Y-%m-%d})")
    draft.published = {**draft.published, plan.code: at}
    draft.plans[plan.code] = (*versions, replace(plan, version=len(versions) + 1))


def version_for(draft: Draft, form: Form, code: str, moment: datetime) -> Plan | None:
    """The newest version of a plan that a contract may take which begins at the moment."""
    day = local_date(moment, draft.timezone)
    for plan in reversed(draft.plans[code]):
        if plan.effective_from is None or plan.effective_from <= day:
            return plan
    first = min(plan.effective_from for plan in draft.plans[code] if plan.effective_from is not None)
    form.wrong("plan", f"plan {code!r} is effective only from {first}, the contract begins on {day}")
    return None
