"""Reconciliation: our charge beside the provider's, row by row and in sum, every difference with its reason.

Takes what was priced (exact, per event) and what the provider states; gives a report in which
`exact_total + sum of (list_cost - ours) = list_cost_total` holds to the last digit, and the invoices' net equals
the exact total plus a stated rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

# Providers print quantity and cost with about ten decimals: one unit of the last place, of each.
LAST_PLACE = Decimal("1e-10")
BLOCKS = tuple(10**power for power in range(1, 10))


@dataclass(frozen=True)
class PricedRow:
    """One row of the provider's file: `unit_price` is None where the row has no price and its amount was taken.

    `note` says why a row was not charged at all (suspended, rejected, said twice); then `ours` is 0.
    """

    id: str
    quantity: Decimal | None
    unit_price: Decimal | None
    ours: Decimal
    list_cost: Decimal
    note: str = ""


def reason(row: PricedRow) -> str:
    """Why our exact charge and the provider's ListCost differ; the first that explains the size of the gap."""
    if row.note:
        return row.note
    gap = abs(row.ours - row.list_cost)
    if row.unit_price is not None and gap <= LAST_PLACE * (1 + abs(row.unit_price)):
        return "rounding: the provider prints quantity and cost with 10 decimals"
    if row.ours and row.list_cost:
        for block in BLOCKS:
            if abs(row.ours * block - row.list_cost) <= LAST_PLACE * block * (1 + abs(row.unit_price or 0)):
                return f"block: the provider's quantity counts blocks of {block:,}, its price is per unit"
            if abs(row.ours - row.list_cost * block) <= LAST_PLACE * block * (1 + abs(row.unit_price or 0)):
                return f"block: the provider's price is per block of {block:,}, its quantity counts units"
    if not row.list_cost:
        return "free: the provider states a price but charged nothing"
    return "other: the provider's ListCost is not its ListUnitPrice x PricingQuantity"


def differences(rows: Sequence[PricedRow]) -> list[dict[str, str]]:
    """Every row whose charge is not the provider's to the last digit, largest gap first."""
    apart = [row for row in rows if row.ours != row.list_cost]
    apart.sort(key=lambda row: (-abs(row.ours - row.list_cost), row.id))
    return [
        {"id": row.id, "ours": text(row.ours), "list_cost": text(row.list_cost), "reason": reason(row)} for row in apart
    ]


def report(
    rows: Sequence[PricedRow], *, counts: dict[str, int], invoices: Sequence[dict[str, Any]], exact_of_lines: Fraction
) -> dict[str, Any]:
    """The whole report; amounts as exact strings. `invoices` state `net` signed (a credit note is negative)."""
    exact_total = sum((row.ours for row in rows), Decimal(0))
    list_total = sum((row.list_cost for row in rows), Decimal(0))
    apart = differences(rows)
    gaps = sum((Decimal(gap["list_cost"]) - Decimal(gap["ours"]) for gap in apart), Decimal(0))
    net = sum((Decimal(invoice["net"]) for invoice in invoices), Decimal(0))
    checks = {
        "exact_total + differences = list_cost_total": exact_total + gaps == list_total,
        "sum of rows = sum of invoice lines, exact": Fraction(exact_total) == exact_of_lines,
        "accepted + suspended + duplicates + rejected = rows": counts["accepted"] + counts["suspended"]
        + counts["duplicates"] + counts["rejected"] == counts["rows"],
    }  # fmt: skip
    return {
        **counts,
        "invoices": list(invoices),
        "exact_total": text(exact_total),
        "list_cost_total": text(list_total),
        "difference_total": text(gaps),
        "invoiced_net": text(net),
        "rounding": text(net - exact_total),
        "differences": apart,
        "checks": checks,
    }


def text(amount: Decimal) -> str:
    """Exact, without an exponent, without trailing zeros."""
    plain = format(amount, "f")
    return (plain.rstrip("0").rstrip(".") if "." in plain else plain) or "0"
