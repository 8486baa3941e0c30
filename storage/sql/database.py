"""The pool of PostgreSQL connections and the two roles in which the product speaks to it.

Owns who may see what: `tenant()` is a transaction in a role that owns nothing and sees one tenant's rows (row-level
security does the rest), `system()` a transaction in a role that sees the few tables which are read before the tenant
is known. Neither role has BYPASSRLS. What is stored is the business of the other modules of `storage/sql`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from billing.errors import InvalidInput, Unavailable

Connection = psycopg.Connection[DictRow]

APP_ROLE = "cloudbilling_app"
SYSTEM_ROLE = "cloudbilling_system"

# The server went away or gives up: the same request may be sent again. `AdminShutdown` and `CrashShutdown` are what a
# client reads when PostgreSQL is stopped or one of its processes was killed.
_LOST = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.AdminShutdown,
    psycopg.errors.CrashShutdown,
    PoolTimeout,
)


def containing(text: str) -> str:
    """The LIKE pattern of values that contain `text`: its wildcards stand for themselves."""
    return "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"


def connect(dsn: str, **options: Any) -> Connection:
    """One connection of its own in the role of the DSN (migrations, LISTEN); rows are dicts, times are UTC."""
    return psycopg.connect(session_dsn(dsn), row_factory=dict_row, **options)


def session_dsn(dsn: str) -> str:
    """The DSN with what every session of the product needs: a name that an operator reads, UTC, bounded waits."""
    given = conninfo_to_dict(dsn)
    given.setdefault("application_name", "cloudbilling")
    given.setdefault("connect_timeout", "5")
    options = str(given.pop("options", "") or "")
    return make_conninfo(**given, options=f"{options} -c timezone=UTC -c lock_timeout=30s".strip())


class Database:
    """A bounded pool; one per process. Connections that a killed server left behind are noticed and replaced."""

    def __init__(self, dsn: str, *, size_max: int = 10, wait_s: float = 10.0) -> None:
        self.dsn = dsn
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            session_dsn(dsn),
            connection_class=psycopg.Connection[DictRow],
            kwargs={"row_factory": dict_row},
            min_size=0,
            max_size=size_max,
            max_waiting=20 * size_max,
            timeout=wait_s,
            max_idle=60.0,
            reconnect_timeout=5.0,
            check=ConnectionPool.check_connection,
            open=True,
        )

    @contextmanager
    def tenant(self, tenant_id: str) -> Iterator[Connection]:
        """A transaction that sees and writes the rows of one tenant only; commits at the end of the block."""
        try:
            tenant = str(UUID(str(tenant_id)))
        except ValueError as error:
            raise InvalidInput("a tenant id is a UUID") from error
        with self._transaction() as connection:
            connection.execute(
                "SELECT set_config('role', %s, true), set_config('app.tenant_id', %s, true)", (APP_ROLE, tenant)
            )
            yield connection

    @contextmanager
    def owner(self, tenant_id: str) -> Iterator[Connection]:
        """A transaction of the tables' owner over one tenant's rows: for erasing, which writes anew what nobody else
        may change. The policies `erasing` keep it within the tenant."""
        with self._transaction() as connection:
            connection.execute(
                "SELECT set_config('app.tenant_id', %s, true), set_config('row_security', 'on', true)",
                (str(UUID(str(tenant_id))),),
            )
            yield connection

    @contextmanager
    def system(self) -> Iterator[Connection]:
        """A transaction over the tables that are read before a tenant is known (tenants, keys, users, sessions)."""
        with self._transaction() as connection:
            connection.execute(
                "SELECT set_config('role', %s, true), set_config('app.tenant_id', '', true)", (SYSTEM_ROLE,)
            )
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._pool.connection() as connection, connection.transaction():
                yield connection
        except psycopg.errors.LockNotAvailable as error:
            raise Unavailable("somebody else holds a lock on this for too long; try again") from error
        except _LOST as error:
            # Lost during COMMIT, the outcome is open: callers repeat what is harmless twice, or look first.
            raise Unavailable("the database is not available at the moment; send the same again") from error

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
