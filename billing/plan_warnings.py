"""What is allowed in a plan but is seldom meant: prices that are never used, shares above the whole.

Owns warnings only, each with its place in the form; what is wrong is refused by `billing/catalog.py`. Where several
rows or bands fit the first one wins (docs/rules.md, Prices), so one that stands behind a wider one never does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from billing.catalog import MINUTES_OF_DAY, Band, Bands, Charge, Percentage, Plan, PriceRow
from billing.errors import FieldError

WARNINGS_MAX = 100
WEEK = 7 * MINUTES_OF_DAY


def plan_warnings(plan: Plan, pointer: str = "") -> list[FieldError]:
    """At most 100 warnings about all charges of all phases."""
    found = (one for place, charge in plan.versions_of_charges for one in _of_charge(charge, f"{pointer}/{place}"))
    return list(islice(found, WARNINGS_MAX))


def _of_charge(charge: Charge, at: str) -> Iterator[FieldError]:
    for place, earlier in hidden_rows(charge.prices):
        yield FieldError(f"{at}/prices/{place}", f"is never used: row {earlier} above takes all of its usage")
    for number, row in enumerate(charge.rows):
        inside = "price" if charge.price is not None else f"prices/{number}/price"
        if isinstance(row.price, Percentage) and row.price.percent > 100:
            yield FieldError(f"{at}/{inside}/percent", "is more than the whole: right for cost and a margin on it")
        if isinstance(row.price, Bands):
            for band in hidden_bands(row.price.bands):
                yield FieldError(f"{at}/{inside}/bands/{band}", "is never used: bands above cover all of its hours")


def hidden_rows(rows: Sequence[PriceRow]) -> Iterator[tuple[int, int]]:
    """(row, the first earlier row that takes all of it): one whose conditions are all among the row's own."""
    known: dict[tuple[str, ...], dict[tuple[str, ...], int]] = {}  # by names of dimensions, then by their values
    for place, row in enumerate(rows):
        values = dict(row.when)
        earlier = [
            seen[wanted]
            for names, seen in known.items()
            if all(name in values for name in names) and (wanted := tuple(values[name] for name in names)) in seen
        ]
        if earlier:
            yield place, min(earlier)
        names = tuple(sorted(values))
        known.setdefault(names, {}).setdefault(tuple(values[name] for name in names), place)


def hidden_bands(bands: Sequence[Band]) -> Iterator[int]:
    """Bands whose hours are all in earlier ones, on every day of theirs. A minute of the week is a bit."""
    covered = 0
    for place, band in enumerate(bands):
        own = _minutes(band)
        if not own & ~covered:
            yield place
        covered |= own


def _minutes(band: Band) -> int:
    length = band.end - band.start if band.end > band.start else band.end + MINUTES_OF_DAY - band.start
    found = 0
    for day in band.days or range(7):
        found |= ((1 << length) - 1) << (day * MINUTES_OF_DAY + band.start)
    return (found & ((1 << WEEK) - 1)) | (found >> WEEK)  # what runs beyond Sunday is on Monday
