"""What a live tenant may change of itself, over REST: from then on, and never what is billed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import context
from cluster.cli.app import app
from cluster.client import Client
from storage.usage_log import reused_ids
from storage.usage_log.genesis import open_log
from tests.deployments.conftest import Api, Tenant
from tests.usage_log_support import keys_of_one_partition

pytestmark = pytest.mark.postgres


@pytest.fixture
def tenant(api: Api) -> Tenant:
    made = api.tenant(kind="test", test_clock="2026-01-20")
    made.catalog()
    return made


def send(tenant: Tenant, id_: str, day: str, customer: str = "acme", source: str = "a") -> str | None:
    """Why an event of one GB is in suspense; None where it counts."""
    form = {"source": source, "id": id_, "type": "storage.write", "customer": customer, "time": f"{day}T12:00:00Z"}
    answer = tenant.usage(json.dumps(form | {"data": {"gb": "1"}}))
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["duplicates"] == 0
    items = tenant.get("/v1/usage/suspense").json()["items"] if said["suspended"] else []
    return next((item["reason"] for item in items if item["id"] == id_), None)


def change(tenant: Tenant, **form: Any) -> Any:
    answer = tenant.post("/v1/tenant-settings", form)
    assert answer.status_code == 200, answer.text
    return answer.json()


def run(tenant: Tenant, up_to: str) -> tuple[dict[str, Any], list[tuple[str, str, bool]]]:
    """The run, proven, and the lines of its documents: where from, quantity, whether they correct."""
    assert tenant.post("/v1/test-clock/advance", {"to": up_to}).status_code == 200
    made = tenant.post("/v1/bill-runs", {"up_to": up_to, "approve": True}).json()
    made = tenant.get(f"/v1/bill-runs/{made['id']}").json()
    assert made["state"] == "done", made
    # Shards judge by what this process knows of: a change here makes the run's own mark known without a wait.
    assert tenant.post("/v1/steps", [{"customer": {"code": "acme", "note": made["id"]}}]).status_code == 201
    proof = tenant.get(f"/v1/bill-runs/{made['id']}/verify").json()
    assert (proof["proven"], proof["findings"]) == (True, []), proof
    lines = []
    for row in tenant.get("/v1/invoices?order=oldest").json()["items"]:
        if row["bill_run"] == made["id"]:
            document = tenant.get(f"/v1/invoices/{row['number']}").json()
            lines += [(one["from"], one["quantity"], one["correction"]) for one in document["lines"]]
    return made, lines


def test_settings_are_read_changed_and_recorded(tenant: Tenant) -> None:
    first = {"late_usage": "delta", "future_limit": "1h", "unique_within_customer": []}
    assert tenant.get("/v1/tenant-settings").json() == first
    assert send(tenant, "ahead", "2026-01-22") == "future"
    second = change(tenant, future_limit="3d", unique_within_customer=["gateway", "gateway"])
    assert second == {"late_usage": "delta", "future_limit": "3d", "unique_within_customer": ["gateway"]}
    assert tenant.get("/v1/tenant-settings").json() == second
    assert send(tenant, "ahead-too", "2026-01-22") is None
    assert tenant.get("/v1/usage/suspense").json()["items"] == [], "what waited for its time counts by the new limit"
    entry = tenant.get("/v1/audit").json()["items"][0]
    assert (entry["action"], entry["before"], entry["after"]) == ("tenant settings changed", first, second)
    wrong = tenant.post("/v1/tenant-settings", {"late_usage": "never", "currency": "USD", "future_limit": "1y"})
    assert wrong.status_code == 422
    pointers = [error["pointer"] for error in wrong.json()["errors"]]
    assert pointers == ["/late_usage", "/future_limit", "/currency"]
    assert tenant.post("/v1/tenant-settings", {}).status_code == 422
    assert (
        tenant.post("/v1/tenant-settings", {"late_usage": "delta"}, key=tenant.key_with("usage:write")).status_code
        == 403
    )
    hidden = tenant.post("/v1/steps", [{"settings": {"late_usage": "reject"}}])
    assert hidden.status_code == 422, "contracts:write alone does not change it"
    assert tenant.get("/v1/tenant-settings").json() == second


def test_sources_are_looked_at_when_a_tenant_is_made(api: Api) -> None:
    body = {"code": "t-sources", "currency": "EUR", "settings": {"unique_within_customer": ["a", 7]}}
    headers = {"Authorization": f"Bearer {api.platform_key}"}
    answer = api.http.post("/v1/tenants", json=body, headers=headers)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/settings/unique_within_customer/1"]


def test_late_usage_is_rejected_of_what_runs_bill_from_then_on_and_bills_that_were_made_stay(tenant: Tenant) -> None:
    assert send(tenant, "jan-1", "2026-01-05") is None
    assert run(tenant, "2026-02-01")[1] == [("2026-01-01", "1", False)]
    assert send(tenant, "jan-2", "2026-01-06") is None
    assert run(tenant, "2026-02-10")[1] == [("2026-01-01", "1", True)]
    change(tenant, late_usage="reject")
    assert send(tenant, "jan-3", "2026-01-07") is None, "no run has closed January yet"
    assert send(tenant, "feb-1", "2026-02-05") is None
    lines = run(tenant, "2026-03-01")[1]
    assert sorted(lines) == [("2026-01-01", "1", True), ("2026-02-01", "1", False)], "jan-2 is not taken back"
    assert send(tenant, "jan-4", "2026-01-08") == "late"
    assert send(tenant, "feb-2", "2026-02-06") == "late"
    change(tenant, late_usage="delta")
    assert send(tenant, "feb-3", "2026-02-07") == "late", "closed for good"
    tenant.post("/v1/test-clock/advance", {"to": "2026-03-10"})
    assert send(tenant, "mar-1", "2026-03-05") is None
    assert run(tenant, "2026-04-01")[1] == [("2026-03-01", "1", False)]
    assert send(tenant, "mar-2", "2026-03-06") is None
    assert run(tenant, "2026-04-02")[1] == [("2026-03-01", "1", True)]
    for made in tenant.get("/v1/bill-runs").json()["items"]:
        proof = tenant.get(f"/v1/bill-runs/{made['id']}/verify").json()
        assert (proof["proven"], proof["findings"]) == (True, []), "each run by the settings of its day"
    completeness = tenant.get("/v1/usage/completeness?prove=true").json()
    assert completeness["proof"]["complete"]
    assert (completeness["totals"]["stored"], completeness["totals"]["suspended"]) == (9, 3)


def test_a_source_that_numbers_per_customer_is_named_when_the_finding_says_so(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both customers' keys share a partition, so one lane sees both events with one id."""
    monkeypatch.setattr(reused_ids, "SUSPECTS_MAX", 1)
    seed = open_log(tenant.api.services.store).seed
    first, second = keys_of_one_partition(seed, 2, tenant.id)
    for code in (first, second):
        assert tenant.post("/v1/customers", {"code": code, "name": code, "country": "DE"}).status_code == 201
        form = {"code": f"s-{code}", "customer": code, "plan": "basic", "anchor": "calendar", "start": "2026-01-01"}
        assert tenant.post("/v1/subscriptions", form).status_code == 201
        for id_ in ("1", "2"):
            assert send(tenant, id_, "2026-01-05", code, source="per-customer") is None
    made, lines = run(tenant, "2026-02-01")
    (finding,) = made["findings"]
    assert (finding["code"], finding["sources"]) == ("id_reused_often", [{"source": "per-customer", "ids": 2}])
    assert "/v1/tenant-settings" in finding["detail"]
    assert lines == [("2026-01-01", "2", False)] * 2
    change(tenant, unique_within_customer=["per-customer"])
    tenant.post("/v1/test-clock/advance", {"to": "2026-02-10"})
    for code in (first, second):
        assert send(tenant, "3", "2026-02-05", code, source="per-customer") is None
    made, lines = run(tenant, "2026-03-01")
    assert (made["findings"], lines) == ([], [("2026-02-01", "1", False)] * 2)


def test_while_usage_goes_by_its_age_late_usage_stays_rejected(api: Api) -> None:
    tenant = api.tenant()
    assert tenant.put("/v1/retention", {"usage": 6}).status_code == 409
    change(tenant, late_usage="reject")
    assert tenant.put("/v1/retention", {"usage": 6}).status_code == 200
    refused = tenant.post("/v1/tenant-settings", {"late_usage": "delta"})
    assert refused.status_code == 409
    assert "/v1/retention" in refused.json()["detail"]
    assert tenant.get("/v1/tenant-settings").json()["late_usage"] == "reject"
    change(tenant, future_limit="2h")
    assert tenant.put("/v1/retention", {"usage": None}).status_code == 200
    change(tenant, late_usage="delta")


def test_the_command_line_reads_and_changes_them(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(context, "tenant_client", lambda *_: Client("", tenant.key, http=tenant.api.http))
    said = ["tenants", "settings"]
    called = CliRunner().invoke(app, [*said, "--late-usage", "reject", "--unique-within-customer", "a, b"])
    assert called.exit_code == 0, called.output
    assert "a, b" in called.output
    now = tenant.get("/v1/tenant-settings").json()
    assert (now["late_usage"], now["unique_within_customer"]) == ("reject", ["a", "b"])
    called = CliRunner().invoke(app, [*said, "--unique-within-customer", ""])
    assert called.exit_code == 0, called.output
    assert tenant.get("/v1/tenant-settings").json()["unique_within_customer"] == []
    called = CliRunner().invoke(app, [*said, "--json"])
    shown = re.search(r"^\{$.*?^\}$", called.output, re.DOTALL | re.MULTILINE)  # the server's log is beside it
    assert shown is not None
    assert json.loads(shown[0]) == tenant.get("/v1/tenant-settings").json()
    refused = CliRunner().invoke(app, [*said, "--future-limit", "400d"])
    assert refused.exit_code == context.WRONG_CALL
    (told,) = [line for line in refused.output.splitlines() if "future_limit" in line]
    assert told.startswith("cloudbilling: "), "said once"
    reader = tenant.key_with("access:read")
    monkeypatch.setattr(context, "tenant_client", lambda *_: Client("", reader, http=tenant.api.http))
    assert CliRunner().invoke(app, said).exit_code == 0, "to look needs no key that may change"
    assert CliRunner().invoke(app, [*said, "--late-usage", "delta"]).exit_code != 0
