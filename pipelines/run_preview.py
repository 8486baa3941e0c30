"""A bill run of a whole tenant as it would be: computed and looked at like one, and nothing of it ever becomes true.

Owns what such a preview rests on, its result and its lines. Its chunks are those of a bill run, computed by the same
function through the same executor (`bill_run_chunk.py`), and looked at by the same rules (`run_look.py`). All of one
lies below `run-previews/<tenant>/<id>/` in the object store (`kept_work.py`), until it is deleted or expires. It writes
nothing else: no row of SQL, no number, no cut, no step of the master data, and it holds no wallet credit. It takes no
turn of the tenant's runs either: one that becomes final meanwhile makes the preview fail, as it would mix two states.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl

from billing.errors import Conflict
from billing.master import MasterData
from pipelines.bill_run_chunk import (
    CUSTOMERS,
    PREVIEWS,
    ChunkResult,
    ChunkTask,
    GatherTask,
    chunk_sizes,
    preview_folder,
)
from pipelines.chunk_executor import Executor, InProcess
from pipelines.chunk_results import unpack
from pipelines.data_versions import data_versions
from pipelines.kept_work import Clock, Head, KeptWork, chunk_key, new_id
from pipelines.preview import AHEAD_MAX
from pipelines.reused_ids import LISTED_MAX, passes_over, reused_often, voided_since
from pipelines.run_credit import WalletDesk
from pipelines.run_look import look_at
from pipelines.run_times import run_times
from pipelines.run_view import sum_of_totals, tasks_of
from pipelines.usage_slices import forget, is_gathered
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql import bill_runs, billing_settings, idempotency, steps, tenants
from storage.sql.database import Connection, Database
from storage.usage_log.reader import Cut, UsageLogReader

KEPT_MAX = 50  # previews of one tenant
KEPT_FOR = timedelta(days=30)
NAMED_MAX = 1_000  # customers parked, and those held back, that a result names; all are counted
BECOMING_FINAL = ("approved", "reversing")  # runs of which a part of the documents is written
LINE_COLUMNS = (
    "customer", "document", "type", "currency", "line", "subscription", "plan", "plan_version", "charge", "kind",
    "name", "period_start", "period_end", "quantity", "unit", "allowance", "amount", "tax_category", "tax_percent",
    "correction", "outcome",
)  # fmt: skip
_INNER = ("chunks", "cut", "previous_cut", "previous_run", "master_steps", "request")


class RunPreviews:
    """Plans, drives, lists and deletes the previews of any tenant. A plain class; the Ray shell calls it."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        chain: MasterChain,
        clock: Clock,
        *,
        executor: Executor | None = None,
        desk: WalletDesk | None = None,
    ) -> None:
        """`desk` tells which wallet credit is free; without one it is replayed from the documents made before."""
        self._database = database
        self._store = store
        self._chain = chain
        self._clock = clock
        self._executor = executor or InProcess(store, database, chain, desk)
        self._kept = KeptWork(store, clock, "preview", PREVIEWS, KEPT_MAX)

    # -- Plan ----------------------------------------------------------------------------------------------------------

    def plan(
        self,
        tenant_id: str,
        up_to: date | datetime,
        actor: str,
        *,
        document_date: date | None = None,
        request: str | None = None,
    ) -> dict[str, Any]:
        """Fix what a preview rests on; `up_to` may lie ahead, and the collection window need not be over.

        `request` marks a request that may be repeated: if the newest preview is its own, left by a process that died
        before it could answer, that one is given.

        Errors: InvalidInput for a date that may not be, Conflict while a preview goes on or too many are kept, and
        while a bill run becomes final.
        """
        now = self._clock()
        with self._database.tenant(tenant_id) as connection:
            tenant = tenants.by_id(connection, tenant_id)
            settings = billing_settings.of(connection, tenant.kind)
            times = run_times(tenant, settings, up_to, document_date, now, ahead=AHEAD_MAX)
            previous = bill_runs.last_finalised(connection)  # before the number: its mark is then in the master data
            number = steps.current_number(connection, tenant_id)
            _nothing_becomes_final(connection)
        self._chain.project(self._database, tenant_id, up_to=number)  # who changed master data may have died before
        number, master = self._chain.newest(tenant_id, at_least=number)
        sizes = chunk_sizes(master, CUSTOMERS)
        facts = {
            "id": new_id(),
            "up_to": times.up_to.isoformat(),
            "document_date": times.document_date.isoformat(),
            "made_at": times.made_at.isoformat(),
            "usage_may_come_until": times.window_end.isoformat() if times.usage_may_come else None,
            "customers": sum(sizes),
            "chunks": sizes,
            "cut": json.loads(UsageLogReader(self._store).now("preview").to_json()),
            "previous_cut": previous["cut"] if previous else None,
            "previous_run": str(previous["id"]) if previous else None,
            "master_number": number,
            "data_versions": data_versions(master),
            "created_at": now.isoformat(),
            "created_by": actor,
            "request": request,
            "expires_at": (now + KEPT_FOR).isoformat(),
        }
        with self._database.tenant(tenant_id) as connection:
            bill_runs.one_preview_at_a_time(connection, tenant_id)
            known = self._kept.heads(tenant_id)
            if (own := self._of_request(tenant_id, known, request, now)) is not None:
                return self.get(tenant_id, own)
            if len(known) >= KEPT_MAX and self.expire(tenant_id):
                known = self._kept.heads(tenant_id)
            self._kept.make_room(known)
            self._kept.plan(tenant_id, facts)
        return self.get(tenant_id, facts["id"])

    def _of_request(self, tenant_id: str, known: Sequence[Head], request: str | None, now: datetime) -> str | None:
        if request is None or not known:
            return None
        facts = self._kept.facts(tenant_id, known[0].id)
        # Longer than keys of requests are kept, the same one is a new wish.
        is_recent = datetime.fromisoformat(facts["created_at"]) > now - idempotency.KEPT_FOR
        return known[0].id if is_recent and facts.get("request") == request else None

    # -- Drive ---------------------------------------------------------------------------------------------------------

    def drive(self, tenant_id: str, preview_id: str) -> str:
        """Bring a preview to its end; the state it ended in. Driving it again resumes it."""
        return self._kept.guarded(tenant_id, preview_id, lambda: self._drive(tenant_id, preview_id))

    def _drive(self, tenant_id: str, preview_id: str) -> str:
        kept = self._kept
        facts = kept.facts(tenant_id, preview_id)
        usage = f"{preview_folder(tenant_id, preview_id)}usage/"
        if (state := kept.state(tenant_id, preview_id)["state"]) in ("cancelled", "done"):
            forget(self._store, usage)
            return state
        kept.note(tenant_id, preview_id, "running", 0, stage="reading usage")
        master = self._chain.at(tenant_id, facts["master_number"])
        findings = self._findings(tenant_id, facts, master)
        tasks = _tasks(tenant_id, facts)
        if len(tasks) > 1:  # a single one reads its own usage
            missing = any(not self._store.exists(task.key) for task in tasks)
            if missing and not is_gathered(self._store, usage):
                self._executor.gather(GatherTask(tuple(tasks), usage))
            tasks = [replace(task, gathered=usage) for task in tasks]
        since = self._clock().isoformat()
        results: list[ChunkResult] = []
        going_on = (task for task in tasks if not kept.is_cancelled(tenant_id, preview_id))
        for result in self._executor.compute(going_on):  # one that was computed before is but read
            results.append(result)
            if not kept.is_cancelled(tenant_id, preview_id):
                kept.note(tenant_id, preview_id, "running", len(results), stage="computing", since=since)
        if kept.is_cancelled(tenant_id, preview_id) or kept.was_deleted(tenant_id, preview_id):
            forget(self._store, usage)
            return "cancelled"
        kept.note(tenant_id, preview_id, "running", len(results), stage="checking")
        summary = self._summary(tenant_id, facts, master, findings, sorted(results, key=lambda one: one.chunk))
        state = kept.end(tenant_id, preview_id, summary, len(results))
        forget(self._store, usage)  # behind the end: what a second driver then misses does not make the preview failed
        return state

    def _findings(self, tenant_id: str, facts: Mapping[str, Any], master: MasterData) -> list[dict[str, Any]]:
        """What a run's plan would find out about events; it would void those that this only names."""
        reader = UsageLogReader(self._store)
        cut = Cut.from_json(json.dumps(facts["cut"]))
        since = Cut.from_json(json.dumps(facts["previous_cut"])) if facts["previous_cut"] else None
        found = passes_over(self._store, reader).look(tenant_id, cut, but_sources=master.tenant.unique_within_customer)
        findings = voided_since(reader, tenant_id, since, cut)
        if found.too_many:
            findings.append(reused_often(found.too_many))
        if found.names:
            findings.append(
                {
                    "code": "id_reused_ahead",
                    "ids": len(found.names),
                    "listed": [{"source": source, "id": id_} for source, id_ in found.names[:LISTED_MAX]],
                    "detail": "these ids came under several customers: the run voids all but the first event of each,"
                    " the preview counts those that are not voided yet",
                }
            )
        return findings

    def _summary(
        self,
        tenant_id: str,
        facts: Mapping[str, Any],
        master: MasterData,
        findings: Sequence[Mapping[str, Any]],
        results: Sequence[ChunkResult],
    ) -> dict[str, Any]:
        totals = sum_of_totals([one.totals for one in results if one.totals])
        with self._database.tenant(tenant_id) as connection:
            looked = look_at(
                connection,
                tenant_id,
                master,
                findings,
                totals,
                [parked for one in results for parked in one.parked],
                lambda: (self._result(one.key) for one in results),
            )
            _still_as_planned(connection, facts, master)
        return {
            "totals": totals,
            "documents": sum(one.documents for one in results),
            "lines": sum(one.lines for one in results),
            "checks": looked.checks,
            "parked": looked.parked[:NAMED_MAX],
            "parked_count": len(looked.parked),
            "held_back": looked.held[:NAMED_MAX],
            "held_back_count": len(looked.held),
            "findings": list(findings),
            "left_out": {
                "parked": sorted({one["customer"] for one in looked.parked}),
                "held_back": sorted({one["customer"] for one in looked.held}),
            },
        }

    def _result(self, key: str) -> bytes:
        data = self._store.get(key)
        if data is None:
            raise Conflict("what was computed of the preview was deleted meanwhile: begin another one")
        return data

    # -- Look and steer ------------------------------------------------------------------------------------------------

    def get(self, tenant_id: str, preview_id: str) -> dict[str, Any]:
        """A preview with its progress, and its result once it is done."""
        facts = self._kept.facts(tenant_id, preview_id)
        state = self._kept.state(tenant_id, preview_id)
        view = self._kept.view(tenant_id, preview_id, facts, state, _INNER)
        if view["result"] is not None:
            del view["result"]["left_out"]
        view["progress"] |= _stage(state, view["progress"], self._clock())
        return view

    def list(self, tenant_id: str) -> list[dict[str, Any]]:
        """All previews of a tenant, newest first; at most KEPT_MAX and those planned at the same moment."""
        return [self.get(tenant_id, id_) for id_ in self._kept.ids(tenant_id)]

    def newest(self, tenant_id: str, count: int, *, before: str | None = None) -> list[dict[str, Any]]:
        """The last ones that were begun, newest first; `before` is the id of one that was begun after them."""
        ids = [id_ for id_ in self._kept.ids(tenant_id) if before is None or id_ < before]
        return [self.get(tenant_id, id_) for id_ in ids[:count]]

    def cancel(self, tenant_id: str, preview_id: str) -> dict[str, Any]:
        """Stop after the chunks that are computed now. Conflict where it has ended."""
        self._kept.cancel(tenant_id, preview_id, self.get(tenant_id, preview_id)["state"])
        return self.get(tenant_id, preview_id)

    def delete(self, tenant_id: str, preview_id: str) -> None:
        """Remove a preview that has ended, with all that it computed."""
        self._kept.delete(tenant_id, preview_id, self.get(tenant_id, preview_id)["state"])

    def expire(self, tenant_id: str) -> int:
        """Delete what has ended and is older than KEPT_FOR; how many."""
        now, count = self._clock(), 0
        for one in self._kept.heads(tenant_id):
            if one.goes_on:
                continue
            facts = self._kept.facts(tenant_id, one.id)
            if datetime.fromisoformat(facts["expires_at"]) <= now:
                self._kept.delete(tenant_id, one.id, one.state)
                count += 1
        return count

    def unfinished(self, tenant_id: str) -> dict[str, str]:
        """Those that have not ended, each with a mark that is another one whenever it has come on."""
        return {one.id: one.mark for one in self._kept.heads(tenant_id) if one.goes_on}

    def sweep(self, tenant_id: str) -> int:
        """Delete what was put after its preview was deleted; of how many."""
        return self._kept.sweep(tenant_id)

    def fresh(self, tenant_id: str, up_to: datetime) -> dict[str, Any] | None:
        """The newest one that is done, up to that very moment, and behind the same last run: what is known best."""
        with self._database.tenant(tenant_id) as connection:
            last = bill_runs.last_finalised(connection)
        for id_ in self._kept.ids(tenant_id):
            facts = self._kept.facts(tenant_id, id_)
            same = datetime.fromisoformat(facts["up_to"]) == up_to
            if same and facts["previous_run"] == (str(last["id"]) if last else None):
                view = self.get(tenant_id, id_)
                if view["state"] == "done":
                    return view
        return None

    # -- Lines ---------------------------------------------------------------------------------------------------------

    def lines(self, tenant_id: str, preview_id: str) -> Iterator[pl.DataFrame]:
        """All lines (LINE_COLUMNS), a chunk at a time: amounts as text, digit for digit; a credit note's are positive.

        `document` counts through the preview, it is no number. `outcome` is what would become of the line: billed,
        parked, or held back until somebody lets the customer through.
        """
        known = self.get(tenant_id, preview_id)
        if known["state"] != "done":
            raise Conflict(f"the preview is {known['state']}: there is no result")
        here = preview_folder(tenant_id, preview_id)
        summary = json.loads(self._store.get(f"{here}summary.json") or b"{}")
        chunks = len(self._kept.facts(tenant_id, preview_id)["chunks"])
        return self._lines(here, chunks, summary["left_out"])

    def _lines(self, here: str, chunks: int, left_out: Mapping[str, Sequence[str]]) -> Iterator[pl.DataFrame]:
        before = 0
        for chunk in range(chunks):
            columns = unpack(self._result(chunk_key(here, chunk))).columns
            heads = columns.documents.select("document", "customer", "type", "currency")
            outcome = (
                pl.when(pl.col("customer").is_in(list(left_out["parked"])))
                .then(pl.lit("parked"))
                .when(pl.col("customer").is_in(list(left_out["held_back"])))
                .then(pl.lit("held_back"))
                .otherwise(pl.lit("billed"))
            )
            found = columns.lines.join(heads, on="document", maintain_order="left").with_columns(
                pl.col("document").cast(pl.Int64) + before + 1, outcome=outcome
            )
            before += heads.height
            yield found.select(LINE_COLUMNS)

    @contextmanager
    def lines_parquet(self, tenant_id: str, preview_id: str) -> Iterator[BinaryIO]:
        """One Parquet file of all lines, for as long as it is read; in memory is one chunk."""
        with tempfile.TemporaryDirectory(prefix="cloudbilling-preview-") as directory:
            folder = Path(directory)
            parts: list[Path] = []
            for place, frame in enumerate(self.lines(tenant_id, preview_id)):
                parts.append(folder / f"{place:06}.parquet")
                frame.write_parquet(parts[-1], compression="zstd")
            whole = folder / "lines.parquet"
            if parts:
                pl.scan_parquet(parts).sink_parquet(whole, compression="zstd", maintain_order=True)
            else:
                pl.DataFrame(schema=dict.fromkeys(LINE_COLUMNS, pl.String)).write_parquet(whole)
            with whole.open("rb") as file:
                yield file


def lines_csv(lines: Iterator[pl.DataFrame]) -> Iterator[bytes]:
    """RFC 4180 with a header; a text that a spreadsheet would run as a formula gets an apostrophe before it."""
    yield (",".join(LINE_COLUMNS) + "\r\n").encode()
    texts = ("customer", "subscription", "plan", "charge", "name", "unit")
    for frame in lines:
        safe = [
            pl.when(pl.col(name).str.contains(r"^[=+\-@\t\r]"))
            .then(pl.concat_str(pl.lit("'"), pl.col(name)))
            .otherwise(pl.col(name))
            .alias(name)
            for name in texts
        ]
        times = [pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ") for name in ("period_start", "period_end")]
        out = io.BytesIO()
        frame.with_columns(*safe, *times).write_csv(out, include_header=False, line_terminator="\r\n")
        yield out.getvalue()


def _tasks(tenant_id: str, facts: Mapping[str, Any]) -> list[ChunkTask]:
    run = {
        "id": facts["id"],
        "master_number": facts["master_number"],
        "up_to": datetime.fromisoformat(facts["up_to"]),
        "made_at": datetime.fromisoformat(facts["made_at"]),
        "document_date": date.fromisoformat(facts["document_date"]),
        "cut": facts["cut"],
        "previous_cut": facts["previous_cut"],
        "data_versions": facts["data_versions"],
    }
    chunks = [{"chunk": place, "customers": size} for place, size in enumerate(facts["chunks"])]
    return [replace(task, preview=True) for task in tasks_of(tenant_id, run, chunks)]


def _stage(state: Mapping[str, Any], progress: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The stage of one that goes on, and how long its chunks still take at their speed."""
    if state["state"] != "running":
        return {}
    found: dict[str, Any] = {"stage": state.get("stage")}
    if state.get("since") and 0 < progress["done"] < progress["total"]:
        took = max((now - datetime.fromisoformat(state["since"])).total_seconds(), 0.0)
        found["seconds_left"] = round(took / progress["done"] * (progress["total"] - progress["done"]), 1)
    return found


def _nothing_becomes_final(connection: Connection) -> None:
    active = bill_runs.active(connection)
    if active is not None and active["state"] in BECOMING_FINAL:
        raise Conflict(f"bill run {active['number']} is {active['state']}: begin the preview when it is over")


def _still_as_planned(connection: Connection, facts: Mapping[str, Any], master: MasterData) -> None:
    """Documents of before are read while chunks are computed: all of them must be those of one state."""
    _nothing_becomes_final(connection)
    last = bill_runs.last_finalised(connection)
    is_last = (str(last["id"]) if last else None) == facts["previous_run"]
    if not is_last or bill_runs.any_reversed(connection, [mark.number for mark in master.runs]):
        raise Conflict("a bill run became final, or was reversed, meanwhile: begin the preview again")
