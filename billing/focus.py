"""Billed and open charges as rows of FOCUS 1.2, the FinOps Foundation's open specification of cost and usage data.

Owns which column says what of our documents; docs/usage-files.md has the table. What FOCUS demands and we cannot say
honestly is not made up: a service's category is "Other" until a tenant names one. Costs are exact decimals.
- The rows of a document add up to what it asks for (`BilledCost` = due): lines, its tax, its allowances, its credit.
- A unit price is stated only where price times quantity is the list cost to the digit. Tiers, percentages and discounts
  have none: such a line is one charge of its amount, and `ConsumedQuantity` says what was used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, localcontext

from billing.documents import Document, Line
from billing.money import decimal_text

VERSION = "1.2"
COLUMNS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
    "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart",
    "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "InvoiceId",
    "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory", "PricingQuantity", "PricingUnit",
    "ProviderName", "PublisherName", "ServiceCategory", "ServiceName", "ServiceSubcategory", "SkuId", "SkuMeter",
    "SkuPriceId", "SubAccountId", "SubAccountName",
)  # fmt: skip
DECIMALS = frozenset({
    "BilledCost", "ConsumedQuantity", "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "ListCost",
    "ListUnitPrice", "PricingQuantity",
})  # fmt: skip
WHOLE = "Charges"  # the unit of what has no price by the unit
UNITS = "Units"  # of a quantity whose meter names none

Row = dict[str, str | None]
_ZERO = Decimal(0)
_ONE = Decimal(1)


@dataclass(frozen=True)
class Account:
    """Who is charged, by whom, in which billing period; `invoice` is the number, None for what is not billed yet."""

    customer: str
    name: str
    issuer: str
    currency: str
    start: datetime
    end: datetime
    invoice: str | None


def document_rows(document: Document, account: Account) -> Iterator[Row]:
    """The rows of one document: their `BilledCost` adds up to what is due of it; of a credit note it is negative."""
    sign = -1 if document.type == "credit_note" else 1
    is_correction = document.type == "credit_note"
    for line in document.lines:
        yield line_row(line, account, sign=sign, is_correction=is_correction or line.correction)
    for allowance in document.allowances:
        name = "Promotional credit" if allowance.kind == "promotional" else "Discount"
        yield _other_row("Credit", name, -sign * allowance.amount, account, is_correction)
    for tax in document.taxes:
        if tax.amount:
            name = f"Tax {decimal_text(tax.percent)} % ({tax.category})"
            yield _other_row("Tax", name, sign * tax.amount, account, is_correction)
    if document.prepaid:
        yield _other_row("Credit", "Prepaid credit", -sign * document.prepaid, account, is_correction)


def line_row(line: Line, account: Account, *, sign: int = 1, is_correction: bool = False) -> Row:
    """One line. `sign` -1 takes it back."""
    billed, listed = sign * line.amount, sign * (line.amount + line.allowance)
    quantity, unit, price, cost = _priced(line, sign)
    if price is None:
        # One charge of this amount: the sign is in the quantity, a price is never negative.
        quantity, unit = (_ONE if listed >= 0 else -_ONE), WHOLE
        price, cost = abs(listed), listed
        contracted, contracted_price = billed, abs(billed) if (billed < 0) == (listed < 0) or not billed else None
    else:
        contracted, contracted_price = cost, price
    category, frequency = _CATEGORIES[line.kind]
    consumed = sign * line.quantity if category == "Usage" else None
    sku = f"{line.plan or 'one-off'}/{line.charge or 'charge'}"
    version = f"{line.plan or 'one-off'}/{line.plan_version}/{line.charge or 'charge'}"
    row = ",".join(f"{name}={value}" for name, value in sorted((line.when or {}).items()))
    is_priced = category in ("Usage", "Purchase")
    return _row(
        account,
        category=category,
        frequency=frequency,
        is_correction=is_correction,
        description=line.name or line.charge or "Charge",
        start=line.start,
        end=line.end,
        billed=billed,
        contracted=contracted,
        listed=cost,
        more={
            "ConsumedQuantity": _text(consumed),
            "ConsumedUnit": None if consumed is None else line.unit or UNITS,
            "ContractedUnitPrice": _text(contracted_price),
            "ListUnitPrice": _text(price),
            "PricingCategory": "Standard" if is_priced else None,
            "PricingQuantity": _text(quantity),
            "PricingUnit": unit,
            "ServiceName": line.plan or line.name or "Charges",
            "SkuId": sku if is_priced else None,
            "SkuMeter": (line.name or line.charge or "Charge") if is_priced else None,
            "SkuPriceId": (f"{version}/{row}" if row else version) if is_priced else None,
            "SubAccountId": line.subscription or None,
            "SubAccountName": line.subscription or None,
        },
    )


_CATEGORIES = {
    "usage": ("Usage", "Usage-Based"),
    "recurring": ("Purchase", "Recurring"),
    "one_off": ("Purchase", "One-Time"),
    "minimum": ("Adjustment", "Recurring"),
}


def _priced(line: Line, sign: int) -> tuple[Decimal, str, Decimal | None, Decimal]:
    """Quantity, unit, unit price and their product, where the line is exactly that before it is rounded."""
    price = line.unit_price
    if price is None or price < 0 or line.allowance or line.gross is not None or not line.quantity:
        return _ZERO, "", None, _ZERO
    with localcontext() as context:
        context.prec = 100
        cost = sign * line.quantity * price
    return sign * line.quantity, line.unit or UNITS, price, cost


def _other_row(category: str, description: str, amount: Decimal, account: Account, is_correction: bool) -> Row:
    """Tax and credit of a whole document: no price, no quantity, every cost is the amount."""
    return _row(
        account,
        category=category,
        frequency="One-Time",
        is_correction=is_correction,
        description=description,
        start=account.start,
        end=account.end,
        billed=amount,
        contracted=amount,
        listed=amount,
        more={"ServiceName": "Taxes" if category == "Tax" else "Credits"},
    )


def _row(
    account: Account,
    *,
    category: str,
    frequency: str,
    is_correction: bool,
    description: str,
    start: datetime,
    end: datetime,
    billed: Decimal,
    contracted: Decimal,
    listed: Decimal,
    more: Row,
) -> Row:
    row: Row = dict.fromkeys(COLUMNS)
    row |= {
        "BilledCost": _text(billed),
        "BillingAccountId": account.customer,
        "BillingAccountName": account.name or account.customer,
        "BillingCurrency": account.currency,
        "BillingPeriodStart": _instant(account.start),
        "BillingPeriodEnd": _instant(account.end),
        "ChargeCategory": category,
        "ChargeClass": "Correction" if is_correction else None,
        "ChargeDescription": description,
        "ChargeFrequency": frequency,
        "ChargePeriodStart": _instant(start),
        "ChargePeriodEnd": _instant(end),
        "ContractedCost": _text(contracted),
        "EffectiveCost": _text(billed),
        "InvoiceId": account.invoice,
        "InvoiceIssuerName": account.issuer,
        "ListCost": _text(listed),
        "ProviderName": account.issuer,
        "PublisherName": account.issuer,
        "ServiceCategory": "Other",
        "ServiceSubcategory": "Other (Other)",
    }
    return row | more


def _text(number: Decimal | None) -> str | None:
    return None if number is None else decimal_text(number)


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- CSV ---------------------------------------------------------------------------------------------------------------

_QUOTED = re.compile('[",\r\n]')
# A spreadsheet takes a cell that begins so for a formula, and runs it. A number is not one.
_FORMULA = re.compile(r"[=+\-@\t\r]")


def csv_line(values: Sequence[str | None]) -> str:
    """A record of RFC 4180. An empty text differs from null: it is quoted."""
    return ",".join(map(_cell, values)) + "\r\n"


def _cell(value: str | None) -> str:
    if value is None:
        return ""
    if value == "" or _QUOTED.search(value):
        return '"' + value.replace('"', '""') + '"'
    return value


def harmless(value: str | None) -> str | None:
    """A text that no spreadsheet takes for a formula: what begins like one gets an apostrophe before it."""
    return f"'{value}" if value and _FORMULA.match(value) else value
