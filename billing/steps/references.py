"""What a buyer wants to read of a subscription on his documents: purchase order, cost centre, buyer reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from billing.einvoice.addresses import check_leitweg_id
from billing.forms import Form, Mistakes
from billing.segments import References
from billing.steps.draft import Draft

REFERENCE_LENGTH_MAX = 200
REFERENCES_MAX = 1_000  # changes of one subscription
KEYS = ("order_reference", "cost_centre", "buyer_reference", "leitweg_id")


def references_of(form: Form, at: datetime, known: References | None = None) -> References:
    """What a form says of them; what it does not name stays as known, null or an empty text takes it away."""
    given: dict[str, str] = {}
    for key in KEYS:
        if key in form.fields:
            given[key] = check_leitweg_id(form) if key == "leitweg_id" else _reference(form, key)
    return replace(known or References(at), since=at, **given)


def stored_references(fields: Mapping[str, Any], at: datetime) -> References:
    """Those of a form that nobody looked at when it came: what cannot be one is left out."""
    kept = {key: fields[key] for key in KEYS if isinstance(fields.get(key), str)}
    return References(at, **kept)


def set_references(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    """Change them from a moment on: documents made then say the new ones, whatever the lines are for."""
    code = form.code("subscription")
    subscription = draft.subscriptions.get(code)
    if subscription is None:
        if code:
            form.wrong("subscription", f"there is no subscription {code!r}")
        return
    before = subscription.references
    found = references_of(form, at, before[-1] if before else None)
    form.done()
    if not form.fields.keys() & set(KEYS):
        form.wrong("order_reference", f"name at least one of {', '.join(KEYS)}")
    if before and at < before[-1].since:
        form.wrong("subscription", f"{code!r} has later references already; they come in order of time")
    if len(before) >= REFERENCES_MAX:
        form.wrong("subscription", f"{code!r} has {REFERENCES_MAX} changes of its references; that is the limit")
    if mistakes.errors:
        return
    if not before:
        before = (References(subscription.start),)
    kept = tuple(one for one in before if one.since != at)
    draft.subscriptions[code] = replace(subscription, references=(*kept, found))


def _reference(form: Form, key: str) -> str:
    if form.fields[key] is None:
        form.raw(key)
        return ""
    found = form.text(key, "", REFERENCE_LENGTH_MAX)
    if found and (not found.isprintable() or found != found.strip()):
        form.wrong(key, "must be one line of printable characters, without spaces around it")
    return found
