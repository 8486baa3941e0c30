"""Plans and previews of whole bill runs over HTTP: what they say is what the run then does, and they touch nothing."""

from __future__ import annotations

import csv
import hashlib
import io
from decimal import Decimal
from typing import Any

import polars as pl
import psycopg
import pytest

from billing.errors import Unavailable
from deployments import run_previews
from storage.master_chain import MasterChain
from tests.deployments.conftest import Api

pytestmark = pytest.mark.postgres

UP_TO = {"up_to": "2026-02-01"}


def event(id_: str, day: int, gb: str, customer: str, month: int = 1) -> str:
    return (
        f'{{"source":"a","id":"{id_}","type":"storage.write","customer":"{customer}",'
        f'"time":"2026-{month:02}-{day:02}T10:00:00Z","data":{{"gb":"{gb}"}}}}\n'
    )


@pytest.fixture
def tenant(api: Api) -> Any:
    """Three customers with usage of January 2026: acme, rhein whose credit pays a part, elbe without usage."""
    one = api.tenant()
    one.catalog()
    steps: list[dict[str, Any]] = []
    for code in ("rhein", "elbe"):
        steps.append({"at": "2026-01-01", "customer": {"code": code, "name": f"={code}", "country": "DE"}})
        steps.append({"at": "2026-01-01", "subscribe": {"code": f"s-{code}", "customer": code, "plan": "basic"}})
    for kind, amount in (("purchased", "3.00"), ("promotional", "1.00")):
        steps.append({"at": "2026-01-01", "top_up": {"customer": "rhein", "kind": kind, "amount": amount}})
    assert one.post("/v1/steps", steps).status_code == 201
    sent = event("e1", 5, "100", "acme") + event("e2", 6, "70.5", "rhein")
    assert one.usage(sent).status_code == 200
    return one


def previewed(tenant: Any, form: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = tenant.post("/v1/bill-run-previews", form or UP_TO)
    assert answer.status_code == 202, answer.text
    found = tenant.get(answer.headers["location"]).json()
    assert found["state"] == "done", found
    return found


def everything(api: Api, dsn: str) -> dict[str, str]:
    """A hash of every table and object, but for the places of previews, the audit and repeats of requests."""
    found: dict[str, str] = {}
    with psycopg.connect(dsn) as connection:
        tables = connection.execute(
            "SELECT table_name FROM information_schema.tables"
            " WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
        ).fetchall()
        for (table,) in tables:
            if table not in ("audit_entries", "idempotency_keys", "api_keys"):  # a key says when it was used
                query = psycopg.sql.SQL("SELECT t::text FROM {} t ORDER BY 1").format(psycopg.sql.Identifier(table))
                found[table] = hashlib.sha256(repr(connection.execute(query).fetchall()).encode()).hexdigest()
    store = api.services.store
    for key in store.list(""):
        if not key.startswith("run-previews/"):
            found[key] = hashlib.sha256(store.get(key) or b"").hexdigest()
    return found


def test_a_preview_touches_nothing_but_the_audit_and_the_run_bills_the_same(
    api: Api, api_dsn: str, tenant: Any
) -> None:
    before = everything(api, api_dsn)
    found = previewed(tenant)
    lines = tenant.get(f"/v1/bill-run-previews/{found['id']}/lines?format=parquet").content
    assert everything(api, api_dsn) == before
    [wallet] = tenant.get("/v1/wallets/rhein?fresh=true").json()["wallets"]
    assert (wallet["balance"], wallet["reserved"]) == ("4.00", "0.00")
    assert tenant.get("/v1/bill-runs").json()["items"] == []
    told = tenant.get("/v1/audit").json()["items"][0]
    assert (told["action"], told["subject"]) == ("preview of a bill run started", found["id"])
    run = tenant.post("/v1/bill-runs", UP_TO).json()
    run = tenant.get(f"/v1/bill-runs/{run['id']}").json()
    assert run["state"] == "done"
    assert (found["result"]["totals"], found["result"]["checks"]) == (run["totals"], run["checks"])
    assert (found["up_to"], found["document_date"]) == (run["up_to"], run["document_date"])
    invoices = {one["customer"]: one for one in tenant.get("/v1/invoices").json()["items"]}
    # The promotional credit is in the net: the preview has read the wallet that the run then used.
    assert (invoices["rhein"]["net"], invoices["rhein"]["prepaid"]) == ("6.05", "3.00")
    assert found["result"]["totals"]["EUR"]["net"] == "16.05"
    assert found["result"]["documents"] == len(invoices) == 2
    rows = pl.read_parquet(io.BytesIO(lines)).to_dicts()
    billed = [
        {"customer": code, "charge": line["charge"], "quantity": line["quantity"], "amount": line["amount"]}
        for code in ("acme", "rhein")
        for line in tenant.get(f"/v1/invoices/{invoices[code]['number']}").json()["lines"]
    ]
    assert [{name: row[name] for name in billed[0]} for row in rows] == billed
    after = previewed(tenant)
    assert (after["result"]["documents"], after["result"]["totals"]) == (0, {})


def test_the_lines_come_as_csv_without_formulas(tenant: Any) -> None:
    fee = {"code": "fee", "name": "=1+1", "kind": "recurring", "timing": "arrears", "tax": "standard",
           "price": {"model": "flat", "amount": "5"}}  # fmt: skip
    plan = {"code": "odd", "currency": "EUR", "interval": "month", "charges": [fee]}
    steps = [{"publish": {"plan": plan}}, {"subscribe": {"code": "s-odd", "customer": "elbe", "plan": "odd"}}]
    assert tenant.post("/v1/steps", [{"at": "2026-01-01", **one} for one in steps]).status_code == 201
    found = previewed(tenant)
    answer = tenant.get(f"/v1/bill-run-previews/{found['id']}/lines")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["document"], row["customer"], row["amount"], row["outcome"]) for row in rows] == [
        ("1", "acme", "10.00", "billed"), ("2", "elbe", "5.00", "billed"), ("3", "rhein", "7.05", "billed")
    ]  # fmt: skip
    assert [row["name"] for row in rows if row["customer"] == "elbe"] == ["'=1+1"]
    assert rows[0]["period_start"] == "2025-12-31T23:00:00.000000Z"
    assert tenant.get(f"/v1/bill-run-previews/{found['id']}/lines?format=xlsx").status_code == 422


def test_ids_that_the_run_will_void_are_told_and_counted(tenant: Any) -> None:
    twice = event("same", 7, "1000", "acme") + event("same", 7, "1000", "elbe")
    assert tenant.usage(twice).status_code == 200
    found = previewed(tenant)
    (finding,) = found["result"]["findings"]
    assert (finding["code"], finding["ids"]) == ("id_reused_ahead", 1)
    assert finding["listed"] == [{"source": "a", "id": "same"}]
    run = tenant.get(f"/v1/bill-runs/{tenant.post('/v1/bill-runs', UP_TO | {'approve': False}).json()['id']}").json()
    assert [one["code"] for one in run["findings"]] == ["id_reused"]
    more = Decimal(found["result"]["totals"]["EUR"]["net"]) - Decimal(run["totals"]["EUR"]["net"])
    assert more == Decimal("100.00"), "the event that was second"


def test_previews_are_listed_cancelled_and_deleted_and_are_of_their_tenant_alone(api: Api, tenant: Any) -> None:
    first, second = previewed(tenant), previewed(tenant)
    page = tenant.get("/v1/bill-run-previews?limit=1").json()
    assert [one["id"] for one in page["items"]] == [second["id"]]
    assert set(page["items"][0]["result"]) == {"totals", "documents", "lines", "parked_count", "held_back_count"}
    rest = tenant.get(f"/v1/bill-run-previews?limit=1&cursor={page['next_cursor']}").json()
    assert [one["id"] for one in rest["items"]] == [first["id"]]
    path = f"/v1/bill-run-previews/{first['id']}"
    assert tenant.post(f"{path}/cancel", {}).json()["detail"] == "the preview is done"
    other = api.tenant()
    for method in ("get", "delete"):
        assert getattr(api.http, method)(path, headers={"Authorization": f"Bearer {other.key}"}).status_code == 404
    assert other.get("/v1/bill-run-previews").json()["items"] == []
    gone = api.http.delete(path, headers={"Authorization": f"Bearer {tenant.key}"})
    assert gone.json() == {"id": first["id"], "deleted": True}
    assert tenant.get(path).status_code == 404
    assert tenant.get("/v1/audit").json()["items"][0]["action"] == "preview of a bill run deleted"
    assert list(api.services.store.list(f"run-previews/{tenant.id}/{first['id']}/")) == []


def test_what_cannot_be_previewed_is_refused_with_its_place(tenant: Any) -> None:
    for form, place in (
        ({"up_to": "soon"}, "/up_to"), ({"up_to": "2199-01-01"}, "/up_to"),
        (UP_TO | {"document_date": "2026-01-31"}, "/document_date"), (UP_TO | {"approve": True}, "/approve"),
    ):  # fmt: skip
        answer = tenant.post("/v1/bill-run-previews", form)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, place), answer.text
    assert tenant.post("/v1/bill-run-previews", UP_TO, key=tenant.key_with("billing:read")).status_code == 403


def test_the_plan_says_what_is_due_and_what_the_last_runs_let_expect(api: Api, api_dsn: str, tenant: Any) -> None:
    reader = tenant.key_with("billing:read")
    before = everything(api, api_dsn)
    plan = tenant.post("/v1/bill-runs/plan", UP_TO, key=reader).json()
    assert everything(api, api_dsn) == before
    # By contract all three owe January; nobody knows yet that elbe used nothing.
    assert plan["estimate"] == {
        "customers": 3, "customers_due": 3, "exact": True,
        "documents": None, "totals": None, "seconds": None, "runs": [],
    }  # fmt: skip
    assert (plan["going_on"], plan["usage_may_come_until"], plan["preview"]) == (None, None, None)
    preview = previewed(tenant)
    plan = tenant.post("/v1/bill-runs/plan", UP_TO, key=reader).json()
    assert (plan["preview"]["id"], plan["preview"]["documents"]) == (preview["id"], 2)
    assert plan["preview"]["totals"] == preview["result"]["totals"]
    run = tenant.post("/v1/bill-runs", UP_TO).json()
    assert run["estimate"]["customers_due"] == 3
    plan = tenant.post("/v1/bill-runs/plan", UP_TO, key=reader).json()
    assert (plan["estimate"]["customers_due"], plan["estimate"]["documents"], plan["preview"]) == (0, 0, None)
    assert plan["next_due_at"] == "2026-02-28T23:00:00Z"
    more = [{"at": "2026-02-01", "customer": {"code": f"n{place}", "name": "n", "country": "DE"}} for place in range(3)]
    more += [
        {"at": "2026-02-01", "subscribe": {"code": f"s-n{place}", "customer": f"n{place}", "plan": "basic"}}
        for place in range(3)
    ]
    assert tenant.post("/v1/steps", more).status_code == 201
    plan = tenant.post("/v1/bill-runs/plan", {"up_to": "2026-03-01"}, key=reader).json()
    found = plan["estimate"]
    # Six are due where three were: twice the documents and twice the money of January (gross: 16.05 + 3.05 tax).
    assert (found["customers_due"], found["documents"], found["runs"]) == (6, 4, [1])
    assert found["totals"] == {"EUR": {"net": "32.10", "gross": "38.20"}}
    assert isinstance(found["seconds"], float)
    assert plan["next_due_at"] is None


def test_the_plan_names_what_a_run_would_have_to_wait_for(tenant: Any) -> None:
    assert tenant.put("/v1/billing-settings", {"collection_window": "P60D"}).status_code == 200
    run = tenant.post("/v1/bill-runs", UP_TO | {"approve": False, "early": True}).json()
    plan = tenant.post("/v1/bill-runs/plan", UP_TO).json()
    assert plan["going_on"] == run["id"]
    assert plan["usage_may_come_until"] is None, "60 days after January are over"
    assert tenant.post("/v1/bill-runs/plan", {"up_to": "2199-01-01"}).json()["errors"][0]["pointer"] == "/up_to"


def test_a_request_that_a_crash_left_without_answer_is_repeated_and_gets_its_preview(
    api: Api, tenant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"Authorization": f"Bearer {tenant.key}", "Idempotency-Key": "preview-of-january"}

    def lost(*_: Any) -> None:
        raise Unavailable("the database went away before the commit")

    with monkeypatch.context() as patched:
        patched.setattr(run_previews, "begun", lost)
        assert api.http.post("/v1/bill-run-previews", json=UP_TO, headers=headers).status_code == 503
    [left] = tenant.get("/v1/bill-run-previews").json()["items"]
    assert left["state"] == "planned"
    assert tenant.post("/v1/bill-run-previews", UP_TO).status_code == 409
    answer = api.http.post("/v1/bill-run-previews", json=UP_TO, headers=headers)
    assert (answer.status_code, answer.json()["id"]) == (202, left["id"])
    assert tenant.get(answer.headers["location"]).json()["state"] == "done"
    told = tenant.get("/v1/audit").json()["items"][0]
    assert (told["action"], told["subject"]) == ("preview of a bill run started", left["id"])


def test_master_data_that_its_writer_did_not_bring_into_the_chain_are_brought_there(
    tenant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He died between the commit and the chain: nobody else may write for days, and the page of a new run is opened."""
    for path, good in (("/v1/bill-runs/plan", 200), ("/v1/bill-run-previews", 202)):
        with monkeypatch.context() as died:
            died.setattr(MasterChain, "project", lambda *_, **__: 0)
            step = {"customer": {"code": "elbe", "note": path}}
            tenant.post("/v1/steps", [step])
        answer = tenant.post(path, UP_TO)
        assert answer.status_code == good, answer.text
