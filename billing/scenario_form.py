"""The form of a scenario file: a customer's whole life as dated steps, and what is expected to come of it.

Owns reading: every step of the file is read, and every change of master data tried, before any of it is run, so a
mistake is named with its place before anything is stored. Running is `billing/scenario.py` (in process) or the
command line (over REST); what came out is compared by `billing/scenario_compare.py`. Input is the file as loaded
(everything text but null, true, false).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, cast

import msgspec

from billing.credit_notes import CreditLine
from billing.errors import InvalidInput
from billing.forms import NO_MOMENT, Form, Mistakes
from billing.master import MasterData
from billing.periods import parse_moment
from billing.reservations import Asked, parse_reservation
from billing.steps.apply import STEPS_OF_MASTER_DATA

STEPS_OF_USE = frozenset({"usage", "reserve", "commit", "release", "credit_note", "correct"})
EVENTS_MAX = 1_000_000
TIMELINE_MAX = 100_000
EPOCH = parse_moment("1900-01-01", "UTC")
ZERO = Decimal(0)
# Lists of the file's head: the key there, the kind of step that each entry is.
SETUP = (("tax_codes", "tax_code"), ("meters", "meter"), ("plans", "publish"), ("customers", "customer"))


@dataclass(frozen=True)
class Step:
    """One thing that happens: its place in the file, when, its kind and form, and for steps of use what was read."""

    place: str
    at: datetime
    kind: str
    form: Any
    read: Any = None


@dataclass(frozen=True)
class Correction:
    """A changed event: what is given replaces."""

    source: str
    id: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Credited:
    """A credit note by hand: of which document of the run (from 1), over lines, of an amount, or (neither) whole."""

    document: int
    lines: Sequence[CreditLine] | None
    amount: Decimal | None = None

    @property
    def whole(self) -> bool:
        return self.lines is None and self.amount is None


@dataclass(frozen=True)
class Reserved:
    """A reservation, and what is expected to be granted."""

    asked: Asked
    granted: Decimal | None


@dataclass(frozen=True)
class Spent:
    """A commit of a reservation."""

    id: str
    amount: Decimal


@dataclass(frozen=True)
class Look:
    """Expected usage at a moment."""

    at: datetime
    place: str
    form: Mapping[str, Any]


@dataclass(frozen=True)
class Scenario:
    """A whole file, read. `setup` is what the file's head defines; `start` the master data with it."""

    name: str
    tenant: Mapping[str, Any]
    setup: Sequence[Step]
    start: MasterData
    timeline: Sequence[Step]
    expect: Mapping[str, Any]
    looks: Sequence[Look]  # in order of time

    @property
    def timezone(self) -> str:
        return self.start.tenant.timezone


def read_scenario(form: object) -> Scenario:
    """Read a scenario file. Raises InvalidInput that names every mistake found by its place in the file."""
    mistakes = Mistakes()
    top = Form(form, "", mistakes)
    name = top.text("scenario", "")
    for key in ("about", "source"):
        top.text(key, "")
    tenant = top.mapping("tenant")
    mistakes.check()
    master = MasterData.start(tenant, "/tenant")
    timezone = master.tenant.timezone
    setup: list[Step] = []
    for key, kind in SETUP:
        entries = list(top.items(key))
        mistakes.check()
        for pointer, entry in entries:
            step = {"plan": entry} if kind == "publish" else entry
            try:
                master = master.apply({kind: step})
            except InvalidInput as error:
                raise moved(error, f"/{kind}/plan" if kind == "publish" else f"/{kind}", pointer) from error
            setup.append(Step(pointer, EPOCH, kind, step))
    timeline = _read_timeline(top, master, timezone, mistakes)
    expect = top.mapping("expect")
    top.done()
    _check_expectations(expect, mistakes, timezone)
    mistakes.check()
    looks = [
        Look(parse_moment(entry["at"], timezone), f"/expect/usage/{place}", entry)
        for place, entry in enumerate(expect.get("usage") or [])
    ]
    looks.sort(key=lambda look: look.at)
    return Scenario(name, tenant, setup, master, timeline, expect, looks)


def moved(error: InvalidInput, before: str, after: str) -> InvalidInput:
    """The same error with its pointers at the place in the file."""
    errors = [replace(e, pointer=after + e.pointer.removeprefix(before)) for e in error.errors]
    first = errors[0] if errors else None
    return InvalidInput(f"{first.pointer}: {first.detail}" if first else f"{after}: {error.detail}", errors=errors)


# -- The timeline ------------------------------------------------------------------------------------------------------


def _read_timeline(top: Form, master: MasterData, timezone: str, mistakes: Mistakes) -> list[Step]:
    timeline: list[Step] = []
    last = EPOCH
    known: set[tuple[str, str]] = set()  # events sent so far
    reservations: set[str] = set()
    for pointer, entry in top.items("timeline", TIMELINE_MAX):
        one = Form(entry, pointer, mistakes)
        at = one.moment("at", timezone)
        kinds = [key for key in one.fields if key != "at"]
        if len(kinds) != 1 or kinds[0] not in STEPS_OF_MASTER_DATA | STEPS_OF_USE:
            names = ", ".join(sorted(STEPS_OF_MASTER_DATA | STEPS_OF_USE))
            wrong = next((key for key in kinds if key not in STEPS_OF_MASTER_DATA | STEPS_OF_USE), None)
            mistakes.add(pointer if wrong is None else one.at(wrong), f"a step has `at` and one of: {names}")
            continue
        if at < last and at != NO_MOMENT:
            one.wrong("at", "lies before the step above: the clock only moves forward")
        last = max(last, at) if at != NO_MOMENT else last
        kind, value = kinds[0], one.fields[kinds[0]]
        if mistakes.errors:
            continue  # what follows may rest on the step that is wrong
        read: Any = None
        if kind in STEPS_OF_MASTER_DATA:
            try:
                master = master.apply({"at": at.isoformat(), kind: value}, pointer)
            except InvalidInput as error:
                mistakes.take(error)
        else:
            read = _read_use(kind, one, master, timezone, known, reservations)
        timeline.append(Step(pointer, at, kind, value, read))
    return timeline


def _read_use(
    kind: str, step: Form, master: MasterData, timezone: str, known: set[tuple[str, str]], reservations: set[str]
) -> Any:
    mistakes = step.mistakes
    if kind == "usage":
        events = [_event(entry, pointer, mistakes, timezone) for pointer, entry in step.items("usage", EVENTS_MAX)]
        known.update((event["source"], event["id"]) for event in events)
        return events
    form = Form(step.fields[kind], step.at(kind), mistakes)
    if kind == "correct":
        return _correction(form, timezone, known)
    if kind == "credit_note":
        return _credited(form)
    if kind == "reserve":
        expected = Form(form.mapping("expect"), form.at("expect"), mistakes)
        granted = expected.decimal("granted", required=False)
        expected.done()
        asked = parse_reservation(form, master)
        reservations.add(asked.id)
        return Reserved(asked, granted)
    id = form.code("id")
    amount = form.decimal("amount", least=ZERO) if kind == "commit" else None
    form.done()
    if id and id not in reservations:
        form.wrong("id", f"there is no reservation {id!r}")
    return id if kind == "release" else Spent(id, amount or ZERO)


def _event(entry: object, pointer: str, mistakes: Mistakes, timezone: str) -> dict[str, Any]:
    """A row of EVENT_SCHEMA."""
    form = Form(entry, pointer, mistakes)
    fields: dict[str, Any] = {key: form.code(key) for key in ("source", "id", "type", "customer")}
    fields["subscription"] = form.code("subscription") if form.fields.get("subscription") is not None else None
    form.raw("subscription")
    fields["time"] = form.moment("time", timezone)
    fields["data"] = msgspec.json.encode(form.mapping("data")).decode()
    form.done()
    return fields


def _correction(form: Form, timezone: str, known: set[tuple[str, str]]) -> Correction:
    source, id = form.code("source"), form.code("id")
    changes: dict[str, Any] = {}
    for key in ("customer", "subscription", "type"):
        if key in form.fields:
            changes[key] = form.code(key)
    if "time" in form.fields:
        changes["time"] = form.moment("time", timezone)
    if "data" in form.fields:
        changes["data"] = msgspec.json.encode(form.mapping("data")).decode()
    form.done()
    if source and id and (source, id) not in known:
        form.wrong("id", f"there is no event {id!r} of source {source!r} in suspense")
    return Correction(source, id, changes)


def _credited(form: Form) -> Credited:
    number = form.count("document", 0, 1)
    if not number and "document" not in form.fields:
        form.wrong("document", "is missing")
    lines: list[CreditLine] | None = None
    if form.fields.get("lines") is not None:
        lines = []
        for pointer, entry in form.items("lines"):
            one = Form(entry, pointer, form.mistakes)
            line = one.count("line", 0, 1)
            lines.append(
                CreditLine(line, one.decimal("amount", required=False), one.decimal("quantity", required=False))
            )
            one.done()
    form.raw("lines")
    amount = form.decimal("amount", required=False)
    form.done()
    return Credited(number, lines, amount)


# -- What is expected --------------------------------------------------------------------------------------------------

_KEYS: dict[str, frozenset[str]] = {
    "expect": frozenset({"ingest", "documents", "alerts", "wallets", "suspense", "usage"}),
    "ingest": frozenset({"accepted", "duplicates", "suspense"}),
    "documents": frozenset(
        {
            *("customer", "type", "date", "currency", "refers_to", "lines", "allowances", "taxes"),
            *("net", "tax", "gross", "due", "prepaid"),
            *("group", "order_reference", "buyer_reference", "cost_centre"),
        }
    ),
    "lines": frozenset(
        {
            *("subscription", "charge", "when", "from", "to", "quantity", "allowance", "amount", "correction"),
            *("corrects", "name", "unit", "kind", "tax_category", "tax_percent", "plan", "gross", "customer", "add_on"),
            "cost_centre",
        }
    ),
    "allowances": frozenset({"kind", "amount"}),
    "taxes": frozenset({"category", "percent", "base", "amount"}),
    "alerts": frozenset({"budget", "threshold", "at"}),
    "wallets": frozenset({"customer", "currency", "balance", "reserved"}),
    "suspense": frozenset({"id", "reason", "source"}),
    "usage": frozenset({"at", "customer", "meter", "quantity", "cost"}),
}
_LISTS = frozenset({"documents", "lines", "taxes", "allowances", "alerts", "wallets", "usage"})


def _check_expectations(expect: Mapping[str, Any], mistakes: Mistakes, timezone: str) -> None:
    """Every key of an expectation must be one that is compared: a misspelt one would never fail."""

    def check(kind: str, value: object, pointer: str) -> None:
        form = Form(value, pointer, mistakes)
        for key, inner in form.fields.items():
            if key not in _KEYS[kind]:
                form.wrong(key, f"unknown key {key!r}")
            elif key in ("from", "to", "at"):
                form.moment(key, timezone)
            elif key == "ingest":
                check(key, inner, form.at(key))
            elif key in _KEYS and isinstance(inner, list):
                for place, entry in enumerate(cast("list[Any]", inner)):
                    check(key, entry, f"{form.at(key)}/{place}")
            elif key in _LISTS:
                form.wrong(key, "a list is needed")

    check("expect", expect, "/expect")
    for kind, needed in (("usage", ("at", "customer", "meter")), ("wallets", ("customer",))):
        for place, entry in enumerate(expect.get(kind) or []):
            for key in needed:
                if not isinstance(entry, Mapping) or key not in entry:
                    mistakes.add(f"/expect/{kind}/{place}/{key}", "is missing")
