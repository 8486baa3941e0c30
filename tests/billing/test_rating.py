"""Rating in columns agrees with the oracle, whatever the order, the batches and the road (billed or live)."""

from __future__ import annotations

import itertools
import json
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.catalog_forms import parse_charge, parse_meter
from billing.few_events import EVENTS_MAX
from billing.live_state import LiveState, fold_days, merge_live, rate_live
from billing.rating import RatedPieces, UsagePiece, rate
from billing.rating_book import BILLED_SCHEMA, CONTRACTS_SCHEMA, CUTS_SCHEMA, KEYS_SCHEMA, PAUSES_SCHEMA, RatingBook
from billing.usage import EVENT_SCHEMA
from billing.verdicts import REASON, classify, classify_columns
from tests.oracle import pricing as oracle

START, MIDDLE, END = (datetime(2026, 3, day, tzinfo=UTC) for day in (1, 15, 31))
BERLIN = "Europe/Berlin"
METERS = [
    {"code": "count", "event_type": "call", "aggregation": "count"},
    {"code": "sum", "event_type": "call", "aggregation": "sum", "value": "n"},
    {"code": "max", "event_type": "call", "aggregation": "max", "value": "n"},
    {"code": "min", "event_type": "call", "aggregation": "min", "value": "n"},
    {"code": "latest", "event_type": "call", "aggregation": "latest", "value": "n"},
    {"code": "users", "event_type": "call", "aggregation": "unique_count", "value": "user"},
    {"code": "level", "event_type": "call", "aggregation": "time_weighted_sum", "value": "n"},
    {"code": "eu", "event_type": "call", "aggregation": "sum", "value": "n", "filter": {"region": ["eu", "uk"]}},
]
MODELS: list[dict[str, Any]] = [
    {"model": "flat", "amount": "3.5"},
    {"model": "per_unit", "unit": "0.123456789012"},
    {
        "model": "graduated",
        "tiers": [
            {"up_to": "5", "unit": "2", "flat": "1"},
            {"up_to": "7.5", "unit": "0.3"},
            {"up_to": None, "flat": "4"},
        ],
    },
    {
        "model": "volume",
        "tiers": [
            {"up_to": "5", "unit": "2", "flat": "1"},
            {"up_to": "7.5", "unit": "0.3"},
            {"up_to": None, "unit": "1"},
        ],
    },
    {"model": "package", "size": "0.3", "amount": "0.07"},
]
LIMITED = {"min_per_event": "0.3", "max_per_event": "5", "free_events": "1", "free_value": "4"}
NIGHT = {"days": ["fri"], "from": "22:00", "to": "06:00", "unit": "0.5"}
EVENT_MODELS: list[dict[str, Any]] = [
    {"model": "percentage", "percent": "1.3", "per_event": "0.25", **LIMITED},
    {"model": "percentage", "percent": "33.333333333333", "per_event": "0.1"},  # / 100 has 14 places: in fractions
    {"model": "percentage", "percent": "2.9", "free_value": "10"},
    {"model": "event_amount", "property": "eur"},
    {"model": "bands", "bands": [NIGHT, {"from": "08:00", "to": "18:00", "unit": "0.2"}], "otherwise": "0.1"},
]


@st.composite
def decimals(draw: Any) -> str:
    digits, places = draw(st.integers(-(10**9), 10**9)), draw(st.integers(0, 12))
    return format(Decimal(digits).scaleb(-places), "f")


values = st.one_of(
    decimals(),
    st.sampled_from(["0", "1", "5", "7.5", "-3", "1000000000000000", "12345678901234567890.5", "0.000000000001"]),
)
MICROSECOND = timedelta(microseconds=1)
# Few, so that events meet: bounds of the pieces, equal times, and both sides of a Friday night in Berlin.
TIMES = [
    START - timedelta(days=40), START - MICROSECOND, START, START + MICROSECOND, START + timedelta(hours=7, minutes=20),
    datetime(2026, 3, 6, 2, tzinfo=UTC), datetime(2026, 3, 6, 23, tzinfo=UTC), datetime(2026, 3, 7, 2, tzinfo=UTC),
    datetime(2026, 3, 7, 5, tzinfo=UTC), datetime(2026, 3, 9, 12, tzinfo=UTC), MIDDLE - MICROSECOND, MIDDLE,
    datetime(2026, 3, 29, 1, tzinfo=UTC), END - MICROSECOND, END,
]  # fmt: skip
usage = st.fixed_dictionaries(
    {
        "id": st.sampled_from([str(number) for number in range(12)]),
        "source": st.sampled_from(["a", "b"]),
        "time": st.sampled_from(TIMES),
        "subscription": st.sampled_from([None, None, "s1", "s2"]),
        "n": values,
        "user": st.sampled_from(["ann", "Ann", 'o"b', "bäb", "{}"]),
        "region": st.sampled_from(["eu", "uk", "us"]),
        "eur": values,
        "number": st.booleans(),
    }
)


def _matrix() -> list[dict[str, Any]]:
    """Every meter with every price that can price it; limits and proration go round."""
    limits = itertools.cycle(
        [
            {},
            {"included": "2"},
            {"minimum": "1", "maximum": "20"},
            {"included": "0.5", "minimum": "3", "prorate_usage": True},
        ]
    )
    clamps = itertools.cycle([{}, {"minimum": "1", "maximum": "20", "prorate_usage": True}])
    pairs = [(meter["code"], price, next(limits)) for price in MODELS for meter in METERS]
    pairs += [(meter, EVENT_MODELS[-1], next(limits)) for meter in ("sum", "count") for _ in range(4)]
    pairs += [(meter, price, next(clamps)) for meter in ("sum", "eu", "sum") for price in EVENT_MODELS[:-1]]
    return [
        {"code": f"c{place}", "kind": "usage", "tax": "t", "meter": meter, "price": price, **more}
        for place, (meter, price, more) in enumerate(pairs)
    ]


MATRIX = _matrix()


def frame(events: list[dict[str, Any]]) -> pl.DataFrame:
    rows = []
    for event in events:
        data = {name: event[name] for name in ("user", "region", "eur")}
        text = json.dumps(data, ensure_ascii=event["number"])
        text = text[:-1] + (f', "n": {event["n"]}}}' if event["number"] else f', "n":"{event["n"]}"}}')
        rows.append((event["source"], event["id"], "call", "acme", event["subscription"], event["time"], text))
    return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")


def pieces_of(charge: Any, subscription: str, share: Fraction) -> list[UsagePiece]:
    return [
        UsagePiece("acme", subscription, charge, START, MIDDLE, share, Decimal(2)),
        UsagePiece("acme", subscription, charge, MIDDLE, END, share, Decimal(2)),
    ]


def expected(form: dict[str, Any], events: list[dict[str, Any]], piece: UsagePiece) -> tuple[Fraction, Fraction]:
    meter = next(meter for meter in METERS if meter["code"] == form["meter"])
    mine = [event for event in events if event["subscription"] in (None, piece.subscription)]
    if "filter" in meter:
        mine = [event for event in mine if event["region"] in meter["filter"]["region"]]
    value_name = meter.get("value", "")
    texts = value_name == "user"
    measured = [
        {**event, "value": event["user"] if texts else Fraction(event[value_name]) if value_name else Fraction(1)}
        for event in mine
    ]
    quantity = oracle.quantity(meter["aggregation"], measured, piece.start, piece.end)
    inside = [event for event in measured if piece.start <= event["time"] < piece.end]
    by_amount = form["price"]["model"] == "event_amount"
    single = [
        (event["time"], f"{event['id']}\0{event['source']}", Fraction(event["eur"]) if by_amount else event["value"])
        for event in inside
        if not texts
    ]
    amount = oracle.amount(
        form["price"],
        quantity,
        single,
        included=Fraction(form.get("included", "0")),
        minimum=Fraction(form["minimum"]) if "minimum" in form else None,
        maximum=Fraction(form["maximum"]) if "maximum" in form else None,
        units=Fraction(2),
        timezone=BERLIN,
        share=piece.share if form.get("prorate_usage") else Fraction(1),
    )
    return quantity, amount


def outcome(rated: RatedPieces) -> dict[tuple[int, int], tuple[Fraction, Fraction]]:
    return {(row.piece, row.row): (Fraction(row.quantity), Fraction(row.amount)) for row in rated.rows()}


def comparable(rated: RatedPieces) -> list[Any]:
    return [
        (
            row.piece,
            row.row,
            Fraction(row.quantity),
            Fraction(row.amount),
            row.events,
            row.first,
            row.last,
            list(row.tiers),
        )
        for row in rated.rows()
    ]


def distinct(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({(event["source"], event["id"]): event for event in events}.values())


metering = [parse_meter(meter) for meter in METERS]
CHARGES = [parse_charge(form) for form in MATRIX]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(usage, max_size=10).map(distinct), st.sampled_from([Fraction(1), Fraction(14, 31)]), st.data())
def test_rating_agrees_with_the_oracle_in_any_order_and_any_batches_billed_or_live(
    events: list[dict[str, Any]], share: Fraction, data: Any
) -> None:
    pieces = [piece for charge in CHARGES for name in ("s1", "s2") for piece in pieces_of(charge, name, share)]
    rated = rate(pieces, frame(events), metering, BERLIN)
    got = outcome(rated)
    for number, piece in enumerate(pieces):
        form = MATRIX[number // 4]
        assert got.get((number, 0), (Fraction(0), Fraction(0))) == expected(form, events, piece), form
    assert [(row.piece, row.row) for row in rated.rows()] == sorted(got)

    shuffled = data.draw(st.permutations(events))
    cut = data.draw(st.integers(0, len(events)))
    parts = [frame(shuffled[:cut]), frame(shuffled[cut:])]
    assert comparable(rate(pieces, iter(parts), metering, BERLIN)) == comparable(rated)

    book = RatingBook(
        tuple(metering),
        pl.DataFrame({"key": ["acme"], "customer": ["acme"]}, schema=KEYS_SCHEMA),
        plans=(tuple(CHARGES),),
        timezone=BERLIN,
        cuts=pl.DataFrame({"customer": ["acme"] * 3, "at": [START, MIDDLE, END]}, schema=CUTS_SCHEMA),
    )
    live = reduce(merge_live, [fold_days(part, book) for part in parts[::-1]])
    assert comparable(rate_live(pieces, LiveState.from_bytes(live.to_bytes()), book)) == comparable(rated)


@settings(max_examples=25, deadline=None)
@given(st.lists(values, min_size=1, max_size=6))
def test_the_tiers_of_graduated_add_up_to_the_whole(quantities: list[str]) -> None:
    charge = parse_charge({"code": "c", "kind": "usage", "tax": "t", "meter": "sum", "price": MODELS[2]})
    events = [
        {"source": "a", "id": str(place), "time": START, "subscription": None, "n": text, "user": "u", "region": "us",
         "eur": "0", "number": False}
        for place, text in enumerate(quantities)
    ]  # fmt: skip
    for row in rate([UsagePiece("acme", "s1", charge, START, END)], frame(events), metering).rows():
        assert sum((Fraction(part.quantity) for part in row.tiers), Fraction(0)) == Fraction(row.quantity)
        assert sum((Fraction(part.amount) for part in row.tiers), Fraction(0)) == Fraction(row.amount)


ROWS = parse_charge(
    {
        "code": "req", "kind": "usage", "meter": "sum", "tax": "t", "price_by": ["region", "user"],
        "prices": [
            {"when": {"region": "eu", "user": "ann"}, "price": {"model": "per_unit", "unit": "3"}},
            {"when": {"user": "bob"}, "price": {"model": "per_unit", "unit": "5"}, "minimum": "100"},
            {"when": {"region": "eu"}, "price": {"model": "per_unit", "unit": "7"}},
        ],
    }
)  # fmt: skip


def _event(number: str, data: dict[str, Any], **other: Any) -> tuple[Any, ...]:
    given_fields = {"type": "call", "customer": "acme", "subscription": None, "time": START, **other}
    return ("a", number, *given_fields.values(), json.dumps(data))


def test_the_first_price_row_that_matches_wins_and_a_minimum_counts_only_with_usage() -> None:
    events = pl.DataFrame(
        [
            _event("1", {"n": "1", "region": "eu", "user": "ann"}),
            _event("2", {"n": "10", "region": "eu", "user": "bob"}),  # rows 2 and 3 fit, the first wins
            _event("3", {"n": "100", "region": "eu"}),  # a missing property does not match
            _event("4", {"n": "1000", "region": "us"}),
        ],
        schema=EVENT_SCHEMA,
        orient="row",
    )
    rated = rate([UsagePiece("acme", "s1", ROWS, START, END)], events, metering)
    assert outcome(rated) == {(0, 0): (1, 3), (0, 1): (10, 100), (0, 2): (100, 700)}
    assert outcome(rate([UsagePiece("acme", "s1", ROWS, START, END)], events.head(1), metering)) == {(0, 0): (1, 3)}


def _book(**changes: Any) -> RatingBook:
    by_value = parse_charge(
        {"code": "v", "kind": "usage", "meter": "eu", "tax": "t", "price": {"model": "event_amount", "property": "eur"}}
    )
    contracts = pl.DataFrame(
        [("acme", "s1", START, END, 0), ("other", "s2", START, None, 0)], schema=CONTRACTS_SCHEMA, orient="row"
    )
    keys = pl.DataFrame({"key": ["acme", "sim-1", "other"], "customer": ["acme", "acme", "other"]}, schema=KEYS_SCHEMA)
    return RatingBook(tuple(metering), keys, contracts, ((ROWS, by_value),), **changes)


NOW = datetime(2026, 3, 20, tzinfo=UTC)
GOOD = {"n": "1", "region": "eu", "user": "ann", "eur": "0.1"}
VERDICTS: list[tuple[str | None, dict[str, Any], dict[str, Any]]] = [
    (None, GOOD, {}),
    (None, GOOD, {"customer": "sim-1"}),
    (None, GOOD, {"subscription": "s1"}),
    ("unknown_customer", {}, {"customer": "nobody", "type": "nothing"}),
    ("unknown_subscription", GOOD, {"subscription": "s9"}),
    ("unknown_subscription", GOOD, {"subscription": "s2"}),
    ("unknown_type", GOOD, {"type": "Call"}),
    ("missing_property", {"region": "eu", "user": "ann", "eur": "1"}, {}),
    ("missing_property", {**GOOD, "n": None}, {}),
    ("missing_property", {"n": "1", "region": "eu", "user": "ann"}, {}),  # no amount of its own
    ("invalid_value", {**GOOD, "n": "many"}, {}),
    ("invalid_value", {**GOOD, "n": "1" * 40}, {}),
    ("invalid_value", {**GOOD, "n": "0.1234567890123"}, {}),
    ("invalid_value", {**GOOD, "n": "NaN"}, {}),
    ("invalid_value", {**GOOD, "n": True}, {}),
    ("invalid_value", {**GOOD, "n": [1]}, {}),
    ("invalid_value", {**GOOD, "n": ""}, {}),
    ("invalid_value", {**GOOD, "eur": "1e999"}, {}),
    (None, {**GOOD, "n": "-5e2"}, {}),
    (None, {**GOOD, "n": 3}, {}),
    (None, GOOD, {"time": NOW + timedelta(hours=1)}),
    ("future", GOOD, {"time": NOW + timedelta(hours=1, microseconds=1)}),
    ("no_price", {**GOOD, "region": "us"}, {}),
    (None, {**GOOD, "region": "us"}, {"time": START - timedelta(days=1)}),  # outside every subscription: costs nothing
    (None, GOOD, {"time": datetime(1970, 1, 1, tzinfo=UTC)}),
]


def test_each_event_gets_the_first_reason_that_applies() -> None:
    events = pl.DataFrame(
        [_event(str(number), data, **other) for number, (_, data, other) in enumerate(VERDICTS)],
        schema=EVENT_SCHEMA,
        orient="row",
    )
    for way in (classify, classify_columns):
        assert way(events, _book(), NOW).to_list() == [reason for reason, _, _ in VERDICTS]


def test_late_is_said_only_of_new_events_of_tenants_that_reject_them() -> None:
    events = pl.DataFrame(
        [_event("1", GOOD), _event("2", GOOD), _event("3", GOOD, time=MIDDLE)], schema=EVENT_SCHEMA, orient="row"
    )
    billed = pl.DataFrame({"subscription": ["s1"], "until": [MIDDLE]}, schema=BILLED_SCHEMA)
    new = pl.Series([False, True, True])
    for way in (classify, classify_columns):
        assert way(events, _book(rejects_late=True, billed=billed), NOW, new=new).to_list() == [None, "late", None]
        assert way(events, _book(billed=billed), NOW, new=new).to_list() == [None, None, None]


def test_usage_in_a_pause_waits_for_the_subscription_that_is_paused() -> None:
    pauses = pl.DataFrame([("acme", "s1", 0, START, MIDDLE)], schema=PAUSES_SCHEMA, orient="row")
    told = [
        (START - timedelta(microseconds=1), None, None),
        (START, None, "paused"),
        (START, "s1", "paused"),
        (MIDDLE - timedelta(microseconds=1), None, "paused"),
        (MIDDLE, None, None),
    ]
    events = _frame(
        [_event(str(place), GOOD, time=time, subscription=named) for place, (time, named, _) in enumerate(told)]
    )
    other = _frame([_event("1", GOOD, customer="other"), _event("2", GOOD, customer="sim-1")])
    for way in (classify, classify_columns):
        assert way(events, _book(pauses=pauses), NOW).to_list() == [reason for _, _, reason in told]
        assert way(other, _book(pauses=pauses), NOW).to_list() == [None, "paused"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.fixed_dictionaries(
                {},
                optional={
                    "n": st.sampled_from(["1", 2, "-3e2", "many", "1" * 40, None, [1], "0.1234567890123"]),
                    "region": st.sampled_from(["eu", "uk", "us", "", None, 7]),
                    "user": st.sampled_from(["ann", "bob", None, 5]),
                    "eur": st.sampled_from(["0.1", "x", None]),
                },
            ),
            st.sampled_from(["acme", "sim-1", "other", "nobody"]),
            st.sampled_from([None, "s1", "s2", "s9"]),
            st.sampled_from(["call", "Call"]),
            st.sampled_from([START, START - timedelta(days=1), MIDDLE, END, NOW + timedelta(hours=2)]),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    ),
    st.booleans(),
    st.booleans(),
)
def test_few_events_get_the_verdicts_that_columns_give(rows: list[Any], rejects: bool, paused: bool) -> None:
    events = _frame(
        [
            _event(str(place), data, customer=customer, subscription=subscription, type=type, time=time)
            for place, (data, customer, subscription, type, time, _) in enumerate(rows)
        ]
    )
    billed = pl.DataFrame({"subscription": ["s1", "s2"], "until": [MIDDLE, START]}, schema=BILLED_SCHEMA)
    pauses = pl.DataFrame(
        [("acme", "s1", place, START, MIDDLE) for place in (0, 7)], schema=PAUSES_SCHEMA, orient="row"
    )
    book = _book(rejects_late=rejects, billed=billed, **({"pauses": pauses} if paused else {}))
    new = pl.Series([row[-1] for row in rows])
    assert events.height <= EVENTS_MAX
    for given_new in (None, new):
        few = classify(events, book, NOW, new=given_new)
        assert few.to_list() == classify_columns(events, book, NOW, new=given_new).to_list()
        assert few.dtype == REASON


def test_a_piece_that_cuts_a_folded_day_is_noticed() -> None:
    events = pl.DataFrame(
        [_event("1", GOOD, time=START + timedelta(hours=5)), _event("2", GOOD, time=START + timedelta(hours=9))],
        schema=EVENT_SCHEMA,
        orient="row",
    )
    book = _book()
    piece = UsagePiece("acme", "s1", ROWS, START, START + timedelta(hours=7))
    with pytest.raises(AssertionError, match=r"book\.cuts"):
        rate_live([piece], fold_days(events, book), book)


def _rated_amounts(form: dict[str, Any], rows: list[tuple[datetime, str, str]]) -> list[tuple[Fraction, Fraction]]:
    """Quantity and amount of a charge over March; rows are time, id and value."""
    events = pl.DataFrame(
        [_event(number, {"n": value, "user": "ann"}, time=time) for time, number, value in rows],
        schema=EVENT_SCHEMA,
        orient="row",
    )
    charge = parse_charge({"code": "c", "kind": "usage", "tax": "t", **form})
    return list(outcome(rate([UsagePiece("acme", "s1", charge, START, END)], events, metering, BERLIN)).values())


def test_a_band_over_midnight_belongs_to_the_day_on_which_it_starts() -> None:
    form = {"meter": "sum", "price": {"model": "bands", "bands": [NIGHT], "otherwise": "0.1"}}
    friday, saturday = datetime(2026, 3, 6, 2, tzinfo=UTC), datetime(2026, 3, 7, 2, tzinfo=UTC)
    assert _rated_amounts(form, [(friday, "1", "10"), (saturday, "2", "100")]) == [(110, 51)]


def test_of_two_levels_at_one_time_the_later_id_as_text_counts() -> None:
    latest = {"meter": "latest", "price": {"model": "per_unit", "unit": "1"}}
    for rows in (["10", "9"], ["9", "10"]):
        events = [(MIDDLE, number, number) for number in rows]
        assert _rated_amounts(latest, events) == [(9, 9)]
    level = {"meter": "level", "price": {"model": "per_unit", "unit": "1"}}
    assert _rated_amounts(level, [(MIDDLE, "9", "1"), (MIDDLE, "10", "50")]) == [(16 * 24, 16 * 24)]
    assert _rated_amounts(level, [(START - timedelta(days=9), "1", "2"), (END - timedelta(minutes=20), "2", "0")]) == [
        (Fraction(2 * (30 * 24 * 3 - 1), 3),) * 2
    ]


def test_sums_beyond_38_digits_are_added_up_exactly() -> None:
    form = {"meter": "sum", "price": {"model": "per_unit", "unit": "0.000000000001"}}
    huge = "99999999999999999999999999.999999999999"
    rows = [(START, str(number), huge) for number in range(3)] + [(START, "x", "0.000000000001")]
    total = Fraction(huge) * 3 + Fraction("0.000000000001")
    assert _rated_amounts(form, rows) == [(total, total / 10**12)]


def test_a_negative_half_is_a_negative_half() -> None:
    form = {"meter": "sum", "included": "3", "price": {"model": "per_unit", "unit": "3"}}
    assert _rated_amounts(form, [(START, "1", "-0.5")]) == [(Fraction(-1, 2), Fraction(-3, 2))]


def test_an_event_counts_for_every_subscription_with_a_charge_on_the_meter_unless_it_names_one() -> None:
    charge = parse_charge(
        {"code": "c", "kind": "usage", "tax": "t", "meter": "sum", "price": {"model": "per_unit", "unit": "1"}}
    )
    events = pl.DataFrame(
        [
            _event("1", {"n": "10"}),
            _event("2", {"n": "5"}, subscription="s2"),
            _event("3", {"n": "100"}, customer="sim-1"),  # another key of the same customer
            _event("4", {"n": "1000"}, customer="other"),
            _event("5", {"n": "10000"}, type="text"),
        ],
        schema=EVENT_SCHEMA,
        orient="row",
    )
    pieces = [UsagePiece("acme", name, charge, START, END, keys=("acme", "sim-1")) for name in ("s1", "s2")]
    assert outcome(rate(pieces, events, metering)) == {(0, 0): (110, 110), (1, 0): (115, 115)}


def _frame(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")


@pytest.mark.parametrize("meter", ["count", "sum", "max", "min", "users", "eu"])
def test_a_piece_alone_counts_neither_other_times_nor_events_of_other_subscriptions(meter: str) -> None:
    """A lone piece of a customer and meter is folded before it is joined; with a second one each event is joined."""
    charge = parse_charge(
        {"code": "c", "kind": "usage", "tax": "t", "meter": meter, "price": {"model": "per_unit", "unit": "1"}}
    )
    data = {"n": "10", "user": "ann", "region": "uk"}
    counting = [_event("1", data), _event("2", {**data, "n": "7", "user": "bob"}, subscription="s1")]
    others = [
        _event("3", {**data, "n": "500", "user": "eve"}, subscription="s2"),
        _event("4", {**data, "n": "600", "user": "kim"}, time=START - timedelta(microseconds=1)),
        _event("5", {**data, "n": "-700", "user": "lee"}, time=END),
        _event("6", {**data, "n": "many", "user": None, "region": "us"}),
    ]
    one = UsagePiece("acme", "s1", charge, START, END)
    two = UsagePiece("acme", "s2", charge, START, END)
    for chosen in itertools.chain.from_iterable(itertools.combinations(others, size) for size in range(5)):
        counted = [*counting, *(event for event in chosen if meter == "count" and event[1] == "6")]
        events = _frame([*counting, *chosen])
        alone, beside = (outcome(rate(pieces, events, metering))[0, 0] for pieces in ([one], [one, two]))
        assert alone == beside == outcome(rate([one], _frame(counted), metering))[0, 0]
    assert outcome(rate([one], _frame(others[:3]), metering)) == {}


def test_no_python_object_is_made_per_event() -> None:
    def calls(count: int) -> int:
        rows = [_event(str(number), {"n": "1.5", "region": "eu"}) for number in range(count)]
        events = pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")
        book = _book()
        seen = 0

        def count_call(*_: Any) -> None:
            nonlocal seen
            seen += 1

        sys.setprofile(count_call)
        try:
            rate([UsagePiece("acme", "s1", ROWS, START, END)], events, metering)
            classify(events, book, NOW)
            fold_days(events, book)
        finally:
            sys.setprofile(None)
        return seen

    calls(5_000)  # what is imported and compiled at first use is no work per event
    assert calls(5_000) < calls(500) + 500
