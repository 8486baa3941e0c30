"""A customer is forgotten: a marker in each of his fields is found in no byte of any store afterwards, but for
documents that the law keeps, and those are named."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
import zstandard

from actors.rating_shard import ShardSettings
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore
from storage.sql.compacting import compact
from storage.usage_log.deleting import delete_announced
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.sealing import seal
from tests.deployments.conftest import Api, Tenant, running_api

pytestmark = pytest.mark.postgres

MARK = "Zq7Xmarker"
ADDRESS = {"street": f"{MARK}-street 7", "post_code": f"{MARK}-20457", "city": f"{MARK}-city"}
FORM: dict[str, Any] = {
    "code": f"{MARK}-code",
    "name": f"{MARK} & Söhne GmbH",
    "country": "DE",
    "keys": [f"{MARK}-key-1", f"{MARK}-key-2"],
    "vat_id": f"DE{MARK}",
    "legal_id": f"{MARK}-legal",
    "tax_number": f"{MARK}-tax",
    "address": ADDRESS,
    "contact": {"name": f"{MARK} Müller", "email": f"{MARK}@example.org", "phone": f"{MARK}-040"},
    "language": "de",
    "buyer_reference": f"{MARK}-buyer",
    "order_reference": f"{MARK}-order",
    "note": f"{MARK}-note",
    "tags": [f"{MARK}-tag"],
    "payment": {"iban": f"{MARK}-iban"},
}


@dataclass
class World:
    """A tenant with the customer who is to be forgotten, and another one who stays."""

    api: Api
    tenant: Tenant
    store: LocalObjectStore
    dsn: str
    data: Path

    def erasures(self) -> Any:
        from deployments.erasures import erasures_of

        return erasures_of(self.api.services)

    def supervise(self) -> int:
        """Start again the shards that stopped, as the platform's supervisor does; how many."""
        router: Any = self.api.services.router
        stopped = [lane for lane, shard in router.shards.items() if not shard.serving]
        for lane in stopped:
            assert "rows_erased" in router.shards[lane].status().stopped_because
            router.shards[lane].stop()  # its process ends with it elsewhere: here its threads and open files would stay
            router.shards[lane] = router._made(lane)
        return len(stopped)

    def drive(self, id: str) -> dict[str, Any]:
        """Steps until nothing is to be done now: a clock that is ahead, so that nothing is waited for."""
        later = datetime.now(UTC)
        for _ in range(20):
            later += timedelta(minutes=11)
            work = self.erasures()
            object.__setattr__(work, "clock", lambda now=later: now)
            work.step(self.tenant.id, id)
            delete_announced(self.store, grace_us=0)
            found = self.tenant.get(f"/v1/erasures/{id}").json()
            if found["state"] in ("documents", "done", "failed"):
                work.step(self.tenant.id, id)
                return self.tenant.get(f"/v1/erasures/{id}").json()
        raise AssertionError(found)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory) as made:
        yield made


@contextmanager
def running_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A platform of its own, whose files are looked through."""
    from storage.sql.embedded import EmbeddedPostgres
    from storage.sql.migrate import migrate

    with tempfile.TemporaryDirectory(prefix="cloudbilling-erasing-", ignore_cleanup_errors=True) as directory:
        server = EmbeddedPostgres(Path(directory) / "sql")
        try:
            dsn = server.start()
            migrate(dsn)
            objects = tmp_path_factory.mktemp("erasing-store")
            # A checkpoint with each row: what is erased lies below it.
            with running_api(dsn, objects, ShardSettings(checkpoint_rows=1, checkpoint_s=0.0)) as api:
                yield World(api, api.tenant(), LocalObjectStore(objects), dsn, Path(directory) / "sql")
        finally:
            server.stop()


def live_a_life(world: World) -> None:
    """Everything that a customer can leave behind, with the marker wherever he or his clerk may write."""
    tenant = world.tenant
    tenant.catalog()
    add_on = {
        "code": "extra",
        "currency": "EUR",
        "interval": "month",
        "charges": [
            {"code": "seat", "kind": "recurring", "tax": "standard", "price": {"model": "flat", "amount": "3.00"}}
        ],
    }
    steps: list[dict[str, Any]] = [
        {"at": "2026-01-01", "publish": {"plan": add_on}},
        {"at": "2026-01-02", "customer": FORM},
        {
            "at": "2026-01-01",
            "subscribe": {"code": f"{MARK}-sub", "customer": FORM["code"], "plan": "basic", "anchor": "calendar",
                          "name": f"{MARK}-contract", "note": f"{MARK}-clause", "order_reference": f"{MARK}-ref",
                          "tags": [f"{MARK}-t"], "discounts": [{"percent": "10"}]},
        },
        {"at": "2026-01-01", "add_on": {"subscription": f"{MARK}-sub", "code": f"{MARK}-addon", "plan": "extra",
                                         "name": f"{MARK}-addon name"}},
        {"at": "2026-01-01", "budget": {"code": f"{MARK}-budget", "customer": FORM["code"], "amount": "1.00"}},
        {"at": "2026-01-03", "top_up": {"customer": FORM["code"], "amount": "0.50", "kind": "purchased"}},
        {"at": "2026-01-04", "ad_hoc": {"customer": FORM["code"], "code": f"{MARK}-hoc", "name": f"{MARK} visit",
                                         "amount": "5.00", "tax": "standard"}},
        {"at": "2026-01-01", "customer": {"code": "child", "name": "Child", "country": "DE", "payer": FORM["code"]}},
        {"at": "2026-01-01", "subscribe": {"code": "c1", "customer": "child", "plan": "basic", "anchor": "calendar"}},
    ]  # fmt: skip
    first = {**FORM, "name": f"{MARK} of before"}
    made = tenant.post("/v1/customers?at=2026-01-01", first, **{"Idempotency-Key": "customer"})
    assert made.status_code == 201, made.text
    answer = tenant.post("/v1/steps", steps)
    assert answer.status_code == 201, answer.text
    hook = {"url": "https://127.0.0.1:9/", "description": "nobody listens"}
    assert tenant.post("/v1/webhooks", hook).status_code == 201
    lines = []
    for number in range(12):
        key = [FORM["code"], *FORM["keys"]][number % 3]
        lines.append(
            {
                "source": f"{MARK}-source",
                "id": f"{MARK}-id-{number}",
                "type": "storage.write",
                "customer": key,
                "time": f"2026-01-{number + 2:02}T10:00:00Z",
                "subscription": f"{MARK}-sub",
                "data": {"gb": f"{number}.5", "project": f"{MARK}-project", f"{MARK}-property": "x"},
            }
        )
    lines.append({**lines[0], "id": f"{MARK}-odd", "type": f"{MARK}-type"})
    lines.append({**lines[0], "id": f"{MARK}-wrong", "data": {"gb": f"{MARK}-many"}})
    for customer in ("acme", "child"):
        lines.append({"source": "s", "id": f"of-{customer}", "type": "storage.write", "customer": customer,
                      "time": "2026-01-09T10:00:00Z", "data": {"gb": "7"}})  # fmt: skip
    sent = tenant.usage("\n".join(json.dumps(line) for line in lines))
    assert sent.status_code == 200, sent.text
    corrections = [{"source": f"{MARK}-source", "id": f"{MARK}-wrong", "data": {"gb": "2", "who": f"{MARK}-fixed"}}]
    fixed = tenant.post("/v1/usage/suspense/corrections", {"corrections": corrections, "reason": f"{MARK}-reason"})
    assert fixed.status_code == 200, fixed.text
    seal(world.store, UsageLogReader(world.store).now())
    reserved = tenant.post("/v1/reservations", {"id": f"{MARK}-hold", "customer": FORM["code"],
                                                "amount": "0.10", "currency": "EUR"})  # fmt: skip
    assert reserved.status_code in (200, 201), reserved.text
    preview = tenant.post("/v1/bill-run-previews", {"up_to": "2026-02-01"})
    assert tenant.get(preview.headers["location"]).json()["result"]["documents"] > 0
    run = tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}, **{"Idempotency-Key": "january"})
    assert run.status_code == 202, run.text
    assert tenant.get(f"/v1/bill-runs/{run.json()['id']}").json()["state"] == "done"
    with psycopg.connect(world.dsn) as connection:  # as if they had been made again, with his data of then
        again = "UPDATE document_files SET customer = %s, buyer = %s WHERE invoice_id IN"
        chosen = "(SELECT id FROM invoices WHERE customer = %s)"
        made = connection.execute(f"{again} {chosen}".encode(), (FORM["code"], json.dumps(FORM), FORM["code"]))
        assert made.rowcount > 0
    ended = tenant.post("/v1/steps", [
        {"at": "2026-02-01", "cancel": {"subscription": f"{MARK}-sub"}},
        {"at": "2026-02-01", "customer": {"code": "child", "payer": None}},
    ])  # fmt: skip
    assert ended.status_code == 201, ended.text
    late = {**lines[0], "id": f"{MARK}-late", "time": "2026-01-20T10:00:00Z"}
    assert tenant.usage(json.dumps(late)).status_code == 200
    run = tenant.post("/v1/bill-runs", {"up_to": "2026-03-01"})
    tenant.post(f"/v1/bill-runs/{run.json()['id']}/approve", {})  # a guard rail found that it differs from the first
    assert tenant.get(f"/v1/bill-runs/{run.json()['id']}").json()["state"] == "done"
    from actors.budget_desk import BudgetDesk
    from actors.webhook_reconciler import WebhookReconciler
    from storage.gateways.webhook_http import OutboundRules, WebhookHttp

    services = world.api.services
    reconciler = WebhookReconciler(
        services.database, BudgetDesk(services.router), WebhookHttp(OutboundRules.of("127.0.0.1/32")), services.clock
    )
    reconciler.round()


def texts_of(key: str, data: bytes) -> Iterator[bytes]:
    """The bytes of an object, and what they say unpacked."""
    yield data
    if data[:4] == b"PAR1":
        yield json.dumps(pl.read_parquet_metadata(io.BytesIO(data))).encode()
        frame = pl.read_parquet(io.BytesIO(data))
        for name in frame.columns:
            if frame.schema[name] == pl.Binary:
                for one in frame[name].drop_nulls():
                    yield from texts_of(key, one)
            else:
                yield str(frame[name].to_list()).encode()
    for place in _frames(data):
        try:
            yield zstandard.ZstdDecompressor().decompress(data[place:], max_output_size=1 << 28)
        except zstandard.ZstdError:
            continue


def _frames(data: bytes) -> Iterator[int]:
    place = data.find(b"\x28\xb5\x2f\xfd")
    while place >= 0:
        yield place
        place = data.find(b"\x28\xb5\x2f\xfd", place + 1)


def marked_objects(world: World) -> list[str]:
    found: list[str] = []
    for path in sorted(path for path in world.store.root.rglob("*") if path.is_file()):
        key = path.relative_to(world.store.root).as_posix()
        if key.startswith("archive/"):
            continue  # the documents that the answer names
        if MARK in key or any(MARK.encode() in text for text in texts_of(key, path.read_bytes())):
            found.append(key)
    return found


def marked_rows(world: World) -> dict[str, int]:
    """Tables whose rows say the marker, read by the server's own user: behind every compression of PostgreSQL."""
    found: dict[str, int] = {}
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        names = connection.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
        ).fetchall()
        for (name,) in names:
            rows = connection.execute(f'SELECT * FROM "{name}"').fetchall()
            count = sum(_says(row) for row in rows)
            if count:
                found[name] = count
    return found


def _says(row: tuple[Any, ...]) -> bool:
    packed = [value for value in row if isinstance(value, bytes)]
    return MARK in str(row) or MARK.lower() in str(row) or any(
        MARK.encode() in text for value in packed for text in texts_of("", value)
    )  # fmt: skip


def marked_files(world: World, spared: str) -> tuple[list[str], list[str]]:
    """Files of PostgreSQL that hold the marker after all tables were written anew, without those of the tables whose
    names begin with `spared`; and those of its write-ahead log."""
    assert compact(world.dsn) > 30
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        paths = connection.execute(
            "SELECT pg_relation_filepath(c.oid) FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid"
            " LEFT JOIN pg_class t ON t.reltoastrelid = coalesce(i.indrelid, c.oid)"
            " LEFT JOIN pg_class o ON o.oid = coalesce(t.oid, i.indrelid, c.oid)"
            " WHERE o.relname LIKE %s AND pg_relation_filepath(c.oid) IS NOT NULL",
            (f"{spared}%",),
        ).fetchall()
        # What the planner keeps of values in columns: of the spared tables it may say the marker, of no other.
        paths += connection.execute("SELECT pg_relation_filepath('pg_statistic')").fetchall()
        known = connection.execute("SELECT tablename, s::text FROM pg_stats s").fetchall()
        assert not [table for table, text in known if MARK in text and not table.startswith(spared)]
        kept = {path for (path,) in paths}
        connection.execute("CHECKPOINT")
    found, log = [], []
    for path in sorted(path for path in world.data.rglob("*") if path.is_file()):
        name = path.relative_to(world.data).as_posix()
        name = name[name.index("base/") :] if "base/" in name else name
        try:
            data = path.read_bytes()
        except OSError:
            continue
        if MARK.encode() not in data and MARK.lower().encode() not in data:
            continue
        if "pg_wal/" in name:
            log.append(name)
        elif name.split(".")[0] not in kept:
            found.append(name)
    return found, log


def test_a_marker_in_each_field_is_found_in_no_byte_of_any_store_but_in_documents_that_are_kept(world: World) -> None:
    live_a_life(world)
    tenant = world.tenant
    before = marked_rows(world)
    assert {"steps", "master_records", "invoices", "invoice_lines", "outbox", "idempotency_keys"} <= set(before), before
    assert any(key.startswith("master/") for key in marked_objects(world))
    assert any(key.startswith("runs/") for key in marked_objects(world))
    amounts = tenant.get("/v1/invoices").json()["items"]
    path = f"/v1/customers/{FORM['code']}/erasure"

    plan = tenant.post(path, {"rule": "GDPR 17", "dry_run": True})
    assert plan.status_code == 200, plan.text
    assert plan.json()["usage_rows"] > 12
    assert marked_rows(world) == before, "a dry run changes nothing"
    asked = tenant.post(path, {"rule": "GDPR 17"})
    assert asked.status_code == 202, asked.text
    assert tenant.post(path, {"rule": "GDPR 17"}).json()["id"] == asked.json()["id"], "asked again it is the same one"
    elsewhere = MasterChain(world.store)  # another process, which holds what it has read
    elsewhere.newest(tenant.id)
    done = world.drive(asked.json()["id"])

    assert MARK not in zstandard.ZstdDecompressor().decompress(elsewhere.newest(tenant.id)[1].to_bytes()).decode()
    assert (done["state"], done["error"]) == ("documents", None), done
    assert done["documents"]
    assert all(one["kept_until"] == "2034-12-31" for one in done["documents"])
    assert all(table.startswith("archive_") for table in marked_rows(world)), marked_rows(world)
    assert marked_objects(world) == []
    files, log = marked_files(world, "archive_")
    print(f"the write-ahead log holds the marker in {len(log)} files until they are written over")
    assert files == []

    after = tenant.get("/v1/invoices").json()["items"]
    assert [(one["number"], one["gross"]) for one in after] == [(one["number"], one["gross"]) for one in amounts]
    assert tenant.get(f"/v1/customers/{FORM['code']}").status_code == 404
    left = tenant.get(f"/v1/customers/{done['stands_for']}")
    assert left.status_code == 200, left.text
    assert left.json()["form"]["name"] == "erased", left.text
    history = tenant.get("/v1/customers/child/history").text
    assert done["stands_for"] in history
    assert MARK not in history
    number = done["documents"][0]["number"]
    clerk = tenant.key_with("archive:read", "billing:read")
    assert tenant.get(f"/v1/invoices/{number}/pdf", key=clerk).status_code == 404, "kept for the law, not for work"
    seen = tenant.get("/v1/archive?limit=1", key=clerk).json()["items"]
    assert [one["customer"] for one in seen] == ["acme"], "a page is as long as it should be, without his"
    assert tenant.get(f"/v1/invoices/{number}/pdf").status_code == 200, "who keeps the archive sees it"
    assert FORM["code"] in {one["customer"] for one in tenant.get("/v1/archive?limit=50").json()["items"]}
    again = tenant.post(f"/v1/customers/{done['stands_for']}/erasure", {"rule": "GDPR 17"})
    assert again.status_code == 409, again.text


def test_what_was_billed_is_said_to_be_erased_and_is_not_billed_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the test above: neither a difference nor a credit note for usage that is gone."""
    tenant = world.tenant
    deadline = time.monotonic() + 20
    while not world.supervise():
        assert time.monotonic() < deadline, "shards that hold what was erased stop by themselves"
        time.sleep(0.1)
    time.sleep(0.5)
    world.supervise()
    runs = tenant.get("/v1/bill-runs").json()["items"]
    assert len(runs) == 2
    for run in runs:
        proof = tenant.get(f"/v1/bill-runs/{run['id']}/verify").json()
        assert (proof["findings"], proof["gaps"]) == ([], []), proof
        assert proof["erased"], proof
        assert {one["rule"] for one in proof["erased"]} == {"GDPR 17"}, proof
        assert {one["customer"][:7] for one in proof["erased"]} == {"erased-"}
        assert proof["proven"] is True
        assert proof["erased_count"] == len(proof["erased"])
        with monkeypatch.context() as patch:  # of very many only the first are named
            patch.setattr("pipelines.verify_invoices.ERASED_MAX", 0)
            many = tenant.get(f"/v1/bill-runs/{run['id']}/verify").json()
        assert (many["erased"], many["erased_count"]) == ([], proof["erased_count"])
    run = tenant.post("/v1/bill-runs", {"up_to": "2026-04-01"}).json()
    tenant.post(f"/v1/bill-runs/{run['id']}/approve", {})
    after = tenant.get(f"/v1/bill-runs/{run['id']}").json()
    assert after["state"] == "done"
    listed = tenant.get("/v1/invoices").json()["items"]
    assert not [one for one in listed if one.get("run_id") == run["id"] and one["customer"].startswith("erased-")]
    assert len([one for one in listed if one["customer"].startswith("erased-")]) == len(
        [one for run in runs for one in tenant.get(f"/v1/bill-runs/{run['id']}/verify").json()["erased"]]
    )


def test_what_is_in_the_way_of_an_erasure_is_named(world: World) -> None:
    tenant = world.api.tenant()
    tenant.catalog()
    running = tenant.post("/v1/customers/acme/erasure", {"rule": "GDPR 17"})
    assert running.status_code == 409, running.text
    assert "s1" in running.json()["detail"], running.text
    assert tenant.post("/v1/customers/nobody/erasure", {"rule": "GDPR 17"}).status_code == 404
    assert tenant.post("/v1/customers/acme/erasure", {"rule": ""}).status_code == 422
    assert tenant.post("/v1/customers/acme/erasure", {"rule": "x", "dry_run": "yes"}).status_code == 422
    reader = tenant.key_with("contracts:write", "access:read")
    assert tenant.post("/v1/customers/acme/erasure", {"rule": "x"}, key=reader).status_code == 403
    lie = {"code": "acme", "name": "ACME", "erased": "GDPR 17"}
    answer = tenant.post("/v1/steps", [{"at": "2026-01-02", "customer": lie}])
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"] == "/0/customer/erased", answer.text
    other = world.api.tenant()
    other.catalog()
    cancel = {"at": "2026-01-31", "cancel": {"subscription": "s1"}}
    assert tenant.post("/v1/steps", [cancel]).status_code == 201
    asked = tenant.post("/v1/customers/acme/erasure", {"rule": "GDPR 17"})
    assert asked.status_code == 202, asked.text
    assert other.get(f"/v1/erasures/{asked.json()['id']}").status_code == 404, "another tenant's is not seen"
    assert other.get("/v1/erasures").json()["items"] == []
    work = World(world.api, tenant, world.store, world.dsn, world.data)
    done = work.drive(asked.json()["id"])
    assert (done["state"], done["documents"]) == ("done", []), done
    assert other.get("/v1/customers/acme").status_code == 200, "the customer of the same code of another tenant stays"
