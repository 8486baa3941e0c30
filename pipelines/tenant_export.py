"""Everything of a tenant as files that any tool reads: before it is erased, or when it moves elsewhere.

Owns the layout of the folder. `tables/NAME.jsonl` has the rows of a table, one JSON object a line, amounts as text,
bytes in base64; secrets (keys, passwords, webhook secrets) are left out. `usage/NNNNN.parquet` has every row of the log
that counts or waits, with its position. `master/` and `archive/` have the objects as they lie. `manifest.json` has the
SHA-256 of each file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import polars as pl
from psycopg import sql

from billing.errors import Conflict
from storage.object_store import ObjectStore
from storage.sql.database import Connection, Database
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.segment import RowKind

FORMAT = 1
ROWS_MAX = 1_000  # fetched at a time
_SECRETS = frozenset({"secret", "old_secret", "hash", "password_hash", "token_hash"})
_LEFT_OUT = frozenset({"sessions", "idempotency_keys", "erasures"})  # of the moment, or about who is gone


def export_tenant(
    database: Database, store: ObjectStore, archive: ObjectStore, tenant_id: str, folder: Path
) -> dict[str, int]:
    """Write the folder; how many rows or objects there are of each kind. Conflict if it is there already.

    `archive` is the store of the documents: they may lie apart (CLOUDBILLING_ARCHIVE_STORE). Close the tenant before:
    what changes meanwhile may be in one file and not in another.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise Conflict(f"{folder} is there already: give a folder that does not exist") from error
    counts: dict[str, int] = {}
    (folder / "tables").mkdir()
    with database.tenant(tenant_id) as connection:
        connection.execute("SET TRANSACTION READ ONLY")
        for table, columns in _tables(connection):
            counts[f"table {table}"] = _write_table(connection, table, columns, folder / "tables" / f"{table}.jsonl")
    (folder / "usage").mkdir()
    reader = UsageLogReader(store)
    rows = 0
    for place, frame in enumerate(reader.scan_rows(tenant_id, reader.now(), pl.col("kind") != int(RowKind.ERASED))):
        frame.write_parquet(folder / "usage" / f"{place:05}.parquet")
        rows += frame.height
    counts["usage rows"] = rows
    for name, of in (("master", store), ("archive", archive)):
        counts[f"{name} objects"] = _copy(of, f"{name}/{tenant_id}/", folder / name)
    _manifest(folder, tenant_id, counts)
    return counts


def _tables(connection: Connection) -> Iterator[tuple[str, list[str]]]:
    """The tables of tenants that may be read, with the columns that are told."""
    rows = connection.execute(
        "SELECT c.relname AS name, array_agg(a.attname::text ORDER BY a.attnum) AS columns FROM pg_class c"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        " WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace"
        " AND has_column_privilege(c.oid, a.attnum, 'SELECT')"
        " GROUP BY c.relname HAVING 'tenant_id' = ANY(array_agg(a.attname::text)) OR c.relname = 'tenants'"
        " ORDER BY c.relname"
    ).fetchall()
    for row in rows:
        if row["name"] not in _LEFT_OUT:
            yield row["name"], [name for name in row["columns"] if name not in _SECRETS]


def _write_table(connection: Connection, table: str, columns: list[str], path: Path) -> int:
    owner = "id" if table == "tenants" else "tenant_id"
    query = sql.SQL("SELECT {} FROM {} WHERE {} = current_tenant()").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(table), sql.Identifier(owner)
    )
    count = 0
    with connection.cursor(name="export") as cursor, path.open("w", encoding="utf-8") as file:
        cursor.execute(query)
        while rows := cursor.fetchmany(ROWS_MAX):
            for row in rows:
                file.write(json.dumps({name: _plain(value) for name, value in row.items()}, ensure_ascii=False) + "\n")
            count += len(rows)
    return count


def _copy(store: ObjectStore, prefix: str, folder: Path) -> int:
    count = 0
    for key in store.list(prefix):
        data = store.get(key)
        if data is None:
            continue
        path = folder / key.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        count += 1
    return count


def _manifest(folder: Path, tenant_id: str, counts: dict[str, int]) -> None:
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    said = {
        "format": FORMAT,
        "tenant": tenant_id,
        "exported_at": datetime.now(UTC).isoformat(),
        "counts": counts,
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(said, indent=1), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if value is None or isinstance(value, str | int | bool | dict):
        return value
    if isinstance(value, list):
        return [_plain(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return str(value)
