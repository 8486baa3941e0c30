"""Runs that made invoices again are taken back: what then is owed, what counts as billed, and what the next run bills.

The lives are random (by seed) and run on the real thing: log, master data, PostgreSQL. A life in which runs are taken
back is held to the same life in which they never were.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from billing.documents import Document
from billing.settle import BilledDocument
from billing.usage import EVENT_SCHEMA
from pipelines.bill_run import BillRunDriver
from pipelines.verify_invoices import verify_run
from storage.object_store import LocalObjectStore
from storage.sql import bill_runs, invoices, receivables, steps
from storage.sql.database import Database
from tests.chaos.bill_run_world import NOW, World, _tenant

pytestmark = pytest.mark.postgres
ZERO = Decimal(0)
CUSTOMERS = ("c0", "c1", "c2", "c3", "c4", "c5", "c6")
UP_TO = (date(2026, 2, 1), date(2026, 2, 15), date(2026, 3, 1))


@dataclass
class Life:
    """A tenant, and what was done in it: usage (rows), runs (up to), reversals of the last run (None)."""

    world: World
    database: Database
    form: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        self.tenant_id = _tenant(self.database, **{"late_usage": "reissue", **self.form})
        self.driver: BillRunDriver = self.world.driver(self.database)
        self.standing: list[str] = []

    def do(self, one: date | list[tuple[Any, ...]] | None) -> None:
        if isinstance(one, list):
            self.world._send(self.tenant_id, pl.DataFrame(one, schema=EVENT_SCHEMA, orient="row"))
        elif one is None:
            run_id = self.standing.pop()
            self.driver.reverse(self.tenant_id, run_id, "ann")
            assert self.driver.drive(self.tenant_id, run_id)["state"] == "reversed"
        else:
            self.standing.append(self.run(one))

    def run(self, up_to: date) -> str:
        run = self.driver.drive(self.tenant_id, self.driver.plan(self.tenant_id, up_to, "ann")["id"])
        assert (run["state"], run["parked"]) == ("done", []), run
        return str(run["id"])

    def change(self, *forms: dict[str, Any]) -> None:
        with self.database.tenant(self.tenant_id) as connection:
            steps.append_steps(connection, self.tenant_id, [{"at": "2026-01-01", **one} for one in forms], "t", now=NOW)

    def rows(self) -> list[dict[str, Any]]:
        """All documents in the order made."""
        with self.database.tenant(self.tenant_id) as connection:
            found = invoices.page(connection, descending=False, limit=1_000)
            return [invoices.get(connection, row["number"]) for row in found]

    def counting(self) -> list[BilledDocument]:
        """What the next run takes for billed."""
        with self.database.tenant(self.tenant_id) as connection:
            return invoices.billed(connection, CUSTOMERS, None)

    def owed(self) -> dict[str, tuple[Decimal, Decimal, Decimal]]:
        """By customer: net, gross, and what the ledger says that he owes."""
        found: dict[str, tuple[Decimal, Decimal, Decimal]] = {}
        for customer in CUSTOMERS:
            own = [row["document"] for row in self.rows() if row["customer"] == customer]
            with self.database.tenant(self.tenant_id) as connection:
                booked = receivables.owed_before(connection, customer, "EUR", date(2027, 1, 1))
            found[customer] = (signed(own, "net"), signed(own, "gross"), booked)
        return found

    def check(self) -> None:
        """Numbers have no gap, nothing is taken back twice, the ledger is the documents', runs that stand are right."""
        rows = self.rows()
        with self.database.tenant(self.tenant_id) as connection:
            assert invoices.number_gaps(connection) == []
        by_number = {row["number"]: row["document"] for row in rows}
        taken = Counter(row["refers_to"] for row in rows if row["document"].takes_back)
        assert set(taken.values()) <= {1}
        for row in rows:
            if row["refers_to"]:
                assert by_number[row["refers_to"]].customer == row["customer"]
        for _, gross, booked in self.owed().values():
            assert gross == booked
        for run_id in self.standing:
            store = LocalObjectStore(self.world.directory)
            proof = verify_run(self.database, store, self.driver._chain, self.tenant_id, run_id)
            assert proof.proven, proof


def signed(documents: Sequence[Document], name: str) -> Decimal:
    return sum((getattr(one, name) * (-1 if one.type == "credit_note" else 1) for one in documents), ZERO)


def lines_of(rows: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], tuple[Decimal, Decimal]]:
    """Quantity and net of all documents together by what is billed: nothing twice, nothing lost."""
    found: dict[tuple[Any, ...], tuple[Decimal, Decimal]] = {}
    for row in rows:
        sign = -1 if row["type"] == "credit_note" else 1
        for line in row["document"].lines:
            key = (line.subscription, line.charge, line.start, line.end)
            quantity, amount = found.get(key, (ZERO, ZERO))
            found[key] = (quantity + sign * line.quantity, amount + sign * line.amount)
    return {key: sums for key, sums in found.items() if sums != (ZERO, ZERO)}


def usage(draw: random.Random, place: int) -> list[tuple[Any, ...]]:
    """Events of January and February, of any customers: late for whatever is billed by then."""
    rows: list[tuple[Any, ...]] = []
    for number in range(draw.randint(1, 12)):
        when = datetime(2026, draw.choice((1, 1, 2)), draw.randint(1, 27), 9, 30, tzinfo=UTC)
        customer = draw.choice(CUSTOMERS)
        if draw.random() < 0.3:  # passed on: also credits that turn a document's sum
            kind, data = "value", {"amount": f"{draw.randint(-60, 40)}.{draw.randint(0, 99):02}"}
        else:
            kind, data = "disk", {"gb": f"{draw.randint(0, 120)}.25"}
        rows.append(("meter", f"{place}-{number}", kind, customer, None, when, json.dumps(data)))
    return rows


def drawn(seed: int) -> list[Any]:
    """A life: usage, runs, and reversals, of several runs after each other too; the last run bills all of it."""
    draw = random.Random(seed)
    done: list[Any] = [usage(draw, 0), UP_TO[0], usage(draw, 1)]
    standing = 1
    for place in range(2, 8):
        kind = draw.random()
        if kind < 0.4:
            done.append(draw.choice(UP_TO))
            standing += 1
        elif kind < 0.75 and standing:
            done.append(None)
            standing -= 1
        else:
            done.append(usage(draw, place))
    return [*done, usage(draw, 9), UP_TO[2], None, UP_TO[2]]


def never_taken_back(life: Sequence[Any]) -> list[Any]:
    """The same life in which the runs that were taken back never were."""
    standing: list[int] = []
    gone: set[int] = set()
    for place, one in enumerate(life):
        if one is None:
            gone |= {place, standing.pop()}
        elif not isinstance(one, list):
            standing.append(place)
    return [one for place, one in enumerate(life) if place not in gone]


@pytest.mark.parametrize("seed", range(6))
def test_a_life_in_which_runs_are_taken_back_is_the_life_in_which_they_never_were(
    seed: int, world: World, database: Database
) -> None:
    done = drawn(seed)
    form = {"document_per": "subscription"} if seed % 2 else {}
    life, other = Life(world, database, form), Life(world, database, form)
    before: list[tuple[dict[str, Any], list[tuple[Any, ...]]]] = []
    for one in done:
        if not isinstance(one, list) and one is not None:
            before.append((life.owed(), billed_as(life)))
        life.do(one)
        if one is None:
            # What is owed and what counts as billed are those of before the run; only usage may have come since.
            assert (life.owed(), billed_as(life)) == before.pop(), f"seed {seed}"
    life.check()
    for one in never_taken_back(done):
        other.do(one)
    other.check()
    assert life.owed() == other.owed(), f"seed {seed}"
    assert lines_of(life.rows()) == lines_of(other.rows()), f"seed {seed}"
    life.run(UP_TO[2])
    assert life.owed() == other.owed(), "a run with nothing new bills nothing"
    # Each amount is what the usage comes to, as if there had been one run for all of it.
    once = Life(world, database, form)
    for one in done:
        if isinstance(one, list):
            once.do(one)
    once.do(UP_TO[2])
    assert lines_of(once.rows()) == lines_of(life.rows()), f"seed {seed}"


def billed_as(life: Life) -> list[tuple[Any, ...]]:
    """What counts as billed but for numbers and days: a document that was issued again has others."""
    numbers = {one.number: place for place, one in enumerate(life.counting())}
    found: list[tuple[Any, ...]] = []
    for one in life.counting():
        document = replace(one.document, date=date.min, lines=())
        document = replace(document, refers_to=str(numbers.get(document.refers_to or "")))
        lines = [
            (replace(line, explanation={}, corrects=None), line.corrects and (numbers.get(line.corrects.document),))
            for line in one.document.lines
        ]
        found.append((document, lines, one.run, one.made_at))
    return found


def event(customer: str, number: str, gb: str, month: int = 1) -> tuple[Any, ...]:
    when = datetime(2026, month, 10, tzinfo=UTC)
    return ("meter", f"{customer}/{number}", "disk", customer, None, when, json.dumps({"gb": gb}))


def chain(life: Life, customer: str) -> list[tuple[str, str | None, Decimal]]:
    """(type, place of the document that it refers to, net) of a customer's documents in the order made."""
    own = [row for row in life.rows() if row["customer"] == customer]
    places = {row["number"]: str(place) for place, row in enumerate(own, start=1)}
    return [(row["type"], places.get(row["refers_to"] or ""), row["net"]) for row in own]


def test_what_a_reversed_run_had_cancelled_is_issued_again_and_is_what_the_next_run_makes_again(
    world: World, database: Database
) -> None:
    life = Life(world, database)
    life.do([event("c0", "1", "100")])  # 12.30
    life.do(UP_TO[0])
    life.do([event("c0", "2", "100")])  # 7.00 and the flat of the second tier
    life.do(UP_TO[0])
    first, again = Decimal("22.20"), Decimal("30.20")
    made = [("invoice", None, first), ("credit_note", "1", first), ("invoice", "1", again)]
    assert chain(life, "c0") == made
    life.do(None)
    made += [("credit_note", "3", again), ("invoice", "2", first)]
    assert chain(life, "c0") == made
    (counts,) = [one for one in life.counting() if one.document.customer == "c0"]
    assert (counts.document.net, counts.document.refers_to) == (first, None)
    with database.tenant(life.tenant_id) as connection:
        rows = connection.execute("SELECT owed FROM receivable_documents WHERE customer = 'c0'").fetchall()
        left = receivables.overdue(connection, "c0", "EUR", date(2027, 1, 1))
    assert sum(row["owed"] for row in rows) == Decimal("26.42")
    # Of each document, not only of all: the first is paid off by its note, what is due is the one issued again.
    assert [(row["number"], row["open"]) for row in left] == [(counts.number, Decimal("26.42"))]
    life.do(UP_TO[0])
    made += [("credit_note", "5", first), ("invoice", "5", again)]
    assert chain(life, "c0") == made
    life.do(None)
    made += [("credit_note", "7", again), ("invoice", "6", first)]
    assert chain(life, "c0") == made  # the one that stands now stands for the very first
    life.check()
    life.do(None)  # the run of the first invoice: the one that stands for it is taken back, not the first one
    assert chain(life, "c0") == [*made, ("credit_note", "9", first)]
    assert life.counting() == []
    assert set(life.owed().values()) == {(ZERO, ZERO, ZERO)}
    life.do(UP_TO[0])
    assert chain(life, "c0")[-1] == ("invoice", None, again)
    life.check()


def test_a_credit_note_by_hand_on_what_was_issued_again_is_left_out_when_its_run_is_reversed(
    world: World, database: Database
) -> None:
    from billing.credit_notes import CreditLine, credit_note

    life = Life(world, database)
    for one in ([event("c0", "1", "100")], UP_TO[0], [event("c0", "2", "100")], UP_TO[0], None):
        life.do(one)
    (counts,) = [one for one in life.counting() if one.document.customer == "c0"]
    with database.tenant(life.tenant_id) as connection:
        row = invoices.get(connection, counts.number)
        note = credit_note(BilledDocument(row["number"], row["document"]), NOW.date(), (), [CreditLine(1, Decimal(2))])
        final = invoices.Final(note, "main", "RK-{yyyy}-{n:06}", row["buyer"], NOW)
        invoices.finalise(connection, life.tenant_id, [final], NOW)
    life.do(None)
    assert [net for _, _, net in chain(life, "c0")[-2:]] == [Decimal("2.00"), Decimal("20.20")]
    assert set(life.owed().values()) == {(ZERO, ZERO, ZERO)}


def test_a_document_made_again_that_comes_to_less_than_nothing_is_billed_and_not_credited_twice(
    world: World, database: Database
) -> None:
    """It is a credit note that refers to the first one: taken for one by hand, its credit was billed again."""
    life = Life(world, database)

    def credit(number: str, amount: str) -> list[tuple[Any, ...]]:
        when = datetime(2026, 1, 15, tzinfo=UTC)
        return [("meter", number, "value", "c0", None, when, json.dumps({"amount": amount}))]

    for one in ([event("c0", "1", "1")], UP_TO[0], credit("late", "-500.00"), UP_TO[0]):
        life.do(one)
    assert [(kind, at) for kind, at, _ in chain(life, "c0")] == [
        ("invoice", None), ("credit_note", "1"), ("credit_note", "1"),
    ]  # fmt: skip
    assert life.owed()["c0"][0] == Decimal("10.02") - 500
    life.do(credit("later", "-1.00"))
    life.do(UP_TO[0])
    assert life.owed()["c0"][0] == Decimal("10.02") - 501
    life.do(None)
    life.do(None)
    assert life.owed()["c0"][0] == Decimal("10.02")
    life.do(UP_TO[0])
    assert life.owed()["c0"][0] == Decimal("10.02") - 501
    life.check()


def test_what_a_cancellation_takes_back_is_a_line_of_the_invoice_that_was_issued_again(
    world: World, database: Database
) -> None:
    life = Life(world, database)
    fee = {"code": "fee", "kind": "recurring", "price": {"model": "flat", "amount": "28"}, "tax": "standard"}
    metered = {"code": "gb", "kind": "usage", "meter": "storage", "tax": "standard",
               "price": {"model": "per_unit", "unit": "1"}}  # fmt: skip
    paid = {"code": "paid", "currency": "EUR", "interval": "month", "charges": [fee, metered]}
    life.change(
        {"publish": {"plan": paid}},
        {"subscribe": {"code": "ahead", "customer": "c0", "plan": "paid", "anchor": "calendar"}},
    )
    done: list[Any] = [[event("c0", "1", "10")], UP_TO[0], [event("c0", "2", "20")], UP_TO[0], None]
    for one in done:
        life.do(one)
    (counts,) = [one for one in life.counting() if one.document.customer == "c0"]
    with database.tenant(life.tenant_id) as connection:
        cancel = {"at": "2026-02-15", "cancel": {"subscription": "ahead", "when": "now"}}
        steps.append_steps(connection, life.tenant_id, [cancel], "t", now=NOW)
    life.do(UP_TO[1])
    life.check()
    note, again, credit = [row["document"] for row in life.rows() if row["customer"] == "c0"][-3:]
    assert (note.refers_to, again.refers_to, credit.refers_to) == (counts.number, counts.number, None)
    (line,) = credit.lines
    assert (line.charge, line.amount, line.corrects and line.corrects.document) == (
        "fee",
        Decimal("14.00"),
        counts.number,
    )


def test_lines_of_another_payer_come_back_with_the_document_that_was_cancelled(
    world: World, database: Database
) -> None:
    life = Life(world, database)
    life.change({"customer": {"code": "c1", "payer": "c0"}})
    done: list[Any] = [[event("c0", "1", "10"), event("c1", "1", "20")], UP_TO[0], [event("c1", "2", "30")], UP_TO[0]]
    for one in done:
        life.do(one)
    assert [kind for kind, _, _ in chain(life, "c0")] == ["invoice", "credit_note", "invoice"]
    before = life.owed()
    life.do(None)
    (counts,) = [one for one in life.counting() if one.document.customer == "c0"]
    assert [member.code for member in counts.document.members] == ["c1"]
    life.do(UP_TO[0])
    assert life.owed() == before
    life.check()


def test_accompanying_documents_name_what_was_issued_again(world: World, database: Database) -> None:
    life = Life(world, database)
    for one in ([event("c0", "1", "10")], UP_TO[0], [event("c0", "2", "20")], UP_TO[0], None):
        life.do(one)
    (counts,) = [one for one in life.counting() if one.document.customer == "c0"]
    with database.tenant(life.tenant_id) as connection:
        named = receivables.billed_between(connection, "c0", date(2026, 1, 1), date(2026, 1, 31))
        assert bill_runs.last_finalised(connection) is not None
    assert named == [counts.number]
