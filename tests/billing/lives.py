"""Short ways to write a customer's life in tests, and to read the documents that come out."""

from __future__ import annotations

from typing import Any

from billing.scenario import document_form, documents_of

TAX = {"code": "vat", "percents": [{"from": "2000-01-01", "percent": "20"}]}
NO_TAX = {"code": "none", "percents": [{"from": "2000-01-01", "percent": "0"}]}
METER = {"code": "n", "event_type": "n", "aggregation": "sum", "value": "v"}


def flat(amount: str, code: str = "base", **more: Any) -> dict[str, Any]:
    return {"code": code, "kind": "recurring", "price": {"model": "flat", "amount": amount}, "tax": "none", **more}


def usage(unit: str = "1", code: str = "n", **more: Any) -> dict[str, Any]:
    price = {"price": {"model": "per_unit", "unit": unit}} if "prices" not in more else {}
    return {"code": code, "kind": "usage", "meter": "n", "tax": "none", **price, **more}


def plan(*charges: dict[str, Any], code: str = "p", **more: Any) -> dict[str, Any]:
    return {"code": code, "currency": "EUR", "interval": "month", "charges": list(charges), **more}


def subscribe(at: str, code: str = "s", plan: str = "p", customer: str = "c", **more: Any) -> dict[str, Any]:
    return {"at": at, "subscribe": {"code": code, "customer": customer, "plan": plan, "anchor": "calendar", **more}}


def run(at: str, up_to: str | None = None) -> dict[str, Any]:
    return {"at": at, "bill_run": {"up_to": up_to or at}}


def used(at: str, *values: tuple[str, str], customer: str = "c", **more: Any) -> dict[str, Any]:
    """A usage step: (time, value) each; ids are made of both."""
    events = [
        {
            "source": "t",
            "id": f"{time}/{value}/{at}",
            "type": "n",
            "customer": customer,
            "time": time,
            "data": {"v": value},
        }
        for time, value in values
    ]
    return {"at": at, "usage": [{**event, **more} for event in events]}


def life(plans: list[dict[str, Any]], timeline: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A scenario with one customer `c` (unless others are given), two tax codes and one meter."""
    tenant = {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE", **more.pop("tenant", {})}
    return {
        "scenario": "test",
        "tenant": tenant,
        "tax_codes": [TAX, NO_TAX],
        "meters": [METER],
        "plans": plans,
        "customers": more.pop("customers", [{"code": "c", "name": "C", "country": "DE", "tax_treatment": "domestic"}]),
        "timeline": timeline,
        **more,
    }


def documents(scenario: dict[str, Any]) -> list[dict[str, Any]]:
    timezone = scenario["tenant"]["timezone"]
    return [document_form(billed.document, timezone) for billed in documents_of(scenario)]


def lines(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """(charge, from, to, quantity, amount) of each line."""
    return [tuple(line[key] for key in ("charge", "from", "to", "quantity", "amount")) for line in document["lines"]]
