"""How a tenant wants its bill runs: guard rails, four eyes, the collection window, when runs begin by themselves.

Owns the form and its defaults. What a guard rail says of documents is `billing/guard_rails.py`, when a run is due is
`billing/run_schedule.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast

from billing.catalog import INTERVALS, Interval
from billing.forms import Form, Mistakes
from billing.money import MINOR_DIGITS

WINDOW_MAX = timedelta(days=60)
_DURATION = re.compile(r"P(?:(\d{1,3})D)?(?:T(?:(\d{1,4})H)?(?:(\d{1,4})M)?)?", re.ASCII)


@dataclass(frozen=True)
class GuardRails:
    """What keeps a customer's documents back until somebody looked. A limit of None looks at nothing."""

    on: bool = True
    # An invoice, or all that a customer gets in a run, over so many times the highest of his last runs.
    times_last: Decimal | None = Decimal(3)
    # Gross by currency, of an invoice and of all that a customer gets in a run.
    limits: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])
    new_country: bool = True  # of the customer: the tenant has never sent an invoice there
    voided_ids: bool = True  # an id of his came under another customer, too, and was voided
    change_percent: Decimal | None = Decimal(50)  # of the whole run's net against the last run: it waits for approval


@dataclass(frozen=True)
class Schedule:
    """Runs that begin by themselves: up to the end of each period, when the collection window has passed."""

    interval: Interval
    approve: bool = False  # go on by itself when nothing was found; else it waits


@dataclass(frozen=True)
class RunSettings:
    guard_rails: GuardRails = field(default_factory=GuardRails)
    four_eyes: bool = False  # who approves a run is not who started it
    collection_window: timedelta = timedelta(0)
    schedule: Schedule | None = None


def settings_of(form: Mapping[str, Any] | None, kind: str) -> RunSettings:
    """The settings of a tenant of that kind (`live`, `test`): guard rails are on in live ones unless said otherwise.

    Raises InvalidInput that names every bad field.
    """
    mistakes = Mistakes()
    fields = Form(dict(form or {}), "", mistakes)
    rails = _guard_rails(fields, kind == "live", mistakes)
    four_eyes = fields.truth("four_eyes", False)
    window = _window(fields)
    schedule: Schedule | None = None
    if fields.fields.get("schedule") is not None:
        given = Form(fields.raw("schedule"), fields.at("schedule"), mistakes)
        interval = cast("Interval", given.choice("interval", INTERVALS, "month"))
        schedule = Schedule(interval, given.truth("approve", False))
        given.done()
    else:
        fields.raw("schedule")
    fields.done()
    mistakes.check()
    return RunSettings(rails, four_eyes, window, schedule)


def _guard_rails(fields: Form, on: bool, mistakes: Mistakes) -> GuardRails:
    if fields.fields.get("guard_rails") is None:
        fields.raw("guard_rails")
        return GuardRails(on=on)
    form = Form(fields.raw("guard_rails"), fields.at("guard_rails"), mistakes)
    standard = GuardRails()
    limits: dict[str, Decimal] = {}
    given = Form(form.raw("limits") or {}, form.at("limits"), mistakes)
    for currency in list(given.fields):
        if currency not in MINOR_DIGITS:
            given.wrong(currency, "is no currency of ISO 4217")
        limit = given.decimal(currency, least=Decimal(0))
        if limit is not None:
            limits[currency] = limit
    found = GuardRails(
        form.truth("on", on),
        _limit(form, "times_last", standard.times_last),
        limits,
        form.truth("new_country", standard.new_country),
        form.truth("voided_ids", standard.voided_ids),
        _limit(form, "change_percent", standard.change_percent),
    )
    form.done()
    return found


def _limit(form: Form, name: str, default: Decimal | None) -> Decimal | None:
    """A positive number; null switches the rail off."""
    if name in form.fields and form.fields[name] is None:
        form.raw(name)
        return None
    if name not in form.fields:
        return default
    return form.decimal(name, above=Decimal(0))


def _window(fields: Form) -> timedelta:
    text = fields.text("collection_window", "PT0H")
    found = _DURATION.fullmatch(text)
    if found is None or not any(found.groups()):
        fields.wrong("collection_window", "a duration like PT72H or P3D is needed")
        return timedelta(0)
    days, hours, minutes = (int(part or 0) for part in found.groups())
    window = timedelta(days=days, hours=hours, minutes=minutes)
    if window > WINDOW_MAX:
        fields.wrong("collection_window", f"is at most {WINDOW_MAX.days} days")
    return window
