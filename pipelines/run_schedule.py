"""Bill runs that begin by themselves: what is due is planned, oldest first, and what was missed is told.

Owns one look at all tenants with a schedule; it may be repeated at any time, by several processes: a run that is due is
planned once (its request key names the period). When runs are due is `billing/run_schedule.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from opentelemetry import metrics

from billing.errors import BillingError
from billing.periods import local_date
from billing.run_schedule import DueRun, due_runs, next_run
from billing.run_settings import RunSettings
from pipelines.bill_run import BillRunDriver
from storage.sql import bill_runs, billing_settings, outbox, tenants
from storage.sql.database import Connection, Database

LOG = logging.getLogger("cloudbilling.bill_run")
ACTOR = "schedule"
_missed = metrics.get_meter("cloudbilling.bill_run").create_gauge(
    "cloudbilling.bill_runs.missed", description="Scheduled bill runs that have not begun six hours after they were due"
)


@dataclass(frozen=True)
class Outlook:
    """What a tenant's schedule says now: runs that are due (oldest first), those among them that are an alarm, next."""

    settings: RunSettings
    due: tuple[DueRun, ...]
    missed: tuple[DueRun, ...]
    next: DueRun | None
    waiting: str | None  # the run that goes on, or waits for somebody: nothing else begins before it ends


def outlook(
    connection: Connection, tenant_id: str, clock: Callable[[], datetime], settings: RunSettings | None = None
) -> Outlook:
    """Of the transaction's tenant; with `settings` what they would make due before anybody saves them."""
    tenant = tenants.by_id(connection, tenant_id)
    settings = settings or billing_settings.of(connection, tenant.kind)
    now = tenant.test_clock or clock()
    active = bill_runs.active(connection)
    # The farthest, not the last one: a run up to an earlier day (for whom one was parked) bills nothing beyond it.
    since = bill_runs.billed_up_to(connection) or tenant.created_at
    due = [one for one in due_runs(settings, tenant.timezone, since, now) if not _given_up(connection, one)]
    missed = tuple(one for one in due if one.is_missed(now))
    waiting = None if active is None else str(active["id"])
    return Outlook(settings, tuple(due), missed, next_run(settings, tenant.timezone, now), waiting)


def _given_up(connection: Connection, one: DueRun) -> bool:
    """Whether somebody cancelled (or reversed) the run of that period: it does not begin again by itself."""
    known = bill_runs.by_request(connection, request_key(one))
    return known is not None and bill_runs.get(connection, known)["state"] in ("cancelled", "reversed")


def request_key(one: DueRun) -> str:
    return f"{ACTOR}:{one.up_to.isoformat()}"


def start_due(database: Database, driver: BillRunDriver, clock: Callable[[], datetime]) -> list[tuple[str, str]]:
    """Plan the oldest run that is due of each tenant where none goes on; (tenant, run) of those planned now."""
    with database.system() as connection:
        found = billing_settings.with_schedule(connection)
    started: list[tuple[str, str]] = []
    missed = 0
    for tenant_id in found:
        try:
            with database.tenant(tenant_id) as connection:
                seen = outlook(connection, tenant_id, clock)
                missed += len(seen.missed)
                for one in seen.missed:
                    _tell(connection, tenant_id, one, clock())
            if not seen.due or seen.waiting is not None:
                continue
            assert seen.settings.schedule is not None, "without a schedule nothing is due"
            one = seen.due[0]
            run = driver.plan(
                tenant_id, one.up_to, ACTOR, approve=seen.settings.schedule.approve, request_key=request_key(one)
            )
            started.append((tenant_id, str(run["id"])))
        except BillingError as error:  # the others' runs do not wait for this one; the next look tries again
            LOG.error("the bill run of tenant %s that is due does not begin: %s", tenant_id, error.detail)
    _missed.set(missed)
    return started


def _tell(connection: Connection, tenant_id: str, one: DueRun, now: datetime) -> None:
    """No bill run happened: an event for whoever listens, once, and a line in the log at every look."""
    LOG.error("no bill run happened: tenant %s, up to %s, due since %s", tenant_id, one.up_to, one.due_at)
    outbox.run_missed(connection, tenant_id, one.up_to, one.due_at, now)


def shown(seen: Outlook, timezone: str) -> dict[str, Any]:
    """As people and programs see it."""

    def form(one: DueRun | None) -> dict[str, Any] | None:
        if one is None:
            return None
        return {
            "up_to": one.up_to.isoformat(),
            "last_day": local_date(one.up_to - timedelta(microseconds=1), timezone).isoformat(),
            "due_at": one.due_at.isoformat(),
        }

    return {
        "scheduled": seen.settings.schedule is not None,
        "next": form(seen.next),
        "due": [form(one) for one in seen.due],
        "missed": [form(one) for one in seen.missed],
        "alarm": "no bill run happened" if seen.missed else None,
        "waiting_for": seen.waiting,
    }
