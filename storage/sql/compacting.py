"""Writes the tables of PostgreSQL anew, so that none of its files holds bytes of rows that were erased.

An erased row's bytes stay on its page until VACUUM frees their place and another row is written over them; indexes, the
planner's statistics and the values kept beside a table likewise. `VACUUM (FULL, ANALYZE)` makes new files and deletes
the old ones. It locks a table while it writes it: for a quiet hour. The write-ahead log is not touched: its segments go
or are written over as time passes (docs/forgetting.md).
"""

from __future__ import annotations

import psycopg
from psycopg import sql

from billing.errors import Unavailable
from storage.sql.database import connect


def compact(dsn: str) -> int:
    """Every table of the product, then the planner's statistics; how many. Raises Unavailable where it cannot be
    had."""
    try:
        with connect(dsn, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
                " AND pg_has_role(relowner, 'USAGE') ORDER BY relname"
            ).fetchall()
            for row in rows:
                connection.execute(sql.SQL("VACUUM (FULL, ANALYZE) {}").format(sql.Identifier(row["relname"])))
            super_ = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
            if super_ is not None and super_["rolsuper"]:
                connection.execute("VACUUM (FULL) pg_statistic")
                connection.execute("CHECKPOINT")
            return len(rows)
    except psycopg.OperationalError as error:
        raise Unavailable(f"PostgreSQL did not finish: {error}") from error
