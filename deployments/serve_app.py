"""Ray Serve's shell around the application: one ingress deployment with all routers (the embedded profile)."""

from typing import Any

from fastapi import FastAPI
from ray import serve

from billing.errors import Unavailable
from deployments.app import build_app
from deployments.bill_run_actor import start_bill_run
from deployments.direct_port import DirectPort
from deployments.services import Services
from deployments.simulation_actor import start_preview, start_simulation
from deployments.wiring import PlatformAddress
from storage import telemetry

APPLICATION = "cloudbilling"


def services_of(address: PlatformAddress) -> Services:
    """The services of one replica: its own pool and stores, the shards found by their names."""
    from actors.supervisor_actor import RayUsageRouter

    telemetry.start("api", endpoint=address.telemetry_endpoint, level=address.log_level)
    stores = address.open()
    return Services(
        database=stores.database,
        router=RayUsageRouter(address.store, address.namespace),
        store=stores.store,
        log=stores.log,
        masters=stores.masters,
        archive=stores.archive,
        start_bill_run=lambda tenant_id, run_id, approve=None: start_bill_run(address, tenant_id, run_id, approve),
        start_simulation=lambda tenant_id, simulation_id: start_simulation(address, tenant_id, simulation_id),
        start_preview=lambda tenant_id, preview_id: start_preview(address, tenant_id, preview_id),
        limits=address.limits,
        outbound=address.outbound,
        about=lambda: {
            "version": address.version,
            "dashboard": address.dashboard,
            "direct_port": address.direct_port or None,
            "data_directory": address.data_directory,
        },
    )


def application(address: PlatformAddress, *, replicas: int = 1) -> Any:
    """The Serve application; `serve.run(application(address), name=APPLICATION, route_prefix="/")`."""

    @serve.deployment(
        name="Platform",
        num_replicas=replicas,
        max_ongoing_requests=256,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config={"enable_access_log": False},  # ours says the same (deployments/tracing.py)
        ray_actor_options={"num_cpus": 0},
    )
    @serve.ingress()
    class Platform:
        def __init__(self, address: PlatformAddress) -> None:
            self._services = services_of(address)
            self._direct = DirectPort(address.direct_port) if address.direct_port else None

        def __serve_build_asgi_app__(self) -> FastAPI:
            """Called by Serve in the replica: routes hang on this replica's own services."""
            return build_app(self._services, lifespan=self._direct.lifespan if self._direct is not None else None)

        def check_health(self) -> None:
            """Called by Serve; a replica that raises is replaced."""
            if self._direct is not None and not self._direct.answers:
                raise Unavailable(f"the server on port {self._direct.port} has ended")

    return Platform.bind(address)
