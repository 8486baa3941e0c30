"""Invoices that were made elsewhere, issued here: checked, numbered without a gap, archived, unknown to bill runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path
from typing import Any, LiteralString

import jsonschema
import pytest
import typer

import deployments.billing_documents as documents
import deployments.invoice_issuing as routes
from billing.errors import Unavailable
from cluster.cli import billing, context
from cluster.cli import invoice_factory as commands
from cluster.client import Client
from pipelines.demo_generator import TENANT
from pipelines.document_files import LeftFiles
from pipelines.issuing import tried_document
from pipelines.read_invoice import read_invoice
from storage.pdf_text import words
from storage.sql import bill_runs, credit_documents, invoices, layouts, overview, receivables, tenants
from tests.deployments.conftest import Api, Tenant, bearer

pytestmark = pytest.mark.postgres
EXAMPLES = Path(__file__).parents[2] / "examples" / "invoices"
EVENT = (
    '{"source":"s","id":"a","type":"storage.write","customer":"acme","time":"2026-01-05T10:00:00Z","data":{"gb":"12"}}'
)


def example(name: str = "invoice", **changes: Any) -> dict[str, Any]:
    """One of the examples as a caller sends it: without number, and without the number as reference of the payment."""
    form = json.loads((EXAMPLES / f"{name}.json").read_text("utf-8"))
    del form["number"]
    if "payment" in form:
        form["payment"].pop("reference", None)
    return {key: value for key, value in {**form, **changes}.items() if value is not None}


@pytest.fixture
def tenant(api: Api) -> Tenant:
    """Who the examples say is the seller, on the 15th of December."""
    return api.tenant(kind="test", test_clock="2026-12-15", legal_entity=TENANT["legal_entity"])


def gaps(tenant: Tenant) -> list[dict[str, Any]]:
    with tenant.api.services.database.tenant(tenant.id) as connection:
        return invoices.number_gaps(connection)


def numbers(tenant: Tenant) -> list[str]:
    return sorted(one["number"] for one in tenant.get("/v1/invoices").json()["items"])


def test_an_invoice_gets_its_number_and_its_place_in_the_archive(tenant: Tenant) -> None:
    answer = tenant.post("/v1/invoices", example())
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["number"], made["type"], made["origin"], made["bill_run"]) == (
        "RE-2026-000001", "invoice", "outside", None,
    )  # fmt: skip
    assert (made["gross"], made["due"], made["customer"]) == ("487.27", "487.27", "Hafenkontor Logistik GmbH")
    read = tenant.get(f"/v1/invoices/{made['number']}").json()
    assert (read["file"], read["e_invoice"], read["due_on"]) == ("archived", True, "2026-12-01"), read["file_reason"]
    assert [(one["name"], one["amount"]) for one in read["lines"]] == [
        ("Requests, 1 to 1,000,000", "400.00"),
        ("Requests above 1,000,000", "14.47"),
        ("Requests of September, taken back", "-5.00"),
    ]
    for kind in ("pdf", "xml"):
        file = tenant.get(f"/v1/invoices/{made['number']}/{kind}")
        assert file.status_code == 200
        invoice = read_invoice(file.content)
        assert (invoice.number, str(invoice.totals.due)) == ("RE-2026-000001", "487.27")
        assert invoice.payment is not None
        assert invoice.payment.reference == "RE-2026-000001", "where nothing was said, it is the number"
    (found,) = tenant.get("/v1/archive?text=September&kind=pdf").json()["items"]
    assert found["number"] == "RE-2026-000001"
    assert gaps(tenant) == []


@pytest.mark.parametrize(
    ("changes", "pointer", "says"),
    [
        ({"totals": {**example()["totals"], "due": "1"}}, "/totals/due", "BR-CO-16"),
        ({"currency": "XXE"}, "InvoiceCurrencyCode", "FX-SCH-A-000595"),  # only the official code list knows
        ({"buyer": {**example()["buyer"], "name": "Kontor \U00010000"}}, "/buyer/name", "U+10000"),
        ({"number": "RE-1"}, "/number", "leave it out"),
        ({"issued_on": "2026-12-16"}, "/issued_on", "today is 2026-12-15"),
        ({"type_code": "389"}, "/type_code", "is not issued here"),
        ({"type_code": "384"}, "/preceding", "names the invoice"),
        ({"seller": {**example()["seller"], "vat_id": "DE999999999"}}, "/seller", "no legal entity"),
        ({"totals": {**example()["totals"], "due": "1E+999"}}, "/totals/due", "too many digits"),
        ({"totals": {**example()["totals"], "gross": "-1.00"}}, "/totals/gross", "credit note (381)"),
        ({"profile": "urn:of:nobody"}, "/profile", "is not issued here"),
        ({"lines": [{**example()["lines"][0], "period": {"end": "0001-01-01"}}]}, "/lines/0/period/end", "year"),
    ],
)
def test_what_is_wrong_is_named_and_uses_no_number(
    tenant: Tenant, changes: dict[str, Any], pointer: str, says: str
) -> None:
    answer = tenant.post("/v1/invoices", {**example(), **changes})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert any(pointer in one["pointer"] and says in one["detail"] for one in answer.json()["errors"]), answer.text
    assert tenant.get("/v1/invoices").json()["items"] == []
    assert tenant.get("/v1/archive").json()["items"] == []
    assert tenant.post("/v1/invoices", example()).json()["number"] == "RE-2026-000001"


def test_the_same_request_twice_at_once_is_one_document(tenant: Tenant) -> None:
    def send(_: int) -> Any:
        return tenant.post("/v1/invoices", example(), **{"Idempotency-Key": "of-october"})

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(send, range(4)))
    assert {one.status_code for one in answers} == {201}, [one.text for one in answers]
    assert {one.json()["number"] for one in answers} == {"RE-2026-000001"}
    assert sorted(one.headers.get("Idempotent-Replay", "false") for one in answers) == ["false", *["true"] * 3]
    assert numbers(tenant) == ["RE-2026-000001"]
    other = tenant.post("/v1/invoices", example(due_on="2026-12-02"), **{"Idempotency-Key": "of-october"})
    assert other.status_code == 409
    refused = tenant.post("/v1/invoices", example(currency="XXE"), **{"Idempotency-Key": "mended"})
    assert refused.status_code == 422
    assert tenant.post("/v1/invoices", example(), **{"Idempotency-Key": "mended"}).status_code == 201, "nothing is kept"


def billing_tenant(api: Api) -> Tenant:
    tenant = api.tenant(kind="test", test_clock="2026-12-15", legal_entity=TENANT["legal_entity"])
    tenant.catalog()
    assert tenant.usage(EVENT).status_code == 200
    return tenant


def test_a_bill_run_beside_it_takes_its_numbers_from_the_same_series(api: Api) -> None:
    tenant = billing_tenant(api)
    customers = [
        {"at": "2026-01-01", "customer": {"code": f"c{n}", "name": f"C {n}", "country": "DE"}} for n in range(9)
    ]
    contracts = [
        {"at": "2026-01-01", "subscribe": {"code": f"s-c{n}", "customer": f"c{n}", "plan": "basic"}} for n in range(9)
    ]
    assert tenant.post("/v1/steps", [*customers, *contracts]).status_code == 201
    for n in range(9):
        event = EVENT.replace('"acme"', f'"c{n}"').replace('"id":"a"', f'"id":"a{n}"')
        assert tenant.usage(event).status_code == 200

    def issue(n: int) -> Any:
        return tenant.post("/v1/invoices", example(issued_on="2026-02-01", due_on="2026-12-01", order=f"4500{n}"))

    with ThreadPoolExecutor(4) as pool:
        issued = [pool.submit(issue, n) for n in range(6)]
        run = pool.submit(tenant.post, "/v1/bill-runs", {"up_to": "2026-02-01", "document_date": "2026-02-01"})
        assert run.result().status_code == 202, run.result().text
        assert [one.result().status_code for one in issued] == [201] * 6
    assert numbers(tenant) == [f"RE-2026-{n:06}" for n in range(1, 17)]
    assert gaps(tenant) == []
    proof = tenant.get(f"/v1/bill-runs/{run.result().json()['id']}/verify").json()
    assert (proof["proven"], proof["documents"], proof["findings"], proof["gaps"]) == (True, 10, [], [])


def test_no_bill_run_knows_of_it(api: Api) -> None:
    """Neither what it settles nor its guard rails: an invoice of elsewhere to the same customer changes nothing."""
    tenant = billing_tenant(api)
    buyer = {**example()["buyer"], "ids": [{"id": "acme"}]}
    before = example(buyer=buyer, issued_on="2026-01-31", period={"start": "2026-01-01", "end": "2026-01-31"})
    made = tenant.post("/v1/invoices", before).json()
    assert (made["customer"], made["number"]) == ("acme", "RE-2026-000001")
    run = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).json()
    billed = tenant.get(f"/v1/invoices?bill_run={run['id']}").json()["items"]
    assert [(one["number"], one["net"], one["origin"]) for one in billed] == [("RE-2026-000002", "1.20", "platform")]
    for origin, number in (("outside", "RE-2026-000001"), ("platform", "RE-2026-000002")):
        listed = tenant.get(f"/v1/invoices?customer=acme&origin={origin}").json()["items"]
        assert [(one["number"], one["origin"]) for one in listed] == [(number, origin)]
    assert tenant.get(f"/v1/bill-runs/{run['id']}/verify").json()["proven"] is True
    with tenant.api.services.database.tenant(tenant.id) as connection:
        (last,) = invoices.highest_of_last(connection, ["acme"])
        assert [one.number for one in invoices.billed(connection, ["acme"], None)] == ["RE-2026-000002"]
    assert str(last[2]) == "1.43", "of bill runs only"
    note = tenant.post("/v1/credit-notes", {"document": made["number"]})
    assert (note.status_code, "POST /v1/invoices" in note.json()["detail"]) == (422, True), note.text
    explained = tenant.get(f"/v1/invoices/{made['number']}/lines/1/explanation")
    assert explained.status_code == 404, explained.text


def test_the_proof_tells_it_from_what_usage_gives_and_finds_what_was_changed(tenant: Tenant) -> None:
    one = tenant.post("/v1/invoices", example()).json()
    tenant.post("/v1/invoices", example("credit-note"))
    with tenant.api.services.database.tenant(tenant.id) as connection:
        code = tenants.legal_entity(connection)["code"]
    series = [
        {"entity": code, "series": kind, "year": 2026, "last": 1, "documents": 1, "outside": 1}
        for kind in ("credit_note", "invoice")
    ]
    proof = tenant.get("/v1/number-series/verify").json()
    assert proof == {"proven": True, "series": series, "gaps": [], "outside": 2, "erased": 0, "findings": []}
    client = Client("", tenant.key, http=tenant.api.http)
    found = billing._verify_invoices(client, None)
    assert (found["issued from outside"], found["summed"], found["numbers"], found["findings"]) == (
        2, 0, "looked at", [],
    )  # fmt: skip

    def change(statement: LiteralString) -> None:
        with tenant.api.services.database.owner(tenant.id) as connection:
            connection.execute(statement, {"id": one["id"]})

    def findings() -> list[str]:
        proof = tenant.get("/v1/number-series/verify").json()
        assert proof["proven"] is False
        return [each["detail"] for each in proof["findings"] if each["number"] == one["number"]]

    change("UPDATE invoices SET net = net - 1, gross = gross - 1, due = due - 1 WHERE id = %(id)s")
    assert findings() == ["the columns net, gross, due are not what the document says"]
    change("UPDATE invoices SET net = net + 1, gross = gross + 1, due = due + 1 WHERE id = %(id)s")
    change("""UPDATE issued_invoices SET form = jsonb_set(form, '{lines,0,name}', '"x"') WHERE invoice_id = %(id)s""")
    assert findings() == ["differs from the JSON that it came as in: lines"]
    change("UPDATE issued_invoices SET form = form - 'lines' WHERE invoice_id = %(id)s")
    assert ["cannot be read" in each for each in findings()] == [True]
    change("UPDATE number_series SET last = 2 WHERE series = 'invoice'")
    assert [gap["last"] for gap in tenant.get("/v1/number-series/verify").json()["gaps"]] == [2]
    assert any("gap" in each for each in billing._verify_invoices(client, None)["findings"])


def test_what_it_owes_is_in_the_ledger_to_the_cent(tenant: Tenant) -> None:
    tenant.post("/v1/invoices", example())
    paid = {**example()["totals"], "prepaid": "87.27", "due": "400.00"}
    charge = {"amount": "10.00", "reason": "Freight", "tax_category": "S", "tax_percent": "19"}
    allowance = {**charge, "amount": "5.00", "reason": "Goodwill"}
    sums = {"lines": "409.47", "charges": "10.00", "allowances": "5.00", "net": "414.47", "tax": "78.75",
            "gross": "493.22", "due": "493.22"}  # fmt: skip
    taxes = [{"base": "414.47", "amount": "78.75", "category": "S", "percent": "19"}]
    assert tenant.post("/v1/invoices", example(totals=paid)).status_code == 201
    with_both = example(charges=[charge], allowances=[allowance], totals=sums, taxes=taxes)
    made = tenant.post("/v1/invoices", with_both)
    assert made.status_code == 201, made.text
    assert (made.json()["lines"][3]["name"], made.json()["allowances"][0]["amount"]) == ("Freight", "5.00")
    with tenant.api.services.database.tenant(tenant.id) as connection:
        owed = connection.execute("SELECT number, owed FROM receivable_documents ORDER BY id").fetchall()
        booked = connection.execute(
            "SELECT debit, credit, amount FROM postings JOIN invoices ON id = invoice_id WHERE n = 2 ORDER BY posting"
        ).fetchall()
        stored = connection.execute("SELECT id, net FROM invoices ORDER BY id").fetchall()
        lines = connection.execute("SELECT invoice_id, sum(amount) AS net FROM invoice_lines GROUP BY 1").fetchall()
    assert [str(row["owed"]) for row in owed] == ["487.27", "400.00", "493.22"]
    assert [(row["debit"], row["credit"], str(row["amount"])) for row in booked] == [
        ("receivables", "revenue", "409.47"), ("receivables", "tax", "77.80"), ("prepaid", "receivables", "87.27"),
    ]  # fmt: skip
    of_lines = {row["invoice_id"]: row["net"] for row in lines}
    assert [str(of_lines[row["id"]] - row["net"]) for row in stored] == ["0.00", "0.00", "5.00"]
    rounded = {**example()["totals"], "rounding": "0.03", "due": "487.30"}
    refused = tenant.post("/v1/invoices", example(totals=rounded))
    assert refused.json()["errors"][0]["pointer"] == "/totals/rounding"


def test_a_credit_note_and_a_corrected_invoice_refer_to_one_that_was_issued_here(tenant: Tenant) -> None:
    def send(name: str, number: str, **changes: Any) -> Any:
        return tenant.post("/v1/invoices", example(name, preceding=[{"number": number}], **changes))

    first = tenant.post("/v1/invoices", example()).json()["number"]
    note = send("credit-note", first)
    assert note.status_code == 201, note.text
    assert (note.json()["number"], note.json()["type"], note.json()["refers_to"]) == (
        "RK-2026-000001", "credit_note", first,
    )  # fmt: skip
    early = send("corrected-invoice", first)
    assert (early.status_code, "470.05" in early.json()["detail"]) == (409, True), early.text
    whole = {key: example()[key] for key in ("lines", "taxes", "totals")}
    more = send("credit-note", first, **whole)
    assert (more.status_code, "470.05" in more.json()["detail"]) == (409, True), more.text
    line = {**example()["lines"][0], "quantity": "1", "price": "395.00", "net": "395.00", "base_quantity": "1"}
    rest = {"lines": [line], "taxes": [{"base": "395.00", "amount": "75.05", "category": "S", "percent": "19"}],
            "totals": {"lines": "395.00", "net": "395.00", "tax": "75.05", "gross": "470.05",
                       "due": "470.05"}}  # fmt: skip
    assert send("credit-note", first, **rest).status_code == 201
    corrected = send("corrected-invoice", first)
    assert corrected.status_code == 201, corrected.text
    assert (corrected.json()["number"], corrected.json()["refers_to"]) == ("RE-2026-000002", first)
    again = send("corrected-invoice", first)
    assert (again.status_code, "RE-2026-000002" in again.json()["detail"]) == (409, True)
    named = tenant.get(f"/v1/invoices/{first}").json()["referred_by"]
    assert [one["number"] for one in named] == ["RK-2026-000001", "RK-2026-000002", "RE-2026-000002"]
    elsewhere = send("credit-note", "of another program")
    assert (elsewhere.status_code, elsewhere.json()["refers_to"]) == (201, None), "whose number is not ours"
    two = [{"number": "RE-2026-000002"}, {"number": "of another program"}]
    assert tenant.post("/v1/invoices", example("credit-note", preceding=two)).status_code == 422
    dated = [{"number": "RE-2026-000002", "issued_on": "2026-11-05"}]
    wrong = tenant.post("/v1/invoices", example("credit-note", preceding=dated))
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/preceding/0/number"), wrong.text
    other = {**example()["buyer"], "name": "Somebody else"}
    assert send("credit-note", "RE-2026-000002", buyer=other).status_code == 422
    assert gaps(tenant) == []


def test_two_credit_notes_at_once_never_credit_more_than_there_is(tenant: Tenant) -> None:
    first = tenant.post("/v1/invoices", example()).json()["number"]
    whole = {key: example()[key] for key in ("lines", "taxes", "totals")}

    def send(_: int) -> int:
        form = example("credit-note", preceding=[{"number": first}], **whole)
        return int(tenant.post("/v1/invoices", form).status_code)

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(send, range(3))) == [201, 409, 409]


def test_what_a_bill_run_made_is_credited_by_the_platform_alone(api: Api) -> None:
    tenant = billing_tenant(api)
    assert tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).status_code == 202
    (billed,) = tenant.get("/v1/invoices").json()["items"]
    note = tenant.post("/v1/invoices", example("credit-note", preceding=[{"number": billed["number"]}]))
    assert (note.status_code, "/v1/credit-notes" in note.json()["detail"]) == (422, True), note.text


def test_each_example_of_a_type_that_is_issued_is_issued(tenant: Tenant) -> None:
    found = {}
    for path in sorted(EXAMPLES.glob("*.json")):
        answer = tenant.post("/v1/invoices", example(path.stem))
        assert answer.status_code == 201, (path.stem, answer.text)
        read = tenant.get(f"/v1/invoices/{answer.json()['number']}").json()
        assert (read["file"], read["e_invoice"]) == ("archived", True), (path.stem, read["file_reason"])
        found[path.stem] = read["number"]
    assert found["credit-note"] == "RK-2026-000001"
    assert gaps(tenant) == []


def test_peppol_is_archived_as_ubl_beside_its_page(tenant: Tenant) -> None:
    profile = "urn:cen.eu:en16931:2017#compliant#urn:fdc:peppol.eu:2017:poacc:billing:3.0"
    made = tenant.post("/v1/invoices?language=en", example(profile=profile))
    assert made.status_code == 201, made.text
    assert b"urn:oasis:names:specification:ubl" in tenant.get(f"/v1/invoices/{made.json()['number']}/xml").content


def test_files_that_a_crash_left_out_are_made_of_what_is_kept(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> int:
        raise Unavailable("the archive's store does not answer")

    monkeypatch.setattr(documents, "make_files", away)
    answer = tenant.post("/v1/invoices", example(), **{"Idempotency-Key": "one"})
    assert (answer.status_code, answer.json()["file"]) == (201, "wanted")
    number = answer.json()["number"]
    assert tenant.get(f"/v1/invoices/{number}").json()["file"] == "wanted"
    monkeypatch.undo()
    services = tenant.api.services
    later = services.clock() + timedelta(minutes=2)
    while LeftFiles(services.database, services.archive, lambda: later).round():
        pass
    assert tenant.get(f"/v1/invoices/{number}").json()["file"] == "archived"
    invoice = read_invoice(tenant.get(f"/v1/invoices/{number}/pdf").content)
    assert (invoice.number, invoice.buyer.name, invoice.payment_terms) == (
        number, "Hafenkontor Logistik GmbH", example()["payment_terms"],
    )  # fmt: skip
    assert tenant.post("/v1/invoices", example(), **{"Idempotency-Key": "one"}).json()["number"] == number


def test_a_crash_before_the_end_of_its_transaction_leaves_no_gap(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Unavailable("the database went away")

    monkeypatch.setattr(routes.audit, "record", killed)
    assert tenant.post("/v1/invoices", example(), **{"Idempotency-Key": "one"}).status_code == 503
    monkeypatch.undo()
    assert tenant.get("/v1/invoices").json()["items"] == []
    again = tenant.post("/v1/invoices", example(), **{"Idempotency-Key": "one"})
    assert (again.status_code, again.json()["number"]) == (201, "RE-2026-000001")


def test_parked_files_are_made_again_with_its_own_buyer(tenant: Tenant) -> None:
    """Also of a buyer who is a customer here: what was issued says who he is."""
    form = [{"at": "2026-12-01", "customer": {"code": "acme", "name": "ACME AG", "country": "DE"}}]
    assert tenant.post("/v1/steps", form).status_code == 201
    services = tenant.api.services
    buyer = {**example()["buyer"], "ids": [{"id": "acme"}]}
    made = tenant.post("/v1/invoices", example(buyer=buyer)).json()
    with services.database.owner(tenant.id) as connection:
        connection.execute(
            "UPDATE document_files SET state = 'parked', reason = 'x' WHERE invoice_id = %s", (made["id"],)
        )
    assert tenant.post(f"/v1/invoices/{made['number']}/files", {}).status_code == 202
    read = tenant.get(f"/v1/invoices/{made['number']}").json()
    assert (read["file"], read["buyer"]["name"]) == ("archived", "Hafenkontor Logistik GmbH")


def test_it_is_told_and_on_record(tenant: Tenant) -> None:
    hook = {"url": "https://127.0.0.1/hook", "event_types": ["invoice.finalised", "credit_note.finalised"]}
    assert tenant.post("/v1/webhooks", hook).status_code == 201
    made = tenant.post("/v1/invoices", example()).json()["number"]
    with tenant.api.services.database.tenant(tenant.id) as connection:
        told = connection.execute("SELECT kind, subject, body, told_at FROM outbox").fetchall()
    assert [(row["kind"], row["subject"], row["body"]["due"], row["told_at"]) for row in told] == [
        ("invoice.finalised", made, "487.27", None),
    ]  # fmt: skip
    entry = next(one for one in tenant.get("/v1/audit").json()["items"] if one["subject"] == made)
    assert (entry["action"], entry["after"]["type_code"]) == ("invoice issued", "380")


def test_who_may_not_bill_issues_nothing_and_tenants_never_meet(api: Api, tenant: Tenant) -> None:
    for scopes in (["billing:read"], ["archive:write"], ["contracts:write", "usage:write"]):
        assert tenant.post("/v1/invoices", example(), key=tenant.key_with(*scopes)).status_code == 403
    assert api.http.post("/v1/invoices", json=example()).status_code == 401
    other = api.tenant(kind="test", test_clock="2026-12-15", legal_entity=TENANT["legal_entity"])
    made = tenant.post("/v1/invoices", example(), **{"Idempotency-Key": "one"}).json()
    also = other.post("/v1/invoices", example(), **{"Idempotency-Key": "one"}).json()
    assert (made["number"], also["number"]) == ("RE-2026-000001", "RE-2026-000001"), "each has its own series"
    assert made["id"] != also["id"]
    assert [one["id"] for one in other.get("/v1/invoices").json()["items"]] == [also["id"]]
    stranger = api.tenant()
    assert stranger.get(f"/v1/invoices/{made['number']}").status_code == 404
    with api.services.database.tenant(stranger.id) as connection:
        assert connection.execute("SELECT count(*) AS n FROM issued_invoices").fetchone() == {"n": 0}
    with api.services.database.tenant(tenant.id) as connection:
        assert connection.execute("SELECT count(*) AS n FROM issued_invoices").fetchone() == {"n": 1}


def test_legal_entities_have_their_own_series(tenant: Tenant) -> None:
    second = {"name": "Nordwind Wien GmbH", "country": "AT", "vat_id": "ATU12345678"}
    made = tenant.put("/v1/legal-entities/at", second)
    assert made.status_code in (200, 201), made.text
    seller = {**example()["seller"], "name": "Nordwind Wien GmbH", "vat_id": "ATU12345678", "endpoint": None}
    assert tenant.post("/v1/invoices", example()).json()["number"] == "RE-2026-000001"
    other = tenant.post("/v1/invoices", example(seller={key: one for key, one in seller.items() if one}))
    assert (other.status_code, other.json().get("number")) == (201, "RE-at-2026-000001"), other.text


def test_the_terminal_issues_a_file(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[Any] = []

    def client(*given: Any) -> Client:
        asked.append(given[2])
        return Client("", tenant.key, http=tenant.api.http)

    monkeypatch.setattr(context, "tenant_client", client)
    access = commands.Access(None, None, None)
    with pytest.raises(typer.Exit) as refused:
        commands.issue(EXAMPLES / "invoice.json", "de", False, None, access, False)
    assert refused.value.exit_code == context.WRONG_CALL
    assert "/number: is given here" in capsys.readouterr().err
    for _ in range(2):  # called again, as after a time-out
        commands.issue(EXAMPLES / "invoice.json", "de", True, "october", access, False)
        assert "RE-2026-000001  487.27 EUR  archived\n" in capsys.readouterr().out
    file = tmp_path / "note.json"
    file.write_text(json.dumps(example("credit-note", preceding=[{"number": "RE-2026-000001"}])), "utf-8")
    commands.issue(file, "en", False, None, access, True)
    out = capsys.readouterr().out
    shown = json.loads(out[out.index("\n{") :])  # behind what this process logs
    assert (shown["number"], shown["refers_to"], shown["file"]) == ("RK-2026-000001", "RE-2026-000001", "archived")
    assert asked[0] == ["billing:read", "billing:write"]
    assert numbers(tenant) == ["RE-2026-000001", "RK-2026-000001"]


def test_the_schema_of_what_is_issued_is_published(tenant: Tenant) -> None:
    schema = tenant.get("/v1/schemas/invoice?use=issue").json()
    undated = example(issued_on=None, due_on="2027-01-01")
    for form in (example(), undated):
        jsonschema.validate(form, schema)
        assert tenant.post("/v1/invoices", form).status_code == 201
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**example(), "number": "RE-1"}, schema)
    assert tenant.get("/v1/invoices").json()["items"][0]["date"] == "2026-12-15"


def test_a_layout_is_tried_on_it_as_it_came(tenant: Tenant) -> None:
    note = "Nobody but this invoice says so"
    made = tenant.post("/v1/invoices", example(notes=[{"text": note}])).json()["number"]
    drawn = tenant.post("/v1/layouts/preview", {"draft": {}, "document": made})
    assert drawn.status_code == 200, drawn.text
    assert note in words(drawn.content, "application/pdf")


def test_a_closed_tenant_issues_nothing(api: Api, tenant: Tenant) -> None:
    closed = api.http.post(f"/v1/tenants/{tenant.code}/close", json={}, headers=bearer(api.platform_key))
    assert closed.status_code == 200, closed.text
    assert tenant.post("/v1/invoices", example()).status_code == 403


def test_what_was_paid_before_is_no_credit_of_a_wallet(tenant: Tenant) -> None:
    form = [{"at": "2026-12-01", "customer": {"code": "acme", "name": "ACME AG", "country": "DE"}}]
    assert tenant.post("/v1/steps", form).status_code == 201
    totals = {**example()["totals"], "prepaid": "87.27", "due": "400.00"}
    buyer = {**example()["buyer"], "ids": [{"id": "acme"}]}
    made = tenant.post("/v1/invoices", example(totals=totals, buyer=buyer))
    assert made.status_code == 201, made.text
    printed = words(tenant.get(f"/v1/invoices/{made.json()['number']}/pdf").content, "application/pdf")
    assert ("Bereits gezahlt" in printed, "Guthaben" in printed) == (True, False)
    focus = tenant.get("/v1/usage/export?format=focus&from=2026-01-01&to=2026-12-14")
    assert (focus.status_code, focus.text.count("\r\n")) == (200, 1), "of usage of the platform: its head only"
    with tenant.api.services.database.tenant(tenant.id) as connection:
        page = overview.documents_of(connection, "acme", limit=10)
        assert ([one.number for one in page.items], dict(page.prepaid)) == (["RE-2026-000001"], {})
        assert credit_documents.of_customer(connection, "acme", "EUR", wallet=True) == []
        assert str(receivables.owed_before(connection, "acme", "EUR", date(2027, 1, 1))) == "400.00"


def while_the_page_is_tried(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> list[str]:
    """Do something once the page of an invoice was drawn, before it is stored; the list of pages drawn grows."""
    drawn: list[str] = []

    def tried(*given: Any, **more: Any) -> Any:
        document = tried_document(*given, **more)
        drawn.append(document.customer)
        then()
        return document

    monkeypatch.setattr(routes, "tried_document", tried)
    return drawn


def test_nobody_waits_while_a_page_is_tried(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tenant.post("/v1/invoices", example()).json()["number"]
    free: list[bool] = []

    def look() -> None:
        with (
            tenant.api.services.database.tenant(tenant.id) as connection,
            connection.transaction(force_rollback=True),
        ):
            lock = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0)) AS free"
            found = connection.execute(lock, (f"{tenant.id} {first}",)).fetchone()
            connection.execute("SET LOCAL lock_timeout = '1s'")
            connection.execute(
                "INSERT INTO idempotency_keys (owner, key, request_hash, created_at)"
                " SELECT owner, 'note', request_hash, created_at FROM idempotency_keys WHERE key = 'other'"
            )  # would wait for the transaction that has taken the key
        assert found is not None
        free.append(found["free"])

    tenant.post("/v1/steps", [{"at": "2026-12-01", "customer": {"code": "acme", "name": "ACME", "country": "DE"}}],
                **{"Idempotency-Key": "other"})  # fmt: skip
    drawn = while_the_page_is_tried(monkeypatch, look)
    form = example("credit-note", preceding=[{"number": first}])
    note = tenant.post("/v1/invoices", form, **{"Idempotency-Key": "note"})
    assert (note.status_code, free, len(drawn)) == (201, [True], 1), note.text
    again = tenant.post("/v1/invoices", form, **{"Idempotency-Key": "note"})
    assert (again.json()["number"], again.headers["Idempotent-Replay"]) == (note.json()["number"], "true")
    assert len(drawn) == 1, "a repeat is answered without drawing again"
    other = tenant.post("/v1/invoices", example(), **{"Idempotency-Key": "note"})
    assert (other.status_code, len(drawn)) == (409, 1)


@pytest.mark.parametrize("what", ["the legal entity", "the layout"])
def test_what_it_was_tried_on_is_what_it_is_issued_on(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    database, now = tenant.api.services.database, tenant.api.services.clock()

    def change() -> None:
        with database.tenant(tenant.id) as connection:
            if what == "the legal entity":
                row = tenants.legal_entity(connection)
                form = {**row["form"], "contact": {"name": "Somebody else"}}
                tenants.put_legal_entity(connection, tenant.id, row["code"], form, country=row["country"], now=now)
                return
            layouts.put(connection, tenant.id, "mine", "invoice", "Mine", {}, actor="a", now=now)
            version = layouts.publish(connection, tenant.id, "mine", note="", actor="a", now=now)
            layouts.choose(connection, tenant.id, "invoice", "mine", version, actor="a", now=now)

    while_the_page_is_tried(monkeypatch, change)
    answer = tenant.post("/v1/invoices", example(), **{"Idempotency-Key": "one"})
    assert (answer.status_code, "send the same again" in answer.json()["detail"]) == (503, True), answer.text
    assert tenant.get("/v1/invoices").json()["items"] == []
    monkeypatch.undo()
    again = tenant.post("/v1/invoices", example(), **{"Idempotency-Key": "one"})
    assert (again.status_code, again.json()["number"]) == (201, "RE-2026-000001"), again.text


def test_it_waits_for_an_erasure_and_sees_what_that_has_left(tenant: Tenant) -> None:
    """As credit notes by hand do: an erasure looks for documents on their way and then holds `alone` to its end."""
    made = tenant.post("/v1/invoices", example()).json()
    form = example("credit-note", preceding=[{"number": made["number"]}])
    with ThreadPoolExecutor(1) as pool:
        with tenant.api.services.database.owner(tenant.id) as connection:
            bill_runs.alone(connection, tenant.id)
            sent = pool.submit(tenant.post, "/v1/invoices", form)
            with pytest.raises(TimeoutError):
                sent.result(timeout=3)
            connection.execute("UPDATE invoices SET customer = 'erased-1' WHERE id = %s", (made["id"],))
        answer = sent.result(timeout=60)
    assert (answer.status_code, "another buyer" in answer.json()["detail"]) == (422, True), answer.text
