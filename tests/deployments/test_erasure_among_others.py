"""An erasure beside what goes on: bill runs, customers with like codes, repeats, contracts that come meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deployments.erasures import erasures_of
from storage.master_chain import MasterChain
from tests.deployments.conftest import Tenant
from tests.deployments.test_erasure import World, running_world

pytestmark = pytest.mark.postgres
EVENT = {"source": "s", "type": "storage.write", "data": {"gb": "5"}}


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory) as made:
        yield made


def of(world: World, tenant: Tenant) -> World:
    return World(world.api, tenant, world.store, world.dsn, world.data)


def use(tenant: Tenant, *rows: tuple[str, str, str]) -> None:
    """(customer, day, gigabytes) each."""
    events = [
        EVENT | {"id": f"{code}-{day}", "customer": code, "time": f"{day}T10:00:00Z", "data": {"gb": gb}}
        for code, day, gb in rows
    ]
    assert tenant.usage("\n".join(json.dumps(one) for one in events)).is_success


def steps(tenant: Tenant, *made: dict[str, Any]) -> None:
    answer = tenant.post("/v1/steps", list(made))
    assert answer.status_code == 201, answer.text


def customer(code: str, **form: Any) -> dict[str, Any]:
    return {"at": "2026-01-01", "customer": {"code": code, "name": code, "country": "DE", **form}}


def subscribed(code: str, of: str) -> dict[str, Any]:
    return {"at": "2026-01-01", "subscribe": {"code": code, "customer": of, "plan": "basic", "anchor": "calendar"}}


def run_up_to(tenant: Tenant, day: str) -> Any:
    run = tenant.post("/v1/bill-runs", {"up_to": day}).json()
    return tenant.get(f"/v1/bill-runs/{run['id']}").json()


def ask(tenant: Tenant, code: str) -> str:
    answer = tenant.post(f"/v1/customers/{code}/erasure", {"rule": "GDPR 17"})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def asked_before_a_run(world: World) -> tuple[World, Tenant, str, str]:
    """acme's erasure is asked for, then a run begins that waits for approval: (.., erasure, run)."""
    tenant = world.api.tenant()
    tenant.catalog()
    steps(tenant, customer("other"), subscribed("so", "other"))
    use(tenant, ("acme", "2026-01-05", "1"), ("other", "2026-01-05", "5"), ("other", "2026-02-05", "14"))
    steps(tenant, {"at": "2026-02-01", "cancel": {"subscription": "s1"}})
    assert run_up_to(tenant, "2026-02-01")["state"] == "done"
    erasure = ask(tenant, "acme")
    run = run_up_to(tenant, "2026-03-01")
    assert run["state"] == "computed", run["state"]
    return of(world, tenant), tenant, erasure, str(run["id"])


def test_an_erasure_waits_for_a_run_before_it_writes_anything(
    asked_before_a_run: tuple[World, Tenant, str, str],
) -> None:
    world, tenant, erasure, run = asked_before_a_run
    work = erasures_of(world.api.services)
    later = datetime.now(UTC) + timedelta(minutes=11)
    object.__setattr__(work, "clock", lambda: later)
    work.step(tenant.id, erasure)
    assert "bill run is going on" in tenant.get(f"/v1/erasures/{erasure}").json()["error"]
    assert "acme" in MasterChain(world.store).newest(tenant.id)[1].customers, "the chain was written before the check"
    assert tenant.post(f"/v1/bill-runs/{run}/approve", {}).is_success
    assert tenant.get(f"/v1/bill-runs/{run}").json()["state"] == "done"
    assert sorted(one["customer"] for one in tenant.get("/v1/invoices").json()["items"]) == ["acme", "other", "other"]


def test_a_contract_that_comes_after_the_asking_holds_the_erasure(world: World) -> None:
    tenant = world.api.tenant()
    tenant.catalog()
    use(tenant, ("acme", "2026-01-05", "5"))
    steps(tenant, {"at": "2026-02-01", "cancel": {"subscription": "s1"}})
    run_up_to(tenant, "2026-02-01")
    erasure = ask(tenant, "acme")
    steps(tenant, subscribed("s9", "acme") | {"at": "2026-02-02"})
    erasures_of(world.api.services).step(tenant.id, erasure)
    found = tenant.get(f"/v1/erasures/{erasure}").json()
    assert "'s9' has no end" in found["error"], found
    assert "acme" in MasterChain(world.store).newest(tenant.id)[1].customers


def test_a_contract_that_is_not_billed_to_its_end_is_in_the_way(world: World) -> None:
    tenant = world.api.tenant()
    tenant.catalog()
    use(tenant, ("acme", "2026-01-05", "5"), ("acme", "2026-02-05", "5"))
    run_up_to(tenant, "2026-02-01")
    steps(tenant, {"at": "2026-02-20", "cancel": {"subscription": "s1"}})
    refused = tenant.post("/v1/customers/acme/erasure", {"rule": "GDPR 17", "dry_run": True})
    assert refused.status_code == 409
    assert "not billed up to its end: run the bills up to 2026-02-20" in refused.json()["detail"]


def test_customers_whose_codes_begin_alike_are_left_alone(world: World) -> None:
    tenant = world.api.tenant()
    tenant.catalog()
    steps(tenant, customer("acme-group"), customer("acme-2"), customer("acme.de"), subscribed("s2", "acme-2"))
    steps(tenant, {"at": "2026-01-01", "customer": {"code": "acme", "payer": "acme-group"}})
    use(tenant, ("acme", "2026-01-05", "5"), ("acme-2", "2026-01-05", "5"))
    assert run_up_to(tenant, "2026-02-01")["state"] == "done"
    assert [one["customer"] for one in tenant.get("/v1/invoices?customer=acme-group").json()["items"]] == ["acme-group"]
    steps(
        tenant,
        {"at": "2026-02-01", "cancel": {"subscription": "s1"}},
        {"at": "2026-02-01", "customer": {"code": "acme", "payer": None}},
    )
    of(world, tenant).drive(ask(tenant, "acme"))
    listed = [one["customer"] for one in tenant.get("/v1/invoices").json()["items"]]
    assert sorted(listed) == ["acme-2", "acme-group"]
    for code in ("acme-group", "acme-2", "acme.de"):
        assert tenant.get(f"/v1/customers/{code}").status_code == 200
    with world.api.services.database.tenant(tenant.id) as connection:
        bodies = [str(row) for row in connection.execute("SELECT * FROM outbox").fetchall()]
    assert not [one for one in bodies if "-group" in one and "erased-" in one.split("-group")[0][-26:]]


def test_a_request_of_others_that_is_repeated_after_an_erasure_is_still_a_repeat(world: World) -> None:
    tenant = world.api.tenant()
    tenant.catalog()
    steps(tenant, customer("me"))
    use(tenant, ("acme", "2026-01-05", "500"))
    run_up_to(tenant, "2026-02-01")
    number = tenant.get("/v1/invoices").json()["items"][0]["number"]
    body = {"document": number, "lines": [{"line": 1, "amount": "5.00"}]}
    first = tenant.post("/v1/credit-notes", body, **{"Idempotency-Key": "once"})
    assert first.status_code == 201, first.text
    of(world, tenant).drive(ask(tenant, "me"))
    again = tenant.post("/v1/credit-notes", body, **{"Idempotency-Key": "once"})
    assert again.json()["number"] == first.json()["number"]
    assert len(tenant.get("/v1/invoices").json()["items"]) == 2
