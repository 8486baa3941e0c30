"""Pages of invoices and credit notes, and their files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Response

from billing.documents import Document, Line
from billing.errors import NotFound
from billing.master import MasterData
from deployments.billing_documents import make_wanted_files
from deployments.front.documents.archive import attachment, reader_of_visit
from deployments.front.documents.explanation import Explanation, explain
from deployments.front.formats import Formats
from deployments.front.lists import EXPORT_ROWS_MAX, LIMIT, Rows, Sort, cursor, cursor_values, export
from deployments.front.page import DOCUMENT_POLICY, Front, Visit, json_text, path_of
from deployments.front.texts import Texts
from pipelines.document_files import want_again
from storage.archive import Archived
from storage.sql import audit, invoices, overview
from storage.sql.overview import InvoiceFilter

INVOICE_COLUMNS = (
    "number", "type", "customer", "customer_name", "country", "issued_on", "due_on", "currency", "net", "tax", "gross",
    "prepaid", "due", "refers_to", "state",
)  # fmt: skip


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
        files: Annotated[str, Query(pattern="^(wanted|parked)?$")] = "",
        sort: str = "-issued",
        after: str | None = None,
        format: str = "",
    ) -> Response:
        visit.need("billing:read")
        chosen = InvoiceFilter(q.strip(), kind, month, currency, run if len(run) == 36 else "", customer, files)
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

    @router.post("/invoices/{number:path}/files")
    def make_again(visit: Annotated[Visit, visitor], number: str, form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        now = services.clock()
        with services.database.tenant(visit.tenant_id) as connection:
            document_id = want_again(connection, visit.tenant_id, number, now)
            audit.record(connection, visit.tenant_id, at=now, actor=visit.user.actor, action="files made again",
                         subject=number)  # fmt: skip
        make_wanted_files(services, visit.tenant_id, document_id)
        return front.go(visit, path_of("invoices", number))

    @router.get("/invoices/{number:path}")
    def invoice(
        visit: Annotated[Visit, visitor],
        number: str,
        explain: int | None = None,
        format: str = "",
        credited: Annotated[str, Query(max_length=256)] = "",
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
            headers = {"Content-Disposition": attachment(number, "json")}
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
            parked=found["parked"] if found["files"] == "parked" else None,
            related=related,
            credited=credited if any(one.number == credited for one in related) else "",
            creditable=_creditable(row, related) and not found["outside"],
            outside=found["outside"],
            known=document.customer in master.customers,
            timeline=_timeline(row, found["made_at"], files, visit.texts, outside=found["outside"]),
        )

    return router


# -- invoices ------------------------------------------------------------------------------------------------------
def _file(front: Front, visit: Visit, number: str, kind: str, *, download: bool) -> Response:
    visit.need("billing:read")
    with front.services.database.tenant(visit.tenant_id) as connection:
        found = overview.invoice(connection, number)
    if found is None:
        raise NotFound(number)
    _, data = front.services.archive.read(visit.tenant_id, reader_of_visit(front, visit), found["row"].id, kind)
    media_type = "application/pdf" if kind == "pdf" else "application/xml"
    headers = {
        "Content-Disposition": attachment(number, kind) if download else "inline",
        "Content-Security-Policy": DOCUMENT_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
    }
    return Response(data, media_type=media_type, headers=headers)


def _invoice_view(row: overview.InvoiceRow, found: Mapping[str, Any]) -> dict[str, Any]:
    buyer: Mapping[str, Any] = found["buyer"]
    return {
        "number": row.number,
        "state": row.state,
        "customer_name": row.customer_name,
        "city": (buyer.get("address") or {}).get("city") or "",
        "due_on": row.due_on,
        "run": row.run,
        "reason": found["reason"] or "",
        "run_name": found["run_number"],
    }


def _creditable(row: overview.InvoiceRow, related: Sequence[overview.InvoiceRow]) -> bool:
    return row.type == "invoice" and row.state != "credited" and all(one.type != "invoice" for one in related)


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


def _timeline(
    row: overview.InvoiceRow, made_at: datetime, files: Mapping[str, Archived], t: Texts, *, outside: bool
) -> list[tuple[datetime, str]]:
    how = "invoice.issued_outside" if outside else "invoice.made_final" if row.run else "invoice.made_final_alone"
    moments = [(made_at, t(how))]
    moments += [
        (file.archived_at, t(f"invoice.{kind}_archived")) for kind, file in files.items() if kind in ("pdf", "xml")
    ]
    return sorted(moments, key=lambda one: one[0], reverse=True)
