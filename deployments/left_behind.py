"""Work that has not ended and that no process drives any more. No Ray in here: that is `upkeep_actor.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass
class LeftBehind:
    """In rounds. A process that restarts after its death goes on by itself: only where there is none one is started.

    The first round takes all that is found, later ones what the round before had found, too: whoever has just asked
    for something may be about to start it, or drive it himself.
    """

    find: Callable[[], Iterable[tuple[str, str]]]  # (tenant, work)
    has_driver: Callable[[str], bool]  # by tenant
    start: Callable[[str, str], None]
    _seen: frozenset[tuple[str, str]] | None = field(default=None, init=False)

    def round(self) -> int:
        """How many were started."""
        found = list(self.find())
        lasting = found if self._seen is None else [one for one in found if one in self._seen]
        self._seen = frozenset(found)
        left = {tenant_id for tenant_id in {tenant_id for tenant_id, _ in lasting} if not self.has_driver(tenant_id)}
        undriven = [one for one in lasting if one[0] in left]
        for tenant_id, work in undriven:
            self.start(tenant_id, work)
        return len(undriven)
