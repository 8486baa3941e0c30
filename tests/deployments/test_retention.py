"""What no law keeps goes by its age, by rules that a tenant sets; nothing goes without one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from billing.errors import Unavailable
from pipelines.retention import Retention, months_before, needed
from storage.sql import retention_rules
from tests.deployments.conftest import Tenant
from tests.deployments.test_erasure import World, running_world

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory) as made:
        yield made


def retention_at(world: World, moment: datetime) -> Retention:
    return Retention(world.api.services.database, world.store, world.api.services.masters, lambda: moment)


def event(id: str, day: str) -> str:
    form = {"source": "s", "id": id, "type": "storage.write", "customer": "acme", "time": f"{day}T10:00:00Z"}
    return json.dumps(form | {"data": {"gb": "5"}})


def taken(world: World, tenant: Tenant, body: str) -> bool:
    """Whether usage was stored. A shard that had folded what was erased stops at some moment after that, and is started
    again: who sends then is told to send again."""
    return tenant.usage(body).is_success or (world.supervise() > 0 and tenant.usage(body).is_success)


def rows_of(tenant: Tenant) -> int:
    found = tenant.get("/v1/customers/acme/access-report").json()["usage"]
    return sum(one["rows"] for one in found if one["kind"] == "usage")


def rule_of(tenant: Tenant, name: str) -> Any:
    return next(one for one in tenant.get("/v1/retention").json()["rules"] if one["class"] == name)


def test_billed_usage_goes_so_many_months_after_its_invoice_and_no_other(world: World) -> None:
    tenant = world.api.tenant(late_usage="reject")
    tenant.catalog()
    assert taken(
        world, tenant, "\n".join([event("a", "2026-01-05"), event("b", "2026-01-31"), event("c", "2026-02-03")])
    )
    run = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).json()
    assert tenant.get(f"/v1/bill-runs/{run['id']}").json()["state"] == "done"
    assert tenant.get("/v1/retention").json() == {"rules": [], "alarm": None}
    now = datetime.now(UTC)
    assert retention_at(world, now + timedelta(days=4000)).round() == 0, "without a rule nothing goes"
    assert tenant.put("/v1/retention", {"usage": 6}).status_code == 200
    look(world, now + timedelta(days=150), tenant)
    assert rows_of(tenant) == 3, "five months after the invoice"
    look(world, now + timedelta(days=200), tenant)
    assert rows_of(tenant) == 1, "what was not billed stays, whatever its age"
    assert rule_of(tenant, "usage")["last_result"]["erased"] == 2
    assert "retention: 6 months" in json.dumps(
        [json.loads(world.store.get(key) or b"") for key in world.store.list(f"log/erasing/trail/{tenant.id}/")]
    )


def test_usage_stays_until_a_run_closed_what_was_billed_before_late_usage_was_rejected(world: World) -> None:
    tenant = world.api.tenant()
    tenant.catalog()
    assert taken(world, tenant, event("a", "2026-01-05"))
    tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"})
    assert tenant.post("/v1/tenant-settings", {"late_usage": "reject"}).status_code == 200
    assert tenant.put("/v1/retention", {"usage": 1}).status_code == 200
    look(world, datetime.now(UTC) + timedelta(days=40), tenant)
    assert rows_of(tenant) == 1
    assert rule_of(tenant, "usage")["last_result"]["held_by"] == "late usage of it would be billed yet"
    tenant.post("/v1/bill-runs", {"up_to": "2026-03-01"})
    look(world, datetime.now(UTC) + timedelta(days=80), tenant)
    assert rows_of(tenant) == 0


def of(customer: str, id: str, day: str) -> str:
    return json.dumps(json.loads(event(id, day)) | {"customer": customer})


def quarterly(tenant: Tenant) -> None:
    """Customer `qc` pays by the quarter, `acme` (of the catalog) by the month."""
    charge = {"code": "storage", "kind": "usage", "meter": "storage", "tax": "standard"}
    plan = {"code": "q", "currency": "EUR", "interval": "quarter"}
    plan["charges"] = [charge | {"price": {"model": "per_unit", "unit": "0.10"}}]  # type: ignore[assignment]
    steps = [
        {"at": "2026-01-01", "publish": {"plan": plan}},
        {"at": "2026-01-01", "customer": {"code": "qc", "name": "Q", "country": "DE"}},
        {"at": "2026-01-01", "subscribe": {"code": "sq", "customer": "qc", "plan": "q", "anchor": "calendar"}},
    ]
    assert tenant.post("/v1/steps", steps).status_code == 201


def test_usage_of_a_quarter_stays_until_the_quarter_is_billed(world: World) -> None:
    tenant = world.api.tenant(late_usage="reject")
    tenant.catalog()
    quarterly(tenant)
    assert taken(world, tenant, "\n".join([of("acme", "a", "2026-01-05"), of("qc", "q", "2026-01-05")]))
    run = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).json()
    assert tenant.get(f"/v1/bill-runs/{run['id']}").json()["state"] == "done"
    assert tenant.put("/v1/retention", {"usage": 1}).status_code == 200
    look(world, datetime.now(UTC) + timedelta(days=40), tenant)
    assert rows_of(tenant) == 1
    assert rule_of(tenant, "usage")["last_result"]["held_by"] == "a period of subscription sq that is not billed"
    run = tenant.post("/v1/bill-runs", {"up_to": "2026-04-01"}).json()
    tenant.post(f"/v1/bill-runs/{run['id']}/approve", {})
    billed = {one["customer"]: one["net"] for one in tenant.get("/v1/invoices").json()["items"]}
    assert billed == {"acme": "0.50", "qc": "0.50"}
    look(world, datetime.now(UTC) + timedelta(days=80), tenant)
    assert rows_of(tenant) == 0


def test_usage_in_suspense_and_of_budgets_and_levels_stays_and_the_rule_says_why(world: World) -> None:
    tenant = world.api.tenant(late_usage="reject")
    tenant.catalog()
    assert taken(world, tenant, "\n".join([of("acme", "a", "2026-01-05"), of("nobody", "n", "2026-01-06")]))
    tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"})
    assert tenant.put("/v1/retention", {"usage": 1}).status_code == 200
    look(world, datetime.now(UTC) + timedelta(days=40), tenant)
    assert rule_of(tenant, "usage")["last_result"]["held_by"] == "usage in suspense: correct or void it"
    assert rows_of(tenant) == 0, "what is older than the event in suspense goes"
    waiting = tenant.get("/v1/usage/suspense").json()["items"]
    assert [one["reason"] for one in waiting] == ["unknown_customer"]
    now = datetime(2026, 6, 1, tzinfo=UTC)
    _, master = world.api.services.masters.newest(tenant.id)
    february = datetime(2026, 1, 31, 23, tzinfo=UTC)
    assert [words for since, words in needed(master, february, now) if since < february] == []
    budget = {"code": "b", "customer": "acme", "amount": "9", "period": "year", "thresholds": ["50"]}
    level = {"code": "l", "event_type": "l", "aggregation": "time_weighted_sum", "value": "v"}
    charge = {"code": "l", "kind": "usage", "meter": "l", "tax": "standard"}
    plan = {"code": "p", "currency": "EUR", "interval": "month"}
    plan["charges"] = [charge | {"price": {"model": "per_unit", "unit": "1"}}]  # type: ignore[assignment]
    steps = [{"at": "2026-01-01", "budget": budget}, {"at": "2026-01-01", "meter": level}]
    steps += [{"at": "2026-01-01", "publish": {"plan": plan}}]
    steps += [{"at": "2026-01-01", "subscribe": {"code": "sl", "customer": "acme", "plan": "p", "anchor": "calendar"}}]
    held = dict((words, since) for since, words in needed(master.apply_all(steps), february, now))
    assert held["budget b"] == datetime(2025, 12, 31, 23, tzinfo=UTC)
    assert held["meter l: its last value counts on"] == datetime.min.replace(tzinfo=UTC)


def look(world: World, moment: datetime, tenant: Tenant) -> None:
    """Looks until the rule has nothing more to do, with shards started again that folded before."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        moment += timedelta(minutes=31)
        retention_at(world, moment).round()
        world.supervise()
        rule = rule_of(tenant, "usage")
        assert rule["error"] is None, rule
        if not rule["last_result"].get("more"):
            return
        time.sleep(0.1)
    raise AssertionError(rule)


def test_usage_does_not_go_by_age_where_late_usage_is_billed(world: World) -> None:
    tenant = world.api.tenant()
    answer = tenant.put("/v1/retention", {"usage": 6})
    assert answer.status_code == 409, answer.text
    with world.api.services.database.tenant(tenant.id) as connection:  # a rule of before such a check
        retention_rules.put(connection, tenant.id, {"usage": 6}, actor="x", now=datetime.now(UTC))
    retention_at(world, datetime.now(UTC) + timedelta(days=400)).round()
    assert "late usage is rejected" in rule_of(tenant, "usage")["error"]
    assert tenant.get("/v1/retention").json()["alarm"] == "retention fails: usage"
    for wrong in ({"usage": 0}, {"record": "6"}, {"record": True}, {"documents": 3}):
        assert tenant.put("/v1/retention", wrong).status_code == 422, wrong


def test_notifications_and_the_record_go_by_age_and_a_failure_is_an_alarm(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, other = world.api.tenant(), world.api.tenant()
    with world.api.services.database.tenant(tenant.id) as connection:
        for name, made in (("old", "2020-01-01"), ("waits", "2020-01-01"), ("new", "2026-11-01")):
            connection.execute(
                "INSERT INTO webhook_messages (tenant_id, id, event_type, made_at, body)"
                " VALUES (current_tenant(), %s, 't', %s, '{}')",
                (name, made),
            )
        connection.execute(
            "INSERT INTO webhook_endpoints (tenant_id, id, url, event_types, secret, created_at, created_by)"
            " VALUES (current_tenant(), gen_random_uuid(), 'https://e.example', '{}', 's', now(), 'x')"
        )
        connection.execute(
            "INSERT INTO webhook_deliveries (tenant_id, message_id, endpoint_id, state, next_at)"
            " SELECT current_tenant(), 'waits', id, 'waiting', now() FROM webhook_endpoints"
        )
    assert tenant.put("/v1/retention", {"notifications": 12, "record": 12}).status_code == 200
    now = datetime.now(UTC) + timedelta(minutes=1)
    assert retention_at(world, now).round() == 2
    with world.api.services.database.tenant(tenant.id) as connection:
        rows = connection.execute("SELECT id FROM webhook_messages ORDER BY id").fetchall()
        assert [row["id"] for row in rows] == ["new", "waits"]
    assert len(tenant.get("/v1/audit").json()["items"]) >= 2
    assert retention_at(world, now + timedelta(days=400)).round() >= 2
    with world.api.services.database.tenant(tenant.id) as connection:
        assert connection.execute("SELECT 1 FROM audit_entries").fetchall() == []
    assert other.get("/v1/audit").json()["items"], "another tenant's record stays"

    def away(*_: object) -> int:
        raise Unavailable("the database is away")

    monkeypatch.setattr("storage.sql.retention_rules.delete_record", away)
    retention_at(world, now + timedelta(days=402)).round()
    assert tenant.get("/v1/retention").json()["alarm"] == "retention fails: record"
    monkeypatch.undo()
    retention_at(world, now + timedelta(days=403)).round()
    assert tenant.get("/v1/retention").json()["alarm"] is None
    assert tenant.put("/v1/retention", {"record": None}).json()["rules"][0]["class"] == "notifications"


def test_months_are_months_of_the_calendar() -> None:
    assert months_before(datetime(2026, 8, 31, tzinfo=UTC), 6) == datetime(2026, 2, 28, tzinfo=UTC)
    assert months_before(datetime(2026, 3, 15, tzinfo=UTC), 3) == datetime(2025, 12, 15, tzinfo=UTC)
    assert months_before(datetime(2024, 3, 30, tzinfo=UTC), 1) == datetime(2024, 2, 29, tzinfo=UTC)
