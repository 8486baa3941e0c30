"""The form of a tenant: currency, time zone, country, what happens to late usage, what goes on one document."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta
from typing import cast

from billing.forms import Form, Mistakes
from billing.master import DOCUMENT_PER, DocumentPer, LateUsage, Tenant
from billing.periods import TimeInvalid, zone
from billing.steps.amounts import check_amount
from billing.steps.draft import Draft

# The forms carry more than billing needs (addresses, seller data ...): kept as given, for documents to read.
TENANT_EXTRAS = frozenset({"code", "name", "kind", "language", "legal_entity", "legal_entities", "parking", "settings"})


def read_tenant(value: object, pointer: str) -> Tenant:
    """The tenant that a form `{currency, timezone, country, late_usage, future_limit, ...}` describes."""
    mistakes = Mistakes()
    form = Form(value, pointer, mistakes)
    currency = form.text("currency", "EUR")
    check_amount(form, "currency", None, currency)
    timezone = form.text("timezone", "UTC")
    try:
        zone(timezone)
    except TimeInvalid as error:
        form.wrong("timezone", str(error))
    country = form.text("country", "DE")
    if not re.fullmatch(r"[A-Z]{2}", country):
        form.wrong("country", "a country is two capital letters (ISO 3166)")
    late_usage = form.choice("late_usage", ("delta", "reissue", "reject"), "delta")
    future_limit = _length(form, "future_limit", timedelta(hours=1))
    per = form.choice("document_per", DOCUMENT_PER, "customer")
    form.rest(TENANT_EXTRAS)
    form.done()
    mistakes.check()
    return Tenant(
        currency, timezone, country, cast("LateUsage", late_usage), future_limit, form.fields, cast("DocumentPer", per)
    )


def set_documents(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    """What goes on one document of customers who say nothing else: `{per: order}`."""
    per = form.choice("per", DOCUMENT_PER)
    form.done()
    if not mistakes.errors:
        draft.tenant = replace(draft.tenant, document_per=cast("DocumentPer", per))


def _length(form: Form, key: str, default: timedelta) -> timedelta:
    """`30m`, `1h`, `1d`."""
    text = form.text(key, "")
    if not text:
        return default
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if found is None:
        form.wrong(key, "a length like 30m, 1h or 1d is needed")
        return default
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[found[2]]
    return timedelta(**{unit: int(found[1])})
