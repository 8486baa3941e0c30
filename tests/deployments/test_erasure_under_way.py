"""An erasure meets others at work: what is in its way, what fails or is killed half way, who reads meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

import pipelines.forgetting
from billing.errors import InvalidInput
from deployments.erasures import erasures_of
from deployments.upkeep_actor import erasing_rounds
from storage.master_chain import MasterChain, change_key
from storage.sql import erasing, erasures, steps
from tests.deployments.conftest import Tenant
from tests.deployments.test_erasure import World, running_world

pytestmark = pytest.mark.postgres

NAME = "ACME GmbH"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory) as made:
        yield made


def ready(world: World) -> World:
    """A tenant of its own whose customer `acme` has no contract that runs."""
    tenant = world.api.tenant()
    tenant.catalog()
    cancel = {"at": "2026-01-31", "cancel": {"subscription": "s1"}}
    assert tenant.post("/v1/steps", [cancel]).status_code == 201
    return World(world.api, tenant, world.store, world.dsn, world.data)


def ask(tenant: Tenant) -> Any:
    return tenant.post("/v1/customers/acme/erasure", {"rule": "GDPR 17"})


def state_of(tenant: Tenant, id: str) -> tuple[str, str | None]:
    found = tenant.get(f"/v1/erasures/{id}").json()
    return found["state"], found["error"]


def chain_of(world: World) -> dict[str, bytes | None]:
    return {key: world.store.get(key) for key in world.store.list(f"master/{world.tenant.id}/")}


def run(world: World, statement: str, *given: object) -> int:
    with psycopg.connect(world.dsn) as connection:
        return connection.execute(statement.encode(), given).rowcount


def test_an_erasure_that_failed_has_changed_nothing_and_is_taken_up_by_the_next_wish(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> None:
        raise InvalidInput("what is left does not add up")

    own = ready(world)
    id = ask(own.tenant).json()["id"]
    before = chain_of(own)
    monkeypatch.setattr(erasing, "rewrite_tables", wrong)
    erasures_of(world.api.services).step(own.tenant.id, id)
    assert state_of(own.tenant, id) == ("failed", "invalid_input")
    assert chain_of(own) == before, "no half of the chain without him"
    assert own.tenant.get("/v1/customers/acme").json()["form"]["name"] == NAME
    monkeypatch.undo()
    again = ask(own.tenant)
    assert (again.status_code, again.json()["id"], again.json()["state"]) == (202, id, "asked"), again.text
    monkeypatch.setattr(pipelines.forgetting, "erase", wrong)  # he is gone from the master data when this one fails
    assert own.drive(id)["state"] == "failed"
    assert own.tenant.get("/v1/customers/acme").status_code == 404
    monkeypatch.undo()
    assert ask(own.tenant).json()["id"] == id
    assert own.drive(id)["state"] == "done"
    assert run(own, "SELECT 1 FROM erasures WHERE id = %s AND marks IS NULL", id) == 1
    assert ask(own.tenant).status_code == 404


def test_a_failed_erasure_is_not_taken_up_while_something_is_in_its_way(world: World) -> None:
    own = ready(world)
    id = ask(own.tenant).json()["id"]
    run(own, "UPDATE erasures SET state = 'failed' WHERE id = %s", id)
    again = {"code": "s2", "customer": "acme", "plan": "basic", "anchor": "calendar"}
    assert own.tenant.post("/v1/steps", [{"at": "2026-02-01", "subscribe": again}]).status_code == 201
    answer = ask(own.tenant)
    assert answer.status_code == 409, answer.text
    assert "s2" in answer.json()["detail"]


def test_a_new_process_goes_on_at_once_with_what_a_killed_one_had_in_hand(world: World) -> None:
    own = ready(world)
    id = ask(own.tenant).json()["id"]
    work = erasures_of(world.api.services)
    with world.api.services.database.tenant(own.tenant.id) as connection:
        assert erasures.claim(connection, id, work.clock()) is not None  # and is killed
    assert work.step(own.tenant.id, id) is False, "held for ten minutes"
    rounds = erasing_rounds(work)
    assert rounds() >= 1
    assert state_of(own.tenant, id) == ("objects", None)
    with world.api.services.database.tenant(own.tenant.id) as connection:
        assert erasures.claim(connection, id, work.clock()) is not None
    rounds()
    assert state_of(own.tenant, id) == ("objects", None), "only a start takes over: a step may be somebody's"


def test_who_pays_for_others_and_whose_document_is_on_its_way_is_not_erased(world: World) -> None:
    own = ready(world)
    child = {"code": "child", "name": "Child", "country": "DE", "payer": "acme"}
    assert own.tenant.post("/v1/steps", [{"at": "2026-01-01", "customer": child}]).status_code == 201
    answer = ask(own.tenant)
    assert answer.status_code == 409, answer.text
    assert "pays for 'child'" in answer.json()["detail"]
    end = {"at": "2026-01-20", "customer": {"code": "child", "payer": None}}
    assert own.tenant.post("/v1/steps", [end]).status_code == 201
    line = '{"source":"s","id":"1","type":"storage.write","customer":"acme","time":"2026-01-05T00:00:00Z",'
    assert own.tenant.usage(line + '"data":{"gb":"50"}}').is_success
    made = own.tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).json()
    assert own.tenant.get(f"/v1/bill-runs/{made['id']}").json()["state"] == "done"
    chosen = "tenant_id = %s AND state = %s"
    waits = f"UPDATE document_files SET state = 'parked', reason = 'x' WHERE {chosen}"
    assert run(own, waits, own.tenant.id, "archived") == 1
    answer = ask(own.tenant)
    assert answer.status_code == 409, answer.text
    assert "is not in the archive yet" in answer.json()["detail"]
    other = ready(world)
    id = ask(other.tenant).json()["id"]
    erasures_of(world.api.services).step(other.tenant.id, id)
    assert state_of(other.tenant, id) == ("objects", None), "a document of another tenant's `acme` is not in the way"


def test_no_bill_run_goes_on_while_master_data_are_written_anew(world: World) -> None:
    own = ready(world)
    id = ask(own.tenant).json()["id"]
    made = own.tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).json()
    assert own.tenant.get(f"/v1/bill-runs/{made['id']}").json()["state"] == "done"
    run(own, "UPDATE bill_runs SET state = 'computed' WHERE id = %s", made["id"])
    before = chain_of(own)
    work, database = erasures_of(world.api.services), world.api.services.database
    work.step(own.tenant.id, id)
    state, error = state_of(own.tenant, id)
    assert (state, "a bill run is going on" in str(error)) == ("asked", True), error
    assert chain_of(own) == before
    run(own, "UPDATE bill_runs SET state = 'done' WHERE id = %s", made["id"])
    with database.owner(own.tenant.id) as connection:
        number, master = steps.current(connection, own.tenant.id)
        assert erasing.quiet(connection, own.tenant.id, number, master, "acme", work.clock())
        lock = "SELECT pg_try_advisory_xact_lock_shared(hashtextextended(%s, 0))"
        with psycopg.connect(world.dsn) as other:
            kept_out = other.execute(lock, (f"bill runs {own.tenant.id}",)).fetchone()
    assert kept_out == (False,), "who begins a run, or writes beside runs, waits for the end of this transaction"


def test_who_read_old_entries_with_the_news_of_the_erasure_reads_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A projector that slept puts an old entry back; a process reads it together with the change that says: anew."""
    own = ready(world)
    id = ask(own.tenant).json()["id"]
    elsewhere = MasterChain(world.store)
    before = {key: data for key, data in chain_of(own).items() if data is not None}
    rewrite, calls = pipelines.forgetting.rewrite_chain, list[int]()

    def with_a_late_entry(*given: Any) -> int:
        calls.append(given[-1])
        if len(calls) == 2:  # after the commit
            for key, data in before.items():
                assert world.store.replace(key, world.store.get(key) or b"", data)
            assert NAME in str(elsewhere.newest(own.tenant.id)[1].log)
        return rewrite(*given)

    monkeypatch.setattr(pipelines.forgetting, "rewrite_chain", with_a_late_entry)
    erasures_of(world.api.services).step(own.tenant.id, id)
    assert state_of(own.tenant, id) == ("objects", None)
    number, master = elsewhere.newest(own.tenant.id)
    assert NAME not in str(master.log)
    assert world.store.exists(change_key(own.tenant.id, number))
    assert number == calls[0] + 2, "one change with the erasure, one for who read between"


def test_usage_that_a_run_left_out_is_not_billed_yet(world: World) -> None:
    from storage.sql import retention_rules

    tenant = world.api.tenant()
    tenant.catalog()
    runs = []
    for up_to in ("2026-02-01", "2026-03-01"):
        made = tenant.post("/v1/bill-runs", {"up_to": up_to}).json()
        assert tenant.get(f"/v1/bill-runs/{made['id']}").json()["state"] == "done"
        runs.append(made["id"])

    def billed() -> datetime | None:
        with world.api.services.database.tenant(tenant.id) as connection:
            return retention_rules.billed_before(connection, datetime.now(UTC) + timedelta(days=1))

    assert billed() == datetime(2026, 2, 28, 23, tzinfo=UTC)
    left_out = """UPDATE bill_runs SET parked = '[{"customer": "acme", "code": "x", "reason": "y"}]' WHERE id = %s"""
    assert run(world, left_out, runs[1]) == 1
    assert billed() == datetime(2026, 1, 31, 23, tzinfo=UTC)
    assert run(world, left_out, runs[0]) == 1
    assert billed() is None
