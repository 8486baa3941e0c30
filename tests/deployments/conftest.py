"""The API over real parts: embedded PostgreSQL, a local object store, shards in this process."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from actors.local_router import LocalUsageRouter
from actors.rating_shard import ShardSettings
from deployments.access import PLATFORM_SCOPES
from deployments.app import build_app
from deployments.services import Limits, Services
from pipelines.bill_run import BillRunDriver
from pipelines.run_preview import RunPreviews
from pipelines.simulation import Simulations
from storage.archive import Archive
from storage.gateways.webhook_http import OutboundRules
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore
from storage.sql import keys
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from storage.usage_log.reader import UsageLogReader


@dataclass
class Api:
    """A running application and the keys to it."""

    app: FastAPI
    http: TestClient
    services: Services
    platform_key: str

    def tenant(self, **form: Any) -> "Tenant":
        """A new tenant with its first key (all scopes)."""
        body = {"code": f"t-{uuid4().hex[:12]}", "currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"}
        answer = self.http.post("/v1/tenants", json=body | form, headers=bearer(self.platform_key))
        assert answer.status_code == 201, answer.text
        made = answer.json()
        return Tenant(self, made["id"], made["code"], made["key"])


@dataclass
class Tenant:
    """One tenant's view of the API."""

    api: Api
    id: str
    code: str
    key: str

    def key_with(self, *scopes: str) -> str:
        answer = self.post("/v1/keys", {"name": "some", "scopes": list(scopes)})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["key"])

    def get(self, path: str, *, key: str | None = None, **headers: str) -> Any:
        return self.api.http.get(path, headers=bearer(key or self.key) | headers)

    def post(self, path: str, body: Any, *, key: str | None = None, **headers: str) -> Any:
        return self.api.http.post(path, json=body, headers=bearer(key or self.key) | headers)

    def put(self, path: str, body: Any, **headers: str) -> Any:
        return self.api.http.put(path, json=body, headers=bearer(self.key) | headers)

    def usage(self, body: bytes | str, kind: str = "application/x-ndjson", **headers: str) -> Any:
        sent = (
            bearer(self.key) | {"Content-Type": kind} | {name.replace("_", "-"): text for name, text in headers.items()}
        )
        return self.api.http.post("/v1/usage", content=body, headers=sent)

    def catalog(self) -> None:
        """A tax code, a meter, a plan, a customer `acme` with a subscription since January."""
        steps = [
            {
                "at": "2026-01-01",
                "tax_code": {"code": "standard", "percents": [{"from": "2021-01-01", "percent": "19"}]},
            },
            {
                "at": "2026-01-01",
                "meter": {"code": "storage", "event_type": "storage.write", "aggregation": "sum", "value": "gb"},
            },
            {
                "at": "2026-01-01",
                "publish": {
                    "plan": {
                        "code": "basic",
                        "currency": "EUR",
                        "interval": "month",
                        "charges": [
                            {
                                "code": "storage",
                                "kind": "usage",
                                "meter": "storage",
                                "tax": "standard",
                                "price": {"model": "per_unit", "unit": "0.10"},
                            }
                        ],
                    }
                },
            },
            {"at": "2026-01-01", "customer": {"code": "acme", "name": "ACME GmbH", "country": "DE"}},
            {
                "at": "2026-01-01",
                "subscribe": {"code": "s1", "customer": "acme", "plan": "basic", "anchor": "calendar"},
            },
        ]
        answer = self.post("/v1/steps", steps)
        assert answer.status_code == 201, answer.text


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def spread_over(api: Api, lanes: list[int]) -> Any:
    """Let exactly these lanes have partitions, and wait until it is done: a slow machine answers before."""
    answer = api.http.post("/v1/lanes/spread", json={"lanes": lanes}, headers=bearer(api.platform_key))
    assert answer.status_code == 200, answer.text
    made = answer.json()
    deadline = time.monotonic() + 120
    while not made["done"]:
        assert time.monotonic() < deadline, made
        time.sleep(0.1)
        made = api.http.get("/v1/lanes", headers=bearer(api.platform_key)).json()["spread"]
        assert made["lanes"] == lanes
    assert not made["error"], made
    return made


@pytest.fixture(scope="session")
def api_dsn() -> Iterator[str]:
    # Not below pytest's own folder: another session that starts meanwhile would lock the server's user out of it.
    with tempfile.TemporaryDirectory(prefix="cloudbilling-api-", ignore_cleanup_errors=True) as directory:
        server = EmbeddedPostgres(Path(directory) / "sql")
        try:
            dsn = server.start()
            migrate(dsn)
            yield dsn
        finally:
            server.stop()


@pytest.fixture(scope="session")
def api(api_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(api_dsn, tmp_path_factory.mktemp("api-store")) as made:
        yield made


@contextmanager
def running_api(api_dsn: str, directory: Path, settings: ShardSettings | None = None) -> Iterator[Api]:
    """The application over one database and one directory."""
    store = LocalObjectStore(directory)
    database = Database(api_dsn)
    masters = MasterChain(store)

    usage = LocalUsageRouter.open(store, shards=3, master=masters, settings=settings)
    with database:

        def drive(tenant_id: str, run_id: str, approve: bool | None) -> None:
            """The run to its end, in the request itself: tests see what came of it at once."""
            driver = BillRunDriver(database, store, masters, services.archive, services.clock, desk=services.desk)
            driver.drive(tenant_id, run_id, approve=approve)

        services = Services(
            database=database,
            router=usage,
            store=store,
            log=UsageLogReader(store),
            masters=masters,
            archive=Archive(database, store),
            start_bill_run=drive,
            start_simulation=lambda tenant_id, name: simulations.drive(tenant_id, name),
            start_preview=lambda tenant_id, name: RunPreviews(
                database, store, masters, services.clock, desk=services.desk
            ).drive(tenant_id, name),
            limits=Limits(),
            outbound=OutboundRules.of("127.0.0.1/32"),
        )
        simulations = Simulations(database, store, masters, services.clock)
        with database.system() as connection:
            made = keys.create(
                connection,
                tenant_id=None,
                name="installer",
                scopes=PLATFORM_SCOPES,
                actor="installer",
                now=datetime.now(UTC),
            )
        app = build_app(services, front=False)
        with TestClient(app, raise_server_exceptions=True) as http:
            yield Api(app, http, services, made.key)
            assert http.portal is not None
            http.portal.call(usage.close)
