"""Pages that look ahead: the next invoice of a customer, and what a change of a subscription would make of it.

Both only read; the figures are those of `pipelines/preview.py`, made by the engine that bills.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from billing.documents import Document
from billing.errors import BillingError, InvalidInput, NotFound
from billing.master import MasterData
from billing.money import round_amount
from billing.periods import midnight
from deployments.front.contracts import view
from deployments.front.documents.routes import Group, groups_of, tax_words_of
from deployments.front.page import Front, Visit
from deployments.previews import difference, previews
from pipelines.preview import AHEAD_MAX, ChangePreview, next_due

CANCEL = "-cancel-"  # stands among the plans of the form


@dataclass(frozen=True)
class DocumentView:
    """A document that would be made, with its lines by subscription."""

    number: int
    document: Document
    groups: list[Group]
    tax_words: str


@dataclass(frozen=True)
class ChangeLine:
    name: str
    plan: str
    period: str
    before: str
    after: str
    difference: str
    changed: bool


@dataclass(frozen=True)
class ChangeTotal:
    currency: str
    now: Decimal
    before: Decimal
    after: Decimal
    difference: Decimal


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    visitor = Depends(front.signed_in)

    @router.get("/customers/{code:path}/next-invoice")
    def next_invoice(
        visit: Annotated[Visit, visitor],
        code: str,
        last_day: Annotated[str, Query(max_length=10)] = "",
        explain: Annotated[str, Query(pattern=r"^([0-9]{1,3}\.[0-9]{1,6})?$")] = "",
    ) -> Response:
        visit.need("billing:read")
        number, master = front.services.masters.newest(visit.tenant_id)
        customer = master.customer(code)
        now = visit.user.test_clock or visit.now
        up_to, wrong = _last_day(visit, last_day, now)
        if up_to is None:
            up_to = next_due(master, code, now)
        found = previews(front.services).invoice(visit.tenant_id, number, master, code, now, up_to)
        wanted = [int(part) for part in explain.split(".")] if explain else [0, 0]
        shown = [
            DocumentView(
                place,
                document,
                groups_of(document, master, wanted[1] if wanted[0] == place else None, visit.texts, visit.formats),
                tax_words_of(document, visit.texts, visit.formats),
            )
            for place, document in enumerate(found.documents, start=1)
        ]
        local = visit.formats.local(up_to)
        shown_day = local.date() - timedelta(days=1) if (local.hour, local.minute) == (0, 0) else local.date()
        return front.page(
            visit,
            "contracts/next_invoice.html",
            status=422 if wrong else 200,
            area="customers",
            customer=customer,
            preview=found,
            documents=shown,
            last_day=last_day if wrong else shown_day.isoformat(),
            shown_day=shown_day,
            max_day=(visit.formats.local(now).date() + AHEAD_MAX).isoformat(),
            wrong=wrong,
        )

    @router.get("/subscriptions/{code:path}/preview")
    def preview_change(
        visit: Annotated[Visit, visitor],
        code: str,
        to: Annotated[str, Query(max_length=256)] = "",
        when: Annotated[str, Query(pattern="^(now|period_end)$")] = "now",
        day: Annotated[str, Query(max_length=10)] = "",
    ) -> Response:
        visit.need("contracts:read")
        number, master = front.services.masters.newest(visit.tenant_id)
        one = master.subscriptions.get(code)
        if one is None:
            raise NotFound(code)
        now = visit.user.test_clock or visit.now
        moment, wrong = _change_day(visit, day, now)
        found: ChangePreview | None = None
        if to and not wrong:
            step: dict[str, Any] = {"subscription": code, "when": when}
            kind = "cancel" if to == CANCEL else "change"
            if kind == "change":
                step["plan"] = to
            try:
                changed = master.apply({"at": moment.isoformat(), kind: step})
                (found,) = previews(front.services).change(
                    visit.tenant_id, number, master, changed, [one.customer], now, max(moment, now)
                )
            except InvalidInput as error:
                wrong = error.errors[0].detail if error.errors else error.detail
            except BillingError as error:
                wrong = error.detail
        return front.page(
            visit,
            "contracts/change_preview.html",
            status=422 if wrong else 200,
            area="subscriptions",
            row=view.subscription_row(master, one, visit.now),
            plans=_plans(master, one.plan.currency),
            cancel=CANCEL,
            chosen={"to": to, "when": when, "day": day or visit.formats.local(moment).date().isoformat()},
            max_day=(visit.formats.local(now).date() + AHEAD_MAX).isoformat(),
            wrong=wrong,
            change=found,
            totals=_totals(found) if found is not None else [],
            lines=_lines(found, visit) if found is not None else [],
        )

    return router


def _last_day(visit: Visit, text: str, now: datetime) -> tuple[datetime | None, str]:
    """The end of the day that the form names, and what is wrong with it."""
    if not text:
        return None, ""
    day = _day(text)
    if day is None or not timedelta(-40_000) < day - visit.formats.local(now).date() <= AHEAD_MAX:
        return None, visit.texts("preview.day_wrong")
    return midnight(day + timedelta(days=1), visit.user.timezone), ""


def _change_day(visit: Visit, text: str, now: datetime) -> tuple[datetime, str]:
    """The moment of a change: now if it is today, else the beginning of the day."""
    today = visit.formats.local(now).date()
    if not text:
        return now, ""
    day = _day(text)
    if day is None or not timedelta(-40_000) < day - today <= AHEAD_MAX:
        return now, visit.texts("preview.day_wrong")
    return (now if day == today else midnight(day, visit.user.timezone)), ""


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _plans(master: MasterData, currency: str) -> list[tuple[str, str]]:
    newest = [versions[-1] for versions in master.plans.values()]
    found = [(plan.code, plan.name or plan.code) for plan in newest if plan.currency == currency]
    return sorted(found, key=lambda one: one[1].casefold())


def _totals(change: ChangePreview) -> list[ChangeTotal]:
    """Gross by currency: due at the moment of the change, and of the documents before and after."""
    now, whole = difference(change.now_before, change.now_after), difference(change.before, change.after)
    found: list[ChangeTotal] = []
    for currency in sorted(whole):
        sums = [
            round_amount(
                sum(
                    (
                        -document.gross if document.type == "credit_note" else document.gross
                        for document in preview.documents
                        if document.currency == currency
                    ),
                    Decimal(0),
                ),
                currency,
            )
            for preview in (change.before, change.after)
        ]
        due_now = now.get(currency, {}).get("gross", round_amount(0, currency))
        found.append(ChangeTotal(currency, due_now, sums[0], sums[1], whole[currency]["gross"]))
    return found


def _lines(change: ChangePreview, visit: Visit) -> list[ChangeLine]:
    t, f = visit.texts, visit.formats
    return [
        ChangeLine(
            t("invoice.minimum") if one.line.kind == "minimum" else one.line.name or one.line.charge,
            one.line.plan,
            f.period(one.line.start, one.line.end),
            f.amount(one.before, one.currency) if one.before else f.number(None),
            f.amount(one.after, one.currency) if one.after else f.number(None),
            f.signed(one.difference, 2) if one.difference else f.number(None),
            bool(one.difference),
        )
        for one in change.lines
    ]
