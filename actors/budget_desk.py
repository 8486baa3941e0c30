"""The callers' side of budgets: asks the lanes and puts their answers together in the order of the log.

Owns nothing but that: what was spent and what was crossed is the lanes' (`actors/budget_watch.py`). A reader looks
first, so that what was written to master data before he asked is in what he reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec

from actors.budget_watch import ALERTS, LOOK, READ
from actors.router import UsageRouter
from billing.errors import Unavailable

LOOKS_MAX = 20  # a look waits for the next group where the group has had one already

Position = tuple[int, int, int, int]  # log time in microseconds, lane, number, place in the segment


class BudgetDesk:
    """Budgets and alerts of all customers, wherever they are at home."""

    def __init__(self, router: UsageRouter) -> None:
        self._router = router

    async def look(self, tenant_id: str) -> None:
        """Let every lane take on the newest master data and look at levels and suspense."""
        for _ in range(LOOKS_MAX):
            if "again" not in map(bytes.decode, await self._router.decide_everywhere(tenant_id, LOOK, b"")):
                return
        raise Unavailable("The lanes are busy with budgets of this tenant; try again.")

    async def states(
        self,
        tenant_id: str,
        *,
        customer: str | None = None,
        budget: str | None = None,
        near: bool = False,
        limit: int = 1_000,
    ) -> list[dict[str, Any]]:
        """How budgets stand in their running periods, by code; `near`: that have reached their first threshold."""
        await self.look(tenant_id)
        asked = {"customer": customer, "budget": budget, "near": near, "limit": limit}
        found = await self._ask(tenant_id, READ, asked)
        return sorted(found, key=lambda form: form["budget"])

    async def alerts(
        self,
        tenant_id: str,
        *,
        customer: str | None = None,
        budget: str | None = None,
        after: Position | None = None,
        limit: int = 100,
        ids: Sequence[str] = (),
        look: bool = True,
    ) -> list[dict[str, Any]]:
        """Alerts in the order of the log; each with its `position`, which the next page begins behind.

        Without a `look` it is what the lanes have noticed by themselves.
        """
        if look:
            await self.look(tenant_id)
        asked = {"customer": customer, "budget": budget, "after": after, "limit": limit, "alerts": ids}
        found = await self._ask(tenant_id, ALERTS, asked)
        return sorted(found, key=lambda form: form["position"])[:limit]

    async def _ask(self, tenant_id: str, name: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
        answers = await self._router.decide_everywhere(tenant_id, name, msgspec.json.encode(asked))
        return [form for answer in answers for form in cast("list[dict[str, Any]]", msgspec.json.decode(answer))]
