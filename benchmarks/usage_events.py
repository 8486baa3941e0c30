"""The benchmark's event: about 190 bytes of NDJSON, two properties, UUIDv7 ids, 100,000 customers, five meters."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import polars as pl

from billing.usage import EVENT_SCHEMA, INSTANT

TENANT = "0198f0aa-0000-7000-8000-0000000000be"
START_US = int(datetime(2026, 5, 1, tzinfo=UTC).timestamp()) * 1_000_000


def make_events(rows: int, first: int, *, customers: int = 100_000, seed: int = 1) -> pl.DataFrame:
    """Events numbered from `first`: the same number is the same event."""
    dice = np.random.default_rng([seed, first])
    stamps = START_US // 1000 + (first + np.arange(rows)) // 4
    noise = dice.integers(0, 1 << 62, rows, dtype=np.uint64)
    more = dice.integers(0, 1 << 12, rows, dtype=np.uint64)
    frame = pl.DataFrame(
        {
            "stamp": pl.Series(stamps, dtype=pl.Int64),
            "noise": noise,
            "more": more,
            "customer": dice.integers(0, customers, rows),
            "meter": dice.integers(0, 5, rows),
            "quantity": dice.integers(0, 100_000, rows),
            "region": dice.integers(0, 4, rows),
        }
    )
    high = pl.format("{}", pl.col("stamp")).str.zfill(12)
    noise_text = pl.col("noise").cast(pl.String).str.zfill(19)
    return frame.select(
        pl.lit("gateway-7").alias("source"),
        # The shape of a UUIDv7: a time that grows, then noise (decimal digits are hexadecimal ones, too).
        pl.concat_str(
            [
                high.str.slice(0, 8), pl.lit("-"), high.str.slice(8, 4), pl.lit("-7"),
                pl.col("more").cast(pl.String).str.zfill(4).str.slice(1), pl.lit("-8"),
                noise_text.str.slice(0, 3), pl.lit("-"), noise_text.str.slice(3, 12),
            ]
        ).alias("id"),
        pl.concat_str([pl.lit("compute."), pl.col("meter")]).alias("type"),
        pl.concat_str([pl.lit("customer-"), pl.col("customer")]).alias("customer"),
        pl.lit(None, pl.String).alias("subscription"),
        (pl.col("stamp") * 1000).cast(INSTANT).alias("time"),
        pl.concat_str(
            [
                pl.lit('{"hours":"'), (pl.col("quantity") // 1000).cast(pl.String), pl.lit("."),
                (pl.col("quantity") % 1000).cast(pl.String).str.zfill(3), pl.lit('","region":"eu-'),
                pl.col("region").cast(pl.String), pl.lit('"}'),
            ]
        ).alias("data"),
    ).cast(EVENT_SCHEMA)  # fmt: skip
