"""Which followers every shard has, in the order in which they see rows."""

from __future__ import annotations

from collections.abc import Sequence

from actors.accounts import Accounts
from actors.budget_watch import BudgetWatch
from actors.followers import LaneFollower
from actors.live_figures import MasterSource
from storage.object_store import ObjectStore


def shard_followers(lane: int, master: MasterSource | None, store: ObjectStore) -> Sequence[LaneFollower]:
    """New ones for one lane; `master` is None in a shard without master data. The test clocks are the shard's own."""
    if master is None:
        return ()
    budgets = BudgetWatch(lane, master, store)
    return (budgets, Accounts(master, budgets.left, budgets.usage_elsewhere))
