"""Explains one line of a document: derives it again from log and master data, and finds the events behind it.

Owns which facts a line rests on (the bill run's cut, master number, clock) and the comparison with what is stored. The
derivation is the bill run's own (`bill_run_chunk.py`) for the one customer; the arithmetic in words is
`billing/explain.py`. Stores nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import msgspec
import polars as pl

from billing.documents import Line
from billing.errors import NotFound
from billing.explain import piece_of_line
from billing.master import MasterData
from billing.rating import events_counted
from pipelines.bill_run_chunk import behind, compute_documents, rateable
from pipelines.run_credit import WalletDesk
from pipelines.run_view import tasks_of
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql import bill_runs, invoices
from storage.sql.database import Database
from storage.usage_log.reader import SCAN_SCHEMA, Cut, UsageLogReader
from storage.usage_log.segment import RowKind

SAMPLE = 5  # events that an explanation shows
_ENCODER = msgspec.json.Encoder(decimal_format="string")


@dataclass(frozen=True)
class EventsOfLine:
    """The events that the quantity of a line was made of, in order (time, id, source).

    `rows` has the columns of the log, what the meter read (`value`, `text`), `late` (arrived after the run before had
    its cut), `carried` (a level from before the period) and `amended` (as corrected, with source and id as sent).
    """

    rows: pl.DataFrame

    @property
    def count(self) -> int:
        return self.rows.height - int(self.rows["carried"].sum())


@dataclass(frozen=True)
class Derivation:
    """What the log gives today for a stored line. `differences` names the fields that are not equal."""

    way: str  # "bill_run", or "credit_note": written by hand, so it is its invoice's line that is derived
    document: str
    line: int
    derived: Line | None
    differences: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return self.derived is not None and not self.differences


@dataclass(frozen=True)
class ExplainedLine:
    """A line with all that it rests on. `run` is the bill run behind it (of a credit note: of its invoice)."""

    number: str
    place: int
    line: Line
    currency: str
    customer: str
    made_at: datetime
    reason: str | None
    run: Mapping[str, Any]
    master: MasterData
    derivation: Derivation


@dataclass(frozen=True)
class BilledLines:
    """A document of a bill run (`row` as `invoices.get` gives it) with the run and the master data that it rests on."""

    row: Mapping[str, Any]
    run: Mapping[str, Any]
    master: MasterData


class LineExplainer:
    """Explains lines of one platform's documents. Keeps nothing between calls but what the chain keeps."""

    def __init__(
        self, database: Database, store: ObjectStore, chain: MasterChain, desk: WalletDesk | None = None
    ) -> None:
        self._database = database
        self._store = store
        self._chain = chain
        self._desk = desk  # what the lanes recorded of wallet credit; without it that is replayed from the documents

    def explain(self, tenant_id: str, number: str, place: int) -> ExplainedLine:
        """The line `place` (from 1) of a document. NotFound where there is none, and for what was made elsewhere."""
        row, line = self._line(tenant_id, number, place)
        if row["outside"]:
            raise NotFound(f"document {number!r} was made elsewhere: nothing here explains its lines", number=number)
        base, base_place = row, place
        while base["run_id"] is None:  # a credit note by hand: its lines are those of its invoice
            corrects = base["document"].lines[base_place - 1].corrects
            assert corrects is not None, "a document without a run credits lines of another one"
            base, _ = self._line(tenant_id, corrects.document, corrects.line)
            base_place = corrects.line
        with self._database.tenant(tenant_id) as connection:
            run = bill_runs.get(connection, str(base["run_id"]))
        derived, differences = self._derive(tenant_id, run, base, base_place)
        way = "bill_run" if base is row else "credit_note"
        return ExplainedLine(
            number=number,
            place=place,
            line=line,
            currency=row["currency"],
            customer=row["customer"],
            made_at=row["made_at"],
            reason=row["reason"],
            run=run,
            master=self._chain.at(tenant_id, run["master_number"]),
            derivation=Derivation(way, base["number"], base_place, derived, differences),
        )

    def events(self, tenant_id: str, explained: ExplainedLine) -> EventsOfLine | None:
        """All events that count for the line; None for lines that no events make."""
        stored = explained.derivation.derived if explained.derivation.way == "credit_note" else explained.line
        return None if stored is None else self._events(tenant_id, explained.run, explained.master, stored)

    def billed(self, tenant_id: str, number: str) -> BilledLines:
        """The lines of a bill run's document and what is needed to find their events; nothing is derived again."""
        with self._database.tenant(tenant_id) as connection:
            row = invoices.get(connection, number)
            assert row["run_id"] is not None, "a document that no run made has no events of its own"
            run = bill_runs.get(connection, str(row["run_id"]))
        return BilledLines(row, run, self._chain.at(tenant_id, run["master_number"]))

    def events_of(self, tenant_id: str, billed: BilledLines, line: Line) -> EventsOfLine | None:
        """All events that count for one of its lines; None for lines that no events make."""
        return self._events(tenant_id, billed.run, billed.master, line)

    def _events(self, tenant_id: str, run: Mapping[str, Any], master: MasterData, line: Line) -> EventsOfLine | None:
        found = piece_of_line(master, line)
        if found is None:
            return None
        piece, row = found
        cut, previous = _cuts(run)
        levels = master.meters[piece.charge.meter].aggregation == "time_weighted_sum"
        events = rateable(
            UsageLogReader(self._store),
            tenant_id,
            master,
            cut,
            previous,
            run["made_at"],
            keys=piece.keys,
            start=None if levels else piece.start,
            end=piece.end,
        )
        rows = events_counted(piece, row, events, master.meters, master.tenant.timezone)
        inside = rows["time"] >= piece.start
        carried = rows.filter(~inside).tail(1)  # the level at the start of the period
        rows = pl.concat([carried, rows.filter(inside)])
        late = pl.lit(False) if previous is None else behind(rows, previous)
        return EventsOfLine(
            rows.select(*SCAN_SCHEMA.names(), "value", "text").with_columns(
                late=late,
                carried=pl.col("time") < piece.start,
                amended=pl.col("kind") == int(RowKind.AMENDED),
            )
        )

    def _line(self, tenant_id: str, number: str, place: int) -> tuple[dict[str, Any], Line]:
        with self._database.tenant(tenant_id) as connection:
            row = invoices.get(connection, number)
        lines = row["document"].lines
        if not 1 <= place <= len(lines):
            raise NotFound(f"document {number!r} has {len(lines)} lines, not line {place}", number=number)
        return row, lines[place - 1]

    def _derive(
        self, tenant_id: str, run: Mapping[str, Any], row: Mapping[str, Any], place: int
    ) -> tuple[Line | None, tuple[str, ...]]:
        """The line as the log gives it today, and in which fields the stored one differs from it."""
        [whole] = tasks_of(tenant_id, run, [{"chunk": 0, "customers": 1}])
        task = replace(whole, time_zones=None)  # what was billed is explained also with newer data of time zones
        customer = row["customer"]
        _, documents, _ = compute_documents(
            task, self._store, self._database, self._chain, before=str(run["id"]), only=[customer], desk=self._desk
        )
        with self._database.tenant(tenant_id) as connection:
            stored = [one["number"] for one in invoices.of_run(connection, str(run["id"]), [customer])]
        own = [document for document in documents if document.customer == customer]
        order = stored.index(row["number"])
        if order >= len(own) or place > len(own[order].lines):
            return None, ("line",)
        derived = own[order].lines[place - 1]
        return derived, _differences(row["document"].lines[place - 1], derived)


def _differences(stored: Line, derived: Line) -> tuple[str, ...]:
    forms: Sequence[Mapping[str, Any]] = [msgspec.json.decode(_ENCODER.encode(line)) for line in (stored, derived)]
    return tuple(name for name in forms[1] if forms[0].get(name) != forms[1][name])


def _cuts(run: Mapping[str, Any]) -> tuple[Cut, Cut | None]:
    previous = run["previous_cut"]
    return Cut.from_json(json.dumps(run["cut"])), Cut.from_json(json.dumps(previous)) if previous else None
