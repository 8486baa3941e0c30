"""Asking shards what was used: whatever happens to them, the question goes on to the log, and soon is asked again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import anyio
import pytest
from anyio import to_thread

from actors.router import LiveUsage, UsageRouter
from billing.errors import Unavailable
from billing.master import MasterData
from deployments import shard_figures
from deployments.shard_figures import ask_shards

MASTER = MasterData.start({"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"})


class Shards:
    """Answers that nothing was used, unless something is to happen."""

    def __init__(self) -> None:
        self.happens: BaseException | None = None
        self.hangs = False
        self.asked = 0

    async def usage(self, tenant_id: str, keys: Sequence[str], *, master_number: int) -> LiveUsage:
        self.asked += 1
        if self.hangs:
            await anyio.sleep(60)
        if self.happens is not None:
            raise self.happens
        return LiveUsage(live=None, positions={}, master_number=master_number)


def ask(shards: Shards, *, times: int = 1) -> list[bool]:
    """Whether the shards have said it, each time."""
    question = ask_shards(cast(UsageRouter, shards))

    async def run() -> list[bool]:
        found: list[Any] = [await to_thread.run_sync(question, "t", ["c"], 0, MASTER) for _ in range(times)]
        return [one is not None for one in found]

    return anyio.run(run)


@pytest.mark.parametrize("error", [Unavailable("moving"), RuntimeError("of a task"), OSError("connection")])
def test_whatever_a_shard_raises_the_log_is_read_and_it_is_left_alone_for_a_while(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Shards()
    assert ask(shards, times=3) == [True] * 3
    assert shards.asked == 3
    shards.happens, shards.asked = error, 0
    assert ask(shards, times=3) == [False] * 3
    assert shards.asked == 1, "what has just failed is not asked again at once"
    monkeypatch.setattr(shard_figures, "QUIET_S", 0.0)
    shards.asked = 0
    assert ask(shards, times=3) == [False] * 3
    assert shards.asked == 3


def test_a_shard_that_hangs_holds_up_one_question_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_figures, "ANSWER_S_MAX", 0.05)
    shards = Shards()
    shards.hangs = True
    assert ask(shards, times=5) == [False] * 5
    assert shards.asked == 1
