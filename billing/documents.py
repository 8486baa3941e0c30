"""Billing documents as values: what a bill run makes, a number is given to, and a layout draws.

Amounts are `Decimal` in major currency units, already rounded to the currency's minor unit; quantities have at most
12 decimals. Periods are half-open instants `[start, end)` in UTC. Nothing here computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

DocumentType = Literal["invoice", "credit_note"]
TaxCategory = Literal["S", "Z", "E", "AE", "K", "G", "O"]


@dataclass(frozen=True)
class Corrects:
    """The line that a correction or credit line takes back or changes."""

    document: str  # number, or the scenario's document number as text
    line: int


@dataclass(frozen=True)
class Line:
    """One invoice line. EN 16931: BT-126 number, BT-129 quantity, BT-131 amount, BT-151/152 tax."""

    subscription: str
    charge: str
    start: datetime
    end: datetime
    quantity: Decimal
    amount: Decimal  # net, after this line's percent discount
    tax_category: TaxCategory
    tax_percent: Decimal
    kind: Literal["one_off", "recurring", "usage", "minimum"] = "usage"
    allowance: Decimal = Decimal(0)  # percent discount of the line; amount + allowance = gross of discount
    when: Mapping[str, str] | None = None  # the row of `price_by`
    plan: str = ""
    plan_version: int = 1
    tax_code: str = ""
    name: str = ""  # what the customer reads, of the charge
    unit: str = ""  # of the quantity, as the meter or charge names it
    unit_price: Decimal | None = None  # where quantity x unit_price = amount + allowance before rounding
    correction: bool = False
    corrects: Corrects | None = None
    explanation: Mapping[str, Any] = field(default_factory=dict[str, Any])  # tiers, proration, rounding, events
    step: int = 0  # the master step that began what is billed here: it tells pieces with the same start apart


@dataclass(frozen=True)
class Allowance:
    """A document level allowance of one tax group (BG-20)."""

    kind: Literal["discount", "promotional"]
    amount: Decimal
    tax_category: TaxCategory
    tax_percent: Decimal
    source: str = ""  # which discount (`subscription/1`): the parts of one allowance over several tax groups share it


@dataclass(frozen=True)
class TaxTotal:
    """One row of the tax table (BG-23): tax of the group's base, rounded once."""

    category: TaxCategory
    percent: Decimal
    base: Decimal
    amount: Decimal


@dataclass(frozen=True)
class Document:
    """An invoice or credit note of one customer in one currency, without its number."""

    customer: str
    type: DocumentType
    currency: str
    date: date  # local day of the tenant
    lines: tuple[Line, ...]
    allowances: tuple[Allowance, ...]
    taxes: tuple[TaxTotal, ...]
    net: Decimal
    tax: Decimal
    gross: Decimal
    due: Decimal
    prepaid: Decimal = Decimal(0)
    refers_to: str | None = None
