"""The times of a bill run, of its plan and of its preview: up to when, as of when, which date its documents have.

Owns what of them is allowed, so that what is looked at before is what the run will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from billing.errors import FieldError, InvalidInput
from billing.periods import local_date, midnight
from billing.run_settings import RunSettings
from storage.sql.tenants import Tenant

NOT_AHEAD = timedelta(0)


@dataclass(frozen=True)
class RunTimes:
    """`made_at` is the clock that the run goes by; usage up to `up_to` may come until `window_end`."""

    up_to: datetime
    made_at: datetime
    document_date: date
    window_end: datetime

    @property
    def usage_may_come(self) -> bool:
        return self.window_end > self.made_at


def run_times(
    tenant: Tenant,
    settings: RunSettings,
    up_to: date | datetime,
    document_date: date | None,
    now: datetime,
    *,
    ahead: timedelta = NOT_AHEAD,
) -> RunTimes:
    """InvalidInput for an `up_to` further `ahead` of the tenant's clock than allowed, or a date that may not be.

    What looks ahead is as of `up_to`: a run cannot be earlier.
    """
    clock = tenant.test_clock or now
    end = midnight(up_to, tenant.timezone) if not isinstance(up_to, datetime) else up_to
    if end > clock + ahead:
        words = f"more than {ahead.days} days after" if ahead else "after"
        raise InvalidInput(
            f"up_to lies {words} the clock ({clock.isoformat()})",
            errors=[FieldError("/up_to", f"must not lie {words} the clock")],
        )
    made_at = max(clock, end)
    today = local_date(made_at, tenant.timezone)
    if document_date is not None and (tenant.kind != "test" or document_date > today):
        raise InvalidInput(
            "a document date of its own is for test tenants, and never after their clock",
            errors=[FieldError("/document_date", "is not allowed here")],
        )
    return RunTimes(end, made_at, document_date or today, end + settings.collection_window)
