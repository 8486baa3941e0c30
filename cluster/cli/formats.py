"""`cloudbilling formats`: what may be written into the usage log, and which readers stand in the way of newer forms."""

from __future__ import annotations

from typing import Any

from cluster.cli import context


def show(retired: str | None, as_json: bool) -> None:
    """Works on the object store itself, so it also answers while nothing runs."""
    from storage.usage_log.formats import NEWEST, raise_formats, retire_reader

    with context.problems():
        store = context.settings().store_address().open()
        if retired is not None:
            retire_reader(store, retired)
        found = raise_formats(store)
    rows = [{"kind": kind, "written": found.permitted.get(kind, 1), "newest": NEWEST[kind]} for kind in NEWEST]
    context.show({"formats": rows, "waiting_for": list(found.waiting_for)}, as_json, _print)


def _print(result: dict[str, Any]) -> None:
    rows = [(one["kind"], one["written"], one["newest"]) for one in result["formats"]]
    context.table(["kind", "written", "newest"], rows, right=["written", "newest"])
    for name in result["waiting_for"]:
        print(f"waits for {name}; if it runs no more: cloudbilling formats --retired {name}")  # noqa: T201
