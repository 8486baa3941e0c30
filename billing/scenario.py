"""Scenarios in this process: a customer's whole life on a test clock, and whether what came out is what is expected.

Owns running the steps. The same engine as the platform's (`billing/bill.py`, wallets, budgets, reservations) on the
same steps; only where events come from and documents go to differs. The file's form is `billing/scenario_form.py`, the
comparison `billing/scenario_compare.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import polars as pl

from billing.bill import bill
from billing.budgets import Budgets
from billing.credit_notes import credit_note
from billing.due import Use
from billing.errors import FieldError, InvalidInput
from billing.money import decimal_text, minor_digits, round_amount
from billing.periods import local_date, show_moment
from billing.rate_uses import rate_uses, suspense_reasons
from billing.reservations import reserve
from billing.scenario_compare import Difference, document_form, line_form, play
from billing.scenario_form import EPOCH, Correction, Credited, Reserved, Scenario, Spent, Step, moved, read_scenario
from billing.scenario_prices import check_prices
from billing.settle import BilledDocument
from billing.spending import Spending, level_costs
from billing.usage import EVENT_SCHEMA
from billing.usage_now import usage_now
from billing.wallets import Wallets

__all__ = ["Difference", "check_prices", "check_scenario", "document_form", "documents_of", "line_form"]


def check_scenario(form: object) -> list[Difference]:
    """Run a scenario from start to end and compare. Raises InvalidInput where the file itself is wrong."""
    scenario = read_scenario(form)
    return play(scenario, Run(scenario))


def documents_of(form: object) -> list[BilledDocument]:
    """The documents that a scenario makes, for whoever wants to see them."""
    scenario = read_scenario(form)
    run = Run(scenario)
    for step in scenario.timeline:
        run.move(step.at)
        run.step(step)
    return run.billed


@dataclass
class Event:
    """One event of the scenario: what was sent, and why it is in suspense (None: it counts)."""

    fields: dict[str, Any]
    arrived: int
    reason: str | None = None
    counted: bool = False  # has ever counted; late usage of a tenant that rejects it never has


class Run:
    """The state of a scenario while its clock moves (billing.scenario_compare.Player)."""

    def __init__(self, scenario: Scenario) -> None:
        self.master = scenario.start
        self.timezone = scenario.timezone
        self.now = EPOCH
        self.wallets = Wallets(EPOCH)
        self.spending = Spending(Budgets(scenario.timezone))
        self.events: list[Event] = []
        self.by_id: dict[tuple[str, str], Event] = {}
        self.counts = {"accepted": 0, "duplicates": 0, "suspense": 0}
        self.billed: list[BilledDocument] = []
        # Customers who have a budget at any time: what they spend before counts, too.
        self.watched = frozenset(str(step.form["customer"]) for step in scenario.timeline if step.kind == "budget")
        self._frame: pl.DataFrame | None = None  # of the events that count, until they change

    # -- the clock and the steps ---------------------------------------------------------------------------------------

    def move(self, to: datetime) -> None:
        """What has expired is gone, what was ahead may have come, levels have cost more."""
        self.now = max(self.now, to)
        self.wallets.at(self.now)
        self._settle_events()
        self._watch_levels()

    def step(self, step: Step) -> Mapping[str, Any]:
        match step.read:
            case Correction():
                self._correct(step.read, step.place)
            case Credited():
                self._credit(step.read, step.place)
            case Reserved():
                return {"granted": self._reserve(step.read)}
            case Spent():
                self.wallets.commit(step.read.id, step.read.amount)
            case str():
                self.wallets.release(step.read)
            case _ if step.kind == "usage":
                self._usage(step.read)
            case _ if step.kind == "bill_run":
                return {"parked": self._bill_run(step)}
            case _:
                self._master_step(step)
        return {}

    def _master_step(self, step: Step) -> None:
        before = self.master.step_count
        self.master = self.master.apply({"at": step.at.isoformat(), step.kind: step.form}, step.place)
        if step.kind == "top_up":
            for top_up in self.master.top_ups:
                if top_up.number > before:
                    self.wallets.add(top_up)
        self._settle_events()
        self._watch_levels()

    def _usage(self, rows: Sequence[dict[str, Any]]) -> None:
        fresh: list[Event] = []
        for fields in rows:
            key = (fields["source"], fields["id"])
            if key in self.by_id:
                self.counts["duplicates"] += 1
                continue
            event = Event(fields, len(self.events))
            self.events.append(event)
            self.by_id[key] = event
            fresh.append(event)
        self._settle_events(fresh)
        for event in fresh:
            self.counts["suspense" if event.reason else "accepted"] += 1
        self._watch_levels()

    def _correct(self, correction: Correction, place: str) -> None:
        event = self.by_id[correction.source, correction.id]
        if event.reason is None:
            _refuse(
                f"{place}/correct/id", f"event {correction.id!r} of source {correction.source!r} is not in suspense"
            )
        if event.counted:  # it counts anew: what was folded with it does not hold any more
            self.spending.forget(self.master.key_owners.get(event.fields["customer"], ""))
        event.fields = {**event.fields, **correction.changes}
        event.reason, event.counted = None, False
        self._settle_events([event])
        self._watch_levels()

    def _bill_run(self, step: Step) -> list[Mapping[str, str]]:
        marked = self.master.apply({"at": step.at.isoformat(), "bill_run": step.form}, step.place)
        mark = marked.runs[-1]
        result = bill(
            self.master,
            list(self.master.customers),
            up_to=mark.up_to,
            now=step.at,
            billed=self.billed,
            events=self._counting(),
            credit=self.wallets,
        )
        self.master = marked
        for key, document in zip(result.keys, result.documents, strict=True):
            number = str(len(self.billed) + 1)
            self.wallets.name(key, number)
            self.billed.append(BilledDocument(number, document, mark.number, step.at))
        self._settle_events()
        return [{"customer": one.customer, "reason": one.reason} for one in result.parked]

    def _credit(self, asked: Credited, place: str) -> None:
        here = f"{place}/credit_note/document"
        if not 1 <= asked.document <= len(self.billed):
            _refuse(here, f"there is no document {asked.document}")
        billed = self.billed[asked.document - 1]
        notes = [b.document for b in self.billed if b.document.refers_to == billed.number]
        if any(note.type == "invoice" for note in notes):
            _refuse(here, f"document {asked.document} was replaced by a new invoice")
        try:
            note = credit_note(billed, local_date(self.now, self.timezone), notes, asked.lines, asked.amount)
        except InvalidInput as error:
            raise moved(error, "", f"{place}/credit_note") from error
        if asked.whole:
            self.wallets.give_back(billed.number)
        self.billed.append(BilledDocument(str(len(self.billed) + 1), note, 0, self.now))

    def _reserve(self, reserved: Reserved) -> str:
        def cost_of(uses: Sequence[Use], more: pl.DataFrame) -> Fraction:
            rated = rate_uses(self.master, uses, pl.concat([self._counting(), more]))
            return sum((Fraction(row.amount) for rows in rated.values() for row in rows), Fraction(0))

        budgets = self.spending.budgets
        hold = reserve(
            self.master, self.wallets, reserved.asked, self.now, cost_of, lambda one: budgets.left(one, self.now)
        )
        return f"{hold.granted:.{minor_digits(reserved.asked.currency)}f}"

    # -- events: suspense, lateness, and what they add to budgets ------------------------------------------------------

    def _counting(self) -> pl.DataFrame:
        if self._frame is None:
            self._frame = _table([event for event in self.events if event.reason is None])
        return self._frame

    def _settle_events(self, fresh: Sequence[Event] = ()) -> None:
        """Look again at all events (causes of suspense come and go) but those that only a correction can free."""
        asked = [event for event in self.events if event.reason != "late"]
        if not asked:
            return
        reasons = suspense_reasons(_table(asked), self.master, self.now, [not event.counted for event in asked])
        counted: list[Event] = []
        before = [event for event in asked if event.counted]
        for event, reason in zip(asked, reasons, strict=True):
            if reason != event.reason or event in fresh:
                self._frame = None
            event.reason = reason
            if reason is None and not event.counted:
                event.counted = True
                counted.append(event)
        if counted and self.watched:
            self._spend(before, counted)

    def _spend(self, before: Sequence[Event], counted: Sequence[Event]) -> None:
        """What each newly counted event adds to the exact cost, in the order of arrival, under its own time."""

        def arrived(events: Sequence[Event]) -> pl.DataFrame:
            return _table(sorted(events, key=lambda event: event.arrived))

        self.spending.book(self.master, self.watched, arrived(counted), lambda _: arrived(before))

    def _watch_levels(self) -> None:
        """Levels add what they have cost up to the clock; then raise what is reached."""
        budgets = list(self.master.budgets.values())
        for customer, kind in dict.fromkeys((budget.customer, budget.period) for budget in budgets):
            costs = level_costs(self.master, customer, kind, self.now, self._counting())
            for start, cost in costs.items():
                self.spending.budgets.set_level(customer, kind, start, cost)
        self.spending.budgets.check(budgets, self.now)

    # -- facts ---------------------------------------------------------------------------------------------------------

    def usage(self, customer: str, meter: str) -> Mapping[str, str]:
        owner = self.master.key_owners.get(customer)
        now = usage_now(self.master, owner, self.now, self._counting(), meter)
        found = now.of(meter, self.master.tenant.currency)
        return {"quantity": decimal_text(found.quantity), "cost": str(found.cost)}

    def ingest(self) -> Mapping[str, int]:
        return self.counts

    def documents(self) -> Sequence[Mapping[str, Any]]:
        return [document_form(billed.document, self.timezone) for billed in self.billed]

    def suspense(self) -> Sequence[Mapping[str, Any]]:
        waiting = [event for event in self.events if event.reason is not None]
        return [{"id": e.fields["id"], "source": e.fields["source"], "reason": e.reason} for e in waiting]

    def alerts(self) -> Sequence[Mapping[str, Any]]:
        return [
            {"budget": a.budget, "threshold": a.threshold.form, "at": show_moment(a.at, self.timezone)}
            for a in self.spending.budgets.alerts
        ]

    def wallet(self, customer: str, currency: str) -> Mapping[str, str]:
        amounts: dict[str, Decimal] = {
            "balance": self.wallets.balance(customer, currency),
            "reserved": self.wallets.reserved(customer, currency),
        }
        return {key: str(round_amount(amount, currency)) for key, amount in amounts.items()}


def _table(events: Sequence[Event]) -> pl.DataFrame:
    return pl.DataFrame([event.fields for event in events], schema=EVENT_SCHEMA, orient="row")


def _refuse(place: str, detail: str) -> None:
    raise InvalidInput(f"{place}: {detail}", errors=[FieldError(place, detail)])
