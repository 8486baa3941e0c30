"""Who used most: against events added up one by one, in every grouping; what cannot be asked is refused."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from billing.errors import InvalidInput
from billing.live_state import LiveState, fold_days, nothing_used
from billing.master import MasterData
from billing.usage import EVENT_SCHEMA
from pipelines.usage_ranking import Question, ranking

FIRST, LAST = date(2026, 1, 10), date(2026, 1, 19)
SEED = 20_261_126


def master(aggregation: str = "sum") -> MasterData:
    meters = [
        {"code": "n", "event_type": "n", "aggregation": aggregation, "value": "v"},
        {"code": "l", "event_type": "l", "aggregation": "time_weighted_sum", "value": "v"},
    ]
    if aggregation == "count":
        del meters[0]["value"]
    charge: dict[str, Any] = {"code": "n", "kind": "usage", "meter": "n", "tax": "none", "price_by": ["region"]}
    charge["prices"] = [
        {"when": {"region": "eu"}, "price": {"model": "per_unit", "unit": "1"}},
        {"price": {"model": "per_unit", "unit": "2"}},
    ]
    tax = {"code": "none", "percents": [{"from": "2000-01-01", "percent": "0"}]}
    plan = {"code": "p", "currency": "EUR", "interval": "month", "charges": [charge]}
    steps: list[dict[str, Any]] = [{"tax_code": tax}, *({"meter": one} for one in meters), {"publish": {"plan": plan}}]
    steps += [{"customer": {"code": code, "keys": [f"{code}-other"]}} for code in ("a", "b", "c")]
    steps += [{"at": "2026-01-01", "subscribe": {"code": "s1", "customer": "a", "plan": "p", "anchor": "calendar"}}]
    form = {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"}
    return MasterData.start(form).apply_all(steps)


def events(seed: int) -> list[dict[str, Any]]:
    chosen = random.Random(seed)
    start = datetime(2026, 1, 8, tzinfo=UTC)
    return [
        {
            "source": "t",
            "id": str(number),
            "type": "n",
            "customer": chosen.choice(["a", "b", "c", "a-other", "c-other"]),
            "subscription": chosen.choice([None, "s1", "s2"]),
            "time": start + timedelta(minutes=chosen.randrange(14 * 24 * 60)),
            "data": json.dumps({"v": f"{chosen.randrange(-50, 400)}.{chosen.randrange(100):02}",
                                "region": chosen.choice(["eu", "us", "ap"])}),
        }
        for number in range(400)
    ]  # fmt: skip


def folded(whole: MasterData, rows: list[dict[str, Any]]) -> LiveState:
    return fold_days(pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row"), whole.rating_book())


def local_day(row: dict[str, Any]) -> str:
    return (row["time"] + timedelta(hours=1)).date().isoformat()  # Berlin in winter


GROUPS: dict[str, Callable[[dict[str, Any]], str]] = {
    "customer": lambda row: row["customer"].removesuffix("-other"),
    "subscription": lambda row: row["subscription"] or "",
    "day": local_day,
    "dimension:region": lambda row: json.loads(row["data"])["region"],
}


@pytest.mark.parametrize("by", GROUPS)
@pytest.mark.parametrize("lowest", [False, True])
@pytest.mark.parametrize("aggregation", ["sum", "count", "max"])
def test_it_is_what_adding_up_one_by_one_gives(by: str, lowest: bool, aggregation: str) -> None:
    print(f"seed {SEED}")
    whole, rows = master(aggregation), events(SEED)
    within = [row for row in rows if FIRST.isoformat() <= local_day(row) <= LAST.isoformat()]
    assert 0 < len(within) < len(rows)
    counts = Counter(GROUPS[by](row) for row in within)
    values = {group: [Decimal(json.loads(row["data"])["v"]) for row in within if GROUPS[by](row) == group]
              for group in counts}  # fmt: skip
    sums = {
        group: {"sum": sum(of, Decimal(0)), "count": Decimal(len(of)), "max": max(of)}[aggregation]
        for group, of in values.items()
    }
    expected = sorted(sums, key=lambda group: (sums[group] if lowest else -sums[group], group))[:2]
    found = ranking(whole, folded(whole, rows), Question("n", by, FIRST, LAST, 2, lowest=lowest))
    assert [(one.group, one.events, one.quantity) for one in found.items] == [
        (group, counts[group], sums[group]) for group in expected
    ]
    assert (found.groups, found.events) == (len(counts), len(within))
    assert found.quantity == (None if aggregation == "max" else sum(sums.values()))


def test_beyond_the_digits_of_a_column_it_stays_exact() -> None:
    whole, rows = master(), events(SEED)[:3]
    huge = "99999999999999999999999999.5"
    for row, customer in zip(rows, ("a", "a", "b"), strict=True):
        row["customer"], row["data"] = customer, json.dumps({"v": huge if customer == "a" else "1"})
        row["time"] = datetime(2026, 1, 12, tzinfo=UTC)
    found = ranking(whole, folded(whole, rows), Question("n", "customer", FIRST, LAST))
    assert [(one.group, one.quantity) for one in found.items] == [("a", 2 * Decimal(huge)), ("b", Decimal(1))]
    assert found.quantity == 2 * Decimal(huge) + 1


def test_nothing_used_is_an_empty_answer() -> None:
    whole = master()
    found = ranking(whole, nothing_used(whole.rating_book()), Question("n", "customer", FIRST, LAST))
    assert (found.items, found.groups, found.events, found.quantity) == ((), 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"meter": "x"}, "there is no meter 'x'"),
        ({"meter": "l"}, "a level"),
        ({"by": "country"}, "customer, subscription, day"),
        ({"by": "dimension:v"}, "ask for these dimensions: region"),
        ({"limit": 1_001}, "from 1 to 1000"),
        ({"last": date(2026, 1, 9)}, "not before"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(change: dict[str, Any], words: str) -> None:
    whole = master()
    asked = Question(**{"meter": "n", "by": "customer", "first": FIRST, "last": LAST, **change})
    with pytest.raises(InvalidInput, match=words):
        ranking(whole, nothing_used(whole.rating_book()), asked)
