"""A customer whose invoices were made elsewhere is forgotten: what they came as goes, sums and numbers stay proven."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from pipelines.demo_generator import TENANT
from storage.sql import issued_invoices
from tests.deployments.test_erasure import FORM, MARK, World, marked_objects, marked_rows, running_world
from tests.deployments.test_invoice_issuing import example

pytestmark = pytest.mark.postgres


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory) as made:
        yield made


def test_nothing_of_what_an_invoice_came_as_is_left_of_who_is_forgotten(world: World) -> None:
    legal = TENANT["legal_entity"]
    tenant = world.api.tenant(kind="test", test_clock="2026-12-15", legal_entity=legal)
    mine = World(world.api, tenant, world.store, world.dsn, world.data)
    assert tenant.post("/v1/steps", [{"at": "2026-01-01", "customer": FORM}]).status_code == 201
    buyer: dict[str, Any] = {**example()["buyer"], "ids": [{"id": FORM["code"]}], "name": FORM["name"]}
    file = {"ref": "notes", "bytes": base64.b64encode(f"{MARK} inside".encode()).decode(), "mime": "text/csv",
            "name": "notes.csv"}  # fmt: skip
    invoice = example(buyer=buyer, attachments=[file])
    sent = tenant.post("/v1/invoices", invoice, **{"Idempotency-Key": "one"})
    assert sent.status_code == 201, sent.text
    made = sent.json()
    kept = tenant.post("/v1/invoices", example()).json()
    asked = tenant.post(f"/v1/customers/{FORM['code']}/erasure", {"rule": "GDPR 17"})
    assert asked.status_code == 202, asked.text
    done = mine.drive(asked.json()["id"])
    assert done["state"] == "documents", done
    assert [one["number"] for one in done["documents"]] == [made["number"]], "the law keeps it in the archive"
    left = {table: count for table, count in marked_rows(mine).items() if not table.startswith("archive_")}
    assert left == {}
    assert marked_objects(mine) == []
    with world.api.services.database.tenant(tenant.id) as connection:
        assert issued_invoices.form_of(connection, made["id"]) == {}
        assert issued_invoices.form_of(connection, kept["id"]) != {}, "of somebody else"
    proof = tenant.get("/v1/number-series/verify").json()
    assert (proof["proven"], proof["outside"], proof["erased"]) == (True, 2, 1), proof
    read = tenant.get(f"/v1/invoices/{made['number']}").json()
    assert (read["gross"], read["customer"][:7], read["customer_name"]) == ("487.27", "erased-", "erased")
    assert tenant.get(f"/v1/invoices/{made['number']}/pdf").status_code == 200
