"""A person asks what is kept: every store is named, and every row that names one of his keys is found."""

from __future__ import annotations

import json
from typing import Any

import pytest

from storage.sql import traces
from tests.deployments.conftest import Api, Tenant
from tests.deployments.test_amendments_over_rest import event, send

pytestmark = pytest.mark.postgres


def report(tenant: Tenant, code: str = "acme") -> Any:
    answer = tenant.get(f"/v1/customers/{code}/access-report")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_report_names_every_store_with_what_it_keeps_and_what_becomes_of_it(api: Api) -> None:
    tenant = api.tenant()
    tenant.catalog()
    send(tenant, event("a"), event("b"), event("c", customer="nobody"))
    found = report(tenant)
    assert "acme" in found["keys"]
    assert [(one["key"], one["kind"], one["rows"]) for one in found["usage"]] == [("acme", "usage", 2)]
    assert "cloudbilling customer erase" in found["usage"][0]["on_erasure"]
    tables = {one["table"]: one for one in found["tables"]}
    assert {"master_records", "steps"} <= set(tables)
    assert any(row.get("code") == "acme" for row in tables["master_records"]["shown"])
    assert all(one["on_erasure"] for one in found["tables"])
    assert "nobody" not in json.dumps(found["usage"])
    assert any("archive" in one for one in found["not_searched"])


def test_a_secret_in_a_row_that_is_found_is_not_shown(api: Api) -> None:
    tenant = api.tenant()
    tenant.catalog()
    made = tenant.post("/v1/webhooks", {"url": "https://hooks.example.org/", "description": "of acme"})
    assert made.status_code == 201, made.text
    found = report(tenant)
    assert "webhook_endpoints" in {one["table"] for one in found["tables"]}
    assert made.json()["secret"] not in json.dumps(found)


def test_a_customer_that_there_is_not_and_a_key_without_the_scope_get_none(api: Api) -> None:
    tenant = api.tenant()
    tenant.catalog()
    assert tenant.get("/v1/customers/nobody/access-report").status_code == 404
    other = api.tenant()
    assert other.get("/v1/customers/acme/access-report").status_code == 404


def test_a_word_is_found_in_text_json_and_bytes_of_any_table_and_not_as_a_part_of_another(api: Api) -> None:
    tenant = api.tenant()
    tenant.catalog()
    with api.services.database.tenant(tenant.id) as connection:
        connection.execute(
            "INSERT INTO audit_entries (tenant_id, at, actor, action, subject, after)"
            " VALUES (%s, now(), 'clerk', 'noted', 'thing', '{\"x\": [\"Zo.ë-1\"]}')",
            (tenant.id,),
        )
        connection.execute(
            "INSERT INTO webhook_messages (tenant_id, id, event_type, made_at, body) VALUES (%s, 'm', 't', now(), %s)",
            (tenant.id, b'{"customer":"sim+7"}'),
        )
        tables = {one.table for one in traces.find(connection, ["Zo.ë-1", "sim+7"])[0]}
        assert tables == {"audit_entries", "webhook_messages"}
        assert traces.find(connection, ["o.ë-1", "Zo.ë-12", "Zoxë-1", "sim7"])[0] == []
    with api.services.database.tenant(api.tenant().id) as connection:
        assert traces.find(connection, ["Zo.ë-1", "sim+7"])[0] == [], "another tenant's rows are not seen"
