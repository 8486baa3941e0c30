"""Which stored events count, and why the others do not: lateness by position, against runs that closed theirs.

Owns the rule for tenants that reject late usage: an event is late if a run whose cut lies before it has billed its
period, and late usage was rejected when that run was made. By position in the log, never by time, and for good: what
was late when run two was made stays late in run three. Everything else is `billing.verdicts.classify`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import polars as pl

from billing.book import book_after
from billing.master import MasterData
from billing.verdicts import classify


def reasons_of(events: pl.DataFrame, master: MasterData, now: datetime, *, known: bool = False) -> pl.Series:
    """The first reason that keeps each event in suspense, null where it counts.

    `events` have their positions (`lane`, `number`); those with `counts_late` count although they are late.
    `known`: all are of customers of the master data.
    """
    book = master.rating_book()
    nothing_late = pl.repeat(False, events.height, dtype=pl.Boolean, eager=True)
    reasons = classify(events, book, now, new=nothing_late, known=known)
    runs = master.closing_runs
    if not runs or events.height == 0:
        return reasons
    after = runs_before(events, master)
    exempt = events["counts_late"].fill_null(value=False) if "counts_late" in events.columns else nothing_late
    # Only what lies before the end of something billed by then can be late: in a quiet log next to nothing.
    ends = [runs[0].up_to]
    for mark in runs:
        ends.append(max(ends[-1], mark.up_to))
    until = pl.DataFrame(
        {"runs": range(len(ends)), "until": ends}, schema={"runs": pl.Int64, "until": events["time"].dtype}
    )
    asked = pl.DataFrame({"runs": after}).join(until, on="runs", how="left", maintain_order="left")
    open_ = (after > 0) & (events["time"] < asked["until"]) & ~exempt
    for count in after.filter(open_).unique().sort():
        places = (open_ & (after == count)).arg_true()
        judged = classify(events[places], book_after(master, int(count)), now)
        reasons = reasons.scatter(places, judged)
    return reasons


def runs_before(events: pl.DataFrame, master: MasterData) -> pl.Series:
    """How many of the runs that let no usage come late, in their order, had a cut that lies before each event."""
    after = pl.repeat(0, events.height, dtype=pl.Int64, eager=True)
    for mark in master.closing_runs:
        if mark.cut is not None:
            after = after + behind(events, mark.cut).cast(pl.Int64)
    return after


def behind(events: pl.DataFrame, cut: Mapping[int, int]) -> pl.Series:
    """Which events lie behind a cut (lane -> last number): positions decide what is new, never times."""
    lanes = events["lane"].unique().to_list()
    last = pl.DataFrame(
        {"lane": lanes, "last": [cut.get(lane, -1) for lane in lanes]},
        schema={"lane": pl.UInt16, "last": pl.Int64},
    )
    joined = events.select("lane", "number").join(last, on="lane", how="left", maintain_order="left")
    return joined["number"].cast(pl.Int64) > joined["last"]
