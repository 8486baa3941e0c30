"""Ray's shell around the bill run driver: one detached actor per tenant, `bill-run-<tenant>`, that drives its runs.

It may die at any time: the run's state is in SQL, `drive` resumes, and the platform's upkeep begins one again where a
run is unfinished and its driver is gone (`upkeep_actor.py`). Two of them at once do no harm.
"""

import ray

from actors.ray_desk import RayDeskAddress
from deployments.patience import patiently
from deployments.wiring import PlatformAddress
from pipelines.ray_tasks import RayExecutor
from storage import telemetry

BILL_RUN = "bill-run"  # its name, with the tenant behind it


@ray.remote(max_restarts=5, max_task_retries=5, max_concurrency=2, num_cpus=0)
class BillRunActor:
    """Drives one run at a time; `drive` may be sent again for the same run, it resumes."""

    def __init__(self, address: PlatformAddress) -> None:
        telemetry.start("bill-run", endpoint=address.telemetry_endpoint, level=address.log_level)
        desk = RayDeskAddress(address.store, address.namespace)
        executor = RayExecutor(address.store, address.dsn, desk=desk)
        self._driver = address.open(connections_max=4).bill_runs(executor, desk.open())

    def drive(self, tenant_id: str, run_id: str, approve: bool | None) -> str:
        """Bring the run to its end; the state it ended in."""
        return patiently(lambda: self._driver.drive(tenant_id, run_id, approve=approve)["state"], f"bill run {run_id}")

    def alive(self) -> bool:
        return True


def start_bill_run(address: PlatformAddress, tenant_id: str, run_id: str, approve: bool | None = None) -> None:
    """Let the tenant's actor drive a run; returns at once. An actor that died is replaced."""
    actor = BillRunActor.options(  # type: ignore[attr-defined]
        name=f"{BILL_RUN}-{tenant_id}", namespace=address.namespace, lifetime="detached", get_if_exists=True
    ).remote(address)
    actor.drive.remote(tenant_id, run_id, approve)
