"""A state-space search over the lane protocol: two writers, crashes anywhere, puts that come late or twice.

Breadth first over every interleaving of: read on, claim, put, the store deciding a put now or later, a lost answer, a
crash. Each rule can be switched off, and the search must then find a broken invariant: else it would check nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest

NUMBERS_MAX = 4
CLAIMS_MAX = 2
EVENTS = ("a", "b")


class Entry(NamedTuple):
    """What lies under a number, or is on its way to it: an epoch record has no event."""

    writer: int  # the incarnation, never used twice
    event: str


@dataclass(frozen=True)
class Writer:
    incarnation: int
    phase: str  # reading, claiming, serving, putting
    known: int = 0  # numbers read or written
    seen: frozenset[str] = frozenset()  # events known to be in the log
    event: str = ""


@dataclass(frozen=True)
class State:
    log: tuple[Entry, ...] = ()
    late: frozenset[tuple[int, Entry]] = frozenset()  # puts under way whose sender may be gone
    writers: tuple[Writer | None, Writer | None] = (None, None)
    claims: int = 0
    acknowledged: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rules:
    compare_bytes: bool = True  # believe "exists" only after comparing
    wait_for_outcome: bool = True  # never go on to another put while one is open
    read_before_claim: bool = True


def next_states(state: State, rules: Rules) -> Iterator[State]:
    for number, entry in state.late:  # the store decides a put, or it is lost for ever
        yield replace(deliver(state, number, entry), late=state.late - {(number, entry)})
        if state.writers[0] is None or state.writers[1] is None:
            yield replace(state, late=state.late - {(number, entry)})
    for index, writer in enumerate(state.writers):
        if writer is None:
            if state.claims < CLAIMS_MAX:
                yield with_writer(replace(state, claims=state.claims + 1), index, Writer(state.claims + 1, "reading"))
            continue
        yield with_writer(state, index, None)  # a crash; what it sent may still arrive
        yield from steps_of(state, index, writer, rules)


def steps_of(state: State, index: int, writer: Writer, rules: Rules) -> Iterator[State]:
    number = writer.known
    match writer.phase:
        case "reading":
            if number < len(state.log) and rules.read_before_claim:
                yield with_writer(state, index, read(writer, state.log[number]))
            elif number < NUMBERS_MAX:
                start = number if rules.read_before_claim else len(state.log)
                yield with_writer(state, index, replace(writer, phase="claiming", known=start))
        case "serving":
            if number < NUMBERS_MAX:
                for event in EVENTS:
                    if event in writer.seen:
                        yield replace(state, acknowledged=state.acknowledged | {event})  # a durable duplicate
                    else:
                        yield with_writer(state, index, replace(writer, phase="putting", event=event))
        case _:
            entry = Entry(writer.incarnation, writer.event if writer.phase == "putting" else "")
            # the put arrives (its answer may come back or not), or it stays under way
            yield deliver(state, number, entry)
            yield replace(state, late=state.late | {(number, entry)})
            if number < len(state.log):  # an answer comes back
                mine = state.log[number] == entry or not rules.compare_bytes
                yield answered(state, index, writer, state.log[number], mine)
            elif not rules.wait_for_outcome and (number, entry) in state.late:
                yield with_writer(state, index, replace(writer, phase="serving", event=""))


def answered(state: State, index: int, writer: Writer, there: Entry, mine: bool) -> State:
    if not mine:
        if writer.phase == "claiming":
            return with_writer(state, index, replace(read(writer, there), phase="reading"))
        return with_writer(state, index, None)  # lost: for good
    served = replace(writer, phase="serving", known=writer.known + 1, event="")
    if writer.phase == "putting":
        served = replace(served, seen=writer.seen | {writer.event})
        state = replace(state, acknowledged=state.acknowledged | {writer.event})
    return with_writer(state, index, served)


def read(writer: Writer, entry: Entry) -> Writer:
    seen = writer.seen | {entry.event} if entry.event else writer.seen
    return replace(writer, known=writer.known + 1, seen=seen)


def deliver(state: State, number: int, entry: Entry) -> State:
    """Put if absent. A number beyond the end would be a gap: recorded as such and found by the invariants."""
    if number < len(state.log):
        return state
    filler = tuple(Entry(0, "gap") for _ in range(number - len(state.log)))
    return replace(state, log=(*state.log, *filler, entry))


def with_writer(state: State, index: int, writer: Writer | None) -> State:
    writers = (writer, state.writers[1]) if index == 0 else (state.writers[0], writer)
    return replace(state, writers=writers)


def broken(state: State) -> str | None:
    events = [entry.event for entry in state.log if entry.event]
    if "gap" in events:
        return "I4: a gap"
    if len(events) != len(set(events)):
        return "I2: an event twice"
    if not state.acknowledged <= set(events):
        return "I1: acknowledged and not in the log"
    owner = 0
    for entry in state.log:
        if not entry.event:
            owner = entry.writer
        elif entry.writer != owner:
            return "I3: two writers in one epoch"
    return None


def search(rules: Rules) -> tuple[int, str | None]:
    seen = {State()}
    queue = deque(seen)
    while queue:
        state = queue.popleft()
        for following in next_states(state, rules):
            if following not in seen:
                found = broken(following)
                if found is not None:
                    return len(seen), found
                seen.add(following)
                queue.append(following)
    return len(seen), None


def test_no_interleaving_of_two_writers_breaks_an_invariant() -> None:
    states, found = search(Rules())
    assert found is None
    assert states > 5_000, "the search is too small to mean anything"


@pytest.mark.parametrize(
    ("rules", "invariant"),
    [
        (Rules(compare_bytes=False), "I3"),
        (Rules(wait_for_outcome=False), "I3"),
        (Rules(read_before_claim=False), "I2"),
    ],
    ids=str,
)
def test_each_rule_switched_off_is_caught(rules: Rules, invariant: str) -> None:
    _, found = search(rules)
    assert found is not None
    assert found.startswith(invariant)
