"""Applies one step: looks at its form, finds the function of its kind, keeps it in the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, cast

from billing.forms import Form, Mistakes
from billing.master import START
from billing.steps.add_ons import add_add_on, remove_add_on
from billing.steps.catalog import publish_plan, set_meter, set_tax_code
from billing.steps.credit import add_ad_hoc, add_top_up, set_budget
from billing.steps.customers import set_customer
from billing.steps.draft import Draft
from billing.steps.references import set_references
from billing.steps.runs import mark_run, take_back_run
from billing.steps.subscription_changes import cancel, change_plan, override_price, pause, resume, set_quantity
from billing.steps.subscriptions import subscribe
from billing.steps.tenant import set_documents, set_settings

Step = Callable[[Draft, Form, datetime, Mistakes], None]

STEPS: Mapping[str, Step] = {
    "tax_code": set_tax_code,
    "meter": set_meter,
    "publish": publish_plan,
    "customer": set_customer,
    "subscribe": subscribe,
    "change": change_plan,
    "quantity": set_quantity,
    "override": override_price,
    "cancel": cancel,
    "pause": pause,
    "resume": resume,
    "add_on": add_add_on,
    "remove_add_on": remove_add_on,
    "top_up": add_top_up,
    "budget": set_budget,
    "ad_hoc": add_ad_hoc,
    "references": set_references,
    "documents": set_documents,
    "settings": set_settings,
    "bill_run": mark_run,
}
STEPS_OF_MASTER_DATA = frozenset(STEPS)
STEPS_OF_RUNS: Mapping[str, Step] = {"bill_run_reversed": take_back_run}  # what only the driver of bill runs writes
_ALL_STEPS: Mapping[str, Step] = {**STEPS, **STEPS_OF_RUNS}


def apply_step(draft: Draft, step: object, pointer: str, number: int | None = None) -> None:
    """Put one step `{at, <kind>: {...}}` into the draft; raises InvalidInput naming every bad field.

    The step gets the next number, or the one that it had when it was first applied.
    """
    mistakes = Mistakes()
    form = Form(step, pointer, mistakes)
    mistakes.check()
    kinds = [key for key in form.fields if key != "at"]
    if len(kinds) != 1 or kinds[0] not in _ALL_STEPS:
        names = ", ".join(sorted(STEPS))
        wrong = next((key for key in kinds if key not in _ALL_STEPS), None)
        mistakes.add(pointer if wrong is None else form.at(wrong), f"a step has `at` and one of: {names}")
        mistakes.check()
    kind = kinds[0]
    at = form.moment("at", draft.timezone, START)
    here = Form(form.raw(kind), form.at(kind), mistakes)
    mistakes.check()
    draft.step_count = number if number is not None else draft.step_count + 1
    _ALL_STEPS[kind](draft, here, at, mistakes)
    mistakes.check()
    draft.log.append((draft.step_count, cast("Mapping[str, Any]", step)))
