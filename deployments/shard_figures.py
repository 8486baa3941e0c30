"""Asking the shards from a route's thread what a customer has used: the log is only read where they cannot say it."""

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog
from anyio import from_thread

from actors.router import LiveUsage, UsageRouter
from billing.live_state import LiveState, nothing_used
from billing.master import MasterData

LOG = structlog.get_logger("cloudbilling.usage")
ANSWER_S_MAX = 2.0  # then the log is read: a lane that is just being taken over must not hold up a question
QUIET_S = 5.0  # after no answer: not each of many questions waits that long again


def ask_shards(router: UsageRouter) -> Callable[[str, Sequence[str], int, MasterData], LiveState | None]:
    """Blocks; only for threads of the server's own pool, as those in which plain routes run."""
    quiet_until = 0.0  # on the monotonic clock

    async def asked(tenant_id: str, keys: Sequence[str], master_number: int) -> LiveUsage | None:
        nonlocal quiet_until
        try:
            return await asyncio.wait_for(router.usage(tenant_id, keys, master_number=master_number), ANSWER_S_MAX)
        except Exception as error:  # noqa: BLE001 - whatever a shard or the way to it has, the log says the same
            quiet_until = time.monotonic() + QUIET_S
            LOG.warning("shards do not say what was used, reading the log", error=str(error) or type(error).__name__)
            return None

    def ask(tenant_id: str, keys: Sequence[str], master_number: int, master: MasterData) -> LiveState | None:
        if time.monotonic() < quiet_until:
            return None
        found = from_thread.run(asked, tenant_id, keys, master_number)
        if found is None or found.master_number < master_number:
            return None
        return nothing_used(master.rating_book()) if found.live is None else found.live

    return ask
