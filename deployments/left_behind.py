"""Work that has not ended and that no process drives any more. No Ray in here: that is `upkeep_actor.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Work = tuple[str, str]  # tenant, work


@dataclass
class LeftBehind:
    """In rounds. A process that restarts after its death goes on by itself: only where there is none one is started.

    The first round takes all that is found, later ones what the round before had found, too: whoever has just asked
    for something may be about to start it, or drive it himself.

    A process may live and yet not drive (it was never told, or gave up). What has a mark, and the same one in two
    rounds, is started again whoever lives, at most every second round; it must do no harm if it was only slow.
    """

    find: Callable[[], Mapping[Work, str | None]]  # with a mark of how far it is; None: that cannot be told
    has_driver: Callable[[str], bool]  # by tenant
    start: Callable[[str, str], None]
    _seen: dict[Work, str | None] | None = field(default=None, init=False)

    def round(self) -> int:
        """How many were started."""
        found, before = dict(self.find()), self._seen
        lasting = [one for one in found if before is None or one in before]
        left = {tenant_id for tenant_id in {tenant_id for tenant_id, _ in lasting} if not self.has_driver(tenant_id)}
        standing = {
            one for one in lasting if before is not None and found[one] is not None and before[one] == found[one]
        }
        undriven = [one for one in lasting if one[0] in left or one in standing]
        self._seen = found | dict.fromkeys(undriven)  # without its mark: it has a round to come on
        for tenant_id, work in undriven:
            self.start(tenant_id, work)
        return len(undriven)
