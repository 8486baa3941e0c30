"""The archive over REST, used alone: put, find, read, hold, delete after its time, who read what, proof."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from test_billing_routes import EVENTS

from billing.errors import Unavailable
from pipelines import bill_run

pytestmark = pytest.mark.postgres


def put(tenant: Any, data: bytes, mime: str = "text/plain", **given: Any) -> Any:
    parameters = {"document_id": "contract-1", "kind": "txt", "date": "2026-05-04", **given}
    headers = {"Authorization": f"Bearer {tenant.key}", "Content-Type": mime}
    return tenant.api.http.post("/v1/archive/documents", params=parameters, content=data, headers=headers)


@pytest.fixture
def tenant(api: Any) -> Any:
    return api.tenant()


@pytest.fixture
def billed(api: Any) -> Any:
    tenant = api.tenant()
    tenant.catalog()
    assert tenant.usage(EVENTS).status_code == 200
    assert tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).status_code == 202
    return tenant


def test_a_file_is_put_found_by_its_words_and_read_as_it_was(tenant: Any) -> None:
    made = put(tenant, "Mietvertrag für Halle 7".encode(), type="contract", customer="acme", amount="1200.50",
               currency="EUR", number="V-1")  # fmt: skip
    assert made.status_code == 201, made.text
    assert made.json()["retained_until"] == "2036-12-31"
    assert put(tenant, "Mietvertrag für Halle 7".encode(), type="contract", customer="acme", amount="1200.50",
               currency="EUR", number="V-1").json() == made.json()  # fmt: skip
    assert put(tenant, b"other").status_code == 409
    assert put(tenant, b"second", version=2, number="V-1").status_code == 201
    for query in ("text=halle", "text=Mietvertrag -tiefgarage", "number=V-1&amount_min=1200", "customer=acme",
                  "document_type=contract", "since=2026-05-04&until=2026-05-04"):  # fmt: skip
        found = tenant.get(f"/v1/archive?{query}").json()["items"]
        assert [one["document_id"] for one in found][:1] == ["contract-1"], query
    assert tenant.get("/v1/archive?text=tiefgarage").json()["items"] == []
    first = tenant.get("/v1/archive/documents/contract-1/txt?version=1")
    assert first.content.decode() == "Mietvertrag für Halle 7"
    assert first.headers["ETag"] == f'"{hashlib.sha256(first.content).hexdigest()}"'
    assert tenant.get("/v1/archive/documents/contract-1/txt").content == b"second"
    shown = tenant.get("/v1/archive/documents/contract-1").json()["items"]
    assert [(one["version"], one["kept_until"]) for one in shown] == [(1, "2036-12-31"), (2, "2036-12-31")]
    assert tenant.get("/v1/archive/documents/none").status_code == 404
    assert tenant.get("/v1/archive/documents/none/txt").status_code == 404


def test_the_words_of_a_pdf_are_read_in_a_child_and_a_broken_one_is_kept_all_the_same(tenant: Any) -> None:
    import typst

    pdf = typst.compile(b"Angebot fuer Solarmodule", format="pdf")
    assert put(tenant, pdf, "application/pdf", kind="pdf").status_code == 201
    assert len(tenant.get("/v1/archive?text=solarmodule").json()["items"]) == 1
    assert put(tenant, b"%PDF-1.7 broken", "application/pdf", kind="scan").status_code == 201
    assert tenant.get("/v1/archive/documents/contract-1/scan").content == b"%PDF-1.7 broken"


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"data": b""}, 400),
        ({"kind": "deletion"}, 422),
        ({"kind": "../x"}, 422),
        ({"date": "never"}, 422),
        ({"amount": "1,50"}, 422),
        ({"currency": "EURO"}, 422),
        ({"currency": "ZZZ"}, 422),
        ({"version": 3}, 409),
        ({"document_id": ""}, 422),
    ],
)
def test_bad_input_is_named(tenant: Any, given: dict[str, Any], status: int) -> None:
    answer = put(tenant, given.pop("data", b"x"), **given)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert tenant.get("/v1/archive").json()["items"] == []


def test_nothing_goes_before_its_time_or_under_a_hold_and_then_with_a_record(tenant: Any) -> None:
    put(tenant, b"old", date="2001-03-01", customer="acme", number="MARKER")
    put(tenant, b"new", document_id="contract-2")
    assert [one["document_id"] for one in tenant.get("/v1/archive/expired").json()["items"]] == ["contract-1"]
    wanted = {"document_ids": ["contract-1"], "reason": "time is over"}
    hold = tenant.post("/v1/archive/holds", {"customer": "acme", "reason": "lawsuit"}).json()
    assert tenant.get("/v1/archive/expired").json()["items"] == []
    refused = tenant.post("/v1/archive/deletions", wanted)
    assert refused.status_code == 409
    assert "lawsuit" in refused.json()["detail"]
    assert tenant.post(f"/v1/archive/holds/{hold['id']}/release", {"reason": "settled"}).status_code == 200
    assert tenant.post(f"/v1/archive/holds/{hold['id']}/release", {"reason": "settled"}).status_code == 409
    kept = tenant.post("/v1/archive/deletions", {**wanted, "document_ids": ["contract-1", "contract-2"]})
    assert kept.status_code == 409
    assert "2036-12-31" in kept.json()["detail"]
    done = tenant.post("/v1/archive/deletions", wanted)
    assert done.status_code == 201, done.text
    record = done.json()["record"]["document_id"]
    assert tenant.get("/v1/archive/documents/contract-1/txt").status_code == 404
    said = tenant.get(f"/v1/archive/documents/{record}/deletion").json()
    assert said["entries"][0]["sha256"] == hashlib.sha256(b"old").hexdigest()
    proof = tenant.get("/v1/archive/verify").json()
    assert (proof["intact"], proof["deleted"], proof["entries"]) == (True, 1, 3)
    assert tenant.post("/v1/archive/deletions", {"document_ids": ["x"], "reason": "?"}).status_code == 404
    assert tenant.post("/v1/archive/deletions", {"document_ids": [], "reason": "?"}).status_code == 422
    assert len(tenant.get("/v1/archive/holds").json()["items"]) == 1


def test_rules_rights_and_the_record_of_access(tenant: Any) -> None:
    assert tenant.put("/v1/archive/retention", {"document_type": "contract", "years": 30}).json()["years"] == {
        "invoice": 8, "credit_note": 8, "other": 10, "contract": 30, "account_statement": 6, "reminder": 6,
        "usage_record": 8, "delivery_note": 8, "credit_statement": 8,
    }  # fmt: skip
    assert tenant.put("/v1/archive/retention", {"document_type": "contract", "years": "30"}).status_code == 422
    assert put(tenant, b"a", type="contract", customer="a").json()["retained_until"] == "2056-12-31"
    put(tenant, b"b", document_id="d2", customer="b")
    limited = tenant.key_with("archive:read")
    start = f"key {limited[:12]}"
    right = {"subject": start, "customers": ["b"], "document_types": None}
    answer = tenant.put("/v1/archive/rights", right)
    assert answer.status_code == 200, answer.text
    seen = tenant.get("/v1/archive", key=limited).json()["items"]
    actors = {one["actor"] for one in tenant.get("/v1/archive/access").json()["items"]}
    assert [one["document_id"] for one in seen] == ["d2"], actors
    assert tenant.get("/v1/archive/documents/contract-1/txt", key=limited).status_code == 404
    assert tenant.get("/v1/archive/documents/contract-1", key=limited).status_code == 404
    assert tenant.get("/v1/archive/documents/d2/txt", key=limited).content == b"b"
    record = tenant.get("/v1/archive/access?document_id=d2").json()["items"]
    assert (record[0]["actor"], record[0]["action"]) == (start, "read")
    assert tenant.get("/v1/archive/access", key=limited).status_code == 403
    assert tenant.post("/v1/archive/holds", {"reason": "x"}, key=limited).status_code == 403
    assert tenant.put("/v1/archive/rights", {"subject": start}).json()["items"] == []


def test_a_customer_s_archive_is_one_zip_file(tenant: Any) -> None:
    put(tenant, b"first", customer="acme", number='=cmd|"x"')
    put(tenant, b"other", document_id="d2", customer="b")
    answer = tenant.get("/v1/archive/export?customer=acme")
    assert answer.status_code == 200
    with zipfile.ZipFile(io.BytesIO(answer.content)) as found:
        assert found.testzip() is None
        names = found.namelist()
        assert len(names) == 2
        assert found.read(names[0]) == b"first"
        register = found.read("register.csv").decode()
    assert '"\'=cmd|""x"""' in register
    assert tenant.get("/v1/archive/export?customer=nobody").status_code == 404


def test_roots_are_signed_and_can_be_checked_elsewhere(api: Any, tenant: Any, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from storage.archive.roots import Roots, SigningKey

    assert tenant.get("/v1/archive/roots").status_code == 404
    archive = api.services.archive
    archive.roots = Roots(api.services.store, SigningKey.of_file(tmp_path / "key"))
    try:
        put(tenant, b"a")
        archive._closed.clear()  # as on the next day
        answer = tenant.get("/v1/archive/roots").json()
        assert tenant.get("/v1/archive/verify").json()["roots"] == 1
    finally:
        archive.roots = None
    (root,) = answer["items"]
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(answer["public_key"]))
    public.verify(bytes.fromhex(root["signature"]), root["body"].encode())
    assert root["position"] == 1


def test_nobody_puts_a_file_in_the_place_of_an_invoice_s_own(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is cut off between its numbers and its files, and somebody who may write to the archive comes first."""
    tenant = api.tenant()
    tenant.catalog()
    assert tenant.usage(EVENTS).status_code == 200

    def away(*_: Any, **__: Any) -> int:
        raise Unavailable("the store is away")

    with monkeypatch.context() as broken:
        broken.setattr(bill_run, "make_files", away)
        tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"})
    run = tenant.get("/v1/bill-runs").json()["items"][0]
    assert run["state"] == "finalised"
    item = tenant.get("/v1/invoices").json()["items"][0]
    for name in (item["id"], item["id"].upper()):
        for kind in ("pdf", "scan"):
            refused = put(tenant, b"%PDF- of somebody", "application/pdf", document_id=name, kind=kind)
            assert refused.status_code == 409, refused.text
    assert put(tenant, b"%PDF- of somebody", document_id="0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11").status_code == 201
    tenant.post(f"/v1/bill-runs/{run['id']}/resume", {})
    assert tenant.get(f"/v1/bill-runs/{run['id']}").json()["state"] == "done"
    page = tenant.get(f"/v1/invoices/{item['number']}/pdf").content
    assert page != b"%PDF- of somebody"
    assert len(page) > 10_000


def test_files_of_invoices_are_under_the_same_rights_and_on_record(billed: Any) -> None:
    number = billed.get("/v1/invoices").json()["items"][0]["number"]
    limited = billed.key_with("billing:read")
    assert billed.get(f"/v1/invoices/{number}/pdf", key=limited).status_code == 200
    billed.put("/v1/archive/rights", {"subject": f"key {limited[:12]}", "customers": ["nobody"]})
    assert billed.get(f"/v1/invoices/{number}/pdf", key=limited).status_code == 404
    assert billed.get("/v1/archive?text=acme").json()["items"][0]["number"] == number
    actions = [one["action"] for one in billed.get("/v1/archive/access").json()["items"]]
    assert "read" in actions
