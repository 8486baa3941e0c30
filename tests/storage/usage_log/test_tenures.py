"""The proof of the log sees whose partition was whose: rows in a lane that did not have it, moves nothing leads to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import polars as pl
import pytest

from actors.decisions import ANY_PARTITION, decode_decided
from actors.followers import NO_ROWS, Decided
from actors.local_router import LocalUsageRouter
from actors.rating_shard import RatingShard
from billing.usage import Verdict
from storage.object_store import LocalObjectStore
from storage.usage_log.genesis import Genesis, IdForm
from storage.usage_log.lane import read_segment
from storage.usage_log.partitions import partition_of
from storage.usage_log.proving import Difference, LogProof, prove_log
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.sealing import seal
from storage.usage_log.segment import Control, SegmentHead, encode_segment, segment_key
from storage.usage_log.tenures import Moves, Owned, Tenure
from tests.actors.test_lane_moves import acquire, move, opened, owner_of, release
from tests.usage_log_support import OTHER_TENANT, TENANT, make_events, send

KEY = "customer-0"


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


def proof(store: LocalObjectStore, tenant_id: str = TENANT) -> LogProof:
    return prove_log(store, tenant_id, UsageLogReader(store).now())


def with_router(store: LocalObjectStore, scene: Callable[[LocalUsageRouter, int], Awaitable[None]]) -> None:
    """A scene with three lanes, 200 events in them and the partition of a key with events."""

    async def whole() -> None:
        router = opened(store)
        await router.ingest(TENANT, make_events(200))
        await router.ingest(OTHER_TENANT, make_events(50))
        await scene(router, partition_of(router._genesis.seed, TENANT, KEY))
        await router.close()

    asyncio.run(whole())


def planted(shard: RatingShard, partition: int, first: int) -> int:
    """Events that a shard writes although it does not have their partition; gives the number they lie under."""
    shard.state.owned[partition] = True
    answer = send(shard, make_events(1, first))
    shard.state.owned[partition] = False
    assert answer.verdicts.tolist() == [Verdict.ACCEPTED]
    return shard.status().number


def test_an_honest_history_has_no_finding_there_and_back_and_while_a_partition_is_on_its_way(
    store: LocalObjectStore,
) -> None:
    async def scene(router: LocalUsageRouter, partition: int) -> None:
        sent = 200
        home = owner_of(router, partition)
        for to_lane in [(home + 1) % 3, (home + 2) % 3, home, (home + 1) % 3, home]:
            move(router, partition, to_lane)
            assert (await router.ingest(TENANT, make_events(100, sent))).verdicts.tolist().count(Verdict.DUPLICATE) == 0
            sent += 100
            assert proof(store).found == 0
        release(router.shards[home], partition, (home + 1) % 3)
        assert proof(store).found == 0, "nobody has it now"
        acquire(router.shards[(home + 1) % 3], partition, home)
        seal(store, UsageLogReader(store).now())
        whole = proof(store)
        assert (whole.found, whole.events, whole.counted) == (0, sent, sent)
        assert proof(store, OTHER_TENANT).found == 0

    with_router(store, scene)


def test_a_segment_with_an_event_that_was_never_its_lanes_is_named(store: LocalObjectStore) -> None:
    async def scene(router: LocalUsageRouter, partition: int) -> None:
        other = router.shards[(owner_of(router, partition) + 1) % 3]
        number = planted(other, partition, 5_000)  # of customer-0: 5,000 mod 50
        await router.ingest(TENANT, make_events(100, 200))  # so that somebody names its digest
        found = proof(store)
        assert [(one.lane, one.number, one.key) for one in found.differences] == [
            (other.lane, number, segment_key(other.lane, number))
        ]
        assert found.differences[0].detail == f"it has rows of partition {partition} that lane {other.lane} did not " \
            "have then"  # fmt: skip
        assert found.differences[0].day is not None
        assert found.events == found.counted == 301, "the counts alone say nothing"
        assert proof(store, OTHER_TENANT).found == 0, "it is no other tenant's"

    with_router(store, scene)


def test_what_a_lane_writes_after_it_let_a_partition_go_or_before_it_has_it_is_named(store: LocalObjectStore) -> None:
    async def scene(router: LocalUsageRouter, partition: int) -> None:
        home = router.shards[owner_of(router, partition)]
        target = router.shards[(home.lane + 1) % 3]
        before = planted(target, partition, 5_000)
        move(router, partition, target.lane)
        after = planted(home, partition, 5_050)
        assert places(proof(store)) == {(target.lane, before), (home.lane, after)}
        # Back and away again: what was wrong then stays so, and the second time counts by itself.
        move(router, partition, home.lane)
        await router.ingest(TENANT, make_events(50, 5_100))
        move(router, partition, target.lane)
        again = planted(home, partition, 5_200)
        assert places(proof(store)) == {(target.lane, before), (home.lane, after), (home.lane, again)}

    with_router(store, scene)


def places(found: LogProof) -> set[tuple[int | None, int | None]]:
    assert found.found == len(found.differences)
    return {(one.lane, one.number) for one in found.differences}


def test_a_lane_that_takes_what_nobody_let_go_to_it_is_named_and_its_rows_are(store: LocalObjectStore) -> None:
    async def scene(router: LocalUsageRouter, partition: int) -> None:
        home = owner_of(router, partition)
        thief = router.shards[(home + 1) % 3]
        end = router.shards[home].status().number
        forged = Decided(NO_ROWS, b"", controls=(Control("acquired", partition, 1, home, end),))
        assert decode_decided(thief.decide("", ANY_PARTITION, lambda _: forged, alone=True).result(10)).error is None
        taken = thief.status().number
        written = planted(thief, partition, 5_000)
        for tenant_id, expected in ((TENANT, {taken, written}), (OTHER_TENANT, {taken})):
            found = proof(store, tenant_id)
            assert places(found) == {(thief.lane, number) for number in expected}
        assert f"it takes partition {partition}, which was not let go to it" in details(found.differences)

    with_router(store, scene)


def details(differences: tuple[Difference, ...]) -> list[str]:
    return [one.detail for one in differences]


def test_an_event_under_another_partition_than_its_keys_is_found_by_its_key(store: LocalObjectStore) -> None:
    """The column says what the lane has; the customer's key says otherwise."""

    async def scene(router: LocalUsageRouter, partition: int) -> None:
        shard = router.shards[owner_of(router, partition)]
        number = shard.status().number
        segment = next(
            one
            for at in range(number, -1, -1)
            if (one := read_segment(store, shard.lane, at)) is not None and TENANT in one.head.counters
        )
        elsewhere = _key_of_another_lane(router, shard.lane)
        rows = segment.rows().with_columns(customer=pl.lit(elsewhere))
        store.put(segment_key(shard.lane, segment.head.number), encode_segment(segment.head, rows))
        found = [one.detail for one in proof(store).differences if one.number == segment.head.number]
        assert any("stand under another partition than their customer's key has" in one for one in found)
        assert any("did not have then" in one for one in found)

    with_router(store, scene)


def _key_of_another_lane(router: LocalUsageRouter, lane: int) -> str:
    return next(f"x-{number}" for number in range(100) if router.lanes_of(TENANT, [f"x-{number}"]) != [lane])


def test_where_a_number_cannot_be_read_nobody_is_accused(store: LocalObjectStore) -> None:
    """What was let go or taken under it is not known; the damage itself is named."""

    async def scene(router: LocalUsageRouter, partition: int) -> None:
        home = owner_of(router, partition)
        move(router, partition, (home + 1) % 3)
        await router.ingest(TENANT, make_events(100, 200))
        number = next(
            at
            for at in range(router.shards[home].status().number + 1)
            if (one := read_segment(store, home, at)) is not None
            and any(control.what == "released" for control in one.head.controls)
        )
        cut = UsageLogReader(store).now()
        store.put(segment_key(home, number), b"nothing")
        found = prove_log(store, TENANT, cut)
        assert (home, number) in {(one.lane, one.number) for one in found.differences}
        assert not any("did not have" in one.detail for one in found.differences)

    with_router(store, scene)


def test_of_two_who_take_one_partition_the_one_it_was_meant_for_has_it() -> None:
    """Who let it go has it again only where the other never took it."""
    moves = Moves(Genesis(seed=1, lanes=2, ids=IdForm.OF_CUSTOMER))

    def head(lane: int, number: int, *controls: Control) -> SegmentHead:
        return SegmentHead(lane, number, 1, "n", 0, "", controls=controls)

    moves.add(head(0, 5, Control("released", 0, 1, 1)))
    moves.add(head(0, 7, Control("acquired", 0, 1, 0, 5)))
    assert [one for one in moves.tenures()[0] if one.partition == 0] == [Tenure(0, 0, 0, 5), Tenure(0, 0, 7, None)]
    moves.add(head(1, 13, Control("acquired", 0, 1, 0, 5)))
    found, stray = moves.tenures()
    assert [one for one in found if one.partition == 0] == [Tenure(0, 0, 0, 5), Tenure(0, 1, 13, None)]
    assert [(one.lane, one.number) for one in stray] == [(0, 7)]
    moves.add(head(1, 19, Control("released", 0, 3, 0)))  # a generation that nothing leads to
    assert [(one.lane, one.number) for one in moves.tenures()[1]] == [(0, 7), (1, 19)]


def test_the_numbers_of_release_and_acquisition_still_and_already_have_rows() -> None:
    owned = Owned([Tenure(0, 1, 3, 5), Tenure(0, 1, 9, None), Tenure(1, 0, 0, None)], 1)
    assert [bool(owned.at(number)[0]) for number in range(1, 12)] == [
        False, False, True, True, True, False, False, False, True, True, True,
    ]  # fmt: skip
    assert not owned.at(12)[1], "another lane's"
