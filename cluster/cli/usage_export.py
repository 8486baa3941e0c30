"""`cloudbilling usage export`: events or charges into one file, fetched page by page and resumed after a break."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.cli import context
from cluster.client import Client

FORMATS = ("parquet", "csv", "focus")
PAGES_MAX = 1_000_000


def export(
    format: str,
    since: str,
    until: str,
    customer: str | None,
    out: Path,
    raw: bool,
    tenant: str | None,
    key: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    if format not in FORMATS:
        context.fail(f"there is no format {format!r}", context.WRONG_CALL, f"one of: {', '.join(FORMATS)}")
        return
    scopes = ["usage:read", "billing:read"] if format == "focus" else ["usage:read"]
    asked = {"format": format, "from": since, "to": until, "customer": customer, "raw": "true" if raw else None}
    with context.problems(), context.tenant_client(tenant, key, scopes, url) as client:
        result = fetch(client, asked, out)
    context.show(result, as_json, lambda one: print(f"{one['bytes']:,} bytes in {one['pages']} parts: {one['file']}"))  # noqa: T201


def fetch(client: Client, asked: dict[str, str | None], out: Path) -> dict[str, Any]:
    """Into `out.part`, renamed at the end. A break leaves part and state: the same call goes on where it stopped."""
    part, note = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.state")
    state = _state(note, asked, part)
    done = state["pages"] > 0 and state["cursor"] is None
    for _ in range(PAGES_MAX):
        if done:
            break
        body, cursor = client.get_part("/v1/usage/export", **asked, cursor=state["cursor"])
        with part.open("r+b" if part.exists() else "w+b") as file:
            file.seek(state["bytes"])  # what a break left behind the last whole part is written over
            if asked["format"] == "parquet":  # parts lie one after the other; put together at the end
                body = len(body).to_bytes(8, "little") + body
            file.write(body)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        state |= {"bytes": state["bytes"] + len(body), "pages": state["pages"] + 1, "cursor": cursor}
        _write(note, state)
        done = cursor is None
    if asked["format"] == "parquet":
        _join(part, out)
        part.unlink()
    else:
        part.replace(out)
    note.unlink()
    return {"file": str(out), "bytes": out.stat().st_size, "pages": state["pages"]}


def _state(note: Path, asked: dict[str, str | None], part: Path) -> dict[str, Any]:
    if note.exists() and part.exists():
        try:
            known = json.loads(note.read_text(encoding="utf-8"))
        except ValueError:
            known = {}
        if known.get("asked") == asked:
            return known
    return {"asked": asked, "bytes": 0, "pages": 0, "cursor": None}


def _write(note: Path, state: dict[str, Any]) -> None:
    draft = note.with_name(f"{note.name}.new")
    draft.write_text(json.dumps(state), encoding="utf-8")
    draft.replace(note)


def _join(part: Path, out: Path) -> None:
    """One Parquet file of all parts, a row group at a time."""
    writer: pq.ParquetWriter | None = None
    with part.open("rb") as file:
        while length := file.read(8):
            read = pq.ParquetFile(io.BytesIO(file.read(int.from_bytes(length, "little"))))
            writer = writer or pq.ParquetWriter(out, read.schema_arrow, compression="zstd")
            for group in range(read.num_row_groups):
                writer.write_table(read.read_row_group(group))
    assert writer is not None, "an export has one part at least"
    writer.close()
