"""Pages of invoices, bill runs and the archive; the archived files themselves."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Query, Response

from billing.documents import Document, Line
from billing.errors import InvalidInput, NotFound
from billing.master import MasterData
from billing.periods import midnight
from deployments.front.documents.explanation import Explanation, explain
from deployments.front.formats import Formats
from deployments.front.lists import EXPORT_ROWS_MAX, LIMIT, Rows, Sort, cursor, cursor_number, cursor_values, export
from deployments.front.page import DOCUMENT_POLICY, Front, Visit, json_text, path_of
from deployments.front.texts import Texts
from pipelines.bill_run import BillRunDriver
from storage.archive import Archived, retention, rights
from storage.archive.rights import Reader
from storage.sql import bill_runs, invoices, overview
from storage.sql.overview import InvoiceFilter, RunRow, RunTotal

INVOICE_COLUMNS = (
    "number", "type", "customer", "customer_name", "country", "issued_on", "due_on", "currency", "net", "tax", "gross",
    "prepaid", "due", "refers_to", "state",
)  # fmt: skip
RUN_COLUMNS = ("number", "id", "state", "last_day", "document_date", "documents", "parked", "created_by", "started_at")
NOBODY: list[str] = []
STAGES = ("plan", "compute", "approve", "finalise", "documents")
ARCHIVE_NUMBERS_MAX = 20


@dataclass(frozen=True)
class PageSum:
    net: Decimal
    tax: Decimal
    gross: Decimal
    due: Decimal


@dataclass(frozen=True)
class LineView:
    number: int
    name: str
    when: str
    period: str
    quantity: Any
    unit: str
    price: Any
    amount: str
    gross: str  # with tax, where the price contains it
    correction: bool
    credit: bool
    corrects: str
    why: Explanation | None


@dataclass(frozen=True)
class Group:
    name: str
    detail: str
    net: Decimal
    lines: list[LineView]


@dataclass(frozen=True)
class File:
    size: int
    sha256: str
    archived_at: datetime


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)

    # -- invoices --------------------------------------------------------------------------------------------------
    @router.get("/invoices")
    def invoice_list(
        visit: Annotated[Visit, visitor],
        q: Annotated[str, Query(max_length=200)] = "",
        kind: Annotated[str, Query(pattern="^(invoice|credit_note)?$")] = "",
        month: Annotated[str, Query(pattern="^([0-9]{4}-(0[1-9]|1[0-2]))?$")] = "",
        currency: Annotated[str, Query(max_length=3)] = "",
        run: Annotated[str, Query(pattern="^[0-9a-f-]{0,36}$")] = "",
        customer: Annotated[str, Query(max_length=256)] = "",
        sort: str = "-issued",
        after: str | None = None,
        format: str = "",
    ) -> Response:
        visit.need("billing:read")
        chosen = InvoiceFilter(q.strip(), kind, month, currency, run if len(run) == 36 else "", customer)
        order = Sort.of(sort, tuple(overview.INVOICE_SORTS), "-issued")
        place = cursor_values(after, 2) if after and not format else None
        with services.database.tenant(visit.tenant_id) as connection:
            page = overview.invoices(
                connection,
                chosen,
                sort=order.key,
                descending=order.descending,
                after=(place[0], place[1]) if place else None,
                limit=EXPORT_ROWS_MAX if format else LIMIT,
            )
            if format:
                found = [{column: getattr(row, column) for column in INVOICE_COLUMNS} for row in page.items]
                return export(format, "invoices", INVOICE_COLUMNS, found)
            kinds = overview.invoice_kinds(connection, chosen)
            totals = overview.invoice_totals(connection, chosen)
            months = overview.invoice_months(connection)
            currencies = overview.currencies(connection)
            total_all = overview.invoice_count(connection)
        total = sum(kinds.values()) if not kind else kinds.get(kind, 0)
        rows = Rows(page.items, total, total_all, cursor(*page.last) if page.more and page.last else None, not place)
        tabs = [("", sum(kinds.values())), *((one, kinds.get(one, 0)) for one in ("invoice", "credit_note"))]
        return front.page(
            visit,
            "documents/invoices.html",
            area="invoices",
            rows=rows,
            sort=order,
            tabs=tabs,
            totals=totals,
            months=[(f"{one:%Y-%m}", visit.formats.month(one)) for one in months],
            currencies=currencies,
            currency=currencies[0] if len(currencies) == 1 else currency,
            filter=chosen,
            page_sum=PageSum(
                *(
                    sum((getattr(row, name) for row in page.items), Decimal(0))
                    for name in ("net", "tax", "gross", "due")
                )
            ),
        )

    @router.get("/invoices/{number:path}/pdf")
    def pdf(visit: Annotated[Visit, visitor], number: str, download: int = 0) -> Response:
        return _file(front, visit, number, "pdf", download=bool(download))

    @router.get("/invoices/{number:path}/xml")
    def xml(visit: Annotated[Visit, visitor], number: str) -> Response:
        return _file(front, visit, number, "xml", download=True)

    @router.get("/invoices/{number:path}")
    def invoice(
        visit: Annotated[Visit, visitor],
        number: str,
        explain: int | None = None,
        format: str = "",
    ) -> Response:
        visit.need("billing:read")
        with services.database.tenant(visit.tenant_id) as connection:
            found = overview.invoice(connection, number)
            if found is None:
                raise NotFound(number)
            related = overview.credit_notes_of(connection, number)
        document = invoices.document_from(found["document"])
        row: overview.InvoiceRow = found["row"]
        if format == "json":
            body = json_text({"number": number, **found["document"]})
            headers = {"Content-Disposition": _attachment(number, "json")}
            return Response(body, media_type="application/json", headers=headers)
        files = {one.kind: one for one in services.archive.entries(visit.tenant_id, [row.id])}
        pdf_file = files.get("pdf")
        master = front.master(visit)
        return front.page(
            visit,
            "documents/invoice.html",
            area="invoices",
            invoice=_invoice_view(row, found),
            document=document,
            groups=groups_of(document, master, explain, visit.texts, visit.formats),
            tax_words=tax_words_of(document, visit.texts, visit.formats),
            pdf=File(pdf_file.byte_count, pdf_file.sha256, pdf_file.archived_at) if pdf_file else None,
            xml=files.get("xml"),
            related=related,
            timeline=_timeline(found["made_at"], files, visit.texts),
        )

    # -- bill runs -------------------------------------------------------------------------------------------------
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
        return _run_form(front, visit)

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
        day, issued = _day(last_day), _day(document_date)
        if day is None:
            return _run_form(front, visit, "last_day", t("bill_run.last_day_missing"), last_day, document_date)
        if day >= today:
            latest = f.day(today - timedelta(days=1))
            wrong = t("bill_run.last_day_future", day=latest)
            return _run_form(front, visit, "last_day", wrong, last_day, document_date)
        if document_date and (issued is None or issued > today):
            wrong = t("bill_run.document_date_wrong", day=f.day(today))
            return _run_form(front, visit, "document_date", wrong, last_day, document_date)
        up_to = midnight(day + timedelta(days=1), visit.user.timezone)
        try:
            run = _driver(front).plan(visit.tenant_id, up_to, visit.user.actor, document_date=issued, approve=False)
        except InvalidInput as error:
            return _run_form(front, visit, "last_day", error.detail, last_day, document_date)
        services.start_bill_run(visit.tenant_id, run["id"], False)
        return front.go(visit, path_of("bill-runs", run["id"]))

    @router.get("/bill-runs/{run_id}")
    def run_page(visit: Annotated[Visit, visitor], run_id: str) -> Response:
        visit.need("billing:read")
        with services.database.tenant(visit.tenant_id) as connection:
            run = overview.run(connection, run_id)
            if run is None:
                raise NotFound(run_id)
            plans = overview.billed_by_plan(connection, run=run.id)
            taxes = overview.billed_by_tax(connection, run.id)
        master = front.master(visit)
        view = _run_view(run, visit)
        return front.page(
            visit,
            "documents/bill_run.html",
            area="bill_runs",
            run=view,
            stages=_stages(run, visit.texts, visit.formats),
            live=_live(run, visit),
            by_plan=[_plan_view(one, master) for one in plans],
            by_tax=taxes,
            parked=[_parked_view(one, master) for one in run.parked],
            held=[_parked_view(one, master) for one in run.held],
            facts=_run_facts(run, visit.texts, visit.formats),
        )

    @router.post("/bill-runs/{run_id}/approve")
    def approve(visit: Annotated[Visit, visitor], run_id: str, form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        _driver(front).approve(visit.tenant_id, run_id, visit.user.actor)
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
            _driver(front).release(visit.tenant_id, run_id, customer, visit.user.actor)
        return front.go(visit, path_of("bill-runs", run_id))

    @router.post("/bill-runs/{run_id}/pause")
    def pause(visit: Annotated[Visit, visitor], run_id: str, form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        _driver(front).pause(visit.tenant_id, run_id)
        return front.go(visit, path_of("bill-runs", run_id))

    @router.post("/bill-runs/{run_id}/resume")
    def resume(visit: Annotated[Visit, visitor], run_id: str, form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        _driver(front).resume(visit.tenant_id, run_id)
        services.start_bill_run(visit.tenant_id, run_id, None)
        return front.go(visit, path_of("bill-runs", run_id))

    @router.post("/bill-runs/{run_id}/reverse")
    def reverse(visit: Annotated[Visit, visitor], run_id: str, form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        _driver(front).reverse(visit.tenant_id, run_id, visit.user.actor)
        services.start_bill_run(visit.tenant_id, run_id, None)
        return front.go(visit, path_of("bill-runs", run_id))

    @router.post("/bill-runs/{run_id}/cancel")
    def cancel(visit: Annotated[Visit, visitor], run_id: str, form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        _driver(front).cancel(visit.tenant_id, run_id)
        return front.go(visit, path_of("bill-runs", run_id))

    # -- archive ---------------------------------------------------------------------------------------------------
    @router.get("/archive")
    def archive(
        visit: Annotated[Visit, visitor],
        q: Annotated[str, Query(max_length=200)] = "",
        kind: Annotated[str, Query(pattern="^([a-z][a-z0-9_-]{0,63})?$")] = "",
        after: str | None = None,
    ) -> Response:
        visit.need("archive:read")
        return _archive(front, visit, q, kind, after)

    @router.get("/archive/files/{document_id}/{kind}/{version}")
    def archived_file(visit: Annotated[Visit, visitor], document_id: str, kind: str, version: int) -> Response:
        visit.need("archive:read")
        found, data = services.archive.read(visit.tenant_id, _reader(front, visit), document_id, kind, version)
        headers = {
            "Content-Disposition": _attachment(found.number or document_id, kind),
            "Content-Security-Policy": DOCUMENT_POLICY,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private, no-store",
        }
        return Response(data, media_type=found.mime, headers=headers)

    @router.post("/archive/holds")
    def hold(
        visit: Annotated[Visit, visitor],
        reason: Annotated[str, Form()] = "",
        customer: Annotated[str, Form()] = "",
        form_token: Annotated[str, Form()] = "",
    ) -> Response:
        visit.need("archive:write")
        front.check_form(visit, form_token)
        actor, whose = f"user {visit.user.email}", customer.strip() or None
        with services.database.tenant(visit.tenant_id) as connection:
            retention.place_hold(connection, visit.tenant_id, reason=reason, actor=actor, now=visit.now, customer=whose)
            rights.record(connection, visit.tenant_id, at=visit.now, actor=actor, action="hold",
                          detail=f"{whose or 'all'}: {reason}")  # fmt: skip
        return front.go(visit, "/archive")

    @router.post("/archive/holds/{hold_id}/release")
    def release(
        visit: Annotated[Visit, visitor],
        hold_id: UUID,
        reason: Annotated[str, Form()] = "",
        form_token: Annotated[str, Form()] = "",
    ) -> Response:
        visit.need("archive:write")
        front.check_form(visit, form_token)
        actor = f"user {visit.user.email}"
        with services.database.tenant(visit.tenant_id) as connection:
            retention.release_hold(connection, str(hold_id), reason=reason, actor=actor, now=visit.now)
            rights.record(connection, visit.tenant_id, at=visit.now, actor=actor, action="release", detail=reason)
        return front.go(visit, "/archive")

    @router.post("/archive/verify")
    def verify(visit: Annotated[Visit, visitor], form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("archive:read")
        front.check_form(visit, form_token)
        begin = time.monotonic()
        proof = services.archive.verify(visit.tenant_id)
        seconds = Decimal(str(round(time.monotonic() - begin, 1)))
        return _archive(front, visit, "", "", None, proof=proof, proof_seconds=seconds)

    return router


# -- invoices ------------------------------------------------------------------------------------------------------
def _file(front: Front, visit: Visit, number: str, kind: str, *, download: bool) -> Response:
    visit.need("billing:read")
    with front.services.database.tenant(visit.tenant_id) as connection:
        found = overview.invoice(connection, number)
    if found is None:
        raise NotFound(number)
    _, data = front.services.archive.read(visit.tenant_id, _reader(front, visit), found["row"].id, kind)
    media_type = "application/pdf" if kind == "pdf" else "application/xml"
    headers = {
        "Content-Disposition": _attachment(number, kind) if download else "inline",
        "Content-Security-Policy": DOCUMENT_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
    }
    return Response(data, media_type=media_type, headers=headers)


def _attachment(number: str, kind: str) -> str:
    safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "_" for letter in number)
    return f'attachment; filename="{safe}.{kind}"'


def _invoice_view(row: overview.InvoiceRow, found: Mapping[str, Any]) -> dict[str, Any]:
    buyer: Mapping[str, Any] = found["buyer"]
    return {
        "number": row.number,
        "state": row.state,
        "customer_name": row.customer_name,
        "city": (buyer.get("address") or {}).get("city") or "",
        "due_on": row.due_on,
        "run": row.run,
        "run_name": found["run_number"],
    }


def groups_of(document: Document, master: MasterData, wanted: int | None, t: Texts, f: Formats) -> list[Group]:
    """Lines by customer and subscription, in the document's order; numbers keep their places in the document."""
    quantity_places = min(f.places(line.quantity for line in document.lines), 6)
    price_places = min(f.places((line.unit_price for line in document.lines if line.unit_price is not None), 2), 8)
    names = {member.code: member.name for member in document.members}
    groups: dict[tuple[str, str], Group] = {}
    for number, line in enumerate(document.lines, start=1):
        key = (line.customer, line.subscription)
        group = groups.get(key)
        if group is None:
            plan = next((one for one in master.plans.get(line.plan, ()) if one.version == line.plan_version), None)
            name = (plan.name if plan else "") or line.plan
            detail = t("invoice.group_detail", plan=name, version=line.plan_version) if name else ""
            of = names.get(line.customer, "")
            title = t("invoice.group_of", customer=of, subscription=line.subscription) if of else line.subscription
            group = groups[key] = Group(title, detail, Decimal(0), [])
        unit = unit_of_line(line, master)
        why = explain(number, replace(line, unit=unit), document.currency, t, f) if number == wanted else None
        group.lines.append(line_view(number, line, unit, document.currency, quantity_places, price_places, why, t, f))
        groups[key] = Group(group.name, group.detail, group.net + line.amount, group.lines)
    return list(groups.values())


def line_view(
    number: int,
    line: Line,
    unit: str,
    currency: str,
    quantity_places: int,
    price_places: int,
    why: Explanation | None,
    t: Texts,
    f: Formats,
) -> LineView:
    price: Any = f.number(None)
    if line.explanation.get("tiers"):
        price = t("invoice.tiered")
    elif line.unit_price is not None:
        price = f.pad(line.unit_price, price_places, 2)
    corrects = ""
    if line.corrects is not None:
        corrects = t("invoice.corrects_line", document=line.corrects.document, line=line.corrects.line)
    return LineView(
        number,
        t("invoice.minimum") if line.kind == "minimum" else line.name or line.charge,
        ", ".join(line.when.values()) if line.when else "",
        f.period(line.start, line.end),
        f.pad(line.quantity, quantity_places)
        if f.places([line.quantity]) <= quantity_places
        else f.number(line.quantity, 0, 6),
        unit,
        price,
        f.amount(line.amount, currency),
        "" if line.gross is None else t("invoice.with_tax", amount=f.amount(line.gross, currency)),
        line.correction,
        line.amount < 0 and not line.correction,
        corrects,
        why,
    )


def unit_of_line(line: Line, master: MasterData) -> str:
    """The line's own unit, else its meter's."""
    plan = next((one for one in master.plans.get(line.plan, ()) if one.version == line.plan_version), None)
    charge = plan.charge(line.charge) if plan and not line.unit else None
    meter = master.meters.get(charge.meter) if charge else None
    return line.unit or (meter.unit if meter else "")


def tax_words_of(document: Document, t: Texts, f: Formats) -> str:
    words = [
        f"{f.number(tax.percent)} %" if tax.category == "S" else t(f"tax.{tax.category}") for tax in document.taxes
    ]
    return ", ".join(dict.fromkeys(words)) or t("invoice.tax_none")


def _timeline(made_at: datetime, files: Mapping[str, Archived], t: Texts) -> list[tuple[datetime, str]]:
    moments = [(made_at, t("invoice.made_final"))]
    moments += [
        (file.archived_at, t(f"invoice.{kind}_archived")) for kind, file in files.items() if kind in ("pdf", "xml")
    ]
    return sorted(moments, key=lambda one: one[0], reverse=True)


# -- bill runs -----------------------------------------------------------------------------------------------------
def _driver(front: Front) -> BillRunDriver:
    services = front.services
    return BillRunDriver(
        services.database,
        services.store,
        services.masters,
        services.archive,
        services.clock,
        desk=services.desk,
        voider=services.desk,
    )


def _run_form(
    front: Front, visit: Visit, field: str = "", wrong: str = "", last_day: str | None = None, issued: str | None = None
) -> Response:
    local = visit.formats.local(visit.user.test_clock or visit.now).date()
    with front.services.database.tenant(visit.tenant_id) as connection:
        active = bill_runs.active(connection)
    return front.page(
        visit,
        "documents/bill_run_new.html",
        status=422 if wrong else 200,
        area="bill_runs",
        wrong=wrong,
        wrong_field=field,
        last_day=(local.replace(day=1) - timedelta(days=1)).isoformat() if last_day is None else last_day,
        document_date="" if issued is None else issued,
        max_day=(local - timedelta(days=1)).isoformat(),
        max_date=local.isoformat(),
        test_tenant=visit.user.who.tenant_kind == "test",
        active=str(active["id"]) if active else "",
    )


def _day(text: str) -> date | None:
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
        "can_pause": run.state in ("planned", "approved", "finalised"),
        "paused": run.paused,
        "can_reverse": run.state == "done" and run.finalised > 0,
        "stops": run.checks.get("stops", ()),
        "outliers": [
            {**one, "gross": Decimal(one["gross"]), "highest": Decimal(one["highest_of_last"])}
            for one in (run.checks.get("outliers", ()) if run.state == "computed" else ())
        ],
        "error": run.error if run.state == "failed" or (run.error and run.running) else None,
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


def _live(run: RunRow, visit: Visit) -> Live:
    t, f = visit.texts, visit.formats
    files_done = run.archived + run.files_parked
    done, total, key = {
        "planned": (run.chunks_computed, run.chunks, "live.chunks"),
        "approved": (run.finalised, run.computed_documents, "live.finalised"),
        "finalised": (files_done, run.finalised, "live.documents"),
        "reversing": (run.taken_back, run.finalised, "live.reversing"),
    }.get(run.state, (0, 0, ""))
    if not key:
        words = {"computed": "live.waiting", "cancelled": "live.cancelled", "failed": "state.failed",
                 "reversed": "live.reversed"}  # fmt: skip
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
    seconds = max(Decimal(int((visit.now - run.started_at).total_seconds() * 10)) / 10, Decimal("0.1"))
    rate = Decimal(done) / seconds
    left = Decimal(total - done) / rate if rate else None
    return Live(
        t(key, done=f.number(done), all=f.number(total)),
        t("live.progress"),
        total,
        done,
        t("live.rate", count=f.number(rate.quantize(Decimal("0.1")))) if run.state == "finalised" and done else "",
        t("live.left", time=f.duration(left)) if left and run.state == "finalised" and done else "",
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


def _plan_view(one: overview.PlanTotal, master: MasterData) -> dict[str, Any]:
    versions = master.plans.get(one.plan)
    name = (versions[-1].name if versions else "") or one.plan
    return {**vars(one), "name": name}


def _parked_view(one: Mapping[str, Any], master: MasterData) -> dict[str, str]:
    code = str(one.get("customer", ""))
    customer = master.customers.get(code)
    return {"customer": code, "name": customer.name if customer else code, "reason": str(one.get("reason", ""))}


# -- archive -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Kept:
    """An archived file with the day until which it is kept by the rules of today."""

    file: Archived
    until: date
    held: bool


def _reader(front: Front, visit: Visit) -> Reader:
    with front.services.database.tenant(visit.tenant_id) as connection:
        return rights.reader_of(connection, f"user {visit.user.email}", visit.user.role)


def _archive(
    front: Front,
    visit: Visit,
    search: str,
    kind: str,
    after: str | None,
    *,
    proof: Any = None,
    proof_seconds: Decimal = Decimal(0),
) -> Response:
    place = cursor_number(after) if after else 0
    archive = front.services.archive
    who = _reader(front, visit)
    found: Sequence[Archived] = archive.search(
        visit.tenant_id, reader=who, text=search.strip() or None, kind=kind or None, after=place, limit=LIMIT + 1
    )
    with front.services.database.tenant(visit.tenant_id) as connection:
        total = overview.archive_count(connection)
        years = retention.years_of(connection, visit.tenant_id)
        holds = [each for each in retention.holds(connection) if each.released_at is None]
    shown = [
        Kept(each, retention.kept_until(each, years), any(hold.holds(each) for hold in holds)) for each in found[:LIMIT]
    ]
    more = len(found) > LIMIT
    rows = Rows(shown, total, total, cursor(shown[-1].file.position) if more else None, place == 0)
    signed = archive.roots.all(visit.tenant_id) if archive.roots is not None else []
    return front.page(
        visit,
        "documents/archive.html",
        area="archive",
        rows=rows,
        filter={"search": search, "kind": kind},
        proof=proof,
        proof_seconds=proof_seconds,
        holds=holds,
        years=years,
        root=signed[-1] if signed else None,
        root_day=date.fromisoformat(signed[-1].day) if signed else None,
        may_write=visit.may("archive:write"),
    )
