"""Ray's shell around simulations: one detached actor per tenant, `simulation-<tenant>`, apart from its bill runs.

It may die at any time: chunks that are computed stay, `drive` goes on with the others, and the platform's upkeep begins
one again where a simulation is unfinished and its driver is gone (`upkeep_actor.py`). Two of them at once do no harm.
"""

import itertools
import logging
import time

import ray

from billing.errors import Unavailable
from deployments.wiring import PlatformAddress
from pipelines.ray_tasks import RayExecutor
from pipelines.simulation import compute_simulation_chunk
from storage import telemetry

LOG = logging.getLogger("cloudbilling.simulation")
SIMULATION = "simulation"  # its name, with the tenant behind it


@ray.remote(max_restarts=5, max_task_retries=5, max_concurrency=2, num_cpus=0)
class SimulationActor:
    """Drives simulations of one tenant; `drive` may be sent again for the same one, it resumes."""

    def __init__(self, address: PlatformAddress) -> None:
        telemetry.start("simulation", endpoint=address.telemetry_endpoint, level=address.log_level)
        executor = RayExecutor(address.store, address.dsn, work=compute_simulation_chunk)
        self._simulations = address.open(connections_max=2).simulations(executor)

    def drive(self, tenant_id: str, simulation_id: str) -> str:
        """Bring the simulation to its end; the state it ended in."""
        for attempt in itertools.count():
            try:
                return self._simulations.drive(tenant_id, simulation_id)
            except Unavailable as error:
                LOG.warning("simulation %s waits for a store: %s", simulation_id, error.detail)
                time.sleep(min(0.5 * 2 ** min(attempt, 6), 10.0))
        raise AssertionError("itertools.count does not end")


def start_simulation(address: PlatformAddress, tenant_id: str, simulation_id: str) -> None:
    """Let the tenant's actor drive a simulation; returns at once. An actor that died is replaced."""
    actor = SimulationActor.options(  # type: ignore[attr-defined]
        name=f"{SIMULATION}-{tenant_id}", namespace=address.namespace, lifetime="detached", get_if_exists=True
    ).remote(address)
    actor.drive.remote(tenant_id, simulation_id)
