"""Usage folded by piece and price row while it is read: what is kept of it for pricing, and how parts are put together.

Owns the value and its parts; which pieces there are says `billing/bill_columns.py`. Folded usage is bounded by
contracts and not by events, but for what prices ask of single events and for distinct texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import polars as pl

from billing.master import MasterData
from billing.meters import HUGE, RUN, SMALL, MeterState, merged
from billing.rating import BY_SLOT, SINGLES, SLOT_ROWS, PieceColumns, Pieces, fold_batch

FOLDED_FORM = 2  # rises when slots are counted otherwise: what was folded before is then not read any more
SLOT = {"slot": pl.UInt64}
SMALL_SCHEMA, SETS_SCHEMA = pl.Schema({**SLOT, **SMALL}), pl.Schema({**SLOT, "text": pl.String})
RUNS_SCHEMA = pl.Schema({**SLOT, **RUN})
MERGE_ROWS = 1_000_000  # groups that wait to be merged, beside as many as there were after the last time


@dataclass(frozen=True)
class FoldedUsage:
    """The state by slot (piece x SLOT_ROWS + price row), and the single events of prices that look at them."""

    state: MeterState
    singles: pl.DataFrame

    def frames(self) -> dict[str, pl.DataFrame]:
        return {"small": self.state.small, "sets": self.state.sets, "runs": self.state.runs, "singles": self.singles}

    @classmethod
    def of_frames(cls, frames: dict[str, pl.DataFrame]) -> FoldedUsage:
        """The inverse of `frames`; those that are not there are empty."""
        found = {name: frames.get(name, pl.DataFrame(schema=schema)) for name, schema in _SCHEMAS.items()}
        return cls(MeterState(BY_SLOT, found["small"], found["sets"], found["runs"]), found["singles"])


_SCHEMAS = {"small": SMALL_SCHEMA, "sets": SETS_SCHEMA, "runs": RUNS_SCHEMA, "singles": SINGLES}
NO_USAGE = FoldedUsage.of_frames({})


class Folding:
    """Folds frames of events for the pieces of several parts (chunks of customers), and gives each part its own.

    `fold` may be called by several threads at once; `add` and what follows are for one.
    """

    def __init__(self, master: MasterData, parts: Sequence[PieceColumns]) -> None:
        self._pieces = [part.frame.height for part in parts]
        # A charge is told by its identity: parts share those of their plans.
        charges = {id(charge): charge for part in parts for charge in part.charges}
        numbers = {key: place for place, key in enumerate(charges)}
        frames: list[pl.DataFrame] = []
        keys: list[pl.DataFrame] = []
        first = 0
        for part in parts:
            places = pl.Series([numbers[id(charge)] for charge in part.charges], dtype=pl.UInt32)
            shifted = pl.col("owner") + pl.lit(first, pl.UInt32)
            frames.append(part.frame.with_columns(shifted, charge=places.gather(part.frame["charge"])))
            keys.append(part.keys.with_columns(shifted))
            highest = part.keys["owner"].max()
            first += 0 if highest is None else int(str(highest)) + 1
        columns = PieceColumns(list(charges.values()), pl.concat(frames), pl.concat(keys))
        self._table = Pieces(columns, master.meters, master.tenant.timezone)
        assert len(self._table.lone_pieces) <= len(master.meters)  # made now: threads share it
        self.keys = columns.keys  # whose events `fold` takes: key and owner
        self._states: list[MeterState] = []
        self._singles: list[pl.DataFrame] = []
        self._waiting, self._merged = 0, 0

    @property
    def reads_order(self) -> bool:
        """Whether ids and sources of events are looked at."""
        return self._table.is_ordered

    def fold(self, events: pl.DataFrame) -> FoldedUsage:
        """Fold events that have their `owner` (as in `keys`)."""
        parts = [
            fold_batch(events.slice(offset, self._table.batch_rows), self._table)
            for offset in range(0, max(events.height, 1), self._table.batch_rows)
        ]
        return FoldedUsage(merged([state for state, _ in parts]), pl.concat([single for _, single in parts]))

    def add(self, part: FoldedUsage) -> None:
        self._states.append(part.state)
        if part.singles.height:
            self._singles.append(part.singles)
        self._waiting += part.state.small.height
        if self._waiting > MERGE_ROWS + self._merged:  # so the work of merging grows with the rows, not with its square
            self._merge()

    def _merge(self) -> None:
        if self._states:
            self._states = [merged(self._states)]
            self._waiting, self._merged = 0, self._states[0].small.height

    def parts(self) -> list[FoldedUsage]:
        """What was added, by part, with the slots of each part's own pieces."""
        self._merge()
        frames = FoldedUsage(
            self._states[0] if self._states else NO_USAGE.state,
            pl.concat(self._singles) if self._singles else NO_USAGE.singles,
        ).frames()
        found: list[dict[str, pl.DataFrame]] = [{} for _ in self._pieces]
        ends: list[int] = []
        for count in self._pieces:
            ends.append((ends[-1] if ends else 0) + count)
        bounds = pl.Series(ends, dtype=pl.UInt64)
        for name, frame in frames.items():
            if not frame.height:
                continue
            piece = frame["slot"] // SLOT_ROWS
            part = bounds.search_sorted(piece, side="right").cast(pl.UInt32)
            for (number,), rows in frame.with_columns(part=part).partition_by("part", as_dict=True).items():
                place = int(str(number))
                first = ends[place] - self._pieces[place]
                shifted = pl.col("slot") - pl.lit(first * SLOT_ROWS, pl.UInt64)
                found[place][name] = rows.drop("part").with_columns(shifted)
        return [FoldedUsage.of_frames(one) for one in found]


def beyond_columns(folded: FoldedUsage, smallest: Decimal) -> pl.Series:
    """Pieces, by place, with quantities that columns surely cannot write: their owners are billed one by one."""
    odd = [pl.col(name).is_not_null() & _odd(name, smallest) for name in ("sum", "low", "high", "latest")]
    slots = folded.state.small.filter(pl.any_horizontal(odd))["slot"]
    huge = folded.state.runs.filter(pl.col("value").abs() >= HUGE)["slot"]
    return (pl.concat([slots, huge]) // SLOT_ROWS).cast(pl.UInt32).unique()


def _odd(name: str, smallest: Decimal) -> pl.Expr:
    size = pl.col(name).abs()
    return ((size > 0) & (size < smallest)) | (pl.col(name) < 0)


def together(parts: Iterable[FoldedUsage]) -> FoldedUsage:
    """Folded usage of the same pieces over different events."""
    found = list(parts)
    if not found:
        return NO_USAGE
    return FoldedUsage(merged([one.state for one in found]), pl.concat([one.singles for one in found]))
