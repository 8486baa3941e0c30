"""Where a person's marks lie in PostgreSQL: every row of every table of a tenant that says a word, whatever the column.

Owns the search only. It asks the catalog which tables the role may read, so a table that is added later is searched
without a word here; a table that it may not read is named as not searched. Reads all rows of the tenant: for a request
of a person, not for a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from storage.sql.database import Connection

ROWS_MAX = 1_000  # shown of a table; all are counted
WORDS_MAX = 1_000
_SECRET = frozenset({"secret", "old_secret"})  # searched, never shown
_OWNER = {"idempotency_keys": "owner"}  # the others say tenant_id


@dataclass(frozen=True)
class Traces:
    """Rows of one table that say a word. `rows` are the first ROWS_MAX of them, without their columns of bytes."""

    table: str
    count: int
    rows: tuple[dict[str, Any], ...]


def find(connection: Connection, words: Sequence[str]) -> tuple[list[Traces], list[str]]:
    """Traces by table, those without any left out, and the tables that this role may not read.

    A text says a word as a whole; bytes say it anywhere, and compressed ones say nothing.
    """
    assert 0 < len(words) <= WORDS_MAX
    pattern = "(^|[^[:alnum:]_])(" + "|".join(quoted(word) for word in words) + ")($|[^[:alnum:]_])"
    found: list[Traces] = []
    closed: list[str] = []
    for table, owner, readable, texts, bytes_ in _tables(connection):
        if not readable:
            closed.append(table)
            continue
        tests = [sql.SQL("{}::text ~ %(pattern)s").format(sql.Identifier(name)) for name in texts]
        tests += [
            sql.SQL("EXISTS (SELECT FROM unnest(%(bytes)s::bytea[]) AS word WHERE position(word IN {}) > 0)").format(
                sql.Identifier(name)
            )
            for name in bytes_
        ]
        if not tests:
            continue
        where = sql.SQL("{} = current_tenant() AND ({})").format(sql.Identifier(owner), sql.SQL(" OR ").join(tests))
        shown = [sql.SQL("{}").format(sql.Identifier(name)) for name in texts if name not in _SECRET]
        query = sql.SQL("SELECT {}, count(*) OVER () AS found_ FROM {} WHERE {} LIMIT {}").format(
            sql.SQL(", ").join(shown) if shown else sql.SQL("true AS there"),
            sql.Identifier(table),
            where,
            sql.Literal(ROWS_MAX),
        )
        rows = connection.execute(query, {"pattern": pattern, "bytes": [word.encode() for word in words]}).fetchall()
        if rows:
            count = int(rows[0]["found_"])
            found.append(Traces(table, count, tuple({k: v for k, v in row.items() if k != "found_"} for row in rows)))
    return found, closed


def _tables(connection: Connection) -> list[tuple[str, str, bool, list[str], list[str]]]:
    """Table, the column that says whose a row is, whether all columns may be read, columns of text and of bytes."""
    rows = connection.execute(
        "SELECT c.relname AS name, has_table_privilege(c.oid, 'SELECT') AS readable,"
        " array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE t.typname <> 'bytea') AS texts,"
        " array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE t.typname = 'bytea') AS bytes"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        " JOIN pg_type t ON t.oid = a.atttypid"
        " WHERE c.relkind IN ('r', 'p') AND n.nspname = current_schema() GROUP BY c.oid, c.relname ORDER BY c.relname"
    ).fetchall()
    found: list[tuple[str, str, bool, list[str], list[str]]] = []
    for row in rows:
        texts, bytes_ = row["texts"] or [], row["bytes"] or []
        owner = _OWNER.get(row["name"], "tenant_id")
        if owner in texts:
            found.append((row["name"], owner, row["readable"], texts, bytes_))
    return found


def quoted(word: str) -> str:
    """A word as a regular expression of PostgreSQL that means itself."""
    return "".join(f"\\{sign}" if sign.isascii() and not sign.isalnum() and sign not in "_ " else sign for sign in word)
