"""Exact deduplication: the table and the runs against a Python set, with hashes that collide on purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.object_store import LocalObjectStore
from storage.usage_log.genesis import IdForm
from storage.usage_log.id_runs import IdRuns, merge_runs, sort_ids, to_merge, write_run
from storage.usage_log.manifest import IdRun
from storage.usage_log.partitions import FEW, EventIds, event_ids, partition_of, partitions_of
from storage.usage_log.recent_ids import RecentIds, lane_and_number, stamp_of
from storage.usage_log.run_cache import RunCache

# Few values of each half: ids share slots, words, buckets and even `high`.
pairs = st.tuples(
    st.one_of(st.integers(0, 3), st.integers(0, 40).map(lambda n: n << 56), st.integers(0, 2**64 - 1)),
    st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1)),
)
batches = st.lists(st.lists(pairs, max_size=40), max_size=8)


def ids_of(batch: list[tuple[int, int]]) -> EventIds:
    return EventIds(np.array([high for high, _ in batch], np.uint64), np.array([low for _, low in batch], np.uint32))


@given(batches=batches)
@settings(max_examples=30, deadline=None)
def test_the_table_says_what_a_set_says_row_by_row(batches: list[list[tuple[int, int]]]) -> None:
    table, seen = RecentIds(slots=16), set[tuple[int, int]]()
    for number, batch in enumerate(batches):
        assert table.contains(ids_of(batch)).tolist() == [one in seen for one in batch]
        new = table.add(ids_of(batch), stamp_of(0, number))
        expected = []
        for one in batch:
            expected.append(one not in seen)
            seen.add(one)
        assert new.tolist() == expected
    assert len(table) == len(seen)
    held, _ = table.export()
    assert set(zip(held.high.tolist(), held.low.tolist(), strict=True)) == seen


@given(batches=batches, through=st.integers(-1, 8))
@settings(max_examples=20, deadline=None)
def test_ids_leave_by_their_position_and_can_come_back(batches: list[list[tuple[int, int]]], through: int) -> None:
    table, number_of = RecentIds(slots=16), dict[tuple[int, int], int]()
    for number, batch in enumerate(batches):
        table.add(ids_of(batch), stamp_of(3, number))
        for one in batch:
            number_of.setdefault(one, number)
    gone = table.keep(lambda _, stamps: lane_and_number(stamps)[1].astype(np.int64) > through)
    assert gone == sum(number <= through for number in number_of.values())
    everything = list(number_of)
    assert table.contains(ids_of(everything)).tolist() == [number_of[one] > through for one in everything]


def test_ids_that_were_taken_back_are_new_again_and_others_behind_them_are_still_found() -> None:
    table = RecentIds(slots=16)
    first = ids_of([(0, 1), (0, 2), (0, 3)])  # one chain of slots
    table.add(first, stamp_of(0, 1))
    table.take_back(first.take(np.array([1])))
    assert table.contains(first).tolist() == [True, False, True]
    new = table.add(first, stamp_of(0, 2))
    assert new.tolist() == [False, True, False]
    assert len(table) == 3


@given(batches=batches)
@settings(max_examples=20, deadline=None)
def test_runs_and_their_merges_hold_exactly_their_ids(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]]
) -> None:
    directory = tmp_path_factory.mktemp("runs")
    store = LocalObjectStore(directory)
    runs = [write_run(store, sort_ids(ids_of(batch))) for batch in batches if batch]
    everything = {one for batch in batches for one in batch}
    probes = [*everything, (1 << 40, 5), (0, 77), (2**64 - 1, 2**32 - 1)]
    expected = [one in everything for one in probes]
    opened = IdRuns().with_runs(store, runs, RunCache(directory))
    assert opened.contains(ids_of(probes)).tolist() == expected
    if len(runs) > 1:
        merged = merge_runs(store, runs, RunCache(directory))
        assert opened.with_runs(store, [merged], RunCache(directory)).contains(ids_of(probes)).tolist() == expected


def test_a_run_of_many_buckets_finds_all_and_its_filter_lets_few_others_through(tmp_path: Path) -> None:
    dice = np.random.default_rng(3)
    ids = EventIds(dice.integers(0, 2**64, 100_000, np.uint64), dice.integers(0, 2**32, 100_000, np.uint32))
    others = EventIds(dice.integers(0, 2**64, 100_000, np.uint64), dice.integers(0, 2**32, 100_000, np.uint32))
    store = LocalObjectStore(tmp_path)
    runs = IdRuns().with_runs(store, [write_run(store, sort_ids(ids))], RunCache(tmp_path))
    assert runs.contains(ids).all()
    assert not runs.contains(others).any()
    (run,) = runs._runs.values()
    from storage.usage_log.id_runs import _bits

    assert run.maybe(others, _bits(others)).mean() < 0.01


def test_four_runs_of_a_size_are_merged_and_large_ones_are_left_alone() -> None:
    def run(number: int, ids: int) -> IdRun:
        return IdRun(f"r{number}", f"f{number}", ids)

    assert to_merge([run(n, 1000) for n in range(3)]) == ()
    assert len(to_merge([run(n, 1000) for n in range(5)])) == 4
    assert to_merge([run(n, 60_000_000) for n in range(4)]) == ()


@pytest.mark.parametrize("form", IdForm)
def test_hashes_are_the_documented_ones_and_never_change(form: IdForm) -> None:
    """A value that changes makes every event of the past new again. Computed by another library from the definition."""
    seed, tenant = 0x1234_5678_9ABC, "tenant-ü"
    events = pl.DataFrame({"source": ["crm", "crm", ""], "id": ["a", "ab", "crm"], "customer": ["x", "é", ""]})
    partitions = partitions_of(seed, tenant, events["customer"])
    ids = event_ids(seed, tenant, events, partitions, form)
    prefix = f"{len(tenant.encode())}:{tenant}"
    for row, (source, identity, customer) in enumerate(events.iter_rows()):
        key = f"{len(customer.encode())}:{customer}" if form is IdForm.OF_CUSTOMER else ""
        wide = xxhash.xxh3_128_intdigest(f"{prefix}{key}{len(source)}:{source}{identity}".encode(), seed=seed)
        narrow = xxhash.xxh3_64_intdigest(f"{prefix}{customer}".encode(), seed=seed ^ 0x9E3779B97F4A7C15)
        assert int(partitions[row]) == narrow >> 56
        assert int(ids.high[row]) == (narrow >> 56) << 56 | wide >> 72
        assert int(ids.low[row]) == wide & 0xFFFFFFFF
    assert partition_of(seed, tenant, "x") == partitions[0]
    assert (int(ids.high[0]), int(ids.low[0])) == FIRST[form]


@pytest.mark.parametrize("form", IdForm)
@given(parts=st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12)), max_size=20))
@settings(max_examples=20, deadline=None)
def test_few_rows_hash_like_many(form: IdForm, parts: list[tuple[str, str, str]]) -> None:
    """Small requests go row by row, large ones in columns; a difference would store an event twice."""
    schema = {"source": pl.String, "id": pl.String, "customer": pl.String}
    few = pl.DataFrame(parts, schema=schema, orient="row")
    many = pl.concat([few, pl.DataFrame([("s", "i", "c")] * 30, schema=schema, orient="row")])
    partitions, all_partitions = (
        partitions_of(9, "ten:ant", few["customer"]),
        partitions_of(9, "ten:ant", many["customer"]),
    )
    assert partitions.tolist() == all_partitions[: few.height].tolist()
    ids = event_ids(9, "ten:ant", few, partitions, form)
    all_ids = event_ids(9, "ten:ant", many, all_partitions, form)
    assert ids.high.tolist() == all_ids.high[: few.height].tolist()
    assert ids.low.tolist() == all_ids.low[: few.height].tolist()


@pytest.mark.parametrize("rows", [1, FEW + 1])
def test_parts_cannot_run_into_each_other(rows: int) -> None:
    columns = {
        "customer": ["c", "c", "c", "c1:", "ca"],
        "source": ["a", "ab", "1:a", "a", ""],
        "id": ["bc", "c", "bc", "bc", "bc"],
    }
    events = pl.concat([pl.DataFrame(columns)] * rows)
    ids = event_ids(1, "t", events, np.zeros(events.height, np.uint8))
    assert len(set(zip(ids.high.tolist(), ids.low.tolist(), strict=True))) == 5


def test_one_tenant_for_all_rows_and_one_per_row_hash_alike() -> None:
    events = pl.DataFrame({"source": ["s"] * 4, "id": ["1", "2", "3", "4"], "customer": ["a", "b", "c", "d"]})
    tenants = pl.Series(["t"] * 4)
    assert (partitions_of(5, "t", events["customer"]) == partitions_of(5, tenants, events["customer"])).all()
    partitions = partitions_of(5, "t", events["customer"])
    for form in IdForm:
        one, each = event_ids(5, "t", events, partitions, form), event_ids(5, tenants, events, partitions, form)
        assert (one.high == each.high).all()
        assert (one.low == each.low).all()


FIRST = {IdForm.OF_TENANT: (10983977197323353029, 3293030187), IdForm.OF_CUSTOMER: (10956308374409495020, 3982528019)}
