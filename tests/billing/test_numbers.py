"""Number patterns: none that is taken gives a number twice, whatever the year, the type and the counter."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from billing.errors import InvalidInput
from billing.numbers import PATTERNS, can_meet, check_patterns, number_text, patterns_of

YEARS = (2001, 2011, 2020, 2026, 2099)
COUNTERS = (*range(1, 25), 99, 100, 101, 110, 111, 260, 261, 999, 1_000, 1_001, 1_100, 10_001, 20_261, 111_111, 202_611)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """With little text, and mostly digits: what collides by chance is found soon."""
    text = st.text("R10-2", max_size=2)
    year, counter = (
        draw(st.sampled_from(["{yyyy}", "{yy}"])),
        draw(st.sampled_from(["{n}", "{n:02}", "{n:03}", "{n:06}"])),
    )
    first, second = draw(st.permutations([year, counter]))
    return draw(text) + first + draw(text) + second + draw(text)


def texts(pattern: str) -> dict[str, tuple[int, int]]:
    found = {number_text(pattern, year, n): (year, n) for year in YEARS for n in COUNTERS}
    assert len(found) == len(YEARS) * len(COUNTERS), f"{pattern} repeats itself"
    return found


def accepted(*arguments: Any, **named: Any) -> bool:
    try:
        check_patterns(*arguments, **named)
    except InvalidInput:
        return False
    return True


@settings(max_examples=400)
@given(patterns(), patterns(), patterns(), patterns())
@example("R{yyyy}-{n}", "R{yyyy}-1{n}", "A{yyyy}-{n}", "B{yyyy}-{n}")  # invoice 11 and credit note 1 were both R2026-11
def test_patterns_that_are_taken_never_give_the_same_text(one: str, two: str, three: str, four: str) -> None:
    series = {"invoice": one, "credit_note": two}
    others = {"main": {"invoice": three, "credit_note": four}}
    if accepted(series, "sued", is_default=False, others=others):
        seen = Counter(text for pattern in (one, two) for text in texts(pattern))
        assert max(seen.values()) == 1
        assert not set(seen) & {text for pattern in (three, four) for text in texts(pattern)}


@settings(max_examples=400)
@given(patterns(), patterns())
@example("R{yyyy}-{n}", "R{yyyy}-1{n}")
@example("RE{yyyy}{n:06}", "RE{yy}{n:06}")  # RE2026000001 is number 26000001 of year 20
def test_a_pattern_that_follows_another_gives_none_of_its_numbers_to_another_document(before: str, after: str) -> None:
    earlier = [("main", "invoice", before)]
    if accepted({"invoice": after, "credit_note": "X{yyyy}/{n}"}, "main", given=earlier):
        old, new = texts(before), texts(after)
        assert all(old[text] == new[text] for text in set(old) & set(new))
    if accepted({"invoice": "X{yyyy}/{n}", "credit_note": after}, "main", given=earlier):
        assert not set(texts(before)) & set(texts(after))


@given(patterns(), patterns())
def test_that_two_patterns_meet_is_true_of_both_and_of_texts_that_are_alike(one: str, two: str) -> None:
    assert can_meet(one, one)
    assert can_meet(one, two) == can_meet(two, one)
    if set(texts(one)) & set(texts(two)):
        assert can_meet(one, two)


@pytest.mark.parametrize(
    ("one", "two", "meet"),
    [
        (PATTERNS["invoice"], PATTERNS["credit_note"], False),
        (PATTERNS["invoice"], "RE-sued-{yyyy}-{n:06}", False),
        ("RE-{yyyy}-{n:06}", "RE-{yyyy}-9{n:06}", True),  # from the nine millionth on
        ("RE-{yyyy}-{n:06}", "RE-{yyyy}-0{n:06}", False),
        ("R{yy}-{n}", "R{yyyy}-{n}", False),
        ("{yyyy}{n}", "{n}{yyyy}", True),
        ("{{{yyyy}}}-{n}", "{yyyy}-{n}", False),
        ("A{n:>8}-{yyyy}", "A7-{yyyy}-{n}", True),  # what cannot be read may be anything
        ("B{n:>8}-{yyyy}", "A7-{yyyy}-{n}", False),
    ],
)
def test_what_can_meet_is_told_by_the_texts_between_the_fields(one: str, two: str, meet: bool) -> None:
    assert can_meet(one, two) is meet


@pytest.mark.parametrize(
    "pattern",
    ["RE-{n}", "RE-{yyyy}", "{n}-{n}-{yy}", "{yy}{yyyy}{n}", "{n:>6}-{yyyy}", "{n:6}-{yyyy}", "{n:x}-{yyyy}",
     "{n!r}{yy}", "{n.real}-{yyyy}", "{yyyy[0]}-{n}", "{yyyy:>6}-{n}", "{n:0100}{yy}", "{n:00}{yy}",
     "{month}-{yyyy}-{n}", "{n", "}{yy}{n}"],
)  # fmt: skip
def test_a_pattern_that_nobody_can_foresee_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="series: "):
        check_patterns({"invoice": pattern})


def test_a_series_may_widen_its_counter_and_take_its_old_pattern_again() -> None:
    given = [("main", "invoice", "RE-{yyyy}-{n:06}"), ("main", "invoice", "RE-{yyyy}-{n}")]
    check_patterns({"invoice": "RE-{yyyy}-{n:04}"}, "main", given=given)
    check_patterns({}, "main", given=given)
    with pytest.raises(InvalidInput, match="has given to documents before"):
        check_patterns({"invoice": "A-{yyyy}-{n}", "credit_note": "RE-{yyyy}-{n:04}"}, "main", given=given)
    assert patterns_of("main", {}, is_default=True) == PATTERNS
