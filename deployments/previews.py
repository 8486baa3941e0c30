"""What would be billed, over REST: the next invoice of a customer, and what a change would make of it.

Reads only: nothing is stored, no number, no credit is taken. Stands before `deployments/master_data.py` in the
application, whose `/customers/{code}` takes every longer path.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from billing.errors import FieldError, InvalidInput
from billing.master import MasterData
from billing.money import round_amount
from billing.periods import TimeInvalid, parse_moment
from deployments import examples
from deployments.access import Caller, may
from deployments.billing_documents import day_or_moment, local_moment, shown_document
from deployments.bodies import json_form, known_keys
from deployments.manners import described, json_response, plain, rfc3339, tenant_now
from deployments.master_data import CATALOG_STEPS, CONTRACT_STEPS
from deployments.services import Services
from pipelines.preview import (
    AHEAD_MAX,
    CUSTOMERS_MAX,
    ChangePreview,
    LineChange,
    Preview,
    Previews,
    totals_of,
)
from storage.sql import master_records

router = APIRouter(prefix="/v1", tags=["Billing"])
STEPS_MAX = 200  # of one preview

_SUMS = {"net": "68.00", "tax": "12.92", "gross": "80.92", "due": "80.92"}
_DOCUMENT = {
    "customer": "acme",
    "type": "invoice",
    "currency": "EUR",
    "date": "2026-02-01",
    **_SUMS,
    "prepaid": "0.00",
    "refers_to": None,
    "lines": [{"line": 1, "subscription": "s1", "charge": "storage", "quantity": "150", "amount": "15.00"}],
    "allowances": [],
    "taxes": [{"category": "S", "percent": "19", "base": "68.00", "amount": "12.92"}],
}
_NEXT = {
    "customer": "acme",
    "up_to": "2026-02-01",
    "as_of": "2026-01-20T10:00:00Z",
    "totals": {"EUR": _SUMS},
    "documents": [_DOCUMENT],
    "parked": None,
}
_CHANGE = {
    "at": "2026-01-20T10:00:00Z",
    "customers": [
        {
            "customer": "acme",
            "up_to": "2026-02-01",
            "before": _NEXT,
            "after": _NEXT,
            "difference": {"EUR": {"net": "10.00", "tax": "1.90", "gross": "11.90", "due": "11.90"}},
            "due_now": {"EUR": {"net": "10.00", "tax": "1.90", "gross": "11.90", "due": "11.90"}},
            "lines": [
                {
                    "subscription": "s1",
                    "charge": "base",
                    "name": "Base",
                    "from": "2026-01-20",
                    "to": "2026-02-01",
                    "when": None,
                    "currency": "EUR",
                    "before": "0.00",
                    "after": "10.00",
                    "difference": "10.00",
                }
            ],
        }
    ],
}


def previews(services: Services) -> Previews:
    return Previews(services.database, services.store, services.masters, services.desk)


def _now_and_master(services: Services, caller: Caller) -> tuple[datetime, int, MasterData]:
    number, master = services.masters.newest(caller.tenant_id)
    with services.database.tenant(caller.tenant_id) as connection:
        return tenant_now(services, connection, caller), number, master


@router.get(
    "/customers/{code:path}/next-invoice",
    summary="Preview the next invoice of a customer",
    **described(answer=_NEXT, also=(404, 422)),
)
def read_next_invoice(
    request: Request,
    code: str,
    up_to: str | None = Query(
        None, max_length=40, description="Day or time up to which is billed; default: when his next period ends."
    ),
    caller: Caller = Depends(may("billing:read")),
) -> Response:
    """The documents that a bill run up to `up_to` would make on the usage and contracts known now, by the engine that
    bills. Stores nothing, takes no number and no credit. `parked` says why there would be none."""
    services: Services = request.app.state.services
    now, number, master = _now_and_master(services, caller)
    master.customer(code)
    moment = _until(up_to, caller, "query:up_to", now)
    found = previews(services).invoice(caller.tenant_id, number, master, code, now, moment)
    return json_response(shown_preview(found, caller.timezone))


def _until(text: Any, caller: Caller, pointer: str, now: datetime) -> datetime | None:
    if text is None:
        return None
    found = day_or_moment(text, caller, pointer)
    moment = found if isinstance(found, datetime) else parse_moment(found.isoformat(), caller.timezone)
    if moment > now + AHEAD_MAX:
        detail = f"at most {AHEAD_MAX.days} days from now"
        raise InvalidInput(f"{pointer}: {detail}", errors=[FieldError(pointer, detail)])
    return moment


@router.post(
    "/previews/change",
    summary="Preview a change: documents before, after, the difference by line, what is due now",
    **described(
        request={"steps": [{"change": examples.CHANGE}], "up_to": None, "customers": None},
        answer=_CHANGE,
        also=(400, 404, 413, 415, 422),
    ),
)
def preview_change(
    request: Request,
    caller: Caller = Depends(may("contracts:read")),
    form: Any = Depends(json_form),
) -> Response:
    """`steps` are those of POST /v1/steps, applied to a copy; here they may lie ahead, too. The customers looked at are
    those that the steps name, or `customers` (then catalog steps show their effect, too). `difference` compares the
    documents up to `up_to` (default: the end of the period that runs after the change), `due_now` those up to the
    moment of the change. Stores nothing."""
    services: Services = request.app.state.services
    form = known_keys(form, ("steps", "customers", "up_to"), ("steps",))
    now, number, master = _now_and_master(services, caller)
    steps = dated_steps(form["steps"], now, caller.timezone)
    changed = master.apply_all(steps, "/steps", fresh=True)
    customers = _customers(form.get("customers"), steps, changed)
    moment = max([now, *(parse_moment(step["at"], caller.timezone) for step in steps)])
    up_to = _until(form.get("up_to"), caller, "/up_to", now)
    found = previews(services).change(caller.tenant_id, number, master, changed, customers, now, moment, up_to)
    body = {"at": rfc3339(moment), "customers": [shown_change(one, caller.timezone) for one in found]}
    return json_response(body)


def dated_steps(value: Any, now: datetime, timezone: str) -> list[dict[str, Any]]:
    """The steps with a time each; every mistake with its place. They may lie ahead, but not without end."""
    if not isinstance(value, list) or not 1 <= len(value) <= STEPS_MAX:
        detail = f"a list of 1 to {STEPS_MAX} steps is needed"
        raise InvalidInput(f"/steps: {detail}", errors=[FieldError("/steps", detail)])
    kinds = CATALOG_STEPS | CONTRACT_STEPS
    errors: list[FieldError] = []
    steps: list[dict[str, Any]] = []
    for place, step in enumerate(value):
        pointer = f"/steps/{place}"
        named = [key for key in step if key != "at"] if isinstance(step, dict) else []
        if len(named) != 1 or named[0] not in kinds or not isinstance(step[named[0]], dict):
            errors.append(FieldError(pointer, f"a step has `at` and one of {', '.join(sorted(kinds))}"))
            continue
        dated = {"at": now.isoformat(), **step}
        try:
            if parse_moment(dated["at"], timezone) > now + AHEAD_MAX:
                errors.append(FieldError(f"{pointer}/at", f"at most {AHEAD_MAX.days} days from now"))
        except TimeInvalid as error:
            errors.append(FieldError(f"{pointer}/at", str(error)))
        steps.append(dated)
    if errors:
        raise InvalidInput(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)
    return steps


def _customers(value: Any, steps: list[dict[str, Any]], changed: MasterData) -> list[str]:
    """Whom to look at: those named, else those that the steps are about."""
    if value is None:
        found = [_customer_of(step, changed) for step in steps]
        codes = list(dict.fromkeys(code for code in found if code))
        if not codes:
            detail = "the steps name no customer: say in `customers` whose documents to look at"
            raise InvalidInput(f"/customers: {detail}", errors=[FieldError("/customers", detail)])
    elif isinstance(value, list) and value and all(isinstance(code, str) for code in value):
        codes = list(dict.fromkeys(value))
    else:
        detail = "a list of customer codes is needed"
        raise InvalidInput(f"/customers: {detail}", errors=[FieldError("/customers", detail)])
    if len(codes) > CUSTOMERS_MAX:
        detail = f"at most {CUSTOMERS_MAX} customers at once"
        raise InvalidInput(f"/customers: {detail}", errors=[FieldError("/customers", detail)])
    for code in codes:
        changed.customer(code)
    return codes


def _customer_of(step: Mapping[str, Any], changed: MasterData) -> str | None:
    kind, code = master_records.subject_of(step)
    if kind == "subscription":
        subscription = changed.subscriptions.get(code)
        return subscription.customer if subscription is not None else None
    if kind == "budget":
        return changed.budgets[code].customer
    return code if kind == "customer" else None


# --- as JSON


def shown_preview(preview: Preview, timezone: str) -> dict[str, Any]:
    return {
        "customer": preview.customer,
        "up_to": local_moment(preview.up_to, timezone),
        "as_of": rfc3339(preview.as_of),
        "totals": plain(totals_of(preview.documents)),
        "documents": [
            {
                **{
                    name: plain(getattr(document, name))
                    for name in (
                        *("customer", "type", "currency", "date", "net", "tax", "gross", "due"),
                        *("prepaid", "refers_to"),
                    )
                },
                **shown_document(document, timezone),
            }
            for document in preview.documents
        ],
        "parked": preview.parked or None,
    }


def shown_change(change: ChangePreview, timezone: str) -> dict[str, Any]:
    return {
        "customer": change.after.customer,
        "up_to": local_moment(change.after.up_to, timezone),
        "before": shown_preview(change.before, timezone),
        "after": shown_preview(change.after, timezone),
        "difference": plain(difference(change.before, change.after)),
        "due_now": plain(difference(change.now_before, change.now_after)),
        "lines": [_shown_line(line, timezone) for line in change.lines],
    }


def difference(before: Preview, after: Preview) -> dict[str, dict[str, Decimal]]:
    """Totals after less totals before, by currency."""
    old, new = totals_of(before.documents), totals_of(after.documents)
    return {
        currency: {
            name: round_amount(
                new.get(currency, {}).get(name, Decimal(0)) - old.get(currency, {}).get(name, Decimal(0)), currency
            )
            for name in ("net", "tax", "gross", "due")
        }
        for currency in sorted(old.keys() | new.keys())
    }


def _shown_line(change: LineChange, timezone: str) -> dict[str, Any]:
    line = change.line
    amounts = {name: round_amount(getattr(change, name), change.currency) for name in ("before", "after", "difference")}
    return {
        "subscription": line.subscription,
        "charge": line.charge,
        "kind": line.kind,
        "name": line.name,
        "plan": line.plan,
        "plan_version": line.plan_version,
        "from": local_moment(line.start, timezone),
        "to": local_moment(line.end, timezone),
        "when": dict(line.when) if line.when is not None else None,
        "correction": line.correction,
        "currency": change.currency,
        **{name: plain(amount) for name, amount in amounts.items()},
    }
