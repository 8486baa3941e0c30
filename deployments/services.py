"""What the HTTP side is made of, wired once at start and handed down: stores, router, starters, clock, limits."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from actors.accounts_desk import RunDesk
from actors.router import UsageRouter
from storage.archive import Archive
from storage.gateways.webhook_http import OutboundRules
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql.database import Database
from storage.usage_log.reader import UsageLogReader


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    body_bytes_max: int = 64 * 1024 * 1024  # before and after decompression
    form_bytes_max: int = 16 * 1024 * 1024
    events_max: int = 100_000
    steps_max: int = 10_000
    listed_max: int = 1_000  # events that an answer of POST /v1/usage names one by one
    page_max: int = 500
    # Requests whose bodies are held at the same time, by their bytes; more are told to come back.
    bytes_in_flight_max: int = 512 * 1024 * 1024
    # What a key may ask that has no limits of its own (0: as much as it likes), and how many processes answer.
    key_requests_per_s: int = 0
    key_events_per_s: int = 0
    api_processes: int = 1


@dataclass(frozen=True)
class Services:
    """Everything that a route may use."""

    database: Database
    router: UsageRouter
    store: ObjectStore
    log: UsageLogReader
    masters: MasterChain
    archive: Archive
    # Starts the driver of a bill run (tenant, run, approve; None: as planned): a Ray actor, or the caller's own thread
    # in tests. Returns at once; to start it for a run that is being driven already does nothing.
    start_bill_run: Callable[[str, str, bool | None], None]
    # The same for a simulation (tenant, simulation).
    start_simulation: Callable[[str, str], None]
    # And for a preview of a whole bill run (tenant, preview).
    start_preview: Callable[[str, str], None]
    clock: Callable[[], datetime] = utc_now
    # The way to the lanes for wallet credit that documents use; made of the router.
    desk: RunDesk = field(init=False)
    limits: Limits = field(default_factory=Limits)
    # Whom webhooks may reach beside public https addresses.
    outbound: OutboundRules = field(default_factory=OutboundRules)
    # What the health page shows of the platform around: version, dashboard address, demo state ...
    about: Callable[[], dict[str, Any]] = dict

    def __post_init__(self) -> None:
        object.__setattr__(self, "desk", RunDesk(self.router))

    def now(self) -> datetime:
        """The platform's clock in UTC; a test tenant's own time is `deployments.manners.tenant_now`."""
        return self.clock()
