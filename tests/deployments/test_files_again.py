"""Documents whose files could not be made: said everywhere, made again once the cause is mended, and left to nobody."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import typer

import deployments.credit_notes as routes
from billing.errors import Unavailable
from cluster.cli import billing, context
from cluster.client import Client
from pipelines.document_files import LeftFiles
from storage.sql import layouts
from tests.deployments.conftest import Api, Tenant

pytestmark = pytest.mark.postgres
EVENT = (
    '{"source":"s","id":"a","type":"storage.write","customer":"acme","time":"2026-01-05T10:00:00Z","data":{"gb":"12"}}'
)
UNPRINTABLE = "ACME \U00010000"


@pytest.fixture(autouse=True)
def _nobody_looked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was with documents of older versions: what no font has is found when the files are made."""
    monkeypatch.setattr("pipelines.run_issuable.unprintable", lambda _: "")


def named(tenant: Tenant, name: str) -> None:
    form = [{"at": "2026-01-02", "customer": {"code": "acme", "name": name}}]
    assert tenant.post("/v1/steps", form).status_code == 201


def usage_of(api: Api, name: str) -> Tenant:
    """A tenant with something to bill, to a customer of that name."""
    tenant = api.tenant()
    tenant.catalog()
    named(tenant, name)
    assert tenant.usage(EVENT).status_code == 200
    return tenant


def billed(api: Api, name: str = UNPRINTABLE) -> tuple[Tenant, dict[str, Any], str]:
    """A tenant, its run and the number of the one document, to a customer of that name."""
    tenant = usage_of(api, name)
    made = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).json()
    run = tenant.get(f"/v1/bill-runs/{made['id']}").json()
    (invoice,) = tenant.get("/v1/invoices").json()["items"]
    return tenant, run, invoice["number"]


def test_a_document_without_files_says_why_and_is_made_once_its_customer_is_mended(api: Api) -> None:
    tenant, run, number = billed(api)
    assert (run["state"], run["documents"]["parked"], run["parked"]) == ("done", 1, [])
    (without,) = run["without_files"]
    assert (without["number"], without["customer"], "U+10000" in without["reason"]) == (number, "acme", True), without
    invoice = tenant.get(f"/v1/invoices/{number}").json()
    assert (invoice["file"], invoice["file_reason"]) == ("parked", without["reason"])
    listed = [one["number"] for one in tenant.get("/v1/invoices?file=parked").json()["items"]]
    assert (listed, tenant.get("/v1/invoices?file=archived").json()["items"]) == ([number], [])

    reader = tenant.key_with("billing:read")
    assert tenant.post(f"/v1/invoices/{number}/files", {}, key=reader).status_code == 403
    assert tenant.post("/v1/invoices/RE-0/files", {}).status_code == 404
    again = tenant.post(f"/v1/invoices/{number}/files", {})
    assert (again.status_code, again.json()["file"]) == (202, "wanted")
    assert tenant.get(f"/v1/invoices/{number}").json()["file_reason"] == without["reason"], "nothing is mended yet"

    named(tenant, "ACME AG")
    assert tenant.post(f"/v1/invoices/{number}/files", {}).status_code == 202
    mended = tenant.get(f"/v1/invoices/{number}").json()
    assert (mended["file"], mended["file_reason"], mended["buyer"]["name"]) == ("archived", None, "ACME AG")
    assert {key: mended[key] for key in ("gross", "lines", "date")} == {
        key: invoice[key] for key in ("gross", "lines", "date")
    }
    assert tenant.get(f"/v1/invoices/{number}/pdf").content.startswith(b"%PDF-")
    run = tenant.get(f"/v1/bill-runs/{run['id']}").json()
    assert (run["documents"]["archived"], run["without_files"]) == (1, [])
    assert tenant.post(f"/v1/invoices/{number}/files", {}).status_code == 409, "an archived file never changes"
    note = tenant.post("/v1/credit-notes", {"document": number}).json()
    assert tenant.get(f"/v1/invoices/{note['number']}").json()["file"] == "archived", "printed with the mended name"


def test_a_document_whose_layout_cannot_be_read_is_made_with_the_one_in_use_now(api: Api) -> None:
    tenant = api.tenant()
    now = datetime.now(UTC)
    with api.services.database.tenant(tenant.id) as connection:
        layouts.put(connection, tenant.id, "old", "invoice", "Old", {"engine": "of yesterday"}, actor="x", now=now)
        version = layouts.publish(connection, tenant.id, "old", note="", actor="x", now=now)
        layouts.choose(connection, tenant.id, "invoice", "old", version, actor="x", now=now)
    tenant.catalog()
    assert tenant.usage(EVENT).status_code == 200
    run = tenant.get(f"/v1/bill-runs/{tenant.post('/v1/bill-runs', {'up_to': '2026-02-01'}).json()['id']}").json()
    assert (run["state"], run["documents"]["parked"]) == ("done", 1)
    number = run["without_files"][0]["number"]
    with api.services.database.tenant(tenant.id) as connection:
        layouts.choose(connection, tenant.id, "invoice", None, None, actor="x", now=now)
    assert tenant.post(f"/v1/invoices/{number}/files", {}).status_code == 202
    invoice = tenant.get(f"/v1/invoices/{number}").json()
    assert invoice["file"] == "archived", invoice["file_reason"]
    with api.services.database.tenant(tenant.id) as connection:
        drawn = layouts.of_document(connection, invoice["id"])
    assert drawn == layouts.BUILT_IN


def test_the_command_line_names_documents_without_files_and_makes_them_again(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tenant = usage_of(api, UNPRINTABLE)
    monkeypatch.setattr(context, "tenant_client", lambda *_: Client("", tenant.key, http=tenant.api.http))
    with pytest.raises(typer.Exit) as ended:
        billing.bill_run({"up_to": "2026-02-01"}, {}, [], None, None, None, False)
    assert ended.value.exit_code == context.NO
    (invoice,) = tenant.get("/v1/invoices").json()["items"]
    number = invoice["number"]
    said = capsys.readouterr().out
    assert "1 documents, 0 archived" in said
    assert f"not made: {number} (acme): {invoice['file_reason']}" in said
    assert f"make it with: cloudbilling invoices files {number}\n" in said
    with pytest.raises(typer.Exit) as ended:
        billing.make_files(number, None, None, None, False)
    assert ended.value.exit_code == context.NO
    assert f"{number}: parked: {invoice['file_reason']}\n" in capsys.readouterr().out
    named(tenant, "ACME AG")
    billing.make_files(number, None, None, None, False)
    assert f"{number}: archived\n" in capsys.readouterr().out


def test_files_that_nobody_makes_any_more_are_made_by_upkeep(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant, run, number = billed(api, "ACME AG")

    def away(*_: Any, **__: Any) -> int:
        raise Unavailable("the archive's store does not answer")

    monkeypatch.setattr(routes, "make_files", away)
    note = tenant.post("/v1/credit-notes", {"document": number, "lines": [{"line": 1, "amount": "0.10"}]})
    assert note.status_code == 201, note.text
    monkeypatch.undo()

    def file() -> str:
        return str(tenant.get(f"/v1/invoices/{note.json()['number']}").json()["file"])

    services = api.services
    now = services.clock()
    assert LeftFiles(services.database, services.archive, lambda: now).round() == 0, "who made it is about to"
    upkeep = LeftFiles(services.database, services.archive, lambda: now + timedelta(minutes=2))
    with services.database.owner(tenant.id) as connection:
        connection.execute("UPDATE bill_runs SET state = 'finalised' WHERE id = %s", (run["id"],))
    assert (upkeep.round(), file()) == (0, "wanted"), "the driver of a run makes its tenant's files"
    with services.database.owner(tenant.id) as connection:
        connection.execute("UPDATE bill_runs SET state = 'done' WHERE id = %s", (run["id"],))
    assert (upkeep.round(), file()) == (1, "archived")
    assert upkeep.round() == 0


def test_a_tenant_whose_store_is_away_does_not_keep_others_waiting(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pipelines import document_files

    asked: list[str] = []

    def away(database: Any, archive: Any, tenant_id: str, clock: Any) -> int:
        asked.append(tenant_id)
        raise Unavailable("the archive's store does not answer")

    monkeypatch.setattr(document_files.invoices, "files_left", lambda *_: ["one", "two"])
    monkeypatch.setattr(document_files, "make_files", away)
    assert LeftFiles(api.services.database, api.services.archive, api.services.clock).round() == 0
    assert asked == ["one", "two"]
    assert [record.getMessage().split(" wait")[0] for record in caplog.records] == [
        "files of tenant one",
        "files of tenant two",
    ]
