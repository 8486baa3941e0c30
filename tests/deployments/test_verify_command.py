"""`cloudbilling verify invoices`: each run is derived again from the log, and each fault makes it end with 1."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.cli import billing
from cluster.client import Client
from tests.deployments.conftest import Api, Tenant

pytestmark = pytest.mark.postgres
EVENT = (
    '{"source":"s","id":"a","type":"storage.write","customer":"acme","time":"2026-01-05T10:00:00Z","data":{"gb":"12"}}'
)

CLEAN = {"issued from outside": 0, "numbers": "looked at", "erased": [], "findings": []}


@pytest.fixture
def billed(api: Api) -> tuple[Tenant, str]:
    """A tenant with one run that stands and one that was cancelled; one document of 1.20 EUR."""
    tenant = api.tenant()
    tenant.catalog()
    assert tenant.usage(EVENT).status_code == 200
    given_up = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01", "approve": False}).json()
    assert tenant.post(f"/v1/bill-runs/{given_up['id']}/cancel", {}).is_success
    run = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).json()
    tenant.post(f"/v1/bill-runs/{run['id']}/approve", {})
    assert tenant.get(f"/v1/bill-runs/{run['id']}").json()["state"] == "done"
    return tenant, run["id"]


def verified(tenant: Tenant, run: str | None = None) -> dict[str, Any]:
    client = Client("", tenant.key, http=tenant.api.http)
    return billing._verify_invoices(client, run)


def test_a_run_is_derived_again_and_documents_by_hand_are_summed(billed: tuple[Tenant, str]) -> None:
    tenant, run = billed
    assert verified(tenant) == {"runs": 1, "derived": 1, "summed": 0, **CLEAN}
    (invoice,) = tenant.get("/v1/invoices").json()["items"]
    note = tenant.post("/v1/credit-notes", {"document": invoice["number"], "reason": "goodwill"})
    assert note.status_code == 201, note.text
    assert verified(tenant) == {"runs": 1, "derived": 1, "summed": 1, **CLEAN}
    assert verified(tenant, run) == {"runs": 1, "derived": 1, "summed": 0, **CLEAN}


def test_a_document_that_adds_up_and_is_not_what_the_log_gives_is_found(billed: tuple[Tenant, str]) -> None:
    tenant, run = billed
    with tenant.api.services.database.owner(tenant.id) as connection:
        connection.execute("UPDATE invoices SET net = net + 1, gross = gross + 1, due = due + 1")
        connection.execute("UPDATE number_series SET last = last + 1")
    found = verified(tenant, run)["findings"]
    (invoice,) = tenant.get("/v1/invoices").json()["items"]
    number = invoice["number"]
    assert any(one.startswith(f"run 2, {number}: the columns net, gross, due differ") for one in found), found
    assert [one for one in found if "the numbers have a gap" in one] != []


def test_a_run_without_documents_that_stand_is_told(billed: tuple[Tenant, str]) -> None:
    tenant, run = billed
    (given_up,) = (one["id"] for one in tenant.get("/v1/bill-runs").json()["items"] if one["id"] != run)
    found = verified(tenant, given_up)
    assert found["findings"] == ["run 1 is cancelled: its documents do not stand"]
    assert found["numbers"].startswith("not looked at")
