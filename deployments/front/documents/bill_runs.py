"""Pages of bill runs: begin one, look at it, let it go on, take it back."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Response

from billing.errors import InvalidInput, NotFound
from billing.master import MasterData
from billing.periods import midnight
from deployments.billing_documents import driver
from deployments.front.documents.run_plan import expected, kept
from deployments.front.formats import Formats
from deployments.front.lists import LIMIT, Rows, cursor, cursor_number, export
from deployments.front.page import Front, Visit, path_of
from deployments.front.texts import Texts
from pipelines.run_view import NAMED_MAX, run_view
from storage.sql import bill_runs, invoices, overview
from storage.sql.overview import RunRow, RunTotal

RUN_COLUMNS = ("number", "id", "state", "last_day", "document_date", "documents", "parked", "created_by", "started_at")
NOBODY: list[str] = []
STAGES = ("plan", "compute", "approve", "finalise", "documents")


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)

    @router.get("/bill-runs")
    def run_list(
        visit: Annotated[Visit, visitor],
        after: str | None = None,
        format: str = "",
    ) -> Response:
        visit.need("billing:read")
        place = cursor_number(after) if after and not format else None
        with services.database.tenant(visit.tenant_id) as connection:
            found, more = overview.runs(connection, after=place, limit=5_000 if format else LIMIT)
            count = overview.run_count(connection)
        items = [_run_view(run, visit) for run in found]
        if format:
            return export(
                format, "bill-runs", RUN_COLUMNS, ({name: one[name] for name in RUN_COLUMNS} for one in items)
            )
        rows = Rows(items, count, count, cursor(found[-1].number) if more else None, place is None)
        return front.page(visit, "documents/bill_runs.html", area="bill_runs", rows=rows)

    @router.get("/bill-runs/new")
    def run_form(visit: Annotated[Visit, visitor]) -> Response:
        visit.need("billing:write")
        return new_run_page(front, visit)

    @router.post("/bill-runs/plan")
    def look(
        visit: Annotated[Visit, visitor],
        last_day: Annotated[str, Form()] = "",
        document_date: Annotated[str, Form()] = "",
        form_token: Annotated[str, Form()] = "",
    ) -> Response:
        """The form again, with what to expect up to the day that is typed."""
        visit.need("billing:write")
        front.check_form(visit, form_token)
        wrong = "" if day_in(last_day) else visit.texts("bill_run.last_day_missing")
        return new_run_page(front, visit, "last_day" if wrong else "", wrong, last_day, document_date)

    @router.post("/bill-runs")
    def start(
        visit: Annotated[Visit, visitor],
        last_day: Annotated[str, Form()] = "",
        document_date: Annotated[str, Form()] = "",
        form_token: Annotated[str, Form()] = "",
    ) -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        t, f = visit.texts, visit.formats
        clock = visit.user.test_clock or visit.now
        today = f.local(clock).date()
        day, issued = day_in(last_day), day_in(document_date)
        if day is None:
            return new_run_page(front, visit, "last_day", t("bill_run.last_day_missing"), last_day, document_date)
        if day >= today:
            latest = f.day(today - timedelta(days=1))
            wrong = t("bill_run.last_day_future", day=latest)
            return new_run_page(front, visit, "last_day", wrong, last_day, document_date)
        if document_date and (issued is None or issued > today):
            wrong = t("bill_run.document_date_wrong", day=f.day(today))
            return new_run_page(front, visit, "document_date", wrong, last_day, document_date)
        up_to = midnight(day + timedelta(days=1), visit.user.timezone)
        try:
            run = driver(services).plan(visit.tenant_id, up_to, visit.user.actor, document_date=issued, approve=False)
        except InvalidInput as error:
            return new_run_page(front, visit, "last_day", error.detail, last_day, document_date)
        services.start_bill_run(visit.tenant_id, run["id"], False)
        return front.go(visit, path_of("bill-runs", run["id"]))

    @router.get("/bill-runs/{run_id}")
    def run_page(visit: Annotated[Visit, visitor], run_id: str) -> Response:
        visit.need("billing:read")
        with services.database.tenant(visit.tenant_id) as connection:
            run = overview.run(connection, run_id)
            if run is None:
                raise NotFound(run_id)
            left = run_view(connection, run.id, visit.now)["progress"].get("seconds_left") if run.running else None
            if run.finalised:
                plans = overview.billed_by_plan(connection, run=run.id)
                taxes = overview.billed_by_tax(connection, run.id)
            else:  # what the look at the computed run found
                plans = [overview.PlanTotal(**amounts_in(one, "net")) for one in run.checks.get("by_plan", ())]
                taxes = [overview.TaxRow(**amounts_in(one, "percent", "base", "amount"))
                         for one in run.checks.get("by_tax", ())]  # fmt: skip
            without_files = invoices.files_parked(connection, run.id, NAMED_MAX) if run.files_parked else []
        master = front.master(visit)
        view = _run_view(run, visit)
        return front.page(
            visit,
            "documents/bill_run.html",
            area="bill_runs",
            run=view,
            stages=_stages(run, visit.texts, visit.formats),
            live=_live(run, visit, None if left is None else Decimal(str(left))),
            by_plan=[plan_view(one, master) for one in plans],
            by_tax=taxes,
            by_country=[amounts_in(one, "net", "tax", "gross") for one in run.checks.get("by_country", ())],
            outliers=view["outliers"],
            parked=[parked_view(one, master) for one in run.parked],
            held=[parked_view(one, master) for one in run.held],
            without_files=without_files,
            facts=_run_facts(run, visit.texts, visit.formats),
        )

    @router.post("/bill-runs/{run_id}/approve")
    def approve(visit: Annotated[Visit, visitor], run_id: str, form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        driver(services).approve(visit.tenant_id, run_id, visit.user.actor)
        services.start_bill_run(visit.tenant_id, run_id, True)
        return front.go(visit, path_of("bill-runs", run_id))

    @router.post("/bill-runs/{run_id}/release")
    def let_through(
        visit: Annotated[Visit, visitor],
        run_id: str,
        customer: Annotated[list[str], Form()] = NOBODY,
        form_token: Annotated[str, Form()] = "",
    ) -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        if customer:
            driver(services).release(visit.tenant_id, run_id, customer, visit.user.actor)
        return front.go(visit, path_of("bill-runs", run_id))

    @router.post("/bill-runs/{run_id}/pause")
    def pause(visit: Annotated[Visit, visitor], run_id: str, form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        driver(services).pause(visit.tenant_id, run_id)
        return front.go(visit, path_of("bill-runs", run_id))

    @router.post("/bill-runs/{run_id}/resume")
    def resume(visit: Annotated[Visit, visitor], run_id: str, form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        driver(services).resume(visit.tenant_id, run_id)
        services.start_bill_run(visit.tenant_id, run_id, None)
        return front.go(visit, path_of("bill-runs", run_id))

    @router.post("/bill-runs/{run_id}/reverse")
    def reverse(visit: Annotated[Visit, visitor], run_id: str, form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        driver(services).reverse(visit.tenant_id, run_id, visit.user.actor)
        services.start_bill_run(visit.tenant_id, run_id, None)
        return front.go(visit, path_of("bill-runs", run_id))

    @router.post("/bill-runs/{run_id}/cancel")
    def cancel(visit: Annotated[Visit, visitor], run_id: str, form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        driver(services).cancel(visit.tenant_id, run_id)
        return front.go(visit, path_of("bill-runs", run_id))

    return router


def new_run_page(
    front: Front, visit: Visit, field: str = "", wrong: str = "", last_day: str | None = None, issued: str | None = None
) -> Response:
    """The form of a new run, with what was typed, what is wrong with it, and what to expect if nothing is."""
    local = visit.formats.local(visit.user.test_clock or visit.now).date()
    with front.services.database.tenant(visit.tenant_id) as connection:
        active = bill_runs.active(connection)
    typed = (local.replace(day=1) - timedelta(days=1)).isoformat() if last_day is None else last_day
    plan, day = None, day_in(typed)
    if not wrong and day is not None:
        try:
            plan = expected(front.services, visit, midnight(day + timedelta(days=1), visit.user.timezone))
        except InvalidInput:  # the day lies ahead
            latest = visit.formats.day(local - timedelta(days=1))
            field, wrong = "last_day", visit.texts("bill_run.last_day_future", day=latest)
    return front.page(
        visit,
        "documents/bill_run_new.html",
        status=422 if wrong else 200,
        area="bill_runs",
        wrong=wrong,
        wrong_field=field,
        last_day=typed,
        document_date="" if issued is None else issued,
        max_day=(local - timedelta(days=1)).isoformat(),
        max_date=local.isoformat(),
        test_tenant=visit.user.who.tenant_kind == "test",
        active=str(active["id"]) if active else "",
        plan=plan,
        previews=kept(front.services, visit),
    )


def day_in(text: str) -> date | None:
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        return None


def _run_view(run: RunRow, visit: Visit) -> dict[str, Any]:
    f = visit.formats
    local = f.local(run.up_to)
    midnight_cut = (local.hour, local.minute, local.second) == (0, 0, 0)
    last_day = local.date() - timedelta(days=1) if midnight_cut else local.date()
    state = "rendering" if run.state == "finalised" and run.running else run.state
    documents = run.finalised or run.computed_documents
    return {
        "id": run.id,
        "number": run.number,
        "name": f"{run.number}",
        "last_day": last_day,
        "document_date": run.document_date,
        "documents": documents,
        "parked": len(run.parked),
        "totals": run.totals,
        "state": state,
        "created_at": run.started_at,
        "started_at": run.started_at,
        "created_by": run.created_by,
        "actor": run.created_by.removeprefix("user "),
        "running": run.running,
        "finalised": run.finalised,
        "can_cancel": run.state in ("planned", "computed"),
        "can_pause": run.state in ("planned", "approved", "finalised") or bool(run.error and run.running),
        "paused": run.paused,
        "can_reverse": run.state == "done" and run.finalised > 0,
        "stops": run.checks.get("stops", ()),
        "outliers": [
            {**one, "gross": Decimal(one["gross"]), "highest": Decimal(one["highest_of_last"])}
            for one in (run.checks.get("outliers", ()) if run.state == "computed" else ())
        ],
        "error": run.error,
        "waiting_reason": run.waiting_reason,
        "amounts": ", ".join(_amount_words(total, f) for total in run.totals),
    }


def _amount_words(total: RunTotal, f: Formats) -> str:
    return f.money(total.gross, total.currency)


@dataclass(frozen=True)
class Stage:
    key: str
    status: str  # done, now, later
    text: str
    when: str


def _stages(run: RunRow, t: Texts, f: Formats) -> list[Stage]:
    steps = {"planned": 1, "computed": 2, "approved": 3, "finalised": 4, "done": 5, "reversing": 5, "reversed": 5}
    reached = steps.get(run.state, 0)
    approver = (run.approved_by or run.created_by).removeprefix("user ")
    files_done = run.archived + run.files_parked
    texts = {
        "plan": t("stage.customers", n=run.customers, count=f.number(run.customers)),
        "compute": t("stage.documents_count", n=run.computed_documents, count=f.number(run.computed_documents))
        if reached >= 2
        else t("stage.of", done=f.number(run.chunks_computed), all=f.number(run.chunks)),
        "approve": t("stage.waits") if reached == 2 else approver if reached > 2 else "–",
        "finalise": t("stage.documents_count", n=run.finalised, count=f.number(run.finalised)) if reached >= 3 else "–",
        "documents": t("stage.of", done=f.number(files_done), all=f.number(run.finalised)) if reached >= 4 else "–",
    }
    notes = {
        "plan": f.clock(run.started_at),
        "compute": t("stage.parked_count", count=f.number(len(run.parked))) if reached >= 2 else "",
        "documents": f.clock(run.ended_at) if run.ended_at and reached == 5 else "",
    }
    return [
        Stage(
            key,
            "done" if place < reached else "now" if place == reached and reached else "later",
            texts[key],
            notes.get(key, ""),
        )
        for place, key in enumerate(STAGES)
    ]


@dataclass(frozen=True)
class Live:
    text: str
    label: str
    max: int
    value: int
    rate: str
    left: str
    failed: int | None


def _live(run: RunRow, visit: Visit, left: Decimal | None) -> Live:
    """`left`: seconds of the present stage."""
    t, f = visit.texts, visit.formats
    files_done = run.archived + run.files_parked
    done, total, key = {
        "planned": (run.chunks_computed, run.chunks, "live.chunks"),
        "approved": (run.finalised, run.computed_documents, "live.finalised"),
        "finalised": (files_done, run.finalised, "live.documents"),
        "reversing": (run.taken_back, run.finalised, "live.reversing"),
    }.get(run.state, (0, 0, ""))
    if not key:
        words = {"computed": "live.waiting", "cancelled": "live.cancelled", "reversed": "live.reversed"}
        finished = run.state == "done"
        return Live(
            t(words.get(run.state, "live.done")),
            t("live.progress"),
            0,
            0,
            "",
            "",
            run.files_parked if finished else None,
        )
    if run.paused:
        return Live(t("bill_run.paused"), t("live.progress"), total, done, "", "", run.files_parked)
    rate = Decimal(total - done) / left if left else None
    return Live(
        t(key, done=f.number(done), all=f.number(total)),
        t("live.progress"),
        total,
        done,
        t("live.rate", count=f.number(rate.quantize(Decimal("0.1")))) if rate and run.state == "finalised" else "",
        t("live.left", time=f.duration(left)) if left is not None else "",
        run.files_parked if run.state == "finalised" else None,
    )


def _run_facts(run: RunRow, t: Texts, f: Formats) -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = [
        (t("bill_run.date"), f.day(run.document_date)),
        (t("bill_run.fact_customers"), f.number(run.customers)),
        (t("bill_run.fact_master"), t("bill_run.fact_master_value", number=f.number(run.master_number))),
        (t("bill_run.started"), f.moment(run.started_at)),
    ]
    if run.ended_at:
        seconds = Decimal(int((run.ended_at - run.started_at).total_seconds() * 10)) / 10
        facts.append((t("bill_run.fact_duration"), f.duration(seconds)))
    return facts


def amounts_in(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The row with these values as numbers: they travel as text."""
    return {**row, **{name: Decimal(row[name]) for name in names}}


def plan_view(one: overview.PlanTotal, master: MasterData) -> dict[str, Any]:
    versions = master.plans.get(one.plan)
    name = (versions[-1].name if versions else "") or one.plan
    return {**vars(one), "name": name}


def parked_view(one: Mapping[str, Any], master: MasterData) -> dict[str, str]:
    code = str(one.get("customer", ""))
    customer = master.customers.get(code)
    return {"customer": code, "name": customer.name if customer else code, "reason": str(one.get("reason", ""))}
