"""One id under two customer keys: found once, in any lane, whenever the second comes; nothing else is."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest

from actors.rating_shard import RatingShard
from storage.object_store import LocalObjectStore
from storage.usage_log import reused_ids
from storage.usage_log.genesis import open_log
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.reused_ids import ReusedIds
from tests.usage_log_support import OTHER_TENANT, TENANT, make_events, send


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


def under(events: pl.DataFrame, customer: str) -> pl.DataFrame:
    return events.with_columns(customer=pl.lit(customer))


def test_an_id_under_another_key_is_found_in_the_pass_in_which_it_comes(
    store: LocalObjectStore, tmp_path: Path
) -> None:
    """Against a set, over many passes: old ids, new ids, merged runs; the same id of another source is none."""
    chance = random.Random(7)
    open_log(store, lanes=2)
    shards = [RatingShard(lane, store) for lane in range(2)]
    for shard in shards:
        shard.start()
    reader = UsageLogReader(store)
    passes = ReusedIds(store, reader, tmp_path / "runs")
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


def test_a_pass_that_was_not_noted_finds_the_same_again_and_sources_of_their_own_are_left_out(
    store: LocalObjectStore, tmp_path: Path
) -> None:
    shard = RatingShard(0, store)
    shard.start()
    for source in ("gateway", "numbers-per-customer"):
        send(shard, make_events(5, source=source))
        send(shard, under(make_events(2, source=source), "another"))
    reader = UsageLogReader(store)
    passes = ReusedIds(store, reader, tmp_path / "runs")
    own = {"numbers-per-customer"}
    for _ in range(2):
        found = passes.look(TENANT, reader.now(), but_sources=own)
        assert sorted(found.names) == [("gateway", "event-0"), ("gateway", "event-1")]
    passes.note(TENANT, found)
    passes.note(TENANT, found)  # a second process that did the same
    assert passes.look(TENANT, reader.now(), but_sources=own).names == ()
    shard.stop()
