"""The proof of usage reads everything again: what is damaged after it was folded is found, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest

from actors.rating_shard import RatingShard
from billing.master import MasterData
from pipelines.usage_proof import Proof
from pipelines.usage_queries import UsageQueries
from storage.object_store import LocalObjectStore
from storage.sql.database import Database
from storage.usage_log.genesis import open_log
from storage.usage_log.lane import read_segment
from storage.usage_log.manifest import ManifestChain
from storage.usage_log.reader import UsageLogReader
from storage.usage_log.recent_heads import recent_heads
from storage.usage_log.sealed_files import write_sealed
from storage.usage_log.sealing import seal
from storage.usage_log.segment import StoredSegment, encode_segment, segment_key
from tests.actors.test_live_figures import METERS, Chain
from tests.usage_log_support import OTHER_TENANT, TENANT, make_events, send

NOW = datetime(2026, 6, 1, tzinfo=UTC)
EVENTS = 90


class Log:
    """Three segments of a tenant in each of two lanes, folded by the one instance that proves."""

    def __init__(self, directory: Path, *, sealed: bool) -> None:
        self.store = LocalObjectStore(directory)
        open_log(self.store, lanes=2)
        shards = [RatingShard(lane, self.store) for lane in range(2)]
        for shard in shards:
            shard.start()
        for first in range(0, EVENTS, 30):
            for shard in shards:  # each takes what it owns
                send(shard, make_events(30, first))
                send(shard, make_events(30, first), OTHER_TENANT)
        for shard in shards:
            shard.stop()
        self.reader = UsageLogReader(self.store)
        if sealed:
            seal(self.store, self.reader.now())
        self.master: MasterData = Chain([*METERS]).master
        self.queries = UsageQueries(self.reader, cast(Database, None))
        self.segments = [one for lane in range(2) for one in self._of_tenant(lane)]
        assert self.queries.stored(TENANT, self.master, NOW) == EVENTS
        self.whole = self.prove()

    def _of_tenant(self, lane: int) -> list[StoredSegment]:
        found = (read_segment(self.store, lane, number) for number in range(self.reader.now().last(lane) + 1))
        return [one for one in found if one is not None and TENANT in one.head.counters]

    def prove(self, tenant_id: str = TENANT) -> Proof:
        return self.queries.prove(tenant_id, self.master, NOW)

    def rewrite(self, segment: StoredSegment, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        """Other rows under the head as it was."""
        head = segment.head
        self.store.put(segment_key(head.lane, head.number), encode_segment(head, change(segment.rows())))


def flip(store: LocalObjectStore, key: str, place: float) -> None:
    """One byte of an object, at a part of its length."""
    data = bytearray(store.get(key) or b"")
    data[int(len(data) * place)] ^= 0x10
    store.put(key, bytes(data))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path, sealed=False)


@pytest.fixture
def sealed(tmp_path: Path) -> Log:
    return Log(tmp_path, sealed=True)


def places(proof: Proof) -> set[tuple[Any, ...]]:
    return {(one.lane, one.number) for one in proof.differences}


def more_gb(rows: pl.DataFrame) -> pl.DataFrame:
    """A quantity of the tenant is another one; nothing else differs."""
    first = (pl.col("tenant") == TENANT) & (pl.col("tenant").cum_count().over("tenant") == 1)
    return rows.with_columns(data=pl.when(first).then(pl.lit('{"gb":"1000"}')).otherwise("data"))


def test_a_log_that_is_whole_is_proven_sealed_or_not(log: Log, tmp_path: Path) -> None:
    assert (log.whole.stored, log.whole.counted, log.whole.rated, log.whole.suspended) == (EVENTS, EVENTS, 0, EVENTS)
    assert (log.whole.complete, log.whole.differences) == (True, ())
    other = Log(tmp_path / "sealed", sealed=True)
    assert (other.whole.complete, other.whole.stored, other.whole.differences) == (True, EVENTS, ())


@pytest.mark.parametrize("place", [0.001, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_byte_of_a_segment_that_was_folded_already_is_found_and_its_number_named(log: Log, place: float) -> None:
    segment = log.segments[1]
    flip(log.store, segment_key(segment.head.lane, segment.head.number), place)
    proof = log.prove()
    assert not proof.complete
    assert (segment.head.lane, segment.head.number) in places(proof)
    assert {one.day for one in proof.differences} <= {segment.head.log_time.date(), None}


@pytest.mark.parametrize("place", [0.001, 0.2, 0.4, 0.6, 0.8, 0.95])
def test_a_byte_of_a_sealed_file_that_was_folded_already_is_found_and_the_file_named(sealed: Log, place: float) -> None:
    (file,) = ManifestChain(sealed.store).newest().files
    flip(sealed.store, file.key, place)
    proof = sealed.prove()
    assert not proof.complete
    assert file.key in {one.key for one in proof.differences}


def test_another_quantity_in_a_segment_is_found_whatever_the_counts_say(log: Log) -> None:
    segment = log.segments[0]
    log.rewrite(segment, more_gb)
    proof = log.prove()
    assert (proof.stored, proof.counted, proof.rated, proof.suspended) == (EVENTS, EVENTS, 0, EVENTS)
    (found,) = proof.differences
    assert (found.day, found.lane, found.number) == (
        segment.head.log_time.date(), segment.head.lane, segment.head.number,
    )  # fmt: skip
    assert found.detail.startswith("its bytes are not those that number")
    assert not proof.complete


def test_another_quantity_in_a_sealed_file_of_an_older_version_is_found_by_the_segments(sealed: Log) -> None:
    """Its name holds no digest; the rows of the segments are what counts."""
    chain = ManifestChain(sealed.store)
    (file,) = chain.newest().files
    rows = pl.read_parquet(sealed.store.local_path(file.key) or "")
    (written,) = write_sealed(sealed.store, more_gb(rows), {})
    sealed.store.put("log/sealed/older.parquet", sealed.store.get(written.key) or b"")
    chain.append(lambda base: replace(base, files=(replace(written, key="log/sealed/older.parquet"),)))
    proof = sealed.prove()
    assert (proof.stored, proof.counted) == (EVENTS, EVENTS)
    (found,) = proof.differences
    assert (found.key, found.day) == ("log/sealed/older.parquet", sealed.segments[0].head.log_time.date())
    assert found.detail.startswith("sealed rows are not those of the segment")
    assert not proof.complete


def test_a_row_that_is_missing_here_and_too_many_there_is_found_in_both_places(log: Log) -> None:
    """The sums agree; each number by itself does not."""
    less, more = log.segments[0], log.segments[-2]
    first = less.rows().filter(pl.col("tenant") == TENANT).head(1)
    log.rewrite(
        less, lambda rows: rows.filter(~pl.col("id").is_in(first["id"].implode()) | (pl.col("tenant") != TENANT))
    )
    log.rewrite(more, lambda rows: pl.concat([rows, rows.filter(pl.col("tenant") == TENANT).head(1)]).sort("partition"))
    proof = log.prove()
    assert proof.counted == EVENTS
    wrong = {(one.lane, one.number) for one in proof.differences if "were counted" in one.detail}
    assert wrong == {(less.head.lane, less.head.number), (more.head.lane, more.head.number)}
    assert not proof.complete


def test_a_log_that_cannot_be_read_through_says_where_and_invents_no_counts(log: Log) -> None:
    segment = log.segments[2]
    key = segment_key(segment.head.lane, segment.head.number)
    log.store.put(key, b"PAR1 and nothing more")
    proof = log.prove()
    assert (proof.rated, proof.suspended, proof.voided, proof.complete) == (None, None, None, False)
    assert (segment.head.lane, segment.head.number) in places(proof)
    assert proof.counted == EVENTS - segment.head.counters[TENANT].stored


def test_a_number_that_is_gone_is_named(log: Log) -> None:
    segment = log.segments[1]
    log.store.delete(segment_key(segment.head.lane, segment.head.number))
    proof = log.prove()
    assert not proof.complete
    assert [(one.lane, one.number, one.detail) for one in proof.differences] == [
        (segment.head.lane, segment.head.number, "is not there")
    ]


@pytest.mark.parametrize("place", [0, -1])
def test_a_head_that_has_lost_the_tenant_hides_nothing(log: Log, place: int) -> None:
    """Whoever believes it counts less and reads less, so that both agree; of the last number nobody has the digest."""
    segment = log.segments[place]
    key = segment_key(segment.head.lane, segment.head.number)
    data = log.store.get(key)
    assert data is not None
    at = data.rindex(TENANT.encode())
    log.store.put(key, data[:at] + b"1" + data[at + 1 :])
    recent_heads(log.store).put(replace(segment.head, counters={}))  # as a new process reads it
    proof = log.prove()
    assert proof.stored == proof.counted
    assert key in {one.key for one in proof.differences}
    assert not proof.complete


def test_what_is_wrong_with_one_tenants_events_is_no_alarm_of_another(log: Log) -> None:
    segment = next(one for one in log.segments if OTHER_TENANT not in one.head.counters)
    log.rewrite(segment, more_gb)
    assert not log.prove().complete
    assert log.prove(OTHER_TENANT).complete


@pytest.mark.parametrize(
    "broken",
    [
        {"rated": 1, "suspended": 0, "voided": 0},  # one is lost between stored and rated
        {"rated": 2, "suspended": 1, "voided": 0},
        {"rated": 2, "suspended": 0, "voided": 0, "found": 1},
    ],
)
def test_rated_is_counted_and_not_what_is_left(broken: dict[str, int]) -> None:
    assert Proof(2, 2, 2, 0, 0).complete
    assert not Proof(2, 2, **broken).complete
