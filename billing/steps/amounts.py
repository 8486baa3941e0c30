"""The check that an amount fits its currency."""

from __future__ import annotations

from decimal import Decimal

from billing.errors import InvalidInput
from billing.forms import Form
from billing.money import minor_digits


def check_amount(form: Form, key: str, amount: Decimal | None, currency: str) -> None:
    try:
        digits = minor_digits(currency)
    except InvalidInput as error:
        form.wrong("currency", error.detail)
        return
    if amount is not None and amount != amount.quantize(Decimal(1).scaleb(-digits)):
        form.wrong(key, f"has more than {digits} decimals, {currency} has no smaller unit")
