"""Steps that only the driver of bill runs writes: a run is final, a run was taken back."""

from __future__ import annotations

from datetime import datetime

from billing.forms import Form, Mistakes
from billing.master import START, RunMark
from billing.steps.draft import Draft


def mark_run(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    """A finalised run: what was due up to its cut is billed. `steps` = how many steps it had seen (default all)."""
    up_to = form.moment("up_to", draft.timezone)
    steps = form.count("steps", draft.step_count, 0, most=draft.step_count)
    parked = frozenset(form.texts("parked"))
    positions = form.mapping("cut")
    if not all(lane.isdecimal() and isinstance(number, int) for lane, number in positions.items()):
        form.wrong("cut", "needs the last number of each lane")
        return
    cut = {int(lane): number for lane, number in positions.items()} or None
    form.rest(frozenset({"document_date", "id"}))
    form.done()
    if not mistakes.errors and at != START and up_to > at:
        form.wrong("up_to", "must not lie after the clock")
    if mistakes.errors:
        return
    closes = draft.tenant.late_usage == "reject"
    draft.runs.append(RunMark(draft.step_count, at, up_to, steps, parked, cut, closes))


def take_back_run(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    """The last finalised run was taken back: what it billed is not billed any more. `mark` is its step."""
    mark = form.count("mark", 0, 0, most=draft.step_count)
    form.rest(frozenset({"id"}))
    form.done()
    if not mistakes.errors and (not draft.runs or draft.runs[-1].number != mark):
        form.wrong("mark", "is not the last bill run")
    if not mistakes.errors:
        draft.runs.pop()
