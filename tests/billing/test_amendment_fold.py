"""The fold of amendments against a slow oracle: the newest complete change of each event counts, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.amendments import (
    SOURCE,
    Amendment,
    AmendmentRow,
    EventName,
    EventState,
    amendment_of,
    fold_amendments,
    fold_amendments_of_lane,
    rows_of,
    states_before,
)
from billing.usage import EVENT_SCHEMA, INSTANT

KEYS = ("a", "b", "c")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
T0_US = 1_767_225_600_000_000  # 2026-01-01 UTC
LOG_SCHEMA = pl.Schema(
    {**EVENT_SCHEMA, "kind": pl.UInt8, "lane": pl.UInt16, "number": pl.UInt64, "row": pl.UInt32, "received_at": INSTANT,
     "detail": pl.String}
)  # fmt: skip


def sent(number: int) -> tuple[EventName, EventState]:
    key = KEYS[number % 3]
    name = EventName(key, "gateway", f"e{number}", 0, number, 0, T0_US + number)
    return name, EventState(key, "call", None, T0_US + number, f'{{"n":{number}}}')


def history(number: int, changes: Sequence[EventState | None]) -> list[Amendment]:
    """The changes of one event as the lane would decide them."""
    name, state = sent(number)
    holder, before, found = "", state, list[Amendment]()
    for nth, after in enumerate(changes, start=1):
        found.append(Amendment(f"m{number}-{nth}", nth, name, before, after, "why", "who", T0_US, nth % 2 == 0, holder))
        before, holder = after or before, after.customer if after else ""
    return found


def frame(rows: Sequence[AmendmentRow]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            (SOURCE, row.id, row.state.type, row.customer, row.state.subscription,
             EPOCH + timedelta(microseconds=row.state.time_us), row.state.data, 1 if row.is_amended else 2,
             KEYS.index(row.customer), place, 0, datetime(2026, 2, 1, tzinfo=UTC), json.dumps(row.detail))
            for place, row in enumerate(rows)
        ],
        schema=LOG_SCHEMA,
        orient="row",
    )  # fmt: skip


def usage(numbers: Sequence[int]) -> pl.DataFrame:
    rows = [(name, state) for name, state in map(sent, numbers)]
    return pl.DataFrame(
        [
            (name.source, name.id, state.type, state.customer, None, datetime(2026, 1, 1, tzinfo=UTC), state.data)
            for name, state in rows
        ],
        schema=EVENT_SCHEMA,
        orient="row",
    )


states = st.builds(
    EventState,
    customer=st.sampled_from(KEYS),
    type=st.sampled_from(["call", "cal"]),
    subscription=st.sampled_from([None, "s1"]),
    time_us=st.integers(T0_US, T0_US + 10),
    data=st.sampled_from(['{"n":"1"}', '{"n":"2"}']),
)
histories = st.dictionaries(st.integers(0, 5), st.lists(st.none() | states, max_size=5), max_size=4)


def shown(events: pl.DataFrame) -> dict[str, tuple[str, str, str | None, str]]:
    columns = ("id", "customer", "type", "subscription", "data")
    rows = {row[0]: row[1:] for row in events.select(columns).iter_rows()}
    assert len(rows) == events.height, "an event counts twice"
    return rows


@given(changes=histories, chance=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_newest_change_whose_rows_are_all_there_counts(
    changes: dict[int, list[EventState | None]], chance: object
) -> None:
    """Rows come in any order, and some are not there yet: then the change before it counts."""
    rows: list[AmendmentRow] = []
    expected: dict[str, tuple[str, str, str | None, str]] = {}
    missing: set[str] = set()
    for number in range(6):
        name, state = sent(number)
        current: EventState | None = state
        for one in history(number, changes.get(number, ())):
            parts = rows_of(one)
            if chance.random() < 0.2:  # type: ignore[attr-defined]
                parts = parts[:-1]  # the last row is on its way
                missing.update({one.id} if parts else set())
            else:
                current = one.after
            rows += parts
        if current is not None:
            expected[name.id] = (current.customer, current.type, current.subscription, current.data)
    chance.shuffle(rows)  # type: ignore[attr-defined]
    folded = fold_amendments(frame(rows))
    counting = pl.concat([folded.without(usage(range(6))), folded.events.select(EVENT_SCHEMA.names())])
    assert shown(counting) == expected
    assert set(folded.pending) == missing
    voided = folded.touched.filter("voided")["id"].to_list()
    assert set(voided) == {f"e{number}" for number in range(6)} - set(expected)


@given(changes=histories)
@settings(max_examples=40, deadline=None)
def test_the_lanes_of_all_keys_together_say_what_the_whole_log_says(
    changes: dict[int, list[EventState | None]],
) -> None:
    rows = [row for number in range(6) for one in history(number, changes.get(number, ())) for row in rows_of(one)]
    whole = fold_amendments(frame(rows))
    everything = pl.concat([whole.without(usage(range(6))), whole.events.select(EVENT_SCHEMA.names())])
    lanes: list[pl.DataFrame] = []
    for key in KEYS:
        lane = fold_amendments_of_lane(frame(rows).filter(pl.col("customer") == key))
        lanes += [
            lane.without(usage(range(6)).filter(pl.col("customer") == key)),
            lane.events.select(EVENT_SCHEMA.names()),
        ]
    assert shown(pl.concat(lanes)) == shown(everything)


def test_an_event_that_leaves_its_key_is_voided_there_and_amended_where_it_goes() -> None:
    _, state = sent(0)
    there, back = replace(state, customer="b"), replace(state, customer="a", data="{}")
    first, second, third = history(0, [there, back, None])
    assert [(row.is_amended, row.id, row.customer) for row in rows_of(first)] == [
        (False, "m0-1", "a"), (True, "m0-1#to:0:0:0", "b")
    ]  # fmt: skip
    assert [(row.is_amended, row.id, row.customer) for row in rows_of(second)] == [
        (True, "m0-2", "a"), (False, "m0-2#from:0:0:0", "b")
    ]  # fmt: skip
    assert [(row.is_amended, row.id, row.customer) for row in rows_of(third)] == [(False, "m0-3", "a")]
    assert amendment_of(json.dumps(rows_of(first)[1].detail)) == first
    parts = frame([*rows_of(first), *rows_of(second)])
    folded = fold_amendments(parts)
    (event,) = folded.events.iter_rows(named=True)
    assert (event["source"], event["id"], event["first_lane"], event["first_number"]) == ("gateway", "e0", 0, 0)
    assert (event["lane"], event["number"], event["counts_late"]) == (0, 2, True), "it stands where it got its state"
    before = states_before(parts)
    assert before.select("id", "customer").rows() == [("e0", "a"), ("e0", "b")]
    assert set(folded.times.select("key", "number").rows()) >= {("a", 0), ("b", 1), ("b", 2), ("a", 2)}


def test_nothing_amended_leaves_all_as_it_is() -> None:
    folded = fold_amendments(pl.DataFrame(schema=LOG_SCHEMA))
    assert folded.without(usage(range(3))).equals(usage(range(3)))
    assert (folded.events.height, folded.times.height, folded.pending) == (0, 0, ())
