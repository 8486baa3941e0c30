"""The Serve application for `serve deploy cluster/serve.yaml`: settings by environment, and what stands behind it.

Schema, shards and upkeep are brought up where they are absent; a second deployment finds them.
"""

from __future__ import annotations

from typing import Any

from billing.errors import InvalidInput
from cluster.platform_address import platform_address, usage_log_settings
from cluster.settings import Settings


def build(_: dict[str, str]) -> Any:
    """What Serve calls on a cluster. Stores must be reachable from every node: a DSN and an object store by address."""
    from actors.supervisor_actor import start_usage_log
    from deployments.serve_app import application
    from deployments.upkeep_actor import start_upkeep
    from storage.sql.migrate import migrate

    settings = Settings()
    for name in ("database_url", "object_store"):
        if not getattr(settings, name):
            raise InvalidInput(f"a cluster needs CLOUDBILLING_{name.upper()} on every node")
    migrate(settings.database_url)
    start_usage_log(usage_log_settings(settings))
    address = platform_address(settings, settings.database_url)
    start_upkeep(address)
    return application(address, replicas=settings.replicas)
