"""Ray's shell around what nobody asks for by a request: one detached actor, `upkeep`, that looks in rounds.

It carries usage between lanes (budgets see it one second later), delivers webhooks, checks once a day that every
tenant's log is complete, signs the days of the archives, brings erasures on their way, begins bill runs that are due,
and drives on what a process that is gone left half done. It may die at any time: what it does is in the log and in SQL;
two of them do no harm.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from functools import partial

import ray

from actors.budget_desk import BudgetDesk
from actors.foreign_carrier import ForeignCarrier
from actors.loops import keep_going
from actors.ray_desk import RayDeskAddress
from actors.silence import EVERY_S as WATCH_EVERY_S
from actors.silence import SUPERVISOR_NAME, UPKEEP_NAME, watch
from actors.supervisor_actor import RayUsageRouter
from actors.webhook_reconciler import WebhookReconciler
from deployments.bill_run_actor import BILL_RUN, start_bill_run
from deployments.completeness_check import CompletenessCheck
from deployments.left_behind import LeftBehind, Work
from deployments.simulation_actor import SIMULATION, start_preview, start_simulation
from deployments.wiring import PlatformAddress, Stores, utc_now
from pipelines.bill_run import BillRunDriver
from pipelines.daily_roots import DailyRoots
from pipelines.document_files import LeftFiles
from pipelines.forgetting import Erasures
from pipelines.retention import Retention
from pipelines.run_preview import RunPreviews
from pipelines.run_schedule import start_due
from pipelines.simulation import Simulations
from pipelines.tenant_erasing import TenantErasing
from pipelines.usage_queries import UsageQueries
from storage import telemetry
from storage.gateways.webhook_http import WebhookHttp
from storage.sql import tenants

EVERY_S = 1.0
PAUSE_S = 10.0  # after a fault
COMPLETENESS_S = 60.0  # between two looks whether a tenant's daily check is due
ROOTS_S = 900.0  # between two looks whether a day of the archive is to be signed, or a stamp is missing
ERASURES_S = 5.0  # between two looks whether an erasure has a step to do
DUE_S = 15.0  # between two looks for bill runs that are due
LEFT_S = 15.0  # between two looks for bill runs that nobody drives, and files that nobody makes
LEFT_SIMULATIONS_S = 300.0  # the same for simulations and previews, whose list is one of objects of each tenant
EXPIRING_S = 3600.0  # between two looks for previews whose time is over, and for what deleted ones left
TENANTS_EVERY = 10  # rounds between two looks which tenants there are


@ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0, max_concurrency=2)
class UpkeepActor:
    """Loops, a thread each: an endpoint that is slow must not hold up budgets."""

    def __init__(self, address: PlatformAddress) -> None:
        telemetry.start("upkeep", endpoint=address.telemetry_endpoint, level=address.log_level)
        stores = address.open(connections_max=10)
        router = RayUsageRouter(address.store, address.namespace)
        webhooks = WebhookReconciler(stores.database, BudgetDesk(router), WebhookHttp(address.outbound), utc_now)
        carrier = ForeignCarrier(router, stores.masters, _Tenants(stores))
        queries = UsageQueries(stores.log, stores.database)
        completeness = CompletenessCheck(stores.database, queries, stores.masters, utc_now)
        forgetting = Erasures(stores.database, stores.store, stores.masters, stores.archive, utc_now)
        ending = TenantErasing(stores.database, stores.store, stores.masters, stores.archive, utc_now)
        retention = Retention(stores.database, stores.store, stores.masters, utc_now)
        runs = stores.bill_runs(desk=RayDeskAddress(address.store, address.namespace).open())
        begin_run, begin_simulation = partial(start_bill_run, address), partial(start_simulation, address)
        begin_preview = partial(start_preview, address)

        def left(
            find: Callable[[], Mapping[Work, str | None]], driver: str, begin: Callable[[str, str], None]
        ) -> LeftBehind:
            return LeftBehind(find, lambda tenant_id: is_alive(f"{driver}-{tenant_id}", address.namespace), begin)

        left_files = LeftFiles(stores.database, stores.archive, utc_now)
        left_runs = left(lambda: dict.fromkeys(runs.unfinished()), BILL_RUN, begin_run)
        left_simulations = left(lambda: unfinished_simulations(stores), SIMULATION, begin_simulation)
        left_previews = left(lambda: unfinished_previews(stores), SIMULATION, begin_preview)

        self._stopping = threading.Event()
        loops: tuple[tuple[str, Callable[[], object], float], ...] = (
            ("webhooks", webhooks.round, EVERY_S),
            ("carrier", lambda: asyncio.run(carrier.round()), EVERY_S),
            ("completeness", completeness.round, COMPLETENESS_S),
            ("erasures", erasing_rounds(forgetting), ERASURES_S),
            ("tenants", ending.round, ERASURES_S),
            ("retention", retention.round, COMPLETENESS_S),
            ("archive roots", DailyRoots(stores.database, stores.archive).round, ROOTS_S),
            ("due bill runs", lambda: begin_due(stores, runs, begin_run), DUE_S),
            ("wallet moves", runs.bring_waiting_moves, LEFT_S),
            ("left bill runs", left_runs.round, LEFT_S),
            ("left files", left_files.round, LEFT_S),
            ("left simulations", left_simulations.round, LEFT_SIMULATIONS_S),
            ("left previews", left_previews.round, LEFT_SIMULATIONS_S),
            ("previews", lambda: expire_previews(stores), EXPIRING_S),
            ("supervisor", watch(SUPERVISOR_NAME, address.namespace).round, WATCH_EVERY_S),
        )
        for name, work, every_s in loops:
            now = threading.Event()
            now.set()  # what a process before this one left does not wait for the first pause
            turn = partial(keep_going, name, work, every_s, self._stopping, pause_s=PAUSE_S, bell=now)
            threading.Thread(target=turn, name=name, daemon=True).start()

    def is_there(self) -> bool:
        """Whether this process answers, for who watches it (actors/silence.py)."""
        return True


def begin_due(stores: Stores, driver: BillRunDriver, begin: Callable[[str, str], None]) -> int:
    """Plan and begin the bill runs that are due by their tenants' schedules."""
    found = start_due(stores.database, driver, utc_now)
    for tenant_id, run_id in found:
        begin(tenant_id, run_id)
    return len(found)


def unfinished_simulations(stores: Stores) -> dict[Work, str | None]:
    """(tenant, simulation) of all that have not ended, and how far each is."""
    return _unfinished(stores, stores.simulations())


def unfinished_previews(stores: Stores) -> dict[Work, str | None]:
    """(tenant, preview) of all that have not ended, and how far each is."""
    return _unfinished(stores, stores.run_previews())


def _unfinished(stores: Stores, known: Simulations | RunPreviews) -> dict[Work, str | None]:
    return {
        (tenant_id, id_): mark
        for tenant_id in _all_tenants(stores)
        for id_, mark in known.unfinished(tenant_id).items()
    }


def expire_previews(stores: Stores) -> int:
    """Delete previews whose time is over, and what drivers that died left of deleted ones; how many."""
    previews, simulations = stores.run_previews(), stores.simulations()
    return sum(
        previews.expire(tenant_id) + previews.sweep(tenant_id) + simulations.sweep(tenant_id)
        for tenant_id in _all_tenants(stores)
    )


def _all_tenants(stores: Stores) -> list[str]:
    with stores.database.system() as connection:
        return tenants.all_ids(connection)


def is_alive(name: str, namespace: str) -> bool:
    """Whether there is an actor of that name, or will be again: Ray forgets the name of one that is gone for good."""
    try:
        ray.get_actor(name, namespace=namespace)
    except ValueError:
        return False
    return True


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


def start_upkeep(address: PlatformAddress) -> None:
    """Start it, or find it; returns at once."""
    UpkeepActor.options(  # type: ignore[attr-defined]
        name=UPKEEP_NAME, namespace=address.namespace, lifetime="detached", get_if_exists=True
    ).remote(address)
