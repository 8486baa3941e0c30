"""Budgets as they stand and their alerts over REST."""

from typing import Any
from uuid import uuid4

import pytest

from tests.deployments.conftest import Api, Tenant

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def tenant(api: Api) -> Tenant:
    made = api.tenant()
    made.catalog()
    return made


def budgeted(tenant: Tenant, *budgets: dict[str, Any]) -> str:
    code = f"b-{uuid4().hex[:8]}"
    steps: list[dict[str, Any]] = [
        {"at": "2026-01-01", "customer": {"code": code, "name": code, "country": "DE"}},
        {"at": "2026-01-01", "subscribe": {"code": code, "customer": code, "plan": "basic", "anchor": "calendar"}},
    ]
    steps += [{"budget": {"code": f"{code}-{place}", "customer": code, **one}} for place, one in enumerate(budgets)]
    answer = tenant.post("/v1/steps", steps)
    assert answer.status_code == 201, answer.text
    return code


def use(tenant: Tenant, code: str, gb: str, time: str) -> None:
    event = {"source": "t", "id": uuid4().hex, "type": "storage.write", "customer": code, "time": time}
    answer = tenant.post("/v1/usage", [event | {"data": {"gb": gb}}])
    assert answer.json()["accepted"] == 1, answer.text


def test_alerts_come_in_the_order_of_the_log_page_by_page(tenant: Tenant) -> None:
    one = budgeted(tenant, {"amount": "10", "period": "month", "thresholds": ["50", "100"]})
    other = budgeted(tenant, {"amount": "1", "period": "year", "thresholds": ["100"]})
    use(tenant, one, "60", "2026-03-05T10:00:00+01:00")
    use(tenant, other, "20", "2026-03-06T10:00:00+01:00")
    use(tenant, one, "60", "2026-03-07T10:00:00+01:00")
    expected = [(f"{one}-0", "50"), (f"{other}-0", "100"), (f"{one}-0", "100")]
    found: list[dict[str, Any]] = []
    cursor = ""
    for _ in range(3):
        page = tenant.get(f"/v1/alerts?limit=1{cursor}").json()
        found += page["items"]
        cursor = f"&cursor={page['next_cursor']}"
    assert [(alert["budget"], alert["threshold"]) for alert in found] == expected
    assert page["next_cursor"] is None
    mine = tenant.get(f"/v1/alerts?customer={one}").json()["items"]
    assert [alert["threshold"] for alert in mine] == ["50", "100"]
    assert tenant.get(f"/v1/alerts?budget={other}-0").json()["items"] == [found[1]]
    assert tenant.get("/v1/alerts?customer=nobody").status_code == 404


def test_the_state_of_a_budget_is_that_of_its_running_period(tenant: Tenant) -> None:
    thresholds = ["50", {"amount": "4.50"}]
    code = budgeted(
        tenant, {"amount": "10", "period": "month", "thresholds": thresholds}, {"amount": "7", "period": "day"}
    )
    assert tenant.get("/v1/budgets/nowhere/state").status_code == 404
    state = tenant.get(f"/v1/budgets/{code}-0/state").json()
    assert (state["customer"], state["spent"], state["left"], state["percent"]) == (code, "0.00", "10.00", "0")
    assert state["thresholds"] == [
        {"threshold": {"amount": "4.5"}, "amount": "4.50", "crossed_at": None},
        {"threshold": "50", "amount": "5.00", "crossed_at": None},
    ]
    listed = tenant.get(f"/v1/budget-states?customer={code}").json()["items"]
    assert [one["budget"] for one in listed] == [f"{code}-0", f"{code}-1"]
