"""Sum and count per customer and meter over sealed files, beside DuckDB over the same events.

100 k customers x 5 meters; the answers are compared to the digit. `ratio_raw`: DuckDB over raw event Parquet in the
order of arrival, with the amount inside the JSON as it was sent; `ratio_raw_flat`: the same with the amount as a column
of its own, which nobody sends; `ratio_own`: DuckDB over our own files, their typed column. All use both cores and take
turns; a rate is the best of the turns. Files are as merging leaves them: a customer's rows of a month lie together.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

from benchmarks.runner import Say
from billing.typed_columns import Reads
from storage.object_store import LocalObjectStore
from storage.usage_log.genesis import open_log
from storage.usage_log.manifest import SealedFile
from storage.usage_log.partitions import partitions_of
from storage.usage_log.sealed_files import write_sealed
from storage.usage_log.sealed_totals import TOTALS_SCHEMA, Wanted, added_up, sealed_totals
from storage.usage_log.segment import microseconds_of

TENANT = "0198f0aa-0000-7000-8000-000000000001"
TYPES = tuple(f"use.{number}" for number in range(5))
READS = {TENANT: Reads({kind: frozenset({"amount"}) for kind in TYPES}, {})}
MONTH_US = microseconds_of(datetime(2026, 5, 1, tzinfo=UTC))
MONTH_S = 31 * 86_400
CHUNK = 1_000_000
THREADS = 2


@dataclass(frozen=True)
class Size:
    events: int
    customers: int
    turns: int


SIZES = {
    "small": Size(20_000, 200, 1),
    "normal": Size(10_000_000, 100_000, 5),
    "long": Size(100_000_000, 100_000, 3),
}


def run(size: str, say: Say) -> dict[str, Any]:
    chosen = SIZES[size]
    with tempfile.TemporaryDirectory(prefix="cb-aggregation-") as folder:
        root = Path(folder)
        store = LocalObjectStore(root / "store")
        files = list(_make(root, store, chosen, say))
        own = [str(store.local_path(file.key)) for file in files]
        own_bytes = sum(file.bytes for file in files)
        say(f"{chosen.events:,} events in {len(files)} sealed files, {own_bytes / chosen.events:.1f} bytes each")
        with duckdb.connect(config={"threads": THREADS}) as connection:
            ways: dict[str, Callable[[], pl.DataFrame]] = {
                "ours": lambda: _ours(store, files),
                "own": lambda: _duckdb(connection, own, '"number:amount"'),
                "raw_flat": lambda: _duckdb(connection, [f"{folder}/raw/*.parquet"], "amount"),
                "raw": lambda: _duckdb(
                    connection, [f"{folder}/raw/*.parquet"], "CAST(data->>'$.amount' AS DECIMAL(18, 2))"
                ),
            }
            best, cpu, answers = _measured(ways, chosen.turns, say)
        ours = answers["ours"]
        assert ours["events"].sum() == chosen.events, "an event is missing"
        for name, answer in answers.items():
            assert answer.equals(ours), f"{name} has other sums"
    return {
        "figure": round(chosen.events / best["ours"]),
        "unit": "events/s",
        "ratio_raw": round(best["raw"] / best["ours"], 2),
        "ratio_raw_flat": round(best["raw_flat"] / best["ours"], 2),
        "ratio_own": round(best["own"] / best["ours"], 2),
        "ms": {name: round(seconds * 1_000, 1) for name, seconds in best.items()},
        "cpu_ms": {name: round(seconds * 1_000, 1) for name, seconds in cpu.items()},
        "groups": ours.height,
        "bytes_an_event": round(own_bytes / chosen.events, 1),
        "hash": str(ours.hash_rows(seed=0).sum()),
        "versions": {"duckdb": duckdb.__version__},
    }


def _measured(
    ways: dict[str, Callable[[], pl.DataFrame]], turns: int, say: Say
) -> tuple[dict[str, float], dict[str, float], dict[str, pl.DataFrame]]:
    """The best time and processor time of each way, turn by turn; the first turn also warms the page cache."""
    best: dict[str, float] = {}
    cpu: dict[str, float] = {}
    answers: dict[str, pl.DataFrame] = {}
    for turn in range(turns + 1):
        for name, way in ways.items():
            began, processor = time.perf_counter(), time.process_time()
            answer = way()
            seconds, used = time.perf_counter() - began, time.process_time() - processor
            answers[name] = answer.sort("customer", "type")
            if turn:
                best[name] = min(best.get(name, seconds), seconds)
                cpu[name] = min(cpu.get(name, used), used)
                say(f"{name}: {seconds * 1_000:.0f} ms, {used * 1_000:.0f} ms of processor")
    return best, cpu, answers


def _ours(store: LocalObjectStore, files: list[SealedFile]) -> pl.DataFrame:
    wanted = Wanted(TENANT, dict.fromkeys(TYPES, "amount"))
    return added_up(sealed_totals(store, files, wanted, threads=THREADS))


def _duckdb(connection: duckdb.DuckDBPyConnection, files: list[str], amount: str) -> pl.DataFrame:
    found = connection.execute(
        f"SELECT customer, type, count(*)::BIGINT AS events, sum({amount})::DECIMAL(38, 12) AS sum"
        " FROM read_parquet(?) GROUP BY customer, type",
        [files],
    ).to_arrow_table()
    frame = pl.from_arrow(found)
    assert isinstance(frame, pl.DataFrame)
    return frame.cast(dict(TOTALS_SCHEMA))


def _make(root: Path, store: LocalObjectStore, size: Size, say: Say) -> Iterator[SealedFile]:
    """Raw files in the order of arrival, and the same events sealed, a share of the partitions after the other."""
    seed = open_log(store).seed
    (root / "raw").mkdir()
    names = pl.Series("customer", [f"customer-{number:06}" for number in range(size.customers)])
    partitions = pl.Series("partition", partitions_of(seed, TENANT, names), dtype=pl.UInt8)
    shares = max(1, size.events // 2_000_000)
    random = np.random.default_rng(20260501)
    for number, start in enumerate(range(0, size.events, CHUNK)):
        rows = _chunk(random, names, partitions, start, min(CHUNK, size.events - start), size.events)
        raw = rows.select("source", "id", "type", "customer", "subscription", "time", "data", "amount")
        raw.write_parquet(root / "raw" / f"{number:05}.parquet", compression="zstd")
        split = rows.with_columns(share=pl.col("partition").cast(pl.UInt32) * shares // 256)
        for (share,), part in split.partition_by("share", as_dict=True).items():
            (root / f"share-{share}").mkdir(exist_ok=True)
            part.drop("share", "amount").write_parquet(root / f"share-{share}" / f"{number:05}.parquet")
    say("raw files written")
    for share in range(shares):
        folder = root / f"share-{share}"
        if not folder.exists():
            continue
        yield from write_sealed(store, pl.read_parquet(folder / "*.parquet"), READS)
        for path in folder.iterdir():
            path.unlink()


def _chunk(
    random: np.random.Generator, names: pl.Series, partitions: pl.Series, start: int, rows: int, whole: int
) -> pl.DataFrame:
    chosen = pl.Series(random.integers(0, names.len(), rows))
    cents = pl.Series("cents", random.integers(0, 10_000, rows))
    region = pl.Series("region", random.integers(0, 4, rows))
    first = start * MONTH_S * 1_000_000 // whole
    span = rows * MONTH_S * 1_000_000 // whole
    moments = pl.Series(random.integers(first, first + max(span, 1), rows))
    high, low = (pl.Series(name, random.integers(0, 1 << 32, rows, dtype=np.int64)) for name in ("high", "low"))
    frame = pl.DataFrame(
        {
            "source": pl.repeat("bench", rows, eager=True),
            "customer": names.gather(chosen),
            "partition": partitions.gather(chosen),
            "kind": pl.repeat(0, rows, dtype=pl.UInt8, eager=True),
            "type": pl.Series(TYPES).gather(pl.Series(random.integers(0, len(TYPES), rows))),
            "tenant": pl.repeat(TENANT, rows, eager=True),
            "subscription": pl.repeat(None, rows, dtype=pl.String, eager=True),
            "detail": pl.repeat(None, rows, dtype=pl.String, eager=True),
            "lane": pl.repeat(0, rows, dtype=pl.UInt16, eager=True),
            "number": pl.repeat(start // CHUNK + 1, rows, dtype=pl.UInt64, eager=True),
            "row": pl.int_range(rows, dtype=pl.UInt32, eager=True),
            "cents": cents,
            "region": region,
            "moment": moments,
            "high": high,
            "low": low,
        }
    )
    amount = pl.format("{}.{}", pl.col("cents") // 100, (pl.col("cents") % 100).cast(pl.String).str.zfill(2))
    return (
        frame.with_columns(
            time=(pl.lit(MONTH_US) + pl.col("moment")).cast(pl.Datetime("us", "UTC")),
            # As long and as random as ids of senders are.
            id=pl.format("{}-{}", pl.col("high").cast(pl.String), pl.col("low").cast(pl.String)),
            data=pl.concat_str(pl.lit('{"amount":"'), amount, pl.lit('","region":"eu-'), "region", pl.lit('"}')),
            amount=amount.cast(pl.Decimal(18, 2)),
        )
        .with_columns(received_at=pl.col("time"))
        .drop("cents", "region", "moment", "high", "low")
    )
