"""Followers and decisions in a shard: a small one that counts, through crashes, repeats, refusals and faults."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from actors.decisions import ANY_PARTITION, DecisionAnswer, DecisionRequest, decode_decided, encode_request
from actors.followers import NO_ROWS, Decided, LogMoment, LogRow, log_rows
from actors.local_router import LocalUsageRouter
from actors.rating_shard import RatingShard, ShardSettings
from actors.tenant_clocks import SET_CLOCK
from billing.errors import Conflict, InvalidInput, NotFound, Unavailable
from billing.usage import Verdict
from storage.object_store import LocalObjectStore, ObjectStore, StoreRefused, StoreUnavailable
from storage.usage_log.genesis import open_log
from storage.usage_log.lane import walk
from storage.usage_log.manifest import ManifestChain
from storage.usage_log.partitions import partition_of
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.segment import RowKind, microseconds_of
from tests.usage_log_support import OTHER_TENANT, TENANT, Hooked, encoded, make_events, send

SOURCE = "cloudbilling:test"
LIMIT = 10  # what a customer may take in all
CROSSING = 4  # events of a customer at which a row is proposed

Opener = Callable[..., tuple[RatingShard, "Purse"]]


class Purse:
    """Counts the events of a customer, and hands out at most LIMIT to each."""

    name, version = "purse", 1

    def __init__(self) -> None:
        self.decisions = {"take": self.take, "look": self.look, "rude": self.rude}
        self.watched = {TENANT}
        self.poison: str | None = None  # raise when a row has this id
        self.seen: list[tuple[int, str]] = []  # (number, id) in the order of `apply`
        self.clear()

    def clear(self) -> None:
        self.events: dict[str, int] = {}
        self.taken: dict[str, int] = {}
        self.verdicts: dict[str, int] = {}

    def watches(self, tenant_id: str) -> bool:
        return tenant_id in self.watched

    def propose(self, rows: pl.DataFrame, moment: LogMoment) -> pl.DataFrame:
        usage = rows.filter(pl.col("kind") == int(RowKind.USAGE)).group_by("customer").len()
        crossed = [
            LogRow(RowKind.THRESHOLD_CROSSED, SOURCE, f"crossed-{customer}", customer, moment.now_us(TENANT))
            for customer, count in usage.iter_rows()
            if self.events.get(customer, 0) + count >= CROSSING  # again and again: the log drops the repeats
        ]
        return log_rows(TENANT, crossed)

    def apply(self, rows: pl.DataFrame, moment: LogMoment) -> None:
        for kind, id_, customer, detail in rows.select("kind", "id", "customer", "detail").iter_rows():
            if id_ == self.poison:
                raise ValueError("poisoned")
            self.seen.append((moment.number, id_))
            if kind == RowKind.USAGE:
                self.events[customer] = self.events.get(customer, 0) + 1
            elif kind == RowKind.RESERVED:
                amount = json.loads(detail)["amount"]
                self.taken[customer] = self.taken.get(customer, 0) + amount
                self.verdicts[id_] = amount

    def freeze(self) -> Callable[[], bytes]:
        state = [dict(self.events), dict(self.taken), dict(self.verdicts)]
        return lambda: json.dumps(state).encode()

    def thaw(self, data: bytes, number: int) -> None:
        self.events, self.taken, self.verdicts = json.loads(data)

    def state(self) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        return self.events, self.taken, self.verdicts

    def take(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        asked = json.loads(payload)
        id_, customer = asked["id"], asked["customer"]
        if asked["amount"] <= 0:
            raise InvalidInput("Take more than nothing.")
        if id_ in self.verdicts:
            return Decided(NO_ROWS, str(self.verdicts[id_]).encode())
        granted = min(asked["amount"], LIMIT - self.taken.get(customer, 0))
        row = LogRow(RowKind.RESERVED, SOURCE, id_, customer, moment.now_us(tenant_id), {"amount": granted})
        return Decided(log_rows(tenant_id, [row]), str(granted).encode())

    def look(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        customer = payload.decode()
        found = [self.events.get(customer, 0), self.taken.get(customer, 0)]
        return Decided(NO_ROWS, json.dumps(found).encode())

    def rude(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        raise ZeroDivisionError("a bug")


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


@pytest.fixture
def opened(store: LocalObjectStore) -> Iterator[Opener]:
    shards: list[RatingShard] = []

    def open_shard(
        there: ObjectStore | None = None, *, purse: Purse | None = None, **settings: Any
    ) -> tuple[RatingShard, Purse]:
        purse = purse or Purse()
        shard = RatingShard(0, there or store, settings=ShardSettings(**settings), followers=[purse])
        shards.append(shard)
        shard.start()
        return shard, purse

    yield open_shard
    for shard in shards:
        shard.stop(2.0)


def ask(shard: RatingShard, name: str, payload: bytes, customer: str, tenant_id: str = TENANT) -> Future[bytes]:
    assert shard.genesis is not None
    partition = partition_of(shard.genesis.seed, tenant_id, customer)
    return shard.decide_named(encode_request(DecisionRequest(tenant_id, partition, name, payload)))


def take(shard: RatingShard, id_: str, amount: int, customer: str = "customer-1") -> DecisionAnswer:
    payload = json.dumps({"id": id_, "customer": customer, "amount": amount}).encode()
    return decode_decided(ask(shard, "take", payload, customer).result(20))


def look(shard: RatingShard, customer: str = "customer-1") -> list[int]:
    answer = decode_decided(ask(shard, "look", customer.encode(), customer).result(20))
    if answer.error is not None:
        raise answer.error
    found: list[int] = json.loads(answer.body)
    return found


def kinds(store: ObjectStore) -> list[tuple[int, int, str]]:
    return [
        (segment.head.number, kind, id_)
        for segment in walk(store, 0, 0)
        for kind, id_ in segment.rows(["kind", "id"]).iter_rows()
    ]


def test_a_decision_is_a_row_of_the_log_and_its_repeat_gets_the_recorded_verdict(
    store: LocalObjectStore, opened: Opener
) -> None:
    shard, _ = opened()
    assert take(shard, "r1", 7).body == b"7"
    assert take(shard, "r2", 7).body == b"3"
    assert take(shard, "r1", 1).body == b"7"
    assert [id_ for _, kind, id_ in kinds(store) if kind == RowKind.RESERVED] == ["r1", "r2"]
    shard.stop()
    successor, _ = opened()
    assert take(successor, "r2", 9).body == b"3"
    assert take(successor, "r3", 9).body == b"0"
    counters = UsageLogReader(store).counters(UsageLogReader(store).now(), TENANT)
    assert counters["stored"].sum() == 0, "decisions are no usage"


def test_decisions_and_usage_of_one_group_see_each_other_in_the_order_of_their_arrival(
    store: LocalObjectStore, opened: Opener
) -> None:
    """All wait while a put is held: they make one group, and no decision is made on the state before it."""
    release, blocked = threading.Event(), threading.Event()

    def before(call: str, key: str) -> None:
        if call == "create" and "/lanes/" in key and key.endswith("000000000001.parquet"):
            blocked.set()
            release.wait(20)

    shard, purse = opened(Hooked(store, before))
    assert shard.genesis is not None
    first = ask(
        shard, "take", json.dumps({"id": "first", "customer": "customer-9", "amount": 1}).encode(), "customer-9"
    )
    assert blocked.wait(10)
    asked: list[Future[bytes]] = []
    for number in range(20):
        payload = json.dumps({"id": f"r{number}", "customer": "customer-1", "amount": 3}).encode()
        asked.append(ask(shard, "take", payload, "customer-1"))
    seen = ask(shard, "look", b"customer-1", "customer-1")
    usage = shard.submit(encoded(shard.genesis.seed, make_events(50)))
    after = ask(shard, "look", b"customer-1", "customer-1")
    release.set()
    assert decode_decided(first.result(20)).body == b"1"
    assert [int(decode_decided(one.result(20)).body) for one in asked] == [3, 3, 3, 1] + [0] * 16
    assert json.loads(decode_decided(seen.result(20)).body) == [0, 10]
    assert json.loads(decode_decided(after.result(20)).body) == [1, 10]
    usage.result(20)
    assert {number for number, _, id_ in kinds(store) if id_ != "first"} == {2}, "they were not one group"
    shard.stop()
    _, recovered = opened()
    assert recovered.state() == purse.state()


def test_what_a_follower_proposes_stands_in_the_same_segment_once(store: LocalObjectStore, opened: Opener) -> None:
    shard, _ = opened()
    for first in range(0, 300, 50):  # each customer once per batch
        assert (send(shard, make_events(50, first)).verdicts == Verdict.ACCEPTED).all()
    crossed = [(number, id_) for number, kind, id_ in kinds(store) if kind == RowKind.THRESHOLD_CROSSED]
    assert {number for number, _ in crossed} == {4}, "the fourth batch crosses"
    assert sorted(id_ for _, id_ in crossed) == sorted(f"crossed-customer-{number}" for number in range(50))
    reader = UsageLogReader(store)
    assert sum(frame.height for frame in reader.scan(TENANT, reader.now())) == 300, "readers of usage see usage only"


def test_tenants_that_nobody_watches_reach_no_follower(store: LocalObjectStore, opened: Opener) -> None:
    shard, purse = opened()
    send(shard, make_events(20), OTHER_TENANT)
    send(shard, make_events(5), TENANT)
    look(shard)  # usage is answered before it is applied, a decision waits for both
    assert sorted(id_ for _, id_ in purse.seen) == [f"event-{number}" for number in range(5)]


@pytest.mark.parametrize("checkpoint_rows", [30, 1_000_000], ids=["from snapshots", "from the log"])
def test_a_recovered_follower_is_what_the_log_says(
    store: LocalObjectStore, opened: Opener, checkpoint_rows: int
) -> None:
    shard, purse = opened(checkpoint_rows=checkpoint_rows)
    for number in range(40):
        take(shard, f"r{number}", 1, f"customer-{number % 7}")
        send(shard, make_events(10, number * 10))
        if checkpoint_rows < 100:
            while shard.state.checkpoint_thread is not None:
                shard.state.checkpoint_thread.join(0.05)
    shard.stop()
    named = ManifestChain(store).newest().snapshots
    assert (0 in named) == (checkpoint_rows < 100)
    successor, recovered = opened()
    assert recovered.state() == purse.state()
    assert recovered.taken["customer-1"] == 6
    assert {id_ for _, id_ in recovered.seen} < {id_ for _, id_ in purse.seen} or checkpoint_rows > 100
    assert take(successor, "r3", 5, "customer-3").body == b"1"


def test_a_writer_that_was_overtaken_decides_nothing_any_more(store: LocalObjectStore, opened: Opener) -> None:
    """As after a crash of the node: the successor folds the log while the zombie still believes that it serves."""
    zombie, _ = opened()
    take(zombie, "r1", 4)
    successor, _ = opened()
    assert take(successor, "r2", 5).body == b"5"
    lost = take(zombie, "r3", 6)
    assert isinstance(lost.error, Unavailable)
    assert not zombie.serving
    assert take(successor, "r3", 6).body == b"1"
    assert [id_ for _, kind, id_ in kinds(store) if kind == RowKind.RESERVED] == ["r1", "r2", "r3"]


def test_a_follower_of_another_version_or_a_new_one_is_folded_from_the_whole_log(
    store: LocalObjectStore, opened: Opener
) -> None:
    shard, purse = opened(checkpoint_rows=30)
    for number in range(10):
        take(shard, f"r{number}", 1)
        send(shard, make_events(10, number * 10))
    while shard.status().checkpoint < 0:
        send(shard, make_events(1))
    shard.stop()
    newer = Purse()
    newer.version = 2
    _, folded = opened(purse=newer)
    assert folded.state() == purse.state()
    assert len(folded.seen) == len({id_ for _, id_ in folded.seen}) == len(purse.seen)


def test_after_a_refusal_by_the_store_a_decision_counts_for_nothing(store: LocalObjectStore, opened: Opener) -> None:
    full = False

    def before(call: str, key: str) -> None:
        if full and call == "create" and "/lanes/" in key:
            raise StoreRefused("disk full")

    shard, purse = opened(Hooked(store, before))
    assert take(shard, "r1", 4).body == b"4"
    full = True
    refused = take(shard, "r2", 6)
    assert isinstance(refused.error, StoreRefused)
    full = False
    assert look(shard) == [0, 4], "what was not stored was still counted"
    assert take(shard, "r2", 5).body == b"5", "its id is free"
    assert purse.taken == {"customer-1": 9}
    shard.stop()
    _, recovered = opened()
    assert recovered.state() == purse.state()


def test_a_follower_that_raises_is_put_aside_and_usage_goes_on(opened: Opener) -> None:
    shard, purse = opened()
    take(shard, "r1", 4)
    purse.poison = "event-3"
    assert (send(shard, make_events(10)).verdicts == Verdict.ACCEPTED).all()
    with pytest.raises(Unavailable, match="purse"):
        look(shard, "customer-5")
    assert "poisoned" in shard.status().followers_error
    assert (send(shard, make_events(5, 10)).verdicts == Verdict.ACCEPTED).all()
    purse.poison = None
    shard._refold_at_s = shard.state.followers._again_at_s = 0.0  # the next try is due
    assert look(shard, "customer-12") == [1, 0]
    assert look(shard, "customer-1") == [1, 4]
    assert shard.status().followers_error == ""


def test_a_follower_that_raises_for_one_tenant_goes_on_for_all_others(opened: Opener, store: LocalObjectStore) -> None:
    shard, purse = opened(checkpoint_rows=1, checkpoint_s=0.0)
    purse.watched = {TENANT, OTHER_TENANT}
    assert (send(shard, make_events(4), OTHER_TENANT).verdicts == Verdict.ACCEPTED).all()
    purse.poison = "event-7"
    assert (send(shard, make_events(10), TENANT).verdicts == Verdict.ACCEPTED).all()
    assert (send(shard, make_events(3, 10), OTHER_TENANT).verdicts == Verdict.ACCEPTED).all()

    def look_of(tenant_id: str, customer: str) -> list[int]:
        answer = decode_decided(ask(shard, "look", customer.encode(), customer, tenant_id).result(20))
        if answer.error is not None:
            raise answer.error
        return list(json.loads(answer.body))

    assert look_of(OTHER_TENANT, "customer-11") == [1, 0]
    for customer in ("customer-1", "customer-7"):
        with pytest.raises(Unavailable, match="poisoned"):
            look_of(TENANT, customer)
    assert shard.status().followers_error == f"purse of tenant {TENANT}: ValueError: poisoned"
    # It was folded again by itself, and is not tried with every group from then on.
    tries = purse.seen.count((0, "event-0"))
    for number in range(5):
        send(shard, make_events(1, 20 + number), OTHER_TENANT)
    assert purse.seen.count((0, "event-0")) == tries
    purse.poison = None
    shard._refold_at_s = shard.state.followers._again_at_s = 0.0  # the next try is due
    assert look_of(TENANT, "customer-7") == [1, 0]
    assert shard.status().followers_error == ""
    shard.stop()
    recovered = Purse()
    recovered.watched = {TENANT, OTHER_TENANT}
    opened(purse=recovered)
    assert recovered.state() == purse.state()


def test_a_decision_that_fails_writes_nothing_and_says_why(store: LocalObjectStore, opened: Opener) -> None:
    shard, _ = opened()
    assert isinstance(take(shard, "r1", -1).error, InvalidInput)
    rude = decode_decided(ask(shard, "rude", b"", "customer-1").result(20))
    assert rude.error is not None
    assert "ZeroDivisionError" in rude.error.detail
    unknown = decode_decided(ask(shard, "dance", b"", "customer-1").result(20))
    assert isinstance(unknown.error, NotFound)
    assert kinds(store) == []
    assert take(shard, "r1", 1).body == b"1"


def test_an_id_whose_verdict_was_forgotten_is_refused_and_never_decided_twice(
    store: LocalObjectStore, opened: Opener
) -> None:
    shard, purse = opened()
    take(shard, "r1", 4)
    purse.verdicts.clear()
    again = take(shard, "r1", 4)
    assert isinstance(again.error, Conflict)
    assert len(kinds(store)) == 1
    recorded: list[list[bool]] = []

    def decider(moment: LogMoment) -> Decided:
        wanted = [("customer-1", SOURCE, "r1"), ("customer-1", SOURCE, "r2"), ("customer-2", SOURCE, "r1")]
        recorded.append(moment.is_recorded(TENANT, wanted))
        return Decided(NO_ROWS, b"")

    shard.decide(TENANT, 0, decider).result(20)
    assert recorded == [[True, False, False]]


def test_the_clock_of_a_test_tenant_is_in_every_lane_and_never_goes_back(store: LocalObjectStore) -> None:
    at = datetime(2027, 3, 1, tzinfo=UTC)

    async def scene(router: LocalUsageRouter) -> None:
        await router.ingest(TENANT, make_events(100))
        await router.advance_clock(TENANT, at)
        await router.advance_clock(TENANT, at)  # harmless
        await router.advance_clock(TENANT, at - timedelta(days=3))  # it does not go back
        await router.ingest(TENANT, make_events(100, 100))
        await router.ingest(OTHER_TENANT, make_events(100, 100))

    def play(router: LocalUsageRouter) -> None:
        async def whole() -> None:
            await scene(router)
            await router.close()

        asyncio.run(whole())

    began = datetime.now(UTC)
    play(LocalUsageRouter.open(store, shards=3))
    reader = UsageLogReader(store)
    set_ = pl.concat(reader.scan(TENANT, reader.now(), kinds=(RowKind.CLOCK_SET,)))
    assert sorted(set_["lane"]) == [0, 1, 2]
    assert set_["time"].unique().to_list() == [at]
    rows = pl.concat(reader.scan(TENANT, reader.now()))
    number = pl.col("id").str.strip_prefix("event-").cast(pl.Int64)
    assert (rows.filter(number >= 100)["received_at"] == at).all()
    assert (rows.filter(number < 100)["received_at"] < began + timedelta(minutes=5)).all()
    others = pl.concat(reader.scan(OTHER_TENANT, reader.now()))
    assert (others["received_at"] < began + timedelta(minutes=5)).all()

    again = LocalUsageRouter.open(store)  # recovered from the log
    for shard in again.shards.values():
        assert shard.state.clocks.times == {TENANT: microseconds_of(at)}
    again.stop()


@pytest.mark.parametrize("cause", ["a follower raised", "the store refused"])
def test_a_test_clock_stands_while_followers_cannot_be_folded_again(
    store: LocalObjectStore, opened: Opener, cause: str
) -> None:
    at = datetime(2027, 3, 1, tzinfo=UTC)
    full, away = False, False

    def before(call: str, key: str) -> None:
        if full and call == "create" and "/lanes/" in key:
            raise StoreRefused("disk full")
        if away and call == "get" and "/lanes/" in key:
            raise StoreUnavailable("the network is away")

    def move(to: datetime) -> DecisionAnswer:
        asked = DecisionRequest(TENANT, ANY_PARTITION, SET_CLOCK, str(microseconds_of(to)).encode())
        return decode_decided(shard.decide_named(encode_request(asked)).result(20))

    shard, purse = opened(Hooked(store, before))
    assert move(at).error is None
    if cause == "a follower raised":
        purse.poison = "event-3"
        send(shard, make_events(10))
        with pytest.raises(Unavailable, match="purse"):
            look(shard)  # usage is answered before it is applied, a decision waits for both
        purse.poison = None
    else:
        full = True
        assert isinstance(move(at + timedelta(days=9)).error, StoreRefused)
        full = False
    away = True
    shard._refold_at_s = shard.state.followers._again_at_s = 0.0
    send(shard, make_events(10, 10))  # the fold fails in front of this group
    send(shard, make_events(10, 20))
    assert isinstance(move(at + timedelta(days=1)).error, Unavailable)
    away = False
    shard._refold_at_s = shard.state.followers._again_at_s = 0.0
    send(shard, make_events(10, 30))
    assert look(shard, "customer-32") == [1, 0]
    assert shard.state.clocks.times == {TENANT: microseconds_of(at)}
    assert purse.events["customer-12"] == purse.events["customer-22"] == 1
    reader = UsageLogReader(store)
    assert set(pl.concat(reader.scan(TENANT, reader.now()))["received_at"]) == {at}, "rows have a time that never was"


def test_a_router_asks_the_lane_of_the_key_and_repeats_until_there_is_an_answer(store: LocalObjectStore) -> None:
    purses = {lane: Purse() for lane in range(3)}
    router = LocalUsageRouter.open(store, shards=3, followers=lambda lane, *_: [purses[lane]])
    seed = open_log(store).seed

    async def scene() -> None:
        original = router._decide
        cut = iter([True] + [False] * 100)

        async def cut_off(lane: int, data: bytes) -> bytes:
            answer = await original(lane, data)
            if next(cut):
                raise Unavailable("the connection broke")  # decided, and nobody heard it
            return answer

        router._decide = cut_off  # type: ignore[method-assign]
        for number in range(12):
            customer = f"customer-{number}"
            payload = json.dumps({"id": f"r{number}", "customer": customer, "amount": 2}).encode()
            assert await router.decide(TENANT, customer, "take", payload) == b"2"
        payload = json.dumps({"id": "r", "customer": "customer-1", "amount": 0}).encode()
        with pytest.raises(InvalidInput, match="more than nothing"):
            await router.decide(TENANT, "customer-1", "take", payload)
        router._route[:] = 2
        router._generation[:] = -1
        assert json.loads(await router.decide(TENANT, "customer-1", "look", b"customer-1")) == [0, 2]
        await router.close()

    asyncio.run(scene())
    for number in range(12):
        lane = partition_of(seed, TENANT, f"customer-{number}") % 3
        assert purses[lane].taken == purses[lane].taken | {f"customer-{number}": 2}


def test_an_answer_that_must_be_true_now_waits_for_a_put_that_a_zombie_loses(
    store: LocalObjectStore, opened: Opener
) -> None:
    zombie, _ = opened()
    opened()  # a successor
    calm = zombie.decide(TENANT, 0, lambda _: Decided(NO_ROWS, b"old")).result(20)
    assert decode_decided(calm).body == b"old"
    sure = decode_decided(zombie.decide(TENANT, 0, lambda _: Decided(NO_ROWS, b"old", forces_put=True)).result(20))
    assert isinstance(sure.error, Unavailable)
    successor, _ = opened()
    before = successor.status().number
    now = decode_decided(successor.decide(TENANT, 0, lambda _: Decided(NO_ROWS, b"now", forces_put=True)).result(20))
    assert (now.body, now.number) == (b"now", before + 1)
    assert kinds(store) == []


def test_rows_that_belong_elsewhere_are_the_fault_of_who_made_them_and_the_lane_goes_on(
    store: LocalObjectStore, opened: Opener
) -> None:
    open_log(store, lanes=2)
    shard, purse = opened()
    seed = open_log(store).seed
    foreign = next(f"c-{n}" for n in range(99) if partition_of(seed, TENANT, f"c-{n}") % 2 == 1)
    row = LogRow(RowKind.RESERVED, SOURCE, "x", foreign, 0, {"amount": 1})
    for rows in (log_rows(TENANT, [row]), log_rows(OTHER_TENANT, [row])):
        answer = decode_decided(shard.decide(TENANT, 0, lambda _, rows=rows: Decided(rows, b"")).result(20))  # type: ignore[misc]
        assert answer.error is not None
        assert "AssertionError" in answer.error.detail
    purse.propose = lambda rows, moment: log_rows(TENANT, [row])  # type: ignore[method-assign]
    shard._refold_at_s = time.monotonic() + 60  # else it is folded again before the next group
    send(shard, make_events(20))
    at_home = next(f"c-{n}" for n in range(99) if partition_of(seed, TENANT, f"c-{n}") % 2 == 0)
    with pytest.raises(Unavailable, match="another lane"):
        look(shard, at_home)
    assert shard.serving
    assert {kind for _, kind, _ in kinds(store)} == {RowKind.USAGE}
