"""The archive from the terminal: find, fetch, put, hold, delete after its time, signed roots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.cli import context

READ, WRITE = ["archive:read"], ["archive:read", "archive:write"]
ROWS_MAX = 1_000
_COLUMNS = ("number", "document_id", "kind", "version", "document_type", "customer", "document_date", "amount",
            "currency", "retained_until")  # fmt: skip


class Access:
    """How a command reaches its tenant."""

    def __init__(self, tenant: str | None, key: str | None, url: str | None, as_json: bool) -> None:
        self.tenant, self.key, self.url, self.as_json = tenant, key, url, as_json

    def client(self, scopes: list[str]) -> Any:
        return context.tenant_client(self.tenant, self.key, scopes, self.url)


def search(given: dict[str, str | None], limit: int, access: Access) -> None:
    found: list[dict[str, Any]] = []
    with context.problems(), access.client(READ) as client:
        for one in client.pages("/v1/archive", **given):
            found.append(one)
            if len(found) >= min(limit, ROWS_MAX):
                break
    context.show(found, access.as_json, _print_files)


def _print_files(found: list[dict[str, Any]]) -> None:
    if not found:
        print("nothing is archived that fits")  # noqa: T201
        return
    context.table(_COLUMNS, [[one[name] for name in _COLUMNS] for one in found], right=["amount"])


def get(document_id: str, kind: str, version: int | None, out: Path | None, access: Access) -> None:
    from cluster.client import path_part

    path = f"/v1/archive/documents/{path_part(document_id)}/{path_part(kind)}"
    with context.problems(), access.client(READ) as client:
        data = client.get_bytes(path + (f"?version={version}" if version else ""))
    target = out or Path(f"{document_id}.{kind}")
    target.write_bytes(data)
    shown = {"written": str(target), "bytes": len(data)}
    context.show(shown, access.as_json, lambda one: print(f"{one['written']}: {one['bytes']:,} bytes"))  # noqa: T201


def put(file: Path, given: dict[str, str | int | None], access: Access) -> None:
    import mimetypes

    try:
        data = file.read_bytes()
    except OSError as error:
        context.fail(f"{file}: {error.strerror}", context.WRONG_CALL)
        return
    mime = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    given = {"document_id": file.stem, "kind": file.suffix.lstrip(".").lower() or "file", "file_name": file.name,
             **{name: value for name, value in given.items() if value is not None}}  # fmt: skip
    with context.problems(), access.client(WRITE) as client:
        made = client.post_bytes("/v1/archive/documents", data, mime, **given)
    context.show(made, access.as_json, lambda one: _print_files([one]))


def hold(reason: str, customer: str | None, document: str | None, access: Access) -> None:
    form = {"reason": reason, "customer": customer, "document_id": document}
    with context.problems(), access.client(WRITE) as client:
        made = client.post("/v1/archive/holds", {name: value for name, value in form.items() if value})
    context.show(made, access.as_json, lambda one: print(f"held: {one['id']}"))  # noqa: T201


def release(hold_id: str, reason: str, access: Access) -> None:
    with context.problems(), access.client(WRITE) as client:
        made = client.post(f"/v1/archive/holds/{hold_id}/release", {"reason": reason})
    context.show(made, access.as_json, lambda one: print(f"released: {one['id']}"))  # noqa: T201


def holds(access: Access) -> None:
    with context.problems(), access.client(READ) as client:
        found = client.get("/v1/archive/holds")["items"]
    columns = ("id", "customer", "document_id", "reason", "placed_by", "released_by")
    context.show(found, access.as_json, lambda rows: context.table(columns, [[r[c] for c in columns] for r in rows]))


def delete(documents: list[str], reason: str, expired: bool, access: Access) -> None:
    with context.problems(), access.client(WRITE) as client:
        wanted = list(documents)
        if expired:
            due = client.get("/v1/archive/expired", limit=500)["items"]
            wanted += list(dict.fromkeys(one["document_id"] for one in due if one["document_id"] not in wanted))
        if not wanted:
            context.fail("nothing to delete: no document is named, and none is over its time", context.NO)
        done = client.post("/v1/archive/deletions", {"document_ids": wanted, "reason": reason})
    context.show(done, access.as_json, _print_deleted)


def _print_deleted(done: dict[str, Any]) -> None:
    record = done["record"]["document_id"]
    print(f"deleted: {done['documents']} documents, {done['files']} files; the record stays as {record!r}")  # noqa: T201


def restore(access: Access) -> None:
    with context.problems(), access.client(WRITE) as client:
        done = client.post("/v1/archive/restore", {})
    context.show(done, access.as_json, _print_restored)


def _print_restored(done: dict[str, Any]) -> None:
    for key in done["restored"]:
        print(f"restored: {key}")  # noqa: T201
    print(f"{len(done['restored'])} objects came back; `cloudbilling verify archive` says what is still missing")  # noqa: T201


def roots(out: Path | None, access: Access) -> None:
    """Shows the roots; with a folder also writes them there: a copy that nobody here can change."""
    import json

    with context.problems(), access.client(READ) as client:
        found = client.get("/v1/archive/roots")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for one in found["items"]:
            text = json.dumps({"public_key": found["public_key"], **one}, indent=1)
            (out / f"root-{one['day']}.json").write_text(text)
    context.show(found, access.as_json, _print_roots)


def _print_roots(found: dict[str, Any]) -> None:
    print(f"signed with {found['public_key']}")  # noqa: T201
    columns = ("day", "position", "chain", "stamped_at")
    context.table(columns, [[one[name] for name in columns] for one in found["items"]], right=["position"])
