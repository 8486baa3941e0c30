"""The bill run: plan, compute, approve, finalise, make documents. May be killed anywhere and driven by several at once.

Owns the order of a run and what makes it restartable: its facts are fixed when it is planned (cut, master number,
clock, document date), results are put once, each chunk becomes final in one transaction, and every step first looks
at what is done already. One chunk's documents are `bill_run_chunk.py`, making them final is `run_finalising.py`, files
are `document_files.py`, how a run looks to others is `run_view.py`.

    planned -> computed -> approved -> finalised -> done                              (cancelled until it is approved)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any, Protocol
from uuid import UUID

import uuid_utils
from psycopg.errors import UniqueViolation

from billing.errors import BillingError, Conflict, FieldError, InvalidInput, NotAllowed, Unavailable
from billing.events import RUN_DONE, RUN_FAILED, RUN_WAITS
from pipelines.bill_run_chunk import (
    CUSTOMERS,
    GatherTask,
    chunk_sizes,
)
from pipelines.chunk_executor import Executor, InProcess
from pipelines.data_versions import data_versions
from pipelines.document_files import make_files
from pipelines.erased_usage import check_usage_is_there
from pipelines.reused_ids import Voider, void_reused_ids, voided_since
from pipelines.run_credit import WalletDesk, bring_moves
from pipelines.run_estimate import estimate
from pipelines.run_finalising import Finalising
from pipelines.run_look import look_at
from pipelines.run_reversal import Reversal
from pipelines.run_times import run_times
from pipelines.run_view import end_of, run_view, sum_of_totals, tasks_of, usage_prefix, waits_for_somebody
from pipelines.usage_slices import forget
from storage.archive import Archive
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql import bill_runs, billing_settings, outbox, steps, tenants, wallet_moves
from storage.sql.database import Connection, Database
from storage.sql.wallet_moves import WalletMove
from storage.usage_log.reader import Cut, UsageLogReader

LOG = logging.getLogger("cloudbilling.bill_run")

# Places where a crash test kills the driver; each is passed at least once in a run with documents.
STEPS = (
    "before plan",
    "ids compared",
    "planned",
    "usage gathered",
    "chunk computed",
    "chunk noted",
    "checked",
    "computed",
    "approving",
    "approved",
    "chunk finalising",
    "chunk finalised",
    "credit settled",
    "finalised",
    "files made",
    "before done",
)


class RunLanes(WalletDesk, Voider, Protocol):
    """The way to the lanes for everything that a run asks of them: one, so that no driver has but half of it."""


Clock = Callable[[], datetime]
Checkpoint = Callable[[str], None]


def no_checkpoint(step: str) -> None:
    """In production nothing happens at the named steps."""


class BillRunDriver:
    """Plans and drives bill runs of any tenant. A plain class: the Ray shell and the command line call the same."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        chain: MasterChain,
        archive: Archive,
        clock: Clock,
        *,
        executor: Executor | None = None,
        desk: RunLanes | None = None,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> None:
        """`desk` is the way to the lanes, which hold wallet credit and void events.

        Without one (tools and tests without lanes) nothing is held, moves wait, and a plan does not look for ids that
        came under two customers.
        """
        self._database = database
        self._store = store
        self._chain = chain
        self._archive = archive
        self._clock = clock
        self._desk = desk
        self._executor = executor or InProcess(store, database, chain, desk)
        self._checkpoint = checkpoint
        self._finalising = Finalising(database, store, chain, clock, checkpoint, self._may_go_on, self._bring_moves)
        self._reversal = Reversal(database, chain, desk, clock, checkpoint, self._bring_moves)

    # -- Plan ----------------------------------------------------------------------------------------------------------

    def plan(
        self,
        tenant_id: str,
        up_to: date | datetime,
        actor: str,
        *,
        document_date: date | None = None,
        approve: bool = True,
        request_key: str | None = None,
        early: bool = False,
    ) -> dict[str, Any]:
        """Fix what a run rests on. With `approve` it goes on by itself once computed, if nothing was found.

        The same `request_key` again gives the run that it planned before. `early` does not wait for the tenant's
        collection window. Errors: InvalidInput for a date after the clock, Conflict while a run goes on, or while
        usage may still come.
        """
        self._checkpoint("before plan")
        with self._database.tenant(tenant_id) as connection:
            known = bill_runs.by_request(connection, request_key) if request_key else None
            if known is not None:  # whoever asked did not get the answer
                return run_view(connection, known, self._clock())
            tenant = tenants.by_id(connection, tenant_id)
            settings = billing_settings.of(connection, tenant.kind)
            previous = bill_runs.last_finalised(connection)  # before the number: its mark is then in the master data
            number = steps.current_number(connection, tenant_id)
            going_on = bill_runs.active(connection)
        now = self._clock()
        times = run_times(tenant, settings, up_to, document_date, now)
        if times.usage_may_come and not early:
            raise Conflict(
                f"usage up to then may come until {times.window_end.isoformat()} (the collection window): look at a"
                " preview meanwhile, or ask for the run early"
            )
        if going_on is not None:  # before anything is done for a run that cannot be
            raise bill_runs.goes_on()
        self._chain.project(self._database, tenant_id, up_to=number)
        if (at_hand := steps.at_hand(tenant_id)) is not None and at_hand[0] <= number:
            self._chain.keep(tenant_id, *at_hand)  # from the same steps: who changed master data here had them applied
        master = self._chain.at(tenant_id, number)
        steps.keep(tenant_id, number, master)  # the approval appends a step to them
        run_id = str(UUID(bytes=uuid_utils.uuid7().bytes))
        # Before the cut, so that what is voided does not count in this run any more.
        findings = void_reused_ids(self._store, self._desk, tenant_id, master) if self._desk is not None else []
        self._checkpoint("ids compared")
        reader = UsageLogReader(self._store)
        cut = reader.cut(run_id)
        findings += voided_since(reader, tenant_id, _cut_of(previous), cut)
        sizes = chunk_sizes(master, CUSTOMERS)
        with self._database.tenant(tenant_id) as connection:
            bill_runs.create(
                connection,
                tenant_id,
                run_id=run_id,
                up_to=times.up_to,
                document_date=times.document_date,
                made_at=times.made_at,
                cut=json.loads(cut.to_json()),
                previous_cut=previous["cut"] if previous else None,
                master_number=number,
                master_steps=master.step_count,
                data_versions=data_versions(master),
                chunks=sizes,
                auto_approve=approve,
                actor=actor,
                now=now,
                findings=findings,
                request_key=request_key,
                estimate=estimate(connection, master, times.up_to),
            )
            last = bill_runs.last_finalised(connection)
            if (last and last["id"]) != (previous and previous["id"]):
                # It ended between our reading and our taking the place: what it billed is unknown to this plan.
                raise Conflict("another bill run ended meanwhile: start it again")
            if bill_runs.any_reversed(connection, [mark.number for mark in master.runs]):
                # Read while it was being reversed: for these master data its periods are billed still.
                raise Conflict("a bill run was reversed meanwhile: nothing is planned, start it again")
        self._checkpoint("planned")
        return self.get(tenant_id, run_id)

    # -- Drive ---------------------------------------------------------------------------------------------------------

    def drive(self, tenant_id: str, run_id: str, *, approve: bool | None = None) -> dict[str, Any]:
        """Bring a run as far as it may go; returns it. Ends early when it is paused, or cancelled in time.

        `approve` overrides what was planned: False stops at computed, True goes on from there.

        What goes wrong is raised, noted at the run, and leaves the run where it is; driving it again resumes. For good
        it is its `error`; what is retryable (a database or store that is away: the caller drives on) its
        `waiting_reason`.
        """
        try:
            return self._drive(tenant_id, run_id, approve)
        except BillingError as error:
            self._note(tenant_id, run_id, error.detail, waits=error.retryable)
            raise
        except Exception as error:
            # A bug, or a store that answers nonsense: nobody waits for this call, so the run itself must say it.
            self._note(tenant_id, run_id, f"{type(error).__name__}: {error}", waits=False)
            raise

    def _drive(self, tenant_id: str, run_id: str, approve: bool | None) -> dict[str, Any]:
        run = self.get(tenant_id, run_id)
        if run["error"]:  # of an earlier try: it is over, unless it comes again
            with self._database.tenant(tenant_id) as connection:
                bill_runs.note(connection, run_id)
        self._bring_moves(tenant_id)  # what earlier runs and credit notes left: this run counts on it
        if run["state"] == "planned":
            self._stage_begins(tenant_id, run)
            if not self._compute(tenant_id, run, approve):
                return self.get(tenant_id, run_id)
            run = self.get(tenant_id, run_id)
        if run["state"] == "computed":
            if run["paused"] or not self._may_approve_itself(tenant_id, run, approve):
                return run
            self.approve(tenant_id, run_id, run["created_by"])
            run = self.get(tenant_id, run_id)
        if run["state"] == "approved":
            self._stage_begins(tenant_id, run)
            if not self._finalising.finalise(tenant_id, run):
                return self.get(tenant_id, run_id)
            run = self.get(tenant_id, run_id)
        if run["state"] == "reversing":
            self._stage_begins(tenant_id, run)
            self._reversal.take_back(tenant_id, run_id)
            # Before it is over: nobody drives a run that is reversed, so nobody would make what is left of its files.
            self._goes_on(tenant_id, run_id)
            while make_files(self._database, self._archive, tenant_id, self._clock) > 0:
                self._checkpoint("files made")
            self._reversal.mark(tenant_id, run_id)
            return self.get(tenant_id, run_id)
        if run["state"] == "finalised":
            self._stage_begins(tenant_id, run)
            if not self._make_files(tenant_id, run_id):
                return self.get(tenant_id, run_id)
            self._checkpoint("before done")
            forget(self._store, usage_prefix(tenant_id, run_id))
            with self._database.tenant(tenant_id) as connection:
                run = bill_runs.get(connection, run_id)
                if bill_runs.move(connection, run_id, expected=("finalised",), state="done", now=self._clock()):
                    outbox.of_run(connection, run, RUN_DONE, self._clock(), **end_of(connection, run))
        return self.get(tenant_id, run_id)

    def _stage_begins(self, tenant_id: str, run: Mapping[str, Any], *, read: bool = False) -> None:
        with self._database.tenant(tenant_id) as connection:
            bill_runs.stage_begins(connection, str(run["id"]), run["progress"]["done"], self._clock(), read=read)

    def _goes_on(self, tenant_id: str, run_id: str) -> None:
        """What it waited for is there again."""
        with self._database.tenant(tenant_id) as connection:
            bill_runs.went_on(connection, run_id)

    def _compute(self, tenant_id: str, run: Mapping[str, Any], approve: bool | None) -> bool:
        run_id = str(run["id"])
        with self._database.tenant(tenant_id) as connection:
            found = bill_runs.chunks(connection, run_id)
        all_tasks = tasks_of(tenant_id, run, found)
        gathered: str | None = None
        if sum(chunk["state"] == "planned" for chunk in found) > 1:  # a single one reads its own usage
            gathered = usage_prefix(tenant_id, run_id)
            self._executor.gather(GatherTask(tuple(all_tasks), gathered))
            self._goes_on(tenant_id, run_id)
            # Reading took its time once, and says nothing of the chunks' speed.
            self._stage_begins(tenant_id, run, read=True)
            self._checkpoint("usage gathered")
        tasks = (
            replace(task, gathered=gathered)
            for task, chunk in zip(all_tasks, found, strict=True)
            if chunk["state"] == "planned" and self._may_go_on(tenant_id, run_id)
        )
        for result in self._executor.compute(tasks):
            self._checkpoint("chunk computed")
            with self._database.tenant(tenant_id) as connection:
                bill_runs.chunk_computed(
                    connection,
                    run_id,
                    result.chunk,
                    result=result.key,
                    documents=result.documents,
                    lines=result.lines,
                    totals=result.totals,
                    parked=result.parked,
                    now=self._clock(),
                )
                bill_runs.went_on(connection, run_id)
            self._checkpoint("chunk noted")
        with self._database.tenant(tenant_id) as connection:
            found = bill_runs.chunks(connection, run_id)
            if any(chunk["state"] == "planned" for chunk in found):
                return False  # paused or cancelled meanwhile
            looked = look_at(
                connection,
                tenant_id,
                self._chain.at(tenant_id, run["master_number"]),
                run["findings"],
                sum_of_totals([chunk["totals"] for chunk in found if chunk["totals"]]),
                [one for chunk in found for one in chunk["parked"]],
                lambda: map(self._result_of, found),
            )
            parked = looked.parked
            bill_runs.set_checks(connection, run_id, looked.checks, looked.held)
            self._checkpoint("checked")
            if bill_runs.move(
                connection, run_id, expected=("planned",), state="computed", now=self._clock(), parked=parked
            ):
                computed = bill_runs.get(connection, run_id)
                if waits_for_somebody(connection, tenant_id, computed, approve):
                    held_back = len(bill_runs.held_back(computed))
                    outbox.of_run(
                        connection, computed, RUN_WAITS, self._clock(), parked=len(parked), held_back=held_back
                    )
        self._checkpoint("computed")
        return True

    def _result_of(self, chunk: Mapping[str, Any]) -> bytes:
        data = self._store.get(chunk["result"])
        assert data is not None, "the result of a computed chunk is never deleted"
        return data

    def _may_approve_itself(self, tenant_id: str, run: Mapping[str, Any], approve: bool | None) -> bool:
        """Whether a computed run goes on without anybody: as planned, unless the look at it or the tenant says wait."""
        with self._database.tenant(tenant_id) as connection:
            return not waits_for_somebody(connection, tenant_id, run, approve)

    def release(self, tenant_id: str, run_id: str, customers: Sequence[str], actor: str) -> None:
        """Let customers through whom a guard rail holds back in a computed run; those of their families with them."""
        with self._database.tenant(tenant_id) as connection:
            run = bill_runs.get(connection, run_id, lock=True)
            if run["state"] != "computed":
                raise Conflict(f"the run is {run['state']}: the next run bills whom this one held back")
            held = {one["customer"] for one in bill_runs.held_back(run)}
            unknown = sorted(set(customers) - {one["customer"] for one in run["held"]})
            if unknown:
                raise InvalidInput(
                    f"not held back in this run: {', '.join(unknown[:10])}",
                    errors=[FieldError("/customers", f"{unknown[0]!r} is not held back")],
                )
            master = self._chain.at(tenant_id, run["master_number"])
            wanted = {member for customer in customers for member in master.family(customer)}
            bill_runs.release(connection, run_id, sorted(wanted & held), actor)

    def approve(self, tenant_id: str, run_id: str, actor: str) -> None:
        """Decide that this is billed: from here on the run is finished, whatever happens, and cannot be cancelled.

        Whom a guard rail holds back is parked: the next run tries again. NotAllowed where the tenant wants four eyes
        and these are the two that planned it.
        """
        with self._database.tenant(tenant_id) as connection:
            run = bill_runs.get(connection, run_id, lock=True)
            if run["state"] != "computed" or run["cancel_asked"]:
                return
            tenant = tenants.by_id(connection, tenant_id)
            if billing_settings.of(connection, tenant.kind).four_eyes and actor == run["created_by"]:
                raise NotAllowed("who started a bill run does not approve it here: ask somebody else (four eyes)")
            held = [
                {"customer": one["customer"], "code": one["code"], "reason": one["reason"]}
                for one in bill_runs.held_back(run)
            ]
            parked = [*run["parked"], *held]
            step = {
                "at": run["made_at"].isoformat(),
                "bill_run": {
                    "id": run_id,
                    "up_to": run["up_to"].isoformat(),
                    "steps": run["master_steps"],
                    "parked": sorted({one["customer"] for one in parked}),
                    "cut": run["cut"]["positions"],
                },
            }
            change = steps.append_step(connection, tenant_id, step, actor, now=self._clock())
            self._checkpoint("approving")
            bill_runs.move(
                connection,
                run_id,
                expected=("computed",),
                state="approved",
                now=self._clock(),
                mark=change.last_step,
                parked=parked,
                approved_by=actor,
            )
        self._chain.project(self._database, tenant_id, up_to=change.number)
        self._checkpoint("approved")

    def _make_files(self, tenant_id: str, run_id: str) -> bool:
        while self._may_go_on(tenant_id, run_id):
            if make_files(self._database, self._archive, tenant_id, self._clock, run_id=run_id) == 0:
                return True
            self._goes_on(tenant_id, run_id)
            self._checkpoint("files made")
        return False

    def _may_go_on(self, tenant_id: str, run_id: str) -> bool:
        with self._database.tenant(tenant_id) as connection:
            run = bill_runs.get(connection, run_id)
            if run["cancel_asked"] and run["state"] in ("planned", "computed"):
                self._give_up(connection, tenant_id, run_id)
                return False
            return not run["paused"]

    def _give_up(self, connection: Connection, tenant_id: str, run_id: str) -> None:
        """Cancel a run, and with it what it holds of wallets."""
        now = self._clock()
        if bill_runs.move(connection, run_id, expected=("planned", "computed"), state="cancelled", now=now):
            wallet_moves.add(connection, tenant_id, [WalletMove("free_run", "", run_id)], now)

    def _bring_moves(self, tenant_id: str) -> None:
        """Tell the lanes what became of wallet credit; nothing where no wallet was touched."""
        if self._desk is not None:
            bring_moves(self._database, self._desk, self._chain, tenant_id, self._clock)

    def bring_waiting_moves(self) -> list[str]:
        """The same for all tenants that have moves waiting, for a starting platform; those that could not be told."""
        with self._database.system() as connection:
            found = wallet_moves.tenants_waiting(connection)
        left: list[str] = []
        for tenant_id in found:
            try:
                self._bring_moves(tenant_id)
            except BillingError as error:
                LOG.error("wallet credit of tenant %s waits: %s", tenant_id, error.detail)
                left.append(tenant_id)
        return left

    def _note(self, tenant_id: str, run_id: str, detail: str, *, waits: bool) -> None:
        """Say at the run why it does not go on. Where the database is what is away, the log alone says it."""
        error, waiting_reason = (None, detail) if waits else (detail, None)
        try:
            with self._database.tenant(tenant_id) as connection:
                noted = bill_runs.note(connection, run_id, error=error, waiting_reason=waiting_reason)
                if noted and not waits:
                    outbox.of_run(
                        connection, bill_runs.get(connection, run_id), RUN_FAILED, self._clock(), error=detail
                    )
        except BillingError as fault:
            LOG.warning("that bill run %s does not go on (%s) cannot be noted: %s", run_id, detail, fault.detail)

    # -- Look and steer ------------------------------------------------------------------------------------------------

    def get(self, tenant_id: str, run_id: str) -> dict[str, Any]:
        """The run with its progress: stage, done, total, rate and time left, totals per currency, files."""
        with self._database.tenant(tenant_id) as connection:
            return run_view(connection, run_id, self._clock())

    def pause(self, tenant_id: str, run_id: str) -> None:
        with self._database.tenant(tenant_id) as connection:
            _must_run(bill_runs.get(connection, run_id))
            bill_runs.ask(connection, run_id, paused=True)

    def resume(self, tenant_id: str, run_id: str) -> None:
        with self._database.tenant(tenant_id) as connection:
            _must_run(bill_runs.get(connection, run_id))
            bill_runs.ask(connection, run_id, paused=False)
            bill_runs.note(connection, run_id)  # at once: who follows the run must not take the old error for a new one

    def cancel(self, tenant_id: str, run_id: str) -> None:
        """Give a run up before it is approved; nothing of it remains but its record."""
        with self._database.tenant(tenant_id) as connection:
            run = bill_runs.get(connection, run_id, lock=True)
            if run["state"] not in ("planned", "computed"):
                raise Conflict(f"the run is {run['state']}: what is billed is taken back by credit notes")
            bill_runs.ask(connection, run_id, cancel=True)
            self._give_up(connection, tenant_id, run_id)
        try:
            self._bring_moves(tenant_id)
        except Unavailable as error:  # the next run of the tenant, or the next start, brings them
            LOG.warning("the wallet credit of a cancelled bill run waits: %s", error.detail)

    def reverse(self, tenant_id: str, run_id: str, actor: str) -> None:
        """Take a finalised run back as a whole: `drive` then writes a document against each of its documents.

        What the run had cancelled, to make it again for late usage, is issued once more and is what is billed then.
        Only the last run, as later ones rest on it. Errors: Conflict for another one, for one that is not done, and
        for one of which documents rest on erased usage.
        """
        with self._database.tenant(tenant_id) as connection:
            run = bill_runs.get(connection, run_id)
        if run["state"] == "done":  # before anything is locked: it may read the whole log
            check_usage_is_there(self._database, self._store, self._chain, tenant_id, run)
        with self._database.tenant(tenant_id) as connection:
            bill_runs.alone(connection, tenant_id)  # a credit note that is being written now is then seen
            run = bill_runs.get(connection, run_id, lock=True)
            if run["state"] in ("reversing", "reversed"):
                return
            if run["state"] != "done":
                raise Conflict(f"the run is {run['state']}: only one that is done is reversed")
            last = bill_runs.last_finalised(connection)
            if last is None or str(last["id"]) != run_id:
                raise Conflict("later runs rest on this one: reverse them first, the last one before")
            tenant = tenants.by_id(connection, tenant_id)
            if billing_settings.of(connection, tenant.kind).four_eyes and actor == run["approved_by"]:
                raise NotAllowed("who approved a bill run does not reverse it here: ask somebody else (four eyes)")
            try:
                bill_runs.move(
                    connection, run_id, expected=("done",), state="reversing", now=self._clock(), reversed_by=actor
                )
            except UniqueViolation as error:
                raise Conflict("another bill run of this tenant is going on: wait for it, or cancel it") from error

    def unfinished(self) -> list[tuple[str, str]]:
        """Runs that nobody may be driving any more, as (tenant, run): a starting platform drives them on."""
        with self._database.system() as connection:
            return bill_runs.unfinished(connection)


def _cut_of(run: Mapping[str, Any] | None) -> Cut | None:
    return None if run is None else Cut.from_json(json.dumps(run["cut"]))


def _must_run(run: Mapping[str, Any]) -> None:
    if run["state"] in bill_runs.ENDED:
        raise Conflict(f"the run is {run['state']}")
