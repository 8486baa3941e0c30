"""The form of a tenant: currency, time zone, country, what happens to late usage, what goes on one document; and steps
that change of it what may change while a tenant lives. Currency, time zone and country do not: periods and amounts that
are billed rest on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast

from billing.forms import Form, Mistakes
from billing.master import DOCUMENT_PER, DocumentPer, LateUsage, Tenant
from billing.periods import TimeInvalid, zone
from billing.steps.amounts import check_amount
from billing.steps.draft import Draft

# The forms carry more than billing needs (addresses, seller data ...): kept as given, for documents to read.
TENANT_EXTRAS = frozenset({"code", "name", "kind", "language", "legal_entity", "legal_entities", "parking", "settings"})


LATE_USAGE: tuple[LateUsage, ...] = ("delta", "reissue", "reject")
FUTURE_LIMIT_MAX = timedelta(days=366)
SOURCES_MAX = 1_000  # that number their events for each customer


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
    late_usage = form.choice("late_usage", LATE_USAGE, "delta")
    future_limit = _length(form, "future_limit", timedelta(hours=1))
    per = form.choice("document_per", DOCUMENT_PER, "customer")
    form.rest(TENANT_EXTRAS)
    form.done()
    mistakes.check()
    return Tenant(
        currency,
        timezone,
        country,
        cast("LateUsage", late_usage),
        future_limit,
        form.fields,
        cast("DocumentPer", per),
        _named_at_first(form.fields.get("settings")),
    )


def set_settings(draft: Draft, form: Form, at: datetime, mistakes: Mistakes) -> None:
    """What a live tenant may change: `{late_usage: reject, future_limit: 1d, unique_within_customer: [gateway]}`.

    What is not named stays. It holds for what comes and is billed after the step: what runs have closed stays closed.
    """
    tenant = draft.tenant
    late_usage = cast("LateUsage", form.choice("late_usage", LATE_USAGE, tenant.late_usage))
    limit = _length(form, "future_limit", tenant.future_limit)
    if limit > FUTURE_LIMIT_MAX:
        form.wrong("future_limit", f"is at most {FUTURE_LIMIT_MAX.days} days")
    sources = tenant.unique_within_customer
    if "unique_within_customer" in form.fields:
        sources = read_sources(form)
    if not form.fields:
        mistakes.add(form.pointer, "names nothing to change")
    form.done()
    if not mistakes.errors:
        draft.tenant = replace(
            tenant,
            late_usage=late_usage,
            future_limit=limit,
            unique_within_customer=sources,
            has_reissued=tenant.has_reissued or tenant.late_usage == "reissue",
        )


def read_sources(form: Form) -> tuple[str, ...]:
    """Sources of `unique_within_customer`, each once."""
    sources: dict[str, None] = {}
    if not isinstance(form.fields["unique_within_customer"], list):
        form.raw("unique_within_customer")
        form.wrong("unique_within_customer", "a list of sources is needed")
        return ()
    for pointer, source in form.items("unique_within_customer", SOURCES_MAX):
        if not isinstance(source, str) or not source:
            form.mistakes.add(pointer, "a source is a text")
        else:
            sources[source] = None
    return tuple(sources)


def settings_form(tenant: Tenant) -> dict[str, Any]:
    """The settings as a step has them."""
    return {
        "late_usage": tenant.late_usage,
        "future_limit": _in_words(tenant.future_limit),
        "unique_within_customer": list(tenant.unique_within_customer),
    }


def _named_at_first(settings: object) -> tuple[str, ...]:
    """As the form of a tenant has it (`settings: {unique_within_customer: [...]}`). What is no list of texts was stored
    by versions that did not look, and means nothing."""
    named = (
        cast("Mapping[str, object]", settings).get("unique_within_customer") if isinstance(settings, Mapping) else ()
    )
    return tuple(one for one in cast("list[object]", named) if isinstance(one, str)) if isinstance(named, list) else ()


def _in_words(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


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
