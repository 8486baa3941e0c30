"""The database's floor: migrations, roles, row-level security, and a server that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from billing.errors import Conflict, InvalidInput, Unavailable
from storage.sql import tenants
from storage.sql.database import APP_ROLE, SYSTEM_ROLE, Database, connect
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.erasing import tables
from storage.sql.migrate import Migration, migrate, migrations

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with TemporaryDirectory(prefix="cb-sql-") as directory:
        one = EmbeddedPostgres(Path(directory) / "sql")
        try:
            one.start()
            yield one
        finally:
            one.stop()


@pytest.fixture
def empty(server: EmbeddedPostgres) -> Iterator[str]:
    """A database of its own in the server, without anything in it."""
    name = f"t{uuid4().hex}"
    with connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield psycopg.conninfo.make_conninfo(server.dsn, dbname=name)
    with connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_migrations_apply_to_an_empty_database_once_and_a_second_time_do_nothing(empty: str) -> None:
    assert migrate(empty) == [each.number for each in migrations()]
    assert migrate(empty) == []


def test_two_processes_that_migrate_at_once_apply_each_file_once(empty: str) -> None:
    applied: list[list[int]] = []
    both = [threading.Thread(target=lambda: applied.append(migrate(empty))) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert sorted(applied) == [[], [each.number for each in migrations()]]


def test_a_changed_file_a_failing_one_and_a_newer_database_are_refused(empty: str) -> None:
    first = Migration(1, "0001_first.sql", "CREATE TABLE first (n int)")
    broken = Migration(2, "0002_broken.sql", "CREATE TABLE second (n int); SELECT 1 / 0")
    migrate(empty, [first])
    with pytest.raises(Conflict, match="another text"):
        migrate(empty, [replace(first, text="CREATE TABLE first (n bigint)")])
    with pytest.raises(Conflict, match="rolled back"):
        migrate(empty, [first, broken])
    with connect(empty) as connection:
        assert connection.execute("SELECT to_regclass('second') AS name").fetchone() == {"name": None}
    with pytest.raises(Conflict, match="does not know"):
        migrate(empty, [])


def _tables(connection: Any) -> list[dict[str, Any]]:
    return connection.execute(
        "SELECT c.relname AS name, c.relrowsecurity AS secured, c.relforcerowsecurity AS forced,"
        " EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id') AS of_tenant"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'public' AND c.relkind = 'r' ORDER BY 1"
    ).fetchall()


def test_every_table_with_a_tenant_is_under_forced_row_level_security(empty: str) -> None:
    migrate(empty)
    with connect(empty) as connection:
        tables = [table for table in _tables(connection) if table["of_tenant"]]
        assert len(tables) > 15
        assert [table["name"] for table in tables if not (table["secured"] and table["forced"])] == []
        roles = connection.execute(
            "SELECT rolname, rolbypassrls, rolsuper FROM pg_roles WHERE rolname = ANY(%s) ORDER BY 1",
            ([APP_ROLE, SYSTEM_ROLE],),
        ).fetchall()
        assert [(r["rolbypassrls"], r["rolsuper"]) for r in roles] == [(False, False), (False, False)]
        owned = connection.execute(
            "SELECT count(*) AS n FROM pg_class WHERE pg_get_userbyid(relowner) = ANY(%s)", ([APP_ROLE, SYSTEM_ROLE],)
        ).fetchone()
        assert owned == {"n": 0}


def test_tenants_never_meet_and_a_forgotten_tenant_sees_nothing(empty: str) -> None:
    migrate(empty)
    one, other = str(uuid4()), str(uuid4())
    with connect(empty) as connection:
        for tenant in (one, other):
            connection.execute(
                "INSERT INTO tenants (id, code, name, kind, currency, timezone, form, created_at)"
                " VALUES (%s, %s, %s, 'live', 'EUR', 'UTC', '{}', now())",
                (tenant, tenant, tenant),
            )
    row = "INSERT INTO number_series (tenant_id, entity, series, year, last) VALUES (%s, 'main', 'invoice', 2026, 1)"
    with Database(empty) as database:
        with database.tenant(one) as connection:
            connection.execute(row, (one,))
        with database.tenant(other) as connection:
            assert connection.execute("SELECT * FROM number_series").fetchall() == []
            assert connection.execute("UPDATE number_series SET last = 9").rowcount == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege), database.tenant(other) as connection:
            connection.execute(row, (one,))
        with pytest.raises(psycopg.errors.InsufficientPrivilege), database.tenant(one) as connection:
            connection.execute("DELETE FROM invoices")
        with pytest.raises(psycopg.errors.InsufficientPrivilege), database.tenant(one) as connection:
            connection.execute("UPDATE invoices SET net = 0")
        with pytest.raises(InvalidInput), database.tenant("' OR true --") as connection:
            connection.execute("SELECT 1")
    with connect(empty) as connection:
        connection.execute(f"SET ROLE {APP_ROLE}")
        assert connection.execute("SELECT * FROM number_series").fetchall() == []


def _kill_while_it_works(database: Database, pid: int) -> None:
    with database.tenant(str(uuid4())) as connection:
        os.kill(pid, signal.SIGKILL)
        connection.execute("SELECT pg_sleep(5)")


def test_a_server_killed_with_its_parent_or_alone_comes_back_with_all_data() -> None:
    with TemporaryDirectory(prefix="cb-sql-") as directory:
        path = Path(directory) / "sql"
        started = subprocess.run(
            [sys.executable, "-W", "ignore", "-c",
             "import os, signal, sys; from storage.sql.embedded import EmbeddedPostgres as E; E(sys.argv[1]).start();"
             " os.kill(os.getpid(), signal.SIGKILL)", str(path)],
            cwd=Path(__file__).parents[2], check=False,
        )  # fmt: skip
        assert started.returncode == -signal.SIGKILL
        server = EmbeddedPostgres(path)
        try:
            pid = server.pid
            assert pid is not None, "the server ends with its parent"
            with connect(server.start(), autocommit=True) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
            assert server.pid == pid, "a second server was started beside the first"
            assert not server.ensure_running()
            migrate(server.dsn, [])  # the roles alone
            with Database(server.dsn) as database:
                with pytest.raises(Unavailable):
                    _kill_while_it_works(database, pid)
                assert server.ensure_running()
                with database.tenant(str(uuid4())) as connection:
                    assert connection.execute("SELECT 1 AS n").fetchone() == {"n": 1}
            with connect(server.dsn) as connection:
                assert connection.execute("SELECT n FROM kept").fetchone() == {"n": 1}
                listening = connection.execute("SHOW listen_addresses").fetchone()
                assert listening == {"listen_addresses": ""}
        finally:
            server.stop()
        assert server.pid is None


def test_an_owner_who_is_no_superuser_erases_within_one_tenant_only(server: EmbeddedPostgres) -> None:
    """The policies `erasing`: what may write anew what nobody else may sees no other tenant."""
    name = f"o{uuid4().hex[:12]}"
    with connect(server.dsn, autocommit=True) as connection:
        for role in (APP_ROLE, SYSTEM_ROLE):
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone():
                connection.execute(f"CREATE ROLE {role} NOLOGIN")
        connection.execute(f"CREATE ROLE {name} LOGIN CREATEROLE")
        connection.execute(f"GRANT {APP_ROLE}, {SYSTEM_ROLE} TO {name} WITH ADMIN OPTION")
        connection.execute(f"CREATE DATABASE {name} OWNER {name}")
    dsn = psycopg.conninfo.make_conninfo(server.dsn, dbname=name, user=name)
    try:
        migrate(dsn)
        mine, other = _tenant(dsn), _tenant(dsn)
        with Database(dsn, size_max=2) as database:
            for tenant in (mine, other):
                with database.tenant(tenant) as connection:
                    connection.execute(
                        "INSERT INTO audit_entries (tenant_id, at, actor, action, subject)"
                        " VALUES (current_tenant(), now(), 'a', 'b', 'c')"
                    )
                    with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                        connection.execute("UPDATE audit_entries SET subject = 'x'")
            with database.owner(mine) as connection:
                for table in tables(connection):  # all have a policy, also those of later migrations
                    connection.execute(f'SELECT * FROM "{table.name}"')
                assert connection.execute("UPDATE audit_entries SET subject = 'x'").rowcount == 1
                with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                    connection.execute("UPDATE audit_entries SET tenant_id = %s", (other,))
            with database.tenant(other) as connection:
                rows = connection.execute("SELECT subject FROM audit_entries").fetchall()
                assert [row["subject"] for row in rows] == ["c"]
    finally:
        with connect(server.dsn, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
            connection.execute(f"DROP OWNED BY {name}")
            connection.execute(f"DROP ROLE {name}")


def _tenant(dsn: str) -> str:
    with Database(dsn, size_max=1) as database, database.system() as connection:
        form = {"currency": "EUR", "timezone": "UTC", "country": "DE"}
        code = uuid4().hex
        return tenants.create(
            connection, code=code, name=code, kind="live", form=form, generated=False, now=datetime.now(UTC)
        ).id
