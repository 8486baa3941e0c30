"""Previews over HTTP: what the next bill run would make, with and without a change; and nothing is stored."""

from typing import Any

import pytest

pytestmark = pytest.mark.postgres

DOCUMENT = ("customer", "type", "currency", "date", "net", "tax", "gross", "due", "prepaid", "allowances", "taxes")
LINE = ("subscription", "charge", "kind", "from", "to", "quantity", "amount", "tax", "correction", "corrects")
PREMIUM = {
    "code": "premium", "currency": "EUR", "interval": "month", "charges": [
        {"code": "base", "kind": "recurring", "timing": "advance", "tax": "standard",
         "price": {"model": "flat", "amount": "62.00"}},
        {"code": "storage", "kind": "usage", "meter": "storage", "tax": "standard",
         "price": {"model": "per_unit", "unit": "0.05"}},
    ],
}  # fmt: skip


def event(id_: str, time: str, gb: str) -> str:
    return (
        f'{{"source":"a","id":"{id_}","type":"storage.write","customer":"acme","time":"{time}",'
        f'"data":{{"gb":"{gb}"}}}}\n'
    )


def start(api: Any) -> Any:
    """One customer on the first of two plans, January billed, an event late, a wallet."""
    tenant = api.tenant(kind="test", test_clock="2026-03-10T09:00:00+01:00")
    tenant.catalog()
    basic = {**PREMIUM, "code": "classic", "charges": [
        {**PREMIUM["charges"][0], "price": {"model": "flat", "amount": "31.00"}},
        {**PREMIUM["charges"][1], "price": {"model": "per_unit", "unit": "0.10"}},
    ]}  # fmt: skip
    for plan in (basic, PREMIUM):
        assert tenant.post("/v1/plans?at=2026-01-02", plan).status_code == 201
    subscribe = {"code": "s2", "customer": "acme", "plan": "classic", "anchor": "calendar", "start": "2026-01-10"}
    assert tenant.post("/v1/subscriptions?at=2026-01-10", subscribe).status_code == 201
    assert tenant.usage(event("e1", "2026-01-11T10:00:00Z", "120")).status_code == 200
    assert tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).status_code == 202
    top_up = {"customer": "acme", "amount": "10.00", "kind": "purchased"}
    assert tenant.post("/v1/top-ups?at=2026-03-01", top_up).status_code == 201
    sent = event("e2", "2026-01-30T10:00:00Z", "10") + event("e3", "2026-02-05T10:00:00Z", "7.5")
    assert tenant.usage(sent).status_code == 200
    return tenant


def cut_down(document: dict[str, Any]) -> dict[str, Any]:
    lines = [{name: line[name] for name in LINE} for line in document["lines"]]
    return {name: document[name] for name in DOCUMENT} | {"lines": lines}


def billed(tenant: Any, up_to: str) -> list[dict[str, Any]]:
    run = tenant.post("/v1/bill-runs", {"up_to": up_to}).json()["id"]
    rows = tenant.get(f"/v1/invoices?bill_run={run}").json()["items"]
    return [cut_down(tenant.get(f"/v1/invoices/{row['number']}").json()) for row in reversed(rows)]


def test_the_next_invoice_is_the_one_that_the_next_bill_run_makes_and_leaves_no_trace(api: Any) -> None:
    tenant = start(api)
    before = tenant.get("/v1/invoices").json()
    preview = tenant.get("/v1/customers/acme/next-invoice?up_to=2026-03-10")
    assert preview.status_code == 200, preview.text
    assert tenant.get("/v1/invoices").json() == before
    again = tenant.get("/v1/customers/acme/next-invoice?up_to=2026-03-10").json()
    made = [cut_down(document) for document in preview.json()["documents"]]
    assert made == [cut_down(document) for document in again["documents"]]
    assert made[0]["prepaid"] == "10.00"  # shown, and not taken: the second preview still has it
    assert any(line["correction"] for line in made[0]["lines"])
    assert made == billed(tenant, "2026-03-10")
    assert preview.json()["totals"]["EUR"]["gross"] == made[0]["gross"]


def test_without_a_day_the_preview_goes_to_the_end_of_the_running_period(api: Any) -> None:
    tenant = start(api)
    preview = tenant.get("/v1/customers/acme/next-invoice").json()
    assert (preview["up_to"], preview["as_of"], preview["parked"]) == ("2026-04-01", "2026-03-10T08:00:00Z", None)
    assert preview["documents"][0]["date"] == "2026-04-01"
    fees = [line["from"] for line in preview["documents"][0]["lines"] if line["charge"] == "base"]
    assert fees == ["2026-03-01", "2026-04-01"]


def test_a_change_shows_the_documents_that_it_then_makes_line_by_line(api: Any) -> None:
    tenant = start(api)
    assert billed(tenant, "2026-03-01") != []
    change = {"at": "2026-03-10T09:00:00+01:00", "change": {"subscription": "s2", "plan": "premium", "when": "now"}}
    answer = tenant.post("/v1/previews/change", {"steps": [change], "up_to": "2026-03-10T09:00:00+01:00"})
    assert answer.status_code == 200, answer.text
    (one,) = answer.json()["customers"]
    history = tenant.get("/v1/subscriptions/s2/history").json()["items"]
    assert [step["kind"] for step in history] == ["subscribe"]
    fees = [
        (line["plan"], line["from"][:10], line["to"], line["before"], line["after"])
        for line in one["lines"]
        if line["charge"] == "base"
    ]
    # 21 of 31 days: the day of the change is the old plan's.
    assert fees == [
        ("classic", "2026-03-10", "2026-04-01", "0.00", "-21.00"),
        ("premium", "2026-03-10", "2026-04-01", "0.00", "42.00"),
    ]
    assert one["due_now"] == one["difference"]
    assert one["due_now"]["EUR"]["net"] == "21.00"
    form = {key: value for key, value in change["change"].items()}
    assert tenant.post("/v1/subscriptions/change?at=2026-03-10T09:00:00%2B01:00", form).status_code == 200
    made = billed(tenant, "2026-03-10T09:00:00+01:00")
    assert [cut_down(document) for document in one["after"]["documents"]] == made


def test_a_change_that_lies_ahead_is_previewed_and_a_bad_one_named_with_its_place(api: Any) -> None:
    tenant = start(api)
    ahead = {"at": "2026-05-15", "cancel": {"subscription": "s2", "when": "now"}}
    (one,) = tenant.post("/v1/previews/change", {"steps": [ahead]}).json()["customers"]
    assert one["up_to"] == "2026-06-01"
    may = [line for line in one["lines"] if line["charge"] == "base" and line["from"] == "2026-05-01"]
    assert [(line["before"], line["after"], line["difference"]) for line in may] == [("31.00", "14.00", "-17.00")]
    cases: list[tuple[Any, str]] = [
        ([{"change": {"subscription": "none", "plan": "premium"}}], "/steps/0/change/subscription"),
        ([{"at": "2999-01-01", "cancel": {"subscription": "s2"}}], "/steps/0/at"),
        ([{"bill_run": {"up_to": "2026-03-01"}}], "/steps/0"),
        ([{"publish": {"plan": {**PREMIUM, "currency": "XXX"}}}], "/steps/0/publish/plan/currency"),
        ([], "/steps"),
    ]
    for steps, pointer in cases:
        answer = tenant.post("/v1/previews/change", {"steps": steps})
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["pointer"] == pointer
    answer = tenant.post("/v1/previews/change", {"steps": [{"publish": {"plan": PREMIUM}}]})
    assert answer.json()["errors"][0]["pointer"] == "/customers"
    assert tenant.get("/v1/customers/none/next-invoice").status_code == 404
    assert tenant.get("/v1/customers/acme/next-invoice?up_to=2999-01-01").status_code == 422


def test_a_payer_sees_the_lines_of_whom_he_pays_for_before_and_after_they_are_billed(api: Any) -> None:
    tenant = start(api)
    steps = [
        {"at": "2026-01-01", "customer": {"code": "parent", "name": "Parent SE", "country": "DE"}},
        {"at": "2026-01-01", "customer": {"code": "acme", "payer": "parent"}},
    ]
    assert tenant.post("/v1/steps", steps).status_code == 201
    seen = [
        tenant.get(f"/v1/customers/{code}/next-invoice?up_to=2026-03-10").json()["documents"]
        for code in ("parent", "acme")
    ]
    assert [one["customer"] for one in seen[0]] == ["parent"]
    # What corrects January, which acme was billed for himself, is a document of his own.
    assert [one["customer"] for one in seen[1]] == ["acme", "parent"]
    assert seen[1][1] == seen[0][0]
    made = billed(tenant, "2026-03-10")
    assert [cut_down(document) for document in seen[1]] == made
    number = tenant.get("/v1/invoices?customer=parent").json()["items"][0]["number"]
    for place in range(1, len(made[1]["lines"]) + 1):
        why = tenant.get(f"/v1/invoices/{number}/lines/{place}/explanation").json()
        assert why["derived"]["agrees"], why["derived"]
        assert why["customer"] == "parent"
