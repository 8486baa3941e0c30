"""Wallets: prepaid and promotional credit, reservations that hold it, commits that spend it, invoices that use it.

Owns the order in which credit is used (promotional first, then earliest expiry, then oldest) and what is left.
Budgets are `billing/budgets.py`. A wallet is of one customer and currency. Source: docs/rules.md, Wallets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal

from billing.assemble import CreditKind
from billing.contracts import FOREVER
from billing.documents import Document
from billing.errors import Conflict
from billing.master import MasterData, TopUp
from billing.settle import BilledDocument

ZERO = Decimal(0)


@dataclass(slots=True)
class Pot:
    """One top-up: what is left of it, what of that reservations hold, and what commits took aside for invoices."""

    top_up: TopUp
    left: Decimal
    held: Decimal = ZERO
    committed: Decimal = ZERO

    def free(self, now: datetime) -> Decimal:
        expired = self.top_up.expires is not None and self.top_up.expires <= now
        return ZERO if expired else self.left - self.held


@dataclass(slots=True)
class Hold:
    """What one reservation holds: of which top-ups, and how much of it counts against budgets (net)."""

    customer: str
    currency: str
    parts: list[tuple[int, Decimal]]
    granted: Decimal
    net: Decimal
    expires: datetime | None = None
    state: Literal["open", "committed", "released", "expired"] = "open"

    @property
    def open(self) -> bool:
        return self.state == "open"


@dataclass(slots=True)
class Wallets:
    """All wallets of a tenant (or of a chunk of its customers) at a moment, moved on by `at`."""

    now: datetime
    pots: dict[int, Pot] = field(default_factory=dict[int, Pot])  # by the number of the top-up
    of: dict[tuple[str, str], list[int]] = field(default_factory=dict[tuple[str, str], list[int]])
    holds: dict[str, Hold] = field(default_factory=dict[str, Hold])
    used: dict[str, list[tuple[int, Decimal]]] = field(default_factory=dict[str, list[tuple[int, Decimal]]])
    nets: dict[tuple[str, str], Decimal] = field(default_factory=dict[tuple[str, str], Decimal])  # of open holds

    def at(self, now: datetime) -> None:
        """Move the clock: reservations whose time is over are released."""
        self.now = max(self.now, now)
        for hold in self.holds.values():
            if hold.open and hold.expires is not None and hold.expires <= self.now:
                self._free(hold, "expired")

    def add(self, top_up: TopUp, *, gone: Decimal = ZERO, held: Decimal = ZERO, committed: Decimal = ZERO) -> None:
        """A top-up, of which some may be gone (`committed` of that waits for invoices) and some is held."""
        if top_up.number in self.pots:
            return
        self.pots[top_up.number] = Pot(top_up, top_up.amount - gone, held, committed)
        numbers = self.of.setdefault((top_up.customer, top_up.currency), [])
        numbers.append(top_up.number)
        numbers.sort(key=lambda number: wallet_order(self.pots[number].top_up))

    def exists(self, customer: str, currency: str) -> bool:
        return (customer, currency) in self.of

    def _pots(self, customer: str, currency: str, kind: CreditKind | None = None) -> Iterable[tuple[int, Pot]]:
        for number in self.of.get((customer, currency), ()):
            pot = self.pots[number]
            if kind is None or pot.top_up.kind == kind:
                yield number, pot

    def available(self, customer: str, currency: str, kind: CreditKind | None = None) -> Decimal:
        """Credit that neither is reserved nor has expired."""
        return sum((pot.free(self.now) for _, pot in self._pots(customer, currency, kind)), ZERO)

    def balance(self, customer: str, currency: str) -> Decimal:
        """What is left, with what is reserved, without what was committed."""
        return sum((max(pot.free(self.now), ZERO) + pot.held for _, pot in self._pots(customer, currency)), ZERO)

    def reserved(self, customer: str, currency: str) -> Decimal:
        return sum((pot.held for _, pot in self._pots(customer, currency)), ZERO)

    def held_net(self, customer: str, currency: str) -> Decimal:
        """What open reservations of the customer count against his budgets."""
        return self.nets.get((customer, currency), ZERO)

    # Documents

    def take(self, customer: str, currency: str, kind: CreditKind, asked: Decimal, document: str) -> Decimal:
        """Credit for a document: committed credit first, even if expired since, then what is free."""
        taken = ZERO
        uses = self.used.setdefault(document, [])
        for number, pot in self._pots(customer, currency, kind):
            part = min(pot.committed, asked - taken)
            if part > 0:
                pot.committed -= part
                uses.append((number, part))
                taken += part
        for number, pot in self._pots(customer, currency, kind):
            part = min(pot.free(self.now), asked - taken)
            if part > 0:
                pot.left -= part
                uses.append((number, part))
                taken += part
        return taken

    def name(self, document: str, number: str) -> None:
        """The document has got its number: what it used is found under it from now on."""
        if document in self.used:
            self.used[number] = self.used.pop(document)

    def give_back(self, number: str) -> None:
        for pot, amount in self.used.pop(number, []):
            self.pots[pot].left += amount

    # Reservations

    def reserve(
        self,
        id: str,
        customer: str,
        currency: str,
        parts: Mapping[CreditKind, Decimal] | None,
        granted: Decimal,
        net: Decimal,
        expires: datetime | None = None,
    ) -> Hold:
        """Hold what was granted; `parts` says of which kind, None takes promotional credit first."""
        taken: list[tuple[int, Decimal]] = []
        if self.exists(customer, currency):
            wanted = parts if parts is not None else {"promotional": granted, "purchased": granted}
            left = granted
            for kind in ("promotional", "purchased"):
                asked = min(wanted.get(kind, ZERO), left)
                for number, pot in self._pots(customer, currency, kind):
                    part = min(pot.free(self.now), asked)
                    if part > 0:
                        pot.held += part
                        taken.append((number, part))
                        asked -= part
                        left -= part
        hold = Hold(customer, currency, taken, granted, net, expires)
        self.holds[id] = hold
        self.nets[customer, currency] = self.held_net(customer, currency) + net
        return hold

    def hold(self, customer: str, currency: str, parts: Iterable[tuple[int, Decimal]], net: Decimal) -> None:
        """Hold what a reservation was granted elsewhere."""
        for number, part in parts:
            self.pots[number].held += part
        self.nets[customer, currency] = self.held_net(customer, currency) + net

    def commit(self, id: str, amount: Decimal) -> Decimal:
        """Spend at most what was granted, promotional credit first; the rest of the reservation is released.

        After it has expired the amount comes out of free credit. Conflict if that does not suffice, or for one that
        was released; committed again, nothing happens.
        """
        hold = self.holds[id]
        wanted = min(amount, hold.granted)
        if hold.state == "committed":
            return ZERO
        if hold.state == "released":
            raise Conflict(f"Reservation {id!r} was released: nothing of it can be committed.", id=id)
        if hold.state == "expired":
            spent = self.late_parts(id, hold.customer, hold.currency, wanted)
            hold.state = "committed"
        else:
            spent = first_of(hold.parts, wanted)
            self._free(hold, "committed")
        return self.set_aside(spent)

    def late_parts(self, id: str, customer: str, currency: str, amount: Decimal) -> list[tuple[int, Decimal]]:
        """What pays a commit after its reservation has expired: free credit, if it suffices."""
        if not self.exists(customer, currency):
            return []
        parts = self.free_parts(customer, currency, amount)
        free = sum((part for _, part in parts), ZERO)
        if free < amount:
            detail = f"Reservation {id!r} has expired, and of {amount} only {free} {currency} is free."
            raise Conflict(detail, id=id)
        return parts

    def set_aside(self, parts: Sequence[tuple[int, Decimal]]) -> Decimal:
        """Credit leaves the balance and waits for the next invoices; how much that is."""
        for number, part in parts:
            pot = self.pots[number]
            pot.left -= part
            pot.committed += part
        return sum((part for _, part in parts), ZERO)

    def free_parts(self, customer: str, currency: str, asked: Decimal) -> list[tuple[int, Decimal]]:
        """Which free credit would be used for an amount: promotional first; less than asked where less is there."""
        free = [(number, pot.free(self.now)) for number, pot in self._pots(customer, currency)]
        return first_of(free, asked)

    def release(self, id: str) -> None:
        if id in self.holds and self.holds[id].open:
            self._free(self.holds[id], "released")

    def _free(self, hold: Hold, state: Literal["committed", "released", "expired"]) -> None:
        for number, held in hold.parts:
            self.pots[number].held -= held
        self.nets[hold.customer, hold.currency] = self.held_net(hold.customer, hold.currency) - hold.net
        hold.state, hold.parts = state, []


def first_of(parts: Iterable[tuple[int, Decimal]], amount: Decimal) -> list[tuple[int, Decimal]]:
    """The first parts that make up an amount, the last one cut; all of them where they are less."""
    found: list[tuple[int, Decimal]] = []
    for number, part in parts:
        some = min(part, amount)
        if some > 0:
            found.append((number, some))
            amount -= some
    return found


def wallet_order(top_up: TopUp) -> tuple[int, datetime, datetime, int]:
    kind = 0 if top_up.kind == "promotional" else 1
    return kind, top_up.expires or FOREVER, top_up.at, top_up.number


def wallets_of(
    master: MasterData, customers: Sequence[str], billed: Sequence[BilledDocument], now: datetime
) -> Wallets:
    """The wallets of some customers, replayed from their top-ups and all their documents (without reservations).

    `billed` must hold every document of these customers, in the order made, with `made_at`.
    """
    wanted = set(customers)
    wallets = Wallets(datetime.min.replace(tzinfo=now.tzinfo))
    top_ups = [top_up for top_up in master.top_ups if top_up.customer in wanted]
    waiting = sorted(top_ups, key=lambda top_up: (top_up.at, top_up.number))
    place = 0
    by_number = {one.number: one.document for one in billed}
    for one in billed:
        made = one.made_at or now
        while place < len(waiting) and waiting[place].at <= made:
            wallets.add(waiting[place])
            place += 1
        wallets.at(made)
        document = one.document
        if document.type == "credit_note":
            original = by_number.get(document.refers_to or "")
            if original is not None and mirrors(document, original):
                wallets.give_back(document.refers_to or "")
            continue
        for owner in (*(member.code for member in document.members), document.customer):
            promotional, purchased = used_by(document, owner)
            wallets.take(owner, document.currency, "promotional", promotional, one.number)
            wallets.take(owner, document.currency, "purchased", purchased, one.number)
    for top_up in waiting[place:]:
        wallets.add(top_up)
    wallets.at(now)
    return wallets


def used_by(document: Document, customer: str) -> tuple[Decimal, Decimal]:
    """Promotional and purchased credit of a customer's wallet on a document: of who pays, or of one of its members."""
    is_payer = customer == document.customer
    source = "" if is_payer else customer
    promotional = (a.stated for a in document.allowances if a.kind == "promotional" and a.source == source)
    of_members = {member.code: member.prepaid for member in document.members}
    own = document.prepaid - sum(of_members.values(), ZERO)
    return sum(promotional, ZERO), own if is_payer else of_members.get(customer, ZERO)


def mirrors(note: Document, original: Document) -> bool:
    """Whether a credit note mirrors its invoice whole (one by lines gives no credit back)."""
    sums = (note.net, note.gross, note.prepaid, len(note.lines))
    return sums == (original.net, original.gross, original.prepaid, len(original.lines))
