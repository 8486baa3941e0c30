"""A whole platform in this process: embedded PostgreSQL, log, engine, archive, and the application behind uvicorn.

All data comes through the product's own ways: steps of master data, the usage router, bill runs, rendered documents.
"""

import io
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import polars as pl
import uvicorn

from actors.accounts_desk import RunDesk
from actors.local_router import LocalUsageRouter
from billing.usage import EVENT_SCHEMA
from deployments.access import PLATFORM_SCOPES
from deployments.app import build_app
from deployments.services import Services
from pipelines import demo_generator
from pipelines.bill_run import BillRunDriver
from pipelines.run_preview import RunPreviews
from pipelines.simulation import Simulations
from storage.archive import Archive
from storage.master_chain import MasterChain
from storage.object_store import open_object_store
from storage.sql import keys, users
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from storage.usage_log.genesis import open_log
from storage.usage_log.reader import UsageLogReader

EMAIL, PASSWORD = "marit@nordwind.example", "correct horse battery staple"
TODAY = date(2026, 11, 24)
NOW = datetime(2026, 11, 24, 13, 20, tzinfo=UTC)
HOSTILE = "<script>alert(1)</script>\"' & Söhne"
FEW = {"team": 3, "compute": 6, "prepaid": 2, "marketplace": 2}  # customers by plan
HOSTILE_CODE = "K/99 ü"
READER = "jonas@nordwind.example"


@dataclass
class Platform:
    """What the tests talk to."""

    url: str
    services: Services
    driver: BillRunDriver
    tenant_id: str
    empty_tenant_id: str
    threads: list[threading.Thread] = field(default_factory=list)
    close: Callable[[], None] = lambda: None

    def client(self, email: str = EMAIL, password: str = PASSWORD, **headers: str) -> httpx.Client:
        """A browser without JavaScript, signed in."""
        client = httpx.Client(base_url=self.url, follow_redirects=True, timeout=30, headers=headers)
        sign_in(client, email, password)
        return client


def token_of(html: str) -> str:
    return html.split('name="form_token" value="')[1].split('"')[0]


def sign_in(client: httpx.Client, email: str = EMAIL, password: str = PASSWORD) -> httpx.Response:
    page = client.get("/sign-in")
    form = {"email": email, "password": password, "form_token": token_of(page.text)}
    return client.post("/sign-in", data=form)


def start(
    directory: Path,
    *,
    today: date = TODAY,
    months: int = 2,
    events: int = 6_000,
    now: datetime = NOW,
    customers: dict[str, int] | None = None,
    name: str = HOSTILE,
) -> Platform:
    """Set up and serve; a tenant with a generated business, and one without anything."""
    postgres = EmbeddedPostgres(directory / "pg")
    dsn = postgres.start()
    migrate(dsn)
    database = Database(dsn, size_max=6)
    store = open_object_store(str(directory / "store"))
    open_log(store, lanes=1)
    masters = MasterChain(store)
    archive = Archive(database, store, clock=lambda: now)
    router = LocalUsageRouter.open(store, shards=1, master=MasterChain(store))
    driver = BillRunDriver(database, store, masters, archive, lambda: now, desk=RunDesk(router))
    threads: list[threading.Thread] = []

    def drive(tenant_id: str, run_id: str, approve: bool | None = None) -> None:
        thread = threading.Thread(
            target=driver.drive, args=(tenant_id, run_id), kwargs={"approve": approve is not False}
        )
        thread.start()
        threads.append(thread)

    def simulate(tenant_id: str, simulation_id: str) -> None:
        simulations = Simulations(database, store, masters, lambda: now)
        thread = threading.Thread(target=simulations.drive, args=(tenant_id, simulation_id))
        thread.start()
        threads.append(thread)

    def preview(tenant_id: str, preview_id: str) -> None:
        previews = RunPreviews(database, store, masters, lambda: now, desk=RunDesk(router))
        thread = threading.Thread(target=previews.drive, args=(tenant_id, preview_id))
        thread.start()
        threads.append(thread)

    services = Services(
        database=database,
        router=router,
        store=store,
        log=UsageLogReader(store),
        masters=masters,
        archive=archive,
        start_bill_run=drive,
        start_simulation=simulate,
        start_preview=preview,
        clock=lambda: now,
        about=lambda: {"dashboard": "http://127.0.0.1:8265"},
    )
    demo_generator.MONTHS = months
    demo_generator.CUSTOMERS = customers or FEW
    business = demo_generator.business(today)
    config = uvicorn.Config(build_app(services), host="127.0.0.1", port=_free_port(), log_level="warning")
    server = uvicorn.Server(config)
    serving = threading.Thread(target=server.run, daemon=True)
    serving.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.01)
    url = f"http://127.0.0.1:{config.port}"
    with database.system() as connection:
        made = keys.create(
            connection, tenant_id=None, name="installer", scopes=PLATFORM_SCOPES, actor="installer", now=now
        )
    api = httpx.Client(base_url=url, timeout=60)
    tenant_id, key = _tenant(api, made.key, demo_generator.TENANT)
    empty_id, _ = _tenant(api, made.key, {**demo_generator.TENANT, "code": "empty", "name": "Leerstand GmbH"})
    with database.system() as connection:
        for place, tenant in enumerate((tenant_id, empty_id)):
            joined = now + timedelta(seconds=place)
            users.create(
                connection,
                tenant_id=tenant,
                email=EMAIL,
                name="Marit Petersen",
                password=PASSWORD,
                role="admin",
                now=joined,
                may_join=True,
            )
        users.create(
            connection, tenant_id=tenant_id, email=READER, name="Jonas Falk", password=PASSWORD, role="viewer", now=now
        )
    hostile = {
        "code": HOSTILE_CODE,
        "name": name,
        "country": "DE",
        "keys": ["sim-1", "sim-2"],
        "address": {"street": "Gasse 1", "post_code": "10115", "city": "Berlin"},
    }
    at = business.start.isoformat()
    more = [
        {"at": at, "customer": hostile},
        {"at": at, "subscribe": {"code": "S/99 ü", "customer": HOSTILE_CODE, "plan": "compute", "anchor": "calendar"}},
    ]
    _sent(api.post("/v1/steps", json=[*business.steps(), *more], headers=_bearer(key)))
    frames = [frame.sample(min(frame.height, events), seed=1) for frame in business.batches(now, 1_000_000)]
    for frame in [*frames, _own_events(now)]:
        body = io.BytesIO()
        frame.write_ipc_stream(body)
        headers = {**_bearer(key), "Content-Type": "application/vnd.apache.arrow.stream"}
        _sent(api.post("/v1/usage", content=body.getvalue(), headers=headers))
    for billed in business.billing_dates:
        run = driver.plan(tenant_id, billed, "test", document_date=billed)
        driver.drive(tenant_id, run["id"])
    api.close()

    def close() -> None:
        for thread in threads:
            thread.join(30)
        server.should_exit = True
        serving.join(20)
        database.close()
        postgres.stop()

    return Platform(url, services, driver, tenant_id, empty_id, threads, close)


def _tenant(api: httpx.Client, platform_key: str, form: dict[str, Any]) -> tuple[str, str]:
    made = _sent(api.post("/v1/tenants", json=form, headers=_bearer(platform_key))).json()
    return str(made["id"]), str(made["key"])


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _sent(answer: httpx.Response) -> httpx.Response:
    assert answer.status_code < 300, answer.text[:2_000]
    return answer


def _own_events(now: datetime) -> pl.DataFrame:
    """A few events of the customer with the odd name, two of them not rateable."""
    morning = datetime.combine(now.astimezone(ZoneInfo("Europe/Berlin")).date(), clock_time(9), UTC)
    rows = [
        ("vm", "1", "compute", "sim-1", None, morning, '{"hours":"1200.5"}'),
        ("vm", "2", "compute", HOSTILE_CODE, None, morning, '{"hours":"0.25"}'),
        ("vm", "3", "compute", "nobody", None, morning, '{"hours":"1"}'),
        ("vm", "4", "compute", "sim-2", None, morning, '{"hours":"many"}'),
    ]
    return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
