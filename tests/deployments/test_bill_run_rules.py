"""Settings, guard rails, four eyes, reversal and the repeat of a lost answer over HTTP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from decimal import Decimal
from threading import Event
from typing import Any

import pytest

from deployments import credit_notes
from pipelines.bill_run import BillRunDriver

pytestmark = pytest.mark.postgres

EVENTS = "".join(
    f'{{"source":"a","id":"e{number}","type":"storage.write","customer":"acme",'
    f'"time":"2026-01-{number:02}T10:00:00Z","data":{{"gb":"{number}.5"}}}}\n'
    for number in (5, 6)
)


@pytest.fixture
def tenant(api: Any) -> Any:
    """A tenant with usage of January 2026 that is not billed yet."""
    one = api.tenant()
    one.catalog()
    assert one.usage(EVENTS).status_code == 200
    return one


def test_settings_are_read_set_and_refused_with_the_place_of_each_mistake(tenant: Any) -> None:
    assert tenant.get("/v1/billing-settings").json() == {}
    form = {"guard_rails": {"limits": {"EUR": "100"}}, "collection_window": "PT72H", "schedule": {"interval": "month"}}
    answer = tenant.put("/v1/billing-settings", form)
    assert answer.status_code == 200, answer.text
    assert tenant.get("/v1/billing-settings").json() == form
    stale = tenant.put("/v1/billing-settings", form, **{"If-Match": '"7"'})
    assert stale.status_code == 412
    wrong = {"guard_rails": {"limits": {"EUX": "1"}, "times_last": "0"}, "collection_window": "72h", "other": 1}
    refused = tenant.put("/v1/billing-settings", wrong)
    assert refused.status_code == 422
    places = {one["pointer"] for one in refused.json()["errors"]}
    assert places == {"/guard_rails/limits/EUX", "/guard_rails/times_last", "/collection_window", "/other"}
    schedule = tenant.get("/v1/billing-schedule").json()
    assert schedule["scheduled"] is True
    assert schedule["next"]["due_at"] > schedule["next"]["up_to"]


def test_a_held_customer_is_let_through_and_the_run_is_reversed(tenant: Any) -> None:
    assert tenant.put("/v1/billing-settings", {"guard_rails": {"on": True, "limits": {"EUR": "1"}}}).status_code == 200
    run = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01", "approve": False}).json()
    run = tenant.get(f"/v1/bill-runs/{run['id']}").json()
    assert (run["state"], run["progress"]["stage"]) == ("computed", "waiting for approval")
    assert [(one["customer"], one["code"]) for one in run["held_back"]] == [("acme", "over_limit")]
    path = f"/v1/bill-runs/{run['id']}"
    assert tenant.post(f"{path}/release", {"customers": ["nobody"]}).status_code == 422
    assert tenant.post(f"{path}/release", {"customers": ["acme"]}).json()["held_back"] == []
    assert tenant.post(f"{path}/reverse", {}).status_code == 409  # nothing is final yet
    assert tenant.post(f"{path}/approve", {}).status_code == 202
    assert tenant.get(path).json()["state"] == "done"
    (invoice,) = tenant.get("/v1/invoices").json()["items"]
    assert tenant.post(f"{path}/reverse", {}).status_code == 202
    assert tenant.get(path).json()["state"] == "reversed"
    note, first = tenant.get("/v1/invoices").json()["items"]
    assert (note["type"], note["refers_to"], note["gross"]) == ("credit_note", first["number"], invoice["gross"])
    assert note["file"] == "archived"
    again = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01", "approve": False}).json()
    assert tenant.get(f"/v1/bill-runs/{again['id']}").json()["documents"]["made"] == 1


def test_a_repeat_after_a_crash_between_plan_and_answer_gets_the_run(
    tenant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = BillRunDriver.plan
    planned: list[str] = []

    def crash(self: BillRunDriver, *given: Any, **more: Any) -> Any:
        planned.append(plan(self, *given, **more)["id"])
        raise RuntimeError("the process ends here, its run is planned")

    body, key = {"up_to": "2026-02-01"}, {"Idempotency-Key": "january"}
    with monkeypatch.context() as broken:
        broken.setattr(BillRunDriver, "plan", crash)
        with pytest.raises(RuntimeError):
            tenant.post("/v1/bill-runs", body, **key)
    answer = tenant.post("/v1/bill-runs", body, **key)
    assert (answer.status_code, answer.json()["id"]) == (202, planned[0])
    assert tenant.get(f"/v1/bill-runs/{planned[0]}").json()["state"] == "done"
    other = tenant.post("/v1/bill-runs", body, **{"Idempotency-Key": "another"})
    assert other.status_code == 202  # the first one is done: this one finds nothing more


@pytest.mark.parametrize("other", ["reverse", "run"])
def test_a_reversal_or_a_run_waits_for_a_credit_note_by_hand_that_is_being_written(
    other: str, tenant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).json()
    (invoice,) = tenant.get("/v1/invoices").json()["items"]
    writing, go = Event(), Event()
    write = credit_notes.credit_note

    def slowly(*given: Any) -> Any:
        writing.set()  # it has looked: no run goes on
        assert go.wait(60)
        return write(*given)

    monkeypatch.setattr(credit_notes, "credit_note", slowly)
    wanted = {"document": invoice["number"], "lines": [{"line": 1, "amount": "0.20"}]}
    path = f"/v1/bill-runs/{run['id']}/reverse" if other == "reverse" else "/v1/bill-runs"
    body = {} if other == "reverse" else {"up_to": "2026-02-01"}
    with ThreadPoolExecutor(2) as pool:
        by_hand = pool.submit(tenant.post, "/v1/credit-notes", wanted)
        try:
            assert writing.wait(60)
            beside = pool.submit(tenant.post, path, body)
            done, _ = wait([beside], timeout=2)
        finally:
            go.set()
        assert done == set()
        assert by_hand.result(60).status_code == 201
        assert beside.result(60).status_code == 202
    if other == "reverse":
        assert tenant.get(f"/v1/bill-runs/{run['id']}").json()["state"] == "reversed"
        notes = tenant.get("/v1/invoices?type=credit_note").json()["items"]
        assert sum(Decimal(one["gross"]) for one in notes) == Decimal(invoice["gross"])
        again = tenant.post("/v1/credit-notes", wanted)  # nothing is left of it
        assert again.status_code in (409, 422)
