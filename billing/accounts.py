"""Accounts: what the rows of his home lane say of one customer's credit, reservations and documents.

Owns the fold only: `apply` takes a row's verdict as it was recorded and decides nothing, so a replay repeats every
verdict. What is granted is `billing/reservations.py`, in which order credit is used `billing/wallets.py`, to whose form
`wallets` brings an account together with the top-ups, which stand in the master data and nowhere else.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal

import msgspec

from billing.expiries import Expiries
from billing.master import TopUp
from billing.wallets import Wallets

ZERO = Decimal(0)
Part = tuple[int, Decimal]  # number of the top-up, amount
State = Literal["open", "committed", "released", "expired"]


# What the rows say. Amounts are text in JSON; `master` is the number of the master data that the verdict rests on.


class Reserved(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    master: int
    currency: str
    granted: Decimal
    net: Decimal  # counts against budgets
    parts: tuple[Part, ...]
    amount: Decimal | None = None  # asked
    meter: str = ""
    quantity: Decimal | None = None
    expires: datetime | None = None


class Committed(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    master: int
    amount: Decimal  # of the reservation that was used
    parts: tuple[Part, ...]
    late: bool = False  # after it had expired, from free credit


class Released(msgspec.Struct, frozen=True, gc=False):
    master: int


class Use(msgspec.Struct, frozen=True, gc=False):
    """What one document of a run uses."""

    currency: str
    promotional: Decimal
    purchased: Decimal
    parts: tuple[Part, ...]


class Held(msgspec.Struct, frozen=True, gc=False):
    """Credit that a bill run's documents use, before they are final."""

    master: int
    run: str
    as_of: datetime  # the run's clock: what had expired then is not used
    uses: dict[str, Use]  # by the document's key in the run
    restores: tuple[str, ...]  # numbers of invoices that the run takes back whole
    moves: tuple[tuple[int, Decimal, Decimal], ...]  # top-up, net taken (negative: comes back), of committed credit


class Settled(msgspec.Struct, frozen=True, gc=False):
    run: str
    documents: dict[str, str]  # key -> number


class Freed(msgspec.Struct, frozen=True, gc=False):
    run: str


class Restored(msgspec.Struct, frozen=True, gc=False):
    invoice: str
    parts: tuple[Part, ...]


Entry = Reserved | Committed | Released | Held | Settled | Freed | Restored


# The state


class PotState(msgspec.Struct):
    """Of one top-up: what has left it, how much of that waits for invoices, and what open reservations hold."""

    gone: Decimal = ZERO
    held: Decimal = ZERO
    committed: Decimal = ZERO


class Reservation(msgspec.Struct, frozen=True, gc=False):
    verdict: Reserved
    at: datetime
    state: State = "open"
    spent: Decimal = ZERO
    closed_at: datetime | None = None


class RunState(msgspec.Struct, frozen=True, gc=False):
    """A run's claim on the credit: `held` None is a run that was given up before it asked."""

    held: Held | None
    state: Literal["held", "settled", "freed"]


@dataclass(slots=True)
class Account:
    """One customer's; changed by `apply` and `at` only."""

    pots: dict[int, PotState] = field(default_factory=dict[int, PotState])
    reservations: MutableMapping[str, Reservation] = field(default_factory=dict[str, Reservation])
    runs: dict[str, RunState] = field(default_factory=dict[str, RunState])
    documents: dict[str, tuple[Part, ...]] = field(default_factory=dict[str, tuple[Part, ...]])  # by number
    nets: dict[str, Decimal] = field(default_factory=dict[str, Decimal])  # of open reservations, by currency
    expiries: Expiries = field(default_factory=Expiries, compare=False)  # `expiring` is what of them counts
    open_expiring: int = 0  # open reservations that end by themselves

    def scratch(self) -> Account:
        """A copy for decisions on reservations: the next one of a batch sees the one before, the account neither."""
        pots = {number: PotState(pot.gone, pot.held, pot.committed) for number, pot in self.pots.items()}
        reservations = ChainMap({}, self.reservations)
        return Account(
            pots,
            reservations,
            self.runs,
            self.documents,
            dict(self.nets),
            self.expiries.scratch(),
            self.open_expiring,
        )

    @property
    def expiring(self) -> list[tuple[datetime, str]]:
        """When open reservations end, in the order of time."""
        return self.expiries.waiting(self._is_open)

    def _is_open(self, id: str) -> bool:
        one = self.reservations.get(id)
        return one is not None and one.state == "open"

    def at(self, now: datetime) -> list[str]:
        """Reservations whose time is over are open no more: their ids."""
        over = [(moment, id) for moment, id in self.expiries.take_due(now) if self._is_open(id)]
        for moment, id in over:
            self._close(id, "expired", moment)
        return [id for _, id in over]

    def apply(self, id: str, entry: Entry, now: datetime) -> list[str]:
        """Take one row; `id` is the reservation's, where it is about one. Gives the reservations that it closed."""
        closed = self.at(now) if self.expiries else []
        match entry:
            case Reserved():
                self._reserved(id, entry, now)
            case Committed():
                self._committed(id, entry, now)
                closed.append(id)
            case Released():
                self._close(id, "released", now)
                closed.append(id)
            case Held():
                self._held(entry)
            case Settled():
                self._settled(entry)
            case Freed():
                self._freed(entry)
            case Restored():
                for number, part in self.documents.pop(entry.invoice, ()):
                    self._pot(number).gone -= part
        return closed

    def forget(self, id: str) -> None:
        """Drop a closed reservation: its verdict is in the log only."""
        assert self.reservations[id].state != "open"
        del self.reservations[id]
        self.expiries.sweep(self._is_open, self.open_expiring)

    def is_empty(self) -> bool:
        return not (self.pots or self.reservations or self.runs or self.documents)

    def is_expired(self, id: str, now: datetime) -> bool:
        """Whether a reservation's time is over without a commit or a release."""
        one = self.reservations[id]
        expires = one.verdict.expires
        return one.state == "expired" or (one.state == "open" and expires is not None and expires <= now)

    def wallets(
        self,
        customer: str,
        top_ups: Iterable[TopUp],
        now: datetime,
        *,
        as_of: datetime | None = None,
        documents: bool = False,
    ) -> Wallets:
        """The customer's wallets at a moment, for whoever decides: a copy, whose changes stay outside.

        `as_of` is a bill run's clock: what had expired then is not used, what came later not yet. `documents` brings
        what earlier invoices used, so that it can be given back.
        """
        over, nets = self._over(now)
        moment = as_of or now
        wallets = Wallets(moment)
        for top_up in top_ups:
            if top_up.at <= moment:
                pot = self.pots.get(top_up.number, _UNTOUCHED)
                held = pot.held - over.get(top_up.number, ZERO)
                wallets.add(top_up, gone=pot.gone, held=held, committed=pot.committed)
        wallets.nets = {(customer, currency): net for currency, net in nets.items()}
        if documents:
            wallets.used = {number: list(parts) for number, parts in self.documents.items()}
        return wallets

    def _over(self, now: datetime) -> tuple[dict[int, Decimal], dict[str, Decimal]]:
        """What reservations hold whose time is over, though no row has said so yet; and the nets without them."""
        held: dict[int, Decimal] = {}
        nets = dict(self.nets)
        for _, id in self.expiries.due(now):
            one = self.reservations.get(id)
            if one is not None and one.state == "open":
                nets[one.verdict.currency] -= one.verdict.net
                for number, part in one.verdict.parts:
                    held[number] = held.get(number, ZERO) + part
        return held, nets

    def _pot(self, number: int) -> PotState:
        return self.pots.setdefault(number, PotState())

    def _reserved(self, id: str, entry: Reserved, now: datetime) -> None:
        assert id not in self.reservations, f"reservation {id} is recorded twice"
        self.reservations[id] = Reservation(entry, now)
        self.nets[entry.currency] = self.nets.get(entry.currency, ZERO) + entry.net
        for number, part in entry.parts:
            self._pot(number).held += part
        if entry.expires is not None:
            self.expiries.add(entry.expires, id)
            self.open_expiring += 1

    def _committed(self, id: str, entry: Committed, now: datetime) -> None:
        if not entry.late:
            self._close(id, "committed", now)
        for number, part in entry.parts:
            pot = self._pot(number)
            pot.gone += part
            pot.committed += part
        one = self.reservations[id]
        self.reservations[id] = Reservation(one.verdict, one.at, "committed", entry.amount, now)

    def _close(self, id: str, state: State, at: datetime) -> None:
        """An open reservation holds nothing any more."""
        one = self.reservations[id]
        assert one.state == "open", f"reservation {id} is {one.state}"
        self.reservations[id] = Reservation(one.verdict, one.at, state, one.spent, at)
        self.nets[one.verdict.currency] -= one.verdict.net
        if one.verdict.expires is not None:
            self.open_expiring -= 1
        for number, part in one.verdict.parts:
            self.pots[number].held -= part

    def _held(self, entry: Held) -> None:
        assert entry.run not in self.runs, f"run {entry.run} has asked before"
        self.runs[entry.run] = RunState(entry, "held")
        for number, net, committed in entry.moves:
            pot = self._pot(number)
            pot.gone += max(net, ZERO)  # what comes back counts only when the documents are final
            pot.committed -= committed

    def _settled(self, entry: Settled) -> None:
        run = self.runs[entry.run]
        assert run.held is not None, f"run {entry.run} never asked"
        assert run.state == "held", f"run {entry.run} is {run.state}"
        assert run.held.uses.keys() <= entry.documents.keys(), "a document that used credit has no number"
        self.runs[entry.run] = RunState(run.held, "settled")
        for number, net, _ in run.held.moves:
            self._pot(number).gone += min(net, ZERO)
        for invoice in run.held.restores:
            self.documents.pop(invoice, None)
        for key, use in run.held.uses.items():
            if use.parts:
                self.documents[entry.documents[key]] = use.parts

    def _freed(self, entry: Freed) -> None:
        run = self.runs.get(entry.run, RunState(None, "freed"))
        assert run.state != "settled", f"run {entry.run} is settled"
        if run.held is not None and run.state == "held":
            for number, net, committed in run.held.moves:
                pot = self._pot(number)
                pot.gone -= max(net, ZERO)
                pot.committed += committed
        self.runs[entry.run] = RunState(run.held, "freed")


_UNTOUCHED = PotState()
