"""The life of a contract over REST: back-dated and future starts, discounts, plan versions, the record of changes, and
bad input, which is refused by its place and leaves nothing behind."""

from typing import Any

import pytest

pytestmark = pytest.mark.postgres
TAX = {"code": "none", "percents": [{"from": "2021-01-01", "percent": "0"}]}
FEE = {
    "code": "fee",
    "kind": "recurring",
    "timing": "advance",
    "price": {"model": "flat", "amount": "31"},
    "tax": "none",
}
CALLS = {"code": "calls", "kind": "usage", "meter": "calls", "tax": "none", "price": {"model": "per_unit", "unit": "1"}}
PLAN = {"code": "basic", "currency": "EUR", "interval": "month", "charges": [FEE, CALLS]}


@pytest.fixture
def tenant(api: Any) -> Any:
    """A test tenant on 10 January with a plan and a customer, no subscription."""
    made = api.tenant(kind="test", test_clock="2026-01-10")
    assert made.post("/v1/tax-codes", TAX).status_code == 201
    meter = {"code": "calls", "event_type": "call", "aggregation": "count"}
    assert made.post("/v1/meters", meter).status_code == 201
    assert made.post("/v1/plans", PLAN).status_code == 201
    assert made.post("/v1/customers", {"code": "c", "name": "C"}).status_code == 201
    return made


def subscribe(tenant: Any, code: str = "s", **more: Any) -> Any:
    return tenant.post(
        "/v1/subscriptions", {"code": code, "customer": "c", "plan": "basic", "anchor": "calendar", **more}
    )


def advance(tenant: Any, to: str) -> None:
    answer = tenant.post("/v1/test-clock/advance", {"to": to})
    assert answer.status_code == 200, answer.text


def billed(tenant: Any, up_to: str) -> list[tuple[str, str, str, str]]:
    """Lines of what a run up to that day makes: subscription, from, to, amount."""
    known = {row["number"] for row in tenant.get("/v1/invoices").json()["items"]}
    run = tenant.post("/v1/bill-runs", {"up_to": up_to, "wait": True}).json()
    assert (run["state"], run["parked"]) == ("done", []), run
    lines: list[tuple[str, str, str, str]] = []
    for row in tenant.get("/v1/invoices?order=oldest").json()["items"]:
        if row["number"] not in known:
            for line in tenant.get(f"/v1/invoices/{row['number']}").json()["lines"]:
                lines.append((line["subscription"], line["from"], line["to"], line["amount"]))
    return lines


def test_a_subscription_that_starts_in_the_past_is_billed_from_its_start(tenant: Any) -> None:
    assert subscribe(tenant, start="2025-12-01").status_code == 201
    assert billed(tenant, "2026-01-10") == [
        ("s", "2025-12-01", "2026-01-01", "31.00"),
        ("s", "2026-01-01", "2026-02-01", "31.00"),
    ]


def test_a_subscription_that_starts_in_the_future_is_billed_when_it_starts(tenant: Any) -> None:
    assert subscribe(tenant, start="2026-01-17").status_code == 201
    assert billed(tenant, "2026-01-10") == []
    advance(tenant, "2026-01-20")
    assert billed(tenant, "2026-01-20") == [("s", "2026-01-17", "2026-02-01", "15.00")]


def test_a_discount_is_taken_off_the_charges_it_names_and_an_amount_once(tenant: Any) -> None:
    discounts = [{"percent": "10", "charges": ["fee"]}, {"amount": "5"}]
    assert subscribe(tenant, start="2026-01-01", discounts=discounts).status_code == 201
    assert billed(tenant, "2026-01-10") == [("s", "2026-01-01", "2026-02-01", "27.90")]
    (row,) = tenant.get("/v1/invoices").json()["items"]
    invoice = tenant.get(f"/v1/invoices/{row['number']}").json()
    assert (invoice["lines"][0]["allowance"], invoice["net"]) == ("3.10", "22.90")
    assert [(one["kind"], one["source"], one["amount"]) for one in invoice["allowances"]] == [
        ("discount", "s/2", "5.00")
    ]
    advance(tenant, "2026-02-01")
    billed(tenant, "2026-02-01")
    assert tenant.get("/v1/invoices").json()["items"][0]["net"] == "27.90"  # the amount was for one invoice


def test_a_draft_becomes_a_version_that_is_taken_from_its_day_on(tenant: Any) -> None:
    draft = {**PLAN, "effective_from": "2026-02-01", "charges": [{**FEE, "price": {"model": "flat", "amount": "62"}}]}
    assert tenant.put("/v1/plan-drafts/basic", draft).status_code == 200
    assert subscribe(tenant, "a", start="2026-02-01").status_code == 201  # a draft is not there for contracts
    assert tenant.post("/v1/plan-drafts/basic/publish", {}).status_code == 201
    assert tenant.get("/v1/plan-drafts/basic").status_code == 404
    assert subscribe(tenant, "b", start="2026-01-31").status_code == 201
    assert subscribe(tenant, "c", start="2026-02-01").status_code == 201
    plan = tenant.get("/v1/plans/basic").json()
    assert [version.get("effective_from") for version in plan["form"]["versions"]] == [None, "2026-02-01"]
    advance(tenant, "2026-02-01")
    lines = billed(tenant, "2026-02-01")
    assert [(code, amount) for code, start, _, amount in lines if start == "2026-02-01"] == [
        ("a", "31.00"), ("b", "31.00"), ("c", "62.00"),
    ]  # fmt: skip


def test_every_object_has_its_history_with_who_when_before_and_after(tenant: Any) -> None:
    key = tenant.key_with("catalog:write", "catalog:read", "contracts:write", "contracts:read")
    budget = {"code": "b", "customer": "c", "amount": "100", "period": "month", "thresholds": ["50"]}
    assert tenant.post("/v1/budgets", budget).status_code == 201
    assert subscribe(tenant).status_code == 201
    quantity = {"subscription": "s", "charge": "fee", "quantity": "2"}
    changes: list[tuple[str, str, str, Any]] = [
        ("tax-codes/none", "put", "/v1/tax-codes/none", {**TAX, "name": "no tax"}),
        ("meters/calls", "put", "/v1/meters/calls", None),  # a meter never changes
        ("plans/basic", "post", "/v1/plans", {**PLAN, "name": "Basic 2"}),
        ("customers/c", "put", "/v1/customers/c", {"code": "c", "name": "C the second"}),
        ("budgets/b", "put", "/v1/budgets/b", {**budget, "amount": "200"}),
        ("subscriptions/s", "post", "/v1/subscriptions/quantity", quantity),
    ]
    for path, method, route, form in changes:
        before = tenant.get(f"/v1/{path}").json()["form"]
        if form is not None:
            sent = getattr(tenant.api.http, method)(route, json=form, headers={"Authorization": f"Bearer {key}"})
            assert sent.status_code in (200, 201), (path, sent.text)
        after = tenant.get(f"/v1/{path}").json()["form"]
        items = tenant.get(f"/v1/{path}/history").json()["items"]
        newest, first = items[0], items[-1]
        assert first["before"] is None, path
        assert first["actor"] == f"key {tenant.key[:12]}", path
        assert newest["after"] == after, path
        assert newest["changed_at"] >= first["changed_at"]
        if form is not None:
            assert (newest["before"], newest["actor"]) == (before, f"key {key[:12]}"), path
            assert [item["after"] for item in items[1:2]] == [before], path


def test_steps_of_one_change_have_the_before_and_after_of_the_change(tenant: Any) -> None:
    steps = [{"customer": {"code": "d", "name": name}} for name in ("one", "two")]
    assert tenant.post("/v1/steps", steps).status_code == 201
    items = tenant.get("/v1/customers/d/history").json()["items"]
    assert [(item["before"], item["after"]["name"]) for item in items] == [(None, "two"), (None, "two")]


# --- bad input


def _price(**price: Any) -> dict[str, Any]:
    return {**PLAN, "code": "bad", "charges": [{**CALLS, "price": price}]}


BAD: dict[str, tuple[str, Any, str, str]] = {
    "tiers that overlap": (
        "/v1/plans",
        _price(model="graduated", tiers=[{"up_to": "10", "unit": "1"}, {"up_to": "10", "unit": "1"}, {"up_to": None}]),
        "/charges/0/price/tiers/1/up_to",
        "",
    ),
    "tiers that go back": (
        "/v1/plans",
        _price(model="volume", tiers=[{"up_to": "10", "unit": "1"}, {"up_to": "5", "unit": "1"}, {"up_to": None}]),
        "/charges/0/price/tiers/1/up_to",
        "",
    ),
    "tiers without an open end": (
        "/v1/plans",
        _price(model="graduated", tiers=[{"up_to": "10", "unit": "1"}, {"up_to": "20", "unit": "1"}]),
        "/charges/0/price/tiers/1/up_to",
        "",
    ),
    "an open end before the last tier": (
        "/v1/plans",
        _price(model="graduated", tiers=[{"up_to": None, "unit": "1"}, {"up_to": None, "unit": "1"}]),
        "/charges/0/price/tiers/0/up_to",
        "",
    ),
    "an unknown currency": ("/v1/plans", {**PLAN, "code": "bad", "currency": "EUX"}, "/currency", "ISO 4217"),
    "13 decimals": (
        "/v1/plans",
        _price(model="per_unit", unit="0.0000000000001"),
        "/charges/0/price/unit",
        "12 after the point",
    ),
    "a negative minimum": ("/v1/plans", {**PLAN, "code": "bad", "minimum": "-1"}, "/minimum", "at least 0"),
    "an unknown key": ("/v1/plans", {**PLAN, "code": "bad", "colour": "red"}, "/colour", "unknown key 'colour'"),
    "an unknown meter": (
        "/v1/plans",
        {**PLAN, "code": "bad", "charges": [{**CALLS, "meter": "none"}]},
        "/charges/0/meter",
        "none",
    ),
    "a price in a draft with 13 decimals": (
        "PUT /v1/plan-drafts/bad",
        _price(model="per_unit", unit="0.0000000000001"),
        "/charges/0/price/unit",
        "12 after the point",
    ),
    "a payer who is paid for by the same customer": (
        "PUT /v1/customers/c",
        {"code": "c", "payer": "child"},
        "/payer",
        "",
    ),
    "a customer who pays for himself": ("/v1/customers", {"code": "bad", "payer": "bad"}, "/payer", ""),
    "a payer who is not there": ("/v1/customers", {"code": "bad", "payer": "nobody"}, "/payer", "nobody"),
    "a change before the start": (
        "/v1/subscriptions/change",
        {"subscription": "later", "plan": "basic", "when": "now"},
        "/subscription",
        "starts only later",
    ),
    "a cancellation after the end": (
        "/v1/subscriptions/cancel",
        {"subscription": "ended", "when": "now"},
        "/subscription",
        "has ended",
    ),
    "two overrides of one moment": (
        "/v1/subscriptions/override",
        {"subscription": "s", "charge": "calls", "price": {"model": "per_unit", "unit": "3"}},
        "/charge",
        "of the same moment",
    ),
    "a quantity that is negative": (
        "/v1/subscriptions/quantity",
        {"subscription": "s", "charge": "fee", "quantity": "-1"},
        "/quantity",
        "at least 0",
    ),
    "a discount of 101 percent": (
        "/v1/subscriptions",
        {"code": "bad", "customer": "c", "plan": "basic", "discounts": [{"percent": "101"}]},
        "/discounts/0/percent",
        "at most 100",
    ),
    "a change that lies in the future": (
        "/v1/subscriptions/cancel?at=2027-01-01",
        {"subscription": "s", "when": "now"},
        "query:at",
        "after now",
    ),
}


@pytest.fixture(scope="module")
def lived(api: Any) -> Any:
    """A test tenant with subscriptions that run, start later and have ended, and a customer with a payer."""
    made = api.tenant(kind="test", test_clock="2026-01-10")
    subscription = {"customer": "c", "plan": "basic", "anchor": "calendar"}
    steps: list[dict[str, Any]] = [
        {"tax_code": TAX},
        {"meter": {"code": "calls", "event_type": "call", "aggregation": "count"}},
        {"publish": {"plan": PLAN}},
        {"customer": {"code": "c", "name": "C"}},
        {"customer": {"code": "child", "name": "Child", "payer": "c"}},
        {"subscribe": {**subscription, "code": "s"}},
        {"subscribe": {**subscription, "code": "later", "start": "2026-03-01"}},
        {"at": "2026-01-01", "subscribe": {**subscription, "code": "ended"}},
        {"at": "2026-01-05", "cancel": {"subscription": "ended", "when": "now"}},
        {"override": {"subscription": "s", "charge": "calls", "price": {"model": "per_unit", "unit": "2"}}},
    ]
    answer = made.post("/v1/steps", steps)
    assert answer.status_code == 201, answer.text
    return made


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_its_place_and_leaves_nothing_behind(lived: Any, name: str) -> None:
    route, form, pointer, words = BAD[name]
    number = lived.api.services.masters.newest(lived.id)[0]
    method, _, path = route.rpartition(" ")
    answer = getattr(lived, (method or "post").lower())(path, form)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    errors = answer.json()["errors"]
    assert [error["pointer"] for error in errors] == [pointer]
    assert words in errors[0]["detail"]
    assert errors[0]["detail"] in answer.json()["detail"]
    assert lived.api.services.masters.newest(lived.id)[0] == number
    for kind in ("plans", "plan-drafts", "customers", "subscriptions"):
        assert lived.get(f"/v1/{kind}/bad").status_code == 404


def test_one_bad_step_among_many_stores_none_of_them(lived: Any) -> None:
    number = lived.api.services.masters.newest(lived.id)[0]
    steps = [
        {"customer": {"code": "good", "name": "Good"}},
        {"customer": {"code": "c", "payer": "child"}},
        {"publish": {"plan": {**PLAN, "currency": "EUX"}}},
    ]
    answer = lived.post("/v1/steps", steps)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/1/customer/payer"
    assert lived.api.services.masters.newest(lived.id)[0] == number
    assert lived.get("/v1/customers/good").status_code == 404
