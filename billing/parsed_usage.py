"""What was read of a request's body: rows of texts before any rule, then events and rejects.

Owns these shapes and their columns. How bytes become rows: `billing/like_lines.py`, `billing/column_lines.py`,
`billing/exact_lines.py`; which rows are events: `billing/door_rules.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from billing.errors import TooLarge

EVENTS_MAX = 100_000
REJECT_SCHEMA = pl.Schema(
    {"position": pl.UInt32, "reason": pl.String, "detail": pl.String, "pointer": pl.String, "id": pl.String}
)
NO_REJECTS = pl.DataFrame(schema=REJECT_SCHEMA)
TEXTS = ("source", "id", "type", "customer", "subscription", "time")
NDJSON = pl.Schema(dict.fromkeys((*TEXTS, "data"), pl.String))
CLOUD_KEYS = ("specversion", "source", "id", "type", "subject", "customer", "subscription", "time")
CLOUD = pl.Schema(dict.fromkeys((*CLOUD_KEYS, "data", "data_base64"), pl.String))


@dataclass(frozen=True)
class ParsedUsage:
    """`events` (EVENT_SCHEMA) and `positions` (1-based places in the request) go to the log; `rejects` do not."""

    events: pl.DataFrame
    positions: pl.Series
    rejects: pl.DataFrame
    total: int


Reject = tuple[int, str, str, str, str | None]  # REJECT_SCHEMA
Row = tuple[str | None, ...]  # NDJSON or CLOUD


@dataclass
class Raw:
    """Events as text columns, before any rule; `rejects` are those that could not even be read."""

    table: pl.DataFrame
    positions: pl.Series
    rejects: list[Reject]
    total: int
    is_plain: bool = False  # no rule can be broken


@dataclass
class Few:
    """The same for a handful of events, as rows."""

    rows: list[Row]
    positions: list[int]
    rejects: list[Reject]
    total: int


def too_many(events_max: int) -> TooLarge:
    return TooLarge(f"more than {events_max:,} events in one request; send several", limit=events_max)
