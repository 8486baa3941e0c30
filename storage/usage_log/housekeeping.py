"""One round of what keeps the log small: merging, deleting what was announced, and once a day the sweep of orphans.

Owns the bounds of a round and their order. Each part may be left out, repeated, or run by two processes at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from storage.object_store import ObjectStore
from storage.usage_log.clock import Clock, SystemClock
from storage.usage_log.deleting import announce_orphans, delete_announced, sweep_replaced_runs
from storage.usage_log.formats import raise_formats
from storage.usage_log.manifest import ManifestChain
from storage.usage_log.merging import merge_some, to_merge

SWEEP_EVERY_S = 86_400.0
MERGES_MAX = 4  # a round: each up to 2 million rows and 0.6 GB


def merge_due(store: ObjectStore) -> bool:
    """Whether a merge would find files."""
    return bool(to_merge(ManifestChain(store).newest().files))


@dataclass
class Housekeeping:
    """`merge` runs the merges, elsewhere if that is better; without it they run here."""

    store: ObjectStore
    merge: Callable[[], object] | None = None
    clock: Clock | None = None
    now_s: Callable[[], float] = time.monotonic
    _swept_s: float = float("-inf")

    def round(self) -> None:
        """Raises BillingError where the store does not answer: the next round does the rest."""
        clock = self.clock or SystemClock()
        raise_formats(self.store)
        if merge_due(self.store):
            if self.merge is None:
                merge_some(self.store, merges_max=MERGES_MAX)
            else:
                self.merge()
        delete_announced(self.store, clock)
        if self.now_s() - self._swept_s >= SWEEP_EVERY_S:
            announce_orphans(self.store, clock)
            sweep_replaced_runs(self.store, clock)
            self._swept_s = self.now_s()
