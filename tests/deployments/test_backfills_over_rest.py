"""Backfills over REST: what they change in figures, suspense, completeness and bills, committed and taken back."""

import json
from pathlib import Path
from typing import Any

import pytest

from billing.errors import InvalidInput, Unavailable
from cluster import backfill_command
from cluster.client import Client
from tests.deployments.conftest import Api, Tenant
from tests.deployments.test_amendments_over_rest import amend, event, quantity, run, send, suspense, totals, trail


@pytest.fixture
def tenant(api: Api) -> Tenant:
    made = api.tenant(kind="test", test_clock="2026-01-10", late_usage="delta")
    made.catalog()
    return made


def fill(tenant: Tenant, name: str, *events: dict[str, Any]) -> Any:
    body = "\n".join(json.dumps(one) for one in events)
    headers = {"Authorization": f"Bearer {tenant.key}", "Content-Type": "application/x-ndjson"}
    return tenant.api.http.post(f"/v1/usage/backfills/{name}/events", content=body, headers=headers)


def opened(tenant: Tenant, name: str, *events: dict[str, Any]) -> Any:
    assert tenant.post("/v1/usage/backfills", {"backfill": name, "note": "gateway away"}).status_code == 201
    answer = fill(tenant, name, *events)
    assert answer.status_code == 200, answer.text
    return answer.json()


def commit(tenant: Tenant, name: str) -> Any:
    answer = tenant.post(f"/v1/usage/backfills/{name}/commit", {})
    assert answer.status_code == 200, answer.text
    return answer.json()


def revert(tenant: Tenant, name: str) -> Any:
    answer = tenant.post(f"/v1/usage/backfills/{name}/revert", {"reason": "wrong unit"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def invoices(tenant: Tenant) -> Any:
    return tenant.get("/v1/invoices").json()["items"]


def test_nothing_of_a_backfill_shows_before_it_is_committed_then_all_and_after_its_revert_nothing(
    tenant: Tenant,
) -> None:
    send(tenant, event("e1"))
    counts = opened(
        tenant, "b1", event("e1"), event("b1", data={"gb": "2"}), event("b2", data={"gb": "4"}), event("b3", type="odd")
    )
    assert (counts["accepted"], counts["duplicates"], counts["rejected"]) == (3, 1, 0)
    assert (quantity(tenant), suspense(tenant)) == ("1", [])
    assert totals(tenant) == {"stored": 1, "rated": 1, "suspended": 0, "voided": 0}
    estimate = tenant.get("/v1/usage/backfills/b1/estimate").json()
    assert (estimate["events"], estimate["suspended"], estimate["late"]) == (3, {"unknown_type": 1}, 0)
    assert {one["type"]: one["events"] for one in estimate["types"]} == {"storage.write": 2, "odd": 1}

    done = commit(tenant, "b1")
    assert (done["state"], done["events"]) == ("committed", 3)
    assert (quantity(tenant), suspense(tenant)) == ("7", [("b3", "unknown_type")])
    assert totals(tenant) == {"stored": 4, "rated": 3, "suspended": 1, "voided": 0}
    listed = tenant.get("/v1/events?customer=acme").json()["items"]
    assert {one["id"]: one["amended"] for one in listed} == {"e1": False, "b1": False, "b2": False, "b3": False}
    assert commit(tenant, "b1") == done, "committing again changes nothing"
    assert fill(tenant, "b1", event("b9")).status_code == 409

    assert revert(tenant, "b1")["state"] == "reverted"
    assert (quantity(tenant), suspense(tenant)) == ("1", [])
    assert totals(tenant) == {"stored": 1, "rated": 1, "suspended": 0, "voided": 0}
    states = [(one["backfill"], one["state"]) for one in tenant.get("/v1/usage/backfills").json()["items"]]
    assert states == [("b1", "reverted")]
    assert opened(tenant, "b2", event("b1", data={"gb": "20"}))["accepted"] == 1, "its ids are free for another one"
    commit(tenant, "b2")
    assert quantity(tenant) == "21"


@pytest.mark.parametrize("late_usage", ["delta", "reject"])
def test_a_bill_run_settles_a_backfill_of_billed_time_and_takes_it_back_after_a_revert(
    api: Api, late_usage: str
) -> None:
    tenant = api.tenant(kind="test", test_clock="2026-01-10", late_usage=late_usage)
    tenant.catalog()
    send(tenant, event("e1", data={"gb": "10"}))
    opened(tenant, "b1", event("b1", data={"gb": "5"}))
    assert run(tenant, "2026-02-01") == [("10", "1.00", False)], "its rows lie before the cut, and do not count"
    assert tenant.get("/v1/usage/backfills/b1/estimate").json()["late"] == 1
    commit(tenant, "b1")
    assert run(tenant, "2026-03-01") == [("5", "0.50", True)]
    revert(tenant, "b1")
    assert run(tenant, "2026-04-01") == [("5", "0.50", True)], "what was billed of it is taken back"
    types = [tenant.get(f"/v1/invoices/{item['number']}").json()["type"] for item in invoices(tenant)]
    assert sorted(types) == ["credit_note", "invoice", "invoice"]
    assert not run(tenant, "2026-05-01"), "and only once"


def test_what_was_amended_of_a_backfill_counts_while_that_does(tenant: Tenant) -> None:
    opened(tenant, "b1", event("x1", data={"gb": "2"}), event("x2", data={"gb": "4"}))
    assert amend(tenant, {"source": "a", "id": "x1", "data": {"gb": "3"}}).status_code == 404, "not there yet"
    commit(tenant, "b1")
    assert amend(tenant, {"source": "a", "id": "x1", "data": {"gb": "3"}}).json()["corrected"] == 1
    assert amend(tenant, {"source": "a", "id": "x2", "void": True}).json()["corrected"] == 1
    assert quantity(tenant) == "3"
    assert [one["reason"] for one in trail(tenant, "x1")["amendments"]] == ["meter read twice"]
    assert totals(tenant) == {"stored": 2, "rated": 1, "suspended": 0, "voided": 1}
    revert(tenant, "b1")
    assert quantity(tenant) == "0"
    assert totals(tenant) == {"stored": 0, "rated": 0, "suspended": 0, "voided": 0}


def test_what_cannot_be_done_with_a_backfill_is_refused_with_its_place(api: Api, tenant: Tenant) -> None:
    wrong = tenant.post("/v1/usage/backfills", {"backfill": "no such:name"})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/backfill")
    assert tenant.get("/v1/usage/backfills/unknown").status_code == 404
    assert fill(tenant, "unknown", event("u1")).status_code == 404
    assert tenant.post("/v1/usage/backfills/unknown/commit", {}).status_code == 404
    opened(tenant, "b1", event("u1"))
    assert fill(tenant, "b1", {"source": "a"}).status_code == 422
    assert tenant.post("/v1/usage/backfills/b1/revert", {}).status_code == 422, "a reason is needed"
    writer = tenant.key_with("usage:write", "usage:read")
    assert tenant.post("/v1/usage/backfills/b1/commit", {}, key=writer).status_code == 403
    other = api.tenant(kind="test", test_clock="2026-01-10")
    assert other.get("/v1/usage/backfills/b1").status_code == 404, "another tenant's"
    assert tenant.get("/v1/usage/backfills/b1").json()["state"] == "open"


def test_a_file_that_was_cut_off_goes_on_where_it_stopped_and_counts_once(
    tenant: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill_command, "EVENTS_A_CALL", 10)
    file = tmp_path / "May of gateway 7.ndjson"
    file.write_text("\n".join(json.dumps(event(f"f{number}")) for number in range(34)) + "\n\n" + '{"source": "a"}\n')
    client = Client("http://testserver", tenant.key, http=tenant.api.http)

    def sent() -> dict[str, Any]:
        return backfill_command.send_file(client, file, None, name=None, note="", progress=lambda *_: None)

    left = iter(range(2))
    post = Client.post_bytes

    def cut_off(self: Client, path: str, body: bytes, media_type: str) -> Any:
        if next(left, None) is None:
            post(self, path, body, media_type)  # stored, and the answer never comes
            raise Unavailable("the line is cut")
        return post(self, path, body, media_type)

    with monkeypatch.context() as patch:
        patch.setattr(Client, "post_bytes", cut_off)
        with pytest.raises(Unavailable):
            sent()
    result = sent()
    assert result["skipped"] == 20
    counted = {name: result[name] for name in ("received", "accepted", "duplicates", "rejected")}
    assert counted == {"received": 35, "accepted": 24, "duplicates": 10, "rejected": 1}
    assert [one["position"] for one in result["errors"]] == [35]
    assert result["estimate"]["events"] == 34
    assert sent()["received"] == 35, "the same call again sends nothing"
    assert commit(tenant, result["backfill"])["events"] == 34
    assert quantity(tenant) == "34"
    with pytest.raises(InvalidInput):
        sent()
    other = tmp_path / "table.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(InvalidInput):
        backfill_command.send_file(client, other, None, name=None, note="", progress=lambda *_: None)
