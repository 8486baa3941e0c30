"""The main job over HTTP: usage in, cost now, a bill run, its invoice with files, a credit note, the proof."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from billing.errors import Unavailable

pytestmark = pytest.mark.postgres

EVENTS = "".join(
    f'{{"source":"a","id":"e{number}","type":"storage.write","customer":"{customer}",'
    f'"time":"2026-01-{number:02}T10:00:00Z","data":{{"gb":"{number}.5"}}}}\n'
    for number, customer in [(5, "acme"), (6, "acme"), (7, "nobody")]
)


@pytest.fixture(scope="module")
def billed(api: Any) -> Any:
    """A tenant with usage of January 2026, billed."""
    tenant = api.tenant()
    tenant.catalog()
    assert tenant.usage(EVENTS).status_code == 200
    run = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}, **{"Idempotency-Key": "january"})
    assert run.status_code == 202, run.text
    tenant.run = run.json()
    return tenant


def test_usage_and_cost_of_a_running_period_are_those_that_will_be_billed(api: Any) -> None:
    tenant = api.tenant(kind="test", test_clock="2026-01-20")
    steps = [
        {"at": "2026-01-01", "tax_code": {"code": "standard", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
        {
            "at": "2026-01-01",
            "meter": {"code": "storage", "event_type": "storage.write", "aggregation": "sum", "value": "gb"},
        },
    ]
    assert tenant.post("/v1/steps", steps).status_code == 201
    plan = {
        "code": "basic",
        "currency": "EUR",
        "interval": "month",
        "charges": [
            {
                "code": "storage",
                "kind": "usage",
                "meter": "storage",
                "tax": "standard",
                "price": {"model": "per_unit", "unit": "0.10"},
            }
        ],
    }
    assert tenant.post("/v1/plans?at=2026-01-01", plan).status_code == 201
    customer = {"code": "acme", "name": "ACME GmbH", "country": "DE"}
    assert tenant.post("/v1/customers?at=2026-01-01", customer).status_code == 201
    subscribe = {"code": "s1", "customer": "acme", "plan": "basic", "anchor": "calendar"}
    assert tenant.post("/v1/subscriptions?at=2026-01-01", subscribe).status_code == 201
    assert tenant.usage(EVENTS).status_code == 200
    usage = tenant.get("/v1/usage?customer=acme").json()
    assert usage["meters"] == [{"meter": "storage", "quantity": "12.0", "cost": "1.20", "currency": "EUR"}] or (
        usage["meters"][0]["quantity"] == "12" and usage["meters"][0]["cost"] == "1.20"
    )
    line = usage["lines"][0]
    assert (line["from"], line["to"], line["charge"]) == ("2026-01-01", "2026-02-01", "storage")
    assert tenant.get("/v1/usage?customer=acme&meter=other").json()["lines"] == []
    assert tenant.get("/v1/usage?customer=none").status_code == 404
    days = tenant.get("/v1/usage/days?since=2026-01-01&until=2026-01-31&customer=acme").json()["items"]
    assert [(day["day"], day["events"]) for day in days] == [("2026-01-05", 1), ("2026-01-06", 1)]


def test_a_bill_run_ends_with_an_invoice_whose_files_are_archived(billed: Any) -> None:
    run = billed.get(f"/v1/bill-runs/{billed.run['id']}").json()
    assert run["state"] == "done"
    listed = billed.get("/v1/invoices").json()["items"]
    assert [(each["customer"], each["net"], each["gross"]) for each in listed] == [("acme", "1.20", "1.43")]
    number = listed[0]["number"]
    invoice = billed.get(f"/v1/invoices/{number}").json()
    assert set(invoice["rests_on"]["data_versions"]) == {"product", "time_zones", "currencies", "tax_codes"}
    assert invoice["lines"][0]["amount"] == "1.20"
    assert invoice["lines"][0]["explanation"]["events"] == 2
    pdf = billed.get(f"/v1/invoices/{number}/pdf")
    assert pdf.headers["content-type"] == "application/pdf"
    assert pdf.content.startswith(b"%PDF-")
    proof = billed.get("/v1/archive/verify").json()
    assert proof["intact"]
    assert proof["entries"] >= 1
    assert billed.get("/v1/archive").json()["items"][0]["number"] == number
    verified = billed.get(f"/v1/bill-runs/{run['id']}/verify").json()
    assert verified == {"proven": True, "documents": 1, "findings": [], "erased": [], "erased_count": 0, "gaps": []}


def test_wildcards_of_a_search_stand_for_themselves(billed: Any) -> None:
    def found(search: str) -> int:
        return len(billed.get(f"/v1/invoices?search={quote(search)}").json()["items"])

    assert (found("acm"), found("ACME"), found("a_me"), found("a%e"), found("\\")) == (1, 1, 0, 0, 0)


def test_who_used_most_of_a_meter(billed: Any) -> None:
    asked = "/v1/usage/top?meter=storage&since=2026-01-01&until=2026-01-31"
    assert billed.get(asked).json() == {
        "meter": "storage", "by": "customer", "items": [{"group": "acme", "events": 2, "quantity": "12"}],
        "groups": 1, "events": 2, "quantity": "12",
    }  # fmt: skip
    lowest = billed.get(f"{asked}&by=day&order=lowest&limit=1").json()
    assert lowest["items"] == [{"group": "2026-01-05", "events": 1, "quantity": "5.5"}]
    assert (lowest["groups"], lowest["quantity"]) == (2, "12")
    refused = billed.get(f"{asked}&by=dimension:region")
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "query:by")


def test_what_runs_is_said_by_the_shards_and_by_the_log_when_they_do_not_answer(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = api.tenant()
    tenant.catalog()
    router = api.services.router
    asked: list[str] = []
    usage = router.usage

    async def counted(*arguments: Any, **named: Any) -> Any:
        asked.append(str(arguments[0]))
        return await usage(*arguments, **named)

    def running() -> Any:
        return [tenant.get(f"/v1/usage?customer=acme&period={one}").json()["meters"] for one in ("running", "unbilled")]

    moment = datetime.now(UTC) - timedelta(minutes=1)
    event = {"source": "a", "id": "1", "type": "storage.write", "customer": "acme", "data": {"gb": "2.5"}}
    assert tenant.usage(json.dumps(event | {"time": moment.isoformat()}) + "\n").status_code == 200
    with monkeypatch.context() as patched:
        patched.setattr(router, "usage", counted)
        patched.setattr("pipelines.usage_queries.rateable", None)  # reading the log would fail
        by_shards = running()
    assert asked == [tenant.id, tenant.id]

    async def gone(*_: Any, **__: Any) -> Any:
        raise Unavailable("no shard answers")

    with monkeypatch.context() as patched:
        patched.setattr(router, "usage", gone)
        assert running() == by_shards
    assert by_shards[0][0]["meter"] == "storage"


def test_the_same_bill_run_again_makes_nothing_new(billed: Any) -> None:
    replay = billed.post("/v1/bill-runs", {"up_to": "2026-02-01"}, **{"Idempotency-Key": "january"})
    assert replay.headers["idempotent-replay"] == "true"
    assert replay.json()["id"] == billed.run["id"]
    before = len(billed.get("/v1/invoices").json()["items"])
    again = billed.post("/v1/bill-runs", {"up_to": "2026-02-01"})
    assert again.status_code == 202
    assert len(billed.get("/v1/invoices").json()["items"]) == before
    assert len(billed.get("/v1/bill-runs").json()["items"]) == 2


def test_what_is_stored_is_rated_or_suspended(billed: Any) -> None:
    answer = billed.get("/v1/usage/completeness?since=2026-01-01&until=2026-01-31").json()
    assert answer["totals"] == {"stored": 3, "rated": 2, "suspended": 1, "voided": 0}
    assert sum(day["stored"] for day in answer["days"]) == 3
    suspense = billed.get("/v1/usage/suspense").json()
    assert suspense["reasons"] == {"unknown_customer": 1}
    assert [(each["id"], each["reason"]) for each in suspense["items"]] == [("e7", "unknown_customer")]


def test_events_come_in_pages_in_the_order_of_arrival_with_their_data_as_sent(billed: Any) -> None:
    first = billed.get("/v1/events?customer=acme&limit=1").json()
    second = billed.get(f"/v1/events?customer=acme&limit=1&cursor={first['next_cursor']}").json()
    assert [first["items"][0]["id"], second["items"][0]["id"]] == ["e5", "e6"]
    assert first["items"][0]["data"] == {"gb": "5.5"}
    assert second["next_cursor"] is None


def test_an_invoice_is_credited_by_lines_and_never_beyond_what_is_left(billed: Any) -> None:
    number = billed.get("/v1/invoices?type=invoice").json()["items"][0]["number"]
    part = billed.post("/v1/credit-notes", {"document": number, "lines": [{"line": 1, "amount": "0.20"}]})
    assert part.status_code == 201, part.text
    assert (part.json()["net"], part.json()["refers_to"]) == ("0.20", number)
    assert billed.get(f"/v1/invoices/{part.json()['number']}/pdf").content.startswith(b"%PDF-")
    rest = billed.post("/v1/credit-notes", {"document": number, "lines": [{"line": 1}]})
    assert rest.json()["net"] == "1.00"
    more = billed.post("/v1/credit-notes", {"document": number, "lines": [{"line": 1, "amount": "0.01"}]})
    assert more.status_code in (409, 422)
    assert billed.post("/v1/credit-notes", {"document": "none"}).status_code == 404


def test_a_run_after_the_clock_or_with_a_bad_date_is_refused_with_its_place(billed: Any) -> None:
    for up_to in ("2999-01-01", "2026-02-30", 7, "yesterday"):
        answer = billed.post("/v1/bill-runs", {"up_to": up_to})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/up_to"
