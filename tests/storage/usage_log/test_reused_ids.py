"""One id under two customer keys: found once, in any lane, whenever the second comes; nothing else is."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import polars as pl
import pytest

from actors.amendment_desk import AmendmentDesk
from actors.backfill_desk import BackfillDesk
from actors.local_router import LocalUsageRouter
from actors.rating_shard import RatingShard
from billing.usage import Verdict
from storage.object_store import LocalObjectStore, StoreUnavailable
from storage.usage_log import reused_ids
from storage.usage_log.counting import scan_counting
from storage.usage_log.deleting import ORPHAN_AGE_US, sweep_replaced_runs
from storage.usage_log.genesis import IdForm
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.reused_ids import ReusedIds
from storage.usage_log.run_cache import RunCache
from tests.storage.usage_log.housekeeping_world import MadeUpTime
from tests.usage_log_support import OTHER_TENANT, TENANT, keys_of_one_partition, logged_ids, make_events, make_log, send


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


def under(events: pl.DataFrame, customer: str) -> pl.DataFrame:
    return events.with_columns(customer=pl.lit(customer))


@pytest.mark.parametrize("form", IdForm)
def test_an_id_under_another_key_is_found_in_the_pass_in_which_it_comes(
    store: LocalObjectStore, tmp_path: Path, form: IdForm
) -> None:
    """Against a set, over many passes: old ids, new ids, merged runs; the same id of another source is none."""
    chance = random.Random(7)
    make_log(store, form, lanes=2)
    shards = [RatingShard(lane, store) for lane in range(2)]
    for shard in shards:
        shard.start()
    reader = UsageLogReader(store)
    passes = ReusedIds(store, reader, RunCache(tmp_path / "runs"))
    sent, found, expected = 0, list[tuple[str, str]](), list[tuple[str, str]]()
    for number in range(12):
        fresh = [make_events(40, sent), make_events(40, sent, source="second")]
        for _ in range(chance.randrange(3)):
            old = chance.randrange(sent + 40)
            fresh.append(under(make_events(1, old), f"another-{number}-{old}"))
            expected.append(("gateway", f"event-{old}"))
        for events in fresh:
            for shard in shards:  # each takes what it owns
                send(shard, events)
                send(shard, events)  # a retry is no reuse
            send(shards[0], events, OTHER_TENANT)
        sent += 40
        met = passes.look(TENANT, reader.now())
        found += met.names
        passes.note(TENANT, met)
    assert expected, "the seed makes some"
    assert sorted(found) == sorted(expected)
    last = passes.look(TENANT, reader.now())
    assert (last.names, last.nothing_new, last.before.number) == ((), True, 11)
    assert len(last.before.runs) <= reused_ids.RUNS_MAX
    assert sum(run.ids for run in last.before.runs) == 12 * 80 + len(expected)
    for shard in shards:
        shard.stop()


def test_runs_that_were_merged_away_go_and_the_next_pass_finds_all_the_same(
    store: LocalObjectStore, tmp_path: Path
) -> None:
    shard = RatingShard(0, store)
    shard.start()
    reader = UsageLogReader(store)
    passes = ReusedIds(store, reader, RunCache(tmp_path / "runs"))
    clock = MadeUpTime()

    def there() -> set[str]:
        return {key for key in store.list("log/reused-runs/") if key.endswith(".run")}

    for number in range(reused_ids.RUNS_MAX + 1):  # the last one merges all before it
        send(shard, make_events(5, 5 * number))
        passes.note(TENANT, passes.look(TENANT, reader.now()))
    clock.us += ORPHAN_AGE_US // 2
    assert sweep_replaced_runs(store, clock) == 0, "a run may be of a pass that is not noted yet"
    clock.us += ORPHAN_AGE_US
    before = there()
    assert sweep_replaced_runs(store, clock) == 2, "the run that the merge took in before it was ever named"
    assert len(there()) == len(before) - 1 == reused_ids.RUNS_MAX + 1, "somebody may read by the pass before"
    send(shard, make_events(5, 1_000))
    passes.note(TENANT, passes.look(TENANT, reader.now()))
    assert sweep_replaced_runs(store, clock) == 2 * reused_ids.RUNS_MAX
    assert len(there()) == 2
    send(shard, under(make_events(1, 3), "another"))
    send(shard, under(make_events(1, 1_003), "another"))
    assert sorted(passes.look(TENANT, reader.now()).names) == [("gateway", "event-1003"), ("gateway", "event-3")]
    shard.stop()


def test_a_pass_whose_run_was_swept_while_it_slept_is_not_noted(store: LocalObjectStore, tmp_path: Path) -> None:
    shard = RatingShard(0, store)
    shard.start()
    send(shard, make_events(5))
    reader = UsageLogReader(store)
    clock = MadeUpTime()

    class Sleeper(LocalObjectStore):
        """Weeks go by behind each run that it writes."""

        def put(self, key: str, data: bytes) -> None:
            super().put(key, data)
            if key.endswith(".bloom"):
                clock.us += 2 * ORPHAN_AGE_US
                assert sweep_replaced_runs(store, clock) == 2

    asleep = ReusedIds(Sleeper(tmp_path / "store"), reader, RunCache(tmp_path / "runs"))
    with pytest.raises(StoreUnavailable, match="swept before its pass"):
        asleep.note(TENANT, asleep.look(TENANT, reader.now()))
    passes = ReusedIds(store, reader, RunCache(tmp_path / "runs"))
    passes.note(TENANT, passes.look(TENANT, reader.now()))
    assert passes.look(TENANT, reader.now()).nothing_new
    shard.stop()


def test_a_pass_that_was_not_noted_finds_the_same_again_and_sources_of_their_own_are_left_out(
    store: LocalObjectStore, tmp_path: Path
) -> None:
    shard = RatingShard(0, store)
    shard.start()
    for source in ("gateway", "numbers-per-customer"):
        send(shard, make_events(5, source=source))
        send(shard, under(make_events(2, source=source), "another"))
    reader = UsageLogReader(store)
    passes = ReusedIds(store, reader, RunCache(tmp_path / "runs"))
    own = {"numbers-per-customer"}
    for _ in range(2):
        found = passes.look(TENANT, reader.now(), but_sources=own)
        assert sorted(found.names) == [("gateway", "event-0"), ("gateway", "event-1")]
    passes.note(TENANT, found)
    passes.note(TENANT, found)  # a second process that did the same
    assert passes.look(TENANT, reader.now(), but_sources=own).names == ()
    shard.stop()


def test_more_than_a_slip_is_told_by_source_and_what_is_voided_is_not_counted(
    store: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reused_ids, "SUSPECTS_MAX", 3)
    router = LocalUsageRouter.open(store)

    async def scene() -> None:
        reader = UsageLogReader(store)
        desk, passes = AmendmentDesk(router, reader), ReusedIds(store, reader, RunCache(tmp_path / "runs"))
        await router.ingest(TENANT, make_events(8, customers=1))
        passes.note(TENANT, passes.look(TENANT, reader.now()))  # from now on they are met in the runs
        await router.ingest(TENANT, under(make_events(3), "another"))
        few = passes.look(TENANT, reader.now())
        assert (len(few.names), few.too_many) == (3, ())
        voided = await desk.void_reused(TENANT, few.names)
        assert len(voided) == 3
        await router.ingest(TENANT, under(make_events(3, 3), "another"))
        some = passes.look(TENANT, reader.now())
        assert (len(some.names), some.too_many) == (6, ()), "three wait, and three were voided before"
        assert len(await desk.void_reused(TENANT, some.names)) == 6
        own = make_events(2, source="per-customer")
        for customer in ("one", "two"):
            await router.ingest(TENANT, under(own, customer))
            await router.ingest(TENANT, under(make_events(2, 6), customer))
        many = passes.look(TENANT, reader.now())
        assert (many.names, many.too_many) == ((), (("gateway", 2), ("per-customer", 2)))
        rest = passes.look(TENANT, reader.now(), but_sources=["per-customer"])
        assert len(rest.names) == 2 + 3, "of what was voided before no more than the limit"
        await desk.void_reused(TENANT, rest.names)
        passes.note(TENANT, rest)
        assert passes.look(TENANT, reader.now(), but_sources=["per-customer"]).nothing_new
        await router.close()

    asyncio.run(scene())


@pytest.mark.parametrize("at_once", [True, False])
def test_two_keys_of_one_partition_may_both_have_an_id_and_the_pass_voids_the_later(
    store: LocalObjectStore, tmp_path: Path, at_once: bool
) -> None:
    """A lane sees both, and would have taken the second for a retry: it was lost without a word."""
    log = make_log(store, IdForm.OF_CUSTOMER)
    first, second = keys_of_one_partition(log.seed, 2)
    router = LocalUsageRouter.open(store)

    async def scene() -> None:
        reader = UsageLogReader(store)
        desk, passes = AmendmentDesk(router, reader), ReusedIds(store, reader, RunCache(tmp_path / "runs"))
        for key in (first, second):
            for source in ("gateway", "per-customer"):
                stored = await router.ingest(TENANT, under(make_events(40, source=source), key))
                assert (stored.verdicts == Verdict.ACCEPTED).all()
            if key == first and not at_once:  # else the second is met in the runs
                passes.note(TENANT, passes.look(TENANT, reader.now(), but_sources=["per-customer"]))
        for rows in (40, 3):  # in columns and row by row
            for source in ("gateway", "per-customer"):
                for key in (second, first):
                    again = await router.ingest(TENANT, under(make_events(rows, source=source), key))
                    assert (again.verdicts == Verdict.DUPLICATE).all()
        found = passes.look(TENANT, reader.now(), but_sources=["per-customer"])
        assert sorted(found.names) == sorted(("gateway", f"event-{number}") for number in range(40))
        voided = await desk.void_reused(TENANT, found.names)
        assert {(one["source"], one["customer"]) for one in voided} == {("gateway", second)}
        assert len(voided) == 40
        passes.note(TENANT, found)
        counted = pl.concat(
            [frame.select("source", "customer") for frame in scan_counting(reader, TENANT, reader.now())]
        )
        assert sorted(counted.group_by("source", "customer").len().rows()) == sorted([
            ("gateway", first, 40), ("per-customer", first, 40), ("per-customer", second, 40)
        ])  # fmt: skip
        await router.close()

    asyncio.run(scene())


def test_in_a_log_made_before_a_partition_has_an_id_once_as_it_always_had(store: LocalObjectStore) -> None:
    log = make_log(store, IdForm.OF_TENANT)
    first, second = keys_of_one_partition(log.seed, 2)
    for life in range(2):  # what is in the log stays known to a successor
        router = LocalUsageRouter.open(store)
        for key, rows in ((first, 40), (second, 40), (first, 3), (second, 3)):
            answer = asyncio.run(router.ingest(TENANT, under(make_events(rows), key)))
            is_first = life == 0 and (key, rows) == (first, 40)
            assert (answer.verdicts == (Verdict.ACCEPTED if is_first else Verdict.DUPLICATE)).all()
        router.stop()
    assert len(logged_ids(store)) == 40


@pytest.mark.parametrize("form", IdForm)
def test_what_is_sent_again_after_its_backfill_was_reverted_is_no_reuse(
    store: LocalObjectStore, tmp_path: Path, form: IdForm
) -> None:
    make_log(store, form)
    router = LocalUsageRouter.open(store)

    async def scene() -> None:
        reader, desk = UsageLogReader(store), BackfillDesk(router, store)
        passes = ReusedIds(store, reader, RunCache(tmp_path / "runs"))
        for name in ("b1", "b2"):
            await desk.open(TENANT, name, "somebody")
            assert (await desk.send(TENANT, name, make_events(60)) == Verdict.ACCEPTED).all()
            await desk.commit(TENANT, name, "somebody")
            found = passes.look(TENANT, reader.now())
            assert (found.names, found.nothing_new) == ((), False)
            passes.note(TENANT, found)
            if name == "b1":
                await desk.revert(TENANT, name, "somebody", "wrong unit")
        await router.ingest(TENANT, under(make_events(1), "another"))
        assert passes.look(TENANT, reader.now()).names == (("gateway", "event-0"),)
        await router.close()

    asyncio.run(scene())
