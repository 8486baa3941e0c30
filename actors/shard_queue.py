"""What waits in front of a lane: usage of batches and decisions, and the groups in which it is committed.

Owns the cut of groups; the order is `FairTurns` (actors/fair_turns.py), the lock is the shard's. An item answers for
itself: a batch is done with its last item.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from actors.batches import Batch, encode_answer, failed_answer
from actors.decisions import encode_failure
from actors.fair_turns import FairTurns, Held
from actors.followers import Decided, LogMoment
from billing.errors import BillingError
from storage.usage_log.partitions import EventIds
from storage.usage_log.sizes import pieces


@dataclass
class Call:
    """A batch on its way; done when the last of its items is."""

    future: Future[bytes]
    verdicts: npt.NDArray[np.uint8]
    reasons: npt.NDArray[np.uint8]
    open_items: int
    owners: dict[int, tuple[int, int]] = field(default_factory=dict)
    traces: tuple[str, ...] = ()
    began_ns: int = 0


@dataclass(frozen=True)
class UsageItem:
    """Rows of one tenant of a batch."""

    call: Call
    lane: int
    offset: int  # of its first row in the call
    tenant_id: str
    master_number: int | None
    events: pl.DataFrame
    partitions: npt.NDArray[np.uint8]
    ids: EventIds
    bytes: int
    ends_group = alone = False

    @property
    def rows(self) -> int:
        return len(self.partitions)

    def fail(self, error: BillingError, *, refused: bool = False) -> None:
        """Answer the whole batch with an error; `refused`: surely nothing of it was stored."""
        if not self.call.future.done():
            code = "refused" if refused else "unavailable"
            self.call.future.set_result(encode_answer(failed_answer(self.lane, code, error.detail)))


@dataclass(frozen=True)
class DecisionItem:
    """A decision that waits for its turn."""

    future: Future[bytes]
    tenant_id: str
    partition: int  # -1: any of the lane
    decide: Callable[[LogMoment], Decided]
    bytes: int
    ends_group: bool  # what comes after it is another group: a clock moves for later rows only
    rows: int = 1  # that it counts for; one that brings many rows more
    alone: bool = False  # in its group: what moves a partition changes what all other rows mean

    def fail(self, error: BillingError, *, refused: bool = False) -> None:
        if not self.future.done():
            self.future.set_result(encode_failure(error))


Item = UsageItem | DecisionItem


class FairQueue:
    """What waits, and the groups it goes in. Not locked by itself."""

    def __init__(self) -> None:
        self._turns: FairTurns[Item] = FairTurns()

    def __bool__(self) -> bool:
        return bool(self._turns)

    @property
    def held(self) -> Held:
        return self._turns.held

    def held_of(self, tenant_id: str) -> Held:
        return self._turns.held_of(tenant_id)

    def put(self, item: Item) -> None:
        self._turns.append(item)

    def take(self, rows_max: int, bytes_max: int) -> list[Item]:
        """Up to a group's rows and bytes; at least one item if any waits."""
        group: list[Item] = []
        taken = Held()
        while self._turns:
            item = self._turns.first()
            if group and (item.alone or taken.is_beyond(rows_max, bytes_max, Held.of(item))):
                break
            group.append(self._turns.popleft())
            taken.add(item)
            if item.ends_group:
                self._turns.pass_on(item.tenant_id)
                break
        return group

    def drain(self) -> list[Item]:
        waiting = list(self._turns)
        self._turns.clear()
        return waiting


def items_of(batch: Batch, call: Call, lane: int, rows_max: int, bytes_max: int) -> list[UsageItem]:
    """A batch in items of one tenant, each of at most `rows_max` rows and `bytes_max` bytes."""
    items: list[UsageItem] = []
    first = 0
    for block in batch.blocks:
        events = batch.events.slice(first, block.rows)
        for start, rows, size in pieces(events, rows_max, bytes_max):
            part = slice(first + start, first + start + rows)
            items.append(
                UsageItem(
                    call=call,
                    lane=lane,
                    offset=first + start,
                    tenant_id=block.tenant_id,
                    master_number=block.master_number,
                    events=events.slice(start, rows),
                    partitions=batch.partitions[part],
                    ids=EventIds(batch.ids.high[part], batch.ids.low[part]),
                    bytes=size,
                )
            )
        first += block.rows
    assert first == batch.events.height, "blocks and rows of a batch differ"
    return items
