"""Usage that is read in groups of partitions is what one reading gives, to the digit, whoever has which keys."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import pipelines.usage_slices as usage_slices
from actors.local_router import LocalUsageRouter
from billing.bill_columns import bill_plain, plain
from billing.usage import EVENT_SCHEMA
from pipelines.run_usage import ChunkUsage, Facts, read_usage
from pipelines.usage_slices import complete, fold_group, groups_of, sliced
from storage.master_chain import MasterChain, change_key, pack_change
from storage.object_store import LocalObjectStore
from storage.usage_log.partitions import PARTITIONS
from storage.usage_log.reader import Cut, UsageLogReader
from storage.usage_log.sealing import seal

TENANT = str(uuid4())
FORM = {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"}
UP_TO, NOW = datetime(2026, 2, 28, 23, tzinfo=UTC), datetime(2026, 3, 1, 12, tzinfo=UTC)
CODES = [f"c{n}" for n in range(8)]
KEYS = {code: [code] if n % 2 else [code, f"{code}-x", f"{code}-y"] for n, code in enumerate(CODES)}
CHUNKS = [CODES[:3], CODES[3:]]
SINGLES, MINIMUM = "c5", "c4"  # prices that look at single events; billed one by one by contract


def _steps() -> list[dict[str, Any]]:
    def charge(meter: str, price: dict[str, Any]) -> dict[str, Any]:
        return {"code": meter, "kind": "usage", "meter": meter, "tax": "vat", "price": price}

    sums = [
        charge("disk", {"model": "per_unit", "unit": "0.123"}),
        charge("users", {"model": "per_unit", "unit": "3"}),
    ]
    plans = {
        "p": {"charges": sums},
        "s": {"charges": [charge("disk", {"model": "percentage", "percent": "1.5"})]},
        "m": {"charges": sums, "minimum": {"amount": "10", "tax": "vat"}},
    }
    of = {SINGLES: "s", MINIMUM: "m"}
    return [
        {"tax_code": {"code": "vat", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
        {"meter": {"code": "disk", "event_type": "disk", "aggregation": "sum", "value": "gb"}},
        {"meter": {"code": "users", "event_type": "disk", "aggregation": "unique_count", "value": "user"}},
        *({"publish": {"plan": {"code": code, "currency": "EUR", "interval": "month", **form}}}
          for code, form in plans.items()),
        *({"customer": {"code": code, "name": code, "country": "DE", "keys": KEYS[code][1:]}} for code in CODES),
        *({"subscribe": {"code": f"s-{code}", "customer": code, "plan": of.get(code, "p")}} for code in CODES),
    ]  # fmt: skip


def _events(rows: Sequence[tuple[int, int, int, int]], first: int) -> pl.DataFrame:
    """Rows are key, month (1 was billed), hundredths of GB and user."""
    keys = [key for code in CODES for key in KEYS[code]]
    return pl.DataFrame(
        [
            ("s", f"{first + place}", "disk", keys[key % len(keys)], None,
             datetime(2026, month, 1 + place % 27, 9, tzinfo=UTC),
             f'{{"gb":"{"-" * (gb < 0)}{abs(gb) // 100}.{abs(gb) % 100:02}","user":"u{user}"}}')
            for place, (key, month, gb, user) in enumerate(rows)
        ],
        schema=EVENT_SCHEMA,
        orient="row",
    )  # fmt: skip


def _send(store: LocalObjectStore, events: pl.DataFrame) -> Cut:
    async def send() -> None:
        router = LocalUsageRouter.open(store, shards=2)
        try:
            assert set((await router.ingest(TENANT, events)).verdicts.tolist()) <= {0}
        finally:
            await router.close()

    if events.height:
        asyncio.run(send())
    return UsageLogReader(store).now()


def _facts(store: LocalObjectStore, rows: Sequence[tuple[int, int, int, int]], *, sealed: bool) -> Facts:
    """January is billed up to the first half of the events; what of January comes after it is late."""
    half = len(rows) // 2
    previous = _send(store, _events(rows[:half], 0))
    cut = _send(store, _events(rows[half:], half))
    if sealed:
        seal(store, cut)
    steps = [{"at": "2026-01-01", **step} for step in _steps()]
    mark = {"id": "r", "up_to": "2026-01-31T23:00:00+00:00", "steps": len(steps), "parked": []}
    mark["cut"] = {str(lane): number for lane, number in previous.positions.items()}
    steps.append({"at": "2026-02-01", "bill_run": mark})
    for number, those in enumerate(([], steps)):
        entry = {"number": number, "tenant": FORM if number == 0 else None, "steps": those}
        entry |= {"actor": "test", "changed_at": "2026-01-01T00:00:00+00:00"}
        assert store.create(change_key(TENANT, number), pack_change(entry))
    return Facts(TENANT, MasterChain(store).at(TENANT, 1), UP_TO, NOW, cut, previous)


def _gathered(store: LocalObjectStore, facts: Facts, groups: Sequence[range]) -> list[ChunkUsage]:
    prefix = f"{uuid4().hex}/"
    for group in [*reversed(groups), groups[0]]:  # in any order, one of them twice
        fold_group(store, facts, CHUNKS, prefix, group)
    complete(store, facts, CHUNKS, prefix, groups)
    return [sliced(store, facts, codes, prefix, chunk) for chunk, codes in enumerate(CHUNKS)]


def _assert_alike(facts: Facts, codes: Sequence[str], one: ChunkUsage, other: ChunkUsage) -> None:
    """Who is billed one by one, of whom the rows, and the documents of all others: byte for byte."""
    assert (one.rest, one.needed_from, one.due_from) == (other.rest, other.needed_from, other.due_from)
    names = EVENT_SCHEMA.names()
    keys = [key for code in one.rest for key in KEYS[code]]
    kept = [usage.events.filter(pl.col("customer").is_in(keys)).select(names).sort(names) for usage in (one, other)]
    assert_frame_equal(*kept)
    found = [
        bill_plain(
            facts.master, plain(facts.master, codes, UP_TO), usage.events, now=NOW, leave=frozenset(usage.rest),
            folded=usage.folded,
        )
        for usage in (one, other)
    ]  # fmt: skip
    assert found[0].rest == found[1].rest
    for name in ("documents", "lines", "taxes"):
        assert_frame_equal(*(getattr(billed.documents, name) for billed in found))


ROWS = st.lists(
    st.tuples(st.integers(0, 15), st.sampled_from([1, 2, 2, 2]), st.integers(-300, 1_000), st.integers(0, 3)),
    max_size=60,
)


@settings(max_examples=8, deadline=None, phases=[Phase.generate])  # an example is five readings of a log
@given(rows=ROWS, count=st.integers(2, 64), sealed=st.booleans())
def test_groups_of_partitions_come_to_what_one_reading_gives(
    rows: list[tuple[int, int, int, int]], count: int, sealed: bool
) -> None:
    with TemporaryDirectory(prefix="cb-groups-") as directory:
        store = LocalObjectStore(Path(directory))
        facts = _facts(store, rows, sealed=sealed)
        whole = _gathered(store, facts, groups_of(0))
        several = _gathered(store, facts, groups_of(0, count))
        for codes, one, other in zip(CHUNKS, whole, several, strict=True):
            _assert_alike(facts, codes, one, other)
            direct = read_usage(UsageLogReader(store), facts, codes)
            assert direct.rest == other.rest


def test_a_sum_that_is_below_nothing_only_with_all_keys_or_only_with_one_is_judged_as_a_whole(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    first = [key for code in CODES for key in KEYS[code]].index
    rows = [
        (first("c0"), 2, 500, 0), (first("c0-x"), 2, -100, 0),  # 4.00: in columns, although one key is below nothing
        (first("c2"), 2, 100, 0), (first("c2-y"), 2, -500, 0),  # -4.00: one by one
        (first("c6"), 1, 100, 0), (first("c6-x"), 2, 100, 0),  # late by one key
    ]  # fmt: skip
    facts = _facts(store, [(first("c1"), 2, 1, 1)] * len(rows) + rows, sealed=True)
    several = _gathered(store, facts, groups_of(0, 64))
    assert [usage.rest for usage in several] == [("c2",), ("c4", "c6")]
    for codes, one, other in zip(CHUNKS, _gathered(store, facts, groups_of(0)), several, strict=True):
        _assert_alike(facts, codes, one, other)
    kept = pl.concat([usage.events for usage in several], how="diagonal_relaxed")
    assert sorted(kept.filter(pl.col("customer").is_in(KEYS["c2"] + KEYS["c6"]))["customer"]) == [
        "c2", "c2-y", "c6", "c6-x",
    ]  # fmt: skip


def test_groups_hold_every_partition_once_and_not_too_many_customers() -> None:
    for customers, at_least in ((0, 1), (10, 3), (100_000, 1), (1_000_000, 6), (10**9, 500)):
        groups = groups_of(customers, at_least)
        assert [partition for group in groups for partition in group] == list(range(PARTITIONS))
        assert len(groups) >= min(at_least, usage_slices.GROUPS_MAX)
        assert customers / len(groups) <= max(usage_slices.GROUP_CUSTOMERS, customers / usage_slices.GROUPS_MAX)


@pytest.mark.parametrize("left", ["group", "all"])
def test_what_an_attempt_left_that_died_is_not_mixed_with_the_next_one(tmp_path: Path, left: str) -> None:
    store = LocalObjectStore(tmp_path)
    rows = [(n, 2, n * 7, n % 3) for n in range(60)]
    facts = _facts(store, rows, sealed=False)
    expected = _gathered(store, facts, groups_of(0, 3))
    groups, prefix = groups_of(0, 3), "again/"

    class Died(Exception):
        """The process ends here."""

    class Dying(LocalObjectStore):
        def create(self, key: str, data: bytes) -> bool:
            if key.startswith("again/index"):
                raise Died
            return super().create(key, data)

    dying = Dying(tmp_path)
    if left == "all":
        for group in groups:
            fold_group(store, facts, CHUNKS, prefix, group)
        with pytest.raises(Died):
            complete(dying, facts, CHUNKS, prefix, groups)
    else:
        with pytest.raises(Died):
            fold_group(dying, facts, CHUNKS, prefix, groups[1])
    seal(store, facts.cut)  # what was read before lies elsewhere now
    for group in groups:
        fold_group(store, facts, CHUNKS, prefix, group)
    complete(store, facts, CHUNKS, prefix, groups)
    for chunk, codes in enumerate(CHUNKS):
        _assert_alike(facts, codes, expected[chunk], sliced(store, facts, codes, prefix, chunk))
