"""Totals out of sealed files equal what the rows say, one by one, to the digit: whatever the values, however pruned."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from pathlib import Path

import polars as pl
import pytest

import storage.usage_log.sealed_files as form
from billing.meters import numbers, property_texts
from billing.typed_columns import NO_READS, Reads
from billing.usage import INSTANT
from storage.object_store import LocalObjectStore
from storage.usage_log.manifest import SealedFile
from storage.usage_log.sealed_files import write_sealed
from storage.usage_log.sealed_totals import TOTALS_SCHEMA, Wanted, added_up, sealed_totals
from storage.usage_log.segment import ROW_SCHEMA
from tests.usage_log_support import OTHER_TENANT, TENANT

EXACT = Context(prec=60)
START = datetime(2026, 5, 1, tzinfo=UTC)
PROPERTIES = {"a": "n", "b": "m", "c": None}
READS = {TENANT: Reads({"a": frozenset({"n"}), "b": frozenset({"m"})}, {})}


def rows_of(chosen: random.Random, count: int, odd: float) -> pl.DataFrame:
    """Rows as lanes hold them; a share of `odd` values is none that a typed column holds."""

    def value() -> str:
        if chosen.random() < odd:
            return chosen.choice(['"many"', '"0.123456789012"', '"123456789012345678901"', "null", '"1e3"', '"-7"'])
        return f'"{chosen.randrange(-1000, 100_000)}.{chosen.randrange(100):02}"'

    return pl.DataFrame(
        {
            "tenant": [chosen.choice([TENANT, TENANT, OTHER_TENANT]) for _ in range(count)],
            "partition": [0] * count,
            "kind": [chosen.choice([0] * 20 + [1, 16]) for _ in range(count)],
            "source": ["s"] * count,
            "id": [str(number) for number in range(count)],
            "type": [chosen.choice("abcd") for _ in range(count)],
            "customer": [f"c{chosen.randrange(20)}" for _ in range(count)],
            "subscription": [None] * count,
            "time": [START + timedelta(minutes=chosen.randrange(10_000)) for _ in range(count)],
            "data": [f'{{"n":{value()},"m":{value()}}}' for _ in range(count)],
            "detail": [None] * count,
            "lane": [0] * count,
            "number": [1] * count,
            "row": list(range(count)),
            "received_at": [START] * count,
        },
        schema={
            **ROW_SCHEMA, "lane": pl.UInt16, "number": pl.UInt64, "row": pl.UInt32, "received_at": INSTANT,
        },
    ).with_columns(partition=pl.col("customer").str.slice(1).cast(pl.UInt8))  # fmt: skip


def one_by_one(rows: pl.DataFrame, wanted: Wanted) -> pl.DataFrame:
    chosen = rows.filter((pl.col("tenant") == wanted.tenant_id) & (pl.col("kind") == 0))
    chosen = chosen.filter(pl.col("type").is_in(list(wanted.properties)))
    if wanted.start is not None:
        chosen = chosen.filter(pl.col("time") >= wanted.start)
    if wanted.end is not None:
        chosen = chosen.filter(pl.col("time") < wanted.end)
    if wanted.customers is not None:
        chosen = chosen.filter(pl.col("customer").is_in(list(wanted.customers)))
    found: dict[tuple[str, str], list[Decimal | int]] = {}
    texts = property_texts(chosen["data"], ["n", "m"])
    values = {name: numbers(texts[name]).to_list() for name in texts}
    for place, (customer, kind) in enumerate(chosen.select("customer", "type").iter_rows()):
        name = wanted.properties[kind]
        value = values[name][place] if name is not None else None
        if name is not None and value is None:
            continue
        total = found.setdefault((customer, kind), [0, Decimal(0)])
        total[0] += 1
        total[1] = EXACT.add(total[1], value or Decimal(0))
    frame = pl.DataFrame(
        [(*key, total[0], total[1] if wanted.properties[key[1]] else None) for key, total in found.items()],
        schema=TOTALS_SCHEMA,
        orient="row",
    )
    return frame.sort("customer", "type")


def totals(store: LocalObjectStore, files: list[SealedFile], wanted: Wanted, threads: int = 1) -> pl.DataFrame:
    found = added_up(sealed_totals(store, files, wanted, threads=threads)).sort("customer", "type")
    # What is only counted has no sum: adding up nothing gives zero or null, both say nothing.
    counted = [kind for kind, name in wanted.properties.items() if name is None]
    return found.with_columns(sum=pl.when(pl.col("type").is_in(counted)).then(None).otherwise(pl.col("sum")))


@pytest.mark.parametrize("odd", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_totals_are_those_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: float, seed: int) -> None:
    print(f"seed {seed}")
    chosen = random.Random(seed)
    monkeypatch.setattr(form, "GROUP_ROWS", 300)  # customers lie across row groups, and across files
    monkeypatch.setattr(form, "GROUP_ROWS_MIN", 50)
    monkeypatch.setattr(form, "FILE_ROWS", 700)
    rows = rows_of(chosen, 2_000, odd)
    store = LocalObjectStore(tmp_path)
    files = list(write_sealed(store, rows, READS if seed % 4 else {TENANT: NO_READS}))
    assert len(files) == 3
    middle = START + timedelta(minutes=5_000)
    for wanted in (
        Wanted(TENANT, PROPERTIES),
        Wanted(TENANT, PROPERTIES, start=middle),
        Wanted(TENANT, PROPERTIES, end=middle, customers=("c3", "c17", "nobody")),
        Wanted(TENANT, {"b": "m"}, start=START, end=START + timedelta(days=30)),
        Wanted(OTHER_TENANT, PROPERTIES),
        Wanted("nobody", PROPERTIES),
    ):
        assert totals(store, files, wanted, threads=1 + seed % 2).equals(one_by_one(rows, wanted)), wanted


def test_sums_beyond_64_bits_are_exact(tmp_path: Path) -> None:
    rows = rows_of(random.Random(7), 60, 0.0)
    huge = rows.with_columns(
        tenant=pl.lit(TENANT), type=pl.lit("a"), customer=pl.lit("c1"), kind=pl.lit(0, pl.UInt8),
        data=pl.lit('{"n":"999999999999999999"}'),
    )  # fmt: skip
    store = LocalObjectStore(tmp_path)
    files = list(write_sealed(store, huge, READS))
    path = store.local_path(files[0].key)
    assert path is not None
    assert pl.read_parquet_schema(path)["number:n"] == pl.Decimal(18, 0)
    found = totals(store, files, Wanted(TENANT, {"a": "n"}))
    assert found.row(0) == ("c1", "a", 60, Decimal(999_999_999_999_999_999 * 60))
