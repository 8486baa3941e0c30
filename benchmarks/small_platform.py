"""The application in one process, without Ray: settings as for `cloudbilling up`."""

from __future__ import annotations

import asyncio
import os
import secrets
from datetime import UTC, datetime

import uvicorn

from actors.local_router import LocalUsageRouter
from cluster.settings import Settings
from deployments.access import PLATFORM_SCOPES
from deployments.app import build_app
from deployments.services import Services
from storage.archive import Archive
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore
from storage.sql import keys
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from storage.usage_log.reader import UsageLogReader


def main() -> None:
    settings = Settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    server = EmbeddedPostgres(settings.data_dir / "postgres")
    dsn = server.start()
    try:
        migrate(dsn)
        with Database(dsn) as database:
            key = f"cb_{secrets.token_urlsafe(32)}"
            with database.system() as connection:
                now, scopes = datetime.now(UTC), sorted(PLATFORM_SCOPES)
                keys.create(connection, tenant_id=None, name="bench", scopes=scopes, actor="bench", now=now, key=key)
            store = LocalObjectStore(settings.data_dir / "objects")
            masters = MasterChain(store)
            descriptor = os.open(settings.admin_key_file, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(key)
            asyncio.run(_serve(settings, database, store, masters))
    finally:
        server.stop()


async def _serve(settings: Settings, database: Database, store: LocalObjectStore, masters: MasterChain) -> None:
    router = LocalUsageRouter.open(store, shards=settings.shards or 1, master=masters)
    archive, log = Archive(database, store), UsageLogReader(store)
    services = Services(
        database,
        router,
        store,
        log,
        masters,
        archive,
        start_bill_run=_no_runs,
        start_simulation=_no_runs,
        start_preview=_no_runs,
    )
    config = uvicorn.Config(build_app(services, front=False), host="127.0.0.1", port=settings.port, log_level="warning")
    try:
        await uvicorn.Server(config).serve()
    finally:
        await router.close()


def _no_runs(*_: object) -> None:
    raise RuntimeError("this process measures ingest and runs no bills")


if __name__ == "__main__":
    main()
