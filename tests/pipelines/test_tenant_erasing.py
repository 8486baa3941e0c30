"""What goes of a tenant's objects when it is erased."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from pipelines.tenant_erasing import TenantErasing
from storage.object_store import LocalObjectStore
from tests.usage_log_support import OTHER_TENANT, TENANT

KEYS = ("runs/{}/run/chunk-0", "log/reused/{}/00000000.json", "log/reused-runs/{}/a.run", "log/reused-runs/{}/a.bloom")


def test_passes_over_reused_ids_go_with_their_runs_and_other_tenants_keep_theirs(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    for tenant_id in (TENANT, OTHER_TENANT):
        for key in KEYS:
            store.put(key.format(tenant_id), b"x")
    nothing = cast(Any, None)
    erasing = TenantErasing(nothing, store, nothing, nothing, nothing)
    assert erasing._objects(TENANT) == len(KEYS)
    left = {key for prefix in ("runs/", "log/") for key in store.list(prefix)}
    assert left == {key.format(OTHER_TENANT) for key in KEYS}
