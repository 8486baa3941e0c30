"""Accompanying documents over REST: from JSON alone, and of a customer from what was billed."""

import base64
import hashlib
import io
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pypdf
import pytest

pytestmark = pytest.mark.postgres
EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "documents").glob("*.json"))


def example(name: str) -> Any:
    return json.loads(next(one for one in EXAMPLES if one.stem == name).read_text("utf-8"))


def event(id_: str, time: str, gb: str) -> str:
    form = {"source": "a", "id": id_, "type": "storage.write", "customer": "acme", "time": time, "data": {"gb": gb}}
    return json.dumps(form) + "\n"


@pytest.fixture(scope="module")
def alone(api: Any) -> Any:
    return api.tenant()


@pytest.fixture(scope="module")
def billed(api: Any) -> Any:
    """January billed on 2 February, one event of 30 January late, February billed a month later."""
    tenant = api.tenant(kind="test", test_clock="2026-02-02")
    tenant.catalog()
    days = [
        ("e1", "2026-01-10T10:00:00Z", "120"),
        ("e2", "2026-01-10T22:30:00Z", "0.5"),
        ("e3", "2026-01-31T22:30:00Z", "30"),
    ]
    assert tenant.usage("".join(event(*one) for one in days)).status_code == 200
    assert tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).status_code == 202
    assert tenant.usage(event("late", "2026-01-30T10:00:00Z", "10")).status_code == 200
    assert tenant.usage(event("e4", "2026-02-03T10:00:00Z", "7")).status_code == 200
    return tenant


def test_every_example_fits_the_published_schema_and_becomes_files(alone: Any) -> None:
    schema = alone.get("/v1/schemas/document").json()
    assert {one.stem for one in EXAMPLES} == {
        "usage-record", "account-statement", "reminder", "delivery-note", "credit-statement", "credit-account",
    }  # fmt: skip
    for path in EXAMPLES:
        form = json.loads(path.read_text("utf-8"))
        jsonschema.validate(form, schema)
        answer = alone.post("/v1/documents/render?language=en", form)
        assert answer.status_code == 200, answer.text
        for one in answer.json()["files"]:
            assert hashlib.sha256(base64.b64decode(one["bytes"])).hexdigest() == one["sha256"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**example("reminder"), "tax": "1"}, schema)


def test_one_format_may_be_asked_for_as_the_file_itself(alone: Any) -> None:
    headers = {"Authorization": f"Bearer {alone.key}", "Accept": "text/csv"}
    answer = alone.api.http.post("/v1/documents/render?format=csv", json=example("reminder"), headers=headers)
    assert answer.headers["content-disposition"] == 'attachment; filename="MA-2026-0003.csv"'
    assert answer.content.startswith(b"kind,number,issued_on,")


@pytest.mark.parametrize(
    ("query", "changes", "pointer"),
    [
        ("format=docx", {}, "query:format"),
        ("language=xx", {}, "/language"),
        ("", {"type": "invoice"}, "/type"),
        ("", {"currency": "XXX"}, "/currency"),
        ("", {"total": "1"}, "/total"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(alone: Any, query: str, changes: Any, pointer: str) -> None:
    answer = alone.post(f"/v1/documents/render?{query}", {**example("reminder"), **changes})
    assert answer.status_code == 422
    assert pointer in [one["pointer"] for one in answer.json()["errors"]]


def test_rendering_needs_a_scope_of_billing(alone: Any) -> None:
    key = alone.key_with("usage:read")
    assert alone.post("/v1/documents/render", example("reminder"), key=key).status_code == 403


def made(tenant: Any, form: Any, customer: str = "acme") -> Any:
    answer = tenant.post(f"/v1/customers/{customer}/documents", form)
    assert answer.status_code == 201, answer.text
    return answer.json()


def pdf_of(tenant: Any, files: list[dict[str, Any]]) -> str:
    one = next(one for one in files if one["kind"] == "pdf")
    answer = tenant.get(f"/v1/archive/documents/{one['document_id']}/pdf")
    assert answer.status_code == 200, answer.text
    return "\n".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(answer.content)).pages)


def test_a_usage_record_says_by_day_what_the_invoice_billed(billed: Any) -> None:
    invoice = billed.get("/v1/invoices?order=oldest").json()["items"][0]
    (line,) = billed.get(f"/v1/invoices/{invoice['number']}").json()["lines"]
    found = made(billed, {"type": "usage_record", "from": "2026-01-01", "to": "2026-01-31"})
    rows = found["document"]["usage"]
    # The late event came after the run: it is not on the invoice, so it is not in the record of it.
    assert [(one["day"], one["quantity"]) for one in rows] == [("2026-01-10", "120.5"), ("2026-01-31", "30")]
    assert sum(Decimal(one["quantity"]) for one in rows) == Decimal(line["quantity"])
    assert {one["billed_with"] for one in rows} == {f"{invoice['number']} / 1"}
    assert found["document"]["refers_to"] == [{"number": invoice["number"], "issued_on": "2026-02-02"}]
    assert {one["kind"] for one in found["files"]} == {"pdf", "csv"}
    text = pdf_of(billed, found["files"])
    assert "Verbrauchsnachweis VN-acme-2026-01" in text
    assert "150,5" in text
    note = made(billed, {"type": "delivery_note", "from": "2026-01-01", "to": "2026-01-31"})
    assert [one["quantity"] for one in note["document"]["lines"]] == ["150.5"]


def test_a_period_without_usage_makes_an_empty_record_and_says_so(billed: Any) -> None:
    found = made(billed, {"type": "usage_record", "from": "2025-01-01", "to": "2025-01-31"})
    assert "usage" not in found["document"]
    assert "kein Verbrauch" in pdf_of(billed, found["files"])


def test_the_same_document_again_is_the_same_and_other_figures_are_its_next_version(billed: Any) -> None:
    form = {"type": "account_statement", "from": "2026-02-01", "to": "2026-02-28"}
    first, again = made(billed, form), made(billed, form)
    assert [one["sha256"] for one in first["files"]] == [one["sha256"] for one in again["files"]]
    assert {one["version"] for one in again["files"]} == {1}
    paid = made(billed, {**form, "payments": [{"booked_on": "2026-02-10", "amount": "-10.00"}]})
    assert {one["version"] for one in paid["files"]} == {2}
    assert {one["document_id"] for one in paid["files"]} == {one["document_id"] for one in first["files"]}
    back = made(billed, form)
    assert {one["version"] for one in back["files"]} == {3}
    listed = billed.get("/v1/customers/acme/documents?type=account_statement").json()["items"]
    assert Counter(one["version"] for one in listed if one["number"] == "KA-acme-2026-02") == {1: 2, 2: 2, 3: 2}


def test_statements_of_two_currencies_are_two_documents(billed: Any) -> None:
    """The one in dollars had become the next version of the one in euros, under its number."""
    form = {"type": "account_statement", "from": "2026-03-01", "to": "2026-03-31"}
    euros, dollars, again = made(billed, form), made(billed, {**form, "currency": "USD"}), made(billed, form)
    numbers = [one["document"]["number"] for one in (euros, dollars, again)]
    assert numbers == ["KA-acme-2026-03", "KA-acme-2026-03-USD", "KA-acme-2026-03"]
    assert "KA-acme-2026-03-USD" in pdf_of(billed, dollars["files"])
    assert {one["version"] for found in (euros, dollars, again) for one in found["files"]} == {1}


def test_a_statement_s_closing_balance_is_the_next_one_s_opening(billed: Any) -> None:
    due = Decimal(billed.get("/v1/invoices?order=oldest").json()["items"][0]["due"])
    before = made(billed, {"type": "account_statement", "from": "2026-01-01", "to": "2026-01-31"})
    assert (before["document"]["statement"]["closing"], before["document"]["statement"]["entries"]) == ("0", [])
    payments = [{"booked_on": "2026-02-20", "amount": "-3.05", "text": "Überweisung"}]
    form = {"type": "account_statement", "from": "2026-02-01", "to": "2026-02-28", "payments": payments}
    first = made(billed, form)["document"]["statement"]
    assert Decimal(first["closing"]) == due - Decimal("3.05")
    after = made(billed, {**form, "from": "2026-03-01", "to": "2026-03-31"})["document"]["statement"]
    assert after["opening"] == first["closing"]


def test_a_reminder_asks_for_what_is_overdue_and_not_paid(billed: Any) -> None:
    form = {"type": "reminder", "level": 1, "due_on": "2026-03-20"}
    early = billed.post("/v1/customers/acme/documents", form)
    assert early.status_code == 409, early.text  # due on 16 February, and today is the 2nd
    assert billed.post("/v1/test-clock/advance", {"to": "2026-03-02"}).status_code == 200
    invoice = billed.get("/v1/invoices?order=oldest").json()["items"][0]
    charges = [{"kind": "fee", "amount": "5.00"}]
    asked = made(billed, {**form, "charges": charges, "paid": {invoice["number"]: "1.00"}})
    (item,) = asked["document"]["reminder"]["items"]
    assert Decimal(item["open"]) == Decimal(invoice["due"]) - 1
    assert asked["files"][0]["retained_until"] == "2032-12-31"
    too_much = billed.post("/v1/customers/acme/documents", {**form, "paid": {invoice["number"]: "1000.00"}})
    assert (too_much.status_code, too_much.json()["errors"][0]["pointer"]) == (422, "/paid")


@pytest.mark.parametrize(
    ("form", "pointer"),
    [
        ({"type": "credit_note"}, "/type"),
        ({"type": "credit_statement", "to": "2026-01-31"}, "/from"),
        ({"type": "usage_record", "from": "2026-01-01"}, "/to"),
        ({"type": "usage_record", "from": "2026-02-01", "to": "2026-01-01"}, "/to"),
        ({"type": "usage_record", "from": "2026-02-01", "to": "tomorrow"}, "/to"),
        ({"type": "reminder", "level": True, "due_on": "2026-03-01"}, "/level"),
        ({"type": "account_statement", "from": "2026-01-01", "to": "2026-01-31", "payments": [{"amount": "1"}]},
         "/payments/0/booked_on"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_made_is_refused_by_its_place(billed: Any, form: Any, pointer: str) -> None:
    answer = billed.post("/v1/customers/acme/documents", form)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_tenants_never_meet(billed: Any, api: Any) -> None:
    other = api.tenant()
    other.catalog()
    empty = made(other, {"type": "account_statement", "from": "2026-02-01", "to": "2026-02-28"})
    assert empty["document"]["statement"]["entries"] == []
    assert empty["document"]["statement"]["opening"] == "0"
    assert other.get("/v1/customers/acme/documents?type=reminder").json()["items"] == []


def test_a_credit_note_takes_off_what_is_owed_and_overdue(api: Any) -> None:
    tenant = api.tenant(kind="test", test_clock="2026-02-02")
    tenant.catalog()
    assert tenant.usage(event("e1", "2026-01-10T10:00:00Z", "100")).status_code == 200
    assert tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).status_code == 202
    (invoice,) = tenant.get("/v1/invoices").json()["items"]
    credit = {"document": invoice["number"], "lines": [{"line": 1, "amount": "4.00"}]}
    note = tenant.post("/v1/credit-notes", credit)
    assert note.status_code == 201, note.text
    left = Decimal(invoice["due"]) - Decimal(note.json()["due"])
    form = {"type": "account_statement", "from": "2026-02-01", "to": "2026-02-28"}
    entries = made(tenant, form)["document"]["statement"]["entries"]
    assert [Decimal(one["amount"]) for one in entries] == [Decimal(invoice["due"]), -Decimal(note.json()["due"])]
    assert tenant.post("/v1/test-clock/advance", {"to": "2026-03-02"}).status_code == 200
    remind = {"type": "reminder", "level": 2, "due_on": "2026-03-20"}
    (item,) = made(tenant, remind)["document"]["reminder"]["items"]
    assert Decimal(item["open"]) == left
    assert tenant.post("/v1/credit-notes", {**credit, "lines": [{"line": 1}]}).status_code == 201
    assert tenant.post("/v1/customers/acme/documents", remind).status_code == 409


def test_what_belongs_to_an_invoice_is_kept_as_long_as_invoices_are(api: Any) -> None:
    tenant = api.tenant()
    tenant.catalog()
    assert tenant.put("/v1/archive/retention", {"document_type": "invoice", "years": 12}).status_code == 200
    years = tenant.put("/v1/archive/retention", {"document_type": "usage_record", "years": 2}).json()["years"]
    assert (years["usage_record"], years["delivery_note"], years["reminder"]) == (12, 12, 6)
    found = made(tenant, {"type": "usage_record", "from": "2025-01-01", "to": "2025-01-31"})
    day = int(found["document"]["issued_on"][:4])
    assert {one["retained_until"] for one in found["files"]} == {f"{day + 12}-12-31"}
