"""Reservations and wallets over REST: what a caller asks, gets, and gets again."""

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


def customer(tenant: Tenant, *top_ups: dict[str, Any]) -> str:
    """A customer with a subscription like acme's, and credit."""
    code = f"c-{uuid4().hex[:8]}"
    steps: list[dict[str, Any]] = [
        {"at": "2026-01-01", "customer": {"code": code, "name": code, "country": "DE"}},
        {"at": "2026-01-01", "subscribe": {"code": code, "customer": code, "plan": "basic", "anchor": "calendar"}},
    ]
    steps += [{"at": "2026-01-01", "top_up": {"customer": code, "kind": "purchased", **one}} for one in top_ups]
    answer = tenant.post("/v1/steps", steps)
    assert answer.status_code == 201, answer.text
    return code


def test_what_is_reserved_committed_and_left_adds_up(tenant: Tenant) -> None:
    code = customer(tenant, {"amount": "10.00"}, {"amount": "3.00", "kind": "promotional"})
    first = tenant.post("/v1/reservations", {"customer": code, "id": f"{code}-1", "amount": "12.00"})
    assert first.status_code == 200, first.text
    assert first.json()["granted"] == "12.00"
    second = tenant.post("/v1/reservations", {"customer": code, "id": f"{code}-2", "amount": "12.00"}).json()
    assert (second["granted"], second["amount"]) == ("1.00", "12.00")
    spent = tenant.post(f"/v1/reservations/{code}-1/commit", {"amount": "5.00"}).json()
    assert (spent["state"], spent["committed"]) == ("committed", "5.00")
    tenant.post(f"/v1/reservations/{code}-2/release", {})
    [wallet] = tenant.get(f"/v1/wallets/{code}?fresh=true").json()["wallets"]
    assert (wallet["balance"], wallet["reserved"], wallet["committed"]) == ("8.00", "0.00", "5.00")
    lefts = [(one["kind"], one["left"]) for one in wallet["top_ups"]]
    assert lefts == [("promotional", "0.00"), ("purchased", "8.00")]
    listed = tenant.get(f"/v1/reservations?customer={code}").json()["items"]
    assert {one["id"]: one["state"] for one in listed} == {f"{code}-1": "committed", f"{code}-2": "released"}
    assert code in [one["customer"] for one in tenant.get("/v1/wallets").json()["items"]]


def test_the_same_id_gets_the_recorded_verdict_whatever_is_asked(tenant: Tenant) -> None:
    code = customer(tenant, {"amount": "10.00"})
    ask = {"customer": code, "id": f"{code}-1", "amount": "4.00"}
    assert tenant.post("/v1/reservations", ask).json() == tenant.post("/v1/reservations", ask).json()
    again = tenant.post("/v1/reservations", ask | {"amount": "9.00"}).json()
    assert (again["granted"], again["amount"]) == ("4.00", "4.00")
    for amount in ("1.00", "3.00"):
        assert tenant.post(f"/v1/reservations/{code}-1/commit", {"amount": amount}).json()["committed"] == "1.00"
    assert tenant.post(f"/v1/reservations/{code}-1/release", {}).status_code == 409
    assert tenant.get(f"/v1/reservations/{code}-1").json()["state"] == "committed"


def test_use_of_a_meter_is_asked_with_the_tax_that_purchased_credit_pays(tenant: Tenant) -> None:
    code = customer(tenant, {"amount": "100.00"})
    ask = {"customer": code, "id": f"{code}-1", "usage": {"meter": "storage", "quantity": "100"}}
    answer = tenant.post("/v1/reservations", ask).json()
    assert (answer["granted"], answer["usage"]) == ("11.90", {"meter": "storage", "quantity": "100"})


def test_a_batch_answers_each_in_its_place(tenant: Tenant) -> None:
    code = customer(tenant, {"amount": "10.00"})
    batch = [{"customer": code, "id": f"{code}-{place}", "amount": "3.00"} for place in range(5)]
    batch[2] = {"customer": "nobody", "id": "x", "amount": "1.001"}
    items = tenant.post("/v1/reservations", batch).json()["items"]
    assert [one.get("granted") for one in items] == ["3.00", "3.00", None, "3.00", "1.00"]
    problem = items[2]["problem"]
    assert problem["status"] == 422
    assert {one["pointer"] for one in problem["errors"]} == {"/2/customer", "/2/amount"}


def test_many_are_committed_and_released_at_once(tenant: Tenant) -> None:
    code = customer(tenant, {"amount": "10.00"})
    tenant.post("/v1/reservations", [{"customer": code, "id": f"{code}-{n}", "amount": "2.00"} for n in range(4)])
    asked = [
        {"id": f"{code}-0", "amount": "1.00"},
        {"id": "none", "amount": "1.00"},
        {"id": f"{code}-1", "amount": "9"},
    ]
    items = tenant.post("/v1/reservations/commit", asked).json()["items"]
    assert [one.get("committed") for one in items] == ["1.00", None, "2.00"]
    assert items[1]["problem"]["status"] == 404
    asked = [{"id": f"{code}-{n}", "customer": code} for n in (0, 2, 3)]
    items = tenant.post("/v1/reservations/release", asked).json()["items"]
    assert [one.get("state") for one in items] == [None, "released", "released"]
    assert items[0]["problem"]["status"] == 409
    [wallet] = tenant.get(f"/v1/wallets/{code}").json()["wallets"]
    assert (wallet["balance"], wallet["reserved"], wallet["committed"]) == ("7.00", "0.00", "3.00")
    answer = tenant.post("/v1/reservations/commit", [{"id": "x"}, {"amount": "1", "more": "2", "id": "y"}])
    assert answer.status_code == 422
    assert {one["pointer"] for one in answer.json()["errors"]} == {"/0/amount", "/1/more"}
    assert tenant.post("/v1/reservations/release", {"id": "x"}).status_code == 422


def test_what_is_wrong_is_said_with_its_place_and_leaves_the_id_free(tenant: Tenant) -> None:
    code = customer(tenant, {"amount": "10.00"})
    wrong = {"customer": code, "id": f"{code}-1", "amount": "1.00", "usage": {"meter": "nope", "quantity": "-1"}}
    answer = tenant.post("/v1/reservations", wrong)
    assert answer.status_code == 422
    assert {one["pointer"] for one in answer.json()["errors"]} == {"", "/usage/meter", "/usage/quantity"}
    assert tenant.post("/v1/reservations", {"customer": code, "id": f"{code}-1", "amount": "1.00"}).status_code == 200
    assert tenant.post("/v1/reservations/none/commit", {"amount": "1.00"}).status_code == 404
    assert tenant.get("/v1/reservations/none").status_code == 404
    assert tenant.get("/v1/wallets/none").status_code == 404
    assert tenant.get(f"/v1/reservations?customer={code}&state=odd").status_code == 422


def test_scopes_guard_what_is_asked(tenant: Tenant) -> None:
    code = customer(tenant, {"amount": "10.00"})
    reader, writer = tenant.key_with("contracts:read"), tenant.key_with("usage:write")
    ask = {"customer": code, "id": f"{code}-1", "amount": "1.00"}
    assert tenant.post("/v1/reservations", ask, key=reader).status_code == 403
    assert tenant.post("/v1/reservations", ask, key=writer).status_code == 200
    assert tenant.get(f"/v1/wallets/{code}", key=writer).status_code == 403
    assert tenant.get(f"/v1/wallets/{code}", key=reader).status_code == 200


def test_tenants_never_meet(api: Api, tenant: Tenant) -> None:
    code = customer(tenant, {"amount": "10.00"})
    tenant.post("/v1/reservations", {"customer": code, "id": f"{code}-1", "amount": "1.00"})
    other = api.tenant()
    assert other.get(f"/v1/reservations/{code}-1").status_code == 404
    assert other.post(f"/v1/reservations/{code}-1/commit", {"amount": "1.00"}).status_code == 404
