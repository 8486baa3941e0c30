"""Budgets of a lane: what customers who live in it spent, and the alerts that stand in the segment that crosses.

Owns the tie between the lane's rows and `billing/budget_state.py`. A look (MASTER_SEEN row) takes on newer master data
and backfills that begin or cease to count, and looks at levels and suspense; all else follows from the rows, so a
replay gives the same. A tenant without budgets costs nothing per event: it is not watched. Usage that lies in other
lanes counts as they tell it (FOREIGN_STATE rows).
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from actors.budget_backfills import (
    after_turns,
    begun_events,
    changes_of,
    differing,
    events_in,
    merged,
    rows_of,
    turns_in,
    turns_seen,
)
from actors.budget_forms import (
    ALERTS_MAX,
    RecordedAlert,
    WhichBudgets,
    alert_form,
    budget_form,
    chosen_budgets,
    is_near,
)
from actors.budget_rows import (
    SOURCE,
    arrived_events,
    by_tenant,
    corrected_events,
    master_in,
    moved_in,
    of_key,
    of_kind,
    placed_rows,
    proposed_rows,
    seen_row,
)
from actors.followers import NO_ROWS, Decided, Decision, LiesIn, LogMoment, LogRow, Parts, log_rows
from actors.foreign_usage import FOREIGN, STATE_BYTES_MAX, ForeignUsage, Told, together, told_row
from actors.foreign_usage import KIND as FOREIGN_KIND
from actors.lane_past import LanePast, NotRead
from actors.live_figures import MasterSource
from billing.amendments import fold_amendments_of_lane, states_before
from billing.budget_state import NO_EVENTS, History, Planned, Step, TenantBudgets, Watch
from billing.budgets import Alert, Key
from billing.errors import Conflict, NotFound, Unavailable
from billing.live_state import LiveState
from billing.master import Budget, MasterData
from billing.periods import Period
from billing.spending import cells_fit
from billing.thresholds import Threshold
from storage.object_store import ObjectStore
from storage.usage_log.genesis import PARTITIONS, Genesis, read_genesis
from storage.usage_log.partitions import partition_of, partitions_of
from storage.usage_log.segment import RowKind, instant_of

LOOK = "budgets.look"
READ = "budgets.read"
ALERTS = "budgets.alerts"
LOOK_EVERY_S = 60.0  # of a live tenant with budgets, also without usage
DUE_EVERY_S = 1.0  # between two questions which tenant is due
MASTER_AGE_S_MAX = 1.0
STATES_MAX = 1_000


# Rows that change the state, and those that only say what it has come to.
_CHANGING = frozenset(
    int(kind) for kind in (RowKind.USAGE, RowKind.AMENDED, RowKind.VOIDED, RowKind.CLOCK_SET, RowKind.FOREIGN_STATE)
)
_NOTED = int(RowKind.BACKFILL_NOTED)
_ALERTING = frozenset({int(RowKind.THRESHOLD_CROSSED)})


@dataclass
class _Known:
    number: int
    watched: bool  # whether a customer with a budget is at home here
    seen_s: float


@dataclass(frozen=True)
class _Pending:
    """What was planned for rows that are about to be put: taken on when they come back committed."""

    number: int
    others: int  # rows that were shown to `propose` and are not of this follower
    planned: Planned


class BudgetWatch:
    """The follower of one lane."""

    name = "budgets"
    version = 4

    def __init__(
        self,
        lane: int,
        master: MasterSource,
        store: ObjectStore,
        now_s: Callable[[], float] = time.monotonic,
        past: LanePast | None = None,
    ) -> None:
        self._lane = lane
        self._master = master
        self._store = store
        self._now_s = now_s
        self._past = past or LanePast(lane, store)
        self._genesis: Genesis | None = None
        self._owned: npt.NDArray[np.bool_] | None = None  # partitions; None: those that the lane began with
        self._moved: npt.NDArray[np.bool_] = np.zeros(PARTITIONS, np.bool_)  # ever, of all as this lane knows
        self._known: dict[str, _Known] = {}
        self._watches: dict[str, Watch] = {}
        self._foreign = ForeignUsage()
        self.decisions: Mapping[str, Decision] = {
            LOOK: self._look,
            READ: self._read,
            ALERTS: self._read_alerts,
            FOREIGN: self._hear,
        }
        self.clear()

    # -- the seam ------------------------------------------------------------------------------------------------------

    def watches(self, tenant_id: str) -> bool:
        return tenant_id in self._tenants or self._newest(tenant_id) is not None

    def places(self, owned: npt.NDArray[np.bool_], moved: npt.NDArray[np.bool_]) -> None:
        self._owned, self._moved = owned, moved
        self._watches.clear()
        self._known.clear()

    # -- moves ---------------------------------------------------------------------------------------------------------

    def holds(self, lies_in: LiesIn) -> bool:
        """Levels of keys beside a customer's code are seen in his lane only: while they count, all of it stays."""
        for tenant_id, state in self._tenants.items():
            for customer, events in state.levels.items():
                keys = set(events["customer"]) - {customer}
                if keys and lies_in(tenant_id, [customer, *keys]).any():
                    return True
        return False

    def parting(self, lies_in: LiesIn, moment: LogMoment) -> Sequence[pl.DataFrame]:
        """Of customers who go all that is followed; of keys that are told of from now on the usage that was here."""
        found: list[pl.DataFrame] = []
        for tenant_id, state in self._tenants.items():
            going, handed = _going(state, tenant_id, lies_in)
            rows: list[LogRow] = []
            now_us = moment.now_us(tenant_id)
            for customer in sorted({*going, *handed}):
                copy = state.copy_of(customer)
                keys = handed.get(customer, []) or [key for key in state.watch.keys[customer] if key != customer]
                usage = copy.hand_over(customer, keys) if keys else None
                for key in keys if usage is not None else ():
                    told = Told(key, 0, moment.number, state.watch.number, of_key(usage, key).to_bytes())
                    if len(told.state) > STATE_BYTES_MAX:
                        detail = f"usage of {customer!r} under {key!r} has {len(told.state)} bytes"
                        raise Conflict(f"the partition cannot move: {detail}, more than lanes tell each other")
                    rows.append(told_row(customer, told, now_us))
                if customer in going:
                    rows.append(self._moved_row(tenant_id, copy, customer, moment))
            if rows:
                found.append(log_rows(tenant_id, rows))
        return found

    def _moved_row(self, tenant_id: str, copy: TenantBudgets, customer: str, moment: LogMoment) -> LogRow:
        codes = {one.code for one in copy.watch.budgets[customer]}
        places = [one.position for one in self._alerts.get(tenant_id, ()) if one.alert.budget in codes]
        detail = {
            "master": copy.watch.number,
            "state": base64.b64encode(copy.to_bytes()).decode(),
            "places": places,
            "backfills": self._turns.get(tenant_id, {}),
        }
        id_ = f"{customer}/{self._lane}/{moment.number}"
        return LogRow(RowKind.BUDGETS_MOVED, SOURCE, id_, customer, moment.now_us(tenant_id), detail, "moved")

    def leave(self, lies_in: LiesIn) -> None:
        for tenant_id, state in self._tenants.items():
            going, handed = _going(state, tenant_id, lies_in)
            for customer, keys in handed.items():
                state.hand_over(customer, keys)
            for customer in going:
                state.leave(customer)
            self._keep_alerts(tenant_id, state)
        for tenant_id in self._foreign.tenants():
            known = list(self._foreign.customers(tenant_id))
            self._foreign.forget(
                tenant_id, [one for one, goes in zip(known, lies_in(tenant_id, known), strict=True) if goes]
            )

    def coming(self, tenant_id: str, parting: Parts, moment: LogMoment) -> pl.DataFrame:
        """A look with the acquisition: from there on the customers who come rest on this lane's master data."""
        moved = [row for row, _ in moved_in(parting)]
        numbers = [master_in(row) for row in moved]
        state = self._tenants.get(tenant_id)
        if not numbers:
            return NO_ROWS
        least = max([*numbers, -1 if state is None else state.watch.number])
        number, _ = self._master.newest(tenant_id, at_least=least)
        turns: Mapping[str, bool] = self._turns.get(tenant_id, {})
        for row in moved:
            turns = merged(turns, json.loads(row).get("backfills", {}))
        turned = differing(turns, () if state is None else state.shown)
        return log_rows(tenant_id, [seen_row(self._lane, number, turned, moment)])

    def arrive(self, tenant_id: str, parts: Parts, parting: Parts, moment: LogMoment) -> None:
        for rows, at in parts:
            self._foreign.take(tenant_id, rows, at)
        for row, customer in moved_in(parting):
            form = json.loads(row)
            self._turns[tenant_id] = merged(self._turns.get(tenant_id, {}), form.get("backfills", {}))

            def watch_at(number: int, customer: str = customer) -> Watch:
                return Watch.of(number, self._master.at(tenant_id, number), {customer}, lambda of, key: key == of)

            came = TenantBudgets.from_bytes(base64.b64decode(form["state"]), watch_at)
            alerts = came.spending.budgets.alerts
            self._alerts.setdefault(tenant_id, []).extend(
                RecordedAlert(alert, *place) for alert, place in zip(alerts, form["places"], strict=True)
            )
            state = self._tenants.get(tenant_id)
            if state is None:
                state = self._tenants[tenant_id] = TenantBudgets.empty(came.watch)
            state.join(came)
            self._keep_alerts(tenant_id, state)

    def _keep_alerts(self, tenant_id: str, state: TenantBudgets) -> None:
        """The alerts of the budgets that are followed here, in the order of the log."""
        codes = {budget.code for budgets in state.watch.budgets.values() for budget in budgets}
        kept = [one for one in self._alerts.get(tenant_id, ()) if one.alert.budget in codes]
        self._alerts[tenant_id] = sorted(kept, key=lambda one: one.position)
        state.spending.budgets.alerts = [one.alert for one in self._alerts[tenant_id]]

    # -- the fold ------------------------------------------------------------------------------------------------------

    def propose(self, rows: pl.DataFrame, moment: LogMoment) -> pl.DataFrame:
        found: list[pl.DataFrame] = []
        for tenant_id, part in by_tenant(rows):
            kinds = frozenset(part["kind"].to_list())
            watch = self._watch_to_take_on(tenant_id, part, kinds, moment)
            if watch is None and (tenant_id not in self._tenants or kinds.isdisjoint(_CHANGING)):
                continue
            is_asked = int(RowKind.MASTER_SEEN) in kinds
            turned = turns_seen(part) if is_asked else self._turned(tenant_id, part)
            if watch is not None and not is_asked and not self._is_read(tenant_id, watch, turned, moment):
                watch = None  # it is taken on when what came before has been read; until then all stays as it is
                if tenant_id not in self._tenants or kinds.isdisjoint(_CHANGING):
                    continue
            step = self._step(tenant_id, part, moment, watch, turned)
            planned = self._state(tenant_id, step).plan(step, self._history(tenant_id, moment.number))
            self._pending[tenant_id] = _Pending(
                moment.number, part.height - of_kind(part, RowKind.MASTER_SEEN).height, planned
            )
            is_look = watch is not None and not is_asked
            seen = seen_row(self._lane, planned.watch.number, turned, moment) if is_look else None
            found.append(proposed_rows(tenant_id, seen, planned, moment))
        return pl.concat(found) if found else NO_ROWS

    def apply(self, rows: pl.DataFrame, moment: LogMoment) -> None:
        for tenant_id, part in by_tenant(rows):
            kinds = frozenset(part["kind"].to_list())
            if FOREIGN_KIND in kinds:
                self._foreign.take(tenant_id, part, moment)
            if _NOTED in kinds:
                self._turns[tenant_id] = merged(self._turns.get(tenant_id, {}), turns_in(part))
            is_known = tenant_id in self._tenants and not kinds.isdisjoint(_CHANGING | _ALERTING)
            if int(RowKind.MASTER_SEEN) not in kinds and not is_known:
                continue
            own = of_kind(part, RowKind.MASTER_SEEN, RowKind.THRESHOLD_CROSSED)
            pending = self._pending.pop(tenant_id, None)
            if pending is not None and (pending.number, pending.others) == (moment.number, part.height - own.height):
                planned = pending.planned
            else:
                watch = self._watch_in(tenant_id, own)
                if watch is None and tenant_id not in self._tenants:
                    continue
                step = self._step(tenant_id, part, moment, watch, turns_seen(own))
                planned = self._state(tenant_id, step).plan(step, self._history(tenant_id, moment.number))
            state = self._tenants.get(tenant_id)
            if state is None:
                state = self._tenants[tenant_id] = TenantBudgets.empty(planned.watch)
            state.take(planned)
            self._last[tenant_id] = moment.number
            if self._open.get(tenant_id, (-1, []))[0] != moment.number:
                self._open[tenant_id] = moment.number, []
            self._open[tenant_id][1].append(placed_rows(part, moment.number, moment.now_us(tenant_id)))
            if int(RowKind.MASTER_SEEN) in kinds:
                self._past.drop(tenant_id)
                self._looked_s[tenant_id] = self._now_s()
            self._record(tenant_id, state, own, moment)
            missing = _unraised(state, planned.alerts)
            if missing - self._tried.get(tenant_id, set()):
                self._owed.add(tenant_id)
                self._tried.setdefault(tenant_id, set()).update(missing)
            elif int(RowKind.MASTER_SEEN) in kinds:
                self._owed.discard(tenant_id)

    def freeze(self) -> Callable[[], bytes]:
        # Packed at once: what the next group changes in place must not show.
        states = {tenant_id: state.to_bytes() for tenant_id, state in self._tenants.items()}
        alerts = {tenant_id: list(recorded) for tenant_id, recorded in self._alerts.items()}
        last = dict(self._last)
        foreign = self._foreign.freeze()
        turns = {tenant_id: dict(known) for tenant_id, known in self._turns.items()}

        def packed() -> bytes:
            places = {tenant_id: [one.position for one in recorded] for tenant_id, recorded in alerts.items()}
            return msgspec.msgpack.encode([states, places, last, foreign, turns])

        return packed

    def thaw(self, data: bytes, number: int) -> None:
        states, places, last, foreign, self._turns = msgspec.msgpack.decode(data, type=_Frozen)
        self._foreign.thaw(foreign)
        for tenant_id, packed in states.items():

            def watch_at(master_number: int, tenant_id: str = tenant_id) -> Watch:
                return self._watch_of(tenant_id, master_number, self._master.at(tenant_id, master_number))

            state = self._tenants[tenant_id] = TenantBudgets.from_bytes(packed, watch_at)
            budgets = [one for of_customer in state.watch.budgets.values() for one in of_customer]
            if state.looked_at is not None and state.spending.budgets.reached(budgets, state.looked_at):
                self._owed.add(tenant_id)
            self._alerts[tenant_id] = [
                RecordedAlert(alert, *place)
                for alert, place in zip(state.spending.budgets.alerts, places.get(tenant_id, []), strict=True)
            ]
        self._last = last

    def clear(self) -> None:
        self._tenants: dict[str, TenantBudgets] = {}
        self._alerts: dict[str, list[RecordedAlert]] = {}
        self._last: dict[str, int] = {}  # number in which the tenant had rows last
        self._open: dict[str, tuple[int, list[pl.DataFrame]]] = {}  # rows of the newest group, in the log or not yet
        self._turns: dict[str, dict[str, bool]] = {}  # backfills that count by this lane's notes, or no more
        # Reached by a look that could raise nothing (beside an arrival, or of an older version): the next one does.
        self._owed: set[str] = set()
        self._tried: dict[
            str, set[Key]
        ] = {}  # owed before: an id that the log has under no row of ours is asked for once
        self._looked_s: dict[str, float] = {}
        self._due_at_s = 0.0
        self._pending: dict[str, _Pending] = {}
        self._past.clear()
        self._foreign.clear()

    def due(self) -> Sequence[tuple[str, str]]:
        """A look at each tenant with budgets that nobody has looked at for a while, or with backfills to take on."""
        now_s = self._now_s()
        found: list[tuple[str, str]] = []
        if now_s < self._due_at_s:
            return found
        self._due_at_s = now_s + DUE_EVERY_S
        for tenant_id, state in self._tenants.items():
            waits = tenant_id in self._owed or differing(self._turns.get(tenant_id, {}), state.shown)
            if waits or now_s - self._looked_s.get(tenant_id, -LOOK_EVERY_S) >= LOOK_EVERY_S:
                self._looked_s[tenant_id] = now_s  # asked for; what comes of it is in the log
                found.append((tenant_id, LOOK))
        return found

    def left(self, tenant_id: str, master: MasterData, budget: Budget, now: datetime) -> Fraction:
        """What a budget leaves in the running period, before reservations; for decisions, on what was applied."""
        state = self._tenants.get(tenant_id)
        if state is None or budget.customer not in state.watch.budgets:
            # Defined a moment ago: what was spent until now is looked up; the next look records it.
            watch = self._newest(tenant_id, fresh=True)
            if watch is None or budget.customer not in watch.budgets:
                raise Unavailable(f"Budget {budget.code!r} is not known in lane {self._lane} yet; try again.")
            try:
                step = self._look_step(tenant_id, watch, self._turned(tenant_id), now, None)
                planned = self._state(tenant_id, step).plan(step, self._history(tenant_id, None, wait=False))
            except NotRead as error:
                raise _being_read(budget.code) from error
            return planned.spending.budgets.left(budget, now)
        return state.spending.budgets.left(budget, now)

    def state(self, tenant_id: str) -> TenantBudgets | None:
        """What is followed of a tenant; None where nothing is."""
        return self._tenants.get(tenant_id)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _watch_to_take_on(
        self, tenant_id: str, rows: pl.DataFrame, kinds: frozenset[int], moment: LogMoment
    ) -> Watch | None:
        """The master data to look by in this segment, None for no look. One look a segment: it holds for all of it."""
        if int(RowKind.MASTER_SEEN) in kinds:
            return self._watch_in(tenant_id, rows)
        if self._last.get(tenant_id) == moment.number:
            return None
        moved = int(RowKind.CLOCK_SET) in kinds
        watch = self._newest(tenant_id, fresh=moved)
        state = self._tenants.get(tenant_id)
        if watch is None or state is None:
            return watch
        if moved or watch.number != state.watch.number or self._turned(tenant_id, rows):
            return watch
        if tenant_id in self._owed:
            return watch
        now = instant_of(moment.now_us(tenant_id))
        waited = state.looked_at is None or (now - state.looked_at).total_seconds() >= LOOK_EVERY_S
        return watch if waited else None

    def _watch_in(self, tenant_id: str, rows: pl.DataFrame) -> Watch | None:
        """The master data that a MASTER_SEEN row among these names."""
        seen = of_kind(rows, RowKind.MASTER_SEEN)["detail"]
        if seen.len() == 0:
            return None
        number = max(json.loads(detail)["master"] for detail in seen)
        return self._watch_of(tenant_id, number, self._master.at(tenant_id, number))

    def _turned(self, tenant_id: str, rows: pl.DataFrame | None = None) -> dict[str, bool]:
        """The backfills that a look takes on now, with rows that are about to be put."""
        turns: Mapping[str, bool] = self._turns.get(tenant_id, {})
        if rows is not None and _NOTED in rows["kind"]:
            turns = merged(turns, turns_in(rows))
        state = self._tenants.get(tenant_id)
        return differing(turns, () if state is None else state.shown)

    def _look_step(
        self,
        tenant_id: str,
        watch: Watch,
        turned: Mapping[str, bool],
        now: datetime,
        before: int | None,
        rows: pl.DataFrame | None = None,
        *,
        wait: bool = False,
    ) -> Step:
        """A look: at newer master data, and at the events of backfills that begin or cease to count with it.

        `rows` are those of the look's own segment, as far as they change such events. Raises NotRead as `_history`.
        """
        state = self._tenants.get(tenant_id)
        if state is None:
            return Step(now, watch=watch, shown=after_turns(frozenset(), turned))
        shown = after_turns(state.shown, turned)
        ceased: list[pl.DataFrame] = [NO_EVENTS]
        begun: list[pl.DataFrame] = [NO_EVENTS]
        keys_of: dict[frozenset[str], list[str]] = {}  # by what has counted for them
        for customer, keys in state.watch.keys.items():
            keys_of.setdefault(state.backfills_of(customer), []).extend(keys)
        for counted, keys in keys_of.items():
            names = counted ^ shown
            if not names:
                continue
            found = self._past.of_backfills(tenant_id, names, keys, before, self._wandered(tenant_id, keys), wait=wait)
            number, open_rows = self._open.get(tenant_id, (-1, []))
            if number == before:
                found += [rows_of(one, names).filter(pl.col("customer").is_in(keys)) for one in open_rows]
            if not found:
                continue
            there = pl.concat(found, how="diagonal_relaxed")
            ceased.append(begun_events(there, counted - shown))
            if rows is not None:
                there = pl.concat([there, rows_of(rows, names)], how="diagonal_relaxed")
            begun.append(begun_events(there, shown - counted).filter(pl.col("customer").is_in(keys)))
        return Step(now, watch=watch, shown=shown, removed=pl.concat(ceased), begun=pl.concat(begun))

    def _step(
        self, tenant_id: str, rows: pl.DataFrame, moment: LogMoment, watch: Watch | None, turned: Mapping[str, bool]
    ) -> Step:
        now_us = moment.now_us(tenant_id)
        now = instant_of(now_us)
        state = self._tenants.get(tenant_id)
        counting = frozenset() if state is None else state.shown
        look = Step(now)
        usage = of_kind(rows, RowKind.USAGE)
        events = removed = corrected = NO_EVENTS
        if usage.height:
            events = arrived_events(placed_rows(usage, moment.number, now_us))
        changes = of_kind(rows, RowKind.AMENDED, RowKind.VOIDED)
        if watch is not None:
            placed = placed_rows(changes, moment.number, now_us) if changes.height else None
            look = self._look_step(tenant_id, watch, turned, now, moment.number, placed, wait=True)
            counting &= look.shown or frozenset()
        # Changes of events of a backfill that does not count are there for the look that lets it count.
        changes = changes_of(changes, counting)
        if changes.height:
            # Of several changes of one event here, the first says what it was and the newest what it is.
            was = states_before(changes).unique(["customer", "source", "id"], keep="first", maintain_order=True)
            removed = arrived_events(placed_rows(was, moment.number, now_us))
            corrected = corrected_events(fold_amendments_of_lane(placed_rows(changes, moment.number, now_us)).events)
        moved = of_kind(rows, RowKind.CLOCK_SET)["time"].max()
        then = moved if isinstance(moved, datetime) and moved > now else None
        return replace(
            look,
            events=events,
            then=then,
            removed=pl.concat([look.removed, removed]),
            corrected=corrected,
            foreign=self._foreign_in(tenant_id, rows, watch),
        )

    def _foreign_in(self, tenant_id: str, rows: pl.DataFrame, watch: Watch | None) -> dict[str, LiveState]:
        """What other lanes have told: of customers of whom these rows tell it, or newer master data may."""
        state = self._tenants.get(tenant_id)
        told = rows.filter(pl.col("kind") == FOREIGN_KIND)
        customers = set(told["customer"])
        if watch is not None and (state is None or state.watch.number != watch.number):
            customers |= set(self._foreign.customers(tenant_id))
        seen = watch or (None if state is None else state.watch)
        found: dict[str, LiveState] = {}
        for customer in sorted(customers):
            if seen is not None and customer in seen.budgets:
                live = self.foreign_usage(tenant_id, customer, seen.master, told if told.height else None)
                if live is not None:
                    found[customer] = live
        return found

    def foreign_usage(
        self, tenant_id: str, customer: str, master: MasterData, more: pl.DataFrame | None = None
    ) -> LiveState | None:
        """All that was told of a customer's keys whose events do not come by themselves. None if nothing, or if some of
        it has other cells than these master data ask for: until it is told again, what it was before stands."""
        is_local = self._is_local(tenant_id)
        keys = [key for key in master.keys_of(customer) if not is_local(customer, key)]
        return self._told(tenant_id, customer, keys, master, more)

    def usage_elsewhere(self, tenant_id: str, customer: str, master: MasterData) -> LiveState | None:
        """The same of keys that are in other lanes now: for whoever has the figures of those that are here."""
        keys = list(master.keys_of(customer))
        partitions = partitions_of(self._seed(), tenant_id, pl.Series(keys, dtype=pl.String))
        owned = self._here()
        away = [key for key, at in zip(keys, partitions.tolist(), strict=True) if not owned[at]]
        return self._told(tenant_id, customer, away, master, None)

    def _is_local(self, tenant_id: str) -> Callable[[str, str], bool]:
        """(customer, key) -> whether events under the key come here by themselves, and have from the beginning.

        Of other keys somebody tells (actors/foreign_carrier.py), also when their lane becomes this one: what was told
        and what comes must not count twice. A customer's code goes where his budgets go.
        """
        whole, seed = self._here() & ~self._moved, self._seed()

        def is_local(customer: str, key: str) -> bool:
            if key == customer:
                return True
            return all(whole[partition_of(seed, tenant_id, one)] for one in (customer, key))

        return is_local

    def _here(self) -> npt.NDArray[np.bool_]:
        if self._owned is None:
            self._seed()
            assert self._genesis is not None, "read with the seed"
            first = self._genesis.first_lane
            return np.array([first(at) == self._lane for at in range(PARTITIONS)])
        return self._owned

    def _told(
        self, tenant_id: str, customer: str, keys: Sequence[str], master: MasterData, more: pl.DataFrame | None
    ) -> LiveState | None:
        parts = self._foreign.usage(tenant_id, customer, keys, more)
        for number, live in parts:
            if not cells_fit(live, self._master.at(tenant_id, number), master):
                return None
        return together([live for _, live in parts])

    def _state(self, tenant_id: str, step: Step) -> TenantBudgets:
        state = self._tenants.get(tenant_id)
        if state is not None:
            return state
        assert step.watch is not None, "a tenant is watched from its first look on"
        return TenantBudgets.empty(step.watch)

    def _history(self, tenant_id: str, before: int | None, *, wait: bool = True) -> History:
        """Usage of customer keys in this lane, with that of backfills that are named, below a number (None: all that is
        committed).

        Without `wait` a long lane is read by a thread: NotRead until that is done.
        """

        def history(keys: Sequence[str], shown: frozenset[str]) -> pl.DataFrame:
            found = self._past.rows(tenant_id, keys, before, wait=wait)
            wandered = self._wandered(tenant_id, keys)
            if wandered:  # what these keys had in other lanes came before all that they have here
                found = [*self._past.elsewhere(tenant_id, wandered), *found]
            number, open_rows = self._open.get(tenant_id, (-1, []))
            if number == before:  # rows of this group that are not in the log yet
                found += [rows.filter(pl.col("customer").is_in(list(keys))) for rows in open_rows]
            if not found:
                return NO_EVENTS
            return events_in(pl.concat(found, how="diagonal_relaxed"), shown)

        return history

    def _wandered(self, tenant_id: str, keys: Sequence[str]) -> list[str]:
        """Keys whose partitions have moved ever."""
        if not self._moved.any():
            return []
        partitions = partitions_of(self._seed(), tenant_id, pl.Series(keys, dtype=pl.String))
        return [key for key, moved in zip(keys, self._moved[partitions], strict=True) if moved]

    def _seed(self) -> int:
        if self._genesis is None:
            self._genesis = read_genesis(self._store)
            assert self._genesis is not None, "a lane is served only where there is a log"
        return self._genesis.seed

    def _is_read(self, tenant_id: str, watch: Watch, turned: Mapping[str, bool], moment: LogMoment) -> bool:
        """Whether a look can take all on without reading a long lane on the thread that commits."""
        state = self._tenants.get(tenant_id)
        is_known = state is not None and state.watch.number == watch.number and not turned
        if moment.number <= self._past.inline_max or is_known:
            return True
        try:
            step = self._look_step(tenant_id, watch, turned, instant_of(moment.now_us(tenant_id)), moment.number)
            self._state(tenant_id, step).plan(step, self._history(tenant_id, moment.number, wait=False))
        except NotRead:
            return False
        return True

    def _record(self, tenant_id: str, state: TenantBudgets, own: pl.DataFrame, moment: LogMoment) -> None:
        """Alerts are what the log recorded."""
        details = [json.loads(detail) for detail in of_kind(own, RowKind.THRESHOLD_CROSSED)["detail"]]
        for detail in sorted(details, key=lambda one: one["place"]):
            period = Period(datetime.fromisoformat(detail["from"]), datetime.fromisoformat(detail["to"]))
            spent = Fraction(detail["spent"])
            at = datetime.fromisoformat(detail["at"])
            alert = Alert(detail["budget"], Threshold.of_form(detail["threshold"]), at, period, spent)
            if state.spending.budgets.record(alert):
                recorded = RecordedAlert(alert, moment.log_time_us, moment.lane, moment.number, detail["place"])
                self._alerts.setdefault(tenant_id, []).append(recorded)

    # -- master data ---------------------------------------------------------------------------------------------------

    def _newest(self, tenant_id: str, *, fresh: bool = False) -> Watch | None:
        """What the newest master data ask to be watched here; None for nothing. `fresh` asks the store."""
        known = self._known.get(tenant_id)
        now_s = self._now_s()
        if known is None or fresh or now_s - known.seen_s >= MASTER_AGE_S_MAX or known.watched:
            try:
                ask = self._master.newest if fresh else self._master.cached
                number, master = ask(tenant_id)
            except NotFound:
                self._known[tenant_id] = _Known(-1, False, now_s)
                return None
            except Unavailable:
                if known is None or not known.watched:
                    return None
                return self._watches.get(tenant_id)
            if known is None or number != known.number:
                watch = self._watch_of(tenant_id, number, master) if master.budgets else None
                known = self._known[tenant_id] = _Known(number, watch is not None and bool(watch.budgets), now_s)
            else:
                known.seen_s = now_s
            return self._watch_of(tenant_id, number, master) if known.watched else None
        return None

    def _watch_of(self, tenant_id: str, number: int, master: MasterData) -> Watch:
        known = self._watches.get(tenant_id)
        if known is not None and known.number == number:
            return known
        customers = pl.Series(sorted({budget.customer for budget in master.budgets.values()}), dtype=pl.String)
        partitions = partitions_of(self._seed(), tenant_id, customers).tolist()
        owned = self._here()
        homes = {one for one, at in zip(customers, partitions, strict=True) if owned[at]}
        watch = self._watches[tenant_id] = Watch.of(number, master, homes, self._is_local(tenant_id))
        return watch

    # -- decisions -----------------------------------------------------------------------------------------------------

    def _look(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """Look now, if there is anything new to see. Answers `again` where the segment has had its look already."""
        watch = self._newest(tenant_id, fresh=True)
        state = self._tenants.get(tenant_id)
        if watch is None:
            return Decided(NO_ROWS, b"done")
        turned = self._turned(tenant_id)
        is_known = state is not None and watch.number == state.watch.number and not turned
        if state is not None and is_known and state.looked_at is not None and tenant_id not in self._owed:
            now = instant_of(moment.now_us(tenant_id))
            aged_s = (now - state.looked_at).total_seconds()
            moves = bool(watch.level_types) or state.waiting.height > 0
            if aged_s < 1.0 or (not moves and aged_s < LOOK_EVERY_S):
                return Decided(NO_ROWS, b"done")
        if self._last.get(tenant_id) == moment.number:
            return Decided(NO_ROWS, b"again")
        if not self._is_read(tenant_id, watch, turned, moment):
            raise _being_read("of this tenant")
        return Decided(log_rows(tenant_id, [seen_row(self._lane, watch.number, turned, moment)]), b"done")

    def _hear(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """Another lane tells of usage under a customer's key (actors/foreign_carrier.py)."""
        rows, settled = self._foreign.new_rows(tenant_id, payload, moment)
        return Decided(log_rows(tenant_id, rows), msgspec.json.encode(settled))

    def _read(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """Budgets of this lane as they stand: `{customer, budget, near, limit}`, each may be left out."""
        asked = msgspec.json.decode(payload, type=WhichBudgets)
        state = self._tenants.get(tenant_id)
        forms: list[dict[str, Any]] = []
        if state is not None:
            now = instant_of(moment.now_us(tenant_id))
            for budget in chosen_budgets(state, asked):
                if asked.near and not is_near(budget, state, now):
                    continue
                form = budget_form(budget, state, now, self._alerts.get(tenant_id, ()))
                forms.append({**form, "lane": self._lane, "number": moment.number - 1, "master": state.watch.number})
                if len(forms) >= min(asked.limit, STATES_MAX):
                    break
        return Decided(NO_ROWS, msgspec.json.encode(forms))

    def _read_alerts(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """Alerts of this lane in the order of its log, after a place in the order of all lanes."""
        asked = msgspec.json.decode(payload, type=WhichBudgets)
        state = self._tenants.get(tenant_id)
        forms: list[dict[str, Any]] = []
        for one in self._alerts.get(tenant_id, ()):
            assert state is not None, "alerts are of a tenant that is watched"
            place = one.position
            budget = state.watch.master.budgets[one.alert.budget]
            if (asked.after is not None and place <= asked.after) or not asked.fits(budget):
                continue
            form = alert_form(tenant_id, one.alert, budget, state.watch.master.tenant.currency)
            if asked.alerts and form["id"] not in asked.alerts:
                continue
            forms.append({**form, "position": place})
            if len(forms) >= min(asked.limit, ALERTS_MAX):
                break
        return Decided(NO_ROWS, msgspec.json.encode(forms))


def _unraised(state: TenantBudgets, reached: Sequence[Alert]) -> set[Key]:
    """The thresholds that were reached and are in no row of the log."""
    raised = state.spending.budgets.raised
    return {alert.key for alert in reached if alert.key not in raised.get(alert.budget, ())}


def _being_read(what: str) -> Unavailable:
    return Unavailable(f"What was spent before is being read from the log for the budget {what}; try again.")


_Frozen = tuple[
    dict[str, bytes],
    dict[str, list[tuple[int, int, int, int]]],
    dict[str, int],
    list[tuple[str, str, int, Told]],
    dict[str, dict[str, bool]],
]


def _going(state: TenantBudgets, tenant_id: str, lies_in: LiesIn) -> tuple[list[str], dict[str, list[str]]]:
    """Customers who go with a partition, and by customer who stays the keys that go."""
    customers, keys = list(state.watch.budgets), list(state.watch.owners)
    going = [one for one, goes in zip(customers, lies_in(tenant_id, customers), strict=True) if goes]
    handed: dict[str, list[str]] = {}
    for key, goes in zip(keys, lies_in(tenant_id, keys), strict=True):
        owner = state.watch.owners[key]
        if goes and owner not in going:
            handed.setdefault(owner, []).append(key)
    return going, handed
