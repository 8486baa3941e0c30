"""Settings of the platform: one typed value, read once from file and environment, handed down frozen.

Environment variables start with `CLOUDBILLING_` (`CLOUDBILLING_PORT=8081`); a file is named by
`CLOUDBILLING_CONFIG` (TOML, the same names in lower case). The environment goes before the file.
`docs/configuration.md` is made from this class.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)


class Settings(BaseSettings):
    """Everything that can be set. Defaults are the embedded profile on one machine."""

    model_config = SettingsConfigDict(env_prefix="CLOUDBILLING_", frozen=True, extra="forbid")

    host: Literal["127.0.0.1", "localhost"] = Field(
        "127.0.0.1", description="Address of the API and the front end. Loopback only: a proxy with TLS stands before."
    )
    port: int = Field(8080, ge=1, le=65535, description="Port of the API and the front end.")
    dashboard_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port of the Ray dashboard (loopback). 0: the platform's port + 185, or a free one.",
    )
    direct_port: int = Field(
        0,
        ge=-1,
        le=65535,
        description="Port on which the processes that answer HTTP do so without the proxy, for many small requests. 0:"
        " the platform's port + 1, or a free one (on a cluster: none). -1: none.",
    )
    data_dir: Path = Field(
        Path("data"), description="Folder of everything that is kept: PostgreSQL, usage log, archive, keys."
    )
    database_url: str = Field(
        "", description="DSN of a PostgreSQL (15 to 18). Empty: the embedded one in the data folder."
    )
    object_store: str = Field(
        "",
        description="`/folder` or `s3://bucket/prefix` for usage log and archive. Empty: a folder in the data folder.",
    )
    object_store_endpoint: str = Field("", description="Endpoint of the S3 service, if it is not AWS.")
    object_store_key: str = Field("", description="Access key of the S3 service.", repr=False)
    object_store_secret: str = Field("", description="Secret of the S3 service.", repr=False)
    object_store_claims: bool = Field(
        False,
        description="The object store has no conditional put: rows of `DATABASE_URL` decide who creates an object.",
    )
    shards: int = Field(
        0, ge=0, le=256, description="Rating shards of a new usage log. 0: half the cores, at least one."
    )
    spares: int = Field(
        1,
        ge=0,
        le=16,
        description="Processes that wait, warm, for the lane of a shard that dies, on each node with shards; 230 MB"
        " each. 0: none, a new one is started when it is needed.",
    )
    id_cache_bytes_max: int = Field(
        8 * 1024**3,
        ge=0,
        description="With usage in S3: bytes of id runs (14 an event) kept in `cache` of the data folder, on each"
        " machine with shards. What is open stays, also beyond it; of the rest the least recently used goes.",
    )
    lanes_min: int = Field(1, ge=1, le=256, description="With scaling by load: lanes that have partitions at least.")
    lanes_max: int = Field(
        0, ge=0, le=256, description="Add and empty lanes by load, up to so many. 0: only when somebody asks for it."
    )
    replicas: int = Field(1, ge=1, le=64, description="Processes that answer HTTP.")
    body_bytes_max: int = Field(
        64 * 1024 * 1024, ge=1024, description="Largest request body, before and after decompression, in bytes."
    )
    key_requests_per_s: int = Field(
        0, ge=0, description="Requests a second that a key without limits of its own may send. 0: any number."
    )
    key_events_per_s: int = Field(
        0, ge=0, description="Events a second that a key without limits of its own may send. 0: any number."
    )
    webhook_networks: str = Field(
        "",
        description="Private networks that webhooks may reach, also by http (`10.1.0.0/16, 127.0.0.1/32`). Empty: none,"
        " only public addresses by https.",
    )
    demo: bool = Field(False, description="Load the demo tenants at the first start (`make run` does).")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severity that is logged."
    )
    otel_endpoint: str = Field(
        "", description="OTLP/HTTP endpoint for traces and metrics (`http://127.0.0.1:4318`). Empty: none are made."
    )

    archive_store: str = Field(
        "",
        description="`s3://bucket/prefix` or `/folder` for the archive alone. Empty: beside the usage log.",
    )
    archive_lock: Literal["none", "governance", "compliance"] = Field(
        "none",
        description="Whether the archive's bucket locks each object until its retention is over (S3 Object Lock).",
    )
    archive_key_file: str = Field(
        "",
        description="File of the Ed25519 key that signs the archive's roots; the same on every node. Empty: "
        "`archive-signing.key` in the data folder, made at the first start.",
    )
    archive_trusted_keys: str = Field(
        "",
        description="Public keys that signed roots before (hexadecimal, commas between them), after a change of key.",
    )
    timestamp_url: str = Field("", description="RFC 3161 authority that stamps the archive's roots. Empty: none.")
    timestamp_certificates: str = Field("", description="PEM file with the root certificates of that authority.")

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("object_store_claims")
    @classmethod
    def _claims(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not info.data.get("database_url"):
            raise ValueError("needs DATABASE_URL: a PostgreSQL that is there before the object store")
        return value

    @field_validator("webhook_networks")
    @classmethod
    def _networks(cls, value: str) -> str:
        from storage.gateways.webhook_http import OutboundRules

        OutboundRules.of(value)  # raises where one is none
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        file = os.environ.get("CLOUDBILLING_CONFIG")
        if file:
            sources.append(TomlConfigSettingsSource(settings_cls, toml_file=Path(file)))
        return tuple(sources)

    def store_address(self) -> Any:
        """Where the usage log is, and the archive without a store of its own (storage.object_store.StoreAddress)."""
        return self._address(self.object_store or str(self.data_dir.absolute() / "objects"))

    def archive_address(self) -> Any:
        """The archive's own store (deployments.wiring.ArchiveStore)."""
        from deployments.wiring import ArchiveStore

        lock = None if self.archive_lock == "none" else self.archive_lock
        return ArchiveStore(self._address(self.archive_store) if self.archive_store else self.store_address(), lock)

    def _address(self, url: str) -> Any:
        from storage.object_store import StoreAddress  # here: it loads what the command line does not need

        key, secret = self.object_store_key or None, self.object_store_secret or None
        claims = self.database_url if self.object_store_claims else None
        return StoreAddress(url, self.object_store_endpoint or None, key, secret, claims)

    def archive_signing(self) -> Any:
        """How this platform signs the roots of its archive (deployments.wiring.ArchiveSigning)."""
        from deployments.wiring import ArchiveSigning  # here: it loads what the command line does not need

        return ArchiveSigning(
            Path(self.archive_key_file) if self.archive_key_file else self.data_dir / "archive-signing.key",
            tuple(key.strip() for key in self.archive_trusted_keys.split(",") if key.strip()),
            self.timestamp_url,
            self.timestamp_certificates,
        )

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def admin_key_file(self) -> Path:
        """The platform key that `up` writes (0600): it may make tenants and their keys."""
        return self.data_dir / "admin.key"

    @property
    def status_file(self) -> Path:
        return self.data_dir / "status.json"
