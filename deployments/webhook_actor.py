"""Ray's shell around the delivery of webhooks: one detached actor that looks every second. Ray starts it again."""

import threading

import ray

from actors.budget_desk import BudgetDesk
from actors.supervisor_actor import RayUsageRouter
from actors.webhook_reconciler import WebhookReconciler
from billing.errors import BillingError
from deployments.wiring import PlatformAddress, utc_now
from storage import telemetry
from storage.gateways.webhook_http import WebhookHttp

EVERY_S = 1.0
PAUSE_S = 10.0  # after a fault


@ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0, max_concurrency=2)
class WebhookActor:
    """One loop in a thread; what it does is in SQL, so it may die at any time."""

    def __init__(self, address: PlatformAddress) -> None:
        telemetry.start("webhooks", endpoint=address.telemetry_endpoint, level=address.log_level)
        stores = address.open(connections_max=10)
        self._reconciler = WebhookReconciler(
            stores.database,
            BudgetDesk(RayUsageRouter(address.store, address.namespace)),
            WebhookHttp(address.outbound),
            utc_now,
        )
        self._stopping = threading.Event()
        self._last_error = ""
        threading.Thread(target=self._loop, name="webhooks", daemon=True).start()

    def last_error(self) -> str:
        return self._last_error

    def _loop(self) -> None:
        pause = EVERY_S
        while not self._stopping.wait(pause):
            try:
                tried = self._reconciler.round()
                self._last_error, pause = "", 0.0 if tried else EVERY_S
            except (BillingError, OSError, RuntimeError) as error:  # the next round tries again
                self._last_error, pause = f"{type(error).__name__}: {error}", PAUSE_S


def start_webhooks(address: PlatformAddress) -> None:
    """Start it, or find it; returns at once."""
    WebhookActor.options(  # type: ignore[attr-defined]
        name="webhooks", namespace=address.namespace, lifetime="detached", get_if_exists=True
    ).remote(address)
