"""What the platform keeps about one customer, store by store, and what becomes of it: for a person who asks."""

from datetime import datetime
from typing import Any

import polars as pl
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from deployments.access import Caller, may
from deployments.manners import described, json_response, rfc3339
from deployments.services import Services
from storage.sql import traces
from storage.usage_log.segment import RowKind

router = APIRouter(prefix="/v1", tags=["Contracts"])

# What becomes of a store when a customer is to be forgotten (docs/forgetting.md).
_BILLS = "written anew: numbers, dates and amounts stay, under a code that says nothing"
_ARCHIVE = "kept until the retention of each document is over, then the erasure deletes it"
_OF_TABLES = {
    **dict.fromkeys(
        ("archive_entries", "archive_texts", "archive_access", "archive_holds", "archive_rights"), _ARCHIVE
    ),
    "idempotency_keys": "deleted",
    "erasures": "forgets what it looked for when it has found it",
    **dict.fromkeys(("invoices", "invoice_lines", "invoice_taxes", "invoice_members", "postings", "outbox"), _BILLS),
    "issued_invoices": "emptied: the archive has the document",
    **dict.fromkeys(("document_files", "wallet_moves", "bill_run_chunks", "bill_runs"), _BILLS),
}
_KEPT = "written anew without what names him (`cloudbilling customer erase`)"
_LOG = "erased by `cloudbilling customer erase`, which leaves counts, sums and a Merkle root"
_NOT_READ = [
    "packed bytes of documents and archived texts: the rows of their tables that name the customer are shown",
    "files of the archive: the entries above name those of the customer",
    "objects under master/: the history of catalog and contracts, the same as the tables steps and master_records",
    "objects under runs/, run-previews/ and simulations/: what bill runs computed, the same as the invoices",
    "snapshots of lanes: figures by customer key, folded from the rows that are counted here",
    "log/ids: keyed hashes of ids, which say nothing",
    "logs of the processes, backups, and what was exported",
]
_REPORT: dict[str, Any] = {
    "customer": "acme",
    "keys": ["acme", "sim-1"],
    "as_of": "2026-01-20T10:00:00Z",
    "usage": [
        {
            "key": "sim-1",
            "kind": "usage",
            "type": "storage",
            "rows": 31,
            "first": "2026-01-01T00:00:00Z",
            "last": "2026-01-20T09:00:00Z",
            "on_erasure": _LOG,
        }
    ],
    "tables": [{"table": "master_records", "rows": 1, "shown": [{"kind": "customer"}], "on_erasure": _KEPT}],
    "tables_not_searched": [],
    "not_searched": _NOT_READ,
}


@router.get(
    "/customers/{code:path}/access-report",
    summary="What is kept about a customer, store by store",
    **described(answer=_REPORT, also=(404,)),
)
def read_access_report(request: Request, code: str, caller: Caller = Depends(may("access:read"))) -> Response:
    """Rows of usage by customer key, kind and type, and every row of every table that names one of the customer's keys
    (at most 1,000 shown of each), with what becomes of it on erasure. Reads all of the tenant's rows: for the request
    of a person, not for a page. What is not read is named."""
    services: Services = request.app.state.services
    _, master = services.masters.newest(caller.tenant_id)
    master.customer(code)
    keys = list(master.keys_of(code))
    with services.database.tenant(caller.tenant_id) as connection:
        found, closed = traces.find(connection, keys)
    tables = [
        {
            "table": one.table,
            "rows": one.count,
            "shown": [{name: _plain(value) for name, value in row.items()} for row in one.rows],
            "on_erasure": _OF_TABLES.get(one.table, _KEPT),
        }
        for one in found
    ]
    return json_response(
        {
            "customer": code,
            "keys": keys,
            "as_of": rfc3339(services.now()),
            "usage": _usage(services, caller.tenant_id, keys),
            "tables": tables,
            "tables_not_searched": closed,
            "not_searched": _NOT_READ,
        }
    )


def _usage(services: Services, tenant_id: str, keys: list[str]) -> list[dict[str, Any]]:
    """Rows of the log that carry one of the keys, decisions and corrections too."""
    by = ("customer", "kind", "type")
    counts = [pl.len().alias("rows"), pl.col("time").min().alias("first"), pl.col("time").max().alias("last")]
    frames = services.log.scan_rows(tenant_id, services.log.now(), pl.col("customer").is_in(keys))
    parts = [frame.group_by(by).agg(counts) for frame in frames]
    if not parts:
        return []
    sums = [pl.col("rows").sum(), pl.col("first").min(), pl.col("last").max()]
    whole = pl.concat(parts).group_by(by).agg(sums).sort(by)
    return [
        {
            "key": row["customer"],
            "kind": RowKind(row["kind"]).name.lower(),
            "type": row["type"],
            "rows": row["rows"],
            "first": rfc3339(row["first"]),
            "last": rfc3339(row["last"]),
            "on_erasure": _LOG,
        }
        for row in whole.iter_rows(named=True)
    ]


def _plain(value: Any) -> Any:
    """A value of a row as JSON has it; money and ids as text."""
    if isinstance(value, datetime):
        return rfc3339(value)
    if value is None or isinstance(value, str | int | bool | list | dict):
        return value
    return str(value)
