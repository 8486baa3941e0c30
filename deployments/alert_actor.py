"""Ray's shell around what alerts need beside the lanes: one detached actor that looks every second.

It carries usage between lanes (budgets see it one second later), delivers webhooks, and checks once a day that every
tenant's log is complete, and brings erasures on their way. It may die at any time: what it does is in the log and in
SQL; two of them do no harm.
"""

import asyncio
import threading
from collections.abc import Callable
from functools import partial

import ray

from actors.budget_desk import BudgetDesk
from actors.foreign_carrier import ForeignCarrier
from actors.loops import keep_going
from actors.supervisor_actor import RayUsageRouter
from actors.webhook_reconciler import WebhookReconciler
from deployments.completeness_check import CompletenessCheck
from deployments.wiring import PlatformAddress, Stores, utc_now
from pipelines.forgetting import Erasures
from pipelines.retention import Retention
from pipelines.tenant_erasing import TenantErasing
from pipelines.usage_queries import UsageQueries
from storage import telemetry
from storage.gateways.webhook_http import WebhookHttp
from storage.sql import tenants

EVERY_S = 1.0
PAUSE_S = 10.0  # after a fault
COMPLETENESS_S = 60.0  # between two looks whether a tenant's daily check is due
ERASURES_S = 5.0  # between two looks whether an erasure has a step to do
TENANTS_EVERY = 10  # rounds between two looks which tenants there are


@ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0, max_concurrency=2)
class AlertActor:
    """Loops, a thread each: an endpoint that is slow must not hold up budgets."""

    def __init__(self, address: PlatformAddress) -> None:
        telemetry.start("alerts", endpoint=address.telemetry_endpoint, level=address.log_level)
        stores = address.open(connections_max=10)
        router = RayUsageRouter(address.store, address.namespace)
        webhooks = WebhookReconciler(stores.database, BudgetDesk(router), WebhookHttp(address.outbound), utc_now)
        carrier = ForeignCarrier(router, stores.masters, _Tenants(stores))
        queries = UsageQueries(stores.log, stores.database)
        completeness = CompletenessCheck(stores.database, queries, stores.masters, utc_now)
        forgetting = Erasures(stores.database, stores.store, stores.masters, stores.archive, utc_now)
        ending = TenantErasing(stores.database, stores.store, stores.masters, stores.archive, utc_now)
        self._stopping = threading.Event()
        loops: tuple[tuple[str, Callable[[], int], float], ...] = (
            ("webhooks", webhooks.round, EVERY_S),
            ("carrier", lambda: asyncio.run(carrier.round()), EVERY_S),
            ("completeness", completeness.round, COMPLETENESS_S),
            ("erasures", erasing_rounds(forgetting), ERASURES_S),
            ("tenants", ending.round, ERASURES_S),
            ("retention", Retention(stores.database, stores.store, stores.masters, utc_now).round, COMPLETENESS_S),
        )
        for name, work, every_s in loops:
            turn = partial(keep_going, name, work, every_s, self._stopping, pause_s=PAUSE_S)
            threading.Thread(target=turn, name=name, daemon=True).start()


def erasing_rounds(forgetting: Erasures) -> Callable[[], int]:
    """Rounds of erasures; the first that works begins again what the process before this one had in hand."""
    taken_over = False

    def round() -> int:
        nonlocal taken_over
        if not taken_over:
            forgetting.take_over()
            taken_over = True
        return forgetting.round()

    return round


class _Tenants:
    """All tenants, looked up now and then: one that was just made waits some seconds."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._known: list[str] = []
        self._asked = 0

    def __call__(self) -> list[str]:
        if self._asked % TENANTS_EVERY == 0:
            with self._stores.database.system() as connection:
                self._known = tenants.all_ids(connection)
        self._asked += 1
        return self._known


def start_alerts(address: PlatformAddress) -> None:
    """Start it, or find it; returns at once."""
    AlertActor.options(  # type: ignore[attr-defined]
        name="alerts", namespace=address.namespace, lifetime="detached", get_if_exists=True
    ).remote(address)
