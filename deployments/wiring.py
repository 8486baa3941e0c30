"""From addresses to open stores: what every process of the platform (replica, actor, task) does first, once.

`PlatformAddress` is a small frozen value that travels to other processes; `open()` makes the things themselves.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from deployments.services import Limits
from pipelines import simulation
from pipelines.bill_run import BillRunDriver, RunLanes
from pipelines.chunk_executor import Executor
from pipelines.run_credit import WalletDesk
from pipelines.run_preview import RunPreviews
from storage.archive import Archive
from storage.archive.roots import Roots, SigningKey
from storage.archive.timestamps import Rfc3161Timestamper
from storage.archive.vault import LockedVault, LockMode, PlainVault, Vault
from storage.gateways.webhook_http import OutboundRules
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore, S3ObjectStore, StoreAddress, StoreUnfit
from storage.sql.database import Database
from storage.usage_log.reader import UsageLogReader


@dataclass(frozen=True)
class ArchiveSigning:
    """How the archive's roots are signed: the key's file (the same on every node; made at the first start), public keys
    of before (hexadecimal) and, if there is one, the time-stamping authority with its root's certificates."""

    key_file: Path
    trusted: tuple[str, ...] = ()
    timestamp_url: str = ""
    timestamp_certificates: str = ""

    def roots(self, store: ObjectStore) -> Roots:
        stamper = None
        if self.timestamp_url:
            stamper = Rfc3161Timestamper(self.timestamp_url, Path(self.timestamp_certificates))
        return Roots(store, SigningKey.of_file(self.key_file), trusted=self.trusted, timestamper=stamper)


@dataclass(frozen=True)
class ArchiveStore:
    """Where the archive's objects are, and whether the store itself locks them."""

    address: StoreAddress
    lock: LockMode | None = None

    def open(self) -> tuple[ObjectStore, Vault]:
        store = self.address.open()
        if self.lock is None:
            return store, PlainVault(store)
        if not isinstance(store, S3ObjectStore):
            raise StoreUnfit("CLOUDBILLING_ARCHIVE_LOCK needs an archive in S3: a folder locks nothing.")
        vault = LockedVault(store, self.lock)
        vault.probe()
        return store, vault


@dataclass(frozen=True)
class PlatformAddress:
    """Where the stores of a platform are. `namespace` is the Ray namespace of its actors."""

    dsn: str
    store: StoreAddress
    namespace: str
    version: str
    dashboard: str = ""  # address of the Ray dashboard, for the health page
    data_directory: str = ""
    direct_port: int = 0  # where replicas answer by themselves (deployments/direct_port.py); 0: nowhere
    telemetry_endpoint: str = ""
    log_level: str = "INFO"
    limits: Limits = field(default_factory=Limits)
    signing: ArchiveSigning | None = None
    archive: ArchiveStore | None = None  # None: beside the usage log, without locks
    outbound: OutboundRules = field(default_factory=OutboundRules)

    def open(self, *, connections_max: int = 10) -> "Stores":
        store = self.store.open()
        database = Database(self.dsn, size_max=connections_max)
        kept, vault = self.archive.open() if self.archive is not None else (store, None)
        roots = self.signing.roots(kept) if self.signing is not None else None
        archive = Archive(database, kept, roots=roots, vault=vault)
        return Stores(database, store, MasterChain(store), archive, UsageLogReader(store))


@dataclass(frozen=True)
class Stores:
    """The open stores of one process."""

    database: Database
    store: ObjectStore
    masters: MasterChain
    archive: Archive
    log: UsageLogReader

    def bill_runs(self, executor: Executor | None = None, desk: RunLanes | None = None) -> BillRunDriver:
        return BillRunDriver(
            self.database, self.store, self.masters, self.archive, utc_now, executor=executor, desk=desk
        )

    def simulations(self, executor: simulation.Executor | None = None) -> simulation.Simulations:
        return simulation.Simulations(self.database, self.store, self.masters, utc_now, executor=executor)

    def run_previews(self, executor: Executor | None = None, desk: WalletDesk | None = None) -> RunPreviews:
        return RunPreviews(self.database, self.store, self.masters, utc_now, executor=executor, desk=desk)

    def close(self) -> None:
        self.database.close()


def utc_now() -> datetime:
    return datetime.now(UTC)
