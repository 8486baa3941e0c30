"""When bill runs begin by themselves: which period ends are due, which were missed, which is next.

Owns the calendar of runs only, in the tenant's time zone. A run is due when its period has ended and the collection
window has passed; after a downtime every period that was missed is due, oldest first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from billing.periods import grid
from billing.run_settings import RunSettings

GRACE = timedelta(hours=6)  # after that a run that has not happened is an alarm
CATCH_UP_MAX = 400  # runs that are looked for after a downtime: a year of daily ones


@dataclass(frozen=True)
class DueRun:
    """A run up to the end of a period; `due_at` is that end and the collection window."""

    up_to: datetime
    due_at: datetime

    def is_missed(self, now: datetime) -> bool:
        return now > self.due_at + GRACE


def due_runs(settings: RunSettings, timezone: str, since: datetime, now: datetime) -> list[DueRun]:
    """The runs that are due by now, oldest first: of periods that end after `since` (what is billed, or the start)."""
    if settings.schedule is None:
        return []
    calendar = grid(settings.schedule.interval, "calendar", timezone, since)
    found: list[DueRun] = []
    period = calendar.at(since)
    while len(found) < CATCH_UP_MAX and period.end + settings.collection_window <= now:
        if period.end > since:
            found.append(DueRun(period.end, period.end + settings.collection_window))
        period = calendar.following(period)
    return found


def next_run(settings: RunSettings, timezone: str, now: datetime) -> DueRun | None:
    """The first run that is not due yet."""
    if settings.schedule is None:
        return None
    calendar = grid(settings.schedule.interval, "calendar", timezone, now)
    end = calendar.at(now - settings.collection_window).end
    return DueRun(end, end + settings.collection_window)
