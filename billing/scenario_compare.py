"""Whether what a scenario made is what it expects: exactly, entry by entry, whoever ran it.

Owns the order in which a file is run and looked at, and the comparison. A `Player` runs the steps (in this process, or
against a platform over REST) and states what came of them as plain facts: amounts and quantities as text, times as
dates or with an offset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol, cast

import msgspec

from billing.documents import Document, Line
from billing.money import decimal_text, parse_number
from billing.periods import parse_moment, show_moment
from billing.scenario_form import Reserved, Scenario, Step

ZERO = Decimal(0)


@dataclass(frozen=True)
class Difference:
    """Something that came out otherwise: the place in the file, what was expected, what there is."""

    place: str
    expected: str
    actual: str


class Player(Protocol):
    """Runs the steps of one scenario, one after the other, and says what there is."""

    def move(self, to: datetime) -> None:
        """Move the clock; never back."""
        ...

    def step(self, step: Step) -> Mapping[str, Any]:
        """Do one step. `parked` ({customer, reason}) of a bill run, `granted` of a reservation; else nothing."""
        ...

    def usage(self, customer: str, meter: str) -> Mapping[str, str]:
        """Quantity and cost of a meter in the running period, now."""
        ...

    def ingest(self) -> Mapping[str, int]:
        """What was answered on arrival: accepted, duplicates, suspense."""
        ...

    def documents(self) -> Sequence[Mapping[str, Any]]:
        """All documents in the order made; they refer to each other by their place, from 1."""
        ...

    def suspense(self) -> Sequence[Mapping[str, Any]]:
        """What waits, in the order of arrival."""
        ...

    def alerts(self) -> Sequence[Mapping[str, Any]]:
        """The alerts of budgets in the order raised."""
        ...

    def wallet(self, customer: str, currency: str) -> Mapping[str, str]:
        """Balance (with what is reserved) and what is reserved."""
        ...


def play(scenario: Scenario, player: Player) -> list[Difference]:
    """Run a scenario from start to end; all differences. Usage is looked at when its moment has come."""
    found = _Found(scenario.timezone)
    looks = list(scenario.looks)

    def look_until(before: datetime | None) -> None:
        while looks and (before is None or looks[0].at < before):
            look = looks.pop(0)
            player.move(look.at)
            actual = player.usage(look.form["customer"], look.form["meter"])
            for key in ("quantity", "cost"):
                if key in look.form:
                    found.same(f"{look.place}/{key}", look.form[key], actual[key])

    for step in scenario.timeline:
        look_until(step.at)
        player.move(step.at)
        facts = player.step(step)
        for parked in facts.get("parked", ()):
            found.add(f"{step.place}/bill_run", "every customer billed", f"{parked['customer']}: {parked['reason']}")
        if isinstance(step.read, Reserved) and step.read.granted is not None:
            found.same(f"{step.place}/reserve/expect/granted", str(step.read.granted), facts["granted"])
    look_until(None)
    _compare_end(found, scenario, player)
    return found.differences


def _compare_end(found: _Found, scenario: Scenario, player: Player) -> None:
    expect = scenario.expect
    if expect.get("ingest"):
        counts = player.ingest()
        for key, value in cast("Mapping[str, Any]", expect["ingest"]).items():
            found.same(f"/expect/ingest/{key}", value, str(counts[key]))
    if "documents" in expect:
        found.lists("/expect/documents", expect["documents"], player.documents())
    if "suspense" in expect:
        found.lists("/expect/suspense", expect["suspense"], player.suspense())
    if "alerts" in expect:
        found.lists("/expect/alerts", expect["alerts"], player.alerts())
    for place, entry in enumerate(expect.get("wallets") or []):
        currency = entry.get("currency", scenario.start.tenant.currency)
        actual = player.wallet(entry["customer"], currency)
        for key in ("balance", "reserved"):
            if key in entry:
                found.same(f"/expect/wallets/{place}/{key}", entry[key], actual[key])


# -- Comparing ---------------------------------------------------------------------------------------------------------

# What a key that is not stated stands for, by the list that the entry is in.
_NOT_SHOWN: dict[str, dict[str, object]] = {
    "lines": {"correction": False, "allowance": "0"},
    "documents": {"prepaid": "0"},
}
_BRIEF = ("customer", "type", "date", "net", "charge", "from", "to", "quantity", "amount", "id", "reason", "budget")


class _Found:
    """The differences so far."""

    def __init__(self, timezone: str) -> None:
        self.timezone = timezone
        self.differences: list[Difference] = []

    def add(self, place: str, expected: str, actual: str) -> None:
        self.differences.append(Difference(place, expected, actual))

    def same(self, place: str, expected: object, actual: object) -> None:
        if expected != actual and not equal_numbers(expected, actual):
            self.add(place, text_of(expected), text_of(actual))

    def lists(self, place: str, expected: object, actual: Sequence[Mapping[str, Any]]) -> None:
        if not isinstance(expected, list):
            self.add(place, text_of(expected), "a list")
            return
        entries = cast("list[Any]", expected)
        if len(entries) != len(actual):
            shown = "; ".join(" ".join(str(one[key]) for key in _BRIEF if one.get(key) is not None) for one in actual)
            self.add(place, f"{len(entries)} entries", f"{len(actual)}: {shown}")
        for number, (one, other) in enumerate(zip(entries, actual, strict=False)):
            self.entries(f"{place}/{number}", one, other, place.rsplit("/", 1)[-1])

    def entries(self, place: str, expected: Mapping[str, Any], actual: Mapping[str, Any], kind: str) -> None:
        for key, value in expected.items():
            here, there = f"{place}/{key}", actual.get(key)
            if isinstance(value, list):
                entries = cast("list[Mapping[str, Any]]", there if isinstance(there, list) else [])
                self.lists(here, cast("list[Any]", value), entries)
            elif key in ("from", "to", "at"):
                if there is None or parse_moment(value, self.timezone) != parse_moment(there, self.timezone):
                    self.add(here, str(value), str(there))
            else:
                self.same(here, value, there)
        for key, default in _NOT_SHOWN.get(kind, {}).items():
            if key not in expected:
                self.same(f"{place}/{key}", default, actual.get(key))


def equal_numbers(expected: object, actual: object) -> bool:
    one, other = parse_number(expected), parse_number(actual)
    return one is not None and one == other


def text_of(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


# -- Documents as a scenario states them -------------------------------------------------------------------------------


def document_form(document: Document, timezone: str) -> dict[str, Any]:
    """A document as a scenario states it: amounts as text, times as dates where they are local midnights."""
    allowances: dict[tuple[str, str], Decimal] = {}
    for one in document.allowances:
        allowances[one.kind, one.source] = allowances.get((one.kind, one.source), ZERO) + one.stated
    return {
        "customer": document.customer,
        "type": document.type,
        "date": document.date.isoformat(),
        "currency": document.currency,
        "refers_to": document.refers_to,
        "lines": [line_form(line, timezone, document.customer) for line in document.lines],
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
        **group_form(document),
    }


def group_form(document: Document) -> dict[str, str | None]:
    """What the document takes of its customer's lines, and what its head says of them; null where he gets one only."""
    group = document.group
    names = ("order_reference", "buyer_reference", "cost_centre")
    if group is None:
        return dict.fromkeys(("group", *names))
    return {"group": group.code, **{name: getattr(group, name) or None for name in names}}


def line_form(line: Line, timezone: str, customer: str = "") -> dict[str, Any]:
    """A line; `amount` is net, `allowance` (and `gross`, where the price contains the tax) in the price's terms."""
    return {
        "subscription": line.subscription,
        "add_on": line.add_on or None,
        "charge": line.charge,
        "when": None if line.when is None else dict(line.when),
        "from": show_moment(line.start, timezone),
        "to": show_moment(line.end, timezone),
        "quantity": decimal_text(line.quantity),
        "allowance": str(line.stated_allowance),
        "amount": str(line.amount),
        "gross": None if line.gross is None else str(line.gross),
        "customer": line.customer or customer,
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
        "cost_centre": line.cost_centre or None,
    }
