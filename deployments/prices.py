"""POST /v1/prices/preview: what a price would cost, before anything is made of it. The arithmetic is the engine's."""

from typing import Any

from fastapi import APIRouter, Depends
from starlette.responses import Response

from billing.forms import Form, Mistakes
from billing.price_preview import parse_price_asked, preview_price
from deployments.access import Caller, may
from deployments.bodies import json_form
from deployments.manners import described, json_response

router = APIRouter(prefix="/v1", tags=["Catalog"])

_ASKED = {
    "price": {"model": "graduated", "tiers": [{"up_to": "100", "unit": "0.10"}, {"up_to": None, "unit": "0.08"}]},
    "quantity": "150",
    "currency": "EUR",
}
_PREVIEW = {
    "amount": "14.00",
    "exact": "14",
    "quantity": "150",
    "currency": "EUR",
    "tiers": [{"quantity": "100", "amount": "10"}, {"quantity": "50", "amount": "4"}],
}


@router.post(
    "/prices/preview",
    summary="What a price would cost for a quantity, or for some events",
    **described(request=_ASKED, answer=_PREVIEW, also=(400, 413, 415, 422)),
)
def preview(caller: Caller = Depends(may("catalog:read")), form: Any = Depends(json_form)) -> Response:
    """`price`, and if wanted `included`, `minimum`, `maximum`, in the form of a usage charge; `quantity` (default 1) or
    `events` (`value`, and where it matters `id` and `time`). `currency` default: the tenant's; `timezone` likewise.
    `amount` is rounded once to the currency, `exact` is not, `tiers` are the exact parts of graduated and volume
    prices. Nothing is stored."""
    mistakes = Mistakes()
    whole = form if not isinstance(form, dict) else {"currency": caller.currency, "timezone": caller.timezone, **form}
    asked = Form(whole, "", mistakes)
    price = parse_price_asked(asked)
    asked.done()
    mistakes.check()
    found = preview_price(price)
    return json_response(
        {
            "amount": found.amount,
            "exact": found.exact,
            "quantity": found.quantity,
            "currency": found.currency,
            "tiers": [dict(tier) for tier in found.tiers],
        }
    )
