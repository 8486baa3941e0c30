"""Thresholds of a budget: a percent of its amount, or an amount of its currency.

Owns how one is written: `"50"` and `{"amount": "40"}` in forms, `50` and `amount:40` where it is part of a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal, cast

from billing.money import decimal_text

_AMOUNT = "amount:"


@dataclass(frozen=True)
class Threshold:
    value: Decimal
    kind: Literal["percent", "amount"] = "percent"

    def limit(self, amount: Decimal) -> Fraction:
        """What must be spent of a budget of that amount."""
        return Fraction(self.value) if self.kind == "amount" else Fraction(amount) * Fraction(self.value) / 100

    @property
    def text(self) -> str:
        """Part of an alert's name: the same for ever."""
        return f"{_AMOUNT if self.kind == 'amount' else ''}{decimal_text(self.value)}"

    @property
    def form(self) -> str | dict[str, str]:
        """As in the step that sets the budget."""
        return {"amount": decimal_text(self.value)} if self.kind == "amount" else decimal_text(self.value)

    @classmethod
    def of_text(cls, text: str) -> Threshold:
        if text.startswith(_AMOUNT):
            return cls(Decimal(text.removeprefix(_AMOUNT)), "amount")
        return cls(Decimal(text))

    @classmethod
    def of_form(cls, form: object) -> Threshold:
        """Of one that `form` gave."""
        if isinstance(form, Mapping):
            return cls(Decimal(str(cast(Mapping[str, object], form)["amount"])), "amount")
        return cls(Decimal(str(form)))
