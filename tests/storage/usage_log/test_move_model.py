"""A state-space search over moves of a partition: three lanes, zombies, late puts, crashes, movers that contradict.

Breadth first over every interleaving of: events and their repeats, a release to any lane, an acquisition, a put that
arrives now, later or never, a crash, a claim by a successor, the end of a lane, a reader who makes a cut lane by lane.
How lanes are claimed has a model of its own (`test_model.py`): here a claim is one step. Movers have no state
(`partition_mover.py` may be called by anybody at any time), so two of them are any order of their calls. Each rule can
be switched off, and the search must then find a broken invariant of docs/usage-log.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import pytest

LANES = 3
FIRST = 0  # the lane that the partition begins in
NOBODY = -1


class Entry(NamedTuple):
    """What lies under a number of a lane; of one partition."""

    writer: int  # the incarnation, never used twice
    what: str  # epoch, event, released, acquired, closed
    event: str = ""
    generation: int = 0
    lane: int = NOBODY  # released: to this lane; acquired: from this lane
    number: int = NOBODY  # acquired: of the release
    read_to: int = NOBODY  # acquired: up to which number it knows the other lane's events


class Writer(NamedTuple):
    incarnation: int
    known: int  # numbers of its lane that it has read or written
    pending: Entry | None = None
    packed: int = NOBODY  # how far it has read the other lane, before the release


class State(NamedTuple):
    lanes: tuple[tuple[Entry, ...], ...]
    writers: tuple[frozenset[Writer], ...]  # by lane: the live one and those that do not know yet
    late: frozenset[tuple[int, int, Entry]] = frozenset()  # lane, number: under way, and the sender is gone
    claims: int = 0
    moves: int = 0
    acknowledged: frozenset[str] = frozenset()
    reader: tuple[frozenset[str], tuple[int, ...]] | None = None  # acknowledged when it began; ends seen, -1: not yet


@dataclass(frozen=True)
class Rules:
    release_names_its_target: bool = True
    luggage_of_all_lanes: bool = True  # ids of every lane that the partition lay in, not of the last one alone
    luggage_to_the_release: bool = True  # read on to its number, not only what was packed before
    generation_is_compared: bool = True
    release_is_read: bool = True  # acquire only what the log says was let go, not what a mover says
    cut_is_closed: bool = True  # over moves
    lost_stops: bool = True
    closed_is_not_claimed: bool = True
    closes_empty: bool = True  # not while it has the partition
    closes_arrived: bool = True  # not while what it has let go was acquired by nobody
    takes_back: bool = True  # what was let go to a lane that has ended without acquiring it
    target_must_have_ended: bool = True  # before it is taken back


@dataclass(frozen=True)
class World:
    numbers_max: int = 4
    claims_max: int = 1
    moves_max: int = 2
    events: tuple[str, ...] = ("a",)
    reads: bool = False
    closes: bool = False


class View(NamedTuple):
    """What a prefix of a lane says."""

    owned: bool
    generation: int
    seen: frozenset[str]


def events_of(lanes: tuple[tuple[Entry, ...], ...], lane: int, last: int) -> frozenset[str]:
    return frozenset(entry.event for entry in lanes[lane][: last + 1] if entry.what == "event")


def luggage(lanes: tuple[tuple[Entry, ...], ...], acquired: Entry, rules: Rules) -> frozenset[str]:
    """The ids that come along with an acquisition, read from the log alone."""
    last = acquired.number if rules.luggage_to_the_release else acquired.read_to
    found = events_of(lanes, acquired.lane, last)
    if rules.luggage_of_all_lanes:
        lane, generation = acquired.lane, acquired.generation
        while generation > 1:  # backwards through the tenures
            generation -= 1
            came = [one for one in lanes[lane] if (one.what, one.generation) == ("acquired", generation)]
            if not came:
                break  # only where a rule is off
            lane = came[0].lane
            found |= events_of(lanes, lane, came[0].number)
    return found


@lru_cache(maxsize=200_000)
def view(lanes: tuple[tuple[Entry, ...], ...], lane: int, known: int, rules: Rules) -> View:
    owned, generation, seen = lane == FIRST, 0, frozenset[str]()
    for entry in lanes[lane][:known]:
        match entry.what:
            case "event":
                seen |= {entry.event}
            case "released":
                owned, generation = False, entry.generation
            case "acquired":
                owned, generation = True, entry.generation
                seen |= luggage(lanes, entry, rules)
    return View(owned, generation, seen)


def next_states(state: State, rules: Rules, world: World) -> Iterator[State]:
    for lane, number, entry in state.late:
        rest = state.late - {(lane, number, entry)}
        yield deliver(state, lane, number, entry)._replace(late=rest)
        yield state._replace(late=rest)  # lost for ever
    for lane in range(LANES):
        length = len(state.lanes[lane])
        may_claim = not (rules.closed_is_not_claimed and has_ended(state.lanes, lane))
        if may_claim and state.claims < world.claims_max and length < world.numbers_max:  # nobody asks who has it
            claimed = deliver(state, lane, length, Entry(100 + state.claims, "epoch"))
            fresh = Writer(100 + state.claims, length + 1)
            yield with_writers(claimed, lane, state.writers[lane] | {fresh})._replace(claims=state.claims + 1)
        for writer in state.writers[lane]:
            yield from steps_of(state, lane, writer, rules, world)
    if world.reads:
        yield from reader_steps(state)


def steps_of(state: State, lane: int, writer: Writer, rules: Rules, world: World) -> Iterator[State]:
    others = state.writers[lane] - {writer}
    pending = writer.pending
    gone = with_writers(state, lane, others)
    if pending is None:
        yield gone  # a crash
        if writer.known < world.numbers_max:
            yield from serve(state, lane, writer, rules, world)
        return
    yield gone._replace(late=state.late | {(lane, writer.known, pending)})  # a crash; what it sent may still arrive
    there = state.lanes[lane][writer.known] if writer.known < len(state.lanes[lane]) else None
    if there is None:
        yield deliver(state, lane, writer.known, pending)
        return
    if there == pending or not rules.lost_stops:  # the answer comes
        acknowledged = state.acknowledged | ({pending.event} if pending.event else set())
        after = {writer._replace(known=writer.known + 1, pending=None)} if pending.what != "closed" else set()
        yield with_writers(state, lane, others | after)._replace(acknowledged=acknowledged)
    else:
        yield gone  # lost: for good


def serve(state: State, lane: int, writer: Writer, rules: Rules, world: World) -> Iterator[State]:
    """What its writer decides by what it knows of its lane, and by what it reads of others."""
    others = state.writers[lane] - {writer}
    mine = view(state.lanes, lane, writer.known, rules)

    def put(entry: Entry) -> State:
        return with_writers(state, lane, others | {writer._replace(pending=entry)})

    if world.closes and may_end(state.lanes, lane, writer.known, mine, rules):
        yield put(Entry(writer.incarnation, "closed"))
    if mine.owned:
        for event in world.events:
            if event in mine.seen:
                yield state._replace(acknowledged=state.acknowledged | {event})  # a durable repeat
            else:
                yield put(Entry(writer.incarnation, "event", event))
        if state.moves < world.moves_max:
            for target in range(LANES):
                if target != lane:
                    released = Entry(writer.incarnation, "released", generation=mine.generation + 1, lane=target)
                    yield put(released)._replace(moves=state.moves + 1)
        return
    back = let_go(state.lanes, lane, writer.known)
    if back is not None and rules.takes_back and came_to_nothing(state.lanes, back[0], rules):
        generation, number = back[0].generation, back[1]
        yield put(
            Entry(writer.incarnation, "acquired", generation=generation, lane=lane, number=number, read_to=number)
        )
    for source in range(LANES):
        if source == lane:
            continue
        if not rules.luggage_to_the_release and writer.packed == NOBODY:
            packed = writer._replace(packed=len(state.lanes[source]) - 1)
            yield with_writers(state, lane, others | {packed})
        found = acquirable(state.lanes, source, lane, mine.generation, rules)
        if found is not None:
            generation, number = found
            read_to = writer.packed if writer.packed != NOBODY else number
            yield put(
                Entry(
                    writer.incarnation,
                    "acquired",
                    generation=generation,
                    lane=source,
                    number=number,
                    read_to=min(read_to, number),
                )
            )


def has_ended(lanes: tuple[tuple[Entry, ...], ...], lane: int) -> bool:
    return any(entry.what == "closed" for entry in lanes[lane])


def let_go(lanes: tuple[tuple[Entry, ...], ...], lane: int, known: int) -> tuple[Entry, int] | None:
    """The release with its number, if that is the last that a lane says of the partition."""
    for number in range(known - 1, -1, -1):
        entry = lanes[lane][number]
        if entry.what in ("released", "acquired"):
            return (entry, number) if entry.what == "released" else None
    return None


def was_acquired(lanes: tuple[tuple[Entry, ...], ...], release: Entry) -> bool:
    return any(e.what == "acquired" and e.generation >= release.generation for lane in lanes for e in lane)


def came_to_nothing(lanes: tuple[tuple[Entry, ...], ...], release: Entry, rules: Rules) -> bool:
    """Whether nobody will ever acquire what was let go."""
    if rules.target_must_have_ended and not has_ended(lanes, release.lane):
        return False
    return not any(e.what == "acquired" and e.generation == release.generation for e in lanes[release.lane])


def may_end(lanes: tuple[tuple[Entry, ...], ...], lane: int, known: int, mine: View, rules: Rules) -> bool:
    """Whether a lane's writer may end it, by what it knows, and what is true of other lanes for ever."""
    if mine.owned:
        return not rules.closes_empty
    last = let_go(lanes, lane, known)
    return last is None or not rules.closes_arrived or was_acquired(lanes, last[0])


def acquirable(
    lanes: tuple[tuple[Entry, ...], ...], source: int, lane: int, generation: int, rules: Rules
) -> tuple[int, int] | None:
    """(generation, number of the release) of what `lane` may take from another lane now."""
    for number in range(len(lanes[source]) - 1, -1, -1):
        entry = lanes[source][number]
        if entry.what not in ("released", "acquired"):
            continue
        if entry.what != "released" or (rules.release_names_its_target and entry.lane != lane):
            break
        if rules.generation_is_compared and entry.generation <= generation:
            break
        return entry.generation, number
    if not rules.release_is_read and view(lanes, source, len(lanes[source]), rules).owned:
        return generation + 1, len(lanes[source]) - 1
    return None


def reader_steps(state: State) -> Iterator[State]:
    if state.reader is None:
        yield state._replace(reader=(state.acknowledged, (NOBODY - 1,) * LANES))
        return
    began, ends = state.reader
    for lane, end in enumerate(ends):
        if end == NOBODY - 1:
            seen = (*ends[:lane], len(state.lanes[lane]) - 1, *ends[lane + 1 :])
            yield state._replace(reader=(began, seen))


def deliver(state: State, lane: int, number: int, entry: Entry) -> State:
    """Put if absent. Numbers beyond the end do not occur: one put is in flight, on what is known."""
    there = state.lanes[lane]
    if number != len(there):
        return state
    return state._replace(lanes=(*state.lanes[:lane], (*there, entry), *state.lanes[lane + 1 :]))


def with_writers(state: State, lane: int, writers: frozenset[Writer]) -> State:
    return state._replace(writers=(*state.writers[:lane], writers, *state.writers[lane + 1 :]))


def broken(state: State, rules: Rules) -> str | None:
    lanes = state.lanes
    events = [entry.event for lane in lanes for entry in lane if entry.event]
    if len(events) != len(set(events)):
        return "I2: an event twice"
    if not state.acknowledged <= set(events):
        return "I1: acknowledged and not in the log"
    for lane in lanes:
        owner = NOBODY
        for entry in lane:
            if entry.what == "epoch":
                owner = entry.writer
            elif entry.writer != owner:
                return "I3: two writers in one epoch"
        if any(entry.what == "closed" for entry in lane[:-1]):
            return "I3: something lies behind the end of a lane"
    views = [view(lanes, lane, len(lanes[lane]), rules) for lane in range(LANES)]
    if sum(one.owned for one in views) > 1:
        return "I5: two lanes have the partition"
    for lane, one in enumerate(views):
        if one.owned and not set(events) <= one.seen:
            return f"I8: lane {lane} has the partition and does not know all of its events"
    if any(one.owned and has_ended(lanes, lane) for lane, one in enumerate(views)):
        return "I9: the partition lies in a lane that has ended"
    if not any(one.owned for one in views):
        newest = max((e for lane in lanes for e in lane if e.what == "released"), key=lambda e: e.generation)
        source = next(place for place, lane in enumerate(lanes) if newest in lane)
        mine = views[newest.lane].generation
        if has_ended(lanes, newest.lane):
            if not rules.takes_back or has_ended(lanes, source):
                return "I9: the partition was let go to a lane that has ended, and nobody can take it back"
        elif acquirable(lanes, source, newest.lane, mine, rules) is None:
            return "I9: nobody can ever take the partition again"
    return broken_cut(state, rules)


def broken_cut(state: State, rules: Rules) -> str | None:
    if state.reader is None or NOBODY - 1 in state.reader[1]:
        return None
    began, ends = state.reader
    cut = list(ends)
    while rules.cut_is_closed:
        before = list(cut)
        for lane in range(LANES):
            for entry in state.lanes[lane][: cut[lane] + 1]:
                if entry.what == "acquired":
                    cut[entry.lane] = max(cut[entry.lane], entry.number)
        if cut == before:
            break
    inside = {(lane, number) for lane in range(LANES) for number in range(cut[lane] + 1)}
    found = {state.lanes[lane][number].event for lane, number in inside}
    if not began <= found:
        return "I10: a cut lacks what was acknowledged before it began"
    places = [place in inside for place in history(state.lanes)]
    if places != sorted(places, reverse=True):
        return "I10: a cut is no prefix of the partition's history"
    return None


def history(lanes: tuple[tuple[Entry, ...], ...]) -> list[tuple[int, int]]:
    """The places of the partition's events through its tenures."""
    found: list[tuple[int, int, int]] = []
    for lane, entries in enumerate(lanes):
        generation = 0
        for number, entry in enumerate(entries):
            if entry.what == "acquired":
                generation = entry.generation
            elif entry.what == "event":
                found.append((generation, lane, number))
    return [(lane, number) for _, lane, number in sorted(found)]


def search(rules: Rules, world: World) -> tuple[int, str | None]:
    view.cache_clear()
    lanes = tuple((Entry(lane, "epoch"),) for lane in range(LANES))
    start = State(lanes, tuple(frozenset({Writer(lane, 1)}) for lane in range(LANES)))
    seen, queue = {start}, deque([start])
    while queue:
        state = queue.popleft()
        for following in next_states(state, rules, world):
            if following not in seen:
                found = broken(following, rules)
                if found is not None:
                    return len(seen), found
                seen.add(following)
                queue.append(following)
    return len(seen), None


WORLDS = {
    "zombies": World(numbers_max=4, claims_max=1, moves_max=2),
    "around": World(numbers_max=5, claims_max=0, moves_max=3),
    "ends": World(numbers_max=4, claims_max=1, moves_max=1, closes=True),
    "ends around": World(numbers_max=5, claims_max=0, moves_max=2, closes=True),
    "cuts": World(numbers_max=4, claims_max=0, moves_max=1, events=("a", "b"), reads=True),
}


@pytest.mark.parametrize("name", WORLDS)
def test_no_interleaving_of_moves_breaks_an_invariant(name: str) -> None:
    states, found = search(Rules(), WORLDS[name])
    print(f"{name}: {states} states")
    assert found is None
    assert states > 5_000, "the search is too small to mean anything"


@pytest.mark.parametrize(
    ("rules", "world", "invariant"),
    [
        (Rules(release_names_its_target=False), "zombies", "I5"),
        (Rules(luggage_of_all_lanes=False), "zombies", "I8"),
        (Rules(luggage_to_the_release=False), "zombies", "I8"),
        (Rules(generation_is_compared=False), "zombies", "I5"),
        (Rules(release_is_read=False), "zombies", "I5"),
        (Rules(lost_stops=False), "zombies", "I1"),
        (Rules(cut_is_closed=False), "cuts", "I10"),
        (Rules(closed_is_not_claimed=False), "ends", "I3"),
        (Rules(closes_empty=False), "ends", "I9"),
        (Rules(closes_arrived=False), "ends", "I9"),
        (Rules(takes_back=False), "ends", "I9"),
        (Rules(target_must_have_ended=False), "ends", "I5"),
    ],
    ids=str,
)
def test_each_rule_of_moves_switched_off_is_caught(rules: Rules, world: str, invariant: str) -> None:
    _, found = search(rules, WORLDS[world])
    assert found is not None
    assert found.startswith(invariant)
