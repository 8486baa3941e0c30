"""Pages of previews of whole bill runs: begin one, watch it, look at what a run would make, take the lines."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Response

from billing.errors import Conflict, InvalidInput
from billing.periods import midnight
from deployments.front.documents.bill_runs import amounts_in, day_in, new_run_page, parked_view, plan_view
from deployments.front.documents.run_plan import last_day
from deployments.front.page import Front, Visit, path_of
from deployments.run_previews import begun, lines_answer, run_previews
from storage.sql import audit, overview

RUNNING = ("planned", "running")


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)

    @router.post("/bill-run-previews")
    def start(
        visit: Annotated[Visit, visitor],
        last_day: Annotated[str, Form()] = "",
        document_date: Annotated[str, Form()] = "",
        form_token: Annotated[str, Form()] = "",
    ) -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        day = day_in(last_day)
        if day is None:
            wrong = visit.texts("bill_run.last_day_missing")
            return new_run_page(front, visit, "last_day", wrong, last_day, document_date)
        up_to = midnight(day + timedelta(days=1), visit.user.timezone)
        try:
            made = run_previews(services).plan(
                visit.tenant_id, up_to, visit.user.actor, document_date=day_in(document_date)
            )
        except (InvalidInput, Conflict) as error:
            return new_run_page(front, visit, "last_day", error.detail, last_day, document_date)
        with services.database.tenant(visit.tenant_id) as connection:
            begun(services, connection, visit.tenant_id, visit.user.actor, made)
        services.start_preview(visit.tenant_id, made["id"])
        return front.go(visit, path_of("bill-run-previews", made["id"]))

    @router.get("/bill-run-previews/{preview_id}")
    def result(visit: Annotated[Visit, visitor], preview_id: str) -> Response:
        visit.need("billing:read")
        found = run_previews(services).get(visit.tenant_id, preview_id)
        master = front.master(visit)
        outcome: Mapping[str, Any] = found["result"] or {}
        checks: Mapping[str, Any] = outcome.get("checks", {})
        left = found["progress"].get("seconds_left")
        return front.page(
            visit,
            "documents/bill_run_preview.html",
            area="bill_runs",
            row=_row(found, visit),
            running=found["state"] in RUNNING,
            progress=found["progress"],
            left=None if left is None else visit.formats.duration(Decimal(str(left))),
            error=found["error"],
            result=found["result"],
            totals=[_total(currency, sums, checks) for currency, sums in outcome.get("totals", {}).items()],
            stops=checks.get("stops", ()),
            findings=[one.get("detail") or one["code"] for one in outcome.get("findings", ())],
            by_plan=[
                plan_view(overview.PlanTotal(**amounts_in(one, "net")), master) for one in checks.get("by_plan", ())
            ],
            by_tax=[
                overview.TaxRow(**amounts_in(one, "percent", "base", "amount")) for one in checks.get("by_tax", ())
            ],
            by_country=[amounts_in(one, "net", "tax", "gross") for one in checks.get("by_country", ())],
            outliers=[
                {**one, "gross": Decimal(one["gross"]), "highest": Decimal(one["highest_of_last"])}
                for one in checks.get("outliers", ())
            ],
            parked=[parked_view(one, master) for one in outcome.get("parked", ())],
            held=[parked_view(one, master) for one in outcome.get("held_back", ())],
        )

    @router.get("/bill-run-previews/{preview_id}/lines")
    def lines(visit: Annotated[Visit, visitor], preview_id: str, format: str = "csv") -> Response:
        visit.need("billing:read")
        return lines_answer(services, visit.tenant_id, preview_id, "parquet" if format == "parquet" else "csv")

    @router.post("/bill-run-previews/{preview_id}/cancel")
    def cancel(visit: Annotated[Visit, visitor], preview_id: str, form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        run_previews(services).cancel(visit.tenant_id, preview_id)
        return front.go(visit, path_of("bill-run-previews", preview_id))

    @router.post("/bill-run-previews/{preview_id}/delete")
    def delete(visit: Annotated[Visit, visitor], preview_id: str, form_token: Annotated[str, Form()] = "") -> Response:
        visit.need("billing:write")
        front.check_form(visit, form_token)
        run_previews(services).delete(visit.tenant_id, preview_id)
        with services.database.tenant(visit.tenant_id) as connection:
            audit.record(connection, visit.tenant_id, at=services.clock(), actor=visit.user.actor,
                         action="preview of a bill run deleted", subject=preview_id)  # fmt: skip
        return front.go(visit, "/bill-runs/new")

    return router


def _row(found: Mapping[str, Any], visit: Visit) -> dict[str, Any]:
    return {
        "id": found["id"],
        "state": found["state"],
        "last_day": last_day(datetime.fromisoformat(found["up_to"]), visit),
        "document_date": datetime.fromisoformat(found["document_date"]).date(),
        "created_at": datetime.fromisoformat(found["created_at"]),
        "expires_at": datetime.fromisoformat(found["expires_at"]),
        "actor": str(found["created_by"]).removeprefix("user "),
        "until": None
        if found["usage_may_come_until"] is None
        else datetime.fromisoformat(found["usage_may_come_until"]),
    }


def _total(currency: str, sums: Mapping[str, str], checks: Mapping[str, Any]) -> dict[str, Any]:
    before = checks["difference"].get(currency, {}).get("last_net")
    return {
        "currency": currency,
        "documents": int(sums["documents"]),
        **{name: Decimal(sums[name]) for name in ("net", "tax", "gross")},
        "before": Decimal(before) if checks["last_run"] is not None and before is not None else None,
    }
