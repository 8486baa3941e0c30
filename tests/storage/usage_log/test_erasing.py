"""What was erased is found in no byte of the log; positions, counters, chains and sums stay provable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from actors.rating_shard import RatingShard, ShardSettings
from billing.errors import InvalidInput
from billing.typed_columns import Reads
from storage.object_store import LocalObjectStore
from storage.usage_log import erasing
from storage.usage_log.deleting import delete_announced
from storage.usage_log.erasing import Erased, Erasure, blanked, erase, leaf, merkle_root, pseudonym
from storage.usage_log.formats import OLDEST, declare_reader
from storage.usage_log.genesis import open_log, read_genesis
from storage.usage_log.lane import LanePosition, last_number, walk
from storage.usage_log.manifest import ManifestChain
from storage.usage_log.merging import merge_sealed
from storage.usage_log.reader import SCAN_SCHEMA, UsageLogReader
from storage.usage_log.sealing import seal
from storage.usage_log.segment import ROW_SCHEMA, RowKind, with_positions
from tests.usage_log_support import OTHER_TENANT, TENANT, make_events, send

MARK = "Xq7Marker"
READS = {TENANT: Reads({"storage": frozenset({"gb"})}, {"storage": frozenset({"region"})})}
EAGER = ShardSettings(checkpoint_rows=20)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalObjectStore:
    for module in ("sealing", "erasing", "merging"):
        monkeypatch.setattr(f"storage.usage_log.{module}.known_reads", lambda _chain, _tenants: READS)
    store = LocalObjectStore(tmp_path / "objects")
    open_log(store, lanes=2)
    return store


def marked(rows: int, first: int) -> pl.DataFrame:
    """Events of one customer with a marker in every field that takes a text."""
    events = make_events(rows, first, customers=1)
    return events.with_columns(
        pl.lit(f"{MARK}-source").alias("source"),
        pl.format("{}-id-{}", pl.lit(MARK), pl.int_range(first, first + rows)).alias("id"),
        pl.lit(f"{MARK}-customer").alias("customer"),
        pl.lit(f"{MARK}-subscription").alias("subscription"),
        pl.Series("data", [f'{{"gb":"{n}.5","region":"{MARK}","note":"{MARK}"}}' for n in range(first, first + rows)]),
    )


def fill(store: LocalObjectStore, first: int) -> None:
    for lane in range(2):
        shard = RatingShard(lane, store, settings=EAGER)
        shard.start()
        assert shard.genesis is not None
        for start in range(first, first + 40, 20):
            send(shard, make_events(20, start))
            send(shard, marked(20, start))
            send(shard, marked(3, start), OTHER_TENANT)
        shard.stop()
        while (thread := shard.state.checkpoint_thread) is not None:
            thread.join()


def cover(store: LocalObjectStore) -> None:
    """Checkpoints of both lanes above all that was sent."""
    for lane in range(2):
        shard = RatingShard(lane, store, settings=ShardSettings(checkpoint_rows=1, checkpoint_s=0.0))
        shard.start()
        deadline = time.monotonic() + 20
        number = 0
        while ManifestChain(store).newest().ids_covered(lane) < last_number(store, lane, -1):
            assert time.monotonic() < deadline
            send(shard, make_events(20, 10_000_000 + number))
            number += 20
            time.sleep(0.1)  # the checkpoint of what was sent is written beside
        shard.stop()
        while (thread := shard.state.checkpoint_thread) is not None:
            thread.join()


def found_in(store: LocalObjectStore, mark: str = MARK) -> list[str]:
    """Keys and bytes with the marker: plain, and in the columns of Parquet, which are compressed."""
    found: list[str] = []
    for key in store.list(""):
        data = store.get(key) or b""
        texts = ""
        if key.endswith(".parquet"):
            frame = pl.read_parquet(store.root / key)
            texts = str(frame.select(pl.col(pl.String)).to_dict(as_series=False))
        if mark in key or mark.encode() in data or mark in texts:
            found.append(key)
    return found


def rows_of(store: LocalObjectStore, tenant: str = TENANT) -> pl.DataFrame:
    reader = UsageLogReader(store)
    return pl.concat([pl.DataFrame(schema=SCAN_SCHEMA), *reader.scan(tenant, reader.now())]).sort(
        "lane", "number", "row"
    )


def check_chains(store: LocalObjectStore) -> None:
    for lane in range(2):
        position = LanePosition()
        for segment in walk(store, lane, 0):
            position = position.after(segment)


def world(store: LocalObjectStore) -> None:
    fill(store, 0)
    seal(store, UsageLogReader(store).now())
    fill(store, 40)
    cover(store)


WISH = Erasure(TENANT, "GDPR 17", (f"{MARK}-customer",))


def test_a_marker_in_every_field_of_a_customer_is_in_no_byte_of_the_log_afterwards(store: LocalObjectStore) -> None:
    world(store)
    theirs = Erasure(OTHER_TENANT, "GDPR 17", (f"{MARK}-customer",))
    others = rows_of(store).filter(~pl.col("customer").str.contains(MARK))
    assert len(found_in(store)) > 4
    assert rows_of(store).height > others.height
    done = erase(store, WISH)
    assert done.rows == 80
    assert done.files >= 1
    assert done.waiting == 0
    assert rows_of(store).equals(others), "rows of others stay where they lie"
    assert rows_of(store, OTHER_TENANT).height == 12, "the same key of another tenant is another customer"
    assert erase(store, theirs).rows == 12
    delete_announced(store, grace_us=-60_000_000)
    assert found_in(store) == []
    assert erase(store, WISH) == Erased(0, 0, 0, 0, 0)
    check_chains(store)


def test_what_is_left_proves_counts_sums_and_rows_of_what_was_there(store: LocalObjectStore) -> None:
    world(store)
    genesis = read_genesis(store)
    assert genesis is not None
    reader = UsageLogReader(store)
    before = reader.counters(reader.now(), TENANT)
    segments = {
        (segment.head.lane, segment.head.number): with_positions(segment.rows(), segment.head).filter(WISH.chosen())
        for lane in range(2)
        for segment in walk(store, lane, 0)
    }
    erase(store, WISH)
    reader = UsageLogReader(store)
    cut = reader.now()
    assert reader.counters(cut, TENANT).equals(before)
    groups = list(reader.erased(cut, TENANT))
    assert sum(one.rows for one in groups) == 80
    assert sum(Decimal(one.sums["gb"]) for one in groups) == sum(Decimal(n) + Decimal("0.5") for n in range(80))
    assert {one.customer for one in groups} == {pseudonym(genesis.seed, TENANT, f"{MARK}-customer")}
    assert pseudonym(1, TENANT, "key") != pseudonym(2, TENANT, "key"), "without the seed nobody can try keys out"
    assert {(one.rule, one.month, one.type, one.kind) for one in groups} == {("GDPR 17", "2026-05", "storage", 0)}
    for place, rows in segments.items():
        head = reader.head(*place)
        if rows.height:
            leaves = [leaf(genesis.seed, row) for row in rows.iter_rows(named=True)]
            assert head.erased[0].root == merkle_root(leaves), "who has the rows can prove that they were these"
            other = rows.with_columns(data=pl.lit('{"gb":"1"}'))
            assert head.erased[0].root != merkle_root([leaf(genesis.seed, row) for row in other.iter_rows(named=True)])
        else:
            assert head.erased == ()


def test_only_usage_before_a_moment_goes_by_retention(store: LocalObjectStore) -> None:
    world(store)
    limit = datetime(2026, 5, 10, tzinfo=UTC)
    kept = rows_of(store).filter(pl.col("time") >= limit)
    done = erase(store, Erasure(TENANT, "TDDDG 176", before=limit))
    assert done.rows > 0
    left = rows_of(store)
    assert left.filter(pl.col("time") >= limit).equals(kept)
    assert left.height == kept.height + done.waiting


def test_lanes_go_on_after_an_erasure_and_know_the_ids_that_were_erased(store: LocalObjectStore) -> None:
    world(store)
    erase(store, WISH)
    assert ManifestChain(store).newest().snapshots == {}
    for lane in range(2):
        shard = RatingShard(lane, store, settings=EAGER)
        shard.start()
        answer = send(shard, marked(20, 0))
        assert not (answer.verdicts == 0).any()
        assert set(answer.verdicts.tolist()) <= {1, 254}, "an id stays taken: a late repeat is no new event"
        shard.stop()
    merge_sealed(store, count=2)
    seal(store, UsageLogReader(store).now())
    assert rows_of(store).filter(pl.col("customer").str.contains(MARK)).height == 0


def test_rows_above_the_last_checkpoint_wait(store: LocalObjectStore) -> None:
    shard = RatingShard(0, store)
    shard.start()
    send(shard, marked(20, 0))
    shard.stop()
    done = erase(store, WISH)
    if done.waiting == 0:  # the key's partition is at home in the other lane
        shard = RatingShard(1, store)
        shard.start()
        send(shard, marked(20, 0))
        shard.stop()
        done = erase(store, WISH)
    assert (done.rows, done.waiting) == (0, 20)


def test_an_erasure_that_is_killed_at_any_put_is_finished_by_the_next(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    world(store)
    others = rows_of(store).filter(~pl.col("customer").str.contains(MARK))
    reader = UsageLogReader(store)
    before = reader.counters(reader.now(), TENANT)
    original = LocalObjectStore.put
    for puts in (2, 2, 3):
        left = puts

        def die(self: LocalObjectStore, key: str, data: bytes) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            original(self, key, data)

        monkeypatch.setattr(LocalObjectStore, "put", die)
        with pytest.raises(KeyboardInterrupt):
            erase(store, WISH)
        monkeypatch.setattr(LocalObjectStore, "put", original)
        check_chains(store)
    assert ManifestChain(store).newest().snapshots
    erase(store, WISH)
    assert not ManifestChain(store).newest().snapshots, "also where an interrupted pass left only them"
    assert rows_of(store).equals(others)
    reader = UsageLogReader(store)
    assert reader.counters(reader.now(), TENANT).equals(before)
    assert sum(one.rows for one in reader.erased(reader.now(), TENANT)) == 80, "each row is proven once"


def test_a_correction_that_names_the_key_of_another_row_goes_too() -> None:
    rows = pl.DataFrame(
        {
            "tenant": [TENANT] * 3,
            "partition": [0] * 3,
            "kind": [int(RowKind.AMENDED)] * 3,
            "source": ["s"] * 3,
            "id": ["a", "b", "c"],
            "type": ["storage"] * 3,
            "customer": ["other"] * 3,
            "subscription": [None] * 3,
            "time": [datetime(2026, 5, 1, tzinfo=UTC)] * 3,
            "data": ["{}"] * 3,
            "detail": [
                '{"event":{"customer":"Zo\\u00eb"}}',
                '{"event":{"customer":"Zoë"}}',
                '{"event":{"customer":"Zo"}}',
            ],
        },
        schema=ROW_SCHEMA,
    )
    left = blanked(rows, Erasure(TENANT, "GDPR 17", ("Zoë",)))
    assert left["kind"].to_list() == [int(RowKind.ERASED)] * 2 + [int(RowKind.AMENDED)]
    assert left["detail"].to_list() == [None, None, '{"event":{"customer":"Zo"}}']


def test_nothing_is_erased_while_a_reader_could_not_read_the_result(store: LocalObjectStore, tmp_path: Path) -> None:
    older = LocalObjectStore(tmp_path / "older")
    older.create("log/genesis.json", store.get("log/genesis.json") or b"")
    declare_reader(older, OLDEST, machine="other")
    with pytest.raises(InvalidInput, match="cloudbilling formats"):
        erase(older, WISH)


@pytest.mark.parametrize("wrong", [{"keys": ()}, {}, {"keys": ("a",), "rule": ""}, {"keys": ("a",), "rule": "x" * 101}])
def test_an_erasure_that_says_too_little_or_too_much_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        Erasure(**{"tenant_id": TENANT, "rule": "GDPR 17", **wrong})  # type: ignore[arg-type]


def test_the_command_erases_says_when_all_is_gone_and_leaves_a_trail_without_the_key(
    store: LocalObjectStore, tmp_path: Path
) -> None:
    world(store)
    command = [sys.executable, "-m", "cluster.cli", "forget", "--tenant", TENANT, "--customer-key", f"{MARK}-customer"]
    command += ["--rule", "GDPR 17", "--by", "clerk", "--json"]

    def run(*more: str) -> dict[str, object]:
        environment = {**os.environ, "CLOUDBILLING_DATA_DIR": str(tmp_path)}
        done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    assert run("--dry-run") == {"rows": 80, "changed": False}
    first = run()
    assert (first["rows"], first["all_gone"]) == (80, False)
    second = run("--snapshots")
    assert (second["rows"], second["all_gone"]) == (0, True)
    trail = json.loads(store.get(str(first["trail"])) or b"")
    assert (trail["by"], trail["rule"], trail["rows"]) == ("clerk", "GDPR 17", 80)
    assert erase(store, Erasure(OTHER_TENANT, "GDPR 17", (f"{MARK}-customer",))).rows == 12
    delete_announced(store, grace_us=-60_000_000)
    assert found_in(store) == []


def test_a_shard_that_runs_while_rows_are_erased_keeps_nothing_of_them_and_folds_again(store: LocalObjectStore) -> None:
    world(store)
    shard = RatingShard(0, store, settings=ShardSettings(checkpoint_rows=1, checkpoint_s=0.0))
    shard.start()
    erase(store, Erasure(TENANT, "GDPR 17", (f"{MARK}-customer",)))
    assert ManifestChain(store).newest().snapshots == {}
    deadline, number = time.monotonic() + 20, 20_000_000
    while shard.serving:
        assert time.monotonic() < deadline
        try:
            send(shard, make_events(5, number))
        except AssertionError:  # it stopped: the same events are sent again to its successor
            break
        number += 5
        time.sleep(0.05)
    while shard.serving:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "rows_erased" in shard.status().stopped_because
    assert ManifestChain(store).newest().snapshots.get(0) is None, "what it had folded before is named by no entry"
    named = ManifestChain(store).newest()
    leaving = {one.key for one in named.leaving}
    assert not [key for key in store.list("log/snapshots/") if key not in leaving], "and it is not left behind"
    again = RatingShard(0, store, settings=ShardSettings(checkpoint_rows=1, checkpoint_s=0.0))
    again.start()
    while ManifestChain(store).newest().snapshots.get(0) is None:
        assert time.monotonic() < deadline
        send(again, make_events(5, number))
        number += 5
    again.stop()
    while (thread := again.state.checkpoint_thread) is not None:
        thread.join()


class Between(LocalObjectStore):
    """Does something between what an erasure has read and what it puts."""

    before_first: Callable[[], None] | None = None

    def replace(self, key: str, old: bytes, data: bytes) -> bool:
        work, self.before_first = self.before_first, None
        if work is not None:
            work()
        return super().replace(key, old, data)


def test_an_erasure_that_slept_does_not_bring_back_what_another_one_took(store: LocalObjectStore) -> None:
    world(store)
    cover(store)
    customers = (sorted(set(segment.rows()["customer"])) for segment in walk(store, 0, 0) if segment.head.rows)
    first, second = next(found for found in customers if len(found) > 2)[-2:]  # they lie in the same segments
    mine, other = Erasure(TENANT, "GDPR 17", (first,)), Erasure(TENANT, "law", (second,))
    sleeper = Between(store.root)
    sleeper.before_first = lambda: until_gone(store, other)
    done = erase(sleeper, mine)
    assert done.waiting > 0, "what it had read was another's meanwhile: these rows are the next pass's"
    assert erase(store, other).rows == 0, "nothing that the other one took is there again"
    until_gone(store, mine)
    assert {first, second}.isdisjoint(rows_of(store)["customer"])


def until_gone(store: LocalObjectStore, erasure: Erasure) -> None:
    while (done := erase(store, erasure)).rows or done.files:
        pass


def test_a_pass_that_is_killed_beside_another_leaves_no_snapshot_named(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One begins, another rewrites everything and is killed before it drops the snapshots, then the first ends."""
    world(store)
    assert ManifestChain(store).newest().snapshots
    last, killed = erasing.last_number, list[bool]()

    class Killed(BaseException):
        pass

    def beside(*arguments: Any) -> int:
        if not killed:
            killed.append(True)
            with monkeypatch.context() as patched:

                def kill(_: Any) -> int:
                    raise Killed

                patched.setattr(erasing, "drop_snapshots", kill)
                with pytest.raises(Killed):
                    erase(store, WISH)
        return last(*arguments)

    monkeypatch.setattr(erasing, "last_number", beside)
    erase(store, WISH)
    newest = ManifestChain(store).newest()
    assert (newest.snapshots, newest.erasures) == ({}, 1)
