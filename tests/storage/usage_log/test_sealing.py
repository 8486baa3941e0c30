"""Sealed + tail = log (I11): every reading gives the same rows before, between and after seals."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from actors.rating_shard import RatingShard
from billing.typed_columns import Reads
from storage.object_store import LocalObjectStore
from storage.usage_log.genesis import open_log
from storage.usage_log.manifest import Manifest, ManifestChain, SealedFile
from storage.usage_log.reader import NOTHING, SCAN_SCHEMA, Cut, UsageLogReader
from storage.usage_log.sealing import HURRY, TailState, seal, state_of_tail, tail_rows
from tests.usage_log_support import OTHER_TENANT, TENANT, make_events, send


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path)


def fill(store: LocalObjectStore, first: int, rows: int) -> Cut:
    open_log(store, lanes=2)
    for lane in range(2):
        shard = RatingShard(lane, store)
        shard.start()
        for start in range(first, first + rows, 50):
            send(shard, make_events(50, start))
            send(shard, make_events(20, start), OTHER_TENANT)
        shard.stop()
    return UsageLogReader(store).now()


def rows(store: LocalObjectStore, cut: Cut, since: Cut = NOTHING, **options: object) -> pl.DataFrame:
    frames = UsageLogReader(store).scan(TENANT, cut, since=since, **options)  # type: ignore[arg-type]
    return pl.concat([pl.DataFrame(schema=SCAN_SCHEMA), *frames]).sort("lane", "number", "row")


def test_what_is_sealed_and_what_is_not_together_are_the_log(store: LocalObjectStore) -> None:
    first = fill(store, 0, 300)
    second = fill(store, 300, 300)
    before = {"first": rows(store, first), "second": rows(store, second), "between": rows(store, second, first)}
    assert before["second"].height == 600
    assert before["between"].height == 300
    assert tail_rows(store, second) > 600

    def check(manifest: Manifest) -> None:
        assert rows(store, first).equals(before["first"])
        assert rows(store, second).equals(before["second"])
        assert rows(store, second, first).equals(before["between"])
        assert sum(file.rows for file in manifest.files) > 0

    half = Cut({lane: number // 2 for lane, number in first.positions.items()})
    check(seal(store, half))
    check(seal(store, first, rows_max=100))
    check(seal(store, second))
    assert tail_rows(store, second) == 0
    files = ManifestChain(store).newest().files
    assert len(files) > 3
    assert sum(file.tenants.get(TENANT, 0) for file in files) == 600
    some = sorted(set(rows(store, second)["customer"]))[:3]
    assert rows(store, second, customers=some).equals(before["second"].filter(pl.col("customer").is_in(some)))


def test_sealing_again_or_below_what_is_sealed_changes_nothing(store: LocalObjectStore) -> None:
    first = fill(store, 0, 100)
    second = fill(store, 100, 100)
    done = seal(store, second)
    assert seal(store, second).number == done.number
    assert seal(store, first).number == done.number


def test_two_sealers_at_once_seal_every_row_once(store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one seals while the first is about to announce: the first drops its files."""
    import storage.usage_log.sealing as module

    cut = fill(store, 0, 200)
    before = rows(store, cut)
    original, raced = module.write_sealed, {"done": False}

    def write_and_be_overtaken(there: LocalObjectStore, frame: pl.DataFrame, reads: object) -> object:
        files = list(original(there, frame, reads))
        if not raced["done"]:
            raced["done"] = True
            seal(store, cut)
        return files

    monkeypatch.setattr(module, "write_sealed", write_and_be_overtaken)
    seal(store, cut)
    manifest = ManifestChain(store).newest()
    assert sum(file.tenants.get(TENANT, 0) for file in manifest.files) == 200
    assert rows(store, cut).equals(before)


def test_a_shard_recovers_from_a_log_that_is_sealed(store: LocalObjectStore) -> None:
    cut = fill(store, 0, 100)
    seal(store, cut)
    shard = RatingShard(0, store)
    shard.start()
    answer = send(shard, make_events(100))
    assert set(answer.verdicts.tolist()) == {1, 254}
    shard.stop()


def test_a_tail_is_long_by_its_numbers_and_short_once_it_is_sealed(store: LocalObjectStore) -> None:
    end = fill(store, 0, 300)
    numbers = sum(end.positions.values()) + len(end.positions)  # each lane begins with number 0
    assert state_of_tail(store, numbers=numbers + 1) is TailState.SHORT
    assert state_of_tail(store, numbers=numbers) is TailState.LONG
    assert state_of_tail(store, numbers=numbers // HURRY + 1) is TailState.LONG
    assert state_of_tail(store, numbers=numbers // HURRY) is TailState.TOO_LONG, "sealing stands back no more"
    seal(store, end)
    assert state_of_tail(store, numbers=1) is TailState.SHORT


READS = {TENANT: Reads({"storage": frozenset({"gb"})}, {"storage": frozenset({"region"})})}


def test_sealed_rows_carry_what_meters_read_and_their_text_stays_as_it_was_sent(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = fill(store, 0, 300)
    before = rows(store, cut)
    monkeypatch.setattr("storage.usage_log.sealing.known_reads", lambda chain, tenants: READS)
    seal(store, Cut({0: cut.positions[0] - 2, 1: cut.positions[1]}))
    frames = UsageLogReader(store).scan(TENANT, cut, typed=True)
    typed = pl.concat(list(frames), how="diagonal_relaxed").sort("lane", "number", "row")
    assert typed.select(before.columns).equals(before), "typed columns stand beside the rows, in no other order"
    sealed = typed.filter(pl.col("number:gb").is_not_null())
    assert 200 < sealed.height < 300, "the tail has no typed columns yet"
    assert sealed["number:gb"].dtype.precision == 18  # type: ignore[union-attr]
    gb = sealed["data"].str.json_path_match("$.gb")
    assert sealed["number:gb"].cast(pl.String).equals(gb.alias("number:gb"))
    assert sealed["text:region"].equals(sealed["data"].str.json_path_match("$.region").alias("text:region"))
    plain = UsageLogReader(store).scan(TENANT, cut)
    assert all(frame.columns == SCAN_SCHEMA.names() for frame in plain), "who does not ask gets none"


def test_a_tenants_customer_and_month_are_found_by_the_statistics_of_row_groups(store: LocalObjectStore) -> None:
    import pyarrow.parquet as pq

    counts = [10, 9_000, 300_000, 5, 5]
    from storage.usage_log.sealed_files import GROUP_ROWS, row_groups

    groups = list(row_groups(counts))
    assert groups[0] == (0, 10), "a group ends where a tenant of some size begins"
    assert sum(size for _, size in groups) == sum(counts)
    assert all(size <= GROUP_ROWS for _, size in groups)
    assert [start for start, _ in groups] == [0, *(start + size for start, size in groups[:-1])]
    cut = fill(store, 0, 100)
    (file,) = seal(store, cut).files
    path = store.local_path(file.key)
    assert path is not None
    read = pq.ParquetFile(path)
    names = read.schema_arrow.names
    group = read.metadata.row_group(0)
    for name in ("tenant", "customer", "type", "time"):
        assert group.column(names.index(name)).statistics.has_min_max, name
    assert read.metadata.metadata[b"cloudbilling"] == b'{"format":2}'


def test_files_of_the_first_format_stay_readable(store: LocalObjectStore) -> None:
    """As version 1 wrote them: rows alone, and an entry that says nothing of format and times."""
    import json

    cut = fill(store, 0, 200)
    before = rows(store, cut)
    manifest = seal(store, cut)
    for file in manifest.files:
        path = store.local_path(file.key)
        assert path is not None
        old = pl.read_parquet(path)
        old.write_parquet(path, compression="zstd")
    form = json.loads(manifest.to_bytes("nonce"))
    for one in form["files"]:
        for name in ("format", "first_us", "last_us"):
            del one[name]
    read = Manifest.from_bytes(json.dumps(form).encode())
    assert {one.format for one in read.files} == {1}
    assert read.files[0] == SealedFile(**form["files"][0])
    path = store.local_path(f"log/manifest/{manifest.number:08}.json")
    assert path is not None
    path.write_text(json.dumps(form))
    assert rows(store, cut).equals(before)
    late = before["time"].max()
    assert rows(store, cut, start=late).equals(before.filter(pl.col("time") >= late))
