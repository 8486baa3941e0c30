"""Runs that are looked at: guard rails park and are let through, four eyes, the window, a retry, a whole reversal."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from billing.errors import Conflict, InvalidInput, NotAllowed
from billing.numbers import check_patterns, patterns_of
from pipelines.bill_run import BillRunDriver
from pipelines.run_schedule import outlook, shown, start_due
from pipelines.verify_invoices import verify_run
from storage.object_store import LocalObjectStore
from storage.sql import bill_runs, billing_settings, invoices, overview, steps, tenants
from storage.sql.database import Connection, Database
from tests.chaos.bill_run_world import CUSTOMERS, MARCH, NOW, World, _tenant

pytestmark = pytest.mark.postgres


def settle(database: Database, tenant_id: str, form: dict[str, Any]) -> None:
    with database.tenant(tenant_id) as connection:
        billing_settings.put(connection, tenant_id, form, "test", NOW)


def balances(connection: Connection) -> dict[str, Decimal]:
    rows = connection.execute("SELECT debit, credit, sum(amount) AS amount FROM postings GROUP BY debit, credit")
    found: dict[str, Decimal] = {}
    for row in rows.fetchall():
        found[row["debit"]] = found.get(row["debit"], Decimal(0)) + row["amount"]
        found[row["credit"]] = found.get(row["credit"], Decimal(0)) - row["amount"]
    return found


def documents(database: Database, tenant_id: str, run_id: str) -> list[dict[str, Any]]:
    with database.tenant(tenant_id) as connection:
        return invoices.page(connection, run_id=run_id, descending=False, limit=1_000)


def test_a_rail_parks_until_somebody_lets_through_or_the_next_run_bills(world: World, database: Database) -> None:
    tenant_id = world.make_tenant()
    settle(database, tenant_id, {"guard_rails": {"on": True, "limits": {"EUR": "1"}, "change_percent": None}})
    driver = world.driver(database)
    run = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"], approve=False)
    assert run["state"] == "computed"
    held = {one["customer"]: one["code"] for one in run["held_back"]}
    assert held
    assert set(held.values()) <= {"over_limit", "over_last_invoices"}
    one, *others = sorted(held)
    with pytest.raises(InvalidInput, match="not held back"):
        driver.release(tenant_id, run["id"], ["nobody"], "bob")
    driver.release(tenant_id, run["id"], [one], "bob")
    assert [each["customer"] for each in driver.get(tenant_id, run["id"])["held_back"]] == others
    done = driver.drive(tenant_id, run["id"], approve=True)
    assert done["state"] == "done"
    assert {each["customer"] for each in done["parked"]} == set(others)
    billed = {row["customer"] for row in documents(database, tenant_id, run["id"])}
    assert one in billed
    assert not billed & set(others)
    assert done["documents"]["made"] == len(documents(database, tenant_id, run["id"]))
    proof = verify_run(database, LocalObjectStore(world.directory), driver._chain, tenant_id, run["id"])
    assert proof.proven, proof
    settle(database, tenant_id, {"guard_rails": {"on": False}})
    again = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"])
    assert {row["customer"] for row in documents(database, tenant_id, again["id"])} == set(others)
    with database.tenant(tenant_id) as connection:
        assert invoices.number_gaps(connection) == []


def test_an_invoice_over_three_times_the_last_ones_is_an_outlier_and_is_held(world: World, database: Database) -> None:
    tenant_id = world.make_tenant()
    settle(database, tenant_id, {"guard_rails": {"on": True, "times_last": "0.01"}})
    driver = world.driver(database)
    run = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"])
    # With nearly all of the net gone it waits, and says why.
    assert {one["code"] for one in run["held_back"]} == {"over_last_invoices"}
    assert run["checks"]["last_run"] == 1
    assert set(run["checks"]["difference"]) == {"EUR"}
    assert run["checks"]["outliers"]
    assert "times the highest of the last invoices" in run["held_back"][0]["reason"]


def test_ten_documents_of_the_usual_size_are_held_by_their_sum(world: World, database: Database) -> None:
    """By contract each invoice is as high as ever: what jumps is how many of them there are."""
    tenant_id = _tenant(database, document_per="subscription")
    settle(database, tenant_id, {"guard_rails": {"on": True, "change_percent": None}})
    driver = world.driver(database)

    def run(up_to: date, **steered: Any) -> dict[str, Any]:
        return driver.drive(tenant_id, driver.plan(tenant_id, up_to, "ann")["id"], **steered)

    assert run(date(2026, 2, 1))["held_back"] == []
    with database.tenant(tenant_id) as connection:
        more = [
            {"at": "2026-02-01", "subscribe": {"code": f"more{place}", "customer": "c3", "plan": "basic"}}
            for place in range(3)
        ]
        steps.append_steps(connection, tenant_id, more, "test", now=NOW)
        assert invoices.highest_of_last(connection, ["c3"]) == [("c3", "EUR", Decimal("11.78"), Decimal("11.78"))]
    held = run(MARCH, approve=False)
    assert [(one["customer"], one["code"]) for one in held["held_back"]] == [("c3", "over_last_runs")]
    assert held["held_back"][0]["reason"].startswith("47.12 EUR on 4 documents is over 3 times the highest sum")
    driver.release(tenant_id, held["id"], ["c3"], "bob")
    assert driver.drive(tenant_id, held["id"], approve=True)["state"] == "done"
    with database.tenant(tenant_id) as connection:
        # The highest invoice is one of them, the highest sum is all of them; a reversed run counts no more.
        assert invoices.highest_of_last(connection, ["c3"]) == [("c3", "EUR", Decimal("11.78"), Decimal("47.12"))]
    driver.reverse(tenant_id, held["id"], "bob")
    assert driver.drive(tenant_id, held["id"])["state"] == "reversed"
    with database.tenant(tenant_id) as connection:
        assert invoices.highest_of_last(connection, ["c3"]) == [("c3", "EUR", Decimal("11.78"), Decimal("11.78"))]


def test_a_run_whose_sum_is_far_off_waits_for_somebody(world: World, database: Database) -> None:
    tenant_id = world.make_tenant()
    settle(database, tenant_id, {"guard_rails": {"on": True, "times_last": None, "change_percent": "0.001"}})
    driver = world.driver(database)
    run = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"])
    assert (run["state"], run["held_back"]) == ("computed", [])
    assert run["checks"]["stops"][0].startswith("the net in EUR is ")
    driver.approve(tenant_id, run["id"], "ann")
    assert driver.drive(tenant_id, run["id"])["state"] == "done"


def test_four_eyes_want_another_person_to_approve_and_to_reverse(world: World, database: Database) -> None:
    tenant_id = world.make_tenant()
    settle(database, tenant_id, {"four_eyes": True})
    driver = world.driver(database)
    run = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"])
    assert run["state"] == "computed"
    with pytest.raises(NotAllowed):
        driver.approve(tenant_id, run["id"], "ann")
    assert driver.get(tenant_id, run["id"])["state"] == "computed"
    driver.approve(tenant_id, run["id"], "bob")
    done = driver.drive(tenant_id, run["id"])
    assert (done["state"], done["approved_by"]) == ("done", "bob")


def test_usage_may_come_until_the_collection_window_ends(world: World, database: Database) -> None:
    tenant_id = world.make_tenant()
    settle(database, tenant_id, {"collection_window": "PT72H"})
    driver = world.driver(database)
    with pytest.raises(Conflict, match="collection window"):
        driver.plan(tenant_id, MARCH, "ann")
    assert driver.plan(tenant_id, MARCH, "ann", early=True)["state"] == "planned"


def test_who_asks_again_gets_the_run_that_was_planned_for_him(world: World, database: Database) -> None:
    tenant_id = world.make_tenant()
    driver = world.driver(database)
    first = driver.plan(tenant_id, MARCH, "ann", request_key="key:1")
    assert driver.plan(tenant_id, MARCH, "ann", request_key="key:1")["id"] == first["id"]
    with pytest.raises(Conflict):
        driver.plan(tenant_id, MARCH, "ann", request_key="key:2")


def signed(row: dict[str, Any]) -> Decimal:
    return -row["gross"] if row["type"] == "credit_note" else row["gross"]


def plain_world(world: World, database: Database) -> tuple[str, str, BillRunDriver]:
    """A tenant whose only run is done: January, without late usage."""
    tenant_id = world.make_tenant()
    driver = world.driver(database)
    with database.tenant(tenant_id) as connection:
        (run,) = bill_runs.page(connection)
    return tenant_id, str(run["id"]), driver


def test_a_reversed_run_leaves_nothing_owed_and_is_billed_again_alike(world: World, database: Database) -> None:
    tenant_id, run_id, driver = plain_world(world, database)
    first = documents(database, tenant_id, run_id)
    assert first
    driver.reverse(tenant_id, run_id, "ann")
    with pytest.raises(Conflict):
        driver.plan(tenant_id, datetime(2026, 1, 31, 23, tzinfo=UTC), "ann")  # it goes on
    assert driver.drive(tenant_id, run_id)["state"] == "reversed"
    with database.tenant(tenant_id) as connection:
        assert set(balances(connection).values()) == {Decimal(0)}
        assert invoices.number_gaps(connection) == []
        notes = [row for row in invoices.page(connection, limit=1_000) if row["run_id"] is None]
    assert sorted(row["refers_to"] for row in notes) == sorted(row["number"] for row in first)
    again = driver.drive(tenant_id, driver.plan(tenant_id, datetime(2026, 1, 31, 23, tzinfo=UTC), "ann")["id"])
    assert again["state"] == "done"
    second = documents(database, tenant_id, again["id"])
    assert [row["customer"] for row in second] == [row["customer"] for row in first]
    # Usage for January that came late is part of it now, so it is not less.
    assert sum(map(signed, second)) > sum(map(signed, first))
    proof = verify_run(database, LocalObjectStore(world.directory), driver._chain, tenant_id, again["id"])
    assert proof.proven, proof
    march = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"])
    with database.tenant(tenant_id) as connection:
        made = [invoices.get(connection, row["number"]) for row in documents(database, tenant_id, march["id"])]
    assert not any(line.correction for row in made for line in row["document"].lines)  # January is right by now


def test_only_the_last_run_is_reversed(world: World, database: Database) -> None:
    tenant_id, run_id, driver = plain_world(world, database)
    driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"])
    with pytest.raises(Conflict, match="later runs"):
        driver.reverse(tenant_id, run_id, "ann")


def test_a_reversal_credits_what_credit_notes_by_hand_have_left(world: World, database: Database) -> None:
    from billing.credit_notes import CreditLine, credit_note
    from billing.settle import BilledDocument

    tenant_id, run_id, driver = plain_world(world, database)
    chosen = next(row for row in documents(database, tenant_id, run_id) if row["net"] > 5)
    with database.tenant(tenant_id) as connection:
        row = invoices.get(connection, chosen["number"])
        note = credit_note(
            BilledDocument(row["number"], row["document"]), NOW.date(), (), [CreditLine(1, Decimal("1.00"))]
        )
        final = invoices.Final(note, "main", "RK-{yyyy}-{n:06}", row["buyer"], NOW)
        invoices.finalise(connection, tenant_id, [final], NOW)
    driver.reverse(tenant_id, run_id, "ann")
    assert driver.drive(tenant_id, run_id)["state"] == "reversed"
    with database.tenant(tenant_id) as connection:
        assert set(balances(connection).values()) == {Decimal(0)}


@pytest.mark.parametrize("step", ["reversing", "reversal marked", "reversed"])
def test_a_reversal_that_is_cut_off_at_any_step_ends_alike(
    step: str, world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipelines.run_reversal as run_reversal

    monkeypatch.setattr(run_reversal, "BATCH", 3)
    tenant_id, run_id, driver = plain_world(world, database)
    driver.reverse(tenant_id, run_id, "ann")

    class Crash(Exception):
        """The process ends here."""

    def checkpoint(name: str) -> None:
        if name == step:
            raise Crash

    with pytest.raises(Crash):
        world.driver(database, checkpoint=checkpoint).drive(tenant_id, run_id)
    assert driver.drive(tenant_id, run_id)["state"] == "reversed"
    with database.tenant(tenant_id) as connection:
        assert set(balances(connection).values()) == {Decimal(0)}
        rows = connection.execute(
            "SELECT count(*) AS n, count(DISTINCT refers_to) AS of FROM invoices WHERE reverses_run IS NOT NULL"
        ).fetchone()
        assert rows == {"n": CUSTOMERS, "of": CUSTOMERS}
        assert invoices.number_gaps(connection) == []
    run = driver.drive(tenant_id, driver.plan(tenant_id, datetime(2026, 1, 31, 23, tzinfo=UTC), "ann")["id"])
    assert run["documents"]["made"] == CUSTOMERS


def test_a_scheduled_run_begins_once_and_never_again_when_it_was_cancelled(world: World, database: Database) -> None:
    tenant_id = world.make_tenant()
    settle(database, tenant_id, {"schedule": {"interval": "month", "approve": True}})
    driver = world.driver(database)

    def begun() -> list[str]:
        return [run for tenant, run in start_due(database, driver, lambda: NOW) if tenant == tenant_id]

    (run_id,) = begun()
    assert begun() == []  # it goes on
    run = driver.get(tenant_id, run_id)
    assert (run["up_to"], run["created_by"]) == (datetime(2026, 2, 28, 23, tzinfo=UTC), "schedule")
    driver.cancel(tenant_id, run_id)
    assert begun() == []
    with database.tenant(tenant_id) as connection:
        seen = shown(outlook(connection, tenant_id, lambda: NOW), "Europe/Berlin")
    assert (seen["due"], seen["next"]["last_day"]) == ([], "2026-03-31")


def test_that_no_bill_run_happened_is_told_once(world: World, database: Database) -> None:
    tenant_id = world.make_tenant()
    settle(database, tenant_id, {"schedule": {"interval": "month"}})
    driver = world.driver(database)
    # Somebody else's run stands in the way, paused: what is due does not begin, and that is an alarm.
    driver.plan(tenant_id, datetime(2026, 2, 10, tzinfo=UTC), "ann")
    for _ in range(2):
        assert tenant_id not in [tenant for tenant, _ in start_due(database, driver, lambda: NOW)]
    with database.tenant(tenant_id) as connection:
        seen = shown(outlook(connection, tenant_id, lambda: NOW), "Europe/Berlin")
        told = connection.execute("SELECT subject FROM outbox WHERE kind = 'bill_run.missed'").fetchall()
    assert seen["alarm"] == "no bill run happened"
    assert [row["subject"] for row in told] == ["2026-02-28T23:00:00+00:00"]


def test_each_legal_entity_has_numbers_of_its_own_without_a_gap(world: World, database: Database) -> None:
    tenant_id = world.make_tenant()
    with database.tenant(tenant_id) as connection:
        form = {"name": "Chaos Süd AG", "series": {"invoice": "{series}{entity}/{yy}/{n:04}"}}
        tenants.put_legal_entity(connection, tenant_id, "sued", form, country="AT", now=NOW)
        change = {"at": "2026-02-20", "customer": {"code": "c4", "legal_entity": "sued"}}
        steps.append_step(connection, tenant_id, change, "test", now=NOW)
    driver = world.driver(database)
    run = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"])
    assert run["state"] == "done"
    rows = {row["customer"]: row for row in documents(database, tenant_id, run["id"])}
    assert (rows["c4"]["entity"], rows["c4"]["number"]) == ("sued", "REsued/26/0001")
    assert rows["c5"]["number"] == f"RE-2026-{int(rows['c3']['number'][-6:]) + 1:06}"
    with database.tenant(tenant_id) as connection:
        assert invoices.number_gaps(connection) == []


def test_patterns_of_two_legal_entities_never_give_one_number() -> None:
    others = {"main": patterns_of("main", {}, is_default=True)}
    check_patterns({}, "sued", is_default=False, others=others)
    assert patterns_of("sued", {}, is_default=False)["invoice"] == "RE-sued-{yyyy}-{n:06}"
    with pytest.raises(InvalidInput, match="legal entity 'main'"):
        check_patterns({"invoice": "{series}-{yyyy}-{n:06}"}, "sued", is_default=False, others=others)


def test_what_a_computed_run_comes_to_by_plan_tax_and_country_is_what_its_invoices_say_in_the_end(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown before anybody approves; afterwards SQL adds up the invoices that were made."""
    monkeypatch.setattr("pipelines.bill_run.CUSTOMERS", 5)  # several chunks, whose sums are added
    tenant_id = world.make_tenant()
    driver = world.driver(database)
    run = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "ann")["id"], approve=False)
    assert run["state"] == "computed"
    checks = run["checks"]
    assert (len(checks["by_plan"]), len(checks["by_tax"])) == (1, 2)
    done = driver.drive(tenant_id, run["id"], approve=True)
    assert done["state"] == "done"
    assert done["parked"] == []
    with database.tenant(tenant_id) as connection:
        plans = overview.billed_by_plan(connection, run=run["id"])
        taxes = overview.billed_by_tax(connection, run["id"])
    assert {(one["plan"], one["currency"]): (Decimal(one["net"]), one["lines"], one["subscriptions"])
            for one in checks["by_plan"]} == {
        (one.plan, one.currency): (one.net, one.lines, one.subscriptions) for one in plans}  # fmt: skip
    assert {(one["category"], Decimal(one["percent"])): (Decimal(one["base"]), Decimal(one["amount"]), one["documents"])
            for one in checks["by_tax"]} == {
        (one.category, one.percent): (one.base, one.amount, one.documents) for one in taxes}  # fmt: skip
    for name in ("net", "tax", "gross"):
        sums = sum((Decimal(one[name]) for one in checks["by_country"]), Decimal(0))
        assert sums == sum((Decimal(each[name]) for each in done["totals"].values()), Decimal(0)), name
    assert sum(one["documents"] for one in checks["by_country"]) == done["documents"]["made"]
