"""Ray's shell around what only looks: one detached actor per tenant, `simulation-<tenant>`, apart from its bill runs.

It drives simulations of other prices and previews of whole bill runs, one of each at a time.

It may die at any time: chunks that are computed stay, `drive` goes on with the others, and the platform's upkeep begins
one again where one is unfinished and its driver is gone or stands still (`upkeep_actor.py`). Two of them at once do no
harm.
"""

from typing import Any

import ray

from actors.ray_desk import RayDeskAddress
from deployments.patience import patiently
from deployments.wiring import PlatformAddress
from pipelines.ray_tasks import RayExecutor
from pipelines.simulation import compute_simulation_chunk
from storage import telemetry

SIMULATION = "simulation"  # its name, with the tenant behind it


@ray.remote(max_restarts=5, max_task_retries=5, max_concurrency=2, num_cpus=0)
class SimulationActor:
    """Drives simulations and previews of one tenant; both may be sent again for the same one, it resumes."""

    def __init__(self, address: PlatformAddress) -> None:
        telemetry.start("simulation", endpoint=address.telemetry_endpoint, level=address.log_level)
        stores = address.open(connections_max=4)
        self._simulations = stores.simulations(RayExecutor(address.store, address.dsn, work=compute_simulation_chunk))
        desk = RayDeskAddress(address.store, address.namespace)
        self._previews = stores.run_previews(RayExecutor(address.store, address.dsn, desk=desk), desk.open())

    def drive(self, tenant_id: str, simulation_id: str) -> str:
        """Bring the simulation to its end; the state it ended in."""
        return patiently(lambda: self._simulations.drive(tenant_id, simulation_id), f"simulation {simulation_id}")

    def drive_preview(self, tenant_id: str, preview_id: str) -> str:
        """Bring the preview to its end; the state it ended in."""
        return patiently(lambda: self._previews.drive(tenant_id, preview_id), f"preview {preview_id}")


def start_simulation(address: PlatformAddress, tenant_id: str, simulation_id: str) -> None:
    """Let the tenant's actor drive a simulation; returns at once. An actor that died is replaced."""
    _actor(address, tenant_id).drive.remote(tenant_id, simulation_id)


def start_preview(address: PlatformAddress, tenant_id: str, preview_id: str) -> None:
    """The same for a preview of a whole bill run."""
    _actor(address, tenant_id).drive_preview.remote(tenant_id, preview_id)


def _actor(address: PlatformAddress, tenant_id: str) -> Any:
    return SimulationActor.options(  # type: ignore[attr-defined]
        name=f"{SIMULATION}-{tenant_id}", namespace=address.namespace, lifetime="detached", get_if_exists=True
    ).remote(address)
