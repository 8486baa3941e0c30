"""Who could not get his document is parked before it has a number, and billed once his data are right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import pipelines.run_issuable as look
from billing.steps import customers as customer_steps
from pipelines.documents import NotIssuable, issuable
from tests.deployments.conftest import Api, Tenant

pytestmark = pytest.mark.postgres
ADDRESS = {"street": "Am Markt 1", "post_code": "28195", "city": "Bremen"}
ENTITY = {"name": "Nordwind", "vat_id": "DE318204776", "address": ADDRESS}
AUSTRIAN = {"country": "AT", "address": {**ADDRESS, "city": "Wien"}, "tax_treatment": "reverse_charge"}


def tenant_of(api: Api, **customers: dict[str, Any]) -> Tenant:
    """A tenant whose customers pay 31 EUR in advance, each by a contract of his name."""
    tenant = api.tenant(kind="test", test_clock="2026-01-10", legal_entity=ENTITY)
    fee = {"code": "fee", "kind": "recurring", "timing": "advance", "tax": "vat",
           "price": {"model": "flat", "amount": "31"}}  # fmt: skip
    plan = {"code": "p", "currency": "EUR", "interval": "month", "charges": [fee]}
    forms: list[dict[str, Any]] = [
        {"tax_code": {"code": "vat", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
        {"publish": {"plan": plan}},
    ]
    for code, form in customers.items():
        forms.append({"customer": {"code": code, "name": code, "country": "DE", "address": ADDRESS, **form}})
        forms.append({"subscribe": {"code": f"s-{code}", "customer": code, "plan": "p", "anchor": "calendar"}})
    answer = tenant.post("/v1/steps", [{"at": "2026-01-01", **form} for form in forms])
    assert answer.status_code == 201, answer.text
    return tenant


def billed(tenant: Tenant) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """A run, and (customer, number) of all documents there are."""
    answer = tenant.post("/v1/bill-runs", {"up_to": "2026-01-10", "wait": True})
    assert answer.status_code == 202, answer.text
    assert answer.json()["state"] == "done", answer.json()
    rows = tenant.get("/v1/invoices?order=oldest").json()["items"]
    return answer.json(), [(row["customer"], row["number"]) for row in rows]


def test_whose_document_breaks_a_rule_gets_no_number_and_is_billed_by_the_next_run(api: Api) -> None:
    tenant = tenant_of(api, a={}, b=AUSTRIAN, c={})
    run, documents = billed(tenant)
    (parked,) = run["parked"]
    assert (parked["customer"], parked["code"]) == ("b", "not_issuable")
    assert parked["reason"].startswith("BR-AE-02: reverse charge needs the buyer's VAT id"), parked
    assert documents == [("a", "RE-2026-000001"), ("c", "RE-2026-000002")]
    assert (run["documents"]["archived"], run["documents"]["parked"]) == (2, 0)
    assert tenant.get(f"/v1/bill-runs/{run['id']}/verify").json()["proven"]
    mended = {"at": "2026-01-05", "customer": {"code": "b", "vat_id": "ATU12345675"}}
    assert tenant.post("/v1/steps", [mended]).status_code == 201
    run, documents = billed(tenant)
    assert (run["parked"], documents[2:]) == ([], [("b", "RE-2026-000003")])
    assert run["documents"]["archived"] == 1


def test_official_rules_are_asked_and_who_shares_documents_is_parked_with_him(api: Api) -> None:
    payer = {"vat_id": "QQ123456789"}  # no rule of our own looks at the country that a VAT id begins with
    tenant = tenant_of(api, payer=payer, child={"payer": "payer"}, other={})
    run, documents = billed(tenant)
    assert [one["customer"] for one in run["parked"]] == ["child", "payer"]
    own = next(one["reason"] for one in run["parked"] if one["customer"] == "payer")
    assert "BR-CO-09" in own
    assert run["parked"][0]["reason"] == f"shares documents with customer 'payer': {own}"
    assert documents == [("other", "RE-2026-000001")]


def test_a_language_without_words_that_was_stored_before_anybody_looked_parks_its_customer(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(customer_steps, "LANGUAGES", ("de", "en", "fr"))
        tenant = tenant_of(api, a={"language": "fr"}, b={"language": "en"})
    run, documents = billed(tenant)
    assert [(one["customer"], "'fr'" in one["reason"]) for one in run["parked"]] == [("a", True)]
    assert [customer for customer, _ in documents] == ["b"]


def test_a_line_without_a_name_parks_whose_it_is(api: Api) -> None:
    tenant = tenant_of(api, a={}, b={}, c={})
    charge = {"code": "extra", "kind": "recurring", "timing": "advance", "tax": "vat", "name": " ",
              "price": {"model": "flat", "amount": "5"}}  # fmt: skip
    plan = {"code": "q", "currency": "EUR", "interval": "month", "charges": [charge]}
    steps = [{"publish": {"plan": plan}}, {"subscribe": {"code": "s-q", "customer": "b", "plan": "q"}}]
    answer = tenant.post("/v1/steps", [{"at": "2026-01-01", **step} for step in steps])
    assert answer.status_code == 201, answer.text
    run, documents = billed(tenant)
    assert [(one["customer"], one["reason"]) for one in run["parked"]] == [("b", "BR-25: a line needs a name")]
    assert [customer for customer, _ in documents] == ["a", "c"]


def test_a_character_that_no_font_has_parks_whose_document_would_show_it_before_it_has_a_number(api: Api) -> None:
    unseen = "\U00012000"  # cuneiform
    tenant = tenant_of(
        api, a={}, b={"name": f"Sumer {unseen}"}, c={"address": {**ADDRESS, "city": unseen}}, d={"name": "東京 Ελλάς"},
        e={"buyer_reference": unseen, "einvoice": "none"}, f={}, g={}, h={}, member={"payer": "g"},
        other={"payer": "h", "name": f"Ur {unseen}"},
    )  # fmt: skip
    charge = {"code": "extra", "kind": "recurring", "timing": "advance", "tax": "vat", "name": f"Tablets {unseen}",
              "price": {"model": "flat", "amount": "5"}}  # fmt: skip
    plan = {"code": "q", "currency": "EUR", "interval": "month", "charges": [charge]}
    steps = [{"publish": {"plan": plan}}, {"subscribe": {"code": "s-q", "customer": "f", "plan": "q"}}]
    assert tenant.post("/v1/steps", [{"at": "2026-01-01", **step} for step in steps]).status_code == 201
    run, documents = billed(tenant)
    parked = {one["customer"]: one["reason"] for one in run["parked"]}
    assert [("U+12000" in reason, "/buyer/name" in reason) for reason in (parked["f"], parked["b"])] == [
        (True, False),
        (True, True),
    ]
    assert "/lines/1/name" in parked["f"]
    assert "U+12000" in parked["h"], "he pays for one whose name stands on his document"
    assert set(parked) - {"other"} | {customer for customer, _ in documents} == set("abcdefgh")
    assert run["documents"]["archived"] == len(documents)
    assert run["documents"]["parked"] == 0, "none that has a number stays without its files"
    assert {customer for customer, _ in documents} >= {"a", "d", "g"}


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, refused: frozenset[str] = frozenset()) -> Iterator[list[str]]:
    """The customers whose documents are looked at in the run; those in `refused` break a rule of their own."""
    seen: list[str] = []

    def looked(final: Any, *rest: Any) -> Any:
        seen.append(final.document.customer)
        if final.document.customer in refused:
            raise NotIssuable("CB-99: odd")
        return issuable(final, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(look, "issuable", looked)
        yield seen


def test_of_each_shape_one_document_is_looked_at(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    like = {f"c{n:02}": {"vat_id": f"DE31820477{n % 10}", "name": f"Customer {n}"} for n in range(20)}
    tenant = tenant_of(api, **like, austrian={**AUSTRIAN, "vat_id": "ATU12345675"}, brief={"address": None})
    with watched(monkeypatch) as seen:
        run, documents = billed(tenant)
    assert (len(documents), run["parked"]) == (22, [])
    assert sorted(seen) == ["austrian", "brief", "c00"]


def test_what_is_wrong_with_one_document_alone_does_not_park_those_like_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = tenant_of(api, a={}, b={}, c={})
    with watched(monkeypatch, frozenset({"a"})) as seen:
        run, documents = billed(tenant)
    assert [(one["customer"], one["reason"]) for one in run["parked"]] == [("a", "CB-99: odd")]
    assert [customer for customer, _ in documents] == ["b", "c"]
    assert seen == ["a", "a", "b", "c"]


def test_beyond_so_many_the_verdict_of_their_shape_holds(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "EACH_MAX", 2)
    tenant = tenant_of(api, a={}, b={}, c={}, d={})
    with watched(monkeypatch, frozenset({"a"})) as seen:
        run, documents = billed(tenant)
    assert seen == ["a", "a", "b"]
    assert [one["customer"] for one in run["parked"]] == ["a", "c", "d"]
    assert [customer for customer, _ in documents] == ["b"]
