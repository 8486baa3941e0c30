"""Usage that is folded while the log is read bills as its events do; who needs his events after all gets them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from actors.local_router import LocalUsageRouter
from billing.bill_columns import bill_plain, plain
from billing.master import MasterData
from billing.usage import EVENT_SCHEMA
from pipelines.run_usage import Facts, read_usage
from pipelines.usage_slices import complete, fold_group, forget, groups_of, sliced
from storage.master_chain import MasterChain, change_key, pack_change
from storage.object_store import LocalObjectStore
from storage.usage_log.counting import scan_counting
from storage.usage_log.reader import Cut, UsageLogReader
from storage.usage_log.sealing import seal

TENANT = str(uuid4())
FORM = {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"}
UP_TO, NOW = datetime(2026, 1, 31, 23, tzinfo=UTC), datetime(2026, 2, 1, 12, tzinfo=UTC)
CODES = [f"c{n}" for n in range(8)]
TINY, NEGATIVE, LEVEL = "c3", "c0", "c6"  # in columns only c6, and he by his events


def _steps(is_ordered: bool) -> list[dict[str, Any]]:
    price = {"model": "graduated", "tiers": [{"up_to": "10", "unit": "0.123"}, {"up_to": None, "unit": "0.07"}]}
    rows = [
        {"when": {"zone": "eu"}, "price": {"model": "per_unit", "unit": "2"}},
        # Looks at single events, so ids and sources are read; without it next to nothing is.
        {
            "when": {},
            "price": {"model": "percentage", "percent": "1.5"} if is_ordered else {"model": "per_unit", "unit": "1"},
        },
    ]
    plain_charges = [
        {"code": "disk", "kind": "usage", "meter": "disk", "tax": "vat", "price": price},
        {"code": "calls", "kind": "usage", "meter": "calls", "tax": "vat", "prices": rows, "price_by": ["zone"]},
        {"code": "users", "kind": "usage", "meter": "users", "tax": "vat", "price": {"model": "per_unit", "unit": "3"}},
    ]
    level = {
        "code": "seats",
        "kind": "usage",
        "meter": "seats",
        "tax": "vat",
        "price": {"model": "per_unit", "unit": "1"},
    }
    return [
        {"tax_code": {"code": "vat", "percents": [{"from": "2021-01-01", "percent": "19"}]}},
        {"meter": {"code": "disk", "event_type": "disk", "aggregation": "sum", "value": "gb"}},
        {"meter": {"code": "calls", "event_type": "call", "aggregation": "sum", "value": "n"}},
        {"meter": {"code": "users", "event_type": "call", "aggregation": "unique_count", "value": "user"}},
        {"meter": {"code": "seats", "event_type": "seat", "aggregation": "time_weighted_sum", "value": "n"}},
        {"publish": {"plan": {"code": "p", "currency": "EUR", "interval": "month", "charges": plain_charges}}},
        {"publish": {"plan": {"code": "l", "currency": "EUR", "interval": "month", "charges": [level]}}},
        *({"customer": {"code": code, "name": code, "country": "DE"}} for code in CODES),
        *(
            {"subscribe": {"code": f"s-{code}", "customer": code, "plan": "l" if code == LEVEL else "p"}}
            for code in CODES
        ),
    ]  # fmt: skip


def _events() -> pl.DataFrame:
    rows: list[tuple[str, str, str, str]] = []
    for number, code in enumerate([*CODES, "nobody"] * 12):
        day = f"2026-01-{number % 28 + 1:02}T08:00:00Z"
        gb = {TINY: "0.00000002", NEGATIVE: "-1.5"}.get(code, f"{number}.25")
        data = (
            f'{{"gb":"{gb}"}}',
            f'{{"n":{number},"zone":"{"eu" if number % 2 else "us"}","user":"u{number % 5}"}}',
            '{"n":"2"}',
        )
        kind = (2 if code == LEVEL else 0) if number % 3 == 0 else 1
        rows.append((("disk", "call", "seat")[kind], code, day, data[kind] if number != 25 else '{"gb":"a lot"}'))
    frame = pl.DataFrame(rows, schema=["type", "customer", "time", "data"], orient="row")
    return frame.with_columns(
        pl.col("time").str.to_datetime("%+", time_unit="us", time_zone="UTC"),
        source=pl.lit("s"),
        id=pl.int_range(pl.len()).cast(pl.String),
        subscription=pl.lit(None, pl.String),
    ).match_to_schema(EVENT_SCHEMA)


@pytest.fixture(params=[True, False], ids=["prices of single events", "sums alone"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> LocalObjectStore:
    made = LocalObjectStore(tmp_path)
    for number, steps in enumerate(([], [{"at": "2026-01-01", **step} for step in _steps(request.param)])):
        entry = {"number": number, "tenant": FORM if number == 0 else None, "steps": steps}
        entry |= {"actor": "test", "changed_at": "2026-01-01T00:00:00+00:00"}
        assert made.create(change_key(TENANT, number), pack_change(entry))

    async def send() -> None:
        router = LocalUsageRouter.open(made, shards=1)
        try:
            result = await router.ingest(TENANT, _events())
            assert set(result.verdicts.tolist()) <= {0, 1}
        finally:
            await router.close()

    asyncio.run(send())
    return made


def _facts(store: LocalObjectStore) -> Facts:
    return Facts(TENANT, MasterChain(store).at(TENANT, 1), UP_TO, NOW, UsageLogReader(store).now(), None)


def _by_events(store: LocalObjectStore, master: MasterData, cut: Cut, codes: Sequence[str]) -> Any:
    events = pl.concat(list(scan_counting(UsageLogReader(store), TENANT, cut, customers=codes)))
    numbers = events["data"].str.contains("a lot")
    return bill_plain(master, plain(master, codes, UP_TO), events.filter(~numbers), now=NOW)


def _gather(store: LocalObjectStore, facts: Facts, chunks: Sequence[Sequence[str]], prefix: str, count: int) -> None:
    groups = groups_of(0, count)
    assert len(groups) == count
    for group in reversed(groups):  # in any order
        fold_group(store, facts, chunks, prefix, group)
    complete(store, facts, chunks, prefix, groups)


@pytest.mark.parametrize("groups", [1, 3, 64])
def test_folded_usage_bills_as_its_events_do_before_and_after_it_is_sealed(
    store: LocalObjectStore, groups: int
) -> None:
    facts = _facts(store)
    chunks = [CODES[:3], CODES[3:]]
    for prefix in ("open/", "sealed/"):
        _gather(store, facts, chunks, prefix, groups)
        for number, codes in enumerate(chunks):
            usage = sliced(store, facts, codes, prefix, number)
            assert usage.folded.state.small.height
            assert set(usage.events["customer"]) == set(codes) & {TINY, NEGATIVE, LEVEL}
            found = bill_plain(
                facts.master, plain(facts.master, codes, UP_TO), usage.events, now=NOW, leave=frozenset(usage.rest),
                folded=usage.folded,
            )  # fmt: skip
            by_events = _by_events(store, facts.master, facts.cut, codes)
            assert set(usage.rest) == set(codes) & {TINY, NEGATIVE}
            assert set(found.rest) == set(by_events.rest) | set(usage.rest)
            expected = by_events.documents.without(usage.rest)
            assert expected.count == len(codes) - len(found.rest)
            for name in ("documents", "lines", "taxes"):
                assert_frame_equal(getattr(found.documents, name), getattr(expected, name))
        seal(store, facts.cut)
    assert list(store.list("open/")) != []
    forget(store, "open/")
    assert list(store.list("open/")) == []


def test_who_is_found_to_need_his_events_after_they_were_folded_has_all_of_them(store: LocalObjectStore) -> None:
    usage = read_usage(UsageLogReader(store), _facts(store), CODES)
    assert usage.rest == (NEGATIVE, TINY)
    sent = _events().filter(pl.col("customer").is_in([TINY, NEGATIVE]) & ~pl.col("data").str.contains("a lot"))
    kept = usage.events.filter(pl.col("customer").is_in([TINY, NEGATIVE]))
    assert sorted(kept["id"]) == sorted(sent["id"])


def test_distinct_texts_are_counted_out_of_sealed_rows_of_which_else_no_text_is_read(store: LocalObjectStore) -> None:
    facts = _facts(store)
    codes = [code for code in CODES if code not in (LEVEL, "c7")]  # c7 sent what is no number: his text is looked at
    expected = _by_events(store, facts.master, facts.cut, codes)
    seal(store, facts.cut)
    usage = read_usage(UsageLogReader(store), facts, codes)
    chosen = plain(facts.master, codes, UP_TO)
    leave = frozenset(usage.rest)
    found = bill_plain(facts.master, chosen, usage.events, now=NOW, leave=leave, folded=usage.folded).documents
    assert_frame_equal(found.lines, expected.documents.without(usage.rest).lines)
    assert "users" in found.lines["charge"]
