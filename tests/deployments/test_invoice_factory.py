"""The Invoice Factory over REST, used alone: JSON to files, files to JSON, and what is refused."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

pytestmark = pytest.mark.postgres
EXAMPLE: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "examples" / "invoices" / "invoice.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def tenant(api: Any) -> Any:
    return api.tenant()


def read(tenant: Any, data: bytes, mime: str) -> Any:
    headers = {"Authorization": f"Bearer {tenant.key}", "Content-Type": mime}
    return tenant.api.http.post("/v1/invoices/read", content=data, headers=headers)


def test_an_invoice_becomes_files_and_each_of_them_is_read_again(tenant: Any) -> None:
    answer = tenant.post("/v1/invoices/render?format=zugferd,xrechnung-ubl,peppol,html", EXAMPLE)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["number"] == "RE-2026-0042"
    files = {one["format"]: one for one in body["files"]}
    assert [one["name"] for one in body["files"]] == [
        "RE-2026-0042.zugferd.pdf", "RE-2026-0042.xrechnung-ubl.xml", "RE-2026-0042.peppol.xml", "RE-2026-0042.html",
    ]  # fmt: skip
    for form in ("zugferd", "xrechnung-ubl", "peppol"):
        data = base64.b64decode(files[form]["bytes"])
        assert hashlib.sha256(data).hexdigest() == files[form]["sha256"]
        found = read(tenant, data, files[form]["mime"])
        assert found.status_code == 200, found.text
        invoice = found.json()["invoice"]
        assert invoice["number"] == "RE-2026-0042"
        assert invoice["totals"]["due"] == "487.27"
        # What was read is rendered again as it is.
        assert tenant.post("/v1/invoices/render?format=cii", invoice).status_code == 200


def test_one_format_may_be_asked_for_as_the_file_itself(tenant: Any) -> None:
    headers = {"Authorization": f"Bearer {tenant.key}", "Accept": "application/pdf"}
    answer = tenant.api.http.post("/v1/invoices/render?format=zugferd", json=EXAMPLE, headers=headers)
    assert answer.headers["content-type"] == "application/pdf"
    assert answer.headers["content-disposition"] == 'attachment; filename="RE-2026-0042.zugferd.pdf"'
    assert answer.content.startswith(b"%PDF-")


def test_the_usage_record_is_put_inside_if_asked_for(tenant: Any) -> None:
    answer = tenant.post("/v1/invoices/render?format=cii&usage_record=true", EXAMPLE)
    assert answer.status_code == 200, answer.text
    data = base64.b64decode(answer.json()["files"][0]["bytes"])
    (added,) = read(tenant, data, "application/xml").json()["invoice"]["attachments"]
    assert base64.b64decode(added["bytes"]).startswith(b"line,name,start,end,row,")
    unknown = tenant.post("/v1/invoices/render?format=cii", {**EXAMPLE, "records": [{"line": "9"}]})
    assert unknown.status_code == 422
    assert "/records/0/line" in unknown.text


def test_the_published_schema_takes_the_example(tenant: Any) -> None:
    schema = tenant.get("/v1/schemas/invoice").json()
    jsonschema.validate(EXAMPLE, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**EXAMPLE, "total": "1"}, schema)


@pytest.mark.parametrize(
    ("query", "changes", "pointer"),
    [
        ("format=docx", {}, "query:format"),
        ("format=cii", {"lines": "none"}, "/lines"),
        ("format=cii", {"issued_on": "1.11.2026"}, "/issued_on"),
        ("format=cii", {"totals": {**EXAMPLE["totals"], "due": "1"}}, "/totals/due"),
        ("format=cii", {"totals": {**EXAMPLE["totals"], "due": "1E+999"}}, "/totals/due"),
        ("format=cii", {"totals": {**EXAMPLE["totals"], "due": "1E-999"}}, "/totals/due"),
        ("format=xrechnung", {"buyer_reference": None}, "/buyer_reference"),
    ],
)
def test_what_cannot_be_issued_is_named_with_its_place(
    tenant: Any, query: str, changes: dict[str, Any], pointer: str
) -> None:
    form = {key: value for key, value in {**EXAMPLE, **changes}.items() if value is not None}
    answer = tenant.post(f"/v1/invoices/render?{query}", form)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert pointer in json.dumps(answer.json()), answer.text


def test_an_amount_written_as_a_number_counts_by_its_digits_and_never_as_a_float(tenant: Any) -> None:
    headers = {"Authorization": f"Bearer {tenant.key}", "Content-Type": "application/json"}
    text = json.dumps(EXAMPLE)
    for due, status in (("487.27", 200), ("487.2700000000000000001", 422)):  # as floats both are the same
        body = text.replace('"due": "487.27"', f'"due": {due}')
        answer = tenant.api.http.post("/v1/invoices/render?format=cii", content=body, headers=headers)
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("data", "mime", "status"),
    [
        (b"", "application/xml", 422),
        (b"<a/>", "application/xml", 422),
        (b"%PDF-1.7 broken", "application/pdf", 422),
        (b"{}", "application/json", 415),
        (b"<" * (16 * 1024 * 1024 + 1), "application/xml", 413),
    ],
)
def test_what_is_no_e_invoice_is_refused(tenant: Any, data: bytes, mime: str, status: int) -> None:
    assert read(tenant, data, mime).status_code == status


def test_nobody_without_a_key_renders_or_reads(api: Any) -> None:
    assert api.http.post("/v1/invoices/render", json=EXAMPLE).status_code == 401
    assert api.http.post("/v1/invoices/read", content=b"<a/>").status_code == 401
    assert api.http.get("/v1/schemas/invoice").status_code == 401


def test_nothing_of_it_is_stored(tenant: Any) -> None:
    assert tenant.post("/v1/invoices/render?format=zugferd", EXAMPLE).status_code == 200
    assert tenant.get("/v1/archive").json()["items"] == []
    assert tenant.get("/v1/invoices").json()["items"] == []
