"""The pass before a bill run: what it cannot put right is a finding, and the run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.reused_ids import void_reused_ids
from storage.object_store import LocalObjectStore
from storage.usage_log.genesis import open_log
from storage.usage_log.reader import UsageLogReader
from tests.actors.test_live_figures import METERS, Chain
from tests.usage_log_support import TENANT

STUCK = {"source": "gateway", "id": "e1", "customer": "acme"}


class Stuck:
    """One amendment can never be completed."""

    def finish_amendments(self, tenant_id: str, reader: UsageLogReader) -> list[dict[str, str]]:
        return [STUCK]

    def void_reused(
        self, tenant_id: str, reader: UsageLogReader, names: Sequence[tuple[str, str]]
    ) -> list[dict[str, str]]:
        raise AssertionError("there is nothing to void")


def test_an_amendment_that_cannot_be_completed_is_a_finding_of_the_run(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    open_log(store)
    findings = void_reused_ids(store, Stuck(), TENANT, Chain([*METERS]).master)
    assert findings == [{"code": "amendments_pending", "events": 1, "listed": [STUCK]}]
