"""What is settled at once can be rated by every other way of asking, too; and the usual event is settled."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.catalog_forms import parse_charge, parse_meter
from billing.few_events import EVENTS_MAX
from billing.quick_verdicts import quick_verdicts_of
from billing.rating_book import CONTRACTS_SCHEMA, KEYS_SCHEMA, PAUSES_SCHEMA, RatingBook
from billing.typed_columns import with_typed
from billing.usage import EVENT_SCHEMA
from billing.verdicts import classify, classify_columns

NOW = datetime(2026, 3, 20, tzinfo=UTC)
START = datetime(2026, 3, 1, tzinfo=UTC)
METERS = [
    {"code": "sum", "event_type": "call", "aggregation": "sum", "value": "n"},
    {"code": "max", "event_type": "call", "aggregation": "max", "value": "n"},
    {"code": "two", "event_type": "pair", "aggregation": "sum", "value": "m"},
    {"code": "both", "event_type": "pair", "aggregation": "sum", "value": "n"},
    {"code": "ping", "event_type": "ping", "aggregation": "count"},
    {"code": "users", "event_type": "user", "aggregation": "unique_count", "value": "user"},
    {"code": "eu", "event_type": "filtered", "aggregation": "sum", "value": "n", "filter": {"region": ["eu"]}},
    {"code": "rows", "event_type": "rowed", "aggregation": "sum", "value": "n"},
    {"code": "value", "event_type": "valued", "aggregation": "sum", "value": "n"},
]
PER_UNIT = {"model": "per_unit", "unit": "1"}


def charge(meter: str, **more: Any) -> Any:
    form = {"code": meter, "kind": "usage", "meter": meter, "tax": "t", **(more or {"price": PER_UNIT})}
    return parse_charge(form)


def book(**changes: Any) -> RatingBook:
    rowed = {"price_by": ["region"], "prices": [{"when": {"region": "eu"}, "price": PER_UNIT}]}
    charges = (
        *(charge(meter["code"]) for meter in METERS[:-2]),
        charge("rows", **rowed),
        charge("value", price={"model": "event_amount", "property": "eur"}),
    )
    contracts = pl.DataFrame([("acme", "s1", START, None, 0)], schema=CONTRACTS_SCHEMA, orient="row")
    keys = pl.DataFrame({"key": ["acme", "sim-1", "slow"], "customer": ["acme", "acme", "slow"]}, schema=KEYS_SCHEMA)
    meters = tuple(parse_meter(meter) for meter in METERS)
    pauses = pl.DataFrame([("slow", "s2", 0, START, NOW + timedelta(days=9))], schema=PAUSES_SCHEMA, orient="row")
    return RatingBook(meters, keys, contracts, (charges,), pauses=pauses, **changes)


def frame(rows: list[tuple[str, str, str | None, str, datetime]]) -> pl.DataFrame:
    names = ("customer", "type", "subscription", "data", "time")
    return pl.DataFrame(
        [{"source": "s", "id": str(place), **dict(zip(names, row, strict=True))} for place, row in enumerate(rows)],
        schema=EVENT_SCHEMA,
    )


DATA = [
    '{"n":"1"}',
    '{"n": 12.5, "m":"-3"}',
    '{"m":"1","n":"2"}',
    '{"n":"many"}',
    '{"n":""}',
    '{"n":null}',
    '{"n":true}',
    '{"n":1e3}',
    '{"n":"0.1234567890123"}',
    '{"n":"1234567890123456789012345678"}',
    '{"n":["1"]}',
    '{"x":{"n":"1"}}',
    '{"x":["n",":","1"],"y":"n"}',
    '{"n":"x","n":"1"}',
    '{"n":"1","n":"x"}',
    '{"x":"\\",\\"n\\":\\"1\\",\\"","y":"z"}',
    '{"x":"{","n":"1"}',
    '{"n":"１"}',
    '{"user":"ann"}',
    '{"user":""}',
    '{"user":5}',
    '{"user":null}',
    '{"N":"1"}',
    '{"n" : "1" , "region":"eu","eur":"1"}',
    "{}",
]
ROWS = st.tuples(
    st.sampled_from(["acme", "sim-1", "slow", "nobody", ""]),
    st.sampled_from(["call", "pair", "ping", "user", "filtered", "rowed", "valued", "unknown"]),
    st.sampled_from([None, "s1", "s9"]),
    st.sampled_from(DATA),
    st.sampled_from([START, NOW, NOW + timedelta(hours=1), NOW + timedelta(hours=1, microseconds=1)]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=40), st.booleans())
def test_what_is_settled_is_in_suspense_for_no_reason(rows: list[Any], rejects: bool) -> None:
    events, asked = frame(rows), book(rejects_late=rejects)
    expected = classify_columns(events, asked, NOW)
    quick = quick_verdicts_of(asked)
    typed = with_typed(events, asked.reads)
    for frame_ in (events, typed, *(typed[place] for place in range(events.height))):
        unsettled = set(quick.unsettled(frame_, NOW).tolist())
        reasons = expected if frame_.height == events.height else classify_columns(frame_, asked, NOW)
        for place, reason in enumerate(reasons.to_list()):
            assert place in unsettled or reason is None, rows[place]
    ours = typed.filter(pl.col("customer").is_in(["acme", "sim-1", "slow"]))
    settled = set(range(ours.height)) - set(quick.unsettled(ours, NOW, known=True).tolist())
    reasons = classify_columns(ours, asked, NOW)
    assert all(reasons[place] is None for place in settled)


@settings(max_examples=20, deadline=None)
@given(st.lists(ROWS, min_size=3, max_size=40), st.booleans())
def test_many_events_get_the_same_verdicts_with_and_without_the_quick_way(
    rows: list[Any], is_mostly_good: bool
) -> None:
    good = [("acme", "call", None, '{"n":"1"}', NOW)] * (2 * EVENTS_MAX)
    many = [*good, *rows] if is_mostly_good else (rows * (2 * EVENTS_MAX // len(rows) + 1))
    events, asked = frame(many), book()
    expected = classify_columns(events, asked, NOW)
    assert classify(events, asked, NOW).equals(expected)
    typed = with_typed(events, asked.reads)
    assert classify(typed, asked, NOW).equals(expected)
    ours = typed["customer"].is_in(["acme", "sim-1", "slow"])
    assert classify(typed.filter(ours), asked, NOW, known=True).equals(expected.filter(ours))


def test_the_usual_event_is_settled() -> None:
    usual = [
        ("acme", "call", None, '{"n":"1"}', NOW),
        ("sim-1", "call", None, '{"region": "eu", "n": -0.25}', NOW),
        ("acme", "pair", None, '{"m":"1","n":"2"}', START),
        ("acme", "ping", None, "{}", NOW + timedelta(hours=1)),
        ("acme", "user", None, '{"user":"ann"}', NOW),
    ]
    assert quick_verdicts_of(book()).unsettled(frame(usual), NOW).tolist() == []


def test_a_tenant_that_rejects_late_usage_is_asked_each_time() -> None:
    assert quick_verdicts_of(book(rejects_late=True)).settles_nothing
