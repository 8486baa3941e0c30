"""Explaining a line over HTTP: arithmetic, exactly its events, and the proof against the log."""

from typing import Any

import pytest

pytestmark = pytest.mark.postgres


def event(id_: str, time: str, gb: str, **more: Any) -> str:
    import json

    form = {"source": "a", "id": id_, "type": "storage.write", "customer": "acme", "time": time, "data": {"gb": gb}}
    return json.dumps(form | more) + "\n"


@pytest.fixture(scope="module")
def billed(api: Any) -> Any:
    """January and February of one customer on tiers, with an event that came late."""
    tenant = api.tenant(kind="test", test_clock="2026-02-02")
    tenant.catalog()
    tiers = [{"up_to": "100", "unit": "0.10"}, {"up_to": None, "unit": "0.08"}]
    plan = {
        "code": "basic",
        "currency": "EUR",
        "interval": "month",
        "minimum": "60.00",
        "charges": [
            {"code": "base", "kind": "recurring", "timing": "advance", "tax": "standard",
             "price": {"model": "flat", "amount": "31.00"}},
            {"code": "storage", "kind": "usage", "meter": "storage", "tax": "standard",
             "price": {"model": "graduated", "tiers": tiers}, "unit": "GB"},
        ],
    }  # fmt: skip
    assert tenant.post("/v1/plans?at=2026-01-02", plan).status_code == 201
    subscribe = {"code": "s2", "customer": "acme", "plan": "basic", "anchor": "calendar", "start": "2026-01-10"}
    assert tenant.post("/v1/subscriptions?at=2026-01-10", subscribe).status_code == 201
    charge = {"customer": "acme", "code": "help", "name": "Help", "amount": "50.00", "tax": "standard"}
    assert tenant.post("/v1/ad-hoc-charges?at=2026-01-20", charge).status_code == 201
    first = event("e1", "2026-01-11T10:00:00Z", "120", subscription="s2")
    second = event("e2", "2026-01-12T10:00:00Z", "30.5", subscription="s2")
    other = event("x1", "2026-01-12T10:00:00Z", "7", subscription="s1")
    assert tenant.usage(first + second + other).status_code == 200
    assert tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).status_code == 202
    assert tenant.usage(event("e3", "2026-01-30T10:00:00Z", "10", subscription="s2")).status_code == 200
    assert tenant.post("/v1/bill-runs", {"up_to": "2026-02-02"}).status_code == 202
    return tenant


def lines_of(tenant: Any, place: int) -> tuple[str, list[dict[str, Any]]]:
    number = tenant.get("/v1/invoices?type=invoice").json()["items"][place]["number"]
    return number, tenant.get(f"/v1/invoices/{number}").json()["lines"]


def explained(tenant: Any, number: str, line: int) -> dict[str, Any]:
    answer = tenant.get(f"/v1/invoices/{number}/lines/{line}/explanation")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_tiered_usage_line_names_its_tiers_its_rounding_and_exactly_its_events(billed: Any) -> None:
    number, lines = lines_of(billed, -1)
    place = next(one["line"] for one in lines if (one["subscription"], one["charge"]) == ("s2", "storage"))
    why = explained(billed, number, place)
    assert why["derived"] == {
        "agrees": True, "from": "bill_run", "document": number, "line": place, "differences": []
    }  # fmt: skip
    assert [(tier["from"], tier["quantity"], tier["amount"]) for tier in why["price"]["tiers"]] == [
        ("0", "100", "10"),
        ("100", "50.5", "4.04"),
    ]
    assert (why["amount"]["exact"], why["amount"]["rounded"], why["amount"]["net"]) == ("14.04", "14.04", "14.04")
    assert why["price"]["words"] == "each part in its own tier: 0.1 EUR per GB up to 100, 0.08 EUR per GB above"
    assert (why["events"]["count"], why["events"]["first"]) == (2, "2026-01-11T10:00:00Z")
    assert [(one["id"], one["value"]) for one in why["events"]["sample"]] == [("e1", "120"), ("e2", "30.5")]
    assert why["rests_on"]["data_versions"]["product"]
    page = billed.get(why["events"]["all"] + "?limit=1").json()
    rest = billed.get(why["events"]["all"] + f"?limit=1&cursor={page['next_cursor']}").json()
    assert [one["items"][0]["id"] for one in (page, rest)] == ["e1", "e2"]
    assert rest["next_cursor"] is None


def test_every_line_of_every_document_agrees_with_the_log(billed: Any) -> None:
    kinds = set()
    for row in billed.get("/v1/invoices").json()["items"]:
        for line in billed.get(f"/v1/invoices/{row['number']}").json()["lines"]:
            why = explained(billed, row["number"], line["line"])
            assert why["derived"]["agrees"], why["derived"]
            assert why["amount"]["net"] == line["amount"]
            kinds.add((line["kind"], line["correction"]))
    assert {("usage", False), ("usage", True), ("recurring", False), ("minimum", True), ("one_off", False)} <= kinds


def test_a_correction_says_what_was_billed_what_is_rated_now_and_which_event_came_late(billed: Any) -> None:
    number, lines = lines_of(billed, 0)
    place = next(one["line"] for one in lines if one["correction"] and one["kind"] == "usage")
    why = explained(billed, number, place)
    assert why["difference"]["billed"]["quantity"] == "150.5"
    assert why["difference"]["rated"]["quantity"] == "160.5"
    assert (why["events"]["count"], why["events"]["late"]) == (3, 1)
    assert why["corrects"]["document"] == lines_of(billed, -1)[0]


def test_a_prorated_fee_names_its_days_and_has_no_events(billed: Any) -> None:
    number, lines = lines_of(billed, -1)
    place = next(one["line"] for one in lines if one["charge"] == "base" and one["from"] == "2026-01-10")
    why = explained(billed, number, place)
    assert why["proration"] == {"active": 22, "full": 31, "by": "day"}
    assert (why["amount"]["exact"], why["events"]) == ("22", None)
    assert billed.get(f"/v1/invoices/{number}/lines/{place}/events").json()["items"] == []


def test_a_line_of_a_credit_note_by_hand_is_derived_from_its_invoice(billed: Any) -> None:
    number, lines = lines_of(billed, -1)
    place = next(one["line"] for one in lines if (one["subscription"], one["charge"]) == ("s2", "storage"))
    form = {"document": number, "lines": [{"line": place, "amount": "4.00"}], "reason": "goodwill"}
    note = billed.post("/v1/credit-notes", form).json()["number"]
    why = explained(billed, note, 1)
    assert why["derived"] == {
        "agrees": True, "from": "credit_note", "document": number, "line": place, "differences": []
    }  # fmt: skip
    assert (why["corrects"], why["reason"]) == ({"document": number, "line": place}, "goodwill")
    assert why["events"]["count"] == 2


def test_an_unknown_document_or_line_is_not_found_and_needs_a_scope(billed: Any) -> None:
    number, lines = lines_of(billed, -1)
    assert billed.get(f"/v1/invoices/{number}/lines/{len(lines) + 1}/explanation").status_code == 404
    assert billed.get(f"/v1/invoices/{number}/lines/0/explanation").status_code == 404
    assert billed.get("/v1/invoices/none/lines/1/explanation").status_code == 404
    key = billed.key_with("usage:read")
    assert billed.get(f"/v1/invoices/{number}/lines/1/explanation", key=key).status_code == 403


def test_of_several_documents_of_one_run_each_line_is_derived_from_its_own(api: Any) -> None:
    tenant = api.tenant(kind="test", test_clock="2026-02-02")
    tenant.catalog()
    fee = {"code": "base", "kind": "recurring", "timing": "arrears", "tax": "standard"}
    plan = {"code": "dollars", "currency": "USD", "interval": "month",
            "charges": [{**fee, "price": {"model": "flat", "amount": "7.00"}}]}  # fmt: skip
    assert tenant.post("/v1/plans?at=2026-01-01", plan).status_code == 201
    subscribe = {"code": "s2", "customer": "acme", "plan": "dollars", "anchor": "calendar"}
    assert tenant.post("/v1/subscriptions?at=2026-01-01", subscribe).status_code == 201
    assert tenant.usage(event("e1", "2026-01-11T10:00:00Z", "120")).status_code == 200
    assert tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).status_code == 202
    rows = tenant.get("/v1/invoices").json()["items"]
    why = {row["currency"]: explained(tenant, row["number"], 1) for row in rows}
    assert {currency: (one["charge"], one["amount"]["net"]) for currency, one in why.items()} == {
        "EUR": ("storage", "12.00"),
        "USD": ("base", "7.00"),
    }
    assert all(one["derived"]["agrees"] for one in why.values())
