"""Amendments decided in lanes: what counts is what a slow oracle says, live and in a cut, through crashes and races."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import polars as pl
import pytest

from actors import amendment_desk
from actors.amendment_desk import AmendmentDesk, EventNow, Outcome
from actors.amendments import AMEND_PARTS
from actors.local_router import LocalUsageRouter
from actors.rating_shard import ShardSettings
from billing.amendments import Amendment, EventState
from billing.errors import Conflict, Unavailable
from billing.master import MasterData
from billing.rating import rate
from billing.usage import EVENT_SCHEMA
from storage.object_store import LocalObjectStore
from storage.usage_log.counting import amendments_at, scan_counting
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.sealing import seal
from tests.actors.test_live_figures import METERS, Chain, amounts, contract, live_amounts, pieces
from tests.usage_log_support import TENANT, make_events

CUSTOMERS = [f"customer-{number}" for number in range(6)]


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


def chain() -> Chain:
    return Chain([*METERS, *(step for one in CUSTOMERS for step in contract(one))])


def amendment(event: EventNow, after: EventState | None, *, id_: str = "") -> Amendment:
    return Amendment(
        id=id_ or str(uuid4()),
        nth=event.nth + 1,
        event=event.event,
        before=event.state or event.sent,
        after=after,
        why="a test",
        by="somebody",
        at_us=0,
        counts_late=False,
    )


def look(desk: AmendmentDesk, id_: str) -> EventNow:
    (found,) = desk.look(TENANT, [("gateway", id_)]).of("gateway", id_, None)
    return found


def counting(store: LocalObjectStore) -> pl.DataFrame:
    reader = UsageLogReader(store)
    frames = [frame.select(EVENT_SCHEMA.names()) for frame in scan_counting(reader, TENANT, reader.now())]
    return pl.concat(frames).sort("id") if frames else pl.DataFrame(schema=EVENT_SCHEMA)


def billed(master: MasterData, source: Chain, store: LocalObjectStore) -> dict[int, object]:
    return amounts(rate(pieces(source, CUSTOMERS), counting(store), master.meters, "Europe/Berlin"))


async def change(desk: AmendmentDesk, id_: str, after: EventState | None) -> Outcome:
    (outcome,) = await desk.decide(TENANT, [amendment(look(desk, id_), after)])
    return outcome


@pytest.mark.parametrize("seed", [1, 2])
def test_what_counts_is_what_the_last_change_of_each_event_says(store: LocalObjectStore, seed: int) -> None:
    """Random changes, voids and moves among six customers and three lanes, with seals, snapshots and restarts."""
    chance, master = random.Random(seed), chain()
    events = make_events(60, customers=7)  # customer-6 is known to nobody
    truth: dict[str, EventState | None] = {}
    settings = ShardSettings(checkpoint_rows=25)

    async def scene(router: LocalUsageRouter, first: int) -> None:
        desk = AmendmentDesk(router, UsageLogReader(store))
        await router.ingest(TENANT, events.slice(first, 20))
        for _ in range(6):
            id_ = f"event-{chance.randrange(first + 20)}"
            now = look(desk, id_)
            state = now.state or now.sent
            after: EventState | None = replace(
                state,
                customer=chance.choice([*CUSTOMERS, state.customer, "customer-6"]),
                type=chance.choice(["storage"] * 4 + ["strage"]),
                data=f'{{"gb":"{chance.randrange(100)}"}}',
            )
            if chance.random() < 0.15 and now.state is not None:
                after = None
            assert (await change(desk, id_, after)).decided is not None
            truth[id_] = after
        live = await live_amounts(router, master, CUSTOMERS)
        assert live == billed(master.master, master, store), f"seed {seed}"
        if chance.random() < 0.5:
            seal(store, UsageLogReader(store).now())
        await router.close()

    for first in (0, 20, 40):
        router = LocalUsageRouter.open(store, shards=3, master=master, settings=settings)
        asyncio.run(scene(router, first))
    expected = {row["id"]: row for row in events.iter_rows(named=True)}
    for id_, state in truth.items():
        if state is None:
            del expected[id_]
        else:
            expected[id_] |= {"customer": state.customer, "type": state.type, "data": state.data}
    wanted = pl.DataFrame(list(expected.values()), schema=EVENT_SCHEMA).sort("id")
    assert counting(store).equals(wanted), f"seed {seed}"


def test_an_event_on_its_way_to_another_lane_counts_once_where_it_was_until_both_rows_are_there(
    store: LocalObjectStore,
) -> None:
    router = LocalUsageRouter.open(store, shards=3, master=chain())

    async def scene() -> None:
        desk = AmendmentDesk(router, UsageLogReader(store))
        await router.ingest(TENANT, make_events(6, customers=6))
        lanes = dict(zip(CUSTOMERS, router.lanes_of(TENANT, CUSTOMERS), strict=True))
        target = next(one for one in CUSTOMERS if lanes[one] != lanes["customer-1"])
        original = router.decide

        async def cut_off(tenant_id: str, key: str, name: str, payload: bytes) -> bytes:
            if name == AMEND_PARTS:
                raise Unavailable("the process died here")
            return await original(tenant_id, key, name, payload)

        router.decide = cut_off  # type: ignore[method-assign]
        after = replace(look(desk, "event-1").sent, customer=target)
        wanted = amendment(look(desk, "event-1"), after, id_="moved")
        with pytest.raises(Unavailable):
            await desk.decide(TENANT, [wanted])
        assert counting(store).filter(pl.col("id") == "event-1")["customer"].to_list() == ["customer-1"]
        assert look(desk, "event-1").pending == {"moved"}

        router.decide = original  # type: ignore[method-assign]
        (again,) = await desk.decide(TENANT, [wanted])  # the caller sends the same again
        assert again.decided is not None
        assert counting(store).filter(pl.col("id") == "event-1")["customer"].to_list() == [target]
        now = look(desk, "event-1")
        assert (now.pending, now.nth) == (frozenset(), 1)
        assert await desk.finish(TENANT) == []
        reader = UsageLogReader(store)
        rows = amendments_at(reader, TENANT, reader.now())[1].height
        await desk.decide(TENANT, [wanted])
        assert amendments_at(reader, TENANT, reader.now())[1].height == rows == 2, "repeats write nothing"
        await router.close()

    asyncio.run(scene())


def test_of_two_people_who_change_one_event_at_once_one_is_told(store: LocalObjectStore) -> None:
    router = LocalUsageRouter.open(store, shards=3)

    async def scene() -> None:
        desk = AmendmentDesk(router, UsageLogReader(store))
        await router.ingest(TENANT, make_events(6, customers=6))
        seen = look(desk, "event-2")
        states = [replace(seen.sent, data=f'{{"gb":"{number}"}}') for number in range(5)]
        outcomes = await asyncio.gather(*(desk.decide(TENANT, [amendment(seen, one)]) for one in states))
        decided = [one for (one,) in outcomes if one.decided is not None]
        assert len(decided) == 1
        assert {one.detail for (one,) in outcomes if one.decided is None} == {
            "the event was changed meanwhile: look at it again"
        }
        nobody = replace(seen.event, id="event-99")
        (unknown,) = await desk.decide(TENANT, [replace(amendment(seen, states[0]), event=nobody)])
        assert unknown.detail == "there is no such event"
        await router.close()

    asyncio.run(scene())
    again = LocalUsageRouter.open(store)  # the order is recovered from the log

    async def later() -> None:
        desk = AmendmentDesk(again, UsageLogReader(store))
        now = look(desk, "event-2")
        assert now.nth == 1
        (stale,) = await desk.decide(TENANT, [replace(amendment(now, None), nth=1)])
        assert stale.decided is None
        (fresh,) = await desk.decide(TENANT, [amendment(now, None)])
        assert fresh.decided is not None
        assert fresh.decided.at_us > datetime(2026, 1, 1, tzinfo=UTC).timestamp()
        assert look(desk, "event-2").state is None
        await again.close()

    asyncio.run(later())


def test_many_amendments_are_decided_in_calls_of_bounded_size(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amendment_desk, "DECISION_BYTES_MAX", 20_000)
    router = LocalUsageRouter.open(store, shards=2)
    sizes: list[int] = []

    async def scene() -> None:
        desk, decide = AmendmentDesk(router, UsageLogReader(store)), router.decide

        async def watched(tenant_id: str, key: str, name: str, payload: bytes) -> bytes:
            sizes.append(len(payload))
            return await decide(tenant_id, key, name, payload)

        monkeypatch.setattr(router, "decide", watched)
        await router.ingest(TENANT, make_events(100, customers=6))
        found = desk.look(TENANT, [("gateway", f"event-{number}") for number in range(100)])
        asked = [
            amendment(one, replace(one.sent, customer="customer-0", data=f'{{"gb":"{number}"}}'))
            for number in range(100)
            for one in found.of("gateway", f"event-{number}", None)
        ]
        outcomes = await desk.decide(TENANT, asked)
        assert [one.asked for one in outcomes] == asked
        assert all(one.decided for one in outcomes)
        counted = counting(store)
        assert counted["customer"].unique().to_list() == ["customer-0"]
        assert sorted(counted["data"]) == sorted(f'{{"gb":"{number}"}}' for number in range(100))
        await router.close()

    asyncio.run(scene())
    assert len(sizes) > 4
    assert max(sizes) < 22_000


def test_a_tenant_without_amendments_pays_one_look(store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    router = LocalUsageRouter.open(store)
    asyncio.run(router.ingest(TENANT, make_events(10)))
    router.stop()
    reader = UsageLogReader(store)

    def never(*_: object, **__: object) -> Sequence[pl.DataFrame]:
        raise AssertionError("nobody needs to read the log for amendments")

    monkeypatch.setattr(reader, "scan_changes", never)
    assert sum(frame.height for frame in scan_counting(reader, TENANT, reader.now())) == 10


def test_of_one_id_under_several_keys_the_first_counts_and_a_second_pass_changes_nothing(
    store: LocalObjectStore,
) -> None:
    router = LocalUsageRouter.open(store, shards=3)

    async def scene() -> None:
        desk, reader = AmendmentDesk(router, UsageLogReader(store)), UsageLogReader(store)
        names = [("gateway", "event-1"), ("gateway", "event-2")]
        await router.ingest(TENANT, make_events(6, customers=6))
        for customer in ("customer-0", "customer-5"):
            await router.ingest(TENANT, make_events(2, 1).with_columns(customer=pl.lit(customer)))
        (other,) = [one for one in desk.look(TENANT, names[1:]).of(*names[1], None) if one.event.key == "customer-2"]
        await desk.decide(TENANT, [amendment(other, None)])  # somebody found it before: another one is right
        voided = await desk.void_reused(TENANT, names)
        assert sorted((one["id"], one["customer"]) for one in voided) == [
            ("event-1", "customer-0"), ("event-1", "customer-5"), ("event-2", "customer-5")
        ]  # fmt: skip
        counted = {row["id"]: row["customer"] for row in counting(store).iter_rows(named=True)}
        assert (counted["event-1"], counted["event-2"]) == ("customer-1", "customer-0")
        assert counting(store).height == 6
        rows = amendments_at(reader, TENANT, reader.now())[1].height
        assert await desk.void_reused(TENANT, names) == voided
        assert amendments_at(reader, TENANT, reader.now())[1].height == rows == 4
        await router.close()

    asyncio.run(scene())


@pytest.mark.parametrize("at_once", [True, False])
def test_amendments_of_one_id_move_two_events_of_two_keys_to_one_customer(
    store: LocalObjectStore, at_once: bool
) -> None:
    router = LocalUsageRouter.open(store, shards=2, master=chain())

    async def scene() -> None:
        desk = AmendmentDesk(router, UsageLogReader(store))
        await router.ingest(TENANT, make_events(6, customers=6))
        moves = [
            amendment(now, replace(now.sent, customer="customer-5"), id_="fix-1")
            for now in (look(desk, "event-0"), look(desk, "event-1"))
        ]
        for some in [moves] if at_once else [moves[:1], moves[1:]]:
            assert all(outcome.decided is not None for outcome in await desk.decide(TENANT, some))
        moved = counting(store).filter(pl.col("id").is_in(["event-0", "event-1"]))
        assert moved["customer"].to_list() == ["customer-5"] * 2
        assert (look(desk, "event-0").pending, look(desk, "event-1").pending) == (frozenset(), frozenset())
        assert await desk.finish(TENANT) == []
        await router.close()

    asyncio.run(scene())


def test_two_amendments_of_one_id_under_one_key_in_one_request_are_not_both_decided(store: LocalObjectStore) -> None:
    router = LocalUsageRouter.open(store)

    async def scene() -> None:
        desk = AmendmentDesk(router, UsageLogReader(store))
        await router.ingest(TENANT, make_events(4, customers=1))
        voids = [amendment(look(desk, f"event-{number}"), None, id_="fix-1") for number in range(2)]
        first, second = await desk.decide(TENANT, voids)
        assert (first.decided is not None, second.decided) == (True, None)
        await router.close()

    asyncio.run(scene())


def test_an_amendment_that_cannot_be_completed_is_named_and_stops_no_other(store: LocalObjectStore) -> None:
    router = LocalUsageRouter.open(store, shards=2, master=chain())

    async def scene() -> None:
        desk = AmendmentDesk(router, UsageLogReader(store))
        await router.ingest(TENANT, make_events(6, customers=6))
        original, refused = router.decide, b"#to"

        async def refusing(tenant_id: str, key: str, name: str, payload: bytes) -> bytes:
            if name == AMEND_PARTS and refused in payload:
                raise Conflict("these rows are there already")
            return await original(tenant_id, key, name, payload)

        router.decide = refusing  # type: ignore[method-assign]
        moves = [
            amendment(now, replace(now.sent, customer="customer-5"), id_=f"fix-{number}")
            for number, now in enumerate((look(desk, "event-0"), look(desk, "event-1")))
        ]
        with pytest.raises(Conflict):
            await desk.decide(TENANT, moves)
        refused = b"fix-0#to"
        assert [one.id for one in await desk.finish(TENANT)] == ["fix-0"]
        assert (look(desk, "event-0").pending, look(desk, "event-1").pending) == ({"fix-0"}, frozenset())
        assert counting(store).filter(pl.col("id") == "event-1")["customer"].to_list() == ["customer-5"]
        router.decide = original  # type: ignore[method-assign]
        assert await desk.finish(TENANT) == []
        await router.close()

    asyncio.run(scene())
