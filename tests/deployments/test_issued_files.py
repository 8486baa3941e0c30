"""Files and proof of invoices that were made elsewhere: a bad one keeps nobody waiting, large ones fit into memory."""

from __future__ import annotations

import tracemalloc
from datetime import timedelta
from typing import Any, LiteralString

import pytest

import deployments.billing_documents as documents
from billing.errors import Unavailable
from pipelines import document_files
from pipelines.demo_generator import TENANT
from pipelines.document_files import LeftFiles, make_files
from pipelines.verify_issued import verify_numbers
from tests.deployments.conftest import Api, Tenant
from tests.deployments.test_invoice_issuing import example

pytestmark = pytest.mark.postgres


@pytest.fixture
def tenant(api: Api) -> Tenant:
    return api.tenant(kind="test", test_clock="2026-12-15", legal_entity=TENANT["legal_entity"])


def without_files(tenant: Tenant, monkeypatch: pytest.MonkeyPatch, count: int) -> list[dict[str, Any]]:
    """Invoices whose files wait, as after a crash behind their numbers."""

    def away(*_: Any, **__: Any) -> int:
        raise Unavailable("the archive's store does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(documents, "make_files", away)
        return [tenant.post("/v1/invoices", example()).json() for _ in range(count)]


def change(tenant: Tenant, statement: LiteralString, **given: Any) -> None:
    with tenant.api.services.database.owner(tenant.id) as connection:
        connection.execute(statement, given)


def test_one_whose_json_is_gone_is_parked_and_the_others_get_their_files(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = without_files(tenant, monkeypatch, 2)
    change(tenant, "UPDATE issued_invoices SET form = '{}' WHERE invoice_id = %(id)s", id=first["id"])
    services = tenant.api.services
    later = services.clock() + timedelta(minutes=2)
    while LeftFiles(services.database, services.archive, lambda: later).round():
        pass
    read = [tenant.get(f"/v1/invoices/{one['number']}").json() for one in (first, second)]
    assert [one["file"] for one in read] == ["parked", "archived"], read
    assert read[0]["file_reason"]


def test_a_batch_holds_no_more_json_than_fits(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    without_files(tenant, monkeypatch, 3)
    services = tenant.api.services
    with services.database.tenant(tenant.id) as connection:
        row = connection.execute("SELECT max(octet_length(form::text)) AS bytes FROM issued_invoices").fetchone()
    assert row is not None
    monkeypatch.setattr(document_files, "FORM_BYTES", 2 * row["bytes"])
    made = [make_files(services.database, services.archive, tenant.id, services.clock) for _ in range(3)]
    assert made == [2, 1, 0]
    monkeypatch.setattr(document_files, "FORM_BYTES", 1)
    without_files(tenant, monkeypatch, 2)
    made = [make_files(services.database, services.archive, tenant.id, services.clock) for _ in range(3)]
    assert made == [1, 1, 0], "one that is larger than all that fits is made alone"


def test_the_proof_holds_one_large_invoice_at_a_time(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    without_files(tenant, monkeypatch, 6)
    file = "jsonb_build_object('ref', 'r', 'mime', 'text/csv', 'name', 'a.csv', 'bytes', repeat('QUJD', 1000000))"
    large = f"jsonb_build_object('attachments', jsonb_build_array({file}))"
    change(tenant, f"UPDATE issued_invoices SET form = form || {large}")

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            proof = verify_numbers(tenant.api.services.database, tenant.id)
            assert (proof.proven, proof.outside) == (True, count)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(6) < 6 * 4_000_000, "four megabytes of text each"
