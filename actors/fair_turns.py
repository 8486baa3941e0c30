"""What waits for one lane, in the order in which it goes: by tenant in turns, so that nobody waits behind all that
somebody else has sent.

Owns the order and the count; limits are the owner's (the router in front of its calls, the shard in front of its
groups). A turn is worth some bytes (deficit round robin): something large waits until its tenant has saved them up,
meanwhile others go.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

TURN_BYTES = 262_144


class Waiting(Protocol):
    @property
    def tenant_id(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def bytes(self) -> int: ...


W = TypeVar("W", bound=Waiting)


@dataclass
class Held:
    """How much waits."""

    rows: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, one: Waiting) -> Held:
        return cls(one.rows, one.bytes)

    def add(self, one: Waiting, times: int = 1) -> None:
        self.rows += times * one.rows
        self.bytes += times * one.bytes

    def is_beyond(self, rows_max: int, bytes_max: int, comes: Held) -> bool:
        """Whether something waits, and with what comes it would be too much: where nothing waits, anything may."""
        return self.rows > 0 and (self.rows + comes.rows > rows_max or self.bytes + comes.bytes > bytes_max)


@dataclass
class _Tenant(Generic[W]):
    waiting: collections.deque[W] = field(default_factory=collections.deque)
    held: Held = field(default_factory=Held)
    saved: int = TURN_BYTES


class FairTurns(Generic[W]):
    """Things of one tenant keep their order. `first` is what `popleft` gives. Not locked by itself."""

    def __init__(self) -> None:
        self.held = Held()
        self._tenants: dict[str, _Tenant[W]] = {}
        self._turns: collections.deque[str] = collections.deque()

    def __bool__(self) -> bool:
        return bool(self._turns)

    def __iter__(self) -> Iterator[W]:
        """All of it, tenant by tenant."""
        return (one for tenant in self._tenants.values() for one in tenant.waiting)

    def held_of(self, tenant_id: str) -> Held:
        tenant = self._tenants.get(tenant_id)
        return Held() if tenant is None else tenant.held

    def append(self, one: W) -> None:
        tenant = self._tenants.get(one.tenant_id)
        if tenant is None:
            tenant = self._tenants[one.tenant_id] = _Tenant()
            self._turns.append(one.tenant_id)
        tenant.waiting.append(one)
        tenant.held.add(one)
        self.held.add(one)

    def first(self) -> W:
        """The next one. Turns go on until a tenant can pay for its first; alone, nobody has to pay."""
        while True:
            tenant = self._tenants[self._turns[0]]
            one = tenant.waiting[0]
            if len(self._turns) == 1 or one.bytes <= tenant.saved:
                return one
            tenant.saved += TURN_BYTES
            self._turns.rotate(-1)

    def popleft(self) -> W:
        one = self.first()
        tenant = self._tenants[one.tenant_id]
        tenant.waiting.popleft()
        tenant.held.add(one, -1)
        self.held.add(one, -1)
        # Not below nothing: who was alone took it from nobody, and owes nobody when another one comes.
        tenant.saved = max(0, tenant.saved - one.bytes)
        if not tenant.waiting:
            self._turns.popleft()
            del self._tenants[one.tenant_id]
        return one

    def pass_on(self, tenant_id: str) -> None:
        """End the turn of a tenant, if he has it; what he has saved he keeps."""
        if self._turns and self._turns[0] == tenant_id:
            self._turns.rotate(-1)

    def clear(self) -> None:
        self.held = Held()
        self._tenants.clear()
        self._turns.clear()
