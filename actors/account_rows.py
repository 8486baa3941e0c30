"""Rows of accounts as columns: what one call decides becomes one frame, and is read back without being parsed again.

Owns the way between entries (`billing/accounts.py`) and rows of the log, nothing of what they say.
"""

from __future__ import annotations

from typing import Any

import msgspec
import polars as pl

from billing.accounts import Entry
from billing.usage import INSTANT
from storage.usage_log.account_entries import ENTRIES, entry_of
from storage.usage_log.segment import ROW_SCHEMA, RowKind

KNOWN_MAX = 20_000  # details kept with their entries
_KIND_OF: dict[type[Any], int] = {entry: kind for kind, entry in ENTRIES.items()}
_TYPE_OF = {kind: RowKind(kind).name.lower() for kind in ENTRIES}
_encode = msgspec.json.Encoder().encode


class KnownEntries:
    """Entries by the very text that their rows carry: equal texts are equal entries, wherever they came from."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], Entry] = {}

    def keep(self, kind: int, detail: str, entry: Entry) -> None:
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[kind, detail] = entry

    def entry(self, kind: int, detail: str) -> Entry:
        found = self._known.get((kind, detail))
        return entry_of(kind, detail) if found is None else found


class AccountRows:
    """What one call of one tenant writes, in the order decided."""

    def __init__(self, tenant_id: str, now_us: int, known: KnownEntries) -> None:
        self._tenant_id = tenant_id
        self._now_us = now_us
        self._known = known
        self._kinds: list[int] = []
        self._sources: list[str] = []
        self._ids: list[str] = []
        self._customers: list[str] = []
        self._details: list[str] = []

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, source: str, id: str, customer: str, entry: Entry) -> None:
        kind = _KIND_OF[type(entry)]
        detail = _encode(entry).decode()
        self._known.keep(kind, detail, entry)
        self._kinds.append(kind)
        self._sources.append(source)
        self._ids.append(id)
        self._customers.append(customer)
        self._details.append(detail)

    def frame(self) -> pl.DataFrame:
        """As a decision gives rows to its shard (ROW_SCHEMA)."""
        count = len(self._ids)
        return pl.DataFrame(
            [
                pl.Series("tenant", [self._tenant_id] * count, pl.String),
                pl.Series("partition", [0] * count, pl.UInt8),
                pl.Series("kind", self._kinds, pl.UInt8),
                pl.Series("source", self._sources, pl.String),
                pl.Series("id", self._ids, pl.String),
                pl.Series("type", [_TYPE_OF[kind] for kind in self._kinds], pl.String),
                pl.Series("customer", self._customers, pl.String),
                pl.Series("subscription", [None] * count, pl.String),
                pl.Series("time", [self._now_us] * count, pl.Int64).cast(INSTANT),
                pl.Series("data", [None] * count, pl.String),
                pl.Series("detail", self._details, pl.String),
            ]
        )


assert list(ROW_SCHEMA) == [
    *("tenant", "partition", "kind", "source", "id", "type", "customer", "subscription", "time", "data", "detail"),
], "rows of accounts have the columns of all rows"
