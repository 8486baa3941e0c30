"""Making the documents of an approved bill run final: numbers, rows and postings, each chunk in one transaction."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from billing.document_columns import totals_of
from billing.master import Customer
from billing.numbers import patterns_of
from pipelines.chunk_results import unpack
from pipelines.run_credit import settling
from pipelines.turns import Turns
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql import bill_runs, finalising, invoices, tenants, wallet_moves
from storage.sql.database import Connection, Database

FINALISING = 2  # chunks in a transaction of their own at the same time


@dataclass(frozen=True)
class Finalising:
    """Takes the chunks of a run in their order; what the driver of the run decides or does is handed in."""

    _database: Database
    _store: ObjectStore
    _chain: MasterChain
    _clock: Callable[[], datetime]
    _checkpoint: Callable[[str], None]
    _may_go_on: Callable[[str, str], bool]
    _bring_moves: Callable[[str], None]

    def finalise(self, tenant_id: str, run: Mapping[str, Any]) -> bool:
        """Chunk after chunk, so that numbers follow the order of customers; each in one transaction.

        While one chunk takes its numbers, the next is brought into its own transaction with all that needs none. False:
        the run was paused before the last one.
        """
        run_id = str(run["id"])
        with self._database.tenant(tenant_id) as connection:
            left = [one["chunk"] for one in bill_runs.chunks(connection, run_id) if one["state"] == "computed"]
        order, turns = Turns(), Turns()
        with ThreadPoolExecutor(FINALISING, "finalise") as pool:
            waiting: deque[Future[None]] = deque()
            try:
                for turn, chunk in enumerate(left):
                    if not self._may_go_on(tenant_id, run_id):
                        break  # what has begun comes to its end
                    waiting.append(pool.submit(self._finalise_chunk, tenant_id, run, chunk, turn, order, turns))
                    while len(waiting) >= FINALISING or (waiting and waiting[0].done()):
                        self._finalised(tenant_id, run_id, waiting.popleft())
                while waiting:
                    self._finalised(tenant_id, run_id, waiting.popleft())
            finally:
                order.stop()
                turns.stop()  # after a failure nobody else takes a number
                while waiting:
                    waiting.popleft().cancel()
        with self._database.tenant(tenant_id) as connection:
            if any(chunk["state"] == "computed" for chunk in bill_runs.chunks(connection, run_id)):
                return False
            bill_runs.move(connection, run_id, expected=("approved",), state="finalised", now=self._clock())
        self._checkpoint("finalised")
        return True

    def _finalised(self, tenant_id: str, run_id: str, chunk: Future[None]) -> None:
        chunk.result()
        with self._database.tenant(tenant_id) as connection:
            bill_runs.went_on(connection, run_id)
        self._checkpoint("chunk finalised")
        self._bring_moves(tenant_id)
        self._checkpoint("credit settled")

    def _finalise_chunk(
        self, tenant_id: str, run: Mapping[str, Any], chunk: int, turn: int, order: Turns, turns: Turns
    ) -> None:
        run_id = str(run["id"])
        with turns.of(turn), self._database.tenant(tenant_id) as connection:
            with order.of(turn):  # ids rise with the numbers, too
                row = bill_runs.chunk_for_update(connection, run_id, chunk)
                if row["state"] != "computed":
                    return  # another driver was here
                data = self._store.get(row["result"])
                assert data is not None, "the result of a computed chunk is never deleted"
                result = unpack(data)
                held = {one["customer"] for one in run["parked"]}
                columns = result.columns.without(held)
                order.wait(turn)
                ids = finalising.new_ids(columns.count)
            heads = self._heads(connection, tenant_id, run, columns.documents)
            staged = finalising.stage(connection, tenant_id, ids, columns, heads, self._clock())
            turns.wait(turn)
            numbers = finalising.number(connection, staged)
            with_wallet = self._chain.at(tenant_id, run["master_number"]).wallet_customers
            without = {one["customer"] for one in result.parked if one["customer"] in with_wallet}
            without |= held & {*result.holders, *(set(result.columns.documents["customer"]) & with_wallet)}
            if result.holders or without:
                by_key = dict(zip(columns.documents["key"], numbers, strict=True))
                moves = settling(run_id, result.holders, by_key, without)
                wallet_moves.add(connection, tenant_id, moves, self._clock())
            self._checkpoint("chunk finalising")
            bill_runs.chunk_finalised(
                connection,
                run_id,
                chunk,
                documents=columns.count,
                lines=columns.lines.height,
                totals=totals_of(columns),
                now=self._clock(),
            )

    def _heads(
        self, connection: Connection, tenant_id: str, run: Mapping[str, Any], documents: pl.DataFrame
    ) -> pl.DataFrame:
        """What the documents of a run need beside themselves to become invoices."""
        master = self._chain.at(tenant_id, run["master_number"])
        known: dict[str, tuple[str, dict[str, str]]] = {}  # by the code that a customer names, empty for the first one
        rows: list[tuple[Any, ...]] = []
        for customer, type_, day in documents.select("customer", "type", "issued_on").iter_rows():
            named = str(master.customers[customer].form.get("legal_entity") or "")
            if named not in known:
                entity = tenants.legal_entity(connection, named or None)
                patterns = run["patterns"].get(entity["code"]) if run["patterns"] else None
                if patterns is None:  # planned before patterns were fixed, or without this entity
                    patterns = patterns_of(entity["code"], entity["form"], is_default=entity["is_default"])
                known[named] = (entity["code"], patterns)
            code, patterns = known[named]
            buyer = buyer_of(master.customers[customer])
            rows.append(
                (
                    code, patterns[type_], invoices.buyer_json(buyer), str(buyer.get("name") or customer),
                    invoices.due_on(day, type_, buyer), run["made_at"], str(run["id"]), run["mark"], None, None, None,
                )
            )  # fmt: skip
        return finalising.heads_of(rows)


def buyer_of(customer: Customer) -> dict[str, Any]:
    """The customer's form as it is printed, with what billing read out of it."""
    return {**customer.form, "code": customer.code, "name": customer.name, "country": customer.country}
