"""Suspense: searched by what is wrong with it, corrected all at once, and never twice."""

from typing import Any

import pytest

from tests.deployments.conftest import Api, Tenant
from tests.deployments.test_amendments_over_rest import event, quantity, send, totals, trail

pytestmark = pytest.mark.postgres


@pytest.fixture
def tenant(api: Api) -> Tenant:
    made = api.tenant(kind="test", test_clock="2026-01-10", late_usage="delta")
    made.catalog()
    send(
        made,
        *[event(f"old-{n}", customer="acme-old", time=f"2026-01-0{n + 1}T12:00:00Z") for n in range(5)],
        event("typo", type="storage.wirte"),
        event("text", data={"gb": "many", "note": "100% wrong"}),
        event("other", customer="nobody", source="b"),
        event("fine"),
    )
    return made


def ids(tenant: Tenant, query: str) -> list[str]:
    answer = tenant.get(f"/v1/usage/suspense?{query}")
    assert answer.status_code == 200, answer.text
    return sorted(item["id"] for item in answer.json()["items"])


def replay(tenant: Tenant, body: dict[str, Any], query: str = "") -> Any:
    return tenant.post(f"/v1/usage/suspense/replay{query}", body)


def test_what_is_in_suspense_is_found_by_reason_key_source_time_and_text(tenant: Tenant) -> None:
    old = [f"old-{n}" for n in range(5)]
    assert ids(tenant, "reason=unknown_customer") == sorted([*old, "other"])
    assert ids(tenant, "customer=acme-old&since=2026-01-02&until=2026-01-04") == ["old-1", "old-2"]
    assert ids(tenant, "source=b") == ["other"]
    assert ids(tenant, "q=%25 wrong") == ["text"]
    assert ids(tenant, "q=old-3") == ["old-3"]
    assert ids(tenant, "type=storage.write&reason=invalid_value") == ["text"]
    assert tenant.get("/v1/usage/suspense?since=yesterday").status_code == 422
    assert len(tenant.get("/v1/usage/suspense?limit=2&customer=acme-old").json()["items"]) == 2


def test_all_that_a_filter_finds_is_corrected_with_its_trail_and_only_once(tenant: Tenant) -> None:
    body = {"filter": {"customer": "acme-old"}, "changes": {"customer": "acme"}, "reason": "renamed"}
    before = quantity(tenant)
    tried = replay(tenant, body, "?dry_run=true").json()
    assert (tried["corrected"], tried["dry_run"], tried["more"]) == (5, True, False)
    assert quantity(tenant) == before
    done = replay(tenant, body).json()
    assert (done["corrected"], done["refused"]) == (5, 0)
    assert {(item["before"], item["after"]) for item in done["items"]} == {("unknown_customer", None)}
    assert int(quantity(tenant)) == int(before) + 5
    assert trail(tenant, "old-2")["amendments"][0]["reason"] == "renamed"
    again = replay(tenant, body).json()
    assert (again["corrected"], again["items"]) == (0, [])
    assert totals(tenant)["stored"] == 9


def test_a_request_that_says_nothing_changes_nothing(tenant: Tenant) -> None:
    for body in (
        {"filter": {}, "changes": {"customer": "acme"}},
        {"filter": {"reason": "unknown_customer"}, "changes": {}},
        {"filter": {"wrong": "x"}, "changes": {"customer": "acme"}},
        {"filter": {"reason": "unknown_customer"}, "changes": {"id": "x"}},
        {"changes": {"customer": "acme"}},
    ):
        assert replay(tenant, body).status_code == 422, body
    reader = tenant.key_with("usage:read")
    body = {"filter": {"reason": "unknown_customer"}, "changes": {"customer": "acme"}}
    assert tenant.post("/v1/usage/suspense/replay", body, key=reader).status_code == 403
    assert len(ids(tenant, "reason=unknown_customer")) == 6
