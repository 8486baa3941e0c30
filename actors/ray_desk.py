"""The way to the lanes for bill runs on Ray: a small address that travels, a router that finds the shards by name."""

from __future__ import annotations

from dataclasses import dataclass

from actors.accounts_desk import RunDesk
from actors.supervisor_actor import RayUsageRouter
from storage.object_store import StoreAddress


@dataclass(frozen=True)
class RayDeskAddress:
    store: StoreAddress
    namespace: str

    def open(self) -> RunDesk:
        return RunDesk(RayUsageRouter(self.store, self.namespace))
