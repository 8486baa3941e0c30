"""How many customers are due by contract: the same as who gets lines when nobody used anything but fees are owed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from billing.customers_due import CustomersDue, customers_due
from billing.master import MasterData

JANUARY_ENDS = datetime(2026, 1, 31, 23, tzinfo=UTC)
DAY_BEFORE = datetime(2026, 1, 30, 23, tzinfo=UTC)


def charge(code: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"code": code, "kind": kind, "tax": "standard", "price": {"model": "flat", "amount": "5"}} | more


USAGE = charge("disk", "usage", meter="disk", price={"model": "per_unit", "unit": "0.1"})


AD_HOC = {"customer": "a", "code": "goodwill", "amount": "5", "tax": "standard"}


def plan(code: str, *charges: dict[str, Any], **more: Any) -> dict[str, Any]:
    form = {"code": code, "currency": "EUR", "interval": "month", "charges": list(charges)}
    return {"publish": {"plan": form | more}}


def master(*steps: dict[str, Any], at: str = "2026-01-01") -> MasterData:
    catalog = [
        {"tax_code": {"code": "standard", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
        {"meter": {"code": "disk", "event_type": "disk", "aggregation": "sum", "value": "gb"}},
        plan("arrears", charge("fee", "recurring", timing="arrears")),
        plan("advance", charge("fee", "recurring", timing="advance")),
        plan("metered", USAGE),
        plan("least", USAGE, minimum="10"),
        plan("yearly", charge("fee", "recurring", timing="arrears"), interval="year"),
    ]
    form = {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE", "kind": "test", "code": "t"}
    return MasterData.start(form).apply_all([{"at": at, **step} for step in (*catalog, *steps)])


def customer(code: str, *plans: str, **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"customer": {"code": code, "name": code, "country": "DE", **more}}]
    for name in plans:
        one = {"code": f"{code}-{name}", "customer": code, "plan": name, "anchor": "calendar"}
        found.append({"subscribe": one})
    return found


@pytest.mark.parametrize(
    ("steps", "up_to", "count"),
    [
        (customer("a", "arrears"), JANUARY_ENDS, 1),
        (customer("a", "arrears"), DAY_BEFORE, 0),
        (customer("a", "advance"), DAY_BEFORE, 1),
        (customer("a", "metered"), JANUARY_ENDS, 1),  # nobody knows yet whether there is usage
        (customer("a", "metered"), DAY_BEFORE, 0),
        (customer("a", "least"), JANUARY_ENDS, 1),  # one by one: a plan's minimum
        (customer("a", "least"), DAY_BEFORE, 0),
        (customer("a", "yearly"), JANUARY_ENDS, 0),
        (customer("a", "yearly", "arrears"), JANUARY_ENDS, 1),
        (customer("a"), JANUARY_ENDS, 0),
        ([*customer("a", "arrears"), *customer("b", "arrears", payer="a")], JANUARY_ENDS, 2),
        (
            [*customer("a"), {"ad_hoc": {"customer": "a", "code": "goodwill", "amount": "5", "tax": "standard"}}],
            DAY_BEFORE,
            1,
        ),
    ],
)
def test_who_owes_something_by_contract_is_counted(steps: list[dict[str, Any]], up_to: datetime, count: int) -> None:
    codes = sorted({step["customer"]["code"] for step in steps if "customer" in step})
    assert customers_due(master(*steps), codes, up_to) == CustomersDue(count, exact=True)


def test_what_a_final_run_covers_is_not_due_again() -> None:
    steps = [*customer("a", "arrears"), *customer("b", "least"), *customer("c", "metered")]
    known = master(*steps)
    run = {"id": "r", "up_to": JANUARY_ENDS.isoformat(), "steps": known.step_count, "parked": ["c"], "cut": {"0": 1}}
    after = known.apply_all([{"at": "2026-02-01", "bill_run": run}])
    codes = ["a", "b", "c"]
    assert customers_due(known, codes, JANUARY_ENDS).count == 3
    assert customers_due(after, codes, JANUARY_ENDS).count == 1, "c was parked"
    assert customers_due(after, codes, datetime(2026, 2, 28, 23, tzinfo=UTC)).count == 3


def test_of_many_a_part_is_looked_at_and_the_whole_is_reckoned() -> None:
    steps = [step for place in range(30) for step in customer(f"c{place:02}", "arrears" if place >= 10 else "yearly")]
    codes = [f"c{place:02}" for place in range(30)]
    known = master(*steps)
    assert customers_due(known, codes, JANUARY_ENDS) == CustomersDue(20, exact=True)
    # Every 5th: c00, c05 ... c25, of which the first two owe nothing yet.
    assert customers_due(known, codes, JANUARY_ENDS, most=6) == CustomersDue(20, exact=False)
    assert customers_due(known, codes[9:12], JANUARY_ENDS, most=2) == CustomersDue(2, exact=False), "1.5, rounded up"
    assert customers_due(known, [], JANUARY_ENDS) == CustomersDue(0, exact=True)
