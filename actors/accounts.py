"""Accounts of a lane: reservations and wallets of the customers whose home partition it owns. No Ray in here.

Owns the decisions (reserve, commit, release, and what bill runs hold, settle, free, restore) and the state that they
rest on, a fold of the lane's rows (`billing/accounts.py`). A request id has one verdict for ever: a repeat answers what
was recorded. What is malformed, or of an unknown customer, is refused and leaves no row. docs/usage-log.md, Decisions.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from actors.account_rows import AccountRows, KnownEntries
from actors.decisions import Elsewhere
from actors.followers import NO_ROWS, Decided, Decision, LiesIn, LogMoment
from actors.live_figures import MasterSource
from actors.plain_reservations import PlainReservations, PlainTerms
from billing.accounts import (
    Account,
    Committed,
    Entry,
    Freed,
    PotState,
    Released,
    Reservation,
    Reserved,
    Restored,
    RunState,
    Settled,
)
from billing.due import Use as UsePiece
from billing.errors import BillingError, Conflict, InvalidInput, NotFound
from billing.expiries import Expiries
from billing.forms import Form, Mistakes
from billing.live_state import LiveState, fold_days, merge_live, rate_live
from billing.master import Budget, MasterData, TopUp
from billing.money import decimal_text, minor_digits
from billing.rate_uses import usage_piece
from billing.reservations import SOURCE as RESERVE
from billing.reservations import check_money, parse_reservation, reserve
from billing.run_credit import (
    Move,
    RunAnswer,
    RunCredit,
    RunHold,
    entry_of,
    hold_for_run,
    recorded_uses,
    state_for_run,
    until_step,
)
from billing.wallets import Wallets, first_of
from storage.usage_log.account_entries import KINDS
from storage.usage_log.genesis import PARTITIONS
from storage.usage_log.segment import instant_of

COMMIT = "cloudbilling:commit"
RELEASE = "cloudbilling:release"
HOLD = "cloudbilling:wallet-hold"
SETTLE = "cloudbilling:wallet-settle"
FREE = "cloudbilling:wallet-free"
RESTORE = "cloudbilling:wallet-restore"

ENTRIES_MAX = 10_000  # of one call
CLOSED_MAX = 200_000  # closed reservations whose verdict a lane keeps in memory; older ones are in the log only
MASTER_AGE_S_MAX = 1.0
LISTED_MAX = 1_000
ZERO = Decimal(0)

BudgetLeft = Callable[[str, MasterData, Budget, datetime], Fraction]  # in the running period, before reservations
ForeignOf = Callable[[str, str, MasterData], LiveState | None]  # tenant, customer: usage that other lanes have told


@dataclass
class _Tenant:
    accounts: dict[str, Account] = field(default_factory=dict[str, Account])  # by customer
    owner: dict[str, str] = field(default_factory=dict[str, str])  # reservation -> customer
    # Of ids that several customers have, whose partitions came together here: the others.
    also: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def own(self, id: str, customer: str) -> None:
        if self.owner.setdefault(id, customer) != customer:
            self.also.setdefault(id, []).append(customer)

    def disown(self, id: str, customer: str) -> None:
        others = self.also.get(id)
        if others is None:
            self.owner.pop(id, None)
            return
        if customer in others:
            others.remove(customer)
        else:
            self.owner[id] = others.pop(0)
        if not others:
            del self.also[id]

    def owners(self, id: str) -> list[str]:
        return [self.owner[id], *self.also.get(id, ())] if id in self.owner else []


@dataclass
class _Master:
    number: int
    master: MasterData
    top_ups: Mapping[str, Sequence[TopUp]]
    plain: PlainTerms
    seen_s: float


class Accounts:
    """A follower of one lane."""

    name = "accounts"
    version = 1

    def __init__(
        self,
        master: MasterSource,
        budget_left: BudgetLeft | None = None,
        foreign: ForeignOf | None = None,
        *,
        closed_max: int = CLOSED_MAX,
    ) -> None:
        self._source = master
        self._foreign = foreign
        self._budget_left = budget_left
        self._closed_max = closed_max
        self._masters: dict[str, _Master] = {}
        self._known = KnownEntries()
        self._owned: npt.NDArray[np.bool_] = np.ones(PARTITIONS, np.bool_)
        self.decisions: Mapping[str, Decision] = {
            "reserve": self._reserve,
            "commit": self._commit,
            "release": self._release,
            "reservations": self._reservations,
            "wallets": self._wallets,
            "run_credit": self._run_credit,
            "run_hold": self._run_hold,
            "run_move": self._run_move,
        }
        self.clear()

    # -- the fold -----------------------------------------------------------------------------------------------------

    def watches(self, tenant_id: str) -> bool:
        return False

    def places(self, owned: npt.NDArray[np.bool_], moved: npt.NDArray[np.bool_]) -> None:
        self._owned = owned

    def leave(self, lies_in: LiesIn) -> None:
        """Customers go with their partition; all that was decided about them comes with it where it goes."""
        for tenant_id, tenant in self._tenants.items():
            names = list(tenant.accounts)
            for customer, goes in zip(names, lies_in(tenant_id, names), strict=True):
                if goes:
                    for id in tenant.accounts.pop(customer).reservations:
                        tenant.disown(id, customer)
        here = {tenant_id: tenant.accounts for tenant_id, tenant in self._tenants.items()}
        self._closed = collections.deque(one for one in self._closed if one[1] in here[one[0]])

    def propose(self, rows: pl.DataFrame, moment: LogMoment) -> pl.DataFrame:
        return NO_ROWS

    def apply(self, rows: pl.DataFrame, moment: LogMoment) -> None:
        kinds = rows["kind"].to_list()  # lists, not filters: most calls bring one row
        if KINDS.isdisjoint(kinds):
            return
        columns = (rows[name].to_list() for name in ("tenant", "id", "customer", "detail"))
        times: dict[str, datetime] = {}
        entry_of = self._known.entry
        for kind, tenant_id, id, customer, detail in zip(kinds, *columns, strict=True):
            if kind in KINDS:
                now = times.get(tenant_id)
                if now is None:
                    now = times[tenant_id] = instant_of(moment.now_us(tenant_id))
                self._take(tenant_id, customer, id, entry_of(kind, detail), now)

    def _take(self, tenant_id: str, customer: str, id: str, entry: Entry, now: datetime) -> None:
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            tenant = self._tenants[tenant_id] = _Tenant()
        account = tenant.accounts.get(customer)
        if account is None:
            account = tenant.accounts[customer] = Account()
        if type(entry) is Reserved:
            tenant.own(id, customer)
        for closed in account.apply(id, entry, now):
            self._closed.append((tenant_id, customer, closed))
        while len(self._closed) > self._closed_max:
            self._forget(*self._closed.popleft())

    def _forget(self, tenant_id: str, customer: str, id: str) -> None:
        tenant = self._tenants[tenant_id]
        account = tenant.accounts[customer]
        self._forgot = True  # from now on what is not in memory may be in the log
        # An expired one that was committed late was closed twice, and may be gone already.
        if id in account.reservations:
            account.forget(id)
            tenant.disown(id, customer)

    def freeze(self) -> Callable[[], bytes]:
        tenants = {
            tenant_id: {customer: _AccountState.of(account) for customer, account in tenant.accounts.items()}
            for tenant_id, tenant in self._tenants.items()
        }
        packed = msgspec.json.encode(_State(tenants, list(self._closed), self._forgot))
        return lambda: packed

    def thaw(self, data: bytes, number: int) -> None:
        state = msgspec.json.decode(data, type=_State)
        self.clear()
        for tenant_id, accounts in state.tenants.items():
            tenant = self._tenants[tenant_id] = _Tenant()
            for customer, one in accounts.items():
                account = tenant.accounts[customer] = one.account()
                for id in account.reservations:
                    tenant.own(id, customer)
        self._closed.extend(state.closed)
        self._forgot = state.forgot

    def clear(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._closed: collections.deque[tuple[str, str, str]] = collections.deque()
        self._forgot = False  # whether a closed reservation has left memory

    # -- reservations -------------------------------------------------------------------------------------------------

    def _reserve(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        batch, entries = self._call(tenant_id, payload, moment)
        plain = PlainReservations(batch, batch.terms, self._used_before(batch, entries))
        plain.reserve(entries, lambda form: batch.answer(self._reserve_one, form))
        return batch.decided()

    def _used_before(self, batch: _Batch, entries: Sequence[Any]) -> frozenset[str]:
        """Ids that the log has though their verdicts have left memory: one question for the whole call."""
        if not self._forgot:
            return frozenset()
        named = [
            (form["customer"], RESERVE, form["id"])
            for form in entries
            if isinstance(form, dict) and isinstance(form.get("customer"), str) and isinstance(form.get("id"), str)
        ]
        if not named:
            return frozenset()
        found = batch.moment.is_recorded(batch.tenant_id, named)
        return frozenset(id for (_, _, id), known in zip(named, found, strict=True) if known)

    def _reserve_one(self, batch: _Batch, form: Any) -> dict[str, Any]:
        mistakes = Mistakes()
        asked = parse_reservation(Form(form, "", mistakes), batch.master)
        mistakes.check()
        owner = batch.owner_for(asked.id, asked.customer)
        if owner is not None:
            if owner != asked.customer:
                raise Conflict(f"The id {asked.id!r} is a reservation of another customer.", id=asked.id)
            return batch.shown(owner, asked.id)
        if self._forgot and batch.moment.is_recorded(batch.tenant_id, [(asked.customer, RESERVE, asked.id)])[0]:
            raise Conflict(f"The id {asked.id!r} was used long ago, its verdict is no longer kept. Use a new id.")
        hold = reserve(
            batch.master,
            batch.wallets(asked.customer),
            asked,
            batch.now,
            lambda uses, more: self._cost_of(batch, asked.customer, uses, more),
            lambda budget: self._left(batch, budget),
        )
        entry = Reserved(
            master=batch.number,
            currency=asked.currency,
            granted=hold.granted,
            net=hold.net,
            parts=tuple(hold.parts),
            amount=asked.amount,
            meter=asked.meter,
            quantity=asked.quantity,
            expires=asked.expires,
        )
        return batch.reserved(asked.customer, asked.id, entry)

    def _cost_of(self, batch: _Batch, customer: str, uses: Sequence[UsePiece], more: pl.DataFrame) -> Fraction:
        """Exact cost of pieces: keys that are at home here by the lane's live figures, others as they were told."""
        keys = batch.master.keys_of(customer)
        live = batch.moment.usage(batch.tenant_id, keys, batch.number)
        told = None if self._foreign is None else self._foreign(batch.tenant_id, customer, batch.master)
        if told is not None:
            live = told if live is None else merge_live(live, told)
        return live_cost(batch.master, uses, live, more)

    def _left(self, batch: _Batch, budget: Budget) -> Fraction:
        if self._budget_left is None:
            raise BillingError("Budgets are not followed in this lane: a blocking budget cannot be looked at.")
        return self._budget_left(batch.tenant_id, batch.master, budget, batch.now)

    def _commit(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        batch, entries = self._call(tenant_id, payload, moment)
        plain = PlainReservations(batch, batch.terms)
        for form in entries:
            if not plain.commit(form):
                batch.answer(self._commit_one, form)
        return batch.decided()

    def _commit_one(self, batch: _Batch, form: Any) -> dict[str, Any]:
        mistakes = Mistakes()
        one = Form(form, "", mistakes)
        id, customer = one.code("id"), one.code("customer", "")
        amount = one.decimal("amount", least=ZERO)
        one.done()
        mistakes.check()
        owner = batch.find(id, customer)
        account = batch.account(owner)
        known = account.reservations[id]
        check_money(one, "amount", amount, known.verdict.currency)
        mistakes.check()
        assert amount is not None
        if known.state == "released":
            raise Conflict(f"Reservation {id!r} was released: nothing of it can be committed.", id=id)
        if known.state != "committed":
            entry = _committed(batch, account, owner, id, min(amount, known.verdict.granted))
            batch.record(COMMIT, id, owner, entry)
        return batch.shown(owner, id)

    def _release(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        batch, entries = self._call(tenant_id, payload, moment)
        plain = PlainReservations(batch, batch.terms)
        for form in entries:
            if not plain.release(form):
                batch.answer(self._release_one, form)
        return batch.decided()

    def _release_one(self, batch: _Batch, form: Any) -> dict[str, Any]:
        mistakes = Mistakes()
        one = Form(form, "", mistakes)
        id, customer = one.code("id"), one.code("customer", "")
        one.done()
        mistakes.check()
        owner = batch.find(id, customer)
        account = batch.account(owner)
        if account.reservations[id].state == "committed":
            raise Conflict(f"Reservation {id!r} was committed: there is nothing left to release.", id=id)
        if account.reservations[id].state == "open" and not account.is_expired(id, batch.now):
            batch.record(RELEASE, id, owner, Released(batch.number))
        return batch.shown(owner, id)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _reservations(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """Named ones (`ids`: those that are known here), or a customer's, in the order made."""
        asked = msgspec.json.decode(payload, type=_WhichReservations)
        tenant, now = self._tenants.get(tenant_id, _Tenant()), instant_of(moment.now_us(tenant_id))
        found: list[dict[str, Any]] = []
        for id in asked.ids:
            for owner in tenant.owners(id):
                if asked.customer in (None, owner):
                    found.append(_form_of(owner, id, tenant.accounts[owner], now))
        if not asked.ids and asked.customer is not None and asked.customer in tenant.accounts:
            account = tenant.accounts[asked.customer]
            ids = sorted(account.reservations, key=lambda id: (account.reservations[id].at, id), reverse=True)
            start = ids.index(asked.after) + 1 if asked.after is not None and asked.after in ids else 0
            for id in ids[start:]:
                form = _form_of(asked.customer, id, account, now)
                if asked.state in (None, form["state"]):
                    found.append(form)
                if len(found) >= min(asked.limit, LISTED_MAX):
                    break
        if asked.whole:  # for whoever asks all lanes: whether one that is on its way is in nobody's answer
            return Decided(NO_ROWS, msgspec.json.encode({"found": found, "owned": np.packbits(self._owned).tobytes()}))
        return Decided(NO_ROWS, msgspec.json.encode(found))

    def _wallets(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        asked = msgspec.json.decode(payload, type=_WhichWallets)
        _check_all_here(tenant_id, asked.customers, moment)
        batch = self._batch(tenant_id, moment, asked.master)
        forms = [self._wallet_form(batch, customer) for customer in asked.customers]
        return Decided(NO_ROWS, msgspec.json.encode(forms), forces_put=asked.fresh)

    def _wallet_form(self, batch: _Batch, customer: str) -> dict[str, Any]:
        account = batch.account(customer)
        wallets = account.wallets(customer, batch.top_ups(customer), batch.now)
        found: list[dict[str, Any]] = []
        for _, currency in sorted(wallets.of):
            found.append(_wallet_of(wallets, customer, currency))
        return {
            "customer": customer,
            "as_of": batch.now,
            "lane": batch.moment.lane,
            "number": batch.moment.number - 1,
            "master": batch.number,
            "wallets": found,
        }

    # -- bill runs ----------------------------------------------------------------------------------------------------

    def _run_credit(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """What a run starts from, by customer: the answers recorded for it, or the state of the wallets."""
        asked = msgspec.json.decode(payload, type=RunCredit)
        _check_all_here(tenant_id, asked.customers, moment)
        batch = self._batch(tenant_id, moment, asked.master)
        found = {
            customer: state_for_run(batch.account(customer), customer, batch.top_ups(customer), asked, batch.now)
            for customer in asked.customers
        }
        return Decided(NO_ROWS, msgspec.json.encode(found))

    def _run_hold(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """Hold what a run's documents use. Customers whose answers would differ now are refused: read again."""
        asked = msgspec.json.decode(payload, type=RunHold)
        _check_all_here(tenant_id, asked.asks, moment)
        batch = self._batch(tenant_id, moment, asked.master)
        answers: dict[str, RunAnswer] = {}
        for customer, asks in asked.asks.items():
            account = batch.account(customer)
            recorded = recorded_uses(account, asked.run)
            if recorded is not None:
                answers[customer] = RunAnswer(True, dict(recorded))
                continue
            held = hold_for_run(
                account,
                customer,
                until_step(batch.top_ups(customer), asked.steps),
                asks,
                master=batch.number,
                run=asked.run,
                as_of=asked.as_of,
                now=batch.now,
            )
            if held is None:
                answers[customer] = RunAnswer(False)
                continue
            batch.rows.add(HOLD, row_id(asked.run, customer), customer, held)
            answers[customer] = RunAnswer(True, held.uses)
        return Decided(batch.frame(), msgspec.json.encode(answers))

    def _run_move(self, tenant_id: str, payload: bytes, moment: LogMoment) -> Decided:
        """What became of documents: settle, free, restore. All of it may be sent again; how many rows it made.

        That there is nothing to move is answered after a put: a lane that was overtaken may not know of the hold.
        """
        moves = msgspec.json.decode(payload, type=list[Move])
        _check_all_here(tenant_id, [move.customer for move in moves], moment)
        batch = self._batch(tenant_id, moment)
        seen: set[str] = set()
        for move in moves:
            if move.customer in seen:  # a move rests on the one before it, so that must be a row first
                raise InvalidInput(f"two moves of {move.customer!r} in one call")
            seen.add(move.customer)
            entry = entry_of(batch.account(move.customer), move)
            if entry is not None:
                source = {Settled: SETTLE, Freed: FREE, Restored: RESTORE}[type(entry)]
                batch.rows.add(source, row_id(move.id, move.customer), move.customer, entry)
        return Decided(batch.frame(), str(len(batch.rows)).encode(), forces_put=True)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _call(self, tenant_id: str, payload: bytes, moment: LogMoment) -> tuple[_Batch, list[Any]]:
        call = msgspec.json.decode(payload, type=_Call)
        if len(call.entries) > ENTRIES_MAX:
            raise InvalidInput(f"at most {ENTRIES_MAX} entries in one call")
        _check_all_here(tenant_id, call.customers, moment)
        return self._batch(tenant_id, moment, call.master), call.entries

    def _batch(self, tenant_id: str, moment: LogMoment, at_least: int = 0) -> _Batch:
        known = self._master(tenant_id, at_least)
        return _Batch(tenant_id, self._tenants.get(tenant_id, _Tenant()), known, moment, self._known)

    def _master(self, tenant_id: str, at_least: int) -> _Master:
        known = self._masters.get(tenant_id)
        now_s = time.monotonic()
        if known is not None and known.number >= at_least and now_s - known.seen_s < MASTER_AGE_S_MAX:
            return known
        number, master = self._source.newest(tenant_id, at_least=at_least)
        if known is not None and known.number == number:
            known.seen_s = now_s
            return known
        top_ups: dict[str, list[TopUp]] = {}
        for top_up in master.top_ups:
            top_ups.setdefault(top_up.customer, []).append(top_up)
        fresh = self._masters[tenant_id] = _Master(number, master, top_ups, PlainTerms.of(master), now_s)
        return fresh


class _Batch:
    """One call: its decisions see those before it, and the account sees none of them until they are rows."""

    def __init__(
        self, tenant_id: str, tenant: _Tenant, known: _Master, moment: LogMoment, entries: KnownEntries
    ) -> None:
        self.tenant_id = tenant_id
        self.number, self.master, self.terms = known.number, known.master, known.plain
        self.moment = moment
        self.now_us = moment.now_us(tenant_id)
        self.now = instant_of(self.now_us)
        self.rows = AccountRows(tenant_id, self.now_us, entries)
        self.plain: dict[str, list[tuple[str, Entry]]] = {}  # by customer: what was decided the short way
        self._tenant = tenant
        self._top_ups = known.top_ups
        self._scratch: dict[str, Account] = {}
        self._owner: dict[str, str] = {}
        self._fresh: dict[str, Reserved] = {}  # what this call reserved
        self._wallets: dict[str, Wallets] = {}  # in a call that only reserves: with what it reserved
        self._answers: list[dict[str, Any]] = []

    def top_ups(self, customer: str) -> Sequence[TopUp]:
        return self._top_ups.get(customer, ())

    def account(self, customer: str) -> Account:
        found = self._scratch.get(customer)
        if found is None:
            found = self._scratch[customer] = self._tenant.accounts.get(customer, Account()).scratch()
            for id, entry in self.plain.get(customer, ()):
                found.apply(id, entry, self.now)
        return found

    def wallets(self, customer: str) -> Wallets:
        """The customer's wallets, for a call that does nothing but reserve."""
        found = self._wallets.get(customer)
        if found is None:
            account = self._tenant.accounts.get(customer) or Account()
            found = self._wallets[customer] = account.wallets(customer, self.top_ups(customer), self.now)
            for _, entry in self.plain.get(customer, ()):
                assert isinstance(entry, Reserved), "a call that only reserves"
                found.hold(customer, entry.currency, entry.parts, entry.net)
        return found

    # What the short way needs and leaves (actors/plain_reservations.py)

    def is_plain(self, customer: str) -> bool:
        return customer not in self._scratch and customer not in self._wallets

    def known_account(self, customer: str) -> Account | None:
        return self._tenant.accounts.get(customer)

    def known_owner(self, id: str) -> str | None:
        return self._owner.get(id) or self._tenant.owner.get(id)

    def owner_for(self, id: str, customer: str) -> str | None:
        """Whose reservation it is: the customer's who asks, if it is his among others."""
        return customer if customer in self._tenant.also.get(id, ()) else self.known_owner(id)

    def reserved_plainly(self, customer: str, id: str, entry: Reserved, shown: dict[str, Any]) -> None:
        self.rows.add(RESERVE, id, customer, entry)
        self._owner[id] = customer
        self._fresh[id] = entry
        self.plain.setdefault(customer, []).append((id, entry))
        self._answers.append({"ok": shown})

    def closed_plainly(self, customer: str, id: str, entry: Entry, one: Reservation) -> None:
        self.rows.add(_SOURCES[type(entry)], id, customer, entry)
        self.plain.setdefault(customer, []).append((id, entry))
        self._answers.append({"ok": reservation_form(customer, id, one)})

    def reserved(self, customer: str, id: str, entry: Reserved) -> dict[str, Any]:
        self.rows.add(RESERVE, id, customer, entry)
        self._owner[id] = customer
        self._fresh[id] = entry
        return reservation_form(customer, id, Reservation(entry, self.now))

    def find(self, id: str, customer: str) -> str:
        """Whose reservation this is. NotFound where it is none of this lane's."""
        owner = self.owner_for(id, customer)
        if owner is None or (customer and owner != customer):
            if customer and self.moment.is_recorded(self.tenant_id, [(customer, RESERVE, id)])[0]:
                raise Conflict(f"Reservation {id!r} was closed long ago, its verdict is no longer kept.", id=id)
            raise NotFound(f"There is no reservation {id!r}.", id=id)
        return owner

    def record(self, source: str, id: str, customer: str, entry: Entry) -> None:
        self.rows.add(source, id, customer, entry)
        self.account(customer).apply(id, entry, self.now)
        self._owner[id] = customer

    def shown(self, customer: str, id: str) -> dict[str, Any]:
        if id in self._fresh:
            return reservation_form(customer, id, Reservation(self._fresh[id], self.now))
        account = self.account(customer)
        return reservation_form(customer, id, account.reservations[id], expired=account.is_expired(id, self.now))

    def answer(self, decide: Callable[[_Batch, Any], dict[str, Any]], form: Any) -> None:
        """Every entry has its own verdict: what is wrong with one does not touch the others."""
        try:
            self._answers.append({"ok": decide(self, form)})
        except BillingError as error:
            fields = [[one.pointer, one.detail] for one in error.errors]
            problem = {"code": error.code, "detail": error.detail, "errors": fields}
            self._answers.append({"problem": problem})

    def decided(self) -> Decided:
        return Decided(self.frame(), msgspec.json.encode(self._answers))

    def frame(self) -> pl.DataFrame:
        return self.rows.frame() if len(self.rows) else NO_ROWS


_SOURCES: dict[type[Any], str] = {Committed: COMMIT, Released: RELEASE}


def _committed(batch: _Batch, account: Account, customer: str, id: str, amount: Decimal) -> Committed:
    """What a commit takes: out of what is held, or, if that has expired, out of what is free."""
    verdict = account.reservations[id].verdict
    if not account.is_expired(id, batch.now):
        return Committed(batch.number, amount, tuple(first_of(verdict.parts, amount)))
    wallets = account.wallets(customer, batch.top_ups(customer), batch.now)
    parts = wallets.late_parts(id, customer, verdict.currency, amount)
    return Committed(batch.number, amount, tuple(parts), late=True)


def live_cost(master: MasterData, uses: Sequence[UsePiece], live: LiveState | None, more: pl.DataFrame) -> Fraction:
    """Exact cost of pieces of usage charges by folded usage, with events that are not there."""
    book = master.rating_book()
    extra = fold_days(more, book)
    rated = rate_live(
        [usage_piece(master, use) for use in uses], extra if live is None else merge_live(live, extra), book
    )
    return sum((Fraction(row.amount) for row in rated.rows()), Fraction(0))


# -- bill runs: what travels between a run and its customers' lanes ----------------------------------------------------


class _Call(msgspec.Struct):
    entries: list[Any] = []
    customers: list[str] = []  # whose they are, as the caller found it out
    master: int = 0  # look at least at this number of the master data


def _check_all_here(tenant_id: str, customers: Iterable[str], moment: LogMoment) -> None:
    """Raises Elsewhere if a partition of these has moved: the caller put them together by what it knew."""
    owners = moment.elsewhere(tenant_id, list(customers))
    if owners:
        raise Elsewhere("A customer's partition is in another lane. Send the same again.", owners)


def row_id(subject: str, customer: str) -> str:
    """The id of a row about one customer of a run or a credit note."""
    return f"{subject}/{customer}"


# -- reading -----------------------------------------------------------------------------------------------------------


class _WhichReservations(msgspec.Struct):
    ids: list[str] = []
    customer: str | None = None
    state: str | None = None
    after: str | None = None
    limit: int = LISTED_MAX
    whole: bool = False  # answer which partitions are here as well


class _WhichWallets(msgspec.Struct):
    customers: list[str]
    master: int = 0
    fresh: bool = False


def _form_of(customer: str, id: str, account: Account, now: datetime) -> dict[str, Any]:
    return reservation_form(customer, id, account.reservations[id], expired=account.is_expired(id, now))


def reservation_form(customer: str, id: str, one: Reservation, *, expired: bool = False) -> dict[str, Any]:
    """A reservation as callers see it."""
    verdict = one.verdict
    digits = minor_digits(verdict.currency)
    form: dict[str, Any] = {
        "id": id,
        "customer": customer,
        "currency": verdict.currency,
        "granted": f"{verdict.granted:.{digits}f}",
        "state": "expired" if expired else one.state,
        "committed": f"{one.spent:.{digits}f}",
        "at": one.at,
        "expires": verdict.expires,
        "master": verdict.master,
    }
    if verdict.amount is not None:
        form["amount"] = f"{verdict.amount:.{digits}f}"
    else:
        form["usage"] = {"meter": verdict.meter, "quantity": decimal_text(verdict.quantity or ZERO)}
    return form


def _wallet_of(wallets: Wallets, customer: str, currency: str) -> dict[str, Any]:
    digits = minor_digits(currency)

    def text(amount: Decimal) -> str:
        return f"{amount:.{digits}f}"

    top_ups: list[dict[str, Any]] = []
    for number in wallets.of[customer, currency]:
        pot = wallets.pots[number]
        expired = pot.top_up.expires is not None and pot.top_up.expires <= wallets.now
        top_ups.append(
            {
                "step": number,
                "at": pot.top_up.at,
                "kind": pot.top_up.kind,
                "amount": text(pot.top_up.amount),
                "left": text(pot.left),
                "reserved": text(pot.held),
                "committed": text(pot.committed),
                "expires": pot.top_up.expires,
                "expired": expired,
            }
        )
    return {
        "currency": currency,
        "balance": text(wallets.balance(customer, currency)),
        "reserved": text(wallets.reserved(customer, currency)),
        "available": text(wallets.available(customer, currency)),
        "committed": text(sum((wallets.pots[number].committed for number in wallets.of[customer, currency]), ZERO)),
        "top_ups": top_ups,
    }


# -- snapshots ---------------------------------------------------------------------------------------------------------


class _AccountState(msgspec.Struct, omit_defaults=True):
    pots: dict[int, tuple[Decimal, Decimal, Decimal]] = {}
    reservations: dict[str, Reservation] = {}
    runs: dict[str, RunState] = {}
    documents: dict[str, tuple[tuple[int, Decimal], ...]] = {}
    nets: dict[str, Decimal] = {}
    expiring: list[tuple[datetime, str]] = []

    @classmethod
    def of(cls, account: Account) -> _AccountState:
        pots = {number: (pot.gone, pot.held, pot.committed) for number, pot in account.pots.items()}
        reservations = dict(account.reservations)
        return cls(pots, reservations, account.runs, account.documents, account.nets, account.expiring)

    def account(self) -> Account:
        pots = {number: PotState(*amounts) for number, amounts in self.pots.items()}
        ending = sum(one.state == "open" and one.verdict.expires is not None for one in self.reservations.values())
        expiries = Expiries.of(self.expiring)
        return Account(pots, self.reservations, self.runs, self.documents, self.nets, expiries, ending)


class _State(msgspec.Struct):
    tenants: dict[str, dict[str, _AccountState]]
    closed: list[tuple[str, str, str]]
    forgot: bool = False
