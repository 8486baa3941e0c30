"""The rules of FOCUS 1.2 that a dataset of charges can break, as code: written from the specification's text alone.

Source: FinOps-Open-Cost-and-Usage-Spec/FOCUS_Spec, tag v1.2, specification/columns and specification/attributes. A rule
is named by its column. Rules about providers' price lists and about commitment discounts (we have none) are left out.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal

MANDATORY = {  # feature level Mandatory: must be in every dataset
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
    "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost",
    "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName",
    "ServiceCategory", "ServiceName",
}  # fmt: skip
# Conditional columns whose condition holds here: unit prices, negotiated prices, sub accounts, usage.
CONDITIONAL = {
    "ConsumedQuantity", "ConsumedUnit", "ContractedUnitPrice", "ListUnitPrice", "PricingCategory", "SkuId", "SkuMeter",
    "SkuPriceId", "SubAccountId", "SubAccountName",
}  # fmt: skip
NEVER_NULL = {
    "BilledCost", "BillingAccountId", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory",
    "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName",
    "ListCost", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName", "ServiceSubcategory",
}  # fmt: skip
NUMBERS = {
    "BilledCost", "ConsumedQuantity", "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "ListCost",
    "ListUnitPrice", "PricingQuantity",
}  # fmt: skip
INSTANTS = {"BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd"}
ALLOWED = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {"Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {
        "AI and Machine Learning", "Analytics", "Business Applications", "Compute", "Databases", "Developer Tools",
        "Multicloud", "Identity", "Integration", "Internet of Things", "Management and Governance", "Media",
        "Migration", "Mobile", "Networking", "Security", "Storage", "Web", "Other",
    },
}  # fmt: skip
_NUMBER = re.compile(r"-?\d+(\.\d+)?(E-?\d+)?")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_NO_VALUE = {"n/a", "not applicable", "null", "none", "-"}


def read(text: str) -> list[dict[str, str | None]]:
    """The rows of a CSV; an empty cell is null."""
    lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    header = lines[0]
    assert all(len(line) == len(header) for line in lines), "every record has every column"
    return [{name: value or None for name, value in zip(header, line, strict=True)} for line in lines[1:]]


def violations(rows: list[dict[str, str | None]]) -> list[str]:
    """What breaks the specification, as `row: column: rule`."""
    if not rows:
        return []
    columns = set(rows[0])
    found = [f"column {name} has to be present" for name in sorted((MANDATORY | CONDITIONAL) - columns)]
    for number, row in enumerate(rows):
        found += [f"row {number}: {text}" for text in _row(row)]
    skus: dict[str, str] = {}
    for row in rows:
        price, sku = row.get("SkuPriceId"), row.get("SkuId")
        if price and sku and skus.setdefault(price, sku) != sku:
            found.append(f"SkuPriceId {price}: one and only one parent SkuId")
    return found


def _row(row: dict[str, str | None]) -> Iterator[str]:
    for name in NEVER_NULL & row.keys():
        if row[name] is None:
            yield f"{name}: MUST NOT be null"
    for name, value in row.items():
        if value is None:
            continue
        if not value.strip() or value.strip().lower() in _NO_VALUE:
            yield f"{name}: a placeholder stands for null"
        if name in NUMBERS and not _NUMBER.fullmatch(value):
            yield f"{name}: no number of the numeric format: {value}"
        if name in INSTANTS and not _INSTANT.fullmatch(value):
            yield f"{name}: no UTC instant: {value}"
        if name in ALLOWED and value not in ALLOWED[name]:
            yield f"{name}: not an allowed value: {value}"
    currency = row["BillingCurrency"] or ""
    if not re.fullmatch(r"[A-Z]{3}", currency):
        yield "BillingCurrency: ISO 4217"
    for what in ("BillingPeriod", "ChargePeriod"):
        if not _instant(row[f"{what}Start"]) < _instant(row[f"{what}End"]):
            yield f"{what}: start is inclusive, end exclusive"
    yield from _by_category(row)
    yield from _products(row)


def _by_category(row: dict[str, str | None]) -> Iterator[str]:
    category, is_correction = row["ChargeCategory"], row["ChargeClass"] == "Correction"
    is_priced = category in ("Usage", "Purchase") and not is_correction
    for name in ("ListUnitPrice", "ContractedUnitPrice", "PricingQuantity", "PricingCategory", "SkuId", "SkuPriceId"):
        if is_priced and row[name] is None:
            yield f"{name}: MUST NOT be null for {category}"
        if category == "Tax" and row[name] is not None:
            yield f"{name}: MUST be null for Tax"
    if category == "Purchase" and row["ChargeFrequency"] == "Usage-Based":
        yield "ChargeFrequency: MUST NOT be Usage-Based for a Purchase"
    if category != "Usage" and row["ConsumedQuantity"] is not None:
        yield "ConsumedQuantity: MUST be null when not Usage"
    if category == "Usage" and not is_correction and row["ConsumedQuantity"] is None:
        yield "ConsumedQuantity: MUST NOT be null for Usage"
    for quantity, unit in (("ConsumedQuantity", "ConsumedUnit"), ("PricingQuantity", "PricingUnit")):
        if (row[quantity] is None) != (row[unit] is None):
            yield f"{unit}: null exactly where {quantity} is"
    if row["SkuId"] is None and row["SkuMeter"] is not None:
        yield "SkuMeter: MUST be null when SkuId is null"
    if row["SubAccountId"] is None and row["SubAccountName"] is not None:
        yield "SubAccountName: MUST be null when SubAccountId is null"
    if category == "Credit" and row["EffectiveCost"] != row["BilledCost"]:
        yield "EffectiveCost: of a Credit MUST match BilledCost"
    if category in ("Tax", "Credit"):
        for name in ("ContractedCost", "ListCost"):
            if row[name] != row["BilledCost"]:
                yield f"{name}: without a unit price MUST match BilledCost"


def _products(row: dict[str, str | None]) -> Iterator[str]:
    quantity = row["PricingQuantity"]
    for price, cost in (("ListUnitPrice", "ListCost"), ("ContractedUnitPrice", "ContractedCost")):
        if (text := row[price]) is None:
            continue
        if Decimal(text) < 0:
            yield f"{price}: MUST be non-negative"
        if quantity is not None and row["ChargeClass"] is None:
            total = row[cost]
            if total is None or Decimal(text) * Decimal(quantity) != Decimal(total):
                yield f"{cost}: {price} x PricingQuantity MUST match it"


def _instant(text: str | None) -> datetime:
    return datetime.fromisoformat((text or "1970-01-01T00:00:00Z").replace("Z", "+00:00"))
