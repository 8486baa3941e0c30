"""The peer of `ingest`: a plain HTTP service over a PostgreSQL table with a unique key."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import psycopg
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from storage.sql.embedded import EmbeddedPostgres

TABLE = """CREATE TABLE IF NOT EXISTS usage (
  source text, id text, type text, customer text, time timestamptz, data jsonb, UNIQUE (source, id))"""
COLUMNS = "source, id, type, customer, time, data"


def store(pool: list[psycopg.Connection], body: bytes) -> int:
    """COPY into a temporary table, then INSERT what is new: the fast way to do the obvious."""
    rows = [msgspec.json.decode(line) for line in body.splitlines()]
    connection = pool.pop()
    try:
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE batch (LIKE usage) ON COMMIT DROP")
            with cursor.copy(f"COPY batch ({COLUMNS}) FROM STDIN") as copy:
                for row in rows:
                    data = msgspec.json.encode(row["data"]).decode()
                    copy.write_row((row["source"], row["id"], row["type"], row["customer"], row["time"], data))
            cursor.execute(f"INSERT INTO usage SELECT {COLUMNS} FROM batch ON CONFLICT DO NOTHING")
            return cursor.rowcount
    finally:
        pool.append(connection)


def main(port: int, directory: str) -> None:
    server = EmbeddedPostgres(directory)
    dsn = server.start()
    try:
        with psycopg.connect(dsn, autocommit=True) as first:
            first.execute(TABLE)
        pool = [psycopg.connect(dsn, autocommit=True) for _ in range(9)]

        async def usage(request: Request) -> Any:
            body = await request.body()
            return JSONResponse({"accepted": await run_in_threadpool(store, pool, body)})

        async def ready(_: Request) -> Any:
            return JSONResponse({"ready": True})

        routes = [Route("/v1/usage", usage, methods=["POST"]), Route("/v1/health/ready", ready)]
        uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="warning")
        for connection in pool:
            connection.close()
    finally:
        server.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
