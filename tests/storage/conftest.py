"""An archive's world for the tests of its parts: PostgreSQL, a directory, a tenant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from storage.object_store import LocalObjectStore
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from tests.s3_server import S3Server, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    postgres = EmbeddedPostgres(tmp_path_factory.mktemp("archive") / "pg")
    dsn = postgres.start()
    migrate(dsn)
    yield dsn
    postgres.stop()


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    yield from running(tmp_path_factory.mktemp("s3"))


@pytest.fixture
def database(server: str) -> Iterator[Database]:
    with Database(server, size_max=6) as database:
        yield database


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "objects")


@pytest.fixture
def tenant(server: str) -> str:
    return _new_tenant(server)


@pytest.fixture
def other_tenant(server: str) -> str:
    return _new_tenant(server)


def _new_tenant(dsn: str) -> str:
    tenant_id = str(uuid4())
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO tenants (id, code, name, kind, currency, timezone, form)"
            " VALUES (%s, %s, 'Archive', 'live', 'EUR', 'Europe/Berlin', '{}')",
            (tenant_id, tenant_id),
        )
    return tenant_id
