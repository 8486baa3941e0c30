"""Corrections of events in suspense, amended and voided events, over REST: what they change, and what stays."""

import json
from datetime import date
from typing import Any

import pytest

from billing.errors import Conflict
from pipelines.bill_run import BillRunDriver
from storage.sql import bill_runs
from storage.usage_log import reused_ids
from tests.deployments.conftest import Api, Tenant


@pytest.fixture
def tenant(api: Api) -> Tenant:
    made = api.tenant(kind="test", test_clock="2026-01-10", late_usage="delta")
    made.catalog()
    return made


def event(id_: str, **fields: Any) -> dict[str, Any]:
    form = {"source": "a", "id": id_, "type": "storage.write", "customer": "acme", "time": "2026-01-09T12:00:00+01:00"}
    return form | {"data": {"gb": "1"}} | fields


def send(tenant: Tenant, *events: dict[str, Any]) -> Any:
    answer = tenant.usage("\n".join(json.dumps(one) for one in events))
    assert answer.status_code == 200, answer.text
    return answer.json()


def correct(tenant: Tenant, *corrections: dict[str, Any], query: str = "", **more: Any) -> Any:
    return tenant.post(f"/v1/usage/suspense/corrections{query}", {"corrections": list(corrections)} | more)


def amend(tenant: Tenant, *amendments: dict[str, Any], reason: str = "meter read twice") -> Any:
    return tenant.post("/v1/usage/amendments", {"amendments": list(amendments), "reason": reason})


def suspense(tenant: Tenant) -> list[tuple[str, str]]:
    """By id: what comes at one time of a test clock into different lanes has no order."""
    return sorted((item["id"], item["reason"]) for item in tenant.get("/v1/usage/suspense").json()["items"])


def quantity(tenant: Tenant, customer: str = "acme") -> str:
    meters = tenant.get(f"/v1/usage?customer={customer}").json()["meters"]
    return meters[0]["quantity"] if meters else "0"


def trail(tenant: Tenant, id_: str) -> Any:
    (item,) = tenant.get(f"/v1/usage/trail?source=a&id={id_}").json()["items"]
    return item


def totals(tenant: Tenant) -> Any:
    answer = tenant.get("/v1/usage/completeness?prove=true").json()
    assert answer["proof"]["complete"], answer
    assert answer["proof"]["counted"] == answer["totals"]["stored"]
    return answer["totals"]


def run(tenant: Tenant, up_to: str) -> list[Any]:
    """Advance the clock, run, and give the lines of the documents that the run made."""
    assert tenant.post("/v1/test-clock/advance", {"to": up_to}).status_code == 200
    before = {item["number"] for item in tenant.get("/v1/invoices").json()["items"]}
    answer = tenant.post("/v1/bill-runs", {"up_to": up_to, "approve": True})
    assert answer.status_code in (200, 201, 202), answer.text
    numbers = [item["number"] for item in tenant.get("/v1/invoices").json()["items"] if item["number"] not in before]
    lines = []
    for number in numbers:
        document = tenant.get(f"/v1/invoices/{number}").json()
        lines += [(line["quantity"], line["amount"], line["correction"]) for line in document["lines"]]
    return lines


def test_corrected_events_count_and_what_they_said_first_stays_readable(tenant: Tenant) -> None:
    send(
        tenant,
        event("e1", customer="new"),
        event("e2", type="storage.wirte", data={"gb": "2"}),
        event("e3", data={}),
        event("e4", data={"gb": "many"}),
    )
    assert suspense(tenant) == [
        ("e1", "unknown_customer"), ("e2", "unknown_type"), ("e3", "missing_property"), ("e4", "invalid_value")
    ]  # fmt: skip
    dry = correct(tenant, {"source": "a", "id": "e2", "type": "storage.write"}, query="?dry_run=true").json()
    assert (dry["dry_run"], dry["items"][0]["before"], dry["items"][0]["after"]) == (True, "unknown_type", None)
    assert quantity(tenant) == "0"

    wanted = ({"source": "a", "id": "e2", "type": "storage.write"}, {"source": "a", "id": "e4", "data": {"gb": "8"}})
    answer = correct(tenant, *wanted, reason="sender's mistake").json()
    assert (answer["corrected"], answer["refused"]) == (2, 0)
    assert [item["after"] for item in answer["items"]] == [None, None]
    assert quantity(tenant) == "10"
    assert suspense(tenant) == [("e1", "unknown_customer"), ("e3", "missing_property")]
    assert totals(tenant) == {"stored": 4, "rated": 2, "suspended": 2, "voided": 0}
    again = correct(tenant, *wanted).json()
    assert again["unchanged"] == 2, "the same request again does no harm"

    told = trail(tenant, "e2")
    assert told["sent"]["type"] == "storage.wirte"
    assert told["counts_as"]["type"] == "storage.write"
    (change,) = told["amendments"]
    assert (change["reason"], change["at"], change["pending"]) == ("sender's mistake", "2026-01-09T23:00:00Z", False)
    assert change["by"].startswith("key ")
    send(tenant, event("e2"))
    assert totals(tenant)["stored"] == 4, "its id stays taken"


def test_a_correction_to_another_customer_moves_the_event_whole(tenant: Tenant) -> None:
    for code in ("globex", "initech"):
        assert tenant.post("/v1/customers", {"code": code, "name": code, "country": "DE"}).status_code == 201
        form = {"code": f"s-{code}", "customer": code, "plan": "basic", "anchor": "calendar", "start": "2026-01-01"}
        assert tenant.post("/v1/subscriptions", form).status_code == 201
    send(tenant, event("m1", customer="typo", data={"gb": "5"}), event("m2"))
    assert correct(tenant, {"source": "a", "id": "m1", "customer": "globex"}).json()["corrected"] == 1
    assert (quantity(tenant), quantity(tenant, "globex")) == ("1", "5")
    assert amend(tenant, {"source": "a", "id": "m1", "customer": "initech", "data": {"gb": "7"}}).status_code == 200
    assert (quantity(tenant, "globex"), quantity(tenant, "initech")) == ("0", "7")
    assert amend(tenant, {"source": "a", "id": "m1", "customer": "typo"}).status_code == 200
    assert (quantity(tenant, "globex"), quantity(tenant, "initech")) == ("0", "0")
    assert suspense(tenant) == [("m1", "unknown_customer")]
    assert amend(tenant, {"source": "a", "id": "m1", "customer": "acme"}).status_code == 200
    assert quantity(tenant) == "8"
    assert [one["nth"] for one in trail(tenant, "m1")["amendments"]] == [1, 2, 3, 4]
    assert totals(tenant) == {"stored": 2, "rated": 2, "suspended": 0, "voided": 0}
    listed = tenant.get("/v1/events?customer=acme").json()["items"]
    assert {one["id"]: one["amended"] for one in listed} == {"m1": True, "m2": False}


def test_amended_and_voided_events_are_settled_like_late_usage(tenant: Tenant) -> None:
    send(tenant, event("a1", data={"gb": "10"}), event("a2", data={"gb": "20"}), event("a3", data={"gb": "30"}))
    assert run(tenant, "2026-02-01") == [("60", "6.00", False)]
    assert amend(tenant, {"source": "a", "id": "a1", "data": {"gb": "15"}}).json()["corrected"] == 1
    assert amend(tenant, {"source": "a", "id": "a2", "void": True}).json()["corrected"] == 1
    moved = {"source": "a", "id": "a3", "time": "2026-02-01T00:30:00+01:00"}
    assert amend(tenant, moved).json()["corrected"] == 1
    assert totals(tenant) == {"stored": 3, "rated": 2, "suspended": 0, "voided": 1}
    lines = run(tenant, "2026-03-01")
    # In sum less than nothing, so a credit note: February's 30 against 45 of January.
    assert sorted(lines) == [("-30", "-3.00", False), ("45", "4.50", True)]
    assert not any(correction for _, _, correction in run(tenant, "2026-04-01"))


def test_a_tenant_that_rejects_late_usage_keeps_it_out_for_good_until_it_is_corrected_into_open_time(api: Api) -> None:
    tenant = api.tenant(kind="test", test_clock="2026-01-10", late_usage="reject")
    tenant.catalog()
    send(tenant, event("r1"))
    assert run(tenant, "2026-02-01") == [("1", "0.10", False)]
    send(tenant, event("r2"), event("r3"), event("r4"))
    assert suspense(tenant) == [("r2", "late"), ("r3", "late"), ("r4", "late")], "what was billed in time is not late"
    same_time = correct(tenant, {"source": "a", "id": "r4", "data": {"gb": "4"}}).json()
    assert same_time["items"][0]["after"] == "late"
    moved = {"source": "a", "id": "r2", "time": "2026-02-01T00:30:00+01:00"}
    assert correct(tenant, moved).json()["items"][0]["after"] is None
    assert run(tenant, "2026-03-01") == [("1", "0.10", False)]
    assert suspense(tenant) == [("r3", "late"), ("r4", "late")]
    assert run(tenant, "2026-04-01") == [], "two runs later it is still late"
    assert suspense(tenant) == [("r3", "late"), ("r4", "late")]
    # Somebody decides that an event that was billed is wrong: that counts, whatever the tenant does with late usage.
    assert amend(tenant, {"source": "a", "id": "r1", "data": {"gb": "11"}}).json()["items"][0]["after"] is None
    assert run(tenant, "2026-05-01") == [("10", "1.00", True)]
    runs = tenant.get("/v1/bill-runs").json()["items"]
    for one in runs:
        proof = tenant.get(f"/v1/bill-runs/{one['id']}/verify")
        assert proof.status_code == 200, proof.text
        assert proof.json()["proven"], proof.text


def test_what_cannot_be_changed_is_refused_with_its_place(tenant: Tenant) -> None:
    send(tenant, event("x1"), event("x2", data={}))
    counted = correct(tenant, {"source": "a", "id": "x1", "data": {"gb": "2"}})
    assert counted.status_code == 409
    assert counted.json()["errors"] == [
        {"pointer": "/corrections/0", "detail": "the event is not in suspense; amend it"}
    ]
    assert correct(tenant, {"source": "a", "id": "nobody", "type": "t"}).status_code == 404
    twice = correct(tenant, *[{"source": "a", "id": "x2", "data": {"gb": str(n)}} for n in (1, 2)]).json()
    assert (twice["corrected"], twice["refused"]) == (1, 1)
    for body, pointer in (
        ({"source": "a", "id": "x2"}, "/corrections/0"),
        ({"source": "a", "type": "t"}, "/corrections/0/id"),
        ({"source": "a", "id": "x2", "time": "soon"}, "/corrections/0/time"),
        ({"source": "a", "id": "x2", "data": []}, "/corrections/0/data"),
        ({"source": "a", "id": "x2", "void": True}, "/corrections/0/void"),
    ):
        answer = correct(tenant, body)
        assert answer.status_code == 422, answer.text
        assert pointer in [one["pointer"] for one in answer.json()["errors"]]
    no_reason = tenant.post("/v1/usage/amendments", {"amendments": [{"source": "a", "id": "x1", "void": True}]})
    assert no_reason.json()["errors"][0]["pointer"] == "/amendments/0/reason"
    assert tenant.get("/v1/usage/trail?source=a&id=nobody").status_code == 404
    gateway = tenant.key_with("usage:write", "usage:read")
    assert tenant.post("/v1/usage/amendments", {}, key=gateway).status_code == 403
    assert tenant.post("/v1/usage/suspense/corrections", {}, key=gateway).status_code == 422


def test_one_id_under_two_customers_is_billed_once_and_told_with_the_run(tenant: Tenant) -> None:
    assert tenant.post("/v1/customers", {"code": "globex", "name": "Globex", "country": "DE"}).status_code == 201
    form = {"code": "s-g", "customer": "globex", "plan": "basic", "anchor": "calendar", "start": "2026-01-01"}
    assert tenant.post("/v1/subscriptions", form).status_code == 201
    send(tenant, event("d1"), event("d2"))
    tenant.post("/v1/test-clock/advance", {"to": "2026-01-11"})
    send(tenant, event("d1", customer="globex"))
    assert run(tenant, "2026-02-01") == [("2", "0.20", False)]
    (done,) = tenant.get("/v1/bill-runs").json()["items"]
    assert done["findings"] == [
        {"code": "id_reused", "events": 1, "listed": [{"source": "a", "id": "d1", "customer": "globex"}]}
    ]
    assert totals(tenant) == {"stored": 3, "rated": 2, "suspended": 0, "voided": 1}
    items = tenant.get("/v1/usage/trail?source=a&id=d1").json()["items"]
    assert [(item["voided"], [one["reason"] for one in item["amendments"]]) for item in items] == [
        (False, []), (True, ["id_reused"])
    ]  # fmt: skip
    run(tenant, "2026-03-01")
    newest = tenant.get("/v1/bill-runs").json()["items"][0]
    assert newest["findings"] == []


def with_one_id_of_two_customers(tenant: Tenant, later: str = "2026-01-11") -> list[dict[str, Any]]:
    """Usage of acme and, `later`, globex, who sends an id that acme has; the finding that this gives."""
    assert tenant.post("/v1/customers", {"code": "globex", "name": "Globex", "country": "DE"}).status_code == 201
    send(tenant, event("d1"), event("d2"))
    assert tenant.post("/v1/test-clock/advance", {"to": later}).status_code == 200
    send(tenant, event("d1", customer="globex"))
    return [{"code": "id_reused", "events": 1, "listed": [{"source": "a", "id": "d1", "customer": "globex"}]}]


def findings_of_newest(tenant: Tenant) -> Any:
    return tenant.get("/v1/bill-runs").json()["items"][0]["findings"]


def test_while_a_run_goes_on_another_plan_voids_nothing(tenant: Tenant) -> None:
    assert tenant.post("/v1/test-clock/advance", {"to": "2026-02-01"}).status_code == 200
    waiting = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01", "approve": False}).json()
    finding = with_one_id_of_two_customers(tenant, "2026-02-02")
    refused = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01", "approve": True})
    assert (refused.status_code, "is going on" in refused.json()["detail"]) == (409, True)
    assert totals(tenant)["voided"] == 0
    assert tenant.post(f"/v1/bill-runs/{waiting['id']}/cancel", {}).status_code < 300
    run(tenant, "2026-02-03")
    assert findings_of_newest(tenant) == finding


def test_what_a_plan_voided_that_came_to_nothing_is_told_by_every_run_until_one_is_final(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = with_one_id_of_two_customers(tenant)
    assert tenant.post("/v1/test-clock/advance", {"to": "2026-02-01"}).status_code == 200

    def lost(*_: Any, **__: Any) -> None:
        raise Conflict("another run took the place at this very moment")

    with monkeypatch.context() as patched:
        patched.setattr(bill_runs, "create", lost)
        assert tenant.post("/v1/bill-runs", {"up_to": "2026-02-01", "approve": True}).status_code == 409
    assert totals(tenant)["voided"] == 1
    given_up = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01", "approve": False}).json()
    assert findings_of_newest(tenant) == finding
    assert tenant.post(f"/v1/bill-runs/{given_up['id']}/cancel", {}).status_code < 300
    run(tenant, "2026-02-01")
    assert findings_of_newest(tenant) == finding
    run(tenant, "2026-03-01")
    assert findings_of_newest(tenant) == []


def test_a_process_that_dies_between_voiding_and_planning_leaves_its_finding_to_the_next(tenant: Tenant) -> None:
    finding = with_one_id_of_two_customers(tenant)
    assert tenant.post("/v1/test-clock/advance", {"to": "2026-02-01"}).status_code == 200
    services = tenant.api.services

    class Killed(BaseException):
        """Nothing catches it, as nothing catches SIGKILL."""

    def kill(step: str) -> None:
        if step == "ids compared":
            raise Killed

    dying = BillRunDriver(
        services.database, services.store, services.masters, services.archive, services.clock,
        desk=services.desk, checkpoint=kill,
    )  # fmt: skip
    with pytest.raises(Killed):
        dying.plan(tenant.id, date(2026, 2, 1), "ann")
    assert tenant.get("/v1/bill-runs").json()["items"] == []
    assert totals(tenant)["voided"] == 1
    run(tenant, "2026-02-01")
    assert findings_of_newest(tenant) == finding


def test_one_amendment_id_twice_in_a_request_is_refused_with_its_place(tenant: Tenant) -> None:
    send(tenant, event("f1"), event("f2"))
    voids = [{"source": "a", "id": id_, "void": True, "amendment": "fix-1"} for id_ in ("f1", "f2")]
    answer = amend(tenant, *voids)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/amendments/1/amendment"]
    assert totals(tenant)["voided"] == 0


def test_a_sender_that_numbers_per_customer_loses_nothing_and_each_run_says_what_to_do(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reused_ids, "SUSPECTS_MAX", 1)
    assert tenant.post("/v1/customers", {"code": "globex", "name": "Globex", "country": "DE"}).status_code == 201
    for customer in ("acme", "globex"):
        send(tenant, *(event(id_, customer=customer) for id_ in ("n1", "n2")))
    for up_to in ("2026-02-01", "2026-03-01"):
        run(tenant, up_to)
        (finding,) = tenant.get("/v1/bill-runs").json()["items"][0]["findings"]
        assert (finding["code"], finding["ids"]) == ("id_reused_often", 2)
        assert finding["sources"] == [{"source": "a", "ids": 2}]
        assert "unique_within_customer" in finding["detail"]
    assert totals(tenant)["voided"] == 0
