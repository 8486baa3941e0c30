"""How bill runs are made, as a page: the schedule and what it says now, collection window, approval, guard rails.

Owns the form and its words. What the settings mean is `billing/run_settings.py`; keys of the form that this page does
not show stay as they are.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Response

from billing.catalog import INTERVALS
from billing.errors import FieldError, InvalidInput, PreconditionFailed
from billing.numbers import patterns_of
from billing.periods import local_date
from billing.run_schedule import DueRun, next_run
from billing.run_settings import RunSettings, settings_of
from deployments.front.page import Front, Visit
from pipelines import run_schedule
from storage.sql import audit, billing_settings, overview, tenants
from storage.sql.database import Connection

ACTION = "billing settings changed"
PATH = "/settings/bill-runs"
NEXT_SHOWN, LAST_SHOWN, TRAIL_SHOWN = 3, 5, 8
Word = Annotated[str, Form(max_length=200)]
# Where the page shows what is wrong at a place of the form: the longest beginning counts.
FIELDS = {
    "/collection_window": "window",
    "/schedule": "interval",
    "/guard_rails/times_last": "times_last",
    "/guard_rails/change_percent": "change_percent",
    "/guard_rails/limits": "limit",
}


@dataclass(frozen=True)
class Typed:
    """The form as it was typed; nothing of it is lost when something is wrong."""

    interval: str = ""  # "" is: no schedule
    approve: str = ""
    window: str = ""  # hours, or hours:minutes
    four_eyes: str = ""
    rails: str = ""
    times_last: str = ""
    change_percent: str = ""
    limit: str = ""  # gross, in the tenant's currency
    new_country: str = ""
    voided_ids: str = ""
    version: str = "0"
    confirmed: str = ""


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)

    def page(
        visit: Visit,
        *,
        status: int = 200,
        typed: Typed | None = None,
        wrong: Mapping[str, str] | None = None,
        begins: tuple[DueRun, ...] = (),
        print_of_begins: str = "",
        done: str = "",
    ) -> Response:
        with services.database.tenant(visit.tenant_id) as connection:
            found = billing_settings.get(connection)
            seen = run_schedule.outlook(connection, visit.tenant_id, services.clock)
            runs, _ = overview.runs(connection, after=None, limit=LAST_SHOWN)
            trail = audit.of_action(connection, ACTION, limit=TRAIL_SHOWN)
            entities = tenants.legal_entities(connection)
            tenant = tenants.by_id(connection, visit.tenant_id)
        now = tenant.test_clock or services.clock()
        return front.page(
            visit,
            "settings/bill_runs.html",
            status=status,
            area="settings",
            form=typed or _typed(seen.settings, found["version"], visit),
            on=seen.settings.schedule is not None,
            interval=seen.settings.schedule.interval if seen.settings.schedule else "",
            intervals=INTERVALS,
            coming=[_due_view(one, visit) for one in _coming(seen.settings, visit, now)],
            due=[_due_view(one, visit) for one in seen.due if one not in seen.missed],
            missed=[_due_view(one, visit) for one in seen.missed],
            waiting=seen.waiting,
            begins=[_due_view(one, visit) for one in begins],
            print_of_begins=print_of_begins,
            runs=[_run_view(one, visit) for one in runs],
            trail=_trail_view(trail, tenant.kind, visit),
            series=[
                (one["code"], patterns_of(one["code"], one["form"], is_default=one["is_default"])) for one in entities
            ],
            wrong=wrong or {},
            done=done,
            may=visit.may("access:write"),
        )

    def save(connection: Connection, visit: Visit, form: Mapping[str, Any], expected: int) -> None:
        now = services.clock()
        before = billing_settings.get(connection)["form"]
        billing_settings.put(connection, visit.tenant_id, form, visit.user.actor, now, expected)
        audit.record(connection, visit.tenant_id, at=now, actor=visit.user.actor, action=ACTION, subject="billing",
                     before=before, after=dict(form))  # fmt: skip

    @router.get(PATH)
    def show(visit: Annotated[Visit, visitor], done: str = "") -> Response:
        visit.need("billing:read")
        return page(visit, done=done if done in ("saved", "paused", "restored") else "")

    @router.post(PATH)
    def change(
        visit: Annotated[Visit, visitor],
        interval: Word = "",
        approve: Word = "",
        window: Word = "",
        four_eyes: Word = "",
        rails: Word = "",
        times_last: Word = "",
        change_percent: Word = "",
        limit: Word = "",
        new_country: Word = "",
        voided_ids: Word = "",
        version: Word = "0",
        confirmed: Word = "",
        form_token: Word = "",
    ) -> Response:
        visit.need("access:write")
        front.check_form(visit, form_token)
        typed = Typed(interval, approve, window, four_eyes, rails, times_last, change_percent, limit, new_country,
                      voided_ids, version, confirmed)  # fmt: skip
        with services.database.tenant(visit.tenant_id) as connection:
            kind = tenants.by_id(connection, visit.tenant_id).kind
            before = billing_settings.get(connection)["form"]
        form = {**before, **_form_of(typed, before, visit)}
        try:
            settings = settings_of(form, kind)
            expected = int(version) if version.isascii() and version.isdigit() and len(version) < 10 else -1
            with services.database.tenant(visit.tenant_id) as connection:
                seen = run_schedule.outlook(connection, visit.tenant_id, services.clock, settings)
                was = run_schedule.outlook(connection, visit.tenant_id, services.clock)
                # What is due already, and waited for a person, begins to go on by itself, too.
                freed = _approves(settings) and not _approves(was.settings)
                begins = tuple(one for one in seen.due if freed or one not in was.due)
                # Money would move within a minute: what begins is shown, and saved only when it is what was shown.
                if begins and confirmed != _print_of(begins, settings):
                    changed = {"form": visit.texts("runs.begins_changed")} if confirmed else {}
                    return page(visit, status=409 if confirmed else 200, typed=typed, begins=begins, wrong=changed,
                                print_of_begins=_print_of(begins, settings))  # fmt: skip
                save(connection, visit, form, expected)
        except InvalidInput as error:
            return page(visit, status=422, typed=typed, wrong=_wrong(error, visit))
        except PreconditionFailed:
            fresh = _typed_version(services.database, visit, typed)
            return page(visit, status=412, typed=fresh, wrong={"form": visit.texts("runs.changed_meanwhile")})
        return front.go(visit, f"{PATH}?done=saved")

    @router.post(f"{PATH}/pause")
    def pause(visit: Annotated[Visit, visitor], version: Word = "0", form_token: Word = "") -> Response:
        visit.need("access:write")
        front.check_form(visit, form_token)
        with services.database.tenant(visit.tenant_id) as connection:
            found = billing_settings.get(connection)
            save(connection, visit, {**found["form"], "schedule": None}, found["version"])
        return front.go(visit, f"{PATH}?done=paused")

    @router.post(f"{PATH}/restore")
    def restore(visit: Annotated[Visit, visitor], entry: Word = "", form_token: Word = "") -> Response:
        """What was before a change, into the form: the person looks at it and saves it."""
        visit.need("access:write")
        front.check_form(visit, form_token)
        if not (entry.isascii() and entry.isdigit() and len(entry) < 18):
            raise InvalidInput(visit.texts("error.parameter", name="entry"))
        with services.database.tenant(visit.tenant_id) as connection:
            kind = tenants.by_id(connection, visit.tenant_id).kind
            old = audit.entry(connection, int(entry), ACTION)["before"] or {}
            version = billing_settings.get(connection)["version"]
        return page(visit, typed=_typed(settings_of(old, kind), version, visit), done="restored")

    return router


def _approves(settings: RunSettings) -> bool:
    return settings.schedule is not None and settings.schedule.approve


def _print_of(begins: tuple[DueRun, ...], settings: RunSettings) -> str:
    """A fingerprint of what would begin and how: each run's end, and all that decides how far it goes by itself."""
    schedule, rails = settings.schedule, settings.guard_rails
    assert schedule is not None, "without a schedule nothing begins"
    how = [schedule.interval, schedule.approve, settings.collection_window.total_seconds(), settings.four_eyes]
    guards = [rails.on, str(rails.times_last), str(rails.change_percent), rails.new_country, rails.voided_ids,
              sorted((currency, str(limit)) for currency, limit in rails.limits.items())]  # fmt: skip
    told = json.dumps([[[one.up_to.isoformat(), *how] for one in begins], guards])
    return hashlib.sha256(told.encode()).hexdigest()


def _typed(settings: RunSettings, version: int, visit: Visit) -> Typed:
    """Settings as the form shows them."""
    f, rails = visit.formats, settings.guard_rails
    hours, minutes = divmod(settings.collection_window // timedelta(minutes=1), 60)

    def number(value: Decimal | None) -> str:
        return "" if value is None else f.number(value).replace("\u2212", "-")

    def tick(value: bool) -> str:
        return "1" if value else ""

    schedule = settings.schedule
    return Typed(
        interval=schedule.interval if schedule else "",
        approve=tick(schedule is not None and schedule.approve),
        window=f"{hours}:{minutes:02}" if minutes else str(hours),
        four_eyes=tick(settings.four_eyes),
        rails=tick(rails.on),
        times_last=number(rails.times_last),
        change_percent=number(rails.change_percent),
        limit=number(rails.limits.get(visit.user.currency)),
        new_country=tick(rails.new_country),
        voided_ids=tick(rails.voided_ids),
        version=str(version),
    )


def _typed_version(database: Any, visit: Visit, typed: Typed) -> Typed:
    """What was typed, to be saved over what somebody else has saved since."""
    with database.tenant(visit.tenant_id) as connection:
        return Typed(**{**vars(typed), "version": str(billing_settings.get(connection)["version"]), "confirmed": ""})


def _form_of(typed: Typed, before: Mapping[str, Any], visit: Visit) -> dict[str, Any]:
    """The form of the API; numbers go on as they were typed where they are none, and are refused there."""
    f, currency = visit.formats, visit.user.currency

    def number(text: str) -> str | None:
        return f.exact(text) if text.strip() else None

    old_rails = before.get("guard_rails") or {}
    limits = {code: limit for code, limit in (old_rails.get("limits") or {}).items() if code != currency}
    if typed.limit.strip():
        limits[currency] = f.exact(typed.limit)
    return {
        "schedule": {"interval": typed.interval, "approve": bool(typed.approve)} if typed.interval else None,
        "collection_window": _duration(typed.window),
        "four_eyes": bool(typed.four_eyes),
        "guard_rails": {
            **old_rails,
            "on": bool(typed.rails),
            "times_last": number(typed.times_last),
            "change_percent": number(typed.change_percent),
            "limits": limits,
            "new_country": bool(typed.new_country),
            "voided_ids": bool(typed.voided_ids),
        },
    }


def _duration(text: str) -> str:
    """Hours, or hours:minutes, as ISO 8601; what is neither goes on and is refused by its reader."""
    found = re.fullmatch(r"(\d{1,4})(?::([0-5]\d))?", text.strip() or "0", re.ASCII)
    if found is None:
        return text
    hours, minutes = int(found[1]), int(found[2] or 0)
    return f"PT{hours}H{minutes}M" if minutes else f"PT{hours}H"


def _wrong(error: InvalidInput, visit: Visit) -> dict[str, str]:
    """The field of the page and its words; the first of each field."""
    found: dict[str, str] = {}
    for one in error.errors or [FieldError("", error.detail)]:
        field = next((name for start, name in FIELDS.items() if one.pointer.startswith(start)), "form")
        known = f"runs.wrong_{field}"
        found.setdefault(field, one.detail if field in ("form", "interval") else visit.texts(known))
    return found


def _coming(settings: RunSettings, visit: Visit, now: Any) -> list[DueRun]:
    found: list[DueRun] = []
    one = next_run(settings, visit.user.timezone, now)
    while one is not None and len(found) < NEXT_SHOWN:
        found.append(one)
        one = next_run(settings, visit.user.timezone, one.due_at)
    return found


def _due_view(one: DueRun, visit: Visit) -> dict[str, Any]:
    day = local_date(one.up_to - timedelta(microseconds=1), visit.user.timezone)
    return {"last_day": day, "due_at": one.due_at}


def _run_view(one: overview.RunRow, visit: Visit) -> dict[str, Any]:
    day = local_date(one.up_to - timedelta(microseconds=1), visit.user.timezone)
    by = visit.texts("runs.by_schedule") if one.created_by == run_schedule.ACTOR else one.created_by
    return {"id": one.id, "number": one.number, "last_day": day, "started_at": one.started_at, "state": one.state,
            "by": by.removeprefix("user ")}  # fmt: skip


def _trail_view(trail: list[dict[str, Any]], kind: str, visit: Visit) -> list[dict[str, Any]]:
    """Who changed what: each setting that differs, with what it was and what it became."""
    found: list[dict[str, Any]] = []
    for one in trail:
        old, new = (vars(_typed(settings_of(one[side], kind), 0, visit)) for side in ("before", "after"))
        changes = [(name, _said(name, old[name], visit), _said(name, new[name], visit))
                   for name in old if old[name] != new[name]]  # fmt: skip
        found.append({"id": one["id"], "at": one["at"], "by": one["actor"].removeprefix("user "), "changes": changes})
    return found


def _said(name: str, value: str, visit: Visit) -> str:
    t = visit.texts
    if name == "interval":
        return t(f"interval.{value}") if value else t("runs.never")
    if name in ("approve", "four_eyes", "rails", "new_country", "voided_ids"):
        return t("runs.yes") if value else t("runs.no")
    return value or "–"
