"""Simulations over REST: what would other prices have earned over past months of real usage."""

import csv
import io
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import polars as pl
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response, StreamingResponse

from billing.errors import FieldError, InvalidInput
from billing.periods import local_date
from billing.simulation import months_asked, plan_asked
from deployments import examples
from deployments.access import Caller, may
from deployments.bodies import json_form, known_keys, text_of
from deployments.manners import (
    Answer,
    PageOf,
    Write,
    described,
    json_response,
    page_of,
    paging,
    tenant_now,
    text_cursor,
)
from deployments.services import Services
from pipelines.simulation import Simulations, amount_text
from storage.sql import audit
from storage.sql.database import Connection

router = APIRouter(prefix="/v1", tags=["Catalog"])
CUSTOMERS_MAX = 10_000  # named in one simulation; without names all are looked at
_ERRORS = (400, 404, 409, 413, 415, 422)

_AMOUNTS = {"before": "14760.00", "after": "15498.00", "difference": "738.00"}
_SIMULATION = {
    "id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "name": "Storage 5 % dearer",
    "state": "done",
    "error": None,
    "progress": {"done": 40, "total": 40, "updated_at": "2026-11-25T10:00:04Z"},
    "plan": {"code": "basic", "currency": "EUR", "version": 3, "form": examples.PLAN},
    "instead_of": examples.PLAN,
    "months": ["2026-09-01", "2026-10-01"],
    "asked_customers": None,
    "master_number": 812,
    "data_versions": {"product": "0.1.0", "time_zones": "tzdata 2025.2"},
    "created_at": "2026-11-25T10:00:00Z",
    "created_by": "key cb_k3vYq0hGx",
    "result": {
        "currencies": [
            {
                "currency": "EUR",
                **_AMOUNTS,
                "customers": 40,
                "pay_less": 3,
                "pay_more": 31,
                "pay_the_same": 6,
                "months": [{"month": "2026-09", **_AMOUNTS}],
                "charges": [{"charge": "storage", **_AMOUNTS}],
                "cells": [{"month": "2026-09", "charge": "storage", **_AMOUNTS}],
                "most_more": [{"customer": "acme", **_AMOUNTS}],
                "most_less": [{"customer": "rhein", "before": "20.00", "after": "18.00", "difference": "-2.00"}],
            }
        ],
        "parked": [],
        "parked_count": 0,
    },
}
_LISTED = {key: value for key, value in _SIMULATION.items() if key not in ("result", "instead_of")} | {
    "plan": {"code": "basic", "currency": "EUR", "version": 3},
    "result": {"currencies": [{"currency": "EUR", **_AMOUNTS, "customers": 40}], "parked_count": 0},
}
_REQUEST = {
    "name": "Storage 5 % dearer",
    "prices": {"code": "basic", "charges": [{"code": "storage", "price": {"model": "per_unit", "unit": "0.105"}}]},
    "from": "2026-09",
    "to": "2026-10",
    "customers": None,
}


def simulations(services: Services) -> Simulations:
    """What plans and shows; driving is `Services.start_simulation`."""
    return Simulations(services.database, services.store, services.masters, services.clock)


def start(
    services: Services, tenant_id: str, timezone: str, form: Mapping[str, Any], *, actor: str, now: datetime
) -> dict[str, Any]:
    """Check what is asked, with the place of every mistake, and plan it. For the API and the page."""
    number, master = services.masters.newest(tenant_id)
    errors: list[FieldError] = []
    months, plan = [], None
    for work in (
        lambda: months_asked(form.get("from"), form.get("to"), local_date(now, timezone)),
        lambda: plan_asked(master, form),
    ):
        try:
            found = work()
            months, plan = (found, plan) if isinstance(found, list) else (months, found)
        except InvalidInput as error:
            errors += error.errors
    customers = form.get("customers")
    if customers is not None and not (
        isinstance(customers, list)
        and 1 <= len(customers) <= CUSTOMERS_MAX
        and all(isinstance(code, str) for code in customers)
    ):
        errors.append(FieldError("/customers", f"a list of 1 to {CUSTOMERS_MAX:,} customer codes is needed"))
    if errors or plan is None:
        raise InvalidInput(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)
    name = text_of(form, "name", default=plan.name or plan.code)
    return simulations(services).plan(
        tenant_id, number, plan, months, name=name, actor=actor, now=now, customers=customers
    )


@router.post(
    "/simulations",
    summary="Simulate other prices over past months of real usage",
    **described(request=_REQUEST, answer=_SIMULATION | {"state": "planned", "result": None}, status=202, also=_ERRORS),
)
def post_simulation(
    request: Request, caller: Caller = Depends(may("catalog:write")), form: Any = Depends(json_form)
) -> Response:
    """`prices` changes charges of the newest version of a plan; `plan` is a whole form in its place. The months are
    billed again by the engine that bills, once under the contracts as they are and once as if every contract on the
    plan had always had these prices. Nothing that is billed is touched. Ask GET /v1/simulations/{id} for its progress.
    """
    write = Write(request)
    services = write.services
    form = known_keys(form, ("name", "plan", "prices", "from", "to", "customers"), ("from", "to"))

    def work(connection: Connection) -> Answer:
        now = tenant_now(services, connection, caller)
        made = start(services, caller.tenant_id, caller.timezone, form, actor=caller.actor, now=now)
        audit.record(connection, caller.tenant_id, at=services.clock(), actor=caller.actor,
                     action="simulation started", subject=made["id"], after={"name": made["name"]})  # fmt: skip
        return Answer(made, 202, {"Location": f"/v1/simulations/{made['id']}"})

    answer = write.run(caller, work)
    if answer.status_code == 202:
        services.start_simulation(caller.tenant_id, str(msgspec.json.decode(answer.body)["id"]))
    return answer


@router.get(
    "/simulations",
    summary="List simulations, newest first",
    **described(answer={"items": [_LISTED], "next_cursor": None}, also=(422,)),
)
def list_simulations(
    request: Request, page: PageOf = Depends(paging), caller: Caller = Depends(may("billing:read"))
) -> Response:
    after = text_cursor(page)
    found = [
        one for one in simulations(request.app.state.services).list(caller.tenant_id) if not after or one["id"] < after
    ]
    return page_of(found[: page.limit + 1], page, lambda one: one["id"], _listed)


def _listed(one: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in one.items() if key not in ("result", "instead_of", "plan")}
    shown["plan"] = {key: value for key, value in one["plan"].items() if key != "form"}
    result = one["result"]
    shown["result"] = None
    if result is not None:
        names = ("currency", "before", "after", "difference", "customers")
        sums = [{name: entry[name] for name in names} for entry in result["currencies"]]
        shown["result"] = {"currencies": sums, "parked_count": result["parked_count"]}
    return shown


@router.get(
    "/simulations/{simulation_id}",
    summary="Read a simulation: progress, then revenue before and after",
    **described(answer=_SIMULATION, also=(404, 422)),
)
def read_simulation(request: Request, simulation_id: UUID, caller: Caller = Depends(may("billing:read"))) -> Response:
    """Revenue is net, by the month in which the service begins, currencies apart; customers who could not be billed
    are in `parked` and in no sum. `cells` are months by charges; `most_more` and `most_less` name the 50 customers with
    the greatest differences, GET .../customers has all of them."""
    return json_response(simulations(request.app.state.services).get(caller.tenant_id, str(simulation_id)))


@router.get(
    "/simulations/{simulation_id}/customers",
    summary="What each customer paid and would have paid",
    **described(
        answer={"items": [{"customer": "acme", "currency": "EUR", **_AMOUNTS}], "next_cursor": None},
        also=(404, 409, 422),
    ),
)
def read_simulation_customers(
    request: Request,
    simulation_id: UUID,
    page: PageOf = Depends(paging),
    sort: str = Query(
        "-difference", pattern="^(-?difference|customer)$", description="`-difference`, `difference` or `customer`."
    ),
    caller: Caller = Depends(may("billing:read")),
) -> Response:
    frame = simulations(request.app.state.services).customers(caller.tenant_id, str(simulation_id))
    rows = ranked(frame, sort)
    start_at = _place(page)
    shown = rows.slice(start_at, page.limit + 1).with_row_index("at", start_at + 1).to_dicts()
    return page_of(shown, page, lambda row: row["at"], shown_customer)


def ranked(frame: pl.DataFrame, sort: str) -> pl.DataFrame:
    """The customers in the order asked for."""
    if sort == "customer":
        return frame.sort("customer", "currency")
    return frame.sort("difference", "customer", "currency", descending=[sort.startswith("-"), False, False])


def _place(page: PageOf) -> int:
    if page.after is None:
        return 0
    if isinstance(page.after, int) and 0 <= page.after < 2**31:
        return page.after
    raise InvalidInput("cursor belongs to another list", errors=[FieldError("query:cursor", "of another list")])


def shown_customer(row: Mapping[str, Any]) -> dict[str, str]:
    currency = row["currency"]
    amounts = {name: amount_text(row[name], currency) for name in ("before", "after", "difference")}
    return {"customer": row["customer"], "currency": currency, **amounts}


@router.get(
    "/simulations/{simulation_id}/csv",
    summary="All amounts of a simulation by customer, charge and month, as CSV",
    **described(answer=None, media="text/csv", also=(404, 409, 422)),
)
def simulation_csv(request: Request, simulation_id: UUID, caller: Caller = Depends(may("billing:read"))) -> Response:
    frames = simulations(request.app.state.services).rows(caller.tenant_id, str(simulation_id))
    return csv_answer(frames, str(simulation_id))


def csv_answer(frames: Iterator[pl.DataFrame], simulation_id: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="simulation-{simulation_id}.csv"'}
    return StreamingResponse(_csv_lines(frames), media_type="text/csv; charset=utf-8", headers=headers)


def _csv_lines(frames: Iterator[pl.DataFrame]) -> Iterator[str]:
    from deployments.front.lists import csv_text  # late: the front end's pages import this module

    names = ("customer", "currency", "charge", "month", "before", "after", "difference")
    yield ",".join(names) + "\r\n"
    for frame in frames:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\r\n")
        for customer, currency, charge, month, before, after in frame.iter_rows():
            amounts = [amount_text(amount, currency) for amount in (before, after, after - before)]
            writer.writerow([csv_text(customer), currency, csv_text(charge), month.isoformat()[:7], *amounts])
        yield out.getvalue()


@router.post(
    "/simulations/{simulation_id}/cancel",
    summary="Cancel a simulation that goes on",
    **described(request={}, answer=_SIMULATION | {"state": "cancelled", "result": None}, also=_ERRORS),
)
def cancel_simulation(
    request: Request,
    simulation_id: UUID,
    caller: Caller = Depends(may("catalog:write")),
    form: Any = Depends(json_form),
) -> Response:
    known_keys(form, ())
    write = Write(request)

    def work(connection: Connection) -> Answer:
        return Answer(simulations(write.services).cancel(caller.tenant_id, str(simulation_id)), 200)

    return write.run(caller, work)


@router.delete(
    "/simulations/{simulation_id}",
    summary="Delete a simulation and its result",
    **described(answer={"id": _SIMULATION["id"], "deleted": True}, also=(404, 409, 422)),
)
def delete_simulation(
    request: Request, simulation_id: UUID, caller: Caller = Depends(may("catalog:write"))
) -> Response:
    """One that goes on is cancelled first."""
    services: Services = request.app.state.services
    name = str(simulation_id)
    simulations(services).delete(caller.tenant_id, name)
    with services.database.tenant(caller.tenant_id) as connection:
        audit.record(connection, caller.tenant_id, at=services.clock(), actor=caller.actor,
                     action="simulation deleted", subject=name)  # fmt: skip
    return json_response({"id": name, "deleted": True})
