"""The end of a tenant: closed it is read and not changed, erased it is found in no store, before it can be undone."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest

from billing.errors import Conflict
from cluster.cli import tenant_ends as commands
from deployments.tenant_ends import tenant_erasing_of
from pipelines.tenant_export import export_tenant
from storage.object_store import LocalObjectStore
from storage.usage_log.deleting import delete_announced
from tests.deployments.conftest import Api, bearer
from tests.deployments.test_erasure import MARK, World, live_a_life, marked_objects, marked_rows, running_world

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory) as made:
        yield made


def post(api: Api, path: str, body: Any) -> Any:
    return api.http.post(path, json=body, headers=bearer(api.platform_key))


def end_of(api: Api, code: str) -> Any:
    return api.http.get(f"/v1/tenants/{code}/end", headers=bearer(api.platform_key)).json()


def test_a_closed_tenant_is_read_and_not_changed_until_it_is_opened_again(world: World) -> None:
    tenant = world.api.tenant()
    tenant.catalog()
    path = f"/v1/tenants/{tenant.code}"
    early = post(world.api, f"{path}/erase", {"rule": "contract ended"})
    assert early.status_code == 409, early.text
    closed = post(world.api, f"{path}/close", {})
    assert closed.status_code == 200, closed.text
    assert closed.json()["closed_at"] is not None
    assert post(world.api, f"{path}/close", {}).json()["closed_at"] == closed.json()["closed_at"]
    assert tenant.get("/v1/customers/acme").status_code == 200
    for refused in (
        tenant.post("/v1/steps", [{"at": "2026-01-02", "customer": {"code": "b", "name": "B", "country": "DE"}}]),
        tenant.usage('{"source":"s","id":"1","type":"storage.write","customer":"acme","time":"2026-01-03T00:00:00Z"}'),
        tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}),
    ):
        assert (refused.status_code, refused.json()["code"]) == (403, "tenant_closed"), refused.text
    assert post(world.api, f"{path}/erase", {"rule": "x", "after_days": 0}).status_code == 422, "live: a day at least"
    planned = post(world.api, f"{path}/erase", {"rule": "contract ended", "after_days": 3})
    assert planned.status_code == 202, planned.text
    assert tenant_erasing_of(world.api.services).round() == 0, "its time has not come"
    opened = post(world.api, f"{path}/reopen", {})
    assert (opened.status_code, opened.json()["erase_at"]) == (200, None), opened.text
    assert tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).status_code == 202
    assert post(world.api, "/v1/tenants/none/close", {}).status_code == 404
    own = world.api.http.post(f"{path}/close", json={}, headers=bearer(tenant.key))
    assert own.status_code == 403, "a tenant's own key closes nothing"


def test_an_erased_tenant_is_found_in_no_store_but_for_documents_that_the_law_keeps(
    world: World, tmp_path: Path
) -> None:
    live_a_life(world)
    tenant, path = world.tenant, f"/v1/tenants/{world.tenant.code}"
    made = tenant.post("/v1/users", {"email": f"{MARK.lower()}@example.org", "name": MARK, "role": "viewer",
                                     "password": "a long password 123"})  # fmt: skip
    assert made.status_code == 201, made.text
    other = world.api.tenant()
    other.catalog()
    assert post(world.api, f"{path}/close", {}).status_code == 200
    check_export(world, tmp_path / "export")
    assert post(world.api, f"{path}/erase", {"rule": "contract ended", "after_days": 1}).status_code == 202
    end = drive(world, tenant.id)
    assert end["erasing_since"] is not None
    assert end["erase_progress"]["documents_kept"] > 0
    assert end["erased_at"] is None, "it waits for the documents"
    again = post(world.api, f"/v1/tenants/{end['code']}/reopen", {})
    assert again.status_code == 409, again.text
    assert all(table.startswith("archive_") for table in marked_rows(world)), marked_rows(world)
    assert marked_objects(world) == []
    world.api.app.state.gate.forget()  # a key is believed for five seconds
    assert tenant.get("/v1/tenant").status_code == 401
    assert other.get("/v1/customers/acme").status_code == 200


def test_a_test_tenant_goes_whole(world: World) -> None:
    for _ in range(10):  # lanes that hold what was erased stop when they look
        time.sleep(0.2)
        world.supervise()
    tenant = world.api.tenant(kind="test", test_clock="2026-01-20")
    tenant.catalog()
    event = '"source":"s","id":"1","type":"storage.write","customer":"acme","time":"2026-01-03T00:00:00Z"'
    assert tenant.usage(f'{{{event},"data":{{"gb":"1"}}}}').status_code == 200
    path = f"/v1/tenants/{tenant.code}"
    assert post(world.api, f"{path}/close", {}).status_code == 200
    assert post(world.api, f"{path}/erase", {"rule": "try-out", "after_days": 0}).status_code == 202
    end = drive(world, tenant.id)
    assert end["erased_at"] is not None, end
    assert end["code"] == f"erased-{tenant.id[-12:]}"
    left = {key.rsplit("/", 1)[0] for key in world.store.list("") if tenant.id in key}
    assert left == {f"master/{tenant.id}", f"log/erasing/trail/{tenant.id}"}, "numbers without content, and the trail"
    assert world.api.tenant(code=tenant.code).code == tenant.code, "its code is free again"


def test_an_erasure_killed_after_memberships_went_forgets_their_people_when_it_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> int:
        raise Killed

    tenant = world.api.tenant(kind="test", test_clock="2026-01-20")
    email = f"killed-{tenant.code}@example.org"
    made = tenant.post("/v1/users", {"email": email, "name": "K", "role": "viewer", "password": "a long password 123"})
    assert made.status_code == 201, made.text
    path = f"/v1/tenants/{tenant.code}"
    assert post(world.api, f"{path}/close", {}).status_code == 200
    assert post(world.api, f"{path}/erase", {"rule": "try-out", "after_days": 0}).status_code == 202
    monkeypatch.setattr("storage.sql.tenant_ends.forget_people", killed)
    with pytest.raises(Killed):
        drive(world, tenant.id)
    monkeypatch.undo()
    assert people(world, tenant.id, email) == (0, 1), "the memberships are gone, the account is not"
    end = drive(world, tenant.id, timedelta(days=2))
    assert end["erased_at"] is not None, end
    assert people(world, tenant.id, email) == (0, 0)
    assert end["erase_progress"]["people"] == 1
    assert "members" not in end["erase_progress"]


def people(world: World, tenant_id: str, email: str) -> tuple[int, int]:
    """Memberships of a tenant, and accounts of an address."""
    with psycopg.connect(world.dsn) as connection:
        (members,) = connection.execute(
            "SELECT count(*) FROM memberships WHERE tenant_id = %s", (tenant_id,)
        ).fetchone() or (-1,)
        (users,) = connection.execute("SELECT count(*) FROM users WHERE email = %s", (email,)).fetchone() or (-1,)
    return members, users


def check_export(world: World, folder: Path) -> None:
    """What is exported is what there is: rows, usage, objects, with digests, and no secret."""
    database, store, tenant = world.api.services.database, world.store, world.tenant
    counts = export_tenant(database, store, store, tenant.id, folder)
    with pytest.raises(Conflict, match="is there already"):
        export_tenant(database, store, store, tenant.id, folder)
    said = json.loads((folder / "manifest.json").read_text())
    assert said["counts"] == counts
    for name, digest in said["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    invoices = [json.loads(line) for line in (folder / "tables" / "invoices.jsonl").read_text().splitlines()]
    listed = tenant.get("/v1/invoices").json()["items"]
    assert {(one["number"], one["gross"]) for one in invoices} == {(one["number"], one["gross"]) for one in listed}
    usage = pl.concat(pl.read_parquet(path) for path in sorted((folder / "usage").iterdir()))
    assert usage.filter(pl.col("id") == f"{MARK}-id-3").height == 1
    assert usage.height == counts["usage rows"] > 15
    assert counts["archive objects"] > 0
    assert counts["master objects"] > 0
    told = "".join(path.read_text() for path in (folder / "tables").iterdir())
    with psycopg.connect(world.dsn) as connection:
        (secret,) = connection.execute("SELECT secret FROM webhook_endpoints LIMIT 1").fetchone() or ("",)
    assert secret
    assert secret not in told


def test_the_command_exports_documents_from_the_archive_s_own_store(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = world.api.tenant()
    apart = LocalObjectStore(tmp_path / "kept")
    apart.create(f"archive/{tenant.id}/2026/1.pdf", b"a document")
    apart.create(f"archive-roots/{tenant.id}/1.json", b"a root")
    for name, value in (
        ("DATA_DIR", tmp_path),
        ("OBJECT_STORE", world.store.root),
        ("ARCHIVE_STORE", apart.root),
        ("DATABASE_URL", world.dsn),
    ):
        monkeypatch.setenv(f"CLOUDBILLING_{name}", str(value))
    out = tmp_path / "export"
    commands.export(tenant.code, str(out), True)
    assert (out / "archive" / "2026" / "1.pdf").read_bytes() == b"a document"
    assert (out / "master" / f"{0:012}").exists()


def drive(world: World, tenant_id: str, ahead: timedelta = timedelta(days=1)) -> Any:
    """Steps until nothing is to be done for a day."""
    later = datetime.now(UTC) + ahead
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        later += timedelta(minutes=11)
        work = tenant_erasing_of(world.api.services)
        object.__setattr__(work, "clock", lambda now=later: now)
        work.step(tenant_id)
        delete_announced(world.store, grace_us=0)
        world.supervise()
        with world.api.services.database.system() as connection:
            row = connection.execute("SELECT code, erase_progress FROM tenants WHERE id = %s", (tenant_id,)).fetchone()
        assert row is not None
        assert "error" not in row["erase_progress"], row
        if "documents_kept" in row["erase_progress"]:
            return end_of(world.api, row["code"])
    raise AssertionError(row)
