"""What a bill run up to a time would find, told before it begins: who is due, what is expected, what is in the way.

Owns that answer for the API, the command line and the page alike. It only reads, and no usage; what is
committed of master data and not in the chain yet is put there, as every reader may.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from typing import Any

from pipelines.run_estimate import estimate, next_due_at
from pipelines.run_preview import RunPreviews
from pipelines.run_times import run_times
from storage.master_chain import MasterChain
from storage.sql import bill_runs, billing_settings, steps, tenants
from storage.sql.database import Database


def plan_of_run(
    database: Database,
    chain: MasterChain,
    previews: RunPreviews,
    clock: Callable[[], datetime],
    tenant_id: str,
    up_to: date | datetime,
    *,
    document_date: date | None = None,
) -> dict[str, Any]:
    """`usage_may_come_until` is set while the collection window is open, `going_on` is the run that must end before,
    `next_due_at` is looked for where nothing is due, `preview` is what the newest preview computed, if it still holds.

    Raises InvalidInput as the plan of a run does.
    """
    with database.tenant(tenant_id) as connection:
        tenant = tenants.by_id(connection, tenant_id)
        settings = billing_settings.of(connection, tenant.kind)
        times = run_times(tenant, settings, up_to, document_date, clock())
        active = bill_runs.active(connection)
        number = steps.current_number(connection, tenant_id)
    chain.project(database, tenant_id, up_to=number)  # whoever changed master data may have died before he did
    _, master = chain.newest(tenant_id, at_least=number)
    with database.tenant(tenant_id) as connection:
        expected = estimate(connection, master, times.up_to)
    preview = previews.fresh(tenant_id, times.up_to)
    due = expected["customers_due"] > 0
    return {
        "up_to": times.up_to,
        "document_date": times.document_date,
        "usage_may_come_until": times.window_end if times.usage_may_come else None,
        "going_on": None if active is None else str(active["id"]),
        "next_due_at": None if due else next_due_at(master, times.up_to),
        "estimate": expected,
        "preview": None
        if preview is None
        else {
            "id": preview["id"],
            "created_at": datetime.fromisoformat(preview["created_at"]),
            "documents": preview["result"]["documents"],
            "totals": preview["result"]["totals"],
        },
    }
