"""Examples of the API: what goes in and comes out, shown at every route of /openapi.json. Read by people first."""

from typing import Any

EVENT = {
    "source": "gateway-7",
    "id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "type": "storage.write",
    "customer": "acme",
    "time": "2026-01-20T09:59:00+01:00",
    "data": {"gb": "1.25", "region": "eu-central"},
}
CLOUD_EVENT = {
    "specversion": "1.0",
    "source": "gateway-7",
    "id": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11",
    "type": "storage.write",
    "subject": "acme",
    "time": "2026-01-20T09:59:00+01:00",
    "data": {"gb": "1.25"},
}
USAGE_BODIES: dict[str, Any] = {
    "application/json": [EVENT],
    "application/x-ndjson": '{"source":"gateway-7","id":"e1","type":"storage.write","customer":"acme",'
    '"time":"2026-01-20T09:59:00+01:00","data":{"gb":"1.25"}}\n',
    "application/cloudevents+json": CLOUD_EVENT,
    "application/cloudevents-batch+json": [CLOUD_EVENT],
}
USAGE_ANSWER = {
    "received": 3,
    "accepted": 1,
    "duplicates": 0,
    "suspended": 1,
    "rejected": 1,
    "events": [
        {"position": 1, "verdict": "accepted"},
        {"position": 2, "verdict": "suspended"},
        {"position": 3, "verdict": "rejected"},
    ],
    "errors": [
        {"position": 2, "id": "e2", "reason": "unknown_customer", "verdict": "suspended"},
        {
            "position": 3,
            "reason": "invalid_time",
            "detail": "time must be like 2026-01-31T12:00:00+01:00, with an offset, from 1900 to 9999",
            "pointer": "/time",
            "id": "e3",
            "verdict": "rejected",
        },
    ],
}
TAX_CODE = {"code": "standard", "percents": [{"from": "2021-01-01", "percent": "19"}]}
METER = {"code": "storage", "event_type": "storage.write", "aggregation": "sum", "value": "gb"}
PLAN = {
    "code": "basic",
    "currency": "EUR",
    "interval": "month",
    "charges": [
        {
            "code": "base",
            "kind": "recurring",
            "timing": "advance",
            "price": {"model": "flat", "amount": "31.00"},
            "tax": "standard",
        },
        {
            "code": "storage",
            "kind": "usage",
            "meter": "storage",
            "tax": "standard",
            "price": {
                "model": "graduated",
                "tiers": [{"up_to": "100", "unit": "0.10"}, {"up_to": None, "unit": "0.08"}],
            },
        },
    ],
}
CUSTOMER = {
    "code": "acme",
    "name": "ACME GmbH",
    "country": "DE",
    "tax_treatment": "domestic",
    "address": {"street": "Hauptstraße 1", "post_code": "10115", "city": "Berlin"},
}
SUBSCRIPTION = {
    "code": "s1",
    "customer": "acme",
    "plan": "basic",
    "anchor": "calendar",
    "quantities": {"base": "1"},
    "discounts": [],
}
BUDGET = {
    "code": "b1",
    "customer": "acme",
    "amount": "500.00",
    "period": "month",
    "thresholds": ["50", "100"],
    "action": "notify",
}
TOP_UP = {"customer": "acme", "amount": "100.00", "kind": "purchased"}
CHANGE = {"subscription": "s1", "plan": "premium", "when": "period_end"}
QUANTITY = {"subscription": "s1", "charge": "base", "quantity": "5"}
OVERRIDE = {"subscription": "s1", "charge": "storage", "price": {"model": "per_unit", "unit": "0.07"}}
CANCEL = {"subscription": "s1", "when": "period_end", "refund_unused": True}
PAUSE = {"subscription": "s1"}
REFERENCES = {
    "subscription": "s1",
    "order_reference": "4500118273",
    "cost_centre": "K-7",
    "leitweg_id": "04011000-1234512345-06",
}
ADD_ON = {
    "subscription": "s1",
    "code": "backup",
    "plan": "basic",
    "end": "2036-12-31",
    "quantities": {"base": "2"},
    "discounts": [{"percent": "10"}],
}
REMOVE_ADD_ON = {"subscription": "s1", "code": "backup", "when": "period_end", "refund_unused": True}
AD_HOC = {
    "customer": "acme",
    "code": "setup-help",
    "name": "Help with the set-up",
    "amount": "50.00",
    "tax": "standard",
}
STEPS = [
    {"at": "2026-01-10", "tax_code": TAX_CODE},
    {"at": "2026-01-10", "customer": {"code": "acme", "name": "ACME GmbH", "country": "DE"}},
]
STEPS_ANSWER = {"steps": 2, "first_step": 41, "last_step": 42, "master": 812}


def record(form: dict[str, Any]) -> dict[str, Any]:
    """A stored thing as the API shows it."""
    return {"code": form["code"], "version": 1, "form": form}


def listed(item: Any) -> dict[str, Any]:
    return {"items": [item], "next_cursor": None}


def history(kind: str, form: dict[str, Any]) -> dict[str, Any]:
    entry = {
        "step": 41,
        "master": 812,
        "kind": kind,
        "form": form,
        "before": None,
        "after": form["plan"] if kind == "publish" else form,
        "actor": "key cb_k3vYq0hGx",
        "changed_at": "2026-01-10T08:00:00Z",
    }
    return {"items": [entry]}
