"""Asking the shards from a route's thread what a customer has used: the log is only read where they cannot say it."""

import asyncio
from collections.abc import Callable, Sequence

import structlog
from anyio import from_thread

from actors.router import LiveUsage, UsageRouter
from billing.errors import Unavailable
from billing.live_state import LiveState, nothing_used
from billing.master import MasterData

LOG = structlog.get_logger("cloudbilling.usage")
ANSWER_S_MAX = 2.0  # then the log is read: a lane that is just being taken over must not hold up a question


def ask_shards(router: UsageRouter) -> Callable[[str, Sequence[str], int, MasterData], LiveState | None]:
    """Blocks; only for threads of the server's own pool, as those in which plain routes run."""

    async def asked(tenant_id: str, keys: Sequence[str], master_number: int) -> LiveUsage | None:
        try:
            return await asyncio.wait_for(router.usage(tenant_id, keys, master_number=master_number), ANSWER_S_MAX)
        except (TimeoutError, Unavailable) as error:
            LOG.warning("shards do not say what was used, reading the log", error=str(error) or type(error).__name__)
            return None

    def ask(tenant_id: str, keys: Sequence[str], master_number: int, master: MasterData) -> LiveState | None:
        found = from_thread.run(asked, tenant_id, keys, master_number)
        if found is None or found.master_number < master_number:
            return None
        return nothing_used(master.rating_book()) if found.live is None else found.live

    return ask
