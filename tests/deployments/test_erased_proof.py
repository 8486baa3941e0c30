"""The proof of a bill run after usage was erased: only what the erasure took is excused, never a forged document."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import psycopg
import pytest

from billing.document_json import packed, unpacked
from pipelines.verify_invoices import Verification, verify_run
from storage.usage_log.erasing import Erasure, erase
from tests.deployments.conftest import Tenant
from tests.deployments.test_erasure import World, running_world

pytestmark = pytest.mark.postgres

TOO_MUCH = Decimal(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory) as made:
        yield made


def event(id: str, customer: str, day: str) -> str:
    form = {"source": "s", "id": id, "type": "storage.write", "customer": customer, "time": f"{day}T10:00:00Z"}
    return json.dumps(form | {"data": {"gb": "50"}})


def send(world: World, tenant: Tenant, body: str) -> None:
    """Usage, with shards started again that saw what an earlier test erased."""
    deadline = time.monotonic() + 30
    while not tenant.usage(body).is_success:
        assert time.monotonic() < deadline
        world.supervise()


@pytest.fixture
def billed(world: World) -> tuple[Tenant, list[str]]:
    """A tenant with runs for January and March: `acme` has usage of both months, `base` pays a monthly price too."""
    tenant = world.api.tenant()
    tenant.catalog()
    usage = {"code": "storage", "kind": "usage", "meter": "storage", "tax": "standard"}
    fee = {"code": "fee", "kind": "recurring", "timing": "arrears", "tax": "standard"}
    plan = {"code": "both", "currency": "EUR", "interval": "month", "charges": [
        usage | {"price": {"model": "per_unit", "unit": "0.10"}}, fee | {"price": {"model": "flat", "amount": "9.00"}},
    ]}  # fmt: skip
    steps = [
        {"at": "2026-01-01", "publish": {"plan": plan}},
        {"at": "2026-01-01", "customer": {"code": "base", "name": "Base", "country": "DE"}},
        {"at": "2026-01-01", "subscribe": {"code": "s2", "customer": "base", "plan": "both", "anchor": "calendar"}},
    ]
    assert tenant.post("/v1/steps", steps).status_code == 201
    lines = [event(f"{name}-{day}", name, day) for name in ("acme", "base") for day in ("2026-01-05", "2026-03-05")]
    lines.append(event("acme-stays", "acme", "2026-01-25"))
    send(world, tenant, "\n".join(lines))
    runs = []
    for up_to in ("2026-02-01", "2026-03-01", "2026-04-01"):
        run = tenant.post("/v1/bill-runs", {"up_to": up_to}).json()
        tenant.post(f"/v1/bill-runs/{run['id']}/approve", {})
        assert tenant.get(f"/v1/bill-runs/{run['id']}").json()["state"] == "done"
        runs.append(run["id"])
    return tenant, [runs[0], runs[2]]


def proof_of(world: World, tenant: Tenant, run_id: str) -> Verification:
    services = world.api.services
    services.masters.forget(tenant.id)
    return verify_run(services.database, world.store, services.masters, tenant.id, run_id)


def erase_january(world: World, tenant: Tenant) -> None:
    """Pass after pass until none finds more: rows wait for a checkpoint, and shards that see the erasure stop."""
    erasure = Erasure(tenant.id, "traffic data", before=datetime(2026, 1, 20, tzinfo=UTC))
    deadline, rows = time.monotonic() + 30, 0
    while True:
        done = erase(world.store, erasure)
        rows += done.rows
        if not done.rows and not done.waiting:
            break
        assert time.monotonic() < deadline
        world.supervise()
        tenant.usage(event(f"more-{time.monotonic_ns()}", "acme", "2026-04-02"))
    assert rows == 2


def forge(world: World, run_id: str, customer: str, charge: str) -> None:
    """A document that bills one euro more in a line and agrees with itself everywhere."""
    with psycopg.connect(world.dsn) as connection:
        row = connection.execute(
            "SELECT id, packed FROM invoices WHERE run_id = %s AND customer = %s", (run_id, customer)
        ).fetchone()
        assert row is not None
        form: Any = msgspec.json.decode(unpacked(bytes(row[1])))
        (line,) = (one for one in form["lines"] if one["charge"] == charge)
        line["amount"] = str(Decimal(line["amount"]) + TOO_MUCH)
        for name in ("net", "gross", "due"):
            form[name] = str(Decimal(form[name]) + TOO_MUCH)
        (body,) = packed([msgspec.json.encode(form)])
        connection.execute(
            "UPDATE invoices SET packed = %s, net = net + 1, gross = gross + 1, due = due + 1 WHERE id = %s",
            (body, row[0]),
        )
        connection.execute(
            "UPDATE invoice_lines SET amount = amount + 1 WHERE invoice_id = %s AND charge = %s", (row[0], charge)
        )
        connection.execute(
            "UPDATE postings SET amount = amount + 1 WHERE invoice_id = %s AND credit = 'revenue'", (row[0],)
        )


def change(world: World, run_id: str, customer: str, statement: str) -> None:
    chosen = "(SELECT id FROM invoices WHERE run_id = %s AND customer = %s)"
    with psycopg.connect(world.dsn) as connection:
        assert connection.execute(f"{statement} {chosen}".encode(), (run_id, customer)).rowcount == 1


def found_of(proof: Verification) -> list[tuple[str, str]]:
    return [(one.customer, one.detail) for one in proof.findings]


def test_documents_over_what_was_erased_are_excused_and_those_of_other_months_stay_proven(
    world: World, billed: tuple[Tenant, list[str]]
) -> None:
    tenant, (january, march) = billed
    erase_january(world, tenant)
    proof = proof_of(world, tenant, january)
    assert (proof.documents, proof.findings) == (2, ())
    assert [(one.customer, one.rule) for one in proof.erased] == [("acme", "traffic data"), ("base", "traffic data")]
    proof = proof_of(world, tenant, march)
    assert (proof.documents, proof.findings, proof.erased) == (2, (), ())


def test_a_forged_document_of_another_month_is_found(world: World, billed: tuple[Tenant, list[str]]) -> None:
    tenant, (_, march) = billed
    erase_january(world, tenant)
    forge(world, march, "acme", "storage")
    proof = proof_of(world, tenant, march)
    assert {customer for customer, _ in found_of(proof)} == {"acme"}
    assert (proof.erased, proof.proven) == ((), False)


def test_a_forged_price_beside_erased_usage_is_found(world: World, billed: tuple[Tenant, list[str]]) -> None:
    tenant, (january, _) = billed
    erase_january(world, tenant)
    forge(world, january, "base", "fee")
    proof = proof_of(world, tenant, january)
    assert {customer for customer, _ in found_of(proof)} == {"base"}
    assert [one.customer for one in proof.erased] == ["acme"]


@pytest.mark.parametrize(
    ("statement", "detail"),
    [
        (
            "UPDATE invoices SET net = net + 1, gross = gross + 1, due = due + 1 WHERE id =",
            "the columns net, gross, due",
        ),
        ("UPDATE invoice_lines SET amount = amount + 1 WHERE line = 1 AND invoice_id =", "rows in invoice_lines"),
        ("UPDATE invoice_taxes SET amount = amount + 1 WHERE invoice_id =", "rows in invoice_taxes"),
        ("DELETE FROM postings WHERE credit = 'revenue' AND invoice_id =", "its postings are not"),
    ],
)
def test_a_document_over_erased_usage_that_does_not_agree_with_itself_is_found(
    world: World, billed: tuple[Tenant, list[str]], statement: str, detail: str
) -> None:
    tenant, (january, _) = billed
    erase_january(world, tenant)
    change(world, january, "acme", statement)
    proof = proof_of(world, tenant, january)
    ((customer, said),) = found_of(proof)
    assert customer == "acme"
    assert detail in said
    assert [one.customer for one in proof.erased] == ["base"]


def test_a_forged_total_over_erased_usage_is_found(world: World, billed: tuple[Tenant, list[str]]) -> None:
    """In the body and in the columns alike: what is left to tell is that the lines give another sum."""
    tenant, (january, _) = billed
    erase_january(world, tenant)
    with psycopg.connect(world.dsn) as connection:
        where = "WHERE run_id = %s AND customer = 'acme'"
        row = connection.execute(f"SELECT packed FROM invoices {where}".encode(), (january,)).fetchone()
        assert row is not None
        form: Any = msgspec.json.decode(unpacked(bytes(row[0])))
        for name in ("net", "gross"):
            form[name] = str(Decimal(form[name]) + TOO_MUCH)
        form["prepaid"] = str(Decimal(form["prepaid"]) + TOO_MUCH)
        (body,) = packed([msgspec.json.encode(form)])
        values = "net = net + 1, gross = gross + 1, prepaid = prepaid + 1"
        connection.execute(f"UPDATE invoices SET packed = %s, {values} {where}".encode(), (body, january))
    assert found_of(proof_of(world, tenant, january)) == [("acme", "its net is not the sum of its lines")]


@pytest.mark.parametrize("body", [b"", b"no document", packed([b'{"net": 1}'])[0], packed([b"{"])[0]], ids=range(4))
def test_a_document_that_cannot_be_read_is_a_finding_and_hides_no_other(
    world: World, billed: tuple[Tenant, list[str]], body: bytes
) -> None:
    tenant, (january, march) = billed
    erase_january(world, tenant)
    with psycopg.connect(world.dsn) as connection:
        connection.execute(
            "UPDATE invoices SET packed = %s WHERE run_id = ANY(%s) AND customer = 'acme'", (body, [january, march])
        )
    forge(world, march, "base", "fee")
    assert found_of(proof_of(world, tenant, january)) == [("acme", "the stored document cannot be read")]
    found = found_of(proof_of(world, tenant, march))
    assert ("acme", "the stored document cannot be read") in found
    assert {customer for customer, _ in found} == {"acme", "base"}


@pytest.mark.parametrize("gone", ["acme", "base"])
def test_a_missing_document_is_never_excused(world: World, billed: tuple[Tenant, list[str]], gone: str) -> None:
    tenant, (january, _) = billed
    erase_january(world, tenant)
    for table in ("invoice_lines", "invoice_taxes", "postings", "document_files"):
        with psycopg.connect(world.dsn) as connection:
            connection.execute(
                f"DELETE FROM {table} WHERE invoice_id = (SELECT id FROM invoices WHERE run_id = %s AND customer = %s)",
                (january, gone),
            )
    change(world, january, gone, "DELETE FROM invoices WHERE id =")
    proof = proof_of(world, tenant, january)
    ((customer, detail),) = found_of(proof)
    assert customer == gone
    assert "is missing" in detail


def test_a_run_over_erased_usage_is_not_reversed_and_those_of_other_months_are(
    world: World, billed: tuple[Tenant, list[str]]
) -> None:
    """Else all of January would be credited, and the next run would find no usage to bill in its place."""
    tenant, (january, march) = billed
    erase_january(world, tenant)
    numbers = {item["number"] for item in tenant.get("/v1/invoices").json()["items"]}

    def reverse(run_id: str) -> Any:
        return tenant.post(f"/v1/bill-runs/{run_id}/reverse", {})

    newest, before, first = (item["id"] for item in tenant.get("/v1/bill-runs").json()["items"])
    assert (newest, first) == (march, january)
    for run_id in (march, before):
        assert reverse(run_id).status_code == 202
        assert tenant.get(f"/v1/bill-runs/{run_id}").json()["state"] == "reversed"
    notes = {item["number"] for item in tenant.get("/v1/invoices").json()["items"]} - numbers
    assert notes
    refused = reverse(january)
    assert refused.status_code == 409, refused.text
    assert "made of usage that is erased (traffic data)" in refused.json()["detail"]
    assert tenant.get(f"/v1/bill-runs/{january}").json()["state"] == "done"
    assert {item["number"] for item in tenant.get("/v1/invoices").json()["items"]} == numbers | notes
