"""Reservations and wallets go where their customers' partitions go: the same verdicts, whoever dies at any step."""

import asyncio
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from actors.accounts_desk import AccountsDesk, Problem, RunDesk
from actors.decisions import decode_decided
from actors.local_router import LocalLaneCalls, LocalUsageRouter
from actors.partition_mover import finish, move_partition
from billing.run_credit import Ask, Move, RunHold
from storage.object_store import LocalObjectStore
from storage.usage_log.partitions import partition_of
from tests.actors.accounts_support import START, Place, customer, place, top_up
from tests.usage_log_support import TENANT


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    made = place(tmp_path)
    yield made
    made.close()


def router_of(here: Place) -> LocalUsageRouter:
    assert here.router is not None
    return here.router


def home(here: Place, code: str) -> tuple[int, int]:
    """Partition and lane of a customer."""
    router = router_of(here)
    partition = partition_of(router._genesis.seed, TENANT, code)
    (lane,) = [shard.lane for shard in router.shards.values() if partition in shard.status().owned]
    return partition, lane


def move(here: Place, code: str) -> None:
    partition, lane = home(here, code)
    generation = router_of(here).shards[lane].status().generation_of(partition)
    move_partition(LocalLaneCalls(router_of(here).shards), partition, lane, 1 - lane, generation)


def in_different_lanes(here: Place) -> tuple[str, str]:
    codes = [f"customer-{number}" for number in range(30)]
    here.masters.apply(*(step for code in codes for step in (customer(code), top_up(code, "10.00"))))
    first = codes[0]
    return first, next(code for code in codes if home(here, code)[1] != home(here, first)[1])


def one(call: Any) -> Any:
    [outcome] = asyncio.run(call)
    return outcome


def seen(desk: AccountsDesk, code: str) -> Any:
    """All that a customer's lane says of him, but where it is."""
    form = one(desk.wallets(TENANT, [code]))
    reservations = asyncio.run(desk.of_customer(TENANT, code))
    return form["wallets"], reservations


@pytest.mark.parametrize("step", ["before", "prepared", "released", "acquired"])
def test_who_dies_at_any_step_of_a_move_leaves_every_verdict_as_it_was(here: Place, step: str) -> None:
    here.masters.apply(customer("acme"), top_up("acme", "50.00"), top_up("acme", "9.99", kind="promotional"))
    desk = here.open()
    expires = (START + timedelta(minutes=5)).isoformat()
    forms = [{"customer": "acme", "id": f"r{n}", "amount": "3.00", "expires": expires} for n in range(5)]
    asyncio.run(desk.reserve(TENANT, forms))
    one(desk.commit(TENANT, [{"id": "r0", "customer": "acme", "amount": "1.25"}]))
    one(desk.release(TENANT, [{"id": "r1", "customer": "acme"}]))
    asks = {"acme": [Ask("d", "EUR", "purchased", Decimal("4.00"), Decimal("4.00"))]}
    held = RunDesk(router_of(here)).run_hold(TENANT, RunHold("run", asks, START, 99))
    before = seen(desk, "acme")
    partition, lane = home(here, "acme")
    calls = LocalLaneCalls(router_of(here).shards)
    if step != "before":
        calls.prepare_move(1 - lane, partition, lane, 0)
    if step in ("released", "acquired"):
        calls.release(lane, partition, 1 - lane)
    if step == "acquired":
        calls.acquire(1 - lane, partition, lane)
    here.kill()

    desk = here.open()
    shards = router_of(here).shards
    assert finish(LocalLaneCalls(shards), [shard.status() for shard in shards.values()]) == []
    assert home(here, "acme")[1] == (1 - lane if step in ("released", "acquired") else lane)
    assert seen(desk, "acme") == before
    assert [form["granted"] for form in asyncio.run(desk.reserve(TENANT, forms))] == ["3.00"] * 5
    way = RunDesk(router_of(here))
    assert way.run_hold(TENANT, RunHold("run", asks, START, 99)) == held
    assert way.run_move(TENANT, [Move("settle", "run", "acme", {"d": "RE-1"})]) == 1
    assert way.run_move(TENANT, [Move("settle", "run", "acme", {"d": "RE-1"})]) == 0
    here.clock.now = START + timedelta(minutes=6)
    [wallet] = one(desk.wallets(TENANT, ["acme"]))["wallets"]
    assert (wallet["reserved"], wallet["available"]) == ("0.00", "54.74"), "what is over holds nothing, there too"
    here.kill()
    assert one(here.open().wallets(TENANT, ["acme"]))["wallets"] == [wallet]


def test_an_account_that_wanders_and_comes_back_is_what_it_was(here: Place) -> None:
    here.masters.apply(customer("acme"), top_up("acme", "50.00"))
    desk = here.open()
    for turn in range(5):
        one(desk.reserve(TENANT, [{"customer": "acme", "id": f"r{turn}", "amount": "2.00"}]))
        if turn:
            one(desk.commit(TENANT, [{"id": f"r{turn - 1}", "customer": "acme", "amount": "1.50"}]))
        before = seen(desk, "acme")
        move(here, "acme")
        assert seen(desk, "acme") == before, f"turn {turn}"
        if turn == 2:
            here.kill()
            desk = here.open()
            assert seen(desk, "acme") == before
    [wallet] = one(desk.wallets(TENANT, ["acme"]))["wallets"]
    assert (wallet["balance"], wallet["reserved"]) == ("44.00", "2.00")


def test_a_call_for_customers_who_are_no_longer_in_one_lane_is_taken_apart_and_loses_nothing(here: Place) -> None:
    desk = here.open()
    stay, go = in_different_lanes(here)
    move(here, go)
    forms = [{"customer": code, "id": f"{code}/1", "amount": "1.00"} for code in (stay, go)]
    assert [form["granted"] for form in asyncio.run(desk.reserve(TENANT, forms))] == ["1.00", "1.00"]
    move(here, go)  # the desk still believes them together
    forms = [{"customer": code, "id": f"{code}/2", "amount": "1.00"} for code in (stay, go)]
    assert [form["granted"] for form in asyncio.run(desk.reserve(TENANT, forms))] == ["1.00", "1.00"]
    move(here, go)
    move(here, go)
    wallets = asyncio.run(desk.wallets(TENANT, [stay, go]))
    assert [form["wallets"][0]["reserved"] for form in wallets] == ["2.00", "2.00"]


def test_who_is_on_his_way_to_a_lane_that_never_saw_a_move_waits_with_those_he_is_sent_with(here: Place) -> None:
    """The lane that let him go names the other one, which has nothing of him yet."""
    desk = here.open()
    stay, go = in_different_lanes(here)
    partition, lane = home(here, go)
    calls = LocalLaneCalls(router_of(here).shards)
    calls.release(lane, partition, 1 - lane)

    def later() -> None:
        time.sleep(0.4)
        calls.acquire(1 - lane, partition, lane)

    threading.Thread(target=later).start()
    router_of(here)._learn_owners({partition: (1, 1 - lane)})
    forms = [{"customer": code, "id": f"{code}/1", "amount": "1.00"} for code in (stay, go)]
    assert [form["granted"] for form in asyncio.run(desk.reserve(TENANT, forms))] == ["1.00", "1.00"]


def test_two_customers_with_one_reservation_id_keep_theirs_when_they_meet_in_one_lane(here: Place) -> None:
    desk = here.open()
    left, right = in_different_lanes(here)
    for code in (left, right):
        assert one(desk.reserve(TENANT, [{"customer": code, "id": "same", "amount": "4.00"}]))["granted"] == "4.00"
    move(here, right)
    for code in (left, right):
        assert one(desk.reserve(TENANT, [{"customer": code, "id": "same", "amount": "9.00"}]))["granted"] == "4.00"
    assert {form["customer"] for form in asyncio.run(desk.find(TENANT, ["same"]))} == {left, right}
    assert one(desk.commit(TENANT, [{"customer": left, "id": "same", "amount": "1.00"}]))["committed"] == "1.00"
    move(here, left)  # he goes, and the other one's stays
    assert one(desk.commit(TENANT, [{"customer": right, "id": "same", "amount": "2.00"}]))["committed"] == "2.00"
    assert one(desk.release(TENANT, [{"customer": left, "id": "same"}])).code == "conflict"
    here.kill()
    again = here.open()
    found = {form["customer"]: form["committed"] for form in asyncio.run(again.find(TENANT, ["same"]))}
    assert found == {left: "1.00", right: "2.00"}


def test_a_reservation_that_is_on_its_way_is_waited_for_and_not_denied(here: Place) -> None:
    here.masters.apply(customer("acme"), top_up("acme", "50.00"))
    desk = here.open()
    one(desk.reserve(TENANT, [{"customer": "acme", "id": "r1", "amount": "2.00"}]))
    partition, lane = home(here, "acme")
    calls = LocalLaneCalls(router_of(here).shards)
    assert decode_decided(calls.release(lane, partition, 1 - lane)).error is None

    def later() -> None:
        time.sleep(0.4)
        calls.acquire(1 - lane, partition, lane)

    thread = threading.Thread(target=later)
    thread.start()
    outcome = one(desk.commit(TENANT, [{"id": "r1", "amount": "1.00"}]))  # the customer is not said
    thread.join()
    assert not isinstance(outcome, Problem), outcome
    assert outcome["committed"] == "1.00"


def test_what_was_decided_before_is_read_before_the_partition_stands_still(here: Place, monkeypatch: Any) -> None:
    """Between release and acquisition only the tail is read, however long the partition's past, whatever its lanes."""
    here.masters.apply(customer("acme"), top_up("acme", "50.00"))
    desk = here.open()
    reads: list[str] = []
    plain = LocalObjectStore.get

    def counted(store: LocalObjectStore, key: str) -> bytes | None:
        reads.append(key)
        return plain(store, key)

    monkeypatch.setattr(LocalObjectStore, "get", counted)
    for turn in range(3):
        for number in range(40):
            one(desk.reserve(TENANT, [{"customer": "acme", "id": f"r{turn}-{number}", "amount": "0.10"}]))
        partition, lane = home(here, "acme")
        shards = router_of(here).shards
        calls = LocalLaneCalls(shards)
        calls.prepare_move(1 - lane, partition, lane, shards[lane].status().generation_of(partition))
        reads.clear()
        calls.release(lane, partition, 1 - lane)
        calls.acquire(1 - lane, partition, lane)
        segments = [key for key in reads if "lanes/" in key]
        assert len(segments) < 20, f"turn {turn}: {len(segments)} segments were read while nobody served it"
        assert home(here, "acme")[1] == 1 - lane
    [wallet] = one(desk.wallets(TENANT, ["acme"]))["wallets"]
    assert wallet["reserved"] == "12.00"
