"""From settings to what every process of a platform is told: one way, on a machine and on a cluster."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from cluster.ray_head import NAMESPACE
from cluster.settings import Settings


def platform_address(settings: Settings, dsn: str, *, dashboard: str = "", direct_port: int | None = None) -> Any:
    """The value that travels to replicas, actors and tasks (deployments.wiring.PlatformAddress).

    `direct_port` is where the settings leave it to whoever starts the platform; None: as the settings say.
    """
    from deployments.services import Limits  # here: they load what the command line does not need
    from deployments.wiring import PlatformAddress
    from storage.gateways.webhook_http import OutboundRules

    return PlatformAddress(
        dsn=dsn,
        store=settings.store_address(),
        namespace=NAMESPACE,
        version=version("cloud-billing"),
        dashboard=dashboard,
        data_directory=str(settings.data_dir),
        direct_port=max(0, settings.direct_port) if direct_port is None else direct_port,
        telemetry_endpoint=settings.otel_endpoint,
        log_level=settings.log_level,
        signing=settings.archive_signing(),
        archive=settings.archive_address(),
        limits=Limits(
            body_bytes_max=settings.body_bytes_max,
            key_requests_per_s=settings.key_requests_per_s,
            key_events_per_s=settings.key_events_per_s,
            api_processes=settings.replicas,
        ),
        outbound=OutboundRules.of(settings.webhook_networks),
    )


def usage_log_settings(settings: Settings) -> Any:
    """What supervisor and shards are told (actors.supervisor_actor.UsageLogSettings)."""
    from actors.lane_scaling import ScalingBounds
    from actors.rating_shard import ShardSettings
    from actors.supervisor_actor import UsageLogSettings

    cache = str(settings.data_dir / "cache")
    scaling = ScalingBounds(settings.lanes_min, settings.lanes_max)
    shard = ShardSettings(id_cache_bytes_max=settings.id_cache_bytes_max)
    return UsageLogSettings(
        settings.store_address(), NAMESPACE, cache, settings.shards, settings.spares, shard, scaling=scaling
    )
