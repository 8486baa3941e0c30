"""Brings a database to the newest schema: numbered SQL files, each applied once, in order, forward only.

Owns the roles, the function `current_tenant()` and the record of what was applied. A file that was applied and then
changed stops the start: what runs in production is what was tested.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from billing.errors import Conflict
from storage.sql.database import APP_ROLE, SYSTEM_ROLE, Connection, connect

DIRECTORY = Path(__file__).with_name("migrations")
_LOCK = 0x636C6F7564  # advisory lock: one process migrates, the others wait and find it done
_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


@dataclass(frozen=True)
class Migration:
    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def migrations(directory: Path = DIRECTORY) -> list[Migration]:
    """The files in order; two with one number or a name out of the pattern are a mistake of the build."""
    found: list[Migration] = []
    for path in sorted(directory.glob("*.sql")):
        match = _NAME.fullmatch(path.name)
        assert match, f"{path.name} is not NNNN_what.sql"
        found.append(Migration(int(match[1]), path.name, path.read_text(encoding="utf-8")))
    assert len({each.number for each in found}) == len(found), "two migrations have the same number"
    return found


def migrate(dsn: str, files: Sequence[Migration] | None = None) -> list[int]:
    """Apply what is missing, each file in a transaction of its own; the numbers applied now."""
    wanted = migrations() if files is None else list(files)
    with connect(dsn, autocommit=True) as connection:
        connection.execute("SET lock_timeout = 0")
        connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        try:
            _foundation(connection)
            rows = connection.execute("SELECT number, checksum, name FROM schema_migrations").fetchall()
            done = {int(row["number"]): row for row in rows}
            unknown = sorted(set(done) - {each.number for each in wanted})
            if unknown:
                raise Conflict(f"the database has migration {unknown[-1]:04}, which this version does not know: update")
            applied: list[int] = []
            for each in wanted:
                if each.number in done:
                    if done[each.number]["checksum"] != each.checksum:
                        raise Conflict(f"migration {each.name} was applied with another text; nothing was changed")
                    continue
                _apply(connection, each)
                applied.append(each.number)
            return applied
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))


def _apply(connection: Connection, migration: Migration) -> None:
    try:
        with connection.transaction():
            connection.execute(migration.text.encode())
            connection.execute(
                "INSERT INTO schema_migrations (number, name, checksum) VALUES (%s, %s, %s)",
                (migration.number, migration.name, migration.checksum),
            )
    except psycopg.Error as error:
        raise Conflict(f"migration {migration.name} failed and was rolled back: {error}") from error


def _foundation(connection: Connection) -> None:
    with connection.transaction():
        for role in (APP_ROLE, SYSTEM_ROLE):
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone():
                connection.execute(
                    sql.SQL("CREATE ROLE {} NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS").format(
                        sql.Identifier(role)
                    )
                )
            connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(role)))
        # NULL (no tenant set) equals nothing, so a forgotten tenant sees no row.
        connection.execute(
            "CREATE OR REPLACE FUNCTION current_tenant() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE "
            "AS $$ SELECT nullif(current_setting('app.tenant_id', true), '')::uuid $$"
        )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (number int PRIMARY KEY, name text NOT NULL, "
            "checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
