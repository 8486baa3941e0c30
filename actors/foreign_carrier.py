"""Carries usage between lanes: what one lane has folded of a key goes to the home lane of the key's customer.

Owns the looking and the sending. What is sent is absolute, so anybody may send it, twice, late, or not at all for a
while; the home lane takes what is newer. Only of customers with a budget or credit, and only what has changed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import polars as pl

from actors.foreign_usage import FOREIGN, Told, ToldCustomer, foreign_keys
from actors.live_figures import MasterSource
from actors.router import GroupingRouter
from billing.errors import BillingError, NotFound
from billing.live_state import LiveState, fold_days
from billing.master import MasterData
from billing.meters import MeterState
from billing.usage import EVENT_SCHEMA

LOG = logging.getLogger("cloudbilling.foreign")
KEYS_MAX = 2_000  # of one question to a lane


@dataclass
class _Tenant:
    number: int
    owners: Sequence[tuple[int, int]]  # (lane, generation) of all keys of customers who have several
    owner: dict[str, str]  # customer by key, of keys that are told of
    nothing: tuple[bytes, bytes]  # the state of a key without usage, and its digest
    sent: dict[str, bytes] = field(default_factory=dict[str, bytes])  # by key: digest of what its home lane has


@dataclass
class ForeignCarrier:
    """`round` is everything; call it every second."""

    router: GroupingRouter
    masters: MasterSource
    tenants: Callable[[], Sequence[str]]
    _known: dict[str, _Tenant] = field(default_factory=dict[str, _Tenant])

    async def round(self) -> int:
        """How many keys were told anew."""
        told = 0
        try:
            await self.router.look_around()
        except BillingError as error:
            LOG.warning("who has which partition is not known now: %s", error.detail)
        for tenant_id in self.tenants():
            try:
                told += await self.carry(tenant_id)
            except BillingError as error:  # a lane or the store is away: the next round tells it
                LOG.warning("usage of tenant %s is not carried now: %s", tenant_id, error.detail)
        return told

    async def carry(self, tenant_id: str) -> int:
        tenant = self._wanted(tenant_id)
        if tenant is None:
            return 0
        keys = list(tenant.owner)
        by_lane: dict[int, list[tuple[str, int]]] = {}
        for key, (lane, generation) in zip(keys, self.router.owners_of(tenant_id, keys), strict=True):
            by_lane.setdefault(lane, []).append((key, generation))
        news: dict[str, list[tuple[Told, bytes]]] = {}
        for lane, mine in sorted(by_lane.items()):
            for first in range(0, len(mine), KEYS_MAX):
                part = dict(mine[first : first + KEYS_MAX])
                figures = await self.router.figures_of(lane, tenant_id, list(part), tenant.number)
                if figures.master_number < 0:  # nothing is folded there without master data
                    continue
                folded = {} if figures.live is None else _by_key(figures.live)
                # A key whose usage counts no more is told of, too: what it had cost was booked.
                gone = self.router.those_in(figures, tenant_id, [key for key in part if key not in folded])
                states = {key: _with_digest(live) for key, live in folded.items()}
                for key, (state, digest) in {**states, **dict.fromkeys(gone, tenant.nothing)}.items():
                    if tenant.sent.get(key) != digest:
                        told = Told(key, part[key], figures.number, figures.master_number, state)
                        news.setdefault(tenant.owner[key], []).append((told, digest))
        count = 0
        for customer, found in news.items():
            payload = msgspec.msgpack.encode(ToldCustomer(customer, [told for told, _ in found]))
            settled = set(msgspec.json.decode(await self.router.decide(tenant_id, customer, FOREIGN, payload)))
            for told, digest in found:
                if told.key in settled:
                    tenant.sent[told.key] = digest
                    count += 1
        return count

    def _wanted(self, tenant_id: str) -> _Tenant | None:
        """The keys to look at; None where there are none. Looked up again when the master data have changed."""
        try:
            number, master = self.masters.cached(tenant_id)
        except NotFound:
            return None
        known = self._known.get(tenant_id)
        keys = [key for customer in master.customers for key in _several(master, customer)]
        owners = self.router.owners_of(tenant_id, keys)
        if known is None or known.number != number or known.owners != owners:
            found = foreign_keys(master, dict(zip(keys, owners, strict=True)))
            owner = {key: customer for customer, of_customer in found.items() for key in of_customer}
            # Other master data may ask for other cells: everything is told again, and taken where it differs. After a
            # move, too: whoever is at home elsewhere now may not have been told.
            nothing = _with_digest(fold_days(pl.DataFrame(schema=EVENT_SCHEMA), master.rating_book()))
            self._known[tenant_id] = known = _Tenant(number, owners, owner, nothing)
        return known if known.owner else None


def _several(master: MasterData, customer: str) -> Sequence[str]:
    keys = master.keys_of(customer)
    return keys if len(keys) > 1 else ()


def _with_digest(live: LiveState) -> tuple[bytes, bytes]:
    state = live.to_bytes()
    return state, hashlib.blake2b(state, digest_size=16).digest()


def _by_key(live: LiveState) -> dict[str, LiveState]:
    """Usage of each key alone, in an order that says nothing of how it was merged."""
    state = live.state
    found: dict[str, LiveState] = {}
    for key in state.small["key"].unique().sort():
        mine = pl.col("key") == key
        parts = (frame.filter(mine) for frame in (state.small, state.sets, state.runs))
        found[str(key)] = LiveState(MeterState(state.by, *(part.sort(part.columns, nulls_last=True) for part in parts)))
    return found
