"""Backfills as the budgets of a lane see them: which begin or cease to count, and the events that this concerns.

Owns what a lane's notes say of that (`shown`, `hidden`), and the fold of rows into events that count. When budgets take
it on is said by their looks (actors/budget_watch.py); what is decided about backfills is `actors/backfills.py`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

import polars as pl

from actors.budget_rows import arrived_events, corrected_events, of_kind
from billing.amendments import fold_amendments_of_lane
from billing.backfills import HIDDEN, SHOWN
from billing.budget_state import NO_EVENTS
from storage.usage_log.segment import RowKind

NAME, OF_EVENT = (pl.col("detail").str.json_path_match(path) for path in ("$.backfill", "$.event.backfill"))
_STEP = pl.col("detail").str.json_path_match("$.step")
_CHANGES = (RowKind.AMENDED, RowKind.VOIDED)


def turns_in(rows: pl.DataFrame) -> dict[str, bool]:
    """By backfill whether its events count from these rows on; False is for ever."""
    noted = of_kind(rows, RowKind.BACKFILL_NOTED)
    if noted.height == 0:
        return {}
    turns = noted.filter(_STEP.is_in([SHOWN, HIDDEN])).select(NAME.alias("name"), counts=_STEP == SHOWN)
    return dict(turns.sort("counts", descending=True).iter_rows())  # of one that does both the end stays


def turns_seen(rows: pl.DataFrame) -> dict[str, bool]:
    """What the looks among these rows take on."""
    found: dict[str, bool] = {}
    for detail in of_kind(rows, RowKind.MASTER_SEEN)["detail"]:
        found = merged(found, json.loads(detail).get("backfills", {}))
    return found


def merged(known: Mapping[str, bool], more: Mapping[str, bool]) -> dict[str, bool]:
    """What ceased to count does so for ever, in whatever order lanes hear of it."""
    return {**known, **{name: counts and known.get(name, True) for name, counts in more.items()}}


def differing(turns: Mapping[str, bool], shown: Collection[str]) -> dict[str, bool]:
    """The turns that budgets which count the backfills `shown` have to take on."""
    return {name: counts for name, counts in sorted(turns.items()) if counts != (name in shown)}


def after_turns(shown: frozenset[str], turned: Mapping[str, bool]) -> frozenset[str]:
    """The backfills that count once turns are taken on."""
    begun = {name for name, counts in turned.items() if counts}
    return frozenset((shown | begun) - (turned.keys() - begun))


def events_in(rows: pl.DataFrame, shown: Collection[str]) -> pl.DataFrame:
    """Events as they count by these rows (with positions): sent live or under a backfill of `shown`, as amended."""
    backfilled = of_kind(rows, RowKind.BACKFILLED)
    if backfilled.height:
        backfilled = backfilled.filter(NAME.is_in(list(shown)))
    events = pl.concat(
        [
            arrived_events(of_kind(rows, RowKind.USAGE)),
            # Somebody decided that they count, however late they came.
            arrived_events(backfilled).with_columns(counts_late=pl.lit(True)),
        ]
    )
    changes = changes_of(of_kind(rows, *_CHANGES), shown)
    if changes.height:
        known = fold_amendments_of_lane(changes)
        events = pl.concat([known.without(events), corrected_events(known.events)])
    return events.sort("number", "row", maintain_order=True)


def changes_of(changes: pl.DataFrame, shown: Collection[str]) -> pl.DataFrame:
    """Of rows that change events those that count: of events sent live, or under a backfill of `shown`."""
    if changes.height == 0:
        return changes
    return changes.filter(OF_EVENT.is_null() | OF_EVENT.is_in(list(shown)))


def rows_of(rows: pl.DataFrame, names: Collection[str]) -> pl.DataFrame:
    """The events of these backfills and what changes them."""
    return rows.filter(is_of(names))


def is_of(names: Collection[str]) -> pl.Expr:
    """Which rows are that."""
    kinds = [int(kind) for kind in _CHANGES]
    event = (pl.col("kind") == int(RowKind.BACKFILLED)) & NAME.is_in(list(names))
    return event | (pl.col("kind").is_in(kinds) & OF_EVENT.is_in(list(names)))


def begun_events(rows: pl.DataFrame, names: Collection[str]) -> pl.DataFrame:
    """The events of these backfills as they count, among rows with positions."""
    return events_in(rows_of(rows, names), names) if rows.height else NO_EVENTS
