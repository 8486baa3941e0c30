"""What to expect of a bill run, as the page of a new run shows it."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from deployments.front.page import Visit, path_of
from deployments.run_previews import plan_ahead, run_previews
from deployments.services import Services

PREVIEWS_SHOWN = 5


def expected(services: Services, visit: Visit, up_to: datetime) -> dict[str, Any]:
    """The plan in words and amounts; raises InvalidInput as it does."""
    t, f = visit.texts, visit.formats
    found = plan_ahead(services, visit.tenant_id, up_to)
    estimate = found["estimate"]
    due, documents, seconds = estimate["customers_due"], estimate["documents"], estimate["seconds"]
    until, next_at, preview = found["usage_may_come_until"], found["next_due_at"], found["preview"]
    return {
        "last_day": last_day(up_to, visit),
        "due": due,
        "customers": t("run_plan.due", n=due, count=f.number(due), all=f.number(estimate["customers"])),
        "documents": None if documents is None else t("stage.documents_count", n=documents, count=f.number(documents)),
        "amounts": amounts(estimate["totals"] or {}),
        "seconds": None if seconds is None else f.duration(Decimal(str(seconds))),
        "runs": ", ".join(f.number(number) for number in estimate["runs"]),
        "next_day": None if next_at is None else last_day(next_at, visit),
        "until": until,
        "preview": None
        if preview is None
        else {
            "path": path_of("bill-run-previews", preview["id"]),
            "at": preview["created_at"],
            "documents": t("stage.documents_count", n=preview["documents"], count=f.number(preview["documents"])),
            "amounts": amounts(preview["totals"]),
        },
    }


def kept(services: Services, visit: Visit) -> list[dict[str, Any]]:
    """The newest previews, as links."""
    return [
        {
            "path": path_of("bill-run-previews", one["id"]),
            "last_day": last_day(datetime.fromisoformat(one["up_to"]), visit),
            "state": one["state"],
            "created_at": datetime.fromisoformat(one["created_at"]),
        }
        for one in run_previews(services).newest(visit.tenant_id, PREVIEWS_SHOWN)
    ]


def amounts(totals: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    return [
        {"currency": currency, "net": Decimal(sums["net"]), "gross": Decimal(sums["gross"])}
        for currency, sums in totals.items()
    ]


def last_day(up_to: datetime, visit: Visit) -> Any:
    """The last day that is in, where it ends at midnight."""
    local = visit.formats.local(up_to)
    at_midnight = (local.hour, local.minute, local.second) == (0, 0, 0)
    return local.date() - timedelta(days=1) if at_midnight else local.date()
