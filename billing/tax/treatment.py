"""Which tax group a line belongs to: the category by the customer's treatment, the percent by the tax code and date.

Rates are data of the tenant (tax codes with percents by date); this module only says which one counts.
Source: docs/rules.md, Tax; categories as in EN 16931 (BT-151).
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal

from billing.catalog import TaxCode
from billing.documents import TaxCategory
from billing.errors import InvalidInput
from billing.periods import local_date

CATEGORY_OF_TREATMENT: dict[str, TaxCategory] = {
    "reverse_charge": "AE",
    "intra_community": "K",
    "export": "G",
    "exempt": "E",
    "outside_scope": "O",
}
ZERO = Decimal(0)


def tax_point(start: datetime, end: datetime) -> datetime:
    """The last moment of the period, just before its end; of something done once, its own time."""
    return start if start >= end else end - timedelta(microseconds=1)


def percent_on(code: TaxCode, day: date) -> Decimal:
    """The percent in force on a local day; raises InvalidInput where the code has none yet."""
    found = code.percent_on(day)
    if found is None:
        raise InvalidInput(f"tax code {code.code!r} has no percent for {day}", tax_code=code.code)
    return found


def tax_group(code: TaxCode, treatment: str, point: datetime, timezone: str) -> tuple[TaxCategory, Decimal]:
    """Category and percent of a line. A percent of zero for a domestic customer is category Z."""
    if treatment != "domestic":
        return CATEGORY_OF_TREATMENT[treatment], ZERO
    percent = percent_on(code, local_date(point, timezone))
    return ("S" if percent else "Z"), percent
