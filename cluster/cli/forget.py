"""`cloudbilling forget`: erases rows from the usage log itself, also while nothing runs (docs/forgetting.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from typing import Any

from cluster.cli import context


@dataclass(frozen=True)
class Wish:
    tenant_id: str
    keys: tuple[str, ...]
    before: date | None
    rule: str
    by: str


def forget(wish: Wish, dry_run: bool, snapshots: bool, as_json: bool) -> None:
    from storage.usage_log.erasing import Erasure, drop_snapshots, erase, look, note
    from storage.usage_log.manifest import ManifestChain

    with context.problems():
        before = None if wish.before is None else datetime.combine(wish.before, time(), UTC)
        erasure = Erasure(wish.tenant_id, wish.rule, wish.keys or None, before)
        store = context.settings().store_address().open()
        if dry_run:
            context.show({"rows": look(store, erasure), "changed": False}, as_json, _print)
            return
        done = erase(store, erasure)
        if snapshots:
            done = replace(done, snapshots=done.snapshots + drop_snapshots(ManifestChain(store)))
        trail = note(store, erasure, done, wish.by)
    gone = not (done.rows or done.files or done.waiting)
    context.show({**vars(done), "all_gone": gone, "trail": trail}, as_json, _print)


def _print(result: dict[str, Any]) -> None:
    for name, value in result.items():
        print(f"{name:10} {value}")  # noqa: T201
    if not result.get("all_gone", True):
        print("Stop the platform and repeat this with --snapshots until it finds nothing: docs/forgetting.md")  # noqa: T201
