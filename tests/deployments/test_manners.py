"""How the API behaves: problems, idempotent writes, versions, pages, names of all scripts, bulk changes."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytestmark = pytest.mark.postgres
CUSTOMER = {"code": "acme", "name": "ACME GmbH", "country": "DE"}


@pytest.fixture(scope="module")
def tenant(api: Any) -> Any:
    made = api.tenant()
    made.catalog()
    return made


def test_every_error_is_a_problem_that_names_the_place(tenant: Any) -> None:
    answer = tenant.post("/v1/customers", {"code": "x", "nmae": "typo", "country": "Germany"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail", "instance", "code", "retryable"} <= set(problem)
    assert {each["pointer"] for each in problem["errors"]} == {"/country", "/nmae"}
    assert problem["instance"] == "/v1/customers"
    missing = tenant.get("/v1/nothing")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    method = tenant.api.http.delete("/v1/usage", headers={"Authorization": f"Bearer {tenant.key}"})
    assert (method.status_code, method.json()["code"]) == (405, "method_not_allowed")
    assert tenant.get("/v1/customers?limit=0").json()["errors"][0]["pointer"] == "query:limit"
    assert tenant.get("/v1/bill-runs/no-uuid").status_code == 422


def test_a_mistake_of_ours_tells_nothing_of_our_inside(tenant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise ZeroDivisionError("secret detail")

    from dataclasses import replace

    from deployments.app import build_app

    services = replace(tenant.api.services, archive=Broken())
    with TestClient(build_app(services, front=False), raise_server_exceptions=False) as http:
        answer = http.get("/v1/archive/verify", headers={"Authorization": f"Bearer {tenant.key}"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"code": NaN}', "application/json", 400),
        (b'{"code": "a", "code": "b"}', "application/json", 400),
        (b"[" * 10_000 + b"]" * 10_000, "application/json", 400),
        (b'{"code": "a\\u0000b"}', "application/json", 422),
        (b'{"code": "\\ud800"}', "application/json", 422),
        (b"[]", "application/json", 422),
        (b"null", "application/json", 422),
        (b"code=a", "application/x-www-form-urlencoded", 415),
        (b"{}", "text/plain", 415),
        (b" " * 17_000_000, "application/json", 413),
    ],
)
def test_a_body_that_is_no_form_is_refused_in_words(tenant: Any, body: bytes, kind: str, status: int) -> None:
    for path in ("/v1/customers", "/v1/meters", "/v1/subscriptions", "/v1/plans", "/v1/keys", "/v1/bill-runs"):
        headers = {"Authorization": f"Bearer {tenant.key}", "Content-Type": kind}
        answer = tenant.api.http.post(path, content=body, headers=headers)
        assert answer.status_code == status, (path, answer.text)
        assert answer.json()["detail"]
        if status == 413:
            break


def test_a_stranger_is_refused_before_the_body_is_read(api: Any) -> None:
    answer = api.http.post("/v1/customers", content=b"no json", headers={"Content-Type": "application/json"})
    assert answer.status_code == 401


def test_the_same_write_again_gets_the_first_answer_and_happens_once(tenant: Any) -> None:
    form = {"code": "once", "name": "Once", "country": "DE"}
    first = tenant.post("/v1/customers", form, **{"Idempotency-Key": "k1"})
    again = tenant.post("/v1/customers", form, **{"Idempotency-Key": "k1"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert "idempotent-replay" not in first.headers
    assert again.headers["idempotent-replay"] == "true"
    assert again.headers["master"] == first.headers["master"]
    assert len(tenant.get("/v1/customers/once/history").json()["items"]) == 1
    other = tenant.post("/v1/customers", {**form, "name": "Other"}, **{"Idempotency-Key": "k1"})
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    without = tenant.post("/v1/customers", form)
    assert without.status_code == 409


def test_a_failed_write_leaves_its_key_free(tenant: Any) -> None:
    bad = {"code": "later", "name": "Later", "country": "nowhere"}
    assert tenant.post("/v1/customers", bad, **{"Idempotency-Key": "k2"}).status_code == 422
    good = {**bad, "country": "DE"}
    assert tenant.post("/v1/customers", good, **{"Idempotency-Key": "k2"}).status_code == 201


def test_ten_at_once_with_one_key_make_one_thing(tenant: Any) -> None:
    form = {"code": "raced", "name": "Raced", "country": "DE"}
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: tenant.post("/v1/customers", form, **{"Idempotency-Key": "race"}), range(10)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replay" not in answer.headers for answer in answers) == 1
    assert len(tenant.get("/v1/customers/raced/history").json()["items"]) == 1


def test_keys_of_two_tenants_do_not_meet(api: Any) -> None:
    for tenant in (api.tenant(), api.tenant()):
        answer = tenant.post("/v1/customers", CUSTOMER, **{"Idempotency-Key": "same"})
        assert "idempotent-replay" not in answer.headers
        assert answer.status_code == 201


def test_a_tenant_is_made_once_with_the_same_key_for_the_same_request(api: Any) -> None:
    form = {"code": "once-only", "currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"}
    headers = {"Authorization": f"Bearer {api.platform_key}", "Idempotency-Key": "tenant"}
    first, again = (api.http.post("/v1/tenants", json=form, headers=headers) for _ in range(2))
    assert first.json() == again.json()
    assert again.headers["idempotent-replay"] == "true"
    mine = {"Authorization": f"Bearer {again.json()['key']}"}
    assert api.http.get("/v1/tenant", headers=mine).json()["code"] == "once-only"
    del headers["Idempotency-Key"]
    assert api.http.post("/v1/tenants", json=form, headers=headers).status_code == 409
    bad = form | {
        "code": "x",
        "currency": "XXX",
        "timezone": "Mars/Olympus",
        "kind": "live",
        "test_clock": "2026-01-01",
    }
    assert api.http.post("/v1/tenants", json=bad, headers=headers).status_code == 422


def test_a_change_with_an_old_version_is_refused(tenant: Any) -> None:
    form = {"code": "versioned", "name": "One", "country": "DE"}
    made = tenant.post("/v1/customers", form)
    tag = made.headers["etag"]
    second = tenant.put("/v1/customers/versioned", {**form, "name": "Two"}, **{"If-Match": tag})
    assert second.status_code == 200
    assert second.headers["etag"] != tag
    late = tenant.put("/v1/customers/versioned", {**form, "name": "Three"}, **{"If-Match": tag})
    assert (late.status_code, late.json()["code"]) == (412, "precondition_failed")
    read = tenant.get("/v1/customers/versioned")
    assert read.json()["form"]["name"] == "Two"
    assert tenant.get("/v1/customers/versioned", **{"If-None-Match": read.headers["etag"]}).status_code == 304
    history = tenant.get("/v1/customers/versioned/history").json()["items"]
    assert [each["before"] and each["before"]["name"] for each in history] == ["One", None]
    assert history[0]["actor"].startswith("key cb_")
    assert tenant.put("/v1/customers/versioned", {**form, "code": "other"}).json()["errors"][0]["pointer"] == "/code"
    assert tenant.put("/v1/customers/versioned", form, **{"If-Match": '"x"'}).status_code == 422


def test_pages_follow_each_other_without_a_gap_or_a_repeat(api: Any) -> None:
    tenant = api.tenant()
    steps = [{"customer": {"code": f"c{n:03}", "name": f"Customer {n}", "country": "DE"}} for n in range(25)]
    assert tenant.post("/v1/steps", steps).status_code == 201
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(10):
        page = tenant.get(f"/v1/customers?limit=10{f'&cursor={cursor}' if cursor else ''}").json()
        seen += [item["code"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [f"c{n:03}" for n in range(25)]
    assert tenant.get("/v1/customers?cursor=nonsense!").status_code == 422
    assert tenant.get("/v1/bill-runs?cursor=ImEi").status_code == 422
    assert [item["code"] for item in tenant.get("/v1/customers?search=mer 24").json()["items"]] == ["c024"]
    assert tenant.get("/v1/customers?search=%25").json()["items"] == []


@pytest.mark.parametrize(
    "name",
    [
        "شركة التقنية",
        "北京云计算有限公司",
        "Rocket 🚀 GmbH",
        "Robert'); DROP TABLE customers;--",
        'a"b\\c',
        "/x/y z?&#",
    ],
)
def test_names_and_codes_of_all_scripts_come_back_as_they_were(tenant: Any, name: str) -> None:
    from urllib.parse import quote

    made = tenant.post("/v1/customers", {"code": name, "name": name, "country": "DE"})
    assert made.status_code == 201, made.text
    read = tenant.get(f"/v1/customers/{quote(name, safe='')}")
    assert (read.json()["code"], read.json()["form"]["name"]) == (name, name)
    found = tenant.get(f"/v1/customers?search={quote(name)}").json()["items"]
    assert [item["code"] for item in found] == [name]


def test_steps_are_all_made_or_none_and_every_mistake_has_its_place(tenant: Any) -> None:
    before = tenant.get("/v1/customers?limit=500").json()["items"]
    steps = [
        {"customer": {"code": "good one", "name": "Good", "country": "DE"}},
        {"subscribe": {"code": "x", "customer": "good one", "plan": "no such plan"}},
    ]
    answer = tenant.post("/v1/steps", steps)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/1/subscribe/plan"
    assert tenant.get("/v1/customers?limit=500").json()["items"] == before
    for wrong, pointer in [
        ([{"nothing": {}}], "/0"),
        ([{"customer": 7}], "/0/customer"),
        ([{"at": "2999-01-01", "customer": CUSTOMER}], "/0/at"),
        ([{"at": "soon", "customer": CUSTOMER}], "/0/at"),
        ([], ""),
        ({}, ""),
        ([{"customer": CUSTOMER}] * 10_001, ""),
    ]:
        refused = tenant.post("/v1/steps", wrong)
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["pointer"] == pointer


def test_a_plan_goes_from_draft_to_versions_that_stay(tenant: Any) -> None:
    charge = {"code": "fee", "kind": "recurring", "price": {"model": "flat", "amount": "5.00"}, "tax": "standard"}
    plan = {"code": "pro/x", "currency": "EUR", "interval": "month", "charges": [charge]}
    draft = tenant.put("/v1/plan-drafts/pro%2Fx", plan)
    assert draft.status_code == 200, draft.text
    assert tenant.get("/v1/plans/pro%2Fx").status_code == 404
    stale = tenant.put("/v1/plan-drafts/pro%2Fx", plan, **{"If-Match": '"9"'})
    assert stale.status_code == 412
    published = tenant.post("/v1/plan-drafts/pro%2Fx/publish", {})
    assert published.status_code == 201, published.text
    assert tenant.get("/v1/plan-drafts/pro%2Fx").status_code == 404
    charge["price"]["amount"] = "6.00"
    assert tenant.post("/v1/plans", plan).status_code == 201
    versions = tenant.get("/v1/plans/pro%2Fx").json()["form"]["versions"]
    assert [each["charges"][0]["price"]["amount"] for each in versions] == ["5", "6"]
    bad = json.loads(json.dumps(plan))
    bad["charges"][0]["price"] = {"model": "flat", "amount": "0.1234567890123"}
    assert tenant.put("/v1/plan-drafts/pro%2Fx", bad).json()["errors"][0]["pointer"] == "/charges/0/price/amount"
    assert tenant.post("/v1/plans", bad).json()["errors"][0]["pointer"] == "/charges/0/price/amount"


def test_the_life_of_a_subscription_is_a_list_of_steps(tenant: Any) -> None:
    tenant.post("/v1/customers", {"code": "life", "name": "Life", "country": "DE"})
    assert tenant.post("/v1/subscriptions", {"code": "l1", "customer": "life", "plan": "basic"}).status_code == 201
    twice = tenant.post("/v1/subscriptions", {"code": "l1", "customer": "life", "plan": "basic"})
    assert twice.status_code == 409
    override = {"subscription": "l1", "charge": "storage", "price": {"model": "per_unit", "unit": "0.05"}}
    changed = tenant.post("/v1/subscriptions/override", override)
    assert changed.status_code == 200, changed.text
    tag = changed.headers["etag"]
    stale = tenant.post("/v1/subscriptions/cancel", {"subscription": "l1"}, **{"If-Match": '"1"'})
    assert stale.status_code == 412
    wrong = tenant.post("/v1/subscriptions/override", {**override, "charge": "none"})
    assert wrong.json()["errors"][0]["pointer"] == "/charge"
    cancelled = tenant.post("/v1/subscriptions/cancel", {"subscription": "l1", "when": "now"}, **{"If-Match": tag})
    assert cancelled.status_code == 200, cancelled.text
    kinds = [each["kind"] for each in tenant.get("/v1/subscriptions/l1/history").json()["items"]]
    assert kinds == ["cancel", "override", "subscribe"]
    mine = tenant.get("/v1/subscriptions?customer=life").json()["items"]
    assert [item["code"] for item in mine] == ["l1"]


def test_a_phased_plan_and_an_add_on_over_http(api: Any) -> None:
    tenant = api.tenant(kind="test", test_clock="2026-01-10")
    steps = [
        {"tax_code": {"code": "none", "percents": [{"from": "2000-01-01", "percent": "0"}]}},
        {"customer": {"code": "c", "name": "C", "country": "DE"}},
    ]
    assert tenant.post("/v1/steps", steps).status_code == 201
    price = {"model": "flat", "amount": "31"}
    plan = {
        "code": "p",
        "currency": "EUR",
        "interval": "month",
        "trial_end": "cancel",
        "charges": [{"code": "base", "kind": "recurring", "price": price, "tax": "none"}],
        "phases": [{"code": "trial", "for": "14 days", "free": True}, {"code": "regular"}],
    }
    wrong = {**plan, "phases": [{"free": True}, {"code": "regular", "for": "1 year"}]}
    pointers = {error["pointer"] for error in tenant.post("/v1/plans", wrong).json()["errors"]}
    assert pointers == {"/phases/0/for", "/phases/1/for"}
    published = tenant.post("/v1/plans", plan)
    assert published.status_code == 201, published.text
    assert [phase["code"] for phase in published.json()["form"]["phases"]] == ["trial", "regular"]
    assert published.json()["warnings"] == []
    bands = {"model": "bands", "bands": [{"unit": "1"}, {"unit": "2", "days": ["sun"]}], "otherwise": "3"}
    metered = {"code": "n", "kind": "usage", "meter": "n", "tax": "none", "price": bands}
    draft = tenant.put("/v1/plan-drafts/odd", {**plan, "code": "odd", "charges": [metered]})
    hidden = {"pointer": "/charges/0/price/bands/1", "detail": "is never used: bands above cover all of its hours"}
    assert draft.json()["warnings"] == [hidden]
    assert tenant.post("/v1/plans", {**plan, "code": "extra", "phases": None, "trial_end": None}).status_code == 201
    subscribed = {"code": "s", "customer": "c", "plan": "p", "trial_end": "continue"}
    assert tenant.post("/v1/subscriptions", subscribed).status_code == 201
    add_on = {"subscription": "s", "code": "x", "plan": "extra", "end": "2026-05-01"}
    added = tenant.post("/v1/subscriptions/add-on", add_on)
    assert added.status_code == 201, added.text
    assert tenant.post("/v1/subscriptions/add-on", add_on).json()["errors"][0]["pointer"] == "/code"
    quantity = {"subscription": "s", "add_on": "x", "charge": "base", "quantity": "2"}
    assert tenant.post("/v1/subscriptions/quantity", quantity).status_code == 200
    removed = tenant.post("/v1/subscriptions/remove-add-on", {"subscription": "s", "code": "x"})
    assert removed.status_code == 200, removed.text
    again = tenant.post("/v1/subscriptions/remove-add-on", {"subscription": "s", "code": "x"})
    assert again.json()["errors"][0]["detail"] == "'x' has ended already"
    kinds = [each["kind"] for each in tenant.get("/v1/subscriptions/s/history").json()["items"]]
    assert kinds == ["remove_add_on", "quantity", "add_on", "subscribe"]


def test_only_a_test_tenants_clock_moves_and_only_forward(api: Any) -> None:
    live, test = api.tenant(), api.tenant(kind="test", test_clock="2026-01-01")
    assert live.post("/v1/test-clock/advance", {"to": "2999-01-01"}).status_code == 409
    assert test.post("/v1/test-clock/advance", {"to": "2026-02-01"}).json() == {"now": "2026-01-31T23:00:00Z"}
    assert test.post("/v1/test-clock/advance", {"to": "2026-01-15"}).status_code == 409
    assert test.post("/v1/test-clock/advance", {"to": "soon"}).json()["errors"][0]["pointer"] == "/to"
    late = test.post("/v1/customers?at=2026-02-02", CUSTOMER)
    assert late.status_code == 422


def test_a_legal_entity_has_versions_and_a_record(tenant: Any) -> None:
    form = {"name": "Seller GmbH", "vat_id": "DE123456789", "address": {"city": "Berlin"}}
    assert tenant.get("/v1/legal-entities").json()["items"][0]["is_default"]
    changed = tenant.put("/v1/legal-entities/main", form, **{"If-Match": '"1"'})
    assert changed.json()["version"] == 2
    assert tenant.put("/v1/legal-entities/main", form, **{"If-Match": '"1"'}).status_code == 412
    assert tenant.put("/v1/legal-entities/main", {"nmae": "x"}).status_code == 422
    entry = tenant.get("/v1/audit?limit=1").json()["items"][0]
    assert (entry["action"], entry["after"]["name"]) == ("legal entity changed", "Seller GmbH")


def test_health_needs_no_key_and_says_which_part_is_away(api: Any) -> None:
    from dataclasses import replace

    from fastapi.testclient import TestClient

    from billing.errors import Unavailable
    from deployments.app import build_app

    assert api.http.get("/v1/health/live").json() == {"live": True}
    assert api.http.get("/v1/health/ready").json() == {
        "ready": True,
        "checks": {"database": "ok", "object_store": "ok", "usage_log": "ok"},
    }

    class Away:
        async def status(self) -> Any:
            await asyncio.sleep(0)
            raise Unavailable("no lane answers")

    with TestClient(build_app(replace(api.services, router=Away()), front=False)) as http:
        answer = http.get("/v1/health/ready")
    assert answer.status_code == 503
    assert answer.json()["checks"] == {"database": "ok", "object_store": "ok", "usage_log": "away"}
