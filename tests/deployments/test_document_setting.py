"""What goes on one document, over REST: from the setting to the XML, proven, reversed and billed again."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from lxml import etree

pytestmark = pytest.mark.postgres
LEITWEG = "04011000-1234512345-06"
ADDRESS = {"street": "Am Markt 1", "post_code": "28195", "city": "Bremen"}
ENTITY = {"name": "Nordwind", "vat_id": "DE318204776", "address": ADDRESS,
          "endpoint": {"id": "rechnung@nordwind.example", "scheme": "EM"},
          "contact": {"name": "L. Brandt", "phone": "+49 421 1", "email": "rechnung@nordwind.example"},
          "bank": {"iban": "DE02 1203 0000 0000 2020 51"}}  # fmt: skip
FEE = {
    "code": "fee",
    "kind": "recurring",
    "timing": "advance",
    "tax": "vat",
    "price": {"model": "flat", "amount": "31"},
}


@pytest.fixture
def tenant(api: Any) -> Any:
    """A test tenant on 10 January with one customer, of whose contracts two name an order and one an authority."""
    made = api.tenant(kind="test", test_clock="2026-01-10", legal_entity=ENTITY, document_per="order")
    tax = {"code": "vat", "percents": [{"from": "2021-01-01", "percent": "19"}]}
    assert made.post("/v1/tax-codes", tax).status_code == 201
    plan = {"code": "basic", "currency": "EUR", "interval": "month", "charges": [FEE]}
    assert made.post("/v1/plans", plan).status_code == 201
    customer = {"code": "c", "name": "Stadt", "country": "DE", "address": ADDRESS, "order_reference": "always",
                "endpoint": {"id": LEITWEG, "scheme": "0204"}}  # fmt: skip
    assert made.post("/v1/customers", customer).status_code == 201
    for code, said in (("a", {"order_reference": "4711", "cost_centre": "K-1"}), ("b", {"order_reference": "4711"}),
                       ("d", {"leitweg_id": LEITWEG})):  # fmt: skip
        form = {"code": code, "customer": "c", "plan": "basic", "anchor": "calendar", "start": "2026-01-01", **said}
        answer = made.post("/v1/subscriptions", form)
        assert answer.status_code == 201, answer.text
    return made


def billed(tenant: Any, up_to: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The run, and the documents that it made in their order."""
    run = tenant.post("/v1/bill-runs", {"up_to": up_to, "wait": True}).json()
    assert (run["state"], run["parked"]) == ("done", []), run
    rows = tenant.get("/v1/invoices?order=oldest").json()["items"]
    numbers = [row["number"] for row in rows if row["bill_run"] == run["id"]]
    return run, [tenant.get(f"/v1/invoices/{number}").json() for number in numbers]


def said_by(tenant: Any, number: str) -> dict[str, str | None]:
    """Buyer reference, order, cost centre and electronic addresses as the XML of a document has them."""
    answer = tenant.get(f"/v1/invoices/{number}/xml")
    assert answer.status_code == 200, answer.text
    root = etree.fromstring(answer.content)
    paths = {"reference": "BuyerReference", "order": "BuyerOrderReferencedDocument/{*}IssuerAssignedID",
             "cost_centre": "ApplicableHeaderTradeSettlement/{*}ReceivableSpecifiedTradeAccountingAccount/{*}ID",
             "of_lines": "SpecifiedLineTradeSettlement/{*}ReceivableSpecifiedTradeAccountingAccount/{*}ID",
             "buyer": "BuyerTradeParty/{*}URIUniversalCommunication/{*}URIID",
             "seller": "SellerTradeParty/{*}URIUniversalCommunication/{*}URIID"}  # fmt: skip
    return {name: root.findtext(".//{*}" + path) for name, path in paths.items()}


def test_documents_by_order_are_billed_said_proven_reversed_and_billed_again(tenant: Any) -> None:
    run, made = billed(tenant, "2026-01-10")
    assert [(one["group"]["code"], [line["subscription"] for line in one["lines"]], one["net"]) for one in made] == [
        ("", ["d"], "31.00"),
        ("4711", ["a", "b"], "62.00"),
    ]
    assert {one["file"] for one in made} == {"archived"}, made
    addresses = {"buyer": LEITWEG, "seller": "rechnung@nordwind.example"}
    own = {"reference": LEITWEG, "order": "always", "cost_centre": None, "of_lines": None, **addresses}
    assert said_by(tenant, made[0]["number"]) == own
    ordered = {"reference": None, "order": "4711", "cost_centre": None, "of_lines": "K-1", **addresses}
    assert said_by(tenant, made[1]["number"]) == ordered
    assert [line["cost_centre"] for line in made[1]["lines"]] == ["K-1", None]
    proof = tenant.get(f"/v1/bill-runs/{run['id']}/verify").json()
    assert (proof["documents"], proof["findings"], proof["gaps"]) == (2, [], [])
    reversed_ = tenant.post(f"/v1/bill-runs/{run['id']}/reverse", {})
    assert reversed_.status_code == 202, reversed_.text
    assert tenant.get(f"/v1/bill-runs/{run['id']}").json()["state"] == "reversed"
    rows = tenant.get("/v1/invoices?order=oldest").json()["items"]
    notes = [tenant.get(f"/v1/invoices/{row['number']}").json() for row in rows if row["type"] == "credit_note"]
    assert [(one["group"], one["net"]) for one in notes] == [(one["group"], one["net"]) for one in made]
    _, again = billed(tenant, "2026-01-10")
    assert [(one["group"], one["lines"]) for one in again] == [(one["group"], one["lines"]) for one in made]


def test_the_setting_is_read_and_changed_and_a_preview_follows_it(tenant: Any) -> None:
    assert tenant.get("/v1/document-setting").json() == {"per": "order"}
    form = {"subscription": "b", "order_reference": "4712"}
    assert tenant.post("/v1/subscriptions/references", form).status_code == 200
    preview = tenant.get("/v1/customers/c/next-invoice").json()
    assert Counter(one["group"]["code"] for one in preview["documents"]) == {"": 1, "4711": 1, "4712": 1}
    wrong = tenant.post("/v1/document-setting", {"per": "month"})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/per")
    assert tenant.post("/v1/document-setting", {"per": "customer"}).json() == {"per": "customer"}
    (whole,) = tenant.get("/v1/customers/c/next-invoice").json()["documents"]
    assert whole["group"] is None
    assert Decimal(whole["net"]) == sum(Decimal(one["net"]) for one in preview["documents"])


def test_a_wrong_leitweg_id_of_a_subscription_is_refused_by_its_place(tenant: Any) -> None:
    wrong = tenant.post("/v1/subscriptions/references", {"subscription": "d", "leitweg_id": LEITWEG[:-1] + "7"})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/leitweg_id")
