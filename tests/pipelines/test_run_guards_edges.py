"""Bill runs and their reversal at the edges: two at once, odd data, failures in the middle, credit notes by hand."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from threading import Event
from typing import Any

import polars as pl
import pytest
from test_run_guards import balances, documents, plain_world, settle

import pipelines.chunk_executor as chunk_executor
import pipelines.run_reversal as run_reversal
from billing.credit_notes import CreditLine, credit_note
from billing.errors import Conflict, Unavailable
from billing.settle import BilledDocument
from billing.usage import EVENT_SCHEMA
from pipelines.bill_run import BillRunDriver
from pipelines.bill_run_chunk import ChunkTask, compute_chunk
from pipelines.chunk_failures import FAILURES_MAX, Failures
from pipelines.run_schedule import outlook, shown, start_due
from pipelines.turns import Turns
from pipelines.verify_invoices import verify_run
from storage.object_store import LocalObjectStore
from storage.sql import bill_runs, finalising, invoices, steps, tenants
from storage.sql.database import Database
from tests.chaos.bill_run_world import CUSTOMERS, FEBRUARY, MARCH, NOW, World, _tenant

pytestmark = pytest.mark.postgres
JANUARY_ENDS = datetime(2026, 1, 31, 23, tzinfo=UTC)


def test_a_plan_on_master_data_that_know_a_reversed_run_as_final_is_refused(world: World, database: Database) -> None:
    tenant_id, run_id, driver = plain_world(world, database)
    late = world.driver(database)

    def clock() -> datetime:
        # It has read the master data, with the run's mark in them; now the run is reversed, from beginning to end.
        late._clock = lambda: NOW
        driver.reverse(tenant_id, run_id, "ann")
        assert driver.drive(tenant_id, run_id)["state"] == "reversed"
        return NOW

    late._clock = clock
    with pytest.raises(Conflict, match="ended meanwhile"):
        late.plan(tenant_id, JANUARY_ENDS, "bob")
    with database.tenant(tenant_id) as connection:
        assert bill_runs.active(connection) is None
        assert steps.current(connection, tenant_id)[1].runs == ()
    run = driver.drive(tenant_id, driver.plan(tenant_id, JANUARY_ENDS, "bob")["id"])
    assert len(documents(database, tenant_id, run["id"])) == CUSTOMERS


def credit_by_hand(database: Database, tenant_id: str, number: str, wanted: list[CreditLine] | None = None) -> None:
    with database.tenant(tenant_id) as connection:
        row = invoices.get(connection, number)
        notes = [invoices.get(connection, one["number"])["document"] for one in row["referred_by"]]
        note = credit_note(BilledDocument(number, row["document"]), NOW.date(), notes, wanted)
        final = invoices.Final(note, "main", "RK-{yyyy}-{n:06}", row["buyer"], NOW)
        invoices.finalise(connection, tenant_id, [final], NOW)


def used(customer: str, number: str, event_type: str, **properties: str) -> tuple[object, ...]:
    when = datetime(2026, 1, 15, tzinfo=UTC)
    return ("meter", f"{customer}/{number}", event_type, customer, None, when, json.dumps(properties))


def billed_january(
    world: World, database: Database, rows: list[tuple[object, ...]]
) -> tuple[str, str, BillRunDriver, dict[str, str]]:
    """A tenant with these events in January and nothing else, its only run done; the customers' documents by number."""
    tenant_id = _tenant(database)
    world._send(tenant_id, pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row"))
    driver = world.driver(database)
    run_id = driver.plan(tenant_id, JANUARY_ENDS, "ann")["id"]
    assert driver.drive(tenant_id, run_id)["state"] == "done"
    return tenant_id, run_id, driver, {row["customer"]: row["number"] for row in documents(database, tenant_id, run_id)}


def test_a_reversal_goes_by_what_is_left_of_each_line_after_credit_notes_by_hand(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_reversal, "BATCH", 2)
    # 9.90 - 12.30 at 19 % and 2.67 at 7 % are 0.00 with tax; with 13.68 at 7 % they are 9.90 with its tax.
    rows = [used("c0", "1", "value", amount="2.67"), used("c1", "1", "value", amount="13.68")]
    rows += [used(f"c{number}", "2", "disk", gb=gb) for number, gb in ((0, "-100"), (1, "-100"), (3, "7"), (5, "9"))]
    tenant_id, run_id, driver, numbers = billed_january(world, database, rows)
    with database.tenant(tenant_id) as connection:
        zero, equal = (invoices.get(connection, numbers[customer]) for customer in ("c0", "c1"))
    assert (zero["type"], zero["gross"], zero["net"]) == ("invoice", 0, Decimal("0.27"))
    base = next(n for n, line in enumerate(equal["document"].lines, start=1) if line.charge == "base")
    credit_by_hand(database, tenant_id, numbers["c0"])  # whole, over 0.00
    credit_by_hand(database, tenant_id, numbers["c1"], [CreditLine(base)])  # its sum, and two lines are open
    credit_by_hand(database, tenant_id, numbers["c3"], [CreditLine(1, Decimal("0.01"))])  # partly
    credit_by_hand(database, tenant_id, numbers["c4"])  # whole
    for line in (1, 2):
        credit_by_hand(database, tenant_id, numbers["c5"], [CreditLine(line)])  # whole, in two
    with database.tenant(tenant_id) as connection:
        assert invoices.get(connection, numbers["c1"])["referred_by"]
        noted = {row["refers_to"]: row for row in invoices.page(connection, type="credit_note")}
        assert noted[numbers["c1"]]["gross"] == equal["gross"]
    driver.reverse(tenant_id, run_id, "ann")
    assert driver.drive(tenant_id, run_id)["state"] == "reversed"
    with database.tenant(tenant_id) as connection:
        assert set(balances(connection).values()) == {Decimal(0)}
        rows_ = connection.execute("SELECT refers_to FROM invoices WHERE reverses_run IS NOT NULL").fetchall()
        owed = connection.execute(
            "SELECT coalesce(i.refers_to, i.number) AS number, sum(CASE WHEN p.debit = 'receivables' THEN p.amount"
            " ELSE -p.amount END) AS amount FROM postings p JOIN invoices i ON i.id = p.invoice_id GROUP BY 1"
        ).fetchall()
        assert invoices.number_gaps(connection) == []
    assert {row["refers_to"] for row in rows_} == {numbers[one] for one in ("c1", "c2", "c3", "c6")}
    assert {row["amount"] for row in owed} == {Decimal(0)}  # of each document, not only of all
    again = driver.drive(tenant_id, driver.plan(tenant_id, JANUARY_ENDS, "ann")["id"])
    assert again["documents"]["made"] == CUSTOMERS


def test_a_run_up_to_an_earlier_day_makes_no_later_period_due_again(world: World, database: Database) -> None:
    tenant_id = world.make_tenant()
    settle(database, tenant_id, {"schedule": {"interval": "month", "approve": True}})
    driver = world.driver(database)
    for up_to in (MARCH, FEBRUARY):  # the second one for somebody who was left out of January
        run = driver.drive(tenant_id, driver.plan(tenant_id, up_to, "ann")["id"])
        assert run["state"] == "done"
    later = lambda: NOW + timedelta(days=2)  # noqa: E731
    with database.tenant(tenant_id) as connection:
        seen = shown(outlook(connection, tenant_id, later), "Europe/Berlin")
    assert (seen["due"], seen["missed"], seen["alarm"]) == ([], [], None)
    assert seen["next"]["last_day"] == "2026-03-31"
    assert tenant_id not in [tenant for tenant, _ in start_due(database, driver, later)]


ODD_TEXTS = (
    "\\N",
    "\\.",
    'a "b", c',
    "back\\slash\\",
    "tab\there",
    "two\nlines\r\n",
    "\\.\n\\N",
    " x ",
    "'; --",
    "é🌍\x7f",
)


def test_texts_of_any_signs_reach_the_tables_as_they_are(world: World, database: Database) -> None:
    tenant_id = _tenant(database)
    with database.tenant(tenant_id) as connection:
        changes = [
            {"at": "2026-01-01", "customer": {"code": f"odd{place}", "name": text, "address": {"line1": text}}}
            for place, text in enumerate(ODD_TEXTS)
        ]
        charge = {"kind": "one_off", "price": {"model": "flat", "amount": "1"}, "tax": "standard"}
        for place, text in enumerate(ODD_TEXTS):
            plan = {"code": f"odd{place}", "currency": "EUR", "charges": [{**charge, "code": "start", "name": text}]}
            changes.append({"at": "2026-01-01", "publish": {"plan": {**plan, "interval": "month"}}})
            subscription = {"code": f"o{place}", "customer": f"odd{place}", "plan": f"odd{place}"}
            changes.append({"at": "2026-01-01", "subscribe": subscription})
        steps.append_steps(connection, tenant_id, changes, "test", now=NOW)
    driver = world.driver(database)
    run = driver.drive(tenant_id, driver.plan(tenant_id, JANUARY_ENDS, "ann")["id"])
    assert run["state"] == "done", run["error"]
    with database.tenant(tenant_id) as connection:
        rows = connection.execute(
            "SELECT i.customer_name, i.buyer -> 'address' ->> 'line1' AS street, l.name, i.number FROM invoices i"
            " JOIN invoice_lines l ON l.invoice_id = i.id WHERE i.customer LIKE 'odd%%' ORDER BY i.customer"
        ).fetchall()
        assert [(row["customer_name"], row["street"], row["name"]) for row in rows] == [(t, t, t) for t in ODD_TEXTS]
        # A text that somebody types beside a document goes the same way.
        for row, text in zip(rows, ODD_TEXTS, strict=True):
            document = invoices.get(connection, row["number"])["document"]
            note = credit_note(BilledDocument(row["number"], document), NOW.date())
            final = invoices.Final(note, "main", "RK-{yyyy}-{n:06}", {"name": text}, NOW, reason=text)
            invoices.finalise(connection, tenant_id, [final], NOW)
        told = connection.execute("SELECT reason FROM invoices WHERE reason IS NOT NULL ORDER BY id").fetchall()
    assert [row["reason"] for row in told] == list(ODD_TEXTS)


def test_a_customer_of_an_unknown_legal_entity_is_parked_with_the_reason_until_it_is_there(
    world: World, database: Database
) -> None:
    tenant_id = _tenant(database)
    with database.tenant(tenant_id) as connection:
        changes = [
            {"at": "2026-01-01", "customer": {"code": "c2", "legal_entity": "ghost"}},
            {"at": "2026-01-01", "customer": {"code": "c3", "payer": "c2"}},
        ]
        steps.append_steps(connection, tenant_id, changes, "test", now=NOW)
    driver = world.driver(database)
    run = driver.drive(tenant_id, driver.plan(tenant_id, JANUARY_ENDS, "ann")["id"], approve=False)
    assert run["state"] == "computed"
    parked = {one["customer"]: (one["code"], one["reason"]) for one in run["parked"]}
    assert {code for code, _ in parked.values()} == {"unknown_legal_entity"}
    assert "there is no legal entity 'ghost'" in parked["c2"][1]
    assert parked["c3"][1].startswith("shares documents with customer 'c2'")
    assert driver.drive(tenant_id, run["id"], approve=True)["state"] == "done"
    others = [f"c{number}" for number in range(CUSTOMERS) if number not in (2, 3)]
    assert [row["customer"] for row in documents(database, tenant_id, run["id"])] == others
    proof = verify_run(database, LocalObjectStore(world.directory), driver._chain, tenant_id, run["id"])
    assert proof.proven, proof
    with database.tenant(tenant_id) as connection:
        form = {"name": "Ghost AG", "country": "AT"}
        tenants.put_legal_entity(connection, tenant_id, "ghost", form, country="AT", now=NOW)
    again = driver.drive(tenant_id, driver.plan(tenant_id, JANUARY_ENDS, "ann")["id"])
    assert (again["state"], again["parked"]) == ("done", [])
    (row,) = documents(database, tenant_id, again["id"])
    assert (row["customer"], row["entity"]) == ("c2", "ghost")
    with database.tenant(tenant_id) as connection:
        assert invoices.number_gaps(connection) == []


@pytest.mark.parametrize(
    ("said", "due_on"),
    [
        (0, "2026-03-01"),
        ("0", "2026-03-01"),
        (-5, "2026-03-01"),
        (10, "2026-03-11"),
        (10.0, "2026-03-11"),
        ("30", "2026-03-31"),
        (None, "2026-03-15"),
        ("", "2026-03-15"),
        ("soon", "2026-03-15"),
        (True, "2026-03-15"),
        (0.5, "2026-03-15"),
        ([14], "2026-03-15"),
        (10**9, "9999-12-31"),
        (10**25, "9999-12-31"),
    ],
)
def test_payment_days_of_any_kind_make_a_date(said: Any, due_on: str) -> None:
    assert str(invoices.due_on(date(2026, 3, 1), "invoice", {"payment_days": said})) == due_on
    assert str(invoices.due_on(date(2026, 3, 1), "invoice", {})) == "2026-03-15"


def states(database: Database, tenant_id: str, run_id: str) -> list[str]:
    with database.tenant(tenant_id) as connection:
        return [chunk["state"] for chunk in bill_runs.chunks(connection, run_id)]


def ends_well(world: World, database: Database, tenant_id: str, run_id: str) -> None:
    """The run is done, its numbers are in the order of the customers, and the log gives the same."""
    driver = world.driver(database)
    assert driver.drive(tenant_id, run_id)["state"] == "done"
    rows = documents(database, tenant_id, run_id)
    assert [row["customer"] for row in rows] == [f"c{number}" for number in range(CUSTOMERS)]
    numbers = [row["number"] for row in rows if row["type"] == "invoice"]
    assert numbers == sorted(numbers)
    assert verify_run(database, LocalObjectStore(world.directory), driver._chain, tenant_id, run_id).proven
    with database.tenant(tenant_id) as connection:
        assert invoices.number_gaps(connection) == []


def test_chunks_beside_one_that_cannot_be_computed_pass_and_a_resume_computes_it_alone(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_id = world.make_tenant()
    driver = world.driver(database)
    run_id = driver.plan(tenant_id, MARCH, "ann")["id"]
    computed: list[int] = []

    def odd(task: ChunkTask, *stores: Any) -> Any:
        computed.append(task.chunk)
        if task.chunk == 1:
            raise RuntimeError("this chunk breaks")
        return compute_chunk(task, *stores)

    with monkeypatch.context() as broken:
        broken.setattr(chunk_executor, "compute_chunk", odd)
        with pytest.raises(RuntimeError, match="this chunk breaks"):
            driver.drive(tenant_id, run_id)
    assert states(database, tenant_id, run_id) == ["computed", "planned", "computed"]
    assert "this chunk breaks" in driver.get(tenant_id, run_id)["error"]
    computed.clear()

    def counted(task: ChunkTask, *stores: Any) -> Any:
        computed.append(task.chunk)
        return compute_chunk(task, *stores)

    monkeypatch.setattr(chunk_executor, "compute_chunk", counted)
    ends_well(world, database, tenant_id, run_id)
    assert computed == [1]


def test_a_chunk_that_is_complete_gets_its_numbers_although_the_next_one_fails(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_id = world.make_tenant()
    driver = world.driver(database)
    run_id = driver.plan(tenant_id, MARCH, "ann")["id"]
    stage, stop = finalising.stage, Turns.stop
    failed = Event()
    staged: list[str] = []

    def stopping(self: Turns, *number: int) -> None:
        stop(self, *number)
        failed.set()

    def odd(*given: Any) -> Any:
        staged.append(given[3].documents["customer"][0])
        if staged[-1] == "c3":
            raise RuntimeError("this chunk breaks")
        assert failed.wait(60)  # the first chunk is ready for its numbers when the second one has failed
        return stage(*given)

    with monkeypatch.context() as broken:
        broken.setattr(finalising, "stage", odd)
        broken.setattr(Turns, "stop", stopping)
        with pytest.raises(RuntimeError, match="this chunk breaks"):
            driver.drive(tenant_id, run_id)
    assert states(database, tenant_id, run_id) == ["finalised", "computed", "computed"]
    assert "this chunk breaks" in driver.get(tenant_id, run_id)["error"]
    staged.clear()

    def counted(*given: Any) -> Any:
        staged.append(given[3].documents["customer"][0])
        return stage(*given)

    monkeypatch.setattr(finalising, "stage", counted)
    ends_well(world, database, tenant_id, run_id)
    assert sorted(staged) == ["c3", "c6"]  # two at a time: either may be ready first


def test_what_fails_again_and_again_or_for_all_begins_no_more_chunks() -> None:
    failures = Failures()
    failures.raise_first()
    for number in range(FAILURES_MAX):
        assert not failures.is_enough
        failures.note(RuntimeError(f"chunk {number}"))
    assert failures.is_enough
    with pytest.raises(RuntimeError, match="chunk 0"):
        failures.raise_first()
    away = Failures()
    away.note(Unavailable("the database is away"))
    assert away.is_enough
