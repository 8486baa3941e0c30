"""What waits in a router for one lane, in the order in which it travels: by tenant in turns, so that nobody waits
behind all that somebody else has sent.

Owns the order only; limits are the router's. A turn is worth some rows (deficit round robin): a large part waits until
its tenant has saved them up, meanwhile others go.
"""

from __future__ import annotations

import collections
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

QUANTUM_ROWS = 2_000


class Part(Protocol):
    tenant_id: str
    partitions: npt.NDArray[np.uint8]


P = TypeVar("P", bound=Part)


class FairParts(Generic[P]):
    """Parts of one tenant keep their order. `first` is what `popleft` gives."""

    def __init__(self) -> None:
        self._waiting: dict[str, collections.deque[P]] = {}
        self._turns: collections.deque[str] = collections.deque()
        self._saved: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._turns)

    def append(self, part: P) -> None:
        waiting = self._waiting.get(part.tenant_id)
        if waiting is None:
            waiting = self._waiting[part.tenant_id] = collections.deque()
            self._turns.append(part.tenant_id)
            self._saved[part.tenant_id] = QUANTUM_ROWS
        waiting.append(part)

    def first(self) -> P:
        """The next one. Turns go on until a tenant can pay for its first part; alone, nobody has to pay."""
        while True:
            tenant_id = self._turns[0]
            part = self._waiting[tenant_id][0]
            if len(self._turns) == 1 or len(part.partitions) <= self._saved[tenant_id]:
                return part
            self._saved[tenant_id] += QUANTUM_ROWS
            self._turns.rotate(-1)

    def popleft(self) -> P:
        part = self.first()
        tenant_id = part.tenant_id
        waiting = self._waiting[tenant_id]
        waiting.popleft()
        self._saved[tenant_id] = max(0, self._saved[tenant_id] - len(part.partitions))
        if not waiting:
            self._turns.popleft()
            del self._waiting[tenant_id], self._saved[tenant_id]
        return part
