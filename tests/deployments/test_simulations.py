"""Simulations over HTTP: what other prices would have earned, and that nothing billed is touched."""

import csv
import io
from decimal import Decimal
from typing import Any

import pytest

pytestmark = pytest.mark.postgres

DEARER = {"code": "storage", "price": {"model": "per_unit", "unit": "0.15"}}
ASKED = {"name": "Half dearer", "prices": {"code": "basic", "charges": [DEARER]}, "from": "2026-01", "to": "2026-02"}


def event(id_: str, time: str, gb: str, customer: str) -> str:
    return (
        f'{{"source":"a","id":"{id_}","type":"storage.write","customer":"{customer}","time":"{time}",'
        f'"data":{{"gb":"{gb}"}}}}\n'
    )


@pytest.fixture(scope="module")
def billed(api: Any) -> Any:
    """Two customers with usage of January and February 2026, one without; all billed."""
    tenant = api.tenant()
    tenant.catalog()
    steps: list[dict[str, Any]] = []
    for code in ("rhein", "elbe"):
        steps.append({"at": "2026-01-01", "customer": {"code": code, "name": code.title(), "country": "DE"}})
        steps.append({"at": "2026-01-01", "subscribe": {"code": f"s-{code}", "customer": code, "plan": "basic"}})
    assert tenant.post("/v1/steps", steps).status_code == 201
    sent = [
        event("e1", "2026-01-10T10:00:00Z", "100", "acme"),
        event("e2", "2026-02-10T10:00:00Z", "10.1", "acme"),
        event("e3", "2026-02-11T10:00:00Z", "7", "rhein"),
        event("e4", "2026-03-01T10:00:00Z", "1000", "rhein"),
    ]
    assert tenant.usage("".join(sent)).status_code == 200
    assert tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).status_code == 202
    second = tenant.post("/v1/bill-runs", {"up_to": "2026-03-01"})
    assert second.status_code == 202
    # February is so much less than January that the run waits for somebody to look at it.
    assert tenant.post(f"/v1/bill-runs/{second.json()['id']}/approve", {}).status_code == 202
    return tenant


def simulated(tenant: Any, **changes: Any) -> dict[str, Any]:
    answer = tenant.post("/v1/simulations", ASKED | changes)
    assert answer.status_code == 202, answer.text
    return tenant.get(answer.headers["location"]).json()


def test_a_simulation_says_what_other_prices_would_have_earned(billed: Any) -> None:
    before = billed.get("/v1/invoices").json()
    found = simulated(billed)
    assert (found["state"], found["progress"]["done"], found["progress"]["total"]) == ("done", 3, 3)
    (euro,) = found["result"]["currencies"]
    assert (euro["before"], euro["after"], euro["difference"]) == ("11.71", "17.57", "5.86")
    assert [(one["month"], one["before"], one["after"]) for one in euro["months"]] == [
        ("2026-01", "10.00", "15.00"),
        ("2026-02", "1.71", "2.57"),
    ]
    assert [one["charge"] for one in euro["charges"]] == ["storage"]
    # 10.1 x 0.15 = 1.515 is 1.52; elbe used nothing, so he is in no sum.
    assert [(one["customer"], one["after"]) for one in euro["most_more"]] == [("acme", "16.52"), ("rhein", "1.05")]
    assert (euro["customers"], euro["pay_more"], euro["pay_less"], euro["most_less"]) == (2, 2, 0, [])
    assert billed.get("/v1/invoices").json() == before
    assert billed.get("/v1/plans/basic").json()["form"]["charges"][0]["price"]["unit"] == "0.1"


def test_before_is_what_the_bill_runs_billed_and_the_same_prices_make_no_difference(billed: Any) -> None:
    same = {"code": "storage", "price": {"model": "per_unit", "unit": "0.10"}}
    found = simulated(billed, prices={"code": "basic", "charges": [same]})
    (euro,) = found["result"]["currencies"]
    net = sum(Decimal(one["net"]) for one in billed.get("/v1/invoices").json()["items"])
    assert (euro["difference"], euro["pay_the_same"]) == ("0.00", 2)
    assert str(net) == euro["before"]


def test_customers_come_in_pages_and_everything_as_csv(billed: Any) -> None:
    found = simulated(billed, customers=["acme", "rhein"])
    path = f"/v1/simulations/{found['id']}"
    first = billed.get(f"{path}/customers?limit=1&sort=difference").json()
    rest = billed.get(f"{path}/customers?limit=1&sort=difference&cursor={first['next_cursor']}").json()
    assert [one["items"][0]["customer"] for one in (first, rest)] == ["rhein", "acme"]
    assert rest["next_cursor"] is None
    text = billed.get(f"{path}/csv").text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["customer"], row["month"], row["before"], row["after"], row["difference"]) for row in rows] == [
        ("acme", "2026-01", "10.00", "15.00", "5.00"),
        ("acme", "2026-02", "1.01", "1.52", "0.51"),
        ("rhein", "2026-02", "0.70", "1.05", "0.35"),
    ]


def test_simulations_are_listed_and_deleted(billed: Any) -> None:
    found = simulated(billed, name="To be deleted")
    listed = billed.get("/v1/simulations?limit=1").json()
    assert [one["name"] for one in listed["items"]] == ["To be deleted"]
    assert listed["next_cursor"]
    path = f"/v1/simulations/{found['id']}"
    assert billed.post(f"{path}/cancel", {}).status_code == 409
    assert billed.api.http.delete(path, headers={"Authorization": f"Bearer {billed.key}"}).json()["deleted"]
    assert billed.get(path).status_code == 404
    store = billed.api.services.store
    assert [key for key in store.list(f"simulations/{billed.id}/") if found["id"] in key] == []


def test_what_cannot_be_simulated_is_refused_with_every_place(billed: Any) -> None:
    bad = {"prices": {"code": "basic", "charges": [{"code": "storage", "price": {"model": "per_unit"}}]}}
    answer = billed.post("/v1/simulations", bad | {"from": "2026-05", "to": "2026-01", "customers": []})
    assert answer.status_code == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == [
        "/to", "/prices/charges/0/price/unit", "/customers"
    ]  # fmt: skip
    assert billed.post("/v1/simulations", ASKED | {"customers": ["nobody"]}).status_code == 404
    assert billed.post("/v1/simulations", ASKED | {"prices": {"code": "none"}}).status_code == 404
    assert billed.post("/v1/simulations", ASKED, key=billed.key_with("catalog:read")).status_code == 403
    assert billed.post("/v1/simulations", {"prices": {"code": "basic"}}).json()["errors"][0]["pointer"] == "/from"


def test_one_tenant_never_sees_the_simulations_of_another(api: Any, billed: Any) -> None:
    found = simulated(billed)
    other = api.tenant()
    assert other.get(f"/v1/simulations/{found['id']}").status_code == 404
    assert other.get("/v1/simulations").json()["items"] == []
