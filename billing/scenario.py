"""Scenarios: a customer's whole life on a test clock, and whether the documents that come out are those expected.

Owns the scenario's form (steps that are no master data, expectations) and the comparison. It runs the same engine as
the platform (`billing/bill.py`) on the same steps; only where events come from and documents go to differs.
Input is the file as loaded (everything text but null, true, false); output is a list of differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, cast

import msgspec
import polars as pl

from billing.bill import bill
from billing.budgets import Budgets
from billing.catalog import Charge, EventAmount, Meter, parse_charge
from billing.credit_notes import CreditLine, credit_note
from billing.documents import Document, Line
from billing.due import Use
from billing.errors import InvalidInput
from billing.forms import NO_MOMENT, Form, Mistakes
from billing.master import STEPS_OF_MASTER_DATA, MasterData
from billing.money import decimal_text, minor_digits, parse_number, round_amount, shown_quantity
from billing.periods import TimeInvalid, local_date, parse_moment, show_moment, zone
from billing.rate_uses import rate_uses, suspense_reasons
from billing.rating import UsagePiece, rate
from billing.reservations import parse_reservation, reserve
from billing.running import is_level, running_uses, until
from billing.settle import BilledDocument
from billing.spending import Spending, level_costs
from billing.usage import EVENT_SCHEMA
from billing.wallets import Wallets

STEPS_OF_USE = frozenset({"usage", "reserve", "commit", "release", "credit_note", "correct"})
EVENTS_MAX = 1_000_000
TIMELINE_MAX = 100_000
EPOCH = parse_moment("1900-01-01", "UTC")
ZERO = Decimal(0)


@dataclass(frozen=True)
class Difference:
    """Something that came out otherwise: the place in the file, what was expected, what there is."""

    place: str
    expected: str
    actual: str


@dataclass
class Event:
    """One event of the scenario: what was sent, and why it is in suspense (None: it counts)."""

    fields: dict[str, Any]
    arrived: int
    reason: str | None = None
    counted: bool = False  # has ever counted; late usage of a tenant that rejects it never has


@dataclass
class Run:
    """The state of a scenario while its clock moves."""

    master: MasterData
    now: datetime
    wallets: Wallets
    spending: Spending
    events: list[Event] = field(default_factory=list[Event])
    by_id: dict[tuple[str, str], Event] = field(default_factory=dict[tuple[str, str], Event])
    ingest: dict[str, int] = field(default_factory=lambda: {"accepted": 0, "duplicates": 0, "suspense": 0})
    documents: list[BilledDocument] = field(default_factory=list[BilledDocument])
    differences: list[Difference] = field(default_factory=list[Difference])
    frame: pl.DataFrame | None = None  # of the events that count, until they change
    watched: frozenset[str] = frozenset()  # customers who have a budget at any time: what they spend before counts

    @property
    def timezone(self) -> str:
        return self.master.tenant.timezone

    @property
    def budgets(self) -> Budgets:
        return self.spending.budgets


def check_scenario(form: object) -> list[Difference]:
    """Run a scenario from start to end and compare. Raises InvalidInput where the file itself is wrong."""
    scenario = _read(form)
    run = scenario.begin()
    for place, at, kind, step in scenario.timeline:
        _look_until(run, scenario, at)
        _move(run, at)
        _STEPS.get(kind, _master_step)(run, at, kind, step, place)
    _look_until(run, scenario, None)
    _compare_end(run, scenario.expect, scenario.expect_pointer)
    return run.differences


def documents_of(form: object) -> list[BilledDocument]:
    """The documents that a scenario makes, for whoever wants to see them."""
    scenario = _read(form)
    run = scenario.begin()
    for place, at, kind, step in scenario.timeline:
        _move(run, at)
        _STEPS.get(kind, _master_step)(run, at, kind, step, place)
    return run.documents


# Reading


@dataclass
class _Scenario:
    master: MasterData
    timeline: list[tuple[str, datetime, str, Any]]
    expect: Mapping[str, Any]
    expect_pointer: str = "/expect"
    looks: list[tuple[datetime, int, Mapping[str, Any]]] = field(
        default_factory=list[tuple[datetime, int, Mapping[str, Any]]]
    )

    def begin(self) -> Run:
        budgets = [Form(step, "", Mistakes()) for _, _, kind, step in self.timeline if kind == "budget"]
        watched = frozenset(form.code("customer", "") for form in budgets)
        run = Run(self.master, EPOCH, Wallets(EPOCH), Spending(Budgets(self.master.tenant.timezone)))
        run.watched = watched
        return run


def _read(form: object) -> _Scenario:
    mistakes = Mistakes()
    top = Form(form, "", mistakes)
    for key in ("scenario", "about", "source"):
        top.text(key, "")
    tenant_form = top.mapping("tenant")
    mistakes.check()
    master = MasterData.start(tenant_form, "/tenant")
    timezone = master.tenant.timezone
    for key, kind in (("tax_codes", "tax_code"), ("meters", "meter"), ("plans", "publish"), ("customers", "customer")):
        entries = list(top.items(key))
        mistakes.check()
        for pointer, entry in entries:
            step = {"publish": {"plan": entry}} if kind == "publish" else {kind: entry}
            try:
                master = master.apply(step)
            except InvalidInput as error:
                raise _moved(error, f"/{kind}/plan" if kind == "publish" else f"/{kind}", pointer) from error
    timeline: list[tuple[str, datetime, str, Any]] = []
    last = EPOCH
    for pointer, entry in top.items("timeline", TIMELINE_MAX):
        one = Form(entry, pointer, mistakes)
        at = one.moment("at", timezone)
        kinds = [key for key in one.fields if key != "at"]
        if len(kinds) != 1 or kinds[0] not in STEPS_OF_MASTER_DATA | STEPS_OF_USE:
            known = ", ".join(sorted(STEPS_OF_MASTER_DATA | STEPS_OF_USE))
            wrong = next((key for key in kinds if key not in STEPS_OF_MASTER_DATA | STEPS_OF_USE), None)
            mistakes.add(pointer if wrong is None else one.at(wrong), f"a step has `at` and one of: {known}")
            continue
        if at < last and at != NO_MOMENT:
            one.wrong("at", "lies before the step above: the clock only moves forward")
        last = max(last, at) if at != NO_MOMENT else last
        timeline.append((pointer, at, kinds[0], one.fields[kinds[0]]))
    expect = top.mapping("expect")
    top.done()
    _check_expectations(expect, mistakes, timezone)
    mistakes.check()
    scenario = _Scenario(master, timeline, expect)
    for place, entry in enumerate(expect.get("usage") or []):
        scenario.looks.append((parse_moment(entry["at"], timezone), place, entry))
    scenario.looks.sort(key=lambda look: look[:2])
    return scenario


def _moved(error: InvalidInput, before: str, after: str) -> InvalidInput:
    """The same error with its pointers at the place in the file."""
    errors = [replace(e, pointer=after + e.pointer.removeprefix(before)) for e in error.errors]
    first = errors[0] if errors else None
    return InvalidInput(f"{first.pointer}: {first.detail}" if first else f"{after}: {error.detail}", errors=errors)


_KEYS: dict[str, frozenset[str]] = {
    "expect": frozenset({"ingest", "documents", "alerts", "wallets", "suspense", "usage"}),
    "ingest": frozenset({"accepted", "duplicates", "suspense"}),
    "documents": frozenset(
        [
            "customer",
            "type",
            "date",
            "currency",
            "refers_to",
            "lines",
            "allowances",
            "taxes",
            "net",
            "tax",
            "gross",
            "due",
            "prepaid",
        ]
    ),
    "lines": frozenset(
        [
            "subscription",
            "charge",
            "when",
            "from",
            "to",
            "quantity",
            "allowance",
            "amount",
            "correction",
            "corrects",
            "name",
            "unit",
            "kind",
            "tax_category",
            "tax_percent",
            "plan",
        ]
    ),
    "allowances": frozenset({"kind", "amount"}),
    "taxes": frozenset({"category", "percent", "base", "amount"}),
    "alerts": frozenset({"budget", "threshold", "at"}),
    "wallets": frozenset({"customer", "currency", "balance", "reserved"}),
    "suspense": frozenset({"id", "reason", "source"}),
    "usage": frozenset({"at", "customer", "meter", "quantity", "cost"}),
}


def _check_expectations(expect: Mapping[str, Any], mistakes: Mistakes, timezone: str) -> None:
    """Every key of an expectation must be one that is compared: a misspelt one would never fail."""

    def check(kind: str, value: object, pointer: str) -> None:
        form = Form(value, pointer, mistakes)
        for key, inner in form.fields.items():
            if key not in _KEYS[kind]:
                form.wrong(key, f"unknown key {key!r}")
            elif key in ("from", "to", "at"):
                form.moment(key, timezone)
            elif key in ("ingest",):
                check(key, inner, form.at(key))
            elif key in _KEYS and isinstance(inner, list):
                for place, entry in enumerate(cast("list[Any]", inner)):
                    check(key, entry, f"{form.at(key)}/{place}")
            elif key in ("documents", "lines", "taxes", "allowances", "alerts", "wallets", "usage"):
                form.wrong(key, "a list is needed")

    check("expect", expect, "/expect")
    for place, entry in enumerate(expect.get("usage") or []):
        for key in ("at", "customer", "meter"):
            if not isinstance(entry, Mapping) or key not in entry:
                mistakes.add(f"/expect/usage/{place}/{key}", "is missing")


# The clock and the steps


def _move(run: Run, at: datetime) -> None:
    """Move the clock: what has expired is gone, what was ahead may have come, levels have cost more."""
    run.now = at
    run.wallets.at(at)
    _settle_events(run)
    _watch_levels(run)


def _master_step(run: Run, at: datetime, kind: str, step: Any, place: str) -> None:
    before = run.master.step_count
    text = at.isoformat()
    try:
        run.master = run.master.apply({"at": text, kind: step}, place)
    except InvalidInput:
        raise
    if kind == "top_up":
        for top_up in run.master.top_ups:
            if top_up.number > before:
                run.wallets.add(top_up)
    _settle_events(run)
    _watch_levels(run)


def _usage_step(run: Run, at: datetime, kind: str, step: Any, place: str) -> None:
    mistakes = Mistakes()
    wrapper = Form({"usage": step}, place, mistakes)
    fresh: list[Event] = []
    for pointer, entry in wrapper.items("usage", EVENTS_MAX):
        fields = _event(entry, pointer, mistakes, run.timezone)
        mistakes.check()
        key = (fields["source"], fields["id"])
        if key in run.by_id:
            run.ingest["duplicates"] += 1
            continue
        event = Event(fields, len(run.events))
        run.events.append(event)
        run.by_id[key] = event
        fresh.append(event)
    mistakes.check()
    _settle_events(run, fresh)
    for event in fresh:
        run.ingest["suspense" if event.reason else "accepted"] += 1
    _watch_levels(run)


def _event(entry: object, pointer: str, mistakes: Mistakes, timezone: str) -> dict[str, Any]:
    form = Form(entry, pointer, mistakes)
    fields: dict[str, Any] = {key: form.code(key) for key in ("source", "id", "type", "customer")}
    fields["subscription"] = form.code("subscription") if form.fields.get("subscription") is not None else None
    form.raw("subscription")
    fields["time"] = form.moment("time", timezone)
    fields["data"] = msgspec.json.encode(form.mapping("data")).decode()
    form.done()
    return fields


def _correct_step(run: Run, at: datetime, kind: str, step: Any, place: str) -> None:
    mistakes = Mistakes()
    form = Form(step, f"{place}/correct", mistakes)
    source, id = form.code("source"), form.code("id")
    changes: dict[str, Any] = {}
    for key in ("customer", "subscription", "type"):
        if key in form.fields:
            changes[key] = form.code(key)
    if "time" in form.fields:
        changes["time"] = form.moment("time", run.timezone)
    if "data" in form.fields:
        changes["data"] = msgspec.json.encode(form.mapping("data")).decode()
    form.done()
    event = run.by_id.get((source, id))
    if event is None or event.reason is None:
        form.wrong("id", f"there is no event {id!r} of source {source!r} in suspense")
    mistakes.check()
    assert event is not None
    if event.counted:  # it counts anew: what was folded with it does not hold any more
        run.spending.forget(run.master.key_owners.get(event.fields["customer"], ""))
    event.fields = {**event.fields, **changes}
    event.reason, event.counted = None, False
    _settle_events(run, [event])
    _watch_levels(run)


def _bill_run_step(run: Run, at: datetime, kind: str, step: Any, place: str) -> None:
    marked = run.master.apply({"at": at.isoformat(), "bill_run": step}, place)
    mark = marked.runs[-1]
    result = bill(
        run.master,
        list(run.master.customers),
        up_to=mark.up_to,
        now=at,
        billed=run.documents,
        events=_frame(run),
        credit=run.wallets,
    )
    for parked in result.parked:
        run.differences.append(
            Difference(f"{place}/bill_run", "every customer billed", f"{parked.customer}: {parked.reason}")
        )
    run.master = marked
    for key, document in zip(result.keys, result.documents, strict=True):
        number = str(len(run.documents) + 1)
        run.wallets.name(key, number)
        run.documents.append(BilledDocument(number, document, mark.number, at))
    _settle_events(run)


def _credit_note_step(run: Run, at: datetime, kind: str, step: Any, place: str) -> None:
    mistakes = Mistakes()
    form = Form(step, f"{place}/credit_note", mistakes)
    number = form.count("document", 0, 1)
    lines: list[CreditLine] | None = None
    if form.fields.get("lines") is not None:
        lines = []
        for pointer, entry in form.items("lines"):
            one = Form(entry, pointer, mistakes)
            line = one.count("line", 0, 1)
            lines.append(
                CreditLine(line, one.decimal("amount", required=False), one.decimal("quantity", required=False))
            )
            one.done()
    form.raw("lines")
    form.done()
    if not 1 <= number <= len(run.documents):
        form.wrong("document", f"there is no document {number}")
    mistakes.check()
    billed = run.documents[number - 1]
    notes = [b.document for b in run.documents if b.document.refers_to == billed.number]
    if any(note.type == "invoice" for note in notes):
        form.wrong("document", f"document {number} was replaced by a new invoice")
        mistakes.check()
    note = credit_note(billed, local_date(at, run.timezone), notes, lines)
    if lines is None:
        run.wallets.give_back(billed.number)
    run.documents.append(BilledDocument(str(len(run.documents) + 1), note, 0, at))


def _reserve_step(run: Run, at: datetime, kind: str, step: Any, place: str) -> None:
    mistakes = Mistakes()
    form = Form(step, f"{place}/reserve", mistakes)
    expected = Form(form.mapping("expect"), form.at("expect"), mistakes)
    granted_expected = expected.decimal("granted", required=False)
    expected.done()
    asked = parse_reservation(form, run.master)
    mistakes.check()

    def cost_of(uses: Sequence[Use], more: pl.DataFrame) -> Fraction:
        return _costs(run, uses, pl.concat([_frame(run), more]))

    hold = reserve(run.master, run.wallets, asked, run.now, cost_of, lambda one: run.budgets.left(one, run.now))
    if granted_expected is not None and hold.granted != granted_expected:
        digits = minor_digits(asked.currency)
        run.differences.append(
            Difference(f"{place}/reserve/expect/granted", str(granted_expected), f"{hold.granted:.{digits}f}")
        )


def _commit_step(run: Run, at: datetime, kind: str, step: Any, place: str) -> None:
    mistakes = Mistakes()
    form = Form(step, f"{place}/commit", mistakes)
    id, amount = form.code("id"), form.decimal("amount", least=ZERO)
    form.done()
    if id and id not in run.wallets.holds:
        form.wrong("id", f"there is no reservation {id!r}")
    mistakes.check()
    assert amount is not None
    run.wallets.commit(id, amount)


def _release_step(run: Run, at: datetime, kind: str, step: Any, place: str) -> None:
    mistakes = Mistakes()
    form = Form(step, f"{place}/release", mistakes)
    id = form.code("id")
    form.done()
    if id and id not in run.wallets.holds:
        form.wrong("id", f"there is no reservation {id!r}")
    mistakes.check()
    run.wallets.release(id)


_STEPS: dict[str, Callable[[Run, datetime, str, Any, str], None]] = {
    "usage": _usage_step,
    "correct": _correct_step,
    "bill_run": _bill_run_step,
    "credit_note": _credit_note_step,
    "reserve": _reserve_step,
    "commit": _commit_step,
    "release": _release_step,
}


# Events: suspense, lateness, and what they add to budgets


def _table(events: Sequence[Event]) -> pl.DataFrame:
    return pl.DataFrame([event.fields for event in events], schema=EVENT_SCHEMA, orient="row")


def _frame(run: Run) -> pl.DataFrame:
    if run.frame is None:
        run.frame = _table([event for event in run.events if event.reason is None])
    return run.frame


def _settle_events(run: Run, fresh: Sequence[Event] = ()) -> None:
    """Look again at all events (causes of suspense come and go) but those that only a correction can free."""
    asked = [event for event in run.events if event.reason != "late"]
    if not asked:
        return
    reasons = suspense_reasons(_table(asked), run.master, run.now, [not event.counted for event in asked])
    counted: list[Event] = []
    before = [event for event in asked if event.counted]
    for event, reason in zip(asked, reasons, strict=True):
        if reason != event.reason or event in fresh:
            run.frame = None
        event.reason = reason
        if reason is None and not event.counted:
            event.counted = True
            counted.append(event)
    if counted and run.watched:
        _spend(run, before, counted)


def _costs(run: Run, uses: Sequence[Use], events: pl.DataFrame) -> Fraction:
    rated = rate_uses(run.master, uses, events)
    return sum((Fraction(row.amount) for rows in rated.values() for row in rows), Fraction(0))


def _spend(run: Run, before: Sequence[Event], counted: Sequence[Event]) -> None:
    """What each newly counted event adds to the exact cost, in the order of arrival, under its own time."""

    def arrived(events: Sequence[Event]) -> pl.DataFrame:
        return _table(sorted(events, key=lambda event: event.arrived))

    run.spending.book(run.master, run.watched, arrived(counted), lambda _: arrived(before))


def _watch_levels(run: Run) -> None:
    """Levels add what they have cost up to the clock; then raise what is reached."""
    budgets = list(run.master.budgets.values())
    for customer, kind in dict.fromkeys((budget.customer, budget.period) for budget in budgets):
        for start, cost in level_costs(run.master, customer, kind, run.now, _frame(run)).items():
            run.budgets.set_level(customer, kind, start, cost)
    run.budgets.check(budgets, run.now)


# Expectations


def _look_until(run: Run, scenario: _Scenario, before: datetime | None) -> None:
    """Check expected usage whose moment lies before the next step."""
    while scenario.looks and (before is None or scenario.looks[0][0] < before):
        at, place, entry = scenario.looks.pop(0)
        _move(run, max(at, run.now))
        uses = running_uses(run.master, run.master.key_owners.get(entry["customer"]), at, meter=entry["meter"])
        shown = [
            Use(u.contract, until(u.piece, max(at, u.piece.start)), None) if is_level(run.master, u) else u
            for u in uses
        ]
        rated = rate_uses(run.master, shown, _frame(run))
        quantity, cost, currency = Fraction(0), ZERO, run.master.tenant.currency
        for number, use in enumerate(shown):
            currency = use.piece.span.segment.plan.currency
            rows = rated.get(number, ())
            if not number:
                quantity = sum((Fraction(row.quantity) for row in rows), Fraction(0))
            cost += sum((round_amount(row.amount, currency) for row in rows), ZERO)
        actual = {"quantity": decimal_text(shown_quantity(quantity)), "cost": str(round_amount(cost, currency))}
        for key in ("quantity", "cost"):
            if key in entry:
                _same(run, f"{scenario.expect_pointer}/usage/{place}/{key}", entry[key], actual[key])


def _compare_end(run: Run, expect: Mapping[str, Any], pointer: str) -> None:
    for key, value in cast("Mapping[str, Any]", expect.get("ingest") or {}).items():
        _same(run, f"{pointer}/ingest/{key}", value, str(run.ingest[key]))
    if "documents" in expect:
        actual = [document_form(b.document, run.timezone) for b in run.documents]
        _compare_list(run, f"{pointer}/documents", expect["documents"], actual)
    if "suspense" in expect:
        waiting = [event for event in run.events if event.reason is not None]
        forms = [{"id": e.fields["id"], "source": e.fields["source"], "reason": e.reason} for e in waiting]
        _compare_list(run, f"{pointer}/suspense", expect["suspense"], forms)
    if "alerts" in expect:
        alerts = [
            {"budget": a.budget, "threshold": decimal_text(a.threshold), "at": show_moment(a.at, run.timezone)}
            for a in run.budgets.alerts
        ]
        _compare_list(run, f"{pointer}/alerts", expect["alerts"], alerts)
    for place, entry in enumerate(expect.get("wallets") or []):
        currency = entry.get("currency", run.master.tenant.currency)
        customer = entry["customer"]
        here = f"{pointer}/wallets/{place}"
        amounts = {
            "balance": run.wallets.balance(customer, currency),
            "reserved": run.wallets.reserved(customer, currency),
        }
        for key, amount in amounts.items():
            if key in entry:
                _same(run, f"{here}/{key}", entry[key], str(round_amount(amount, currency)))


def document_form(document: Document, timezone: str) -> dict[str, Any]:
    """A document as a scenario states it: amounts as text, times as dates where they are local midnights."""
    allowances: dict[tuple[str, str], Decimal] = {}
    for one in document.allowances:
        allowances[one.kind, one.source] = allowances.get((one.kind, one.source), ZERO) + one.amount
    return {
        "customer": document.customer,
        "type": document.type,
        "date": document.date.isoformat(),
        "currency": document.currency,
        "refers_to": document.refers_to,
        "lines": [line_form(line, timezone) for line in document.lines],
        "allowances": [{"kind": kind, "amount": str(amount)} for (kind, _), amount in allowances.items()],
        "taxes": [
            {"category": t.category, "percent": decimal_text(t.percent), "base": str(t.base), "amount": str(t.amount)}
            for t in document.taxes
        ],
        "net": str(document.net),
        "tax": str(document.tax),
        "gross": str(document.gross),
        "prepaid": str(document.prepaid),
        "due": str(document.due),
    }


def line_form(line: Line, timezone: str) -> dict[str, Any]:
    return {
        "subscription": line.subscription,
        "charge": line.charge,
        "when": None if line.when is None else dict(line.when),
        "from": show_moment(line.start, timezone),
        "to": show_moment(line.end, timezone),
        "quantity": decimal_text(line.quantity),
        "allowance": str(line.allowance),
        "amount": str(line.amount),
        "correction": line.correction,
        "corrects": None
        if line.corrects is None
        else {"document": line.corrects.document, "line": str(line.corrects.line)},
        "tax_category": line.tax_category,
        "tax_percent": decimal_text(line.tax_percent),
        "kind": line.kind,
        "name": line.name,
        "unit": line.unit,
        "plan": line.plan,
    }


_NOT_SHOWN: dict[str, str] = {"lines": "correction allowance", "documents": "prepaid"}


def _compare_list(run: Run, pointer: str, expected: object, actual: Sequence[Mapping[str, Any]]) -> None:
    if not isinstance(expected, list):
        run.differences.append(Difference(pointer, str(expected), "a list"))
        return
    entries = cast("list[Any]", expected)
    if len(entries) != len(actual):
        shown = "; ".join(_brief(one) for one in actual)
        run.differences.append(Difference(pointer, f"{len(entries)} entries", f"{len(actual)}: {shown}"))
    for place, (one, other) in enumerate(zip(entries, actual, strict=False)):
        _compare(run, f"{pointer}/{place}", one, other, pointer.rsplit("/", 1)[-1])


def _compare(run: Run, pointer: str, expected: Mapping[str, Any], actual: Mapping[str, Any], kind: str) -> None:
    for key, value in expected.items():
        here = f"{pointer}/{key}"
        found = actual.get(key)
        if isinstance(value, list):
            entries = cast("list[Mapping[str, Any]]", found if isinstance(found, list) else [])
            _compare_list(run, here, cast("list[Any]", value), entries)
        elif key in ("from", "to", "at"):
            if parse_moment(value, run.timezone) != parse_moment(found, run.timezone):
                run.differences.append(Difference(here, str(value), str(found)))
        else:
            _same(run, here, value, found)
    for key in _NOT_SHOWN.get(kind, "").split():
        if key not in expected:
            default = False if key == "correction" else "0"
            _same(run, f"{pointer}/{key}", default, actual.get(key))


def _same(run: Run, pointer: str, expected: object, actual: object) -> None:
    if expected != actual and not _equal_numbers(expected, actual):
        run.differences.append(Difference(pointer, _text(expected), _text(actual)))


def _equal_numbers(expected: object, actual: object) -> bool:
    one, other = parse_number(expected), parse_number(actual)
    return one is not None and one == other


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _brief(form: Mapping[str, Any]) -> str:
    wanted = ("customer", "type", "date", "net", "charge", "from", "to", "quantity", "amount", "id", "reason", "budget")
    return " ".join(str(form[key]) for key in wanted if form.get(key) is not None)


# Price files


def check_prices(form: object) -> list[Difference]:
    """A list of single prices with quantities or events and the amounts expected; all that differ."""
    mistakes = Mistakes()
    found: list[Difference] = []
    for pointer, entry in Form({"cases": form}, "", mistakes).items("cases"):
        here = pointer.removeprefix("/cases")
        case = _price_case(Form(entry, here, mistakes))
        mistakes.check()
        found.extend(_check_price(here, case))
    mistakes.check()
    return found


@dataclass
class _PriceCase:
    name: str
    charge: Charge
    quantity: Decimal
    events: pl.DataFrame
    currency: str
    timezone: str
    amount: str
    tiers: list[Mapping[str, Any]] | None


def _price_case(form: Form) -> _PriceCase:
    name = form.text("case")
    form.text("source", "")
    currency = form.text("currency", "EUR")
    timezone = form.text("timezone", "Europe/Berlin")
    amount = form.text("amount")
    charge_form: dict[str, Any] = {"code": "case", "kind": "usage", "meter": "case", "tax": "case"}
    for key in ("price", "included", "minimum", "maximum"):
        value = form.raw(key)
        if value is not None:
            charge_form[key] = value
    charge = Charge("case", "usage", "case")
    try:
        charge = parse_charge(charge_form, form.pointer)
        minor_digits(currency)
        zone(timezone)
    except InvalidInput as error:
        form.mistakes.take(error)
    except TimeInvalid as error:
        form.wrong("timezone", str(error))
    quantity = parse_number(form.raw("quantity") or "1")
    if quantity is None:
        form.wrong("quantity", "a decimal number is needed, as text")
    properties = (
        {row.price.property for row in charge.rows if isinstance(row.price, EventAmount)}
        if charge.price
        else set[str]()
    )
    rows: list[dict[str, Any]] = []
    if form.fields.get("events") is None:
        if quantity:
            rows.append(_price_event(quantity, "0", EPOCH, properties))
    else:
        for place, (pointer, entry) in enumerate(form.items("events", EVENTS_MAX)):
            one = Form(entry, pointer, form.mistakes)
            value = one.text("value")
            time = one.moment("time", timezone, EPOCH)
            rows.append(_price_event(value, one.text("id", f"{place:09}"), time, properties))
            one.done()
    form.raw("events")
    tiers = [cast("Mapping[str, Any]", entry) for _, entry in form.items("tiers")] if "tiers" in form.fields else None
    form.done()
    table = pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")
    return _PriceCase(name, charge, quantity or ZERO, table, currency, timezone, amount, tiers)


def _price_event(value: Decimal | str, id: str, time: datetime, properties: set[str]) -> dict[str, Any]:
    text = value if isinstance(value, str) else decimal_text(value)
    data = {"value": text, **dict.fromkeys(properties, text)}
    fields = {"source": "case", "id": id, "type": "case", "customer": "case", "subscription": None}
    return {**fields, "time": time, "data": msgspec.json.encode(data).decode()}


def _check_price(pointer: str, case: _PriceCase) -> list[Difference]:
    meter = Meter("case", "case", "sum", "value")
    end = parse_moment("9998-01-01", "UTC")
    piece = UsagePiece("case", "case", case.charge, EPOCH, end, quantity=case.quantity)
    rows = list(rate([piece], case.events, [meter], case.timezone).rows())
    amount = sum((Fraction(row.amount) for row in rows), Fraction(0))
    found: list[Difference] = []
    shown = str(round_amount(amount, case.currency))
    if not _equal_numbers(case.amount, shown):
        found.append(Difference(f"{pointer}/amount ({case.name})", case.amount, shown))
    if case.tiers is not None:
        filled = [tier for row in rows for tier in row.tiers if tier.quantity]
        parts = [{"quantity": decimal_text(t.quantity), "amount": decimal_text(t.amount)} for t in filled]
        expected = [{key: str(value) for key, value in tier.items()} for tier in case.tiers]
        same = len(parts) == len(expected) and all(
            _equal_numbers(one.get(key), other[key])
            for one, other in zip(expected, parts, strict=True)
            for key in other
        )
        if not same:
            found.append(Difference(f"{pointer}/tiers ({case.name})", _text(expected), _text(parts)))
    return found
