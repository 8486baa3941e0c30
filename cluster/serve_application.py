"""The Serve application for `serve deploy cluster/serve.yaml`: settings from the environment, shards if absent."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from billing.errors import InvalidInput
from cluster.ray_head import NAMESPACE
from cluster.settings import Settings


def build(_: dict[str, str]) -> Any:
    """What Serve calls on a cluster. Stores must be reachable from every node: a DSN and an object store by address."""
    from actors.supervisor_actor import UsageLogSettings, start_usage_log
    from deployments.serve_app import application
    from deployments.services import Limits
    from deployments.wiring import PlatformAddress

    settings = Settings()
    for name in ("database_url", "object_store"):
        if not getattr(settings, name):
            raise InvalidInput(f"a cluster needs CLOUDBILLING_{name.upper()} on every node")
    store = settings.store_address()
    start_usage_log(UsageLogSettings(store, NAMESPACE, str(settings.data_dir / "cache"), settings.shards))
    address = PlatformAddress(
        dsn=settings.database_url,
        store=store,
        namespace=NAMESPACE,
        version=version("cloud-billing"),
        data_directory=str(settings.data_dir),
        telemetry_endpoint=settings.otel_endpoint,
        log_level=settings.log_level,
        limits=Limits(body_bytes_max=settings.body_bytes_max),
        signing=settings.archive_signing(),
        archive=settings.archive_address(),
    )
    return application(address, replicas=settings.replicas)
