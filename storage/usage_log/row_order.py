"""The order of rows in sealed files, found by whole numbers: comparing texts row by row was half of sealing's cost.

Texts that repeat (tenant, customer, type) are numbered in their order once; what remains is one sort of packed 64-bit
numbers. Rows that agree in all but source and id are few, and compared by these alone.
"""

from __future__ import annotations

import numpy as np
import polars as pl

ORDER = ("tenant", "partition", "customer", "type", "time", "source", "id")
_REPEATED = ("tenant", "customer", "type", "source", "subscription")
_BITS = 1 << 63


def in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows by ORDER, as `rows.sort(ORDER)` has them; rows equal in all of it stay as they were."""
    numbered = {name: _Numbered.of(rows[name]) for name in _REPEATED if name in rows.columns}
    places = _places(rows, numbered)
    if places is None:
        return rows.sort(ORDER, maintain_order=True)
    order = pl.Series(places)
    columns = [numbered[name].texts(order) if name in numbered else rows[name].gather(order) for name in rows.columns]
    return pl.DataFrame(columns)


class _Numbered:
    """A column of texts as numbers in the order of the texts; 0 is null, which stands first."""

    def __init__(self, known: pl.Series, numbers: pl.Series) -> None:
        self._known, self.numbers = known, numbers

    @classmethod
    def of(cls, texts: pl.Series) -> _Numbered:
        known = texts.drop_nulls().unique().sort()
        numbers = texts.cast(pl.Enum(known)).to_physical().cast(pl.UInt32)
        return cls(known, (numbers + 1).fill_null(0) if texts.null_count() else numbers + 1)

    @property
    def count(self) -> int:
        return self._known.len() + 1

    def texts(self, order: pl.Series) -> pl.Series:
        """The texts in another order, out of the few that there are: near to each other in memory."""
        numbers = self.numbers.gather(order)
        if self._known.len() == 0:
            return pl.repeat(None, order.len(), dtype=pl.String, eager=True).alias(self.numbers.name)
        places = (numbers.cast(pl.Int64) - 1).set(numbers == 0, None)
        return self._known.gather(places).alias(self.numbers.name)


def _places(rows: pl.DataFrame, numbered: dict[str, _Numbered]) -> np.ndarray | None:
    """Where each row of the order is now; None where the keys have no room in 64 bits, or one is missing."""
    if rows["partition"].null_count() or rows["time"].null_count():
        return None
    parts = [(numbered["tenant"].numbers, numbered["tenant"].count), (rows["partition"], 256)]
    parts += [(numbered[name].numbers, numbered[name].count) for name in ("customer", "type")]
    room = 1
    keys = np.zeros(rows.height, np.uint64)
    for values, count in parts:
        room *= count
        if room > _BITS:
            return None
        keys = keys * np.uint64(count) + values.cast(pl.UInt64).to_numpy()
    times = rows["time"].to_physical().to_numpy()
    first = int(times.min()) if rows.height else 0
    after = (times - first).astype(np.uint64)
    span = int(after.max()) + 1 if rows.height else 1
    if room * span <= _BITS:
        keys = keys * np.uint64(span) + after
        places = np.argsort(keys)  # not stable: rows that agree are put right below
        same = keys[places][1:] == keys[places][:-1]
    else:
        places = np.lexsort((after, keys))
        same = (keys[places][1:] == keys[places][:-1]) & (after[places][1:] == after[places][:-1])
    if same.any():
        _settle_ties(rows, places, same)
    return places


def _settle_ties(rows: pl.DataFrame, places: np.ndarray, same: np.ndarray) -> None:
    """Rows that agree so far, by source and id, in the places that they have together."""
    tied = np.zeros(places.size, bool)
    tied[1:] |= same
    tied[:-1] |= same
    group = np.cumsum(np.concatenate(([True], ~same)))[tied]
    among = places[tied]
    texts = rows.select("source", "id")[pl.Series(among)]
    sorted_places = (
        pl.DataFrame({"group": group, "place": among}).hstack(texts).sort("group", "source", "id", "place")["place"]
    )
    places[tied] = sorted_places.to_numpy()
