"""Things travel by tenant in turns: nobody waits behind all that somebody else has sent."""

from dataclasses import dataclass

from actors.fair_turns import TURN_BYTES, FairTurns, Held

KB = 1_024


@dataclass(frozen=True)
class Part:
    tenant_id: str
    bytes: int
    number: int = 0
    rows: int = 3


def test_one_event_does_not_wait_behind_a_flood() -> None:
    turns: FairTurns[Part] = FairTurns()
    for number in range(100):
        turns.append(Part("flood", 4_000 * KB, number))
    turns.popleft()
    turns.append(Part("small", 200))
    assert "small" in [turns.popleft().tenant_id for _ in range(2)]


def test_tenants_share_by_bytes_and_keep_their_own_order() -> None:
    turns: FairTurns[Part] = FairTurns()
    sizes = {"big": 600 * KB, "middle": 60 * KB, "small": 1 * KB}
    sent = {tenant_id: 6_000 * KB // size for tenant_id, size in sizes.items()}
    for tenant_id, size in sizes.items():
        for number in range(sent[tenant_id]):
            turns.append(Part(tenant_id, size, number))
    carried = dict.fromkeys(sizes, 0)
    count = dict.fromkeys(sizes, 0)
    while turns:
        assert turns.first() is turns.first()
        part = turns.popleft()
        assert part.number == count[part.tenant_id]
        count[part.tenant_id] += 1
        carried[part.tenant_id] += part.bytes
        if max(carried.values()) < 5_000 * KB:  # all three still wait
            assert max(carried.values()) - min(carried.values()) <= 600 * KB + 2 * TURN_BYTES, carried
    assert count == sent


def test_it_knows_what_waits_of_all_and_of_each() -> None:
    turns: FairTurns[Part] = FairTurns()
    for tenant_id, size in (("a", 10), ("b", 200), ("a", 30)):
        turns.append(Part(tenant_id, size))
    assert (turns.held, turns.held_of("a"), turns.held_of("b")) == (Held(9, 240), Held(6, 40), Held(3, 200))
    while turns:
        turns.popleft()
    assert turns.held == turns.held_of("a") == Held(0, 0)
    turns.append(Part("a", 10))
    turns.clear()
    assert (turns.held, list(turns)) == (Held(), [])
