"""Price files: single prices with quantities or events, and the amounts expected.

Owns the file's form and the comparison; whoever runs it (this process, or a platform over REST) gives the amounts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from billing.forms import Form, Mistakes
from billing.price_preview import PriceAsked, PricePreview, parse_price_asked, preview_price
from billing.scenario_compare import Difference, equal_numbers, text_of

# Of a case: what is asked, in the form of POST /v1/prices/preview.
ASKED = ("price", "included", "minimum", "maximum", "quantity", "events", "currency", "timezone")


@dataclass(frozen=True)
class PriceCase:
    """One case: its place in the file, what is asked (read, and as given), what is expected."""

    place: str
    name: str
    asked: PriceAsked
    form: Mapping[str, Any]
    amount: str
    tiers: list[Mapping[str, Any]] | None


def read_prices(form: object) -> list[PriceCase]:
    """Read a price file; raises InvalidInput that names every mistake by its place."""
    mistakes = Mistakes()
    cases: list[PriceCase] = []
    for pointer, entry in Form({"cases": form}, "", mistakes).items("cases"):
        one = Form(entry, pointer.removeprefix("/cases"), mistakes)
        name = one.text("case")
        one.text("source", "")
        amount = one.text("amount")
        asked = parse_price_asked(one)
        tiers = None
        if "tiers" in one.fields:
            tiers = [Form(tier, at, mistakes).fields for at, tier in one.items("tiers")]
        one.done()
        given = {key: one.fields[key] for key in ASKED if key in one.fields}
        cases.append(PriceCase(one.pointer, name, asked, given, amount, tiers))
    mistakes.check()
    return cases


def check_prices(
    form: object, price: Callable[[PriceCase], PricePreview] = lambda case: preview_price(case.asked)
) -> list[Difference]:
    """All amounts and tiers that differ; `price` says what there is."""
    found: list[Difference] = []
    for case in read_prices(form):
        preview = price(case)
        if not equal_numbers(case.amount, preview.amount):
            found.append(Difference(f"{case.place}/amount ({case.name})", case.amount, preview.amount))
        if case.tiers is not None:
            expected = [{key: str(value) for key, value in tier.items()} for tier in case.tiers]
            same = len(preview.tiers) == len(expected) and all(
                equal_numbers(other.get(key), one[key])
                for one, other in zip(expected, preview.tiers, strict=True)
                for key in one
            )
            if not same:
                place = f"{case.place}/tiers ({case.name})"
                found.append(Difference(place, text_of(expected), text_of([dict(tier) for tier in preview.tiers])))
    return found
