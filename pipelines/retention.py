"""Retention: a reconciler that once a day takes away what a tenant's rules no longer keep. Off without a rule.

Owns when something goes. Usage goes so many months after the invoice that billed it: rows before the end of the last
bill run of that age which left nobody out, but nothing that is still needed: of a period that was not over then, of a
budget's period that runs, or in suspense. That is allowed only where usage that comes late is rejected: else an event
that comes for a billed period would be billed against usage that is gone. What fails is tried again and shown as an
alarm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from billing.budgets import Budgets
from billing.contracts import spans_of
from billing.errors import BillingError, Conflict
from billing.lateness import reasons_of
from billing.master import MasterData
from billing.running import piece_at
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql import retention_rules
from storage.sql import steps as master_steps
from storage.sql.database import Connection, Database
from storage.usage_log.counting import scan_counting
from storage.usage_log.erasing import Erasure, erase, note
from storage.usage_log.reader import UsageLogReader

LOG = logging.getLogger("cloudbilling.retention")
DAILY = timedelta(days=1)
AGAIN = timedelta(minutes=1)
FAULT = timedelta(minutes=10)
ROWS_MAX = 10_000  # of a table in one transaction


@dataclass(frozen=True)
class Retention:
    """`round` is everything; it remembers in SQL, so it may be called by anybody at any time."""

    database: Database
    store: ObjectStore
    masters: MasterChain
    clock: Callable[[], datetime]

    def round(self) -> int:
        """Look at every rule that is due; how many."""
        with self.database.system() as connection:
            found = retention_rules.due(connection, self.clock())
        return sum(self.look(tenant_id, name) for tenant_id, name in found)

    def look(self, tenant_id: str, name: str) -> bool:
        """One look at one rule; False if somebody else has it."""
        now = self.clock()
        with self.database.tenant(tenant_id) as connection:
            rule = retention_rules.claim(connection, name, now)
        if rule is None:
            return False
        result: dict[str, Any] | None = None
        error, pause = "", DAILY
        try:
            before = months_before(now, rule["months"])
            if name == "usage":
                result = self._usage(tenant_id, rule, before)
            else:
                work = (
                    retention_rules.delete_notifications if name == "notifications" else retention_rules.delete_record
                )
                with self.database.owner(tenant_id) as connection:
                    result = {"before": before.isoformat(), "rows": work(connection, tenant_id, before, ROWS_MAX)}
            if result.get("more") or result.get("rows", 0) >= ROWS_MAX:
                pause = AGAIN
        except BillingError as fault:
            error, pause = f"{fault.code}: {fault.detail}", FAULT
            LOG.error("retention of %s of tenant %s fails: %s", name, tenant_id, fault.code)
        with self.database.tenant(tenant_id) as connection:
            retention_rules.note(connection, name, now=now, next_at=now + pause, result=result, error=error)
        return True

    def _usage(self, tenant_id: str, rule: Mapping[str, Any], issued_until: datetime) -> dict[str, Any]:
        """A pass over the log, unless one found nothing more up to that moment already."""
        with self.database.tenant(tenant_id) as connection:
            check_late_usage(connection, tenant_id)
            before = retention_rules.billed_before(connection, issued_until)
        if before is None:
            return {"before": None, "rows": 0}
        before, held_by = self._not_needed(tenant_id, before)
        known = rule["last_result"]
        if known.get("before") == before.isoformat() and not known.get("more"):
            return dict(known)
        erasure = Erasure(tenant_id, f"retention: {rule['months']} months after the invoice", before=before)
        done = erase(self.store, erasure)
        if done.rows or done.files:
            note(self.store, erasure, done, "retention")
        more = bool(done.rows or done.files or done.waiting)
        rows = done.rows + (known.get("erased", 0) if known.get("before") == before.isoformat() else 0)
        return {"before": before.isoformat(), "erased": rows, "more": more, "held_by": held_by}

    def _not_needed(self, tenant_id: str, billed: datetime) -> tuple[datetime, str | None]:
        """Up to when rows may go that were billed up to a moment, and what is in the way of the rest."""
        _, master = self.masters.newest(tenant_id)
        now = self.clock()
        kept = min(needed(master, billed, now), default=(billed, ""))
        closed = (mark.up_to for mark in master.closing_runs if not mark.parked)
        until = max(closed, default=datetime.min.replace(tzinfo=UTC))
        kept = min(kept, (until, "late usage of it would be billed yet"))
        reader = UsageLogReader(self.store)
        cut = reader.now()
        for frame in scan_counting(reader, tenant_id, cut, end=min(billed, kept[0])):
            times = frame.filter(reasons_of(frame, master, now).is_not_null())["time"]
            first = times.min()
            if isinstance(first, datetime):
                kept = min(kept, (first, "usage in suspense: correct or void it"))
        return (billed, None) if kept[0] >= billed else kept


def needed(master: MasterData, billed: datetime, now: datetime) -> Iterator[tuple[datetime, str]]:
    """Since when usage is needed that a run up to `billed` did not use up, and what for."""
    for code in master.subscriptions:
        for _, span in spans_of(master.subscriptions[code], master.tenant.timezone):
            if span.charge.kind != "usage" or span.end <= billed:
                continue
            if master.meters[span.charge.meter].is_carried:
                yield datetime.min.replace(tzinfo=UTC), f"meter {span.charge.meter}: its last value counts on"
            elif span.start < billed:
                yield piece_at(span, billed).start, f"a period of subscription {code} that is not billed"
    budgets = Budgets(master.tenant.timezone)
    for budget in master.budgets.values():
        yield budgets.period(budget.period, now).start, f"budget {budget.code}"


def check_late_usage(connection: Connection, tenant_id: str) -> None:
    """Conflict where usage that comes late is billed: it would be compared with what is gone."""
    _, master = master_steps.current(connection, tenant_id)
    if master.tenant.late_usage != "reject":
        raise Conflict(
            "usage can go by its age only where late usage is rejected (`late_usage: reject` of the tenant): "
            "an event that comes for a billed period would be billed against usage that is gone"
        )


def months_before(moment: datetime, months: int) -> datetime:
    """The same day and time so many months earlier; the last day of a shorter month."""
    place = moment.year * 12 + moment.month - 1 - months
    year, month = max(place // 12, 1), place % 12 + 1
    for day in (moment.day, 30, 29, 28):
        try:
            return moment.replace(year=year, month=month, day=min(day, moment.day))
        except ValueError:
            continue
    raise AssertionError("every month has 28 days")
